"""The tables of several devices: what the processes measure, and how the rows are made of it."""

import importlib.util
from types import SimpleNamespace

import pytest
from benchmarks import scale
from benchmarks.timing import measured_by

from jaxop import training

pytestmark = pytest.mark.optax


def planned(seconds, total=2**30):
    """A plan as JSON."""
    return {
        "total": total,
        "chip": {"memory": 2**34},
        "messages": [{"kind": "all-reduce", "count": 1, "sent": 1024}, {"kind": "all-reduce", "count": 2, "sent": 512}],
        "seconds": {"products": 0.5 * seconds, "memory": 0.25 * seconds, "messages": 0.5 * seconds},
        "step_seconds": seconds,
    }


def test_tables_show_what_the_processes_measure(monkeypatch, capsys):
    figures = {"state": 2**20, "batch": 2**10, "temporaries": 2**31, "messages": [], "difference": 1e-7}
    seconds = {"--name FNO --topology a": 0.9e-3, "--name FNO --topology b": 1e-3, "--name TNO": 2.0}

    def measured(script, command, *options):
        assert script == "run.py"
        if command == "scale-devices":
            return [figures | {"mesh": "data 8"}]
        (found,) = [value for start, value in seconds.items() if " ".join(options).startswith(start)]
        chips = int(options[-1])
        return planned(found * max(1, chips - 2))

    topologies = {"a": 4, "b": 16}
    monkeypatch.setattr(scale, "measured_by", measured)
    monkeypatch.setattr(training.Topology, "find", lambda name: SimpleNamespace(devices=[None] * topologies[name]))
    scale.main(slices=("a", "b"), names=("FNO",), local_nodes=64, side=10, large="b")
    tables = [table.splitlines() for table in capsys.readouterr().out.strip().split("\n\n")]
    assert [len(table) for table in tables] == [3, 4, 4, 3]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1  # as many cells in every row
    assert tables[0][2] == "| FNO, 16² | data 8 | 1.00 MB | 1.0 kB | 2.00 GB | none | 1.0e-07 |"
    cells = "| 1.00 GB (6.2%) | 3 all-reduce, 1.5 kB | 450 µs | 225 µs | 450 µs | 900 µs | 100.0% |"
    assert tables[1][2] == f"| FNO, 16 × 64² | a {cells}"
    assert tables[1][3].endswith("| 1 ms | 90.0% |")
    # 4 s on 4 chips for 256² pairs, and 28 s on 16 chips for 16 times as many
    assert tables[2][2].startswith("| 256 | a |")
    assert tables[2][3].startswith("| 1,024 | b |")
    assert [table.split("|")[-2].strip() for table in tables[2][2:]] == ["100.0%", "57.1%"]
    assert tables[2][2].split("|")[-3].strip() == f"{1e12 * 4 * 4 / 256**2:.3g} ps"
    assert tables[3][2].startswith("| 100 | b | 1.00 GB")


def test_a_missing_compiler_is_named_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(scale, "measured_by", pytest.fail)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'v5e:2x2' needs libtpu.*pip install 'jaxop\[plan\]'"):
        scale.main()
    with pytest.raises(ValueError, match="names='GNO' is unknown"):
        scale.main(names=("GNO",))
    assert capsys.readouterr().out == ""


@pytest.mark.study
def test_the_plan_of_a_function_whose_nodes_are_shared():
    plan = measured_by("run.py", *scale.plan_call("TNO", "cpu:2", 1, 8, 2))
    assert plan["mesh"] == {"data": 1, "domain": 2}
    assert plan["batch"] == 32 * 4 * (1 + 1 + 2 + 1) + 4  # input, target, point and weight of half of the 64 nodes
    assert {message["kind"] for message in plan["messages"]} == {"all-reduce", "collective-permute"}


@pytest.mark.study
def test_devices_agree_with_one():
    alone, *shared = measured_by("run.py", "scale-devices", "--name", "TNO")
    assert [row["mesh"] for row in shared] == ["data 8", "data 2 × model 4", "data 2 × domain 4"]
    assert alone["messages"] == []
    for row in shared:
        assert row["difference"] < 1e-5
        assert row["batch"] < alone["batch"] / 4
        assert row["temporaries"] < alone["temporaries"] / 4
    assert shared[1]["state"] < shared[0]["state"] / 2
