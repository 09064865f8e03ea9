"""Stein flows are their definition and reach their target."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import flows, kernels
from tests.flows.cases import D, symmetric

STEIN = {
    "gaussian": kernels.Gaussian(0.5),
    "inverse-multiquadric": kernels.InverseMultiquadric(0.7),
    "bilinear": kernels.Bilinear(jnp.asarray(np.diag([1.0, 2.0, 0.5]))),
}


def target(precision, x):
    return -precision @ (x - 0.2)


@pytest.mark.parametrize("name", STEIN)
def test_stein_force_is_its_definition(name, ensemble):
    x, _, weights = ensemble
    kernel, score = STEIN[name], functools.partial(target, symmetric(np.random.default_rng(4)))
    kernel = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), kernel)
    w = weights / weights.sum()

    @jax.jit
    def both(x, weights):
        pair = lambda a, b: kernel(b, a) * score(b) + jax.grad(kernel.__call__)(b, a)  # noqa: E731
        pairs = jax.vmap(lambda a: jax.vmap(lambda b: pair(a, b))(x))(x)
        return flows.stein_force(x, weights, score=score, kernel=kernel), jnp.einsum("j,ijd->id", w, pairs)

    np.testing.assert_allclose(*both(x, weights), rtol=1e-9, atol=1e-11)


def test_stein_closed_form_of_the_bilinear_kernel(ensemble):
    """The linear-time formulas against the general ones, for velocities that the kernel can produce."""
    x, _, weights = ensemble
    rng = np.random.default_rng(5)
    matrix, score = jnp.asarray(symmetric(rng)), functools.partial(target, symmetric(rng))
    closed = kernels.Bilinear(matrix, jnp.asarray(1.0))
    general = kernels.from_pair(lambda m, a, b: a @ m @ b + 1, matrix, sign="signed")
    u = x @ rng.normal(size=(D, D)) + 0.3

    @jax.jit
    def both(x, u, weights):
        forces = [flows.stein_force(x, weights, score=score, kernel=k) for k in (closed, general)]
        options = {"score": score, "regularization": 1e-9}
        return forces, [flows.stein_rates(x, u, weights, kernel=k, **options) for k in (closed, general)]

    forces, rates = both(x, u, weights)
    np.testing.assert_allclose(*forces, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(*rates, rtol=1e-5, atol=1e-5)


def test_accelerated_stein_flow_dissipates_its_energy(ensemble):
    """½ Σ w_i u_i·y_i + KL(Gaussian of the particles | target), exact for the bilinear kernel, falls at −2 α K."""
    x, _, weights = ensemble
    rng = np.random.default_rng(6)
    precision, w = symmetric(rng), weights / weights.sum()
    kernel = kernels.Bilinear(jnp.asarray(symmetric(rng)), None)

    def kinetic(x, u):
        second = x.T @ (w[:, None] * x)
        slope = jnp.linalg.solve(
            second, jnp.linalg.solve(kernel.matrix, jnp.linalg.solve(second, x.T @ (w[:, None] * u)))
        )
        return jnp.sum(w[:, None] * u * (x @ slope)) / 2

    def divergence(x):
        second = x.T @ (w[:, None] * x)
        return (jnp.trace(precision @ second) - jnp.linalg.slogdet(second)[1]) / 2

    # y = ∇Φ = S x with S symmetric
    u = x @ (kernel.matrix @ (x.T @ (w[:, None] * x)) @ symmetric(rng, definite=False))

    @jax.jit
    def evaluated(x, u, weights):
        rates = flows.stein_rates(x, u, weights, score=lambda x: -precision @ x, kernel=kernel) - 0.7 * u
        return jax.jvp(lambda x, u: kinetic(x, u) + divergence(x), (x, u), (u, rates))[1], kinetic(x, u)

    change, energy = (float(a) for a in evaluated(x, u, weights))
    assert change == pytest.approx(-1.4 * energy, rel=1e-9)


@pytest.mark.parametrize("offset", [None, 0.7])
def test_stein_momenta_are_the_velocities(offset, ensemble):
    """The acceleration of x along the momentum form, for momenta that are affine in x, is that of the velocity form."""
    x, _, weights = ensemble
    rng = np.random.default_rng(8)
    kernel = kernels.Bilinear(jnp.asarray(symmetric(rng)), offset)
    options = {"score": functools.partial(target, symmetric(rng)), "kernel": kernel}
    y = x @ symmetric(rng, definite=False) + (0.2 if offset else 0.0)

    @jax.jit
    def both(x, y, weights):
        drift, force = flows.stein_momentum_rates(x, y, weights, **options)
        velocity = lambda x, y: flows.stein_momentum_rates(x, y, weights, **options)[0](y)  # noqa: E731
        u, acceleration = jax.jvp(velocity, (x, y), (drift(y), force))
        return acceleration, flows.stein_rates(x, u, weights, **options)

    np.testing.assert_allclose(*both(x, y, weights), rtol=1e-8, atol=1e-9)
    with pytest.raises(TypeError, match=r"kernels.Bilinear, got Gaussian"):
        flows.stein_momentum_rates(jnp.asarray(x), jnp.asarray(y), **(options | {"kernel": kernels.Gaussian()}))


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", STEIN)
@pytest.mark.thorough
def test_stein_flows_reach_their_target(name, x64):
    """Mean and covariance of a Gaussian target, exactly for the bilinear kernel, whose Gaussians stay Gaussian."""
    rng = np.random.default_rng(7)
    precision = symmetric(rng)
    x = rng.normal(size=(60, D)) + 1.0
    covariance = np.linalg.inv(precision)
    kernel = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), STEIN[name])
    options = {"score": functools.partial(target, precision), "kernel": kernel}
    method = flows.KickDampDrift()
    exact = name == "bilinear"
    force = jax.jit(lambda x: flows.stein_force(x, **options))
    extra = {} if exact else {"regularization": 0.1}
    for system, schedule in (
        (flows.stein_flow(**options), flows.Damping()),
        (flows.accelerated_stein_flow(**options, **extra), flows.Damping(linear=2.0)),
    ):
        start = flows.start(method, jnp.asarray(x))
        final = np.asarray(flows.simulate(method, system, start, schedule, 0.03, 1500, every=1500).state.position)
        left = np.abs(force(final)).max() / np.abs(force(x)).max()
        assert left < (1e-3 if exact else 0.1)
        assert np.abs(final.mean(axis=0) - 0.2).max() < (1e-3 if exact else 0.1)
        gap = np.abs(np.cov(final.T, bias=True) - covariance).max() / np.abs(covariance).max()
        assert gap < (1e-3 if exact else 0.5)  # few particles under a local kernel are too narrow
