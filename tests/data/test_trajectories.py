"""Sets of trajectories: parts, what is read, and what is refused."""

import dataclasses
import re

import h5py
import jax
import numpy as np
import pytest

from jaxop import data, domains
from tests.data.trajectory_cases import Counting, numbered


@pytest.fixture
def small_blocks(monkeypatch):
    """Files are scanned three times (of four nodes and two channels) at once."""
    monkeypatch.setattr("jaxop.data.samples._BLOCK", 3 * 8)


def test_parts_of_files_equal_parts_of_arrays(small_blocks):
    whole = numbered(times=np.arange(30.0).reshape(3, 10) ** 1.5, parameters=np.arange(6.0).reshape(3, 2))
    source = Counting(np.array(whole.states))
    lazy = dataclasses.replace(whole, states=source)
    assert {len(times) for _, times in source.reads} == {3, 1}  # scanned in blocks
    source.reads.clear()
    for part in (
        lambda t: t,
        lambda t: t.take([2, 0]),
        lambda t: t.between(2, -1),
        lambda t: t.take([-1]).between(3, None).take(slice(None)),
        lambda t: t.between(None, 9).between(1, None).take([1, 2]),
        lambda t: t.between(1, None, 2),
        lambda t: t.between(1, None, 2).between(1, None, 2).take([2, 1]),
        lambda t: t.take([2, 0]).pieces(3).between(1, None),
    ):
        a, b = part(whole), part(lazy)
        assert not source.reads  # a part is not read when it is made
        assert (len(a), a.steps) == (len(b), b.steps)
        np.testing.assert_array_equal(a.times, b.times)
        for i in range(len(a)):
            for one, other in zip(a.trajectory(i)[:3], b.trajectory(i)[:3], strict=True):
                np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(a.frames(0, slice(1, 6, 2)), b.frames(0, slice(1, 6, 2)))
        assert a.identity() == b.identity()
        source.reads.clear()


def test_a_part_is_the_part_of_the_array():
    whole = numbered()
    states = np.asarray(whole.states)
    part = whole.take([2, 0]).between(4, 9)
    np.testing.assert_array_equal(part.trajectory(0)[0], states[2, 4:9])
    assert part.times.tolist() == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert repr(part) == "Trajectories(2 of 5 times on 4 nodes, 2 channels, float32)"


def test_times_of_a_stride_and_pieces_are_those_of_the_array():
    whole = numbered(parameters=np.arange(6.0).reshape(3, 2))
    states = np.asarray(whole.states)
    part = whole.between(1, -1, 3)
    np.testing.assert_array_equal(part.states, states[:, 1:-1:3])
    np.testing.assert_array_equal(part.times, np.asarray(whole.times)[1:-1:3])
    pieces = whole.pieces(4)
    assert (len(pieces), pieces.steps) == (6, 4)
    found, times, parameters, _ = pieces.trajectory(3)
    np.testing.assert_array_equal(found, states[1, 4:8])
    np.testing.assert_array_equal(times, np.asarray(whole.times)[4:8])
    np.testing.assert_array_equal(parameters, [2.0, 3.0])


def test_stacked_domains_follow_their_trajectories():
    grids = domains.stack(
        [domains.from_samples(np.linspace(0, upper, 4, dtype=np.float32)) for upper in (1.0, 2.0, 3.0)]
    )
    whole = numbered(domain=grids)
    domain = whole.take([2, 1]).trajectory(0)[3]
    assert not domain.is_batched
    assert float(domain.measure) == pytest.approx(3.0)
    batch = whole.windows()[[0, 9 + 9, 9]]
    np.testing.assert_allclose(batch.domain.weights.sum(axis=1), [1.0, 3.0, 2.0], rtol=1e-6)


def test_a_memory_mapped_file_is_not_loaded(tmp_path):
    np.save(tmp_path / "states.npy", np.asarray(numbered().states))
    mapped = np.load(tmp_path / "states.npy", mmap_mode="r")
    part = dataclasses.replace(numbered(), states=mapped).take([2, 0])
    assert not isinstance(part.states, np.ndarray)
    np.testing.assert_array_equal(part.frames(0, slice(3, 5)), mapped[2, 3:5])


def test_a_dataset_of_an_open_file_is_a_source(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["states"] = np.asarray(numbered().states)
        opened = dataclasses.replace(numbered(), states=file["states"])
        assert opened.identity() == numbered().identity()
        np.testing.assert_array_equal(opened.windows()[[4]].history, numbered().windows()[[4]].history)


def test_double_precision_is_kept(x64):
    states = np.array(numbered().states, np.float64) + 1e-9
    batch = dataclasses.replace(numbered(), states=states).windows()[[4]]
    np.testing.assert_array_equal(batch.history[0, 0], states[0, 4])
    assert batch.times.dtype == np.float64


def test_the_identity_tells_every_part_apart():
    base = numbered(parameters=np.ones((3, 1)), parameter_names=("a",))
    changed = np.array(base.states)
    changed[1, 7, 3, 1] += 1
    times = np.array(base.times)
    times[4] += 0.1
    others = (
        dataclasses.replace(base, states=changed),
        dataclasses.replace(base, times=times),
        dataclasses.replace(base, parameters=2 * np.ones((3, 1))),
        dataclasses.replace(base, parameter_names=("b",)),
        dataclasses.replace(base, domain=domains.interval(4, upper=2.0)),
        base.take([0, 1]),
        base.between(1, None),
    )
    assert base.identity() == numbered(parameters=np.ones((3, 1)), parameter_names=("a",)).identity()
    for other in others:
        assert other.identity() != base.identity()


def bad_states(value, where, dtype=np.float32):
    states = np.array(numbered().states, dtype)
    states[where] = value
    return states


GRID = domains.box((2, 2))
BAD = {
    "times that fall": ({"times": [0, 1, 2, 3, 2.5, 5, 6, 7, 8, 9]}, r"times\[4\] = 2\.5 lies below times\[3\] = 3"),
    "times that repeat": (
        {"times": np.minimum(np.arange(30.0).reshape(3, 10), 28)},
        r"times\[2, 9\] = 28\.0 repeats times\[2, 8\]",
    ),
    "times of wrong count": ({"times": np.arange(9.0)}, r"times must have shape \(10,\).*\(3, 10\).*got \(9,\)"),
    "times without end": ({"times": [*range(9), np.inf]}, r"times must be finite, but times\[9\] = inf"),
    "parameters of wrong count": (
        {"parameters": np.ones((2, 1))},
        r"parameters must have shape .* = \(3, p\), got \(2, 1\)",
    ),
    "parameters in a row": ({"parameters": np.ones(3)}, r"got \(3,\); .* parameters\[:, None\]"),
    "names of wrong count": (
        {"parameters": np.ones((3, 2)), "parameter_names": ("nu",)},
        r"parameter_names must be 2 different names.*got \('nu',\)",
    ),
    "names twice": (
        {"parameters": np.ones((3, 2)), "parameter_names": ("nu", "nu")},
        r"parameter_names must be 2 different names",
    ),
    "names alone": ({"parameter_names": ("nu",)}, r"parameter_names=\('nu',\) were given without parameters"),
    "a parameter that is not a number": (
        {"parameters": np.array([[0.0], [1.0], [np.nan]]), "parameter_names": ("nu",)},
        r"parameters must be finite, but parameters\[2, 0\] = nan \(nu of trajectory 2\)",
    ),
    "a state that is not finite": (
        {"states": bad_states(np.nan, (1, 6, 3, 1)), "domain": GRID},
        r"in float32, but states\[1, 6, 3, 1\] = nan \(trajectory 1, time 3, grid index \(1, 1\), channel 1\)",
    ),
    "a state that float32 does not hold": (
        {"states": bad_states(1e300, (2, 0, 0, 0), np.float64)},
        r"states\[2, 0, 0, 0\] = 1e\+300",
    ),
    "states of three axes": (
        {"states": np.zeros((3, 10, 4), np.float32)},
        r"states must have shape \(trajectories, times, n, channels\), got \(3, 10, 4\); .*states\[\.\.\., None\]",
    ),
    "states on a grid": ({"states": np.zeros((3, 10, 2, 2, 2), np.float32)}, r"got \(3, 10, 2, 2, 2\).*reshape"),
    "an empty set": ({"states": np.zeros((3, 10, 4, 0), np.float32)}, r"states is empty: its shape is \(3, 10, 4, 0\)"),
    "other nodes": ({"domain": domains.interval(5)}, r"states has 4 nodes, but domain has 5"),
    "a short stack": (
        {"domain": domains.stack([domains.interval(4), domains.interval(4)])},
        r"domain stacks 2 domains for 3 trajectories",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused(change, message, small_blocks, unchecked):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(numbered(), **change)


def test_what_is_not_a_number_is_refused(unchecked):
    dates = np.arange("2001-01", "2001-11", dtype="datetime64[M]")
    with pytest.raises(TypeError, match=r"times must hold real numbers, got dtype datetime64.*count times from"):
        numbered(times=dates)
    with pytest.raises(TypeError, match="parameter_names must be a tuple of strings, got 'nu'"):
        numbered(parameters=np.ones((3, 1)), parameter_names="nu")
    with pytest.raises(TypeError, match="states must be real, got dtype complex64"):
        dataclasses.replace(numbered(), states=np.zeros((3, 10, 4, 1), np.complex64))
    masked = np.ma.masked_greater(np.array(numbered().states), 2000)
    with pytest.raises(TypeError, match=r"states must hold numbers only, but .* are masked"):
        dataclasses.replace(numbered(), states=masked)


def test_empty_parts_are_refused():
    with pytest.raises(ValueError, match="indices do not select any of the 3 trajectories"):
        numbered().take([])
    with pytest.raises(ValueError, match="start=4 and stop=4 leave none of the 10 times"):
        numbered().between(4, 4)
    with pytest.raises(ValueError, match="length must be at most the 10 times of a trajectory, got 11"):
        numbered().pieces(11)
    with pytest.raises(IndexError, match=re.escape("indices[0] = 3 is out of range: there are 3 trajectories")):
        numbered().take([3])


def test_float64_is_rounded_with_one_warning(monkeypatch):
    monkeypatch.setattr("jaxop._validation._warned_about_float64", set())
    states = np.array(numbered().states, np.float64)
    with pytest.warns(UserWarning, match="states is float64 but JAX runs in 32 bits"):
        wide = dataclasses.replace(numbered(), states=states)
    assert wide.windows()[[0]].history.dtype == np.float32
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype != np.float64, wide.windows()[[0]]))
    assert isinstance(wide, data.Trajectories)
