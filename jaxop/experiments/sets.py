"""Sets of an experiment, what its data settings promise, and where generated sets are kept."""

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
from jaxop.data import RaggedSamples, Samples, Trajectories
from jaxop.domains import Domain, Grid
from jaxop.domains.domain import as_domain
from jaxop.training._files import local_path

VALID, TEST = 1_000_000, 2_000_000
"""First sample numbers, so that sets never share samples."""

_FORMAT = 1  # version of the cache

Set = TypeVar("Set")

AnySamples: TypeAlias = Samples | RaggedSamples
"""A set of pairs of functions, on shared nodes or each on its own."""

AnySet: TypeAlias = AnySamples | Trajectories
"""A set of pairs of functions or of trajectories."""


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


@dataclasses.dataclass(frozen=True)
class SeriesSets:
    """The sets of trajectories of one experiment.

    Attributes:
        train: training trajectories.
        valid: sets by name, whose windows are evaluated during training; the first set decides which checkpoint is the
            best.
        test: sets by name, along which the stepper is rolled out at the end.
    """

    train: Trajectories
    valid: Mapping[str, Trajectories]
    test: Mapping[str, Trajectories]


@runtime_checkable
class Problem(Protocol):
    """Protocol of the data settings of an experiment on pairs of functions, a frozen dataclass.

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


@runtime_checkable
class SeriesProblem(Protocol):
    """Protocol of the data settings of an experiment on trajectories, a frozen dataclass.

    Attributes:
        name: name of the problem in the record of a run.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]
    name: ClassVar[str]

    def load(self, cache: Path) -> SeriesSets:
        """Returns all sets of the experiment."""
        ...

    def at(self, grids: Sequence[str], cache: Path) -> Mapping[str, Trajectories]:
        """Returns test trajectories on other grids or with other steps, by their names in the tables."""
        ...

    def lasting(self, steps: int, history: int) -> "SeriesProblem":
        """Returns the settings whose test trajectories have so many steps after a history."""
        ...


AnyProblem: TypeAlias = Problem | SeriesProblem
"""Data settings of an experiment."""


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


def cached(cache: Path, label: str, parameters: Mapping[str, Any]) -> Path:
    """Returns the file of the samples that these parameters generate, and makes its folder."""
    key = json.dumps(training.to_json(dict(parameters)) | {"format": _FORMAT}, sort_keys=True)
    check_directory("--cache", cache)
    local_path(cache, "cache").mkdir(parents=True, exist_ok=True)
    return cache / f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def by_name(paths: Sequence[Path], read: Callable[[Path], Set]) -> dict[str, Set]:
    """Reads files, and returns their sets by the shortest names that distinguish them.

    Raises:
        ValueError: if a file is named twice.
    """
    if repeated := [path for i, path in enumerate(paths) if path in paths[:i]]:
        raise ValueError(f"{repeated[0]} is given more than once; name every file once.")
    names = [path.name for path in paths]
    unique = len(set(names)) == len(names)
    return {path.name if unique else str(path): read(path) for path in paths}


def divided(count: int, held_out: float, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the samples to train on, and of those that are held out, chosen at random.

    Args:
        count: number of samples.
        held_out: fraction that is held out.
        seed: of the choice.
        what: the samples in messages, such as "samples in a.npz".

    Raises:
        ValueError: if one of the parts is empty, or the seed is negative.
    """
    chosen = math.ceil(held_out * count) if 0 < held_out < 1 else 0
    if not 0 < chosen < count:
        raise ValueError(
            f"held_out={held_out} of the {count} {what} leaves one of the two parts empty; take a fraction between 0 "
            "and 1 and at least two samples, or give a file by --data.valid."
        )
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}.")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[chosen:]), np.sort(order[:chosen])


def grid_name(samples: AnySet) -> str:
    """Returns the nodes of a set as text: "64 × 64", with "uneven" unless they follow a rule, or "700–1300 nodes"."""
    if isinstance(samples, RaggedSamples):
        least, most = int(samples.target_sizes.min()), int(samples.target_sizes.max())
        return f"{least} nodes" if least == most else f"{least}–{most} nodes"
    domain = typical_domain(samples)
    if not isinstance(domain, Grid):
        return f"{domain.size} nodes"
    shape = " × ".join(str(axis.size) for axis in domain.axes)
    return f"{shape} uneven" if domain.has_given_nodes else shape


def check_sizes(label: str, samples: AnySet, sizes: Mapping[str, tuple[int, int]], model: str = "operator") -> None:
    """Raises ``ValueError`` unless a set has the sizes that a model was made for.

    Args:
        label: name of the set.
        samples: the set.
        sizes: what is counted, with the size of the model and that of the set.
        model: what was made for these sizes.
    """
    for what, (expected, received) in sizes.items():
        if expected != received:
            remedy = "take data of the kind it is trained on."
            if what == "dimensions" and received == expected - 1:
                remedy = "if it is one function, give it a first axis of size 1, which counts the functions."
            raise ValueError(
                f"{label} ({grid_name(samples)}) has {received} {what}, but the {model} was made for {expected}; "
                f"{remedy}"
            )


def typical_domain(samples: AnySet) -> Domain:
    """Returns the domain of the targets, of the sample with the median number of nodes if each has its own."""
    if isinstance(samples, RaggedSamples):
        sizes = samples.target_sizes
        return samples.sample(int(np.argsort(sizes, kind="stable")[len(sizes) // 2])).target_domain
    return as_domain(samples.domain, "domain") if isinstance(samples, Trajectories) else samples.target_domain


def single(values: tuple[Set, ...] | None) -> Set | tuple[Set, ...] | None:
    """Returns the only value of a tuple of one, and other tuples unchanged."""
    return values[0] if values is not None and len(values) == 1 else values
