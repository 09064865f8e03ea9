"""The latent neural operator: every preset keeps the laws of a quadrature, on any domain, and answers anywhere."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, nn, operators
from jaxop.operators import LatentNeuralOperator, LatentNeuralOperatorConfig
from tests.operators.quadrature import check_answers_anywhere, check_laws, order_on_uneven_nodes, perturbed

PRESETS = ("flare", "lno", "transolver", "transolver_plus", "functional")
ALL = pytest.mark.parametrize("preset", PRESETS)
LOCAL = nn.LocalAverageConfig(radius=0.2)
QUERY = nn.LatentAttentionConfig(latents=3, decode="query")


def small(preset, **options):
    """A preset with few and small layers."""
    config = getattr(LatentNeuralOperatorConfig, preset)(1, 2)
    attention = nn.LatentAttentionConfig(
        **(vars(config.attention) | {"latents": 5, "blocks": min(1, config.attention.blocks)})
    )
    sizes = {"width": 8, "heads": 2, "feedforward": 8, "layers": min(1, config.layers), "attention": attention}
    return getattr(LatentNeuralOperatorConfig, preset)(1, 2, **(sizes | options))


@functools.cache
def make(preset="flare", **options):
    return LatentNeuralOperator(small(preset, **options), rngs=nnx.Rngs(0))


@pytest.mark.sample(1)
@ALL
def test_laws_of_a_quadrature(preset, x64):
    check_laws(perturbed(make(preset)))


@pytest.mark.sample(1)
@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "lno"])
def test_laws_with_local_integrals(preset, x64):
    check_laws(perturbed(make(preset, local=LOCAL)))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("preset", "local"), [("lno", None), ("transolver_plus", None), ("transolver", LOCAL), ("flare", LOCAL)]
)
def test_self_convergence_on_uneven_nodes_has_the_order_of_the_rule(preset, local, x64):
    operator = perturbed(make(preset, decoder_layers=1, local=local))
    assert order_on_uneven_nodes(operator) == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        pytest.param("lno", {}, id="lno"),
        pytest.param("transolver", {"decoder_layers": 2, "attention": QUERY}, id="query", marks=pytest.mark.thorough),
        pytest.param("flare", {"decoder_layers": 1, "local": LOCAL}, id="local", marks=pytest.mark.thorough),
    ],
)
def test_answers_anywhere_for_batches_and_stacks(preset, options):
    check_answers_anywhere(make(preset, **options), 0, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("local", [None, LOCAL], ids=["global", "local"])
def test_meshes_and_grids(local):
    operator = make("transolver", dim=2, local=local)
    side = np.linspace(0, 1, 5, dtype=np.float32)
    vertices = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    corner = np.arange(20).reshape(4, 5)[:, :4].reshape(-1)
    faces = np.concatenate([corner[:, None] + [[0, 5, 6]], corner[:, None] + [[0, 6, 1]]])
    evaluate = jax.jit(lambda operator, domain: operator(jnp.sin(domain.points[:, :1]), domain))
    mesh, grid = (
        evaluate(operator, domain) for domain in (domains.triangle_mesh(vertices, faces), domains.box((5, 5)))
    )
    np.testing.assert_allclose(mesh, grid, atol=0.05)  # both are quadratures of one operator


@pytest.mark.thorough
def test_spectral_integrals_leave_one_operator_on_all_grids(x64):
    operator = perturbed(make("transolver", local=nn.SpectralIntegralConfig(modes=2)))
    run = jax.jit(lambda operator, domain: operator(jnp.sin(2 * jnp.pi * domain.points), domain))
    outputs = [run(operator, domains.interval(n, rule="midpoint")) for n in (27, 81, 243)]
    errors = [
        np.abs(out[n // 54 :: n // 27] - outputs[-1][4::9]).max() for n, out in zip((27, 81), outputs, strict=False)
    ]
    assert errors[1] < errors[0] / 5 < 0.05


@pytest.mark.thorough
def test_every_parameter_has_a_gradient():
    """Of a model with all parts: temperatures, mix, ridge, blocks, and both directions of scores."""
    attention = nn.LatentAttentionConfig(
        latents=3, encode="slices", mix="least_squares", blocks=1, temperature="point", decode="query"
    )
    operator = make("flare", layers=1, decoder_layers=1, attention=attention, local=LOCAL)
    domain, local = domains.interval(6), operator.layers[0].attention.local
    local.value.kernel[...] = jnp.eye(8)  # it starts at 0, where the radius does not count

    @jax.jit
    @jax.grad
    def derivative(params):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(jnp.cos(3 * domain.points), domain)))

    graphdef, params = nnx.split(operator)
    for path, gradient in jax.tree_util.tree_leaves_with_path(derivative(params)):
        name = jax.tree_util.keystr(path)
        # a bias of keys of latents adds one number to all scores of a node
        assert np.isfinite(gradient).all(), name
        assert np.any(gradient) or "latent_key" in name, name


def half(operator):
    return operator(jnp.sin(3 * domains.interval(16).points), domains.interval(16))


def test_half_precision_is_the_dtype_of_the_output():
    for preset in PRESETS:
        operator = nnx.eval_shape(lambda preset=preset: make.__wrapped__(preset, dtype="bfloat16"))
        assert jax.eval_shape(half, operator).dtype == jnp.bfloat16


@pytest.mark.thorough
def test_half_precision():
    run = jax.jit(half)
    out = run(make("transolver_plus", dtype="bfloat16"))
    np.testing.assert_allclose(np.asarray(out, np.float32), run(make("transolver_plus")), atol=0.1)


@pytest.mark.thorough
def test_cost_is_linear_in_the_nodes():
    """Operations that XLA counts, and memory beyond the arguments, at n and 2 n."""

    def cost(n):
        domain = domains.interval(n, rule="midpoint")
        run = jax.jit(lambda operator, values: operator(values, domain)).lower(make(), jnp.ones((n, 1))).compile()
        return np.asarray([run.cost_analysis()["flops"], run.memory_analysis().temp_size_in_bytes])

    assert (cost(2048) <= 2.2 * cost(1024)).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": 0}, ValueError, "layers and decoder_layers are both 0"),
        ({"layers": -1}, ValueError, "layers must be at least 0, got -1"),
        ({"decoder_layers": 2}, ValueError, "decoder_layers must be at most 1 with attention.decode='same'"),
        ({"attention": nn.IntegralAttentionConfig()}, TypeError, "attention must be nn.LatentAttentionConfig(...)"),
        (
            {"local": 0.1},
            TypeError,
            "local must be None, nn.LocalAverageConfig(radius=...) or nn.SpectralIntegralConfig",
        ),
        (
            {"local": LOCAL, "layers": 0, "decoder_layers": 1},
            ValueError,
            "needs layers on the nodes of the input, but layers is 0",
        ),
        ({"widht": 3}, ValueError, "has no field 'widht': did you mean 'width'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_configs(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        LatentNeuralOperatorConfig.flare(1, 1, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"at": domains.interval(3)}, NotImplementedError, "train an operator with decoder_layers=1"),
        ({"values": jnp.ones((5, 1))}, ValueError, "values must have shape (n, c_in) = (6, 1), or (b, n, c_in)"),
        ({"initial": jnp.ones(3)}, ValueError, "initial must be None"),
        ({"domain": domains.box((2, 3))}, ValueError, "domain must have dim=1 space dimensions like the config, got 2"),
    ],
)
def test_bad_calls(call, error, message):
    arguments = {"values": jnp.ones((6, 1)), "domain": domains.interval(6)} | call
    with pytest.raises(error, match=re.escape(message)):
        make()(arguments.pop("values"), arguments.pop("domain"), **arguments)


def test_presets_go_through_for_data_and_build():
    domain = domains.interval(8)
    for preset in PRESETS:
        attention = getattr(LatentNeuralOperatorConfig, preset)(1, 1).attention
        config = LatentNeuralOperatorConfig.for_data(domain, in_channels=1, out_channels=1, attention=attention)
        assert config.attention == attention
        assert operators.from_dict(type(config), operators.to_dict(config)) == config
        assert operators.model_of(config).name == "latent"
