"""Grids: tensor products of one-dimensional rules."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import float_dtype, on_device
from jaxop.domains.domain import Domain, contract, known
from jaxop.domains.rules import GIVEN, Rule, as_rule


@functools.partial(register, static=("rule", "lower", "upper"))
@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a grid: its nodes, weights and the rule they come from.

    Attributes:
        nodes: increasing coordinates, shape (n,).
        weights: one-dimensional quadrature weights, shape (n,), in units of length.
        rule: the rule (static), or its name; given nodes have the rule ``"samples"``.
        lower: left end of the interval (static); None for given nodes, which span the interval.
        upper: right end of the interval (static).
    """

    nodes: Array
    weights: Array
    rule: Rule = GIVEN
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "rule", as_rule(self.rule))

    @property
    def size(self) -> int:
        """Number of nodes."""
        return self.nodes.shape[-1]

    @property
    def ends(self) -> tuple[float, float]:
        """The interval of the rule, or the interval that given nodes span."""
        if self.lower is None or self.upper is None:
            raise ValueError("given nodes do not follow a rule on an interval; call from_samples with the new nodes.")
        return self.lower, self.upper

    def gaps(self) -> tuple[Array, Array]:
        """Returns the step of every difference quotient, and the length of the cell that it stands for.

        The cells tile the interval. If a rule has no nodes at the ends, the outermost quotients also cover the strips
        up to the ends. Along given nodes a cell spans the nodes of weight 0 inside it; the nodes of the other rules
        have positive weights.
        """
        if self.rule.is_periodic:
            lower, upper = self.ends
            cell = jnp.full_like(self.nodes, (upper - lower) / self.size)
            return cell, cell
        if self.rule.vanishes_at_ends:
            ends = jnp.array(self.ends, self.nodes.dtype)
            gaps = jnp.diff(jnp.concatenate([ends[:1], self.nodes, ends[1:]]))
            return gaps, gaps
        gaps = jnp.diff(self._carried(self.nodes))
        if self.rule.has_end_nodes:
            return gaps, gaps
        lower, upper = self.ends
        return gaps, gaps.at[0].add(self.nodes[0] - lower).at[-1].add(upper - self.nodes[-1])

    def differences(self, values: Array) -> Array:
        """Returns differences of neighbouring values along the first array axis, in the order of `gaps`."""
        if self.rule.is_periodic:
            return jnp.roll(values, -1, axis=0) - values
        if self.rule.vanishes_at_ends:
            values = jnp.pad(values, [(1, 1)] + [(0, 0)] * (values.ndim - 1))
        return jnp.diff(self._carried(values), axis=0)

    def _carried(self, values: Array) -> Array:
        """Returns the value at the last node of positive weight at or before each given node; others add nothing."""
        if not self.rule.is_given:
            return values
        counts = self.weights > 0
        last = jax.lax.cummax(jnp.where(counts, jnp.arange(self.size), jnp.argmax(counts)))
        return values[last]


def make_axis(n: int, lower: float, upper: float, rule: Rule) -> Axis:
    """Returns the axis of n nodes on (lower, upper) under a rule, in JAX's default floating dtype."""
    nodes, weights = rule.on(n, lower, upper)
    dtype = float_dtype()
    if (np.diff(nodes.astype(dtype)) <= 0).any():
        raise ValueError(
            f"lower={lower} and upper={upper} are too close for {n} distinct nodes in {dtype}; "
            "subtract an origin or enable x64."
        )
    return Axis(on_device(nodes, dtype), on_device(weights, dtype), rule, float(lower), float(upper))


@jax.jit
def _product_points(*nodes: Float[Array, " _"]) -> Float[Array, "n dim"]:
    return jnp.stack(jnp.meshgrid(*nodes, indexing="ij"), axis=-1).reshape(-1, len(nodes))


@jax.jit
def _product_weights(*weights: Float[Array, " _"]) -> Float[Array, " n"]:
    return functools.reduce(lambda product, axis: (product[:, None] * axis[None, :]).reshape(-1), weights)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Grid(Domain):
    """Tensor product of one-dimensional rules. Nodes are in row-major order, so that a function reshapes to ``shape``.

    Attributes:
        axes: one `Axis` per space dimension. Points and weights are products formed on demand.

    Example:
        >>> from jaxop import domains
        >>> grid = domains.box((32, 48), upper=(1, 2))
        >>> grid.shape, grid.points.shape
        ((32, 48), (1536, 2))
    """

    axes: tuple[Axis, ...]

    @property
    def points(self) -> Float[Array, "*batch n dim"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All nodes in row-major order, shape (n, dim)."""
        if self.is_batched:
            return jax.vmap(lambda grid: grid.points)(self)
        return _product_points(*(axis.nodes for axis in self.axes))

    @property
    def weights(self) -> Float[Array, "*batch n"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Products of the axes' weights, shape (n,)."""
        if self.is_batched:
            return jax.vmap(lambda grid: grid.weights)(self)
        return _product_weights(*(axis.weights for axis in self.axes))

    @property
    def shape(self) -> tuple[int, ...]:
        """Nodes along each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def rules(self) -> tuple[str, ...]:
        """Name of the rule along each axis."""
        return tuple(axis.rule.name for axis in self.axes)

    @property
    def dim(self) -> int:
        """Number of space dimensions."""
        return len(self.axes)

    @property
    def size(self) -> int:
        """Number of nodes n."""
        return math.prod(self.shape)

    @property
    def has_equal_weights(self) -> bool:
        """Whether the nodes of every axis are spaced by its length over their number, as an FFT assumes."""
        return all(axis.rule.has_equal_weights for axis in self.axes)

    @property
    def has_given_nodes(self) -> bool:
        """Whether the nodes of an axis were given instead of made by a rule."""
        return any(axis.rule.is_given for axis in self.axes)

    def resample(self, shape: tuple[int, ...]) -> "Grid":
        """Returns a grid on the same box under the same rules, with another number of nodes along each axis.

        Raises:
            TypeError: if ``shape`` is one number.
            ValueError: if ``shape`` has the wrong length, or the nodes of an axis were given.

        Example:
            >>> from jaxop import domains
            >>> domains.box((32, 48), upper=(1, 2)).resample((64, 96)).shape
            (64, 96)
        """
        if np.ndim(shape) != 1:
            raise TypeError(f"shape must hold the nodes along each of the {self.dim} axes, got {shape!r}.")
        if len(shape) != self.dim:
            raise ValueError(f"shape must have {self.dim} entries, one per axis, got {shape}.")
        axes = [make_axis(n, *axis.ends, axis.rule) for n, axis in zip(shape, self.axes, strict=True)]
        return Grid(tuple(axes))

    @property
    def is_batched(self) -> bool:
        """Whether this is a stack of grids (see `stack`), one per sample, for `jax.vmap`."""
        return self.axes[0].nodes.ndim == 2

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """Returns the sum over neighbours of difference quotients, each integrated over the cell between them."""
        total = jnp.zeros((), u.dtype)
        u, v = u.reshape(*self.shape, -1), v.reshape(*self.shape, -1)
        for k, axis in enumerate(self.axes):
            if axis.size < 2 and not (axis.rule.is_periodic or axis.rule.vanishes_at_ends):
                raise ValueError(f"the H1 inner product needs at least 2 nodes along axis {k}, got {axis.size}.")
            gaps, cells = axis.gaps()
            # a repeated node adds a cell of length 0
            density = jnp.where(gaps > 0, cells / jnp.where(gaps > 0, gaps, 1) ** 2, 0)
            product = axis.differences(jnp.moveaxis(u, k, 0)) * axis.differences(jnp.moveaxis(v, k, 0))
            energy = contract(density.astype(u.dtype), product)
            for other in self.axes[:k] + self.axes[k + 1 :]:
                energy = contract(other.weights.astype(u.dtype), known(other.weights, energy))
            total += jnp.sum(energy)
        return total
