"""Why a file cannot be read, what it claims to hold, and what HDF5 stores besides numbers."""

import contextlib
import errno
import fcntl
import io
import os
import shutil
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from jaxop import data
from jaxop.data.files import _hdf5, _reading
from jaxop.data.files import read as readers
from tests.data.files.cases import FORMATS, U, V, refuse, write_hdf5, write_mat, write_npz


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
    @pytest.mark.sample(5)
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
            ("never", r"'never' of shape \(4, 3, 3\) was never written and would read as fill values"),
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
