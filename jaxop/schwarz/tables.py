"""Tables of a decomposition: the nodes of its subdomains, and the coarse functions on its cores."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxop._pytree import register
from jaxop._sparse import Entries, entries
from jaxop._validation import accumulator, first_index, float_dtype, is_concrete, on_device, shape_of


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Cover:
    """R: groups of nodes, padded to the size of the largest group; both directions are gathers.

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
        """Rᵀ, the sum over all places of a node."""
        flat = local.reshape(local.shape[0] * local.shape[1], local.shape[2]).astype(accumulator(local.dtype))
        places = range(self.slots.shape[1])
        summands = [jnp.take(flat, self.slots[:, k], axis=0, mode="fill", fill_value=0) for k in places]
        return functools.reduce(jnp.add, summands).astype(local.dtype)


@functools.partial(register, static=("size", "kind"))
@dataclasses.dataclass(frozen=True, eq=False)
class CoarseSpace:
    """Φ, stored core by core; each core has only the few functions that do not vanish on it.

    Attributes:
        index: coarse functions that do not vanish on a core, (p, q); padding repeats the first function.
        basis: values of these functions on the nodes of the core, (p, s, q), zero on padding.
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


@dataclasses.dataclass(frozen=True)
class Members:
    """Pairs of a subdomain and one of its nodes, sorted by subdomain.

    Attributes:
        sub: the subdomain of each pair.
        node: the node of each pair.
        weight: D of each pair.
        count: number of subdomains.
        owner: the subdomain whose core a node is in, (n,); None means the first that contains the node.
    """

    sub: np.ndarray
    node: np.ndarray
    weight: np.ndarray
    count: int
    owner: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """Nodes of every subdomain."""
        return np.bincount(self.sub, minlength=self.count)


def make_cover(group: np.ndarray, node: np.ndarray, count: int, n: int) -> tuple[Cover, np.ndarray]:
    """Returns tables of groups of nodes, sorted by group, and the position of every entry in its group."""
    index, inside, position = pack(group, node, count, None)
    size = index.shape[1]
    if count * size >= 2**31:
        raise ValueError(f"{count} subdomains of {size} nodes pass the range of 32-bit indices; cut more evenly.")
    order = np.argsort(node, kind="stable")
    slots, _, _ = pack(node[order], (group * size + position)[order], n, count * size)
    return Cover(integers(index), on_device(inside), integers(slots)), position


def coarse_space(
    basis: Entries, owner: np.ndarray, position: np.ndarray, shape: tuple[int, ...], kind: str
) -> CoarseSpace:
    """Returns Φ core by core, from the core of every node and the position of the node there."""
    size = basis.shape[1]
    if size == 0:
        raise ValueError("the coarse space has no functions: ask for more subdomains along an axis, or coarse=None.")
    keep = basis.value != 0
    if not keep.any():
        raise ValueError("the coarse space holds only zeros: give functions that do not vanish at all nodes.")
    row, column, value = basis.row[keep], basis.column[keep], basis.value[keep]
    alive, which = np.unique(owner[row] * size + column, return_inverse=True)
    index, _, rank = pack(alive // size, alive % size, shape[0], None)
    table = np.zeros((*shape, index.shape[1]))
    np.add.at(table, (owner[row], position[row], rank[which]), value)
    return CoarseSpace(integers(index), real(table), size, kind)


def coarse_entries(matrix: object, n: int) -> Entries:
    """Returns the entries of a Φ that a user gave."""
    if not is_concrete(matrix):
        raise ValueError("coarse must be concrete: decompose outside jax.jit and pass the result.")
    shape = shape_of(matrix)
    if len(shape) != 2 or shape[0] != n:
        raise ValueError(f"coarse must have shape (n, n0) = ({n}, n0), one row per node, got {shape}.")
    return entries(matrix, "coarse")


def pack(
    group: np.ndarray, item: np.ndarray, count: int, fill: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns items by group, (count, size), padded by ``fill`` or the first; which entries are items; positions."""
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


def check_filled(sizes: np.ndarray, where: str) -> None:
    """Raises ``ValueError`` if a subdomain does not have a node."""
    if (sizes <= 0).any():
        raise ValueError(
            f"subdomain {first_index(sizes <= 0)} of {where} holds no node; ask for fewer subdomains or more nodes."
        )


def bounding_boxes(points: np.ndarray, found: Members) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corners of the boxes that hold the nodes of every subdomain."""
    start = np.cumsum(found.sizes) - found.sizes
    values = np.asarray(points, np.float64)[found.node]
    return np.minimum.reduceat(values, start, axis=0), np.maximum.reduceat(values, start, axis=0)


def ramp(x: np.ndarray, lower: ArrayLike, upper: ArrayLike, left: ArrayLike, right: ArrayLike) -> np.ndarray:
    """Smooth steps t²(3 − 2t) from the ends of an interval over twice its overlaps ``left`` and ``right``."""
    steps = []
    for distance, width in ((x - lower, 2 * np.asarray(left)), (upper - x, 2 * np.asarray(right))):
        t = np.where(width > 0, distance / np.where(width > 0, width, 1), 1).clip(0, 1)
        steps.append(t * t * (3 - 2 * t))
    return steps[0] * steps[1]


def integers(values: np.ndarray) -> Array:
    """Returns indices as a JAX array."""
    return on_device(values, np.int32)


def real(values: np.ndarray) -> Array:
    """Returns numbers as a JAX array of the default floating dtype."""
    return on_device(values, float_dtype())
