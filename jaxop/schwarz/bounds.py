"""Errors of operators on samples, and the smallest error of a given rank."""

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxop._validation import first_index, host_real, is_concrete
from jaxop.domains import Domain
from jaxop.domains.measure import check_weights
from jaxop.schwarz.decomposition import Decomposition
from jaxop.schwarz.low_rank import best, svd
from jaxop.schwarz.operator import Factors, apply, as_factor, check_factors


def operator_error(
    decomposition: Decomposition, factors: Factors, inputs: Float[ArrayLike, "n m"], targets: Float[ArrayLike, "n m"]
) -> float:
    """‖M F − U‖ / ‖U‖ in L2 and the Frobenius norm over samples, ‖(M − A⁻¹)F‖ / ‖A⁻¹F‖ if U = A⁻¹F.

    Args:
        decomposition: see `schwarz.decompose`.
        factors: the factors of `apply`.
        inputs: F, one sample per column, (n, m).
        targets: U, (n, m).

    Raises:
        TypeError: if samples are complex.
        ValueError: if shapes do not fit, values are not finite, or U = 0.

    Example:
        >>> import numpy as np
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(31), 4, 2)
        >>> schwarz.operator_error(dec, schwarz.Factors(shift=1.0), np.eye(31), 2 * np.eye(31))
        0.5
    """
    check_factors(decomposition, factors)
    inputs, targets = checked_samples(decomposition.domain.weights, inputs, targets)
    root = np.sqrt(np.asarray(decomposition.domain.weights, np.float64))[:, None]
    run = jax.jit(apply)
    size = float(np.linalg.norm(root * targets))
    check_targets(size)
    outputs = np.asarray(run(as_factor(inputs), decomposition, factors), np.float64)
    return float(np.linalg.norm(root * (outputs - targets)) / size)


def low_rank_errors(
    inputs: Float[ArrayLike, "n m"], targets: Float[ArrayLike, "n m"], weights: Float[ArrayLike, " n"]
) -> np.ndarray:
    """‖M F − U‖ / ‖U‖ of the best operator M of rank 0, 1, 2, …, by Eckart and Young, in L2.

    This is a rigorous lower bound for every operator of the rank. If U = A⁻¹F, it is the error of the best global QKᵀ.

    Args:
        inputs: F, (n, m).
        targets: U, (n, m).
        weights: quadrature weights, (n,).

    Returns:
        rank(F) + 1 errors; the last is the error of the best linear map.

    Raises:
        TypeError: if samples are complex.
        ValueError: if shapes do not fit, values are not finite, weights are negative, or U = 0.

    Example:
        >>> import numpy as np
        >>> from jaxop import schwarz
        >>> print(schwarz.low_rank_errors(np.eye(2), np.diag([3.0, 4.0]), np.ones(2)))
        [1.  0.6 0. ]
    """
    inputs, targets = checked_samples(weights, inputs, targets)
    root = np.sqrt(np.asarray(weights, np.float64))[:, None]
    _, image, total = compress(root * inputs, root * targets)
    check_targets(total)
    return tails(image, total)


def optimal_low_rank(
    inputs: Float[ArrayLike, "n m"], targets: Float[ArrayLike, "n m"], weights: Float[ArrayLike, " n"], rank: int
) -> tuple[Float[Array, "n r"], Float[Array, "n r"]]:
    """Q and K of the best global Q Kᵀ W of a rank, by the truncated singular value decomposition on the span of F.

    Args:
        inputs: F, (n, m).
        targets: U, (n, m).
        weights: positive quadrature weights, (n,).
        rank: r.

    Returns:
        Q and K for `low_rank_apply`, in units of u and one over f times length^dim.

    Raises:
        TypeError: if samples are complex.
        ValueError: if the rank is outside 0 … n, shapes do not fit, values are not finite, or weights are not
            positive.

    Example:
        >>> import numpy as np
        >>> from jaxop import schwarz
        >>> Q, K = schwarz.optimal_low_rank(np.eye(2), np.diag([3.0, 4.0]), np.ones(2), 1)
        >>> print(np.asarray(Q @ K.T).round(5))
        [[0. 0.]
         [0. 4.]]
    """
    inputs, targets = checked_samples(weights, inputs, targets)
    weights = np.asarray(weights, np.float64)
    if not 0 <= rank <= weights.size:
        raise ValueError(f"rank must lie between 0 and the {weights.size} nodes, got {rank}.")
    if not (weights > 0).all():
        raise ValueError(
            f"weights must be positive, but weights[{first_index(weights <= 0)}] is not; leave the node out."
        )
    root = np.sqrt(weights)[:, None]
    query, key = best(np.eye(weights.size), root * inputs, root * targets, rank)
    return as_factor(query / root), as_factor(key / root)  # pyright: ignore[reportReturnType]


def compress(source: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns samples in an orthonormal basis of the combinations with nonzero input, and ‖image‖ before that."""
    basis = svd(source, max(source.shape) * np.finfo(np.float64).eps)[2].T
    return source @ basis, image @ basis, float(np.linalg.norm(image))


def tails(image: np.ndarray, total: float) -> np.ndarray:
    """Returns errors of the best approximations of rank 0, 1, … of an image, relative to a total at least as large."""
    squares = np.linalg.svd(image, compute_uv=False) ** 2
    lost = max(total**2 - squares.sum(), 0.0)
    lost = lost if lost > 1e-13 * total**2 else 0.0  # rounding
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0) + lost
    return np.sqrt(tails) / total


def check_targets(size: float) -> None:
    """Raises ``ValueError`` if targets have size 0."""
    if not size > 0:
        raise ValueError("targets are 0 everywhere; a relative error needs targets that are not 0.")


def checked_samples(weights: object, inputs: object, targets: object) -> tuple[np.ndarray, np.ndarray]:
    """Returns samples on the host, which are finite and of one shape, with a row for every weight."""
    if not is_concrete(inputs, targets, weights):
        raise ValueError("inputs, targets and decomposition must be concrete to be fitted; call it outside jax.jit.")
    if isinstance(weights, Domain):
        raise TypeError(f"weights must be an array (n,), got {type(weights).__name__}; pass domain.weights.")
    weights = np.asarray(weights)
    if weights.ndim != 1:
        raise ValueError(f"weights must have shape (n,), got {weights.shape}.")
    check_weights(weights)
    arrays = host_real(inputs, "inputs"), host_real(targets, "targets")
    n = weights.size
    for name, array in zip(("inputs", "targets"), arrays, strict=True):
        if array.ndim != 2 or array.shape[0] != n or array.shape != arrays[0].shape or not array.shape[1]:
            raise ValueError(
                f"{name} must have shape (n, m) = ({n}, m), one row per weight and one column per sample, alike for "
                f"inputs and targets; got {arrays[0].shape} and {arrays[1].shape}."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, but {name}[{first_index(~np.isfinite(array))}] is not.")
    return arrays
