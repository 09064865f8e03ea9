"""Files of meshes become samples on their own nodes, or an error that names what the file holds."""

import os
import sys

import jax
import meshio
import numpy as np
import pytest

from jaxop import data, domains
from tests.data.files.cases import refuse

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 0]], np.float64)
TRIANGLES = np.array([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
TETRAHEDRA = np.array([[0, 6, 4, 5], [0, 2, 6, 7], [0, 1, 7, 5], [0, 7, 6, 5], [0, 3, 2, 7], [0, 1, 3, 7]])


def fields(points):
    p = np.asarray(points, np.float64)
    return {"p": p[:, 0] + 2 * p[:, 1], "u": np.stack([p[:, 0], -p[:, 1], 0 * p[:, 0]], axis=1)}


def write(path, points, cells, *, point_data=None, **others):
    point_data = fields(points) if point_data is None else point_data
    others = ({"file_format": "gmsh"} if path.suffix == ".msh" else {}) | others
    meshio.write_points_cells(path, points, cells, point_data=point_data, **others)
    return path


def read(path, inputs="p", targets="u", **options):
    return data.read(path, inputs=inputs, targets=targets, **options)


@pytest.fixture(autouse=True)
def x64(x64):
    """Files of meshes are in double precision."""


@pytest.mark.parametrize("suffix", [".vtu", ".vtk"])
def test_a_mesh_is_read_with_its_fields(tmp_path, suffix):
    samples = read(write(tmp_path / f"a{suffix}", SQUARE, [("triangle", TRIANGLES)]))
    assert type(samples) is data.RaggedSamples
    one = samples.sample(0)
    assert type(one.domain) is domains.TriangleMesh
    np.testing.assert_array_equal(one.domain.points, SQUARE[:, :2])  # z = 0 everywhere
    np.testing.assert_array_equal(one.domain.faces, TRIANGLES)
    np.testing.assert_allclose(one.domain.measure, 1, rtol=1e-12)
    np.testing.assert_array_equal(one.inputs, fields(SQUARE)["p"][:, None])
    np.testing.assert_array_equal(one.targets, fields(SQUARE)["u"])


def test_several_fields_and_the_coordinates_are_channels(tmp_path):
    path = write(tmp_path / "a.vtu", SQUARE, [("triangle", TRIANGLES)])
    one = read(path, inputs=("p", "coordinates"), targets=["u", "p"]).sample(0)
    np.testing.assert_array_equal(one.inputs, np.column_stack([fields(SQUARE)["p"], SQUARE[:, :2]]))
    assert one.targets.shape == (5, 4)


@pytest.mark.parametrize("suffix", [".stl", ".obj", ".ply", ".msh"])
def test_formats_with_geometry_only(tmp_path, suffix):
    tilted = SQUARE + [[0, 0, 1]] * SQUARE[:, :1]
    path = write(tmp_path / f"a{suffix}", tilted, [("triangle", TRIANGLES)], point_data={})
    one = read(path, "coordinates", "coordinates").sample(0)
    assert one.domain.size == 5  # STL repeats the vertices of every facet
    assert one.domain.dim == 3
    np.testing.assert_allclose(one.domain.measure, np.sqrt(2), rtol=1e-6)


def test_kinds_of_cells(tmp_path):
    quads = write(tmp_path / "q.vtu", SQUARE[:4], [("quad", np.array([[0, 1, 2, 3]]))])
    assert read(quads).sample(0).domain.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    solid = read(write(tmp_path / "t.vtu", CUBE, [("tetra", TETRAHEDRA)])).sample(0).domain
    assert type(solid) is domains.TetrahedralMesh
    np.testing.assert_allclose(solid.measure, 1, rtol=1e-12)
    cube = np.array([[0, 4, 6, 2, 1, 5, 7, 3]])
    solid = read(write(tmp_path / "h.vtu", CUBE, [("hexahedron", cube)])).sample(0).domain
    np.testing.assert_allclose((solid.measure, solid.cells.shape[0]), (1, 6), rtol=1e-12)
    for wedge in ([0, 4, 6, 1, 5, 7], [0, 6, 4, 1, 7, 5]):  # VTK and Gmsh turn it differently
        both = [("wedge", np.array([wedge])), ("tetra", domains.split_solids([[0, 6, 2, 1, 7, 3]]))]
        solid = read(write(tmp_path / "w.vtu", CUBE, both)).sample(0).domain
        np.testing.assert_allclose((solid.measure, solid.cells.shape[0]), (1, 6), rtol=1e-12)
    curve = read(write(tmp_path / "l.vtu", SQUARE[:4], [("line", np.array([[0, 1], [1, 2]]))])).sample(0).domain
    assert (type(curve), curve.dim, float(curve.measure)) == (domains.LineMesh, 2, 2.0)


def test_the_boundary_beside_the_cells_of_gmsh_is_left_out(tmp_path):
    cells = [("vertex", np.array([[0]])), ("line", np.array([[0, 1], [1, 2]])), ("triangle", TRIANGLES)]
    path = write(tmp_path / "a.msh", SQUARE, cells, file_format="gmsh22")
    np.testing.assert_array_equal(read(path).sample(0).domain.faces, TRIANGLES)


def test_values_in_cells_are_averaged_by_area(tmp_path):
    corners = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0], [5, 0, 0]], float)
    cells = [("quad", np.array([[0, 1, 2, 3]])), ("triangle", np.array([[1, 4, 2]]))]
    path = write(tmp_path / "a.vtu", corners, cells, cell_data={"c": [np.array([3.0]), np.array([7.0])]})
    one = read(path, "c", "p").sample(0)
    # at two corners the triangle meets all of the rectangle, or the half below its diagonal
    expected = [3, (1 * 3 + 1.5 * 7) / 2.5, (2 * 3 + 1.5 * 7) / 3.5, 3, 7]
    np.testing.assert_allclose(one.inputs[:, 0], expected, rtol=1e-12)


def test_a_folder_is_as_many_samples_as_it_has_meshes(tmp_path):
    for i, name in enumerate(["a10.vtu", "a9.vtk", "a2.vtu"]):
        points = SQUARE[: 4 + i % 2] * (i + 1)
        write(tmp_path / name, points, [("triangle", TRIANGLES if i % 2 else np.array([[0, 1, 2], [0, 2, 3]]))])
    (tmp_path / "notes.txt").write_text("not a mesh")
    samples = read(tmp_path)
    assert [float(samples.sample(i).domain.measure) for i in range(3)] == pytest.approx([9, 4, 1])
    assert len(samples.take([2, 0])) == 2


CELLS = {
    "lines": [("line", np.array([[0, 1], [1, 2], [2, 3]])), ("line", np.array([[0, 1], [1, 2]]))],
    "triangles": [("triangle", np.array([[0, 1, 3], [0, 2, 3]])), ("triangle", np.array([[0, 1, 2]]))],
    "tetrahedra": [("tetra", TETRAHEDRA), ("tetra", np.array([[0, 2, 1, 4]]))],
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", CELLS)
def test_meshes_of_every_kind_form_batches(tmp_path, kind):
    for name, cells in zip("ab", CELLS[kind], strict=True):
        write(tmp_path / f"{name}.vtu", CUBE, [cells])
    samples = read(tmp_path)
    batch = samples[[0, 1]]
    for i in range(2):
        alone, padded = samples.sample(i), jax.tree.map(lambda leaf, i=i: leaf[i], batch.domain)
        assert type(padded) is type(alone.domain)
        both = (padded, batch.inputs[i]), (alone.domain, jax.numpy.asarray(alone.inputs))
        integrals, energies = zip(*((d.integrate(u), d.dirichlet(u, u)) for d, u in both), strict=True)
        np.testing.assert_allclose(*integrals, rtol=1e-12)
        np.testing.assert_allclose(*energies, rtol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_files_of_a_folder_are_read_when_they_are_needed(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.vtu", SQUARE, [("triangle", TRIANGLES)])
    samples = read(tmp_path)
    write(
        tmp_path / "b.vtu", SQUARE, [("triangle", TRIANGLES)], point_data={k: 2 * v for k, v in fields(SQUARE).items()}
    )
    np.testing.assert_array_equal(samples.sample(1).inputs, 2 * samples.sample(0).inputs)
    os.remove(tmp_path / "b.vtu")
    with pytest.raises(FileNotFoundError, match=r"b\.vtu does not exist; did you mean 'a.vtu'"):
        samples.sample(1)


def test_nodes_without_cells_are_triangulated_and_a_warning_says_so(tmp_path):
    path = write(tmp_path / "a.vtu", SQUARE, [("vertex", np.arange(5)[:, None])])
    with pytest.warns(UserWarning, match=r"a.vtu: .* Delaunay triangulation"):
        samples = read(path)
    np.testing.assert_allclose(samples.sample(0).domain.measure, 1, rtol=1e-12)
    weights = np.arange(5.0)
    write(path, SQUARE, [("vertex", np.arange(5)[:, None])], point_data={**fields(SQUARE), "weights": weights})
    np.testing.assert_array_equal(read(path).sample(0).domain.weights, weights)


@pytest.mark.usefixtures("unchecked")
class TestMessages:
    def test_a_missing_field_lists_those_of_the_file(self, tmp_path):
        path = write(tmp_path / "a.vtu", SQUARE, [("triangle", TRIANGLES)], cell_data={"region": [np.arange(4)]})
        refuse(
            path,
            r"no field 'pp'; it has 'p', 'u' at the points, 'region' in the cells, 'coordinates': did you mean 'p'\?",
            inputs="pp",
            targets="u",
        )
        refuse(path, r"no field 'x'; it has .* 'coordinates'; name them by inputs and targets\.")
        obj = write(tmp_path / "a.obj", SQUARE, [("triangle", TRIANGLES)], point_data={})
        refuse(obj, "no field 'p'; it has 'obj:group_ids' in the cells|it has only 'coordinates'; write", inputs="p")

    def test_other_cells_are_named(self, tmp_path):
        path = write(tmp_path / "a.vtu", np.vstack([CUBE] * 3)[:20], [("hexahedron20", np.arange(20)[None])])
        refuse(path, "has cells of the types 1 .*; expected .* write cells with straight edges", inputs="p")
        path = tmp_path / "a.vtk"
        write(path, np.vstack([SQUARE] * 2)[:6], [("triangle6", np.arange(6)[None])])
        refuse(path, "1 triangle6; expected .* write cells with straight edges", inputs="p")
        obj = tmp_path / "a.obj"
        obj.write_text("".join(f"v {x} {y} {z}\n" for x, y, z in SQUARE) + "f 1 2 3 4 5\n")
        refuse(obj, "1 polygon; expected .* divide polygons into triangles", inputs="coordinates")
        mixed = write(tmp_path / "b.vtu", CUBE, [("tetra", TETRAHEDRA[:1]), ("triangle", np.array([[0, 1, 2]]))])
        refuse(mixed, r"mixes cells of several dimensions \(1 triangle, 1 tetra\)", inputs="p")

    def test_a_file_that_differs_from_the_first_is_named(self, tmp_path):
        write(tmp_path / "a.vtu", SQUARE, [("triangle", TRIANGLES)])
        other = write(tmp_path / "b.vtu", SQUARE + [[0, 0, 1]] * SQUARE[:, :1], [("triangle", TRIANGLES)])
        with pytest.raises(ValueError, match=r"b.vtu has the dimension 3, but .*a.vtu has 2"):
            read(tmp_path)
        write(other, SQUARE, [("triangle", TRIANGLES)], point_data={"p": SQUARE[:, 0], "u": SQUARE[:, 0]})
        with pytest.raises(ValueError, match=r"b.vtu has target channels 1, but .*a.vtu has 3"):
            read(tmp_path)
        write(other, SQUARE[:3], [("line", np.array([[0, 1], [1, 2]]))])
        with pytest.raises(ValueError, match=r"b.vtu has the nodes of a LineMesh, but .*a.vtu has TriangleMesh"):
            read(tmp_path)
        write(other, SQUARE, [("vertex", np.arange(5)[:, None])])
        with pytest.raises(ValueError, match=r"b.vtu has no cells, but .*a.vtu has cells; .* move this one"):
            read(tmp_path)

    def test_values_that_are_not_finite(self, tmp_path):
        point_data = fields(SQUARE)
        point_data["u"][3, 1] = np.nan
        path = write(tmp_path / "a.vtu", SQUARE, [("triangle", TRIANGLES)], point_data=point_data)
        refuse(path, r"targets must be finite, but targets\[3, 1\] = nan", inputs="p", targets="u")

    def test_cells_that_do_not_fit_the_nodes(self, tmp_path):
        path = write(tmp_path / "a.vtu", SQUARE, [("triangle", TRIANGLES + 1)])
        refuse(path, "a triangle has the node 5, and nodes run from 0 to 4", inputs="p", targets="u")
        path = write(tmp_path / "b.vtu", 0 * SQUARE, [("triangle", TRIANGLES)])
        refuse(path, "the 4 faces have area zero", inputs="p", targets="u")

    @pytest.mark.parametrize("suffix", [".vtu", ".vtk", ".ply", ".msh", ".stl", ".obj"])
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8])
    def test_a_truncated_file(self, tmp_path, suffix, share):
        share = min(share, 0.5 if suffix == ".obj" else 1)  # without the last lines the file is whole
        with_fields = {} if suffix in (".stl", ".obj") else None
        path = write(tmp_path / f"a{suffix}", SQUARE, [("triangle", TRIANGLES)], point_data=with_fields)
        os.truncate(path, int(share * path.stat().st_size))
        fault = r"is empty \(0 bytes\)|truncated or damaged|holds no points|has no field|nodes run from|not finite"
        names = (
            {"inputs": "coordinates", "targets": "coordinates"}
            if with_fields == {}
            else {"inputs": "p", "targets": "u"}
        )
        refuse(path, fault, **names)

    def test_a_file_of_another_type(self, tmp_path):
        path = tmp_path / "a.vtu"
        path.write_bytes(b"\x89HDF\r\n\x1a\n" * 10)
        refuse(path, r"a.vtu \(mesh, 80 bytes\) is truncated or damaged")

    def test_surfaces_in_the_old_format_of_vtk(self, tmp_path):
        path = tmp_path / "a.vtk"
        path.write_text("# vtk DataFile Version 3.0\na surface\nASCII\nDATASET POLYDATA\nPOINTS 3 float\n")
        refuse(path, "holds POLYDATA, and .vtk is read with other data sets only; write the surface as .vtp")

    def test_tetrahedra_that_are_inverted(self, tmp_path):
        cells = TETRAHEDRA.copy()
        cells[2] = cells[2][[1, 0, 2, 3]]
        path = write(tmp_path / "a.vtu", CUBE, [("tetra", cells)])
        refuse(path, r"a.vtu \(its mesh\): cells\[2\] .* inverted", inputs="p", targets="u")

    def test_options_that_do_not_apply(self, tmp_path):
        path = write(tmp_path / "a.vtu", SQUARE, [("triangle", TRIANGLES)])
        refuse(path, "is read as a mesh.*; nothing reads rule='midpoint'; leave it out", rule="midpoint")
        assert len(read(path, weights=None, offsets=None, at=None, coordinates=None)) == 1  # None asks for nothing
        refuse(path, "cells give the weights of the nodes already, got weights='p'", weights="p", inputs="p")

    def test_a_folder_without_samples(self, tmp_path):
        refuse(tmp_path, "has no files of single samples")
        np.savez(tmp_path / "a.npz", x=SQUARE)
        write(tmp_path / "a.vtu", SQUARE, [("triangle", TRIANGLES)])
        refuse(tmp_path, r"has files of meshes \(a.vtu, …\) and of arrays \(a.npz, …\)")

    def test_a_missing_package_names_the_extra(self, tmp_path, monkeypatch):
        path = write(tmp_path / "a.vtk", SQUARE, [("triangle", TRIANGLES)])
        monkeypatch.setitem(sys.modules, "meshio.vtk", None)
        refuse(path, r"needs meshio; install it with: pip install 'jaxop\[mesh\]'", ImportError)
