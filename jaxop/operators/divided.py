"""Explicit mesh axes: models that compute on every device with its own examples of a batch."""

import functools
import inspect
from collections.abc import Callable
from typing import TypeVar, cast

import jax
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jaxop.domains import Decomposed, Domain

Call = TypeVar("Call", bound=Callable[..., Array])


def device_by_device(*, rank: int) -> Callable[[Call], Call]:
    """Returns a decorator of the call of a model, for batches that explicit mesh axes divide.

    `jax.make_mesh` makes explicit axes by default: the type of an array then tells how it is divided, and an operation
    raises if its result does not follow from that. Reshapes that merge the axis of the batch with another one are of
    this kind. If the examples of the first argument are divided, the decorated call runs inside `jax.shard_map`, where
    each device computes what one device would compute for its examples, and no activation travels. Parameters that
    the mesh divides are gathered, and dropout draws other masks on every device. Otherwise, and for all other meshes,
    the decorator has no effect.

    Args:
        rank: number of axes of the first argument if it is a batch. A single example has one less.
    """

    def decorate(call: Call) -> Call:
        first = list(inspect.signature(call).parameters)[1]

        @functools.wraps(call)
        def wrapped(model: nnx.Module, *given: object, **options: object) -> Array:
            inputs = given[0] if given else options.get(first)
            axes = _axes(inputs, rank)
            if axes is None:
                return call(model, *given, **options)
            mesh = jax.typeof(inputs).sharding.mesh
            arguments, structure = jax.tree.flatten((given, options), is_leaf=_is_domain)
            own = [_has_examples(argument) for argument in arguments]
            specs = [PartitionSpec(axes if divided else None) for divided in own]
            placed = [
                jax.tree.map(functools.partial(_reshard, NamedSharding(mesh, spec)), argument)
                for argument, spec in zip(arguments, specs, strict=True)
            ]
            graphdef, state = nnx.split(model)
            state = jax.tree.map(functools.partial(_whole, mesh), state)
            names = (axes,) if isinstance(axes, str) else axes

            def local(state: nnx.State, arguments: list[PyTree]) -> tuple[Array, dict[str, PyTree]]:
                copy = nnx.merge(graphdef, state)
                _fold_keys(copy, jax.lax.axis_index(names))
                before = nnx.to_pure_dict(nnx.state(copy, nnx.RngCount))
                given, options = jax.tree.unflatten(structure, arguments)
                outputs = call(copy, *given, **options)
                after = nnx.to_pure_dict(nnx.state(copy, nnx.RngCount))
                pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
                return outputs, after if any(old is not new for old, new in pairs) else {}

            outputs, counts = jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(PartitionSpec(), specs),
                out_specs=(PartitionSpec(axes), PartitionSpec()),
                axis_names=set(names),
            )(state, placed)
            if counts:
                nnx.update(model, counts)
            return outputs

        return cast(Call, wrapped)

    return decorate


def _axes(inputs: object, rank: int) -> str | tuple[str, ...] | None:
    """Returns the explicit mesh axes that divide the examples of a batch, or None."""
    if not isinstance(inputs, Array) or inputs.ndim != rank:
        return None
    spec = jax.typeof(inputs).sharding.spec
    return spec[0] if len(spec) else None


def _fold_keys(model: nnx.Module, number: Array) -> None:
    """Folds the number of the device into every random key, so that devices draw different masks."""

    def fold(keys: Array) -> Array:
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys.reshape(-1)).reshape(keys.shape)

    nnx.update(model, jax.tree.map(fold, nnx.to_pure_dict(nnx.state(model, nnx.RngKey))))


def _is_domain(argument: object) -> bool:
    return isinstance(argument, Domain | Decomposed)


def _has_examples(argument: Array | Domain | Decomposed) -> bool:
    return argument.is_batched if isinstance(argument, Domain | Decomposed) else True


def _whole(mesh: AbstractMesh, leaf: Array) -> Array:
    """Returns a parameter with a copy on every device, gathered if it was divided."""
    is_divided = any(axis is not None for axis in jax.typeof(leaf).sharding.spec)
    return _reshard(NamedSharding(mesh, PartitionSpec()), leaf) if is_divided else leaf


def _reshard(sharding: NamedSharding, leaf: Array) -> Array:
    return jax.sharding.reshard(leaf, sharding)
