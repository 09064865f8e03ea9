"""Partition of a grid into equal patches, so that a function on the grid becomes tokens on one reference patch."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import as_float, as_integer, divisors, is_concrete, on_device
from jaxop.domains.domain import refuse_decomposed
from jaxop.domains.grid import Axis, Grid
from jaxop.domains.rules import MIDPOINT
from jaxop.domains.shared import GridShard


@functools.partial(register, static=("patches",))
@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """A grid cut into P = Π patches_k equal boxes of s nodes each; `partition` builds it.

    Attributes:
        domain: the whole grid, or its rows on one device.
        patches: patches along each axis (static).
    """

    domain: Grid
    patches: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Nodes of one patch along each axis."""
        return tuple(n // p for n, p in zip(self.domain.shape, self.patches, strict=True))

    @property
    def weights(self) -> Float[Array, "p s"]:
        """The whole domain's quadrature weights, patch by patch, shape (P, s); they sum to |D|."""
        return self.split(self.domain.weights[:, None])[..., 0]

    def split(self, values: Float[Array, "n c"]) -> Float[Array, "p s c"]:
        """R: takes samples on the grid, (n, c), to samples on every patch, (P, s, c), both in row-major order.

        Raises:
            ValueError: if ``values`` does not have one row per node of the grid.

        Example:
            >>> from jaxop import domains
            >>> cut = domains.partition(domains.box((4, 6), rule="midpoint"), (2, 3))
            >>> cut.split(cut.domain.points).shape
            (6, 4, 2)
        """
        values = as_float(values, "values")
        if values.ndim != 2 or values.shape[0] != self.domain.size:
            raise ValueError(
                f"values must have shape (n, c) = ({self.domain.size}, c), one row per node of the grid, got "
                f"{values.shape}."
            )
        dim = len(self.patches)
        interleaved = [size for pair in zip(self.patches, self.shape, strict=True) for size in pair]
        order = [*range(0, 2 * dim, 2), *range(1, 2 * dim, 2), 2 * dim]
        return (
            values.reshape(*interleaved, values.shape[-1])
            .transpose(order)
            .reshape(math.prod(self.patches), math.prod(self.shape), values.shape[-1])
        )

    def join(self, values: Float[Array, "p s c"]) -> Float[Array, "n c"]:
        """Rᵀ: the inverse of `split`.

        Raises:
            ValueError: if ``values`` does not have shape (P, s, c).
        """
        values = as_float(values, "values")
        count, size = math.prod(self.patches), math.prod(self.shape)
        if values.ndim != 3 or values.shape[:2] != (count, size):
            raise ValueError(
                f"values must have shape (patches, nodes, c) = ({count}, {size}, c), as split returns, got "
                f"{values.shape}."
            )
        dim = len(self.patches)
        order = [axis for k in range(dim) for axis in (k, dim + k)]
        return (
            values.reshape(*self.patches, *self.shape, values.shape[-1])
            .transpose([*order, 2 * dim])
            .reshape(self.domain.size, values.shape[-1])
        )

    def subdomain(self, index: Sequence[int]) -> Grid:
        """Returns the nodes and weights of one patch as a grid of its own.

        Args:
            index: position of the patch along each axis.

        Returns:
            A `Grid` with the weights of the whole domain. Along a midpoint or periodic axis it follows the midpoint
            rule on the cells of its own nodes. Along other axes its nodes are given, and the H1 inner product leaves
            out the cells between one patch and the next.

        Raises:
            ValueError: if ``index`` lies outside the patches.
        """
        index = _integers(index, "index")
        if len(index) != len(self.patches) or any(not 0 <= i < p for i, p in zip(index, self.patches, strict=False)):
            raise ValueError(f"index must lie inside the patches {self.patches}, got {index}.")
        axes = []
        for i, size, axis in zip(index, self.shape, self.domain.axes, strict=True):
            part = slice(i * size, (i + 1) * size)
            nodes, weights = (_slice(values, part) for values in (axis.nodes, axis.weights))
            if axis.rule.has_equal_weights and axis.rule.margins is not None:
                start, end = axis.ends
                spacing = (end - start) / axis.size
                offset = start - spacing * (0.5 - axis.rule.margins[0])  # a node is the middle of its cell
                lower, upper = (offset + edge * spacing for edge in (part.start, part.stop))
                axes.append(Axis(nodes, weights, MIDPOINT, lower, upper))
            else:
                axes.append(Axis(nodes, weights))
        return Grid(tuple(axes))


def partition(grid: Grid | GridShard, patches: Sequence[int]) -> Partition:
    """Cuts a grid into equal patches.

    Args:
        grid: a `Grid` in any number of dimensions. If the devices of a mapped axis share its nodes, the `GridShard` of
            this device, inside the map; the result holds the patches of this device, on a grid of given nodes.
        patches: number of patches along each axis; must divide ``grid.shape``.

    Returns:
        A `Partition` with `split`, `join`, and the weights and subdomains of the patches.

    Raises:
        TypeError: if ``grid`` is not a `Grid` or a count is not an integer.
        ValueError: if the patches do not divide the grid (the message names the nearest valid counts), if
            ``grid`` is a stack of grids, or if devices share its nodes and cannot have whole patches each.

    Example:
        >>> from jaxop import domains
        >>> cut = domains.partition(domains.box((64, 64), rule="midpoint"), (4, 4))
        >>> cut.shape, cut.weights.shape
        ((16, 16), (16, 256))
    """
    refuse_decomposed(grid, "grid")
    if not isinstance(grid, Grid | GridShard):
        raise TypeError(f"patches need a grid (interval, box, from_samples), got {type(grid).__name__}.")
    if grid.is_batched:
        raise ValueError("grid is a stack of grids, one per sample; partition each grid inside jax.vmap.")
    patches = _integers(patches, "patches")
    if len(patches) != grid.dim:
        raise ValueError(f"patches must have {grid.dim} entries, one per axis of the grid, got {patches}.")
    for k, (n, p) in enumerate(zip(grid.shape, patches, strict=True)):
        if p < 1 or n % p:
            divisors = [q for q in range(1, n + 1) if n % q == 0]
            nearest = sorted(sorted(divisors, key=lambda q, p=p: abs(q - p))[:3])
            raise ValueError(
                f"patches[{k}] = {p} does not divide the {n} nodes of axis {k}; nearest valid counts: "
                f"{', '.join(map(str, nearest))}, or take a grid of {max(1, round(n / max(p, 1))) * max(p, 1)} nodes."
            )
    return _own_patches(grid, patches) if isinstance(grid, GridShard) else Partition(grid, patches)


def _own_patches(grid: GridShard, patches: tuple[int, ...]) -> Partition:
    """Returns the patches of one device: as many rows of patches as every other device has."""
    devices = jax.lax.axis_size(grid.axis_name)
    if patches[0] % devices:
        raise ValueError(
            f"patches[0] = {patches[0]} must be divisible by the {devices} devices that share the nodes of a grid, so "
            f"that each has whole patches; valid numbers of devices: {divisors(patches[0])}."
        )
    shape = (grid.shape[0] // devices, *grid.shape[1:])
    points, weights = grid.points.reshape(*shape, grid.dim), grid.weights.reshape(shape)
    total, axes = jnp.sum(weights), []
    for k in range(grid.dim):
        line = tuple(slice(None) if j == k else 0 for j in range(grid.dim))
        sums = jnp.sum(weights, axis=tuple(j for j in range(grid.dim) if j != k))  # the products of these are w · total
        axes.append(Axis(points[(*line, k)], sums if k == 0 else sums / total))
    return Partition(Grid(tuple(axes)), (patches[0] // devices, *patches[1:]))


def _integers(values: Sequence[int], argument: str) -> tuple[int, ...]:
    if np.ndim(values) != 1:
        raise TypeError(f"{argument} must hold one integer for each axis of the grid, got {values!r}.")
    return tuple(as_integer(value, f"{argument}[{k}]") for k, value in enumerate(values))


def _slice(values: Array, part: slice) -> Array:
    return on_device(np.asarray(values)[part]) if is_concrete(values) else values[part]
