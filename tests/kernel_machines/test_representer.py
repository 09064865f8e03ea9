"""The representer theorem in finite-dimensional feature spaces with an ℓ_p norm, and the machines that it is about.

f(x, y) = ⟨M, Φ(x) ⊗ Ψ(y)⟩ with the penalty λ |M|_p^p: its minimiser satisfies J(M) = Φᵀ A Ψ for some A, where
J(M) = |M|^{p−1} sign M is, up to a factor, the Gâteaux derivative of the norm. Only for p = 2 is that M itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxop import kernel_machines, kernels

NX, NY, RX, RY, LAMBDA = 4, 5, 7, 6, 0.3


def minimum(objective, size):
    """The least value of a smooth convex function from 0, and where; by BFGS with exact derivatives."""
    value_and_slope = jax.jit(jax.value_and_grad(objective))
    start = 1e-2 * np.random.default_rng(1).normal(size=size)
    options = {"gtol": 1e-10, "maxiter": 5000}
    found = scipy.optimize.minimize(
        lambda a: tuple(np.asarray(v, np.float64) for v in value_and_slope(jnp.asarray(a))),
        start,
        jac=True,
        method="BFGS",
        options=options,
    )
    return float(found.fun), jnp.asarray(found.x)


@pytest.fixture
def problem(x64):
    rng = np.random.default_rng(0)
    phi, psi = rng.normal(size=(NX, RX)), rng.normal(size=(NY, RY))
    return jnp.asarray(phi), jnp.asarray(psi), jnp.asarray(rng.normal(size=(NX, NY)))


def risk(matrix, problem, p):
    phi, psi, z = problem
    return jnp.sum((phi @ matrix @ psi.T - z) ** 2) + LAMBDA * jnp.sum(jnp.abs(matrix) ** p)


def full(problem, p):
    """Over all RX × RY coefficients."""
    value, where = minimum(lambda m: risk(m.reshape(RX, RY), problem, p), RX * RY)
    return value, where.reshape(RX, RY)


def spanned(problem, p, *, dual):
    """Over the NX × NY coefficients of kernel sections, in the dual space or, falsely unless p = 2, in the space."""
    phi, psi, _ = problem

    def matrix(a):
        sections = phi.T @ a.reshape(NX, NY) @ psi
        # the inverse of J, smooth at 0 where it need not be
        return jnp.sign(sections) * (jnp.abs(sections) + 1e-300) ** (1 / (p - 1)) if dual else sections

    return minimum(lambda a: risk(matrix(a), problem, p), NX * NY)[0]


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
@pytest.mark.sample(1)
def test_minimisers_are_spanned_by_sections_in_the_dual_space(problem, p):
    phi, psi, _ = problem
    value, matrix = full(problem, p)
    dual = jnp.sign(matrix) * jnp.abs(matrix) ** (p - 1)
    onto = lambda rows: rows.T @ np.linalg.pinv(rows.T)  # noqa: E731
    projected = onto(phi) @ dual @ onto(psi)
    np.testing.assert_allclose(projected, dual, atol=1e-6)
    assert spanned(problem, p, dual=True) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("p", [1.5, 3.0])
def test_linear_spans_miss_the_minimum_unless_the_norm_is_hilbert(problem, p):
    value, matrix = full(problem, p)
    assert spanned(problem, p, dual=False) > 1.01 * value
    assert np.linalg.matrix_rank(np.asarray(matrix), tol=1e-4) > min(NX, NY)


def test_the_product_machine_solves_the_hilbert_case(problem):
    phi, psi, z = problem
    value, matrix = full(problem, 2.0)
    machine = kernel_machines.fit(kernels.DotProduct(1.0), phi, psi, z, span="product", regularization=LAMBDA)
    np.testing.assert_allclose(machine(phi, psi), phi @ matrix @ psi.T, atol=1e-7)
    assert spanned(problem, 2.0, dual=False) == pytest.approx(value, rel=1e-8)
