"""Zarr stores: folders of arrays in compressed chunks."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from jaxop._validation import closest, require
from jaxop.data.files._reading import FileError, reading
from jaxop.data.files.open import Archive
from jaxop.data.samples import Part, Rows


class ZarrArray:
    """Array of a Zarr store, of which chunks are read when they are indexed.

    Attributes:
        shape: length of every axis.
        dtype: NumPy dtype.
        dimensions: names of the axes, which xarray writes; () if there are none.
    """

    def __init__(self, path: Path, name: str, array: Any):
        self._path, self._name, self._array = path, name, array
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
        self.dimensions = tuple(names) if all(isinstance(name, str) for name in names) else ()

    def __getitem__(self, index: Rows | Part, /) -> np.ndarray:
        with reading(self._path, "Zarr", f"its array {self._name!r}"):
            return np.asarray(self._array[index])


def open_zarr(path: Path) -> Archive:
    """Opens a Zarr store, a group of arrays or a single array, which has the name "".

    Raises:
        FileNotFoundError: if it does not exist.
        ImportError: if zarr is not installed.
        ValueError: if it is not a Zarr store, or is damaged.
    """
    if not path.exists():
        folder = path.parent
        near = [one.name for one in folder.iterdir() if one.suffix == path.suffix] if folder.is_dir() else []
        hint = closest(path.name, near) if near else f"the folder {folder} has no Zarr store."
        raise FileNotFoundError(f"{path} does not exist; {hint}")
    if not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray", ".zmetadata")):
        raise FileError(f"{path} is not a Zarr store: it is not a folder with zarr.json, .zgroup or .zarray.")
    zarr = require("zarr", f"reading {path}")
    with reading(path, "Zarr"):
        store = zarr.open(str(path), mode="r")

    def find(name: str) -> Any:
        with reading(path, "Zarr", f"its array {name!r}"):
            if not hasattr(store, "arrays"):
                return store if name == "" else None
            found = store.get(name) if name else None
            return found if hasattr(found, "dtype") else None

    def others(names: Collection[str]) -> tuple[list[str], bool]:
        with reading(path, "Zarr", "the list of its arrays"):
            if not hasattr(store, "arrays"):
                return ([] if "" in names else [""]), True
            found = [name for name, member in store.members(max_depth=None) if hasattr(member, "dtype")]
        return sorted(name for name in found if name not in names), True

    return Archive(
        path,
        "Zarr",
        lambda name: find(name) is not None,
        others,
        lambda name: ZarrArray(path, name, find(name)),
        is_lazy=True,
    )
