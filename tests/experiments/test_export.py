"""The operator of a run as a folder and as a program, from the command line."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxop
from jaxop import data, domains, training
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


def called(path, **given):
    """The outputs of a program, computed by JAX alone."""
    program = jax.export.deserialize(bytearray(zipfile.ZipFile(path).read("operator.bin")))
    return program, program.call(**given)


@pytest.mark.thorough
def test_a_run_becomes_a_program_for_any_nodes(tmp_path, capsys):
    path, domain = tmp_path / "mine.zip", domains.interval(11)
    assert cli.main(["export", str(RUN), "--to", str(path), "--checkpoint", "4"]) == 0
    assert capsys.readouterr().out == f"program: {path}\n"
    program, outputs = called(path, values=jnp.ones((2, 11, 1)), points=domain.points, weights=domain.weights)
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert cli.main(["predict", str(path), "u.npz", "--to", str(tmp_path / "out")]) == 2
    assert re.search(r"mine.zip is a program .* JAX alone: .* Give the model", capsys.readouterr().err)
    expected = training.load_run(RUN).model(checkpoint=4)(jnp.ones((2, 11, 1)), domain)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_a_folder_becomes_a_program_for_the_nodes_of_a_file(tmp_path):
    domain, folder, path = domains.interval(9), export_model(RUN, tmp_path / "mine"), tmp_path / "nine.zip"
    functions = np.ones((2, 9, 1), np.float32)
    data.save(tmp_path / "nodes.npz", data.Samples(functions, functions, domain))
    options = ["--symbolic", "batch", "--domain", str(tmp_path / "nodes.npz"), "--platforms", "cpu"]
    assert cli.main(["export", str(folder), "--to", str(path), *options]) == 0
    program, outputs = called(path, values=jnp.ones((3, 9, 1)))
    assert program.platforms == ("cpu",)
    expected = jaxop.from_pretrained(folder)(jnp.ones((3, 9, 1)), domain)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/run", "--to", "x.zip"], "no/run is not a run directory"),
        ([str(RUN), "--to", "x.bin"], "must be a file name that ends in .zip"),
        ([str(RUN), "--to", "x.zip", "--symbolic", "batch"], "domain must be given unless the nodes are symbolic"),
        ([str(RUN), "--to", "x.zip", "--symbolic", "sides"], "'sides'"),
        ([str(RUN), "--to", "x.zip", "--platforms", "gpu"], "'gpu'"),
        ([str(RUN), "--to", "x.zip", "--domain", "no.npz"], "no.npz"),
    ],
)
def test_what_cannot_become_a_program_is_named(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
