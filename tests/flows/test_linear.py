"""The linear flow, its connection and the laws it preserves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import flows
from tests.flows.cases import N, symmetric


def test_linear_rates_are_their_definition(ensemble, matrices):
    x, y, weights = ensemble
    w = weights / weights.sum()
    options = {"bilinear": matrices["mobility"], "hessian": matrices["score"]}
    a, v = (np.asarray(m) for m in options.values())
    gram = x @ a @ x.T * w[None, :]

    @jax.jit
    def evaluated(x, y, weights):
        drift, force = flows.linear_rates(x, y, weights, **options)
        energies = lambda x, y: flows.linear_energy(x, y, weights, **options)  # noqa: E731
        change = jax.jvp(lambda x, y: sum(energies(x, y)), (x, y), (drift(y), force - 0.7 * y))[1]
        return flows.linear_force(x, weights, **options), drift(y), force, energies(x, y), change

    attention, velocity, force, (kinetic, potential), change = evaluated(x, y, weights)
    np.testing.assert_allclose(attention, gram @ x @ v.T, rtol=1e-11)
    np.testing.assert_allclose(velocity, gram @ y, rtol=1e-11)
    np.testing.assert_allclose(force, x @ v.T - (y @ y.T * w[None, :]) @ x @ a, rtol=1e-10, atol=1e-12)
    assert float(kinetic) == pytest.approx(np.sum(w[:, None] * gram * (y @ y.T)) / 2, rel=1e-11)
    assert float(potential) == pytest.approx(-np.sum(w * np.sum(x @ v * x, axis=1)) / 2, rel=1e-11)
    assert float(change) == pytest.approx(-1.4 * float(kinetic), rel=1e-10)


def test_linear_connection_turns_momenta_into_velocities(ensemble, matrices):
    """ẍ of the momentum form, by differentiation of ẋ along the flow, is the force less the connection."""
    x, y, weights = ensemble
    y = 5 * y
    options = {"bilinear": matrices["mobility"], "hessian": matrices["score"]}

    @jax.jit
    def evaluated(x, y, weights):
        drift, force = flows.linear_rates(x, y, weights, **options)
        velocity, acceleration = jax.jvp(
            lambda x, y: flows.linear_rates(x, y, weights, **options)[0](y), (x, y), (drift(y), force)
        )
        connection = flows.linear_connection(x, velocity, weights, bilinear=options["bilinear"])
        return flows.linear_force(x, weights, **options), connection, acceleration

    force, connection, acceleration = evaluated(x, y, weights)
    np.testing.assert_allclose(force - connection, acceleration, rtol=1e-8)
    assert np.abs(connection).max() > 0.1


@pytest.mark.parametrize("with_matrix", [False, True])
def test_causal_linear_connection_is_that_of_every_prefix(ensemble, matrices, with_matrix):
    x, u, weights = ensemble
    bilinear = matrices["mobility"] if with_matrix else None
    at = [0, 5, N - 1]
    ridges = [0.3 * weights[: i + 1].max() / weights[: i + 1].sum() for i in at]

    @jax.jit
    def both(x, u, weights):
        options = {"bilinear": bilinear}
        prefixes = [
            flows.linear_connection(x[: i + 1], u[: i + 1], weights[: i + 1], ridge=ridge, **options)[i]
            for i, ridge in zip(at, ridges, strict=True)
        ]
        return flows.linear_connection(x, u, weights, ridge=0.3, is_causal=True, **options), prefixes

    causal, expected = both(x, u, weights)
    np.testing.assert_allclose(np.asarray(causal)[at], expected, rtol=1e-9)
    later = both(x, u, np.append(weights[:-1], 1e9))[0]
    np.testing.assert_array_equal(later[:-1], causal[:-1])


@pytest.mark.parametrize("weights", [[1e-18, 1e20], [1e20, 1e-18], [3e38, 3e38], [0.0, 1e-30]])
def test_causal_linear_connection_has_no_unit_of_weights(weights):
    """One channel: T_i = Σ_{j≤i} w_j x_j u_j / (Σ_{j≤i} w_j x_j² + ε max w), C = −x T² where A is the identity."""
    x, u, w = np.asarray([1.0, 2.0]), np.asarray([3.0, 1.0]), np.asarray(weights)
    with np.errstate(invalid="ignore"):
        motion = np.cumsum(w * x * u) / (np.cumsum(w * x * x) + 0.5 * np.maximum.accumulate(w))
    arrays = (np.asarray(a, np.float32) for a in (x[:, None], u[:, None], w))
    out = jax.jit(functools.partial(flows.linear_connection, ridge=0.5, is_causal=True))(*arrays)
    np.testing.assert_allclose(out[:, 0], -x * np.nan_to_num(motion) ** 2, rtol=1e-5)


def test_recursive_least_squares_stays_accurate(x64):
    x, u = np.random.default_rng(2).normal(size=(2, 2048, 4))
    causal = jax.jit(functools.partial(flows.linear_connection, ridge=1.0, is_causal=True))
    exact, rounded = (np.asarray(causal(x.astype(dtype), u.astype(dtype))) for dtype in (np.float64, np.float32))
    assert np.abs(rounded - exact).max() < 1e-4 * np.abs(exact).max()


def test_elliptical_laws_are_preserved(ensemble):
    """Particles against the moment equations over the whole horizon, and x_t = M_t x_0 for one matrix M_t."""
    rng = np.random.default_rng(3)
    x, _, weights = ensemble
    options = {"bilinear": jnp.asarray(symmetric(rng)), "hessian": jnp.asarray(-symmetric(rng))}
    slope = symmetric(rng, definite=False)
    method, schedule, dt, steps = flows.AdamsBashforth2(), flows.Damping(logarithmic=3.0), 1e-4, 20_000
    w = weights / weights.sum()
    start = flows.start(method, jnp.asarray(x), jnp.asarray(x @ slope))
    particles = flows.simulate(
        method, flows.accelerated_linear_flow(jnp.asarray(weights), **options), start, schedule, dt, steps, every=1000
    )
    moments = flows.start(method, jnp.asarray(x.T @ (w[:, None] * x)), jnp.asarray(slope))
    law = flows.simulate(method, flows.linear_moment_flow(**options), moments, schedule, dt, steps, every=1000)
    (position, velocity), (covariance, slopes) = (
        (np.asarray(a.position), np.asarray(a.velocity)) for a in (particles, law)
    )
    np.testing.assert_allclose(np.einsum("tni,n,tnj->tij", position, w, position), covariance, atol=1e-6)
    np.testing.assert_allclose(velocity, position @ slopes, atol=1e-6)
    assert np.abs(covariance[-1] - covariance[0]).max() > 0.1
    matrix, *_ = np.linalg.lstsq(x, position[-1], rcond=None)
    np.testing.assert_allclose(x @ matrix, position[-1], atol=1e-10)
