"""Polynomials of the dot product, with finitely many features: quadratic and truncated exponential."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import accumulator, is_integer
from jaxop.kernels.checks import check_numbers
from jaxop.kernels.dot_product import ScaledProduct
from jaxop.kernels.fourier import LAYOUT, split_bits
from jaxop.kernels.logarithms import LOG_ZERO, log_power

MAX_DEGREE = 20
"""Largest degree of a `TruncatedExponential`: its zeros are known to 1e-12, and higher degrees are close to e^x."""


@functools.partial(register, static=("depth",))
@dataclasses.dataclass(frozen=True)
class Quadratic(ScaledProduct):
    """k(q, k') = (scale · q·k' + γ)², of at most (d + 1)(d + 2)/2 features.

    The kernel is nonnegative. If all products of a row equal −γ, the row has no mass.

    Attributes:
        offset: γ, a number or scalar array (trainable). One per head, (h,), within `PerHead`.
        scale: a number or scalar array (trainable); None means 1/√d.
        depth: d in √d; None means the length of a query.

    Source: Wright, Gonzalez, "Transformers are Deep Infinite-Dimensional Non-Mercer Binary Kernel Machines",
        arXiv:2106.01506.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(kernels.Quadratic()(jnp.ones(4), jnp.ones(4)))  # (4/2 + 1)²
        9.0
    """

    offset: float | Array = 1.0
    scale: float | Array | None = None
    _: dataclasses.KW_ONLY
    depth: int | None = None

    sign = "nonnegative"

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self.offset, "offset")

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """(scale · a·b + γ)²."""
        return (self.product(a, b) + self.offset) ** 2

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """2 log|scale · a·b + γ|."""
        return log_power(self.product(a, b) + self.offset, 2)

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """2 log|scale · Q Kᵀ + γ|."""
        return log_power(self.products(query, key) + self.offset, 2)


@functools.partial(register, static=("degree", "clip", "depth", "sign"))
@dataclasses.dataclass(frozen=True)
class TruncatedExponential(ScaledProduct):
    """k(q, k') = T_p(scale · q·k'), T_p(x) = Σ_{r ≤ p} x^r / r!: the exponentiated dot product cut at degree p.

    Its features are Φ(q)_α = scale^(|α|/2) q^α / √α! over the multi-indices of |α| ≤ p, of which there are
    binomial(d + p, p). Its difference from `ExpDotProduct` is about (scale |q| |k'|)^(p+1) / (p+1)!.

    For even p the kernel is positive. For odd p, T_p has one real zero ρ and is negative for x < ρ, so that attention
    cannot normalise the kernel. ``clip=True`` takes max(T_p, 0), which is nonnegative and has infinitely many
    features; its derivative is 0 for x ≤ ρ. If all products of a row are below ρ, the row has no mass.

    T_p is evaluated as the product of its positive quadratic factors. Unlike the sum of its terms, the product loses
    no digits at negative x, and its logarithm does not overflow.

    Attributes:
        degree: p, from 1 to 20.
        scale: a number or scalar array (trainable); None means 1/√d.
        clip: whether negative values become 0, for odd degrees.
        depth: d in √d; None means the length of a query.

    Raises:
        ValueError: if the degree is not between 1 and 20, or ``clip`` is True and the degree is even.
        TypeError: if the degree is not an integer.

    Cost: `tile` takes a matrix product, and 3 p operations, a division and two logarithms per pair.

    Source: Wright, Gonzalez, arXiv:2106.01506 (the features). Zeros of T_p: Szegő, "Über eine Eigenschaft der
        Exponentialreihe", 1924.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(f"{kernels.TruncatedExponential(4)(jnp.ones(4), jnp.ones(4)):.3f}")  # 1 + 2 + 2 + 4/3 + 2/3
        7.000
    """

    degree: int
    scale: float | Array | None = None
    _: dataclasses.KW_ONLY
    clip: bool = False
    depth: int | None = None
    sign: str = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if not is_integer(self.degree):
            raise TypeError(f"degree must be an integer, got {self.degree!r}; even degrees are positive kernels.")
        if not 1 <= self.degree <= MAX_DEGREE:
            raise ValueError(
                f"degree must lie between 1 and {MAX_DEGREE}, got {self.degree}; ExpDotProduct() is the limit."
            )
        if self.clip and self.degree % 2 == 0:
            raise ValueError(f"clip=True is for odd degrees: degree {self.degree} is positive already; leave it out.")
        sign = "nonnegative" if self.clip else "signed"
        object.__setattr__(self, "sign", sign if self.degree % 2 else "positive")

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """T_p(scale · a·b), or max(T_p, 0)."""
        value = taylor(self.product(a, b), self.degree)
        return jnp.maximum(value, 0) if self.clip else value

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """The logarithm of T_p(scale · a·b), without overflow; `LOG_ZERO` at and below ρ."""
        return log_taylor(self.product(a, b), self.degree)

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The matrix log T_p(scale · Q Kᵀ), or T_p itself if the degree is odd and ``clip`` is False."""
        of = taylor if self.sign == "signed" else log_taylor
        return of(self.products(query, key), self.degree)


def taylor(x: Float[Array, "*n"], degree: int) -> Float[Array, "*n"]:
    """T_p(x) = Σ_{r ≤ p} x^r / r!, by Horner's rule.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.polynomial import taylor
        >>> print(taylor(jnp.asarray([1.0, -1.0]), 2))
        [2.5 0.5]
    """
    total = jnp.ones_like(x)
    for r in range(degree, 0, -1):
        total = 1 + total * x / r
    return total


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_taylor(x: Float[Array, "*n"], degree: int) -> Float[Array, "*n"]:
    """Logarithm of T_p(x); `LOG_ZERO` with derivative 0 where T_p ≤ 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.polynomial import log_taylor
        >>> print(log_taylor(jnp.asarray([0.0, 1e20]), 2))  # log 1, log ½ + 2 log 1e20
        [ 0.       91.410255]
    """
    return _logarithm(x, degree)[0]


@log_taylor.defjvp
def _log_taylor_jvp(degree, primals, tangents):
    (x,), (dx,) = primals, tangents
    value, slope = _logarithm(x, degree)
    return value, dx * slope


def _logarithm(x: Array, degree: int) -> tuple[Array, Array]:
    """Log T_p(x) and its derivative T_{p−1}(x) / T_p(x)."""
    # T_p(x) = 2^{e p} T with derivative 2^{e (p − 1)} T', so that T and T' do not overflow
    unit, exponent = _unit(jax.lax.stop_gradient(x))
    scaled = x * unit
    value, slope = jnp.full_like(x, 1 / math.factorial(degree)), jnp.zeros_like(x)
    for real, imaginary in _zeros(degree):
        difference = scaled - real * unit
        if imaginary:
            factor, change = difference * difference + imaginary**2 * (unit * unit), 2 * difference
        else:
            factor, change = difference, jnp.ones_like(x)
        value, slope = value * factor, slope * factor + value * change
    alive = value > 0
    value = jnp.where(alive, value, 1)
    logarithm = jnp.log(value) + degree * math.log(2) * exponent
    return jnp.where(alive, logarithm, LOG_ZERO), jnp.where(alive, unit * slope / value, 0)


def _unit(x: Array) -> tuple[Array, Array]:
    """2^−e and e, where 2^e is the largest power of two up to max(1, |x|)."""
    wide = x.astype(accumulator(x.dtype))
    _, exponent = split_bits(jnp.maximum(1, jnp.abs(wide)))
    layout = LAYOUT[wide.dtype.name]
    exponent = jnp.minimum(exponent, layout.bias - 1)  # 2^−e of the largest numbers would be 0
    unit = jax.lax.bitcast_convert_type((layout.bias - exponent) << layout.shift, wide.dtype)
    return unit.astype(x.dtype), exponent.astype(x.dtype)


@functools.cache
def _zeros(degree: int) -> list[tuple[float, float]]:
    """Zeros of T_p with imaginary part ≥ 0, as (real, imaginary) parts."""
    coefficients = [1 / math.factorial(r) for r in range(degree, -1, -1)]
    zeros = np.roots(coefficients)
    for _ in range(3):  # T_p' = T_{p−1}
        zeros = zeros - np.polyval(coefficients, zeros) / np.polyval(coefficients[1:], zeros)
    # sorted by imaginary part, the real zero of an odd degree is between the conjugates
    upper = zeros[np.argsort(zeros.imag)][degree // 2 :]
    imaginary = np.where(np.arange(upper.size) < degree % 2, 0.0, upper.imag)
    return list(zip(upper.real.tolist(), imaginary.tolist(), strict=True))
