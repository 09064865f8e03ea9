"""Functions that build validated domains."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Real

from jaxop._validation import as_integer, as_number, check_distinct, check_increasing, is_concrete, on_device
from jaxop.domains.arrays import as_coordinates, check_finite, leaf
from jaxop.domains.domain import Domain, PointCloud, check_domain
from jaxop.domains.grid import Axis, Grid, make_axis
from jaxop.domains.measure import check_weights, trapezoid_weights
from jaxop.domains.mesh import Mesh
from jaxop.domains.rules import Rule, as_rule
from jaxop.domains.spheres import Sphere

AnyDomain = TypeVar("AnyDomain", bound=Domain)


def interval(n: int, *, lower: float = 0.0, upper: float = 1.0, rule: str | Rule = "trapezoid") -> Grid:
    """Quadrature rule with n nodes on the interval (lower, upper); Σ w_i is its length.

    ``"trapezoid"`` has nodes at both ends and order 2. ``"midpoint"`` has x_i = (i + ½)h and order 2.
    ``"periodic"`` has x_i = i h without one end, and converges faster than any fixed order on smooth periodic
    functions. ``"gauss-legendre"`` is exact for polynomials of degree 2n − 1. ``"interior"`` has x_i = i h with
    h = L/(n + 1), for functions that vanish at both ends. It is the one rule whose weights miss a part of the measure,
    the two half cells at the ends, where such functions contribute O(h²).

    Args:
        n: number of nodes.
        lower: left end.
        upper: right end.
        rule: the name of a rule, one of `RULES`, or a `Rule` of your own.

    Returns:
        A one-dimensional `Grid`.

    Raises:
        TypeError: if ``n`` is not an integer or an end is not a number.
        ValueError: if ``rule`` is unknown, ``n`` is too small, or ``lower`` is not below ``upper``.

    Example:
        >>> from jaxop import domains
        >>> print(domains.interval(5, upper=2.0).weights)
        [0.25 0.5  0.5  0.5  0.25]
    """
    return Grid((make_axis(n, lower, upper, as_rule(rule)),))


def box(
    shape: Sequence[int],
    *,
    lower: float | Sequence[float] = 0.0,
    upper: float | Sequence[float] = 1.0,
    rule: str | Rule | Sequence[str | Rule] = "trapezoid",
) -> Grid:
    """Tensor product of one-dimensional rules on the box Π_k (lower_k, upper_k).

    Args:
        shape: nodes along each axis.
        lower: lower corner, one number or one per axis.
        upper: upper corner, one number or one per axis.
        rule: the name of a rule or a `Rule`, one or one per axis; see `interval`.

    Returns:
        A `Grid` of Π shape nodes in row-major order.

    Raises:
        TypeError: if ``shape`` is one number, or for the reasons of `interval`.
        ValueError: if the lengths of the arguments disagree, or for the reasons of `interval`.

    Example:
        >>> from jaxop import domains
        >>> grid = domains.box((32, 48), lower=(0, 0), upper=(1, 2), rule=("midpoint", "periodic"))
        >>> print(grid.size, grid.measure.round(3))
        1536 2.0
    """
    if np.ndim(shape) != 1:
        raise TypeError(f"shape must hold the nodes along each axis, for example ({shape}, {shape}), got {shape!r}.")
    dim = len(shape)

    def per_axis(value: Any, argument: str) -> Sequence[Any]:
        if isinstance(value, str | Rule) or np.ndim(value) == 0:
            return (value,) * dim
        if len(value) != dim:
            raise ValueError(f"{argument} has {len(value)} entries for {dim} axes; give one number or {dim}.")
        return value

    if dim == 0:
        raise ValueError("shape must have at least one axis, got ().")
    rules = [as_rule(one) for one in per_axis(rule, "rule")]
    corners = zip(shape, per_axis(lower, "lower"), per_axis(upper, "upper"), rules, strict=True)
    return Grid(tuple(make_axis(*arguments) for arguments in corners))


def from_samples(nodes: Real[ArrayLike, " n"] | Sequence[float]) -> Grid:
    """Sorted, possibly uneven nodes of an interval with trapezoid weights w_i = (x_{i+1} − x_{i−1})/2.

    Under `jax.jit` and `jax.vmap` the order of the nodes is not checked.

    Args:
        nodes: strictly increasing coordinates, shape (n,), n ≥ 2.

    Returns:
        A one-dimensional `Grid` on (nodes[0], nodes[-1]).

    Raises:
        TypeError: for the reasons of `from_nodes`.
        ValueError: if there are fewer than two nodes, or if nodes are not finite, not sorted, or repeated, perhaps
            only after rounding to JAX's precision. The message names the first bad index.

    Example:
        >>> from jaxop import domains
        >>> print(domains.from_samples([0.0, 0.5, 2.0]).weights)
        [0.25 1.   0.75]
    """
    array = as_coordinates(nodes, "nodes")
    if array.ndim != 1 or array.shape[0] < 2:
        raise ValueError(
            f"nodes must have shape (n,) with n >= 2, got {array.shape}; use monte_carlo for points in space."
        )
    if isinstance(array, np.ndarray):
        check_finite(array, "nodes")
        check_increasing(nodes, "nodes", array.dtype)
    return Grid((Axis(leaf(array, nodes), leaf(trapezoid_weights(array))),))


def from_nodes(
    points: Real[ArrayLike, "n dim"] | Sequence[Sequence[float]], weights: Real[ArrayLike, " n"] | Sequence[float]
) -> PointCloud:
    """A domain of given nodes with given non-negative quadrature weights.

    Args:
        points: nodes, shape (n, dim).
        weights: quadrature weights, shape (n,), in units of length^dim; zero marks padding.

    Returns:
        A `PointCloud`.

    Raises:
        TypeError: if an argument is a masked array, a quantity with a unit, or not an array of real numbers.
        ValueError: if weights have the wrong length, are negative, not finite or all zero, or if nodes are not finite
            or coincide only after rounding to JAX's precision, which happens to large coordinates far from the origin.
            The message names the first bad index.

    Example:
        >>> from jaxop import domains
        >>> print(domains.from_nodes([[0.0, 0.0], [1.0, 0.0]], [0.5, 1.5]).measure)
        2.0
    """
    nodes, array = as_coordinates(points, "points"), as_coordinates(weights, "weights")
    if nodes.ndim != 2:
        raise ValueError(
            f"points must have shape (n, dim), got {nodes.shape}; one-dimensional nodes need a trailing axis."
        )
    if array.shape != nodes.shape[:1]:
        entries = f"{array.shape[0]} entries" if array.ndim == 1 else f"shape {array.shape}"
        raise ValueError(f"weights has {entries} for {nodes.shape[0]} nodes; give one weight per node.")
    if isinstance(nodes, np.ndarray):
        check_finite(nodes, "points")
        check_distinct(points, "points", nodes.dtype)
    if isinstance(array, np.ndarray):
        check_weights(array)
    return PointCloud(leaf(nodes, points), leaf(array, weights))


def monte_carlo(
    points: Real[ArrayLike, "n dim"] | Sequence[Sequence[float]], measure: float | Real[Array, ""] = 1.0
) -> PointCloud:
    """Independent uniform nodes on a domain of known measure: w_i = |D|/n, error O(n^−½).

    Args:
        points: nodes, shape (n, dim).
        measure: |D| in units of length^dim.

    Returns:
        A `PointCloud`.

    Raises:
        TypeError: if ``measure`` is not a number, or for the reasons of `from_nodes`.
        ValueError: if ``measure`` is not positive and finite, or for the reasons of `from_nodes`.

    Example:
        >>> import jax
        >>> from jaxop import domains
        >>> domain = domains.monte_carlo(jax.random.uniform(jax.random.key(0), (100, 2)), measure=1.0)
        >>> print(domain.weights[0])
        0.01
    """
    if is_concrete(measure) and not 0 < as_number(measure, "measure") < float("inf"):
        raise ValueError(f"measure must be positive and finite, got {measure}; it is the volume of the sampled domain.")
    nodes = as_coordinates(points, "points")
    if nodes.ndim != 2 or nodes.shape[0] == 0:
        raise ValueError(f"points must have shape (n, dim) with n >= 1, got {nodes.shape}.")
    if isinstance(nodes, np.ndarray) and is_concrete(measure):
        weights = np.full(nodes.shape[0], np.asarray(measure) / nodes.shape[0], nodes.dtype)
    else:
        weights = jnp.full(nodes.shape[0], measure / nodes.shape[0], nodes.dtype)
    return from_nodes(points, weights)


def stack(domains: Sequence[AnyDomain]) -> AnyDomain:
    """A batch of domains of the same kind and size, one per sample, for `jax.vmap` and the operators.

    Args:
        domains: at least one domain. All have one kind and one size (see `pad`), and one interval or box if they follow
            a rule.

    Returns:
        A domain whose arrays have a leading sample axis.

    Raises:
        TypeError: if ``domains`` is not a list of domains.
        ValueError: if the list is empty, an entry is a stack already, or entries differ in kind, rule, box or size.

    Example:
        >>> from jaxop import domains
        >>> batch = domains.stack([domains.from_samples([0.0, 0.4, 1.0]), domains.from_samples([0.0, 0.7, 1.0])])
        >>> batch.is_batched
        True
    """
    if not isinstance(domains, Iterable):
        raise TypeError(f"domains must be a list of domains, got {type(domains).__name__}; put it in a list.")
    domains = list(domains)
    if not domains:
        raise ValueError("domains must hold at least one domain, got an empty list.")
    for i, domain in enumerate(domains):
        check_domain(domain, f"domains[{i}]")
        if domain.is_batched:
            raise ValueError(f"domains[{i}] is a stack already; pass all single domains to stack at once.")
    for i, domain in enumerate(domains):
        if _layout(domain) != _layout(domains[0]):
            raise ValueError(
                f"domains[{i}] ({_describe(domain)}) does not match domains[0] ({_describe(domains[0])}); "
                f"{_advice(domains, i)}."
            )
    if is_concrete(*jax.tree.leaves(domains)):
        return jax.tree.map(lambda *arrays: on_device(np.stack(arrays)), *domains)
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *domains)


def pad(
    domain: AnyDomain, size: int, *, edges: int | None = None, faces: int | None = None, cells: int | None = None
) -> AnyDomain:
    """Appends nodes of weight 0 to a domain, so that domains of several sizes share a shape; integrals do not change.

    The padding repeats the last node, so that every entry stays finite and sorted. New edges, faces and cells have
    size 0. Pad the values with any numbers.

    Args:
        domain: scattered nodes, a one-dimensional grid of given nodes or a mesh.
        size: number of nodes of the result.
        edges: number of edges of the result, if it is a mesh of lines; None adds none.
        faces: number of faces of the result, if it is a mesh of triangles; None adds none.
        cells: number of cells of the result, if it is a mesh of tetrahedra; None adds none.

    Returns:
        A domain of the same kind with ``size`` nodes.

    Raises:
        TypeError: if ``domain`` is not a domain, or a number is not an integer.
        ValueError: if ``size`` is smaller than the domain or ``faces`` than its number of faces, if ``faces`` is given
            and ``domain`` is not a mesh of triangles (likewise ``edges`` and ``cells``), or if ``domain`` is a stack,
            has several axes or follows a rule.

    Example:
        >>> from jaxop import domains
        >>> print(domains.pad(domains.from_samples([0.0, 0.5, 2.0]), 5).weights)
        [0.25 1.   0.75 0.   0.  ]
        >>> mesh = domains.triangle_mesh([[0, 0], [1, 0], [0, 1]], [[0, 1, 2]])
        >>> print(domains.pad(mesh, 4, faces=2).faces)
        [[0 1 2]
         [3 3 3]]
    """
    check_domain(domain, "domain")
    if domain.is_batched:
        raise ValueError("pad takes single domains, got a stack of domains; pad each one before stack.")
    size = as_integer(size, "size")
    if size < domain.size:
        raise ValueError(f"size must be at least the {domain.size} nodes of the domain, got {size}.")
    counts = {"edges": edges, "faces": faces, "cells": cells}
    own = domain.simplices_name if isinstance(domain, Mesh) else None
    for name, count in counts.items():
        if count is not None and name != own:
            remedy = f"give {own}" if own else f"leave it out, only a mesh has {name}"
            raise ValueError(f"{name}={count} was given for a {type(domain).__name__}; {remedy}.")
    extra = size - domain.size

    def extend(nodes: Array, weights: Array) -> tuple[Array, Array]:
        return _append(nodes, extra, mode="edge"), _append(weights, extra)

    if not _can_be_padded(domain):
        raise ValueError(
            "pad takes scattered nodes (from_nodes, monte_carlo), a one-dimensional grid of given nodes (from_samples) "
            f"or a mesh, got {_describe(domain)}; convert others with from_nodes(domain.points, domain.weights), or a "
            "trapezoid rule in one dimension with from_samples(domain.points[:, 0]), whose nodes stay neighbours."
        )
    if isinstance(domain, Grid):
        return Grid((Axis(*extend(domain.axes[0].nodes, domain.axes[0].weights)),))  # pyright: ignore[reportReturnType]
    if isinstance(domain, Mesh):
        name, count = domain.simplices_name, domain.simplices.shape[0]
        given = counts[name]
        target = count if given is None else as_integer(given, name)
        if target < count:
            raise ValueError(f"{name} must be at least the {count} {name} of the mesh, got {given}.")
        simplices = _append(domain.simplices, target - count, constant_values=size - 1)
        points, weights = extend(domain.points, domain.weights)
        fields = {"points": points, "weights": weights, name: simplices}
        return dataclasses.replace(domain, **fields)  # pyright: ignore[reportArgumentType]
    return PointCloud(*extend(domain.points, domain.weights))  # pyright: ignore[reportReturnType]


def _append(array: Array, count: int, **options: Any) -> Array:
    """Returns ``array`` with ``count`` more entries along its first axis, made by `numpy.pad`."""
    widths = [(0, count)] + [(0, 0)] * (array.ndim - 1)
    if is_concrete(array):
        return on_device(np.pad(np.asarray(array), widths, **options))
    return jnp.pad(array, widths, **options)


def _advice(domains: Sequence[Domain], i: int) -> str:
    """Returns the advice that makes domains[i] match domains[0]."""
    first, other = domains[0], domains[i]
    if first.dim != other.dim:
        return "domains of different dimensions cannot be stacked"
    size = max(domain.size for domain in domains)
    if jax.tree.structure(first) != jax.tree.structure(other) or not _can_be_padded(first):
        convert = "convert each with from_nodes(domain.points, domain.weights)"
        sizes = "" if all(d.size == size for d in domains) else f", then bring it to one size by pad(domain, {size})"
        return convert + sizes
    if [leaf.dtype for leaf in jax.tree.leaves(first)] != [leaf.dtype for leaf in jax.tree.leaves(other)]:
        return "build all of them from arrays of one dtype"
    simplices = ""
    if isinstance(first, Mesh):
        simplices = f", {first.simplices_name}={max(d.simplices.shape[0] for d in domains if isinstance(d, Mesh))}"
    return f"bring each to one size by pad(domain, {size}{simplices})"


def _can_be_padded(domain: Domain) -> bool:
    return isinstance(domain, PointCloud | Mesh) or (
        isinstance(domain, Grid) and domain.dim == 1 and domain.has_given_nodes
    )


def _layout(domain: Domain) -> tuple[Hashable, ...]:
    return jax.tree.structure(domain), *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(domain))


def _describe(domain: Domain) -> str:
    size = f"{type(domain).__name__} of {domain.size} nodes"
    if isinstance(domain, Grid):
        rules = [a.rule.name if a.rule.is_given else f"{a.rule.name} on ({a.lower}, {a.upper})" for a in domain.axes]
        size = f"Grid of shape {domain.shape}, {' × '.join(rules)}"
    elif isinstance(domain, Mesh):
        size += f" and {domain.simplices.shape[-2]} {domain.simplices_name}"
    elif isinstance(domain, Sphere):
        size += f" in shape {domain.shape}, {domain.rule}"
    return f"{size}, {domain.weights.dtype}"
