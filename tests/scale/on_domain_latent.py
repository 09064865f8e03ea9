"""Latent tokens on all devices, the nodes distributed over them: what one device would compute, by sums alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, kernels, nn, operators, testing, training
from jaxop.attention import chunked, latent_attention, latent_averages
from jaxop.data import Samples
from tests.laws.cases import KERNELS, inputs
from tests.scale.cases import assert_agree, assert_same_slopes, build, configs, fields, slopes, trained
from tests.scale.on_domain_devices import ALL, HERE, devices, gradients
from tests.scale.on_domain_devices import assert_agree as assert_close

pytestmark = pytest.mark.optax


def features(matrix, x):
    return jnp.tanh(x @ matrix)


CASES = {str(case): case.make for case in KERNELS} | {
    "learned": lambda: kernels.LearnedFeatures(features, features, (jnp.ones((5, 3)), jnp.eye(5, 3))),
    "linear": kernels.DotProduct,
}
LATENT = dataclasses.replace(configs()["latent"], attention=nn.LatentAttentionConfig(latents=3))
DOMAIN = domains.box((11, 6))  # 66 nodes, which four devices do not divide
MAKE = operators.LatentNeuralOperatorConfig
SMALL = {"dim": 2, "width": 4, "heads": 2, "feedforward": 4}
PRESETS = {
    "flare": MAKE.flare(1, 1, layers=2, **SMALL),
    "lno": MAKE.lno(1, 1, **SMALL),
    "transolver": MAKE.transolver(1, 1, layers=1, **SMALL),
    "transolver_plus": MAKE.transolver_plus(1, 1, layers=1, **SMALL),
    "functional": MAKE.functional(1, 1, layers=1, **SMALL),
}


@pytest.fixture
def several_tiles_on_a_device(monkeypatch):
    monkeypatch.setattr(chunked, "QUERY_CHUNK", 8)
    monkeypatch.setattr(chunked, "KEY_CHUNK", 8)


def over_nodes(function, **options):
    """The function of a kernel, of latents and of the nodes of all devices, on four of them."""

    def local(kernel, latents, key, value, weights, mask):
        return function(latents, key, value, weights, kernel=kernel, mask=mask, axis_name="domain", **options)

    specs = (ALL, ALL, HERE, HERE, HERE, HERE)
    out = HERE if function is latent_attention else ALL
    return jax.shard_map(local, mesh=devices(), in_specs=specs, out_specs=out)


def agree(kernel, arrays, *, function=latent_averages, mask=None, tolerance=1e-6, **options):
    is_linear = isinstance(kernel, kernels.DotProduct | kernels.LearnedFeatures)
    alone_by = None if is_linear else "chunked"  # with the rounding of tiles, 1e-6 of the derivatives by itself

    def alone(kernel, *arrays):
        return function(*arrays, kernel=kernel, mask=mask, implementation=alone_by, **options)

    def shared(kernel, *arrays):
        return over_nodes(function, **options)(kernel, *arrays, mask)

    ours, theirs = gradients(shared)(kernel, *arrays), gradients(alone)(kernel, *arrays)
    assert_close(ours, theirs, tolerance)
    return ours


def arrays(dtype=jnp.float32):
    """Seven latents and 60 nodes, one of weight 0."""
    latents, key, value, weights = inputs(dtype, 1, 7, 60)
    weights[17] = 0
    return latents, key, value, weights


@pytest.mark.usefixtures("several_tiles_on_a_device")
@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("exp-dot-product-scaled", "nodes"),
        ("exp-dot-product-scaled", "slices"),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in (
                ("composed", "nodes"),
                ("compact-pair", "nodes"),  # some rows are empty
                ("intersection-per-head", "nodes"),
                ("learned", "nodes"),
                ("linear", "nodes"),
            )
        ),
    ],
)
def test_averages_over_the_nodes_of_all_devices(name, encode):
    agree(CASES[name](), arrays(), encode=encode)


@pytest.mark.thorough
@pytest.mark.usefixtures("several_tiles_on_a_device")
def test_double_precision_with_a_mask_and_the_way_back(x64):
    seen = jnp.arange(60) % 7 > 1
    for name, encode in (("exp-dot-product-scaled", "nodes"), ("gaussian-pair", "slices")):
        given = {"function": latent_attention, "mask": seen, "tolerance": 1e-12, "encode": encode}
        agree(CASES[name](), arrays(jnp.float64), **given)


@pytest.mark.thorough
def test_devices_without_weight_in_any_unit():
    """The derivatives in weights of 0 refer to the unit of all devices: exp(l − max) would be clipped in another."""
    latents, key, value, weights = arrays()
    weights[15:45] = 0
    *_, slopes = agree(kernels.ExpDotProduct(), (latents, key, value, weights * np.float32(1e-25)), tolerance=1e-5)
    assert np.all(slopes[15:45])
    out, *slopes = agree(kernels.ExpDotProduct(), (latents, key, value, 0 * weights))
    assert not any(np.any(leaf) for leaf in [out, *slopes])


@pytest.mark.thorough
def test_half_precision_is_summed_in_single():
    *functions, weights = arrays()
    agree(kernels.ExpDotProduct(), (*(jnp.asarray(a, jnp.bfloat16) for a in functions), weights), tolerance=2**-7)


def mesh(samples, nodes):
    return training.MeshConfig(data=samples, domain=nodes).make(8)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_derivatives_of_one_device(name, x64):
    config = PRESETS[name]
    attention = dataclasses.replace(config.attention, latents=3)
    config = dataclasses.replace(config, attention=attention, param_dtype="float64")
    u = np.random.default_rng(0).normal(size=(2, 66, 1))
    at = domains.box((3, 7)) if config.decoder_layers else None
    samples = Samples(u, u[:, :21] if at is not None else u, DOMAIN, at=at)
    ours, theirs = (slopes(config, samples, devices) for devices in (mesh(1, 4), None))
    assert_same_slopes(ours, theirs)


def test_the_operator_trains_as_on_one_device():
    shared, alone = (trained(build(LATENT), fields(DOMAIN), m, steps=5) for m in (mesh(2, 4), None))
    assert_agree(shared, alone)
    messages = shared.messages
    assert messages.keys() == {"all-reduce"}
    *numbers, gradient = sorted(messages["all-reduce"])
    count = sum(leaf.size for leaf in jax.tree.leaves(shared.state.params))
    assert 4 * count <= gradient <= 4 * (count + 2)
    # of 4 samples: the largest terms in 2 heads and the largest weight, then 3 means of 4 channels and their masses
    assert numbers[-3:] == [4 * 4 * (6 + 1), *2 * [4 * 4 * (3 * 4 + 6)]]
    assert len(numbers) <= 3 + 4  # of the loss


def compiled_gradient(n, count):
    """The gradient of a layer on n nodes, compiled, and the bytes that each of some devices needs for it."""
    layer = nn.LatentAttentionConfig(latents=16).make(32, 4, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)

    def total(state, x, weights):
        out = nnx.merge(graphdef, state)(x, weights, axis_name="domain")
        return jax.lax.psum(jnp.sum(out**2), "domain")

    rows = jax.sharding.PartitionSpec(None, "domain")
    specs = (ALL, rows, HERE)
    local = jax.shard_map(total, mesh=devices(count), in_specs=specs, out_specs=ALL)
    places = [jax.sharding.NamedSharding(devices(count), spec) for spec in (rows, HERE)]
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
        for shape, place in zip([(1, n, 32), (n,)], places, strict=True)
    ]
    compiled = jax.jit(jax.grad(local, argnums=(0, 1))).lower(state, *shapes).compile()
    memory = compiled.memory_analysis()
    return compiled, memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def test_memory_is_divided_and_nothing_is_gathered():
    n = 2**18
    (_, alone), (compiled, four) = (compiled_gradient(n, count) for count in (1, 4))
    assert 4 * four == pytest.approx(alone, rel=0.1)
    assert testing.collectives(compiled).keys() == {"all-reduce"}


def test_what_needs_all_nodes_is_refused_by_name():
    config = dataclasses.replace(LATENT, attention=nn.LatentAttentionConfig(implementation="dense"))
    with pytest.raises(NotImplementedError, match=r"the implementation 'dense' .*of a LatentNeuralOperator needs all"):
        config.check_shares_nodes()
    with pytest.raises(NotImplementedError, match="implementation='dense' needs all nodes on one device"):
        over_nodes(latent_averages, implementation="dense")(kernels.ExpDotProduct(), *arrays(), None)
    with pytest.raises(NameError, match="domain"):
        functools.partial(latent_averages, axis_name="domain")(*map(jnp.asarray, arrays()))
