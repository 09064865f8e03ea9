"""Folders of meshes are trained on, evaluated and predicted for from the command line."""

import csv
import sys

import meshio
import numpy as np
import pytest
from scipy.spatial import Delaunay

from jaxop import data, training
from jaxop.experiments import cli
from tests.experiments.conftest import custom, functions, jaxop, without_type_checks, write_npz

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("no_rendering")]


def write_meshes(folder, counts, *, seed=0, fields=("u", "v")):
    folder.mkdir()
    random = np.random.default_rng(seed)
    for i, n in enumerate(counts):
        points = random.random((n, 2))
        u = np.sin(np.pi * points[:, 0]).astype(np.float32)
        every = {"u": u, "v": np.stack([2 * u, u**2, 0 * u], axis=1)}
        meshio.write_points_cells(
            folder / f"m{i}.vtu",
            np.pad(points, [(0, 0), (0, 1)]).astype(np.float32),
            [("triangle", Delaunay(points).simplices)],
            point_data={name: every[name] for name in fields},
        )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of a TNO that is trained for three steps on a folder of meshes."""
    folder = tmp_path_factory.mktemp("meshes")
    meshes = write_meshes(folder / "train", [30, 32, 31, 30, 32, 31])
    names = ("--data.inputs", "u", "coordinates", "--data.targets", "v", "--training.batch-size", "2")
    with without_type_checks():
        jaxop("train", *custom(meshes, folder / "run", *names, operator="tno"))
    return folder / "run"


def predict(run, *arguments):
    return cli.main(["--traceback", "predict", str(run), *map(str, arguments)])


def test_a_folder_is_trained_on_and_evaluated(run, tmp_path):
    assert training.load_run(run).config["data"]["inputs"] == ["u", "coordinates"]
    jaxop("evaluate", run, "--data", write_meshes(tmp_path / "new", [40, 25]), "--name", "new")
    with (run / "evaluation" / "new.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["set"], row["grid"], row["samples"]) == ("new", "25–40 nodes", "2")


def test_predictions_for_meshes_are_meshes_with_the_outputs(run, tmp_path, capsys):
    folder = write_meshes(tmp_path / "new", [40, 25], fields=("u",))
    assert predict(run, folder / "m1.vtu", folder / "m0.vtu", "--to", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1/2 {folder}/m1.vtu (25 nodes): {tmp_path}/out/m1.vtu"
    samples = data.read(folder, inputs=["u", "coordinates"], targets="u")
    outputs = training.predict(training.load_run(run).model(), samples)
    for i in range(2):
        mesh, given = (meshio.vtu.read(str(where / f"m{i}.vtu")) for where in (tmp_path / "out", folder))
        np.testing.assert_array_equal(mesh.points, given.points)
        np.testing.assert_array_equal(mesh.cells[0].data, given.cells[0].data)
        np.testing.assert_allclose(mesh.point_data["v"], outputs[i], rtol=1e-5, atol=1e-6)


def test_predictions_for_grids_are_grids(trained, files, tmp_path):
    arrays = functions(3, 32, seed=4)
    write_npz(tmp_path / "g.npz", x=arrays["x"])
    assert predict(trained, tmp_path / "g.npz", "--to", tmp_path / "out") == 0
    samples = data.read(tmp_path / "out" / "g.npz")
    assert samples.domain.shape == (32, 32)
    expected = training.predict(training.load_run(trained).model(), samples)
    np.testing.assert_allclose(samples.targets, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(samples.inputs[..., 0], arrays["x"].reshape(3, -1))


def test_predictions_for_rows_with_offsets_are_rows_with_offsets(run, tmp_path):
    meshes = data.read(write_meshes(tmp_path / "new", [20, 25]), inputs=["u", "coordinates"], targets="u")
    data.save(tmp_path / "rows.npz", meshes)
    assert predict(run, tmp_path / "rows.npz", "--to", tmp_path / "out", "--inputs", "x") == 0
    rows = data.read(tmp_path / "out" / "rows.npz")
    expected = training.predict(training.load_run(run).model(), meshes)
    for i in range(2):
        np.testing.assert_array_equal(rows.sample(i).domain.faces, meshes.sample(i).domain.faces)
        np.testing.assert_allclose(rows.sample(i).targets, expected[i], rtol=1e-5, atol=1e-6)


def test_without_a_writer_of_meshes_nothing_is_computed(run, tmp_path, capsys, monkeypatch):
    folder = write_meshes(tmp_path / "new", [20])
    monkeypatch.setitem(sys.modules, "meshio.vtu", None)
    monkeypatch.setattr(training, "predict", None)
    assert cli.main(["predict", str(run), str(folder), "--to", str(tmp_path / "out")]) == 2
    assert "writing .vtu needs meshio; install it with: pip install 'jaxop[mesh]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_wrong_inputs_of_predict(run, trained, files, tmp_path, capsys):
    folder = write_meshes(tmp_path / "new", [20, 25])
    (tmp_path / "other").mkdir()
    other = (tmp_path / "other" / "m0.vtu").write_bytes((folder / "m0.vtu").read_bytes()) and tmp_path / "other"
    for arguments, message in (
        ((run,), "there is nothing to predict"),
        ((run, folder / "m0.vtu", other), "would both be written to"),
        ((run, folder, "--to", folder), "would replace the file of the inputs; give another folder by --to"),
        ((run, tmp_path / "out"), "out has the suffix ''"),
        ((run, tmp_path / "mew"), "it does not exist; did you mean 'new'?"),
        ((run, files / "a.npz"), "no dataset 'u'"),
        ((run, folder, "--inputs", "u"), "has 1 input channels, but the operator was made for 3"),
        ((run, folder, "--inputs", "w"), "m0.vtu has no field 'w'; it has 'u', 'v' at the points"),
        ((trained, folder, "--inputs", "u"), r"m0.vtu (20–25 nodes): "),
        ((run, folder, "--checkpoint", "99"), "has no checkpoint 99"),
    ):
        assert cli.main(["predict", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
    assert not (run / "predictions").exists()
    assert not (trained / "predictions").exists()
