"""Grids of the sphere: exact integrals of spherical harmonics, observed orders, gradients and nodes without data."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains
from tests.domains.cases import observed_orders

energy = jax.jit(lambda domain, u: domain.dirichlet(u, u))


def monomial_integral(*powers: int) -> float:
    """∫ x^a y^b z^c over the unit sphere."""
    if any(power % 2 for power in powers):
        return 0.0
    product = math.prod(math.gamma((power + 1) / 2) for power in powers)
    return 2 * product / math.gamma((sum(powers) + 3) / 2)


def largest_error(domain: domains.Sphere, degree: int) -> float:
    """Largest error of all monomials of one degree, which span the harmonics of this degree and of lower ones."""
    x, y, z = np.asarray(domain.points, np.float64).T
    powers = [(a, b, degree - a - b) for a, b in itertools.product(range(degree + 1), repeat=2) if a + b <= degree]
    weights = np.asarray(domain.weights)
    return max(abs(weights @ (x**a * y**b * z**c) - monomial_integral(a, b, c)) for a, b, c in powers)


@pytest.mark.parametrize(("rows", "columns"), [(4, None), (3, 6), (5, 12)])
def test_gauss_legendre_integrates_all_harmonics_up_to_its_degree_and_no_further(x64, rows, columns):
    ball = domains.sphere(rows, columns)
    degree = 2 * rows - 1
    assert ball.shape == (rows, columns or 2 * rows)
    assert max(largest_error(ball, d) for d in range(degree + 1)) < 5e-14
    assert largest_error(ball, degree + 1) > 1e-3


def test_few_longitudes_limit_the_order_of_the_harmonics(x64):
    ball = domains.sphere(6, 5)
    assert max(largest_error(ball, d) for d in range(5)) < 5e-14
    assert largest_error(ball, 5) > 1e-3


def exponential(ball: domains.Domain) -> float:
    """Error of ∫ exp(a·x) = 4π sinh |a| / |a|."""
    a = np.array([0.6, -0.8, 1.5])
    size = np.linalg.norm(a)
    return abs(np.asarray(ball.weights) @ np.exp(np.asarray(ball.points) @ a) - 4 * np.pi * np.sinh(size) / size)


def test_smooth_functions_converge_at_the_order_of_the_rule(x64):
    assert exponential(domains.sphere(12)) < 1e-13
    for rule in ("midpoint", "trapezoid"):
        sizes = [17, 33]
        errors = [exponential(domains.sphere(n, 64, rule=rule)) for n in sizes]
        spaces = sizes if rule == "midpoint" else [n - 1 for n in sizes]
        np.testing.assert_allclose(observed_orders(errors, spaces), 2, atol=0.05)


@pytest.mark.parametrize("rule", domains.SPHERE_RULES)
def test_weights_are_areas(x64, rule):
    ball = domains.sphere(6, 7, radius=3.0, rule=rule)
    np.testing.assert_allclose(ball.measure, 36 * np.pi, rtol=1e-14)
    points = np.asarray(ball.points)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 3, rtol=1e-14)
    grid = points.reshape(6, 7, 3)
    np.testing.assert_allclose(grid[:, 0, 2], 3 * np.sin(ball.latitudes), atol=1e-14)
    np.testing.assert_allclose(np.arctan2(*grid[3, :, 1::-1].T) % (2 * np.pi), ball.longitudes, atol=1e-14)
    if rule == "midpoint":
        np.testing.assert_allclose(ball.latitudes, np.pi * (np.arange(6) - 2.5) / 6)
        shares = np.asarray(ball.weights) / np.repeat(np.cos(ball.latitudes), 7)
        np.testing.assert_allclose(shares, shares[0], rtol=1e-13)
    if rule == "trapezoid":
        np.testing.assert_allclose(points[[0, -1]], [[0, 0, -3], [0, 0, 3]], atol=1e-15)


@pytest.mark.parametrize("rule", domains.SPHERE_RULES)
@pytest.mark.sample(1)
def test_gradients_converge_at_second_order(x64, rule):
    """∫ |∇_S u|² = l (l + 1) ∫ u² for a harmonic u of degree l."""
    sizes = [33, 65]
    found = []
    for n in sizes:
        ball = domains.sphere(n, 2 * n - 2 if rule == "trapezoid" else 2 * n, rule=rule, radius=2.0)
        x, y, z = np.asarray(ball.points).T / 2
        found.append([float(energy(ball, u[:, None])) for u in (z, x, x * z, x * y, 5 * z**3 - 3 * z)])
    exact = [2 * 4 / 3, 2 * 4 / 3, 6 * 4 / 15, 6 * 4 / 15, 12 * 16 / 7]
    errors = np.abs(np.array(found) - np.pi * np.array(exact))
    spaces = [n - 1 if rule == "trapezoid" else n for n in sizes]
    for column in errors.T:
        np.testing.assert_allclose(observed_orders(column, spaces), 2, atol=0.2)
    assert (errors[-1] < 0.01 * np.pi * np.array(exact)).all()


@pytest.mark.thorough
def test_nodes_without_data_do_not_count():
    ocean = domains.sphere(6, 8, rule="midpoint")
    weights, points = np.asarray(ocean.weights), np.asarray(ocean.points)
    land = (np.arange(48) % 8 < 3) | (np.arange(48) // 8 == 2)
    masked = dataclasses.replace(ocean, weights=jnp.asarray(np.where(land, 0, weights)))
    u = np.sin(3 * points[:, :1] + points[:, 2:])
    holed = jnp.asarray(np.where(land[:, None], np.float32(np.nan), u))
    np.testing.assert_allclose(masked.integrate(holed)[0], np.sum(weights * u[:, 0], where=~land), rtol=1e-5)
    # flattening the land to the value of a neighbour would change differences at the coast: only pairs in water count
    grid, water = u.reshape(6, 8), ~land.reshape(6, 8)
    phi = ocean.latitudes
    bands = np.diff(np.sin(phi))
    bands[[0, -1]] += 1 - np.sin(phi[-1])
    along = bands * np.pi / 4 / np.diff(phi) ** 2
    north = np.sum(along[:, None] * np.diff(grid, axis=0) ** 2, where=water[1:] & water[:-1])
    shares = weights.reshape(6, 8)[:, 0] / (np.cos(phi) * np.pi / 4) ** 2
    east = np.sum(shares[:, None] * (np.roll(grid, -1, 1) - grid) ** 2, where=water & np.roll(water, -1, 1))
    np.testing.assert_allclose(energy(masked, holed), north + east, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda u: masked.norm(u, space="H1")))(holed)
    np.testing.assert_array_equal(gradient[land], 0)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("rule", ["midpoint", "trapezoid"])
def test_given_latitudes_and_longitudes_weigh_the_areas_of_their_cells(x64, rule):
    ball = domains.sphere(6, 8, radius=2.0, rule=rule)
    rows, columns = np.degrees(ball.latitudes), np.degrees(ball.longitudes)
    cloud = domains.latitude_longitude(rows, columns, radius=2.0)
    np.testing.assert_allclose(cloud.points, ball.points, atol=1e-14)
    np.testing.assert_allclose(cloud.weights, ball.weights, rtol=1e-12)
    turned = domains.latitude_longitude(rows[::-1], columns[::-1] - 180, radius=2.0)
    np.testing.assert_allclose(turned.weights, np.asarray(cloud.weights)[::-1], rtol=1e-12)
    np.testing.assert_allclose(turned.points, (np.asarray(cloud.points) * [-1, -1, 1])[::-1], atol=1e-14)


def test_a_region_has_the_area_of_its_cells_and_uneven_rows_converge(x64):
    region = domains.latitude_longitude([10.0, 20, 30], np.arange(0, 60, 10.0))
    exact = np.radians(60) * (np.sin(np.radians(35)) - np.sin(np.radians(5)))
    np.testing.assert_allclose(region.measure, exact, rtol=1e-13)
    errors = []
    for n in (16, 32, 64):
        rows = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(n)[0]))  # a Gaussian grid without its weights
        columns = 360 * np.arange(n) / n + 20 * np.sin(2 * np.pi * np.arange(n) / n)
        ball = domains.latitude_longitude(rows, columns)
        np.testing.assert_allclose(ball.measure, 4 * np.pi, rtol=1e-13)
        errors.append(exponential(ball))
    np.testing.assert_allclose(observed_orders(errors, [16, 32, 64]), 2, atol=0.2)


def test_spheres_of_several_sizes_stack():
    batch = domains.stack([domains.sphere(4, radius=radius) for radius in (1.0, 2.0)])
    np.testing.assert_allclose(batch.measure, [4 * np.pi, 16 * np.pi], rtol=1e-6)
    energies = jax.jit(jax.vmap(lambda ball: ball.dirichlet(ball.points, ball.points)))(batch)
    np.testing.assert_allclose(energies[1], 4 * energies[0], rtol=1e-6)
