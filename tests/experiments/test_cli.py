"""The command line: its commands, a user's own file, and what it needs."""

import subprocess
import sys

import pytest

import jaxop as package
from jaxop import operators, training
from jaxop.experiments import Experiment, cli, ready_made
from tests.experiments.conftest import custom, functions, jaxop, parsed, write_npz

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("no_rendering")]

OWN = '''"""Twice a function: the smallest experiment of one's own."""

import dataclasses
from typing import ClassVar

import factor
import numpy as np

from jaxop import data, domains, experiments, operators, training


@dataclasses.dataclass(frozen=True)
class Twice:
    """The input times two.

    Attributes:
        samples: of every set.
    """

    name: ClassVar[str] = "twice"

    samples: int = 4

    def load(self, cache):
        sets = self.at(["8"], cache)
        return experiments.Sets(sets["8"], sets, sets)

    def at(self, grids, cache):
        return {grid: self._on(int(grid)) for grid in grids}

    def _on(self, n):
        u = np.random.default_rng(0).normal(size=(self.samples, n, 1)).astype(np.float32)
        return data.Samples(u, factor.FACTOR * u, domains.box((n,), rule="midpoint"))


CONFIG = experiments.Experiment(
    data=Twice(),
    model=operators.TransformerNeuralOperatorConfig(1, 1, width=8, heads=2, layers=1, feedforward=8),
    training=training.TrainingConfig(steps=2, batch_size=2),
)
'''


@pytest.fixture
def own(tmp_path):
    (tmp_path / "factor.py").write_text("FACTOR = 2\n")
    path = tmp_path / "twice.py"
    path.write_text(OWN)
    yield path
    sys.modules.pop("factor", None)
    sys.path.remove(str(tmp_path))


def test_experiments_and_operators_are_listed(capsys):
    jaxop("list")
    shown = capsys.readouterr().out.splitlines()
    named = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown if line.startswith("  ")}
    assert set(named) == set(ready_made()) | set(operators.CONFIGS) | set(operators.ready_models())
    assert all(len(about) > 20 for about in named.values())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "jaxop evaluate MODEL"),
        (["train", "--help"], "lorenz_tno"),
        (["resume", "--help"], "jaxop resume runs/wide"),
        (["evaluate", "--help"], "--checkpoint"),
        (["list", "--help"], "usage: jaxop list"),
        (["train", "custom", "--help"], "model:fano"),
        (["train", "custom", "--data.operator", "fano", "--help"], "--model.patches"),
        (["--version"], f"jaxop {package.__version__}"),
    ],
)
def test_every_command_explains_itself(arguments, shown, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["train"], ["evaluate"], ["list", "all"]])
def test_what_is_missing_or_too_much_is_said(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "usage" in shown.err or "Missing" in shown.err


def test_unknown_command(capsys):
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: command='trian' is unknown: did you mean 'train'?\n"


@pytest.mark.thorough
def test_the_module_is_the_command():
    result = subprocess.run([sys.executable, "-m", "jaxop", "trian"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: command='trian'")


def test_options_of_an_operator_may_stand_on_both_sides_of_its_name():
    arguments = ["custom", "--data.train", "a.npz", "model:tno", "--model.width", "16", "--training.steps", "30"]
    experiment = parsed(arguments)
    assert experiment.model.operator == experiment.data.operator == "tno"
    assert experiment.model.settings["width"] == 16
    assert experiment.training.steps == 30


def test_an_operator_without_a_name_is_the_default():
    experiment = parsed(["custom", "--data.train", "a.npz", "--model.modes", "3"])
    assert (experiment.model.operator, experiment.model.settings["modes"]) == ("fano", 3)
    assert experiment.model.settings["patches"] is None


def test_the_place_of_the_files_is_required(capsys):
    with pytest.raises(SystemExit):
        parsed(["custom"])
    assert "--data.train" in capsys.readouterr().err


@pytest.mark.thorough
def test_an_experiment_of_ones_own(own, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", str(own), "--help"])
    shown = capsys.readouterr().out
    assert "Twice a function: the smallest experiment of one's own." in shown
    assert "--data.samples" in shown

    run = tmp_path / "run"
    jaxop("train", own, "--data.samples", 6, "--run-dir", run, "--training.checkpoint-every", 1)
    record = training.load_run(run)
    assert (record.config["problem"], record.config["data"]) == ("twice", {"samples": 6})
    assert record.checkpoints.latest == 2

    assert cli.main(["resume", str(run)]) == 2
    message = capsys.readouterr().err
    assert "problem='twice' is unknown" in message
    assert f"jaxop train FILE.py --run-dir {run} --resume" in message
    jaxop("train", own, "--data.samples", 6, "--run-dir", run, "--resume")
    jaxop("evaluate", run, "--experiment", own, "--grids", 16, "--name", "finer")
    assert "\n16,16,6," in (run / "evaluation" / "finer.csv").read_text()


@pytest.mark.thorough
def test_a_run_is_named_after_its_file(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jaxop("train", own)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("twice-")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must define CONFIG"),
        ("CONFIG = 5", "must be an experiments.Experiment(...), got 5"),
        ("CONFIG = undefined", "NameError: name 'undefined' is not defined"),
        ("CONFIG = (", "SyntaxError"),
    ],
)
def test_a_file_that_is_not_an_experiment(text, expected, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert cli.main(["train", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert expected in message
    assert str(path) in message


def test_a_missing_file_is_named_with_its_neighbours(tmp_path, capsys):
    (tmp_path / "mine.py").touch()
    assert cli.main(["train", str(tmp_path / "mien.py")]) == 2
    assert "mien.py does not exist; did you mean 'mine.py'" in capsys.readouterr().err


def test_generated_data_are_kept_with_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Experiment(None, None, None).cache == tmp_path / "jaxop" / "data"


@pytest.mark.thorough
def test_settings_without_their_packages_name_the_extra(tmp_path):
    file = write_npz(tmp_path / "a.npz", **functions(6, 8))
    code = (
        "import sys; sys.modules.update(tyro=None, matplotlib=None); from jaxop.experiments import cli; "
        "assert cli.main(['list']) == 0; sys.exit(cli.main(sys.argv[1:]))"
    )
    arguments = ["train", *custom(file, tmp_path / "run")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "needs tyro; install it with: pip install 'jaxop[scripts]'" in result.stderr
