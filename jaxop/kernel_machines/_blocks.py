"""Evaluation of functions of rows block by block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxop._eager import in_turn


def in_blocks(evaluate: Callable[[Any], Array], rows: Any, block_size: int | None) -> Array:
    """``evaluate`` of arrays with a common leading axis (a pytree), ``block_size`` rows at a time.

    The last block is filled up with copies of the last row. None evaluates all at once.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernel_machines._blocks import in_blocks
        >>> in_blocks(lambda x: x[:, 0] * 2, jnp.ones((5, 1)), 2)
        Array([2., 2., 2., 2., 2.], dtype=float32)
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if n == 0:
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), rows)
        shape = jax.eval_shape(evaluate, one)
        return jnp.zeros((0, *shape.shape[1:]), shape.dtype)
    if block_size is None or block_size >= n:
        return evaluate(rows)

    def blocks(array: Array) -> Array:
        padding = [(0, -n % block_size), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, padding, mode="edge").reshape(-1, block_size, *array.shape[1:])

    out = in_turn(evaluate, jax.tree.map(blocks, rows))
    return out.reshape(-1, *out.shape[2:])[:n]
