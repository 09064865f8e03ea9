"""The oracle and the instruments themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import kernels, testing


def test_oracle_is_softmax_attention_for_equal_weights():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 6, 2, 4))
    logits = np.einsum("nhd,mhd->hnm", q, k) / 2.0
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        testing.attention_oracle(q, k, v, kernel=kernels.ExpDotProduct()), np.einsum("hnm,mhc->nhc", p, v), rtol=1e-12
    )


def test_observed_order_of_a_known_error():
    sizes = [10, 20, 40]
    assert testing.observed_order(sizes, [3.0 * n**-1.5 for n in sizes]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="errors must be positive"):
        testing.observed_order(sizes, [1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="same length of at least 2"):
        testing.observed_order(sizes, [1.0, 0.5])


def test_compilations_are_counted():
    function = jax.jit(lambda x: jnp.tanh(3 * x))
    with testing.count_compilations() as compilations:
        function(jnp.ones(3))
        first = compilations()
        function(jnp.ones(4))
    assert first >= 1
    assert compilations() > first
