"""The invariants of quadrature attention, over kernels × implementations × dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, kernels, testing
from jaxop.attention import accumulate, combine, finish, integral_attention
from tests.properties.cases import (
    DEPTH,
    HEADS,
    IMPLEMENTATIONS,
    KERNELS,
    PAIRS,
    SIGNED,
    M,
    N,
    attend,
    inputs,
)

# of kernels that differ in a detail or are made of others, one goes through all invariants: the rest through oracles
# and derivatives
DETAILS = ("cosine-pair", "laplace-pair", "gaussian-pair", "exp-dot-product-scaled", "composed")
CORE = [(case, implementation) for case, implementation in PAIRS if case.name not in DETAILS or implementation == "xla"]
cases = pytest.mark.parametrize(("case", "implementation"), CORE, ids=lambda p: str(p))
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


@cases
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_constants_are_reproduced(case, implementation, dtype):
    query, key, value, weights = inputs(dtype)
    out = attend(case, implementation)(3 * query, 3 * key, jnp.full_like(value, 2.5), weights)
    assert out.dtype == dtype
    alive = testing.attention_oracle(3 * query, 3 * key, jnp.ones_like(value), weights, kernel=case.oracle()) > 0.5
    np.testing.assert_allclose(np.asarray(out, np.float64)[alive], 2.5, rtol=TOLERANCE[dtype])
    assert alive.sum() > 20


@cases
def test_constants_survive_underflow(case, implementation):
    """Logits of ±10⁴ and weights of 10⁻³⁰ leave every row its mass."""
    if case.name == "compact-pair":
        pytest.skip("rows beyond a compact support are rightly empty")
    query, key, value, weights = inputs()
    out = attend(case, implementation)(100 * query, 100 * key, jnp.ones_like(value), 1e-30 * weights)
    np.testing.assert_allclose(out, 1.0, rtol=2e-6)


@cases
def test_node_splitting_changes_nothing(case, implementation):
    query, key, value, weights = inputs()
    split = jnp.concatenate([weights.at[3].multiply(0.5), weights[3:4] / 2])
    twice = [jnp.concatenate([a, a[3:4]]) for a in (key, value)]
    call = attend(case, implementation)
    np.testing.assert_allclose(call(query, *twice, split), call(query, key, value, weights), rtol=1e-5, atol=1e-6)


@cases
def test_permutation_of_nodes_changes_nothing(case, implementation):
    query, key, value, weights = inputs()
    order = np.random.default_rng(1).permutation(M)
    call = attend(case, implementation)
    permuted = call(query, key[order], value[order], weights[order])
    np.testing.assert_allclose(permuted, call(query, key, value, weights), rtol=1e-5, atol=1e-6)


@cases
def test_zero_weight_is_inert_and_has_the_true_derivative(case, implementation):
    query, key, value, weights = inputs()
    weights = weights.at[5].set(0.0)
    call = attend(case, implementation)

    def loss(query, key, value, weights):
        return jnp.sum(jnp.sin(call(query, key, value, weights)))

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    moved = key.at[5].multiply(-2.0), value.at[5].add(7.0)
    np.testing.assert_array_equal(call(query, *moved, weights), call(query, key, value, weights))
    here, there = grads(query, key, value, weights), grads(query, *moved, weights)
    np.testing.assert_allclose(there[0], here[0], rtol=1e-5, atol=1e-6)
    for gradient in here[1:3]:
        np.testing.assert_array_equal(gradient[5], 0.0)
    out = np.asarray(call(query, key, value, weights), np.float64)
    matrix = _matrix(case, query, key)
    mass = np.einsum("hnm,m->nh", matrix, np.asarray(weights, np.float64))
    seen = mass > 0
    slope = np.asarray(value, np.float64)[None, 5] - out  # (n, h, c)
    true = (np.cos(out) * slope).sum(-1) * matrix[:, :, 5].T / np.where(seen, mass, np.inf)
    assert abs(true.sum()) > 1e-3
    np.testing.assert_allclose(here[3][5], true.sum(), rtol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_weightless_node_far_above_all_others_stays_finite(implementation):
    query, key, value, weights = inputs()

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2, 3))
    def gradients(weights, query, key, value):
        return jnp.sum(integral_attention(query, key, value, weights, implementation=implementation) ** 2)

    for gradient in gradients(weights.at[5].set(0.0), query, key.at[5].multiply(1e4), value):
        assert np.isfinite(gradient).all()


@cases
def test_empty_rows_are_zero_with_zero_gradient(case, implementation):
    query, key, value, weights = inputs()
    call = attend(case, implementation)
    ones, none, everywhere = jnp.ones((N, M), bool), jnp.zeros(M), jnp.ones(N, bool)
    empties = [
        (weights, ones & False, everywhere),
        (none, ones, everywhere),
        (none.at[4].set(1.0), ones.at[:, 4].set(False), everywhere),
        (weights, ones.at[2].set(False), everywhere & (jnp.arange(N) == 2)),
    ]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3), has_aux=True)
    def loss(query, key, value, weights, mask, rows):
        out = jnp.where(rows[:, None, None], call(query, key, value, weights, mask), 0)
        return jnp.sum(out**2 + out), out

    for w, mask, rows in empties:
        (_, out), gradients = loss(query, key, value, w, mask, rows)
        np.testing.assert_array_equal(out, 0.0)
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(("case", "implementation"), PAIRS, ids=lambda p: str(p))
@pytest.mark.parametrize("masked", ["none", "keys", "pairs", "heads"])
def test_agrees_with_the_oracle(case, implementation, masked):
    query, key, value, weights = inputs()
    weights = weights.at[7].set(0.0)
    rng = np.random.default_rng(2)
    shape = {"none": None, "keys": (M,), "pairs": (N, M), "heads": (HEADS, N, M)}[masked]
    mask = None if shape is None else jnp.asarray(rng.random(shape) < 0.6)
    out = attend(case, implementation)(query, key, value, weights, mask)
    truth = testing.attention_oracle(query, key, value, weights, kernel=case.oracle(), mask=mask)
    np.testing.assert_allclose(out, truth, rtol=2e-5, atol=2e-6)


@cases
def test_causal_order(case, implementation):
    query, key, value, weights = inputs(n=M)
    out = attend(case, implementation, is_causal=True)(query, key, value, weights)
    truth = testing.attention_oracle(query, key, value, weights, kernel=case.oracle(), is_causal=True)
    np.testing.assert_allclose(out, truth, rtol=2e-5, atol=2e-6)
    later = attend(case, implementation, is_causal=True)(query, key.at[20:].add(1.0), value.at[20:].add(1.0), weights)
    np.testing.assert_array_equal(later[:20], out[:20])


@pytest.mark.parametrize("case", [*KERNELS, *SIGNED], ids=str)
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_unnormalised_integral(case, implementation):
    query, key, value, weights = inputs()
    mask = jnp.asarray(np.random.default_rng(3).random((N, M)) < 0.7)
    out = attend(case, implementation, normalize=False)(query, key, value, weights, mask)
    truth = testing.attention_oracle(query, key, value, weights, kernel=case.oracle(), mask=mask, normalize=False)
    np.testing.assert_allclose(out, truth, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", [*KERNELS, *SIGNED], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
def test_fast_equals_dense_in_value_and_gradient_in_float64(case, masked, x64):
    query, key, value, weights = inputs(jnp.float64, n=M if not masked else N)
    weights = weights.at[7].set(0.0)
    mask = jnp.asarray(np.random.default_rng(4).random((HEADS, N, M)) < 0.7) if masked else None
    kernel = case.make()
    leaves, structure = jax.tree.flatten(kernel)

    def loss(implementation):
        def of(leaves, *arrays):
            out = integral_attention(
                *arrays,
                kernel=jax.tree.unflatten(structure, leaves),
                kernel_axis=case.axis,
                mask=mask,
                is_causal=not masked,
                normalize=case not in SIGNED,
                implementation=implementation,
            )
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.grad(of, argnums=(0, 1, 2, 3, 4), has_aux=True))

    (dense_grads, dense), (grads, out) = (loss(i)(leaves, query, key, value, weights) for i in ("dense", "chunked"))
    np.testing.assert_allclose(out, dense, rtol=1e-12, atol=1e-13)
    for gradient, truth in zip(jax.tree.leaves(grads), jax.tree.leaves(dense_grads), strict=True):
        np.testing.assert_allclose(gradient, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", KERNELS, ids=str)
def test_gradients_are_finite_differences_in_float64(case, x64):
    arrays = inputs(jnp.float64, seed=3, n=6, m=9)
    arrays = (*arrays[:3], arrays[3].at[2].set(0.0))
    call = attend(case, "chunked")
    rng = np.random.default_rng(5)
    directions = [jnp.asarray(rng.normal(size=a.shape)) for a in arrays]

    def loss(*arrays):
        return jnp.sum(jnp.sin(call(*arrays)))

    grads = jax.grad(loss, argnums=(0, 1, 2, 3))(*arrays)
    for i, (gradient, direction) in enumerate(zip(grads, directions, strict=True)):
        step = 1e-6
        moved = [loss(*(a + s * direction if j == i else a for j, a in enumerate(arrays))) for s in (step, -step)]
        difference = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(gradient, direction), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_unnormalised_derivative_in_a_weightless_node_far_above(implementation, x64):
    kernel = kernels.from_pair(lambda a, b: -jnp.sum((a - b) ** 2), log=True)
    query, key = jnp.zeros((1, 1, 1)), jnp.asarray([[[7.1]], [[0.0]]])

    def total(weights):
        out = integral_attention(
            query, key, jnp.ones((2, 1, 1)), weights, kernel=kernel, normalize=False, implementation=implementation
        )
        return jnp.sum(out)

    for weights in ([1.0, 0.0], [0.0, 0.0]):
        np.testing.assert_allclose(jax.grad(total)(jnp.asarray(weights)), [np.exp(-(7.1**2)), 1.0], rtol=1e-10)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_unnormalised_integral_of_zero_with_large_logits(implementation):
    query, key = jnp.full((1, 1, 1), 10.0), jnp.full((2, 1, 1), 10.0)

    def total(value):
        kernel = kernels.ExpDotProduct(1.0)
        return jnp.sum(
            integral_attention(query, key, value, kernel=kernel, normalize=False, implementation=implementation)
        )

    value, slope = jax.value_and_grad(total)(jnp.zeros((2, 1, 1)))
    assert value == 0
    assert not np.isnan(slope).any()
    np.testing.assert_allclose(total(jnp.full((2, 1, 1), 1e-20)), np.exp(100.0) * 1e-20, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_unnormalised_derivative_where_only_weightless_nodes_are_seen(implementation, x64):
    """∂/∂w_j Σ_j w_j k_ij v_j = k_ij v_j in causal rows whose first nodes weigh nothing."""
    query, key, value = jax.random.normal(jax.random.key(0), (3, 5, 1, 3))
    weights = jnp.asarray([0.0, 0.0, 0.3, 0.2, 0.1])
    kernel = kernels.ExpDotProduct()

    def total(weights):
        options = {"kernel": kernel, "normalize": False, "is_causal": True, "implementation": implementation}
        return jnp.sum(integral_attention(query, key, value, weights, **options))

    matrix = jnp.tril(jnp.exp(kernel.tile(query[:, 0], key[:, 0])))
    np.testing.assert_allclose(jax.grad(total)(weights), matrix.sum(axis=0) * value[:, 0].sum(axis=1), rtol=1e-10)


def test_gradients_through_mapped_closures():
    """A pair function may close over what vmap, scan or grad trace, integers included."""
    query, key, value, weights = inputs()
    table = jnp.asarray([0.2, 0.5, 0.9])

    def loss(query, implementation):
        def one(rate, index):
            kernel = kernels.from_pair(lambda a, b: -rate * table[index] * jnp.sum((a - b) ** 2), log=True)
            return jnp.sum(
                integral_attention(query, key, value, weights, kernel=kernel, implementation=implementation) ** 2
            )

        return jnp.sum(jax.vmap(one)(jnp.asarray([0.3, 0.7]), jnp.asarray([0, 2])))

    dense, chunked = (jax.jit(jax.grad(loss), static_argnums=1)(query, i) for i in ("dense", "chunked"))
    np.testing.assert_allclose(chunked, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kernel", [kernels.ExpDotProduct(2), kernels.ExpDotProduct(np.float64(0.3))], ids=["int", "numpy"]
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scales_of_any_kind_of_number(kernel, implementation):
    query, key, value, weights = inputs()

    def loss(query, implementation):
        return jnp.sum(
            integral_attention(query, key, value, weights, kernel=kernel, implementation=implementation) ** 2
        )

    gradient = jax.grad(loss)(query, implementation)
    np.testing.assert_allclose(gradient, jax.grad(loss)(query, "dense"), rtol=1e-4, atol=1e-5)


def test_integer_leaves_of_a_kernel():
    query, key, value, weights = inputs()
    table = jnp.asarray([0.2, 0.5])

    def loss(params, query, implementation):
        kernel = kernels.from_pair(lambda p, a, b: -table[p] * jnp.sum((a - b) ** 2), params, log=True)
        return jnp.sum(
            integral_attention(query, key, value, weights, kernel=kernel, implementation=implementation) ** 2
        )

    gradients = [jax.grad(loss, argnums=1)(jnp.asarray(1), query, i) for i in ("dense", "chunked")]
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_second_derivatives(causal, x64):
    arrays = inputs(jnp.float64, n=M)

    def slope(query, implementation):
        out = integral_attention(query, *arrays[1:], is_causal=causal, implementation=implementation)
        return jnp.sum(jnp.sin(out))

    second = [
        jax.jit(jax.grad(lambda q, i=i: jnp.sum(jax.grad(slope)(q, i) ** 2)))(arrays[0]) for i in ("dense", "chunked")
    ]
    assert np.abs(second[0]).max() > 1e-3
    np.testing.assert_allclose(second[1], second[0], rtol=1e-10, atol=1e-12)


def test_gradients_reach_what_a_pair_function_closes_over():
    query, key, value, weights = inputs()

    @jax.jit
    def loss(rate, implementation_gain):
        kernel = kernels.from_pair(lambda q, k: -rate * jnp.sum(jnp.abs(q - k)) * implementation_gain, log=True)
        out = [
            integral_attention(query, key, value, weights, kernel=kernel, implementation=i)
            for i in ("dense", "chunked")
        ]
        return jnp.stack([jnp.sum(o**2) for o in out])

    slopes = jax.jacrev(loss)(jnp.asarray(0.3), jnp.asarray(1.0))
    assert abs(slopes[0]) > 1e-3
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-4)


@cases
def test_vmap_is_a_loop_and_jit_is_eager(case, implementation):
    batch = [inputs(seed=s) for s in range(3)]
    stacked = [jnp.stack(a) for a in zip(*batch, strict=True)]
    call = attend(case, implementation)
    per_sample = jnp.stack([call(*sample) for sample in batch])
    np.testing.assert_allclose(jax.vmap(call)(*stacked), per_sample, rtol=1e-5, atol=1e-6)
    shared = jax.vmap(call, in_axes=(0, None, None, None))(stacked[0], *batch[0][1:])
    one_by_one = jnp.stack([call(q, *batch[0][1:]) for q in stacked[0]])
    np.testing.assert_allclose(shared, one_by_one, rtol=1e-5, atol=1e-6)
    with jax.disable_jit():
        eager = call(*batch[0])
    np.testing.assert_allclose(eager, per_sample[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_accumulates_in_float32(implementation):
    query, key, value, weights = inputs(jnp.bfloat16)
    out = integral_attention(query, key, value, weights, implementation=implementation)
    truth = testing.attention_oracle(query, key, value, weights, kernel=KERNELS[0].make())
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(out, np.float64), truth, rtol=0, atol=2e-2 if implementation == "xla" else 6e-3
    )


@pytest.mark.parametrize("case", KERNELS, ids=str)
def test_partial_integrals_form_a_commutative_monoid(case):
    query, key, value, weights = inputs()
    weights = weights.at[30].set(0.0)
    mask = jnp.asarray(np.random.default_rng(6).random((N, M)) < 0.7).at[:, :10].set(False)

    @jax.jit
    def in_every_order(query, key, value, weights):
        options = {"kernel": case.make(), "kernel_axis": case.axis}
        a, b, c = (
            accumulate(query, key[s], value[s], weights[s], mask=mask[:, s], **options)
            for s in (slice(0, 10), slice(10, 12), slice(12, M))
        )
        orders = combine(combine(a, b), c), combine(a, combine(b, c)), combine(combine(c, a), b)
        whole = integral_attention(query, key, value, weights, mask=mask, implementation="dense", **options)
        return [finish(part) for part in orders], whole

    orders, whole = in_every_order(query, key, value, weights)
    for out in orders:
        np.testing.assert_allclose(out, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weightless", [slice(0, 5), slice(3, 20)], ids=["a-part", "across-parts"])
def test_partial_integrals_keep_the_derivative_in_weightless_nodes(weightless, x64):
    query, key, value, weights = inputs(jnp.float64)
    weights = weights.at[weightless].set(0.0)
    kernel = KERNELS[0].make()

    def split(weights):
        a, b, c = (
            accumulate(query, key[s], value[s], weights[s], kernel=kernel)
            for s in (slice(0, 5), slice(5, 20), slice(20, M))
        )
        return jnp.sum(jnp.sin(finish(combine(a, combine(c, b)))))

    def whole(weights):
        return jnp.sum(jnp.sin(integral_attention(query, key, value, weights, kernel=kernel)))

    np.testing.assert_allclose(jax.jit(jax.grad(split))(weights), jax.jit(jax.grad(whole))(weights), rtol=1e-9)


def _matrix(case, query, key):
    """k(q_i, k_j) in float64, shape (h, n, m)."""
    oracle = case.oracle()
    per_head = oracle if isinstance(oracle, list) else [oracle] * HEADS
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        q, k = (jnp.asarray(np.asarray(a, np.float64)) for a in (query, key))
        pairs = lambda kernel: jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))  # noqa: E731
        return np.stack([np.asarray(pairs(per_head[h])(q[:, h], k[:, h])) for h in range(HEADS)])


class TestConvergence:
    """Attention over smooth functions converges at the order of the rule."""

    @staticmethod
    def functions(points):
        x = points[:, 0]
        frequencies = jnp.arange(1, DEPTH + 1, dtype=x.dtype)
        query = jnp.cos(frequencies[None, :] * x[:, None])
        key = jnp.sin(frequencies[None, :] * x[:, None] + 0.3)
        return query[:, None, :], key[:, None, :], jnp.exp(x)[:, None, None]

    def attention(self, domain, weights=None):
        query = self.functions(jnp.asarray([[0.2], [0.9]]))[0]
        _, key, value = self.functions(domain.points)
        return integral_attention(query, key, value, domain.weights if weights is None else weights)[:, 0, 0]

    def errors(self, rule, sizes):
        attention = jax.jit(self.attention)
        truth = attention(domains.interval(60, rule="gauss-legendre"))
        return [float(jnp.max(jnp.abs(attention(domains.interval(n, rule=rule)) - truth))) for n in sizes]

    def test_trapezoid_and_midpoint_have_order_two(self, x64):
        sizes = [20, 40, 80]
        assert testing.observed_order([n - 1 for n in sizes], self.errors("trapezoid", sizes)) == pytest.approx(
            2, abs=0.05
        )
        assert testing.observed_order(sizes, self.errors("midpoint", sizes)) == pytest.approx(2, abs=0.05)

    def test_gauss_legendre_converges_faster_than_any_order(self, x64):
        errors = self.errors("gauss-legendre", [4, 8, 16])
        assert errors[1] < 1e-3 * errors[0]
        assert errors[2] < 1e-12

    def test_leaving_the_weights_out_on_an_endpoint_grid_costs_an_order(self, x64):
        attention = jax.jit(self.attention)
        truth = attention(domains.interval(60, rule="gauss-legendre"))
        sizes = [20, 40, 80]
        errors = [float(jnp.max(jnp.abs(attention(domains.interval(n), jnp.full(n, 1 / n)) - truth))) for n in sizes]
        assert testing.observed_order(sizes, errors) == pytest.approx(1, abs=0.1)

    def test_periodic_rule_converges_faster_than_any_order(self, x64):
        @functools.partial(jax.jit, static_argnums=0)
        def attention(n):
            x = 2 * jnp.pi * domains.interval(n, rule="periodic").points
            query = jnp.cos(jnp.asarray([[[0.2]], [[0.9]]]))
            return integral_attention(query, jnp.sin(x)[:, None], jnp.cos(x + 0.4)[:, None])

        truth = attention(64)
        errors = [float(jnp.max(jnp.abs(attention(n) - truth))) for n in (4, 8, 16)]
        assert errors[1] < 1e-3 * errors[0]
        assert errors[2] < 1e-12

    def test_monte_carlo_variance_is_the_predicted_one(self, x64):
        """N E|A_N − A|² → |D| ∫ p² |v − A|² dy, so the error has order 1/2 with a known constant."""
        fine = domains.interval(200, rule="gauss-legendre")
        truth = self.attention(fine)
        query = self.functions(jnp.asarray([[0.2], [0.9]]))[0]
        _, key, value = self.functions(fine.points)
        density = jnp.exp(jnp.einsum("nhd,mhd->nm", query, key) / jnp.sqrt(float(DEPTH)))
        density = density / (density @ fine.weights)[:, None]
        predicted = (density**2 * (value[None, :, 0, 0] - truth[:, None]) ** 2) @ fine.weights
        for n in (64, 256):
            points = jax.random.uniform(jax.random.key(n), (4000, n, 1), dtype=jnp.float64)
            samples = jax.jit(jax.vmap(lambda p: self.attention(domains.monte_carlo(p))))(points)
            measured = n * jnp.mean((samples - truth[None]) ** 2, axis=0)
            np.testing.assert_allclose(measured, predicted, rtol=0.12)
