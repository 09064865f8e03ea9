"""Attention by n × m matrices: the reference, which can be differentiated as often as the kernel."""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxop._eager import compiled
from jaxop.attention.closing import is_closed
from jaxop.attention.monoid import Partial, accumulate_tile, finish, integrate_tile, log_clip, split_weights
from jaxop.attention.operands import Operands, cast_kernel, check_operands
from jaxop.kernels import Kernel, PerHead
from jaxop.kernels.per_head import over_heads

T = TypeVar("T")


def dense_attention(operands: Operands, normalize: bool) -> Float[Array, "n h c"]:
    """Returns `jaxop.attention.integral_attention` of checked operands, with O(n m h) memory."""
    return (_attend_program if is_closed(operands.kernel) else _attend)(operands, normalize)


def _attend(operands: Operands, normalize: bool) -> Array:
    if not normalize and operands.kernel.sign != "signed":
        return _map_heads(integrate_tile, operands)
    return finish(_accumulate(operands), normalize)


_attend_program = compiled(static=("normalize",))(_attend)


def accumulate(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    kernel: Kernel | PerHead,
    mask: Bool[Array, " m"] | Bool[Array, "n m"] | Bool[Array, "h n m"] | None = None,
) -> Partial:
    """Σ_j w_j k_ij and Σ_j w_j k_ij v_j over the given keys, in the log domain.

    Split the keys in any way, `accumulate` each part, `combine` the parts in any order, and `finish` once: the result
    is the integral over all keys.

    Args:
        query: shape (n, h, d).
        key: shape (m, h, d).
        value: shape (m, h, c).
        weights: quadrature weights of the keys, shape (m,). None means 1/m with m the keys of this part; pass weights
            if parts differ in size.
        kernel: any kernel of `jaxop.kernels`, one for all heads or `jaxop.kernels.PerHead`.
        mask: True where a query may see a key: (m,), (n, m) or (h, n, m).

    Returns:
        The `Partial` of this part, in float32 or wider. If the kernel is signed, finish it with ``normalize=False``.

    Raises:
        ValueError: if shapes do not fit.
        TypeError: if an array is complex, a mask is not boolean, or ``kernel`` is not a `Kernel`.
        NotImplementedError: if the kernel has an ``epsilon``, which belongs to the whole integral.

    Cost: O(n m (d + c)) time and an n × m matrix per head in memory.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import attention, kernels
        >>> q = k = jnp.ones((2, 1, 4)); v = jnp.arange(2.0).reshape(2, 1, 1)
        >>> part = attention.accumulate(q, k, v, jnp.array([0.25, 0.75]), kernel=kernels.ExpDotProduct())
        >>> print(f"{attention.finish(part)[0, 0, 0]:.3f}")
        0.750
    """
    operands = check_operands(query, key, value, weights, kernel=kernel, mask=mask)
    if operands.kernel.epsilon:
        raise NotImplementedError(
            f"epsilon = {operands.kernel.epsilon} of the kernel belongs to the whole integral, not to a part; use "
            "epsilon=0 or integral_attention."
        )
    return (_accumulate_program if is_closed(operands.kernel) else _accumulate)(operands)


def _accumulate(operands: Operands) -> Partial:
    sign, clip = operands.kernel.sign, log_clip(operands.dtype)

    def of_head(tile: Array, value: Array, log_weights: Array, signs: Array, mask: Array | None) -> Partial:
        return accumulate_tile(tile, value, log_weights, signs, mask, sign, clip)

    return _map_heads(of_head, operands)


_accumulate_program = compiled()(_accumulate)


def _map_heads(of_head: Callable[[Array, Array, Array, Array, Array | None], T], operands: Operands) -> T:
    """Maps ``of_head(tile, value, log_weights, signs, mask)`` over the heads, with the whole matrix of each as tile."""
    dtype = operands.dtype
    weights, mask, key_mask = operands.measure(dtype), operands.pair_mask, None
    if mask is not None and mask.ndim == 1:
        weights, key_mask, mask = jnp.where(mask, weights, 0), mask, None
    log_weights, signs = split_weights(weights, key_mask)

    def evaluate(kernel: Kernel, query: Array, key: Array, value: Array, mask: Array | None) -> T:
        return of_head(kernel.tile(query, key), value, log_weights, signs, mask)

    arrays = (*(a.astype(dtype) for a in (operands.query, operands.key, operands.value)), mask)
    axes = (1, 1, 1, 0 if mask is not None and mask.ndim == 3 else None)
    return over_heads(evaluate, cast_kernel(operands.kernel, dtype), arrays, axes, 1, heads=operands.heads)
