"""Eight devices divide the parameters and the state of the optimiser: less memory each, and the results of one."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from jaxop import training
from jaxop.experiments import cli
from jaxop.training.mesh import check_mesh, distribute
from jaxop.training.shards import DIVIDED_FROM, spec_of
from tests.scale.cases import SGD, assert_agree, build, configs, fields, square, trained
from tests.training.cases import CONFIG, assert_same_bits, interruption, samples, tiny

pytestmark = pytest.mark.optax

OPERATORS = configs(width=128, feedforward=512, side=4)
FIELDS = fields(square(4))
RUN = dataclasses.replace(CONFIG, batch_size=8, accumulate=1, ema_decay=0.9, weight_decay=0.0)


class Wide(nnx.Module):
    """A pointwise network with one large array: 256 × 256 of its 66,817 parameters."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.lift = nnx.Linear(1, 256, rngs=rngs)
        self.hidden = nnx.Linear(256, 256, rngs=rngs)
        self.head = nnx.Linear(256, 1, rngs=rngs)

    def __call__(self, values, domain, *, at=None, initial=None):
        return self.head(jnp.tanh(self.hidden(jnp.tanh(self.lift(values)))))


def mesh(data_devices, model_devices):
    return check_mesh(training.MeshConfig(data_devices, model_devices).make(8))


def large(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.size >= DIVIDED_FROM]


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_trains_as_on_one_device_and_sends_only_parameters(name):
    """The messages are the divided arrays, whole; their gradients, in parts; and one sum for all that is small."""
    alone, shared = (trained(build(OPERATORS[name]), FIELDS, devices) for devices in (None, mesh(2, 4)))
    assert_agree(shared, alone)
    divided = large(shared.state.params)
    assert divided
    assert all("model" in leaf.sharding.spec for leaf in divided)
    messages = shared.messages
    whole = sorted(4 * leaf.size for leaf in divided)
    assert sorted(messages.pop("all-gather")) == whole
    assert sorted(messages.pop("reduce-scatter")) == [size // 4 for size in whole]
    small = 4 * sum(leaf.size for leaf in jax.tree.leaves(shared.state.params)) - sum(whole)
    (sums,) = messages.values()
    assert messages.keys() == {"all-reduce"}
    assert small + sum(whole) // 4 <= sum(sums) <= small + sum(whole) // 4 + 64  # gradients; loss, norm and checks
    assert len(sums) <= 5


@pytest.mark.sample(1)
@pytest.mark.parametrize(("sizes", "accumulate"), [((8, 1), 1), ((4, 2), 1), ((1, 8), 1), ((2, 2), 2)])
def test_every_mesh_agrees_and_memory_falls_with_the_shards(sizes, accumulate):
    alone = trained(Wide(), FIELDS, None)
    shared = trained(Wide(), FIELDS, mesh(*sizes), accumulate=accumulate)
    assert_agree(shared, alone)
    single, state = alone.state, shared.state
    whole = sum(leaf.nbytes for leaf in large((single.params, single.opt_state)))
    rest = sum(leaf.nbytes for leaf in jax.tree.leaves(single)) - whole
    batch = sum(leaf.nbytes for leaf in jax.tree.leaves(FIELDS[np.arange(8)]))
    analysis = shared.step.memory_analysis()
    assert whole / sizes[1] + rest <= analysis.argument_size_in_bytes <= whole / sizes[1] + rest + batch + 256
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in large((state.params, state.opt_state)))
    assert held == whole / sizes[1]


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adamw(1e-3, mu_dtype=jnp.bfloat16),
        lambda: optax.adafactor(1e-3),
        lambda: optax.lbfgs(memory_size=2),
        lambda: optax.MultiSteps(optax.contrib.schedule_free_sgd(0.1), 2),
    ],
    ids=["adamw", "adafactor", "lbfgs", "multi-steps"],
)
def test_the_state_of_any_optimiser_is_divided_like_the_parameters(make):
    settings = training.TrainingConfig(steps=1, batch_size=8)
    _, state = training.init_state(Wide(), make(), settings, mesh=mesh(2, 4))
    shapes = {leaf.shape for leaf in large(state.params)}
    for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)):
        assert leaf.sharding.spec == (spec_of(leaf.shape, mesh(2, 4)) if leaf.shape in shapes else PartitionSpec())
        assert len(leaf.sharding.device_set) == 8
    assert shapes == {(256, 256)}


def test_the_state_of_the_optimiser_is_made_from_divided_parameters():
    """So that no device ever holds all moments."""
    seen = []

    def init(params):
        seen.extend(leaf.sharding.spec for leaf in large(params))
        return optax.EmptyState()

    optimizer = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    training.init_state(Wide(), optimizer, training.TrainingConfig(steps=1, batch_size=8), mesh=mesh(1, 8))
    assert seen == [PartitionSpec("model")]


def fit(directory, sizes, *, model=None, **options):
    devices = None if sizes is None else mesh(*sizes)
    options = {"optimizer": SGD, "config": RUN} | options
    config = options.pop("config")
    valid = {"five": samples(5, seed=1)}
    model = model or Wide()
    return training.fit(model, samples(22), valid, config, run_dir=directory, mesh=devices, progress=False, **options)


@pytest.mark.thorough
def test_a_run_moves_between_meshes(tmp_path):
    """8 shards, then 2, then one device, then 4: restored bit for bit, on the same batches, with the same result."""
    alone = fit(tmp_path / "alone", None)
    directory = tmp_path / "moving"
    for sizes, until in (((1, 8), 7), ((4, 2), 12), (None, 17)):
        with interruption(until) as loggers:
            fit(directory, sizes, loggers=loggers, resume=sizes != (1, 8))
        run = training.load_run(directory)
        step = run.checkpoints.latest
        restored = []
        for other in (None, (1, 8), (4, 2), (2, 4)):
            devices = None if other is None else mesh(*other)
            _, like = training.init_state(Wide(), SGD, RUN, mesh=devices)
            restored.append(run.checkpoints.restore(like, step=step))
            where = zip(jax.tree.leaves(restored[-1]), jax.tree.leaves(like), strict=True)
            assert all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in where)
        for other in restored[1:]:
            assert_same_bits(other, restored[0])
    result = fit(directory, (2, 4), resume=True)
    pair = jax.device_get((result.state.params, alone.state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *pair)
    for name, value in result.errors.items():
        assert value == pytest.approx(alone.errors[name], rel=1e-4)
    entries = json.loads((directory / "versions.json").read_text())
    sizes = [{"data": 1, "model": 8}, {"data": 4, "model": 2}, {}, {"data": 2, "model": 4}]
    assert [entry["mesh"] for entry in entries] == sizes

    # the results of the divided model, of one read by other devices, and of one device are the same
    test, run = samples(11), training.load_run(directory)
    like = nnx.eval_shape(Wide)
    models = [(result.model, mesh(2, 4)), (run.restore(like, checkpoint="last", mesh=mesh(1, 2)), None)]
    assert all(model.hidden.kernel[...].sharding.shard_shape((256, 256)) != (256, 256) for model, _ in models)
    expected = training.predict(alone.model, test, batch_size=8)
    for model, devices in models:
        np.testing.assert_allclose(
            training.predict(model, test, batch_size=8, mesh=devices), expected, rtol=1e-4, atol=1e-4
        )
    one = run.restore(like, checkpoint="last")
    assert_same_bits(jax.device_get(nnx.state(one)), jax.device_get(nnx.state(models[1][0])))


@pytest.mark.thorough
def test_an_interrupted_run_on_divided_parameters_ends_with_the_same_bits(tmp_path):
    whole = fit(tmp_path / "whole", (2, 4), optimizer=None)
    with interruption(9) as loggers:
        fit(tmp_path / "run", (2, 4), loggers=loggers, optimizer=None)
    resumed = fit(tmp_path / "run", (2, 4), resume=True, optimizer=None)
    assert_same_bits(jax.device_get(resumed.state), jax.device_get(whole.state))
    kernels = [resumed.state.params, resumed.state.ema, resumed.state.opt_state]
    assert [len(large(part)) for part in kernels] == [1, 1, 2]
    assert all("model" in leaf.sharding.spec for leaf in large(kernels))


@pytest.mark.thorough
def test_a_shard_that_is_not_finite_is_found_and_not_saved(tmp_path):
    settings = training.TrainingConfig(steps=1, batch_size=8)
    graphdef, state = training.init_state(Wide(), SGD, settings, mesh=mesh(1, 8))
    spoiled = state.params | {
        "hidden": state.params["hidden"] | {"kernel": state.params["hidden"]["kernel"].at[-1, -1].set(jnp.nan)}
    }
    with pytest.raises(FloatingPointError, match=r"params\.hidden\.kernel holds NaN"):
        training.Checkpoints(tmp_path).save(1, dataclasses.replace(state, params=spoiled))
    step = training.make_step(graphdef, SGD, settings, mesh=mesh(1, 8))
    _, metrics = step(dataclasses.replace(state, params=spoiled), distribute(FIELDS[np.arange(8)], mesh(1, 8)))
    assert not metrics["finite"]


@pytest.mark.thorough
def test_the_command_line_takes_shards(tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    u = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
    np.savez("a.npz", x=u, y=2 * u)
    sizes = {"width": 128, "heads": 2, "layers": 1, "feedforward": 512}
    small = ["model:tno", *(word for name, size in sizes.items() for word in (f"--model.{name}", str(size)))]
    short = ["--training.steps", "2", "--training.warmup-steps", "1", "--training.batch-size", "4"]
    cli.main(["train", "custom", "--data.train", "a.npz", "--run-dir", "run", "--mesh.model", "2", *short, *small])
    line = " ".join(capsys.readouterr().out.split())
    assert "4 of 8 (cpu), 1 samples of each batch on a device; mesh data 2 × model 2: 66% of the state is div" in line
    (entry,) = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert entry["mesh"] == {"data": 2, "model": 2}
    cli.main(["resume", "run", "--training.steps", "2", "--mesh.data", "1", "--mesh.model", "4"])
    cli.main(["evaluate", "run", "--mesh.model", "8", "--name", "eight"])
    assert "was not drawn" not in capsys.readouterr().out
    files = [tmp_path / "run" / "evaluation" / f"{name}.json" for name in ("test", "eight")]
    four, eight = (json.loads(file.read_text())["sets"][0]["rel_l2"] for file in files)
    assert eight == pytest.approx(four, rel=1e-5)

    devices = jax.local_devices

    def without_cpu(backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return devices()

    monkeypatch.setattr(jax, "local_devices", without_cpu)
    assert cli.main(["resume", "run", "--mesh.model", "2"]) == 2
    assert "which needs JAX's CPU platform; set the environment variable" in " ".join(capsys.readouterr().err.split())


def test_the_largest_axis_is_divided():
    shape = AbstractMesh((2, 4), ("data", "model"))
    assert spec_of((128, 512), shape) == PartitionSpec(None, "model")
    assert spec_of((512, 513), shape) == PartitionSpec("model")  # 4 does not divide 513
    assert spec_of((257, 257), shape) == PartitionSpec()
    assert spec_of((255, 256), shape) == PartitionSpec()  # below 2^16 numbers
    assert spec_of((512, 512), AbstractMesh((8,), ("data",))) == spec_of((512, 512), None) == PartitionSpec()


def test_a_mesh_that_does_not_fit_is_refused(tmp_path, unchecked):
    config = training.TrainingConfig(steps=1, batch_size=8)
    with pytest.raises(ValueError, match=r"mesh\.data=4 times mesh\.model=4 .* 8 \(cpu\), got 16; take mesh\.data=2"):
        training.MeshConfig(4, 4).make(16)
    with pytest.raises(ValueError, match=r"mesh\.model must be at most the number of devices, 8 \(cpu\), got 16"):
        training.MeshConfig(model=16).make(16)
    with pytest.raises(ValueError, match=r"batch_size=6 must be divisible by the 4 devices of the mesh axes 'data'"):
        training.MeshConfig(2, 2).make(6)
    with pytest.raises(ValueError, match=r"batch_size=3 must be divisible by the 2 devices of the mesh axes"):
        training.MeshConfig(model=2).make(3)
    with pytest.raises(ValueError, match="model must be at least 1, got 0"):
        training.MeshConfig(model=0)
    assert dict(training.MeshConfig(model=2).make(12).shape) == {"data": 3, "model": 2}
    assert training.MeshConfig(model=1).one_copy() is None
    devices = np.asarray(jax.devices())
    with pytest.raises(ValueError, match=r"only axes of one device, got {'data': 4, 'other': 2}"):
        training.evaluate(Wide(), samples(4), mesh=Mesh(devices.reshape(4, 2), ("data", "other")))
    explicit = jax.make_mesh((4, 2), ("data", "model"))
    with (
        jax.set_mesh(explicit),
        pytest.raises(ValueError, match=r"outside of jax\.set_mesh, whose mesh {'data': 4, 'model': 2} has explicit"),
    ):
        training.evaluate(Wide(), samples(8), batch_size=8, mesh=explicit)
    with pytest.raises(ValueError, match=r"has 7 devices, which must divide an axis .*shape \(256, 256\): take 4"):
        training.init_state(Wide(), SGD, config, mesh=Mesh(devices[:7].reshape(1, 7), ("data", "model")))
    with pytest.warns(
        UserWarning, match=r"the 4 devices of the mesh axis 'model' do not share .* shape \(2, 8\)"
    ) as all_:
        fit(tmp_path, (2, 4), model=tiny(), config=dataclasses.replace(RUN, steps=2, warmup_steps=1))
    assert len([w for w in all_ if "mesh axis" in str(w.message)]) == 1
    with warnings.catch_warnings(action="error"):
        training.init_state(Wide(), SGD, config, mesh=mesh(2, 4))
