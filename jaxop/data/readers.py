"""Readers of a user's files: .npz, HDF5 and MATLAB."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxop._validation import closest, require
from jaxop.data.arrays import from_arrays
from jaxop.data.samples import ArraySource, Samples

FORMATS = (".npz", ".h5", ".hdf5", ".mat")
"""Suffixes that `read` knows."""

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


def read(
    path: str | os.PathLike[str],
    *,
    inputs: str = "x",
    targets: str = "y",
    coordinates: str | Sequence[str] | None = "coordinates",
    weights: str | None = "weights",
    initial: str | None = "initial",
    dim: int | None = None,
    rule: str | Sequence[str] | None = None,
    lower: float | Sequence[float] | None = None,
    upper: float | Sequence[float] | None = None,
) -> Samples:
    """Pairs of functions from a file: .npz, HDF5 (.h5, .hdf5; read lazily), MATLAB (.mat, all versions).

    The arrays mean what they mean in `from_arrays`. Names of datasets inside HDF5 groups are paths,
    "run/a". Coordinates, weights and initial data are optional: those of the default names are used
    if the file has them, any other name must be there, and None leaves them out. Coordinates may be
    spread over one dataset per axis: name them in a sequence, or call them coordinates_0,
    coordinates_1, … in the file. A file written by `save` also holds its rule and box.

    Inputs and targets in HDF5 stay in the file, which is opened anew for every batch and scanned once,
    in blocks, for values that are not finite; chunks that hold single samples read fastest. MATLAB files
    are read into memory (those of version 7.3 are HDF5 with the axes reversed, which is undone).

    Args:
        path: the file; its suffix must be one of `FORMATS`.
        inputs: name of the input functions.
        targets: name of the target functions.
        coordinates: name or names of the coordinates.
        weights: name of the quadrature weights of the nodes.
        initial: name of the data given at the first node.
        dim: space dimension, where the shapes leave it open.
        rule: quadrature rule of the grid, one or one per axis.
        lower: lower corner of the box.
        upper: upper corner of the box.

    Returns:
        `Samples`.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: without h5py or scipy where the format needs it.
        TypeError: for data that are not real numbers.
        ValueError: for an unknown suffix; a file that is empty, truncated or of another type than
            its suffix says; a missing dataset (the message lists those present); anything
            `from_arrays` objects to. Every message names the file.

    Example:
        >>> import tempfile, numpy as np
        >>> from jaxop import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     u = np.ones((10, 32, 32), np.float32)
        ...     np.savez(folder + "/flow.npz", a=u, p=2 * u)
        ...     samples = data.read(folder + "/flow.npz", inputs="a", targets="p")
        >>> samples.inputs.shape, samples.domain.rules
        ((10, 1024, 1), ('midpoint', 'midpoint'))
    """
    archive = _open(Path(path))
    given: dict[str, Any] = {}
    for name, default in ((weights, "weights"), (initial, "initial")):
        if name is not None and (name != default or name in archive.keys):
            given[default] = archive.array(name)
    if "weights" in given:
        given["weights"] = archive.vector(given["weights"])
    nodes = _coordinates(archive, coordinates)
    box = {"rule": rule, "lower": lower, "upper": upper}
    if nodes is None and archive.kind == ".npz" and set(box) <= set(archive.keys):
        written = {name: archive.load(name)[...].tolist() for name in box}
        dim = len(written["lower"]) if dim is None and isinstance(written["lower"], list) else dim
        box = {name: written[name] if value is None else value for name, value in box.items()}
    u, v = archive.array(inputs, lazily=True), archive.array(targets, lazily=True)
    with _naming(archive.path, f"inputs: {inputs!r}, targets: {targets!r}"):
        return from_arrays(u, v, nodes, dim=dim, **box, **given)


class _FileError(ValueError):
    """A fault of a file whose message is complete."""


@dataclasses.dataclass(frozen=True)
class _Archive:
    """An open file: the names of its datasets and how to read one."""

    path: Path
    kind: str
    keys: tuple[str, ...]
    get: Callable[[str], ArraySource]

    def load(self, name: str) -> ArraySource:
        """The dataset as the format has it."""
        if name not in self.keys:
            if not self.keys:
                raise ValueError(f"{self.path} ({self.kind}) holds no datasets, so none named {name!r}.")
            listed = ", ".join(map(repr, self.keys[:_LISTED])) + (", …" if len(self.keys) > _LISTED else "")
            raise ValueError(
                f"{self.path} ({self.kind}) has no dataset {name!r}; it has {listed}: {closest(name, self.keys)}"
            )
        with _damaged(self.path, self.kind, f"its dataset {name!r}"):
            return self.get(name)

    def array(self, name: str, *, lazily: bool = False) -> Any:
        """The dataset, checked to be an array of real numbers; read now unless ``lazily``."""
        source = self.load(name)
        kind = np.dtype(source.dtype).kind if hasattr(source, "dtype") else "O"
        if kind not in "fiub":
            received = f"complex numbers ({source.dtype})" if kind == "c" else f"dtype {getattr(source, 'dtype', '?')}"
            raise TypeError(
                f"{self.path}: dataset {name!r} must hold real numbers, but holds {received}; store a plain array of "
                "numbers, and complex ones as two channels."
            )
        with _damaged(self.path, self.kind, f"its dataset {name!r}"):
            return source if lazily else np.asarray(source[...])

    def vector(self, array: np.ndarray) -> np.ndarray:
        """MATLAB has no arrays of one axis: its rows and columns are vectors."""
        return array.ravel() if self.path.suffix.lower() == ".mat" and array.ndim == 2 and 1 in array.shape else array


def _coordinates(archive: _Archive, names: str | Sequence[str] | None) -> Any:
    """The coordinates of a file: None, an array, or one array per axis."""
    if isinstance(names, str) and names not in archive.keys:
        numbered = []
        while f"{names}_{len(numbered)}" in archive.keys:
            numbered.append(f"{names}_{len(numbered)}")
        if numbered or names == "coordinates":
            names = numbered or None
    if names is None:
        return None
    if isinstance(names, str):
        return archive.vector(archive.array(names))
    return [archive.vector(archive.array(name)) for name in names]


def _open(path: Path) -> _Archive:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}, expected one of {', '.join(FORMATS)}; convert the file, or "
            "read it yourself and pass the arrays to jaxop.data.from_arrays."
        )
    if not path.exists():
        folder = path.parent
        near = [file.name for file in folder.iterdir() if file.suffix.lower() in FORMATS] if folder.is_dir() else []
        hint = closest(path.name, near) if near else f"the folder {folder} has no file that could be read."
        raise FileNotFoundError(f"{path} does not exist; {hint}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the path of a {suffix} file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): whatever wrote it did not finish; write it again.")
    if suffix == ".npz":
        return _open_npz(path)
    return _open_mat(path) if suffix == ".mat" else _open_hdf5(path)


def _open_npz(path: Path) -> _Archive:
    _check_type(path, _starts_with(path, b"PK"), ".npz")
    with _damaged(path, ".npz"), _npz(path) as file:
        keys = tuple(file.files)

    def get(name: str) -> np.ndarray:
        with _npz(path) as file:
            try:
                return file[name]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise _FileError(
                    f"{path}: dataset {name!r} holds Python objects, which are not loaded; store an array of numbers."
                ) from error

    return _Archive(path, ".npz", keys, get)


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[Any]:
    # numpy leaves a file that it opened itself, and found damaged, open
    with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
        yield file


def _open_hdf5(path: Path) -> _Archive:
    h5py = require("h5py", f"reading {path}")
    _check_type(path, h5py.is_hdf5(path), "HDF5")
    return _Archive(path, "HDF5", _hdf5_keys(path), lambda name: _Hdf5Array(path, name))


def _open_mat(path: Path) -> _Archive:
    if _starts_with(path, b"MATLAB 7.3"):
        require("h5py", f"reading {path} (MATLAB 7.3)")
        keys = tuple(key for key in _hdf5_keys(path) if not key.startswith("#"))
        return _Archive(path, "MATLAB 7.3", keys, lambda name: np.asarray(_Hdf5Array(path, name)[...]).T)
    io = require("scipy.io", f"reading {path}")
    # version 4 has no signature; others would be taken for it
    _check_type(path, _signature(path) in (None, "MATLAB 5"), "MATLAB")
    with _damaged(path, "MATLAB"):
        keys = tuple(name for name, *_ in io.whosmat(path))
    return _Archive(path, "MATLAB", keys, lambda name: io.loadmat(path, variable_names=[name])[name])


def _hdf5_keys(path: Path) -> tuple[str, ...]:
    h5py = require("h5py", f"reading {path}")
    keys: list[str] = []
    with _damaged(path, "HDF5"), h5py.File(path, "r") as file:
        file.visititems(lambda name, item: keys.append(name) if isinstance(item, h5py.Dataset) else None)
    return tuple(keys)


class _Hdf5Array:
    """A dataset of an HDF5 file that is open only while rows are read."""

    def __init__(self, path: Path, name: str):
        self._path, self._name = path, name
        with self._dataset() as dataset:
            self.shape, self.dtype = tuple(dataset.shape or ()), dataset.dtype

    def __getitem__(self, index: Any, /) -> np.ndarray:
        with _damaged(self._path, "HDF5", f"its dataset {self._name!r}"), self._dataset() as dataset:
            return dataset[index]

    @contextlib.contextmanager
    def _dataset(self) -> Iterator[Any]:
        with require("h5py", f"reading {self._path}").File(self._path, "r") as file:
            yield file[self._name]


def _starts_with(path: Path, signature: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(signature)) == signature


def _signature(path: Path) -> str | None:
    """The type that the first bytes of a file tell, if any."""
    return next((kind for signature, kind in _SIGNATURES.items() if _starts_with(path, signature)), None)


def _check_type(path: Path, fits: bool, expected: str) -> None:
    if not fits:
        detected = _signature(path) or "of no type known here"
        raise ValueError(
            f"{path} is not {expected} though its name says so: by its first bytes it is {detected}; "
            "give it the suffix of its type, or write it again."
        )


@contextlib.contextmanager
def _damaged(path: Path, kind: str, part: str = "it") -> Iterator[None]:
    """Says which file is damaged, whatever the format's library raises on damaged bytes."""
    try:
        yield
    except (_FileError, ImportError, MemoryError):
        raise
    except Exception as error:
        size = path.stat().st_size if path.exists() else 0
        raise _FileError(
            f"{path} ({kind}, {size} bytes) is truncated or damaged: {part} cannot be read "
            f"({type(error).__name__}: {error}); copy or write the file again."
        ) from error


@contextlib.contextmanager
def _naming(path: Path, names: str) -> Iterator[None]:
    """Adds the file to what is wrong with its contents."""
    try:
        yield
    except _FileError:
        raise
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path} ({names}): {error}") from error
