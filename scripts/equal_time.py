"""Models that are trained for the same time: the numbers of steps, the trainings and the table."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from experiment import new_run, parameters, train_once

from jaxop import training
from jaxop.data import Samples


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of the models of a comparison.

    Attributes:
        make: the untrained model of a seed.
        train: what it is trained on.
        tests: what it is judged by, the columns of the table.
    """

    make: Callable[[int], Any]
    train: Samples
    tests: Mapping[str, Samples]


def seconds_per_step(model: Any, train: Any, settings: training.TrainingConfig) -> float:
    """The fastest of some compiled training steps: what the machine does when nothing else runs on it."""
    optimizer = training.make_optimizer(settings)
    graphdef, state = training.init_state(model, optimizer, settings)
    step = training.make_step(graphdef, optimizer, settings)
    batch = jax.device_put(train[np.arange(settings.batch_size)])
    seconds = []
    for _ in range(25):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def compare(
    contenders: Mapping[str, Contender],
    settings: training.TrainingConfig,
    *,
    seconds: float,
    seeds: Sequence[int],
    run_dir: Path,
    task: str,
) -> dict[str, np.ndarray]:
    """Trains every contender with every seed, the learning rate a cosine over the steps it has time for.

    Compilation, evaluation and saving are not counted. Prints a Markdown table: mean and standard deviation over the
    seeds of the mean relative L2 error on every test set.

    Returns:
        The errors by contender, (seeds, tests).
    """
    # all of them before the first training, twice: the speed of a machine drifts
    rounds = [[seconds_per_step(c.make(0), c.train, settings) for c in contenders.values()] for _ in range(2)]
    columns = next(iter(contenders.values())).tests
    print(f"\n| {task}, {len(seeds)} seeds | parameters | steps | seconds | " + " | ".join(columns) + " |")
    print("|---" * (4 + len(columns)) + "|", flush=True)
    errors: dict[str, np.ndarray] = {}
    for (label, contender), per_step in zip(contenders.items(), np.min(rounds, axis=0), strict=True):
        rows, spent, count, steps = [], [], 0, max(1, int(seconds / per_step))
        for seed in seeds:
            model = contender.make(seed)
            count = parameters(model)
            here = dataclasses.replace(
                settings, steps=steps, warmup_steps=steps // 20, eval_every=steps, checkpoint_every=steps, seed=seed
            )
            directory = new_run(run_dir, task, label, seed)
            result = train_once(model, contender.train, here, directory)
            spent.append(result.seconds)
            rows.append([training.evaluate(result.model, t, batch_size=4).l2.mean() for t in contender.tests.values()])
        errors[label] = np.asarray(rows)
        cells = [f"{count:,}", str(steps), f"{np.mean(spent):.0f}", *map(mean_and_deviation, errors[label].T)]
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    return errors


def mean_and_deviation(values: np.ndarray) -> str:
    """Mean ± standard deviation; one value alone."""
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if values.size > 1 else "")
