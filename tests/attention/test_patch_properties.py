"""Attention between functions on patches, against plain numpy in float64 and against numpy's FFT."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import attention, domains, kernels, testing
from jaxop.attention.patch import patch_attention, patch_weights, spectral_patch_attention
from jaxop.spectral import Band
from tests.attention.patch_cases import (
    DENSITIES,
    DEPTH,
    HEADS,
    RADIUS,
    SIZES,
    attend,
    inputs,
    kinds,
    make,
    ones,
    oracle,
    pull_back,
    sinc,
    sizes,
    smooth,
)

pytestmark = pytest.mark.sample(3)


@pytest.mark.sample(3)
@sizes
@kinds
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
@pytest.mark.parametrize("masked", ["none", "keys", "pairs", "heads"])
def test_agrees_with_the_oracle(size, kind, implementation, masked, x64):
    if masked != "none" and implementation == "chunked":
        pytest.skip("masks are passed on unseen; one implementation will do")
    arrays, (p, q, *_) = inputs(size), size
    mask = None
    if masked != "none":
        shape = {"keys": (q,), "pairs": (p, q), "heads": (HEADS, p, q)}[masked]
        mask = np.random.default_rng(3).random(shape) < 0.6
        mask[..., 1] = True
        if masked != "keys":
            mask[..., 0, :] = False  # nothing to see: zero
    out = attend(*arrays, kernel=make(kind), mask=mask, implementation=implementation)
    truth = oracle(*arrays, density=DENSITIES[kind], mask=mask)
    np.testing.assert_allclose(out, truth, rtol=1e-12, atol=1e-13)


@sizes
@kinds
@pytest.mark.sample(1)
def test_gradients_are_those_of_the_oracle(size, kind, x64):
    """Central differences of the numpy oracle along random directions, for every argument."""
    arrays = inputs(size)
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=a.shape) for a in arrays]
    cotangent = rng.normal(size=(size[0], size[2], HEADS, size[3]))

    _, gradients = pull_back(kind)(cotangent, *arrays)
    for i, (gradient, direction) in enumerate(zip(gradients, directions, strict=True)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = [np.asarray(a) + (step * direction if j == i else 0) for j, a in enumerate(arrays)]
            ends.append(np.sum(cotangent * oracle(*moved, density=DENSITIES[kind])))
        np.testing.assert_allclose(np.vdot(gradient, direction), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_scores_are_inner_products_in_the_measure_of_the_whole_domain(x64):
    """Two patches of constants 1 and 0 on (0, 3) × (0, 2): logits Q·K·|patch|, no 1/√d, on any grid."""
    for shape in ((2, 2), (4, 6)):
        cut = domains.partition(domains.box(shape, upper=(3, 2), rule="midpoint"), (2, 1))
        s = math.prod(cut.shape)
        ones = np.ones((2, s, 1, 4))
        key = ones * np.asarray([1.0, 0.0])[:, None, None, None]
        out = attend(0.1 * ones, key, key[..., :1], patch_weights(cut))
        np.testing.assert_allclose(out, 1 / (1 + np.exp(-0.1 * 4 * 3)), rtol=1e-12)
        unit = attend(0.1 * ones, key, key[..., :1])  # measure 1: half of it per patch
        np.testing.assert_allclose(unit, 1 / (1 + np.exp(-0.1 * 4 * 0.5)), rtol=1e-12)


def test_a_scale_left_open_counts_the_channels_and_not_the_nodes(x64):
    """ExpDotProduct() means 1/√d at every resolution and in Fourier space too."""
    default = kernels.ExpDotProduct()
    query, key, value, weights = inputs(SIZES["long tokens"])
    out = attend(query, key, value, weights, kernel=default)
    np.testing.assert_allclose(out, oracle(query / math.sqrt(DEPTH), key, value, weights), rtol=1e-12)
    band = Band((6,), (2,))
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 2, 4, HEADS, DEPTH))

    @jax.jit
    def both(q, k, v):
        pairs = (q, default), (q / 3**0.5, None)
        return [spectral_patch_attention(a, k, v, band, 0.3, kernel=kernel) for a, kernel in pairs]

    np.testing.assert_allclose(*both(q, k, v), rtol=1e-12)


OF_DEPTH = {
    "Gaussian": kernels.Gaussian(0.8),
    "distance": kernels.EuclideanDistance(),
    "quadratic": kernels.Quadratic(0.3),
    "truncated exponential": kernels.TruncatedExponential(4),
    "composed": kernels.Gaussian() * (kernels.Quadratic() + 0.5 * kernels.EuclideanDistance()),
    "intersection": kernels.Intersection() * kernels.FourierIntegral(0.1),
}


@pytest.mark.parametrize("kernel", OF_DEPTH.values(), ids=OF_DEPTH)
@pytest.mark.sample(1)
def test_kernels_of_functions_do_not_depend_on_the_resolution(kernel, x64):
    """Constant functions on 1 and on 6 nodes: √d counts channels, and the measure is that of the patch."""
    values = np.random.default_rng(0).normal(size=(3, 4, 1, HEADS, DEPTH))
    few, many = (
        np.asarray(attend(*np.repeat(values, s, axis=2), np.full(s, 1 / s), kernel=kernel))[:, 0] for s in (1, 6)
    )
    np.testing.assert_allclose(few, many, rtol=1e-10)
    query, key, value = values[:, :, 0]
    if not kernel.is_additive:  # one node of weight 1: ordinary attention between vectors
        vectors = jax.jit(functools.partial(attention.integral_attention, kernel=kernel))(query, key, value)
        np.testing.assert_allclose(few, vectors, rtol=1e-10)


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (kernels.TruncatedExponential(3), ValueError, "a signed kernel cannot be normalised"),
        (
            kernels.Gaussian() + kernels.Intersection(),
            NotImplementedError,
            "Intersection is a sum over channels and nodes",
        ),
        (
            kernels.Projected(kernels.Gaussian(), *[jnp.asarray(np.eye(3, dtype=np.float32))] * 2),
            NotImplementedError,
            "project query and key",
        ),
    ],
)
def test_kernels_without_a_meaning_between_functions(kernel, error, message):
    arrays = [ones(2, 4, 1, 3)] * 3
    with pytest.raises(error, match=message):
        patch_attention(*arrays, kernel=kernel)
    with pytest.raises(error, match=message):
        spectral_patch_attention(*[ones(2, 2, 2, 1, 3)] * 3, Band((6,), (2,)), 1.0, kernel=kernel)


@sizes
@kinds
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.sample(1)
def test_functions_that_all_patches_share_are_reproduced(size, kind, dtype):
    query, key, value, weights = inputs(size, dtype)
    value = np.array(np.broadcast_to(value[:1], value.shape))
    kernel = make(kind)
    out = attend(3 * query, 3 * key, value, weights, kernel=kernel)
    assert out.dtype == dtype
    expected = np.broadcast_to(np.asarray(value[:1], np.float32), out.shape)
    tolerance = 2e-6 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, rtol=tolerance)


@sizes
def test_order_of_patches_means_nothing(size, x64):
    query, key, value, weights = inputs(size)
    rng = np.random.default_rng(1)
    rows, columns, nodes = (rng.permutation(n) for n in (size[0], size[1], size[2]))
    out = np.asarray(attend(query, key, value, weights))
    moved = attend(query[rows], key[columns], value[columns], weights)
    np.testing.assert_allclose(moved, out[rows], rtol=1e-12, atol=1e-13)
    inside = attend(query[:, nodes], key[:, nodes], value[:, nodes], weights[nodes])
    np.testing.assert_allclose(inside, out[:, nodes], rtol=1e-12, atol=1e-13)


@sizes
@kinds
def test_weightless_nodes_influence_no_score(size, kind, x64):
    query, key, value, weights = inputs(size)
    weights[1] = 0.0
    shifted, scaled = query.copy(), key.copy()
    shifted[:, 1] += 50
    scaled[:, 1] *= -9
    zero = np.zeros((*query.shape[:3], value.shape[-1]))
    out = np.asarray(pull_back(kind)(zero, query, key, value, weights)[0])
    (same, gradients), (again, moved) = (
        pull_back(kind)(np.cos(out), *functions, value, weights) for functions in ((query, key), (shifted, scaled))
    )
    np.testing.assert_array_equal(again, same)
    for gradient, other in zip(gradients[:2], moved[:2], strict=True):
        np.testing.assert_array_equal(np.asarray(gradient)[:, 1], 0.0)
        np.testing.assert_array_equal(gradient, other)
    np.testing.assert_allclose(out, oracle(query, key, value, weights, density=DENSITIES[kind]), rtol=1e-12, atol=1e-14)


@sizes
def test_the_derivative_in_a_weight_of_zero_is_the_true_one(size, x64):
    arrays = inputs(size)
    arrays[3][1] = 0.0
    gradient = np.asarray(jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(patch_attention(*a))), argnums=3))(*arrays))
    step = 1e-6 * np.eye(size[2])[1]
    ends = [np.sum(np.sin(oracle(*arrays[:3], arrays[3] + a))) for a in (step, -step)]
    np.testing.assert_allclose(gradient[1], (ends[0] - ends[1]) / 2e-6, rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("given", [True, False], ids=["weights", "default weights"])
def test_half_precision_rounds_functions_and_not_their_measure(dtype, given):
    """A rounded √w would change every score in proportion: scores of 60 show it."""
    p, s = 3, 211  # 1/633 and its root are no short binary fractions
    rng = np.random.default_rng(0)
    base, factors = rng.normal(size=(1, s, 1, 8)), np.array([0.9, 1.0, 1.05])[:, None, None, None]
    query = key = (5 * factors * base).astype(dtype)
    value = (np.eye(p)[:, None, None, :] * np.ones((1, s, 1, 1))).astype(np.float32)
    weights = np.full(s, 1 / (p * s), np.float32)
    out = attend(query, key, value, weights if given else None)
    scores, exact = (np.log(np.asarray(a, np.float64)[:, 0, 0]) for a in (out, oracle(query, key, value, weights)))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(scores - scores[:, :1], exact - exact[:, :1], atol=0.005)


@pytest.mark.parametrize(
    ("shape", "upper", "patches"),
    [((8,), (2.0,), (4,)), ((6, 4), (3.0, 1.0), (3, 2)), ((4, 2, 6), (1.0, 2.0, 3.0), (2, 1, 3))],
    ids=["1-d", "2-d", "3-d"],
)
@pytest.mark.sample(1)
def test_patches_of_a_grid_in_every_dimension(shape, upper, patches, x64):
    """Blocks cut by numpy, integrals over each with the volume of a cell."""
    domain = domains.box(shape, upper=upper, rule="midpoint")
    cut = domains.partition(domain, patches)
    fields = np.random.default_rng(0).normal(size=(3, domain.size, HEADS * DEPTH))

    @jax.jit
    def evaluate(*fields):
        query, key, value = (cut.split(f).reshape(math.prod(patches), -1, HEADS, DEPTH) for f in fields)
        out = attend(query, key, value, patch_weights(cut))
        return cut.join(out.reshape(*out.shape[:2], -1))

    out = np.asarray(evaluate(*fields)).reshape(*shape, HEADS, DEPTH)
    side = [n // p for n, p in zip(shape, patches, strict=True)]
    blocks = [
        tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, side, strict=True)) for index in np.ndindex(*patches)
    ]
    q, k, v = (np.stack([f.reshape(*shape, HEADS, DEPTH)[b] for b in blocks]) for f in fields)
    cell = math.prod(upper) / math.prod(shape)
    for h in range(HEADS):
        scores = np.array([[cell * np.sum(a[..., h, :] * b[..., h, :]) for b in k] for a in q])
        mass = np.exp(scores)
        mass /= mass.sum(axis=1, keepdims=True)
        for j, block in enumerate(blocks):
            np.testing.assert_allclose(out[block][..., h, :], np.tensordot(mass[j], v[..., h, :], 1), rtol=1e-11)


class TestConvergence:
    """The same functions on patches with more and more nodes."""

    PATCHES = 3

    def functions(self, x, period):
        x, c = np.asarray(x, np.float64)[..., None, None], np.arange(1.0, 3.0)
        if period:  # periodic on a patch, another phase on each
            wave = 2 * np.pi * self.PATCHES * x
            shift = np.floor(self.PATCHES * x)
            return np.exp(np.sin(wave + c * shift)), 2 * np.cos(np.sin(wave) + c * shift), shift + np.cos(wave + c)
        return 3 * np.cos(c * x), np.exp(c * x), np.sin(4 * c * x)

    def errors(self, nodes, period, kind):
        density = DENSITIES[kind]
        gauss, w = np.polynomial.legendre.leggauss(60)
        inside = (gauss + 1) / 2
        starts = np.arange(self.PATCHES)[:, None]
        q, k, _ = self.functions((starts + inside) / self.PATCHES, period)
        scores = np.array([[(w / 2 / self.PATCHES) @ density(a[:, 0], b[:, 0]) for b in k] for a in q])
        mass = np.exp(scores - scores.max(axis=1, keepdims=True))
        mass /= mass.sum(axis=1, keepdims=True)
        result = []
        for s in nodes:
            cut = domains.partition(domains.interval(self.PATCHES * s, rule="midpoint"), (self.PATCHES,))
            query, key, value = self.functions(np.asarray(cut.split(cut.domain.points))[..., 0], period)
            out = attend(query, key, value, patch_weights(cut), kernel=make(kind))
            result.append(np.abs(out - np.tensordot(mass, value, 1)).max())
        return result

    @smooth
    @pytest.mark.sample(1)
    def test_smooth_functions_converge_at_order_two(self, kind, x64):
        nodes = (4, 8, 16)
        assert testing.observed_order(nodes, self.errors(nodes, False, kind)) == pytest.approx(2, abs=0.06)

    @smooth
    @pytest.mark.sample(1)
    def test_functions_periodic_on_a_patch_converge_faster_than_any_order(self, kind, x64):
        errors = self.errors((4, 8, 24), True, kind)
        assert errors[1] < 1e-2 * errors[0]
        assert errors[2] < 1e-12


@pytest.mark.parametrize("implementation", [None, "chunked", "xla"])
@sizes
@pytest.mark.sample(1)
def test_jit_is_eager_and_vmap_is_a_loop(size, implementation):
    stacked = [np.stack(a) for a in zip(*(inputs(size, jnp.float32, seed) for seed in range(3)), strict=True)]

    def call(*arrays):
        return patch_attention(*arrays, implementation=implementation)

    single = jax.jit(call)
    loop = np.stack([single(*(a[i] for a in stacked)) for i in range(3)])
    for i in range(3):
        np.testing.assert_allclose(loop[i], oracle(*(a[i] for a in stacked)), rtol=1e-4, atol=1e-5)

    @jax.jit
    def mapped(*stacked):
        *functions, weights = stacked
        return jax.vmap(call)(*stacked), jax.vmap(call, in_axes=(0, 0, 0, None))(*functions, weights[0])

    every, shared = map(np.asarray, mapped(*stacked))
    np.testing.assert_allclose(every, loop, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shared[0], loop[0], rtol=1e-5, atol=1e-5)
    if implementation is None:
        np.testing.assert_allclose(call(*(jnp.asarray(a[0]) for a in stacked)), loop[0], rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_epsilon_reaches_the_patches():
    """The published denominator Σ_k k(Q_j, K_k) + ε over equally weighted patches."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 4, 7, 1, 3)).astype(np.float32)

    @jax.jit
    def both(*arrays):
        return [patch_attention(*arrays, kernel=kernels.FourierIntegral(RADIUS, 2, epsilon=e)) for e in (0.0, 0.5)]

    exact, published = both(q, k, v)
    logits = np.einsum("pqs->pq", sinc(q[:, None, :, 0], k[None, :, :, 0])) / 28
    mass = np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(published, exact * (mass / (mass + 0.5))[:, None, None, None], rtol=1e-4)
