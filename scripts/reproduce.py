"""Reproduces the accuracy table of the README: Darcy flow at equal training time, one set of weights on three grids.

    python scripts/reproduce.py --minutes 5                     # four operators, about 25 minutes on two cores
    python scripts/reproduce.py --operators schwarz tno         # two-level Schwarz attention, and the global one
    python scripts/reproduce.py --minutes 1 --operators fano fno

Every operator of the ready-made Darcy experiments is trained for the same time (the steps that its fastest step
allows; compilation, evaluation and saving not counted) on 1000 two-valued fields at 64² (TNO and its Schwarz form:
32²), in the relative L2 norm. Its learning rate follows a cosine over these steps. Prints a Markdown table.
"""

import dataclasses
import importlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from experiment import CACHE, build, parameters, tune_allocator

from jaxop import training

GRIDS = (32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Equal-time training of several operators.

    Attributes:
        minutes: training time of each operator.
        operators: which ones.
        batch_size: samples per step.
        learning_rate: peak learning rate of all.
        test_samples: fields of the test set.
        test_samples_tno: fields on which the TNO, quadratic in the nodes, is tested on the 128² grid.
        run_dir: where the runs are kept.
    """

    minutes: float = 5.0
    operators: tuple[str, ...] = ("fano", "vitno", "tno", "fno")
    batch_size: int = 4
    learning_rate: float = 2e-3
    test_samples: int = 100
    test_samples_tno: int = 8
    run_dir: Path = Path("runs/reproduce")


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


def compare(options: Comparison) -> None:
    """Trains and tests one operator after the other."""
    print("| operator | parameters | trained on | steps | " + " | ".join(f"{g}²" for g in GRIDS) + " |")
    print("|---" * (4 + len(GRIDS)) + "|")
    for name in options.operators:
        default = importlib.import_module(f"configs.darcy_{name}").CONFIG
        problem = dataclasses.replace(default.data, test_samples=options.test_samples, grids=GRIDS)
        sets = problem.load(CACHE)
        model = build(default.model, sets.train, seed=0)
        settings = training.TrainingConfig(
            batch_size=options.batch_size, learning_rate=options.learning_rate, loss="l2", weight_decay=1e-4
        )
        steps = int(60 * options.minutes / seconds_per_step(model, sets.train, settings))
        settings = dataclasses.replace(
            settings, steps=steps, warmup_steps=steps // 20, eval_every=steps, checkpoint_every=steps
        )
        run_dir = options.run_dir / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        result = training.fit(model, sets.train, sets.valid, settings, run_dir=run_dir, progress=False)
        errors = []
        for grid in GRIDS:
            samples = sets.test[f"{grid}²"]
            if name == "tno" and grid > 64:
                samples = samples.take(slice(options.test_samples_tno))
            errors.append(training.evaluate(result.model, samples, batch_size=4).l2.mean())
        cells = [name.upper(), f"{parameters(model):,}", f"{problem.resolution}²"]
        cells += [f"{steps} in {result.seconds:.0f} s", *(f"{error:.4f}" for error in errors)]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    tune_allocator()
    compare(tyro.cli(Comparison, description=__doc__))
