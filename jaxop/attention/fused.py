"""Fused attention of the stack (XLA, cuDNN, Pallas on TPU) with quadrature weights."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._eager import compiled
from jaxop._platform import platform
from jaxop._varying import varying_like
from jaxop.attention.chunked import chunked_attention
from jaxop.attention.operands import Operands
from jaxop.kernels import ExpDotProduct
from jaxop.kernels.per_head import one_head


def fused_attention(backend: str, operands: Operands, normalize: bool) -> Float[Array, "n h c"]:
    """`jaxop.attention.integral_attention` by a program without weights: q' = [q, 1, 1], k' = [k, log w / scale].

    The logarithm takes two channels, its rounded value and the remainder, so that it keeps 16 bits in a bfloat16
    product. Zeros pad the operands to the depth that the backend needs.

    Raises:
        NotImplementedError: if the backend does not support the arguments.
    """
    kernel = _check_supported(backend, operands, normalize)
    scale = kernel.factor(operands.query.shape[-1])
    fixed, trained = (None, scale) if isinstance(scale, jax.Array) else (float(scale), None)
    plan = _Plan(backend, operands.is_causal, fixed)
    return _program(plan, dataclasses.replace(operands, kernel=ExpDotProduct()), trained)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static part of one fused integral; ``scale`` is None if the scale is an array."""

    backend: str
    is_causal: bool
    scale: float | None


class _Inputs(NamedTuple):
    """The arrays of one fused integral, including the scale if it is an array."""

    weights: Array
    query: Array
    key: Array
    value: Array
    scale: Array | None
    key_mask: Array | None
    pair_mask: Array | None


@compiled(static=("plan",))
def _program(plan: _Plan, operands: Operands, scale: Array | None) -> Array:
    mask = operands.mask
    key_mask, pair_mask = (mask, None) if mask is not None and mask.ndim == 1 else (None, mask)
    weights = operands.measure(jnp.dtype("float32"))
    inputs = _Inputs(weights, operands.query, operands.key, operands.value, scale, key_mask, pair_mask)
    return _attend(plan, varying_like(inputs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, inputs: _Inputs) -> Array:
    """Returns value and derivatives of the backend, except those in the weights: its logarithms lose weights of 0."""
    return _value(plan, inputs)


def _value(plan: _Plan, inputs: _Inputs) -> Array:
    weights, query, key, value, scale, key_mask, pair_mask = inputs
    backend, fixed_scale = plan.backend, plan.scale
    n, m, channels = query.shape[0], key.shape[0], value.shape[-1]
    dtype = jnp.result_type(query.dtype, key.dtype, value.dtype)
    alive_keys = weights > 0 if key_mask is None else (weights > 0) & key_mask
    if fixed_scale is None or fixed_scale <= 0:
        query, fixed_scale = query * jnp.asarray(scale if fixed_scale is None else fixed_scale, query.dtype), 1.0
    # far below any logit, but finite after division by the scale in half precision
    floor = max(-1e9, float(jnp.finfo(dtype).min) * min(fixed_scale, 1.0) / 2)
    log_weights = jnp.where(alive_keys, jnp.log(jnp.where(alive_keys, weights, 1)), floor)
    operands = _augment(query, key, value, log_weights, fixed_scale, floor, dtype, _SIZES[backend])

    seen = None  # (h or 1, n or 1, m)
    if pair_mask is not None:
        seen = jnp.reshape(pair_mask, (-1, n, m)) & alive_keys[None, None, :]
    elif backend == "xla":
        seen = alive_keys[None, None, :]
    appended = operands[1].shape[0] - m
    mask = None if seen is None else jnp.pad(seen, [(0, 0), (0, 0), (0, appended)])
    out = _BACKENDS[backend](*operands, mask, fixed_scale, plan.is_causal)[:n, :, :channels]

    seen = alive_keys[None, None, :] if seen is None else seen
    seen = seen & jnp.tri(n, m, dtype=bool)[None] if plan.is_causal else seen
    alive = jnp.any(seen, axis=-1).T
    return jnp.where(alive[..., None], out, 0).astype(value.dtype)


def _forward(plan: _Plan, inputs: _Inputs):
    def differentiable(query: Array, key: Array, value: Array, scale: Array | None) -> Array:
        return _value(plan, inputs._replace(query=query, key=key, value=value, scale=scale))

    out, pull_back = jax.vjp(differentiable, inputs.query, inputs.key, inputs.value, inputs.scale)
    return out, (pull_back, inputs)


def _backward(
    plan: _Plan,
    residuals: tuple[Callable[[Array], tuple[Array, Array, Array, Array | None]], _Inputs],
    cotangent: Array,
):
    pull_back, inputs = residuals

    # XLA removes this if the weights are constant
    def attend(weights: Array) -> Array:
        kernel = ExpDotProduct(inputs.scale if plan.scale is None else plan.scale)
        mask = inputs.key_mask if inputs.pair_mask is None else inputs.pair_mask
        operands = Operands(inputs.query, inputs.key, inputs.value, weights, kernel, mask, plan.is_causal)
        return chunked_attention(operands, normalize=True).astype(inputs.value.dtype)

    (d_weights,) = jax.vjp(attend, inputs.weights)[1](cotangent)
    d_query, d_key, d_value, d_scale = pull_back(cotangent)
    return (_Inputs(d_weights, d_query, d_key, d_value, d_scale, None, None),)


_attend.defvjp(_forward, _backward)


def _check_supported(backend: str, operands: Operands, normalize: bool) -> ExpDotProduct:
    """Returns the kernel; raises ``NotImplementedError`` if the backend does not support the arguments."""
    mask, kernel = operands.mask, operands.kernel

    def refuse(what: str, remedy: str) -> NoReturn:
        raise NotImplementedError(f"implementation={backend!r} {what}; {remedy}.")

    dtypes = {str(a.dtype) for a in (operands.query, operands.key, operands.value)}
    others = "use implementation='chunked' or 'dense'"
    if not isinstance(kernel, ExpDotProduct):
        name = type(one_head(kernel)).__name__
        refuse(f"computes one exponentiated dot product for all heads, not {name} per head", others)
    if not normalize:
        refuse("always normalises", others)
    if "float64" in dtypes:
        refuse("rounds logits to float32, but the inputs are float64", others)
    if backend != "xla":
        needed = {"cudnn": "gpu", "tpu": "tpu"}[backend]
        if platform() != needed:
            refuse(f"needs a {needed.upper()}, but JAX runs on {platform()}", others)
        if mask is not None and mask.ndim > 1:
            refuse("takes a mask over keys, shape (m,), only", others)
    if backend == "cudnn" and dtypes != {"bfloat16"}:
        # in float16 no number is far enough below the logits to be the logarithm of a zero weight
        refuse(f"takes bfloat16, got {', '.join(sorted(dtypes))}", "cast the inputs, or " + others)
    if backend == "tpu" and "float16" in dtypes:
        refuse("takes float32 or bfloat16, got float16", "cast the inputs, or " + others)
    return kernel


def _augment(query, key, value, log_weights, scale, floor, dtype, sizes):
    """Returns operands with the log weights as two more channels; nodes and depth are multiples of ``sizes``."""
    nodes, channels = sizes
    exact = log_weights / scale
    high = exact.astype(dtype)
    low = (exact - high.astype(jnp.float32)).astype(dtype)
    appended = -key.shape[0] % nodes
    weight_channels = jnp.pad(jnp.stack([high, low], axis=-1), [(0, appended), (0, 0)])
    weight_channels = weight_channels.at[key.shape[0] :, 0].set(floor / scale)

    def extend(array, extra, appended):
        padded = jnp.pad(array.astype(dtype), [(0, appended), (0, 0), (0, 0)])
        depth = max(query.shape[-1] + 2, value.shape[-1])
        filling = -(-depth // channels) * channels - array.shape[-1] - extra.shape[-1]
        extra = jnp.broadcast_to(extra[:, None, :], (*padded.shape[:2], extra.shape[-1]))
        return jnp.concatenate([padded, extra, jnp.zeros((*padded.shape[:2], filling), dtype)], axis=-1)

    rows = -query.shape[0] % nodes
    return (
        extend(query, jnp.ones((query.shape[0] + rows, 2), dtype), rows),
        extend(key, weight_channels, appended),
        extend(value, jnp.zeros((key.shape[0] + appended, 0), dtype), appended),
    )


def _xla(query, key, value, mask, scale, is_causal):
    if query.dtype == jnp.float16 and platform() != "gpu":
        # jax.nn asks for float16 products that are summed in float32, which only GPUs compile
        query, key, value = (a.astype(jnp.float32) for a in (query, key, value))
    with jax.numpy_dtype_promotion("standard"):  # jax.nn mixes precisions
        return jax.nn.dot_product_attention(
            query[None], key[None], value[None], mask=mask[None], scale=scale, is_causal=is_causal, implementation="xla"
        )[0]


def _cudnn(query, key, value, mask, scale, is_causal):
    del mask
    # cuDNN's batching rule needs all operands batched if one is: make each depend on all
    zero = jnp.where(jnp.isnan(query[0, 0, 0] + key[0, 0, 0] + value[0, 0, 0]), 0, 0).astype(query.dtype)
    operands = [(a + zero)[None] for a in (query, key, value)]
    return jax.nn.dot_product_attention(*operands, scale=scale, is_causal=is_causal, implementation="cudnn")[0]


def _tpu(query, key, value, mask, scale, is_causal):
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    del mask
    heads_first = [jnp.moveaxis(a, 1, 0)[None] for a in (query, key, value)]
    return jnp.moveaxis(flash_attention(*heads_first, causal=is_causal, sm_scale=scale)[0], 0, 1)


_BACKENDS = {"xla": _xla, "cudnn": _cudnn, "tpu": _tpu}
_SIZES = {"xla": (1, 8), "cudnn": (8, 8), "tpu": (128, 128)}
