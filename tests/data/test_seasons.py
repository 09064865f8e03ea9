import numpy as np
import pytest

from jaxop import data, domains


def seasonal(steps=30, samples=2, nodes=4, seed=0):
    """Random states (N, T, n, 1) with a season of period 6."""
    noise = np.random.default_rng(seed).standard_normal((samples, steps, nodes, 1))
    states = noise + 10 * np.cos(2 * np.pi * np.arange(steps) / 6)[:, None, None]
    return data.Trajectories(states.astype(np.float32), domains.interval(nodes, rule="periodic"), np.arange(steps) / 6)


def test_the_climatology_is_the_mean_of_each_phase():
    record = seasonal(steps=28)  # five values of four phases, four of two
    means = data.climatology(record, 6)
    for phase in range(6):
        np.testing.assert_allclose(means[phase], record.states[:, phase::6].mean(axis=(0, 1)), rtol=1e-6)


def test_anomalies_of_the_training_years_have_no_mean_at_any_phase():
    record = seasonal()
    train = record.between(0, 18)
    rest = data.anomalies(record, data.climatology(train, 6))
    np.testing.assert_allclose(data.climatology(rest.between(0, 18), 6), 0, atol=1e-6)
    assert np.abs(data.climatology(rest.between(18, None), 6)).max() > 1e-2
    np.testing.assert_array_equal(rest.times, record.times)


def test_later_years_do_not_enter_the_anomalies_of_the_training_years():
    record, other = seasonal(), seasonal()
    other.states[:, 18:] += 100
    first, second = (data.anomalies(one, data.climatology(one.between(0, 18), 6)) for one in (record, other))
    np.testing.assert_array_equal(first.between(0, 18).states, second.between(0, 18).states)


def test_anomalies_of_integers_are_not_rounded():
    counts = np.arange(24, dtype=np.int16).reshape(1, 6, 4, 1) ** 2
    times, ring = np.arange(6), domains.interval(4, rule="periodic")
    record, same = (data.Trajectories(u, ring, times) for u in (counts, counts.astype(np.float32)))
    means = data.climatology(same, 4)
    np.testing.assert_array_equal(data.anomalies(record, means).states, data.anomalies(same, means).states)
    np.testing.assert_array_equal(data.resample(record, 3).states, data.resample(same, 3).states)


def test_bad_periods_and_means_are_refused(unchecked):
    record = seasonal()
    with pytest.raises(ValueError, match="period must lie between 1 and the 30"):
        data.climatology(record, 31)
    with pytest.raises(ValueError, match=r"means must have shape .*\(period, 4, 1\), got \(6, 5, 1\)"):
        data.anomalies(record, np.zeros((6, 5, 1)))
    with pytest.raises(ValueError, match=r"got \(0, 4, 1\)"):
        data.anomalies(record, np.zeros((0, 4, 1)))
    for call in (data.climatology, data.anomalies, data.resample):
        with pytest.raises(TypeError, match=r"trajectories must be data\.Trajectories, got ndarray"):
            call(record.states, 6)
