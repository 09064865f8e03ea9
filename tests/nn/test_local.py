"""Local integrals before an attention: what the modules compute, on one domain and on a stack, and their settings."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import attention, domains, nn

RADII = (0.1, 0.3)


def layers():
    rngs = nnx.Rngs(0)
    local = nn.LocalAverageConfig(radius=0.1).make(4, 2, dim=1, rngs=rngs)
    local.log_radius[...] = jnp.log(jnp.asarray(RADII))
    local.value.kernel[...] = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32))
    return nn.LocalThenGlobal(local, nn.LatentAttention(4, 2, latents=3, rngs=rngs))


def test_values_are_averaged_by_head_before_the_attention():
    layer = layers()
    clouds = [domains.from_samples(nodes) for nodes in ([0.0, 0.2, 0.3, 1.0], [0.0, 0.5, 0.6, 0.7])]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32))
    run = jax.jit(lambda layer, x, weights, domain: layer(x, weights, domain=domain))
    shared = run(layer, x, clouds[0].weights, clouds[0])
    stack = domains.stack(clouds)
    own = run(layer, x, jnp.stack([cloud.weights for cloud in clouds]), stack)

    @jax.jit
    def expected(x, cloud):
        value = layer.local.value(x).reshape(4, 2, 2)
        averages = attention.local_averages(value, cloud, radius=jnp.asarray(RADII))
        return layer.attention((x + averages.reshape(4, 4))[None], cloud.weights)[0]

    for i in range(2):
        np.testing.assert_allclose(shared[i], expected(x[i], clouds[0]), atol=1e-6)
        np.testing.assert_allclose(own[i], expected(x[i], clouds[i]), atol=1e-6)
    assert np.abs(own[1] - shared[1]).max() > 1e-4


def test_training_starts_at_the_attention_alone():
    layer = nn.LocalThenGlobal(nn.LocalAverageConfig().make(4, 2, dim=1, rngs=nnx.Rngs(0)), lambda x, weights: x)
    x, domain = jnp.ones((1, 5, 4)), domains.interval(5)
    np.testing.assert_array_equal(layer(x, domain.weights, domain=domain), x)


@pytest.mark.thorough
@pytest.mark.usefixtures("unchecked")
def test_spectral_integrals_are_one_operator_on_grids_of_equal_weights():
    integral = nn.SpectralIntegralConfig(modes=3).make(4, 2, dim=1, rngs=nnx.Rngs(0))
    wave = np.sin(2 * np.pi * np.arange(1, 5) / 4 + 4 * np.pi * np.arange(16)[:, None] / 16)[None].astype(np.float32)
    coarse, fine = (domains.interval(n, rule="periodic") for n in (8, 16))
    np.testing.assert_array_equal(integral(jnp.asarray(wave), fine), 0 * wave)  # training starts at the attention alone
    multipliers = integral.convolution.multipliers
    shape = multipliers[...].shape
    multipliers[...] = jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    out = integral(jnp.asarray(wave), fine)
    np.testing.assert_allclose(integral(jnp.asarray(wave[:, ::2]), coarse), out[:, ::2], atol=1e-5)
    assert np.abs(out).max() > 0.1
    assert integral(jnp.asarray(wave, jnp.bfloat16), fine).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"equal weights on the whole period, got rule='trapezoid'"):
        integral(wave, domains.interval(16))
    with pytest.raises(TypeError, match="a spectral layer needs a grid"):
        integral(wave, domains.monte_carlo(np.ones((16, 1), np.float32)))


@pytest.mark.usefixtures("unchecked")
def test_bad_modes():
    with pytest.raises(ValueError, match="modes must be at least 1, got 0"):
        nn.SpectralIntegralConfig(0)


@pytest.mark.parametrize(
    ("radius", "error", "message"),
    [
        (0.0, ValueError, "radius must be positive and finite, a length in the unit of the nodes, got 0.0"),
        (float("nan"), ValueError, "radius must be positive and finite"),
        ("0.1", TypeError, "radius must be a number"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(radius, error, message):
    with pytest.raises(error, match=re.escape(message)):
        nn.LocalAverageConfig(radius=radius)


@pytest.mark.usefixtures("unchecked")
def test_bad_layers():
    with pytest.raises(ValueError, match="heads must divide the width"):
        nn.LocalAverageConfig().make(4, 3, dim=1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="local must be a module that is called as local"):
        nn.LocalThenGlobal(nn.LocalAverageConfig(), nn.LatentAttention(4, 2, rngs=nnx.Rngs(0)))
