"""A training step of the models of studies/kernels.py, with the Fourier kernel and with softmax, in turns."""

import numpy as np
from studies.kernels import TASKS, build, kernel_choices
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.timing import median_seconds_in_turns
from benchmarks.training_step import TrainingStep
from jaxop import data, training
from jaxop.experiments.terminal import tune_allocator

ABOUT = {
    "transformers": About(
        "Training steps with the Fourier integral kernel and with softmax",
        "A training step of the small transformers of the study of kernels is measured with both kernels, in turns. "
        "The ratio divides the time with the Fourier integral kernel by the time with softmax. The sinc products take "
        "several dozen operations per pair and channel, a dot product takes two.",
    ),
}

IMAGES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def main(repeats: int = 9) -> None:
    """Prints one row per model.

    Args:
        repeats: measured steps.
    """
    tune_allocator()
    print_header("training step", "softmax", "Fourier integral", "ratio")
    rng = np.random.default_rng(0)
    for name in ("text", *IMAGES):
        task = TASKS[name]
        count = task.batch_size
        if name in IMAGES:
            train = data.Examples(rng.normal(size=(count, *IMAGES[name])), rng.integers(0, 10, count))
        else:
            train = data.text_windows(rng.integers(0, 256, count * task.context + 1), task.context)
        settings = training.TrainingConfig(batch_size=count, loss="cross_entropy")
        kernels, batch = kernel_choices(task.radius), train[np.arange(count)]
        steps = {
            label: TrainingStep(build(task, kernels[label], train, 0), batch, settings)
            for label in ("softmax", "fourier")
        }
        softmax, fourier = median_seconds_in_turns(steps, repeats).values()
        print_row(name, f"{softmax:.3f} s", f"{fourier:.3f} s", f"{fourier / softmax:.2f}")
