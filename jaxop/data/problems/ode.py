"""Time-dependent problems: a controlled equation with known solution, and the Lorenz system."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop import domains
from jaxop._validation import as_number, check_name, float_dtype, require
from jaxop.data._support import check_count, check_numbers, double_precision, generator
from jaxop.data.samples import Samples
from jaxop.domains import Grid

LORENZ_TASKS = ("x->y", "x->yz")
"""Names of the data-assimilation tasks of `lorenz63`, from the first coordinate to the others."""

_CONTROL, _LORENZ, _TIMES = 0x6364, 0x6C6F, 0x7469  # random streams
_SMALLEST_GAP = 0.1  # of the mean gap
_PRECISION = 1e-12  # of the Lorenz solver's steps, relative and absolute
_CHUNK = 1024  # trajectories integrated at once


def controlled_ode(
    samples: int,
    *,
    seed: int,
    dt: float | None = None,
    nodes: int | None = None,
    final_time: float = 2.0,
    first: int = 0,
) -> Samples:
    """Controlled equation dz = sin(z) du, z(0) = 1; input u, target z = 2 arctan(tan(½) e^u(t)), the exact solution.

    The control is u(t) = Σ_{j=1}^{10} ξ_j j⁻¹ sin(π f_j t) with ξ_j ~ N(0, 1) and f_j ~ U(0, 10), a
    smooth path with u(0) = 0. It is sampled evenly with a trapezoid rule, or at random times that differ from sample
    to sample. ξ and f depend only on (seed, sample number), so that all samplings have the same paths.

    Args:
        samples: N.
        seed: non-negative integer.
        dt: samples evenly at 0, dt, 2dt, … up to the last multiple not beyond ``final_time``.
        nodes: samples unevenly at this many times, both ends included. Every gap is a tenth of the mean gap plus a
            random part, proportional to the gaps of sorted uniform times.
        final_time: end of the interval, which starts at 0.
        first: number of the first sample; sets with disjoint numbers are independent.

    Returns:
        `Samples` with inputs and targets of shape (N, n, 1) on an interval shared by all (``dt``) or
        stacked (``nodes``), in JAX's default floating dtype. No units. Cost: O(N n).

    Raises:
        ValueError: unless exactly one of ``dt`` and ``nodes`` is given, and if a value is out of range.

    Reference:
        Calvello, Kovachki, Levine, Stuart, "Continuum Attention for Neural Operators" (2024).

    Example:
        >>> from jaxop import data
        >>> samples = data.controlled_ode(3, seed=0, dt=0.01)
        >>> samples.inputs.shape, float(samples.targets[0, 0, 0])
        ((3, 201, 1), 1.0)
    """
    numbers = check_numbers(samples, first)
    times, domain = _sampling(numbers, seed, dt, nodes, final_time)
    draws = [generator(seed, _CONTROL, number) for number in numbers]
    xi = np.stack([draw.standard_normal(10) for draw in draws])
    frequency = np.stack([draw.uniform(0.0, 10.0, 10) for draw in draws])
    u = np.zeros((samples, times.shape[-1]))
    for j in range(10):
        u += xi[:, j, None] / (j + 1) * np.sin(np.pi * frequency[:, j, None] * times)
    z = 2 * np.arctan(np.tan(0.5) * np.exp(u))
    dtype = float_dtype()
    return Samples(u[..., None].astype(dtype), z[..., None].astype(dtype), domain)


def lorenz63(
    samples: int,
    *,
    seed: int,
    task: str = "x->y",
    dt: float | None = None,
    nodes: int | None = None,
    final_time: float = 2.0,
    first: int = 0,
) -> Samples:
    """ẋ = σ(y − x), ẏ = x(ρ − z) − y, ż = xy − βz with σ = 10, ρ = 28, β = 8/3; input x, target y or (y, z).

    x(0), y(0) ~ U(−15, 15) and z(0) ~ U(0, 40). The path of x does not determine the other coordinates, so each sample
    has the initial values [x(0), y(0), 0] or [x(0), y(0), z(0), 0], which end with the time 0.
    The sampling is that of `controlled_ode`. The initial state depends only on (seed, sample number), so that all
    samplings have the same trajectories.

    Args:
        samples: N.
        seed: non-negative integer.
        task: one of `LORENZ_TASKS`.
        dt: samples evenly at 0, dt, 2dt, … up to the last multiple not beyond ``final_time``.
        nodes: samples unevenly at this many random times, which include both ends and differ from sample to sample.
        final_time: end of the interval, which starts at 0.
        first: number of the first sample; sets with disjoint numbers are independent.

    Returns:
        `Samples` with inputs (N, n, 1), targets (N, n, 1) or (N, n, 2), ``initial`` (N, 3) or (N, 4) on an
        interval shared by all (``dt``) or stacked (``nodes``), in JAX's default floating dtype. No
        units. Cost: see `solve_lorenz63`.

    Raises:
        ImportError: if diffrax is not installed.
        ValueError: unless exactly one of ``dt`` and ``nodes`` is given, and if a value is out of range.

    References:
        Lorenz, "Deterministic nonperiodic flow" (1963); Calvello, Kovachki, Levine, Stuart, "Continuum
        Attention for Neural Operators" (2024).

    Example:
        >>> from jaxop import data
        >>> samples = data.lorenz63(2, seed=0, task="x->yz", nodes=41)
        >>> samples.targets.shape, samples.initial.shape, samples.domain.is_batched
        ((2, 41, 2), (2, 4), True)
    """
    check_name(task, "task", LORENZ_TASKS)
    numbers = check_numbers(samples, first)
    times, domain = _sampling(numbers, seed, dt, nodes, final_time)
    states = np.stack(
        [generator(seed, _LORENZ, number).uniform([-15.0, -15.0, 0.0], [15.0, 15.0, 40.0]) for number in numbers]
    )
    path = solve_lorenz63(states, times).astype(float_dtype())
    outputs = slice(1, 2) if task == "x->y" else slice(1, 3)
    given = np.concatenate([path[:, 0, :1], path[:, 0, outputs], np.zeros_like(path[:, 0, :1])], axis=1)
    return Samples(path[..., :1], path[..., outputs], domain, initial=given)


def solve_lorenz63(
    initial: Float[np.ndarray, "b 3"],
    times: Float[np.ndarray, "... n"],
    *,
    sigma: float = 10.0,
    rho: float = 28.0,
    beta: float = 8 / 3,
) -> Float[np.ndarray, "b n 3"]:
    """(x, y, z)(t) of ẋ = σ(y − x), ẏ = x(ρ − z) − y, ż = xy − βz, by an explicit Runge–Kutta pair of order 8.

    diffrax integrates with `Dopri8`, adaptive steps and dense output, in float64 under any setting of JAX,
    with a tolerance of 1e-12 per step. At t = 2 the states, of size 50, have an error of about
    1e-8. Neighbouring trajectories separate by about e^(0.9 t), so the result is not meaningful far beyond t = 25.

    Args:
        initial: states at the first time, shape (N, 3).
        times: increasing times, shape (n,) for all samples or (N, n).
        sigma: Prandtl number σ.
        rho: relative Rayleigh number ρ.
        beta: geometric factor β.

    Returns:
        float64 states, shape (N, n, 3). Cost: about 80 steps of 13 stages per unit of time and trajectory.

    Raises:
        ImportError: if diffrax is not installed.
        ValueError: if the shapes do not fit, or a factor is not finite.

    Reference:
        Prince, Dormand, "High order embedded Runge-Kutta formulae" (1981); Kidger, "On neural
        differential equations" (2022).

    Example:
        >>> import numpy as np
        >>> from jaxop import data
        >>> on_axis = data.solve_lorenz63(np.array([[0.0, 0.0, 1.0]]), np.linspace(0, 1, 41))
        >>> print(on_axis[0, -1].round(8), np.exp(-8 / 3).round(8))
        [0.         0.         0.06948345] 0.06948345
    """
    states, times = np.asarray(initial, np.float64), np.asarray(times, np.float64)
    if states.ndim != 2 or states.shape[1] != 3:
        raise ValueError(f"initial must have shape (samples, 3), got {states.shape}.")
    if times.ndim not in (1, 2) or (times.ndim == 2 and len(times) != len(states)):
        raise ValueError(f"times must have shape (n,) or ({len(states)}, n), got {times.shape}.")
    if times.shape[-1] < 2 or not (np.diff(times) > 0).all():
        raise ValueError("times must hold at least two strictly increasing times; sort them with numpy.unique.")
    times = np.broadcast_to(times, (len(states), times.shape[-1]))
    return integrate(_lorenz63, states, times, finite_constants(sigma=sigma, rho=rho, beta=beta))


def finite_constants(**constants: float) -> Float[np.ndarray, " p"]:
    """Returns the constants of an equation as an array; raises ``ValueError`` if one is not finite."""
    values = np.array([as_number(value, name) for name, value in constants.items()])
    for name, value in zip(constants, values, strict=True):
        if not np.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}.")
    return values


def integrate(
    velocity: Callable[[Array, Array, Array], Array],
    states: Float[np.ndarray, "b k"],
    times: Float[np.ndarray, "b n"],
    parameters: Float[np.ndarray, " p"],
) -> Float[np.ndarray, "b n k"]:
    """Returns the solutions of ẏ = velocity(t, y, parameters) at given times, as `solve_lorenz63` does."""
    # one compilation serves all counts up to the next power of two
    size = min(_CHUNK, 2 ** max(4, (len(states) - 1).bit_length()))
    padding = ((0, -len(states) % size), (0, 0))
    padded, padded_times = np.pad(states, padding, mode="edge"), np.pad(times, padding, mode="edge")
    with double_precision():
        solve = _integrator(velocity)
        parts = [
            np.asarray(solve(padded[i : i + size], padded_times[i : i + size], parameters))
            for i in range(0, len(padded), size)
        ]
    return np.concatenate(parts)[: len(states)]


def _lorenz63(_: Array, state: Array, parameters: Array) -> Array:
    (x, y, z), (sigma, rho, beta) = state, parameters
    return jnp.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z])


@functools.cache
def _integrator(
    velocity: Callable[[Array, Array, Array], Array],
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Array]:
    diffrax = require("diffrax", "the Lorenz system")

    def integrate(state: Array, times: Array, parameters: Array) -> Array:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Dopri8(),
            t0=times[0],
            t1=times[-1],
            dt0=None,
            y0=state,
            args=parameters,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(rtol=_PRECISION, atol=_PRECISION),
            max_steps=100_000,
        )
        return solution.ys

    return jax.jit(jax.vmap(integrate, in_axes=(0, 0, None)))


def _sampling(
    numbers: range, seed: int, dt: float | None, nodes: int | None, final_time: float
) -> tuple[np.ndarray, Grid]:
    """Returns times in float64, (n,) or (N, n), and the interval that they sample."""
    if not 0 < final_time < np.inf:
        raise ValueError(f"final_time must be positive and finite, got {final_time}.")
    if dt is not None and nodes is None:
        if not 0 < dt <= final_time:
            raise ValueError(f"dt must lie between 0 and final_time={final_time}, got {dt}.")
        steps = int(final_time / dt * (1 + 1e-12))
        return dt * np.arange(steps + 1), domains.interval(steps + 1, upper=dt * steps)
    if nodes is not None and dt is None:
        check_count(nodes, "nodes", smallest=2)
        gaps = np.stack([generator(seed, _TIMES, number).standard_exponential(nodes - 1) for number in numbers])
        gaps /= gaps.mean(axis=1, keepdims=True)
        # a smallest gap separates times in single precision
        gaps = _SMALLEST_GAP + (1 - _SMALLEST_GAP) * gaps
        times = np.concatenate([np.zeros((len(numbers), 1)), np.cumsum(gaps, axis=1)], axis=1)
        times *= final_time / (nodes - 1)
        times[:, -1] = final_time
        rounded = jnp.asarray(times, float_dtype())  # the nodes at which u and z are evaluated
        return np.asarray(rounded, np.float64), jax.vmap(domains.from_samples)(rounded)
    raise ValueError(f"give either dt (even sampling) or nodes (uneven sampling), got dt={dt} and nodes={nodes}.")
