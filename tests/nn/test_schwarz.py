"""Two-level Schwarz attention as a layer and in the neural operators: resolution, cost, configuration."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, nn, operators, schwarz, spectral, training

SMALL = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8, "norm": "pre"}


def operator(schwarz=None, **options):
    sizes = SMALL | {"dim": 2, "schwarz": schwarz or nn.SchwarzAttentionConfig(2)}
    return operators.build(operators.TransformerNeuralOperatorConfig(1, 1, **(sizes | options)), rngs=nnx.Rngs(0))


call = jax.jit(lambda model, *args: model(*args))


def test_levels_are_what_they_say():
    layer, domain = nn.SchwarzAttentionConfig().make(8, 2, rngs=nnx.Rngs(0)), domains.interval(32, rule="midpoint")
    cut = schwarz.decompose(domain, 4, 2, coarse="partition")

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
@pytest.mark.sample(1)
def test_the_coarse_level_carries_information_across_the_domain(coarse):
    domain = domains.interval(64, rule="midpoint")
    cut = schwarz.decompose(domain, 8, 2, coarse=coarse)
    u = np.random.default_rng(0).normal(size=(1, 64, 8))
    moved = u + 5.0 * (np.arange(64) == 0)[:, None]
    for is_two_level in (True, False):
        layer = nn.SchwarzAttentionConfig(coarse=coarse if is_two_level else None).make(8, 2, rngs=nnx.Rngs(0))
        change = np.abs(np.asarray(call(layer, moved, cut)) - np.asarray(call(layer, u, cut)))[0, -8:].max()
        assert (change > 1e-4) == is_two_level


@pytest.mark.sample(1)
@pytest.mark.parametrize("is_two_level", [True, False])
@pytest.mark.thorough
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


@pytest.mark.thorough
def test_operators_give_one_function_on_two_grids():
    model, outputs = operator(nn.SchwarzAttentionConfig(2, coarse="hat")), []

    @jax.jit
    def evaluate(model, grid):
        return model(2 + jnp.sin(2 * grid.points[:, :1]) * jnp.cos(grid.points[:, 1:]), grid)

    for side in (16, 48):
        out = np.asarray(evaluate(model, domains.box((side, side), rule="midpoint"))).reshape(side, side)
        outputs.append(out[side // 32 :: side // 16, side // 32 :: side // 16])
    assert np.abs(outputs[1] - outputs[0]).max() < 0.02 * np.abs(outputs[1]).max()


@pytest.mark.thorough
def test_jit_and_training():
    model = operator()
    grid = domains.box((8, 8), rule="midpoint")
    values = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 1)))

    def loss(model, values, grid):
        out = model(values, grid)
        return jnp.sum(out**2), out

    gradient, out = jax.jit(nnx.grad(loss, has_aux=True))(model, values, grid)
    np.testing.assert_allclose(out, model(values, grid), atol=1e-5)
    used = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(gradient) if np.abs(g).max() == 0]
    assert all("key_value" in name or "bias" in name for name in used), used  # a constant in all keys has no influence


def cloud(n, seed):
    return domains.monte_carlo(np.random.default_rng(seed).random((n, 2), np.float32), measure=1.0)


@pytest.mark.thorough
def test_a_decomposition_takes_the_place_of_the_domain():
    domain, config = cloud(60, 0), nn.SchwarzAttentionConfig(4)
    model, u = operator(config), domain.points[:, :1]
    with pytest.raises(ValueError, match=r"cannot be decomposed while traced: pass the decomposition"):
        call(model, u, domain)
    cut = config.decompose(domain)
    assert cut.domain is domain
    assert not isinstance(cut, domains.Domain)
    np.testing.assert_allclose(call(model, u, cut), model(u, domain), atol=1e-5)
    np.testing.assert_array_equal(model(u, cut, at=domain), model(u, cut))
    assert config.decompose(cut) is cut
    assert schwarz.decompose(cut, 2, 0.1).domain is domain
    finer = cut.on(cloud(90, 1))
    assert call(model, finer.domain.points[:, :1], finer).shape == (90, 1)
    with pytest.raises(ValueError, match="decomposed without the coarse space of coarse='partition'"):
        config.decompose(schwarz.decompose(domain, 4, 0.1, coarse=None))


def test_operators_without_schwarz_attention_and_decoders_accept_a_decomposition():
    domain = cloud(60, 0)
    cut, u = schwarz.decompose(domain, 4, 0.1), domain.points[:, :1]
    plain = operators.TransformerNeuralOperatorConfig(1, 1, **SMALL, dim=2)
    for config in (plain, dataclasses.replace(plain, decoder_layers=1)):
        model = operators.build(config, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(model(u, cut, at=cut), model(u, domain, at=domain))
    samples = data.Samples(np.asarray(u)[None], np.asarray(u)[None], cut, cut)
    assert (samples.domain, samples.target_domain) == (cut, domain)
    assert (samples[[0]].domain, samples[[0]].target_domain) == (cut, domain)
    np.testing.assert_array_equal(
        data.statistics(samples.inputs, cut).mean, data.statistics(samples.inputs, domain).mean
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda cut: domains.stack([cut]),
        lambda cut: domains.pad(cut, 99),
        lambda cut: domains.partition(cut, (2, 2)),
        lambda cut: spectral.check_grid(cut),
        lambda cut: training.relative_norm(jnp.ones((64, 1)), jnp.ones((64, 1)), cut),
        lambda cut: data.save("nowhere.npz", data.Samples(*np.ones((2, 1, 64, 1), np.float32), cut)),
    ],
)
def test_where_only_a_domain_is_meant_the_message_names_it(call, unchecked):
    with pytest.raises(TypeError, match=r"must be a Domain, got Decomposition; pass .*decomposition\.domain"):
        call(schwarz.decompose(domains.box((8, 8), rule="midpoint"), 2, 1))


@pytest.mark.thorough
@pytest.mark.optax
def test_training_on_scattered_nodes(tmp_path):
    schwarz = nn.SchwarzAttentionConfig(4)
    cut = schwarz.decompose(cloud(60, 0))
    model = operator(schwarz)

    def samples(cut):
        u = np.sin(3 * np.asarray(cut.domain.points)[None, :, :1] + np.arange(4)[:, None, None])
        return data.Samples(u.astype(np.float32), (u**2).astype(np.float32), cut)

    settings = training.TrainingConfig(steps=4, batch_size=2, eval_every=2, checkpoint_every=2, warmup_steps=1)
    result = training.fit(model, samples(cut), {"val": samples(cut)}, settings, run_dir=tmp_path, progress=False)
    assert result.stopped == "completed"
    on_others = training.evaluate(result.model, samples(cut.on(cloud(90, 1))), batch_size=2)
    assert np.isfinite(on_others.l2).all()


@pytest.mark.thorough
def test_uneven_grids_have_the_subdomains_of_even_ones():
    schwarz = nn.SchwarzAttentionConfig(4)
    even = schwarz.decompose(domains.interval(64, rule="midpoint"))
    uneven = schwarz.decompose(domains.from_samples((np.linspace(0, 1, 257) ** 2).tolist()))
    np.testing.assert_allclose(uneven.lower, even.lower, atol=1e-6)
    model = operator(schwarz, dim=1)
    fine = schwarz.decompose(domains.interval(256, rule="midpoint"))
    outputs = [np.asarray(call(model, jnp.sin(3 * cut.domain.points), cut))[:, 0] for cut in (uneven, fine)]
    there = np.interp(np.asarray(fine.domain.points)[:, 0], np.asarray(uneven.domain.points)[:, 0], outputs[0])
    assert np.abs(there - outputs[1]).max() < 0.02 * np.ptp(outputs[1])


def test_overlaps_follow_the_cores():
    """A share of the side of a core: of each axis of a box, of one in a strip, of what a cut leaves of a square."""
    oblong = nn.SchwarzAttentionConfig(2, 0.25).decompose(domains.box((8, 16), upper=(1, 2), rule="midpoint"))
    np.testing.assert_allclose((oblong.upper - oblong.lower)[0], [0.5 + 0.125, 1 + 0.25], rtol=1e-6)
    squares = nn.SchwarzAttentionConfig((2, 4), 0.25).decompose(domains.box((8, 16), upper=(1, 2), rule="midpoint"))
    assert squares.subdomains == 8
    np.testing.assert_allclose((squares.upper - squares.lower)[0], [0.5 + 0.125, 0.5 + 0.125], rtol=1e-6)
    points = np.random.default_rng(0).random((320, 2), np.float32) * np.asarray([1, 0.05], np.float32)
    strip = nn.SchwarzAttentionConfig(16, 0.25).decompose(domains.monte_carlo(points, measure=0.05))
    assert 20 < strip.local_size <= 40
    halves = nn.SchwarzAttentionConfig(2, 0.5).decompose(cloud(400, 0))
    assert 280 < halves.local_size < 320


def test_layers_need_a_decomposition(unchecked):
    domain = domains.interval(16, rule="midpoint")
    layer = nn.SchwarzAttentionConfig(2).make(8, 2, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="decomposition must be a Decomposition, got Grid"):
        layer(jnp.ones((1, 16, 8)), domain)
    with pytest.raises(ValueError, match=r"x must have shape \(b, n, d\) with n = 16 nodes, got \(1, 15, 8\)"):
        layer(jnp.ones((1, 15, 8)), schwarz.decompose(domain, 2, 2, coarse="partition"))


def test_settings_survive_json():
    for subdomains in (3, (3, 2)):
        config = operator(nn.SchwarzAttentionConfig(subdomains, kernel=nn.GaussianConfig(0.5))).config
        assert operators.from_dict(type(config), json.loads(json.dumps(dataclasses.asdict(config)))) == config


BAD = [
    (lambda: nn.SchwarzAttentionConfig(kernel=nn.LinearConfig()), r"kernel=LinearConfig\(\) is signed"),
    (
        lambda: nn.SchwarzAttentionConfig(subdomains=0),
        "subdomains must be a positive integer or a tuple of one per axis, got 0",
    ),
    (lambda: operator(nn.SchwarzAttentionConfig((2, 2, 2))), r"schwarz.subdomains must be one number or dim"),
    (lambda: nn.SchwarzAttentionConfig((2, 2)).decompose(cloud(60, 0)), "subdomains must be one number on PointCloud"),
    (
        lambda: nn.SchwarzAttentionConfig(2).decompose(
            jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), schwarz.decompose(domains.box((8, 8)), 2, 2))
        ),
        "needs one domain for all samples, got a stack",
    ),
    (lambda: nn.SchwarzAttentionConfig((2, 0)), r"subdomains must be .*, got \(2, 0\)"),
    (
        lambda: nn.SchwarzAttentionConfig((2, 2)).decompose(domains.interval(8)),
        r"subdomains must be one number or 1, one per axis of the grid, got \(2, 2\)",
    ),
    (lambda: nn.SchwarzAttentionConfig(overlap=1.5), r"overlap must be a share in \[0, 1\)"),
    (lambda: nn.SchwarzAttentionConfig(coarse="hats"), "coarse='hats' is unknown"),
    (
        lambda: operator(attention=nn.IntegralAttentionConfig(nn.GaussianConfig(0.1))),
        "attention=.*is not used if schwarz is given",
    ),
    (lambda: operator(momentum=nn.MomentumConfig("H1")), "give block='Y' or 'H0' with schwarz, got 'H1'"),
    (
        lambda: nn.SchwarzAttentionConfig().decompose(domains.stack([domains.interval(8)] * 2)),
        "needs one domain for all samples, got a stack",
    ),
    (
        lambda: operator()(jnp.ones((2, 64, 1)), domains.stack([domains.box((8, 8), rule="midpoint")] * 2)),
        "one domain for all samples",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
