"""Error bars from the command line: files in, a model with error bars out, and its half-widths and coverage."""

import functools
import json
import re
import zipfile

import jax
import jax.numpy as jnp
import meshio
import numpy as np
import pytest
from flax import nnx
from scipy.spatial import Delaunay

import jaxop as package
from jaxop import data, domains, operators, training
from jaxop.experiments import plots
from tests.experiments.conftest import functions, jaxop, without_type_checks, write_npz

pytestmark = [pytest.mark.optax]

LEVELS = ["--alpha", "0.2", "--delta", "0.25"]


def named(count, side, *, seed):
    """Functions under other names than the defaults, which the recipe of the run has."""
    arrays = functions(count, side, seed=seed)
    return {"a": arrays["x"], "b": arrays["y"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run (a TNO that evaluates anywhere), a spread without a run, files, and the calibrated operator."""
    folder = tmp_path_factory.mktemp("calibrated")
    for name, count, side in (("train", 8, 8), ("new", 19, 8), ("test", 12, 8), ("fine", 6, 12)):
        write_npz(folder / f"{name}.npz", **named(count, side, seed=side + count))
    sizes = ["--model.width", "8", "--model.heads", "2", "--model.layers", "1", "--model.decoder-layers", "1"]
    names = ["--data.inputs", "a", "--data.targets", "b"]
    short = ["--training.steps", "1", "--training.batch-size", "2", "--training.warmup-steps", "0"]
    run = ["--data.train", folder / "train.npz", "--data.operator", "tno", "--run-dir", folder / "run"]
    config = operators.TransformerNeuralOperatorConfig(1, 2, 2, width=8, heads=2, layers=1, decoder_layers=1)
    operators.build(config, rngs=nnx.Rngs(7)).save(folder / "spread.zip")
    spread = ["--spread", folder / "spread.zip"]
    tests = ["--test", folder / "test.npz", folder / "fine.npz"]
    to = ["--to", folder / "bars", *LEVELS]
    with without_type_checks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_figure", lambda figure, path: None)
        jaxop("train", "custom", *run, *names, *short, *sizes)
        jaxop("calibrate", folder / "run", "--data", folder / "new.npz", *to, *spread, *tests)
    return folder


@jax.jit
def outputs(model, values, domain, at=None):
    return model(values, domain, at=at)


def read(path):
    return data.read(path, inputs="a", targets="b")


def test_the_command_calibrates_as_the_functions_do(place):
    loaded = package.from_pretrained(place / "bars")
    expected = training.calibrate(
        training.load_run(place / "run").model(),
        read(place / "new.npz"),
        alpha=0.2,
        delta=0.25,
        spread=package.from_pretrained(place / "spread.zip"),
    )
    assert loaded.config == expected.config
    card = (place / "bars" / "card.md").read_text()
    for name in ("test", "fine"):
        found = training.coverage(loaded, read(place / f"{name}.npz"))
        assert f"{found.share:.1%} ± {found.standard_error:.1%}" in re.search(rf"\| {name}.npz \|.*", card)[0]
    for part in ("## Error bars", "## Coverage", "## Training", "8 × 8", "75.0%"):
        assert part in card
    assert json.loads((place / "bars" / "data.json").read_text())["data"]["inputs"] == "a"


@pytest.mark.thorough
def test_a_model_with_error_bars_is_calibrated_again_with_its_spread(place, tmp_path):
    jaxop("calibrate", place / "bars", "--data", place / "test.npz", "--to", tmp_path / "again.zip", *LEVELS)
    again, first = (package.from_pretrained(path) for path in (tmp_path / "again.zip", place / "bars"))
    assert (again.config.spread, again.config.count) == (first.config.spread, 12)
    expected = training.calibrate(first.operator, read(place / "test.npz"), alpha=0.2, delta=0.25, spread=first.spread)
    assert again.config.factor == expected.config.factor
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        card = archive.read("card.md").decode()
        assert json.loads(archive.read("data.json"))["data"]["inputs"] == "a"
    assert "Calibrated on 12 functions" in card
    assert [card.count(title) for title in ("## Error bars", "## Training", "## Coverage")] == [1, 1, 0]


def test_half_widths_lie_beside_the_predictions(place, tmp_path):
    jaxop("predict", place / "bars", place / "test.npz", "--band", "--to", tmp_path)
    samples = read(place / "test.npz")
    prediction, half_width = outputs(package.from_pretrained(place / "bars"), samples.inputs[:], samples.domain)
    with np.load(tmp_path / "test.npz") as found:
        np.testing.assert_allclose(found["y"].reshape(prediction.shape), prediction, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["half_width"].reshape(prediction.shape), half_width, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(found["x"].reshape(samples.inputs.shape), samples.inputs[:])
    jaxop("predict", place / "bars", place / "test.npz", "--to", tmp_path / "plain")
    with np.load(tmp_path / "plain" / "test.npz") as plain:
        assert "half_width" not in plain
        np.testing.assert_allclose(plain["y"].reshape(prediction.shape), prediction, rtol=1e-4, atol=1e-5)


def test_half_widths_at_points_do_not_depend_on_the_parts(place, tmp_path, monkeypatch):
    """The mean that keeps the spread positive is that over all points, in parts of 20 of the 37."""
    at = np.random.default_rng(0).random((37, 2)).astype(np.float32)
    write_npz(tmp_path / "nodes.npz", coordinates=at)
    monkeypatch.setattr(training, "predict_at", functools.partial(training.predict_at, nodes=20))
    band = ["--band", "--at", tmp_path / "nodes.npz", "--to", tmp_path / "out"]
    jaxop("predict", place / "bars", place / "fine.npz", *band)
    samples, nodes = read(place / "fine.npz"), domains.monte_carlo(at)
    model = package.from_pretrained(place / "bars")
    prediction, half_width = outputs(model, samples.inputs[:], samples.domain, nodes)
    with np.load(tmp_path / "out" / "fine.npz") as found:
        np.testing.assert_allclose(found["y"], prediction, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["half_width"], half_width, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_a_mesh_gets_half_widths_as_point_data(place, tmp_path):
    flat = np.random.default_rng(3).random((20, 2)).astype(np.float32)
    mesh = [("triangle", Delaunay(flat).simplices)]
    meshio.write_points_cells(tmp_path / "u.vtu", np.pad(flat, [(0, 0), (0, 1)]), mesh, point_data={"a": flat[:, 0]})
    jaxop("predict", place / "bars", tmp_path / "u.vtu", "--band", "--to", tmp_path / "out")
    result = meshio.read(tmp_path / "out" / "u.vtu").point_data
    given = data.read(tmp_path / "u.vtu", inputs="a", targets="a").sample(0)
    prediction, half_width = outputs(package.from_pretrained(place / "bars"), jnp.asarray(given.inputs), given.domain)
    np.testing.assert_allclose(result["b"], prediction, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["b_half_width"], half_width, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_an_evaluation_has_the_coverage(place, tmp_path, capsys, monkeypatch):
    figures = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.update({path.name: figure}))
    jaxop("evaluate", place / "bars", "--data", place / "test.npz", "--to", tmp_path)
    (row,) = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["sets"]
    model = package.from_pretrained(place / "bars")
    found = training.coverage(model, read(place / "test.npz"))
    assert row["coverage"] == found.share
    np.testing.assert_allclose(row["half_width"], found.half_width)
    assert row["rel_l2"] == pytest.approx(training.evaluate(model.operator, read(place / "test.npz")).l2.mean())
    assert "coverage" in capsys.readouterr().out
    assert "half-width" in [panel.get_title() for panel in figures["evaluation-test.npz.png"].axes]


def test_residuals_are_files_to_train_a_spread_on(place, tmp_path):
    jaxop("predict", place / "run", place / "new.npz", "--residuals", "--to", tmp_path)
    model = training.load_run(place / "run").model()
    expected = training.absolute_residuals(model, read(place / "new.npz"))
    found = data.read(tmp_path / "new.npz")
    np.testing.assert_allclose(found.targets, expected.targets, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.inputs, expected.inputs)


@pytest.mark.thorough
def test_a_spread_is_trained_by_the_pinball_loss_and_resumed(place, tmp_path, fails):
    jaxop("predict", place / "run", place / "new.npz", "--residuals", "--to", tmp_path)
    sizes = ["--model.width", "8", "--model.heads", "2", "--model.layers", "1"]
    short = ["--training.steps", "2", "--training.batch-size", "2", "--training.warmup-steps", "0"]
    data_options = ["--data.train", tmp_path / "new.npz", "--data.operator", "tno"]
    command = ["train", "custom", *data_options, *short, *sizes, "--run-dir", tmp_path / "size", "--quantile"]
    assert "training.loss='h1'" in fails(*command, "0.9", "--training.loss", "h1")
    assert "quantile" in fails(*command, "1")
    jaxop(*command, "0.9")
    run = training.load_run(tmp_path / "size")
    deviation = np.asarray(run.model().output_std[...])
    assert run.config["loss"]["function"] == "pinball_loss"
    assert run.config["loss"]["arguments"] == {"level": "0.9", "units": str(tuple(map(float, deviation)))}
    jaxop("export-model", tmp_path / "size", "--to", tmp_path / "shared")
    assert "pinball_loss" in (tmp_path / "shared" / "card.md").read_text()
    assert "quantile: 0.9 -> 0.5" in fails("resume", tmp_path / "size", "--quantile", "0.5")
    jaxop("resume", tmp_path / "size")
    jaxop(
        "calibrate",
        place / "run",
        "--spread",
        tmp_path / "size",
        "--data",
        place / "test.npz",
        *LEVELS,
        "--to",
        tmp_path / "m",
    )
    assert package.from_pretrained(tmp_path / "m").config.spread is not None


def test_functions_that_are_not_new_are_refused(place, tmp_path, fails, capsys):
    """A part of the training set is noticed by runs and models, whether or not its file is still there."""
    u, v = (np.concatenate([named(8, 8, seed=16)[name][3:4], named(9, 8, seed=5)[name]]) for name in "ab")
    write_npz(tmp_path / "mixed.npz", a=u, b=v)
    to = ["--to", tmp_path / "model", *LEVELS]
    train = (place / "train.npz").rename(tmp_path / "train.npz")
    try:
        message = fails("calibrate", place / "run", "--data", tmp_path / "mixed.npz", *to)
    finally:
        train.rename(place / "train.npz")
    assert re.search(r"mixed.npz.* 1 of 10 are in .*run, its training or validation, .*number 0", message)
    new = place / "new.npz"
    assert "19 of 19 are in --data" in fails("calibrate", place / "run", "--data", new, "--test", new, *to)
    capsys.readouterr()
    jaxop("export-model", place / "run", "--to", tmp_path / "shared.zip")
    assert "1 of 10" in fails("calibrate", tmp_path / "shared.zip", "--data", tmp_path / "mixed.npz", *to)
    for known in (place / "run", tmp_path / "shared.zip", place / "train.npz"):
        trained_on = ["--trained-on", known]
        assert "1 of 10" in fails("calibrate", place / "bars", "--data", tmp_path / "mixed.npz", *trained_on, *to)


def test_residuals_on_functions_of_the_training_are_warned_of(place, tmp_path, capsys):
    jaxop("predict", place / "run", place / "train.npz", "--residuals", "--to", tmp_path)
    assert "with 8 of the 8 functions" in " ".join(capsys.readouterr().out.split())


def test_what_is_known_of_a_model_stays_known_once_it_is_calibrated(place, tmp_path, fails):
    """Also that of --trained-on, and although the spread knows nothing."""
    known = ["--trained-on", place / "train.npz", "--data", place / "new.npz", "--to", tmp_path / "bars", *LEVELS]
    jaxop("calibrate", place / "run", "--spread", place / "spread.zip", *known)
    again = ["--data", place / "train.npz", "--to", tmp_path / "again", *LEVELS]
    assert "8 of 8" in fails("calibrate", tmp_path / "bars", *again)
    hashes = (place / "run" / "functions.npy").rename(tmp_path / "functions.npy")
    try:
        assert "8 of 8" in fails("calibrate", place / "run", *again)  # read from the file of the run
    finally:
        hashes.rename(place / "run" / "functions.npy")


def test_a_model_without_hashes_of_its_functions_is_said_not_to_be_compared(place, tmp_path, fails, capsys):
    to = ["--data", place / "new.npz", "--to", tmp_path / "model", *LEVELS]
    assert "has no hashes" in fails("calibrate", place / "run", "--trained-on", place / "spread.zip", *to)
    jaxop("calibrate", place / "spread.zip", "--inputs", "a", "--targets", "b", *to)
    said = "not compared with the functions that spread.zip was trained on"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "model" / "card.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "run", "--data", "new.npz"], "by --to"),
        (["calibrate", "run", "--to", "x"], "by --data"),
        (["calibrate", "run", "--data", "new.npz", "--to", "x", "--alpha", "1"], "--alpha"),
        (["calibrate", "run", "--data", "new.npz", "new.npz", "--to", "x"], "Several files in --data"),
        (["predict", "darcy_lognormal_fmo", "new.npz", "--to", "x"], "darcy_lognormal_fno"),
        (["predict", "run", "new.npz", "--residuals", "--mesh.data", "64"], "leave --mesh out"),
        (["predict", "run", "new.npz", "--targets", "b", "--to", "x"], "--residuals"),
        (["export-model", "bars", "--to", "x"], "without its run"),
        (["calibrate", "run", "--data", "new.npz", "--to", "bars"], "exists already"),
        (["calibrate", "run", "--data", "new.npz", "--to", "x", "--delta", "0.01"], "at least 99"),
        (["calibrate", "run", "--data", "new.npz", "--to", "x", "--inputs", "z"], "'z'"),
        (["predict", "run", "new.npz", "--band"], "jaxop calibrate"),
        (["predict", "run", "new.npz", "--residuals", "--at", "new.npz"], "leave --at and --band out"),
        (["export", "bars", "--to", "x.zip"], "Calibrated"),
    ],
)
def test_what_cannot_be_done_is_named(arguments, message, place, fails):
    known = {path.name: path for path in place.iterdir()} | {name: place / name for name in ("x", "x.zip")}
    assert message in fails(*(known.get(argument, argument) for argument in arguments))
