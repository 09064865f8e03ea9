"""What a rank allows: Eckart and Young, and errors as they are reported."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import schwarz
from tests.schwarz.cases import problem


def test_many_samples_are_compressed(x64):
    dec, _, inputs, targets = problem(31, 4, 2)
    mix = np.random.default_rng(0).normal(size=(31, 100))
    fit = schwarz.fit(dec, inputs @ mix, targets @ mix, rank=2, steps=2)
    assert fit.errors[-1] == pytest.approx(
        schwarz.operator_error(dec, fit.factors, inputs @ mix, targets @ mix), rel=1e-8
    )


def test_the_best_global_attention_reaches_its_bound(x64):
    dec, _, inputs, targets = problem(31, 4, 2)
    weights = dec.domain.weights
    query, key = schwarz.optimal_low_rank(inputs, targets, weights, 3)
    out = np.asarray(schwarz.low_rank_apply(jnp.asarray(inputs), weights, query, key))
    error = np.linalg.norm(out - targets) / np.linalg.norm(targets)
    assert error == pytest.approx(schwarz.low_rank_errors(inputs, targets, weights)[3], rel=1e-8)


def test_errors_are_those_of_the_rounded_factors():
    dec, _, inputs, targets = problem(63, 4, 4)
    fit = schwarz.fit(dec, inputs[:, :12], targets[:, :12], rank=4, noise=0.0, steps=5)
    measured = schwarz.operator_error(dec, fit.factors, inputs[:, :12], targets[:, :12])
    assert measured < 2 * fit.errors[-1]  # the operator itself rounds too
    assert measured < 1e-3


def test_bounds_go_with_the_shift(x64):
    dec, _, inputs, targets = problem(31, 4, 2)
    shift = 0.01
    fit = schwarz.fit(dec, inputs, targets, rank=2, shift=shift, steps=5)
    rest = targets - shift * inputs
    tails = schwarz.low_rank_errors(inputs, rest, dec.domain.weights)
    expected = tails[4 * 2 + 3] * np.linalg.norm(rest) / np.linalg.norm(targets)
    assert fit.bound == pytest.approx(expected, rel=1e-8)
    alone = schwarz.fit(dec, inputs, 2 * inputs, rank=1, shift=2.0)
    assert alone.bound == 0
    assert alone.errors[-1] == 0


def test_small_inputs_count():
    errors = schwarz.low_rank_errors(np.diag([1.0, 1e-13]), np.eye(2), np.ones(2))
    np.testing.assert_allclose(errors, [1, np.sqrt(0.5), 0], atol=1e-12)


def test_the_best_map_sees_its_inputs_only():
    ones, eye = np.ones((4, 2)), np.eye(4)[:, :2]
    np.testing.assert_allclose(schwarz.low_rank_errors(ones, eye, np.ones(4)), [1, np.sqrt(0.5)])
    many, targets = np.ones((4, 8)), np.random.default_rng(0).normal(size=(4, 8))
    query, key = schwarz.optimal_low_rank(many, targets, np.ones(4), 1)
    reached = np.linalg.norm(query @ (key.T @ many) - targets) / np.linalg.norm(targets)
    np.testing.assert_allclose(schwarz.low_rank_errors(many, targets, np.ones(4))[-1], reached, rtol=1e-5)
    with pytest.raises(ValueError, match=r"inputs must be finite, but inputs\[\(?0, 0\)?\]"):
        schwarz.low_rank_errors(np.full((4, 2), np.nan), eye, np.ones(4))
    with pytest.raises(ValueError, match="targets are 0 everywhere"):
        schwarz.low_rank_errors(ones, 0 * eye, np.ones(4))
