"""Clocks count calls as they say, and what cannot be measured is said."""

import pytest
from benchmarks import timing


class Calls(list):
    """Calls that are counted, of no length."""

    def __call__(self):
        self.append(None)


def test_calls_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    assert set(timing.median_seconds_in_turns(calls, 2)) == {"a", "b"}
    assert "".join(order) == "ab" * (2 + timing.WARM_UP_ROUNDS)


def test_a_call_is_warmed_up_and_then_repeated(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP", 0)
    calls = Calls()
    assert timing.median_seconds(calls, 3) >= 0
    assert len(calls) == 1 + 3


def test_a_long_call_is_made_once(monkeypatch):
    monkeypatch.setattr(timing, "LONG", -1)
    calls = Calls()
    assert timing.median_seconds(calls, 3) >= 0
    assert len(calls) == 1


@pytest.mark.parametrize("repeats", [0, -1])
def test_repeats_are_positive(repeats):
    with pytest.raises(ValueError, match=f"--repeats must be positive, got {repeats}"):
        timing.median_seconds(Calls(), repeats)
    with pytest.raises(ValueError, match=f"--repeats must be positive, got {repeats}"):
        timing.median_seconds_in_turns({"a": Calls()}, repeats)


def test_measurements_of_processes_are_read_from_their_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "HERE", tmp_path)
    (tmp_path / "one.py").write_text("import os\nprint('warming up')\nprint('{\"value\": \"%s\"}' % os.environ['A'])\n")
    (tmp_path / "two.py").write_text("raise SystemExit('no such thing')")
    assert timing.measured_by("one.py", environment={"A": "b"}) == {"value": "b"}
    with pytest.raises(ChildProcessError, match="no such thing"):
        timing.measured_by("two.py", "--option")


def test_allocators_differ_in_their_settings_only(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    default, tuned = timing.allocators().values()
    assert "MALLOC_MMAP_MAX_" not in default
    assert tuned == default | timing.TUNED_ALLOCATOR
