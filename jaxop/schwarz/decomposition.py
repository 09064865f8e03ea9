"""Overlapping subdomains of a domain, partitions of unity and coarse spaces on them."""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxop._pytree import register
from jaxop._validation import (
    accumulator,
    as_float,
    check_name,
    first_index,
    float_dtype,
    host_array,
    host_real,
    is_concrete,
    is_integer,
    on_device,
)
from jaxop.domains.domain import Axis, Decomposed, Domain, Grid, TriangleMesh, as_domain
from jaxop.domains.rules import nodes_and_weights

PARTITIONS_OF_UNITY = ("multiplicity", "ramp")
"""Names accepted by `decompose` for D."""

COARSE_SPACES = ("hat", "partition")
"""Names accepted by `decompose` for Φ."""


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Cover:
    """R: groups of nodes, padded to the largest; both directions are gathers.

    Attributes:
        index: the nodes of every group, (p, s); padding repeats the group's first node.
        inside: False on padding, (p, s).
        slots: places of every node in the flattened groups, (n, m); p·s marks padding.
    """

    index: Int[Array, "p s"]
    inside: Bool[Array, "p s"]
    slots: Int[Array, "n m"]

    @jax.jit
    def restrict(self, values: Float[Array, "n c"]) -> Float[Array, "p s c"]:
        """R v, zero on padding."""
        return jnp.where(self.inside[..., None], values[self.index], 0)

    @jax.jit
    def prolong(self, local: Float[Array, "p s c"]) -> Float[Array, "n c"]:
        """Rᵀ: the sum over all places of a node."""
        flat = local.reshape(local.shape[0] * local.shape[1], local.shape[2]).astype(accumulator(local.dtype))
        places = range(self.slots.shape[1])
        summands = [jnp.take(flat, self.slots[:, k], axis=0, mode="fill", fill_value=0) for k in places]
        return functools.reduce(jnp.add, summands).astype(local.dtype)


@functools.partial(register, static=("size", "kind"))
@dataclasses.dataclass(frozen=True, eq=False)
class CoarseSpace:
    """Φ, stored core by core: only the few functions that do not vanish on a core.

    Attributes:
        index: coarse functions that live on a core, (p, q); padding repeats the first.
        basis: their values on its nodes, (p, s, q), zero on padding.
        size: n0, the number of functions (static).
        kind: the name in `COARSE_SPACES`, or "given" (static).
    """

    index: Int[Array, "p q"]
    basis: Float[Array, "p s q"]
    size: int
    kind: str

    @jax.jit
    def coarsen(self, cores: Cover, weights: Float[Array, " n"], values: Float[Array, "n c"]) -> Float[Array, "n0 c"]:
        """Φᵀ W v."""
        wide = accumulator(values.dtype)
        weighted = cores.restrict(weights.astype(wide)[:, None] * values.astype(wide))
        integrals = jnp.einsum("psq,psc->pqc", self.basis.astype(wide), weighted)
        sums = jnp.zeros((self.size, values.shape[1]), wide).at[self.index].add(integrals)
        return sums.astype(values.dtype)

    @jax.jit
    def refine(self, cores: Cover, coarse: Float[Array, "n0 c"]) -> Float[Array, "n c"]:
        """Φ c."""
        wide = accumulator(coarse.dtype)
        values = jnp.einsum("psq,pqc->psc", self.basis.astype(wide), coarse[self.index].astype(wide))
        return cores.prolong(values).astype(coarse.dtype)


@functools.partial(register, static=("rule",))
@dataclasses.dataclass(frozen=True, eq=False)
class _AxisCuts:
    """Subdomains along one axis of a grid, as intervals of its coordinate.

    Attributes:
        cuts: ends of the cores, (p + 1,), increasing.
        lower: left ends of the overlapping intervals, (p,).
        upper: right ends, (p,).
        rule: of the axis that was cut (static): its hats are those of the coarse space on every grid.
    """

    cuts: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    rule: str


@functools.partial(register, static=("overlap",))
@dataclasses.dataclass(frozen=True, eq=False)
class BoxCuts:
    """Subdomains of scattered nodes and meshes.

    Attributes:
        lower: lower corners of the cores, (p, dim), −∞ where nothing bounds them.
        upper: upper corners, (p, dim).
        overlap: a length, or layers of neighbours in a mesh (static).
        lattice: nodes of the coarse hats along each axis.
        kept: which of the lattice's hats do not vanish on the domain, (n0,).
    """

    lower: np.ndarray
    upper: np.ndarray
    overlap: int | float
    lattice: tuple[np.ndarray, ...]
    kept: np.ndarray


@functools.partial(register, static=("unity",))
@dataclasses.dataclass(frozen=True, eq=False)
class Decomposition(Decomposed):
    """Overlapping subdomains Ω_i of a domain with Σ_i R_iᵀ D_i R_i = I and a coarse space Φ.

    Build it with `decompose` or `from_subdomains`. p subdomains are padded to the s nodes of the largest;
    padding repeats a node, carries D = 0, restricts to 0 and is never prolonged. Every method is O(p s).

    Nodes and weights are those of ``domain``. A transformer neural operator and a set of samples accept the
    decomposition in place of a domain: an operator with Schwarz attention then uses these subdomains instead of its
    own, which is how it is trained on scattered nodes and meshes.

    Attributes:
        domain: the whole.
        cover: the nodes of every subdomain, see `Cover`.
        cores: the disjoint sets of nodes that the subdomains grew from.
        partition: D, the partition of unity, (p, s).
        lower: lower corners of the boxes that hold the subdomains, (p, dim), the frame of `coordinates`.
        upper: upper corners, (p, dim).
        coarse: the coarse space, or None.
        cuts: the subdomains in coordinates, from which `on` builds them on other nodes; None for given ones.
        unity: name of the partition of unity (static).
    """

    domain: Domain
    cover: Cover
    cores: Cover
    partition: Float[Array, "p s"]
    lower: Float[Array, "p dim"]
    upper: Float[Array, "p dim"]
    coarse: CoarseSpace | None
    cuts: tuple[_AxisCuts, ...] | BoxCuts | None
    unity: str

    @property
    def subdomains(self) -> int:
        """Number of subdomains p."""
        return self.partition.shape[0]

    @property
    def local_size(self) -> int:
        """Nodes s of the largest subdomain."""
        return self.partition.shape[1]

    @property
    def coarse_size(self) -> int:
        """Number n0 of coarse functions; 0 without a coarse space."""
        return 0 if self.coarse is None else self.coarse.size

    @property
    def coordinates(self) -> Float[Array, "p s dim"]:
        """Local coordinates of the nodes: [−1, 1] along each axis is the box of their subdomain.

        Along a periodic axis a subdomain that passes the end continues there. On grids the box is that of the cut and
        its overlap, of scattered nodes and meshes that of their nodes: other ones, of `on`, may lie a little outside.
        """
        return _coordinates(self)

    def restrict(self, values: Float[Array, "n c"]) -> Float[Array, "p s c"]:
        """R_i v for every subdomain: (n, c) to (p, s, c), zero on padding.

        Raises:
            ValueError: if ``values`` does not have one row per node.

        Example:
            >>> from jaxop import domains, schwarz
            >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
            >>> dec.restrict(dec.domain.points).shape
            (8, 12, 1)
        """
        return self.cover.restrict(self._rows(values, self.domain.size, "values", "one row per node of the domain"))

    def prolong(self, local: Float[Array, "p s c"]) -> Float[Array, "n c"]:
        """Σ_i R_iᵀ local_i: the adjoint of `restrict`; what lies on padding is left out.

        Raises:
            ValueError: if ``local`` does not have shape (p, s, c).
        """
        local = as_float(local, "local")
        if local.ndim != 3 or local.shape[:2] != self.partition.shape:
            expected = f"(p, s, c) = ({self.subdomains}, {self.local_size}, c)"
            raise ValueError(f"local must have shape {expected}, as restrict returns, got {local.shape}.")
        return self.cover.prolong(local)

    def coarsen(self, values: Float[Array, "n c"]) -> Float[Array, "n0 c"]:
        """Φᵀ W v: the integrals of v against the coarse functions, (n, c) to (n0, c), in units of v times length^dim.

        Raises:
            ValueError: if ``values`` does not have one row per node, or there is no coarse space.
        """
        coarse = self._coarse_space()
        values = self._rows(values, self.domain.size, "values", "one row per node of the domain")
        return coarse.coarsen(self.cores, self.domain.weights, values)

    def refine(self, coarse: Float[Array, "n0 c"]) -> Float[Array, "n c"]:
        """Φ c: the function with these coarse coefficients, (n0, c) to (n, c).

        Raises:
            ValueError: if ``coarse`` does not have one row per coarse function, or there is no coarse space.
        """
        space = self._coarse_space()
        coarse = self._rows(coarse, space.size, "coarse", "one row per coarse function")
        return space.refine(self.cores, coarse)

    def coarse_basis(self) -> Float[Array, "n n0"]:
        """Φ as a dense matrix, for small domains: memory n·n0.

        Raises:
            ValueError: if there is no coarse space.
        """
        return self.refine(jnp.eye(self._coarse_space().size, dtype=self.partition.dtype))

    def on(self, domain: Domain | Decomposed, *, coarse: Any = None) -> "Decomposition":
        """The same subdomains and coarse functions on other nodes of the same region: a change of resolution.

        Subdomains are intervals, boxes and cuts in coordinates, so a grid may become any other grid of the same box,
        periodic where it was, and scattered nodes or a mesh others of their kind. Coarse functions are those of the
        rule that was decomposed: hats of "interior" nodes vanish at the ends. On a mesh an overlap in layers counts the
        layers of the new one. Cuts are float64 until `jax.jit` or a tree map has had the decomposition in its hands.

        Args:
            domain: the new nodes.
            coarse: Φ on the new nodes, needed if and only if it was given to `decompose`.

        Raises:
            ValueError: for subdomains that were given as node sets, a kind of domain that does not fit, Φ missing
                or too many or of other columns, a box of another size, and a subdomain without a node of ``domain``.

        Example:
            >>> from jaxop import domains, schwarz
            >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
            >>> finer = dec.on(domains.interval(127, rule="interior"))
            >>> finer.subdomains, finer.coarse_size
            (8, 7)
        """
        if self.cuts is None:
            raise ValueError(
                "these subdomains are sets of nodes, not of points; call from_subdomains on the new domain."
            )
        kind = None if self.coarse is None else self.coarse.kind
        if (kind == "given") != (coarse is not None):
            raise ValueError(
                "coarse must be Φ on the new domain, because it was given to decompose; got None."
                if kind == "given"
                else f"coarse may be given only where it was to decompose; the coarse space {kind!r} follows by itself."
            )
        domain = _single(domain, "domain")
        if not is_concrete(*jax.tree.leaves(self.cuts)):
            raise ValueError("this decomposition is traced: call `on` outside jax.jit and pass what it returns.")
        if isinstance(self.cuts, tuple):
            if not isinstance(domain, Grid) or domain.dim != len(self.cuts):
                raise ValueError(
                    f"domain must be a grid of {len(self.cuts)} axes, like the one decomposed, got "
                    f"{type(domain).__name__} in {domain.dim} dimensions."
                )
            for k, (axis, cut) in enumerate(zip(domain.axes, self.cuts, strict=True)):
                begin, end = (float(cut.cuts[i]) for i in (0, -1))
                lower, upper = _ends(axis)
                apart = max(abs(lower - begin), abs(upper - end)) / (end - begin)
                # given nodes need not reach the ends
                if apart > (0.1 if "samples" in (axis.rule, cut.rule) else 1e-5) or (axis.rule == "periodic") != (
                    cut.rule == "periodic"
                ):
                    raise ValueError(
                        f"domain must cover what was decomposed, along axis {k} [{begin:.6g}, {end:.6g}] under rule "
                        f"{cut.rule!r}, got [{lower:.6g}, {upper:.6g}] under {axis.rule!r}."
                    )
            found, hats = _on_grid(domain, self.cuts, self.unity)
        else:
            layers = isinstance(self.cuts.overlap, int)
            if (
                isinstance(domain, Grid)
                or domain.dim != self.lower.shape[1]
                or layers > isinstance(domain, TriangleMesh)
            ):
                raise ValueError(
                    f"domain must hold {'a mesh' if layers else 'scattered nodes or a mesh'} in {self.lower.shape[1]} "
                    f"dimensions, like the one decomposed, got {type(domain).__name__} in {domain.dim}."
                )
            found, hats = _on_boxes(domain, self.cuts, self.unity)
        space = kind if coarse is None else coarse
        if coarse is not None and np.shape(coarse)[1:] != (self.coarse_size,):
            raise ValueError(
                f"coarse must have shape (n, n0) = ({domain.size}, {self.coarse_size}), the coarse functions that were "
                f"decomposed with, got {np.shape(coarse)}."
            )
        built = _assemble(domain, found, hats, space, self.cuts, self.unity)
        return dataclasses.replace(built, lower=self.lower, upper=self.upper)

    def _coarse_space(self) -> CoarseSpace:
        if self.coarse is None:
            raise ValueError("this decomposition has no coarse space; build it with coarse='hat' or 'partition'.")
        return self.coarse

    def _rows(self, values: Any, rows: int, argument: str, meaning: str) -> Array:
        values = as_float(values, argument)
        if values.ndim != 2 or values.shape[0] != rows:
            raise ValueError(f"{argument} must have shape ({rows}, c), {meaning}, got {values.shape}.")
        return values


@jax.jit
def _coordinates(dec: Decomposition) -> Float[Array, "p s dim"]:
    offset = dec.domain.points[dec.cover.index] - (dec.lower + dec.upper)[:, None] / 2
    if isinstance(dec.domain, Grid):
        for k, axis in enumerate(dec.domain.axes):
            if axis.rule == "periodic":
                length = axis.ends[1] - axis.ends[0]
                # half a period away, where the one subdomain of an axis begins, stays there under rounding
                offset = offset.at[..., k].add(-length * jnp.floor(offset[..., k] / length + 0.5 + 1e-6))
    half = (dec.upper - dec.lower)[:, None] / 2
    return offset / jnp.where(half > 0, half, 1)


def decompose(
    dom: Domain | Decomposed,
    subdomains: int | Sequence[int] = 8,
    overlap: int | float | Sequence[int | float] = 4,
    *,
    partition: str = "multiplicity",
    coarse: Any = "hat",
) -> Decomposition:
    """Cuts a domain into subdomains that overlap, with a partition of unity and a coarse space.

    Every node belongs to one core: along each axis of a grid an equal share of the nodes, of scattered nodes and
    meshes a box of repeated bisection of the coordinates. A subdomain is its core and the overlap around it.
    ``partition="multiplicity"``: D is one over the number of subdomains a node lies in. ``"ramp"``: smooth steps
    across the overlap, divided by their sum. ``coarse="hat"``: on a grid, the tensor products of piecewise
    linear functions with nodes where cores meet, and at the ends of the domain unless its rule is "interior",
    whose functions vanish there; elsewhere those of a lattice of about as many cells as there are subdomains.
    ``"partition"``: the columns of D (Nicolaides).

    Args:
        dom: any single domain, or a decomposition of one; concrete unless it is a grid under named rules.
        subdomains: how many; on a grid of several axes one number per axis, or one for all of them.
        overlap: an integer counts nodes that are added on EACH side of a core (along every axis of a grid; layers
            of neighbours in a mesh; mean distances of nodes that fill their bounding box among scattered ones, a
            length is better for nodes on a surface), a float is a length in the units of the coordinates; on a grid of
            several axes one for each, or one for all of them. Along a periodic axis subdomains overlap across its end.
        partition: one of `PARTITIONS_OF_UNITY`.
        coarse: one of `COARSE_SPACES`; Φ itself, dense or a scipy.sparse matrix of shape (n, n0); or None.

    Returns:
        A `Decomposition`, a pytree.

    Raises:
        TypeError: if a count is not an integer, or the overlap is no number.
        ValueError: for more subdomains than nodes, an overlap larger than a subdomain, an unknown name, a Φ whose
            rows do not match the nodes, no coarse node inside an "interior" axis, or a stack of domains.

    Cost: built on the host once, O(n log n) on grids and O(n p) elsewhere; memory O(n) times the number of
        subdomains that a node lies in and of coarse functions that live on one, 2^dim for hats.

    Source: Toselli, Widlund, "Domain Decomposition Methods", 2005, chapters 2 and 3.

    Example:
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(255, rule="interior"), subdomains=8, overlap=4)
        >>> dec.partition.shape, dec.coarse_size
        ((8, 40), 7)
        >>> square = schwarz.decompose(domains.box((64, 48), rule="midpoint"), (4, 3), 2, partition="ramp")
        >>> square.partition.shape, square.coarse_size
        ((12, 400), 20)
    """
    dom = _single(dom, "dom")
    check_name(partition, "partition", PARTITIONS_OF_UNITY)
    if isinstance(dom, Grid):
        counts = _per_axis(subdomains, dom.dim)
        overlaps: Any = (overlap,) * dom.dim if np.ndim(overlap) == 0 else overlap
        if len(overlaps) != dom.dim:
            raise ValueError(f"overlap must be one number or {dom.dim}, one per axis of the grid, got {overlap!r}.")
        cuts = tuple(_cut_axis(dom.axes[k], counts[k], _overlap(overlaps[k]), k) for k in range(dom.dim))
        found, hats = _on_grid(dom, cuts, partition)
        lower, upper = (
            np.stack([c.ravel() for c in np.meshgrid(*(getattr(cut, side) for cut in cuts), indexing="ij")], axis=1)
            for side in ("lower", "upper")
        )
    else:
        if not is_integer(subdomains):
            raise TypeError(f"subdomains must be one integer on {type(dom).__name__}, got {subdomains}.")
        cuts = _cut_boxes(dom, int(subdomains), _overlap(overlap))
        found, hats = _on_boxes(dom, cuts, partition)
        if subdomains > 1:
            _check_reach(dom, cuts, found, overlap)
        lower, upper = _bounding_boxes(np.asarray(dom.points), found)
    built = _assemble(dom, found, hats, coarse, cuts, partition)
    return dataclasses.replace(built, lower=_real(lower), upper=_real(upper))


def from_subdomains(
    dom: Domain | Decomposed,
    indices: Sequence[Any],
    *,
    partition: str | Sequence[Any] = "multiplicity",
    coarse: Any = "partition",
) -> Decomposition:
    """A decomposition into given sets of nodes.

    Args:
        dom: any single domain, or a decomposition of one.
        indices: the node indices of every subdomain; together they must name every node.
        partition: ``"multiplicity"``, or D itself: one array per subdomain, in the order of its indices, summing to
            one at every node.
        coarse: ``"partition"``, Φ itself, dense or a scipy.sparse matrix of shape (n, n0), or None.

    Returns:
        A `Decomposition`; `Decomposition.on` is not available for it.

    Raises:
        ValueError: if a set is empty, repeats a node or names one that is not there, a node is in none (the
            message names the first), D has the wrong length, is negative or does not sum to one, or Φ has rows
            that do not match.

    Example:
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.from_subdomains(domains.interval(5), [[0, 1, 2], [2, 3, 4]])
        >>> print(dec.partition)
        [[1.  1.  0.5]
         [0.5 1.  1. ]]
    """
    dom = _single(dom, "dom")
    n = dom.size
    if not isinstance(indices, Iterable):
        raise TypeError(f"indices must hold one array of nodes per subdomain, got {type(indices).__name__}.")
    sets = [host_array(nodes, f"indices[{i}]") for i, nodes in enumerate(indices)]
    sets = [nodes.astype(np.int64) if np.issubdtype(nodes.dtype, np.integer) else nodes for nodes in sets]
    if not sets:
        raise ValueError("indices must hold at least one subdomain, got none.")
    for i, nodes in enumerate(sets):
        if nodes.ndim != 1 or not nodes.size or not np.issubdtype(nodes.dtype, np.integer):
            raise ValueError(
                f"indices[{i}] must be a non-empty list of integers, got {nodes.dtype} of shape {nodes.shape}."
            )
        bad = (nodes < 0) | (nodes >= n)
        if bad.any():
            j = first_index(bad)
            raise ValueError(f"indices[{i}][{j}] = {nodes[j]} names no node: indices run from 0 to {n - 1}.")
        values, counts = np.unique(nodes, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"indices[{i}] repeats node {values[first_index(counts > 1)]}; name every node once.")
    sub = np.repeat(np.arange(len(sets)), [nodes.size for nodes in sets])
    node = np.concatenate(sets)
    covered = np.bincount(node, minlength=n)
    if (covered == 0).any():
        raise ValueError(
            f"indices must cover the domain, but node {first_index(covered == 0)} is in no subdomain; add it to one."
        )
    if isinstance(partition, str):
        check_name(partition, "partition", ("multiplicity",))
        weight = 1 / covered[node]
    else:
        if not isinstance(partition, Iterable):
            raise TypeError(f"partition must hold one array per subdomain, got {type(partition).__name__}.")
        given = [host_real(part, "partition") for part in partition]
        if [part.shape for part in given] != [nodes.shape for nodes in sets]:
            raise ValueError(
                f"partition must hold one array per subdomain in the shape of its indices, "
                f"{[nodes.shape for nodes in sets]}, got {[part.shape for part in given]}."
            )
        weight = np.concatenate(given)
        if not (weight >= 0).all():
            raise ValueError(f"partition must not be negative or NaN, got {weight[first_index(~(weight >= 0))]}.")
        total = np.bincount(node, weight, minlength=n)
        wrong = np.abs(total - 1) > 1e-5
        if wrong.any():
            j = first_index(wrong)
            raise ValueError(
                f"partition must sum to one at every node, but at node {j} it sums to {total[j]:.6g}; divide by it."
            )
        weight = weight / total[node]
    found = _Members(sub, node, weight, len(sets))
    lower, upper = _bounding_boxes(_points(dom), found)
    if isinstance(coarse, str):
        check_name(coarse, "coarse", ("partition",))
    built = _assemble(dom, found, None, coarse, None, "given")
    return dataclasses.replace(built, lower=_real(lower), upper=_real(upper))


@dataclasses.dataclass(frozen=True)
class _Members:
    """Which node lies in which subdomain, sorted by subdomain, with D; the first ``owner`` of a node has its core."""

    sub: np.ndarray
    node: np.ndarray
    weight: np.ndarray
    count: int
    owner: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.sub, minlength=self.count)

    @property
    def largest(self) -> int:
        return int(self.sizes.max())

    @property
    def largest_at(self) -> int:
        return int(self.sizes.argmax())


@dataclasses.dataclass(frozen=True)
class _Sparse:
    """Φ by its entries."""

    row: np.ndarray
    column: np.ndarray
    value: np.ndarray
    columns: int


def _assemble(dom: Domain, found: _Members, hats: _Sparse | None, coarse: Any, cuts: Any, unity: str) -> Decomposition:
    """The tables of a decomposition; its boxes are left to the caller."""
    n = dom.size
    owner = found.owner
    if owner is None:  # the first subdomain that names a node
        owner = np.zeros(n, np.int64)
        owner[found.node[::-1]] = found.sub[::-1]
    cover, position = _cover(found.sub, found.node, found.count, n)
    nodes = np.argsort(owner, kind="stable")
    cores, place = _cover(owner[nodes], nodes, found.count, n)
    partition = np.zeros(cover.index.shape)
    partition[found.sub, position] = found.weight
    space = None
    if coarse is not None:
        kind = coarse if isinstance(coarse, str) else "given"
        if kind == "given":
            entries = _entries(coarse, n)
        else:
            check_name(coarse, "coarse", COARSE_SPACES)
            entries = hats if kind == "hat" else _Sparse(found.node, found.sub, found.weight, found.count)
        assert entries is not None
        where = np.empty(n, np.int64)
        where[nodes] = place
        space = _coarse_space(entries, owner, where, cores.index.shape, kind)
    empty = _real(np.zeros((found.count, 0)))
    return Decomposition(dom, cover, cores, _real(partition), empty, empty, space, cuts, unity)


def _coarse_space(
    entries: _Sparse, owner: np.ndarray, position: np.ndarray, shape: tuple[int, ...], kind: str
) -> CoarseSpace:
    """Φ core by core, from the core of every node and its position there."""
    if entries.columns == 0:
        raise ValueError("the coarse space holds no function: ask for more subdomains along an axis, or coarse=None.")
    keep = entries.value != 0
    if not keep.any():
        raise ValueError("the coarse space holds only zeros: give functions that do not vanish at all nodes.")
    row, column, value = entries.row[keep], entries.column[keep], entries.value[keep]
    alive, which = np.unique(owner[row] * entries.columns + column, return_inverse=True)
    index, _, rank = _pack(alive // entries.columns, alive % entries.columns, shape[0], None)
    basis = np.zeros((*shape, index.shape[1]))
    np.add.at(basis, (owner[row], position[row], rank[which]), value)
    return CoarseSpace(_integers(index), _real(basis), entries.columns, kind)


def _entries(matrix: Any, n: int) -> _Sparse:
    """Entries of a user's Φ."""
    if not is_concrete(matrix):
        raise ValueError("coarse must be concrete: decompose outside jax.jit and pass what it returns.")
    shape = np.shape(matrix)
    if len(shape) != 2 or shape[0] != n:
        raise ValueError(f"coarse must have shape (n, n0) = ({n}, n0), one row per node, got {shape}.")
    if hasattr(matrix, "tocoo"):
        matrix = matrix.tocoo()
        row, column = np.asarray(matrix.row, np.int64), np.asarray(matrix.col, np.int64)
        value = host_real(matrix.data, "coarse")
    else:
        dense = host_real(matrix, "coarse")
        row, column = np.nonzero(dense)
        value = dense[row, column]
    if not np.isfinite(value).all():
        j = first_index(~np.isfinite(value))
        raise ValueError(f"coarse must be finite, but coarse[{row[j]}, {column[j]}] = {value[j]}.")
    return _Sparse(row, column, value, shape[1])


def _cover(group: np.ndarray, node: np.ndarray, count: int, n: int) -> tuple[Cover, np.ndarray]:
    """Tables of groups of nodes, sorted by group, and the position of every entry in its group."""
    index, inside, position = _pack(group, node, count, None)
    size = index.shape[1]
    if count * size >= 2**31:
        raise ValueError(f"{count} subdomains of {size} nodes pass the range of 32-bit indices; cut more evenly.")
    order = np.argsort(node, kind="stable")
    slots, _, _ = _pack(node[order], (group * size + position)[order], n, count * size)
    return Cover(_integers(index), on_device(inside), _integers(slots)), position


def _pack(
    group: np.ndarray, item: np.ndarray, count: int, fill: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items by group, (count, size), padded by ``fill`` or the group's first item; where they are; their positions."""
    sizes = np.bincount(group, minlength=count)
    start = np.cumsum(sizes) - sizes
    position = np.arange(group.size) - start[group]
    shape = (count, max(int(sizes.max()), 1))
    if fill is None:  # a group without items repeats item 0
        first = np.where(sizes > 0, item[np.minimum(start, item.size - 1)], 0)
        table = np.repeat(first[:, None], shape[1], axis=1)
    else:
        table = np.full(shape, fill)
    table[group, position] = item
    return table, np.arange(shape[1]) < sizes[:, None], position


def _integers(values: np.ndarray) -> Array:
    return on_device(values, np.int32)


def _real(values: np.ndarray) -> Array:
    return on_device(values, float_dtype())


def _single(domain: Domain | Decomposed, argument: str) -> Domain:
    """A single domain, without the subdomains that it may already have."""
    domain = as_domain(domain, argument)
    if domain.is_batched:
        raise ValueError(f"{argument} is a stack of domains, one per sample; decompose a single one.")
    return domain


def _overlap(overlap: Any) -> int | float:
    if isinstance(overlap, bool) or not isinstance(overlap, int | float | np.integer | np.floating):
        raise TypeError(f"overlap must be a number of nodes (int) or a length (float), got {type(overlap).__name__}.")
    overlap = float(overlap) if isinstance(overlap, float | np.floating) else int(overlap)
    if not 0 <= overlap < math.inf:
        raise ValueError(f"overlap must be finite and not negative, got {overlap}.")
    return overlap


# grids: products of intervals


def _per_axis(subdomains: Any, dim: int) -> tuple[int, ...]:
    counts = (subdomains,) * dim if np.ndim(subdomains) == 0 else tuple(subdomains)
    if len(counts) != dim:
        raise ValueError(f"subdomains must be one number or {dim}, one per axis of the grid, got {counts}.")
    for count in counts:
        if not is_integer(count):
            raise TypeError(f"subdomains must be integers, one or one per axis, got {subdomains!r}.")
    return tuple(operator.index(count) for count in counts)


def _ends(axis: Axis) -> tuple[float, float]:
    """The interval of an axis, which given nodes span."""
    if axis.rule != "samples":
        return axis.ends
    nodes = _axis_nodes(axis)
    return float(nodes[0]), float(nodes[-1])


def _axis_nodes(axis: Axis) -> np.ndarray:
    """Nodes in float64: rounded ones would miss the cuts that they lie on."""
    if axis.rule != "samples":
        return nodes_and_weights(axis.size, *axis.ends, axis.rule)[0]
    if not is_concrete(axis.nodes):
        raise ValueError("given nodes must be concrete to be decomposed; call decompose outside jax.jit.")
    return np.asarray(axis.nodes, np.float64)


def _cut_axis(axis: Axis, count: int, overlap: int | float, k: int) -> _AxisCuts:
    """Cuts between equal shares of the nodes, and the overlapping intervals around them."""
    nodes, n = _axis_nodes(axis), axis.size
    edges = {
        "interior": lambda: np.concatenate([axis.ends[:1], nodes, axis.ends[1:]]),
        "periodic": lambda: np.append(nodes, axis.ends[1]),
        "midpoint": lambda: np.linspace(*axis.ends, n + 1),
    }.get(axis.rule, lambda: nodes if n < 2 else np.concatenate([_ends(axis)[:1], nodes[1:-1], _ends(axis)[1:]]))()
    edges = np.unique(edges)  # padding repeats a node
    most = min(n, max(edges.size - 1, 1))  # nodes at both ends bound one share less
    if not 1 <= count <= most:
        raise ValueError(f"subdomains must lie between 1 and {most} along axis {k} of {n} nodes, got {count}.")
    cuts = edges[np.round(np.arange(count + 1) * (edges.size - 1) / count).astype(int)]
    start, stop = _ranges(nodes, cuts[:-1], cuts[1:], periodic=False)
    _check_filled(stop - start, f"axis {k}")
    periodic = axis.rule == "periodic" and count > 1
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
    return _AxisCuts(cuts, lower, upper, axis.rule)


def _period(axis: Axis) -> float:
    lower, upper = axis.ends
    return upper - lower


def _ranges(
    nodes: np.ndarray, lower: np.ndarray, upper: np.ndarray, *, periodic: bool, length: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """First node and one past the last of every interval [lower, upper); the outermost reach every node.

    Along a periodic axis node numbers outside 0 … n − 1 stand for the same nodes one period away.
    """
    n = nodes.size
    tolerance = 1e-3 * np.diff(nodes).min(initial=np.inf, where=np.diff(nodes) > 0) if n > 1 else 0.0
    line = np.concatenate([nodes - length, nodes, nodes + length]) if periodic else nodes
    start, stop = (np.searchsorted(line, ends - tolerance) - (n if periodic else 0) for ends in (lower, upper))
    if not periodic:
        start[lower <= lower[0]], stop[upper >= upper[-1]] = 0, n
    return start, stop


def _check_filled(sizes: np.ndarray, where: str) -> None:
    if (sizes <= 0).any():
        raise ValueError(
            f"subdomain {first_index(sizes <= 0)} of {where} holds no node; ask for fewer subdomains or more nodes."
        )


def _on_grid(grid: Grid, cuts: tuple[_AxisCuts, ...], unity: str) -> tuple[_Members, _Sparse]:
    """Members and hats of a grid as products over its axes."""
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
    columns = [hat.columns for hat in hats]
    entries = [(hat.column, hat.row, hat.value) for hat in hats]
    column, row, value = functools.reduce(
        lambda a, b: _product(a, b[0], b[1], b[2]),
        zip(entries[1:], columns[1:], grid.shape[1:], strict=True),
        entries[0],
    )
    found = _Members(sub[order], node[order], weight[order], math.prod(counts), owner)
    return found, _Sparse(row, column, value, math.prod(columns))


def _product(first: Any, second: Any, groups: int, nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kronecker product of two lists of (group, node, value)."""
    (a, i, x), (b, j, y) = first, second
    return tuple(part.ravel() for part in (a[:, None] * groups + b, i[:, None] * nodes + j, x[:, None] * y))  # pyright: ignore[reportReturnType]


def _on_axis(axis: Axis, cut: _AxisCuts, unity: str, k: int) -> tuple[tuple[np.ndarray, ...], _Sparse, np.ndarray]:
    """Along one axis: (subdomain, node, D), the hats, and the core of every node."""
    nodes, n = _axis_nodes(axis), axis.size
    cuts, lower, upper = (np.asarray(a, np.float64) for a in (cut.cuts, cut.lower, cut.upper))
    count = cuts.size - 1
    periodic = axis.rule == "periodic" and count > 1
    length = _period(axis) if periodic else 0.0
    first, last = _ranges(nodes, cuts[:-1], cuts[1:], periodic=False)
    _check_filled(last - first, f"axis {k}")
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
        weight = _ramp(x, lower[sub], upper[sub], (cuts[:-1] - lower)[sub], (upper - cuts[1:])[sub])
    weight = weight / np.bincount(node, weight, minlength=n)[node]
    share = np.clip((nodes - cuts[owner]) / np.diff(cuts)[owner], 0, 1)
    share = np.where(share < 1e-9, 0, share)  # a node on a cut, up to rounding
    row = np.concatenate([np.arange(n)] * 2)
    column = np.concatenate([owner, owner + 1])
    value = np.concatenate([1 - share, share])
    columns = count + 1
    if axis.rule == "periodic":
        column, columns = column % count, count
    elif cut.rule == "interior":
        column, columns = column - 1, count - 1
        keep = (column >= 0) & (column < columns)
        row, column, value = row[keep], column[keep], value[keep]
    return (sub, node, weight), _Sparse(row, column, value, columns), owner


def _ramp(x: np.ndarray, lower: Any, upper: Any, left: Any, right: Any) -> np.ndarray:
    """Smooth steps t²(3 − 2t) from the ends of an interval over twice its overlaps ``left`` and ``right``."""
    steps = []
    for distance, width in ((x - lower, 2 * np.asarray(left)), (upper - x, 2 * np.asarray(right))):
        t = np.where(width > 0, distance / np.where(width > 0, width, 1), 1).clip(0, 1)
        steps.append(t * t * (3 - 2 * t))
    return steps[0] * steps[1]


# scattered nodes and meshes: boxes of a bisection


def _points(dom: Domain) -> np.ndarray:
    leaves = [axis.nodes for axis in dom.axes] if isinstance(dom, Grid) else [dom.points]
    if not is_concrete(*leaves):
        raise ValueError("the nodes must be concrete to be decomposed; call decompose outside jax.jit.")
    if isinstance(dom, Grid):  # its own points would be compiled for every shape
        axes = np.meshgrid(*(np.asarray(nodes, np.float64) for nodes in leaves), indexing="ij")
        return np.stack([axis.ravel() for axis in axes], axis=1)
    return np.asarray(dom.points, np.float64)


def _cut_boxes(dom: Domain, count: int, overlap: int | float) -> BoxCuts:
    points = _points(dom)
    n, dim = points.shape
    if not 1 <= count <= n:
        raise ValueError(f"subdomains must lie between 1 and the {n} nodes, got {count}.")
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    _bisect(points, np.full(dim, -np.inf), np.full(dim, np.inf), count, boxes)
    lower, upper = (np.stack(side) for side in zip(*boxes, strict=True))
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    if isinstance(overlap, int) and not isinstance(dom, TriangleMesh):
        overlap = float(overlap * _share(extent, n)[0])
    cell, wide = _share(extent, count)
    lattice = tuple(
        np.linspace(low[k], low[k] + extent[k], max(1, round(extent[k] / cell)) + 1) if wide[k] else low[k : k + 1]
        for k in range(dim)
    )
    kept = np.unique(_lattice_hats(points, lattice).column)
    return BoxCuts(lower, upper, overlap, lattice, kept)


def _share(extent: np.ndarray, count: int) -> tuple[float, np.ndarray]:
    """Side of a cube that is one of ``count`` parts of a box, and the axes along which the box is wider than it."""
    wide = extent > 0
    while True:
        side = float((np.prod(extent[wide]) / count) ** (1 / max(wide.sum(), 1)))
        if not (thin := wide & (extent < side)).any():
            return side, wide
        wide = wide & ~thin


def _check_reach(dom: Domain, cuts: BoxCuts, found: _Members, overlap: Any) -> None:
    """Refuses overlaps larger than the largest core: a length beyond its longest side, or more layers than it has."""
    points, owner = _points(dom), found.owner
    assert owner is not None
    reason = ""
    if found.largest == dom.size:
        reason = f": subdomain {found.largest_at} becomes the whole domain"
    elif isinstance(cuts.overlap, int):
        largest = int(np.bincount(owner).max())
        across = math.isqrt(largest - 1) + 1
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


def _on_boxes(dom: Domain, cuts: BoxCuts, unity: str) -> tuple[_Members, _Sparse]:
    points = _points(dom)
    n = points.shape[0]
    lower, upper = (np.asarray(side, np.float64) for side in (cuts.lower, cuts.upper))
    count = lower.shape[0]
    owner = np.zeros(n, np.int64)
    for i in range(count):
        owner[((points >= lower[i]) & (points < upper[i])).all(axis=1)] = i
    _check_filled(np.bincount(owner, minlength=count), "the domain")
    if isinstance(cuts.overlap, int):
        assert isinstance(dom, TriangleMesh)
        sub, node, layer = _layers(np.asarray(dom.faces), owner, count, cuts.overlap)
        step = 1 - layer / (cuts.overlap + 1)
        weight = step * step * (3 - 2 * step)
    else:
        reach, members = cuts.overlap, []
        for i in range(count):
            nodes = np.flatnonzero(((points >= lower[i] - reach) & (points < upper[i] + reach)).all(axis=1))
            steps = [
                _ramp(points[nodes, k], lower[i, k] - reach, upper[i, k] + reach, reach, reach) for k in range(dom.dim)
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
    return _Members(sub, node, weight, count, owner), _Sparse(row, column, value, kept.size)


def _layers(faces: np.ndarray, owner: np.ndarray, count: int, layers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cores of a mesh grown by layers of vertices that share a triangle: (subdomain, vertex, layer)."""
    n = owner.size
    ends = np.concatenate([faces[:, [a, b]] for a in range(3) for b in range(3) if a != b])
    ends = np.unique(ends, axis=0)
    degree = np.bincount(ends[:, 0], minlength=n)
    start = np.cumsum(degree) - degree
    found = owner * n + np.arange(n)
    layer, frontier = np.zeros(n, np.int64), found
    for step in range(1, layers + 1):
        vertex = frontier % n
        repeats = degree[vertex]
        source = np.repeat(frontier // n, repeats)
        offset = np.arange(source.size) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        neighbour = ends[np.repeat(start[vertex], repeats) + offset, 1] if source.size else source
        frontier = np.setdiff1d(source * n + neighbour, found)
        found, layer = np.concatenate([found, frontier]), np.concatenate([layer, np.full(frontier.size, step)])
    order = np.argsort(found)
    return found[order] // n, found[order] % n, layer[order]


def _lattice_hats(points: np.ndarray, lattice: tuple[np.ndarray, ...]) -> _Sparse:
    """Multilinear hats of a lattice at the nodes; beyond its ends they stay constant."""
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
    return _Sparse(row[keep], column[keep], value[keep], math.prod(line.size for line in lattice))


def _bounding_boxes(points: np.ndarray, found: _Members) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the boxes that hold the nodes of every subdomain."""
    start = np.cumsum(found.sizes) - found.sizes
    values = np.asarray(points, np.float64)[found.node]
    return np.minimum.reduceat(values, start, axis=0), np.maximum.reduceat(values, start, axis=0)
