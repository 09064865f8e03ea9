"""Evaluation of a trained run on files or on other grids."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from jaxop import training
from jaxop.experiments import report
from jaxop.experiments.cluster import ClusterConfig
from jaxop.experiments.experiment import default_cache, load_recipe
from jaxop.experiments.problems import FileData
from jaxop.experiments.record import recorded_problem
from jaxop.experiments.sets import AnySamples, Problem
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
        grids: grids of a generated problem, by their names in the tables: 64 for Darcy flow, dt=0.01 or
            nodes=200 for trajectories.
        samples: number of samples of each set that are evaluated; None evaluates all.
        checkpoint: "best", "last" or the number of a step.
        name: prefix of the files that are written.
        inputs: name or names of the input functions in the files; None means their name in the training file.
        targets: name or names of the target functions in the files; None means their name in the training file.
        external: allows HDF5 files to have their values in other files.
        experiment: file of your own experiment, if it defines the problem of the run; it is executed.
        cache: directory of generated data, which are kept by their parameters.
        mesh: devices that share the samples, the parameters and the nodes of a function.
        cluster: how several processes find each other.
    """

    run: Path
    data: tuple[Path, ...] = ()
    grids: tuple[str, ...] = ()
    samples: int | None = None
    checkpoint: str = "best"
    name: str = "evaluation"
    inputs: str | tuple[str, ...] | None = None
    targets: str | tuple[str, ...] | None = None
    external: bool = False
    experiment: Path | None = None
    cache: Path = dataclasses.field(default_factory=default_cache)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)


def evaluate(settings: Evaluation, *, console: "Console | None" = None) -> list[report.Row]:
    """Computes relative L2 and H1 errors and the worst sample of every set, in physical units.

    They are printed and saved (``RUN/evaluation/NAME.csv`` and ``.json``), with pictures of the median and the worst
    sample (``RUN/figures/``). Without files and grids, the sets are the test sets of the run.

    Args:
        settings: the run, the sets, the checkpoint.
        console: destination of the table; None writes to stdout.

    Returns:
        The rows of the table.

    Raises:
        ValueError: if settings do not fit together, or the operator cannot run on a set.
        FileNotFoundError: if the run, the checkpoint or a file does not exist.
        ImportError: if a package of the extra ``scripts`` is not installed.
    """
    with settings.cluster.joined():
        return _evaluate(settings, console)


def _evaluate(settings: Evaluation, console: "Console | None") -> list[report.Row]:
    if Path(settings.name).name != settings.name:
        raise ValueError(f"--name must be the beginning of a file's name, without directories, got {settings.name!r}.")
    about = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    check_same({name: to_json(value) for name, value in about.items() if name != "cluster"})
    run = training.load_run(settings.run)
    own = None if settings.experiment is None else type(load_recipe(settings.experiment).experiment.data)
    problem = recorded_problem(run, own=own)
    step = from_first(lambda: run.step(settings.checkpoint), "the checkpoint")
    model = run.blank_model()
    sets = prepared(_sets(settings, problem), model.config)
    report.check(model, sets)
    console = make_console() if console is None else console
    return report.write_report(
        run,
        run.model(checkpoint=step, mesh=settings.mesh.one_copy()),
        sets,
        name=settings.name,
        checkpoint=step,
        console=console,
        mesh=settings.mesh,
        same_functions=not settings.data and not isinstance(problem, FileData),
    )


def _sets(settings: Evaluation, problem: Problem) -> dict[str, AnySamples]:
    if isinstance(problem, FileData):
        problem = dataclasses.replace(problem, external=settings.external)
    sets: dict[str, AnySamples] = {}
    if settings.grids:
        sets |= problem.at(settings.grids, settings.cache)
    given = {"inputs": settings.inputs, "targets": settings.targets}
    names = {option: name for option, name in given.items() if name is not None}
    if names and not settings.data:
        raise ValueError(f"--{' and --'.join(names)} needs --data, the files whose arrays have this name.")
    if settings.data:
        files = problem if isinstance(problem, FileData) else FileData(settings.data[0], external=settings.external)
        sets |= dataclasses.replace(files, **names).files(settings.data)
    if not sets:
        sets = dict(problem.load(settings.cache).test)
    if settings.samples is not None:
        if settings.samples < 1:
            raise ValueError(f"samples must be at least 1, got {settings.samples}.")
        sets = {name: samples.take(slice(settings.samples)) for name, samples in sets.items()}
    return sets
