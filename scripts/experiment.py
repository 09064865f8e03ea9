"""What the scripts share: an experiment's settings, its model, its evaluation, and errors without tracebacks."""

import collections
import contextlib
import csv
import ctypes
import dataclasses
import functools
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax
import numpy as np
import tyro
from flax import nnx
from problems import PROBLEMS, FileData, Problem, Sets, grid_name
from rich.console import Console
from rich.table import Table
from terminal import print_anywhere

from jaxop import data, operators, training
from jaxop._validation import check_name
from jaxop.data import Samples
from jaxop.data.files._reading import memory
from jaxop.domains import Grid, monte_carlo
from jaxop.training.evaluation import trace_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = TypeVar("Data")
Model = TypeVar("Model")

CACHE = Path(".cache/data")
"""Where generated data are kept unless told otherwise."""

CONFIGS = Path(__file__).parent / "configs"
"""The ready-made experiments, one file each."""

_FROM_DATA = ("in_channels", "out_channels", "dim", "reference", "initial_channels")
_FROM_GRID = ("patches", "modes", "smoothing_modes")
_COPIES = 5  # of the parameters, during training
_DEPTH = 3  # layers beyond which operators are not made to count their parameters
_EVALUATION_NODES = 2**16  # at once: keeps the working memory of an evaluation small on fine grids
_INPUT_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    MemoryError,
    NotImplementedError,
    ArithmeticError,
    jax.errors.JaxRuntimeError,  # out of memory, usually
    training.DamagedCheckpointError,
)


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
    chosen: dict[str, Any] = {}
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


def check_memory(config: Any) -> None:
    """Raises ``ValueError`` for an operator whose training cannot fit into memory, without making it."""
    size, count = size_of(config)
    needed, available = _COPIES * size, _memory()
    if needed <= available:
        return
    sizes = {f.name: (getattr(config, f.name), f.default) for f in dataclasses.fields(config)}
    sizes = {name: pair for name, pair in sizes.items() if all(isinstance(n, int) for n in pair)}
    large = [f"{name}={given} (default {default})" for name, (given, default) in sizes.items() if given > default]
    raise ValueError(
        f"the operator has {count:,} parameters of {size / 2**30:,.1f} GiB. Training needs {_COPIES} times as much "
        f"({needed / 2**30:,.1f} GiB: the parameters twice, their gradient, two moments), and there are "
        f"{available / 2**30:,.1f} GiB of memory. Make the operator smaller: {', '.join(large or sizes)}."
    )


def size_of(config: Any) -> tuple[int, int]:
    """Bytes and number of an operator's parameters; both are linear in the depth, so none is made deep."""
    for name in ("layers", "decoder_layers"):
        depth = getattr(config, name, 0)
        if depth > _DEPTH:
            less, more = (
                np.array(size_of(dataclasses.replace(config, **{name: n})), object) for n in (_DEPTH - 1, _DEPTH)
            )
            size, count = more + (depth - _DEPTH) * (more - less)
            return size, count
    leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(lambda: operators.build(config, rngs=nnx.Rngs(0))), nnx.Param))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves), sum(leaf.size for leaf in leaves)


def _memory() -> float:
    """Bytes of the accelerator's memory, or of this machine's."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", memory())


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


def recorded(run: training.Run) -> Problem:
    """The problem of a run, from what `describe` recorded."""
    path = run.directory / "config.json"
    if missing := {"problem", "data", "operator", "model", "resolution"} - run.config.keys():
        raise ValueError(f"{path} is not of a run of scripts/train.py: it has no field {min(missing)!r}.")
    try:
        check_name(run.config["problem"], "problem", PROBLEMS)
        kind = PROBLEMS[run.config["problem"]]
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


def check(model: operators.Standardized, sets: Mapping[str, Samples]) -> None:
    """Raises where the model cannot run on a set or does not return what the set holds, naming the set."""
    if not sets:
        raise ValueError("there is nothing to evaluate on; name at least one grid or file.")
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
    """Errors on every set: a table printed and saved under ``evaluation/``, then pictures under ``figures/``.

    A picture that cannot be drawn is a warning.

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
    rows: list[dict[str, Any]] = []
    figures: dict[str, Callable[[], Figure]] = {}
    for (label, samples), file in zip(sets.items(), file_names(sets), strict=True):
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
        labels = [f"{word} (sample {i}), {errors.l2[i]:.2%}" for word, i in shown.items()]
        chosen = samples.take(list(shown.values()))
        title = f"{label}: {row['grid']}"
        figures[f"{name}-{file}"] = functools.partial(_predictions, model, chosen, labels=labels, title=title)
    console.print(error_table(run, rows))
    _save(run.directory / "evaluation", name, {"run": str(run.directory), "step": checkpoint}, rows)
    grids = [samples.target_domain for samples in sets.values()]
    means = {title: [row[key] for row in rows] for key, title in (("rel_l2", "relative L2"), ("rel_h1", "relative H1"))}
    trained_on = run.config.get("resolution")
    figures[f"{name}-errors"] = functools.partial(training.plot_errors, grids, means, trained_on=trained_on)
    figures["learning-curves"] = functools.partial(training.plot_learning_curves, run.metrics)
    for file, draw in figures.items():
        path = run.directory / "figures" / f"{file}.png"
        try:
            training.save_figure(draw(), path)
        except Exception as error:  # of whatever kind: the table is what was asked for
            reason = next(iter(str(error).splitlines()), "")
            console.print(f"warning: {path} was not drawn ({type(error).__name__}: {reason})")
    console.print(f"table: {run.directory / 'evaluation' / name}.csv and .json; pictures: {run.directory / 'figures'}/")
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
    print_anywhere()
    try:
        _check_not_empty(arguments)
        command([argument for argument in arguments if argument != "--traceback"])
    except _INPUT_ERRORS as error:
        if "--traceback" in arguments:
            raise
        notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("(")]  # others are JAX's own
        sys.stderr.write(" ".join([f"error: {error or type(error).__name__}", *notes]) + "\n")
        return 2
    return 0


def _check_not_empty(arguments: Sequence[str]) -> None:
    """Refuses "" among the arguments: as a path it would mean the current directory."""
    for before, argument in zip(["the command", *arguments], arguments, strict=False):
        option, is_option, value = argument.partition("=")
        if not argument or (option.startswith("--") and is_option and not value):
            raise ValueError(f"{option or before} got an empty value; give one, or leave the option out.")


def check_options(options: Any) -> None:
    """Refuses numbers that no comparison can use, before anything is fetched or made."""
    for name, value in vars(options).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple) and not value:
            raise ValueError(f"{option} must have at least one value, got none.")
        if name == "seeds" and min(value) < 0:
            raise ValueError(f"{option} must not be negative, got {min(value)}.")
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise ValueError(f"{option} must be positive and finite, got {value}.")


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
    """Makes a run directory that no other run has."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return new_directory(folder / f"{task}-{re.sub('[^a-z0-9.]+', '-', label.lower())}-{seed}-{stamp}")


def new_directory(wanted: Path) -> Path:
    """Makes a directory that was not there: the wanted one, or with a number behind its name."""
    names = itertools.chain([wanted.name], (f"{wanted.name}-{number}" for number in itertools.count(2)))
    while True:
        directory = wanted.with_name(next(names))
        with contextlib.suppress(FileExistsError):
            directory.mkdir(parents=True)
            return directory


def parameters(model: nnx.Module) -> int:
    """Trainable numbers of a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def file_names(labels: Iterable[str]) -> list[str]:
    """A short name for the files of each label, all of them different."""
    names, times = [], collections.Counter()
    for label in labels:
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in label.replace("²", ""))[:100]
        times[name] += 1
        names.append(name if times[name] == 1 else f"{name}-{times[name]}")
    return names


def _predictions(model: nnx.Module, samples: Samples, *, labels: Sequence[str], title: str) -> "Figure":
    return training.plot_predictions(
        samples, training.predict(model, samples, batch_size=1), labels=labels, title=title
    )


def error_table(run: training.Run, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The errors on every set."""
    title = f"{run.config['operator']} · {run.directory.name} · errors in physical units"
    table = Table("set", "grid", "samples", "relative L2", "relative H1", "worst L2", "sample", title=title)
    for row in rows:
        h1 = "–" if row["rel_h1"] is None else f"{row['rel_h1']:.3e}"
        errors = f"{row['rel_l2']:.3e}", h1, f"{row['worst_rel_l2']:.3e}"
        table.add_row(row["set"], row["grid"], str(row["samples"]), *errors, str(row["worst_sample"]))
    return table


def _save(folder: Path, name: str, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    record = {**about, "units": "physical", "sets": rows}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    # names of files need not be Unicode
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _absolute(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_absolute(path) for path in value]
    return None if value is None else Path(value).resolve()
