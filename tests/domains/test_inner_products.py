"""L2 and H1: exact values, physical spacing, observed orders, and the gradient of the norm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains
from tests.domains.cases import (
    CASES,
    GRIDS,
    MESHES,
    UNEVEN,
    WITH_NEIGHBOURS,
    observed_orders,
    roof,
    square_mesh,
    values_on,
)

pytestmark = pytest.mark.sample(3)

LOWER, UPPER = 0.3, 1.8
LENGTH = UPPER - LOWER

# compiled once per kind and shape of the domain, where eager calls would compile every operation
inner = jax.jit(lambda domain, u, v, space="L2": domain.inner(u, v, space=space), static_argnums=3)
norm = jax.jit(lambda domain, u, space="L2": domain.norm(u, space=space), static_argnums=2)
dirichlet = jax.jit(lambda domain, u: domain.dirichlet(u, u))


def quadrature(fn):
    """∫ fn over (LOWER, UPPER), to rounding, without the library."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    return float(np.sum(weights * fn(LOWER + LENGTH * (nodes + 1) / 2)) * LENGTH / 2)


# per rule: a function it is meant for, its derivative, and what halves from one size to the next
PROBES = {
    "trapezoid": (lambda x: np.exp(x), lambda x: np.exp(x), [9, 17, 33]),
    "midpoint": (lambda x: np.exp(x), lambda x: np.exp(x), [8, 16, 32]),
    "gauss-legendre": (lambda x: np.exp(x), lambda x: np.exp(x), [64, 128, 256]),
    "periodic": (
        lambda x: np.sin(2 * np.pi * (x - LOWER) / LENGTH + 0.4),
        lambda x: 2 * np.pi / LENGTH * np.cos(2 * np.pi * (x - LOWER) / LENGTH + 0.4),
        [8, 16, 32],
    ),
    "interior": (
        lambda x: (x - LOWER) * (UPPER - x) * np.exp(x),
        lambda x: ((UPPER + LOWER - 2 * x) + (x - LOWER) * (UPPER - x)) * np.exp(x),
        [7, 15, 31],
    ),
    "samples": (lambda x: np.exp(x), lambda x: np.exp(x), [9, 17, 33]),
}


def axis_of(rule, n):
    if rule == "samples":
        s = np.linspace(0, 1, n)
        return domains.from_samples(LOWER + LENGTH * (s + 0.12 * np.sin(2 * np.pi * s)))
    return domains.interval(n, lower=LOWER, upper=UPPER, rule=rule)


@pytest.mark.parametrize("rule", PROBES)
@pytest.mark.sample(1)
def test_h1_norm_converges_at_second_order(x64, rule):
    fn, derivative, sizes = PROBES[rule]
    exact = np.sqrt(quadrature(lambda x: fn(x) ** 2 + derivative(x) ** 2))
    errors = []
    for n in sizes:
        domain = axis_of(rule, n)
        errors.append(abs(float(norm(domain, jnp.asarray(fn(np.asarray(domain.points))), "H1")) - exact))
    assert errors[-1] < 3e-3 * exact
    np.testing.assert_allclose(observed_orders(errors, [1, 2, 4])[-1], 2, atol=0.15)


def test_h1_norm_in_two_dimensions_with_mixed_rules(x64):
    (f, df, _), (g, dg, _) = PROBES["midpoint"], PROBES["periodic"]
    exact = quadrature(lambda x: f(x) ** 2) * quadrature(lambda x: g(x) ** 2 + dg(x) ** 2)
    exact += quadrature(lambda x: df(x) ** 2) * quadrature(lambda x: g(x) ** 2)
    errors = []
    for n in (8, 16, 32):
        domain = domains.box((n, 2 * n), lower=LOWER, upper=UPPER, rule=("midpoint", "periodic"))
        x, y = np.asarray(domain.points).T
        u = jnp.asarray(f(x) * g(y))[:, None]
        errors.append(abs(float(inner(domain, u, u, "H1")) - exact))
    np.testing.assert_allclose(observed_orders(errors, [8, 16, 32]), 2, atol=0.1)


@pytest.mark.parametrize(
    "name", [n for n in WITH_NEIGHBOURS if n not in ("periodic", "interior", "two axes", "three axes", "sphere")]
)
@pytest.mark.sample(1)
def test_linear_functions_have_their_exact_gradient(x64, name):
    domain = CASES[name].build()
    slope = jnp.arange(1.0, domain.dim + 1)
    energy = dirichlet(domain, (domain.points @ slope + 3)[:, None])
    # the slope along the roof: (1, 2) on the floor, (2, 3) on the wall; along the branches: 1, 2 and 3
    exact = {"surface": 5.0 + 13.0, "curve": 1.0 + 2 * 4.0 + 2 * 9.0}.get(
        name, float(jnp.sum(slope**2)) * CASES[name].measure
    )
    np.testing.assert_allclose(energy, exact, rtol=1e-12)


def test_linear_functions_keep_their_gradient_on_slivers_in_float32():
    width = 2.0**-7
    mesh = domains.triangle_mesh([[0, 0], [1, 0], [1, width], [2, width]], [[0, 1, 2], [1, 3, 2]])
    u = 2 * mesh.points[:, :1] + 1
    np.testing.assert_allclose(dirichlet(mesh, u), 4 * width, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in WITH_NEIGHBOURS if n not in ("interior", "three axes")])
@pytest.mark.sample(1)
def test_constants_have_gradient_zero_to_the_last_bit(name):
    domain = CASES[name].build()
    u = jnp.full((domain.size, 1), 1234.5)
    assert dirichlet(domain, u) == 0
    np.testing.assert_allclose(norm(domain, u, "H1"), 1234.5 * np.sqrt(CASES[name].measure), rtol=1e-5)


def test_functions_on_an_interior_grid_fall_to_zero_at_the_ends():
    domain = domains.interval(3, rule="interior")
    np.testing.assert_allclose(dirichlet(domain, jnp.ones((3, 1))), 4 + 4, rtol=1e-6)


@pytest.mark.sample(1)
@pytest.mark.parametrize("rule", domains.RULES)
def test_scaling_the_box_scales_l2_by_the_volume_and_the_gradient_by_its_own_power(rule):
    small = domains.box((4, 6), rule=rule)
    large = domains.box((4, 6), lower=-1.0, upper=2.0, rule=rule)
    u = values_on(small)
    np.testing.assert_allclose(inner(large, u, u), 9 * inner(small, u, u), rtol=1e-5)
    np.testing.assert_allclose(dirichlet(large, u), dirichlet(small, u), rtol=1e-5)  # 3² volume / 3² slope
    line, long = domains.interval(6, rule=rule), domains.interval(6, upper=3.0, rule=rule)
    u = values_on(line)
    np.testing.assert_allclose(3 * dirichlet(long, u), dirichlet(line, u), rtol=1e-5)


def test_stretching_one_axis_weighs_the_two_slopes_differently():
    tall = domains.box((5, 5), upper=(1.0, 4.0), rule="midpoint")
    for axis, energy in enumerate([4.0, 1 / 4]):
        u = domains.box((5, 5), rule="midpoint").points[:, axis : axis + 1]
        np.testing.assert_allclose(dirichlet(tall, u), energy, rtol=1e-5)


def test_uneven_gaps_enter_the_gradient(x64):
    u = np.cos(3 * UNEVEN)
    exact = np.sum(np.diff(u) ** 2 / np.diff(UNEVEN))
    domain = domains.from_samples(UNEVEN)
    np.testing.assert_allclose(dirichlet(domain, jnp.asarray(u)[:, None]), exact, rtol=1e-13)


@pytest.mark.parametrize("rule", domains.RULES)
@pytest.mark.parametrize("axis", [0, 1])
def test_h1_sees_the_checkerboard_mode(rule, axis):
    def energy(n):
        domain = domains.box((2, n) if axis else (n, 2), rule=rule)
        sign = jnp.asarray((-1.0) ** np.indices(domain.shape)[axis].reshape(-1, 1), jnp.float32)
        return float(dirichlet(domain, sign))

    assert energy(8) > 2.5 * energy(4) > 0


def test_h1_sees_the_checkerboard_mode_on_given_nodes():
    domain = domains.from_samples(UNEVEN.tolist())
    sign = jnp.asarray([[1.0], [-1.0]] * 3 + [[1.0]])
    np.testing.assert_allclose(dirichlet(domain, sign), np.sum(4 / np.diff(UNEVEN)), rtol=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CASES)
def test_inner_products_are_symmetric_bilinear_and_agree_with_the_norm(name):
    domain = CASES[name].build()
    u, v = values_on(domain), jnp.cos(domain.points[:, :1]) * jnp.ones((1, 2))
    first = jnp.array([[1.0, 0.0]])
    left = jnp.stack([u, v, u, v, 2 * u + v, first * u, u - first * u])
    right = jnp.stack([v, u, u, v, v, v, v])
    for space in domains.SPACES if name in WITH_NEIGHBOURS else ("L2",):
        products = jax.jit(jax.vmap(lambda u, v, space=space: domain.inner(u, v, space=space)))(left, right)
        uv, vu, uu, vv, combined, channel, other_channel = products
        np.testing.assert_allclose(uv, vu, rtol=1e-5)
        np.testing.assert_allclose(combined, 2 * uv + vv, rtol=1e-4)
        np.testing.assert_allclose(uv, channel + other_channel, rtol=1e-4)
        np.testing.assert_allclose(uu, norm(domain, u, space) ** 2, rtol=1e-5)
        assert uv**2 <= uu * vv * (1 + 1e-5)


@pytest.mark.parametrize("name", ["trapezoid", "padded", "two axes", "surface", "volume", "curve", "sphere"])
@pytest.mark.sample(1)
def test_h1_is_l2_plus_the_gradient(name):
    domain = CASES[name].build()
    u = values_on(domain)
    np.testing.assert_allclose(inner(domain, u, u, "H1"), inner(domain, u, u) + dirichlet(domain, u), rtol=1e-6)


@pytest.mark.parametrize("name", ["trapezoid", "padded", "three axes", "surface", "padded nodes"])
@pytest.mark.sample(1)
def test_the_gradient_of_the_norm_at_zero_is_zero_and_elsewhere_that_of_the_square_root(name):
    domain = CASES[name].build()
    space = "H1" if name in WITH_NEIGHBOURS else "L2"
    norm_and_gradient = jax.jit(jax.value_and_grad(lambda u: domain.norm(u, space=space)))
    u = values_on(domain)
    norm, gradient = norm_and_gradient(0 * u)
    assert norm == 0
    np.testing.assert_array_equal(gradient, 0 * u)
    norm, gradient = norm_and_gradient(u)
    np.testing.assert_allclose(jnp.sum(gradient * u), norm, rtol=1e-5)  # the norm is homogeneous of degree 1
    if space == "L2":
        np.testing.assert_allclose(gradient, domain.weights[:, None] * u / norm, rtol=1e-5)


@pytest.mark.parametrize("space", domains.SPACES)
def test_the_norm_of_nan_is_nan(space):
    domain = domains.interval(4)
    assert np.isnan(domain.norm(jnp.array([[1.0], [jnp.nan], [0.0], [0.0]]), space=space))
    assert np.isinf(domain.norm(jnp.array([[1.0], [jnp.inf], [0.0], [0.0]])))


@pytest.mark.sample(2)
@pytest.mark.parametrize("scale", [2.0**-110, 2.0**-80, 2.0**80, 2.0**110])
@pytest.mark.parametrize("name", ["padded", "two axes", "surface", "volume", "sphere", "padded nodes"])
def test_the_norm_scales_with_the_function_and_its_gradient_not_at_all(name, scale):
    domain = CASES[name].build()
    for space in domains.SPACES if name in WITH_NEIGHBOURS else ("L2",):
        norm_and_gradient = jax.jit(jax.value_and_grad(lambda u, space=space: domain.norm(u, space=space)))
        u = values_on(domain)
        value, gradient = norm_and_gradient(u)
        scaled, same = norm_and_gradient(scale * u)
        np.testing.assert_allclose(scaled, scale * value, rtol=1e-6)
        np.testing.assert_allclose(same, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fill", [3e38, np.inf, np.nan])
@pytest.mark.parametrize("name", ["padded", "padded nodes", "surface", "curve"])
@pytest.mark.sample(1)
def test_the_norm_does_not_look_at_nodes_without_weight(name, fill):
    domain = CASES[name].build()
    space = "H1" if name in WITH_NEIGHBOURS else "L2"
    ignored = domain.weights[:, None] == 0
    u = values_on(domain)
    expected, direction = jax.value_and_grad(norm, argnums=1)(domain, jnp.where(ignored, 0, u), space)
    value, gradient = jax.value_and_grad(norm, argnums=1)(domain, jnp.where(ignored, fill, u), space)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient, direction)
    assert ignored.any()


def weightless(nodes, ignored):
    """A grid of given nodes of which some have no weight, and the same grid without them."""
    weights = np.where(ignored, 0, 1 + np.arange(nodes.size)).astype(np.float32)
    whole = (nodes, weights)
    return (
        domains.Grid((domains.Axis(*(jnp.asarray(a) for a in part)),))
        for part in (whole, tuple(a[~ignored] for a in whole))
    )


def test_a_constant_has_no_gradient_across_a_node_without_weight():
    grid = domains.interval(9)
    weights = np.where(np.arange(9) == 4, 0, grid.weights)
    holed = domains.Grid((domains.Axis(grid.axes[0].nodes, jnp.asarray(weights)),))
    ones = jnp.ones((9, 1))
    np.testing.assert_allclose(holed.norm(ones, space="H1"), np.sqrt(weights.sum()), rtol=1e-6)  # 0.935
    np.testing.assert_allclose(holed.inner(ones, ones, space="H1"), weights.sum(), rtol=1e-6)


HOLES = {
    "inside": [4],
    "several": [2, 3, 5],
    "first": [0, 1],
    "last": [7, 8],
    "all but two": [0, 2, 3, 4, 6, 7, 8],
    "all but one": [0, 1, 2, 3, 5, 6, 7, 8],
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("fill", [1e6, 3e38, np.inf, np.nan])
@pytest.mark.parametrize("hole", HOLES)
def test_nodes_without_weight_are_as_if_left_out(hole, fill):
    ignored = np.isin(np.arange(9), HOLES[hole])
    nodes = np.sort(np.random.default_rng(0).uniform(size=9)).astype(np.float32)
    grid, without = weightless(nodes, ignored)
    u = np.stack([np.sin(9 * nodes), nodes**2], axis=1)
    filled = jnp.asarray(np.where(ignored[:, None], fill, u).astype(np.float32))
    reduced = jnp.asarray(u[~ignored].astype(np.float32))
    np.testing.assert_allclose(grid.integrate(filled), without.integrate(reduced), rtol=1e-6)
    for space in domains.SPACES if hole != "all but one" else ("L2",):  # H1 asks for two nodes
        value, gradient = jax.value_and_grad(norm, argnums=1)(grid, filled, space)
        expected, direction = jax.value_and_grad(norm, argnums=1)(without, reduced, space)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient[~ignored], direction, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(gradient[ignored], 0)
        np.testing.assert_allclose(inner(grid, filled, filled, space), value**2, rtol=1e-5)


def test_nodes_without_weight_are_as_if_left_out_in_two_dimensions():
    ignored = np.isin(np.arange(9), HOLES["several"])
    even = domains.interval(4, rule="periodic").axes[0]
    given = weightless(np.linspace(0, 1, 9, dtype=np.float32), ignored)
    grid, without = (domains.Grid((part.axes[0], even)) for part in given)
    dropped = np.repeat(ignored, 4)
    u = values_on(grid)
    filled = jnp.where(dropped[:, None], 1e30, u)
    expected = norm(without, u[~dropped], "H1")
    np.testing.assert_allclose(norm(grid, filled, "H1"), expected, rtol=1e-6)
    np.testing.assert_allclose(inner(grid, filled, filled, "H1"), expected**2, rtol=1e-5)


def test_triangles_at_a_vertex_without_weight_weigh_nothing():
    mesh = square_mesh(2)
    corner = jnp.arange(mesh.size) == 0
    holed = dataclasses.replace(mesh, weights=jnp.where(corner, 0, mesh.weights))
    rest = [face for face in mesh.faces.tolist() if 0 not in face]
    expected = dirichlet(domains.triangle_mesh(mesh.points, rest), values_on(mesh))
    np.testing.assert_allclose(
        dirichlet(holed, jnp.where(corner[:, None], jnp.nan, values_on(mesh))), expected, rtol=1e-6
    )
    ones = jnp.where(corner[:, None], 7.0, jnp.ones((mesh.size, 1)))
    np.testing.assert_allclose(norm(holed, ones, "H1") ** 2, jnp.sum(holed.weights), rtol=1e-6)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1e38, "float32"), (3e38, "float32"), (2e-38, "float32"), (3e38, "bfloat16"), (6e4, "float16"), (6e-8, "float16")],
)
def test_the_norm_of_the_largest_and_smallest_numbers_is_the_same_with_and_without_jit(size, dtype):
    domain = domains.interval(9)
    u = jnp.full((9, 1), size).astype(dtype)
    for value in (domain.norm(u), norm(domain, u), domain.norm(u, space="H1")):
        assert value.dtype == u.dtype
        np.testing.assert_allclose(value.astype(np.float32), u[0, 0].astype(np.float32), rtol=1e-6)
    gradient = jax.grad(lambda u: domain.norm(u))(u).astype(np.float32)
    np.testing.assert_allclose(gradient[:, 0], domain.weights, rtol=1e-2)


def test_the_norm_of_no_channels_is_zero():
    assert domains.interval(4).norm(jnp.ones((4, 0))) == 0


@pytest.mark.thorough
def test_mesh_h1_norm_converges_at_second_order(x64):
    errors = []
    for size in (4, 8, 16):
        mesh = square_mesh(size)
        x, y = mesh.points[:, :1], mesh.points[:, 1:]
        u = jnp.exp(x) * jnp.cos(y)
        exact = np.sqrt((np.exp(2) - 1) / 2 * (1 + (1 + np.sin(2) / 2) / 2))
        errors.append(abs(float(norm(mesh, u, "H1")) - exact))
    np.testing.assert_allclose(observed_orders(errors, [1, 2, 4]), 2, atol=0.1)


def test_unused_vertices_and_degenerate_triangles_change_no_norm():
    vertices = [[0, 0], [1, 0], [0, 1], [7, 7]]
    clean, marred = (domains.triangle_mesh(vertices, faces) for faces in ([[0, 1, 2]], [[0, 1, 2], [0, 1, 1]]))
    u = jnp.array([[1.0], [2.0], [-1.0], [100.0]])
    np.testing.assert_allclose(norm(marred, u, "H1"), norm(clean, u, "H1"), rtol=1e-6)
    np.testing.assert_allclose(dirichlet(clean, u), (1 + 4) / 2, rtol=1e-6)
    assert np.isfinite(jax.grad(norm, argnums=1)(marred, u, "H1")).all()


def test_tilting_a_mesh_in_space_changes_no_norm():
    mesh = square_mesh(2, jitter=0.2)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    points = np.asarray(mesh.points) @ rotation[:2].astype(np.float32)
    u = values_on(mesh)
    tilted = domains.triangle_mesh(points, mesh.faces)
    np.testing.assert_allclose(norm(tilted, u, "H1"), norm(mesh, u, "H1"), rtol=1e-5)
    assert roof().dim == 3


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["uneven", "nodes", "random", *MESHES])
@pytest.mark.parametrize("extra", [0, 3])
def test_padding_changes_no_integral_no_norm_and_no_gradient(name, extra):
    domain = CASES[name].build()
    padded = domains.pad(domain, domain.size + extra)
    u = values_on(domain)
    filled = jnp.concatenate([u, jnp.full((extra, 2), 1e3)])
    space = "H1" if name in WITH_NEIGHBOURS else "L2"
    np.testing.assert_allclose(padded.integrate(filled), domain.integrate(u), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(norm(padded, filled, space), norm(domain, u, space), rtol=1e-6)
    gradient = jax.grad(norm, argnums=1)(padded, filled, space)
    np.testing.assert_allclose(gradient[: domain.size], jax.grad(norm, argnums=1)(domain, u, space), rtol=1e-5)
    np.testing.assert_array_equal(gradient[domain.size :], 0)
    assert padded.size == domain.size + extra
    assert type(padded) is type(domain)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", MESHES)
def test_simplices_of_the_padding_change_no_digit(name):
    domain = CASES[name].build()
    padded = domains.pad(domain, domain.size + 2, **{domain.simplices_name: domain.simplices.shape[0] + 3})
    u = values_on(domain)
    filled = jnp.concatenate([u, jnp.full((2, 2), 1e3)])
    np.testing.assert_array_equal(norm(padded, filled, "H1"), norm(domain, u, "H1"))
    np.testing.assert_array_equal(padded.integrate(filled), domain.integrate(u))
    np.testing.assert_array_equal(jax.grad(norm, argnums=1)(padded, filled, "H1")[domain.size :], 0)


@pytest.mark.thorough
def test_the_norm_can_be_differentiated_with_respect_to_the_nodes(x64):
    u = jnp.asarray(np.cos(UNEVEN))[:, None]

    def energy(nodes):
        return domains.from_samples(nodes).inner(u, u, space="H1")

    direction = np.linspace(-1, 1, UNEVEN.size)
    step = 1e-6
    difference = (energy(UNEVEN + step * direction) - energy(UNEVEN - step * direction)) / (2 * step)
    np.testing.assert_allclose(jax.grad(energy)(jnp.asarray(UNEVEN)) @ direction, difference, rtol=1e-7)


def test_grids_are_all_in_the_table():
    assert {rule for name in GRIDS for rule in CASES[name].build().rules} == {*domains.RULES, "samples"}
