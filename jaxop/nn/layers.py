"""Encoder layers one after the other, whose tokens may have a velocity."""

from collections.abc import Callable, Sequence

from jaxtyping import Array

from jaxop._remat import through_layers
from jaxop.flows import State
from jaxop.nn.flow import FlowLayer
from jaxop.nn.momentum import MomentumLayer

Layers = Sequence[Callable[..., Array | State]]
"""Layers one after the other; each takes the result of the previous layer."""


def start_layers(layers: Layers, x: Array, velocity: Array | None = None) -> Array | State:
    """Returns the argument of the first layer: the tokens, or tokens with a velocity."""
    first = layers[0] if layers else None
    return first.start(x, velocity) if isinstance(first, MomentumLayer | FlowLayer) else x


def tokens_of(state: Array | State) -> Array:
    """Returns the tokens after a layer of either kind."""
    return state.position if isinstance(state, State) else state


def run_layers(layers: Layers, x: Array, *args: object, velocity: Array | None = None, **kwargs: object) -> Array:
    """Returns the tokens after all layers, with or without a velocity; all arguments after x go to every layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> layers = [nn.FlowLayer(4, 8, rngs=nnx.Rngs(0)), nn.FlowLayer(4, 8, rngs=nnx.Rngs(1))]
        >>> nn.run_layers(layers, jnp.ones((1, 5, 4))).shape
        (1, 5, 4)
    """
    state = start_layers(layers, x, velocity)
    return tokens_of(through_layers(layers, state, lambda layer, state: layer(state, *args, **kwargs)))
