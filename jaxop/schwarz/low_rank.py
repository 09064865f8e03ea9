"""Best approximations of a given rank, in NumPy on the host."""

import numpy as np


def best(side: np.ndarray, moment: np.ndarray, image: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns Q, K of a rank that minimise ‖side Q Kᵀ moment − image‖, by Eckart and Young between the two spans."""
    if rank == 0 or side.shape[1] == 0:
        return np.zeros((side.shape[1], rank)), np.zeros((side.shape[1], rank))
    rows = np.flatnonzero(side.any(axis=1))
    u, s, vt = svd(side[rows])
    uh, sh, vth = svd(moment)
    a, b, ct = np.linalg.svd(u.T @ image[rows] @ vth.T, full_matrices=False)
    half = np.sqrt(b[:rank])
    query, key = (vt.T / s) @ (a[:, :rank] * half), (uh / sh) @ (ct[:rank].T * half)
    missing = [(0, 0), (0, rank - half.size)]
    return np.pad(query, missing), np.pad(key, missing)


def best_symmetric(gram: np.ndarray, second: np.ndarray, cross: np.ndarray, rank: int) -> np.ndarray:
    """Returns Q of a rank for ‖P Q Qᵀ H − image‖² with G = PᵀP, B = HHᵀ and C = Pᵀ image Hᵀ.

    First the symmetric S solves G S B + B S G = C + Cᵀ, by the eigenvectors of B in the metric G. In this basis,
    weighted by the inputs, it is then truncated to its largest positive eigenvalues.
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
    """Returns Q of a rank with Q Qᵀ nearest to a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    keep = np.argsort(-values)[:rank]
    query = vectors[:, keep] * np.sqrt(np.maximum(values[keep], 0))
    return np.pad(query, [(0, 0), (0, rank - query.shape[1])])


def truncate(matrix: np.ndarray, rank: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns L and R of equal sizes, L Rᵀ the best approximation of a rank; L = R for positive definite matrices."""
    if symmetric:
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        query = (vectors * np.sqrt(values))[:, ::-1][:, :rank]
        return query, query
    u, s, vt = np.linalg.svd(matrix)
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, vt[:rank].T * root


def svd(matrix: np.ndarray, cut: float = 1e-12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns singular vectors and values, for values above a share of the largest."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    keep = s > cut * s.max(initial=0)
    return u[:, keep], s[keep], vt[keep]
