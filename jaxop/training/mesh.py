"""Device meshes: which devices share the samples of a batch, the copies of the state, and the nodes of a function."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxop._platform import compiled_for
from jaxop._validation import check_size, check_type
from jaxop.data import Batch
from jaxop.data.source import batch_parts, is_shared
from jaxop.domains import Shard
from jaxop.training.nodes import DOMAIN, node_shares, node_specs, share_nodes
from jaxop.training.optimizer import Tree
from jaxop.training.processes import check_takes_part, evenly_chosen, own_rows, place, place_rows
from jaxop.training.shards import MODEL, shards, specs_of, whole

Result = TypeVar("Result")

DATA = "data"
"""Name of the mesh axis with one copy of the state for each of its devices."""

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
        data: copies of the state. None takes the largest possible number for which data × model divides the batch
            size. Every process takes part with the same number of devices.
        model: devices that share one copy.
        domain: devices that share the nodes of each function, for functions that are too large for one. The model must
            be any operator except `jaxop.operators.FlowNeuralOperator` and `jaxop.operators.LatentGridOperator`, or
            one of your own with ``shares_nodes = True``. For operators between patches this number divides their
            ``patches``.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if a number is below 1.
    """

    data: int | None = None
    model: int = 1
    domain: int = 1

    def __post_init__(self):
        if self.data is not None:
            check_size(self.data, "data")
        check_size(self.model, "model")
        check_size(self.domain, "domain")

    def make(self, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Returns a mesh of the first devices of every process; axes of one device, except "data", are left out.

        Args:
            batch_size: samples in a batch.
            devices: the devices to choose from; None means all devices of all processes.

        Raises:
            ValueError: if there are fewer devices, or data × model does not divide the batch, or the processes do not
                divide the devices.

        Example:
            >>> from jaxop import training
            >>> dict(training.MeshConfig(data=1).make(batch_size=4).shape)
            {'data': 1}
        """
        check_size(batch_size, "batch_size")
        processes = jax.process_count() if devices is None else 1
        devices = jax.devices() if devices is None else list(devices)
        found = f"the number of devices, {len(devices)} ({devices[0].platform})"
        others = {name: size for name, size in ((MODEL, self.model), (DOMAIN, self.domain)) if size > 1}
        for name, size in others.items():
            if size > len(devices):
                raise ValueError(f"mesh.{name} must be at most {found}, got {size}.")
        each, count = self.model * self.domain, self.data
        if count is None:
            possible = range(1, len(devices) // each + 1)
            fitting = [n for n in possible if batch_size % (n * self.model) == 0 and (n * each) % processes == 0]
            count = max(fitting, default=max(1, processes // each))
        total = count * each
        if total > len(devices) and not others:
            raise ValueError(f"mesh.data must be at most {found}, got {count}.")
        if total > len(devices):
            product = " times ".join(f"mesh.{name}={size}" for name, size in {DATA: count, **others}.items())
            most = len(devices) // each
            remedy = f"take mesh.data={most}, or leave it out" if most else "take fewer along one of them"
            raise ValueError(f"{product} must be at most {found}, got {total}; {remedy}.")
        mesh = _mesh({DATA: count, **others}, evenly_chosen(devices, total, processes))
        check_divides(mesh, batch_size)
        return mesh

    def one_copy(self) -> Mesh | None:
        """Returns the mesh of devices that share one copy of the state, one for all processes, or None for one device.

        If one copy has fewer devices than there are processes, there are as few copies as all processes can share.
        """
        if self.model == 1:
            return None
        copies = max(1, jax.process_count() // self.model)
        return MeshConfig(copies, self.model).make(copies * self.model)


def _mesh(sizes: dict[str, int], devices: Sequence[jax.Device]) -> Mesh:
    """Returns the mesh of all these devices with axes of these sizes."""
    shape, kinds = tuple(sizes.values()), (AxisType.Auto,) * len(sizes)
    try:
        return jax.make_mesh(shape, tuple(sizes), axis_types=kinds, devices=devices)
    except NotImplementedError:  # no axes of the TPU slice have such a product, as for 8 × 2 of v6e:4x4
        array = create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(array, tuple(sizes), axis_types=kinds)


def format_mesh(mesh: Mesh) -> str:
    """Returns the axes of a mesh and their sizes: "data 4 × model 2"."""
    return " × ".join(f"{name} {size}" for name, size in mesh.shape.items())


def check_mesh(mesh: Mesh | None) -> Mesh | None:
    """Returns the mesh with axes that the compiler partitions ("auto"), or None if it has only one device.

    Raises:
        TypeError: if it is not a mesh.
        ValueError: if an axis other than "data", "model" and "domain" has more than one device, if the mesh leaves out
            some processes, or if the call is made inside `jax.set_mesh` of a mesh with explicit axes.
    """
    if mesh is None:
        return None
    check_type(
        mesh, "mesh", Mesh, "a jax.sharding.Mesh with an axis named 'data', such as jax.make_mesh((8,), ('data',))"
    )
    others = {name: size for name, size in mesh.shape.items() if name not in (*SAMPLES, DOMAIN) and size > 1}
    if others or DATA not in mesh.shape:
        raise ValueError(
            f"mesh must have an axis named {DATA!r} and, besides it, {MODEL!r} and {DOMAIN!r}, only axes of one "
            f"device, got {dict(mesh.shape)}."
        )
    check_takes_part(mesh)
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
    count = 1 if mesh is None else mesh.size // node_shares(mesh)
    if batch_size % (count * accumulate):
        pieces = f" in {accumulate} micro-batches" if accumulate > 1 else ""
        axes = f"axis {DATA!r}" if shards(mesh) == 1 else f"axes {DATA!r} and {MODEL!r}"
        raise ValueError(
            f"batch_size={batch_size}{pieces} must be divisible by the {count} devices of the mesh {axes}; take "
            f"a multiple of {count * accumulate}, or another number of devices."
        )


def replicate(tree: Result, mesh: Mesh | None) -> Result:
    """Returns the arrays with a copy on every device of the mesh, or unchanged without one."""
    return tree if mesh is None else place(tree, NamedSharding(mesh, _COPIED))


def on_one_device(tree: Result, mesh: Mesh | None) -> Result:
    """Returns the copy of replicated arrays on the first device of the mesh, or unchanged if any of them is divided."""
    leaves = jax.tree.leaves(tree)
    if mesh is None or not all(leaf.is_fully_replicated for leaf in leaves):
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree)


def own_indices(indices: Int[np.ndarray, " b"], mesh: Mesh | None) -> Int[np.ndarray, " r"]:
    """Returns the numbers of those samples of a batch that this process reads: the samples of its own devices."""
    if mesh is None or not mesh.is_multi_process:
        return indices
    return indices[own_rows(NamedSharding(mesh, _samples(mesh)), len(indices))]


def distribute(batch: Tree, mesh: Mesh | None, count: int | None = None, *, nodes: bool = True) -> Tree:
    """Returns a batch on the devices: the samples divided among them, and a copy of what all samples share on each.

    If the mesh has an axis "domain", the nodes of every function are divided too; see `share_nodes`.

    Args:
        batch: the batch. On several processes, the samples of `own_indices`.
        mesh: the devices.
        count: samples in the whole batch; needed on several processes only.
        nodes: False leaves whole functions on each device, for norms that need all nodes; `over_devices` divides them.
    """
    if mesh is None:
        return jax.device_put(batch)
    batch = share_nodes(batch, mesh) if nodes else batch
    specs = batch_specs(batch, mesh)
    if not mesh.is_multi_process:
        return jax.device_put(batch, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    assert count is not None
    samples = _samples(mesh)
    rows = own_rows(NamedSharding(mesh, samples), count)

    def one(spec: PartitionSpec, part: Tree) -> Tree:
        sharding = NamedSharding(mesh, spec)
        if spec[:1] != samples[:1]:
            return place(part, sharding)
        return jax.tree.map(lambda leaf: place_rows(leaf, sharding, rows, count), part)

    return jax.tree.map(one, specs, batch, is_leaf=lambda part: isinstance(part, PartitionSpec))


def over_devices(
    function: Callable[..., Result],
    mesh: Mesh | None,
    *,
    mean: bool,
    results: Tree = _COPIED,
    nodes: bool = False,
) -> Callable[..., Result]:
    """Returns a function of (batch, params, *replicated) that computes on every device with its own samples and nodes.

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
        nodes: True if results that are not means have a second axis of nodes, which the devices of "domain" share.
    """
    if mesh is None:
        return function
    samples = _samples(mesh)
    own = PartitionSpec(*samples, DOMAIN) if nodes and node_shares(mesh) > 1 else samples

    def call(batch: Tree, params: Tree, *replicated: Tree) -> Result:
        batch, specs = share_nodes(batch, mesh), specs_of(params, mesh)

        def local(batch: Tree, params: Tree, *replicated: Tree) -> Result:
            with compiled_for(mesh.devices.flat[0].platform):
                if not mean:
                    return function(batch, whole(params, specs), *replicated)
                result = function(batch, params, *replicated)
            return jax.tree.map(functools.partial(_mean, mesh), results, result)

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(batch_specs(batch, mesh), specs, *(_COPIED for _ in replicated)),
            out_specs=results if mean else own,
            # With the check, gradients of replicated parameters would arrive summed over the devices already.
            check_vma=False,
        )(batch, params, *replicated)

    return call


def device_number(mesh: Mesh | None) -> tuple[Array, ...]:
    """Returns the number of the device inside a function of `over_devices`, or nothing without a mesh."""
    if mesh is None:
        return ()
    own = jax.lax.axis_index(_sample_axes(mesh))
    return (own,) if node_shares(mesh) == 1 else (own, jax.lax.axis_index(DOMAIN))


def batch_specs(batch: Tree, mesh: Mesh) -> Tree:
    """Returns the partition of every part of a batch: samples are divided, shared domains are not."""
    samples = _samples(mesh)
    if isinstance(batch, Batch) and isinstance(batch.domain, Shard):
        return node_specs(batch, samples)
    parts, structure = batch_parts(batch)
    return jax.tree.unflatten(structure, [_COPIED if is_shared(part) else samples for part in parts])


def _samples(mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(_sample_axes(mesh))


def _sample_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(name for name in SAMPLES if name in mesh.axis_names)


def _mean(mesh: Mesh, spec: PartitionSpec, tree: Tree) -> Tree:
    """Returns the mean over the devices of results that are divided in this way.

    Without the check in `over_devices`, the transpose of a sum over devices is that sum. The p devices of "domain" have
    the same loss, so they find parts of the gradient of p times the loss, and the mean of these parts is its gradient.
    """
    nodes = (DOMAIN,) if node_shares(mesh) > 1 else ()
    axes = tuple(name for name in (*_sample_axes(mesh), *nodes) if name not in spec)

    def one(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return jax.lax.pmean(leaf / shards(mesh) if MODEL in spec else leaf, axes)

    return jax.tree.map(one, tree)
