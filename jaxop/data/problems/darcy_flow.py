"""Darcy flow on the unit square with random coefficients, at any resolution."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop import domains
from jaxop._validation import check_name, first_index, float_dtype, require
from jaxop.data._support import check_count, check_numbers, double_precision, generator
from jaxop.data.samples import Samples
from jaxop.domains import Domain
from jaxop.domains.domain import check_domain

COEFFICIENTS = ("two-valued", "lognormal")
"""Names of the coefficient fields of `darcy`."""

_ALPHA, _TAU, _MODES = 2.0, 3.0, 256
_FIELD = 0x6461  # the random stream of the field
_CHUNK = 2**22  # mode coefficients in memory at once, 32 MiB
_TOLERANCE = 1e-10  # of the residual, relative to the right-hand side
_ITERATIONS = 2000


def darcy(
    samples: int,
    resolution: int,
    *,
    seed: int,
    coefficient: str = "two-valued",
    low: float = 3.0,
    high: float = 12.0,
    forcing: float = 1.0,
    first: int = 0,
) -> Samples:
    """−∇·(a ∇u) = f on (0, 1)², u = 0 on the boundary; input a, target u, on a midpoint grid.

    ``"two-valued"``: a = high where g ≥ 0 and low where g < 0. ``"lognormal"``: a = exp(g). The
    Gaussian field g is that of `gaussian_field` for the same seed and sample numbers, so that all
    resolutions have the same fields. u is computed by `solve_darcy` on the same grid, with its discretisation error.
    Relative to a solve at 1024², in L2, this error is 1.7e-2 at 32², 9e-3 at 64², 4e-3 at 128²
    and 2e-3 at 256² for the two-valued coefficient, whose jumps a grid resolves only to within a cell. It is
    2.6e-3, 6e-4, 1.6e-4 and 4e-5 for the lognormal one. `darcy_resolutions` gives an accurate u on several grids.

    Args:
        samples: N.
        resolution: r, nodes along each side.
        seed: non-negative integer.
        coefficient: one of `COEFFICIENTS`.
        low: smaller value of the two-valued coefficient.
        high: larger value of the two-valued coefficient.
        forcing: f, a constant.
        first: number of the first sample; sets with disjoint numbers are independent.

    Returns:
        `Samples` with inputs and targets of shape (N, r², 1) in JAX's default floating dtype. Lengths
        are in units of the side; u has the units of f·length²/a. Cost: 25 to 50 fast transforms of a
        field per sample.

    Raises:
        ValueError: if the coefficient is unknown, a value is not positive, or a count is too small.

    References:
        Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations" (2021);
        Calvello, Kovachki, Levine, Stuart, "Continuum Attention for Neural Operators" (2024).

    Example:
        >>> from jaxop import data
        >>> samples = data.darcy(2, 16, seed=0)
        >>> samples.inputs.shape, samples.domain.rules
        ((2, 256, 1), ('midpoint', 'midpoint'))
    """
    return darcy_resolutions(
        samples, (resolution,), seed=seed, coefficient=coefficient, low=low, high=high, forcing=forcing, first=first
    )[resolution]


def darcy_resolutions(
    samples: int,
    resolutions: Sequence[int],
    *,
    seed: int,
    reference: int | None = None,
    coefficient: str = "two-valued",
    low: float = 3.0,
    high: float = 12.0,
    forcing: float = 1.0,
    first: int = 0,
) -> dict[int, Samples]:
    """Returns the same Darcy problems on several midpoint grids, from one fine solve each.

    The input on each grid is the coefficient at the nodes of the grid, from the exact cosine series of g. The
    target is the solution on the reference grid R at the nodes of the coarse grid, by bilinear
    interpolation that includes the boundary values 0. If R/r is odd, it picks fine nodes. If R/r
    is even, it averages the four fine nodes around a coarse node. Its error is O(1/R²) for a smooth solution,
    whereas averages over the r² cells would add O(1/r²).

    Args:
        samples: N.
        resolutions: nodes along each side, for every grid.
        seed: non-negative integer, see `darcy`.
        reference: R, at least the largest resolution; None takes the largest resolution.
        coefficient: one of `COEFFICIENTS`.
        low: smaller value of the two-valued coefficient.
        high: larger value of the two-valued coefficient.
        forcing: f, a constant.
        first: number of the first sample.

    Returns:
        The `Samples` of every resolution, all with the same fields.

    Raises:
        ValueError: if there are no resolutions, one exceeds the reference, or for the reasons of `darcy`.

    Example:
        >>> from jaxop import data
        >>> sets = data.darcy_resolutions(2, (8, 12), seed=0, reference=24)
        >>> {resolution: samples.targets.shape for resolution, samples in sets.items()}
        {8: (2, 64, 1), 12: (2, 144, 1)}
    """
    numbers = check_numbers(samples, first)
    if not resolutions:
        raise ValueError("resolutions must hold at least one grid, got none.")
    for resolution in resolutions:
        check_count(resolution, "resolution", smallest=2)
    reference = max(resolutions) if reference is None else reference
    if reference < max(resolutions):
        raise ValueError(
            f"reference must be at least the largest of the resolutions, {max(resolutions)}, got {reference}: "
            "the solution on every grid is restricted from the reference solve."
        )
    transform = _coefficient(coefficient, low, high)
    dtype = float_dtype()
    inputs = {r: np.empty((samples, r * r, 1), dtype) for r in resolutions}
    targets = {r: np.empty((samples, r * r, 1), dtype) for r in resolutions}
    for rows, modes, fine in _solved(numbers, seed, reference, transform, forcing):
        for r in inputs:
            inputs[r][rows] = transform(_cosine_series(modes, r)).reshape(len(modes), -1, 1)
            restriction = _interpolation(reference, _midpoints(r))
            targets[r][rows] = (restriction @ fine @ restriction.T).reshape(len(modes), -1, 1)
    return {r: Samples(inputs[r], targets[r], domains.box((r, r), rule="midpoint")) for r in inputs}


def darcy_on(
    samples: int,
    domain: Domain,
    *,
    seed: int,
    reference: int,
    coefficient: str = "two-valued",
    low: float = 3.0,
    high: float = 12.0,
    forcing: float = 1.0,
    first: int = 0,
) -> Samples:
    """The Darcy problems of `darcy_resolutions` at the nodes of any domain in the unit square.

    The input at a node is the exact value of the coefficient there. The target is the solution on the midpoint grid
    of R² nodes, by the bilinear interpolation of `darcy_resolutions`.

    Args:
        samples: N.
        domain: a domain whose nodes lie in [0, 1]²: scattered nodes, a mesh, an uneven grid.
        seed: non-negative integer, see `darcy`.
        reference: R.
        coefficient: one of `COEFFICIENTS`.
        low: smaller value of the two-valued coefficient.
        high: larger value of the two-valued coefficient.
        forcing: f, a constant.
        first: number of the first sample.

    Returns:
        `Samples` of shape (N, n, 1) on the domain. Cost: that of the solves, and O(n (256² + R²)) per sample.

    Raises:
        TypeError: if ``domain`` is not a domain.
        ValueError: for the reasons of `darcy`, or if the domain is a stack or a node lies outside the unit square.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> cloud = domains.monte_carlo(np.random.default_rng(0).random((50, 2), np.float32))
        >>> data.darcy_on(2, cloud, seed=0, reference=24).targets.shape
        (2, 50, 1)
    """
    numbers = check_numbers(samples, first)
    check_count(reference, "reference", smallest=2)
    check_domain(domain, "domain")
    if domain.is_batched:
        raise ValueError("domain must be one domain for all samples, got a stack of them.")
    points = np.asarray(domain.points, np.float64)
    if points.shape[1] != 2 or not ((points >= 0) & (points <= 1)).all():
        ranges = " × ".join(f"[{a:.3g}, {b:.3g}]" for a, b in zip(points.min(0), points.max(0), strict=True))
        raise ValueError(f"domain must have its nodes in the unit square [0, 1] × [0, 1], got nodes in {ranges}.")
    transform = _coefficient(coefficient, low, high)
    inputs, targets = np.empty((2, samples, domain.size, 1), float_dtype())
    k = np.arange(_MODES)
    cosines = [np.cos(np.pi * k * x[:, None]) for x in points.T]
    shares = [_interpolation(reference, x) for x in points.T]
    for rows, modes, fine in _solved(numbers, seed, reference, transform, forcing):
        inputs[rows, :, 0] = transform(np.stack([_bilinear(cosines, one) for one in modes]))
        targets[rows, :, 0] = np.stack([_bilinear(shares, one) for one in fine])
    return Samples(inputs, targets, domain)


def gaussian_field(
    samples: int,
    resolution: int,
    *,
    seed: int,
    first: int = 0,
    alpha: float = _ALPHA,
    tau: float = _TAU,
    modes: int = _MODES,
) -> Float[np.ndarray, "b s s"]:
    """Gaussian field g = Σ_k ξ_k λ_k^½ φ_k, ξ_k ~ N(0, 1), on the unit square.

    Its covariance is τ^(2α−2) (−Δ + τ²)^(−α) on functions of mean zero. The eigenfunctions of the Laplacian with
    Neumann conditions are φ_k(x) = Π_j c(k_j) cos(π k_j x_j) with c(0) = 1 and c(k) = √2 otherwise, and
    λ_k = τ^(2α−2) (π²|k|² + τ²)^(−α). As usual, the constant eigenfunction is omitted. The sum runs over
    0 ≤ k_1, k_2 < ``modes`` at every resolution, and is evaluated exactly at the nodes x_i = (i + ½)/r, also for
    modes that the grid does not resolve. Grids of all resolutions therefore sample the same function. The part of
    the infinite series beyond ``modes`` is rough and small: with the defaults its standard deviation is 1e-3, and that
    of the field 0.29.

    ξ_k depends only on (seed, sample number, k). It does not depend on the resolution, on the other samples or
    on ``modes``: a larger number adds finer modes.

    Args:
        samples: N.
        resolution: r, nodes along each side of a midpoint grid.
        seed: non-negative integer.
        first: number of the first sample.
        alpha: smoothness, above 1 for a function with finite variance.
        tau: inverse correlation length, positive.
        modes: cosine modes along each axis.

    Returns:
        float64 values of shape (N, r, r), the axes being x_1 and x_2. Cost: ``modes``² random numbers
        and a cosine transform of size r² each.

    Raises:
        ValueError: if a parameter is out of range.

    Example:
        >>> from jaxop import data
        >>> coarse, fine = (data.gaussian_field(1, r, seed=0)[0] for r in (5, 15))
        >>> bool(abs(coarse - fine[1::3, 1::3]).max() < 1e-13)
        True
    """
    numbers = check_numbers(samples, first)
    check_count(resolution, "resolution", smallest=1)
    check_count(modes, "modes", smallest=2)
    if not alpha > 1:
        raise ValueError(f"alpha must exceed 1 for a field of finite variance in two dimensions, got {alpha}.")
    if not 0 < tau < np.inf:
        raise ValueError(f"tau must be positive and finite, got {tau}.")
    parts = [
        _cosine_series(_field_coefficients(part, seed, alpha, tau, modes), resolution)
        for part in _chunks(numbers, modes)
    ]
    return np.concatenate(parts)


def solve_darcy(
    coefficient: Float[np.ndarray, "b s s"],
    forcing: float | Float[np.ndarray, "... r r"] = 1.0,
) -> Float[np.ndarray, "b s s"]:
    """Solution u of −∇·(a ∇u) = f on (0, 1)², u = 0 on the boundary, by cell-centred finite volumes.

    The flux between neighbouring cells is −ā (u_R − u_L)/h with the harmonic mean ā = 2 a_L a_R/(a_L + a_R).
    In one dimension it is exact if the coefficient jumps at the face. Through the boundary the flux is
    ∓2 a u/h. The error is O(h²) where a is smooth. The symmetric positive definite system is solved by
    conjugate gradients (`jax.scipy.sparse.linalg.cg`), preconditioned with the exact inverse of the same
    scheme for a ≡ 1 (fast sine transforms). The number of iterations grows like (max a/min a)^½ and
    does not grow with the resolution. The iteration stops at a residual of 1e-10 relative to f.

    Args:
        coefficient: a at the nodes of a midpoint grid, shape (N, r, r), positive.
        forcing: f, a constant, or values at the nodes for all samples or for each.

    Returns:
        u at the nodes, float64. Cost: O(r² log r (max a/min a)^½) and O(r²) memory per sample.

    Raises:
        ValueError: if a is not positive and finite (the message names the first bad index), if f is not finite, or if
            their shapes do not fit.
        RuntimeError: if the iteration does not converge, which happens at contrasts above about 1e5.

    Reference:
        Concus, Golub, "Use of fast direct methods for the efficient numerical solution of nonseparable
        elliptic equations" (1973).

    Example:
        >>> import numpy as np
        >>> from jaxop import data
        >>> print(data.solve_darcy(np.ones((1, 65, 65))).max().round(4))
        0.0737
    """
    a = np.asarray(coefficient, np.float64)
    if a.ndim != 3 or a.shape[1] != a.shape[2] or a.shape[1] < 2:
        raise ValueError(f"coefficient must have shape (samples, r, r) with r >= 2, got {a.shape}.")
    bad = ~(np.isfinite(a) & (a > 0))
    if bad.any():
        where = first_index(bad)
        raise ValueError(f"coefficient must be positive and finite, but coefficient[{where}] = {a[where]}.")
    f = np.asarray(forcing, np.float64)
    if f.shape not in ((), a.shape[1:], a.shape):
        raise ValueError(f"forcing must be one number or have shape {a.shape[1:]} or {a.shape}, got {f.shape}.")
    f = np.broadcast_to(f, a.shape)
    if not np.isfinite(f).all():
        where = first_index(~np.isfinite(f))
        raise ValueError(f"forcing must be finite, but is {f[where]} at index {where}.")
    with double_precision():
        # all solves are dispatched before the first is awaited
        solutions = [_solve(*pair) for pair in zip(a, f, strict=True)]
        residuals = np.array([float(residual) for _, residual in solutions])
        result = np.stack([np.asarray(u) for u, _ in solutions])
    stalled = ~(residuals <= 10 * _TOLERANCE)
    if stalled.any():
        i = first_index(stalled)
        raise RuntimeError(
            f"the Darcy solve of sample {i} stopped at a relative residual of {residuals[i]:.1e} after {_ITERATIONS} "
            f"iterations: its coefficient varies by a factor of {a[i].max() / a[i].min():.1e}; lower the contrast."
        )
    return result


@jax.jit
def _solve(a: Float[Array, "s s"], f: Float[Array, "s s"]) -> tuple[Array, Array]:
    """Returns the solution of one problem and the relative norm of its residual."""
    n = a.shape[0]

    def conductances(a: Array) -> Array:
        """ā/h² on the faces along the first axis, with the two boundary faces at half distance."""
        inner = 2 * a[1:] * a[:-1] / (a[1:] + a[:-1])
        return n**2 * jnp.concatenate([2 * a[:1], inner, 2 * a[-1:]])

    along, across = conductances(a), conductances(a.T).T

    def divergence(u: Array) -> Array:
        rows = along * jnp.diff(u, axis=0, prepend=0, append=0)
        columns = across * jnp.diff(u, axis=1, prepend=0, append=0)
        return -jnp.diff(rows, axis=0) - jnp.diff(columns, axis=1)

    # with the nodes' alternating signs sin(π k x) is cos(π (n − k) x), so cosines give a sine transform
    sign = (-1.0) ** jnp.arange(n)
    signs = sign[:, None] * sign[None, :]
    eigenvalues = n**2 * (2 + 2 * jnp.cos(jnp.pi * jnp.arange(n) / n))
    symbol = eigenvalues[:, None] + eigenvalues[None, :]

    def precondition(r: Array) -> Array:
        transformed = jax.scipy.fft.dctn(signs * r, norm="ortho")
        return signs * jax.scipy.fft.idctn(transformed / symbol, norm="ortho")

    u, _ = jax.scipy.sparse.linalg.cg(divergence, f, tol=_TOLERANCE, maxiter=_ITERATIONS, M=precondition)
    size = jnp.linalg.norm(f)
    return u, jnp.linalg.norm(f - divergence(u)) / jnp.where(size > 0, size, 1)


def _coefficient(name: str, low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the coefficient as a function of the Gaussian field."""
    check_name(name, "coefficient", COEFFICIENTS)
    if name == "lognormal":
        return np.exp
    if not 0 < low <= high < np.inf:
        raise ValueError(f"low and high must satisfy 0 < low <= high, got low={low}, high={high}.")
    return lambda g: np.where(g >= 0, high, low)


def _chunks(numbers: range, modes: int = _MODES) -> list[range]:
    """Returns sample numbers in pieces whose mode coefficients fit in memory."""
    size = max(1, _CHUNK // modes**2)
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def _field_coefficients(numbers: range, seed: int, alpha: float, tau: float, modes: int) -> np.ndarray:
    """Returns coefficients of the products of cosines cos(π k_1 x_1) cos(π k_2 x_2), shape (b, modes, modes)."""
    k = np.arange(modes, dtype=np.float64)
    scale = np.where(k == 0, 1.0, np.sqrt(2.0))
    amplitude = tau ** (alpha - 1) * (np.pi**2 * (k[:, None] ** 2 + k[None, :] ** 2) + tau**2) ** (-alpha / 2)
    amplitude *= scale[:, None] * scale[None, :]
    amplitude[0, 0] = 0.0
    place = _shells(modes)
    result = np.empty((len(numbers), modes * modes))
    for row, number in zip(result, numbers, strict=True):
        row[place] = generator(seed, _FIELD, number).standard_normal(modes * modes)
    return result.reshape(-1, modes, modes) * amplitude


@functools.lru_cache(maxsize=4)
def _shells(modes: int) -> np.ndarray:
    """Returns flat indices of the modes by growing max(k_1, k_2), so that a larger square only adds to them."""
    k = np.indices((modes, modes)).reshape(2, -1)
    return np.lexsort((k[1], k[0], k.max(axis=0)))


def _cosine_series(coefficients: np.ndarray, resolution: int) -> np.ndarray:
    """Σ_k c_k cos(π k_1 x_1) cos(π k_2 x_2) at the nodes (i + ½)/r, shape (b, r, r)."""
    fft = require("scipy.fft", "the Gaussian field")
    folded = _fold(np.swapaxes(_fold(coefficients, resolution), 1, 2), resolution)
    folded = np.swapaxes(folded, 1, 2)
    # scipy's unnormalised type 3 counts every mode twice except for the constant
    folded[:, 1:, :] /= 2
    folded[:, :, 1:] /= 2
    return fft.dctn(folded, type=3, axes=(1, 2))


def _fold(coefficients: np.ndarray, n: int) -> np.ndarray:
    """Folds cosine coefficients along the last axis onto the n modes that the nodes (i + ½)/n resolve.

    There cos(π k x) equals (−1)^m cos(π |k − 2nm| x), and 0 if |k − 2nm| = n.
    """
    modes = coefficients.shape[-1]
    result = np.zeros((*coefficients.shape[:-1], n))
    for m in range((modes - 1) // n // 2 + 1):
        sign, start = (-1.0) ** m, 2 * n * m
        rising = coefficients[..., start : start + n]
        result[..., : rising.shape[-1]] += sign * rising
        falling = coefficients[..., start + n + 1 : start + 2 * n]
        result[..., n - falling.shape[-1] :] -= sign * falling[..., ::-1]
    return result


def _solved(
    numbers: range, seed: int, reference: int, transform: Callable[[np.ndarray], np.ndarray], forcing: float
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yields rows, coefficients of the field and solutions on the reference grid, in pieces that fit in memory."""
    for part in _chunks(numbers):
        modes = _field_coefficients(part, seed, _ALPHA, _TAU, _MODES)
        fine = solve_darcy(transform(_cosine_series(modes, reference)), forcing)
        yield slice(part.start - numbers.start, part.stop - numbers.start), modes, fine


def _midpoints(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


def _bilinear(factors: Sequence[np.ndarray], matrix: np.ndarray) -> np.ndarray:
    """Σ_kl L_ik M_kl R_il of the factors L and R, shape (n,)."""
    left, right = factors
    return ((left @ matrix) * right).sum(axis=1)


def _interpolation(fine: int, wanted: np.ndarray) -> np.ndarray:
    """Linear interpolation from the fine midpoints, and 0 at both ends, to the wanted places: (wanted, fine)."""
    nodes = np.concatenate([[0.0], _midpoints(fine), [1.0]])
    right = np.clip(np.searchsorted(nodes, wanted), 1, fine + 1)
    share = (wanted - nodes[right - 1]) / (nodes[right] - nodes[right - 1])
    rows = np.arange(len(wanted))
    matrix = np.zeros((len(wanted), fine + 2))
    matrix[rows, right - 1] = 1 - share
    matrix[rows, right] += share
    return matrix[:, 1:-1]
