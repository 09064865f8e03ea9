"""Samples with their own nodes in arrays: a folder of .npz, groups of HDF5, rows with offsets."""

import h5py
import numpy as np
import pytest

from jaxop import data, domains
from jaxop.data.files.read import read_inputs
from tests.data.files.cases import refuse, write_hdf5, write_mat, write_npz

COUNTS = (5, 7, 4)
FACES = [np.array([[0, 1, 2], [2, 3, k]]) for k in (4, 5, 1)]


def nodes(n, *, seed=0):
    return np.random.default_rng((seed, n)).random((n, 2), np.float32)


def sample(n, *, dim=2):
    points = nodes(n) if dim == 2 else np.sort(nodes(n)[:, 0])
    return {
        "x": np.float32(n) * np.ones(n, np.float32),
        "y": np.outer(nodes(n)[:, 0], np.float32([1, 2])),
        "coordinates": points,
    }


def joined(samples):
    rows = {name: np.concatenate([s[name] for s in samples]) for name in samples[0] if name != "initial"}
    rows |= {"initial": np.stack([s["initial"] for s in samples])} if "initial" in samples[0] else {}
    if "at" in rows:
        rows["at_offsets"] = np.cumsum([0, *(len(s["at"]) for s in samples)])
    return rows | {"offsets": np.cumsum([0, *(len(s["x"]) for s in samples)])}


def write_folder(path, samples):
    folder = path.parent / "folder"
    folder.mkdir(exist_ok=True)
    for i, one in enumerate(samples):
        write_npz(folder / f"s{i + 8}.npz", **one)  # s8, s9, s10
    return folder


def write_groups(path, samples):
    path = path.with_suffix(".h5")
    write_hdf5(path, **{f"s{i + 8}/{name}": array for i, one in enumerate(samples) for name, array in one.items()})
    return path


def write_rows(path, samples):
    write_npz(path, **joined(samples))
    return path


def write_lazy_rows(path, samples):
    path = path.with_suffix(".h5")
    write_hdf5(path, **joined(samples))
    return path


@pytest.fixture(params=[write_folder, write_groups, write_rows, write_lazy_rows])
def store(request, tmp_path):
    """Writes samples in one of the four ways, and returns the path."""
    return lambda samples: request.param(tmp_path / "set.npz", samples)


def test_every_way_gives_the_same_samples(store):
    given = [sample(n) | {"weights": np.full(n, 1 / n), "initial": np.array([n, -n])} for n in COUNTS]
    samples = data.read(store(given))
    assert len(samples) == 3
    for i, n in enumerate(COUNTS):
        one = samples.sample(i)
        assert type(one.domain) is domains.PointCloud
        np.testing.assert_array_equal(one.inputs[:, 0], given[i]["x"])
        np.testing.assert_array_equal(one.targets, given[i]["y"])
        np.testing.assert_array_equal(one.domain.points, given[i]["coordinates"])
        np.testing.assert_allclose(one.domain.weights, 1 / n, rtol=1e-6)
        np.testing.assert_array_equal(one.initial, [n, -n])


def test_nodes_in_one_dimension_get_trapezoid_weights(store):
    one = data.read(store([sample(n, dim=1) for n in COUNTS])).sample(1)
    assert type(one.domain) is domains.Grid
    expected = domains.from_samples(sample(7, dim=1)["coordinates"])
    np.testing.assert_array_equal(one.domain.weights, expected.weights)


def test_scattered_nodes_are_triangulated_and_a_warning_says_so(store):
    with pytest.warns(UserWarning, match="nodes without weights and cells; the weights are those of the Delaunay"):
        samples = data.read(store([sample(n) for n in COUNTS]))
    expected = domains.from_points(nodes(4))
    np.testing.assert_array_equal(samples.sample(2).domain.weights, expected.weights)


def test_names_may_be_columns(store):
    points = [
        {"px": nodes(n)[:, 0], "py": nodes(n)[:, 1], "u": nodes(n)[:, 0], "v": nodes(n), "w": np.ones(n)}
        for n in COUNTS
    ]
    offsets = [{"x": one["u"], **one} for one in points]
    path = store(offsets)
    samples = data.read(path, inputs=["u", "v"], targets="x", coordinates=["px", "py"], weights="w")
    np.testing.assert_array_equal(samples.sample(1).inputs, np.column_stack([points[1]["u"], points[1]["v"]]))
    np.testing.assert_array_equal(samples.sample(1).domain.points, nodes(7))


def test_inputs_are_read_without_targets(store):
    given = [
        sample(n) | {"weights": np.ones(n), "at": nodes(n + 2, seed=1), "at_weights": np.ones(n + 2)} for n in COUNTS
    ]
    for one in given:
        del one["y"]
    samples = read_inputs(store(given), inputs="x")
    np.testing.assert_array_equal(samples.sample(1).inputs[:, 0], given[1]["x"])
    assert len(samples.sample(1).targets) == 9


@pytest.mark.parametrize("write", [write_folder, write_groups])
def test_targets_may_be_on_other_nodes(tmp_path, write):
    given = []
    for n in COUNTS:
        one = sample(n) | {"weights": np.ones(n), "at": nodes(n + 2, seed=1), "at_weights": np.arange(n + 2.0)}
        given.append(one | {"y": np.arange(n + 2, dtype=np.float32)})
    path = write(tmp_path / "set.npz", given)
    one = data.read(path).sample(1)
    np.testing.assert_array_equal(one.domain.points, nodes(7))
    np.testing.assert_array_equal(one.at.points, nodes(9, seed=1))
    np.testing.assert_array_equal(one.at.weights, np.arange(9))
    np.testing.assert_array_equal(one.targets[:, 0], np.arange(9))
    with pytest.raises(ValueError, match=r"targets must have shape .*got \(7,\) for \(5, 2\)"):
        data.read(path, at=None)


def test_faces_make_meshes(tmp_path):
    given = [sample(n) for n in COUNTS]
    folder = write_folder(tmp_path / "set.npz", [one | {"faces": f} for one, f in zip(given, FACES, strict=True)])
    rows = joined(given)
    rows["faces"] = np.concatenate([f + start for f, start in zip(FACES, rows["offsets"], strict=False)])
    write_npz(tmp_path / "rows.npz", **rows)
    write_npz(tmp_path / "unsigned.npz", **(rows | {"faces": rows["faces"].astype(np.uint64)}))
    for path in (folder, tmp_path / "rows.npz", tmp_path / "unsigned.npz"):
        samples = data.read(path)
        for i, n in enumerate(COUNTS):
            assert type(samples.sample(i).domain) is domains.TriangleMesh
            np.testing.assert_array_equal(samples.sample(i).domain.faces, FACES[i])
            np.testing.assert_array_equal(samples.sample(i).domain.points, nodes(n))


def test_rows_of_hdf5_stay_in_the_file(tmp_path):
    path = write_lazy_rows(tmp_path / "set.npz", [sample(n) | {"weights": np.ones(n)} for n in COUNTS])
    samples = data.read(path)
    with h5py.File(path, "r+") as file:
        file["x"][5:12] = 3.0
    np.testing.assert_array_equal(samples.sample(1).inputs, 3.0)
    np.testing.assert_array_equal(samples.sample(2).inputs, 4.0)


@pytest.mark.usefixtures("unchecked")
class TestMessages:
    def test_offsets(self, tmp_path):
        path = tmp_path / "set.npz"
        rows = joined([sample(n) | {"weights": np.ones(n)} for n in COUNTS])

        def bad(message, **changed):
            write_npz(path, **(rows | changed))
            refuse(path, message)

        bad(r"offsets must run from 0 to the 16 rows of the arrays, got 5, …, 12; .* numpy.split", offsets=[5, 12])
        bad("offsets must increase, but sample 1 has rows 5 to 5", offsets=[0, 5, 5, 16])
        bad("offsets must be at least 2 integers, got float64", offsets=[0, 0.5, 16])
        bad("offsets must be at least 2 integers, got float64", offsets=[0, np.nan, 16])
        bad(
            "one row for each node .*'x' has 16, 'y' has 16, 'coordinates' has 15", coordinates=rows["coordinates"][:15]
        )
        bad("weights must have 16 rows, got shape", weights=np.ones(3))
        queries = {"at": rows["coordinates"], "at_weights": rows["weights"]}
        bad("there are 3 samples of nodes and 2 of query nodes", **queries, at_offsets=[0, 5, 16])
        bad("at_weights must have 16 rows", **(queries | {"at_weights": np.ones(2)}), at_offsets=rows["offsets"])
        bad("has no dataset 'at_offsets'", **queries)
        del rows["weights"]
        bad("faces must hold numbers of rows, .* but a sample has none; add", faces=FACES[0])
        bad(r"but face 3 is \[2, 3, 5\]; add", faces=np.concatenate(FACES))

    @pytest.mark.parametrize("write", [write_folder, write_groups])
    def test_a_sample_that_differs_is_named(self, tmp_path, write):
        given = [sample(n) | {"weights": np.ones(n)} for n in COUNTS]
        given[2]["coordinates"] = np.ones((4, 3)) * np.arange(4)[:, None]
        with pytest.raises(ValueError, match=r"s10.* has the dimension 3, but .*s8.* has 2"):
            data.read(write(tmp_path / "set.npz", given))

    @pytest.mark.parametrize("write", [write_folder, write_groups])
    def test_a_sample_without_an_array_of_the_others_is_named(self, tmp_path, write):
        given = [sample(n) | {"faces": faces} for n, faces in zip(COUNTS, FACES, strict=True)]
        del given[1]["faces"]  # its nodes would be triangulated
        message = r"s9\S*: .* same arrays, but .*s8\S* has faces and .*s9\S* does not; move"
        refuse(write(tmp_path / "set.npz", given), message)
        given = [sample(n) | {"weights": np.ones(n), "at": nodes(n), "at_weights": np.ones(n)} for n in COUNTS]
        del given[1]["at_weights"]
        refuse(write(tmp_path / "set.npz", given), r"has at_weights and .* another set, or give these weights to all")

    def test_values_that_are_not_finite(self, store):
        given = [sample(n) | {"weights": np.ones(n)} for n in COUNTS]
        given[1]["y"][3, 1] = np.nan
        with pytest.raises(ValueError, match=r"(s9.npz|group 's9'|sample 1).*targets must be finite.*3, 1\] = nan"):
            data.read(store(given))

    def test_a_missing_array(self, tmp_path):
        given = [sample(n) | {"weights": np.ones(n)} for n in COUNTS]
        del given[1]["coordinates"]
        refuse(write_groups(tmp_path / "set.npz", given), "has no dataset 's9/coordinates'; it has 's")
        folder = write_folder(tmp_path / "set.npz", given)
        refuse(folder, "s9.npz .*has no dataset 'coordinates'; it has 'x', 'y'")

    def test_options_that_do_not_apply(self, tmp_path):
        folder = write_folder(tmp_path / "set.npz", [sample(5)])
        refuse(
            folder,
            "is read as a folder of arrays; nothing reads rule='midpoint', upper=2.0; leave them out",
            rule="midpoint",
            upper=2.0,
        )

    def test_offsets_in_matlab_files(self, tmp_path):
        path = tmp_path / "set.mat"
        write_mat(path, **joined([sample(n) for n in COUNTS]))
        refuse(path, "is read as arrays on shared nodes; nothing reads offsets='first'", offsets="first")

    def test_several_names_on_shared_nodes(self, tmp_path):
        path = tmp_path / "set.npz"
        write_npz(path, a=np.ones((2, 4)), b=np.ones((2, 4)))
        refuse(path, "inputs names 2 arrays, 'a', 'b', and samples on shared nodes have one", inputs=["a", "b"])
