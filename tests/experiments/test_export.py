"""The operator of a run as a folder, from the command line."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxop
from jaxop import domains, training
from jaxop.experiments import cli, export_model

RUN = Path(__file__).parents[1] / "training/earlier_run/tno"


def test_a_run_becomes_a_model_that_needs_no_run(tmp_path, capsys):
    assert cli.main(["export-model", str(RUN), "--to", str(tmp_path / "mine"), "--checkpoint", "4"]) == 0
    assert capsys.readouterr().out == f"model: {tmp_path / 'mine'}\n"
    model, domain = jaxop.from_pretrained(tmp_path / "mine"), domains.interval(16)
    expected = training.load_run(RUN).model(checkpoint=4)(jnp.ones((16, 1)), domain)
    np.testing.assert_array_equal(model(jnp.ones((16, 1)), domain), expected)
    card = (tmp_path / "mine" / "card.md").read_text()
    for part in ("## Data", "d42d4f2b", "## Training\n\nStep 4", '"learning_rate": 0.001', "| held out (validation) |"):
        assert part in card


def test_the_card_does_not_name_folders_of_this_machine(tmp_path):
    run = shutil.copytree(RUN, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"train": "/home/someone/secret/pairs.npz", "test": ["/data/a.npz"]}
    (run / "config.json").write_text(json.dumps(config))
    card = (export_model(run, tmp_path / "mine") / "card.md").read_text()
    assert "pairs.npz" in card
    assert "a.npz" in card
    assert "/home" not in card
    assert "/data" not in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/run", "--to", "x"], "no/run is not a run directory"),
        ([str(RUN), "--to", "x", "--checkpoint", "3"], "has no checkpoint 3; steps there: [4"),
        ([str(RUN), "--to", str(RUN)], "tno exists already"),
    ],
)
def test_what_cannot_be_exported_is_named(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export-model", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
