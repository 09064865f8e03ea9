"""Functions that build validated meshes, and repair the arrays that they are built from."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int, Real
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from jaxop._validation import as_number, check_distinct, first_index, host_array, jax_dtype
from jaxop.domains.arrays import as_coordinates, as_indices, check_finite, leaf, position
from jaxop.domains.mesh import (
    LineMesh,
    Mesh,
    TetrahedralMesh,
    TriangleMesh,
    signed_volumes,
    simplex_edges,
    simplex_sizes,
    vertex_weights,
)

AnyMesh = TypeVar("AnyMesh", bound=Mesh)


def line_mesh(
    points: Real[ArrayLike, "n dim"] | Sequence[Sequence[float]],
    edges: Int[ArrayLike, "e 2"] | Sequence[Sequence[int]],
) -> LineMesh:
    """A curve or a network of curves: every vertex weighs half of the length of its edges.

    The curve may be open or closed, branch, and have several parts. Integrals of smooth functions along a smooth curve
    converge at order 2. The H1 inner product takes the derivative along the curve.

    Args:
        points: vertices, shape (n, dim) with dim 1, 2 or 3.
        edges: vertex indices of the straight edges, shape (e, 2); the order of its ends does not matter.

    Returns:
        A `LineMesh`; Σ w_i is the length of the curve.

    Raises:
        TypeError: for the reasons of `from_nodes`.
        ValueError: if shapes or a dtype do not fit, an index is outside the points, an edge has length 0 (the message
            names it), or nodes are not finite or coincide only after rounding.

    Cost: O(n + e) on the host.

    Example:
        The boundary of the unit square:

        >>> from jaxop import domains
        >>> square = domains.line_mesh([[0, 0], [1, 0], [1, 1], [0, 1]], [[0, 1], [1, 2], [2, 3], [3, 0]])
        >>> print(square.measure, square.weights)
        4.0 [1. 1. 1. 1.]
    """
    return _built(LineMesh, points, edges, "points", (1, 2, 3), _check_edges)


def triangle_mesh(
    vertices: Real[ArrayLike, "n dim"] | Sequence[Sequence[float]],
    faces: Int[ArrayLike, "f 3"] | Sequence[Sequence[int]],
) -> TriangleMesh:
    """A triangulated domain or surface: every vertex weighs a third of the area of its triangles.

    In three dimensions it is a surface, and the H1 inner product takes tangential gradients. `split_quadrilaterals`
    makes triangles of quadrilaterals, and `merge_duplicates` joins vertices that a file repeats for every face.

    Args:
        vertices: shape (n, 2) or (n, 3).
        faces: vertex indices, shape (f, 3).

    Returns:
        A `TriangleMesh`; Σ w_i is the area of the mesh.

    Raises:
        TypeError: for the reasons of `from_nodes`.
        ValueError: if shapes or a dtype do not fit, an index is outside the vertices (the message names the face),
            vertices are not finite or coincide only after rounding, or the area of the mesh is zero.

    Example:
        >>> from jaxop import domains
        >>> mesh = domains.triangle_mesh([[0, 0], [1, 0], [1, 1], [0, 1]], [[0, 1, 2], [0, 2, 3]])
        >>> print(mesh.measure.round(3))
        1.0
    """
    return _built(TriangleMesh, vertices, faces, "vertices", (2, 3), _check_faces)


def tetrahedral_mesh(
    points: Real[ArrayLike, "n 3"] | Sequence[Sequence[float]],
    cells: Int[ArrayLike, "t 4"] | Sequence[Sequence[int]],
) -> TetrahedralMesh:
    """A volume cut into tetrahedra: every vertex weighs a quarter of the volume of its cells.

    Linear functions are integrated exactly, smooth ones at order 2. The H1 inner product takes the exact gradients of
    the piecewise linear interpolant.

    Args:
        points: vertices, shape (n, 3).
        cells: vertex indices of the tetrahedra, shape (t, 4). All have the same orientation.

    Returns:
        A `TetrahedralMesh`; Σ w_i is the volume of the mesh. A vertex that no cell uses has weight 0.

    Raises:
        TypeError: for the reasons of `from_nodes`.
        ValueError: if shapes or a dtype do not fit, an index is outside the points, a cell is flat or inverted (the
            message names it), nodes repeat each other (see `merge_duplicates`), are not finite or coincide only after
            rounding. A cell is flat if its volume is within the rounding error of its coordinates.

    Cost: O(n log n + t) on the host.

    Example:
        >>> from jaxop import domains
        >>> corners = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
        >>> mesh = domains.tetrahedral_mesh(corners, [[0, 1, 2, 3], [4, 2, 1, 3]])
        >>> print(f"{mesh.measure:.3f} {mesh.dirichlet(mesh.points, mesh.points):.3f}")
        0.500 1.500
    """
    return _built(TetrahedralMesh, points, cells, "points", (3,), _check_cells)


def split_quadrilaterals(quadrilaterals: Int[ArrayLike, "q 4"] | Sequence[Sequence[int]]) -> Int[np.ndarray, "f 3"]:
    """Returns the faces of two triangles for each quadrilateral (a, b, c, d): (a, b, c) and (a, c, d).

    The diagonal joins the first and the third corner, so quadrilaterals must be convex, or have their reflex corner
    first or third. Corners are in the order in which the boundary passes them.

    Args:
        quadrilaterals: vertex indices, shape (q, 4).

    Returns:
        Faces for `triangle_mesh`, shape (2q, 3); the halves of one quadrilateral are neighbours.

    Raises:
        TypeError: if indices are not real numbers.
        ValueError: if they are not integers of shape (q, 4).

    Example:
        >>> from jaxop import domains
        >>> print(domains.split_quadrilaterals([[0, 1, 2, 3]]))
        [[0 1 2]
         [0 2 3]]
    """
    corners = host_array(quadrilaterals, "quadrilaterals")
    if corners.ndim != 2 or corners.shape[1] != 4 or corners.dtype.kind not in "iu":
        raise ValueError(
            f"quadrilaterals must be integers of shape (q, 4), got {corners.dtype} of shape {corners.shape}."
        )
    return corners[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3)


def split_solids(solids: Int[ArrayLike, "k corners"] | Sequence[Sequence[int]]) -> Int[np.ndarray, "t 4"]:
    """Returns the cells of six tetrahedra for each hexahedron, three for each wedge, or two for each pyramid.

    The tetrahedra join the corner of the smallest number with the faces opposite to it, and every quadrilateral face is
    cut from its corner of the smallest number. So neighbours cut the face between them in the same way, also if their
    kinds differ. Solids must be convex.

    Args:
        solids: vertex indices, shape (k, 8) for hexahedra, (k, 6) for wedges or (k, 5) for pyramids, in the order of
            VTK and Gmsh: the corners of one face around it, then those of the opposite face, or the apex.

    Returns:
        Cells for `tetrahedral_mesh`, shape (6k, 4), (3k, 4) or (2k, 4); the parts of one solid follow each other. They
        have one orientation if the solids have one.

    Raises:
        TypeError: if indices are not real numbers.
        ValueError: if they are not integers of one of these shapes.

    Source: Dompierre, Labbé, Vallet, Camarero, "How to subdivide pyramids, prisms and hexahedra into tetrahedra", 8th
        International Meshing Roundtable (1999).

    Example:
        >>> import numpy as np
        >>> from jaxop import domains
        >>> corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
        >>> cells = domains.split_solids([[0, 1, 2, 3, 4, 5, 6, 7]])
        >>> cube = domains.tetrahedral_mesh(np.concatenate([corners, corners + [0, 0, 1]]), cells)
        >>> len(cells), round(float(cube.measure), 6)
        (6, 1.0)
    """
    corners = host_array(solids, "solids")
    if corners.ndim != 2 or corners.shape[1] not in _FACES or corners.dtype.kind not in "iu":
        raise ValueError(
            "solids must be integers of shape (k, 8) for hexahedra, (k, 6) for wedges or (k, 5) for pyramids, got "
            f"{corners.dtype} of shape {corners.shape}."
        )
    faces = _FACES[corners.shape[1]]
    parts = {8: 6, 6: 3, 5: 2}[corners.shape[1]]
    cells = np.empty((len(corners), parts, 4), corners.dtype)
    smallest = np.argmin(corners, axis=1)
    for apex in range(corners.shape[1]):
        chosen = smallest == apex
        some = corners[chosen]
        opposite = [part for face in faces if apex not in face for part in _triangles(some[:, face])]
        cells[chosen] = np.stack([np.column_stack([part, some[:, apex]]) for part in opposite], axis=1)
    return cells.reshape(-1, 4)


_FACES = {
    8: ([0, 1, 2, 3], [4, 7, 6, 5], [0, 4, 5, 1], [1, 5, 6, 2], [2, 6, 7, 3], [3, 7, 4, 0]),
    6: ([0, 1, 2], [3, 5, 4], [0, 3, 4, 1], [1, 4, 5, 2], [2, 5, 3, 0]),
    5: ([0, 1, 2, 3], [0, 4, 1], [1, 4, 2], [2, 4, 3], [3, 4, 0]),
}
"""Faces of hexahedra, wedges and pyramids by the number of corners; all normals point inwards, or all outwards."""


def _triangles(face: Int[np.ndarray, "k c"]) -> list[Int[np.ndarray, "k 3"]]:
    """Returns triangles, or the two halves of quadrilaterals that meet in the corner of the smallest number."""
    if face.shape[1] == 3:
        return [face]
    turned = np.take_along_axis(face, (np.argmin(face, axis=1)[:, None] + np.arange(4)) % 4, axis=1)
    return [turned[:, [0, 1, 2]], turned[:, [0, 2, 3]]]


def merge_duplicates(
    points: Real[ArrayLike, "n dim"] | Sequence[Sequence[float]],
    simplices: Int[ArrayLike, "s k"] | Sequence[Sequence[int]],
    *,
    tolerance: float = 0.0,
) -> tuple[Real[np.ndarray, "m dim"], Int[np.ndarray, "r k"], Int[np.ndarray, " m"]]:
    """Joins nodes that stand at the same place, as in files that repeat the vertices of every face.

    Nodes closer than ``tolerance`` are joined, and so are chains of them; the first of each group stays. The rest keep
    their order. A simplex two corners of which are joined has no volume and is left out.

    Args:
        points: nodes, shape (n, dim).
        simplices: node indices of edges, faces or cells, shape (s, k).
        tolerance: a length, 0 to join nodes of equal coordinates only.

    Returns:
        The m nodes that stay, the simplices between them, and the indices of these nodes in ``points``: if u are values
        on ``points``, ``u[kept]`` are the values on the merged nodes.

    Raises:
        TypeError: if ``points`` or ``simplices`` are not real numbers, or ``tolerance`` is not a number.
        ValueError: if shapes do not fit, an index is outside the points, points are not finite, or ``tolerance`` is
            negative or not finite.

    Cost: O(n log n) on the host, for a tolerance of about the spacing of the nodes or less.

    Example:
        Two triangles that do not share their corners:

        >>> from jaxop import domains
        >>> corners = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
        >>> points, faces, kept = domains.merge_duplicates(corners, [[0, 1, 2], [3, 4, 5]])
        >>> print(kept, 6 * domains.triangle_mesh(points, faces).weights)
        [0 1 2 4] [1. 2. 2. 1.]
    """
    nodes, corners = host_array(points, "points"), host_array(simplices, "simplices")
    if not hasattr(points, "dtype"):
        nodes = nodes.astype(jax_dtype(nodes.dtype))
    if nodes.ndim != 2:
        raise ValueError(f"points must have shape (n, dim), got {nodes.shape}.")
    if corners.ndim != 2 or corners.dtype.kind not in "iu":
        raise ValueError(f"simplices must be integers of shape (s, k), got {corners.dtype} of shape {corners.shape}.")
    check_finite(nodes, "points")
    _check_range(corners, nodes.shape[0], "simplices")
    if not 0 <= as_number(tolerance, "tolerance") < np.inf:
        raise ValueError(f"tolerance must be a length of at least 0, got {tolerance}.")
    if tolerance > 0:
        first, second = KDTree(nodes).query_pairs(tolerance, output_type="ndarray").T
        near = coo_array((np.ones(first.size, bool), (first, second)), shape=(nodes.shape[0],) * 2)
        _, group = connected_components(near, directed=False)
    else:
        group = _groups(nodes)
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    kept = np.sort(first)
    merged = np.searchsorted(kept, first)[group][corners].astype(corners.dtype)
    ordered = np.sort(merged, axis=1)
    return nodes[kept], merged[(ordered[:, 1:] != ordered[:, :-1]).all(axis=1)], kept


def flat_simplices(nodes: Real[np.ndarray, "n dim"], simplices: Int[np.ndarray, "s k"]) -> Bool[np.ndarray, " s"]:
    """Returns which simplices have a size within the rounding error of their coordinates.

    Moving one corner by ε max|x| changes |T| by less than ε max|x| L^{k-1}, where L is the longest edge.
    """
    rounding = np.finfo(nodes.dtype).eps * np.abs(nodes).max(initial=0)
    size = simplex_sizes(*simplex_edges(nodes.astype(np.float64), simplices))
    return size <= rounding * _longest_edges(nodes, simplices) ** (simplices.shape[1] - 2)


def _longest_edges(nodes: Real[np.ndarray, "n dim"], simplices: Int[np.ndarray, "s k"]) -> Float[np.ndarray, " s"]:
    """Returns the length of the longest edge of every simplex."""
    corners, count = nodes.astype(np.float64)[simplices], simplices.shape[1]
    spans = [corners[:, i] - corners[:, j] for i in range(count) for j in range(i)]
    return np.sqrt(np.max([np.sum(span**2, axis=1) for span in spans], axis=0))


def first_repeat(nodes: Real[np.ndarray, "n dim"]) -> tuple[int, int] | None:
    """Returns the first node that repeats an earlier one, as (earlier, later); None if all nodes differ."""
    group = _groups(nodes)
    _, first = np.unique(group, return_index=True)
    repeats = np.ones(group.size, bool)
    repeats[first] = False
    if not repeats.any():
        return None
    later = int(np.argmax(repeats))
    return int(np.argmax(group == group[later])), later


def _groups(nodes: Real[np.ndarray, "n dim"]) -> Int[np.ndarray, " n"]:
    """Returns numbers from 0 that nodes of equal coordinates share."""
    order = np.lexsort(nodes.T)
    new = (np.diff(nodes[order], axis=0) != 0).any(axis=1)
    group = np.zeros(nodes.shape[0], np.int64)
    group[order[1:]] = np.cumsum(new)
    return group


def _built(
    kind: type[AnyMesh],
    points: object,
    simplices: object,
    argument: str,
    dims: tuple[int, ...],
    check: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
) -> AnyMesh:
    """Returns a mesh with lumped weights; values are checked where they can be read."""
    name = kind.simplices_name
    corners = {"edges": 2, "faces": 3, "cells": 4}[name]
    nodes, indices = as_coordinates(points, argument), as_indices(simplices, name)
    if nodes.ndim != 2 or nodes.shape[1] not in dims:
        shapes = " or ".join(f"(n, {dim})" for dim in dims)
        raise ValueError(f"{argument} must have shape {shapes}, got {nodes.shape}.")
    if indices.ndim != 2 or indices.shape[1] != corners or not jnp.issubdtype(indices.dtype, jnp.integer):
        quads = "; split_quadrilaterals makes faces of quadrilaterals" if indices.shape[1:] == (4,) else ""
        raise ValueError(
            f"{name} must be integers of shape ({name[0]}, {corners}), got {indices.dtype} of shape "
            f"{indices.shape}{quads}."
        )
    if isinstance(nodes, np.ndarray):
        check_finite(nodes, argument)
        check_distinct(points, argument, nodes.dtype)
    if isinstance(indices, np.ndarray):
        _check_range(indices, nodes.shape[0], name)
    if isinstance(nodes, np.ndarray) and isinstance(indices, np.ndarray):
        weights = vertex_weights(nodes, indices).astype(nodes.dtype)
        check(nodes, indices, weights)
    else:
        size = simplex_sizes(*simplex_edges(jnp.asarray(nodes), jnp.asarray(indices)))
        weights = jnp.zeros(nodes.shape[0], nodes.dtype).at[indices].add(size[:, None] / corners)
    return kind(leaf(nodes, points), leaf(weights), leaf(indices, simplices))  # pyright: ignore[reportCallIssue]


def _check_range(simplices: np.ndarray, count: int, argument: str) -> None:
    bad = (simplices < 0) | (simplices >= count)
    if bad.any():
        where = first_index(bad)
        raise ValueError(
            f"{argument}[{position(where)}] = {simplices[where]} is not a vertex: indices run from 0 to {count - 1}."
        )


def _check_edges(nodes: np.ndarray, edges: np.ndarray, weights: np.ndarray) -> None:
    _check_sizes(nodes, edges, "edges", "length")


def _check_faces(nodes: np.ndarray, faces: np.ndarray, weights: np.ndarray) -> None:
    if not weights.any():
        raise ValueError(f"the {faces.shape[0]} faces have area zero: at least one triangle must not be degenerate.")


def _check_cells(nodes: np.ndarray, cells: np.ndarray, weights: np.ndarray) -> None:
    used = np.unique(cells[~_is_padding(cells)])
    if repeat := first_repeat(nodes[used]):
        earlier, later = (int(used[i]) for i in repeat)
        raise ValueError(
            f"points[{later}] = {nodes[later].tolist()} repeats points[{earlier}]; join them by merge_duplicates."
        )
    _check_sizes(nodes, cells, "cells", "volume")
    volumes = signed_volumes(*simplex_edges(nodes.astype(np.float64), cells))
    inverted = volumes < 0 if np.sum(volumes > 0) >= np.sum(volumes < 0) else volumes > 0
    if inverted.any():
        where = first_index(inverted)
        raise ValueError(
            f"cells[{where}] = {cells[where].tolist()} is inverted: the order of its corners is opposite to that of "
            "most cells. If cells do not overlap, exchange two corners of each of the "
            f"{inverted.sum()} inverted cells; else repair the mesh."
        )


def _is_padding(simplices: np.ndarray) -> np.ndarray:
    """Returns which simplices have one node for all corners, as `pad` makes them."""
    return (simplices == simplices[:, :1]).all(axis=1)


def _check_sizes(nodes: np.ndarray, simplices: np.ndarray, name: str, size: str) -> None:
    padding = _is_padding(simplices)
    if padding.all():
        raise ValueError(f"{name} must hold at least one simplex, got shape {simplices.shape}.")
    flat = flat_simplices(nodes, simplices) & ~padding
    if flat.any():
        where = first_index(flat)
        raise ValueError(
            f"{name}[{where}] = {simplices[where].tolist()} has {size} zero up to rounding; leave it out, or join "
            "nodes at the same place by merge_duplicates, which leaves such simplices out."
        )
