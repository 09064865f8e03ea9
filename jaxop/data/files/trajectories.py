"""Reader of trajectories from the files and stores of a user."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Real

from jaxop._validation import as_number, check_name, check_size, first_index, on_device
from jaxop.data._open_files import kept_open
from jaxop.data.files import netcdf
from jaxop.data.files._reading import FileError, first_bytes, naming, reading, refuse_unread
from jaxop.data.files._zarr import ZarrArray, open_zarr
from jaxop.data.files.layout import domain_of
from jaxop.data.files.open import ARCHIVES, Archive, box_of, coordinates_of, listed, open_archive, text_of
from jaxop.data.normalization import Moments
from jaxop.data.samples import ArraySource, Part, place_of
from jaxop.data.trajectories import FrameSource, Trajectories, time_blocks
from jaxop.domains import Domain, Grid, PointCloud

TRAJECTORY_FORMATS = (*ARCHIVES, ".npy", ".zarr", *netcdf.NETCDF)
"""Suffixes that `read_trajectories` supports."""

_DEFAULTS: Mapping[str, object] = {
    "coordinates": "coordinates",
    "weights": "weights",
    "faces": "faces",
    "sample_dimension": None,
    "time_dimension": None,
    "dim": None,
    "rule": None,
    "lower": None,
    "upper": None,
    "external": False,
}
_NODES = ("coordinates", "weights", "faces", "dim", "rule", "lower", "upper")


def read_trajectories(
    path: str | os.PathLike[str],
    *,
    states: str | Sequence[str] = "states",
    times: str | Sequence[float] | Real[Array | np.ndarray, "..."] | None = "times",
    dt: float | None = None,
    parameters: str | Sequence[str] | None = "parameters",
    coordinates: str | Sequence[str] | None = "coordinates",
    weights: str | None = "weights",
    faces: str | None = "faces",
    sample_dimension: str | None = None,
    time_dimension: str | None = None,
    dim: int | None = None,
    rule: str | Sequence[str] | None = None,
    lower: float | Sequence[float] | None = None,
    upper: float | Sequence[float] | None = None,
    external: bool = False,
) -> Trajectories:
    """Solutions in time from a file: states of shape (samples, times, *grid) or (samples, times, *grid, channels).

    | what | suffixes | states |
    |---|---|---|
    | arrays | .npz; .mat (MATLAB, all versions) | read into memory |
    | one array | .npy | memory-mapped |
    | arrays | .h5, .hdf5 (HDF5); .zarr (Zarr) | stay in the file; windows read their own times |
    | variables with dimensions | .nc, .nc4, .cdf (netCDF); .zarr as xarray writes it | stay in the file |

    **Arrays.** Coordinates, weights and faces are those of `jaxop.data.from_arrays`, and so are the rule and the box of
    a grid without coordinates. ``dim`` or the coordinates say which axes are the grid. Without both, a last axis of
    length 1 holds channels, and otherwise all axes after the times are the grid if they are equally long. Datasets of
    the default names are used if the file has them; any other name must exist. A file written by `jaxop.data.save` also
    holds its rule and box. HDF5 is read fastest if a chunk holds a few times of one trajectory, and Zarr too. Every
    value of HDF5 must have been written, because it would return fill values for the others.

    **Variables with dimensions.** The dimension of time is the one that is called time or has units since a date, and
    the dimension before it, if there is one, counts trajectories; otherwise the file holds one. The grid consists of
    the other dimensions that have coordinates, which may be uneven. If they are latitude and longitude and there is no
    ``rule``, nodes are points (x, y, z) of the unit sphere, whose weights are the areas of their cells.

    **Missing nodes**, such as land in a file of the ocean, are NaN, or fill values in netCDF. A node that is missing in
    a channel at all times gets weight 0, so that integrals, norms and statistics leave it out, and the mean of the
    channel as its value. Such a grid becomes scattered nodes, which have L2 norms but no derivatives.

    Args:
        path: the file, whose suffix is one of `TRAJECTORY_FORMATS`.
        states: name of the states, or names of several arrays or variables, whose channels follow each other.
        times: name of the times in the file, (T,) or (N, T), or the numbers themselves. With dimensions, the
            coordinates of the dimension of time are used by default, in the units of the file.
        dt: constant step between times, t_j = j·dt, if the file does not have them.
        parameters: name or names of constants of the trajectories. Each has shape (N,) and gives its name to a column
            of `Trajectories.parameters`, or (N, p) for several columns. None reads none.
        coordinates: name or names of the coordinates; names of the dimensions of the grid, if there are dimensions.
        weights: name of the quadrature weights of the nodes.
        faces: name of the triangles or tetrahedra of a mesh, whose vertices are the coordinates.
        sample_dimension: dimension that counts trajectories.
        time_dimension: dimension of time.
        dim: space dimension, if the shapes do not determine it.
        rule: quadrature rule of the grid, one or one per axis; ``"periodic"`` for a grid without its end point.
        lower: lower corner of the box, 0 by default; only without coordinates.
        upper: upper corner of the box, 1 by default; only without coordinates.
        external: whether HDF5 may read from other files than this one.

    Returns:
        `Trajectories`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if the format needs h5py, scipy, zarr or xarray, and it is not installed.
        TypeError: if data are not real numbers.
        ValueError: if the suffix is unknown; if the file is empty, truncated or of another type than its suffix; if a
            dataset, variable or dimension is missing or unclear; if nodes are missing at some times only (the message
            names the first time and node); if an option does not apply to the file; or for the reasons of
            `Trajectories` and `jaxop.data.from_arrays`. Every message names the file.

    Cost: one pass over the states, in blocks; two if nodes are missing.

    Example:
        >>> import tempfile, numpy as np
        >>> from jaxop import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     u = np.ones((10, 51, 160, 1), np.float32)
        ...     np.savez(folder + "/burgers.npz", states=u, viscosity=np.full(10, 3e-4))
        ...     burgers = data.read_trajectories(
        ...         folder + "/burgers.npz", dt=0.1, parameters=["viscosity"], rule="periodic"
        ...     )
        >>> burgers, burgers.parameter_names, burgers.domain.rules
        (Trajectories(10 of 51 times on 160 nodes, 1 channel, 1 parameter, float32), ('viscosity',), ('periodic',))
    """
    path = Path(path)
    check_name(path.suffix.lower(), f"the suffix of {path}", TRAJECTORY_FORMATS)
    if not states:
        raise ValueError(f"states must name at least one dataset of {path}, got {states!r}.")
    if dim is not None:
        check_size(dim, "dim")
    given = _Given(
        path,
        (states,) if isinstance(states, str) else tuple(states),
        times,
        None if dt is None else as_number(dt, "dt"),
        () if parameters is None else (parameters,) if isinstance(parameters, str) else tuple(parameters),
        {
            "coordinates": coordinates,
            "weights": weights,
            "faces": faces,
            "sample_dimension": sample_dimension,
            "time_dimension": time_dimension,
            "dim": dim,
            "rule": rule,
            "lower": lower,
            "upper": upper,
            "external": external,
        },
    )
    if dt is not None and not (isinstance(times, str) and times == "times"):
        raise ValueError(f"dt={dt} and times were given; give one of them.")
    if path.suffix.lower() in netcdf.NETCDF:
        first_bytes(path, "netCDF", TRAJECTORY_FORMATS)
        return _of_variables(given)
    if path.suffix.lower() == ".npy":
        return _of_npy(given)
    if path.suffix.lower() == ".zarr":
        archive = open_zarr(path)
        if all(map(archive.has, given.states)):
            source = archive.source(given.states[0])
            if isinstance(source, ZarrArray) and source.dimensions and any(map(archive.has, source.dimensions)):
                return _of_variables(given)
        return _of_archive(given, archive)
    return _of_archive(given, open_archive(path, formats=TRAJECTORY_FORMATS, external=external))


@dataclasses.dataclass(frozen=True)
class _Given:
    """The arguments of a call of `read_trajectories`."""

    path: Path
    states: tuple[str, ...]
    times: object
    dt: float | None
    parameters: tuple[str, ...]
    options: Mapping[str, Any]

    def refuse(self, what: str, *, read: Sequence[str]) -> None:
        """Raises ``ValueError`` if an option was given that nothing reads."""
        refuse_unread(self.path, what, self.options, _DEFAULTS, read=read)

    def times_or(self, found: np.ndarray | None, steps: int) -> Any:
        """Returns the times: the numbers that were given, those of the step, or those that were found in the file."""
        if self.dt is not None:
            return self.dt * np.arange(steps)
        if not isinstance(self.times, str) and self.times is not None:
            return self.times
        if found is None:
            raise FileError(
                f"{self.path} has no times {self.times!r}; name them by times, or give the numbers as times, or the "
                "constant step as dt."
            )
        return found


def _of_npy(given: _Given) -> Trajectories:
    given.refuse("one array", read=("dim", "rule", "lower", "upper"))
    start = first_bytes(given.path, ".npy", TRAJECTORY_FORMATS)
    if not start.startswith(np.lib.format.MAGIC_PREFIX):
        raise FileError(f"{given.path} is not a single NumPy array (.npy) although its name says so; write it again.")
    with reading(given.path, ".npy"):
        states = np.load(given.path, mmap_mode="r", allow_pickle=False)
    box = {name: given.options[name] for name in ("rule", "lower", "upper")}
    with naming(given.path, "states"):
        frames, domain = _located([states], given.options["dim"], None, None, None, box)
        return _made(frames, domain, given.times_or(None, states.shape[1]), None, ())


def _of_archive(given: _Given, archive: Archive) -> Trajectories:
    given.refuse("arrays", read=(*_NODES, "external"))
    options, names = given.options, given.states
    if archive.kind == "Zarr" and names == ("states",) and archive.has(""):
        names = ("",)  # the store is one array
    states = [archive.functions(name, axis=2) for name in names]
    nodes = coordinates_of(archive, options["coordinates"])
    weights, faces = (archive.optional(options[key], key) for key in ("weights", "faces"))
    dim, box = options["dim"], {key: options[key] for key in ("rule", "lower", "upper")}
    if nodes is None:
        dim, box = box_of(archive, dim, box)
    times = None
    if isinstance(given.times, str) and given.dt is None:
        times = archive.optional(given.times, "times")
    parameters, parameter_names = _parameters(given, archive)
    with naming(archive.path, f"states: {listed(names, True)}"):
        frames, domain = _located(states, dim, nodes, weights, faces, box)
        found = given.times_or(None if times is None else archive.vector(times), frames.shape[1])
        trajectories = _made(frames, domain, found, parameters, parameter_names)
    archive.warn_of_unread("states, times, parameters, coordinates, weights or faces")
    return trajectories


def _of_variables(given: _Given) -> Trajectories:
    given.refuse("variables with dimensions", read=("coordinates", "sample_dimension", "time_dimension", "rule"))
    axes, options = given.options["coordinates"], given.options
    names = () if given.parameters == ("parameters",) else given.parameters
    series = netcdf.read_series(
        given.path,
        states=given.states,
        parameters=names,
        samples=options["sample_dimension"],
        time=options["time_dimension"],
        coordinates=None if axes in (None, "coordinates") else (axes,) if isinstance(axes, str) else tuple(axes),
        rule=options["rule"],
        times=given.times if isinstance(given.times, str) and given.times != "times" else None,
    )
    with naming(given.path, f"states: {', '.join(given.states)}"):
        leading = 2 if series.has_samples else 1
        frames = _Frames(series.states, leading, series.domain.size)
        return _made(
            frames, series.domain, given.times_or(series.times, frames.shape[1]), series.parameters, tuple(names)
        )


def _parameters(given: _Given, archive: Archive) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns the parameters of an archive and their names."""
    if given.parameters == ("parameters",):
        found = archive.optional("parameters", "parameters")
        if found is None:
            return None, ()
        if found.ndim not in (1, 2):
            raise FileError(
                f"{archive.path}: parameters must have shape (samples,) or (samples, p), got {found.shape}."
            )
        names = tuple(text_of(archive, "parameter_names")) if archive.has("parameter_names") else ()
        return found.reshape(len(found), -1), names
    if not given.parameters:
        archive.left_out.update(("parameters", "parameter_names"))
    columns, names = [], []
    for name in given.parameters:
        found = archive.array(name)
        found = archive.vector(found)
        if found.ndim not in (1, 2):
            raise ValueError(
                f"{archive.path}: the parameter {name!r} must have one number per trajectory, got shape {found.shape}."
            )
        columns.append(found.reshape(len(found), -1))
        count = columns[-1].shape[1]
        names += [name] if count == 1 else [f"{name}_{k}" for k in range(count)]
    if len({len(column) for column in columns}) > 1:
        counts = ", ".join(f"{name!r}: {len(column)}" for name, column in zip(given.parameters, columns, strict=True))
        raise ValueError(
            f"{archive.path}: parameters must have one number for each trajectory, but numbers differ ({counts})."
        )
    return np.concatenate(columns, axis=1) if columns else None, tuple(names)


def _located(
    states: Sequence[ArraySource],
    dim: int | None,
    nodes: object,
    weights: object,
    faces: object,
    box: Mapping[str, Any],
) -> tuple[FrameSource, Domain]:
    """Returns arrays (samples, times, *grid[, channels]) as states (samples, times, n, channels), and their domain."""
    shape = tuple(states[0].shape)
    if len(shape) < 3 or 0 in shape:
        raise ValueError(
            f"states must have shape (samples, times, *grid) or (samples, times, *grid, channels), got {shape}."
        )
    grid = shape[2:]
    if nodes is None:
        count = _dim(grid) if dim is None else dim
        if len(grid) - count not in (0, 1):
            raise ValueError(
                f"states have shape {shape}; with dim={count} they must have {count + 2} axes (samples, times, *grid) "
                f"or {count + 3} (samples, times, *grid, channels)."
            )
        grid = grid[:count]
    functions = (shape[0], *grid)
    dim = len(grid) if nodes is None else dim
    domain, found = domain_of(functions, functions, nodes, weights=weights, faces=faces, dim=dim, **box)
    parts = []
    for one in states:
        expected, received = (*shape[:2], *found), tuple(one.shape)
        if received[: len(expected)] != expected or len(received) - len(expected) not in (0, 1):
            raise ValueError(
                f"shapes disagree: states have shape {received}, expected (samples, times, *grid) = {expected} with or "
                "without a last axis of channels."
            )
        is_array = isinstance(one, np.ndarray)
        parts.append(one.reshape(*shape[:2], domain.size, -1) if is_array else _Frames(one, 2, domain.size))
    return parts[0] if len(parts) == 1 else _Joined(parts), domain


def _dim(grid: tuple[int, ...]) -> int:
    """Returns the number of axes of the grid among those that follow the times."""
    if len(grid) == 1 or len(set(grid)) == 1:
        return len(grid)
    if grid[-1] == 1:
        return len(grid) - 1
    raise ValueError(
        f"states may have {grid[-1]} channels on a grid {grid[:-1]} (dim={len(grid) - 1}) or one on a grid {grid} "
        f"(dim={len(grid)}); pass dim."
    )


class _Frames:
    """States (samples, times, *grid[, channels]) or (times, *grid, channels) as (samples, times, n, channels)."""

    def __init__(self, source: Any, leading: int, size: int):
        self._source, self._leading = source, leading
        before = tuple(source.shape[:leading])
        rest = int(np.prod(source.shape[leading:]))
        self.shape = (*((1,) * (2 - leading)), *before, size, rest // size)
        self.dtype = np.dtype(source.dtype)

    def __getitem__(self, index: Part, /) -> np.ndarray:
        found = self._source[index if self._leading == 2 else index[1:]]
        return np.asarray(found).reshape(-1, *self.shape[2:])


class _Joined:
    """States whose channels are those of several states, one after another."""

    def __init__(self, parts: Sequence[FrameSource]):
        self._parts = parts
        self.shape = (*parts[0].shape[:3], sum(part.shape[3] for part in parts))
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def __getitem__(self, index: Part, /) -> np.ndarray:
        return np.concatenate([np.asarray(part[index]) for part in self._parts], axis=-1)


class _Filled:
    """States whose missing values are replaced by the mean of their channel."""

    def __init__(self, source: FrameSource, missing: Bool[np.ndarray, "n c"], fill: Float[np.ndarray, " c"]):
        self._source, self._missing = source, missing
        self.shape, self.dtype = source.shape, source.dtype
        self._fill = fill.astype(source.dtype)

    def __getitem__(self, index: Part, /) -> np.ndarray:
        return np.where(self._missing, self._fill, self._source[index])


def _made(
    frames: FrameSource, domain: Domain, times: Any, parameters: np.ndarray | None, names: tuple[str, ...]
) -> Trajectories:
    """Returns the trajectories, with weight 0 at nodes that are missing at all times."""
    missing = np.isnan(frames[0, slice(0, 1)][0])
    if missing.any():
        frames, domain = _without(frames, domain, missing)
    return Trajectories(frames, domain, times, parameters, names)


@kept_open()
def _without(frames: FrameSource, domain: Domain, missing: Bool[np.ndarray, "n c"]) -> tuple[FrameSource, Domain]:
    """Returns states with finite values at missing nodes, and a domain in which these have weight 0."""
    gone = missing.any(axis=1)
    if gone.all() or missing.all(axis=0).any():
        what = "every node" if gone.all() else f"every node of channel {first_index(missing.all(axis=0))}"
        raise ValueError(f"states are missing (NaN) at {what} at the first time; at least one node needs values.")
    weights = np.where(gone, 0, np.asarray(domain.weights))
    valid = np.atleast_2d(weights).astype(np.float64)
    moments = Moments("states")
    for s in range(frames.shape[0]):
        for part in time_blocks(frames.shape):
            block = np.asarray(frames[s, part])
            if (changed := np.isnan(block) != missing).any():
                j, i, c = first_index(changed)  # pyright: ignore[reportGeneralTypeIssues]
                kind = "has a value" if missing[i, c] else "is missing (NaN)"
                raise ValueError(
                    f"nodes that are missing must be the same at all times, but node {i}{place_of(domain, i)} {kind} "
                    f"in channel {c} at time number {part.start + j} of trajectory {s}, unlike at the first time of "
                    "trajectory 0; fill the gaps of this node, or leave these times out."
                )
            row = valid[s if len(valid) > 1 else 0]
            block = np.where(np.isfinite(block), block, 0)  # `Trajectories` names a value that is infinite
            moments.add(block, np.broadcast_to(row, block.shape[:2]))
    fill, _ = moments.mean_and_deviation()
    # the weights of a grid are products, so that a node cannot be left out
    located: Any = PointCloud(domain.points, domain.weights) if isinstance(domain, Grid) else domain
    return _Filled(frames, missing, fill), dataclasses.replace(located, weights=on_device(weights))
