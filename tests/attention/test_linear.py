"""Linear attention and the averaging operator: units of weights, precision, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop.attention import averaging_operator, integral_attention, linear_attention


@pytest.mark.parametrize("weights", [[1e-18, 1e20], [1e20, 1e-18], [3e38, 3e38], [2e-38, 2e-38], [0.0, 1e-30]])
def test_causal_rows_have_no_unit_of_weights(weights):
    """Queries and keys of 1: row i is the mean of the values up to i."""
    ones, value, w = jnp.ones((2, 1, 1)), np.asarray([2.0, 3.0]), np.asarray(weights)
    expected = np.cumsum(w * value) / np.maximum(np.cumsum(w), 1e-300)
    out = linear_attention(ones, ones, jnp.float32(value)[:, None, None], jnp.float32(w), is_causal=True)
    np.testing.assert_allclose(out[:, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("n", [5, 130])
def test_later_tokens_and_their_weights_change_nothing_before(n):
    rng = np.random.default_rng(0)
    arrays = *rng.normal(size=(3, n, 2, 4)).astype(np.float32), rng.uniform(0.5, 1, n).astype(np.float32)
    attend = jax.jit(lambda *arrays: linear_attention(*arrays, is_causal=True))
    before = np.asarray(attend(*arrays))
    for array in arrays:
        array[-1] = 1e9
    np.testing.assert_array_equal(attend(*arrays)[:-1], before[:-1])


@pytest.mark.parametrize("size", [1e-37, 1e38])
def test_whole_sums_have_no_unit_of_weights(size):
    ones, value = jnp.ones((2, 1, 1)), jnp.asarray([2.0, 4.0])[:, None, None]
    out = linear_attention(ones, ones, value, jnp.full(2, size))
    np.testing.assert_allclose(out[:, 0, 0], 3.0, rtol=1e-6)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_averages_are_taken_in_the_precision_of_the_values(implementation, x64):
    rng = np.random.default_rng(0)
    query, key = jnp.float32(rng.normal(size=(2, 3, 1, 2)))
    value, weights = jnp.asarray(rng.normal(size=(3, 1, 2))), jnp.float32([0.2, 0.3, 0.5])
    average = averaging_operator(query, key, weights, implementation=implementation)
    exact = integral_attention(jnp.float64(query), jnp.float64(key), value, jnp.float64(weights))
    assert average(value).dtype == jnp.float64
    np.testing.assert_allclose(average(value), exact, rtol=1e-13)
    assert average(jnp.float32(value)).dtype == jnp.float32


@pytest.mark.thorough
def test_averages_of_lists(unchecked):
    average = averaging_operator([[[0.0]]], [[[0.0]], [[0.0]]])
    np.testing.assert_allclose(average([[[1.0]], [[3.0]]]), [[[2.0]]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"query must have shape \(nodes, heads, channels\), got \(1,\)"):
        averaging_operator([0.0], [0.0])
