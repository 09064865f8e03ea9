"""Fits for −Δu = f on the square, where Galerkin blocks are not exact."""

import time
from collections.abc import Sequence

import numpy as np

from jaxop import domains, schwarz
from studies.schwarz.setting import COLUMNS, Pair, Study, columns, laplacian
from studies.table import print_header, print_row


def poisson(
    study: Study, sides: Sequence[int] = (63, 127, 255), core: int = 16, rank: int = 4, waves: int = 16
) -> None:
    """−Δu = f on the unit square, five-point differences, f of variance (k² + l²)^(−s), k, l ≤ 16."""
    print_header("interior nodes, subdomains", "Galerkin", *COLUMNS)
    for side in sides:
        dec = schwarz.decompose(domains.box((side, side), rule="interior"), (side + 1) // core, core // 4)
        h, k = 1 / (side + 1), np.arange(1, waves + 1)
        sines = np.sin(np.pi * h * np.outer(np.arange(1, side + 1), k))
        values = (2 - 2 * np.cos(np.pi * k * h)) / h**2
        inputs = np.einsum("ik,jl->ijkl", sines, sines) * (k[:, None] ** 2 + k**2) ** (-study.decay / 2)
        targets = inputs / (values[:, None] + values)
        data = Pair(inputs.reshape(side**2, -1), targets.reshape(side**2, -1))
        galerkin = schwarz.operator_error(dec, schwarz.galerkin_factors(dec, laplacian(side), rank), *data)
        begin = time.perf_counter()
        fit = schwarz.fit(dec, *data, rank=rank, steps=5)
        cells = columns(dec, fit, time.perf_counter() - begin, data)
        print_row(f"{side}², {(side + 1) // core}²", f"{galerkin:.2e}", *cells)
