"""Eager calls compile one program per shape, gradients included: the second call compiles nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, kernel_machines, kernels, nn, operators, schwarz, spectral, testing, transformers
from jaxop.attention import accumulate, finish, integral_attention, latent_averages, local_averages, patch_attention
from jaxop.schwarz import subdomain_attention
from tests.laws.cases import DISTINCT, SIGNED, exemplary, inputs, on_grid


def value_and_derivative(function, arguments):
    """The value of f, and the derivatives of Σ sin f in all arguments, evaluated eagerly."""

    def total(*arguments):
        out = function(*arguments)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(out)), out

    return jax.value_and_grad(total, argnums=tuple(range(len(arguments))), has_aux=True)(*arguments)


def assert_compiles_once(function, arguments):
    value_and_derivative(function, arguments)
    function(*arguments)
    with testing.count_compilations() as compilations:
        value_and_derivative(function, arguments)
        function(*arguments)
    assert compilations() == 0


# loops of their own over channels, functions of the user, and both inside sums and products
LOOPS = ("euclidean-distance", "fourier", "composed", "signed-composed")
FEW = ("euclidean-distance", "fourier", "compact-pair", "signed-composed")
ROWS = [(case, "chunked") for case in DISTINCT] + [(case, "dense") for case in DISTINCT if case.name in LOOPS]


@pytest.mark.thorough
@pytest.mark.parametrize(("case", "implementation"), exemplary(ROWS, FEW), ids=str)
def test_every_kernel(case, implementation):
    kernel = case.make()

    def attend(query, key, value, weights):
        options = {"implementation": implementation, "normalize": case not in SIGNED}
        return integral_attention(query, key, value, weights, kernel=kernel, **options)

    assert_compiles_once(attend, tuple(map(jnp.asarray, inputs())))


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def of_operator(config, domain):
    structure, state = nnx.split(operators.build(config, rngs=nnx.Rngs(0)))
    return lambda state, values: nnx.merge(structure, state)(values, domain), (state, normal(1, domain.size, 1))


SMALL = {"width": 4, "heads": 2, "layers": 1, "feedforward": 4}
PATCHES = {"patches": 2, "modes": 2, "reference": 8}
LINE, SQUARE = domains.interval(130), domains.box((8, 8), rule="midpoint")
CUT = schwarz.decompose(domains.interval(512), 4, 2, partition="ramp")


def tno(**options):
    return of_operator(operators.TransformerNeuralOperatorConfig(1, 1, dim=1, **SMALL, **options), LINE)


def sequence():
    model = transformers.SequenceTransformer(transformers.SequenceTransformerConfig(5, 130, **SMALL), rngs=nnx.Rngs(0))
    structure, state = nnx.split(model)
    return lambda state: nnx.merge(structure, state)(jnp.arange(130) % 5), (state,)


def machine(x, width):
    points = normal(12, 2)
    fitted = kernel_machines.fit(kernels.Gaussian(width), points, points + 1, points @ points.T)
    return fitted(x, x), fitted.pairs(x, x)


def logistic(width):
    points = normal(12, 2)
    signs = jnp.sign(points @ points.T)
    return kernel_machines.fit(kernels.Gaussian(width), points, points, signs, loss="logistic").coefficients


def attend(query, key, value, weights, **options):
    return integral_attention(query, key, value, weights, **options)


def density(x):
    return kernel_machines.FourierDensity(jnp.ones(20)).fit(normal(40, 20)).log_predict(x, block_size=16)


PROCESS = operators.FourierNeuralOperatorConfig(4, 4, 1, width=4, layers=1, modes=2, reference=8, projection=4)

CASES = {
    "xla": lambda: (functools.partial(attend, implementation="xla"), tuple(map(jnp.asarray, inputs()))),
    "causal": lambda: (functools.partial(attend, is_causal=True), tuple(map(jnp.asarray, inputs(n=130, m=130)))),
    "accumulate": lambda: (
        lambda u: finish(accumulate(u, u, u, kernel=kernels.Intersection(0.5))),
        (normal(20, 2, 4),),
    ),
    "fourier-matrix": lambda: (functools.partial(kernels.matrix, kernels.FourierIntegral()), (normal(5, 20),) * 2),
    "sinc-matrix": lambda: (functools.partial(kernels.matrix, kernels.FourierIntegral(1.0, 1)), (normal(5, 20),) * 2),
    "patch": lambda: (
        lambda u: patch_attention(u, u, u, kernel=kernels.FourierIntegral(0.5)),
        (normal(4, 6, 2, 3),),
    ),
    "subdomain": lambda: (lambda u: subdomain_attention(u, u, u, CUT), (normal(512, 2, 3),)),
    "subdomain-dense": lambda: (
        lambda u: subdomain_attention(u, u, u, CUT, kernel=kernels.Gaussian(), implementation="dense"),
        (normal(512, 2, 3),),
    ),
    "spectral": lambda: (
        lambda u, m: spectral.fourier_integral(u, m, (8, 8)),
        (normal(64, 2), normal(4, 2, 2, 2, 3)),
    ),
    "blocks": lambda: (lambda u: nn.in_blocks(lambda rows: jnp.tanh(2 * rows), u), (normal(9000, 2),)),
    "density": lambda: (density, (normal(50, 20),)),
    "machine": lambda: (machine, (normal(5, 2), jnp.asarray(0.7))),
    "logistic": lambda: (logistic, (jnp.asarray(0.7),)),
    "slices": lambda: (
        lambda u: latent_averages(u[:3], u, u, encode="slices", kernel=kernels.Gaussian()),
        (normal(9000, 2, 3),),
    ),
    "latent": lambda: of_operator(
        operators.LatentNeuralOperatorConfig.functional(1, 1, **SMALL, decoder_layers=1), LINE
    ),
    "latent-grid": lambda: of_operator(
        operators.LatentGridOperatorConfig(1, 1, **SMALL, grid=8, process=PROCESS), LINE
    ),
    "local-averages": lambda: (lambda u, r: local_averages(u, SQUARE, radius=r), (normal(64, 2, 4), jnp.asarray(0.1))),
    "grid-averages": lambda: (on_grid, (normal(5000, 2, 4), jnp.asarray(1.0))),
    "tno": tno,
    "tno-schwarz": lambda: tno(schwarz=nn.SchwarzAttentionConfig(kernel=nn.GaussianConfig())),
    "vitno": lambda: of_operator(
        operators.ViTNeuralOperatorConfig(1, 1, smoothing_modes=None, **SMALL, **PATCHES), SQUARE
    ),
    "fano": lambda: of_operator(operators.FourierAttentionNeuralOperatorConfig(1, 1, **SMALL, **PATCHES), SQUARE),
    "fno": lambda: of_operator(
        operators.FourierNeuralOperatorConfig(1, 1, width=4, layers=1, modes=2, reference=8, projection=4), SQUARE
    ),
    "sequence": sequence,
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CASES)
def test_everything_else(name):
    assert_compiles_once(*CASES[name]())


class Model:
    """What a pair function reads may change: the next call sees it."""

    rate: object = 0.5

    def pair(self, a, b):
        return -self.rate * jnp.sum((a - b) ** 2)


@pytest.mark.sample(1)
@pytest.mark.parametrize("rates", [(0.5, 2.0), (jnp.asarray(0.5), jnp.asarray(2.0))], ids=["numbers", "arrays"])
@pytest.mark.sample(1)
def test_a_pair_function_is_never_stale(rates):
    query, key, value, weights = map(jnp.asarray, inputs())
    model = Model()
    kernel = kernels.from_pair(model.pair, log=True)
    for rate in rates:
        model.rate = rate
        new = kernels.from_pair(lambda a, b: -float(model.rate) * jnp.sum((a - b) ** 2), log=True)  # nothing to reuse
        truth = attend(query, key, value, weights, kernel=new, implementation="dense")
        for implementation in ("chunked", "dense"):
            out = attend(query, key, value, weights, kernel=kernel, implementation=implementation)
            np.testing.assert_allclose(out, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.sample(1)
@pytest.mark.parametrize("rule", ["jvp", "vjp", "callback"])
def test_a_rule_of_the_user_is_never_stale(rule):
    """What a jaxpr does not show: derivatives that a function was given, and callbacks."""
    query, key, value, weights = map(jnp.asarray, inputs())
    scale = [1.0]

    def pair(a, b):
        factor, square = scale[0], jnp.sum((a - b) ** 2)
        if rule == "callback":
            result = jax.ShapeDtypeStruct((), square.dtype)
            host = functools.partial(jax.pure_callback, vmap_method="expand_dims")
            fixed = jax.lax.stop_gradient(square)
            return jax.lax.stop_gradient(host(lambda x: np.asarray(-factor * x), result, fixed)) - square
        negated = (jax.custom_jvp if rule == "jvp" else jax.custom_vjp)(lambda x: -x)
        if rule == "jvp":
            negated.defjvp(lambda primals, tangents: (negated(*primals), -factor * tangents[0]))
        else:
            negated.defvjp(lambda x: (-x, None), lambda _, cotangent: (-factor * cotangent,))
        return negated(square)

    kernel = kernels.from_pair(pair, log=True)

    def both(implementation):
        def loss(query):
            return jnp.sum(attend(query, key, value, weights, kernel=kernel, implementation=implementation) ** 2)

        return jax.value_and_grad(loss)(query)

    for factor in (1.0, 5.0):
        scale[0] = factor
        for chunked, dense in zip(both("chunked"), both("dense"), strict=True):
            np.testing.assert_allclose(chunked, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("radius", [[1.0, 0.5, 1.0, 0.5, 1.0], (1.0, 0.5, 1.0, 0.5, 1.0)], ids=["list", "tuple"])
def test_numbers_of_a_kernel_may_be_lists(radius, unchecked):
    arrays = tuple(map(jnp.asarray, inputs()))
    ours, theirs = (attend(*arrays, kernel=kernels.FourierIntegral(r)) for r in (radius, jnp.asarray(radius)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_numbers_of_a_kernel_are_no_part_of_the_program():
    query, key, value, weights = map(jnp.asarray, inputs())

    def attend(rate):
        return integral_attention(query, key, value, weights, kernel=kernels.Gaussian(rate), implementation="chunked")

    first = attend(0.5)
    with testing.count_compilations() as compilations:
        second = attend(0.7)
    assert compilations() == 0
    assert not np.allclose(first, second)


@pytest.mark.thorough
def test_under_other_transformations():
    """`jax.vmap`, second derivatives, and another precision, all eagerly."""
    arrays = tuple(map(jnp.asarray, inputs()))
    chunked, dense = (functools.partial(attend, implementation=i) for i in ("chunked", "dense"))
    stacked = [jnp.stack([a, 2 * a]) for a in arrays]
    np.testing.assert_allclose(jax.vmap(chunked)(*stacked)[0], dense(*arrays), rtol=1e-5, atol=1e-6)
    hessians = [
        jax.jacrev(jax.jacrev(lambda weights, f=f: jnp.sum(f(*arrays[:3], weights) ** 2)))(arrays[3])
        for f in (chunked, dense)
    ]
    # float32 rounds sums of terms as large as the largest entry
    np.testing.assert_allclose(*hessians, rtol=1e-4, atol=3e-7 * np.abs(hessians[1]).max())
    with jax.enable_x64(True):
        wide = tuple(map(jnp.asarray, inputs(jnp.float64)))
        assert chunked(*wide).dtype == jnp.float64
        np.testing.assert_allclose(chunked(*wide), dense(*wide), rtol=1e-12, atol=1e-13)
