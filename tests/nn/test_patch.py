"""Patch attention modules against numpy in physical space, in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import nn, testing
from jaxop.spectral import Band, multiplier_shape

WIDTH, HEADS = 6, 2


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def double(module):
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), state))


call = jax.jit(lambda layer, *args: layer(*args))


def attend(query, key, value, weights):
    """(p, s, h, d) functions on patches, weighted by (s,)."""
    logits = np.einsum("s,pshd,qshd->hpq", weights, query, key)
    density = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("hpq,qshd->pshd", density / density.sum(-1, keepdims=True), value)


def as_heads(x):
    return x.reshape(*x.shape[:-1], HEADS, WIDTH // HEADS)


def test_patch_attention_is_the_formula_with_one_measure_or_one_per_sample(x64):
    layer = double(nn.PatchAttention(WIDTH, HEADS, rngs=nnx.Rngs(0)))
    tokens, weights = random(2, 3, 5, WIDTH), np.abs(random(2, 5, seed=1)) / 5
    kernel, bias = np.asarray(layer.projection.kernel[...]), random(3 * WIDTH, seed=2)
    layer.projection.bias[...] = jnp.asarray(bias)
    for measure in (weights[0], weights):
        out = np.asarray(call(layer, tokens, measure))
        for sample, measured in zip(range(2), np.broadcast_to(measure, (2, 5)), strict=True):
            parts = [as_heads(part) for part in np.split(tokens[sample] @ kernel + bias, 3, axis=-1)]
            mixed = attend(*parts, measured).reshape(3, 5, WIDTH)
            np.testing.assert_allclose(out[sample], mixed @ np.asarray(layer.output.kernel[...]), rtol=1e-11)


CASES = {
    "1-d": ((8,), (3,)),
    "2-d": ((8, 7), (2, 3)),
    "2-d Nyquist": ((4, 6), (2, 3)),
    "2-d coarse": ((3, 4), (2, 3)),
    "3-d": ((4, 5, 4), (2, 1, 2)),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", CASES)
def test_fourier_patch_attention_is_attention_in_physical_space(name, x64):
    """Queries, keys and values by numpy's FFT on every patch; scores by sums over nodes."""
    shape, modes = CASES[name]
    dim, s, samples, patches = len(shape), int(np.prod(shape)), 2, 3
    layer = double(nn.FourierPatchAttention(WIDTH, HEADS, modes, reference=[2 * m for m in modes], rngs=nnx.Rngs(0)))
    table = random(*multiplier_shape(modes), 2, WIDTH, 3 * WIDTH, seed=1)
    layer.multipliers[...] = jnp.asarray(table)
    tokens, weights = random(s, samples, patches, WIDTH), np.array([0.02, 0.03])
    out = np.asarray(jax.jit(lambda layer, u, w: layer(u, shape, w))(layer, tokens, weights))

    axes = tuple(range(dim))
    spectrum = np.fft.rfftn(tokens.reshape(*shape, samples, patches, WIDTH), axes=axes)
    band = Band(shape, modes)
    kept = table[np.ix_(*band.positions)]
    place = np.ix_(*(k % n for k, n in zip(band.frequencies, shape, strict=True)))
    product = np.zeros((*spectrum.shape[:-1], 3 * WIDTH), complex)
    product[place] = np.einsum("...bpi,...io->...bpo", spectrum[place], kept[..., 0, :, :] + 1j * kept[..., 1, :, :])
    projected = np.fft.irfftn(product, s=shape, axes=axes).reshape(s, samples, patches, 3 * WIDTH)
    for b in range(samples):
        parts = [as_heads(part) for part in np.split(np.moveaxis(projected[:, b], 1, 0), 3, axis=-1)]
        mixed = np.moveaxis(attend(*parts, np.full(s, weights[b])), 0, 1).reshape(s, patches, WIDTH)
        np.testing.assert_allclose(out[:, b], mixed @ np.asarray(layer.output.kernel[...]), rtol=1e-9, atol=1e-11)


def test_the_attention_of_coefficients_does_not_grow_with_the_nodes():
    """4 times the nodes per patch: less than twice the operations."""
    layer = nn.FourierPatchAttention(16, 4, 4, reference=(8, 8), rngs=nnx.Rngs(0))

    def operations(side):
        tokens = np.ones((side**2, 1, 16, 16), np.float32)
        lowered = jax.jit(lambda x: layer(x, (side, side), 1.0)).lower(tokens)
        return lowered.compile().cost_analysis()["flops"]

    assert operations(16) < 2 * operations(8)


def test_functions_on_finer_patches_give_the_same_function(x64):
    layer = double(nn.FourierPatchAttention(WIDTH, HEADS, 2, reference=(4,), rngs=nnx.Rngs(0)))
    layer.multipliers[...] = jnp.asarray(30.0 * np.asarray(layer.multipliers[...]))
    function = jax.jit(layer, static_argnums=1)

    def means(n):
        x = (np.arange(n) + 0.5) / n
        tokens = np.stack([np.cos((j + 1) * (x[:, None] + np.arange(WIDTH))) for j in range(3)], axis=1)[:, None]
        out = np.asarray(function(jnp.asarray(tokens), (n,), 1 / (3 * n)))
        return out.reshape(4, n // 4, 3, WIDTH).mean(1)

    sides = [8, 16, 32, 64]
    truth = means(512)
    errors = [np.abs(means(n) - truth).max() for n in sides]
    assert np.std(truth) > 0.05
    assert testing.observed_order(sides, errors) > 1.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.PatchAttention(8, 3, rngs=nnx.Rngs(0)),
            "heads must divide the width 8, got 3; valid numbers: [1, 2",
        ),
        (
            lambda: nn.FourierPatchAttention(8, 2, 5, reference=(8, 8), rngs=nnx.Rngs(0)),
            "modes = 5 along axis 0 needs 2·modes ≤ nodes, but the reference grid has 8 nodes there; take modes ≤ 4",
        ),
        (
            lambda: nn.SpectralConvolution(1, 1, (2, 3), reference=(4, 4), rngs=nnx.Rngs(0)),
            "modes = 3 along axis 1",
        ),
    ],
)
def test_sizes_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
