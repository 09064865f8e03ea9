"""Factors of two-level Schwarz attention from samples: first each block, then all factors together."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxop._validation import is_integer, is_numeric
from jaxop.schwarz.decomposition import Decomposition
from jaxop.schwarz.gauss_newton import gauss_newton
from jaxop.schwarz.low_rank import best, best_symmetric
from jaxop.schwarz.objective import Blocks, Objective
from jaxop.schwarz.operator import Factors, as_factor, check_decomposition, check_factors, check_ranks


@dataclasses.dataclass(frozen=True)
class Fit:
    """Result of `fit`.

    Attributes:
        factors: the factors; with features, their coefficients, see `sample_factors`.
        errors: ‖(M − A⁻¹)F‖ / ‖A⁻¹F‖ at the start and after every step, in L2 and the Frobenius norm over samples;
            the last is the error of ``factors``, rounded to their dtype.
        bound: lower bound of the error on these samples of every operator of rank p·r + r0 (plus the shift).
        converged: True if the fit stopped because steps no longer helped, False at the largest number of steps.
    """

    factors: Factors
    errors: np.ndarray
    bound: float
    converged: bool


def fit(
    decomposition: Decomposition,
    inputs: Float[ArrayLike, "n m"],
    targets: Float[ArrayLike, "n m"],
    *,
    rank: int,
    coarse_rank: int | None = None,
    symmetric: bool = False,
    features: Callable[[Float[Array, "s dim"]], Float[Array, "s q"]] | None = None,
    initial: Factors | None = None,
    shift: Float[Array, ""] | float | None = None,
    noise: float = 1e-6,
    steps: int = 60,
    tolerance: float = 1e-3,
) -> Fit:
    """Factors that minimise Σ_j ‖M f_j − u_j‖² in L2, by block singular value decompositions and Gauss–Newton steps.

    First each block in turn gets the best factors of its rank for the residual of the others, by a singular value
    decomposition. The coarse block comes first; if a start is given, only the local blocks are fitted. Then all factors
    move together by damped Gauss–Newton steps (Levenberg–Marquardt). Both phases alternate while the error falls,
    because the block phase escapes from saddle points, where the steps stop. A symmetric fit starts from the symmetric
    factors nearest to those of the general fit, because its own block phase can get stuck. If ``inputs`` is a factor F
    of a covariance (FFᵀ = E f fᵀ) and ``targets`` is A⁻¹F, this minimises the expected error.

    Args:
        decomposition: see `schwarz.decompose`.
        inputs: right-hand sides f_j, one per column, (n, m).
        targets: solutions u_j, (n, m).
        rank: r of every subdomain; 0 omits the local part.
        coarse_rank: r0; None means n0, 0 omits the coarse part.
        symmetric: whether K = Q, so that the operator is symmetric and positive semi-definite (plus the shift).
        features: B of `sample_factors`, so that the factors become functions that other grids can sample. None fits
            free values at the nodes. Few or scattered nodes, and subdomains without overlap, have quadrature errors,
            which the factors would compensate on these nodes only. In this case pass ``noise`` of the size of these
            errors, so that the operator is accurate on other nodes too.
        initial: factors to start from (`galerkin_factors` if A is known), of any ranks; None starts from the best
            blocks. It cannot be combined with ``features``.
        shift: σ of σ·v, fixed; None means 0.
        noise: assumed size of white noise in the inputs, relative to them, for each part of the operator. It bounds
            the parts on functions that no sample contains, where they are otherwise arbitrary. It is at least the
            rounding of the factors, 1.2e-7 without ``jax_enable_x64``.
        steps: largest number of Gauss–Newton steps, counted separately for a symmetric fit and for the general fit
            before it; 0 keeps the start.
        tolerance: the fit stops when five steps, or another block phase, lower the error by less than this share of it.

    Returns:
        A `Fit`.

    Raises:
        TypeError: if samples are complex.
        ValueError: if shapes do not fit, values are not finite or not concrete, or a rank exceeds the size of a
            subdomain or the coarse space.

    Cost: on the host, in float64: O(p s² (s + m) + n (n0² + m²)) for the start with p subdomains of s nodes and m
        samples, at most n; O((p s + n0) r m) for each of up to 100 steps of conjugate gradients in a Gauss–Newton
        step; memory O((n + p s) m + n n0 + p s²).

    Example:
        >>> import numpy as np
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(31, rule="interior"), 4, 2)
        >>> A = 32**2 * (2 * np.eye(31) - np.eye(31, k=1) - np.eye(31, k=-1))
        >>> fit = schwarz.fit(dec, np.eye(31), np.linalg.inv(A), rank=2, steps=5)
        >>> bool(fit.bound < fit.errors[-1] < 0.03)
        True
    """
    check_decomposition(decomposition)
    if not is_integer(steps) or steps < 0:
        raise ValueError(f"steps must be an integer of at least 0, got {steps!r}.")
    if not is_numeric(tolerance) or not tolerance >= 0:
        raise ValueError(f"tolerance must be a number of at least 0, got {tolerance!r}.")
    objective = Objective(decomposition, inputs, targets, features, shift, noise)
    coarse_rank = decomposition.coarse_size if coarse_rank is None else coarse_rank
    check_ranks(decomposition, rank, coarse_rank, None if features is None else objective.local_basis.shape[2])
    ranks = [coarse_rank] + [rank] * decomposition.subdomains
    if initial is None:
        zeros = [np.zeros((len(gram), r)) for gram, r in zip(objective.grams, ranks, strict=True)]
        pairs = list(zip(zeros, zeros, strict=True))
        order = range(len(ranks))
    else:
        if features is not None:
            raise ValueError("initial holds values at the nodes, but features need coefficients; give one of them.")
        check_factors(decomposition, initial)
        for name in ("coarse_query", "coarse_key", "local_query", "local_key"):
            array = getattr(initial, name)
            acting = array if array is None or name.startswith("coarse") else array[decomposition.cover.inside]
            if acting is not None and not np.isfinite(np.asarray(acting)).all():
                raise ValueError(f"initial.{name} must be finite, but holds infinities or NaN.")
        if initial.shift is not None and (shift is None or not np.isclose(float(initial.shift), shift, rtol=1e-5)):
            raise ValueError(
                f"shift must be the shift of initial, {float(initial.shift):.6g}, which fits its factors, got {shift}."
            )
        pairs = objective.split(initial, ranks)
        begun = 0 if initial.coarse_query is None else initial.coarse_query.shape[1]
        order = range(0 if symmetric or begun < coarse_rank else 1, len(ranks))
    if symmetric:
        if initial is None:
            pairs, _, _ = _minimise(objective, pairs, ranks, order, False, steps, float(tolerance))
        pairs = _symmetrised(objective, pairs, ranks)
    pairs, errors, converged = _minimise(objective, pairs, ranks, order, symmetric, steps, float(tolerance))
    bound = objective.bound(sum(ranks))
    pairs = [(np.asarray(as_factor(q), np.float64), np.asarray(as_factor(k), np.float64)) for q, k in pairs]
    errors[-1] = objective.relative(objective.residual(pairs))
    return Fit(objective.join(pairs, symmetric), np.asarray(errors), bound, converged)


def _symmetrised(objective: Objective, pairs: Blocks, ranks: list[int]) -> Blocks:
    """Returns the nearest symmetric part of every block on inputs and noise, or zeros if they have a lower cost."""
    queries = [
        best_symmetric(gram, second, gram @ q @ (k.T @ second), rank)
        for gram, second, (q, k), rank in zip(objective.grams, objective.seconds, pairs, ranks, strict=True)
    ]
    nearest, zeros = ([(q, q) for q in side] for side in (queries, [np.zeros_like(q) for q in queries]))
    costs = [objective.cost(objective.residual(start), start) for start in (nearest, zeros)]
    return nearest if costs[0] < costs[1] else zeros


def _best_blocks(objective: Objective, pairs: Blocks, ranks: list[int], order: range, symmetric: bool) -> Blocks:
    """Replaces every block of ``order`` in turn by the best block of its rank for the residual of the others."""
    pairs = list(pairs)
    residual = objective.residual(pairs)
    for b in order:
        (rows, side), moment, old = objective.side(b), objective.moments[b], pairs[b]
        left = residual[rows] - side @ (old[0] @ (old[1].T @ moment))
        if symmetric:
            factor = best_symmetric(objective.grams[b], objective.seconds[b], -side.T @ left @ moment.T, ranks[b])
            new = factor, factor
        else:
            values, vectors = np.linalg.eigh(objective.grams[b])
            noise = np.sqrt(objective.variance * np.maximum(values, 0)) * vectors  # noise noiseᵀ = ε² G_b
            image = np.concatenate([-left, np.zeros((rows.size, values.size))], axis=1)
            new = best(side, np.concatenate([moment, noise], axis=1), image, ranks[b])
        candidate = left + side @ (new[0] @ (new[1].T @ moment))
        costs = [
            np.sum(error**2) + objective.noise_of(b, pair) for error, pair in ((candidate, new), (residual[rows], old))
        ]
        if costs[0] < costs[1]:  # a truncated symmetric block is optimal in another norm
            pairs[b], residual[rows] = new, candidate
    return pairs


def _minimise(
    objective: Objective, pairs: Blocks, ranks: list[int], order: range, symmetric: bool, steps: int, tolerance: float
) -> tuple[Blocks, list[float], bool]:
    """Alternates the block phase, which leaves saddles, and steps in all factors until the error no longer falls."""
    moved = _best_blocks(objective, pairs, ranks, order, symmetric)
    pairs, errors = gauss_newton(objective, moved, symmetric, steps, tolerance)
    while len(errors) <= steps:
        moved = _best_blocks(objective, pairs, ranks, range(len(ranks)), symmetric)
        pairs, more = gauss_newton(objective, moved, symmetric, steps + 1 - len(errors), tolerance)
        before, errors = errors[-1], errors + more[1:]
        if not errors[-1] < (1 - tolerance) * before:
            return pairs, errors, True
    return pairs, errors, False
