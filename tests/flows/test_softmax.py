"""The softmax flow is its Hamiltonian system, for any measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxop import domains, flows, kernels
from jaxop.testing import observed_order
from tests.flows.cases import D, N, energy, momentum_rates, replaced
from tests.jaxprs import exponentials


def test_force_is_softmax_attention(ensemble, matrices):
    x, _, weights = ensemble
    score, mobility = (np.asarray(m) for m in matrices.values())
    logits = x @ score @ x.T + np.log(weights)[None, :]
    expected = scipy.special.softmax(logits, axis=1) @ x @ mobility.T
    force = jax.jit(flows.softmax_force)(x, weights, score=matrices["score"], value=matrices["mobility"])
    np.testing.assert_allclose(force, expected, rtol=1e-12)


def test_momentum_rates_are_the_hamiltonian_system(ensemble, matrices):
    """ẋ_i = w_i⁻¹ ∂H/∂y_i, ẏ_i = −w_i⁻¹ ∂H/∂x_i, by automatic differentiation of explicit sums."""
    x, y, weights = ensemble
    d_x, d_y = jax.jit(jax.grad(energy, argnums=(0, 1)))(x, y, weights, **matrices)
    velocity, force = momentum_rates(x, y, weights, **matrices)
    w = (weights / weights.sum())[:, None]
    np.testing.assert_allclose(velocity, d_y / w, rtol=1e-11)
    np.testing.assert_allclose(force, -d_x / w, rtol=1e-11)


def test_an_outer_potential_replaces_the_interaction(ensemble, matrices):
    """H = ½ Σ w_i y_iᵀ B y_i / z_i + Σ w_i V(x_i): a convex V in the softmax metric."""
    x, y, weights = ensemble
    w = weights / weights.sum()
    potential = lambda x: jnp.sum(jnp.cosh(x))  # noqa: E731

    def total(x, y):
        m = jnp.exp(x @ matrices["score"] @ x.T)
        return energy(x, y, weights, **matrices) + w @ m @ w / 2 + w @ jax.vmap(potential)(x)

    @jax.jit
    def both(x, y, weights):
        return flows.softmax_momentum_rates(x, y, weights, **matrices, potential=potential)[1], jax.grad(total)(x, y)

    force, gradient = both(x, y, weights)
    np.testing.assert_allclose(force, -gradient / w[:, None], rtol=1e-10, atol=1e-12)


def test_velocity_form_is_the_momentum_form(ensemble, matrices):
    """The acceleration of x along the momentum form, by differentiation, is Γ − C."""
    x, y, weights = ensemble

    @jax.jit
    def both(x, y, weights):
        velocity = lambda x, y: momentum_rates(x, y, weights, **matrices)[0]  # noqa: E731
        u, acceleration = jax.jvp(velocity, (x, y), momentum_rates(x, y, weights, **matrices))
        return acceleration, *flows.softmax_rates(x, u, weights, **matrices)

    acceleration, gamma, connection = both(x, y, weights)
    np.testing.assert_allclose(acceleration, gamma - connection, rtol=1e-11, atol=1e-12)
    assert np.abs(connection).max() > 0.01


def test_energy_and_its_dissipation(ensemble, matrices):
    """H by explicit sums, and dH/dt = −2 α K along the damped velocity form."""
    x, y, weights = ensemble
    alpha = 0.7

    @jax.jit
    def energies(x, y, weights):
        u = momentum_rates(x, y, weights, **matrices)[0]
        gamma, connection = flows.softmax_rates(x, u, weights, **matrices)
        total = lambda x, u: sum(flows.softmax_energy(x, u, weights, **matrices))  # noqa: E731
        change = jax.jvp(total, (x, u), (u, gamma - connection - alpha * u))[1]
        return *flows.softmax_energy(x, u, weights, **matrices), energy(x, y, weights, **matrices), change

    kinetic, potential, explicit, change = (float(a) for a in energies(x, y, weights))
    assert kinetic + potential == pytest.approx(explicit, rel=1e-12)
    assert change == pytest.approx(-2 * alpha * kinetic, rel=1e-10)


def test_large_logits_do_not_overflow(matrices):
    """In float32 with x_iᵀ A x_j up to several hundreds, and equal to float64."""
    rng = np.random.default_rng(2)
    x, u = 20 * rng.normal(size=(2, N, D))
    options = {"score": jnp.eye(D), "mobility": matrices["mobility"]}
    rates = jax.jit(flows.softmax_rates)
    wide, narrow = (rates(x.astype(dtype), u.astype(dtype), **options) for dtype in (np.float64, np.float32))
    for ours, exact in zip(narrow, wide, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max())


@pytest.mark.sample(2)
@pytest.mark.parametrize("form", ["velocity", "momentum", "linear", "stein", "accelerated-stein"])
def test_weights_are_a_measure(form, ensemble, matrices):
    """A particle of weight w is two of weight w/2, one of weight 0 moves nothing, and units cancel."""
    x, y, weights = ensemble
    options = {"score": lambda x: -x, "kernel": kernels.Gaussian(jnp.asarray(0.5))}
    linear = {"bilinear": matrices["mobility"], "hessian": matrices["score"]}

    def rates(x, y, weights):
        if form == "velocity":
            gamma, connection = flows.softmax_rates(x, y, weights, **matrices)
            return jnp.concatenate([gamma, connection])
        if form == "stein":
            return flows.stein_force(x, weights, **options)
        if form == "accelerated-stein":
            return flows.stein_rates(x, y, weights, regularization=0.5, **options)
        drift, force = (
            flows.softmax_momentum_rates(x, y, weights, **matrices)
            if form == "momentum"
            else flows.linear_rates(x, y, weights, **linear)
        )
        return jnp.concatenate([drift(y), force])

    compiled = jax.jit(rates)

    def of_the_first(*ensemble):
        return np.asarray(compiled(*ensemble)).reshape(-1, len(ensemble[0]), D)[:, :N]

    whole = of_the_first(x, y, weights)
    np.testing.assert_allclose(of_the_first(x, y, 7 * weights), whole, rtol=1e-9)
    extended = [np.concatenate([a, a[:1] + 0.3]) for a in (x, y)]
    np.testing.assert_allclose(of_the_first(*extended, np.append(weights, 0.0)), whole, rtol=1e-9, atol=1e-12)
    if form != "accelerated-stein":  # its regularisation is per particle
        halved = np.append(replaced(weights, 0, weights[0] / 2), weights[0] / 2)
        split = of_the_first(*(np.concatenate([a, a[:1]]) for a in (x, y)), halved)
        np.testing.assert_allclose(split, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.thorough
def test_a_domain_is_an_ensemble(matrices):
    """Forces of functions on finer and finer grids converge to those of the continuum, at the order of the rule."""

    def force(count):
        domain = domains.interval(count)
        t = np.asarray(domain.points)[:, 0]
        x = np.stack([np.sin(3 * t), t**2, np.cos(t)], axis=1)
        return np.asarray(jax.jit(flows.softmax_rates)(x, x[:, ::-1], domain.weights, **matrices)[1])[0]

    exact = force(1025)
    counts = [17, 33, 65]
    errors = [np.abs(force(count) - exact).max() for count in counts]
    assert observed_order([c - 1 for c in counts], errors) == pytest.approx(2, abs=0.1)


def test_one_softmax_per_evaluation():
    """Exponentials of n × n matrices in the program: one for the velocity form, two for momenta."""
    x, options = jnp.ones((8, 2)), {"score": jnp.eye(2), "mobility": jnp.eye(2)}
    assert exponentials((8, 8), lambda x, u: flows.softmax_rates(x, u, **options), x, x) == 1
    assert exponentials((8, 8), lambda x, y: flows.softmax_momentum_rates(x, y, **options)[1], x, x) == 2
