"""Devices share batches of samples that have nodes of their own: what one device would compute, bucket by bucket."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxop import data, training
from tests.data.ragged_cases import pairs
from tests.scale.cases import SGD, build, configs
from tests.training.cases import CONFIG, assert_same_bits, interruption
from tests.training.ragged_cases import Mean

pytestmark = pytest.mark.optax

RUN = dataclasses.replace(
    CONFIG, steps=6, batch_size=4, accumulate=1, ema_decay=0.0, weight_decay=0.0, eval_every=6, checkpoint_every=3
)


def samples():
    return data.RaggedSamples(pairs())


def fit(directory, count, *, train=None, **options):
    devices = None if count == 1 else Mesh(np.asarray(jax.devices()[:count]), ("data",))
    train = samples() if train is None else train
    valid = {"ten": samples()}
    return training.fit(
        Mean(rate=0.0), train, valid, RUN, run_dir=directory, mesh=devices, progress=False, optimizer=SGD, **options
    )


def assert_agree(first, second):
    for leaf, other in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-5)


def test_a_run_in_buckets_moves_between_numbers_of_devices(tmp_path):
    alone = fit(tmp_path / "alone", 1)
    with interruption(5) as loggers:
        fit(tmp_path / "moving", 4, loggers=loggers)
    moved = fit(tmp_path / "moving", 2, resume=True)
    assert_agree(moved.state, alone.state)
    assert moved.errors == pytest.approx(alone.errors, rel=1e-5)
    losses = [
        [row["loss"] for row in training.read_metrics(tmp_path / name) if "loss" in row] for name in ("alone", "moving")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.thorough
def test_an_interrupted_run_on_four_devices_ends_with_the_same_bits(tmp_path):
    whole = fit(tmp_path / "whole", 4)
    with interruption(5) as loggers:
        fit(tmp_path / "run", 4, loggers=loggers)
    assert_same_bits(fit(tmp_path / "run", 4, resume=True).state, whole.state)


def test_errors_and_predictions_are_those_of_one_device():
    model, test = Mean(), samples()
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    errors = [training.evaluate(model, test, batch_size=4, mesh=m).l2 for m in (None, mesh)]
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-6)
    outputs = [training.predict(model, test, batch_size=4, mesh=m) for m in (None, mesh)]
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-7)


@pytest.mark.thorough
def test_devices_share_the_nodes_of_every_sample(tmp_path):
    model = build(dataclasses.replace(configs()["tno"], in_channels=2))
    alone, shared = (
        training.fit(model, samples(), {}, RUN, run_dir=tmp_path / name, mesh=mesh, optimizer=SGD, progress=False)
        for name, mesh in (("alone", None), ("shared", training.MeshConfig(data=2, domain=2).make(4)))
    )
    assert_agree(shared.state, alone.state)


@pytest.mark.thorough
def test_devices_draw_the_random_nodes_of_one_device(tmp_path):
    thinned = data.RandomNodes(samples(), 8)
    alone, shared = (fit(tmp_path / str(n), n, train=thinned) for n in (1, 4))
    assert_agree(shared.state, alone.state)
