"""The nodes of a file without its functions, and functions that are written in blocks on such nodes."""

import numpy as np
import pytest
import xarray

from jaxop import data, domains
from jaxop.data.files.blocks import writing_blocks
from jaxop.data.files.nodes import read_nodes
from jaxop.domains import Grid, PointCloud, TriangleMesh

POINTS = np.random.default_rng(0).random((7, 2), np.float32)
FACES = np.array([[0, 1, 2], [2, 3, 4]])
AXES = {"coordinates_0": np.array([0.0, 0.5, 2.0], np.float32), "coordinates_1": np.linspace(0, 1, 4, dtype=np.float32)}

ARRAYS = {
    "points": ({"coordinates": POINTS}, PointCloud, (7,)),
    "weighted": ({"coordinates": POINTS, "weights": np.arange(7, dtype=np.float32)}, PointCloud, (7,)),
    "mesh": ({"coordinates": POINTS[:5], "faces": FACES}, TriangleMesh, (5,)),
    "axes": (AXES, Grid, (3, 4)),
    "times": ({"coordinates": np.array([0.0, 0.5, 2.0], np.float32)}, Grid, (3,)),
    "unordered": ({"coordinates": np.array([1.0, 0.5, 2.0], np.float32)}, PointCloud, (3,)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_nodes_are_read_and_blocks_on_them_are_read_back(name, tmp_path):
    arrays, kind, shape = ARRAYS[name]
    np.savez(tmp_path / "nodes.npz", **arrays)
    domain = read_nodes(tmp_path / "nodes.npz")
    assert type(domain) is kind
    assert domain.size == np.prod(shape)
    if kind is not Grid:
        np.testing.assert_array_equal(domain.points.ravel(), arrays["coordinates"].ravel())
    values = np.random.default_rng(1).normal(size=(3, domain.size, 2)).astype(np.float32)
    with writing_blocks(tmp_path / "y.npz", domain, 3, 2, np.dtype(np.float32)) as append:
        for block in np.split(values.reshape(-1), [5, 6, 11]):
            append(block)
        assert not (tmp_path / "y.npz").exists()
    found = data.read(tmp_path / "y.npz", inputs="y", targets="y")
    np.testing.assert_array_equal(found.targets, values)
    np.testing.assert_array_equal(found.domain.points, domain.points)
    np.testing.assert_allclose(found.domain.weights, domain.weights, rtol=1e-6)


def test_the_nodes_of_a_saved_set_are_its_grid(tmp_path):
    grid = domains.box((4, 3), rule="periodic", upper=(2.0, 1.0))
    u = np.ones((2, 12, 1), np.float32)
    data.save(tmp_path / "set.npz", data.Samples(u, u, grid))
    assert read_nodes(tmp_path / "set.npz").rules == ("periodic", "periodic")
    assert read_nodes(tmp_path / "set.npz").measure == pytest.approx(2)


def test_the_nodes_of_netcdf_are_its_grid_without_time(tmp_path):
    coordinates = {"time": [0.0, 1.0], "y": np.array([2.0, 0.5, 0.0]), "x": np.linspace(0, 1, 4)}
    xarray.Dataset({"u": (("time", "y", "x"), np.ones((2, 3, 4)))}, coordinates).to_netcdf(tmp_path / "grid.nc")
    grid = read_nodes(tmp_path / "grid.nc")
    assert isinstance(grid, Grid)
    np.testing.assert_allclose(grid.axes[0].nodes, [0.0, 0.5, 2.0])
    assert grid.axes[1].size == 4
    xarray.Dataset(coords={"lat": [-45.0, 0.0, 45.0], "lon": [0.0, 120.0, 240.0]}).to_netcdf(tmp_path / "earth.nc")
    sphere = read_nodes(tmp_path / "earth.nc")
    assert sphere.points.shape == (9, 3)
    np.testing.assert_allclose(np.linalg.norm(sphere.points, axis=1), 1, rtol=1e-6)
    xarray.Dataset({"u": (("time", "cell"), np.ones((2, 3)))}, {"time": [0.0, 1.0]}).to_netcdf(tmp_path / "flat.nc")
    with pytest.raises(ValueError, match=r"flat.nc: none of the dimensions .*'cell'.* has coordinates besides time"):
        read_nodes(tmp_path / "flat.nc")


def test_a_second_array_follows_the_first(tmp_path):
    """Its blocks come in between, and are complete or the file does not appear."""
    values = np.random.default_rng(1).normal(size=(2, 3, 7, 1)).astype(np.float32)
    cloud = domains.monte_carlo(POINTS)
    with writing_blocks(tmp_path / "y.npz", cloud, 3, 1, np.dtype(np.float32), ("y", "width")) as append:
        for block, width in zip(*values, strict=True):
            append(width, "width")
            append(block)
    with np.load(tmp_path / "y.npz") as found:
        np.testing.assert_array_equal([found["y"], found["width"]], values)
    with (
        pytest.raises(ValueError, match=r"z.npz lacks 7 of 7 values of width"),
        writing_blocks(tmp_path / "z.npz", cloud, 1, 1, np.dtype(np.float32), ("y", "width")) as append,
    ):
        append(values[0, 0])
    assert [path.name for path in tmp_path.iterdir()] == ["y.npz"]


def test_an_unfinished_file_does_not_appear(tmp_path):
    cloud = domains.monte_carlo(POINTS)
    with (
        pytest.raises(ValueError, match=r"y.npz lacks 10 of 14 values"),
        writing_blocks(tmp_path / "y.npz", cloud, 1, 2, np.dtype(np.float32)) as append,
    ):
        append(np.ones(4, np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"coordinates": POINTS, "offsets": np.array([0, 7])}, "nodes of several samples"),
        ({"coordinates": POINTS[None]}, r"coordinates of shape \(1, 7, 2\); give the nodes of one domain"),
        ({"coordinates": np.where(POINTS > 0.9, np.nan, POINTS)}, "its nodes.*must be finite"),
        ({"coordinates": np.ones((7, 2), np.float32)}, r"7 nodes that all coincide, at \(1.0, 1.0\)"),
        ({"x": POINTS}, "has no nodes: neither 'coordinates'"),
        ({"coordinates": POINTS, "weights": np.ones(3)}, "nodes.npz .its nodes.: weights must have shape"),
    ],
)
def test_files_without_one_domain_are_named(arrays, message, tmp_path):
    np.savez(tmp_path / "nodes.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_nodes(tmp_path / "nodes.npz")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"suffix '.csv', expected one of .npz"):
        read_nodes(tmp_path / "nodes.csv")
    with pytest.raises(FileNotFoundError, match=r"nodes.npz does not exist"):
        read_nodes(tmp_path / "nodes.npz")
