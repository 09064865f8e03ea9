"""Short trainings of one model with several seeds."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from flax import nnx

from jaxop import training
from jaxop.data import Examples
from jaxop.experiments.comparison import brief, new_run, train_once


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings that the trainings of a table share.

    Attributes:
        task: first part of the names of the run directories.
        steps: training steps.
        batch_size: examples per step.
        learning_rate: the peak.
        seeds: of parameters and batches; one training each.
        run_dir: folder of the run directories.
    """

    task: str
    steps: int
    batch_size: int
    learning_rate: float
    seeds: tuple[int, ...]
    run_dir: Path


def train_with_seeds(
    make: Callable[[int], nnx.Module], train: Examples, plan: Plan, label: str
) -> Iterator[training.Result]:
    """Trains the model of each seed by cross-entropy, in a run directory of its own.

    Args:
        make: the untrained model of a seed.
        train: the training set.
        plan: how long and how often.
        label: second part of the names of the run directories.
    """
    for seed in plan.seeds:
        settings = brief(plan.steps, plan.batch_size, plan.learning_rate, seed)
        yield train_once(make(seed), train, settings, new_run(plan.run_dir, plan.task, label, seed))
