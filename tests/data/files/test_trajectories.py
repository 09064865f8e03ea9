"""Files of every format become the same trajectories, and stay in the file where they can."""

import threading

import h5py
import numpy as np
import pytest
import scipy.io
import xarray

from jaxop import data, domains
from jaxop.data._open_files import kept_open
from jaxop.data.files import _hdf5, netcdf
from jaxop.data.files._hdf5 import Hdf5Array

TIMES = np.array([0.0, 0.5, 1.5, 2.0, 4.0])
U = np.random.default_rng(0).normal(size=(3, 5, 4, 6, 2)).astype(np.float32)
NU, FORCE = np.array([1.0, 2.0, 3.0]), np.arange(6.0).reshape(3, 2)
X, Y = np.array([0.0, 1.0, 3.0, 4.0]), np.linspace(0, 1, 6)
ARRAYS = {"states": U, "times": TIMES, "nu": NU, "force": FORCE}


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def write_zarr(path, **arrays):
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(str(path))
    for name, array in arrays.items():
        group.create_array(name, data=np.asarray(array), chunks=(1, *np.shape(array)[1:]))
    return path


def write_dimensions(path, *, engine="h5netcdf", **arrays):
    file = xarray.Dataset(
        {
            "u": (("member", "time", "x", "y"), arrays["states"][..., 0]),
            "v": (("time", "y", "member", "x"), arrays["states"][..., 1].transpose(1, 3, 0, 2)),
            "nu": (("member",), arrays["nu"]),
        },
        {"time": arrays["times"], "x": X, "y": Y},
    )
    if path.suffix == ".zarr":
        pytest.importorskip("zarr")
        file.to_zarr(path, consolidated=False)
    else:
        file.to_netcdf(path, engine=engine)
    return path


def write_matlab(path, **arrays):
    scipy.io.savemat(path, arrays)
    return path


ARCHIVES = {"a.npz": write_npz, "a.h5": write_hdf5, "a.mat": write_matlab, "a.zarr": write_zarr}


def check(found, domain, *, parameters=NU[:, None]):
    np.testing.assert_array_equal(found.times, TIMES)
    assert (len(found), found.steps, found.domain.size, found.channels) == (3, 5, 24, 2)
    for s in range(3):
        states, _, own, _ = found.trajectory(s)
        np.testing.assert_array_equal(states, U[s].reshape(5, 24, 2))
        np.testing.assert_array_equal(own, parameters[s])
    np.testing.assert_allclose(found.domain.points, domain.points, atol=1e-7)
    np.testing.assert_allclose(found.domain.weights, domain.weights, rtol=1e-6)
    batch = found.windows(steps=2, strides=(2,))[[2]]
    np.testing.assert_array_equal(batch.targets[0, 1], U[2, 4].reshape(24, 2))


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.sample(2)
def test_arrays_on_a_box_and_on_axes(name, tmp_path):
    path = ARCHIVES[name](tmp_path / name, **ARRAYS)
    with pytest.warns(UserWarning, match=r"nothing reads .*'force'.*, only 'nu', 'states', 'times' are read"):
        found = data.read_trajectories(path, dim=2, parameters=["nu"], rule="periodic", upper=(1, 2))
    check(found, domains.box((4, 6), upper=(1, 2), rule="periodic"))
    assert found.parameter_names == ("nu",)
    path = ARCHIVES[name](tmp_path / f"b{path.suffix}", **ARRAYS, x=X, y=Y)
    found = data.read_trajectories(path, parameters=("nu", "force"), coordinates=("x", "y"))
    grid = domains.Grid((*domains.from_samples(X.astype(np.float32)).axes, *domains.interval(6).axes))
    check(found, grid, parameters=np.concatenate([NU[:, None], FORCE], axis=1))
    assert found.parameter_names == ("nu", "force_0", "force_1")


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_several_arrays_are_channels(name, tmp_path):
    velocity, pressure = U, U[..., 0] ** 2
    path = ARCHIVES[name](tmp_path / name, velocity=velocity, pressure=pressure)
    found = data.read_trajectories(path, states=["pressure", "velocity"], dim=2, dt=1)
    expected = np.concatenate([pressure[..., None], velocity], axis=-1).reshape(3, 5, 24, 3)
    np.testing.assert_array_equal(found.trajectory(2)[0], expected[2])
    np.testing.assert_array_equal(found.windows(strides=(2,))[[3]].targets[0], expected[1, 2:3])


@pytest.mark.parametrize("name", ["a.nc", "b.nc", "a.zarr"])
def test_variables_with_dimensions(name, tmp_path):
    path = write_dimensions(tmp_path / name, engine="scipy" if name == "b.nc" else "h5netcdf", **ARRAYS)
    found = data.read_trajectories(path, states=["u", "v"], parameters=["nu"])
    axes = (domains.from_samples(nodes.astype(np.float32)).axes[0] for nodes in (X, Y))
    check(found, domains.Grid(tuple(axes)))
    assert found.parameter_names == ("nu",)


def test_a_single_array_is_mapped_and_needs_times(tmp_path):
    np.save(tmp_path / "a.npy", U)
    found = data.read_trajectories(tmp_path / "a.npy", dim=2, dt=0.5)
    assert isinstance(found.states, np.memmap)
    assert found.times.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    times = TIMES + np.arange(3)[:, None]
    np.testing.assert_array_equal(data.read_trajectories(tmp_path / "a.npy", dim=2, times=times).times, times)
    with pytest.raises(ValueError, match=r"a\.npy.*has no times 'times'; .*as dt"):
        data.read_trajectories(tmp_path / "a.npy", dim=2)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"a\.npy .*truncated or damaged"):
        data.read_trajectories(tmp_path / "a.npy", dim=2, dt=0.5)


def test_a_zarr_store_of_one_array(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.save_array(str(tmp_path / "a.zarr"), U)
    found = data.read_trajectories(tmp_path / "a.zarr", dim=2, dt=0.5)
    np.testing.assert_array_equal(found.trajectory(1)[0], U[1].reshape(5, 24, 2))


def test_windows_read_their_own_times_from_the_file(tmp_path, monkeypatch):
    found = data.read_trajectories(write_hdf5(tmp_path / "a.h5", states=U, times=TIMES), dim=2)
    assert not isinstance(found.states, np.ndarray)
    read, counted = Hdf5Array.__getitem__, []

    def count(self, index):
        rows = read(self, index)
        counted.append((index, rows.shape))
        return rows

    monkeypatch.setattr(Hdf5Array, "__getitem__", count)
    found.take([2, 1]).between(1, None).windows(steps=2)[[0]]
    assert counted == [((2, slice(1, 4, 1)), (3, 4, 6, 2))]


@pytest.mark.parametrize(("name", "module"), [("a.h5", _hdf5), ("a.nc", netcdf)])
def test_a_batch_opens_the_file_once(name, module, tmp_path, monkeypatch):
    if name == "a.h5":
        path, options = write_hdf5(tmp_path / name, states=U, times=TIMES), {"dim": 2}
    else:
        path, options = write_dimensions(tmp_path / name, **ARRAYS), {"states": "u"}
    windows, opened, open_file = data.read_trajectories(path, **options).windows(), [], module._open

    def count(path):
        opened.append(threading.get_ident())
        return open_file(path)

    monkeypatch.setattr(module, "_open", count)
    windows[[0, 5, 9]]
    assert len(opened) == 1
    with kept_open():  # of this thread only
        windows[[0]]
        windows[[3]]
        thread = threading.Thread(target=windows.__getitem__, args=([1],))
        thread.start()
        thread.join()
    assert len(opened) == 3
    assert len(set(opened)) == 2
    with h5py.File(path, "r+"):  # it is closed
        pass


def test_variables_read_their_own_times_from_the_file(tmp_path, monkeypatch):
    found = data.read_trajectories(write_dimensions(tmp_path / "a.nc", **ARRAYS), states="u")
    read, counted = netcdf.Variables.__getitem__, []

    def count(self, index):
        rows = read(self, index)
        counted.append(rows.shape)
        return rows

    monkeypatch.setattr(netcdf.Variables, "__getitem__", count)
    found.windows(steps=2)[[4]]
    assert counted == [(3, 4, 6, 1)]


def test_last_axes_are_a_square_or_channels(tmp_path):
    for shape, channels, grid in (
        ((2, 3, 7), 1, (7,)),
        ((2, 3, 7, 1), 1, (7,)),
        ((2, 3, 4, 4), 1, (4, 4)),
        ((2, 3, 4, 5, 1), 1, (4, 5)),
    ):
        found = data.read_trajectories(write_npz(tmp_path / "a.npz", states=np.zeros(shape, np.float32)), dt=1)
        assert (found.channels, found.domain.shape) == (channels, grid)
    found = data.read_trajectories(
        write_npz(tmp_path / "a.npz", states=np.zeros((2, 3, 7, 7), np.float32)), dt=1, dim=1
    )
    assert (found.channels, found.domain.shape) == (7, (7,))
    path = write_npz(tmp_path / "a.npz", states=np.zeros((2, 3, 7, 2), np.float32))
    with pytest.raises(ValueError, match=r"2 channels on a grid \(7,\) \(dim=1\) or one on a grid \(7, 2\).*pass dim"):
        data.read_trajectories(path, dt=1)


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
@pytest.mark.parametrize("kind", ["grid", "axes", "line", "cloud", "mesh", "stack"])
@pytest.mark.sample(4)
def test_what_is_saved_is_read(name, kind, tmp_path):
    random = np.random.default_rng(0)
    lines = [np.sort(random.random(6, np.float32)) for _ in range(2)]
    domain = {
        "grid": lambda: domains.box((2, 3), lower=(0, 1), upper=(1, 3), rule=("periodic", "midpoint")),
        "axes": lambda: domains.Grid(
            tuple(domains.from_samples(np.array(x, np.float32)).axes[0] for x in ([0, 2], [0, 1, 5]))
        ),
        "line": lambda: domains.from_samples(lines[0]),
        "cloud": lambda: domains.from_nodes(random.random((6, 2), np.float32), [0, 1, 2, 3, 4, 5]),
        "mesh": lambda: domains.triangle_mesh(random.random((6, 2), np.float32), [[0, 1, 2], [3, 4, 5]]),
        "stack": lambda: domains.stack([domains.from_samples(line) for line in lines]),
    }[kind]()
    states = random.normal(size=(2, 4, 6, 2)).astype(np.float32)
    times = np.cumsum(random.random((2, 4)), axis=1)
    made = data.Trajectories(states, domain, times, np.array([[1.0, 2.0], [3.0, 4.0]]), ("ν", "b"))
    data.save(tmp_path / name, made)
    found = data.read_trajectories(tmp_path / name)
    without = data.read_trajectories(tmp_path / name, parameters=None)
    assert (found.parameter_names, without.parameter_count) == (("ν", "b"), 0)
    assert found.identity() == made.identity()
    assert type(found.domain) is type(made.domain)
    unnamed = data.Trajectories(states, domain, times[0])
    data.save(tmp_path / name, unnamed)
    assert data.read_trajectories(tmp_path / name).identity() == unnamed.identity()


LATITUDE, LONGITUDE = np.linspace(-80, 80, 9), np.arange(0, 360, 30.0)
LAND = np.zeros((9, 12), bool)
LAND[2:4, 5:9] = True


def write_ocean(path, change=lambda values: None, **dimensions):
    """A temperature of (time, latitude, longitude) with land as fill values, and its double."""
    values = np.cos(np.radians(LATITUDE))[:, None] + 0.1 * np.arange(6)[:, None, None] + 0 * LONGITUDE
    values[:, LAND] = np.nan
    change(values)
    file = xarray.Dataset(
        {
            "sst": (("time", "lat", "lon"), values),
            "twice": (("time", "lat", "lon"), np.nan_to_num(2 * values, nan=300.0).astype(np.float32)),
        },
        {"time": np.arange(6.0), "lat": LATITUDE, "lon": LONGITUDE},
    )
    file["time"].attrs["units"] = "months since 1990-01-01"
    file.to_netcdf(path, engine="h5netcdf", encoding={"sst": {"_FillValue": -999.0, "dtype": "f4"}})
    return path


def test_land_has_weight_0_and_finite_values(tmp_path):
    found = data.read_trajectories(write_ocean(tmp_path / "a.nc"), states=["sst", "twice"])
    assert (len(found), found.steps, found.channels, found.dim) == (1, 6, 2, 3)
    whole = domains.latitude_longitude(LATITUDE, LONGITUDE)
    np.testing.assert_allclose(found.domain.weights, np.where(LAND.ravel(), 0, whole.weights), rtol=1e-6)
    states = found.trajectory(0)[0]
    assert np.isfinite(states).all()
    known = found.windows().statistics()
    # the mean of the channel, which standardises to 0
    np.testing.assert_allclose(states[:, LAND.ravel(), 0], known.mean[0], rtol=1e-6)
    np.testing.assert_array_equal(states[:, LAND.ravel(), 1], 300)
    sea = np.asarray(found.domain.weights)[~LAND.ravel()]
    expected = np.einsum("i,ti->t", sea, states[:, ~LAND.ravel(), 0]) / sea.sum()
    np.testing.assert_allclose(known.mean[0], expected.mean(), rtol=1e-6)
    assert found.identity() != data.read_trajectories(tmp_path / "a.nc", states="twice").identity()


@pytest.mark.parametrize(
    ("where", "value", "kind"), [((3, 0, 1), np.nan, "is missing"), ((4, 2, 6), 1.0, "has a value")]
)
def test_land_that_changes_is_refused(where, value, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxop.data.samples._BLOCK", 2 * LAND.size)  # two times at once

    def change(values):
        values[where] = value

    path = write_ocean(tmp_path / "a.nc", change)
    node = where[1] * 12 + where[2]
    with pytest.raises(
        ValueError, match=rf"node {node} {kind} .*in channel 0 at time number {where[0]} of trajectory 0"
    ):
        data.read_trajectories(path, states="sst")
    with pytest.raises(ValueError, match=rf"node {node}, grid index \({where[1]}, {where[2]}\) {kind}"):
        data.read_trajectories(path, states="sst", rule="trapezoid")


def test_missing_nodes_of_arrays(tmp_path):
    states = np.array(U)
    states[:, :, 1, 2, 1] = np.nan
    found = data.read_trajectories(write_hdf5(tmp_path / "a.h5", states=states, times=TIMES), dim=2)
    assert type(found.domain).__name__ == "PointCloud"
    np.testing.assert_array_equal(np.flatnonzero(found.domain.weights == 0), [8])
    assert found.domain.weights.sum() == pytest.approx(23 / 24)
    stacked = np.sort(np.random.default_rng(0).random((3, 24)), axis=1).astype(np.float32)
    states = states.reshape(3, 5, 24, 2)
    path = write_npz(tmp_path / "a.npz", states=states, times=TIMES, coordinates=stacked)
    found = data.read_trajectories(path)
    assert found.domain.points.shape == (3, 24, 1)
    np.testing.assert_array_equal(np.argwhere(found.domain.weights == 0), [[0, 8], [1, 8], [2, 8]])
    states[2, 3, 0, 1] = np.nan
    path = write_npz(tmp_path / "a.npz", states=states, times=TIMES, coordinates=stacked)
    with pytest.raises(ValueError, match=r"node 0 is missing \(NaN\) in channel 1 at time number 3 of trajectory 2"):
        data.read_trajectories(path)
    states[..., 0] = np.nan
    path = write_npz(tmp_path / "a.npz", states=states, times=TIMES, coordinates=stacked)
    with pytest.raises(ValueError, match=r"a\.npz.*missing \(NaN\) at every node at the first time"):
        data.read_trajectories(path)


def test_a_gap_is_not_a_mask(tmp_path):
    states = np.array(U)
    states[1, 2, 0, 0, 1] = np.nan
    path = write_npz(tmp_path / "a.npz", states=states, times=TIMES)
    with pytest.raises(ValueError, match=r"a\.npz.*states\[1, 2, 0, 1\] = nan .*grid index \(0, 0\), channel 1"):
        data.read_trajectories(path, dim=2)


def test_an_infinite_value_beside_missing_nodes_is_named(tmp_path):
    states = np.array(U)
    states[:, :, 1, 2, 1], states[1, 2, 0, 0, 1] = np.nan, np.inf
    path = write_npz(tmp_path / "a.npz", states=states, times=TIMES)
    with pytest.raises(ValueError, match=r"states\[1, 2, 0, 1\] = inf"):
        data.read_trajectories(path, dim=2)


def refused(path, message, error=ValueError, **options):
    with pytest.raises(error, match=message):
        data.read_trajectories(path, **options)


def test_bad_files_and_options_are_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz", **ARRAYS)
    refused(tmp_path / "a.csv", r"the suffix of .*a\.csv='\.csv' is unknown")
    refused(tmp_path / "b.npz", "does not exist; did you mean 'a.npz'", FileNotFoundError)
    refused(path, r"has no dataset 'state'; it has .*did you mean 'states'", states="state")
    refused(path, r"dt=0.1 and times were given; give one", dt=0.1, times=TIMES)
    refused(path, r"nothing reads time_dimension='t'; leave it out", time_dimension="t")
    refused(path, r"expected \(samples, times, \*grid\) = \(3, 5, 4, 6\)", states=["states", "force"], dim=2)
    refused(path, "dim must be at least 1, got 0", dim=0)
    refused(path, r"has no dataset 'clock'", times="clock", dim=2)
    refused(path, r"with dim=1 they must have 3 axes .*or 4", dim=1)
    refused(path, r"shapes disagree: states have shape .*\(3, 5, 5\)", coordinates=["times"])


def test_bad_numbers_in_files_are_refused(tmp_path):
    refused(write_npz(tmp_path / "a.npz", states=U, times=TIMES[::-1]), r"a\.npz.*times\[1\] = 2\.0 lies below", dim=2)
    refused(write_npz(tmp_path / "a.npz", states=U), r"a\.npz has no times 'times'; name them by times", dim=2)
    path = write_npz(tmp_path / "a.npz", states=U, times=TIMES, nu=NU[:2])
    refused(path, r"a\.npz.*parameters must have shape .* = \(3, p\), got \(2, 1\)", dim=2, parameters=["nu"])
    refused(path, "states must name at least one dataset", states=[])
    path = write_npz(tmp_path / "a.npz", states=U, times=TIMES, parameters=3.0)
    refused(path, r"parameters must have shape .*, got \(\)", dim=2)
    path = write_npz(tmp_path / "a.npz", states=U, times=TIMES, nu=NU[:2], re=NU)
    refused(path, r"numbers differ \('nu': 2, 're': 3\)", dim=2, parameters=["nu", "re"])
    refused(write_npz(tmp_path / "a.npz", states=U[0, 0, 0]), r"states must have shape .*got \(6, 2\)", dt=1)


def test_unclear_dimensions_are_refused(tmp_path):
    path = write_dimensions(tmp_path / "a.nc", **ARRAYS)
    refused(path, r"'time', 'y', 'member' before the time \(x\); name the one", states="v", time_dimension="x")
    refused(path, r"'clock' is not time; name it by time_dimension", states="u", time_dimension="clock")
    refused(path, r"'z' should count trajectories", states="u", sample_dimension="z")
    refused(path, r"nothing reads dim=2", states="u", dim=2)
    refused(path, r"has no variable 'w'", states="w")
    refused(path, r"the parameter 'u' has the dimensions", states="u", parameters=["u"])
    found = data.read_trajectories(path, states="u", times=2 * TIMES)
    np.testing.assert_array_equal(found.times, 2 * TIMES)


def test_what_is_not_a_zarr_store(tmp_path):
    refused(tmp_path / "a.zarr", "does not exist; the folder .* has no Zarr store", FileNotFoundError, dt=1)
    (tmp_path / "a.zarr").mkdir()
    refused(tmp_path / "a.zarr", "is not a Zarr store", dt=1)


def test_other_suffixes_are_not_written(tmp_path):
    made = data.Trajectories(U.reshape(3, 5, 24, 2), domains.interval(24), TIMES)
    with pytest.raises(ValueError, match=r"a\.nc has the suffix '\.nc'; trajectories are written as \.npz or HDF5"):
        data.save(tmp_path / "a.nc", made)
