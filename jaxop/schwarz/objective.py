"""Objective of a fit of two-level Schwarz attention, in orthonormal coordinates of L2."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy import sparse

from jaxop._validation import float_dtype
from jaxop.schwarz.bounds import checked_samples, compress, tails
from jaxop.schwarz.decomposition import Decomposition
from jaxop.schwarz.operator import Factors, as_factor, check_shift

Blocks: TypeAlias = list[tuple[np.ndarray, np.ndarray]]
"""(Q_b, K_b) of every block; the coarse block is the first."""


class Objective:
    """‖M F − U‖² + ε² Σ_b ‖P_b Q_b K_bᵀ P_bᵀ‖² in orthonormal coordinates of L2, M = Σ_b P_b Q_b K_bᵀ P_bᵀ.

    Block 0 is the coarse block. P_b is sparse and has the columns ``parts[b]`` of ``basis``, G_b = P_bᵀ P_b, and
    H_b = P_bᵀ F. ε² is the variance of the noise, which every part of M should map to 0.
    """

    def __init__(
        self,
        decomposition: Decomposition,
        inputs: object,
        targets: object,
        features: Callable[[Array], Array] | None,
        shift: Float[Array, ""] | float | None,
        noise: float,
    ):
        inputs, targets = checked_samples(decomposition.domain.weights, inputs, targets)
        check_shift(shift)
        if not 0 <= noise < np.inf:
            raise ValueError(f"noise must be finite and not negative, got {noise}; it is relative to the inputs.")
        n, self.shift = decomposition.domain.size, None if shift is None else float(shift)
        root = np.sqrt(np.asarray(decomposition.domain.weights, np.float64))
        self.scale = float(np.linalg.norm(root[:, None] * targets))
        targets = targets - (self.shift or 0.0) * inputs
        source, self.image, self.total = compress(root[:, None] * inputs, root[:, None] * targets)
        for name, size in (("inputs", np.linalg.norm(source)), ("targets", self.scale)):
            if not size > 0:
                raise ValueError(f"{name} are 0 everywhere; give samples that are not 0.")
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
        has_coarse = decomposition.coarse is not None
        coarse = np.asarray(decomposition.coarse_basis(), np.float64) if has_coarse else np.zeros((n, 0))
        sides = [sparse.coo_array(root[:, None] * coarse)]
        for i, where in enumerate(inside):
            nodes = index[i, where]
            factor = root[nodes] * np.sqrt(partition[i, where])
            local = sparse.coo_array(factor[:, None] * self.local_basis[i][np.ix_(where, self.columns[i])])
            sides.append(sparse.coo_array((local.data, (nodes[local.row], local.col)), shape=(n, self.columns[i].size)))
        self.basis = sparse.csr_array(sparse.hstack(sides))
        self.transposed = sparse.csr_array(self.basis.T)
        widths = [coarse.shape[1], *(columns.size for columns in self.columns)]
        self.parts = [slice(end - width, end) for end, width in zip(np.cumsum(widths), widths, strict=True)]
        self.moments = self.blocks(self.transposed @ source)
        rows = [self.transposed[part] for part in self.parts]
        self.grams = [(side @ side.T).toarray() for side in rows]
        self.seconds = [
            moment @ moment.T + self.variance * gram for moment, gram in zip(self.moments, self.grams, strict=True)
        ]

    @functools.cached_property
    def spectra(self) -> list[tuple["Spectrum", "Spectrum"]]:
        """Spectra of G_b and of H_b H_bᵀ + ε² G_b."""
        return [(Spectrum(gram), Spectrum(second)) for gram, second in zip(self.grams, self.seconds, strict=True)]

    def split(self, factors: Factors, ranks: list[int]) -> Blocks:
        """Returns factors block by block, truncated or padded by zeros to the ranks."""

        def fit(array: ArrayLike, rank: int) -> np.ndarray:
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

    def join(self, pairs: list[tuple[np.ndarray, np.ndarray]], symmetric: bool) -> Factors:
        """Returns factors padded to the largest subdomain."""
        rank = pairs[1][0].shape[1]
        local = np.zeros((2, len(self.columns), self.local_basis.shape[2], rank))
        for i, (columns, pair) in enumerate(zip(self.columns, pairs[1:], strict=True)):
            local[:, i, columns] = pair
        coarse = pairs[0] if pairs[0][0].size else (None, None)
        parts = [*coarse, *(local if rank else (None, None))]
        if symmetric:
            parts[1] = parts[3] = None
        return Factors(*(as_factor(part) for part in parts), shift=self.shift)

    def blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns the rows that belong to the columns of every P_b."""
        return [rows[part] for part in self.parts]

    def side(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows in which P_b is not 0, and P_b there."""
        columns = self.transposed[self.parts[b]]
        rows = np.unique(columns.indices)
        return rows, columns[:, rows].toarray().T

    def residual(self, pairs: Blocks) -> np.ndarray:
        """M F − U."""
        reduced = [q @ (k.T @ moment) for moment, (q, k) in zip(self.moments, pairs, strict=True)]
        return self.basis @ np.concatenate(reduced) - self.image

    def cost(self, error: np.ndarray, pairs: Blocks) -> float:
        """‖M F − U‖² + ε² Σ_b ‖P_b Q_b K_bᵀ P_bᵀ‖², where ``error`` is the residual."""
        return float(np.sum(error**2)) + sum(self.noise_of(b, pair) for b, pair in enumerate(pairs))

    def noise_of(self, b: int, pair: tuple[np.ndarray, np.ndarray]) -> float:
        """ε² ‖P_b Q_b K_bᵀ P_bᵀ‖² of block b."""
        query, key = pair
        gram = self.grams[b]
        return float(self.variance * np.sum((query.T @ gram @ query) * (key.T @ gram @ key)))

    def bound(self, rank: int) -> float:
        """Returns the error of the best operator of a rank plus the shift, by Eckart and Young."""
        if self.total == 0:  # the shift is everything
            return 0.0
        errors = tails(self.image, self.total)
        return float(errors[min(rank, errors.size - 1)] * self.total / self.scale)

    def relative(self, error: np.ndarray) -> float:
        """‖(M − A⁻¹)F‖ / ‖A⁻¹F‖, where ``error`` is the residual."""
        lost = max(self.total**2 - np.linalg.norm(self.image) ** 2, 0.0)  # outside the span of the inputs
        return float(np.sqrt(np.linalg.norm(error) ** 2 + lost) / self.scale)


class Spectrum:
    """A positive semi-definite matrix as D^½ V diag(values) Vᵀ D^½, where D is its diagonal."""

    def __init__(self, matrix: np.ndarray):
        diagonal = np.diag(matrix)
        # a column that hardly counts must not take unbounded steps
        self.diagonal = np.maximum(diagonal, 1e-4 * (diagonal.mean() or 1.0)) if diagonal.size else diagonal
        self.root = np.sqrt(self.diagonal)
        values, self.vectors = np.linalg.eigh(matrix / np.outer(self.root, self.root))
        self.values = np.maximum(values, 0)
