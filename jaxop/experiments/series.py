"""Data of an experiment in time: files of a user."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxop import data
from jaxop._validation import check_size
from jaxop.data import Trajectories
from jaxop.experiments.sets import SeriesSets, by_name, divided, single


@dataclasses.dataclass(frozen=True)
class SeriesData:
    """Files of trajectories that `jaxop.data.read_trajectories` reads: arrays, netCDF, Zarr.

    Attributes:
        train: file of the training trajectories; ``Path()`` leaves it to the command line.
        operator: the operator of the stepper, one of `jaxop.operators.CONFIGS`.
        valid: file of the validation trajectories; None holds out a part of the training file: some trajectories or, if
            there is only one, the last of its times.
        test: files of the final evaluation, on any grids; without them, it uses the validation trajectories.
        held_out: fraction of the training trajectories, or of the times of a single one, that is held out.
        test_times: number of recorded times of a test trajectory, those of the history included. Longer ones are cut
            into pieces of this length, and each piece is one rollout. None leaves them whole.
        states: name of the states in the files, or several names whose channels follow each other.
        times: name of the times.
        dt: constant step between times, if the files do not have them.
        parameters: names of constants of each trajectory, such as a viscosity; used if the files have them.
        coordinates: name of the coordinates, or one name per axis; used if the files have them, None ignores them.
        weights: name of the quadrature weights; used if the files have them, None ignores them.
        faces: name of the triangles of a mesh; used if the files have them, None ignores them.
        sample_dimension: dimension of netCDF that counts trajectories.
        time_dimension: dimension of netCDF that is time.
        dim: space dimension, if the shapes do not determine it.
        rule: quadrature rule of the grid, one or one per axis: "periodic" for a grid without its end point, "midpoint",
            "trapezoid", ...
        lower: lower corner of the box, if the files do not have coordinates.
        upper: upper corner of the box, if the files do not have coordinates.
        external: allows an HDF5 file to have its values in other files.
        seed: seed of the choice of held-out trajectories.
    """

    name: ClassVar[str] = "series"

    train: Path
    operator: str = "fno"
    valid: Path | None = None
    test: tuple[Path, ...] = ()
    held_out: float = 0.1
    test_times: int | None = None
    states: str | tuple[str, ...] = "states"
    times: str = "times"
    dt: float | None = None
    parameters: tuple[str, ...] = ("parameters",)
    coordinates: tuple[str, ...] | None = ("coordinates",)
    weights: str | None = "weights"
    faces: str | None = "faces"
    sample_dimension: str | None = None
    time_dimension: str | None = None
    dim: int | None = None
    rule: tuple[str, ...] | None = None
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None
    external: bool = False
    seed: int = 0

    def load(self, cache: Path) -> SeriesSets:
        """See `jaxop.experiments.SeriesProblem`; nothing is cached."""
        if self.test_times is not None:
            check_size(self.test_times, "--data.test-times", 2)
        train = self.read(self.train)
        if self.valid is not None:
            valid = {self.valid.name: self.read(self.valid)}
        else:
            train, held_out = self._split(train)
            valid = {"held out": held_out}
        test = self.files(self.test) if self.test else {name: self._cut(name, one) for name, one in valid.items()}
        return SeriesSets(train, valid, test)

    def at(self, grids: Sequence[str], cache: Path) -> dict[str, Trajectories]:
        """Raises ``ValueError``: files cannot be sampled on other grids."""
        raise ValueError("--grids belongs to generated problems; this run was trained on files: use --data.")

    def lasting(self, steps: int, history: int) -> "SeriesData":
        """See `jaxop.experiments.SeriesProblem`."""
        return dataclasses.replace(self, test_times=steps + history)

    def files(self, paths: Sequence[Path]) -> dict[str, Trajectories]:
        """Returns the test trajectories of each file, by the shortest names that distinguish them."""
        return {name: self._cut(name, found) for name, found in by_name(paths, self.read).items()}

    def read(self, path: Path, *, dt: float | None = None) -> Trajectories:
        """Returns the trajectories of a file.

        Args:
            path: the file.
            dt: the step between times, if neither the settings nor the file have times.
        """
        names = ("weights", "faces", "sample_dimension", "time_dimension", "dim", "external", "times", "states")
        several = ("coordinates", "rule", "lower", "upper", "parameters")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        options |= {name: single(getattr(self, name)) for name in several}
        if dt is not None:
            options["times"] = "times"  # which the file does not need to have
        return data.read_trajectories(path, dt=self.dt if dt is None else dt, **options)

    def _split(self, found: Trajectories) -> tuple[Trajectories, Trajectories]:
        if len(found) > 1:
            kept, held_out = divided(len(found), self.held_out, self.seed, f"trajectories in {self.train}")
            return found.take(kept), found.take(held_out)
        count = math.ceil(self.held_out * found.steps) if 0 < self.held_out < 1 else 0
        if not 1 < count < found.steps - 1:
            raise ValueError(
                f"{self.train} has one trajectory, of which the last times are held out, but held_out={self.held_out} "
                f"of its {found.steps} times leaves one of the two parts without a step; take another fraction between "
                "0 and 1, or give a file by --data.valid."
            )
        return found.between(None, -count), found.between(-count, None)

    def _cut(self, name: str, found: Trajectories) -> Trajectories:
        """Returns the pieces of ``test_times`` times, the rest of each trajectory being left out."""
        if self.test_times is None or found.steps == self.test_times:
            return found
        if found.steps < self.test_times:
            raise ValueError(
                f"{name} has {found.steps} recorded times, fewer than the {self.test_times} of a rollout with its "
                "history; ask for fewer steps, or give longer trajectories."
            )
        return found.pieces(self.test_times)
