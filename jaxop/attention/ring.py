"""Attention whose nodes are distributed over devices: blocks of keys and values travel round a ring."""

import dataclasses
import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._eager import compiled
from jaxop._varying import varying_like
from jaxop.attention.chunked import chunks_of
from jaxop.attention.closing import close
from jaxop.attention.monoid import Partial, split_weights
from jaxop.attention.operands import Operands
from jaxop.attention.tiles import Chunks, Inputs, Plan, accumulate_head, backward_head, map_heads, pad, plan_of
from jaxop.kernels import LOG_ZERO

Tree = TypeVar("Tree")


def ring_integral(operands: Operands, normalize: bool, axis_name: str) -> Float[Array, "n h c"]:
    """Returns `jaxop.attention.integral_attention` of checked operands, the nodes of one device of a mapped axis.

    Device r of p integrates over the keys of device r − t in step t = 0, …, p − 1, in tiles, and passes them on to
    device r + 1. In the backward pass the blocks travel again, together with their derivatives, which are at home after
    p steps. The derivatives in the kernel are those of the device's own queries.
    """
    depth = operands.query.shape[2]
    chunks = chunks_of(operands)
    here = jax.lax.axis_index(axis_name)
    closed = close(operands, [(length, depth) for _, length in chunks])
    return _ring(varying_like(closed, here), normalize, chunks, axis_name)


@compiled(static=("normalize", "chunks", "axis_name"))
def _ring(operands: Operands, normalize: bool, chunks: Chunks, axis_name: str) -> Array:
    mask, dtype = operands.mask, operands.dtype
    if operands.weights is None:
        total = operands.keys * jax.lax.axis_size(axis_name)
        weights = varying_like(jnp.full(operands.keys, 1 / total, dtype), operands.query)
    else:
        weights = operands.weights.astype(dtype)
    plan, params, fixed = plan_of(operands, normalize, chunks)
    key_mask, pair_mask = (mask, None) if mask is not None and mask.ndim == 1 else (None, mask)
    own = Own(params, fixed, operands.query, operands.key, operands.value, weights, key_mask, pair_mask)
    return _attend(_Ring(plan, axis_name), own)


class Own(NamedTuple):
    """Arrays of one device, with a kernel in the parts of `Inputs`; also their cotangents."""

    params: list[Array]
    fixed: list[Array]
    query: Array
    key: Array
    value: Array
    weights: Array
    key_mask: Array | None
    pair_mask: Array | None


class _Block(NamedTuple):
    """Keys and values that travel; also their cotangents."""

    key: Array
    value: Array
    log_weights: Array
    signs: Array


@dataclasses.dataclass(frozen=True)
class _Ring:
    """The static part of one integral over the keys of all devices of a mapped axis."""

    plan: Plan
    axis_name: str

    def steps(self) -> Array:
        return jnp.arange(jax.lax.axis_size(self.axis_name), dtype=jnp.int32)

    def pass_on(self, tree: Tree) -> Tree:
        size = jax.lax.axis_size(self.axis_name)
        return jax.lax.ppermute(tree, self.axis_name, [(i, (i + 1) % size) for i in range(size)])

    def inputs(self, own: Own, block: _Block, step: Array) -> Inputs:
        """Returns the queries of this device with the keys that are here in a step."""
        plan, n, m = self.plan, own.query.shape[0], own.key.shape[0]
        here = jax.lax.axis_index(self.axis_name)
        source = (here - step) % jax.lax.axis_size(self.axis_name)
        rows, columns = plan.rows * plan.row_chunk, plan.columns * plan.column_chunk
        pair_mask = own.pair_mask
        if pair_mask is not None:
            pair_mask = jax.lax.dynamic_slice_in_dim(pair_mask, source * m, m, axis=-1)
            pair_mask = jnp.pad(pair_mask, [(0, 0)] * (pair_mask.ndim - 2) + [(0, rows - n), (0, columns - m)])
        return Inputs(
            own.params,
            own.fixed,
            own.query,
            block.key,
            block.value,
            jnp.pad(block.log_weights, (0, columns - m), constant_values=LOG_ZERO),
            pad(block.signs, columns),
            pair_mask,
            source * m - here * n if plan.is_causal else None,
        )


def split(own: Own, weights: Array, largest: Array | None = None) -> tuple[Array, Array]:
    """Returns `split_weights` of weights that are 0 at masked keys."""
    seen = weights if own.key_mask is None else jnp.where(own.key_mask, weights, 0)
    return split_weights(seen, own.key_mask, largest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: _Ring, own: Own) -> Array:
    return _forward(ring, own)[0]


def _forward(ring: _Ring, own: Own) -> tuple[Array, tuple[Own, Array, Array, Array]]:
    plan, (n, heads, _), channels = ring.plan, own.query.shape, own.value.shape[2]
    block = _Block(own.key, own.value, *split(own, own.weights))
    empty = plan.empty((plan.rows * plan.row_chunk, heads), channels)

    def step(carry: tuple[_Block, Partial, Array], number: Array):
        block, part, largest = carry
        moved = ring.pass_on(block)
        inputs = ring.inputs(own, block, number)
        of_head = functools.partial(accumulate_head, plan)
        (part,) = map_heads(of_head, (inputs, part), (plan.head_axes(inputs), 1), (1,), heads=heads)
        largest = jnp.maximum(largest, jnp.max(jnp.where(block.signs != 0, block.log_weights, LOG_ZERO)))
        return (moved, part, largest), None

    start = block, *varying_like((empty, jnp.asarray(LOG_ZERO, plan.dtype)), own)
    (_, part, largest), _ = jax.lax.scan(step, start, ring.steps())
    out, shift = plan.finish(part)
    # the unit of the weights of all devices, in which nodes of weight 0 are differentiated
    unit = jnp.where(largest > LOG_ZERO / 2, jnp.exp(largest), 1)
    return out[:n], (own, out[:n], shift[:n], unit)


def _backward(ring: _Ring, residuals: tuple[Own, Array, Array, Array], cotangent: Array) -> tuple[Own]:
    own, out, shift, unit = residuals
    plan, heads = ring.plan, own.query.shape[1]

    def signs_of(weights: Array) -> tuple[Array, Array]:
        log_weights, signs = split(own, weights, unit)
        return signs, log_weights

    signs, of_signs, log_weights = jax.vjp(signs_of, own.weights, has_aux=True)
    wide = own._replace(query=own.query.astype(plan.dtype))  # so that derivatives are summed in this precision

    def step(carry: tuple[_Block, list[Array], list[Array], Array], number: Array):
        block, d_block, d_params, d_query = carry
        moved = ring.pass_on(block)
        block = block._replace(key=block.key.astype(plan.dtype), value=block.value.astype(plan.dtype))
        inputs = ring.inputs(wide, block, number)
        params, signs, query, key, value = map_heads(
            functools.partial(backward_head, plan),
            (inputs, out, shift, cotangent),
            (plan.head_axes(inputs), 1, 1, 1),
            (0, 0, 1, 1, 1),
            heads=heads,
        )
        if not plan.is_per_head:
            params = jax.tree.map(functools.partial(jnp.sum, axis=0), params)
        signs = jnp.sum(signs, axis=0)[: block.signs.shape[0]]
        d_block, d_params = jax.tree.map(jnp.add, (d_block, d_params), ([key, value, signs], params))
        return (moved, ring.pass_on(d_block), d_params, d_query + query), None

    block = _Block(own.key, own.value, log_weights, signs)
    zeros = [[own.key, own.value, signs], own.params, own.query]
    zeros = jax.tree.map(lambda a: jnp.zeros(jnp.shape(a), plan.dtype), zeros)  # known numbers do not have shapes
    carry, _ = jax.lax.scan(step, (block, *varying_like(zeros, own)), ring.steps())
    _, (d_key, d_value, d_signs), d_params, d_query = carry
    (d_weights,) = of_signs(d_signs)
    d_query, d_key, d_value = (
        derivative.astype(array.dtype)
        for derivative, array in zip((d_query, d_key, d_value), (own.query, own.key, own.value), strict=True)
    )
    return (Own._make((d_params, None, d_query, d_key, d_value, d_weights, None, None)),)


_attend.defvjp(_forward, _backward)
