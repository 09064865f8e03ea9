"""Arithmetic of kernels in the log domain, where a finite number represents log 0."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOG_ZERO = -1e30
"""The finite number that represents log 0; a pair whose log kernel is below half of it has no mass."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_power(value: Float[Array, "*n"], power: float = 1.0) -> Float[Array, "*n"]:
    """The logarithm of |x|^p; `LOG_ZERO` with derivative 0 where |x| or |x|^p is below the smallest normal number.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.logarithms import log_power
        >>> print(log_power(jnp.asarray([1.0, -1.0, 0.0]), 2))
        [ 0.e+00  0.e+00 -1.e+30]
    """
    return _log_power(value, power)[0]


@log_power.defjvp
def _log_power_jvp(power, primals, tangents):
    (value,), (change,) = primals, tangents
    logarithm, alive, value = _log_power(value, power)
    return logarithm, change * jnp.where(alive, power / value, 0)


def _log_power(value: Array, power: float) -> tuple[Array, Array, Array]:
    smallest = float(jnp.finfo(value.dtype).tiny)
    alive = jnp.abs(value) >= max(smallest, smallest ** (1 / power))
    value = jnp.where(alive, value, 1)
    return jnp.where(alive, power * jnp.log(jnp.abs(value)), LOG_ZERO), alive, value


@jax.custom_jvp
def log_sum(logs: tuple[Array, ...]) -> Array:
    """Log Σ exp of finite numbers, some of which may be `LOG_ZERO`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.logarithms import LOG_ZERO, log_sum
        >>> print(log_sum((jnp.asarray(2.0), jnp.asarray(LOG_ZERO))))
        2.0
    """
    largest, _, total = _exponentials(logs)
    return largest + jnp.log(total)


@log_sum.defjvp
def _log_sum_jvp(primals, tangents):
    largest, terms, total = _exponentials(*primals)
    change = functools.reduce(jnp.add, (term * change for term, change in zip(terms, *tangents, strict=True)))
    return largest + jnp.log(total), change / total


def _exponentials(logs: tuple[Array, ...]) -> tuple[Array, list[Array], Array]:
    largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logs))
    terms = [jnp.exp(log - largest) for log in logs]
    return largest, terms, functools.reduce(jnp.add, terms)


def log_product(logs: Sequence[Array]) -> Array:
    """Σ of logarithms; `LOG_ZERO` where one of them is `LOG_ZERO`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.logarithms import LOG_ZERO, log_product
        >>> print(log_product([jnp.asarray([1.0, 1.0]), jnp.asarray([2.0, LOG_ZERO])]))
        [ 3.e+00 -1.e+30]
    """
    total = functools.reduce(jnp.add, logs)
    return jnp.where(total > LOG_ZERO / 2, total, LOG_ZERO)
