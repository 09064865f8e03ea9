"""Data of an experiment in pairs of functions: generated problems, which are stored on disk, and files of a user."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxop import data
from jaxop._validation import check_size
from jaxop.data import Samples
from jaxop.data.files.read import read_inputs
from jaxop.domains import from_points
from jaxop.experiments.evolutions import EVOLUTIONS
from jaxop.experiments.series import SeriesData
from jaxop.experiments.sets import TEST, VALID, AnySamples, Sets, by_name, cached, divided, single


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
            valid={"valid": self._sets("valid", self.valid_samples, VALID, (self.resolution,), cache)[self.resolution]},
            test=self.at([str(grid) for grid in self.grids], cache),
        )

    def at(self, grids: Sequence[str], cache: Path) -> dict[str, AnySamples]:
        """See `Problem`; a grid is called by its nodes along a side, scattered points ``points=3000``."""
        counts = {grid: self._points(grid) for grid in grids if not grid.isdecimal()}
        sides = [int(grid) for grid in grids if grid.isdecimal()]
        even = self._sets("test", self.test_samples, TEST, sides, cache)
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
        common = self._common(self.test_samples, TEST)
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
            valid={"valid": self._set("valid", self.valid_samples, VALID, self.sampling, cache)},
            test=self.at(self.grids, cache),
        )

    def at(self, grids: Sequence[str], cache: Path) -> dict[str, AnySamples]:
        """See `Problem`; the name of a sampling is ``dt=0.01``, or ``nodes=200`` for uneven times."""
        return {grid: self._set("test", self.test_samples, TEST, grid, cache) for grid in grids}

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
        train = self.read(self.train)
        if self.valid is not None:
            valid = {self.valid.name: self.read(self.valid)}
        else:
            train, held_out = self._split(train)
            valid = {"held out": held_out}
        return Sets(train, valid, self.files(self.test) if self.test else valid, self.random_nodes)

    def at(self, grids: Sequence[str], cache: Path) -> dict[str, Samples]:
        """Raises ``ValueError``: files cannot be sampled on other grids."""
        raise ValueError("--grids belongs to generated problems; this run was trained on files: use --data.")

    def files(self, paths: Sequence[Path]) -> dict[str, AnySamples]:
        """Returns the samples of each file, by the shortest names that distinguish them."""
        return by_name(paths, self.read)

    def of_inputs(self, path: Path | Sequence[Path], dim: int) -> AnySamples:
        """Returns the input functions of files that need not have targets, whose values then mean nothing.

        Args:
            path: a file, or files of single samples.
            dim: the space dimension of the model, for shapes that leave it open.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*nothing reads")  # such as targets
            options = self._options()
            try:
                return read_inputs(path, inputs=self.inputs, **options)
            except ValueError:
                with contextlib.suppress(ValueError):
                    return read_inputs(path, inputs=self.inputs, **(options | {"dim": dim}))
                raise

    def read(self, path: Path | Sequence[Path]) -> AnySamples:
        """Returns the samples of a file, a folder, or files with one sample each."""
        return data.read(path, inputs=self.inputs, targets=self.targets, **self._options())

    def _options(self) -> dict[str, Any]:
        """Returns the arguments of `jaxop.data.read` other than inputs and targets."""
        names = ("weights", "initial", "faces", "offsets", "sample_dimension", "dim", "external")
        several = ("coordinates", "rule", "lower", "upper")
        given = {name: getattr(self, name) for name in names} | {name: single(getattr(self, name)) for name in several}
        return given | {"at": self.at_nodes}

    def _split(self, samples: AnySamples) -> tuple[AnySamples, AnySamples]:
        kept, held_out = divided(len(samples), self.held_out, self.seed, f"samples in {self.train}")
        return samples.take(kept), samples.take(held_out)


PROBLEMS: dict[str, type] = {
    kind.name: kind for kind in (DarcyData, ControlledOdeData, LorenzData, FileData, *EVOLUTIONS, SeriesData)
}
"""The data settings by the name under which a run records them."""
