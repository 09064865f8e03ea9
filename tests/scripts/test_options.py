"""The options of the scripts."""

import pytest

from tests.scripts import conftest  # noqa: F401, its import puts the scripts on the path

import evaluate  # isort: skip
import train  # isort: skip


@pytest.mark.parametrize(
    ("script", "arguments", "command"),
    [
        (train, ["demo", "--model.width", "8"], ["train", "demo", "--model.width", "8"]),
        (train, ["resume", "runs/wide"], ["resume", "runs/wide"]),
        (train, ["--help"], ["train", "--help"]),
        (train, [], ["train"]),
        (evaluate, ["runs/wide", "--grids", "32"], ["evaluate", "runs/wide", "--grids", "32"]),
    ],
)
def test_scripts_are_commands_of_the_package(script, arguments, command, monkeypatch):
    called = []
    monkeypatch.setattr("jaxop.experiments.cli.main", lambda arguments: called.append(arguments) or 3)
    assert script.main(arguments) == 3
    assert called == [command]
