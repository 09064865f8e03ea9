"""Constraints from the command line: they hold exactly after training, and are recorded, resumed and loaded."""

import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import jaxop as package
from jaxop import data, domains, experiments, operators, training
from jaxop.experiments import plots
from tests.experiments.conftest import jaxop, write_npz

pytestmark = [pytest.mark.optax]

SIZES = ["--model.width", "8", "--model.heads", "2", "--model.layers", "1"]
SHORT = ["--training.steps", "4", "--training.batch-size", "2", "--training.warmup-steps", "0"]
CHECKPOINTS = ["--training.checkpoint-every", "2", "--training.eval-every", "2"]


@pytest.fixture(autouse=True)
def no_rendering(monkeypatch):
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: path.touch())


@pytest.fixture
def file(tmp_path):
    """Pairs on a grid with nodes on its sides, from 0 to 2: two channels in, of which one is 0 in the middle."""
    grid = domains.box((6, 6), upper=(2.0, 2.0), rule="trapezoid")
    random = np.random.default_rng(0)
    u = random.normal(size=(10, 36, 2)).astype(np.float32)
    u[:, 14:16, 1] = 0.0
    values = {"x": u.reshape(10, 6, 6, 2), "y": (3 + u[..., :1]).reshape(10, 6, 6, 1)}
    return write_npz(tmp_path / "pairs.npz", **values), u, grid


def train(path, to, *options):
    data_options = ["--data.train", path, "--data.operator", "tno", "--data.rule", "trapezoid"]
    box = ["--data.upper", "2", "2"]
    jaxop("train", "custom", *data_options, *box, *SIZES, *SHORT, *CHECKPOINTS, "--run-dir", to, *options)
    return training.load_run(to)


@jax.jit
def call(model, values, domain):
    return model(values, domain)


def outputs(run, u, domain):
    return np.asarray(call(run.model(), u, domain))


def on_sides(grid):
    x = np.asarray(grid.points)
    return ((x == 0) | (x == 2)).any(axis=1)


def test_values_on_all_sides_are_exact_in_the_units_of_the_data(file, tmp_path, capsys):
    path, u, grid = file
    run = train(path, tmp_path / "run", "--constraints.boundary", "2.5")
    said = capsys.readouterr().out
    assert "boundary (2.5,)" in said
    assert "tno · run" in said
    found, edge = outputs(run, u, grid), on_sides(grid)
    assert (found[:, edge] == 2.5).all()
    assert (found[:, ~edge] != 2.5).any()
    assert run.model().config.factor.upper == (2.0, 2.0)
    jaxop("export-model", tmp_path / "run", "--to", tmp_path / "model")
    loaded = package.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(call(loaded, u, grid)[:, edge], 2.5)
    # what the operator inside learns is the difference from the prescribed value
    plain = data.standardization(data.read(path, rule="trapezoid", upper=(2.0, 2.0), dim=2))["output_mean"]
    np.testing.assert_allclose(loaded.output_mean[...], plain - 2.5, atol=0.05)


@pytest.mark.thorough
def test_a_run_with_constraints_is_calibrated_and_is_a_spread(file, tmp_path):
    path, u, grid = file
    run = train(path, tmp_path / "run", "--constraints.boundary", "2.5")
    random = np.random.default_rng(5)
    new = {"x": random.normal(size=(9, 6, 6, 2)).astype(np.float32), "y": random.normal(size=(9, 6, 6, 1))}
    write_npz(tmp_path / "new.npz", x=new["x"], y=new["y"].astype(np.float32))
    levels = ["--alpha", "0.2", "--delta", "0.2"]
    to = ["--data", tmp_path / "new.npz", *levels, "--to", tmp_path / "bars"]
    jaxop("calibrate", tmp_path / "run", "--spread", tmp_path / "run", *to)
    loaded = package.from_pretrained(tmp_path / "bars")
    prediction, half_width = call(loaded, u, grid)
    np.testing.assert_array_equal(np.asarray(prediction), outputs(run, u, grid))
    assert half_width.shape == prediction.shape
    assert (np.asarray(prediction)[:, on_sides(grid)] == 2.5).all()


@pytest.mark.thorough
def test_a_run_with_constraints_is_resumed_bit_for_bit(file, tmp_path):
    path, u, grid = file
    sides = ["--constraints.sides", "0", "lower", "0", "upper"]
    run = train(path, tmp_path / "run", "--constraints.boundary", "0", *sides, "--constraints.group", "flips")
    expected, x = outputs(run, u, grid), np.asarray(grid.points)[:, 0]
    assert (expected[:, (x == 0) | (x == 2)] == 0).all()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004")
    assert run.step("last") == 2
    jaxop("resume", tmp_path / "run")
    assert run.step("last") == 4
    np.testing.assert_array_equal(outputs(training.load_run(tmp_path / "run"), u, grid), expected)


@pytest.mark.thorough
def test_a_mask_and_the_values_there_are_channels_of_the_input(file, tmp_path):
    path, u, grid = file
    run = train(path, tmp_path / "run", "--constraints.boundary-from", "0", "--constraints.mask", "1")
    np.testing.assert_array_equal(outputs(run, u, grid)[:, 14:16, 0], u[:, 14:16, 0])
    jaxop("predict", tmp_path / "run", path, "--to", tmp_path / "out")
    with np.load(tmp_path / "out" / "pairs.npz") as found:
        np.testing.assert_array_equal(found["y"].reshape(10, 36)[:, 14:16], u[:, 14:16, 0])
    jaxop("export", tmp_path / "run", "--to", tmp_path / "program.zip")


@pytest.mark.thorough
def test_the_integral_is_that_of_a_channel_and_turns_commute(file, tmp_path):
    path, u, grid = file
    options = ["--constraints.integrals-from", "0", "--constraints.group", "all"]
    run = train(path, tmp_path / "run", *options)
    found = outputs(run, u, grid)
    weights = np.asarray(grid.weights)
    np.testing.assert_allclose(weights @ found[..., 0].T, weights @ u[..., 0].T, atol=2e-5)
    turned = np.rot90(u.reshape(10, 6, 6, 2), axes=(1, 2)).reshape(10, 36, 2)
    expected = np.rot90(found.reshape(10, 6, 6), axes=(1, 2)).reshape(10, 36)
    np.testing.assert_allclose(outputs(run, turned, grid)[..., 0], expected, atol=1e-4)


@pytest.mark.thorough
def test_a_stepper_keeps_boundary_values_or_integrals(tmp_path):
    grid = domains.interval(8, rule="trapezoid")
    states = np.random.default_rng(0).normal(size=(4, 6, 8, 1)).astype(np.float32)
    data.save(tmp_path / "series.npz", data.Trajectories(states, grid, np.arange(6.0)))
    run = ["--data.train", tmp_path / "series.npz", "--data.operator", "tno"]
    sizes = [*SIZES, *SHORT]
    for option, held in (("boundary", [0, -1]), ("integrals", None)):
        to = tmp_path / option
        jaxop("train", "series", *run, *sizes, f"--constraints.{option}", "0", "--run-dir", to)
        stepper = training.load_run(to).model()
        after, before = np.asarray(call(stepper, states[0, :1], grid))[:, 0], states[0, 0, :, 0]
        assert np.abs(after - before).max() > 1e-3
        if held is not None:
            np.testing.assert_array_equal(after[held], before[held])
        else:
            np.testing.assert_allclose(np.asarray(grid.weights) @ (after - before), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--constraints.boundary", "0", "--constraints.integrals", "1"], "cannot both hold"),
        (["--constraints.boundary", "0", "--constraints.boundary-from", "1"], "exclude each other"),
        (["--constraints.sides", "0", "lower"], "constraints.sides needs the values"),
        (["--constraints.input-vectors", "0", "1"], "needs constraints.group"),
        (["--constraints.group", "turn"], "turns"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        experiments.cli.main(["train", "custom", "--data.train", "no.npz", *options])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


TNO = operators.TransformerNeuralOperatorConfig(2, 2, dim=2, width=8, heads=2, layers=1)
SQUARE = domains.box((6, 6), rule="trapezoid")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"boundary": (0.0, 1.0, 2.0)}, "constraints.boundary must have 1 or 2 entries"),
        ({"boundary_from": (2,)}, "constraints.boundary_from must be channels of the input, 0 to 1"),
        ({"boundary": (0.0,), "mask": (-1,)}, "constraints.mask must be channels of the input"),
        ({"integrals_from": (0,)}, "constraints.integrals_from must have 2 entries"),
        ({"boundary": (0.0,), "sides": ((2, "lower"),)}, "constraints.sides must be pairs of an axis, 0 to 1"),
        ({"boundary": (0.0,), "lower": (0.0,)}, "constraints.lower must have 2 coordinates"),
        ({"group": "all", "input_vectors": (0,)}, "constraints.input_vectors must be 2 channels for each vector"),
        ({"boundary": (0.0,), "sides": ((0, "lower"),), "group": "flips"}, "are not mapped to themselves"),
        ({"boundary": (0.0,), "sides": ((0, "lower"), (0, "upper")), "group": "all"}, "are not mapped to themselves"),
        ({"boundary_from": (0,), "group": "flips", "input_vectors": (0, 1)}, "must not be components of vectors"),
        ({"boundary": (0.0,), "mask": (0, 1), "group": "all", "output_vectors": (0, 1)}, "mask must be one channel"),
        ({"integrals": (1.0, 0.0), "group": "flips", "output_vectors": (0, 1)}, "output_vectors turn with the grid"),
    ],
)
def test_what_does_not_fit_the_operator_is_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        experiments.Constraints(**settings).around(TNO, SQUARE)


def test_symmetries_hold_beside_prescribed_values_on_sides_that_they_keep():
    constraints = experiments.Constraints(boundary=(1.0, 2.0), group="all")
    operator = operators.build(constraints.around(TNO, SQUARE), rngs=nnx.Rngs(0))
    u = np.random.default_rng(0).normal(size=(36, 2)).astype(np.float32)
    found, turned = (
        np.asarray(call(operator, np.ascontiguousarray(v), SQUARE)).reshape(6, 6, 2)
        for v in (u, np.rot90(u.reshape(6, 6, 2)).reshape(36, 2))
    )
    np.testing.assert_allclose(turned, np.rot90(found), atol=1e-4)
    np.testing.assert_array_equal(found[0], np.broadcast_to(np.float32([1, 2]), (6, 2)))


@pytest.mark.usefixtures("unchecked")
def test_a_box_that_is_not_known_is_asked_for():
    tno = operators.TransformerNeuralOperatorConfig(1, 1, dim=2, width=8, heads=2, layers=1)
    cloud = domains.monte_carlo(np.random.default_rng(0).random((9, 2), np.float32))
    constraints = experiments.Constraints(boundary=(0.0,))
    with pytest.raises(ValueError, match=r"constraints\.lower and constraints\.upper must be given"):
        constraints.around(tno, cloud)
    with pytest.raises(ValueError, match="axis 0 is periodic"):
        constraints.around(tno, domains.box((6, 6), rule="periodic"))
    given = experiments.Constraints(boundary=(0.0,), lower=(0.0, 0.0), upper=(1.0, 1.0))
    assert given.around(tno, cloud).factor.upper == (1.0, 1.0)
    assert "no node of the training" in given.note(given.around(tno, cloud), cloud)
    assert constraints.note(constraints.around(tno, SQUARE), SQUARE) == ""
    assert experiments.Constraints().around(tno, cloud) is tno
    with pytest.raises(NotImplementedError, match="BoundaryOperator needs all nodes of a function on one device"):
        constraints.around(tno, SQUARE).check_shares_nodes(2)
    line = operators.TransformerNeuralOperatorConfig(1, 1, width=8, heads=2, layers=1)
    uneven = domains.from_samples(np.float32([0.0, 0.1, 0.3, 1.5]))
    assert constraints.around(line, uneven).factor.upper == (1.5,)
    for wrong, output in (
        ({"boundary": (1.0,)}, "delta"),
        ({"integrals_from": (0,)}, "delta"),
        ({"boundary": (0.0,), "mask": (0,)}, "delta"),
        ({"boundary": (0.0,)}, "state"),
        ({"group": "all", "input_vectors": (0, 1)}, "delta"),
    ):
        with pytest.raises(ValueError, match="constraints"):
            experiments.Constraints(**wrong).check_changes(output)


def test_points_beyond_a_prescribed_side_are_refused():
    anywhere = operators.TransformerNeuralOperatorConfig(1, 1, width=8, heads=2, layers=1, decoder_layers=1)
    line = domains.interval(9)
    operator = operators.build(experiments.Constraints(boundary=(0.0,)).around(anywhere, line), rngs=nnx.Rngs(0))
    u = np.ones((2, 9, 1), np.float32)
    with pytest.raises(ValueError, match="upper side across axis 0"):
        training.predict_at(operator, data.Samples(u, u, line), domains.interval(5, upper=1.1))
    with pytest.raises(ValueError, match=r"is at 1\.00001, but the domain ends at 1"):
        operators.BoxSidesConfig(upper=(1.00001,)).check(line, whole=True)
