"""Weights for scattered points that come without them."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import ArrayLike, Real
from scipy.spatial import Delaunay, KDTree, QhullError

from jaxop._validation import as_number, check_distinct, check_name, is_concrete
from jaxop.domains.arrays import as_coordinates, check_finite
from jaxop.domains.builders import from_nodes
from jaxop.domains.domain import PointCloud
from jaxop.domains.mesh import LineMesh, TetrahedralMesh, TriangleMesh, signed_volumes, simplex_edges, simplex_sizes
from jaxop.domains.meshing import (
    first_repeat,
    flat_simplices,
    line_mesh,
    tetrahedral_mesh,
    triangle_mesh,
)

CLOUD_METHODS = ("delaunay", "density", "neighbours")
"""Names of the methods of `from_points`."""

_NEIGHBOURS = 8
_BLUNTEST = 3.0  # degrees that the angles of cells at the boundary stay below 180
_MOST_LOST = 0.1  # of the volume of the hull


def from_points(
    points: Real[ArrayLike, "n dim"] | Sequence[Sequence[float]],
    *,
    method: str = "delaunay",
    inside: Callable[[np.ndarray], np.ndarray] | None = None,
    measure: float | None = None,
) -> LineMesh | TriangleMesh | TetrahedralMesh | PointCloud:
    """A domain of scattered points whose weights are computed from the points alone.

    ``"delaunay"`` joins the points by intervals, triangles or tetrahedra that fill their convex hull, less the cells at
    its boundary with an angle of nearly 180 degrees, across which a gradient would be wrong. Each point weighs an equal
    part of the cells around it, and the H1 inner product is defined. If the body has holes or is not convex,
    ``inside`` tells which cells belong to it.

    The other methods make a cloud without neighbours. ``"neighbours"`` weighs a point by the volume of the ball that
    reaches its 8th neighbour, divided by 8, and ``"density"`` by 1/(n ρ̂), with a Gaussian density estimate ρ̂ and
    Scott's bandwidth, which is bounded because a point counts for itself. Both know nothing about the boundary. They
    are for more than 3 dimensions and for bodies of unknown shape.

    ``"delaunay"`` is the default because it converges fastest, at order 2 in the distance of the points. Relative
    errors of ∫ sin πx sin πy over the unit square with 250, 1000 and 4000 points of density 36 x(1 − x) y(1 − y), rms
    of 10 draws: 5.5e-2, 1.6e-2, 4.2e-3 with ``"delaunay"``, 1.9e-2, 1.0e-2, 4.3e-3 with ``"neighbours"``, 2.8e-2,
    2.6e-2, 2.0e-2 with ``"density"``, and 0.48 with any number of equal weights. The strip between the cells and the
    boundary of the body is missing: 5e-2, 2.5e-2 and 8e-3 of the area for uniform points. Points on the boundary
    recover it, or weights scaled to a known measure: ``from_nodes(points, measure * mesh.weights / mesh.measure)``.

    Args:
        points: nodes, shape (n, dim), all different; dim at most 3 for ``"delaunay"``.
        method: one of `CLOUD_METHODS`.
        inside: takes the centroids of cells, (s, dim), and returns which lie in the body, (s,); only for
            ``"delaunay"``. A point without cells has weight 0.
        measure: |D|, to which the weights are scaled, if it is known; only for the other methods.

    Returns:
        A `LineMesh`, `TriangleMesh` or `TetrahedralMesh` for ``"delaunay"``, else a `PointCloud`. Nodes keep
        their order.

    Raises:
        TypeError: if ``measure`` is not a number, or for the reasons of `from_nodes`.
        ValueError: if ``method`` is unknown or does not use an argument, if points repeat each other (the message names
            the first), lie in a plane or on a line, or are too few, if more than a tenth of the hull is left out, if
            ``inside`` leaves no cell or does not return one truth value per cell, or for the reasons of `from_nodes`.

    Cost: O(n log n) on the host for ``"delaunay"`` and ``"neighbours"``, O(n²) time and O(n) memory for ``"density"``.

    Example:
        >>> import numpy as np
        >>> from jaxop import domains
        >>> points = np.random.default_rng(0).uniform(-1, 1, (400, 2)).astype(np.float32)
        >>> square = domains.from_points(points)
        >>> ring = domains.from_points(points, inside=lambda x: np.hypot(*x.T) > 0.5)
        >>> print(f"{square.measure:.2f} {ring.measure:.2f}")  # 4 and 4 − π/4, less a strip at the boundary
        3.86 3.06
    """
    check_name(method, "method", CLOUD_METHODS)
    if not is_concrete(points):
        raise ValueError("points must be concrete, because cells are found on the host; call from_points outside jit.")
    nodes = np.asarray(as_coordinates(points, "points"))
    if nodes.ndim != 2 or nodes.shape[1] < 1:
        raise ValueError(f"points must have shape (n, dim) with dim >= 1, got {nodes.shape}.")
    check_finite(nodes, "points")
    check_distinct(points, "points", nodes.dtype)
    if repeat := first_repeat(nodes):
        earlier, later = repeat
        raise ValueError(
            f"points[{later}] = {nodes[later].tolist()} repeats points[{earlier}]; keep one of them, for example by "
            "numpy.unique(points, axis=0, return_index=True)."
        )
    if method == "delaunay":
        if measure is not None:
            raise ValueError(
                f"measure={measure} is not used by method='delaunay', whose weights sum to the volume of its cells; "
                "leave it out, or leave out cells by inside=."
            )
        return _mesh(points, _cells(nodes, inside))
    if inside is not None:
        raise ValueError(f"inside is not used by method={method!r}, which has no cells; leave it out.")
    sizes = _reciprocal_density(nodes) if method == "density" else _balls(nodes)
    if measure is not None:
        total = as_number(measure, "measure")
        if not 0 < total < math.inf:
            raise ValueError(f"measure must be positive and finite, got {measure}.")
        sizes = total * sizes / sizes.sum()
    return from_nodes(points, sizes.astype(nodes.dtype))


def _cells(nodes: np.ndarray, inside: Callable[[np.ndarray], np.ndarray] | None) -> np.ndarray:
    """Returns the simplices of a triangulation that are not flat and lie inside, with one orientation."""
    n, dim = nodes.shape
    if dim > 3:
        raise ValueError(f"method='delaunay' takes points of 1, 2 or 3 dimensions, got {dim}; use method='neighbours'.")
    if n <= dim:
        raise ValueError(f"method='delaunay' needs at least {dim + 1} points in {dim} dimensions, got {n}.")
    if dim == 1:
        order = np.argsort(nodes[:, 0])
        cells = np.stack([order[:-1], order[1:]], axis=1)
    else:
        try:
            triangulation = Delaunay(nodes.astype(np.float64))
        except QhullError:
            place = "a line" if dim == 2 else "a plane"
            raise ValueError(
                f"points must not all lie on {place} up to rounding; give the edges of a curve to line_mesh and the "
                "faces of a surface to triangle_mesh, or use method='neighbours'."
            ) from None
        if triangulation.coplanar.size:
            lost, _, near = triangulation.coplanar[0]
            raise ValueError(
                f"points[{lost}] = {nodes[lost].tolist()} cannot be told from points[{near}] up to rounding; "
                "keep one of them."
            )
        cells = _without_slivers(nodes, triangulation)
    if inside is not None:
        centroids = nodes[cells].mean(axis=1)
        kept = np.asarray(inside(centroids))
        if kept.shape != centroids.shape[:1] or kept.dtype != bool:
            raise ValueError(
                f"inside must return one truth value for each of the {len(cells)} centroids that it takes, shape "
                f"({len(cells)},), got {kept.dtype} of shape {kept.shape}."
            )
        if not kept.any():
            raise ValueError("inside leaves no cell: it must be True at the centroids of cells that lie in the body.")
        cells = cells[kept]
    if dim == 3:
        inverted = signed_volumes(*simplex_edges(nodes.astype(np.float64), cells)) < 0
        cells[inverted] = cells[inverted][:, [1, 0, 2, 3]]
    return cells


def _without_slivers(nodes: np.ndarray, triangulation: Delaunay) -> np.ndarray:
    """Returns the cells that are not flat, and at the boundary have no angle of nearly 180 degrees between two sides.

    The convex hull joins distant points at the boundary. There the linear interpolant across a cell with such an angle
    has a wrong slope (maximum angle condition), which would dominate the H1 norm.
    """
    cells, neighbours, wide = triangulation.simplices, triangulation.neighbors, nodes.astype(np.float64)
    kept = ~flat_simplices(nodes, cells)
    size = simplex_sizes(*simplex_edges(wide, cells)) * kept
    while True:
        rim = np.flatnonzero(kept & ((neighbours < 0) | ~kept[neighbours]).any(axis=1))
        others = np.linalg.inv(np.stack(simplex_edges(wide, cells[rim]), axis=1)).swapaxes(1, 2)
        normals = np.concatenate([others, -others.sum(axis=1, keepdims=True)], axis=1)
        normals /= np.linalg.norm(normals, axis=2, keepdims=True)
        cosines = normals @ normals.swapaxes(1, 2) - 2 * np.eye(cells.shape[1])
        wide_angle = rim[cosines.max(axis=(1, 2)) > math.cos(math.radians(_BLUNTEST))]
        kept[wide_angle] = False
        covered = np.bincount(cells[kept].ravel(), minlength=nodes.shape[0])
        only = (covered[cells[wide_angle]] == 0).any(axis=1)  # every node keeps a cell
        kept[wide_angle[only]] = True
        if only.all():
            break
    lost = 1 - size[kept].sum() / size.sum()
    if lost > _MOST_LOST:
        raise ValueError(
            f"points are so unlike in their coordinates that {lost:.0%} of their hull is in cells with an angle of "
            "nearly 180 degrees; bring the axes to units in which the distances of neighbours are alike, or give the "
            "cells to triangle_mesh or tetrahedral_mesh."
        )
    return cells[kept]


def _mesh(points: object, cells: np.ndarray) -> LineMesh | TriangleMesh | TetrahedralMesh:
    builder = {2: line_mesh, 3: triangle_mesh, 4: tetrahedral_mesh}[cells.shape[1]]
    return builder(points, cells)  # pyright: ignore[reportArgumentType]


def _reciprocal_density(nodes: np.ndarray) -> np.ndarray:
    """Returns 1/(n ρ̂(x_i)), bounded because x_i itself adds to ρ̂(x_i)."""
    from scipy.stats import gaussian_kde  # takes as long to import as all of jaxop

    n, dim = nodes.shape
    if n <= dim:
        raise ValueError(f"method='density' needs at least {dim + 1} points in {dim} dimensions, got {n}.")
    wide = nodes.astype(np.float64).T
    try:
        return 1 / (n * gaussian_kde(wide)(wide))
    except np.linalg.LinAlgError:
        raise ValueError("points must not all lie on a line or a plane; use method='neighbours'.") from None


def _balls(nodes: np.ndarray) -> np.ndarray:
    """Returns the volume of the ball through the k-th neighbour, divided by k, whose mean is 1/(n ρ) far inside."""
    n, dim = nodes.shape
    if n <= _NEIGHBOURS:
        raise ValueError(f"method='neighbours' needs more than {_NEIGHBOURS} points, got {n}.")
    distance, _ = KDTree(nodes).query(nodes, k=_NEIGHBOURS + 1)
    unit_ball = math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)
    return unit_ball * distance[:, -1] ** dim / _NEIGHBOURS
