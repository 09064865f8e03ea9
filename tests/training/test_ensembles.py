"""Scores of ensembles: by hand, in closed form, and what they must not depend on; bands of ensembles hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jaxop import data, domains, operators, training
from tests.scale.cases import configs

pytestmark = pytest.mark.optax

FNO = configs()["fno"]
TNO = dataclasses.replace(configs()["tno"], dim=1)


def cloud(count=7, seed=0):
    random = np.random.default_rng(seed)
    points, weights = random.random((count, 1)), random.random(count)
    return domains.PointCloud(jnp.asarray(points, jnp.float32), jnp.asarray(weights, jnp.float32))


def split(domain, *functions):
    """The first node as two of half its weight, and a node of weight 0 with other values."""
    weights = jnp.concatenate([domain.weights[:1] / 2, domain.weights[:1] / 2, domain.weights[1:], jnp.zeros(1)])
    points = jnp.concatenate([domain.points[:1], domain.points, domain.points[:1]])
    wider = (jnp.concatenate([f[..., :1, :], f, 1e3 * f[..., :1, :]], axis=-2) for f in functions)
    return domains.PointCloud(points, weights), *wider


def normals(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("fair", [True, False])
def test_the_crps_of_three_members_by_hand(fair):
    domain, members, truth = cloud(), normals(3, 7, 2), normals(7, 2, seed=1)
    x, t, w = (np.asarray(a, np.float64) for a in (members, truth, domain.weights))
    pairs = sum(np.abs(x[e] - x[f]) for e in range(3) for f in range(3))
    by_node = np.abs(x - t).mean(axis=0) - pairs / (2 * 3 * (2 if fair else 3))
    expected = (w @ by_node / w.sum()).mean()
    assert training.crps(members, truth, domain, fair=fair) == pytest.approx(expected, rel=1e-5)


def test_the_crps_of_two_members_is_their_distance_minus_half_a_gap():
    domain = domains.interval(5)
    members = jnp.array([0.0, 4.0])[:, None, None] * jnp.ones((2, 5, 1))
    truth = jnp.full((5, 1), 1.0)
    assert training.crps(members, truth, domain) == pytest.approx(2 - 2)  # (1 + 3)/2 − 4/2
    assert training.crps(members, truth, domain, fair=False) == pytest.approx(2 - 1)


def test_the_fair_crps_of_normal_members_is_that_of_the_normal_distribution():
    """σ (z (2Φ(z) − 1) + 2φ(z) − 1/√π) at t = μ + σ z, without bias for five members; the unfair one has a bias."""
    domain = domains.interval(20_000, rule="midpoint")
    members = 2 * normals(5, 20_000, 1) + 1
    z = 0.7
    truth = jnp.full((20_000, 1), 1 + 2 * z)
    expected = 2 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert training.crps(members, truth, domain) == pytest.approx(expected, abs=0.02)
    biased = training.crps(members, truth, domain, fair=False)
    assert biased - expected == pytest.approx(2 / np.sqrt(np.pi) / 5, abs=0.02)  # E|X − X′|/(2E) = σ/(E√π)


def test_split_nodes_and_nodes_without_weight_change_nothing():
    domain, members, truth = cloud(), normals(4, 7, 2), normals(7, 2, seed=1)
    wider, more_members, more_truth = split(domain, members, truth)
    for score in (training.crps, training.rank_shares):
        ours, theirs = score(members, truth, domain), score(more_members, more_truth, wider)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_exchangeable_members_are_on_the_diagonal():
    """Of any distribution, here exponential; of members that are half as wide, fewer truths are inside."""
    domain, draws = cloud(4000), np.random.default_rng(2).exponential(size=(6, 4000, 2)).astype(np.float32)
    shares = training.rank_shares(jnp.asarray(draws[1:]), jnp.asarray(draws[0]), domain)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(shares, 1 / 6, atol=0.02)
    levels, observed = training.calibration_curve(shares)
    np.testing.assert_allclose(levels, [1 / 3, 2 / 3])
    np.testing.assert_allclose(observed, levels, atol=0.03)
    narrow = training.rank_shares(jnp.asarray(1 + (draws[1:] - 1) / 2), jnp.asarray(draws[0]), domain)
    assert (training.calibration_curve(narrow)[1] < levels - 0.1).all()


def test_ties_count_evenly_for_all_ranks():
    domain = domains.interval(4, rule="midpoint")
    members = jnp.array([1.0, 1.0, 2.0])[:, None, None] * jnp.ones((3, 4, 1))
    for truth, expected in ((1.0, [1 / 3, 1 / 3, 1 / 3, 0]), (2.0, [0, 0, 0.5, 0.5]), (0.0, [1, 0, 0, 0])):
        np.testing.assert_allclose(training.rank_shares(members, jnp.full((4, 1), truth), domain), expected, rtol=1e-6)


def test_the_curve_of_many_functions_is_their_mean():
    ranks = np.array([[0.5, 0.1, 0.1, 0.2, 0.1], [0.1, 0.2, 0.2, 0.2, 0.3]])
    levels, observed = training.calibration_curve(ranks)
    np.testing.assert_allclose(levels, [0.2, 0.6])
    np.testing.assert_allclose(observed, [(0.1 + 0.2) / 2, (0.4 + 0.6) / 2])


def ensemble_of(config, members=3):
    return operators.Ensemble(operators.EnsembleConfig(config, members=members), rngs=nnx.Rngs(0))


def on_grid(count=5):
    grid = domains.box((4, 4), rule="midpoint")
    return data.Samples(*(np.asarray(normals(count, 16, 1, seed=seed)) for seed in (3, 4)), grid)


def ragged():
    pairs = [(cloud(n, seed=n), np.asarray(normals(n, 2, seed=n))) for n in (9, 30, 9, 12, 30)]
    return data.RaggedSamples([data.Sample(v[:, :1], v[:, 1:], domain) for domain, v in pairs])


@pytest.mark.parametrize(
    ("config", "make"), [(FNO, on_grid), pytest.param(TNO, ragged, marks=pytest.mark.thorough)], ids=["grid", "ragged"]
)
def test_an_evaluation_has_the_errors_of_the_mean_and_the_scores_of_the_members(config, make):
    ensemble, samples = ensemble_of(config), make()
    found = training.evaluate_ensemble(ensemble, samples, batch_size=2)
    mean = training.evaluate(ensemble, samples, batch_size=2)
    np.testing.assert_allclose(found.l2, mean.l2, rtol=1e-5)
    assert (found.h1 is None) == (mean.h1 is None)
    if mean.h1 is not None:
        np.testing.assert_allclose(found.h1, mean.h1, rtol=1e-5)
    members = [training.predict(ensemble.member(number), samples) for number in range(3)]
    alone = [training.evaluate(ensemble.member(number), samples).l2 for number in range(3)]
    np.testing.assert_allclose(found.members, np.stack(alone, axis=1), rtol=1e-4)
    for i in range(len(samples)):
        one = samples.sample(i)
        nodes, truth, each = one.target_domain, np.asarray(one.targets), np.stack([m[i] for m in members])
        size = np.asarray(nodes.weights) @ np.abs(truth[:, 0]) / float(nodes.measure)
        assert found.crps[i] == pytest.approx(
            float(training.crps(jnp.asarray(each), jnp.asarray(truth), nodes)) / size, rel=1e-4
        )
        spread = nodes.norm(jnp.asarray(each.std(axis=0, ddof=1))) / nodes.norm(jnp.asarray(truth))
        assert found.spread[i] == pytest.approx(float(spread), rel=1e-4)
        np.testing.assert_allclose(
            found.ranks[i], training.rank_shares(jnp.asarray(each), jnp.asarray(truth), nodes), atol=1e-5
        )


def test_bands_of_an_ensemble_hold():
    """The truth is a further member, and the calibration makes up for a spread that is too small by any factor."""
    random, grid = np.random.default_rng(5), domains.box((4, 4), rule="midpoint")
    u = random.normal(size=(1200, 16, 1)).astype(np.float32)
    ensemble = ensemble_of(FNO, 4)
    further = operators.build(FNO, rngs=nnx.Rngs(9))
    blank = data.Samples(u, u, grid)
    v = training.predict(further, blank, batch_size=400) + random.normal(size=u.shape).astype(
        np.float32
    ) * 0.1 * np.abs(u)
    samples = data.Samples(u, v, grid)
    half = samples.take(range(600))
    model = training.calibrate(ensemble, half, alpha=0.1, delta=0.2, batch_size=300)
    assert model.config.count == 600
    new = samples[600:]
    prediction, half_width = jax.jit(type(model).__call__)(model, new.inputs, grid)
    np.testing.assert_allclose(prediction, training.predict(ensemble, samples.take(range(600, 1200))), atol=1e-5)
    scores = training.band_scores(prediction, new.targets, grid, alpha=0.1, spread=half_width)
    coverage = float((scores <= 1).mean())
    # Beta(k, n + 1 − k) of the calibration and a binomial of the test: a deviation of 2.3 %
    assert coverage == pytest.approx(0.8, abs=0.07)
    assert float(half_width.std()) > 0.05 * float(half_width.mean())  # not one width


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named():
    domain, members, truth = cloud(), normals(3, 7, 2), normals(7, 2)
    for score in (training.crps, training.rank_shares):
        with pytest.raises(ValueError, match=r"shapes \(E, k, c\) and \(k, c\) with k = 7.*\(3, 7, 2\) and \(7, 1\)"):
            score(members, truth[:, :1], domain)
        with pytest.raises(ValueError, match="at least 2 members, got 1"):
            score(members[:1], truth, domain)
    for ranks in (np.ones(2), np.ones((2, 2, 3)), np.array([0.5, np.nan, 0.5]), np.array([1.5, -0.5, 0.0])):
        with pytest.raises(ValueError, match="ranks must be shares of at least 3 ranks"):
            training.calibration_curve(ranks)
    operator = operators.build(FNO, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"model must be an operators.Ensemble; training.evaluate takes other models"):
        training.evaluate_ensemble(operator, on_grid())


def test_what_is_no_number_has_no_rank():
    domain = domains.from_nodes(np.arange(3)[:, None], [1.0, 1.0, 0.0])
    members, truth = np.zeros((2, 3, 1), np.float32), np.ones((3, 1), np.float32)
    truth[2] = np.nan  # at a node of weight 0
    shares = jax.jit(training.rank_shares)
    np.testing.assert_allclose(shares(members, truth, domain), [0, 0, 1])
    for broken in (0, 1):
        wrong = members.copy()
        wrong[broken, 1] = np.nan
        assert np.isnan(shares(wrong, truth, domain)).all()
