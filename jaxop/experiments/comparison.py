"""Comparisons: many short runs, models that are trained for the same time, and the options of their scripts."""

import dataclasses
import functools
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from jaxop import training
from jaxop.data import DataSource
from jaxop.data.groups import groups_of, read_batch
from jaxop.experiments.run import new_directory
from jaxop.experiments.sets import AnySamples
from jaxop.experiments.settings import parameters


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model of a comparison.

    Attributes:
        make: returns the untrained model of a seed.
        train: training samples.
        tests: test sets by name, the columns of the table.
    """

    make: Callable[[int], nnx.Module]
    train: AnySamples
    tests: Mapping[str, AnySamples]


def seconds_per_step(
    model: nnx.Module, train: DataSource, settings: training.TrainingConfig, loss: training.Loss | None = None
) -> float:
    """Returns the seconds of the fastest of some compiled training steps: the speed of the machine when it is idle.

    If batches have several shapes, these are the means over the batches of an epoch.
    """
    optimizer = training.make_optimizer(settings)
    graphdef, state = training.init_state(model, optimizer, settings)
    step = training.make_step(graphdef, optimizer, settings, loss=loss)
    fastest, batches = [], []
    for group in groups_of(train, settings.batch_size, "train"):
        batch = jax.device_put(read_batch(group.source, np.arange(settings.batch_size), seed=0, step=0))
        seconds = []
        for _ in range(25):
            start = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
        fastest.append(min(seconds))
        batches.append(len(group.indices) // settings.batch_size)
    return float(np.average(fastest, weights=batches))


def affordable_steps(
    contenders: Mapping[str, tuple[Callable[[], nnx.Module], DataSource]],
    settings: training.TrainingConfig,
    seconds: float,
    losses: Mapping[str, training.Loss] | None = None,
) -> dict[str, int]:
    """Returns how many training steps each contender has time for, at least one.

    The speed of a machine drifts, so all of them are measured before the first training, and twice.

    Args:
        contenders: by name, a function that returns the untrained model, and its training samples.
        settings: of the training.
        seconds: of training, for each contender.
        losses: by name, of contenders that do not have the loss of the settings.
    """
    known = losses or {}
    rounds = [
        [seconds_per_step(make(), train, settings, known.get(name)) for name, (make, train) in contenders.items()]
        for _ in range(2)
    ]
    return {
        name: max(1, int(seconds / fastest)) for name, fastest in zip(contenders, np.min(rounds, axis=0), strict=True)
    }


def compare(
    contenders: Mapping[str, Contender],
    settings: training.TrainingConfig,
    *,
    seconds: float,
    seeds: Sequence[int],
    run_dir: Path,
    task: str,
) -> dict[str, np.ndarray]:
    """Trains every contender with every seed, for as many steps as the time allows.

    The learning rate is a cosine over these steps. Compilation, evaluation and saving are not counted. Prints a
    Markdown table: mean and standard deviation over the seeds of the mean relative L2 error on every test set.

    Returns:
        The errors by contender, (seeds, tests).
    """
    steps_of = affordable_steps(
        {label: (functools.partial(one.make, 0), one.train) for label, one in contenders.items()}, settings, seconds
    )
    columns = next(iter(contenders.values())).tests
    _print(f"\n| {task}, {len(seeds)} seeds | parameters | steps | seconds | " + " | ".join(columns) + " |")
    _print("|---" * (4 + len(columns)) + "|")
    errors: dict[str, np.ndarray] = {}
    for label, contender in contenders.items():
        rows, spent, count, steps = [], [], 0, steps_of[label]
        for seed in seeds:
            model = contender.make(seed)
            count = parameters(model)
            directory = new_run(run_dir, task, label, seed)
            result = train_once(model, contender.train, run_settings(settings, steps, seed), directory)
            spent.append(result.seconds)
            rows.append([training.evaluate(result.model, t, batch_size=4).l2.mean() for t in contender.tests.values()])
        errors[label] = np.asarray(rows)
        cells = [f"{count:,}", str(steps), f"{np.mean(spent):.0f}", *map(mean_and_deviation, errors[label].T)]
        _print(f"| {label} | " + " | ".join(cells) + " |")
    return errors


def mean_and_deviation(values: np.ndarray) -> str:
    """Returns "mean ± standard deviation", or a single value alone."""
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if values.size > 1 else "")


def train_once(
    model: nnx.Module,
    train: DataSource,
    settings: training.TrainingConfig,
    directory: Path,
    loss: training.Loss | None = None,
) -> training.Result:
    """Trains one of many runs of a comparison. SIGTERM ends the whole comparison."""
    result = training.fit(model, train, {}, settings, run_dir=directory, loss=loss, progress=False)
    if result.stopped == "terminated":
        raise SystemExit(f"terminated; {directory} holds what was trained")
    return result


def run_settings(settings: training.TrainingConfig, steps: int, seed: int) -> training.TrainingConfig:
    """Returns the settings of one of many runs: a twentieth of its steps warm up, and it is saved at its end."""
    return dataclasses.replace(
        settings, steps=steps, warmup_steps=steps // 20, eval_every=steps, checkpoint_every=steps, seed=seed
    )


def brief(steps: int, batch_size: int, learning_rate: float, seed: int) -> training.TrainingConfig:
    """Returns the settings of a short training by cross-entropy, saved at its end only."""
    settings = training.TrainingConfig(
        batch_size=batch_size, learning_rate=learning_rate, weight_decay=1e-2, loss="cross_entropy"
    )
    return run_settings(settings, steps, seed)


def new_run(folder: Path, task: str, label: str, seed: int) -> Path:
    """Makes a new run directory."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return new_directory(folder / f"{task}-{re.sub('[^a-z0-9.]+', '-', label.lower())}-{seed}-{stamp}")


def check_options(options: object) -> None:
    """Raises ``ValueError`` if a number among the options is invalid, before anything is fetched or made."""
    for name, value in vars(options).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple) and not value:
            raise ValueError(f"{option} must have at least one value, got none.")
        if name == "seeds" and min(value) < 0:
            raise ValueError(f"{option} must not be negative, got {min(value)}.")
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise ValueError(f"{option} must be positive and finite, got {value}.")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
