"""The study of two-level Schwarz attention, at a size that takes seconds."""

import dataclasses

import pytest

from jaxop.experiments import terminal
from tests.scripts import conftest  # noqa: F401, its import puts the scripts on the path

import compare_schwarz  # isort: skip

pytestmark = pytest.mark.optax
TINY = compare_schwarz.Study(nodes=31, subdomains=4, overlap=2, modes=8, steps=2)


def test_a_setting_that_cannot_be_is_a_message(capsys):
    arguments = ["rank", "--nodes", "63", "--overlap", "20"]
    assert terminal.run_command(compare_schwarz.command_line, arguments) == 2
    assert capsys.readouterr().err.startswith("error: overlap=20 nodes is larger than a subdomain")
    with pytest.raises(ValueError, match="overlap=20"):
        terminal.run_command(compare_schwarz.command_line, [*arguments, "--traceback"])


def test_every_table_of_a_small_study(x64, capsys):
    compare_schwarz.sweep(TINY, "overlap", (0, 2))
    compare_schwarz.ablation(TINY)
    compare_schwarz.transfer(TINY)
    compare_schwarz.descent(dataclasses.replace(TINY, seeds=(0, 1)), 0.05)
    compare_schwarz.poisson(TINY, sides=(15,), core=8, rank=1, waves=3)
    compare_schwarz.plane_cg(TINY, sides=(15, 31), core=8)
    out = capsys.readouterr().out
    for label in ("| 2 | ", "| local only | ", "| 5, 0 (multiplicity) | ", "| global, Adam | ", "| 15², 2² | "):
        assert label in out
    error, bound = (float(cell) for cell in out.split("| two levels | ")[1].split(" | ")[1:3])
    assert bound <= error < 1e-2
