"""Checks of ensembles of particles and of the matrices of flows."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxop._validation import accumulator, as_float, first_index, is_concrete, is_numeric
from jaxop.domains.measure import check_weights, relative_weights, uniform_weights


def check_ensemble(x: object, weights: object, **others: object) -> tuple[Array, ...]:
    """Returns particles in float32 or wider, weights scaled to sum 1, and further arrays of the particles' shape."""
    x = as_float(x, "x")
    x = x.astype(accumulator(x.dtype))
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (n, d), one particle per row, got {x.shape}; use jax.vmap for ensembles.")
    if weights is None:
        weights = uniform_weights(x.shape[0], x.dtype)
    else:
        weights = relative_weights(check_masses(weights, x))
        total = jnp.sum(weights)
        # traced weights may all be 0, for a sequence of padding, whose particles then do not interact
        weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 0).astype(x.dtype)
    arrays = []
    for name, array in others.items():
        array = as_float(array, name)
        if array.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {x.shape}, got {array.shape}.")
        arrays.append(array.astype(x.dtype))
    return x, weights, *arrays


def check_masses(weights: object, x: Array) -> Array:
    """Returns the masses of the particles in any unit, in float32 or wider."""
    weights = as_float(weights, "weights")
    weights = weights.astype(accumulator(weights.dtype))
    if weights.shape != (x.shape[0],):
        raise ValueError(f"weights must have one entry per particle, ({x.shape[0]},), got shape {weights.shape}.")
    if is_concrete(weights):
        check_weights(np.asarray(weights))
    return weights


def check_number(value: object, argument: str) -> None:
    """Raises ``TypeError`` unless ``value`` is one number."""
    if not is_numeric(value) or np.ndim(value):
        raise TypeError(f"{argument} must be one number, got {value!r}.")


def check_matrix(matrix: object, name: str, x: Array, *, symmetric: bool = False, definite: bool = False) -> Array:
    """Returns a (d, d) matrix in the dtype of the particles; checks its values unless they are traced."""
    matrix = as_float(matrix, name)
    d = x.shape[1]
    if matrix.shape != (d, d):
        raise ValueError(f"{name} must be a ({d}, {d}) matrix for particles of {d} channels, got {matrix.shape}.")
    if (symmetric or definite) and is_concrete(matrix):
        values = np.asarray(matrix, np.float64)
        if not np.isfinite(values).all():
            where = first_index(~np.isfinite(values))
            raise ValueError(f"{name} must be finite, but {name}[{where}] = {values[where]}.")
        scale, tolerance = np.abs(values).max(), 100 * float(jnp.finfo(matrix.dtype).eps)
        gap = np.abs(values - values.T)
        if not gap.max() <= tolerance * scale:
            i, j = np.unravel_index(int(np.argmax(gap)), gap.shape)
            raise ValueError(
                f"{name} must be symmetric, but entries [{i}, {j}] and [{j}, {i}] are {values[i, j]:g} and "
                f"{values[j, i]:g}; build it as L Lᵀ or take its symmetric part."
            )
        if definite:
            least = float(np.linalg.eigvalsh(values)[0])
            if not least > 0:
                raise ValueError(
                    f"{name} must be positive definite, but its least eigenvalue is {least:g}; build it as L Lᵀ with a "
                    "positive diagonal of L."
                )
    return matrix.astype(x.dtype)
