"""The encoder layer against its two formulas; dropout that applies; bad input."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import nn, operators, transformers

WIDTH = 6


def make(norm="post", **options):
    """A layer whose attention mixes the nodes: x ↦ factor · mean(x)."""

    class Mean(nnx.Module):
        def __init__(self):
            self.factor = nnx.Param(jnp.asarray(0.7))

        def __call__(self, x, shift, *, sign=1):
            return sign * self.factor[...] * jnp.broadcast_to(x.mean(0, keepdims=True), x.shape) + shift

    layer = nn.EncoderLayer(Mean(), WIDTH, 5, norm=norm, rngs=nnx.Rngs(0), **options)
    # parameters that leave no symmetry
    for i, leaf in enumerate(jax.tree.leaves(nnx.state(layer, nnx.Param), is_leaf=lambda v: isinstance(v, nnx.Param))):
        noise = np.random.default_rng(i).normal(size=leaf.shape)
        leaf[...] = jnp.asarray(np.asarray(leaf[...]) + 0.1 * noise.astype(leaf.dtype))
    return layer


call = nnx.jit(lambda layer, x: layer(x))


def clear(param):
    param[...] = jnp.asarray(np.zeros(param.shape))


def by_hand(layer, x, *args, **kwargs):
    def feedforward(x):
        return layer.feedforward.outer(nn.gelu(layer.feedforward.inner(x)))

    if layer.norm == "post":
        x = layer.attention_norm(x + layer.attention(x, *args, **kwargs))
        return layer.feedforward_norm(x + feedforward(x))
    x = x + layer.attention(layer.attention_norm(x), *args, **kwargs)
    return x + feedforward(layer.feedforward_norm(x))


@pytest.mark.sample(2)
@pytest.mark.parametrize("norm", nn.NORMS)
@pytest.mark.parametrize("rows", [4096, 8], ids=["at once", "in blocks"])
def test_value_and_gradient_are_those_of_the_formula(norm, rows, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxop.nn.pointwise"], "ROWS", rows)
    layer = make(norm)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3, WIDTH)), jnp.float32)
    shift = jnp.asarray(0.3, jnp.float32)

    def pull(call):
        return jax.jit(nnx.value_and_grad(lambda m, x: jnp.sum(jnp.sin(call(m, x))), argnums=(0, 1)))(layer, x)

    ours = pull(lambda m, x: m(x, shift, sign=-1))
    theirs = pull(lambda m, x: by_hand(m, x, shift, sign=-1))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("norm", nn.NORMS)
def test_post_norm_outputs_are_normalised_and_pre_norm_keeps_the_residual(norm):
    layer = nn.EncoderLayer(lambda x: 0 * x, WIDTH, 5, norm=norm, rngs=nnx.Rngs(0))
    clear(layer.feedforward.outer.kernel)
    x = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
    expected = x if norm == "pre" else call(nn.LayerNorm(WIDTH), x)
    np.testing.assert_allclose(call(layer, x), expected, rtol=1e-4, atol=1e-5)


class TestDropout:
    def layer(self, rate, **options):
        layer = nn.EncoderLayer(lambda x: jnp.ones_like(x), WIDTH, 5, norm="pre", dropout=rate, rngs=nnx.Rngs(0))
        clear(layer.feedforward.outer.kernel)
        return layer

    def test_each_branch_keeps_its_mean(self):
        """Attention adds 1, the pointwise network 2; a share of 1/4 of each is dropped, the rest scaled by 4/3."""
        layer = self.layer(0.25)
        layer.feedforward.outer.bias[...] = jnp.asarray(np.full(WIDTH, 2.0))
        out = call(layer, np.zeros((4000, WIDTH), np.float32))
        values, counts = np.unique(np.round(out, 4), return_counts=True)
        np.testing.assert_allclose(values, [0, 4 / 3, 8 / 3, 4], atol=1e-3)
        np.testing.assert_allclose(counts / out.size, [1 / 16, 3 / 16, 3 / 16, 9 / 16], atol=0.01)

    def test_draws_anew_on_every_call_and_rests_in_evaluation(self):
        layer = self.layer(0.5)
        x = np.ones((50, WIDTH), np.float32)
        assert np.any(np.asarray(call(layer, x)) != np.asarray(call(layer, x)))
        layer.eval()
        np.testing.assert_array_equal(call(layer, x), 2 * x)

    def test_without_it_the_layer_has_no_random_state(self):
        assert not jax.tree.leaves(nnx.state(self.layer(0.0), nnx.RngState))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "psot"}, "norm='psot' is unknown: did you mean 'post'"),
        ({"dropout": 1.0}, "dropout must be a rate in [0, 1), got 1.0"),
        ({"activation": "gelo"}, "activation='gelo' is unknown"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        nn.EncoderLayer(lambda x: x, WIDTH, 5, rngs=nnx.Rngs(0), **options)


class TestConfig:
    def attention(self, config):
        return nn.IntegralAttention(config.width, config.heads, rngs=nnx.Rngs(0))

    def test_makes_the_layer_of_its_block(self):
        for block, kind in (("none", nn.EncoderLayer), ("Y", nn.MomentumLayer)):
            config = nn.EncoderConfig(
                width=WIDTH, heads=2, feedforward=5, norm="pre", dropout=0.25, momentum=nn.MomentumConfig(block)
            )
            layer = config.layer(self.attention(config), rngs=nnx.Rngs(0))
            assert type(layer) is kind
            assert layer.dropout.rate == 0.25
            assert layer.feedforward.inner.kernel.shape == (WIDTH, 5)
            assert type(config.residual_layer(self.attention(config), rngs=nnx.Rngs(0))) is nn.EncoderLayer

    def test_layers_have_the_dtypes_of_the_config(self):
        config = nn.LayersConfig(width=WIDTH, heads=2, dtype="bfloat16", param_dtype="float16")
        layer = config.residual_layer(lambda x: x, rngs=nnx.Rngs(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param))} == {jnp.dtype("float16")}
        assert jax.eval_shape(layer.feedforward, jnp.ones((3, WIDTH))).dtype == jnp.bfloat16

    @pytest.mark.parametrize(
        ("kind", "sizes"),
        [
            *((kind, (1, 1, 2)) for kind in operators.CONFIGS.values()),
            (transformers.SequenceTransformerConfig, (11, 6)),
            (transformers.SequenceClassifierConfig, (11, 6)),
            (transformers.VisionTransformerConfig, (8, 3, 5, 4)),
            (transformers.EncoderDecoderTransformerConfig, (11, 6, 5)),
        ],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_only_the_sizes_of_the_data_are_positional(self, kind, sizes):
        assert kind(*sizes) != kind(*sizes, width=16)
        with pytest.raises(TypeError, match="positional argument"):
            kind(*sizes, 16)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"width": 0}, "width must be at least 1, got 0"),
            ({"layers": 0}, "layers must be at least 1, got 0"),
            ({"heads": 3}, "heads must divide the width 128, got 3"),
            ({"feedforward": 0}, "feedforward must be at least 1, got 0"),
            ({"norm": "psot"}, "norm='psot' is unknown: did you mean 'post'"),
            ({"dropout": 1.0}, "dropout must be a rate in [0, 1), got 1.0"),
            ({"activation": "gelo"}, "activation='gelo' is unknown: did you mean 'gelu'"),
            ({"param_dtype": "float31"}, "param_dtype must be the name of a floating dtype"),
            ({"momentum": nn.MomentumConfig("Y")}, "give norm='pre' with block='Y', got norm='post'"),
        ],
    )
    def test_checks_itself(self, options, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            nn.EncoderConfig(**options)
