"""Evaluates a trained run on files or on other grids.

    python scripts/evaluate.py runs/mine --data b.npz c.h5
    python scripts/evaluate.py runs/darcy_fano --grids 32 64 96 128
    python scripts/evaluate.py runs/cde_tno --grids dt=0.005 nodes=400

Prints and saves relative L2 and H1 errors and the worst sample of every set, in physical units
(RUN/evaluation/NAME.csv and .json), and pictures of the median and the worst sample (RUN/figures/). With --traceback an
error shows where it came from.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from experiment import CACHE, check, evaluate, recorded, report, tune_allocator
from problems import FileData
from terminal import make_console

from jaxop import training
from jaxop.data import Samples


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to evaluate and where.

    Attributes:
        run: the run directory.
        data: files of samples, with the same names inside as the training file's unless --inputs and
            --targets say otherwise.
        grids: grids of a generated problem, as the tables name them: 64 for Darcy flow, dt=0.01 or
            nodes=200 for trajectories.
        samples: evaluate only this many samples of each set; None: all.
        checkpoint: "best", "last" or the number of a step.
        name: prefix of the files that are written.
        inputs: name of the input functions in the files.
        targets: name of the target functions in the files.
        external: whether HDF5 files may have their values in other files.
        cache: where generated data are kept, by their parameters.
    """

    run: tyro.conf.Positional[Path]
    data: tuple[Path, ...] = ()
    grids: tuple[str, ...] = ()
    samples: int | None = None
    checkpoint: str = "best"
    name: str = "evaluation"
    inputs: str | None = None
    targets: str | None = None
    external: bool = False
    cache: Path = CACHE


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    tune_allocator()
    settings = tyro.cli(Evaluation, args=arguments, prog="evaluate.py", description=__doc__)
    if Path(settings.name).name != settings.name:
        raise ValueError(f"--name must be the beginning of a file's name, without directories, got {settings.name!r}.")
    run = training.load_run(settings.run)
    problem = recorded(run)
    if isinstance(problem, FileData):
        problem = dataclasses.replace(problem, external=settings.external)
    checkpoint = int(settings.checkpoint) if settings.checkpoint.isdecimal() else settings.checkpoint
    step = run.step(checkpoint)
    sets: dict[str, Samples] = {}
    if settings.grids:
        sets |= problem.at(settings.grids, settings.cache)
    names = {name: value for name in ("inputs", "targets") if (value := getattr(settings, name)) is not None}
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
    check(run.blank_model(), sets)
    evaluate(run, run.model(checkpoint=step), sets, name=settings.name, checkpoint=step, console=make_console())


if __name__ == "__main__":
    sys.exit(report(main, sys.argv[1:]))
