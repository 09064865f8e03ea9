"""A training step of the language model of studies/momentum_text.py with every block, in turns."""

import json

import numpy as np
from studies.momentum_text import TASKS, build
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import scratch_bytes
from benchmarks.timing import allocators, measured_by, median_seconds_in_turns
from benchmarks.training_step import TrainingStep
from jaxop import data, training

ABOUT = {
    "momentum": About(
        "Training steps of a language model with momentum blocks",
        "A training step of a language model (4 layers, 4 heads, 64 channels, context 128) is measured with every "
        "momentum block, in turns, under the default settings of glibc's allocator and under tuned ones. The ratio "
        "divides by the time of the model without velocity. The blocks H1 and R2 average four times as many channels "
        "as the others.",
    ),
}


def main(repeats: int = 15) -> None:
    """Prints a row per block and allocator.

    Args:
        repeats: measured steps.
    """
    print_header("block", "allocator", "step", "ratio to no velocity", "scratch")
    for allocator, environment in allocators().items():
        rows = measured_by("run.py", "momentum-steps", "--repeats", str(repeats), environment=environment)
        for block, row in rows.items():
            cells = f"{1e3 * row['seconds']:.0f} ms", f"{row['seconds'] / rows['none']['seconds']:.2f}"
            print_row(block, allocator, *cells, f"{row['scratch'] / 2**20:.0f} MB")


def steps(repeats: int = 15) -> None:
    """Prints one line of JSON: median seconds and scratch of a step with each block.

    Args:
        repeats: measured steps.
    """
    task = TASKS["softmax"]
    tokens = np.random.default_rng(0).integers(0, 256, task.batch_size * task.context + 1)
    batch = data.text_windows(tokens, task.context)[np.arange(task.batch_size)]
    settings = training.TrainingConfig(batch_size=task.batch_size, loss="cross_entropy")
    runs = {block: TrainingStep(build(task, block, 0), batch, settings) for block in task.blocks}
    medians = median_seconds_in_turns(runs, repeats)
    rows = {b: {"seconds": medians[b], "scratch": scratch_bytes(one.program)} for b, one in runs.items()}
    print(json.dumps(rows))
