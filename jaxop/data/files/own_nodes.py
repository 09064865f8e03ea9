"""Files of samples with their own nodes: joined rows with offsets, one group or one .npz file for each sample."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxop import domains
from jaxop._validation import first_index, float_dtype, warn_user
from jaxop.data.files import _hdf5
from jaxop.data.files._reading import FileError, naming
from jaxop.data.files.layout import from_arrays
from jaxop.data.files.on_demand import OnDemand, natural_order
from jaxop.data.files.open import Archive, open_archive
from jaxop.data.ragged import RaggedSamples
from jaxop.data.sample import Sample
from jaxop.domains import Domain
from jaxop.domains.domain import as_domain

Names = Mapping[str, tuple[str, ...]]
"""Names of the datasets of a sample by their meaning; an empty tuple leaves one out, targets for example."""

_ROWS = ("inputs", "targets", "coordinates")  # what every sample has
_OPTIONAL = ("weights", "initial", "faces", "at", "at_weights")


def of_files(paths: Sequence[Path], names: Names) -> RaggedSamples:
    """Returns the set of .npz files that hold one sample each."""
    labels = [str(path) for path in paths]
    first = open_archive(paths[0])
    arrays = _arrays(first, names)
    given = {key for key, array in arrays.items() if array is not None}

    def read(i: int) -> Sample:
        found = _arrays(open_archive(paths[i]), names)
        _check_same_arrays(found, given, labels[i], labels[0])
        return _sample(paths[i], "", found)

    first.warn_of_unread()
    return _set(OnDemand(labels, read), labels[0], arrays)


def of_groups(archive: Archive, names: Names) -> RaggedSamples | None:
    """Returns the set of the groups of an HDF5 file, each of which holds one sample; None if it has no such groups."""
    wanted = names["inputs"] + names["targets"]
    if archive.kind != "HDF5" or any(map(archive.has, wanted)):
        return None
    groups = natural_order(_hdf5.groups_with(archive.path, wanted))
    if not groups:
        return None

    labels = [f"{archive.path}: group {group!r}" for group in groups]
    first = _arrays(archive, names, prefix=f"{groups[0]}/")
    given = {key for key, array in first.items() if array is not None}

    def read(i: int) -> Sample:
        found = _arrays(archive, names, prefix=f"{groups[i]}/")
        _check_same_arrays(found, given, labels[i], labels[0])
        return _sample(archive.path, f"group {groups[i]!r}", found)

    return _set(OnDemand(labels, read), str(archive.path), first)


def of_offsets(archive: Archive, offsets: str, names: Names) -> RaggedSamples:
    """Returns the set of a file in which the rows offsets[s], …, offsets[s + 1] − 1 of every array are sample s."""
    rows = {key: [archive.functions(name) for name in names[key]] for key in _ROWS}
    given = {key: _optional(archive, names[key], key) for key in _OPTIONAL}
    queries = given["at"]
    first, second = archive.array(offsets), None if queries is None else archive.array(f"{names['at'][0]}_offsets")
    with naming(archive.path, f"offsets: {offsets!r}"):
        counts = {name: part.shape[0] for key in _ROWS for name, part in zip(names[key], rows[key], strict=True)}
        others: dict[str, int] = {}
        if queries is not None:
            others = {name: counts.pop(name) for name in names["targets"]} | {names["at"][0]: len(queries)}
        starts = _checked(archive.vector(first), counts)
        at_starts = starts if second is None else _checked(archive.vector(second), others)
        if len(at_starts) != len(starts):
            raise ValueError(f"there are {len(starts) - 1} samples of nodes and {len(at_starts) - 1} of query nodes.")
        owned = None if given["faces"] is None else _faces_of_samples(given["faces"], starts)
        for key, count in (("weights", starts[-1]), ("at_weights", at_starts[-1]), ("initial", len(starts) - 1)):
            if (array := given[key]) is not None and len(archive.vector(array)) != count:
                raise ValueError(f"{key} must have {count} rows, got shape {array.shape}.")

    def arrays(i: int) -> dict[str, np.ndarray | None]:
        here, there = (slice(int(ends[i]), int(ends[i + 1])) for ends in (starts, at_starts))
        found: dict[str, np.ndarray | None] = {}
        for key, sources in rows.items():
            part = there if key == "targets" else here
            found[key] = _columns([archive.vector(np.asarray(source[part])) for source in sources])
        for key, array in given.items():
            if array is None:
                found[key] = None
            elif key == "faces" and owned is not None:
                found[key] = array[owned[i] : owned[i + 1]].astype(np.int64) - starts[i]
            elif key == "initial":
                found[key] = array[i]
            else:
                found[key] = archive.vector(array)[there if key.startswith("at") else here]
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


def _check_same_arrays(
    found: Mapping[str, np.ndarray | None], expected: Collection[str], label: str, label_of_first: str
) -> None:
    """Raises ``FileError`` if a sample has other optional arrays than the first, so that its nodes could differ."""
    for key in _OPTIONAL:
        if (found[key] is not None) != (key in expected):
            has, lacks = (label_of_first, label) if key in expected else (label, label_of_first)
            remedy = "give these weights to all" if key == "at_weights" else f"pass {key}=None"
            raise FileError(
                f"{label}: all samples of a set have the same arrays, but {has} has {key} and {lacks} does not; move "
                f"this sample to another set, or {remedy}."
            )


def _optional(archive: Archive, names: Sequence[str], key: str, *, prefix: str = "") -> np.ndarray | None:
    """Reads an array; None if it is left out, or if it is missing although it has its default name."""
    if not names or ((names[0] == key or key == "at_weights") and not archive.has(prefix + names[0])):
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
        u, v, nodes, at = (arrays[key] for key in (*_ROWS, "at"))
        if u is None or nodes is None:
            raise ValueError("samples with their own nodes need coordinates; name them by the argument coordinates.")
        inputs, domain = _function(u, "inputs", nodes), _domain(nodes, arrays["weights"], arrays["faces"])
        if v is None:
            v = np.zeros(len(nodes if at is None else at), inputs.dtype)
        targets = _function(v, "targets", nodes if at is None else at)
        place = None if at is None else _domain(at, arrays["at_weights"], None)
        initial = arrays["initial"]
        return Sample(inputs, targets, domain, at=place, initial=None if initial is None else np.atleast_1d(initial))


def _function(values: np.ndarray, name: str, nodes: np.ndarray) -> np.ndarray:
    """Returns a function on nodes as (n, channels)."""
    if values.ndim not in (1, 2) or nodes.ndim not in (1, 2) or len(values) != len(nodes):
        raise ValueError(
            f"{name} must have shape (n,) or (n, channels) for nodes of shape (n, dim), got {values.shape} for "
            f"{nodes.shape}."
        )
    return values.reshape(len(values), -1)


def _domain(nodes: np.ndarray, weights: np.ndarray | None, faces: np.ndarray | None) -> Domain:
    """Returns the domain of nodes (n, dim)."""
    zeros = np.zeros((1, len(nodes)), np.float32)
    one = from_arrays(zeros, zeros, nodes, weights=weights, faces=faces)  # checks the nodes
    if _is_cloud(nodes, weights, faces):
        return domains.from_points(nodes.astype(float_dtype()))
    return as_domain(one.domain, "domain")


def _is_cloud(nodes: np.ndarray | None, weights: np.ndarray | None, faces: np.ndarray | None) -> bool:
    """Tells whether the weights of scattered nodes must be computed from the nodes."""
    return weights is None and faces is None and nodes is not None and nodes.ndim == 2 and nodes.shape[1] > 1


def _set(samples: OnDemand, where: str, arrays: Mapping[str, np.ndarray | None]) -> RaggedSamples:
    """Returns the set, with a warning if weights are computed; ``arrays`` are those of the first sample."""
    parts = (("coordinates", "weights", "faces"), ("at", "at_weights"))
    if any(_is_cloud(arrays[part[0]], arrays[part[1]], arrays["faces"] if len(part) == 3 else None) for part in parts):
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
    if starts.ndim != 1 or len(starts) < 2 or not np.isfinite(starts).all() or (starts != np.round(starts)).any():
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
