"""Kernels that are algebraic functions of a pair: inverse multiquadric and bilinear."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop.kernels.base import BaseKernel, check_numbers, check_positive
from jaxop.kernels.distance import squared_distances


@register
@dataclasses.dataclass(frozen=True)
class InverseMultiquadric(BaseKernel):
    """k(q, k') = (1 + τ |q − k'|²)^(−1/2), with heavy tails.

    Attributes:
        inverse_width: τ > 0, in units of one over the squared channels; a number or scalar array (trainable).
            With one per head, (h,), pass ``kernel_axis=0``.

    Source: Gorham, Mackey, "Measuring Sample Quality with Kernels", arXiv:1703.01717.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(f"{kernels.InverseMultiquadric()(jnp.zeros(3), jnp.ones(3)):.2f}")  # 1/√4
        0.50
    """

    inverse_width: float | Array = 1.0

    sign = "positive"

    def __post_init__(self):
        check_positive(self.inverse_width, "inverse_width", "the larger, the narrower the kernel")

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """(1 + τ |a − b|²)^(−1/2)."""
        return jnp.exp(self.log(a, b))

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Minus half the logarithm of 1 + τ |a − b|²."""
        difference = a - b
        return -jnp.log1p(self.inverse_width * jnp.dot(difference, difference)) / 2

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """−½ log(1 + τ |q − k|²), as in `Gaussian.tile`."""
        return -jnp.log1p(self.inverse_width * squared_distances(query, key)) / 2


@register
@dataclasses.dataclass(frozen=True)
class Bilinear(BaseKernel):
    """k(q, k') = qᵀ A k' + c, a signed kernel of finite rank.

    Attributes:
        matrix: A, (d, d); one per head, (h, d, d), with ``kernel_axis=0`` (then ``offset`` has shape (h,)).
        offset: c, a number or scalar array; None: no constant, and the kernel has rank d instead of d + 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(kernels.Bilinear(jnp.eye(3))(jnp.ones(3), jnp.ones(3)))
        4.0
    """

    matrix: Float[Array, "*h d d"]
    offset: float | Array | None = 1.0

    sign = "signed"

    def __post_init__(self):
        check_numbers(self.matrix, "matrix")
        if self.offset is not None:
            check_numbers(self.offset, "offset")
        if jnp.ndim(self.matrix) < 2:
            raise ValueError(
                f"matrix must have shape (d, d), or (h, d, d) with one per head, got {jnp.shape(self.matrix)}."
            )

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """aᵀ A b + c."""
        return jnp.dot(a @ self.matrix, b) + (0.0 if self.offset is None else self.offset)

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Q A Kᵀ + c."""
        return query @ self.matrix @ key.T + (0.0 if self.offset is None else self.offset)
