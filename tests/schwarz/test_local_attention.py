"""Attention inside overlapping subdomains, blended, and averages against coarse functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, kernels, schwarz
from jaxop.attention import integral_attention
from jaxop.schwarz import coarse_averages, subdomain_attention

HEADS, DEPTH, CHANNELS = 2, 3, 4


def operands(n, seed=0):
    shapes = (n, HEADS, DEPTH), (n, HEADS, DEPTH), (n, HEADS, CHANNELS)
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def mesh():
    side = np.linspace(0, 1, 6)
    x, y = (a.ravel() for a in np.meshgrid(side, side, indexing="ij"))
    corner = np.asarray([6 * i + j for i in range(5) for j in range(5)])
    halves = [np.stack([corner, corner + 6, corner + 7], 1), np.stack([corner, corner + 7, corner + 1], 1)]
    return domains.triangle_mesh(np.stack([x, y, x * y], axis=1), np.concatenate(halves))


DOMAINS = {
    "interval": (lambda: domains.interval(33), 4, 3),
    "periodic": (lambda: domains.interval(32, rule="periodic"), 4, 3),
    "square": (lambda: domains.box((9, 8), rule="midpoint"), (3, 2), 1),
    "cloud": (lambda: domains.monte_carlo(np.random.default_rng(0).random((40, 2)), measure=1.0), 4, 0.1),
    "mesh": (mesh, 4, 1),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", DOMAINS)
@pytest.mark.parametrize("partition", schwarz.PARTITIONS_OF_UNITY)
def test_blend_of_attentions_in_subdomains(name, partition, x64):
    """Against integral attention on the whole domain, in the measure of each subdomain."""
    make, subdomains, overlap = DOMAINS[name]
    domain = make()
    cut = schwarz.decompose(domain, subdomains, overlap, partition=partition)
    query, key, value = operands(domain.size)
    expected = np.zeros(value.shape)
    for i in range(cut.subdomains):
        share = cut.prolong(jnp.zeros((*cut.partition.shape, 1)).at[i, :, 0].set(cut.partition[i]))
        whole = integral_attention(query, key, value, domain.weights * share[:, 0])
        expected += np.asarray(share)[:, :, None] * np.asarray(whole)
    np.testing.assert_allclose(subdomain_attention(query, key, value, cut), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "kernel", [None, kernels.Gaussian(0.4), kernels.Quadratic(0.5)], ids=["exp", "gaussian", "quadratic"]
)
def test_one_subdomain_is_the_whole(kernel, x64):
    domain = domains.interval(24)
    query, key, value = operands(24)
    out = subdomain_attention(query, key, value, schwarz.decompose(domain, 1, 0), kernel=kernel)
    expected = integral_attention(query, key, value, domain.weights, kernel=kernel)
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.thorough
def test_constants_are_reproduced_and_the_derivative_in_large_domains_is_the_same(monkeypatch):
    domain = domains.box((12, 12), rule="midpoint")
    cut = schwarz.decompose(domain, 3, 1, partition="ramp")
    query, key, value = operands(domain.size)
    np.testing.assert_allclose(subdomain_attention(query, key, jnp.ones_like(value), cut), 1.0, rtol=1e-5)

    def loss(query):
        return jnp.sum(jnp.sin(subdomain_attention(query, key, value, cut)))

    assert cut.subdomains * cut.local_size**2 < 1 << 15
    together = jax.grad(loss)(query)
    monkeypatch.setattr("jaxop.schwarz.local_attention._scores", lambda heads: 2 * cut.local_size**2)
    np.testing.assert_allclose(jax.grad(loss)(query), together, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_memory_grows_linearly():
    """Scratch of a compiled call, with subdomains of one size."""
    scratch = []
    for subdomains in (16, 64, 256):
        cut = schwarz.decompose(domains.interval(64 * subdomains, rule="midpoint"), subdomains, 8)
        arrays = [jax.ShapeDtypeStruct((64 * subdomains, HEADS, DEPTH), jnp.float32)] * 3
        gradient = jax.grad(lambda q, k, v, cut=cut: jnp.sum(subdomain_attention(q, k, v, cut) ** 2))
        memory = jax.jit(gradient).lower(*arrays).compile().memory_analysis()
        scratch.append(memory.temp_size_in_bytes / subdomains)
    assert scratch[2] < 1.5 * scratch[0]


@pytest.mark.thorough
def test_coarse_tokens_are_weighted_averages(x64):
    domain = domains.interval(40, rule="gauss-legendre")
    cut = schwarz.decompose(domain, 5, 2, coarse="hat")
    values = jnp.concatenate([domain.points, jnp.ones((40, 1))], axis=1)
    tokens, weights = coarse_averages(values, cut)
    basis = cut.coarse_basis()
    np.testing.assert_allclose(weights, basis.T @ domain.weights, rtol=1e-10)
    np.testing.assert_allclose(tokens, (basis.T @ (domain.weights[:, None] * values)) / weights[:, None], rtol=1e-10)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-10)


@pytest.mark.thorough
def test_coarse_functions_without_a_positive_integral_are_empty_tokens():
    domain = domains.interval(16, rule="midpoint")
    cut = schwarz.decompose(domain, 4, 1, coarse=np.stack([np.ones(16), -np.ones(16)], axis=1))
    tokens, weights = coarse_averages(3 * jnp.ones((16, 2)), cut)
    np.testing.assert_allclose(tokens, [[3, 3], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(weights, [1, 0], rtol=1e-6)


def test_bad_input():
    cut = schwarz.decompose(domains.interval(24), 3, 1)
    query, key, value = operands(24)
    with pytest.raises(
        ValueError, match=r"query must have shape \(n, h, c\) = \(24, h, c\) with the heads of query, one row per node"
    ):
        subdomain_attention(query[:20], key[:20], value[:20], cut)
    with pytest.raises(ValueError, match="no coarse space"):
        coarse_averages(value[:, 0], schwarz.decompose(domains.interval(24), 3, 1, coarse=None))
