"""Simulation of a flow over many steps, with a diagnosis if it blows up."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxop._validation import first_index, is_concrete, is_integer
from jaxop._varying import varying_like
from jaxop.flows.integrators import check_step, step
from jaxop.flows.system import Damping, Method, State, System


class Trajectory(NamedTuple):
    """A flow at some times, which include the start.

    Attributes:
        time: t, (k + 1,).
        position: x, (k + 1, …).
        velocity: y, (k + 1, …).
        state: the last state, from which a simulation can continue.
    """

    time: Float[Array, " k"]
    position: Array
    velocity: Array
    state: State


def simulate(
    method: Method,
    system: System,
    state: State,
    schedule: Damping,
    dt: ArrayLike | tuple[ArrayLike, ArrayLike],
    steps: int,
    *,
    every: int = 1,
) -> Trajectory:
    """Makes ``steps`` steps from a state in one scan.

    Args:
        method: the integrator, see `step`.
        system: the rates.
        state: a state from `start`.
        schedule: the damping.
        dt: length of a step.
        steps: number of steps, a multiple of ``every``.
        every: number of steps between the states that are kept.

    Returns:
        The trajectory, with steps/every + 1 entries.

    Raises:
        TypeError: if numbers of steps are not integers, or for the reasons of `step`.
        ValueError: if ``steps`` is not a multiple of ``every``, or for the reasons of `step`.
        FloatingPointError: if the flow blows up; the message names the first step, time and particle that are not
            finite. Inside `jit` there is no error: the trajectory then stays at the last finite state and does not
            have a derivative.

    Cost: that of the steps, and memory for the kept states. Compiles once for each pair of objects ``system`` and
        ``method``.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> system = flows.linear_flow(bilinear=jnp.eye(1), hessian=jnp.eye(1))  # one particle: ẋ = x³
        >>> state = flows.start(flows.Euler(), jnp.ones((1, 1)), time=0.0)
        >>> flows.simulate(flows.Euler(), system, state, flows.Damping(), 1e-2, 100)
        Traceback (most recent call last):
            ...
        FloatingPointError: the flow blew up in step ... particle 0 is not finite ...
    """
    _, h_y = check_step(method, system, state, schedule, dt)
    if is_concrete(state.position, state.velocity):
        for name in ("position", "velocity"):
            bad = ~np.isfinite(np.asarray(getattr(state, name)))
            if bad.any():
                raise ValueError(f"{name} must be finite at the start, but {name}[{first_index(bad)}] is not.")
    for name, count in (("steps", steps), ("every", every)):
        if not is_integer(count):
            raise TypeError(f"{name} must be a positive integer, got {count!r}; dt comes first, then steps.")
    steps, every = int(steps), int(every)
    if steps < 1 or every < 1 or steps % every:
        raise ValueError(f"steps must be a positive multiple of every = {every}, got {steps}.")
    final, failed, kept = _run(method, system, state, schedule, dt, steps=steps, every=every)
    if is_concrete(failed) and int(failed[0]) >= 0:
        number, index = (int(i) for i in failed)
        begin = float(final.time)
        span = float(h_y)
        raise FloatingPointError(
            f"the flow blew up in step {number + 1} (from t = {begin:.6g} to {begin + span:.6g}): particle {index} is "
            f"not finite any more. Its energy may be unbounded below; take a smaller dt than {span:g}, more damping, "
            "or stop earlier."
        )
    time, position, velocity = (
        jnp.concatenate([jnp.asarray(first)[None], rest])
        for first, rest in zip((state.time, state.position, state.velocity), kept, strict=True)
    )
    return Trajectory(time, position, velocity, final)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("steps", "every"))
def _run(
    method: Method,
    system: System,
    state: State,
    schedule: Damping,
    dt: ArrayLike | tuple[ArrayLike, ArrayLike],
    *,
    steps: int,
    every: int,
) -> tuple[State, Array, tuple[Array, Array, Array]]:
    """Returns the last finite state, (step, particle) of the first failure or (−1, −1), and the kept states."""

    def advance(carry: tuple[State, Array], number: Array):
        state, failed = carry
        new = step(method, system, state, schedule, dt)
        finite = jnp.isfinite(new.position) & jnp.isfinite(new.velocity)
        particle = jnp.argmin(jnp.all(finite.reshape(finite.shape[0] if finite.ndim else 1, -1), axis=1))
        alive = jnp.all(finite) & (failed[0] < 0)
        here = jnp.where(failed[0] < 0, jnp.stack([number, particle.astype(number.dtype)]), failed)
        state = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, state)
        return (state, jnp.where(alive, failed, here)), None

    def block(carry: tuple[State, Array], start: Array):
        carry = jax.lax.scan(advance, carry, start + jnp.arange(every, dtype=np.int32))[0]
        state = carry[0]
        return carry, (state.time, state.position, state.velocity)

    begin = state, jnp.full(2, -1, np.int32)
    begin = varying_like(begin, jax.eval_shape(advance, begin, jax.ShapeDtypeStruct((), np.int32)))
    (final, failed), kept = jax.lax.scan(block, begin, jnp.arange(0, steps, every, dtype=np.int32))
    return final, failed, kept
