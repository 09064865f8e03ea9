"""The pair function is the definition: logarithms and matrix forms follow from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import attention, kernels
from tests.laws.cases import KERNELS, SIGNED

SHARED = [case for case in [*KERNELS, *SIGNED] if case.per_head is None]


@pytest.mark.parametrize("case", SHARED, ids=str)
@pytest.mark.sample(4)
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


class Derived(kernels.Kernel):
    """A kernel that defines a pair function and nothing else."""

    sign = "positive"

    def __call__(self, a, b):
        return jnp.exp(-jnp.sum((a - b) ** 2))


class Structural:
    """A kernel that derives from nothing."""

    def __init__(self, epsilon=None):
        self.sign = "positive"
        if epsilon is not None:
            self.epsilon = epsilon

    def __call__(self, a, b):
        return jnp.exp(self.log(a, b))

    def log(self, a, b):
        return -jnp.sum((a - b) ** 2)

    def tile(self, query, key):
        return jax.vmap(lambda a: jax.vmap(lambda b: self.log(a, b))(key))(query)


def test_a_kernel_that_is_derived_inherits_the_defaults():
    kernel = Derived()
    assert isinstance(kernel, kernels.Kernel)
    assert (kernel.epsilon, kernel.is_additive, kernel.parts, kernel.with_depth(3)) == (0.0, False, (), kernel)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
@pytest.mark.parametrize("epsilon", [None, 0.3])
@pytest.mark.sample(2)
def test_a_kernel_need_not_be_derived(implementation, epsilon):
    q, k, v = (np.random.default_rng(n).normal(size=(n, 2, 3)).astype(np.float32) for n in (4, 6, 6))
    kernel = Structural(epsilon)
    assert isinstance(kernel, kernels.Kernel)
    assert not isinstance(object(), kernels.Kernel)
    if epsilon is None:
        assert (kernels.Gaussian() * kernel)(q[0, 0], q[0, 0]) == 1

    @jax.jit
    def attend(q, k, v):
        ours = attention.integral_attention(q, k, v, kernel=kernel, implementation=implementation)
        return ours, attention.patch_attention(q[:, None], k[:, None], v[:, None], kernel=kernel)

    ours, patches = attend(q, k, v)
    densities = np.exp(-((q[:, None] - k[None]) ** 2).sum(-1))  # (n, m, h)
    mass = densities.mean(axis=1) + (epsilon or 0.0) / 6
    np.testing.assert_allclose(
        ours, np.einsum("nmh,mhc->nhc", densities, v) / 6 / mass[..., None], rtol=1e-4, atol=1e-6
    )
    assert patches.shape == (4, 1, 2, 3)
