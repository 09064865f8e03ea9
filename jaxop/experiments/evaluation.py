"""Evaluation of a trained run on files or on other grids."""

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxop import training
from jaxop._validation import check_size
from jaxop.data import Trajectories
from jaxop.dynamics import Stepper
from jaxop.experiments import report, rollout_report
from jaxop.experiments.cluster import ClusterConfig
from jaxop.experiments.experiment import default_cache, load_recipe
from jaxop.experiments.problems import FileData
from jaxop.experiments.record import recorded_problem
from jaxop.experiments.series import SeriesData
from jaxop.experiments.sets import AnySamples, Problem, SeriesProblem
from jaxop.experiments.settings import prepared
from jaxop.experiments.terminal import make_console
from jaxop.training import MeshConfig, to_json
from jaxop.training.processes import check_same, from_first

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation.

    Attributes:
        run: the run directory.
        data: files or folders of samples, whose arrays have the names of the training file unless --inputs and
            --targets give others.
        grids: grids of a generated problem, by their names in the tables: 64 for Darcy flow and for equations in
            time, dt=0.01 for another step, nodes=200 for uneven times of differential equations.
        steps: number of steps of the rollouts of a stepper. Trajectories in files are cut into pieces that are as long,
            and generated ones made as long. None takes those of the run.
        animation: "gif" or "mp4" also writes a film of the median sample of every set of a stepper; None does not.
        samples: number of samples of each set that are evaluated; None evaluates all.
        checkpoint: "best", "last" or the number of a step.
        name: prefix of the files that are written.
        inputs: name or names of the input functions in the files; None means their name in the training file.
        targets: name or names of the target functions in the files; None means their name in the training file.
        states: name or names of the states in the files of a stepper; None means their name in the training file.
        external: allows HDF5 files to have their values in other files.
        experiment: file of your own experiment, if it defines the problem of the run; it is executed.
        cache: directory of generated data, which are kept by their parameters.
        mesh: devices that share the samples, the parameters and the nodes of a function.
        cluster: how several processes find each other.
    """

    run: Path
    data: tuple[Path, ...] = ()
    grids: tuple[str, ...] = ()
    steps: int | None = None
    animation: Literal["gif", "mp4"] | None = None
    samples: int | None = None
    checkpoint: str = "best"
    name: str = "evaluation"
    inputs: str | tuple[str, ...] | None = None
    targets: str | tuple[str, ...] | None = None
    states: str | tuple[str, ...] | None = None
    external: bool = False
    experiment: Path | None = None
    cache: Path = dataclasses.field(default_factory=default_cache)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)


def evaluate(
    settings: Evaluation, *, console: "Console | None" = None
) -> list[report.Row] | list[rollout_report.SetErrors]:
    """Computes the errors of a run on every set, in physical units, and saves them with pictures.

    They are relative L2 and H1 errors and the worst sample, see `jaxop.experiments.report.write_report`, or those of
    the rollouts of a stepper, see `jaxop.experiments.rollout_report.write_report`. Without files and grids, the sets
    are the test sets of the run.

    Args:
        settings: the run, the sets, the checkpoint.
        console: destination of the table; None writes to stdout.

    Returns:
        The rows of the table, or the errors of the rollouts on every set.

    Raises:
        ValueError: if settings do not fit together, or the operator cannot run on a set.
        FileNotFoundError: if the run, the checkpoint or a file does not exist.
        ImportError: if a package of the extra ``scripts`` is not installed.
    """
    with settings.cluster.joined():
        return _evaluate(settings, make_console() if console is None else console)


def _evaluate(settings: Evaluation, console: "Console") -> list[report.Row] | list[rollout_report.SetErrors]:
    if Path(settings.name).name != settings.name:
        raise ValueError(f"--name must be the beginning of a file's name, without directories, got {settings.name!r}.")
    if settings.samples is not None and settings.samples < 1:
        raise ValueError(f"samples must be at least 1, got {settings.samples}.")
    about = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    check_same({name: to_json(value) for name, value in about.items() if name != "cluster"})
    run = training.load_run(settings.run)
    own = None if settings.experiment is None else type(load_recipe(settings.experiment).experiment.data)
    problem = recorded_problem(run, own=own)
    step = from_first(lambda: run.step(settings.checkpoint), "the checkpoint")
    model = run.blank_model()
    is_stepper = isinstance(model, Stepper)
    _check_apply(settings, is_stepper)
    common = {"name": settings.name, "checkpoint": step, "console": console}
    if is_stepper:
        if not isinstance(problem, SeriesProblem):
            raise TypeError(f"{type(problem).__name__} must have the methods of experiments.SeriesProblem.")
        sets = prepared(_trajectories(settings, problem, model.config.history), model.config.operator)
        rollout_report.check(model, sets)
        trained = run.model(checkpoint=step, mesh=settings.mesh.one_copy())
        return rollout_report.write_report(run, trained, sets, animation=settings.animation, **common)
    if isinstance(problem, SeriesProblem):
        raise TypeError(f"{type(problem).__name__} has trajectories, but {settings.run} is not the run of a stepper.")
    sets = prepared(_samples(settings, problem), model.config)
    report.check(model, sets)
    same_functions = not settings.data and not isinstance(problem, FileData)
    trained = run.model(checkpoint=step, mesh=settings.mesh.one_copy())
    return report.write_report(run, trained, sets, mesh=settings.mesh, same_functions=same_functions, **common)


def _check_apply(settings: Evaluation, is_stepper: bool) -> None:
    """Raises ``ValueError`` if an option was given that is for the other kind of runs, or for files without files."""
    others = ("inputs", "targets") if is_stepper else ("steps", "animation", "states")
    kind, other = ("trajectories", "pairs of functions") if is_stepper else ("pairs of functions", "trajectories")
    for name in others:
        if getattr(settings, name) is not None:
            raise ValueError(f"--{name} is for runs on {other}; {settings.run} was trained on {kind}: leave it out.")
    if settings.animation == "mp4" and shutil.which("ffmpeg") is None:
        raise ValueError("--animation mp4 needs the program ffmpeg, which is not installed; take --animation gif.")
    given = [name for name in ("inputs", "targets", "states") if getattr(settings, name) is not None]
    if given and not settings.data:
        raise ValueError(f"--{' and --'.join(given)} needs --data, the files whose arrays have this name.")


def _trajectories(settings: Evaluation, problem: SeriesProblem, history: int) -> dict[str, Trajectories]:
    if settings.steps is not None:
        check_size(settings.steps, "--steps")
        problem = problem.lasting(settings.steps, history)
    if isinstance(problem, SeriesData):
        problem = dataclasses.replace(problem, external=settings.external)
    sets = dict(problem.at(settings.grids, settings.cache)) if settings.grids else {}
    if settings.data:
        files = problem if isinstance(problem, SeriesData) else SeriesData(Path(), external=settings.external)
        files = files if settings.states is None else dataclasses.replace(files, states=settings.states)
        files = files if settings.steps is None else files.lasting(settings.steps, history)
        sets |= files.files(settings.data)
    sets = sets or dict(problem.load(settings.cache).test)
    return {name: found.take(slice(settings.samples)) for name, found in sets.items()}


def _samples(settings: Evaluation, problem: Problem) -> dict[str, AnySamples]:
    if isinstance(problem, FileData):
        problem = dataclasses.replace(problem, external=settings.external)
    sets: dict[str, AnySamples] = {}
    if settings.grids:
        sets |= problem.at(settings.grids, settings.cache)
    if settings.data:
        given = {"inputs": settings.inputs, "targets": settings.targets}
        names = {option: name for option, name in given.items() if name is not None}
        files = problem if isinstance(problem, FileData) else FileData(settings.data[0], external=settings.external)
        sets |= dataclasses.replace(files, **names).files(settings.data)
    sets = sets or dict(problem.load(settings.cache).test)
    if settings.samples is None:
        return sets  # all samples of a set in memory would be a copy
    return {name: samples.take(slice(settings.samples)) for name, samples in sets.items()}
