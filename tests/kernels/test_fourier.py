"""The sinc-product kernel: exact where it is small, finite everywhere, and a proper average in every row."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from jaxop import kernel_machines, kernels, testing
from jaxop.attention import accumulate, integral_attention
from jaxop.kernels import fourier

POINTS = jnp.asarray([0.0, 1e-6, 0.3, 0.4999, 0.5001, 1.0, 2.0, math.pi, 2 * math.pi, 50.0])


def exact_log_sinc(x):
    x = np.asarray(x, np.float64)
    return np.log(np.abs(np.sinc(x / np.pi)))


@pytest.mark.parametrize("offset", [0.0, 100.0, -1000.0, 30000.0])
@pytest.mark.parametrize("depth", [1, 7, 64])
def test_tile_is_exact_to_rounding_at_any_common_offset(depth, offset):
    rng = np.random.default_rng(depth)
    query, key = (np.float32(offset + rng.normal(size=(n, depth))) for n in (20, 30))
    radius = 1.25
    tile = kernels.FourierIntegral(radius, 2).tile(jnp.asarray(query), jnp.asarray(key))
    differences = radius * (query.astype(np.float64)[:, None] - key.astype(np.float64)[None])
    factors = exact_log_sinc(differences)
    exact = 2 * np.sum(factors, axis=-1)
    # a sine errs by ε max|R q|, and the logarithm of a small one by that over the sine
    bound = 1e-6 * (np.sum(1 / np.exp(factors), axis=-1) + depth)
    assert (np.abs(tile - exact) < bound).all()


@pytest.mark.parametrize("power", [1, 2, 4, 6])
def test_power_and_radius_enter_as_defined(power, x64):
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    radius = np.asarray([0.5, 1.0, 3.0])
    expected = np.prod(np.sinc(radius * (query[:, None] - key[None]) / np.pi) ** power, axis=-1)
    kernel = kernels.FourierIntegral(jnp.asarray(radius), power)
    tile = kernel.tile(jnp.asarray(query), jnp.asarray(key))
    np.testing.assert_allclose(tile if power == 1 else np.exp(tile), expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(kernel(jnp.asarray(query[0]), jnp.asarray(key[0])), expected[0, 0], rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 21])
def test_derivative_of_the_tile_is_that_of_the_definition(depth, x64):
    rng = np.random.default_rng(1)
    query, key, cotangent = (jnp.asarray(rng.normal(size=shape)) for shape in ((70, depth), (9, depth), (70, 9)))
    radius = jnp.asarray(rng.uniform(0.5, 1.5, depth))

    def definition(kernel, query, key):
        return jax.vmap(jax.vmap(kernel.log, in_axes=(None, 0)), in_axes=(0, None))(query, key)

    def gradient(tile):
        def loss(radius, query, key):
            return jnp.vdot(tile(kernels.FourierIntegral(radius), query, key), cotangent)

        return jax.grad(loss, argnums=(0, 1, 2))(radius, query, key)

    for ours, theirs in zip(gradient(kernels.FourierIntegral.tile), gradient(definition), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())


@pytest.mark.parametrize("x", POINTS, ids=lambda x: f"{x:.4g}")
def test_nothing_is_nan_at_equal_nodes_and_at_zeros_of_sinc(x):
    query, key = jnp.asarray([[x, 0.0], [0.0, 0.0]]), jnp.zeros((2, 2))

    def loss(radius, query, key):
        out = integral_attention(
            query[:, None], key[:, None], jnp.asarray([[[1.0]], [[2.0]]]), kernel=kernels.FourierIntegral(radius)
        )
        return jnp.sum(out**2)

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(jnp.asarray(1.0), query, key)
    assert all(np.isfinite(leaf).all() for leaf in (value, *gradients))


def test_a_zero_of_a_factor_has_no_mass_and_no_derivative():
    kernel = kernels.FourierIntegral(1.0, 2)
    # Σ 2^k π/2^k: the rounded sines of these cancel exactly
    query, key = jnp.asarray([[2 * math.pi, 0.3]], jnp.float32), jnp.asarray([[math.pi, 0.1]], jnp.float32)
    log_kernel = fourier.log_sinc(query, key, jnp.ones(2))
    value, slope = jax.value_and_grad(lambda q: kernel.tile(q, key)[0, 0])(query)
    assert all(np.isfinite(leaf).all() for leaf in (log_kernel, value, slope))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_sine_of_exactly_zero_is_finite_and_has_no_slope(dtype, x64):
    nodes = jnp.asarray([3.0, 5.0], dtype)  # sines and cosines that cancel exactly, at a distance of 2
    one = jnp.ones(2, dtype)
    unit = jnp.ones((), dtype)
    slope = fourier._slope(nodes, one, one, unit, nodes[::-1], one, one, unit)
    np.testing.assert_array_equal(np.diag(slope), 0.0)
    sines, differences = fourier._fraction(
        [nodes[None], one[None], one[None], one[:1]], [nodes[None, ::-1], one[None], one[None], one[:1]]
    )
    assert (np.diag(sines) == 0).all()
    mantissa, exponent = fourier.split_bits(sines / differences)
    assert np.diag(mantissa).tolist() == [1, 1]
    assert np.diag(exponent).tolist() == [jnp.finfo(dtype).minexp - 1] * 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_products_are_split_exactly_and_nan_is_not_hidden(dtype, x64):
    x = jnp.asarray([1.0, -0.75, 3e-30, -7e30, float(jnp.finfo(dtype).tiny)], dtype)
    mantissa, exponent = fourier.split_bits(x)
    assert ((mantissa >= 1) & (mantissa < 2)).all()
    np.testing.assert_array_equal(np.ldexp(np.asarray(mantissa), np.asarray(exponent)), np.abs(x))
    bad = jnp.asarray([[jnp.nan, 0.0], [1.0, 2.0]], dtype)
    out = fourier.log_sinc(bad, jnp.zeros((3, 2), dtype), jnp.ones(2, dtype))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


@pytest.mark.parametrize("depth", [64, 128])
def test_rows_never_vanish(depth):
    rng = np.random.default_rng(2)
    query, key = (jnp.asarray(rng.normal(size=(20, 1, depth)), jnp.float32) for _ in range(2))
    ones = jnp.ones((20, 1, 1))
    exact = integral_attention(query, key, ones, kernel=kernels.FourierIntegral(1.0))
    np.testing.assert_allclose(exact, 1.0, rtol=1e-6)
    published = integral_attention(query, key, ones, kernel=kernels.FourierIntegral(1.0, epsilon=1e-6))
    assert (np.asarray(published) < 1e-3).all()  # k/(k + ε) of products that vanish


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_epsilon_is_the_published_one(implementation):
    rng = np.random.default_rng(3)
    query, key, value = (jnp.asarray(rng.normal(size=(12, 2, 4)), jnp.float32) for _ in range(3))
    mask = jnp.asarray(rng.uniform(size=(12, 12)) < 0.7)
    kernel = kernels.FourierIntegral(2.0, 4, epsilon=1e-2)
    differences = np.asarray(query)[:, None] - np.asarray(key)[None, :]
    matrix = np.prod(np.sinc(2.0 * differences / np.pi) ** 4, axis=-1) * np.asarray(mask)[..., None]
    expected = np.einsum("ijh,jhc->ihc", matrix, value) / (np.sum(matrix, axis=1) + 1e-2)[..., None]
    out = integral_attention(query, key, value, kernel=kernel, mask=mask, implementation=implementation)
    np.testing.assert_allclose(out, expected, rtol=2e-4, atol=1e-6)
    weighted = integral_attention(query, key, value, jnp.full(12, 3.0), kernel=kernel, mask=mask)
    np.testing.assert_allclose(weighted, out, rtol=1e-5)
    weights = rng.uniform(0.1, 2.0, 12).astype(np.float32)
    density = matrix * (weights / weights.mean())[None, :, None]
    expected = np.einsum("ijh,jhc->ihc", density, value) / (np.sum(density, axis=1) + 1e-2)[..., None]
    for unit in (1.0, 1e-34):  # of volume: it cancels
        out = integral_attention(
            query, key, value, jnp.asarray(unit * weights), kernel=kernel, mask=mask, implementation=implementation
        )
        np.testing.assert_allclose(out, expected, rtol=2e-4, atol=1e-6)


def test_no_mass_is_zero_with_epsilon_too():
    x, weights = jnp.ones((4, 1, 3)), jnp.zeros(4)

    def total(x, weights):
        return jnp.sum(integral_attention(x, x, x, weights, kernel=kernels.FourierIntegral(1.0, epsilon=1e-6)))

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(x, weights)
    assert value == 0
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(
    "kernel", [kernels.FourierIntegral(1.3), kernels.Gaussian(1.0)], ids=lambda k: type(k).__name__
)
@pytest.mark.parametrize("outlier", [1e3, 1e4, float("nan")])
def test_rows_do_not_see_each_other(kernel, outlier):
    """An outlying or undefined first query changes no bit of the others."""
    rng = np.random.default_rng(7)
    query, key = (jnp.asarray(rng.normal(size=(n, 1, 4)), jnp.float32) for n in (6, 9))
    attend = jax.jit(lambda q: integral_attention(q, key, key, kernel=kernel))
    np.testing.assert_array_equal(attend(query.at[0].set(outlier))[1:], attend(query)[1:])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    x = jnp.asarray(np.random.default_rng(8).normal(size=(5, 3)), dtype)
    wide = kernels.FourierIntegral(1.3).tile(x.astype(jnp.float32), x.astype(jnp.float32))
    tile = kernels.FourierIntegral(1.3).tile(x, x)
    assert tile.dtype == jnp.float32
    np.testing.assert_array_equal(tile, wide)


def test_even_powers_are_positive_definite():
    points = jnp.asarray(np.random.default_rng(4).normal(size=(60, 2)), jnp.float32)
    for power in (2, 4):
        gram = jnp.exp(kernels.FourierIntegral(1.5, power).tile(points, points))
        np.testing.assert_allclose(np.diag(gram), 1.0, rtol=1e-5)
        assert np.linalg.eigvalsh(np.asarray(gram, np.float64)).min() > -1e-4


def test_radius_per_head_and_channel():
    rng = np.random.default_rng(5)
    query, key, value = (jnp.asarray(rng.normal(size=(9, 2, 3)), jnp.float32) for _ in range(3))
    radius = jnp.asarray([[0.5, 1.0, 1.5], [2.0, 1.0, 0.7]])
    out = integral_attention(query, key, value, kernel=kernels.FourierIntegral(radius), kernel_axis=0)
    oracle = testing.attention_oracle(query, key, value, kernel=[kernels.FourierIntegral(row) for row in radius])
    np.testing.assert_allclose(out, oracle, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power": 3}, "power must be even and positive"),
        ({"power": 0}, "power must be even and positive"),
        ({"radius": 0.0}, "radius must be positive and finite"),
        ({"radius": -1.0}, "radius must be positive"),
        ({"radius": jnp.asarray([1.0, jnp.nan])}, "radius must be positive and finite"),
        ({"epsilon": -1e-6}, "epsilon must be a finite number"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.FourierIntegral(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power": "4"}, "power must be an integer, got '4'"),
        ({"power": 4.0}, "power must be an integer, got 4.0"),
        ({"power": True}, "power must be an integer, got True"),
        ({"radius": None}, "radius must be a real number"),
        ({"radius": "wide"}, "radius must be a real number"),
        ({"epsilon": "small"}, "epsilon must be a number"),
    ],
)
def test_parameters_of_another_kind(arguments, message, unchecked):
    with pytest.raises(TypeError, match=message):
        kernels.FourierIntegral(**arguments)


def test_bad_use():
    x = jnp.ones((3, 1, 4))
    with pytest.raises(ValueError, match=r"one entry per channel, \(4,\), got shape \(3,\)"):
        integral_attention(x, x, x, kernel=kernels.FourierIntegral(jnp.ones(3)))
    with pytest.raises(ValueError, match="signed kernel cannot be normalised"):
        integral_attention(x, x, x, kernel=kernels.FourierIntegral(1.0, 1))
    with pytest.raises(NotImplementedError, match="belongs to the whole integral"):
        accumulate(x, x, x, kernel=kernels.FourierIntegral(1.0, epsilon=1e-6))


@pytest.mark.parametrize("power", [1, 2, 4])
def test_transform_is_supported_in_the_ball_of_its_radius(power):
    """K̂(ω) = 0 for |ω| > power · R: what makes it a low-pass filter."""
    radius, frequency = 1.5, 1.5 * power + 0.5
    x = np.linspace(-400, 400, 40001)
    tile = kernels.FourierIntegral(radius, power).tile(jnp.zeros((1, 1)), jnp.asarray(x, jnp.float32)[:, None])[0]
    values = np.asarray(tile if power == 1 else np.exp(tile), np.float64)
    outside = scipy.integrate.simpson(values * np.cos(frequency * x), x=x)
    inside = scipy.integrate.simpson(values * np.cos(0.3 * x), x=x)
    assert abs(outside) < 2e-2 * inside
    assert inside == pytest.approx(kernel_machines.sinc_power_integral(power) / radius, rel=0.35)
