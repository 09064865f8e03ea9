"""Tiles of queries × keys of one integral: their sum, and its derivatives from tiles that are computed again."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxop._platform import platform
from jaxop._varying import varying_like
from jaxop.attention.monoid import (
    Partial,
    accumulate_tile,
    combine,
    finish,
    half_shift,
    halved_densities,
    log_clip,
)
from jaxop.attention.operands import Operands, cast_kernel
from jaxop.kernels import LOG_ZERO, PerHead
from jaxop.kernels.per_head import one_head

T = TypeVar("T")

Chunks = tuple[tuple[int, int], tuple[int, int]]
"""Number and length of the chunks of the queries, and of those of the keys."""


class Inputs(NamedTuple):
    """Arrays of an integral over tiles, of all heads or of one; also their cotangents, or the axes of their heads.

    Attributes:
        params: the leaves of the kernel that have derivatives.
        fixed: the other leaves of the kernel.
        query: q_i, of any length up to that of the chunks; so are key and value.
        key: k_j.
        value: v_j.
        log_weights: logarithms of the magnitudes of the weights, for whole chunks; see `split_weights`.
        signs: the other factor of the weights, for whole chunks.
        pair_mask: the mask, if it is one of pairs, for whole chunks.
        offset: how many nodes the first key lies after the first query in the causal order; None means 0.
    """

    params: list[Array]
    fixed: list[Array]
    query: Array
    key: Array
    value: Array
    log_weights: Array
    signs: Array
    pair_mask: Array | None
    offset: Array | None = None


def plan_of(operands: Operands, normalize: bool, chunks: Chunks) -> tuple["Plan", list[Array], list[Array]]:
    """Returns the static part of an integral whose kernel `is_closed`, and ``params`` and ``fixed`` of its `Inputs`."""
    leaves, structure = jax.tree.flatten(cast_kernel(one_head(operands.kernel), operands.dtype))
    (params, fixed), merge = _by_differentiability([jnp.asarray(leaf) for leaf in leaves])

    def tile(params: list[Array], fixed: list[Array], query: Array, key: Array) -> Array:
        return jax.tree.unflatten(structure, merge(params, fixed)).tile(query, key)

    plan = Plan(
        tile,
        operands.kernel.sign,
        normalize,
        operands.is_causal,
        isinstance(operands.kernel, PerHead),
        *chunks[0],
        *chunks[1],
        operands.dtype,
        operands.value.dtype,
    )
    return plan, params, fixed


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
class Plan:
    """The static part of one integral over tiles."""

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
        """The largest exponent; see `log_clip`."""
        return log_clip(self.dtype, normalize=self.normalize)

    def head_axes(self, inputs: Inputs) -> Inputs:
        """Returns the axes of the heads; None for an array that all heads share."""
        leaves = 0 if self.is_per_head else None
        mask = 0 if inputs.pair_mask is not None and inputs.pair_mask.ndim == 3 else None
        return Inputs._make((leaves, leaves, 1, 1, 1, None, None, mask, None))

    def mask(self, i: Array, j: Array, of_head: Inputs) -> Array | None:
        """Returns which queries of chunk i may see which keys of chunk j; None if all see all."""
        mask = None
        if of_head.pair_mask is not None:
            start = (i * self.row_chunk, j * self.column_chunk)
            mask = jax.lax.dynamic_slice(of_head.pair_mask, start, (self.row_chunk, self.column_chunk))
        if self.is_causal:
            row = i * self.row_chunk + jnp.arange(self.row_chunk)
            column = j * self.column_chunk + jnp.arange(self.column_chunk)
            column = column if of_head.offset is None else column + of_head.offset
            causal = column[None, :] <= row[:, None]
            mask = causal if mask is None else mask & causal
        return mask

    def skip_future(self, i: Array, j: Array, of_head: Inputs, body: Callable[[T], T], carry: T) -> T:
        """Returns ``body(carry)``, or the carry if the order hides every key of chunk j from all queries of chunk i."""
        if not self.is_causal:
            return body(carry)
        first = j * self.column_chunk
        first = first if of_head.offset is None else first + of_head.offset
        reached = first < (i + 1) * self.row_chunk
        return jax.lax.cond(reached, body, lambda carry: carry, carry)

    def empty(self, shape: tuple[int, ...], channels: int) -> Partial:
        """Returns the integral over no key at all."""
        zero = jnp.zeros(shape, self.dtype)
        floor = zero if self.sign == "signed" else zero + LOG_ZERO / 2
        return Partial(floor, zero, jnp.zeros((*shape, channels), self.dtype))

    def finish(self, part: Partial) -> tuple[Array, Array]:
        """Returns the integral over all keys, and the shift of its rows for `backward_head`."""
        shift = part.shift
        if self.normalize:
            alive = part.mass != 0
            # in a row without mass, exp(logit - shift) must be 0 in the backward pass
            shift = jnp.where(alive, shift + jnp.log(jnp.where(alive, part.mass, 1)), -LOG_ZERO)
        return finish(part, self.normalize).astype(self.out_dtype), shift

    def rows_of(self, array: Array, mode: str = "constant") -> Array:
        """Returns an array over queries as (rows, row_chunk, …), padded."""
        array = pad(array, self.rows * self.row_chunk, mode).astype(self.dtype)
        return array.reshape(self.rows, self.row_chunk, *array.shape[1:])

    def columns_of(self, array: Array, mode: str = "constant") -> Array:
        """Returns an array over keys as (columns, column_chunk, …), padded."""
        return self.split_columns(pad(array, self.columns * self.column_chunk, mode).astype(self.dtype))

    def split_columns(self, array: Array) -> Array:
        """Returns an array over whole chunks of keys as (columns, column_chunk, …)."""
        return array.reshape(self.columns, self.column_chunk, *array.shape[1:])


def map_heads(f, arguments, in_axes, out_axes, *, heads):
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


def _in_chunks(plan: Plan, inputs: Inputs) -> tuple[Array, list[Array]]:
    # padded nodes repeat the last one: many kernels are singular at 0
    nodes = [plan.columns_of(inputs.key, "edge"), plan.columns_of(inputs.value)]
    return plan.rows_of(inputs.query, "edge"), [*nodes, *map(plan.split_columns, (inputs.log_weights, inputs.signs))]


def forward_head(plan: Plan, of_head: Inputs) -> tuple[Array, Array]:
    """Returns the integral of one head, and the shift of its rows for `backward_head`."""
    n, channels = of_head.query.shape[0], of_head.value.shape[1]
    queries, columns = _in_chunks(plan, of_head)

    def row(carry, inputs):
        i, query = inputs
        empty = varying_like(plan.empty((plan.row_chunk,), channels), query, of_head.params, of_head.fixed)
        return carry, plan.finish(_integrate_row(plan, of_head, i, query, columns, empty))

    _, (out, shift) = jax.lax.scan(row, None, (jnp.arange(plan.rows), queries))
    return out.reshape(-1, channels)[:n], shift.reshape(-1)[:n]


def accumulate_head(plan: Plan, of_head: Inputs, part: Partial) -> tuple[Partial]:
    """Returns the sum of a partial integral of one head, for whole chunks of queries, and that over these keys."""
    queries, columns = _in_chunks(plan, of_head)

    def row(carry, inputs):
        i, query, part = inputs
        return carry, _integrate_row(plan, of_head, i, query, columns, part)

    parts = jax.tree.map(lambda a: a.reshape(plan.rows, plan.row_chunk, *a.shape[1:]), part)
    _, parts = jax.lax.scan(row, None, (jnp.arange(plan.rows), queries, parts))
    return (jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), parts),)


def _integrate_row(plan: Plan, of_head: Inputs, i: Array, query: Array, columns: list[Array], part: Partial) -> Partial:
    """Returns the sum of a partial integral of the queries of chunk i, and that over all keys."""
    params, fixed = of_head.params, of_head.fixed

    def column(part, inputs):
        j, key, value, log_weights, signs = inputs

        def integrate(part):
            tile = plan.tile(params, fixed, query, key)
            mask = plan.mask(i, j, of_head)
            return combine(part, accumulate_tile(tile, value, log_weights, signs, mask, plan.sign, plan.clip))

        return plan.skip_future(i, j, of_head, integrate, part), None

    return jax.lax.scan(column, part, (jnp.arange(plan.columns), *columns))[0]


def backward_head(plan: Plan, of_head: Inputs, out: Array, shift: Array, cotangent: Array):
    """Returns the derivatives of one head over these keys in params, signs, query, key and value."""
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
                mask = plan.mask(i, j, of_head)
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

            return plan.skip_future(i, j, of_head, differentiate, carry), None

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


def pad(array: Array, size: int, mode: str = "constant") -> Array:
    """Returns an array with a first axis of length ``size``."""
    return jnp.pad(array, [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1), mode=mode)
