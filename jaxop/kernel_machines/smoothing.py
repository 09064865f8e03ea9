"""Kernel density estimation and Nadaraya–Watson regression, as attention of query points to samples."""

import dataclasses
import fractions
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxop._blocks import map_blocks
from jaxop._eager import compiled
from jaxop._pytree import register
from jaxop._validation import accumulator, as_float, first_index, is_concrete, is_integer
from jaxop.attention import accumulate, integral_attention
from jaxop.domains.measure import check_weights, uniform_weights
from jaxop.kernels import FourierIntegral, Gaussian, Kernel
from jaxop.kernels.checks import check_numbers

_TILE = 1 << 22
"""Kernel values that are held at a time."""


@dataclasses.dataclass(frozen=True, repr=False)
class _Fitted:
    """A weighted sample in the coordinates of a kernel, with integrals against it."""

    kernel: Kernel
    points: Float[Array, "m dim"]
    weights: Float[Array, " m"]
    centre: Float[Array, " dim"]
    transform: Float[Array, "dim dim"] | None

    def __repr__(self) -> str:
        m, dim = self.points.shape
        return f"{type(self).__name__}({type(self.kernel).__name__}, {m} points in {dim} dimensions)"

    def _integrate(self, x: object, values: Array, block_size: int | None, *, normalize: bool) -> Array:
        """Returns ∫ k v for the queries x."""
        key, value = self.points[:, None], values[:, None]

        def evaluate(block: Array) -> Array:
            query = block[:, None]
            return integral_attention(query, key, value, self.weights, kernel=self.kernel, normalize=normalize)[:, 0]

        return self._in_blocks(evaluate, x, block_size)

    def _in_blocks(self, evaluate: Callable[[Array], Array], x: object, block_size: int | None) -> Array:
        """Applies a function to rows in the coordinates of the kernel, block by block; the last block is padded."""
        x, dim = as_float(x, "x"), self.points.shape[1]
        if x.ndim != 2 or x.shape[1] != dim:
            raise ValueError(f"x must have shape (n, D) = (n, {dim}) like the sample, got {x.shape}; reshape to rows.")
        if block_size is not None and (not is_integer(block_size) or block_size < 1):
            raise ValueError(
                f"block_size must be a whole number of points, got {block_size!r}; None evaluates all at once."
            )
        x = _apply(self.transform, x.astype(self.points.dtype) - self.centre[None, :])
        return map_blocks(evaluate, x, block_size, pad=True)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class Density(_Fitted):
    """p̂(x) = c Σ_j w_j k(x, x_j), a fitted density; it is a pytree that passes through `jax.jit`.

    Attributes:
        kernel: k.
        points: x_j in the coordinates of the kernel, (m, D).
        weights: w_j, of sum 1, (m,).
        centre: mean of the sample, the origin of the coordinates of the kernel, (D,).
        transform: matrix L⁻¹ᵀ that maps a centred row in the caller's coordinates to those of the kernel, (D, D); None
            means the identity.
        log_constant: log c; the density has units of one over volume.
    """

    log_constant: Float[Array, ""]

    def predict(self, x: Float[Array, "n dim"], *, block_size: int | None = None) -> Float[Array, " n"]:
        """Returns p̂ at n points.

        Args:
            x: the points, (n, D).
            block_size: number of points that are evaluated at a time; None evaluates all, in tiles of O(n + m) memory.

        Returns:
            Shape (n,); if the kernel is signed (power 1), values may be negative.
        """
        if self.kernel.sign != "signed":
            return jnp.exp(self.log_predict(x, block_size=block_size))
        sums = self._integrate(x, jnp.ones_like(self.weights)[:, None], block_size, normalize=False)
        half = jnp.exp(self.log_constant / 2)  # two factors, as the constant may overflow although the density does not
        return sums[:, 0] * half * half

    def log_predict(self, x: Float[Array, "n dim"], *, block_size: int | None = None) -> Float[Array, " n"]:
        """Returns the logarithm of p̂ at n points, which is finite where p̂ underflows or overflows.

        Args:
            x: the points, (n, D).
            block_size: number of points that are evaluated at a time; None chooses it so that matrices of kernel values
                stay small.

        Returns:
            Shape (n,).

        Raises:
            ValueError: if points have another dimension, or if the kernel is signed (power 1), as p̂ may be negative.

        Example:
            >>> import jax.numpy as jnp
            >>> from jaxop import kernel_machines
            >>> density = kernel_machines.GaussianDensity(1.0).fit(jnp.zeros((1, 1)))
            >>> print(density.log_predict(jnp.asarray([[20.0]])).round(2))  # −200 − log √(2π)
            [-200.92]
        """
        if self.kernel.sign == "signed":
            raise ValueError("log_predict needs a density that is never negative; power=1 is signed: use predict.")
        rows = max(1, _TILE // self.points.shape[0]) if block_size is None else block_size
        log_mass = self._in_blocks(lambda block: _log_mass(block, self.points, self.weights, self.kernel), x, rows)
        return log_mass + self.log_constant


@register
@dataclasses.dataclass(frozen=True, repr=False)
class Regression(_Fitted):
    """f̂(x) = Σ_j w_j k(x, x_j) y_j / Σ_j w_j k(x, x_j), a fitted regression function; it is a pytree.

    Attributes:
        kernel: k.
        points: x_j in the coordinates of the kernel, (m, D).
        weights: w_j, of sum 1, (m,).
        centre: mean of the sample, the origin of the coordinates of the kernel, (D,).
        transform: matrix that maps a centred row in the caller's coordinates to the kernel's; None means the identity.
        values: y_j, (m, c).
    """

    values: Float[Array, "m c"]

    def predict(self, x: Float[Array, "n dim"], *, block_size: int | None = None) -> Float[Array, "n c"]:
        """Returns f̂ at n points, (n, c).

        Args:
            x: the points, (n, D).
            block_size: number of points that are evaluated at a time; None evaluates all, in tiles of O(n + m) memory.

        Returns:
            Shape (n, c). If the kernel is signed (power 1), this is a ratio of signed sums, which is large where the
            denominator is close to 0, and exactly 0 where the denominator is 0.
        """
        if self.kernel.sign != "signed":
            return self._integrate(x, self.values, block_size, normalize=True)
        augmented = jnp.concatenate([self.values, jnp.ones_like(self.values[:, :1])], axis=1)
        sums = self._integrate(x, augmented, block_size, normalize=False)
        mass = sums[:, -1:]
        return jnp.where(mass != 0, sums[:, :-1] / jnp.where(mass != 0, mass, 1), 0)


@dataclasses.dataclass(frozen=True)
class FourierDensity:
    """p̂(x) = (Π_d R_d / (N A^D)) Σ_j Π_d φ(sinc(R_d (x_d − x_jd))), φ(z) = z^power, A = ∫ φ(sinc z) dz.

    With power 4 the mean integrated squared error is of order N^{−4/(D+4)} at R ~ N^{1/(D+4)}. With power 2 the kernel
    does not have a second moment, and the error is of order N^{−2/(D+2)} at R ~ N^{1/(D+2)}. With power 1 the bias is
    as small as the tail of the characteristic function beyond R, but values may be negative.

    Args:
        radius: R, in units of one over the coordinates, a number or one per coordinate, (D,).
        power: an even number, or 1.

    Raises:
        ValueError: for the reasons of `jaxop.kernels.FourierIntegral`.

    Source: Nguyen et al., arXiv:2206.00206; Parzen, "On Estimation of a Probability Density Function and Mode", 1962.

    Example:
        >>> import jax
        >>> from jaxop import kernel_machines
        >>> samples = jax.random.normal(jax.random.key(0), (1000, 1))
        >>> density = kernel_machines.FourierDensity(radius=2.0).fit(samples)
        >>> print(density.predict(samples[:1] * 0).round(1))  # 1/√(2π) at 0
        [0.4]
    """

    radius: float | Array
    power: int = 4

    def __post_init__(self):
        FourierIntegral(self.radius, self.power)

    def fit(self, points: Float[Array, "m dim"], weights: Float[Array, " m"] | None = None) -> Density:
        """Returns the density of a sample.

        Args:
            points: x_j, (m, D).
            weights: relative masses of the points, (m,); None means equal masses.

        Returns:
            A `Density`.

        Raises:
            ValueError: if arrays do not fit or contain NaN, the sample is empty, or weights are negative or all 0.
        """
        points, weights = _check_sample(points, weights)
        radius = _radii(self.radius, points)
        constant = jnp.sum(jnp.log(jnp.abs(radius))) - points.shape[1] * math.log(sinc_power_integral(self.power))
        centre, points = _centred(points, weights)
        return Density(FourierIntegral(radius, self.power), points, weights, centre, None, constant)


@dataclasses.dataclass(frozen=True)
class GaussianDensity:
    """p̂(x) = Σ_j w_j N(x; x_j, H), H = σ² I or a full covariance.

    Args:
        bandwidth: σ in units of the coordinates, or the matrix H (D, D), positive definite, in their squares.

    Raises:
        ValueError: if the bandwidth is not positive and finite, or is not a square matrix.

    Source: Silverman, "Density Estimation for Statistics and Data Analysis", 1986.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxop import kernel_machines
        >>> samples = jax.random.normal(jax.random.key(0), (1000, 2))
        >>> density = kernel_machines.GaussianDensity(0.3 * jnp.eye(2)).fit(samples)
        >>> density.predict(samples[:3]).shape
        (3,)
    """

    bandwidth: float | Float[Array | np.ndarray, "dim dim"]

    def __post_init__(self):
        _check_bandwidth(self.bandwidth)

    def fit(self, points: Float[Array, "m dim"], weights: Float[Array, " m"] | None = None) -> Density:
        """Returns the density of a sample; arguments and errors are those of `FourierDensity.fit`."""
        points, weights = _check_sample(points, weights)
        kernel, transform, log_volume = _gaussian(self.bandwidth, points)
        log_constant = -log_volume - points.shape[1] / 2 * math.log(2 * math.pi)
        centre, points = _centred(points, weights)
        return Density(kernel, _apply(transform, points), weights, centre, transform, log_constant)


@dataclasses.dataclass(frozen=True)
class FourierRegressor:
    """f̂(x) = Σ_j w_j k_R(x, x_j) y_j / Σ_j w_j k_R(x, x_j), k_R a product of powers of sinc.

    Args:
        radius: R, in units of one over the coordinates, a number or one per coordinate, (D,).
        power: an even number, or 1 (signed).

    Raises:
        ValueError: for the reasons of `jaxop.kernels.FourierIntegral`.

    Source: Nguyen et al., arXiv:2206.00206; Nadaraya, 1964; Watson, 1964.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernel_machines
        >>> x = jnp.linspace(0, 1, 101)[:, None]
        >>> f = kernel_machines.FourierRegressor(radius=30.0).fit(x, jnp.sin(2 * jnp.pi * x))
        >>> print(f.predict(jnp.array([[0.25]])).round(1))
        [[1.]]
    """

    radius: float | Array
    power: int = 4

    def __post_init__(self):
        FourierIntegral(self.radius, self.power)

    def fit(
        self, points: Float[Array, "m dim"], values: Float[Array, "m c"], weights: Float[Array, " m"] | None = None
    ) -> Regression:
        """Returns the regression function of a sample.

        Args:
            points: x_j, (m, D).
            values: y_j, (m, c).
            weights: relative masses of the points, (m,); None means equal masses.

        Returns:
            A `Regression`.

        Raises:
            ValueError: if arrays do not fit or contain NaN, the sample is empty, or weights are negative or all 0.
        """
        points, weights = _check_sample(points, weights)
        radius = _radii(self.radius, points)
        values = _check_values(values, points)
        centre, points = _centred(points, weights)
        return Regression(FourierIntegral(radius, self.power), points, weights, centre, None, values)


@dataclasses.dataclass(frozen=True)
class GaussianRegressor:
    """f̂(x) = Σ_j w_j N(x; x_j, H) y_j / Σ_j w_j N(x; x_j, H), H = σ² I or a full covariance.

    Args:
        bandwidth: σ in units of the coordinates, or the matrix H (D, D), positive definite, in their squares.

    Raises:
        ValueError: for the reasons of `GaussianDensity`.

    Source: Nadaraya, 1964; Watson, 1964.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernel_machines
        >>> x = jnp.linspace(0, 1, 101)[:, None]
        >>> f = kernel_machines.GaussianRegressor(0.03).fit(x, jnp.sin(2 * jnp.pi * x))
        >>> print(f.predict(jnp.array([[0.25]])).round(1))
        [[1.]]
    """

    bandwidth: float | Float[Array | np.ndarray, "dim dim"]

    def __post_init__(self):
        _check_bandwidth(self.bandwidth)

    def fit(
        self, points: Float[Array, "m dim"], values: Float[Array, "m c"], weights: Float[Array, " m"] | None = None
    ) -> Regression:
        """Returns the regression function of a sample; arguments and errors are those of `FourierRegressor.fit`."""
        points, weights = _check_sample(points, weights)
        kernel, transform, _ = _gaussian(self.bandwidth, points)
        values = _check_values(values, points)
        centre, points = _centred(points, weights)
        return Regression(kernel, _apply(transform, points), weights, centre, transform, values)


def sinc_power_integral(power: int) -> float:
    """∫ (sin z / z)^n dz = π / (2^{n−1} (n − 1)!) Σ_k (−1)^k C(n, k) (n − 2k)^{n−1}, over the real line.

    Raises:
        ValueError: if the power is not a positive integer.

    Example:
        >>> import math
        >>> from jaxop.kernel_machines import sinc_power_integral
        >>> [round(sinc_power_integral(n) / math.pi, 6) for n in (1, 2, 4)]
        [1.0, 1.0, 0.666667]
    """
    if not is_integer(power) or power < 1:
        raise ValueError(f"power must be a positive integer, got {power!r}.")
    n = int(power)
    terms = ((-1) ** k * math.comb(n, k) * (n - 2 * k) ** (n - 1) for k in range(n // 2 + n % 2))
    return math.pi * float(fractions.Fraction(sum(terms), 2 ** (n - 1) * math.factorial(n - 1)))


@compiled()
@jax.checkpoint
def _log_mass(x: Array, points: Array, weights: Array, kernel: Kernel) -> Array:
    """Log ∫ k(x, ·); the matrix of kernel values is recomputed for the derivative."""
    ones = jnp.ones_like(weights)[:, None, None]
    part = accumulate(x[:, None], points[:, None], ones, weights, kernel=kernel)
    return (part.shift + jnp.log(part.mass))[:, 0]


def _centred(points: Array, weights: Array) -> tuple[Array, Array]:
    """Returns the mean of a sample and the points relative to it; kernels of differences lose digits far from 0."""
    centre = weights @ points
    return centre, points - centre[None, :]


def _radii(radius: ArrayLike, points: Array) -> Array:
    if jnp.shape(radius) not in ((), (1,), points.shape[1:]):
        raise ValueError(
            f"radius must be a number or have one entry per coordinate, {points.shape[1:]}, got shape "
            f"{jnp.shape(radius)}."
        )
    return jnp.broadcast_to(jnp.asarray(radius, points.dtype), points.shape[1:])


def _gaussian(bandwidth: ArrayLike, points: Array) -> tuple[Gaussian, Array | None, Array]:
    """Returns the kernel exp(−|z|²/2), the map to its coordinates, and log √det H."""
    dim = points.shape[1]
    kernel = Gaussian(jnp.asarray(math.sqrt(dim) / 2, points.dtype))
    if jnp.shape(bandwidth) == ():
        width = jnp.asarray(bandwidth, points.dtype)
        return kernel, jnp.eye(dim, dtype=points.dtype) / width, dim * jnp.log(width)
    if jnp.shape(bandwidth) != (dim, dim):
        raise ValueError(
            f"bandwidth must be a number or a matrix of shape ({dim}, {dim}) like the coordinates, "
            f"got {jnp.shape(bandwidth)}."
        )
    if is_concrete(bandwidth):  # in double precision like the check, so that a checked matrix does not fail here
        root = np.linalg.cholesky(np.asarray(bandwidth, np.float64))
        inverse = np.linalg.inv(root)
        return kernel, jnp.asarray(inverse.T, points.dtype), jnp.asarray(np.log(np.diag(root)).sum(), points.dtype)
    root = jnp.linalg.cholesky(jnp.asarray(bandwidth, points.dtype))
    transform = jax.scipy.linalg.solve_triangular(root, jnp.eye(dim, dtype=points.dtype), lower=True).T
    return kernel, transform, jnp.sum(jnp.log(jnp.diagonal(root)))


def _apply(transform: Array | None, points: Array) -> Array:
    if transform is None:
        return points
    return jnp.matmul(points, transform, precision=jax.lax.Precision.HIGHEST)


def _check_bandwidth(bandwidth: ArrayLike) -> None:
    if not is_concrete(bandwidth):
        return
    check_numbers(bandwidth, "bandwidth")
    matrix = np.asarray(bandwidth, np.float64)
    if matrix.ndim not in (0, 2) or (matrix.ndim == 2 and matrix.shape[0] != matrix.shape[1]):
        raise ValueError(f"bandwidth must be a number σ or a square matrix (D, D), got shape {matrix.shape}.")
    if not np.all(np.isfinite(matrix)):
        raise ValueError(f"bandwidth must be finite, got {matrix}.")
    smallest = float(matrix) if matrix.ndim == 0 else float(np.min(np.linalg.eigvalsh(matrix)))
    if smallest <= 0 or np.any(np.abs(matrix - matrix.T) > 1e-5 * np.abs(matrix).max()):
        raise ValueError(
            f"bandwidth must be positive, a matrix symmetric and positive definite, got {matrix}; a covariance "
            "estimated from fewer points than dimensions is singular: add a multiple of the identity."
        )


def _check_sample(points: object, weights: object) -> tuple[Array, Array]:
    """Returns the points of a sample and their masses, scaled to sum 1."""
    points = as_float(points, "points")
    points = points.astype(accumulator(points.dtype))
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"points must have shape (m, D) with at least one point, got {points.shape}; reshape to rows.")
    m = points.shape[0]
    weights = uniform_weights(m, points.dtype) if weights is None else as_float(weights, "weights").astype(points.dtype)
    if weights.shape != (m,):
        raise ValueError(f"weights must have shape (m,) = ({m},), one per point, got {weights.shape}.")
    _check_finite(points, "points")
    if is_concrete(weights):
        check_weights(np.asarray(weights))
    return points, weights / jnp.sum(weights)


def _check_values(values: object, points: Array) -> Array:
    values = as_float(values, "values").astype(points.dtype)
    if values.ndim != 2 or values.shape[0] != points.shape[0]:
        raise ValueError(
            f"values must have shape (m, c) = ({points.shape[0]}, c), one row per point, got {values.shape}; reshape "
            "to columns."
        )
    _check_finite(values, "values")
    return values


def _check_finite(array: Array, argument: str) -> None:
    if is_concrete(array):
        bad = ~np.isfinite(np.asarray(array))
        if np.any(bad):
            raise ValueError(f"{argument} must be finite, got {np.asarray(array)[bad][0]} at index {first_index(bad)}.")
