"""Writer of sets that `jaxop.data.read` can read."""

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np

from jaxop.data.samples import Samples
from jaxop.domains import Domain, Grid, PointCloud, TetrahedralMesh, TriangleMesh
from jaxop.domains.domain import check_domain
from jaxop.domains.rules import is_named


def save(path: str | os.PathLike[str], samples: Samples) -> None:
    """Writes samples as .npz, from which `read` restores the same functions on the same nodes and weights.

    Functions are stored as ``x`` and ``y`` of shape (samples, *grid, channels). A grid is stored by its rule and box,
    other nodes as ``coordinates`` with ``weights`` or ``faces``. Initial data are stored as ``initial``. The file
    appears only when it is complete.

    Args:
        path: the file to write, with suffix .npz. An existing file is replaced.
        samples: a set whose targets are on the inputs' domain: a grid under rules, one-dimensional
            given nodes, scattered nodes, or a mesh shared by all samples.

    Raises:
        ValueError: if the suffix is not .npz, or the file cannot describe the domain.

    Example:
        >>> import tempfile
        >>> from jaxop import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data.save(folder + "/darcy.npz", data.darcy(2, 8, seed=0))
        ...     print(data.read(folder + "/darcy.npz").domain.shape)
        (8, 8)
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path} has the suffix {path.suffix!r}; samples are written as .npz.")
    if samples.at is not None:
        raise ValueError("samples have targets on another domain than inputs (at), which the file cannot describe.")
    domain = check_domain(samples.domain, "samples.domain")
    shape = domain.shape if isinstance(domain, Grid) and not domain.is_batched else (domain.size,)
    arrays = _described(domain)
    arrays["x"], arrays["y"] = (
        np.asarray(source[:]).reshape(len(samples), *shape, -1) for source in (samples.inputs, samples.targets)
    )
    if samples.initial is not None:
        arrays["initial"] = np.asarray(samples.initial[:])
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _described(domain: Domain) -> dict[str, Any]:
    """Returns the arrays from which `read` rebuilds a domain."""
    if isinstance(domain, Grid):
        if all(is_named(axis.rule) for axis in domain.axes) and not domain.is_batched:
            ends = np.array([axis.ends for axis in domain.axes])
            return {"rule": np.array(domain.rules), "lower": ends[:, 0], "upper": ends[:, 1]}
        if domain.dim == 1 and domain.has_given_nodes:
            axis = domain.axes[0]
            return {"coordinates": np.asarray(axis.nodes)[..., None], "weights": np.asarray(axis.weights)}
    if isinstance(domain, TriangleMesh | TetrahedralMesh) and not domain.is_batched:
        return {"coordinates": np.asarray(domain.points), "faces": np.asarray(domain.simplices)}
    if isinstance(domain, PointCloud):
        return {"coordinates": np.asarray(domain.points), "weights": np.asarray(domain.weights)}
    raise ValueError(
        f"the file cannot describe this domain ({type(domain).__name__} of dimension {domain.dim}); it can describe a "
        "grid under named rules, given nodes of one dimension, scattered nodes (jaxop.domains.from_nodes), and a mesh."
    )
