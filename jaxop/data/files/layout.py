"""Arrays of a user as samples: the axes of the grid, the nodes and their weights."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxop import domains
from jaxop._validation import (
    as_integer,
    check_distinct,
    check_increasing,
    first_index,
    float_dtype,
    host_array,
    host_real,
    on_device,
)
from jaxop.data.samples import ArraySource, Rows, Samples, check_array, plain_rows
from jaxop.domains import Axis, Domain, Grid, PointCloud
from jaxop.domains.measure import check_weights, trapezoid_weights
from jaxop.domains.rules import as_rule

_EVEN = 1e-3  # of a gap


def from_arrays(
    inputs: object,
    targets: object,
    coordinates: object = None,
    *,
    weights: object = None,
    initial: object = None,
    faces: object = None,
    dim: int | None = None,
    rule: str | Sequence[str] | None = None,
    lower: float | Sequence[float] | None = None,
    upper: float | Sequence[float] | None = None,
) -> Samples:
    """Pairs of functions u_s(x_i), v_s(x_i) from arrays of shape (samples, *grid) or (samples, *grid, channels).

    **Where the nodes are.** Without ``coordinates`` the nodes are a midpoint grid of the unit box, unless ``rule``,
    ``lower`` and ``upper`` differ. Otherwise ``coordinates`` are one of

    * one array (n_k,) per axis, in a list or tuple, or a single array (n,) in one dimension: a grid with
      trapezoid weights over the actual gaps, or, with ``rule``, evenly spaced nodes of that rule, from which its
      interval follows (spectral layers need ``"midpoint"`` or ``"periodic"``);
    * (n, dim): nodes shared by all samples; with ``faces``, the vertices of a mesh of triangles or tetrahedra;
    * (samples, n, dim), or (samples, n) in one dimension: nodes of each sample.

    Nodes in one dimension must increase, and get trapezoid weights. In more dimensions they have equal weights, with a
    total measure of 1. ``weights`` replaces both. A vertex of a mesh weighs a third of its triangles, or a quarter of
    its tetrahedra. Functions on nodes have shape (samples, n) or (samples, n, channels).

    **Which axes are the grid.** Coordinates or ``dim`` determine their number; one more axis holds channels. Without
    both, the two shapes decide. If one array has one axis more, or if only the last axes differ, the last axis
    holds channels. If the shapes are the same, a last axis of length 1 holds channels, and any other last axis belongs
    to the grid if all axes of the grid are then equally long. (N, 64, 64) is therefore a scalar function on 64², and
    (N, 64, 64, 3) is an error that asks for ``dim``.

    Args:
        inputs: u, real numbers; an array or anything that reads rows (`ArraySource`).
        targets: v, on the same grid.
        coordinates: the nodes, see above.
        weights: quadrature weights, shape (n,) or (samples, n), if the coordinates are not a grid of
            several axes.
        initial: data given at the first node, shape (samples, channels).
        faces: triangles of a mesh as indices of coordinates from 0, shape (f, 3), see `jaxop.domains.triangle_mesh`;
            or, in three dimensions, tetrahedra of shape (f, 4), see `jaxop.domains.tetrahedral_mesh`.
        dim: space dimension.
        rule: quadrature rule, one or one per axis; see `jaxop.domains.interval`.
        lower: lower corner of the box, 0 by default; only without coordinates.
        upper: upper corner of the box, 1 by default; only without coordinates.

    Returns:
        `Samples` in the dtypes of the arrays, with functions as (N, n, channels).

    Raises:
        TypeError: if data are not real numbers, or an array is masked.
        ValueError: if shapes disagree or do not determine the grid, if nodes coincide only after rounding to
            JAX's precision, or for the reasons of `Samples` and the builders of `jaxop.domains`.

    Example:
        >>> import numpy as np
        >>> from jaxop import data
        >>> u = np.ones((10, 32, 48), np.float32)
        >>> samples = data.from_arrays(u, np.stack([u, u], axis=-1), upper=(1.0, 1.5))
        >>> samples.inputs.shape, samples.targets.shape, samples.domain.shape
        ((10, 1536, 1), (10, 1536, 2), (32, 48))
        >>> times = np.sort(np.random.default_rng(0).uniform(size=(10, 50)), axis=1)
        >>> path = np.ones((10, 50), np.float32)
        >>> data.from_arrays(path, path, times).domain.is_batched
        True
    """
    u, v = _source(inputs, "inputs"), _source(targets, "targets")
    if u.shape[0] != v.shape[0]:
        raise ValueError(
            f"shapes disagree: inputs has {u.shape[0]} samples {u.shape} and targets {v.shape[0]} {v.shape}; "
            "the first axis of both counts samples."
        )
    domain, shape = domain_of(
        u.shape,
        v.shape,
        coordinates,
        weights=weights,
        faces=faces,
        dim=dim,
        rule=rule,
        lower=lower,
        upper=upper,
    )
    return Samples(
        as_functions(u, shape, "inputs"),
        as_functions(v, shape, "targets"),
        domain,
        initial=None if initial is None else host_array(initial, "initial"),
    )


def domain_of(
    inputs: tuple[int, ...],
    targets: tuple[int, ...],
    coordinates: object,
    *,
    weights: object,
    faces: object,
    dim: int | None,
    rule: str | Sequence[str] | None,
    lower: float | Sequence[float] | None,
    upper: float | Sequence[float] | None,
) -> tuple[Domain, tuple[int, ...]]:
    """Returns the domain of functions of two shapes (samples, *grid[, channels]) and the axes of its grid.

    The arguments and the errors are those of `from_arrays`.
    """
    if coordinates is None:
        if faces is not None:
            raise ValueError(
                "faces were given without coordinates; give the vertices as coordinates of shape (n, dim)."
            )
        if weights is not None:
            raise ValueError("weights were given without coordinates; give the coordinates of their nodes.")
        shape = _grid_shape(inputs, targets, dim)
        corners = {"lower": 0.0 if lower is None else lower, "upper": 1.0 if upper is None else upper}
        return domains.box(shape, rule="midpoint" if rule is None else rule, **corners), shape
    if lower is not None or upper is not None:
        raise ValueError("lower and upper belong to grids without coordinates; leave them or the coordinates out.")
    domain = _located(coordinates, weights, rule, inputs) if faces is None else _mesh(coordinates, faces, weights, rule)
    if dim is not None and dim != domain.dim:
        raise ValueError(f"dim={dim}, but the coordinates have dimension {domain.dim}; leave dim out.")
    return domain, domain.shape if isinstance(domain, Grid) and not domain.is_batched else (domain.size,)


def _source(array: object, argument: str) -> ArraySource:
    source = array
    if isinstance(array, jax.Array | np.ndarray) or not isinstance(source, ArraySource):
        source = host_array(array, argument)
    check_array(source, argument)
    if len(source.shape) < 2:
        raise ValueError(
            f"{argument} must have shape (samples, *grid) or (samples, *grid, channels), got {source.shape}; give one "
            "function a first axis of size 1."
        )
    if 0 in source.shape:
        raise ValueError(
            f"{argument} is empty: its shape is {tuple(source.shape)}; a dataset needs at least one sample."
        )
    return source


def _grid_shape(inputs: tuple[int, ...], targets: tuple[int, ...], dim: int | None) -> tuple[int, ...]:
    """Returns the common axes of the grid, by the rule in `from_arrays`."""
    if dim is None:
        dim = _infer_dim(inputs, targets)
    elif as_integer(dim, "dim") < 1:
        raise ValueError(f"dim must be at least 1, got {dim}.")
    for shape, argument in ((inputs, "inputs"), (targets, "targets")):
        if len(shape) - 1 - dim not in (0, 1):
            raise ValueError(
                f"{argument} has shape {shape}; with dim={dim} it must have {dim + 1} axes (samples, *grid) or "
                f"{dim + 2} (samples, *grid, channels)."
            )
    return inputs[1 : 1 + dim]


def _infer_dim(inputs: tuple[int, ...], targets: tuple[int, ...]) -> int:
    shorter = min(len(inputs), len(targets))
    if abs(len(inputs) - len(targets)) > 1:
        raise ValueError(
            f"shapes disagree: inputs {inputs} and targets {targets} cannot live on one grid; "
            "expected (samples, *grid) or (samples, *grid, channels) for both."
        )
    if len(inputs) != len(targets):
        return shorter - 1
    if shorter == 2:
        return 1
    last = inputs[-1]
    if last != targets[-1] or last == 1:
        return shorter - 2
    grid = inputs[1:]
    if len(set(grid)) == 1:
        return len(grid)
    raise ValueError(
        f"inputs and targets of shape {inputs} may be functions with {last} channels on a grid {grid[:-1]} "
        f"(dim={len(grid) - 1}) or scalar ones on a grid {grid} (dim={len(grid)}); pass dim."
    )


def as_functions(source: ArraySource, shape: tuple[int, ...], argument: str) -> ArraySource:
    """Returns (samples, *grid[, channels]) as (samples, n, channels)."""
    size, axes = int(np.prod(shape)), len(shape)
    if tuple(source.shape[1 : 1 + axes]) != tuple(shape) or len(source.shape) - 1 - axes not in (0, 1):
        raise ValueError(
            f"shapes disagree: {argument} has shape {tuple(source.shape)} but the grid is {tuple(shape)}; expected "
            f"(samples, {', '.join(map(str, shape))}) with or without a last axis of channels."
        )
    channels = source.shape[-1] if len(source.shape) == axes + 2 else 1
    if isinstance(source, np.ndarray):
        return source.reshape(len(source), size, channels)
    return _Functions(source, (size, channels), argument)


class _Functions:
    """Lazily read array whose rows are reshaped."""

    def __init__(self, source: ArraySource, row: tuple[int, int], argument: str):
        self._source, self._row, self._argument = source, row, argument

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._source.shape[0], *self._row)

    @property
    def dtype(self) -> np.dtype:
        return self._source.dtype

    def __getitem__(self, index: Rows, /) -> np.ndarray:
        return plain_rows(self._source, index, self._argument).reshape(-1, *self._row)


def _located(coordinates: object, weights: object, rule: str | Sequence[str] | None, shape: tuple[int, ...]) -> Domain:
    """Returns the domain of given coordinates, for functions of the given shape."""
    if isinstance(coordinates, (list, tuple)) and all(np.ndim(axis) == 1 for axis in coordinates):
        if len(coordinates) == 0:
            raise ValueError("coordinates is empty; leave it out for the unit box, or give one array per axis.")
        if len(coordinates) > 1 and weights is not None:
            raise ValueError(
                "weights belong to nodes, not to a grid of several axes; give nodes of shape (n, dim), or a rule."
            )
        if len(coordinates) > 1:
            return _grid([host_array(axis, f"coordinates[{k}]") for k, axis in enumerate(coordinates)], rule)
        coordinates = coordinates[0]
    nodes = host_array(coordinates, "coordinates")
    if nodes.ndim == 1 and weights is None:
        return _grid([nodes], rule)
    if rule is not None:
        raise ValueError(
            f"rule={rule!r} needs one array of coordinates per axis, without weights; scattered nodes have no rule."
        )
    count, n = shape[:2]
    if nodes.ndim == 1:
        nodes = nodes[:, None]
    elif nodes.shape == (count, n) and (count != n or n > 3):
        nodes = nodes[..., None]
    if nodes.shape[:-1] not in ((n,), (count, n)) or nodes.shape[-1] == 0:
        raise ValueError(
            f"coordinates have shape {nodes.shape} for functions of shape {tuple(shape)}; expected (n, dim) = "
            f"({n}, dim), (samples, n, dim) = ({count}, {n}, dim), or a list with one array (n_k,) per axis of a grid."
        )
    if nodes.ndim == 2:
        return _shared(nodes, weights)
    return _stacked(nodes, weights)


def _mesh(coordinates: object, faces: object, weights: object, rule: str | Sequence[str] | None) -> Domain:
    """Returns the mesh of triangles or tetrahedra between coordinates that all samples share."""
    if weights is not None or rule is not None:
        raise ValueError(
            "faces already give weights, a third of the triangles at each vertex; leave out weights and rule, or faces."
        )
    axes = len(coordinates) if isinstance(coordinates, (list, tuple)) else None
    vertices = np.zeros(()) if axes is not None else host_array(coordinates, "coordinates")
    if vertices.ndim != 2:
        received = vertices.shape if axes is None else f"{axes} axes"
        raise ValueError(
            f"faces need coordinates of shape (n, 2) or (n, 3), the vertices that all samples share, got {received}; "
            "leave faces out if the coordinates are not vertices."
        )
    corners = np.asarray(faces)
    is_volume = vertices.shape[1:] == (3,) and corners.shape[1:] == (4,)
    if corners.dtype.kind not in "iu" or corners.ndim != 2 or not (is_volume or corners.shape[1] == 3):
        raise ValueError(
            f"faces must be integers of shape (f, 3), got {corners.dtype} of shape {corners.shape}; "
            "leave faces out if they are not triangles, or tetrahedra of shape (f, 4) in three dimensions."
        )
    _check(np.isfinite(vertices), vertices, "coordinates", "must be finite")
    check_distinct(vertices, "coordinates", float_dtype())
    builder = domains.tetrahedral_mesh if is_volume else domains.triangle_mesh
    return builder(vertices.astype(float_dtype()), corners)


def _shared(nodes: np.ndarray, weights: object) -> Domain:
    if weights is None and nodes.shape[1] == 1:
        return Grid((_axis(nodes[:, 0], "coordinates"),))
    _check(np.isfinite(nodes), nodes, "coordinates", "must be finite")
    check_distinct(nodes, "coordinates", float_dtype())
    nodes = nodes.astype(float_dtype())
    if weights is None:
        return domains.monte_carlo(nodes)
    array = host_array(weights, "weights").astype(float_dtype())
    if array.shape != nodes.shape[:1]:
        raise ValueError(f"weights must have shape ({len(nodes)},), one for each node, got {array.shape}.")
    cloud = domains.from_nodes(nodes, array)
    if nodes.shape[1] == 1 and (np.diff(nodes[:, 0]) >= 0).all():
        return Grid((Axis(cloud.points[:, 0], cloud.weights),))
    return cloud


def _stacked(nodes: np.ndarray, weights: object) -> Domain:
    count, n, dim = nodes.shape
    _check(np.isfinite(nodes), nodes, "coordinates", "must be finite")
    if weights is None and dim == 1:
        return Grid((_axis(nodes[..., 0], "coordinates"),))
    check_distinct(nodes, "coordinates", float_dtype())
    if weights is None:
        return PointCloud(on_device(nodes, float_dtype()), on_device(np.full((count, n), 1 / n), float_dtype()))
    array = host_real(weights, "weights")
    if array.shape not in ((n,), (count, n)):
        raise ValueError(f"weights must have shape ({n},) or ({count}, {n}), one for each node, got {array.shape}.")
    check_weights(array)
    array = np.broadcast_to(array, (count, n))
    leaves = on_device(nodes, float_dtype()), on_device(array, float_dtype())
    if dim == 1 and (np.diff(nodes[..., 0], axis=1) >= 0).all():
        return Grid((Axis(on_device(nodes[..., 0], float_dtype()), leaves[1]),))
    return PointCloud(*leaves)


def _grid(axes: list[np.ndarray], rule: str | Sequence[str] | None) -> Grid:
    """Returns the tensor product of the given nodes, with trapezoid weights or under rules."""
    rules = [rule] * len(axes) if rule is None or isinstance(rule, str) else list(rule)
    if len(rules) != len(axes):
        raise ValueError(f"rule has {len(rules)} entries for {len(axes)} axes; give one or one per axis.")
    parts = []
    for k, (nodes, name) in enumerate(zip(axes, rules, strict=True)):
        if nodes.ndim != 1 or len(nodes) < 2:
            raise ValueError(f"coordinates of axis {k} must have shape (n,) with n >= 2, got {nodes.shape}.")
        axis = _axis(nodes, "coordinates" if len(axes) == 1 else f"coordinates[{k}]")
        parts.append(axis if name is None else _even_axis(nodes.astype(float_dtype()), name, k))
    return Grid(tuple(parts))


def _axis(nodes: np.ndarray, argument: str) -> Axis:
    """Returns an axis of given nodes (..., n) with trapezoid weights, checked before it is rounded to JAX's dtype."""
    _check(np.isfinite(nodes), nodes, argument, "must be finite")
    check_increasing(nodes, argument, float_dtype())
    rounded = nodes.astype(float_dtype())
    return Axis(on_device(rounded), on_device(np.asarray(trapezoid_weights(rounded))))


def _even_axis(nodes: np.ndarray, rule: str, k: int) -> Axis:
    """Returns the axis of a rule that has the given, evenly spaced nodes."""
    margins = as_rule(rule).margins
    if margins is None:
        raise ValueError(f"rule={rule!r} is not evenly spaced: leave the coordinates out and give lower and upper.")
    first, last = float(nodes[0]), float(nodes[-1])
    gap = (last - first) / (len(nodes) - 1)
    before, after = margins
    axis = domains.interval(len(nodes), lower=first - before * gap, upper=last + after * gap, rule=rule).axes[0]
    rounding = 8 * np.finfo(nodes.dtype).eps * max(abs(first), abs(last))
    bad = np.abs(nodes - np.asarray(axis.nodes)) > _EVEN * gap + rounding
    if bad.any():
        i = first_index(bad)
        raise ValueError(
            f"rule={rule!r} needs evenly spaced nodes, but along axis {k} coordinates[{i}] = {nodes[i]} where even "
            f"spacing has {axis.nodes[i]}; leave rule out for trapezoid weights over the actual gaps."
        )
    return axis


def _check(good: np.ndarray, values: np.ndarray, argument: str, requirement: str) -> None:
    if not good.all():
        where = first_index(~good)
        place = ", ".join(map(str, where)) if isinstance(where, tuple) else where
        raise ValueError(f"{argument} {requirement}, but {argument}[{place}] = {values[where]}.")
