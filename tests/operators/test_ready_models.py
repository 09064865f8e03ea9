"""The trained models that come with the package."""

import re
from pathlib import Path

import numpy as np
import pytest

import jaxop
from jaxop import data, operators, training
from jaxop.operators.ready import READY, located

NAMES = sorted(path.name for path in READY.iterdir())

EXPECTED = {
    "darcy_lognormal_fno": 0.02,
    "darcy_lognormal_tno": 0.03,
    "darcy_two_valued_fano": 0.03,
    "darcy_two_valued_fno": 0.02,
}
"""Bounds of the relative errors in L2 that the cards state, with a margin for ten samples."""


def test_they_are_listed_with_what_they_do():
    about = operators.ready_models()
    assert list(about) == NAMES == list(EXPECTED)
    assert all(text.startswith("Darcy flow by ") and text.endswith(".") for text in about.values())


def test_they_are_small():
    assert sum(path.stat().st_size for path in READY.rglob("*")) < 5_000_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sample(2)
def test_new_functions_are_predicted_as_well_as_the_card_says(name):
    coefficient = "lognormal" if "lognormal" in name else "two-valued"
    samples = data.darcy_resolutions(10, (32,), seed=1, first=10**6, reference=128, coefficient=coefficient)[32]
    errors = training.evaluate(jaxop.from_pretrained(name), samples).l2
    assert np.mean(errors) < EXPECTED[name]
    card = (READY / name / "card.md").read_text(encoding="utf-8")
    assert all(f"\n## {title}\n" in card for title in ("What it does", "Data", "Training", "Errors", "Licence"))


def test_the_functions_of_their_training_are_no_calibration():
    """The first functions that the generator draws, with the seed 0, are those of the training."""
    model = jaxop.from_pretrained("darcy_two_valued_fno")
    levels = {"alpha": 0.1, "delta": 0.2, "trained_on": "darcy_two_valued_fno"}
    with pytest.raises(ValueError, match="4 of 4 are in trained_on"):
        training.calibrate(model, data.darcy(4, 64, seed=0), **levels)
    assert training.calibrate(model, data.darcy(4, 64, seed=1), **levels).config.count == 4


def test_the_guide_has_the_numbers_of_the_cards():
    guide = (Path(__file__).parents[2] / "scripts/docs/guides/models.md").read_text(encoding="utf-8")
    for name in NAMES:
        card = (READY / name / "card.md").read_text(encoding="utf-8")
        (row,) = re.findall(rf"^\| `{name}` .*$", guide, re.MULTILINE)
        errors = re.findall(r"^\| \S+ \| [^|]*\| 100 \| (\S+) \|", card, re.MULTILINE)
        assert re.findall(r"([\d.]+) %", row) == [f"{100 * float(error):.2f}" for error in errors]
        assert f"has {row.split(' | ')[3]} numbers" in card


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located(NAMES[0]) == READY / NAMES[0]
    (tmp_path / NAMES[0]).mkdir()
    assert located(NAMES[0]).resolve() == tmp_path / NAMES[0]
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        jaxop.from_pretrained(NAMES[0])


def test_a_name_that_is_none_is_told_the_closest():
    with pytest.raises(FileNotFoundError, match=r"darcy_two_valued_fmo.*darcy_two_valued_fno"):
        jaxop.from_pretrained("darcy_two_valued_fmo")
