"""Attention between functions on patches in Fourier space, against physical space and against numpy's FFT."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import kernels
from jaxop.attention.patch import spectral_patch_attention
from jaxop.spectral import Band
from tests.attention.patch_cases import DENSITIES, DEPTH, HEADS, make, ones, oracle

BANDS = {
    "1-d Nyquist": ((6,), (3,)),
    "2-d without a mirror image": ((6, 5), (2, 2)),
    "2-d Nyquist": ((4, 6), (2, 3)),
    "2-d coarse": ((3, 4), (2, 3)),
    "3-d": ((5, 4, 3), (2, 2, 1)),
}
bands = pytest.mark.parametrize("name", BANDS)


def sampled(coefficients, shape, modes):
    """The functions of coefficients (2, m, p, h, d) at the nodes, by irfftn: (p, s, h, d)."""
    axes = [[*range(m), *range(-m, 0)] for m in modes[:-1]] + [list(range(modes[-1]))]
    kept = [
        k
        for k in itertools.product(*axes)
        if all(n >= 2 * m or 2 * abs(f) < n for f, n, m in zip(k, shape, modes, strict=True))
    ]
    n, rest = math.prod(shape), coefficients.shape[2:]
    spectrum = np.zeros((*shape[:-1], shape[-1] // 2 + 1, *rest), complex)
    for k, real, imag in zip(kept, *coefficients, strict=True):
        # irfftn counts every column but 0 twice
        spectrum[tuple(f % m for f, m in zip(k, shape, strict=True))] = math.sqrt(n if k[-1] == 0 else n / 2) * (
            real + 1j * imag
        )
    functions = np.fft.irfftn(spectrum, s=shape, axes=tuple(range(len(shape))))
    return np.moveaxis(functions.reshape(n, *rest), 0, 1)


@pytest.mark.sample(2)
@bands
@pytest.mark.parametrize("kind", ["inner product", "Gaussian"])
def test_fourier_space_is_physical_space(name, kind, x64):
    """In value, and in the derivative along random directions."""
    shape, modes = BANDS[name]
    band, weight, (p, q, c) = Band(shape, modes), 0.37, (2, 3, 2)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, band.size, *rest, HEADS, d)) for *rest, d in ((p, DEPTH), (q, DEPTH), (q, c))]
    arrays = [1.5 * a for a in arrays]
    directions = [rng.normal(size=a.shape) for a in arrays]
    cotangent = rng.normal(size=(p, math.prod(shape), HEADS, c))

    def physical(query, key, value):
        functions = (sampled(a, shape, modes) for a in (query, key, value))
        return oracle(*functions, np.full(math.prod(shape), weight), density=DENSITIES[kind])

    def mix(query, key, value):
        return spectral_patch_attention(query, key, value, band, weight, kernel=make(kind))

    @jax.jit
    def evaluate(arrays, directions):
        tangents = [[d if i == j else jnp.zeros_like(d) for j, d in enumerate(directions)] for i in range(3)]
        return mix(*arrays), [jax.jvp(mix, tuple(arrays), tuple(t))[1] for t in tangents]

    out, slopes = evaluate(arrays, directions)
    np.testing.assert_allclose(sampled(np.asarray(out), shape, modes), physical(*arrays), rtol=1e-11, atol=1e-12)
    for i, slope in enumerate(slopes):
        step = [1e-5 * d if j == i else 0 * d for j, d in enumerate(directions)]
        forth, back = (physical(*(a + sign * d for a, d in zip(arrays, step, strict=True))) for sign in (1, -1))
        found = np.sum(cotangent * sampled(np.asarray(slope), shape, modes))
        np.testing.assert_allclose(found, np.sum(cotangent * (forth - back)) / 2e-5, rtol=1e-6, atol=1e-8)


def test_fourier_space_takes_masks_and_reverse_mode(x64):
    shape, modes = BANDS["2-d without a mirror image"]
    band = Band(shape, modes)
    arrays = tuple(np.random.default_rng(1).normal(size=(3, 2, band.size, 3, HEADS, DEPTH)))
    mask = np.array([[True, False, True], [False, False, False], [True, True, False]])

    def mix(*arrays):
        return spectral_patch_attention(*arrays, band, 0.2, mask=jnp.asarray(mask))

    functions = [sampled(a, shape, modes) for a in arrays]
    truth = oracle(*functions, np.full(math.prod(shape), 0.2), mask=mask)
    directions = tuple(np.sin(a) for a in arrays)

    @jax.jit
    def evaluate(arrays, directions):
        out, vjp = jax.vjp(mix, *arrays)
        return out, vjp(jnp.cos(out)), jax.jvp(mix, arrays, directions)[1]

    out, gradients, slope = evaluate(arrays, directions)
    np.testing.assert_allclose(sampled(np.asarray(out), shape, modes), truth, atol=1e-12)
    np.testing.assert_array_equal(np.asarray(out)[:, :, 1], 0.0)
    pulled = sum(np.vdot(g, d) for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(pulled, np.vdot(np.cos(out), slope), rtol=1e-11)


def test_sums_over_channels_have_no_fourier_space():
    functions = [ones(2, 2, 4, HEADS, DEPTH)] * 3
    with pytest.raises(NotImplementedError, match="use patch_attention"):
        spectral_patch_attention(*functions, Band((6,), (2,)), 0.1, kernel=kernels.FourierIntegral())
