"""An ensemble and its matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.flows.cases import D, N, symmetric


@pytest.fixture
def ensemble(x64):
    rng = np.random.default_rng(0)
    x, u = 0.7 * rng.normal(size=(2, N, D))
    return x, u, rng.uniform(0.2, 2.0, N)


@pytest.fixture
def matrices(x64):
    rng = np.random.default_rng(1)
    return {"score": jnp.asarray(symmetric(rng, definite=False)), "mobility": jnp.asarray(symmetric(rng))}
