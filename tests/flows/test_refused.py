"""Units, half precision, blow-up and bad input of every flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import flows, kernels
from tests.flows.cases import D, replaced


def test_units_of_mass_and_half_precision(ensemble, matrices):
    """Masses near the ends of float32, and particles in bfloat16, which are computed in float32."""
    x, u, weights = (a.astype(np.float32) for a in ensemble)
    options = {name: jnp.asarray(np.asarray(matrix, np.float32)) for name, matrix in matrices.items()}
    rates = jax.jit(functools.partial(flows.softmax_rates, **options))
    exact = rates(x, u, weights)
    for unit in (1e37, 1e-37):
        for ours, theirs in zip(rates(x, u, np.float32(unit) * weights), exact, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    half = [a.astype(jnp.bfloat16) for a in (x, u)]
    for ours, theirs in zip(rates(*half, weights), rates(*(a.astype(np.float32) for a in half), weights), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, theirs)


def test_blow_up_names_step_time_and_particle():
    """One particle under ẋ = x³ leaves at t = 1/(2 x₀²); the one that starts further out leaves first."""
    system = flows.System(lambda state, t: (state.position**3, jnp.zeros_like(state.velocity)))
    state = flows.start(flows.Euler(), jnp.asarray([[0.1], [2.0]]), time=0.0)
    with pytest.raises(FloatingPointError, match=r"step 2\d \(from t = 0.\d+ to 0.\d+\): particle 1 is not finite"):
        flows.simulate(flows.Euler(), system, state, flows.Damping(), 0.01, 100, every=10)
    last = jax.jit(lambda s: flows.simulate(flows.Euler(), system, s, flows.Damping(), 0.01, 100, every=10))(state)
    assert np.isfinite(last.position).all()


def test_bad_input(ensemble, matrices, unchecked):
    x, u, weights = ensemble
    with pytest.raises(ValueError, match=r"weights must have one entry per particle, \(12,\), got shape \(11,\)"):
        flows.softmax_rates(x, u, weights[1:], **matrices)
    with pytest.raises(ValueError, match=r"weights\[3\] = -1"):
        flows.linear_force(x, replaced(weights, 3, -1.0), bilinear=np.eye(D), hessian=np.eye(D))
    with pytest.raises(ValueError, match="weights are all zero; at least one node must carry weight"):
        flows.stein_force(x, 0 * weights, score=lambda x: -x, kernel=kernels.Gaussian())
    with pytest.raises(ValueError, match="mobility must be positive definite, but its least eigenvalue is -1"):
        flows.softmax_rates(x, u, weights, score=np.eye(D), mobility=np.diag([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match=r"score must be symmetric, but entries \[0, 1\] and \[1, 0\]"):
        flows.softmax_rates(x, u, weights, score=replaced(np.eye(D), (0, 1), 1.0), mobility=np.eye(D))
    with pytest.raises(ValueError, match=r"bilinear must be a \(3, 3\) matrix"):
        flows.linear_force(x, weights, bilinear=np.eye(2), hessian=np.eye(D))
    with pytest.raises(ValueError, match="velocity must have the shape of x"):
        flows.softmax_rates(x, u[1:], weights, **matrices)
    with pytest.raises(ValueError, match="x must have shape"):
        flows.softmax_rates(x[0], u[0], **matrices)
    with pytest.raises(ValueError, match="offset must not be 0"):
        flows.stein_rates(x, u, score=lambda x: -x, kernel=kernels.Bilinear(np.eye(D), 0.0))
    with pytest.raises(
        ValueError, match="at least 4 independent particles of positive weight for this bilinear kernel, got 3"
    ):
        flows.stein_rates(x[:3], u[:3], score=lambda x: -x, kernel=kernels.Bilinear(np.eye(D)))
    linear = flows.linear_flow(bilinear=np.eye(D), hessian=np.eye(D))
    broken = flows.start(flows.Euler(), jnp.asarray(replaced(x, (2, 1), np.nan)))
    with pytest.raises(ValueError, match=r"position must be finite at the start, but position\[\(2, 1\)\]"):
        flows.simulate(flows.Euler(), linear, broken, flows.Damping(), 0.1, 3)
    with pytest.raises(ValueError, match="regularization must be positive"):
        flows.stein_rates(x, u, score=lambda x: -x, kernel=kernels.Gaussian(), regularization=0.0)
    state = flows.start(flows.Euler(), jnp.asarray(x))
    with pytest.raises(ValueError, match="multiple of every = 3"):
        flows.simulate(
            flows.Euler(),
            linear,
            state,
            flows.Damping(),
            0.1,
            10,
            every=3,
        )
    skew = np.asarray([[1.0, 0.9], [-0.5, 1.0]])
    plane = np.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    for call in (flows.linear_rates, flows.linear_energy):
        with pytest.raises(ValueError, match="bilinear must be symmetric"):
            call(plane, plane, bilinear=skew, hessian=np.eye(2))
        with pytest.raises(ValueError, match="bilinear must be positive definite"):
            call(plane, plane, bilinear=-np.eye(2), hessian=np.eye(2))
    with pytest.raises(ValueError, match="bilinear must be positive definite"):
        flows.linear_connection(plane, plane, bilinear=np.diag([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"ridge must be at least .* recursive least squares would lose all digits"):
        flows.linear_connection(1e9 * plane, plane, ridge=0.1, is_causal=True)
    with pytest.raises(ValueError, match=r"bilinear must be finite, but bilinear\[\(0, 0\)\] = nan"):
        flows.linear_connection(plane, plane, bilinear=np.full((2, 2), np.nan))
    bilinear = kernels.Bilinear(np.eye(2))
    collinear = np.arange(5.0)[:, None] * np.ones(2)
    with pytest.raises(ValueError, match=r"at least 3 independent particles of positive weight .* got 2"):
        flows.stein_rates(collinear, 0 * collinear, score=jnp.negative, kernel=bilinear)
    with pytest.raises(ValueError, match=r"score must map \(2,\) to \(2,\), got shape \(1,\)"):
        flows.stein_force(plane, score=lambda x: -jnp.sum(x)[None], kernel=bilinear)
    with pytest.raises(TypeError, match="score must be the function"):
        flows.stein_force(plane, score=np.eye(2), kernel=bilinear)
    with pytest.raises(ValueError, match=r"kernel's matrix must be \(2, 2\) like the particles, got \(3, 3\)"):
        flows.stein_force(plane, score=jnp.negative, kernel=kernels.Bilinear(np.eye(3)))
