"""Files of samples with their own nodes: joined rows with offsets, one group or one .npz file for each sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxop import domains
from jaxop._validation import first_index, float_dtype, warn_user
from jaxop.data.files import _hdf5
from jaxop.data.files._reading import naming
from jaxop.data.files.layout import from_arrays
from jaxop.data.files.on_demand import OnDemand, natural_order
from jaxop.data.files.open import Archive, open_archive
from jaxop.data.ragged import RaggedSamples
from jaxop.data.sample import Sample
from jaxop.domains.domain import as_domain

Names = Mapping[str, tuple[str, ...]]
"""Names of the datasets of inputs, targets, coordinates, weights, initial and faces; an empty tuple leaves one out."""

_ROWS = ("inputs", "targets", "coordinates")  # what every sample has
_OPTIONAL = ("weights", "initial", "faces")


def of_files(paths: Sequence[Path], names: Names) -> RaggedSamples:
    """Returns the set of .npz files that hold one sample each."""

    def read(i: int) -> Sample:
        return _sample(paths[i], "", _arrays(open_archive(paths[i]), names))

    first = open_archive(paths[0])
    arrays = _arrays(first, names)
    first.warn_of_unread()
    return _set(OnDemand([str(path) for path in paths], read), str(paths[0]), arrays)


def of_groups(archive: Archive, names: Names) -> RaggedSamples | None:
    """Returns the set of the groups of an HDF5 file, each of which holds one sample; None if it has no such groups."""
    wanted = names["inputs"] + names["targets"]
    if archive.kind != "HDF5" or any(map(archive.has, wanted)):
        return None
    groups = natural_order(_hdf5.groups_with(archive.path, wanted))
    if not groups:
        return None

    def read(i: int) -> Sample:
        return _sample(archive.path, f"group {groups[i]!r}", _arrays(archive, names, prefix=f"{groups[i]}/"))

    samples = OnDemand([f"{archive.path}: group {group!r}" for group in groups], read)
    return _set(samples, str(archive.path), _arrays(archive, names, prefix=f"{groups[0]}/"))


def of_offsets(archive: Archive, offsets: str, names: Names) -> RaggedSamples:
    """Returns the set of a file in which the rows offsets[s], …, offsets[s + 1] − 1 of every array are sample s."""
    starts = archive.vector(archive.array(offsets))
    rows = {key: [archive.functions(name) for name in names[key]] for key in _ROWS}
    given = {key: _optional(archive, names[key], key) for key in _OPTIONAL}
    with naming(archive.path, f"offsets: {offsets!r}"):
        counts = {name: part.shape[0] for key in _ROWS for name, part in zip(names[key], rows[key], strict=True)}
        starts = _checked(starts, counts)
        owned = None if given["faces"] is None else _faces_of_samples(given["faces"], starts)
        for key, count in (("weights", starts[-1]), ("initial", len(starts) - 1)):
            if (array := given[key]) is not None and len(archive.vector(array)) != count:
                raise ValueError(f"{key} must have {count} rows, got shape {array.shape}.")

    def arrays(i: int) -> dict[str, np.ndarray | None]:
        part = slice(int(starts[i]), int(starts[i + 1]))
        found: dict[str, np.ndarray | None] = {
            key: _columns([archive.vector(np.asarray(source[part])) for source in rows[key]]) for key in _ROWS
        }
        for key, array in given.items():
            if array is None:
                found[key] = None
            elif key == "faces" and owned is not None:
                found[key] = array[owned[i] : owned[i + 1]] - starts[i]
            else:
                found[key] = array[i] if key == "initial" else archive.vector(array)[part]
        return found

    def read(i: int) -> Sample:
        return _sample(archive.path, f"sample {i}", arrays(i))

    samples = OnDemand([f"{archive.path}: sample {i}" for i in range(len(starts) - 1)], read)
    archive.warn_of_unread()
    return _set(samples, str(archive.path), arrays(0))


def _arrays(archive: Archive, names: Names, *, prefix: str = "") -> dict[str, np.ndarray | None]:
    """Reads the arrays of one sample; None for those that are left out."""
    found: dict[str, np.ndarray | None] = {
        key: _columns([archive.array(prefix + name) for name in names[key]]) for key in _ROWS
    }
    return found | {key: _optional(archive, names[key], key, prefix=prefix) for key in _OPTIONAL}


def _optional(archive: Archive, names: Sequence[str], key: str, *, prefix: str = "") -> np.ndarray | None:
    if not names or (names[0] == key and not archive.has(prefix + key)):
        archive.left_out.add(prefix + key)
        return None
    return archive.array(prefix + names[0])


def _columns(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns arrays (n,) or (n, channels) as one; None if there are none."""
    if len(arrays) < 2:
        return arrays[0] if arrays else None
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def _sample(path: Path, label: str, arrays: Mapping[str, np.ndarray | None]) -> Sample:
    """Returns a sample from its arrays: functions (n,) or (n, channels) on nodes (n, dim)."""
    with naming(path, label or "one sample"):
        u, v, nodes = (arrays[key] for key in _ROWS)
        if u is None or v is None or nodes is None:
            raise ValueError("samples with their own nodes need coordinates; name them by the argument coordinates.")
        for name, array in (("inputs", u), ("targets", v)):
            if array.ndim not in (1, 2) or nodes.ndim not in (1, 2) or len(array) != len(nodes):
                raise ValueError(
                    f"{name} must have shape (n,) or (n, channels) for coordinates of shape (n, dim), got "
                    f"{array.shape} for {nodes.shape}."
                )
        initial = arrays["initial"]
        one = from_arrays(
            u[None],
            v[None],
            nodes,
            weights=arrays["weights"],
            faces=arrays["faces"],
            initial=None if initial is None else np.atleast_1d(initial)[None],
        )
        is_cloud = _is_without_weights(arrays)
        return Sample(
            np.asarray(one.inputs[:])[0],
            np.asarray(one.targets[:])[0],
            domains.from_points(nodes.astype(float_dtype())) if is_cloud else as_domain(one.domain, "domain"),
            initial=None if one.initial is None else np.asarray(one.initial[:])[0],
        )


def _is_without_weights(arrays: Mapping[str, np.ndarray | None]) -> bool:
    """Tells whether the weights of scattered nodes must be computed from the nodes."""
    nodes = arrays["coordinates"]
    is_given = arrays["weights"] is not None or arrays["faces"] is not None
    return not is_given and nodes is not None and nodes.ndim == 2 and nodes.shape[1] > 1


def _set(samples: OnDemand, where: str, arrays: Mapping[str, np.ndarray | None]) -> RaggedSamples:
    """Returns the set, with a warning if weights are computed; ``arrays`` are those of the first sample."""
    if _is_without_weights(arrays):
        warn_of_computed_weights(where)
    return RaggedSamples(samples)


def warn_of_computed_weights(where: str) -> None:
    """Warns that nodes without weights and cells are triangulated."""
    warn_user(
        f"{where}: the samples have nodes without weights and cells; the weights are those of the Delaunay "
        "triangulation of the nodes of each sample, which fills their convex hull. Give weights or cells if the domain "
        "is another."
    )


def _checked(starts: np.ndarray, rows: Mapping[str, int]) -> np.ndarray:
    """Returns the offsets as integers, after checking that they divide the rows of every array."""
    total = next(iter(rows.values()))
    if len(set(rows.values())) > 1:
        sizes = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        raise ValueError(
            f"all arrays must have one row for each node of all samples, but {sizes}; if the samples share their "
            "nodes, pass offsets=None."
        )
    if starts.ndim != 1 or len(starts) < 2 or (starts != starts.astype(np.int64)).any():
        raise ValueError(f"offsets must be at least 2 integers, got {starts.dtype} of shape {starts.shape}.")
    starts = starts.astype(np.int64)
    if starts[0] != 0 or starts[-1] != total:
        raise ValueError(
            f"offsets must run from 0 to the {total} rows of the arrays, got {starts[0]}, …, {starts[-1]}; for "
            "positions as numpy.split takes them, store numpy.r_[0, positions, rows]."
        )
    if (bad := np.diff(starts) < 1).any():
        i = int(np.argmax(bad))
        raise ValueError(
            f"offsets must increase, but sample {i} has rows {starts[i]} to {starts[i + 1]}; leave it out."
        )
    return starts


def _faces_of_samples(faces: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns where the faces of each sample begin; faces hold row numbers of all samples, in their order."""
    if faces.ndim != 2 or faces.size == 0 or faces.dtype.kind not in "iu":
        raise ValueError(f"faces must be integers of shape (f, 3), got {faces.dtype} of shape {faces.shape}.")
    owners = np.searchsorted(starts, faces, side="right") - 1
    bad = (owners != owners[:, :1]).any(axis=1)
    bad[1:] |= np.diff(owners[:, 0]) < 0
    if bad.any() or len(np.unique(owners[:, 0])) < len(starts) - 1:
        fault = f"face {first_index(bad)} is {faces[first_index(bad)].tolist()}" if bad.any() else "a sample has none"
        raise ValueError(
            f"faces must hold numbers of rows, counted through all samples and in their order, but {fault}; add "
            "offsets[s] to the faces of sample s."
        )
    return np.searchsorted(owners[:, 0], np.arange(len(starts)))
