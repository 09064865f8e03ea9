"""Short trainings of one model with several seeds."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flax import nnx

from jaxop import training
from jaxop.data import Examples
from jaxop.experiments.comparison import brief, new_run, train_once


def train_with_seeds(
    make: Callable[[int], nnx.Module],
    train: Examples,
    *,
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
    learning_rate: float,
    run_dir: Path,
    task: str,
    label: str,
) -> Iterator[training.Result]:
    """Trains the model of each seed by cross-entropy, in a run directory of its own.

    Args:
        make: the untrained model of a seed.
        train: the training set.
        seeds: of parameters and batches.
        steps: training steps.
        batch_size: examples per step.
        learning_rate: the peak.
        run_dir: folder of the run directories.
        task: first part of their names.
        label: second part of their names.
    """
    for seed in seeds:
        settings = brief(steps, batch_size, learning_rate, seed)
        yield train_once(make(seed), train, settings, new_run(run_dir, task, label, seed))
