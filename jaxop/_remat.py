"""Layers whose activations the backward pass computes again, to save memory."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Layer = TypeVar("Layer")
State = TypeVar("State")
Variables = dict[Any, Any]


@dataclasses.dataclass
class Recomputed:
    """Count of the layers that were recomputed inside `recomputed_layers`."""

    layers: int = 0


_RECOMPUTED: ContextVar[Recomputed | None] = ContextVar("recomputed", default=None)


@contextlib.contextmanager
def recomputed_layers() -> Iterator[Recomputed]:
    """Inside the context, `through_layers` keeps only what every layer gets, not what it computes.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> from jaxop._remat import recomputed_layers
        >>> layers = [nn.FlowLayer(4, 8, rngs=nnx.Rngs(i)) for i in range(3)]
        >>> with recomputed_layers() as found:
        ...     out = nn.run_layers(layers, jnp.ones((1, 5, 4)))
        >>> found.layers
        3
    """
    found = Recomputed()
    token = _RECOMPUTED.set(found)
    try:
        yield found
    finally:
        _RECOMPUTED.reset(token)


def check_recomputed(found: Recomputed, policy: str, model: object) -> None:
    """Raises ``ValueError`` if the model does not run its layers by `through_layers`."""
    if not found.layers:
        raise ValueError(
            f"training.remat={policy!r} needs layers that run by nn.run_layers, but {type(model).__name__} has none; "
            "use jax.checkpoint inside your model, and leave remat=None."
        )


def through_layers(layers: Sequence[Layer], state: State, apply: Callable[[Layer, State], State]) -> State:
    """State ← apply(layer, state) for one layer after the other.

    Inside `recomputed_layers`, layers of one structure run in a `jax.lax.scan` over their stacked variables, and its
    backward pass computes the activations of one layer at a time from the input of the layer. Without the scan, the
    CPU compiler would merge the second computation with the first.

    Args:
        layers: modules, or pytrees of them. They must not share variables with each other.
        state: the argument of the first layer, a pytree of arrays.
        apply: returns the result of a layer, of the structure, shapes and dtypes of its argument.

    Returns:
        The result of the last layer.

    Cost: that of the layers; inside `recomputed_layers` one more forward pass for the gradient, with the memory of the
        activations of one layer and the input of every layer.
    """
    found = _RECOMPUTED.get()
    if found is None or not layers:
        for layer in layers:
            state = apply(layer, state)
        return state
    found.layers += len(layers)
    split = [(graphdef, nnx.to_pure_dict(variables)) for graphdef, variables in map(nnx.split, layers)]
    groups = [list(range(len(layers)))] if _same_structure(split) else [[index] for index in range(len(layers))]
    for group in groups:
        graphdef = split[group[0]][0]
        variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(split[index][1] for index in group))

        def run(state: State, variables: Variables, graphdef: nnx.GraphDef = graphdef) -> tuple[State, Variables]:
            layer = nnx.merge(graphdef, variables)
            state = apply(layer, state)
            return state, nnx.to_pure_dict(nnx.state(layer, nnx.Not(nnx.Param)))

        state, others = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), state, variables)
        for place, index in enumerate(group):  # random streams have advanced
            nnx.update(layers[index], jax.tree.map(lambda leaf, place=place: leaf[place], others))
    return state


def _same_structure(split: Sequence[tuple[nnx.GraphDef, Variables]]) -> bool:
    def form(graphdef: nnx.GraphDef, variables: Variables):
        leaves, structure = jax.tree.flatten(variables)
        return graphdef, structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    first = form(*split[0])
    return all(form(*other) == first for other in split[1:])
