"""Optimisers, losses and data sources of one's own: what they get, what reaches the record, what is refused."""

import dataclasses
import functools
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxop import data, domains, operators, training
from jaxop.training.config import check_same_settings
from jaxop.training.identity import describe_source
from jaxop.training.optimizer import describe_state, evaluated_params
from tests.training.cases import rows, samples, tiny
from tests.training.open_cases import CONFIG, Case, Functions, Numbers, Profile, residual, weighted_l2

PLAIN = dataclasses.replace(CONFIG, accumulate=1, steps=4)


def quiet(model, train, valid, config, directory, **options):
    return training.fit(model, train, valid, config, run_dir=directory, progress=False, **options)


@pytest.mark.thorough
def test_metrics_of_a_loss_reach_loggers_and_rows(tmp_path):
    case, seen = Case(loss=weighted_l2), []

    class Listener:
        def start(self, run_dir, settings, step): ...

        def log(self, step, metrics):
            seen.append((step, dict(metrics)))

        def close(self): ...

    result = case.fit(tmp_path, loggers=[Listener()])
    steps = [row for row in training.read_metrics(tmp_path) if "loss" in row]
    assert len(steps) == CONFIG.steps
    for row in steps:
        assert row["l2"] == pytest.approx(row["loss"] / 2)
        assert (row["step"], {name: value for name, value in row.items() if name != "step"}) in seen
    assert set(result.errors) == {"same/loss", "same/l2"}
    errors = training.evaluate(result.model, samples()).l2
    assert result.errors["same/l2"] == pytest.approx(errors.mean(), rel=1e-5)


@pytest.mark.thorough
def test_a_named_loss_and_its_function_take_the_same_steps(tmp_path):
    for name, function in (("l2", training.relative_l2_loss), ("h1", training.relative_h1_loss)):
        config = dataclasses.replace(PLAIN, loss=name)
        named = quiet(tiny(), samples(), {}, config, tmp_path / name)
        given = quiet(tiny(), samples(), {}, PLAIN, tmp_path / f"{name}_function", loss=function)
        np.testing.assert_array_equal(*(result.state.params["layers"][0]["kernel"] for result in (named, given)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_metrics_are_means_over_micro_batches(accumulate):
    config = dataclasses.replace(PLAIN, accumulate=accumulate)
    graphdef, state = training.init_state(tiny(rate=0.0), optax.sgd(0.1), config)

    def loss(model, batch):
        errors = training.relative_l2_loss(model, batch)
        return errors, {"each": batch.index, "mean": jnp.mean(batch.index)}

    _, metrics = training.make_step(graphdef, optax.sgd(0.1), config, loss=loss)(state, samples()[[3, 4, 8, 1]])
    assert (metrics["each"], metrics["mean"]) == (4, 4)


@pytest.mark.thorough
def test_evaluations_use_the_average_of_a_schedule_free_optimiser():
    optimizer = optax.contrib.schedule_free_adamw(0.05)
    graphdef, state = training.init_state(tiny(), optimizer, PLAIN)
    step = training.make_step(graphdef, optimizer, PLAIN)
    for start in (0, 4, 8):
        state, _ = step(state, samples()[np.arange(start, start + 4)])
    expected = optax.contrib.schedule_free_eval_params(state.opt_state, state.params)
    for leaf, other, raw in zip(*map(jax.tree.leaves, (state.averaged, expected, state.params)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=1e-7)
        assert np.any(leaf != raw)


@pytest.mark.thorough
def test_eval_params_of_one_s_own_are_evaluated_saved_and_restored(tmp_path):
    def halved(opt_state, params):
        return jax.tree.map(lambda leaf: leaf / 2, params)

    result = quiet(tiny(), samples(), {}, PLAIN, tmp_path, optimizer=optax.adam(0.01), eval_params=halved)
    restored = training.load_run(tmp_path).restore(tiny())
    for model in (result.model, restored):
        kernel = model.layers[0].kernel[...]
        np.testing.assert_array_equal(kernel, result.state.params["layers"][0]["kernel"] / 2)
    raw = training.load_run(tmp_path).restore(tiny(), average=False)
    np.testing.assert_array_equal(raw.layers[0].kernel[...], result.state.params["layers"][0]["kernel"])


@pytest.mark.thorough
def test_multi_steps_move_every_other_time_and_by_the_mean_gradient():
    pair = [samples()[[0, 1]], samples()[[2, 3]]]
    model = tiny(rate=0.0)
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2)
    graphdef, state = training.init_state(model, optimizer, PLAIN)
    step = training.make_step(graphdef, optimizer, PLAIN)
    start = jax.tree.map(np.array, state.params)
    state, _ = step(state, pair[0])
    chex.assert_trees_all_equal(state.params, start)
    state, _ = step(state, pair[1])
    graphdef, whole = training.init_state(model, optax.sgd(0.1), PLAIN)
    whole, _ = training.make_step(graphdef, optax.sgd(0.1), PLAIN)(whole, samples()[[0, 1, 2, 3]])
    chex.assert_trees_all_close(state.params, whole.params, rtol=1e-5, atol=1e-7)


@pytest.mark.sample(1)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_line_search_gets_loss_and_gradient(accumulate):
    config = dataclasses.replace(PLAIN, accumulate=accumulate)
    optimizer = optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(max_backtracking_steps=20))
    graphdef, state = training.init_state(tiny(rate=0.0), optimizer, config)
    step, losses = training.make_step(graphdef, optimizer, config), []
    for _ in range(4):
        state, metrics = step(state, samples()[np.arange(8)])
        losses.append(float(metrics["loss"]))
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


@pytest.mark.thorough
def test_a_residual_is_minimised(tmp_path):
    config = dataclasses.replace(CONFIG, steps=60, eval_every=60, checkpoint_every=60)
    result = quiet(
        Profile(), Numbers(), {"same": Numbers()}, config, tmp_path, optimizer=optax.adam(0.02), loss=residual
    )
    losses = [row["loss"] for row in rows(tmp_path) if "mean" in row and "loss" in row]
    assert np.mean(losses[-10:]) < np.mean(losses[:5]) / 2
    assert set(result.errors) == {"same/loss", "same/largest", "same/mean"}


@pytest.mark.thorough
def test_derivatives_through_an_operator_are_those_of_differences(x64):
    """Second derivatives of the output in space, through ``at``."""
    config = operators.TransformerNeuralOperatorConfig(
        1, 1, width=4, heads=1, layers=1, decoder_layers=1, feedforward=4
    )
    with jax.numpy_dtype_promotion("standard"):
        operator = operators.build(dataclasses.replace(config, param_dtype="float64"), rngs=nnx.Rngs(0))
        grid = domains.interval(7)

        def u(points):
            return operator(jnp.sin(grid.points)[None], grid, at=domains.PointCloud(points, grid.weights))

        def derivative(function):
            return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

        exact = jax.jit(derivative(derivative(u)))(grid.points)
        h = 1e-4
        difference = (u(grid.points + h) - 2 * u(grid.points) + u(grid.points - h)) / h**2
    np.testing.assert_allclose(exact, difference, atol=1e-6 * np.abs(exact).max() + 1e-6)


def test_a_source_reads_what_a_run_needs(tmp_path):
    source = Numbers(1_000_000)
    options = {"optimizer": optax.adam(0.02), "loss": residual}
    quiet(Profile(), source, {}, PLAIN, tmp_path / "identity", **options)
    assert source.read == (1 + PLAIN.steps) * PLAIN.batch_size
    assert describe_source(source) == {"length": 1_000_000, "identity": {"numbers": "sine", "version": 1}}
    source = Functions()
    described = describe_source(source)
    assert described["length"] == 22
    assert described["items"]["inputs"].keys() == {"shape", "dtype", "crc32"}
    source.inputs[11] += 1  # the middle one
    assert describe_source(source) != described


def test_an_array_is_a_source(tmp_path):
    def squares(model, batch):
        return jnp.mean((model(batch) - 1) ** 2, axis=1)

    rows = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    result = quiet(model, rows, {"same": rows}, PLAIN, tmp_path, loss=squares)
    assert result.stopped == "completed"
    with pytest.raises(ValueError, match=r"train\.items\.array\.crc32: "):
        quiet(model, rows + 1, {"same": rows + 1}, PLAIN, tmp_path, loss=squares, resume=True)


@pytest.mark.thorough
def test_labelled_examples_come_from_any_source(tmp_path):
    class Parity:
        def __len__(self):
            return 16

        def __getitem__(self, indices):
            inputs = jnp.asarray(np.asarray(indices)[:, None] % 2, jnp.float32)
            return data.ExampleBatch(inputs, jnp.asarray(indices % 2, jnp.int32), jnp.asarray(indices, jnp.int32))

    config = dataclasses.replace(PLAIN, loss="cross_entropy", steps=40, learning_rate=0.2)
    result = quiet(nnx.Linear(1, 2, rngs=nnx.Rngs(0)), Parity(), {"same": Parity()}, config, tmp_path)
    assert result.errors["same/accuracy"] == 1
    assert training.score(result.model, Parity()).accuracy.mean() == 1


def test_the_state_of_an_optimiser_is_described_by_its_structure():
    params = {"a": jnp.ones(2), "b": {"c": jnp.ones((2, 2))}}
    described = {describe_state(optimizer.init(params)) for optimizer in (optax.adam(1.0), optax.adam(2.0))}
    assert described == {"(ScaleByAdamState(count=int32[], mu=tree, nu=tree), EmptyState())"}
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    assert "ScaleByScheduleState" in describe_state(optax.adam(schedule).init(params))


def test_partly_schedule_free_optimisers_need_eval_params():
    parts = {"a": optax.contrib.schedule_free_sgd(0.1), "b": optax.sgd(0.1)}
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = optax.partition(parts, {"a": "a", "b": "b"}).init(params)
    with pytest.raises(ValueError, match="give eval_params"):
        evaluated_params(state, params)


class Grows(nnx.Module):
    """A module that makes a variable when it is called."""

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(()))

    def __call__(self, values, domain, *, at=None, initial=None):
        self.late = nnx.BatchStat(jnp.ones(()))
        return values * self.gain[...]


class Short(Functions):
    def __getitem__(self, indices):
        return super().__getitem__(indices[:-1])


class Words:
    def __len__(self):
        return 8

    def __getitem__(self, indices):
        return {"words": [str(index) for index in indices]}


class Nothing(Words):
    def __getitem__(self, indices):
        return {}


class Unhashable:
    __hash__ = None

    def __call__(self, model, batch):
        return training.relative_l2_loss(model, batch)


class Objects(Words):
    def __getitem__(self, indices):
        return {"x": np.array([object() for _ in indices])}


class ShortNumbers(Numbers):
    def __getitem__(self, indices):
        return super().__getitem__(indices[:-1])


def two_numbers(model, batch):
    return jnp.ones((batch.inputs.shape[0], 2))


def one_number(model, batch):
    return jnp.mean(training.relative_l2_loss(model, batch))[None]


def metric(name, value):
    return lambda model, batch: (training.relative_l2_loss(model, batch), {name: jnp.asarray(value)})


def keyed(model, batch):
    return jnp.mean(batch["x"], axis=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "adam"}, TypeError, "optimizer must be an optax.GradientTransformation.* got str"),
        ({"optimizer": optax.adam}, TypeError, "optimizer must be an optax.GradientTransformation.* got function"),
        ({"loss": "l2"}, TypeError, r"loss must be a function.* got 'l2'.*TrainingConfig\(loss='l2'\)"),
        ({"loss": Unhashable()}, TypeError, "loss must be hashable, got Unhashable"),
        ({"loss": lambda model, batch: 1.0}, TypeError, "loss must return an array.* got float"),
        ({"loss": two_numbers}, ValueError, r"shape \(b,\) = \(2,\), got float32 of shape \(2, 2\)"),
        (
            {"loss": lambda m, b: (training.relative_l2_loss(m, b), {"seconds": jnp.ones(())})},
            ValueError,
            "metric 'seconds' of the loss needs another name",
        ),
        (
            {"loss": lambda m, b: (training.relative_l2_loss(m, b), {"size": jnp.ones(3)})},
            ValueError,
            r"metric 'size' of the loss must be one number, or one per sample of shape \(2,\), got shape \(3,\)",
        ),
        ({"loss": one_number}, ValueError, r"loss must .* of shape \(b,\) = \(2,\), got float32 of shape \(1,\)"),
        ({"loss": metric("wave", 1j)}, TypeError, "metric 'wave' of the loss must be real, got complex64"),
        ({"loss": metric("", 1.0)}, ValueError, "metric '' of the loss needs a name"),
        ({"train": samples(), "loss": keyed}, TypeError, r"loss must take .* got Batch, .*'inputs'.*batch\.inputs"),
        ({"valid": {"a": samples()}, "loss": keyed}, TypeError, "loss must take .* got Batch"),
        ({"train": Objects(), "loss": two_numbers}, TypeError, r"train\[indices\]\['x'\] must be .* got object"),
        ({"valid": {"a": Objects()}}, TypeError, r"valid\['a'\]\[indices\]\['x'\] must be .* got object"),
        (
            {"valid": {"a": ShortNumbers()}, "train": Numbers(), "model": Profile(), "loss": residual},
            ValueError,
            r"valid\['a'\]\[indices\]\['a'\] must have 4 entries for 4 indices, got .*\(3, 1\)",
        ),
        (
            {"settings": {"loss": {"function": "mine"}}},
            ValueError,
            r"settings\['loss'\] must not have the form of .* got .*mine",
        ),
        ({"settings": {"optimizer": {"state": "s"}}}, ValueError, r"settings\['optimizer'\] must not have the form"),
        ({"eval_params": 3}, TypeError, "eval_params must be a function.* got int"),
        ({"eval_params": lambda s, p: p["norm"]}, ValueError, "eval_params must return a tree like params"),
        ({"train": [1, 2, 3, 4]}, TypeError, "train must be a data source.* got list"),
        ({"train": {"a": 1}}, TypeError, "train must be a data source.* got dict"),
        ({"train": np.ones((0, 2))}, ValueError, "train is empty"),
        ({"train": Short()}, ValueError, r"train\[indices\]\.inputs must have 3 entries for 3 indices, got .*2, 9, 1"),
        ({"train": Words(), "loss": two_numbers}, TypeError, r"train\[indices\]\['words'\].*got str"),
        (
            {"train": Nothing(), "loss": two_numbers},
            TypeError,
            r"train\[indices\] must return a pytree of arrays.*dict",
        ),
        (
            {"train": np.ones((8, 2), np.float32)},
            TypeError,
            "batch must be a data.Batch .* got ndarray|must be a data.Batch",
        ),
        ({"valid": {"same": [1]}}, TypeError, r"valid\['same'\] must be a data source.* got list"),
        ({"valid": {"same": np.ones((8, 2))}}, TypeError, r"evaluate takes data\.Samples, or a source of data\.Batch"),
        ({"model": Grows()}, TypeError, "a call of the model must keep the model's variables"),
        ({"settings": {"loss": 1}, "loss": weighted_l2}, ValueError, r"must not use the names \['loss'\]"),
        (
            {"settings": {"optimizer": 1}, "optimizer": optax.adam(1.0)},
            ValueError,
            r"not use the names \['optimizer'\]",
        ),
    ],
)
@pytest.mark.sample(11)
def test_what_cannot_be_trained_with_is_named_before_anything_is_written(options, error, message, tmp_path, unchecked):
    with pytest.raises(error, match=message):
        Case().fit(tmp_path, **({"valid": {}} | options))
    assert not list(tmp_path.iterdir())


def test_an_average_of_an_average_is_refused():
    config = dataclasses.replace(PLAIN, ema_decay=0.9)
    with pytest.raises(ValueError, match=r"ema_decay=0\.9 must be 0 for this optimiser"):
        training.init_state(tiny(), optax.contrib.schedule_free_adamw(0.1), config)


@pytest.mark.thorough
def test_settings_called_optimizer_and_loss_are_free_if_the_arguments_are_not_given(tmp_path):
    config = dataclasses.replace(PLAIN, steps=1)
    quiet(tiny(), samples(), {}, config, tmp_path, settings={"optimizer": "adamw", "loss": "usual"})
    run = training.load_run(tmp_path)
    assert (run.config["optimizer"], run.config["loss"]) == ("adamw", "usual")
    assert run.checkpoints.best_metric is None


@pytest.mark.thorough
def test_settings_called_loss_are_not_taken_for_the_record_of_a_loss(tmp_path):
    config = dataclasses.replace(PLAIN, steps=1)
    valid = {"v": samples()}
    quiet(tiny(), samples(), valid, config, tmp_path / "a", settings={"loss": {"weight": 1}, "optimizer": {"rate": 2}})
    quiet(tiny(), samples(), valid, config, tmp_path / "b", loss=weighted_l2)
    found = {name: training.load_run(tmp_path / name).checkpoints for name in "ab"}
    assert {name: (saved.best_metric, saved.best) for name, saved in found.items()} == {
        "a": ("v/l2", 1),
        "b": ("v/loss", 1),
    }
    path = tmp_path / "a" / "config.json"  # as an earlier version wrote it
    path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": {"function": "mine"}}))
    saved = training.load_run(tmp_path / "a").checkpoints
    assert (saved.best_metric, saved.best) == ("v/l2", 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", np.ones((4, 3), np.int8), r"\['x'\] must not change.* was float32\[4, 3\] .* is int8\[4, 3\] .*step 3"),
        ("x", np.ones((4, 2), np.float32), r"\['x'\] must not change.* was float32\[4, 3\] .* is float32\[4, 2\]"),
        ("z", np.ones(4, np.float32), r"\['z'\] must not change.* was absent .* is float32\[4\]"),
    ],
)
@pytest.mark.sample(1)
def test_a_source_whose_batches_change_is_named(name, value, message, tmp_path):
    class Changing(Words):
        calls = 0

        def __getitem__(self, indices):
            self.calls += 1  # the first call is that of the tracing, before step 1
            batch = {"x": np.ones((len(indices), 3), np.float32)}
            return batch | {name: value} if self.calls == 4 else batch

        def identity(self):
            return "changing"

    def squares(model, batch):
        return jnp.mean(model(batch["x"]) ** 2, axis=1)

    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"train\[indices\]" + message):
        quiet(model, Changing(), {}, PLAIN, tmp_path, loss=squares)


@pytest.mark.thorough
def test_bound_arguments_of_a_loss_are_compared(tmp_path):
    def scaled(model, batch, weight, table=None):
        return weight * training.relative_l2_loss(model, batch)

    def fit(loss, **options):
        return quiet(tiny(), samples(), {}, PLAIN, tmp_path, loss=loss, **options)

    fit(functools.partial(scaled, weight=2.0, table=jnp.cos))
    with pytest.raises(ValueError, match=r'loss\.arguments\.weight: "2\.0" -> "3\.0"'):
        fit(functools.partial(scaled, weight=3.0, table=jnp.cos), resume=True)
    assert fit(functools.partial(scaled, weight=np.float64(2), table=jnp.sin), resume=True).stopped == "completed"
    saved = {"loss": {"function": "scaled"}}  # as an earlier version recorded it
    check_same_settings(saved, {"loss": {"function": "scaled", "arguments": {"weight": "2.0"}}}, "config.json")
