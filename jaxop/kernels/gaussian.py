"""The Gaussian kernel."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop.kernels.base import Kernel


@register
@dataclasses.dataclass(frozen=True)
class Gaussian(Kernel):
    """k(q, k') = exp(−τ |q − k'|² / √d).

    Normalised over the keys it is the exponentiated dot product with scale 2 τ/√d under the quadrature weights
    w_j exp(−τ |k_j|² / √d).

    Attributes:
        inverse_width: τ, in units of one over the squared channels; a number or scalar array (trainable).
            With one per head, (h,), pass ``kernel_axis=0``.

    Source: Wright, Gonzalez, "Transformers are Deep Infinite-Dimensional Non-Mercer Binary Kernel Machines",
        arXiv:2106.01506.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(f"{kernels.Gaussian()(jnp.zeros(4), jnp.ones(4)):.4f}")  # exp(−4/2)
        0.1353
    """

    inverse_width: float | Array = 1.0

    sign = "positive"

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """exp(−τ |a − b|² / √d)."""
        return jnp.exp(self.log(a, b))

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """−τ |a − b|² / √d."""
        difference = a - b
        return -self.inverse_width / math.sqrt(a.size) * jnp.dot(difference, difference)

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """−τ/√d (|q|² + |k|² − 2 q·k), one matrix product; for up to 4 channels by differences.

        The product errs by ε (|q|² + |k|²): centre data that lie far from 0, as the density estimators do.
        """
        scale = -self.inverse_width / math.sqrt(query.shape[1])
        return scale * squared_distances(query, key)


_FEW = 4
"""Channels up to which differences are as fast as a matrix product, and exact."""


def squared_distances(query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """|q_i − k_j|² ≥ 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.gaussian import squared_distances
        >>> print(squared_distances(jnp.ones((1, 2)), jnp.zeros((1, 2))))
        [[2.]]
    """
    if query.shape[1] <= _FEW:
        zero = jnp.zeros((query.shape[0], key.shape[0]), query.dtype)
        return sum(((q[:, None] - k[None, :]) ** 2 for q, k in zip(query.T, key.T, strict=True)), start=zero)
    squares = jnp.sum(query * query, axis=1)[:, None] + jnp.sum(key * key, axis=1)[None, :]
    return jnp.maximum(squares - 2 * (query @ key.T), 0)
