"""Generalised Fourier integral kernels: products over the channels of a power of sinc."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._eager import compiled
from jaxop._pytree import register
from jaxop._validation import accumulator, is_integer
from jaxop._varying import varying_like
from jaxop.kernels.base import BaseKernel
from jaxop.kernels.checks import check_positive

_NEAR = 0.25
"""x² below which sin x / x and its logarithmic derivative are summed as series."""

_GROUP = 4
"""Channels that share one division; their product cannot underflow unless a factor vanishes."""

_BLOCK = 16
"""Number of channels that are unrolled; longer vectors are scanned block by block."""

_ROWS = 64
"""Queries of a strip of the backward pass, whose matrices stay in the cache of a core."""


@functools.partial(register, static=("power", "epsilon", "sign"))
@dataclasses.dataclass(frozen=True)
class FourierIntegral(BaseKernel):
    r"""k(q, k') = Π_d φ(sin(R_d (q_d − k'_d)) / (R_d (q_d − k'_d))), φ(z) = z^power.

    It adapts to the dependence between channels without a covariance. Attention needs an even power. With ``power=1``,
    the plain Fourier integral theorem, the kernel is signed and serves density and regression.

    It is evaluated in the log domain, so that products of many small factors do not vanish and every row is a proper
    average. If a computed sine is exactly 0, the factor counts as the smallest positive number, with derivative 0 (the
    kernel is stationary at its zeros). Sines and cosines are computed per node, of R q modulo 2π in more than
    working precision. They are combined by sin(a − b) = sin a cos b − cos a sin b, with a series for
    |a − b| < ½. A factor has an error of a few ε / |R (q − k')|, wherever q and k' lie.

    For queries and keys of variance 1 the logarithm is about −(power/3) R² d. With the published radii of 1 and 2
    attention starts almost one-hot at d ≥ 16; with R ≈ 0.7 d^(−1/4) it starts about as soft as softmax.

    Attributes:
        radius: R, in units of one over the channels: a number, or one per channel, (d,); trainable. One
            per head, (h, 1) or (h, d), within `PerHead`. A traced radius may be negative, because only |R| matters.
        power: an even number 2 l, or 1.
        epsilon: 0 is exact. Otherwise a normalised `integral_attention` adds it to Σ_j k_ij over equally weighted keys
            (to Σ_j w_j k_ij / w̄ with w̄ = Σ_j w_j / m in general) and forms products without the log domain, as
            published with 1e-6. It changes rows of small mass and makes rows of vanishing mass empty.

    Raises:
        ValueError: if the power is neither even nor 1, the radius is not positive and finite, or epsilon is negative.

    Cost: `tile` takes O((n + m) d) sines, about a dozen multiplications and a quarter of a division per pair and
        channel, and one logarithm per pair and 16 channels. O(n m) memory, also for its derivative. Reverse mode only.

    Source: Nguyen, Pham, Nguyen, Nguyen, Osher, Ho, "FourierFormer: Transformer Meets Generalized Fourier
        Integral Theorem", arXiv:2206.00206.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.FourierIntegral(radius=1.0, power=4)
        >>> print(f"{kernel(jnp.zeros(2), jnp.ones(2)):.4f}")  # sin(1)⁸
        0.2514
    """

    radius: float | Array = 2.0
    power: int = 4
    _: dataclasses.KW_ONLY
    epsilon: float = 0.0
    sign: str = dataclasses.field(init=False, repr=False)

    is_additive = True
    """Log k is a sum over the channels."""

    def __post_init__(self):
        if not is_integer(self.power):
            raise TypeError(f"power must be an integer, got {self.power!r}; attention takes 2, 4, 6, ...")
        if self.power != 1 and (self.power < 2 or self.power % 2):
            raise ValueError(
                f"power must be even and positive, or 1 for the signed kernel of density and regression, "
                f"got {self.power}; attention takes 2, 4, 6, ..."
            )
        if not isinstance(self.epsilon, numbers.Real):
            raise TypeError(f"epsilon must be a number ≥ 0, got {self.epsilon!r}; 0 is exact, 1e-6 as published.")
        if not (self.epsilon >= 0 and math.isfinite(self.epsilon)):
            raise ValueError(f"epsilon must be a finite number ≥ 0, got {self.epsilon}; 0 is exact, 1e-6 as published.")
        check_positive(self.radius, "radius", "one over the distance at which k falls off")
        object.__setattr__(self, "sign", "signed" if self.power == 1 else "nonnegative")

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Π_d sinc(R_d (a_d − b_d))^power."""
        return jnp.prod(_sinc(self._radii(a) * (a - b)) ** self.power)

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Power · Σ_d log|sinc(R_d (a_d − b_d))|."""
        factors = jnp.abs(_sinc(self._radii(a) * (a - b)))
        smallest = float(jnp.finfo(factors.dtype).tiny)
        return self.power * jnp.sum(jnp.log(jnp.where(factors > 0, factors, smallest)))

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The matrix of log k, or of k if the power is 1."""
        query, key = (x.astype(accumulator(x.dtype)) for x in (query, key))
        radius = self._radii(query)
        if self.sign == "signed":
            return sinc_product(query, key, radius)
        return self.power * log_sinc(query, key, radius)

    def _radii(self, x: Float[Array, "*n d"]) -> Float[Array, " d"]:
        radius, depth = jnp.asarray(self.radius, x.dtype), x.shape[-1]
        if radius.shape not in ((), (1,), (depth,)):
            raise ValueError(
                f"radius must be a number or have one entry per channel, ({depth},), got shape {radius.shape}; for one "
                "per head pass (h, 1) or (h, d) within PerHead."
            )
        return jnp.broadcast_to(radius, (depth,))


def log_sinc(query: Float[Array, "n d"], key: Float[Array, "m d"], radius: Float[Array, " d"]) -> Float[Array, "n m"]:
    """Σ_d log|sinc(R_d (q_id − k_jd))|; the backward pass keeps only the arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.fourier import log_sinc
        >>> print(log_sinc(jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.ones(2)).round(4))
        [[-0.3452]]
    """
    return _log_sinc(*varying_like((query, key, radius)))


@jax.custom_vjp
@compiled()
def _log_sinc(query: Array, key: Array, radius: Array) -> Array:
    def add(total: Array, x: list[Array], y: list[Array]) -> Array:
        mantissa, exponent = jnp.ones_like(total), jnp.zeros(total.shape, LAYOUT[total.dtype.name].integer)
        for start in range(0, len(x[0]), _GROUP):
            group = slice(start, start + _GROUP)
            sines, differences = _fraction([p[group] for p in x], [p[group] for p in y])
            mantissa, more = split_bits(mantissa * (sines / differences))
            exponent = exponent + more
        return total + (jnp.log(mantissa) + math.log(2) * exponent.astype(total.dtype))

    # the bits of a number do not show a NaN; the product with 0 restores it
    poison = 0 * (jnp.sum(query, axis=1)[:, None] + jnp.sum(key, axis=1)[None, :]) + 0 * jnp.sum(radius)
    return _over_blocks(add, poison, query, key, radius)


@compiled()
def sinc_product(
    query: Float[Array, "n d"], key: Float[Array, "m d"], radius: Float[Array, " d"]
) -> Float[Array, "n m"]:
    """Π_d sinc(R_d (q_id − k_jd)), signed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.fourier import sinc_product
        >>> print(f"{sinc_product(jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.ones(2))[0, 0]:.4f}")
        0.7081
    """

    @jax.checkpoint
    def multiply(product: Array, x: list[Array], y: list[Array]) -> Array:
        sines, differences = _fraction(x, y)
        return product * (sines / differences)

    start = varying_like(jnp.ones((query.shape[0], key.shape[0]), query.dtype), query, key, radius)
    return _over_blocks(multiply, start, query, key, radius, block=_GROUP)


@jax.custom_jvp
def phase(x: Float[Array, "n d"], radius: Float[Array, " d"]) -> Float[Array, "n d"]:
    """R x up to multiples of 2π; its error in float32 is 3e-7 + 4e-11 |R x| if |R x| is below 10⁵.

    The product of the leading 12 bits of both is exact, and so is its remainder modulo the leading bits of 2π.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from jaxop.kernels.fourier import phase
        >>> x, radius = jnp.asarray([[1000.1]]), jnp.asarray([1.3])
        >>> exact = np.float64(np.float32(1000.1)) * np.float64(np.float32(1.3))
        >>> bool(abs(jnp.sin(phase(x, radius))[0, 0] - np.sin(exact)) < 2e-7)  # sin(1.3 x) errs by 2e-5
        True
    """
    if x.dtype != jnp.float32:
        return x * radius[None, :]

    def halves(a: Array) -> tuple[Array, Array]:
        bits = jax.lax.bitcast_convert_type(a, jnp.int32) & ~0xFFF
        leading = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return leading, a - leading

    (x_high, x_low), (r_high, r_low) = halves(x), halves(radius[None, :])
    leading = x_high * r_high
    turns = jnp.round(leading * (1 / (2 * math.pi)))
    for part in _TWO_PI:
        leading = leading - turns * part
    return leading + (x_high * r_low + x_low * radius[None, :])


@phase.defjvp
def _phase_jvp(primals, tangents):
    (x, radius), (dx, d_radius) = primals, tangents
    return phase(x, radius), dx * radius[None, :] + x * d_radius[None, :]


def _parts(number: float, bits: int, count: int) -> list[float]:
    """Summands of a number, of few bits except for the last, so that products with small integers are exact."""
    parts = []
    for _ in range(count - 1):
        mantissa, exponent = math.frexp(number)
        part = math.ldexp(round(mantissa * 2**bits), exponent - bits)
        parts.append(part)
        number -= part
    return [*parts, number]


_TWO_PI = _parts(2 * math.pi, 9, 4)


class _Bits(NamedTuple):
    """The place of the exponent in the bits of a floating type."""

    integer: str
    shift: int
    bias: int


LAYOUT = {"float32": _Bits("int32", 23, 127), "float64": _Bits("int64", 52, 1023)}


def split_bits(x: Array) -> tuple[Array, Array]:
    """|x| = m 2^e with 1 ≤ m < 2, by the bits of x, without underflow or logarithm.

    0 and the subnormal numbers count as m 2^−127 (m 2^−1023 in float64).
    """
    integer, shift, bias = LAYOUT[x.dtype.name]
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(integer))
    exponent = ((bits >> shift) & (2 * bias + 1)) - bias
    mantissa = (bits & ((1 << shift) - 1)) | (bias << shift)
    return jax.lax.bitcast_convert_type(mantissa, x.dtype), exponent


def _fraction(x: list[Array], y: list[Array]) -> tuple[Array, Array]:
    """Π sin R (x − y) and Π R (x − y) over a few channels; if |R (x − y)| < ½, the factors are sinc and 1."""
    numerator = denominator = jnp.ones((), x[0].dtype)
    for x_c, sin_x, cos_x, radius, y_c, sin_y, cos_y, _ in zip(*x, *y, strict=True):
        difference = radius * (x_c[:, None] - y_c[None, :])
        sine = sin_x[:, None] * cos_y[None, :] - cos_x[:, None] * sin_y[None, :]
        square = difference * difference
        near = square < _NEAR
        top = jnp.where(near, _horner(_SINC, square), sine)
        bottom = jnp.where(near, 1, difference)
        numerator, denominator = numerator * top, denominator * bottom
    return numerator, denominator


_SINC = [(-1) ** k / math.factorial(2 * k + 1) for k in range(10)]
"""sin x / x = Σ_k c_k x^{2k}."""

_COTANGENT = [
    *(-1 / 3, -1 / 45, -2 / 945, -1 / 4725, -2 / 93555, -1382 / 638512875, -4 / 18243225, -3617 / 162820783125),
    *(-87734 / 38979295480125, -349222 / 1531329465290625, -310732 / 13447856940643125),
]
"""cot x − 1/x = x Σ_k c_k x^{2k}."""


def _sinc(x: Array) -> Array:
    # jnp.sinc does not run inside jax.shard_map in jax 0.12
    near = x * x < _NEAR
    far = jnp.where(near, 1, x)
    return jnp.where(near, _horner(_SINC, jnp.where(near, x * x, 0)), jnp.sin(far) / far)


def _horner(coefficients: list[float], square: Array) -> Array:
    # at x² < ¼ terms below a quarter of the precision are left out
    precision = float(jnp.finfo(square.dtype).eps) / 4
    count = sum(abs(c) * _NEAR**k > precision * abs(coefficients[0]) for k, c in enumerate(coefficients))
    total = jnp.full_like(square, coefficients[count - 1])
    for c in reversed(coefficients[: count - 1]):
        total = total * square + c
    return total


def _channels(a: Array, radius: Array, count: int) -> tuple[Array, Array, Array, Array]:
    """Channels, padded by zeros to ``count``, the sines and cosines of R a, and R; the axis of channels is first."""
    # XLA does not fuse products with the identity; without them it would evaluate the sines once per pair
    settle = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    depth = a.shape[1]
    pad, identity = jnp.eye(count, depth, dtype=a.dtype), jnp.eye(depth, dtype=a.dtype)
    angle = phase(a, radius)
    sine, cosine = (jnp.pad(settle(identity, f(angle).T), [(0, count - depth), (0, 0)]) for f in (jnp.sin, jnp.cos))
    return settle(pad, a.T), sine, cosine, jnp.pad(radius, (0, count - depth))


def _over_blocks(
    update: Callable[[Array, list[Array], list[Array]], Array],
    start: Array,
    query: Array,
    key: Array,
    radius: Array,
    *,
    block: int = _BLOCK,
) -> Array:
    """Applies ``update(carry, channels of queries, channels of keys)`` to one block of channels after the other."""
    x, y = _blocks(query, key, radius, block)
    if x[0].shape[0] == 1:
        return update(start, [p[0] for p in x], [p[0] for p in y])
    return jax.lax.scan(lambda carry, xy: (update(carry, *xy), None), start, (x, y))[0]


def _blocks(query: Array, key: Array, radius: Array, block: int = _BLOCK) -> tuple[list[Array], list[Array]]:
    """`_channels` of queries and keys, as (blocks, channels of a block, n)."""
    block = min(block, query.shape[1])
    count = -(-query.shape[1] // block)
    x, y = ([p.reshape(count, block, *p.shape[1:]) for p in _channels(z, radius, count * block)] for z in (query, key))
    return x, y


def _log_sinc_forward(query: Array, key: Array, radius: Array):
    return _log_sinc(query, key, radius), (query, key, radius)


@compiled()
def _log_sinc_backward(residuals: tuple[Array, Array, Array], cotangent: Array):
    query, key, radius = residuals
    n, depth = query.shape
    rows, strips = min(n, _ROWS), -(-n // _ROWS)
    padding = strips * rows - n
    cotangents = jnp.pad(cotangent, [(0, padding), (0, 0)]).reshape(strips, rows, -1)

    def differentiate(x: list[Array], y: list[Array]) -> tuple[Array, Array]:
        """Row and column sums of the slopes of one block of channels, (channels, n) and (channels, m)."""

        def strip(d_b: Array, inputs: tuple[list[Array], Array]) -> tuple[Array, Array]:
            x, cotangent = inputs
            slopes = [cotangent * _slope(*xy) for xy in zip(*x, *y, strict=True)]
            d_a = jnp.stack([jnp.sum(s, axis=1) for s in slopes])
            return d_b - jnp.stack([jnp.sum(s, axis=0) for s in slopes]), d_a

        cut = [jnp.moveaxis(jnp.pad(p, [(0, 0), (0, padding)]).reshape(-1, strips, rows), 1, 0) for p in x[:3]]
        cut.append(jnp.broadcast_to(x[3][None], (strips, *x[3].shape)))
        d_b, d_a = jax.lax.scan(strip, varying_like(jnp.zeros_like(y[0]), cotangents), (cut, cotangents))
        return jnp.moveaxis(d_a, 0, 1).reshape(-1, strips * rows)[:, :n], d_b

    gradients = jax.lax.map(lambda xy: differentiate(*xy), _blocks(query, key, radius))
    d_a, d_b = (g.reshape(-1, g.shape[-1])[:depth].T for g in gradients)
    # a shift does not change the derivative in R, because slopes sum to 0; a shift near the data saves digits
    near = jnp.mean(query, axis=0, keepdims=True)
    d_radius = jnp.sum((query - near) * d_a, axis=0) + jnp.sum((key - near) * d_b, axis=0)
    return d_a * radius[None, :], d_b * radius[None, :], d_radius


def _slope(
    x: Array, sin_x: Array, cos_x: Array, radius: Array, y: Array, sin_y: Array, cos_y: Array, _: Array
) -> Array:
    """The derivative cot z − 1/z of log|sinc z| at z = R (x − y) of one channel; 0 where the sine is exactly 0."""
    difference = radius * (x[:, None] - y[None, :])
    sine = sin_x[:, None] * cos_y[None, :] - cos_x[:, None] * sin_y[None, :]
    cosine = cos_x[:, None] * cos_y[None, :] + sin_x[:, None] * sin_y[None, :]
    square = difference * difference
    product = difference * sine
    usable = (square >= _NEAR) & (product != 0)
    far = (difference * cosine - sine) / jnp.where(usable, product, 1)
    return jnp.where(square < _NEAR, difference * _horner(_COTANGENT, square), jnp.where(usable, far, 0))


_log_sinc.defvjp(_log_sinc_forward, _log_sinc_backward)
