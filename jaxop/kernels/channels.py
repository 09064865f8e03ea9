"""Sums over channels of functions of a pair of numbers: n × m scratch, never n × m × d."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

BLOCK = 16
"""Channels that are written out; longer vectors are scanned block by block."""

ROWS = 64
"""Queries of a strip of the backward pass, whose matrices stay in a core's cache."""


def in_blocks(x: Array, block: int = BLOCK) -> Array:
    """Vectors (n, d) as (blocks, channels of a block, n), filled up by channels of zeros."""
    block = min(block, x.shape[1])
    return jnp.pad(x.T, [(0, -x.shape[1] % block), (0, 0)]).reshape(-1, block, x.shape[0])


def over_blocks(update: Callable[..., Array], start: Array, x: list[Array], y: list[Array]) -> Array:
    """``update(carry, channels of queries, channels of keys)`` for one block of channels after the other.

    Args:
        update: maps the n × m carry, and the planes of x and of y for one block, to the next carry.
        start: the first carry.
        x: planes of the queries, each (blocks, channels of a block, …).
        y: planes of the keys.
    """
    if x[0].shape[0] == 1:
        return update(start, [p[0] for p in x], [p[0] for p in y])
    return jax.lax.scan(lambda carry, xy: (update(carry, *xy), None), start, (x, y))[0]


def weighted_sums(
    weigh: Callable[..., Array], cotangent: Array, x: list[Array], y: list[Array], *, rows: int = ROWS
) -> tuple[Array, Array]:
    """Σ_j and Σ_i of weigh(g_ij, x_ci, y_cj) for every channel c: (channels, n) and (channels, m).

    Args:
        weigh: of a strip of g and the planes of one channel: those of the queries and then those of the keys.
        cotangent: g, (n, m).
        x: planes of the queries, each (blocks, channels of a block, n).
        y: planes of the keys, the first of them (blocks, channels of a block, m).
        rows: queries of a strip.
    """
    n = cotangent.shape[0]
    rows = min(n, rows)
    padding = -n % rows
    strips = jnp.pad(cotangent, [(0, padding), (0, 0)]).reshape(-1, rows, cotangent.shape[1])

    def differentiate(xy: Any) -> tuple[Array, Array]:
        x, y = xy

        def strip(columns: Array, inputs: Any):
            x, cotangent = inputs
            weighted = [weigh(cotangent, *planes) for planes in zip(*x, *y, strict=True)]
            columns = columns + jnp.stack([jnp.sum(w, axis=0) for w in weighted])
            return columns, jnp.stack([jnp.sum(w, axis=1) for w in weighted])

        cut = [jnp.moveaxis(jnp.pad(p, [(0, 0), (0, padding)]).reshape(p.shape[0], -1, rows), 1, 0) for p in x]
        columns, sums = jax.lax.scan(strip, jnp.zeros_like(y[0]), (cut, strips))
        return jnp.moveaxis(sums, 0, 1).reshape(sums.shape[1], -1)[:, :n], columns

    sums = jax.lax.map(differentiate, (x, y))
    by_row, by_column = (s.reshape(-1, s.shape[-1]) for s in sums)
    return by_row, by_column
