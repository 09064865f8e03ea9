"""Real winds and temperatures as trajectories: what the next month or year brings beyond the mean of the season.

    python scripts/studies/run.py climate winds sea air

| record | values |
|---|---|
| winds | monthly winds u, v of the US Navy, 1982 to 1992, in m/s, at 73 × 144 nodes of the whole earth |
| sea | monthly temperatures of the surface of the sea near the equator, April 2006 to September 2010, in K |
| air | yearly means of the air temperature over North America, 1860 to 2099, in K: two scenarios of one model |

States are anomalies: their differences from the mean of the training years, for each month. Sets are split by years. A
unit of time is one record. Nodes are on the unit sphere and weigh the area of their cells, land in "sea" nothing.

The command prints errors of one step relative to the size of the anomalies: of persistence, which repeats the last
state, of the best multiple of it, and of the climatology, which predicts 0.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

from jaxop import data
from jaxop.data import Trajectories
from studies.real_data import CACHE, fetch
from studies.results import About
from studies.table import print_header, print_row

ABOUT = {
    "climate": About(
        "The simplest predictions of winds and temperatures",
        "Records of the earth, as anomalies from the mean of the training years for each month: monthly winds of the "
        "whole earth, monthly temperatures of the surface of the sea near the equator, and yearly means of the air "
        "temperature over North America in two scenarios. Sets are split by years; their sizes are trajectories × "
        "times. The last columns are errors of one step, in the test years, relative to the size of the anomalies: of "
        "persistence, which repeats the last state, of the multiple of it that is best in the training years, and of "
        "the climatology, which predicts 0. A stepper is of use if it has a smaller error than all of them.",
        "nothing here is random",
    ),
}

Name = Literal["winds", "sea", "air"]


class Record(NamedTuple):
    """One record of `RECORDS`.

    Attributes:
        package: name in `studies.real_data.PACKAGES`.
        read: makes trajectories of the package's folder.
        period: records in the period of the season.
        train: records of the training years.
        valid: records that follow, which choose the best checkpoint.
    """

    package: str
    read: Callable[[Path], Trajectories]
    period: int
    train: int
    valid: int


class Parts(NamedTuple):
    """A record by years.

    Attributes:
        train: anomalies of the first years.
        valid: of the years that follow.
        test: of the last years.
        means: the climatology, (period, n, c), which makes states of anomalies.
    """

    train: Trajectories
    valid: Trajectories
    test: Trajectories
    means: np.ndarray


def winds(folder: Path) -> Trajectories:
    """Zonal and meridional winds, (1, 132, 10512, 2)."""
    path = folder / "share/ferret-vis/data/monthly_navy_winds.cdf"
    return _counted(data.read_trajectories(path, states=("UWND", "VWND")))


def sea(folder: Path) -> Trajectories:
    """Temperatures of the sea, (1, 54, 7776, 1); nodes on land have weight 0."""
    path = folder / "iris_sample_data/sample_data/ostia_monthly.nc"
    return _counted(data.read_trajectories(path, states="surface_temperature"))


def air(folder: Path) -> Trajectories:
    """Temperatures of the air, (2, 240, 1813, 1): scenarios A1B and E1, which differ from the year 2000 on."""
    paths = [folder / f"iris_sample_data/sample_data/{name}_north_america.nc" for name in ("A1B", "E1")]
    first, second = (data.read_trajectories(path, states="air_temperature") for path in paths)
    states = np.stack([record.frames(0, slice(None)) for record in (first, second)])
    return _counted(dataclasses.replace(first, states=states))


RECORDS: dict[Name, Record] = {
    "winds": Record("ferret", winds, 12, 84, 12),
    "sea": Record("iris", sea, 12, 36, 6),
    "air": Record("iris", air, 1, 140, 40),
}


def load(name: Name, cache: Path = CACHE) -> Parts:
    """Returns the parts of a record, whose package is downloaded at the first call."""
    record = RECORDS[name]
    return split(record.read(fetch(record.package, cache)), record)


def split(states: Trajectories, record: Record) -> Parts:
    """Returns anomalies by years, from the climatology of the training years alone."""
    means = data.climatology(states.between(0, record.train), record.period)
    anomalies = data.anomalies(states, means)
    end = record.train + record.valid
    return Parts(
        train=anomalies.between(0, record.train),
        valid=anomalies.between(record.train, end),
        test=anomalies.between(end, None),
        means=means,
    )


def errors(parts: Parts) -> tuple[float, float]:
    """Relative errors of one step on the test years: of persistence, and of the best multiple of the last state."""
    weights = np.asarray(parts.test.domain.weights)[:, None]
    u, v = _steps(parts.train)
    factor = np.sum(weights * u * v) / np.sum(weights * u * u)
    u, v = _steps(parts.test)
    size = np.sum(weights * v * v)
    persistence, damped = (np.sqrt(np.sum(weights * (v - a * u) ** 2) / size) for a in (1.0, factor))
    return float(persistence), float(damped)


def _steps(part: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """Returns states and their successors."""
    states = np.stack([part.frames(i, slice(None)) for i in range(len(part))]).astype(np.float64)
    return states[:, :-1], states[:, 1:]


def _counted(record: Trajectories) -> Trajectories:
    return dataclasses.replace(record, times=np.arange(float(record.steps)))


def main(names: tyro.conf.Positional[tuple[Name, ...]] = ("winds", "sea", "air"), cache: Path = CACHE) -> None:
    """Prints sizes of the records and errors of the simplest predictions.

    Args:
        names: the records.
        cache: where the packages are kept.
    """
    sizes = ("nodes", "channels", "training", "validation", "test")
    print_header("record", *sizes, "persistence", "damped", "climatology")
    for name in names:
        parts = load(name, cache)
        counts = (f"{len(part)} × {part.steps}" for part in parts[:3])
        size = parts.train.states.shape[2]
        print_row(name, size, parts.train.channels, *counts, *(f"{error:.3f}" for error in errors(parts)), "1.000")
