"""One reader for matrices of scipy.sparse, BCOO matrices and dense matrices."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

from jaxop._validation import first_index, host_real, shape_of


@runtime_checkable
class SparseMatrix(Protocol):
    """A matrix of scipy.sparse, or any object with `tocoo`."""

    shape: tuple[int, ...]

    def tocoo(self) -> Any:
        """Returns an object with ``row``, ``col`` and ``data``."""
        ...


@runtime_checkable
class CoordinateMatrix(Protocol):
    """A `jax.experimental.sparse.BCOO` matrix.

    Attributes:
        indices: rows and columns, (k, 2); indices beyond the shape are padding.
        data: entries, (k,).
        shape: (n, m).
    """

    indices: Array
    data: Array
    shape: tuple[int, ...]

    @property
    def n_batch(self) -> int:
        """0."""
        ...

    @property
    def n_dense(self) -> int:
        """0."""
        ...


@dataclasses.dataclass(frozen=True)
class Entries:
    """A matrix as a list of entries on the host; entries at the same place add up.

    Attributes:
        row: rows, (k,).
        column: columns, (k,).
        value: entries in float64, (k,).
        shape: (n, m).
    """

    row: Int[np.ndarray, " k"]
    column: Int[np.ndarray, " k"]
    value: Float[np.ndarray, " k"]
    shape: tuple[int, int]


def stored(
    matrix: SparseMatrix | CoordinateMatrix, argument: str
) -> tuple[Array | np.ndarray, Array | np.ndarray, Array | np.ndarray]:
    """Returns the rows, columns and data that a sparse matrix stores, as JAX arrays (possibly traced) or NumPy arrays.

    Raises:
        ValueError: if a BCOO matrix has batch or dense axes.

    Example:
        >>> import scipy.sparse
        >>> from jaxop._sparse import stored
        >>> [part.tolist() for part in stored(scipy.sparse.csr_array([[0.0, 2.0], [3.0, 0.0]]), "matrix")]
        [[0, 1], [1, 0], [2.0, 3.0]]
    """
    if isinstance(matrix, CoordinateMatrix):
        if matrix.n_batch or matrix.n_dense:
            raise ValueError(
                f"{argument} must be a BCOO matrix without batch and dense axes, got n_batch={matrix.n_batch} and "
                f"n_dense={matrix.n_dense}; see BCOO.update_layout."
            )
        return matrix.indices[:, 0], matrix.indices[:, 1], matrix.data
    listed = matrix.tocoo()
    return listed.row, listed.col, listed.data


def entries(matrix: object, argument: str) -> Entries:
    """Returns the entries of a concrete matrix, dense or sparse; those of a sparse matrix may include zeros.

    Raises:
        TypeError: if entries are complex.
        ValueError: if entries are not finite.
    """
    if isinstance(matrix, CoordinateMatrix | SparseMatrix):
        parts = stored(matrix, argument)
        row, column = (np.asarray(part, np.int64) for part in parts[:2])
        value = host_real(parts[2], argument)
        inside = (row < matrix.shape[0]) & (column < matrix.shape[1])
        row, column, value = row[inside], column[inside], value[inside]
    else:
        dense = host_real(matrix, argument)
        row, column = np.nonzero(dense)
        value = dense[row, column]
    if not np.isfinite(value).all():
        j = first_index(~np.isfinite(value))
        raise ValueError(f"{argument} must be finite, but {argument}[{row[j]}, {column[j]}] = {value[j]}.")
    n, m = shape_of(matrix)
    return Entries(row, column, value, (n, m))
