"""Attention in linear memory: tiles of queries × keys, recomputed in the backward pass."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._eager import compiled
from jaxop._platform import platform
from jaxop._varying import varying_like
from jaxop.attention.closing import close
from jaxop.attention.monoid import (
    Partial,
    accumulate_tile,
    combine,
    finish,
    half_shift,
    halved_densities,
    log_clip,
    split_weights,
)
from jaxop.attention.operands import Operands, cast_kernel
from jaxop.kernels import LOG_ZERO, PerHead
from jaxop.kernels.per_head import one_head

T = TypeVar("T")

QUERY_CHUNK, KEY_CHUNK = 512, 1024
"""Largest tile; it takes 2 MiB in float32 and stays in the cache of a core."""


def chunked_attention(operands: Operands, normalize: bool) -> Float[Array, "n h c"]:
    """Returns `jaxop.attention.integral_attention` of checked operands, in tiles; O(n + m) memory with gradients."""
    depth = operands.query.shape[2]
    chunks = _chunks(operands.queries, QUERY_CHUNK), _chunks(operands.keys, KEY_CHUNK)
    return _chunked(close(operands, [(length, depth) for _, length in chunks]), normalize, chunks)


@compiled(static=("normalize", "chunks"))
def _chunked(operands: Operands, normalize: bool, chunks: tuple[tuple[int, int], tuple[int, int]]) -> Array:
    n, m, mask, dtype = operands.queries, operands.keys, operands.mask, operands.dtype
    weights = operands.measure(dtype)
    (rows, row_chunk), (columns, column_chunk) = chunks

    key_mask = mask if mask is not None and mask.ndim == 1 else None
    log_weights, signs = split_weights(weights if key_mask is None else jnp.where(key_mask, weights, 0), key_mask)
    log_weights = jnp.pad(log_weights, (0, columns * column_chunk - m), constant_values=LOG_ZERO)
    signs = _pad(signs, columns * column_chunk)
    pair_mask = None
    if mask is not None and mask.ndim > 1:
        padding = [(0, rows * row_chunk - n), (0, columns * column_chunk - m)]
        pair_mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 2) + padding)

    leaves, structure = jax.tree.flatten(cast_kernel(one_head(operands.kernel), dtype))
    (params, fixed), merge = _by_differentiability([jnp.asarray(leaf) for leaf in leaves])

    def tile(params: list[Array], fixed: list[Array], query: Array, key: Array) -> Array:
        return jax.tree.unflatten(structure, merge(params, fixed)).tile(query, key)

    plan = _Plan(
        tile,
        operands.kernel.sign,
        normalize,
        operands.is_causal,
        isinstance(operands.kernel, PerHead),
        *(rows, row_chunk, columns, column_chunk),
        dtype,
        operands.value.dtype,
    )
    query, key, value = operands.query, operands.key, operands.value
    log_weights, signs = varying_like((log_weights, signs), query)
    return _attend(plan, _Inputs(params, fixed, query, key, value, log_weights, signs, pair_mask))


class _Inputs(NamedTuple):
    """Arrays of one chunked integral, of all heads or of one; also their cotangents, or the axes of their heads."""

    params: list[Array]
    fixed: list[Array]
    query: Array
    key: Array
    value: Array
    log_weights: Array
    signs: Array
    pair_mask: Array | None


def _by_differentiability(
    arrays: list[Array],
) -> tuple[tuple[list[Array], list[Array]], Callable[[list[Array], list[Array]], list[Array]]]:
    """Returns floating-point arrays and other arrays as two lists, and the function that merges such lists."""
    floating = [jnp.issubdtype(jnp.result_type(a), jnp.inexact) for a in arrays]

    def merge(params: list[Array], fixed: list[Array]) -> list[Array]:
        sources = iter(fixed), iter(params)
        return [next(sources[is_floating]) for is_floating in floating]

    params, fixed = ([a for a, f in zip(arrays, floating, strict=True) if f == kind] for kind in (True, False))
    return (params, fixed), merge


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static part of one chunked integral."""

    tile: Callable[..., Array]
    sign: str
    normalize: bool
    is_causal: bool
    is_per_head: bool
    rows: int
    row_chunk: int
    columns: int
    column_chunk: int
    dtype: jnp.dtype
    out_dtype: jnp.dtype

    @property
    def clip(self) -> float:
        return log_clip(self.dtype, normalize=self.normalize)

    def head_axes(self, inputs: _Inputs) -> _Inputs:
        """Returns the axes of the heads; None for an array that all heads share."""
        leaves = 0 if self.is_per_head else None
        mask = 0 if inputs.pair_mask is not None and inputs.pair_mask.ndim == 3 else None
        return _Inputs._make((leaves, leaves, 1, 1, 1, None, None, mask))

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

    def skip_future(self, i: Array, j: Array, body: Callable[[T], T], carry: T) -> T:
        if not self.is_causal:
            return body(carry)
        reached = j * self.column_chunk < (i + 1) * self.row_chunk
        return jax.lax.cond(reached, body, lambda carry: carry, carry)

    def rows_of(self, array: Array, mode: str = "constant") -> Array:
        array = _pad(array, self.rows * self.row_chunk, mode).astype(self.dtype)
        return array.reshape(self.rows, self.row_chunk, *array.shape[1:])

    def columns_of(self, array: Array, mode: str = "constant") -> Array:
        return self.split_columns(_pad(array, self.columns * self.column_chunk, mode).astype(self.dtype))

    def split_columns(self, array: Array) -> Array:
        return array.reshape(self.columns, self.column_chunk, *array.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, inputs: _Inputs) -> Array:
    return _forward(plan, inputs)[0]


def _forward(plan: _Plan, inputs: _Inputs) -> tuple[Array, tuple[_Inputs, Array, Array]]:
    of_head = functools.partial(_forward_head, plan)
    out, shift = _map_heads(of_head, (inputs,), (plan.head_axes(inputs),), (1, 1), heads=inputs.query.shape[1])
    return out, (inputs, out, shift)


def _backward(plan: _Plan, residuals: tuple[_Inputs, Array, Array], cotangent: Array) -> tuple[_Inputs]:
    inputs, out, shift = residuals
    d_params, d_signs, d_query, d_key, d_value = _map_heads(
        functools.partial(_backward_head, plan),
        (inputs, out, shift, cotangent),
        (plan.head_axes(inputs), 1, 1, 1),
        (0, 0, 1, 1, 1),
        heads=inputs.query.shape[1],
    )
    total = functools.partial(jnp.sum, axis=0)
    d_params = d_params if plan.is_per_head else jax.tree.map(total, d_params)
    return (_Inputs._make((d_params, None, d_query, d_key, d_value, None, total(d_signs), None)),)


_attend.defvjp(_forward, _backward)


def _map_heads(f, arguments, in_axes, out_axes, *, heads):
    """``jax.vmap(f, in_axes, out_axes)``; on a CPU a loop over heads, so that the tile of a head stays in cache.

    The loop reads each head from its place in the arguments and writes it to its place in the results. It never
    copies arrays to bring the heads to the front.
    """
    vmapped = jax.vmap(f, in_axes, out_axes)
    if platform() != "cpu" or heads == 1:
        return vmapped(*arguments)

    def read(axis, argument, head):
        if axis is None:
            return argument
        return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, head, axis, keepdims=False), argument)

    def write(result, axis, head, value):
        update = functools.partial(jax.lax.dynamic_update_index_in_dim, index=head, axis=axis)
        return jax.tree.map(lambda r, v: update(r, v), result, value)

    def step(results, head):
        read_one = functools.partial(read, head=head)
        values = f(*jax.tree.map(read_one, in_axes, arguments, is_leaf=lambda axis: axis is None))
        return tuple(write(r, axis, head, v) for r, axis, v in zip(results, out_axes, values, strict=True)), None

    shapes = jax.eval_shape(vmapped, *arguments)
    empty = jax.tree.map(lambda s: varying_like(jnp.zeros(s.shape, s.dtype), s), shapes)
    return jax.lax.scan(step, empty, jnp.arange(heads))[0]


def _in_chunks(plan: _Plan, inputs: _Inputs) -> tuple[Array, list[Array]]:
    # padded nodes repeat the last one: many kernels are singular at 0
    nodes = [plan.columns_of(inputs.key, "edge"), plan.columns_of(inputs.value)]
    return plan.rows_of(inputs.query, "edge"), [*nodes, *map(plan.split_columns, (inputs.log_weights, inputs.signs))]


def _forward_head(plan: _Plan, of_head: _Inputs) -> tuple[Array, Array]:
    n, channels = of_head.query.shape[0], of_head.value.shape[1]
    params, fixed = of_head.params, of_head.fixed
    queries, columns = _in_chunks(plan, of_head)

    def row(carry, inputs):
        i, query = inputs

        def column(part, inputs):
            j, key, value, log_weights, signs = inputs

            def integrate(part):
                tile = plan.tile(params, fixed, query, key)
                mask = plan.mask(i, j, of_head.pair_mask)
                return combine(part, accumulate_tile(tile, value, log_weights, signs, mask, plan.sign, plan.clip))

            return plan.skip_future(i, j, integrate, part), None

        zero = jnp.zeros(plan.row_chunk, query.dtype)
        floor = zero if plan.sign == "signed" else zero + LOG_ZERO / 2
        empty = Partial(floor, zero, jnp.zeros((plan.row_chunk, channels), query.dtype))
        empty = varying_like(empty, query, params, fixed)
        part, _ = jax.lax.scan(column, empty, (jnp.arange(plan.columns), *columns))
        shift = part.shift
        if plan.normalize:
            alive = part.mass != 0
            # in a row without mass, exp(logit - shift) must be 0 in the backward pass
            shift = jnp.where(alive, shift + jnp.log(jnp.where(alive, part.mass, 1)), -LOG_ZERO)
        return carry, (finish(part, plan.normalize).astype(plan.out_dtype), shift)

    _, (out, shift) = jax.lax.scan(row, None, (jnp.arange(plan.rows), queries))
    return out.reshape(-1, channels)[:n], shift.reshape(-1)[:n]


def _backward_head(plan: _Plan, of_head: _Inputs, out: Array, shift: Array, cotangent: Array):
    (n, depth), (m, channels) = of_head.query.shape, of_head.value.shape
    params, fixed = of_head.params, of_head.fixed
    queries, columns = _in_chunks(plan, of_head)
    rows = [queries, *map(plan.rows_of, (cotangent, out, shift))]
    dtype = rows[0].dtype

    def row(carry, inputs):
        i, query, cotangent, out, shift = inputs
        if plan.normalize:
            average = jnp.sum(cotangent * out, axis=1)
        else:
            average, shift = jnp.zeros(plan.row_chunk, dtype), half_shift(shift)
            cotangent = jnp.exp(shift)[:, None] * cotangent

        def column(carry, inputs):
            j, key, value, log_weights, signs = inputs

            def differentiate(carry):
                d_query, d_params, d_columns = carry
                # with respect to the transposed keys (and values, below), as Tᵀ q is many times slower than qᵀ T
                tile, pull_back = jax.vjp(lambda p, q, k: plan.tile(p, fixed, q, k.T), params, query, key.T)
                mask = plan.mask(i, j, of_head.pair_mask)
                slope = cotangent @ value.T - average[:, None]
                if plan.sign == "signed":
                    density = jnp.exp(log_weights)[None, :]
                    density = density if mask is None else jnp.where(mask, density, 0)
                    d_tile = signs[None, :] * density * slope
                    density = density * tile
                else:
                    logits = tile + log_weights[None, :]
                    logits = logits if mask is None else jnp.where(mask, logits, LOG_ZERO)
                    if plan.normalize:
                        density = jnp.exp(jnp.minimum(logits - shift[:, None], plan.clip))
                    else:
                        density = halved_densities(logits, shift, signs)
                    # density · slope, the derivative of a node of weight 0 in its own weight, may overflow
                    d_tile = signs[None, :] * density * slope
                d_signs = jnp.sum(density * slope, axis=0)
                d_value = cotangent.T @ density
                d_value = signs[None, :] * jnp.where((signs != 0)[None, :] | jnp.isfinite(d_value), d_value, 0)
                step_params, step_query, d_key = pull_back(d_tile)
                d_columns = [d.at[j].add(step) for d, step in zip(d_columns, (d_key, d_value, d_signs), strict=True)]
                return d_query + step_query, jax.tree.map(jnp.add, d_params, step_params), d_columns

            return plan.skip_future(i, j, differentiate, carry), None

        start = varying_like(jnp.zeros_like(query), query)
        (d_query, *carry), _ = jax.lax.scan(column, (start, *carry), (jnp.arange(plan.columns), *columns))
        return tuple(carry), d_query

    def zeros(*shape):
        return jnp.zeros((plan.columns, *shape, plan.column_chunk), dtype)

    start = (
        jax.tree.map(lambda p: varying_like(jnp.zeros_like(p), p), params),
        varying_like([zeros(depth), zeros(channels), zeros()], queries),
    )
    (d_params, (d_key, d_value, d_signs)), d_query = jax.lax.scan(row, start, (jnp.arange(plan.rows), *rows))

    def columns_back(array: Array, like: Array) -> Array:
        return jnp.swapaxes(array, 1, 2).reshape(-1, like.shape[1])[:m].astype(like.dtype)

    d_query = d_query.reshape(-1, depth)[:n].astype(of_head.query.dtype)
    d_key, d_value = columns_back(d_key, of_head.key), columns_back(d_value, of_head.value)
    return d_params, d_signs.reshape(-1), d_query, d_key, d_value


def _chunks(size: int, largest: int) -> tuple[int, int]:
    """Returns number and length of the chunks that cover ``size`` with the least padding; lengths divide by 8."""
    count = -(-size // largest)
    length = -(-size // count)
    return count, -(-length // 8) * 8


def _pad(array: Array, size: int, mode: str = "constant") -> Array:
    return jnp.pad(array, [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1), mode=mode)
