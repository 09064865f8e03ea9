"""Trains an operator and evaluates it on other grids.

    python scripts/train.py darcy_fano --training.steps 500 --model.width 64 --run-dir runs/wide
    python scripts/train.py custom --data.train a.npz --data.operator fano
    python scripts/train.py darcy_schwarz model.schwarz:schwarz-attention-config --model.schwarz.subdomains 8
    python scripts/train.py darcy_fano --help
    python scripts/train.py resume runs/wide
    python scripts/train.py resume runs/mine --data.train moved/a.npz

The first argument names a file of scripts/configs/; every field of its settings is an option. "resume" continues a run
with the settings that it recorded, but for a time limit; that one, and how often it is evaluated and saved, may be
given anew, as may the places of files whose contents are the same. With --traceback an error shows where it came from.
"""

import ast
import contextlib
import dataclasses
import datetime
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from experiment import (
    CONFIGS,
    Experiment,
    build,
    check,
    check_memory,
    chosen_from_grid,
    complete,
    describe,
    evaluate,
    new_directory,
    parameters,
    recorded,
    report,
    tune_allocator,
)
from problems import FileData, Sets, check_directory, grid_name
from rich.console import Console
from rich.table import Table
from terminal import make_console

from jaxop import operators, training
from jaxop._validation import check_name
from jaxop.training._files import local_path


def parse(arguments: Sequence[str]) -> tuple[str, Experiment[Any, Any]]:
    """The name of the ready-made experiment, and its settings with those of the command line."""
    names = sorted(path.stem for path in CONFIGS.glob("[a-z]*.py"))
    if not arguments or arguments[0] in ("-h", "--help"):
        _list(names)
        raise SystemExit(0 if arguments else 2)
    name = arguments[0]
    if name == "resume":
        return _recorded(arguments[1:])
    check_name(name, "config", names)
    module = importlib.import_module(f"configs.{name}")
    default = module.CONFIG
    if isinstance(default.data, FileData):
        default = _for_operator(default, arguments)
    default = _for_steps(default, arguments)
    kind = Experiment[type(default.data), type(default.model)]
    return name, tyro.cli(
        kind,
        default=default,
        args=arguments[1:],
        prog=f"train.py {name}",
        description=module.__doc__,
    )


def run(name: str, experiment: Experiment[Any, Any], console: Console) -> Path:
    """Trains, evaluates and returns the run directory."""
    directory = _run_dir(name, experiment)
    console.print(f"{name}: reading or generating data", style="bold")
    config, chosen = experiment.model, {}
    is_complete = type(config) in operators.CONFIGS.values()
    if is_complete:
        check_memory(config)  # before data are made
    try:
        sets = experiment.data.load(experiment.cache)
    except FileNotFoundError as error:
        if experiment.resume and isinstance(experiment.data, FileData):
            error.add_note("(A file that has moved can be named anew: --data.train FILE, --data.valid FILE.)")
        raise
    if not is_complete:
        config, chosen = complete(experiment.data.operator, config, sets)
        check_memory(config)
    model = build(config, sets.train, seed=experiment.training.seed)
    check(model, sets.test)
    if experiment.run_dir is None:
        directory = new_directory(directory)
    console.print(_summary(directory, sets, config, chosen, parameters(model)))
    valid = sets.valid
    if experiment.resume and len(known := training.load_run(directory).config["valid"]) == len(valid):
        valid = dict(zip(known, valid.values(), strict=True))  # a file may have been renamed
    loggers: list[training.Logger] = [training.TensorBoard()] if experiment.tensorboard else []
    if experiment.wandb is not None:
        loggers.append(training.WeightsAndBiases(experiment.wandb))
    try:
        result = training.fit(
            model,
            sets.train,
            valid,
            experiment.training,
            run_dir=directory,
            settings=describe(experiment.data, config, sets.train),
            resume=experiment.resume,
            loggers=loggers,
        )
    finally:
        if experiment.run_dir is None:
            with contextlib.suppress(OSError):
                directory.rmdir()  # nothing was written
    console.print(f"{result.stopped} after step {int(result.state.step)}, {result.seconds:.0f} s of training")
    if result.stopped == "terminated":
        console.print(f"saved; continue with: python scripts/train.py resume {directory}")
        return directory
    finished = training.load_run(directory)
    evaluate(finished, finished.restore(model), sets.test, name="test", checkpoint=finished.step(), console=console)
    console.print(f"run: {directory}; checkpoints: {directory / 'checkpoints'}/")
    return directory


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    tune_allocator()
    name, experiment = parse(arguments)
    run(name, experiment, make_console())


def _recorded(arguments: Sequence[str]) -> tuple[str, Experiment[Any, Any]]:
    """A run's name and the settings it was started with, ready to continue it."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("resume needs the directory of a run: python scripts/train.py resume RUN")
    run = training.load_run(arguments[0])
    config = run.blank_model().config
    settings = dataclasses.replace(run.training, time_limit_s=None)  # it has been reached, or it never mattered
    default = Experiment(recorded(run), config, settings, run_dir=run.directory, resume=True)
    kind = Experiment[type(default.data), type(config)]
    return run.directory.name, tyro.cli(kind, default=default, args=arguments[1:], prog="train.py resume RUN")


def _for_operator(default: Experiment[Any, Any], arguments: Sequence[str]) -> Experiment[Any, Any]:
    """The settings for files with the model's options of the operator that the arguments name."""
    operator = _given("--data.operator", arguments) or default.data.operator
    return Experiment(default.data, chosen_from_grid(operator)(), default.training)


def _for_steps(default: Experiment[Any, Any], arguments: Sequence[str]) -> Experiment[Any, Any]:
    """The settings with the same share of warm-up steps, if the arguments name fewer steps than their number."""
    steps, settings = _given("--training.steps", arguments) or "", default.training
    if not steps.isdecimal() or int(steps) >= settings.warmup_steps:
        return default
    warmup = int(steps) * settings.warmup_steps // settings.steps
    return dataclasses.replace(default, training=dataclasses.replace(settings, warmup_steps=warmup))


def _given(option: str, arguments: Sequence[str]) -> str | None:
    """The value that the arguments give to an option, before they are parsed."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, is_joined, value = argument.partition("=")
        if name == option:
            found = value if is_joined else following
    return found


def _run_dir(name: str, experiment: Experiment[Any, Any]) -> Path:
    """Where the run goes; what cannot go there fails before any data are made."""
    directory = experiment.run_dir
    if experiment.resume:
        if directory is None:
            raise ValueError("--resume needs --run-dir, the directory of the run to continue.")
        training.load_run(directory)
        return directory
    if directory is None:
        directory = Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    elif (local_path(directory, "run_dir") / "config.json").exists():
        raise FileExistsError(
            f"{directory} already holds a run; continue it with `train.py resume {directory}`, "
            "or give another --run-dir."
        )
    check_directory("--run-dir", directory)
    return directory


def _summary(directory: Path, sets: Sets, config: Any, chosen: dict[str, int], count: int) -> Table:
    table = Table(show_header=False)
    table.add_row("run", str(directory))
    table.add_row("training samples", f"{len(sets.train)} on {grid_name(sets.train)}")
    for kind in ("valid", "test"):
        for name, samples in getattr(sets, kind).items():
            table.add_row(f"{kind}: {name}", f"{len(samples)} on {grid_name(samples)}")
    table.add_row("operator", type(config).__name__.removesuffix("Config"))
    table.add_row("settings", ", ".join(f"{field} {value}" for field, value in vars(config).items()))
    if chosen:
        options = ", ".join(f"--model.{field.replace('_', '-')} {value}" for field, value in chosen.items())
        table.add_row("chosen to suit the grids", options)
    table.add_row("parameters", f"{count:,}")
    return table


def _list(names: Sequence[str]) -> None:
    console = make_console()
    console.print(__doc__)
    for name in names:
        about = ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text(encoding="utf-8"))) or ""
        console.print(f"  {name}: {about.splitlines()[0]}")


if __name__ == "__main__":
    sys.exit(report(main, sys.argv[1:]))
