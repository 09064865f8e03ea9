"""What equations on periodic grids share: random initial states, drawn constants, and integration in time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop import domains
from jaxop._validation import as_integer, as_number, float_dtype, require
from jaxop.data._support import check_numbers, double_precision, generator
from jaxop.data.trajectories import Trajectories

Constant: TypeAlias = float | tuple[float, float]
"""A constant of an equation: one number, or the ends of the range from which every trajectory draws its own."""

Scheme: TypeAlias = Callable[[Any, int, Array, int, Mapping[str, Array]], Callable[[Array], Array]]
"""(exponax, nodes along each axis, time step, order, constants) ↦ one time step of Fourier coefficients (c, *modes)."""

_DRAWS = 1  # the part of a sample's random numbers that its constants are drawn from
_FINEST = 32  # nodes per mode of the grid on which the largest value is sought


@dataclasses.dataclass(frozen=True)
class Setting:
    """The arguments that all problems on periodic grids share, checked when it is built.

    Attributes:
        problem: name of the problem in messages.
        stream: its stream of random numbers.
        samples: N.
        first: number of the first sample.
        seed: non-negative integer.
        nodes: along each axis.
        dim: number of axes.
        times: T, recorded times.
        dt: between recorded times.
        substeps: time steps of the solver between recorded times.
        warmup: recorded steps before time 0.
        order: of the exponential Runge–Kutta method.
    """

    problem: str
    stream: int
    samples: int
    first: int
    seed: int
    nodes: int
    dim: int
    times: int
    dt: float
    substeps: int = 1
    warmup: int = 0
    order: int = 2

    def __post_init__(self):
        check_numbers(self.samples, self.first)
        for name, least in (("nodes", 4), ("times", 2), ("substeps", 1), ("warmup", 0), ("order", 1)):
            if (value := as_integer(getattr(self, name), name)) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        if self.order > 4:
            raise ValueError(f"order must be 1, 2, 3 or 4, got {self.order}.")
        if not 0 < as_number(self.dt, "dt") < np.inf:
            raise ValueError(f"dt must be positive and finite, got {self.dt}.")

    @property
    def numbers(self) -> range:
        """Numbers of the samples."""
        return range(self.first, self.first + self.samples)

    def draw(self, number: int, *part: int) -> np.random.Generator:
        """Returns the random numbers of a sample, which depend on the seed and its number only."""
        return generator(self.seed, self.stream, number, *part)

    def trajectories(
        self,
        scheme: Scheme,
        initial: Float[np.ndarray, "N c *grid"],
        constants: Mapping[str, Constant],
        *,
        length: float,
        signed: tuple[str, ...] = (),
        **fixed: float,
    ) -> Trajectories:
        """Solves the equation of a scheme from given states at time −warmup·dt.

        Args:
            scheme: makes one step of the solver; a function of a module, so that it compiles once.
            initial: states in float64.
            constants: of the equation, by name.
            length: of the domain along each axis.
            signed: names of the constants that may be negative, which are drawn from a range uniformly. The others are
                drawn uniformly in their logarithm.
            fixed: further numbers that the scheme reads.

        Raises:
            ImportError: if exponax is not installed.
            ValueError: if a constant or the length is out of range.
            RuntimeError: if a solution does not stay finite.
        """
        fixed["length"] = _positive(length, "length")
        values, drawn = self._constants(constants, signed)
        exponax = require("exponax", f"the problem {self.problem}", extra="dynamics")
        solve = functools.partial(
            _solve,
            exponax=exponax,
            scheme=scheme,
            times=self.times,
            substeps=self.substeps,
            warmup=self.warmup,
            order=self.order,
            dtype=float_dtype(),
        )
        states = np.empty((self.samples, self.times, self.nodes**self.dim, initial.shape[1]), float_dtype())
        with double_precision():  # one sample at a time, so that none depends on how many there are
            for i, state in enumerate(initial):
                states[i] = solve(state, self.dt, {name: value[i] for name, value in values.items()} | fixed)
        times = self.dt * np.arange(self.times)
        self._check_finite(states, times)
        shape = (self.nodes,) * self.dim
        domain = domains.box(shape, upper=fixed["length"], rule="periodic")
        varying = np.stack([values[name] for name in drawn], axis=1) if drawn else None
        return Trajectories(states, domain, times, varying, drawn)

    def _constants(
        self, constants: Mapping[str, Constant], signed: tuple[str, ...]
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Returns the constants of every sample, (N,) each, and the names of those that are drawn."""
        uniform = np.stack([self.draw(number, _DRAWS).random(len(constants)) for number in self.numbers])
        values, drawn = {}, []
        for share, (name, given) in zip(uniform.T, constants.items(), strict=True):
            if not isinstance(given, tuple | list):
                number = as_number(given, name)
                if not np.isfinite(number) or (number < 0 and name not in signed):
                    raise ValueError(
                        f"{name} must be {'' if name in signed else 'non-negative and '}finite, got {given}."
                    )
                values[name] = np.full(self.samples, number)
                continue
            if len(given) != 2:
                raise ValueError(f"{name} must be one number or the two ends of a range, got {given!r}.")
            low, high = (as_number(end, name) if name in signed else _positive(end, name) for end in given)
            if not 0 < high - low < np.inf:
                raise ValueError(
                    f"the range {name}=({low}, {high}) must increase and be finite; give one number for a constant."
                )
            drawn.append(name)
            values[name] = low + share * (high - low) if name in signed else low * (high / low) ** share
        return values, tuple(drawn)

    def _check_finite(self, states: np.ndarray, times: np.ndarray) -> None:
        bad = ~np.isfinite(states).all(axis=(2, 3))
        if bad.any():
            i, j = (int(k) for k in np.argwhere(bad)[0])
            raise RuntimeError(
                f"the solution of sample {self.first + i} of {self.problem} is not finite from t = {times[j]:g} on: "
                f"the time step {self.dt:g}/{self.substeps} is too long; raise substeps."
            )


def fourier_series(setting: Setting, *, modes: int, channels: int = 1) -> Float[np.ndarray, "N c *grid"]:
    """Random sums Σ_{0 < max|k_j| ≤ K} ξ_k cos(k·x) + η_k sin(k·x), ξ, η ~ N(0, 1), divided by their largest value.

    The largest value is that of |u| on 32 K nodes along each axis, so that grids of all resolutions sample the same
    function.

    Args:
        setting: of the problem; ξ and η depend on its seed and the number of the sample only.
        modes: K.
        channels: c, each with its own sum.

    Returns:
        Values in float64. Cost: O((32 K)^dim K) per function.

    Raises:
        ValueError: if the grid does not resolve the modes.
    """
    _check_modes(setting, modes)
    result = []
    for number in setting.numbers:
        coefficients = _coefficients(setting.draw(number), (channels, *(2 * modes + 1,) * setting.dim))
        largest = np.abs(_sum(coefficients, setting.dim, _FINEST * modes)).max(axis=tuple(range(1, setting.dim + 1)))
        u = _sum(coefficients, setting.dim, setting.nodes)
        result.append(u / largest.reshape(-1, *(1,) * setting.dim))
    return np.stack(result)


def gaussian_torus(setting: Setting, *, modes: int, variance: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Gaussian fields Σ_{0 < max|k_j| ≤ K} λ_k^½ (ξ_k cos(2π k·x) + η_k sin(2π k·x)) on a torus of period 1.

    Their covariance operator has the eigenvalues λ_k, and the mean over the torus is 0.

    Args:
        setting: of the problem; ξ and η depend on its seed and the number of the sample only.
        modes: K.
        variance: λ as a function of 4π²|k|², the eigenvalues of −Δ.

    Returns:
        Values in float64, (N, 1, *grid).

    Raises:
        ValueError: if the grid does not resolve the modes.
    """
    _check_modes(setting, modes)
    k = np.arange(-modes, modes + 1)
    squares = np.sum(np.meshgrid(*[(2 * np.pi * k) ** 2] * setting.dim, indexing="ij"), axis=0)
    deviation = np.sqrt(variance(squares))
    shape = (1, *deviation.shape)
    return np.stack(
        [
            _sum(deviation * _coefficients(setting.draw(number), shape), setting.dim, setting.nodes)
            for number in setting.numbers
        ]
    )


def _check_modes(setting: Setting, modes: int) -> None:
    if as_integer(modes, "modes") < 1:
        raise ValueError(f"modes must be at least 1, got {modes}.")
    if setting.nodes < 2 * modes + 1:
        raise ValueError(
            f"nodes must be at least 2·modes + 1 = {2 * modes + 1} along each axis to resolve the initial states, got "
            f"{setting.nodes}."
        )


def _coefficients(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns complex Gaussian coefficients of k = −K, …, K along every axis but the first; the mean is 0."""
    real, imaginary = draw.standard_normal((2, *shape))
    coefficients = real + 1j * imaginary
    coefficients[:, *(n // 2 for n in shape[1:])] = 0
    return coefficients


def _sum(coefficients: np.ndarray, dim: int, nodes: int) -> np.ndarray:
    """Returns Re Σ_k c_k exp(2πi k·j/n) at the nodes j of a grid, (c, n, …, n)."""
    modes = coefficients.shape[-1] // 2
    waves = np.exp(2j * np.pi * np.outer(np.arange(-modes, modes + 1), np.arange(nodes)) / nodes)
    for _ in range(dim):  # each product moves the axis of its nodes to the end
        coefficients = np.tensordot(coefficients, waves, axes=(1, 0))
    return np.real(coefficients)


def _positive(value: object, name: str) -> float:
    number = as_number(value, name)
    if not 0 < number < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}.")
    return number


@functools.partial(jax.jit, static_argnames=("exponax", "scheme", "times", "substeps", "warmup", "order", "dtype"))
def _solve(
    state: Array,
    dt: Array,
    constants: Mapping[str, Array],
    *,
    exponax: Any,
    scheme: Scheme,
    times: int,
    substeps: int,
    warmup: int,
    order: int,
    dtype: np.dtype,
) -> Array:
    """Returns the recorded states of one trajectory, (T, n, c)."""
    channels, nodes, *_ = state.shape
    axes = tuple(range(1, state.ndim))
    step = exponax.repeat(scheme(exponax, nodes, dt / substeps, order, constants), substeps)

    def record(modes: Array) -> Array:
        u = jnp.fft.irfftn(modes, state.shape[1:], axes)
        return jnp.moveaxis(u, 0, -1).reshape(-1, channels).astype(dtype)

    def advance(modes: Array, _: None) -> tuple[Array, Array]:
        after = step(modes)
        return after, record(after)

    start = exponax.repeat(step, warmup)(jnp.fft.rfftn(state, axes=axes))
    _, later = jax.lax.scan(advance, start, length=times - 1)
    return jnp.concatenate([record(start)[None], later])
