"""Outputs at query points on eight devices: those of one device."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, operators, training
from tests.data.ragged_cases import pairs


def mesh(**sizes):
    return training.MeshConfig(**sizes).make(8)


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 4, "domain": 2},
        *(pytest.param(sizes, marks=pytest.mark.thorough) for sizes in ({"data": 8}, {"data": 4, "model": 2})),
    ],
    ids=str,
)
def test_devices_share_samples_or_query_points(sizes):
    assert jax.device_count() == 8
    config = operators.LatentNeuralOperatorConfig(2, 2, 2, width=8, heads=2, layers=1, decoder_layers=1)
    model = operators.build(config, rngs=nnx.Rngs(0))
    u = np.random.default_rng(1).normal(size=(3, 16, 2)).astype(np.float32)
    at = domains.box((5, 9))
    for samples in (data.Samples(u, u, domains.box((4, 4))), data.RaggedSamples(pairs()[:3])):
        for nodes in (45, 4):
            whole, shared = (
                np.concatenate(
                    [
                        outputs.ravel()
                        for _, _, outputs in training.predict_at(model, samples, at, batch_size=8, nodes=nodes, mesh=m)
                    ]
                )
                for m in (None, mesh(**sizes))
            )
            np.testing.assert_allclose(shared, whole, rtol=1e-5, atol=1e-5)
