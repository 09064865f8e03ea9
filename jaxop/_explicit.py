"""Explicit mesh axes: functions of arrays whose types tell how they are divided among devices."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, PyTree

Call = TypeVar("Call", bound=Callable[..., Array])


def compiler_divides(call: Call) -> Call:
    """Decorator of an attention function: the compiler partitions it, also for arrays on explicit mesh axes.

    `jax.make_mesh` makes explicit axes by default: the type of an array then tells how it is divided, and an operation
    raises if its operands are divided differently, as arrays from outside and those made inside the function are. The
    decorated function changes such axes to automatic ones and back. Its result is divided along nodes and heads like
    the queries, and along the axes of `jax.vmap` like the arguments. For all other arrays the decorator has no effect.

    Args:
        call: a function of queries (n, h, d) and of pytrees, with a result of shape (n, h, c).
    """

    @functools.wraps(call)
    def wrapped(*arguments: PyTree, **options: PyTree) -> Array:
        leaves, structure = jax.tree.flatten((arguments, options))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Array | np.ndarray)]
        mesh = explicit_mesh([leaves[place] for place in places])
        if mesh is None:
            return call(*arguments, **options)
        query = arguments[0] if arguments else options["query"]
        nodes, heads = (*jax.typeof(query).sharding.spec, None, None)[:2]

        def of_arrays(*arrays: Array) -> Array:
            filled = list(leaves)
            for place, array in zip(places, arrays, strict=True):
                filled[place] = array
            arguments, options = jax.tree.unflatten(structure, filled)
            return call(*arguments, **options)

        with jax.sharding.use_abstract_mesh(mesh):
            automatic = jax.sharding.auto_axes(of_arrays, out_sharding=PartitionSpec(nodes, heads, None))
            return cast(Array, automatic(*(leaves[place] for place in places)))

    return cast(Call, wrapped)


def explicit_mesh(arrays: Sequence[Array | np.ndarray]) -> AbstractMesh | None:
    """Returns the mesh of the first array on a mesh with explicit axes, or None if there is none."""
    for array in arrays:
        mesh = jax.typeof(array).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None
