"""Iterations of preconditioned conjugate gradients as the number of subdomains grows."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxop import domains, schwarz
from studies.schwarz.setting import Study, laplacian
from studies.table import print_header, print_row

Preconditioner = tuple[schwarz.Decomposition, schwarz.Factors]


def iterations(
    matrix: Callable[[jax.Array], jax.Array], rhs: jax.Array, preconditioner: Preconditioner | None = None
) -> str:
    """The number of iterations to a residual of 1e-8."""
    inverse = schwarz.preconditioner(*preconditioner) if preconditioner else None
    result = schwarz.flexible_cg(matrix, rhs, preconditioner=inverse, tolerance=1e-8, max_iterations=5000)
    return str(int(result.iterations)) if result.residual <= 1e-8 else "stalled"


def line(study: Study, counts: Sequence[int] = (8, 16, 32, 64, 128), core: int = 32) -> None:
    """Iterations to a residual of 1e-8 for a growing number of subdomains of a fixed size."""
    labels = ("none", "global + shift", "one level", "two levels", "rank 4 + shift", "fitted, K = Q", "fitted, free")
    print_header(f"N, {core} nodes each", *labels)
    for subdomains in counts:
        here = dataclasses.replace(study, nodes=core * subdomains - 1, subdomains=subdomains, overlap=core // 4, rank=4)
        h = 1 / (here.nodes + 1)
        two, one, matrix = here.decompose(), here.decompose(coarse=None), here.matrix
        shift = (core * h / ((here.rank + 1) * np.pi)) ** 2  # the largest eigenvalue that a block leaves out
        start = schwarz.galerkin_factors(two, matrix, here.rank, shift=shift)
        forms: list[Preconditioner | None] = [
            None,
            best_global(here.nodes, math.ceil(schwarz.count_parameters(two, start) / (2 * here.nodes))),
            (one, schwarz.galerkin_factors(one, matrix, blocks="overlap")),
            (two, schwarz.galerkin_factors(two, matrix, blocks="overlap")),
            (two, start),
        ]
        if subdomains <= 16:  # beyond, the joint least squares take too many unknowns
            data = dataclasses.replace(here, decay=0.0).covariance()
            for symmetric in (True, False):
                fit = schwarz.fit(two, *data, rank=here.rank, initial=start, shift=shift, steps=5, symmetric=symmetric)
                forms.append((two, fit.factors))
        rhs = jax.random.normal(jax.random.key(study.seeds[0]), (here.nodes,))

        def apply(u: jax.Array, h: float = h) -> jax.Array:
            return (2 * u - jnp.pad(u[1:], (0, 1)) - jnp.pad(u[:-1], (1, 0))) / h**2

        cells = [iterations(apply, rhs, form) for form in forms]
        print_row(subdomains, *cells, *[""] * (len(labels) - len(cells)))


def best_global(nodes: int, rank: int) -> Preconditioner:
    """The leading eigenfunctions of A⁻¹ and, times the identity, its next eigenvalue: one subdomain without a cut."""
    k, h = np.arange(1, rank + 2), 1 / (nodes + 1)
    values = (h / (2 * np.sin(np.pi * k * h / 2))) ** 2
    modes = np.sqrt(2) * np.sin(np.pi * h * np.outer(np.arange(1, nodes + 1), k[:-1]))
    whole = schwarz.decompose(domains.interval(nodes, rule="interior"), 1, 0, coarse=None)
    query = jnp.asarray((modes * np.sqrt(values[:-1] - values[-1]))[None])
    return whole, schwarz.Factors(local_query=query, shift=float(values[-1]))


def plane(study: Study, sides: Sequence[int] = (31, 63, 127, 255), core: int = 8) -> None:
    """Iterations to a residual of 1e-8 on the square."""
    print_header("interior nodes, subdomains", "none", "one level", "two levels")
    for side in sides:
        square, count = domains.box((side, side), rule="interior"), (side + 1) // core
        matrix = laplacian(side)
        rhs = jax.random.normal(jax.random.key(study.seeds[0]), (side**2,))

        def apply(u: jax.Array, side: int = side) -> jax.Array:
            u = jnp.pad(u.reshape(side, side), 1)
            lower, upper = u[:-2, 1:-1] + u[1:-1, :-2], u[2:, 1:-1] + u[1:-1, 2:]
            return ((4 * u[1:-1, 1:-1] - lower - upper) * (side + 1) ** 2).ravel()

        cells = [iterations(apply, rhs)]
        for coarse in (None, "hat"):
            dec = schwarz.decompose(square, count, core // 4, coarse=coarse)
            factors = schwarz.galerkin_factors(dec, matrix, blocks="overlap")
            cells.append(iterations(apply, rhs, (dec, factors)))
        print_row(f"{side}², {count}²", *cells)
