"""Ensembles on the command line: one option trains one, and its run is what any run is."""

import json
import re
import zipfile

import numpy as np
import pytest

import jaxop as library
from jaxop import data, experiments, operators, training
from tests.experiments.conftest import custom, functions, jaxop, rows, write_npz

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("no_rendering")]


@pytest.mark.thorough
def test_a_run_of_several_members_is_trained_evaluated_resumed_and_given_away(tmp_path, capsys):
    file, run = write_npz(tmp_path / "a.npz", **functions(12, 8)), tmp_path / "run"
    small = ("--model.width", "4", "--model.layers", "1", "--model.modes", "2", "--model.projection", "4")
    jaxop("train", *custom(file, run, *small, "--training.members", "3", operator="fno"))
    text = capsys.readouterr().out
    assert "of each of 3 members" in text
    assert "members of the ensemble" in text
    jaxop("resume", run)
    jaxop("evaluate", run, "--data", file, "--name", "again")
    jaxop("predict", run, file, "--to", tmp_path / "predicted")
    model = training.load_run(run).model()
    assert isinstance(model, operators.Ensemble)
    samples = data.read(file)
    with np.load(tmp_path / "predicted" / "a.npz") as predicted:
        outputs = predicted["y"] if "y" in predicted else predicted[predicted.files[-1]]
    expected = training.predict(model, samples)
    np.testing.assert_allclose(outputs.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    errors = training.evaluate_ensemble(model, samples)
    (row,) = rows(run, "again")
    for name, found in (("rel_l2", errors.l2), ("rel_crps", errors.crps), ("rel_spread", errors.spread)):
        assert float(row[name]) == pytest.approx(float(found.mean()), rel=1e-4)
    record = json.loads((run / "evaluation" / "again.json").read_text())
    levels, observed = training.calibration_curve(errors.ranks)
    assert record["calibration"]["a.npz"] == {"levels": pytest.approx(levels), "observed": pytest.approx(observed)}
    assert (run / "figures" / "again-calibration.png").is_file()
    jaxop("export-model", run, "--to", tmp_path / "model.zip")
    card = zipfile.ZipFile(tmp_path / "model.zip").read("card.md").decode().partition("## Members")[2]
    assert re.search(rf"\| a.npz \|.*\| {float(row['rel_crps']):.3e} \|", card)
    loaded = library.from_pretrained(tmp_path / "model.zip")
    np.testing.assert_array_equal(training.predict(loaded, samples), expected)
    jaxop("evaluate", tmp_path / "model.zip", "--data", file, "--to", tmp_path / "tables")
    assert rows(tmp_path / "tables", "evaluation")[0]["rel_crps"] == row["rel_crps"]


def test_the_curve_is_drawn_from_corner_to_corner():
    figure = experiments.plot_calibration({"_a$": (np.array([0.5]), np.array([0.1]))}, title="a $b$")
    (axes,) = figure.axes
    assert axes.lines[1].get_xydata().tolist() == [[0, 0], [0.5, 0.1], [1, 1]]
    assert axes.get_title() == "a $b$"
