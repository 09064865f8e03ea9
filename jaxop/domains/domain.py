"""The discretised domain: nodes, quadrature weights and the function-space geometry they carry."""

import dataclasses
import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import check_name, float_dtype
from jaxop.domains.rules import EQUAL_WEIGHT_RULES, nodes_and_weights

SPACES = ("L2", "H1")
"""Function spaces whose inner product a domain can compute."""


class Domain:
    """Nodes x_i and weights w_i of a quadrature ∫_D f(x) dx ≈ Σ_i w_i f(x_i).

    A domain travels with every sampled function, so that a sum over its nodes is an integral. Build
    one with the functions of `jaxop.domains`, which validate; the constructors of its kinds
    (`PointCloud`, `Grid`, `TriangleMesh`) do not.

    Attributes:
        points: nodes, shape (n, dim), in the units of the coordinates.
        weights: quadrature weights, shape (n,), non-negative, with Σ w_i = |D| in units of length^dim.
            A node of weight 0 (padding) takes part in no integral.

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
    def measure(self) -> Float[Array, ""]:
        """|D| = Σ_i w_i."""
        return jnp.sum(self.weights)

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
            ValueError: if ``values`` does not have one row per node.

        Example:
            >>> from jaxop import domains
            >>> domain = domains.interval(64, rule="gauss-legendre")
            >>> print(domain.integrate(domain.points**3).round(4))
            [0.25]
        """
        self._check_rows(values, "values")
        return self.weights.astype(values.dtype) @ values

    def inner(self, u: Float[Array, "n c"], v: Float[Array, "n c"], *, space: str = "L2") -> Float[Array, ""]:
        """⟨u, v⟩ = ∫ u·v dx for ``space="L2"``, plus ∫ ∇u : ∇v dx for ``space="H1"``; channels are summed.

        Gradients are taken in physical units: divided differences over the actual gaps of a grid, exact
        derivatives of the piecewise linear interpolant on a triangle mesh.

        Args:
            u: samples of the first function, shape (n, c).
            v: samples of the second function, shape (n, c).
            space: one of `SPACES`.

        Returns:
            A scalar.

        Raises:
            ValueError: if the shapes do not fit the nodes, ``space`` is unknown, or ``space="H1"`` is
                asked of scattered nodes, which carry no notion of neighbour.

        Example:
            >>> import jax.numpy as jnp
            >>> from jaxop import domains
            >>> domain = domains.interval(512)
            >>> u = jnp.sin(jnp.pi * domain.points)
            >>> print(domain.inner(u, u).round(3), domain.inner(u, u, space="H1").round(2))
            0.5 5.43
        """
        check_name(space, "space", SPACES)
        self._check_rows(u, "u")
        self._check_rows(v, "v")
        mass = jnp.sum(self.integrate(u * v))
        return mass if space == "L2" else mass + self.dirichlet(u, v)

    def dirichlet(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """∫ ∇u : ∇v dx, the H1 seminorm's inner product, summed over channels; see `inner`."""
        raise ValueError(
            "the H1 inner product needs neighbouring nodes, but this domain holds scattered nodes: build it with "
            "interval, box, from_samples or triangle_mesh, or use space='L2'."
        )

    def norm(self, u: Float[Array, "n c"], *, space: str = "L2") -> Float[Array, ""]:
        """‖u‖ = ⟨u, u⟩^½ in ``space``; its gradient at u = 0 is 0.

        Example:
            >>> import jax.numpy as jnp
            >>> from jaxop import domains
            >>> domain = domains.box((32, 32), rule="midpoint")
            >>> print(domain.norm(3 * jnp.ones((1024, 1))))
            3.0
        """
        square = self.inner(u, u, space=space)
        positive = square > 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)

    def _check_rows(self, values: Array, argument: str) -> None:
        if values.ndim != 2 or values.shape[0] != self.size:
            raise ValueError(
                f"{argument} must have shape (n, c) = ({self.size}, c) on this domain, got {values.shape}; "
                "reshape a function on a grid to one row per node, and use jax.vmap for a batch."
            )


@register
@dataclasses.dataclass(frozen=True)
class PointCloud(Domain):
    """Scattered nodes with weights and no neighbours: integrals and L2, no derivatives.

    Attributes:
        points: nodes, shape (n, dim).
        weights: quadrature weights, shape (n,).
    """

    points: Array
    weights: Array


@register
@dataclasses.dataclass(frozen=True)
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

    def dirichlet(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """∫ ∇u : ∇v dx of the piecewise linear interpolants, exact on every triangle."""
        corners = self.points[self.faces]  # (f, 3, dim)
        edges = jnp.stack(
            [corners[:, 2] - corners[:, 1], corners[:, 0] - corners[:, 2], corners[:, 1] - corners[:, 0]], 1
        )
        gram = jnp.einsum("fad,fbd->fab", edges, edges)
        area = jnp.sqrt(jnp.maximum(gram[:, 0, 0] * gram[:, 1, 1] - gram[:, 0, 1] ** 2, 0)) / 2
        stiffness = gram / (4 * jnp.where(area > 0, area, jnp.inf))[:, None, None]
        return jnp.einsum("fab,fac,fbc->", stiffness.astype(u.dtype), u[self.faces], v[self.faces])


@functools.partial(register, static=("rule", "lower", "upper"))
@dataclasses.dataclass(frozen=True)
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
        covers the strip up to the end.
        """
        if self.rule == "periodic":
            lower, upper = self.ends
            cell = jnp.full_like(self.nodes, (upper - lower) / self.size)
            return cell, cell
        if self.rule == "interior":  # functions vanish at both ends, which are not nodes
            ends = jnp.array(self.ends, self.nodes.dtype)
            gaps = jnp.diff(jnp.concatenate([ends[:1], self.nodes, ends[1:]]))
            return gaps, gaps
        gaps = jnp.diff(self.nodes)
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
        return jnp.diff(values, axis=0)


def make_axis(n: int, lower: float, upper: float, rule: str) -> Axis:
    """Axis of n nodes on (lower, upper) under a named rule, in JAX's default floating dtype."""
    nodes, weights = nodes_and_weights(n, lower, upper, rule)
    dtype = float_dtype()
    return Axis(jnp.asarray(nodes, dtype), jnp.asarray(weights, dtype), rule, float(lower), float(upper))


@register
@dataclasses.dataclass(frozen=True)
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
    def points(self) -> Float[Array, "n dim"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All nodes in row-major order, shape (n, dim)."""
        mesh = jnp.meshgrid(*(axis.nodes for axis in self.axes), indexing="ij")
        return jnp.stack(mesh, axis=-1).reshape(-1, self.dim)

    @property
    def weights(self) -> Float[Array, " n"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Products of the axes' weights, shape (n,)."""
        weights = self.axes[0].weights
        for axis in self.axes[1:]:
            weights = (weights[:, None] * axis.weights[None, :]).reshape(-1)
        return weights

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
        if len(shape) != self.dim:
            raise ValueError(f"shape must have {self.dim} entries, one per axis, got {shape}.")
        axes = [make_axis(n, *axis.ends, axis.rule) for n, axis in zip(shape, self.axes, strict=True)]
        return Grid(tuple(axes))

    @property
    def is_batched(self) -> bool:
        """Whether this is a stack of grids, one per sample, to be mapped over (see `stack`)."""
        return self.axes[0].nodes.ndim == 2

    def dirichlet(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """∫ ∇u : ∇v dx by difference quotients between neighbours, each over the cell between them."""
        total = jnp.zeros((), u.dtype)
        u, v = u.reshape(*self.shape, -1), v.reshape(*self.shape, -1)
        for k, axis in enumerate(self.axes):
            if axis.size < 2 and axis.rule not in ("interior", "periodic"):
                raise ValueError(f"the H1 inner product needs at least 2 nodes along axis {k}, got {axis.size}.")
            gaps, cells = axis.gaps()
            # repeated nodes (padding) span a cell of length zero
            density = jnp.where(gaps > 0, cells / jnp.where(gaps > 0, gaps, 1) ** 2, 0)
            product = axis.differences(jnp.moveaxis(u, k, 0)) * axis.differences(jnp.moveaxis(v, k, 0))
            energy = jnp.tensordot(density.astype(u.dtype), product, 1)
            for other in self.axes[:k] + self.axes[k + 1 :]:
                energy = jnp.tensordot(other.weights.astype(u.dtype), energy, 1)
            total += jnp.sum(energy)
        return total
