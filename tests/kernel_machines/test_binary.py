"""A machine is the minimiser it says it is, whatever the loss, the kernel and the mask."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from jax.experimental.sparse import BCOO

from jaxop import kernel_machines as km
from jaxop import kernels
from jaxop.kernel_machines import solvers
from tests.kernel_machines.cases import (
    CASES,
    LAMBDA,
    MASK,
    NEW_X,
    NEW_Y,
    RNG,
    X,
    Y,
    Z,
    check_derivatives,
    fit,
    matrices,
    oracle,
)


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("mask", "solver"), [(None, "spectral"), (None, "cg"), (MASK, "cg")])
def test_squared_loss_solves_the_normal_equations(x64, case, mask, solver):
    machine = fit(case, mask=mask, solver=solver)
    expected = oracle(CASES[case], np.ones_like(MASK) if mask is None else mask)
    np.testing.assert_allclose(machine(NEW_X, NEW_Y), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(machine.pairs(NEW_X[:3], NEW_Y), np.diagonal(machine(NEW_X[:3], NEW_Y)), rtol=1e-9)
    assert int(machine.steps) == {"spectral": 0, "cg": int(machine.steps) if mask is not None else 1}[solver]


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", ["exponential", "product"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_logistic_loss_is_minimal(x64, case, mask):
    left, right, new_left, new_right, penalty = matrices(CASES[case])
    z, seen = np.sign(Z).ravel(), (np.ones_like(MASK) if mask is None else mask).ravel()
    design = np.kron(left, right)

    def objective(a):
        f = design @ a
        slope = np.where(seen, -z / (1 + np.exp(z * f)), 0)
        value = np.sum(np.logaddexp(0, -z * f), where=seen) + LAMBDA * a @ penalty @ a
        return value, design.T @ slope + 2 * LAMBDA * penalty @ a

    found = scipy.optimize.minimize(objective, np.zeros(z.size), jac=True, method="BFGS", options={"gtol": 1e-9})
    machine = fit(case, np.sign(Z), mask, loss="logistic")
    # BFGS stops at the rounding of its objective, so its optimum is known to half the digits
    expected = (np.kron(new_left, new_right) @ found.x).reshape(4, 3)
    np.testing.assert_allclose(machine(NEW_X, NEW_Y), expected, rtol=2e-3, atol=2e-4)
    fitted = np.asarray(machine(X, Y)).ravel()
    a = np.asarray(machine.coefficients).ravel()
    assert np.sum(np.logaddexp(0, -z * fitted), where=seen) + LAMBDA * a @ penalty @ a <= found.fun * (1 + 1e-10)


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", ["exponential", "signed", "product"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_hinge_loss_is_minimal(x64, case, mask):
    """Against the dual, a quadratic program in a box, solved by another method."""
    left, right, _, _, penalty = matrices(CASES[case])
    z, seen = np.sign(Z).ravel(), (np.ones_like(MASK) if mask is None else mask).ravel()
    design = z[seen, None] * np.kron(left, right)[seen]
    quadratic = design @ np.linalg.pinv(penalty, rcond=1e-14) @ design.T / (2 * LAMBDA)

    def dual(b):
        return b @ quadratic @ b / 2 - b.sum(), quadratic @ b - 1

    bounds = [(0, 1)] * len(design)
    options = {"maxiter": 100_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-9}
    found = scipy.optimize.minimize(dual, np.full(len(design), 0.5), jac=True, bounds=bounds, options=options)
    machine = fit(case, np.sign(Z), mask, loss="hinge", tolerance=1e-6)
    a, margins = np.asarray(machine.coefficients).ravel(), z * np.asarray(machine(X, Y)).ravel()
    objective = np.sum(np.maximum(0, 1 - margins), where=seen) + LAMBDA * a @ penalty @ a
    assert 0 <= float(machine.residual) <= 1e-6
    assert objective == pytest.approx(-found.fun, rel=1e-4)
    assert objective * (1 - float(machine.residual)) <= -found.fun * (1 + 1e-9) + 1e-9  # the gap is a lower bound


def test_no_step_is_wasted_on_a_nearly_full_mask(x64):
    points = np.random.default_rng(1).normal(size=(2, 30, 2))
    mask = np.ones((30, 30), bool)
    mask[3, 4] = mask[11, 20] = False
    machine = km.fit(kernels.Gaussian(), *points, points[0] @ points[1].T, mask, regularization=LAMBDA)
    assert int(machine.steps) <= 5


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["scipy", "BCOO"])
@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge"])
def test_listed_pairs_are_a_mask(x64, kind, loss):
    responses = np.sign(Z)
    rows, columns = np.nonzero(MASK)
    values = responses[MASK]
    if kind == "scipy":
        listed = scipy.sparse.csr_array((values, (rows, columns)), shape=MASK.shape)
    else:
        padding = np.asarray([[7, 5]])  # as JAX pads
        indices = np.concatenate([np.stack([rows, columns], axis=1)[::-1], padding])
        listed = BCOO((jnp.asarray(np.append(values[::-1], 0.0)), jnp.asarray(indices)), shape=MASK.shape)
    options = {"loss": loss, "tolerance": 1e-9}
    expected = fit("exponential", responses, MASK, **options)(NEW_X, NEW_Y)
    np.testing.assert_allclose(fit("exponential", listed, **options)(NEW_X, NEW_Y), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_blocks_do_not_matter(x64, monkeypatch):
    from jaxop.kernel_machines import binary, observations

    rows, columns = np.nonzero(MASK)
    listed = scipy.sparse.coo_array((Z[MASK], (rows, columns)), shape=MASK.shape)
    whole = [fit("exponential", r, m)(NEW_X, NEW_Y) for r, m in ((Z, MASK), (listed, None))]
    solvers.solve.clear_cache()  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(observations, "_GRID_TILE", 10)  # two rows at a time
    monkeypatch.setattr(observations, "_LIST_TILE", 20)  # four pairs
    monkeypatch.setattr(binary, "_TILE", 14)
    for (responses, mask), expected in zip(((Z, MASK), (listed, None)), whole, strict=True):
        machine = fit("exponential", responses, mask)
        np.testing.assert_allclose(machine(NEW_X, NEW_Y), expected, rtol=1e-8)
        logistic = fit("exponential", np.sign(Z), MASK, loss="logistic")
        assert float(logistic.residual) < 1e-9
    # linear in z: the differences err only by the residuals of the solver, divided by the step
    check_derivatives(lambda z: jnp.sum(fit("exponential", z, MASK)(NEW_X, NEW_Y)), (Z,), eps=1e-3)
    solvers.solve.clear_cache()  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.sample(1)
def test_narrow_inputs_compute_in_float32(dtype):
    x, y, z = (jnp.asarray(a.astype(dtype)) for a in (X, Y, Z))
    machine = km.fit(kernels.Gaussian(), x, y, z, regularization=0.1)
    assert machine.coefficients.dtype == machine(NEW_X.astype(np.float32), y).dtype == jnp.float32
    with jax.enable_x64(True):
        exact = km.fit(kernels.Gaussian(), *(np.asarray(a).astype(np.float64) for a in (x, y, z)), regularization=0.1)
        expected = exact(NEW_X, NEW_Y)
    np.testing.assert_allclose(
        machine(NEW_X.astype(np.float32), NEW_Y.astype(np.float32)), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("case", ["exponential", "product"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_permutations_change_nothing(x64, case, mask):
    p, q = RNG.permutation(7), RNG.permutation(5)
    kernel, span = CASES[case], "product" if case == "product" else "sections"
    permuted = None if mask is None else mask[p][:, q]
    machine = km.fit(kernel, X[p], Y[q], Z[p][:, q], permuted, span=span, regularization=LAMBDA)
    np.testing.assert_allclose(machine(NEW_X, NEW_Y), fit(case, mask=mask)(NEW_X, NEW_Y), rtol=1e-6, atol=1e-8)


def test_asymmetric_machine_beats_the_symmetric_one(x64):
    """An attention kernel exp(2 q·x k·y), from half the pairs of some tokens, with noise; errors on new tokens."""
    rng = np.random.default_rng(3)
    tokens, new = rng.uniform(-1, 1, size=(30, 3)), rng.uniform(-1, 1, size=(60, 3))
    q, k = np.linalg.qr(rng.normal(size=(3, 3)))[0][:2]
    responses, truth = (np.exp(2 * np.outer(x @ q, x @ k)) for x in (tokens, new))
    responses += 0.05 * rng.normal(size=(30, 30))
    mask = rng.uniform(size=(30, 30)) < 0.5
    asymmetric = kernels.from_pair(lambda a, b: 2 * jnp.dot(a, q) * jnp.dot(b, k), log=True)
    mercer = kernels.from_pair(lambda a, b: jnp.dot(a, q) * jnp.dot(b, q) + jnp.dot(a, k) * jnp.dot(b, k), log=True)

    def error(kernel, span, responses, mask):
        errors = []
        for regularization in (1e-4, 1e-2, 1.0):
            options = {"span": span, "regularization": regularization, "tolerance": 1e-5}
            machine = km.fit(kernel, tokens, tokens, responses, mask, **options)
            errors.append(np.linalg.norm(np.asarray(machine(new, new)) - truth) / np.linalg.norm(truth))
        return min(errors)

    best = error(asymmetric, "sections", responses, mask)
    assert best < 0.6 * error(mercer, "product", responses, mask)
    symmetrised = error(mercer, "product", (responses + responses.T) / 2, mask & mask.T)  # f(x, y) = f(y, x)
    assert best < 0.3 * symmetrised


@dataclasses.dataclass(frozen=True)
class Mapped(kernels.Kernel):
    """exp(−(u·a − v·b)²) of rows of different lengths."""

    query_map: Any
    key_map: Any
    sign = "positive"

    def tile(self, query, key):
        return -(((query @ self.query_map)[:, None] - (key @ self.key_map)[None, :]) ** 2)


@pytest.mark.thorough
def test_inputs_of_different_lengths(x64):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(40, 4)), 5 + 2 * rng.normal(size=(30, 3))
    u, v = np.asarray([1.0, 0, -1, 0]), np.asarray([0.0, 1, 1])
    z = np.outer(x @ u, (y - 5) @ v / 2)
    x_map, _ = km.partial_least_squares(x, y, z, rank=2)
    first = np.asarray(x_map.matrix)[:, 0] * x.std(axis=0)
    np.testing.assert_allclose(abs(first @ u) / np.sqrt(2), 1, rtol=0.05)
    assert first[np.argmax(np.abs(first))] > 0
    for maps, width in ((None, 3), (2, 2), ((np.eye(4)[:, :3], np.eye(3)), 3)):
        machine = km.fit(kernels.Gaussian(), x, y, z, maps=maps, regularization=1e-3)
        assert machine.x_points.shape == (40, width)
        assert machine(x[:5], y[:6]).shape == (5, 6)
    own = km.fit(Mapped(u, v), x, y, z, regularization=1e-3)
    given = km.fit(kernels.Gaussian(), x, y, z, maps=(u[:, None], v[:, None]), regularization=1e-3)
    np.testing.assert_allclose(own(x[:5], y[:6]), given(x[:5], y[:6]), rtol=1e-5)
    assert km.fit(Mapped(u, v), x, y, z, maps="kernel", regularization=1e-3).x_map is None
    assert km.fit(kernels.Gaussian(), x, y, z, span="product", regularization=1e-3).x_points.shape == (40, 4)


@pytest.mark.thorough
def test_zero_regularization_interpolates(x64):
    machine = km.fit(kernels.ExpDotProduct(), X[:5], Y, Z[:5], regularization=0)
    np.testing.assert_allclose(machine(X[:5], Y), Z[:5], atol=1e-6)
