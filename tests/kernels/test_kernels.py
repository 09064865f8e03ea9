"""The pair function is the definition: logarithms and matrix forms follow from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import kernels
from tests.properties.cases import KERNELS, SIGNED

SHARED = [case for case in [*KERNELS, *SIGNED] if case.axis is None]


@pytest.mark.parametrize("case", SHARED, ids=str)
def test_log_and_tile_follow_from_the_definition(case, x64):
    kernel = case.make()
    q, k = (jax.random.normal(jax.random.key(i), (n, 5), jnp.float64) for i, n in ((0, 7), (1, 9)))
    definition = jax.vmap(jax.vmap(kernel, in_axes=(None, 0)), in_axes=(0, None))(q, k)
    tile = kernel.tile(q, k)
    assert (definition < 0).any() == (kernel.sign == "signed")
    if kernel.sign == "signed":
        np.testing.assert_allclose(tile, definition, rtol=1e-12)
    else:
        alive = np.asarray(definition) > 0
        np.testing.assert_allclose(np.exp(tile), definition, rtol=1e-12, atol=0)
        assert (np.asarray(tile)[~alive] == kernels.LOG_ZERO).all()
        assert alive.all() or kernel.sign == "nonnegative"


def test_log_does_not_overflow():
    q = jnp.full(4, 50.0)
    assert kernels.ExpDotProduct().log(q, q) == 5000.0
    assert kernels.from_pair(lambda a, b: 1e3 * a @ b, log=True).log(q, q) == 1e7


def test_gradient_at_a_zero_of_the_kernel_is_zero():
    kernel = kernels.from_pair(lambda a, b: jnp.maximum(1 - jnp.sum((a - b) ** 2), 0) ** 2)
    gradient = jax.grad(kernel.log)(jnp.asarray([2.0]), jnp.asarray([0.0]))
    np.testing.assert_array_equal(gradient, 0.0)


def test_kernels_are_pytrees_with_trainable_leaves():
    kernel = kernels.from_pair(
        lambda p, a, b: -p["rate"] * jnp.sum(jnp.abs(a - b)), {"rate": jnp.asarray(2.0)}, log=True
    )
    gradient = jax.grad(lambda ker: ker.log(jnp.zeros(3), jnp.ones(3)))(kernel)
    assert gradient.params["rate"] == -3.0
    assert jax.tree.leaves(kernels.ExpDotProduct()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sign": "negative"}, "sign='negative' is unknown"), ({"sign": "signed", "log": True}, "has no logarithm")],
)
def test_bad_sign(options, message):
    with pytest.raises(ValueError, match=message):
        kernels.from_pair(lambda a, b: a @ b, **options)
