"""Functions of one state, mapped over the times and the samples of trajectories."""

import functools
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._eager import compiled
from jaxop._validation import accumulator, as_float, check_name
from jaxop.domains import Domain
from jaxop.domains.domain import check_domain

States = Float[Array | np.ndarray, "*batch t n c"]
"""States at t times on the nodes of a domain: (t, n, c), or (b, t, n, c) for a batch."""

CHANNELS = ("sum", "mean", "each")
"""What a metric of single channels returns: the sum or the mean over channels, or one number for each."""


def over_states(
    measure: Callable[..., Array],
    domain: Domain,
    *states: States,
    names: tuple[str, ...],
    undefined: float,
    **options: Hashable,
) -> Array:
    """Maps a function of states (n, c) and the domain over times and samples; eager calls compile once per shape.

    Args:
        measure: called as ``measure(*states, domain, **options)`` with states of shape (n, c), in float32 or wider. The
            same object at every call, so that its program is found again.
        domain: one for all samples, or one for each of a batch (`jaxop.domains.stack`).
        states: arrays of one shape.
        names: the name of each array in messages.
        undefined: the result for a first state that is not finite on a node of positive weight, or so large that the
            computation overflows. The derivative is 0.
        options: further arguments of ``measure``, part of the program.

    Raises:
        TypeError: if ``domain`` is not a domain.
        ValueError: if shapes differ or do not fit the domain.
    """
    arrays = _checked(states, names, domain)
    return _mapped(domain, arrays, measure=measure, undefined=undefined, options=tuple(options.items()))


@compiled(static=("measure", "undefined", "options"))
def _mapped(
    domain: Domain,
    arrays: list[Array],
    *,
    measure: Callable[..., Array],
    undefined: float,
    options: tuple[tuple[str, Hashable], ...],
) -> Array:
    def at_time(domain: Domain, *states: Array) -> Array:
        counts = (domain.weights > 0)[:, None]
        first, *others = (jnp.where(counts, state, 0) for state in states)
        sound = jnp.all(jnp.isfinite(first))
        value = measure(jnp.where(sound, first, 0), *others, domain, **dict(options))
        overflows = jnp.isnan(value)  # ∞ − ∞ of a huge state; a true state that is NaN stays visible
        for other in others:
            overflows &= jnp.all(jnp.isfinite(other))
        return jnp.where(sound & ~overflows, value, jnp.asarray(undefined, value.dtype))

    over_times = jax.vmap(at_time, in_axes=(None, *[0] * len(arrays)))
    if arrays[0].ndim == 3:
        return over_times(domain, *arrays)
    return jax.vmap(over_times, in_axes=(0 if domain.is_batched else None, *[0] * len(arrays)))(domain, *arrays)


def norms(state: Float[Array, "n c"], domain: Domain) -> Float[Array, " c"]:
    """Returns the L2 norm of every channel."""
    return jax.vmap(lambda channel: domain.norm(channel[:, None]), in_axes=1)(state)


def ratio(part: Float[Array, "*shape"], whole: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns part / whole, or ``part`` where ``whole`` is 0."""
    return part / jnp.where(whole == 0, 1, whole)


def joined(values: Float[Array, "*shape c"], channels: str) -> Float[Array, "..."]:
    """Returns the sum or the mean over channels, or the values unchanged; see `CHANNELS`."""
    check_name(channels, "channels", CHANNELS)
    if channels == "each":
        return values
    return jnp.sum(values, axis=-1) if channels == "sum" else jnp.mean(values, axis=-1)


def _checked(states: tuple[States, ...], names: tuple[str, ...], domain: Domain) -> list[Array]:
    """Returns the states in one floating dtype, float32 or wider."""
    check_domain(domain, "domain")
    arrays = [as_float(array, name) for array, name in zip(states, names, strict=True)]
    shape = arrays[0].shape
    if any(array.shape != shape for array in arrays):
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise ValueError(
            f"{' and '.join(names)} must have one shape (t, n, c) or (b, t, n, c), got {shapes}; take the true states "
            "at the times of the predicted ones."
        )
    if len(shape) not in (3, 4) or shape[-2] != domain.size:
        raise ValueError(
            f"{names[0]} must have shape (t, n, c) or (b, t, n, c) with n = {domain.size} nodes of the domain, got "
            f"{shape}; give a single state a first axis of length 1, and every channel its place on the last axis."
        )
    count = domain.weights.shape[0] if domain.is_batched else None
    if count is not None and (len(shape) != 4 or shape[0] != count):
        raise ValueError(f"{names[0]} must have shape ({count}, t, n, c) on a stack of {count} domains, got {shape}.")
    dtype = accumulator(functools.reduce(jnp.promote_types, [array.dtype for array in arrays]))
    return [array.astype(dtype) for array in arrays]
