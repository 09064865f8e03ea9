"""What distinguishes the kernels: positive definiteness, rank, symmetry, and rows without mass."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import kernels
from jaxop.attention import integral_attention
from jaxop.kernels.intersection import sums_of_minima
from jaxop.kernels.polynomial import MAX_DEGREE, log_taylor, taylor


def points(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def rank(matrix):
    return np.linalg.matrix_rank(matrix, tol=1e-10 * np.linalg.norm(matrix, 2))


def tile(kernel, query, key):
    return np.asarray(jax.jit(kernel.tile)(query, key))


@jax.jit
def matrix(kernel, query, key):
    return kernels.matrix(kernel, query, key)


NEW = {
    "distance": lambda: kernels.EuclideanDistance(jnp.asarray(0.7)),
    "intersection": lambda: kernels.Intersection(jnp.asarray(0.7)),
    "quadratic": lambda: kernels.Quadratic(jnp.asarray(0.4), jnp.asarray(0.8)),
    "truncated-2": lambda: kernels.TruncatedExponential(2, jnp.asarray(0.6)),
    "truncated-5-clipped": lambda: kernels.TruncatedExponential(5, clip=True),
    "truncated-3": lambda: kernels.TruncatedExponential(3),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("make", NEW.values(), ids=NEW)
@pytest.mark.parametrize("depth", [3, 10])
@pytest.mark.sample(4)
def test_tiles_and_their_derivatives_are_those_of_the_pair_function(make, depth, x64):
    kernel, q, k = make(), points(6, depth), points(5, depth, seed=1)
    g = points(6, 5, seed=2)
    pair = kernel if kernel.sign == "signed" else kernel.log

    def by_pairs(kernel, q, k):
        pair = kernel if kernel.sign == "signed" else kernel.log
        return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(q, k)

    @jax.jit
    def evaluate(kernel, q, k):
        definition = by_pairs(kernel, q, k)
        alive = definition > kernels.LOG_ZERO / 2

        def gradients(matrix):
            return jax.grad(lambda *a: jnp.sum(jnp.where(alive, g * matrix(*a), 0)), argnums=(0, 1, 2))(kernel, q, k)

        tiles = gradients(lambda kernel, q, k: kernel.tile(q, k)), gradients(by_pairs)
        return kernel.tile(q, k), definition, *tiles

    tile, definition, found, truth = evaluate(kernel, q, k)
    assert jax.eval_shape(pair, q[0], k[0]).shape == ()
    tile, definition = (np.where(np.asarray(a) > kernels.LOG_ZERO / 2, a, 0) for a in (tile, definition))
    np.testing.assert_allclose(tile, definition, rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["distance", "quadratic", "truncated-2"])
def test_tiles_have_forward_derivatives(name, x64):
    kernel, q, k, dq, dk = NEW[name](), *(points(4, 7, seed=s) for s in range(4))
    step = 1e-6

    @jax.jit
    def evaluate(q, k, dq, dk):
        forth, back = (kernel.tile(q + s * dq, k + s * dk) for s in (step, -step))
        return jax.jvp(kernel.tile, (q, k), (dq, dk))[1], (forth - back) / (2 * step)

    slope, difference = evaluate(q, k, dq, dk)
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["distance", "intersection", "quadratic", "truncated-2"])
@pytest.mark.sample(2)
def test_second_derivatives(name, x64):
    """Of exp log k, along a direction: the intersection is piecewise exponential, and so not flat."""
    kernel, q, k, direction = NEW[name](), points(4, 7), points(5, 7, seed=1), points(4, 7, seed=2)

    step = 1e-6

    @jax.jit
    def evaluate(q, k, direction):
        slope = jax.grad(lambda q: jnp.sum(jnp.sin(jnp.exp(kernel.tile(q, k)))))
        second = jax.grad(lambda q: jnp.vdot(slope(q), direction))(q)
        forth, back = jax.lax.map(slope, jnp.stack([q + step * direction, q - step * direction]))
        return second, (forth - back) / (2 * step)

    second, difference = evaluate(q, k, direction)
    np.testing.assert_allclose(second, difference, rtol=1e-5, atol=1e-6)


def test_the_gaussian_is_the_dot_product_with_other_weights(x64):
    query, key, value = (points(n, 4, seed)[:, None] for seed, n in enumerate((5, 9, 9)))
    weights, rate = np.linspace(0.5, 1.5, 9), 0.3
    damped = weights * np.exp(-rate * np.sum(key[:, 0] ** 2, axis=1) / 2)

    @jax.jit
    def both(*arrays):
        *functions, weights, damped = arrays
        gaussian = integral_attention(*functions, weights, kernel=kernels.Gaussian(rate))
        return gaussian, integral_attention(*functions, damped, kernel=kernels.ExpDotProduct(rate))

    gaussian, dot_product = both(query, key, value, weights, damped)
    np.testing.assert_allclose(gaussian, dot_product, rtol=1e-12)


def test_the_intersection_is_positive_definite_on_all_real_vectors(x64):
    x = points(30, 2)
    matrix = np.exp(tile(kernels.Intersection(1.3), x, x))
    assert np.linalg.eigvalsh(matrix).min() > 1e-6
    laplace = np.exp(-0.65 * np.sum(np.abs(x[:, None] - x[None, :]), axis=-1))
    factor = np.exp(0.65 * np.sum(x, axis=1))
    np.testing.assert_allclose(matrix, factor[:, None] * laplace * factor[None, :], rtol=1e-12)


def test_sums_of_minima_are_positive_definite_without_negative_entries_only(x64):
    x = points(30, 2)
    sums = jax.jit(sums_of_minima)
    assert np.linalg.eigvalsh(sums(np.abs(x), np.abs(x))).min() > -1e-12
    eigenvalues = np.linalg.eigvalsh(sums(x, x))
    assert eigenvalues.min() < -1
    centre = np.eye(30) - 1 / 30  # coefficients of sum 0
    assert np.linalg.eigvalsh(centre @ np.asarray(sums(x, x)) @ centre).min() > -1e-12


@pytest.mark.parametrize("d", [1, 3])
def test_the_quadratic_has_finite_rank(d, x64):
    x, y = points(40, d), points(35, d, seed=1)
    assert rank(matrix(kernels.Quadratic(), x, y)) == (d + 1) * (d + 2) // 2


def test_the_exponentiated_dot_product_has_full_rank(x64):
    x, y = 1.5 * points(20, 4), 1.5 * points(20, 4, seed=1)
    assert np.linalg.matrix_rank(np.exp(tile(kernels.ExpDotProduct(1.0), x, y))) == 20


def features(x, degree, scale):
    """Φ(q)_α = scale^(|α|/2) q^α / √α! over all |α| ≤ degree."""
    columns = []
    for exponents in itertools.product(range(degree + 1), repeat=x.shape[1]):
        if sum(exponents) <= degree:
            factorials = math.prod(math.factorial(e) for e in exponents)
            columns.append(np.prod(x ** np.asarray(exponents), axis=1) / math.sqrt(factorials))
            columns[-1] *= scale ** (sum(exponents) / 2)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_features_of_the_truncated_exponential(degree, x64):
    d = 3
    x, y = points(70, d), points(65, d, seed=1)
    by_query, by_key = (features(z, degree, d**-0.5) for z in (x, y))
    values = matrix(kernels.TruncatedExponential(degree), x, y)
    np.testing.assert_allclose(values, by_query @ by_key.T, rtol=1e-10, atol=1e-12)
    assert by_query.shape[1] == math.comb(d + degree, degree) == rank(values)


def test_the_truncated_exponential_converges_factorially(x64):
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (points(8, 3), points(9, 3, seed=1)))
    product = np.max(np.abs(x @ y.T))
    degrees = range(1, 11)
    truncated = jax.jit(lambda x, y: [kernels.matrix(kernels.TruncatedExponential(p, 1.0), x, y) for p in degrees])
    for degree, values in zip(degrees, truncated(x, y), strict=True):
        error = np.max(np.abs(values - np.exp(x @ y.T)))
        bound = product ** (degree + 1) / math.factorial(degree + 1)
        assert 0.5 * bound < error < 1.6 * bound


@pytest.mark.parametrize("degree", [1, 2, 3, 8, 9, MAX_DEGREE])
def test_the_logarithm_of_a_truncated_exponential_loses_nothing(degree, x64):
    """In float32 within a few ε where it is positive, negative arguments and huge ones included."""
    x = np.concatenate([np.linspace(-2 * degree, 2 * degree, 301), [-1e30, -1e9, 1e9, 1e30]])

    @jax.jit
    def evaluate(single, double):
        slope = jax.vmap(jax.grad(lambda x: log_taylor(x, degree)))(single)
        return log_taylor(single, degree), slope, log_taylor(double, degree), taylor(double[:301], degree)

    evaluated = evaluate(x.astype(np.float32), x.astype(np.float32).astype(np.float64))
    single, slope, exact, value = map(np.asarray, evaluated)
    # at a zero of an odd degree the logarithm has none but absolute digits of x
    away = exact > -2
    np.testing.assert_allclose(single[away], exact[away], rtol=3e-6, atol=1e-5 if degree % 2 else 2e-6)
    assert ((value <= 0) == (exact[:301] < kernels.LOG_ZERO / 2)).all()
    assert bool((value > 0).all()) == (degree % 2 == 0)
    np.testing.assert_allclose(np.exp(exact[:301]), np.maximum(value, 0), rtol=1e-8, atol=1e-12)
    assert np.isfinite(slope).all()
    assert (slope[single < kernels.LOG_ZERO / 2] == 0).all()


def test_different_maps_of_queries_and_keys_make_an_asymmetric_kernel(x64):
    x, maps = points(12, 4), [jnp.asarray(points(4, 4, seed)) for seed in (1, 2)]
    for kernel in (kernels.ExpDotProduct(), kernels.Gaussian(), kernels.EuclideanDistance(), kernels.Intersection(0.5)):
        same, other = (np.asarray(matrix(kernels.Projected(kernel, maps[0], m), x, x)) for m in maps)
        np.testing.assert_allclose(same, same.T, rtol=1e-9, atol=1e-9)
        assert np.abs(other - other.T).max() > 0.1 * np.abs(other).max()


EMPTY = {
    "distance": (kernels.EuclideanDistance(), [2.0, -1.0, 0.5], [[2.0, -1.0, 0.5]] * 2),
    "quadratic": (kernels.Quadratic(1.0, 1.0), [1.0, 0.0, 0.0], [[-1.0, 3.0, 0.0], [-1.0, 0.0, 2.0]]),
    "clipped": (kernels.TruncatedExponential(1, 1.0, clip=True), [1.0, 0.0, 0.0], [[-1.0, 0.0, 0.0], [-2.0, 0.0, 0.0]]),
    "product": (
        kernels.EuclideanDistance() * kernels.Quadratic() + 0.0 * kernels.Gaussian(),
        [1.0, 2.0, 3.0],
        [[1.0, 2.0, 3.0]] * 2,
    ),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
@pytest.mark.sample(3)
def test_rows_without_mass_are_zero_with_zero_gradient(case, implementation):
    kernel, query, keys = case
    query, key = np.float32(query)[None, None], np.float32(keys)[:, None]
    assert (tile(kernel, query[:, 0], key[:, 0]) == np.float32(kernels.LOG_ZERO)).all()

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def total(query, key, value):
        return jnp.sum(integral_attention(query, key, value, kernel=kernel, implementation=implementation) + 1)

    value, gradients = total(query, key, np.ones((2, 1, 3), np.float32))
    assert value == 3
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_gradients_of_attention_are_finite_at_and_near_zeros_of_the_kernel(implementation):
    base = np.float32([[0.3, -0.2, 0.9, 1.1, 0.4]])
    key = np.concatenate([base, base + np.float32(1e-20), base + np.float32(1e-6), -base, 0 * base])[:, None]
    every = kernels.EuclideanDistance(), kernels.Quadratic(0.0), kernels.TruncatedExponential(3, clip=True)

    def loss(query, key, kernel):
        value = jnp.arange(5.0)[:, None, None]
        return jnp.sum(integral_attention(query, key, value, kernel=kernel, implementation=implementation))

    gradients = jax.jit(lambda *arrays: [jax.grad(loss, argnums=(0, 1))(*arrays, kernel) for kernel in every])
    for gradient in jax.tree.leaves(gradients(base[:, None], key)):
        assert np.isfinite(gradient).all()


def test_the_distance_has_slope_zero_at_the_query_and_digits_near_it():
    kernel, x = kernels.EuclideanDistance(), np.full((1, 6), 1e3, np.float32)
    near = x + np.float32([0.125, 0, 0, 0, 0, 0])

    @jax.jit
    def evaluate(x, near):
        by_tile = lambda a, b: jnp.exp(kernel.tile(a[None], b[None]))[0, 0]  # noqa: E731
        there = [jax.grad(pair)(x[0], x[0]) for pair in (kernel, by_tile)]
        return there, jax.value_and_grad(by_tile)(x[0], near[0])

    there, (value, slope) = evaluate(x, near)
    for gradient in there:
        np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_allclose(value, 0.125 / math.sqrt(6), rtol=1e-6)
    np.testing.assert_allclose(slope, [-1 / math.sqrt(6), 0, 0, 0, 0, 0], rtol=1e-3, atol=1e-3)


def test_equal_channels_of_the_intersection_move_with_the_query():
    x = np.float32([[0.5, -1.0]])
    slopes = jax.jit(jax.grad(lambda q, k: kernels.Intersection().tile(q, k)[0, 0], argnums=(0, 1)))(x, x)
    np.testing.assert_array_equal(slopes[0], 1.0)
    np.testing.assert_array_equal(slopes[1], 0.0)


BAD = [
    (lambda: kernels.Gaussian(-1.0), ValueError, "inverse_width must be positive and finite, got -1.0"),
    (lambda: kernels.EuclideanDistance(0.0), ValueError, "inverse_width must be positive and finite, got 0.0"),
    (lambda: kernels.EuclideanDistance("wide"), TypeError, "inverse_width must be a real number"),
    (lambda: kernels.TruncatedExponential(0), ValueError, "degree must lie between 1 and 20, got 0"),
    (lambda: kernels.TruncatedExponential(21), ValueError, r"ExpDotProduct\(\) is the limit"),
    (lambda: kernels.TruncatedExponential(2.0), TypeError, "degree must be an integer"),
    (lambda: kernels.TruncatedExponential(2, clip=True), ValueError, "clip=True is for odd degrees"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_input(make, error, message, unchecked):
    with pytest.raises(error, match=message):
        make()


def test_attention_refuses_odd_degrees_that_are_not_clipped():
    query = jnp.asarray(np.ones((2, 1, 3), np.float32))
    with pytest.raises(ValueError, match="a signed kernel cannot be normalised"):
        integral_attention(query, query, query, kernel=kernels.TruncatedExponential(3))


@pytest.mark.parametrize("kernel", [kernels.Gaussian(0.5), kernels.EuclideanDistance()], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
@pytest.mark.sample(2)
def test_a_far_key_without_weight_costs_no_digits(kernel, implementation):
    query, key, value = np.random.default_rng(0).normal(size=(3, 9, 1, 8)).astype(np.float32)
    value, weights = jnp.asarray(value), jnp.asarray(np.float32([1.0] * 8 + [0.0]))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(query, key, far):
        placed = key.at[-1].set(far)
        out = integral_attention(query, placed, value, weights, kernel=kernel, implementation=implementation)
        return jnp.sum(jnp.sin(out))

    near, far = (gradient(query, key, np.float32(place)) for place in (0.0, 1e9))
    for ours, theirs in zip(near, far, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)


def test_truncated_exponential_of_the_largest_numbers_and_in_half_precision():
    wide = kernels.TruncatedExponential(2, 1.0)
    value = jax.jit(wide.log)(np.float32([1e19]), np.float32([2e19]))
    assert value == pytest.approx(2 * np.log(2e38) - np.log(2), rel=1e-6)
    a, b = np.ones((2, 4), np.float16), np.full((3, 4), 0.5, np.float16)
    half, expected = (tile(kernels.TruncatedExponential(4), a.astype(t), b.astype(t)) for t in (np.float16, np.float32))
    np.testing.assert_allclose(half, expected, rtol=5e-3)
