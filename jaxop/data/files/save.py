"""Writer of sets that `jaxop.data.read` can read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxop._files import appearing
from jaxop._validation import require
from jaxop.data._support import has_own_weights
from jaxop.data.ragged import RaggedSamples
from jaxop.data.samples import Samples
from jaxop.data.trajectories import Trajectories, time_blocks
from jaxop.domains import Domain, Grid, PointCloud, TetrahedralMesh, TriangleMesh
from jaxop.domains.domain import check_domain
from jaxop.domains.measure import trapezoid_weights
from jaxop.domains.rules import is_named


def save(path: str | os.PathLike[str], samples: Samples | RaggedSamples | Trajectories) -> None:
    """Writes samples as .npz, from which `read` restores the same functions on the same nodes and weights.

    Trajectories are written as .npz or HDF5 (.h5, .hdf5), from which `read_trajectories` restores them: ``states`` of
    shape (samples, times, *grid, channels), ``times``, ``parameters`` and ``parameter_names``. HDF5 is written and read
    in blocks, and may be larger than memory.

    Functions are stored as ``x`` and ``y`` of shape (samples, *grid, channels). A grid is stored by its rule and box,
    or by its nodes along each axis; other nodes as ``coordinates`` with ``weights`` or ``faces``. Initial data are
    stored as ``initial``. If samples have their own nodes, arrays hold the nodes of all samples after each other, and
    ``offsets`` the first row of each sample. Targets on other nodes than the inputs have nodes ``at`` with
    ``at_weights`` and ``at_offsets``. The file appears only when it is complete.

    Args:
        path: the file to write. An existing file is replaced.
        samples: a set whose targets are on the inputs' domain: a grid under rules or of given nodes with trapezoid
            weights, one-dimensional given nodes, scattered nodes, or a mesh of triangles or tetrahedra shared by all
            samples; or a `RaggedSamples` with such nodes, whose targets may be on others; or `Trajectories` on a domain
            of this kind.

    Raises:
        ImportError: if h5py is not installed, which writes HDF5.
        ValueError: if the suffix is not .npz, or HDF5 for trajectories, or the file cannot describe the domain.

    Example:
        >>> import tempfile
        >>> from jaxop import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data.save(folder + "/darcy.npz", data.darcy(2, 8, seed=0))
        ...     print(data.read(folder + "/darcy.npz").domain.shape)
        (8, 8)
    """
    path = Path(path)
    if isinstance(samples, Trajectories):
        _save_trajectories(path, samples)
    else:
        write_arrays(path, arrays_of(samples))


def arrays_of(samples: Samples | RaggedSamples) -> dict[str, Any]:
    """Returns the arrays that `save` writes, by name; raises its errors."""
    if isinstance(samples, RaggedSamples):
        return _rows(samples)
    if samples.at is not None:
        raise ValueError("samples have targets on another domain than inputs (at), which the file cannot describe.")
    domain = check_domain(samples.domain, "samples.domain")
    shape = domain.shape if isinstance(domain, Grid) and not domain.is_batched else (domain.size,)
    arrays = described(domain)
    arrays["x"], arrays["y"] = (
        np.asarray(source[:]).reshape(len(samples), *shape, -1) for source in (samples.inputs, samples.targets)
    )
    if samples.initial is not None:
        arrays["initial"] = np.asarray(samples.initial[:])
    return arrays


def _save_trajectories(path: Path, trajectories: Trajectories) -> None:
    if path.suffix.lower() not in (".npz", ".h5", ".hdf5"):
        raise ValueError(f"{path} has the suffix {path.suffix!r}; trajectories are written as .npz or HDF5 (.h5).")
    domain = check_domain(trajectories.domain, "trajectories.domain")
    grid = domain.shape if isinstance(domain, Grid) and not domain.is_batched else (domain.size,)
    shape = (len(trajectories), trajectories.steps, *grid, trajectories.channels)
    arrays = described(domain) | {"times": np.asarray(trajectories.times)}
    if trajectories.parameters is not None:
        arrays["parameters"] = np.asarray(trajectories.parameters)
    if trajectories.parameter_names:
        arrays["parameter_names"] = np.array(trajectories.parameter_names)
    dtype = np.dtype(trajectories.states.dtype)
    if path.suffix.lower() == ".npz":
        states = np.empty((*shape[:2], domain.size, shape[-1]), dtype)
        for i in range(len(trajectories)):
            states[i] = trajectories.frames(i, slice(None))
        write_arrays(path, arrays | {"states": states.reshape(shape)})
        return
    h5py = require("h5py", f"writing {path}")
    with appearing(path) as partial, h5py.File(partial, "w") as file:
        for name, array in arrays.items():
            file[name] = array.astype(h5py.string_dtype()) if array.dtype.kind == "U" else array
        # without chunks, the times of a window are next to each other
        states = file.create_dataset("states", shape, dtype)
        for i in range(len(trajectories)):
            for times in time_blocks(trajectories.states.shape):
                block = trajectories.frames(i, times)
                states[i, times] = block.reshape(len(block), *shape[2:])


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as .npz, which appears when it is complete; raises ``ValueError`` for another suffix."""
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path} has the suffix {path.suffix!r}; samples are written as .npz.")
    with appearing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _rows(samples: RaggedSamples) -> dict[str, Any]:
    """Returns the arrays of all samples, one after another."""
    parts: dict[str, list[Any]] = {}
    offsets, at_offsets = [0], [0]
    for i in range(len(samples)):
        one = samples.sample(i)
        arrays = described(one.domain)
        if "coordinates" not in arrays:
            raise ValueError(
                f"the file cannot describe grids of samples of their own ({type(one.domain).__name__} of dimension "
                f"{one.domain.dim}); convert them by jaxop.domains.from_nodes(domain.points, domain.weights)."
            )
        if "faces" in arrays:
            arrays["faces"] = arrays["faces"] + offsets[-1]
        arrays |= {"x": one.inputs, "y": one.targets}
        arrays |= {} if one.initial is None else {"initial": np.asarray(one.initial)[None]}
        if one.at is not None:
            arrays |= {"at": np.asarray(one.at.points), "at_weights": np.asarray(one.at.weights)}
            at_offsets.append(at_offsets[-1] + one.at.size)
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)
        offsets.append(offsets[-1] + one.domain.size)
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()} | {"offsets": np.array(offsets)}
    return joined | ({"at_offsets": np.array(at_offsets)} if len(at_offsets) > 1 else {})


def described(domain: Domain) -> dict[str, Any]:
    """Returns the arrays from which `read` rebuilds a domain."""
    if isinstance(domain, Grid):
        if all(is_named(axis.rule) for axis in domain.axes) and not domain.is_batched:
            ends = np.array([axis.ends for axis in domain.axes])
            return {"rule": np.array(domain.rules), "lower": ends[:, 0], "upper": ends[:, 1]}
        if domain.dim == 1 and domain.has_given_nodes:
            axis = domain.axes[0]
            return {"coordinates": np.asarray(axis.nodes)[..., None], "weights": np.asarray(axis.weights)}
        nodes = {f"coordinates_{k}": np.asarray(axis.nodes) for k, axis in enumerate(domain.axes)}
        if not domain.is_batched and all(
            np.array_equal(axis.weights, trapezoid_weights(nodes[f"coordinates_{k}"]))
            for k, axis in enumerate(domain.axes)
        ):
            return nodes
    if isinstance(domain, TriangleMesh | TetrahedralMesh) and not domain.is_batched:
        if has_own_weights(domain):
            raise ValueError(
                f"the weights of a {type(domain).__name__} are not those of its {domain.simplices_name}, which the "
                "file stores in their place; convert it by jaxop.domains.from_nodes(domain.points, domain.weights)."
            )
        return {"coordinates": np.asarray(domain.points), "faces": np.asarray(domain.simplices)}
    if isinstance(domain, PointCloud):
        return {"coordinates": np.asarray(domain.points), "weights": np.asarray(domain.weights)}
    raise ValueError(
        f"the file cannot describe this domain ({type(domain).__name__} of dimension {domain.dim}); it can describe a "
        "grid under named rules, given nodes of one dimension, scattered nodes, and a mesh of triangles or tetrahedra. "
        "Convert others by jaxop.domains.from_nodes(domain.points, domain.weights)."
    )
