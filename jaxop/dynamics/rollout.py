"""Rollout: a stepper applied again and again, in one loop on the device."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxop._pytree import register
from jaxop._validation import accumulator, as_float, check_size, check_type, divisors, float_dtype, is_concrete
from jaxop.domains import Decomposed, Domain
from jaxop.domains.domain import as_domain
from jaxop.dynamics._pure import PureStepper, Variables, as_pure
from jaxop.dynamics.stepper import Stepper, as_constants, check_dt, check_offsets


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
    """States along a rollout, for one initial state or for a batch of them; it is a pytree.

    Attributes:
        states: û at the times, shape (s, n, c) or (b, s, n, c). The initial state is not among them.
        times: time since the initial state of each entry of ``states``, shape (s,) or (b, s).
        is_finite: whether the state after each step is finite on all nodes of positive weight, shape (steps,) or
            (b, steps).
        step_times: time since the initial state after each step, shape (steps,) or (b, steps).
        channel: first channel with a value that is not finite, at the first step that has one, shape () or (b,); −1 if
            all values are finite.
    """

    states: Float[Array, "*b s n c"]
    times: Float[Array, "*b s"]
    is_finite: Bool[Array, "*b t"]
    step_times: Float[Array, "*b t"]
    channel: Int[Array, "*b"]


class BlowUpError(FloatingPointError):
    """A rollout has a state that is not finite.

    Attributes:
        step: the number of the first such step of any sample, counted from 1.
        time: the time after this step.
        sample: number of the sample, 0 if the rollout is not a batch.
        channel: the first channel with such a value.
        before: the entries of the rollout before this step.
    """

    def __init__(self, step: int, time: float, sample: int, channel: int, count: int, before: Rollout):
        self.step, self.time, self.sample, self.channel, self.before = step, time, sample, channel, before
        self._count = count
        others = "" if count == 1 else f", and {count} samples in all do not stay finite"
        super().__init__(
            f"the rollout is not finite from step {step} on, at time {time:g}, in channel {channel} of sample "
            f"{sample}{others}. The states before are in the attribute `before` of this error. Train with noise or "
            "on several steps (dynamics.UnrolledLoss), or take smaller steps."
        )

    def __reduce__(self):  # that of exceptions passes the message alone
        return type(self), (self.step, self.time, self.sample, self.channel, self._count, self.before)


def rollout(
    stepper: Callable[..., Array],
    u0: Float[Array | np.ndarray, "n c"] | Float[Array | np.ndarray, "h n c"] | Float[Array | np.ndarray, "b h n c"],
    steps: int,
    *,
    domain: Domain | Decomposed,
    dt: ArrayLike | None = None,
    every: int = 1,
    offsets: ArrayLike | None = None,
    parameters: ArrayLike | None = None,
) -> Rollout:
    """û(t_{j+1}) = S(û(t_j), û(t_{j−1}), …; Δt_j) for j = 0, …, steps − 1, from a given u0, for a stepper S.

    One `jax.lax.scan` with the last H states as its carry, in float32 or wider also if the network of S computes in
    half precision. The call compiles once for each stepper, shape and number of steps. It works inside `jax.jit`,
    `jax.vmap` and `jax.grad`. A module runs in evaluation mode and is left as it was.

    Args:
        stepper: a `Stepper`, or any function or module with its signature: ``stepper(states, domain, *, dt, offsets,
            parameters)``. A function is compiled once for each object, so pass the same one; as in `jax.jit`, arrays
            that it captures keep the values of the first call. Use a module for weights that change.
        u0: the initial state (n, c), or the last H states (h, n, c), oldest first, or a batch of those, (b, h, n, c).
        steps: number of steps.
        domain: the domain of the states; for a batch, one or a stack with one for each sample. Outside `jax.jit`, it
            is prepared for the operator of a `Stepper`, see `StepperConfig.prepare`.
        dt: the time of a step: one number for all steps, or one for each, shape (steps,), or one for each sample and
            step, (b, steps). None takes the stepper's own Δt₀; for other steppers, time then counts steps, and they
            get ``dt=None``. A step on which a `Stepper` was not trained is allowed, and a warning says so outside
            `jax.jit`.
        every: the states after ``every``, 2 ``every``, … steps are returned. It divides ``steps``.
        offsets: how long before the start each earlier state of u0 was, oldest first, shape (h − 1,) or (b, h − 1).
            None means multiples of the first Δt.
        parameters: constants of the trajectories, shape (p,) or (b, p).

    Returns:
        A `Rollout` with steps/every states. A state that is not finite does not stop it; see `check_finite`.

    Raises:
        TypeError: if ``stepper`` cannot be called or hashed, or a number is not an integer.
        ValueError: if ``every`` does not divide ``steps``, shapes do not fit each other or the stepper, offsets are not
            positive and decreasing, or a value of u0 is not finite at a node of positive weight.

    Cost: ``steps`` calls of the stepper. The memory is that of one call and the states that are returned, whatever
        the number of steps, plus 5 bytes for each step. A gradient makes one more forward pass and keeps H states for
        each step.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> def halve(states, domain, **options):
        ...     return states[..., -1, :, :] / 2
        >>> found = dynamics.rollout(halve, jnp.ones((8, 1)), 4, domain=domains.interval(8), dt=0.5, every=2)
        >>> found.states[:, 0, 0].tolist(), found.times.tolist(), found.is_finite.tolist()
        ([0.25, 0.0625], [1.0, 2.0], [True, True, True, True])
    """
    check_size(steps, "steps")
    check_size(every, "every")
    if steps % every:
        raise ValueError(f"every must divide steps = {steps}, got {every}; valid numbers: {divisors(steps)}.")
    states = as_float(u0, "u0")
    if states.ndim not in (2, 3, 4):
        raise ValueError(f"u0 must have shape (n, c), (h, n, c) or (b, h, n, c), got {states.shape}.")
    states = states[None] if states.ndim == 2 else states
    single = states.ndim == 3
    states = states[None] if single else states
    size, depth = states.shape[:2]
    nodes = as_domain(domain, "domain")
    if states.shape[2] != nodes.size:
        raise ValueError(f"u0 must have one row for each of the {nodes.size} nodes of domain, got {np.shape(u0)}.")
    _check_start(states, nodes)
    if isinstance(stepper, Stepper) and not nodes.is_batched and is_concrete(*jax.tree.leaves(domain)):
        domain = stepper.config.prepare(domain)
    if dt is not None:
        dt = as_constants(dt, "dt")
        if dt.shape not in ((), (steps,), (size, steps)):
            raise ValueError(f"dt must be one number, ({steps},) or ({size}, {steps}), got shape {dt.shape}.")
        check_dt(stepper, dt)
    if offsets is not None:
        offsets = as_constants(offsets, "offsets")
        if offsets.shape not in ((depth - 1,), (size, depth - 1)):
            raise ValueError(f"offsets must have shape ({depth - 1},) or ({size}, {depth - 1}), got {offsets.shape}.")
        check_offsets(offsets)
    if parameters is not None:
        parameters = as_constants(parameters, "parameters")
    unit = stepper.dt[...] if dt is None and isinstance(stepper, Stepper) else dt
    pure, params, other = as_pure(stepper, evaluate=True)
    found = _rollout(pure, int(steps), int(every), params, other, states, domain, unit, offsets, parameters)
    return jax.tree.map(lambda leaf: leaf[0], found) if single else found


def _check_start(states: Float[Array, "b h n c"], domain: Domain) -> None:
    """Raises ``ValueError`` if a value at a node of positive weight is not finite; traced values are not checked."""
    if not is_concrete(states, domain.weights):
        return
    counts = np.asarray(domain.weights) > 0
    values = np.asarray(states)
    bad = ~np.isfinite(values) & (counts[:, None] if domain.is_batched else counts)[..., None]
    if bad.any():
        sample, state, node, channel = np.unravel_index(np.argmax(bad), bad.shape)
        raise ValueError(
            f"u0 must be finite, got {values[sample, state, node, channel]} in sample {sample}, state {state} of the "
            f"history, node {node}, channel {channel}; repair this state, or give the node the weight 0."
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _rollout(
    stepper: PureStepper,
    steps: int,
    every: int,
    params: Variables,
    other: Variables,
    states: Float[Array, "b h n c"],
    domain: Domain | Decomposed,
    dt: Array | None,
    offsets: Array | None,
    parameters: Array | None,
) -> Rollout:
    size, depth = states.shape[:2]
    time = float_dtype()
    known = jnp.ones((), time) if dt is None else dt.astype(time)
    weightless = ~jnp.broadcast_to(as_domain(domain, "domain").weights > 0, (size, states.shape[2]))[..., None]
    sizes = jnp.broadcast_to(known if known.ndim == 2 else known[None], (size, steps))
    first = sizes[:, :1] * jnp.arange(depth - 1, 0, -1).astype(time)[None]
    ages = first if offsets is None else jnp.broadcast_to(offsets.astype(time), (size, depth - 1))

    def call(other: Variables, states: Array, ages: Array, step: Array) -> tuple[Array, Variables]:
        options = {"dt": None if dt is None else step, "offsets": ages if depth > 1 else None}
        return stepper(params, other, states, domain, parameters=parameters, **options)

    result = jax.eval_shape(call, other, states, ages, sizes[:, 0])[0]
    if result.shape != (size, *states.shape[2:]):
        raise ValueError(
            f"stepper must return states of shape {(size, *states.shape[2:])} for the history {states.shape}, got "
            f"{result.shape}."
        )
    dtype = np.promote_types(accumulator(states.dtype), accumulator(result.dtype))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def advance(carry: tuple[Array, Array, Variables, Array], step: Array):
        states, ages, other, channel = carry
        new, other = call(other, states, ages, step)
        new = new.astype(dtype)
        bad = ~jnp.all(jnp.isfinite(new) | weightless, axis=1)
        is_finite = ~jnp.any(bad, axis=1)
        channel = jnp.where((channel < 0) & ~is_finite, jnp.argmax(bad, axis=1).astype(jnp.int32), channel)
        ages = jnp.concatenate([ages[:, 1:] + step[:, None], step[:, None]], axis=1) if depth > 1 else ages
        states = jnp.concatenate([states[:, 1:], new[:, None]], axis=1)
        return (states, ages, other, channel), is_finite

    def emit(carry: tuple[Array, Array, Variables, Array], step: Array):
        carry, is_finite = jax.lax.scan(advance, carry, step)
        return carry, (carry[0][:, -1], is_finite)

    carry = states.astype(dtype), ages, other, jnp.full(size, -1, jnp.int32)
    (_, _, _, channel), (found, is_finite) = jax.lax.scan(emit, carry, sizes.T.reshape(steps // every, every, size))
    ends = jnp.cumsum(sizes, axis=1)
    if known.ndim == 0:
        ends = jnp.broadcast_to(known * jnp.arange(1, steps + 1).astype(time), (size, steps))
    return Rollout(
        states=jnp.moveaxis(found, 1, 0),
        times=ends[:, every - 1 :: every],
        is_finite=is_finite.reshape(steps, size).T,
        step_times=ends,
        channel=channel,
    )


def check_finite(found: Rollout) -> Rollout:
    """Returns a rollout whose states are all finite.

    Call it outside `jax.jit`.

    Args:
        found: the result of `rollout`.

    Raises:
        BlowUpError: if a state is not finite. The message names the first step, its time, sample and channel, and the
            error holds what came before.
        TypeError: if ``found`` is not a `Rollout`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> def explode(states, domain, **options):
        ...     return 1e20 * states[..., -1, :, :]
        >>> found = dynamics.rollout(explode, jnp.ones((8, 1)), 4, domain=domains.interval(8), dt=0.5)
        >>> try:
        ...     dynamics.check_finite(found)
        ... except dynamics.BlowUpError as error:
        ...     print(error.step, error.time, error.channel, error.before.states[:, 0, 0])
        2 1.0 0 [1.e+20]
    """
    check_type(found, "found", Rollout, "a dynamics.Rollout")
    is_finite = np.asarray(found.is_finite)
    if is_finite.all():
        return found
    bad = ~np.atleast_2d(is_finite)
    step = int(np.argmax(bad.any(axis=0)))
    sample = int(np.argmax(bad[:, step]))
    times, channels = np.atleast_2d(np.asarray(found.step_times)), np.atleast_1d(np.asarray(found.channel))
    entries = step // (is_finite.shape[-1] // found.times.shape[-1])
    before = Rollout(
        states=found.states[..., :entries, :, :],
        times=found.times[..., :entries],
        is_finite=found.is_finite[..., :step],
        step_times=found.step_times[..., :step],
        channel=jnp.full_like(found.channel, -1),
    )
    count = int(bad.any(axis=1).sum())
    raise BlowUpError(step + 1, float(times[sample, step]), sample, int(channels[sample]), count, before)
