"""Attention as a linear operator on values, applied as often as wanted."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxop._validation import as_float
from jaxop.attention.checks import accumulation_dtype, cast_kernel, causal_mask, check_causal, check_operands
from jaxop.attention.integral import dense_limit, integral_attention
from jaxop.attention.monoid import log_clip, split_weights, tile_densities
from jaxop.domains.measure import uniform_weights
from jaxop.kernels import ExpDotProduct, Kernel


def averaging_operator(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    weights: Float[Array, " m"] | None = None,
    *,
    kernel: Kernel | None = None,
    kernel_axis: int | None = None,
    mask: Bool[Array, " m"] | Bool[Array, "n m"] | Bool[Array, "h n m"] | None = None,
    is_causal: bool = False,
    implementation: str | None = None,
) -> Callable[[Float[Array, "m h c"]], Float[Array, "n h c"]]:
    """P: v ↦ Σ_j w_j k(q_i, k_j) v_j / Σ_j w_j k(q_i, k_j), the operator of which `integral_attention` is one value.

    Where values depend on averages of others, P is applied twice to one set of queries and keys. The dense
    implementation forms its matrix once; the others evaluate the kernel again at every application.

    Args:
        query: as in `integral_attention`.
        key: as in `integral_attention`.
        weights: as in `integral_attention`.
        kernel: as in `integral_attention`, positive or nonnegative.
        kernel_axis: as in `integral_attention`.
        mask: as in `integral_attention`.
        is_causal: as in `integral_attention`.
        implementation: as in `integral_attention`.

    Returns:
        The function that maps values (m, h, c) to (n, h, c): a pytree, which may leave `jax.vmap` and `jax.jit`.

    Raises:
        As `integral_attention`; some of it when the operator is applied.

    Cost: dense: O(n m d) once, O(n m) memory as long as the operator lives, and O(n m c) per application; to values in
        float64 of queries and keys in float32, O(n m (d + c)) per application.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.attention import averaging_operator
        >>> average = averaging_operator(jnp.zeros((2, 1, 3)), jnp.zeros((4, 1, 3)))
        >>> print(average(jnp.arange(4.0)[:, None, None])[:, 0, 0])
        [1.5 1.5]
    """
    kernel = ExpDotProduct() if kernel is None else kernel
    query, key, _, weights, mask = check_operands(query, key, key, weights, kernel, kernel_axis, mask)
    is_small = query.shape[0] * key.shape[0] <= dense_limit(kernel)
    dense = implementation == "dense" or (implementation is None and is_small)
    if is_causal:
        check_causal(query, key)
    if kernel.sign == "signed":
        raise ValueError("a signed kernel makes no averages: its mass may vanish; use a positive one.")
    options: dict[str, Any] = {"kernel_axis": kernel_axis, "is_causal": is_causal}
    integrate = jax.tree_util.Partial(
        functools.partial(_integrate, implementation="dense" if dense else implementation, **options),
        query,
        key,
        weights,
        kernel,
        mask,
    )
    if not dense or getattr(kernel, "epsilon", 0.0):
        return integrate
    return jax.tree_util.Partial(_apply, integrate, *_densities(query, key, weights, kernel, mask, **options))


def _integrate(
    query: Array, key: Array, weights: Array | None, kernel: Kernel, mask: Array | None, value: Array, **how
):
    return integral_attention(query, key, value, weights, kernel=kernel, mask=mask, **how)


def _apply(integrate: Callable[[Array], Array], densities: Array, inverse: Array, value: Array) -> Array:
    value = as_float(value, "value")
    if accumulation_dtype(densities, value) != densities.dtype:
        return integrate(value)  # in the precision of the values, which was not known before
    heads, _, m = densities.shape
    if value.ndim != 3 or value.shape[:2] != (m, heads):
        raise ValueError(f"value must have shape (m, h, c) = ({m}, {heads}, c), got {value.shape}.")
    sums = jnp.einsum("hnm,mhc->nhc", densities, value.astype(densities.dtype))
    return (sums * inverse[:, :, None]).astype(value.dtype)


def _densities(
    query: Array,
    key: Array,
    weights: Array | None,
    kernel: Kernel,
    mask: Array | None,
    *,
    kernel_axis: int | None,
    is_causal: bool,
) -> tuple[Array, Array]:
    """w_j k_ij up to a factor per row, (h, n, m), and one over the sum of each row, (n, h)."""
    (n, heads, _), m, dtype = query.shape, key.shape[0], accumulation_dtype(query, key)
    if is_causal:
        mask = causal_mask(n, mask)
    weights = uniform_weights(m, dtype) if weights is None else weights.astype(dtype)
    log_weights, signs = split_weights(weights)
    mask = None if mask is None else jnp.broadcast_to(mask, (heads, n, m))

    def one_head(kernel: Kernel, query: Array, key: Array, mask: Array | None) -> tuple[Array, Array]:
        tile = kernel.tile(query, key)
        densities = tile_densities(tile, log_weights, signs, mask, log_clip(dtype))[1] * signs[None, :]
        mass = jnp.sum(densities, axis=1)
        return densities, jnp.where(mass != 0, 1 / jnp.where(mass != 0, mass, 1), 0)

    axes = (kernel_axis, 1, 1, None if mask is None else 0)
    return jax.vmap(one_head, in_axes=axes, out_axes=(0, 1), axis_size=heads)(
        cast_kernel(kernel, dtype), query.astype(dtype), key.astype(dtype), mask
    )
