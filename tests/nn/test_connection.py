"""The connection of attention, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import flows, nn
from jaxop.attention import averaging_operator
from jaxop.kernels import DotProduct, ExpDotProduct, PerHead
from jaxop.spectral import Band, synthesis
from tests.nn.tokens import HEADS, B, D, N, arrays, attention


def connection(layer, z, v, weights, is_causal):
    """C(z; v) from its definition: the rate of the log denominators by differentiation, P as a matrix."""

    def scores(z):
        query, key, _ = layer.project(z[None], z[None])
        return jnp.einsum("nhd,mhd->hnm", query[0], key[0]) / np.sqrt(D // HEADS)

    def log_mass(z):
        logits = scores(z) + jnp.log(weights)[None, None, :]
        return jax.nn.logsumexp(jnp.where(seen, logits, -jnp.inf), axis=-1)

    seen = jnp.tri(N, dtype=bool)[None] if is_causal else jnp.ones((1, N, N), bool)
    p = jnp.exp(scores(z) + jnp.log(weights)[None, None, :] - log_mass(z)[..., None])
    p = jnp.where(seen, p, 0)
    drift = jnp.mean(jax.jvp(log_mass, (z,), (v,))[1], axis=0)
    value = layer.project(z[None], z[None])[2][0]
    square = jnp.sum(v**2, axis=1)
    merge = lambda heads: heads.reshape(N, D) @ layer.output.kernel[...]  # noqa: E731
    force = merge(jnp.einsum("hnm,mhc->nhc", p, value))
    second = merge(jnp.einsum("hnm,m,mhc->nhc", p, square, value))
    return drift[:, None] * v - (square[:, None] * force + second) / 2


def connections(layer, z, v, weights, is_causal):
    """F, C(z; v), and C(z; 0.3 v + F) by a function and by values."""
    connected = lambda v: layer.with_connection(z, v, jnp.asarray(weights), is_causal=is_causal)  # noqa: E731
    force, ours = connected(v)
    return force, ours, connected(lambda f: 0.3 * v + f)[1], connected(0.3 * v + force)[1]


@pytest.mark.sample(2)
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_connection_is_its_definition(implementation, is_causal, x64):
    layer = attention(implementation=implementation, param_dtype=jnp.float64)
    z, v = arrays(B, N, D), 0.5 * arrays(B, N, D, seed=3)
    weights = np.linspace(0.5, 1.5, N)

    @jax.jit
    def outputs(layer, z, v):
        force, ours, made, given = connections(layer, z, v, weights, is_causal)
        plain = layer(z, jnp.asarray(weights), is_causal=is_causal)
        expected = jax.vmap(lambda z, v: connection(layer, z, v, weights, is_causal))(z, v)
        return force, plain, ours, expected, made, given

    force, plain, ours, expected, made, given = outputs(layer, z, v)
    np.testing.assert_allclose(force, plain, rtol=1e-10)
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(made, given, rtol=1e-9, atol=1e-10)


def test_connection_takes_masks_and_scales_per_head(x64):
    scales = jnp.asarray([0.3, 0.9])
    layer = attention(kernel=PerHead(ExpDotProduct(scales)), param_dtype=jnp.float64)
    mask = jnp.asarray((np.random.default_rng(2).uniform(size=(N, N)) < 0.7) | np.eye(N, dtype=bool))
    z, v = arrays(1, N, D), 0.5 * arrays(1, N, D, seed=3)

    def log_mass(z):
        query, key, _ = layer.project(z[None], z[None])
        logits = jnp.einsum("nhd,mhd,h->hnm", query[0], key[0], scales)
        return jax.nn.logsumexp(jnp.where(mask[None], logits, -jnp.inf), axis=-1)

    @jax.jit
    def outputs(z, v):
        drift = jnp.mean(jax.jvp(log_mass, (z[0],), (v[0],))[1], axis=0)
        force, ours = layer.with_connection(z, v, mask=mask)
        # at a token whose velocity alone is not 0, the other terms are known
        free = force - layer.output.bias[...][None, None, :]
        square = jnp.sum(v**2, axis=-1, keepdims=True)
        rest = ours - drift[None, :, None] * v + square * free / 2
        query, key, value = (a[0] for a in layer.project(z, z))
        average = averaging_operator(query, key, kernel=PerHead(ExpDotProduct(scales)), mask=mask)
        second = average(square[0, :, :, None] * value).reshape(N, D) @ layer.output.kernel[...]
        return force, layer(z, mask=mask), rest[0], -second / 2

    force, plain, rest, expected = outputs(z, v)
    np.testing.assert_allclose(force, plain, rtol=1e-10)
    np.testing.assert_allclose(rest, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["patches", "coefficients"])
def test_connection_of_functions_is_its_definition(kind, x64):
    """Inner products over the patch in place of sums over channels; explicit matrices and numerical differentiation."""
    p, s, rng = 3, 25, np.random.default_rng(4)
    z, v = (rng.normal(size=(1, p, s, D)) for _ in range(2))
    weight = 1 / (p * s)
    if kind == "patches":
        layer = nn.PatchAttention(D, HEADS, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        layer.projection.bias[...] = jnp.asarray(arrays(3 * D))

        def project(x):
            projected = x @ layer.projection.kernel[...] + layer.projection.bias[...][None, None]
            return [a.reshape(p, s, HEADS, -1) for a in jnp.split(projected, 3, axis=-1)]

        with_connection = lambda z, v: layer.with_connection(z, v, jnp.full(s, weight))  # noqa: E731
        plain = lambda z: layer(z, jnp.full(s, weight))  # noqa: E731
    else:
        layer = nn.FourierPatchAttention(D, HEADS, 2, reference=(5, 5), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        band = Band((5, 5), (2, 2))

        def project(x):
            parts = layer._project(jnp.moveaxis(x[None], 2, 0), band)  # (2, m, 1, p, h, c)
            flat = [a.reshape(*a.shape[:4], -1) for a in parts]
            return [jnp.moveaxis(synthesis(a, band)[:, 0], 0, 1).reshape(p, s, HEADS, -1) for a in flat]

        nodes_first = lambda a: jnp.moveaxis(a, 2, 0)  # noqa: E731
        patches_first = lambda a: jnp.moveaxis(a, 0, 2)  # noqa: E731

        def with_connection(z, v):
            v = nodes_first(v) if not callable(v) else (lambda f, v=v: nodes_first(v(patches_first(f))))
            return tuple(map(patches_first, layer.with_connection(nodes_first(z), v, (5, 5), weight)))

        plain = lambda z: patches_first(layer(nodes_first(z), (5, 5), weight))  # noqa: E731
    layer.output.bias[...] = jnp.asarray(arrays(D, seed=5))

    def scores(x):
        query, key, _ = project(x)
        return weight * jnp.einsum("pshc,qshc->hpq", query, key)

    def expected(z, v, matrix, value, free):
        drift = jax.jvp(lambda x: jax.nn.logsumexp(scores(x), axis=-1), (z,), (v,))[1].mean(axis=0)
        square = weight * jnp.sum(v**2, axis=(1, 2))
        second = merge(jnp.einsum("hpq,q,qshc->pshc", matrix, square, value))
        return drift[:, None, None] * v - (square[:, None, None] * free + second) / 2

    merge = lambda heads: heads.reshape(p, s, D) @ layer.output.kernel[...]  # noqa: E731

    @jax.jit
    def outputs(z, v):
        matrix, value = jax.nn.softmax(scores(z[0]), axis=-1), project(z[0])[2]
        free = merge(jnp.einsum("hpq,qshc->pshc", matrix, value))
        force, ours = with_connection(z, v)
        made = with_connection(z, lambda f: 0.5 * v + f)[1]
        ours_expected, made_expected = (expected(z[0], u, matrix, value, free) for u in (v[0], 0.5 * v[0] + force[0]))
        return (
            (force[0], free + layer.output.bias[...][None, None]),
            (force, plain(z)),
            (ours[0], ours_expected),
            (made[0], made_expected),
        )

    tolerances = ((1e-8, 1e-10), (1e-10, 0), (1e-8, 1e-9), (1e-8, 1e-9))
    for (result, known), (rtol, atol) in zip(outputs(z, v), tolerances, strict=True):
        np.testing.assert_allclose(result, known, rtol=rtol, atol=atol)


def test_connection_of_one_symmetric_head_is_that_of_the_exact_flow(x64):
    """Q = K with A = QᵀQ/√d, V = B A, B = I: C(z; v) is that of `flows.softmax_rates`."""
    layer = nn.IntegralAttention(D, 1, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    matrix = arrays(D, D) / 3
    score = matrix @ matrix.T / np.sqrt(D)
    layer.query.kernel[...] = jnp.asarray(matrix)
    layer.key_value.kernel[...] = jnp.asarray(np.concatenate([matrix, score], axis=1))
    layer.output.kernel[...] = jnp.asarray(np.eye(D))
    z, v, weights = arrays(1, N, D), arrays(1, N, D, seed=3), np.linspace(0.5, 1.5, N)

    @jax.jit
    def outputs(z, v, weights, score):
        exact = flows.softmax_rates(z[0], v[0], weights, score=score, mobility=jnp.eye(D))
        return layer.with_connection(z, v, weights), exact

    (force, ours), (gamma, exact) = outputs(z, v, weights, score)
    np.testing.assert_allclose(force[0], gamma, rtol=1e-10)
    np.testing.assert_allclose(ours[0], exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("is_causal", [False, True])
def test_connection_of_linear_attention_is_that_of_each_group_of_channels(is_causal, x64):
    layer = attention(kernel=DotProduct(), param_dtype=jnp.float64)
    z, v, weights = arrays(B, N, D), arrays(B, N, D, seed=3), np.linspace(0.5, 1.5, N)
    options = {"ridge": 1.0, "is_causal": True} if is_causal else {"ridge": 1e-2}

    @jax.jit
    def outputs(z, v, weights):
        by_group = (
            flows.linear_connection(z[1, :, c], v[1, :, c], weights, **options) for c in (slice(4), slice(4, 8))
        )
        plain = layer(z, weights, is_causal=is_causal)
        return *connections(layer, z, v, weights, is_causal), plain, jnp.concatenate([*by_group], axis=1)

    force, ours, made, given, plain, expected = outputs(z, v, weights)
    np.testing.assert_allclose(force, plain, rtol=1e-12)
    np.testing.assert_allclose(ours[1], expected, rtol=1e-10)
    np.testing.assert_allclose(made, given, rtol=1e-12)
