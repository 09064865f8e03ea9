"""Overlapping subdomains of a domain, partitions of unity and coarse spaces on them."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxop._pytree import register
from jaxop._sparse import Entries
from jaxop._validation import (
    as_float,
    check_name,
    first_index,
    host_array,
    host_real,
    is_concrete,
    is_integer,
    shape_of,
)
from jaxop.domains import Decomposed, Domain, Grid
from jaxop.domains.domain import as_domain
from jaxop.schwarz.clouds import BoxCuts, check_reach, check_same_kind, cut_boxes, host_points, on_boxes
from jaxop.schwarz.grids import AxisCuts, box_corners, check_same_box, cut_axis, on_grid, per_axis
from jaxop.schwarz.tables import (
    CoarseSpace,
    Cover,
    Members,
    bounding_boxes,
    coarse_entries,
    coarse_space,
    make_cover,
    real,
)

PARTITIONS_OF_UNITY = ("multiplicity", "ramp")
"""Names accepted by `decompose` for D."""


COARSE_SPACES = ("hat", "partition")
"""Names accepted by `decompose` for Φ."""


@functools.partial(register, static=("unity",))
@dataclasses.dataclass(frozen=True, eq=False)
class Decomposition(Decomposed):
    """Overlapping subdomains Ω_i of a domain with Σ_i R_iᵀ D_i R_i = I and a coarse space Φ.

    Build it with `decompose` or `from_subdomains`. p subdomains are padded to the s nodes of the largest subdomain.
    Padding repeats a node, has D = 0, restricts to 0 and is never prolonged. Every method is O(p s).

    Nodes and weights are those of ``domain``. A transformer neural operator and a set of samples accept a
    decomposition in place of a domain. An operator with Schwarz attention then uses these subdomains instead of its
    own; on scattered nodes and meshes it is trained in this way.

    Attributes:
        domain: the whole domain.
        cover: the nodes of every subdomain, see `Cover`.
        cores: the disjoint sets of nodes that the subdomains grew from.
        partition: D, the partition of unity, (p, s).
        lower: lower corners of the boxes that hold the subdomains, (p, dim), the frame of `coordinates`.
        upper: upper corners of these boxes, (p, dim).
        coarse: the coarse space, or None.
        cuts: the subdomains in coordinates, from which `on` builds them on other nodes; None for given sets of nodes.
        unity: name of the partition of unity (static).
    """

    domain: Domain
    cover: Cover
    cores: Cover
    partition: Float[Array, "p s"]
    lower: Float[Array, "p dim"]
    upper: Float[Array, "p dim"]
    coarse: CoarseSpace | None
    cuts: tuple[AxisCuts, ...] | BoxCuts | None
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
        """Number n0 of coarse functions, which is 0 without a coarse space."""
        return 0 if self.coarse is None else self.coarse.size

    @property
    def coordinates(self) -> Float[Array, "p s dim"]:
        """Local coordinates of the nodes, in which the box of each subdomain is [−1, 1] along each axis.

        Along a periodic axis the coordinates of a subdomain continue across the end. On grids the box is the cut with
        its overlap. For scattered nodes and meshes it bounds the nodes, and the nodes of `on` may be a little outside.
        """
        return _coordinates(self)

    def restrict(self, values: Float[Array, "n c"]) -> Float[Array, "p s c"]:
        """R_i v for every subdomain, (n, c) to (p, s, c), zero on padding.

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
        """Σ_i R_iᵀ local_i, the adjoint of `restrict`; values on padding are ignored.

        Raises:
            ValueError: if ``local`` does not have shape (p, s, c).
        """
        local = as_float(local, "local")
        if local.ndim != 3 or local.shape[:2] != self.partition.shape:
            expected = f"(p, s, c) = ({self.subdomains}, {self.local_size}, c)"
            raise ValueError(f"local must have shape {expected}, as restrict returns, got {local.shape}.")
        return self.cover.prolong(local)

    def coarsen(self, values: Float[Array, "n c"]) -> Float[Array, "n0 c"]:
        """Φᵀ W v, the integrals of v against the coarse functions, (n, c) to (n0, c), in units of v times length^dim.

        Raises:
            ValueError: if ``values`` does not have one row per node, or the decomposition has no coarse space.
        """
        coarse = self._coarse_space()
        values = self._rows(values, self.domain.size, "values", "one row per node of the domain")
        return coarse.coarsen(self.cores, self.domain.weights, values)

    def refine(self, coarse: Float[Array, "n0 c"]) -> Float[Array, "n c"]:
        """Φ c, the function with these coarse coefficients, (n0, c) to (n, c).

        Raises:
            ValueError: if ``coarse`` does not have one row per coarse function, or the decomposition has no coarse
                space.
        """
        space = self._coarse_space()
        coarse = self._rows(coarse, space.size, "coarse", "one row per coarse function")
        return space.refine(self.cores, coarse)

    def coarse_basis(self) -> Float[Array, "n n0"]:
        """Φ as a dense matrix for small domains, with n·n0 numbers.

        Raises:
            ValueError: if the decomposition has no coarse space.
        """
        return self.refine(jnp.eye(self._coarse_space().size, dtype=self.partition.dtype))

    def on(self, domain: Domain | Decomposed, *, coarse: object = None) -> "Decomposition":
        """Returns the same subdomains and coarse functions on other nodes of the same region, at another resolution.

        Subdomains are intervals, boxes and cuts in coordinates. A grid may therefore become any other grid of the same
        box with the same periodic axes, scattered nodes other scattered nodes, and a mesh another mesh. Coarse
        functions are those of the rule that was decomposed: hats of "interior" nodes vanish at the ends. On a mesh,
        overlap counts layers of the new mesh. Cuts are float64 until the decomposition passes through `jax.jit` or a
        tree map.

        Args:
            domain: the new nodes.
            coarse: Φ on the new nodes, if Φ was given to `decompose`, and None otherwise.

        Raises:
            ValueError: if the subdomains were given as sets of nodes, if ``domain`` is of another kind or has another
                box, if Φ is missing, superfluous or misshaped, or if a subdomain has no node of ``domain``.

        Example:
            >>> from jaxop import domains, schwarz
            >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
            >>> finer = dec.on(domains.interval(127, rule="interior"))
            >>> finer.subdomains, finer.coarse_size
            (8, 7)
        """
        if self.cuts is None:
            raise ValueError(
                "these subdomains are sets of nodes; call from_subdomains with sets of nodes of the new domain."
            )
        kind = None if self.coarse is None else self.coarse.kind
        if (kind == "given") != (coarse is not None):
            raise ValueError(
                "coarse must be Φ on the new domain, because it was given to decompose; got None."
                if kind == "given"
                else f"coarse may be given only if it was given to decompose; leave out coarse for {kind!r} functions."
            )
        domain = _single(domain, "domain")
        if not is_concrete(*jax.tree.leaves(self.cuts)):
            raise ValueError("this decomposition is traced: call `on` outside jax.jit and pass its result.")
        if isinstance(self.cuts, tuple):
            found, hats = on_grid(check_same_box(domain, self.cuts), self.cuts, self.unity)
        else:
            check_same_kind(domain, self.cuts)
            found, hats = on_boxes(domain, self.cuts, self.unity)
        space = kind if coarse is None else coarse
        if coarse is not None and shape_of(coarse)[1:] != (self.coarse_size,):
            raise ValueError(
                f"coarse must have shape (n, n0) = ({domain.size}, {self.coarse_size}), as many functions as the "
                f"decomposition has, got {shape_of(coarse)}."
            )
        return _assemble(domain, found, hats, space, self.cuts, self.unity, (self.lower, self.upper))

    def _coarse_space(self) -> CoarseSpace:
        if self.coarse is None:
            raise ValueError("this decomposition has no coarse space; build it with coarse='hat' or 'partition'.")
        return self.coarse

    def _rows(self, values: object, rows: int, argument: str, meaning: str) -> Array:
        values = as_float(values, argument)
        if values.ndim != 2 or values.shape[0] != rows:
            raise ValueError(f"{argument} must have shape ({rows}, c), {meaning}, got {values.shape}.")
        return values


@jax.jit
def _coordinates(dec: Decomposition) -> Float[Array, "p s dim"]:
    offset = dec.domain.points[dec.cover.index] - (dec.lower + dec.upper)[:, None] / 2
    if isinstance(dec.domain, Grid):
        for k, axis in enumerate(dec.domain.axes):
            if axis.rule.is_periodic:
                length = axis.ends[1] - axis.ends[0]
                # half a period away, where the single subdomain of an axis begins, must stay there under rounding
                offset = offset.at[..., k].add(-length * jnp.floor(offset[..., k] / length + 0.5 + 1e-6))
    half = (dec.upper - dec.lower)[:, None] / 2
    return offset / jnp.where(half > 0, half, 1)


def decompose(
    dom: Domain | Decomposed,
    subdomains: int | Sequence[int] = 8,
    overlap: int | float | Sequence[int | float] = 4,
    *,
    partition: str = "multiplicity",
    coarse: object = "hat",
) -> Decomposition:
    """Cuts a domain into subdomains that overlap, with a partition of unity and a coarse space.

    Every node belongs to one core. Cores are equal shares of the nodes along each axis of a grid, and boxes of
    repeated bisection of the coordinates for scattered nodes and meshes. A subdomain is a core and the overlap around
    it. For ``partition="multiplicity"`` D is 1 over the number of subdomains of a node. For ``"ramp"`` D consists of
    smooth steps across the overlap, divided by their sum. For ``coarse="hat"`` on a grid, Φ consists of tensor products
    of piecewise linear functions with nodes where cores meet, and at the ends of the domain unless its rule is
    "interior", whose functions vanish there. Elsewhere it consists of the hats of a lattice with about one cell for
    each subdomain. For ``"partition"`` Φ consists of the columns of D (Nicolaides).

    Args:
        dom: any single domain, or a decomposition of one; concrete unless it is a grid under named rules.
        subdomains: number of subdomains; on a grid one number per axis, or one for all axes.
        overlap: an integer counts nodes that are added on EACH side of a core: along every axis of a grid, layers of
            neighbours in a mesh, and mean distances of nodes that fill their bounding box if they are scattered (for
            nodes on a surface a length is better). A float is a length in the units of the coordinates. On a grid
            give one per axis, or one for all axes. Along a periodic axis subdomains overlap across its end.
        partition: one of `PARTITIONS_OF_UNITY`.
        coarse: one of `COARSE_SPACES`, or Φ itself, dense or a scipy.sparse matrix of shape (n, n0); None omits the
            coarse space.

    Returns:
        A `Decomposition`, a pytree.

    Raises:
        TypeError: if a count is not an integer, or the overlap is not a number.
        ValueError: if there are more subdomains than nodes, the overlap is larger than a subdomain, a name is unknown,
            the rows of Φ do not match the nodes, an "interior" axis has no coarse node inside, or ``dom`` is a stack.

    Cost: built on the host once, O(n log n) on grids and O(n p) elsewhere. Memory is O(n) times the number of
        subdomains of a node and of coarse functions that do not vanish at a node, 2^dim for hats.

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
        counts = per_axis(subdomains, dom.dim)
        overlaps = (overlap,) * dom.dim if isinstance(overlap, int | float) or np.ndim(overlap) == 0 else tuple(overlap)
        if len(overlaps) != dom.dim:
            raise ValueError(f"overlap must be one number or {dom.dim}, one per axis of the grid, got {overlap!r}.")
        cuts = tuple(cut_axis(dom.axes[k], counts[k], _overlap(overlaps[k]), k) for k in range(dom.dim))
        found, hats = on_grid(dom, cuts, partition)
        lower, upper = box_corners(cuts)
    else:
        if not is_integer(subdomains):
            raise TypeError(f"subdomains must be one integer on {type(dom).__name__}, got {subdomains}.")
        cuts = cut_boxes(dom, int(subdomains), _overlap(overlap))
        found, hats = on_boxes(dom, cuts, partition)
        if subdomains > 1:
            check_reach(dom, cuts, found, overlap)
        lower, upper = bounding_boxes(np.asarray(dom.points), found)
    return _assemble(dom, found, hats, coarse, cuts, partition, (real(lower), real(upper)))


def from_subdomains(
    dom: Domain | Decomposed,
    indices: Sequence[ArrayLike | Sequence[int]],
    *,
    partition: str | Sequence[ArrayLike | Sequence[float]] = "multiplicity",
    coarse: object = "partition",
) -> Decomposition:
    """Returns a decomposition into given sets of nodes.

    Args:
        dom: any single domain, or a decomposition of one.
        indices: the node indices of every subdomain; together they must contain every node.
        partition: ``"multiplicity"``, or D itself: one array per subdomain, in the order of its indices, summing to
            one at every node.
        coarse: ``"partition"``, or Φ itself, dense or a scipy.sparse matrix of shape (n, n0); None omits the
            coarse space.

    Returns:
        A `Decomposition` without `Decomposition.on`.

    Raises:
        ValueError: if a set is empty, repeats a node or holds an index outside the domain; if a node is in no set (the
            message names the first such node); if D has the wrong length, is negative or does not sum to one; or if
            the rows of Φ do not match.

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
        raise ValueError("indices must hold at least one subdomain, got an empty list.")
    for i, nodes in enumerate(sets):
        if nodes.ndim != 1 or not nodes.size or not np.issubdtype(nodes.dtype, np.integer):
            raise ValueError(
                f"indices[{i}] must be a non-empty list of integers, got {nodes.dtype} of shape {nodes.shape}."
            )
        bad = (nodes < 0) | (nodes >= n)
        if bad.any():
            j = first_index(bad)
            raise ValueError(f"indices[{i}][{j}] = {nodes[j]} is not a node: indices run from 0 to {n - 1}.")
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
    found = Members(sub, node, weight, len(sets))
    lower, upper = bounding_boxes(host_points(dom), found)
    if isinstance(coarse, str):
        check_name(coarse, "coarse", ("partition",))
    return _assemble(dom, found, None, coarse, None, "given", (real(lower), real(upper)))


def _assemble(
    dom: Domain,
    found: Members,
    hats: Entries | None,
    coarse: object,
    cuts: tuple[AxisCuts, ...] | BoxCuts | None,
    unity: str,
    corners: tuple[Array, Array],
) -> Decomposition:
    """Builds a decomposition from its members and hats."""
    n = dom.size
    owner = found.owner
    if owner is None:  # the first subdomain that contains a node
        owner = np.zeros(n, np.int64)
        owner[found.node[::-1]] = found.sub[::-1]
    cover, position = make_cover(found.sub, found.node, found.count, n)
    nodes = np.argsort(owner, kind="stable")
    cores, place = make_cover(owner[nodes], nodes, found.count, n)
    partition = np.zeros(cover.index.shape)
    partition[found.sub, position] = found.weight
    space = None
    if coarse is not None:
        kind = coarse if isinstance(coarse, str) else "given"
        if kind == "given":
            entries = coarse_entries(coarse, n)
        else:
            check_name(coarse, "coarse", COARSE_SPACES)
            entries = hats if kind == "hat" else Entries(found.node, found.sub, found.weight, (n, found.count))
        assert entries is not None
        where = np.empty(n, np.int64)
        where[nodes] = place
        space = coarse_space(entries, owner, where, cores.index.shape, kind)
    return Decomposition(dom, cover, cores, real(partition), *corners, space, cuts, unity)


def _single(domain: Domain | Decomposed, argument: str) -> Domain:
    """Returns a single domain, without the subdomains that it may already have."""
    domain = as_domain(domain, argument)
    if domain.is_batched:
        raise ValueError(f"{argument} is a stack of domains, one per sample; decompose a single domain.")
    return domain


def _overlap(overlap: object) -> int | float:
    if isinstance(overlap, bool) or not isinstance(overlap, int | float | np.integer | np.floating):
        raise TypeError(f"overlap must be a number of nodes (int) or a length (float), got {type(overlap).__name__}.")
    overlap = float(overlap) if isinstance(overlap, float | np.floating) else int(overlap)
    if not 0 <= overlap < math.inf:
        raise ValueError(f"overlap must be finite and not negative, got {overlap}.")
    return overlap
