"""Attention converges to its integral at the order of the quadrature rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, testing
from jaxop.attention import integral_attention
from tests.laws.cases import DEPTH


class TestConvergence:
    """Attention over smooth functions converges at the order of the rule."""

    @staticmethod
    def functions(points):
        x = points[:, 0]
        frequencies = np.arange(1, DEPTH + 1, dtype=x.dtype)
        query = jnp.cos(frequencies[None, :] * x[:, None])
        key = jnp.sin(frequencies[None, :] * x[:, None] + 0.3)
        return query[:, None, :], key[:, None, :], jnp.exp(x)[:, None, None]

    def attention(self, domain, weights=None):
        query = self.functions(np.asarray([[0.2], [0.9]]))[0]
        _, key, value = self.functions(domain.points)
        return integral_attention(query, key, value, domain.weights if weights is None else weights)[:, 0, 0]

    def errors(self, rule, sizes):
        attention = jax.jit(self.attention)
        truth = np.asarray(attention(domains.interval(60, rule="gauss-legendre")))
        return [np.abs(attention(domains.interval(n, rule=rule)) - truth).max() for n in sizes]

    def test_trapezoid_and_midpoint_have_order_two(self, x64):
        sizes = [20, 40, 80]
        assert testing.observed_order([n - 1 for n in sizes], self.errors("trapezoid", sizes)) == pytest.approx(
            2, abs=0.05
        )
        assert testing.observed_order(sizes, self.errors("midpoint", sizes)) == pytest.approx(2, abs=0.05)

    def test_gauss_legendre_converges_faster_than_any_order(self, x64):
        errors = self.errors("gauss-legendre", [4, 8, 16])
        assert errors[1] < 1e-3 * errors[0]
        assert errors[2] < 1e-12

    def test_leaving_the_weights_out_on_an_endpoint_grid_costs_an_order(self, x64):
        attention = jax.jit(self.attention)
        truth = np.asarray(attention(domains.interval(60, rule="gauss-legendre")))
        sizes = [20, 40, 80]
        errors = [np.abs(attention(domains.interval(n), np.full(n, 1 / n)) - truth).max() for n in sizes]
        assert testing.observed_order(sizes, errors) == pytest.approx(1, abs=0.1)

    def test_periodic_rule_converges_faster_than_any_order(self, x64):
        @functools.partial(jax.jit, static_argnums=0)
        def attention(n):
            x = 2 * jnp.pi * domains.interval(n, rule="periodic").points
            query = jnp.asarray(np.cos([[[0.2]], [[0.9]]]))
            return integral_attention(query, jnp.sin(x)[:, None], jnp.cos(x + 0.4)[:, None])

        truth = np.asarray(attention(64))
        errors = [np.abs(attention(n) - truth).max() for n in (4, 8, 16)]
        assert errors[1] < 1e-3 * errors[0]
        assert errors[2] < 1e-12

    def test_monte_carlo_variance_is_the_predicted_one(self, x64):
        """N E|A_N − A|² → |D| ∫ p² |v − A|² dy, so the error has order 1/2 with a known constant."""
        fine = domains.interval(200, rule="gauss-legendre")
        truth = np.asarray(jax.jit(self.attention)(fine))
        query = np.asarray(self.functions(np.asarray([[0.2], [0.9]]))[0])
        _, key, value = map(np.asarray, jax.jit(self.functions)(fine.points))
        density = np.exp(np.einsum("nhd,mhd->nm", query, key) / np.sqrt(DEPTH))
        density = density / (density @ fine.weights)[:, None]
        predicted = (density**2 * (value[None, :, 0, 0] - truth[:, None]) ** 2) @ fine.weights
        for n in (64, 256):
            points = jax.random.uniform(jax.random.key(n), (4000, n, 1), dtype=jnp.float64)
            samples = jax.jit(jax.vmap(lambda p: self.attention(domains.monte_carlo(p))))(points)
            measured = n * np.mean((np.asarray(samples) - truth) ** 2, axis=0)
            np.testing.assert_allclose(measured, predicted, rtol=0.12)
