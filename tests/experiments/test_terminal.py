"""Every terminal shows what the commands print, and a name is no markup."""

import io
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from jaxop.experiments import cli, plots, report, terminal
from tests.experiments.conftest import functions, jaxop, write_npz

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("no_rendering")]


class Ascii(io.TextIOWrapper):
    """A terminal that knows ASCII only."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii")

    @property
    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()


def test_a_table_is_printed_in_ascii(trained, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Ascii())
    assert cli.main(["evaluate", str(trained), "--name", "plain", "--samples", "1"]) == 0
    assert "16 x 16" in sys.stdout.shown


def test_help_is_printed_in_ascii(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Ascii())
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "trained at 64^2" in sys.stdout.shown


def test_what_has_no_replacement_is_a_question_mark(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Ascii())
    terminal.print_anywhere()
    print("5² ± 1 … 漢")
    assert sys.stdout.shown == "5^2 +- 1 ... ?\n"


def test_names_are_no_markup(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    name = "[red] [ we$ird^$_ :smile: ü².npz"
    jaxop("evaluate", str(trained), "--data", str(write_npz(tmp_path / name, **functions(3, 16))), "--name", "names")
    assert f" {name} " in capsys.readouterr().out
    assert f"\n{name},16 × 16,3," in (trained / "evaluation" / "names.csv").read_text(encoding="utf-8")


def test_the_run_directory_is_no_markup(capsys):
    run = types.SimpleNamespace(config={"operator": "fano"}, directory=Path("run [red] end"))
    terminal.make_console().print(report.error_table(run, []))
    assert "run [red] end" in capsys.readouterr().out


def test_the_table_outlives_its_pictures(trained, monkeypatch, capsys):
    def fail(figure, path):
        raise RuntimeError("there is no ink")

    monkeypatch.setattr(plots, "save_figure", fail)
    jaxop("evaluate", str(trained), "--name", "kept", "--samples", "1")
    shown = " ".join(capsys.readouterr().out.split())
    assert "was not drawn (RuntimeError: there is no ink)" in shown
    assert (trained / "evaluation" / "kept.csv").is_file()


def test_pictures_of_all_sets_have_names_of_their_own():
    labels = ["a/b.npz", "a-b.npz", "64²", "64", "x" * 300]
    names = report.file_names(labels)
    assert names[:4] == ["a-b.npz", "a-b.npz-2", "64", "64-2"]
    assert len(names[4]) == 100


def test_warnings_about_the_input_are_one_line():
    before, shown = warnings.formatwarning, []

    def command(arguments):
        for kind in (UserWarning, DeprecationWarning):
            shown.append(warnings.formatwarning("nodes are rounded", kind, "a.py", 3))

    assert terminal.run_command(command, []) == 0
    assert shown[0] == "warning: nodes are rounded\n"
    assert shown[1].startswith("a.py:3: DeprecationWarning: nodes are rounded")
    assert warnings.formatwarning is before


@pytest.mark.thorough
def test_a_reader_who_has_gone_is_no_error():
    command = f"{sys.executable} -m jaxop list | true"  # which ends before anything is printed
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stderr == ""
