"""Files of meshes: the cells become a domain, and fields on nodes or cells are read by name."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxop import domains
from jaxop._validation import check_distinct, float_dtype, near, require
from jaxop.data.files._reading import FileError, first_bytes, naming, reading
from jaxop.data.files._vtk_xml import Blocks, read_vtk_xml
from jaxop.data.files.open import listed
from jaxop.data.sample import Sample
from jaxop.domains import Domain
from jaxop.domains.mesh import signed_volumes, simplex_edges, simplex_sizes

MESHES = (".vtu", ".vtp", ".vtk", ".stl", ".ply", ".msh", ".obj")
"""Suffixes of files of meshes."""

COORDINATES = "coordinates"
"""Name of the node coordinates as a field, unless a file has a field of this name."""

_READERS = {".vtk": "vtk", ".stl": "stl", ".ply": "ply", ".msh": "gmsh", ".obj": "obj"}  # modules of meshio
_HEADER = 2000  # bytes of a .vtk file in which its type must be found
_BEGINNINGS = {".ply": (b"ply", b"end_header"), ".msh": (b"$MeshFormat", b"$EndElements")}  # and what must follow
_DIMENSIONS = {
    "vertex": 0,
    "line": 1,
    "triangle": 2,
    "quad": 2,
    "tetra": 3,
    "hexahedron": 3,
    "wedge": 3,
    "pyramid": 3,
}
_NODES = {1: "line", 2: "triangle", 3: "tetra"}
_REMEDIES = {
    "polygon": "divide polygons into triangles (ParaView: Triangulate)",
    "quadratic": "write cells with straight edges, whose nodes are their corners",
    "solid": "divide other solids into tetrahedra (ParaView: Tetrahedralize)",
}


@dataclasses.dataclass(frozen=True)
class MeshFile:
    """The mesh of a file and its fields, in NumPy.

    Attributes:
        path: the file.
        points: nodes, shape (n, dim); dim is 2 if the cells are triangles or lines and the third coordinate is 0.
        cells: node numbers of the simplices, shape (k, corners); None for nodes without cells. A quadrilateral is two
            triangles; hexahedra, wedges and pyramids are six, three and two tetrahedra.
        fields: values at the nodes by name, shape (n, ...).
        cell_fields: values in the simplices by name, shape (k, ...).
    """

    path: Path
    points: np.ndarray
    cells: np.ndarray | None
    fields: Mapping[str, np.ndarray]
    cell_fields: Mapping[str, np.ndarray]

    def domain(self, weights: str | None) -> Domain:
        """Returns the domain of the nodes, in JAX's default floating dtype.

        Args:
            weights: name of the field of quadrature weights, if there are no cells.

        Raises:
            ValueError: if nodes coincide only after rounding, or for the reasons of the builder of the domain.
        """
        with naming(self.path, "its mesh"):
            check_distinct(self.points, "points", float_dtype())
            points = self.points.astype(float_dtype())
            if self.cells is None:
                if not self.has_weights(weights):
                    return domains.from_points(points)
                return domains.from_nodes(points, self.values((weights or "",))[:, 0].astype(float_dtype()))
            build = {2: domains.line_mesh, 3: domains.triangle_mesh, 4: domains.tetrahedral_mesh}
            return build[self.cells.shape[1]](points, self.cells)

    def has_weights(self, weights: str | None) -> bool:
        """Tells whether weights need not be computed from the nodes alone: there are cells, or a field of weights.

        Raises:
            ValueError: if a field that is not the default is missing, or is given beside cells.
        """
        is_named = weights not in (None, "weights")
        if self.cells is not None and is_named:
            raise FileError(
                f"{self.path}: the cells give the weights of the nodes already, got weights={weights!r}; leave it out."
            )
        return self.cells is not None or weights in self.fields or is_named

    def values(self, names: Sequence[str]) -> np.ndarray:
        """Returns fields as the channels of one function, shape (n, channels); values in cells are averaged by measure.

        Raises:
            ValueError: if there is no field of a name (the message lists the fields), or its size does not fit.
            TypeError: if a field does not hold real numbers.
        """
        return np.concatenate([self._field(name) for name in names], axis=1)

    def _field(self, name: str) -> np.ndarray:
        count, where = len(self.points), "points"
        if name in self.fields:
            values = self.fields[name]
        elif name in self.cell_fields and self.cells is not None:
            values, count, where = self.cell_fields[name], len(self.cells), "cells"
        elif name == COORDINATES:
            return self.points
        else:
            raise FileError(f"{self.path} has no field {name!r}; {self._listing(name)}")
        if len(values) != count:
            raise FileError(
                f"{self.path}: the field {name!r} has {len(values)} entries for {count} {where}; the file may be "
                "truncated or damaged: write it again."
            )
        if values.dtype.kind not in "fiub":
            raise TypeError(f"{self.path}: the field {name!r} must hold real numbers, got {values.dtype}.")
        values = values.reshape(count, -1)
        values = values if values.dtype.kind == "f" else values.astype(float_dtype())
        return values if where == "points" else self._at_points(values)

    def _listing(self, name: str) -> str:
        own = [*self.fields, *self.cell_fields]
        has = [
            f"{listed(list(fields), True)} {where}"
            for fields, where in ((self.fields, "at the points"), (self.cell_fields, "in the cells"))
            if fields
        ]
        if not own:
            return f"it has only {COORDINATES!r}; write the fields to .vtu."
        guess = near(name, [*own, COORDINATES])
        hint = f": {guess}" if guess else "; name them by inputs and targets."
        return f"it has {', '.join([*has, repr(COORDINATES)])}{hint}"

    def _at_points(self, values: np.ndarray) -> np.ndarray:
        """Returns at each node the mean over its cells, weighted by their measures; 0 at nodes without cells."""
        assert self.cells is not None
        corners = self.cells.shape[1]
        measure = simplex_sizes(*simplex_edges(self.points.astype(np.float64), self.cells))
        where = self.cells.ravel()
        mass = np.bincount(where, np.repeat(measure, corners), len(self.points))
        sums = [
            np.bincount(where, np.repeat(measure * column, corners), len(self.points))
            for column in values.T.astype(np.float64)
        ]
        return (np.stack(sums, axis=1) / np.where(mass > 0, mass, 1)[:, None]).astype(values.dtype)


def read_mesh(path: Path, *, formats: Sequence[str] = MESHES) -> MeshFile:
    """Reads a file of a mesh.

    If cells of lower dimension lie between the nodes of the others, such as the boundary in a file of Gmsh, they are
    left out.

    Args:
        path: the file, whose suffix is one of `MESHES`.
        formats: suffixes of files that could be meant instead, if it does not exist.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if the format needs meshio, and it is not installed.
        ValueError: if the file is empty or damaged, or holds cells that are not lines, triangles, quadrilaterals,
            tetrahedra, hexahedra, wedges or pyramids, or cells of several dimensions that are not the boundary of
            others.
    """
    first_bytes(path, "mesh", formats)
    _check_beginning(path)
    blocks = _blocks(path)
    points = np.asarray(blocks.points)
    if points.ndim != 2 or not len(points):
        raise FileError(f"{path} holds no points, so it is not a mesh; write it again.")
    chosen = _of_the_domain(path, blocks, len(points))
    if not chosen:
        return MeshFile(path, _in_the_plane(points, 0), None, blocks.point_data, {})
    parts = [_simplices(kind, cells, points) for _, kind, cells in chosen]
    cell_fields = {}
    for name, of_blocks in blocks.cell_data.items():
        rows = [np.asarray(of_blocks[i]) for i, _, _ in chosen]
        if all(row.ndim and len(row) == len(cells) for row, (_, _, cells) in zip(rows, chosen, strict=True)):
            copies = [np.repeat(row, count, axis=0) for row, (_, count) in zip(rows, parts, strict=True)]
            cell_fields[name] = np.concatenate(copies)
    cells = np.concatenate([simplices for simplices, _ in parts])
    return MeshFile(path, _in_the_plane(points, cells.shape[1] - 1), cells, blocks.point_data, cell_fields)


def sample(mesh: MeshFile, *, inputs: Sequence[str], targets: Sequence[str], weights: str | None) -> Sample:
    """Returns the functions of a file on its nodes; see `MeshFile`."""
    u = mesh.values(inputs)
    return Sample(u, mesh.values(targets) if targets else u, mesh.domain(weights))


def _blocks(path: Path) -> Blocks:
    suffix = path.suffix.lower()
    if suffix in (".vtu", ".vtp"):
        with reading(path, "mesh"):
            return read_vtk_xml(path)
    module = require(f"meshio.{_READERS[suffix]}", f"reading {path}", extra="mesh")
    with reading(path, "mesh"), np.errstate(over="ignore"):  # meshio reads text of STL as a number of triangles
        mesh = module.read(str(path))
        cells = [(block.type, np.asarray(block.data)) for block in mesh.cells]
        return Blocks(mesh.points, cells, dict(mesh.point_data or {}), dict(mesh.cell_data or {}))


def _check_beginning(path: Path) -> None:
    """Raises ``FileError`` if meshio would search the file for ever, take it for another format, or call it damaged."""
    suffix = path.suffix.lower()
    if suffix == ".vtk":
        with reading(path, "mesh"), path.open("rb") as file:
            if b"DATASET POLYDATA" in file.read(_HEADER).upper():
                raise FileError(
                    f"{path} holds POLYDATA, and .vtk is read with other data sets only; write the surface as .vtp."
                )
    if suffix not in _BEGINNINGS:
        return
    start, end = _BEGINNINGS[suffix]
    with reading(path, "mesh"):
        content = path.read_bytes()
    if not content.startswith(start) or end not in content:
        raise FileError(
            f"{path} ({len(content)} bytes) is truncated or damaged, or is not {suffix}: expected it to begin "
            f"with {start.decode()!r} and to have {end.decode()!r}; copy or write the file again."
        )


def _of_the_domain(path: Path, blocks: Blocks, count: int) -> list[tuple[int, str, np.ndarray]]:
    """Returns number, type and cells of the blocks of highest dimension, which make the domain."""
    sizes = collections.Counter({})
    for kind, cells in blocks.cells:
        sizes[kind] += len(cells)
    found = ", ".join(f"{size} {kind}" for kind, size in sizes.items())
    if others := [kind for kind in sizes if kind not in _DIMENSIONS]:
        raise FileError(
            f"{path} has cells of the types {found}; expected line, triangle, quad, tetra, hexahedron, wedge or "
            f"pyramid: {_remedy(others[0])}."
        )
    filled = [(i, kind, cells) for i, (kind, cells) in enumerate(blocks.cells) if kind != "vertex" and len(cells)]
    for _, kind, cells in filled:
        if cells.min() < 0 or cells.max() >= count:
            wrong = cells.min() if cells.min() < 0 else cells.max()
            raise FileError(
                f"{path}: a {kind} has the node {wrong}, and nodes run from 0 to {count - 1}; write the file again."
            )
    top = max((_DIMENSIONS[kind] for _, kind, _ in filled), default=0)
    chosen = [block for block in filled if _DIMENSIONS[block[1]] == top]
    lower = [block for block in filled if _DIMENSIONS[block[1]] < top]
    inside = np.zeros(count, bool)
    for _, _, cells in chosen:
        inside[cells] = True
    if not all(inside[cells].all() for _, _, cells in lower):
        raise FileError(
            f"{path} mixes cells of several dimensions ({found}), and those of lower dimension are not a boundary of "
            "the others; write each part to a file of its own."
        )
    return chosen


def _remedy(kind: str) -> str:
    if kind.startswith(("polygon", "triangle_strip")):
        return _REMEDIES["polygon"]
    is_quadratic = kind.rstrip("0123456789") in _DIMENSIONS
    return _REMEDIES["quadratic" if is_quadratic else "solid"]


def _simplices(kind: str, cells: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the cells as simplices, and how many stand for one cell.

    Formats disagree on the orientation of wedges, so that solids of every kind get the orientation of most of them.
    """
    if kind == "quad":
        return domains.split_quadrilaterals(cells), 2
    if _DIMENSIONS[kind] < 3:
        return cells, 1
    simplices = cells if kind == "tetra" else domains.split_solids(cells)
    volumes = signed_volumes(*simplex_edges(points.astype(np.float64), simplices))
    if np.sum(volumes < 0) > np.sum(volumes > 0):
        simplices = simplices[:, [1, 0, 2, 3]]
    return simplices, len(simplices) // len(cells)


def _in_the_plane(points: np.ndarray, dimension: int) -> np.ndarray:
    """Returns points without their third coordinate if it is 0 everywhere and the cells do not fill space."""
    if points.shape[1] == 3 and dimension < 3 and not points[:, 2].any():
        return points[:, :2]
    return points
