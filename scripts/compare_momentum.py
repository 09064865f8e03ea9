"""Tokens with a velocity on real text: momentum blocks against ordinary layers at equal steps and tokens.

    python scripts/compare_momentum.py softmax    # 4 layers, 4 heads, d = 64, context 128
    python scripts/compare_momentum.py linear     # linear attention, context 512
    python scripts/compare_momentum.py cde        # operators: controlled equation, TNO, at equal training time
    python scripts/compare_momentum.py darcy      # operators: Darcy flow, FANO, at equal training time

State of the Union addresses, byte by byte; validation loss in nats per byte, mean and 95 % confidence interval over the
seeds, and of the differences to the model without velocity, seed by seed. The trainings are short: these are
comparisons, not records. Data: see real_data.py.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.stats
import tyro
from flax import nnx
from real_data import CACHE, addresses, fetch

from jaxop import data, experiments, operators, training, transformers
from jaxop.experiments.comparison import Contender, brief, check_options, compare, new_run, options_of, train_once
from jaxop.experiments.settings import parameters
from jaxop.experiments.terminal import run_command
from jaxop.nn import BLOCKS, ExpDotProductConfig, IntegralAttentionConfig, KernelConfig, LinearConfig, MomentumConfig


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned and by which models.

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


FLOW = "flow"
"""The operator of `jaxop.operators.FlowNeuralOperator`, compared with the blocks where a TNO is."""

OPERATORS: dict[str, tuple[str, dict[str, int]]] = {
    "cde": ("cde_tno", {"width": 32, "heads": 4, "layers": 4, "feedforward": 64}),
    "darcy": ("darcy_fano", {"layers": 4}),
}
"""The ready-made experiment that an operator comes from, and the sizes that are smaller here."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How often, how long and where.

    Attributes:
        seeds: of parameters and batches; one training each.
        steps: training steps of each language model.
        minutes: training time of each operator; every block makes as many steps as it can.
        learning_rate: peak learning rate of all.
        blocks: which blocks, "none" among them, and "flow" for the exact flow on the task cde; None: those of the task.
        test_examples: validation windows to judge by, from the start of the set.
        cache: where the package is kept.
        run_dir: where the runs are kept.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 300
    minutes: float = 2.0
    learning_rate: float = 2e-3
    blocks: tuple[str, ...] | None = None
    test_examples: int = 1000
    cache: Path = CACHE
    run_dir: Path = Path("runs/compare_momentum")

    def __post_init__(self):
        check_options(self)
        for block in self.blocks or ():
            if block not in (*BLOCKS, FLOW):
                known = ", ".join(map(repr, (*BLOCKS, FLOW)))
                raise SystemExit(f"blocks: {block!r} is unknown; choose from {known}.")
        if self.blocks and "none" not in self.blocks:
            raise SystemExit("blocks: 'none' must be among them, for the differences.")


def build(task: Task, block: str, seed: int) -> Any:
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


def interval(values: Any) -> str:
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
    print(f"| {name} | parameters | nats per byte | difference to none | s / step |")
    print("|---|---|---|---|---|")
    losses: dict[str, list[float]] = {}
    for block in options.blocks or task.blocks:
        losses[block], seconds, count = [], [], 0
        for seed in options.seeds:
            model = build(task, block, seed)
            count = parameters(model)
            settings = brief(options.steps, task.batch_size, options.learning_rate, seed)
            directory = new_run(options.run_dir, name, block, seed)
            result = train_once(model, train, settings, directory)
            scores = training.score(result.model, test, batch_size=task.batch_size)
            losses[block].append(float(np.mean(scores.cross_entropy, dtype=np.float64)))
            seconds.append(result.seconds / options.steps)
        difference = "" if block == "none" else interval(np.subtract(losses[block], losses["none"]))
        cells = [f"{count:,}", interval(losses[block]), difference, f"{np.mean(seconds):.3f}"]
        print(f"| {block} | " + " | ".join(cells) + " |", flush=True)
    return losses


def load_experiment(name: str) -> Any:
    """A ready-made experiment."""
    return experiments.load_recipe(name).experiment


def run_operators(name: str, options: Comparison) -> None:
    """Trains an operator with every block and seed for equal times and prints the table."""
    experiment, sizes = OPERATORS[name]
    default = load_experiment(experiment)
    sets = default.data.load(default.cache)
    settings = dataclasses.replace(default.training, batch_size=4, learning_rate=options.learning_rate)

    is_tno = isinstance(default.model, operators.TransformerNeuralOperatorConfig)
    blocks = options.blocks or (*BLOCKS, FLOW)[: None if is_tno else -1]
    if FLOW in blocks and not is_tno:
        raise SystemExit(f"blocks: {FLOW!r} is compared with the blocks of a TNO, on the task cde; leave it out.")

    def operator(block: str, seed: int) -> Any:
        if block == FLOW:
            config: Any = operators.FlowNeuralOperatorConfig(
                default.model.in_channels,
                default.model.out_channels,
                dim=default.model.dim,
                width=sizes["width"],
                layers=sizes["layers"],
                feedforward=sizes["feedforward"],
            )
        else:
            config = dataclasses.replace(default.model, norm="pre", momentum=MomentumConfig(block=block), **sizes)
        return experiments.build(config, sets.train, seed=seed)

    contenders = {block: Contender(functools.partial(operator, block), sets.train, sets.test) for block in blocks}
    compare(contenders, settings, seconds=60 * options.minutes, seeds=options.seeds, run_dir=options.run_dir, task=name)


def main(
    name: tyro.conf.Positional[Literal["softmax", "linear", "cde", "darcy"]], options: Comparison = Comparison()
) -> None:
    """Compares momentum blocks on the task NAME: language models with softmax or linear attention, or operators."""
    if name in OPERATORS:
        run_operators(name, options)
        return
    task = TASKS[name]
    train, valid = addresses(fetch("sotu", options.cache))
    run(name, task, options, data.text_windows(train, task.context), data.text_windows(valid, task.context))


command_line = options_of(main, __doc__)


if __name__ == "__main__":
    sys.exit(run_command(command_line, sys.argv[1:]))
