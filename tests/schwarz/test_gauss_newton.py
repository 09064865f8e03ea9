"""The derivatives of a fit, which are written by hand, are those of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop.schwarz.gauss_newton import Step
from jaxop.schwarz.objective import Objective
from tests.schwarz.cases import problem


@pytest.mark.sample(1)
@pytest.mark.parametrize("symmetric", [False, True])
def test_products_with_the_derivative_and_its_transpose(symmetric, x64):
    dec, _, inputs, targets = problem(31, 4, 2)
    objective, rng = Objective(dec, inputs, targets, None, None, 1e-6), np.random.default_rng(0)

    def draw():
        ranks = [3] + [2] * 4
        queries = [rng.normal(size=(len(gram), rank)) for gram, rank in zip(objective.grams, ranks, strict=True)]
        keys = queries if symmetric else [rng.normal(size=query.shape) for query in queries]
        return list(zip(queries, keys, strict=True))

    pairs, direction = draw(), draw()
    error = objective.residual(pairs)
    moments, basis = objective.moments, jnp.asarray(objective.basis.toarray())

    def residual(unknowns):
        blocks = zip([(q, q) for q in unknowns] if symmetric else unknowns, moments, strict=True)
        return basis @ jnp.concatenate([q @ (k.T @ moment) for (q, k), moment in blocks]) - objective.image

    def unknowns_of(pairs):
        return jax.tree.map(jnp.asarray, [q for q, _ in pairs] if symmetric else pairs)

    step = Step(objective, pairs, error, symmetric)
    value, derivative = jax.linearize(residual, unknowns_of(pairs))
    np.testing.assert_allclose(value, error, rtol=1e-10, atol=1e-12)
    along = derivative(unknowns_of(direction))
    np.testing.assert_allclose(step._derivative(direction), along, rtol=1e-10, atol=1e-12)
    (transposed,) = jax.linear_transpose(derivative, unknowns_of(pairs))(jnp.asarray(error))
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(transposed)])
    np.testing.assert_allclose(step._pack(step._transposed(error)), flat, rtol=1e-10, atol=1e-12)
