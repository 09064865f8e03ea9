"""Training and evaluation on samples with nodes of their own: padding counts for nothing, one program per bucket."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxop import data, domains, operators, testing, training
from jaxop.data.groups import draw_batch
from jaxop.training.memory import largest_product
from tests.data.ragged_cases import cloud, curve, functions, mesh, pairs
from tests.training.cases import assert_same_bits, interruption, rows
from tests.training.ragged_cases import Mean

CONFIG = training.TrainingConfig(
    steps=14, batch_size=2, learning_rate=1e-2, warmup_steps=2, eval_every=7, checkpoint_every=3, keep_last=2, seed=3
)
SIZES = {"width": 8, "heads": 2, "layers": 1}


def fit(directory, *, train=None, valid=None, model=None, config=CONFIG, **options):
    train = data.RaggedSamples(pairs()) if train is None else train
    valid = {"same": data.RaggedSamples(pairs())} if valid is None else valid
    options = {"progress": False} | options
    return training.fit(model or Mean(), train, valid, config, run_dir=directory, **options)


def operator(kind, dim=2):
    if kind == "latent":
        config = operators.LatentNeuralOperatorConfig(2, 1, dim, decoder_layers=1, **SIZES)
    elif kind == "latent_grid":
        config = operators.LatentGridOperatorConfig(2, 1, dim, grid=4, **SIZES)
    else:
        config = operators.TransformerNeuralOperatorConfig(2, 1, dim, decoder_layers=int(kind == "decoder"), **SIZES)
    return operators.build(config, rngs=nnx.Rngs(0))


def losses_and_gradients(model, batch):
    return _losses_and_gradients(*nnx.split(model, nnx.Param, ...), batch)


@functools.partial(jax.jit, static_argnums=0)
def _losses_and_gradients(graphdef, params, other, batch):
    def mean(params):
        losses = training.relative_l2_loss(nnx.merge(graphdef, params, other), batch)
        return jnp.mean(losses), losses

    (_, losses), gradient = jax.value_and_grad(mean, has_aux=True)(params)
    return losses, gradient


def with_padding(batch, sizes, at_sizes, fill):
    """The batch with other values and coordinates at the nodes that were added."""

    def filled(array, counts):
        extra = np.arange(array.shape[1])[None] >= np.asarray(counts)[:, None]
        return jnp.where(extra[..., None], jnp.asarray(fill, array.dtype), array)

    def moved(domain, counts):
        return domains.PointCloud(filled(domain.points, counts), domain.weights)

    at = None if batch.at is None else moved(batch.at, at_sizes)
    inputs, targets = filled(batch.inputs, sizes), filled(batch.targets, at_sizes)
    return dataclasses.replace(batch, inputs=inputs, targets=targets, domain=moved(batch.domain, sizes), at=at)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind",
    ["plain", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("decoder", "latent_grid")), "latent"],
)
def test_neither_outputs_nor_gradients_see_the_padding(kind):
    at = None if kind == "plain" else (lambda i: cloud(12 + i % 3, seed=7))
    made = pairs(sizes=(20, 17, 19), at=at)
    samples, model = data.RaggedSamples(made, max_buckets=1), operator(kind)
    batch = samples[:]
    assert samples.buckets[0].padding > 0
    losses, gradient = losses_and_gradients(model, batch)
    for fill in (0.0, 1e6):
        other = with_padding(batch, [s.domain.size for s in made], samples.target_sizes, fill)
        changed = losses_and_gradients(model, other)
        np.testing.assert_allclose(changed[0], losses, rtol=1e-6)
        for leaf, expected in zip(jax.tree.leaves(changed[1]), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(leaf, expected, atol=1e-6)
    # and those of each sample alone, without padding
    alone = [losses_and_gradients(model, data.RaggedSamples([sample])[:]) for sample in made]
    np.testing.assert_allclose(losses, np.concatenate([found for found, _ in alone]), rtol=2e-6)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *(found for _, found in alone))
    for leaf, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-6)


@pytest.mark.thorough
def test_training_in_buckets_is_training_on_each_sample_by_itself(tmp_path):
    """Three steps of gradient descent, sample by sample without padding, on the batches that a run draws."""
    config = dataclasses.replace(CONFIG, steps=3, warmup_steps=0)
    model = Mean(rate=0.0)
    made, optimizer = pairs(), optax.sgd(0.1)
    samples = data.RaggedSamples(made)
    result = fit(tmp_path, train=samples, valid={}, model=model, config=config, optimizer=optimizer)
    graphdef, params, other = nnx.split(model, nnx.Param, ...)
    groups = samples.groups(2)
    drawn = []
    for step in range(3):
        group, items = draw_batch([len(g.indices) for g in groups], 2, seed=3, step=step)
        index = groups[group].indices[items]
        drawn.append(group)
        found = [losses_and_gradients(nnx.merge(graphdef, params, other), _alone(made[i]))[1] for i in index]
        params = jax.tree.map(lambda p, *g: p - 0.1 * sum(g) / len(g), params, *found)
    assert len(set(drawn)) > 1
    for leaf, expected in zip(jax.tree.leaves(result.state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-6)


def _alone(sample):
    one = (jnp.asarray(array)[None] for array in (sample.inputs, sample.targets))
    return data.Batch(*one, sample.domain, sample.at, None, jnp.arange(1))


class Compilations:
    """Counts the programs compiled between the first step and the last."""

    def __init__(self, count):
        self.count, self.at_step = count, {}

    def start(self, run_dir, settings, step): ...

    def log(self, step, metrics):
        if "loss" in metrics:
            self.at_step[step] = self.count()

    def close(self): ...


def test_a_run_compiles_one_program_per_bucket_and_resumes_bit_for_bit(tmp_path, capsys):
    samples = data.RaggedSamples(pairs())
    assert len(samples.groups(2)) == 2
    Mean.traced.clear()
    with testing.count_compilations() as count:
        compilations = Compilations(count)
        config = dataclasses.replace(CONFIG, eval_every=14)
        whole = fit(tmp_path / "whole", loggers=[compilations], progress=True, config=config)
    assert compilations.at_step[1] == compilations.at_step[14]
    assert set(Mean.traced) == {(2, 11, 2), (2, 31, 2)}
    line = "10 samples in 2 buckets, each with a program of its own: "
    line += "5 of 11 nodes (11% padding); 5 of 31 nodes (5% padding)"
    assert capsys.readouterr().out.splitlines()[0] == line
    with interruption(8) as loggers:
        fit(tmp_path / "run", loggers=loggers, config=config)
    resumed = fit(tmp_path / "run", resume=True, config=config)
    assert_same_bits(resumed.state, whole.state)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    record = training.load_run(tmp_path / "whole").config["train"]
    assert record["groups"] == {"11 nodes (11% padding)": 5, "31 nodes (5% padding)": 5}
    with pytest.raises(ValueError, match=r"train\.identity\.contents\.inputs"):
        fit(tmp_path / "run", train=data.RaggedSamples([*pairs()[:-1], functions(cloud(30, seed=9))]), resume=True)


@pytest.mark.thorough
def test_errors_and_predictions_come_in_the_order_of_the_samples():
    made, model = pairs(curve, (9, 30, 11)), operator("plain", dim=1)
    samples = data.RaggedSamples(made)
    assert len(samples.buckets) > 1
    errors, outputs = training.evaluate(model, samples, batch_size=2), training.predict(model, samples, batch_size=2)
    assert errors.h1 is not None
    for i, sample in enumerate(made):
        output = model(jnp.asarray(sample.inputs), sample.domain)
        np.testing.assert_allclose(outputs[i], output, atol=1e-6)
        for space, found in (("L2", errors.l2), ("H1", errors.h1)):
            exact = training.relative_norm(output, jnp.asarray(sample.targets), sample.domain, space=space)
            np.testing.assert_allclose(found[i], exact, rtol=1e-5)


@pytest.mark.thorough
def test_outputs_on_other_nodes_and_h1_errors_on_meshes():
    made = pairs(mesh, at=lambda i: mesh(8 + i % 4, seed=i + 1))
    model, samples = operator("decoder"), data.RaggedSamples(made)
    errors, outputs = training.evaluate(model, samples), training.predict(model, samples)
    for i, sample in enumerate(made):
        output = model(jnp.asarray(sample.inputs), sample.domain, at=sample.at)
        np.testing.assert_allclose(outputs[i], output, atol=1e-6)
        exact = training.relative_norm(output, jnp.asarray(sample.targets), sample.at, space="H1")
        np.testing.assert_allclose(errors.h1[i], exact, rtol=1e-5)


@pytest.mark.thorough
def test_a_loss_of_the_user_is_averaged_over_all_samples(tmp_path):
    def squares(model, batch):
        errors = model(batch.inputs, batch.domain) - batch.targets
        losses = (
            jax.vmap(batch.domain.norm)(errors) ** 2
            if not batch.domain.is_batched
            else jax.vmap(lambda domain, error: domain.norm(error) ** 2)(batch.domain, errors)
        )
        return losses, {"twice": 2 * losses}

    made = pairs(sizes=(9, 30, 11))
    config, valid = dataclasses.replace(CONFIG, steps=1, warmup_steps=0), {"same": data.RaggedSamples(made)}
    result = fit(tmp_path, config=config, valid=valid, loss=squares)
    expected = [squares(result.model, _alone(sample))[0] for sample in made]
    np.testing.assert_allclose(result.errors["same/loss"], np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(result.errors["same/twice"], 2 * np.mean(expected), rtol=1e-5)


class Watched(data.RandomNodes):
    """Random nodes of samples of several sizes, which remember the steps that they were drawn for."""

    def __init__(self, nodes=12):
        super().__init__(data.RaggedSamples(pairs(sizes=(9, 40, 50, 60, 70))), nodes)
        self.drawn = []

    def at_step(self, indices, *, seed, step):
        self.drawn.append((seed, step))
        return super().at_step(indices, seed=seed, step=step)


@pytest.mark.thorough
def test_random_nodes_of_every_step_are_the_same_when_a_run_is_resumed(tmp_path):
    Mean.traced.clear()
    train = Watched()
    whole = fit(tmp_path / "whole", train=train, valid={})
    assert set(Mean.traced) == {(2, 12, 2)}
    assert train.drawn[1:] == [(CONFIG.seed, step) for step in range(14)]  # the first for its shape
    with interruption(8) as loggers:
        fit(tmp_path / "run", train=Watched(), valid={}, loggers=loggers)
    assert_same_bits(fit(tmp_path / "run", train=Watched(), valid={}, resume=True).state, whole.state)
    with pytest.raises(ValueError, match=r"train\.random_nodes: 12 -> 13"):
        fit(tmp_path / "run", train=Watched(13), valid={}, resume=True)


def test_a_bucket_beyond_the_memory_is_refused_before_it_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(training.memory, "device_memory", lambda: 3000.0)  # enough for the other bucket
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    with pytest.raises(MemoryError, match=r"on 2 samples of 31 nodes .* the largest array 1\.984 kB\) of 3 kB"):
        fit(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_products_without_a_sum_need_no_memory():
    def size(*shapes):
        return largest_product(jax.make_jaxpr(lambda a, b: jnp.sum(a @ b))(*map(jnp.ones, shapes)).jaxpr)

    assert (size((9, 2), (2, 5)), size((9, 1), (1, 5))) == (4 * 9 * 5, 0)


def test_sets_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    three = [data.Sample(s.inputs, np.ones((s.domain.size, 3), np.float32), s.domain) for s in pairs()]
    with pytest.raises(ValueError, match=r"valid\['other'\] has 3 target channels, but the training samples have 1"):
        fit(tmp_path, valid={"other": data.RaggedSamples(three)})
    with pytest.raises(ValueError, match="batch_size=11 exceeds the 10 training samples"):
        fit(tmp_path, config=dataclasses.replace(CONFIG, batch_size=11))
    with pytest.raises(
        TypeError, match=r"train must be jaxop\.data\.Examples for loss='cross_entropy', got RaggedSamp"
    ):
        fit(tmp_path, config=dataclasses.replace(CONFIG, loss="cross_entropy"))
    assert not list(tmp_path.iterdir())


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["fno", "vitno", "fano"])
def test_operators_on_grids_say_which_operator_takes_any_nodes(kind):
    config = operators.CONFIGS[kind](2, 1, **({"width": 8, "layers": 1} if kind == "fno" else SIZES))
    model = operators.build(config, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"needs a grid .*PointCloud; the TransformerNeuralOperator takes any domain"):
        training.evaluate(model, data.RaggedSamples(pairs()))
