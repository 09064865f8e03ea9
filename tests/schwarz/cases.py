"""Decompositions, matrices and samples of the tests of Schwarz attention."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.stats

from jaxop import domains, schwarz
from tests.domains.cases import scattered, square_mesh

DECOMPOSITIONS = {
    "interior": lambda: schwarz.decompose(domains.interval(31, rule="interior"), 4, 2),
    "uneven": lambda: schwarz.decompose(domains.interval(20, rule="gauss-legendre"), 3, 1, partition="ramp"),
    "square": lambda: schwarz.decompose(domains.box((8, 7), rule="midpoint"), (2, 2), 1, coarse="partition"),
    "cube": lambda: schwarz.decompose(domains.box((4, 4, 5), rule="periodic"), 2, 1, coarse=None),
    "random": lambda: schwarz.decompose(domains.monte_carlo(scattered(60, 2)), 4, 1),
    "mesh": lambda: schwarz.decompose(square_mesh(6), 4, 1, coarse=np.ones((49, 1))),
}
"""One of every kind of domain, partition of unity and coarse space."""


def factors_on(dec, rank=2, **options):
    return schwarz.random_factors(jax.random.key(0), dec, rank, **options)


def laplacian(n, h=None):
    return scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n)) * (h or 1 / (n + 1)) ** -2


def problem(n=63, subdomains=8, overlap=2, decay=1):
    """−u″ = f on (0, 1) with right-hand sides of variance k^(−2·decay): decomposition, A, F, A⁻¹F."""
    dec = schwarz.decompose(domains.interval(n, rule="interior"), subdomains, overlap)
    k, x = np.arange(1, n + 1), np.arange(1, n + 1) / (n + 1)
    inputs = np.sin(np.pi * np.outer(x, k)) * k ** -float(decay)
    matrix = laplacian(n)
    return dec, matrix, inputs, np.linalg.solve(matrix.toarray(), inputs)


def waves(points):
    """Right-hand sides and solutions of −Δu = f on the unit square: products of sines."""
    k = np.arange(1, 5)
    x, y = (np.sin(np.pi * np.asarray(points)[:, i : i + 1] * k) for i in (0, 1))
    rate = (k[:, None] ** 2 + k**2).ravel()
    inputs = (x[:, :, None] * y[:, None, :]).reshape(len(x), -1) / rate
    return inputs, inputs / (np.pi**2 * rate)


def halton(n, seed):
    return domains.monte_carlo(jnp.asarray(scipy.stats.qmc.Halton(2, rng=seed).random(n)))
