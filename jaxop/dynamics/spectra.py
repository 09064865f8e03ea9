"""Energy spectra of states on periodic grids, and errors in bands of wavenumbers.

A function on a periodic box with sides L_j is Σ_k û(k) exp(i κ·x) with κ_j = 2π k_j / L_j for integers k_j. Shell s
holds the modes with |κ| nearest to s κ_0, κ_0 = 2π / max_j L_j. In one dimension, these are the modes ±s. The shells
reach into the corners of the box of modes, so that Parseval's identity holds: Σ_k |û(k)|² = ⟨|u|²⟩, the mean over the
domain.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import as_integer
from jaxop.domains import Domain, Grid
from jaxop.domains.domain import check_domain
from jaxop.dynamics._states import States, over_states, ratio

Bands = Sequence[tuple[int, int]]
"""The first and the last shell of every band."""


@functools.partial(register, static=("bands",))
@dataclasses.dataclass(frozen=True, eq=False)
class BandErrors:
    """Errors in bands of wavenumbers, for every time, band and channel.

    Attributes:
        statistics: |E_p^½ − E_r^½| / E_r^½ for the energies E of prediction and truth in a band: whether the prediction
            has the right amplitudes, shape (…, t, k, c).
        pointwise: ‖p − r‖ / ‖r‖ of the parts in a band: whether it has the right values, shape (…, t, k, c).
        mse: ⟨|p − r|²⟩ of the parts in a band, whose sum over the bands is the mean squared error if they cover all
            shells, in the squared unit of the states, shape (…, t, k, c).
        bands: the first and the last shell of each of the k bands (static).
    """

    statistics: Float[Array, "*batch t k c"]
    pointwise: Float[Array, "*batch t k c"]
    mse: Float[Array, "*batch t k c"]
    bands: tuple[tuple[int, int], ...]


def wavenumbers(domain: Domain) -> Float[np.ndarray, " shells"]:
    """S κ_0 for every shell s of a periodic grid, κ_0 = 2π / max_j L_j: the abscissae of `energy_spectrum`.

    Args:
        domain: a grid whose axes are periodic with equal weights.

    Returns:
        Shape (K,), in units of 1/length, from 0 to the corner of the box of modes.

    Raises:
        ValueError: if the domain is not such a grid.

    Example:
        >>> from jaxop import domains, dynamics
        >>> dynamics.wavenumbers(domains.interval(8, upper=6.2831853, rule="periodic")).round(3)
        array([0., 1., 2., 3., 4.])
    """
    grid = check_periodic(domain)
    return 2 * np.pi / max(_sides(grid)) * np.arange(_modes(grid.shape, _sides(grid)).count)


def energy_spectrum(states: States, domain: Domain) -> Float[Array, "*batch t shells c"]:
    """E_s = Σ |û(k)|² over the modes k in shell s, for every time and channel; Σ_s E_s = ⟨|u|²⟩.

    Of a velocity, half the sum over channels is the kinetic energy per volume. Of a vorticity, half of it is the
    enstrophy. exponax's ``get_spectrum`` returns E_s / 2 in its shells, which stop at half the number of nodes.

    Args:
        states: u, shape (t, n, c) or (b, t, n, c).
        domain: a grid whose axes are periodic with equal weights, shared or a stack of b.

    Returns:
        Shape (t, K, c) or (b, t, K, c), in the squared unit of u, for the K `wavenumbers` of the domain. In float32,
        energies below about 1e-14 of the largest are rounding errors. The spectrum of a state that is not finite is ∞.

    Raises:
        ValueError: if the domain is not such a grid, or the states do not fit it.

    Cost: one real FFT per state and channel.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> domain = domains.interval(16, rule="periodic")
        >>> wave = 3 * jnp.cos(2 * jnp.pi * 2 * domain.points)[None]
        >>> print(dynamics.energy_spectrum(wave, domain)[0, :4, 0].round(4))  # 3²/2 at k = 2
        [0.  0.  4.5 0. ]
    """
    check_periodic(domain)
    return over_states(_spectrum, domain, states, names=("states",), undefined=np.inf)


def _spectrum(u: Float[Array, "n c"], domain: Grid) -> Float[Array, "shells c"]:
    modes, unit = _modes(domain.shape, _sides(domain)), domain._unit(u)
    return jax.ops.segment_sum(_power(u / unit, domain, modes), modes.shells, num_segments=modes.count) * unit * unit


def log_bands(domain: Domain, count: int = 3) -> tuple[tuple[int, int], ...]:
    """Bands that are equally wide in log κ and cover all shells, from the mean to the corners of the box of modes.

    On a grid with equal sides the default is that of The Well: low, medium and high, up to rounding to whole shells. A
    small grid has fewer bands.

    Args:
        domain: a grid whose axes are periodic with equal weights.
        count: number of bands.

    Returns:
        The first and the last shell of every band.

    Raises:
        TypeError: if ``count`` is not an integer.
        ValueError: if the domain is not such a grid, or ``count`` is not positive.

    Example:
        >>> from jaxop import domains, dynamics
        >>> dynamics.log_bands(domains.interval(160, rule="periodic"))
        ((0, 4), (5, 18), (19, 80))
    """
    grid = check_periodic(domain)
    if as_integer(count, "count") < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    last = _modes(grid.shape, _sides(grid)).count - 1
    inner = {math.ceil(last ** (i / count) - 1e-9) for i in range(1, count)}  # 27^(2/3) is a little above 9
    starts = sorted({0, *(start for start in inner if start <= last)})
    return tuple(zip(starts, [start - 1 for start in starts[1:]] + [last], strict=True))


def band_errors(prediction: States, truth: States, domain: Domain, *, bands: Bands | None = None) -> BandErrors:
    """Errors of amplitudes, |E_p^½ − E_r^½| / E_r^½, and of values, ‖p − r‖ / ‖r‖, in bands of wavenumbers.

    If the truth has no energy in a band, the quotients do not exist, and the values are the numerators.

    Args:
        prediction: p, shape (t, n, c) or (b, t, n, c).
        truth: r, of the same shape.
        domain: a grid whose axes are periodic with equal weights, shared or a stack of b.
        bands: the first and the last shell of every band, both included: in one dimension these are the numbers of
            waves on the interval. None takes `log_bands`.

    Returns:
        `BandErrors`. In one dimension, the sum of ``pointwise`` over channels is exponax's ``fourier_nRMSE`` with the
        band as ``low`` and ``high``. In more dimensions exponax has boxes of modes in the place of shells.

    Raises:
        TypeError: if an entry of ``bands`` is not an integer.
        ValueError: if the domain is not such a grid, the states do not fit it or each other, or a band is empty.

    Cost: three real FFTs per state and channel.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> domain = domains.interval(32, rule="periodic")
        >>> x = 2 * jnp.pi * domain.points
        >>> truth = (jnp.cos(x) + jnp.cos(5 * x))[None]
        >>> shifted = (jnp.cos(x) + jnp.sin(5 * x))[None]  # the right amplitudes in both bands, wrong values in one
        >>> errors = dynamics.band_errors(shifted, truth, domain, bands=((0, 2), (3, 16)))
        >>> print(errors.statistics[0, :, 0].round(3) + 0, errors.pointwise[0, :, 0].round(3))
        [0. 0.] [0.    1.414]
    """
    grid = check_periodic(domain)
    chosen = log_bands(grid) if bands is None else _checked_bands(bands, _modes(grid.shape, _sides(grid)).count)

    names = ("prediction", "truth")
    found = over_states(_band_errors, domain, prediction, truth, names=names, undefined=np.inf, bands=chosen)
    statistics, pointwise, mse = (found[..., i, :, :] for i in range(3))
    return BandErrors(statistics, pointwise, mse, chosen)


def _band_errors(
    p: Float[Array, "n c"], r: Float[Array, "n c"], domain: Grid, bands: tuple[tuple[int, int], ...]
) -> Float[Array, "3 k c"]:
    modes = _modes(domain.shape, _sides(domain))
    within = jnp.asarray([(first <= modes.shells) & (modes.shells <= last) for first, last in bands], p.dtype)

    def amplitudes(u: Array) -> Array:
        unit = domain._unit(u)  # huge and tiny states stay in the range of their dtype
        return _sqrt(jnp.matmul(within, _power(u / unit, domain, modes), precision=jax.lax.Precision.HIGHEST)) * unit

    of_p, of_r, of_error = (amplitudes(u) for u in (p, r, p - r))
    return jnp.stack([ratio(jnp.abs(of_p - of_r), of_r), ratio(of_error, of_r), of_error**2])


def is_periodic(domain: Domain) -> bool:
    """Returns whether Fourier modes are orthogonal on a domain: a periodic grid with equal weights."""
    return isinstance(domain, Grid) and all(a.rule.is_periodic and a.rule.has_equal_weights for a in domain.axes)


def check_periodic(domain: Domain) -> Grid:
    """Raises ``ValueError`` unless a domain is a periodic grid with equal weights."""
    check_domain(domain, "domain")
    if isinstance(domain, Grid) and is_periodic(domain):
        return domain
    received = f"a Grid with rules {', '.join(domain.rules)}" if isinstance(domain, Grid) else type(domain).__name__
    raise ValueError(
        "domain must be a periodic grid with equal weights for a spectrum, such as domains.interval(64, "
        f"rule='periodic'), got {received}; nrmse, vrmse and h1_error take any domain."
    )


def spectral_derivative(state: Float[Array, "n c"], grid: Grid, axis: int) -> Float[Array, "n c"]:
    """∂u/∂x_a = Σ_k i κ_a û(k) exp(i κ·x), without the mode n/2 of an even n, whose derivative is 0 on the nodes."""
    shape = grid.shape
    count, side = shape[axis], _sides(grid)[axis]
    numbers = np.fft.rfftfreq(count, 1 / count)
    if count % 2 == 0:
        numbers[-1] = 0
    block = state.reshape(*shape, -1)
    factor = (2j * np.pi / side * numbers).reshape(-1, *[1] * (len(shape) - axis))
    factor = np.broadcast_to(factor, (*shape[:axis], len(numbers), *shape[axis + 1 :], block.shape[-1]))
    spectrum = jnp.fft.rfft(block, axis=axis)
    return jnp.fft.irfft(spectrum * jnp.asarray(factor, spectrum.dtype), count, axis=axis).reshape(state.shape)


@dataclasses.dataclass(frozen=True)
class _Modes:
    """The modes of a real FFT in one list: their shells, how often each is in a full FFT, and the number of shells."""

    shells: np.ndarray
    copies: np.ndarray
    count: int


@functools.lru_cache(maxsize=64)
def _modes(shape: tuple[int, ...], sides: tuple[float, ...]) -> _Modes:
    numbers = [np.fft.fftfreq(n, 1 / n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1], 1 / shape[-1])]
    scaled = [k * max(sides) / side for k, side in zip(numbers, sides, strict=True)]
    radius = np.sqrt(sum(k**2 for k in np.meshgrid(*scaled, indexing="ij")))
    shells = np.floor(radius + 0.5).astype(np.int32).reshape(-1)
    last = np.full(len(numbers[-1]), 2.0)
    last[0] = 1
    if shape[-1] % 2 == 0:
        last[-1] = 1
    return _Modes(shells, np.broadcast_to(last, radius.shape).reshape(-1), int(shells.max()) + 1)


def _sides(grid: Grid) -> tuple[float, ...]:
    return tuple(axis.ends[1] - axis.ends[0] for axis in grid.axes)


def _power(u: Float[Array, "n c"], grid: Grid, modes: _Modes) -> Float[Array, "m c"]:
    """Returns |û(k)|² of the modes of a real FFT, with the energy of those that it leaves out."""
    transformed = jnp.fft.rfftn(u.reshape(*grid.shape, -1), axes=range(grid.dim)).reshape(len(modes.shells), -1)
    square = jnp.real(transformed) ** 2 + jnp.imag(transformed) ** 2
    return square * jnp.asarray(modes.copies / grid.size**2, u.dtype)[:, None]


def _sqrt(square: Array) -> Array:
    """Returns the root, with gradient 0 at 0."""
    vanishes = square <= 0
    return jnp.where(vanishes, 0, jnp.sqrt(jnp.where(vanishes, 1, square)))


def _checked_bands(bands: Bands, count: int) -> tuple[tuple[int, int], ...]:
    chosen = tuple((as_integer(first, "bands"), as_integer(last, "bands")) for first, last in bands)
    for first, last in chosen:
        if not 0 <= first <= last < count:
            raise ValueError(
                f"bands must hold shells between 0 and {count - 1}, first <= last, got ({first}, {last}); both ends "
                "are included."
            )
    if not chosen:
        raise ValueError("bands must hold at least one band, got none.")
    return chosen
