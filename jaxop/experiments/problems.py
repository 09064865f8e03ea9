"""Data of an experiment: generated problems, which are stored on disk, and files of a user."""

import dataclasses
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from jaxop import data, training
from jaxop._validation import check_size
from jaxop.data import RaggedSamples, Samples
from jaxop.data.files.read import read_inputs
from jaxop.domains import Domain, Grid, from_points
from jaxop.training._files import local_path

_VALID, _TEST = 1_000_000, 2_000_000  # first sample numbers, so that sets never share samples
_FORMAT = 1  # version of the cache

Value = TypeVar("Value")

AnySamples: TypeAlias = Samples | RaggedSamples
"""A set of pairs of functions, on shared nodes or each on its own."""


@dataclasses.dataclass(frozen=True)
class Sets:
    """The sets of one experiment.

    Attributes:
        train: training samples.
        valid: sets by name that are evaluated during training; the first set decides which checkpoint is the best.
        test: sets by name that are evaluated at the end, on other grids or from other files.
        random_nodes: number of nodes of each training sample that a step sees, see `jaxop.data.RandomNodes`; None means
            all of them.
    """

    train: AnySamples
    valid: Mapping[str, AnySamples]
    test: Mapping[str, AnySamples]
    random_nodes: int | None = None

    @property
    def drawn(self) -> AnySamples | data.RandomNodes:
        """The training samples with the nodes that every step sees.

        Raises:
            ValueError: if ``random_nodes`` is below 1, or the samples have initial data.
        """
        return self.train if self.random_nodes is None else data.RandomNodes(self.train, self.random_nodes)


@runtime_checkable
class Problem(Protocol):
    """Protocol of the data settings of an experiment, a frozen dataclass.

    Attributes:
        name: name of the problem in the record of a run.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]
    name: ClassVar[str]

    def load(self, cache: Path) -> Sets:
        """Returns all sets of the experiment."""
        ...

    def at(self, grids: Sequence[str], cache: Path) -> Mapping[str, AnySamples]:
        """Returns test samples on other grids, by their names in the tables."""
        ...


@dataclasses.dataclass(frozen=True)
class DarcyData:
    """Darcy flow −∇·(a∇u) = 1 on the unit square: from the coefficient a to u, on midpoint grids and scattered points.

    Attributes:
        samples: training samples.
        valid_samples: samples that choose the best checkpoint, on the training grid.
        test_samples: samples of the final evaluation.
        resolution: nodes along each side of the training grid.
        grids: grids of the final evaluation: nodes along each side, or "points=COUNT" for random points, joined by
            triangles to a mesh.
        reference: nodes along each side of the grid of the numerical solution, which is interpolated to all others.
        coefficient: "two-valued" or "lognormal".
        seed: seed of the coefficient fields and the random points.
    """

    name: ClassVar[str] = "darcy"

    samples: int = 1000
    valid_samples: int = 100
    test_samples: int = 100
    resolution: int = 64
    grids: tuple[int | str, ...] = (32, 64, 128)
    reference: int = 256
    coefficient: str = "two-valued"
    seed: int = 0

    def load(self, cache: Path) -> Sets:
        """See `Problem`."""
        return Sets(
            train=self._sets("train", self.samples, 0, (self.resolution,), cache)[self.resolution],
            valid={
                "valid": self._sets("valid", self.valid_samples, _VALID, (self.resolution,), cache)[self.resolution]
            },
            test=self.at([str(grid) for grid in self.grids], cache),
        )

    def at(self, grids: Sequence[str], cache: Path) -> dict[str, AnySamples]:
        """See `Problem`; a grid is called by its nodes along a side, scattered points ``points=3000``."""
        counts = {grid: self._points(grid) for grid in grids if not grid.isdecimal()}
        sides = [int(grid) for grid in grids if grid.isdecimal()]
        even = self._sets("test", self.test_samples, _TEST, sides, cache)
        clouds = {grid: self._cloud(count, cache) for grid, count in counts.items()}
        return {f"{r}²": samples for r, samples in even.items()} | clouds

    def _points(self, grid: str) -> int:
        name, _, count = grid.partition("=")
        if name != "points" or not count.isdecimal() or int(count) < 3:
            raise ValueError(
                "grids must be numbers of nodes along a side, such as 32 64 128, or points=COUNT, at least 3 scattered "
                f"points, got {grid!r}."
            )
        return int(count)

    def _sets(self, part: str, samples: int, first: int, grids: Sequence[int], cache: Path) -> dict[int, AnySamples]:
        common = self._common(samples, first)
        paths = {r: cached(cache, f"darcy-{part}-{r}", common | {"resolution": r}) for r in grids}
        if missing := [r for r, path in paths.items() if not path.is_file()]:
            for r, made in data.darcy_resolutions(resolutions=missing, **common).items():
                data.save(paths[r], made)
        return {r: data.read(path) for r, path in paths.items()}

    def _cloud(self, count: int, cache: Path) -> AnySamples:
        """Returns the test samples on uniformly distributed points, joined by the Delaunay triangulation."""
        common = self._common(self.test_samples, _TEST)
        path = cached(cache, f"darcy-test-points-{count}", common | {"points": count, "mesh": "from_points"})
        if not path.is_file():
            points = np.random.default_rng((self.seed, count)).random((count, 2), np.float32)
            data.save(path, data.darcy_on(domain=from_points(points), **common))
        return data.read(path)

    def _common(self, samples: int, first: int) -> dict[str, Any]:
        """Returns the arguments that all sets share."""
        common = {"seed": self.seed, "reference": self.reference, "coefficient": self.coefficient}
        return common | {"samples": samples, "first": first}


@dataclasses.dataclass(frozen=True)
class _Trajectories:
    name: ClassVar[str]
    _generate: ClassVar[Callable[..., Samples]]

    samples: int = 10_000
    valid_samples: int = 500
    test_samples: int = 1000
    sampling: str = "dt=0.01"
    grids: tuple[str, ...] = ("dt=0.005", "dt=0.0075", "dt=0.01", "dt=0.015", "dt=0.02", "nodes=200")
    final_time: float = 2.0
    seed: int = 0

    def load(self, cache: Path) -> Sets:
        """See `Problem`."""
        return Sets(
            train=self._set("train", self.samples, 0, self.sampling, cache),
            valid={"valid": self._set("valid", self.valid_samples, _VALID, self.sampling, cache)},
            test=self.at(self.grids, cache),
        )

    def at(self, grids: Sequence[str], cache: Path) -> dict[str, AnySamples]:
        """See `Problem`; the name of a sampling is ``dt=0.01``, or ``nodes=200`` for uneven times."""
        return {grid: self._set("test", self.test_samples, _TEST, grid, cache) for grid in grids}

    def _set(self, part: str, samples: int, first: int, sampling: str, cache: Path) -> AnySamples:
        kind, _, value = sampling.partition("=")
        try:
            when = {"dt": float, "nodes": int}[kind](value)
            if not math.isfinite(when):
                raise ValueError
        except (KeyError, ValueError, OverflowError):
            raise ValueError(
                f"a sampling is 'dt=STEP' (even) or 'nodes=COUNT' (uneven, other times for every sample), "
                f"got {sampling!r}."
            ) from None
        if not math.isfinite(self.final_time):
            raise ValueError(f"final_time must be positive and finite, got {self.final_time}.")
        common = {"samples": samples, "first": first, "seed": self.seed, "final_time": self.final_time, kind: when}
        common |= self._options()
        path = cached(cache, f"{self.name}-{part}-{sampling}", common)
        if not path.is_file():
            data.save(path, self._generate(**common))
        return data.read(path)

    def _options(self) -> dict[str, str]:
        """Returns the arguments of the problem's generator other than samples and sampling."""
        return {}


@dataclasses.dataclass(frozen=True)
class ControlledOdeData(_Trajectories):
    """Controlled equation dz = sin(z) du, z(0) = 1: from the control u(t) to z(t), with its exact solution.

    Attributes:
        samples: training samples.
        valid_samples: samples that choose the best checkpoint, with the sampling of training.
        test_samples: samples of the final evaluation.
        sampling: sampling of the training set: "dt=STEP" for even times, "nodes=COUNT" for uneven times that
            differ from sample to sample.
        grids: samplings of the final evaluation.
        final_time: end of the interval, which starts at 0.
        seed: seed of the controls and times.
    """

    name: ClassVar[str] = "cde"
    _generate: ClassVar[Callable[..., Samples]] = staticmethod(data.controlled_ode)


@dataclasses.dataclass(frozen=True)
class LorenzData(_Trajectories):
    """Lorenz-63: from the path x(t) and the initial values to y(t), or to y(t) and z(t).

    Attributes:
        samples: training samples.
        valid_samples: samples that choose the best checkpoint, with the sampling of training.
        test_samples: samples of the final evaluation.
        sampling: sampling of the training set: "dt=STEP" for even times, "nodes=COUNT" for uneven times that
            differ from sample to sample.
        grids: samplings of the final evaluation.
        final_time: end of the interval, which starts at 0.
        seed: seed of the initial states and times.
        task: "x->y" or "x->yz".
    """

    name: ClassVar[str] = "lorenz"
    _generate: ClassVar[Callable[..., Samples]] = staticmethod(data.lorenz63)

    task: str = "x->y"

    def _options(self) -> dict[str, str]:
        return {"task": self.task}


@dataclasses.dataclass(frozen=True)
class FileData:
    """Files and folders that `jaxop.data.read` reads: arrays, meshes, samples with their own nodes, netCDF.

    Attributes:
        train: file or folder of the training samples; ``Path()`` leaves it to the command line.
        operator: the operator to train, one of `jaxop.operators.CONFIGS`.
        valid: file or folder of the validation samples; None holds out a part of the training samples.
        test: files or folders of the final evaluation, on any grids; without them, it uses the validation samples.
        held_out: fraction of the training samples that is held out for validation.
        inputs: name of the input functions in the files, or several names whose channels follow each other.
        targets: name or names of the target functions.
        coordinates: name of the coordinates, or one name per axis; used if the files have them, None ignores them.
        weights: name of the quadrature weights; used if the files have them, None ignores them.
        initial: name of the data given at the first node; used if the files have them, None ignores them.
        faces: name of the triangles of a mesh, whose vertices are the coordinates; used if the files have them,
            None ignores them.
        offsets: name of the first row of each sample, if samples have their own nodes; used if the files have them,
            None ignores them.
        at_nodes: name of the nodes of the targets, if samples have their own nodes and those of the targets are others;
            used if the files have them, None ignores them.
        sample_dimension: dimension of netCDF that counts samples; None means the first one of the inputs.
        dim: space dimension, if the shapes do not determine it.
        rule: quadrature rule of the grid, one or one per axis: "midpoint", "periodic", "trapezoid", ...
        lower: lower corner of the box, if the files do not have coordinates.
        upper: upper corner of the box, if the files do not have coordinates.
        external: allows an HDF5 file to have its values in other files (external links, external storage, virtual
            datasets).
        random_nodes: number of nodes of each training sample that a step sees, drawn anew for every step and weighted
            so that integrals keep their means; None means all nodes. Validation and test see all nodes.
        seed: seed of the choice of held-out samples.
    """

    name: ClassVar[str] = "files"

    train: Path
    operator: str = "fano"
    valid: Path | None = None
    test: tuple[Path, ...] = ()
    held_out: float = 0.1
    inputs: str | tuple[str, ...] = "x"
    targets: str | tuple[str, ...] = "y"
    coordinates: tuple[str, ...] | None = ("coordinates",)
    weights: str | None = "weights"
    initial: str | None = "initial"
    faces: str | None = "faces"
    offsets: str | None = "offsets"
    at_nodes: str | None = "at"
    sample_dimension: str | None = None
    dim: int | None = None
    rule: tuple[str, ...] | None = None
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None
    external: bool = False
    random_nodes: int | None = None
    seed: int = 0

    def load(self, cache: Path) -> Sets:
        """See `Problem`; nothing is cached."""
        if self.random_nodes is not None:
            check_size(self.random_nodes, "--data.random-nodes")
        train = self._read(self.train)
        if self.valid is not None:
            valid = {self.valid.name: self._read(self.valid)}
        else:
            train, held_out = self._split(train)
            valid = {"held out": held_out}
        return Sets(train, valid, self.files(self.test) if self.test else valid, self.random_nodes)

    def at(self, grids: Sequence[str], cache: Path) -> dict[str, Samples]:
        """Raises ``ValueError``: files cannot be sampled on other grids."""
        raise ValueError("--grids belongs to generated problems; this run was trained on files: use --data.")

    def files(self, paths: Sequence[Path]) -> dict[str, AnySamples]:
        """Returns the samples of each file, by the shortest names that distinguish them."""
        if repeated := [path for i, path in enumerate(paths) if path in paths[:i]]:
            raise ValueError(f"{repeated[0]} is given more than once; name every file once.")
        names = [path.name for path in paths]
        unique = len(set(names)) == len(names)
        return {path.name if unique else str(path): self._read(path) for path in paths}

    def of_inputs(self, path: Path | Sequence[Path]) -> AnySamples:
        """Returns the input functions of files that need not have targets; their values mean nothing."""
        return read_inputs(path, inputs=self.inputs, **self._options())

    def _read(self, path: Path) -> AnySamples:
        return data.read(path, inputs=self.inputs, targets=self.targets, **self._options())

    def _options(self) -> dict[str, Any]:
        """Returns the arguments of `jaxop.data.read` other than inputs and targets."""
        names = ("weights", "initial", "faces", "offsets", "sample_dimension", "dim", "external")
        several = ("coordinates", "rule", "lower", "upper")
        given = {name: getattr(self, name) for name in names} | {name: _single(getattr(self, name)) for name in several}
        return given | {"at": self.at_nodes}

    def _split(self, samples: AnySamples) -> tuple[AnySamples, AnySamples]:
        count = math.ceil(self.held_out * len(samples)) if 0 < self.held_out < 1 else 0
        if not 0 < count < len(samples):
            raise ValueError(
                f"held_out={self.held_out} of the {len(samples)} samples in {self.train} leaves one of the two parts "
                "empty; take a fraction between 0 and 1 and at least two samples, or give a file by --data.valid."
            )
        if self.seed < 0:
            raise ValueError(f"seed must be a non-negative integer, got {self.seed}.")
        order = np.random.default_rng(self.seed).permutation(len(samples))
        return samples.take(np.sort(order[count:])), samples.take(np.sort(order[:count]))


PROBLEMS: dict[str, type] = {kind.name: kind for kind in (DarcyData, ControlledOdeData, LorenzData, FileData)}
"""The data settings by the name under which a run records them."""


def check_directory(option: str, directory: Path) -> None:
    """Raises ``OSError`` if a directory cannot be made or written to, and ``ValueError`` if its name is not text."""
    if any("\udc80" <= c <= "\udcff" for c in str(directory)):  # a byte that Python could not decode
        raise ValueError(
            f"{option} {directory}: the name is not in the encoding {sys.getfilesystemencoding()} of this system; "
            "give another name, or set LC_ALL=C.UTF-8."
        )
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{option} {directory}: {existing} is a file; give the name of a directory.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{option} {directory}: {existing} cannot be written to; give another directory.")
    if not directory.exists():
        try:
            tempfile.TemporaryDirectory(dir=existing).cleanup()
        except OSError as error:
            raise OSError(
                f"{option} {directory}: no directory can be made in {existing} ({error.strerror}); give another one."
            ) from error


def cached(cache: Path, label: str, parameters: Mapping[str, str | int | float]) -> Path:
    """Returns the file of the samples that these parameters generate, and makes its folder."""
    key = json.dumps(training.to_json(dict(parameters)) | {"format": _FORMAT}, sort_keys=True)
    check_directory("--cache", cache)
    local_path(cache, "cache").mkdir(parents=True, exist_ok=True)
    return cache / f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def grid_name(samples: AnySamples) -> str:
    """Returns the nodes of a set as text: "64 × 64", with "uneven" unless they follow a rule, or "700–1300 nodes"."""
    if isinstance(samples, RaggedSamples):
        least, most = int(samples.target_sizes.min()), int(samples.target_sizes.max())
        return f"{least} nodes" if least == most else f"{least}–{most} nodes"
    domain = samples.target_domain
    if not isinstance(domain, Grid):
        return f"{domain.size} nodes"
    shape = " × ".join(str(axis.size) for axis in domain.axes)
    return f"{shape} uneven" if domain.has_given_nodes else shape


def typical_domain(samples: AnySamples) -> Domain:
    """Returns the domain of the targets, of the sample with the median number of nodes if each has its own."""
    if isinstance(samples, RaggedSamples):
        sizes = samples.target_sizes
        return samples.sample(int(np.argsort(sizes, kind="stable")[len(sizes) // 2])).target_domain
    return samples.target_domain


def _single(values: tuple[Value, ...] | None) -> Value | tuple[Value, ...] | None:
    """Returns the only value of a tuple of one, and other tuples unchanged."""
    return values[0] if values is not None and len(values) == 1 else values
