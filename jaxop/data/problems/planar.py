"""Equations in two space dimensions that move: Gray–Scott, Kolmogorov flow, Navier–Stokes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxop._validation import as_integer, as_number
from jaxop.data.problems.periodic import Constant, Setting, fourier_series, gaussian_torus
from jaxop.data.trajectories import Trajectories

_GRAY_SCOTT, _KOLMOGOROV, _NAVIER_STOKES = 0x6773, 0x6B6F, 0x6E73  # random streams
_CENTRES, _VARIANCES = (0.4, 0.6), (0.005, 0.01)  # of the bumps of Gray–Scott, for L = 1
_FIELD_MODES = 31  # of the initial vorticity, which 64 nodes along each axis resolve


def gray_scott(
    samples: int,
    *,
    nodes: int = 160,
    times: int = 51,
    dt: float = 10.0,
    seed: int = 0,
    first: int = 0,
    feed: Constant = 0.04,
    kill: Constant = 0.06,
    diffusion_u: Constant = 2e-5,
    diffusion_v: Constant = 1e-5,
    length: float = 1.0,
    warmup: int = 0,
    substeps: int = 10,
    order: int = 2,
) -> Trajectories:
    """Gray–Scott reaction u_t = D_u Δu + F (1 − u) − u v², v_t = D_v Δv − (F + k) v + u v² on a torus of side L.

    At first u = 1 − g and v = g', where g and g' are Gaussian bumps of height 1 near the middle. Their centres are
    uniform in [0.4 L, 0.6 L]², and their variances along each axis uniform in [0.005 L², 0.01 L²]. They depend only on
    (seed, sample number), so that all grids sample the same functions.

    Args:
        samples: N.
        nodes: n along each axis, of a periodic grid.
        times: T, the recorded times 0, dt, …, (T − 1) dt.
        dt: time between them.
        seed: non-negative integer.
        first: number of the first sample; sets with disjoint numbers are independent.
        feed: F, one number, or a range from which every trajectory draws its own, uniformly in its logarithm.
        kill: k, likewise.
        diffusion_u: D_u, likewise.
        diffusion_v: D_v, likewise.
        length: L.
        warmup: number of times dt before time 0.
        substeps: time steps of the solver in each dt.
        order: of the exponential Runge–Kutta method, 1 to 4.

    Returns:
        `Trajectories` with states (u, v), (N, T, n², 2), in JAX's default floating dtype, computed in float64, and the
        parameters that vary, by the names of the arguments. No units. Cost: O(N (T + warmup) substeps n² log n).

    Raises:
        ImportError: if exponax is not installed.
        ValueError: if a count or constant is out of range.
        RuntimeError: if a solution does not stay finite.

    References:
        Pearson, "Complex patterns in a simple system" (1993); Koehler, Niedermayr, Westermann, Thuerey, "APEBench"
        (2024), whose settings are the defaults.

    Example:
        >>> from jaxop import data
        >>> patterns = data.gray_scott(1, nodes=32, times=3)
        >>> patterns.states.shape, patterns.domain.shape
        ((1, 3, 1024, 2), (32, 32))
    """
    setting = Setting("gray_scott", _GRAY_SCOTT, samples, first, seed, nodes, 2, times, dt, substeps, warmup, order)
    constants = {"feed": feed, "kill": kill, "diffusion_u": diffusion_u, "diffusion_v": diffusion_v}
    return setting.trajectories(_gray_scott, _bumps(setting), constants, length=length)


def kolmogorov_flow(
    samples: int,
    *,
    nodes: int = 160,
    times: int = 51,
    dt: float = 0.1,
    seed: int = 0,
    first: int = 0,
    viscosity: Constant = 1e-2,
    forcing: Constant = 1.0,
    drag: Constant = 0.1,
    forced_mode: int = 4,
    length: float = 2 * math.pi,
    modes: int = 5,
    warmup: int = 500,
    substeps: int = 20,
    order: int = 2,
) -> Trajectories:
    """Kolmogorov flow ω_t + v·∇ω = ν Δω − α ω − m γ cos(2π m x₂/L) on a torus of side L, in two dimensions.

    The velocity is v = (∂₂ψ, −∂₁ψ) with Δψ = ω, as in exponax, so that ω is −curl v. On the torus of side 2π a force
    −γ sin(m x₂) acts on the velocity in the first direction, and the Reynolds number is γ^½/ν. After the warm-up,
    states are on a chaotic attractor.

    The states at time −warmup·dt are random Fourier series, divided by their largest value. They depend only on (seed,
    sample number) and are the same functions on all grids, but after the warm-up only their statistics are. `resample`
    makes the same trajectories on coarser grids.

    Args:
        samples: N.
        nodes: n along each axis, of a periodic grid.
        times: T, the recorded times 0, dt, …, (T − 1) dt.
        dt: time between them.
        seed: non-negative integer.
        first: number of the first sample; sets with disjoint numbers are independent.
        viscosity: ν, one number, or a range from which every trajectory draws its own, uniformly in log ν.
        forcing: γ, likewise.
        drag: α, likewise.
        forced_mode: m.
        length: L.
        modes: K, of the initial states.
        warmup: number of times dt before time 0.
        substeps: time steps of the solver in each dt.
        order: of the exponential Runge–Kutta method, 1 to 4.

    Returns:
        `Trajectories` with the vorticity, (N, T, n², 1), in JAX's default floating dtype, computed in float64, and the
        parameters that vary, by the names of the arguments. No units. Cost: O(N (T + warmup) substeps n² log n), most
        of it in the warm-up.

    Raises:
        ImportError: if exponax is not installed.
        ValueError: if a count or constant is out of range, or the grid does not resolve the modes.
        RuntimeError: if a solution does not stay finite.

    References:
        Chandler, Kerswell, "Invariant recurrent solutions embedded in a turbulent two-dimensional Kolmogorov flow"
        (2013); Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024), whose settings are the defaults.

    Example:
        >>> from jaxop import data
        >>> flow = data.kolmogorov_flow(1, nodes=32, times=3, warmup=2)
        >>> flow.states.shape, flow.domain.measure.round(2)
        ((1, 3, 1024, 1), Array(39.48, dtype=float32))
    """
    setting = Setting(
        "kolmogorov_flow", _KOLMOGOROV, samples, first, seed, nodes, 2, times, dt, substeps, warmup, order
    )
    if not 1 <= as_integer(forced_mode, "forced_mode") <= (nodes - 1) // 2:
        raise ValueError(
            f"forced_mode must lie between 1 and {(nodes - 1) // 2}, the waves that {nodes} nodes resolve, got "
            f"{forced_mode}."
        )
    constants = {"viscosity": viscosity, "forcing": forcing, "drag": drag}
    initial = fourier_series(setting, modes=modes)
    return setting.trajectories(_kolmogorov, initial, constants, length=length, forced_mode=forced_mode)


def navier_stokes(
    samples: int,
    *,
    nodes: int = 64,
    times: int = 51,
    dt: float = 1.0,
    seed: int = 0,
    first: int = 0,
    viscosity: Constant = 1e-3,
    forcing: Constant = 0.1,
    variance: float = 7**1.5,
    substeps: int = 50,
    order: int = 4,
) -> Trajectories:
    """Navier–Stokes ω_t + v·∇ω = ν Δω + γ (sin 2π(x₁ + x₂) + cos 2π(x₁ + x₂)), ω = curl v, on the unit torus.

    The initial vorticity is Gaussian with mean 0 and covariance σ² (−Δ + 49)^(−5/2), σ² = 7^(3/2), as Li et al. print
    it. Their published program draws it with σ² = 2·7³, a deviation 6.1 times as large: set ``variance`` to compare
    with data that it made. The field depends only on (seed, sample number), so that all grids sample the same
    functions; its Fourier modes with max |k_j| > 31, less than one percent of it, are left out.

    Li et al. record each unit of time up to 50 for ν = 1e-3, 30 for 1e-4 and 20 for 1e-5, on 256² nodes, of which they
    keep 64²; `resample` does that. Below ν = 1e-4, 64² nodes do not resolve the flow. With 50 substeps of order 4 the
    relative error in time is below 1e-6 after ten units, for ν ≥ 1e-5 and up to 256² nodes.

    Args:
        samples: N.
        nodes: n along each axis, of a periodic grid.
        times: T, the recorded times 0, dt, …, (T − 1) dt.
        dt: time between them.
        seed: non-negative integer.
        first: number of the first sample; sets with disjoint numbers are independent.
        viscosity: ν, one number, or a range from which every trajectory draws its own, uniformly in log ν.
        forcing: γ, likewise.
        variance: σ².
        substeps: time steps of the solver in each dt.
        order: of the exponential Runge–Kutta method, 1 to 4.

    Returns:
        `Trajectories` with the vorticity, (N, T, n², 1), in JAX's default floating dtype, computed in float64, and the
        parameters "viscosity" and "forcing" if they vary. No units. Cost: O(N T substeps n² log n).

    Raises:
        ImportError: if exponax is not installed.
        ValueError: if a count or constant is out of range, or the grid has fewer than 63 nodes along each axis.
        RuntimeError: if a solution does not stay finite.

    Reference:
        Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations" (2021).

    Example:
        >>> from jaxop import data
        >>> flow = data.navier_stokes(2, times=3, dt=0.1, substeps=5, viscosity=(1e-5, 1e-3))
        >>> flow.states.shape, flow.parameter_names
        ((2, 3, 4096, 1), ('viscosity',))
    """
    setting = Setting("navier_stokes", _NAVIER_STOKES, samples, first, seed, nodes, 2, times, dt, substeps, 0, order)
    if not 0 < as_number(variance, "variance") < math.inf:
        raise ValueError(f"variance must be positive and finite, got {variance}.")
    initial = gaussian_torus(setting, modes=_FIELD_MODES, variance=lambda k: variance * (k + 49) ** -2.5)
    constants = {"viscosity": viscosity, "forcing": forcing}
    return setting.trajectories(_navier_stokes, initial, constants, length=1.0)


def _bumps(setting: Setting) -> np.ndarray:
    """Returns 1 − g and g' on the grid, (N, 2, n, n)."""
    x = np.arange(setting.nodes) / setting.nodes
    result = []
    for number in setting.numbers:
        draw = setting.draw(number)
        centre, variance = draw.uniform(*_CENTRES, (2, 2, 1)), draw.uniform(*_VARIANCES, (2, 2, 1))
        along = np.exp(-((x - centre) ** 2) / (2 * variance))  # (channel, axis, n)
        g, h = along[:, 0, :, None] * along[:, 1, None, :]
        result.append(np.stack([1 - g, h]))
    return np.stack(result)


def _gray_scott(
    exponax: Any, nodes: int, dt: Array, order: int, constants: Mapping[str, Array]
) -> Callable[[Array], Array]:
    return exponax.stepper.reaction.GrayScott(
        2,
        constants["length"],
        nodes,
        dt,
        diffusivity_1=constants["diffusion_u"],
        diffusivity_2=constants["diffusion_v"],
        feed_rate=constants["feed"],
        kill_rate=constants["kill"],
        order=order,
    ).step_fourier


def _kolmogorov(
    exponax: Any, nodes: int, dt: Array, order: int, constants: Mapping[str, Array]
) -> Callable[[Array], Array]:
    return exponax.stepper.KolmogorovFlowVorticity(
        2,
        constants["length"],
        nodes,
        dt,
        diffusivity=constants["viscosity"],
        drag=-constants["drag"],
        injection_mode=constants["forced_mode"],
        injection_scale=constants["forcing"],
        order=order,
    ).step_fourier


def _navier_stokes(
    exponax: Any, nodes: int, dt: Array, order: int, constants: Mapping[str, Array]
) -> Callable[[Array], Array]:
    derivative = exponax.spectral.build_derivative_operator(2, 1.0, nodes)
    # exponax advects by −v for ω = curl v
    convection = exponax.nonlin_fun.VorticityConvection2d(
        2, nodes, convection_scale=-1.0, derivative_operator=derivative, dealiasing_fraction=2 / 3
    )
    x = jnp.arange(nodes) / nodes
    phase = 2 * jnp.pi * (x[:, None] + x[None, :])
    force = constants["forcing"] * jnp.fft.rfftn(jnp.sin(phase) + jnp.cos(phase))[None]
    diffusion = constants["viscosity"] * exponax.spectral.build_laplace_operator(derivative)
    method = getattr(exponax.etdrk, f"ETDRK{order}")
    return method(dt, diffusion, lambda modes: convection(modes) + force).step_fourier
