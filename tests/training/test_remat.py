"""Recomputed layers: the same loss and gradient from less memory."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxop import nn, operators, training
from jaxop._remat import recomputed_layers
from tests.training.test_precision import OPERATORS, fields

pytestmark = pytest.mark.optax

DEEP = {  # deep enough that the activations outweigh the largest temporary arrays of one layer
    "fno": dataclasses.replace(OPERATORS["fno"], layers=8),
    "tno": dataclasses.replace(OPERATORS["tno"], layers=20, dropout=0.1),
}


def compiled_step(config, *, remat, accumulate=1):
    settings = training.TrainingConfig(steps=1, batch_size=8, accumulate=accumulate, remat=remat)
    optimizer = optax.sgd(0.1)
    graphdef, state = training.init_state(operators.build(config, rngs=nnx.Rngs(0)), optimizer, settings)
    batch = fields(8, side=32)[np.arange(8)]
    step = training.make_step(graphdef, optimizer, settings).lower(state, batch).compile()
    return step, state, batch


@pytest.mark.parametrize(("name", "accumulate"), [("fno", 2), pytest.param("tno", 1, marks=pytest.mark.fit)])
@pytest.mark.thorough
def test_a_step_takes_less_memory_and_does_the_same(name, accumulate):
    results, sizes = [], []
    for remat in (None, "layers"):
        step, state, batch = compiled_step(DEEP[name], remat=remat, accumulate=accumulate)
        sizes.append(step.memory_analysis().temp_size_in_bytes)
        state, metrics = step(state, batch)
        results.append((metrics["loss"], metrics["grad_norm"], state.params, state.other))
    assert sizes[1] < 0.8 * sizes[0]
    ours, theirs = (jax.device_get(jax.tree.leaves(_plain(result))) for result in results)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def _plain(tree):
    """Keys of random streams as numbers."""

    def one(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(one, tree)


@pytest.mark.thorough
def test_layers_of_other_structure_run_one_by_one():
    layers = [nn.FlowLayer(4, hidden, rngs=nnx.Rngs(hidden)) for hidden in (4, 8)]
    x = jnp.ones((1, 3, 4))
    with recomputed_layers() as found:
        out = nn.run_layers(layers, x)
    assert found.layers == 2
    np.testing.assert_allclose(out, nn.run_layers(layers, x), rtol=1e-6)
    with recomputed_layers() as found:
        assert nn.run_layers([], x) is x
    assert found.layers == 0


def test_random_streams_advance_as_without():
    def run(recomputed):
        streams = nnx.Rngs(0)
        layers = [nn.EncoderLayer(nnx.Linear(4, 4, rngs=streams), 4, 4, dropout=0.5, rngs=streams) for _ in range(3)]
        with recomputed_layers() if recomputed else contextlib.nullcontext():
            outputs = [nn.run_layers(layers, jnp.ones((8, 4))) for _ in range(2)]
        return outputs, [layer.dropout.rngs.count[...] for layer in layers]

    (first, second), counts = run(True)
    for ours, theirs in zip((first, second), run(False)[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert np.abs(first - second).max() > 0.1
    assert counts == run(False)[1] == [4, 4, 4]


def test_a_model_without_layers_is_refused():
    settings = training.TrainingConfig(batch_size=4, remat="layers")
    optimizer = training.make_optimizer(settings)
    graphdef, state = training.init_state(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), optimizer, settings)
    step = training.make_step(graphdef, optimizer, settings, loss=lambda model, batch: model(batch)[:, 0] ** 2)
    with pytest.raises(ValueError, match=r"remat='layers' needs layers that run by .*, but Linear has none"):
        step.lower(state, jnp.ones((4, 1)))
