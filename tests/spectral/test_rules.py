"""Which modes are kept, which grids are taken, and what is said about the others."""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxop import domains, spectral
from jaxop.spectral import Band, check_grid, check_modes, fourier_integral


@pytest.fixture
def unchecked():
    """Calls as a user's program makes them: without the suite's run-time type checks, which would answer first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("n", range(1, 14))
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_a_grid_carries_the_modes_below_its_nyquist_frequency_and_the_whole_band_if_it_fits(n, m):
    rows, columns = Band((n, n), (m, m)).frequencies
    wanted = [*range(m), *range(-m, 0)]
    if n < 2 * m:
        wanted = [k for k in wanted if -n < 2 * k < n]
    assert list(rows) == wanted
    assert list(columns) == [k for k in wanted if k >= 0]
    # no two of them are one on the grid, and no column of the real transform is its own mirror image but 0
    assert len({k % n for k in wanted}) == len(wanted)
    assert all(2 * k != n for k in columns)
    full = np.array([*range(m), *range(-m, 0)])
    assert list(full[Band((n, n), (m, m)).positions[0]]) == wanted
    assert Band((n, n), (m, m)).kept == (len(rows), len(columns))
    assert Band((n, n), (m, m)).size == len(rows) * len(columns)


@pytest.mark.parametrize(
    ("shape", "modes"), [((6, 8), (3, 2)), ((5, 8), (3, 2)), ((9, 4), (2, 2)), ((4, 7, 6), (2, 2, 1))]
)
def test_mirror_finds_minus_k(shape, modes):
    band = Band(shape, modes)
    places, kept = band.mirror()
    column = [k[:-1] for k in np.ndindex(*band.kept) if k[-1] == 0]
    frequencies = [tuple(int(f[i]) for f, i in zip(band.frequencies, k, strict=False)) for k in column]
    residues = [tuple(f % n for f, n in zip(k, shape, strict=False)) for k in frequencies]
    for k, place, found in zip(frequencies, places, kept, strict=True):
        image = tuple(-f % n for f, n in zip(k, shape, strict=False))
        assert found == (image in residues)
        if found:
            assert residues[place] == image
            assert frequencies[places[place]] == k


def test_restriction_takes_the_multipliers_of_the_kept_modes():
    band = Band((4, 3), (3, 2))  # rows 0, 1, −1 of 0, 1, 2, −3, −2, −1
    table = jnp.arange(6.0 * 2 * 2).reshape(6, 2, 2, 1, 1)
    kept = spectral.restrict(table, band)
    np.testing.assert_array_equal(kept, table[np.array([0, 1, 5])].reshape(6, 2, 1, 1))


def test_bands_are_equal_and_hash_by_value_so_that_programs_are_compiled_once():
    assert Band((4, 4), (2, 2)) == Band((4, 4), (2, 2))
    assert hash(Band((4, 4), (2, 2))) == hash(Band((4, 4), (2, 2)))


class TestModes:
    @pytest.mark.parametrize(
        ("modes", "reference", "expected"),
        [
            (4, (8,), (4,)),
            (1, (2, 3), (1, 1)),
            ((2, 3), (4, 7), (2, 3)),
            ([2, 2, 2], (4, 5, 6), (2, 2, 2)),
            (np.int64(3), (8, 8), (3, 3)),
            (np.array([3, 2]), (8, 8), (3, 2)),
        ],
    )
    def test_valid(self, modes, reference, expected, unchecked):
        assert check_modes(modes, reference) == expected

    @pytest.mark.parametrize(
        ("modes", "reference", "message"),
        [
            (9, (16, 16), "modes = 9 along axis 0 needs 2·modes ≤ nodes, but the reference grid has 16 nodes there; "),
            (9, (16, 16), "take modes ≤ 8, or at least 18 nodes."),
            ((2, 4), (8, 7), "modes = 4 along axis 1 needs 2·modes ≤ nodes, but the reference grid has 7 nodes"),
            ((2, 2), (8, 8, 8), "modes must be one positive number or 3 of them, one per axis, got (2, 2)."),
            (0, (8,), "modes must be one positive number or 1 of them, one per axis, got 0."),
            ((2, -1), (8, 8), "modes must be one positive number or 2 of them, one per axis, got (2, -1)."),
            (1, (1,), "a spectral layer needs at least 2 nodes along axis 0 of its reference grid, got 1."),
        ],
    )
    def test_invalid(self, modes, reference, message, unchecked):
        with pytest.raises(ValueError, match=re.escape(message)):
            check_modes(modes, reference)

    @pytest.mark.parametrize("modes", [2.5, (2.5, 2), "44"])
    def test_numbers_of_modes_are_whole(self, modes, unchecked):
        with pytest.raises((TypeError, ValueError), match="modes"):
            check_modes(modes, (8, 8))


class TestGrids:
    @pytest.mark.parametrize("rule", ["midpoint", "periodic"])
    def test_equal_weights_are_taken(self, rule):
        grid = domains.box((4, 6), rule=rule)
        assert check_grid(grid) is grid
        assert check_grid(grid, 2) is grid

    def test_stacked_grids_are_taken(self):
        grid = domains.stack([domains.box((4, 6), rule="midpoint")] * 2)
        assert check_grid(grid, 2) is grid

    @pytest.mark.parametrize("rule", ["trapezoid", "gauss-legendre", "interior"])
    def test_other_rules_are_refused(self, rule):
        message = (
            f"a spectral layer needs equal weights on the whole period, got rule={rule!r} along axis 1; build the grid "
            "with rule='midpoint' or rule='periodic'"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            check_grid(domains.box((4, 6), rule=("midpoint", rule)))

    def test_other_domains_are_refused(self):
        cloud = domains.monte_carlo(jnp.ones((3, 2)))
        with pytest.raises(TypeError, match=r"needs a grid .* got PointCloud; the TransformerNeuralOperator takes any"):
            check_grid(cloud)

    def test_another_number_of_axes_is_refused(self):
        with pytest.raises(ValueError, match="domain must have 2 axes, as the layer was built for, got 1"):
            check_grid(domains.interval(4, rule="midpoint"), 2)


@pytest.mark.parametrize(
    ("values", "multipliers", "grid", "message"),
    [
        (
            (8, 1),
            (2, 2, 1, 1),
            (9,),
            "values must have shape (n, ..., c_in) with n = 9 nodes of a grid (9,), got (8, 1).",
        ),
        ((8,), (2, 2, 1, 1), (8,), "values must have shape (n, ..., c_in) with n = 8 nodes"),
        ((16, 1), (2, 2, 2, 2, 2, 1, 1), (2, 2, 2, 2), "grid_shape must have 1 to 3 axes, got (2, 2, 2, 2)."),
        ((1, 1), (2, 1, 1), (), "grid_shape must have 1 to 3 axes, got ()."),
        ((16, 1), (2, 2, 1, 1), (4, 4), "multipliers must have shape (*modes, 2, c_in, c_out) with 2 axes of modes"),
        ((16, 1), (4, 2, 3, 1, 1), (4, 4), "got (4, 2, 3, 1, 1); stack the real and the imaginary part on axis -3."),
        ((16, 2), (4, 2, 2, 3, 1), (4, 4), "multipliers take c_in = 3 channels, but values have 2."),
        ((16, 1), (3, 2, 2, 1, 1), (4, 4), "an even number of modes, k = -m ... m - 1, on every axis but the last"),
    ],
)
def test_shapes_that_do_not_fit_are_named(values, multipliers, grid, message, unchecked):
    with pytest.raises(ValueError, match=re.escape(message)):
        fourier_integral(jnp.ones(values), jnp.ones(multipliers), grid)


def test_unknown_implementations_are_named():
    with pytest.raises(ValueError, match="implementation='matrx' is unknown: did you mean 'matrix'"):
        fourier_integral(jnp.ones((8, 1)), jnp.ones((2, 2, 1, 1)), (8,), implementation="matrx")


def test_complex_values_are_refused(unchecked):
    with pytest.raises(TypeError, match="values must be real, got dtype complex64"):
        fourier_integral(jnp.ones((8, 1), jnp.complex64), jnp.ones((2, 2, 1, 1)), (8,))


@pytest.mark.parametrize("transform", [spectral.analysis, spectral.synthesis, spectral.isometric])
@pytest.mark.parametrize("shape", [(8, 3), (2, 8, 1), (2, 3, 1), (3, 4, 1)])
def test_transforms_refuse_arrays_of_another_band(transform, shape, unchecked):
    """Eight coefficients are not two times four, nor eight nodes twelve."""
    with pytest.raises(ValueError, match=r"(values|coefficients) must have shape .* got \("):
        transform(jnp.ones(shape), Band((12,), (4,)))


def test_the_default_takes_the_transform_that_does_less_work():
    def program(n, modes, channels):
        values, multipliers = jnp.ones((n, channels)), jnp.ones((modes, 2, channels, 1))
        return str(jax.make_jaxpr(lambda u, r: fourier_integral(u, r, (n,)))(values, multipliers))

    assert "fft" not in program(256, 16, 32)
    assert "fft" in program(256, 100, 32)
    assert "fft" in program(256, 16, 1)


def test_initial_multipliers_are_uniform_over_the_published_range():
    r = spectral.initial_multipliers(jax.random.key(0), (6, 5), 4, 8, groups=3)
    assert r.shape == (12, 5, 2, 4, 24)
    assert r.dtype == jnp.float32
    assert float(r.min()) >= 0
    assert float(r.max()) < 1 / 32
    np.testing.assert_allclose(np.mean(r, axis=(0, 1, 3, 4)), 0.5 / 32, rtol=0.03)
    half = spectral.initial_multipliers(jax.random.key(0), (2,), 1, 1, dtype=jnp.bfloat16)
    assert (half.shape, half.dtype) == ((2, 2, 1, 1), jnp.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32"), ("float16", "float32")],
)
def test_spectral_dtype(dtype, expected, x64):
    assert spectral.spectral_dtype(jnp.ones(1, dtype)) == jnp.dtype(expected)
