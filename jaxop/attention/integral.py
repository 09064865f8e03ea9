"""`integral_attention`: the normalised integral operator with an input-dependent kernel, as a quadrature."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxop._eager import compiled
from jaxop._validation import check_name
from jaxop.attention.checks import accumulation_dtype, causal_mask, check_causal, check_operands
from jaxop.attention.chunked import chunked_attention
from jaxop.attention.closing import is_closed
from jaxop.attention.fused import fused_attention
from jaxop.attention.monoid import accumulate_heads, finish, integrate_heads
from jaxop.domains.measure import relative_weights
from jaxop.kernels import ExpDotProduct, Kernel

IMPLEMENTATIONS = ("dense", "chunked", "xla", "cudnn", "tpu")
"""Names accepted by `integral_attention`."""

DENSE_LIMIT = 128 * 128
"""Pairs per head up to which the default implementation is dense."""


def integral_attention(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    kernel: Kernel | None = None,
    kernel_axis: int | None = None,
    normalize: bool = True,
    mask: Bool[Array, " m"] | Bool[Array, "n m"] | Bool[Array, "h n m"] | None = None,
    is_causal: bool = False,
    implementation: str | None = None,
) -> Float[Array, "n h c"]:
    """A_i = Σ_j w_j k(q_i, k_j) v_j / Σ_j w_j k(q_i, k_j), the quadrature of ∫ k v dy / ∫ k dy, per head.

    With k = exp this is softmax(l_ij + log w_j) v; equal weights give ordinary attention. Written for
    one sample: `jax.vmap` it over a batch of functions (``in_axes=(0, 0, 0, None)`` on one domain,
    ``in_axes=0`` with a domain per sample). Queries and keys may come from two domains.

    Rows without mass (every key masked, of weight zero, or beyond the support of the kernel) are
    exactly 0 with gradient 0. A node of weight 0 influences nothing, yet its own derivative is the true
    one, ∂A_i/∂w_j = k_ij (v_j − A_i)/Z_i; where its logit lies so far above the others that
    exp(l_ij − log Z_i) exceeds the square root of the largest float, that factor is clipped there. Without
    normalisation it is k_ij v_j, clipped where k_ij exceeds the largest float; other derivatives overflow only where
    they do not fit themselves, whatever k_ij.

    Args:
        query: q_i at the nodes where the output is wanted, shape (n, h, d).
        key: k_j at the nodes of the integral, shape (m, h, d).
        value: v_j, shape (m, h, c).
        weights: quadrature weights of the keys' domain, shape (m,), in units of length^dim; they cancel
            up to a factor when normalised. None means 1/m.
        kernel: any kernel of `jaxop.kernels`; None means ``ExpDotProduct()``, with scale 1/√d. Where a kernel
            has an ``epsilon`` ε, the denominator is ∫ k dy + ε Σ_j w_j / m.
        kernel_axis: 0 if the kernel's leaves carry a leading axis, one entry per head.
        normalize: whether to divide by ∫ k dy. Signed kernels need False.
        mask: True where a query may see a key: (m,), (n, m) or (h, n, m).
        is_causal: whether query i sees keys j ≤ i only; needs n = m.
        implementation: ``"dense"``: n × m matrices, any derivative that the kernel has. ``"chunked"``: tiles, O(n + m)
            memory in value and gradient; reverse mode only, of any order. ``"xla"``, ``"cudnn"`` (NVIDIA GPU, half
            precision) and ``"tpu"`` (Pallas): the stack's own kernels, for the exponentiated dot product;
            reverse mode only.
            None: dense up to `DENSE_LIMIT` pairs (an eighth of them for the Fourier integral kernel), chunked beyond.

    Returns:
        A of shape (n, h, c) in the dtype of ``value``, accumulated in float32 at least.

    Raises:
        ValueError: for shapes that do not fit, an unknown implementation, a causal order between domains
            of different size, or a signed kernel under normalisation.
        TypeError: for complex inputs, a mask that is not boolean, or a kernel that is none.
        NotImplementedError: when a named implementation cannot do what was asked; nothing falls back.

    Cost: O(n m h (d + c)) time for kernels with a fast matrix form; memory as above. Matrix products run
        at `jax.default_matmul_precision`, which on matrix units is less than float32 unless raised.

    Source: Calvello, Kovachki, Levine, Stuart, "Continuum Attention for Neural Operators",
        arXiv:2406.06486; the online sum after Milakov, Gimelshein, arXiv:1805.02867, and Rabe, Staats,
        arXiv:2112.05682.

    Example:
        >>> import jax
        >>> from jaxop import domains
        >>> from jaxop.attention import integral_attention
        >>> domain = domains.interval(32)
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 32, 2, 4))
        >>> integral_attention(q, k, v, domain.weights).shape
        (32, 2, 4)
    """
    kernel = ExpDotProduct() if kernel is None else kernel
    query, key, value, weights, mask = check_operands(query, key, value, weights, kernel, kernel_axis, mask)
    if is_causal:
        check_causal(query, key)
    if normalize and kernel.sign == "signed":
        raise ValueError(
            "a signed kernel cannot be normalised: its mass may vanish or change sign. Pass normalize=False for the "
            "integral itself, or use a positive kernel."
        )
    if implementation is None:
        implementation = "dense" if query.shape[0] * key.shape[0] <= dense_limit(kernel) else "chunked"
    check_name(implementation, "implementation", IMPLEMENTATIONS)
    options: dict[str, Any] = {
        "kernel": kernel,
        "kernel_axis": kernel_axis,
        "normalize": normalize,
        "mask": mask,
        "is_causal": is_causal,
    }
    epsilon = getattr(kernel, "epsilon", 0.0)
    if normalize and epsilon:
        # ∫ k dy + ε w̄ is the mass with one more node, of mean weight and value 0
        wide = accumulation_dtype(query, key, value)
        if weights is None:
            weights = jnp.ones(key.shape[0], wide)
        else:
            # relative to their mean; without any mass the sums are 0, and so is the result
            weights = relative_weights(weights.astype(wide))
            mean = jnp.mean(weights)
            weights = weights / jnp.where(mean > 0, mean, 1)
        with_mass = jnp.concatenate([value.astype(wide), jnp.ones(value[..., :1].shape, wide)], axis=-1)
        options |= {"normalize": False, "implementation": implementation}
        sums = integral_attention(query, key, with_mass, weights, **options)
        return (sums[..., :-1] / (sums[..., -1:] + epsilon)).astype(value.dtype)
    if implementation == "dense":
        attend = _dense_program if is_closed(kernel) else _dense_attention
        out = attend(query, key, value, weights, **options)
    elif implementation == "chunked":
        out = chunked_attention(query, key, value, weights, **options)
    else:
        out = fused_attention(implementation, query, key, value, weights, **options)
    return out.astype(value.dtype)


def dense_limit(kernel: Kernel) -> int:
    """Pairs per head up to which the default is dense; fewer for a kernel of many intermediate values per pair."""
    is_heavy = kernel.sign != "signed" and getattr(kernel, "is_additive", False)
    return DENSE_LIMIT // 8 if is_heavy else DENSE_LIMIT


def _dense_attention(query, key, value, weights, *, kernel, kernel_axis, normalize, mask, is_causal):
    if is_causal:
        mask = causal_mask(query.shape[0], mask)
    options = {"kernel": kernel, "kernel_axis": kernel_axis, "mask": mask}
    if not normalize and kernel.sign != "signed":
        return integrate_heads(query, key, value, weights, **options)
    return finish(accumulate_heads(query, key, value, weights, **options), normalize)


_dense_program = compiled(static=("kernel_axis", "normalize", "is_causal"))(_dense_attention)
