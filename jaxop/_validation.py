"""Checks for all sub-packages; each message names argument, expected, received and remedy."""

import difflib
import importlib
import numbers
import operator
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsIndex, TypeGuard

import jax
import jax.core
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

_PACKAGE = str(Path(__file__).parent)

_warned_about_float64: set[str] = set()


def is_concrete(*arrays: object) -> bool:
    """Returns whether the values of all arrays can be read now, and not only their shapes."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def is_numeric(value: object) -> TypeGuard[float | np.ndarray | jax.Array]:
    """Returns whether a value is a number or an array, but not a bool."""
    return isinstance(value, numbers.Real | np.ndarray | jax.Array) and not isinstance(value, bool)


def is_symbolic(*sizes: Any) -> bool:
    """Returns whether one of the sizes of arrays is unknown while `jax.export` traces a program for any size."""
    return any(jax.export.is_symbolic_dim(size) for size in sizes)


def is_integer(value: object) -> TypeGuard[int]:
    """Returns whether a value is an integer of Python or NumPy, but not a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_integer(value: object, argument: str) -> int:
    """Returns ``value`` as an int; raises ``TypeError`` if it is not an integer, such as 2.0 or True."""
    try:
        if isinstance(value, bool | np.bool_ | np.timedelta64) or not isinstance(value, SupportsIndex):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{argument} must be an integer, got {value!r}.") from None


def as_number(value: object, argument: str) -> float:
    """Returns ``value`` as a float; raises ``TypeError`` if it is not a number."""
    if isinstance(value, bool | str | np.timedelta64) or not is_numeric(value) or np.ndim(value):
        raise TypeError(f"{argument} must be a number, got {value!r}.")
    return float(value)


def check_share(value: object, argument: str, *, zero: bool) -> float:
    """Returns a number between 0 and 1 as a float; 1 is excluded, and 0 unless ``zero``."""
    share = as_number(value, argument)
    if not (0 < share < 1 or (zero and share == 0)):
        raise ValueError(f"{argument} must lie in {'[' if zero else '('}0, 1), such as 0.1, got {share}.")
    return share


def divisors(number: int) -> list[int]:
    """Returns the divisors of a number up to 10000, for messages; a full search of a huge number takes hours."""
    return [d for d in range(1, min(number, 10_000) + 1) if number % d == 0]


def check_size(value: object, argument: str, least: int = 1) -> None:
    """Raises an error unless ``value`` is an integer of Python or NumPy of at least ``least``."""
    if not is_integer(value):
        raise TypeError(f"{argument} must be an integer of at least {least}, got {value!r}.")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, got {value}.")


def check_type(value: object, argument: str, kind: type | tuple[type, ...], expected: str) -> None:
    """Raises ``TypeError`` unless ``value`` is an instance of ``kind``, which ``expected`` describes."""
    if not isinstance(value, kind):
        received = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{argument} must be {expected}, got {received}.")


def check_rng_key(value: object, argument: str = "rng_key") -> None:
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


def check_dtype(value: object, argument: str, *, optional: bool = False) -> None:
    """Raises ``ValueError`` unless ``value`` is a floating dtype of JAX; a string must be its full name."""
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
    """Returns JAX's default floating dtype: float64 with x64 enabled, float32 otherwise."""
    return np.dtype(jnp.result_type(float))


def accumulator(dtype: np.dtype) -> np.dtype:
    """Returns the dtype in which sums over nodes accumulate, float32 or wider."""
    return np.dtype(np.float32) if jnp.finfo(dtype).bits < 32 else dtype


def warn_float64(array: object, argument: str) -> None:
    """Warns once in a process that float64 input becomes float32."""
    dtype = getattr(array, "dtype", None)
    if dtype == np.float64 and not jax.config.read("jax_enable_x64") and not _warned_about_float64:
        _warned_about_float64.add(argument)
        warnings.warn(
            f"{argument} is float64 but JAX runs in 32 bits: it is rounded to float32, as all such input will be. "
            "Call jax.config.update('jax_enable_x64', True) first to keep double precision; for a command, set "
            "JAX_ENABLE_X64=1.",
            UserWarning,
            stacklevel=_levels_to_caller(),
        )


def warn_user(message: str) -> None:
    """Warns at the line of the user's program."""
    warnings.warn(message, UserWarning, stacklevel=_levels_to_caller())


def _levels_to_caller() -> int:
    """Returns the ``stacklevel`` with which a warning of the calling function names the line of the user's program."""
    level, frame = 1, sys._getframe(1)
    # the generated __init__ of a dataclass has no file
    while frame.f_back is not None and (frame.f_code.co_filename.startswith((_PACKAGE, "<"))):
        level, frame = level + 1, frame.f_back
    return level


def check_plain(array: object, argument: str) -> None:
    """Raises ``TypeError`` if an array-like has a mask or a unit, which a conversion would lose silently.

    A masked array without masked entries passes. Every entry of a list or tuple is checked.
    """
    for part in array if isinstance(array, list | tuple) else (array,):
        if isinstance(part, int | float | jax.Array) or type(part) is np.ndarray:
            continue
        if isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part):
            masked = f"{np.ma.count_masked(part)} of its {part.size} entries are masked"
            raise TypeError(
                f"{argument} must hold numbers only, but {masked}; "
                "leave the masked nodes out, or fill them by numpy.ma.filled(array, 0.0) and give them weight 0."
            )
        for number, unit in (("magnitude", "units"), ("value", "unit"), ("value", "units")):
            if hasattr(part, number) and hasattr(part, unit):
                raise TypeError(
                    f"{argument} must hold plain numbers, got a quantity in {getattr(part, unit)}; convert it to the "
                    f"unit that you compute in and pass its .{number}."
                )


def check_real(dtype: DTypeLike, argument: str) -> None:
    """Raises ``TypeError`` unless entries of this dtype are real numbers (or truth values)."""
    # bfloat16 is a floating dtype for JAX, but not for NumPy
    if np.dtype(dtype).kind in "biuf" or jnp.issubdtype(dtype, jnp.floating):
        return
    if np.issubdtype(dtype, np.complexfloating):
        raise TypeError(f"{argument} must be real, got dtype {dtype}; pass its real and imaginary parts.")
    remedy = "convert them with numpy.asarray(array, dtype=float)"
    if np.dtype(dtype).kind in "mM":
        remedy = "count times from an origin, for example (t - t[0]) / numpy.timedelta64(1, 's')"
    raise TypeError(f"{argument} must hold real numbers, got dtype {dtype}; {remedy}.")


def shape_of(value: object) -> tuple[int, ...]:
    """Returns the shape of an array, of a sparse matrix or of nested sequences."""
    shape = getattr(value, "shape", None)
    return np.asarray(value).shape if shape is None else tuple(shape)


def plain_array(array: object, argument: str) -> np.ndarray:
    """Returns ``array`` as a NumPy array of any dtype; raises an error if this would lose a mask or a unit."""
    check_plain(array, argument)
    try:
        return np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{argument} must be an array, got rows of different lengths: {error}") from error


def host_array(array: object, argument: str) -> np.ndarray:
    """Returns ``array`` as a NumPy array of real numbers; raises an error for masks, units and complex numbers."""
    result = plain_array(array, argument)
    if result.dtype == object and (result.ndim == 0 or not hasattr(array, "dtype")):
        raise TypeError(
            f"{argument} must be an array of numbers, got {type(array).__name__}; are the arguments in order?"
        )
    check_real(result.dtype, argument)
    return result


def on_device(host: np.ndarray, dtype: DTypeLike | None = None) -> Array:
    """Returns a copy of a NumPy array as a JAX array; unlike ``jnp.asarray`` it never compiles a program."""
    return jax.device_put(host.astype(host.dtype if dtype is None else dtype))


def as_float(array: object, argument: str) -> Array:
    """Returns ``array`` as a JAX array of the default floating dtype (or its own, if narrower)."""
    warn_float64(array, argument)
    if isinstance(array, jax.Array | int | float) or hasattr(array, "__jax_array__"):
        result = jnp.asarray(array)
        if jnp.issubdtype(result.dtype, jnp.complexfloating):
            check_real(result.dtype, argument)
        return result if jnp.issubdtype(result.dtype, jnp.floating) else result.astype(float_dtype())
    try:
        host = host_array(array, argument)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):  # a list of traced numbers
        return as_float(jnp.asarray(array), argument)
    return on_device(host, jax_dtype(host.dtype))


def jax_dtype(dtype: np.dtype) -> np.dtype:
    """Returns the floating dtype in which JAX holds entries of ``dtype``: the default one, or ``dtype`` if narrower."""
    default = float_dtype()
    fits = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= default.itemsize
    return dtype.newbyteorder("=") if fits else default


def host_real(array: object, argument: str) -> np.ndarray:
    """Returns ``array`` on the host in float64; raises an error for complex numbers."""
    return host_array(array, argument).astype(np.float64)


def check_increasing(nodes: object, argument: str, dtype: np.dtype) -> None:
    """Raises ``ValueError`` unless nodes (..., n) increase strictly, also after rounding to ``dtype``."""
    given = np.asarray(nodes, np.float64)
    bad = np.diff(given.astype(dtype), axis=-1) <= 0
    if not bad.any():
        return
    where = np.unravel_index(int(np.argmax(bad)), bad.shape)
    *sample, i = (int(k) for k in where)
    first, second = given[*sample, i], given[*sample, i + 1]
    fault, remedy = "lies below", "sort them together with the values (numpy.argsort, numpy.unique)"
    if second == first:
        fault = "repeats"
    elif second > first:
        fault, remedy = f"rounds in {dtype} to", "subtract an origin or enable x64"
    before, at = (", ".join(map(str, (*sample, k))) for k in (i, i + 1))
    raise ValueError(
        f"{argument} must be strictly increasing, but {argument}[{at}] = {second} {fault} {argument}[{before}] = "
        f"{first}; {remedy}."
    )


def check_distinct(points: object, argument: str, dtype: np.dtype) -> None:
    """Raises ``ValueError`` if nodes (..., n, dim) coincide in ``dtype`` only because their origin is far away.

    Such nodes are further apart than the rounding error of the extent of all nodes. Nodes that are closer to each
    other coincide for every origin and pass.
    """
    given = np.asarray(points)
    if jax_dtype(given.dtype) == given.dtype or given.size == 0:
        return
    given = given.astype(np.float64).reshape(-1, *given.shape[-2:])
    smallest = np.finfo(dtype).eps * np.ptp(given, axis=1, keepdims=True)
    rounded = given.astype(dtype)
    if (np.spacing(np.abs(rounded).max(axis=1, keepdims=True)) <= smallest).all(where=smallest > 0):
        return
    count, n, dim = given.shape
    flat, key = given.reshape(-1, dim), rounded.reshape(-1, dim)
    order = np.lexsort((*flat.T, *key.T, np.repeat(np.arange(count), n)))
    before, after = order[:-1], order[1:]
    apart = (np.abs(flat[after] - flat[before]) > smallest[before // n, 0]).any(axis=1)
    merged = (key[after] == key[before]).all(axis=1) & (before // n == after // n) & apart
    if merged.any():
        where = np.flatnonzero(merged)
        later = np.maximum(before[where], after[where])
        j, i = int(later.min()), int(np.minimum(before[where], after[where])[later.argmin()])
        first, second = (", ".join(map(str, np.unravel_index(k, shape_of(points)[:-1]))) for k in (i, j))
        raise ValueError(
            f"{argument}[{second}] = {flat[j].tolist()} rounds in {dtype} to {argument}[{first}] = {flat[i].tolist()}; "
            "subtract an origin or enable x64."
        )


def closest(name: str, allowed: Iterable[str]) -> str:
    """Returns ``"did you mean 'a' or 'b'?"`` with the names closest to ``name``, or else the list of all names."""
    allowed = sorted(allowed)
    return near(name, allowed) or "choose one of " + ", ".join(repr(item) for item in allowed) + "."


def near(name: str, allowed: Iterable[str], *, show: Callable[[str], str] = repr) -> str:
    """Returns ``"did you mean 'a' or 'b'?"`` with the names closest to ``name``, or "" if none is close."""
    found = difflib.get_close_matches(name, list(allowed), n=3, cutoff=0.5)
    return "did you mean " + " or ".join(map(show, found)) + "?" if found else ""


def check_name(name: object, argument: str, allowed: Iterable[str]) -> None:
    """Raises ``ValueError`` with the closest valid names if ``name`` is not one of ``allowed``."""
    allowed = tuple(allowed)
    if name not in allowed:
        raise ValueError(f"{argument}={name!r} is unknown: {closest(str(name), allowed)}")


def first_index(bad: object) -> int | tuple[int, ...]:
    """Returns the index of the first True entry, as an int for one axis and a tuple for several."""
    index = np.unravel_index(int(np.argmax(np.asarray(bad))), shape_of(bad))
    return int(index[0]) if len(index) == 1 else tuple(int(i) for i in index)


def require(module: str, purpose: str, *, extra: str = "data") -> ModuleType:
    """Imports a package of an extra; the error of a missing package says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"{purpose} needs {package}; install it with: pip install 'jaxop[{extra}]'") from error
