"""Subdomains of grids, products of overlapping intervals along the axes."""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from jaxop._pytree import register
from jaxop._sparse import Entries
from jaxop._validation import is_concrete, is_integer
from jaxop.domains import Axis, Domain, Grid
from jaxop.domains.rules import Rule
from jaxop.schwarz.tables import Members, check_filled, ramp

_Triples: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Groups, nodes and values, entry by entry."""


@functools.partial(register, static=("rule",))
@dataclasses.dataclass(frozen=True, eq=False)
class AxisCuts:
    """Subdomains along one axis of a grid, as intervals of its coordinate.

    Attributes:
        cuts: ends of the cores, (p + 1,), increasing.
        lower: left ends of the overlapping intervals, (p,).
        upper: right ends of these intervals, (p,).
        rule: the rule of the axis that was cut (static), whose hats are those of the coarse space on every grid.
    """

    cuts: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    rule: Rule


def per_axis(subdomains: int | Sequence[int], dim: int) -> tuple[int, ...]:
    """Returns the numbers of subdomains along each axis, from one number per axis or one for all axes."""
    counts = (subdomains,) * dim if isinstance(subdomains, int) or np.ndim(subdomains) == 0 else tuple(subdomains)
    if len(counts) != dim:
        raise ValueError(f"subdomains must be one number or {dim}, one per axis of the grid, got {counts}.")
    integers = tuple(operator.index(count) for count in counts if is_integer(count))
    if len(integers) < dim:
        raise TypeError(f"subdomains must be integers, one or one per axis, got {subdomains!r}.")
    return integers


def cut_axis(axis: Axis, count: int, overlap: int | float, k: int) -> AxisCuts:
    """Returns cuts between equal shares of the nodes, and the overlapping intervals around them."""
    nodes, n = _axis_nodes(axis), axis.size
    edges = _edges(axis, nodes)
    edges = np.unique(edges)  # padding repeats a node
    most = min(n, max(edges.size - 1, 1))  # with nodes at both ends there is one share less
    if not 1 <= count <= most:
        raise ValueError(f"subdomains must lie between 1 and {most} along axis {k} of {n} nodes, got {count}.")
    cuts = edges[np.round(np.arange(count + 1) * (edges.size - 1) / count).astype(int)]
    start, stop = _ranges(nodes, cuts[:-1], cuts[1:], periodic=False)
    check_filled(stop - start, f"axis {k}")
    periodic = axis.rule.is_periodic and count > 1
    if isinstance(overlap, float):
        smallest, what = float(np.diff(cuts).min()), f"{overlap} in length"
    else:
        smallest, what = int((stop - start).min()), f"{overlap} nodes"
    if count > 1 and overlap > smallest:
        raise ValueError(
            f"overlap={what} is larger than a subdomain, whose core has {smallest:.6g} along axis {k}; choose a "
            "smaller overlap (an integer counts nodes, a float is a length), or fewer subdomains."
        )
    overlap = overlap if count > 1 else type(overlap)(0)
    if isinstance(overlap, float):
        lower, upper = cuts[:-1] - overlap, cuts[1:] + overlap
    else:
        length = edges[-1] - edges[0]
        before, after = (nodes - length, nodes + length) if periodic else (np.full(n, -np.inf), np.full(n, np.inf))
        line = np.concatenate([before, nodes, after])
        between = (line[:-1] + line[1:]) / 2
        lower, upper = between[start - overlap + n - 1], between[np.minimum(stop + overlap, 2 * n - 1) + n - 1]
        if overlap == 0:
            lower, upper = cuts[:-1], cuts[1:]
    if periodic:
        if (np.subtract(*reversed(_ranges(nodes, lower, upper, periodic=True, length=_period(axis)))) > n).any():
            raise ValueError(f"overlap={what} makes a subdomain meet itself around the periodic axis {k}; shrink it.")
    else:
        lower, upper = lower.copy(), upper.copy()
        lower[0], upper[-1] = cuts[0], cuts[-1]
        lower, upper = np.maximum(lower, cuts[0]), np.minimum(upper, cuts[-1])
    return AxisCuts(cuts, lower, upper, axis.rule)


def on_grid(grid: Grid, cuts: tuple[AxisCuts, ...], unity: str) -> tuple[Members, Entries]:
    """Returns members and hats of a grid as products over its axes."""
    axes = [_on_axis(axis, cut, unity, k) for k, (axis, cut) in enumerate(zip(grid.axes, cuts, strict=True))]
    members, hats, owners = zip(*axes, strict=True)
    counts = [cut.cuts.size - 1 for cut in cuts]
    sub, node, weight = functools.reduce(
        lambda a, b: _product(a, b[0], b[1], b[2]),
        zip(members[1:], counts[1:], grid.shape[1:], strict=True),
        members[0],
    )
    order = np.argsort(sub, kind="stable")
    owner = functools.reduce(
        lambda a, b: (a[:, None] * b[1] + b[0]).ravel(), zip(owners[1:], counts[1:], strict=True), owners[0]
    )
    columns = [hat.shape[1] for hat in hats]
    entries = [(hat.column, hat.row, hat.value) for hat in hats]
    column, row, value = functools.reduce(
        lambda a, b: _product(a, b[0], b[1], b[2]),
        zip(entries[1:], columns[1:], grid.shape[1:], strict=True),
        entries[0],
    )
    found = Members(sub[order], node[order], weight[order], math.prod(counts), owner)
    return found, Entries(row, column, value, (grid.size, math.prod(columns)))


def _on_axis(axis: Axis, cut: AxisCuts, unity: str, k: int) -> tuple[_Triples, Entries, np.ndarray]:
    """Returns, along one axis, (subdomain, node, D), the hats, and the core of every node."""
    nodes, n = _axis_nodes(axis), axis.size
    cuts, lower, upper = (np.asarray(a, np.float64) for a in (cut.cuts, cut.lower, cut.upper))
    count = cuts.size - 1
    periodic = axis.rule.is_periodic and count > 1
    length = _period(axis) if periodic else 0.0
    first, last = _ranges(nodes, cuts[:-1], cuts[1:], periodic=False)
    check_filled(last - first, f"axis {k}")
    owner = np.repeat(np.arange(count), last - first)
    start, stop = _ranges(nodes, lower, upper, periodic=periodic, length=length)
    sizes = stop - start
    if (sizes > n).any():
        raise ValueError(f"a subdomain meets itself around the periodic axis {k}: choose a smaller overlap.")
    sub = np.repeat(np.arange(count), sizes)
    place = np.arange(sub.size) - (np.cumsum(sizes) - sizes)[sub] + start[sub]
    node = place % n
    weight = np.ones(sub.size)
    if unity == "ramp":
        x = nodes[node] + length * (place // n)
        weight = ramp(x, lower[sub], upper[sub], (cuts[:-1] - lower)[sub], (upper - cuts[1:])[sub])
    weight = weight / np.bincount(node, weight, minlength=n)[node]
    share = np.clip((nodes - cuts[owner]) / np.diff(cuts)[owner], 0, 1)
    share = np.where(share < 1e-9, 0, share)  # a node on a cut, up to rounding
    row = np.concatenate([np.arange(n)] * 2)
    column = np.concatenate([owner, owner + 1])
    value = np.concatenate([1 - share, share])
    columns = count + 1
    if axis.rule.is_periodic:
        column, columns = column % count, count
    elif cut.rule.vanishes_at_ends:
        column, columns = column - 1, count - 1
        keep = (column >= 0) & (column < columns)
        row, column, value = row[keep], column[keep], value[keep]
    return (sub, node, weight), Entries(row, column, value, (n, columns)), owner


def _product(first: _Triples, second: _Triples, groups: int, nodes: int) -> _Triples:
    """Returns the Kronecker product of two lists of (group, node, value)."""
    (a, i, x), (b, j, y) = first, second
    return (a[:, None] * groups + b).ravel(), (i[:, None] * nodes + j).ravel(), (x[:, None] * y).ravel()


def span(axis: Axis) -> tuple[float, float]:
    """Returns the interval of an axis, or the span of given nodes."""
    if not axis.rule.is_given:
        return axis.ends
    nodes = _axis_nodes(axis)
    return float(nodes[0]), float(nodes[-1])


def _axis_nodes(axis: Axis) -> np.ndarray:
    """Returns the nodes in float64, because rounded nodes would miss cuts that they lie on."""
    if not axis.rule.is_given:
        return axis.rule.on(axis.size, *axis.ends)[0]
    if not is_concrete(axis.nodes):
        raise ValueError("given nodes must be concrete to be decomposed; call decompose outside jax.jit.")
    return np.asarray(axis.nodes, np.float64)


def _edges(axis: Axis, nodes: np.ndarray) -> np.ndarray:
    """Returns possible cuts of an axis: its ends and nodes, or the ends of cells if nodes are the middles of cells."""
    if axis.rule.is_periodic:
        return np.append(nodes, axis.ends[1])
    if axis.rule.vanishes_at_ends:
        return np.concatenate([axis.ends[:1], nodes, axis.ends[1:]])
    if axis.rule.has_equal_weights:
        return np.linspace(*axis.ends, axis.size + 1)
    ends = span(axis)
    return nodes if axis.size < 2 else np.concatenate([ends[:1], nodes[1:-1], ends[1:]])


def _period(axis: Axis) -> float:
    lower, upper = axis.ends
    return upper - lower


def _ranges(
    nodes: np.ndarray, lower: np.ndarray, upper: np.ndarray, *, periodic: bool, length: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first node and one past the last of every interval [lower, upper); the outermost reach all nodes.

    Along a periodic axis node numbers outside 0 … n − 1 mean the same nodes one period away.
    """
    n = nodes.size
    tolerance = 1e-3 * np.diff(nodes).min(initial=np.inf, where=np.diff(nodes) > 0) if n > 1 else 0.0
    line = np.concatenate([nodes - length, nodes, nodes + length]) if periodic else nodes
    start, stop = (np.searchsorted(line, ends - tolerance) - (n if periodic else 0) for ends in (lower, upper))
    if not periodic:
        start[lower <= lower[0]], stop[upper >= upper[-1]] = 0, n
    return start, stop


def check_same_box(domain: Domain, cuts: tuple[AxisCuts, ...]) -> Grid:
    """Returns the grid; raises ``ValueError`` unless its box is the box that was cut."""
    if not isinstance(domain, Grid) or domain.dim != len(cuts):
        raise ValueError(
            f"domain must be a grid of {len(cuts)} axes, like the decomposed one, got {type(domain).__name__} in "
            f"{domain.dim} dimensions."
        )
    for k, (axis, cut) in enumerate(zip(domain.axes, cuts, strict=True)):
        begin, end = (float(cut.cuts[i]) for i in (0, -1))
        lower, upper = span(axis)
        apart = max(abs(lower - begin), abs(upper - end)) / (end - begin)
        # given nodes need not reach the ends
        apart_at_most = 0.1 if axis.rule.is_given or cut.rule.is_given else 1e-5
        if apart > apart_at_most or axis.rule.is_periodic != cut.rule.is_periodic:
            raise ValueError(
                f"domain must cover the box that was decomposed, along axis {k} [{begin:.6g}, {end:.6g}] under rule "
                f"{cut.rule.name!r}, got [{lower:.6g}, {upper:.6g}] under {axis.rule.name!r}."
            )
    return domain


def box_corners(cuts: tuple[AxisCuts, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns lower and upper corners of the overlapping boxes, (p, dim) each."""

    def product(sides: list[np.ndarray]) -> np.ndarray:
        return np.stack([side.ravel() for side in np.meshgrid(*sides, indexing="ij")], axis=1)

    return product([cut.lower for cut in cuts]), product([cut.upper for cut in cuts])
