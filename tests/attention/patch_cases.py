"""Functions on patches, and attention between them in plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import kernels
from jaxop.attention.patch import patch_attention

HEADS, DEPTH, RATE = 2, 3, 0.6
RADIUS = 0.15  # R |Q - K| < π: no zeros of sinc, where the integrand is singular
# (query patches, key patches, nodes of a patch, value channels): few long tokens, many short ones
SIZES = {"long tokens": (3, 4, 7, 2), "short tokens": (4, 9, 3, 1)}
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def inner(q, k):
    """Logits of the default kernel, ∫ Q·K dx."""
    return np.sum(q * k, axis=-1)


def distance(q, k):
    """Logits of a Gaussian, −r ∫ |Q − K|² dx."""
    return -RATE * np.sum((q - k) ** 2, axis=-1)


def sinc(q, k):
    """Logits of the Fourier integral kernel, ∫ Σ_d 2 log|sinc(R (Q_d − K_d))| dx."""
    return 2 * np.sum(np.log(np.abs(np.sinc(RADIUS * (q - k) / np.pi))), axis=-1)


def minima(q, k):
    """Logits of the intersection, ∫ Σ_d min(Q_d, K_d) dx."""
    return RATE * np.sum(np.minimum(q, k), axis=-1)


DENSITIES = {"inner product": inner, "Gaussian": distance, "Fourier": sinc, "intersection": minima}
kinds = pytest.mark.parametrize("kind", DENSITIES)
smooth = pytest.mark.parametrize("kind", [kind for kind in DENSITIES if kind != "intersection"])


def gaussian(rate, q, k):
    return -rate * jnp.sum((q - k) ** 2)


def make(kind):
    """The library's kernel of that name; None, its default, for inner products."""
    if kind == "intersection":
        return kernels.Intersection(jnp.asarray(RATE))
    if kind == "Fourier":
        return kernels.FourierIntegral(jnp.asarray(RADIUS), 2)
    return None if kind == "inner product" else kernels.from_pair(gaussian, jnp.asarray(RATE), log=True)


def ones(*shape):
    return jnp.asarray(np.ones(shape, np.float32))


attend = jax.jit(patch_attention, static_argnames="implementation")


def oracle(query, key, value, weights, *, density=inner, mask=None):
    """Softmax over k of Σ_i w_i density(Q_j(x_i), K_k(x_i)), head by head; 0 where nothing is seen."""
    query, key, value, weights = (np.asarray(a, np.float64) for a in (query, key, value, weights))
    p, q, heads = query.shape[0], key.shape[0], query.shape[2]
    seen = np.broadcast_to(True if mask is None else np.asarray(mask), (heads, p, q))
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    for h, j in np.ndindex(heads, p):
        ks = np.flatnonzero(seen[h, j])
        if ks.size:
            scores = np.array([weights @ density(query[j, :, h], key[k, :, h]) for k in ks])
            mass = np.exp(scores - scores.max())
            out[j, :, h] = np.tensordot(mass / mass.sum(), value[ks, :, h], 1)
    return out


def inputs(size, dtype=jnp.float64, seed=0):
    p, q, s, c = size
    rng = np.random.default_rng(seed)
    shapes = (p, s, HEADS, DEPTH), (q, s, HEADS, DEPTH), (q, s, HEADS, c)
    functions = [(2 * rng.normal(size=shape)).astype(dtype) for shape in shapes]
    return *functions, rng.uniform(0.1, 0.4, s).astype(dtype)


@functools.cache
def pull_back(kind):
    """The jitted value, and a cotangent of it pulled back to query, key, value and weights."""

    @jax.jit
    def call(cotangent, *arrays):
        out, pull = jax.vjp(lambda *arrays: patch_attention(*arrays, kernel=make(kind)), *arrays)
        return out, pull(cotangent)

    return call
