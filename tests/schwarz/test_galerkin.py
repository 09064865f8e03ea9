"""Factors from a matrix: exact in one dimension, additive Schwarz with overlap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from jaxop import domains, schwarz
from tests.schwarz.cases import laplacian, problem


@pytest.mark.sample(1)
@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("unity", schwarz.PARTITIONS_OF_UNITY)
def test_galerkin_blocks_are_the_inverse_in_one_dimension(x64, overlap, unity):
    for domain in (domains.interval(63, rule="interior"), domains.interval(50, upper=3.0, rule="interior")):
        dec = schwarz.decompose(domain, 8, overlap, partition=unity)
        h = float(domain.weights[0])
        x = h * np.arange(domain.size + 1) + h / 2
        for conductivity in (np.ones_like(x), 1 + x**2):
            stiffness = scipy.sparse.diags_array(
                [-conductivity[1:-1], conductivity[1:] + conductivity[:-1], -conductivity[1:-1]], offsets=[-1, 0, 1]
            )
            matrix = stiffness / h**2
            inverse = np.linalg.inv(matrix.toarray())
            if np.ptp(conductivity) > 0:  # then hats must bend with the equation
                meet = [nodes[0] for nodes in np.asarray(dec.cores.index)[1:]]
                dec = schwarz.decompose(domain, 8, overlap, partition=unity, coarse=inverse[:, meet])
            difference = np.asarray(schwarz.matrix(dec, schwarz.galerkin_factors(dec, matrix))) - inverse
            assert np.linalg.norm(difference, 2) < 1e-12 * np.linalg.norm(inverse, 2)


def test_two_levels_beat_the_best_global_rank_at_equal_parameters(x64):
    dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 0)
    factors = schwarz.galerkin_factors(dec, laplacian(63), rank=4)
    inverse = np.linalg.inv(laplacian(63).toarray())
    error = np.linalg.norm(np.asarray(schwarz.matrix(dec, factors)) - inverse, 2)
    singular = np.linalg.svd(inverse, compute_uv=False)
    assert singular[4] / singular[0] == pytest.approx(4.0e-2, rel=0.01)  # 2 · 63 · 4 = 504 parameters
    assert error / singular[0] == pytest.approx(8.7e-4, rel=0.01)
    # rows of zeros are padding and interfaces; within the others rounding decides what is zero
    acting = [int(np.any(np.asarray(leaf), axis=-1).sum()) * leaf.shape[-1] for leaf in jax.tree.leaves(factors)]
    assert sum(acting) == 546


@pytest.mark.thorough
def test_galerkin_blocks_of_overlapping_subdomains_are_additive_schwarz(x64):
    dec = schwarz.decompose(domains.box((9, 9), rule="interior"), 3, 1)
    line = laplacian(9)
    matrix = scipy.sparse.kron(line, scipy.sparse.eye_array(9)) + scipy.sparse.kron(scipy.sparse.eye_array(9), line)
    factors = schwarz.galerkin_factors(dec, matrix.tocsr(), blocks="overlap")
    dense, basis = matrix.toarray(), np.asarray(dec.coarse_basis())
    expected = basis @ np.linalg.inv(basis.T @ dense @ basis) @ basis.T
    for index, inside in zip(np.asarray(dec.cover.index), np.asarray(dec.cover.inside), strict=True):
        nodes = np.ix_(index[inside], index[inside])
        expected[nodes] += np.linalg.inv(dense[nodes])
    np.testing.assert_allclose(schwarz.matrix(dec, factors), expected, rtol=1e-8, atol=1e-10)


def test_galerkin_blocks_of_a_definite_matrix_need_no_keys(x64):
    dec, matrix = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2), laplacian(63)
    for rank in (None, 3):
        pair = schwarz.galerkin_factors(dec, matrix, rank, blocks="overlap")
        alone = schwarz.galerkin_factors(dec, matrix, rank, blocks="overlap", symmetric=True)
        assert alone.local_key is alone.coarse_key is None
        assert alone.local_query.shape == pair.local_query.shape
        np.testing.assert_allclose(schwarz.matrix(dec, alone), schwarz.matrix(dec, pair), rtol=1e-9, atol=1e-12)
    far = np.zeros((63, 63))
    far[4, 60] = 64**2  # on no block
    with pytest.raises(ValueError, match="is not on the coarse space"):
        schwarz.galerkin_factors(dec, matrix.toarray() + far, blocks="overlap", symmetric=True)
    drift = matrix + scipy.sparse.eye_array(63, k=1)
    with pytest.raises(ValueError, match=r"must be symmetric in L2, .* is not on subdomain 0"):
        schwarz.galerkin_factors(dec, drift, symmetric=True)
    with pytest.raises(ValueError, match=r"must be positive definite .* or -A"):
        schwarz.galerkin_factors(dec, -matrix, symmetric=True)


def test_galerkin_factors_of_matrices_of_any_kind():
    dec = schwarz.decompose(domains.interval(255, rule="interior"), 8, 2)
    conductivity = 1 + np.random.default_rng(0).random(256)
    off = np.diag(-conductivity[1:-1], 1)
    dense = (256**2 * (np.diag(conductivity[1:] + conductivity[:-1]) + off + off.T)).astype(np.float32)
    expected = schwarz.galerkin_factors(dec, dense, symmetric=True)
    for matrix in (jnp.asarray(dense), scipy.sparse.csr_matrix(dense), scipy.sparse.csr_matrix(dense).todense()):
        found = schwarz.galerkin_factors(dec, matrix, symmetric=True)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_stored_zeros_tie_no_nodes(x64):
    dec, matrix, _, _ = problem(31, 4, 2)
    row, column = np.arange(15), np.arange(15) + 16
    stored = scipy.sparse.coo_array(matrix)
    entries = [np.concatenate(a) for a in ((stored.data, 0.0 * row), (stored.row, row), (stored.col, column))]
    padded = scipy.sparse.coo_array((entries[0], (entries[1], entries[2])), shape=(31, 31))
    for ours, theirs in zip(
        jax.tree.leaves(schwarz.galerkin_factors(dec, padded)),
        jax.tree.leaves(schwarz.galerkin_factors(dec, matrix)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
