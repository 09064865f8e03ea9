"""Windows of trajectories: what they hold and read, on what a draw depends, and statistics of steps."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxop import data, domains
from tests.data.trajectory_cases import Counting, numbered
from tests.training.cases import assert_same_bits, interruption, rows
from tests.training.open_cases import CASES


def test_items_are_all_pairs_of_trajectory_and_first_time():
    trajectories = numbered()
    windows = trajectories.windows(history=2, steps=3)
    assert len(windows) == 3 * (10 - 4)
    batch = windows[np.arange(len(windows))]
    rows, starts = windows.pairs(slice(None))
    assert {*zip(rows.tolist(), starts.tolist(), strict=True)} == {(s, j) for s in range(3) for j in range(6)}
    for i, (s, j) in enumerate(zip(rows, starts, strict=True)):
        np.testing.assert_array_equal(batch.history[i], trajectories.states[s, j : j + 2])
        np.testing.assert_array_equal(batch.targets[i], trajectories.states[s, j + 2 : j + 5])
    np.testing.assert_array_equal(batch.times, np.tile([-0.5, 0.0, 0.5, 1.0, 1.5], (18, 1)))
    assert batch.key_data is batch.parameters is None
    assert (batch.weights == 1).all()
    np.testing.assert_array_equal(batch.index, np.arange(18))


def test_a_window_reads_its_own_states_only():
    source = Counting(np.array(numbered().states))
    windows = dataclasses.replace(numbered(), states=source).windows(history=2, steps=2, strides=(2,))
    source.reads.clear()
    windows[[5, 0]]
    assert source.reads == [(1, [1, 3, 5, 7]), (0, [0, 2, 4, 6])]
    source.reads.clear()
    windows.at_step(np.array([11]), seed=0, step=0)
    assert source.reads == [(2, [3, 5, 7, 9])]


def test_a_draw_depends_on_seed_step_and_item_only():
    windows = numbered(steps=30, parameters=np.eye(3)).windows(steps=2, strides=(1, 2, 4))
    first = windows.at_step(np.array([0, 40]), seed=3, step=5)
    alone = windows.at_step(np.array([40]), seed=3, step=5)
    for name in ("history", "targets", "times", "parameters", "weights", "key_data", "index"):
        np.testing.assert_array_equal(getattr(first, name)[1], getattr(alone, name)[0])
    np.testing.assert_array_equal(first.parameters, np.eye(3)[[0, 40 // windows.starts]])
    longer = data.Windows(windows.trajectories, steps=1, strides=(1, 2, 4)).at_step(np.array([0, 40]), seed=3, step=5)
    np.testing.assert_array_equal(longer.key_data, first.key_data)  # noise does not depend on the kind of window
    keys = [first.key_data[0], first.key_data[1]]
    keys += [windows.at_step(np.array([0]), seed=seed, step=step).key_data[0] for seed, step in ((4, 5), (3, 6))]
    assert len({tuple(key.tolist()) for key in keys}) == 4


def test_known_draws_never_change():
    """Runs that were begun by earlier versions continue with the same strides and noise."""
    windows = numbered(steps=12).windows(strides=(1, 2, 4))
    batch = windows.at_step(np.arange(6), seed=1, step=2)
    assert (batch.times[:, 1] / 0.5).tolist() == [2, 4, 1, 2, 2, 1]
    assert batch.key_data[:2].tolist() == [[1748168396, 2560897851], [3582368780, 2434213664]]


def test_strides_have_equal_shares_and_keys_are_uniform():
    windows = numbered(steps=12).windows(strides=(1, 2, 4))
    batches = [windows.at_step(np.arange(len(windows)), seed=0, step=t) for t in range(40)]
    strides = np.concatenate([batch.times[:, 1] / 0.5 for batch in batches])
    count = len(strides)
    for stride in (1, 2, 4):
        assert abs(np.mean(strides == stride) - 1 / 3) < 4 * (2 / 9 / count) ** 0.5
    assert (np.diff(batches[0].targets[:, 0, 0, 0] - batches[0].history[:, 0, 0, 0]) != 0).any()
    np.testing.assert_array_equal(
        batches[0].targets[:, 0, 0, 0] - batches[0].history[:, 0, 0, 0], 10 * batches[0].times[:, 1] / 0.5
    )
    bits = np.concatenate([batch.key_data for batch in batches])
    assert len(np.unique(bits, axis=0)) == count
    assert np.abs((bits / 2**32).mean(axis=0) - 0.5).max() < 4 * (1 / 12 / count) ** 0.5
    drawn = jax.vmap(jax.random.normal)(jax.random.wrap_key_data(batches[0].key_data, impl="threefry2x32"))
    assert len(np.unique(drawn)) == len(windows)


def test_a_curriculum_turns_targets_on():
    windows = numbered().windows(steps=4, curriculum=((0, 1), (10, 2), (20, 4)))

    def weights(step):
        return windows.at_step(np.array([0]), seed=0, step=step).weights[0].tolist()

    assert [weights(step) for step in (0, 9)] == [[1, 0, 0, 0]] * 2
    assert [weights(step) for step in (10, 19)] == [[1, 1, 0, 0]] * 2
    assert [weights(step) for step in (20, 999)] == [[1, 1, 1, 1]] * 2
    assert windows[[0]].weights.tolist() == [[1, 1, 1, 1]]


def test_uneven_times_of_each_trajectory_travel_with_the_windows():
    times = np.cumsum(np.random.default_rng(0).uniform(0.5, 1.5, (3, 10)), axis=1) + 1e7
    windows = numbered(times=times).windows(history=2, steps=2, strides=(2,))
    batch = windows[np.arange(len(windows))]
    rows, starts = windows.pairs(slice(None))
    expected = np.stack([times[s, j : j + 7 : 2] - times[s, j + 2] for s, j in zip(rows, starts, strict=True)])
    # differences are resolved although 1e7 has a spacing of 1 in float32
    np.testing.assert_allclose(batch.times, expected, rtol=1e-6)


def test_statistics_are_means_over_the_domain_and_all_steps():
    random = np.random.default_rng(0)
    times = np.cumsum(random.uniform(0.5, 2.0, (3, 9)), axis=1)
    stack = domains.stack([domains.from_samples(np.sort(random.random(6).astype(np.float32))) for _ in range(3)])
    states = random.normal(size=(3, 9, 6, 2)).astype(np.float32) * [1.0, 30.0] + [0.0, 300.0]
    parameters = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    trajectories = data.Trajectories(states.astype(np.float32), stack, times, parameters)
    known = trajectories.windows(history=3, strides=(2,)).statistics()
    u, w = np.asarray(trajectories.states, np.float64), np.asarray(stack.weights, np.float64)[:, None, :, None]
    mass = (w * np.ones_like(u)).sum(axis=(0, 1, 2))
    mean = (w * u).sum(axis=(0, 1, 2)) / mass
    std = np.sqrt((w * (u - mean) ** 2).sum(axis=(0, 1, 2)) / mass)
    steps = np.diff(times, axis=1)
    change = np.diff(u, axis=1) * (np.median(steps) / steps)[:, :, None, None]
    weight = w * np.ones_like(change)
    centre = (weight * change).sum(axis=(0, 1, 2)) / weight.sum(axis=(0, 1, 2))
    increment = np.sqrt((weight * (change - centre) ** 2).sum(axis=(0, 1, 2)) / weight.sum(axis=(0, 1, 2)))
    np.testing.assert_allclose(known.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(known.std, std, rtol=1e-6)
    np.testing.assert_allclose(known.increment, increment, rtol=1e-6)
    assert known.dt == pytest.approx(np.median(steps))
    np.testing.assert_allclose(known.parameter_mean, [3.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(known.parameter_std, [np.std([1, 2, 6]), 1.0], rtol=1e-6)


def test_statistics_do_not_depend_on_blocks_or_the_nodes_of_padding(monkeypatch):
    base = numbered(steps=11)
    whole = base.windows().statistics()
    padded = np.concatenate([np.asarray(base.states), np.full((3, 11, 2, 2), 7e7, np.float32)], axis=2)
    cloud = domains.from_nodes(base.domain.points, base.domain.weights)
    more = data.Trajectories(padded, domains.pad(cloud, 6), base.times).windows().statistics()
    monkeypatch.setattr("jaxop.data.samples._BLOCK", 3 * 8)
    source = Counting(np.asarray(base.states))
    lazy = dataclasses.replace(base, states=source)
    source.reads.clear()
    parts = lazy.windows().statistics()
    assert max(len(times) for _, times in source.reads) == 4
    for other in (more, parts):
        for name in ("mean", "std", "increment"):
            np.testing.assert_allclose(getattr(other, name), getattr(whole, name), rtol=1e-6)


def test_channels_that_do_not_change_have_the_scale_of_their_values():
    states = np.array(numbered().states)
    states[..., 0] = 1e-4 * np.array([1, 2, 3, 4], np.float32)
    states[..., 1] = 5.0
    known = dataclasses.replace(numbered(), states=states).windows().statistics()
    np.testing.assert_array_equal(known.increment, known.std)
    assert known.std[0] < 1e-3
    assert known.std[1] == 1


BAD = {
    "long windows": (
        {"history": 4, "steps": 7},
        r"10 times, but a window of history=4 and steps=7 with stride 1 spans 11",
    ),
    "long strides": ({"steps": 5, "strides": (1, 2)}, r"with stride 2 spans 11; give longer trajectories"),
    "no history": ({"history": 0}, "history must be at least 1, got 0"),
    "no steps": ({"steps": 0}, "steps must be at least 1, got 0"),
    "a stride of zero": ({"strides": (1, 0)}, r"strides must be .* at least 1, got \(1, 0\)"),
    "no strides": ({"strides": ()}, r"strides must be at least one integer"),
    "a late curriculum": ({"curriculum": ((5, 1),)}, r"curriculum must begin with a pair \(0, leads\)"),
    "an empty curriculum": ({"curriculum": ()}, r"curriculum must begin with a pair \(0, leads\)"),
    "a falling curriculum": (
        {"curriculum": ((0, 1), (5, 1), (5, 1))},
        r"curriculum\[2\] begins at 5 and curriculum\[1\] at 5",
    ),
    "more leads than targets": (
        {"steps": 2, "curriculum": ((0, 3),)},
        r"curriculum\[0\] must have between 1 and steps=2",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_windows_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        numbered().windows(**options)


def test_windows_of_something_else_are_refused(unchecked):
    with pytest.raises(
        TypeError, match=r"trajectories must be data\.Trajectories\(states, domain, times\), got ndarray"
    ):
        data.Windows(np.zeros((3, 10, 4, 1)))
    with pytest.raises(TypeError, match=r"curriculum\[0\] must be a pair \(first step, leads\), got 3"):
        numbered().windows(curriculum=(3,))
    with pytest.raises(TypeError, match=r"curriculum must be pairs such as .*, got 3"):
        numbered().windows(curriculum=3)
    with pytest.raises(TypeError, match=r"strides must be a sequence of integers .*, got 2"):
        numbered().windows(strides=2)


def test_batches_are_compared_as_objects():
    windows = numbered().windows()
    batch = windows[[0]]
    assert batch == batch
    assert batch != windows[[0]]


@pytest.mark.thorough
def test_training_on_windows_resumes_with_the_same_bits(tmp_path):
    case = CASES["windows"]
    whole = case.fit(tmp_path / "whole")
    assert whole.errors.keys() == {"same/loss", "same/lead_2"}
    with interruption(5) as loggers:
        case.fit(tmp_path / "parts", loggers=loggers)
    assert_same_bits(case.fit(tmp_path / "parts", resume=True).state, whole.state)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"train\.identity\.trajectories\.states\.contents"):
        case.fit(tmp_path / "parts", resume=True, train=case.train(seed=1))
