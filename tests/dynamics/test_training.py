"""Steppers train like every model: runs resume bit for bit, and devices share their windows."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from jaxop import dynamics, training
from tests.dynamics.cases import stepper, trajectories
from tests.training.cases import assert_same_bits, interruption, rows

pytestmark = pytest.mark.optax

CONFIG = training.TrainingConfig(
    steps=9, batch_size=4, accumulate=2, learning_rate=1e-2, eval_every=4, checkpoint_every=3, ema_decay=0.9, seed=3
)
LOSS = dynamics.UnrolledLoss(cut=2, noise=0.05)


def windows(**options):
    return trajectories().windows(**({"steps": 3, "strides": (1, 2), "curriculum": ((0, 1), (4, 3))} | options))


def model():
    """With dropout, whose masks are part of what must come back."""
    return stepper("tno on a line", varying_dt=True, operator={"dropout": 0.1})


def fit(directory, *, loss=LOSS, train=None, **options):
    train = windows() if train is None else train
    config = options.pop("config", CONFIG)
    return training.fit(
        model(), train, {"same": windows()}, config, run_dir=directory, loss=loss, progress=False, **options
    )


def broken_run(directory, step, **options):
    with interruption(step) as loggers:
        fit(directory, loggers=loggers, **options)
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return fit(directory), directory


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return broken_run(tmp_path_factory.mktemp("runs") / "broken", 5)


def assert_is_whole(resumed, directory, whole):
    assert_same_bits(resumed.state, whole[0].state)
    assert resumed.errors == whole[0].errors
    assert rows(directory) == rows(whole[1])


@pytest.mark.thorough
def test_an_interrupted_run_ends_with_the_same_bits(whole, broken, tmp_path):
    directory = shutil.copytree(broken, tmp_path / "run")
    assert_is_whole(fit(directory, resume=True), directory, whole)
    leads = [row["lead_3"] for row in rows(directory) if "lead_3" in row]
    assert [lead is None for lead in leads] == [True] * 4 + [False] * 5  # the curriculum


@pytest.mark.thorough
@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 7, 8])
def test_it_may_be_interrupted_anywhere(step, whole, tmp_path):
    assert_is_whole(fit(broken_run(tmp_path, step), resume=True), tmp_path, whole)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"pushforward": True}, {"noise": 0.1, "norm": "h1"}, {"weights": (1.0, 0.5, 2.0)}])
@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"remat": "layers"}])
def test_other_losses_and_settings_resume_too(options, settings, tmp_path):
    config, loss = dataclasses.replace(CONFIG, **settings), dynamics.UnrolledLoss(**options)
    whole = fit(tmp_path / "whole", loss=loss, config=config)
    broken_run(tmp_path / "run", 5, loss=loss, config=config)
    assert_same_bits(fit(tmp_path / "run", loss=loss, config=config, resume=True).state, whole.state)


@pytest.mark.thorough
def test_other_windows_and_losses_are_refused(broken):
    for options, name in (
        ({"train": windows(strides=(1,))}, r"train\.identity\.strides"),
        ({"train": windows(curriculum=None)}, r"train\.identity\.curriculum"),
        ({"loss": dynamics.UnrolledLoss(cut=1, noise=0.05)}, r"loss\.arguments\.cut"),
    ):
        with pytest.raises(ValueError, match=name):
            fit(broken, resume=True, **options)


@pytest.mark.thorough
def test_eight_devices():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    file = Path(__file__).parent / "on_eight_devices.py"
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=file.parents[2],
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.fit
def test_a_stepper_learns_to_beat_persistence(tmp_path):
    train = trajectories(32).windows(strides=(1, 2))
    made = dynamics.make_stepper(
        dynamics.StepperConfig.for_data(train, "fno", width=16, layers=2), train.statistics(), rngs=nnx.Rngs(0)
    )
    config = training.TrainingConfig(steps=400, batch_size=16, learning_rate=3e-3, eval_every=400)
    loss = dynamics.UnrolledLoss(noise=0.01)
    result = training.fit(made, train, {}, config, run_dir=tmp_path, loss=loss, progress=False)
    test = trajectories(4, seed=1)
    u, times, _, domain = test.trajectory(0)
    for stride in (1, 2):
        steps = 10 // stride
        found = dynamics.rollout(result.model, u[0], steps, domain=domain, dt=0.5 * stride)
        truth = u[stride::stride][:steps]
        assert np.linalg.norm(found.states - truth) < 0.3 * np.linalg.norm(u[0] - truth)
    assert len(times) == 12
