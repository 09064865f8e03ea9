"""The study of two-level Schwarz attention, at a size that takes seconds."""

import dataclasses

import numpy as np
import pytest
from studies.run import command_line
from studies.schwarz import conjugate_gradients, fits, poisson, training, transfer
from studies.schwarz.coefficient import coefficient
from studies.schwarz.setting import Study

from jaxop.experiments import comparison, terminal

pytestmark = pytest.mark.optax
TINY = Study(nodes=31, subdomains=4, overlap=2, modes=8, steps=2)


def test_a_setting_that_cannot_be_is_a_message(capsys):
    arguments = ["schwarz", "rank", "--nodes", "63", "--overlap", "20"]
    assert terminal.run_command(command_line, arguments) == 2
    assert capsys.readouterr().err.startswith("error: overlap=20 nodes is larger than a subdomain")
    with pytest.raises(ValueError, match="overlap=20"):
        terminal.run_command(command_line, [*arguments, "--traceback"])


@pytest.mark.parametrize("setting", [{"modes": 256}, {"modes": 0}, {"decay": float("nan")}, {"seeds": ()}])
def test_settings_of_the_study_are_checked(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"--{name} must"):
        Study(**setting)


def test_adam_needs_time_and_modes_to_leave_out():
    with pytest.raises(ValueError, match=r"--seconds must be positive, got -1\.0"):
        training.descent(TINY, -1.0)
    with pytest.raises(ValueError, match="--modes must be below the 31 nodes"):
        training.descent(dataclasses.replace(TINY, modes=31), 1.0)


@pytest.mark.study
def test_every_table_of_a_small_study(x64, capsys):
    fits.sweep(TINY, "overlap", (0, 2))
    fits.ablation(TINY)
    transfer.transfer(TINY)
    training.descent(dataclasses.replace(TINY, seeds=(0, 1)), 0.05)
    poisson.poisson(TINY, sides=(15,), core=8, rank=1, waves=3)
    conjugate_gradients.plane(TINY, sides=(15, 31), core=8)
    conjugate_gradients.line(TINY, counts=(4,), core=8)
    out = capsys.readouterr().out
    for label in ("| 2 | ", "| local only | ", "| 5, 0 (multiplicity) | ", "| global, Adam | ", "| 15², 2² | "):
        assert label in out
    error, bound = (float(cell) for cell in out.split("| two levels | ")[1].split(" | ")[1:3])
    assert bound <= error < 1e-2


@pytest.mark.study
def test_networks_that_see_the_coefficient(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "seconds_per_step", lambda *_: 1.0)
    study = dataclasses.replace(TINY, seeds=(0,))
    errors = coefficient(study, 2.0, side=48, train_samples=8, test_samples=2, run_dir=tmp_path)
    assert set(errors) == {"two levels", "local only", "global"}
    assert all(np.isfinite(values).all() and values.shape == (1, 2) for values in errors.values())
    assert "| seconds | 16² | 48² |" in capsys.readouterr().out
