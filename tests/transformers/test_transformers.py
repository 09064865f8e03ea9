"""Sequence and image transformers: causal, trained by cross-entropy, with any kernel."""

import dataclasses
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import data, kernels, nn, operators, training, transformers

KERNELS = [
    nn.ExpDotProductConfig(),
    nn.GaussianConfig(),
    *(nn.FourierIntegralConfig(per=per) for per in nn.PER),
    nn.EuclideanDistanceConfig(),
    nn.IntersectionConfig(),
    nn.QuadraticConfig(),
    nn.TruncatedExponentialConfig(degree=3, clip=True),
    nn.LearnedFeaturesConfig(features=3, hidden=5),
]
SMALL = {"width": 16, "heads": 2, "layers": 2, "feedforward": 16}


def sequence(kernel=KERNELS[0], seed=0, **options):
    attention = nn.IntegralAttentionConfig(kernel=kernel)
    config = transformers.SequenceTransformerConfig(11, 12, attention=attention, **(SMALL | options))
    return transformers.SequenceTransformer(config, rngs=nnx.Rngs(seed))


def vision(kernel=KERNELS[0], **options):
    attention = nn.IntegralAttentionConfig(kernel=kernel)
    config = transformers.VisionTransformerConfig(8, 3, 5, attention=attention, **(SMALL | options))
    return transformers.VisionTransformer(config, rngs=nnx.Rngs(0))


def classifier(**options):
    config = transformers.SequenceClassifierConfig(11, 12, **(SMALL | {"classes": 3, "padding": 0} | options))
    return transformers.SequenceClassifier(config, rngs=nnx.Rngs(0))


def translator(kernel=KERNELS[0], **options):
    attention = nn.IntegralAttentionConfig(kernel=kernel)
    config = transformers.EncoderDecoderTransformerConfig(11, 6, 5, attention=attention, padding=0, **(SMALL | options))
    return transformers.EncoderDecoderTransformer(config, rngs=nnx.Rngs(0))


SOURCE, TARGET = [3, 4, 5, 6, 0, 0], [1, 2, 3, 4, 5]
call = jax.jit(lambda model, tokens: model(tokens))
distances = jax.jit(lambda model, tokens: model.head_distances(tokens))


def replaced(tokens, column, token=9):
    """The tokens, with another one in a column."""
    return np.where(np.arange(np.shape(tokens)[-1]) == column, token, tokens)


def logits_of(model, tokens):
    return np.asarray(call(model, np.asarray(tokens)))


@pytest.mark.thorough
def test_a_classifier_sees_all_tokens_and_no_padding():
    model = classifier()
    tokens = np.asarray([SOURCE, SOURCE])
    logits = logits_of(model, [SOURCE, replaced(SOURCE, 3)])
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    np.testing.assert_allclose(logits_of(model, tokens)[0], logits_of(model, SOURCE[:4]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(distances(model, tokens), distances(model, tokens[:1]), rtol=1e-5)
    assert np.isfinite(logits_of(model, [0] * 4)).all()


@pytest.mark.thorough
def test_tokens_of_a_classifier_may_have_velocities():
    model = classifier(momentum=nn.MomentumConfig(block="H1"))
    np.testing.assert_allclose(logits_of(model, SOURCE), logits_of(model, SOURCE[:4]), rtol=1e-4, atol=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kernel", [nn.ExpDotProductConfig(), nn.LinearConfig()], ids=lambda k: k.name)
def test_a_decoder_sees_the_source_and_what_it_has_written(kernel):
    model = translator(kernel)
    tokens = [SOURCE + TARGET]
    logits = logits_of(model, tokens)
    assert logits.shape == (1, 5, 11)
    later = logits_of(model, replaced(tokens, 9))
    np.testing.assert_array_equal(later[0, :3], logits[0, :3])
    assert (np.abs(later - logits)[0, 3:].max(axis=-1) > 1e-4).all()
    other = logits_of(model, replaced(tokens, 3))
    assert (np.abs(other - logits)[0].max(axis=-1) > 1e-4).all()
    np.testing.assert_allclose(logits_of(model, SOURCE + TARGET[:2]), logits[0, :2], rtol=1e-5, atol=1e-6)


def test_padding_of_a_source_has_no_influence():
    model = translator()
    tokens = SOURCE + TARGET
    logits = logits_of(model, tokens)
    for table in (model.source.positions, model.target.positions):
        assert table[...].shape == (6, 16)
    positions = np.array(model.source.positions[...])
    positions[4:] = 7.0
    model.source.positions[...] = jnp.asarray(positions)
    np.testing.assert_allclose(logits_of(model, tokens), logits, rtol=1e-6)


@pytest.mark.fit
@pytest.mark.optax
def test_a_decoder_learns_to_copy(tmp_path):
    rng = np.random.default_rng(0)
    source = rng.integers(2, 11, (512, 6))
    inputs = np.concatenate([source, np.ones((512, 1), int), source[:, :4]], axis=1)
    pairs = data.Examples(inputs, source[:, :5])
    config = training.TrainingConfig(
        steps=500, batch_size=32, learning_rate=1e-2, warmup_steps=10, loss="cross_entropy"
    )
    model = translator(layers=1)
    result = training.fit(model, pairs, {}, config, run_dir=tmp_path, progress=False)
    assert np.mean(training.score(result.model, pairs).accuracy) > 0.9


@pytest.mark.sample(2)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.name}-{getattr(k, 'per', '')}")
def test_no_token_sees_a_later_one(kernel):
    model, tokens = sequence(kernel), [[1, 2, 3, 4, 5, 6]]
    changed, logits = logits_of(model, replaced(tokens, 4)), logits_of(model, tokens)
    np.testing.assert_array_equal(changed[0, :4], logits[0, :4])
    assert (np.abs(changed - logits)[0, 4:].max(axis=-1) > 1e-4).all()


@pytest.mark.thorough
def test_tokens_may_be_constants_of_a_program():
    model, tokens = sequence(layers=1), jnp.asarray(np.arange(6))
    np.testing.assert_allclose(jax.jit(lambda m: m(tokens))(model), model(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.optax
def test_another_block_is_noticed_when_restored(tmp_path):
    """H0 and H1 have the same parameters."""
    windows = data.text_windows(np.arange(12 * 8 + 1) % 7, 12)
    config = training.TrainingConfig(steps=2, batch_size=4, warmup_steps=1, loss="cross_entropy")
    model, other = (sequence(momentum=nn.MomentumConfig(block=block)) for block in ("H0", "H1"))
    training.fit(model, windows, {}, config, run_dir=tmp_path, settings={"model": model.config}, progress=False)
    run = training.load_run(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.restore(model)
    with pytest.warns(UserWarning, match="model differs from the one that was trained in momentum="):
        run.restore(other)


@pytest.mark.thorough
def test_bytes_are_tokens():
    """256 of them: a comparison in their own type would wrap."""
    windows = data.text_windows(np.frombuffer(b"hello world, this is a text", np.uint8), 6)
    config = transformers.SequenceTransformerConfig(256, 12, **(SMALL | {"layers": 1}))
    model = transformers.SequenceTransformer(config, rngs=nnx.Rngs(0))
    logits = model(windows.inputs)
    np.testing.assert_array_equal(logits, model(jnp.asarray(windows.inputs.astype(np.int32))))
    np.testing.assert_allclose(model.head_distances(windows.inputs[0]), model.head_distances(windows.inputs[:1]))


def test_batch_is_the_loop_and_shorter_sequences_are_prefixes():
    model, tokens = sequence(), np.asarray([[1, 2, 3, 4], [5, 6, 7, 8]])
    batch = logits_of(model, tokens)
    np.testing.assert_allclose(batch, [logits_of(model, t) for t in tokens], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits_of(model, tokens[:, :2]), batch[:, :2], rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_images_are_cut_into_patches():
    """A class token and patches without positions: permuting whole patches changes nothing."""
    model = vision()
    model.embedding.positions[...] = jnp.asarray(np.zeros(model.embedding.positions.shape))
    image = np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
    logits = logits_of(model, image)
    np.testing.assert_allclose(logits, logits_of(model, np.roll(image, 4, axis=0)), rtol=1e-4, atol=1e-5)
    assert np.abs(logits - logits_of(model, np.roll(image, 1, axis=0))).max() > 1e-3
    np.testing.assert_allclose(logits_of(model, image[None])[0], logits, rtol=1e-5, atol=1e-6)


@pytest.mark.fit
@pytest.mark.optax
@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[3]], ids=lambda k: k.name)
def test_learns_a_cycle_and_resumes(kernel, tmp_path):
    """Tokens that count modulo 7: perplexity 1 up to the first token of a window."""
    windows = data.text_windows(np.arange(12 * 40 + 1) % 7, 12)
    config = training.TrainingConfig(
        steps=80, batch_size=8, learning_rate=1e-2, loss="cross_entropy", eval_every=40, checkpoint_every=40
    )
    model = sequence(kernel, layers=1)
    result = training.fit(model, windows, {"same": windows}, config, run_dir=tmp_path, progress=False)
    assert training.score(result.model, windows).perplexity < 1.2
    assert result.errors["same/accuracy"] > 0.95
    assert result.errors["same/cross_entropy"] == pytest.approx(
        np.log(training.score(result.model, windows).perplexity)
    )
    again = training.fit(model, windows, {"same": windows}, config, run_dir=tmp_path, resume=True, progress=False)
    for ours, theirs in zip(jax.tree.leaves(result.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.thorough
@pytest.mark.optax
def test_micro_batches_have_the_gradient_of_the_batch():
    windows = data.text_windows(np.arange(12 * 8 + 1) % 7, 12)
    losses = []
    for pieces in (1, 4):
        config = training.TrainingConfig(steps=4, batch_size=8, accumulate=pieces, loss="cross_entropy")
        optimizer = training.make_optimizer(config)
        graphdef, state = training.init_state(sequence(layers=1), optimizer, config)
        step = training.make_step(graphdef, optimizer, config)
        state, first = step(state, windows[:8])
        losses.append([float(first["loss"]), float(first["grad_norm"]), float(step(state, windows[:8])[1]["loss"])])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_distance_of_heads():
    model, tokens = sequence(width=16, heads=4), np.asarray([[1, 2, 3, 4, 5]])

    @jax.jit
    def first_heads(model, tokens):
        layer, x = model.layers[0], model.embedding(tokens)
        return layer.attention.mix(layer.attention_norm(x), is_causal=True)[0]

    found, heads = np.asarray(distances(model, tokens)), np.asarray(first_heads(model, tokens))
    pairs = [
        np.sqrt(np.mean((heads[:, i] - heads[:, j]) ** 2, axis=-1)) for i, j in itertools.combinations(range(4), 2)
    ]
    np.testing.assert_allclose(found[0], np.mean(pairs), rtol=1e-5)
    assert found.shape == (2,)
    assert distances(vision(), np.ones((2, 8, 8, 3), np.float32)).shape == (2,)


def test_configs_survive_json():
    for kernel in KERNELS:
        config = sequence(kernel).config
        assert operators.from_dict(type(config), dataclasses.asdict(config)) == config
    vit = operators.ViTNeuralOperatorConfig(1, 1, kernel=nn.FourierIntegralConfig())
    assert operators.from_dict(type(vit), dataclasses.asdict(vit)) == vit
    with pytest.raises(ValueError, match="kernel='fuorier' is unknown: did you mean 'fourier'"):
        operators.from_dict(type(vit), dataclasses.asdict(vit) | {"kernel": {"name": "fuorier"}})
    with pytest.raises(ValueError, match="has no field 'widht': did you mean 'width'"):
        operators.from_dict(type(vit), {"widht": 3})


BAD = [
    (lambda: sequence()(jnp.ones(4)), TypeError, "tokens must be integers below 11"),
    (lambda: translator()(jnp.ones(6, int)), ValueError, "7 ≤ n ≤ 11"),
    (lambda: classifier(padding=11), ValueError, "padding must be a token, 0 to vocabulary - 1 = 10"),
    (lambda: sequence()(jnp.ones((2, 13), int)), ValueError, "1 ≤ n ≤ 12, the context of the model"),
    (lambda: sequence()(jnp.asarray([0, 11])), ValueError, "tokens must lie between 0 and vocabulary - 1 = 10"),
    (lambda: nn.IntegralAttentionConfig(kernel="fourier"), TypeError, "kernel must be the settings of a kernel"),
    (lambda: operators.ViTNeuralOperatorConfig(1, 1, kernel=kernels.Gaussian()), TypeError, "must be the settings"),
    (lambda: sequence(heads=3), ValueError, "heads must divide the width 16"),
    (lambda: vision()(jnp.ones((8, 9, 3))), ValueError, r"images must have shape \(y, x, c\) = \(8, 8, 3\)"),
    (lambda: vision(patch=3), ValueError, "patch must divide side = 8, got 3"),
    (lambda: nn.FourierIntegralConfig(power=1), ValueError, "power=1 is a signed kernel"),
    (lambda: nn.FourierIntegralConfig(per="heads"), ValueError, "per='heads' is unknown"),
    (lambda: nn.FourierIntegralConfig(radius=(0.3, 0.6)), TypeError, "radius must be a number or None"),
    (lambda: nn.GaussianConfig(inverse_width=-1.0), ValueError, "inverse_width must be positive"),
    (lambda: nn.IntersectionConfig(scale=0.0), ValueError, "scale must be positive"),
    (lambda: nn.QuadraticConfig(offset=np.inf), ValueError, "offset must be finite"),
    (lambda: nn.TruncatedExponentialConfig(degree=3), ValueError, "degree=3 is a signed kernel"),
    (lambda: nn.TruncatedExponentialConfig(degree=99), ValueError, "degree must lie between 1 and 20"),
    (lambda: nn.LearnedFeaturesConfig(features=0), ValueError, "features must be an integer of at least 1, got 0"),
    (lambda: nn.LearnedFeaturesConfig(activation="rleu"), ValueError, "activation='rleu' is unknown"),
    (
        lambda: nn.IntegralAttentionConfig(kernel=nn.LearnedFeaturesConfig(), implementation="dense"),
        ValueError,
        "linear attention has one implementation",
    ),
    (
        lambda: operators.ViTNeuralOperatorConfig(1, 1, kernel=nn.LearnedFeaturesConfig()),
        ValueError,
        "LearnedFeaturesConfig is signed",
    ),
    (
        lambda: transformers.SequenceTransformerConfig(11, attention=nn.FourierIntegralConfig()),
        TypeError,
        r"attention must be nn.IntegralAttentionConfig\(kernel=...\)",
    ),
    (lambda: sequence(dtype="flaot32"), ValueError, "dtype must be the name of a floating dtype"),
    (lambda: vision()(jnp.ones((0, 8, 8, 3))), ValueError, "b ≥ 1"),
    (lambda: sequence().head_distances(jnp.asarray([0, 300])), ValueError, "tokens must lie between"),
    (lambda: data.text_windows("hello", 2), TypeError, "np.frombuffer"),
    (lambda: training.evaluate(sequence(), data.text_windows(np.arange(9), 2)), TypeError, "training.score"),
    (lambda: training.score(sequence(), _labels(11)), ValueError, "labels must lie below the 11 classes"),
    (
        lambda: training.score(sequence(), data.text_windows(np.arange(5, 18), 12)),
        ValueError,
        "tokens must lie between",
    ),
    (lambda: training.score(vision(), _one_hot()), ValueError, "not one-hot vectors"),
]


def _labels(largest):
    return data.Examples(np.zeros((2, 4), int), np.full((2, 4), largest))


def _one_hot():
    return data.Examples(np.zeros((2, 8, 8, 3), np.float32), np.eye(5, dtype=int)[:2])


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input(call, error, message, unchecked):
    with pytest.raises(error, match=message):
        call()


def test_loss_and_data_must_fit(tmp_path):
    windows = data.text_windows(np.arange(100) % 7, 12)
    config = training.TrainingConfig(steps=1, batch_size=2)
    with pytest.raises(TypeError, match=r"train must be jaxop.data.Samples for loss='l2', got Examples"):
        training.fit(sequence(), windows, {}, config, run_dir=tmp_path, progress=False)
