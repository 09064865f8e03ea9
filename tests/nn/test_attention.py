"""Integral attention as a module: the pure function with learned maps around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, kernels, nn
from jaxop.attention import integral_attention


def layer(**options):
    return nn.IntegralAttention(8, 2, rngs=nnx.Rngs(0), **options)


def random(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


call = jax.jit(lambda attention, *args, **kwargs: attention(*args, **kwargs))


def test_is_the_pure_function_between_affine_maps():
    attention, domain = layer(), domains.from_samples([0.0, 0.1, 0.5, 0.6, 1.0])

    @jax.jit
    def by_hand(attention, sample, weights):
        query = attention.query(sample).reshape(5, 2, 4)
        key, value = (part.reshape(5, 2, 4) for part in jnp.split(attention.key_value(sample), 2, axis=-1))
        return attention.output(integral_attention(query, key, value, weights).reshape(5, 8))

    x = random(3, 5, 8)
    for sample, result in zip(x, np.asarray(call(attention, x, domain.weights)), strict=True):
        np.testing.assert_allclose(result, by_hand(attention, sample, domain.weights), rtol=1e-5, atol=1e-6)


def test_a_domain_per_sample_equals_one_by_one():
    attention = layer()
    x = random(2, 6, 8)
    weights = np.asarray([[0.1, 0.2, 0.3, 0.2, 0.1, 0.1], [0.5, 0.1, 0.1, 0.1, 0.2, 0.0]])
    together = np.asarray(call(attention, x, weights))
    for i in range(2):
        alone = np.asarray(call(attention, x[i : i + 1], weights[i]))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-6)


def test_context_of_another_size_and_padding():
    attention = layer()
    x, context = random(2, 3, 8), random(2, 7, 8, seed=2)
    weights = np.full(7, 1 / 7)
    padded = np.concatenate([context, np.ones((2, 2, 8))], axis=1)
    np.testing.assert_allclose(
        call(attention, x, np.pad(weights, (0, 2)), context=padded),
        call(attention, x, weights, context=context),
        atol=1e-6,
    )


def test_parameters_of_the_kernel_are_trained():
    kernel = kernels.from_pair(lambda rate, q, k: -rate * jnp.sum((q - k) ** 2), jnp.asarray(np.ones(2)), log=True)
    attention = layer(kernel=kernel, kernel_axis=0)
    gradient = jax.jit(nnx.grad(lambda m, *args: jnp.sum(m(*args) ** 2)))(attention, random(2, 5, 8), np.full(5, 0.2))
    assert gradient["kernel"]["leaves"]["params"][...].shape == (2,)
    assert (np.abs(gradient["kernel"]["leaves"]["params"][...]) > 1e-6).all()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"heads must divide the width 8, got 3; valid numbers: \[1, 2, 4, 8\]"):
        nn.IntegralAttention(8, 3, rngs=nnx.Rngs(0))


def test_unknown_implementation():
    with pytest.raises(ValueError, match="implementation='dens' is unknown: did you mean 'dense'"):
        nn.IntegralAttentionConfig(implementation="dens")
