"""One kernel per attention head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import attention, kernels, nn, testing
from jaxop.kernels import PerHead


def ones(*shape):
    return jnp.asarray(np.ones(shape, np.float32))


def widths():
    return jnp.asarray(np.asarray([0.3, 0.9], np.float32))


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
@pytest.mark.sample(1)
def test_every_head_has_its_own(implementation):
    query, key, value = (np.random.default_rng(n).normal(size=(n, 2, 3)).astype(np.float32) for n in (4, 6, 6))
    kernel = PerHead(kernels.Gaussian(widths()) + kernels.Quadratic(widths()))

    @jax.jit
    def attend(query, key, value):
        return attention.integral_attention(query, key, value, kernel=kernel, implementation=implementation)

    out = attend(query, key, value)
    np.testing.assert_allclose(out, testing.attention_oracle(query, key, value, kernel=kernel), rtol=1e-4, atol=1e-5)


def test_it_is_a_pytree_of_the_leaves_of_its_kernel():
    kernel = PerHead(kernels.FourierIntegral(ones(3, 1), epsilon=0.5))
    assert (kernel.heads, kernel.sign, kernel.epsilon, kernel.is_additive) == (3, "nonnegative", 0.5, True)
    assert [leaf.shape for leaf in jax.tree.leaves(kernel)] == [(3, 1)]
    assert kernel.at(2).radius.shape == (1,)
    assert jax.tree.map(lambda leaf: leaf[:2], kernel).heads == 2
    assert PerHead(kernels.Gaussian(widths())).with_depth(5).kernel.depth == 5


def test_parameters_of_a_layer_go_by_the_names_of_the_kernel():
    parameters = nn.KernelParameters(PerHead(kernels.Gaussian(widths())))
    assert list(nnx.to_pure_dict(nnx.state(parameters))["leaves"]) == ["inverse_width"]
    assert parameters.value.heads == 2


BAD = [
    (lambda: PerHead(kernels.ExpDotProduct()), ValueError, "got ExpDotProduct without any"),
    (lambda: PerHead(kernels.Gaussian()), ValueError, r".inverse_width has shape \(\)"),
    (
        lambda: PerHead(kernels.Gaussian(ones(2)) + kernels.Quadratic(ones(3))),
        ValueError,
        r"offset has shape \(3,\) beside \(2,\)",
    ),
    (lambda: PerHead(PerHead(kernels.Gaussian(ones(2)))), TypeError, "kernel must be a Kernel, .* got PerHead"),
    (lambda: PerHead("gaussian"), TypeError, "kernel must be a Kernel, .* got str"),
    (lambda: kernels.Gaussian() + PerHead(kernels.Gaussian(ones(2))), TypeError, "compose kernels first"),
    (
        lambda: attention.integral_attention(*[ones(5, 3, 4)] * 3, kernel=PerHead(kernels.Gaussian(ones(2)))),
        ValueError,
        r"kernel must have one entry per head of query, 3, got PerHead\(Gaussian\) of 2 heads",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_a_single_kernel_can_do_is_refused_with_the_way_to_do_it(unchecked):
    kernel = kernels.PerHead(kernels.Gaussian(jnp.array([0.3, 0.9])))
    for compose in (lambda: 2.0 * kernel, lambda: kernel + kernels.Gaussian(), lambda: kernels.Gaussian() * kernel):
        with pytest.raises(TypeError, match="compose kernels first"):
            compose()
    with pytest.raises(TypeError, match=r"kernel\.at\(h\)"):
        kernels.matrix(kernel, jnp.ones((2, 3)), jnp.ones((2, 3)))
