"""Reader of the files and folders of a user."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxop._validation import near
from jaxop.data.files import meshes, netcdf, own_nodes
from jaxop.data.files._reading import FileError, naming, reading, refuse_unread
from jaxop.data.files.layout import from_arrays
from jaxop.data.files.on_demand import OnDemand, files_of
from jaxop.data.files.open import ARCHIVES, Archive, box_of, coordinates_of, counted_from_zero, listed, open_archive
from jaxop.data.ragged import RaggedSamples
from jaxop.data.sample import Sample
from jaxop.data.samples import Samples

FORMATS = (*ARCHIVES, *meshes.MESHES, *netcdf.NETCDF)
"""Suffixes that `read` supports."""

_DEFAULTS: Mapping[str, object] = {
    "coordinates": "coordinates",
    "weights": "weights",
    "initial": "initial",
    "faces": "faces",
    "offsets": "offsets",
    "at": "at",
    "sample_dimension": None,
    "dim": None,
    "rule": None,
    "lower": None,
    "upper": None,
    "external": False,
}


def read(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    inputs: str | Sequence[str] = "x",
    targets: str | Sequence[str] = "y",
    coordinates: str | Sequence[str] | None = "coordinates",
    weights: str | None = "weights",
    initial: str | None = "initial",
    faces: str | None = "faces",
    offsets: str | None = "offsets",
    at: str | None = "at",
    sample_dimension: str | None = None,
    dim: int | None = None,
    rule: str | Sequence[str] | None = None,
    lower: float | Sequence[float] | None = None,
    upper: float | Sequence[float] | None = None,
    external: bool = False,
) -> Samples | RaggedSamples:
    """Pairs of functions from a file, or from files with one sample each.

    | what | suffixes | samples |
    |---|---|---|
    | arrays | .npz; .h5, .hdf5 (HDF5); .mat (MATLAB, all versions) | rows of the arrays, on nodes that they share |
    | arrays with offsets | .npz, .h5, .hdf5 | rows offsets[s], …, offsets[s + 1] − 1, each sample on its own nodes |
    | groups | .h5, .hdf5 | one in each group, on its own nodes |
    | folder or list of arrays | .npz | one in each file, on its own nodes |
    | mesh | .vtu, .vtp, .vtk, .stl, .ply, .msh, .obj | one |
    | folder or list of meshes | the same | one in each file, on its own nodes |
    | netCDF | .nc, .nc4, .cdf | entries along a dimension, on the grid of the others |

    **Arrays** have the meaning that they have in `from_arrays`. Names of datasets inside HDF5 groups are paths,
    "run/a". Coordinates, weights, initial data and faces are optional. Datasets of the default names are used
    if the file has them and they are not empty. A dataset of any other name must exist. None disables a dataset.
    If there is one dataset of coordinates per axis, name them in a sequence, or call them coordinates_0,
    coordinates_1, … in the file. A file written by `save` also holds its rule and box. A warning names the
    datasets that are not read.

    Inputs and targets in HDF5 stay in the file. It is opened again for every batch, and scanned once
    in blocks for values that are not finite. Chunks that hold single samples are fastest. Every value must
    have been written, because HDF5 would return fill values for the others. MATLAB files are read into memory.
    Version 7.3 is HDF5 with reversed axes, which are put back in order. If MATLAB counts the indices of faces
    from 1, they are converted to count from 0.

    **Samples with their own nodes** are read when they are needed, one at a time, and checked once before. Arrays of a
    sample have shape (n,) or (n, channels), its coordinates (n, dim), its weights (n,). Arrays with offsets hold the
    nodes of all samples after each other; faces then count rows through all samples. If there are nodes ``at``, they
    are those of the targets, with weights ``at_weights`` and, for arrays with offsets, first rows ``at_offsets``.
    Several names of inputs, targets or coordinates are columns. In one dimension nodes without weights get trapezoid
    weights. In more dimensions their Delaunay triangulation gives weights, and a warning says so.

    **Meshes** consist of triangles and quadrilaterals, of tetrahedra, or of lines; boundaries between their nodes are
    left out. If the third coordinate is 0 everywhere, a mesh without tetrahedra is two-dimensional. Inputs and targets
    are names of fields on points or cells, one or several; vectors are channels, and values in cells are averaged at
    each vertex, by measure. The name "coordinates" stands for the coordinates of the nodes. Files without
    cells are treated as nodes without weights.

    **netCDF** files have variables by name, on grids of coordinate variables, which may be uneven. They are read
    lazily. If the grid has latitude and longitude and no ``rule``, its nodes are points (x, y, z) of the unit sphere,
    whose weights are the areas of their cells.

    Args:
        path: the file, whose suffix is one of `FORMATS`, a folder, or a list of files with one sample each.
        inputs: name of the input functions, or names whose channels follow each other.
        targets: name or names of the target functions.
        coordinates: name or names of the coordinates; of the dimensions of the grid in netCDF.
        weights: name of the quadrature weights of the nodes.
        initial: name of the data given at the first node.
        faces: name of the triangles of a mesh, whose vertices are the coordinates.
        offsets: name of the first row of every sample and the number of all rows, N + 1 integers, if samples have
            their own nodes.
        at: name of the nodes of the targets, if they are not those of the inputs and samples have their own nodes;
            their weights and offsets have this name with _weights and _offsets appended.
        sample_dimension: dimension of netCDF that counts samples; None means the first one of the inputs.
        dim: space dimension, if the shapes do not determine it.
        rule: quadrature rule of the grid, one or one per axis.
        lower: lower corner of the box.
        upper: upper corner of the box.
        external: whether HDF5 may read from other files than this one, through external links, external
            storage and virtual datasets.

    Returns:
        `Samples`, or `RaggedSamples` if samples have their own nodes.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if the format needs h5py, scipy, meshio or xarray, and it is not installed.
        OSError: if the operating system does not allow reading the file, or another process writes it.
        TypeError: if data are not real numbers.
        ValueError: if the suffix is unknown; if the file is empty, truncated or of another type than its suffix; if a
            dataset, field or variable is missing (the message lists those of the file); if an array is larger than the
            file or the memory; if values were never written or are in other files; if a mesh has other cells; if a
            sample of a set has another dimension, kind of nodes or number of channels than the first; if an option
            does not apply to the file; or for the reasons of `from_arrays`. Every message names the file.

    Cost: one pass over the values.

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
    options = {
        "coordinates": coordinates,
        "weights": weights,
        "initial": initial,
        "faces": faces,
        "offsets": offsets,
        "at": at,
        "sample_dimension": sample_dimension,
        "dim": dim,
        "rule": rule,
        "lower": lower,
        "upper": upper,
        "external": external,
    }
    return _read(path, _names(inputs, "inputs"), _names(targets, "targets"), options)


def read_inputs(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, inputs: str | Sequence[str], **options: Any
) -> Samples | RaggedSamples:
    """Returns the input functions of files that need not have targets; the values of the set's targets mean nothing.

    Args:
        path: see `read`.
        inputs: see `read`.
        **options: those of `read`, except for ``targets``.
    """
    return _read(path, _names(inputs, "inputs"), (), {**_DEFAULTS, **options})


def _read(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    u: tuple[str, ...],
    v: tuple[str, ...],
    options: Mapping[str, Any],
) -> Samples | RaggedSamples:
    """Returns the functions of the given names; without targets, the inputs or zeros stand for them."""
    if not isinstance(path, str | os.PathLike):
        return _read_files([Path(one) for one in path], u, v, options)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS and path.is_dir():
        return _read_folder(path, u, v, options)
    if suffix in meshes.MESHES:
        return _read_files([path], u, v, options)
    if suffix in netcdf.NETCDF:
        _refuse(path, "a netCDF file", options, read=("coordinates", "sample_dimension", "rule"))
        axes = options["coordinates"]
        return netcdf.read_netcdf(
            path,
            inputs=u,
            targets=v or u,
            samples=options["sample_dimension"],
            coordinates=None if axes in (None, "coordinates") else _names(axes, "coordinates"),
            rule=options["rule"],
            formats=FORMATS,
        )
    if suffix not in ARCHIVES:
        if not suffix and not path.exists():
            folders = [one.name for one in path.parent.iterdir() if one.is_dir()] if path.parent.is_dir() else []
            hint = near(path.name, folders) or "give the path of a folder."
            raise FileNotFoundError(f"{path} has the suffix '', so it would be a folder, and it does not exist; {hint}")
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}, expected one of {', '.join(FORMATS)}, or a folder of such files; "
            "convert the file, or read it yourself and pass the arrays to jaxop.data.from_arrays."
        )
    _refuse(path, "arrays", options, read=[name for name in options if name != "sample_dimension"])
    archive = open_archive(path, formats=FORMATS, external=options["external"])
    names, offsets = _own_names(u, v, options), options["offsets"]
    if not archive.is_matlab and offsets is not None and (offsets != "offsets" or archive.has(offsets)):
        _refuse(path, "samples with their own nodes", options, read=(*names, "offsets", "external"))
        return own_nodes.of_offsets(archive, offsets, names)
    if (groups := own_nodes.of_groups(archive, names)) is not None:
        _refuse(path, "samples with their own nodes", options, read=(*names, "external"))
        return groups
    _refuse(path, "arrays on shared nodes", options, read=[name for name in options if name not in ("at", "offsets")])
    return _read_shared(archive, u, v or u, options)


def _read_shared(
    archive: Archive, inputs: tuple[str, ...], targets: tuple[str, ...], options: Mapping[str, Any]
) -> Samples:
    """Returns the samples of arrays on nodes that they share, or on nodes (samples, n, dim)."""
    for name, several in (("inputs", inputs), ("targets", targets)):
        if len(several) > 1:
            raise ValueError(
                f"{archive.path}: {name} names {len(several)} arrays, {listed(several, True)}, and samples on shared "
                "nodes have one; store them as the channels of one array, its last axis."
            )
    given: dict[str, Any] = {name: archive.optional(options[name], name) for name in ("weights", "initial", "faces")}
    nodes = coordinates_of(archive, options["coordinates"])
    if given["weights"] is not None:
        given["weights"] = archive.vector(given["weights"])
    if given["faces"] is not None and archive.is_matlab and isinstance(nodes, np.ndarray):
        given["faces"] = counted_from_zero(archive.path, given["faces"], len(nodes))
    dim, box = options["dim"], {name: options[name] for name in ("rule", "lower", "upper")}
    if nodes is None and archive.kind == ".npz":
        dim, box = box_of(archive, dim, box)
    if options["offsets"] is None:
        archive.left_out.add("offsets")
    u, v = archive.functions(inputs[0]), archive.functions(targets[0])
    with naming(archive.path, f"inputs: {inputs[0]!r}, targets: {targets[0]!r}"):
        samples = from_arrays(u, v, nodes, dim=dim, **box, **given)
    archive.warn_of_unread()
    return samples


def _read_folder(
    folder: Path, inputs: tuple[str, ...], targets: tuple[str, ...], options: Mapping[str, Any]
) -> RaggedSamples:
    with reading(folder, "mesh", "its list of files"):
        paths = files_of(folder, (*meshes.MESHES, ".npz"))
        others = files_of(folder, FORMATS)
    if not paths:
        hint = f"; it has {listed([p.name for p in others], True)}, which are read one by one" if others else ""
        raise FileError(
            f"{folder} has no files of single samples ({', '.join(meshes.MESHES)} or .npz){hint}; give the folder "
            "that holds them."
        )
    return _read_files(paths, inputs, targets, options)


def _read_files(
    paths: Sequence[Path], inputs: tuple[str, ...], targets: tuple[str, ...], options: Mapping[str, Any]
) -> RaggedSamples:
    """Returns the set of files that hold one sample each, all of them meshes or all of them arrays."""
    of_meshes = [path for path in paths if path.suffix.lower() in meshes.MESHES]
    of_arrays = [path for path in paths if path.suffix.lower() == ".npz"]
    if not paths or len(of_meshes) + len(of_arrays) < len(paths):
        others = [str(path) for path in paths if path not in of_meshes + of_arrays]
        raise FileError(
            f"path must hold files of single samples ({', '.join(meshes.MESHES)} or .npz), got "
            f"{listed(others, True) or 'an empty list'}; read others one by one."
        )
    if of_meshes and of_arrays:
        raise FileError(
            f"{of_meshes[0].parent} has files of meshes ({of_meshes[0].name}, …) and of arrays "
            f"({of_arrays[0].name}, …); put each kind into a folder of its own."
        )
    if of_arrays:
        names = _own_names(inputs, targets, options)
        _refuse(paths[0].parent, "a folder of arrays", options, read=names)
        return own_nodes.of_files(of_arrays, names)
    weights = options["weights"]
    _refuse(paths[0], "a mesh, whose nodes and cells are in the file", options, read=("weights",))
    first = meshes.read_mesh(paths[0], formats=FORMATS)
    are_computed, found = not first.has_weights(weights), _cells(first)

    def read_one(i: int) -> Sample:
        mesh = meshes.read_mesh(paths[i])
        if _cells(mesh) != found:  # triangulated nodes would be taken for the mesh of the others
            raise FileError(
                f"{paths[i]} has {_cells(mesh)}, but {paths[0]} has {found}; all samples of a set are functions of one "
                "kind: move this one to another set."
            )
        return meshes.sample(mesh, inputs=inputs, targets=targets, weights=weights)

    samples = OnDemand([str(path) for path in paths], read_one)
    if are_computed:
        own_nodes.warn_of_computed_weights(str(paths[0]))
    return RaggedSamples(samples)


def _cells(mesh: meshes.MeshFile) -> str:
    return "no cells" if mesh.cells is None else "cells"


def _own_names(
    inputs: tuple[str, ...], targets: tuple[str, ...], options: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """Returns the names of the arrays of samples with their own nodes."""
    keys = ("coordinates", "weights", "initial", "faces", "at")
    others = {key: () if options[key] is None else _names(options[key], key) for key in keys}
    others["at_weights"] = tuple(f"{name}_weights" for name in others["at"])
    return {"inputs": inputs, "targets": targets, **others}


def _names(names: str | Sequence[str], argument: str) -> tuple[str, ...]:
    given = (names,) if isinstance(names, str) else tuple(names)
    if not given or not all(isinstance(name, str) for name in given):
        raise TypeError(f"{argument} must be a name or a list of names, got {names!r}.")
    return given


def _refuse(path: Path, what: str, options: Mapping[str, object], *, read: Collection[str]) -> None:
    refuse_unread(path, what, options, _DEFAULTS, read=read)
