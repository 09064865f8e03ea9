"""What the scripts share: an experiment's settings, its model, its evaluation, and errors without tracebacks."""

import csv
import ctypes
import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
import tyro
from flax import nnx
from problems import PROBLEMS, FileData, Problem, Sets, grid_name
from rich.console import Console
from rich.table import Table

from jaxop import data, operators, training
from jaxop._validation import check_name
from jaxop.data import Samples
from jaxop.domains import Grid, monte_carlo
from jaxop.training.evaluation import trace_errors

Data = TypeVar("Data")
Model = TypeVar("Model")

CACHE = Path(".cache/data")
"""Where generated data are kept unless told otherwise."""

CONFIGS = Path(__file__).parent / "configs"
"""The ready-made experiments, one file each."""

_FROM_DATA = ("in_channels", "out_channels", "dim", "reference", "initial_channels")
_FROM_GRID = ("patches", "modes", "smoothing_modes")
_EVALUATION_NODES = 2**16  # at once: keeps the working memory of an evaluation small on fine grids
_INPUT_ERRORS = (ValueError, TypeError, OSError, ImportError, NotImplementedError, FloatingPointError)


@dataclasses.dataclass(frozen=True)
class Experiment(Generic[Data, Model]):
    """One training run: what to learn, with which operator, how, and where it is recorded.

    Attributes:
        data: the problem or the files.
        model: the operator.
        training: steps, batches, learning rate, checkpoints.
        run_dir: directory of the run; None: runs/NAME-DATE-TIME.
        resume: continue the run in run_dir from its newest checkpoint.
        cache: where generated data are kept, by their parameters.
        tensorboard: also log to run_dir/tensorboard.
        wandb: also log to this Weights & Biases project.
    """

    data: Data
    model: Model
    training: training.TrainingConfig
    run_dir: Path | None = None
    resume: bool = False
    cache: Path = CACHE
    tensorboard: bool = False
    wandb: str | None = None


def chosen_from_grid(operator: str) -> type:
    """The settings of an operator trained on files: its config without what the data decide.

    Patches and modes are optional: None takes values that the grid allows, see `complete`.
    """
    check_name(operator, "operator", operators.CONFIGS)
    kind = operators.CONFIGS[operator]
    fields: list[Any] = []
    for field in dataclasses.fields(kind):
        if field.name in _FROM_GRID and field.default is not None:
            fields.append((field.name, int | None, dataclasses.field(default=None)))
        elif field.name not in _FROM_DATA:
            fields.append((field.name, field.type, dataclasses.field(default=field.default)))
    settings = dataclasses.make_dataclass(f"{operator.capitalize()}Settings", fields, frozen=True)
    settings.__doc__ = kind.__doc__
    return settings


def complete(operator: str, settings: Any, sets: Sets) -> tuple[Any, dict[str, int]]:
    """The operator's config, with what the data decide, and those of its settings chosen to suit the grids."""
    kind = operators.CONFIGS[operator]
    names = [field.name for field in dataclasses.fields(kind)]
    open_names = [name for name in _FROM_GRID if getattr(settings, name, 0) is None and _has_number(kind, name)]
    values = {name: value for name, value in vars(settings).items() if name not in open_names}
    train = sets.train
    values |= {"in_channels": train.inputs.shape[-1], "out_channels": train.targets.shape[-1], "dim": train.domain.dim}
    if train.initial is not None and "initial_channels" in names:
        values["initial_channels"] = train.initial.shape[-1]
    chosen: dict[str, int] = {}
    shapes = [
        samples.domain.shape
        for samples in (train, *sets.valid.values(), *sets.test.values())
        if isinstance(samples.domain, Grid) and not samples.domain.is_batched
    ]
    if "reference" in names and shapes:
        values["reference"] = min(shapes[0])
        fitting = fit_to_grid(shapes, has_patches="patches" in names, patches=values.get("patches"))
        chosen = {name: fitting[name] for name in open_names}
    return kind(**values, **chosen), chosen


def _has_number(kind: type, name: str) -> bool:
    return any(field.name == name and field.default is not None for field in dataclasses.fields(kind))


def fit_to_grid(shapes: Sequence[Sequence[int]], *, has_patches: bool, patches: int | None) -> dict[str, int]:
    """Patches and modes that every one of these grids can carry.

    The number of patches along each axis divides all grids, leaves at least 8 nodes in each where it
    can, and is as near to 4 as possible (8 in one dimension), unless it is given. Modes: 8 in a patch,
    12 on a grid without patches, 16 for the smoothing, or half of the nodes if there are fewer.
    """
    nodes = [n for shape in shapes for n in shape]
    divisor, smallest = math.gcd(*nodes), min(nodes)
    values = {"smoothing_modes": max(1, min(16, smallest // 2))}
    side = smallest
    if has_patches:
        wanted = 8 if len(shapes[0]) == 1 else 4
        allowed = [p for p in range(1, divisor + 1) if divisor % p == 0 and smallest // p >= 8] or [1]
        values["patches"] = patches or min(allowed, key=lambda p: abs(p - wanted))
        side = smallest // values["patches"]
    return values | {"modes": max(1, min(8 if has_patches else 12, side // 2))}


def operator_name(config: Any) -> str:
    """Short name of the operator that a config describes."""
    return next(name for name, kind in operators.CONFIGS.items() if type(config) is kind)


def build(config: Any, train: Samples, *, seed: int) -> operators.Standardized:
    """The operator in physical units, standardised by the statistics of the training set."""
    inputs = data.statistics(train.inputs, train.domain)
    outputs = data.statistics(train.targets, train.target_domain)
    initial = {}
    if train.initial is not None:
        at_one_node = data.statistics(np.asarray(train.initial[:])[:, None], monte_carlo(np.zeros((1, 1), np.float32)))
        initial = {"initial_mean": at_one_node.mean, "initial_std": at_one_node.std}
    return operators.Standardized(
        operators.build(config, rngs=nnx.Rngs(seed)),
        input_mean=inputs.mean,
        input_std=inputs.std,
        output_mean=outputs.mean,
        output_std=outputs.std,
        **initial,
    )


def describe(problem: Problem, config: Any, train: Samples) -> dict[str, Any]:
    """What a run records of its data and operator, enough to rebuild both."""
    settings = dataclasses.asdict(problem)  # pyright: ignore[reportArgumentType]
    if isinstance(problem, FileData):
        located = {name: _absolute(settings[name]) for name in ("train", "valid", "test")}
        settings |= located
    return {
        "problem": problem.name,
        "data": settings,
        "operator": operator_name(config),
        "model": dataclasses.asdict(config),
        "resolution": round(train.domain.size ** (1 / train.domain.dim), 3),
        "samples": len(train),
    }


def recorded(run: training.Run) -> Problem:
    """The problem of a run, from what `describe` recorded."""
    try:
        kind = PROBLEMS[run.config["problem"]]
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in run.config["data"].items()
        }
    except (KeyError, AttributeError) as error:
        raise ValueError(
            f"{run.directory}/config.json is not of a run of scripts/train.py ({type(error).__name__}: {error})."
        ) from error
    if kind is FileData:
        values["train"] = Path(values["train"])
        values["valid"] = values["valid"] and Path(values["valid"])
        values["test"] = tuple(Path(path) for path in values["test"])
    return kind(**values)


def check(model: operators.Standardized, sets: Mapping[str, Samples]) -> None:
    """Raises where the model cannot run on a set or does not return what the set holds, naming the set."""
    config = model.config
    for label, samples in sets.items():
        for what, expected, received in (
            ("dimensions", config.dim, samples.domain.dim),
            ("input channels", config.in_channels, samples.inputs.shape[-1]),
            ("output channels", config.out_channels, samples.targets.shape[-1]),
        ):
            if expected != received:
                raise ValueError(
                    f"{label} ({grid_name(samples)}) has {received} {what} but the operator was made for {expected}; "
                    "take data of the kind it is trained on."
                )
        try:
            trace_errors(model, samples, batch_size=min(2, len(samples)))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise type(error)(f"{label} ({grid_name(samples)}): {error}") from error


def evaluate(
    run: training.Run,
    model: nnx.Module,
    sets: Mapping[str, Samples],
    *,
    name: str,
    checkpoint: int | str,
    console: Console,
) -> list[dict[str, Any]]:
    """Errors on every set: a table printed and saved under ``evaluation/``, pictures under ``figures/``.

    Args:
        run: the run that the model belongs to.
        model: with the parameters of the checkpoint.
        sets: the sets by name.
        name: prefix of all files.
        checkpoint: the step the parameters are from, for the record.
        console: where the table goes.

    Returns:
        The rows of the table.
    """
    pictures, rows = run.directory / "figures", []
    for label, samples in sets.items():
        size = max(1, min(16, _EVALUATION_NODES // samples.target_domain.size))
        errors = training.evaluate(model, samples, batch_size=size)
        order = np.argsort(errors.l2, kind="stable")
        shown = {"median": int(order[(len(order) - 1) // 2]), "worst": int(order[-1])}
        row = {
            "set": label,
            "grid": grid_name(samples),
            "samples": len(samples),
            "rel_l2": float(np.mean(errors.l2, dtype=np.float64)),
            "rel_h1": None if errors.h1 is None else float(np.mean(errors.h1, dtype=np.float64)),
            "median_rel_l2": float(np.median(errors.l2)),
            "worst_rel_l2": float(errors.l2[shown["worst"]]),
            "worst_sample": shown["worst"],
        }
        rows.append(row)
        chosen = samples.take(list(shown.values()))
        figure = training.plot_predictions(
            chosen,
            training.predict(model, chosen, batch_size=1),
            labels=[f"{word} (sample {i}), {errors.l2[i]:.2%}" for word, i in shown.items()],
            title=f"{label}: {row['grid']}",
        )
        training.save_figure(figure, pictures / f"{name}-{_file_name(label)}.png")
    table = Table("set", "grid", "samples", "relative L2", "relative H1", "worst L2", "sample", title=_title(run))
    for row in rows:
        h1 = "–" if row["rel_h1"] is None else f"{row['rel_h1']:.3e}"
        worst = f"{row['worst_rel_l2']:.3e}"
        count, sample = str(row["samples"]), str(row["worst_sample"])
        table.add_row(row["set"], row["grid"], count, f"{row['rel_l2']:.3e}", h1, worst, sample)
    console.print(table)
    folder = run.directory / "evaluation"
    folder.mkdir(exist_ok=True)
    record = {"run": str(run.directory), "step": checkpoint, "units": "physical", "sets": rows}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    grids = [samples.target_domain for samples in sets.values()]
    errors = {
        title: [row[key] for row in rows] for key, title in (("rel_l2", "relative L2"), ("rel_h1", "relative H1"))
    }
    compared = training.plot_errors(grids, errors, trained_on=run.config["resolution"])
    training.save_figure(compared, pictures / f"{name}-errors.png")
    training.save_figure(training.plot_learning_curves(run.metrics), pictures / "learning-curves.png")
    console.print(f"table: {folder / name}.csv and .json; pictures: {pictures}/")
    return rows


def tune_allocator() -> None:
    """Keeps freed memory in the process: XLA's large buffers otherwise cost page faults at every step (glibc)."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def report(command: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Runs a command; what is wrong with its inputs is a message on stderr and exit status 2.

    Where it came from is shown if ``--traceback`` is among the arguments, which the command does not get to see.
    """
    try:
        command([argument for argument in arguments if argument != "--traceback"])
    except (*_INPUT_ERRORS, training.DamagedCheckpointError) as error:
        if "--traceback" in arguments:
            raise
        notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("(")]  # others are JAX's own
        sys.stderr.write(" ".join([f"error: {error}", *notes]) + "\n")
        return 2
    return 0


def options_of(main: Callable[..., object], description: str | None) -> Callable[[Sequence[str]], None]:
    """The command for `report` whose options are the parameters of ``main``."""

    def command(arguments: Sequence[str]) -> None:
        tune_allocator()
        tyro.cli(main, args=arguments, description=description, config=(tyro.conf.OmitArgPrefixes,))

    return command


def train_once(model: Any, train: Any, settings: training.TrainingConfig, directory: Path) -> training.Result:
    """One of many runs of a comparison, which ends with it where it is told to."""
    result = training.fit(model, train, {}, settings, run_dir=directory, progress=False)
    if result.stopped == "terminated":
        raise SystemExit(f"terminated; {directory} holds what was trained")
    return result


def brief(steps: int, batch_size: int, learning_rate: float, seed: int) -> training.TrainingConfig:
    """A short training by cross-entropy, saved at its end only."""
    return training.TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=steps // 20,
        weight_decay=1e-2,
        loss="cross_entropy",
        seed=seed,
        eval_every=steps,
        checkpoint_every=steps,
    )


def new_run(folder: Path, task: str, label: str, seed: int) -> Path:
    """A run directory that no other run has."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return folder / f"{task}-{re.sub('[^a-z0-9.]+', '-', label.lower())}-{seed}-{stamp}"


def parameters(model: nnx.Module) -> int:
    """Trainable numbers of a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _title(run: training.Run) -> str:
    return f"{run.config['operator']} · {run.directory.name} · errors in physical units"


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label.replace("²", ""))


def _absolute(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_absolute(path) for path in value]
    return None if value is None else str(Path(value).resolve())
