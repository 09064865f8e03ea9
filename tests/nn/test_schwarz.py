"""Two-level Schwarz attention as a layer and in the neural operators: resolution, cost, configuration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, nn, operators

SMALL = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8, "norm": "pre"}
GRID = SMALL | {"patches": 2, "modes": 2, "reference": 8}


def operator(kind, schwarz=None, **options):
    sizes = SMALL | {"dim": 2} if kind == "tno" else GRID | ({"smoothing_modes": 4} if kind == "vitno" else {})
    config = operators.CONFIGS[kind](1, 1, schwarz=schwarz or nn.SchwarzAttentionConfig(2), **(sizes | options))
    return operators.build(config, rngs=nnx.Rngs(0))


call = jax.jit(lambda model, *args: model(*args))


def test_levels_are_what_they_say():
    layer, domain = nn.SchwarzAttentionConfig().make(8, 2, rngs=nnx.Rngs(0)), domains.interval(32, rule="midpoint")
    cut = domains.decompose(domain, 4, 2, coarse="partition")

    @jax.jit
    def levels(layer, u, cut):
        measure = cut.coarsen(jnp.ones((32, 1)))
        averages = jnp.stack([cut.coarsen(v) / measure for v in u])
        coarse = layer.coarse(averages, measure[:, 0])
        both, local = layer(u, cut), nn.SchwarzAttention(layer.local)(u, cut)
        return both - local, jnp.stack([cut.refine(c) for c in coarse])

    difference, refined = levels(layer, np.random.default_rng(0).normal(size=(2, 32, 8)), cut)
    np.testing.assert_allclose(difference, refined, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coarse", ["hat", "partition"])
def test_the_coarse_level_carries_information_across_the_domain(coarse):
    domain = domains.interval(64, rule="midpoint")
    cut = domains.decompose(domain, 8, 2, coarse=coarse)
    u = np.random.default_rng(0).normal(size=(1, 64, 8))
    moved = u + 5.0 * (np.arange(64) == 0)[:, None]
    for is_two_level in (True, False):
        layer = nn.SchwarzAttentionConfig(coarse=coarse if is_two_level else None).make(8, 2, rngs=nnx.Rngs(0))
        change = np.abs(np.asarray(call(layer, moved, cut)) - np.asarray(call(layer, u, cut)))[0, -8:].max()
        assert (change > 1e-4) == is_two_level


@pytest.mark.parametrize("is_two_level", [True, False])
def test_functions_converge_on_finer_grids(is_two_level, x64):
    """The same subdomains on every grid: differences shrink by 9 from grid to grid, as the midpoint rule's do."""
    config = nn.SchwarzAttentionConfig(2, overlap=0.25, coarse="hat" if is_two_level else None)
    layer = config.make(8, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    waves, outputs = np.random.default_rng(3).normal(size=(2, 8)), []
    evaluate = jax.jit(lambda layer, grid: layer(jnp.sin(grid.points @ waves)[None], config.decompose(grid)))
    for side in (8, 24, 72):
        grid, step = domains.box((side, side), rule="midpoint"), side // 8
        out = np.asarray(evaluate(layer, grid)).reshape(side, side, 8)
        outputs.append(out[step // 2 :: step, step // 2 :: step])
    coarse, fine = (np.abs(a - b).max() for a, b in itertools.pairwise(outputs))
    assert coarse / fine > 7


@pytest.mark.parametrize("kind", ["tno", "vitno", "fano"])
def test_operators_give_one_function_on_two_grids(kind):
    model, outputs = operator(kind, nn.SchwarzAttentionConfig(2, coarse="hat")), []

    @jax.jit
    def evaluate(model, grid):
        return model(2 + jnp.sin(2 * grid.points[:, :1]) * jnp.cos(grid.points[:, 1:]), grid)

    for side in (16, 48):
        out = np.asarray(evaluate(model, domains.box((side, side), rule="midpoint"))).reshape(side, side)
        outputs.append(out[side // 32 :: side // 16, side // 32 :: side // 16])
    assert np.abs(outputs[1] - outputs[0]).max() < 0.02 * np.abs(outputs[1]).max()


@pytest.mark.parametrize("kind", ["tno", "vitno", "fano"])
def test_jit_and_training(kind):
    model = operator(kind)
    grid = domains.box((8, 8), rule="midpoint")
    values = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 1)))

    def loss(model, values, grid):
        out = model(values, grid)
        return jnp.sum(out**2), out

    gradient, out = jax.jit(nnx.grad(loss, has_aux=True))(model, values, grid)
    np.testing.assert_allclose(out, model(values, grid), atol=1e-5)
    used = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(gradient) if np.abs(g).max() == 0]
    assert all("key_value" in name or "bias" in name for name in used), used  # a constant in all keys has no influence


def test_meshes_and_clouds_outside_of_jit():
    cloud = domains.monte_carlo(np.random.default_rng(0).random((60, 2), np.float32), measure=1.0)
    model = operator("tno", nn.SchwarzAttentionConfig(4))
    assert np.isfinite(model(cloud.points[:, :1], cloud)).all()
    with pytest.raises(ValueError, match=r"must be known to be decomposed: call the operator outside jax\.jit"):
        jax.jit(lambda d: model(cloud.points[:, :1], d))(cloud)


def test_overlaps_follow_the_cores():
    """A share of the side of a core: of each axis of a box, of the smallest core of uneven nodes, of one in a strip."""
    oblong = nn.SchwarzAttentionConfig(2, 0.25).decompose(domains.box((8, 16), upper=(1, 2), rule="midpoint"))
    np.testing.assert_allclose((oblong.upper - oblong.lower)[0], [0.5 + 0.125, 1 + 0.25], rtol=1e-6)
    uneven = nn.SchwarzAttentionConfig(4, 0.5).decompose(domains.from_samples((np.linspace(0, 1, 64) ** 3).tolist()))
    assert 16 < uneven.size < 32
    points = np.random.default_rng(0).random((320, 2), np.float32) * np.asarray([1, 0.05], np.float32)
    strip = nn.SchwarzAttentionConfig(16, 0.25).decompose(domains.monte_carlo(points, measure=0.05))
    assert 20 < strip.size <= 40


def test_settings_survive_json():
    config = operator("tno", nn.SchwarzAttentionConfig(3, kernel=nn.GaussianConfig(0.5))).config
    assert operators.from_dict(type(config), dataclasses.asdict(config)) == config


BAD = [
    (lambda: nn.SchwarzAttentionConfig(kernel=nn.LinearConfig()), "LinearConfig is signed"),
    (lambda: nn.SchwarzAttentionConfig(subdomains=0), "subdomains must be a positive integer, got 0"),
    (lambda: nn.SchwarzAttentionConfig(overlap=1.5), r"overlap must be a share in \[0, 1\)"),
    (lambda: nn.SchwarzAttentionConfig(coarse="hats"), "coarse='hats' is unknown"),
    (lambda: operator("tno", momentum=nn.MomentumConfig("H1")), "no connection is known for Schwarz attention"),
    (
        lambda: nn.SchwarzAttentionConfig().decompose(domains.stack([domains.interval(8)] * 2)),
        "needs one domain for all samples, got a stack",
    ),
    (
        lambda: operator("vitno")(jnp.ones((2, 64, 1)), domains.stack([domains.box((8, 8), rule="midpoint")] * 2)),
        "one grid for all samples",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
