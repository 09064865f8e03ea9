"""Weights computed from points alone: orders on uneven points, holes, slivers, and the kinds of domain."""

import functools

import jax
import numpy as np
import pytest

from jaxop import domains
from tests.domains.cases import observed_orders

pytestmark = pytest.mark.filterwarnings("ignore:.*is float64")

SIZES = (250, 1000, 4000)
energy = jax.jit(lambda domain, u: domain.dirichlet(u, u))


def uneven(n: int, seed: int = 0) -> np.ndarray:
    """Points of density 36 x(1 − x) y(1 − y) in the unit square."""
    return np.random.default_rng((n, seed)).beta(2, 2, (n, 2))


@functools.cache
def errors(method: str, sizes: tuple[int, ...] = SIZES) -> np.ndarray:
    """Relative error of ∫ sin πx sin πy over the unit square, rms of 10 draws of the points."""
    rms = []
    for n in sizes:
        draws = []
        for points in (uneven(n, seed) for seed in range(10)):
            equal = np.full(n, 1 / n)
            weights = equal if method == "equal" else np.asarray(domains.from_points(points, method=method).weights)
            draws.append(weights @ np.sin(np.pi * points).prod(axis=1) * np.pi**2 / 4 - 1)
        rms.append(np.sqrt(np.mean(np.square(draws))))
    return np.array(rms)


def test_triangles_converge_at_second_order_in_the_distance_where_equal_weights_do_not_converge():
    np.testing.assert_allclose(errors("delaunay"), [5.5e-2, 1.6e-2, 4.2e-3], rtol=0.1)  # as the docstring says
    np.testing.assert_allclose(observed_orders(list(errors("delaunay")), [n**0.5 for n in SIZES]), 2, atol=0.4)
    assert (errors("equal") > 0.45).all()


def test_balls_and_density_converge_more_slowly():
    np.testing.assert_allclose(errors("neighbours"), [1.9e-2, 1.0e-2, 4.3e-3], rtol=0.1)
    np.testing.assert_allclose(errors("density", SIZES[:2]), [2.8e-2, 2.6e-2], rtol=0.1)
    orders = observed_orders(list(errors("neighbours")), [n**0.5 for n in SIZES])
    assert (orders > 0.6).all()
    assert orders.mean() < 1.5


def test_a_known_measure_scales_balls_and_densities():
    points = np.random.default_rng(0).normal(size=(60, 5))
    for method in ("neighbours", "density"):
        cloud = domains.from_points(points, method=method)
        scaled = domains.from_points(points, method=method, measure=3.0)
        assert type(scaled) is domains.PointCloud
        np.testing.assert_allclose(scaled.weights, 3 * cloud.weights / cloud.measure, rtol=1e-5)
        np.testing.assert_allclose(scaled.points, points, rtol=1e-6)


def test_the_ball_of_a_point_in_a_lattice_has_its_known_volume():
    line = np.arange(21, dtype=np.float32)
    lattice = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    cloud = domains.from_points(lattice, method="neighbours")
    np.testing.assert_allclose(cloud.weights[10 * 21 + 10], 2 * np.pi / 8, rtol=1e-6)  # the 8th neighbour is at √2


@pytest.mark.parametrize(("dim", "kind"), [(1, "LineMesh"), (2, "TriangleMesh"), (3, "TetrahedralMesh")])
@pytest.mark.sample(1)
def test_cells_fill_the_hull_in_every_dimension_and_nodes_keep_their_order(x64, dim, kind):
    inner = np.random.default_rng(dim).uniform(0.05, 0.95, (40, dim))
    corners = np.indices((2,) * dim).reshape(dim, -1).T
    points = np.random.default_rng(0).permutation(np.concatenate([inner, corners]))
    mesh = domains.from_points(points)
    assert type(mesh).__name__ == kind
    np.testing.assert_array_equal(mesh.points, points)
    np.testing.assert_allclose(mesh.measure, 1, rtol=1e-12)
    np.testing.assert_allclose(mesh.integrate(mesh.points), [0.5] * dim, rtol=1e-12)
    np.testing.assert_allclose(energy(mesh, mesh.points), dim, rtol=1e-9)


@pytest.mark.parametrize("dim", [2, 3])
def test_grids_have_flat_cells_that_are_left_out(dim):
    line = np.linspace(0, 1, 6)
    grid = np.stack(np.meshgrid(*[line] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))
    mesh = domains.from_points((grid @ rotation).astype(np.float32))
    np.testing.assert_allclose(mesh.measure, 1, rtol=1e-5)
    assert (mesh.weights > 0).all()
    x = np.asarray(mesh.points)[:, 0]
    np.testing.assert_allclose(energy(mesh, x[:, None] ** 2), np.asarray(mesh.weights) @ (4 * x**2), rtol=0.06)


def test_gradients_at_the_boundary_of_random_points_are_not_ruined_by_slivers(x64):
    found = []
    for n in (500, 2000):
        points = np.random.default_rng(n).random((n, 2))
        mesh = domains.from_points(points)
        weights, (x, y) = np.asarray(mesh.weights), points.T
        assert weights.sum() > 0.93
        assert (weights > 0).all()
        found.append(abs(energy(mesh, (np.exp(x) * np.cos(y))[:, None]) / (weights @ np.exp(2 * x)) - 1))
    assert found[0] < 0.03
    assert found[1] < 0.01


def test_layers_at_a_wall_stay_whole():
    x, y = np.linspace(0, 1, 11), np.concatenate([[0], np.geomspace(1e-5, 1, 12)])
    points = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)
    mesh = domains.from_points(points)
    np.testing.assert_allclose(mesh.measure, 1, rtol=1e-6)
    assert (mesh.weights > 0).all()


def test_flat_cells_stay_where_a_node_has_no_other():
    blunt = domains.from_points(np.array([[0, 0], [1, 0], [0.5, 0.005]], np.float32))
    assert (blunt.weights > 0).all()
    np.testing.assert_allclose(blunt.measure, 0.0025, rtol=1e-5)


def test_a_predicate_cuts_a_hole(x64):
    """∫ |∇ log r|² = 2π log 2 on 1 < r < 2, from points alone."""
    random = np.random.default_rng(0)
    radius, angle = np.sqrt(random.uniform(1, 4, 2000)), random.uniform(0, 2 * np.pi, 2000)
    radius = np.concatenate([np.repeat([1.0, 2.0], [150, 300]), radius])
    angle = np.concatenate([2 * np.pi * np.arange(150) / 150, 2 * np.pi * np.arange(300) / 300, angle])
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    mesh = domains.from_points(points, inside=lambda x: np.linalg.norm(x, axis=1) > 1)
    np.testing.assert_allclose(mesh.measure, 3 * np.pi, rtol=2e-3)
    np.testing.assert_allclose(energy(mesh, np.log(radius)[:, None]), 2 * np.pi * np.log(2), rtol=1e-2)
    filled = domains.from_points(points)
    np.testing.assert_allclose(filled.measure, 4 * np.pi, rtol=2e-3)
    outside = domains.from_points(points, inside=lambda x: x[:, 0] > 0)
    assert (outside.weights[points[:, 0] < -1.01] == 0).all()
