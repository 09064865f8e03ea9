"""Checks shared by every layer: each message names argument, expected, received and remedy."""

import difflib
import importlib
import numbers
import operator
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


def as_integer(value: Any, argument: str) -> int:
    """``value`` as an int, or a ``TypeError``: 2.0 and True are no counts."""
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__") or isinstance(value, np.timedelta64):
        raise TypeError(f"{argument} must be an integer, got {value!r}.")
    return operator.index(value)


def as_number(value: Any, argument: str) -> float:
    """``value`` as a float, or a ``TypeError``."""
    if isinstance(value, bool | str | np.timedelta64) or not is_numeric(value) or np.ndim(value):
        raise TypeError(f"{argument} must be a number, got {value!r}.")
    return float(value)


def check_size(value: Any, argument: str, least: int = 1) -> None:
    """Raises unless ``value`` is an integer, of Python or NumPy, of at least ``least``."""
    if not is_integer(value):
        raise TypeError(f"{argument} must be an integer of at least {least}, got {value!r}.")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, got {value}.")


def check_type(value: Any, argument: str, kind: type | tuple[type, ...], expected: str) -> None:
    """Raises ``TypeError`` unless ``value`` is an instance of ``kind``; ``expected`` says in words what is, and how."""
    if not isinstance(value, kind):
        received = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{argument} must be {expected}, got {received}.")


def check_rng_key(value: Any, argument: str = "rng_key") -> None:
    """Raises ``TypeError`` unless ``value`` is a random key of JAX, of either style."""
    dtype = value.dtype if isinstance(value, jax.Array | np.ndarray) else None
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32):
        raise TypeError(f"{argument} must be a random key such as jax.random.key(0), got {value!r}.")


_DTYPES = {
    "bfloat16": ("bf16", "bfloat", "brain"),
    "float16": ("f16", "fp16", "half"),
    "float32": ("f32", "fp32", "float", "single"),
    "float64": ("f64", "fp64", "double"),
}


def check_dtype(value: Any, argument: str, *, optional: bool = False) -> None:
    """Raises ``ValueError`` unless ``value`` is a floating dtype of JAX, by its full name if it is a string."""
    if (optional and value is None) or _is_floating(value):
        return
    meant = [name for name, others in _DTYPES.items() if isinstance(value, str) and value.lower() in (name, *others)]
    hint = f"did you mean {meant[0]!r}?" if meant else closest(str(value), _DTYPES)
    raise ValueError(f"{argument} must be the name of a floating dtype such as 'float32', got {value!r}: {hint}")


def _is_floating(value: Any) -> bool:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        return False
    named = dtype.name == value if isinstance(value, str) else value is not None
    return named and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 8


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
