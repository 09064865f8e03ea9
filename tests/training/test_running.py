"""The clock of a run that pauses, and a signal before the first step."""

import signal
import subprocess
import sys
import time

import pytest

from jaxop.training import loop
from jaxop.training._running import Clock, saying_if_terminated
from tests.training.cases import run

pytestmark = pytest.mark.optax

LINE = "stopped by SIGTERM while the step was compiled"
PROGRAM = f"""
import numpy
from jaxop.training._running import saying_if_terminated
matrix = numpy.ones((400, 400))
with saying_if_terminated({LINE!r}):
    print("ready", flush=True)
    while True:
        numpy.linalg.svd(matrix)
"""


@pytest.mark.thorough
def test_a_signal_to_stop_during_a_compilation_is_said():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=60) == ("", f"{LINE}\n")
    assert process.returncode == 128 + signal.SIGTERM


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with saying_if_terminated(LINE):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == wakeup
    signal.set_wakeup_fd(wakeup)


def test_a_pause_does_not_count():
    clock = Clock(5.0)
    with clock.paused() as seconds:
        time.sleep(0.2)
    assert 5.0 <= seconds <= clock.seconds < seconds + 0.15


@pytest.mark.thorough
def test_a_finished_run_that_is_resumed_has_the_seconds_of_its_training(tmp_path, monkeypatch):
    measure = loop.mean_errors

    def slowly(*arguments, **options):
        time.sleep(0.5)
        return measure(*arguments, **options)

    monkeypatch.setattr(loop, "mean_errors", slowly)
    result = run(tmp_path)
    again = run(tmp_path, resume=True)
    assert again.seconds == pytest.approx(result.seconds, abs=0.4)
