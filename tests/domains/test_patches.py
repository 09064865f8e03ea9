"""Partitions of grids: split and join, the weights of the whole, sub-domains."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains
from tests.domains.cases import values_on

PARTITIONS = {
    "line": (domains.interval, {"n": 12, "upper": 3.0}, (4,)),
    "one patch": (domains.interval, {"n": 5, "rule": "midpoint"}, (1,)),
    "one node each": (domains.interval, {"n": 5, "rule": "periodic"}, (5,)),
    "square": (domains.box, {"shape": (4, 6), "upper": (1, 2), "rule": "midpoint"}, (2, 3)),
    "mixed rules": (domains.box, {"shape": (4, 6), "rule": ("gauss-legendre", "trapezoid")}, (1, 2)),
    "cube": (domains.box, {"shape": (4, 2, 6), "lower": -1, "rule": "periodic"}, (2, 2, 3)),
}


def cut(name):
    build, arguments, patches = PARTITIONS[name]
    return domains.partition(build(**arguments), patches)


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.sample(2)
def test_join_undoes_split(name):
    partition = cut(name)
    values = jnp.arange(2.0 * partition.domain.size).reshape(-1, 2)
    pieces = partition.split(values)
    assert pieces.shape == (math.prod(partition.patches), math.prod(partition.shape), 2)
    np.testing.assert_array_equal(partition.join(pieces), values)
    np.testing.assert_array_equal(partition.split(partition.join(pieces)), pieces)


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.sample(2)
def test_patches_are_blocks_of_the_grid_in_row_major_order(name):
    partition = cut(name)
    field = np.arange(partition.domain.size)
    pieces = partition.split(jnp.asarray(field, jnp.float32)[:, None])[..., 0]
    for number, index in enumerate(np.ndindex(*partition.patches)):
        block = tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, partition.shape, strict=True))
        np.testing.assert_array_equal(pieces[number], field.reshape(partition.domain.shape)[block].ravel())


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", PARTITIONS)
def test_weights_are_those_of_the_whole_and_sum_to_its_measure(name):
    partition = cut(name)
    np.testing.assert_allclose(jnp.sum(partition.weights), partition.domain.measure, rtol=1e-6)
    np.testing.assert_array_equal(partition.join(partition.weights[..., None])[:, 0], partition.domain.weights)
    u = values_on(partition.domain)
    integral = jnp.sum(partition.weights[..., None] * partition.split(u), axis=(0, 1))
    np.testing.assert_allclose(integral, partition.domain.integrate(u), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.sample(2)
def test_subdomains_hold_the_nodes_and_weights_of_their_patch(name):
    partition = cut(name)
    points = partition.split(partition.domain.points)
    last = tuple(p - 1 for p in partition.patches)
    for number, index in ((0, (0,) * len(last)), (-1, last)):
        patch = partition.subdomain(index)
        assert patch.shape == partition.shape
        np.testing.assert_array_equal(patch.points, points[number])
        np.testing.assert_allclose(patch.weights, partition.weights[number], rtol=1e-6)


@pytest.mark.parametrize("rule", ["midpoint", "periodic"])
def test_equal_weight_subdomains_follow_the_midpoint_rule_on_their_own_cells(rule):
    grid = domains.box((8, 6), lower=(0, -1), upper=(2, 2), rule=rule)
    patch = domains.partition(grid, (4, 2)).subdomain((1, 1))
    assert patch.rules == ("midpoint", "midpoint")
    assert patch.has_equal_weights
    np.testing.assert_allclose(patch.measure, 0.5 * 1.5, rtol=1e-6)
    again = patch.resample(patch.shape)
    np.testing.assert_allclose(again.points, patch.points, rtol=1e-6)
    np.testing.assert_allclose(again.weights, patch.weights, rtol=1e-6)
    x = patch.points[:, :1]
    np.testing.assert_allclose(patch.dirichlet(x, x), patch.measure, rtol=1e-6)


def test_h1_energies_of_subdomains_leave_out_the_cells_between_them():
    partition = domains.partition(domains.interval(6, upper=5.0), (2,))
    x = partition.split(partition.domain.points)
    energies = [partition.subdomain((i,)).dirichlet(x[i], x[i]) for i in range(2)]
    np.testing.assert_allclose(energies, [2.0, 2.0], rtol=1e-6)


def test_uneven_grids_can_be_cut():
    partition = domains.partition(domains.from_samples([0.0, 1.0, 4.0, 9.0]), (2,))
    np.testing.assert_allclose(partition.weights, [[0.5, 2.0], [4.0, 2.5]], rtol=1e-6)
    np.testing.assert_array_equal(partition.subdomain((1,)).points, [[4.0], [9.0]])


def test_split_runs_inside_jit_and_vmap():
    partition = cut("square")
    values = jnp.arange(3.0 * 24).reshape(3, 24, 1)
    pieces = jax.jit(lambda partition, values: jax.vmap(partition.split)(values))(partition, values)
    np.testing.assert_array_equal(pieces[2], partition.split(values[2]))
    stacked = domains.stack([partition.domain] * 3)
    weights = jax.vmap(lambda grid: domains.partition(grid, (2, 3)).weights)(stacked)
    np.testing.assert_array_equal(weights[1], partition.weights)
