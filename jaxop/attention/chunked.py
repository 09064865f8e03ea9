"""Attention in linear memory: tiles of queries × keys, recomputed in the backward pass."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._eager import compiled
from jaxop._varying import varying_like
from jaxop.attention.closing import close
from jaxop.attention.monoid import split_weights
from jaxop.attention.operands import Operands
from jaxop.attention.tiles import Chunks, Inputs, Plan, backward_head, forward_head, map_heads, pad, plan_of
from jaxop.kernels import LOG_ZERO

QUERY_CHUNK, KEY_CHUNK = 512, 1024
"""Largest tile; it takes 2 MiB in float32 and stays in the cache of a core."""


def chunked_attention(operands: Operands, normalize: bool) -> Float[Array, "n h c"]:
    """Returns `jaxop.attention.integral_attention` of checked operands, in tiles; O(n + m) memory with gradients."""
    depth = operands.query.shape[2]
    chunks = chunks_of(operands)
    return _chunked(close(operands, [(length, depth) for _, length in chunks]), normalize, chunks)


@compiled(static=("normalize", "chunks"))
def _chunked(operands: Operands, normalize: bool, chunks: Chunks) -> Array:
    n, m, mask, dtype = operands.queries, operands.keys, operands.mask, operands.dtype
    weights = operands.measure(dtype)
    (rows, row_chunk), (columns, column_chunk) = chunks

    key_mask = mask if mask is not None and mask.ndim == 1 else None
    log_weights, signs = split_weights(weights if key_mask is None else jnp.where(key_mask, weights, 0), key_mask)
    log_weights = jnp.pad(log_weights, (0, columns * column_chunk - m), constant_values=LOG_ZERO)
    signs = pad(signs, columns * column_chunk)
    pair_mask = None
    if mask is not None and mask.ndim > 1:
        padding = [(0, rows * row_chunk - n), (0, columns * column_chunk - m)]
        pair_mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 2) + padding)

    plan, params, fixed = plan_of(operands, normalize, chunks)
    query, key, value = operands.query, operands.key, operands.value
    log_weights, signs = varying_like((log_weights, signs), query)
    return _attend(plan, Inputs(params, fixed, query, key, value, log_weights, signs, pair_mask))


def chunks_of(operands: Operands) -> Chunks:
    """Returns the chunks of queries and of keys."""
    return _cover(operands.queries, QUERY_CHUNK), _cover(operands.keys, KEY_CHUNK)


def _cover(size: int, largest: int) -> tuple[int, int]:
    """Returns number and length of the chunks that cover ``size`` with the least padding; lengths divide by 8."""
    count = -(-size // largest)
    length = -(-size // count)
    return count, -(-length // 8) * 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, inputs: Inputs) -> Array:
    return _forward(plan, inputs)[0]


def _forward(plan: Plan, inputs: Inputs) -> tuple[Array, tuple[Inputs, Array, Array]]:
    of_head = functools.partial(forward_head, plan)
    out, shift = map_heads(of_head, (inputs,), (plan.head_axes(inputs),), (1, 1), heads=inputs.query.shape[1])
    return out, (inputs, out, shift)


def _backward(plan: Plan, residuals: tuple[Inputs, Array, Array], cotangent: Array) -> tuple[Inputs]:
    inputs, out, shift = residuals
    d_params, d_signs, d_query, d_key, d_value = map_heads(
        functools.partial(backward_head, plan),
        (inputs, out, shift, cotangent),
        (plan.head_axes(inputs), 1, 1, 1),
        (0, 0, 1, 1, 1),
        heads=inputs.query.shape[1],
    )
    total = functools.partial(jnp.sum, axis=0)
    d_params = d_params if plan.is_per_head else jax.tree.map(total, d_params)
    return (Inputs._make((d_params, None, d_query, d_key, d_value, None, total(d_signs), None, None)),)


_attend.defvjp(_forward, _backward)
