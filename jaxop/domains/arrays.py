"""Nodes and indices that a user gives, checked on the host if their values can be read."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxop._validation import (
    accumulator,
    as_float,
    first_index,
    host_array,
    is_concrete,
    jax_dtype,
    on_device,
    warn_float64,
)


def as_coordinates(array: object, argument: str) -> Array | np.ndarray:
    """Returns ``array`` in float32 or wider, because narrower weights miss the measure; as NumPy unless traced."""
    warn_float64(array, argument)
    try:
        host = host_array(array, argument)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        traced = as_float(array, argument)
        return traced.astype(accumulator(traced.dtype))
    return host.astype(accumulator(jax_dtype(host.dtype)))


def as_indices(array: object, argument: str) -> Array | np.ndarray:
    """Returns ``array`` in JAX's dtype for its integers; as NumPy unless traced."""
    if not is_concrete(array):
        return jnp.asarray(array)
    host = host_array(array, argument)
    return host.astype(jax.dtypes.canonicalize_dtype(host.dtype))


def leaf(values: Array | np.ndarray, given: object = None) -> Array:
    """Returns ``values`` as a JAX array, which is ``given`` if that is one of the same dtype."""
    if isinstance(given, jax.Array) and given.dtype == values.dtype:
        return given
    return on_device(values) if isinstance(values, np.ndarray) else values


def position(where: int | tuple[int, ...]) -> str:
    """Returns an index as it stands between square brackets."""
    return str(where).strip("()")


def check_finite(values: np.ndarray, argument: str) -> None:
    """Raises ``ValueError`` if an entry is not finite."""
    bad = ~np.isfinite(values)
    if bad.any():
        where = first_index(bad)
        raise ValueError(
            f"{argument} must be finite, but {argument}[{position(where)}] = {values[where]}; "
            "remove or repair the entry."
        )
