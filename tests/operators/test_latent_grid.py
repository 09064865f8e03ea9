"""The latent grid: one operator on any nodes, with any operator of a grid inside, read at any points."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, nn, operators
from jaxop.operators import LatentGridOperator, LatentGridOperatorConfig
from tests.operators.quadrature import check_answers_anywhere, check_laws, order_on_uneven_nodes, perturbed

N = 12
SMALL = {"width": 8, "heads": 2, "feedforward": 8, "grid": 8}
PATCHES = {"width": 8, "heads": 2, "feedforward": 8, "layers": 1, "patches": 2, "modes": 2, "reference": 8}
PROCESSES = {
    "fno": operators.FourierNeuralOperatorConfig(8, 8, 1, width=4, layers=1, modes=3, reference=8, projection=8),
    "fano": operators.FourierAttentionNeuralOperatorConfig(8, 8, 1, **PATCHES),
    "fno2": operators.FourierNeuralOperatorConfig(8, 8, 2, width=4, layers=1, modes=2, reference=8),
    "vitno": operators.ViTNeuralOperatorConfig(8, 8, 1, smoothing_modes=2, **PATCHES),
}


@functools.cache
def make(process="fno", **options):
    config = LatentGridOperatorConfig(1, 2, **(SMALL | {"process": PROCESSES[process]} | options))
    return LatentGridOperator(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("process", "layers"),
    [("fno", 2), *(pytest.param(name, 1, marks=pytest.mark.thorough) for name in ("fano", "vitno"))],
)
def test_laws_of_a_quadrature(process, layers, x64):
    check_laws(perturbed(make(process, layers=layers), scale=0.2))


@pytest.mark.thorough
def test_self_convergence_on_uneven_nodes_has_the_order_of_the_rule(x64):
    assert order_on_uneven_nodes(perturbed(make(), scale=0.2)) == pytest.approx(2.0, abs=0.3)


def test_answers_anywhere_for_batches_and_stacks():
    check_answers_anywhere(make(), -1, 3)  # outside of the box too


@pytest.mark.thorough
def test_the_box_is_the_unit_of_length(x64):
    """An operator of another box is the same function of the place inside it."""
    operator = make()
    config = dataclasses.replace(operator.config, lower=(-3.0,), upper=(7.0,))
    moved = LatentGridOperator(config, rngs=nnx.Rngs(0))
    values = jnp.asarray(np.random.default_rng(0).normal(size=(N, 1)))
    run = jax.jit(lambda operator, domain: operator(values, domain))
    a, b = run(operator, domains.interval(N)), run(moved, domains.interval(N, lower=-3.0, upper=7.0))
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_data_decide_the_box_and_others_keep_it():
    cloud = domains.from_samples([-1.0, 0.0, 3.0])
    padded = domains.from_nodes(jnp.asarray([[0.0], [4.0], [99.0]]), jnp.asarray([1.0, 1.0, 0.0]))
    config = LatentGridOperatorConfig.for_data(cloud, in_channels=1, out_channels=1, others=[padded], upper=None)
    assert (config.lower, config.upper) == ((-1.25,), (4.25,))
    assert config.prepare(padded) is padded
    given = LatentGridOperatorConfig.for_data(cloud, in_channels=1, out_channels=1, lower=(-9.0,))
    assert (given.lower, given.upper) == ((-9.0,), (3.2,))
    with pytest.raises(ValueError, match=re.escape("reach from -1 to 3 along axis 0, outside the box")):
        LatentGridOperatorConfig(1, 1).prepare(cloud)
    with pytest.raises(ValueError, match="along axis 0, outside the box of the latent grid"):
        make()(jnp.ones((3, 1)), cloud)


@pytest.mark.parametrize("process", ["fno", "fano", "vitno"])
def test_every_process_runs_and_survives_json(process):
    operator = nnx.eval_shape(lambda: make.__wrapped__(process))
    domain = domains.interval(5)
    assert jax.eval_shape(lambda operator: operator(jnp.ones((3, 5, 1)), domain), operator).shape == (3, 5, 2)
    config = make.__wrapped__(process).config if process == "fno" else operator.config
    written = json.loads(json.dumps(operators.to_dict(config)))
    assert operators.from_dict(LatentGridOperatorConfig, written) == config
    assert type(operators.from_dict(LatentGridOperatorConfig, written).process) is type(PROCESSES[process])
    assert operators.model_of(config).name == "latent_grid"


@pytest.mark.thorough
def test_every_parameter_has_a_gradient():
    domain = domains.interval(6)
    graphdef, params = nnx.split(make(layers=2))

    @jax.jit
    @jax.grad
    def derivative(params):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(jnp.cos(3 * domain.points), domain)))

    for path, gradient in jax.tree_util.tree_leaves_with_path(derivative(params)):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), name
        assert np.any(gradient), name


def test_half_precision_is_the_dtype_of_the_output():
    operator = nnx.eval_shape(lambda: make.__wrapped__(dtype="bfloat16", process="fno"))
    out = jax.eval_shape(lambda operator: operator(jnp.ones((5, 1)), domains.interval(5)), operator)
    assert out.dtype == jnp.bfloat16


@pytest.mark.thorough
def test_cost_is_linear_in_the_nodes():
    """Operations that XLA counts, and memory beyond the arguments, at n and 2 n."""
    operator = make(dim=2, process="fno2", grid=16)

    def cost(n):
        domain = domains.box((n, 64), rule="midpoint")
        run = jax.jit(lambda operator, values: operator(values, domain)).lower(operator, jnp.ones((64 * n, 1)))
        compiled = run.compile()
        return np.asarray([compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes])

    assert (cost(128) <= 2.2 * cost(64)).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grid": 1}, ValueError, "grid must be an integer of at least 2 or a tuple of one per axis, got 1"),
        ({"grid": (4, 4)}, ValueError, "grid must be one number or dim = 1, one per axis, got (4, 4)"),
        (
            {"lower": (1.0,)},
            ValueError,
            "upper must be above lower along every axis, got lower=(1.0,) and upper=(1.0,)",
        ),
        ({"upper": (1.0, 2.0)}, TypeError, "upper must be a tuple of dim = 1 coordinates or None, got (1.0, 2.0)"),
        ({"radius": 0.0}, ValueError, "radius must be positive and finite, in cells of the latent grid, got 0.0"),
        ({"process": nn.LatentAttentionConfig()}, TypeError, "process must be None or the FourierNeuralOperatorConfig"),
        ({"width": 16}, ValueError, "give FourierNeuralOperatorConfig(16, 16, 1, ...), got {'in_channels': 8"),
        ({"process": PROCESSES["fano"], "grid": 9}, ValueError, "process.patches = 2 must divide the sides (9,)"),
        ({"layers": 0}, ValueError, "layers must be at least 1, got 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_configs(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        LatentGridOperatorConfig(1, 1, **(SMALL | {"process": PROCESSES["fno"]} | options))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"values": jnp.ones((5, 1))}, ValueError, "values must have shape (n, c_in) = (6, 1), or (b, n, c_in)"),
        ({"initial": jnp.ones(3)}, ValueError, "initial must be None"),
        ({"domain": domains.box((2, 3))}, ValueError, "domain must have dim=1 space dimensions like the config, got 2"),
        ({"at": domains.box((2, 3))}, ValueError, "at must have dim=1 space dimensions like the config, got 2"),
    ],
)
def test_bad_calls(call, error, message):
    arguments = {"values": jnp.ones((6, 1)), "domain": domains.interval(6)} | call
    with pytest.raises(error, match=re.escape(message)):
        make()(arguments.pop("values"), arguments.pop("domain"), **arguments)
