"""Checks of the input of a binary machine; each function returns the checked value."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxop._validation import accumulator, as_float, check_name, first_index, is_concrete
from jaxop.kernel_machines.observations import Grid, Observations
from jaxop.kernel_machines.solvers import SOLVERS, Axis
from jaxop.kernels import Kernel


def name(kernel: Kernel | tuple[Kernel, Kernel]) -> str:
    """Returns the class names of one or two kernels."""
    return " and ".join(dict.fromkeys(type(k).__name__ for k in (kernel if isinstance(kernel, tuple) else (kernel,))))


def kernels(kernel: object, span: str) -> Kernel | tuple[Kernel, Kernel]:
    """Returns one kernel for span "sections", and a pair for span "product"."""
    given = tuple(kernel) if isinstance(kernel, tuple | list) else (kernel,)
    found = [k for k in given if isinstance(k, Kernel) and not isinstance(k, type)]
    if len(found) < len(given):
        raise TypeError(
            "kernel must be a Kernel, such as kernels.ExpDotProduct(), or with span='product' a pair of kernels, got "
            f"{kernel!r}; kernels.from_pair makes one from a function."
        )
    if len(found) > (2 if span == "product" else 1):
        raise ValueError(
            f"kernel must be one kernel between both domains, or with span='product' one for each, got {len(found)} "
            f"with span={span!r}."
        )
    return found[0] if span == "sections" else (found[0], found[-1])


def points(X: object, Y: object) -> tuple[Array, Array, np.dtype]:
    """Returns the rows of both domains, which must be finite, and the dtype of the computation."""
    x, y = as_float(X, "X"), as_float(Y, "Y")
    for argument, rows in (("X", x), ("Y", y)):
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(
                f"{argument} must have shape (points, features) with at least one of each, got {rows.shape}; reshape "
                "it to rows."
            )
        if is_concrete(rows) and not (good := np.isfinite(np.asarray(rows))).all():
            index = first_index(~good)
            raise ValueError(f"{argument} must be finite, but its entry {index} is not; drop or fill such rows.")
    dtype = accumulator(max((x.dtype, y.dtype), key=lambda d: jnp.finfo(d).bits))
    return x.astype(dtype), y.astype(dtype), dtype


def labels(observations: Observations, loss: str) -> None:
    """Raises ``ValueError`` unless the responses are ±1, which the losses of classification need."""
    if loss == "squared" or not is_concrete(*jax.tree.leaves(observations)):
        return
    values = np.asarray(observations.values)
    if isinstance(observations, Grid):
        bad = (np.abs(values) != 1) & (True if observations.mask is None else np.asarray(observations.mask))
        pair = first_index(bad)
    else:
        bad = np.abs(values) != 1
        pair = tuple(int(index[first_index(bad)]) for index in (observations.rows, observations.columns))
    if bad.any():
        raise ValueError(
            f"responses must be −1 or +1 for loss={loss!r}, but the response of the pair {pair} is "
            f"{float(values[first_index(bad)])}; for labels 0 and 1 pass 2 * responses - 1."
        )


def _all_observed(observations: Observations) -> bool:
    return isinstance(observations, Grid) and observations.mask is None


def solver(solver: str | None, loss: str, observations: Observations) -> str:
    """Returns the solver, by default the first for the problem; raises an error if it cannot solve the problem."""
    able = [s for s in SOLVERS[loss] if s != "spectral" or _all_observed(observations)]
    if solver is None:
        return able[0]
    check_name(solver, "solver", [s for several in SOLVERS.values() for s in several])
    if solver not in able:
        raise NotImplementedError(
            f"solver={solver!r} does not solve loss={loss!r} with {_seen(observations)} observed; use "
            f"{' or '.join(map(repr, able))}."
        )
    return solver


def _seen(observations: Observations) -> str:
    return "all pairs" if _all_observed(observations) else "some pairs"


def regularization(regularization: object, loss: str, observations: Observations) -> Array:
    """Returns λ ≥ 0 in the dtype of the responses; raises an error for λ = 0 if the minimiser is not determined."""
    value = as_float(regularization, "regularization").astype(observations.values.dtype)
    if value.ndim:
        raise ValueError(f"regularization must be one number, got shape {value.shape}; use jax.vmap for several.")
    if not is_concrete(value):
        return value
    if not 0 <= float(value) < np.inf:
        raise ValueError(f"regularization must be finite and not negative, got {float(value)}; try 1e-4.")
    if float(value) == 0 and not (loss == "squared" and _all_observed(observations)):
        raise ValueError(
            "regularization=0 determines the machine only with the squared loss and all pairs observed, got "
            f"loss={loss!r} and {_seen(observations)}; pass a positive number."
        )
    return value


def finite(kernel: Kernel, matrix: Array) -> Array:
    """Returns a matrix of kernel values; raises ``FloatingPointError`` unless it is finite."""
    if is_concrete(matrix) and not (good := np.isfinite(np.asarray(matrix))).all():
        index = first_index(~good)
        raise FloatingPointError(
            f"{name(kernel)} is not finite at the pair {index} of the rows it compares; scale the inputs down, for "
            "example to unit variance."
        )
    return matrix


def symmetric(kernel: Kernel, matrix: Array) -> Array:
    """Returns a matrix of kernel values; raises ``ValueError`` unless it is symmetric."""
    if is_concrete(matrix):
        values = np.asarray(matrix)
        difference = np.abs(values - values.T)
        if difference.max() > 1e3 * jnp.finfo(matrix.dtype).eps * np.abs(values).max():
            i, j = np.unravel_index(np.argmax(difference), difference.shape)
            raise ValueError(
                f"span='product' needs symmetric kernels, but {name(kernel)} of the pair ({i}, {j}) of rows is "
                f"{values[i, j]:.3g}, and {values[j, i]:.3g} in the other order; use span='sections', which takes any "
                "kernel."
            )
    return matrix


def spectra(
    kernel: Kernel | tuple[Kernel, Kernel],
    points: tuple[Array, Array],
    axes: tuple[Axis, Axis],
    shared: tuple[bool, bool],
    regularization: float,
) -> None:
    """Raises ``ValueError`` unless matrices are semidefinite for span "product", and of full rank for λ = 0."""
    sections = not isinstance(kernel, tuple)
    if regularization == 0 and sections and all(shared) and points[0].shape[0] != points[1].shape[0]:
        raise ValueError(
            "regularization=0 needs a square kernel matrix with span='sections', got "
            f"{points[0].shape[0]} rows of X and {points[1].shape[0]} of Y; pass a positive "
            "number, or fewer landmarks=(p, q)."
        )
    # with span "sections" the features of a row of X are its kernel values with the rows of Y
    domains = (1, 0) if sections else (0, 1)
    for axis, domain in zip(axes, domains, strict=True):
        spectrum, argument = np.asarray(axis.spectrum), "XY"[domain]
        low, high = float(np.min(spectrum)), float(np.max(np.abs(spectrum)))
        noise = spectrum.size * float(jnp.finfo(spectrum.dtype).eps) * high
        if not sections and low < -10 * noise:
            raise ValueError(
                f"span='product' needs positive semidefinite kernels, but {name(kernel[domain])} has the eigenvalue "
                f"{low:.3g} on the rows of {argument}, where the largest is {high:.3g}; use span='sections', which "
                "takes any kernel."
            )
        if regularization == 0 and low <= noise:
            raise ValueError(
                f"regularization=0 needs kernel matrices of full rank, but {_dependence(points[domain], axis)} of "
                f"{argument} {'give' if sections else 'have'} dependent kernel values (a relative singular value of "
                f"{low / high:.1g}); drop some of them or pass a positive number."
            )


def _dependence(points: Array, axis: Axis) -> str:
    """Returns text that names equal rows, or rows with large entries in the smallest singular vector."""
    _, first, inverse = np.unique(np.asarray(points), axis=0, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse.ravel()] != np.arange(len(points)))
    if again.size:
        return f"the equal rows {first[inverse.ravel()[again[0]]]} and {again[0]}"
    direction = np.abs(np.asarray(axis.basis)[:, np.argmin(np.asarray(axis.scales))])
    rows = np.flatnonzero(direction > 0.3 * direction.max())[:8]
    return f"the rows {', '.join(map(str, rows))}"
