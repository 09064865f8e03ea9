"""The discretised domain: nodes, quadrature weights and the function-space geometry they carry."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxop._pytree import register
from jaxop._validation import accumulator, as_float, check_name, float_dtype, on_device
from jaxop.domains.rules import EQUAL_WEIGHT_RULES, namespace, nodes_and_weights

SPACES = ("L2", "H1")
"""Function spaces whose inner product a domain can compute."""

# matrix units would round the factors of these sums to fewer bits than the values carry
_contract = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)


def _known(weights: Float[Array, " n"], values: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """``values``, and 0 for what is not finite where the weight is 0, because 0·∞ is NaN."""
    counts = (weights > 0).reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(counts | jnp.isfinite(values), values, 0)


class Domain:
    """Nodes x_i and weights w_i of a quadrature ∫_D f(x) dx ≈ Σ_i w_i f(x_i).

    A domain travels with every sampled function, so that a sum over its nodes is an integral. Build
    one with the functions of `jaxop.domains`, which validate; the constructors of its kinds
    (`PointCloud`, `Grid`, `TriangleMesh`) do not.

    Attributes:
        points: nodes, shape (n, dim), in the units of the coordinates.
        weights: quadrature weights, shape (n,), non-negative, with Σ w_i = |D| in units of length^dim.
            A node of weight 0 (padding) takes part in no integral, inner product or norm, whatever the function is
            there, and neighbours of positive weight are neighbours across it.

    Arrays of a stack of domains (`stack`) carry a leading sample axis. Integrals accumulate in float32 at
    least and return the dtype of the values.

    Example:
        >>> from jaxop import domains
        >>> domain = domains.interval(64, upper=2.0)
        >>> float(domain.measure)
        2.0
    """

    points: Array
    weights: Array

    @property
    def dim(self) -> int:
        """Number of space dimensions."""
        return self.points.shape[-1]

    @property
    def size(self) -> int:
        """Number of nodes n."""
        return self.weights.shape[-1]

    @property
    def measure(self) -> Float[Array, "*batch"]:
        """|D| = Σ_i w_i; one number per sample for a stack of domains."""
        return jnp.sum(self.weights, axis=-1)

    @property
    def is_batched(self) -> bool:
        """Whether this is a stack of domains, one per sample, to be mapped over (see `stack`)."""
        return self.weights.ndim == 2

    def integrate(self, values: Float[Array, "n c"]) -> Float[Array, " c"]:
        """∫_D u(x) dx ≈ Σ_i w_i u(x_i), for each channel.

        Args:
            values: samples u(x_i), shape (n, c).

        Returns:
            The c integrals, in units of u times length^dim.

        Raises:
            ValueError: if ``values`` does not have one row per node, or this is a stack of domains.

        Example:
            >>> from jaxop import domains
            >>> domain = domains.interval(64, rule="gauss-legendre")
            >>> print(domain.integrate(domain.points**3).round(4))
            [0.25]
        """
        values = self._samples(values, "values")
        dtype = accumulator(values.dtype)
        return _contract(self.weights.astype(dtype), values.astype(dtype)).astype(values.dtype)

    def inner(self, u: Float[Array, "n c"], v: Float[Array, "n c"], *, space: str = "L2") -> Float[Array, ""]:
        """⟨u, v⟩ = ∫ u·v dx for ``space="L2"``, plus ∫ ∇u : ∇v dx for ``space="H1"``; channels are summed.

        Gradients are taken in physical units: divided differences over the actual gaps of a grid, exact
        derivatives of the piecewise linear interpolant on a triangle mesh. Along given nodes a cell spans the nodes
        of weight 0 inside it, so that the result is that of the axis without them: to drop the cells that touch such
        a node instead would lose the slope of linear functions. On a mesh, where no edge could take their place,
        triangles that touch a vertex of weight 0 weigh nothing.

        Args:
            u: samples of the first function, shape (n, c).
            v: samples of the second function, shape (n, c).
            space: one of `SPACES`.

        Returns:
            A scalar.

        Raises:
            ValueError: if the shapes do not fit the nodes or each other, ``space`` is unknown, or
                ``space="H1"`` is asked of nodes without neighbours: scattered ones, or a single one.

        Example:
            >>> import jax.numpy as jnp
            >>> from jaxop import domains
            >>> domain = domains.interval(512)
            >>> u = jnp.sin(jnp.pi * domain.points)
            >>> print(domain.inner(u, u).round(3), domain.inner(u, u, space="H1").round(2))
            0.5 5.43
        """
        check_name(space, "space", SPACES)
        u, v, dtype = self._pair(u, v)
        mass = jnp.sum(self.integrate(u * v))
        return (mass if space == "L2" else mass + self._energy(u, v)).astype(dtype)

    def dirichlet(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """∫ ∇u : ∇v dx, the H1 seminorm's inner product, summed over channels; see `inner`."""
        u, v, dtype = self._pair(u, v)
        return self._energy(u, v).astype(dtype)

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """`dirichlet` of checked arguments in the accumulator's dtype; kinds with neighbours override it."""
        raise ValueError(
            "the H1 inner product needs neighbouring nodes, but this domain holds scattered nodes: build it with "
            "interval, box, from_samples or triangle_mesh, or use space='L2'."
        )

    def norm(self, u: Float[Array, "n c"], *, space: str = "L2") -> Float[Array, ""]:
        """‖u‖ = ⟨u, u⟩^½ in ``space``; its gradient at u = 0 is 0.

        Taken in units of about max|u| over the nodes of positive weight, so that no square of a very large or
        very small function leaves the range of its dtype. Values on nodes of weight 0 are not looked at, and the
        gradient there is 0.

        Example:
            >>> import jax.numpy as jnp
            >>> from jaxop import domains
            >>> domain = domains.box((32, 32), rule="midpoint")
            >>> print(domain.norm(3 * jnp.ones((1024, 1))))
            3.0
        """
        u = self._samples(u, "u")
        unit = self._unit(u)
        wide = self._weighted(u).astype(unit.dtype) / unit
        square = self.inner(wide, wide, space=space)
        vanishes = square <= 0
        return (unit * jnp.where(vanishes, 0, jnp.sqrt(jnp.where(vanishes, 1, square)))).astype(u.dtype)

    def _weighted(self, values: Float[Array, "n c"]) -> Float[Array, "n c"]:
        """``values``, and 0 on nodes of weight 0."""
        return jnp.where(self.weights[:, None] > 0, values, 0)

    def _unit(self, u: Float[Array, "n c"]) -> Float[Array, ""]:
        """About max|u| over the nodes of positive weight, or 1 if that is 0 or not finite, in float32 at least.

        A power of two, by which values are divided without rounding: a reciprocal, which XLA may multiply with
        instead, would underflow to 0 for the largest numbers.
        """
        wide = self._weighted(jax.lax.stop_gradient(u)).astype(accumulator(u.dtype))
        _, exponent = jnp.frexp(jnp.max(jnp.abs(wide), initial=0))
        limit = -3 * jnp.finfo(wide.dtype).minexp // 4  # products of the unit and a weight stay in range
        return jnp.ldexp(jnp.ones((), wide.dtype), jnp.clip(exponent, -limit, limit))

    def _samples(self, values: Array, argument: str) -> Array:
        """``values`` in floating point, one row per node, or a ``ValueError``."""
        if self.is_batched:
            raise ValueError(
                "this domain is a stack of domains, one per sample; map over it: "
                "jax.vmap(lambda domain, u: domain.integrate(u))(domains, values)."
            )
        values = as_float(values, argument)
        if values.ndim != 2 or values.shape[0] != self.size:
            raise ValueError(
                f"{argument} must have shape (n, c) = ({self.size}, c) on this domain, got {values.shape}; "
                "reshape a function on a grid to one row per node, and use jax.vmap for a batch."
            )
        return _known(self.weights, values)

    def _pair(self, u: Array, v: Array) -> tuple[Array, Array, np.dtype]:
        """Both arguments of an inner product in the accumulator's dtype, and the dtype of its result."""
        u, v = self._samples(u, "u"), self._samples(v, "v")
        if u.shape != v.shape:
            raise ValueError(f"u and v must have the same channels, got shapes {u.shape} and {v.shape}.")
        dtype = jnp.promote_types(u.dtype, v.dtype)
        return u.astype(accumulator(dtype)), v.astype(accumulator(dtype)), dtype


class Decomposed:
    """Base class of a domain that was cut into subdomains: of `jaxop.schwarz.Decomposition`.

    It has a domain and is not one. Operators whose layers work on subdomains accept ``Domain | Decomposed``, and sets
    of samples carry either; both reach the nodes by `as_domain`.

    Attributes:
        domain: the whole domain.
    """

    domain: Domain

    @property
    def dim(self) -> int:
        """Number of space dimensions of the domain."""
        return self.domain.dim

    @property
    def size(self) -> int:
        """Number of nodes n of the domain."""
        return self.domain.size

    @property
    def is_batched(self) -> bool:
        """Whether this is a stack of decompositions, one per sample."""
        return self.domain.is_batched


def as_domain(value: Domain | Decomposed, argument: str) -> Domain:
    """A domain, or the domain of a decomposition.

    Raises:
        TypeError: for anything else.
    """
    return check_domain(value.domain if isinstance(value, Decomposed) else value, argument)


def check_domain(value: Any, argument: str) -> Domain:
    """``value``, or a ``TypeError`` unless it is a `Domain`."""
    refuse_decomposed(value, argument)
    if not isinstance(value, Domain):
        raise TypeError(
            f"{argument} must be a Domain, got {type(value).__name__}; build one, as in domains.interval(64)."
        )
    return value


def refuse_decomposed(value: Any, argument: str) -> None:
    """Raises ``TypeError`` for a decomposition, and names the domain that it holds."""
    if isinstance(value, Decomposed):
        raise TypeError(
            f"{argument} must be a Domain, got {type(value).__name__}; pass the domain that was decomposed, "
            "decomposition.domain."
        )


@register
@dataclasses.dataclass(frozen=True, eq=False)
class PointCloud(Domain):
    """Scattered nodes with weights and no neighbours: integrals and L2, no derivatives.

    Attributes:
        points: nodes, shape (n, dim).
        weights: quadrature weights, shape (n,).
    """

    points: Array
    weights: Array


@register
@dataclasses.dataclass(frozen=True, eq=False)
class TriangleMesh(Domain):
    """Vertices of a triangulated surface in 2 or 3 dimensions; a vertex weighs a third of its triangles.

    Attributes:
        points: vertices, shape (n, dim) with dim 2 or 3.
        weights: a third of the areas of the incident triangles, shape (n,).
        faces: vertex indices of the triangles, shape (f, 3).
    """

    points: Array
    weights: Array
    faces: Array

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """Piecewise linear: |T| ∇u·∇v = (δ_a u b − δ_b u a)·(δ_a v b − δ_b v a) / 4|T|, edges a, b of T."""
        u, v = self._weighted(u), self._weighted(v)
        first, second = (edge.astype(u.dtype) for edge in triangle_edges(self.points, self.faces))
        area = triangle_areas(first, second)

        def rotated_gradient(values: Array) -> Array:
            corner, along_first, along_second = (values[self.faces[:, k], :, None] for k in range(3))
            return (along_first - corner) * second[:, None, :] - (along_second - corner) * first[:, None, :]

        product = jnp.sum(rotated_gradient(u) * rotated_gradient(v), axis=(1, 2))
        counts = (area > 0) & jnp.all(self.weights[self.faces] > 0, axis=1)
        return _contract(1 / (4 * jnp.where(counts, area, jnp.inf)), product)


def triangle_edges(
    points: Float[Array | np.ndarray, "n dim"], faces: Int[Array | np.ndarray, "f 3"]
) -> tuple[Float[Array | np.ndarray, "f dim"], Float[Array | np.ndarray, "f dim"]]:
    """The two edges of every triangle that leave its first corner."""
    corner = points[faces[:, 0]]
    return points[faces[:, 1]] - corner, points[faces[:, 2]] - corner


def triangle_areas(
    first: Float[Array | np.ndarray, "f dim"], second: Float[Array | np.ndarray, "f dim"]
) -> Float[Array | np.ndarray, " f"]:
    """½|a × b| of the edges a, b of every triangle; its gradient at a degenerate triangle is finite."""
    xp = namespace(first, second)
    a, b = (xp.pad(edge, [(0, 0), (0, 3 - edge.shape[-1])]) for edge in (first, second))
    normal = xp.cross(a, b)
    return xp.hypot(xp.hypot(normal[:, 0], normal[:, 1]), normal[:, 2]) / 2


@functools.partial(register, static=("rule", "lower", "upper"))
@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a grid: its nodes, weights and the rule they come from.

    Attributes:
        nodes: increasing coordinates, shape (n,).
        weights: one-dimensional quadrature weights, shape (n,), in units of length.
        rule: name of the rule (static); ``"samples"`` for given nodes.
        lower: left end of the interval (static); None for given nodes, whose interval they span.
        upper: right end of the interval (static).
    """

    nodes: Array
    weights: Array
    rule: str = "samples"
    lower: float | None = None
    upper: float | None = None

    @property
    def size(self) -> int:
        """Number of nodes."""
        return self.nodes.shape[-1]

    @property
    def ends(self) -> tuple[float, float]:
        """The interval of a named rule; given nodes have none but the one they span."""
        if self.lower is None or self.upper is None:
            raise ValueError("given nodes follow no rule on a fixed interval; call from_samples with the new nodes.")
        return self.lower, self.upper

    def gaps(self) -> tuple[Array, Array]:
        """Length of every difference quotient and the length of the cell that it stands for.

        The cells tile the interval: on rules without nodes at the ends, the outermost quotient also
        covers the strip up to the end. Along given nodes a cell spans the nodes of weight 0 inside it (the
        nodes of named rules have positive weights).
        """
        if self.rule == "periodic":
            lower, upper = self.ends
            cell = jnp.full_like(self.nodes, (upper - lower) / self.size)
            return cell, cell
        if self.rule == "interior":  # functions vanish at both ends, which are not nodes
            ends = jnp.array(self.ends, self.nodes.dtype)
            gaps = jnp.diff(jnp.concatenate([ends[:1], self.nodes, ends[1:]]))
            return gaps, gaps
        gaps = jnp.diff(self._carried(self.nodes))
        if self.rule in ("midpoint", "gauss-legendre"):
            lower, upper = self.ends
            return gaps, gaps.at[0].add(self.nodes[0] - lower).at[-1].add(upper - self.nodes[-1])
        return gaps, gaps

    def differences(self, values: Array) -> Array:
        """Differences of neighbouring values along the first array axis, in the order of `gaps`."""
        if self.rule == "periodic":
            return jnp.roll(values, -1, axis=0) - values
        if self.rule == "interior":
            values = jnp.pad(values, [(1, 1)] + [(0, 0)] * (values.ndim - 1))
        return jnp.diff(self._carried(values), axis=0)

    def _carried(self, values: Array) -> Array:
        """Along given nodes, what the last node of positive weight has: a node of weight 0 adds a cell of length 0."""
        if self.rule != "samples":
            return values
        counts = self.weights > 0
        last = jax.lax.cummax(jnp.where(counts, jnp.arange(self.size), jnp.argmax(counts)))
        return values[last]


def make_axis(n: int, lower: float, upper: float, rule: str) -> Axis:
    """Axis of n nodes on (lower, upper) under a named rule, in JAX's default floating dtype."""
    nodes, weights = nodes_and_weights(n, lower, upper, rule)
    dtype = float_dtype()
    if (np.diff(nodes.astype(dtype)) <= 0).any():
        raise ValueError(
            f"lower={lower} and upper={upper} are too close for {n} distinct nodes in {dtype}; "
            "subtract an origin, or enable x64."
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
    """Tensor product of one-dimensional rules; nodes in row-major order, so a function reshapes to ``shape``.

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
        return tuple(axis.rule for axis in self.axes)

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
        """Whether every axis is equally spaced by its length over its node count, as an FFT assumes."""
        return all(rule in EQUAL_WEIGHT_RULES for rule in self.rules)

    def resample(self, shape: tuple[int, ...]) -> "Grid":
        """The same box under the same rules with another number of nodes along each axis.

        Raises:
            ValueError: if ``shape`` has the wrong length or an axis holds given nodes, which follow no rule.

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
        """Whether this is a stack of grids, one per sample, to be mapped over (see `stack`)."""
        return self.axes[0].nodes.ndim == 2

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """Difference quotients between neighbours, each over the cell between them."""
        total = jnp.zeros((), u.dtype)
        u, v = u.reshape(*self.shape, -1), v.reshape(*self.shape, -1)
        for k, axis in enumerate(self.axes):
            if axis.size < 2 and axis.rule not in ("interior", "periodic"):
                raise ValueError(f"the H1 inner product needs at least 2 nodes along axis {k}, got {axis.size}.")
            gaps, cells = axis.gaps()
            # a repeated node adds a cell of length 0
            density = jnp.where(gaps > 0, cells / jnp.where(gaps > 0, gaps, 1) ** 2, 0)
            product = axis.differences(jnp.moveaxis(u, k, 0)) * axis.differences(jnp.moveaxis(v, k, 0))
            energy = _contract(density.astype(u.dtype), product)
            for other in self.axes[:k] + self.axes[k + 1 :]:
                energy = _contract(other.weights.astype(u.dtype), _known(other.weights, energy))
            total += jnp.sum(energy)
        return total
