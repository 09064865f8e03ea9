"""Rollouts of a trained stepper from the states in files, written to files."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from jaxop import dynamics
from jaxop.data import TRAJECTORY_FORMATS, Trajectories
from jaxop.data.files.on_demand import files_of
from jaxop.data.files.open import ARCHIVES, open_archive
from jaxop.dynamics import Stepper
from jaxop.experiments.rollout_report import check_set
from jaxop.experiments.series import SeriesData
from jaxop.experiments.sets import grid_name
from jaxop.experiments.terminal import as_options

_Path: TypeAlias = tuple[np.ndarray, np.ndarray]  # states and times

_NUMBERS = 2**24  # states of all rollouts of one call, which bounds their memory on the device


def states_in(paths: Sequence[Path]) -> list[Path]:
    """Returns files with states, those of folders included.

    Raises:
        ValueError: if there are none.
    """
    if not paths:
        raise ValueError("there is nothing to predict; name at least one file or folder of states.")
    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or path.suffix.lower() in TRAJECTORY_FORMATS:
            found.append(path)
            continue
        inside = files_of(path, TRAJECTORY_FORMATS)
        if not inside:
            raise ValueError(f"{path} has no files of states ({', '.join(TRAJECTORY_FORMATS)}).")
        found += inside
    return found


def forecast(
    stepper: Stepper,
    problem: SeriesData,
    results: Mapping[Path, Path],
    *,
    steps: int,
    every: int,
    dt: float | None,
    write: Callable[[Path, str, Path, Trajectories], None],
) -> None:
    """Rolls a stepper out from the last recorded states of every trajectory in files.

    A result has the start at its first time, and then the states after ``every``, 2 ``every``, … steps. Trajectories
    that do not stay finite have files of their own, up to their last finite state.

    Args:
        stepper: the stepper.
        problem: how files are read.
        results: the file of the result of each file.
        steps: number of steps.
        every: divides ``steps``.
        dt: the time of a step; None takes that of the stepper.
        write: saves a result, called with the file of the states, a description, the file of the result, and it.

    Raises:
        ValueError: if a file has fewer states than the history of the stepper, or is of another kind than the training
            set, or ``dt`` is not the only step that the stepper makes.
        FloatingPointError: if a rollout does not stay finite, once everything is written. The message names the file,
            sample, step, time and channel.
    """
    own = float(stepper.dt[...])
    if dt is not None and not stepper.config.varying_dt and not math.isclose(dt, own, rel_tol=1e-3):
        raise ValueError(
            f"--dt {dt:g} is not the step {own:g} that the stepper was trained on, the only one that it makes: leave "
            "--dt out, or train with several steps, such as --stepping.strides 1 2."
        )
    lost: list[str] = []
    for path, result in results.items():
        with as_options(("states", "times", "rule")):
            found = _read(problem, path, own)
            check_set(stepper, str(path), found)
        if found.steps < stepper.config.history:
            raise ValueError(
                f"{path} has {found.steps} times, but a step needs the last {stepper.config.history} states; give "
                "files with as many."
            )
        rolled, faults = _rolled_out(stepper, found, steps, every, dt)
        kept = [i for i in range(len(found)) if i not in faults]
        if kept:
            about = f"{len(kept)} trajectories, {grid_name(found)}"
            write(path, about, result, _joined(found, kept, [rolled[i] for i in kept]))
        for i, (fault, count) in faults.items():
            apart = result.with_name(f"{result.stem}-sample{i}{result.suffix}")
            states, times = rolled[i]
            one = _joined(found, [i], [(states[: count + 1], times[: count + 1])])
            write(path, f"sample {i} up to its last finite state", apart, one)
            lost.append(
                f"{path}: the rollout of sample {i} is not finite from {fault}; what came before is in {apart}."
            )
    if lost:
        raise FloatingPointError(
            "\n".join(lost) + "\nTrain with --stepping.noise or on several --stepping.steps, or take smaller steps."
        )


def _read(problem: SeriesData, path: Path, dt: float) -> Trajectories:
    """Reads a file; if it does not have times, they are multiples of the step of the stepper."""
    suffix = path.suffix.lower()
    without_times = suffix == ".npy" or (
        suffix in ARCHIVES
        and not open_archive(path, formats=TRAJECTORY_FORMATS, external=problem.external).has(problem.times)
    )
    return problem.read(path, dt=dt if without_times and problem.dt is None else None)


def _rolled_out(
    stepper: Stepper, found: Trajectories, steps: int, every: int, dt: float | None
) -> tuple[list[_Path], dict[int, tuple[str, int]]]:
    """Returns states and times of every rollout, and where and after how many entries some are not finite."""
    depth = stepper.config.history
    step = float(stepper.dt[...]) if dt is None else dt
    entries = max(1, steps // every)
    size = max(1, min(16, len(found), _NUMBERS // (entries * math.prod(found.states.shape[2:]))))
    rolled: list[_Path] = []
    faults: dict[int, tuple[str, int]] = {}
    for first in range(0, len(found), size):
        index = np.minimum(np.arange(first, first + size), len(found) - 1)  # one program for all
        past = np.stack([found.times_of(i)[-depth:] for i in index])
        start = np.stack([found.frames(i, slice(found.steps - depth, None)) for i in index])
        result = dynamics.rollout(
            stepper,
            start,
            steps,
            domain=found.domain_of(index),
            dt=dt,
            every=every,
            offsets=None if depth == 1 else past[:, -1:] - past[:, :-1],
            parameters=None if found.parameters is None else np.asarray(found.parameters)[index],
        )
        states = np.concatenate([start[:, -1:].astype(np.asarray(result.states).dtype), result.states], axis=1)
        times = past[:, -1:] + every * step * np.arange(states.shape[1])
        is_finite, channels = np.asarray(result.is_finite), np.asarray(result.channel)
        for j, i in enumerate(range(first, min(first + size, len(found)))):
            rolled.append((states[j], times[j]))
            if not is_finite[j].all():
                good = int(np.argmin(is_finite[j]))
                where = f"step {good + 1} on, at time {past[j, -1] + (good + 1) * step:g}, in channel {channels[j]}"
                faults[i] = where, good // every
    return rolled, faults


def _joined(found: Trajectories, index: Sequence[int], rolled: Sequence[_Path]) -> Trajectories:
    times = np.stack([one for _, one in rolled])
    return Trajectories(
        np.stack([states for states, _ in rolled]),
        found.domain_of(index),
        times[0] if (times == times[0]).all() else times,
        None if found.parameters is None else np.asarray(found.parameters)[np.asarray(index)],
        found.parameter_names,
    )
