"""Errors of a model over a set: every sample once, on any grid, one program per shape."""

import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, testing, training
from tests.training.cases import Tiny, assert_same_bits, leaves, samples, stacked_samples, tiny


class Scale(nnx.Module):
    """Multiplies the first function value by a number, on whatever domain the output is wanted."""

    def __init__(self, factor):
        self.factor = nnx.Param(np.float32(factor))

    def __call__(self, values, domain, *, at=None, initial=None):
        size = values.shape[1] if at is None else at.size
        result = self.factor[...] * values[:, :1].repeat(size, axis=1)
        return result if initial is None else result + initial[:, None]


def one_by_one(model, samples):
    l2, h1 = [], []
    for i in range(len(samples)):
        batch = samples[[i]]
        prediction = model(batch.inputs, batch.domain, at=batch.at, initial=batch.initial)
        l2.append(training.relative_norms(prediction, batch.targets, batch.target_domain)[0])
        h1.append(training.relative_norms(prediction, batch.targets, batch.target_domain, space="H1")[0])
    return np.array(l2), np.array(h1)


@pytest.mark.sample(1)
@pytest.mark.parametrize("make", [samples, stacked_samples])
def test_errors_are_those_of_the_samples_one_by_one(make):
    model, chosen = tiny(), make(7)
    model.eval()
    errors = training.evaluate(model, chosen, batch_size=2)
    for result, expected in zip((errors.l2, errors.h1), one_by_one(model, chosen), strict=True):
        assert result.shape == (7,)
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_targets_on_another_domain_and_initial_values():
    u = np.ones((3, 9, 1), np.float32)
    targets, initial = np.full((3, 4, 1), 3, np.float32), np.array([[1.0], [2.0], [4.0]], np.float32)
    chosen = data.Samples(u, targets, domains.interval(9), at=domains.interval(4), initial=initial)
    errors = training.evaluate(Scale(1), chosen)
    np.testing.assert_allclose(errors.l2, [1 / 3, 0, 2 / 3], atol=1e-6)
    assert training.predict(Scale(1), chosen).shape == (3, 4, 1)


def test_scattered_nodes_have_no_h1_error():
    points = np.random.default_rng(0).uniform(size=(9, 2)).astype(np.float32)
    u = np.ones((3, 9, 1), np.float32)
    errors = training.evaluate(Scale(3), data.Samples(u, 2 * u, domains.monte_carlo(points)))
    np.testing.assert_allclose(errors.l2, 0.5)
    assert errors.h1 is None


def test_a_last_batch_that_is_not_full_compiles_nothing():
    model, chosen = tiny(), samples(7)
    training.evaluate(model, chosen, batch_size=3)
    training.predict(model, chosen, batch_size=3)
    with testing.count_compilations() as compilations:
        training.evaluate(model, chosen, batch_size=3)
        training.evaluate(tiny(), samples(8, seed=4), batch_size=3)
        training.predict(model, chosen, batch_size=3)
    assert compilations() == 0


def test_a_batch_larger_than_the_set_is_the_set():
    chosen = samples(3)
    np.testing.assert_allclose(
        training.evaluate(tiny(), chosen, batch_size=64).l2,
        training.evaluate(tiny(), chosen, batch_size=1).l2,
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="at least 1"):
        training.evaluate(tiny(), chosen, batch_size=0)


def test_predictions_are_those_of_evaluation_mode_and_the_model_is_left_alone():
    model, chosen = Tiny(rate=0.9, rngs=nnx.Rngs(0)), samples(5)
    model.train()
    before = leaves(nnx.state(model))
    predictions = training.predict(model, chosen, batch_size=2)
    assert not model.dropout.deterministic
    assert_same_bits(before, leaves(nnx.state(model)))
    model.eval()
    batch = chosen[np.arange(5)]
    np.testing.assert_allclose(predictions, model(batch.inputs, batch.domain), rtol=1e-5, atol=1e-6)
