"""Tokens with a velocity on real text: momentum blocks against ordinary layers at equal steps and tokens.

    python scripts/studies/run.py momentum-text softmax    # 4 layers, 4 heads, d = 64, context 128
    python scripts/studies/run.py momentum-text linear     # linear attention, context 512

State of the Union addresses, byte by byte; validation loss in nats per byte, mean and 95 % confidence interval over the
seeds, and of the differences to the model without velocity, seed by seed. The trainings are short: these are
comparisons, not records. Data: see real_data.py.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.stats
import tyro
from flax import nnx
from numpy.typing import ArrayLike

from jaxop import data, training, transformers
from jaxop._validation import check_name
from jaxop.experiments.comparison import check_options
from jaxop.experiments.settings import parameters
from jaxop.nn import BLOCKS, ExpDotProductConfig, IntegralAttentionConfig, KernelConfig, LinearConfig, MomentumConfig
from studies.real_data import CACHE, addresses, fetch
from studies.results import About
from studies.table import print_header, print_row
from studies.trainings import Plan, train_with_seeds

MODEL = "A language model with 4 layers, 4 heads and 64 channels reads the State of the Union addresses byte by byte"
READING = (
    "It is trained with every momentum block, at equal steps and tokens. The loss on held-out addresses is in nats per "
    "byte, mean ± half the 95 % confidence interval over the seeds: lower is better. The difference to the model "
    "without velocity is taken seed by seed. If its interval contains 0, the block is neither better nor worse beyond "
    "the noise. The trainings are short, so these are comparisons and no records."
)
ABOUT = {
    "momentum-text-softmax": About(
        "Momentum blocks in a language model with softmax attention", f"{MODEL}, 128 at a time. {READING}"
    ),
    "momentum-text-linear": About(
        "Momentum blocks in a language model with linear attention",
        f"{MODEL}, 512 at a time, with linear attention. {READING}",
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Task of the comparison: the data and the models.

    Attributes:
        kernel: of the attention.
        context: tokens of a text window.
        blocks: which momentum blocks to compare, the first without.
        batch_size: windows per step.
        layers: layers of the model.
    """

    kernel: KernelConfig
    context: int
    blocks: tuple[str, ...]
    batch_size: int
    layers: int = 4


TASKS = {
    "softmax": Task(ExpDotProductConfig(), 128, ("none", "Y", "H0", "H1", "R2"), 16),
    "linear": Task(LinearConfig(), 512, ("none", "Y", "H0", "H1", "R2"), 4),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Options of the comparison.

    Attributes:
        seeds: of parameters and batches; one training each.
        steps: training steps of each language model.
        learning_rate: peak learning rate of all.
        blocks: which blocks, "none" among them; None takes those of the task.
        test_examples: validation windows to judge by, from the start of the set.
        cache: where the package is kept.
        run_dir: where the runs are kept.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 300
    learning_rate: float = 2e-3
    blocks: tuple[str, ...] | None = None
    test_examples: int = 1000
    cache: Path = CACHE
    run_dir: Path = Path("runs/momentum")

    def __post_init__(self):
        check_options(self)
        check_blocks(self.blocks, BLOCKS)


def check_blocks(blocks: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raises ``ValueError`` for unknown blocks, and without the block that the others are compared with."""
    for block in blocks or ():
        check_name(block, "blocks", known)
    if blocks and "none" not in blocks:
        raise ValueError(f"--blocks must include 'none', to which differences are taken, got {' '.join(blocks)}.")


def build(task: Task, block: str, seed: int) -> transformers.SequenceTransformer:
    """The language model of a task with one of the blocks; equal seeds share the parameters that all have."""
    config = transformers.SequenceTransformerConfig(
        256,
        task.context,
        width=64,
        heads=4,
        layers=task.layers,
        feedforward=256,
        attention=IntegralAttentionConfig(kernel=task.kernel),
        momentum=MomentumConfig(block=block),
    )
    return transformers.SequenceTransformer(config, rngs=nnx.Rngs(seed))


def interval(values: ArrayLike) -> str:
    """Mean ± half the 95 % confidence interval of Student's t."""
    values = np.asarray(values)
    if values.size < 2:
        return f"{values.mean():.4f}"
    half = scipy.stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return f"{values.mean():.4f} ± {half:.4f}"


def run(
    name: str, task: Task, options: Comparison, train: data.Examples, test: data.Examples
) -> dict[str, list[float]]:
    """Trains every block with every seed; prints the table and returns the losses."""
    test = test.take(slice(options.test_examples))
    plan = Plan(name, options.steps, task.batch_size, options.learning_rate, options.seeds, options.run_dir)
    print_header(name, "parameters", "nats per byte", "difference to none", "s / step")
    losses: dict[str, list[float]] = {}
    for block in sorted(options.blocks or task.blocks, key=lambda block: block != "none"):  # "none" first
        losses[block], seconds, count = [], [], 0
        for result in train_with_seeds(functools.partial(build, task, block), train, plan, block):
            count = parameters(result.model)
            scores = training.score(result.model, test, batch_size=task.batch_size)
            losses[block].append(float(np.mean(scores.cross_entropy, dtype=np.float64)))
            seconds.append(result.seconds / options.steps)
        difference = "" if block == "none" else interval(np.subtract(losses[block], losses["none"]))
        print_row(block, f"{count:,}", interval(losses[block]), difference, f"{np.mean(seconds):.3f}")
    return losses


def main(name: tyro.conf.Positional[Literal["softmax", "linear"]], options: Comparison = Comparison()) -> None:
    """Compares momentum blocks in language models with softmax or linear attention, at equal steps and tokens.

    Args:
        name: the task.
        options: how often, how long and where.
    """
    task = TASKS[name]
    train, valid = addresses(fetch("sotu", options.cache))
    run(name, task, options, data.text_windows(train, task.context), data.text_windows(valid, task.context))
