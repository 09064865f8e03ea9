"""The chaotic systems of Lorenz as trajectories."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop import domains
from jaxop._validation import as_integer, as_number, float_dtype
from jaxop.data._support import check_count, check_numbers, generator
from jaxop.data.problems.ode import finite_constants, integrate, solve_lorenz63
from jaxop.data.trajectories import Trajectories

_LORENZ63, _LORENZ96 = 0x6C36, 0x6C39  # random streams
_TOGETHER = 16  # trajectories with neighbouring numbers are integrated together


def lorenz63_states(
    samples: int,
    *,
    times: int = 501,
    dt: float = 0.02,
    seed: int = 0,
    first: int = 0,
    sigma: float = 10.0,
    rho: float = 28.0,
    beta: float = 8 / 3,
    warmup: int = 500,
) -> Trajectories:
    """ẋ = σ(y − x), ẏ = x(ρ − z) − y, ż = xy − βz: states (x, y, z), three channels at the only node of the domain.

    At time −warmup·dt, x, y ~ U(−15, 15) and z ~ U(0, 40), which depend only on (seed, sample number). Neighbouring
    trajectories separate by about e^(0.9 t). `solve_lorenz63` is the solver. `lorenz63` makes problems of data
    assimilation of the same system.

    Args:
        samples: N.
        times: T, the recorded times 0, dt, …, (T − 1) dt.
        dt: time between them.
        seed: non-negative integer.
        first: number of the first sample; sets with disjoint numbers are independent.
        sigma: Prandtl number σ.
        rho: relative Rayleigh number ρ.
        beta: geometric factor β.
        warmup: number of times dt before time 0.

    Returns:
        `Trajectories` with states (N, T, 1, 3) in JAX's default floating dtype, computed in float64. No units. Cost:
        see `solve_lorenz63`, for a multiple of 16 trajectories.

    Raises:
        ImportError: if diffrax is not installed.
        ValueError: if a count, ``dt`` or a constant is out of range.

    Reference:
        Lorenz, "Deterministic nonperiodic flow" (1963).

    Example:
        >>> from jaxop import data
        >>> butterfly = data.lorenz63_states(2, times=101, warmup=50)
        >>> butterfly.states.shape
        (2, 101, 1, 3)
    """

    def solve(states: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        return solve_lorenz63(states, recorded, sigma=sigma, rho=rho, beta=beta)

    def initial(draw: np.random.Generator) -> np.ndarray:
        return draw.uniform([-15.0, -15.0, 0.0], [15.0, 15.0, 40.0])

    path, recorded = _paths(initial, solve, _LORENZ63, samples, first, seed, times, dt, warmup)
    return Trajectories(path[:, :, None], domains.interval(1, rule="periodic"), recorded)


def lorenz96(
    samples: int,
    *,
    variables: int = 40,
    times: int = 501,
    dt: float = 0.05,
    seed: int = 0,
    first: int = 0,
    forcing: float = 8.0,
    warmup: int = 200,
) -> Trajectories:
    """u̇_i = (u_{i+1} − u_{i−2}) u_{i−1} − u_i + F with cyclic indices: K values around a circle of latitude.

    The quadratic terms conserve the energy E = Σ_i u_i²/2, so that dE/dt = −2E + F Σ_i u_i. For F = 8 and K = 40
    neighbouring trajectories separate by about e^(1.7 t). At time −warmup·dt, u_i ~ F + N(0, 1), which depends only on
    (seed, sample number). The solver is that of `solve_lorenz63`.

    Args:
        samples: N.
        variables: K, at least 4, the nodes of a periodic grid of length 1.
        times: T, the recorded times 0, dt, …, (T − 1) dt.
        dt: time between them; a unit of time is about five days of weather.
        seed: non-negative integer.
        first: number of the first sample; sets with disjoint numbers are independent.
        forcing: F.
        warmup: number of times dt before time 0.

    Returns:
        `Trajectories` with states (N, T, K, 1) in JAX's default floating dtype, computed in float64. No units. Cost:
        O(K) per step of 13 stages, for a multiple of 16 trajectories.

    Raises:
        ImportError: if diffrax is not installed.
        ValueError: if a count, ``dt`` or a constant is out of range.

    Reference:
        Lorenz, "Predictability: a problem partly solved" (1996).

    Example:
        >>> from jaxop import data
        >>> weather = data.lorenz96(2, times=11, warmup=20)
        >>> weather.states.shape, weather.domain.rules
        ((2, 11, 40, 1), ('periodic',))
    """
    check_count(as_integer(variables, "variables"), "variables", smallest=4)
    parameters = finite_constants(forcing=forcing)

    def solve(states: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        recorded = np.broadcast_to(recorded, (len(states), len(recorded)))
        return integrate(_lorenz96, states, recorded, parameters)

    def initial(draw: np.random.Generator) -> np.ndarray:
        return forcing + draw.standard_normal(variables)

    path, recorded = _paths(initial, solve, _LORENZ96, samples, first, seed, times, dt, warmup)
    return Trajectories(path[..., None], domains.interval(variables, rule="periodic"), recorded)


def _lorenz96(_: Array, state: Array, parameters: Array) -> Array:
    return (jnp.roll(state, -1) - jnp.roll(state, 2)) * jnp.roll(state, 1) - state + parameters[0]


def _paths(
    initial: Callable[[np.random.Generator], np.ndarray],
    solve: Callable[[np.ndarray, np.ndarray], np.ndarray],
    stream: int,
    samples: int,
    first: int,
    seed: int,
    times: int,
    dt: float,
    warmup: int,
) -> tuple[Float[np.ndarray, "N T k"], Float[np.ndarray, " T"]]:
    """Returns the recorded states, and their times.

    Rounding errors grow to the size of the states within a warm-up. A trajectory is therefore integrated together with
    the same others whichever samples were asked for: those whose numbers have the same quotient by 16.
    """
    numbers = check_numbers(samples, first)
    check_count(as_integer(times, "times"), "times", smallest=2)
    check_count(as_integer(warmup, "warmup"), "warmup", smallest=0)
    if not 0 < as_number(dt, "dt") < np.inf:
        raise ValueError(f"dt must be positive and finite, got {dt}.")
    recorded = dt * np.arange(times)
    start, end = numbers.start // _TOGETHER * _TOGETHER, -(-numbers.stop // _TOGETHER) * _TOGETHER
    states = np.stack([initial(generator(seed, stream, number)) for number in range(start, end)])
    # the solver needs the time of its initial states
    shifted = np.concatenate([[0.0], warmup * dt + recorded]) if warmup else recorded
    parts = [
        solve(states[i : i + _TOGETHER], shifted)[:, -times:].astype(float_dtype())
        for i in range(0, len(states), _TOGETHER)
    ]
    return np.concatenate(parts)[numbers.start - start : numbers.stop - start], recorded
