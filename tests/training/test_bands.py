"""Conformal bands: the score is a quantile of the domain's measure, and the factor covers as often as it says."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, training

LEVELS = [(0.1, 0.1), (0.05, 0.05), (0.02, 0.02)]


def cloud(n, seed=0):
    random = np.random.default_rng(seed)
    return domains.PointCloud(
        jnp.asarray(random.random((n, 2)), jnp.float32), jnp.asarray(random.random(n) + 0.1, jnp.float32)
    )


def deviations(n, channels=1, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, channels)), jnp.float32)


@functools.cache
def program(alpha):
    return jax.jit(functools.partial(training.band_score, alpha=alpha))


def score(values, domain, alpha, spread=None):
    return float(program(alpha)(jnp.zeros_like(values), values, domain, spread=spread))


def quantile(ratios, weights, alpha):
    """The definition, in float64: the smallest ratio beyond which at most α of the measure lies."""
    ratios, weights = np.asarray(ratios, np.float64), np.asarray(weights, np.float64)
    fits = [q for q in ratios[weights > 0] if weights[ratios > q].sum() <= alpha * weights.sum() * (1 + 1e-6)]
    return min(fits)


@pytest.mark.parametrize("alpha", [0, 0.02, 0.3, 0.9])
def test_the_score_is_the_quantile_of_the_measure(alpha):
    domain, values = cloud(41), deviations(41, 3)
    spread = jnp.abs(deviations(41, 3, seed=2)) + 0.1
    expected = quantile(np.max(np.abs(values / spread), axis=1), domain.weights, alpha)
    np.testing.assert_allclose(score(values, domain, alpha, spread), expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0, 0.3])
def test_nodes_of_weight_zero_do_not_count_and_split_nodes_count_once(alpha):
    domain, values = cloud(41), deviations(41)
    points, weights = domain.points, domain.weights
    padded = domains.PointCloud(jnp.concatenate([points, points[:9]]), jnp.concatenate([weights, jnp.zeros(9)]))
    for padding in (0.0, 1e6, np.nan):
        assert score(jnp.concatenate([values, jnp.full((9, 1), padding)]), padded, alpha) == score(
            values, domain, alpha
        )
    halves = jnp.where(jnp.arange(41) < 9, weights / 2, weights)
    split = domains.PointCloud(padded.points, jnp.concatenate([halves, halves[:9]]))
    assert score(jnp.concatenate([values, values[:9]]), split, alpha) == score(values, domain, alpha)


@pytest.mark.parametrize("n", [60, 1000])
def test_a_share_that_equal_weights_meet_exactly(n):
    domain = domains.monte_carlo(jnp.asarray(np.random.default_rng(0).random((n, 1)), jnp.float32))
    values = jnp.asarray(np.random.default_rng(1).permutation(n) + 1.0, jnp.float32)[:, None]
    for alpha in (0.1, 0.4):
        assert score(values, domain, alpha) == n - round(alpha * n)


def test_ties():
    domain = domains.monte_carlo(jnp.asarray(np.random.default_rng(0).random((8, 1)), jnp.float32))
    values = jnp.array([1.0, 2, 2, 2, 2, 2, 3, 3])[:, None]
    assert [score(values, domain, alpha) for alpha in (0, 0.2, 0.25, 0.8, 0.9)] == [3, 3, 2, 2, 1]
    assert training.conformal_factor(np.array([1.0, 2, 2, 2, 3, 3, 3, 3, 3]), delta=0.6) == 2


def test_uneven_grids_give_the_quantile_of_the_function():
    random = np.random.default_rng(0)
    for size in (400, 4000):
        nodes = np.sort(random.beta(2, 5, size)).astype(np.float32)
        nodes[[0, -1]] = 0, 1
        domain = domains.from_samples(jnp.asarray(nodes))
        assert score(domain.points**2, domain, 0.19) == pytest.approx(0.81**2, abs=40 / size)


def test_batches_on_one_domain_and_on_a_stack():
    clouds, values = [cloud(17, seed) for seed in range(3)], jnp.stack([deviations(17, 2, seed) for seed in range(3)])
    spread = jnp.abs(values[::-1]) + 0.2
    zeros = jnp.zeros_like(values)
    several = jax.jit(functools.partial(training.band_scores, alpha=0.2))
    for domain, each in ((domains.stack(clouds), clouds), (clouds[0], clouds[:1] * 3)):
        expected = [score(v, d, 0.2, s) for v, d, s in zip(values, each, spread, strict=True)]
        np.testing.assert_allclose(several(zeros, values, domain, spread=spread), expected, rtol=1e-6)


def test_what_is_not_a_number_is_outside_every_band():
    domain, values = cloud(8), deviations(8)
    assert score(values.at[3].set(np.nan), domain, 0) == math.inf
    assert score(values, domain, 0, jnp.ones_like(values).at[3].set(0)) == math.inf
    assert score(values.at[3].set(0), domain, 0.0, jnp.ones_like(values).at[3].set(0)) < math.inf
    assert score(values.at[3].set(np.nan), domain, 0.5) < math.inf


@pytest.mark.parametrize(("alpha", "delta"), LEVELS)
def test_coverage_of_exchangeable_functions(alpha, delta):
    """Functions of random size and shape, calibrated on 64 even nodes and tested on 60 uneven ones."""
    splits, n, tests = 40, 200, 300
    random = np.random.default_rng(3)
    even = domains.interval(64, rule="midpoint")
    uneven = domains.from_samples(jnp.asarray(np.linspace(0, 1, 60, dtype=np.float32) ** 1.7))
    sizes, phases = random.lognormal(size=(2, splits, n + tests, 1)), random.random((splits, n + tests, 1, 2))

    def functions(domain, which):
        x = np.asarray(domain.points)[:, 0]
        waves = np.sin(2 * np.pi * (x + phases[:, which, :, 0])) + sizes[1][:, which] * np.cos(
            7 * (x + phases[:, which, :, 1])
        )
        return jnp.asarray((sizes[0][:, which] * waves).reshape(-1, len(x), 1), jnp.float32)

    scores = jax.jit(functools.partial(training.band_scores, alpha=alpha))

    def of(domain, which):
        values = functions(domain, which)
        return np.asarray(scores(jnp.zeros_like(values), values, domain)).reshape(splits, -1)

    known, new = of(even, slice(0, n)), of(uneven, slice(n, None))
    covered = np.array(
        [np.mean(row <= training.conformal_factor(k, delta=delta)) for k, row in zip(known, new, strict=True)]
    )
    k = math.ceil((n + 1) * (1 - delta))
    mean = k / (n + 1)
    variance = mean * (1 - mean) * (1 / (n + 2) + 1 / tests)  # Beta(k, n + 1 − k), and of so many tests
    assert abs(covered.mean() - mean) < 3.5 * np.sqrt(variance / splits)
    assert covered.std() == pytest.approx(np.sqrt(variance), rel=0.4)


@pytest.mark.parametrize(
    ("n", "delta", "k"), [(9, 0.1, 9), (19, 0.1, 18), (49, 0.02, 49), (99, 0.05, 95), (10, 0.3, 8)]
)
def test_the_number_of_the_score(n, delta, k):
    scores = np.random.default_rng(0).permutation(n) + 1.0
    assert training.conformal_factor(scores, delta=delta) == k


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named():
    domain, values = cloud(5), deviations(5)
    for n, delta, least in ((48, 0.02, 49), (8, 0.1, 9), (18, 0.05, 19)):
        with pytest.raises(
            ValueError, match=rf"scores: {n} functions are too few for delta={delta}, which needs at least {least}"
        ):
            training.conformal_factor(np.ones(n), delta=delta)
    for delta in (0, 1, -0.1, np.nan):
        with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\)"):
            training.conformal_factor(np.ones(50), delta=delta)
    for alpha in (1, -0.1, np.nan):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\)"):
            training.band_score(values, values, domain, alpha=alpha)
    with pytest.raises(TypeError, match="alpha must be a number"):
        training.band_score(values, values, domain, alpha="0.1")
    with pytest.raises(ValueError, match="none of them NaN"):
        training.conformal_factor(np.array([1.0, np.nan]), delta=0.5)
    with pytest.raises(ValueError, match=r"must have one shape \(k, c\) with k = 5"):
        training.band_score(values[:4], values[:4], domain, alpha=0.1)
    with pytest.raises(ValueError, match="prediction, target, spread must have one shape"):
        training.band_score(values, values, domain, alpha=0.1, spread=deviations(5, 2))
    with pytest.raises(ValueError, match="spread must have the shape"):
        training.band_scores(values[None], values[None], domain, alpha=0.1, spread=values)
