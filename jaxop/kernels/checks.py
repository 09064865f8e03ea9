"""Checks of the parameters of kernels."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxop._validation import check_plain, check_size, is_concrete


def check_numbers(value: object, argument: str) -> None:
    """Refuses a parameter that is neither a real number nor an array of them."""
    check_plain(value, argument)
    dtype = getattr(value, "dtype", None)
    dtype = np.asarray(value).dtype if dtype is None else dtype
    if dtype.kind not in "iuf" and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{argument} must be a real number or an array of them, got {value!r}.")


def check_depth(depth: int | None) -> None:
    """Refuses a d in √d that is not the length of a vector."""
    if depth is not None:
        check_size(depth, "depth")


def check_positive(value: object, argument: str, meaning: str) -> None:
    """Refuses a parameter whose values can be read and are not all positive and finite."""
    if not is_concrete(*jax.tree.leaves(value)):
        return
    check_numbers(value, argument)
    values = np.asarray(value).astype(np.float64)
    if not (np.all(np.isfinite(values)) and np.all(values > 0)):
        raise ValueError(f"{argument} must be positive and finite, got {values}: {meaning}.")
