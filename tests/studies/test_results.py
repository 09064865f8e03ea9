"""Results files say how they were measured, and their commands exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from benchmarks.run import SECTIONS
from docs import results_index
from studies import results
from studies.commands import read_command, run_command
from studies.run import STUDIES, command_line
from studies.schwarz import tables
from studies.table import print_header, print_row

from jaxop.experiments import terminal

pytestmark = pytest.mark.optax
ROOT = Path(__file__).parents[2]
COMMANDS = {"benchmarks": SECTIONS, "studies": STUDIES}
FILES = sorted(path for folder in COMMANDS for path in (ROOT / "scripts" / folder).glob("*.md"))
EARLIER = "earlier"
"""The file of the tables that no script has written."""
CLAIMS = results_index.INDEX.with_name("claims.md")
ABOUTS = {
    folder: {name: getattr(importlib.import_module(command.module), "ABOUT", {}) for name, command in commands.items()}
    for folder, commands in COMMANDS.items()
}
CPUINFO = """processor\t: 0
model name\t: Abacus 3000
flags\t\t: fpu sse2 avx {}

processor\t: 1
model name\t: Abacus 3000
"""


def commands_in(path):
    return re.findall(r"command: `([^`]+)`", path.read_text(encoding="utf-8"))


def check_command(command):
    """Raises an error unless a command line of a file can be read today."""
    program, script, *arguments = shlex.split(command)
    folder = Path(script).parent.name
    if Path(script).name == "run.py" and folder in COMMANDS:
        assert program == "python"
        assert (ROOT / script).is_file()
        read_command(COMMANDS[folder], None, arguments)
    else:
        paths = [word.partition("::")[0] for word in (script, *arguments) if "/" in word]
        assert paths
        assert all((ROOT / path).exists() for path in paths)


def tiny_table():
    print_header("n", "seconds")
    print_row(3, "0.1 s")


def test_a_file_is_a_header_and_what_is_printed(tmp_path, monkeypatch, capsys):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO.format("avx2"))
    monkeypatch.setattr(results, "CPUINFO", cpuinfo)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    about = results.About("Tiny", "One row. " * 30, packages=("numpy", "no-such-package"))
    results.write(tmp_path / "tiny.md", about, "python tiny.py --write", "0 1", tiny_table)
    table = "| n | seconds |\n|---|---|\n| 3 | 0.1 s |\n"
    assert capsys.readouterr().out == "\n" + table
    text = (tmp_path / "tiny.md").read_text(encoding="utf-8")
    title, prose, header, rows = text.split("\n\n")
    assert title == "# Tiny"
    assert max(map(len, prose.splitlines())) <= 120
    assert rows == table
    facts = dict(line.removeprefix("- ").split(": ", 1) for line in header.splitlines())
    assert list(facts) == [
        "command", "date", "took", "processor", "cores", "load", "versions", "seeds", "limits",
    ]  # fmt: skip
    assert facts["command"] == "`python tiny.py --write`"
    assert facts["processor"] == "Abacus 3000, AVX2"
    assert facts["seeds"] == "0 1"
    for package in ("Python", "jax", "jaxlib", "flax", "jaxop", "numpy"):
        assert re.search(rf"\b{package} \d", facts["versions"])
    assert "OMP_NUM_THREADS=1" in facts["limits"]
    assert "no-such-package is not installed and its cells are empty" in facts["limits"]


def test_the_widest_vectors_are_named():
    assert results.processor(CPUINFO.format("avx2 avx512f")) == "Abacus 3000, AVX-512"
    assert results.processor(CPUINFO.format("")) == "Abacus 3000, AVX"
    assert results.processor("") == results.platform.machine()


def test_a_table_that_fails_leaves_no_file(tmp_path):
    def fail():
        tiny_table()
        raise ValueError("no more rows")

    with pytest.raises(ValueError, match="no more rows"):
        results.write(tmp_path / "tiny.md", results.About("Tiny", ""), "python tiny.py", "0", fail)
    assert list(tmp_path.iterdir()) == []


def written_by(arguments, folder):
    """The text of the only file that a study writes beside its script."""
    script = folder / "studies" / "run.py"
    script.parent.mkdir()
    run_command(STUDIES, None, arguments, script)
    (path,) = script.parent.iterdir()
    assert path.name == f"{arguments[0]}-{arguments[1]}.md"
    assert commands_in(path) == [f"python scripts/studies/run.py {' '.join(arguments)}"]
    return path.read_text(encoding="utf-8")


def test_a_command_writes_its_file(tmp_path, monkeypatch):
    monkeypatch.setitem(tables.TABLES, "training", lambda *_: tiny_table())
    text = written_by(["schwarz", "training", "--seeds", "3", "4", "--write"], tmp_path)
    assert text.startswith("# Two-level Schwarz operators trained on samples\n")
    assert "- seeds: 3 4\n" in text
    assert text.endswith("| 3 | 0.1 s |\n")


@pytest.mark.study
def test_a_study_writes_its_table(tmp_path, capsys):
    sizes = ["--nodes", "63", "--overlap", "2", "--modes", "4", "--steps", "1"]
    text = written_by(["schwarz", "subdomains", *sizes, "--write"], tmp_path)
    assert text.endswith(capsys.readouterr().out)
    assert "- seeds: nothing here is random\n" in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 1 + 4


def test_what_has_no_results_file_is_not_written(capsys):
    for arguments in (["fetch", "--write"], ["schwarz", "all", "--write"]):
        assert terminal.run_command(command_line, arguments) == 2
        assert "has no results file; leave --write out" in capsys.readouterr().err


@pytest.mark.parametrize("folder", COMMANDS)
def test_every_results_file_can_be_written(folder):
    for name, abouts in ABOUTS[folder].items():
        assert abouts or name == "fetch"
        for stem, about in abouts.items():
            arguments = [name, *filter(None, [stem.removeprefix(name).removeprefix("-")]), "--write"]
            call = read_command(COMMANDS[folder], None, arguments)
            assert (call.name, call.about) == (stem, about)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_of_a_file_can_be_read_and_write_it(path):
    commands = commands_in(path)
    assert commands
    for command in commands:
        check_command(command)
    if path.stem != EARLIER:
        (command,) = commands
        _, _, *arguments = shlex.split(command)
        call = read_command(COMMANDS[path.parent.name], None, arguments)
        assert call.name == path.stem
        assert path.read_text(encoding="utf-8").startswith(f"# {call.about.title}\n")


def test_the_index_lists_every_file():
    text = results_index.INDEX.read_text(encoding="utf-8")
    assert text == results_index.page(), "run python scripts/docs/results_index.py"
    links = re.findall(r"\]\(([^)]+\.md)\)", text)
    assert sorted(links) == sorted([*(f"../../{path.parent.name}/{path.name}" for path in FILES), CLAIMS.name])


def test_a_file_without_a_header_is_not_listed(tmp_path):
    (tmp_path / "typed.md").write_text("by hand")
    with pytest.raises(ValueError, match=r"typed\.md has no title or no date"):
        results_index.line(tmp_path / "typed.md")
    assert results_index.line(tmp_path / "missing.md") is None


def test_the_commands_of_the_claims_can_be_read():
    commands = commands_in(CLAIMS)
    assert commands
    for command in commands:
        check_command(command)
