"""Units in which sums neither over- nor underflow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_of(magnitude: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """A magnitude by which arrays may be divided, constant under differentiation.

    XLA divides an array by one number as it multiplies by the reciprocal. That of a number near the largest float is
    subnormal, and that of a subnormal number infinite; so both ends of the range are left out. 0 is moved as well.
    """
    info = jnp.finfo(magnitude.dtype)
    return jnp.clip(jax.lax.stop_gradient(magnitude), 64 * float(info.tiny), float(info.max) / 64)
