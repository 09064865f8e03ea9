"""Damped flows: a system of rates, its state, and the damping of its velocity."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxop._pytree import register
from jaxop._validation import accumulator, as_float, is_concrete
from jaxop.flows.checks import check_number

Drift = Array | Callable[[Array], Array]
"""ẋ, or the function y ↦ ẋ at a fixed position."""


class State(NamedTuple):
    """The state of a flow.

    Attributes:
        position: x, any shape; for particles (n, d).
        velocity: y, of the same shape: the velocity or the momentum, depending on the system.
        time: t.
        history: data of earlier steps that the method needs, made by `start`.
    """

    position: Array
    velocity: Array
    time: Float[Array, ""]
    history: PyTree = None


@dataclasses.dataclass(frozen=True)
class System:
    """ẋ = drift(x, y, t), ẏ = −α(t) y + force(x, y, t), with one function that evaluates both.

    Attributes:
        rates: ``rates(state, t)`` returns ``(drift, force)`` without the damping, which `step` adds. The drift is ẋ as
            an array or, better, the function y ↦ ẋ at the position of the state. A method that moves x with the new y
            then needs no second evaluation.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> oscillator = flows.System(lambda state, t: (lambda y: y, -state.position))
        >>> state = flows.start(flows.KickDampDrift(), jnp.ones(1))
        >>> for _ in range(100):
        ...     state = flows.step(flows.KickDampDrift(), oscillator, state, flows.Damping(), 0.01)
        >>> print(f"{state.position[0]:.2f}")  # cos(1)
        0.54
    """

    rates: Callable[[State, Array], tuple[Drift, Array]]

    def drift(self, drift: Drift, state: State, velocity: Array) -> Array:
        """Returns ẋ at the position and time of the state for another velocity, from the drift of its rates."""
        if callable(drift):
            return drift(velocity)
        return evaluate(self, state._replace(velocity=velocity))[0]


def first_order(velocity: Callable[[Array], Array]) -> System:
    """The system ẋ = velocity(x), which does not use y.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> euler, system = flows.Euler(), flows.first_order(jnp.negative)
        >>> print(flows.step(euler, system, flows.start(euler, jnp.ones(1)), flows.Damping(), 0.1).position)
        [0.9]
    """

    def rates(state: State, t: Array):
        del t
        rate = velocity(state.position)
        return (lambda _: rate), jnp.zeros_like(state.velocity)

    return System(rates)


def second_order(acceleration: Callable[[Array, Array], Array]) -> System:
    """The system ẋ = u, u̇ = acceleration(x, u), undamped.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> euler = flows.Euler()
        >>> system = flows.second_order(lambda x, u: -x)
        >>> print(flows.step(euler, system, flows.start(euler, jnp.ones(1)), flows.Damping(), 0.1).velocity)
        [-0.1]
    """
    return System(lambda state, t: ((lambda u: u), acceleration(state.position, state.velocity)))


def evaluate(system: System, state: State) -> tuple[Array, Array]:
    """Returns ẋ and the undamped ẏ of a state, both as arrays."""
    drift, force = rates_of(system, state)
    return (drift(state.velocity) if callable(drift) else drift), force


def rates_of(system: System, state: State) -> tuple[Drift, Array]:
    """Returns the rates of a system; raises ``TypeError`` if they are not a pair."""
    rates: object = system.rates(state, state.time)
    if not isinstance(rates, tuple) or len(rates) != 2:
        raise TypeError(
            f"rates(state, t) must return (drift, force), ẋ and ẏ, got {type(rates).__name__}; for a first-order flow "
            "give (velocity, zeros)."
        )
    return rates


@register
@dataclasses.dataclass(frozen=True)
class Damping:
    """α(t) = c_log/t + c_lin, the rate at which velocity is lost; η = ∫ α = c_log log t + c_lin t.

    ``Damping()`` does not damp, ``Damping(logarithmic=3)`` is Nesterov's 3/t, ``Damping(linear=a)`` is a constant rate.

    Attributes:
        logarithmic: c_log ≥ 0, a number; the flow then starts at t > 0.
        linear: c_lin ≥ 0, in units of one over time.

    Raises:
        ValueError: if a coefficient is negative or not finite.

    Source: Su, Boyd, Candès, arXiv:1503.01243; Stein, Li, Steidl, "SympFormer", arXiv:2603.16535.

    Example:
        >>> from jaxop import flows
        >>> print(flows.Damping(logarithmic=3.0).rate(2.0))
        1.5
    """

    logarithmic: float | Array = 0.0
    linear: float | Array = 0.0

    def __post_init__(self):
        for name in ("logarithmic", "linear"):
            value = getattr(self, name)
            check_number(value, name)
            if is_concrete(value) and not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {value}; a negative damping adds energy.")

    def rate(self, time: ArrayLike) -> Array:
        """α(t)."""
        return self.logarithmic / self._clock(time) + self.linear

    def between(self, time: ArrayLike, dt: ArrayLike) -> Array:
        """η(t + dt) − η(t); a velocity without force shrinks by the factor exp(−(η(t + dt) − η(t)))."""
        return self.logarithmic * jnp.log1p(dt / self._clock(time)) + self.linear * dt

    def _clock(self, time: ArrayLike) -> Array:
        # without the logarithmic part a flow may start at t = 0
        return jnp.where(jnp.logical_and(self.logarithmic == 0, time == 0), 1, time)


@runtime_checkable
class Method(Protocol):
    """Base protocol of the integrators, which advance a state."""

    def history(self, state: State) -> PyTree:
        """Returns the history at the start."""
        ...

    def advance(self, system: System, state: State, schedule: Damping, dt: Array, ratio: ArrayLike) -> State:
        """Returns the state after ``dt``, in which x moves by ``ratio · dt``."""
        ...


def start(method: Method, position: Array, velocity: Array | None = None, *, time: float | Array = 1.0) -> State:
    """Returns the initial state of `step`.

    Args:
        method: the integrator, which makes its own history.
        position: x, any shape.
        velocity: y, of the same shape; None means 0.
        time: t; it must be positive if the damping is logarithmic.

    Raises:
        ValueError: if the velocity has another shape.
        TypeError: if the method is not one of `jaxop.flows`, or the time is not one number.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> flows.start(flows.Euler(), jnp.ones((4, 2))).velocity.shape
        (4, 2)
    """
    if isinstance(method, type) or not hasattr(method, "history"):
        raise TypeError(f"method must be an integrator such as flows.KickDampDrift(), got {method!r}.")
    position = as_float(position, "position")
    velocity = jnp.zeros_like(position) if velocity is None else as_float(velocity, "velocity")
    if velocity.shape != position.shape:
        raise ValueError(f"velocity must have the shape of position, {position.shape}, got {velocity.shape}.")
    check_number(time, "time")
    time = jnp.asarray(time, accumulator(position.dtype))
    state = State(position, velocity.astype(position.dtype), time)
    return state._replace(history=method.history(state))
