"""`integral_attention`: the normalised integral operator with an input-dependent kernel, as a quadrature."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxop._explicit import compiler_divides
from jaxop._validation import check_name, is_symbolic
from jaxop.attention.chunked import chunked_attention
from jaxop.attention.dense import dense_attention
from jaxop.attention.fused import fused_attention
from jaxop.attention.monoid import Partial, finish
from jaxop.attention.operands import Operands, check_operands
from jaxop.attention.reduction import reduced_integral
from jaxop.attention.ring import ring_integral
from jaxop.domains.measure import relative_weights
from jaxop.kernels import Kernel, PerHead


@compiler_divides
def integral_attention(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    kernel: Kernel | PerHead | None = None,
    normalize: bool = True,
    mask: Bool[Array, " m"] | Bool[Array, "n k"] | Bool[Array, "h n k"] | None = None,
    is_causal: bool = False,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "n h c"]:
    """A_i = Σ_j w_j k(q_i, k_j) v_j / Σ_j w_j k(q_i, k_j), the quadrature of ∫ k v dy / ∫ k dy, per head.

    With k = exp(l) this is softmax(l_ij + log w_j) v; equal weights give ordinary attention. Queries and keys may come
    from two domains. The arguments are those of one sample: `jax.vmap` maps over a batch of functions
    (``in_axes=(0, 0, 0, None)`` on one domain, ``in_axes=0`` with a domain per sample).

    A row has no mass if every key is masked, has weight 0, or is beyond the support of the kernel. Such a row is
    exactly 0, with gradient 0. A node of weight 0 does not contribute, but the derivative in its weight is the true
    one, ∂A_i/∂w_j = k_ij (v_j − A_i)/Z_i. If the logit of this node is so far above the others that
    exp(l_ij − log Z_i) exceeds the square root of the largest float, this factor is clipped. Without normalisation
    the derivative is k_ij v_j, clipped where k_ij exceeds the largest float. All other derivatives overflow only if
    their own value does.

    Args:
        query: q_i at the nodes where the output is wanted, shape (n, h, d).
        key: k_j at the nodes of the integral, shape (m, h, d).
        value: v_j, shape (m, h, c).
        weights: quadrature weights of the keys' domain, shape (m,), in units of length^dim; a common factor cancels
            if the result is normalised. None means 1/m.
        kernel: any kernel of `jaxop.kernels` for all heads, or `jaxop.kernels.PerHead`; None means
            ``ExpDotProduct()``, with scale 1/√d. If a kernel has an ``epsilon`` ε, the denominator is
            ∫ k dy + ε Σ_j w_j / m.
        normalize: whether to divide by ∫ k dy. A signed kernel needs False.
        mask: True where a query may see a key: (m,), (n, m) or (h, n, m); with ``axis_name`` see that argument.
        is_causal: whether query i sees only keys j ≤ i; needs n = m.
        implementation: ``"dense"`` forms n × m matrices and has every derivative that the kernel has. ``"chunked"``
            forms tiles; value and gradient take O(n + m) memory, and derivatives of any order are in reverse mode
            only. ``"xla"``, ``"cudnn"`` (NVIDIA GPU, half precision) and ``"tpu"`` (Pallas) are the kernels of the
            stack, for the exponentiated dot product and reverse mode only. None means dense up to `DENSE_LIMIT` pairs
            (an eighth of them for the Fourier integral kernel) and for unknown numbers of nodes, which `jax.export`
            allows, and chunked above.
        axis_name: the mapped axis of `jax.shard_map` over whose devices the nodes are distributed. Each device passes
            its own nodes, as many as every other device: queries, keys, values, weights and a mask over keys. Masks of
            pairs have columns for all keys, (n, m p) or (h, n, m p), if p devices share them. ``is_causal`` counts the
            nodes of device 0 first. Blocks of keys and values travel round the ring of devices, and each is computed in
            chunks; see `ring_attention` for whole arrays. None means that all nodes are here.

    Returns:
        A of shape (n, h, c) in the dtype of ``value``, accumulated in float32 or wider.

    Raises:
        ValueError: if shapes do not fit, if the implementation is unknown, if ``is_causal`` and n ≠ m, or if
            ``normalize`` and the kernel is signed.
        TypeError: if an array is complex, a mask is not boolean, or ``kernel`` is not a `Kernel`.
        NotImplementedError: if the named implementation does not support the arguments, or is not "dense" and the
            number of nodes is unknown; there is no fallback. If
            ``axis_name`` is given: if the implementation is not "chunked", or the kernel has an ``epsilon``, which
            depends on the number of nodes and so on their padding.
        NameError: if ``axis_name`` is not the name of a mapped axis.

    Cost: O(n m h (d + c)) time for kernels with a fast matrix form; memory as above. Matrix products use
        `jax.default_matmul_precision`, which on matrix units is below float32 by default. Over p devices each takes
        O(n m p h (d + c)) time and O(n + m) memory for its own n and m nodes, and sends m h (d + c) numbers p times,
        in the backward pass twice as many. With ``is_causal`` the work is not balanced: the last device sees all keys.

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
    shares = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    options = {"kernel": kernel, "mask": mask, "is_causal": is_causal}
    operands = check_operands(query, key, value, weights, **options, shares=shares)
    return integrate(operands, implementation, normalize=normalize, axis_name=axis_name if shares > 1 else None)


def integrate(
    operands: Operands,
    implementation: str | None,
    *,
    normalize: bool = True,
    axis_name: str | None = None,
    is_copied: bool = False,
) -> Float[Array, "n h c"]:
    """Returns `integral_attention` of checked operands.

    If ``is_copied``, all devices of the mapped axis have the same queries instead of their own, and share one sum.
    """
    if normalize and operands.kernel.sign == "signed":
        raise ValueError(
            "a signed kernel cannot be normalised: its mass may vanish or change sign. Pass normalize=False for the "
            "integral itself, or use a positive kernel."
        )
    if axis_name is not None:
        _check_shared(operands, implementation, normalize)
        if is_copied:
            return reduced_integral(operands, axis_name)
        return ring_integral(operands, normalize, axis_name)
    run = _RUN[choose(operands, implementation)]
    epsilon = operands.kernel.epsilon if normalize else 0.0
    if not epsilon:
        return run(operands, normalize).astype(operands.value.dtype)
    sums = run(_with_mass(operands), False)
    part = Partial(jnp.zeros(sums.shape[:-1], sums.dtype), sums[..., -1], sums[..., :-1])
    return finish(part, epsilon=epsilon).astype(operands.value.dtype)


_RUN: dict[str, Callable[[Operands, bool], Array]] = {
    "dense": dense_attention,
    "chunked": chunked_attention,
    "xla": functools.partial(fused_attention, "xla"),
    "cudnn": functools.partial(fused_attention, "cudnn"),
    "tpu": functools.partial(fused_attention, "tpu"),
}

IMPLEMENTATIONS = tuple(_RUN)
"""Names accepted by `integral_attention`."""

DENSE_LIMIT = 128 * 128
"""Pairs per head up to which the default implementation is dense."""


def choose(operands: Operands, implementation: str | None) -> str:
    """Returns the named implementation; None means dense for few pairs (fewer for costly kernels), else chunked.

    If the number of queries or keys is unknown, as `jax.export` allows, None means dense.
    """
    unknown = is_symbolic(operands.queries, operands.keys)
    if implementation is not None:
        check_name(implementation, "implementation", IMPLEMENTATIONS)
        if unknown and implementation != "dense":
            raise NotImplementedError(
                f"implementation={implementation!r} needs known numbers of nodes, got {operands.queries} queries and "
                f"{operands.keys} keys; use 'dense' or None, or export for a fixed domain."
            )
        return implementation
    if unknown:
        return "dense"
    is_heavy = operands.kernel.sign != "signed" and operands.kernel.is_additive
    limit = DENSE_LIMIT // 8 if is_heavy else DENSE_LIMIT
    return "dense" if operands.queries * operands.keys <= limit else "chunked"


def _check_shared(operands: Operands, implementation: str | None, normalize: bool) -> None:
    if implementation is not None:
        check_name(implementation, "implementation", IMPLEMENTATIONS)
    if implementation not in (None, "chunked"):
        raise NotImplementedError(
            f"implementation={implementation!r} needs all nodes on one device; with axis_name use 'chunked' or None."
        )
    if normalize and operands.kernel.epsilon:
        raise NotImplementedError(
            f"epsilon = {operands.kernel.epsilon} of the kernel is relative to Σ_j w_j / m, and m depends on how the "
            "nodes of the devices are padded; with axis_name use epsilon=0."
        )


def _with_mass(operands: Operands) -> Operands:
    """Returns operands whose plain integral is ∫ k v dy and, in one more channel, the mass; the mean weight is 1."""
    dtype = operands.dtype
    if operands.weights is None:
        weights = jnp.ones(operands.keys, dtype)
    else:
        # without mass the sums are 0, and the result is 0
        weights = relative_weights(operands.weights.astype(dtype))
        mean = jnp.mean(weights)
        weights = weights / jnp.where(mean > 0, mean, 1)
    value = operands.value.astype(dtype)
    value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
    return dataclasses.replace(operands, value=value, weights=weights)
