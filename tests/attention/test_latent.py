"""Latent attention against formulas with whole matrices in float64, and the laws of a quadrature."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, kernels, testing
from jaxop.attention import chunked, latent, latent_attention, latent_averages, least_squares_attention

N, LATENTS, HEADS, DEPTH, CHANNELS = 14, 5, 2, 3, 4
MATRICES = np.random.default_rng(7).normal(size=(2, CHANNELS, CHANNELS)) / 2


def softmax_mix(z):
    """softmax(QKᵀ/√c) z among the latents, which keeps constants."""
    q, k = (jnp.einsum("ghc,ce->ghe", z, jnp.asarray(matrix, z.dtype)) for matrix in MATRICES)
    scores = jnp.einsum("ghc,lhc->hgl", q, k) / np.sqrt(CHANNELS)
    return jnp.einsum("hgl,lhc->ghc", jax.nn.softmax(scores, axis=-1), z)


def least_squares_mix(z):
    q, k = (jnp.einsum("ghc,ce->ghe", z, jnp.asarray(matrix, z.dtype)) for matrix in MATRICES)
    return least_squares_attention(q, k, z, alpha=0.3)


def ridge_mix(z):
    """The same from the normal equations, head by head."""
    q, k = (jnp.einsum("ghc,ce->hge", z, matrix) for matrix in MATRICES)
    gram = 0.3 * jnp.eye(CHANNELS)[None] + 0.7 / LATENTS * jnp.swapaxes(k, 1, 2) @ k
    return jnp.einsum("hge,hec->ghc", q, jnp.linalg.inv(gram) @ (jnp.swapaxes(k, 1, 2) @ z.swapaxes(0, 1)) / LATENTS)


def exp_scores(scale):
    return lambda s, k: jnp.exp(scale * jnp.einsum("ghd,mhd->hgm", s, k))


def gaussian_scores(s, k):
    """exp(−τ_h |s − k|²/√d)."""
    distance = jnp.sum((s[:, None] - k[None]) ** 2, axis=-1)
    return jnp.exp(-jnp.asarray([0.5, 2.0])[:, None, None] * jnp.moveaxis(distance, 2, 0) / np.sqrt(DEPTH))


def gaussians():
    return kernels.PerHead(kernels.Gaussian(jnp.asarray([0.5, 2.0])))


EXP = exp_scores(1 / np.sqrt(DEPTH))
CASES = {  # encode, kernel, its matrix, mix, the same mix by whole matrices, whether constants stay
    "transolver": ("slices", lambda: None, EXP, softmax_mix, softmax_mix, True),
    "flare": ("nodes", lambda: kernels.ExpDotProduct(1.0), exp_scores(1.0), None, None, True),
    "lno": ("nodes", lambda: None, EXP, softmax_mix, softmax_mix, True),
    "functional": ("slices", lambda: None, EXP, least_squares_mix, ridge_mix, False),
    "nodes of gaussians": ("nodes", gaussians, gaussian_scores, None, None, True),
    "slices of gaussians": ("slices", gaussians, gaussian_scores, None, None, True),
}
ALL = pytest.mark.parametrize("name", CASES)


def inputs(seed=0):
    """Latents, and the keys, values and weights of nodes whose last has weight 0."""
    rng = np.random.default_rng(seed)
    shapes = (LATENTS, HEADS, DEPTH), (N, HEADS, DEPTH), (N, HEADS, CHANNELS)
    weights = rng.uniform(0.2, 2.0, N)
    weights[-1] = 0
    return [*(rng.normal(size=shape) for shape in shapes), weights]


def single():
    """The same in float32, on the device."""
    return [jnp.asarray(array.astype(np.float32)) for array in inputs()]


def attend(name, latents, key, value, weights):
    encode, kernel, _, mix, _, _ = CASES[name]
    return latent_attention(latents, key, value, weights, encode=encode, kernel=kernel(), mix=mix)


def oracle(name, latents, key, value, weights):
    encode, _, scores, _, mix, _ = CASES[name]
    k = scores(latents, key)
    mass = weights[None, None, :] * (k if encode == "nodes" else k / k.sum(axis=1, keepdims=True))
    z = jnp.einsum("hgm,mhc->ghc", mass / mass.sum(axis=2, keepdims=True), value)
    z = z if mix is None else mix(z)
    return jnp.einsum("hgm,ghc->mhc", k / k.sum(axis=1, keepdims=True), z)


@functools.cache
def compiled(name):
    return jax.jit(functools.partial(attend, name))


@pytest.mark.sample(1)
@ALL
def test_value_and_gradient_are_those_of_the_formula(name, x64):
    def of(function):
        def loss(*arrays):
            out = function(name, *arrays)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))

    arrays = inputs()
    for ours, theirs in zip(*map(jax.tree.leaves, (of(attend)(*arrays), of(oracle)(*arrays))), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.sample(2)
@ALL
def test_laws_of_a_quadrature(name, x64):
    """All with one program: a node of weight 0 is there from the start."""
    latents, key, value, weights = inputs()
    expected = np.asarray(compiled(name)(latents, key, value, weights))[:-1]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)

    halved, split_key, split_value = weights.copy(), key.copy(), value.copy()
    halved[[3, -1]] = weights[3] / 2
    split_key[-1], split_value[-1] = key[3], value[3]
    out = np.asarray(compiled(name)(latents, split_key, split_value, halved))
    close(out[:-1], expected)
    close(out[-1], expected[3])

    padded_key, padded_value = key.copy(), value.copy()
    padded_key[-1], padded_value[-1] = 3.0, 1e6
    close(compiled(name)(latents, padded_key, padded_value, weights)[:-1], expected)

    order = np.random.default_rng(1).permutation(N)
    out = np.asarray(compiled(name)(latents, key[order], value[order], weights[order]))
    close(out[np.argsort(order)][:-1], expected)

    close(compiled(name)(latents, key, value, 1e-30 * weights)[:-1], expected)
    np.testing.assert_array_equal(compiled(name)(latents, key, value, weights)[:-1], expected)
    keeps = np.allclose(compiled(name)(latents, key, np.full_like(value, -2.5), weights), -2.5, rtol=1e-11)
    assert keeps == CASES[name][-1]


@pytest.mark.sample(2)
@ALL
def test_converges_at_the_order_of_the_rule_on_uneven_nodes(name, x64):
    """Trapezoid on x = t^1.7, padded to one size; the output is read at fixed points."""
    encode, kernel, _, mix, _, _ = CASES[name]
    latents, size = jnp.asarray(inputs()[0]), 257
    frequencies = np.random.default_rng(3).normal(size=(2, 1, HEADS, CHANNELS))

    @jax.jit
    def at_probe(points, weights):
        key = jnp.cos(points[:, None, None] * frequencies[0, :, :, :DEPTH])
        value = jnp.sin(1 + points[:, None, None] * frequencies[1])
        query = jnp.linspace(-1.0, 1.0, HEADS * DEPTH).reshape(1, HEADS, DEPTH)
        return latent_attention(latents, key, value, weights, query=query, encode=encode, kernel=kernel(), mix=mix)

    sizes = [16, 32, 64, 256]
    outputs = []
    for n in sizes:
        points = np.linspace(0.0, 1.0, n + 1) ** 1.7
        padding = (0, size - n - 1)
        weights = np.asarray(domains.from_samples(points).weights)
        outputs.append(np.asarray(at_probe(np.pad(points, padding), np.pad(weights, padding))))
    errors = [np.abs(out - outputs[-1]).max() for out in outputs[:-1]]
    assert testing.observed_order(sizes[:-1], errors) == pytest.approx(2.0, abs=0.25)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["transolver", "slices of gaussians", "flare"])
def test_tiles_and_blocks_change_nothing(name, monkeypatch):
    """Several tiles of nodes, and several blocks of their masses, in float32."""
    encode, kernel, _, _, _, _ = CASES[name]
    latents, key, value, weights = single()

    def of(implementation):
        def loss(*arrays):
            how = {"encode": encode, "kernel": kernel(), "implementation": implementation}
            return jnp.sum(jnp.sin(latent_attention(*arrays, **how)))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(latents, key, value, weights)

    expected = of("dense")
    for module, size in ((chunked, "QUERY_CHUNK"), (chunked, "KEY_CHUNK"), (latent, "_NODES")):
        monkeypatch.setattr(module, size, 4)
    for ours, theirs in zip(*map(jax.tree.leaves, (of("chunked"), expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_half_precision_rounds_values_and_not_masses():
    latents, key, value, weights = single()
    key = (8 * key).astype(jnp.bfloat16)
    narrow = latent_averages(latents, key, value.astype(jnp.bfloat16), weights, encode="slices")
    wide = latent_averages(latents, key.astype(jnp.float32), value, weights, encode="slices")
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=0.02)


def test_scores_of_any_size_leave_no_slice_without_mass():
    latents, key, value, weights = single()
    out = np.asarray(latent_averages(300 * latents, 10 * key, value, weights, encode="slices"))
    assert np.isfinite(out).all()
    assert (out >= np.asarray(value)[:-1].min(axis=0) - 1e-5).all()
    assert (out <= np.asarray(value)[:-1].max(axis=0) + 1e-5).all()


def test_a_masked_node_is_a_node_of_weight_zero():
    latents, key, value, weights = single()
    mask = jnp.arange(N) % 3 != 0
    out = latent_averages(latents, key, value, weights, mask=mask, encode="slices")
    np.testing.assert_allclose(
        out, latent_averages(latents, key, value, jnp.where(mask, weights, 0), encode="slices"), rtol=2e-5, atol=1e-6
    )


def test_more_latents_than_nodes_keep_the_laws(x64):
    latents, key, value, weights = inputs()
    attend = jax.jit(functools.partial(latent_attention, encode="slices"))
    three = latents, key[[0, 1, 1]], value[[0, 1, 1]]
    whole = np.asarray(attend(*three, weights[[0, 1, 1]] * [1, 1, 0]))
    np.testing.assert_allclose(attend(*three, weights[[0, 1, 1]] * [1, 0.5, 0.5]), whole, rtol=1e-12)
    assert np.abs(attend(*three, weights[[0, 1, 1]]) - whole).max() > 1e-3


class TestLeastSquares:
    def arrays(self):
        rng = np.random.default_rng(2)
        arrays, weights = rng.normal(size=(3, N, HEADS, DEPTH)), rng.uniform(0.1, 3.0, N)
        dtype = np.float64 if jax.config.read("jax_enable_x64") else np.float32
        return jnp.asarray(arrays.astype(dtype)), jnp.asarray(weights.astype(dtype))

    def test_is_weighted_ridge_regression(self, x64):
        (query, key, value), weights = self.arrays()
        alpha = jnp.asarray([0.05, 0.9])
        out = least_squares_attention(query, key, value, weights, alpha=alpha)
        for h in range(HEADS):
            rows = np.sqrt((1 - alpha[h]) * weights / weights.sum())[:, None]
            system = np.concatenate([rows * key[:, h], np.sqrt(alpha[h]) * np.eye(DEPTH)])
            right = np.concatenate([rows * value[:, h], np.zeros((DEPTH, DEPTH))])
            expected = query[:, h] @ np.linalg.lstsq(system, right, rcond=None)[0] / (1 - alpha[h])
            np.testing.assert_allclose(out[:, h], expected, rtol=1e-10, atol=1e-12)

    def test_has_the_laws_of_a_quadrature(self, x64):
        (query, key, value), weights = self.arrays()
        expected = least_squares_attention(query, key, value, weights)
        halves = jnp.concatenate([weights[:1] / 2, weights[1:], weights[:1] / 2])
        split = [*(jnp.concatenate([a, a[:1]]) for a in (key, value)), halves]
        np.testing.assert_allclose(least_squares_attention(query, *split), expected, rtol=1e-11)
        np.testing.assert_allclose(least_squares_attention(query, key, value, 1e-3 * weights), expected, rtol=1e-11)
        assert not np.any(least_squares_attention(query, key, value, 0 * weights))

    def test_derivative_in_alpha(self, x64):
        (query, key, value), weights = self.arrays()

        @jax.jit
        def loss(alpha):
            return jnp.sum(jnp.sin(least_squares_attention(query, key, value, weights, alpha=alpha)))

        difference = (loss(0.4 + 1e-6) - loss(0.4 - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(loss)(0.4), difference, rtol=1e-6)

    @pytest.mark.parametrize(
        ("alpha", "message"),
        [
            (0.0, "alpha must be in (0, 1], got 0.0"),
            (1.5, "alpha must be in (0, 1], got 1.5"),
            (np.full(3, 0.5, np.float32), "alpha must be a number or have shape (h,) = (2,), got (3,)"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_ridge(self, alpha, message):
        (query, key, value), weights = self.arrays()
        with pytest.raises(ValueError, match=re.escape(message)):
            least_squares_attention(query, key, value, weights, alpha=alpha)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encode": "node"}, ValueError, "encode='node' is unknown: did you mean 'nodes'"),
        ({"encode": "slices", "kernel": kernels.Quadratic()}, ValueError, "slices need a positive kernel"),
        ({"encode": "slices", "kernel": kernels.DotProduct()}, ValueError, "slices need a positive kernel"),
        (
            {"weights": np.ones(3, np.float32)},
            ValueError,
            "weights must have shape (m,) = (14,), one per key, got (3,)",
        ),
        ({"key": np.ones((N, HEADS, DEPTH + 1), np.float32)}, ValueError, "key must have shape (m, h, d)"),
        ({"mix": lambda z: z[:-1]}, ValueError, "mix must return latent tokens of shape (g, h, c) = (5, 2, 4)"),
        ({"kernel": kernels.DotProduct(), "mask": np.ones(N, bool)}, NotImplementedError, "neither a mask nor"),
        ({"kernel": kernels.DotProduct(), "implementation": "dense"}, NotImplementedError, "neither a mask nor"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(options, error, message):
    names = ("latents", "key", "value", "weights")
    arguments = dict(zip(names, (a.astype(np.float32) for a in inputs()), strict=True)) | options
    with pytest.raises(error, match=re.escape(message)):
        latent_attention(**arguments)
