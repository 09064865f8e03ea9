"""Domains under jit, vmap, grad and tree operations; stacks of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, schwarz
from jaxop.domains import Domain, Grid
from jaxop.testing import count_compilations
from tests.domains.cases import CASES, UNEVEN, WITH_NEIGHBOURS, square_mesh, values_on


def summary(domain: Domain, u: jax.Array, space: str = "L2") -> dict[str, jax.Array]:
    """Everything a domain computes."""
    return {
        "points": domain.points,
        "weights": domain.weights,
        "measure": domain.measure,
        "integral": domain.integrate(u),
        "inner": domain.inner(u, u[::-1], space=space),
        "norm": domain.norm(u, space=space),
    }


def space_of(name: str) -> str:
    return "H1" if name in WITH_NEIGHBOURS else "L2"


def assert_close(tree, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), tree, other)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CASES)
def test_jit_is_eager_and_compiles_once(name):
    domain = CASES[name].build()
    traces = []

    @jax.jit
    def jitted(domain, u):
        traces.append(name)
        return summary(domain, u, space_of(name))

    u = values_on(domain)
    assert_close(jitted(domain, u), summary(domain, u, space_of(name)), rtol=2e-6, atol=2e-6)
    jitted(CASES[name].build(), 2 * u)
    assert len(traces) == 1


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CASES)
def test_vmap_over_a_stack_is_a_loop(name):
    one = CASES[name].build()
    # domains of one kind that differ in every leaf
    others = [jax.tree.map(lambda a, s=s: a if a.dtype == jnp.int32 else (s * a).astype(a.dtype), one) for s in (1, 2)]
    stacked = domains.stack(others)
    assert stacked.is_batched
    assert (stacked.size, stacked.dim) == (one.size, one.dim)
    u = jnp.stack([values_on(one), values_on(one) ** 2])
    mapped = jax.jit(jax.vmap(lambda domain, u: summary(domain, u, space_of(name))))(stacked, u)
    single = jax.jit(lambda domain, u: summary(domain, u, space_of(name)))
    for i, domain in enumerate(others):
        assert_close(jax.tree.map(lambda a, i=i: a[i], mapped), single(domain, u[i]), rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(stacked.points, mapped["points"])
    np.testing.assert_array_equal(stacked.weights, mapped["weights"])
    np.testing.assert_allclose(stacked.measure, mapped["measure"], rtol=1e-6)


@pytest.mark.thorough
def test_one_domain_serves_a_batch_of_functions():
    domain = CASES["two axes"].build()
    u = jnp.stack([values_on(domain), 2 * values_on(domain)])
    norms = jax.vmap(lambda domain, u: domain.norm(u, space="H1"), in_axes=(None, 0))(domain, u)
    np.testing.assert_allclose(norms[1], 2 * norms[0], rtol=1e-6)


def test_from_samples_inside_jit_and_vmap_equals_from_samples_outside():
    nodes = jnp.stack([jnp.asarray(UNEVEN, jnp.float32), jnp.asarray(UNEVEN**3, jnp.float32)])
    outside = domains.stack([domains.from_samples(row) for row in nodes])
    for inside in (jax.vmap(domains.from_samples), jax.jit(jax.vmap(domains.from_samples))):
        batch = inside(nodes)
        assert batch.is_batched
        assert jax.tree.structure(batch) == jax.tree.structure(outside)
        assert_close(batch, outside, rtol=1e-6)
    assert_close(jax.jit(domains.from_samples)(nodes[0]), domains.from_samples(nodes[0]), rtol=1e-6)


def test_the_other_builders_run_inside_jit_and_vmap():
    points = jax.random.uniform(jax.random.key(0), (3, 5, 2))
    clouds = jax.jit(jax.vmap(domains.monte_carlo))(points, jnp.arange(1.0, 4.0))
    np.testing.assert_allclose(clouds.measure, [1, 2, 3], rtol=1e-6)
    weighted = jax.vmap(domains.from_nodes)(points, jnp.ones((3, 5)))
    np.testing.assert_allclose(weighted.measure, [5, 5, 5], rtol=1e-6)
    meshes = jax.jit(jax.vmap(domains.triangle_mesh, in_axes=(0, None)))(points, jnp.array([[0, 1, 2], [2, 3, 4]]))
    expected = [domains.triangle_mesh(p, jnp.array([[0, 1, 2], [2, 3, 4]])).measure for p in points]
    np.testing.assert_allclose(meshes.measure, expected, rtol=1e-5)
    padded = jax.jit(lambda domain: domains.pad(domain, 9))(domains.from_samples([0.0, 1.0, 3.0]))
    np.testing.assert_allclose(padded.measure, 3.0, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.sample(6)
def test_trees_hold_anything_and_come_back_whole(name):
    domain = CASES[name].build()
    leaves, structure = jax.tree.flatten(domain)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert type(rebuilt) is type(domain)
    assert_close(rebuilt, domain, rtol=0)
    assert jax.tree.structure(CASES[name].build()) == structure
    assert hash(structure) == hash(jax.tree.structure(CASES[name].build()))
    empty = jax.tree.map(lambda _: None, domain)
    assert type(empty) is type(domain)
    assert jax.tree.leaves(empty) == []
    assert set(jax.tree.leaves(jax.tree.map(lambda _: "placeholder", domain))) == {"placeholder"}
    shapes = jax.eval_shape(lambda domain: domain, domain)
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [leaf.shape for leaf in leaves]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(domain)]
    arrays = ("weights", "nodes", "points", "edges", "faces", "cells")
    assert all(any(name in path for name in arrays) for path in paths)
    axes = jax.tree.map(lambda _: 0, domain)
    measures = jax.vmap(lambda domain: domain.measure, in_axes=(axes,))(domains.stack([domain, domain]))
    np.testing.assert_allclose(measures, 2 * [CASES[name].measure], rtol=1e-6)


def test_a_partition_is_a_tree_too():
    cut = domains.partition(domains.box((4, 6), rule="midpoint"), (2, 3))
    doubled = jax.tree.map(lambda a: 2 * a, cut)
    assert doubled.patches == (2, 3)
    np.testing.assert_allclose(jax.jit(lambda cut: cut.weights)(doubled), 4 * cut.weights, rtol=1e-6)
    assert jax.tree.structure(jax.tree.map(lambda _: None, cut)) != jax.tree.structure(cut)


def test_domains_are_immutable_compare_by_identity_and_can_be_hashed():
    domain = domains.interval(4)
    with pytest.raises(AttributeError):
        domain.axes = ()  # pyright: ignore[reportAttributeAccessIssue]
    assert domain == domain
    assert domain != domains.interval(4)
    assert len({domain, domain, domains.interval(4)}) == 2


def test_the_measure_can_be_differentiated_with_respect_to_a_stacked_leaf():
    stacked = domains.stack([domains.from_samples([0.0, 1.0, 2.0]), domains.from_samples([0.0, 0.5, 4.0])])
    gradient = jax.grad(lambda domain: jnp.sum(domain.measure))(stacked)
    assert isinstance(gradient, Grid)
    np.testing.assert_array_equal(gradient.axes[0].weights, np.ones((2, 3)))


def test_stacking_pads_nothing_and_keeps_the_rule():
    stacked = domains.stack([domains.box((2, 3), rule="midpoint")] * 4)
    assert stacked.shape == (2, 3)
    assert stacked.rules == ("midpoint", "midpoint")
    assert stacked.points.shape == (4, 6, 2)
    assert stacked.weights.shape == (4, 6)
    assert stacked.has_equal_weights


def test_padding_repeats_the_last_node_with_weight_zero():
    cloud = domains.pad(domains.from_nodes([[0.0, 1.0], [2.0, 3.0]], [1.0, 2.0]), 4)
    np.testing.assert_array_equal(cloud.points, [[0, 1], [2, 3], [2, 3], [2, 3]])
    np.testing.assert_array_equal(cloud.weights, [1, 2, 0, 0])
    grid = domains.pad(domains.from_samples([0.0, 1.0, 3.0]), 4)
    np.testing.assert_array_equal(grid.points[:, 0], [0, 1, 3, 3])
    np.testing.assert_array_equal(grid.weights, [0.5, 1.5, 1, 0])


@pytest.mark.thorough
def test_padding_makes_meshes_of_any_size_stackable():
    meshes = [square_mesh(2), square_mesh(3), triangle()]
    size, faces = (max(counts) for counts in zip(*((m.size, m.faces.shape[0]) for m in meshes), strict=True))
    stacked = domains.stack([domains.pad(mesh, size, faces=faces) for mesh in meshes])
    np.testing.assert_allclose(stacked.measure, [1, 1, 0.5], rtol=1e-6)
    energies = jax.vmap(lambda mesh: mesh.dirichlet(mesh.points, mesh.points))(stacked)
    np.testing.assert_allclose(energies, [2, 2, 1], rtol=1e-5)


def triangle():
    return domains.triangle_mesh([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0, 1, 2]])


def strip(n):
    """n points in the plane and a strip of triangles between them."""
    points = np.random.default_rng(n).uniform(size=(n, 2))
    faces = np.stack([np.arange(n - 2), np.arange(1, n - 1), np.arange(2, n)], axis=1)
    return points, faces


def fan(n, dtype):
    """n − 2 points on an arc, and the tetrahedra between neighbours among them and a line."""
    angle = np.linspace(0, 2, n - 2)
    arc = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    start = np.arange(n - 3)
    ends = np.full(n - 3, n - 2), np.full(n - 3, n - 1)
    return np.concatenate([arc, [[0, 0, 0], [0, 0, 1]]]).astype(dtype), np.stack([start, start + 1, *ends], axis=1)


BUILDERS = {
    "interval": lambda n, dtype: domains.interval(n),
    "box": lambda n, dtype: domains.box((n, 3), rule=("periodic", "midpoint")),
    "resample": lambda n, dtype: domains.interval(4).resample((n,)),
    "from_samples": lambda n, dtype: domains.pad(domains.from_samples(np.arange(n).astype(dtype)), 99),
    "list": lambda n, dtype: domains.from_samples([float(i) for i in range(n)]),
    "from_nodes": lambda n, dtype: domains.pad(domains.from_nodes(strip(n)[0].astype(dtype), np.ones(n, dtype)), 99),
    "monte_carlo": lambda n, dtype: domains.monte_carlo(strip(n)[0].astype(dtype), 2.0),
    "triangle_mesh": lambda n, dtype: domains.pad(
        domains.triangle_mesh(strip(n)[0].astype(dtype), strip(n)[1]), 99, faces=99
    ),
    "line_mesh": lambda n, dtype: domains.line_mesh(strip(n)[0].astype(dtype), strip(n)[1][:, :2]),
    "tetrahedral_mesh": lambda n, dtype: domains.pad(domains.tetrahedral_mesh(*fan(n, dtype)), 99, cells=99),
    "sphere": lambda n, dtype: domains.sphere(n, 3),
    "icosphere": lambda n, dtype: domains.icosphere(n % 3),
    "from_points": lambda n, dtype: domains.from_points(strip(n)[0].astype(dtype)),
    "from_points in 3-D": lambda n, dtype: domains.from_points(np.random.default_rng(n).random((n, 3)).astype(dtype)),
    "stack": lambda n, dtype: domains.stack([domains.from_samples(np.arange(n).astype(dtype))] * 3),
    "partition": lambda n, dtype: domains.partition(domains.interval(2 * n), (2,)).subdomain((1,)),
    "decompose": lambda n, dtype: schwarz.decompose(domains.interval(n), 2, 1),
    "decompose nodes": lambda n, dtype: schwarz.decompose(domains.monte_carlo(strip(n)[0].astype(dtype)), 2, 1),
    "from_subdomains": lambda n, dtype: schwarz.from_subdomains(domains.box((n, 2)), [range(n), range(n, 2 * n)]),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.filterwarnings("ignore:.*is float64")
@pytest.mark.sample(19)
def test_building_domains_compiles_nothing(name, dtype):
    BUILDERS[name](20, dtype)
    with count_compilations() as compilations:
        built = [BUILDERS[name](n, dtype) for n in (21, 22, 23, 25, 29)]
    assert compilations() == 0
    leaves = jax.tree.leaves([domain for domain in built if not isinstance(domain, schwarz.Decomposition)])
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_domains_share_no_memory_with_the_arrays_they_come_from():
    raw = np.zeros(64 * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64  # JAX takes aligned arrays over without a copy
    nodes = raw[start : start + 64 * 4].view(np.float32)
    nodes[:] = np.arange(64)
    built = domains.from_samples(nodes), domains.from_nodes(nodes[:, None], nodes), domains.monte_carlo(nodes[:, None])
    nodes[:] = -1
    for domain in built:
        np.testing.assert_array_equal(domain.points[:, 0], np.arange(64))
    np.testing.assert_array_equal(built[1].weights, np.arange(64))


def test_built_on_the_host_and_traced_domains_are_the_same():
    points, faces = strip(9)
    points = jnp.asarray(points.astype(np.float32))
    calls = {
        "samples": lambda p: domains.pad(domains.from_samples(jnp.sort(p[:, 0])), 12),
        "nodes": lambda p: domains.pad(domains.from_nodes(p, p[:, 0]), 12),
        "random": lambda p: domains.monte_carlo(p, 3.0),
        "mesh": lambda p: domains.pad(domains.triangle_mesh(p, faces), 12, faces=9),
        "curve": lambda p: domains.pad(domains.line_mesh(p, faces[:, :2]), 12, edges=9),
        "volume": lambda p: domains.pad(
            domains.tetrahedral_mesh(jnp.stack([p[:, 0], p[:, 1], p[:, 0] * p[:, 1]], axis=1), [[0, 1, 2, 3]]),
            12,
            cells=2,
        ),
        "stack": lambda p: domains.stack([domains.monte_carlo(p), domains.monte_carlo(2 * p)]),
    }
    for call in calls.values():
        host, traced = call(points), jax.jit(call)(points)
        assert jax.tree.structure(host) == jax.tree.structure(traced)
        assert_close(host, traced, rtol=1e-6, atol=1e-9)
        assert [leaf.dtype for leaf in jax.tree.leaves(host)] == [leaf.dtype for leaf in jax.tree.leaves(traced)]


@pytest.mark.thorough
def test_padding_makes_samples_of_any_length_stackable():
    lengths = [[0.0, 1.0], [0.0, 0.5, 3.0], [0.0, 0.1, 0.2, 0.3]]
    stacked = domains.stack([domains.pad(domains.from_samples(nodes), 4) for nodes in lengths])
    np.testing.assert_allclose(stacked.measure, [1.0, 3.0, 0.3], rtol=1e-6)
    slope = jax.vmap(lambda domain: domain.dirichlet(domain.points, domain.points))(stacked)
    np.testing.assert_allclose(slope, [1.0, 3.0, 0.3], rtol=1e-6)
