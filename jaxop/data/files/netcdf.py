"""netCDF files: variables on grids of coordinate variables, plain or in latitude and longitude."""

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxop import domains
from jaxop._validation import closest, require
from jaxop.data._open_files import opened_once
from jaxop.data.files._reading import FileError, first_bytes, naming, reading
from jaxop.data.files.layout import as_functions, domain_of, from_arrays
from jaxop.data.files.open import listed
from jaxop.data.samples import Rows, Samples
from jaxop.domains import Domain

if TYPE_CHECKING:
    import xarray

NETCDF = (".nc", ".nc4", ".cdf")
"""Suffixes of netCDF files."""

_DEGREES = {"latitude": ("lat", "latitude", "degrees_north"), "longitude": ("lon", "longitude", "degrees_east")}


def read_netcdf(
    path: Path,
    *,
    inputs: Sequence[str],
    targets: Sequence[str],
    samples: str | None,
    coordinates: Sequence[str] | None,
    rule: str | Sequence[str] | None,
    formats: Sequence[str] = NETCDF,
) -> Samples:
    """Returns the functions of a netCDF file; the values stay in the file and are read row by row.

    Args:
        path: the file.
        inputs: variables that are the channels of the input functions.
        targets: variables that are the channels of the target functions.
        samples: dimension that counts samples; None means the first one of the first input.
        coordinates: dimensions of the grid; None means all others that have coordinates.
        rule: quadrature rule of the grid. Without a rule, latitude and longitude are a grid on the unit sphere.
        formats: suffixes of files that could be meant instead, if it does not exist.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if xarray or the package that reads this kind of netCDF is not installed.
        ValueError: if a variable or dimension is missing, the variables have other dimensions than the grid, or for the
            reasons of `jaxop.data.from_arrays`.
    """
    first_bytes(path, "netCDF", formats)
    with _opened(path) as file:
        variables = {name: _variable(path, file, name) for name in (*inputs, *targets)}
        dims = variables[inputs[0]].dims
        count = dims[0] if samples is None and dims else samples
        if count not in dims:
            raise FileError(
                f"{path}: the variable {inputs[0]!r} has the dimensions {listed(dims, True)}, and {count!r} should "
                "count samples; name the right one by sample_dimension."
            )
        axes = _grid(path, file, dims, {str(count)}, coordinates)
        _check_dimensions(path, variables, (str(count),), axes)
        nodes, latitude = _nodes(path, file, axes, rule)
    if latitude is not None:
        axes, domain = _on_sphere(path, nodes, latitude)
        shape = tuple(len(nodes[axis]) for axis in axes)
        u, v = (
            as_functions(Variables(path, names, (str(count),), axes, frozenset()), shape, argument)
            for argument, names in (("inputs", inputs), ("targets", targets))
        )
        with naming(path, f"inputs: {', '.join(inputs)}, targets: {', '.join(targets)}"):
            return Samples(u, v, domain)
    nodes, flipped = _increasing(nodes)
    u, v = (Variables(path, names, (str(count),), tuple(axes), flipped) for names in (inputs, targets))
    with naming(path, f"inputs: {', '.join(inputs)}, targets: {', '.join(targets)}"):
        return from_arrays(u, v, list(nodes.values()), rule=rule)


@dataclasses.dataclass(frozen=True)
class Series:
    """States in time of a netCDF file or a Zarr store.

    Attributes:
        states: array ([samples,] times, *grid, channels), of which parts are read.
        domain: the nodes of the grid.
        times: values of the coordinate variable of time, or None.
        parameters: constants of each trajectory, shape (samples, p), or None.
        has_samples: whether the first axis counts trajectories; otherwise there is one.
    """

    states: "Variables"
    domain: Domain
    times: np.ndarray | None
    parameters: np.ndarray | None
    has_samples: bool


def read_series(
    path: Path,
    *,
    states: Sequence[str],
    parameters: Sequence[str],
    samples: str | None,
    time: str | None,
    coordinates: Sequence[str] | None,
    rule: str | Sequence[str] | None,
    times: str | None,
) -> Series:
    """Returns the states of a netCDF file or a Zarr store with dimensions; the values stay in the file.

    Args:
        path: the file.
        states: variables that are the channels of the states.
        parameters: variables with one number per trajectory.
        samples: dimension that counts trajectories; None means the dimension before time, if there is one.
        time: dimension of time; None means the one that is called so or has units since a date.
        coordinates: dimensions of the grid; None means all others that have coordinates.
        rule: quadrature rule of the grid. Without a rule, latitude and longitude are a grid on the unit sphere.
        times: variable of the times; None means the coordinates of the dimension of time, if there are any.

    Raises:
        ImportError: if xarray or the package that reads the file is not installed.
        ValueError: if a variable or dimension is missing or unclear, or for the reasons of `read_netcdf`.
    """
    with _opened(path) as file:
        variables = {name: _variable(path, file, name) for name in states}
        dims = variables[states[0]].dims
        time = _time(path, file, states[0], dims, time)
        before = [dim for dim in dims[: dims.index(time)] if coordinates is None or dim not in coordinates]
        if samples is None and len(before) > 1:
            raise FileError(
                f"{path}: the variable {states[0]!r} has the dimensions {listed(before, True)} before the time "
                f"({time}); name the one that counts trajectories by sample_dimension, or those of the grid by "
                "coordinates."
            )
        if samples is not None and (samples not in dims or samples == time):
            raise FileError(
                f"{path}: the variable {states[0]!r} has the dimensions {listed(dims, True)}, and {samples!r} should "
                f"count trajectories beside the time ({time}); name the right one by sample_dimension."
            )
        leading = (*([samples] if samples is not None else before), time)
        axes = _grid(path, file, dims, set(leading), coordinates)
        _check_dimensions(path, variables, leading, axes)
        nodes, latitude = _nodes(path, file, axes, rule)
        clock = time if times is None and time in file.coords else times
        found = None if clock is None else np.array(_variable(path, file, clock).values)
        constants = [_constant(path, file, name, leading[:-1]) for name in parameters]
    flipped: frozenset[str] = frozenset()
    if latitude is not None:
        grid, domain = _on_sphere(path, nodes, latitude)
    else:
        grid = tuple(axes)
        domain, flipped = _plain_grid(path, nodes, rule)
    return Series(
        Variables(path, states, leading, grid, flipped),
        domain,
        found,
        np.stack(constants, axis=1) if constants else None,
        len(leading) == 2,
    )


def read_grid(path: Path, *, formats: Sequence[str] = NETCDF) -> Domain:
    """Returns the grid of the coordinate variables of a netCDF file but time, in the order of its first variable.

    Args:
        path: the file.
        formats: see `read_netcdf`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if xarray or the package that reads this kind of netCDF is not installed.
        ValueError: if no dimension has coordinates, or for the reasons of `read_netcdf`.
    """
    first_bytes(path, "netCDF", formats)
    with _opened(path) as file:
        dims = next((variable.dims for variable in file.data_vars.values() if variable.dims), tuple(file.sizes))
        axes = [str(dim) for dim in dims if dim in file.coords and not _is_time(file, str(dim))]
        if not axes:
            known = listed([str(dim) for dim in dims], True)
            raise FileError(
                f"{path}: none of the dimensions {known} has coordinates besides time, so the nodes are unknown; add a "
                "variable with the name of each dimension of the grid."
            )
        nodes, latitude = _nodes(path, file, axes, None)
    if latitude is not None:
        return _on_sphere(path, nodes, latitude)[1]
    return _plain_grid(path, nodes, None)[0]


def _is_time(file: Any, dim: str) -> bool:
    attributes = file[dim].attrs if dim in file.coords else {}
    marked = attributes.get("standard_name") == "time" or attributes.get("axis") == "T"
    return dim.lower() in ("time", "times", "t") or marked or " since " in str(attributes.get("units"))


def _time(path: Path, file: Any, name: str, dims: Sequence[str], given: str | None) -> str:
    """Returns the dimension of time."""
    found = [dim for dim in dims if _is_time(file, dim)] if given is None else [dim for dim in dims if dim == given]
    if len(found) != 1:
        unclear = "several of them may be" if found else f"{given!r} is not" if given else "none is known to be"
        raise FileError(
            f"{path}: the variable {name!r} has the dimensions {listed(dims, True)}, and {unclear} time; name it by "
            "time_dimension."
        )
    return found[0]


def _constant(path: Path, file: Any, name: str, samples: Sequence[str]) -> np.ndarray:
    """Returns a variable with one number per trajectory."""
    variable = _variable(path, file, name)
    if variable.dims != tuple(samples):
        raise FileError(
            f"{path}: the parameter {name!r} has the dimensions ({listed(variable.dims, True)}), and one number per "
            f"trajectory has ({listed(samples, True)}); leave it out of parameters."
        )
    return np.atleast_1d(np.array(variable.values))


class Variables:
    """Variables of a file as the channels of one array (*leading, *grid, channels), of which parts are read.

    Args:
        path: the file.
        names: the variables.
        leading: dimensions that come first, such as samples and time; parts are chosen along them.
        axes: dimensions of the grid.
        flipped: those of them that are reversed.

    Attributes:
        shape: length of every axis.
        dtype: NumPy dtype.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        leading: tuple[str, ...],
        axes: tuple[str, ...],
        flipped: frozenset[str],
    ):
        self._path, self._names, self._leading, self._axes, self._flipped = path, names, leading, axes, flipped
        with self._parts() as parts:
            sizes = parts[0].sizes
            self.shape: tuple[int, ...] = tuple(sizes[dim] for dim in (*leading, *axes))
            self.shape += (sum(part.size // int(np.prod(self.shape)) for part in parts),)
            self.dtype = np.result_type(*(part.dtype for part in parts))

    def __getitem__(self, index: Rows | tuple[int | slice, ...], /) -> np.ndarray:
        entries = index if isinstance(index, tuple) else (index,)
        chosen = dict(zip(self._leading, entries, strict=False))
        with self._parts() as parts, reading(self._path, "netCDF", f"its variables {', '.join(self._names)}"):
            found = [np.array(part.isel(chosen).values) for part in parts]
        single = sum(isinstance(entry, int | np.integer) for entry in entries)
        kept = len(self._leading) - single + len(self._axes)
        return np.concatenate([part.reshape(*part.shape[:kept], -1) for part in found], axis=-1)

    @contextlib.contextmanager
    def _parts(self) -> Iterator[list["xarray.DataArray"]]:
        with _opened(self._path) as file:
            backwards = {axis: slice(None, None, -1) for axis in self._flipped}
            yield [file[name].isel(backwards).transpose(*self._leading, *self._axes, ...) for name in self._names]


def _check_dimensions(path: Path, variables: Mapping[str, Any], leading: Sequence[str], axes: Sequence[str]) -> None:
    """Raises ``FileError`` unless all variables have the leading dimensions, the grid and at most one other."""
    first = next(iter(variables))
    for name, variable in variables.items():
        if missing := {*leading, *axes} - set(variable.dims):
            raise FileError(
                f"{path}: the variable {name!r} has the dimensions {listed(variable.dims, True)} without "
                f"{listed(sorted(missing), True)}; all variables have the samples and the grid of {first!r}."
            )
        if len(set(variable.dims) - {*leading, *axes}) > 1:
            raise FileError(
                f"{path}: the variable {name!r} has the dimensions {listed(variable.dims, True)}: samples "
                f"({', '.join(leading)}), grid ({', '.join(axes)}) and more than one other, which could be channels; "
                "name the dimensions of the grid by coordinates."
            )


def _nodes(
    path: Path, file: Any, axes: Sequence[str], rule: str | Sequence[str] | None
) -> tuple[dict[str, np.ndarray], str | None]:
    """Returns the coordinates along each axis, and the axis of latitude if the grid is one of the sphere."""
    return {axis: np.array(file[axis].values) for axis in axes}, _latitude(path, file, axes) if rule is None else None


def _on_sphere(path: Path, nodes: Mapping[str, np.ndarray], latitude: str) -> tuple[tuple[str, ...], Domain]:
    """Returns latitude and longitude in this order, and their nodes on the unit sphere."""
    axes = (latitude, *(axis for axis in nodes if axis != latitude))
    with naming(path, ", ".join(axes)):
        return axes, domains.latitude_longitude(*(nodes[axis].astype(np.float64) for axis in axes))


def _plain_grid(
    path: Path, nodes: Mapping[str, np.ndarray], rule: str | Sequence[str] | None
) -> tuple[Domain, frozenset[str]]:
    """Returns the grid of given nodes, and the axes that were reversed."""
    nodes, flipped = _increasing(nodes)
    shape = (1, *(len(values) for values in nodes.values()))
    options = {"weights": None, "faces": None, "dim": None, "rule": rule, "lower": None, "upper": None}
    with naming(path, ", ".join(nodes)):
        domain, _ = domain_of(shape, shape, list(nodes.values()), **options)
    return domain, flipped


def _increasing(nodes: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Returns nodes that increase along every axis, and the axes that were reversed."""
    flipped = frozenset(axis for axis, values in nodes.items() if len(values) > 1 and values[0] > values[-1])
    return {axis: values[::-1] if axis in flipped else values for axis, values in nodes.items()}, flipped


def _opened(path: Path) -> contextlib.AbstractContextManager[Any]:
    """Opens the file for reading and closes it at the end; packed values are scaled, times stay numbers."""
    return opened_once(("netCDF", path), lambda: _open(path))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    xarray = require("xarray", f"reading {path}", extra="netcdf")
    with reading(path, "netCDF"):
        options = {"engine": "zarr", "consolidated": False} if path.suffix.lower() == ".zarr" else {}
        file = xarray.open_dataset(path, decode_times=False, **options)
    with file:
        yield file


def _variable(path: Path, file: Any, name: str) -> Any:
    if name not in file.variables:
        names = [str(key) for key in file.data_vars]
        raise FileError(f"{path} has no variable {name!r}; it has {listed(names, True)}: {closest(name, names)}")
    return file[name]


def _grid(
    path: Path, file: Any, dims: Sequence[str], leading: Collection[str], coordinates: Sequence[str] | None
) -> list[str]:
    """Returns the dimensions of the grid, in the order of the first input."""
    if coordinates is not None and (unknown := [name for name in coordinates if name not in dims]):
        raise FileError(
            f"{path}: {unknown[0]!r} is not a dimension of the inputs, which have {listed(dims, True)}; name "
            "dimensions by coordinates."
        )
    axes = [
        dim
        for dim in dims
        if dim not in leading and (dim in file.coords if coordinates is None else dim in coordinates)
    ]
    if without := [axis for axis in axes if axis not in file.coords]:
        raise FileError(f"{path}: the dimension {without[0]!r} has no coordinates; add a variable of this name.")
    if not axes:
        raise FileError(
            f"{path}: none of the dimensions {listed(dims, True)} has coordinates besides the samples "
            f"({', '.join(sorted(leading))}), so "
            "the nodes are unknown; add a variable with the name of each dimension of the grid."
        )
    return axes


def _latitude(path: Path, file: Any, axes: Sequence[str]) -> str | None:
    """Returns the axis of latitude if the axes are latitude and longitude, or else None.

    Raises:
        ValueError: if they are among more than two axes, because the sphere has no further axis.
    """

    def is_angle(axis: str, kind: str) -> bool:
        attributes = file[axis].attrs
        return bool({axis.lower(), attributes.get("units"), attributes.get("standard_name")} & {*_DEGREES[kind]})

    pairs = itertools.permutations(axes, 2)
    pair = next(((a, b) for a, b in pairs if is_angle(a, "latitude") and is_angle(b, "longitude")), None)
    if pair is not None and len(axes) > 2:
        raise FileError(
            f"{path}: the grid {listed(axes, True)} has latitude, longitude and another axis; name {pair[0]!r} and "
            f"{pair[1]!r} by coordinates, so that the other axis counts channels. If all axes are evenly spaced, a "
            "rule makes a plain grid of them, in degrees."
        )
    return None if pair is None else pair[0]
