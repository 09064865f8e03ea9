"""Device meshes: which devices share the samples of a batch and the copies of the state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxop._validation import check_size, check_type
from jaxop.data.source import batch_parts, is_shared
from jaxop.training.optimizer import Tree
from jaxop.training.shards import MODEL, shards, specs_of, whole

Result = TypeVar("Result")

DATA = "data"
"""Name of the mesh axis whose devices have their own samples and whole copies of the state."""

SAMPLES = (DATA, MODEL)
"""Names of the mesh axes over which the samples of a batch are distributed."""

_COPIED = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the device mesh: data × model devices share the samples of a batch.

    The parameters, their averages and the moments of the optimiser have ``data`` copies, and each copy is divided among
    ``model`` devices, which gather the parameters that they compute with. One copy for all devices
    (``data=1``) takes the least memory; one for each (``model=1``) sends the fewest messages.

    Attributes:
        data: copies of the state. None takes as many of all devices as divide the batch.
        model: devices that share one copy.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if a number is below 1.
    """

    data: int | None = None
    model: int = 1

    def __post_init__(self):
        if self.data is not None:
            check_size(self.data, "data")
        check_size(self.model, "model")

    def make(self, batch_size: int) -> Mesh:
        """Returns the mesh of the first devices in sight, with the axis "data" and, if ``model`` > 1, "model".

        Args:
            batch_size: samples in a batch.

        Raises:
            ValueError: if there are fewer devices, or they do not divide the batch.

        Example:
            >>> from jaxop import training
            >>> dict(training.MeshConfig(data=1).make(batch_size=4).shape)
            {'data': 1}
        """
        check_size(batch_size, "batch_size")
        devices = jax.devices()
        found = f"the number of devices, {len(devices)} ({devices[0].platform})"
        if self.model > len(devices):
            raise ValueError(f"mesh.model must be at most {found}, got {self.model}.")
        count = self.data
        if count is None:
            fitting = [n for n in range(1, len(devices) // self.model + 1) if batch_size % (n * self.model) == 0]
            count = max(fitting, default=1)
        total = count * self.model
        if total > len(devices) and self.model == 1:
            raise ValueError(f"mesh.data must be at most {found}, got {count}.")
        if total > len(devices):
            raise ValueError(
                f"mesh.data={count} times mesh.model={self.model} must be at most {found}, got {total}; take "
                f"mesh.data={len(devices) // self.model}, or leave it out."
            )
        sizes = {DATA: count} | ({MODEL: self.model} if self.model > 1 else {})
        mesh = jax.make_mesh(
            tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices[:total]
        )
        check_divides(mesh, batch_size)
        return mesh

    def one_copy(self) -> Mesh | None:
        """Returns the mesh of the devices that share one copy of the state, or None if that is one device."""
        return None if self.model == 1 else MeshConfig(1, self.model).make(self.model)


def format_mesh(mesh: Mesh) -> str:
    """Returns the axes of a mesh and their sizes: "data 4 × model 2"."""
    return " × ".join(f"{name} {size}" for name, size in mesh.shape.items())


def check_mesh(mesh: Mesh | None) -> Mesh | None:
    """Returns the mesh with axes that the compiler partitions ("auto"), or None if it has only one device.

    Raises:
        TypeError: if it is not a mesh.
        ValueError: if an axis other than "data" and "model" has more than one device, or the call is made inside
            `jax.set_mesh` of a mesh with explicit axes.
    """
    if mesh is None:
        return None
    check_type(
        mesh, "mesh", Mesh, "a jax.sharding.Mesh with an axis named 'data', such as jax.make_mesh((8,), ('data',))"
    )
    others = {name: size for name, size in mesh.shape.items() if name not in SAMPLES and size > 1}
    if others or DATA not in mesh.shape:
        raise ValueError(
            f"mesh must have an axis named {DATA!r} and, besides it and {MODEL!r}, only axes of one device, got "
            f"{dict(mesh.shape)}."
        )
    if mesh.size == 1:
        return None
    context = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in context.axis_types:
        raise ValueError(
            f"mesh must be given outside of jax.set_mesh, whose mesh {dict(context.shape)} has explicit axes; training "
            "and evaluation divide their arrays themselves."
        )
    return Mesh(mesh.devices, mesh.axis_names)


def check_divides(mesh: Mesh | None, batch_size: int, accumulate: int = 1) -> None:
    """Raises ``ValueError`` if the devices do not get equal numbers of samples of every micro-batch."""
    count = 1 if mesh is None else mesh.size
    if batch_size % (count * accumulate):
        pieces = f" in {accumulate} micro-batches" if accumulate > 1 else ""
        axes = f"axis {DATA!r}" if shards(mesh) == 1 else f"axes {DATA!r} and {MODEL!r}"
        raise ValueError(
            f"batch_size={batch_size}{pieces} must be divisible by the {count} devices of the mesh {axes}; take "
            f"a multiple of {count * accumulate}, or another number of devices."
        )


def replicate(tree: Result, mesh: Mesh | None) -> Result:
    """Returns the arrays with a copy on every device of the mesh, or unchanged without one."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, _COPIED))


def on_one_device(tree: Result, mesh: Mesh | None) -> Result:
    """Returns the copy of replicated arrays on the first device of the mesh, or unchanged if any of them is divided."""
    leaves = jax.tree.leaves(tree)
    if mesh is None or not all(leaf.is_fully_replicated for leaf in leaves):
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree)


def distribute(batch: Tree, mesh: Mesh | None) -> Tree:
    """Returns a batch on the devices: the samples divided among them, and a copy of what all samples share on each."""
    if mesh is None:
        return jax.device_put(batch)
    return jax.device_put(batch, jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(batch, mesh)))


def over_devices(
    function: Callable[..., Result], mesh: Mesh | None, *, mean: bool, results: Tree = _COPIED
) -> Callable[..., Result]:
    """Returns a function of (batch, params, *replicated) that computes on every device with its own samples.

    The compiler does not partition such a function, so each device computes what one device would compute for these
    samples, and no activation travels.

    Args:
        function: a function of a batch, of parameters, and of arrays that are the same on all devices.
        mesh: the devices. None returns the function as it is.
        mean: True if the results are means over samples: floating-point results are then averaged over the devices,
            and others must not depend on the samples. The function gets the shards of the parameters that the device
            has, see `jaxop.training.shards.on_shards`. False if the results have a leading sample axis: they stay
            where their samples are, and the function gets whole parameters.
        results: how means are divided, a prefix of their tree: gradients like the parameters. Divided results are the
            sums over the axis "model" that the transpose of gathering leaves behind.
    """
    if mesh is None:
        return function
    samples = PartitionSpec(_sample_axes(mesh))

    def call(batch: Tree, params: Tree, *replicated: Tree) -> Result:
        specs = specs_of(params, mesh)

        def local(batch: Tree, params: Tree, *replicated: Tree) -> Result:
            if not mean:
                return function(batch, whole(params, specs), *replicated)
            average = functools.partial(_mean, mesh)
            return jax.tree.map(average, results, function(batch, params, *replicated))

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(_specs(batch, mesh), specs, *(_COPIED for _ in replicated)),
            out_specs=results if mean else samples,
            # With the check, gradients of replicated parameters would arrive summed over the devices already.
            check_vma=False,
        )(batch, params, *replicated)

    return call


def device_number(mesh: Mesh | None) -> tuple[Array, ...]:
    """Returns the number of the device inside a function of `over_devices`, or nothing without a mesh."""
    return () if mesh is None else (jax.lax.axis_index(_sample_axes(mesh)),)


def _sample_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(name for name in SAMPLES if name in mesh.axis_names)


def _mean(mesh: Mesh, spec: PartitionSpec, tree: Tree) -> Tree:
    """Returns the mean over the devices of results that are divided in this way."""
    axes = tuple(name for name in _sample_axes(mesh) if name not in spec)

    def one(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return jax.lax.pmean(leaf / shards(mesh) if MODEL in spec else leaf, axes)

    return jax.tree.map(one, tree)


def _specs(batch: Tree, mesh: Mesh) -> Tree:
    """Returns the partition of every part of a batch: samples are divided, shared domains are not."""
    parts, structure = batch_parts(batch)
    samples = PartitionSpec(_sample_axes(mesh))
    return jax.tree.unflatten(structure, [_COPIED if is_shared(part) else samples for part in parts])
