"""What a user sees of wrong inputs: one message that names them, exit status 2, no traceback."""

import json
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, operators, training
from jaxop.experiments import cli, recorded_problem, report, settings
from tests.experiments.conftest import custom, functions, jaxop, parsed, write_hdf5, write_npz

pytestmark = pytest.mark.optax


def test_unknown_config(fails):
    assert "experiment='darcy_fana' is unknown: did you mean 'darcy_fano'" in fails("train", ["darcy_fana"])


def test_unknown_operator(fails):
    message = fails("train", ["custom", "--data.train", "a.npz", "--data.operator", "phano"])
    assert "operator='phano' is unknown" in message
    assert "'fano'" in message


@pytest.mark.parametrize("option", ["--training.stepps", "--model.widht", "--data.resolutoin"])
def test_unknown_field(option, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(["darcy_fano", option, "5"])
    assert end.value.code == 2
    shown = capsys.readouterr()
    corrected = {"stepps": "steps", "widht": "width", "resolutoin": "resolution"}[option.split(".")[1]]
    assert f"--{option[2:].split('.')[0]}.{corrected}" in shown.out + shown.err


def test_impossible_value(capsys):
    with pytest.raises(SystemExit) as end:
        parsed(["darcy_fano", "--training.batch-size", "0"])
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert "batch_size=0" in shown.out + shown.err


def test_missing_file(fails, files, tmp_path):
    message = fails("train", custom(files / "aa.npz", tmp_path / "run"))
    assert "aa.npz does not exist; did you mean 'a.npz'" in message
    assert not (tmp_path / "run").exists()


def test_empty_file(fails, tmp_path):
    (tmp_path / "a.npz").touch()
    assert "a.npz is empty (0 bytes)" in fails("train", custom(tmp_path / "a.npz", tmp_path / "run"))


def test_truncated_hdf5(fails, files, tmp_path):
    content = (files / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    message = fails("train", custom(tmp_path / "cut.h5", tmp_path / "run"))
    assert "cut.h5 (HDF5" in message
    assert "truncated or damaged" in message


def test_not_hdf5(fails, files, tmp_path):
    (tmp_path / "a.h5").write_bytes((files / "a.npz").read_bytes())
    message = fails("train", custom(tmp_path / "a.h5", tmp_path / "run"))
    assert "is not HDF5" in message
    assert "ZIP archive" in message


def test_missing_dataset(fails, files, tmp_path):
    message = fails("train", custom(files / "a.npz", tmp_path / "run", "--data.targets", "z"))
    assert "has no dataset 'z'; it has 'x', 'y'" in message


def test_nan_in_the_data(fails, tmp_path):
    arrays = functions(9, 8)
    arrays["y"][3, 2, 5, 1] = np.nan
    file = write_hdf5(tmp_path / "holes.h5", **arrays)
    message = fails("train", custom(file, tmp_path / "run"))
    assert "holes.h5" in message
    assert "sample 3, grid index (2, 5), channel 1" in message


def test_shapes_that_disagree(fails, tmp_path):
    file = write_npz(tmp_path / "a.npz", x=functions(9, 8)["x"], y=functions(8, 8)["y"])
    assert "inputs has 9 samples" in fails("train", custom(file, tmp_path / "run"))


@pytest.mark.thorough
def test_values_in_other_files_are_read_if_asked_for(fails, files, trained, tmp_path):
    file = write_hdf5(tmp_path / "a.h5", y=functions(20, 16)["y"])
    with h5py.File(file, "r+") as archive:
        archive["x"] = h5py.ExternalLink(str(files / "a.h5"), "/x")
    message = fails("train", custom(file, tmp_path / "run"))
    assert "'x' is a link into another file" in message
    assert "--data.external" in message
    assert "--external" in fails("evaluate", [str(trained), "--data", str(file)])
    jaxop("evaluate", str(trained), "--data", str(file), "--external", "--name", "links")
    experiment = parsed(custom(file, tmp_path / "run", "--data.external"))
    assert len(experiment.data.load(tmp_path).train) == 18


def test_faces_of_a_mesh(tmp_path):
    corners, triangles = np.float32([[0, 0], [2, 0], [2, 1], [0, 1]]), np.array([[0, 1, 2], [0, 2, 3]])
    u = np.ones((9, 4), np.float32)
    file = write_npz(tmp_path / "mesh.npz", x=u, y=u, coordinates=corners, faces=triangles)
    for options, kind in (([], domains.TriangleMesh), (["--data.faces", "None"], domains.PointCloud)):
        experiment = parsed(custom(file, tmp_path / "run", *options, operator="tno"))
        assert type(experiment.data.load(tmp_path).train.domain) is kind
        other = dict.fromkeys(("operator", "model", "resolution"))
        recorded = {"problem": "files", "data": operators.to_dict(experiment.data), **other}
        run = SimpleNamespace(config=recorded, directory=tmp_path)
        assert recorded_problem(run) == experiment.data
    del recorded["data"]["faces"]
    assert recorded_problem(run).faces is None  # as that run was trained


def test_patches_that_do_not_divide_the_grid(fails, files, tmp_path):
    message = fails("train", custom(files / "a.npz", tmp_path / "run", "--model.patches", "5"))
    assert "patches must divide reference = 16, got 5; valid numbers: [1, 2, 4, 8, 16]" in message


def test_modes_that_a_patch_cannot_carry(fails, files, tmp_path):
    message = fails("train", custom(files / "a.npz", tmp_path / "run", "--model.patches", "4", "--model.modes", "3"))
    assert "modes" in message
    assert "2" in message


def test_spectral_operator_on_uneven_nodes(fails, tmp_path):
    nodes = np.linspace(0, 1, 16, dtype=np.float32) ** 2
    u = np.ones((9, 16), np.float32)
    file = write_npz(tmp_path / "a.npz", x=u, y=u, coordinates=nodes)
    message = fails("train", custom(file, tmp_path / "run"))
    assert "midpoint" in message
    assert not (tmp_path / "run").exists()


def test_batch_larger_than_the_data(fails, files, tmp_path):
    message = fails("train", custom(files / "a.npz", tmp_path / "run", "--training.batch-size", "64"))
    assert "batch_size=64 exceeds the 18 training samples" in message


@pytest.mark.parametrize("fraction", ["0", "1", "0.99"])
def test_nothing_left_to_train_or_validate_on(fraction, fails, files, tmp_path):
    message = fails("train", custom(files / "a.npz", tmp_path / "run", "--data.held-out", fraction))
    assert "held_out=" in message


def test_test_file_of_another_dimension(fails, files, tmp_path):
    line = write_npz(tmp_path / "line.npz", x=np.ones((3, 8), np.float32), y=np.ones((3, 8, 2), np.float32))
    message = fails("train", custom(files / "a.npz", tmp_path / "run", "--data.test", str(line)))
    assert "line.npz (8) has 1 dimensions, but the operator was made for 2" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_evaluation_file_with_other_channels(fails, trained, tmp_path):
    u = np.ones((3, 16, 16), np.float32)
    file = write_npz(tmp_path / "scalar.npz", x=u, y=u)
    message = fails("evaluate", [trained, "--data", file])
    assert "scalar.npz (16 × 16) has 1 output channels, but the operator was made for 2" in message


@pytest.mark.thorough
def test_resume_with_another_operator(fails, trained, files):
    message = fails("train", custom(files / "a.npz", trained, "--model.modes", "2", "--resume"))
    assert "model.modes: 4 -> 2" in message


@pytest.mark.parametrize("options", [["--resume"], ["--resume", "--run-dir", "nowhere"]])
def test_resume_of_nothing(options, fails, files):
    message = fails("train", ["custom", "--data.train", files / "a.npz", *options])
    assert "--run-dir" in message or "nowhere is not a run directory" in message


def test_resume_needs_a_run(fails, capsys):
    assert "nowhere is not a run directory" in fails("resume", ["nowhere"])
    with pytest.raises(SystemExit) as end:
        cli.main(["resume"])
    assert end.value.code == 2
    assert "required: RUN" in capsys.readouterr().err


def test_a_run_is_not_overwritten(fails, trained, files):
    assert "already holds a run" in fails("train", custom(files / "a.npz", trained))


def test_a_missing_logger_leaves_no_run(fails, files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.chdir(tmp_path)
    arguments = custom(files / "a.npz", tmp_path / "run", "--tensorboard")
    assert "pip install 'jaxop[loggers]'" in fails("train", arguments)
    unnamed = [argument for argument in arguments if argument not in ("--run-dir", str(tmp_path / "run"))]
    assert "pip install 'jaxop[loggers]'" in fails("train", unnamed)
    assert [str(path) for path in tmp_path.rglob("*")] == [str(tmp_path / "runs")]


@pytest.mark.thorough
def test_a_run_without_its_first_checkpoint_can_be_resumed(fails, files, tmp_path, monkeypatch):
    def save(*_, **__):
        raise OSError("the disk is full")

    arguments = custom(files / "a.npz", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(training.Checkpoints, "save", save)
        assert "the disk is full" in fails("train", arguments)
    assert "continue it with `jaxop resume" in fails("train", arguments)
    monkeypatch.setattr(report, "write_report", lambda *_, **__: None)
    jaxop("resume", tmp_path / "run")
    assert training.load_run(tmp_path / "run").checkpoints.latest == 3


def test_remote_addresses(fails, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = fails("train", custom(files / "a.npz", "gs://bucket/run"))
    assert "run_dir='gs:/bucket/run' is a remote address" in message
    assert "cache='gs:/bucket' is a remote address" in fails("train", ["darcy_fno", "--cache", "gs://bucket"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("resolution", None, "has no field 'resolution'"),
        ("operator", None, "has no field 'operator'"),
        ("problem", [], "problem=[] is unknown"),
        ("data", [1], "data cannot be read"),
        ("data", {"train": 5, "valid": None, "test": []}, "data cannot be read"),
        ("data", {"valid": None, "test": []}, "['train'] are missing"),
        ("data", {"trian": "a.npz"}, "did you mean 'train'"),
    ],
)
def test_a_record_that_was_edited(field, value, expected, fails, trained, tmp_path):
    record = json.loads((trained / "config.json").read_text())
    if value is None:
        del record[field]
    else:
        record[field] = value
    (tmp_path / "config.json").write_text(json.dumps(record))
    message = fails("evaluate", [tmp_path])
    assert str(tmp_path / "config.json") in message
    assert expected in message


def test_evaluation_of_no_run(fails, tmp_path):
    assert "is not a run directory" in fails("evaluate", [tmp_path])


def test_grids_of_a_run_on_files(fails, trained):
    assert "--grids belongs to generated problems" in fails("evaluate", [trained, "--grids", "64"])


def test_unknown_checkpoint(fails, trained):
    assert "has no checkpoint 77" in fails("evaluate", [trained, "--checkpoint", "77"])
    assert "'best', 'last'" in fails("evaluate", [trained, "--checkpoint", "latest"])


def test_a_number_beyond_single_precision(fails, tmp_path):
    arrays = {name: array.astype(np.float64) for name, array in functions(9, 8).items()}
    arrays["x"][3, 2, 5] = 1e300
    message = fails("train", custom(write_npz(tmp_path / "huge.npz", **arrays), tmp_path / "run"))
    assert "huge.npz" in message
    assert "finite in float32" in message
    assert "sample 3" in message


@pytest.mark.parametrize("option", [["--run-dir", ""], ["--run-dir="], ["--cache", ""], ["--data.test", ""]])
def test_empty_values(option, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *custom(files / "a.npz", tmp_path / "run", *option)])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert f"Error parsing {option[0].rstrip('=')}" in message
    assert "''" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["a.npz", "a.npz/run"])
def test_a_file_in_place_of_the_run_directory(place, fails, files):
    assert "a.npz is a file" in fails("train", custom(files / "a.npz", files / place))


def test_a_run_directory_that_is_no_text(fails, files, tmp_path):
    assert "is not in the encoding" in fails("train", custom(files / "a.npz", tmp_path / "run \udcff"))


def test_a_file_in_place_of_the_cache(fails, files, tmp_path):
    message = fails("train", ["darcy_fno", "--cache", files / "a.npz", "--run-dir", tmp_path / "run"])
    assert "--cache" in message
    assert "a.npz is a file" in message


@pytest.mark.parametrize("name", ["../../x", "/x", "a/", ".", "a/b"])
def test_evaluations_are_written_inside_the_run(name, fails, trained):
    assert "--name" in fails("evaluate", [trained, "--name", name])


def test_a_file_given_twice(fails, trained, files):
    assert "b.npz is given more than once" in fails("evaluate", [trained, "--data", files / "b.npz", files / "b.npz"])


def test_nothing_to_evaluate_on():
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        report.check(None, {})


def test_names_of_arrays_without_files(fails, trained):
    assert "--inputs needs --data" in fails("evaluate", [trained, "--inputs", "y"])


@pytest.mark.parametrize(
    ("option", "value"), [("sampling", "dt=nan"), ("sampling", "nodes=inf"), ("sampling", "10"), ("final-time", "nan")]
)
@pytest.mark.sample(2)
def test_impossible_times(option, value, fails, tmp_path):
    message = fails("train", ["cde_tno", "--cache", tmp_path / "cache", f"--data.{option}", value])
    assert "'dt=STEP'" in message or "final_time must be positive and finite" in message
    assert not (tmp_path / "cache").exists()


def test_a_negative_seed(fails, files, tmp_path):
    assert "seed must be" in fails("train", custom(files / "a.npz", tmp_path / "run", "--data.seed", "-1"))


@pytest.mark.parametrize(("option", "value"), [("width", "100000"), ("layers", "100000000")])
def test_an_operator_larger_than_the_memory(option, value, fails, files, tmp_path):
    message = fails("train", custom(files / "a.npz", tmp_path / "run", f"--model.{option}", value))
    assert "GiB of memory" in message
    assert f"{option}={value} (default" in message
    assert not (tmp_path / "run").exists()


def test_heads_of_a_huge_width(fails, files, tmp_path):
    message = fails("train", custom(files / "a.npz", tmp_path / "run", "--model.width", "9" * 20))
    assert "heads must divide the width" in message


@pytest.mark.parametrize("name", sorted(operators.CONFIGS))
@pytest.mark.sample(3)
def test_parameters_are_counted_without_their_layers(name):
    deep = {"layers": 5} | ({"decoder_layers": 4} if name == "tno" else {})
    config = operators.CONFIGS[name](1, 1, width=8, **deep)
    model = nnx.eval_shape(lambda: operators.build(config, rngs=nnx.Rngs(0)))
    count = settings.parameters(model)
    assert settings.size_of(config) == (4 * count, count)


def test_a_traceback_is_shown_on_request(files, tmp_path):
    with pytest.raises(FileNotFoundError):
        cli.main(["train", *custom(files / "aa.npz", tmp_path / "run"), "--traceback"])


def test_members_of_a_stepper_are_refused_before_data_are_made(fails):
    message = fails("train", ["ks_fno", "--training.members", "2"])
    assert "--training.members 2" in message
    assert "stepper" in message
