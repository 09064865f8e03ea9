import csv

import numpy as np
import pytest

from jaxop import data, training
from tests.scripts.conftest import write_npz

import evaluate  # isort: skip
import experiment  # isort: skip

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("no_rendering")]


def rows(directory, name):
    with (directory / "evaluation" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_is_evaluated_on_files_of_any_type_and_grid(trained, files):
    evaluate.main([str(trained), "--data", str(files / "b.npz"), str(files / "c.h5"), "--name", "files"])
    table = rows(trained, "files")
    assert [(row["set"], row["grid"], row["samples"]) for row in table] == [
        ("b.npz", "32 × 32", "5"),
        ("c.h5", "32 × 32", "4"),
    ]
    for picture in ("files-b.npz.png", "files-c.h5.png", "files-errors.png"):
        assert (trained / "figures" / picture).is_file()


def test_errors_are_those_of_the_physical_fields(trained, files):
    """Recomputed by hand: midpoint weights cancel in the ratio of norms."""
    evaluate.main([str(trained), "--data", str(files / "b.npz"), "--name", "physical"])
    run = training.load_run(trained)
    _, model = experiment.recorded(run)
    samples = data.read(files / "b.npz")
    outputs = training.predict(run.restore(model), samples)
    errors = np.linalg.norm(outputs - samples.targets, axis=(1, 2)) / np.linalg.norm(samples.targets, axis=(1, 2))
    (row,) = rows(trained, "physical")
    np.testing.assert_allclose(float(row["rel_l2"]), errors.mean(), rtol=1e-4)
    assert int(row["worst_sample"]) == errors.argmax()
    np.testing.assert_allclose(float(row["worst_rel_l2"]), errors.max(), rtol=1e-4)


def test_without_data_the_test_sets_of_the_run_are_evaluated(trained):
    evaluate.main([str(trained), "--name", "again", "--samples", "1", "--checkpoint", "last"])
    assert [(row["set"], row["samples"]) for row in rows(trained, "again")] == [("held out", "1")]


def test_files_may_use_other_names(trained, files, tmp_path):
    with np.load(files / "b.npz") as file:
        other = write_npz(tmp_path / "other.npz", a=file["x"], p=file["y"])
    evaluate.main([str(trained), "--data", str(other), "--inputs", "a", "--targets", "p", "--name", "other"])
    assert len(rows(trained, "other")) == 1
