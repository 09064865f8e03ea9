"""Equations in one space dimension that move: advection, Burgers, Kuramoto–Sivashinsky, Korteweg–de Vries."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxop.data.problems.periodic import Constant, Setting, fourier_series
from jaxop.data.trajectories import Trajectories

_ADVECTION, _BURGERS, _SIVASHINSKY, _KORTEWEG = 0x6164, 0x6275, 0x6B73, 0x6B64  # random streams


def advection(
    samples: int,
    *,
    nodes: int = 160,
    times: int = 51,
    dt: float = 0.1,
    seed: int = 0,
    first: int = 0,
    speed: Constant = 0.25,
    length: float = 1.0,
    modes: int = 5,
) -> Trajectories:
    """Advection u_t + c u_x = 0 on a circle of length L; the states u(x − ct, 0) are exact.

    Every u(x, 0) is a random Fourier series with K modes, divided by its largest value. It depends only on (seed,
    sample number), so that all grids sample the same functions.

    Args:
        samples: N.
        nodes: n, of a periodic grid.
        times: T, the recorded times 0, dt, …, (T − 1) dt.
        dt: time between them.
        seed: non-negative integer.
        first: number of the first sample; sets with disjoint numbers are independent.
        speed: c, one number, or a range from which every trajectory draws its own, uniformly.
        length: L.
        modes: K.

    Returns:
        `Trajectories` with states (N, T, n, 1) in JAX's default floating dtype, computed in float64, and the
        parameter "speed" if it varies. Any consistent units. Cost: O(N T n log n).

    Raises:
        ImportError: if exponax is not installed.
        ValueError: if a count or constant is out of range, or the grid does not resolve the modes.

    Reference:
        Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024), whose settings are the defaults.

    Example:
        >>> from jaxop import data
        >>> waves = data.advection(3, speed=(-0.5, 0.5))
        >>> waves.states.shape, waves.parameter_names
        ((3, 51, 160, 1), ('speed',))
    """
    setting = Setting("advection", _ADVECTION, samples, first, seed, nodes, 1, times, dt)
    initial = fourier_series(setting, modes=modes)
    return setting.trajectories(_advect, initial, {"speed": speed}, length=length, signed=("speed",))


def burgers(
    samples: int,
    *,
    nodes: int = 160,
    times: int = 51,
    dt: float = 0.1,
    seed: int = 0,
    first: int = 0,
    viscosity: Constant = 3e-4,
    convection: Constant = 0.125,
    length: float = 1.0,
    modes: int = 5,
    substeps: int = 1,
    order: int = 2,
) -> Trajectories:
    """Burgers equation u_t + b (u²/2)_x = ν u_xx on a circle of length L.

    Every u(x, 0) is a random Fourier series with K modes, divided by its largest value. It depends only on (seed,
    sample number), so that all grids sample the same functions. The solver is a Fourier method with two thirds of the
    modes in products, and an exponential Runge–Kutta method in time.

    Args:
        samples: N.
        nodes: n, of a periodic grid.
        times: T, the recorded times 0, dt, …, (T − 1) dt.
        dt: time between them.
        seed: non-negative integer.
        first: number of the first sample; sets with disjoint numbers are independent.
        viscosity: ν, one number, or a range from which every trajectory draws its own, uniformly in log ν.
        convection: b, likewise.
        length: L.
        modes: K.
        substeps: time steps of the solver between recorded times.
        order: of the exponential Runge–Kutta method, 1 to 4.

    Returns:
        `Trajectories` with states (N, T, n, 1) in JAX's default floating dtype, computed in float64, and those of the
        parameters "viscosity" and "convection" that vary. Any consistent units. Cost: O(N T substeps n log n).

    Raises:
        ImportError: if exponax is not installed.
        ValueError: if a count or constant is out of range, or the grid does not resolve the modes.
        RuntimeError: if a solution does not stay finite.

    Reference:
        Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024), whose settings are the defaults.

    Example:
        >>> from jaxop import data
        >>> train, test = data.burgers(4), data.burgers(2, times=201, first=1_000_000)
        >>> train.states.shape, test.states.shape, train.times[:3].tolist()
        ((4, 51, 160, 1), (2, 201, 160, 1), [0.0, 0.1, 0.2])
    """
    setting = Setting("burgers", _BURGERS, samples, first, seed, nodes, 1, times, dt, substeps, 0, order)
    constants = {"viscosity": viscosity, "convection": convection}
    return setting.trajectories(_burgers, fourier_series(setting, modes=modes), constants, length=length)


def kuramoto_sivashinsky(
    samples: int,
    *,
    nodes: int = 160,
    times: int = 51,
    dt: float = 0.1,
    seed: int = 0,
    first: int = 0,
    diffusion: Constant = 1.44,
    hyperdiffusion: Constant = 0.4,
    convection: Constant = 3.6,
    length: float = 60.0,
    modes: int = 5,
    warmup: int = 500,
    substeps: int = 1,
    order: int = 2,
) -> Trajectories:
    """Kuramoto–Sivashinsky equation u_t + b (u²/2)_x + a₂ u_xx + a₄ u_xxxx = 0 on a circle of length L.

    Long waves, with 2πk/L < (a₂/a₄)^½, grow, short ones decay, and convection takes energy from the first to the
    second: after the warm-up, states are on a chaotic attractor. With the defaults neighbouring trajectories separate
    by about e^(0.5 t), and the mean over the circle stays 0.

    The states at time −warmup·dt are those of `burgers`. They are the same functions on all grids, but after the
    warm-up only their statistics are. `resample` makes the same trajectories on coarser grids.

    Args:
        samples: N.
        nodes: n, of a periodic grid.
        times: T, the recorded times 0, dt, …, (T − 1) dt.
        dt: time between them.
        seed: non-negative integer.
        first: number of the first sample; sets with disjoint numbers are independent.
        diffusion: a₂, one number, or a range from which every trajectory draws its own, uniformly in its logarithm.
        hyperdiffusion: a₄, likewise.
        convection: b, likewise.
        length: L.
        modes: K, of the initial states.
        warmup: number of times dt before time 0.
        substeps: time steps of the solver in each dt.
        order: of the exponential Runge–Kutta method, 1 to 4.

    Returns:
        `Trajectories` with states (N, T, n, 1) in JAX's default floating dtype, computed in float64, and the
        parameters that vary, by the names of the arguments. No units. Cost: O(N (T + warmup) substeps n log n).

    Raises:
        ImportError: if exponax is not installed.
        ValueError: if a count or constant is out of range, or the grid does not resolve the modes.
        RuntimeError: if a solution does not stay finite.

    Reference:
        Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024), whose settings of the conservative equation are
        the defaults.

    Example:
        >>> from jaxop import data
        >>> chaos = data.kuramoto_sivashinsky(2, times=11)
        >>> chaos.states.shape, bool(abs(chaos.states.mean(axis=2)).max() < 1e-6)
        ((2, 11, 160, 1), True)
    """
    setting = Setting(
        "kuramoto_sivashinsky", _SIVASHINSKY, samples, first, seed, nodes, 1, times, dt, substeps, warmup, order
    )
    constants = {"diffusion": diffusion, "hyperdiffusion": hyperdiffusion, "convection": convection}
    return setting.trajectories(_sivashinsky, fourier_series(setting, modes=modes), constants, length=length)


def korteweg_de_vries(
    samples: int,
    *,
    nodes: int = 160,
    times: int = 51,
    dt: float = 0.1,
    seed: int = 0,
    first: int = 0,
    convection: Constant = 6.0,
    dispersion: Constant = 1.0,
    hyperdiffusion: Constant = 0.125,
    length: float = 50.0,
    modes: int = 5,
    warmup: int = 0,
    substeps: int = 10,
) -> Trajectories:
    """Korteweg–de Vries equation u_t + b (u²/2)_x + a₃ u_xxx + a₄ u_xxxx = 0 on a circle of length L.

    Every u(x, −warmup·dt) is a random Fourier series with K modes, divided by its largest value, which falls apart into
    solitons. It depends only on (seed, sample number), so that all grids sample the same functions. For b = 6, a₃ = 1
    and small a₄, the soliton (c/2) / cosh²(½ c^½ (x − ct)) moves with speed c.

    The solver is a Fourier method with two thirds of the modes in products, and the classical Runge–Kutta method of
    order 4 for the amplitudes of the waves of the linear equation. The exponential Runge–Kutta methods of exponax 0.2,
    by which APEBench solves this equation, keep the real part of complex coefficients and are of order 1 here.

    Args:
        samples: N.
        nodes: n, of a periodic grid.
        times: T, the recorded times 0, dt, …, (T − 1) dt.
        dt: time between them.
        seed: non-negative integer.
        first: number of the first sample; sets with disjoint numbers are independent.
        convection: b, one number, or a range from which every trajectory draws its own, uniformly in its logarithm.
        dispersion: a₃, likewise.
        hyperdiffusion: a₄, likewise.
        length: L.
        modes: K, of the initial states.
        warmup: number of times dt before time 0.
        substeps: time steps of the solver in each dt.

    Returns:
        `Trajectories` with states (N, T, n, 1) in JAX's default floating dtype, computed in float64, and the
        parameters that vary, by the names of the arguments. No units. Cost: O(N (T + warmup) substeps n log n).

    Raises:
        ImportError: if exponax is not installed.
        ValueError: if a count or constant is out of range, or the grid does not resolve the modes.
        RuntimeError: if a solution does not stay finite.

    References:
        Trefethen, "Spectral Methods in MATLAB" (2000), program 27; Koehler, Niedermayr, Westermann, Thuerey, "APEBench"
        (2024), whose settings are the defaults.

    Example:
        >>> from jaxop import data
        >>> solitons = data.korteweg_de_vries(2, times=11)
        >>> solitons.states.shape
        (2, 11, 160, 1)
    """
    setting = Setting("korteweg_de_vries", _KORTEWEG, samples, first, seed, nodes, 1, times, dt, substeps, warmup)
    constants = {"convection": convection, "dispersion": dispersion, "hyperdiffusion": hyperdiffusion}
    return setting.trajectories(_korteweg, fourier_series(setting, modes=modes), constants, length=length)


def _advect(
    exponax: Any, nodes: int, dt: Array, order: int, constants: Mapping[str, Array]
) -> Callable[[Array], Array]:
    return exponax.stepper.generic.GeneralLinearStepper(
        1, constants["length"], nodes, dt, linear_coefficients=(0.0, -constants["speed"])
    ).step_fourier


def _burgers(
    exponax: Any, nodes: int, dt: Array, order: int, constants: Mapping[str, Array]
) -> Callable[[Array], Array]:
    return exponax.stepper.generic.GeneralConvectionStepper(
        1,
        constants["length"],
        nodes,
        dt,
        linear_coefficients=(0.0, 0.0, constants["viscosity"]),
        convection_scale=constants["convection"],
        conservative=True,
        order=order,
    ).step_fourier


def _sivashinsky(
    exponax: Any, nodes: int, dt: Array, order: int, constants: Mapping[str, Array]
) -> Callable[[Array], Array]:
    return exponax.stepper.generic.GeneralConvectionStepper(
        1,
        constants["length"],
        nodes,
        dt,
        linear_coefficients=(0.0, 0.0, -constants["diffusion"], 0.0, -constants["hyperdiffusion"]),
        convection_scale=constants["convection"],
        conservative=True,
        order=order,
    ).step_fourier


def _korteweg(
    exponax: Any, nodes: int, dt: Array, order: int, constants: Mapping[str, Array]
) -> Callable[[Array], Array]:
    derivative = exponax.spectral.build_derivative_operator(1, constants["length"], nodes)
    velocity = exponax.nonlin_fun.ConvectionNonlinearFun(
        1,
        nodes,
        derivative_operator=derivative,
        dealiasing_fraction=2 / 3,
        scale=constants["convection"],
        conservative=True,
    )
    symbol = -constants["dispersion"] * derivative**3 - constants["hyperdiffusion"] * derivative**4
    half = jnp.exp(symbol * dt / 2)

    def step(u: Array) -> Array:
        a = velocity(u)
        b = velocity(half * (u + dt / 2 * a))
        c = velocity(half * u + dt / 2 * b)
        d = velocity(half * (half * u + dt * c))
        return half * (half * (u + dt / 6 * a) + dt / 3 * (b + c)) + dt / 6 * d

    return step
