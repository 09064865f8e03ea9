"""Curves, surfaces in space, volumes and holes against known integrals; repair of the arrays they are built from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains
from tests.domains.cases import branches, cube_mesh, observed_orders

energy = jax.jit(lambda domain, u: domain.dirichlet(u, u))


def test_a_vertex_weighs_its_share_of_the_simplices_around_it():
    np.testing.assert_allclose(branches().weights, [0.5, 2.5, 1, 1, 0])
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [9, 9, 9]], np.float32)
    mesh = domains.tetrahedral_mesh(corners, [[0, 1, 2, 3], [4, 2, 1, 3]])
    small, large = 1 / 6, 1 / 3
    np.testing.assert_allclose(4 * mesh.weights, [small, *[small + large] * 3, large, 0], rtol=1e-6)


def test_tetrahedra_integrate_linear_functions_exactly_and_smooth_ones_at_second_order(x64):
    mesh = cube_mesh(3, jitter=0.3)
    np.testing.assert_allclose(mesh.integrate(mesh.points), [0.5] * 3, rtol=1e-14)
    errors, energies = [], []
    for n in (4, 8, 16):
        mesh = cube_mesh(n)
        x, y, z = np.asarray(mesh.points).T[..., None]
        u = np.exp(x) * np.cos(y) * z
        errors.append(abs(np.asarray(mesh.weights) @ u[:, 0] - (np.e - 1) * np.sin(1) / 2))
        square, cosine, sine = (np.e**2 - 1) / 2, (1 + np.sin(2) / 2) / 2, (1 - np.sin(2) / 2) / 2
        energies.append(abs(energy(mesh, u) - square * (cosine / 3 + sine / 3 + cosine)))
    np.testing.assert_allclose(observed_orders(errors, [4, 8, 16]), 2, atol=0.1)
    np.testing.assert_allclose(observed_orders(energies, [4, 8, 16]), 2, atol=0.1)


def test_moving_a_volume_in_space_changes_no_norm_and_tiny_cells_keep_their_gradient():
    mesh = cube_mesh(2, jitter=0.2)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    u = np.sin(np.asarray(mesh.points) @ np.array([[1], [2], [3]], np.float32))
    moved = np.asarray(mesh.points) @ rotation.astype(np.float32)
    np.testing.assert_allclose(energy(domains.tetrahedral_mesh(moved, mesh.cells), u), energy(mesh, u), rtol=1e-5)
    size = np.float32(2.0**-30)
    tiny = domains.tetrahedral_mesh(size * np.asarray(mesh.points), mesh.cells)
    np.testing.assert_allclose(energy(tiny, u), size * energy(mesh, u), rtol=1e-5)


def test_the_volume_has_a_finite_gradient_at_a_flat_cell():
    cells = jnp.array([[0, 1, 2, 3], [0, 1, 2, 4]])
    points = jnp.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])

    @jax.jit
    @jax.jacobian
    def gradients(points):
        mesh = domains.tetrahedral_mesh(points, cells)
        return mesh.measure, mesh.dirichlet(points[:, :1], points[:, :1])

    assert all(np.isfinite(gradient).all() for gradient in gradients(points))


def circle(n: int) -> domains.LineMesh:
    angle = 2 * np.pi * (np.arange(n) + 0.3 * np.sin(np.arange(n))) / n
    return domains.line_mesh(
        2 * np.stack([np.cos(angle), np.sin(angle)], 1), np.stack([np.arange(n), np.roll(np.arange(n), -1)], 1)
    )


def test_a_closed_curve_converges_at_second_order(x64):
    lengths, integrals, energies = [], [], []
    for n in (32, 64, 128):
        curve = circle(n)
        weights = np.asarray(curve.weights)
        x, y = np.asarray(curve.points).T[..., None]
        lengths.append(abs(weights.sum() - 4 * np.pi))
        integrals.append(abs(weights @ (x**2 + y)[:, 0] - 8 * np.pi))
        energies.append(abs(energy(curve, x * y) - 8 * np.pi))  # u = 2 sin 2t, u' = 2 cos 2t along the curve
    for errors in (lengths, integrals, energies):
        np.testing.assert_allclose(observed_orders(errors, [1, 2, 4]), 2, atol=0.25)
        assert errors[-1] < 0.02


def test_the_gradient_on_a_surface_is_tangential(x64):
    """∫ |∇_S z|² = ∫ (1 − z²) = 8π/3 on the unit sphere, where the gradient in space would give 4π."""
    errors = []
    for refinements in (2, 3, 4):
        ball = domains.icosphere(refinements)
        errors.append(abs(energy(ball, np.asarray(ball.points)[:, 2:]) - 8 * np.pi / 3))
    np.testing.assert_allclose(observed_orders(errors, [1, 2, 4]), 2, atol=0.1)


def test_the_icosphere_is_a_closed_sphere_of_nearly_equal_triangles(x64):
    areas = []
    for refinements in range(4):
        ball = domains.icosphere(refinements, radius=2.0)
        count = 4**refinements
        assert (ball.size, ball.faces.shape) == (10 * count + 2, (20 * count, 3))
        points, weights = np.asarray(ball.points), np.asarray(ball.weights)
        np.testing.assert_allclose(np.linalg.norm(points, axis=1), 2, rtol=1e-12)
        areas.append(abs(weights.sum() - 16 * np.pi))
        corners = points[np.asarray(ball.faces)]
        assert (np.linalg.det(corners) > 0).all()  # normals point outwards
        np.testing.assert_allclose(np.linalg.det(corners).sum() / 6, 32 * np.pi / 3, rtol=0.6 / count)
        assert weights.max() < 2 * weights.min()
    np.testing.assert_allclose(observed_orders(areas, [1, 2, 4, 8])[1:], 2, atol=0.1)


def annulus(n: int) -> domains.TriangleMesh:
    """1 < r < 2 in n rings of 6n quadrilaterals, each cut in two."""
    radius, angle = np.linspace(1, 2, n + 1), 2 * np.pi * np.arange(6 * n) / (6 * n)
    points = np.stack([np.outer(radius, np.cos(angle)), np.outer(radius, np.sin(angle))], axis=-1).reshape(-1, 2)
    number = np.arange(6 * n * (n + 1)).reshape(n + 1, 6 * n)
    right = np.roll(number, -1, axis=1)
    quadrilaterals = np.stack([number[:-1], number[1:], right[1:], right[:-1]], axis=-1).reshape(-1, 4)
    return domains.triangle_mesh(points, domains.split_quadrilaterals(quadrilaterals))


def test_a_domain_may_have_a_hole(x64):
    """∫ |∇ log r|² = 2π log 2 on 1 < r < 2, whose area is 3π."""
    areas, energies = [], []
    for n in (8, 16, 32):
        mesh = annulus(n)
        areas.append(abs(np.asarray(mesh.weights).sum() - 3 * np.pi))
        logarithm = np.log(np.linalg.norm(np.asarray(mesh.points), axis=1, keepdims=True))
        energies.append(abs(energy(mesh, logarithm) - 2 * np.pi * np.log(2)))
    for errors in (areas, energies):
        np.testing.assert_allclose(observed_orders(errors, [8, 16, 32]), 2, atol=0.05)


def test_quadrilaterals_become_two_triangles_each():
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
    sides = [[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]]
    faces = domains.split_quadrilaterals(sides)
    assert faces.shape == (12, 3)
    np.testing.assert_allclose(domains.triangle_mesh(corners, faces).measure, 6, rtol=1e-6)


def bricks(n: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of n³ hexahedra that fill the unit cube, with the coordinate lines bent, and the corners of each."""
    x = np.stack(np.meshgrid(*[np.linspace(0, 1, n + 1)] * 3, indexing="ij"), axis=-1)
    x = x + 0.1 * np.prod(np.sin(np.pi * x), axis=-1, keepdims=True)
    number = order[np.arange((n + 1) ** 3)].reshape(n + 1, n + 1, n + 1)
    ring = [(0, 0), (1, 0), (1, 1), (0, 1)]
    cells = [number[i : i + n, j : j + n, k : k + n] for k in (0, 1) for i, j in ring]
    points = np.empty_like(x.reshape(-1, 3))
    points[number.ravel()] = x.reshape(-1, 3)
    return points, np.stack(cells, axis=-1).reshape(-1, 8)


def faces_of(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces of tetrahedra and how many tetrahedra each belongs to."""
    corners = np.sort(cells, axis=1)
    faces = np.concatenate([np.delete(corners, corner, axis=1) for corner in range(4)])
    return np.unique(faces, axis=0, return_counts=True)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["hexahedra", "wedges", "pyramids"])
def test_tetrahedra_of_neighbouring_solids_fit(kind, x64):
    """Any numbering: every face is shared by two tetrahedra or lies on the boundary, and the volume is filled."""
    n, random = 3, np.random.default_rng(0)
    points, solids = bricks(n, random.permutation((n + 1) ** 3))
    parts = 6
    if kind == "wedges":
        halves = solids[:, [[0, 1, 2, 4, 5, 6], [0, 2, 3, 4, 6, 7]]].reshape(-1, 6)
        cells = domains.split_solids(halves)
    elif kind == "pyramids":  # about the middle of each hexahedron, whose number is the largest or the smallest
        middle = np.arange(len(solids)) + len(points)
        points = np.concatenate([points, points[solids].mean(axis=1)])
        sides = [[0, 1, 2, 3], [4, 7, 6, 5], [0, 4, 5, 1], [1, 5, 6, 2], [2, 6, 7, 3], [3, 7, 4, 0]]
        bases = solids[:, sides].reshape(-1, 4)
        pyramids = np.column_stack([bases, np.repeat(middle, 6)])
        order = random.permutation(len(points))
        points, cells, parts = points[np.argsort(order)], domains.split_solids(order[pyramids]), 12
    else:
        cells = domains.split_solids(solids)
    assert len(cells) == parts * n**3
    mesh = domains.tetrahedral_mesh(points, cells)  # which refuses inverted cells
    np.testing.assert_allclose(mesh.measure, 1, rtol=1e-12)
    _, counts = faces_of(cells)
    assert set(counts) == {1, 2}
    assert np.sum(counts == 1) == 6 * 2 * n**2
    u = mesh.points @ np.array([[1.0], [2.0], [-1.0]])
    np.testing.assert_allclose(mesh.dirichlet(u, u), 6, rtol=1e-12)


def soup(mesh: domains.TriangleMesh) -> tuple[np.ndarray, np.ndarray]:
    """Corners of every triangle by themselves, as an STL file holds them, and the faces between them."""
    points = np.asarray(mesh.points)[np.asarray(mesh.faces)].reshape(-1, mesh.dim)
    return points, np.arange(points.shape[0]).reshape(-1, 3)


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_merging_restores_the_mesh_of_a_soup_of_triangles(tolerance):
    ball = domains.icosphere(2)
    points, faces = soup(ball)
    if tolerance:
        points = points + np.random.default_rng(0).uniform(-1e-4, 1e-4, points.shape).astype(np.float32)
    merged, corners, kept = domains.merge_duplicates(points, faces, tolerance=tolerance)
    np.testing.assert_array_equal(merged, points[kept])
    assert (np.diff(kept) > 0).all()
    mesh = domains.triangle_mesh(merged, corners)
    assert (mesh.size, mesh.faces.shape) == (ball.size, ball.faces.shape)
    np.testing.assert_allclose(mesh.measure, ball.measure, rtol=1e-3)
    np.testing.assert_allclose(np.sort(mesh.weights), np.sort(ball.weights), rtol=1e-2)
    heights = (np.asarray(part.points)[:, 2:] for part in (mesh, ball))
    np.testing.assert_allclose(energy(mesh, next(heights)), energy(ball, next(heights)), rtol=1e-3)


def test_merging_leaves_out_simplices_that_lose_their_volume_and_keeps_all_other_nodes():
    points, edges, kept = domains.merge_duplicates([[0.0, 0], [1, 0], [0, -0.0], [2, 0]], [[0, 1], [0, 2], [2, 3]])
    assert kept.tolist() == [0, 1, 3]
    assert edges.tolist() == [[0, 1], [0, 2]]
    assert points.tolist() == [[0, 0], [1, 0], [2, 0]]
    chain = np.arange(5.0)[:, None] / 8
    assert domains.merge_duplicates(chain, [[0, 4]], tolerance=0.2)[2].tolist() == [0]


@pytest.mark.thorough
def test_meshes_of_every_kind_stack():
    for mesh, builder in ((branches(), domains.line_mesh), (cube_mesh(1), domains.tetrahedral_mesh)):
        larger = domains.pad(mesh, mesh.size + 2, **{mesh.simplices_name: mesh.simplices.shape[0] + 1})
        batch = domains.stack(
            [domains.pad(mesh, larger.size, **{mesh.simplices_name: larger.simplices.shape[0]}), larger]
        )
        np.testing.assert_allclose(batch.measure, 2 * [float(mesh.measure)], rtol=1e-6)
        assert batch.simplices.shape[0] == 2
        np.testing.assert_array_equal(builder(larger.points, larger.simplices).weights, larger.weights)
        energies = jax.jit(jax.vmap(lambda mesh: mesh.dirichlet(mesh.points, mesh.points)))(batch)
        np.testing.assert_allclose(energies, 2 * [float(energy(mesh, mesh.points))], rtol=1e-6)


def test_cells_at_a_vertex_without_weight_weigh_nothing():
    mesh = cube_mesh(1)
    assert all(0 in cell for cell in mesh.cells.tolist())
    zero = np.arange(8) == 0
    holed = domains.TetrahedralMesh(mesh.points, jnp.asarray(np.where(zero, 0, mesh.weights)), mesh.cells)
    assert energy(holed, np.where(zero[:, None], np.nan, mesh.points)) == 0
    curve = branches()
    zero = np.arange(5) == 0
    cut = domains.LineMesh(curve.points, jnp.asarray(np.where(zero, 0, curve.weights)), curve.edges)
    u = np.asarray(curve.points) @ np.array([[1], [2], [3]], np.float32)
    np.testing.assert_allclose(energy(cut, np.where(zero[:, None], np.inf, u)), 8.0 + 18.0, rtol=1e-6)
