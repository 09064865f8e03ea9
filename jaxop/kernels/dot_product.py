"""Kernels of the dot product: exponentiated (softmax attention), plain (linear attention) and bilinear."""

import dataclasses
import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop.kernels.base import BaseKernel
from jaxop.kernels.checks import check_depth, check_numbers


class ScaledProduct(BaseKernel):
    """Base class of kernels that are functions of scale · q·k'."""

    scale: float | Array | None
    depth: int | None

    def __post_init__(self):
        if self.scale is not None:
            check_numbers(self.scale, "scale")
        check_depth(self.depth)

    def scaled(self, query: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Scale · query, so that the n × m matrix does not need the scale."""
        return query * self.factor(query.shape[-1])

    def factor(self, depth: int) -> float | Array:
        """The scale for vectors of a given length: 1/√d if ``scale`` is None."""
        return 1 / math.sqrt(self.depth or depth) if self.scale is None else self.scale

    def with_depth(self, depth: int) -> "ScaledProduct":
        """Returns the kernel with √d of ``depth`` channels, for vectors that sample functions of ``depth`` channels."""
        return dataclasses.replace(self, depth=depth)  # pyright: ignore[reportArgumentType]

    def products(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Scale · Q Kᵀ, one matrix product."""
        return self.scaled(query) @ key.T

    def product(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Scale · a·b."""
        return jnp.dot(self.scaled(a), b)


@functools.partial(register, static=("depth",))
@dataclasses.dataclass(frozen=True)
class ExpDotProduct(ScaledProduct):
    """k(q, k') = exp(scale · q·k'), the kernel of softmax attention.

    Attributes:
        scale: a number or scalar array (trainable); None means 1/√d.
        depth: d in √d; None means the length of a query.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(f"{kernels.ExpDotProduct()(jnp.ones(4), jnp.ones(4)):.3f}")
        7.389
    """

    scale: float | Array | None = None
    _: dataclasses.KW_ONLY
    depth: int | None = None

    sign = "positive"

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Scale · a·b."""
        return self.product(a, b)

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """exp(scale · a·b)."""
        return jnp.exp(self.log(a, b))

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Scale · Q Kᵀ, one matrix product."""
        return self.products(query, key)


@functools.partial(register, static=("depth",))
@dataclasses.dataclass(frozen=True)
class DotProduct(ScaledProduct):
    """k(q, k') = scale · q·k', the signed kernel of linear attention; see `jaxop.attention.linear_attention`.

    Attributes:
        scale: a number or scalar array (trainable); None means 1/√d.
        depth: d in √d; None means the length of a query.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(kernels.DotProduct()(jnp.ones(4), jnp.ones(4)))
        2.0
    """

    scale: float | Array | None = None
    _: dataclasses.KW_ONLY
    depth: int | None = None

    sign = "signed"

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Scale · a·b."""
        return self.product(a, b)

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Scale · Q Kᵀ, one matrix product."""
        return self.products(query, key)

    def features(
        self, query: Float[Array, "n d"], key: Float[Array, "m d"]
    ) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
        """Rows whose inner products are the kernel: scale · Q and K."""
        return self.scaled(query), key


@register
@dataclasses.dataclass(frozen=True)
class Bilinear(BaseKernel):
    """k(q, k') = qᵀ A k' + c, a signed kernel of finite rank.

    Attributes:
        matrix: A, (d, d); one per head, (h, d, d), within `PerHead` (then ``offset`` has shape (h,)).
        offset: c, a number or scalar array; None omits it, so that the kernel has rank d instead of d + 1.

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
