"""Device meshes: which devices share the samples of a batch."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxop._platform import compiled_for
from jaxop._validation import check_size, check_type
from jaxop.data.source import batch_parts, is_shared
from jaxop.training.optimizer import Tree
from jaxop.training.processes import check_takes_part, evenly_chosen, own_rows, place, place_rows

Result = TypeVar("Result")

DATA = "data"
"""Name of the mesh axis over which the samples of a batch are distributed."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the device mesh.

    Attributes:
        data: devices that share the samples of a batch. None takes as many of all devices as divide the batch.
            Several processes take part with equal numbers of devices.
    """

    data: int | None = None

    def __post_init__(self):
        if self.data is not None:
            check_size(self.data, "data")

    def make(self, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Returns the mesh of the first devices, or of the first devices of every process.

        Args:
            batch_size: samples in a batch.
            devices: the devices to choose from; None means those in sight.

        Raises:
            ValueError: if there are fewer devices, or ``data`` does not divide the batch, or the processes do not
                divide it.

        Example:
            >>> from jaxop import training
            >>> dict(training.MeshConfig(data=1).make(batch_size=4).shape)
            {'data': 1}
        """
        check_size(batch_size, "batch_size")
        each = jax.process_count() if devices is None else 1
        devices = jax.devices() if devices is None else list(devices)
        count = self.data
        if count is None:
            count = max((n for n in range(each, len(devices) + 1, each) if batch_size % n == 0), default=each)
        if count > len(devices):
            raise ValueError(
                f"mesh.data must be at most the number of devices, {len(devices)} ({devices[0].platform}), got {count}."
            )
        mesh = jax.make_mesh((count,), (DATA,), axis_types=(AxisType.Auto,), devices=evenly_chosen(devices, count))
        check_divides(mesh, batch_size)
        return mesh


def check_mesh(mesh: Mesh | None) -> Mesh | None:
    """Returns the mesh with axes that the compiler partitions ("auto"), or None if it has only one device.

    Raises:
        TypeError: if it is not a mesh.
        ValueError: if an axis other than "data" has more than one device, or if the mesh leaves out some processes.
    """
    if mesh is None:
        return None
    check_type(
        mesh, "mesh", Mesh, "a jax.sharding.Mesh with an axis named 'data', such as jax.make_mesh((8,), ('data',))"
    )
    others = {name: size for name, size in mesh.shape.items() if name != DATA and size > 1}
    if others or DATA not in mesh.shape:
        raise ValueError(
            f"mesh must have an axis named {DATA!r} and, besides it, only axes of one device, got {dict(mesh.shape)}."
        )
    check_takes_part(mesh)
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
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.device_put(tree, whole) if whole.is_fully_addressable else place(tree, whole)


def on_one_device(tree: Result, mesh: Mesh | None) -> Result:
    """Returns the copy of replicated arrays on the first device of the mesh, or the arrays unchanged without one."""
    return tree if mesh is None else jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree)


def own_indices(indices: Int[np.ndarray, " b"], mesh: Mesh | None) -> Int[np.ndarray, " r"]:
    """Returns the numbers of those samples of a batch that this process reads: the samples of its own devices."""
    if mesh is None or not mesh.is_multi_process:
        return indices
    return indices[own_rows(NamedSharding(mesh, PartitionSpec(DATA)), len(indices))]


def distribute(batch: Tree, mesh: Mesh | None, count: int | None = None) -> Tree:
    """Returns a batch on the devices: the samples divided among them, and a copy of what all samples share on each.

    Args:
        batch: the batch. On several processes, the samples of `own_indices`.
        mesh: the devices.
        count: samples in the whole batch; needed on several processes only.
    """
    if mesh is None:
        return jax.device_put(batch)
    if not mesh.is_multi_process:
        return jax.device_put(batch, jax.tree.map(lambda spec: NamedSharding(mesh, spec), batch_specs(batch)))
    assert count is not None
    rows = own_rows(NamedSharding(mesh, PartitionSpec(DATA)), count)
    parts, structure = batch_parts(batch)

    def one(part: Tree, spec: PartitionSpec) -> Tree:
        sharding = NamedSharding(mesh, spec)
        if is_shared(part):
            return place(part, sharding)
        return jax.tree.map(lambda leaf: place_rows(leaf, sharding, rows, count), part)

    return jax.tree.unflatten(structure, map(one, parts, jax.tree.leaves(batch_specs(batch))))


def over_devices(function: Callable[..., Result], mesh: Mesh | None, *, mean: bool) -> Callable[..., Result]:
    """Returns a function of (batch, *replicated) that computes on every device with its own samples.

    The compiler does not partition such a function, so each device computes what one device would compute for these
    samples, and no activation travels.

    Args:
        function: a function of a batch and of arrays that are the same on all devices.
        mesh: the devices. None returns the function as it is.
        mean: True if the results are means over samples: floating-point results are then averaged over the devices,
            and others must not depend on the samples. False if the results have a leading sample axis: they stay
            where their samples are.
    """
    if mesh is None:
        return function

    def local(batch: Tree, *replicated: Tree) -> Result:
        with compiled_for(mesh.devices.flat[0].platform):
            result = function(batch, *replicated)
        return jax.tree.map(_mean, result) if mean else result

    def call(batch: Tree, *replicated: Tree) -> Result:

        whole, own = PartitionSpec(), PartitionSpec(DATA)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(batch_specs(batch), *(whole for _ in replicated)),
            out_specs=whole if mean else own,
            # With the check, gradients of replicated parameters would arrive summed over the devices already.
            check_vma=False,
        )(batch, *replicated)

    return call


def device_number(mesh: Mesh | None) -> tuple[Array, ...]:
    """Returns the number of the device inside a function of `over_devices`, or nothing without a mesh."""
    return () if mesh is None else (jax.lax.axis_index(DATA),)


def _mean(leaf: Array) -> Array:
    return jax.lax.pmean(leaf, DATA) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def batch_specs(batch: Tree) -> Tree:
    """Returns the partition of every part of a batch: samples are divided, shared domains are not."""
    parts, structure = batch_parts(batch)
    specs = [PartitionSpec() if is_shared(part) else PartitionSpec(DATA) for part in parts]
    return jax.tree.unflatten(structure, specs)
