"""Universality: F(t, s) ≈ Σ_{l ≤ d} q_l(t) k_l(s) with two two-layer networks q and k, better the larger d is."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import kernels


def network(params, t):
    return jnp.tanh(t @ params["inner"] + params["bias"]) @ params["outer"]


def function(t, s):
    """Continuous, asymmetric, with a ridge on the diagonal."""
    return np.sin(6 * np.outer(t, s)) + np.exp(-3 * np.abs(t[:, None] - s[None, :])) + 0.5 * t[:, None]


def two_networks(target, t, s, rank, hidden):
    """Inner layers at random; the outer ones, of any rank, by least squares: a singular value decomposition."""
    rng = np.random.default_rng(0)

    def half(nodes):
        scale = rng.uniform(1, 40, hidden)  # a tanh whose front may lie anywhere in [0, 1]
        inner, bias = scale[None, :], -scale * rng.uniform(-0.1, 1.1, hidden)
        u, values, vt = np.linalg.svd(np.tanh(nodes[:, None] @ inner + bias[None, :]), full_matrices=False)
        keep = values > 1e-6 * values[0]
        return {"inner": inner, "bias": bias}, u[:, keep], vt[keep].T / values[keep][None, :]

    (left, u, to_left), (right, v, to_right) = half(t), half(s)
    a, values, b = np.linalg.svd(u.T @ target @ v, full_matrices=False)
    left["outer"] = to_left @ (a[:, :rank] * values[None, :rank])
    right["outer"] = to_right @ b[:rank].T
    params = tuple({name: jnp.asarray(array) for name, array in half.items()} for half in (left, right))
    return kernels.LearnedFeatures(network, network, params)


@pytest.mark.sample(1)
@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16])
@pytest.mark.thorough
def test_two_networks_come_near_the_truncated_singular_value_decomposition(rank, x64):
    t, s = np.linspace(0, 1, 120), np.linspace(0, 1, 110)
    new_t, new_s = np.linspace(0.001, 0.998, 77), np.linspace(0.002, 0.999, 83)

    def errors(hidden):
        kernel = two_networks(function(t, s), t, s, rank, hidden)
        for t_nodes, s_nodes in ((t, s), (new_t, new_s)):
            ours = kernel.tile(jnp.asarray(t_nodes)[:, None], jnp.asarray(s_nodes)[:, None])
            target = function(t_nodes, s_nodes)
            values = np.linalg.svd(target, compute_uv=False)
            size = np.linalg.norm(target)
            yield np.linalg.norm(ours - target) / size, np.linalg.norm(values[rank:]) / size

    (seen, best), (unseen, best_unseen) = errors(400)
    assert best * (1 - 1e-9) < seen < 1.05 * best
    assert best_unseen < unseen < 1.2 * best_unseen
    (narrow, _), _ = errors(8)
    assert narrow > seen
