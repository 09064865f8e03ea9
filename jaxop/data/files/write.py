"""Writer of functions on a domain, for ParaView (.vtu) and for NumPy (.npz)."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Real

from jaxop._files import appearing
from jaxop._validation import host_array, require
from jaxop.domains import Domain, Grid, Mesh, TetrahedralMesh, TriangleMesh
from jaxop.domains.domain import check_domain

_SIMPLICES = {2: "line", 3: "triangle", 4: "tetra"}  # by the number of corners
_CELLS = {1: "line", 2: "quad", 3: "hexahedron"}  # of a grid, by its dimension


def write_fields(
    path: str | os.PathLike[str], domain: Domain, fields: Mapping[str, Real[Array | np.ndarray, "n ..."]]
) -> None:
    """Writes functions u(x_i) on a domain to a file that ParaView shows (.vtu), or to arrays (.npz).

    A .vtu file holds the nodes, the cells of a mesh or a grid, and every function as point data. Scattered nodes are
    cells of one vertex, with their weights as one more function. One and two coordinates get zeros as the others. An
    .npz file holds the functions under their names, the ``coordinates``, and either the ``faces`` of a mesh of
    triangles or tetrahedra, or the ``weights``. `jaxop.data.read` reads a folder of either as samples, but not a .vtu
    file of a three-dimensional grid, whose cells are hexahedra. The file appears only when it is complete; an existing
    file is replaced.

    Args:
        path: the file to write, with suffix .vtu or .npz.
        domain: the nodes, not a stack of domains.
        fields: functions by name, shape (n,) or (n, channels); at least one.

    Raises:
        ImportError: if meshio is not installed, which writes .vtu.
        TypeError: if ``domain`` is not a domain or a field does not hold real numbers.
        ValueError: if the suffix is another, the domain is a stack or has too many dimensions for .vtu, there are no
            fields, a field does not have one row per node, or its name is taken or has characters of XML.

    Cost: O(n) for each channel.

    Example:
        >>> import tempfile, numpy as np
        >>> from jaxop import data, domains
        >>> grid = domains.box((3, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data.write_fields(folder + "/flow.npz", grid, {"p": np.ones(12), "u": np.ones((12, 2))})
        ...     with np.load(folder + "/flow.npz") as file:
        ...         print(sorted(file), file["u"].shape)
        ['coordinates', 'p', 'u', 'weights'] (12, 2)
    """
    path = Path(path)
    if path.suffix.lower() not in (".vtu", ".npz"):
        raise ValueError(f"path must end in .vtu or .npz, got {path}.")
    check_domain(domain, "domain")
    if domain.is_batched:
        raise ValueError("domain is a stack of domains; write one file for each of its domains.")
    if not fields:
        raise ValueError("fields is empty; give at least one function by name.")
    arrays = {name: host_array(values, f"fields[{name!r}]") for name, values in fields.items()}
    for name, values in arrays.items():
        if values.shape[:1] != (domain.size,) or values.ndim > 2:
            raise ValueError(
                f"fields[{name!r}] must have shape ({domain.size},) or ({domain.size}, channels), one row for each "
                f"node, got {values.shape}."
            )
    if path.suffix.lower() == ".vtu" and (odd := [name for name in arrays if {*name} & {*'<>&"'} or not name]):
        raise ValueError(f"fields[{odd[0]!r}] has a name that .vtu cannot hold; use letters, digits and spaces.")
    with appearing(path) as partial:
        if path.suffix.lower() == ".npz":
            nodes = _arrays(domain)
            if taken := [name for name in arrays if name in (*nodes, "file", "allow_pickle")]:
                raise ValueError(f"fields[{taken[0]!r}] has a name that .npz needs; give it another name.")
            every: dict[str, Any] = {**nodes, **arrays}
            with partial.open("wb") as file:
                np.savez(file, **every)
        else:
            _write_vtu(partial, domain, arrays)


def _arrays(domain: Domain) -> dict[str, np.ndarray]:
    """Returns the arrays from which `read` rebuilds the nodes of a sample."""
    if isinstance(domain, TriangleMesh | TetrahedralMesh):
        return {"coordinates": np.asarray(domain.points), "faces": np.asarray(domain.simplices)}
    return {"coordinates": np.asarray(domain.points), "weights": np.asarray(domain.weights)}


def _write_vtu(path: Path, domain: Domain, fields: Mapping[str, np.ndarray]) -> None:
    points = np.asarray(domain.points)
    if points.shape[1] > 3:
        raise ValueError(f"domain has {points.shape[1]} dimensions, and .vtu holds at most 3; write .npz.")
    if not (isinstance(domain, Mesh | Grid) or "weights" in fields):
        fields = dict(fields) | {"weights": np.asarray(domain.weights)}
    vtu = require("meshio.vtu", "writing .vtu", extra="mesh")
    mesh = require("meshio", "writing .vtu", extra="mesh").Mesh(
        np.pad(points, [(0, 0), (0, 3 - points.shape[1])]),
        [_cells(domain)],
        # VTK does not have integers of every size, nor bool
        point_data={
            name: values if values.dtype.kind == "f" else values.astype(float) for name, values in fields.items()
        },
    )
    vtu.write(str(path), mesh, binary=True)


def _cells(domain: Domain) -> tuple[str, np.ndarray]:
    """Returns the type of the cells, by its name in meshio, and their node numbers."""
    if isinstance(domain, Mesh):
        simplices = np.asarray(domain.simplices)
        return _SIMPLICES[simplices.shape[1]], simplices.astype(np.int64)
    if isinstance(domain, Grid) and min(domain.shape) > 1:
        return _CELLS[domain.dim], _of_grid(domain.shape)
    return "vertex", np.arange(domain.size)[:, None]


def _of_grid(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the corners of the cells between the nodes of a grid, in the order of VTK."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    corners = [
        numbers[tuple(slice(step, n - 1 + step) for step, n in zip(steps, shape, strict=True))].ravel()
        for steps in itertools.product((0, 1), repeat=len(shape))
    ]
    # around each face instead of line by line
    order = {1: [0, 1], 2: [0, 2, 3, 1], 3: [0, 4, 6, 2, 1, 5, 7, 3]}[len(shape)]
    return np.stack([corners[k] for k in order], axis=1)
