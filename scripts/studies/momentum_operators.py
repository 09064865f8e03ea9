"""Operators whose nodes have a velocity: momentum blocks against ordinary layers at equal training time.

    python scripts/studies/run.py momentum-operators cde      # controlled equation, TNO; the exact flow beside it
    python scripts/studies/run.py momentum-operators darcy    # Darcy flow, FANO

Relative L2 on the test sets, mean ± standard deviation over the seeds. Every operator makes as many steps as it has
time for. The trainings are short: these are comparisons, not records.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from jaxop import experiments, operators
from jaxop.experiments import build, load_recipe
from jaxop.experiments.comparison import Contender, check_options, compare
from jaxop.experiments.experiment import AnyExperiment, default_cache
from jaxop.nn import BLOCKS, MomentumConfig
from studies.momentum_text import check_blocks
from studies.results import About

READING = (
    "All are trained for the same time, each for as many steps as it has time for. The last columns are mean relative "
    "L2 errors on the test sets, mean ± standard deviation over the seeds: lower is better. The trainings are short, "
    "so these are comparisons and no records."
)
ABOUT = {
    "momentum-operators-cde": About(
        "Momentum blocks in an operator for a controlled differential equation",
        "A small transformer neural operator learns the solution of a controlled ordinary differential equation. Its "
        f"layers are ordinary, or have a momentum block, or follow the exact accelerated flow. {READING}",
    ),
    "momentum-operators-darcy": About(
        "Momentum blocks in an operator for Darcy flow",
        "A Fourier attention neural operator with 4 layers learns the solution of Darcy flow on 64² nodes. Its layers "
        f"are ordinary or have a momentum block. {READING}",
    ),
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
    """Options of the comparison.

    Attributes:
        seeds: of parameters and batches; one training each.
        minutes: training time of each operator.
        learning_rate: peak learning rate of all.
        blocks: which blocks, "none" among them, and "flow" for the exact flow on the task cde; None takes all that
            the task can compare.
        cache: where generated data are kept.
        run_dir: where the runs are kept.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    minutes: float = 2.0
    learning_rate: float = 2e-3
    blocks: tuple[str, ...] | None = None
    cache: Path = dataclasses.field(default_factory=default_cache)
    run_dir: Path = Path("runs/momentum")

    def __post_init__(self):
        check_options(self)
        check_blocks(self.blocks, (*BLOCKS, FLOW))


def run(name: str, default: AnyExperiment, sizes: dict[str, int], options: Comparison) -> dict[str, np.ndarray]:
    """Trains an operator with every block and seed for equal times and prints the table.

    Args:
        name: of the task.
        default: the experiment that the operator and the data come from.
        sizes: sizes that replace those of the ready-made experiments.
        options: how often, how long and where.

    Returns:
        The errors by block, (seeds, tests).
    """
    model = default.model
    assert isinstance(model, operators.OperatorConfig)
    is_tno = isinstance(model, operators.TransformerNeuralOperatorConfig)
    blocks = options.blocks or ((*BLOCKS, FLOW) if is_tno else BLOCKS)
    if FLOW in blocks and not is_tno:
        raise ValueError(f"--blocks: {FLOW!r} is compared with the blocks of a TNO, on the task cde; leave it out.")
    sets = default.data.load(options.cache)
    assert isinstance(sets, experiments.Sets)
    settings = dataclasses.replace(default.training, batch_size=4, learning_rate=options.learning_rate)

    def operator(block: str, seed: int) -> operators.Standardized:
        if block == FLOW:
            config = operators.FlowNeuralOperatorConfig(
                model.in_channels,
                model.out_channels,
                dim=model.dim,
                width=sizes["width"],
                layers=sizes["layers"],
                feedforward=sizes["feedforward"],
            )
        else:
            config = dataclasses.replace(model, norm="pre", momentum=MomentumConfig(block=block), **sizes)
        return build(config, sets.train, seed=seed)

    contenders = {block: Contender(functools.partial(operator, block), sets.train, sets.test) for block in blocks}
    seconds = 60 * options.minutes
    return compare(contenders, settings, seconds=seconds, seeds=options.seeds, run_dir=options.run_dir, task=name)


def main(name: tyro.conf.Positional[Literal["cde", "darcy"]], options: Comparison = Comparison()) -> None:
    """Compares momentum blocks in operators at equal training time: a TNO ("cde") or a FANO ("darcy").

    Args:
        name: the task.
        options: how often, how long and where.
    """
    experiment, sizes = OPERATORS[name]
    run(name, load_recipe(experiment).experiment, sizes, options)
