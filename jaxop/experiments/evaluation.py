"""A trained run on files or on other grids."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from jaxop import training
from jaxop.data import Samples
from jaxop.experiments import report
from jaxop.experiments.experiment import default_cache, load_recipe
from jaxop.experiments.problems import FileData, Problem
from jaxop.experiments.record import recorded_problem
from jaxop.experiments.terminal import make_console

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to evaluate and where.

    Attributes:
        run: the run directory.
        data: files of samples, with the same names inside as the training file's unless --inputs and
            --targets say otherwise.
        grids: grids of a generated problem, as the tables name them: 64 for Darcy flow, dt=0.01 or
            nodes=200 for trajectories.
        samples: evaluate only this many samples of each set; None evaluates all.
        checkpoint: "best", "last" or the number of a step.
        name: prefix of the files that are written.
        inputs: name of the input functions in the files.
        targets: name of the target functions in the files.
        external: whether HDF5 files may have their values in other files.
        experiment: file of your own experiment, if it defines the problem of the run; it is executed.
        cache: where generated data are kept, by their parameters.
    """

    run: Path
    data: tuple[Path, ...] = ()
    grids: tuple[str, ...] = ()
    samples: int | None = None
    checkpoint: str = "best"
    name: str = "evaluation"
    inputs: str | None = None
    targets: str | None = None
    external: bool = False
    experiment: Path | None = None
    cache: Path = dataclasses.field(default_factory=default_cache)


def evaluate(settings: Evaluation, *, console: "Console | None" = None) -> list[report.Row]:
    """Relative L2 and H1 errors and the worst sample of every set, in physical units.

    They are printed and saved (``RUN/evaluation/NAME.csv`` and ``.json``), with pictures of the median and the worst
    sample (``RUN/figures/``). Without files and grids, the sets are the test sets of the run.

    Args:
        settings: the run, the sets, the checkpoint.
        console: where the table goes; None writes to stdout.

    Returns:
        The rows of the table.

    Raises:
        ValueError: for settings that do not fit together, or sets that the operator cannot run on.
        FileNotFoundError: if there is no such run, checkpoint or file.
        ImportError: without the extra ``scripts``.
    """
    if Path(settings.name).name != settings.name:
        raise ValueError(f"--name must be the beginning of a file's name, without directories, got {settings.name!r}.")
    run = training.load_run(settings.run)
    own = None if settings.experiment is None else type(load_recipe(settings.experiment).experiment.data)
    problem = recorded_problem(run, own=own)
    checkpoint = int(settings.checkpoint) if settings.checkpoint.isdecimal() else settings.checkpoint
    step = run.step(checkpoint)
    sets = _sets(settings, problem)
    report.check(run.blank_model(), sets)
    console = make_console() if console is None else console
    return report.write_report(
        run, run.model(checkpoint=step), sets, name=settings.name, checkpoint=step, console=console
    )


def _sets(settings: Evaluation, problem: Problem) -> dict[str, Samples]:
    if isinstance(problem, FileData):
        problem = dataclasses.replace(problem, external=settings.external)
    sets: dict[str, Samples] = {}
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
        sets = problem.load(settings.cache).test
    if settings.samples is not None:
        if settings.samples < 1:
            raise ValueError(f"samples must be at least 1, got {settings.samples}.")
        sets = {name: samples.take(slice(settings.samples)) for name, samples in sets.items()}
    return sets
