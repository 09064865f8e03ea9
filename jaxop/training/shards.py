"""Parameters and states divided among the devices of a mesh, and whole again where a model needs them."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxop.training.optimizer import Tree
from jaxop.training.processes import place

Result = TypeVar("Result")

MODEL = "model"
"""Name of the mesh axis over which parameters, their averages and the moments of the optimiser are divided."""

DIVIDED_FROM = 2**16
"""Numbers in the smallest array that is divided, 256 kB in float32.

Below it starting a message between devices takes longer than sending it, and all such arrays of an operator together
take little memory: its biases, scales and kernels, but none of its large matrices.
"""


def spec_of(shape: Sequence[int], mesh: Mesh | AbstractMesh | None) -> PartitionSpec:
    """Returns how an array of parameters is divided: along its largest axis that the devices of "model" divide.

    Arrays with fewer than `DIVIDED_FROM` numbers, or without such an axis, have a copy on every device.

    Args:
        shape: shape of the array.
        mesh: the devices. None, or a mesh without the axis "model", divides nothing.

    Example:
        >>> import jax
        >>> from jaxop.training.shards import spec_of
        >>> mesh = jax.sharding.AbstractMesh((2, 4), ("data", "model"))
        >>> [tuple(spec_of(shape, mesh)) for shape in ((256, 1024), (1023, 256), (64, 64))]
        [(None, 'model'), (None, 'model'), ()]
    """
    count = shards(mesh)
    fitting = [axis for axis, size in enumerate(shape) if size % count == 0]
    if count == 1 or math.prod(shape) < DIVIDED_FROM or not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, MODEL)


def shards(mesh: Mesh | AbstractMesh | None) -> int:
    """Returns the number of devices that share one copy of the state."""
    return 1 if mesh is None else mesh.shape.get(MODEL, 1)


def specs_of(params: Tree, mesh: Mesh | None, *, members: int = 1) -> Tree:
    """Returns `spec_of` for every parameter; stacks of those of several members are divided like those of one."""

    def one(leaf: Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        return spec_of(leaf.shape, mesh) if members == 1 else PartitionSpec(None, *spec_of(leaf.shape[1:], mesh))

    return jax.tree.map(one, params)


def specs_like(tree: Tree, params: Tree, mesh: Mesh | None, *, members: int = 1) -> Tree:
    """Returns how a tree is divided: arrays of the shape of a parameter as this parameter, all others not at all."""
    specs = specs_of(params, mesh, members=members)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(specs), strict=True)
    known = {leaf.shape: spec for leaf, spec in leaves}
    return jax.tree.map(lambda leaf: known.get(leaf.shape, PartitionSpec()), tree)


def shardings(specs: Tree, mesh: Mesh) -> Tree:
    """Returns the sharding of every leaf, from how it is divided."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def abstract(tree: Tree, specs: Tree, mesh: Mesh) -> Tree:
    """Returns shapes, dtypes and shardings of a tree that is divided in this way, to restore it from a checkpoint."""
    like = shardings(specs, mesh)
    return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, like)


def divide(params: Tree, mesh: Mesh | None, *, members: int = 1) -> Tree:
    """Returns parameters on the devices, or unchanged without a mesh; every device gets only its own shards."""
    if mesh is None:
        return params
    return jax.tree.map(place, params, shardings(specs_of(params, mesh, members=members), mesh))


def divided_share(params: Tree, mesh: Mesh | None) -> float:
    """Returns the share of the parameters' numbers that are divided among devices, between 0 and 1."""
    sizes = {True: 0, False: 0}
    for leaf in jax.tree.leaves(params):
        sizes[spec_of(leaf.shape, mesh) != PartitionSpec()] += math.prod(leaf.shape)
    return sizes[True] / max(sum(sizes.values()), 1)


def check_shards(params: Tree, mesh: Mesh | None) -> None:
    """Warns or raises if the axis "model" does not divide any parameter.

    Raises:
        ValueError: if there are parameters of at least `DIVIDED_FROM` numbers, and the devices do not divide any axis
            of any of them.
    """
    count = shards(mesh)
    if count == 1 or divided_share(params, mesh):
        return
    shape = max((leaf.shape for leaf in jax.tree.leaves(params)), key=math.prod)
    if math.prod(shape) < DIVIDED_FROM:
        warnings.warn(
            f"the {count} devices of the mesh axis {MODEL!r} do not share the parameters: the largest has shape "
            f"{shape}, and arrays below {DIVIDED_FROM} numbers are not divided. The devices share samples only, as "
            "those of the axis 'data' do.",
            UserWarning,
            stacklevel=3,
        )
        return
    possible = [n for n in range(2, count) if any(size % n == 0 for size in shape)]
    remedy = f"take {possible[-1]}" if possible else "leave this axis out"
    raise ValueError(
        f"the mesh axis {MODEL!r} has {count} devices, which must divide an axis of a parameter with at least "
        f"{DIVIDED_FROM} numbers, but do not; the largest parameter has shape {shape}: {remedy}, or change the width "
        "of the model."
    )


def whole(params: Tree, specs: Tree) -> Tree:
    """Returns all numbers of parameters inside `jax.shard_map`, where each device has its own shard of them.

    Its transpose sums gradients over the axis "model" and leaves each device its own shard (reduce-scatter).
    """

    def gather(leaf: Array, spec: PartitionSpec) -> Array:
        if MODEL not in spec:
            return leaf
        return jax.lax.all_gather(leaf, MODEL, axis=tuple(spec).index(MODEL), tiled=True)

    return jax.tree.map(gather, params, specs)


def on_shards(function: Callable[..., Result], specs: Tree) -> Callable[..., Result]:
    """Returns a function of shards of parameters, from a differentiable function of (parameters, *others).

    Every parameter is gathered by itself, so that the compiler may gather it just before a layer needs it, free it
    afterwards, and gather it again in the backward pass. It does so where memory is short.

    Args:
        function: the function of whole parameters.
        specs: the result of `specs_of`. Without shards the result is the function itself.
    """
    if all(spec == PartitionSpec() for spec in jax.tree.leaves(specs)):
        return function
    return lambda params, *others: function(whole(params, specs), *others)
