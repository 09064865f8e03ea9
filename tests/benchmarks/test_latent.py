"""The formulas that the benchmark of latent attention compares with are those of the layers with equal weights."""

import jax
import numpy as np
import pytest
from benchmarks import latent
from flax import nnx

from jaxop import nn


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", latent.PRESETS)
def test_the_published_formula_is_the_layer_with_equal_weights(name):
    layer = latent.PRESETS[name](1, 1).attention.make(latent.WIDTH, latent.HEADS, rngs=nnx.Rngs(0))
    assert isinstance(layer, nn.LatentAttention)
    x = jax.random.normal(jax.random.key(0), (2, 256, latent.WIDTH))
    theirs = latent.published(name, layer, x)
    np.testing.assert_allclose(layer(x), theirs, rtol=2e-4, atol=2e-5)
    assert np.std(theirs) > 1e-2


def test_rows_and_slopes(monkeypatch, capsys):
    def measure(name, way, nodes, repeats):
        return {} if way == "torch" else {"seconds": nodes * (1e-6 if way == "jaxop" else 2e-6), "memory": "1 GB"}

    monkeypatch.setattr(latent, "measure", measure)
    latent.main(nodes=(16384, 32768), baseline_nodes=16384)
    text = capsys.readouterr().out
    assert "| flare, 16,384 | 16 ms | 1.0 µs | 1 GB | 33 ms | 0.50 | 1 GB | not run |" in text
    assert "flare 1.00, transolver 1.00" in text
    with pytest.raises(ValueError, match="name='gnot' is unknown"):
        latent.layer("gnot")
