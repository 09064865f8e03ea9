"""Trains the tests' small operator in a process of its own: ``python -m tests.training.run_tiny DIR SECONDS``.

Resumes if the directory holds a checkpoint, and rests for SECONDS after every step, so that a signal has
something to interrupt.
"""

import dataclasses
import sys
import time

from jaxop import training
from tests.training.cases import CONFIG, run

LONG = dataclasses.replace(CONFIG, steps=40)


class Rest:
    def __init__(self, seconds: float):
        self.seconds = seconds

    def start(self, run_dir, settings, step): ...

    def log(self, step, metrics):
        time.sleep(self.seconds)

    def close(self): ...


if __name__ == "__main__":
    directory, seconds = sys.argv[1:]
    begun = bool(training.Checkpoints(directory + "/checkpoints").steps)
    result = run(directory, config=LONG, resume=begun, loggers=[Rest(float(seconds))])
    print(result.stopped, int(result.state.step))
