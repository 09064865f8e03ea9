"""Files with named datasets: .npz, HDF5 and MATLAB."""

import contextlib
import dataclasses
import math
import os
import struct
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxop._validation import near, require, warn_user
from jaxop.data.files import _hdf5
from jaxop.data.files._reading import FileError, check_claim, check_memory, first_bytes, reading
from jaxop.data.samples import ArraySource, Rows

ARCHIVES = (".npz", ".h5", ".hdf5", ".mat")
"""Suffixes of files with named datasets."""

_SIGNATURES = {
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"PK\x03\x04": "a ZIP archive, as .npz is",
    b"\x93NUMPY": "a single NumPy array (.npy)",
    b"MATLAB 5.0": "MATLAB 5",
    b"MATLAB 7.3": "MATLAB 7.3",
    b"CDF": "netCDF-3",
    b"\x1f\x8b": "gzip",
}
_LISTED = 20  # datasets named in a message
_SHOWN = 80  # characters of such a name
_DEFLATE = 1032  # bytes that one compressed byte can represent
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

_MATRIX, _NUMERIC, _COMPLEX = 14, range(6, 16), 0x800  # in MATLAB 5: type of an element, classes, flag
_TYPES = {*range(1, 8), 9, 12, 13, 16, 17, 18}  # of numbers and text there
_MATLAB_NUMBERS = {"double": "f8", "single": "f4", "logical": "?"}
_MATLAB_NUMBERS |= {f"{sign}int{bits}": f"{sign or 'i'}{bits // 8}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_MATLAB_OTHERS = {  # class: what it is, what to store
    "sparse": "a sparse matrix; store full({name})",
    "cell": "a cell array; store one array, such as cat(1, {name}{{:}})",
    "struct": "a struct; store its fields as variables (save with '-struct')",
    "char": "text; store numbers",
}
_MATLAB_OBJECT = "an object of MATLAB (class {kind}); store a plain array of numbers"


@dataclasses.dataclass(frozen=True)
class Archive:
    """File with named datasets.

    Attributes:
        path: the file.
        kind: its format.
        has: tells whether the file has a dataset of this name.
        others: returns some datasets other than those of the given names, and whether these are all.
        get: returns the dataset of a name that exists; its values are read when it is indexed.
        is_lazy: tells whether a part of a dataset can be read.
        read: names of datasets that were read.
        left_out: default names that are not read.
    """

    path: Path
    kind: str
    has: Callable[[str], bool]
    others: Callable[[Collection[str]], tuple[list[str], bool]]
    get: Callable[[str], ArraySource]
    is_lazy: bool = False
    read: set[str] = dataclasses.field(default_factory=set)
    left_out: set[str] = dataclasses.field(default_factory=set)

    @property
    def is_matlab(self) -> bool:
        """Tells whether MATLAB's conventions hold."""
        return self.kind.startswith("MATLAB")

    def source(self, name: str) -> ArraySource:
        """Returns the dataset before it is read."""
        self.read.add(name)
        if self.has(name):
            return self.get(name)
        names, complete = self.others(())
        if not names:
            raise ValueError(f"{self.path} ({self.kind}) holds no datasets, so {shown(name)} is missing.")
        guess = near(name, names, show=shown)
        hint = f": {guess}" if guess else "."
        raise ValueError(
            f"{self.path} ({self.kind}) has no dataset {shown(name)}; it has {listed(names, complete)}{hint}"
        )

    def functions(self, name: str, *, axis: int = 1) -> ArraySource:
        """Returns a dataset of real numbers, which is read row by row, or along ``axis`` axes, if the format allows it.

        One part must fit into memory, or the whole dataset.
        """
        if not self.is_lazy:
            return self.array(name)
        source = self.source(name)
        _check_real(self.path, name, source)
        check_memory(self.path, name, source.shape, source.dtype.itemsize, axis=axis)
        return source

    def array(self, name: str) -> np.ndarray:
        """Reads a dataset of real numbers."""
        source = self.source(name)
        _check_real(self.path, name, source)
        check_memory(self.path, name, source.shape, source.dtype.itemsize)
        array = source[...]
        _check_real(self.path, name, array)
        return array

    def optional(self, name: str | None, default: str) -> np.ndarray | None:
        """Reads a dataset; None if its name is None, or if it has its default name and is missing or empty."""
        if name is None or (name == default and (not self.has(name) or 0 in self.get(name).shape)):
            self.left_out.add(default)
            return None
        return self.array(name)

    def vector(self, array: np.ndarray) -> np.ndarray:
        """Flattens MATLAB's rows and columns, which represent arrays of one axis."""
        return array.ravel() if self.is_matlab and array.ndim == 2 and 1 in array.shape else array

    def warn_of_unread(self, options: str = "inputs, targets, coordinates, weights, initial or faces") -> None:
        """Warns of the datasets that are not read, and names the options that would read them."""
        unread, complete = self.others(self.read | self.left_out)
        if unread:
            warn_user(
                f"{self.path}: nothing reads {listed(unread, complete)}, only {listed(sorted(self.read), True)} are "
                f"read. If more datasets belong to the samples, name them by {options}."
            )


def _check_real(path: Path, name: str, array: ArraySource) -> None:
    kind = getattr(array, "matlab_class", None)
    dtype = np.dtype(array.dtype)
    if hasattr(array, "toarray"):
        kind = "sparse"
    if kind is not None:
        holds = _MATLAB_OTHERS.get(kind, _MATLAB_OBJECT).format(name=name, kind=kind)
    elif dtype.kind in "fiub":
        return
    elif dtype.kind == "c" or set(dtype.names or ()) == {"real", "imag"}:
        holds = f"complex numbers ({dtype}); store real and imaginary parts as two channels"
    elif dtype.kind in "SU" or (dtype.metadata or {}).get("vlen") in (str, bytes):
        holds = "text; store numbers"
    elif dtype.kind in "mM":
        holds = f"times ({dtype}); store them as numbers of seconds or days"
    elif dtype.names:
        holds = f"records with the fields {listed(dtype.names, True)}; store each field as a separate array"
    else:
        holds = f"dtype {dtype}; store a plain array of numbers"
    raise TypeError(f"{path}: dataset {name!r} must hold real numbers, but holds {holds}.")


def listed(names: Sequence[str], complete: bool) -> str:
    """Returns the first names as text."""
    return ", ".join(map(shown, names[:_LISTED])) + ("" if complete and len(names) <= _LISTED else ", …")


def shown(name: str) -> str:
    """Returns a name as text, shortened if it is long."""
    return repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "…")


def coordinates_of(archive: Archive, names: str | Sequence[str] | None) -> np.ndarray | list[np.ndarray] | None:
    """Reads the coordinates of a file, an array or one array per axis; None if there are none."""
    if names is None or (isinstance(names, str) and not archive.has(names)):
        prefix, numbered = names or "coordinates", []
        while archive.has(f"{prefix}_{len(numbered)}"):
            numbered.append(f"{prefix}_{len(numbered)}")
        if names is None:
            archive.left_out.update(("coordinates", *numbered))
            return None
        if numbered or names == "coordinates":
            return [archive.vector(archive.array(name)) for name in numbered] or None
    if isinstance(names, str):
        nodes = archive.optional(names, "coordinates")
        return None if nodes is None else archive.vector(nodes)
    return [archive.vector(archive.array(name)) for name in names]


def box_of(archive: Archive, dim: int | None, given: Mapping[str, Any]) -> tuple[int | None, dict[str, Any]]:
    """Returns dimension, rule and corners of the grid of a file: those that are given, or that `save` wrote."""
    if not all(map(archive.has, given)):
        return dim, dict(given)
    written = {name: archive.source(name)[...].tolist() for name in given if name != "rule"}
    written["rule"] = text_of(archive, "rule")
    dim = len(written["lower"]) if dim is None and isinstance(written["lower"], list) else dim
    return dim, {name: written[name] if value is None else value for name, value in given.items()}


def text_of(archive: Archive, name: str) -> Any:
    """Reads a dataset of text, which HDF5 stores as bytes, as a string or nested lists of them."""

    def decoded(text: Any) -> Any:
        if isinstance(text, list):
            return [decoded(part) for part in text]
        return text.decode() if isinstance(text, bytes) else str(text)

    return decoded(np.asarray(archive.source(name)[...]).tolist())


def counted_from_zero(path: Path, faces: np.ndarray, count: int) -> np.ndarray:
    """Converts the faces of a MATLAB file, whose indices are floating numbers and start at 1 if MATLAB made them."""
    index = faces.astype(np.int64)
    if (index != faces).any() or 0 in index or index.max() > count:
        return index if (index == faces).all() else faces
    if count in index:
        return index - 1
    raise FileError(
        f"{path}: faces has indices from {index.min()} to {index.max()} for {count} vertices, which may count from 0 "
        "or from 1; remove the vertices that do not belong to a face."
    )


def open_archive(path: Path, *, formats: Sequence[str] = ARCHIVES, external: bool = False) -> Archive:
    """Opens a file with named datasets.

    Args:
        path: the file, whose suffix is one of `ARCHIVES`.
        formats: suffixes of files that could be meant instead, if it does not exist.
        external: whether HDF5 may read from other files.

    Raises:
        FileNotFoundError: if it does not exist.
        ImportError: if the format needs a package that is not installed.
        ValueError: if it is empty, damaged or of another type than its suffix.
    """
    kind = {".npz": ".npz", ".mat": "MATLAB"}.get(path.suffix.lower(), "HDF5")
    start = first_bytes(path, kind, formats)
    if kind == ".npz":
        return _open_npz(path, start)
    return _open_mat(path, start, external=external) if kind == "MATLAB" else _open_hdf5(path, start, external=external)


def _open_npz(path: Path, start: bytes) -> Archive:
    _check_type(path, start, start.startswith(b"PK"), ".npz")
    with reading(path, ".npz"), zipfile.ZipFile(path) as file:
        members = {member.removesuffix(".npy"): member for member in file.namelist()}
    return Archive(path, ".npz", members.__contains__, _others(members), lambda name: _NpzArray(path, name, members))


class _NpzArray:
    """Array in an .npz file, of which only the header is read at first."""

    def __init__(self, path: Path, name: str, members: dict[str, str]):
        self._path, self._name, self._member = path, name, members[name]
        with self._opened() as (file, size):
            magic = file.read(len(np.lib.format.MAGIC_PREFIX))
            if magic != np.lib.format.MAGIC_PREFIX:
                raise FileError(f"{path}: {self._member!r} is not an array (.npy); write the file with numpy.savez.")
            version = file.read(2)
            read_header = _HEADERS.get((version[0], version[1]))
            if read_header is None:
                raise FileError(f"{path}: dataset {name!r} has version {tuple(version)} of .npy; store plain numbers.")
            self.shape, _, self.dtype = read_header(file)
            left = size - file.tell()
        if self.dtype.hasobject:
            raise FileError(
                f"{path}: dataset {name!r} holds Python objects, which are not loaded; store an array of numbers."
            )
        check_claim(path, name, self.shape, math.prod(self.shape) * self.dtype.itemsize, left)

    def __getitem__(self, index: Rows, /) -> np.ndarray:
        with self._opened() as (file, _):
            return np.lib.format.read_array(file, allow_pickle=False)[index]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], int]]:
        part = f"its dataset {self._name!r}"
        with (
            reading(self._path, ".npz", part),
            zipfile.ZipFile(self._path) as archive,
            archive.open(self._member) as file,
        ):
            yield file, archive.getinfo(self._member).file_size


def _open_hdf5(path: Path, start: bytes, *, external: bool) -> Archive:
    require("h5py", f"reading {path}")
    with reading(path, "HDF5"):
        fits = _hdf5.has_signature(path)
    _check_type(path, start, fits, "HDF5")

    def has(name: str) -> bool:
        return _hdf5.is_dataset(path, name, external=external) is True

    def get(name: str) -> ArraySource:
        return _hdf5.Hdf5Array(path, name, external=external)

    return Archive(path, "HDF5", has, lambda names: _hdf5.others(path, names), get, is_lazy=True)


def _open_mat(path: Path, start: bytes, *, external: bool) -> Archive:
    if start.startswith(b"MATLAB 7.3"):
        require("h5py", f"reading {path} (MATLAB 7.3)")

        def has(name: str) -> bool:
            return _hdf5.is_dataset(path, name, external=external) is not None

        def others(names: Collection[str]) -> tuple[list[str], bool]:
            found, complete = _hdf5.others(path, names)
            return [name for name in found if not name.startswith("#")], complete

        return Archive(path, "MATLAB 7.3", has, others, lambda name: _Mat73Array(path, name, external=external))
    io = require("scipy.io", f"reading {path}")
    # version 4 has no signature, and other files would pass for it
    _check_type(path, start, _signature(start) in (None, "MATLAB 5"), "MATLAB")
    with reading(path, "MATLAB"):
        is_version_5 = io.matlab.matfile_version(path)[0] == 1
        variables = {name: (shape, kind) for name, shape, kind in io.whosmat(path)}

    def get(name: str) -> ArraySource:
        return _MatArray(path, name, *variables[name], is_version_5=is_version_5)

    return Archive(path, "MATLAB", variables.__contains__, _others(variables), get)


class _MatArray:
    """Variable of a MATLAB file up to version 7, whose header was read."""

    def __init__(self, path: Path, name: str, shape: Sequence[int], kind: str, *, is_version_5: bool):
        self._path, self._name, self._is_version_5 = path, name, is_version_5
        self.shape, self.dtype = tuple(shape), np.dtype(_MATLAB_NUMBERS.get(kind, object))
        self.matlab_class = None if kind in _MATLAB_NUMBERS else kind
        # before compression, an entry of any class takes at least a byte
        stored = path.stat().st_size * (_DEFLATE if is_version_5 else 1)
        if self.matlab_class is None:
            check_claim(path, name, self.shape, math.prod(self.shape), stored)

    def __getitem__(self, index: Rows, /) -> Any:
        with reading(self._path, "MATLAB", f"its dataset {self._name!r}"):
            if self._is_version_5:
                _check_parts(self._path)
            value = require("scipy.io", f"reading {self._path}").loadmat(self._path, variable_names=[self._name])
            return value[self._name] if hasattr(value[self._name], "toarray") else value[self._name][index]


def _check_parts(path: Path) -> None:
    """Raises ``ValueError`` if an array of version 5 lacks a part, because scipy would end the process."""
    with path.open("rb") as file:
        file.seek(126)
        order = "<" if file.read(2) == b"IM" else ">"
        size, start = file.seek(0, os.SEEK_END), 128

        def words(offset: int) -> tuple[int, int]:
            file.seek(offset)
            return struct.unpack(order + "II", file.read(8))

        while start + 24 <= size:
            kind, length = words(start)
            flags, parts, offset, end = words(start + 16)[0], [], start + 8, min(start + 8 + length, size)
            while kind == _MATRIX and flags & 0xFF in _NUMERIC and offset + 8 <= end:
                code, length_of_part = words(offset)
                parts.append(code & 0xFFFF if code >> 16 else code)
                offset += 8 if code >> 16 else 8 + length_of_part + -length_of_part % 8
            # flags, shape, name, real and imaginary part
            if parts and (len(parts) < 4 + bool(flags & _COMPLEX) or not _TYPES.issuperset(parts)):
                raise ValueError(f"an array has parts of the types {parts[:5]}")
            start += 8 + length


class _Mat73Array:
    """Variable of a MATLAB 7.3 file, which is HDF5 with reversed axes and with marks on what is not an array."""

    def __init__(self, path: Path, name: str, *, external: bool):
        is_group, marks = _hdf5.matlab_marks(path, name, external=external)
        kind = str(marks.get("MATLAB_class", "double"))
        self._source, self.shape, self.dtype = None, (), np.dtype(object)
        if is_group:
            kind = "sparse" if "MATLAB_sparse" in marks else "struct"
        else:
            self._source = _hdf5.Hdf5Array(path, name, external=external)
            # instead of an empty array, its shape is stored
            shape = self._source[...].tolist() if "MATLAB_empty" in marks else self._source.shape[::-1]
            self.shape, self.dtype = tuple(shape), self._source.dtype
        self.matlab_class = None if kind in _MATLAB_NUMBERS else kind

    def __getitem__(self, index: Rows, /) -> np.ndarray:
        if self._source is None or 0 in self.shape:
            return np.zeros(self.shape, self.dtype)[index]
        return self._source[...].T[index]


def _others(names: Iterable[str]) -> Callable[[Collection[str]], tuple[list[str], bool]]:
    return lambda without: ([name for name in names if name not in without], True)


def _signature(start: bytes) -> str | None:
    """Returns the type of a file by its first bytes, or None if they are unknown."""
    return next((kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)), None)


def _check_type(path: Path, start: bytes, fits: bool, expected: str) -> None:
    if not fits:
        detected = _signature(start) or "of an unknown type"
        raise FileError(
            f"{path} is not {expected} although its name says so: by its first bytes it is {detected}; "
            "give it the suffix of its type, or write it again."
        )
