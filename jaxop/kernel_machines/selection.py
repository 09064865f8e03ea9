"""Choice of kernels and regularisation: held-out losses, their gradients, and cross-validation."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree, Real

from jaxop._sparse import CoordinateMatrix, SparseMatrix
from jaxop._validation import as_float, as_integer, check_name, check_rng_key, check_size
from jaxop.kernel_machines import checks, solvers
from jaxop.kernel_machines.binary import BinaryMachine, Kernels, Responses, fit
from jaxop.kernel_machines.observations import Grid, observe

FOLDS = ("pairs", "rows", "columns")
"""Choices of held-out data: observed pairs, all pairs of some rows of X (new users) or of some rows of Y (films)."""

Matrix: TypeAlias = Array | np.ndarray
Data: TypeAlias = tuple[Matrix, Matrix, Matrix | CoordinateMatrix | SparseMatrix, Matrix | None]
"""X, Y, responses and mask; None means that all pairs are observed."""


def validation_loss(
    machine: BinaryMachine,
    X: Real[Array | np.ndarray, "nx a"],
    Y: Real[Array | np.ndarray, "ny b"],
    responses: Responses,
    mask: Bool[Array | np.ndarray, "nx ny"] | None = None,
    *,
    loss: str = "squared",
) -> Float[Array, ""]:
    """Mean of L(f(x_i, y_j), z_ij) over observed pairs; differentiable through `fit`.

    Args:
        machine: f.
        X: rows of the first domain, (nx, a).
        Y: rows of the second domain, (ny, b).
        responses: z_ij, a matrix or a sparse matrix, see `fit`.
        mask: which pairs count, or None for all pairs.
        loss: ``"squared"``, ``"logistic"`` or ``"hinge"``, see `fit`.

    Returns:
        A scalar.

    Raises:
            ValueError: if responses or masks do not fit, see `fit`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxop import kernel_machines, kernels
        >>> X = jnp.linspace(-1, 1, 12)[:, None]
        >>> held_out = jnp.eye(12, dtype=bool)
        >>> def held_out_loss(width):
        ...     machine = kernel_machines.fit(kernels.Gaussian(width), X, X, X @ X.T, ~held_out)
        ...     return kernel_machines.validation_loss(machine, X, X, X @ X.T, held_out)
        >>> bool(jnp.isfinite(jax.grad(held_out_loss)(1.0)))
        True
    """
    check_name(loss, "loss", solvers.LOSSES)
    x, y = as_float(X, "X"), as_float(Y, "Y")
    observations = observe(responses, mask, x.shape[0], y.shape[0], machine.coefficients.dtype)
    checks.labels(observations, loss)
    value = solvers.LOSSES[loss].value
    if isinstance(observations, Grid):
        losses = value(machine(x, y), observations.values)
        return jnp.mean(losses) if observations.mask is None else jnp.mean(losses, where=observations.mask)
    return jnp.mean(value(machine.pairs(x[observations.rows], y[observations.columns]), observations.values))


def split(
    X: Real[Array | np.ndarray, "nx a"],
    Y: Real[Array | np.ndarray, "ny b"],
    responses: Responses,
    mask: Bool[Array | np.ndarray, "nx ny"] | None = None,
    *,
    rng_key: Key[Array, ""],
    folds: int = 5,
    over: str = "pairs",
) -> Iterator[tuple[Data, Data]]:
    """Training and validation data of each fold; every observed pair is held out once.

    Args:
        X: rows of the first domain.
        Y: rows of the second domain.
        responses: z_ij, a matrix or a sparse matrix, see `fit`.
        mask: which pairs are observed, or None for all pairs.
        rng_key: shuffles the pairs, rows or columns.
        folds: number of folds, of nearly equal sizes.
        over: ``"pairs"``, ``"rows"`` (all pairs of some x, which the machine never sees) or ``"columns"``.

    Yields:
        ``(training, validation)``, each ``(X, Y, responses, mask)`` for `fit` and `validation_loss`.

    Raises:
        ValueError: if there are fewer than two folds, more folds than pairs (rows, columns), or a fold without an
            observed pair.
    """
    from jax.experimental.sparse import BCOO

    check_name(over, "over", FOLDS)
    check_rng_key(rng_key)
    folds = as_integer(folds, "folds")
    x, y = np.asarray(as_float(X, "X")), np.asarray(as_float(Y, "Y"))
    seen = observe(responses, mask, len(x), len(y), as_float(x, "X").dtype)
    if isinstance(seen, Grid):
        values = np.asarray(seen.values)
        i, j = np.nonzero(np.ones(seen.shape, bool) if seen.mask is None else np.asarray(seen.mask))
        values = values[i, j]
    else:
        values, i, j = (np.asarray(a) for a in (seen.values, seen.rows, seen.columns))
    unit = {"pairs": np.arange(len(values)), "rows": i, "columns": j}[over]
    count = {"pairs": len(values), "rows": len(x), "columns": len(y)}[over]
    if not 2 <= folds <= count:
        raise ValueError(f"folds must be between 2 and the number of {over}, {count}, got {folds}.")
    fold = np.asarray(jax.random.permutation(rng_key, count))[unit] % folds

    def part(chosen: np.ndarray) -> Data:
        rows, columns = np.unique(i[chosen]), np.unique(j[chosen])
        rows = rows if over == "rows" else np.arange(len(x))
        columns = columns if over == "columns" else np.arange(len(y))
        at = np.searchsorted(rows, i[chosen]), np.searchsorted(columns, j[chosen])
        if isinstance(seen, Grid):
            matrix, observed = (
                np.zeros((len(rows), len(columns)), values.dtype),
                np.zeros((len(rows), len(columns)), bool),
            )
            matrix[at], observed[at] = values[chosen], True
            return x[rows], y[columns], matrix, observed
        indices = jnp.asarray(np.stack(at, axis=1), np.int32)
        sparse = BCOO((jnp.asarray(values[chosen]), indices), shape=(len(rows), len(columns)))
        return x[rows], y[columns], sparse, None

    for k in range(folds):
        held_out = fold == k
        if held_out.all() or not held_out.any():
            raise ValueError(
                f"fold {k} of {folds} over {over} has {'all' if held_out.all() else 'no'} observed pairs; take fewer "
                "folds or another rng_key."
            )
        yield part(~held_out), part(held_out)


def cross_validate(
    kernel: Kernels,
    X: Real[Array | np.ndarray, "nx a"],
    Y: Real[Array | np.ndarray, "ny b"],
    responses: Responses,
    mask: Bool[Array | np.ndarray, "nx ny"] | None = None,
    *,
    rng_key: Key[Array, ""],
    folds: int = 5,
    over: str = "pairs",
    loss: str = "squared",
    **options: Any,
) -> Float[np.ndarray, " folds"]:
    """`validation_loss` on each fold of a machine that is fitted to the other folds.

    Args:
        kernel: κ, or (κ_X, κ_Y), see `fit`.
        X: rows of the first domain.
        Y: rows of the second domain.
        responses: z_ij, a matrix or a sparse matrix.
        mask: which pairs are observed, or None for all pairs.
        rng_key: shuffles the pairs, rows or columns.
        folds: number of folds.
        over: what to hold out, ``"pairs"``, ``"rows"`` or ``"columns"``, see `split`. To judge a machine for new rows,
            hold out rows: of a held-out pair the machine has seen both rows.
        loss: loss of the fit and of the validation.
        **options: options of `fit`.

    Returns:
        One loss per fold.

    Raises:
        ValueError: for the reasons of `split` and `fit`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxop import kernel_machines, kernels
        >>> X = jnp.linspace(-1, 1, 12)[:, None]
        >>> score = lambda over: kernel_machines.cross_validate(
        ...     kernels.Gaussian(1.0), X, X, X @ X.T, folds=3, over=over, rng_key=jax.random.key(0)
        ... ).mean()
        >>> bool(score("pairs") < score("rows") < 0.1)
        True
    """
    losses = []
    for training, validation in split(X, Y, responses, mask, rng_key=rng_key, folds=folds, over=over):
        machine = fit(kernel, *training, loss=loss, **options)
        losses.append(float(validation_loss(machine, *validation, loss=loss)))
    return np.asarray(losses)


class Tuned(NamedTuple):
    """Result of `tune`.

    Attributes:
        kernel: κ, or (κ_X, κ_Y), at the point of the smallest validation loss.
        regularization: λ at that point.
        params: the parameters at that point.
        losses: the validation loss at the start of each step.
    """

    kernel: Kernels
    regularization: float
    params: PyTree
    losses: Float[np.ndarray, " steps"]


def tune(
    build: Callable[[PyTree], Kernels],
    params: PyTree,
    training: Data,
    validation: Data,
    *,
    regularization: float = 1e-4,
    steps: int = 50,
    optimizer: optax.GradientTransformation | None = None,
    loss: str = "squared",
    progress: Callable[[int, float], None] | None = None,
    **options: Any,
) -> Tuned:
    """Minimises the validation loss in the parameters of the kernel and in log λ, by gradients through the fit.

    Args:
        build: maps parameters to the kernel. Pass positive parameters as logarithms:
            ``lambda p: kernels.Gaussian(jnp.exp(p))``.
        params: the initial parameters, a pytree of floats.
        training: ``(X, Y, responses, mask)`` for the fit.
        validation: ``(X, Y, responses, mask)`` for the loss, with other pairs of the same rows, or other rows; see
            `split`.
        regularization: the initial λ.
        steps: number of steps of the optimiser.
        optimizer: an Optax transformation; None means Adam with a rate of 0.1.
        loss: loss of the fit and of the validation, ``"squared"`` or ``"logistic"``.
        progress: called with the number of steps and the validation loss.
        **options: options of `fit`.

    Returns:
        The best point on the way; fit it to all data.

    Raises:
        FloatingPointError: if the validation loss or its gradient is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxop import kernel_machines, kernels
        >>> X, Y = jax.random.uniform(jax.random.key(0), (2, 16, 1))
        >>> data = X, Y, jnp.sin(3 * (X - 2 * Y.T)), None
        >>> folds = kernel_machines.split(*data, over="rows", folds=2, rng_key=jax.random.key(1))
        >>> tuned = kernel_machines.tune(lambda p: kernels.Gaussian(jnp.exp(p)), 0.0, *next(folds), steps=10)
        >>> bool(tuned.losses.min() < tuned.losses[0])
        True
    """
    if not callable(build):
        raise TypeError(f"build must be a function from parameters to a kernel, got {build!r}.")
    check_size(steps, "steps")
    optimizer = optimizer or optax.adam(0.1)
    start = jax.tree.map(lambda leaf: as_float(leaf, "params"), params)
    point = start, jnp.log(as_float(regularization, "regularization"))

    def objective(point: PyTree) -> Array:
        machine = fit(build(point[0]), *training, regularization=jnp.exp(point[1]), loss=loss, **options)
        return validation_loss(machine, *validation, loss=loss)

    @jax.jit
    def advance(point: PyTree, state: optax.OptState) -> tuple[PyTree, optax.OptState, Array, Array]:
        value, gradient = jax.value_and_grad(objective)(point)
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
            updates, state = optimizer.update(gradient, state, point)
        finite = jnp.all(jnp.asarray([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradient)]))
        return optax.apply_updates(point, updates), state, value, finite & jnp.isfinite(value)

    state, best, losses = optimizer.init(point), point, []
    for step in range(steps):
        new, state, value, finite = advance(point, state)
        if not bool(finite):
            raise FloatingPointError(
                f"the validation loss {float(value)} or its gradient is not finite in step {step} of tune, at "
                f"λ = {float(jnp.exp(point[1])):.3g}; start from a larger regularization, use a smaller rate or raise "
                "max_steps."
            )
        losses.append(float(value))
        best = point if losses[-1] == min(losses) else best
        if progress is not None:
            progress(step, losses[-1])
        point = new
    return Tuned(build(best[0]), float(jnp.exp(best[1])), best[0], np.asarray(losses))
