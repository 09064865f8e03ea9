"""Attention in linear memory: tiles of queries × keys, recomputed in the backward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxop.attention.partial import (
    Partial,
    accumulate_tile,
    accumulation_dtype,
    cast_kernel,
    combine,
    finish,
    log_clip,
    split_weights,
    uniform_weights,
)
from jaxop.kernels import LOG_ZERO, Kernel

QUERY_CHUNK, KEY_CHUNK = 512, 1024
"""Largest tile: 2 MiB in float32, which stays in a core's cache."""


def chunked_attention(
    query: Array,
    key: Array,
    value: Array,
    weights: Array | None,
    *,
    kernel: Kernel,
    kernel_axis: int | None,
    normalize: bool,
    mask: Array | None,
    is_causal: bool,
) -> Array:
    """`integral_attention` by accumulating `Partial` integrals; see there. O(n + m) memory, gradients included."""
    n, heads, _ = query.shape
    m = key.shape[0]
    dtype = accumulation_dtype(query, key, value)
    weights = uniform_weights(m, dtype) if weights is None else weights.astype(dtype)
    kernel = cast_kernel(kernel, dtype)
    leaves, structure = jax.tree.flatten(kernel)
    rows, row_chunk = _chunks(n, QUERY_CHUNK)
    columns, column_chunk = _chunks(m, KEY_CHUNK)

    def per_head(array: Array, size: int) -> Array:
        return _pad(jnp.moveaxis(array.astype(dtype), 1, 0), 1, size)

    key_mask = mask if mask is not None and mask.ndim == 1 else None
    log_weights, signs = split_weights(weights if key_mask is None else jnp.where(key_mask, weights, 0), key_mask)
    log_weights = jnp.pad(log_weights, (0, columns * column_chunk - m), constant_values=LOG_ZERO)
    signs = _pad(signs, 0, columns * column_chunk)
    pair_mask = None
    if mask is not None and mask.ndim > 1:
        pair_mask = jnp.pad(
            mask, [(0, 0)] * (mask.ndim - 2) + [(0, rows * row_chunk - n), (0, columns * column_chunk - m)]
        )

    def one_head(head: tuple[Any, ...]) -> Array:
        head_leaves, query, key, value, head_mask = head
        head_mask = pair_mask if head_mask is None else head_mask

        def tile(leaves: list[Any], query: Array, key: Array) -> Array:
            return jax.tree.unflatten(structure, leaves).tile(query, key)

        all_leaves = leaves if head_leaves is None else head_leaves
        # a pair function may close over traced arrays; a custom derivative must see them as arguments
        tile, constants = jax.closure_convert(tile, all_leaves, query[:row_chunk], key[:column_chunk])
        plan = _Plan(tile, kernel.sign, normalize, is_causal, rows, row_chunk, columns, column_chunk)
        return _attend(plan, (all_leaves, constants), query, key, value, log_weights, signs, head_mask)

    stacked = (
        None if kernel_axis is None else leaves,
        per_head(query, rows * row_chunk),
        per_head(key, columns * column_chunk),
        per_head(value, columns * column_chunk),
        pair_mask if pair_mask is not None and pair_mask.ndim == 3 else None,
    )
    # one head at a time keeps the tile in cache on a CPU; an accelerator wants them all at once
    map_heads = jax.lax.map if jax.default_backend() == "cpu" and heads > 1 else lambda f, xs: jax.vmap(f)(xs)
    out = map_heads(one_head, stacked)
    return jnp.moveaxis(out[:, :n], 0, 1)


class _Plan:
    """The static part of one chunked integral."""

    def __init__(
        self,
        tile: Callable[..., Array],
        sign: str,
        normalize: bool,
        is_causal: bool,
        rows: int,
        row_chunk: int,
        columns: int,
        column_chunk: int,
    ):
        self.tile, self.sign, self.normalize, self.is_causal = tile, sign, normalize, is_causal
        self.rows, self.row_chunk, self.columns, self.column_chunk = rows, row_chunk, columns, column_chunk

    def mask(self, i: Array, j: Array, pair_mask: Array | None) -> Array | None:
        mask = None
        if pair_mask is not None:
            start = (i * self.row_chunk, j * self.column_chunk)
            mask = jax.lax.dynamic_slice(pair_mask, start, (self.row_chunk, self.column_chunk))
        if self.is_causal:
            row = i * self.row_chunk + jnp.arange(self.row_chunk)
            column = j * self.column_chunk + jnp.arange(self.column_chunk)
            causal = column[None, :] <= row[:, None]
            mask = causal if mask is None else mask & causal
        return mask

    def skip_future(self, i: Array, j: Array, body: Callable[[Any], Any], carry: Any) -> Any:
        if not self.is_causal:
            return body(carry)
        reached = j * self.column_chunk < (i + 1) * self.row_chunk
        return jax.lax.cond(reached, body, lambda carry: carry, carry)

    def split_rows(self, array: Array) -> Array:
        return array.reshape(self.rows, self.row_chunk, *array.shape[1:])

    def split_columns(self, array: Array) -> Array:
        return array.reshape(self.columns, self.column_chunk, *array.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, params, query, key, value, log_weights, signs, pair_mask):
    return _forward(plan, params, query, key, value, log_weights, signs, pair_mask)[0]


def _forward(plan, params, query, key, value, log_weights, signs, pair_mask):
    leaves, constants = params
    columns = [plan.split_columns(a) for a in (key, value, log_weights, signs)]

    def row(carry, inputs):
        i, query = inputs

        def column(part, inputs):
            j, key, value, log_weights, signs = inputs

            def integrate(part):
                tile = plan.tile(leaves, query, key, *constants)
                mask = plan.mask(i, j, pair_mask)
                return combine(part, accumulate_tile(tile, value, log_weights, signs, mask, plan.sign))

            return plan.skip_future(i, j, integrate, part), None

        zero = jnp.zeros(plan.row_chunk, query.dtype)
        floor = zero if plan.sign == "signed" else zero + LOG_ZERO / 2
        empty = Partial(floor, zero, jnp.zeros((plan.row_chunk, value.shape[1]), query.dtype))
        part, _ = jax.lax.scan(column, empty, (jnp.arange(plan.columns), *columns))
        alive = part.mass != 0
        # the reciprocal mass in the log domain; an empty row must come out as exp(-inf) = 0
        log_mass = jnp.where(alive, part.shift + jnp.log(jnp.where(alive, part.mass, 1)), -LOG_ZERO)
        return carry, (finish(part, plan.normalize), log_mass)

    _, (out, log_mass) = jax.lax.scan(row, None, (jnp.arange(plan.rows), plan.split_rows(query)))
    out = out.reshape(-1, value.shape[1])
    return out, (params, query, key, value, log_weights, signs, pair_mask, out, log_mass)


def _backward(plan, residuals, cotangent):
    params, query, key, value, log_weights, signs, pair_mask, out, log_mass = residuals
    columns = [plan.split_columns(a) for a in (key, value, log_weights, signs)]
    clip = log_clip(query.dtype) * (1 if plan.normalize else 2)

    def row(carry, inputs):
        i, query, cotangent, out, log_mass = inputs
        average = jnp.sum(cotangent * out, axis=1) if plan.normalize else jnp.zeros(plan.row_chunk, query.dtype)
        shift = log_mass if plan.normalize else jnp.zeros_like(log_mass)

        def column(carry, inputs):
            j, key, value, log_weights, signs = inputs

            def differentiate(carry):
                d_query, d_params, d_columns = carry
                tile, pull_back = jax.vjp(lambda p, q, k: plan.tile(p[0], q, k, *p[1]), params, query, key)
                mask = plan.mask(i, j, pair_mask)
                slope = cotangent @ value.T - average[:, None]
                if plan.sign == "signed":
                    density = jnp.exp(log_weights)[None, :]
                    density = density if mask is None else jnp.where(mask, density, 0)
                    d_tile = signs[None, :] * density * slope
                    density, d_signs = density * tile, jnp.sum(density * tile * slope, axis=0)
                else:
                    logits = tile + log_weights[None, :]
                    logits = logits if mask is None else jnp.where(mask, logits, LOG_ZERO)
                    density = jnp.exp(jnp.minimum(logits - shift[:, None], clip))
                    weighted = density * slope
                    d_tile, d_signs = signs[None, :] * weighted, jnp.sum(weighted, axis=0)
                d_value = signs[:, None] * (density.T @ cotangent)
                step_params, step_query, d_key = pull_back(d_tile)
                d_columns = [d.at[j].add(step) for d, step in zip(d_columns, (d_key, d_value, d_signs), strict=True)]
                return d_query + step_query, jax.tree.map(jnp.add, d_params, step_params), d_columns

            return plan.skip_future(i, j, differentiate, carry), None

        (d_query, *carry), _ = jax.lax.scan(
            column, (jnp.zeros_like(query), *carry), (jnp.arange(plan.columns), *columns)
        )
        return tuple(carry), d_query

    rows = [plan.split_rows(a) for a in (query, cotangent, out)]
    start = (
        jax.tree.map(jnp.zeros_like, params),
        [jnp.zeros_like(columns[0]), jnp.zeros_like(columns[1]), jnp.zeros_like(columns[3])],
    )
    (d_params, (d_key, d_value, d_signs)), d_query = jax.lax.scan(row, start, (jnp.arange(plan.rows), *rows, log_mass))
    return (
        d_params,
        d_query.reshape(query.shape),
        d_key.reshape(key.shape),
        d_value.reshape(value.shape),
        None,
        d_signs.reshape(signs.shape),
        None,
    )


_attend.defvjp(_forward, _backward)


def _chunks(size: int, largest: int) -> tuple[int, int]:
    """Number and length of the chunks that cover ``size`` with the least padding, lengths a multiple of 8."""
    count = -(-size // largest)
    length = -(-size // count)
    return count, -(-length // 8) * 8


def _pad(array: Array, axis: int, size: int) -> Array:
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, size - array.shape[axis])
    return jnp.pad(array, padding)
