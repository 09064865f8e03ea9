"""Sums, products, multiples and projections of kernels, and kernels of learned features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import kernels
from jaxop.attention import accumulate, integral_attention, linear_attention


def ones(*shape):
    return jnp.asarray(np.ones(shape, np.float32))


POSITIVE, NONNEGATIVE, SIGNED = kernels.Gaussian(0.3), kernels.Quadratic(0.5), kernels.DotProduct()
SIGNS = [
    (POSITIVE + NONNEGATIVE, "positive"),
    (NONNEGATIVE + NONNEGATIVE, "nonnegative"),
    (POSITIVE + SIGNED, "signed"),
    (POSITIVE * POSITIVE, "positive"),
    (POSITIVE * NONNEGATIVE, "nonnegative"),
    (NONNEGATIVE * SIGNED, "signed"),
    (2 * POSITIVE, "positive"),
    (POSITIVE * 2.0, "positive"),
    (np.float32(0.5) * NONNEGATIVE, "nonnegative"),
    (jnp.asarray(0.5) * NONNEGATIVE, "nonnegative"),
    (-0.5 * POSITIVE, "signed"),
    (2.0 * SIGNED, "signed"),
    (kernels.Scaled(POSITIVE, np.asarray([1.0, -1.0])), "signed"),
    (kernels.Projected(POSITIVE, ones(5, 2), ones(5, 2)), "positive"),
    (POSITIVE + -1.0 * (NONNEGATIVE * SIGNED) * kernels.Intersection(0.2), "signed"),
]


def points(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize(("kernel", "sign"), SIGNS)
@pytest.mark.sample(5)
def test_sign_and_tile_follow_from_the_parts(kernel, sign):
    assert kernel.sign == sign
    if np.ndim(getattr(kernel, "factor", 0)):
        return  # one factor per head
    query, key = points(4, 5), points(3, 5, seed=1)
    definition = jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))
    matrix, truth = jax.jit(lambda q, k: (kernels.matrix(kernel, q, k), definition(q, k)))(query, key)
    np.testing.assert_allclose(matrix, truth, rtol=2e-5, atol=1e-6)


def test_logarithms_of_sums_and_products_do_not_overflow():
    kernel = kernels.ExpDotProduct(1.0) * kernels.ExpDotProduct(1.0) + 2.0 * kernels.ExpDotProduct(2.0)

    @jax.jit
    def evaluate(query):
        tile = jax.value_and_grad(lambda q: kernel.tile(q, query)[0, 0])
        return *tile(query), kernel.log(query[0], query[0])

    value, slope, log = evaluate(np.full((1, 4), 50.0, np.float32))
    np.testing.assert_allclose(value, 2e4 + np.log(3.0), rtol=1e-6)
    np.testing.assert_allclose(slope, 100.0, rtol=1e-5)
    np.testing.assert_allclose(log, value, rtol=1e-6)


def test_parts_that_vanish_leave_the_others():
    """A zero of one term, of all terms, and of a factor, in value and derivative."""
    cone, query = kernels.EuclideanDistance(), np.ones((1, 3), np.float32)
    key = np.float32([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    kinds = cone + POSITIVE, cone + cone, cone * cone

    def total(query, key, kernel):
        tile = kernel.tile(query, key)
        return jnp.sum(tile[0, :1]), tile

    evaluate = jax.jit(lambda *arrays: [jax.value_and_grad(total, has_aux=True)(*arrays, kernel) for kernel in kinds])
    for ((first, tile), slope), alive in zip(
        evaluate(query, key), ([True, True], [False, True], [False, True]), strict=True
    ):
        assert np.isfinite(slope).all()
        assert ((np.asarray(tile) > kernels.LOG_ZERO / 2)[0] == np.asarray(alive)).all()
        assert alive[0] or (first == np.float32(kernels.LOG_ZERO) and (np.asarray(slope) == 0).all())


@pytest.mark.sample(1)
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_parameters_of_all_parts_are_trained_per_head(implementation, x64):
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(n, 2, 4))) for n in (5, 7, 7))
    maps = rng.normal(size=(2, 2, 4, 3))

    def make(rates, offsets, factors, maps):
        inner = kernels.Scaled(kernels.Quadratic(offsets), factors, "nonnegative")
        return kernels.Projected(kernels.Gaussian(rates) + inner, *maps)

    params = np.asarray([0.3, 0.6]), np.asarray([0.5, 1.0]), np.asarray([0.7, 0.2]), maps

    def loss(params):
        kernel = kernels.PerHead(make(*params))
        return jnp.sum(jnp.sin(integral_attention(query, key, value, kernel=kernel, implementation=implementation)))

    def one_by_one(params):
        heads = []
        for h in range(2):
            kernel = make(*(p[h] for p in params[:3]), params[3][:, h])
            heads.append(integral_attention(*(a[:, h : h + 1] for a in (query, key, value)), kernel=kernel))
        return jnp.sum(jnp.sin(jnp.concatenate(heads, axis=1)))

    gradients = jax.jit(lambda params: (jax.grad(loss)(params), jax.grad(one_by_one)(params)))(params)
    for ours, theirs in zip(*gradients, strict=True):
        assert (np.abs(theirs) > 1e-8).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_points_of_two_dimensions(x64):
    query, key = points(4, 3).astype(float), points(6, 2, seed=1).astype(float)
    maps = points(3, 5).astype(float), points(2, 5, seed=2).astype(float)
    expected = query @ maps[0] @ maps[1].T @ key.T / np.sqrt(5)

    @jax.jit
    def evaluate(query, key, maps):
        kernel = kernels.Projected(kernels.ExpDotProduct(), *maps)
        both = kernel + 0.5 * kernels.Projected(kernels.Intersection(), *maps)
        pair = query[0], key[1]
        return kernel.tile(query, key), kernel.log(*pair), both(*pair), both.tile(query, key)

    tile, log, value, both = evaluate(query, key, maps)
    np.testing.assert_allclose(tile, expected, rtol=1e-12)
    np.testing.assert_allclose(log, expected[0, 1], rtol=1e-12)
    np.testing.assert_allclose(value, np.exp(both)[0, 1], rtol=1e-12)


def network(params, x):
    return jnp.tanh(x @ params["inner"]) @ params["outer"]


def test_learned_features_make_linear_attention(x64):
    rng = np.random.default_rng(0)
    shapes = {"inner": (3, 6), "outer": (6, 4)}
    params = tuple({name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()} for _ in range(2))
    kernel = kernels.LearnedFeatures(network, network, params)
    query, key, value = (rng.normal(size=(n, 1, 3)) for n in (5, 7, 7))
    weights = np.linspace(0.5, 1.5, 7)

    @jax.jit
    def evaluate(query, key, value, weights):
        by_query, by_key = kernel.features(query[:, 0], key[:, 0])
        linear = linear_attention(by_query[:, None], by_key[:, None], value, weights)
        whole = integral_attention(query, key, value, weights, kernel=kernel, normalize=False) / jnp.sum(weights)
        return linear, whole, kernel.tile(query[:, 0], key[:, 0]), kernel(query[1, 0], key[2, 0])

    linear, whole, tile, pair = evaluate(query, key, value, weights)
    np.testing.assert_allclose(np.asarray(tile)[1, 2], pair, rtol=1e-12)
    many = jax.jit(kernel.tile)(points(30, 3).astype(float), points(30, 3, seed=1).astype(float))
    assert np.linalg.matrix_rank(many) == 4
    np.testing.assert_allclose(linear, whole, rtol=1e-10)


def test_the_sign_of_a_traced_factor_is_not_guessed():
    @jax.jit
    @jax.grad
    def slope(factor):
        return kernels.Scaled(POSITIVE, factor, "positive")(jnp.zeros(2), jnp.zeros(2))

    assert slope(0.5) == 1.0
    with pytest.raises(ValueError, match="the sign of a kernel times a traced factor is not known"):
        jax.jit(lambda factor: (factor * POSITIVE)(jnp.zeros(2), jnp.zeros(2)))(-0.5)
    assert (2.0 * SIGNED).sign == jax.jit(lambda k: k)(2.0 * SIGNED).sign == "signed"
    moved = jax.tree.map(lambda leaf: -leaf, 2.0 * kernels.Quadratic(1.0))  # what training may do
    assert jax.jit(moved.tile)(ones(1, 2), ones(1, 2)) == np.float32(kernels.LOG_ZERO)


BAD = [
    (lambda: kernels.Sum(()), ValueError, "kernels is empty"),
    (lambda: kernels.Sum((POSITIVE, "gaussian")), TypeError, "a part must be a Kernel"),
    (lambda: POSITIVE + 1.0, TypeError, "unsupported operand"),
    (lambda: "2" * POSITIVE, TypeError, "unsupported operand|can't multiply"),
    (
        lambda: POSITIVE * kernels.FourierIntegral(epsilon=1e-6),
        ValueError,
        "epsilon = 1e-06 of FourierIntegral belongs",
    ),
    (lambda: kernels.Scaled(POSITIVE, -1.0, "positive"), ValueError, "contradicts a negative factor"),
    (lambda: kernels.Scaled(POSITIVE, 1.0, "postive"), ValueError, "did you mean 'positive'"),
    (lambda: kernels.Scaled(POSITIVE, 1j), TypeError, "factor must be a real number"),
    (lambda: kernels.Projected(POSITIVE, ones(3, 2), ones(3, 4)), ValueError, "with one r"),
    (
        lambda: kernels.Projected(POSITIVE, ones(3, 2), ones(4, 2)).tile(ones(1, 3), ones(1, 3)),
        ValueError,
        "key has 3 channels, but key_map takes 4",
    ),
    (lambda: kernels.LearnedFeatures(network, 1, ()), TypeError, "key_map must be a function"),
    (lambda: kernels.LearnedFeatures(network, network, {}), TypeError, "params must be the pair"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_input(make, error, message, unchecked):
    with pytest.raises(error, match=message):
        make()


def test_the_epsilon_of_a_projected_kernel_is_kept():
    identity = jnp.asarray(np.eye(3, dtype=np.float32))
    projected = kernels.Projected(kernels.FourierIntegral(epsilon=0.5), identity, identity)
    arrays = [jnp.asarray(points(4, 3, seed)[:, None]) for seed in range(3)]

    @jax.jit
    def both(*arrays):
        return [integral_attention(*arrays, kernel=k) for k in (kernels.FourierIntegral(epsilon=0.5), projected)]

    plain, through_maps = both(*arrays)
    np.testing.assert_allclose(through_maps, plain, rtol=1e-5)
    with pytest.raises(NotImplementedError, match=r"epsilon = 0\.5"):
        accumulate(*arrays, kernel=projected)
