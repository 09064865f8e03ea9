"""Schwarz attention inside conjugate gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.scipy.sparse.linalg import cg
from jax.sharding import PartitionSpec

from jaxop import domains, schwarz
from jaxop.testing import count_compilations

CORE = 16


def setting(subdomains):
    """−u″ with subdomains of 16 nodes and 4 more on each side: domain, A as a function and as a matrix, b."""
    n = CORE * subdomains - 1
    h = 1 / (n + 1)

    def apply(u):
        return (2 * u - jnp.pad(u[1:], (0, 1)) - jnp.pad(u[:-1], (1, 0))) / h**2

    matrix = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n)) / h**2
    rhs = jax.random.normal(jax.random.key(0), (n,), jnp.float64)
    return domains.interval(n, rule="interior"), apply, matrix.tocsr(), rhs, (CORE * h / (5 * np.pi)) ** 2


def iterations(subdomains):
    """By additive Schwarz with one and two levels, and by factors of rank 4 with a shift."""
    domain, apply, matrix, rhs, shift = setting(subdomains)
    two, one = (schwarz.decompose(domain, subdomains, 4, coarse=coarse) for coarse in ("hat", None))
    counts = []
    for dec, options in (
        (one, {"blocks": "overlap"}),
        (two, {"blocks": "overlap"}),
        (two, {"rank": 4, "shift": shift}),
    ):
        factors = schwarz.galerkin_factors(dec, matrix, **options)
        result = schwarz.flexible_cg(apply, rhs, preconditioner=schwarz.preconditioner(dec, factors), tolerance=1e-8)
        assert float(result.residual) < 1e-8
        counts.append(int(result.iterations))
    return counts


@pytest.mark.thorough
def test_iterations_are_flat_with_a_coarse_space_and_grow_without(x64):
    few, many = np.array(iterations(8)), np.array(iterations(24))
    assert many[0] > 2 * few[0]
    assert (many[1:] <= few[1:] + 1).all()
    assert (many[1:] < 25).all()


@pytest.mark.study
def test_iterations_stay_flat_up_to_128_subdomains(x64):
    counts = np.array([iterations(subdomains) for subdomains in (8, 16, 32, 64, 128)])
    assert (np.ptp(counts[:, 1:], axis=0) <= 2).all()
    assert counts[-1, 0] > 8 * counts[0, 0]


@pytest.mark.thorough
def test_fitted_operators_precondition(x64):
    domain, apply, matrix, rhs, shift = setting(4)
    dec = schwarz.decompose(domain, 4, 4)
    eye = np.eye(domain.size)
    inverse = np.asarray(jnp.linalg.inv(jax.vmap(apply)(jnp.asarray(eye))))
    tied = schwarz.fit(dec, eye, inverse, rank=4, symmetric=True, shift=shift, steps=3).factors
    start, tilt = schwarz.galerkin_factors(dec, matrix, 4), np.diag(np.linspace(1, 2, domain.size))
    free = schwarz.fit(dec, tilt, inverse @ tilt, rank=4, shift=shift, initial=start, steps=2).factors
    expected = inverse @ np.asarray(rhs)
    solution, _ = cg(apply, rhs, M=schwarz.preconditioner(dec, tied), tol=1e-10, maxiter=40)
    np.testing.assert_allclose(solution, expected, rtol=1e-6, atol=1e-8)
    assert schwarz.symmetry_report(dec, free).asymmetry > 1e-6
    for factors in (tied, free):
        solve = jax.jit(lambda b, m: schwarz.flexible_cg(apply, b, preconditioner=m, tolerance=1e-10))
        result = solve(rhs, schwarz.preconditioner(dec, factors))
        np.testing.assert_allclose(result.solution, expected, rtol=1e-6, atol=1e-8)
        assert int(result.iterations) < 40


def test_flexible_directions_bear_a_preconditioner_that_changes(x64):
    """Jacobi whose strength depends on the residual: Fletcher and Reeves's β does not get there in 3000 steps."""
    values = np.logspace(0, 3, 60)

    def preconditioner(r):
        return r / values * (1 + 0.9 * jnp.sin(40 * r / jnp.max(jnp.abs(r))))

    rhs = np.random.default_rng(0).normal(size=60)
    solve = jax.jit(lambda b: schwarz.flexible_cg(lambda x: values * x, b, preconditioner=preconditioner))
    result = solve(rhs)
    np.testing.assert_allclose(result.solution, rhs / values, rtol=1e-3, atol=1e-4)
    assert int(result.iterations) < 40


@pytest.mark.thorough
def test_any_size_of_right_hand_side():
    solve = jax.jit(lambda b: schwarz.flexible_cg(lambda x: jnp.arange(1.0, 9.0) * x, b).solution)
    for size in (1.2e-37, 1e-30, 1e30, 1e38, 3e38):
        rhs, expected = jnp.full(8, size), size / np.arange(1.0, 9.0)
        for solution in (solve(rhs), schwarz.flexible_cg(lambda x: jnp.arange(1.0, 9.0) * x, rhs).solution):
            np.testing.assert_allclose(np.asarray(solution, np.float64), expected, rtol=1e-4)


def test_arrays_and_preconditioners_compile_once():
    dec = schwarz.decompose(domains.interval(15, rule="interior"), 2, 2)
    matrix = jnp.asarray(16**2 * (2 * np.eye(15) - np.eye(15, k=1) - np.eye(15, k=-1)), jnp.float32)

    def solve(scale):
        factors = schwarz.galerkin_factors(dec, np.asarray(matrix), blocks="overlap")
        inverse = schwarz.preconditioner(dec, factors)
        return schwarz.flexible_cg(matrix, scale * jnp.ones(15), preconditioner=inverse)

    solve(1.0)
    with count_compilations() as compilations:
        solve(2.0)
    assert compilations() == 0


def test_functions_are_read_at_every_call():
    scale = [2.0]
    matrix = lambda x: scale[0] * x  # noqa: E731
    for scale[0] in (2.0, 4.0):
        np.testing.assert_allclose(schwarz.flexible_cg(matrix, jnp.ones(3)).solution, 1 / scale[0], rtol=1e-6)


def test_right_hand_sides_on_several_devices():
    mesh = jax.make_mesh((1,), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))
    samples, shared = PartitionSpec("samples"), PartitionSpec()
    for specs in ((samples, shared), (shared, samples)):

        @jax.jit
        @functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=samples)
        def solve(diagonal, rhs):
            return schwarz.flexible_cg(lambda x: diagonal * x, rhs).solution

        np.testing.assert_allclose(solve(jnp.arange(1.0, 5.0), jnp.ones(4)), 1 / np.arange(1.0, 5.0), rtol=1e-5)


@pytest.mark.thorough
def test_global_low_rank_needs_more_iterations_the_more_subdomains(x64):
    """As many parameters as two levels of rank 4, the best eigenfunctions: one subdomain is global attention."""
    counts = []
    for nodes in (127, 255):
        dec = schwarz.decompose(domains.interval(nodes, rule="interior"), 1, 0, coarse=None)
        k, h = np.arange(1, 9), 1 / (nodes + 1)
        values = (h / (2 * np.sin(np.pi * k * h / 2))) ** 2
        modes = np.sqrt(2 * (values[:-1] - values[-1])) * np.sin(np.pi * h * np.outer(np.arange(1, nodes + 1), k[:-1]))
        factors = schwarz.Factors(local_query=jnp.asarray(modes[None]), shift=float(values[-1]))

        def apply(u, h=h):
            return (2 * u - jnp.pad(u[1:], (0, 1)) - jnp.pad(u[:-1], (1, 0))) / h**2

        rhs = jnp.asarray(np.random.default_rng(0).normal(size=nodes))
        inverse = schwarz.preconditioner(dec, factors)
        result = schwarz.flexible_cg(apply, rhs, preconditioner=inverse, tolerance=1e-8)
        counts.append((int(result.iterations), int(schwarz.flexible_cg(apply, rhs, tolerance=1e-8).iterations)))
    (few, none), (many, _) = counts
    assert few < 0.8 * none
    assert many > 1.8 * few


@pytest.mark.thorough
def test_the_preconditioner_is_symmetric_on_uneven_grids(x64):
    domain = domains.interval(24, rule="gauss-legendre")
    dec = schwarz.decompose(domain, 3, 2)
    factors = schwarz.random_factors(jax.random.key(0), dec, 3, symmetric=True)
    matrix = schwarz.preconditioner(dec, factors)(jnp.eye(24))
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12, atol=1e-14)
    assert float(jnp.linalg.eigvalsh(matrix)[0]) > -1e-12


@pytest.mark.thorough
def test_nodes_of_no_weight_stay_zero(x64):
    dec = schwarz.from_subdomains(domains.from_nodes(jnp.arange(4.0)[:, None], jnp.array([1.0, 1, 0, 1])), [range(4)])
    apply = schwarz.preconditioner(dec, schwarz.Factors(shift=2.0))
    np.testing.assert_array_equal(apply(jnp.ones(4)), [2, 2, 0, 2])


@pytest.mark.thorough
def test_flexible_cg_equals_conjugate_gradients(x64):
    root = jax.random.normal(jax.random.key(0), (12, 12))
    matrix, rhs = root @ root.T + jnp.eye(12), jnp.ones(12)
    result = schwarz.flexible_cg(lambda x: matrix @ x, rhs, max_iterations=5, tolerance=1e-14)
    expected, _ = cg(lambda x: matrix @ x, rhs, maxiter=5, tol=0.0)
    np.testing.assert_allclose(result.solution, expected, rtol=1e-8)
    assert int(result.iterations) == 5


def test_flexible_cg_stops_at_zero_and_at_indefinite_matrices():
    result = schwarz.flexible_cg(lambda x: x, jnp.zeros(3))
    assert (int(result.iterations), float(result.residual)) == (0, 0.0)
    result = schwarz.flexible_cg(lambda x: -x, jnp.ones(3))
    assert int(result.iterations) == 1
    assert float(result.residual) == 1.0


@pytest.mark.thorough
def test_residuals_in_half_precision_do_not_overflow():
    dec = schwarz.decompose(domains.interval(255, rule="interior"), 8, 2)
    matrix = 256**2 * (2 * np.eye(255) - np.eye(255, k=1) - np.eye(255, k=-1))
    inverse = schwarz.preconditioner(dec, schwarz.galerkin_factors(dec, matrix, blocks="overlap"))
    full = inverse(jnp.full(255, 300.0))
    half = inverse(jnp.full(255, 300.0, jnp.float16))
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(half.astype(jnp.float32), full, rtol=2e-3)


def test_bad_input_is_named(unchecked):
    with pytest.raises(ValueError, match=r"rhs must have shape \(n,\), got \(3, 1\); use jax.vmap"):
        schwarz.flexible_cg(lambda x: x, jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        schwarz.flexible_cg(lambda x: x, jnp.ones(3), tolerance=0)
    for tolerance in ("1e-5", True, jnp.ones(2)):
        with pytest.raises(TypeError, match="tolerance must be one positive number"):
            schwarz.flexible_cg(lambda x: x, jnp.ones(3), tolerance=tolerance)
    with pytest.raises(ValueError, match="max_iterations must be an integer of at least 0, got -1"):
        schwarz.flexible_cg(lambda x: x, jnp.ones(3), max_iterations=-1)
    with pytest.raises(TypeError, match=r"matrix is of scipy.sparse, which JAX does not accept; pass"):
        schwarz.flexible_cg(scipy.sparse.csr_array(np.eye(3)), jnp.ones(3))
    with pytest.raises(TypeError, match=r"preconditioner must be a function .* got schwarz.Factors"):
        schwarz.flexible_cg(lambda x: x, jnp.ones(3), preconditioner=schwarz.Factors(shift=1.0))


def test_matrices_and_functions_of_any_precision(unchecked):
    matrix, ones = jnp.diag(jnp.asarray([1.0, 2.0, 4.0])), jnp.ones(3)
    expected = [1.0, 0.5, 0.25]
    np.testing.assert_allclose(schwarz.flexible_cg(matrix, ones).solution, expected, rtol=1e-5)
    half = schwarz.flexible_cg(lambda x: matrix @ x, ones.astype(jnp.bfloat16), preconditioner=lambda r: r)
    assert half.solution.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half.solution, np.float32), expected, rtol=1e-2)
    with pytest.raises(ValueError, match=r"preconditioner must map \(n,\) = \(3,\) to \(n,\), got \(3, 1\)"):
        schwarz.flexible_cg(matrix, ones, preconditioner=lambda r: r[:, None])
    with pytest.raises(ValueError, match=r"matrix must map \(n,\) = \(3,\) to \(n,\), got \(2,\)"):
        schwarz.flexible_cg(matrix[:2], ones)
