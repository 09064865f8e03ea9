"""Record of an experiment in a run, and the experiment that is read back from it."""

import dataclasses
from typing import Any, TypeVar

from jaxop import operators, training
from jaxop._validation import check_name, closest
from jaxop.domains.domain import as_domain
from jaxop.dynamics import StepperConfig
from jaxop.experiments.constraints import Constraints
from jaxop.experiments.experiment import AnyExperiment, DynamicsExperiment, Experiment
from jaxop.experiments.problems import PROBLEMS, FileData
from jaxop.experiments.series import SeriesData
from jaxop.experiments.sets import AnyProblem, AnySet
from jaxop.experiments.settings import input_domain
from jaxop.experiments.stepping import Stepping
from jaxop.nn import BuildableConfig
from jaxop.operators.constraint import innermost

Settings = TypeVar("Settings")


def describe(experiment: AnyExperiment, config: BuildableConfig, train: AnySet) -> dict[str, object]:
    """Returns the record of data and model, from which both can be rebuilt, and of how a step is learnt."""
    problem = experiment.data
    settings = dict(vars(problem))  # paths stay paths, because files may move before a run is resumed
    if isinstance(problem, FileData | SeriesData):
        settings |= {"train": problem.train.resolve(), "test": [path.resolve() for path in problem.test]}
        settings["valid"] = None if problem.valid is None else problem.valid.resolve()
        del settings["external"]  # a permission, which must be given each time
    if isinstance(problem, FileData):
        # runs of earlier versions do not have these
        later = ("faces", "offsets", "at_nodes", "sample_dimension", "random_nodes")
        settings = {name: value for name, value in settings.items() if name not in later or value is not None}
    domain = as_domain(input_domain(train), "train.domain")
    record: dict[str, object] = {
        "problem": problem.name,
        "data": settings,
        "operator": operators.model_of(config).name,
        "model": config,
        "resolution": round(domain.size ** (1 / domain.dim), 3),
        "samples": len(train),
    }
    if experiment.constraints != Constraints():  # runs of earlier versions do not have any
        record["constraints"] = experiment.constraints
    if experiment.quantile is not None:
        record["quantile"] = experiment.quantile
    return record | ({"stepping": experiment.stepping} if isinstance(experiment, DynamicsExperiment) else {})


def recorded_problem(run: training.Run, *, own: type | None = None) -> AnyProblem:
    """Returns the problem of a run from the record that `describe` made.

    Args:
        run: the run.
        own: class of a user's own problem that the run may have. None allows only `PROBLEMS`.

    Raises:
        ValueError: if the record lacks a field, or has a field that this version does not have; the message names the
            file and the field.
    """
    path = run.directory / "config.json"
    if missing := {"problem", "data", "operator", "model", "resolution"} - run.config.keys():
        raise ValueError(f"{path} does not belong to a run of `jaxop train`: it has no field {min(missing)!r}.")
    kinds = PROBLEMS if own is None else PROBLEMS | {own.name: own}
    if isinstance(name := run.config["problem"], str) and name not in kinds:
        raise ValueError(
            f"{path}: problem={name!r} is unknown: {closest(name, kinds)} If your own file defines it, use "
            f"`jaxop train FILE.py --run-dir {run.directory} --resume` or `jaxop evaluate RUN --experiment FILE.py`."
        )
    try:
        check_name(run.config["problem"], "problem", kinds)
        return operators.from_dict(kinds[run.config["problem"]], run.config["data"], name="data")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: data cannot be read ({type(error).__name__}: {error}).") from error


def recorded_experiment(run: training.Run) -> AnyExperiment:
    """Returns the experiment that a run was started with, to continue it.

    Its time limit is left out: either the run reached it, or it did not stop the run.

    Raises:
        ValueError: see `recorded_problem`.
    """
    settings = dataclasses.replace(run.training, time_limit_s=None)
    blank = run.blank_model()
    config = (blank.operator if isinstance(blank, operators.Ensemble) else blank).config
    problem = recorded_problem(run)
    where: dict[str, Any] = {"run_dir": run.directory, "resume": True}
    where["constraints"] = _recorded(run, "constraints", Constraints) if "constraints" in run.config else Constraints()
    if isinstance(config, StepperConfig):
        inside, stepping = innermost(config.operator), recorded_stepping(run)
        return DynamicsExperiment(problem, inside, settings, stepping=stepping, **where)
    return Experiment(problem, innermost(config), settings, quantile=run.config.get("quantile"), **where)


def recorded_stepping(run: training.Run) -> Stepping:
    """Returns how the run learns a step.

    Raises:
        ValueError: if the record lacks it, or has a field that this version does not have.
    """
    return _recorded(run, "stepping", Stepping)


def _recorded(run: training.Run, name: str, kind: type[Settings]) -> Settings:
    try:
        return operators.from_dict(kind, run.config[name], name=name)
    except (KeyError, TypeError, ValueError) as error:
        path = run.directory / "config.json"
        raise ValueError(f"{path}: {name} cannot be read ({type(error).__name__}: {error}).") from error
