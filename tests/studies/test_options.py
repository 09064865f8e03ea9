"""Numbers that no study can use are refused before anything is fetched or made."""

import pytest
from studies import darcy, kernels, machines, momentum_operators, momentum_text
from studies.run import STUDIES, command_line

from jaxop.experiments import terminal

pytestmark = pytest.mark.optax


@pytest.mark.parametrize(
    ("comparison", "option", "message"),
    [
        (kernels.Comparison, {"steps": 0}, "--steps must be positive"),
        (momentum_text.Comparison, {"seeds": ()}, "--seeds must have at least one value"),
        (momentum_text.Comparison, {"learning_rate": -1.0}, "--learning-rate must be positive"),
        (momentum_operators.Comparison, {"minutes": float("inf")}, "--minutes must be positive and finite, got inf"),
        (darcy.Comparison, {"operators": ("fna",)}, "operators='fna' is unknown: did you mean 'fno' or 'fano'"),
        (darcy.Comparison, {"operators": ()}, "--operators must have at least one value"),
        (darcy.Comparison, {"minutes": float("nan")}, "--minutes must be positive and finite, got nan"),
        (darcy.Comparison, {"test_samples_tno": 0}, "--test-samples-tno must be positive"),
        (machines.Comparison, {"seeds": (0, -1)}, "--seeds must not be negative, got -1"),
    ],
)
def test_comparisons_refuse_what_they_cannot_use_at_once(comparison, option, message):
    with pytest.raises(ValueError, match=message):
        comparison(**option)


def test_a_setting_that_no_study_can_use_is_one_message(capsys):
    with pytest.raises(SystemExit) as stop:
        terminal.run_command(command_line, ["momentum-text", "softmax", "--steps", "0"])
    assert stop.value.code == 2
    assert "--steps must be positive and finite, got 0." in capsys.readouterr().err


def test_unknown_packages_are_refused(capsys):
    assert terminal.run_command(command_line, ["fetch", "mnits"]) == 2
    assert "package 'mnits' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_lists_its_options(study, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line([study, "--help"])
    assert stop.value.code == 0
    assert "--cache" in capsys.readouterr().out or study in ("bands", "darcy", "schwarz", "theory")
