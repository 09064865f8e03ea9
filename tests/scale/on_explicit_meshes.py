"""Explicit meshes, where the type of an array tells how it is divided: every model computes as on one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxop import domains, nn, operators, testing, transformers
from jaxop.attention import integral_attention, ring_attention
from tests.scale.cases import build, configs, square

SMALL = {"width": 4, "layers": 1}
TOKENS = {"heads": 2, "feedforward": 4}
GRID = square(8)
SCHWARZ = {"schwarz": nn.SchwarzAttentionConfig(subdomains=2)}
OPERATORS = configs() | {"schwarz": dataclasses.replace(configs()["tno"], **SCHWARZ)}
TRANSFORMERS = {
    "sequence": lambda rngs: transformers.SequenceTransformer(
        transformers.SequenceTransformerConfig(7, 8, **SMALL, **TOKENS), rngs=rngs
    ),
    "classifier": lambda rngs: transformers.SequenceClassifier(
        transformers.SequenceClassifierConfig(7, 8, classes=3, padding=0, **SMALL, **TOKENS), rngs=rngs
    ),
    "image": lambda rngs: transformers.VisionTransformer(
        transformers.VisionTransformerConfig(4, patch=2, classes=3, **SMALL, **TOKENS), rngs=rngs
    ),
}


def quick(names, chosen):
    """The names, with the marker of longer tests on those that are not chosen."""
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.thorough) for name in names]


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def on(mesh, tree, *axes):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))


def assert_agrees(call, model, batch, mesh, *, tolerance=1e-6):
    """Values and gradients for a divided batch; only gradients and domains' constants are summed between devices."""

    def both(model, batch):
        def total(model):
            outputs = call(model, batch)
            return jnp.sum(jnp.sin(outputs)), outputs

        (_, outputs), gradients = jax.value_and_grad(total, has_aux=True)(model)
        return outputs, gradients

    expected = jax.jit(both)(model, batch)
    program = jax.jit(both).lower(on(mesh, model), on(mesh, batch, "data")).compile()
    outputs, gradients = program(on(mesh, model), on(mesh, batch, "data"))
    assert testing.collectives(program).keys() == {"all-reduce"}
    assert outputs.sharding.spec[0] == "data"
    assert outputs.sharding.mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    for ours, theirs in zip(jax.tree.leaves((outputs, gradients)), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.max(np.abs(theirs))))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def operator(name):
    model = build(OPERATORS[name])
    statistics = {"input_mean": [0.1], "input_std": [2.0], "output_mean": [0.3], "output_std": [0.5]}
    return operators.Standardized(model, **statistics)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", quick(OPERATORS, ("tno", "fano", "fno")))
def test_operators(name, mesh):
    assert_agrees(lambda model, u: model(u, GRID), operator(name), normal(8, 64, 1), mesh, tolerance=1e-5)


@pytest.mark.parametrize("name", quick(TRANSFORMERS, ("classifier",)))
def test_transformers(name, mesh):
    model = TRANSFORMERS[name](nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, 7, (8, 8))
    batch = normal(8, 4, 4, 1) if name == "image" else tokens
    assert_agrees(lambda model, batch: model(batch), model, batch, mesh, tolerance=1e-5)


def test_copied_arrays_and_a_mesh_in_context(mesh):
    """The batch on one device or copied to all; the mesh set for the whole program; a model in a closure."""
    model, u = operator("fno"), normal(8, 64, 1)
    expected = jax.jit(lambda model, u: model(u, GRID))(model, u)
    copied = jax.jit(lambda model, u: model(u, GRID))(on(mesh, model), on(mesh, u))
    np.testing.assert_allclose(copied, expected, rtol=1e-5, atol=1e-6)
    with jax.set_mesh(mesh):
        inside = jax.jit(lambda u: model(u, GRID))(on(mesh, u, "data"))
        eager = model(on(mesh, u, "data"), GRID)
        named = model.operator(values=on(mesh, u, "data"), domain=GRID)
    np.testing.assert_allclose(named, model.operator(jnp.asarray(u), GRID), rtol=1e-5, atol=1e-6)
    for outputs in (inside, eager, named):
        assert outputs.sharding.spec[0] == "data"
    for outputs in (inside, eager):
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_divided_parameters_are_gathered(mesh):
    model, u = operator("fno"), normal(8, 64, 1)
    expected = jax.jit(lambda model, u: model(u, GRID))(model, u)
    placed = jax.tree.map(lambda leaf: on(mesh, leaf, *(["data"] if leaf.shape and leaf.shape[0] == 4 else [])), model)
    outputs = jax.jit(lambda model, u: model(u, GRID))(placed, on(mesh, u, "data"))
    assert any("data" in leaf.sharding.spec for leaf in jax.tree.leaves(nnx.state(placed)))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_a_domain_and_initial_values_for_every_function(mesh):
    config = operators.TransformerNeuralOperatorConfig(1, 1, initial_channels=2, decoder_layers=1, **SMALL, **TOKENS)
    model = operators.build(config, rngs=nnx.Rngs(0))
    times = jnp.sort(jax.random.uniform(jax.random.key(0), (8, 9)), axis=1)
    stack = jax.vmap(domains.from_samples)(times)
    at = domains.interval(5)

    def call(model, u, stack, initial):
        return model(u, stack, at=at, initial=initial)

    arguments = normal(8, 9, 1), stack, normal(8, 2)
    expected = jax.jit(call)(model, *arguments)
    for axes in ((), ("data",)):  # what is not divided itself is divided like the values
        placed = on(mesh, arguments[0], "data"), *(on(mesh, part, *axes) for part in arguments[1:])
        outputs = jax.jit(call)(on(mesh, model), *placed)
        assert outputs.sharding.spec[0] == "data"
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_dropout_draws_other_masks_on_every_device_and_counts_its_draws(mesh):
    config = operators.TransformerNeuralOperatorConfig(1, 1, dim=2, dropout=0.5, **SMALL, **TOKENS)
    model = on(mesh, operators.build(config, rngs=nnx.Rngs(0)))
    model.train()
    batch = on(mesh, np.broadcast_to(normal(1, 64, 1), (4, 64, 1)).copy(), "data")

    @jax.jit
    def twice(model, batch):
        copy = nnx.clone(model)
        return copy(batch, GRID), copy(batch, GRID)

    first, second = map(np.asarray, twice(model, batch))
    assert np.all(np.abs(np.diff(first, axis=0)).max(axis=(1, 2)) > 1e-3)
    assert np.all(np.abs(first - second).max(axis=(1, 2)) > 1e-3)


@pytest.mark.parametrize("implementation", quick(("dense", "chunked", "xla"), ("dense", "chunked")))
def test_integral_attention(implementation, mesh):
    """A batch by `jax.vmap`, with one weight per node for all."""
    weights = jnp.asarray(np.random.default_rng(1).uniform(1, 2, 12).astype(np.float32))

    def attend(weights, qkv):
        one = lambda q, k, v: integral_attention(q, k, v, weights, implementation=implementation)  # noqa: E731
        return jax.vmap(one)(*jnp.moveaxis(qkv, 1, 0))

    assert_agrees(attend, weights, normal(8, 3, 12, 2, 4), mesh)


@pytest.mark.thorough
def test_integral_attention_with_divided_queries(mesh):
    q, k, v = jnp.asarray(normal(3, 12, 2, 4))
    expected = integral_attention(q, k, v)
    outputs = jax.jit(integral_attention)(on(mesh, q, "data"), on(mesh, k), on(mesh, v))
    assert outputs.sharding.spec[0] == "data"
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [32, 30])
def test_ring_attention_inside_the_context_of_a_mesh(size):
    mesh = jax.make_mesh((2, 4), ("data", "domain"))
    q, k, v = jax.random.normal(jax.random.key(0), (3, size, 2, 4))
    weights = domains.interval(size).weights

    def energy(q, k, v, w):
        out = ring_attention(q, k, v, w, mesh=mesh)
        return jnp.sum(out**2), out

    expected = integral_attention(q, k, v, weights)
    gradient = jax.grad(lambda v: jnp.sum(integral_attention(q, k, v, weights) ** 2))(v)
    with jax.set_mesh(mesh):
        spec = PartitionSpec("domain") if size % 4 == 0 else PartitionSpec()
        own = [jax.sharding.reshard(array, spec) for array in (q, k, v, weights)]
        found, out = jax.jit(jax.grad(energy, argnums=2, has_aux=True))(*own)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(found, gradient, atol=2e-6)
