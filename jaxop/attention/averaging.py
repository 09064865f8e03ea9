"""Attention as a linear operator on values, applied as often as wanted."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxop._pytree import register
from jaxop._validation import as_float
from jaxop.attention.checks import accumulation_dtype, cast_kernel, check_operands
from jaxop.attention.integral import dense_limit, integral_attention
from jaxop.attention.partial import log_clip, split_weights, tile_densities, uniform_weights
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
) -> "AveragingOperator":
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
        An `AveragingOperator`, called on values (m, h, c).

    Raises:
        As `integral_attention`; some of it when the operator is applied.

    Cost: dense: O(n m d) once, O(n m) memory as long as the operator lives, and O(n m c) per application.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.attention import averaging_operator
        >>> average = averaging_operator(jnp.zeros((2, 1, 3)), jnp.zeros((4, 1, 3)))
        >>> print(average(jnp.arange(4.0)[:, None, None])[:, 0, 0])
        [1.5 1.5]
    """
    kernel = ExpDotProduct() if kernel is None else kernel
    is_small = query.shape[0] * key.shape[0] <= dense_limit(kernel)
    dense = implementation == "dense" or (implementation is None and is_small)
    query, key, _, weights, mask = check_operands(query, key, key, weights, kernel, kernel_axis, mask)
    if is_causal and query.shape[0] != key.shape[0]:
        raise ValueError(
            f"is_causal needs as many queries as keys, got n={query.shape[0]} and m={key.shape[0]}; pass a mask "
            "instead."
        )
    if kernel.sign == "signed":
        raise ValueError("a signed kernel makes no averages: its mass may vanish; use a positive one.")
    options = {"kernel_axis": kernel_axis, "is_causal": is_causal, "implementation": implementation}
    if not dense or getattr(kernel, "epsilon", 0.0):
        return AveragingOperator(None, None, query, key, weights, kernel, mask, **options)
    densities, inverse = _densities(query, key, weights, kernel, kernel_axis, mask, is_causal)
    return AveragingOperator(densities, inverse, None, None, None, None, None, **options)


@functools.partial(register, static=("kernel_axis", "is_causal", "implementation"))
@dataclasses.dataclass(frozen=True, repr=False)
class AveragingOperator:
    """P as made by `averaging_operator`: a pytree, so that it can be returned from `jax.vmap` and `jax.jit`.

    Attributes:
        densities: w_j k_ij up to a factor per row, (h, n, m), of the dense implementation; else None.
        inverse: one over their sums, (n, h).
        query: of the other implementations, with all that follows; else None.
        key: k_j.
        weights: w_j.
        kernel: k.
        mask: which pairs count.
        kernel_axis: as in `integral_attention`.
        is_causal: as in `integral_attention`.
        implementation: as in `integral_attention`.
    """

    densities: Array | None
    inverse: Array | None
    query: Array | None
    key: Array | None
    weights: Array | None
    kernel: Kernel | None
    mask: Array | None
    kernel_axis: int | None
    is_causal: bool
    implementation: str | None

    def __call__(self, value: Float[Array, "m h c"]) -> Float[Array, "n h c"]:
        """P v.

        Args:
            value: v, (m, h, c).

        Raises:
            As `integral_attention`.
        """
        if self.densities is None or self.inverse is None:
            options: dict[str, Any] = {"kernel": self.kernel, "kernel_axis": self.kernel_axis, "mask": self.mask}
            options |= {"is_causal": self.is_causal, "implementation": self.implementation}
            query: Any = self.query
            return integral_attention(query, self.key, value, self.weights, **options)  # pyright: ignore[reportArgumentType]
        value = as_float(value, "value")
        heads, _, m = self.densities.shape
        if value.ndim != 3 or value.shape[:2] != (m, heads):
            raise ValueError(f"value must have shape (m, h, c) = ({m}, {heads}, c), got {value.shape}.")
        sums = jnp.einsum("hnm,mhc->nhc", self.densities, value.astype(self.densities.dtype))
        return (sums * self.inverse[:, :, None]).astype(value.dtype)


def _densities(
    query: Array,
    key: Array,
    weights: Array | None,
    kernel: Kernel,
    kernel_axis: int | None,
    mask: Array | None,
    is_causal: bool,
) -> tuple[Array, Array]:
    (n, heads, _), m, dtype = query.shape, key.shape[0], accumulation_dtype(query, key)
    if is_causal:
        causal = jnp.tri(n, dtype=bool)
        mask = causal if mask is None else causal[None] & mask if mask.ndim == 3 else causal & jnp.atleast_2d(mask)
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


def linear_attention(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    is_causal: bool = False,
) -> Float[Array, "n h c"]:
    """A_i = Σ_j w_j (q_i·k_j) v_j / Σ_j w_j, through d × c moments; causal: both sums over j ≤ i.

    Args:
        query: q_i, (n, h, d).
        key: k_j, (m, h, d).
        value: v_j, (m, h, c).
        weights: quadrature weights, (m,), in any unit; None: equal.
        is_causal: whether query i sees keys j ≤ i only; needs n = m.

    Returns:
        Shape (n, h, c), in the dtype of ``value``, accumulated in float32 at least. Rows without weight are 0.

    Raises:
        ValueError: for shapes that do not fit.

    Cost: O((n + m) h d c) time; O(h d c) memory beyond the arguments, causal n/64 times that.

    Source: Katharopoulos, Vyas, Pappas, Fleuret, "Transformers are RNNs", arXiv:2006.16236, with the identity as
        feature map.

    Example:
        >>> import jax
        >>> from jaxop.attention import linear_attention
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 100, 2, 4))
        >>> linear_attention(q, k, v, is_causal=True).shape
        (100, 2, 4)
    """
    query, key, value, weights, _ = check_operands(query, key, value, weights, ExpDotProduct(), None, None)
    if is_causal and query.shape[0] != key.shape[0]:
        raise ValueError(f"is_causal needs as many queries as keys, got n={query.shape[0]} and m={key.shape[0]}.")
    dtype, out_dtype = accumulation_dtype(query, key, value), value.dtype
    query, key, value = (a.astype(dtype) for a in (query, key, value))
    weights = uniform_weights(key.shape[0], dtype) if weights is None else weights.astype(dtype)
    if not is_causal:
        weights = weights / _largest(weights)
        mass = jnp.sum(weights)
        share = jnp.where(mass > 0, weights / jnp.where(mass > 0, mass, 1), 0)
        moment = jnp.einsum("mhd,mhc->hdc", key * share[:, None, None], value)
        return jnp.einsum("nhd,hdc->nhc", query, moment).astype(out_dtype)
    n = query.shape[0]
    chunk = min(n, _CHUNK)
    weights = weights / _largest(weights)
    query, weighted, value = (
        jnp.pad(a, [(0, -n % chunk), (0, 0), (0, 0)]).reshape(-1, chunk, *a.shape[1:])
        for a in (query, key * weights[:, None, None], value)
    )
    causal = jnp.tri(chunk, dtype=bool)

    def advance(moment: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        query, key, value = inputs
        # by selection: a later score that overflows must not meet a 0
        scores = jnp.where(causal[None], jnp.einsum("nhd,mhd->hnm", query, key), 0)
        out = jnp.einsum("hnm,mhc->nhc", scores, value) + jnp.einsum("nhd,hdc->nhc", query, moment)
        return moment + jnp.einsum("mhd,mhc->hdc", key, value), out

    empty = jnp.zeros((query.shape[2], query.shape[3], value.shape[3]), dtype)
    _, sums = jax.lax.scan(advance, empty, (query, weighted, value))
    mass = jnp.cumsum(weights)[:, None, None]
    sums = sums.reshape(-1, *sums.shape[2:])[:n]
    return jnp.where(mass > 0, sums / jnp.where(mass > 0, mass, 1), 0).astype(out_dtype)


def _largest(weights: Array) -> Array:
    """The largest weight, or 1: in its unit sums neither over- nor underflow."""
    largest = jax.lax.stop_gradient(jnp.max(weights))
    return jnp.where(largest > 0, largest, 1)


_CHUNK = 64
"""Tokens of a chunk of causal linear attention: inside it scores are formed, before it a moment stands for all."""
