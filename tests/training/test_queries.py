"""Outputs at query points in parts: the same numbers, the order of an array, and one program."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, operators, training
from jaxop.testing import count_compilations
from tests.data.ragged_cases import pairs

SIZES = {"width": 8, "heads": 2, "layers": 1}
CONFIGS = {
    "latent": operators.LatentNeuralOperatorConfig(2, 2, 2, decoder_layers=1, **SIZES),
    "tno": operators.TransformerNeuralOperatorConfig(2, 2, 2, decoder_layers=1, **SIZES),
    "latent_grid": operators.LatentGridOperatorConfig(
        2, 2, 2, grid=4, process=operators.FourierNeuralOperatorConfig(8, 8, 2, width=4, layers=1, modes=2), **SIZES
    ),
}


def model(name="latent"):
    return operators.build(CONFIGS[name], rngs=nnx.Rngs(0))


def samples(count=3):
    u = np.random.default_rng(1).normal(size=(count, 16, 2)).astype(np.float32)
    return data.Samples(u, u, domains.box((4, 4)))


def joined(blocks, shape):
    """All outputs, from blocks in the order of an array."""
    parts = [(chosen, points, np.array(outputs)) for chosen, points, outputs in blocks]
    found = np.full(shape, np.nan, np.float32)
    for chosen, points, outputs in parts:
        found[chosen, points] = outputs
    np.testing.assert_array_equal(np.concatenate([outputs.ravel() for _, _, outputs in parts]), found.ravel())
    return found, [outputs.shape[:2] for _, _, outputs in parts]


@pytest.mark.parametrize(
    "name",
    [
        "latent",
        pytest.param("tno", marks=pytest.mark.thorough),
        pytest.param("latent_grid", marks=pytest.mark.thorough),
    ],
)
def test_parts_change_nothing_and_are_of_one_shape(name):
    at = domains.box((5, 9))
    operator = model(name)
    sampled = data.Samples(samples().inputs, np.zeros((3, 45, 2), np.float32), samples().domain, at=at)
    expected = training.predict(operator, sampled, batch_size=2)
    whole, sizes = joined(training.predict_at(operator, samples(), at, batch_size=2), (3, 45, 2))
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)
    assert sizes == [(2, 45), (1, 45)]

    blocks = training.predict_at(operator, samples(), at, nodes=20)
    first = next(blocks)
    with count_compilations() as compilations:
        found, sizes = joined([first, *blocks], (3, 45, 2))
    assert compilations() == 0  # of eight further calls
    assert sizes == 3 * [(1, 20), (1, 20), (1, 5)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_memory_does_not_grow_with_the_query_points(monkeypatch):
    """The largest array of a call, of which there are so many as the points need."""
    held = []
    placed = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, *rest: held.append(np.size(x)) or placed(x, *rest))
    for count in (300, 3000):
        at = domains.from_nodes(np.random.default_rng(0).random((count, 2), np.float32), np.ones(count, np.float32))
        held.clear()
        calls = sum(1 for _ in training.predict_at(model(), samples(1), at, nodes=100))
        assert calls == count // 100
        assert max(held) == 200  # the coordinates of a part


@pytest.mark.thorough
def test_samples_with_nodes_of_their_own_come_in_their_order():
    ragged = data.RaggedSamples(pairs())
    at = domains.monte_carlo(np.random.default_rng(0).random((12, 2), np.float32))
    operator = model()
    sampled = data.RaggedSamples(pairs(at=lambda i: at)).take([0, 1, 2])
    expected = np.stack(training.predict(operator, sampled, batch_size=1))
    for nodes in (12, 5):
        found, _ = joined(training.predict_at(operator, ragged.take([0, 1, 2]), at, nodes=nodes), (3, 12, 2))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_wrong_arguments_are_named_before_anything_is_computed():
    at = domains.box((5, 9))
    grid_only = operators.build(operators.FourierNeuralOperatorConfig(2, 2, 2, width=4, modes=2), rngs=nnx.Rngs(0))
    midpoints = data.Samples(samples().inputs, samples().inputs, domains.box((4, 4), rule="midpoint"))
    for error, message, arguments, options in (
        (NotImplementedError, "`at` is not the input's", (grid_only, midpoints, at), {}),
        (ValueError, "at must have dim=2", (model(), samples(), domains.interval(9)), {}),
        (ValueError, "at is a stack of domains", (model(), samples(), domains.stack([at, at])), {}),
        (ValueError, "nodes must be at least 1, got 0", (model(), samples(), at), {"nodes": 0}),
        (ValueError, "batch_size must be at least 1", (model(), samples(), at), {"batch_size": 0}),
    ):
        with pytest.raises(error, match=message):
            training.predict_at(*arguments, **options)


def test_an_integral_over_all_query_points_is_not_taken_in_parts():
    config = operators.ConservativeOperatorConfig(CONFIGS["latent"], integrals=(1.0, 2.0))
    wrapped, at = operators.build(config, rngs=nnx.Rngs(0)), domains.box((6, 6))
    with pytest.raises(ValueError, match=r"nodes=20 .* 36 query points.*ConservativeOperator.*fewer query points"):
        next(training.predict_at(wrapped, samples(), at, nodes=20))
    found, _ = joined(training.predict_at(wrapped, samples(), at), (3, 36, 2))
    np.testing.assert_allclose(np.einsum("bkc,k->bc", found, at.weights), [[1, 2]] * 3, rtol=1e-5)
