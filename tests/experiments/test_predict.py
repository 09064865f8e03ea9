"""Predictions from the command line: of runs and of models without their run, on nodes of the inputs and on others."""

import functools
import json

import jax.numpy as jnp
import meshio
import numpy as np
import pytest
from flax import nnx
from scipy.spatial import Delaunay

import jaxop as package
from jaxop import data, domains, operators, training
from jaxop.experiments import plots
from tests.experiments.conftest import functions, jaxop, write_npz

pytestmark = [pytest.mark.optax]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with models that evaluate anywhere (tno, which was saved without a run) and only on grids (fno)."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"width": 8, "layers": 1}
    configs = {
        "tno": operators.TransformerNeuralOperatorConfig(1, 2, 2, heads=2, decoder_layers=1, **sizes),
        "fno": operators.FourierNeuralOperatorConfig(1, 2, 2, modes=2, reference=8, **sizes),
    }
    statistics = {"input_mean": [0.1], "input_std": [2.0], "output_mean": [300.0, -1.0], "output_std": [10.0, 0.5]}
    for name, config in configs.items():
        operators.Standardized(operators.build(config, rngs=nnx.Rngs(0)), **statistics).save(folder / name)
    operators.build(operators.models()["classifier"].config(5, 2, width=8), rngs=nnx.Rngs(0)).save(folder / "text")
    return folder


def points(count, *, seed=0):
    return np.random.default_rng(seed).random((count, 2)).astype(np.float32)


def test_a_model_without_its_run_predicts_what_the_run_predicts(trained, files, tmp_path):
    for name in ("model", "model.zip"):
        jaxop("export-model", trained, "--to", tmp_path / name)
        jaxop("predict", tmp_path / name, files / "b.npz", "--to", tmp_path / "of" / name)
    jaxop("predict", trained, files / "b.npz", "--to", tmp_path / "run")
    results = [data.read(tmp_path / place / "b.npz") for place in ("run", "of/model", "of/model.zip")]
    assert np.ptp(results[0].targets) > 0
    for other in results[1:]:
        np.testing.assert_array_equal(other.targets, results[0].targets)
        assert other.domain.rules == results[0].domain.rules


@pytest.mark.thorough
def test_a_model_without_its_run_knows_the_names_and_the_grid_of_its_data(tmp_path):
    arrays = {"a": functions(6, 8)["x"], "b": functions(6, 8)["y"]}
    write_npz(tmp_path / "train.npz", **arrays)
    names = ["--data.inputs", "a", "--data.targets", "b", "--data.rule", "periodic", "--data.upper", "2", "2"]
    sizes = ["--model.width", "4", "--model.layers", "1", "--model.modes", "2"]
    short = ["--training.steps", "1", "--training.batch-size", "2", "--training.warmup-steps", "0"]
    run = ["--data.train", tmp_path / "train.npz", "--data.operator", "fno", "--run-dir", tmp_path / "run"]
    jaxop("train", "custom", *run, *names, *short, *sizes)
    jaxop("export-model", tmp_path / "run", "--to", tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "data.json").read_text()
    jaxop("predict", tmp_path / "model", tmp_path / "train.npz", "--to", tmp_path / "out")
    result = data.read(tmp_path / "out" / "train.npz")
    assert result.domain.rules == ("periodic", "periodic")
    assert result.domain.measure == 4
    model = training.load_run(tmp_path / "run").model()
    np.testing.assert_allclose(result.targets, training.predict(model, result), rtol=1e-5, atol=1e-6)


def test_a_rule_on_the_command_line_is_that_of_the_file(models, tmp_path):
    write_npz(tmp_path / "u.npz", x=functions(2, 8)["x"])
    jaxop("predict", models / "fno", tmp_path / "u.npz", "--rule", "periodic", "--to", tmp_path / "out")
    assert data.read(tmp_path / "out" / "u.npz").domain.rules == ("periodic", "periodic")


def test_outputs_at_points_are_those_of_the_model(models, tmp_path, monkeypatch, capsys):
    """In parts of 20 of the 37 points."""
    monkeypatch.setattr(training, "predict_at", functools.partial(training.predict_at, nodes=20))
    write_npz(tmp_path / "u.npz", x=functions(3, 8)["x"])
    write_npz(tmp_path / "nodes.npz", coordinates=points(37))
    jaxop("predict", models / "tno", tmp_path / "u.npz", "--at", tmp_path / "nodes.npz", "--to", tmp_path / "out")
    shown = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == [*(f"{n} of 111 outputs" for n in (20, 37, 57, 74, 94)), f"{tmp_path}/out/u.npz"]
    result = data.read(tmp_path / "out" / "u.npz", inputs="y", targets="y")
    np.testing.assert_array_equal(result.domain.points, points(37))
    model, grid = package.from_pretrained(models / "tno"), domains.box((8, 8), rule="midpoint")
    u = functions(3, 8)["x"].reshape(3, 64, 1)
    expected = model(jnp.asarray(u), grid, at=domains.monte_carlo(points(37)))
    np.testing.assert_allclose(result.targets, expected, rtol=1e-5, atol=1e-5)
    assert expected.mean() > 100  # the units of the data


@pytest.mark.thorough
def test_outputs_for_a_mesh_at_another_mesh_are_a_mesh(models, tmp_path):
    for name, count in {"u": 20, "at": 30}.items():
        flat = points(count, seed=count)
        cells = [("triangle", Delaunay(flat).simplices)]
        meshio.write_points_cells(
            tmp_path / f"{name}.vtu", np.pad(flat, [(0, 0), (0, 1)]), cells, point_data={"x": flat[:, 0]}
        )
    arguments = [tmp_path / "u.vtu", "--at", tmp_path / "at.vtu", "--to", tmp_path / "out"]
    jaxop("predict", models / "tno", *arguments)
    result = meshio.read(tmp_path / "out" / "u.vtu")
    given, at = (data.read(tmp_path / f"{name}.vtu", inputs="x", targets="x").sample(0) for name in ("u", "at"))
    model = package.from_pretrained(models / "tno")
    expected = model(jnp.asarray(given.inputs), given.domain, at=at.domain)
    np.testing.assert_allclose(result.point_data["y"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result.points[:, :2], points(30, seed=30))
    np.testing.assert_array_equal(result.cells[0].data, at.domain.simplices)


def test_what_cannot_be_predicted_is_named(models, trained, files, tmp_path, fails):
    write_npz(tmp_path / "u.npz", x=functions(2, 8)["x"])
    write_npz(tmp_path / "nodes.npz", coordinates=points(5))
    write_npz(tmp_path / "solid.npz", coordinates=np.random.default_rng(0).random((5, 3)))
    write_npz(tmp_path / "none.npz", values=points(5))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.md").write_text("# A model")
    to, at = ("--to", tmp_path / "out"), ("--at", tmp_path / "nodes.npz")
    for arguments, message in (
        (
            (models / "tno", tmp_path / "u.npz"),
            "tno is a model without its run: give the folder of the results by --to",
        ),
        ((models / "tno", tmp_path / "u.npz", *to, "--checkpoint", "last"), "--checkpoint last is for runs"),
        ((models / "tno", tmp_path / "u.npz", *to, "--times", "t"), "--times is for runs on trajectories"),
        ((models / "text", tmp_path / "u.npz", *to), "neither an operator between functions nor a stepper"),
        ((tmp_path / "broken", tmp_path / "u.npz", *to), "broken has no file config.json"),
        ((models / "fno", tmp_path / "u.npz", *to, *at), "u.npz (8 × 8): `at`"),
        ((trained, files / "a.npz", *to, *at), "a.npz (16 × 16): `at`"),
        ((models / "tno", tmp_path / "u.npz", *to, "--at", tmp_path / "solid.npz"), "at must have dim=2 space"),
        ((models / "tno", tmp_path / "u.npz", *to, "--at", tmp_path / "none.npz"), "none.npz has no nodes: neither"),
        ((models / "tno", tmp_path / "u.npz", *to, "--at", tmp_path / "nodes.npy"), "nodes.npy has the suffix '.npy'"),
        ((models / "tno", tmp_path / "u.npz", *to, "--at", tmp_path / "n.npz"), "n.npz does not exist"),
        ((models / "tno", tmp_path / "u.npz", "--to", tmp_path), "would replace the file of the inputs"),
        ((models / "tno", files / "a.npz", "--at", tmp_path / "a.npz", "--to", tmp_path), "a.npz does not exist"),
    ):
        assert message in fails("predict", *arguments)
    write_npz(tmp_path / "a.npz", coordinates=points(5))
    arguments = (models / "tno", files / "a.npz", "--at", tmp_path / "a.npz", "--to", tmp_path)
    assert "would replace the file of the query points" in fails("predict", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_model_without_its_run_is_evaluated_on_files(models, tmp_path, capsys, fails, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(path))
    write_npz(tmp_path / "b.npz", **functions(2, 8))
    jaxop("evaluate", models / "fno", "--data", tmp_path / "b.npz", "--rule", "periodic", "--to", tmp_path / "out")
    assert "fno · out · errors in physical units" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "evaluation" / "evaluation.json").read_text())
    assert (record["run"], record["step"]) == (str(models / "fno"), None)
    samples = data.read(tmp_path / "b.npz", rule="periodic")
    errors = training.evaluate(package.from_pretrained(models / "fno"), samples, batch_size=2)
    assert record["sets"][0]["rel_l2"] == pytest.approx(errors.l2.mean(), rel=1e-5)
    assert tmp_path / "out" / "figures" / "evaluation-b.npz.png" in drawn
    for arguments, message in (
        ((), "give the folder of the tables by --to"),
        (("--to", tmp_path / "out"), "give the files of samples by --data"),
        (("--to", tmp_path / "out", "--rule", "periodic"), "give the files of samples by --data"),
        (("--to", tmp_path / "out", "--data", tmp_path / "b.npz", "--times", "t"), "--times is for runs on traj"),
    ):
        assert message in fails("evaluate", models / "fno", *arguments)


def test_messages_about_the_grid_name_the_option_of_the_command(models, trained, tmp_path, fails):
    """An even grid whose nodes are given may be periodic, which only the user knows."""
    axis = np.arange(8) / 8
    write_npz(tmp_path / "u.npz", **functions(4, 8), coordinates_0=axis, coordinates_1=axis)
    expected = "got rule='samples' along axis 0"
    custom = ("train", "custom", "--data.train", tmp_path / "u.npz", "--data.operator", "fno")
    predict = ("predict", models / "fno", tmp_path / "u.npz", "--to", tmp_path / "out")
    evaluate = ("evaluate", models / "fno", "--data", tmp_path / "u.npz", "--to", tmp_path / "out")
    for command, option in ((custom, "--data.rule"), (predict, "--rule"), (evaluate, "--rule")):
        message = fails(*command)
        assert expected in message
        assert message.endswith(f"(On the command line: {option}.)\n")
    jaxop(*predict, "--rule", "periodic")
