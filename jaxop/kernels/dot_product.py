"""The exponentiated dot product of ordinary softmax attention, and the dot product of linear attention."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop.kernels.base import Kernel


@dataclasses.dataclass(frozen=True)
class _ScaledProduct(Kernel):
    """scale · q·k', the kernel or its logarithm."""

    scale: float | Array | None = None

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Scale · Q Kᵀ, one matrix product."""
        return self.scaled(query) @ key.T

    def scaled(self, query: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Scale · query: multiplying the shorter side once keeps the scale out of the n × m matrix."""
        return query * (1 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale)


@register
@dataclasses.dataclass(frozen=True)
class ExpDotProduct(_ScaledProduct):
    """k(q, k') = exp(scale · q·k'), the kernel of softmax attention.

    Attributes:
        scale: a number or scalar array (trainable); None means 1/√d with d the length of a query.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(f"{kernels.ExpDotProduct()(jnp.ones(4), jnp.ones(4)):.3f}")
        7.389
    """

    sign = "positive"

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Scale · a·b."""
        return jnp.dot(self.scaled(a), b)

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """exp(scale · a·b)."""
        return jnp.exp(self.log(a, b))


@register
@dataclasses.dataclass(frozen=True)
class DotProduct(_ScaledProduct):
    """k(q, k') = scale · q·k', the signed kernel of linear attention; see `jaxop.attention.linear_attention`.

    Attributes:
        scale: a number or scalar array (trainable); None means 1/√d with d the length of a query.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(kernels.DotProduct()(jnp.ones(4), jnp.ones(4)))
        2.0
    """

    sign = "signed"

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Scale · a·b."""
        return jnp.dot(self.scaled(a), b)
