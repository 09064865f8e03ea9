import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import sys
import warnings
import zipfile

import h5py
import jax
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from jaxop import _validation, data, domains
from jaxop.data.files import _hdf5, _reading
from jaxop.data.files import open as readers

U = np.arange(4 * 3 * 3, dtype=np.float32).reshape(4, 3, 3)
V = -U


def write_npz(path, **arrays):
    np.savez(path, **arrays)


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def write_mat(path, **arrays):
    scipy.io.savemat(path, arrays)


def write_mat73(path, **arrays):
    """What MATLAB writes: HDF5 behind a header of 512 bytes, the axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = np.asarray(array).T
        file["#refs#/a"] = np.zeros(2)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")


FORMATS = {"npz": write_npz, "h5": write_hdf5, "hdf5": write_hdf5, "mat": write_mat, "7.3.mat": write_mat73}
HDF5 = {"h5": write_hdf5, "hdf5": write_hdf5}


@pytest.fixture(params=FORMATS)
def kind(request, tmp_path):
    """A writer of one format and the path to write to."""
    return FORMATS[request.param], tmp_path / f"set.{request.param}"


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
        with pytest.warns(UserWarning, match=f"nothing reads {others}; what is read is "):
            samples = data.read(path, **settings)
        np.testing.assert_allclose(samples.domain.axes[0].nodes, first)
        np.testing.assert_allclose(samples.domain.axes[1].weights, [0.25, 0.5, 0.25])
    with pytest.warns(UserWarning, match="nothing reads 'p', 'q'; what is read is 'x', 'y'"):
        assert data.read(path, coordinates=None).domain.rules == ("midpoint", "midpoint")


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
    with pytest.warns(UserWarning, match="nothing reads 'c'; what is read is 'run/a', 'run/deep/b'"):
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


@pytest.fixture
def good(kind):
    write, path = kind
    write(path, x=U, y=V)
    return path


def refuse(path, message, error=ValueError, **settings):
    with pytest.raises(error, match=message) as caught:
        data.read(path, **settings)
    assert str(path) in str(caught.value)


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
        refuse(path, "is not .npz though its name says so: by its first bytes it is HDF5")
    else:
        with path.open("wb") as file:
            np.savez(file, x=U, y=V)
        refuse(path, "though its name says so: by its first bytes it is a ZIP archive, as .npz is")


@pytest.mark.parametrize("suffix", ["h5", "hdf5", "npz", "mat"])
def test_a_text_file_with_the_name_of_data(tmp_path, suffix):
    path = tmp_path / f"set.{suffix}"
    path.write_text("x,y\n" + "1.0,2.0\n" * 100)
    refuse(path, "of no type known here|truncated or damaged")


def test_a_missing_dataset(good):
    refuse(good, r"has no dataset 'xx'; it has 'x', 'y': did you mean 'x'\?", inputs="xx")
    refuse(good, "has no dataset 'mesh'; it has 'x', 'y'", coordinates="mesh")
    refuse(good, "has no dataset 'w'", weights="w")


def test_a_file_without_datasets(tmp_path):
    path = tmp_path / "set.h5"
    write_hdf5(path)
    refuse(path, r"\(HDF5\) holds no datasets, so none named 'x'")


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


class TestLinksOfHdf5:
    """A dataset is whatever a path leads to."""

    @pytest.fixture(params=["h5", "7.3.mat"])
    def linked(self, request, tmp_path):
        path = tmp_path / f"set.{request.param}"
        FORMATS[request.param](path, **{"run/a": U, "y": V})
        with h5py.File(path, "r+") as file:
            file["soft"] = h5py.SoftLink("/run/a")
            file["run/near"] = h5py.SoftLink("a")
            file["hard"] = file["run/a"]
            file["group"] = h5py.SoftLink("/run")
            file["run/up"] = file["/"]
            file["lost"] = h5py.SoftLink("/nowhere")
            file["circle"] = h5py.SoftLink("/circle")
            file["weights"] = h5py.SoftLink("/gone")
        return path

    @pytest.mark.parametrize(
        "name", ["soft", "hard", "/run/a", "run/near", "group/a", "/run/up/run/up/soft", "run//a/"]
    )
    @pytest.mark.filterwarnings("ignore:.*nothing reads")
    def test_are_followed(self, linked, name):
        samples = data.read(linked, inputs=name, weights=None)
        np.testing.assert_array_equal(samples[[2]].inputs[..., 0], U[[2]].reshape(1, 9))

    def test_of_one_dataset_count_as_read(self, tmp_path):
        path = tmp_path / "set.h5"
        write_hdf5(path, a=U, y=V)
        with h5py.File(path, "r+") as file:
            file["x"], file["z"] = h5py.SoftLink("/a"), file["y"]
        assert len(data.read(path)) == 4

    def test_that_lead_nowhere_are_named(self, linked):
        refuse(linked, "'lost' follows a link to something that is not in the file", inputs="lost", weights=None)
        refuse(linked, "'circle' follows more than 100 links", inputs="circle", weights=None)
        refuse(linked, "'weights' follows a link to something that is not in the file", inputs="hard")
        refuse(linked, "no dataset 'run/a/b'|no dataset 'run'", inputs="run/a/b", weights=None)


class TestCausesOfUnreadableFiles:
    def test_open_for_writing(self, tmp_path):
        path = tmp_path / "set.h5"
        write_hdf5(path, x=U, y=V)
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            refuse(path, "is open for writing in another process; close it there", BlockingIOError)
        assert len(data.read(path)) == 4

    def test_not_closed_by_its_writer(self, tmp_path):
        path, copy = tmp_path / "set.h5", tmp_path / "copy.h5"
        with h5py.File(path, "w", libver="latest") as file:
            file["x"] = U
            file.flush()
            shutil.copy(path, copy)
        refuse(copy, "was opened for writing and not closed: .* h5clear -s")

    def test_compressed_by_a_plugin_that_is_not_loaded(self, tmp_path):
        path = tmp_path / "set.h5"
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4, 9))
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (1,))
        with h5py.File(path, "w") as file:
            space = h5py.h5s.create_simple((4, 9))
            x = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_FLOAT, space, properties)
            x.write_direct_chunk((0, 0), b"compressed")
            file["y"] = V.reshape(4, 9)
        refuse(path, "dataset 'x' is compressed by HDF5 filter 32001 .*not loaded; import hdf5plugin")

    def test_permission_and_device(self, good, monkeypatch):
        for code, error, message in (
            (errno.EACCES, PermissionError, "permission is denied"),
            (errno.ENOENT, FileNotFoundError, "does not exist any more"),
            (errno.EIO, OSError, "the device reports an error"),
        ):

            def broken(*_, code=code, **__):
                raise OSError(code, os.strerror(code))

            with monkeypatch.context() as patch:
                patch.setattr(type(good), "open", broken)
                refuse(good, message, error)

    def test_compression_that_python_lacks(self, tmp_path):
        path = tmp_path / "set.npz"
        write_npz(path, x=U, y=V)
        content = bytearray(path.read_bytes())
        for start, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            content[content.index(start) + offset] = 9  # Deflate64
        path.write_bytes(content)
        refuse(path, "its dataset 'x' cannot be read here .NotImplementedError: .*; store plain arrays")

    @pytest.mark.parametrize("suffix", ["npz", "h5", "7.3.mat"])
    def test_damage_of_any_kind(self, tmp_path, suffix):
        path = tmp_path / f"set.{suffix}"
        FORMATS[suffix](path, x=U, y=V)
        content, rng = path.read_bytes(), np.random.default_rng(0)
        for _ in range(15):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 3):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            with warnings.catch_warnings(), contextlib.suppress(ValueError, TypeError):
                warnings.simplefilter("ignore")
                data.read(path)

    @pytest.mark.parametrize(("offset", "value"), [(0, 177), (-39, 0x08)])
    def test_damage_that_scipy_does_not_survive(self, tmp_path, offset, value):
        path = tmp_path / "set.mat"
        write_mat(path, x=U, y=V)
        content = bytearray(path.read_bytes())
        tag = content.index(b"\x07\0\0\0" + np.int32(U.nbytes).tobytes())  # of the values: their type, then the flags
        content[tag + offset] = value
        path.write_bytes(content)
        refuse(path, r"truncated or damaged: its dataset 'x' cannot be read \(ValueError: an array has parts")


class TestWhatMatlabStores:
    @pytest.mark.parametrize("write", [write_mat, write_mat73])
    def test_empty_options_are_absent(self, tmp_path, write):
        path = tmp_path / "set.mat"
        empty = np.zeros((0, 0))
        write(path, x=U, y=V, coordinates=empty, weights=empty, initial=empty, faces=empty)
        assert data.read(path).domain.rules == ("midpoint", "midpoint")
        refuse(path, "inputs is empty", inputs="weights")

    def test_empty_options_of_version_7_3_are_absent(self, tmp_path):
        path = tmp_path / "set.mat"
        write_mat73(path, x=U, y=V, weights=np.zeros(2, np.uint64))
        with h5py.File(path, "r+") as file:
            file["weights"].attrs["MATLAB_class"] = np.bytes_("double")
            file["weights"].attrs["MATLAB_empty"] = np.uint8(1)
        assert data.read(path).domain.rules == ("midpoint", "midpoint")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (scipy.sparse.csc_matrix(np.eye(4)), r"a sparse matrix; store full\(x\)"),
            (scipy.sparse.csc_matrix(np.eye(4, dtype=bool)), r"a sparse matrix; store full\(x\)"),
            (np.array([U, 1], dtype=object), "a cell array; store one array"),
            ({"a": 1.0}, "a struct; store its fields as variables"),
            ("text", "text; store numbers"),
            (1j * U, "complex numbers .complex64.; store real and imaginary parts"),
        ],
    )
    def test_is_named_if_it_is_no_array(self, tmp_path, value, message):
        path = tmp_path / "set.mat"
        write_mat(path, x=value, y=V)
        refuse(path, message, TypeError)

    @pytest.mark.parametrize(
        ("kind", "message"),
        [("cell", "a cell array"), ("char", "text; store"), ("string", r"an object of MATLAB \(class string\)")],
    )
    def test_is_named_in_version_7_3(self, tmp_path, kind, message):
        path = tmp_path / "set.mat"
        write_mat73(path, x=U, y=V)
        with h5py.File(path, "r+") as file:
            file["x"].attrs["MATLAB_class"] = np.bytes_(kind)
        refuse(path, message, TypeError)

    def test_groups_of_version_7_3_are_named(self, tmp_path):
        path = tmp_path / "set.mat"
        write_mat73(path, **{"x/ir": U, "y/a": V, "z": U})
        with h5py.File(path, "r+") as file:
            file["x"].attrs["MATLAB_class"] = np.bytes_("double")
            file["x"].attrs["MATLAB_sparse"] = np.uint64(4)
            file["z2"] = np.zeros(4, np.dtype([("real", "f4"), ("imag", "f4")]))
        refuse(path, r"dataset 'x' must hold real numbers, but holds a sparse matrix; store full\(x\)", TypeError)
        refuse(path, "dataset 'y' must hold real numbers, but holds a struct", TypeError, inputs="y")
        refuse(path, "dataset 'z2' must hold real numbers, but holds complex numbers", TypeError, inputs="z2")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["a", "b"]), "holds text; store numbers"),
        (np.array(["2026-11-27"], "M8[s]"), "holds times"),
        (np.zeros(3, [("u", "f4"), ("v", "f4")]), "holds records with the fields 'u', 'v'"),
    ],
)
def test_what_is_stored_instead_of_numbers(tmp_path, value, message):
    path = tmp_path / "set.npz"
    write_npz(path, x=value, y=V)
    refuse(path, message, TypeError)


class TestClaimedSizes:
    def test_of_an_npz(self, tmp_path):
        path = tmp_path / "set.npz"
        header = io.BytesIO()
        claim = {"descr": "<f4", "fortran_order": False, "shape": (4, 10**11)}
        np.lib.format.write_array_header_1_0(header, claim)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x.npy", header.getvalue() + bytes(800))
            file.writestr("y.npy", header.getvalue() + bytes(800))
        refuse(path, r"dataset 'x' claims the shape \(4, 100000000000\), 1.6 TB, but the file has at most 800 bytes")

    def test_of_hdf5_with_few_chunks(self, tmp_path):
        path = tmp_path / "set.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("x", (10, 10**11), "f4", chunks=(1, 1000))[0, :10] = 1
            file["y"] = V
        refuse(path, r"dataset 'x' of shape \(10, 100000000000\) was written in part: 1 of its 1000000000 chunks")

    @pytest.mark.parametrize("version", ["4", "5"])
    def test_of_matlab(self, tmp_path, version):
        path = tmp_path / "set.mat"
        scipy.io.savemat(path, {"x": np.ones((4, 7)), "y": np.ones((4, 7))}, format=version)
        seven, many = (np.int32(n).tobytes() for n in (7, 2 * 10**9))
        rows = np.int32(4).tobytes()
        path.write_bytes(path.read_bytes().replace(rows + seven, rows + many))
        refuse(path, r"dataset 'x' claims the shape \(4, 2000000000\), 8 GB, but|x.*cannot be read")

    def test_against_the_memory(self, kind, monkeypatch):
        write, path = kind
        write(path, x=U, y=V)
        monkeypatch.setattr(_reading, "memory", lambda: 30)
        refuse(path, r"dataset 'x' claims the shape \(4, 3, 3\), .* on a machine with 30 bytes of memory")

    def test_that_fit_sample_by_sample(self, tmp_path, monkeypatch):
        write_hdf5(tmp_path / "set.h5", x=U, y=V)
        monkeypatch.setattr(_reading, "memory", lambda: 40)
        assert len(data.read(tmp_path / "set.h5")) == 4

    def test_memory_that_runs_out(self, good, monkeypatch):
        def exhausted(*_, **__):
            raise MemoryError

        monkeypatch.setattr(readers, "from_arrays", exhausted)
        refuse(good, "does not fit into memory")


class TestFillValues:
    """Values that nobody wrote are refused, and other files are read only where that is asked for."""

    @pytest.fixture
    def path(self, tmp_path):
        for i in range(4):
            write_hdf5(tmp_path / f"part{i}.h5", x=U[i])
        path = tmp_path / "set.h5"
        write_hdf5(path, y=V)
        layout, half = h5py.VirtualLayout(U.shape, "f4"), h5py.VirtualLayout(U.shape, "f4")
        for i in range(4):
            layout[i] = h5py.VirtualSource(f"part{i}.h5", "x", U.shape[1:])
        with h5py.File(path, "r+") as file:
            own = h5py.VirtualLayout(U.shape, "f4")
            own[...] = h5py.VirtualSource(file["y"])
            half[:2] = h5py.VirtualSource(file["y"])[:2]
            file.create_virtual_dataset("parts", layout)
            file.create_virtual_dataset("own", own)
            file.create_virtual_dataset("half", half)
            file.create_dataset("never", U.shape, "f4")
            file.create_dataset("chunks", U.shape, "f4", chunks=(1, 3, 3), compression="gzip")[:3] = 1.0
            file.create_dataset("raw", U.shape, "f4", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])[
                ...
            ] = U
            file["link"] = h5py.ExternalLink("whole.h5", "/x")
            file["lost"] = h5py.ExternalLink("gone.h5", "/x")
        write_hdf5(tmp_path / "whole.h5", x=U)
        return path

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("half", "'half' is virtual, and 18 of its values have no source"),
            ("never", r"'never' of shape \(4, 3, 3\) was never written, and would read as fill values"),
            ("chunks", "was written in part: 3 of its 4 chunks are in the file, .* fill values .0.0."),
            ("parts", "'parts' is virtual, with values in another file, 'part0.h5'; pass external=True"),
            ("raw", "'raw' has its values in another file, '.*raw'; pass external=True"),
            ("link", "'link' is a link into another file, 'whole.h5'; pass external=True"),
            ("lost", "'lost' is a link into another file, 'gone.h5'; pass external=True"),
        ],
    )
    def test_are_refused(self, path, name, message):
        refuse(path, message, inputs=name)

    @pytest.mark.parametrize("name", ["parts", "raw", "link"])
    @pytest.mark.filterwarnings("ignore:.*nothing reads")
    def test_other_files_are_read_if_asked_for(self, path, name):
        samples = data.read(path, inputs=name, external=True)
        np.testing.assert_array_equal(samples[[3, 1]].inputs[..., 0], U[[3, 1]].reshape(2, 9))

    @pytest.mark.filterwarnings("ignore:.*nothing reads")
    def test_a_virtual_dataset_of_one_file_is_read(self, path):
        np.testing.assert_array_equal(data.read(path, inputs="own")[[3]].inputs[..., 0], V[[3]].reshape(1, 9))

    def test_other_files_must_be_there(self, path):
        (path.parent / "part2.h5").unlink()
        os.truncate(path.parent / "raw", 100)
        refuse(path, "'parts' is virtual, and its source 'part2.h5' is missing", inputs="parts", external=True)
        refuse(path, r"'raw' needs 144 bytes of the file .*raw, which has 100", inputs="raw", external=True)
        refuse(path, "'lost' is a link to '/x' in 'gone.h5', which cannot be opened", inputs="lost", external=True)
        with h5py.File(path.parent / "part3.h5", "w") as file:
            file.create_dataset("x", U.shape[1:], "f4")
        write_hdf5(path.parent / "part2.h5", x=U[2])
        refuse(path, "'parts' .from 'x' in .*part3.h5. .* was never written", inputs="parts", external=True)


class TestManyGroups:
    """Listing what a file has is bounded."""

    def test_within_each_other(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_hdf5, "_VISITED", 100)
        path = tmp_path / "set.h5"
        with h5py.File(path, "w") as file:
            group, file["y"] = file, V
            for _ in range(2000):
                group = group.create_group("g")
            file["g/" * 20 + "x"] = group["x"] = U
        refuse(path, r"has no dataset 'x'; it has 'y', 'g/g/.*/x', ….")
        assert len(data.read(path, inputs="g/" * 20 + "x")) == 4

    def test_next_to_each_other(self, tmp_path):
        path = tmp_path / "set.h5"
        write_hdf5(path, x=U, y=V, **{f"{i:04d}" + "z" * 500: np.float32(i) for i in range(30)})
        with pytest.warns(UserWarning, match="nothing reads '0000") as caught:
            data.read(path)
        assert len(str(caught[0].message)) < 3000
        with pytest.raises(ValueError, match="has no dataset 'w'") as error:
            data.read(path, inputs="w")
        assert len(str(error.value)) < 3000


CORNERS = np.array([[0, 0], [2, 0], [2, 1], [0, 1]], np.float32)
FACES = np.array([[0, 1, 2], [0, 2, 3]])


class TestMeshes:
    def test_are_read(self, kind):
        write, path = kind
        u = U.reshape(4, 9)[:, :4]
        write(path, x=u, y=-u, coordinates=CORNERS, faces=FACES)
        samples = data.read(path)
        expected = domains.triangle_mesh(CORNERS, FACES)
        assert type(samples.domain) is domains.TriangleMesh
        np.testing.assert_array_equal(samples.domain.weights, expected.weights)
        np.testing.assert_array_equal(samples.domain.faces, FACES)
        assert type(data.read(path, faces=None).domain) is domains.PointCloud

    @pytest.mark.parametrize("write", [write_mat, write_mat73])
    def test_of_matlab_count_from_one(self, tmp_path, write):
        path = tmp_path / "set.mat"
        u = U.reshape(4, 9)[:, :4]
        write(path, x=u, y=-u, coordinates=CORNERS, faces=FACES + 1.0)
        np.testing.assert_array_equal(data.read(path).domain.faces, FACES)
        write(path, x=u, y=-u, coordinates=CORNERS, faces=FACES[:1] + 0.5)
        refuse(path, "faces must be integers")
        write(path, x=u, y=-u, coordinates=CORNERS, faces=np.array([[1.0, 2.0, 3.0]]))
        refuse(path, "faces has indices from 1 to 3 for 4 vertices, which may count from 0 or from 1")
        write(path, x=u, y=-u, coordinates=CORNERS, faces=FACES + 2.0)
        refuse(path, r"faces\[0, 2\] = 4 names no vertex")


DOMAINS = {
    "midpoint box": lambda: domains.box((3, 3), lower=(0.0, -1.0), upper=(2.0, 1.0), rule="midpoint"),
    "mixed rules": lambda: domains.box((3, 3), rule=("trapezoid", "gauss-legendre")),
    "interval": lambda: domains.interval(9, upper=2.0, rule="periodic"),
    "uneven times": lambda: domains.from_samples(np.linspace(0, 1, 9, dtype=np.float32) ** 2),
    "padded times": lambda: domains.pad(domains.from_samples([0.0, 0.5, 2.0]), 9),
    "times of each sample": lambda: jax.vmap(domains.from_samples)(
        np.cumsum(1 + U.reshape(4, 9), axis=1).astype(np.float32)
    ),
    "scattered": lambda: domains.from_nodes(U.reshape(18, 2)[:9], np.arange(9, dtype=np.float32)),
    "mesh": lambda: domains.triangle_mesh(U.reshape(18, 2)[:9] ** 2, np.arange(9).reshape(3, 3)),
    "scattered of each sample": lambda: domains.stack(
        [domains.monte_carlo(i + U.reshape(18, 2)[:9], measure=2.0) for i in range(4)]
    ),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_what_is_saved_is_read_back(tmp_path, name):
    domain = DOMAINS[name]()
    samples = data.Samples(U.reshape(4, 9, 1), V.reshape(4, 9, 1), domain, initial=U[:, 0])
    data.save(tmp_path / "set.npz", samples)
    again = data.read(tmp_path / "set.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["set.npz"]
    assert jax.tree.structure(again.domain) == jax.tree.structure(domain)
    for ours, theirs in zip(jax.tree.leaves(again.domain), jax.tree.leaves(domain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for field in ("inputs", "targets", "initial"):
        np.testing.assert_array_equal(getattr(again, field), getattr(samples, field))


def test_lazily_read_samples_are_saved(tmp_path):
    write_hdf5(tmp_path / "a.h5", x=U, y=V)
    data.save(tmp_path / "b.npz", data.read(tmp_path / "a.h5").take([2, 0]))
    np.testing.assert_array_equal(data.read(tmp_path / "b.npz").inputs[..., 0], U[[2, 0]].reshape(2, 9))


def test_what_cannot_be_saved_is_refused_and_leaves_nothing(tmp_path):
    u = U.reshape(4, 9, 1)
    mesh = domains.triangle_mesh(CORNERS, FACES)
    for path, samples, message in (
        ("set.h5", data.Samples(u, u, domains.interval(9)), "samples are written as .npz"),
        ("set.npz", data.Samples(u, u, domains.interval(9), at=domains.interval(9)), "a domain of their own"),
        ("set.npz", data.Samples(u[:, :4], u[:, :4], domains.stack([mesh] * 4)), "cannot describe .* .TriangleMesh"),
    ):
        with pytest.raises(ValueError, match=message):
            data.save(tmp_path / path, samples)
    assert not list(tmp_path.iterdir())
