"""Domains: nodes, quadrature weights, and the inner products of functions on them."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import accumulator, as_float, check_name

SPACES = ("L2", "H1")
"""Function spaces whose inner product a domain can compute."""

# the precision of matrix units is below that of the values
contract = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)


def known(weights: Float[Array, " n"], values: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Returns ``values`` with 0 for infinities and NaN at nodes of weight 0, because 0·∞ is NaN."""
    counts = (weights > 0).reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(counts | jnp.isfinite(values), values, 0)


class Domain:
    """Nodes x_i and weights w_i of a quadrature ∫_D f(x) dx ≈ Σ_i w_i f(x_i).

    A domain travels with every sampled function, so that a sum over its nodes is an integral. Build domains with
    the functions of `jaxop.domains`, which check their arguments. The constructors of the classes do
    not check them.

    Attributes:
        points: nodes, shape (n, dim), in the units of the coordinates.
        weights: quadrature weights, shape (n,), non-negative, with Σ w_i = |D| in units of length^dim.
            A node of weight 0 (padding) does not contribute to integrals, inner products and norms. The nodes of
            positive weight on both sides of it are neighbours.

    The arrays of a stack of domains (`stack`) have a leading sample axis. Integrals accumulate in float32 or wider
    and return the dtype of the values.

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
        """|D| = Σ_i w_i, one number for each sample of a stack of domains."""
        return jnp.sum(self.weights, axis=-1)

    @property
    def is_batched(self) -> bool:
        """Whether this is a stack of domains (see `stack`), one per sample, for `jax.vmap`."""
        return self.weights.ndim == 2

    def integrate(self, values: Float[Array, "n c"]) -> Float[Array, " c"]:
        """∫_D u(x) dx ≈ Σ_i w_i u(x_i), for each channel.

        Args:
            values: samples u(x_i), shape (n, c).

        Returns:
            The c integrals, in units of u times length^dim.

        Raises:
            ValueError: if ``values`` does not have one row per node, or if this is a stack of domains.

        Example:
            >>> from jaxop import domains
            >>> domain = domains.interval(64, rule="gauss-legendre")
            >>> print(domain.integrate(domain.points**3).round(4))
            [0.25]
        """
        values = self._samples(values, "values")
        dtype = accumulator(values.dtype)
        return self._integral(values.astype(dtype)).astype(values.dtype)

    def _integral(self, values: Float[Array, "n c"]) -> Float[Array, " c"]:
        """Returns `integrate` of values in the accumulator's dtype; nodes of other devices override it."""
        return contract(self.weights.astype(values.dtype), values)

    def inner(self, u: Float[Array, "n c"], v: Float[Array, "n c"], *, space: str = "L2") -> Float[Array, ""]:
        """⟨u, v⟩ = ∫ u·v dx for ``space="L2"``, plus ∫ ∇u : ∇v dx for ``space="H1"``; channels are summed.

        Gradients are in physical units. On a grid they are divided differences over the actual gaps, on a mesh
        the exact derivatives of the piecewise linear interpolant, along the curve or surface if it is one. Along given
        nodes a cell spans the nodes of weight 0 inside it, so that they do not change the result. On a mesh an edge,
        triangle or tetrahedron that touches a vertex of weight 0 does not contribute.

        Args:
            u: samples of the first function, shape (n, c).
            v: samples of the second function, shape (n, c).
            space: one of `SPACES`.

        Returns:
            A scalar.

        Raises:
            ValueError: if the shapes do not fit the nodes or each other, if ``space`` is unknown, or if ``space="H1"``
                and the nodes have no neighbours, because they are scattered or there is only one.

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
        """Returns `dirichlet` of checked arguments in the accumulator's dtype; kinds with neighbours override it."""
        raise ValueError(
            "the H1 inner product needs neighbouring nodes, but the nodes of this domain are scattered: build it with "
            "interval, box, from_samples, triangle_mesh or from_points, or use space='L2'."
        )

    def norm(self, u: Float[Array, "n c"], *, space: str = "L2") -> Float[Array, ""]:
        """‖u‖ = ⟨u, u⟩^½ in ``space``; its gradient at u = 0 is 0.

        The sum is taken in units of about max|u| over the nodes of positive weight, so that the squares of very large
        or very small values stay in the range of their dtype. Nodes of weight 0 do not contribute, and the gradient
        there is 0.

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
        """Returns ``values`` with 0 on nodes of weight 0."""
        return jnp.where(self.weights[:, None] > 0, values, 0)

    def _unit(self, u: Float[Array, "n c"]) -> Float[Array, ""]:
        """Returns about max|u| over the nodes of positive weight in float32 or wider, or 1 if that is 0 or not finite.

        The result is a power of two, so that dividing by it does not round. It is bounded, because XLA may multiply
        by its reciprocal instead, which must not underflow to 0.
        """
        wide = self._weighted(jax.lax.stop_gradient(u)).astype(accumulator(u.dtype))
        _, exponent = jnp.frexp(self._largest(wide))
        limit = -3 * jnp.finfo(wide.dtype).minexp // 4  # products of the unit and a weight stay in range
        return jnp.ldexp(jnp.ones((), wide.dtype), jnp.clip(exponent, -limit, limit))

    def _largest(self, values: Float[Array, "n c"]) -> Float[Array, ""]:
        """Returns max|values|; nodes of other devices override it."""
        return jnp.max(jnp.abs(values), initial=0)

    def _samples(self, values: Array, argument: str) -> Array:
        """Returns ``values`` in floating point; raises ``ValueError`` unless there is one row per node."""
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
        return known(self.weights, values)

    def _pair(self, u: Array, v: Array) -> tuple[Array, Array, np.dtype]:
        """Returns both arguments of an inner product in the accumulator's dtype, and the dtype of its result."""
        u, v = self._samples(u, "u"), self._samples(v, "v")
        if u.shape != v.shape:
            raise ValueError(f"u and v must have the same channels, got shapes {u.shape} and {v.shape}.")
        dtype = jnp.promote_types(u.dtype, v.dtype)
        return u.astype(accumulator(dtype)), v.astype(accumulator(dtype)), dtype


class Decomposed:
    """Base class of domains that are cut into subdomains, such as `jaxop.schwarz.Decomposition`.

    It has a domain but is not a `Domain`. Operators whose layers work on subdomains accept ``Domain | Decomposed``, and
    sets of samples hold either. Both reach the nodes through `as_domain`.

    Attributes:
        domain: the whole domain.
    """

    domain: Domain

    def __getattr__(self, name: str) -> object:
        # attributes that earlier versions inherited from Domain
        missing = AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name.startswith("_") or name == "domain":
            raise missing
        try:
            value = getattr(self.domain, name)
        except AttributeError:
            raise missing from None
        warnings.warn(
            f"a {type(self).__name__} has a domain but is not one: use decomposition.domain.{name}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return value

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


def mean_over(
    values: Float[Array, "n c"] | Float[Array, "b n c"], domain: Domain
) -> Float[Array, " c"] | Float[Array, "b c"]:
    """1/|D| ∫_D u dx of every channel; of a batch on one domain or on one domain per sample."""
    if values.ndim == 3:
        return jax.vmap(mean_over, (0, 0 if domain.is_batched else None))(values, domain)
    return domain.integrate(values) / domain.measure.astype(values.dtype)


def as_domain(value: Domain | Decomposed, argument: str) -> Domain:
    """Returns a domain, or the domain of a decomposition.

    Raises:
        TypeError: if ``value`` is neither.
    """
    return check_domain(value.domain if isinstance(value, Decomposed) else value, argument)


def bounding_box(domain: Domain) -> Float[np.ndarray, "2 dim"]:
    """Returns the lower and the upper corner of the box around the nodes of positive weight, on the host."""
    with jax.ensure_compile_time_eval():  # a known domain may be part of a program
        points, weights = np.asarray(domain.points), np.asarray(domain.weights)
    nodes = points[weights > 0]
    return np.stack([nodes.min(axis=0), nodes.max(axis=0)])


def check_domain(value: object, argument: str) -> Domain:
    """Returns ``value``; raises ``TypeError`` if it is not a `Domain`."""
    refuse_decomposed(value, argument)
    if not isinstance(value, Domain):
        raise TypeError(
            f"{argument} must be a Domain, got {type(value).__name__}; build one, for example domains.interval(64)."
        )
    return value


def refuse_decomposed(value: object, argument: str) -> None:
    """Raises ``TypeError`` if ``value`` is a decomposition, and names the domain that it holds."""
    if isinstance(value, Decomposed):
        raise TypeError(
            f"{argument} must be a Domain, got {type(value).__name__}; pass the domain that was decomposed, "
            "decomposition.domain."
        )


@register
@dataclasses.dataclass(frozen=True, eq=False)
class PointCloud(Domain):
    """Scattered nodes with weights but without neighbours: they have integrals and L2 norms, but no derivatives.

    Attributes:
        points: nodes, shape (n, dim).
        weights: quadrature weights, shape (n,).
    """

    points: Array
    weights: Array
