"""What operators see of the coordinates: translations commute, or functions on a torus stay the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, operators
from jaxop.operators.config import COORDINATES
from tests.scale.cases import configs

MODELS = configs()
TNO = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8, "decoder_layers": 1}


@functools.cache
def make(name, **options):
    kind, fields = type(MODELS[name]), vars(MODELS[name])
    return operators.build(kind(**(fields | options)), rngs=nnx.Rngs(0))


@jax.jit
def call(operator, values, domain):
    return operator(values, domain)


def field(shape=(8, 8)):
    return np.random.default_rng(0).normal(size=(*shape, 1))


def on_grid(operator, values, domain):
    return np.asarray(call(operator, values.reshape(-1, values.shape[-1]), domain)).reshape(values.shape)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("name", "shift"), [("fno", 3), ("fano", 4), ("vitno", 4), ("tno", 3), ("latent", 3), ("flow", 3)]
)
@pytest.mark.sample(3)
def test_an_operator_without_coordinates_commutes_with_shifts(name, shift, dtype, request):
    """All integers for FNO and attention between nodes, whole patches for operators between patches."""
    if dtype == np.float64:
        request.getfixturevalue("x64")
    domain, u = domains.box((8, 8), rule="periodic"), field().astype(dtype)
    for form, commutes in (("none", True), ("points", False)):
        operator = make(name, coordinates=form, param_dtype=np.dtype(dtype).name)
        shifted = on_grid(operator, np.roll(u, shift, axis=1), domain)
        error = np.abs(np.roll(on_grid(operator, u, domain), shift, axis=1) - shifted).max()
        scale = np.abs(shifted).max()
        assert (error < 40 * np.finfo(dtype).eps * scale) if commutes else (error > 1e-3 * scale)


@pytest.mark.parametrize("name", ["fno", pytest.param("tno", marks=pytest.mark.thorough)])
def test_periodic_coordinates_are_those_of_the_torus(name):
    """The box may lie anywhere and have any sides: the operator sees the same places on the torus."""
    u = field((8, 6))
    here = domains.box((8, 6), rule="periodic")
    there = domains.box((8, 6), lower=(-1.5, 4.0), upper=(0.5, 7.0), rule="periodic")
    outputs = {form: [on_grid(make(name, coordinates=form), u, d) for d in (here, there)] for form in COORDINATES}
    np.testing.assert_allclose(*outputs["periodic"], rtol=1e-4, atol=1e-6)
    assert np.abs(np.subtract(*outputs["points"])).max() > 1e-3
    assert np.abs(outputs["periodic"][0] - outputs["none"][0]).max() > 1e-4


def test_a_decoder_reads_the_torus_at_any_point():
    config = operators.TransformerNeuralOperatorConfig(1, 1, coordinates="periodic", **TNO)
    operator = operators.build(config, rngs=nnx.Rngs(0))
    domain, x = domains.interval(8, upper=2.0, rule="periodic"), np.random.default_rng(0).random((5, 1), np.float32)
    read = jax.jit(lambda x: operator(jnp.asarray(field((8,)), jnp.float32), domain, at=domains.monte_carlo(x)))
    np.testing.assert_allclose(read(x + 4.0), read(x), rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(read(x + 1.0)) - read(x)).max() > 1e-3


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_period_is_named():
    operator = make("tno", coordinates="periodic")
    cloud = domains.monte_carlo(np.random.default_rng(0).random((8, 2), np.float32))
    with pytest.raises(TypeError, match=r"coordinates='periodic' needs an input on a grid under rules.*got a PointCl"):
        operator(np.ones((8, 1), np.float32), cloud)
    line = domains.from_samples([0.0, 0.2, 1.0])
    flat = operators.build(operators.FlowNeuralOperatorConfig(1, 1, coordinates="periodic"), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="got a grid of given nodes; build it with"):
        flat(np.ones((3, 1), np.float32), line)
    with pytest.raises(ValueError, match="coordinates='perodic' is unknown: did you mean 'periodic'"):
        operators.FourierNeuralOperatorConfig(1, 1, coordinates="perodic")
    with pytest.raises(ValueError, match="decoder_layers=1 need coordinates, from which they start"):
        operators.LatentNeuralOperatorConfig(1, 1, decoder_layers=1, coordinates="none")
    for name in ("tno", "fno", "fano", "latent"):
        with pytest.raises(NotImplementedError, match=r"coordinates='periodic' of a .* needs all nodes"):
            dataclasses.replace(MODELS[name], coordinates="periodic").check_shares_nodes(2)
        dataclasses.replace(MODELS[name], coordinates="none").check_shares_nodes(2)
