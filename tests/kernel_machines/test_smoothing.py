"""Density and regression estimators: constants, rates, and the exact error for a Gaussian density."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from studies.theory import best_radius, measured_error

from jaxop import kernel_machines as km
from jaxop import testing


@pytest.mark.parametrize(("power", "value"), [(1, 1), (2, 1), (4, 2 / 3), (6, 11 / 20), (8, 151 / 315)])
def test_integrals_of_powers_of_sinc(power, value):
    assert km.sinc_power_integral(power) == pytest.approx(math.pi * value, rel=1e-12)


FITTED = [
    km.FourierDensity(2.0),
    km.FourierDensity(jnp.asarray([1.0, 3.0]), 2),
    km.FourierDensity(2.0, 6),
    km.GaussianDensity(0.4),
    km.GaussianDensity(jnp.asarray([[0.3, 0.2], [0.2, 0.4]])),
]


@functools.partial(jax.jit, static_argnames="block_size")
def predict(fitted, x, block_size=None):
    return fitted.predict(x, block_size=block_size)


@pytest.mark.parametrize("estimator", FITTED, ids=lambda e: type(e).__name__)
@pytest.mark.sample(2)
def test_densities_integrate_to_one(estimator):
    points = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    axis = np.linspace(-25, 25, 251, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = jax.jit(lambda points, x: estimator.fit(points).predict(x))(points, grid)
    assert np.sum(density) * 0.2**2 == pytest.approx(1, rel=2e-2)


def test_gaussian_density_is_the_mixture():
    rng = np.random.default_rng(1)
    points, x, weights = rng.normal(size=(6, 2)), rng.normal(size=(4, 2)), rng.uniform(1, 2, 6)
    covariance = np.asarray([[0.3, 0.1], [0.1, 0.2]])
    differences = x[:, None] - points[None]
    exponents = -0.5 * np.einsum("ijk,kl,ijl->ij", differences, np.linalg.inv(covariance), differences)
    expected = np.exp(exponents) @ (weights / weights.sum()) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
    float32 = [jnp.asarray(a.astype(np.float32)) for a in (covariance, points, weights, x)]
    density = km.GaussianDensity(float32[0]).fit(*float32[1:3])
    np.testing.assert_allclose(predict(density, float32[3]), expected, rtol=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "estimator", [km.FourierRegressor(3.0), km.FourierRegressor(3.0, 1), km.GaussianRegressor(0.5)]
)
def test_regression_is_an_average_and_blocks_do_not_matter(estimator):
    rng = np.random.default_rng(2)
    points, x = (rng.uniform(size=(n, 2)).astype(np.float32) for n in (50, 23))
    values = np.stack([np.full(50, 2.5, np.float32), points[:, 0]], axis=1)
    fitted = estimator.fit(jnp.asarray(points), jnp.asarray(values))
    whole = np.asarray(predict(fitted, x))
    np.testing.assert_allclose(whole[:, 0], 2.5, rtol=2e-5)
    for size in (1, 7, 23, 100):
        np.testing.assert_allclose(predict(fitted, x, block_size=size), whole, rtol=2e-5, atol=1e-6)


def test_plain_kernel_reproduces_band_limited_densities_up_to_noise():
    """Power 1 and points on a fine grid with the masses of p: the density itself, negative ripples included."""
    x = np.linspace(-12, 12, 2401, dtype=np.float32)
    masses = np.exp(-(x**2) / 2)
    density = km.FourierDensity(6.0, 1).fit(jnp.asarray(x[:, None]), jnp.asarray(masses))
    at = np.linspace(-3, 3, 31, dtype=np.float32)[:, None]
    np.testing.assert_allclose(predict(density, at), np.exp(-(at[:, 0] ** 2) / 2) / math.sqrt(2 * np.pi), atol=2e-6)


@pytest.mark.thorough
@pytest.mark.sample(1)
@pytest.mark.parametrize(("dim", "count", "replicates"), [(2, 256, 600), (1, 256, 4000)])
def test_error_for_a_gaussian_density_is_the_exact_one(dim, count, replicates):
    radius, exact = best_radius(count, dim, 4)
    assert measured_error(radius, count, dim, 4, replicates=replicates) == pytest.approx(exact, rel=0.02)


def test_exact_rates():
    """N^{−4/(D+4)} for power 4, slower for power 2, faster for the plain kernel, at the optimal radius of each N."""
    counts = [2**k for k in range(10, 19)]
    for dim in (1, 2):
        slope = {p: testing.observed_order(counts, [best_radius(n, dim, p)[1] for n in counts]) for p in (1, 2, 4)}
        assert slope[4] == pytest.approx(4 / (dim + 4), rel=0.15)
        assert slope[2] < slope[4] - 0.05 < slope[4] + 0.05 < slope[1]


@pytest.mark.study
@pytest.mark.parametrize("dim", [1, 2])
def test_measured_density_rates(dim):
    counts = [256, 1024, 4096]
    replicates = {256: 2000, 1024: 800, 4096: 200} if dim == 1 else {256: 400, 1024: 100, 4096: 30}
    slope = {}
    for power in (1, 2, 4):
        errors = [
            measured_error(best_radius(n, dim, power)[0], n, dim, power, replicates=replicates[n]) for n in counts
        ]
        slope[power] = testing.observed_order(counts, errors)
    assert slope[4] == pytest.approx(4 / (dim + 4), rel=0.15)
    assert slope[2] < slope[4] < slope[1]


@pytest.mark.study
@pytest.mark.parametrize("dim", [1, 2])
def test_measured_regression_rates(dim):
    """E (f̂ − f)² at interior points falls like N^{−4/(D+4)} with R ~ N^{1/(D+4)}."""
    counts = [512, 2048, 8192]
    grid = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (200, dim)), jnp.float32)

    def truth(x):
        return jnp.sin(3 * jnp.sum(x, axis=1, keepdims=True))

    def error(count):
        estimator = km.FourierRegressor(2.0 * count ** (1 / (dim + 4)), 4)

        def one(rng_key):
            nodes, noise = jax.random.split(rng_key)
            x = jax.random.uniform(nodes, (count, dim), minval=-1, maxval=1)
            fitted = estimator.fit(x, truth(x) + 0.5 * jax.random.normal(noise, (count, 1)))
            return jnp.mean((fitted.predict(grid) - truth(grid)) ** 2)

        keys = jax.random.split(jax.random.key(1), 100)
        return float(jnp.mean(jax.jit(lambda keys: jax.lax.map(one, keys))(keys)))

    assert testing.observed_order(counts, [error(n) for n in counts]) == pytest.approx(4 / (dim + 4), rel=0.15)


BAD = [
    (lambda: km.FourierDensity(-1.0), "radius must be positive"),
    (lambda: km.FourierRegressor(1.0, 3), "power must be even"),
    (lambda: km.FourierDensity(jnp.ones(3)).fit(jnp.ones((4, 2))), "one entry per coordinate"),
    (lambda: km.GaussianDensity(0.0), "bandwidth must be positive"),
    (lambda: km.GaussianDensity(jnp.ones((2, 2))), "positive definite"),
    (lambda: km.GaussianDensity(jnp.eye(3)).fit(jnp.ones((4, 2))), "must be a number or a matrix"),
    (lambda: km.FourierDensity(1.0).fit(jnp.ones((0, 2))), "at least one point"),
    (
        lambda: km.FourierDensity(1.0).fit(jnp.asarray([[1.0], [jnp.nan]])),
        r"points must be finite, got nan at index \(1, 0\)",
    ),
    (lambda: km.FourierDensity(1.0).fit(jnp.ones((2, 1)), jnp.asarray([1.0, -1.0])), r"weights\[1\] = -1\.0"),
    (lambda: km.FourierDensity(1.0).fit(jnp.ones((2, 1)), jnp.zeros(2)), "weights are all zero"),
    (lambda: km.FourierDensity(1.0).fit(jnp.ones((2, 1)), jnp.ones(3)), "one per point"),
    (lambda: km.FourierRegressor(1.0).fit(jnp.ones((2, 1)), jnp.ones((3, 1))), "one row per point"),
    (lambda: km.FourierDensity(1.0).fit(jnp.ones((2, 1))).predict(jnp.ones((2, 2))), r"x must have shape \(n, D\)"),
    (lambda: km.FourierDensity(1.0).fit(jnp.ones((2, 1))).predict(jnp.ones((2, 1)), block_size=0), "block_size"),
    (lambda: km.FourierDensity(1.0).fit(jnp.ones((2, 1))).predict(jnp.ones((2, 1)), block_size=True), "got True"),
    (lambda: km.sinc_power_integral(True), "power must be a positive integer, got True"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_sizes_may_be_integers_of_numpy(unchecked):
    density = km.GaussianDensity(1.0).fit(jnp.ones((2, 1)))
    np.testing.assert_allclose(density.predict(jnp.ones((3, 1)), block_size=np.int64(2)), 0.3989, rtol=1e-3)
    assert km.sinc_power_integral(np.int64(2)) == pytest.approx(np.pi)


@pytest.mark.sample(2)
@pytest.mark.parametrize("estimator", [*FITTED, km.GaussianDensity(0.05)], ids=lambda e: type(e).__name__)
def test_a_prediction_depends_on_its_own_point_only(estimator):
    """Far and undefined points, their order and the size of blocks change nothing elsewhere."""
    rng = np.random.default_rng(3)
    density = estimator.fit(jnp.asarray((rng.normal(size=(50, 2)) + 1000.0).astype(np.float32)))
    x = (rng.normal(size=(5, 2)) + 1000.0).astype(np.float32)
    alone = np.asarray(predict(density, x, block_size=1))
    for outlier in (-500.0, -5000.0, float("nan")):
        shifted = np.concatenate([np.full((1, 2), outlier, np.float32), x])
        np.testing.assert_allclose(np.asarray(predict(density, shifted))[1:], alone, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(predict(density, shifted[::-1]))[:-1], alone[::-1], rtol=1e-5)
    assert density.predict(jnp.asarray(x[:0])).shape == (0,)


@pytest.mark.parametrize(
    "estimator", [km.FourierDensity(10.0), km.GaussianDensity(0.1)], ids=lambda e: type(e).__name__
)
@pytest.mark.sample(1)
def test_many_dimensions_neither_overflow_nor_vanish(estimator):
    """D = 64: constants of e^±100, densities that do not fit float32, logarithms that do."""
    rng = np.random.default_rng(4)
    points = rng.normal(size=(50, 64))
    near, far = points[:3] + 0.03 * rng.normal(size=(3, 64)), rng.normal(size=(2, 64))
    density = estimator.fit(jnp.asarray(points.astype(np.float32)))
    logs, values = jax.jit(lambda x: (density.log_predict(x), density.predict(x)))(
        np.concatenate([near, far]).astype(np.float32)
    )
    differences = np.concatenate([near, far])[:, None] - points[None]
    if isinstance(estimator, km.FourierDensity):
        kernel = 4 * np.log(np.abs(np.sinc(10.0 * differences / np.pi))).sum(axis=-1)
        constant = 64 * (np.log(10.0) - np.log(km.sinc_power_integral(4)))
    else:
        kernel = -0.5 * (differences**2).sum(axis=-1) / 0.1**2
        constant = -64 * np.log(0.1 * np.sqrt(2 * np.pi))
    exact = np.logaddexp.reduce(kernel, axis=1) - np.log(50) + constant
    np.testing.assert_allclose(logs, exact, rtol=1e-4, atol=1e-2)
    assert not np.isnan(np.asarray(values)[3:]).any()


def test_half_precision_samples_are_computed_in_float32():
    points = np.random.default_rng(5).normal(size=(20, 2)).astype(jnp.bfloat16)
    for estimator in (km.FourierDensity(2.0), km.GaussianDensity(0.3)):
        predict = jax.jit(lambda p, estimator=estimator: estimator.fit(p).predict(p[:3]))
        ours, wide = predict(points), predict(points.astype(np.float32))
        np.testing.assert_array_equal(ours, wide)


def test_a_nearly_singular_bandwidth_is_usable():
    c = 1 - 1e-8
    density = km.GaussianDensity(np.asarray([[1, c], [c, 1]])).fit(jnp.zeros((2, 2)))
    logs = jax.jit(lambda x: density.log_predict(x))(np.asarray([[0.1, 0.1], [0.0, 0.0]], np.float32))
    assert np.isfinite(logs).all()
    with pytest.raises(ValueError, match="symmetric and positive definite"):
        km.GaussianDensity(np.asarray([[1e-9, 5e-9], [0, 1e-9]]))


def test_a_traced_negative_radius_is_its_size():
    points = jnp.asarray(np.random.default_rng(6).normal(size=(20, 1)).astype(np.float32))
    predict = jax.jit(lambda radius: km.FourierDensity(radius).fit(points).predict(points[:2]))
    np.testing.assert_allclose(predict(-2.0), predict(2.0), rtol=1e-6)


@pytest.mark.thorough
def test_large_powers_and_bad_ones():
    assert km.sinc_power_integral(200) == pytest.approx(math.sqrt(6 * math.pi / 200), rel=1e-2)
    with pytest.raises(ValueError, match="power must be a positive integer, got 0"):
        km.sinc_power_integral(0)
