"""Code and commands of README.md and of the documentation run, and every public name has an entry in the reference."""

import contextlib
import dataclasses
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

import jaxop
from jaxop.experiments import FileData, SeriesData, cli
from jaxop.experiments import calibrate as calibrate_model
from jaxop.experiments import evaluate as evaluate_run
from jaxop.experiments import export_model as export_run
from jaxop.experiments import export_program as export_run_program
from jaxop.experiments import predict as predict_files
from jaxop.experiments import train as train_experiment

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "scripts" / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
RUN = [pytest.param(path, marks=() if path == README else pytest.mark.notebook) for path in PAGES]
FILE = "my_experiment.py"  # a block with this title is a file of the reader
GENERATED = ("darcy", "cde", "lorenz", "burgers", "kuramoto_sivashinsky")  # problems whose data take minutes


def shortened(experiment, *, name):
    """A few steps of a training. If its data take minutes or are files of the reader, only the options are read."""
    is_file = isinstance(experiment.data, FileData | SeriesData)
    if not (experiment.data.train.exists() if is_file else experiment.data.name not in GENERATED):
        return
    settings = experiment.training
    steps = min(settings.steps, 4)
    settings = dataclasses.replace(settings, steps=steps, warmup_steps=0, eval_every=steps, checkpoint_every=steps)
    train_experiment(dataclasses.replace(experiment, training=settings), name=name)


def evaluated(settings):
    """An evaluation. If the run is that of the reader, only the options are read."""
    if settings.model.exists():
        evaluate_run(settings)


def exported(run, to, **options):
    """An export. If the run is that of the reader, only the options are read."""
    return export_run(run, to, **options) if run.exists() else to


def program(model, to, **options):
    """A program. If the run is that of the reader, only the options are read."""
    return export_run_program(model, to, **options) if model.exists() else to


def calibrated(settings):
    """A calibration. If the run is that of the reader, only the options are read."""
    if settings.model.exists() and all(path.exists() for path in settings.data):
        calibrate_model(settings)


def predicted(settings):
    """Predictions. If the run is that of the reader, only the options are read."""
    if settings.model.exists() and all(path.exists() for path in settings.files):
        predict_files(settings)


def run_python(example):
    """Runs a block of Python and keeps what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        PythonEvaluator()(example)
    example.namespace["printed"] = printed.getvalue()


def compare_output(example):
    """A block of text is what the block of Python before it has printed."""
    assert example.namespace["printed"].split() == example.parsed.split()


def save_file(example):
    """Writes a block with a title to the file of that name."""
    Path(FILE).write_text(example.parsed)


def run_commands(example):
    """Runs the commands of a block: jaxop in this process; files of the checkout must exist."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[:2] == ["pip", "install"]:
            continue
        if words[0] in ("python", "bash"):
            assert (ROOT / words[1]).is_file(), line
        else:
            assert words[0] == "jaxop", f"no rule for {line!r}"
            if words[1] == "resume" and not Path(words[2]).exists():
                words[1:3] = ["train", "darcy_fno"]  # the options of a run are those of its training
            assert exit_status(words[1:]) == 0, line


def exit_status(arguments):
    try:
        return cli.main(arguments)
    except SystemExit as done:  # after --help
        return done.code


@pytest.mark.optax
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_and_commands_of_a_page_run(path, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(cli, "train", shortened)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "evaluate", evaluated)
    monkeypatch.setattr(cli, "export_model", exported)
    monkeypatch.setattr(cli, "export_program", program)
    monkeypatch.setattr(cli, "predict", predicted)
    monkeypatch.setattr(cli, "calibrate", calibrated)
    evaluators = {
        "python": run_python,
        f'python title="{FILE}"': save_file,
        "bash": run_commands,
        "text": compare_output,
    }
    parsers = [CodeBlockParser(language, evaluator) for language, evaluator in evaluators.items()]
    for example in Document.parse(str(path), *parsers).examples():
        example.evaluate()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_on_a_page_exist(path):
    for named in re.findall(r"`((?:jaxop|notebooks|scripts|tests)/[\w./-]+)`", path.read_text()):
        assert (ROOT / named).exists(), named


@pytest.mark.thorough
def test_the_table_of_operators_counts_refusals_of_a_package_outside_the_checkout(tmp_path):
    shutil.copytree(ROOT / "jaxop", tmp_path / "jaxop")
    code = """
import operators
model = operators.Row("fno").build(2, 24)
print(operators.PACKAGE, operators.accepts(model, operators.examples()["scattered nodes"]))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(DOCS)]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "jaxop"), "False"], done.stderr


def test_every_public_name_has_an_entry(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    reference = importlib.import_module("reference")
    assert set(reference.PARTS) == set(jaxop._PARTS)
    for part in reference.PARTS:
        module = getattr(jaxop, part)
        names = reference.public_names(part)
        public = {
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and getattr(value, "__module__", "").startswith("jaxop.")
            and not value.__module__.startswith("jaxop._moved")
            and not (Path(module.__file__).name != "__init__.py" and value.__module__ != module.__name__)
        }
        assert public - set(names) == set()
        for name in names:
            assert f"::: jaxop.{part}.{name}\n" in reference.page(part)
            assert hasattr(module, name)
