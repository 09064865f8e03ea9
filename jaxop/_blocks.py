"""Functions of rows, evaluated block by block."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxop._eager import in_turn
from jaxop._validation import is_symbolic

Rows = TypeVar("Rows")


def map_blocks(
    function: Callable[[Rows], Array], rows: Rows, size: int | None, *, pad: bool = False, recompute: bool = False
) -> Array:
    """Applies ``function`` to ``size`` rows at a time, one block after the other.

    Args:
        function: maps a pytree of arrays with a common leading axis to an array with this axis, row by row.
        rows: the pytree of all rows.
        size: rows of a block; None evaluates all rows at once, as does an unknown number of rows (`jax.export`).
        pad: whether to fill up the last block with copies of the last row, so that all blocks have one shape and
            run one program. Otherwise the last block is smaller.
        recompute: whether the backward pass recomputes each block from its rows, so that memory holds the
            intermediate values of at most one block.

    Returns:
        The values for all rows, in their order.

    Cost: that of ``function``, with the memory of one block.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop._blocks import map_blocks
        >>> map_blocks(lambda x: x[:, 0] * 2, jnp.ones((5, 1)), 2)
        Array([2., 2., 2., 2., 2.], dtype=float32)
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if is_symbolic(n):  # the number of blocks is unknown
        return function(rows)
    if n == 0:
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), rows)
        shape = jax.eval_shape(function, one)
        return jnp.zeros((0, *shape.shape[1:]), shape.dtype)
    if size is None or n <= size:
        return function(rows)
    whole = n if pad else n - n % size
    evaluate = jax.checkpoint(function) if recompute else function

    def blocks(array: Array) -> Array:
        filling = [(0, -n % size), *[(0, 0)] * (array.ndim - 1)]
        filled = jnp.pad(array, filling, mode="edge") if pad else array[:whole]
        return filled.reshape(-1, size, *array.shape[1:])

    out = in_turn(evaluate, jax.tree.map(blocks, rows))
    out = out.reshape(-1, *out.shape[2:])[:whole]
    if whole < n:
        out = jnp.concatenate([out, evaluate(jax.tree.map(lambda array: array[whole:], rows))])
    return out
