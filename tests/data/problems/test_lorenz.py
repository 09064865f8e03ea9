import numpy as np
import pytest

from jaxop import data
from jaxop.data.problems.ode import solve_lorenz63

# 41 times with the initial one: the solver compiles once for each system
SYSTEMS = {"lorenz63_states": {"times": 40, "warmup": 200}, "lorenz96": {"times": 40, "warmup": 200}}


def make(name, samples=2, **settings):
    return getattr(data, name)(samples, **{**SYSTEMS[name], **settings})


def rate(u, forcing=8.0):
    """u̇ of Lorenz-96 along the last axis, index by index."""
    k = u.shape[-1]
    parts = [(u[..., (i + 1) % k] - u[..., i - 2]) * u[..., i - 1] - u[..., i] + forcing for i in range(k)]
    return np.stack(parts, axis=-1)


def runge_kutta(u, time, steps):
    h = time / steps
    for _ in range(steps):
        a = rate(u)
        b = rate(u + h / 2 * a)
        c = rate(u + h / 2 * b)
        u = u + h / 6 * (a + 2 * b + 2 * c + rate(u + h * c))
    return u


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.thorough
def test_a_sample_depends_on_seed_and_number_only(name):
    many, one = make(name, 12, first=10), make(name, 1, first=17)
    np.testing.assert_array_equal(many.states[7:8], one.states)
    assert not np.array_equal(many.states[0], many.states[1])
    assert not np.array_equal(make(name, 1, seed=1, first=17).states, one.states)


@pytest.mark.thorough
def test_lorenz96_agrees_with_a_reference_integrator(x64):
    run = data.lorenz96(2, times=41, dt=0.025, warmup=0)
    expected = runge_kutta(run.states[:, 0, :, 0], 1.0, 1600)
    np.testing.assert_allclose(run.states[:, 40, :, 0], expected, atol=1e-6)


@pytest.mark.thorough
def test_lorenz96_changes_its_energy_by_forcing_and_friction_alone(x64):
    run = data.lorenz96(2, times=40, dt=0.005, warmup=100, forcing=6.0)
    u = run.states[..., 0]
    energy = (u**2).sum(axis=-1) / 2
    change = -2 * energy + 6.0 * u.sum(axis=-1)
    simpson = (change[:, :-2] + 4 * change[:, 1:-1] + change[:, 2:]) * 0.005 / 3
    np.testing.assert_allclose(energy[:, 2:] - energy[:, :-2], simpson, atol=1e-5)


@pytest.mark.thorough
def test_lorenz96_is_on_its_attractor_after_the_warmup():
    u = data.lorenz96(16, times=40, dt=0.5, warmup=20).states
    # Lorenz and Emanuel (1998): mean 2.3 and standard deviation 3.6
    assert abs(u.mean() - 2.34) < 0.1
    assert abs(u.std() - 3.64) < 0.1


def test_lorenz63_states_are_those_of_the_solver(x64):
    run = data.lorenz63_states(2, times=41, dt=0.02, warmup=0)
    expected = solve_lorenz63(run.states[:, 0, 0], run.times)
    np.testing.assert_allclose(run.states[:, :, 0], expected, atol=1e-9)
    assert run.states.shape == (2, 41, 1, 3)
    assert run.domain.measure == 1.0


def test_the_warmup_is_left_out(x64):
    whole, later = (data.lorenz63_states(1, times=n, warmup=w) for n, w in ((41, 0), (40, 1)))
    np.testing.assert_allclose(later.states, whole.states[:, 1:], atol=1e-9)
    np.testing.assert_array_equal(later.times, whole.times[:40])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lorenz96", {"variables": 3}, "variables must be at least 4"),
        ("lorenz96", {"times": 1}, "times must be at least 2"),
        ("lorenz63_states", {"dt": -1.0}, "dt must be positive"),
        ("lorenz96", {"forcing": float("nan")}, "forcing must be finite, got nan"),
        ("lorenz63_states", {"rho": float("inf")}, "rho must be finite, got inf"),
        ("lorenz63_states", {"warmup": -1}, "warmup must be at least 0"),
        ("lorenz63_states", {"samples": 0}, "samples must be at least 1"),
    ],
)
def test_bad_settings_say_what_is_wrong(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make(name, **settings)
