"""Units in which sums do not overflow or underflow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_of(magnitude: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns a magnitude by which arrays may be divided, constant under differentiation.

    XLA may replace division by a number with multiplication by its reciprocal. The reciprocal of a number near the
    largest float is subnormal, and the reciprocal of a subnormal number is infinite. Both ends of the range (and 0)
    are therefore clipped.
    """
    info = jnp.finfo(magnitude.dtype)
    return jnp.clip(jax.lax.stop_gradient(magnitude), 64 * float(info.tiny), float(info.max) / 64)
