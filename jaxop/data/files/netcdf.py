"""netCDF files: variables on grids of coordinate variables, plain or in latitude and longitude."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxop import domains
from jaxop._validation import closest, require
from jaxop.data.files._reading import FileError, first_bytes, naming, reading
from jaxop.data.files.layout import as_functions, from_arrays
from jaxop.data.files.open import listed
from jaxop.data.samples import Rows, Samples

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
        axes = _grid(path, file, dims, str(count), coordinates)
        for name, variable in variables.items():
            if missing := {str(count), *axes} - set(variable.dims):
                raise FileError(
                    f"{path}: the variable {name!r} has the dimensions {listed(variable.dims, True)} without "
                    f"{listed(sorted(missing), True)}; all variables have the samples and the grid of {inputs[0]!r}."
                )
            if len(set(variable.dims) - {str(count), *axes}) > 1:
                raise FileError(
                    f"{path}: the variable {name!r} has the dimensions {listed(variable.dims, True)}: samples "
                    f"({count}), grid ({', '.join(axes)}) and more than one other, which could be channels; name the "
                    "dimensions of the grid by coordinates."
                )
        nodes = {axis: np.array(file[axis].values) for axis in axes}
        latitude = _latitude(path, file, axes) if rule is None else None
    if latitude is not None:
        axes = [latitude, *(axis for axis in axes if axis != latitude)]
        with naming(path, ", ".join(axes)):
            domain = domains.latitude_longitude(*(nodes[axis].astype(np.float64) for axis in axes))
        shape = tuple(len(nodes[axis]) for axis in axes)
        u, v = (
            as_functions(_Variables(path, names, str(count), tuple(axes), frozenset()), shape, argument)
            for argument, names in (("inputs", inputs), ("targets", targets))
        )
        with naming(path, f"inputs: {', '.join(inputs)}, targets: {', '.join(targets)}"):
            return Samples(u, v, domain)
    flipped = {axis for axis, values in nodes.items() if len(values) > 1 and values[0] > values[-1]}
    nodes = {axis: values[::-1] if axis in flipped else values for axis, values in nodes.items()}
    u, v = (_Variables(path, names, str(count), tuple(axes), frozenset(flipped)) for names in (inputs, targets))
    with naming(path, f"inputs: {', '.join(inputs)}, targets: {', '.join(targets)}"):
        return from_arrays(u, v, list(nodes.values()), rule=rule)


class _Variables:
    """Variables of a file as the channels of one array (samples, *grid, channels), of which rows are read.

    Attributes:
        shape: length of every axis.
        dtype: NumPy dtype.
    """

    def __init__(self, path: Path, names: Sequence[str], count: str, axes: tuple[str, ...], flipped: frozenset[str]):
        self._path, self._names, self._count, self._axes, self._flipped = path, names, count, axes, flipped
        with self._parts() as parts:
            sizes = parts[0].sizes
            channels = sum(part.size // int(np.prod([sizes[d] for d in (count, *axes)])) for part in parts)
            self.shape: tuple[int, ...] = (sizes[count], *(sizes[axis] for axis in axes), channels)
            self.dtype = np.result_type(*(part.dtype for part in parts))

    def __getitem__(self, index: Rows, /) -> np.ndarray:
        with self._parts() as parts, reading(self._path, "netCDF", f"its variables {', '.join(self._names)}"):
            rows = [np.array(part.isel({self._count: index}).values) for part in parts]
        axes = len(self._axes)
        rows = [row.reshape(*row.shape[: 1 + axes], -1) for row in rows]
        return np.concatenate(rows, axis=-1)

    @contextlib.contextmanager
    def _parts(self) -> Iterator[list["xarray.DataArray"]]:
        with _opened(self._path) as file:
            backwards = {axis: slice(None, None, -1) for axis in self._flipped}
            yield [file[name].isel(backwards).transpose(self._count, *self._axes, ...) for name in self._names]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens the file for reading and closes it at the end; packed values are scaled, times stay numbers."""
    xarray = require("xarray", f"reading {path}", extra="netcdf")
    with reading(path, "netCDF"):
        file = xarray.open_dataset(path, decode_times=False)
    with file:
        yield file


def _variable(path: Path, file: Any, name: str) -> Any:
    if name not in file.variables:
        names = [str(key) for key in file.data_vars]
        raise FileError(f"{path} has no variable {name!r}; it has {listed(names, True)}: {closest(name, names)}")
    return file[name]


def _grid(path: Path, file: Any, dims: Sequence[str], count: str, coordinates: Sequence[str] | None) -> list[str]:
    """Returns the dimensions of the grid, in the order of the first input."""
    if coordinates is not None and (unknown := [name for name in coordinates if name not in dims]):
        raise FileError(
            f"{path}: {unknown[0]!r} is not a dimension of the inputs, which have {listed(dims, True)}; name "
            "dimensions by coordinates."
        )
    axes = [dim for dim in dims if dim != count and (dim in file.coords if coordinates is None else dim in coordinates)]
    if without := [axis for axis in axes if axis not in file.coords]:
        raise FileError(f"{path}: the dimension {without[0]!r} has no coordinates; add a variable of this name.")
    if not axes:
        raise FileError(
            f"{path}: none of the dimensions {listed(dims, True)} has coordinates besides the samples ({count}), so "
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
