import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import data
from jaxop.data.problems import ode


def test_exact_solution_satisfies_the_controlled_equation(x64):
    errors = []
    for dt in (0.004, 0.002, 0.001):
        samples = data.controlled_ode(4, seed=0, dt=dt)
        u, z = samples.inputs[..., 0], samples.targets[..., 0]
        np.testing.assert_array_equal(u[:, 0], 0.0)
        np.testing.assert_allclose(z[:, 0], 1.0, rtol=1e-15)
        # the trapezoid rule of ∫ sin(z) du over a step is third order
        steps = np.diff(z) - (np.sin(z[:, 1:]) + np.sin(z[:, :-1])) / 2 * np.diff(u)
        errors.append(np.abs(steps.cumsum(axis=1)).max())
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 2.0, atol=0.1)


def test_every_sampling_sees_the_same_control(x64):
    coarse = data.controlled_ode(3, seed=1, dt=0.02)
    fine = data.controlled_ode(3, seed=1, dt=0.001)
    uneven = data.controlled_ode(3, seed=1, nodes=50)
    np.testing.assert_allclose(coarse.inputs, fine.inputs[:, ::20], atol=1e-12)
    grid = np.arange(2001) * 0.001
    for i in range(3):
        times = uneven.domain.axes[0].nodes[i]
        np.testing.assert_allclose(uneven.inputs[i, :, 0], np.interp(times, grid, fine.inputs[i, :, 0]), atol=1e-2)
    np.testing.assert_allclose(uneven.targets, 2 * np.arctan(np.tan(0.5) * np.exp(uneven.inputs)), rtol=1e-12)


@pytest.mark.parametrize("problem", [data.controlled_ode, data.lorenz63])
def test_samples_depend_on_seed_and_number_only(problem):
    many, two = problem(5, seed=2, nodes=41), problem(2, seed=2, nodes=41, first=3)
    for field in ("inputs", "targets"):
        np.testing.assert_allclose(getattr(many, field)[3:], getattr(two, field), rtol=1e-6)
    np.testing.assert_array_equal(many.domain.axes[0].nodes[3:], two.domain.axes[0].nodes)
    assert np.abs(many.inputs[0] - many.inputs[1]).max() > 0.01


@pytest.mark.parametrize(
    ("dt", "nodes", "end"), [(0.005, 401, 2.0), (0.0075, 267, 1.995), (0.01, 201, 2.0), (0.015, 134, 1.995)]
)
def test_even_sampling_ends_at_the_last_multiple_of_the_step(dt, nodes, end):
    samples = data.controlled_ode(2, seed=0, dt=dt)
    assert samples.inputs.shape == (2, nodes, 1)
    times = samples.domain.points[:, 0]
    np.testing.assert_allclose(times, dt * np.arange(nodes), rtol=1e-6)
    np.testing.assert_allclose(times[-1], end, rtol=1e-6)


def test_uneven_times_span_the_interval_and_keep_apart():
    samples = data.controlled_ode(50, seed=0, nodes=200, final_time=3.0)
    times = np.asarray(samples.domain.axes[0].nodes)
    assert times.shape == (50, 200)
    assert (times[:, 0] == 0).all()
    assert (times[:, -1] == 3).all()
    gaps = np.diff(times)
    assert gaps.min() > 0.99 * 0.1 * 3 / 199
    # exponential gaps with a floor: standard deviation 0.9 of the mean
    assert abs(gaps.std() / gaps.mean() - 0.9) < 0.05
    np.testing.assert_allclose(samples.domain.measure, 3.0, rtol=1e-5)


def test_lorenz_is_exact_where_the_solution_is_known():
    times = np.linspace(0, 2, 41)
    fixed = np.sqrt(8 / 3 * 27)
    states = np.array([[0.0, 0.0, 7.0], [fixed, fixed, 27.0], [-fixed, -fixed, 27.0]])
    path = data.solve_lorenz63(states, times)
    np.testing.assert_allclose(path[0], np.outer(np.exp(-8 / 3 * times), [0, 0, 7.0]), atol=1e-10)
    np.testing.assert_allclose(path[1:], np.broadcast_to(states[1:, None], (2, 41, 3)), atol=1e-8)


def test_lorenz_is_symmetric_and_restarts_anywhere():
    states = np.random.default_rng(0).uniform([-15, -15, 0], [15, 15, 40], (3, 3))
    flip = np.array([-1.0, -1.0, 1.0])
    whole, first, second = (np.linspace(start, end, 41) for start, end in ((0, 2), (0, 1), (1, 2)))
    path = data.solve_lorenz63(states, whole)
    np.testing.assert_allclose(data.solve_lorenz63(flip * states, whole), flip * path, atol=1e-6)
    half = data.solve_lorenz63(states, first)
    np.testing.assert_allclose(half[:, ::2], path[:, :21], atol=1e-6)
    np.testing.assert_allclose(data.solve_lorenz63(half[:, -1], second)[:, ::2], path[:, 20:], atol=1e-6)


def test_lorenz_contracts_volumes_at_its_divergence():
    state, step, times = np.array([3.0, -4.0, 20.0]), 1e-4, np.linspace(0, 0.5, 41)
    corners = np.concatenate([state + step * np.eye(3), state - step * np.eye(3)])
    end = data.solve_lorenz63(corners, times)[:, -1]
    jacobian = (end[:3] - end[3:]) / (2 * step)
    np.testing.assert_allclose(np.log(np.linalg.det(jacobian)), -(10 + 1 + 8 / 3) * 0.5, rtol=1e-4)


def test_lorenz_satisfies_its_equation_along_the_path():
    times = np.linspace(0, 0.04, 41)
    path = data.solve_lorenz63(np.array([[1.0, 2.0, 30.0]]), times)[0]
    x, y, z = path.T
    velocity = np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=1)
    # Simpson's rule over pairs of steps
    flow = (velocity[:-2] + 4 * velocity[1:-1] + velocity[2:]) * 0.001 / 3
    np.testing.assert_allclose(path[2:] - path[:-2], flow, atol=1e-9)


def test_many_trajectories_are_the_same_as_few(monkeypatch):
    monkeypatch.setattr(ode, "_CHUNK", 16)
    states = np.random.default_rng(0).uniform([-15, -15, 0], [15, 15, 40], (20, 3))
    times = np.linspace(0, 1, 20)[:, None] + np.linspace(0, 1, 41)
    path = data.solve_lorenz63(states, times)
    np.testing.assert_allclose(path[17:], data.solve_lorenz63(states[17:], times[17:]), atol=1e-9)


def test_lorenz_tasks_carry_the_initial_values():
    one, two = (data.lorenz63(3, seed=0, task=task, dt=0.05) for task in data.LORENZ_TASKS)
    np.testing.assert_array_equal(one.initial, np.stack([one.inputs[:, 0, 0], one.targets[:, 0, 0], np.zeros(3)], 1))
    np.testing.assert_array_equal(one.targets, two.targets[..., :1])
    np.testing.assert_array_equal(two.initial[:, [1, 2]], two.targets[:, 0])
    assert np.abs(two.initial[:, :2]).max() <= 15
    assert (two.initial[:, 2] >= 0).all()
    assert two[[0, 1]].initial.shape == (2, 4)


def test_the_precision_setting_survives():
    assert data.lorenz63(2, seed=0, dt=0.05).inputs.dtype == np.float32
    assert jnp.zeros(()).dtype == jnp.float32


def test_lorenz_in_double_precision(x64):
    assert data.lorenz63(2, seed=0, dt=0.05).targets.dtype == np.float64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either dt"),
        ({"dt": 0.1, "nodes": 5}, "give either dt"),
        ({"dt": -0.1}, "dt must lie between 0 and final_time=2.0"),
        ({"dt": 3.0}, "dt must lie between 0 and final_time=2.0"),
        ({"nodes": 1}, "nodes must be at least 2"),
        ({"nodes": 5, "final_time": 0.0}, "final_time must be positive"),
        ({"nodes": 5, "seed": -1}, "seed must be a non-negative integer"),
        ({"nodes": 5, "task": "x->z"}, "task='x->z' is unknown"),
    ],
)
def test_bad_settings_say_what_is_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        data.lorenz63(2, **{"seed": 0, **settings})


def test_bad_states_and_times_are_refused():
    with pytest.raises(ValueError, match="strictly increasing"):
        data.solve_lorenz63(np.ones((1, 3)), np.array([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"times must have shape \(n,\) or \(2, n\)"):
        data.solve_lorenz63(np.ones((2, 3)), np.ones((3, 4)))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    ode._integrator.cache_clear()
    with pytest.raises(ImportError, match=r"Lorenz system needs diffrax; .*pip install 'jaxop\[data\]'"):
        data.lorenz63(1, seed=0, dt=0.05)
