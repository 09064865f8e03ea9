import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, dynamics

GRIDS = {
    "even": domains.interval(8, upper=3.0, rule="periodic"),
    "odd": domains.interval(7, rule="periodic"),
    "square": domains.box((6, 6), upper=(2.0, 2.0), rule="periodic"),
    "long box": domains.box((6, 9), upper=(1.0, 2.4), rule="periodic"),
    "cube": domains.box((3, 4, 5), rule="periodic"),
}


def noise(domain: domains.Domain, seed: int = 0, times: int = 2, channels: int = 2) -> jnp.ndarray:
    draw = np.random.default_rng(seed).normal(size=(times, domain.size, channels))
    return jnp.asarray(draw, jnp.result_type(float))


def oracle(values: np.ndarray, domain: domains.Grid, count: int) -> np.ndarray:
    """Energies of one function by the sum over all modes of the definition, one by one."""
    sides = [axis.ends[1] - axis.ends[0] for axis in domain.axes]
    nodes = np.meshgrid(*[side * np.arange(n) / n for side, n in zip(sides, domain.shape, strict=True)], indexing="ij")
    x = np.stack(nodes, axis=-1).reshape(-1, domain.dim)
    energies = np.zeros(count)
    for numbers in itertools.product(*[range(-((n - 1) // 2), n // 2 + 1) for n in domain.shape]):
        kappa = 2 * np.pi * np.array(numbers) / sides
        coefficient = np.mean(values * np.exp(-1j * x @ kappa))
        shell = np.floor(np.linalg.norm(kappa) * max(sides) / (2 * np.pi) + 0.5)
        energies[int(shell)] += np.abs(coefficient) ** 2
    return energies


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", GRIDS)
def test_a_spectrum_is_the_sum_over_the_modes_of_every_shell(name, x64):
    grid = GRIDS[name]
    states = noise(grid)
    found = dynamics.energy_spectrum(states, grid)
    count = len(dynamics.wavenumbers(grid))
    assert found.shape == (2, count, 2)
    for t, c in itertools.product(range(2), range(2)):
        np.testing.assert_allclose(
            found[t, :, c], oracle(np.asarray(states[t, :, c]), grid, count), rtol=1e-9, atol=1e-12
        )


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", GRIDS)
def test_energies_add_up_to_the_mean_square(name):
    states = noise(GRIDS[name])
    found = dynamics.energy_spectrum(states, GRIDS[name])
    np.testing.assert_allclose(found.sum(axis=1), np.mean(states**2, axis=1), rtol=1e-5)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("bands", [None, ((0, 1), (2, 2), (3, None))])
def test_errors_of_bands_add_up_to_the_mean_squared_error(name, bands):
    grid = GRIDS[name]
    last = len(dynamics.wavenumbers(grid)) - 1
    chosen = bands and tuple((a, last if b is None else b) for a, b in bands if a <= last)
    prediction, truth = noise(grid), noise(grid, seed=1)
    errors = dynamics.band_errors(prediction, truth, grid, bands=chosen)
    np.testing.assert_allclose(errors.mse.sum(axis=1), np.mean((prediction - truth) ** 2, axis=1), rtol=1e-5)


def test_waves_have_their_physical_wavenumber():
    """cos κ·x with κ = 2π (3, 4) / L has all its energy, 1/2, in the shell of |κ| = 2π 5 / L, on every grid."""
    for n in (12, 17):
        grid = domains.box((n, n), upper=(4.0, 4.0), rule="periodic")
        wave = jnp.cos(2 * jnp.pi / 4 * (grid.points @ jnp.array([3.0, 4.0])))[None, :, None]
        spectrum, kappa = dynamics.energy_spectrum(wave, grid)[0, :, 0], dynamics.wavenumbers(grid)
        shell = int(np.argmax(spectrum))
        assert kappa[shell] == pytest.approx(2 * np.pi / 4 * 5)
        np.testing.assert_allclose(spectrum[shell], 0.5, rtol=1e-5)
        np.testing.assert_allclose(spectrum.sum(), 0.5, rtol=1e-5)


def test_a_shifted_wave_has_the_right_statistics_and_wrong_values():
    grid = domains.interval(16, rule="periodic")
    x = 2 * jnp.pi * grid.points[None]
    truth = 2 * jnp.cos(x) + jnp.cos(6 * x)
    errors = dynamics.band_errors(2 * jnp.cos(x) + 1.5 * jnp.cos(6 * x + jnp.pi), truth, grid, bands=((0, 2), (3, 8)))
    np.testing.assert_allclose(errors.statistics[0, :, 0], [0, 0.5], atol=1e-5)
    np.testing.assert_allclose(errors.pointwise[0, :, 0], [0, 2.5], atol=1e-5)
    assert errors.bands == ((0, 2), (3, 8))


def test_a_band_without_energy_gives_the_numerator_and_a_finite_gradient():
    grid = domains.interval(8, rule="periodic")
    truth = jnp.zeros((1, 8, 1))

    def total(prediction):
        errors = dynamics.band_errors(prediction, truth, grid, bands=((0, 0), (1, 4)))
        return jnp.sum(errors.pointwise), errors

    slope, errors = jax.grad(total, has_aux=True)(3 * jnp.ones((1, 8, 1)))
    np.testing.assert_allclose(errors.pointwise[0, :, 0], [3, 0], atol=1e-6)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("n", [2, 3, 5, 8, 160])
def test_bands_cover_every_shell_once(n):
    for shape in ((n,), (n, n)):
        grid = domains.box(shape, rule="periodic")
        shells = [k for first, last in dynamics.log_bands(grid) for k in range(first, last + 1)]
        assert shells == list(range(len(dynamics.wavenumbers(grid))))


def test_the_default_bands_are_equal_in_the_logarithm():
    bands = dynamics.log_bands(domains.interval(512, rule="periodic"))
    assert bands == ((0, 6), (7, 40), (41, 256))
    edges = np.logspace(0, np.log10(np.sqrt(2) * 32), 4)[1:3]  # of The Well on 64², in waves on the square: 3.6, 12.7
    found = dynamics.log_bands(domains.box((64, 64), rule="periodic"))
    assert found == ((0, 3), (4, 12), (13, 45)) == ((0, int(edges[0])), (4, int(edges[1])), (13, 45))


@pytest.mark.sample(1)
@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.thorough
def test_one_dimensional_bands_and_spectra_are_those_of_exponax(n, x64):
    exponax = pytest.importorskip("exponax")
    grid = domains.interval(n, upper=2.0, rule="periodic")
    prediction, truth = noise(grid), noise(grid, seed=1)
    errors = dynamics.band_errors(prediction, truth, grid, bands=((0, 2), (3, 5)))
    theirs = tuple(jnp.moveaxis(u, -1, 1) for u in (prediction, truth))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for k, (low, high) in enumerate(errors.bands):
            expected = [exponax.metrics.fourier_nRMSE(*(u[t] for u in theirs), low=low, high=high) for t in range(2)]
            np.testing.assert_allclose(errors.pointwise[:, k].sum(axis=-1), expected, rtol=1e-6)
        expected = exponax.get_spectrum(theirs[0][0])
    np.testing.assert_allclose(dynamics.energy_spectrum(prediction, grid)[0].T / 2, expected, rtol=1e-6)


@pytest.mark.thorough
def test_two_dimensional_spectra_are_those_of_exponax_within_its_shells(x64):
    exponax = pytest.importorskip("exponax")
    grid = domains.box((10, 10), rule="periodic")
    states = noise(grid)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = exponax.get_spectrum(jnp.moveaxis(states[0].reshape(10, 10, 2), -1, 0))
    np.testing.assert_allclose(dynamics.energy_spectrum(states, grid)[0, :6].T / 2, expected, rtol=1e-6)


def test_stacks_of_grids_and_batches_are_one_by_one():
    grids = [domains.interval(8, rule="periodic"), domains.interval(8, rule="periodic")]
    states = jnp.stack([noise(grids[0]), noise(grids[0], seed=2)])
    together = jax.jit(dynamics.energy_spectrum)(states, domains.stack(grids))
    for b in range(2):
        np.testing.assert_allclose(together[b], dynamics.energy_spectrum(states[b], grids[b]), rtol=1e-5)


def test_a_state_that_is_not_finite_has_infinite_energy():
    grid = domains.interval(8, rule="periodic")
    states = noise(grid).at[1, 3, 0].set(jnp.nan)
    spectrum = dynamics.energy_spectrum(states, grid)
    assert np.isfinite(spectrum[0]).all()
    np.testing.assert_array_equal(spectrum[1], np.inf)
    np.testing.assert_array_equal(dynamics.band_errors(states, noise(grid), grid).pointwise[1], np.inf)


def test_huge_and_tiny_states_keep_their_bands():
    grid = domains.interval(8, rule="periodic")
    states, truth = noise(grid), noise(grid, seed=1)
    plain = dynamics.band_errors(states, truth, grid)
    for scale in (1e-30, 1e30):
        scaled = dynamics.band_errors(scale * states, scale * truth, grid)
        np.testing.assert_allclose(scaled.pointwise, plain.pointwise, rtol=1e-5)
        np.testing.assert_allclose(scaled.statistics, plain.statistics, rtol=1e-4)
    one_sided = dynamics.band_errors(1e30 * states, truth, grid)
    assert not np.isnan(one_sided.mse).any()
    np.testing.assert_allclose(one_sided.pointwise, one_sided.statistics, rtol=1e-5)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("domain", "received"),
    [
        (domains.interval(8), "trapezoid"),
        (domains.box((4, 4), rule="midpoint"), "midpoint, midpoint"),
        (domains.sphere(4), "Sphere"),
        (domains.monte_carlo(np.zeros((3, 2), np.float32)), "PointCloud"),
        (domains.from_samples([0.0, 0.1, 0.5]), "samples"),
    ],
)
def test_other_domains_are_refused(domain, received):
    states = jnp.ones((1, domain.size, 1))
    for call in (
        lambda: dynamics.energy_spectrum(states, domain),
        lambda: dynamics.band_errors(states, states, domain),
        lambda: dynamics.wavenumbers(domain),
        lambda: dynamics.vorticity(states, domain),
    ):
        with pytest.raises(ValueError, match=rf"periodic grid with equal weights.*got .*{received}.*nrmse"):
            call()


@pytest.mark.parametrize("bands", [(), ((0, 9),), ((3, 2),), ((-1, 2),)])
def test_bands_beyond_the_shells_are_refused(bands):
    grid = domains.interval(8, rule="periodic")
    with pytest.raises(ValueError, match=r"bands must hold"):
        dynamics.band_errors(noise(grid), noise(grid), grid, bands=bands)
