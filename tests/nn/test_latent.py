"""The module of latent attention against formulas of its parameters, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import kernels, nn

WIDTH, HEADS, LATENTS, N = 8, 2, 3, 7


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(2, N, WIDTH))), jnp.asarray(rng.uniform(0.2, 2.0, N))


def heads(linear, x):
    return (x @ linear.kernel[...] + linear.bias[...]).reshape(*x.shape[:-1], HEADS, -1)


def formula(layer, x, weights, positions):
    """One sample of the published layers with weights, in whole matrices."""
    key, value, query = heads(layer.key, positions), heads(layer.value, x), heads(layer.key, x)

    def scores(key):
        tau = 1.0
        if layer.temperature == "head":
            tau = jnp.clip(layer.tau[...], 0.1, 5.0)[:, None, None]
        if layer.temperature == "point":
            inner, outer = layer.point.inner, layer.point.outer
            hidden = jax.nn.gelu(key @ inner.kernel[...] + inner.bias[...], approximate=False)
            tau = layer.tau[...] + jax.nn.gelu(hidden @ outer.kernel[...] + outer.bias[...], approximate=False)[..., 0]
            tau = jnp.maximum(tau, 0.01).T[:, None]
        return layer.factor * jnp.einsum("ghd,nhd->hgn", layer.latents[...], key) / np.sqrt(WIDTH // HEADS) / tau

    shares = jax.nn.softmax(scores(key), axis=-1 if layer.encode == "nodes" else 1)
    mass = jax.nn.softmax(scores(key) + jnp.log(weights), axis=-1) if layer.encode == "nodes" else shares * weights
    z = jnp.einsum("hgn,nhc->ghc", mass / mass.sum(-1, keepdims=True), value)
    if layer.mix == "attention":
        q, k, v = jnp.einsum("ghc,sce->sghe", z, layer.matrices[...])
        z = jnp.einsum("hgl,lhc->ghc", jax.nn.softmax(jnp.einsum("ghe,lhe->hgl", q, k) / 2, axis=-1), v)
    if layer.mix == "least_squares":
        q, k, v = jnp.einsum("ghc,sce->shge", z, layer.matrices[...])
        alpha = jnp.maximum(jax.nn.sigmoid(layer.ridge[...]), 0.01)[:, None, None]
        gram = alpha * jnp.eye(WIDTH // HEADS) + (1 - alpha) / LATENTS * k.swapaxes(1, 2) @ k
        z = (q @ jnp.linalg.inv(gram) @ k.swapaxes(1, 2) @ v / LATENTS).swapaxes(0, 1)
    y = jnp.einsum("hgn,ghc->nhc", jax.nn.softmax(scores(query), axis=1), z).reshape(-1, WIDTH)
    return y @ layer.output.kernel[...] + layer.output.bias[...]


LAYERS = {
    "flare": {"scale": 1.0},
    "transolver": {"encode": "slices", "mix": "attention", "temperature": "head", "scale": 1.0},
    "transolver_plus": {"encode": "slices", "mix": "attention", "temperature": "point", "scale": 1.0},
    "functional": {"encode": "slices", "mix": "least_squares", "temperature": "head", "scale": 1.0},
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", LAYERS)
@jax.numpy_rank_promotion("allow")
def test_is_the_published_formula_with_weights(name, x64):
    """With features of the positions too, and a parameter away from where it starts."""
    layer = nn.LatentAttention(WIDTH, HEADS, latents=LATENTS, param_dtype="float64", rngs=nnx.Rngs(0), **LAYERS[name])
    if layer.ridge is not None:
        layer.ridge[...] = jnp.asarray([-20.0, 2.0])
    if layer.tau is not None:
        layer.tau[...] = jnp.asarray([0.05, 1.3])
    x, weights = arrays()
    positions = jnp.cos(3 * x)

    @jax.jit
    def both(layer):
        expected = jax.vmap(formula, in_axes=(None, 0, None, 0))(layer, x, weights, positions)
        return layer(x, weights, positions=positions), expected

    out, expected = both(layer)
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-10)


@jax.numpy_rank_promotion("allow")
def test_queries_of_their_own_meet_the_mixed_tokens(x64):
    """With decode="query" and a context, one block and no weights: encode, block, cross-attention."""
    options = {"latents": LATENTS, "blocks": 1, "decode": "query", "param_dtype": "float64"}
    layer = nn.LatentAttention(WIDTH, HEADS, rngs=nnx.Rngs(0), **options)
    context, _ = arrays()
    x = arrays(1)[0][:, :2]

    @jax.jit
    def both(layer):
        scores = jnp.einsum("ghd,bnhd->bhgn", layer.latents[...], heads(layer.key, context)) / 2
        z = jnp.einsum("bhgn,bnhc->bghc", jax.nn.softmax(scores, axis=-1), heads(layer.value, context))
        tokens = layer.blocks[0](z.reshape(2, LATENTS, WIDTH))
        scores = jnp.einsum("bnhd,bghd->bhng", heads(layer.query, x), heads(layer.latent_key, tokens)) / 2
        y = jnp.einsum("bhng,bghc->bnhc", jax.nn.softmax(scores, axis=-1), tokens.reshape(2, LATENTS, HEADS, -1))
        return layer(x, context=context), layer.output(y.reshape(2, 2, WIDTH))

    out, expected = both(layer)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kernel", nn.KERNELS.values(), ids=nn.KERNELS)
def test_every_kernel_splits_nodes(kernel, x64):
    config = nn.LatentAttentionConfig(latents=LATENTS, kernel=kernel())
    layer = config.make(WIDTH, HEADS, param_dtype="float64", rngs=nnx.Rngs(0))
    x, weights = arrays()
    weights = weights.at[-1].set(0)
    run = jax.jit(lambda layer, x, weights: layer(x, weights))
    split = run(layer, x.at[:, -1].set(x[:, 0]), weights.at[jnp.asarray([0, -1])].set(weights[0] / 2))
    np.testing.assert_allclose(split[:, :-1], run(layer, x, weights)[:, :-1], rtol=1e-9, atol=1e-11)


def test_slices_start_orthonormal_and_latents_soft():
    slices = nn.LatentAttention(WIDTH, HEADS, latents=3, encode="slices", rngs=nnx.Rngs(0)).latents[...]
    np.testing.assert_allclose(jnp.einsum("ghd,lhd->hgl", slices, slices), np.stack([np.eye(3)] * 2), atol=1e-6)
    for scale in (None, 1.0, 3.0):
        layer = nn.LatentAttention(32, 2, latents=400, scale=scale, rngs=nnx.Rngs(0))
        spread = float(jnp.std(layer.latents[...])) * layer.factor / 4
        assert spread == pytest.approx(0.1, rel=0.05)


SHARED = [
    ({"latents": 0}, "latents must be at least 1, got 0"),
    ({"encode": "slice"}, "encode='slice' is unknown: did you mean 'slices'"),
    ({"mix": "atention"}, "mix='atention' is unknown: did you mean 'attention'"),
    ({"decode": "sane"}, "decode='sane' is unknown: did you mean 'same'"),
    ({"temperature": "heads"}, "temperature='heads' is unknown: did you mean 'head'"),
    ({"blocks": -1}, "blocks must be at least 0, got -1"),
    ({"scale": 0.0}, "scale must be positive and finite, or None for 1/√d, got 0.0"),
    ({"implementation": "chunk"}, "implementation='chunk' is unknown: did you mean 'chunked'"),
]


@pytest.mark.parametrize(("options", "message"), SHARED)
def test_bad_options(options, message):
    for make in (nn.LatentAttentionConfig, lambda **options: nn.LatentAttention(8, 2, rngs=nnx.Rngs(0), **options)):
        with pytest.raises(ValueError, match=re.escape(message)):
            make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": nn.GaussianConfig(), "scale": 1.0}, "belong to the exponentiated dot product"),
        ({"kernel": nn.GaussianConfig(), "temperature": "head"}, "belong to the exponentiated dot product"),
        ({"kernel": nn.QuadraticConfig(), "encode": "slices"}, "encode='slices' needs a positive kernel, one of"),
        ({"kernel": nn.LinearConfig(), "implementation": "dense"}, "linear attention has one implementation"),
    ],
)
def test_kernels_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        nn.LatentAttentionConfig(**options)
    kernel = options["kernel"].make(2, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=re.escape(message.partition(", one of")[0])):
        nn.LatentAttention(8, 2, rngs=nnx.Rngs(0), **(options | {"kernel": kernel}))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"x": jnp.ones((N, WIDTH))}, ValueError, "x must have shape (b, n, d), got (7, 8)"),
        ({"weights": jnp.ones(3)}, ValueError, "weights must have shape (7,) for all samples, or (2, 7)"),
        ({"weights": 1.0}, TypeError, "weights must be an array, got float"),
        ({"positions": jnp.ones((2, 3, WIDTH))}, ValueError, "positions must have the shape of the context, (2, 7, 8)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_calls(call, error, message):
    layer = nn.LatentAttention(WIDTH, HEADS, kernel=kernels.Gaussian(), latents=2, rngs=nnx.Rngs(0))
    arguments = {"x": jnp.ones((2, N, WIDTH))} | call
    with pytest.raises(error, match=re.escape(message)):
        layer(arguments.pop("x"), **arguments)
