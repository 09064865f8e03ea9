"""Evaluation of a trained model on files or on other grids."""

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxop._validation import check_size
from jaxop.data import Trajectories
from jaxop.experiments import report, rollout_report
from jaxop.experiments.cluster import ClusterConfig
from jaxop.experiments.experiment import default_cache, load_recipe
from jaxop.experiments.problems import FileData
from jaxop.experiments.series import SeriesData
from jaxop.experiments.sets import AnySamples, Problem, SeriesProblem
from jaxop.experiments.settings import prepared
from jaxop.experiments.terminal import as_options, make_console
from jaxop.experiments.trained import Place, Trained, open_trained
from jaxop.training import MeshConfig, to_json
from jaxop.training.processes import check_same

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation.

    Attributes:
        model: a run directory, or the folder or .zip file of a model that `jaxop export-model` or model.save wrote.
        data: files or folders of samples, whose arrays have the names of the training file unless --inputs and
            --targets give others.
        grids: grids of a generated problem, by their names in the tables: 64 for Darcy flow and for equations in
            time, dt=0.01 for another step, nodes=200 for uneven times of differential equations.
        steps: number of steps of the rollouts of a stepper. Trajectories in files are cut into pieces that are as long,
            and generated ones made as long. None takes those of the run.
        animation: "gif" or "mp4" also writes a film of the median sample of every set of a stepper; None does not.
        samples: number of samples of each set that are evaluated; None evaluates all.
        checkpoint: "best", "last" or the number of a step of a run.
        name: prefix of the files that are written.
        to: folder of the tables and pictures of a model without its run; those of a run are in the run directory.
        inputs: name or names of the input functions in the files; None means their name in the training file.
        targets: name or names of the target functions in the files; None means their name in the training file.
        states: name or names of the states in the files of a stepper; None means their name in the training file.
        times: name of the times in the files of a stepper; None means their name in the training file.
        rule: quadrature rule of the grid in the files, one or one per axis: "midpoint", "periodic", "trapezoid", ...;
            None means the one of the training file.
        external: allows HDF5 files to have their values in other files.
        experiment: file of your own experiment, if it defines the problem of the run; it is executed.
        cache: directory of generated data, which are kept by their parameters.
        mesh: devices that share the samples, the parameters and the nodes of a function.
        cluster: how several processes find each other.
    """

    model: Path
    data: tuple[Path, ...] = ()
    grids: tuple[str, ...] = ()
    steps: int | None = None
    animation: Literal["gif", "mp4"] | None = None
    samples: int | None = None
    checkpoint: str = "best"
    name: str = "evaluation"
    to: Path | None = None
    inputs: str | tuple[str, ...] | None = None
    targets: str | tuple[str, ...] | None = None
    states: str | tuple[str, ...] | None = None
    times: str | None = None
    rule: tuple[str, ...] | None = None
    external: bool = False
    experiment: Path | None = None
    cache: Path = dataclasses.field(default_factory=default_cache)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)


def evaluate(
    settings: Evaluation, *, console: "Console | None" = None
) -> list[report.Row] | list[rollout_report.SetErrors]:
    """Computes the errors of a model on every set, in physical units, and saves them with pictures.

    They are relative L2 and H1 errors and the worst sample, and the coverage of the error bars if the model has them,
    see `jaxop.experiments.report.write_report`, or those of the rollouts of a stepper, see
    `jaxop.experiments.rollout_report.write_report`. Without files and grids, the sets are the test sets of the run.

    Args:
        settings: the model, the sets, the checkpoint.
        console: destination of the table; None writes to stdout.

    Returns:
        The rows of the table, or the errors of the rollouts on every set.

    Raises:
        ValueError: if settings do not fit together, or the operator cannot run on a set.
        FileNotFoundError: if the model, the checkpoint or a file does not exist.
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
    own = None if settings.experiment is None else type(load_recipe(settings.experiment).experiment.data)
    trained = open_trained(settings.model, checkpoint=settings.checkpoint, own=own)
    _check_apply(settings, trained)
    problem, model = trained.problem, trained.blank
    if problem is None:
        problem = SeriesData(Path()) if trained.is_stepper else FileData(Path())
    if (run := trained.run) is None:
        assert settings.to is not None
        run = Place(settings.to, {"operator": trained.name})
    common = {"name": settings.name, "checkpoint": trained.step, "console": console, "source": settings.model}
    names = ("inputs", "targets", "states", "times", "rule")
    if trained.is_stepper:
        if not isinstance(problem, SeriesProblem):
            raise TypeError(f"{type(problem).__name__} must have the methods of experiments.SeriesProblem.")
        with as_options(names):
            sets = prepared(_trajectories(settings, problem, model.config.history), model.config.operator)
            rollout_report.check(model, sets)
        stepper = trained.restore(settings.mesh.one_copy())
        return rollout_report.write_report(run, stepper, sets, animation=settings.animation, **common)
    if isinstance(problem, SeriesProblem):
        raise TypeError(f"{type(problem).__name__} has trajectories, but {settings.model} is not a stepper.")
    with as_options(names):
        sets = prepared(_samples(settings, problem), model.config)
        report.check(model, sets)
    same_functions = not settings.data and not isinstance(problem, FileData)
    operator = trained.restore(settings.mesh.one_copy())
    common |= {"mesh": settings.mesh, "same_functions": same_functions, "calibrated": trained.calibrated}
    return report.write_report(run, operator, sets, **common)


def _check_apply(settings: Evaluation, trained: Trained) -> None:
    """Raises ``ValueError`` if an option is missing, or was given that is for other models or needs files."""
    is_stepper, model = trained.is_stepper, settings.model
    others = ("inputs", "targets") if is_stepper else ("steps", "animation", "states", "times")
    kind, other = ("trajectories", "pairs of functions") if is_stepper else ("pairs of functions", "trajectories")
    for name in others:
        if getattr(settings, name) is not None:
            raise ValueError(f"--{name} is for runs on {other}; {model} was trained on {kind}: leave it out.")
    if trained.run is not None and settings.to is not None:
        raise ValueError(f"--to is for models without a run; the tables of {model} are in it: leave --to out.")
    if trained.run is None and settings.to is None:
        raise ValueError(f"{model} is a model without its run: give the folder of the tables by --to.")
    if trained.run is None and not (settings.data or settings.grids):
        raise ValueError(f"{model} is a model without its run: give the files of samples by --data.")
    if settings.animation == "mp4" and shutil.which("ffmpeg") is None:
        raise ValueError("--animation mp4 needs the program ffmpeg, which is not installed; take --animation gif.")
    given = [name for name in ("inputs", "targets", "states", "times", "rule") if getattr(settings, name) is not None]
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
        given = {name: getattr(settings, name) for name in ("states", "times", "rule")}
        files = dataclasses.replace(files, **{name: value for name, value in given.items() if value is not None})
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
        given = {name: getattr(settings, name) for name in ("inputs", "targets", "rule")}
        names = {option: name for option, name in given.items() if name is not None}
        files = problem if isinstance(problem, FileData) else FileData(settings.data[0], external=settings.external)
        sets |= dataclasses.replace(files, **names).files(settings.data)
    sets = sets or dict(problem.load(settings.cache).test)
    if settings.samples is None:
        return sets  # all samples of a set in memory would be a copy
    return {name: samples.take(slice(settings.samples)) for name, samples in sets.items()}
