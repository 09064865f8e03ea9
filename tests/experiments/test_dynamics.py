"""Time series from the command line: training, rollouts of the report, forecasts, and wrong inputs."""

import csv
import dataclasses
import inspect
import json
import shutil

import numpy as np
import pytest

import jaxop as package
from jaxop import data, domains, dynamics, experiments, operators, training
from jaxop.experiments import cli, load_recipe, plots, ready_made
from tests.experiments.conftest import SHORT, jaxop, parsed, without_type_checks, write_npz

pytestmark = pytest.mark.optax

NAMES = [name for name in ready_made() if isinstance(load_recipe(name).experiment, experiments.DynamicsExperiment)]
SMALL = ["--model.width", "4", "--model.layers", "1", "--model.projection", "4", "--model.modes", "4"]
EVERY = ["--training.checkpoint-every", "1", "--training.keep-last", "5"]
NODES, DT = 16, 0.5
BOX = {"rule": np.array(["periodic"]), "lower": np.zeros(1), "upper": np.ones(1)}


def heat(
    count: int, times: int, *, nodes: int = NODES, seed: int = 0, viscosity: float = 0.05
) -> dict[str, np.ndarray]:
    """Exact solutions of u_t = ν u_xx on a circle of length 1, two channels of two waves each."""
    x, t = np.arange(nodes) / nodes, DT * np.arange(times)
    amplitude = np.random.default_rng(seed).normal(size=(count, 1, 1, 2, 2))
    k = 2 * np.pi * np.array([1, 2])
    decay = np.exp(-viscosity * k**2 * t[:, None] / 10)[None, :, None, None, :]
    waves = np.cos(k * x[:, None])[None, None, :, None, :]
    return {"states": (amplitude * decay * waves).sum(axis=-1).astype(np.float32), "times": t}


@pytest.fixture(scope="session")
def series(tmp_path_factory):
    """A folder with files of trajectories."""
    folder = tmp_path_factory.mktemp("series")
    write_npz(folder / "heat.npz", **BOX, **heat(12, 7))
    write_npz(folder / "long.npz", **BOX, **heat(2, 13, seed=1))
    write_npz(folder / "fine.npz", **BOX, **heat(2, 5, nodes=32, seed=2))
    return folder


def command(file, directory, *options):
    """Arguments of a tiny run on a file."""
    return ["series", "--data.train", str(file), "--run-dir", str(directory), *SHORT, *options, "model:fno", *SMALL]


@pytest.fixture(scope="session")
def stepped(series, tmp_path_factory):
    """The run directory of an FNO that was trained for three steps on heat.npz."""
    directory = tmp_path_factory.mktemp("stepped") / "fno"
    with without_type_checks():
        jaxop("train", *command(series / "heat.npz", directory, "--stepping.steps", "2", *EVERY))
    return directory


@pytest.fixture(autouse=True)
def no_rendering(stepped, monkeypatch):
    """Figures are drawn, but files of theirs stay empty: only those of the shared run are rendered."""
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: path.touch())


@pytest.fixture
def fails(capsys):
    def run(*arguments) -> str:
        assert cli.main([str(argument) for argument in arguments]) == 2
        message = capsys.readouterr().err
        assert "error: " in message
        assert "Traceback" not in message
        return message

    return run


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", NAMES)
def test_a_ready_made_experiment_parses_as_named(name):
    file = ["--data.train", "a.npz"] if name == "series" else []
    chosen = ["--stepping.steps", "3", "--stepping.curriculum", "0", "1", "50", "3", "--data.seed", "3"]
    experiment = parsed([name, *file, *chosen])
    assert (experiment.stepping.steps, experiment.stepping.curriculum) == (3, ((0, 1), (50, 3)))
    assert experiment.data.seed == 3
    assert experiment.model.operator in operators.CONFIGS


def test_the_options_are_explained(capsys):
    for arguments, shown in (
        (["ks_tno"], ("--data.hyperdiffusion", "--data.test-times", "--stepping.noise", "--model.width")),
        (["series"], ("--data.held-out", "--stepping.history", "model:tno")),
    ):
        with pytest.raises(SystemExit):
            parsed([*arguments, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert all(option in text for option in shown)
        assert "stop" in text or "gradient" in text  # the words on an option of how a step is learnt
    assert not hasattr(parsed(["darcy_fno"]), "stepping")


def test_a_run_leaves_a_table_over_lead_times_and_pictures(stepped, series):
    record = json.loads((stepped / "evaluation" / "test.json").read_text())
    (held_out,) = record["sets"]
    assert (held_out["set"], held_out["samples"], held_out["steps"]) == ("held out", 2, 6)
    assert held_out["blown_up"] == []
    assert set(held_out["models"]) == {"fno", "persistence"}
    assert set(held_out["models"]["fno"]["nrmse"]) == {"1", "6"}

    _, numbers = experiments.sets.divided(12, 0.1, 0, "trajectories")
    states = heat(12, 7)["states"][numbers]
    first, last = states[:, 0], states[:, 6]
    expected = (np.linalg.norm(first - last, axis=1) / np.linalg.norm(last, axis=1)).sum(axis=1).mean()
    assert held_out["models"]["persistence"]["nrmse"]["6"] == pytest.approx(expected, rel=1e-5)

    with (stepped / "evaluation" / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {
        *("set", "model", "metric", "step", "time", "mean", "lower_quartile", "median", "upper_quartile"),
    }
    (row,) = [row for row in rows if (row["model"], row["metric"], row["step"]) == ("persistence", "nrmse", "6")]
    assert float(row["mean"]) == pytest.approx(expected, rel=1e-5)
    assert float(row["time"]) == pytest.approx(6 * DT)
    pictures = {path.name for path in (stepped / "figures").iterdir()}
    kinds = {f"test-held-out-{kind}.png" for kind in ("nrmse", "correlation", "states", "spectrum")}
    assert kinds | {"learning-curves.png"} <= pictures
    assert all((stepped / "figures" / name).stat().st_size > 10_000 for name in kinds)

    run = training.load_run(stepped)
    assert run.config["stepping"]["steps"] == 2
    assert run.config["data"]["train"] == str(series / "heat.npz")
    assert run.config["model"]["model"] == "fno"
    assert {"held out/loss", "held out/lead_2"} <= set(run.metrics[-1])
    assert isinstance(run.model(), dynamics.Stepper)


@pytest.mark.thorough
def test_a_run_that_was_cut_off_ends_with_the_same_bits(stepped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stepped, run)
    whole = training.load_run(run).model(checkpoint="last")
    shutil.rmtree(run / "checkpoints" / "step_00000003")
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    jaxop("resume", run)
    again = training.load_run(run).model(checkpoint="last")
    states = heat(1, 1)["states"][:, 0]
    grid = domains.interval(NODES, rule="periodic")
    np.testing.assert_array_equal(again(states, grid), whole(states, grid))


@pytest.mark.parametrize(
    ("option", "value"), [("stepping.noise", "0.5"), ("stepping.steps", "3"), ("stepping.output", "state")]
)
def test_a_run_is_not_resumed_with_another_step(option, value, fails, stepped):
    assert option in fails("resume", stepped, f"--{option}", value)


@pytest.mark.thorough
def test_other_files_grids_and_longer_rollouts_are_evaluated(stepped, series, capsys):
    files = [str(series / name) for name in ("long.npz", "fine.npz")]
    jaxop("evaluate", stepped, "--data", *files, "--steps", "4", "--name", "other", "--animation", "gif")
    sets = json.loads((stepped / "evaluation" / "other.json").read_text())["sets"]
    assert [(one["set"], one["samples"], one["steps"]) for one in sets] == [("long.npz", 4, 4), ("fine.npz", 2, 4)]
    assert (stepped / "figures" / "other-fine.npz.gif").read_bytes()[:6] == b"GIF89a"
    assert "persistence" in capsys.readouterr().out


def test_forecasts_are_trajectories_that_go_on_from_the_last_states(stepped, series, tmp_path):
    jaxop("predict", stepped, series / "long.npz", "--steps", "6", "--every", "3", "--to", tmp_path)
    found = data.read_trajectories(tmp_path / "long.npz")
    known = heat(2, 13, seed=1)
    np.testing.assert_array_equal(found.states[:, 0], known["states"][:, -1])
    np.testing.assert_allclose(found.times, known["times"][-1] + DT * np.array([0, 3, 6]), rtol=1e-6)
    stepper = training.load_run(stepped).model()
    rolled = dynamics.rollout(stepper, known["states"][:, -1:], 6, domain=found.domain, every=3)
    np.testing.assert_allclose(found.states[:, 1:], rolled.states, rtol=1e-6)
    assert found.domain.rules == ("periodic",)


def test_states_without_times_start_at_zero(stepped, tmp_path):
    np.savez(tmp_path / "start.npz", u=heat(3, 1)["states"], **BOX)
    jaxop("predict", stepped, tmp_path / "start.npz", "--states", "u", "--steps", "2", "--to", tmp_path / "new")
    found = data.read_trajectories(tmp_path / "new" / "start.npz")
    np.testing.assert_allclose(found.times, [0, DT, 2 * DT], rtol=1e-6)


def test_a_forecast_that_blows_up_loses_nothing(stepped, tmp_path, fails):
    states = heat(3, 1)["states"]
    states[1] *= 1e38
    write_npz(tmp_path / "start.npz", states=states, times=[2.0], **BOX)
    message = fails("predict", stepped, tmp_path / "start.npz", "--steps", "4", "--to", tmp_path / "new")
    assert "sample 1 is not finite from step 1 on, at time 2.5, in channel 0" in message
    assert data.read_trajectories(tmp_path / "new" / "start.npz").states.shape == (2, 5, NODES, 2)
    before = data.read_trajectories(tmp_path / "new" / "start-sample1.npz")
    np.testing.assert_array_equal(before.states[:, 0], states[1:2, 0])


@pytest.mark.thorough
def test_a_rollout_that_blows_up_is_said_and_the_others_are_reported(stepped, tmp_path, capsys):
    arrays = heat(3, 4)
    arrays["states"][2] *= 1e38
    write_npz(tmp_path / "huge.npz", **BOX, **arrays)
    jaxop("evaluate", stepped, "--data", tmp_path / "huge.npz", "--name", "huge")
    shown = " ".join(capsys.readouterr().out.split())
    assert "huge.npz: the rollout of sample 2 is not finite from step 1 on, at time 0.5, in channel 0" in shown
    (one,) = json.loads((stepped / "evaluation" / "huge.json").read_text())["sets"]
    assert one["blown_up"] == [{"sample": 2, "step": 1, "time": 0.5, "channel": 0}]
    assert one["models"]["fno"]["nrmse"]["1"] is None
    assert one["median_sample"] != 2


@pytest.mark.thorough
def test_the_stepper_is_exported_with_its_errors(stepped, tmp_path):
    jaxop("export-model", stepped, "--to", tmp_path / "model")
    stepper = package.from_pretrained(tmp_path / "model")
    states, grid = heat(1, 1)["states"][:, 0], domains.interval(NODES, rule="periodic")
    np.testing.assert_array_equal(stepper(states, grid), training.load_run(stepped).model()(states, grid))
    card = (tmp_path / "model" / "card.md").read_text()
    assert "| held out | 2 | persistence |" in card
    assert "(6)" in card


def test_one_long_record_is_split_by_its_times(tmp_path):
    arrays = heat(1, 20)
    write_npz(tmp_path / "one.npz", **BOX, **arrays)
    sets = experiments.SeriesData(tmp_path / "one.npz", held_out=0.25, test_times=2).load(tmp_path)
    np.testing.assert_array_equal(sets.train.times, arrays["times"][:15])
    np.testing.assert_array_equal(sets.valid["held out"].times, arrays["times"][15:])
    test = sets.test["held out"]  # two pieces of two times, the last time left out
    np.testing.assert_array_equal(test.times, arrays["times"][15:19].reshape(2, 2))
    np.testing.assert_array_equal(
        [test.frames(i, slice(None)) for i in range(2)], arrays["states"][0, 15:19].reshape(2, 2, NODES, 2)
    )


@pytest.fixture
def waves(monkeypatch):
    """Burgers data whose equation is not solved: waves of random phase that move; the calls are returned."""
    calls = []

    def move(samples, *, first, times, dt, seed, nodes, **constants):
        calls.append({"first": first, "nodes": nodes} | constants)
        x, t = np.arange(nodes) / nodes, dt * np.arange(times)
        phase = np.array([np.random.default_rng((seed, first + i)).random() for i in range(samples)])
        u = np.cos(2 * np.pi * (x - t[:, None] - phase[:, None, None]))[..., None].astype(np.float32)
        return data.Trajectories(u, domains.interval(nodes, rule="periodic"), t)

    monkeypatch.setattr(experiments.BurgersData, "_generate", staticmethod(move))
    return calls


def test_generated_trajectories_are_kept_and_sets_do_not_share_any(waves, tmp_path):
    problem = experiments.BurgersData(
        *(2, 1, 2), times=4, test_times=7, nodes=16, reference=32, grids=(24, "dt=0.3"), viscosity=(1e-4, 1e-3)
    )
    sets = problem.load(tmp_path)
    assert [call["viscosity"] for call in waves] == [(1e-4, 1e-3)] * 3
    assert {call["nodes"] for call in waves} == {32}
    shapes = {name: (found.steps, found.states.shape[2]) for name, found in sets.test.items()}
    assert shapes == {"16": (7, 16), "24": (7, 24), "dt=0.3": (3, 16)}
    fine, slow = problem.at(["32", "dt=0.3"], tmp_path).values()
    np.testing.assert_array_equal(sets.test["16"].states, fine.states[:, :, ::2])
    np.testing.assert_array_equal(slow.states, sets.test["16"].states[:, ::3])
    np.testing.assert_array_equal(slow.times, sets.test["16"].times[::3])
    starts = np.concatenate([part.states[:, 0] for part in (sets.train, sets.valid["valid"], sets.test["16"])])
    assert len(np.unique(starts, axis=0)) == 5
    assert len(waves) == 3  # everything else came from the cache
    assert problem.lasting(9, 2).test_times == 11


@pytest.mark.parametrize("grid", ["dt=0.07", "dt=fast", "dt=0", "0", "x", "dt=9"])
def test_grids_that_do_not_exist_are_refused(grid, waves, tmp_path):
    problem = experiments.BurgersData(*(1, 1, 1), test_times=3, nodes=16)
    with pytest.raises(ValueError, match=r"grids must be numbers of nodes|raise test_times"):
        problem.at([grid], tmp_path)


@pytest.mark.thorough
def test_a_ready_made_experiment_runs_and_is_rolled_out_for_longer(waves, tmp_path):
    size = ["--data.samples", "4", "--data.valid-samples", "1", "--data.test-samples", "2", "--data.test-times", "5"]
    where = ["--cache", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    grid = ["--data.nodes", "16", "--data.reference", "None", "--data.grids"]
    with pytest.warns(UserWarning, match=r"dt = 0\.2 is not the step 0\.1"):
        jaxop("train", "burgers_fno", *size, *where, *grid, "dt=0.2", *SHORT, *SMALL)
    sets = json.loads((tmp_path / "run" / "evaluation" / "test.json").read_text())["sets"]
    assert [(one["set"], one["grid"], one["steps"]) for one in sets] == [("16", "16", 4), ("dt=0.2", "16", 2)]
    jaxop("evaluate", tmp_path / "run", "--steps", "7", "--grids", "16", "--cache", tmp_path)
    (one,) = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())["sets"]
    assert one["steps"] == 7


@pytest.mark.parametrize("kind", experiments.evolutions.EVOLUTIONS, ids=lambda kind: kind.name)
def test_settings_of_an_equation_are_arguments_of_its_solver(kind):
    problem = kind(nodes=32) if "nodes" in vars(kind()) else kind()
    given = inspect.signature(kind._generate).parameters
    own = problem._arguments()
    assert own.keys() <= given.keys()
    defaults = {name: given[name].default for name in own if name != "nodes"}
    assert {name: own[name] for name in defaults} == defaults
    assert kind().dt == given["dt"].default


@pytest.mark.thorough
@pytest.mark.parametrize("kind", experiments.evolutions.EVOLUTIONS, ids=lambda kind: kind.name)
def test_every_equation_is_solved(kind, tmp_path):
    pytest.importorskip("exponax")
    sizes = {
        "samples": 1,
        "valid_samples": 1,
        "test_samples": 1,
        "times": 2,
        "test_times": 3,
        "warmup": 0,
    }
    fields = {field.name for field in dataclasses.fields(kind)}
    small = {name: value for name, value in sizes.items() if name in fields}
    sets = kind(**small).load(tmp_path)
    assert sets.train.steps == 2
    assert [found.steps for found in sets.test.values()] == [3]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (
            {"times": np.array([0, 1, 2, 2, 3, 4, 5.0])},
            [],
            "times must be strictly increasing, but times[3] = 2.0 repeats",
        ),
        ({}, ["--stepping.history", "4", "--stepping.steps", "4"], "spans 8"),
        ({"parameters": np.ones((3, 1))}, [], "parameters must have shape"),
        ({}, ["--training.loss", "cross_entropy"], "training.loss"),
        ({}, ["--stepping.curriculum", "5", "1"], "curriculum must begin"),
        ({}, ["--mesh.domain", "1", "--data.held-out", "0"], "held_out=0.0 of the 12 trajectories"),
    ],
)
@pytest.mark.sample(2)
def test_wrong_series_are_refused_before_a_run_is_made(arrays, options, message, fails, tmp_path):
    write_npz(tmp_path / "bad.npz", **BOX, **(heat(12, 7) | arrays))
    assert message in fails("train", *command(tmp_path / "bad.npz", tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stepping.weights", "1", "2", "3"], "weights must be one number for each of steps=1"),
        (["--stepping.noise", "-1"], "noise must be at least 0"),
        (["--stepping.valid-steps", "2", "--stepping.weights", "1"], "valid_steps must be steps=1"),
        (
            ["--stepping.steps", "2", "--stepping.weights", "0", "1", "--stepping.curriculum", "0", "1"],
            "weights=(0.0, 1.0) leave no loss at a stage of curriculum=((0, 1),)",
        ),
        (["--stepping.output", "rate"], "output='rate' is unknown"),
    ],
)
def test_wrong_settings_of_a_step_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(["ks_fno", *options])
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert message in " ".join((shown.out + shown.err).replace("│", " ").split())


def test_a_mask_that_changes_is_refused(fails, tmp_path):
    arrays = heat(12, 7)
    arrays["states"][:, :3, 2] = np.nan
    write_npz(tmp_path / "gaps.npz", **BOX, **arrays)
    message = fails("train", *command(tmp_path / "gaps.npz", tmp_path / "run"))
    assert "node 2 has a value in channel 0 at time number 3 of trajectory 0" in message


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"states": np.ones((2, 4, NODES, 3), np.float32)}, [], "3 channels, but the stepper was made for 2"),
        ({"parameters": np.ones((2, 1))}, [], "1 parameters, but the stepper was made for 0"),
        ({}, ["--steps", "9"], "fewer than the 10 of a rollout"),
        ({}, ["--inputs", "x"], "--inputs is for runs on pairs of functions"),
        ({}, ["--grids", "32"], "--grids belongs to generated problems"),
        ({}, ["--steps", "0"], "steps"),
    ],
)
def test_sets_that_do_not_fit_the_stepper_are_refused(arrays, options, message, fails, stepped, tmp_path):
    write_npz(tmp_path / "other.npz", **BOX, **(heat(2, 4) | arrays))
    assert message in fails("evaluate", stepped, "--data", tmp_path / "other.npz", *options)


def test_options_of_the_other_kind_of_runs_are_refused(fails, stepped, trained, series, files):
    assert "give the number of steps by --steps" in fails("predict", stepped, series / "long.npz")
    assert "--inputs is for runs on pairs" in fails("predict", stepped, series / "long.npz", "--inputs", "x")
    assert "--steps is for runs on trajectories" in fails("predict", trained, files / "b.npz", "--steps", "3")
    assert "--animation is for runs on trajectories" in fails("evaluate", trained, "--animation", "gif")
    assert "every must divide" in fails("predict", stepped, series / "long.npz", "--steps", "3", "--every", "2")


def test_a_step_that_was_not_trained_is_refused(stepped, series, tmp_path, fails):
    arguments = ("predict", stepped, series / "long.npz", "--steps", "1", "--to", tmp_path / "new", "--dt")
    message = fails(*arguments, "0.25")
    assert "--dt 0.25 is not the step 0.5 that the stepper was trained on, the only one that it makes" in message
    assert "--stepping.strides 1 2" in message
    assert not (tmp_path / "new").exists()
    jaxop(*arguments, "0.5")
    assert data.read_trajectories(tmp_path / "new" / "long.npz").times.tolist() == [6.0, 6.5]


@pytest.mark.thorough
def test_a_stepper_without_its_run_predicts_and_is_evaluated(stepped, series, tmp_path, fails):
    model = tmp_path / "model.zip"
    jaxop("export-model", stepped, "--to", model)
    renamed = heat(2, 5, seed=1)
    write_npz(tmp_path / "u.npz", u=renamed["states"], t=renamed["times"], **BOX)
    names = ("--states", "u", "--times", "t")
    jaxop("predict", model, tmp_path / "u.npz", *names, "--steps", "2", "--to", tmp_path / "new")
    jaxop("predict", stepped, tmp_path / "u.npz", *names, "--steps", "2", "--to", tmp_path / "run")
    found, expected = (data.read_trajectories(tmp_path / place / "u.npz") for place in ("new", "run"))
    np.testing.assert_array_equal(found.states, expected.states)
    assert found.times[0] == renamed["times"][-1]
    jaxop("evaluate", model, "--data", tmp_path / "u.npz", *names, "--name", "own", "--to", tmp_path / "table")
    record = json.loads((tmp_path / "table" / "evaluation" / "own.json").read_text())
    assert (record["run"], record["sets"][0]["steps"]) == (str(model), 4)
    assert "steps from nodes to the same nodes" in fails(
        "predict", model, tmp_path / "u.npz", "--steps", "2", "--to", tmp_path / "at", "--at", tmp_path / "u.npz"
    )


def test_states_without_times_are_read_at_multiples_of_the_step(tmp_path):
    """Also if times had a name of their own in the training file."""
    arrays = heat(2, 3)
    np.savez(tmp_path / "a.npz", u=arrays["states"])
    found = experiments.SeriesData(tmp_path / "train.npz", states="u", times="t", dim=1).read(
        tmp_path / "a.npz", dt=0.5
    )
    assert found.times.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.thorough
def test_history_parameters_and_several_steps_are_learnt_from_files(series, tmp_path):
    arrays = heat(12, 9) | {"viscosity": np.linspace(0.01, 0.05, 12)}
    write_npz(tmp_path / "heat.npz", **BOX, **arrays)
    options = ["--stepping.history", "2", "--stepping.strides", "1", "2", "--data.parameters", "viscosity"]
    options += ["--stepping.valid-steps", "3", "--stepping.output", "state", "--training.loss", "h1"]
    jaxop("train", *command(tmp_path / "heat.npz", tmp_path / "run", *options))
    config = training.load_run(tmp_path / "run").model().config
    assert (config.history, config.parameters, config.varying_dt, config.output) == (2, 1, True, "state")
    assert config.operator.in_channels == 2 * 2 + 1 + 1
    arguments = ["--steps", "2", "--dt", "1.0", "--to", tmp_path / "new"]
    jaxop("predict", tmp_path / "run", tmp_path / "heat.npz", "--states", "states", *arguments)
    found = data.read_trajectories(tmp_path / "new" / "heat.npz")
    assert found.parameter_names == ("viscosity",)
    np.testing.assert_allclose(np.diff(found.times), 1.0, rtol=1e-6)


@pytest.mark.thorough
def test_the_step_of_a_stepper_is_planned(series, capsys):
    arguments = ["--data.train", str(series / "heat.npz"), "--topology", "cpu:1", "--stepping.steps", "2"]
    jaxop("plan", "series", *arguments, "model:fno", *SMALL)
    assert "memory in all" in capsys.readouterr().out


def test_data_of_the_other_kind_are_refused(series, tmp_path):
    settings = training.TrainingConfig(steps=1, batch_size=2)
    problem = experiments.SeriesData(series / "heat.npz")
    model = experiments.OperatorSettings("fno", width=4)
    with pytest.raises(TypeError, match=r"use experiments\.DynamicsExperiment"):
        experiments.train(experiments.Experiment(problem, model, settings, run_dir=tmp_path / "run"))
