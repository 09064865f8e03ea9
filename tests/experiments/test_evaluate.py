import jax
import numpy as np
import pytest

from jaxop import data, training
from tests.experiments.conftest import custom, functions, jaxop, rows, write_npz

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("no_rendering")]


@pytest.mark.thorough
def test_a_run_is_evaluated_on_files_of_any_type_and_grid(trained, files):
    jaxop("evaluate", str(trained), "--data", str(files / "b.npz"), str(files / "c.h5"), "--name", "files")
    table = rows(trained, "files")
    assert [(row["set"], row["grid"], row["samples"]) for row in table] == [
        ("b.npz", "32 × 32", "5"),
        ("c.h5", "32 × 32", "4"),
    ]
    for picture in ("files-b.npz.png", "files-c.h5.png", "files-errors.png"):
        assert (trained / "figures" / picture).is_file()


def test_errors_are_those_of_the_physical_fields(trained, files):
    """Recomputed by hand: midpoint weights cancel in the ratio of norms."""
    jaxop("evaluate", str(trained), "--data", str(files / "b.npz"), "--name", "physical")
    run = training.load_run(trained)
    model = run.blank_model()
    samples = data.read(files / "b.npz")
    outputs = training.predict(run.restore(model), samples)
    errors = np.linalg.norm(outputs - samples.targets, axis=(1, 2)) / np.linalg.norm(samples.targets, axis=(1, 2))
    (row,) = rows(trained, "physical")
    np.testing.assert_allclose(float(row["rel_l2"]), errors.mean(), rtol=1e-4)
    assert int(row["worst_sample"]) == errors.argmax()
    np.testing.assert_allclose(float(row["worst_rel_l2"]), errors.max(), rtol=1e-4)


def test_without_data_the_test_sets_of_the_run_are_evaluated(trained):
    jaxop("evaluate", str(trained), "--name", "again", "--samples", "1", "--checkpoint", "last")
    assert [(row["set"], row["samples"]) for row in rows(trained, "again")] == [("held out", "1")]


def test_files_may_use_other_names(trained, files, tmp_path):
    with np.load(files / "b.npz") as file:
        other = write_npz(tmp_path / "other.npz", a=file["x"], p=file["y"])
    jaxop("evaluate", str(trained), "--data", str(other), "--inputs", "a", "--targets", "p", "--name", "other")
    assert len(rows(trained, "other")) == 1


@pytest.mark.thorough
@pytest.mark.parametrize(("operator", "field"), [("tno", "model.attention.kernel"), ("vitno", "model.kernel")])
def test_a_kernel_chosen_on_the_command_line_comes_back_with_the_run(operator, field, tmp_path):
    file = write_npz(tmp_path / "a.npz", **functions(9, 16 if operator == "vitno" else 8))  # several patches
    choice = (f"{field}:fourier-integral-config", f"--{field}.radius", "0.5", f"--{field}.per", "channel")
    jaxop("train", *custom(file, tmp_path / "run", *choice, operator=operator))
    run = training.load_run(tmp_path / "run")
    settings = run.config["model"]["attention"]["kernel"] if operator == "tno" else run.config["model"]["kernel"]
    assert settings == {"name": "fourier", "radius": 0.5, "power": 4, "epsilon": 0.0, "per": "channel"}
    jaxop("evaluate", str(tmp_path / "run"), "--data", str(file), "--samples", "1")
    parameters = run.model()
    radii = [leaf for leaf in jax.tree.leaves(parameters) if leaf.shape == (2, 4)]
    assert len(radii) == 1
    assert np.abs(radii[0] - 0.5).max() > 0
