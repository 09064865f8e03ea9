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


def test_is_the_pure_function_between_affine_maps():
    attention, domain = layer(), domains.from_samples([0.0, 0.1, 0.5, 0.6, 1.0])
    x = jax.random.normal(jax.random.key(1), (3, 5, 8))
    out = attention(x, domain.weights)
    for sample, result in zip(x, out, strict=True):
        query = attention.query(sample).reshape(5, 2, 4)
        key, value = (part.reshape(5, 2, 4) for part in jnp.split(attention.key_value(sample), 2, axis=-1))
        mixed = integral_attention(query, key, value, domain.weights)
        np.testing.assert_allclose(result, attention.output(mixed.reshape(5, 8)), rtol=1e-5, atol=1e-6)


def test_a_domain_per_sample_equals_one_by_one():
    attention = layer()
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))
    weights = jnp.asarray([[0.1, 0.2, 0.3, 0.2, 0.1, 0.1], [0.5, 0.1, 0.1, 0.1, 0.2, 0.0]])
    together = attention(x, weights)
    for i in range(2):
        np.testing.assert_allclose(together[i], attention(x[i : i + 1], weights[i])[0], rtol=1e-5, atol=1e-6)


def test_context_of_another_size_and_padding():
    attention = layer()
    x, context = (jax.random.normal(jax.random.key(k), (2, n, 8)) for k, n in ((1, 3), (2, 7)))
    weights = jnp.full(7, 1 / 7)
    padded = jnp.concatenate([context, jnp.ones((2, 2, 8))], axis=1)
    np.testing.assert_allclose(
        attention(x, jnp.pad(weights, (0, 2)), context=padded), attention(x, weights, context=context), atol=1e-6
    )


def test_parameters_of_the_kernel_are_trained():
    kernel = kernels.from_pair(lambda rate, q, k: -rate * jnp.sum((q - k) ** 2), jnp.ones(2), log=True)
    attention = layer(kernel=kernel, kernel_axis=0)
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    gradient = nnx.grad(lambda m: jnp.sum(m(x, jnp.full(5, 0.2)) ** 2))(attention)
    assert gradient["kernel"]["leaves"]["params"][...].shape == (2,)
    assert (np.abs(gradient["kernel"]["leaves"]["params"][...]) > 1e-6).all()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"heads must divide the width 8, got 3; valid numbers: \[1, 2, 4, 8\]"):
        nn.IntegralAttention(8, 3, rngs=nnx.Rngs(0))


def test_unknown_implementation():
    with pytest.raises(ValueError, match="implementation='dens' is unknown: did you mean 'dense'"):
        nn.IntegralAttentionConfig(implementation="dens")
