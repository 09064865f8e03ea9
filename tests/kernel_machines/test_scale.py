"""Landmarks, budgets and memory: machines of many points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

from jaxop import kernel_machines as km
from jaxop import kernels
from jaxop.kernel_machines import solvers
from jaxop.kernel_machines.binary import gram
from jaxop.kernel_machines.observations import Grid, Listed
from tests.kernel_machines.cases import CASES, LAMBDA, MASK, NEW_X, NEW_Y, X, Y, Z, fit


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", ["exponential", "product"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.thorough
def test_landmarks(x64, case, mask):
    """All rows as landmarks are exact; fewer give the best function of their span."""
    exact = fit(case, mask=mask)(NEW_X, NEW_Y)
    np.testing.assert_allclose(fit(case, mask=mask, landmarks=(7, 5))(NEW_X, NEW_Y), exact, rtol=1e-9)
    few = fit(case, mask=mask, landmarks=(4, 3), rng_key=jax.random.key(0))
    px, py = np.asarray(few.x_points), np.asarray(few.y_points)
    kernel = CASES[case] if case == "product" else (CASES[case],) * 2
    rows, columns = (py, px) if case != "product" else (px, py)
    left = np.asarray(jax.jit(gram)(kernel[0], X, rows))
    right = np.asarray(jax.jit(gram)(kernel[1], *((columns, Y) if case != "product" else (Y, columns))))
    right = right.T if case != "product" else right
    metric = np.eye(12)
    if case == "product":
        metric = np.kron(*(np.asarray(jax.jit(gram)(k, p, p)) for k, p in zip(kernel, (px, py), strict=True)))
    design, weights = np.kron(left, right), np.ones(35) if mask is None else mask.ravel().astype(float)
    a = np.linalg.solve(design.T @ (weights[:, None] * design) + LAMBDA * metric, design.T @ (weights * Z.ravel()))
    np.testing.assert_allclose(np.asarray(few(X, Y)).ravel(), design @ a, rtol=1e-5, atol=1e-6)


def test_large_domains_take_landmarks_and_say_so(x64, monkeypatch):
    from jaxop.kernel_machines import binary

    monkeypatch.setattr(binary, "LARGEST_EXACT", 6)
    monkeypatch.setattr(binary, "_DEFAULT_LANDMARKS", 3)
    kernel = kernels.Gaussian()
    assert km.fit(kernel, X, Y, Z).x_points.shape == (7, 2)  # one decomposition, of a small matrix
    with pytest.warns(UserWarning, match="X has 7 rows: 3 of them are taken as landmarks"):
        assert km.fit(kernel, X, Y, Z, span="product").x_points.shape == (3, 2)
    assert km.fit(kernel, X, Y, Z, span="product", landmarks=(7, None)).x_points.shape == (7, 2)


def test_progress_is_reported(x64):
    seen = []
    fit("exponential", mask=MASK, progress=lambda step, residual: seen.append((step, residual)))
    jax.effects_barrier()
    assert [step for step, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] < seen[0][1]


def test_exhausted_budget_warns_with_numbers(x64):
    with pytest.warns(RuntimeWarning, match=r"stopped after 2 steps at a residual of .* above the tolerance"):
        machine = fit("exponential", mask=MASK, max_steps=2)
    assert float(machine.residual) > 1e-10


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["matrix", "list"])
def test_memory_of_large_fits_is_that_of_the_data(kind):
    """The program is compiled, not run: 8192 × 8192 pairs, 64 landmarks."""
    n, p, count = 8192, 64, 200_000

    def inputs():
        axis = solvers.Axis(jnp.zeros((n, p)), jnp.zeros(p), jnp.zeros((p, p)), jnp.zeros(p))
        if kind == "matrix":
            return axis, Grid(jnp.zeros((n, n)), jnp.zeros((n, n), bool))
        return axis, Listed(jnp.zeros(count), *[jnp.zeros(count, np.int32)] * 2, (n, n))

    axis, seen = jax.eval_shape(inputs)
    number, integer = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    for loss, solver in (("squared", "cg"), ("logistic", "newton")):
        options = {"loss": loss, "solver": solver, "progress": None}
        program = solvers.solve.lower(seen, axis, axis, number, number, integer, **options).compile()
        assert program.memory_analysis().temp_size_in_bytes < 100e6  # the matrix of responses has 268 MB


@pytest.mark.study
def test_many_listed_pairs():
    """3000 × 3000 rows, 2 % of the pairs observed with noise: the error on other pairs is below the noise."""
    n, count = 3000, 200_000
    rng = np.random.default_rng(5)
    x, y = (rng.normal(size=(n, 3)) / 2 for _ in range(2))
    i, j = np.divmod(rng.choice(n * n, count + 5000, replace=False), n)
    truth = np.sin(2 * np.sum(x[i] * y[j], axis=1) + x[i, 0])
    noisy = truth + 0.1 * rng.normal(size=truth.size)
    x, y, noisy = (a.astype(np.float32) for a in (x, y, noisy))
    listed = scipy.sparse.coo_array((noisy[:count], (i[:count], j[:count])), shape=(n, n))
    machine = km.fit(kernels.Gaussian(1.0), *(x, y, listed), landmarks=100, rng_key=jax.random.key(0), tolerance=1e-3)
    error = np.asarray(machine.pairs(x[i[count:]], y[j[count:]])) - truth[count:]
    assert np.sqrt(np.mean(error**2)) < 0.07


@pytest.mark.thorough
def test_what_did_not_converge_is_no_machine():
    x, y = np.random.default_rng(0).uniform(-1, 1, size=(2, 8, 2)).astype(np.float32)
    labels = np.sign(np.sin(2 * x[:, :1]) @ y[:, 1:].T + np.float32(0.1))
    with pytest.raises(FloatingPointError, match=r"did not converge: its residual is .* raise regularization"):
        km.fit(kernels.Gaussian(10.0), x, y, labels, loss="hinge", regularization=1e-6)
