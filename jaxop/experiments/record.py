"""What a run records of its experiment, and the experiment back from the record."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxop import training
from jaxop._validation import check_name, closest
from jaxop.data import Samples
from jaxop.experiments.experiment import Experiment
from jaxop.experiments.problems import PROBLEMS, FileData, Problem
from jaxop.experiments.settings import operator_name


def describe(problem: Problem, config: Any, train: Samples) -> dict[str, Any]:
    """What a run records of its data and operator, enough to rebuild both."""
    settings = dataclasses.asdict(problem)  # pyright: ignore[reportArgumentType]
    if isinstance(problem, FileData):
        located = {name: _absolute(settings[name]) for name in ("train", "valid", "test")}
        settings |= located
        del settings["external"]  # a permission, to be given each time
        if settings["faces"] is None:  # as in runs of earlier versions
            del settings["faces"]
    return {
        "problem": problem.name,
        "data": settings,
        "operator": operator_name(config),
        "model": dataclasses.asdict(config),
        "resolution": round(train.domain.size ** (1 / train.domain.dim), 3),
        "samples": len(train),
    }


def recorded_problem(run: training.Run, *, own: type | None = None) -> Problem:
    """The problem of a run, from what `describe` recorded.

    Args:
        run: the run.
        own: class of a problem that is not one of `PROBLEMS`, which the run may be on.

    Raises:
        ValueError: if the record lacks a field or holds one that this version does not have; the message names the
            file and the field.
    """
    path = run.directory / "config.json"
    if missing := {"problem", "data", "operator", "model", "resolution"} - run.config.keys():
        raise ValueError(f"{path} is not of a run of `jaxop train`: it has no field {min(missing)!r}.")
    kinds = PROBLEMS if own is None else PROBLEMS | {own.name: own}
    if isinstance(name := run.config["problem"], str) and name not in kinds:
        raise ValueError(
            f"{path}: problem={name!r} is unknown: {closest(name, kinds)} If a file of your own defines it, use "
            f"`jaxop train FILE.py --run-dir {run.directory} --resume` or `jaxop evaluate RUN --experiment FILE.py`."
        )
    try:
        check_name(run.config["problem"], "problem", kinds)
        kind = kinds[run.config["problem"]]
        fields = [field.name for field in dataclasses.fields(kind)]
        for name in run.config["data"]:
            check_name(name, "field", fields)
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in run.config["data"].items()
        }
        if kind is FileData:
            values.setdefault("faces", None)  # runs that do not say so took the vertices for a cloud
            values["train"] = Path(values["train"])
            values["valid"] = values["valid"] and Path(values["valid"])
            values["test"] = tuple(Path(path) for path in values["test"])
        return kind(**values)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: data cannot be read ({type(error).__name__}: {error}).") from error


def recorded_experiment(run: training.Run) -> Experiment[Any, Any]:
    """The experiment that a run was started with, ready to continue it.

    Its time limit is left out: it has been reached, or it never mattered.

    Raises:
        ValueError: as `recorded_problem`.
    """
    settings = dataclasses.replace(run.training, time_limit_s=None)
    return Experiment(recorded_problem(run), run.blank_model().config, settings, run_dir=run.directory, resume=True)


def _absolute(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_absolute(path) for path in value]
    return None if value is None else Path(value).resolve()
