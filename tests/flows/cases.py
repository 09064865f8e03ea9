"""Matrices of ensembles, and the energy that flows are compared with."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxop import flows

N, D = 12, 3


def symmetric(rng, size=D, definite=True):
    m = rng.normal(size=(size, size))
    return m @ m.T / size + 0.3 * np.eye(size) if definite else (m + m.T) / 2


def replaced(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


def energy(x, y, weights, score, mobility):
    """H(X, Y) by explicit sums."""
    w = weights / weights.sum()
    m = jnp.exp(x @ score @ x.T)
    z = m @ w
    return jnp.sum(w * jnp.sum((y @ mobility) * y, axis=1) / z) / 2 - w @ m @ w / 2


@jax.jit
def momentum_rates(x, y, weights, **matrices):
    """ẋ and ẏ."""
    drift, force = flows.softmax_momentum_rates(x, y, weights, **matrices)
    return drift(y), force
