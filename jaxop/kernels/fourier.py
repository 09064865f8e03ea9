"""Generalised Fourier integral kernels: products over the channels of a power of sinc."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import is_concrete
from jaxop.kernels.base import Kernel

_NEAR = 0.25
"""x² below which sin x / x and its logarithmic derivative are summed as series."""

_GROUP = 4
"""Channels that share one division: their product cannot underflow where no factor vanishes."""

_BLOCK = 16
"""Channels that are written out; longer vectors are scanned block by block."""

_ROWS = 64
"""Queries of a strip of the backward pass, whose matrices stay in a core's cache."""


@functools.partial(register, static=("power", "epsilon"))
@dataclasses.dataclass(frozen=True)
class FourierIntegral(Kernel):
    r"""k(q, k') = Π_d φ(sin(R_d (q_d − k'_d)) / (R_d (q_d − k'_d))), φ(z) = z^power.

    Adapts to the dependence between channels without a covariance to choose. For attention the power is
    even; ``power=1``, the plain Fourier integral theorem, is signed and serves density and regression.

    Evaluated in the log domain, so that no product of many small factors vanishes and every row is a proper
    average. Where a sine comes out as exactly 0, the factor counts as the smallest positive number and its
    derivative as 0 (the kernel is stationary at its zeros). Sines and cosines are taken per node,
    sin(a − b) = sin a cos b − cos a sin b, with a series for |a − b| < ½. Queries and keys are first shifted by
    the first query, which changes no difference; a factor then errs by a few ε max|R q| / |R (q − k')|.

    For queries and keys of variance 1 the logarithm is about −(power/3) R² d: with the published radii of 1 and
    2 attention starts almost one-hot at d = 16 and more; R ≈ 0.7 d^(−1/4) starts it about as soft as softmax.

    Attributes:
        radius: R, in units of one over the channels: a number, or one per channel, (d,); trainable. With
            one per head, (h, 1) or (h, d), pass ``kernel_axis=0``. Its sign does not matter.
        power: an even number 2 l, or 1.
        epsilon: added by a normalised `integral_attention` to Σ_j k_ij over equally weighted keys (to
            Σ_j w_j k_ij / w̄ with w̄ = Σ_j w_j / m in general), whose products are then formed without the log
            domain, as published: 1e-6 there, which moves rows of small mass and empties vanishing ones.
            0 is exact.

    Raises:
        ValueError: for another power, a radius that is not positive and finite, or a negative epsilon.

    Cost: `tile` O((n + m) d) sines, about a dozen multiplications and a quarter of a division per pair and
        channel, one logarithm per pair and 16 channels; O(n m) memory, its derivative included. Reverse mode only.

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

    def __post_init__(self):
        if self.power != 1 and (self.power < 2 or self.power % 2):
            raise ValueError(
                f"power must be even and positive, or 1 for the signed kernel of density and regression, "
                f"got {self.power}; attention takes 2, 4, 6, ..."
            )
        if not (self.epsilon >= 0 and math.isfinite(self.epsilon)):
            raise ValueError(f"epsilon must be a finite number ≥ 0, got {self.epsilon}; 0 is exact, 1e-6 as published.")
        if is_concrete(self.radius):
            radius = np.asarray(self.radius)
            if not (np.all(np.isfinite(radius)) and np.all(radius > 0)):
                raise ValueError(f"radius must be positive and finite, got {radius}; the published values are 1 and 2.")

    is_additive = True
    """Log k is a sum over the channels."""

    @property
    def sign(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``"signed"`` for power 1, else ``"nonnegative"``."""
        return "signed" if self.power == 1 else "nonnegative"

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Π_d sinc(R_d (a_d − b_d))^power."""
        return jnp.prod(jnp.sinc(self._scaled(a - b) / math.pi) ** self.power)

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Power · Σ_d log|sinc(R_d (a_d − b_d))|."""
        factors = jnp.abs(jnp.sinc(self._scaled(a - b) / math.pi))
        smallest = float(jnp.finfo(factors.dtype).tiny)
        return self.power * jnp.sum(jnp.log(jnp.where(factors > 0, factors, smallest)))

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The matrix of log k, or of k for power 1."""
        centre = jax.lax.stop_gradient(query[0])  # not a mean of keys: some may be padding, or lie in the future
        query, key = (self._scaled(x - centre[None, :]) for x in (query, key))
        if self.sign == "signed":
            return sinc_product(query, key)
        return self.power * log_sinc(query, key)

    def _scaled(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        shape, depth = jnp.shape(self.radius), x.shape[-1]
        if shape not in ((), (1,), (depth,)):
            raise ValueError(
                f"radius must be a number or have one entry per channel, ({depth},), got shape {shape}; for one per "
                "head pass (h, 1) or (h, d) with kernel_axis=0."
            )
        radius = jnp.asarray(self.radius, x.dtype)
        return x * radius.reshape((1,) * (x.ndim - 1) + (-1,))


@jax.custom_vjp
def log_sinc(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Σ_d log|sinc(a_id − b_jd)|; nothing but a and b is kept for the backward pass.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.fourier import log_sinc
        >>> print(log_sinc(jnp.ones((1, 2)), jnp.zeros((1, 2))).round(4))
        [[-0.3452]]
    """

    def add(total: Array, x: Any, y: Any) -> Array:
        mantissa, exponent = jnp.ones_like(total), jnp.zeros(total.shape, _LAYOUT[total.dtype.name].integer)
        for start in range(0, len(x[0]), _GROUP):
            group = slice(start, start + _GROUP)
            sines, differences = _fraction([p[group] for p in x], [p[group] for p in y])
            mantissa, more = _split(mantissa * (sines / differences))
            exponent = exponent + more
        return total + (jnp.log(mantissa) + math.log(2) * exponent.astype(total.dtype))

    # bits hide a NaN; times 0 it comes back
    poison = 0 * (jnp.sum(a, axis=1)[:, None] + jnp.sum(b, axis=1)[None, :])
    return _over_blocks(add, poison, a, b)


def sinc_product(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Π_d sinc(a_id − b_jd), signed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.fourier import sinc_product
        >>> print(f"{sinc_product(jnp.ones((1, 2)), jnp.zeros((1, 2)))[0, 0]:.4f}")
        0.7081
    """

    @jax.checkpoint
    def multiply(product: Array, x: Any, y: Any) -> Array:
        sines, differences = _fraction(x, y)
        return product * (sines / differences)

    return _over_blocks(multiply, jnp.ones((a.shape[0], b.shape[0]), a.dtype), a, b, block=_GROUP)


class _Bits(NamedTuple):
    """Where a floating type keeps its exponent."""

    integer: str
    shift: int
    bias: int


_LAYOUT = {"float32": _Bits("int32", 23, 127), "float64": _Bits("int64", 52, 1023)}


def _split(x: Array) -> tuple[Array, Array]:
    """|x| = m 2^e with 1 ≤ m < 2, by the bits of x: no product underflows, and none needs a logarithm.

    0 and the subnormal numbers count as m 2^−127 (m 2^−1023 in float64).
    """
    integer, shift, bias = _LAYOUT[x.dtype.name]
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(integer))
    exponent = ((bits >> shift) & (2 * bias + 1)) - bias
    mantissa = (bits & ((1 << shift) - 1)) | (bias << shift)
    return jax.lax.bitcast_convert_type(mantissa, x.dtype), exponent


def _fraction(x: Any, y: Any) -> tuple[Array, Array]:
    """Π sin(x − y) and Π (x − y) over a few channels; where |x − y| < ½, sinc(x − y) and 1."""
    numerator = denominator = jnp.ones((), x[0].dtype)
    for x_c, sin_x, cos_x, y_c, sin_y, cos_y in zip(*x, *y, strict=True):
        difference = x_c[:, None] - y_c[None, :]
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


def _horner(coefficients: list[float], square: Array) -> Array:
    # at x² < ¼: terms below a quarter of the precision are left out
    precision = float(jnp.finfo(square.dtype).eps) / 4
    count = sum(abs(c) * _NEAR**k > precision * abs(coefficients[0]) for k, c in enumerate(coefficients))
    total = jnp.full_like(square, coefficients[count - 1])
    for c in reversed(coefficients[: count - 1]):
        total = total * square + c
    return total


def _channels(a: Array, count: int) -> tuple[Array, Array, Array]:
    """The channels, padded by zeros to ``count``, with their sines and cosines, channels first."""
    # XLA does not fuse products with the identity: else it takes the sines once per pair, where they are used
    settle = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    a = settle(jnp.eye(count, a.shape[1], dtype=a.dtype), a.T)
    identity = jnp.eye(count, dtype=a.dtype)
    return a, settle(identity, jnp.sin(a)), settle(identity, jnp.cos(a))


def _over_blocks(update: Any, start: Any, a: Array, b: Array, *, block: int = _BLOCK) -> Any:
    """``update(carry, channels of a, channels of b)`` for one block of channels after the other."""
    x, y = _blocks(a, b, block)
    if x[0].shape[0] == 1:
        return update(start, [p[0] for p in x], [p[0] for p in y])
    return jax.lax.scan(lambda carry, xy: (update(carry, *xy), None), start, (x, y))[0]


def _blocks(a: Array, b: Array, block: int = _BLOCK) -> tuple[list[Array], list[Array]]:
    """`_channels` of a and b, as (blocks, channels of a block, n)."""
    block = min(block, a.shape[1])
    count = -(-a.shape[1] // block)
    x, y = ([p.reshape(count, block, -1) for p in _channels(z, count * block)] for z in (a, b))
    return x, y


def _log_sinc_forward(a: Array, b: Array):
    return log_sinc(a, b), (a, b)


def _log_sinc_backward(residuals: Any, cotangent: Array):
    a, b = residuals
    n, depth = a.shape
    rows, strips = min(n, _ROWS), -(-n // _ROWS)
    padding = strips * rows - n
    cotangents = jnp.pad(cotangent, [(0, padding), (0, 0)]).reshape(strips, rows, -1)

    def differentiate(x: list[Array], y: list[Array]) -> tuple[Array, Array]:
        """Row and column sums of the slopes of one block of channels, (channels, n) and (channels, m)."""

        def strip(d_b: Array, inputs: Any):
            x, cotangent = inputs
            slopes = [cotangent * _slope(*xy) for xy in zip(*x, *y, strict=True)]
            d_a = jnp.stack([jnp.sum(s, axis=1) for s in slopes])
            return d_b - jnp.stack([jnp.sum(s, axis=0) for s in slopes]), d_a

        cut = [jnp.moveaxis(jnp.pad(p, [(0, 0), (0, padding)]).reshape(-1, strips, rows), 1, 0) for p in x]
        d_b, d_a = jax.lax.scan(strip, jnp.zeros_like(y[0]), (cut, cotangents))
        return jnp.moveaxis(d_a, 0, 1).reshape(-1, strips * rows)[:, :n], d_b

    gradients = jax.lax.map(lambda xy: differentiate(*xy), _blocks(a, b))
    d_a, d_b = (g.reshape(-1, g.shape[-1])[:depth].T for g in gradients)
    return d_a, d_b


def _slope(x: Array, sin_x: Array, cos_x: Array, y: Array, sin_y: Array, cos_y: Array) -> Array:
    """cot(x − y) − 1/(x − y) of one channel, 0 where the sine is exactly 0."""
    difference = x[:, None] - y[None, :]
    sine = sin_x[:, None] * cos_y[None, :] - cos_x[:, None] * sin_y[None, :]
    cosine = cos_x[:, None] * cos_y[None, :] + sin_x[:, None] * sin_y[None, :]
    square = difference * difference
    product = difference * sine
    usable = (square >= _NEAR) & (product != 0)
    far = (difference * cosine - sine) / jnp.where(usable, product, 1)
    return jnp.where(square < _NEAR, difference * _horner(_COTANGENT, square), jnp.where(usable, far, 0))


log_sinc.defvjp(_log_sinc_forward, _log_sinc_backward)
