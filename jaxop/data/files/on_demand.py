"""Samples in files, each of which is read when it is needed."""

import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from jaxop._validation import first_index
from jaxop.data.files._reading import FileError
from jaxop.data.sample import Sample


class OnDemand(Sequence[Sample]):
    """Samples that are read one at a time; all have the channels, the dimension and the kind of nodes of the first.

    Args:
        labels: the places of the samples, for messages.
        read: reads the sample of a number.

    Raises:
        ValueError: when a sample is first read, if it differs from sample 0 in one of these, or has a value that is not
            finite. The message starts with the label.
    """

    def __init__(self, labels: Sequence[str], read: Callable[[int], Sample]):
        self._labels, self._read = labels, read
        self._checked: set[int] = set()
        self._first: dict[str, object] | None = None
        self._first = _form(self[0])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: SupportsIndex, /) -> Sample:  # pyright: ignore[reportIncompatibleMethodOverride]
        i = range(len(self))[operator.index(index)]
        sample = self._read(i)
        if i not in self._checked:  # not again for every batch
            self._check(i, sample)
            self._checked.add(i)
        return sample

    def _check(self, i: int, sample: Sample) -> None:
        form = _form(sample)
        for name, expected in (self._first or {}).items():
            if form[name] != expected:
                raise FileError(
                    f"{self._labels[i]} has {name} {form[name]}, but {self._labels[0]} has {expected}; all samples of "
                    "a set are functions of one kind: move this one to another set."
                )
        for name in ("inputs", "targets"):
            values = np.asarray(getattr(sample, name))
            if (bad := ~np.isfinite(values)).any():
                where = first_index(bad)
                place = ", ".join(map(str, where)) if isinstance(where, tuple) else where
                raise FileError(
                    f"{self._labels[i]}: {name} must be finite, but {name}[{place}] = {values[where]}; remove or "
                    "repair this sample."
                )


def _form(sample: Sample) -> dict[str, object]:
    """Returns what all samples of a set have in common, by its name in a message."""
    return {
        "the dimension": sample.domain.dim,
        "the nodes of a": type(sample.domain).__name__,
        "input channels": np.shape(sample.inputs)[-1],
        "target channels": np.shape(sample.targets)[-1],
        "initial channels": 0 if sample.initial is None else np.shape(sample.initial)[-1],
    }


def natural_order(names: Sequence[str]) -> list[str]:
    """Returns names in the order in which a person counts: a2 before a10."""
    return sorted(names, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])


def files_of(folder: Path, formats: Sequence[str]) -> list[Path]:
    """Returns the files of a folder that have one of the suffixes, in the order in which a person counts."""
    names = [p.name for p in folder.iterdir() if p.suffix.lower() in formats and not p.name.startswith(".")]
    return [folder / name for name in natural_order(names)]
