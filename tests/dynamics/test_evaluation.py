import csv
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, dynamics
from jaxop.data import Trajectories
from jaxop.testing import count_compilations

TIMES = 0.5 * np.arange(7)
GRID = domains.interval(16, rule="periodic")


def waves(domain: domains.Domain = GRID, count: int = 3, channels: int = 2, seed: int = 0, times=TIMES) -> Trajectories:
    """Sums of waves that decay at their own rates: u_k(t) = exp(−k t / 4) u_k(0)."""
    rng = np.random.default_rng(seed)
    x = np.asarray(domain.points, np.float64)[..., 0]
    x = np.broadcast_to(x, (count, domain.size))[:, None, :, None]
    amplitudes = rng.normal(size=(3, count, 1, 1, channels))
    t = np.broadcast_to(np.asarray(times, np.float64), (count, len(np.atleast_2d(times)[0])))[:, :, None, None]
    modes = (amplitudes[k] * np.exp(-k * t / 4) * np.cos(2 * np.pi * k * x + k) for k in range(3))
    return Trajectories(sum(modes).astype(np.float32), domain, times)


def propagate(states, domain, *, dt=None, offsets=None, parameters=None):
    """The exact step on the periodic grid."""
    spectrum = jnp.fft.rfft(states[..., -1, :, :], axis=-2)
    k = jnp.arange(spectrum.shape[-2]).astype(jnp.float32)[:, None]
    step = jnp.asarray(0.5 if dt is None else dt, jnp.float32).reshape(-1, 1, 1)
    decay = jnp.exp(-k[None] * step / 4)
    return jnp.fft.irfft(spectrum * decay.astype(spectrum.dtype), states.shape[-2], axis=-2)


def persist(states, domain, *, dt=None, offsets=None, parameters=None):
    return states[..., -1, :, :]


def explode(states, domain, *, dt=None, offsets=None, parameters=None):
    """Every step multiplies by 1e15: float32 overflows at the third step."""
    return 1e15 * (states[..., -1, :, :] + 1)


def test_the_exact_propagator_has_no_error_and_persistence_has():
    errors = dynamics.evaluate(propagate, waves())
    assert errors.models == ("model", "persistence", "truth")
    np.testing.assert_allclose(errors.mean("nrmse"), 0, atol=1e-5)
    np.testing.assert_allclose(errors.mean("h1_error"), 0, atol=1e-5)
    np.testing.assert_allclose(errors.mean("correlation"), 1, atol=1e-5)
    np.testing.assert_allclose(
        errors.values["model"]["energy_drift"], errors.values["truth"]["energy_drift"], atol=1e-5
    )
    assert (errors.mean("nrmse", "persistence") > 0.1).all()
    np.testing.assert_array_equal(errors.finite_steps, 6)
    np.testing.assert_allclose(errors.times, np.broadcast_to(TIMES[1:], (3, 6)), rtol=1e-6)


def test_the_table_holds_the_metrics_of_the_rollout():
    """Every entry is that of the pure function, for the states that `rollout` returns."""
    truth = waves()
    errors = dynamics.evaluate(persist, truth, bands=((0, 1), (2, 8)), enstrophy_of="vorticity")
    states = jnp.asarray(truth.states)
    prediction, true = jnp.broadcast_to(states[:, :1], states[:, 1:].shape), states[:, 1:]
    table = errors.values["model"]
    for name in ("nrmse", "vrmse", "correlation"):
        expected = getattr(dynamics, name)(prediction, true, GRID, channels="each")
        np.testing.assert_allclose(table[name], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(errors.curves(name), getattr(dynamics, name)(prediction, true, GRID), rtol=1e-4)
    np.testing.assert_allclose(table["relative_l2"], dynamics.relative_l2(prediction, true, GRID), rtol=1e-4)
    np.testing.assert_allclose(table["h1_error"], dynamics.h1_error(prediction, true, GRID), rtol=1e-4)
    bands = dynamics.band_errors(prediction, true, GRID, bands=((0, 1), (2, 8)))
    np.testing.assert_allclose(table["band_2_8"], bands.pointwise[:, :, 1], rtol=1e-4)
    np.testing.assert_allclose(table["amplitude_0_1"], bands.statistics[:, :, 0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(errors.values["truth"]["enstrophy"], dynamics.enstrophy(true, GRID), rtol=1e-4)
    for name, values in errors.values["persistence"].items():  # this model is persistence
        np.testing.assert_allclose(table[name], values, rtol=1e-4, atol=1e-5)


def test_a_rollout_that_blows_up_is_infinitely_wrong_from_then_on():
    errors = dynamics.evaluate(explode, waves())
    np.testing.assert_array_equal(errors.finite_steps, 2)
    for metric in ("nrmse", "vrmse", "relative_l2", "h1_error", "band_0_1", "energy"):
        curve = errors.mean(metric)
        assert not np.isnan(curve).any(), metric
        np.testing.assert_array_equal(curve[2:], np.inf, err_msg=metric)
    assert np.isfinite(errors.mean("nrmse")[:2]).all()
    np.testing.assert_array_equal(errors.mean("correlation")[2:], 0)
    assert np.isfinite(errors.mean("nrmse", "persistence")).all()


def test_a_state_that_recovers_stays_lost():
    """The third step is not finite; the later ones are again, and still count as ∞."""

    def recover(states, domain, *, dt=None, offsets=None, parameters=None):
        last = states[..., -1, :, :]
        return jnp.where(jnp.isfinite(last), 1e15 * (last + 1), 0)

    errors = dynamics.evaluate(recover, waves())
    np.testing.assert_array_equal(np.isinf(errors.mean("nrmse")), [False, False, True, True, True, True])


def test_batches_change_nothing_and_compile_once():
    truth = waves(count=5)
    whole = dynamics.evaluate(propagate, truth, batch_size=3)
    dynamics.evaluate(propagate, truth.take([0, 1, 2]))
    with count_compilations() as compilations:
        parts = [dynamics.evaluate(propagate, truth.take(rows)) for rows in ([0, 1, 2], [3, 4, 4])]
    assert compilations() == 0
    for name, values in whole.values["model"].items():
        found = np.concatenate([part.values["model"][name] for part in parts])[:5]
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_rows_are_tidy(tmp_path):
    errors = dynamics.evaluate(propagate, waves(), name="exact")
    errors.save(tmp_path / "new" / "errors.csv")
    with (tmp_path / "new" / "errors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "sample", "step", "time", "metric", "channel", "value"]
    assert len({tuple(list(row.values())[:6]) for row in rows}) == len(rows)

    def value(**choices: str) -> float:
        (found,) = [row for row in rows if all(row[name] == chosen for name, chosen in choices.items())]
        return float(found["value"])

    where = {"model": "persistence", "sample": "1", "step": "3", "metric": "nrmse"}
    each = errors.values["persistence"]["nrmse"][1, 2]
    assert [value(**where, channel=c) for c in "01"] == pytest.approx(list(each))
    assert value(**where, channel="all") == pytest.approx(each.sum())
    assert {float(row["time"]) for row in rows} == set(TIMES[1:])
    assert {row["model"] for row in rows} == {"exact", "persistence", "truth"}
    joint = [row for row in rows if row["metric"] == "relative_l2"]
    assert {row["channel"] for row in joint} == {"all"}


@pytest.mark.thorough
def test_climatology_is_a_row_of_its_own():
    truth = waves()
    mean = np.mean(truth.states, axis=(0, 1))
    constant = dynamics.evaluate(persist, truth, climatology=mean)
    changing = dynamics.evaluate(persist, truth, climatology=np.asarray(truth.states[0, 1:]))
    assert constant.models == ("model", "persistence", "climatology", "truth")
    expected = dynamics.nrmse(
        jnp.broadcast_to(jnp.asarray(mean)[None, None], (3, 6, 16, 2)), jnp.asarray(truth.states[:, 1:]), GRID
    )
    np.testing.assert_allclose(constant.curves("nrmse", "climatology"), expected, rtol=1e-4)
    np.testing.assert_allclose(changing.curves("nrmse", "climatology")[0], 0, atol=1e-6)


@pytest.mark.thorough
def test_the_means_of_phases_are_a_climatology_without_a_warning(monkeypatch):
    monkeypatch.setattr("jaxop._validation._warned_about_float64", set())
    truth = waves()
    phases = data.climatology(truth, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dynamics.evaluate(persist, truth.take([0]), climatology=phases[np.arange(1, truth.steps) % 4])
    assert np.isfinite(found.curves("nrmse", "climatology")).all()


def test_uneven_times_of_each_trajectory_reach_the_stepper():
    """The exact propagator of dt is exact at the times of every trajectory."""
    times = np.cumsum(np.random.default_rng(0).uniform(0.2, 0.8, (3, 7)), axis=1)
    errors = dynamics.evaluate(propagate, waves(times=times))
    np.testing.assert_allclose(errors.mean("nrmse"), 0, atol=1e-5)
    np.testing.assert_allclose(errors.times, times[:, 1:] - times[:, :1], rtol=1e-6)


def test_a_history_starts_the_rollout_later():
    """Two states determine the decay of one wave: u_2 = u_1² / u_0 for a constant."""

    def extrapolate(states, domain, *, dt=None, offsets=None, parameters=None):
        return states[..., -1, :, :] ** 2 / states[..., -2, :, :]

    times = 0.5 * np.arange(8)
    decay = np.exp(-times)[None, :, None, None] * np.ones((3, 1, 16, 2))
    errors = dynamics.evaluate(extrapolate, Trajectories(decay.astype(np.float32), GRID, times), history=2)
    np.testing.assert_allclose(errors.times[0], times[2:] - times[1], rtol=1e-6)
    np.testing.assert_allclose(errors.mean("nrmse"), 0, atol=1e-4)
    np.testing.assert_allclose(errors.mean("nrmse", "persistence"), 2 * np.exp(errors.times[0]) - 2, rtol=1e-4)


@pytest.mark.thorough
def test_a_stepper_brings_its_history():
    """Its table is that of its rollout from the first two states."""
    truth = waves()
    config = dynamics.StepperConfig.for_data(truth.windows(history=2), "fno", width=4, layers=1, modes=2)
    stepper = dynamics.make_stepper(config, truth.windows(history=2).statistics(), rngs=nnx.Rngs(0))
    errors = dynamics.evaluate(stepper, truth, steps=5)
    found = dynamics.rollout(stepper, truth.states[:, :2], 5, domain=GRID, dt=0.5)
    expected = dynamics.nrmse(found.states, jnp.asarray(truth.states[:, 2:]), GRID)
    np.testing.assert_allclose(errors.curves("nrmse"), expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"history must be that of the stepper, 2, or None, got 1"):
        dynamics.evaluate(stepper, truth, history=1)


def test_parameters_reach_the_stepper():
    def scale(states, domain, *, dt=None, offsets=None, parameters=None):
        return parameters[..., :1, None] * states[..., -1, :, :]

    rates = np.array([0.5, 0.9, 1.1])
    powers = rates[:, None] ** np.arange(7)
    states = powers[:, :, None, None].astype(np.float32) * np.ones((1, 1, 16, 2), np.float32)
    errors = dynamics.evaluate(scale, Trajectories(states, GRID, TIMES, rates[:, None], ("rate",)))
    np.testing.assert_allclose(errors.mean("nrmse"), 0, atol=1e-5)


@pytest.mark.thorough
def test_a_domain_has_the_metrics_that_it_permits():
    points = np.random.default_rng(0).uniform(size=(9, 2)).astype(np.float32)
    cloud = dynamics.evaluate(persist, waves(domains.monte_carlo(points), count=1))
    ends = dynamics.evaluate(persist, waves(domains.from_samples(np.linspace(0, 1, 9, dtype=np.float32)), count=1))
    basic = {"nrmse", "relative_l2", "vrmse", "correlation", "mass", "energy", "mass_drift", "energy_drift"}
    assert set(cloud.metrics) == basic
    assert set(ends.metrics) == basic | {"h1_error"}
    assert set(dynamics.evaluate(persist, waves()).metrics) > basic | {"h1_error", "band_0_1", "amplitude_0_1"}


@pytest.mark.thorough
def test_domains_of_their_own():
    grids = [domains.from_samples(np.linspace(0, 1, 9, dtype=np.float32) ** p) for p in (1.0, 2.0, 3.0)]
    truth = waves(domains.stack(grids))
    errors = dynamics.evaluate(persist, truth, batch_size=2)
    for i, grid in enumerate(grids):
        alone = dynamics.evaluate(persist, Trajectories(truth.states[i : i + 1], grid, TIMES))
        np.testing.assert_allclose(errors.curves("h1_error")[i], alone.curves("h1_error")[0], rtol=1e-4)


def test_bad_input_is_named(unchecked):
    truth = waves()
    with pytest.raises(TypeError, match=r"trajectories must be data.Trajectories, got ndarray"):
        dynamics.evaluate(persist, truth.states)
    with pytest.raises(ValueError, match=r"steps must lie between 1 and 6.*got 7"):
        dynamics.evaluate(persist, truth, steps=7)
    with pytest.raises(ValueError, match=r"steps must lie between 1 and 0"):
        dynamics.evaluate(persist, truth, history=7)
    with pytest.raises(ValueError, match=r"climatology must have shape \(16, 2\).*got \(16, 1\)"):
        dynamics.evaluate(persist, truth, climatology=np.zeros((16, 1), np.float32))
    with pytest.raises(ValueError, match=r"name must differ.*'truth'"):
        dynamics.evaluate(persist, truth, name="truth")
    with pytest.raises(ValueError, match=r"batch_size"):
        dynamics.evaluate(persist, truth, batch_size=0)
    with pytest.raises(ValueError, match=r"periodic grid"):
        dynamics.evaluate(persist, waves(domains.interval(9), count=1), bands=((0, 1),))
    errors = dynamics.evaluate(persist, truth)
    with pytest.raises(ValueError, match=r"metric='rmse'.*nrmse"):
        errors.curves("rmse")
    with pytest.raises(ValueError, match=r"model='persistance'.*persistence"):
        errors.curves("nrmse", "persistance")
