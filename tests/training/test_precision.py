"""Half precision as a setting of training: what computes in it, and what must not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, nn, operators, training, transformers
from jaxop.training.precision import in_precision
from tests.jaxprs import equations

pytestmark = pytest.mark.optax

SMALL = {"width": 8, "layers": 2, "activation": "gelu_tanh"}
TOKENS = {"heads": 2, "feedforward": 8}
PATCHES = {"patches": 2, "modes": 2, "reference": 8}
OPERATORS = {
    "fno": operators.FourierNeuralOperatorConfig(1, 1, modes=2, reference=8, projection=8, **SMALL),
    "tno": operators.TransformerNeuralOperatorConfig(1, 1, dim=2, **SMALL, **TOKENS),
    "fano": operators.FourierAttentionNeuralOperatorConfig(1, 1, **SMALL, **TOKENS, **PATCHES),
    "vitno": operators.ViTNeuralOperatorConfig(1, 1, smoothing_modes=2, **SMALL, **TOKENS, **PATCHES),
    "latent": operators.LatentNeuralOperatorConfig(
        1, 1, dim=2, decoder_layers=1, local=nn.LocalAverageConfig(radius=0.1), **SMALL, **TOKENS
    ),
}
OPERATORS["latent-grid"] = operators.LatentGridOperatorConfig(
    1, 1, dim=2, grid=8, process=dataclasses.replace(OPERATORS["fno"], in_channels=8, out_channels=8), **SMALL, **TOKENS
)
SENSITIVE = ("exp", "log", "fft", "reduce_sum", "reduce_max", "cumsum", "rsqrt", "sqrt", "complex")
"""Primitives of scores, spectra, norms and sums, which lose their digits in half precision."""


def fields(count=8, side=8):
    u = np.random.default_rng(0).normal(size=(count, side * side, 1)).astype(np.float32)
    return data.Samples(u, np.cumsum(u, axis=1) / side, domains.box((side, side), rule="midpoint"))


def gradient(config, precision):
    """The function from parameters to loss and gradient, the parameters, and the model."""
    model = in_precision(operators.build(config, rngs=nnx.Rngs(0)), precision)
    graphdef, params, other = training.state.split_model(model, train=True)
    batch = fields()[np.arange(8)]

    def loss(params):
        model = nnx.merge(graphdef, params, other)
        return jnp.mean(training.relative_l2_loss(model, batch))

    return jax.value_and_grad(loss), params


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["fno", "tno", "fano"])
def test_gradients_are_those_of_float32_up_to_half_precision(name):
    results = {}
    for precision in (None, "bf16"):
        function, params = gradient(OPERATORS[name], precision)
        results[precision] = jax.jit(function)(params)
    (value, wide), (other, narrow) = results.values()
    assert abs(other - value) < 2e-2 * value
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(wide)))
    difference = jax.tree.map(lambda a, b: np.sum(np.square(a - b)), wide, narrow)
    distance = np.sqrt(sum(jax.tree.leaves(difference)))
    epsilon = float(jnp.finfo(jnp.bfloat16).eps)
    assert 0.01 * epsilon * norm < distance < 10 * epsilon * norm  # it differs, by a few roundings
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype("float32")}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", OPERATORS)
def test_scores_spectra_and_sums_are_in_float32(name):
    function, params = gradient(OPERATORS[name], "bf16")
    found = list(equations(function, params))
    half = {
        equation.primitive.name
        for equation in found
        if any(getattr(v.aval, "dtype", None) == jnp.bfloat16 for v in (*equation.invars, *equation.outvars))
    }
    assert not half & {*SENSITIVE}
    products = [e for e in found if e.primitive.name == "dot_general"]
    narrow = [e for e in products if e.invars[0].aval.dtype == e.invars[1].aval.dtype == jnp.bfloat16]
    assert narrow
    assert {e.outvars[0].aval.dtype for e in narrow} == {jnp.dtype("float32")}
    assert jnp.dtype("float64") not in {getattr(v.aval, "dtype", None) for e in found for v in e.outvars}


@pytest.mark.thorough
def test_parameters_of_the_model_are_shared_and_its_config_says_so():
    model = operators.build(OPERATORS["tno"], rngs=nnx.Rngs(0))
    changed = in_precision(model, "bf16")
    assert changed.config == dataclasses.replace(OPERATORS["tno"], dtype="bfloat16")
    assert (model.config, in_precision(model, None)) == (OPERATORS["tno"], model)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(changed, nnx.Param), nnx.state(model, nnx.Param))
    domain = domains.box((4, 4), rule="midpoint")
    built = operators.build(changed.config, rngs=nnx.Rngs(0))
    ours, theirs = (m(jnp.ones((16, 1)), domain) for m in (changed, built))
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == jnp.bfloat16


def test_a_model_inside_another_is_found():
    config = transformers.SequenceClassifierConfig(vocabulary=5, width=8, heads=2, layers=1, feedforward=8)
    inside = operators.build(config, rngs=nnx.Rngs(0))
    assert in_precision(inside, "bf16").config.dtype == "bfloat16"
    ones = np.ones(1)
    standardized = operators.Standardized(
        operators.build(OPERATORS["fno"], rngs=nnx.Rngs(0)),
        input_mean=ones, input_std=ones, output_mean=ones, output_std=ones,
    )  # fmt: skip
    changed = in_precision(standardized, "bf16")
    assert changed.config.dtype == "bfloat16"
    assert {skip.dtype for skip in changed.operator.skips} == {"bfloat16"}
    assert changed.operator.lift.dtype is None  # half precision would merge neighbouring nodes


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="precision='bf17' is unknown: did you mean 'bf16'"):
        training.TrainingConfig(precision="bf17")
    with pytest.raises(ValueError, match="remat='layer' is unknown: did you mean 'layers'"):
        training.TrainingConfig(remat="layer")
    with pytest.raises(ValueError, match=r"precision='bf16' needs a model of jaxop, .* got Linear"):
        in_precision(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), "bf16")
    half = operators.build(dataclasses.replace(OPERATORS["fno"], dtype="float16"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"precision='bf16' computes in bfloat16, .* dtype='float16'; leave one"):
        in_precision(half, "bf16")


@pytest.mark.thorough
def test_fit_trains_in_the_precision(tmp_path):
    config = training.TrainingConfig(steps=2, batch_size=4, precision="bf16", remat="layers", accumulate=2)
    model = operators.build(OPERATORS["fno"], rngs=nnx.Rngs(0))
    result = training.fit(model, fields(), {"same": fields()}, config, run_dir=tmp_path, progress=False)
    assert result.model.config.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves((result.state.params, result.state.opt_state))} <= {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    recorded = training.load_run(tmp_path).config["training"]
    assert (recorded["precision"], recorded["remat"]) == ("bf16", "layers")


def test_sums_of_the_gradient_are_not_rounded():
    """Each of 2¹² rows adds 1 to the gradient of the bias and 1 + 2⁻⁷ to that of the matrix; bfloat16 would stop."""
    layer = nn.Linear(1, 1, dtype="bfloat16", rngs=nnx.Rngs(0))
    x = jnp.full((4096, 1), 1 + 2.0**-7)
    gradient = nnx.grad(lambda layer: jnp.sum(layer(x).astype(jnp.float32)))(layer)
    assert gradient.bias[...] == 4096
    assert gradient.kernel[...] == 4096 + 32
    assert gradient.kernel.dtype == jnp.float32


@pytest.mark.fit
@pytest.mark.parametrize("name", ["fno", "fano", "tno"])
def test_the_error_after_training_is_that_of_float32(name):
    """Three seeds on lognormal Darcy flow at 16²: the mean errors differ by less than 2 %."""
    side = 16
    sizes = {"fno": {"modes": 6, "layers": 3, "projection": 32}, "fano": {"modes": 4}, "tno": {"width": 32}}[name]
    wide = {"width": 16} | ({} if name == "tno" else {"reference": side}) | sizes
    if name != "fno":
        wide |= {"feedforward": 2 * wide["width"]}
    config = dataclasses.replace(OPERATORS[name], **wide)
    common = {"seed": 0, "reference": 64, "coefficient": "lognormal"}
    train, test = (
        data.darcy_resolutions(resolutions=[side], samples=count, first=first, **common)[side]
        for count, first in ((256, 0), (64, 10**6))
    )
    errors = {}
    for precision in (None, "bf16"):
        for seed in range(3):
            settings = training.TrainingConfig(
                steps=400, batch_size=8, learning_rate=3e-3, warmup_steps=40, seed=seed, precision=precision
            )
            errors[precision, seed] = trained(config, settings, train, test)
    means = {precision: np.mean([errors[precision, seed] for seed in range(3)]) for precision in (None, "bf16")}
    assert abs(means["bf16"] / means[None] - 1) < 0.02, errors


def trained(config, settings, train, test):
    """The mean relative L2 error after training."""
    statistics = [data.statistics(values, train.domain) for values in (train.inputs, train.targets)]
    names = ("input_mean", "input_std", "output_mean", "output_std")
    values = [value for s in statistics for value in (s.mean, s.std)]
    operator = operators.build(config, rngs=nnx.Rngs(settings.seed))
    model = operators.Standardized(operator, **dict(zip(names, values, strict=True)))
    optimizer = training.make_optimizer(settings)
    graphdef, state = training.init_state(in_precision(model, settings.precision), optimizer, settings)
    step = training.make_step(graphdef, optimizer, settings)
    for t in range(settings.steps):
        state, _ = step(state, train[data.batch_indices(len(train), settings.batch_size, seed=settings.seed, step=t)])
    return float(np.mean(training.evaluate(nnx.merge(graphdef, state.params, state.other), test, batch_size=16).l2))
