"""Attention as a linear operator on values, for repeated application."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxop._validation import as_float
from jaxop.attention.integral import choose, integrate
from jaxop.attention.monoid import log_clip, split_weights, tile_densities
from jaxop.attention.operands import Operands, accumulation_dtype, cast_kernel, check_operands
from jaxop.kernels import Kernel, PerHead
from jaxop.kernels.per_head import over_heads


def averaging_operator(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    weights: Float[Array, " m"] | None = None,
    *,
    kernel: Kernel | PerHead | None = None,
    mask: Bool[Array, " m"] | Bool[Array, "n m"] | Bool[Array, "h n m"] | None = None,
    is_causal: bool = False,
    implementation: str | None = None,
) -> Callable[[Float[Array, "m h c"]], Float[Array, "n h c"]]:
    """P: v ↦ Σ_j w_j k(q_i, k_j) v_j / Σ_j w_j k(q_i, k_j), the operator that `integral_attention` applies once.

    If values depend on averages of other values, P is applied twice with the same queries and keys. The dense
    implementation forms its matrix once; the others evaluate the kernel again at every application. Arguments mean the
    same as in `integral_attention`.

    Args:
        query: q_i, (n, h, d).
        key: k_j, (m, h, d).
        weights: quadrature weights, (m,); None means 1/m.
        kernel: a positive or nonnegative kernel; None means ``ExpDotProduct()``.
        mask: True where a query may see a key: (m,), (n, m) or (h, n, m).
        is_causal: whether query i sees keys j ≤ i only.
        implementation: one of `jaxop.attention.IMPLEMENTATIONS`, or None to choose.

    Returns:
        The function that maps values (m, h, c) to (n, h, c). It is a pytree, which `jax.vmap` and `jax.jit` may return.

    Raises:
        TypeError: as `integral_attention`, partly when the operator is applied.
        ValueError: likewise.
        NotImplementedError: likewise.

    Cost: dense: O(n m d) once, O(n m) memory as long as the operator lives, and O(n m c) per application; to values in
        float64 of queries and keys in float32, O(n m (d + c)) per application.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.attention import averaging_operator
        >>> average = averaging_operator(jnp.zeros((2, 1, 3)), jnp.zeros((4, 1, 3)))
        >>> print(average(jnp.arange(4.0)[:, None, None])[:, 0, 0])
        [1.5 1.5]
    """
    operands = check_operands(query, key, key, weights, kernel=kernel, mask=mask, is_causal=is_causal)
    if operands.kernel.sign == "signed":
        raise ValueError("a signed kernel makes no averages: its mass may vanish; use a positive one.")
    chosen = choose(operands, implementation)
    average = jax.tree_util.Partial(functools.partial(_integrate, chosen), operands)
    if chosen != "dense" or operands.kernel.epsilon:
        return average
    return jax.tree_util.Partial(_apply, average, *_densities(operands))


def _integrate(implementation: str, operands: Operands, value: Array) -> Array:
    return integrate(operands.with_value(value), implementation)


def _apply(average: Callable[[Array], Array], densities: Array, inverse: Array, value: Array) -> Array:
    value = as_float(value, "value")
    if accumulation_dtype(densities, value) != densities.dtype:
        return average(value)  # in the precision of the values, which is known only now
    heads, _, m = densities.shape
    if value.ndim != 3 or value.shape[:2] != (m, heads):
        raise ValueError(f"value must have shape (m, h, c) = ({m}, {heads}, c), got {value.shape}.")
    sums = jnp.einsum("hnm,mhc->nhc", densities, value.astype(densities.dtype))
    return (sums * inverse[:, :, None]).astype(value.dtype)


def _densities(operands: Operands) -> tuple[Array, Array]:
    """w_j k_ij up to a factor per row, (h, n, m), and one over the sum of each row, (n, h)."""
    dtype = accumulation_dtype(operands.query, operands.key)
    log_weights, signs = split_weights(operands.measure(dtype))
    mask = operands.pair_mask
    mask = None if mask is None else jnp.broadcast_to(mask, (operands.heads, operands.queries, operands.keys))

    def of_head(kernel: Kernel, query: Array, key: Array, mask: Array | None) -> tuple[Array, Array]:
        tile = kernel.tile(query, key)
        densities = tile_densities(tile, log_weights, signs, mask, log_clip(dtype))[1] * signs[None, :]
        mass = jnp.sum(densities, axis=1)
        return densities, jnp.where(mass != 0, 1 / jnp.where(mass != 0, mass, 1), 0)

    arrays = operands.query.astype(dtype), operands.key.astype(dtype), mask
    axes = (1, 1, None if mask is None else 0)
    kernel = cast_kernel(operands.kernel, dtype)
    return over_heads(of_head, kernel, arrays, axes, (0, 1), heads=operands.heads)
