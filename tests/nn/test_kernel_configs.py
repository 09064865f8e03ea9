"""Kernels by configuration, in every layer that takes one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, kernels, nn, operators, transformers
from jaxop.attention import integral_attention

CHOICES = [
    nn.GaussianConfig(),
    nn.EuclideanDistanceConfig(),
    nn.IntersectionConfig(),
    nn.QuadraticConfig(),
    nn.TruncatedExponentialConfig(degree=2),
    nn.TruncatedExponentialConfig(degree=1, clip=True),
    nn.LearnedFeaturesConfig(features=3, hidden=4),
]
choices = pytest.mark.parametrize("choice", CHOICES, ids=lambda c: f"{c.name}-{getattr(c, 'degree', '')}")
PARAMETERS = {"gaussian": 2, "intersection": 2, "quadratic": 2, "learned_features": 2 * 2 * (4 * 4 + 4 + 4 * 3 + 3)}
"""Trainable numbers of a kernel with 2 heads of 4 channels; the others have none."""


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.sample(2)
@choices
def test_attention_is_the_integral_of_its_kernel_and_trains_it(choice):
    attention = nn.IntegralAttentionConfig(kernel=choice).make(8, 2, rngs=nnx.Rngs(0))
    x, weights = np.random.default_rng(1).normal(size=(3, 6, 8)), np.linspace(0.5, 1.5, 6)
    graphdef, params = nnx.split(attention)
    assert size(params.get("kernel", {})) == PARAMETERS.get(choice.name, 0)

    @jax.jit
    def outputs(params, x, weights):
        loss = lambda params: jnp.sum(nnx.merge(graphdef, params)(x, weights) ** 2)  # noqa: E731
        attention = nnx.merge(graphdef, params)
        query, key, value = (a[0] for a in attention.project(x, x))
        kernel = attention.kernel.value
        signed = kernel.sign == "signed"
        share = weights / weights.sum() if signed else weights
        options = {"kernel": kernel, "normalize": not signed, "implementation": "dense"}
        mixed = integral_attention(query, key, value, share, **options)
        return jax.value_and_grad(loss)(params), attention.mix(x, weights)[0], mixed

    (value, gradient), ours, mixed = outputs(params, x, weights)
    assert np.isfinite(value)
    leaves = jax.tree.leaves(gradient.get("kernel", {}))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert all(np.abs(leaf).max() > 1e-6 for leaf in leaves)
    np.testing.assert_allclose(ours, mixed, rtol=1e-4, atol=1e-5)


def test_two_models_of_one_config_have_one_structure():
    """Learned features hold functions: they are the same objects."""
    config = nn.IntegralAttentionConfig(kernel=nn.LearnedFeaturesConfig(3, 4))
    first, second = (nnx.graphdef(config.make(8, 2, rngs=nnx.Rngs(seed))) for seed in (0, 1))
    assert first == second


def test_learned_features_start_at_the_size_of_one():
    kernel = nn.LearnedFeaturesConfig(features=64, hidden=128).make(4, 16, rngs=nnx.Rngs(0))
    query, key = np.random.default_rng(0).normal(size=(2, 50, 4, 16))
    tiles = jax.jit(jax.vmap(lambda each, q, k: each.kernel.tile(q, k), (0, 1, 1)))(kernel, query, key)
    assert 0.2 < np.std(tiles) < 2


@pytest.mark.sample(1)
@choices
def test_operators_on_functions(choice):
    domain = domains.box((8, 8), rule="midpoint")
    values = np.sin(3 * np.asarray(domain.points)[:, :1])
    sizes = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8}
    attention = nn.IntegralAttentionConfig(kernel=choice)
    configs = [operators.CONFIGS["tno"](1, 1, dim=2, attention=attention, **sizes)]
    if not isinstance(choice, nn.LearnedFeaturesConfig):
        vit = operators.CONFIGS["vitno"](1, 1, patches=2, modes=2, reference=8, smoothing_modes=2, **sizes)
        configs.append(dataclasses.replace(vit, kernel=choice))
    for config in configs:
        graphdef, params = nnx.split(operators.build(config, rngs=nnx.Rngs(0)))

        @jax.jit
        @jax.value_and_grad
        def loss(params, values, domain, graphdef=graphdef):
            return jnp.sum(nnx.merge(graphdef, params)(values, domain) ** 2)

        value, gradient = loss(params, values, domain)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_images():
    kernel = nn.TruncatedExponentialConfig(degree=4)
    attention = nn.IntegralAttentionConfig(kernel=kernel)
    sizes = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8}
    config = transformers.VisionTransformerConfig(8, 3, 5, attention=attention, **sizes)
    model = transformers.VisionTransformer(config, rngs=nnx.Rngs(0))
    assert jax.jit(lambda m, images: m(images))(model, np.ones((2, 8, 8, 3))).shape == (2, 5)


def test_linear_attention_by_features_takes_no_mask():
    attention = nn.IntegralAttentionConfig(kernel=nn.LearnedFeaturesConfig(3, 4)).make(8, 2, rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match="linear attention does not take a mask"):
        attention(jnp.asarray(np.ones((1, 4, 8))), mask=jnp.asarray(np.ones(4, bool)))


def test_composed_kernels_are_trained_by_a_layer():
    one, half = (jnp.asarray(np.full(2, value)) for value in (1.0, 0.5))
    kernel = kernels.Gaussian(one) + kernels.Scaled(kernels.Quadratic(one), half)
    attention = nn.IntegralAttention(8, 2, kernel=kernels.PerHead(kernel), rngs=nnx.Rngs(0))
    x = np.random.default_rng(1).normal(size=(1, 6, 8))
    gradient = jax.jit(nnx.grad(lambda m, x: jnp.sum(m(x) ** 2)))(attention, x)
    leaves = jax.tree.leaves(gradient["kernel"])
    assert [leaf.shape for leaf in leaves] == [(2,)] * 3
    assert all((np.abs(leaf) > 1e-7).all() for leaf in leaves)


MANY = sum((kernels.Gaussian(float(i)) for i in range(2, 13)), start=kernels.Gaussian(1.0))
MAPS = [jnp.asarray(np.random.default_rng(i).normal(size=(4, 2))) for i in range(2)]


@pytest.mark.parametrize(
    "kernel",
    [3.0 * kernels.Gaussian(2.0), kernels.Projected(kernels.ExpDotProduct(), *MAPS), MANY],
    ids=["scaled", "projected", "sum of twelve"],
)
def test_parameters_keep_their_order(kernel):
    """Modules are put together again with sorted names."""
    parameters = nn.KernelParameters(kernel)
    copies = nnx.clone(parameters).value, nnx.jit(lambda p: p.value)(parameters)
    for copy in copies:
        for ours, theirs in zip(jax.tree.leaves(copy), jax.tree.leaves(kernel), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
