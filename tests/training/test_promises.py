"""What training promises: the same run every time, however often it is interrupted."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from jaxop import data, training
from tests.training.cases import CONFIG, Interrupt, assert_same_bits, interrupted, rows, run, samples, state_at
from tests.training.run_tiny import LONG

ROOT = pathlib.Path(__file__).parents[2]


def launch(directory, seconds):
    command = [sys.executable, "-m", "tests.training.run_tiny", str(directory), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=60.0):
    """Polls until the condition holds; whether it did before the process ended."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < end, "the process neither ended nor got there"
        time.sleep(0.0005)
    return False


@pytest.mark.fit
def test_promise_1_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", config=LONG)
    directory, seed = tmp_path / "killed", int.from_bytes(os.urandom(4))
    print(f"moments drawn from seed {seed}")
    moments = random.Random(seed)
    metrics = directory / training.loggers.METRICS_FILE
    saves_hit = 0
    for signal_sent in ("in a save", signal.SIGTERM, "any time"):
        process = launch(directory, 0.02)
        before = metrics.stat().st_size if metrics.is_file() else 0
        running = wait_for(lambda before=before: metrics.is_file() and metrics.stat().st_size > before, process)
        assert running, process.communicate()
        if signal_sent == signal.SIGTERM:
            with pytest.raises(BlockingIOError, match=f"process {process.pid} on .* is writing to {directory}"):
                run(directory, config=LONG, resume=True)
        if signal_sent == "in a save":
            assert wait_for(lambda: list(directory.glob("checkpoints/*.tmp")), process), process.communicate()
            process.kill()
        elif signal_sent == "any time":
            time.sleep(moments.uniform(0, 0.4))
            process.kill()
        else:
            process.send_signal(signal_sent)
        output, errors = process.communicate(timeout=60)
        if signal_sent == signal.SIGTERM:
            assert process.returncode == 0, errors
            assert output.split()[0] == "terminated"
            assert training.load_run(directory).step("last") == int(output.split()[1])
        else:
            assert process.returncode == -signal.SIGKILL, (output, errors)
        saves_hit += bool(list(directory.glob("checkpoints/*.tmp")))
    assert saves_hit, "no kill fell into a save"
    resumed = run(directory, config=LONG, resume=True)
    assert (resumed.stopped, int(resumed.state.step)) == ("completed", LONG.steps)
    assert_same_bits(whole.state, resumed.state)
    assert_same_bits(whole.state, state_at(directory, LONG.steps))
    assert rows(tmp_path / "whole") == rows(directory)
    assert [row["step"] for row in rows(directory) if "loss" in row] == list(range(1, LONG.steps + 1))
    assert len(json.loads((directory / "versions.json").read_text())) == 4


@pytest.mark.sample(1)
@pytest.mark.parametrize("step", [1, 13, 24])
def test_promise_1_a_resumed_run_ends_with_the_same_bits_wherever_it_stopped(whole, tmp_path, step):
    interrupted(tmp_path, step)
    resumed = run(tmp_path, resume=True)
    assert_same_bits(whole[1].state, resumed.state)
    assert rows(tmp_path) == rows(whole[0])
    assert training.load_run(tmp_path).checkpoints.steps == training.load_run(whole[0]).checkpoints.steps


@pytest.mark.sample(1)
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "ctrl-c"])
def test_promise_2_on_one_process_a_signal_finishes_the_step_saves_and_returns(whole, tmp_path, sent):
    before = signal.getsignal(sent)
    stopped = run(tmp_path, loggers=[Interrupt(8, lambda: os.kill(os.getpid(), sent))])
    assert signal.getsignal(sent) is before
    assert stopped.stopped == "terminated"
    step = int(stopped.state.step)
    assert step in (8, 9, 10)
    assert_same_bits(state_at(tmp_path, step), stopped.state)
    assert_same_bits(run(tmp_path, resume=True).state, whole[1].state)
    assert rows(tmp_path) == rows(whole[0])


def test_a_second_interrupt_stops_at_once(tmp_path):
    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, loggers=[Interrupt(8, twice)])


@pytest.mark.thorough
def test_promise_8_the_same_seed_gives_the_same_run(whole, tmp_path):
    assert_same_bits(run(tmp_path / "again").state, whole[1].state)
    assert rows(tmp_path / "again") == rows(whole[0])
    other = run(tmp_path / "other", config=dataclasses.replace(CONFIG, seed=4))
    assert rows(tmp_path / "other") != rows(whole[0])
    assert int(other.state.step) == CONFIG.steps


def test_promise_8_data_order_depends_on_seed_epoch_and_step_only(tmp_path):
    """A run resumed at step 10 sees the batches that the whole run saw from there on."""
    seen = {}

    class Watched(data.Samples):
        def __getitem__(self, indices):
            seen.setdefault(current, []).append(list(map(int, indices)))
            return super().__getitem__(indices)

    train = samples()
    train = Watched(train.inputs, train.targets, train.domain)
    current = "whole"
    run(tmp_path / "whole", train=train)
    current = "stopped"
    interrupted(tmp_path / "parts", 12, train=train)
    current = "resumed"
    run(tmp_path / "parts", train=train, resume=True)
    for batches in seen.values():
        del batches[0]  # read for its shapes alone
    assert seen["whole"] == [data.batch_indices(22, 4, seed=CONFIG.seed, step=t).tolist() for t in range(CONFIG.steps)]
    assert seen["resumed"] == seen["whole"][10:]


def test_a_completed_run_can_be_resumed_and_does_nothing(whole):
    before = rows(whole[0])
    result = run(whole[0], resume=True)
    assert result.stopped == "completed"
    assert_same_bits(result.state, whole[1].state)
    assert rows(whole[0]) == before


@pytest.mark.thorough
def test_a_time_limit_stops_saves_and_counts_over_resumptions(tmp_path):
    config = dataclasses.replace(CONFIG, steps=100_000, time_limit_s=0.3)
    rest = Interrupt(None, None)
    rest.log = lambda step, metrics: time.sleep(0.01)
    result = run(tmp_path, config=config, loggers=[rest])
    assert result.stopped == "time limit"
    assert 0.3 < result.seconds < 3
    assert training.load_run(tmp_path).step("last") == int(result.state.step)
    assert set(result.errors) == {"9/l2", "9/h1", "17/l2", "17/h1"}
    again = run(tmp_path, config=config, resume=True)
    assert again.stopped == "time limit"
    assert_same_bits(again.state, result.state)
