"""The pair function is the definition: logarithms and matrix forms follow from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import kernels
from tests.laws.cases import KERNELS, SIGNED

SHARED = [case for case in [*KERNELS, *SIGNED] if case.axis is None]


@pytest.mark.parametrize("case", SHARED, ids=str)
def test_log_and_tile_follow_from_the_definition(case, x64):
    kernel = case.make()
    q, k = (np.random.default_rng(i).normal(size=(n, 5)) for i, n in ((0, 7), (1, 9)))

    @jax.jit
    def both(q, k):
        return jax.vmap(jax.vmap(kernel, in_axes=(None, 0)), in_axes=(0, None))(q, k), kernel.tile(q, k)

    definition, tile = map(np.asarray, both(q, k))
    assert (definition < 0).any() == (kernel.sign == "signed")
    if kernel.sign == "signed":
        np.testing.assert_allclose(tile, definition, rtol=1e-12)
    else:
        alive = definition > 0
        np.testing.assert_allclose(np.exp(tile), definition, rtol=1e-12, atol=0)
        assert (tile[~alive] == kernels.LOG_ZERO).all()
        assert alive.all() or kernel.sign == "nonnegative"


def test_log_does_not_overflow():
    pair = kernels.from_pair(lambda a, b: 1e3 * a @ b, log=True)
    logarithms = jax.jit(lambda q: (kernels.ExpDotProduct().log(q, q), pair.log(q, q)))(np.full(4, 50.0, np.float32))
    assert logarithms == (5000.0, 1e7)


def test_gradient_at_a_zero_of_the_kernel_is_zero():
    kernel = kernels.from_pair(lambda a, b: jnp.maximum(1 - jnp.sum((a - b) ** 2), 0) ** 2)
    gradient = jax.jit(jax.grad(kernel.log))(jnp.asarray([2.0]), jnp.asarray([0.0]))
    np.testing.assert_array_equal(gradient, 0.0)


def test_kernels_are_pytrees_with_trainable_leaves():
    kernel = kernels.from_pair(
        lambda p, a, b: -p["rate"] * jnp.sum(jnp.abs(a - b)), {"rate": jnp.asarray(2.0)}, log=True
    )
    gradient = jax.jit(jax.grad(lambda ker: ker.log(jnp.zeros(3), jnp.ones(3))))(kernel)
    assert gradient.params["rate"] == -3.0
    assert jax.tree.leaves(kernels.ExpDotProduct()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sign": "negative"}, "sign='negative' is unknown"), ({"sign": "signed", "log": True}, "has no logarithm")],
)
def test_bad_sign(options, message):
    with pytest.raises(ValueError, match=message):
        kernels.from_pair(lambda a, b: a @ b, **options)
