"""Averaging operators and linear attention, against `integral_attention`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop.attention import averaging_operator, integral_attention, linear_attention
from jaxop.kernels import DotProduct, ExpDotProduct, FourierIntegral
from tests.nn.tokens import HEADS, N, arrays


def averages(apply):
    """The value and gradients of a function of averages of two values, which ``apply`` takes."""

    def loss(query, key, value, weights):
        return sum(jnp.sum(jnp.sin(out)) for out in apply(query, key, weights, (value, value**2)))

    arguments = *arrays(3, N, HEADS, 4), np.linspace(0.0, 1.0, N)
    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*arguments))


def averaging_options(kernel, is_causal):
    mask = jnp.asarray(np.random.default_rng(0).uniform(size=(HEADS, N, N)) < 0.7)
    return {"kernel": kernel, "is_causal": is_causal, "mask": mask}


@functools.cache
def averages_of_dense_attention(kernel, is_causal):
    options = averaging_options(kernel, is_causal)

    def apply(query, key, weights, values):
        return [integral_attention(query, key, v, weights, implementation="dense", **options) for v in values]

    return averages(apply)


@pytest.mark.sample(3)
@pytest.mark.parametrize("kernel", [ExpDotProduct(), FourierIntegral(0.5, epsilon=0.1)])
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.sample(1)
def test_averaging_operator_is_the_attention(kernel, implementation, is_causal):
    options = averaging_options(kernel, is_causal)

    def apply(query, key, weights, values):
        average = averaging_operator(query, key, weights, implementation=implementation, **options)
        return [average(v) for v in values]

    for a, b in zip(averages(apply), averages_of_dense_attention(kernel, is_causal), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("n", [5, 64, 130])
def test_linear_attention_is_the_integral_of_its_kernel(n, x64):
    query, key, value = arrays(3, n, HEADS, 4)
    weights = np.random.default_rng(1).uniform(size=n)
    weights[0] = 0.0
    kernel = DotProduct(1.0)

    @jax.jit
    def outputs(query, key, value, weights):
        options = {"kernel": kernel, "normalize": False}
        whole, causal = (integral_attention(query, key, value, weights, **options, is_causal=c) for c in (False, True))
        linear = linear_attention(query, key, value, 3 * weights)
        return whole, causal, linear, linear_attention(query, key, value, weights, is_causal=True)

    whole, causal, linear, out = map(np.asarray, outputs(query, key, value, weights))
    np.testing.assert_allclose(linear, whole / weights.sum(), rtol=1e-10, atol=1e-12)
    expected = causal[1:] / np.cumsum(weights)[1:, None, None]
    np.testing.assert_allclose(out[1:], expected, rtol=1e-9, atol=1e-12)
    assert (out[0] == 0).all()
    key[-1] = value[-1] = 9.0
    later = np.asarray(outputs(query, key, value, weights)[3])
    np.testing.assert_array_equal(later[:-1], out[:-1])
