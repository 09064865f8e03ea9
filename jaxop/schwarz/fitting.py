"""Factors of two-level Schwarz attention from matrices and from data, and what the form can reach at best."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import (
    check_name,
    first_index,
    float_dtype,
    host_real,
    is_concrete,
    is_integer,
    is_numeric,
    require,
)
from jaxop.domains import Domain
from jaxop.schwarz import Decomposition
from jaxop.schwarz.operator import (
    SchwarzFactors,
    as_factor,
    check_decomposition,
    check_factors,
    check_ranks,
    schwarz_apply,
)

BLOCKS = ("interior", "overlap")
"""Which nodes the local blocks of `galerkin_factors` take."""

_CG_STEPS, _CG_TOLERANCE = 100, 1e-2
"""When conjugate gradients for a Gauss–Newton step stop."""

_Factors: TypeAlias = list[tuple[np.ndarray, np.ndarray]]
"""(Q_b, K_b) of every block, the coarse one first."""


def galerkin_factors(
    decomposition: Decomposition,
    matrix: Any,
    rank: int | None = None,
    *,
    blocks: str = "interior",
    symmetric: bool = False,
    shift: float | None = None,
) -> SchwarzFactors:
    """Q0 K0ᵀ = (Φᵀ W A Φ)⁻¹ and D_i^½ Q_i K_iᵀ D_i^½ = (E_iᵀ W A E_i)⁻¹, truncated to rank r.

    ``blocks="interior"``: E_i are the nodes of a core that the matrix ties to no core of smaller number, so that
    blocks do not know each other. In one dimension with nodes where cores meet the sum is A⁻¹ exactly if the coarse
    functions solve A φ = 0 inside the cores: hats do for −u″, the columns of A⁻¹ at those nodes for any symmetric A
    of second order; other sums may be far from it. In several dimensions the nodes between cores are in no block, and
    the sum, of many zero eigenvalues, is no preconditioner. ``blocks="overlap"``: all nodes of a subdomain, which is
    the additive Schwarz preconditioner of A, two-level with a coarse space and one-level without.

    Args:
        decomposition: see `schwarz.decompose`; D must be positive on the blocks.
        matrix: A with f = A u at the nodes, (n, n), dense or scipy.sparse.
        rank: r, by the singular value decomposition in L2; None keeps all of it.
        blocks: one of `BLOCKS`.
        symmetric: K = Q, for an A that is symmetric and positive definite in L2, W A = Aᵀ W: half the numbers.
        shift: σ of the factors.

    Returns:
        Factors with the full coarse rank; without a coarse part if there is no coarse space.

    Raises:
        TypeError: for complex entries.
        ValueError: for a shape that does not fit, an entry that is not finite, a block that is singular, D = 0 or a
            weight of 0 on a block, an unknown name, a rank above the size of a subdomain, a block that is not symmetric
            and positive definite if it should be, and inside `jax.jit`.

    Cost: O(p s³ + n0³) time and O(p s² + n n0) memory on the host, in float64.

    Example:
        >>> import numpy as np
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 0)
        >>> A = 64**2 * (2 * np.eye(63) - np.eye(63, k=1) - np.eye(63, k=-1))
        >>> inverse = schwarz.schwarz_matrix(dec, schwarz.galerkin_factors(dec, A))
        >>> bool(abs(inverse - np.linalg.inv(A)).max() < 1e-6)
        True
    """
    check_name(blocks, "blocks", BLOCKS)
    check_decomposition(decomposition)
    _check_shift(shift)
    if not is_concrete(matrix, decomposition.domain.weights, decomposition.partition):
        raise ValueError("matrix and decomposition must be concrete: call galerkin_factors outside jax.jit.")
    n, p, s = decomposition.domain.size, decomposition.subdomains, decomposition.local_size
    check_ranks(decomposition, 0 if rank is None else rank, 0)
    weights = np.asarray(decomposition.domain.weights, np.float64)
    row, column, value = _entries(matrix, n)
    value = weights[row] * value
    index, inside = np.asarray(decomposition.cover.index), np.asarray(decomposition.cover.inside)
    partition = np.asarray(decomposition.partition, np.float64)
    member = inside
    if blocks == "interior":
        owner = _owners(decomposition)
        tied = np.zeros(n, bool)
        tied[row[owner[column] < owner[row]]] = True
        tied[column[owner[row] < owner[column]]] = True
        member = inside & (owner[index] == np.arange(p)[:, None]) & ~tied[index]
    if (weights[index[member]] <= 0).any():
        node = index[member][first_index(weights[index[member]] <= 0)]
        raise ValueError(f"weights must be positive on the blocks, but that of node {node} is 0; leave the node out.")
    if (partition[member] <= 0).any():
        i, j = first_index(member & (partition <= 0))  # pyright: ignore[reportGeneralTypeIssues]
        raise ValueError(
            f"the partition of unity is 0 on node {index[i, j]} of subdomain {i}, which no factor can undo; use "
            "partition='multiplicity'."
        )

    def inverse(block: np.ndarray, where: str) -> np.ndarray:
        if symmetric:
            _check_definite(block, where)
        return _inverse(block, where)

    order = np.argsort(row, kind="stable")
    row, column, value = row[order], column[order], value[order]
    start = np.searchsorted(row, np.arange(n + 1))
    local_rank = s if rank is None else rank
    query, key = np.zeros((p, s, local_rank)), np.zeros((p, s, local_rank))
    place = np.full(n, -1)
    for i in range(p):
        where = np.flatnonzero(member[i])
        nodes = index[i, where]
        place[nodes] = np.arange(nodes.size)
        entries = np.concatenate(
            [np.arange(int(start[node]), int(start[node + 1])) for node in nodes] or [np.zeros(0, int)]
        )
        entries = entries[place[column[entries]] >= 0]
        block = np.zeros((nodes.size, nodes.size))
        np.add.at(block, (place[row[entries]], place[column[entries]]), value[entries])
        place[nodes] = -1
        root = np.sqrt(weights[nodes])
        left, right = _truncate(root[:, None] * inverse(block, f"subdomain {i}") * root, local_rank, symmetric)
        undo = 1 / (root * np.sqrt(partition[i, where]))
        query[i, where, : left.shape[1]], key[i, where, : left.shape[1]] = undo[:, None] * left, undo[:, None] * right
    coarse = (None, None)
    if decomposition.coarse is not None:
        basis = _coarse_columns(decomposition)
        image = np.zeros_like(basis)
        np.add.at(image, row, value[:, None] * basis[column])  # W A Φ
        energy = basis.T @ image
        coarse = _truncate(inverse(energy, "the coarse space"), decomposition.coarse_size, symmetric)
    if symmetric:
        coarse, key = (coarse[0], None), None
    return SchwarzFactors(*(as_factor(a) for a in (*coarse, query, key)), shift=shift)


@dataclasses.dataclass(frozen=True)
class SchwarzFit:
    """What `fit_schwarz` found.

    Attributes:
        factors: the factors; with features, their coefficients, see `sample_factors`.
        errors: ‖(M − A⁻¹)F‖ / ‖A⁻¹F‖ at the start and after every step, in L2 and the Frobenius norm over samples;
            the last is that of ``factors``, rounded to their dtype.
        bound: no operator of rank p·r + r0 (or shift and that) has a smaller error on these samples.
        converged: whether the fit stopped because steps no longer helped, not because there were no more of them.
    """

    factors: SchwarzFactors
    errors: np.ndarray
    bound: float
    converged: bool


def fit_schwarz(
    decomposition: Decomposition,
    inputs: Float[Any, "n m"],
    targets: Float[Any, "n m"],
    *,
    rank: int,
    coarse_rank: int | None = None,
    symmetric: bool = False,
    features: Callable[[Float[Array, "s dim"]], Float[Array, "s q"]] | None = None,
    initial: SchwarzFactors | None = None,
    shift: Float[Array, ""] | float | None = None,
    noise: float = 1e-6,
    steps: int = 60,
    tolerance: float = 1e-3,
) -> SchwarzFit:
    """Factors that minimise Σ_j ‖M f_j − u_j‖² in L2, by block singular value decompositions and Gauss–Newton steps.

    First each block in turn takes the best factors of its rank for what the others leave (a singular value
    decomposition; the coarse one first, or only the local ones after a given start). Then all factors move at
    once by damped Gauss–Newton steps (Levenberg–Marquardt), and blocks again, which leave the saddles where these stop,
    for as long as it helps. A symmetric fit starts from the symmetric factors next to those of the general one, which
    is far from where its own blocks in turn get stuck. With ``inputs`` a factor F of a covariance (FFᵀ = E f fᵀ) and
    ``targets`` A⁻¹F this is the fit of the population.

    Args:
        decomposition: see `schwarz.decompose`.
        inputs: right-hand sides f_j, one per column, (n, m).
        targets: solutions u_j, (n, m).
        rank: r of every subdomain; 0 for no local part.
        coarse_rank: r0; None for n0, 0 for no coarse part.
        symmetric: K = Q: an operator that is symmetric and positive semi-definite (plus the shift).
        features: B of `sample_factors`: the factors become functions that other grids can sample. None: free values
            at the nodes. Few or scattered nodes, and subdomains without overlap, have quadrature errors, which the
            factors would undo on these nodes alone: give ``noise`` of that size there, or the operator is none on
            others.
        initial: factors to start from (`galerkin_factors` where A is known), of any ranks; not with features.
        shift: σ of σ·v, fixed.
        noise: size of white noise that the inputs are taken to carry, relative to them, seen by each part of the
            operator alone: it keeps them bounded on functions that no sample contains, where they are otherwise
            arbitrary. At least the rounding of the factors, 1.2e-7 without ``jax_enable_x64``.
        steps: most Gauss–Newton steps, of a symmetric fit and of the general one before it each; 0 keeps the start.
        tolerance: stop when five steps, or another round over the blocks, lower the error by less than this part of it.

    Returns:
        A `SchwarzFit`.

    Raises:
        TypeError: for complex samples.
        ValueError: for shapes that do not fit, values that are not finite or not concrete, ranks above the size of a
            subdomain or the coarse space.

    Cost: on the host, in float64: O(p s² (s + m) + n (n0² + m²)) for the start with p subdomains of s nodes and m
        samples, at most n; O((p s + n0) r m) for each of up to 100 steps of conjugate gradients in a Gauss–Newton
        step; memory O((n + p s) m + n n0 + p s²).

    Example:
        >>> import numpy as np
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(31, rule="interior"), 4, 2)
        >>> A = 32**2 * (2 * np.eye(31) - np.eye(31, k=1) - np.eye(31, k=-1))
        >>> fit = schwarz.fit_schwarz(dec, np.eye(31), np.linalg.inv(A), rank=2, steps=5)
        >>> bool(fit.bound < fit.errors[-1] < 0.03)
        True
    """
    check_decomposition(decomposition)
    if not is_integer(steps) or steps < 0:
        raise ValueError(f"steps must be an integer of at least 0, got {steps!r}.")
    if not is_numeric(tolerance) or not tolerance >= 0:
        raise ValueError(f"tolerance must be a number of at least 0, got {tolerance!r}.")
    problem = _Problem(decomposition, inputs, targets, features, shift, noise)
    coarse_rank = decomposition.coarse_size if coarse_rank is None else coarse_rank
    check_ranks(decomposition, rank, coarse_rank, None if features is None else problem.local_basis.shape[2])
    ranks = [coarse_rank] + [rank] * decomposition.subdomains
    if initial is None:
        zeros = [np.zeros((len(gram), r)) for gram, r in zip(problem.grams, ranks, strict=True)]
        pairs = list(zip(zeros, zeros, strict=True))
        order = range(len(ranks))
    else:
        if features is not None:
            raise ValueError("initial holds values at the nodes, but features ask for coefficients; give one of them.")
        check_factors(decomposition, initial)
        for name in ("coarse_query", "coarse_key", "local_query", "local_key"):
            array = getattr(initial, name)
            acting = array if array is None or name.startswith("coarse") else array[decomposition.cover.inside]
            if acting is not None and not np.isfinite(np.asarray(acting)).all():
                raise ValueError(f"initial.{name} must be finite, but holds infinities or NaN.")
        if initial.shift is not None and (shift is None or not np.isclose(float(initial.shift), shift, rtol=1e-5)):
            raise ValueError(
                f"shift must be that of initial, {float(initial.shift):.6g}, which its factors go with, got {shift}."
            )
        pairs = problem.split(initial, ranks)
        begun = 0 if initial.coarse_query is None else initial.coarse_query.shape[1]
        order = range(0 if symmetric or begun < coarse_rank else 1, len(ranks))
    if symmetric:
        if initial is None:
            pairs, _, _ = problem.minimise(pairs, ranks, order, False, steps, tolerance)
        pairs = problem.symmetrised(pairs, ranks)
    pairs, errors, converged = problem.minimise(pairs, ranks, order, symmetric, steps, tolerance)
    bound = problem.bound(sum(ranks))
    pairs = [(np.asarray(as_factor(q), np.float64), np.asarray(as_factor(k), np.float64)) for q, k in pairs]
    errors[-1] = problem.relative(problem.residual(pairs))
    return SchwarzFit(problem.join(pairs, symmetric), np.asarray(errors), bound, converged)


def operator_error(
    decomposition: Decomposition, factors: SchwarzFactors, inputs: Float[Any, "n m"], targets: Float[Any, "n m"]
) -> float:
    """‖M F − U‖ / ‖U‖ in L2 and the Frobenius norm over samples: ‖(M − A⁻¹)F‖ / ‖A⁻¹F‖ for U = A⁻¹F.

    Args:
        decomposition: see `schwarz.decompose`.
        factors: of `schwarz_apply`.
        inputs: F, one sample per column, (n, m).
        targets: U, (n, m).

    Raises:
        TypeError: for complex samples.
        ValueError: for shapes that do not fit, values that are not finite, and U = 0.

    Example:
        >>> import numpy as np
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(31), 4, 2)
        >>> schwarz.operator_error(dec, schwarz.SchwarzFactors(shift=1.0), np.eye(31), 2 * np.eye(31))
        0.5
    """
    check_factors(decomposition, factors)
    inputs, targets = _samples(decomposition.domain.weights, inputs, targets)
    root = np.sqrt(np.asarray(decomposition.domain.weights, np.float64))[:, None]
    apply: Any = jax.jit(schwarz_apply)
    size = float(np.linalg.norm(root * targets))
    _check_targets(size)
    outputs = np.asarray(apply(as_factor(inputs), decomposition, factors), np.float64)
    return float(np.linalg.norm(root * (outputs - targets)) / size)


def low_rank_errors(inputs: Float[Any, "n m"], targets: Float[Any, "n m"], weights: Float[Any, " n"]) -> np.ndarray:
    """‖M F − U‖ / ‖U‖ of the best operator M of rank 0, 1, 2, …, by Eckart and Young, in L2.

    A rigorous lower bound for every form of such a rank; for U = A⁻¹F the error of the optimal global attention QKᵀ.

    Args:
        inputs: F, (n, m).
        targets: U, (n, m).
        weights: quadrature weights, (n,).

    Returns:
        rank(F) + 1 errors; the last is that of the best linear map whatsoever.

    Raises:
        TypeError: for complex samples.
        ValueError: for shapes that do not fit, values that are not finite, negative weights, and U = 0.

    Example:
        >>> import numpy as np
        >>> from jaxop import schwarz
        >>> print(schwarz.low_rank_errors(np.eye(2), np.diag([3.0, 4.0]), np.ones(2)))
        [1.  0.6 0. ]
    """
    inputs, targets = _samples(weights, inputs, targets)
    root = np.sqrt(np.asarray(weights, np.float64))[:, None]
    _, image, total = _compress(root * inputs, root * targets)
    _check_targets(total)
    return _tails(image, total)


def optimal_low_rank(
    inputs: Float[Any, "n m"], targets: Float[Any, "n m"], weights: Float[Any, " n"], rank: int
) -> tuple[Float[Array, "n r"], Float[Array, "n r"]]:
    """Q and K of the best global Q Kᵀ W of a rank: the truncated singular value decomposition, on the span of F.

    Args:
        inputs: F, (n, m).
        targets: U, (n, m).
        weights: positive quadrature weights, (n,).
        rank: r.

    Returns:
        Q and K for `low_rank_apply`, in units of u and one over f times length^dim.

    Raises:
        TypeError: for complex samples.
        ValueError: for a rank outside 0 … n, shapes that do not fit, values that are not finite, or weights that are
            not positive.

    Example:
        >>> import numpy as np
        >>> from jaxop import schwarz
        >>> Q, K = schwarz.optimal_low_rank(np.eye(2), np.diag([3.0, 4.0]), np.ones(2), 1)
        >>> print(np.asarray(Q @ K.T).round(5))
        [[0. 0.]
         [0. 4.]]
    """
    inputs, targets = _samples(weights, inputs, targets)
    weights = np.asarray(weights, np.float64)
    if not 0 <= rank <= weights.size:
        raise ValueError(f"rank must lie between 0 and the {weights.size} nodes, got {rank}.")
    if not (weights > 0).all():
        raise ValueError(
            f"weights must be positive, but weights[{first_index(weights <= 0)}] is not; leave the node out."
        )
    root = np.sqrt(weights)[:, None]
    query, key = _best(np.eye(weights.size), root * inputs, root * targets, rank)
    return as_factor(query / root), as_factor(key / root)  # pyright: ignore[reportReturnType]


class _Problem:
    """‖M F − U‖² + ε² Σ_b ‖P_b Q_b K_bᵀ P_bᵀ‖² in orthonormal coordinates of L2, M = Σ_b P_b Q_b K_bᵀ P_bᵀ.

    Block 0 is the coarse one. P_b, sparse, has the columns ``parts[b]`` of ``basis``, G_b = P_bᵀ P_b, and H_b = P_bᵀ F.
    ε² is the variance of the noise, which every part of M should map to 0.
    """

    def __init__(
        self,
        decomposition: Decomposition,
        inputs: Any,
        targets: Any,
        features: Any,
        shift: Float[Array, ""] | float | None,
        noise: float,
    ):
        inputs, targets = _samples(decomposition.domain.weights, inputs, targets)
        _check_shift(shift)
        if not 0 <= noise < np.inf:
            raise ValueError(f"noise must be finite and not negative, got {noise}; it is relative to the inputs.")
        n, self.shift = decomposition.domain.size, None if shift is None else float(shift)
        root = np.sqrt(np.asarray(decomposition.domain.weights, np.float64))
        self.scale = float(np.linalg.norm(root[:, None] * targets))
        targets = targets - (self.shift or 0.0) * inputs
        source, self.image, self.total = _compress(root[:, None] * inputs, root[:, None] * targets)
        for name, size in (("inputs", np.linalg.norm(source)), ("targets", self.scale)):
            if not size > 0:
                raise ValueError(f"{name} are 0 everywhere: there is nothing to fit.")
        noise = max(noise, float(np.finfo(float_dtype()).eps))
        self.variance = (noise * np.linalg.norm(source)) ** 2 / n
        inside = np.asarray(decomposition.cover.inside)
        index, partition = np.asarray(decomposition.cover.index), np.asarray(decomposition.partition, np.float64)
        if features is None:
            self.local_basis = np.broadcast_to(np.eye(index.shape[1]), (index.shape[0], *(index.shape[1],) * 2))
        else:
            self.local_basis = np.asarray(jax.vmap(features)(decomposition.coordinates), np.float64)
            shape = self.local_basis.shape
            finite = np.isfinite(self.local_basis).all()
            if len(shape) != 3 or shape[:2] != index.shape or not finite:
                raise ValueError(
                    f"features must map (s, dim) local coordinates to (s, q) finite numbers, got {shape} for the p "
                    f"subdomains of s nodes, (p, s) = {index.shape}{'' if finite else ', infinite or NaN'}."
                )
        self.columns = [
            np.flatnonzero(row) if features is None else np.arange(self.local_basis.shape[2]) for row in inside
        ]
        sparse = require("scipy.sparse", "a fit of Schwarz attention")
        has_coarse = decomposition.coarse is not None
        sides = [sparse.coo_array(root[:, None] * _coarse_columns(decomposition) if has_coarse else np.zeros((n, 0)))]
        for i, where in enumerate(inside):
            nodes = index[i, where]
            factor = root[nodes] * np.sqrt(partition[i, where])
            local = sparse.coo_array(factor[:, None] * self.local_basis[i][np.ix_(where, self.columns[i])])
            sides.append(sparse.coo_array((local.data, (nodes[local.row], local.col)), shape=(n, local.shape[1])))
        self.basis = sparse.csr_array(sparse.hstack(sides))
        self.transposed = sparse.csr_array(self.basis.T)
        ends = np.cumsum([side.shape[1] for side in sides])
        self.parts = [slice(end - side.shape[1], end) for end, side in zip(ends, sides, strict=True)]
        self.moments = self.blocks(self.transposed @ source)
        rows = [self.transposed[part] for part in self.parts]
        self.grams = [(side @ side.T).toarray() for side in rows]
        self.seconds = [
            moment @ moment.T + self.variance * gram for moment, gram in zip(self.moments, self.grams, strict=True)
        ]

    @functools.cached_property
    def spectra(self) -> list[tuple["_Spectrum", "_Spectrum"]]:
        """Of G_b and of H_b H_bᵀ + ε² G_b."""
        return [(_Spectrum(gram), _Spectrum(second)) for gram, second in zip(self.grams, self.seconds, strict=True)]

    def split(self, factors: SchwarzFactors, ranks: list[int]) -> _Factors:
        """Factors block by block, cut or filled up with zeros to the ranks."""

        def fit(array: Any, rank: int) -> np.ndarray:
            array = np.asarray(array, np.float64)[:, :rank]
            return np.pad(array, [(0, 0), (0, rank - array.shape[1])])

        pairs = []
        for b, rank in enumerate(ranks):
            query, key = (factors.local_query, factors.local_key) if b else (factors.coarse_query, factors.coarse_key)
            if query is None:
                pairs.append((np.zeros((len(self.grams[b]), rank)),) * 2)
                continue
            query, key = (
                fit(a[b - 1][self.columns[b - 1]] if b else a, rank) for a in (query, query if key is None else key)
            )
            pairs.append((query, key))
        return pairs

    def symmetrised(self, pairs: _Factors, ranks: list[int]) -> _Factors:
        """Of every block the symmetric part nearest to it on the inputs and the noise; zeros if they do better."""
        queries = [
            _best_symmetric(gram, second, gram @ q @ (k.T @ second), rank)
            for gram, second, (q, k), rank in zip(self.grams, self.seconds, pairs, ranks, strict=True)
        ]
        nearest, zeros = ([(q, q) for q in side] for side in (queries, [np.zeros_like(q) for q in queries]))
        costs = [self.objective(self.residual(start), start) for start in (nearest, zeros)]
        return nearest if costs[0] < costs[1] else zeros

    def join(self, pairs: list[tuple[np.ndarray, np.ndarray]], symmetric: bool) -> SchwarzFactors:
        """Factors padded to the largest subdomain."""
        rank = pairs[1][0].shape[1]
        local = np.zeros((2, len(self.columns), self.local_basis.shape[2], rank))
        for i, (columns, pair) in enumerate(zip(self.columns, pairs[1:], strict=True)):
            local[:, i, columns] = pair
        coarse = pairs[0] if pairs[0][0].size else (None, None)
        parts = [*coarse, *(local if rank else (None, None))]
        if symmetric:
            parts[1] = parts[3] = None
        return SchwarzFactors(*(as_factor(part) for part in parts), shift=self.shift)

    def blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows that belong to the columns of every P_b."""
        return [rows[part] for part in self.parts]

    def side(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows in which P_b is not 0, and P_b there."""
        columns = self.transposed[self.parts[b]]
        rows = np.unique(columns.indices)
        return rows, columns[:, rows].toarray().T

    def residual(self, pairs: _Factors) -> np.ndarray:
        """M F − U."""
        reduced = [q @ (k.T @ moment) for moment, (q, k) in zip(self.moments, pairs, strict=True)]
        return self.basis @ np.concatenate(reduced) - self.image

    def objective(self, error: np.ndarray, pairs: _Factors) -> float:
        """‖M F − U‖² + ε² Σ_b ‖P_b Q_b K_bᵀ P_bᵀ‖², ``error`` the residual."""
        return float(np.sum(error**2)) + sum(self.noise_of(b, pair) for b, pair in enumerate(pairs))

    def noise_of(self, b: int, pair: tuple[np.ndarray, np.ndarray]) -> float:
        """What block b makes of the noise."""
        query, key = pair
        gram = self.grams[b]
        return float(self.variance * np.sum((query.T @ gram @ query) * (key.T @ gram @ key)))

    def best_blocks(self, pairs: _Factors, ranks: list[int], order: range, symmetric: bool) -> _Factors:
        """Every block of ``order`` in turn becomes the best of its rank for what the others leave."""
        pairs = list(pairs)
        residual = self.residual(pairs)
        for b in order:
            (rows, side), moment, old = self.side(b), self.moments[b], pairs[b]
            left = residual[rows] - side @ (old[0] @ (old[1].T @ moment))
            if symmetric:
                factor = _best_symmetric(self.grams[b], self.seconds[b], -side.T @ left @ moment.T, ranks[b])
                new = factor, factor
            else:
                values, vectors = np.linalg.eigh(self.grams[b])
                noise = np.sqrt(self.variance * np.maximum(values, 0)) * vectors  # noise noiseᵀ = ε² G_b
                image = np.concatenate([-left, np.zeros((rows.size, values.size))], axis=1)
                new = _best(side, np.concatenate([moment, noise], axis=1), image, ranks[b])

            candidate = left + side @ (new[0] @ (new[1].T @ moment))
            costs = [
                np.sum(error**2) + self.noise_of(b, pair) for error, pair in ((candidate, new), (residual[rows], old))
            ]
            if costs[0] < costs[1]:  # a truncated symmetric block is the best of its rank in another norm
                pairs[b], residual[rows] = new, candidate
        return pairs

    def minimise(
        self, pairs: _Factors, ranks: list[int], order: range, symmetric: bool, steps: int, tolerance: float
    ) -> tuple[_Factors, list[float], bool]:
        """Blocks in turn, then all together; again until it no longer helps: blocks leave saddles of the whole."""
        pairs, errors = self.gauss_newton(self.best_blocks(pairs, ranks, order, symmetric), symmetric, steps, tolerance)
        while len(errors) <= steps:
            moved = self.best_blocks(pairs, ranks, range(len(ranks)), symmetric)
            pairs, more = self.gauss_newton(moved, symmetric, steps + 1 - len(errors), tolerance)
            best, errors = errors[-1], errors + more[1:]
            if not errors[-1] < (1 - tolerance) * best:
                return pairs, errors, True
        return pairs, errors, False

    def gauss_newton(
        self, pairs: _Factors, symmetric: bool, steps: int, tolerance: float
    ) -> tuple[_Factors, list[float]]:
        """Levenberg–Marquardt steps in all factors; with J the derivative, (JᵀJ + λ diag JᵀJ) δ = −Jᵀ E."""
        error, damping = self.residual(pairs), 1e-3
        errors, cost = [self.relative(error)], self.objective(error, pairs)
        for _ in range(steps if any(q.size for q, _ in pairs) else 0):
            solver, moved = _Step(self, pairs, error, symmetric), False
            while not moved and damping < 1e6:
                trial = [(q - dq, k - dk) for (q, k), (dq, dk) in zip(pairs, solver.step(damping), strict=True)]
                candidate = self.residual(trial)
                new = self.objective(candidate, trial)
                moved = new < cost
                damping = max(damping / 5, 1e-10) if moved else damping * 5
                if moved:
                    pairs, error, cost = trial, candidate, new
            errors.append(self.relative(error))
            if not moved or (len(errors) > 5 and errors[-1] > (1 - tolerance) * errors[-6]):
                break
        return pairs, errors

    def bound(self, rank: int) -> float:
        """Eckart and Young for what the shift leaves."""
        if self.total == 0:  # the shift is everything
            return 0.0
        tails = _tails(self.image, self.total)
        return float(tails[min(rank, tails.size - 1)] * self.total / self.scale)

    def relative(self, error: np.ndarray) -> float:
        lost = max(self.total**2 - np.linalg.norm(self.image) ** 2, 0.0)  # outside the span of the inputs
        return float(np.sqrt(np.linalg.norm(error) ** 2 + lost) / self.scale)


class _Step:
    """Solves (JᵀJ + λ D) δ = JᵀE by conjugate gradients, D the diagonal of the diagonal blocks of JᵀJ.

    These blocks are Kronecker products: G_b ⊗ (K_bᵀH_b H_bᵀK_b + ε² K_bᵀG_b K_b) for Q_b and
    (H_b H_bᵀ + ε² G_b) ⊗ Q_bᵀG_b Q_b for K_b. Scaled to a unit diagonal and plus λ, they are inverted by
    eigendecompositions of their parts: the preconditioner.
    """

    def __init__(self, problem: _Problem, pairs: _Factors, error: np.ndarray, symmetric: bool):
        self.problem, self.pairs, self.symmetric = problem, pairs, symmetric
        self.right = [k.T @ moment for moment, (_, k) in zip(problem.moments, pairs, strict=True)]
        # G Q, G K, Qᵀ G Q and Kᵀ G K of every block
        self.weighted = [(gram @ q, gram @ k) for gram, (q, k) in zip(problem.grams, pairs, strict=True)]
        self.sizes = [(q.T @ gq, k.T @ gk) for (q, k), (gq, gk) in zip(pairs, self.weighted, strict=True)]
        self.blocks: list[tuple[tuple[_Spectrum, _Spectrum], tuple[_Spectrum, _Spectrum]]] = [
            ((of_query, _Spectrum(right @ right.T + problem.variance * kgk)), (of_key, _Spectrum(qgq)))
            for (of_query, of_key), right, (qgq, kgk) in zip(problem.spectra, self.right, self.sizes, strict=True)
        ]
        noise = [(gq @ kgk, gk @ qgq) for (gq, gk), (qgq, kgk) in zip(self.weighted, self.sizes, strict=True)]
        self.gradient = self._pack(self._transposed(error)) + problem.variance * self._pack(noise)
        self.diagonal = self._pack([(_outer(*of_query), _outer(*of_key)) for of_query, of_key in self.blocks])

    def step(self, damping: float) -> _Factors:
        """Δ for a λ."""
        linalg = require("scipy.sparse.linalg", "a fit of Schwarz attention")

        def normal(x: np.ndarray) -> np.ndarray:
            step = self._unpack(x)
            samples, noise = self._pack(self._transposed(self._derivative(step))), self._pack(self._noise(step))
            return samples + noise + damping * self.diagonal * x

        def precondition(x: np.ndarray) -> np.ndarray:
            solved = [
                (_solve(*of_query, dq, damping), _solve(*of_key, dk, damping))
                for (dq, dk), (of_query, of_key) in zip(self._unpack(x), self.blocks, strict=True)
            ]
            return self._pack(solved)

        shape = (self.gradient.size,) * 2
        matrix, inverse = (linalg.LinearOperator(shape, matvec=fn, dtype=np.float64) for fn in (normal, precondition))
        x, _ = linalg.cg(matrix, self.gradient, M=inverse, rtol=_CG_TOLERANCE, maxiter=_CG_STEPS)
        return self._unpack(x)

    def _derivative(self, step: _Factors) -> np.ndarray:
        blocks = zip(self.problem.moments, self.right, self.pairs, step, strict=True)
        reduced = [
            np.concatenate([dq, q], axis=1) @ np.concatenate([right, dk.T @ moment])
            for moment, right, (q, _), (dq, dk) in blocks
        ]
        return self.problem.basis @ np.concatenate(reduced)

    def _noise(self, step: _Factors) -> _Factors:
        """What the noise adds to JᵀJ, block by block."""
        variance, grams = self.problem.variance, self.problem.grams
        return [
            (
                variance * (gram @ dq @ kgk + gq @ (dk.T @ gk)),
                variance * (gram @ dk @ qgq + gk @ (dq.T @ gq)),
            )
            for gram, (gq, gk), (qgq, kgk), (dq, dk) in zip(grams, self.weighted, self.sizes, step, strict=True)
        ]

    def _transposed(self, error: np.ndarray) -> _Factors:
        problem = self.problem
        reduced = problem.blocks(problem.transposed @ error)
        blocks = zip(reduced, problem.moments, self.right, self.pairs, strict=True)
        return [(part @ right.T, moment @ (part.T @ q)) for part, moment, right, (q, _) in blocks]

    def _pack(self, pairs: _Factors) -> np.ndarray:
        """One vector; where K = Q both are one unknown, whose derivative is the sum."""
        if self.symmetric:
            return np.concatenate([(q + k).ravel() for q, k in pairs])
        return np.concatenate([a.ravel() for pair in pairs for a in pair])

    def _unpack(self, x: np.ndarray) -> _Factors:
        pairs, begin = [], 0
        for q, _ in self.pairs:
            first = x[begin : begin + q.size].reshape(q.shape)
            begin += q.size
            second = first
            if not self.symmetric:
                second = x[begin : begin + q.size].reshape(q.shape)
                begin += q.size
            pairs.append((first, second))
        return pairs


class _Spectrum:
    """A positive semi-definite matrix as D^½ V diag(values) Vᵀ D^½, D its diagonal."""

    def __init__(self, matrix: np.ndarray):
        diagonal = np.diag(matrix)
        # a column that hardly counts must not take steps without bounds
        self.diagonal = np.maximum(diagonal, 1e-4 * (diagonal.mean() or 1.0)) if diagonal.size else diagonal
        self.root = np.sqrt(self.diagonal)
        values, self.vectors = np.linalg.eigh(matrix / np.outer(self.root, self.root))
        self.values = np.maximum(values, 0)


def _outer(big: _Spectrum, small: _Spectrum) -> np.ndarray:
    return np.outer(big.diagonal, small.diagonal)


def _solve(big: _Spectrum, small: _Spectrum, rhs: np.ndarray, damping: float) -> np.ndarray:
    """X of big X small + λ D_big X D_small = rhs."""
    inner = big.vectors.T @ (rhs / np.outer(big.root, small.root)) @ small.vectors
    inner /= np.outer(big.values, small.values) + damping
    return big.vectors @ inner @ small.vectors.T / np.outer(big.root, small.root)


def _compress(source: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Samples on an orthonormal basis of those combinations that see an input, and ‖image‖ before."""
    basis = _svd(source, max(source.shape) * np.finfo(np.float64).eps)[2].T
    return source @ basis, image @ basis, float(np.linalg.norm(image))


def _tails(image: np.ndarray, total: float) -> np.ndarray:
    squares = np.linalg.svd(image, compute_uv=False) ** 2
    lost = max(total**2 - squares.sum(), 0.0)
    lost = lost if lost > 1e-13 * total**2 else 0.0  # rounding
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0) + lost
    return np.sqrt(tails) / total


def _best(side: np.ndarray, moment: np.ndarray, image: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Q, K of a rank that minimise ‖side Q Kᵀ moment − image‖: Eckart and Young between the two spans."""
    if rank == 0 or side.shape[1] == 0:
        return np.zeros((side.shape[1], rank)), np.zeros((side.shape[1], rank))
    rows = np.flatnonzero(side.any(axis=1))
    u, s, vt = _svd(side[rows])
    uh, sh, vth = _svd(moment)
    a, b, ct = np.linalg.svd(u.T @ image[rows] @ vth.T, full_matrices=False)
    half = np.sqrt(b[:rank])
    query, key = (vt.T / s) @ (a[:, :rank] * half), (uh / sh) @ (ct[:rank].T * half)
    missing = [(0, 0), (0, rank - half.size)]
    return np.pad(query, missing), np.pad(key, missing)


def _best_symmetric(gram: np.ndarray, second: np.ndarray, cross: np.ndarray, rank: int) -> np.ndarray:
    """Q of a rank for ‖P Q Qᵀ H − image‖² with G = PᵀP, B = HHᵀ and C = Pᵀ image Hᵀ.

    The symmetric S with G S B + B S G = C + Cᵀ by the eigenvectors of B in the metric G, in which it then loses all but
    its largest positive eigenvalues, each weighted by what the inputs make of it.
    """
    if rank == 0 or gram.size == 0:
        return np.zeros((gram.shape[0], rank))
    size, axes = np.linalg.eigh(gram)
    keep = size > 1e-12 * max(size[-1], 1e-300)
    if not keep.any():
        return np.zeros((gram.shape[0], rank))
    axes = axes[:, keep] / np.sqrt(size[keep])
    values, vectors = np.linalg.eigh(axes.T @ second @ axes)
    axes, values = axes @ vectors, np.maximum(values, 1e-12 * max(values[-1], 1e-300))
    right = axes.T @ (cross + cross.T) @ axes
    root = values**0.25
    inner = root[:, None] * right / (values[:, None] + values) * root
    return axes @ (_semidefinite(inner, rank) / root[:, None])


def _semidefinite(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Q of a rank with Q Qᵀ nearest to a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    keep = np.argsort(-values)[:rank]
    query = vectors[:, keep] * np.sqrt(np.maximum(values[keep], 0))
    return np.pad(query, [(0, 0), (0, rank - query.shape[1])])


def _svd(matrix: np.ndarray, cut: float = 1e-12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular values above a part of the largest."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    keep = s > cut * s.max(initial=0)
    return u[:, keep], s[keep], vt[keep]


def _truncate(matrix: np.ndarray, rank: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """L, R with L Rᵀ the best approximation of a rank, of equal sizes; L = R for positive definite matrices."""
    if symmetric:
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        query = (vectors * np.sqrt(values))[:, ::-1][:, :rank]
        return query, query
    u, s, vt = np.linalg.svd(matrix)
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, vt[:rank].T * root


def _check_definite(matrix: np.ndarray, where: str) -> None:
    if np.linalg.norm(matrix - matrix.T) > 1e-6 * np.linalg.norm(matrix):
        raise ValueError(
            f"matrix must be symmetric in L2, W A = Aᵀ W, for symmetric=True, but is not on {where}; use "
            "symmetric=False."
        )
    if (np.linalg.eigvalsh((matrix + matrix.T) / 2) <= 0).any():
        raise ValueError(
            f"matrix must be positive definite for symmetric=True, but is not on {where}; use symmetric=False, or -A."
        )


def _inverse(matrix: np.ndarray, where: str) -> np.ndarray:
    if matrix.size and np.linalg.cond(matrix) > 1e15:
        raise ValueError(
            f"matrix is singular on {where}; a Galerkin block needs an invertible one (boundary conditions?)."
        )
    return np.linalg.inv(matrix)


def _entries(matrix: Any, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = np.shape(matrix)
    if shape != (n, n):
        what = type(matrix).__name__ if shape == () else shape
        raise ValueError(
            f"matrix must be dense or scipy.sparse, of shape (n, n) = ({n}, {n}), one row and column per node, got "
            f"{what}."
        )
    if hasattr(matrix, "tocoo"):
        sparse = matrix.tocoo()
        row, column, value = np.asarray(sparse.row), np.asarray(sparse.col), host_real(sparse.data, "matrix")
    else:
        dense = host_real(matrix, "matrix")
        row, column = np.nonzero(dense)
        value = dense[row, column]
    row, column, value = row[value != 0], column[value != 0], value[value != 0]  # stored zeros tie no nodes
    if not np.isfinite(value).all():
        j = first_index(~np.isfinite(value))
        raise ValueError(f"matrix must be finite, but matrix[{row[j]}, {column[j]}] = {value[j]}.")
    return row, column, value


def _owners(decomposition: Decomposition) -> np.ndarray:
    """The core of every node."""
    cores = decomposition.cores
    owner = np.empty(decomposition.domain.size, np.int64)
    inside = np.asarray(cores.inside)
    owner[np.asarray(cores.index)[inside]] = np.nonzero(inside)[0]
    return owner


def _coarse_columns(decomposition: Decomposition) -> np.ndarray:
    """Φ on the host, in float64."""
    return np.asarray(decomposition.coarse_basis(), np.float64)


def _check_shift(shift: Any) -> None:
    if shift is not None and (not is_numeric(shift) or np.ndim(shift) or not np.isfinite(shift)):
        raise ValueError(f"shift must be one finite number or None, got {shift!r}.")


def _check_targets(size: float) -> None:
    if not size > 0:
        raise ValueError("targets are 0 everywhere: there is no relative error.")


def _samples(weights: Any, inputs: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Samples on the host: finite, of one shape, a row for every weight."""
    if not is_concrete(inputs, targets, weights):
        raise ValueError("inputs, targets and decomposition must be concrete to be fitted; call it outside jax.jit.")
    if isinstance(weights, Domain):
        raise TypeError(f"weights must be an array (n,), got {type(weights).__name__}; pass domain.weights.")
    weights = np.asarray(weights)
    if weights.ndim != 1 or not (weights >= 0).all():
        raise ValueError(f"weights must be (n,) numbers that are not negative, got {weights.shape} or negative ones.")
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
