"""Calls as users make them: eagerly, again and again, and inside `jax.shard_map`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxop import flows, kernels
from jaxop.attention import linear_attention
from jaxop.testing import count_compilations

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1.5, 4), jnp.float32)
DISTANCE = kernels.from_pair(lambda a, b: -jnp.sum((a - b) ** 2), log=True)
SYSTEM = flows.accelerated_linear_flow(bilinear=jnp.eye(2), hessian=jnp.eye(2))


def score(x):
    return -x


def simulated(x, w):
    method = flows.KickDampDrift()
    start = flows.start(method, x, w[:, None] * x)
    return flows.simulate(method, SYSTEM, start, flows.Damping(linear=1.0), 0.1, 2).position


CASES = {
    "linear attention": lambda x, w: linear_attention(*[x[:, None]] * 3, w, is_causal=True),
    "linear connection": lambda x, w: flows.linear_connection(x, x**2, w, ridge=0.1, is_causal=True),
    "stein": lambda x, w: flows.stein_rates(x, x**2, w, score=score, kernel=DISTANCE, regularization=0.1),
    "simulation": simulated,
}
cases = pytest.mark.parametrize("name", CASES)


def gradients(function):
    return jax.grad(lambda x, w: jnp.sum(function(x, w) ** 2), argnums=(0, 1))


@pytest.mark.sample(1)
@cases
def test_the_second_eager_call_compiles_nothing(name):
    for call in (CASES[name], gradients(CASES[name])):
        call(X, W)
        with count_compilations() as compilations:
            call(X, W)
        assert compilations() == 0


@pytest.mark.sample(1)
@cases
def test_samples_on_several_devices(name):
    """Particles that differ between the devices, weights that all share."""

    def both(x, w):
        return CASES[name](x, w), *gradients(CASES[name])(x, w)

    def body(x, w):
        return jax.tree.map(lambda a: a[None], both(x[0], w))

    mesh = jax.make_mesh((1,), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))
    samples, shared = PartitionSpec("samples"), PartitionSpec()
    sharded = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(samples, shared), out_specs=samples))
    for ours, expected in zip(sharded(X[None], W), jax.jit(both)(X, W), strict=True):
        np.testing.assert_allclose(ours[0], expected, rtol=1e-5, atol=1e-6)
