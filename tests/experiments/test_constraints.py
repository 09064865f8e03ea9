"""Constraints from the command line: they hold exactly after training, and are recorded, resumed and loaded."""

import jax
import numpy as np
import pytest

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


@pytest.mark.thorough
def test_a_run_with_constraints_is_resumed_bit_for_bit(file, tmp_path):
    path, u, grid = file
    options = ["--constraints.boundary", "0", "--constraints.sides", "0", "lower", "--constraints.group", "flips"]
    run = train(path, tmp_path / "run", *options)
    expected = outputs(run, u, grid)
    assert (expected[:, np.asarray(grid.points)[:, 0] == 0] == 0).all()
    for name in ("step_000003", "step_000004"):
        for folder in (tmp_path / "run" / "checkpoints").glob(f"{name}*"):
            folder.rename(tmp_path / name)
    jaxop("resume", tmp_path / "run")
    np.testing.assert_array_equal(outputs(training.load_run(tmp_path / "run"), u, grid), expected)


@pytest.mark.thorough
def test_a_mask_and_the_values_there_are_channels_of_the_input(file, tmp_path):
    path, u, grid = file
    run = train(path, tmp_path / "run", "--constraints.boundary-from", "0", "--constraints.mask", "1")
    np.testing.assert_array_equal(outputs(run, u, grid)[:, 14:16, 0], u[:, 14:16, 0])


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


@pytest.mark.usefixtures("unchecked")
def test_a_box_that_is_not_known_is_asked_for():
    tno = operators.TransformerNeuralOperatorConfig(1, 1, dim=2, width=8, heads=2, layers=1)
    cloud = domains.monte_carlo(np.random.default_rng(0).random((9, 2), np.float32))
    constraints = experiments.Constraints(boundary=(0.0,))
    with pytest.raises(ValueError, match=r"constraints\.lower and constraints\.upper must be given"):
        constraints.around(tno, cloud)
    given = experiments.Constraints(boundary=(0.0,), lower=(0.0, 0.0), upper=(1.0, 1.0))
    assert given.around(tno, cloud).factor.upper == (1.0, 1.0)
    assert experiments.Constraints().around(tno, cloud) is tno
    for wrong, output in (
        ({"boundary": (1.0,)}, "delta"),
        ({"integrals_from": (0,)}, "delta"),
        ({"boundary": (0.0,)}, "state"),
        ({"group": "all", "input_vectors": (0, 1)}, "delta"),
    ):
        with pytest.raises(ValueError, match="constraints"):
            experiments.Constraints(**wrong).check_changes(output)
