"""Reader of the nodes of a file, whose functions are not read."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxop import domains
from jaxop._validation import float_dtype
from jaxop.data.files import meshes, netcdf
from jaxop.data.files._reading import FileError, naming
from jaxop.data.files.layout import domain_of
from jaxop.data.files.open import ARCHIVES, box_of, coordinates_of, counted_from_zero, open_archive
from jaxop.domains import Domain

FORMATS = (*ARCHIVES, *meshes.MESHES, *netcdf.NETCDF)
"""Suffixes that `read_nodes` supports."""


def read_nodes(path: str | os.PathLike[str]) -> Domain:
    """Returns the nodes of a file as one domain; functions in the file are not read.

    | file | domain |
    |---|---|
    | mesh (.vtu, …) | the mesh, or scattered nodes if it has no cells |
    | arrays (.npz, .h5, .mat) with ``coordinates`` of shape (n, dim) and ``faces`` | a mesh |
    | with ``coordinates`` of shape (n, dim), and ``weights`` or not | scattered nodes; without weights, 1/n each |
    | with ``coordinates_0``, ``coordinates_1``, … or ``coordinates`` of shape (n,) | a grid of given nodes |
    | with ``rule``, ``lower``, ``upper`` and ``x``, as `jaxop.data.save` writes them | a grid of a rule |
    | netCDF (.nc, .nc4, .cdf) | the grid of its coordinate variables but time; latitude and longitude on the sphere |

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if the format needs a package that is not installed.
        ValueError: if the suffix is unknown, the file does not hold the nodes of one domain, or it is damaged.

    Cost: one reading of the nodes, and what their domain computes, such as the weights of a mesh.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in meshes.MESHES:
        mesh = meshes.read_mesh(path, formats=FORMATS)
        if mesh.cells is None and not mesh.has_weights("weights"):
            return _cloud(path, mesh.points)
        return mesh.domain("weights")
    if suffix in netcdf.NETCDF:
        return netcdf.read_grid(path, formats=FORMATS)
    if suffix not in ARCHIVES:
        raise FileError(
            f"{path} has the suffix {path.suffix!r}, expected one of {', '.join(FORMATS)}; store the nodes as "
            "'coordinates' of shape (n, dim) in an .npz file."
        )
    archive = open_archive(path, formats=FORMATS)
    if archive.has("offsets"):
        raise FileError(f"{path} has nodes of several samples (offsets); give a file with the nodes of one domain.")
    nodes = coordinates_of(archive, "coordinates")
    weights, faces = archive.optional("weights", "weights"), archive.optional("faces", "faces")
    weights = None if weights is None else archive.vector(weights)
    box: dict[str, Any] = {"rule": None, "lower": None, "upper": None}
    if nodes is None:
        dim, box = box_of(archive, None, box)
        if dim is None or not archive.has("x"):
            raise FileError(
                f"{path} has no nodes: neither 'coordinates', nor 'coordinates_0' and so on for the axes of a grid, "
                "nor the grid of a file of jaxop.data.save; store 'coordinates' of shape (n, dim)."
            )
        shape = tuple(archive.source("x").shape)
    else:
        dim = None
        if isinstance(nodes, np.ndarray) and nodes.ndim == 1 and (np.diff(nodes) <= 0).any():
            nodes = nodes[:, None]  # points in any order
        if isinstance(nodes, np.ndarray) and nodes.ndim == 2 and faces is None and weights is None:
            return _cloud(path, nodes)
        if isinstance(nodes, np.ndarray) and nodes.ndim not in (1, 2):
            raise FileError(
                f"{path} has coordinates of shape {nodes.shape}; give the nodes of one domain, of shape (n, dim)."
            )
        if faces is not None and archive.is_matlab and isinstance(nodes, np.ndarray):
            faces = counted_from_zero(path, faces, len(nodes))
        shape = (1, *(map(len, nodes) if isinstance(nodes, list) else (len(nodes),)))
    with naming(path, "its nodes"):
        domain, _ = domain_of(shape, shape, nodes, weights=weights, faces=faces, dim=dim, **box)
    return domain


def _cloud(path: Path, points: np.ndarray) -> Domain:
    """Returns nodes of equal weights, of measure 1."""
    if len(points) > 1 and (points == points[0]).all():
        raise FileError(
            f"{path} has {len(points)} nodes that all coincide, at {tuple(points[0].tolist())}; give the coordinates "
            "of different nodes, of shape (n, dim)."
        )
    with naming(path, "its nodes"):
        return domains.monte_carlo(points.astype(float_dtype()))
