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
    attention = layer(kernel=kernels.PerHead(kernel))
    gradient = jax.jit(nnx.grad(lambda m, *args: jnp.sum(m(*args) ** 2)))(attention, random(2, 5, 8), np.full(5, 0.2))
    assert gradient["kernel"]["leaves"]["params"][...].shape == (2,)
    assert (np.abs(gradient["kernel"]["leaves"]["params"][...]) > 1e-6).all()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"heads must divide the width 8, got 3; valid numbers: \[1, 2, 4, 8\]"):
        nn.IntegralAttention(8, 3, rngs=nnx.Rngs(0))


def test_unknown_implementation():
    with pytest.raises(ValueError, match="implementation='dens' is unknown: did you mean 'dense'"):
        nn.IntegralAttentionConfig(implementation="dens")


SAMPLES, NODES, HEADS = 3, 4, 2
FULL = np.random.default_rng(3).uniform(size=(SAMPLES, HEADS, NODES, NODES)) < 0.6
MASKS = {
    "(m,)": FULL[0, 0, 0],
    "(n, m)": FULL[0, 0],
    "(h, n, m)": FULL[0],
    "(b, m)": FULL[:, 0, 0],
    "(b, n, m)": FULL[:, 0],
    "(b, h, n, m)": FULL,
    "(b, 1, 1, m)": FULL[:, :1, :1],
    "(1, h, n, m)": FULL[:1],
    "(b, h, 1, m)": FULL[:, :, :1],
}
WITH_FOUR_AXES = {"(m,)": (1, 1, 1, -1), "(n, m)": (1, 1, NODES, -1), "(h, n, m)": (1, HEADS, NODES, -1)} | {
    "(b, m)": (SAMPLES, 1, 1, -1),
    "(b, n, m)": (SAMPLES, 1, NODES, -1),
}


def test_a_mask_per_sample_equals_one_by_one():
    attention, chunked = layer(), layer(implementation="chunked")
    x = random(SAMPLES, NODES, 8)

    @jax.jit
    def outputs(x, masks):
        together = {name: attention(x, mask=mask) for name, mask in masks.items()}
        full = {n: jnp.broadcast_to(m.reshape(WITH_FOUR_AXES.get(n, m.shape)), FULL.shape) for n, m in masks.items()}
        alone = jax.vmap(lambda x, mask: attention(x[None], mask=mask[None])[0])
        return together, {name: alone(x, mask) for name, mask in full.items()}, chunked(x, mask=masks["(b, n, m)"])

    together, alone, in_chunks = outputs(x, MASKS)
    for name in MASKS:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(in_chunks, alone["(b, n, m)"], rtol=1e-5, atol=1e-6)


def test_connections_take_a_mask_per_sample():
    attention, (x, v), mask = layer(), random(2, SAMPLES, NODES, 8), jnp.asarray(FULL[:, 0])

    @jax.jit
    def outputs(x, v):
        alone = lambda x, v, mask: attention.with_connection(x[None], v[None], mask=mask)[1][0]  # noqa: E731
        return attention.with_connection(x, v, mask=mask)[1], jax.vmap(alone)(x, v, mask)

    np.testing.assert_allclose(*outputs(x, v), rtol=1e-5, atol=1e-6)


def test_masks_with_two_meanings_are_refused(unchecked):
    attention = layer()
    two = r"\(2, 4, 4\) can be read as \(h, n, m\) and as \(b, n, m\); pass mask.reshape\(\(1, 2, 4, 4\)\) for one mask"
    for call in (attention, lambda x, mask: attention.with_connection(x, x, mask=mask)):
        with pytest.raises(ValueError, match=two):
            call(jnp.ones((2, 4, 8)), mask=jnp.ones((2, 4, 4), bool))
        with pytest.raises(ValueError, match=r"as \(n, m\) and as \(b, m\); .* mask.reshape\(\(4, 1, 1, 4\)\) for one"):
            call(jnp.ones((4, 4, 8)), mask=jnp.ones((4, 4), bool))
        with pytest.raises(ValueError, match=r"mask must have shape \(m,\), .* 3, 2, 4, 4, .* got \(2, 2, 4, 4\)"):
            call(jnp.ones((3, 4, 8)), mask=jnp.ones((2, 2, 4, 4), bool))
    attention(jnp.ones((1, 4, 8)), mask=jnp.ones((1, 4, 4), bool))  # of one sample all meanings are the same
    for weights in (jnp.ones(3), jnp.ones((2, 4)), jnp.ones((3, 1, 4))):
        with pytest.raises(ValueError, match=r"weights must have shape \(4,\) for all samples, or \(3, 4\) with rows"):
            attention(jnp.ones((3, 4, 8)), weights)
