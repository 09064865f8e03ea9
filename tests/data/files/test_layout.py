import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import data, domains
from jaxop.testing import count_compilations


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("inputs", "targets", "dim", "grid", "channels"),
    [
        ((5, 16), (5, 16), None, (16,), (1, 1)),
        ((5, 16), (5, 16, 3), None, (16,), (1, 3)),
        ((5, 16, 2), (5, 16, 3), None, (16,), (2, 3)),
        ((5, 16, 1), (5, 16, 1), None, (16,), (1, 1)),
        ((5, 8, 8), (5, 8, 8), None, (8, 8), (1, 1)),
        ((5, 8, 6, 2), (5, 8, 6), None, (8, 6), (2, 1)),
        ((5, 8, 6, 2), (5, 8, 6, 4), None, (8, 6), (2, 4)),
        ((5, 4, 4, 4), (5, 4, 4, 4), None, (4, 4, 4), (1, 1)),
        ((5, 8, 6), (5, 8, 6), 2, (8, 6), (1, 1)),
        ((5, 8, 6), (5, 8, 6), 1, (8,), (6, 6)),
        ((5, 8, 8), (5, 8, 8), 1, (8,), (8, 8)),
    ],
)
def test_the_shapes_tell_grid_from_channels(inputs, targets, dim, grid, channels):
    samples = data.from_arrays(ones(*inputs), ones(*targets), dim=dim)
    assert samples.domain.shape == grid
    assert samples.inputs.shape == (5, np.prod(grid), channels[0])
    assert samples.targets.shape == (5, np.prod(grid), channels[1])


def test_values_keep_their_place():
    u = np.arange(5 * 3 * 4 * 2, dtype=np.float32).reshape(5, 3, 4, 2)
    samples = data.from_arrays(u, u[..., 0], lower=(0, 0), upper=(1, 2))
    np.testing.assert_array_equal(samples.inputs.reshape(u.shape), u)
    np.testing.assert_array_equal(samples.targets[..., 0], u[..., 0].reshape(5, 12))
    assert samples.domain.rules == ("midpoint", "midpoint")
    np.testing.assert_allclose(samples.domain.points[4], [0.5, 0.25])
    np.testing.assert_allclose(samples.domain.measure, 2.0, rtol=1e-6)


def test_the_rule_of_the_box_can_be_chosen():
    samples = data.from_arrays(ones(2, 4, 4), ones(2, 4, 4), rule=("trapezoid", "periodic"), lower=-1.0, upper=1.0)
    assert samples.domain.rules == ("trapezoid", "periodic")
    np.testing.assert_allclose(samples.domain.points[-1], [1.0, 0.5])


def test_one_array_per_axis_makes_a_grid():
    x, y = np.array([0.0, 0.5, 2.0]), np.linspace(0, 1, 4)
    samples = data.from_arrays(ones(2, 3, 4), ones(2, 3, 4, 2), [x, y])
    assert samples.domain.shape == (3, 4)
    np.testing.assert_allclose(samples.domain.axes[0].weights, [0.25, 1.0, 0.75])
    single = data.from_arrays(ones(2, 3), ones(2, 3), x)
    np.testing.assert_allclose(single.domain.axes[0].nodes, x)
    np.testing.assert_allclose(data.from_arrays(ones(2, 3), ones(2, 3), [x]).domain.weights, single.domain.weights)


@pytest.mark.parametrize(
    ("rule", "ends"),
    [("trapezoid", (2.0, 5.0)), ("midpoint", (1.5, 5.5)), ("periodic", (2.0, 6.0)), ("interior", (1.0, 6.0))],
)
def test_a_rule_with_coordinates_finds_its_interval(rule, ends):
    nodes = np.array([2.0, 3.0, 4.0, 5.0])
    samples = data.from_arrays(ones(2, 4), ones(2, 4), nodes, rule=rule)
    assert samples.domain.rules == (rule,)
    assert samples.domain.axes[0].ends == ends
    np.testing.assert_allclose(samples.domain.axes[0].nodes, nodes, rtol=1e-6)


def test_shared_nodes_in_space():
    nodes = np.random.default_rng(0).uniform(size=(7, 2))
    equal = data.from_arrays(ones(3, 7), ones(3, 7, 2), nodes)
    assert isinstance(equal.domain, domains.PointCloud)
    np.testing.assert_allclose(equal.domain.weights, 1 / 7, rtol=1e-6)
    weighted = data.from_arrays(ones(3, 7), ones(3, 7), nodes, weights=np.arange(7.0))
    np.testing.assert_allclose(weighted.domain.weights, np.arange(7.0))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_times_of_each_sample(shape):
    times = np.sort(np.random.default_rng(0).uniform(size=(4, 6)), axis=1)
    samples = data.from_arrays(ones(4, 6), ones(4, 6), times.reshape(shape))
    for i in range(4):
        single = domains.from_samples(times[i].astype(np.float32))
        np.testing.assert_allclose(samples[[i]].domain.weights[0], single.weights, rtol=1e-5, atol=1e-7)


def test_nodes_of_each_sample_in_space():
    nodes = np.random.default_rng(0).uniform(size=(4, 6, 2))
    samples = data.from_arrays(ones(4, 6, 3), ones(4, 6), nodes)
    np.testing.assert_allclose(samples[[2]].domain.points[0], nodes[2], rtol=1e-6)
    np.testing.assert_allclose(samples.domain.weights, 1 / 6, rtol=1e-6)


def test_padded_times_with_weights_stay_a_grid():
    grid = domains.pad(domains.from_samples([0.0, 0.5, 2.0]), 5)
    nodes = np.broadcast_to(np.asarray(grid.points), (4, 5, 1))
    for coordinates, weights in (
        (grid.axes[0].nodes, grid.weights),
        (nodes, grid.weights),
        (nodes, [grid.weights] * 4),
    ):
        samples = data.from_arrays(ones(4, 5), ones(4, 5), np.asarray(coordinates), weights=np.asarray(weights))
        assert isinstance(samples.domain, domains.Grid)
        np.testing.assert_allclose(np.atleast_2d(samples.domain.weights)[0], grid.weights)


def test_unsorted_nodes_with_weights_are_scattered():
    samples = data.from_arrays(ones(2, 3), ones(2, 3), np.array([[1.0], [0.0], [0.5]]), weights=ones(3))
    assert isinstance(samples.domain, domains.PointCloud)


def test_initial_data_and_integers_pass():
    samples = data.from_arrays(ones(2, 4, dtype=np.int32), jnp.ones((2, 4)), initial=np.array([[1], [2]]))
    np.testing.assert_array_equal(samples[[1]].initial, [[2.0]])
    assert samples[[0]].inputs.dtype == jnp.float32


UNEVEN = np.array([0.0, 1.0, 2.5])


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        ((ones(3), ones(3)), {}, r"inputs must have shape \(samples, \*grid\)"),
        ((ones(0, 4), ones(0, 4)), {}, r"inputs is empty: its shape is \(0, 4\)"),
        ((ones(3, 4), ones(2, 4)), {}, r"shapes disagree: inputs has 3 samples \(3, 4\) and targets 2 \(2, 4\)"),
        ((ones(3, 4, 4), ones(3, 5, 5)), {}, r"shapes disagree: targets has shape \(3, 5, 5\) but the grid is \(4,\)"),
        ((ones(3, 4), ones(3, 5)), {}, r"shapes disagree: targets has shape \(3, 5\) but the grid is \(4,\)"),
        ((ones(3, 4), ones(3, 4, 4, 4)), {}, "shapes disagree: .* cannot live on one grid"),
        ((ones(3, 8, 8, 3), ones(3, 8, 8, 3)), {}, r"may be functions with 3 channels on a grid \(8, 8\) \(dim=2\) or"),
        ((ones(3, 8), ones(3, 8)), {"dim": 2}, r"with dim=2 it must have 3 axes \(samples, \*grid\) or 4"),
        ((ones(3, 8), ones(3, 8)), {"dim": 0}, "dim must be at least 1"),
        ((ones(3, 8), ones(3, 8)), {"weights": ones(8)}, "weights were given without coordinates"),
        ((ones(3, 8), ones(3, 8)), {"rule": "midpint"}, "did you mean 'midpoint'"),
        ((ones(3, 3), ones(3, 3), []), {}, "coordinates is empty"),
        ((ones(3, 3), ones(3, 3), UNEVEN), {"lower": 0.0}, "lower and upper belong to grids without coordinates"),
        ((ones(3, 3), ones(3, 3), UNEVEN), {"dim": 2}, "dim=2, but the coordinates have dimension 1"),
        (
            (ones(3, 3), ones(3, 3), UNEVEN),
            {"rule": "midpoint"},
            r"along axis 0 coordinates\[0\] = 0.0|coordinates\[1\]",
        ),
        ((ones(3, 3), ones(3, 3), UNEVEN), {"rule": "gauss-legendre"}, "leave the coordinates out"),
        ((ones(3, 3), ones(3, 3), UNEVEN), {"rule": ("midpoint", "midpoint")}, "rule has 2 entries for 1 axes"),
        ((ones(3, 3), ones(3, 3), UNEVEN[::-1]), {}, r"coordinates\[1\] = 1.0 lies below coordinates\[0\] = 2.5; sort"),
        ((ones(3, 3), ones(3, 3), np.array([0.0, np.nan, 1.0])), {}, "must be finite"),
        ((ones(3, 4), ones(3, 4), UNEVEN), {}, r"shapes disagree: inputs has shape \(3, 4\) but the grid is \(3,\)"),
        ((ones(5, 4), ones(5, 4), ones(3, 2)), {}, r"coordinates have shape \(3, 2\) for functions of shape \(5, 4\)"),
        (
            (ones(5, 4), ones(5, 4), ones(4, 2)),
            {"rule": "midpoint"},
            "rule='midpoint' needs one array of coordinates per axis",
        ),
        ((ones(2, 2, 2), ones(2, 2, 2), [ones(2), ones(2)]), {"weights": ones(4)}, "weights belong to nodes"),
        ((ones(2, 3), ones(2, 3), np.array([[0.0, 1, 2], [0, 2, 1]])), {}, r"coordinates\[1, 2\] = 1.0"),
        (
            (ones(2, 3), ones(2, 3), np.full((2, 3, 2), np.inf)),
            {},
            r"coordinates must be finite, but coordinates\[0, 0, 0\]",
        ),
        ((ones(5, 4), ones(5, 4), ones(5, 4, 2)), {"weights": ones(3)}, r"weights must have shape \(4,\) or \(5, 4\)"),
        (
            (ones(5, 4), ones(5, 4), ones(5, 4, 2)),
            {"weights": -ones(4)},
            r"weights must be .*, but weights\[0\] = -1",
        ),
        ((ones(5, 4), ones(5, 4), ones(5, 4, 2)), {"weights": 0 * ones(4)}, "weights are all zero"),
        (
            (ones(5, 4), ones(5, 4), ones(4, 2)),
            {"weights": ones(3)},
            r"weights must have shape \(4,\), one for each node, got \(3,\)",
        ),
    ],
)
def test_bad_arrays_say_what_is_wrong(arrays, settings, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(*arrays, **settings)


def test_data_that_are_not_real_are_refused():
    with pytest.raises(TypeError, match="targets must hold real numbers, got dtype <U1"):
        data.from_arrays(ones(1, 2), np.array([["a", "b"]]))
    with pytest.raises(TypeError, match="coordinates must be real, got dtype complex64"):
        data.from_arrays(ones(1, 2), ones(1, 2), ones(2, dtype=np.complex64))


def test_faces_make_a_mesh_of_the_coordinates():
    corners, faces = [[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]], np.array([[0, 1, 2], [0, 2, 3]])
    u = np.ones((3, 4), np.float32)
    domain = data.from_arrays(u, u, np.array(corners), faces=faces).domain
    assert type(domain) is domains.TriangleMesh
    np.testing.assert_allclose(domain.weights, [2 / 3, 1 / 3, 2 / 3, 1 / 3])
    for settings, message in (
        ({"coordinates": None}, "faces were given without coordinates"),
        ({"coordinates": np.ones((3, 4, 2))}, r"shape \(n, 2\) or \(n, 3\), .* got \(3, 4, 2\)"),
        ({"coordinates": [np.arange(2.0), np.arange(2.0)]}, "got 2 axes"),
        ({"weights": np.ones(4)}, "faces already give weights"),
        ({"rule": "midpoint"}, "faces already give weights"),
        ({"faces": faces + 0.5}, r"faces must be integers of shape \(f, 3\), got float64"),
        ({"faces": faces[:, :2]}, r"got int64 of shape \(2, 2\)"),
        ({"faces": faces + 1}, "is not a vertex"),
        ({"faces": faces, "dim": 3}, "dim=3, but the coordinates have dimension 2"),
    ):
        with pytest.raises(ValueError, match=message):
            data.from_arrays(u, u, **({"coordinates": np.array(corners), "faces": faces} | settings))


def test_faces_of_four_corners_in_space_make_a_volume():
    corners, cells = np.eye(4, 3, dtype=np.float32), np.array([[3, 0, 1, 2]])
    u = np.ones((3, 4), np.float32)
    domain = data.from_arrays(u, u, corners, faces=cells).domain
    assert type(domain) is domains.TetrahedralMesh
    np.testing.assert_allclose(domain.weights, np.full(4, 1 / 24), rtol=1e-6)
    with pytest.raises(ValueError, match=r"faces must be integers of shape \(f, 3\), got int64 of shape \(1, 4\)"):
        data.from_arrays(u, u, corners[:, :2], faces=cells)


STAMPS = 1.7e9 + np.arange(16.0)  # seconds: float32 holds every 128th
FAR = 1e8 + np.random.default_rng(0).uniform(size=(16, 2))


@pytest.mark.parametrize(
    ("coordinates", "settings", "message"),
    [
        (
            STAMPS,
            {},
            r"coordinates\[1\] = 1700000001\.0 rounds in float32 to coordinates\[0\] = 1700000000\.0; subtract",
        ),
        (STAMPS, {"rule": "midpoint"}, r"coordinates\[1\] = 1700000001\.0 rounds in float32 to"),
        (STAMPS, {"weights": np.ones(16)}, r"coordinates\[1\] = \[1700000001\.0\] rounds in float32 to"),
        (np.stack([STAMPS] * 3), {}, r"coordinates\[0, 1\] = 1700000001\.0 rounds in float32 to coordinates\[0, 0\]"),
        (np.stack([STAMPS - STAMPS[0], STAMPS]).astype(np.int64), {}, r"coordinates\[1, 1\] = 1700000001\.0 rounds"),
        (
            np.stack([STAMPS] * 3),
            {"weights": np.ones(16)},
            r"coordinates\[0, 1\] = \[1700000001\.0\] rounds in float32",
        ),
        (
            FAR,
            {},
            r"coordinates\[\d+\] = \[100000000.* rounds in float32 to coordinates\[\d+\].* origin or enable x64",
        ),
        (np.stack([FAR] * 3), {}, r"coordinates\[0, \d+\] = .* rounds in float32 to coordinates\[0, \d+\]"),
    ],
)
def test_nodes_that_round_to_one_are_told_from_unsorted_ones(coordinates, settings, message):
    samples = 3 if coordinates.shape[0] == 16 else len(coordinates)
    with pytest.raises(ValueError, match=message):
        data.from_arrays(ones(samples, 16), ones(samples, 16), coordinates, **settings)


def test_nodes_that_round_to_one_on_an_axis_of_a_grid():
    with pytest.raises(ValueError, match=r"coordinates\[1\]\[1\] = 1700000001\.0 rounds in float32 to"):
        data.from_arrays(ones(2, 3, 16), ones(2, 3, 16), [np.arange(3.0), STAMPS])


def test_time_stamps_less_an_origin_or_in_double_precision_pass(x64):
    assert data.from_arrays(ones(2, 16), ones(2, 16), STAMPS).domain.measure == 15


MASKED = np.ma.masked_array(ones(2, 4), np.eye(2, 4), fill_value=1e37)
SECONDS = np.arange(4).astype("timedelta64[s]")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        (
            (MASKED, ones(2, 4)),
            {},
            r"inputs must hold numbers only, but 2 of its 8 entries are masked; leave the masked no",
        ),
        ((ones(2, 4), MASKED), {}, "targets must hold numbers only"),
        ((ones(2, 4), ones(2, 4), MASKED), {}, "coordinates must hold numbers only"),
        ((ones(2, 4), ones(2, 4), [MASKED[0]]), {}, "coordinates must hold numbers only"),
        ((ones(2, 4, 4), ones(2, 4, 4), [MASKED[0], MASKED[1]]), {}, r"coordinates\[0\] must hold numbers only"),
        ((ones(2, 4), ones(2, 4), np.arange(4.0)), {"weights": MASKED[0]}, "weights must hold numbers only"),
        ((ones(2, 4), ones(2, 4)), {"initial": MASKED}, "initial must hold numbers only"),
        (
            (ones(2, 4), ones(2, 4), SECONDS),
            {},
            r"coordinates must hold real numbers, got dtype timedelta64\[s\]; count",
        ),
        ((ones(2, 4), ones(2, 4)), {"dim": 1.0}, r"dim must be an integer, got 1\.0"),
        ((ones(2, 4), ones(2, 4)), {"dim": True}, "dim must be an integer, got True"),
        ((ones(2, 4), ones(2, 4)), {"lower": "0"}, "lower must be a number, got '0'"),
        ((None, ones(2, 4)), {}, "inputs must be an array of numbers, got NoneType"),
        ((ones(2, 4), ones(2, 4), {"x": 1}), {}, "coordinates must be an array of numbers, got dict"),
    ],
)
def test_what_is_not_a_number_is_a_type_error(arrays, settings, message):
    with pytest.raises(TypeError, match=message):
        data.from_arrays(*arrays, **settings)


def test_domains_of_new_sizes_compile_nothing():
    def call(n):
        times = np.sort(np.random.default_rng(n).uniform(size=(3, n)).astype(np.float32), axis=1)
        nodes = np.random.default_rng(n).uniform(size=(3, n, 2)).astype(np.float32)
        u = ones(3, n)
        for coordinates, weights in ((times, None), (times[0], None), (nodes, None), (nodes, u), (nodes[0], u[0])):
            data.from_arrays(u, u, coordinates, weights=weights)[[0, 1]]

    call(20)
    with count_compilations() as compilations:
        for n in (21, 22, 23, 25, 29):
            call(n)
    assert compilations() == 0
