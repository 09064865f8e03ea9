"""What training promises: nothing damaged is used, and nothing that is not finite is saved."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import data, training
from jaxop.training.run import record_versions
from tests.training.cases import CONFIG, Interrupt, Tiny, assert_same_bits, interrupted, rows, run, samples, tiny


@pytest.mark.thorough
def test_promise_3_a_run_survives_its_newest_checkpoint(whole, tmp_path):
    interrupted(tmp_path, 18)
    newest = training.load_run(tmp_path).checkpoints.path(15)
    file = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step 15 is damaged.*step_00000015\.damaged"):
        resumed = run(tmp_path, resume=True)
    assert_same_bits(resumed.state, whole[1].state)
    assert rows(tmp_path) == rows(whole[0])


@pytest.mark.parametrize("content", ['[{"from_step": 0', "{}", "[" * 100_000])
def test_promise_3_versions_that_cannot_be_read_are_set_aside(tmp_path, content):
    (tmp_path / "versions.json").write_text(content)
    with pytest.warns(UserWarning, match=r"versions\.json is damaged; .* as .*versions\.json\.damaged"):
        record_versions(tmp_path, 5, resume=True)
    assert (tmp_path / "versions.json.damaged").read_text() == content
    assert len(json.loads((tmp_path / "versions.json").read_text())) == 1


def test_promise_3_what_cannot_be_read_back_stops_before_the_first_step(tmp_path, monkeypatch):
    def load(*_):
        raise ValueError("NOT_FOUND")

    monkeypatch.setattr(training.checkpoint.orbax, "load", load)
    with pytest.raises(OSError, match="step_00000000 is intact, but Orbax cannot read it"):
        run(tmp_path)
    assert rows(tmp_path) == []


@pytest.mark.thorough
def test_promise_3_a_directory_named_like_a_pattern_holds_a_run(whole, tmp_path):
    directory = tmp_path / "run[1]"
    interrupted(directory, 13)
    assert_same_bits(run(directory, resume=True).state, whole[1].state)


def state_like():
    _, state = training.init_state(tiny(), training.make_optimizer(CONFIG), CONFIG)
    return {"params": state.params, "ema": state.ema}


def test_promise_5_nan_in_a_batch_names_step_samples_and_array_and_is_not_saved(tmp_path):
    train = samples()
    step = next(t for t in range(12, 24) if 5 in data.batch_indices(22, 4, seed=CONFIG.seed, step=t)) + 1
    drawn = data.batch_indices(22, 4, seed=CONFIG.seed, step=step - 1).tolist()
    if step > 17:
        pytest.fail("the sample must come early enough to leave steps")
    spoil = Interrupt(10, lambda: train.inputs.__setitem__((5, 3, 0), np.nan))
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path, train=train, loggers=[spoil])
    message = str(error.value)
    assert f"step {step}:" in message
    assert str(drawn) in message
    assert "batch.inputs" in message
    assert training.load_run(tmp_path).step("last") < step
    assert_finite(tmp_path)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == list(range(1, step))


def assert_finite(directory):
    checkpoints = training.load_run(directory).checkpoints
    for step in checkpoints.steps:
        restored = checkpoints.restore(state_like(), step=step, parts=("params", "ema"))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored))


class Root(Tiny):
    """A network whose loss is finite while the gradient of one parameter is not."""

    def __init__(self, **options):
        super().__init__(**options)
        self.root = nnx.Param(jnp.zeros(3))

    def __call__(self, values, domain, **options):
        return super().__call__(values, domain, **options) + jnp.sqrt(jnp.sum(self.root[...] ** 2))


@pytest.mark.thorough
def test_promise_5_a_gradient_that_is_not_finite_names_its_parameter(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 1: .*the gradient of root"):
        run(tmp_path, model=Root(rngs=nnx.Rngs(0)))
    assert training.load_run(tmp_path).step("last") == 0


@pytest.mark.thorough
def test_promise_5_divergence_is_not_saved(tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e38, warmup_steps=0, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match="not saved"):
        run(tmp_path, config=config)
    assert_finite(tmp_path)
