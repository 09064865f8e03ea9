"""Ensembles: mean, deviation and members are those of the operators that were joined, in a folder too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxop
from jaxop import domains, operators
from tests.scale.cases import configs

FNO = dataclasses.replace(configs()["fno"], out_channels=2)
TNO = dataclasses.replace(configs()["tno"], decoder_layers=1, dropout=0.5)
GRID = domains.box((4, 4), rule="periodic")


def fno(seed):
    operator = operators.build(FNO, rngs=nnx.Rngs(seed))
    return operators.Standardized(
        operator, input_mean=[0.1 * seed], input_std=[2.0], output_mean=[3.0, 0.0], output_std=[0.5, 2.0]
    )


def functions(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def bits(model):
    leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))
    keys = (jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves)
    return [np.asarray(jax.random.key_data(x) if is_key else x) for x, is_key in zip(leaves, keys, strict=True)]


def assert_same_bits(ours, theirs):
    for a, b in zip(bits(ours), bits(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@jax.jit
def called(model, values):
    return model(values, GRID)


@jax.jit
def scored(ensemble, values):
    return ensemble.predictions(values, GRID), ensemble.mean_and_spread(values, GRID), ensemble(values, GRID)


@pytest.mark.parametrize(
    "shape",
    [pytest.param((16, 1), id="one function", marks=pytest.mark.thorough), pytest.param((3, 16, 1), id="a batch")],
)
def test_mean_and_deviation_are_those_of_the_members(shape):
    models, values = [fno(seed) for seed in range(3)], functions(*shape)
    ensemble = operators.Ensemble.of(models)
    each = np.stack([called(model, values) for model in models])
    predictions, (mean, spread), output = scored(ensemble, values)
    np.testing.assert_allclose(predictions, each, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spread, each.std(axis=0, ddof=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(output, mean)
    for number, model in enumerate(models):  # their statistics differ too
        member = ensemble.member(number)
        assert type(member) is operators.Standardized
        assert member.config == FNO
        assert_same_bits(member, model)


@pytest.mark.thorough
def test_members_evaluate_anywhere_and_draw_dropout_of_their_own():
    ensemble = operators.Ensemble(operators.EnsembleConfig(TNO, members=2), rngs=nnx.Rngs(0))
    values, at = functions(16, 1), domains.monte_carlo(functions(5, 2, seed=1) % 1)
    call = nnx.jit(lambda model, values, at: model(values, GRID, at=at))
    first, second = (call(ensemble, values, at) for _ in range(2))  # in training mode
    assert first.shape == (5, 1)
    assert not np.array_equal(first, second)
    ensemble.eval()
    apart = [call(ensemble.member(number), values, at) for number in range(2)]
    np.testing.assert_allclose(call(ensemble, values, at), (apart[0] + apart[1]) / 2, rtol=1e-5, atol=1e-6)
    assert not np.allclose(*apart)


def test_a_folder_brings_it_back(tmp_path):
    ensemble, values = operators.Ensemble.of([fno(seed) for seed in range(2)]), functions(3, 16, 1)
    path = ensemble.save(tmp_path / "ensemble.zip")
    loaded = jaxop.from_pretrained(path)
    assert loaded.config == ensemble.config == operators.EnsembleConfig(FNO, members=2, standardized=True)
    assert_same_bits(loaded, ensemble)
    np.testing.assert_array_equal(called(loaded, values), called(ensemble, values))
    half = jaxop.from_pretrained(path, dtype="bfloat16")
    assert half.config.operator.dtype == half.config.operator.param_dtype == "bfloat16"
    np.testing.assert_allclose(called(half, values), called(ensemble, values), atol=0.1)


def test_a_calibrated_ensemble_has_the_width_of_its_spread(tmp_path):
    ensemble = operators.Ensemble.of([fno(seed) for seed in range(2)])
    numbers = {"alpha": 0.1, "delta": 0.5, "factor": 3.0, "count": 9}
    calibrated, values = operators.Calibrated.of(ensemble, floor=0.5, **numbers), functions(3, 16, 1)
    _, (mean, spread), _ = scored(ensemble, values)
    prediction, half_width = called(calibrated, values)
    np.testing.assert_array_equal(prediction, mean)
    np.testing.assert_allclose(half_width, 3 * (spread + 0.5 * spread.mean(axis=1, keepdims=True)), rtol=1e-5)
    path = calibrated.save(tmp_path / "calibrated")
    assert "that of the 2 members' deviation" in (path / "card.md").read_text()
    for ours, theirs in zip(called(jaxop.from_pretrained(path), values), (prediction, half_width), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named():
    first, other = fno(0), operators.build(FNO, rngs=nnx.Rngs(0))
    wider = operators.build(dataclasses.replace(FNO, width=6), rngs=nnx.Rngs(0))
    changed = operators.build(FNO, rngs=nnx.Rngs(0))
    changed.lift.bias = None
    for models, error, message in (
        ([first], ValueError, "models must hold at least 2 operators, got 1"),
        ([first, other], ValueError, r"models\[1\] must be a Standardized like models\[0\], got a FourierNeural"),
        ([other, wider], ValueError, r"models\[1\] must have the config of models\[0\], .*width=6"),
        ([other, changed], ValueError, r"models\[1\] must have the same arrays.*lift.bias is absent in place of"),
        ([other, nnx.Linear(1, 1, rngs=nnx.Rngs(0))], TypeError, r"models\[1\] must be a neural operator.*got Linear"),
        (other, TypeError, "models must be a list of operators"),
    ):
        with pytest.raises(error, match=message):
            operators.Ensemble.of(models)
    with pytest.raises(IndexError, match="number must be one of the members 0 to 1, got 2"):
        operators.Ensemble.of([first, first]).member(2)
    for wrong, error, message in (
        ({"members": 1}, ValueError, "members must be at least 2, got 1"),
        ({"standardized": 1}, TypeError, "standardized must be True or False"),
        ({"operator": operators.EnsembleConfig(FNO, members=2)}, TypeError, "operator must be the config of an oper"),
    ):
        with pytest.raises(error, match=message):
            operators.EnsembleConfig(**({"operator": FNO, "members": 2} | wrong))
