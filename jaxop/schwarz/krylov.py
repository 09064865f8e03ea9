"""Schwarz attention as a preconditioner of the equation whose solution operator it approximates."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxop._pytree import register
from jaxop._scaling import unit_of
from jaxop._sparse import SparseMatrix
from jaxop._validation import accumulator, as_float, is_integer, is_numeric
from jaxop._varying import varying_like
from jaxop.schwarz.decomposition import Decomposition
from jaxop.schwarz.operator import Factors, apply, check_factors


@runtime_checkable
class MatrixLike(Protocol):
    """Dense array, or matrix of `jax.experimental.sparse`."""

    def __matmul__(self, x: Array, /) -> Array: ...


Linear: TypeAlias = Callable[[Array], Array] | MatrixLike
"""Linear map of (n,), a function or a matrix."""


def preconditioner(
    decomposition: Decomposition, factors: Factors
) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Returns r ↦ M⁻¹ W⁻¹ r, symmetric without keys, the ``M`` of `jax.scipy.sparse.linalg.cg`.

    A residual of W A u = W f, with the symmetric matrix of a bilinear form, contains the weights already, and `apply`
    would multiply by them again. On grids of equal weights the weights are a factor that does not change conjugate
    gradients, so that the matrix may be A itself. Factors of low rank map functions that they do not represent to 0.
    Conjugate gradients then converge only with a ``shift`` > 0. The best shift has the size of the largest eigenvalue
    of A⁻¹ that the factors do not represent.

    Args:
        decomposition: see `schwarz.decompose`.
        factors: factors of a symmetric operator for `jax.scipy.sparse.linalg.cg` (without keys, or Galerkin blocks of
            a symmetric matrix); any factors for `flexible_cg`.

    Returns:
        A function of (n,) or (n, c), a pytree that may pass through `jax.jit`. On nodes of weight 0 it returns 0.

    Raises:
        ValueError: if factors do not fit.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jax.scipy.sparse.linalg import cg
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
        >>> A = 64**2 * (2 * np.eye(63) - np.eye(63, k=1) - np.eye(63, k=-1))
        >>> M = schwarz.preconditioner(dec, schwarz.galerkin_factors(dec, A, blocks="overlap"))
        >>> u, _ = cg(jnp.asarray(A, jnp.float32), jnp.ones(63), M=M, maxiter=20)
        >>> print(u.max().round(3))  # of x (1 - x) / 2
        0.125
    """
    check_factors(decomposition, factors)
    return jax.tree_util.Partial(_precondition, decomposition, factors)


def _precondition(decomposition: Decomposition, factors: Factors, residual: Array) -> Array:
    residual = as_float(residual, "residual")
    n = decomposition.domain.size
    if residual.ndim not in (1, 2) or residual.shape[0] != n:
        raise ValueError(f"residual must have shape (n,) or (n, c) with n = {n} nodes, got {residual.shape}.")
    columns = residual[:, None] if residual.ndim == 1 else residual
    wide = accumulator(residual.dtype)  # densities overflow half precision
    weights = decomposition.domain.weights.astype(wide)[:, None]
    density = jnp.where(weights > 0, columns.astype(wide) / jnp.where(weights > 0, weights, 1), 0)
    out = jnp.where(weights > 0, apply(density, decomposition, factors), 0)
    return out.reshape(residual.shape).astype(residual.dtype)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class CGResult:
    """Result of conjugate gradients.

    Attributes:
        solution: x.
        iterations: number of steps, each with one application of the matrix and one of the preconditioner.
        residual: ‖b − A x‖ / ‖b‖ by the recursion. It exceeds the tolerance if the largest number of steps was reached
            or a search direction had pᵀA p ≤ 0, and is NaN after an overflow.
    """

    solution: Float[Array, " n"]
    iterations: Int[Array, ""]
    residual: Float[Array, ""]


def flexible_cg(
    matrix: Callable[[Float[Array, " n"]], Float[Array, " n"]] | Float[Array, "n n"],
    rhs: Float[Array, " n"],
    *,
    preconditioner: Callable[[Float[Array, " n"]], Float[Array, " n"]] | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> CGResult:
    """Solves A x = b, A symmetric positive definite, with any preconditioner: β = zₖ₊₁ᵀ(rₖ₊₁ − rₖ) / zₖᵀrₖ.

    With a symmetric positive definite preconditioner these are conjugate gradients. If the preconditioner is not quite
    symmetric (a fitted operator) or not quite linear, each search direction is still conjugate to the previous one.

    Args:
        matrix: A, a function of (n,), or an array (n, n), dense or a `jax.experimental.sparse.BCOO`.
        rhs: b, (n,).
        preconditioner: z = M⁻¹ r, a function of (n,); None means the identity.
        tolerance: stop at ‖r‖ ≤ tolerance·‖b‖; float32 reaches about 1e-6.
        max_iterations: largest number of steps.

    Returns:
        A `CGResult`. If ``rhs`` is in half precision, the steps run in float32.

    Raises:
        TypeError: if the matrix is of scipy.sparse, or the preconditioner is not a function.
        ValueError: if ``rhs`` is not a vector, ``tolerance`` is not positive, ``max_iterations`` is not an integer of
            at least 0, or a function does not return (n,).

    Cost: one product with A and one with M⁻¹ per step; memory O(n). Outside `jax.jit`, arrays and a
        `jax.tree_util.Partial` of arrays (`preconditioner`) compile once per shape, other functions at each
        call.

    Source: Notay, "Flexible conjugate gradients", SIAM J. Sci. Comput. 22, 2000.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import schwarz
        >>> result = schwarz.flexible_cg(lambda x: jnp.array([1.0, 2.0]) * x, jnp.ones(2))
        >>> print(result.solution, result.iterations)
        [1.  0.5] 2
    """
    rhs = as_float(rhs, "rhs")
    if rhs.ndim != 1:
        raise ValueError(f"rhs must have shape (n,), got {rhs.shape}; use jax.vmap for several right-hand sides.")
    if not is_numeric(tolerance) or np.ndim(tolerance):
        raise TypeError(f"tolerance must be one positive number, got {tolerance!r}.")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}.")
    if not is_integer(max_iterations) or max_iterations < 0:
        raise ValueError(f"max_iterations must be an integer of at least 0, got {max_iterations!r}.")
    if isinstance(matrix, SparseMatrix):
        raise TypeError(
            "matrix is of scipy.sparse, which JAX does not accept; pass jax.experimental.sparse.BCOO.from_scipy_sparse("
            "matrix), matrix.toarray(), or a function."
        )
    if isinstance(preconditioner, Factors):
        raise TypeError(
            "preconditioner must be a function of (n,), got schwarz.Factors; pass "
            "schwarz.preconditioner(decomposition, factors)."
        )
    wide = accumulator(rhs.dtype)
    arrays = jax.tree.leaves((matrix, preconditioner))
    if all(isinstance(leaf, jax.Array | np.ndarray | float) for leaf in arrays):
        solve = functools.partial(_compiled, matrix, preconditioner)
    else:
        # a function may close over what changes, so its program is used only for this call
        solve = jax.jit(lambda *arguments: _conjugate_gradients(matrix, preconditioner, *arguments))
    solution, steps, residual = solve(rhs.astype(wide), float(tolerance), int(max_iterations))
    return CGResult(solution.astype(rhs.dtype), steps, residual)


def _conjugate_gradients(
    matrix: Linear, preconditioner: Linear | None, rhs: Array, tolerance: ArrayLike, max_iterations: ArrayLike
) -> tuple[Array, Array, Array]:
    """Returns x, the number of steps and the relative residual."""
    n = rhs.size

    def product(name: str, function: Linear, x: Array) -> Array:
        out = jnp.asarray(function(x) if callable(function) else function @ x)
        if out.shape != (n,):
            raise ValueError(f"{name} must map (n,) = ({n},) to (n,), got {out.shape}.")
        return out.astype(rhs.dtype)

    def precondition(residual: Array) -> Array:
        return residual if preconditioner is None else product("preconditioner", preconditioner, residual)

    unit = unit_of(jnp.max(jnp.abs(rhs), initial=0))  # squares of the residual do not overflow or underflow
    scaled = rhs / unit
    size = jnp.linalg.norm(scaled)
    size = jnp.where(size > 0, size, 1)
    State = tuple[Array, Array, Array, Array, Array, Array, Array]

    def unfinished(state: State) -> Array:
        _, r, _, _, _, k, sound = state
        return (jnp.linalg.norm(r) > tolerance * size) & (k < max_iterations) & sound

    def advance(state: State) -> State:
        x, r, z, p, rho, k, _ = state
        image = product("matrix", matrix, p)
        curvature = jnp.vdot(p, image)
        sound = curvature > 0
        alpha = jnp.where(sound, rho / jnp.where(sound, curvature, 1), 0)
        new = r - alpha * image
        z = precondition(new)
        beta = jnp.vdot(z, new - r) / jnp.where(rho == 0, 1, rho)
        return x + alpha * p, new, z, z + beta * p, jnp.vdot(z, new), k + 1, sound

    z = precondition(scaled)
    start = (jnp.zeros_like(scaled), scaled, z, z, jnp.vdot(z, scaled), jnp.zeros((), jnp.int32), jnp.array(True))
    start = varying_like(start, jax.eval_shape(advance, start))
    x, r, *_, k, _ = jax.lax.while_loop(unfinished, advance, start)
    return unit * x, k, jnp.linalg.norm(r) / size


_compiled = jax.jit(_conjugate_gradients)
