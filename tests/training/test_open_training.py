"""The promises of a run hold for any optimiser, loss, module and data source."""

import dataclasses
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import data, testing, training
from tests.training.cases import Interrupt, assert_same_bits, interruption, rows
from tests.training.open_cases import CASES, CONFIG

pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Uninterrupted runs, one per case, made when first asked for."""
    made = {}

    def whole(case):
        if case not in made:
            directory = tmp_path_factory.mktemp("whole")
            made[case] = directory, case.fit(directory)
        return made[case]

    return whole


def interrupt(case, directory, step, **changes):
    with interruption(step) as loggers:
        case.fit(directory, loggers=loggers, **changes)


def saved_at(case, directory, step):
    """The whole state of a step, by an abstract target."""
    optimizer = case.optimizer() or training.make_optimizer(CONFIG)
    like = jax.eval_shape(lambda: training.init_state(case.model(), optimizer, CONFIG)[1])
    return training.load_run(directory).checkpoints.restore(like, step=step)


@pytest.mark.sample(1)
def test_promise_1_a_resumed_run_ends_with_the_same_bits(case, wholes, tmp_path):
    directory, whole = wholes(case)
    interrupt(case, tmp_path, 5)
    resumed = case.fit(tmp_path, resume=True)
    assert_same_bits(resumed.state, whole.state)
    assert_same_bits(saved_at(case, tmp_path, CONFIG.steps), whole.state)
    assert rows(tmp_path) == rows(directory)


@pytest.mark.sample(1)
def test_promise_2_sigterm_saves_and_the_rest_follows(case, wholes, tmp_path):
    directory, whole = wholes(case)
    stopped = case.fit(tmp_path, loggers=[Interrupt(2, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    assert stopped.stopped == "terminated"
    assert_same_bits(case.fit(tmp_path, resume=True).state, whole.state)
    assert rows(tmp_path) == rows(directory)


@pytest.mark.sample(1)
def test_promise_3_a_damaged_newest_checkpoint_is_set_aside(case, wholes, tmp_path):
    interrupt(case, tmp_path, 5)
    newest = max(
        (training.load_run(tmp_path).checkpoints.path(4) / "arrays").rglob("*"), key=lambda p: p.stat().st_size
    )
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step 4 is damaged"):
        resumed = case.fit(tmp_path, resume=True)
    assert_same_bits(resumed.state, wholes(case)[1].state)


@pytest.mark.sample(1)
def test_promise_5_nan_names_step_samples_and_array_and_is_not_saved(case, tmp_path):
    step = 2
    drawn = data.batch_indices(len(case.train()), 4, seed=CONFIG.seed, step=step).tolist()
    config = dataclasses.replace(CONFIG, checkpoint_every=1)
    seen = [i for t in range(step) for i in data.batch_indices(len(case.train()), 4, seed=CONFIG.seed, step=t)]
    spoiled = next(i for i in drawn if i not in seen)
    with pytest.raises(FloatingPointError) as error:
        case.fit(tmp_path, train=case.train(spoiled=spoiled), valid={}, config=config)
    for part in (f"step {step + 1}:", str(drawn), f"first array that is not finite: {case.bad}."):
        assert part in str(error.value)
    assert training.load_run(tmp_path).step("last") == step
    params = saved_at(case, tmp_path, step).params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.sample(2)
def test_promise_6_what_differs_is_named(case, tmp_path):
    interrupt(case, tmp_path, 3)
    before = rows(tmp_path)
    for field, changes in case.others.items():
        with pytest.raises(ValueError, match=rf"other settings or samples.*\n(.*\n)*  {field}: .* -> "):
            case.fit(tmp_path, resume=True, **changes)
    assert rows(tmp_path) == before


def test_promise_7_resuming_nothing_is_an_error(case, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume from"):
        case.fit(tmp_path, resume=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.sample(1)
def test_promise_8_the_same_seed_gives_the_same_run(case, wholes, tmp_path):
    directory, whole = wholes(case)
    assert_same_bits(case.fit(tmp_path).state, whole.state)
    assert rows(tmp_path) == rows(directory)


@pytest.mark.sample(2)
def test_a_finished_run_gives_the_model_back(case, wholes):
    directory, whole = wholes(case)
    run = training.load_run(directory)
    for model in (case.model(), nnx.eval_shape(case.model)):
        assert_same_bits(nnx.state(run.restore(model, checkpoint="last")), nnx.state(whole.model))
    metric = "same/l2" if case.loss is None else "same/loss"
    errors = {row["step"]: row[metric] for row in run.metrics if metric in row}
    assert errors.keys() == {4, 6}
    assert run.step("best") == min(errors, key=errors.get)
    assert whole.errors[metric] == errors[6]
    with pytest.raises(ValueError, match=r"does not name an operator.*call run\.restore\(model\)"):
        run.model()


@pytest.mark.sample(2)
def test_a_step_is_pure_and_compiled_once(case):
    optimizer = case.optimizer() or training.make_optimizer(CONFIG)
    graphdef, state = training.init_state(case.model(), optimizer, CONFIG)
    step = training.make_step(graphdef, optimizer, CONFIG, loss=case.loss)
    first, second = (jax.device_put(case.train()[np.arange(start, start + 4)]) for start in (0, 4))
    again = jax.tree.map(jnp.copy, state)
    state, _ = step(state, first)
    before = state
    with testing.count_compilations() as compilations:
        state, metrics = step(state, second)
    assert compilations() == 0
    chex.assert_trees_all_equal_shapes_and_dtypes(state, before)
    for batch in (first, second):
        again, repeated = step(again, batch)
    chex.assert_trees_all_equal(metrics, repeated)
    assert_same_bits(again, state)
