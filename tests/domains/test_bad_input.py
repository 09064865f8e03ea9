"""Bad input: every message names the argument, what was wrong with it (first bad index) and the remedy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import _validation, domains, schwarz

NAN, INF = float("nan"), float("inf")
STAMPS = 1.7e9 + np.arange(16.0)  # seconds: float32 holds every 128th
MESH = domains.triangle_mesh([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], [[0, 1, 2]])
SQUARE = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
ROWS = {
    # from_nodes
    "weights too long": (
        lambda: domains.from_nodes(SQUARE, [1.0] * 5),
        r"weights has 5 entries for 4 nodes; give one weight per node",
    ),
    "weights too short": (lambda: domains.from_nodes(SQUARE, [1.0]), r"weights has 1 entries for 4 nodes"),
    "weights of two axes": (
        lambda: domains.from_nodes(SQUARE, jnp.ones((4, 1))),
        r"weights has shape \(4, 1\) for 4 nodes",
    ),
    "negative weight": (
        lambda: domains.from_nodes(SQUARE, [1.0, 0.0, -0.5, -1.0]),
        r"weights must be finite and non-negative, but weights\[2\] = -0\.5",
    ),
    "NaN weight": (
        lambda: domains.from_nodes(SQUARE, [1.0, NAN, 1.0, NAN]),
        r"weights must be finite and non-negative, but weights\[1\] = nan",
    ),
    "infinite weight": (
        lambda: domains.from_nodes(SQUARE, [1.0, 1.0, 1.0, INF]),
        r"weights must be finite and non-negative, but weights\[3\] = inf",
    ),
    "weights all zero": (
        lambda: domains.from_nodes(SQUARE, [0.0] * 4),
        r"weights are all zero.*at least one node must carry weight",
    ),
    "NaN node": (
        lambda: domains.from_nodes([[0.0, 0.0], [1.0, NAN]], [1.0, 1.0]),
        r"points must be finite, but points\[1, 1\] = nan",
    ),
    "flat nodes": (
        lambda: domains.from_nodes(jnp.arange(3.0), jnp.ones(3)),
        r"points must have shape \(n, dim\), got \(3,\); .*trailing axis",
    ),
    # from_samples
    "unsorted nodes": (
        lambda: domains.from_samples([0.0, 0.5, 0.4, 0.3]),
        r"nodes must be strictly increasing, but nodes\[2\] = 0\.4 lies below nodes\[1\] = 0\.5; sort them",
    ),
    "repeated nodes": (
        lambda: domains.from_samples([0.0, 0.5, 0.5]),
        r"nodes\[2\] = 0\.5 repeats nodes\[1\] = 0\.5; .*numpy\.unique",
    ),
    "nodes that round to one": (
        lambda: domains.from_samples([0.0, 1e9, 1e9 + 1]),
        r"nodes\[2\] = 1000000001\.0 rounds in float32 to nodes\[1\] = 1000000000\.0; subtract an origin",
    ),
    "NaN sample": (
        lambda: domains.from_samples([0.0, NAN, 1.0]),
        r"nodes must be finite, but nodes\[1\] = nan",
    ),
    "one sample": (lambda: domains.from_samples([0.0]), r"nodes must have shape \(n,\) with n >= 2, got \(1,\)"),
    "samples in space": (
        lambda: domains.from_samples(jnp.ones((3, 2))),
        r"nodes must have shape \(n,\).*got \(3, 2\); use monte_carlo",
    ),
    # monte_carlo
    "measure of zero": (
        lambda: domains.monte_carlo(SQUARE, measure=0.0),
        r"measure must be positive and finite, got 0",
    ),
    "negative measure": (lambda: domains.monte_carlo(SQUARE, measure=-1.0), r"measure must be positive.*got -1"),
    "NaN measure": (lambda: domains.monte_carlo(SQUARE, measure=NAN), r"measure must be positive and finite, got nan"),
    "no points": (
        lambda: domains.monte_carlo(jnp.zeros((0, 2))),
        r"points must have shape \(n, dim\) with n >= 1, got \(0, 2\)",
    ),
    "flat points": (lambda: domains.monte_carlo(jnp.zeros(3)), r"points must have shape \(n, dim\).*got \(3,\)"),
    "infinite point": (
        lambda: domains.monte_carlo([[0.0], [INF]]),
        r"points must be finite, but points\[1, 0\] = inf",
    ),
    # triangle_mesh
    "face beyond the vertices": (
        lambda: domains.triangle_mesh(SQUARE, [[0, 1, 2], [0, 4, 3]]),
        r"faces\[1, 1\] = 4 is not a vertex: indices run from 0 to 3",
    ),
    "negative face": (lambda: domains.triangle_mesh(SQUARE, [[0, 1, -1]]), r"faces\[0, 2\] = -1 is not a vertex"),
    "faces of floats": (
        lambda: domains.triangle_mesh(SQUARE, [[0.0, 1.0, 2.0]]),
        r"faces must be integers of shape \(f, 3\), got float32",
    ),
    "quadrilaterals": (
        lambda: domains.triangle_mesh(SQUARE, [[0, 1, 2, 3]]),
        r"faces must be integers of shape \(f, 3\), got int32 of shape \(1, 4\)",
    ),
    "vertices on a line": (
        lambda: domains.triangle_mesh(jnp.zeros((4, 1)), [[0, 1, 2]]),
        r"vertices must have shape \(n, 2\) or \(n, 3\), got \(4, 1\)",
    ),
    "NaN vertex": (
        lambda: domains.triangle_mesh([[0.0, NAN], *SQUARE], [[0, 1, 2]]),
        r"vertices must be finite, but vertices\[0, 1\] = nan",
    ),
    "no faces": (
        lambda: domains.triangle_mesh(SQUARE, jnp.zeros((0, 3), int)),
        r"the 0 faces have area zero",
    ),
    "degenerate faces": (
        lambda: domains.triangle_mesh(SQUARE, [[0, 1, 1], [2, 2, 2]]),
        r"the 2 faces have area zero: at least one triangle must not be degenerate",
    ),
    # interval and box
    "unknown rule": (
        lambda: domains.interval(5, rule="trapezium"),
        r"rule='trapezium' is unknown: did you mean 'trapezoid'",
    ),
    "too few nodes": (lambda: domains.interval(1), r"rule='trapezoid' needs n of at least 2 nodes.*got 1"),
    "no nodes": (lambda: domains.box((4, 0), rule="midpoint"), r"rule='midpoint' needs n of at least 1 .*got 0"),
    "ends out of order": (
        lambda: domains.interval(5, lower=1.0, upper=0.0),
        r"lower and upper must be finite with lower < upper, got lower=1\.0, upper=0\.0",
    ),
    "infinite end": (lambda: domains.interval(5, upper=INF), r"upper must be finite.*upper=inf"),
    "interval too short": (
        lambda: domains.interval(5, lower=1e9, upper=1e9 + 1),
        r"lower=1000000000\.0 and upper=1000000001\.0 are too close for 5 .*float32; subtract an origin or enable x64",
    ),
    "no axes": (lambda: domains.box(()), r"shape must have at least one axis, got \(\)"),
    "corner of another dimension": (
        lambda: domains.box((2, 3), lower=(0, 0, 0)),
        r"lower has 3 entries for 2 axes; give one number or 2",
    ),
    "rules of another dimension": (
        lambda: domains.box((2, 3), rule=("midpoint",)),
        r"rule has 1 entries for 2 axes",
    ),
    "resampled in another dimension": (
        lambda: domains.box((2, 3)).resample((4,)),
        r"shape must have 2 entries, one per axis, got \(4,\)",
    ),
    "given nodes resampled": (
        lambda: domains.from_samples([0.0, 1.0]).resample((4,)),
        r"given nodes do not follow a rule.*call from_samples with the new nodes",
    ),
    # functions on a domain
    "too many rows": (
        lambda: domains.interval(4).integrate(jnp.ones((5, 1))),
        r"values must have shape \(n, c\) = \(4, c\) on this domain, got \(5, 1\); reshape",
    ),
    "function without channels": (
        lambda: domains.interval(4).norm(jnp.ones(4)),
        r"u must have shape \(n, c\) = \(4, c\).*got \(4,\)",
    ),
    "batch of functions": (
        lambda: domains.interval(4).inner(jnp.ones((4, 1)), jnp.ones((2, 4, 1))),
        r"v must have shape.*got \(2, 4, 1\).*jax\.vmap",
    ),
    "channels that would broadcast": (
        lambda: domains.interval(4).inner(jnp.ones((4, 1)), jnp.ones((4, 3))),
        r"u and v must have the same channels, got shapes \(4, 1\) and \(4, 3\)",
    ),
    "channels of a gradient": (
        lambda: domains.interval(4).dirichlet(jnp.ones((4, 1)), jnp.ones((4, 3))),
        r"u and v must have the same channels",
    ),
    "unknown space": (
        lambda: domains.interval(4).norm(jnp.ones((4, 1)), space="h1"),
        r"space='h1' is unknown: did you mean 'H1'|space='h1' is unknown: choose one of 'H1', 'L2'",
    ),
    "H1 of scattered nodes": (
        lambda: domains.monte_carlo(SQUARE).norm(jnp.ones((4, 1)), space="H1"),
        r"H1 inner product needs neighbouring nodes.*use space='L2'",
    ),
    "H1 of one node": (
        lambda: domains.box((3, 1), rule="midpoint").norm(jnp.ones((3, 1)), space="H1"),
        r"H1 inner product needs at least 2 nodes along axis 1, got 1",
    ),
    "integral over a stack": (
        lambda: domains.stack([domains.interval(4)] * 2).integrate(jnp.ones((4, 1))),
        r"a stack of domains, one per sample; map over it: jax\.vmap",
    ),
    # nodes that coincide in float32
    "time stamps": (
        lambda: domains.from_samples(STAMPS),
        r"nodes\[1\] = 1700000001\.0 rounds in float32 to nodes\[0\] = 1700000000\.0; subtract an origin or",
    ),
    "a cloud of time stamps": (
        lambda: domains.from_nodes(STAMPS[:, None], np.ones(16)),
        r"points\[1\] = \[1700000001\.0\] rounds in float32 to points\[0\] = \[1700000000\.0\]; subtract an origin",
    ),
    "integer time stamps": (
        lambda: domains.monte_carlo(STAMPS[:, None].astype(np.int64)),
        r"points\[1\] = \[1700000001\.0\] rounds in float32 to points\[0\]",
    ),
    "integer time stamps in JAX": (
        lambda: domains.monte_carlo(jnp.asarray(STAMPS[:, None].astype(np.int32))),
        r"points\[1\] = \[1700000001\.0\] rounds in float32 to points\[0\]",
    ),
    "points far from their origin": (
        lambda: domains.monte_carlo(np.array([[0.0, 3.0], [50.0, 3.0], [90.0, 3.0], [0.0, 3.1]]) + 1e8),
        r"points\[3\] = \[100000000\.0, 100000003\.1\] rounds in float32 to points\[0\]",
    ),
    "vertices far from their origin": (
        lambda: domains.triangle_mesh(np.array(SQUARE) + 1e9, [[0, 1, 2]]),
        r"vertices\[1\] = \[1000000001\.0, 1000000000\.0\] rounds in float32 to vertices\[0\].*subtract an origin",
    ),
    "rows of different lengths": (
        lambda: domains.from_nodes([[0.0], [1.0, 2.0]], [1.0, 1.0]),
        r"points must be an array, got rows of different lengths",
    ),
    # stack and pad
    "empty stack": (lambda: domains.stack([]), r"domains must hold at least one domain, got an empty"),
    "stack of two sizes": (
        lambda: domains.stack([domains.interval(4), domains.interval(4), domains.interval(5)]),
        r"domains\[2\] \(Grid of shape \(5,\).*does not match domains\[0\] \(Grid of shape \(4,\).*pad",
    ),
    "stack of two kinds": (
        lambda: domains.stack([domains.monte_carlo(SQUARE), domains.interval(4)]),
        r"domains\[1\] \(Grid.*does not match domains\[0\] \(PointCloud of 4 nodes",
    ),
    "stack of two boxes": (
        lambda: domains.stack([domains.interval(4), domains.interval(4, upper=2.0)]),
        r"domains\[1\] \(Grid.*trapezoid on \(0\.0, 2\.0\).*domains\[0\].*trapezoid on \(0\.0, 1\.0\)",
    ),
    "stack of two rules": (
        lambda: domains.stack([domains.interval(4), domains.interval(4, rule="midpoint")]),
        r"domains\[1\].*midpoint on.*domains\[0\].*trapezoid on",
    ),
    "stack of transposed shapes": (
        lambda: domains.stack([domains.box((2, 3)), domains.box((3, 2))]),
        r"domains\[1\] \(Grid of shape \(3, 2\).*domains\[0\] \(Grid of shape \(2, 3\)",
    ),
    "stack of meshes": (
        lambda: domains.stack(
            [domains.triangle_mesh(SQUARE, [[0, 1, 2]]), domains.triangle_mesh(SQUARE, [[0, 1, 2]] * 2)]
        ),
        r"domains\[1\] \(TriangleMesh of 4 nodes and 2 faces.*domains\[0\] \(.* and 1 faces.*pad\(domain, 4, faces=2\)",
    ),
    "stack of clouds": (
        lambda: domains.stack([domains.monte_carlo(SQUARE), domains.monte_carlo(SQUARE[:3])]),
        r"bring each to one size by pad\(domain, 4\)\.$",
    ),
    "stack of rules of two sizes": (
        lambda: domains.stack([domains.box((2, 3)), domains.box((4, 3))]),
        r"convert each with from_nodes\(domain\.points, domain\.weights\), then bring it to one size by pad\(domain, 1",
    ),
    "stack of two dimensions": (
        lambda: domains.stack([domains.monte_carlo(SQUARE), domains.monte_carlo(np.ones((4, 3), np.float32))]),
        r"domains of different dimensions cannot be stacked",
    ),
    "stack of two dtypes": (
        lambda: domains.stack([MESH, domains.TriangleMesh(MESH.points, MESH.weights.astype("float16"), MESH.faces)]),
        r"build all of them from arrays of one dtype",
    ),
    "stack of stacks": (
        lambda: domains.stack([domains.stack([domains.interval(4)])] * 2),
        r"domains\[0\] is a stack already",
    ),
    "padded to fewer": (
        lambda: domains.pad(domains.from_samples([0.0, 1.0, 2.0]), 2),
        r"size must be at least the 3 nodes of the domain, got 2",
    ),
    "padded rule": (
        lambda: domains.pad(domains.interval(4), 6),
        r"pad takes scattered nodes.*convert others with from_nodes.*from_samples\(domain\.points\[:, 0\]\)",
    ),
    "faces of a cloud": (
        lambda: domains.pad(domains.monte_carlo(SQUARE), 5, faces=2),
        r"faces=2 was given for a PointCloud; leave it out, only a mesh has faces",
    ),
    "padded to fewer faces": (
        lambda: domains.pad(MESH, 5, faces=0),
        r"faces must be at least the 1 faces of the mesh, got 0",
    ),
    "padded stack": (
        lambda: domains.pad(domains.stack([domains.from_samples([0.0, 1.0])]), 6),
        r"pad takes single domains, got a stack.*before stack",
    ),
    # partition
    "patches that do not divide": (
        lambda: domains.partition(domains.box((4, 10), rule="midpoint"), (2, 4)),
        r"patches\[1\] = 4 does not divide the 10 nodes of axis 1; nearest valid counts: 1?,? ?2, 5.*grid of 8 nodes",
    ),
    "no patches": (
        lambda: domains.partition(domains.interval(4), (0,)),
        r"patches\[0\] = 0 does not divide the 4 nodes of axis 0; nearest valid counts: 1, 2",
    ),
    "patches of another dimension": (
        lambda: domains.partition(domains.interval(4), (2, 2)),
        r"patches must have 1 entries, one per axis of the grid, got \(2, 2\)",
    ),
    "partition of a stack": (
        lambda: domains.partition(domains.stack([domains.interval(4)]), (2,)),
        r"grid is a stack of grids.*inside jax\.vmap",
    ),
    "patch outside": (
        lambda: domains.partition(domains.interval(4), (2,)).subdomain((2,)),
        r"index must lie inside the patches \(2,\), got \(2,\)",
    ),
    "negative patch": (
        lambda: domains.partition(domains.interval(4), (2,)).subdomain((-1,)),
        r"index must lie inside the patches \(2,\), got \(-1,\)",
    ),
    "split of another grid": (
        lambda: domains.partition(domains.interval(4), (2,)).split(jnp.ones((5, 1))),
        r"values must have shape \(n, c\) = \(4, c\), one row per node of the grid, got \(5, 1\)",
    ),
    "join of the whole": (
        lambda: domains.partition(domains.interval(4), (2,)).join(jnp.ones((4, 1))),
        r"values must have shape \(patches, nodes, c\) = \(2, 2, c\), as split returns, got \(4, 1\)",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*is float64")
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.sample(8)
def test_the_message_names_argument_fault_and_remedy(row):
    call, message = ROWS[row]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


@pytest.mark.usefixtures("unchecked")
def test_wrong_kinds_are_type_errors():
    with pytest.raises(TypeError, match=r"patches need a grid .*got PointCloud"):
        domains.partition(domains.monte_carlo(SQUARE), (2,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"shape must hold the nodes along each axis, for example \(8, 8\), got 8"):
        domains.box(8)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="integer"):
        domains.partition(domains.interval(4), (2.0,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"points must be real, got dtype complex64; pass its real and imaginary parts"):
        domains.monte_carlo(jnp.ones((2, 1), jnp.complex64))
    with pytest.raises(TypeError, match=r"values must be real"):
        domains.interval(4).integrate(jnp.ones((4, 1), jnp.complex64))


SECONDS = np.arange(4).astype("timedelta64[s]")
MASKED = np.ma.masked_array(np.arange(4.0), [False, False, True, False], fill_value=1e37)


class Metres(np.ndarray):
    """An array with a unit, as astropy has them."""

    unit, value = "m", 0.0


LENGTHS = np.arange(4.0).view(Metres)
GRID = domains.interval(4)
WRONG = {
    "half a node": (lambda: domains.interval(2.5), r"n must be an integer, got 2\.5"),
    "nodes of a float": (lambda: domains.interval(8.0), r"n must be an integer, got 8\.0"),
    "nodes of a truth value": (lambda: domains.interval(True), "n must be an integer, got True"),
    "nodes of an array": (lambda: domains.interval(np.array([8])), r"n must be an integer, got array\(\[8\]\)"),
    "nodes of a string": (lambda: domains.interval("8"), "n must be an integer, got '8'"),
    "shape of floats": (lambda: domains.box((2.5, 3)), r"n must be an integer, got 2\.5"),
    "resampled by one number": (lambda: GRID.resample(8), "shape must hold the nodes along each of the 1 axes, got 8"),
    "end of a string": (lambda: domains.interval(4, lower="0"), "lower must be a number, got '0'"),
    "end of None": (lambda: domains.box((2, 3), upper=None), "upper must be a number, got None"),
    "end of a duration": (lambda: domains.interval(4, upper=SECONDS[1]), "upper must be a number, got np.timedelta64"),
    "measure of a string": (lambda: domains.monte_carlo(SQUARE, "1"), "measure must be a number, got '1'"),
    "measure of an array": (lambda: domains.monte_carlo(SQUARE, np.ones(4)), "measure must be a number, got array"),
    "nodes of None": (lambda: domains.from_samples(None), "nodes must be an array of numbers, got NoneType"),
    "nodes of strings": (lambda: domains.from_samples(["0", "1"]), "nodes must hold real numbers, got dtype <U1"),
    "nodes of objects": (lambda: domains.from_samples(np.array([0, None])), "must hold real numbers, got dtype object"),
    "nodes of records": (
        lambda: domains.from_samples(np.zeros(2, [("x", float)])),
        "must hold real numbers, got dtype",
    ),
    "durations": (lambda: domains.from_samples(SECONDS), r"got dtype timedelta64\[s\]; count times from an origin"),
    "dates": (lambda: domains.from_samples(SECONDS.astype("M8[s]")), r"got dtype datetime64\[s\]; count times from an"),
    "lengths with a unit": (
        lambda: domains.from_samples(LENGTHS),
        "must hold plain numbers, got a quantity in m; conv",
    ),
    "masked nodes": (lambda: domains.from_samples(MASKED), "numbers only, but 1 of its 4 entries are masked; leave"),
    "masked weights": (lambda: domains.from_nodes(SQUARE, MASKED), "weights must hold numbers only, but 1 of its 4"),
    "rows with masks": (lambda: domains.monte_carlo([MASKED, MASKED]), "points must hold numbers only, but 1 of its 4"),
    "masked vertices": (
        lambda: domains.triangle_mesh(np.ma.masked_array(SQUARE, np.eye(4, 2)), [[0, 1, 2]]),
        "vertices must hold numbers only, but 2 of its 8 entries are masked",
    ),
    "masked faces": (
        lambda: domains.triangle_mesh(SQUARE, np.ma.masked_array([[0, 1, 2]], [[False, False, True]])),
        "faces must hold numbers only",
    ),
    "faces of durations": (lambda: domains.triangle_mesh(SQUARE, SECONDS[None, :3]), "faces must hold real numbers"),
    "masked values": (lambda: GRID.integrate(MASKED[:, None]), "values must hold numbers only, but 1 of its 4 entries"),
    "a domain to stack": (lambda: domains.stack(GRID), "domains must be a list of domains, got Grid; put it in a list"),
    "numbers to stack": (lambda: domains.stack([1, 2]), r"domains\[0\] must be a Domain, got int"),
    "a list to pad": (lambda: domains.pad([GRID], 5), "domain must be a Domain, got list"),
    "padded by a float": (lambda: domains.pad(MESH, 5.0), r"size must be an integer, got 5\.0"),
    "faces of a float": (lambda: domains.pad(MESH, 5, faces=2.0), r"faces must be an integer, got 2\.0"),
    "patches of one number": (lambda: domains.partition(GRID, 2), "patches must hold one integer for each axis.*got 2"),
    "index of a float": (lambda: domains.partition(GRID, (2,)).subdomain((0.5,)), r"index\[0\] must be an integer"),
    "split of None": (
        lambda: domains.partition(GRID, (2,)).split(None),
        "values must be an array of numbers, got None",
    ),
    "subdomains of True": (
        lambda: schwarz.decompose(domains.monte_carlo(SQUARE), True),
        "must be one integer on Point",
    ),
    "indices of a number": (lambda: schwarz.from_subdomains(GRID, 5), "indices must hold one array of nodes per subd"),
    "indices of durations": (lambda: schwarz.from_subdomains(GRID, [SECONDS]), r"indices\[0\] must hold real numbers"),
    "partition of None": (
        lambda: schwarz.from_subdomains(GRID, [range(4)], partition=None),
        "partition must hold one array per subdomain, got NoneType",
    ),
    "masked coarse functions": (
        lambda: schwarz.decompose(GRID, 2, 1, coarse=MASKED[:, None]),
        "coarse must hold numbers only, but 1 of its 4 entries are masked",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*is float64")
@pytest.mark.parametrize("row", WRONG)
def test_what_is_not_a_number_is_a_type_error(row):
    call, message = WRONG[row]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.usefixtures("unchecked")
def test_a_masked_array_without_masked_entries_is_an_array():
    whole = np.ma.masked_array(np.arange(4.0, dtype=np.float32), np.zeros(4, bool))
    np.testing.assert_array_equal(domains.from_samples(whole).points[:, 0], np.arange(4.0))


@pytest.mark.filterwarnings("ignore:.*is float64")
def test_nodes_that_no_origin_would_tell_apart_may_coincide_in_a_cloud():
    near = np.array([[0.5], [0.5 + 1e-9], [1.0], [0.0]])
    assert domains.monte_carlo(near).size == 4
    assert domains.monte_carlo(np.repeat(STAMPS[:1, None], 4, axis=0)).size == 4  # the same node four times
    shifted = STAMPS[:, None] - STAMPS[0]
    assert domains.from_nodes(shifted, np.ones(16)).size == 16


def test_bad_values_are_found_in_jax_and_numpy_arrays_alike():
    for array in (np.array([0.0, 2.0, 1.0], np.float32), jnp.array([0.0, 2.0, 1.0])):
        with pytest.raises(ValueError, match=r"nodes\[2\] = 1\.0 lies below"):
            domains.from_samples(array)


def test_values_are_not_validated_under_transformations():
    measure = jax.jit(lambda nodes: domains.from_samples(nodes).measure)(jnp.array([0.0, 2.0, 1.0]))
    np.testing.assert_allclose(measure, 1.0)


@pytest.fixture
def unwarned(monkeypatch):
    monkeypatch.setattr(_validation, "_warned_about_float64", set())


@pytest.mark.usefixtures("unwarned")
def test_float64_without_x64_warns_exactly_once():
    nodes = np.linspace(0.0, 1.0, 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            domain = domains.from_samples(nodes)
            domains.from_nodes(nodes[:, None], np.ones(5))
    messages = [str(w.message) for w in caught]
    assert [m.split()[0] for m in messages] == ["nodes"]
    assert all("rounded to float32" in m and "jax_enable_x64" in m for m in messages)
    assert domain.weights.dtype == jnp.float32


@pytest.mark.usefixtures("unwarned", "x64")
def test_float64_with_x64_is_kept_without_a_warning():
    domain = domains.from_samples(np.linspace(0.0, 1.0, 5))
    assert domain.weights.dtype == jnp.float64
    assert domains.interval(5).points.dtype == jnp.float64
    assert domains.from_samples([1e9, 1e9 + 1]).measure == 1


@pytest.mark.usefixtures("unwarned")
def test_float32_integers_and_lists_do_not_warn():
    for nodes in (np.arange(4, dtype=np.float32), np.arange(4), [0, 1, 2, 3], [0.0, 1.0, 2.0, 3.0]):
        np.testing.assert_allclose(domains.from_samples(nodes).measure, 3.0)
