"""Attention of queries that all devices have: every device sums over its own keys, and one reduction adds the sums."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._eager import compiled
from jaxop._varying import varying_like
from jaxop.attention.chunked import chunks_of
from jaxop.attention.closing import close
from jaxop.attention.monoid import Partial, finish, log_clip
from jaxop.attention.operands import Operands
from jaxop.attention.ring import Own, split
from jaxop.attention.tiles import Chunks, Inputs, Plan, accumulate_head, backward_head, map_heads, pad, plan_of
from jaxop.kernels import LOG_ZERO


def reduced_integral(operands: Operands, axis_name: str) -> Float[Array, "n h c"]:
    """A_i = Σ_r M_r / Σ_r Z_r, where M_r = Σ_j w_j k(q_i, k_j) v_j and Z_r = Σ_j w_j k(q_i, k_j) on device r.

    Queries are the same on all devices of a mapped axis. Keys, values, weights and a mask of keys are those of one
    device. Every device computes M_r and Z_r in tiles, both relative to the largest w_j k_ij of all devices, and
    all devices get the result. The derivatives in the queries and in the kernel are those of the device's own keys.

    Args:
        operands: checked operands; the kernel is not signed.
        axis_name: the mapped axis.

    Cost: time and memory of "chunked" attention over the keys of one device. Every device sends n h (c + 2) numbers,
        and n h (c + 1) in the backward pass.
    """
    depth = operands.query.shape[2]
    chunks = chunks_of(operands)
    here = jax.lax.axis_index(axis_name)
    closed = close(operands, [(length, depth) for _, length in chunks])
    return _reduced(varying_like(closed, here), chunks, axis_name)


@compiled(static=("chunks", "axis_name"))
def _reduced(operands: Operands, chunks: Chunks, axis_name: str) -> Array:
    weights = varying_like(operands.measure(operands.dtype), operands.query)
    plan, params, fixed = plan_of(operands, True, chunks)
    own = Own(params, fixed, operands.query, operands.key, operands.value, weights, operands.mask, None)
    sums = jax.lax.psum(_sums(_Local(plan, axis_name), own), axis_name)
    moment, mass = sums[..., :-1], sums[..., -1]
    return finish(Partial(jnp.zeros_like(mass), mass, moment)).astype(operands.value.dtype)


@dataclasses.dataclass(frozen=True)
class _Local:
    """The static part of the integral over the keys of one device of a mapped axis."""

    plan: Plan
    axis_name: str

    def inputs(self, own: Own, log_weights: Array, signs: Array) -> Inputs:
        columns = self.plan.columns * self.plan.column_chunk
        extra = columns - own.key.shape[0]
        log_weights = jnp.pad(log_weights, (0, extra), constant_values=LOG_ZERO)
        return Inputs(own.params, own.fixed, own.query, own.key, own.value, log_weights, pad(signs, columns), None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(local: _Local, own: Own) -> Array:
    """Returns the moment of one device and, in one more channel, its mass."""
    return _forward(local, own)[0]


def _forward(local: _Local, own: Own) -> tuple[Array, tuple[Own, Array, Array]]:
    plan, (n, heads, _), channels = local.plan, own.query.shape, own.value.shape[2]
    log_weights, signs = split(own, own.weights)
    inputs = local.inputs(own, log_weights, signs)
    empty = varying_like(plan.empty((plan.rows * plan.row_chunk, heads), channels), own)
    of_head = functools.partial(accumulate_head, plan)
    (part,) = map_heads(of_head, (inputs, empty), (plan.head_axes(inputs), 1), (1,), heads=heads)
    part = jax.tree.map(lambda a: a[:n], part)
    # a device without mass does not set the shift
    shift = jnp.where(part.mass != 0, part.shift, LOG_ZERO / 2)
    largest = jnp.max(jnp.where(signs != 0, log_weights, LOG_ZERO))
    shift, largest = jax.lax.pmax((shift, largest), local.axis_name)
    scale = jnp.exp(jnp.minimum(part.shift - shift, log_clip(plan.dtype)))
    sums = scale[..., None] * jnp.concatenate([part.moment, part.mass[..., None]], axis=-1)
    # the unit of the weights of all devices, in which nodes of weight 0 are differentiated
    unit = jnp.where(largest > LOG_ZERO / 2, jnp.exp(largest), 1)
    # in a row without mass, exp(logit - shift) must be 0 in the backward pass
    return sums, (own, jnp.where(shift > LOG_ZERO / 2, shift, -LOG_ZERO), unit)


def _backward(local: _Local, residuals: tuple[Own, Array, Array], cotangent: Array) -> tuple[Own]:
    own, shift, unit = residuals
    plan, heads = local.plan, own.query.shape[1]

    def signs_of(weights: Array) -> tuple[Array, Array]:
        log_weights, signs = split(own, weights, unit)
        return signs, log_weights

    signs, of_signs, log_weights = jax.vjp(signs_of, own.weights, has_aux=True)
    value = own.value.astype(plan.dtype)
    value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
    inputs = local.inputs(own._replace(value=value), log_weights, signs)
    # the sums are linear in the densities, as an average is that subtracts a mean of 0
    d_params, d_signs, d_query, d_key, d_value = map_heads(
        functools.partial(backward_head, plan),
        (inputs, jnp.zeros_like(cotangent), shift, cotangent),
        (plan.head_axes(inputs), 1, 1, 1),
        (0, 0, 1, 1, 1),
        heads=heads,
    )
    if not plan.is_per_head:
        d_params = jax.tree.map(functools.partial(jnp.sum, axis=0), d_params)
    (d_weights,) = of_signs(jnp.sum(d_signs, axis=0)[: own.weights.shape[0]])
    d_value = d_value[..., :-1].astype(own.value.dtype)
    return (Own._make((d_params, None, d_query, d_key, d_value, d_weights, None, None)),)


_sums.defvjp(_forward, _backward)
