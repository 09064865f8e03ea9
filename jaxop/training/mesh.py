"""Device meshes: which devices share the samples of a batch and the nodes of a function."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxop._validation import check_size, check_type
from jaxop.data import Batch
from jaxop.data.source import batch_parts, is_shared
from jaxop.domains import Shard
from jaxop.training.nodes import DOMAIN, node_shares, node_specs, share_nodes
from jaxop.training.optimizer import Tree

Result = TypeVar("Result")

DATA = "data"
"""Name of the mesh axis over which the samples of a batch are distributed."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the device mesh.

    Attributes:
        data: devices that share the samples of a batch. None takes as many of all devices as divide the batch.
        domain: devices that share the nodes of each function, for functions that are too large for one. The model must
            be a `jaxop.operators.TransformerNeuralOperator`, or one of your own with ``shares_nodes = True``.
    """

    data: int | None = None
    domain: int = 1

    def __post_init__(self):
        if self.data is not None:
            check_size(self.data, "data")
        check_size(self.domain, "domain")

    def make(self, batch_size: int) -> Mesh:
        """Returns the mesh of the first devices in sight.

        Args:
            batch_size: samples in a batch.

        Raises:
            ValueError: if there are fewer than data × domain devices, or ``data`` does not divide the batch.

        Example:
            >>> from jaxop import training
            >>> dict(training.MeshConfig(data=1).make(batch_size=4).shape)
            {'data': 1}
        """
        check_size(batch_size, "batch_size")
        devices = jax.devices()
        count = self.data
        if count is None:
            count = max(n for n in range(1, max(1, len(devices) // self.domain) + 1) if batch_size % n == 0)
        if count > len(devices):
            raise ValueError(
                f"mesh.data must be at most the number of devices, {len(devices)} ({devices[0].platform}), got {count}."
            )
        total = count * self.domain
        if total > len(devices):
            raise ValueError(
                f"mesh.data={count} times mesh.domain={self.domain} must be at most the number of devices, "
                f"{len(devices)} ({devices[0].platform}), got {total}."
            )
        sizes = {DATA: count} | ({DOMAIN: self.domain} if self.domain > 1 else {})
        types = (AxisType.Auto,) * len(sizes)
        mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices[:total])
        check_divides(mesh, batch_size)
        return mesh


def check_mesh(mesh: Mesh | None) -> Mesh | None:
    """Returns the mesh with axes that the compiler partitions ("auto"), or None if it has only one device.

    Raises:
        TypeError: if it is not a mesh.
        ValueError: if an axis other than "data" and "domain" has more than one device.
    """
    if mesh is None:
        return None
    check_type(
        mesh, "mesh", Mesh, "a jax.sharding.Mesh with an axis named 'data', such as jax.make_mesh((8,), ('data',))"
    )
    others = {name: size for name, size in mesh.shape.items() if name not in (DATA, DOMAIN) and size > 1}
    if others or DATA not in mesh.shape:
        raise ValueError(
            f"mesh must have an axis named {DATA!r} and, besides it and {DOMAIN!r}, only axes of one device, got "
            f"{dict(mesh.shape)}."
        )
    return Mesh(mesh.devices, mesh.axis_names) if mesh.size > 1 else None


def check_divides(mesh: Mesh | None, batch_size: int, accumulate: int = 1) -> None:
    """Raises ``ValueError`` if the devices do not get equal numbers of samples of every micro-batch."""
    count = 1 if mesh is None else mesh.shape[DATA]
    if batch_size % (count * accumulate):
        pieces = f" in {accumulate} micro-batches" if accumulate > 1 else ""
        raise ValueError(
            f"batch_size={batch_size}{pieces} must be divisible by the {count} devices of the mesh axis {DATA!r}; take "
            f"a multiple of {count * accumulate}, or another number of devices."
        )


def replicate(tree: Result, mesh: Mesh | None) -> Result:
    """Returns the arrays with a copy on every device of the mesh, or unchanged without one."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def on_one_device(tree: Result, mesh: Mesh | None) -> Result:
    """Returns the copy of replicated arrays on the first device of the mesh, or the arrays unchanged without one."""
    return tree if mesh is None else jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree)


def distribute(batch: Tree, mesh: Mesh | None) -> Tree:
    """Returns a batch on the devices: the samples divided among them, and a copy of what all samples share on each.

    If the mesh has an axis "domain", the nodes of every function are divided too; see `share_nodes`.
    """
    if mesh is None:
        return jax.device_put(batch)
    batch = share_nodes(batch, mesh)
    return jax.device_put(batch, jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(batch)))


def over_devices(
    function: Callable[..., Result], mesh: Mesh | None, *, mean: bool, nodes: bool = False
) -> Callable[..., Result]:
    """Returns a function of (batch, *replicated) that computes on every device with its own samples and nodes.

    The compiler does not partition such a function, so each device computes what one device would compute for these
    samples, and no activation travels.

    Args:
        function: a function of a batch and of arrays that are the same on all devices.
        mesh: the devices. None returns the function as it is.
        mean: True if the results are means over samples: floating-point results are then averaged over the devices,
            and others must not depend on the samples. False if the results have a leading sample axis: they stay
            where their samples are.
        nodes: True if results that are not means have a second axis of nodes, which the devices of "domain" share.
    """
    if mesh is None:
        return function

    shares = node_shares(mesh)
    # Without the check below, the transpose of a sum over devices is that sum. The p devices of "domain" have the same
    # loss, so they find parts of the gradient of p times the loss, and the mean of these parts is its gradient.
    axes = DATA if shares == 1 else (DATA, DOMAIN)

    def local(batch: Tree, *replicated: Tree) -> Result:
        result = function(batch, *replicated)
        return jax.tree.map(functools.partial(_mean, axes), result) if mean else result

    def call(batch: Tree, *replicated: Tree) -> Result:
        batch = share_nodes(batch, mesh)
        whole, own = PartitionSpec(), PartitionSpec(DATA, DOMAIN) if nodes and shares > 1 else PartitionSpec(DATA)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(_specs(batch), *(whole for _ in replicated)),
            out_specs=whole if mean else own,
            # With the check, gradients of replicated parameters would arrive summed over the devices already.
            check_vma=False,
        )(batch, *replicated)

    return call


def device_number(mesh: Mesh | None) -> tuple[Array, ...]:
    """Returns the number of the device inside a function of `over_devices`, or nothing without a mesh."""
    if mesh is None:
        return ()
    own = jax.lax.axis_index(DATA)
    return (own,) if node_shares(mesh) == 1 else (own, jax.lax.axis_index(DOMAIN))


def _mean(axes: str | tuple[str, ...], leaf: Array) -> Array:
    return jax.lax.pmean(leaf, axes) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def _specs(batch: Tree) -> Tree:
    """Returns the partition of every part of a batch: samples are divided, shared domains are not."""
    if isinstance(batch, Batch) and isinstance(batch.domain, Shard):
        return node_specs(batch, PartitionSpec(DATA))
    parts, structure = batch_parts(batch)
    specs = [PartitionSpec() if is_shared(part) else PartitionSpec(DATA) for part in parts]
    return jax.tree.unflatten(structure, specs)
