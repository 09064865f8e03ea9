"""Wrong calls are answered with argument, expectation, what was received, and where it helps the remedy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxop import data, distillation, domains, kernel_machines, kernels, nn, operators, training, transformers

pytestmark = pytest.mark.usefixtures("unchecked")

RNGS = nnx.Rngs(0)
TNO = operators.TransformerNeuralOperatorConfig
SMALL = {"width": 8, "heads": 2, "layers": 1}
CONFIG = training.TrainingConfig(steps=2, batch_size=4)
GAUSSIAN = kernels.Gaussian()
ROWS = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
MASKED = np.ma.masked_array([1.0], mask=[True])


class Pointwise(nnx.Linear):
    config = TNO(1, 1)

    def __call__(self, values, domain, *, at=None, initial=None):
        return super().__call__(values)


MODEL = Pointwise(1, 1, rngs=RNGS)


def samples():
    values = np.ones((8, 9, 1), np.float32)
    return data.Samples(values, values, domains.interval(9))


def fit(model=MODEL, valid=None, config=CONFIG, **options):
    options = {"run_dir": "unused", "progress": False} | options
    return training.fit(model, samples(), {} if valid is None else valid, config, **options)


def standardized(**statistics):
    plain = {"input_mean": [0.0], "input_std": [1.0], "output_mean": [0.0], "output_std": [1.0]}
    return operators.Standardized(**({"operator": MODEL} | plain | statistics))


def machine(**options):
    return kernel_machines.fit(**({"kernel": GAUSSIAN, "X": ROWS, "Y": ROWS, "responses": ROWS @ ROWS.T} | options))


TRAINING = [
    (lambda: fit(valid=samples()), TypeError, "valid must be a dict of validation sets by name, such as {'valid': sam"),
    (lambda: fit(valid={0: samples()}), TypeError, "every name in valid must be a string, such as '0', got int"),
    (lambda: fit(config={}), TypeError, "config must be a training.TrainingConfig, made by TrainingConfig(steps=..."),
    (
        lambda: fit(model=Pointwise),
        TypeError,
        "model must be a flax.nnx.Module, such as operators.build(config, rngs=n",
    ),
    (lambda: fit(model=None), TypeError, "got NoneType"),
    (lambda: fit(run_dir=None), TypeError, "run_dir must be the path of a directory, got NoneType"),
    (lambda: kernels.Gaussian(MASKED), TypeError, "inverse_width must hold numbers only, but 1 of its 1 entries"),
    (lambda: standardized(input_mean=MASKED), TypeError, "input_mean must hold numbers only, but 1 of its 1 entries"),
    (lambda: fit(run_dir=""), ValueError, "run_dir is empty; give the name of a directory"),
    (lambda: training.load_run(3), TypeError, "directory must be a path, got int"),
    (lambda: training.Checkpoints(3), TypeError, "directory must be a path, got int"),
    (lambda: fit(settings=[1]), TypeError, "settings must be a dict that describes the run, or None, got list"),
    (lambda: fit(loggers=training.JsonLines()), TypeError, "loggers must be a sequence of loggers"),
    (lambda: training.make_optimizer({}), TypeError, "config must be a training.TrainingConfig"),
    (
        lambda: training.init_state(MODEL, "adam", CONFIG),
        TypeError,
        "optimizer must be an optax.GradientTransformation",
    ),
    (lambda: training.make_step(MODEL, optax.sgd(1.0), CONFIG), TypeError, "graphdef must be the graph definition"),
    (lambda: training.evaluate(MODEL, ROWS), TypeError, "samples must be data.Samples"),
    (
        lambda: training.predict(MODEL, samples(), batch_size=2.5),
        TypeError,
        "batch_size must be an integer of at least",
    ),
    (lambda: training.score(MODEL, samples()), TypeError, "examples must be data.Examples"),
    (lambda: training.cross_entropy(jnp.ones((2, 3)), jnp.ones((2, 3), int)), ValueError, "labels must be numbers of"),
    (lambda: training.TrainingConfig.from_dict([1]), TypeError, "training must be a dict of the fields"),
]

SETTINGS = [
    ({"steps": True}, "steps=True must be an integer"),
    ({"steps": 10.0}, "steps=10.0 must be an integer"),
    ({"learning_rate": "0.1"}, "learning_rate='0.1' must be a number"),
    ({"learning_rate": True}, "learning_rate=True must be a number"),
    ({"clip_norm": None}, "clip_norm=None must be a number"),
    ({"ema_decay": "0.9"}, "ema_decay='0.9' must be a number"),
    ({"time_limit_s": "60"}, "time_limit_s='60' must be a number"),
    ({"time_limit_s": True}, "time_limit_s=True must be a number"),
]

SEED = "rngs must be flax.nnx.Rngs, such as rngs=nnx.Rngs(0) with a seed, got int"

MODELS = [
    (lambda: operators.build(TNO(1, 1, **SMALL), rngs=0), TypeError, SEED),
    (lambda: transformers.SequenceTransformer(transformers.SequenceTransformerConfig(5), rngs=0), TypeError, SEED),
    (
        lambda: operators.FourierNeuralOperator(TNO(1, 1), rngs=RNGS),
        TypeError,
        "config must be operators.FourierNeural",
    ),
    (
        lambda: operators.TransformerNeuralOperator({}, rngs=RNGS),
        TypeError,
        "operators.from_dict from a dict, got dict",
    ),
    (
        lambda: operators.TransformerNeuralOperator(TNO, rngs=RNGS),
        TypeError,
        "got the class TransformerNeuralOperatorC",
    ),
    (lambda: operators.from_dict(TNO, None), TypeError, "values must be a dict of the fields of TransformerNeuralOp"),
    (lambda: operators.from_dict(TNO, {"in_channels": 1}), TypeError, "but ['out_channels'] are missing"),
    (
        lambda: operators.from_dict("tno", {}),
        TypeError,
        "kind must be the class of a config, such as operators.CONFIGS",
    ),
    (lambda: TNO(1, 1, dropout="0.1"), TypeError, "dropout must be a number, got '0.1'"),
    (
        lambda: transformers.SequenceClassifierConfig(5, padding=0.0),
        TypeError,
        "padding must be a token, an integer, or",
    ),
    (lambda: standardized(operator=None), TypeError, "operator must be a neural operator with a config"),
    (
        lambda: standardized(input_mean=None),
        TypeError,
        "input_mean must be an array of numbers, one per channel, got N",
    ),
    (lambda: standardized(output_std=[0.0]), ValueError, "output_std[0] = 0.0 must be positive and finite"),
    (lambda: standardized(output_mean=[np.nan]), ValueError, "output_mean[0] = nan must be finite"),
    (lambda: data.normalize(jnp.ones((2, 1)), (0.0, 1.0)), TypeError, "statistics must be data.Statistics"),
    (lambda: data.statistics(np.ones((2, 9, 1)), None), TypeError, "domain must be a Domain, got NoneType"),
    (lambda: nn.Linear(0, 3, rngs=RNGS), ValueError, "width must be at least 1, got 0"),
    (lambda: nn.Linear(2, 3.0, rngs=RNGS), TypeError, "out must be an integer of at least 1, got 3.0"),
    (lambda: nn.Linear(2, 3, dtype="bf16", rngs=RNGS), ValueError, "dtype must be the name of a floating dtype"),
    (lambda: nn.LayerNorm(2.5), TypeError, "width must be an integer of at least 1, got 2.5"),
    (lambda: nn.FeedForward(8, 0, rngs=RNGS), ValueError, "hidden must be at least 1, got 0"),
    (lambda: nn.IntegralAttention(8, True, rngs=RNGS), TypeError, "heads must be an integer that divides the width 8"),
    (lambda: nn.IntegralAttention(8, 2, rngs=jax.random.key(0)), TypeError, "got PRNGKeyArray"),
    (lambda: nn.IntegralAttention(8, 2, kernel="fourier", rngs=RNGS), TypeError, "kernel must be a Kernel, such as"),
    (
        lambda: nn.IntegralAttention(8, 2, kernel=kernels.PerHead(GAUSSIAN), rngs=RNGS),
        ValueError,
        "every leaf of the kernel needs a leading axis of one length, the number of heads, but .inverse_width has",
    ),
    (lambda: nn.EncoderLayer(None, 8, 16, rngs=RNGS), TypeError, "attention must be a module that is called as"),
    (lambda: nn.EncoderLayer(MODEL, 8, 0, rngs=RNGS), ValueError, "feedforward must be at least 1, got 0"),
    (
        lambda: nn.SpectralConvolution(2, 3, 4, reference=8, rngs=RNGS),
        TypeError,
        "reference must be one number of nodes",
    ),
    (lambda: nn.SpectralConvolution(2, 3, 4, reference=(8, 8), rngs=0), TypeError, SEED),
    (lambda: nn.GaussianConfig(inverse_width="1"), TypeError, "inverse_width must be a number, got '1'"),
    (lambda: nn.FourierIntegralConfig().make(2, 0, rngs=RNGS), ValueError, "depth must be at least 1, got 0"),
    (lambda: nn.LearnedFeaturesConfig().make(2, 4, rngs=0), TypeError, SEED),
    (lambda: distillation.head_kernel(MODEL, 0), TypeError, "attention must be an nn.IntegralAttention"),
]

KERNELS = [
    (lambda: kernels.ExpDotProduct("a"), TypeError, "scale must be a real number or an array of real numbers, got 'a'"),
    (lambda: kernels.ExpDotProduct(depth=0), ValueError, "depth must be at least 1, got 0"),
    (lambda: kernels.Gaussian(depth=2.5), TypeError, "depth must be an integer of at least 1, got 2.5"),
    (lambda: kernels.Quadratic(None), TypeError, "offset must be a real number or an array of real numbers, got None"),
    (lambda: kernels.Intersection(None), TypeError, "scale must be a real number"),
    (lambda: kernels.InverseMultiquadric(-1.0), ValueError, "inverse_width must be positive and finite, got -1.0"),
    (
        lambda: kernels.Bilinear(jnp.ones(3)),
        ValueError,
        "matrix must have shape (d, d), or (h, d, d) with one per head",
    ),
    (lambda: kernels.Sum(GAUSSIAN), TypeError, "kernels must be a tuple of kernels"),
    (
        lambda: kernels.Projected(GAUSSIAN, None, None),
        TypeError,
        "query_map must be a real number or an array of real numbers",
    ),
    (lambda: kernels.from_pair("exp"), TypeError, "fn must be a function (query, key) -> number"),
    (
        lambda: machine(landmarks=2, rng_key=0),
        TypeError,
        "rng_key must be a random key such as jax.random.key(0), got 0",
    ),
    (lambda: machine(solver="cg", max_steps=True), TypeError, "max_steps must be an integer, got True"),
    (lambda: machine(solver="cg", tolerance="a"), TypeError, "tolerance must be a number, got 'a'"),
    (lambda: machine(progress=True), TypeError, "progress must be called with the number of steps"),
    (lambda: kernel_machines.choose_landmarks(jnp.asarray(ROWS), 2.5), TypeError, "count must be an integer, got 2.5"),
    (
        lambda: next(kernel_machines.split(ROWS, ROWS, ROWS @ ROWS.T, rng_key=None)),
        TypeError,
        "rng_key must be a random",
    ),
    (lambda: kernel_machines.GaussianDensity(bandwidth=None), TypeError, "bandwidth must be a real number or an array"),
]

CALLS = TRAINING + MODELS + KERNELS


@pytest.mark.parametrize(("call", "error", "message"), CALLS, ids=[message for _, _, message in CALLS])
def test_wrong_calls_are_answered(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_wrong_settings_of_a_training_are_answered(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        training.TrainingConfig(**settings)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("bf16", "bfloat16"),
        ("bfloat", "bfloat16"),
        ("f16", "float16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("f32", "float32"),
        ("fp32", "float32"),
        ("float", "float32"),
        ("double", "float64"),
    ],
)
def test_nicknames_of_dtypes_are_told_their_names(name, meant):
    for argument in ("dtype", "param_dtype"):
        with pytest.raises(ValueError, match=rf"^{argument} must .* got '{name}': did you mean '{meant}'\?"):
            TNO(1, 1, **{argument: name})


def test_integers_of_numpy_are_integers():
    three = np.int64(3)
    assert training.TrainingConfig(steps=three).steps == 3
    assert nn.Linear(three, three, rngs=RNGS).kernel.shape == (3, 3)
    assert kernels.FourierIntegral(2.0, np.int32(4)) == kernels.FourierIntegral(2.0, 4)
    assert nn.LearnedFeaturesConfig(features=three).features == 3
    assert TNO(1, 1, width=np.int16(8), heads=np.int8(2)).heads == 2
