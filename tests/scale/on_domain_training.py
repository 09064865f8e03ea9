"""Devices share the samples of a batch and the nodes of its functions: what one device would compute."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxop import data, domains, nn, operators, training
from jaxop.data import Samples
from jaxop.experiments import cli, problems
from jaxop.training.mesh import distribute, replicate
from tests.scale.cases import SGD, assert_agree, build, configs, fields, square, trained

pytestmark = pytest.mark.optax

OPERATORS = configs()
TNO = OPERATORS["tno"]
DOMAIN = domains.box((11, 6))  # 66 nodes, which four devices do not divide


def mesh(samples, nodes):
    return training.MeshConfig(data=samples, domain=nodes).make(8)


@functools.cache
def alone():
    return trained(build(TNO), fields(DOMAIN), None)


@pytest.mark.sample(1)
@pytest.mark.parametrize("shape", [(4, 2), (2, 4)], ids=str)
def test_an_operator_trains_as_on_one_device(shape):
    shared = trained(build(TNO), fields(DOMAIN), mesh(*shape))
    assert_agree(shared, alone())
    messages = shared.messages
    assert messages.keys() == {"collective-permute", "all-reduce"}
    # keys, values, log weights and signs in both passes, and the derivatives of keys and values
    assert len(messages["collective-permute"]) == 10
    *numbers, gradient = sorted(messages["all-reduce"])
    count = sum(leaf.size for leaf in jax.tree.leaves(shared.state.params))
    assert 4 * count <= gradient <= 4 * (count + 2)
    # units and norms of predictions and targets, and the derivative of a norm: one number for each sample of a device
    assert len(numbers) == 4
    assert max(numbers) <= 4 * 2 * 8 // shape[0]


def test_a_plan_divides_the_nodes_as_training_does():
    devices, batch = mesh(4, 2), fields(DOMAIN, 8)[np.arange(8)]
    model = nnx.eval_shape(lambda: build(TNO))
    plan = training.plan_step(model, batch, training.TrainingConfig(batch_size=8), mesh=devices)
    placed = jax.tree.leaves(distribute(batch, devices))
    assert plan.batch == sum(leaf.addressable_shards[0].data.nbytes for leaf in placed)
    assert {message.kind for message in plan.messages} == {"collective-permute", "all-reduce"}


@pytest.mark.thorough
def test_domains_per_sample_other_output_nodes_and_initial_values():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(size=(16, 12)), axis=1).astype(np.float32)
    there = domains.stack([domains.from_samples(t) for t in times])
    at = domains.interval(9)
    u = rng.normal(size=(16, 12, 1)).astype(np.float32)
    v = np.cumsum(u, axis=1)[:, :9]
    train = Samples(u, v, there, at=at, initial=rng.normal(size=(16, 2)).astype(np.float32))
    config = dataclasses.replace(
        TNO,
        dim=1,
        norm="pre",
        decoder_layers=1,
        initial_channels=2,
        momentum=nn.MomentumConfig("Y"),
        attention=nn.IntegralAttentionConfig(nn.LinearConfig()),
    )
    shared, single = (trained(build(config), train, m, steps=3, accumulate=2) for m in (mesh(2, 4), None))
    assert_agree(shared, single)
    assert shared.messages.keys() == {"all-reduce"}  # linear attention sends moments


@pytest.mark.thorough
def test_a_run_is_that_of_one_device(tmp_path):
    sets = {"same": fields(DOMAIN, 5), "finer": Samples(*[np.ones((3, 77, 1), np.float32)] * 2, domains.box((11, 7)))}
    config = training.TrainingConfig(steps=2, batch_size=8, warmup_steps=1, eval_every=2)
    results = []
    for devices in (mesh(2, 4), None):
        model = build(TNO)
        directory = tmp_path / str(len(results))
        result = training.fit(
            model, fields(DOMAIN), sets, config, run_dir=directory, mesh=devices, progress=False, optimizer=SGD
        )
        results.append((result, training.predict(result.model, fields(DOMAIN, 5), batch_size=4)))
    (shared, outputs), (single, others) = results
    assert shared.errors.keys() == single.errors.keys()
    assert {name.rpartition("/")[2] for name in shared.errors} == {"l2", "h1"}
    for name, value in shared.errors.items():
        assert value == pytest.approx(single.errors[name], rel=1e-5)
    np.testing.assert_allclose(outputs, others, rtol=1e-4, atol=1e-5)
    ours = training.predict(single.model, fields(DOMAIN, 5), batch_size=4, mesh=mesh(2, 4))
    np.testing.assert_allclose(ours, others, rtol=1e-4, atol=1e-5)
    (entry,) = json.loads((tmp_path / "0" / "versions.json").read_text())
    assert entry["mesh"] == {"data": 2, "domain": 4}


class Dropping(nnx.Module):
    """A module of the user: it says that it can take the nodes of one device."""

    shares_nodes = True

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, values, domain, **_):
        return self.scale[...] * self.dropout(jnp.ones((*values.shape[:2], 32)))


@pytest.mark.thorough
def test_nodes_of_other_devices_are_dropped_by_other_masks():
    def loss(model, batch):
        kept = model(batch.inputs, batch.domain)[:, 0]
        pattern = jnp.sum(kept * 2.0 ** jnp.arange(32) / 2.0**32, axis=1)  # tells the masks apart
        return pattern, {"square": pattern**2}

    settings, devices = training.TrainingConfig(steps=1, batch_size=1), training.MeshConfig(data=1, domain=8).make(1)
    graphdef, state = training.init_state(Dropping(), optax.sgd(0.0), settings)
    step = training.make_step(graphdef, optax.sgd(0.0), settings, loss=loss, mesh=devices)
    _, metrics = step(replicate(state, devices), distribute(fields(DOMAIN)[[0]], devices))
    assert metrics["square"] - metrics["loss"] ** 2 > 1e-3  # equal masks would have no variance


@pytest.mark.thorough
def test_the_command_line_divides_the_nodes(tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    u = np.random.default_rng(0).normal(size=(10, 15)).astype(np.float32)
    np.savez("a.npz", x=u, y=2 * u)
    small = ["model:tno", "--model.width", "4", "--model.heads", "2", "--model.layers", "1", "--model.feedforward", "4"]
    short = ["--training.steps", "2", "--training.warmup-steps", "1", "--training.batch-size", "4"]
    cli.main(["train", "custom", "--data.train", "a.npz", "--run-dir", "run", "--mesh.domain", "4", *short, *small])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "8 of 8 (cpu), 2 samples of each batch on a device, and 1/4 of the nodes of each" in printed
    (entry,) = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert entry["mesh"] == {"data": 2, "domain": 4}
    cli.main(["evaluate", "run", "--mesh.domain", "2"])
    tables = [(tmp_path / "run" / "evaluation" / f"{name}.csv").read_text() for name in ("test", "evaluation")]
    assert len(tables[0].splitlines()) == len(tables[1].splitlines()) == 2


def test_an_operator_that_needs_all_nodes_is_refused_before_data_are_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(problems.DarcyData, "load", lambda *_: pytest.fail("data were made"))
    for name, count, text in (
        ("darcy_schwarz", "2", "TransformerNeuralOperator needs all nodes of a function on one device"),
        ("darcy_fano", "3", "patches = 2 along each axis must be divisible by the 3 devices"),
    ):
        assert cli.main(["train", name, "--run-dir", "run", "--mesh.domain", count]) == 2
        assert text in capsys.readouterr().err


def refused(model, *, train=None, **config):
    """Makes a step of a model on a mesh of two devices per function and traces it."""
    settings, devices = training.TrainingConfig(batch_size=4, **config), training.MeshConfig(data=1, domain=2).make(4)
    graphdef, state = training.init_state(model, SGD, settings)
    batch = (fields(DOMAIN, 4) if train is None else train)[np.arange(4)]
    training.make_step(graphdef, SGD, settings, mesh=devices).lower(replicate(state, devices), batch)


def test_what_needs_all_nodes_is_refused_by_name(unchecked):
    vitno = operators.ViTNeuralOperatorConfig(
        1, 1, width=4, layers=1, heads=2, modes=2, patches=1, reference=6, smoothing_modes=2
    )
    with pytest.raises(
        NotImplementedError, match=r"FlowNeuralOperator needs all nodes .*, or a TransformerNeuralOperator"
    ):
        refused(build(OPERATORS["flow"]))
    with pytest.raises(ValueError, match=r"patches = 1 .* must be divisible by the 2 devices .*valid .*devices: \[1\]"):
        refused(build(vitno), train=fields(square(6), 4))
    for what, choice in {
        "schwarz attention": {"schwarz": nn.SchwarzAttentionConfig()},
        "the momentum block R2": {"momentum": nn.MomentumConfig("R2"), "norm": "pre"},
        "the implementation 'dense'": {"attention": nn.IntegralAttentionConfig(implementation="dense")},
    }.items():
        with pytest.raises(NotImplementedError, match=rf"{what} .*of a TransformerNeuralOperator needs all nodes"):
            refused(build(dataclasses.replace(TNO, **choice)))
    with pytest.raises(NotImplementedError, match=r"Linear does not say .*shares_nodes = True"):
        refused(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    tno = build(TNO)
    with pytest.raises(ValueError, match=r"H1 inner product .*loss='l2' in training"):
        refused(tno, loss="h1")
    with pytest.raises(TypeError, match=r"batch must be a data\.Batch of functions, .*, got ExampleBatch"):
        refused(tno, train=data.Examples(np.ones((4, 3), np.float32), np.zeros(4, int)), loss="cross_entropy")
    with pytest.raises(ValueError, match=r"domain has 1 nodes for 2 devices that share them; use at most 1"):
        refused(tno, train=Samples(*[np.ones((4, 1, 1), np.float32)] * 2, domains.monte_carlo([[0.0, 0.0]])))
    with pytest.raises(ValueError, match=r"mesh\.data=4 times mesh\.domain=4 must be at most the number of devices, 8"):
        mesh(4, 4)
    with pytest.raises(ValueError, match="domain must be at least 1, got 0"):
        training.MeshConfig(domain=0)
    assert dict(training.MeshConfig(domain=3).make(6).shape) == {"data": 2, "domain": 3}
