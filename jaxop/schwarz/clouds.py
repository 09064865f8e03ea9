"""Subdomains of scattered nodes and meshes, boxes of a bisection of the coordinates."""

import dataclasses
import functools
import math

import numpy as np
import scipy.sparse

from jaxop._pytree import register
from jaxop._sparse import Entries
from jaxop._validation import is_concrete
from jaxop.domains import Domain, Grid, Mesh
from jaxop.schwarz.tables import Members, check_filled, ramp


@functools.partial(register, static=("overlap",))
@dataclasses.dataclass(frozen=True, eq=False)
class BoxCuts:
    """Subdomains of scattered nodes and meshes.

    Attributes:
        lower: lower corners of the cores, (p, dim), −∞ where there is no bound.
        upper: upper corners of the cores, (p, dim), ∞ where there is no bound.
        overlap: a length, or layers of neighbours in a mesh (static).
        lattice: nodes of the coarse hats along each axis.
        kept: which hats of the lattice do not vanish on the domain, (n0,).
    """

    lower: np.ndarray
    upper: np.ndarray
    overlap: int | float
    lattice: tuple[np.ndarray, ...]
    kept: np.ndarray


def cut_boxes(dom: Domain, count: int, overlap: int | float) -> BoxCuts:
    """Returns boxes that hold equal shares of the nodes, and the lattice of the coarse hats."""
    points = host_points(dom)
    n, dim = points.shape
    if not 1 <= count <= n:
        raise ValueError(f"subdomains must lie between 1 and the {n} nodes, got {count}.")
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    _bisect(points, np.full(dim, -np.inf), np.full(dim, np.inf), count, boxes)
    lower, upper = (np.stack(side) for side in zip(*boxes, strict=True))
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    if isinstance(overlap, int) and not isinstance(dom, Mesh):
        overlap = float(overlap * _share(extent, n)[0])
    cell, wide = _share(extent, count)
    lattice = tuple(
        np.linspace(low[k], low[k] + extent[k], max(1, round(extent[k] / cell)) + 1) if wide[k] else low[k : k + 1]
        for k in range(dim)
    )
    kept = np.unique(_lattice_hats(points, lattice).column)
    return BoxCuts(lower, upper, overlap, lattice, kept)


def check_reach(dom: Domain, cuts: BoxCuts, found: Members, overlap: object) -> None:
    """Raises ``ValueError`` if the overlap exceeds the longest side, or the number of layers, of the largest core."""
    points, owner = host_points(dom), found.owner
    assert owner is not None
    reason = ""
    if found.sizes.max() == dom.size:
        reason = f": subdomain {found.sizes.argmax()} becomes the whole domain"
    elif isinstance(cuts.overlap, int):
        assert isinstance(dom, Mesh)
        largest = int(np.bincount(owner).max())
        across = math.ceil(largest ** (1 / (dom.simplices.shape[1] - 1)))
        if cuts.overlap > across:
            reason = f", the largest of which has {largest} vertices, about {across} across"
    else:
        sides = np.minimum(cuts.upper, points.max(axis=0)) - np.maximum(cuts.lower, points.min(axis=0))
        if cuts.overlap > sides.max():
            reason = f", whose cores are {sides.max():.6g} long at most"
    if reason:
        raise ValueError(
            f"overlap={overlap} is larger than a subdomain{reason}; choose a smaller overlap, or fewer subdomains."
        )


def on_boxes(dom: Domain, cuts: BoxCuts, unity: str) -> tuple[Members, Entries]:
    """Returns members and hats of scattered nodes or a mesh."""
    points = host_points(dom)
    n = points.shape[0]
    lower, upper = (np.asarray(side, np.float64) for side in (cuts.lower, cuts.upper))
    count = lower.shape[0]
    owner = np.zeros(n, np.int64)
    for i in range(count):
        owner[((points >= lower[i]) & (points < upper[i])).all(axis=1)] = i
    check_filled(np.bincount(owner, minlength=count), "the domain")
    if isinstance(cuts.overlap, int):
        assert isinstance(dom, Mesh)
        sub, node, layer = _layers(np.asarray(dom.simplices), owner, count, cuts.overlap)
        step = 1 - layer / (cuts.overlap + 1)
        weight = step * step * (3 - 2 * step)
    else:
        reach, members = cuts.overlap, []
        for i in range(count):
            nodes = np.flatnonzero(((points >= lower[i] - reach) & (points < upper[i] + reach)).all(axis=1))
            steps = [
                ramp(points[nodes, k], lower[i, k] - reach, upper[i, k] + reach, reach, reach) for k in range(dom.dim)
            ]
            members.append((np.full(nodes.size, i), nodes, np.prod(steps, axis=0)))
        sub, node, weight = (np.concatenate(part) for part in zip(*members, strict=True))
    if unity == "multiplicity":
        weight = np.ones(sub.size)
    weight = weight / np.bincount(node, weight, minlength=n)[node]
    hats = _lattice_hats(points, tuple(np.asarray(line, np.float64) for line in cuts.lattice))
    kept = np.asarray(cuts.kept)
    place = np.searchsorted(kept, hats.column).clip(0, kept.size - 1)
    alive = kept[place] == hats.column
    row, column, value = hats.row[alive], place[alive], hats.value[alive]
    total = np.bincount(row, value, minlength=n)
    value = value / np.where(total > 0, total, 1)[row]
    return Members(sub, node, weight, count, owner), Entries(row, column, value, (n, kept.size))


def host_points(dom: Domain) -> np.ndarray:
    """Returns the nodes on the host, in float64."""
    leaves = [axis.nodes for axis in dom.axes] if isinstance(dom, Grid) else [dom.points]
    if not is_concrete(*leaves):
        raise ValueError("the nodes must be concrete to be decomposed; call decompose outside jax.jit.")
    if isinstance(dom, Grid):  # the points of a grid would be compiled for every shape
        axes = np.meshgrid(*(np.asarray(nodes, np.float64) for nodes in leaves), indexing="ij")
        return np.stack([axis.ravel() for axis in axes], axis=1)
    return np.asarray(dom.points, np.float64)


def _share(extent: np.ndarray, count: int) -> tuple[float, np.ndarray]:
    """Returns the side of a cube that is one of ``count`` parts of a box, and the axes along which the box is wider."""
    wide = extent > 0
    while True:
        side = float((np.prod(extent[wide]) / count) ** (1 / max(wide.sum(), 1)))
        if not (thin := wide & (extent < side)).any():
            return side, wide
        wide = wide & ~thin


def _bisect(points: np.ndarray, lower: np.ndarray, upper: np.ndarray, count: int, boxes: list) -> None:
    """Halves the nodes across their longest side until ``count`` boxes are left."""
    if count == 1:
        boxes.append((lower, upper))
        return
    axis = int(np.argmax(np.ptp(points, axis=0)))
    values = np.sort(points[:, axis])
    left = count // 2
    gaps = np.flatnonzero(np.diff(values) > 0) + 1
    gaps = gaps[(gaps >= left) & (values.size - gaps >= count - left)]
    if gaps.size == 0:
        raise ValueError(
            f"subdomains: the nodes coincide too often to be cut into {count} parts here; ask for fewer subdomains."
        )
    at = gaps[np.argmin(np.abs(gaps - values.size * left / count))]
    cut = (values[at - 1] + values[at]) / 2
    below = points[:, axis] < cut
    middle = np.where(np.arange(lower.size) == axis, cut, 0.0)
    along = np.arange(lower.size) == axis
    _bisect(points[below], lower, np.where(along, middle, upper), left, boxes)
    _bisect(points[~below], np.where(along, middle, lower), upper, count - left, boxes)


def _layers(
    simplices: np.ndarray, owner: np.ndarray, count: int, layers: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns cores of a mesh grown by layers of vertices that share a simplex: (subdomain, vertex, layer)."""
    n, corners = owner.size, simplices.size
    incident = scipy.sparse.csr_array(
        (np.ones(corners), simplices.ravel(), np.arange(0, corners + 1, simplices.shape[1])),
        shape=(simplices.shape[0], n),
    )
    neighbours = incident.T @ incident
    found = frontier = scipy.sparse.csr_array((np.ones(n, bool), (owner, np.arange(n))), shape=(count, n))
    layer = found.astype(np.int64)  # the number of the layer plus one
    for step in range(1, layers + 1):
        frontier = (frontier @ neighbours).astype(bool) > found
        found, layer = found + frontier, layer + (step + 1) * frontier.astype(np.int64)
    layer = scipy.sparse.csr_array(layer)
    layer.sort_indices()
    listed = layer.tocoo()
    return listed.row.astype(np.int64), listed.col.astype(np.int64), listed.data - 1


def _lattice_hats(points: np.ndarray, lattice: tuple[np.ndarray, ...]) -> Entries:
    """Returns multilinear hats of a lattice at the nodes, constant beyond its ends."""
    row, column, value = np.arange(points.shape[0]), np.zeros(points.shape[0], np.int64), np.ones(points.shape[0])
    for k, line in enumerate(lattice):
        column = column * line.size
        if line.size == 1:
            continue
        x = points[row, k]
        cell = (np.searchsorted(line, x, side="right") - 1).clip(0, line.size - 2)
        share = np.clip((x - line[cell]) / (line[cell + 1] - line[cell]), 0, 1)
        row = np.concatenate([row, row])
        column = np.concatenate([column + cell, column + cell + 1])
        value = np.concatenate([value * (1 - share), value * share])
    keep = value > 1e-9
    return Entries(row[keep], column[keep], value[keep], (points.shape[0], math.prod(line.size for line in lattice)))


def check_same_kind(domain: Domain, cuts: BoxCuts) -> None:
    """Raises ``ValueError`` unless the domain is of the kind that was cut: scattered nodes or a mesh."""
    layers, dim = isinstance(cuts.overlap, int), cuts.lower.shape[1]
    if isinstance(domain, Grid) or domain.dim != dim or (layers and not isinstance(domain, Mesh)):
        raise ValueError(
            f"domain must hold {'a mesh' if layers else 'scattered nodes or a mesh'} in {dim} dimensions, like the "
            f"decomposed one, got {type(domain).__name__} in {domain.dim}."
        )
