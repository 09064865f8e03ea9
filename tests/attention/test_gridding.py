"""Averages of nodes onto a grid and values between its nodes, against the sums over all pairs."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains
from jaxop.attention import grid_averages, read_grid

SHAPES = {1: (6,), 2: (4, 5), 3: (4, 16, 16)}
"""The last one is averaged in several blocks of nodes."""
COUNTS = {1: 9, 2: 11, 3: 70}
RADIUS, SHARE = np.asarray([0.8, 2.5]), np.asarray([0.02, 0.3])


def grid(dim):
    return domains.box(SHAPES[dim], lower=(-1.0,) * dim, upper=tuple(1.0 + i for i in range(dim)), rule="midpoint")


def nodes(dim, seed=0):
    """Points, some outside the box, values, weights of which one is 0, and the value of the background."""
    rng, n = np.random.default_rng(seed), COUNTS[dim]
    weights = rng.uniform(0.2, 2.0, n)
    weights[-1] = 0
    return rng.uniform(-1.1, 1.2, (n, dim)), rng.normal(size=(n, 2, 3)), weights, rng.normal(size=(2, 3))


def gaussians(points, dim, xp=np):
    """κ of every head, node of the grid and point."""
    box = grid(dim)
    cells = xp.asarray([(axis.ends[1] - axis.ends[0]) / axis.size for axis in box.axes])
    squares = xp.sum(((xp.asarray(box.points)[:, None] - points[None]) / cells) ** 2, axis=-1)
    return xp.stack([xp.exp(-squares / (2 * r * r)) * box.size / (math.sqrt(2 * math.pi) * r) ** dim for r in RADIUS])


def dense(points, values, weights, background, dim, xp=np):
    kernel = gaussians(points, dim, xp) * (weights / weights.sum())
    heads = [
        (k @ v + e * s) / (k.sum(1, keepdims=True) + e)
        for k, v, s, e in zip(kernel, xp.moveaxis(values, 1, 0), background, SHARE, strict=True)
    ]
    return xp.stack(heads, axis=1)


@functools.partial(jax.jit, static_argnums=4)
def averages(points, values, weights, background, dim):
    radius, share = jnp.asarray(RADIUS), jnp.asarray(SHARE)
    return grid_averages(points, values, weights, grid(dim), radius=radius, background=background, share=share)


@pytest.mark.parametrize("dim", SHAPES)
def test_averages_are_sums_over_all_pairs(dim, x64):
    given = nodes(dim)
    np.testing.assert_allclose(averages(*given, dim), dense(*given, dim), rtol=1e-9, atol=1e-12)


def test_derivatives_are_those_of_the_sums(x64):
    given = nodes(3)

    @jax.jit
    def derivatives(*given):
        ours = jax.grad(lambda *given: jnp.sum(jnp.sin(averages(*given, 3))), argnums=(0, 1, 2, 3))
        sums = jax.grad(lambda *given: jnp.sum(jnp.sin(dense(*given, 3, jnp))), argnums=(0, 1, 2, 3))
        return ours(*given), sums(*given)

    with jax.numpy_rank_promotion("allow"):
        for a, b in zip(*derivatives(*given), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
            assert np.abs(b).max() > 1e-3


def test_laws_of_a_quadrature(x64):
    points, values, weights, background = nodes(2)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    expected = averages(points, values, weights, background, 2)
    order = np.random.default_rng(1).permutation(len(weights))
    close(averages(points[order], values[order], weights[order], background, 2), expected)
    close(averages(points, values, 1e-200 * weights, background, 2), expected)
    halves = weights.copy()
    halves[[3, -1]] = weights[3] / 2
    twice = [np.concatenate([a[:-1], a[3:4]]) for a in (points, values)]
    close(averages(*twice, halves, background, 2), expected)
    values[-1], points[-1] = 1e6, -1e6
    close(averages(points, values, weights, background, 2), expected)
    assert np.abs(averages(points, values, np.ones_like(weights), background, 2) - expected).max() > 1e-3
    close(averages(points, values, 0 * weights, background, 2), np.broadcast_to(background, expected.shape))


@pytest.mark.parametrize("dim", SHAPES)
def test_values_between_the_nodes_are_averages_over_them(dim, x64):
    points = nodes(dim)[0]
    values = np.random.default_rng(2).normal(size=(grid(dim).size, 2, 3))
    kernel = np.swapaxes(gaussians(points, dim), 1, 2)
    expected = np.stack(
        [k @ v / k.sum(1, keepdims=True) for k, v in zip(kernel, values.swapaxes(0, 1), strict=True)], 1
    )
    run = jax.jit(lambda *given: read_grid(given[0], grid(dim), given[1], radius=jnp.asarray(RADIUS)))
    np.testing.assert_allclose(run(values, points), expected, rtol=1e-9, atol=1e-12)


def test_linear_functions_are_read_and_the_outside_continues(x64):
    fine = domains.interval(40, rule="midpoint")
    read = jax.jit(lambda points: read_grid(fine.points[:, None], fine, points, radius=jnp.full(1, 0.7)))
    inside = np.linspace(0.2, 0.8, 101)[:, None]
    np.testing.assert_allclose(read(inside)[:, 0], inside, atol=4e-4 / 40)
    outside = read(np.asarray([[-50.0], [1.5], [1e6]]))
    np.testing.assert_allclose(outside.ravel(), [0.5 / 40, 1 - 0.5 / 40, 1 - 0.5 / 40], atol=1e-9)
    assert read(np.zeros((0, 1))).shape == (0, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": jnp.ones(3)}, "points, values and weights must have shapes (n, 2), (n, h, c) and (n,)"),
        ({"radius": jnp.ones(3)}, "radius must have shape (2,), got (3,)"),
        ({"background": jnp.ones(3)}, "background must have shape (2, 3), got (3,)"),
        ({"share": jnp.ones(1)}, "share must have shape (2,), got (1,)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_of_averages(change, message):
    options = {"weights": jnp.ones(4), "radius": jnp.ones(2), "background": jnp.ones((2, 3)), "share": jnp.ones(2)}
    options |= change
    with pytest.raises(ValueError, match=re.escape(message)):
        grid_averages(jnp.ones((4, 2)), jnp.ones((4, 2, 3)), options.pop("weights"), domains.box((3, 3)), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": jnp.ones((4, 2, 3))}, "values must have shape (g, h, c) with the g = 9 nodes of the grid"),
        ({"points": jnp.ones((4, 3))}, "points and radius must have shapes (k, 2) and (2,), got (4, 3) and (2,)"),
        ({"radius": jnp.ones(3)}, "points and radius must have shapes (k, 2) and (2,), got (4, 2) and (3,)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_of_values(change, message):
    options = {"values": jnp.ones((9, 2, 3)), "points": jnp.ones((4, 2)), "radius": jnp.ones(2)} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        read_grid(options["values"], domains.box((3, 3)), options["points"], radius=options["radius"])
