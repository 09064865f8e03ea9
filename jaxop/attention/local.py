"""Averages over the neighbourhood of every node, whose size is a length and not a number of nodes."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import as_float, is_concrete
from jaxop.attention.integral import integral_attention
from jaxop.attention.operands import accumulation_dtype
from jaxop.domains import Decomposed, Domain, Grid
from jaxop.domains.domain import as_domain
from jaxop.domains.grid import Axis
from jaxop.kernels import Gaussian

_KERNEL = Gaussian(0.5, depth=1)
"""exp(−|z|²/2) for any number of channels."""


def local_averages(
    values: Float[Array, "n h c"],
    domain: Domain | Decomposed,
    *,
    radius: float | Float[Array, ""] | Float[Array, " h"],
    implementation: str | None = None,
) -> Float[Array, "n h c"]:
    """A(x) = ∫ κ((y−x)/r) v(y) dy / ∫ κ((y−x)/r) dy with κ(z) = exp(−|z|²/2), per head, at every node x.

    It is `integral_attention` with the nodes as queries and keys. On a grid, kernel and weights are products over the
    axes, so it is computed along one axis after the other. Along a periodic axis |y − x| is the length of the chord of
    the circle, which is the distance of near nodes.

    Args:
        values: v at the nodes of the domain, (n, h, c).
        domain: one domain; `jax.vmap` maps over a stack.
        radius: r > 0, in units of length, one for all heads or one per head, (h,).
        implementation: an implementation of `jaxop.attention.integral_attention`; None lets it choose.

    Returns:
        A, (n, h, c), in the dtype of ``values``. Constants stay constants.

    Raises:
        ValueError: if shapes do not fit, or a known radius is not positive and finite.

    Cost: O(n h c) times the nodes along all axes of a grid, and O(n² h c) on other domains; O(n h c) memory.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import attention, domains
        >>> domain = domains.box((8, 8))
        >>> x = domain.points[:, None, :1]
        >>> y = attention.local_averages(x, domain, radius=0.1)
        >>> print(*(f"{value:.3f}" for value in y[::16, 0, 0]))
        0.064 0.287 0.571 0.837
    """
    values, domain = as_float(values, "values"), as_domain(domain, "domain")
    if values.ndim != 3 or values.shape[0] != domain.size:
        raise ValueError(
            f"values must have shape (n, h, c) with n = {domain.size} nodes, got {values.shape}; use jax.vmap for a "
            "batch."
        )
    if jnp.shape(radius) not in ((), values.shape[1:2]):
        raise ValueError(f"radius must be a number or have shape (h,) = ({values.shape[1]},), got {jnp.shape(radius)}.")
    if is_concrete(radius) and not (np.isfinite(radius) & (np.asarray(radius) > 0)).all():
        raise ValueError(f"radius must be positive and finite, a length in the unit of the nodes, got {radius}.")
    dtype = accumulation_dtype(values, domain.points)
    by_head = jnp.broadcast_to(jnp.asarray(radius, dtype), values.shape[1:2])[:, None]

    def average(places: Float[Array, "m e"], weights: Float[Array, " m"], v: Float[Array, "m h k"]) -> Array:
        scaled = places.astype(dtype)[:, None] / by_head[None]
        return integral_attention(scaled, scaled, v, weights, kernel=_KERNEL, implementation=implementation)

    if not isinstance(domain, Grid):
        return average(domain.points, domain.weights, values)
    n, heads, channels = values.shape
    out = values
    for i, axis in enumerate(domain.axes):
        # the other axes are channels
        before, after = math.prod(domain.shape[:i]), math.prod(domain.shape[i + 1 :])
        split = out.reshape(before, axis.size, after, heads, channels)
        along = jnp.transpose(split, (1, 3, 0, 2, 4)).reshape(axis.size, heads, -1)
        along = average(_places(axis), axis.weights, along)
        split = along.reshape(axis.size, heads, before, after, channels)
        out = jnp.transpose(split, (2, 0, 3, 1, 4)).reshape(n, heads, channels)
    return out


def _places(axis: Axis) -> Float[Array, "m e"]:
    """Returns the nodes of an axis, on a line or, if it is periodic, on a circle of the same length."""
    if not axis.rule.is_periodic:
        return axis.nodes[:, None]
    lower, upper = axis.ends
    circumference = upper - lower
    angle = axis.nodes * (2 * math.pi / circumference)
    return circumference / (2 * math.pi) * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
