"""The sinc-product kernel: exact where it is small, finite everywhere, and a proper average in every row."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from jaxop import kernel_machines, kernels, testing
from jaxop.attention import accumulate, integral_attention
from jaxop.kernels import fourier
from tests.laws.cases import Compiled

POINTS = np.asarray([0.0, 1e-6, 0.3, 0.4999, 0.5001, 1.0, 2.0, math.pi, 2 * math.pi, 50.0], np.float32)


@functools.cache
def tile_of(*parameters):
    """The jitted matrix form of one kernel."""
    return jax.jit(kernels.FourierIntegral(*parameters).tile)


def exact_log_sinc(x):
    x = np.asarray(x, np.float64)
    return np.log(np.abs(np.sinc(x / np.pi)))


@pytest.mark.parametrize("offset", [0.0, 100.0, -1000.0, 30000.0])
@pytest.mark.parametrize("depth", [1, 7, 64])
def test_tile_is_exact_to_rounding_at_any_common_offset(depth, offset):
    rng = np.random.default_rng(depth)
    query, key = (np.float32(offset + rng.normal(size=(n, depth))) for n in (20, 30))
    radius = 1.25
    tile = np.asarray(tile_of(radius, 2)(query, key))
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
    tile, value = jax.jit(lambda q, k: (kernel.tile(q, k), kernel(q[0], k[0])))(query, key)
    np.testing.assert_allclose(tile if power == 1 else np.exp(tile), expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(value, expected[0, 0], rtol=1e-12)


@pytest.mark.sample(1)
@pytest.mark.parametrize("depth", [2, 21])
def test_derivative_of_the_tile_is_that_of_the_definition(depth, x64):
    rng = np.random.default_rng(1)
    query, key, cotangent = (rng.normal(size=shape) for shape in ((70, depth), (9, depth), (70, 9)))
    radius = rng.uniform(0.5, 1.5, depth)

    def definition(kernel, query, key):
        return jax.vmap(jax.vmap(kernel.log, in_axes=(None, 0)), in_axes=(0, None))(query, key)

    def gradient(tile):
        def loss(radius, query, key):
            return jnp.vdot(tile(kernels.FourierIntegral(radius), query, key), cotangent)

        return jax.grad(loss, argnums=(0, 1, 2))

    @jax.jit
    def both(*arguments):
        return gradient(kernels.FourierIntegral.tile)(*arguments), gradient(definition)(*arguments)

    for ours, theirs in zip(*both(radius, query, key), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
def sum_of_squares(radius, query, key):
    value = jnp.asarray([[[1.0]], [[2.0]]])
    out = integral_attention(query[:, None], key[:, None], value, kernel=kernels.FourierIntegral(radius))
    return jnp.sum(out**2)


@pytest.mark.parametrize("x", POINTS, ids=lambda x: f"{x:.4g}")
def test_nothing_is_nan_at_equal_nodes_and_at_zeros_of_sinc(x):
    query, key = np.asarray([[x, 0.0], [0.0, 0.0]], np.float32), np.zeros((2, 2), np.float32)
    value, gradients = sum_of_squares(np.float32(1.0), query, key)
    assert all(np.isfinite(leaf).all() for leaf in (value, *gradients))


def test_a_zero_of_a_factor_has_no_mass_and_no_derivative():
    kernel = kernels.FourierIntegral(1.0, 2)
    # Σ 2^k π/2^k: the rounded sines of these cancel exactly
    query, key = (jnp.asarray(np.float32(a)) for a in ([[2 * math.pi, 0.3]], [[math.pi, 0.1]]))

    @jax.jit
    def evaluate(query):
        slope = jax.value_and_grad(lambda q: kernel.tile(q, key)[0, 0])
        return fourier.log_sinc(query, key, jnp.ones(2)), *slope(query)

    log_kernel, value, slope = evaluate(query)
    assert all(np.isfinite(leaf).all() for leaf in (log_kernel, value, slope))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_sine_of_exactly_zero_is_finite_and_has_no_slope(dtype, x64):
    nodes = np.asarray([3.0, 5.0], dtype)  # sines and cosines that cancel exactly, at a distance of 2
    one = np.ones(2, dtype)

    @jax.jit
    def evaluate(nodes, one):
        slope = fourier._slope(nodes, one, one, one[0], nodes[::-1], one, one, one[0])
        x, y = ([n[None], one[None], one[None], one[:1]] for n in (nodes, nodes[::-1]))
        sines, differences = fourier._fraction(x, y)
        return slope, sines, fourier.split_bits(sines / differences)

    slope, sines, (mantissa, exponent) = evaluate(nodes, one)
    np.testing.assert_array_equal(np.diag(slope), 0.0)
    assert (np.diag(sines) == 0).all()
    assert np.diag(mantissa).tolist() == [1, 1]
    assert np.diag(exponent).tolist() == [jnp.finfo(dtype).minexp - 1] * 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_products_are_split_exactly_and_nan_is_not_hidden(dtype, x64):
    x = np.asarray([1.0, -0.75, 3e-30, -7e30, float(jnp.finfo(dtype).tiny)], dtype)
    bad = np.asarray([[np.nan, 0.0], [1.0, 2.0]], dtype)

    @jax.jit
    def evaluate(x, bad):
        return fourier.split_bits(x), fourier.log_sinc(bad, jnp.zeros((3, 2), dtype), jnp.ones(2, dtype))

    (mantissa, exponent), out = evaluate(x, bad)
    mantissa = np.asarray(mantissa)
    assert ((mantissa >= 1) & (mantissa < 2)).all()
    np.testing.assert_array_equal(np.ldexp(np.asarray(mantissa), np.asarray(exponent)), np.abs(x))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


@pytest.mark.sample(1)
@pytest.mark.parametrize("depth", [64, 128])
def test_rows_never_vanish(depth):
    rng = np.random.default_rng(2)
    query, key = rng.normal(size=(2, 20, 1, depth)).astype(np.float32)
    ones = np.ones((20, 1, 1), np.float32)

    @jax.jit
    def both(*arrays):
        return [integral_attention(*arrays, kernel=kernels.FourierIntegral(1.0, epsilon=e)) for e in (0.0, 1e-6)]

    exact, published = both(query, key, ones)
    np.testing.assert_allclose(exact, 1.0, rtol=1e-6)
    assert (np.asarray(published) < 1e-3).all()  # k/(k + ε) of products that vanish


@pytest.mark.sample(1)
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_epsilon_is_the_published_one(implementation):
    rng = np.random.default_rng(3)
    query, key, value = rng.normal(size=(3, 12, 2, 4)).astype(np.float32)
    mask = rng.uniform(size=(12, 12)) < 0.7
    kernel = kernels.FourierIntegral(2.0, 4, epsilon=1e-2)
    differences = query[:, None] - key[None, :]
    matrix = np.prod(np.sinc(2.0 * differences / np.pi) ** 4, axis=-1) * mask[..., None]
    expected = np.einsum("ijh,jhc->ihc", matrix, value) / (np.sum(matrix, axis=1) + 1e-2)[..., None]

    attend, by_default = (
        jax.jit(functools.partial(integral_attention, kernel=kernel, mask=jnp.asarray(mask), implementation=i))
        for i in (implementation, None)
    )
    out = attend(query, key, value)
    np.testing.assert_allclose(out, expected, rtol=2e-4, atol=1e-6)
    weighted = by_default(query, key, value, np.full(12, 3.0, np.float32))
    np.testing.assert_allclose(weighted, out, rtol=1e-5)
    weights = rng.uniform(0.1, 2.0, 12).astype(np.float32)
    density = matrix * (weights / weights.mean())[None, :, None]
    expected = np.einsum("ijh,jhc->ihc", density, value) / (np.sum(density, axis=1) + 1e-2)[..., None]
    for unit in (1.0, 1e-34):  # of volume: it cancels
        out = attend(query, key, value, unit * weights)
        np.testing.assert_allclose(out, expected, rtol=2e-4, atol=1e-6)


def test_no_mass_is_zero_with_epsilon_too():
    x, weights = np.ones((4, 1, 3), np.float32), np.zeros(4, np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(x, weights):
        return jnp.sum(integral_attention(x, x, x, weights, kernel=kernels.FourierIntegral(1.0, epsilon=1e-6)))

    value, gradients = total(x, weights)
    assert value == 0
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(
    "kernel", [kernels.FourierIntegral(1.3), kernels.Gaussian(1.0)], ids=lambda k: type(k).__name__
)
@pytest.mark.parametrize("outlier", [1e3, 1e4, float("nan")])
@pytest.mark.sample(2)
def test_rows_do_not_see_each_other(kernel, outlier):
    """An outlying or undefined first query changes no bit of the others."""
    rng = np.random.default_rng(7)
    query, key = (rng.normal(size=(n, 1, 4)).astype(np.float32) for n in (6, 9))
    moved = np.concatenate([np.full_like(query[:1], outlier), query[1:]])
    attend = jax.jit(functools.partial(integral_attention, kernel=kernel))
    there, here = (np.asarray(attend(q, key, key)) for q in (moved, query))
    np.testing.assert_array_equal(there[1:], here[1:])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    x = np.random.default_rng(8).normal(size=(5, 3)).astype(dtype)
    wide = tile_of(1.3)(x.astype(np.float32), x.astype(np.float32))
    tile = tile_of(1.3)(x, x)
    assert tile.dtype == jnp.float32
    np.testing.assert_array_equal(tile, wide)


def test_even_powers_are_positive_definite():
    points = np.random.default_rng(4).normal(size=(60, 2)).astype(np.float32)
    for power in (2, 4):
        gram = np.exp(tile_of(1.5, power)(points, points))
        np.testing.assert_allclose(np.diag(gram), 1.0, rtol=1e-5)
        assert np.linalg.eigvalsh(np.asarray(gram, np.float64)).min() > -1e-4


def test_radius_per_head_and_channel():
    rng = np.random.default_rng(5)
    query, key, value = rng.normal(size=(3, 9, 2, 3)).astype(np.float32)
    radius = np.asarray([[0.5, 1.0, 1.5], [2.0, 1.0, 0.7]], np.float32)
    together, *each = (kernels.FourierIntegral(jnp.asarray(r)) for r in (radius, *radius))
    out = jax.jit(functools.partial(integral_attention, kernel=kernels.PerHead(together)))(query, key, value)
    oracle = testing.attention_oracle(query, key, value, kernel=[Compiled(kernel) for kernel in each])
    np.testing.assert_allclose(out, oracle, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power": 3}, "power must be even and positive"),
        ({"power": 0}, "power must be even and positive"),
        ({"radius": 0.0}, "radius must be positive and finite"),
        ({"radius": -1.0}, "radius must be positive"),
        ({"radius": jnp.asarray([1.0, np.nan])}, "radius must be positive and finite"),
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
    x = jnp.asarray(np.ones((3, 1, 4), np.float32))
    with pytest.raises(ValueError, match=r"one entry per channel, \(4,\), got shape \(3,\)"):
        integral_attention(x, x, x, kernel=kernels.FourierIntegral(jnp.asarray([1.0] * 3)))
    with pytest.raises(ValueError, match="signed kernel cannot be normalised"):
        integral_attention(x, x, x, kernel=kernels.FourierIntegral(1.0, 1))
    with pytest.raises(NotImplementedError, match="belongs to the whole integral"):
        accumulate(x, x, x, kernel=kernels.FourierIntegral(1.0, epsilon=1e-6))


@pytest.mark.parametrize("power", [1, 2, 4])
def test_transform_is_supported_in_the_ball_of_its_radius(power):
    """K̂(ω) = 0 for |ω| > power · R: what makes it a low-pass filter."""
    radius, frequency = 1.5, 1.5 * power + 0.5
    x = np.linspace(-400, 400, 40001)
    tile = tile_of(radius, power)(np.zeros((1, 1), np.float32), x.astype(np.float32)[:, None])
    tile = np.asarray(tile)[0]
    values = np.asarray(tile if power == 1 else np.exp(tile), np.float64)
    outside = scipy.integrate.simpson(values * np.cos(frequency * x), x=x)
    inside = scipy.integrate.simpson(values * np.cos(0.3 * x), x=x)
    assert abs(outside) < 2e-2 * inside
    assert inside == pytest.approx(kernel_machines.sinc_power_integral(power) / radius, rel=0.35)
