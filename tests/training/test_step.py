"""One optimiser step: pure, compiled once, exact under accumulation."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxop import kernels, nn, operators, testing, training, transformers
from jaxop._pytree import leaf_names
from jaxop.training.optimizer import decays
from jaxop.training.state import split_model
from tests.training.cases import CONFIG, assert_same_bits, batch, leaves, samples, stacked_samples, tiny

PLAIN = dataclasses.replace(CONFIG, accumulate=1, warmup_steps=0, ema_decay=0.0, batch_size=8)


def prepare(config, *, optimizer=None, **options):
    optimizer = optimizer or training.make_optimizer(config)
    graphdef, state = training.init_state(tiny(**options), optimizer, config)
    return training.make_step(graphdef, optimizer, config), state


def test_is_compiled_once_and_donates():
    step, state = prepare(CONFIG)
    state, _ = step(state, batch())
    old, data = state, batch(seed=1)
    with testing.count_compilations() as compilations:
        state, _ = step(state, data)
    assert compilations() == 0
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state, old.ema)))


@pytest.mark.sample(1)
@pytest.mark.optax  # flax normalises in float32 or wider by implicit promotion
@pytest.mark.parametrize(("loss", "stacked"), [("l2", False), ("h1", True)])
def test_accumulated_gradient_is_that_of_the_whole_batch(x64, loss, stacked):
    data = (stacked_samples if stacked else samples)(8)[np.arange(8)]
    data = jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, data)
    results = {}
    for pieces in (1, 4):
        config = dataclasses.replace(PLAIN, accumulate=pieces, loss=loss)
        step, state = prepare(config, optimizer=optax.sgd(1.0), rate=0.0, dtype=jnp.float64)
        results[pieces] = step(state, data)
    chex.assert_trees_all_close(results[4][0].params, results[1][0].params, rtol=1e-10, atol=1e-12)
    for name in ("loss", "grad_norm"):  # the norm is a float32 monitor
        np.testing.assert_allclose(results[4][1][name], results[1][1][name], rtol=1e-6)


def test_metrics_are_those_of_the_loss():
    step, state = prepare(PLAIN, optimizer=optax.sgd(1.0), rate=0.0)
    before, data = jax.tree.map(jnp.copy, state), batch(8)
    after, metrics = step(state, data)
    errors = training.evaluate(tiny(rate=0.0), samples(8), batch_size=8)
    np.testing.assert_allclose(metrics["loss"], errors.l2.mean(), rtol=1e-6)
    moved = [np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True)]
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(sum(moved)), rtol=1e-5)
    assert metrics["finite"]
    assert metrics["culprit"] == -1


@pytest.mark.thorough
def test_dropout_depends_on_seed_and_step_only():
    def losses(step, state, offset=0):
        state = dataclasses.replace(jax.tree.map(jnp.copy, state), step=state.step + offset)
        values = []
        for _ in range(3):
            state, metrics = step(state, batch(8))
            values.append(float(metrics["loss"]))
        return values

    config = dataclasses.replace(PLAIN, learning_rate=1e-9, accumulate=2)
    step, state = prepare(config, rate=0.5)
    first = losses(step, state)
    assert losses(step, state) == first
    assert len(set(first)) == 3
    np.testing.assert_allclose(losses(step, state, offset=1)[:2], first[1:], rtol=1e-6)
    assert losses(*prepare(dataclasses.replace(config, seed=7), rate=0.5)) != first


def test_micro_batches_draw_different_masks():
    class Mask(nnx.Module):
        def __init__(self):
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
            self.gain = nnx.Param(jnp.ones(()))
            self.masks = nnx.Variable(jnp.zeros((2, 64)))

        def __call__(self, values, domain, *, at=None, initial=None):
            mask = self.dropout(jnp.ones(64))
            self.masks[...] = jnp.stack([self.masks[...][1], mask])
            return values * self.gain[...]

    optimizer = training.make_optimizer(CONFIG)
    graphdef, state = training.init_state(Mask(), optimizer, CONFIG)
    state, _ = training.make_step(graphdef, optimizer, CONFIG)(state, batch())
    first, second = state.other["masks"]
    assert set(np.unique(state.other["masks"])) == {0, 2}
    assert np.any(first != second)


def test_other_variables_are_carried_along():
    step, state = prepare(CONFIG)
    state, _ = step(state, batch())
    assert state.other["calls"] == CONFIG.accumulate
    _, fresh = prepare(CONFIG)
    assert_same_bits(state.other["dropout"]["rngs"]["key"], fresh.other["dropout"]["rngs"]["key"])


def test_average_follows_its_formula():
    step, state = prepare(CONFIG)
    ema = leaves(state.ema)
    for t in range(3):
        state, _ = step(state, batch())
        rate = 1 - min(CONFIG.ema_decay, (1 + t) / (10 + t))
        ema = {name: ema[name] + rate * (new - ema[name]) for name, new in leaves(state.params).items()}
    chex.assert_trees_all_close(leaves(state.ema), ema, rtol=1e-5, atol=1e-7)
    assert state.averaged is state.ema


def test_decay_spares_biases_and_norms():
    config = dataclasses.replace(PLAIN, weight_decay=0.5, clip_norm=0.0, schedule="constant", learning_rate=0.1)
    optimizer = training.make_optimizer(config)
    params = {"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((1, 2))}, "norm": {"scale": jnp.ones(2)}}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.05, rtol=1e-6)
    assert not updates["layer"]["bias"].any()
    assert not updates["norm"]["scale"].any()


WEIGHTS = {"kernel", "embedding", "positions", "multipliers", "score", "mobility", "latents", "matrices"}
WEIGHTS |= {f"params_{i}_{layer}" for i in (0, 1) for layer in ("inner", "outer")}
SMALL = {"width": 8, "heads": 2, "layers": 1}


def tno(kernel=None, **options):
    attention = nn.IntegralAttentionConfig(kernel=kernel or nn.ExpDotProductConfig())
    return operators.TransformerNeuralOperatorConfig(1, 1, **SMALL, attention=attention, **options)


def models():
    """A config of every operator, of every kernel and of every block."""
    for kernel in nn.KERNELS.values():
        yield operators.TransformerNeuralOperator, tno(kernel(), decoder_layers=1, initial_channels=2)
    for per in nn.PER:
        yield operators.TransformerNeuralOperator, tno(nn.FourierIntegralConfig(per=per))
    for block in nn.BLOCKS:
        momentum = nn.MomentumConfig(block=block)
        yield operators.TransformerNeuralOperator, tno(norm="pre", momentum=momentum)
    radii = nn.FourierIntegralConfig(per="channel")
    yield operators.ViTNeuralOperator, operators.ViTNeuralOperatorConfig(1, 1, **SMALL, kernel=radii)
    yield operators.TransformerNeuralOperator, tno(schwarz=nn.SchwarzAttentionConfig(kernel=radii))
    smooth = operators.FourierAttentionNeuralOperatorConfig(1, 1, **SMALL, smoothing_modes=2)
    yield operators.FourierAttentionNeuralOperator, smooth
    yield operators.FourierNeuralOperator, operators.FourierNeuralOperatorConfig(1, 1, width=8)
    yield operators.FlowNeuralOperator, operators.FlowNeuralOperatorConfig(1, 1, width=8, layers=1, feedforward=8)
    attention = nn.LatentAttentionConfig(4, "slices", "least_squares", 1, "point", "query")
    local = nn.LocalAverageConfig()
    latent = operators.LatentNeuralOperatorConfig(1, 1, **SMALL, decoder_layers=1, attention=attention, local=local)
    yield operators.LatentNeuralOperator, latent
    yield operators.LatentGridOperator, operators.LatentGridOperatorConfig(1, 1, **SMALL, grid=8)
    yield transformers.SequenceTransformer, transformers.SequenceTransformerConfig(5, **SMALL)
    yield transformers.SequenceClassifier, transformers.SequenceClassifierConfig(5, **SMALL)
    yield transformers.EncoderDecoderTransformer, transformers.EncoderDecoderTransformerConfig(5, 4, 3, **SMALL)
    yield transformers.VisionTransformer, transformers.VisionTransformerConfig(8, **SMALL)


def decayed(model) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of the others."""
    _, params, _ = split_model(model, train=True)
    flags = list(zip(leaf_names(params), jax.tree.leaves(decays(params)), strict=True))
    return {name for name, flag in flags if flag}, {name for name, flag in flags if not flag}


def test_weight_matrices_of_every_operator_decay_and_nothing_else():
    for kind, config in models():
        pulled, spared = decayed(nnx.eval_shape(lambda kind=kind, config=config: kind(config, rngs=nnx.Rngs(0))))
        assert pulled, config
        assert {name.split(".")[-1] for name in pulled} <= WEIGHTS, config
        assert not {name.split(".")[-1] for name in spared} & WEIGHTS, config


def test_weight_matrices_of_given_kernels_decay():
    def layer(kernel):
        return nn.IntegralAttention(8, 2, kernel=kernel, rngs=nnx.Rngs(0)).kernel

    maps = jnp.ones((4, 3))
    projected = kernels.Projected(kernels.FourierIntegral(jnp.ones(3)), maps, maps)
    assert decayed(layer(projected)) == ({"leaves.query_map", "leaves.key_map"}, {"leaves.kernel_radius"})
    bilinear = kernels.Bilinear(jnp.ones((2, 4, 4)), jnp.ones(2))
    assert decayed(layer(kernels.PerHead(bilinear))) == ({"leaves.matrix"}, {"leaves.offset"})


@pytest.mark.thorough
def test_per_head_radii_keep_their_size_under_weight_decay():
    """The gradient is 0, so that only the decay moves parameters."""
    config = dataclasses.replace(PLAIN, weight_decay=0.5, clip_norm=0.0, schedule="constant", learning_rate=0.1)
    optimizer = training.make_optimizer(config)
    model = tno(nn.FourierIntegralConfig(radius=2.0)).attention.make(8, 2, rngs=nnx.Rngs(0))
    _, params, _ = split_model(model, train=True)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert not updates["kernel"]["leaves"]["radius"].any()
    np.testing.assert_allclose(updates["query"]["kernel"], -0.05 * params["query"]["kernel"], rtol=1e-5)


def test_long_gradients_are_clipped():
    def moments(clip):
        optimizer = training.make_optimizer(dataclasses.replace(PLAIN, clip_norm=clip))
        params = {"kernel": jnp.zeros((2, 2))}
        with jax.numpy_dtype_promotion("standard"):
            _, state = optimizer.update({"kernel": jnp.full((2, 2), 50.0)}, optimizer.init(params), params)
        return optax.tree.get(state, "mu")["kernel"]

    np.testing.assert_allclose(moments(0.0), 5.0, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(moments(1.0)), 0.1, rtol=1e-6)


class Gain(nnx.Module):
    """One number."""

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(()))

    def __call__(self, values, domain, *, at=None, initial=None):
        return values * self.gain[...]


def gained(optimizer, steps=1):
    """The last state and the metrics of the steps of a model of one number."""
    graphdef, state = training.init_state(Gain(), optimizer, PLAIN)
    step, metrics = training.make_step(graphdef, optimizer, PLAIN), []
    for _ in range(steps):
        state, found = step(state, batch(8))
        metrics.append(found)
    return state, metrics


@pytest.mark.thorough
def test_reported_learning_rate_is_that_of_the_optimiser():
    falling = optax.linear_schedule(0.5, 0.0, 2)
    chained = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(falling))
    for optimizer, expected in (
        (training.make_optimizer(PLAIN), [training.learning_rate(PLAIN, t) for t in (0, 1)]),
        (optax.lion(3e-4), [None, None]),
        (optax.MultiSteps(optax.sgd(0.1), 2), [None, None]),
        (chained, [0.5, 0.25]),
    ):
        _, metrics = gained(optimizer, steps=2)
        assert [row.get("learning_rate") for row in metrics] == expected


def test_new_parameters_that_are_not_finite_are_reported():
    state, (metrics,) = gained(optax.scale(jnp.inf))
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert not np.isfinite(state.params["gain"])
    assert not metrics["finite"]
    assert metrics["culprit"] == 1  # after the gradient of the only parameter


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_parameters_are_refused(dtype):
    """Their sums stall: an average of 3 stays at 2.953, 1024 micro-batches lose half of the gradient."""
    model = tiny(dtype=dtype)
    message = rf"layers\.0\.bias is {dtype.dtype}, in which small updates vanish.*param_dtype=\"float32\""
    with pytest.raises(ValueError, match=message):
        training.init_state(model, training.make_optimizer(CONFIG), CONFIG)


@pytest.mark.parametrize(
    ("schedule", "warmup", "final", "expected"),
    [
        ("cosine", 0, 0.0, {0: 0.5, 50: 0.25, 100: 0.0, 1000: 0.0}),
        ("cosine", 20, 0.1, {0: 0.025, 19: 0.5, 20: 0.5, 60: 0.3, 100: 0.1}),
        ("constant", 10, 0.0, {0: 0.05, 10: 0.5, 99: 0.5}),
        ("cosine", 100, 0.0, {0: 0.005, 99: 0.5}),
    ],
)
def test_learning_rate_follows_its_schedule(schedule, warmup, final, expected):
    config = training.TrainingConfig(
        steps=100, learning_rate=0.5, schedule=schedule, warmup_steps=warmup, final_learning_rate=final
    )
    for step, rate in expected.items():
        np.testing.assert_allclose(training.learning_rate(config, step), rate, rtol=1e-5, atol=1e-7)


def test_model_is_left_alone():
    model = tiny()
    before = leaves(training.init_state(model, training.make_optimizer(CONFIG), CONFIG)[1])
    step, state = prepare(CONFIG)
    for _ in range(2):
        state, _ = step(state, batch())
    assert_same_bits(before, leaves(training.init_state(model, training.make_optimizer(CONFIG), CONFIG)[1]))


def test_weak_types_do_not_reach_the_state():
    model = tiny()
    model.layers[0].bias[...] = jnp.asarray(1.0) * jnp.zeros(8)
    model.norm.scale.set_value(jnp.full(8, 1.0).astype(float))
    _, state = training.init_state(model, training.make_optimizer(CONFIG), CONFIG)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)))


def test_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match=r"no nnx\.Param"):
        training.init_state(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), training.make_optimizer(CONFIG), CONFIG)
