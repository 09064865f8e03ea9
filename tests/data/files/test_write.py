"""Functions on a domain are written for ParaView and for NumPy, and read back."""

import pathlib

import meshio
import numpy as np
import pytest

from jaxop import data, domains
from tests.data.files.test_meshes import CUBE, SQUARE, TETRAHEDRA, TRIANGLES

DOMAINS = {
    "triangles": lambda: domains.triangle_mesh(SQUARE[:, :2].astype(np.float32), TRIANGLES),
    "surface": lambda: domains.triangle_mesh((SQUARE + SQUARE[:, [2, 2, 0]]).astype(np.float32), TRIANGLES),
    "tetrahedra": lambda: domains.tetrahedral_mesh(CUBE.astype(np.float32), TETRAHEDRA),
    "lines": lambda: domains.line_mesh(SQUARE[:4, :2].astype(np.float32), np.array([[0, 1], [1, 2], [2, 3]])),
    "scattered": lambda: domains.from_nodes(CUBE.astype(np.float32), np.arange(8, dtype=np.float32)),
}


@pytest.mark.parametrize("name", DOMAINS)
@pytest.mark.parametrize("suffix", [".vtu", ".npz"])
def test_what_is_written_is_read_back(tmp_path, name, suffix):
    domain = DOMAINS[name]()
    u = np.arange(2 * domain.size, dtype=np.float32).reshape(-1, 2)
    data.write_fields(tmp_path / f"a{suffix}", domain, {"u": u, "p": u[:, 0]})
    assert [file.name for file in tmp_path.iterdir()] == [f"a{suffix}"]
    one = data.read(tmp_path, inputs="u", targets="p").sample(0)
    np.testing.assert_array_equal(one.inputs, u)
    np.testing.assert_array_equal(one.targets, u[:, :1])
    np.testing.assert_array_equal(one.domain.points, domain.points)
    np.testing.assert_allclose(one.domain.weights, domain.weights, rtol=1e-6)
    if suffix == ".vtu":
        assert type(one.domain) is type(domain)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_a_grid_is_written_with_its_cells(tmp_path, shape):
    """The volumes of the cells, by the corners in the order of VTK, fill the box."""
    grid = domains.box(shape, upper=tuple(range(1, len(shape) + 1)))
    data.write_fields(tmp_path / "a.vtu", grid, {"u": np.asarray(grid.points)})
    mesh = meshio.vtu.read(str(tmp_path / "a.vtu"))
    np.testing.assert_array_equal(mesh.point_data["u"].reshape(grid.size, -1), grid.points)
    (block,) = mesh.cells
    corners = mesh.points[block.data]
    edges = corners[:, [1, 3, 4][: len(shape)]] - corners[:, :1]
    volumes = np.linalg.det(edges[..., : len(shape)])
    assert (volumes > 0).all()
    np.testing.assert_allclose(volumes.sum(), grid.measure, rtol=1e-6)
    opposite = corners[:, [1, 2, 6][len(shape) - 1]] - corners[:, 0]
    np.testing.assert_allclose(opposite, edges.sum(axis=1), rtol=1e-6)


def test_a_file_that_cannot_be_finished_is_removed(tmp_path, monkeypatch):
    def full(path, mesh, **options):
        pathlib.Path(path).write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(meshio.vtu, "write", full)
    with pytest.raises(OSError, match="no space left"):
        data.write_fields(tmp_path / "a.vtu", domains.interval(4), {"u": np.ones(4)})
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    grid, u = domains.interval(4), np.ones(4)
    for name, domain, fields, message in (
        ("a.vtk", grid, {"u": u}, "path must end in .vtu or .npz"),
        ("a.vtu", domains.stack([DOMAINS["triangles"]()]), {"u": u}, "domain is a stack of domains"),
        ("a.vtu", grid, {}, "fields is empty"),
        ("a.vtu", grid, {"u": np.ones(5)}, r"fields\['u'\] must have shape \(4,\) or \(4, channels\), .* got \(5,\)"),
        ("a.vtu", grid, {"u<v": u}, r"fields\['u<v'\] has a name that .vtu cannot hold"),
        ("a.npz", grid, {"weights": u}, r"fields\['weights'\] has a name that .npz needs"),
        ("a.vtu", domains.monte_carlo(np.eye(4, dtype=np.float32)), {"u": u}, "domain has 4 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            data.write_fields(tmp_path / name, domain, fields)
    assert not list(tmp_path.iterdir())
