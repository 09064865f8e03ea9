"""Checks shared by every layer: each message names argument, expected, received and remedy."""

import difflib
import importlib
import numbers
import warnings
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_warned_about_float64: set[str] = set()


def is_concrete(*arrays: Any) -> bool:
    """Whether the values (and not only the shapes) of all arrays can be read now."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def is_numeric(value: Any) -> bool:
    """Whether a value is a number or an array."""
    return isinstance(value, numbers.Real | np.ndarray | jax.Array)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def divisors(number: int) -> list[int]:
    """The divisors of a number up to 10000, for messages: looking for all of those of a huge one takes hours."""
    return [d for d in range(1, min(number, 10_000) + 1) if number % d == 0]


def float_dtype() -> np.dtype:
    """JAX's default floating dtype: float64 with x64 enabled, float32 otherwise."""
    return np.dtype(jnp.result_type(float))


def accumulator(dtype: np.dtype) -> np.dtype:
    """The dtype in which sums over nodes are accumulated: float32 or wider."""
    return np.dtype(np.float32) if jnp.finfo(dtype).bits < 32 else dtype


def warn_float64(array: Any, argument: str) -> None:
    """Warns once in a process that float64 input is about to become float32."""
    dtype = getattr(array, "dtype", None)
    if dtype == np.float64 and not jax.config.read("jax_enable_x64") and not _warned_about_float64:
        _warned_about_float64.add(argument)
        warnings.warn(
            f"{argument} is float64 but JAX runs in 32 bits: it is rounded to float32, as all such input will be. "
            "Call jax.config.update('jax_enable_x64', True) first to keep double precision.",
            UserWarning,
            stacklevel=3,
        )


def as_float(array: Any, argument: str) -> Array:
    """``array`` as a JAX array of the default floating dtype (or its own, if it is a narrower float)."""
    warn_float64(array, argument)
    try:
        result = jnp.asarray(array)
    except TypeError as error:
        raise TypeError(
            f"{argument} must be an array of numbers, got {type(array).__name__}; are the arguments in order?"
        ) from error
    if jnp.issubdtype(result.dtype, jnp.complexfloating):
        raise TypeError(f"{argument} must be real, got dtype {result.dtype}; pass its real and imaginary parts.")
    return result if jnp.issubdtype(result.dtype, jnp.floating) else result.astype(float_dtype())


def host_real(array: Any, argument: str) -> np.ndarray:
    """``array`` on the host in float64; complex numbers are refused, not cut."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        raise TypeError(f"{argument} must be real, got dtype {array.dtype}; pass its real and imaginary parts.")
    return array.astype(np.float64)


def closest(name: str, allowed: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the names closest to ``name``, or the list of all of them."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(item) for item in near) + "?"
    return "choose one of " + ", ".join(repr(item) for item in allowed) + "."


def check_name(name: Any, argument: str, allowed: Iterable[str]) -> None:
    """Raises ``ValueError`` with the closest valid names if ``name`` is not one of ``allowed``."""
    allowed = tuple(allowed)
    if name not in allowed:
        raise ValueError(f"{argument}={name!r} is unknown: {closest(str(name), allowed)}")


def first_index(bad: Any) -> int | tuple[int, ...]:
    """Index of the first True entry, as an int for one axis and a tuple for several."""
    index = np.unravel_index(int(np.argmax(np.asarray(bad))), np.shape(bad))
    return int(index[0]) if len(index) == 1 else tuple(int(i) for i in index)


def require(module: str, purpose: str) -> ModuleType:
    """Imports a package of the ``data`` extra, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"{purpose} needs {package}; install it with: pip install 'jaxop[data]'") from error
