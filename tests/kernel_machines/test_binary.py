"""Binary kernel machines against dense oracles in float64, their derivatives, approximations and bad input."""

import dataclasses
import pickle
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
from jaxop.kernel_machines.binary import gram
from jaxop.kernel_machines.observations import Grid, Listed

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(7, 2)), RNG.normal(size=(5, 2))
NEW_X, NEW_Y = RNG.normal(size=(4, 2)), RNG.normal(size=(3, 2))
Z = RNG.normal(size=(7, 5))
MASK = RNG.uniform(size=(7, 5)) < 0.7
SIGNED = kernels.from_pair(lambda a, b: jnp.sin(3 * a[0] * b[1]) - a[1] * b[0], sign="signed")
CASES = {
    "exponential": kernels.ExpDotProduct(),
    "signed": SIGNED,
    "bilinear": kernels.from_pair(lambda a, b: a[0] * (b[0] + 2 * b[1]) - a[1] * b[0] + 1, sign="signed"),  # of rank 3
    "product": (kernels.Gaussian(1.0), kernels.Gaussian(0.5)),
}
LAMBDA = 1e-2


def matrices(kernel):
    """Φ, Ψ at the training and at new rows, and P, in float64."""

    def matrix(k, a, b):
        return np.asarray(jax.jit(gram)(k, a, b))

    if isinstance(kernel, tuple):
        k, own = kernel
        fitted, new = (matrix(k, X, X), matrix(own, Y, Y)), (matrix(k, NEW_X, X), matrix(own, NEW_Y, Y))
        return *fitted, *new, np.kron(*fitted)
    return (
        matrix(kernel, X, Y),
        matrix(kernel, X, Y).T,
        matrix(kernel, NEW_X, Y),
        matrix(kernel, X, NEW_Y).T,
        np.eye(X.shape[0] * Y.shape[0]),
    )


def oracle(kernel, mask):
    """The Kronecker normal equations of the squared loss."""
    left, right, new_left, new_right, penalty = matrices(kernel)
    design, weights = np.kron(left, right), np.asarray(mask).ravel().astype(float)
    normal = design.T @ (weights[:, None] * design) + LAMBDA * penalty
    coefficients = np.linalg.lstsq(normal, design.T @ (weights * Z.ravel()), rcond=1e-15)[0]
    return (np.kron(new_left, new_right) @ coefficients).reshape(4, 3)


def fit(case, responses=Z, mask=None, **options):
    kernel = CASES[case]
    span = "product" if isinstance(kernel, tuple) else "sections"
    return km.fit(kernel, X, Y, responses, mask, span=span, **{"regularization": LAMBDA, **options})


def check_derivatives(objective, arguments, order=1, *, eps=1e-5, rtol=1e-5, atol=1e-5):
    """Forward and reverse derivatives along a random direction against central differences, in one program."""
    rng = np.random.default_rng(6)
    arguments = tuple(np.asarray(a) for a in arguments)
    direction = tuple(np.asarray(rng.normal(size=a.shape)) for a in arguments)

    def along(function):
        def differences(*at):
            shifted = lambda h: function(*(a + h * d for a, d in zip(at, direction, strict=True)))  # noqa: E731
            ends = jax.lax.map(shifted, np.asarray([eps, -eps]))
            return (ends[0] - ends[1]) / (2 * eps)

        def forward_and_reverse(*at):
            _, linear = jax.linearize(function, *at)
            gradient = jax.linear_transpose(linear, *at)(jnp.ones(()))
            return linear(*direction), sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))

        return differences, forward_and_reverse

    found = [along(objective)]
    if order == 2:
        found += [along(lambda *at, k=k: found[0][1](*at)[k]) for k in range(2)]
    for differences, derivatives in jax.jit(lambda a: [[f(*a) for f in functions] for functions in found])(arguments):
        np.testing.assert_allclose(derivatives, [differences] * 2, rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("mask", "solver"), [(None, "spectral"), (None, "cg"), (MASK, "cg")])
def test_squared_loss_solves_the_normal_equations(x64, case, mask, solver):
    machine = fit(case, mask=mask, solver=solver)
    expected = oracle(CASES[case], np.ones_like(MASK) if mask is None else mask)
    np.testing.assert_allclose(machine(NEW_X, NEW_Y), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(machine.pairs(NEW_X[:3], NEW_Y), np.diagonal(machine(NEW_X[:3], NEW_Y)), rtol=1e-9)
    assert int(machine.steps) == {"spectral": 0, "cg": int(machine.steps) if mask is not None else 1}[solver]


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
    check_derivatives(lambda z: jnp.sum(fit("exponential", z, MASK)(NEW_X, NEW_Y)), (Z,))
    solvers.solve.clear_cache()  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("case", ["sections", "bilinear", "product"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_derivatives_are_finite_differences(x64, case, mask, loss):
    """In every argument; the bilinear kernel has a multiple singular value 0."""

    def objective(parameter, regularization, x, y, z):
        kernel = {
            "sections": kernels.Gaussian(parameter[0, 0]),
            "bilinear": kernels.Bilinear(jnp.asarray(parameter)),
            "product": (kernels.Gaussian(parameter[0, 0]), kernels.Gaussian(parameter[0, 1])),
        }[case]
        z = z if loss == "squared" else np.sign(Z)
        machine = km.fit(
            kernel, x, y, z, mask, span=case if case == "product" else "sections", loss=loss,
            regularization=regularization, tolerance=1e-13,
        )  # fmt: skip
        return jnp.sum(jnp.sin(machine(NEW_X, NEW_Y)))

    check_derivatives(objective, ([[0.7, 1.1], [-0.4, 0.8]], LAMBDA, X, Y, Z), atol=2e-5, rtol=2e-5)


def test_derivatives_at_equal_singular_values(x64):
    """K = I: the derivative of a singular value decomposition would be NaN."""

    def objective(matrix):
        kernel = kernels.Bilinear(jnp.asarray(matrix), offset=None)
        return jnp.sum(jnp.sin(km.fit(kernel, np.eye(4), np.eye(4), Z[:4, :4], regularization=0.1)(NEW, NEW)))

    NEW = np.random.default_rng(2).normal(size=(3, 4))
    check_derivatives(objective, (np.eye(4),), 2)


def test_second_derivatives(x64):
    def objective(width, log_regularization):
        machine = km.fit(
            kernels.Gaussian(width), X, Y, Z, MASK, regularization=jnp.exp(log_regularization), tolerance=1e-13
        )
        return km.validation_loss(machine, X, Y, Z, ~MASK)

    check_derivatives(objective, (0.7, -3.0), 2, atol=1e-4, rtol=1e-4)


def test_hinge_machines_refuse_derivatives(x64):
    with pytest.raises(NotImplementedError, match="support pairs"):
        jax.grad(lambda w: fit_hinge(w)(NEW_X, NEW_Y).sum())(1.0)
    machine = fit_hinge(1.0)
    assert np.all(np.isfinite(jax.jit(jax.grad(lambda x: machine(x, NEW_Y).sum()))(NEW_X)))


def fit_hinge(width):
    return km.fit(kernels.Gaussian(width), X, Y, np.sign(Z), loss="hinge", regularization=LAMBDA)


def test_jit_and_vmap(x64):
    def value(regularization, z=Z):
        return km.fit(kernels.ExpDotProduct(), X, Y, z, regularization=regularization)(NEW_X, NEW_Y)

    several = np.asarray([1e-3, 1e-2, 1e-1])
    expected = np.stack([value(r) for r in (1e-3, 1e-2, 1e-1)])
    np.testing.assert_allclose(jax.vmap(value)(several), expected, rtol=1e-8)
    np.testing.assert_allclose(jax.jit(value)(1e-2, Z), expected[1], rtol=1e-8)
    machine = fit("exponential")
    np.testing.assert_allclose(jax.jit(lambda m, x, y: m(x, y))(machine, NEW_X, NEW_Y), expected[1], rtol=1e-8)


@pytest.mark.parametrize("span", km.SPANS)
@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge"])
def test_everything_may_be_traced(x64, span, loss):
    def value(width, x, y, z, mask, regularization):
        options = {"span": span, "loss": loss, "landmarks": (6, 4), "regularization": regularization, "tolerance": 1e-9}
        return km.fit(kernels.Gaussian(width), x, y, z, mask, **options)(NEW_X, NEW_Y)

    arguments = 0.7, X, Y, np.sign(Z), MASK, LAMBDA
    np.testing.assert_allclose(jax.jit(value)(*arguments), value(*arguments), rtol=1e-4, atol=1e-6)


def test_machine_is_a_pytree(x64):
    machine = fit("product")
    leaves, structure = jax.tree.flatten(machine)
    assert jax.tree.unflatten(structure, leaves).span == "product"
    again = pickle.loads(pickle.dumps(machine))
    np.testing.assert_array_equal(again(NEW_X, NEW_Y), machine(NEW_X, NEW_Y))
    assert repr(machine) == "BinaryMachine(product of Gaussian, 7 × 5 points)"
    assert machine(NEW_X[:0], NEW_Y).shape == (0, 3)
    assert machine(NEW_X, NEW_Y[:0]).shape == (4, 0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
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


@pytest.mark.parametrize("case", ["exponential", "product"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
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


def test_unsolved_derivative_is_not_a_number(x64):
    with pytest.warns(RuntimeWarning, match="max_steps"):
        assert np.isnan(
            jax.grad(lambda r: fit("exponential", mask=MASK, max_steps=1, regularization=r)(NEW_X, NEW_Y).sum())(1e-2)
        )


def test_zero_regularization_interpolates(x64):
    machine = km.fit(kernels.ExpDotProduct(), X[:5], Y, Z[:5], regularization=0)
    np.testing.assert_allclose(machine(X[:5], Y), Z[:5], atol=1e-6)


def replaced(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


DUPLICATE = replaced(Y, 4, Y[1])
BAD = {
    "shape": (lambda: fit("exponential", Z.T), ValueError, r"\(nx, ny\) = \(7, 5\).*got \(5, 7\); transpose"),
    "mask shape": (lambda: fit("exponential", mask=MASK[:3]), ValueError, r"mask must have shape"),
    "mask dtype": (lambda: fit("exponential", mask=MASK.astype(int)), TypeError, "mask must be boolean"),
    "empty": (lambda: fit("exponential", mask=MASK & False), ValueError, "at least one observed pair"),
    "NaN": (lambda: fit("exponential", replaced(Z, (2, 3), np.nan)), ValueError, r"responses\[2, 3\] is nan.*mask="),
    "NaN rows": (lambda: km.fit(kernels.Gaussian(), replaced(X, (6, 1), np.nan), Y, Z), ValueError, r"X .*\(6, 1\)"),
    "one row": (lambda: km.fit(kernels.Gaussian(), X[:, 0], Y, Z), ValueError, "X must have shape"),
    "kernel": (lambda: km.fit(kernels.Gaussian, X, Y, Z), TypeError, "must be a Kernel"),
    "two kernels": (lambda: km.fit((kernels.Gaussian(),) * 2, X, Y, Z), ValueError, "one kernel between both"),
    "span": (lambda: km.fit(kernels.Gaussian(), X, Y, Z, span="section"), ValueError, "'sections'"),
    "loss": (lambda: fit("exponential", loss="square"), ValueError, "'squared'"),
    "solver": (lambda: fit("exponential", solver="gc"), ValueError, "'cg'"),
    "spectral": (lambda: fit("exponential", mask=MASK, solver="spectral"), NotImplementedError, "some pairs.*'cg'"),
    "newton": (lambda: fit("exponential", solver="newton"), NotImplementedError, "does not solve loss='squared'"),
    "labels": (
        lambda: fit("exponential", replaced(np.sign(Z), (1, 2), 0), loss="hinge"),
        ValueError,
        r"\(1, 2\) is 0.0.*2 \* r",
    ),
    "negative": (lambda: fit("exponential", regularization=-1.0), ValueError, "not negative, got -1"),
    "several": (lambda: fit("exponential", regularization=np.ones(2)), ValueError, "vmap"),
    "zero, masked": (lambda: fit("exponential", mask=MASK, regularization=0), ValueError, "pass a positive number"),
    "zero, rectangular": (lambda: fit("exponential", regularization=0), ValueError, "7 rows of X and 5 of Y"),
    "zero, duplicates": (
        lambda: km.fit(kernels.ExpDotProduct(), X[:5], DUPLICATE, Z[:5], regularization=0),
        ValueError,
        "the equal rows 1 and 4 of Y",
    ),
    "zero, rank": (
        lambda: km.fit(kernels.from_pair(jnp.dot, sign="signed"), X[:5], Y, Z[:5], regularization=0),
        ValueError,
        r"the rows \d, .* of [XY] give dependent kernel values",
    ),
    "landmarks": (lambda: fit("exponential", landmarks=6), ValueError, "number of rows of Y, 5, got 6"),
    "indefinite": (
        lambda: km.fit(kernels.from_pair(lambda a, b: jnp.sum((a - b) ** 2), sign="signed"), X, Y, Z, span="product"),
        ValueError,
        r"FunctionKernel has the eigenvalue -.*rows of X.*span='sections'",
    ),
    "asymmetric": (
        lambda: km.fit(CASES["signed"], X, Y, Z, span="product"),
        ValueError,
        "symmetric kernels.*the other way",
    ),
    "overflow": (
        lambda: km.fit(kernels.ExpDotProduct(), 100 * X, Y, Z),
        FloatingPointError,
        "ExpDotProduct is not finite",
    ),
    "rank of maps": (lambda: fit("exponential", maps=3), ValueError, r"min\(a, b\) = 2, got 3"),
    "shape of maps": (
        lambda: fit("exponential", maps=(np.eye(3), np.eye(2))),
        ValueError,
        r"maps\[0\] must have shape \(2, r\)",
    ),
    "number of maps": (lambda: fit("exponential", maps=(np.eye(2),)), ValueError, "two matrices"),
    "tolerance": (lambda: fit("exponential", tolerance=0.0), ValueError, "must be positive"),
    "rows": (lambda: fit("exponential")(NEW_X[:, :1], NEW_Y), ValueError, r"x must have shape \(n, 2\)"),
    "pairs": (lambda: fit("exponential").pairs(NEW_X, NEW_Y), ValueError, "4 and 3 rows"),
    "sparse mask": (lambda: fit("exponential", scipy.sparse.coo_array(Z), MASK), ValueError, "mask must be None"),
    "sparse shape": (lambda: fit("exponential", scipy.sparse.coo_array(Z.T)), ValueError, "transpose"),
    "sparse empty": (lambda: fit("exponential", scipy.sparse.coo_array((7, 5))), ValueError, "stores no entries"),
    "sparse twice": (
        lambda: fit("exponential", scipy.sparse.coo_array((np.ones(2), ([1, 1], [2, 2])), shape=(7, 5))),
        ValueError,
        r"the pair \(1, 2\) more than once",
    ),
    "sparse NaN": (
        lambda: fit("exponential", scipy.sparse.coo_array((np.asarray([1, np.nan]), ([1, 3], [2, 4])), shape=(7, 5))),
        ValueError,
        r"pair \(3, 4\) is nan",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is float64 but JAX runs in 32 bits")
@pytest.mark.parametrize("case", BAD)
def test_bad_input(unchecked, case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()


def test_second_fit_compiles_nothing():
    x, y, z = (jnp.asarray(a.astype(np.float32)) for a in (X, Y, Z))
    km.fit(kernels.Gaussian(1.0), x, y, z, jnp.asarray(MASK), regularization=0.1)
    before = solvers.solve._cache_size(), solvers.axes._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    km.fit(kernels.Gaussian(2.0), x, y, z, jnp.asarray(~MASK), regularization=0.2, max_steps=500)
    assert (solvers.solve._cache_size(), solvers.axes._cache_size()) == before  # pyright: ignore[reportFunctionMemberAccess]


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


@pytest.mark.slow
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


@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge"])
def test_padding_of_sparse_responses_does_not_matter_inside_jit(loss, x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 2))
    indices = np.stack(np.divmod(rng.permutation(36)[:20], 6), axis=1)
    values = np.sign(rng.normal(size=20))
    padded = np.concatenate([values, np.zeros(5)]), np.concatenate([indices, np.full((5, 2), 6)])

    @jax.jit
    def coefficients(values, indices):
        listed = BCOO((values, indices), shape=(6, 6))
        return km.fit(kernels.Gaussian(1.0), x, y, listed, loss=loss, regularization=0.1).coefficients

    np.testing.assert_allclose(coefficients(*padded), coefficients(values, indices), rtol=1e-3, atol=1e-4)


def test_what_did_not_converge_is_no_machine():
    x, y = np.random.default_rng(0).uniform(-1, 1, size=(2, 8, 2)).astype(np.float32)
    labels = np.sign(np.sin(2 * x[:, :1]) @ y[:, 1:].T + np.float32(0.1))
    with pytest.raises(FloatingPointError, match=r"did not converge: its residual is .* raise regularization"):
        km.fit(kernels.Gaussian(10.0), x, y, labels, loss="hinge", regularization=1e-6)


def test_a_complete_mask_is_none_inside_jit_too():
    x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    folds = km.split(x, x, x @ x.T, over="rows", folds=2, rng_key=jax.random.key(0))
    tuned = km.tune(lambda p: kernels.Gaussian(jnp.exp(p)), 0.0, *next(folds), steps=2, solver="spectral")
    assert np.isfinite(tuned.losses).all()
