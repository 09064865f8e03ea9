"""An attention layer with biases that matter, and tokens for it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxop import nn

B, N, D, HEADS = 2, 7, 8, 2


def attention(seed=0, **options):
    layer = nn.IntegralAttention(D, HEADS, rngs=nnx.Rngs(seed), **options)
    for linear in (layer.query, layer.key_value, layer.output):  # biases that matter
        linear.bias[...] = jnp.asarray(arrays(*linear.bias.shape, seed=seed + 1))
    return layer


def arrays(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


call = jax.jit(lambda model, *args: model(*args))
