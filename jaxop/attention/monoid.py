"""Commutative monoid of partial integrals; every way of splitting an integral uses it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxop._pytree import register
from jaxop._validation import is_concrete
from jaxop.kernels import LOG_ZERO


@register
@dataclasses.dataclass(frozen=True)
class Partial:
    """∫_E k(q_i, ·) dy and ∫_E k(q_i, ·) v dy over a part E of the domain, both scaled by exp(−shift_i).

    Attributes:
        shift: largest log(w_j k_ij) of the part, shape (n, h); constant under differentiation.
        mass: Σ_j w_j k_ij · exp(−shift_i), shape (n, h); at least 1, or 0 if no key has contributed.
        moment: Σ_j w_j k_ij v_j · exp(−shift_i), shape (n, h, c).
    """

    shift: Float[Array, "*n"]
    mass: Float[Array, "*n"]
    moment: Float[Array, "*n c"]


def combine(a: Partial, b: Partial) -> Partial:
    """Returns the integral over the union of two disjoint parts: associative, commutative, exact up to rounding.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import attention, kernels
        >>> x = jnp.linspace(0, 1, 6).reshape(6, 1, 1); w = jnp.full(6, 1 / 6)
        >>> parts = [attention.accumulate(x, x[s], x[s], w[s], kernel=kernels.ExpDotProduct())
        ...          for s in (slice(0, 2), slice(2, 6))]
        >>> whole = attention.integral_attention(x, x, x)
        >>> bool(jnp.allclose(attention.finish(attention.combine(*parts)), whole))
        True
    """
    larger = jnp.maximum(a.shift, b.shift)
    # a part without mass contributes to the derivative only
    shift = jnp.where((a.mass == 0) == (b.mass == 0), larger, jnp.where(a.mass == 0, b.shift, a.shift))
    clip = log_clip(shift.dtype)
    scale_a, scale_b = (jnp.exp(jnp.minimum(part.shift - shift, clip)) for part in (a, b))
    return Partial(
        shift,
        scale_a * a.mass + scale_b * b.mass,
        scale_a[..., None] * a.moment + scale_b[..., None] * b.moment,
    )


def finish(part: Partial, normalize: bool = True, *, epsilon: float | Float[Array, ""] = 0.0) -> Float[Array, "*n c"]:
    """∫ k v dy / (∫ k dy + ε), exactly 0 in rows without mass; ∫ k v dy if ``normalize`` is False.

    Args:
        part: the integrals over the whole domain.
        normalize: whether to divide.
        epsilon: ε ≥ 0, in units of ∫ k dy; not used if ``normalize`` is False. If it is traced, rows without mass need
            ε > 0.

    Raises:
        ValueError: if ``epsilon`` is negative.

    Without normalisation the derivative in the moment is exp(shift). If exp(shift) overflows although ∫ k v dy does
    not, differentiate `integral_attention`, which never forms it.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import attention
        >>> empty = attention.Partial(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.zeros((1, 1, 3)))
        >>> print(attention.finish(empty)[0, 0])
        [0. 0. 0.]
    """
    if not normalize:
        # two steps, so that no factor overflows before the product; finite at 0, where 0 · ∞ would be NaN,
        # so that nodes of weight 0 have their derivative
        half = jnp.exp(part.shift / 2)[..., None]
        bound = math.sqrt(float(jnp.finfo(half.dtype).max)) / 2
        half = jnp.where(part.moment != 0, half, jnp.minimum(half, bound))
        return part.moment * half * half
    is_known = is_concrete(epsilon)
    if is_known and epsilon < 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}; 0 divides by the mass alone.")
    if not is_known or epsilon:
        return part.moment / (part.mass + epsilon * jnp.exp(-part.shift))[..., None]
    alive = part.mass != 0
    return jnp.where(alive[..., None], part.moment / jnp.where(alive, part.mass, 1)[..., None], 0)


def split_weights(
    weights: Float[Array, " m"], mask: Bool[Array, " m"] | None = None, largest: Float[Array, ""] | None = None
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Splits w_j = exp(a_j) s_j, with a_j constant under differentiation and s_j ∈ {1, 0, −1}.

    The magnitude goes into the exponent, where units of length do not overflow or underflow (except for subnormal
    numbers, which most devices round to 0). The sign stays a factor, so that a node of weight 0 keeps its true
    derivative, which a masked logarithm would lose. The magnitude of a node of weight 0 is arbitrary and cancels: it is
    ``largest``, by default the largest of these weights. A masked node has log magnitude `LOG_ZERO`, so that its value
    and derivative are 0.
    """
    magnitude = jax.lax.stop_gradient(jnp.abs(weights))
    largest = jnp.max(magnitude) if largest is None else largest
    magnitude = jnp.where(magnitude > 0, magnitude, jnp.where(largest > 0, largest, 1))
    log_weights = jnp.log(magnitude)
    if mask is not None:
        log_weights = jnp.where(mask, log_weights, LOG_ZERO)
    return log_weights, weights / magnitude


def log_clip(dtype: jnp.dtype, *, normalize: bool = True) -> float:
    """Returns the largest exponent of a node of weight 0 whose kernel value exceeds those of all weighted nodes.

    With normalisation a cotangent of the same size multiplies exp of it, and the product must stay finite.
    """
    largest = math.log(float(jnp.finfo(dtype).max))
    return largest / 2 if normalize else largest - 1


def accumulate_tile(
    tile: Float[Array, "n m"],
    value: Float[Array, "m c"],
    log_weights: Float[Array, " m"],
    signs: Float[Array, " m"],
    mask: Bool[Array, "n m"] | None,
    sign: str,
    clip: float,
) -> Partial:
    """Returns the partial integral of one head from its matrix of (log) kernel values.

    ``clip`` bounds the exponent of a node of weight 0 relative to the largest exponent of the weighted nodes.
    """
    augmented = jnp.concatenate([value, jnp.ones_like(value[:, :1])], axis=1)
    if sign == "signed":
        augmented = signs[:, None] * augmented
        tile = tile if mask is None else jnp.where(mask, tile, 0)
        sums = tile @ (jnp.exp(log_weights)[:, None] * augmented)
        return Partial(jnp.zeros_like(sums[:, 0]), sums[:, -1], sums[:, :-1])
    shift, densities = tile_densities(tile, log_weights, signs, mask, clip)
    sums = densities @ (signs[:, None] * augmented)
    return Partial(shift, sums[:, -1], sums[:, :-1])


def integrate_tile(
    tile: Float[Array, "n m"],
    value: Float[Array, "m c"],
    log_weights: Float[Array, " m"],
    signs: Float[Array, " m"],
    mask: Bool[Array, "n m"] | None,
) -> Float[Array, "n c"]:
    """Returns Σ_j w_j k_ij v_j of one head from log kernel values, with derivatives as large as the result."""
    shift, logits = shifted_logits(tile, log_weights, signs, mask)
    half = half_shift(shift)
    densities = halved_densities(logits, half, signs) * signs[None, :]
    return jnp.exp(half)[:, None] * (densities @ value)


def half_shift(shift: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns the exponent of exp(shift/2), which multiplies a sum twice, so that neither factor overflows alone."""
    return jax.lax.stop_gradient(jnp.minimum(shift / 2, log_clip(shift.dtype, normalize=False)))


def halved_densities(
    logits: Float[Array, "n m"], half: Float[Array, " n"], signs: Float[Array, " m"]
) -> Float[Array, "n m"]:
    """exp(l_ij − half_i), where exp(l_ij) of a node of weight 0 is bounded, as only its own derivative needs it."""
    clip = log_clip(logits.dtype, normalize=False)
    bound = jnp.where(signs[None, :] == 0, clip - jnp.maximum(half, 0)[:, None], clip)
    return jnp.exp(jnp.minimum(logits - half[:, None], bound))


def tile_densities(
    tile: Float[Array, "n m"],
    log_weights: Float[Array, " m"],
    signs: Float[Array, " m"],
    mask: Bool[Array, "n m"] | None,
    clip: float,
) -> tuple[Float[Array, " n"], Float[Array, "n m"]]:
    """Returns a shift per row and |w_j| k_ij exp(−shift_i), from a matrix of log kernel values."""
    shift, logits = shifted_logits(tile, log_weights, signs, mask)
    return shift, jnp.exp(jnp.minimum(logits - shift[:, None], clip))


def shifted_logits(
    tile: Float[Array, "n m"],
    log_weights: Float[Array, " m"],
    signs: Float[Array, " m"],
    mask: Bool[Array, "n m"] | None,
) -> tuple[Float[Array, " n"], Float[Array, "n m"]]:
    """Returns the largest log(|w_j| k_ij) of each row over nodes of weight > 0, and all these logarithms."""
    logits = tile + log_weights[None, :]
    if mask is not None:
        logits = jnp.where(mask, logits, LOG_ZERO)
    largest = jnp.max(jnp.where((signs != 0)[None, :], logits, LOG_ZERO), axis=1)
    # if all nodes that a row sees have weight 0, all of them count for the derivative
    largest = jnp.where(largest > LOG_ZERO / 2, largest, jnp.max(logits, axis=1))
    # the floor keeps exp(LOG_ZERO - shift) = 0 in rows where every key is masked
    return jax.lax.stop_gradient(jnp.maximum(largest, LOG_ZERO / 2)), logits
