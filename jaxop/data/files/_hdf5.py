"""Datasets of HDF5 files: links are followed, rows are read lazily, and fill values do not pass for data."""

import collections
import contextlib
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxop._validation import require
from jaxop.data._open_files import opened_once
from jaxop.data.files._reading import FileError, check_claim, reading
from jaxop.data.samples import Part, Rows

if TYPE_CHECKING:
    import h5py

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VISITED = 1000  # links that are followed for a list of datasets
_HOPS = 100  # soft and external links that one path may follow
_PERMISSION = (
    "pass external=True to read from other files (train.py --data.external, evaluate.py --external), or copy the "
    "values into this one"
)


class Hdf5Array:
    """Dataset of an HDF5 file, which is open only while rows are read.

    Args:
        path: the file.
        name: path of the dataset in the file.
        external: whether its values may come from other files.

    Attributes:
        shape: length of every axis; (0,) for a null dataspace.
        dtype: NumPy dtype.
    """

    def __init__(self, path: Path, name: str, *, external: bool):
        self._path, self._name, self._external = path, name, external
        with self._dataset() as dataset, reading(path, "HDF5", f"its dataset {name!r}"):
            self.shape, self.dtype = (0,) if dataset.shape is None else tuple(dataset.shape), dataset.dtype
        if 0 not in self.shape:
            check_written(path, name, external=external)

    def __getitem__(self, index: Rows | Part, /) -> np.ndarray:
        with self._dataset() as dataset, reading(self._path, "HDF5", f"its dataset {self._name!r}"):
            try:
                return dataset[index]
            except OSError as error:
                _check_filters(self._path, self._name, dataset, error)
                raise

    @contextlib.contextmanager
    def _dataset(self) -> Iterator["h5py.Dataset"]:
        with opened(self._path) as file:
            with reading(self._path, "HDF5", f"its dataset {self._name!r}"):
                dataset = find(self._path, file, self._name, external=self._external)
            if not hasattr(dataset, "dtype"):
                raise FileError(f"{self._path} has no dataset {self._name!r} any more; it had one when it was opened.")
            yield dataset


def opened(path: Path) -> contextlib.AbstractContextManager[Any]:
    """Opens the file for reading and closes it at the end, or at the end of a block of `kept_open`."""
    return opened_once(("HDF5", path), lambda: _open(path))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    with reading(path, "HDF5"):
        file = require("h5py", f"reading {path}").File(path, "r")
    with file:
        yield file


def has_signature(path: Path) -> bool:
    """Tells whether the file is HDF5, with or without a user block in front."""
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            if file.read(len(_SIGNATURE)) == _SIGNATURE:
                return True
            offset = max(512, 2 * offset)
    return False


def find(path: Path, group: Any, name: str, *, external: bool) -> Any:
    """Returns the dataset or group at the end of a path from a group or file, or None if the path leads nowhere.

    Links are followed one by one, so that other files are opened only if this is allowed.
    """
    h5py = require("h5py", f"reading {path}")
    group = group["/"] if name.startswith("/") else group
    parts, hops = collections.deque(_parts(name)), 0
    while parts:
        part = parts.popleft()
        link = group.get(part, getlink=True)
        if link is None:
            if hops:
                raise FileError(
                    f"{path}: {name!r} follows a link to something that is not in the file; write it again."
                )
            return None
        hops += not isinstance(link, h5py.HardLink)
        if hops > _HOPS:
            raise FileError(f"{path}: {name!r} follows more than {_HOPS} links; they may form a circle.")
        if isinstance(link, h5py.SoftLink):
            group = group.file["/"] if link.path.startswith("/") else group
            parts.extendleft(reversed(_parts(link.path)))
            continue
        if isinstance(link, h5py.ExternalLink) and not external:
            raise FileError(f"{path}: {name!r} is a link into another file, {link.filename!r}; {_PERMISSION}.")
        try:
            item = group[part]
        except KeyError as error:
            if not isinstance(link, h5py.ExternalLink):
                raise
            raise FileError(
                f"{path}: {name!r} is a link to {link.path!r} in {link.filename!r}, which cannot be opened "
                f"({error.args[0]}); put that file into the folder of this one."
            ) from error
        if isinstance(item, h5py.Dataset):
            if parts:
                return None
            if not item.external:
                return item
            del item  # HDF5 opens it in another way only if nothing holds it
            return _beside(path, group, part)
        if not isinstance(item, h5py.Group):
            return None
        group = item
    return group


def is_dataset(path: Path, name: str, *, external: bool) -> bool | None:
    """Tells whether a path in the file leads to a dataset; False for a group, None if it leads nowhere."""
    with opened(path) as file, reading(path, "HDF5", f"its dataset {name!r}"):
        item = find(path, file, name, external=external)
        return None if item is None else hasattr(item, "dtype")


def others(path: Path, names: Collection[str]) -> tuple[list[str], bool]:
    """Returns datasets to which no name in ``names`` leads, nearest to the root first, and whether these are all.

    At most a thousand links are followed, however deep or wide the file is, and no other file is opened.
    """
    h5py = require("h5py", f"reading {path}")
    found: list[str] = []
    with opened(path) as file, reading(path, "HDF5", "the list of its datasets"):
        root = file["/"]
        known = {_address(item) for name in names if (item := _find_here(path, root, name)) is not None}
        groups, seen, visited = collections.deque([("", root)]), {_address(root)}, 0
        left_out = {"/".join(_parts(name)) for name in names}
        while groups:
            prefix, group = groups.popleft()
            for part in group:
                visited += 1
                if visited > _VISITED:
                    return found, False
                name, item = prefix + part, _find_here(path, group, part)
                if not isinstance(item, h5py.Group):
                    if name not in left_out and (item is None or _address(item) not in known):
                        found.append(name)
                elif isinstance(group.get(part, getlink=True), h5py.HardLink) and _address(item) not in seen:
                    seen.add(_address(item))
                    groups.append((name + "/", item))
    return found, True


def groups_with(path: Path, names: Collection[str]) -> list[str]:
    """Returns the groups at the root of the file in which one of the names leads to a dataset of this file."""
    h5py = require("h5py", f"reading {path}")
    with opened(path) as file, reading(path, "HDF5", "the list of its groups"):
        found = {name: _find_here(path, file["/"], name) for name in file["/"]}
        return [
            name
            for name, group in found.items()
            if isinstance(group, h5py.Group)
            and any(isinstance(_find_here(path, group, n), h5py.Dataset) for n in names)
        ]


def _find_here(path: Path, group: Any, name: str) -> Any:
    """Returns the dataset or group at the end of a path, or None if the path leads nowhere or into another file."""
    with contextlib.suppress(FileError):
        return find(path, group, name, external=False)
    return None


def matlab_marks(path: Path, name: str, *, external: bool) -> tuple[bool, dict[str, object]]:
    """Tells whether a variable of MATLAB 7.3 is a group, and returns the attributes that name its class."""
    with opened(path) as file, reading(path, "HDF5", f"its dataset {name!r}"):
        item = find(path, file, name, external=external)
        marks = {key: item.attrs[key] for key in ("MATLAB_class", "MATLAB_empty", "MATLAB_sparse") if key in item.attrs}
        if "MATLAB_class" in marks:
            marks["MATLAB_class"] = np.bytes_(marks["MATLAB_class"]).decode(errors="replace")
        return not hasattr(item, "dtype"), marks


def check_written(path: Path, name: str, *, external: bool) -> None:
    """Raises ``FileError`` unless every value of a dataset was written, because HDF5 silently fills in missing values.

    The sources of a virtual dataset and the files of an external dataset must exist.
    """
    pending, seen = [(path, name)], set()
    while pending:
        where = pending.pop()
        if where in seen:
            continue
        seen.add(where)
        with opened(where[0]) as file:
            label = f"{path}: dataset {name!r}" + (
                "" if where == (path, name) else f" (from {where[1]!r} in {where[0]})"
            )
            with reading(where[0], "HDF5", f"its dataset {where[1]!r}"):
                dataset = find(where[0], file, where[1], external=external)
                if not hasattr(dataset, "dtype"):
                    raise FileError(f"{label} is missing and would read as fill values; put it back.")
                if dataset.is_virtual:
                    pending.extend(_sources(label, dataset, external=external))
                elif dataset.external:
                    _check_external(label, dataset, external=external)
                else:
                    _check_allocated(label, dataset)
                    _check_extent(dataset)


def _sources(label: str, dataset: Any, *, external: bool) -> list[tuple[Path, str]]:
    """Returns file and name of every source of a virtual dataset."""
    own, found, covered = Path(dataset.file.filename), set(), 0
    for source in dataset.virtual_sources():
        covered += source.vspace.get_select_npoints()
        if "%b" in source.file_name + source.dset_name:
            raise FileError(f"{label} is virtual, with sources by a pattern, {source.file_name!r}; copy it into one.")
        if source.file_name == ".":
            found.add((own, source.dset_name))
            continue
        if not external:
            raise FileError(f"{label} is virtual, with values in another file, {source.file_name!r}; {_PERMISSION}.")
        # the search order of HDF5: the path in the name, then the folder of the file
        places = own.parent / source.file_name, own.parent / Path(source.file_name).name
        place = next((place for place in places if place.is_file()), None)
        if place is None:
            raise FileError(
                f"{label} is virtual, and its source {source.file_name!r} is missing: those values would read as "
                f"fill values; put the file into {own.parent}."
            )
        found.add((place, source.dset_name))
    if covered < dataset.size:
        raise FileError(f"{label} is virtual, and {dataset.size - covered} of its values have no source; write them.")
    return sorted(found)


def _check_external(label: str, dataset: Any, *, external: bool) -> None:
    folder, left = Path(dataset.file.filename).parent, dataset.id.get_storage_size()
    for name, offset, size in dataset.external:
        if not external:
            raise FileError(f"{label} has its values in another file, {name!r}; {_PERMISSION}.")
        part, file = min(size, left), folder / name
        present = file.stat().st_size if file.is_file() else 0
        if present < offset + part:
            raise FileError(
                f"{label} needs {offset + part} bytes of the file {file}, which "
                + (f"has {present}: the rest would read as zeros; copy it again." if file.is_file() else "is missing.")
            )
        left -= part


def _check_allocated(label: str, dataset: "h5py.Dataset") -> None:
    size = f"of shape {dataset.shape}"
    if dataset.chunks is None:
        if not dataset.id.get_storage_size():
            raise FileError(f"{label} {size} was never written and would read as fill values; write it.")
        return
    needed = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    written = dataset.id.get_num_chunks()
    if written < needed:
        raise FileError(
            f"{label} {size} was written in part: {written} of its {needed} chunks are in the file, and the others "
            f"would read as fill values ({dataset.fillvalue}); write them, or keep only the written part."
        )


def _check_extent(dataset: Any) -> None:
    path = Path(dataset.file.filename)
    if dataset.chunks is None and (offset := dataset.id.get_offset()) is not None:
        claimed = max(dataset.id.get_storage_size(), math.prod(dataset.shape) * dataset.id.get_type().get_size())
        check_claim(path, dataset.name, dataset.shape, claimed, path.stat().st_size - offset)


def _check_filters(path: Path, name: str, dataset: "h5py.Dataset", error: Exception) -> None:
    """Raises ``FileError`` if the filter that compressed the dataset is not available."""
    h5z = require("h5py", f"reading {path}").h5z
    properties = dataset.id.get_create_plist()
    for code, _, _, label in (properties.get_filter(i) for i in range(properties.get_nfilters())):
        if not h5z.filter_avail(code):
            raise FileError(
                f"{path}: dataset {name!r} is compressed by HDF5 filter {code} "
                f"{label.decode(errors='replace')!r}, whose plugin is not loaded; import hdf5plugin (pip install "
                "hdf5plugin) or set HDF5_PLUGIN_PATH to the folder of the plugin, or write it again with gzip "
                "(h5repack -f GZIP=4)."
            ) from error


def _beside(path: Path, group: "h5py.Group", part: str) -> "h5py.Dataset":
    """Opens a dataset whose external storage is in the folder of its file instead of the current directory."""
    h5py = require("h5py", f"reading {path}")
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")
    return h5py.Dataset(h5py.h5d.open(group.id, part.encode("utf-8", "surrogateescape"), access))


def _address(item: "h5py.Dataset | h5py.Group") -> int:
    return require("h5py", "reading HDF5").h5o.get_info(item.id).addr


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]
