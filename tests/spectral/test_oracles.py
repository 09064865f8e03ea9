"""Fourier integral operators against numpy's FFT and analytic convolutions, in float64 unless said otherwise."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, spectral

pytestmark = pytest.mark.sample(3)

CASES = {
    "1-d": ((12,), (4,)),
    "1-d odd": ((9,), (3,)),
    "1-d Nyquist": ((8,), (4,)),
    "1-d coarse": ((6,), (4,)),
    "one node": ((1,), (2,)),
    "2-d": ((8, 10), (3, 2)),
    "2-d odd": ((7, 9), (3, 4)),
    "2-d Nyquist": ((6, 8), (3, 4)),
    "2-d coarse": ((4, 6), (3, 4)),
    "2-d coarse odd": ((5, 3), (3, 2)),
    "2-d coarse along one axis": ((4, 9), (3, 3)),
    "3-d": ((7, 6, 5), (2, 3, 2)),
    "3-d Nyquist": ((4, 2, 6), (2, 1, 3)),
    "3-d coarse": ((4, 3, 6), (3, 2, 2)),
}
# grids finer than 2 m along an axis other than the last: row −m is kept, row m is not
WITHOUT_MIRROR = {"2-d", "2-d odd", "3-d"}
cases = pytest.mark.parametrize("name", CASES)


@functools.partial(jax.jit, static_argnums=2)
def both_ways(values, coefficients, band):
    return spectral.analysis(values, band), spectral.synthesis(coefficients, band)


isometric = jax.jit(spectral.isometric, static_argnums=1)
fourier_integral = jax.jit(spectral.fourier_integral, static_argnums=2, static_argnames="implementation")


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def full_band(modes):
    """Every frequency k of the band, in the order of the multipliers."""
    axes = [[*range(m), *range(-m, 0)] for m in modes[:-1]] + [list(range(modes[-1]))]
    return list(itertools.product(*axes))


def is_kept(k, shape, modes):
    return all(n >= 2 * m or 2 * abs(f) < n for f, n, m in zip(k, shape, modes, strict=True))


def kept_frequencies(shape, modes):
    return [k for k in full_band(modes) if is_kept(k, shape, modes)]


def matrices(multipliers):
    """R(k) for every frequency of the band, in order."""
    flat = np.asarray(multipliers).reshape(-1, *np.shape(multipliers)[-3:])
    return flat[:, 0] + 1j * flat[:, 1]


def convolved(values, multipliers, shape, modes):
    """rfftn, one matrix per kept mode, irfftn: what the operator means."""
    axes = tuple(range(len(shape)))
    spectrum = np.fft.rfftn(values.reshape(*shape, *values.shape[1:]), axes=axes)
    out = np.zeros((*spectrum.shape[:-1], multipliers.shape[-1]), complex)
    for k, matrix in zip(full_band(modes), matrices(multipliers), strict=True):
        if is_kept(k, shape, modes):
            place = tuple(f % n for f, n in zip(k, shape, strict=True))
            out[place] = spectrum[place] @ matrix
    return np.fft.irfftn(out, s=shape, axes=axes).reshape(*values.shape[:-1], -1)


def synthesised(coefficients, shape, modes):
    """Re Σ_k s_k y(k) e^{2πi k·x/n}, term by term."""
    nodes = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), -1).reshape(-1, len(shape))
    out = 0.0
    for index, k in enumerate(kept_frequencies(shape, modes)):
        scale = math.sqrt((1 if k[-1] == 0 else 2) / len(nodes))
        wave = np.exp(2j * np.pi * nodes @ np.asarray(k))
        term = coefficients[0, index] + 1j * coefficients[1, index]
        out = out + scale * (wave.reshape(-1, *(1,) * term.ndim) * term[None]).real
    return out


@pytest.mark.sample(2)
@cases
def test_values_and_gradients_are_those_of_the_oracle(name, x64):
    shape, modes = CASES[name]
    n, batch, c_in, c_out = math.prod(shape), (2,), 2, 3
    values = random((n, *batch, c_in), 1)
    multipliers = random((*spectral.multiplier_shape(modes), 2, c_in, c_out), 2)
    cotangent = random((n, *batch, c_out), 3)

    @jax.jit
    def evaluate(values, multipliers):
        def pull(implementation):
            out, vjp = jax.vjp(
                lambda u, r: spectral.fourier_integral(u, r, shape, implementation=implementation), values, multipliers
            )
            return out, vjp(jnp.asarray(cotangent))

        return [pull(implementation) for implementation in spectral.IMPLEMENTATIONS]

    results = evaluate(values, multipliers)
    # the operator is bilinear: its derivative along a direction is its value there
    directions = random(values.shape, 4), random(multipliers.shape, 5)
    slopes = [
        np.vdot(cotangent, convolved(directions[0], multipliers, shape, modes)),
        np.vdot(cotangent, convolved(values, directions[1], shape, modes)),
    ]
    for out, gradients in results:
        np.testing.assert_allclose(out, convolved(values, multipliers, shape, modes), rtol=1e-11, atol=1e-12)
        for gradient, direction, slope in zip(gradients, directions, slopes, strict=True):
            np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=1e-10)
    (_, fft), (_, matrix) = results
    for a, b in zip(fft, matrix, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


@cases
def test_analysis_and_synthesis_are_transposes_and_filter_the_band(name, x64):
    """Synthesis after analysis keeps the band, and halves the modes whose mirror image it lacks."""
    shape, modes = CASES[name]
    band, n = spectral.Band(shape, modes), math.prod(shape)
    basis = np.eye(2 * band.size).reshape(2, band.size, -1)
    forward, backward = map(np.asarray, both_ways(np.eye(n), basis, band))
    forward = forward.reshape(2 * band.size, n)
    np.testing.assert_allclose(backward, synthesised(basis, shape, modes), atol=1e-13)
    np.testing.assert_allclose(forward, backward.T, atol=1e-14)
    kept = [tuple(f % m for f, m in zip(k, shape, strict=True)) for k in kept_frequencies(shape, modes)]
    mirrored = [tuple(-f % m for f, m in zip(k, shape, strict=True)) for k in kept]
    # a mode off column 0 stands for its mirror image as well
    stands_for_both = [k[-1] != 0 or image in kept for k, image in zip(kept, mirrored, strict=True)]
    pairs = zip(kept, mirrored, stands_for_both, strict=True)
    lone = {f for k, image, both in pairs if not both for f in (k, image)}
    whole = set(kept) | set(mirrored)
    expected = sorted([0.0] * (n - len(whole)) + [0.5] * len(lone) + [1.0] * (len(whole) - len(lone)))
    np.testing.assert_allclose(np.linalg.eigvalsh(backward @ forward), expected, atol=1e-12)
    assert bool(lone) == (name in WITHOUT_MIRROR)


@cases
def test_isometric_coefficients_have_the_inner_products_of_their_functions(name, x64):
    shape, modes = CASES[name]
    band = spectral.Band(shape, modes)
    y, z = random((2, 2, band.size, 3, 2))
    inner = np.sum(synthesised(y, shape, modes) * synthesised(z, shape, modes), axis=0)
    flat_y, flat_z = (np.asarray(isometric(a, band)) for a in (y, z))
    np.testing.assert_allclose(np.sum(flat_y * flat_z, axis=(0, 1)), inner, rtol=1e-11, atol=1e-12)
    norms = np.sum(synthesised(y, shape, modes) ** 2, axis=0)
    np.testing.assert_allclose(np.sum(flat_y**2, axis=(0, 1)), norms, rtol=1e-11)


@pytest.mark.parametrize("name", [name for name in CASES if name not in WITHOUT_MIRROR])
def test_isometric_coefficients_stand_for_the_same_function_where_every_mode_has_its_mirror_image(name, x64):
    shape, modes = CASES[name]
    band = spectral.Band(shape, modes)
    y = random((2, band.size, 3, 2))
    flat = np.asarray(isometric(y, band))
    np.testing.assert_allclose(synthesised(flat, shape, modes), synthesised(y, shape, modes), atol=1e-12)
    np.testing.assert_allclose(isometric(flat, band), flat, atol=1e-14)


@pytest.mark.parametrize("name", ["1-d Nyquist", "2-d", "2-d coarse", "3-d"])
@pytest.mark.parametrize("implementation", spectral.IMPLEMENTATIONS)
def test_the_operator_commutes_with_shifts_by_whole_nodes(name, implementation, x64):
    shape, modes = CASES[name]
    axes = tuple(range(len(shape)))
    values = random((*shape, 1))
    multipliers = random((*spectral.multiplier_shape(modes), 2, 1, 1), 1)
    steps = (1, 3, 2)[: len(shape)]
    stacked = np.stack([values, np.roll(values, steps, axes)], axis=-2).reshape(-1, 2, 1)
    out = fourier_integral(stacked, multipliers, shape, implementation=implementation)
    here, there = np.moveaxis(np.asarray(out).reshape(*shape, 2), -1, 0)
    np.testing.assert_allclose(there, np.roll(here, steps, axes), atol=1e-12)


class TestResolution:
    """One set of multipliers, one function, many grids: samples of one convolution."""

    LOWER, UPPER, MODES = (1.0, -1.0), (3.0, 0.5), (3, 3)

    def multipliers(self):
        return random((*spectral.multiplier_shape(self.MODES), 2, 1, 1), 7)

    def function(self, degree):
        """Fourier coefficients of a real trigonometric polynomial."""
        side = 2 * degree + 1
        half = random((side, side), 8) + 1j * random((side, side), 9)
        hermitian = half + half[::-1, ::-1].conj()
        frequencies = itertools.product(range(-degree, degree + 1), repeat=2)
        return dict(zip(frequencies, hermitian.ravel(), strict=True))

    def evaluate(self, terms, points):
        y = (np.asarray(points) - self.LOWER) / np.subtract(self.UPPER, self.LOWER)
        return sum((c * np.exp(2j * np.pi * y @ np.asarray(k))).real for k, c in terms.items())[:, None]

    def convolution(self, function):
        """The coefficients of the output; its real part is taken on evaluation."""
        table = zip(full_band(self.MODES), matrices(self.multipliers())[:, 0, 0], strict=True)
        return {k: (1 if k[-1] == 0 else 2) * r * function[k] for k, r in table if k in function}

    @pytest.mark.parametrize("rule", ["midpoint", "periodic"])
    @pytest.mark.parametrize(
        ("degree", "shapes"),
        [(2, [(5, 6), (8, 8), (16, 7), (32, 32)]), (5, [(11, 12), (16, 32)])],
        ids=["inside the band", "beyond the band"],
    )
    @pytest.mark.parametrize("implementation", spectral.IMPLEMENTATIONS)
    def test_output_is_the_analytic_convolution_on_every_grid(self, rule, degree, shapes, implementation, x64):
        function = self.function(degree)
        result = self.convolution(function)
        for shape in shapes:
            domain = domains.box(shape, lower=self.LOWER, upper=self.UPPER, rule=rule)
            u = self.evaluate(function, domain.points)
            v = fourier_integral(u, self.multipliers(), shape, implementation=implementation)
            np.testing.assert_allclose(v, self.evaluate(result, domain.points), rtol=1e-10, atol=1e-10)

    def test_smooth_functions_converge_faster_than_any_order(self, x64):
        """exp(sin) is not band-limited: aliasing decays like its spectrum."""
        multipliers = random((3, 2, 1, 1), 1)

        def output(n):
            x = np.asarray(domains.interval(n, rule="periodic").points)
            v = fourier_integral(np.exp(np.sin(2 * np.pi * x)), multipliers, (n,))
            return np.asarray(v)[:: n // 8, 0]

        truth = output(64)
        errors = [np.abs(output(n) - truth).max() for n in (8, 16, 32)]
        assert errors[1] < 1e-4 * errors[0]
        assert errors[2] < 1e-13


@pytest.mark.parametrize("implementation", spectral.IMPLEMENTATIONS)
def test_float32_on_a_long_grid_loses_no_digits(implementation):
    """Phases are computed in double precision: mode 20 at node 511."""
    shape, modes = (512, 8), (20, 4)
    values = random((512 * 8, 2), 1).astype(np.float32)
    multipliers = random((*spectral.multiplier_shape(modes), 2, 2, 2), 2).astype(np.float32)
    out = fourier_integral(values, multipliers, shape, implementation=implementation)
    truth = convolved(values.astype(np.float64), multipliers.astype(np.float64), shape, modes)
    assert out.dtype == jnp.float32
    assert np.abs(out - truth).max() < 2e-6 * np.abs(truth).max()


@pytest.mark.sample(2)
@pytest.mark.parametrize("implementation", spectral.IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_computed_in_float32_and_cast_back(implementation, dtype):
    shape, _ = CASES["2-d"]
    values = random((80, 3)).astype(dtype)
    multipliers = random((6, 2, 2, 3, 2), 1).astype(np.float32)

    @jax.jit
    def pull(values, multipliers):
        def loss(u, r):
            out = spectral.fourier_integral(u, r, shape, implementation=implementation)
            return jnp.sum(out.astype(jnp.float32) ** 2), out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(values, multipliers)

    (d_values, d_multipliers), out = pull(values, multipliers)
    wide = np.asarray(pull(values.astype(np.float32), multipliers)[1])
    assert (out.dtype, d_values.dtype, d_multipliers.dtype) == (dtype, dtype, jnp.float32)
    np.testing.assert_array_equal(out, wide.astype(dtype))
    narrow = np.asarray(pull(values, multipliers.astype(dtype))[1], np.float32)
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=0.02 * np.abs(wide).max())


@pytest.mark.sample(1)
@pytest.mark.parametrize("implementation", spectral.IMPLEMENTATIONS)
def test_batches_are_loops_and_jit_is_eager(implementation):
    shape, modes = CASES["2-d Nyquist"]
    values = random((2, 3, 48, 2)).astype(np.float32)
    multipliers = random((3, *spectral.multiplier_shape(modes), 2, 2, 1), 1).astype(np.float32)

    def call(values, multipliers):
        return spectral.fourier_integral(values, multipliers, shape, implementation=implementation)

    @jax.jit
    def all_at_once(values, multipliers):
        middle = call(jnp.moveaxis(values, 2, 0), multipliers[0])
        mapped = jax.vmap(jax.vmap(call, (0, None)), (0, None))(values, multipliers[0])
        return jnp.moveaxis(middle, 0, 2), mapped, jax.vmap(call)(values[0], multipliers)

    middle, mapped, own = all_at_once(values, multipliers)
    single = jax.jit(call)
    loop = np.stack([[single(values[i, j], multipliers[0]) for j in range(3)] for i in range(2)])
    np.testing.assert_allclose(middle, loop, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mapped, loop, rtol=1e-5, atol=1e-5)
    loop = np.stack([single(values[0, j], multipliers[j]) for j in range(3)])
    np.testing.assert_allclose(own, loop, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(call(*map(jnp.asarray, (values[0, 0], multipliers[0]))), loop[0], rtol=1e-5, atol=1e-5)


def test_derivatives_of_second_order_agree(x64):
    """Both implementations under a nonlinear loss, forward over reverse."""
    shape, _ = CASES["2-d"]
    values, direction = random((2, 80, 1))
    multipliers = jnp.asarray(random((6, 2, 2, 1, 1), 1))

    def curvature(implementation, values, direction):
        def slope(u):
            return jax.grad(
                lambda u: jnp.sum(
                    jnp.sin(spectral.fourier_integral(u, multipliers, shape, implementation=implementation))
                )
            )(u)

        return jax.jvp(slope, (values,), (direction,))[1]

    fft, matrix = jax.jit(lambda *arrays: [curvature(i, *arrays) for i in spectral.IMPLEMENTATIONS])(values, direction)
    assert np.abs(fft).max() > 1e-3
    np.testing.assert_allclose(fft, matrix, rtol=1e-10, atol=1e-12)


@pytest.mark.thorough
def test_matrices_that_a_program_computes_are_those_that_it_knows():
    for shape, modes in (((1000,), (24,)), ((97, 64), (12, 32)), ((5, 8, 6), (2, 4, 3))):
        band = spectral.Band(shape, modes)
        for axis in range(len(shape)):
            np.testing.assert_allclose(band.traced_matrix(axis), band.matrix(axis), rtol=0, atol=3e-7)
