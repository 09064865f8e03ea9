"""A run directory explains itself, reports to whoever listens, and gives the parameters back."""

import dataclasses
import io
import itertools
import json
import os
import re
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

from jaxop import data, testing, training
from tests.training.cases import CONFIG, assert_same_bits, run, samples, tiny, valid


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    return directory, run(directory)


def test_the_directory_holds_what_a_reader_needs(finished):
    directory, _ = finished
    assert sorted(path.name for path in directory.iterdir()) == [
        "checkpoints",
        "config.json",
        "figures",
        "functions.npy",
        "metrics.jsonl",
        "versions.json",
    ]
    config = json.loads((directory / "config.json").read_text())
    assert config["training"] == dataclasses.asdict(CONFIG)
    assert config["operator"] == {"name": "tiny", "width": 8}
    assert config["train"]["samples"] == 22
    assert config["train"]["inputs"].keys() == {"shape", "dtype", "crc32", "contents"}
    (versions,) = json.loads((directory / "versions.json").read_text())
    assert versions["jax"] == jax.__version__
    assert {"python", "flax", "device", "git_revision", "command", "from_step"} <= versions.keys()


def test_metrics_have_a_row_per_step_and_per_evaluation(finished):
    rows = training.load_run(finished[0]).metrics
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, CONFIG.steps + 1))
    assert all(row.keys() == {"step", "loss", "grad_norm", "learning_rate", "seconds"} for row in steps)
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(steps))
    evaluations = [row for row in rows if "loss" not in row]
    assert [row["step"] for row in evaluations] == [6, 12, 18, 24]
    assert evaluations[-1] == {"step": 24} | finished[1].errors


def test_errors_are_those_of_the_averaged_parameters(finished):
    directory, result = finished
    for name, chosen in valid().items():
        errors = training.evaluate(result.model, chosen)
        np.testing.assert_allclose(result.errors[f"{name}/l2"], errors.l2.mean(), rtol=1e-5)
        np.testing.assert_allclose(result.errors[f"{name}/h1"], errors.h1.mean(), rtol=1e-5)
    assert_same_bits(nnx.to_pure_dict(nnx.state(result.model, nnx.Param)), result.state.ema)
    last = training.load_run(directory).restore(tiny(), checkpoint="last")
    assert_same_bits(nnx.state(last), nnx.state(result.model))


def test_the_best_checkpoint_has_the_lowest_error_on_the_first_set(finished):
    opened = training.load_run(finished[0])
    errors = {row["step"]: row["9/l2"] for row in opened.metrics if "9/l2" in row}
    best = min(errors, key=errors.get)
    assert opened.step("best") == best
    model = opened.restore(tiny())
    np.testing.assert_allclose(training.evaluate(model, valid()["9"]).l2.mean(), errors[best], rtol=1e-5)


def test_last_parameters_can_be_had_without_the_average(finished):
    directory, result = finished
    model = training.load_run(directory).restore(tiny(), checkpoint=24, average=False)
    assert_same_bits(nnx.to_pure_dict(nnx.state(model, nnx.Param)), result.state.params)


@pytest.mark.thorough
def test_without_validation_the_last_checkpoint_is_the_best(tmp_path):
    config = dataclasses.replace(CONFIG, steps=3, warmup_steps=1, ema_decay=0.0)
    result = training.fit(tiny(), samples(), {}, config, run_dir=tmp_path, progress=False)
    opened = training.load_run(tmp_path)
    assert result.errors == {}
    assert opened.step() == 3
    assert_same_bits(nnx.state(opened.restore(tiny())), nnx.state(result.model))


def test_unknown_checkpoints_and_runs_are_named(finished, tmp_path):
    opened = training.load_run(finished[0])
    with pytest.raises(ValueError, match="'bets' is unknown"):
        opened.step("bets")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 7; steps there: \[.*24\]"):
        opened.restore(tiny(), checkpoint=7)
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        training.load_run(tmp_path)
    known = opened.directory
    with pytest.raises(FileNotFoundError, match=f"is not a run .*; did you mean .*'{known.name}'"):
        training.load_run(known.with_name(f"{known.name}x"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        training.load_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ("{", "is not valid JSON"),
        ("[1]", "must hold an object, got list"),
        ('{"valid": []}', "has no field 'training'"),
        ('{"training": {}}', "has no field 'valid'"),
        ('{"training": [], "valid": []}', r"training must be a dict, got \[\]"),
        ('{"training": {}, "valid": "9"}', 'valid must be a list, got "9"'),
        ('{"training": {"stepps": 1}, "valid": []}', "training: TrainingConfig has no field 'stepps'"),
        ('{"training": {"steps": 0}, "valid": []}', "training: steps=0 must be at least 1"),
        ('{"training": {"learning_rate": [1]}, "valid": []}', "training: "),
    ],
    ids=["deep", "cut", "list", "field", "sets", "fields", "names", "unknown", "impossible", "type"],
)
def test_a_config_that_cannot_be_used_is_named_with_its_field(content, message, tmp_path, unchecked):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        training.load_run(tmp_path)


@pytest.mark.parametrize("model", ["[]", "{}", "1", '{"width": 8, "depth": 1}'])
def test_a_config_without_its_operator_is_named(model, tmp_path, unchecked):
    (tmp_path / "config.json").write_text(f'{{"training": {{}}, "valid": [], "operator": "fno", "model": {model}}}')
    with pytest.raises(ValueError, match=r"config\.json does not name an operator.*Error: "):
        training.load_run(tmp_path).blank_model()


def test_a_config_that_is_a_pipe_is_no_config(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is not a regular file"):
        training.load_run(tmp_path)


@pytest.mark.thorough
def test_an_edited_record_of_the_model_is_compared_with_the_sealed_one(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        heads: int

    config = dataclasses.replace(CONFIG, steps=1, warmup_steps=0)
    run(tmp_path, config=config, settings={"model": Settings(2)})
    recorded = tmp_path / "config.json"
    edited = recorded.read_text().replace('"heads": 2', '"heads": 4').replace('"ema_decay": 0.9', '"ema_decay": 0.0')
    recorded.write_text(edited)
    model = tiny()
    model.config = Settings(4)
    with pytest.warns(UserWarning, match="heads=4 instead of 2"):
        restored = training.load_run(tmp_path).restore(model, checkpoint=1)
    saved = training.load_run(tmp_path).checkpoints.restore(
        {"ema": nnx.to_pure_dict(nnx.state(tiny(), nnx.Param))}, step=1, parts=["ema"]
    )
    assert_same_bits(nnx.to_pure_dict(nnx.state(restored, nnx.Param)), saved["ema"])


@pytest.mark.parametrize("name", ["training", "train", "valid", "valid_sets"])
def test_reserved_settings_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must not use the names"):
        run(tmp_path, settings={name: 1})


@pytest.mark.thorough
def test_training_runs_in_double_precision(x64, tmp_path):
    config = dataclasses.replace(CONFIG, steps=2, warmup_steps=1, loss="h1")
    train = samples(dtype=np.float64)
    with jax.numpy_dtype_promotion("standard"):  # flax normalises by implicit promotion
        model = tiny(dtype=jax.numpy.float64)
        result = training.fit(model, train, {"set": train}, config, run_dir=tmp_path, progress=False)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(result.state.params))
    assert training.load_run(tmp_path).checkpoints.best == 2


def test_steps_are_compiled_once_and_evaluations_once_per_shape(tmp_path):
    counts = {}

    class Count:
        def start(self, run_dir, settings, step): ...

        def log(self, step, metrics):
            counts[step, "loss" in metrics] = compilations()

        def close(self): ...

    with testing.count_compilations() as compilations:
        run(tmp_path, loggers=[Count()])
    assert counts[2, True] == counts[1, True]
    assert counts[24, False] == counts[6, False]
    assert counts[24, True] == counts[7, True]


def test_an_error_while_loading_a_batch_is_the_error_of_the_run(tmp_path):
    class Torn(data.Samples):
        def __getitem__(self, indices):
            if reads.append(1) or len(reads) > 6:
                raise OSError("the disk is gone")
            return super().__getitem__(indices)

    reads, whole = [], samples()
    with pytest.raises(OSError, match="the disk is gone"):
        run(tmp_path, train=Torn(whole.inputs, whole.targets, whole.domain))


def test_progress_without_a_terminal_is_plain_lines(tmp_path, capsys):
    run(tmp_path, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 1/24  loss ")
    assert sum("17/h1" in line for line in lines) == 4


def test_progress_without_rich_is_plain_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    feed(training.Progress(interval_s=0), tmp_path)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "step 1/24  loss 1.000e+00"
    assert re.fullmatch(r"step 2/24  loss 5\.000e-01  \S+ steps/s  \d+:\d\d:\d\d left", second)
    assert third == "step 2  set/l2 2.500e-01"


def test_progress_on_a_terminal_is_a_bar(tmp_path, capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    feed(training.Progress(), tmp_path)
    output = capsys.readouterr().out
    for part in ("2/24", "loss 5.000e-01", "steps/s", "set/l2 2.500e-01"):
        assert part in output


@pytest.mark.parametrize("bar", [False, True])
def test_progress_prints_names_that_are_markup_or_beyond_the_terminal(bar, tmp_path, monkeypatch):
    pytest.importorskip("rich")
    if bar:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    feed(training.Progress(interval_s=0), tmp_path, name="[/b] 64² :smile:")
    terminal.flush()
    assert b"[/b] 64? :smile:/l2 2.500e-01" in terminal.buffer.getvalue()


def feed(logger, directory, *, step=0, name="set"):
    logger.start(directory, {"training": dataclasses.asdict(CONFIG)}, step)
    logger.log(step + 1, {"loss": 1.0})
    logger.log(step + 2, {"loss": 0.5})
    logger.log(step + 2, {f"{name}/l2": 0.25})
    logger.close()


def test_json_lines_drop_what_was_lost_and_torn(tmp_path):
    feed(training.JsonLines(), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    logger = training.JsonLines()
    logger.start(tmp_path, {}, 1)
    logger.log(2, {"loss": float("inf")})
    logger.close()
    assert training.read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}]


def test_json_lines_keep_what_they_cannot_read(tmp_path):
    feed(training.JsonLines(), tmp_path)
    odd = [b"\xff\xfe", b"[1]", b"7", b'{"loss": 1}', b'{"step": "a"}', b'{"step": 1, "loss": []}', b"[" * 100_000, b""]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(odd) + b"\n" + path.read_bytes() + b"cut off")
    assert [row["step"] for row in training.read_metrics(tmp_path)] == [1, 2, 2]
    logger = training.JsonLines()
    logger.start(tmp_path, {}, 1)
    logger.log(2, {"loss": 0.5})
    logger.close()
    assert path.read_bytes().split(b"\n") == [*odd, b'{"step": 1, "loss": 1.0}', b'{"step": 2, "loss": 0.5}', b""]


def test_tensorboard_writes_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    feed(training.TensorBoard(), tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"set/l2" in events.read_bytes()


def test_weights_and_biases_continues_the_online_run(tmp_path, monkeypatch):
    calls = []

    class Online:
        id = "abc"

        def log(self, metrics, step):
            calls.append((step, metrics))

        def finish(self):
            calls.append("finish")

    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.append(options) or Online()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    feed(training.WeightsAndBiases("project"), tmp_path)
    assert calls[0]["id"] is None
    assert calls[0]["config"]["training"]["steps"] == 24
    assert calls[1:] == [(1, {"loss": 1.0}), (2, {"loss": 0.5}), (2, {"set/l2": 0.25}), "finish"]
    feed(training.WeightsAndBiases("project"), tmp_path, step=2)
    assert (calls[5]["id"], calls[5]["resume"]) == ("abc", "must")


@pytest.mark.parametrize(
    ("module", "logger"), [("wandb", training.WeightsAndBiases("project")), ("tensorboardX", training.TensorBoard())]
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, logger):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'jaxop\[loggers\]'"):
        feed(logger, tmp_path)
