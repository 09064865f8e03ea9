"""Checks of the parameters of kernels."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxop._validation import check_plain, check_size, is_concrete


def check_numbers(value: object, argument: str) -> None:
    """Raises ``TypeError`` unless a parameter is a real number or an array of real numbers."""
    check_plain(value, argument)
    dtype = getattr(value, "dtype", None)
    dtype = np.asarray(value).dtype if dtype is None else dtype
    if dtype.kind not in "iuf" and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{argument} must be a real number or an array of real numbers, got {value!r}.")


def check_depth(depth: int | None) -> None:
    """Raises an error unless the d in √d is the length of a vector or None."""
    if depth is not None:
        check_size(depth, "depth")


def check_positive(value: object, argument: str, meaning: str) -> None:
    """Raises ``ValueError`` if a parameter can be read and an entry is not positive and finite."""
    if not is_concrete(*jax.tree.leaves(value)):
        return
    check_numbers(value, argument)
    values = np.asarray(value).astype(np.float64)
    if not (np.all(np.isfinite(values)) and np.all(values > 0)):
        raise ValueError(f"{argument} must be positive and finite, got {values}: {meaning}.")
