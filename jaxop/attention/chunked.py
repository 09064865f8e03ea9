"""Attention in linear memory: tiles of queries × keys, recomputed in the backward pass."""

import dataclasses
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
    n, m = query.shape[0], key.shape[0]
    dtype = accumulation_dtype(query, key, value)
    weights = uniform_weights(m, dtype) if weights is None else weights.astype(dtype)
    leaves, structure = jax.tree.flatten(cast_kernel(kernel, dtype))
    rows, row_chunk = _chunks(n, QUERY_CHUNK)
    columns, column_chunk = _chunks(m, KEY_CHUNK)

    key_mask = mask if mask is not None and mask.ndim == 1 else None
    log_weights, signs = split_weights(weights if key_mask is None else jnp.where(key_mask, weights, 0), key_mask)
    log_weights = jnp.pad(log_weights, (0, columns * column_chunk - m), constant_values=LOG_ZERO)
    signs = _pad(signs, columns * column_chunk)
    pair_mask = None
    if mask is not None and mask.ndim > 1:
        padding = [(0, rows * row_chunk - n), (0, columns * column_chunk - m)]
        pair_mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 2) + padding)

    def tile(leaves: list[Any], query: Array, key: Array) -> Array:
        return jax.tree.unflatten(structure, leaves).tile(query, key)

    # a pair function may close over traced arrays; a custom derivative must see them as arguments
    examples = [jax.ShapeDtypeStruct((size, query.shape[2]), dtype) for size in (row_chunk, column_chunk)]
    one_leaf = [jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in leaves]
    tile, constants = jax.closure_convert(tile, leaves if kernel_axis is None else one_leaf, *examples)
    sizes = rows, row_chunk, columns, column_chunk
    plan = _Plan(tile, kernel.sign, normalize, is_causal, kernel_axis, *sizes, dtype, value.dtype)
    return _attend(plan, leaves, constants, query, key, value, log_weights, signs, pair_mask)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static part of one chunked integral."""

    tile: Callable[..., Array]
    sign: str
    normalize: bool
    is_causal: bool
    kernel_axis: int | None
    rows: int
    row_chunk: int
    columns: int
    column_chunk: int
    dtype: jnp.dtype
    out_dtype: jnp.dtype

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

    def rows_of(self, array: Array) -> Array:
        array = _pad(array, self.rows * self.row_chunk).astype(self.dtype)
        return array.reshape(self.rows, self.row_chunk, *array.shape[1:])

    def columns_of(self, array: Array) -> Array:
        return self.split_columns(_pad(array, self.columns * self.column_chunk).astype(self.dtype))

    def split_columns(self, array: Array) -> Array:
        return array.reshape(self.columns, self.column_chunk, *array.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, leaves, constants, query, key, value, log_weights, signs, pair_mask):
    return _forward(plan, leaves, constants, query, key, value, log_weights, signs, pair_mask)[0]


def _forward(plan, leaves, constants, query, key, value, log_weights, signs, pair_mask):
    def one_head(leaves, query, key, value, pair_mask):
        return _forward_head(plan, leaves, constants, query, key, value, log_weights, signs, pair_mask)

    mask_axis = 0 if pair_mask is not None and pair_mask.ndim == 3 else None
    out, log_mass = _map_heads(
        one_head, (leaves, query, key, value, pair_mask), (plan.kernel_axis, 1, 1, 1, mask_axis), (1, 1)
    )
    return out, (leaves, constants, query, key, value, log_weights, signs, pair_mask, out, log_mass)


def _backward(plan, residuals, cotangent):
    leaves, constants, query, key, value, log_weights, signs, pair_mask, out, log_mass = residuals

    def one_head(leaves, query, key, value, pair_mask, *row_data):
        return _backward_head(plan, leaves, constants, query, key, value, log_weights, signs, pair_mask, *row_data)

    mask_axis = 0 if pair_mask is not None and pair_mask.ndim == 3 else None
    d_leaves, d_constants, d_signs, d_query, d_key, d_value = _map_heads(
        one_head,
        (leaves, query, key, value, pair_mask, out, log_mass, cotangent),
        (plan.kernel_axis, 1, 1, 1, mask_axis, 1, 1, 1),
        (0, 0, 0, 1, 1, 1),
    )
    over_heads = functools.partial(jnp.sum, axis=0)
    if plan.kernel_axis is None:
        d_leaves = jax.tree.map(over_heads, d_leaves)
    return d_leaves, jax.tree.map(over_heads, d_constants), d_query, d_key, d_value, None, over_heads(d_signs), None


_attend.defvjp(_forward, _backward)


def _map_heads(f, arguments, in_axes, out_axes):
    """``jax.vmap(f, in_axes, out_axes)``; on a CPU one head at a time, which keeps its tile in cache.

    The loop reads each head from its place in the arguments and writes it to its place in the results:
    no copy with the heads in front is ever made.
    """
    vmapped = jax.vmap(f, in_axes, out_axes)
    heads = arguments[1].shape[1]
    if jax.default_backend() != "cpu" or heads == 1:
        return vmapped(*arguments)

    def read(argument, axis, head):
        if axis is None:
            return argument
        return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, head, axis, keepdims=False), argument)

    def write(result, axis, head, value):
        update = functools.partial(jax.lax.dynamic_update_index_in_dim, index=head, axis=axis)
        return jax.tree.map(lambda r, v: update(r, v), result, value)

    def step(results, head):
        values = f(*(read(a, axis, head) for a, axis in zip(arguments, in_axes, strict=True)))
        return tuple(write(r, axis, head, v) for r, axis, v in zip(results, out_axes, values, strict=True)), None

    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(vmapped, *arguments))
    return jax.lax.scan(step, empty, jnp.arange(heads))[0]


def _forward_head(plan, leaves, constants, query, key, value, log_weights, signs, pair_mask):
    n = query.shape[0]
    queries = plan.rows_of(query)
    columns = [*map(plan.columns_of, (key, value)), *map(plan.split_columns, (log_weights, signs))]

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
        # an empty row must find exp(logit - log_mass) = 0 in the backward pass
        log_mass = jnp.where(alive, part.shift + jnp.log(jnp.where(alive, part.mass, 1)), -LOG_ZERO)
        return carry, (finish(part, plan.normalize).astype(plan.out_dtype), log_mass)

    _, (out, log_mass) = jax.lax.scan(row, None, (jnp.arange(plan.rows), queries))
    return out.reshape(-1, value.shape[1])[:n], log_mass.reshape(-1)[:n]


def _backward_head(plan, leaves, constants, query, key, value, log_weights, signs, pair_mask, out, log_mass, cotangent):
    n, m = query.shape[0], key.shape[0]
    rows = [plan.rows_of(a) for a in (query, cotangent, out, log_mass)]
    columns = [*map(plan.columns_of, (key, value)), *map(plan.split_columns, (log_weights, signs))]
    dtype = rows[0].dtype
    clip = log_clip(dtype) * (1 if plan.normalize else 2)
    params = (leaves, constants)

    def row(carry, inputs):
        i, query, cotangent, out, log_mass = inputs
        average = jnp.sum(cotangent * out, axis=1) if plan.normalize else jnp.zeros(plan.row_chunk, dtype)
        shift = log_mass if plan.normalize else jnp.zeros_like(log_mass)

        def column(carry, inputs):
            j, key, value, log_weights, signs = inputs

            def differentiate(carry):
                d_query, d_params, d_columns = carry
                # with respect to the transposed keys (and values, below): Tᵀ q is many times slower than qᵀ T
                tile, pull_back = jax.vjp(lambda p, q, k: plan.tile(p[0], q, k.T, *p[1]), params, query, key.T)
                mask = plan.mask(i, j, pair_mask)
                slope = cotangent @ value.T - average[:, None]
                if plan.sign == "signed":
                    density = jnp.exp(log_weights)[None, :]
                    density = density if mask is None else jnp.where(mask, density, 0)
                    d_tile = signs[None, :] * density * slope
                    density = density * tile
                    d_signs = jnp.sum(density * slope, axis=0)
                else:
                    logits = tile + log_weights[None, :]
                    logits = logits if mask is None else jnp.where(mask, logits, LOG_ZERO)
                    density = jnp.exp(jnp.minimum(logits - shift[:, None], clip))
                    weighted = density * slope
                    d_tile, d_signs = signs[None, :] * weighted, jnp.sum(weighted, axis=0)
                d_value = signs[None, :] * (cotangent.T @ density)
                step_params, step_query, d_key = pull_back(d_tile)
                d_columns = [d.at[j].add(step) for d, step in zip(d_columns, (d_key, d_value, d_signs), strict=True)]
                return d_query + step_query, jax.tree.map(jnp.add, d_params, step_params), d_columns

            return plan.skip_future(i, j, differentiate, carry), None

        (d_query, *carry), _ = jax.lax.scan(
            column, (jnp.zeros_like(query), *carry), (jnp.arange(plan.columns), *columns)
        )
        return tuple(carry), d_query

    def zeros(*shape):
        return jnp.zeros((plan.columns, *shape, plan.column_chunk), dtype)

    start = jax.tree.map(jnp.zeros_like, params), [zeros(key.shape[1]), zeros(value.shape[1]), zeros()]
    ((d_leaves, d_constants), (d_key, d_value, d_signs)), d_query = jax.lax.scan(
        row, start, (jnp.arange(plan.rows), *rows)
    )

    def columns_back(array, like):
        return jnp.swapaxes(array, 1, 2).reshape(-1, like.shape[1])[:m].astype(like.dtype)

    d_query = d_query.reshape(-1, query.shape[1])[:n].astype(query.dtype)
    return d_leaves, d_constants, d_signs.reshape(-1), d_query, columns_back(d_key, key), columns_back(d_value, value)


def _chunks(size: int, largest: int) -> tuple[int, int]:
    """Number and length of the chunks that cover ``size`` with the least padding, lengths a multiple of 8."""
    count = -(-size // largest)
    length = -(-size // count)
    return count, -(-length // 8) * 8


def _pad(array: Array, size: int) -> Array:
    return jnp.pad(array, [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1))
