"""The equations, their discretisations, and the settings of the tables."""

import dataclasses
import math
import time
from typing import NamedTuple

import numpy as np
import scipy.sparse

from jaxop import domains, schwarz


class Pair(NamedTuple):
    """Right-hand sides and solutions, one per column; or factors of their covariance.

    Attributes:
        inputs: F, (n, m).
        targets: A⁻¹F, (n, m).
    """

    inputs: np.ndarray
    targets: np.ndarray


@dataclasses.dataclass(frozen=True)
class Study:
    """Setting of a table, of which one value varies.

    Attributes:
        nodes: n, interior nodes.
        subdomains: N.
        overlap: nodes added on each side of a core.
        rank: r of every subdomain; the coarse rank is full.
        decay: s of the variances k^(−2s).
        modes: K; None takes n.
        steps: most Gauss–Newton steps of a fit.
        seeds: of samples, random factors and networks.
    """

    nodes: int = 255
    subdomains: int = 8
    overlap: int = 8
    rank: int = 2
    decay: float = 1.0
    modes: int | None = None
    steps: int = 30
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self):
        if self.modes is not None and not 1 <= self.modes <= self.nodes:
            raise ValueError(f"--modes must lie between 1 and the {self.nodes} nodes, got {self.modes}.")
        if not math.isfinite(self.decay):
            raise ValueError(f"--decay must be finite, got {self.decay}.")
        if not self.seeds:
            raise ValueError("--seeds must name at least one seed, got none.")

    def with_band(self) -> "Study":
        """This setting with the modes that were asked for, or with few enough to leave others out."""
        return dataclasses.replace(self, modes=self.modes or min(64, self.nodes // 2))

    def decompose(self, *, partition: str = "multiplicity", coarse: str | None = "hat") -> schwarz.Decomposition:
        """The interval, cut into the subdomains."""
        interval = domains.interval(self.nodes, rule="interior")
        return schwarz.decompose(interval, self.subdomains, self.overlap, partition=partition, coarse=coarse)

    @property
    def matrix(self) -> scipy.sparse.csr_array:
        """A, second differences."""
        return second_differences(self.nodes)

    def covariance(self, *, first: int = 1, last: int | None = None) -> Pair:
        """F and A⁻¹F for the modes from ``first`` to ``last``."""
        k = np.arange(first, (last or self.modes or self.nodes) + 1)
        x = np.arange(1, self.nodes + 1) / (self.nodes + 1)
        inputs = np.sin(np.pi * np.outer(x, k)) * k**-self.decay
        return Pair(inputs, self.solve(inputs))

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        """A⁻¹ times the inputs."""
        return np.linalg.solve(np.asarray(self.matrix.todense()), inputs)


DEFAULT = Study()


def second_differences(n: int) -> scipy.sparse.csr_array:
    """−u″ on n interior nodes of the unit interval."""
    off = scipy.sparse.eye_array(n, k=1) + scipy.sparse.eye_array(n, k=-1)
    return scipy.sparse.csr_array(2 * scipy.sparse.eye_array(n) - off) * (n + 1) ** 2


def laplacian(side: int) -> scipy.sparse.csr_array:
    """Five-point differences on the interior nodes of the unit square."""
    line, eye = second_differences(side), scipy.sparse.eye_array(side)
    return scipy.sparse.csr_array(scipy.sparse.kron(line, eye) + scipy.sparse.kron(eye, line))


COLUMNS = ("parameters", "error", "bound", "error / bound", "global", "global / error", "seconds")
"""Titles of the columns of every fit; `columns` fills the cells."""


def columns(dec: schwarz.Decomposition, fit: schwarz.Fit, seconds: float, data: Pair) -> list[str]:
    """The cells below `COLUMNS`."""
    count = schwarz.count_parameters(dec, fit.factors)
    best = schwarz.low_rank_errors(*data, np.asarray(dec.domain.weights))
    of_global, error = best[min(math.ceil(count / (2 * dec.domain.size)), best.size - 1)], fit.errors[-1]
    to_bound = f"{error / fit.bound:.2f}" if fit.bound > 1e-12 else "bound is 0"
    ratio = f"{of_global / error:.3g}"
    return [str(count), f"{error:.2e}", f"{fit.bound:.2e}", to_bound, f"{of_global:.2e}", ratio, f"{seconds:.1f}"]


@dataclasses.dataclass(frozen=True)
class Form:
    """Which levels an operator has, where its fit starts, and how its factors are tied.

    Attributes:
        is_local: gives every subdomain a block of the rank of the study.
        is_coarse: adds a coarse level of full rank.
        from_matrix: starts the fit at the Galerkin blocks of A; False starts it at the data.
        symmetric: ties K = Q.
    """

    is_local: bool = True
    is_coarse: bool = True
    from_matrix: bool = True
    symmetric: bool = False


def fitted(
    study: Study, dec: schwarz.Decomposition, data: Pair, form: Form = Form(), *, noise: float = 1e-6
) -> tuple[schwarz.Fit, float]:
    """The fit of a form to the data, and the seconds that it took."""
    begin = time.perf_counter()
    fit = schwarz.fit(
        dec,
        *data,
        rank=study.rank if form.is_local else 0,
        coarse_rank=None if form.is_coarse else 0,
        symmetric=form.symmetric,
        initial=schwarz.galerkin_factors(dec, study.matrix, study.rank) if form.from_matrix else None,
        noise=noise,
        steps=study.steps,
    )
    return fit, time.perf_counter() - begin
