import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, experiments, operators, training
from jaxop.data import Samples
from jaxop.experiments import cli, comparison, load_recipe, problems, ready_made, settings
from tests.experiments.conftest import SHORT, TINY, custom, jaxop, parsed, write_hdf5, write_npz

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("no_rendering")]

NAMES = sorted(ready_made())
PAIRS = [name for name in NAMES if not isinstance(load_recipe(name).experiment, experiments.DynamicsExperiment)]
COLUMNS = ["set", "grid", "samples", "rel_l2", "rel_h1", "median_rel_l2", "worst_rel_l2", "worst_sample"]


def table(directory, name):
    with (directory / "evaluation" / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    return rows


def test_the_ready_made_configs_are_the_promised_ones():
    assert {"darcy_fano", "darcy_vitno", "darcy_tno", "darcy_fno", "cde_tno", "lorenz_tno", "custom"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_says_where_it_is_from_and_what_to_expect(name):
    text = load_recipe(name).about
    for part in ("Source:", "Hardware:", "Time:", "Expected:", "Command:"):
        assert part in text


@pytest.mark.parametrize("name", sorted(set(PAIRS) - {"custom"}))
@pytest.mark.sample(3)
def test_a_ready_made_config_parses_as_named_and_its_operator_builds(name):
    chosen = parsed([name, "--training.steps", "20000", "--data.seed", "3", "--model.layers", "2"])
    assert (chosen.training.steps, chosen.data.seed, chosen.model.layers) == (20000, 3, 2)
    model = nnx.eval_shape(lambda: operators.build(chosen.model, rngs=nnx.Rngs(0)))
    assert settings.parameters(model) > 1000
    assert operators.model_of(chosen.model).name in operators.CONFIGS


@pytest.mark.parametrize(
    ("arguments", "warmup"),
    [
        (["custom", "--data.train", "a.npz", "--training.steps", "2"], 0),
        (["custom", "--data.train", "a.npz", "--training.steps=20"], 20),
        (["darcy_fano", "--training.steps", "100"], 5),
        (["darcy_fano", "--training.steps", "500"], 150),
        (["darcy_fano", "--training.steps", "100", "--training.warmup-steps", "70"], 70),
    ],
)
def test_the_default_warm_up_gives_way_to_fewer_steps(arguments, warmup):
    assert parsed(arguments).training.warmup_steps == warmup


def test_a_warm_up_that_was_asked_for_does_not(capsys):
    with pytest.raises(SystemExit):
        parsed(["darcy_fano", "--training.steps", "2", "--training.warmup-steps", "20"])
    shown = capsys.readouterr()
    assert "warmup_steps=20" in shown.out + shown.err


def test_every_field_is_an_option(capsys):
    with pytest.raises(SystemExit):
        parsed(["darcy_fano", "--help"])
    shown = capsys.readouterr().out
    kinds = {"data": problems.DarcyData, "model": operators.CONFIGS["fano"], "training": training.TrainingConfig}
    for prefix, kind in kinds.items():
        for field in dataclasses.fields(kind):
            assert f"--{prefix}.{field.name.replace('_', '-')}" in shown


def test_schwarz_attention_is_chosen_on_the_command_line():
    chosen = ["model.schwarz:schwarz-attention-config", "--model.schwarz.subdomains", "2"]
    experiment = parsed(["darcy_tno", "--model.width", "16", *chosen])
    assert (experiment.model.width, experiment.model.schwarz.subdomains) == (16, 2)
    assert parsed(["darcy_tno"]).model.schwarz is None


@pytest.mark.sample(3)
@pytest.mark.parametrize("operator", sorted(operators.CONFIGS))
def test_the_options_for_files_are_those_of_the_operator(operator):
    for chosen in ([f"--data.operator={operator}"], [f"model:{operator}"]):
        experiment = parsed(["custom", "--data.train", "a.npz", *chosen, "--model.width", "8"])
        assert (experiment.data.operator, experiment.model.operator) == (operator, operator)
        assert experiment.model.settings["width"] == 8
        with pytest.raises(SystemExit):
            parsed(["custom", "--data.train", "a.npz", *chosen, "--model.in-channels", "3"])


@pytest.mark.thorough
def test_the_operator_on_a_latent_grid_is_chosen_with_its_sizes():
    process = "model.process:fourier-attention-neural-operator-config"
    sizes = {"in-channels": 8, "out-channels": 8, "dim": 2, "width": 8}
    chosen = [process, *(part for name, n in sizes.items() for part in (f"--model.process.{name}", str(n)))]
    corners = ["--model.lower", "-1", "-1", "--model.upper", "2", "2"]
    experiment = parsed(
        ["custom", "--data.train", "a.npz", "model:latent_grid", "--model.width", "8", *corners, *chosen]
    )
    assert experiment.model.settings["process"] == operators.CONFIGS["fano"](8, 8, 2, width=8)
    assert experiment.model.settings["lower"] == (-1.0, -1.0)


def test_a_run_on_a_file_leaves_checkpoints_a_table_and_pictures(trained, files):
    rows = table(trained, "test")
    assert [row["set"] for row in rows] == ["held out"]
    assert rows[0]["grid"] == "16 × 16"
    assert 0 < float(rows[0]["rel_l2"]) <= float(rows[0]["worst_rel_l2"])
    pictures = {path.name for path in (trained / "figures").iterdir()}
    assert {"test-held-out.png", "test-errors.png", "learning-curves.png"} <= pictures
    assert (trained / "figures" / "test-held-out.png").stat().st_size > 10_000
    run = training.load_run(trained)
    assert run.checkpoints.latest == 3
    assert run.config["operator"] == "fano"
    assert run.config["data"]["train"] == str(files / "a.npz")
    record = json.loads((trained / "evaluation" / "test.json").read_text())
    assert record["units"] == "physical"
    assert record["step"] == run.step("best")


def test_the_model_takes_what_it_needs_from_the_file_and_says_so(files, tmp_path, capsys):
    jaxop("train", *custom(files / "a.h5", tmp_path / "run", "--data.test", str(files / "b.npz"), str(files / "c.h5")))
    shown = " ".join(capsys.readouterr().out.split())
    assert "--model.patches 2, --model.modes 4" in shown
    config = training.load_run(tmp_path / "run").config["model"]
    assert (config["in_channels"], config["out_channels"], config["dim"], config["reference"]) == (1, 2, 2, 16)
    assert [row["set"] for row in table(tmp_path / "run", "test")] == ["b.npz", "c.h5"]


@pytest.mark.thorough
def test_names_inside_the_file_and_a_validation_file_are_selectable(tmp_path):
    """On scattered nodes, which have no H1 norm."""
    u = np.random.default_rng(1).normal(size=(12, 30)).astype(np.float32)
    arrays = {"run/a": u, "run/p": 2 * u, "nodes": np.random.default_rng(0).uniform(size=(30, 2))}
    train_file = write_hdf5(tmp_path / "a.h5", **arrays)
    valid_file = write_npz(tmp_path / "v.npz", **arrays)
    options = ["--data.inputs", "run/a", "--data.targets", "run/p", "--data.coordinates", "nodes"]
    options += ["--data.valid", str(valid_file)]
    jaxop("train", *custom(train_file, tmp_path / "run", *options, operator="tno"))
    (row,) = table(tmp_path / "run", "test")
    assert (row["set"], row["samples"], row["grid"], row["rel_h1"]) == ("v.npz", "12", "30 nodes", "")


@pytest.mark.thorough
def test_schwarz_attention_is_trained_and_evaluated_on_scattered_nodes(tmp_path):
    """Each set is cut at its own nodes, as in a call of the operator outside of jit."""
    rng = np.random.default_rng(0)
    files = []
    for name, count in (("a", 30), ("b", 40)):
        u = rng.normal(size=(8, count)).astype(np.float32)
        nodes = rng.uniform(size=(count, 2)).astype(np.float32)
        files.append(write_npz(tmp_path / f"{name}.npz", x=u, y=2 * u, coordinates=nodes))
    run = tmp_path / "run"
    schwarz = ["model:tno", "model.schwarz:schwarz-attention-config", "--model.schwarz.subdomains", "3"]
    given = ["custom", "--data.train", files[0], "--data.test", files[1], "--run-dir", run, *SHORT]
    jaxop("train", *given, schwarz[0], *TINY, *schwarz[1:])
    jaxop("evaluate", run, "--data", files[1])
    (row,), (again,) = table(run, "test"), table(run, "evaluation")
    assert row["grid"] == "40 nodes"
    samples = data.read(files[1])
    model, domain = training.load_run(run).model(), samples.domain
    predicted, truth = model(samples[:].inputs, domain), samples[:].targets
    errors = [float(domain.norm(p - t) / domain.norm(t)) for p, t in zip(predicted, truth, strict=True)]
    np.testing.assert_allclose([float(row["rel_l2"]), float(again["rel_l2"])], np.mean(errors), rtol=1e-5)
    stacked = write_npz(tmp_path / "c.npz", x=u, y=u, coordinates=rng.uniform(size=(8, 40, 2)).astype(np.float32))
    with pytest.raises(ValueError, match=r"c\.npz \(40 nodes\): .*one domain for all samples, got a stack"):
        jaxop("evaluate", run, "--data", stacked)


@pytest.mark.thorough
def test_the_transformer_takes_paths_on_uneven_times_of_each_sample(tmp_path):
    times = np.sort(np.random.default_rng(0).uniform(size=(12, 20)), axis=1).astype(np.float32)
    file = write_npz(tmp_path / "paths.npz", x=np.sin(times), y=np.cos(times), coordinates=times)
    jaxop("train", *custom(file, tmp_path / "run", operator="tno"))
    (row,) = table(tmp_path / "run", "test")
    assert row["grid"] == "20 uneven"
    assert float(row["rel_h1"]) > 0


@pytest.mark.thorough
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(trained, files, tmp_path):
    # the cosine follows the steps, so the shorter run is stopped by time
    arguments = custom(files / "a.npz", tmp_path / "run", "--training.checkpoint-every", "1")
    jaxop("train", *arguments, "--training.time-limit-s", "1e-9")
    assert training.load_run(tmp_path / "run").checkpoints.latest < 3
    jaxop("resume", tmp_path / "run")
    ends = [
        json.loads(path.read_text()) for path in (d / "evaluation" / "test.json" for d in (trained, tmp_path / "run"))
    ]
    assert training.load_run(tmp_path / "run").checkpoints.latest == 3
    assert ends[0]["sets"] == ends[1]["sets"]


@pytest.mark.thorough
def test_a_run_is_resumed_on_files_that_were_renamed(files, tmp_path, capsys):
    first, second, run = tmp_path / "a.npz", tmp_path / "v.npz", tmp_path / "run"
    for source, copy in (("a.npz", first), ("b.npz", second)):
        shutil.copy(files / source, copy)
    arguments = custom(first, run, "--data.valid", str(second), "--training.checkpoint-every", "1")
    jaxop("train", *arguments, "--training.time-limit-s", "1e-9")
    moved = [str(path.rename(tmp_path / f"moved-{path.name}")) for path in (first, second)]
    assert cli.main(["resume", str(run)]) == 2
    assert "name it again: --data.train FILE" in capsys.readouterr().err
    jaxop("resume", run, "--data.train", moved[0], "--data.valid", moved[1])
    resumed = training.load_run(run)
    assert resumed.checkpoints.latest == 3
    assert resumed.config["valid"] == ["v.npz"]
    assert [resumed.config["data"][name] for name in ("train", "valid")] == moved


def test_directories_made_in_one_second_differ(tmp_path):
    made = [comparison.new_run(tmp_path / "runs", "task", "Label [1]", 0) for _ in range(3)]
    assert len({*made}) == 3
    assert all(path.is_dir() for path in made)


@pytest.mark.thorough
def test_a_generated_problem_is_made_once(tmp_path, monkeypatch):
    arguments = ["darcy_fno", "--cache", str(tmp_path / "cache"), "--run-dir", str(tmp_path / "run")]
    arguments += ["--training.steps", "2", "--training.warmup-steps", "0", "--training.loss", "l2"]
    arguments += ["--model.width", "4", "--model.layers", "1", "--model.modes", "4", "--model.reference", "8"]
    arguments += ["--data.samples", "8", "--data.valid-samples", "2", "--data.test-samples", "3"]
    arguments += ["--data.resolution", "8", "--data.grids", "8", "12", "--data.reference", "24"]
    jaxop("train", *arguments)
    assert [row["grid"] for row in table(tmp_path / "run", "test")] == ["8 × 8", "12 × 12"]
    monkeypatch.setattr(problems.data, "darcy_resolutions", None)
    sets = parsed(arguments).data.load(tmp_path / "cache")
    assert len(sets.train) == 8
    assert sets.train.domain.rules == ("midpoint", "midpoint")


def tiny_darcy(tmp_path, operator, *options):
    """Arguments of a tiny run on Darcy flow, whose operator has few parameters."""
    arguments = [operator, "--cache", str(tmp_path / "cache"), "--run-dir", str(tmp_path / "run"), *SHORT, *options]
    arguments += ["--data.samples", "8", "--data.valid-samples", "2", "--data.test-samples", "3"]
    return [*arguments, "--data.resolution", "8", "--data.reference", "24"]


@pytest.mark.thorough
def test_scattered_points_stand_in_the_table_of_the_grids(tmp_path, monkeypatch):
    jaxop("train", *tiny_darcy(tmp_path, "darcy_tno", *TINY, "--data.grids", "8", "points=40", "12"))
    rows = table(tmp_path / "run", "test")
    assert [(row["set"], row["grid"]) for row in rows] == [
        ("8²", "8 × 8"),
        ("12²", "12 × 12"),
        ("points=40", "40 nodes"),
    ]
    assert all(float(row["rel_h1"]) > 0 for row in rows)
    assert (tmp_path / "run" / "figures" / "test-all-grids.png").is_file()
    monkeypatch.setattr(problems.data, "darcy_on", None)  # the cloud is kept
    jaxop("evaluate", tmp_path / "run", "--cache", tmp_path / "cache", "--name", "again", "--grids", "points=40")
    assert table(tmp_path / "run", "again") == rows[2:]


def test_scattered_points_sample_the_fields_of_the_grids(tmp_path):
    (cloud,) = problems.DarcyData(test_samples=2, reference=24).at(["points=400"], tmp_path).values()
    (grid,) = problems.DarcyData(test_samples=2, reference=24).at(["24"], tmp_path).values()
    nodes, points = (np.asarray(samples.domain.points) for samples in (grid, cloud))
    nearest = np.abs(nodes[:, None] - points).max(axis=-1).argmin(axis=0)
    assert np.abs(points - nodes[nearest]).max() <= 0.5 / 24 + 1e-6
    largest = grid.targets.max()
    assert np.abs(cloud.targets - grid.targets[:, nearest]).max() < 0.3 * largest
    assert 0.9 < cloud.domain.measure < 1


def test_operators_on_grids_refuse_scattered_points(tmp_path, capsys):
    size = ["--model.width", "4", "--model.layers", "1", "--model.modes", "4", "--model.reference", "8"]
    arguments = tiny_darcy(tmp_path, "darcy_fno", *size, "--data.grids", "8", "points=40")
    assert cli.main(["train", *arguments]) == 2
    message = capsys.readouterr().err
    assert "points=40 (40 nodes): a spectral layer needs a grid" in message
    assert "the TransformerNeuralOperator takes any domain" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("grid", ["points", "points=2", "points=many", "nodes=40", "-8"])
def test_grids_that_have_no_such_name_are_refused(grid, tmp_path):
    with pytest.raises(ValueError, match=f"points=COUNT, at least 3 scattered points, got '{grid}'"):
        problems.DarcyData().at([grid], tmp_path)


@pytest.mark.sample(1)
@pytest.mark.parametrize("sampling", ["dt=0.25", "nodes=7"])
@pytest.mark.parametrize("kind", [problems.ControlledOdeData, problems.LorenzData])
def test_trajectories_survive_the_cache(kind, sampling, tmp_path):
    if kind is problems.LorenzData:
        pytest.importorskip("diffrax")
    settings = kind(samples=3, valid_samples=2, test_samples=2, sampling=sampling, grids=("dt=0.5", "nodes=5"))
    fresh, again = settings.load(tmp_path), settings.load(tmp_path)
    assert list(fresh.test) == ["dt=0.5", "nodes=5"]
    np.testing.assert_array_equal(fresh.train.inputs, again.train.inputs)
    np.testing.assert_array_equal(fresh.train.domain.weights, again.train.domain.weights)
    assert not np.array_equal(fresh.train.inputs[:2], fresh.valid["valid"].inputs)
    assert (fresh.train.initial is None) == (kind is problems.ControlledOdeData)


@pytest.mark.parametrize(
    ("shapes", "patches", "modes"),
    [
        ([(16, 16)], 2, 4),
        ([(64, 64)], 4, 8),
        ([(64, 64), (32, 32)], 4, 4),
        ([(48, 96)], 4, 6),
        ([(63, 63)], 3, 8),
        ([(31, 31)], 1, 8),
        ([(4, 4)], 1, 2),
        ([(256,)], 8, 8),
    ],
)
def test_patches_and_modes_suit_all_grids(shapes, patches, modes):
    grids = [domains.box(shape, rule="midpoint") for shape in shapes]
    sets = [Samples(*np.zeros((2, 1, grid.size, 1), np.float32), grid) for grid in grids]
    config, chosen = settings.OperatorSettings("fano", width=8, heads=2).for_data(sets[0], sets[1:])
    assert chosen == {"patches": patches, "modes": modes}
    assert (config.patches, config.modes, config.reference) == (patches, modes, min(shapes[0]))
    for n in (n for shape in shapes for n in shape):
        assert n % patches == 0
        assert 2 * modes <= n // patches
