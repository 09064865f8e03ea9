"""Encoder layers one after the other, whether or not their tokens have a velocity."""

from typing import Any

from jaxtyping import Array

from jaxop.flows import State
from jaxop.nn.flow import FlowLayer
from jaxop.nn.momentum import MomentumLayer


def start_layers(layers: Any, x: Array, velocity: Array | None = None) -> Any:
    """What the first of some layers takes: the tokens, or their state with a velocity."""
    first = next(iter(layers), None)
    return first.start(x, velocity) if isinstance(first, MomentumLayer | FlowLayer) else x


def tokens_of(state: Any) -> Array:
    """The tokens after a layer of either kind."""
    return state.position if isinstance(state, State) else state


def run_layers(layers: Any, x: Array, *args: Any, velocity: Array | None = None, **kwargs: Any) -> Array:
    """The tokens after all layers, with or without a velocity; further arguments go to every layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> layers = [nn.FlowLayer(4, 8, rngs=nnx.Rngs(0)), nn.FlowLayer(4, 8, rngs=nnx.Rngs(1))]
        >>> nn.run_layers(layers, jnp.ones((1, 5, 4))).shape
        (1, 5, 4)
    """
    state = start_layers(layers, x, velocity)
    for layer in layers:
        state = layer(state, *args, **kwargs)
    return tokens_of(state)
