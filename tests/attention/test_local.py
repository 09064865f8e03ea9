"""Local averages: the axes of a grid give the sum over all nodes, and the reach is a length."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains
from jaxop.attention import local_averages

RADII = np.asarray([0.1, 0.4])


def grid():
    return domains.box((5, 4), upper=(1.0, 2.0), rule=["trapezoid", "gauss-legendre"])


def values_on(domain, seed=0):
    return np.random.default_rng(seed).normal(size=(domain.size, 2, 3))


def oracle(points, weights, values, radii=RADII):
    squares = np.sum((points[:, None] - points[None]) ** 2, axis=-1)
    by_head = [np.exp(-squares / (2 * r * r)) * weights for r in radii]
    return np.stack([k @ v / k.sum(1, keepdims=True) for k, v in zip(by_head, values.swapaxes(0, 1), strict=True)], 1)


def test_a_grid_and_its_nodes_as_a_cloud_agree_in_value_and_gradient(x64):
    nodes = grid()
    cloud = domains.from_nodes(nodes.points, nodes.weights)
    values = values_on(nodes)

    @jax.jit
    def results(values, radii):
        def loss(values, radii, domain):
            out = local_averages(values, domain, radius=radii)
            return jnp.sum(jnp.sin(out)), out

        return [jax.grad(loss, argnums=(0, 1), has_aux=True)(values, radii, domain) for domain in (nodes, cloud)]

    (of_grid, out), (of_cloud, of_all) = results(values, RADII)
    expected = oracle(np.asarray(nodes.points), np.asarray(nodes.weights), values)
    np.testing.assert_allclose(out, expected, rtol=1e-10)
    np.testing.assert_allclose(of_all, expected, rtol=1e-10)
    for ours, theirs in zip(of_grid, of_cloud, strict=True):
        assert np.abs(theirs).min() > 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)


def test_a_periodic_axis_has_no_ends(x64):
    def shifted(rule):
        domain = domains.interval(8, rule=rule)
        values = values_on(domain)
        run = jax.jit(lambda values: local_averages(values, domain, radius=0.2))
        return np.abs(run(np.roll(values, 3, axis=0)) - np.roll(run(values), 3, axis=0)).max()

    assert shifted("periodic") < 1e-12
    assert shifted("midpoint") > 1e-2


def test_near_nodes_of_a_circle_are_at_their_distance(x64):
    line = domains.interval(64, rule="midpoint")
    periodic, values = domains.interval(64, rule="periodic"), values_on(line)
    inside = slice(24, 40)
    run = jax.jit(lambda domain: local_averages(jnp.asarray(values), domain, radius=0.02))
    np.testing.assert_allclose(run(periodic)[inside], run(line)[inside], atol=0.05)
    assert np.abs(run(periodic)[inside] - values[inside]).max() > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"values": jnp.ones((7, 2, 3))}, "values must have shape (n, h, c) with n = 20 nodes, got (7, 2, 3)"),
        ({"radius": jnp.ones(3)}, "radius must be a number or have shape (h,) = (2,), got (3,)"),
        ({"radius": 0.0}, "radius must be positive and finite, a length in the unit of the nodes, got 0.0"),
        ({"radius": jnp.asarray([1.0, jnp.nan])}, "radius must be positive and finite"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(call, message):
    arguments = {"values": jnp.ones((20, 2, 3)), "radius": 0.1} | call
    with pytest.raises(ValueError, match=re.escape(message)):
        local_averages(arguments.pop("values"), grid(), **arguments)
