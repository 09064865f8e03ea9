import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, dynamics

SIDE = 2 * np.pi


def test_mass_and_energy_are_integrals_on_every_domain():
    """∫ x² dx = L³/3 and ½ ∫ x⁴ dx = L⁵/10 on (0, L), and ½ |D| for the constant 1."""
    line = domains.interval(8, upper=2.0, rule="gauss-legendre")
    states = line.points[None] ** 2
    np.testing.assert_allclose(dynamics.mass(states, line), [[8 / 3]], rtol=1e-5)
    np.testing.assert_allclose(dynamics.energy(states, line), [32 / 10], rtol=1e-5)
    ball = domains.sphere(6, radius=2.0)
    np.testing.assert_allclose(dynamics.energy(jnp.ones((1, ball.size, 1)), ball), [8 * np.pi], rtol=1e-5)


def test_channels_add_to_the_energy_and_not_to_the_mass():
    line = domains.interval(9)
    states = jnp.stack([jnp.ones((2, 9)), 2 * jnp.ones((2, 9))], axis=-1)
    found = dynamics.invariants(states, line)
    np.testing.assert_allclose(found.mass, [[1, 2]] * 2, rtol=1e-6)
    np.testing.assert_allclose(found.energy, [2.5] * 2, rtol=1e-6)
    assert found.enstrophy is None


@pytest.mark.sample(1)
@pytest.mark.parametrize("shape", [(9, 12), (8, 8)])
@pytest.mark.thorough
def test_vorticity_in_the_plane_is_exact_for_waves(shape):
    """v = (∂_2 ψ, −∂_1 ψ) has the vorticity −Δψ."""
    grid = domains.box(shape, upper=(SIDE, 2 * SIDE), rule="periodic")
    x, y = grid.points.T
    psi = jnp.sin(2 * x) * jnp.cos(y / 2)
    velocity = jnp.stack([-jnp.sin(2 * x) * jnp.sin(y / 2) / 2, -2 * jnp.cos(2 * x) * jnp.cos(y / 2)], axis=-1)[None]
    omega = dynamics.vorticity(velocity, grid)
    np.testing.assert_allclose(omega[0, :, 0], 4.25 * psi, atol=1e-4)
    expected = 0.5 * 4.25**2 * SIDE * 2 * SIDE / 4
    np.testing.assert_allclose(dynamics.enstrophy(velocity, grid, of="velocity"), [expected], rtol=1e-5)
    np.testing.assert_allclose(dynamics.enstrophy(omega, grid), [expected], rtol=1e-5)
    whole = dynamics.invariants(velocity, grid, enstrophy_of="velocity")
    np.testing.assert_allclose(whole.enstrophy, [expected], rtol=1e-5)


def test_vorticity_in_space_is_exact_for_waves():
    """The flow of Arnold, Beltrami and Childress is its own curl."""
    grid = domains.box((6, 7, 8), upper=(SIDE, SIDE, SIDE), rule="periodic")
    x, y, z = grid.points.T
    velocity = jnp.stack(
        [jnp.sin(z) + 2 * jnp.cos(y), 3 * jnp.sin(x) + jnp.cos(z), 2 * jnp.sin(y) + 3 * jnp.cos(x)], -1
    )
    np.testing.assert_allclose(dynamics.vorticity(velocity[None], grid)[0], velocity, atol=1e-4)


@pytest.mark.thorough
def test_drift_is_relative_to_the_initial_state():
    line = domains.interval(9, upper=4.0)
    initial = jnp.stack([jnp.ones((9,)), 2 * jnp.ones((9,))], axis=-1)
    states = jnp.stack([initial, 1.5 * initial])
    found = dynamics.drift(states, initial, line, enstrophy_of="vorticity")
    np.testing.assert_allclose(found.mass, [[0, 0], [0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(found.energy, [0, 1.25], atol=1e-6)
    np.testing.assert_allclose(found.enstrophy, found.energy, rtol=1e-6)


@pytest.mark.thorough
def test_the_drift_of_a_mass_of_zero_has_a_scale():
    """cos has mean 0; a constant of 0.01 more is a drift of 0.01 √2, not of 0.01 / 0."""
    line = domains.interval(16, upper=3.0, rule="periodic")
    wave = jnp.cos(2 * jnp.pi / 3 * line.points)
    found = dynamics.drift(wave[None] + 0.01, wave, line)
    np.testing.assert_allclose(found.mass, [[0.01 * 2**0.5]], rtol=1e-4)


def test_nothing_from_nothing_is_absolute():
    line = domains.interval(9, upper=4.0)
    found = dynamics.drift(jnp.ones((1, 9, 1)), jnp.zeros((9, 1)), line)
    np.testing.assert_allclose((found.mass[0, 0], found.energy[0]), (4, 2), rtol=1e-6)


@pytest.mark.thorough
def test_batches_jit_and_gradients():
    line = domains.interval(9, rule="periodic")
    draws = np.random.default_rng(0).normal(size=(2, 3, 9, 1))
    states = jnp.asarray(draws, jnp.float32)
    together = jax.jit(dynamics.drift)(states, states[:, 0], line)
    for b in range(2):
        alone = dynamics.drift(states[b], states[b, 0], line)
        np.testing.assert_allclose(together.energy[b], alone.energy, rtol=1e-5)
        np.testing.assert_allclose(together.mass[b], alone.mass, atol=1e-6)
    slope = jax.grad(lambda u: dynamics.energy(u, line).sum())(states[0])
    np.testing.assert_allclose(slope, states[0] * line.weights[None, :, None], rtol=1e-5)


def test_the_drift_of_huge_states_is_that_of_others():
    line = domains.interval(9)
    states = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 1)), jnp.float32)
    expected = dynamics.drift(states, states[0], line, enstrophy_of="vorticity")
    found = dynamics.drift(1e25 * states, 1e25 * states[0], line, enstrophy_of="vorticity")
    for name in ("mass", "energy", "enstrophy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_a_state_that_is_not_finite_has_infinite_integrals():
    line = domains.interval(9)
    states = jnp.ones((2, 9, 1)).at[1, 4].set(jnp.nan)
    found = dynamics.drift(states, states[0], line)
    np.testing.assert_array_equal((found.mass[:, 0], found.energy), [[0, np.inf]] * 2)
    plane = domains.box((8, 8), rule="periodic")
    whirl = 1e38 * jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 2)), jnp.float32)  # its FFT overflows
    np.testing.assert_array_equal(dynamics.enstrophy(whirl, plane, of="velocity"), np.inf)


def test_bad_input_is_named(unchecked):
    plane, line = domains.box((4, 4), rule="periodic"), domains.interval(16, rule="periodic")
    states = jnp.ones((1, 16, 1))
    with pytest.raises(ValueError, match=r"one channel for each of 2 or 3 axes, got 1 channels on 2 axes"):
        dynamics.vorticity(states, plane)
    with pytest.raises(ValueError, match=r"got 1 channels on 1 axes"):
        dynamics.enstrophy(states, line, of="velocity")
    with pytest.raises(ValueError, match=r"of='speed'"):
        dynamics.enstrophy(states, plane, of="speed")
    with pytest.raises(ValueError, match=r"initial must have shape \(16, 1\)"):
        dynamics.drift(states, jnp.ones((1, 16, 1)), plane)
