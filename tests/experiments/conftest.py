"""The command line in process, small files to train on, and one run that most tests share."""

import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import jaxtyping
import numpy as np
import pytest

from jaxop.experiments import Experiment, cli, load_recipe, options, plots

TINY = ["--model.width", "8", "--model.heads", "2", "--model.layers", "1", "--model.feedforward", "8"]
SHORT = ["--training.steps", "3", "--training.warmup-steps", "1", "--training.batch-size", "4"]


@pytest.fixture(autouse=True)
def unchecked():
    """Commands as a user runs them: without the suite's run-time type checks, which would answer first."""
    with without_type_checks():
        yield


@contextlib.contextmanager
def without_type_checks():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def no_rendering(trained, monkeypatch):
    """Figures are drawn, but files of theirs stay empty: only those of the shared run are rendered."""
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: path.touch())


@pytest.fixture
def fails(capsys):
    """Runs a command, of words and lists of words, that must fail, and returns its message."""

    def run(*arguments) -> str:
        words = [word for part in arguments for word in (part if isinstance(part, list | tuple) else [part])]
        assert cli.main([*map(str, words)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert "Traceback" not in message
        return message

    return run


def rows(directory: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table of an evaluation."""
    with (directory / "evaluation" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def functions(count: int, side: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """A smooth function on the midpoints of the unit square, and twice it and its square."""
    nodes = (np.arange(side) + 0.5) / side
    a, b = np.random.default_rng(seed).normal(size=(2, count, 1, 1))
    u = a * np.sin(np.pi * nodes)[:, None] + b * np.cos(np.pi * nodes)
    return {"x": u.astype(np.float32), "y": np.stack([2 * u, u**2], axis=-1).astype(np.float32)}


def write_hdf5(path: Path, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with a.npz and a.h5 on 16², and b.npz and c.h5 on 32²."""
    folder = tmp_path_factory.mktemp("files")
    write_npz(folder / "a.npz", **functions(20, 16))
    write_hdf5(folder / "a.h5", **functions(20, 16))
    write_npz(folder / "b.npz", **functions(5, 32, seed=1))
    write_hdf5(folder / "c.h5", **functions(4, 32, seed=2))
    return folder


@pytest.fixture(scope="session")
def trained(files, tmp_path_factory) -> Path:
    """The run directory of a FANO trained for three steps on a.npz."""
    directory = tmp_path_factory.mktemp("runs") / "fano"
    with without_type_checks():  # it is made before the test's own fixtures
        jaxop("train", *custom(files / "a.npz", directory))
    return directory


def jaxop(*arguments: Any) -> None:
    """The command line, which succeeds."""
    assert cli.main(["--traceback", *map(str, arguments)]) == 0


def parsed(arguments: Sequence[str]) -> Experiment:
    """What ``jaxop train`` makes of its arguments."""
    return options.of_recipe(load_recipe(arguments[0]), arguments[1:], prog="jaxop train")


def custom(file: Path, directory: Path, *options: str, operator: str = "fano") -> list[str]:
    """Arguments of a tiny run on a file."""
    size = [] if operator == "fno" else TINY
    arguments = ["custom", "--data.train", str(file), "--data.operator", operator, "--run-dir", str(directory)]
    return [*arguments, *SHORT, *size, *options]
