"""Kernels of the distance between query and key: Gaussian, Euclidean distance and inverse multiquadric."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop.kernels.base import BaseKernel
from jaxop.kernels.channels import sum_over_channels
from jaxop.kernels.checks import check_depth, check_positive
from jaxop.kernels.logarithms import LOG_ZERO, log_power


@functools.partial(register, static=("depth",))
@dataclasses.dataclass(frozen=True)
class Gaussian(BaseKernel):
    """k(q, k') = exp(−τ |q − k'|² / √d).

    Normalised over the keys it is the exponentiated dot product with scale 2 τ/√d under the quadrature weights
    w_j exp(−τ |k_j|² / √d).

    Attributes:
        inverse_width: τ, in units of one over the squared channels; a number or scalar array (trainable).
            One per head, (h,), within `PerHead`.
        depth: d in √d; None means the length of a query.

    Raises:
        ValueError: if the inverse width is not positive and finite.

    Source: Wright, Gonzalez, "Transformers are Deep Infinite-Dimensional Non-Mercer Binary Kernel Machines",
        arXiv:2106.01506.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(f"{kernels.Gaussian()(jnp.zeros(4), jnp.ones(4)):.4f}")  # exp(−4/2)
        0.1353
    """

    inverse_width: float | Array = 1.0
    _: dataclasses.KW_ONLY
    depth: int | None = None

    sign = "positive"

    def __post_init__(self):
        check_positive(self.inverse_width, "inverse_width", "the larger, the narrower the kernel")
        check_depth(self.depth)

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """exp(−τ |a − b|² / √d)."""
        return jnp.exp(self.log(a, b))

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """−τ |a − b|² / √d."""
        difference = a - b
        return -self.inverse_width / math.sqrt(self.depth or a.size) * jnp.dot(difference, difference)

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """−τ/√d (|q|² + |k|² − 2 q·k), one matrix product, or differences for up to 4 channels.

        The product has an error of ε (|q|² + |k|²). Centre data that lie far from 0, as the density estimators do.
        """
        scale = -self.inverse_width / math.sqrt(self.depth or query.shape[1])
        return scale * squared_distances(query, key)

    def with_depth(self, depth: int) -> "Gaussian":
        """Returns the kernel with √d of ``depth`` channels, for vectors that sample functions of ``depth`` channels."""
        return dataclasses.replace(self, depth=depth)


@functools.partial(register, static=("depth",))
@dataclasses.dataclass(frozen=True)
class EuclideanDistance(BaseKernel):
    """k(q, k') = τ |q − k'| / √d, a dissimilarity: distant keys weigh more, and a key equal to the query weighs 0.

    At q = k' the derivative does not exist; it is defined as 0, the mean over all directions. If all keys of a row
    equal the query, the row has no mass. If attention is normalised, τ cancels.

    Attributes:
        inverse_width: τ > 0, in units of one over the channels; a number or scalar array (trainable). If it is traced
            and not positive, the kernel is 0. One per head, (h,), within `PerHead`. None means 1, which is not
            trained.
        depth: d in √d; None means the length of a query.

    Raises:
        ValueError: if the inverse width is not positive and finite.

    Cost: `tile` takes two operations per pair and channel and one logarithm per pair. It uses differences, so that a
        distance has an error of a few ε |q − k'|. Its derivatives are matrix products with error ε |q| / |q − k'|.

    Source: Wright, Gonzalez, arXiv:2106.01506.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(kernels.EuclideanDistance()(jnp.zeros(4), jnp.ones(4)))  # √4 / √4
        1.0
    """

    inverse_width: float | Array | None = 1.0
    _: dataclasses.KW_ONLY
    depth: int | None = None

    sign = "nonnegative"

    def __post_init__(self):
        if self.inverse_width is not None:
            check_positive(self.inverse_width, "inverse_width", "one over the distance at which k is 1/√d")
        check_depth(self.depth)

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """τ |a − b| / √d."""
        square = jnp.sum((a - b) ** 2)
        apart = square > 0
        norm = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)
        return self._factor(a) * norm

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The matrix log τ/√d + ½ log |q − k|², and `LOG_ZERO` with derivative 0 where q = k."""
        log_distance = log_power(sum_of_squares(query, key), 0.5)
        return jnp.where(log_distance > LOG_ZERO / 2, log_power(self._factor(query)) + log_distance, LOG_ZERO)

    def _factor(self, x: Float[Array, "*n d"]) -> Float[Array, ""]:
        width = jnp.asarray(1 if self.inverse_width is None else self.inverse_width, x.dtype)
        return jnp.maximum(width, 0) / math.sqrt(self.depth or x.shape[-1])

    def with_depth(self, depth: int) -> "EuclideanDistance":
        """Returns the kernel with √d of ``depth`` channels, for vectors that sample functions of ``depth`` channels."""
        return dataclasses.replace(self, depth=depth)


@register
@dataclasses.dataclass(frozen=True)
class InverseMultiquadric(BaseKernel):
    """k(q, k') = (1 + τ |q − k'|²)^(−1/2), with heavy tails.

    Attributes:
        inverse_width: τ > 0, in units of one over the squared channels; a number or scalar array (trainable).
            One per head, (h,), within `PerHead`.

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
        """−½ log(1 + τ |q − k|²), by a matrix product, or differences for up to 4 channels; see `Gaussian.tile`."""
        return -jnp.log1p(self.inverse_width * squared_distances(query, key)) / 2


_FEW = 4
"""Number of channels up to which differences are as fast as a matrix product, and exact."""


def _squared_distances_jvp(function: Callable[[Array, Array], Array]):
    """Derivative of |q_i − k_j|² as two matrix products, with sums over rows and columns of a cotangent."""

    def jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (q, k), (dq, dk) = primals, tangents
        # the origin is not near the keys, or one distant key, perhaps of weight 0, would cost all others their digits
        one = jnp.ones_like(q[:, :1]), jnp.ones_like(k.T[:1])
        by_query = jnp.concatenate([q, -one[0]], axis=1) @ jnp.concatenate([dk.T, jnp.sum(k * dk, axis=1)[None]])
        by_key = jnp.concatenate([dq, -jnp.sum(q * dq, axis=1)[:, None]], axis=1) @ jnp.concatenate([k.T, one[1]])
        return function(q, k), -2 * (by_query + by_key)

    return jvp


@jax.custom_jvp
def squared_distances(query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """|q_i − k_j|² ≥ 0, by a matrix product, or by differences for up to 4 channels.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.distance import squared_distances
        >>> print(squared_distances(jnp.ones((1, 2)), jnp.zeros((1, 2))))
        [[2.]]
    """
    if query.shape[1] <= _FEW:
        return sum_of_squares(query, key)
    squares = jnp.sum(query * query, axis=1)[:, None] + jnp.sum(key * key, axis=1)[None, :]
    return jnp.maximum(squares - 2 * (query @ key.T), 0)


@jax.custom_jvp
def sum_of_squares(query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """|q_i − k_j|² by differences, with a relative error of a few ε.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.distance import sum_of_squares
        >>> print(sum_of_squares(jnp.full((1, 8), 1e4), jnp.full((1, 8), 1e4 + 0.5)))
        [[2.]]
    """
    return sum_over_channels(_squared_difference, [query], [key])


def _squared_difference(x: Array, y: Array) -> Array:
    return (x - y) ** 2


squared_distances.defjvp(_squared_distances_jvp(squared_distances))
sum_of_squares.defjvp(_squared_distances_jvp(sum_of_squares))
