"""A file of any format becomes samples, or an error that says what to do."""

import os
import re
import sys

import h5py
import numpy as np
import pytest

from jaxop import _validation, data
from tests.data.files.cases import FORMATS, U, V, refuse, write_hdf5, write_mat


def test_every_format_gives_the_same_samples(kind):
    write, path = kind
    write(path, x=U, y=V, initial=U[:, 0])
    samples = data.read(path)
    assert samples.domain.rules == ("midpoint", "midpoint")
    assert samples.domain.shape == (3, 3)
    batch = samples[[3, 1]]
    np.testing.assert_array_equal(batch.inputs[..., 0], U[[3, 1]].reshape(2, 9))
    np.testing.assert_array_equal(batch.targets[..., 0], V[[3, 1]].reshape(2, 9))
    np.testing.assert_array_equal(batch.initial, U[[3, 1], 0])


def test_names_rules_and_boxes_can_be_chosen(kind):
    write, path = kind
    write(path, a=U, u=np.stack([U, V], axis=-1))
    samples = data.read(str(path), inputs="a", targets="u", dim=2, rule="periodic", upper=2.0)
    assert samples.domain.rules == ("periodic", "periodic")
    assert samples.targets.shape == (4, 9, 2)
    np.testing.assert_allclose(samples.domain.measure, 4.0, rtol=1e-6)


def test_coordinates_of_a_grid(kind):
    write, path = kind
    first, second = np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.5, 1.0])
    write(path, x=U, y=V, coordinates_0=first, coordinates_1=second, p=first, q=second)
    for settings, others in (({}, "'p', 'q'"), ({"coordinates": ["p", "q"]}, "'coordinates_0', 'coordinates_1'")):
        with pytest.warns(UserWarning, match=f"nothing reads {others}, only .* are read"):
            samples = data.read(path, **settings)
        np.testing.assert_allclose(samples.domain.axes[0].nodes, first)
        np.testing.assert_allclose(samples.domain.axes[1].weights, [0.25, 0.5, 0.25])
    with pytest.warns(UserWarning, match="nothing reads 'p', 'q', only 'x', 'y' are read"):
        assert data.read(path, coordinates=None).domain.rules == ("midpoint", "midpoint")


def test_none_leaves_out_what_the_file_does_not_have(tmp_path):
    """The record of a run of an earlier version has None for every name that this version added."""
    np.savez(tmp_path / "set.npz", x=U, y=V)
    left_out = dict.fromkeys(("coordinates", "weights", "initial", "faces", "offsets", "at", "sample_dimension"))
    assert data.read(tmp_path / "set.npz", **left_out).domain.shape == (3, 3)


def test_coordinates_of_one_axis(kind):
    write, path = kind
    write(path, x=U, y=V, coordinates=np.array([0.0, 1.0, 3.0]), weights=np.array([1.0, 0.0, 2.0]))
    samples = data.read(path)
    np.testing.assert_allclose(samples.domain.axes[0].nodes, [0.0, 1.0, 3.0])
    np.testing.assert_allclose(samples.domain.weights, [1.0, 0.0, 2.0])
    np.testing.assert_allclose(data.read(path, weights=None).domain.weights, [0.5, 1.5, 1.0])


def test_times_of_each_sample(kind):
    write, path = kind
    times = np.cumsum(1 + U[..., 0], axis=1)
    write(path, x=U[..., 0], y=V[..., 0], t=times)
    samples = data.read(path, coordinates="t")
    np.testing.assert_allclose(samples.domain.axes[0].nodes, times)


def test_hdf5_is_read_lazily_from_groups(tmp_path):
    path = tmp_path / "set.h5"
    write_hdf5(path, **{"run/a": U, "run/deep/b": V, "c": U})
    with pytest.warns(UserWarning, match="nothing reads 'c', only 'run/a', 'run/deep/b' are read"):
        samples = data.read(path, inputs="run/a", targets="run/deep/b")
    assert not isinstance(samples.inputs, np.ndarray)
    assert samples.inputs.shape == (4, 9, 1)
    with h5py.File(path, "r+") as file:
        file["run/a"][2] = 7.0
    np.testing.assert_array_equal(samples[[2, 2, 0]].inputs[:, 0, 0], [7.0, 7.0, 0.0])
    part = samples.take([3, 0])
    np.testing.assert_array_equal(part[[0, 1]].targets[..., 0], V[[3, 0]].reshape(2, 9))
    found = data.statistics(samples.targets, samples.domain)
    np.testing.assert_allclose(found.mean, [V.mean()], rtol=1e-5)


def test_float64_files_warn_once(kind, monkeypatch):
    monkeypatch.setattr(_validation, "_warned_about_float64", set())
    write, path = kind
    write(path, x=U.astype(np.float64), y=V.astype(np.float64), coordinates=np.array([0.0, 0.1, 0.3]))
    with pytest.warns(UserWarning, match="float64 but JAX runs in 32 bits") as caught:
        samples = data.read(path)
    assert len(caught) == 1
    assert samples.inputs.dtype == np.float64
    assert samples[[0]].inputs.dtype == np.float32


def test_a_missing_file(good):
    refuse(good.with_name("sets" + good.suffix), "does not exist; did you mean 'set", FileNotFoundError)
    refuse(good.parent / "nowhere" / "set.npz", "no file that could be read", FileNotFoundError)


def test_an_empty_file(kind):
    _, path = kind
    path.touch()
    refuse(path, r"is empty \(0 bytes\)")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_truncated_file(kind, share):
    write, path = kind
    rng = np.random.default_rng(0)
    write(path, x=rng.standard_normal((20, 30)).astype(np.float32), y=rng.standard_normal((20, 30)).astype(np.float32))
    os.truncate(path, int(share * path.stat().st_size))
    refuse(path, "truncated or damaged|has no dataset|holds no datasets")


def test_a_truncated_hdf5_file_says_so(tmp_path):
    path = tmp_path / "set.h5"
    write_hdf5(path, x=U, y=V)
    os.truncate(path, path.stat().st_size - 8)
    refuse(path, r"\(HDF5, \d+ bytes\) is truncated or damaged")


@pytest.mark.parametrize("suffix", ["h5", "hdf5", "npz", "mat"])
def test_a_file_of_another_type(tmp_path, suffix):
    path = tmp_path / f"set.{suffix}"
    if suffix == "npz":
        write_hdf5(path, x=U, y=V)
        refuse(path, "is not .npz although its name says so: by its first bytes it is HDF5")
    else:
        with path.open("wb") as file:
            np.savez(file, x=U, y=V)
        refuse(path, "although its name says so: by its first bytes it is a ZIP archive, as .npz is")


@pytest.mark.parametrize("suffix", ["h5", "hdf5", "npz", "mat"])
def test_a_text_file_with_the_name_of_data(tmp_path, suffix):
    path = tmp_path / f"set.{suffix}"
    path.write_text("x,y\n" + "1.0,2.0\n" * 100)
    refuse(path, "of an unknown type|truncated or damaged")


def test_a_missing_dataset(good):
    refuse(good, r"has no dataset 'xx'; it has 'x', 'y': did you mean 'x'\?", inputs="xx")
    refuse(good, "has no dataset 'mesh'; it has 'x', 'y'", coordinates="mesh")
    refuse(good, "has no dataset 'w'", weights="w")


def test_a_file_without_datasets(tmp_path):
    path = tmp_path / "set.h5"
    write_hdf5(path)
    refuse(path, r"\(HDF5\) holds no datasets, so 'x' is missing")


def test_shapes_that_disagree(kind):
    write, path = kind
    write(path, x=U, y=V[:3])
    refuse(path, r"\(inputs: 'x', targets: 'y'\): shapes disagree: inputs has 4 samples")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(kind, value):
    write, path = kind
    bad = V.copy()
    bad[2, 1, 0] = bad[3, 0, 0] = value
    write(path, x=U, y=bad)
    refuse(path, re.escape(f"targets[2, 3, 0] = {value} (sample 2, grid index (1, 0), channel 0)"))


def test_an_empty_dataset(kind):
    write, path = kind
    write(path, x=U[:0], y=V[:0])
    refuse(path, r"inputs is empty: its shape is \(0, ")


def test_an_unknown_suffix(tmp_path):
    refuse(tmp_path / "set.csv", r"has the suffix '.csv', expected one of .npz, .h5, .hdf5, .mat")


def test_a_folder(tmp_path):
    (tmp_path / "set.h5").mkdir()
    refuse(tmp_path / "set.h5", "is not a file")


def test_data_that_are_not_real(kind):
    write, path = kind
    write(path, x=U.astype(np.complex64), y=V)
    refuse(path, r"dataset 'x' must hold real numbers, but holds complex numbers \(complex64\)", TypeError)


def test_python_objects(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, x=np.array([{}, {}], dtype=object), y=V)
    refuse(path, "dataset 'x' holds Python objects")


def test_cells_and_text_of_matlab(tmp_path):
    path = tmp_path / "set.mat"
    write_mat(path, x=np.array([U, 1], dtype=object), y="text")
    refuse(path, "dataset 'x' must hold real numbers, but holds a cell array; store one array", TypeError)
    refuse(path, "dataset 'y' must hold real numbers, but holds text; store numbers", TypeError, inputs="y")


def test_damage_found_while_reading_names_the_file(tmp_path):
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        noise = np.random.default_rng(0).standard_normal((4, 100))
        file.create_dataset("x", data=noise.astype(np.float32), chunks=(1, 100), compression="gzip", fletcher32=True)
        file["y"] = noise.astype(np.float32)
        offset = file["x"].id.get_chunk_info(2).byte_offset
    with path.open("r+b") as file:
        file.seek(offset + 20)
        file.write(b"\x00" * 40)
    refuse(path, r"truncated or damaged: its dataset 'x' cannot be read")


@pytest.mark.parametrize(("suffix", "package"), [("h5", "h5py"), ("mat", "scipy")])
def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, suffix, package):
    path = tmp_path / f"set.{suffix}"
    FORMATS[suffix](path, x=U, y=V)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.io", None)
    refuse(path, rf"needs {package}; install it with: pip install 'jaxop\[data\]'", ImportError)
