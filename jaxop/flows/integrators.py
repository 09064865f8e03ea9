"""Six integrators of damped systems, all called by `step`."""

import dataclasses
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxop._validation import accumulator, is_concrete, is_numeric
from jaxop.flows.checks import check_number
from jaxop.flows.system import Damping, Method, State, System, evaluate, rates_of

Length: TypeAlias = float | np.ndarray | Array
"""Length of a step."""


def displace(state: State, position: Array, velocity: Array) -> State:
    """Returns the state with x and y displaced between two steps; copies in the history are displaced too.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> state = flows.start(flows.TaoDoubling(), jnp.zeros(1))
        >>> print(flows.displace(state, jnp.ones(1), jnp.ones(1)).history.position)
        [1.]
    """
    state = state._replace(position=state.position + position, velocity=state.velocity + velocity)
    if isinstance(state.history, Copy):
        copy = state.history
        return state._replace(history=Copy(copy.position + position, copy.velocity + velocity))
    return state


def step(
    method: Method, system: System, state: State, schedule: Damping, dt: ArrayLike | tuple[ArrayLike, ArrayLike]
) -> State:
    """One step of ẋ = drift, ẏ = −α(t) y + force; works in scans and jit, because the state holds all memory.

    Args:
        method: `Euler`, `KickDampDrift`, `ExponentialEuler`, `AdamsBashforth2`, `LawsonAdamsBashforth2` or
            `TaoDoubling`. `TaoDoubling` evaluates the rates four times, all others once.
        system: the rates.
        state: a state from `start` with the same method, or from a previous step.
        schedule: the damping α(t).
        dt: length of the step, or a pair (h_x, h_y), in which x moves by h_x ẋ while y and the time move by h_y.

    Returns:
        The state at t + dt, in the dtypes of ``state``; computed in float32 or wider.

    Raises:
        ValueError: if the step is not positive and finite (unless it is traced).
        TypeError: if the method or the schedule has another type, or the state was started with another method.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxop import flows
        >>> system = flows.System(lambda state, t: (lambda y: y, -state.position))
        >>> method, schedule = flows.ExponentialEuler(), flows.Damping(logarithmic=3.0)
        >>> state = flows.start(method, jnp.ones(2))
        >>> advance = lambda state, _: (flows.step(method, system, state, schedule, 0.05), None)
        >>> print(jax.lax.scan(advance, state, length=200)[0].time.round(2))
        11.0
    """
    h_x, h_y = check_step(method, system, state, schedule, dt)
    if jax.tree.structure(state.history) != jax.tree.structure(method.history(state)):
        raise TypeError(f"state was started with another method; use flows.start({method!r}, ...).")
    dtype = accumulator(state.position.dtype)
    ratio = 1 if h_x is h_y else jnp.asarray(h_x, dtype) / jnp.asarray(h_y, dtype)
    wide = jax.tree.map(lambda leaf: leaf.astype(accumulator(leaf.dtype)), state)
    new = method.advance(system, wide, schedule, jnp.asarray(h_y, dtype), ratio)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), new, state)


def check_step(method: object, system: object, state: object, schedule: object, dt: object) -> tuple[Length, Length]:
    """Returns (h_x, h_y); checks the arguments of a step, and values that are not traced."""
    if isinstance(method, type) or not hasattr(method, "advance"):
        names = ", ".join(f"flows.{kind.__name__}()" for kind in METHODS.values())
        raise TypeError(f"method must be one of {names}, got {method!r}.")
    if not isinstance(system, System):
        raise TypeError(f"system must be a flows.System(rates), got {type(system).__name__}; see flows.first_order.")
    if not isinstance(state, State):
        raise TypeError(f"state must come from flows.start(method, position), got {type(state).__name__}.")
    if not isinstance(schedule, Damping):
        raise TypeError(f"schedule must be a flows.Damping(...), got {schedule!r}; flows.Damping() does not damp.")
    pair = tuple(dt) if isinstance(dt, tuple | list) else (dt, dt)
    if len(pair) != 2:
        raise ValueError(f"dt must be a number or a pair (h_x, h_y), got {len(pair)} entries.")
    lengths: list[Length] = []
    for name, h in zip(("h_x", "h_y"), pair, strict=True):
        if not is_numeric(h):
            raise TypeError(f"dt must be a positive number or a pair of such numbers, got {name} = {h!r}.")
        if is_concrete(h) and not (np.ndim(h) == 0 and np.isfinite(h) and h > 0):
            raise ValueError(f"dt must be positive and finite, or a pair of such numbers, got {name} = {h}.")
        lengths.append(h)
    if is_concrete(schedule.logarithmic, state.time) and schedule.logarithmic > 0 and not state.time > 0:
        raise ValueError(
            f"logarithmic damping c/t needs t > 0, got t = {float(state.time):g}; give flows.start(..., time=1.0)."
        )
    return lengths[0], lengths[1]


def _decay(schedule: Damping, state: State, dt: ArrayLike) -> Array:
    return jnp.asarray(schedule.between(state.time, dt), accumulator(state.position.dtype))


@dataclasses.dataclass(frozen=True)
class Euler:
    """X ← X + h ẋ, Y ← Y + h (G − α(t) Y), with all rates at the old state; order 1."""

    def history(self, state: State) -> None:
        """Returns None."""

    def advance(self, system: System, state: State, schedule: Damping, dt: Array, ratio: ArrayLike) -> State:
        """See `step`."""
        drift, force = evaluate(system, state)
        alpha = jnp.asarray(schedule.rate(state.time), dt.dtype)
        return State(
            state.position + ratio * dt * drift,
            state.velocity + dt * (force - alpha * state.velocity),
            state.time + dt,
        )


@dataclasses.dataclass(frozen=True)
class KickDampDrift:
    """Y ← σ (Y + h G(X, Y)), σ = e^{−Δη}, then X ← X + h ẋ(X, new Y); order 1, conformally symplectic Euler.

    On a separable system its Jacobian J satisfies Jᵀ Ω J = σ Ω, so that phase-space area shrinks like that of the flow.
    """

    def history(self, state: State) -> None:
        """Returns None."""

    def advance(self, system: System, state: State, schedule: Damping, dt: Array, ratio: ArrayLike) -> State:
        """See `step`."""
        drift, force = rates_of(system, state)
        velocity = jnp.exp(-_decay(schedule, state, dt)) * (state.velocity + dt * force)
        moved = system.drift(drift, state, velocity)
        return State(state.position + ratio * dt * moved, velocity, state.time + dt)


@dataclasses.dataclass(frozen=True)
class ExponentialEuler:
    """Y ← σ Y + ((1 − σ)/ᾱ) G, ᾱ = Δη/h: exact damping, constant force; X moves with the old Y; order 1."""

    def history(self, state: State) -> None:
        """Returns None."""

    def advance(self, system: System, state: State, schedule: Damping, dt: Array, ratio: ArrayLike) -> State:
        """See `step`."""
        drift, force = evaluate(system, state)
        eta = _decay(schedule, state, dt)
        # (1 − e^{−η})/η; its derivative cancels near 0
        small = eta < _SERIES
        series = 1 - eta / 2 * (1 - eta / 3 * (1 - eta / 4 * (1 - eta / 5 * (1 - eta / 6 * (1 - eta / 7)))))
        average = jnp.where(small, series, -jnp.expm1(-eta) / jnp.where(small, 1, eta))
        return State(
            state.position + ratio * dt * drift,
            jnp.exp(-eta) * state.velocity + dt * average * force,
            state.time + dt,
        )


_SERIES = 0.05
"""Damping of a step below which (1 − e^{−η})/η is summed as a series."""


class Rates(NamedTuple):
    """Damped rates of the previous step, and its length, which is 0 before the first step."""

    position: Array
    velocity: Array
    dt: Array


class Forces(NamedTuple):
    """Undamped rates of the previous step, its length and its damping η, which are 0 before the first step."""

    position: Array
    velocity: Array
    dt: Array
    eta: Array


class Copy(NamedTuple):
    """A second copy of position and velocity."""

    position: Array
    velocity: Array


@dataclasses.dataclass(frozen=True)
class AdamsBashforth2:
    """Z ← Z + h ((1 + r/2) R_n − (r/2) R_{n−1}), R = (ẋ, G − α Y), r = h / previous h; order 2, first step by Euler."""

    def history(self, state: State) -> Rates:
        """Returns rates of a previous step of length 0."""
        return Rates(jnp.zeros_like(state.position), jnp.zeros_like(state.velocity), jnp.zeros_like(state.time))

    def advance(self, system: System, state: State, schedule: Damping, dt: Array, ratio: ArrayLike) -> State:
        """See `step`."""
        drift, force = evaluate(system, state)
        damped = force - jnp.asarray(schedule.rate(state.time), dt.dtype) * state.velocity
        half = _half_ratio(state, dt)
        return State(
            state.position + ratio * dt * ((1 + half) * drift - half * state.history.position),
            state.velocity + dt * ((1 + half) * damped - half * state.history.velocity),
            state.time + dt,
            Rates(drift, damped, dt),
        )


@dataclasses.dataclass(frozen=True)
class LawsonAdamsBashforth2:
    """`AdamsBashforth2` on e^η Y, which integrates the damping exactly (integrating factor); order 2."""

    def history(self, state: State) -> Forces:
        """Returns rates of a previous step of length 0."""
        zero = jnp.zeros_like(state.time)
        return Forces(jnp.zeros_like(state.position), jnp.zeros_like(state.velocity), zero, zero)

    def advance(self, system: System, state: State, schedule: Damping, dt: Array, ratio: ArrayLike) -> State:
        """See `step`."""
        drift, force = evaluate(system, state)
        half, eta, former = _half_ratio(state, dt), _decay(schedule, state, dt), state.history
        since = eta + former.eta
        return State(
            state.position + ratio * dt * ((1 + half) * drift - half * former.position),
            jnp.exp(-eta) * (state.velocity + dt * (1 + half) * force) - dt * half * jnp.exp(-since) * former.velocity,
            state.time + dt,
            Forces(drift, force, dt, eta),
        )


def _half_ratio(state: State, dt: Array) -> Array:
    # lengths instead of differences of times, which carry the rounding of the time
    former = state.history.dt
    return jnp.where(former > 0, dt / jnp.where(former > 0, former, 1), 0) / 2


@dataclasses.dataclass(frozen=True)
class TaoDoubling:
    """A^{h/2} B^{h/2} C_{2ξh} B^{h/2} A^{h/2} on two copies of phase space; order 2.

    A moves (x, ỹ) with the rates at (x̃, y), B moves (x̃, y) with the rates at (x, ỹ), and C rotates the differences of
    the copies by the angle 2 ξ h. The damping acts for half a step before and half a step after.
    Without damping and with the rates of any Hamiltonian, separable or not, it is symplectic.

    Attributes:
        coupling: ξ, the strength of the coupling of the copies, in units of one over time.

    Source: Tao, "Explicit symplectic approximation of nonseparable Hamiltonians", arXiv:1609.02212.
    """

    coupling: float = 1.0

    def __post_init__(self):
        check_number(self.coupling, "coupling")
        if not (np.isfinite(self.coupling) and self.coupling >= 0):
            raise ValueError(f"coupling must be finite and at least 0, got {self.coupling}.")

    def history(self, state: State) -> Copy:
        """Returns a second copy of position and velocity."""
        return Copy(state.position, state.velocity)

    def advance(self, system: System, state: State, schedule: Damping, dt: Array, ratio: ArrayLike) -> State:
        """See `step`."""
        middle = state.time + dt / 2
        before = jnp.exp(-_decay(schedule, state, dt / 2))
        after = jnp.exp(-_decay(schedule, state._replace(time=middle), dt / 2))

        def half(x: Array, y: Array, at_x: Array, at_y: Array) -> tuple[Array, Array]:
            drift, force = evaluate(system, State(at_x, at_y, middle))
            return x + ratio * dt / 2 * drift, y + dt / 2 * force

        x, y = state.position, before * state.velocity
        x2, y2 = state.history.position, before * state.history.velocity
        x, y2 = half(x, y2, x2, y)
        x2, y = half(x2, y, x, y2)
        angle = 2 * self.coupling * dt
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        mean_x, mean_y, apart_x, apart_y = (x + x2) / 2, (y + y2) / 2, (x - x2) / 2, (y - y2) / 2
        turned_x, turned_y = cosine * apart_x + sine * apart_y, cosine * apart_y - sine * apart_x
        x, x2, y, y2 = mean_x + turned_x, mean_x - turned_x, mean_y + turned_y, mean_y - turned_y
        x2, y = half(x2, y, x, y2)
        x, y2 = half(x, y2, x2, y)
        return State(x, after * y, state.time + dt, Copy(x2, after * y2))


METHODS: dict[str, type] = {
    "euler": Euler,
    "kick_damp_drift": KickDampDrift,
    "exponential_euler": ExponentialEuler,
    "ab2": AdamsBashforth2,
    "lawson_ab2": LawsonAdamsBashforth2,
    "tao": TaoDoubling,
}
"""The integrators by name."""
