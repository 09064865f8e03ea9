"""Calibrated operators: the factor is that of the scores computed by hand, and what was trained on is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxop
from jaxop import data, domains, operators, training
from tests.scale.cases import configs

pytestmark = pytest.mark.optax

FNO = dataclasses.replace(configs()["fno"], out_channels=2)
TNO = dataclasses.replace(configs()["tno"], out_channels=2)
LEVELS = {"alpha": 0.2, "delta": 0.3}


def pairs(count, nodes, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=(count, nodes, c)).astype(np.float32) for c in (1, 2)]


def on_grid(count=7, side=4, seed=0):
    return data.Samples(*pairs(count, side**2, seed), domains.box((side, side), rule="periodic"))


def clouds(sizes, seed=0):
    random = np.random.default_rng(seed)
    return [
        domains.PointCloud(jnp.asarray(random.random((n, 2)), jnp.float32), jnp.asarray(random.random(n), jnp.float32))
        for n in sizes
    ]


def ragged(seed=0):
    each = clouds([9, 30, 9, 12, 30], seed)
    return data.RaggedSamples([data.Sample(*(v[0] for v in pairs(1, c.size, i)), c) for i, c in enumerate(each)])


def stacked_at(count=5):
    u, _ = pairs(count, 9)
    _, v = pairs(count, 6)
    return data.Samples(u, v, domains.stack(clouds([9] * count)), at=domains.stack(clouds([6] * count, 3)))


def build(config, seed=0):
    return operators.build(config, rngs=nnx.Rngs(seed))


def standardized(config, seed=0):
    return operators.Standardized(
        build(config, seed), input_mean=[0.1], input_std=[2.0], output_mean=[3.0, 0.0], output_std=[0.5, 2.0]
    )


@jax.jit
def outputs(model, inputs, domain, at):
    return model(inputs, domain, at=at)


def by_hand(model, spread, samples, alpha, floor=0.01):
    """The score of every sample on its own nodes, one after the other, in float64."""
    found = []
    for i in range(len(samples)):
        one = samples.sample(i)
        nodes = one.target_domain
        arguments = jnp.asarray(one.inputs), one.domain, one.at
        error = np.abs(np.asarray(outputs(model, *arguments), np.float64) - one.targets)
        weights = np.asarray(nodes.weights, np.float64)
        if spread is not None:
            size = np.abs(np.asarray(outputs(spread, *arguments), np.float64))
            error = error / (size + floor * weights @ size / weights.sum())
        else:
            error = error / np.asarray(model.output_std[...], np.float64)
        ratios = error.max(axis=1)
        found.append(min(q for q in ratios if weights[ratios > q].sum() <= alpha * weights.sum()))
    return np.sort(found)


CASES = {
    "a grid": (FNO, on_grid, 6, True),  # k = ⌈8 · 0.7⌉
    "a band of one width": (FNO, on_grid, 6, False),
    "nodes of their own": (TNO, ragged, 5, True),  # k = ⌈6 · 0.7⌉
    "other nodes for the targets": (dataclasses.replace(TNO, decoder_layers=1), stacked_at, 5, True),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough if "targets" in name else ()) for name in CASES]
)
@pytest.mark.sample(1)
def test_the_factor_is_that_of_the_scores_by_hand(name):
    config, make, k, has_spread = CASES[name]
    samples, model, spread = make(), standardized(config), build(config, 1) if has_spread else None
    calibrated = training.calibrate(model, samples, spread=spread, batch_size=3, **LEVELS)
    factor = by_hand(model, spread, samples, LEVELS["alpha"])[k - 1]
    assert calibrated.config.factor == pytest.approx(factor, rel=1e-4)
    assert calibrated.config.count == len(samples)
    one = samples.sample(1)
    arguments = jnp.asarray(one.inputs), one.domain, one.at
    prediction, half_width = outputs(calibrated, *arguments)
    np.testing.assert_allclose(prediction, outputs(model, *arguments), rtol=1e-5, atol=1e-6)
    sigma = np.broadcast_to([0.5, 2.0], prediction.shape)  # the deviations of the channels
    if has_spread:
        size, weights = np.abs(outputs(spread, *arguments)), np.asarray(one.target_domain.weights)
        sigma = size + 0.01 * weights @ size / weights.sum()
    np.testing.assert_allclose(half_width, factor * sigma, rtol=1e-4)


def test_it_holds_the_functions_it_was_calibrated_on():
    samples, model = on_grid(19), standardized(FNO)
    calibrated = training.calibrate(model, samples, spread=build(FNO, 1), alpha=0, delta=0.25)
    batch = samples[:]
    prediction, half_width = outputs(calibrated, batch.inputs, batch.domain, None)
    inside = (np.abs(batch.targets - prediction) <= half_width * (1 + 1e-5)).all(axis=(1, 2))
    assert inside.sum() == 15  # ⌈20 · 0.75⌉


@pytest.mark.parametrize("name", ["a grid", "a band of one width", "nodes of their own"])
@pytest.mark.sample(1)
def test_the_coverage_is_that_of_the_functions_one_by_one(name):
    """On the functions of the calibration, as many as its rank are inside."""
    config, make, k, has_spread = CASES[name]
    samples, model, spread = make(), standardized(config), build(config, 1) if has_spread else None
    calibrated = training.calibrate(model, samples, spread=spread, batch_size=3, **LEVELS)
    found = training.coverage(calibrated, samples, batch_size=3)
    assert found.inside.sum() == k
    assert found.share == pytest.approx(k / len(samples))
    assert found.standard_error == pytest.approx(np.sqrt(found.share * (1 - found.share) / len(samples)))
    assert found.nominal == 0.7
    for i in range(len(samples)):
        one = samples.sample(i)
        _, half_width = outputs(calibrated, jnp.asarray(one.inputs), one.domain, one.at)
        weights = np.asarray(one.target_domain.weights)
        np.testing.assert_allclose(found.half_widths[i], weights @ half_width / weights.sum(), rtol=1e-4)
    np.testing.assert_allclose(found.half_width, found.half_widths.mean(axis=0), rtol=1e-6)
    new = make(seed=8)
    scores = by_hand(model, spread, new, LEVELS["alpha"])
    assert training.coverage(calibrated, new).inside.sum() == (scores <= calibrated.config.factor).sum()


def test_a_folder_brings_it_back_bit_for_bit(tmp_path):
    samples = on_grid(19)
    model = training.calibrate(standardized(FNO), samples, spread=standardized(TNO, 1), alpha=0.1, delta=0.05)
    path = model.save(tmp_path / "model", card={"Data": "none"})
    loaded = jaxop.from_pretrained(path)
    assert loaded.config == model.config
    given = samples[:2].inputs, samples.domain, None
    for ours, theirs in zip(outputs(loaded, *given), outputs(model, *given), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    recorded = json.loads((path / "config.json").read_text())["config"]
    assert (recorded["alpha"], recorded["delta"], recorded["count"]) == (0.1, 0.05, 19)
    assert recorded["factor"] == model.config.factor
    card = (path / "card.md").read_text()
    for part in ("## Error bars", "a probability of at least 95 %", "at least 90 % of the domain", "4 × 4", "## Data"):
        assert part in card
    (path / "config.json").write_text((path / "config.json").read_text().replace('"alpha": 0.1', '"alpha": 0.2'))
    with pytest.raises(ValueError, match=r"config.json was changed"):
        jaxop.from_pretrained(path)


def test_functions_that_were_trained_on_are_refused():
    old, new, model = on_grid(9), on_grid(9, seed=1), build(FNO)
    rows = [np.concatenate([getattr(new, name), getattr(old, name)[4:5]]) for name in ("inputs", "targets")]
    mixed = data.Samples(*rows, old.domain)
    with pytest.raises(ValueError, match=r"1 of 10 are in trained_on, the first being samples\[9\]"):
        training.calibrate(model, mixed, trained_on=[on_grid(3, seed=5), old], **LEVELS)
    with jax.enable_x64(True):
        in_double = data.Samples(old.inputs.astype(np.float64), old.targets.astype(np.float64), old.domain)
        with pytest.raises(ValueError, match="9 of 9 are in trained_on"):
            training.calibrate(model, in_double, trained_on=old, **LEVELS)
    with pytest.raises(ValueError, match="5 of 5 are in trained_on"):
        training.calibrate(build(TNO), ragged(), trained_on=ragged(), **LEVELS)
    assert training.calibrate(model, new, trained_on=old, **LEVELS).config.count == 9
    drawn = data.RandomNodes(ragged(), 3)
    with pytest.raises(ValueError, match="5 of 5 are in trained_on"):
        training.calibrate(build(TNO), drawn, trained_on=ragged(), **LEVELS)
    residuals = training.absolute_residuals(model, old)  # what a spread was trained on
    with pytest.raises(ValueError, match="9 of 9 are in trained_on"):
        training.calibrate(model, old, trained_on=residuals, **LEVELS)


def test_pairs_of_outputs_are_no_predictions():
    model, samples = training.calibrate(build(FNO), on_grid(), **LEVELS), on_grid(2)
    for function in (training.predict, training.evaluate, training.absolute_residuals):
        with pytest.raises(TypeError, match=r"model is a Calibrated.*pass model\.operator"):
            function(model, samples)
    with pytest.raises(TypeError, match=r"model is a Calibrated.*pass model\.operator"):
        training.predict_at(model, samples, domains.box((3, 3)))
    with pytest.raises(ValueError, match="spread must be another model"):
        training.calibrate(model.operator, on_grid(), spread=model.operator, **LEVELS)


def test_the_training_set_of_a_run_is_refused(tmp_path):
    samples = on_grid(8)
    config = training.TrainingConfig(steps=1, batch_size=4)
    loss = functools.partial(training.pinball_loss, level=0.8)
    training.fit(build(FNO), samples, {}, config, run_dir=tmp_path / "run", progress=False, loss=loss)
    run = training.load_run(tmp_path / "run")
    assert run.config["loss"] == {"function": "pinball_loss", "arguments": {"level": "0.8"}}
    with pytest.raises(ValueError, match=r"they are the training set of .*run"):
        training.calibrate(build(FNO), samples, trained_on=run, **LEVELS)
    assert training.calibrate(build(FNO), on_grid(8, seed=1), trained_on=[run], **LEVELS).config.count == 8


def test_a_part_of_what_a_run_or_its_model_was_trained_on_is_refused(tmp_path):
    train, valid, new = (on_grid(8, seed=seed) for seed in range(3))
    config = training.TrainingConfig(steps=1, batch_size=4)
    training.fit(build(FNO), train, {"v": valid}, config, run_dir=tmp_path / "run", progress=False)
    run = training.load_run(tmp_path / "run")
    assert run.functions.shape == (16, 16)
    build(FNO).save(tmp_path / "model.zip", functions=run.functions)
    for known in (
        run,
        str(tmp_path / "run"),
        tmp_path / "model.zip",
        [new.take(slice(0, 1)), str(tmp_path / "model.zip")],
    ):
        for samples in (train, valid):
            rows = [np.concatenate([getattr(new, name), getattr(samples, name)[2:3]]) for name in ("inputs", "targets")]
            with pytest.raises(ValueError, match=r"of 9 are in trained_on"):
                training.calibrate(build(FNO), data.Samples(*rows, new.domain), trained_on=known, **LEVELS)
    assert training.calibrate(build(FNO), new, trained_on=tmp_path / "model.zip", **LEVELS).config.count == 8
    (tmp_path / "run" / "functions.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"functions.npy is not a file of hashes"):
        training.calibrate(build(FNO), new, trained_on=training.load_run(tmp_path / "run"), **LEVELS)
    np.save(tmp_path / "run" / "functions.npy", np.zeros((3, 8), np.uint8))
    with pytest.raises(ValueError, match=r"functions.npy is not a file of hashes"):
        training.calibrate(build(FNO), new, trained_on=training.load_run(tmp_path / "run"), **LEVELS)
    build(FNO).save(tmp_path / "untold")
    with pytest.raises(ValueError, match=r"trained_on\[0\] = .*untold.* has no hashes"):
        training.calibrate(build(FNO), new, trained_on=tmp_path / "untold", **LEVELS)


@pytest.mark.parametrize("make", [on_grid, ragged])
def test_residuals_are_on_the_nodes_of_the_samples(make):
    samples, model = make(), build(FNO if make is on_grid else TNO)
    residuals = training.absolute_residuals(model, samples, batch_size=3)
    assert type(residuals) is type(samples)
    assert len(residuals) == len(samples)
    for i in range(len(samples)):
        one, its = samples.sample(i), residuals.sample(i)
        np.testing.assert_array_equal(one.inputs, its.inputs)
        np.testing.assert_array_equal(one.domain.weights, its.domain.weights)
        expected = np.abs(np.asarray(outputs(model, jnp.asarray(one.inputs), one.domain, None)) - one.targets)
        np.testing.assert_allclose(its.targets, expected, atol=1e-5)


def test_the_pinball_loss_is_smallest_at_the_quantile():
    """For a constant f, the loss is smallest where f is a quantile of the targets under the weights."""
    (domain,) = clouds([200])
    targets = jnp.asarray(np.random.default_rng(1).exponential(size=(1, 200, 1)), jnp.float32)
    batch = data.Batch(targets, targets, domain, None, None, jnp.arange(1))
    candidates = np.linspace(0, 5, 501).astype(np.float32)

    def loss(value):
        constant = functools.partial(jnp.full_like, fill_value=value)
        return training.pinball_loss(lambda u, domain, **_: constant(u), batch, level=0.8)[0]

    best = candidates[int(np.argmin(jax.jit(jax.vmap(loss))(jnp.asarray(candidates))))]
    order = np.argsort(targets[0, :, 0])
    masses = np.cumsum(np.asarray(domain.weights)[order])
    assert best == pytest.approx(float(targets[0, order[np.searchsorted(masses, 0.8 * masses[-1])], 0]), abs=0.02)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named():
    samples, model = on_grid(5), build(FNO)
    with pytest.raises(ValueError, match=r"samples: 5 functions are too few for delta=0.02, which needs at least 49"):
        training.calibrate(model, samples, alpha=0.1, delta=0.02)
    with pytest.raises(TypeError, match=r"model must be a neural operator with a config.*got Linear"):
        training.calibrate(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), samples, **LEVELS)
    with pytest.raises(ValueError, match=r"spread must map the same functions.*out_channels=2, got 1"):
        training.calibrate(model, samples, spread=build(configs()["fno"]), **LEVELS)
    with pytest.raises(TypeError, match="functions must be hashes"):
        model.save("nowhere", functions=np.zeros(3))
    with pytest.raises(TypeError, match=r"trained_on\[0\] must be data.Samples"):
        training.calibrate(model, samples, trained_on=[1], **LEVELS)
    with pytest.raises(FileNotFoundError, match="darcy_lognormal_fno"):
        training.calibrate(model, samples, trained_on="darcy_lognormal_fmo", **LEVELS)
    with pytest.raises(TypeError, match=r"calibrated must be an operator with error bars"):
        training.coverage(model, samples)
    with pytest.raises(ValueError, match="level must lie in"):
        training.pinball_loss(model, samples[:], level=1.0)
    with pytest.raises(ValueError, match="units must be one positive number or one for each of the 2 channels"):
        training.pinball_loss(model, samples[:], level=0.5, units=(1.0, 0.0))
    with pytest.raises(TypeError, match=r"samples must be data.Samples"):
        training.absolute_residuals(model, [1])
    numbers = {"operator": FNO, "alpha": 0.1, "delta": 0.5, "factor": 1.0, "count": 3}
    for wrong, message in (
        ({"factor": np.inf}, "factor must be at least 0 and finite"),
        ({"floor": -1.0}, "floor must be at least 0"),
        ({"alpha": 1.0}, "alpha must lie in"),
        ({"count": 1, "delta": 0.1}, "count: 1 functions are too few"),
    ):
        with pytest.raises(ValueError, match=message):
            operators.CalibratedConfig(**(numbers | wrong))
    nnx.update(model, jax.tree.map(lambda leaf: leaf * np.nan, nnx.state(model, nnx.Param)))
    with pytest.raises(ValueError, match=r"samples\[0\] and 4 others have an infinite score"):
        training.calibrate(model, samples, **LEVELS)


def test_a_pair_that_is_there_twice_is_refused_and_an_input_with_two_targets_is_not():
    u, v = np.random.default_rng(0).normal(size=(2, 12, 8, 1)).astype(np.float32)
    grid, u[11], v[10] = domains.interval(8), u[3], v[4]
    train = {"alpha": 0.1, "delta": 0.1}
    config = operators.TransformerNeuralOperatorConfig(1, 1, width=4, heads=1, layers=1)
    model = operators.build(config, rngs=nnx.Rngs(0))
    training.calibrate(model, data.Samples(u, v, grid), **train)
    v[11] = v[3]
    with pytest.raises(ValueError, match=r"samples\[11\] is samples\[3\] again"):
        training.calibrate(model, data.Samples(u, v, grid), **train)


def test_the_members_of_an_ensemble_are_standardized_and_not_the_ensemble():
    config = operators.TransformerNeuralOperatorConfig(1, 1, width=4, heads=1, layers=1)
    ensemble = operators.build(operators.EnsembleConfig(config, members=2), rngs=nnx.Rngs(0))
    one = {"input_mean": [0.0], "input_std": [1.0], "output_mean": [0.0], "output_std": [1.0]}
    with pytest.raises(TypeError, match=r"operator must be one operator, got Ensemble.*standardized=True"):
        operators.Standardized(ensemble, **one)
    with pytest.raises(TypeError, match=r"spread must be .* got Ensemble; pass one of its members"):
        operators.Calibrated.of(ensemble.member(0), ensemble, alpha=0.1, delta=0.1, factor=1.0, count=99)
