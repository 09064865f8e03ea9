"""Levenberg–Marquardt steps in all factors of two-level Schwarz attention at once."""

from collections.abc import Callable

import numpy as np
from scipy.sparse import linalg

from jaxop.schwarz.objective import Blocks, Objective, Spectrum

_CG_STEPS, _CG_TOLERANCE = 100, 1e-2
"""Steps and relative residual at which conjugate gradients for a Gauss–Newton step stop."""


def gauss_newton(
    objective: Objective, pairs: Blocks, symmetric: bool, steps: int, tolerance: float
) -> tuple[Blocks, list[float]]:
    """Levenberg–Marquardt steps (JᵀJ + λ diag JᵀJ) δ = −Jᵀ E in all factors, with J the derivative."""
    error, damping = objective.residual(pairs), 1e-3
    errors, cost = [objective.relative(error)], objective.cost(error, pairs)
    for _ in range(steps if any(q.size for q, _ in pairs) else 0):
        solver, moved = Step(objective, pairs, error, symmetric), False
        while not moved and damping < 1e6:
            trial = [(q - dq, k - dk) for (q, k), (dq, dk) in zip(pairs, solver.step(damping), strict=True)]
            candidate = objective.residual(trial)
            new = objective.cost(candidate, trial)
            moved = new < cost
            damping = max(damping / 5, 1e-10) if moved else damping * 5
            if moved:
                pairs, error, cost = trial, candidate, new
        errors.append(objective.relative(error))
        if not moved or (len(errors) > 5 and errors[-1] > (1 - tolerance) * errors[-6]):
            break
    return pairs, errors


class Step:
    """Solves (JᵀJ + λ D) δ = JᵀE by conjugate gradients, D the diagonal of the diagonal blocks of JᵀJ.

    These blocks are Kronecker products: G_b ⊗ (K_bᵀH_b H_bᵀK_b + ε² K_bᵀG_b K_b) for Q_b and
    (H_b H_bᵀ + ε² G_b) ⊗ Q_bᵀG_b Q_b for K_b. The preconditioner scales them to a unit diagonal, adds λ, and inverts
    them by eigendecompositions of their parts.

    The products with J and Jᵀ are written by hand, for blocks of different sizes in float64 on the host. A test
    compares them with those of `jax.linearize` and `jax.linear_transpose`, which take 2 to 8 times as long at 32
    subdomains of 24 nodes, and 2 to 3 seconds to compile for each problem.
    """

    def __init__(self, objective: Objective, pairs: Blocks, error: np.ndarray, symmetric: bool):
        self.objective, self.pairs, self.symmetric = objective, pairs, symmetric
        self.right = [k.T @ moment for moment, (_, k) in zip(objective.moments, pairs, strict=True)]
        # G Q, G K, Qᵀ G Q and Kᵀ G K of every block
        self.weighted = [(gram @ q, gram @ k) for gram, (q, k) in zip(objective.grams, pairs, strict=True)]
        self.sizes = [(q.T @ gq, k.T @ gk) for (q, k), (gq, gk) in zip(pairs, self.weighted, strict=True)]
        self.blocks: list[tuple[tuple[Spectrum, Spectrum], tuple[Spectrum, Spectrum]]] = [
            ((of_query, Spectrum(right @ right.T + objective.variance * kgk)), (of_key, Spectrum(qgq)))
            for (of_query, of_key), right, (qgq, kgk) in zip(objective.spectra, self.right, self.sizes, strict=True)
        ]
        noise = [(gq @ kgk, gk @ qgq) for (gq, gk), (qgq, kgk) in zip(self.weighted, self.sizes, strict=True)]
        self.gradient = self._pack(self._transposed(error)) + objective.variance * self._pack(noise)
        self.diagonal = self._pack([(_outer(*of_query), _outer(*of_key)) for of_query, of_key in self.blocks])

    def step(self, damping: float) -> Blocks:
        """Returns δ for a λ."""

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

        matrix, inverse = (_Map(self.gradient.size, function) for function in (normal, precondition))
        x, _ = linalg.cg(matrix, self.gradient, M=inverse, rtol=_CG_TOLERANCE, maxiter=_CG_STEPS)
        return self._unpack(x)

    def _derivative(self, step: Blocks) -> np.ndarray:
        blocks = zip(self.objective.moments, self.right, self.pairs, step, strict=True)
        reduced = [
            np.concatenate([dq, q], axis=1) @ np.concatenate([right, dk.T @ moment])
            for moment, right, (q, _), (dq, dk) in blocks
        ]
        return self.objective.basis @ np.concatenate(reduced)

    def _noise(self, step: Blocks) -> Blocks:
        """Returns the part of JᵀJ that comes from the noise, block by block."""
        variance, grams = self.objective.variance, self.objective.grams
        return [
            (
                variance * (gram @ dq @ kgk + gq @ (dk.T @ gk)),
                variance * (gram @ dk @ qgq + gk @ (dq.T @ gq)),
            )
            for gram, (gq, gk), (qgq, kgk), (dq, dk) in zip(grams, self.weighted, self.sizes, step, strict=True)
        ]

    def _transposed(self, error: np.ndarray) -> Blocks:
        objective = self.objective
        reduced = objective.blocks(objective.transposed @ error)
        blocks = zip(reduced, objective.moments, self.right, self.pairs, strict=True)
        return [(part @ right.T, moment @ (part.T @ q)) for part, moment, right, (q, _) in blocks]

    def _pack(self, pairs: Blocks) -> np.ndarray:
        """Joins factors into one vector; if K = Q, both are one unknown, whose derivative is the sum."""
        if self.symmetric:
            return np.concatenate([(q + k).ravel() for q, k in pairs])
        return np.concatenate([a.ravel() for pair in pairs for a in pair])

    def _unpack(self, x: np.ndarray) -> Blocks:
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


class _Map(linalg.LinearOperator):
    """Symmetric matrix given by its products, for `scipy.sparse.linalg.cg`."""

    def __init__(self, size: int, product: Callable[[np.ndarray], np.ndarray]):
        super().__init__(np.dtype(np.float64), (size, size))
        self._product = product

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._product(x)


def _outer(big: Spectrum, small: Spectrum) -> np.ndarray:
    return np.outer(big.diagonal, small.diagonal)


def _solve(big: Spectrum, small: Spectrum, rhs: np.ndarray, damping: float) -> np.ndarray:
    """Returns X with big X small + λ D_big X D_small = rhs."""
    inner = big.vectors.T @ (rhs / np.outer(big.root, small.root)) @ small.vectors
    inner /= np.outer(big.values, small.values) + damping
    return big.vectors @ inner @ small.vectors.T / np.outer(big.root, small.root)
