"""Quadrature weights: checked, relative, uniform, and of the trapezoid rule on given nodes."""

from types import ModuleType

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._scaling import unit_of
from jaxop._validation import first_index


def check_weights(weights: np.ndarray, argument: str = "weights") -> None:
    """Raises ``ValueError`` unless weights (..., n) are finite and not negative, and every row has a positive one."""
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        where = first_index(bad)
        raise ValueError(
            f"{argument} must be finite and non-negative, but {argument}[{str(where).strip('()')}] = {weights[where]}; "
            "a quadrature weight is a measure."
        )
    empty = ~(weights > 0).any(axis=-1)
    if empty.any():
        of_sample = f" of sample {first_index(empty)}" if weights.ndim > 1 else ""
        raise ValueError(f"{argument}{of_sample} are all zero; at least one node must carry weight.")


def uniform_weights(n: int, dtype: DTypeLike) -> Float[Array, " n"]:
    """Returns the weight 1/n for every node."""
    return jnp.full(n, 1 / n, dtype)


def relative_weights(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns weights in units of the largest, so that sums do not overflow or underflow; zeros stay zeros."""
    largest = jnp.max(weights)
    return weights / jnp.where(largest > 0, unit_of(largest), 1)


def trapezoid_weights(nodes: Float[Array | np.ndarray, "*batch n"]) -> Float[Array | np.ndarray, "*batch n"]:
    """Returns (x_{i+1} − x_{i−1})/2 along the last axis, and half a gap at both ends."""
    xp = namespace(nodes)
    gaps = xp.diff(nodes, axis=-1)
    zero = xp.zeros_like(nodes[..., :1])
    return (xp.concatenate([gaps, zero], axis=-1) + xp.concatenate([zero, gaps], axis=-1)) / 2


def namespace(*arrays: object) -> ModuleType:
    """Returns NumPy if all arrays are NumPy arrays, which compiles nothing, and `jax.numpy` otherwise."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp
