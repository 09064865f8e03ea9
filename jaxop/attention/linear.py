"""Linear attention: the dot product as kernel, through moments of keys and values."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop.attention.checks import accumulation_dtype, check_causal, check_operands
from jaxop.attention.partial import relative_weights, uniform_weights
from jaxop.kernels import ExpDotProduct


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
    if is_causal:
        check_causal(query, key)
    dtype, out_dtype = accumulation_dtype(query, key, value), value.dtype
    query, key, value = (a.astype(dtype) for a in (query, key, value))
    weights = uniform_weights(key.shape[0], dtype) if weights is None else relative_weights(weights.astype(dtype))
    if not is_causal:
        mass = jnp.sum(weights)
        share = jnp.where(mass > 0, weights / jnp.where(mass > 0, mass, 1), 0)
        moment = jnp.einsum("mhd,mhc->hdc", key * share[:, None, None], value)
        return jnp.einsum("nhd,hdc->nhc", query, moment).astype(out_dtype)
    n = query.shape[0]
    chunk = min(n, _CHUNK)
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


_CHUNK = 64
"""Tokens of a chunk of causal linear attention: inside it scores are formed, before it a moment stands for all."""
