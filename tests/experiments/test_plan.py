"""`jaxop plan` on devices of this machine."""

import json

import jax
import numpy as np
import pytest

from jaxop import data
from jaxop.experiments import cli
from jaxop.experiments.plan import _largest
from tests.data.ragged_cases import cloud, pairs

SMALL = ["--model.width", "4", "--model.layers", "1", "--model.modes", "2", "--model.projection", "4"]
FEW = ["--training.batch-size", "4", "--data.reference", "64", "--data.resolution", "16"]

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("unchecked")]


def test_a_plan_is_printed_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    platforms = jax.config.jax_platforms
    arguments = ["plan", "darcy_fno", "--topology", "cpu:1", "--json", "plan.json", *SMALL, *FEW]
    assert cli.main([*arguments, "--training.precision", "bf16", "--model.reference", "16"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["mesh"] == {"data": 1}
    assert 0 < plan["batch"] - 2 * 4 * 16 * 16 * 4 < 512  # inputs, targets, and the axes of the grid
    assert plan["messages"] == []
    assert (plan["chip"], plan["seconds"], plan["step_seconds"], plan["bound"]) == (None, {}, None, None)
    for text in ("data 1 (cpu)", "messages between devices", "none", "memory in all"):
        assert text in printed
    assert "estimate of a step" not in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]  # generated data are not kept
    assert jax.config.jax_platforms == platforms


def test_files_are_planned_for_with_the_operator_that_suits_them(tmp_path, capsys):
    u = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=u, y=2 * u)
    small = ["model:tno", "--model.width", "4", "--model.heads", "2", "--model.layers", "1", "--model.feedforward", "4"]
    data = ["--data.train", str(tmp_path / "a.npz"), "--training.batch-size", "4"]
    assert cli.main(["plan", "custom", "--topology", "cpu:1", *data, *small]) == 0
    assert "parameters" in capsys.readouterr().out


def test_the_largest_bucket_is_planned_for():
    samples = data.RaggedSamples(pairs(sizes=(9, 30), at=lambda i: cloud((40, 12)[i])))
    batch = _largest(samples, 1)
    assert (batch.inputs.shape[:2], batch.targets.shape[:2]) == ((1, 9), (1, 40))


@pytest.mark.fit
def test_scattered_nodes_are_decomposed_as_in_training(tmp_path, capsys):
    rng = np.random.default_rng(0)
    u, points = rng.normal(size=(8, 20)).astype(np.float32), rng.uniform(size=(20, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=u, y=2 * u, coordinates=points)
    small = ["model:tno", "--model.width", "4", "--model.heads", "2", "--model.layers", "1", "--model.feedforward", "4"]
    data = ["--data.train", str(tmp_path / "a.npz"), "--training.batch-size", "4"]
    schwarz = ["model.schwarz:schwarz-attention-config"]
    assert cli.main(["plan", "custom", "--topology", "cpu:1", *data, *small, *schwarz]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v7:2x2"], "topology='v7' is unknown"),
        (["--topology", "cpu:1", "--mesh.data", "2"], "mesh.data must be at most the number of devices, 1"),
    ],
)
def test_wrong_inputs_are_one_message(arguments, message, capsys):
    assert cli.main(["plan", "darcy_fno", *arguments, *SMALL, *FEW]) == 2
    assert message in capsys.readouterr().err


def test_the_help_names_the_topologies(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "darcy_fno", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--topology CHIP:SIZES" in printed
    assert "--mesh.data" in printed
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "darcy_fno"])
    assert stop.value.code == 2
    assert "--topology" in capsys.readouterr().err
