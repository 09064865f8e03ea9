"""Domains whose nodes the devices of a mapped axis share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import check_size
from jaxop.domains.domain import Domain, check_domain
from jaxop.domains.grid import Grid
from jaxop.domains.rules import Rule


@functools.partial(register, static=("axis_name",))
@dataclasses.dataclass(frozen=True, eq=False)
class Shard(Domain):
    """One device's nodes of a domain whose nodes are divided among the devices of an axis of `jax.shard_map`.

    Inside the map it is a `Domain` with the nodes of this device, but its integrals, inner products and norms are those
    of the whole domain, the same on all devices: ∫_D u dx ≈ Σ_devices Σ_i w_i u(x_i). Outside the map it holds the
    nodes of all devices, to be divided along their axis. `shard` builds it.

    Attributes:
        points: nodes, (n, dim).
        weights: quadrature weights, (n,).
        axis_name: the mapped axis.

    Example:
        >>> import jax
        >>> from jax.sharding import Mesh, PartitionSpec
        >>> from jaxop import domains
        >>> mesh = Mesh(jax.devices(), ("domain",))
        >>> nodes = domains.shard(domains.interval(64, upper=2.0), jax.device_count())
        >>> specs = {"in_specs": PartitionSpec("domain"), "out_specs": PartitionSpec()}
        >>> measure = jax.shard_map(lambda nodes: nodes.measure, mesh=mesh, **specs)
        >>> float(measure(nodes))
        2.0
    """

    points: Array
    weights: Array
    axis_name: str

    @property
    def measure(self) -> Float[Array, "*batch"]:
        """|D| of the whole domain."""
        return jax.lax.psum(super().measure, self.axis_name)

    def _integral(self, values: Float[Array, "n c"]) -> Float[Array, " c"]:
        return jax.lax.psum(super()._integral(values), self.axis_name)

    def _largest(self, values: Float[Array, "n c"]) -> Float[Array, ""]:
        return jax.lax.pmax(super()._largest(values), self.axis_name)

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        raise ValueError(
            "the H1 inner product needs neighbouring nodes, but other devices have neighbours of the nodes of this "
            "device: use space='L2' (loss='l2' in training) if devices share the nodes of a function."
        )


@functools.partial(register, static=("axis_name", "shape", "rules"))
@dataclasses.dataclass(frozen=True, eq=False)
class GridShard(Shard):
    """The nodes of one device, of a grid: a `Shard` that knows the whole grid.

    The nodes of the grid are in row-major order, and each of p devices has ⌈n/p⌉ of them, one after the other. `shard`
    of a `Grid` builds it.

    Attributes:
        points: nodes, (n, dim).
        weights: quadrature weights, (n,).
        axis_name: the mapped axis.
        shape: nodes of the whole grid along each axis (static).
        rules: the rule along each axis (static).

    Example:
        >>> from jaxop import domains
        >>> nodes = domains.shard(domains.box((4, 6), rule="midpoint"), 2)
        >>> nodes.shape, [rule.name for rule in nodes.rules]
        ((4, 6), ['midpoint', 'midpoint'])
    """

    shape: tuple[int, ...]
    rules: tuple[Rule, ...]


def shard(domain: Domain, count: int, axis_name: str = "domain") -> Shard:
    """Returns a domain whose nodes ``count`` devices can share: the last node is repeated with weight 0 where needed.

    Args:
        domain: any domain, or a stack of domains.
        count: number of devices.
        axis_name: the mapped axis of the devices.

    Returns:
        A `Shard` with the nodes of all devices, for a grid a `GridShard`. Divide it and the values on its nodes by
        ``PartitionSpec(axis_name)``, after repeating the last value as often.

    Raises:
        TypeError: if ``domain`` is not a `Domain`, or ``count`` is not an integer.
        ValueError: if there are fewer nodes than devices, or ``count`` is below 1.

    Cost: one copy of nodes and weights.

    Example:
        >>> from jaxop import domains
        >>> nodes = domains.shard(domains.interval(6, rule="midpoint"), 4)
        >>> nodes.size, nodes.weights[-2:].tolist()
        (8, [0.0, 0.0])
    """
    check_domain(domain, "domain")
    check_size(count, "count")
    if domain.size < count:
        raise ValueError(
            f"domain has {domain.size} nodes for {count} devices that share them; use at most {domain.size} devices."
        )
    extra = -domain.size % count
    points = jax.vmap(lambda one: one.points)(domain) if domain.is_batched else domain.points
    samples = [(0, 0)] * domain.is_batched
    points = jnp.pad(points, [*samples, (0, extra), (0, 0)], mode="edge")
    weights = jnp.pad(domain.weights, [*samples, (0, extra)])
    if isinstance(domain, Grid):
        return GridShard(points, weights, axis_name, domain.shape, tuple(axis.rule for axis in domain.axes))
    return Shard(points, weights, axis_name)


def shard_axis(domain: object) -> str | None:
    """Returns the mapped axis whose devices share the nodes of a domain, or None if all nodes are here."""
    return domain.axis_name if isinstance(domain, Shard) else None
