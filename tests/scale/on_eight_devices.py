"""Eight devices share the samples of a batch: what one device would compute, with one message."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from jaxop import data, training
from jaxop.experiments import cli
from jaxop.training.mesh import distribute, replicate
from tests.scale.cases import SGD, assert_agree, build, configs, fields, square, trained
from tests.training.cases import CONFIG, Tiny, assert_same_bits, interruption, samples, stacked_samples, tiny

pytestmark = pytest.mark.optax

OPERATORS = configs()
FIELDS = fields(square(8))


def mesh(count):
    return training.MeshConfig(data=count).make(count)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_trains_as_on_one_device_with_one_message(name):
    alone, shared = (trained(build(OPERATORS[name]), FIELDS, devices) for devices in (None, mesh(8)))
    assert_agree(shared, alone)
    assert alone.messages == {}
    messages = shared.messages
    (size,) = messages.pop("all-reduce")
    assert messages == {}
    count = sum(leaf.size for leaf in jax.tree.leaves(shared.state.params))
    assert 4 * count <= size <= 4 * (count + 2)  # the gradient and the loss


@pytest.mark.sample(1)
@pytest.mark.parametrize(("count", "accumulate"), [(2, 1), (4, 2)])
def test_other_numbers_of_devices_and_micro_batches(count, accumulate):
    alone = trained(build(OPERATORS["fno"]), FIELDS, None)
    explicit = jax.make_mesh((count, 1), ("data", "other"))  # of the type "explicit" by default
    for devices in (mesh(count), explicit):
        shared = trained(build(OPERATORS["fno"]), FIELDS, devices, accumulate=accumulate)
        assert_agree(shared, alone)
        assert {kind: len(sizes) for kind, sizes in shared.messages.items()} == {"all-reduce": 1}


def fit(directory, count, *, model=None, config=CONFIG, train=None, **options):
    devices = None if count == 1 else Mesh(np.asarray(jax.devices()[:count]), ("data",))
    model = tiny(rate=0.0) if model is None else model
    train = samples(22) if train is None else train
    valid = {"five": samples(5, seed=1)}
    return training.fit(
        model, train, valid, config, run_dir=directory, mesh=devices, progress=False, optimizer=SGD, **options
    )


RUN = dataclasses.replace(CONFIG, accumulate=1, ema_decay=0.0, weight_decay=0.0)


@pytest.mark.thorough
def test_a_run_moves_between_numbers_of_devices(tmp_path):
    """4 devices, then 2, then 1, then 4: restored bit for bit, on the same batches, with the result of one device."""
    alone = fit(tmp_path / "alone", 1, config=RUN)
    directory = tmp_path / "moving"
    for count, until in ((4, 7), (2, 12), (1, 17)):
        with interruption(until) as loggers:
            fit(directory, count, config=RUN, loggers=loggers, resume=count != 4)
        run = training.load_run(directory)
        step = run.checkpoints.latest
        _, like = training.init_state(tiny(rate=0.0), SGD, RUN)
        restored = [run.checkpoints.restore(replicate(like, mesh(n) if n > 1 else None), step=step) for n in (1, 2, 4)]
        for other in restored[1:]:
            assert_same_bits(other, restored[0])
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored[2])} == {4}
    result = fit(directory, 4, config=RUN, resume=True)
    committed = jax.device_put(samples(2)[np.arange(2)], jax.devices()[0])
    result.model(committed.inputs, committed.domain)  # the model is where a user's arrays are
    for moved, single in zip(jax.tree.leaves(result.state.params), jax.tree.leaves(alone.state.params), strict=True):
        np.testing.assert_allclose(moved, single, rtol=1e-5, atol=1e-5)
    rows = [
        {row["step"]: row["loss"] for row in training.read_metrics(d) if "loss" in row}
        for d in (directory, tmp_path / "alone")
    ]
    assert rows[0].keys() == rows[1].keys() == set(range(1, RUN.steps + 1))
    np.testing.assert_allclose(list(rows[0].values()), list(rows[1].values()), rtol=1e-5)
    for name, value in result.errors.items():
        assert value == pytest.approx(alone.errors[name], rel=1e-5)
    entries = json.loads((directory / "versions.json").read_text())
    assert [entry["mesh"] for entry in entries] == [{"data": 4}, {"data": 2}, {}, {"data": 4}]


@pytest.mark.thorough
def test_an_interrupted_run_on_four_devices_ends_with_the_same_bits(tmp_path):
    whole = fit(tmp_path / "whole", 4, config=RUN, model=tiny())
    with interruption(9) as loggers:
        fit(tmp_path / "run", 4, config=RUN, model=tiny(), loggers=loggers)
    assert_same_bits(fit(tmp_path / "run", 4, config=RUN, model=tiny(), resume=True).state, whole.state)


@pytest.mark.thorough
def test_values_that_are_not_finite_are_named_with_their_samples(tmp_path):
    train = samples(22)
    indices = data.batch_indices(22, 4, seed=RUN.seed, step=0)
    inputs = train.inputs.copy()
    inputs[indices[2], 3] = np.nan
    with pytest.raises(FloatingPointError, match=r"step 1: .*first array that is not finite: batch\.inputs") as error:
        fit(tmp_path, 4, config=RUN, train=_Spoiled(train, inputs))
    assert str(indices.tolist()) in str(error.value)


class _Spoiled:
    """Samples with inputs that `Samples` itself would refuse."""

    def __init__(self, clean, inputs):
        self.clean, self.inputs = clean, inputs

    def __len__(self):
        return len(self.clean)

    def __getitem__(self, indices):
        return dataclasses.replace(self.clean[indices], inputs=jnp.asarray(self.inputs[indices]))


@pytest.mark.thorough
def test_every_device_drops_other_channels_and_averages_are_shared():
    class Model(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(1, momentum=0.0, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))

    def loss(model, batch):
        model.norm(batch["x"])
        kept = model.dropout(jnp.ones((batch["x"].shape[0], 32)))
        pattern = jnp.sum(kept * 2.0 ** jnp.arange(32) / 2.0**32, axis=1)  # tells the masks apart
        return model.scale[...] * pattern, {"square": pattern**2}

    settings = training.TrainingConfig(steps=1, batch_size=8)
    x = np.arange(8.0, dtype=np.float32)[:, None]
    moments = []
    for devices in (None, mesh(8)):
        graphdef, state = training.init_state(Model(), optax.sgd(0.0), settings)
        step = training.make_step(graphdef, optax.sgd(0.0), settings, loss=loss, mesh=devices)
        state, metrics = step(replicate(state, devices), distribute({"x": x}, devices))
        moments.append((float(metrics["loss"]), float(metrics["square"])))
        np.testing.assert_allclose(state.other["norm"]["mean"], [3.5], rtol=1e-6)
    first, second = moments[1]
    assert second - first**2 > 1e-3  # equal masks would have no variance


@pytest.mark.sample(1)
@pytest.mark.parametrize("stacked", [False, True], ids=["shared-domain", "domain-per-sample"])
def test_evaluation_is_that_of_one_device(stacked):
    test, model = (stacked_samples if stacked else samples)(11), tiny()
    errors = [training.evaluate(model, test, batch_size=8, mesh=m) for m in (None, mesh(4))]
    for norm in ("l2", "h1"):
        np.testing.assert_allclose(getattr(errors[1], norm), getattr(errors[0], norm), rtol=1e-6)
    outputs = [training.predict(model, test, batch_size=8, mesh=m) for m in (None, mesh(8))]
    assert outputs[1].shape == (11, 9, 1)
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-6, atol=1e-7)


@pytest.mark.thorough
def test_scores_are_those_of_one_device():
    class Classifier(nnx.Linear):
        pass

    model = Classifier(3, 4, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    examples = data.Examples(rng.normal(size=(13, 3)).astype(np.float32), rng.integers(0, 4, 13))
    alone, shared = (training.score(model, examples, batch_size=8, mesh=m) for m in (None, mesh(8)))
    np.testing.assert_allclose(shared.cross_entropy, alone.cross_entropy, rtol=1e-6)
    np.testing.assert_array_equal(shared.accuracy, alone.accuracy)


@pytest.mark.thorough
def test_a_loss_of_the_user_is_validated_as_on_one_device(tmp_path):
    def loss(model, batch):
        errors = jnp.mean((model(batch.inputs, batch.domain) - batch.targets) ** 2, axis=(1, 2))
        return errors, {"worst": errors, "size": jnp.mean(jnp.abs(batch.targets))}

    results = [
        fit(tmp_path / str(n), n, config=dataclasses.replace(RUN, steps=2, warmup_steps=1), loss=loss) for n in (1, 4)
    ]
    assert results[1].errors.keys() == {"five/loss", "five/worst", "five/size"}
    for name, value in results[1].errors.items():
        assert value == pytest.approx(results[0].errors[name], rel=1e-5)


@pytest.mark.thorough
def test_the_command_line_takes_all_devices_that_divide_the_batch(tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    u = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
    np.savez("a.npz", x=u, y=2 * u)
    small = ["model:tno", "--model.width", "4", "--model.heads", "2", "--model.layers", "1", "--model.feedforward", "4"]
    short = ["--training.steps", "2", "--training.warmup-steps", "1", "--training.batch-size", "4"]
    cli.main(["train", "custom", "--data.train", "a.npz", "--run-dir", "run", *short, *small])
    assert "4 of 8 (cpu), 1 samples of each batch on a device" in " ".join(capsys.readouterr().out.split())
    (entry,) = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert entry["mesh"] == {"data": 4}
    cli.main(["resume", "run", "--training.steps", "2", "--mesh.data", "2"])
    cli.main(["evaluate", "run", "--mesh.data", "2"])
    tables = [(tmp_path / "run" / "evaluation" / f"{name}.csv").read_text() for name in ("test", "evaluation")]
    assert len(tables[0].splitlines()) == len(tables[1].splitlines()) == 2


def test_a_mesh_that_does_not_fit_is_refused(tmp_path, unchecked):
    devices = np.asarray(jax.devices())
    model = Tiny(rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh .*, got int"):
        training.evaluate(model, samples(4), mesh=8)
    with pytest.raises(ValueError, match=r"mesh must have an axis named 'data' .*, got {'x': 8}"):
        training.evaluate(model, samples(4), mesh=Mesh(devices, ("x",)))
    with pytest.raises(ValueError, match=r"only axes of one device, got {'data': 4, 'other': 2}"):
        training.evaluate(model, samples(4), mesh=Mesh(devices.reshape(4, 2), ("data", "other")))
    with pytest.raises(ValueError, match=r"batch_size=12 must be divisible by the 8 devices"):
        training.evaluate(model, samples(12), batch_size=12, mesh=Mesh(devices, ("data",)))
    with pytest.raises(ValueError, match=r"batch_size=4 in 2 micro-batches must be divisible by the 4 devices"):
        fit(tmp_path, 4)
    with pytest.raises(ValueError, match=r"mesh\.data must be at most the number of devices, 8 \(cpu\), got 16"):
        training.MeshConfig(data=16).make(16)
    with pytest.raises(ValueError, match=r"batch_size=6 must be divisible by the 4 devices"):
        training.MeshConfig(data=4).make(6)
    with pytest.raises(ValueError, match="data must be at least 1, got 0"):
        training.MeshConfig(data=0)
    assert dict(training.MeshConfig().make(6).shape) == {"data": 6}
    assert not list(tmp_path.iterdir())
