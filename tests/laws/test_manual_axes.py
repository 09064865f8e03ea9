"""Everything runs inside `jax.shard_map` with its checks on, whichever of its arguments vary over the devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from jaxop import domains, kernel_machines, kernels, nn, operators, schwarz, spectral
from jaxop.attention import (
    accumulate,
    finish,
    integral_attention,
    latent_averages,
    patch_attention,
    spectral_patch_attention,
)
from jaxop.schwarz import random_factors, subdomain_attention
from tests.laws.cases import DISTINCT, SIGNED, inputs, on_grid

ONE, ALL = PartitionSpec("devices"), PartitionSpec()


def gradients(function, arguments, specs, devices=1):
    """The derivatives of Σ sin f in every argument, inside `jax.shard_map` and outside of it."""

    def differentiate(*arguments):
        def total(*arguments):
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(*arguments)))

        return jax.grad(total, argnums=tuple(range(len(arguments))))(*arguments)

    # a single device marks arrays as several do
    mesh = jax.make_mesh((devices,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(differentiate, mesh=mesh, in_specs=specs, out_specs=specs), differentiate


def assert_agrees(function, arguments, specs, devices=1):
    both = gradients(function, arguments, specs, devices)
    ours, theirs = map(jax.tree.leaves, jax.jit(lambda *a: tuple(f(*a) for f in both))(*arguments))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


QUERIES = (ONE, ALL, ALL, ALL, ALL)
KEYS = (ALL, ONE, ONE, ONE, ALL)
PARAMETERS = (ALL, ALL, ALL, ALL, ONE)


def attention_of(kernel, **options):
    """Attention as a function of queries, keys, values, weights and the leaves of the kernel, with an axis in front."""
    leaves, structure = jax.tree.flatten(kernel)

    def attend(query, key, value, weights, leaves):
        kernel = jax.tree.unflatten(structure, [leaf[0] for leaf in leaves])
        return integral_attention(query, key, value, weights, kernel=kernel, **options)

    return attend, [jnp.asarray(leaf)[None] for leaf in leaves]


@pytest.mark.sample(3)
@pytest.mark.parametrize("specs", [QUERIES, KEYS], ids=["queries", "keys"])
@pytest.mark.parametrize("implementation", ["dense", "chunked", "xla"])
@pytest.mark.sample(1)
def test_attention_and_its_derivatives(implementation, specs):
    attend, leaves = attention_of(kernels.ExpDotProduct(jnp.asarray(0.6)), implementation=implementation)
    assert_agrees(attend, (*map(jnp.asarray, inputs()), leaves), specs)


@pytest.mark.sample(12)
@pytest.mark.parametrize("specs", [QUERIES, KEYS, PARAMETERS], ids=["queries", "keys", "parameters"])
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
@pytest.mark.parametrize("case", DISTINCT, ids=str)
@pytest.mark.sample(4)
def test_every_kernel(case, implementation, specs):
    """Marks are checked when a program is traced; nothing is compiled."""
    options = {"implementation": implementation, "normalize": case not in SIGNED}
    attend, leaves = attention_of(case.make(), **options)
    arguments = (*map(jnp.asarray, inputs()), leaves)
    jax.make_jaxpr(gradients(attend, arguments, specs)[0])(*arguments)


@pytest.mark.parametrize("varies", ["query", "rate"])
def test_what_a_pair_function_closes_over_may_vary(varies):
    query, key, value, weights = map(jnp.asarray, inputs())

    def attend(query, rate):
        kernel = kernels.from_pair(lambda a, b: -rate[0] * jnp.sum((a - b) ** 2), log=True)
        return integral_attention(query, key, value, weights, kernel=kernel, implementation="chunked")

    specs = (ONE, ALL) if varies == "query" else (ALL, ONE)
    assert_agrees(attend, (query, jnp.asarray([0.4])), specs)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def of_operator(config, domain):
    """An operator as a function of values and parameters, which have an axis in front."""
    structure, state = nnx.split(operators.build(config, rngs=nnx.Rngs(0)))

    def call(values, leading):
        model = nnx.merge(structure, jax.tree.map(lambda leaf: leaf[0], leading))
        return model(values, domain)

    return call, normal(2, domain.size, 1), jax.tree.map(lambda leaf: leaf[None], state)


def of_function(function, values, parameter):
    return (lambda values, leading: function(values, leading[0])), values, parameter[None]


SCALE = normal() ** 2
SMALL = {"width": 4, "heads": 2, "layers": 1, "feedforward": 4}
PATCHES = {"patches": 2, "modes": 2, "reference": 8}
LINE, SQUARE = domains.interval(64), domains.box((8, 8), rule="midpoint")
CUT = schwarz.decompose(LINE, 4, 2, partition="ramp", coarse="partition")
BAND = spectral.Band((8,), (2,))


def tno(**options):
    return of_operator(operators.TransformerNeuralOperatorConfig(1, 1, dim=1, **SMALL, **options), LINE)


def vitno(**options):
    return of_operator(
        operators.ViTNeuralOperatorConfig(1, 1, smoothing_modes=2, **SMALL, **PATCHES, **options), SQUARE
    )


def transformed(implementation):
    return of_function(
        lambda u, m: spectral.fourier_integral(u, m, (8, 8), implementation=implementation),
        normal(64, 2),
        normal(4, 2, 2, 2, 3),
    )


def machine(x, width):
    points = normal(12, 2)
    fitted = kernel_machines.fit(kernels.Gaussian(width), points, points + 1, points @ points.T)
    return fitted(x, x)


CASES = {
    "tno": lambda: tno(attention=nn.IntegralAttentionConfig(implementation="chunked"), decoder_layers=1),
    "tno-schwarz": lambda: tno(schwarz=nn.SchwarzAttentionConfig()),
    "vitno": vitno,
    "vitno-fourier": lambda: vitno(kernel=nn.FourierIntegralConfig()),
    "fano": lambda: of_operator(operators.FourierAttentionNeuralOperatorConfig(1, 1, **SMALL, **PATCHES), SQUARE),
    "fno": lambda: of_operator(
        operators.FourierNeuralOperatorConfig(1, 1, width=4, layers=1, modes=2, reference=8, projection=4), SQUARE
    ),
    "latent": lambda: of_operator(
        operators.LatentNeuralOperatorConfig.functional(1, 1, **SMALL, decoder_layers=1), LINE
    ),
    "latent-local": lambda: of_operator(
        operators.LatentNeuralOperatorConfig(1, 1, **SMALL, local=nn.LocalAverageConfig()), LINE
    ),
    "latent-grid": lambda: of_operator(operators.LatentGridOperatorConfig(1, 1, **SMALL, grid=8), LINE),
    "grid-averages": lambda: of_function(on_grid, normal(5000, 2, 4), SCALE),
    "slices": lambda: of_function(
        lambda u, scale: latent_averages(
            scale * u[:3], u, u, encode="slices", kernel=kernels.Gaussian(scale), implementation="chunked"
        ),
        normal(5000, 2, 4),
        SCALE,
    ),
    "patch": lambda: of_function(
        lambda u, scale: patch_attention(u, scale * u, u, implementation="chunked"), normal(4, 6, 2, 3), SCALE
    ),
    "spectral-patch": lambda: of_function(
        lambda u, scale: spectral_patch_attention(u, scale * u, u, BAND, 0.1), normal(2, BAND.size, 4, 2, 3), SCALE
    ),
    "subdomain": lambda: of_function(
        lambda u, scale: subdomain_attention(u, u, u, CUT, kernel=kernels.Gaussian(scale)),
        normal(64, 2, 4),
        SCALE,
    ),
    "subdomain-dense": lambda: of_function(
        lambda u, scale: subdomain_attention(u, scale * u, u, CUT, implementation="dense"), normal(64, 2, 4), SCALE
    ),
    "schwarz-apply": lambda: of_function(
        lambda u, scale: schwarz.apply(scale * u, CUT, random_factors(jax.random.key(0), CUT, 2)), normal(64, 1), SCALE
    ),
    "fft": lambda: transformed("fft"),
    "matrix": lambda: transformed("matrix"),
    "blocks": lambda: of_function(lambda u, s: nn.in_blocks(lambda x: jnp.tanh(s * x), u), normal(5000, 2), SCALE),
    "accumulate": lambda: of_function(
        lambda u, s: finish(accumulate(u, u, u, kernel=kernels.Intersection(s))), normal(20, 2, 4), SCALE
    ),
    "density": lambda: of_function(
        lambda x, s: kernel_machines.FourierDensity(s).fit(normal(40, 2)).log_predict(x, block_size=16),
        normal(50, 2),
        SCALE,
    ),
    "machine": lambda: of_function(machine, normal(5, 2), SCALE),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("specs", [(ONE, ALL), (ALL, ONE)], ids=["data", "parameters"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.sample(1)
def test_everything_else(name, specs):
    function, *arguments = CASES[name]()
    jax.make_jaxpr(gradients(function, arguments, specs)[0])(*arguments)


@pytest.mark.thorough
def test_four_devices():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", f"from {__name__} import on_four_devices; on_four_devices()"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def on_four_devices():
    attend, leaves = attention_of(kernels.Gaussian(jnp.asarray(0.6)), implementation="chunked")
    arguments = *map(jnp.asarray, inputs(n=20, m=36)), [jnp.broadcast_to(leaf, (4,)) for leaf in leaves]
    assert_agrees(attend, arguments, QUERIES, devices=4)
