"""Latent attention: nodes → a few latent tokens → nodes, linear in the nodes; every sum over nodes is a quadrature."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxop._blocks import map_blocks
from jaxop._eager import compiled
from jaxop._pytree import register
from jaxop._validation import check_name, is_concrete
from jaxop.attention.closing import is_closed
from jaxop.attention.dense import accumulate
from jaxop.attention.integral import integral_attention, integrate
from jaxop.attention.linear import head_features, linear_attention
from jaxop.attention.operands import check_operands
from jaxop.domains.measure import relative_weights
from jaxop.kernels import BaseKernel, DotProduct, ExpDotProduct, Kernel, LearnedFeatures, PerHead
from jaxop.kernels.per_head import one_head

ENCODERS = ("nodes", "slices")
"""How a latent averages over the nodes: by a softmax over the nodes, or by the shares of a softmax over the latents."""

LEAST_RIDGE = 0.01
"""Smallest α of `least_squares_attention` at which a Cholesky factor in float32 has about five digits."""

_NODES = 4096
"""Nodes of a block in which the masses Z of the nodes are computed."""


def latent_attention(
    latents: Float[Array, "g h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    query: Float[Array, "n h d"] | None = None,
    encode: str = "nodes",
    mix: Callable[[Float[Array, "g h c"]], Float[Array, "g h c"]] | None = None,
    kernel: Kernel | PerHead | None = None,
    mask: Bool[Array, " m"] | None = None,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "n h c"]:
    """y_i = Σ_g p_ig M(z)_g, p_ig = k(q_i, S_g) / Σ_l k(q_i, S_l), with the averages z of `latent_averages`, per head.

    The latents S stand between the nodes of the integral and those of the output, so the cost is linear in both.
    Sums over nodes use their weights; sums over latents are unweighted.

    Args:
        latents: S_g, (g, h, d).
        key: k_j at the nodes of the integral, (m, h, d).
        value: v_j, (m, h, c).
        weights: quadrature weights of these nodes, (m,), in any unit; None means 1/m.
        query: q_i at the nodes of the output, (n, h, d); None means ``key``.
        encode: one of `ENCODERS`, see `latent_averages`.
        mix: M, any map of the latent tokens (g, h, c) to tokens of this shape; None means the identity.
        kernel: a symmetric kernel of `jaxop.kernels`; None means ``ExpDotProduct()``, with scale 1/√d.
        mask: True at nodes that take part in the integral, (m,).
        implementation: an implementation of `jaxop.attention.integral_attention` for both averages.
        axis_name: the mapped axis of `jax.shard_map` over whose devices the nodes of the integral and of the output are
            distributed; see `latent_averages`. None means that all nodes are here.

    Returns:
        y, (n, h, c), in the dtype of ``value``. Without ``mix``, constants stay constants under a normalised kernel.

    Raises:
        ValueError: if shapes do not fit, or for the reasons of `latent_averages`.

    Cost: O((n + m) g h (d + c)) time and, if chunked, O(n + m + g) memory.

    Source: FLARE, arXiv:2508.12594; Latent Neural Operator, arXiv:2406.03923; Transolver, arXiv:2402.02366. The weights
        are ours: the published sums over nodes are unweighted.

    Example:
        >>> import jax
        >>> from jaxop import attention, domains
        >>> domain = domains.interval(50)
        >>> latents = jax.random.normal(jax.random.key(0), (4, 2, 8))
        >>> key, value = jax.random.normal(jax.random.key(1), (2, 50, 2, 8))
        >>> attention.latent_attention(latents, key, value, domain.weights, encode="slices").shape
        (50, 2, 8)
    """
    z = latent_averages(
        latents,
        key,
        value,
        weights,
        encode=encode,
        kernel=kernel,
        mask=mask,
        implementation=implementation,
        axis_name=axis_name,
    )
    if mix is not None:
        shape = z.shape
        z = mix(z)
        if z.shape != shape:
            raise ValueError(f"mix must return latent tokens of shape (g, h, c) = {shape}, got {z.shape}.")
    query = key if query is None else query
    return average(query, latents, z, kernel=kernel, implementation=implementation).astype(value.dtype)


def latent_averages(
    latents: Float[Array, "g h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    encode: str = "nodes",
    kernel: Kernel | PerHead | None = None,
    mask: Bool[Array, " m"] | None = None,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "g h c"]:
    """z_g = Σ_j w_j μ_j k(S_g, k_j) v_j / Σ_j w_j μ_j k(S_g, k_j), per head, the quadrature of two integrals.

    With ``encode="nodes"``, μ = 1: a softmax over the nodes for every latent. With ``"slices"``,
    μ_j = 1 / Σ_l k(S_l, k_j): every node divides its mass among the latents, and z_g is the mean of slice g.

    Args:
        latents: S_g, (g, h, d).
        key: k_j, (m, h, d).
        value: v_j, (m, h, c).
        weights: quadrature weights, (m,), in any unit; None means 1/m.
        encode: one of `ENCODERS`.
        kernel: any kernel for "nodes", and a positive one for "slices". None means ``ExpDotProduct()``. `DotProduct`
            and `LearnedFeatures` average over the weights alone, as `linear_attention` does.
        mask: True at nodes that take part, (m,).
        implementation: an implementation of `jaxop.attention.integral_attention`.
        axis_name: the mapped axis of `jax.shard_map` over whose devices the nodes are distributed. Each passes all
            latents and its own nodes, as many as every other device: keys, values, weights and mask. All get the
            averages over the nodes of all. None means that all nodes are here.

    Returns:
        z, (g, h, c), in the dtype of ``value``; scores, masses and sums are in float32 or wider.

    Raises:
        ValueError: if shapes do not fit, ``encode`` is unknown, or the kernel of slices is not positive.
        NotImplementedError: if the kernel is linear and ``mask`` or ``implementation`` is given, or for the
            reasons of `jaxop.attention.integral_attention` with ``axis_name``.
        NameError: if ``axis_name`` is not the name of a mapped axis.

    Cost: O(m g h (d + c)) time and, if chunked, O(m + g) memory. Over devices each takes this for its own m nodes, and
        sends about g h c numbers in one sum, for any number of nodes, and as many in the backward pass.

    Source: "nodes": FLARE, arXiv:2508.12594, and Perceiver, arXiv:2103.03206; "slices": Transolver, arXiv:2402.02366,
        whose ε, added to the mass of a slice, is 0 here: with a positive kernel every slice has mass.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import attention
        >>> latents, key, value = jnp.zeros((1, 1, 2)), jnp.ones((3, 1, 2)), jnp.arange(3.0).reshape(3, 1, 1)
        >>> print(attention.latent_averages(latents, key, value, jnp.array([1.0, 1.0, 2.0])).ravel())
        [1.25]
    """
    check_name(encode, "encode", ENCODERS)
    kernel = ExpDotProduct() if kernel is None else kernel
    options = {"mask": mask, "implementation": implementation, "axis_name": axis_name}
    if encode == "nodes":
        return average(latents, key, value, weights, kernel=kernel, **options)
    operands = check_operands(latents, key, value, weights, kernel=kernel, mask=mask)
    if operands.kernel.sign != "positive":
        raise ValueError(
            f"slices need a positive kernel, whose mass at every node is not 0, got {type(one_head(kernel)).__name__} "
            f"with sign={operands.kernel.sign!r}; use ExpDotProduct(), or encode='nodes'."
        )
    # log Z is one more channel of the keys; half precision would round it
    dtype = operands.dtype
    latents, key = latents.astype(dtype), key.astype(dtype)
    kernel = operands.kernel
    channel = -(_masses_program if is_closed(kernel) else _log_masses)(latents, key, kernel)[..., None]
    if isinstance(kernel, ExpDotProduct):
        latents, shifted = latents * kernel.factor(latents.shape[-1]), ExpDotProduct(1.0)
    else:
        shifted = PerHead(_Shifted(kernel.kernel)) if isinstance(kernel, PerHead) else _Shifted(kernel)
    latents = jnp.concatenate([latents, jnp.ones_like(latents[..., :1])], axis=-1)
    key = jnp.concatenate([key, channel], axis=-1)
    return _over_nodes(latents, key, value, weights, kernel=shifted, **options)


def average(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    kernel: Kernel | PerHead | None = None,
    mask: Bool[Array, " m"] | None = None,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "n h c"]:
    """Returns `integral_attention`, or `linear_attention` of the features of a kernel of finite rank.

    If there is a mapped axis, its devices share the keys, and all of them have the same queries.
    """
    if kernel is None or not isinstance(one_head(kernel), DotProduct | LearnedFeatures):
        options = {"mask": mask, "implementation": implementation, "axis_name": axis_name}
        return _over_nodes(query, key, value, weights, kernel=kernel, **options)
    if mask is not None or implementation is not None:
        raise NotImplementedError(
            "linear attention takes neither a mask nor an implementation; give masked nodes the weight 0, and leave "
            "implementation=None."
        )
    operands = check_operands(query, key, value, weights, kernel=kernel)
    query, key = (a.astype(operands.dtype) for a in (operands.query, operands.key))
    features = head_features(operands.kernel, query, key)
    return linear_attention(*features, value, weights, axis_name=axis_name)


def _over_nodes(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None,
    *,
    kernel: Kernel | PerHead | None,
    mask: Bool[Array, " m"] | None,
    implementation: str | None,
    axis_name: str | None,
) -> Float[Array, "n h c"]:
    """Returns `integral_attention` over the nodes of all devices of a mapped axis, which have the same queries."""
    if axis_name is None:
        return integral_attention(query, key, value, weights, kernel=kernel, mask=mask, implementation=implementation)
    operands = check_operands(query, key, value, weights, kernel=kernel, mask=mask)
    return integrate(operands, implementation, axis_name=axis_name, is_copied=True)


def _log_masses(
    latents: Float[Array, "g h d"], key: Float[Array, "m h d"], kernel: Kernel | PerHead
) -> Float[Array, "m h"]:
    """Returns log Σ_l k(S_l, k_j) / g; the backward pass recomputes a block of nodes at a time."""
    ones = jnp.ones_like(latents[..., :1])

    def of_block(key: Array) -> Array:
        part = accumulate(key, latents, ones, kernel=kernel)
        return jnp.log(part.mass) + part.shift

    return map_blocks(of_block, key, _NODES, recompute=True)


_masses_program = compiled()(_log_masses)


@register
@dataclasses.dataclass(frozen=True)
class _Shifted(BaseKernel):
    """k(a, b) exp(s t) of the vectors [a, s] and [b, t], for a positive kernel k."""

    kernel: Kernel

    sign = "positive"

    def __call__(self, a: Float[Array, " e"], b: Float[Array, " e"]) -> Float[Array, ""]:
        return jnp.exp(self.log(a, b))

    def log(self, a: Float[Array, " e"], b: Float[Array, " e"]) -> Float[Array, ""]:
        return self.kernel.log(a[:-1], b[:-1]) + a[-1] * b[-1]

    def tile(self, query: Float[Array, "n e"], key: Float[Array, "m e"]) -> Float[Array, "n m"]:
        return self.kernel.tile(query[:, :-1], key[:, :-1]) + query[:, -1:] * key[:, -1][None, :]


def least_squares_attention(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    alpha: float | Float[Array, ""] | Float[Array, " h"] = 0.5,
) -> Float[Array, "n h c"]:
    """A_i = q_iᵀ (α I + (1 − α) Kᵀ W K)⁻¹ Kᵀ W V with W = diag(w_j) / Σ_j w_j: regression of v on k, read at q.

    W is divided by the measure of the domain, so α does not depend on the unit of length. Between latents, without
    weights, this is the mix of functional attention. Between nodes it is another form of attention, linear in n and m.

    Args:
        query: q_i, (n, h, d).
        key: k_j, (m, h, d).
        value: v_j, (m, h, c).
        weights: quadrature weights, (m,), in any unit; None means 1/m.
        alpha: α in (0, 1], one for all heads or one per head, (h,); at 1 this is `linear_attention` up to its scale.
            Below `LEAST_RIDGE`, float32 loses digits where keys are nearly dependent.

    Returns:
        A, (n, h, c), in the dtype of ``value``, computed in float32 or wider; 0 if all weights are 0.

    Raises:
        ValueError: if shapes do not fit, or a known α is outside (0, 1].

    Cost: O((n + m) h d c + m h d² + h d³) time, O(h d (d + c)) memory beyond the arguments.

    Source: Xiao, Gao, Weber, Yang, Cremers, "Functional Attention", arXiv:2605.31559, which sums over latents only.

    Example:
        >>> import jax
        >>> from jaxop import attention
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 20, 2, 4))
        >>> attention.least_squares_attention(q, k, v, alpha=0.1).shape
        (20, 2, 4)
    """
    operands = check_operands(query, key, value, weights)
    heads, depth = operands.heads, operands.query.shape[2]
    if jnp.shape(alpha) not in ((), (heads,)):
        raise ValueError(f"alpha must be a number or have shape (h,) = ({heads},), got {jnp.shape(alpha)}.")
    if is_concrete(alpha) and not ((np.asarray(alpha) > 0) & (np.asarray(alpha) <= 1)).all():
        raise ValueError(f"alpha must be in (0, 1], got {alpha}; 0 would invert a matrix that may be singular.")
    dtype = operands.dtype
    query, key, value = (a.astype(dtype) for a in (operands.query, operands.key, operands.value))
    weights = relative_weights(operands.measure(dtype))
    mass = jnp.sum(weights)
    share = jnp.where(mass > 0, weights / jnp.where(mass > 0, mass, 1), 0)
    weighted = key * share[:, None, None]
    # the matrix unit's 10 bits would be less than the ridge keeps
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    ridge = jnp.broadcast_to(jnp.asarray(alpha, dtype), (heads,))[:, None, None]
    gram = ridge * jnp.eye(depth, dtype=dtype)[None] + (1 - ridge) * product("mhd,mhe->hde", weighted, key)
    moment = product("mhd,mhc->hdc", weighted, value)
    solution = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram, lower=True), moment)
    return product("nhd,hdc->nhc", query, solution).astype(operands.value.dtype)
