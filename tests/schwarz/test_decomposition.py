"""Decompositions: restriction and prolongation, partitions of unity, coarse spaces, change of resolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jaxop import domains, schwarz
from tests.domains.cases import cube_mesh, roof, scattered, square_mesh, values_on

CASES = {
    **{rule: (domains.interval, {"n": 63, "rule": rule}, 8, 3) for rule in domains.RULES},
    "no overlap": (domains.interval, {"n": 63, "rule": "interior"}, 8, 0),
    "one subdomain": (domains.interval, {"n": 9}, 1, 4),
    "uneven": (domains.from_samples, {"nodes": (np.linspace(0, 1, 40) ** 2).tolist()}, 5, 2),
    "length": (domains.interval, {"n": 64, "rule": "midpoint"}, 8, 0.05),
    "square": (domains.box, {"shape": (12, 10), "rule": ("interior", "midpoint")}, (3, 2), 2),
    "cube": (domains.box, {"shape": (8, 9, 6), "rule": ("interior", "periodic", "trapezoid")}, (2, 3, 2), 1),
    "random": (lambda: domains.monte_carlo(scattered(200, 2)), {}, 7, 1),
    "random, length": (lambda: domains.monte_carlo(scattered(200, 3)), {}, 6, 0.1),
    "mesh": (lambda: square_mesh(8, jitter=0.3), {}, 6, 1),
    "mesh, length": (lambda: square_mesh(8), {}, 5, 0.1),
    "surface": (roof, {}, 3, 0),
}


def build(name, **options):
    make, arguments, subdomains, overlap = CASES[name]
    return schwarz.decompose(make(**arguments), subdomains, overlap, **options)


def build_circle(n, overlap):
    return schwarz.decompose(domains.interval(n, rule="periodic"), 2, overlap)


def dense(dec):
    """R_i as matrices, (p, s, n), from the index alone."""
    rows = np.zeros((*dec.partition.shape, dec.domain.size))
    for i, j in np.argwhere(np.asarray(dec.cover.inside)):
        rows[i, j, dec.cover.index[i, j]] = 1
    return rows


@pytest.mark.sample(4)
@pytest.mark.parametrize("unity", schwarz.PARTITIONS_OF_UNITY)
@pytest.mark.parametrize("name", CASES)
def test_the_partition_of_unity_sums_to_one(name, unity):
    dec = build(name, partition=unity)
    ones = dec.prolong(dec.partition[..., None] * dec.restrict(jnp.ones((dec.domain.size, 1))))
    np.testing.assert_allclose(ones, 1, rtol=1e-6)
    assert (np.asarray(dec.partition)[~np.asarray(dec.cover.inside)] == 0).all()
    assert (np.asarray(dec.partition) >= 0).all()


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CASES)
def test_the_methods_are_the_matrices_they_stand_for(name):
    dec = build(name)
    rows, v = dense(dec), np.asarray(values_on(dec.domain))
    local = np.asarray(jax.random.normal(jax.random.key(0), (*dec.partition.shape, 2)))
    np.testing.assert_allclose(dec.restrict(jnp.asarray(v, jnp.float32)), rows @ v, rtol=1e-6)
    np.testing.assert_allclose(
        dec.prolong(jnp.asarray(local)), np.einsum("psn,psc->nc", rows, local), rtol=1e-5, atol=1e-6
    )
    basis = np.asarray(dec.coarse_basis())
    assert basis.shape == (dec.domain.size, dec.coarse_size)
    weighted = np.asarray(dec.domain.weights)[:, None] * v
    np.testing.assert_allclose(dec.coarsen(jnp.asarray(v)), basis.T @ weighted, rtol=1e-4, atol=1e-6)
    c = np.asarray(jax.random.normal(jax.random.key(1), (dec.coarse_size, 2)))
    np.testing.assert_allclose(dec.refine(jnp.asarray(c)), basis @ c, rtol=1e-5, atol=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CASES)
def test_padding_is_inert(name):
    dec = build(name)
    local = jnp.where(dec.cover.inside[..., None], 1.0, jnp.nan)
    assert bool(jnp.isfinite(dec.prolong(local)).all())
    assert bool(((dec.cover.index >= 0) & (dec.cover.index < dec.domain.size)).all())
    assert bool(jnp.isfinite(dec.coordinates).all())
    assert float(jnp.max(jnp.abs(jnp.where(dec.cover.inside[..., None], dec.coordinates, 0)))) < 1 + 1e-5


@pytest.mark.parametrize(("name", "expected"), [("interior", 7), ("trapezoid", 9), ("periodic", 8), ("midpoint", 9)])
def test_hats_have_their_nodes_where_cores_meet(name, expected):
    dec = build(name)
    basis = np.asarray(dec.coarse_basis())
    assert basis.shape[1] == expected
    if name == "interior":  # nothing stands at the ends, where functions vanish
        x = np.asarray(dec.domain.points)
        hats = np.maximum(0, 1 - 8 * np.abs(x - np.arange(1, 8)[None] / 8))
        np.testing.assert_allclose(basis, hats, atol=1e-6)
    else:
        np.testing.assert_allclose(basis.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["cube", "mesh", "random", "surface"])
def test_hats_elsewhere_are_multilinear(name):
    basis = np.asarray(build(name).coarse_basis())
    assert (basis >= 0).all()
    assert (basis.sum(axis=0) > 0).all()
    assert (basis.sum(axis=1) < 1 + 1e-5).all()
    if name != "cube":
        np.testing.assert_allclose(basis.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["interior", "cube", "mesh"])
@pytest.mark.sample(1)
def test_nicolaides_functions_are_the_partition_of_unity(name):
    dec = build(name, coarse="partition", partition="ramp")
    expected = np.einsum("psn,ps->np", dense(dec), np.asarray(dec.partition))
    np.testing.assert_allclose(dec.coarse_basis(), expected, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_given_coarse_basis_comes_back(sparse):
    basis = np.random.default_rng(0).normal(size=(63, 5)) * (np.arange(63)[:, None] % 3 > 0)
    dec = build("interior", coarse=scipy.sparse.csr_array(basis) if sparse else basis)
    np.testing.assert_allclose(dec.coarse_basis(), basis, rtol=1e-6)
    finer = domains.interval(127, rule="interior")
    with pytest.raises(ValueError, match="coarse must be Φ on the new domain"):
        dec.on(finer)
    assert dec.on(finer, coarse=np.ones((127, 5))).coarse_size == 5
    with pytest.raises(ValueError, match=r"coarse must have shape \(n, n0\) = \(127, 5\), .* got \(127, 3\)"):
        dec.on(finer, coarse=np.ones((127, 3)))


def test_integer_overlap_counts_nodes_on_each_side():
    dec = build("interior")
    sizes = np.asarray(dec.cover.inside).sum(axis=1)
    np.testing.assert_array_equal(sizes, [7 + 3, *[8 + 6] * 6, 8 + 3])
    np.testing.assert_array_equal(dec.cover.index[1], np.arange(4, 18))


@pytest.mark.sample(3)
@pytest.mark.parametrize("rule", ["trapezoid", "midpoint", "interior", "gauss-legendre"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_overlaps_as_large_as_a_core_reach_the_ends(rule, count):
    domain = domains.interval(16, rule=rule)
    cores = schwarz.decompose(domain, count, 0).cover
    sets = [np.asarray(row)[inside] for row, inside in zip(cores.index, np.asarray(cores.inside), strict=True)]
    overlap = min(map(len, sets))
    cover = schwarz.decompose(domain, count, overlap).cover
    for core, row, inside in zip(sets, cover.index, np.asarray(cover.inside), strict=True):
        expected = np.arange(max(core[0] - overlap, 0), min(core[-1] + overlap, 15) + 1)
        np.testing.assert_array_equal(np.sort(np.asarray(row)[inside]), expected)


def test_ramps_are_smooth_steps_across_the_overlap():
    """Two halves of an interval that overlap between 0.25 and 0.75: D is t²(3 − 2t), and 0 at the ends of each."""
    dec = schwarz.decompose(domains.interval(64, rule="midpoint"), 2, 0.25, partition="ramp")
    x = np.asarray(dec.domain.points[:, 0])
    t = np.clip((x - 0.25) / 0.5, 0, 1)
    right = dense(dec)[1].T @ np.asarray(dec.partition)[1]
    np.testing.assert_allclose(right, t * t * (3 - 2 * t), atol=1e-6)


def test_hats_of_one_subdomain_around_a_circle_are_constant():
    domain = domains.box((8, 9), rule=["periodic", "midpoint"])
    np.testing.assert_allclose(schwarz.decompose(domain, 1, 0).coarse_basis().sum(axis=1), 1, atol=1e-6)
    line = schwarz.decompose(domains.interval(8, rule="periodic"), 1, 0)
    np.testing.assert_allclose(line.coarse_basis(), np.ones((8, 1)), atol=1e-6)


def test_many_cores_add_up_in_single_precision():
    domain = domains.interval(4096, rule="midpoint")
    dec = schwarz.decompose(domain, 512, 1, coarse=np.ones((4096, 1)))
    assert dec.coarsen(jnp.asarray(np.ones((4096, 1), jnp.bfloat16))) == 1


def test_one_overlap_per_axis():
    dec = schwarz.decompose(domains.box((16, 12), upper=(1, 2), rule="midpoint"), (4, 2), (1, 0.5))
    assert dec.local_size == 6 * 9
    np.testing.assert_allclose((dec.upper - dec.lower)[2], [6 / 16, 1.5], rtol=1e-6)


def test_subdomains_of_a_periodic_axis_pass_its_end():
    dec = build("periodic")
    assert {60, 61, 62, 0, 1, 2} <= set(np.asarray(dec.cover.index[0]).tolist())
    x = np.asarray(dec.coordinates[0, :, 0])
    np.testing.assert_allclose(np.diff(np.sort(x)), np.diff(np.sort(x))[0], rtol=1e-3)


def test_coarse_functions_stay_those_of_the_rule():
    dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
    for finer in (domains.interval(127), domains.interval(128, rule="midpoint")):
        assert dec.on(finer).coarse_size == dec.coarse_size == 7
        assert float(np.abs(dec.on(finer).coarse_basis()[0]).max()) < 0.1


@pytest.mark.sample(1)
@pytest.mark.parametrize("rule", ["periodic", "gauss-legendre", "trapezoid"])
def test_local_coordinates_lie_in_the_box(rule):
    for n in (13, 28):
        for subdomains in (1, 3):
            domain = domains.interval(n, lower=-0.3, upper=1.9, rule=rule)
            cut = schwarz.decompose(domain, subdomains, 1)
            for dec in (cut, cut.on(domains.interval(3 * n, lower=-0.3, upper=1.9, rule=rule))):
                inside = np.asarray(dec.coordinates)[np.asarray(dec.cover.inside)]
                assert np.abs(inside).max() < 1 + 1e-4
                assert subdomains > 1 or (np.diff(inside[:, 0]) > 0).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda: square_mesh(8),
        lambda: cube_mesh(4, jitter=0.2),
        lambda: domains.line_mesh(scattered(30, 3), [[i, (i + 1) % 30] for i in range(30)]),
    ],
    ids=["surface", "volume", "curve"],
)
@pytest.mark.sample(1)
def test_layers_of_a_mesh_are_neighbours(build):
    mesh = build()
    core, grown = (schwarz.decompose(mesh, 4, layers) for layers in (0, 1))
    faces = np.asarray(mesh.simplices)
    for i in range(4):
        nodes = set(np.asarray(core.cover.index[i])[np.asarray(core.cover.inside[i])].tolist())
        touched = faces[np.isin(faces, list(nodes)).any(axis=1)]
        found = np.asarray(grown.cover.index[i])[np.asarray(grown.cover.inside[i])]
        assert set(found.tolist()) == nodes | set(touched.ravel().tolist())


@pytest.mark.sample(2)
@pytest.mark.parametrize("unity", schwarz.PARTITIONS_OF_UNITY)
@pytest.mark.parametrize(
    ("name", "finer"),
    [
        ("interior", lambda: domains.interval(127, rule="interior")),
        ("trapezoid", lambda: domains.interval(187)),
        ("square", lambda: domains.box((25, 20), rule=("interior", "midpoint"))),
        ("cube", lambda: domains.box((17, 18, 11), rule=("interior", "periodic", "trapezoid"))),
        ("random", lambda: domains.monte_carlo(scattered(500, 2))),
        ("mesh, length", lambda: square_mesh(16)),
    ],
)
def test_the_same_decomposition_exists_on_other_nodes(name, finer, unity):
    dec = build(name, partition=unity)
    new = dec.on(finer())
    assert (new.subdomains, new.coarse_size) == (dec.subdomains, dec.coarse_size)
    np.testing.assert_array_equal(new.lower, dec.lower)
    ones = new.prolong(new.partition[..., None] * new.restrict(jnp.ones((new.domain.size, 1))))
    np.testing.assert_allclose(ones, 1, rtol=1e-6)
    again = dec.on(dec.domain)
    np.testing.assert_array_equal(again.cover.index, dec.cover.index)
    np.testing.assert_allclose(again.partition, dec.partition, rtol=1e-6)
    # coarse integrals are quadratures of the same integrals
    one, other = (d.coarsen(jnp.ones((d.domain.size, 1)))[:, 0] for d in (dec, new))
    if name not in ("random",):
        np.testing.assert_allclose(one, other, atol=0.1 * float(jnp.max(one)))


def test_methods_run_inside_jit_and_vmap_without_compiling_twice(unchecked):
    dec = build("square")
    values = jax.random.normal(jax.random.key(0), (3, dec.domain.size, 2))

    @jax.jit
    def roundtrip(dec, values):
        return jax.vmap(lambda v: dec.refine(dec.coarsen(dec.prolong(dec.restrict(v)))))(values)

    out = roundtrip(dec, values)
    expected = dec.refine(dec.coarsen(dec.prolong(dec.restrict(values[1]))))
    np.testing.assert_allclose(out[1], expected, rtol=1e-4, atol=1e-6)
    roundtrip(build("square"), values)
    assert roundtrip._cache_size() == 1


def test_grids_under_named_rules_are_decomposed_inside_jit():
    weight = jax.jit(lambda grid: schwarz.decompose(grid, 4, 1).partition)(domains.interval(32))
    np.testing.assert_array_equal(weight, schwarz.decompose(domains.interval(32), 4, 1).partition)


def test_given_subdomains_and_partition():
    sets, unity = [[0, 1, 2, 3], [5, 4, 3, 2]], [[1, 1, 0.75, 0.5], [1, 1, 0.5, 0.25]]
    dec = schwarz.from_subdomains(domains.interval(6), sets, partition=unity)
    np.testing.assert_allclose(dec.partition, unity)
    np.testing.assert_allclose(dec.coarse_basis()[2], [0.75, 0.25])
    u = values_on(dec.domain)
    np.testing.assert_array_equal(dec.restrict(u)[1], u[jnp.array(sets[1])])
    with pytest.raises(ValueError, match="sets of nodes; call from_subdomains"):
        dec.on(dec.domain)


LINE = domains.interval(16)
ROWS = {
    "overlap far too large": (lambda: schwarz.decompose(LINE, 8, 100), r"overlap=100 nodes is larger than a subdomain"),
    "another box": (
        lambda: schwarz.decompose(LINE, 4, 1).on(domains.interval(32, upper=3.0)),
        r"domain must cover the box that was decomposed, along axis 0 \[0, 1\] under rule 'trapezoid', got \[0, 3\]",
    ),
    "no longer periodic": (
        lambda: schwarz.decompose(domains.interval(16, rule="periodic"), 4, 1).on(LINE),
        r"under rule 'periodic', got \[0, 1\] under 'trapezoid'",
    ),
    "traced": (
        lambda: jax.jit(lambda dec: dec.on(domains.interval(32)).partition)(schwarz.decompose(LINE, 4, 1)),
        r"this decomposition is traced",
    ),
    "zero basis": (lambda: schwarz.decompose(LINE, 2, 1, coarse=np.zeros((16, 2))), r"holds only zeros"),
    "overlap in nodes": (lambda: schwarz.decompose(LINE, 8, 3), r"overlap=3 nodes is larger than a subdomain"),
    "overlap in length": (
        lambda: schwarz.decompose(LINE, 8, 4.0),
        r"overlap=4.0 in length is la",
    ),
    "overlap around a circle": (
        lambda: schwarz.decompose(domains.interval(16, rule="periodic"), 2, 8),
        r"meet itself around the periodic axis 0",
    ),
    "overlaps per axis": (lambda: schwarz.decompose(LINE, 2, (1, 1)), r"overlap must be one number or 1, one per axis"),
    "overlap around a finer circle": (
        lambda: schwarz.decompose(domains.interval(18, rule="periodic"), 2, 0.26).on(
            domains.interval(180, rule="periodic")
        ),
        r"a subdomain meets itself around the periodic axis 0",
    ),
    "overlap beyond the cores": (
        lambda: schwarz.decompose(domains.monte_carlo(scattered(256, 2)), 16, 0.4),
        r"overlap=0.4 is larger than a subdomain, whose cores are 0.3\d+ long at most",
    ),
    "layers beyond the cores": (
        lambda: schwarz.decompose(square_mesh(16), 16, 8),
        r"overlap=8 is larger than a subdomain, the largest of which has 25 vertices, about 5 across",
    ),
    "layers of a curve beyond the cores": (
        lambda: schwarz.decompose(
            domains.line_mesh(np.arange(20.0, dtype=np.float32)[:, None], [[i, i + 1] for i in range(19)]), 4, 6
        ),
        r"overlap=6 is larger than a subdomain, the largest of which has 5 vertices, about 5 across",
    ),
    "overlap among points": (
        lambda: schwarz.decompose(domains.monte_carlo(scattered(50, 2)), 4, 2.0),
        r"overlap=2.0 is larger than a subdomain: subdomain 0 becomes the whole domain",
    ),
    "negative overlap": (lambda: schwarz.decompose(LINE, 2, -1), r"overlap must be finite and not negative, got -1"),
    "too many": (lambda: schwarz.decompose(LINE, 17), r"between 1 and 15 along axis 0 of 16 nodes, got 17"),
    "too many points": (
        lambda: schwarz.decompose(domains.monte_carlo(scattered(5, 2)), 6, 0),
        r"between 1 and the 5 nodes, got 6",
    ),
    "axes": (lambda: schwarz.decompose(LINE, (2, 2)), r"one number or 1, one per axis of the grid, got \(2, 2\)"),
    "unity": (lambda: schwarz.decompose(LINE, partition="ramps"), r"partition='ramps' is unknown.*'ramp'"),
    "coarse": (lambda: schwarz.decompose(LINE, 2, coarse="hats"), r"coarse='hats' is unknown.*'hat'"),
    "rows of Φ": (
        lambda: schwarz.decompose(LINE, 2, coarse=np.ones((15, 2))),
        r"coarse must have shape \(n, n0\) = \(16, n0\), one row per node, got \(15, 2\)",
    ),
    "NaN in Φ": (
        lambda: schwarz.decompose(LINE, 2, coarse=np.full((16, 1), np.nan)),
        r"coarse must be finite, but coarse\[0, 0\] = nan",
    ),
    "no coarse node": (
        lambda: schwarz.decompose(domains.interval(16, rule="interior"), 1),
        r"coarse space has no functions",
    ),
    "no coarse space": (
        lambda: schwarz.decompose(LINE, 2, coarse=None).coarsen(jnp.ones((16, 1))),
        r"no coarse space; build it with coarse='hat'",
    ),
    "coinciding points": (
        lambda: schwarz.decompose(domains.from_nodes(jnp.zeros((4, 2)), jnp.ones(4)), 2, 0),
        r"coincide too often to be cut into 2 parts",
    ),
    "stack": (lambda: schwarz.decompose(domains.stack([LINE, LINE])), "dom is a stack of domains"),
    "values": (
        lambda: schwarz.decompose(LINE, 2).restrict(jnp.ones((15, 1))),
        r"values must have shape \(16, c\), one row per node",
    ),
    "local": (
        lambda: schwarz.decompose(LINE, 2, 1).prolong(jnp.ones((2, 3, 1))),
        r"local must have shape \(p, s, c\) = \(2, 9, c\).*got \(2, 3, 1\)",
    ),
    "coarse values": (
        lambda: schwarz.decompose(LINE, 2, 1).refine(jnp.ones((4, 1))),
        r"coarse must have shape \(3, c\), one row per coarse function",
    ),
    "uncovered": (
        lambda: schwarz.from_subdomains(LINE, [range(5), range(7, 16)]),
        r"indices must cover the domain, but node 5 is in no subdomain",
    ),
    "no node": (lambda: schwarz.from_subdomains(LINE, [[0, 16]]), r"indices\[0\]\[1\] = 16 is not a node"),
    "repeated": (lambda: schwarz.from_subdomains(LINE, [[0, 3, 3]]), r"indices\[0\] repeats node 3"),
    "empty": (lambda: schwarz.from_subdomains(LINE, [[]]), r"indices\[0\] must be a non-empty list of integers"),
    "none": (lambda: schwarz.from_subdomains(LINE, []), r"at least one subdomain, got an empty"),
    "not one": (
        lambda: schwarz.from_subdomains(LINE, [range(16), [4]], partition=[np.ones(16), [0.5]]),
        r"must sum to one at every node, but at node 4 it sums to 1.5; divide by it",
    ),
    "wrong length of D": (
        lambda: schwarz.from_subdomains(LINE, [range(16)], partition=[np.ones(3)]),
        r"partition must hold one array per subdomain in the shape of its indices",
    ),
    "other dimension": (
        lambda: schwarz.decompose(LINE, 2, 1).on(domains.box((4, 4))),
        r"domain must be a grid of 1 axes.*got Grid in 2",
    ),
    "coarser than the subdomains": (
        lambda: schwarz.decompose(LINE, 8, 1).on(domains.interval(4)),
        r"subdomain \d of axis 0 holds no node",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_named(row, unchecked):
    call, message = ROWS[row]
    with pytest.raises(ValueError, match=message):
        call()


def test_overlap_of_another_type(unchecked):
    with pytest.raises(TypeError, match="overlap must be a number of nodes"):
        schwarz.decompose(LINE, 2, True)
    with pytest.raises(TypeError, match=r"subdomains must be integers, one or one per axis, got 8\.0"):
        schwarz.decompose(LINE, 8.0, 1)
    with pytest.raises(TypeError, match="dom must be a Domain, got ndarray"):
        schwarz.decompose(np.ones(5), 2, 1)
    with pytest.raises(TypeError, match="one integer on PointCloud"):
        schwarz.decompose(domains.monte_carlo(scattered(50, 2)), (2, 2))


@pytest.mark.parametrize(("height", "coarse"), [(1.0, 9), (1e-3, 5), (1e-6, 5)])
def test_thin_clouds_are_cut_as_lines(height, coarse):
    points = np.random.default_rng(0).random((1000, 2)) * [1.0, height]
    dec = schwarz.decompose(domains.monte_carlo(points.astype(np.float32), measure=height), 4, 4)
    assert dec.coarse_size == coarse
    assert 253 < dec.local_size < (420 if height == 1 else 262)


def test_hats_on_other_clouds_sum_to_one():
    dec = schwarz.decompose(domains.monte_carlo(scattered(60, 2)), 4, 1)
    elsewhere = dec.on(domains.monte_carlo(1.2 * scattered(500, 2)))
    np.testing.assert_allclose(np.asarray(elsewhere.coarse_basis()).sum(axis=1), 1, rtol=1e-6)


def test_padding_of_uneven_nodes_is_cut_with_its_node():
    dec = schwarz.decompose(domains.pad(domains.from_samples(np.linspace(0, 1, 20).tolist()), 30), 4, 1)
    assert dec.subdomains == 4
    covered = dec.prolong(dec.partition[..., None])
    np.testing.assert_allclose(covered, 1, rtol=1e-6)


@pytest.mark.thorough
def test_members_of_the_domain_are_found_with_a_warning():
    dec = schwarz.decompose(domains.interval(16), 4, 1)
    with pytest.warns(DeprecationWarning, match=r"decomposition\.domain\.points"):
        np.testing.assert_array_equal(dec.points, dec.domain.points)
    with pytest.warns(DeprecationWarning, match=r"decomposition\.domain\.measure"):
        assert dec.measure == dec.domain.measure
    wave = jnp.sin(3 * dec.domain.points)
    with pytest.warns(DeprecationWarning, match=r"decomposition\.domain\.norm"):
        assert dec.norm(wave, space="H1") == dec.domain.norm(wave, space="H1")
    with pytest.raises(AttributeError, match="'Decomposition' object has no attribute 'nodes'"):
        _ = dec.nodes
