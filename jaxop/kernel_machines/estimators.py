"""Binary kernel machines as estimators of scikit-learn: parameters in the constructor, NumPy arrays in and out."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
import scipy.sparse
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from jaxop._sparse import SparseMatrix, stored
from jaxop._validation import float_dtype
from jaxop.kernel_machines.binary import Kernels, Landmarks, Maps, fit
from jaxop.kernel_machines.observations import Grid, observe
from jaxop.kernels import ExpDotProduct

Estimator = TypeVar("Estimator", bound="_BinaryEstimator")
Labels: TypeAlias = ArrayLike | SparseMatrix
"""Responses or labels of pairs, a matrix or a sparse matrix of scipy."""


class _BinaryEstimator(BaseEstimator):
    """Parameters, fit and values of both estimators; inputs are rounded to JAX's default floating dtype."""

    def __init__(
        self,
        kernel: Kernels | None = None,
        *,
        span: str = "sections",
        regularization: float = 1e-4,
        solver: str | None = None,
        maps: Maps = None,
        landmarks: Landmarks = None,
        random_state: int | None = None,
        tolerance: float | None = None,
        max_steps: int | None = None,
    ):
        self.kernel = kernel
        self.span = span
        self.regularization = regularization
        self.solver = solver
        self.maps = maps
        self.landmarks = landmarks
        self.random_state = random_state
        self.tolerance = tolerance
        self.max_steps = max_steps

    def _fit(
        self: Estimator, X: ArrayLike, Y: ArrayLike, responses: Any, mask: ArrayLike | None, loss: str
    ) -> Estimator:
        X, Y = np.asarray(X, float_dtype()), np.asarray(Y, float_dtype())
        self.machine_ = fit(
            ExpDotProduct() if self.kernel is None else self.kernel,
            X,
            Y,
            responses,
            None if mask is None else np.asarray(mask),
            span=self.span,
            loss=loss,
            regularization=self.regularization,
            solver=self.solver,
            maps=self.maps,
            landmarks=self.landmarks,
            rng_key=None if self.random_state is None else jax.random.key(self.random_state),
            tolerance=self.tolerance,
            max_steps=self.max_steps,
        )
        self.n_features_in_ = X.shape[1]
        return self

    def _values(self, X: ArrayLike, Y: ArrayLike) -> np.ndarray:
        check_is_fitted(self, "machine_")
        return np.asarray(self.machine_(np.asarray(X, float_dtype()), np.asarray(Y, float_dtype())))


def _observed(
    responses: Labels, mask: ArrayLike | None, nx: int, ny: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Returns the observed responses of nx × ny pairs and their indices."""
    seen = observe(_rounded(responses), mask, nx, ny, float_dtype())
    if not isinstance(seen, Grid):
        return np.asarray(seen.values), (np.asarray(seen.rows), np.asarray(seen.columns))
    i, j = np.nonzero(np.ones(seen.shape, bool) if seen.mask is None else np.asarray(seen.mask))
    return np.asarray(seen.values)[i, j], (i, j)


def _rounded(responses: Labels) -> np.ndarray | scipy.sparse.coo_array:
    if isinstance(responses, SparseMatrix):
        return _with_entries(responses, lambda values: values.astype(float_dtype()))
    return np.asarray(responses, float_dtype())


def _with_entries(matrix: SparseMatrix, function: Callable[[np.ndarray], np.ndarray]) -> scipy.sparse.coo_array:
    """Returns a sparse matrix whose stored entries are a function of those of another."""
    rows, columns, values = stored(matrix, "responses")
    return scipy.sparse.coo_array((function(np.asarray(values)), (rows, columns)), shape=matrix.shape)


class BinaryKernelRegressor(RegressorMixin, _BinaryEstimator):
    """Regression of responses z_ij on pairs of rows (x_i, y_j), see `jaxop.kernel_machines.fit`.

    Args:
        kernel: κ, or with span="product" a pair (κ_X, κ_Y); None means `jaxop.kernels.ExpDotProduct`.
        span: ``"sections"`` or ``"product"``.
        regularization: λ.
        solver: ``"spectral"`` or ``"cg"``; None means the first that applies.
        maps: maps of rows of different lengths to a common space.
        landmarks: number of rows of each domain that span the machine.
        random_state: an integer that seeds the choice of landmarks; None chooses them deterministically.
        tolerance: bound at which the solver stops.
        max_steps: largest number of steps of the solver.

    Attributes:
        machine_: the fitted `BinaryMachine`.
        n_features_in_: length of a row of X.

    Example:
        >>> import numpy as np
        >>> from jaxop import kernel_machines
        >>> X, Y = np.random.default_rng(0).normal(size=(2, 30, 2))
        >>> z = X[:, :1] * Y[:, 1] - 2 * X[:, 1:] * Y[:, 0]
        >>> machine = kernel_machines.BinaryKernelRegressor().fit(X[:20], Y[:20], z[:20, :20])
        >>> bool(machine.score(X[20:], Y[20:], z[20:, 20:]) > 0.8)
        True
    """

    def fit(
        self, X: ArrayLike, Y: ArrayLike, responses: Labels, mask: ArrayLike | None = None
    ) -> "BinaryKernelRegressor":
        """Fits the responses of pairs.

        Args:
            X: rows of the first domain, (nx, a).
            Y: rows of the second domain, (ny, b).
            responses: z_ij, (nx, ny), or a matrix of scipy.sparse whose stored entries are the observed pairs.
            mask: which pairs are observed, (nx, ny), or None for all pairs.

        Returns:
            The estimator itself.

        Raises:
            ValueError: for the reasons of `jaxop.kernel_machines.fit`.
        """
        return self._fit(X, Y, _rounded(responses), mask, "squared")

    def predict(self, X: ArrayLike, Y: ArrayLike) -> Float[np.ndarray, "nx ny"]:
        """Returns the values f(x_i, y_j), (nx, ny)."""
        return self._values(X, Y)

    def score(self, X: ArrayLike, Y: ArrayLike, responses: Labels, mask: ArrayLike | None = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the coefficient of determination R² of the observed responses."""
        values = self._values(X, Y)
        z, at = _observed(responses, mask, *values.shape)
        z = z.astype(np.float64)
        return 1 - float(np.sum((z - values[at]) ** 2) / np.sum((z - z.mean()) ** 2))


def _is_logistic(estimator: "BinaryKernelClassifier") -> bool:
    if estimator.loss != "logistic":
        raise AttributeError(f"predict_proba needs loss='logistic', got loss={estimator.loss!r}.")
    return True


class BinaryKernelClassifier(ClassifierMixin, _BinaryEstimator):
    """Classification of pairs of rows (x_i, y_j) into two classes, see `jaxop.kernel_machines.fit`.

    Args:
        kernel: κ, or with span="product" a pair (κ_X, κ_Y); None means `jaxop.kernels.ExpDotProduct`.
        loss: ``"logistic"``, ``"hinge"`` or ``"squared"``.
        span: ``"sections"`` or ``"product"``.
        regularization: λ.
        solver: a solver of `jaxop.kernel_machines.fit` for the loss; None means the first that applies.
        maps: maps of rows of different lengths to a common space.
        landmarks: number of rows of each domain that span the machine.
        random_state: an integer that seeds the choice of landmarks; None chooses them deterministically.
        tolerance: bound at which the solver stops.
        max_steps: largest number of steps of the solver.

    Attributes:
        classes_: the two labels; the second counts as +1.
        machine_: the fitted `BinaryMachine`.
        n_features_in_: length of a row of X.

    Example:
        >>> import numpy as np
        >>> from jaxop import kernel_machines
        >>> X, Y = np.random.default_rng(0).uniform(-1, 1, size=(2, 30, 2))
        >>> labels = np.where(X[:, :1] * Y[:, 1] > X[:, 1:] * Y[:, 0], "left", "right")
        >>> classifier = kernel_machines.BinaryKernelClassifier(regularization=0.1)
        >>> bool(classifier.fit(X[:20], Y[:20], labels[:20, :20]).score(X[20:], Y[20:], labels[20:, 20:]) > 0.9)
        True
    """

    def __init__(
        self,
        kernel: Kernels | None = None,
        *,
        loss: str = "logistic",
        span: str = "sections",
        regularization: float = 1e-4,
        solver: str | None = None,
        maps: Maps = None,
        landmarks: Landmarks = None,
        random_state: int | None = None,
        tolerance: float | None = None,
        max_steps: int | None = None,
    ):
        super().__init__(
            kernel,
            span=span,
            regularization=regularization,
            solver=solver,
            maps=maps,
            landmarks=landmarks,
            random_state=random_state,
            tolerance=tolerance,
            max_steps=max_steps,
        )
        self.loss = loss

    def fit(
        self, X: ArrayLike, Y: ArrayLike, responses: Labels, mask: ArrayLike | None = None
    ) -> "BinaryKernelClassifier":
        """Fits the labels of pairs.

        Args:
            X: rows of the first domain, (nx, a).
            Y: rows of the second domain, (ny, b).
            responses: labels of any type with two different values, (nx, ny), or a matrix of scipy.sparse whose stored
                entries are the observed pairs.
            mask: which pairs are observed, (nx, ny), or None for all pairs.

        Returns:
            The estimator itself.

        Raises:
            ValueError: unless the observed labels have two values, or for the reasons of `jaxop.kernel_machines.fit`.
        """
        if isinstance(responses, SparseMatrix):
            return self._fit(X, Y, _with_entries(responses, self._signs), mask, self.loss)
        labels = np.asarray(responses)
        seen = np.ones(labels.shape, bool) if mask is None else np.asarray(mask, bool)
        return self._fit(X, Y, self._signs(labels, seen), mask, self.loss)

    def _signs(self, labels: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
        """Returns ±1 for the two observed labels, which become ``classes_``."""
        classes = np.unique(labels if seen is None else labels[seen])
        if len(classes) != 2:
            raise ValueError(
                f"responses must have two different labels, got {len(classes)}: {classes[:5]}; leave unobserved "
                "pairs out by mask."
            )
        self.classes_ = classes
        return np.where(labels == classes[1], 1, -1).astype(float_dtype())

    def decision_function(self, X: ArrayLike, Y: ArrayLike) -> Float[np.ndarray, "nx ny"]:
        """Returns the values f(x_i, y_j), which are positive for the second class."""
        return self._values(X, Y)

    def predict(self, X: ArrayLike, Y: ArrayLike) -> np.ndarray:
        """Returns the labels of all pairs, (nx, ny)."""
        second = self._values(X, Y) > 0
        return self.classes_[second.astype(int)]

    @available_if(_is_logistic)
    def predict_proba(self, X: ArrayLike, Y: ArrayLike) -> Float[np.ndarray, "nx ny 2"]:
        """Returns the probabilities of both classes, (nx, ny, 2); needs the logistic loss."""
        second = np.asarray(jax.nn.sigmoid(self._values(X, Y)))
        return np.stack([1 - second, second], axis=-1)

    def score(self, X: ArrayLike, Y: ArrayLike, responses: Labels, mask: ArrayLike | None = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the share of observed labels that are predicted correctly."""
        predicted = self.predict(X, Y)
        if isinstance(responses, SparseMatrix):
            rows, columns, labels = stored(responses, "responses")
            return float(np.mean(predicted[rows, columns] == labels))
        right = predicted == np.asarray(responses)
        return float(np.mean(right if mask is None else right[np.asarray(mask, bool)]))
