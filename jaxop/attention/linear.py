"""Linear attention: the kernel is the dot product, and moments of keys and values replace all pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._scaling import unit_of
from jaxop._varying import varying_like
from jaxop.attention.operands import cast_kernel, check_operands
from jaxop.domains.measure import relative_weights
from jaxop.kernels import DotProduct, Kernel, LearnedFeatures, PerHead
from jaxop.kernels.per_head import over_heads


def linear_attention(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    is_causal: bool = False,
    axis_name: str | None = None,
) -> Float[Array, "n h c"]:
    """A_i = Σ_j w_j (q_i·k_j) v_j / Σ_j w_j, through d × c moments; if causal, both sums are over j ≤ i.

    Args:
        query: q_i, (n, h, d).
        key: k_j, (m, h, d).
        value: v_j, (m, h, c).
        weights: quadrature weights, (m,), in any unit; None means equal weights.
        is_causal: whether query i sees only keys j ≤ i; needs n = m.
        axis_name: the mapped axis of `jax.shard_map` over whose devices the nodes are distributed, as in
            `integral_attention`; None means that all nodes are here. The devices share their moments in one sum, or,
            if causal, each reads those of all others.

    Returns:
        Shape (n, h, c), in the dtype of ``value``, accumulated in float32 or wider. Rows without weight are 0.

    Raises:
        ValueError: if shapes do not fit.
        NameError: if ``axis_name`` is not the name of a mapped axis.

    Cost: O((n + m) h d c) time; O(h d c) memory beyond the arguments, n/64 times that if causal. Each of several
        devices sends h d c numbers once, for any number of nodes.

    Source: Katharopoulos, Vyas, Pappas, Fleuret, "Transformers are RNNs", arXiv:2006.16236, with the identity as
        feature map.

    Example:
        >>> import jax
        >>> from jaxop.attention import linear_attention
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 100, 2, 4))
        >>> linear_attention(q, k, v, is_causal=True).shape
        (100, 2, 4)
    """
    operands = check_operands(query, key, value, weights, is_causal=is_causal)
    dtype, out_dtype = operands.dtype, operands.value.dtype
    query, key, value = (a.astype(dtype) for a in (operands.query, operands.key, operands.value))
    weights = operands.measure(dtype)
    if axis_name is not None:
        return _over_devices(query, key, value, weights, is_causal, axis_name).astype(out_dtype)
    if is_causal:
        return _causal_attention(query, key, value, weights).astype(out_dtype)
    weights = relative_weights(weights)
    mass = jnp.sum(weights)
    share = jnp.where(mass > 0, weights / jnp.where(mass > 0, mass, 1), 0)
    moment = jnp.einsum("mhd,mhc->hdc", key * share[:, None, None], value)
    return jnp.einsum("nhd,hdc->nhc", query, moment).astype(out_dtype)


def _over_devices(
    query: Array, key: Array, value: Array, weights: Array, is_causal: bool, axis_name: str
) -> Float[Array, "n h c"]:
    """Returns `linear_attention` of the nodes of one device of a mapped axis."""
    key, value, weights, here = varying_like((key, value, weights, jax.lax.axis_index(axis_name)))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(weights)))
    if not is_causal:
        relative = weights / unit_of(jax.lax.pmax(largest, axis_name))
        moment = jnp.einsum("mhd,mhc->hdc", key * relative[:, None, None], value)
        moment, mass = jax.lax.psum((moment, jnp.sum(relative)), axis_name)
        moment = jnp.where(mass > 0, moment / jnp.where(mass > 0, mass, 1), 0)
        return jnp.einsum("nhd,hdc->nhc", query, moment)
    query = varying_like(query, here)
    relative = weights / _unit_or_one(largest)
    own = jnp.einsum("mhd,mhc->hdc", key * relative[:, None, None], value), jnp.sum(relative), largest
    moments, masses, sizes = jax.lax.all_gather(own, axis_name)
    earlier = jnp.arange(sizes.shape[0], dtype=here.dtype) < here
    # without weight before, the smallest weight here: earlier weights of 0 are differentiated in its unit
    smallest = jnp.min(jnp.abs(weights), where=weights != 0, initial=jnp.inf)
    before = jnp.max(jnp.where(earlier, sizes, 0))
    unit = _unit_or_one(jnp.where(before > 0, before, jnp.where(smallest < jnp.inf, smallest, 0)))
    factors = jnp.where(earlier, _unit_or_one(sizes) / unit, 0)
    start = jnp.tensordot(factors, moments, axes=1), jnp.tensordot(factors, masses, axes=1), unit
    return _causal_attention(query, key, value, weights, start)


def _unit_or_one(magnitude: Array) -> Array:
    return jnp.where(magnitude > 0, unit_of(magnitude), 1)


def head_features(
    kernel: Kernel | PerHead, query: Float[Array, "n h d"], key: Float[Array, "m h d"]
) -> tuple[Float[Array, "n h r"], Float[Array, "m h r"]]:
    """Returns features whose inner products are a kernel of finite rank, of every head."""

    def of_head(kernel: DotProduct | LearnedFeatures, query: Array, key: Array) -> tuple[Array, Array]:
        return kernel.features(query, key)

    kernel = cast_kernel(kernel, query.dtype)
    return over_heads(of_head, kernel, (query, key), (1, 1), 1, heads=query.shape[1])


@jax.jit
def _causal_attention(
    query: Array, key: Array, value: Array, weights: Array, earlier: tuple[Array, Array, Array] | None = None
) -> Array:
    """Σ_{j≤i} w_j (q_i·k_j) v_j / Σ_{j≤i} w_j, where row i is in units of the largest weight up to i.

    ``earlier`` are the moment and the mass of nodes before the first one, and their unit.
    """
    n = query.shape[0]
    chunk = min(n, _CHUNK)

    def in_chunks(a: Array) -> Array:
        return jnp.pad(a, [(0, -n % chunk), *[(0, 0)] * (a.ndim - 1)], mode="edge").reshape(-1, chunk, *a.shape[1:])

    units = unit_of(jax.lax.cummax(jnp.abs(weights)))
    units = units if earlier is None else jnp.maximum(units, earlier[2])
    inputs = in_chunks(query), in_chunks(key), in_chunks(value), in_chunks(weights), in_chunks(units)
    causal = jnp.tri(chunk, dtype=bool)

    def advance(carry: tuple[Array, Array, Array], inputs: tuple[Array, Array, Array, Array, Array]):
        moment, mass, unit = carry
        query, key, value, weights, units = inputs
        share = jnp.where(causal, weights[None, :] / units[:, None], 0)
        former = unit / units
        # a selection, because a later score that overflows must not be multiplied by 0
        scores = jnp.where(causal[None], jnp.einsum("nhd,mhd->hnm", query, key), 0) * share[None]
        sums = jnp.einsum("hnm,mhc->nhc", scores, value)
        sums = sums + former[:, None, None] * jnp.einsum("nhd,hdc->nhc", query, moment)
        masses = jnp.sum(share, axis=1) + former * mass
        moment = former[-1] * moment + jnp.einsum("mhd,mhc->hdc", key * share[-1][:, None, None], value)
        return (moment, masses[-1], units[-1]), (sums, masses)

    (_, heads, depth), channels, zero = query.shape, value.shape[2], jnp.zeros((), query.dtype)
    start = (jnp.zeros((heads, depth, channels), query.dtype), zero, unit_of(zero)) if earlier is None else earlier
    inputs = varying_like(inputs)
    sums, masses = jax.lax.scan(advance, varying_like(start, inputs), inputs)[1]
    sums, mass = sums.reshape(-1, heads, channels)[:n], masses.reshape(-1)[:n, None, None]
    return jnp.where(mass > 0, sums / jnp.where(mass > 0, mass, 1), 0)


_CHUNK = 64
"""Tokens of a chunk of causal linear attention: scores act inside a chunk, a moment replaces all earlier tokens."""
