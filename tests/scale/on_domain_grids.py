"""The nodes of a grid are distributed over devices: spectral layers add their coefficients, and nothing is gathered."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, nn, spectral, testing, training
from jaxop.attention import patch_attention
from jaxop.data import Samples
from tests.scale.cases import assert_agree, assert_same_slopes, build, configs, fields, slopes, square, trained
from tests.scale.on_domain_devices import ALL, HERE, devices, gradients
from tests.scale.on_domain_devices import assert_agree as assert_close

pytestmark = pytest.mark.optax

OPERATORS = configs()
SHAPES = {  # grids that four devices divide by nodes or rows, or do not divide at all, or that have fewer rows
    (13,): (3,),
    (8, 6): (2, 3),
    (7, 5): (3, 2),
    (3, 8): (2, 4),
    (5, 4, 3): (2, 2, 1),
    (2, 2, 9): (1, 1, 4),
}


def mesh(samples, nodes):
    return training.MeshConfig(data=samples, domain=nodes).make(8)


def integral(shape, implementation=None, axis_name=None):
    return lambda values, multipliers: spectral.fourier_integral(
        values, multipliers, shape, implementation=implementation, axis_name=axis_name
    )


def over_nodes(shape):
    """The integral of functions on a whole grid, on four devices."""

    def call(values, multipliers):
        extra = -len(values) % 4
        values = jnp.pad(values, [(0, extra), *[(0, 0)] * (values.ndim - 1)], mode="edge")
        specs = {"mesh": devices(), "in_specs": (HERE, ALL), "out_specs": HERE}
        return jax.shard_map(integral(shape, axis_name="domain"), **specs)(values, multipliers)[: math.prod(shape)]

    return call


@pytest.mark.sample(2)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integrals_and_their_derivatives(shape):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(math.prod(shape), 2, 3)).astype(np.float32)
    multipliers = rng.normal(size=(*spectral.multiplier_shape(SHAPES[shape]), 2, 3, 4)).astype(np.float32)
    ours, theirs = (gradients(call)(values, multipliers) for call in (over_nodes(shape), integral(shape, "matrix")))
    assert_close(ours, theirs, 1e-6)


FOUR = {"patches": 4, "modes": 1}
H1 = {"momentum": nn.MomentumConfig("H1"), "norm": "pre"}
DERIVATIVES = {  # operator, shape of the grid, number of devices that share it, other fields
    "fno": ("fno", (8, 9), 4, {"layers": 2}),
    "fno-of-uneven-rows": ("fno", (7, 5), 4, {}),
    "fno-in-one-dimension": ("fno", (14,), 4, {}),
    "fano": ("fano", (8, 12), 2, {"smoothing_modes": 2, "layers": 2}),
    "fano-with-velocity": ("fano", (8, 8), 4, FOUR | H1),
    "vitno": ("vitno", (8, 8), 4, FOUR | {"kernel": nn.GaussianConfig()}),
    "vitno-with-velocity": ("vitno", (8, 12), 2, H1),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_an_operator_has_the_derivatives_of_one_device(name, x64):
    operator, shape, count, fields = DERIVATIVES[name]
    config = dataclasses.replace(OPERATORS[operator], dim=len(shape), param_dtype="float64", **fields)
    u = np.random.default_rng(0).normal(size=(2, math.prod(shape), 1))
    samples = Samples(u, np.cumsum(u, axis=1), domains.box(shape, rule="periodic"))
    ours, theirs = (slopes(config, samples, devices) for devices in (mesh(1, count), None))
    assert_same_slopes(ours, theirs)


@pytest.mark.parametrize("shape", [(2, 4), pytest.param((4, 2), marks=pytest.mark.thorough)], ids=str)
def test_an_fno_trains_as_on_one_device(shape):
    samples = fields(domains.box((9, 8), rule="midpoint"))
    shared, alone = (trained(build(OPERATORS["fno"]), samples, m, steps=5) for m in (mesh(*shape), None))
    assert_agree(shared, alone)
    messages = shared.messages
    assert messages.keys() == {"all-reduce"}
    *numbers, gradient = sorted(messages["all-reduce"])
    count = sum(leaf.size for leaf in jax.tree.leaves(shared.state.params))
    assert 4 * count <= gradient <= 4 * (count + 2)
    coefficients = 4 * 2 * (4 * 2) * 4 * 8 // shape[0]  # real and imaginary parts of 8 modes of 4 channels, float32
    assert numbers[-2:] == [coefficients] * 2  # of the layer, and of its derivative
    assert len(numbers) == 4 + 2  # four of the loss


@pytest.mark.parametrize("name", ["fano", pytest.param("vitno", marks=pytest.mark.thorough)])
def test_patches_train_as_on_one_device(name):
    shared, alone = (trained(build(OPERATORS[name]), fields(square(8)), m, steps=5) for m in (mesh(4, 2), None))
    assert_agree(shared, alone)
    assert shared.messages.keys() == {"collective-permute", "all-reduce"}
    *numbers, gradient = sorted(shared.messages["all-reduce"])
    count = sum(leaf.size for leaf in jax.tree.leaves(shared.state.params))
    assert 4 * count <= gradient <= 4 * (count + 2)
    smoothing = 2 * [4 * 2 * 8 * 2] if name == "vitno" else []  # of two samples: 8 modes of one channel
    assert numbers[4:] == smoothing


@pytest.mark.thorough
def test_a_grid_per_sample_and_a_run_with_errors_in_both_norms(tmp_path):
    grid = domains.box((6, 7), rule="midpoint")
    stacked = dataclasses.replace(fields(grid), domain=domains.stack([grid] * 16))
    sets = {"same": fields(grid, 5), "finer": fields(domains.box((11, 8), rule="periodic"), 3)}
    config = training.TrainingConfig(steps=2, batch_size=8, warmup_steps=1, eval_every=2)
    results = [
        training.fit(build(OPERATORS["fno"]), stacked, sets, config, run_dir=tmp_path / name, mesh=m, progress=False)
        for name, m in (("shared", mesh(2, 4)), ("alone", None))
    ]
    shared, alone = (result.errors for result in results)
    assert shared.keys() == alone.keys()
    assert {name.rpartition("/")[2] for name in shared} == {"l2", "h1"}
    for name, value in shared.items():
        assert value == pytest.approx(alone[name], rel=1e-5)


def compiled_gradient(side, count):
    """The gradient of two layers on a grid, compiled, and the bytes that each of some devices needs for it."""
    multipliers = jax.ShapeDtypeStruct((16, 8, 2, 16, 16), jnp.float32)

    def total(values, multipliers):
        layer = integral((side, side), axis_name="domain")
        out = layer(jnp.tanh(layer(values, multipliers)), multipliers)
        return jax.lax.psum(jnp.sum(out**2), "domain")

    local = jax.shard_map(total, mesh=devices(count), in_specs=(HERE, ALL), out_specs=ALL)
    sharding = jax.sharding.NamedSharding(devices(count), HERE)
    values = jax.ShapeDtypeStruct((side**2, 1, 16), jnp.float32, sharding=sharding)
    compiled = jax.jit(jax.grad(local, argnums=(0, 1))).lower(values, multipliers).compile()
    memory = compiled.memory_analysis()
    return compiled, memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def test_memory_is_divided_and_no_grid_is_gathered():
    (_, alone), (compiled, four) = (compiled_gradient(512, count) for count in (1, 4))
    assert 4 * four == pytest.approx(alone, rel=0.1)
    assert testing.collectives(compiled).keys() == {"all-reduce"}


def test_what_needs_all_nodes_is_refused_by_name(unchecked):
    values, multipliers = jnp.ones((10, 1)), jnp.ones((2, 2, 1, 1))
    for how, error, text in (
        ("fft", NotImplementedError, "implementation='fft' needs all nodes on one device"),
        (None, ValueError, r"k = 3 nodes that each of 4 devices has of a grid \(10,\), got \(10, 1\)"),
    ):
        with pytest.raises(error, match=text):
            jax.shard_map(
                integral((10,), how, "domain"), mesh=devices(), in_specs=ALL, out_specs=HERE, check_vma=False
            )(values, multipliers)
    with pytest.raises(NameError, match="domain"):
        integral((10,), axis_name="domain")(values, multipliers)
    nodes = domains.shard(domains.box((4, 4)), 4)
    with pytest.raises(ValueError, match=r"a spectral layer needs equal weights .*got rule='trapezoid' along axis 0"):
        spectral.check_grid(nodes)
    with pytest.raises(TypeError, match=r"a spectral layer needs a grid .*, got Shard"):
        spectral.check_grid(domains.shard(domains.monte_carlo(np.ones((8, 2), np.float32)), 4))
    nodes = domains.shard(domains.box((8, 8), rule="midpoint"), 4)
    cut = jax.shard_map(lambda nodes: domains.partition(nodes, (2, 2)), mesh=devices(), in_specs=HERE, out_specs=HERE)
    with pytest.raises(ValueError, match=r"patches\[0\] = 2 must be divisible by the 4 devices .*devices: \[1, 2\]"):
        cut(nodes)


def test_attention_between_patches_that_is_computed_again():
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 4, 2, 3)), jnp.float32)

    def slopes_of(attend, *tokens):
        return jax.grad(lambda *tokens: jnp.sum(attend(*tokens) ** 2), argnums=(0, 1, 2))(*tokens)

    attend = jax.checkpoint(functools.partial(patch_attention, axis_name="domain"))
    # as in training
    specs = {"mesh": devices(), "in_specs": HERE, "out_specs": HERE, "check_vma": False}
    shared = jax.jit(jax.shard_map(functools.partial(slopes_of, attend), **specs))
    assert_close(shared(*tokens), slopes_of(patch_attention, *tokens), 1e-6)
