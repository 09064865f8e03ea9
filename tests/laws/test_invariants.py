"""The invariants of quadrature attention, over kernels × implementations × dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import kernels, testing
from jaxop.attention import accumulate, combine, finish, integral_attention
from tests.laws.cases import (
    CORE,
    HEADS,
    IMPLEMENTATIONS,
    KERNELS,
    PAIRS,
    SIGNED,
    M,
    N,
    attend,
    dense_and_chunked,
    differentiate,
    exemplary,
    inputs,
    replaced,
)

laws = pytest.mark.parametrize(("case", "implementation"), exemplary(CORE), ids=lambda p: str(p))
every_kernel = pytest.mark.parametrize(("case", "implementation"), PAIRS, ids=lambda p: str(p))
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


@pytest.mark.sample(7)
@laws
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_constants_are_reproduced(case, implementation, dtype):
    query, key, value, weights = inputs(dtype)
    out = attend(case, implementation)(3 * query, 3 * key, np.full_like(value, 2.5), weights)
    assert out.dtype == dtype
    alive = testing.attention_oracle(3 * query, 3 * key, np.ones_like(value), weights, kernel=case.oracle()) > 0.5
    np.testing.assert_allclose(np.asarray(out, np.float64)[alive], 2.5, rtol=TOLERANCE[dtype])
    assert alive.sum() > 20


@pytest.mark.sample(12)
@every_kernel
def test_constants_survive_underflow(case, implementation):
    """Logits of ±10⁴ and weights of 10⁻³⁰ leave every row its mass."""
    if case.name == "compact-pair":
        pytest.skip("rows beyond a compact support are rightly empty")
    query, key, value, weights = inputs()
    out = attend(case, implementation)(100 * query, 100 * key, np.ones_like(value), 1e-30 * weights)
    np.testing.assert_allclose(out, 1.0, rtol=2e-6)


@laws
def test_node_splitting_changes_nothing(case, implementation):
    query, key, value, weights = inputs()
    split = np.append(replaced(weights, 3, weights[3] / 2), weights[3] / 2)
    twice = [np.concatenate([a, a[3:4]]) for a in (key, value)]
    call = attend(case, implementation)
    np.testing.assert_allclose(call(query, *twice, split), call(query, key, value, weights), rtol=1e-5, atol=1e-6)


@laws
def test_permutation_of_nodes_changes_nothing(case, implementation):
    query, key, value, weights = inputs()
    order = np.random.default_rng(1).permutation(M)
    call = attend(case, implementation)
    permuted = call(query, key[order], value[order], weights[order])
    np.testing.assert_allclose(permuted, call(query, key, value, weights), rtol=1e-5, atol=1e-6)


@pytest.mark.sample(4)
@laws
def test_zero_weight_is_inert_and_has_the_true_derivative(case, implementation):
    query, key, value, weights = inputs()
    weights = replaced(weights, 5, 0.0)
    moved = replaced(key, 5, -2 * key[5]), replaced(value, 5, value[5] + 7)
    call, derivatives = attend(case, implementation), differentiate(case, implementation)
    np.testing.assert_array_equal(call(query, *moved, weights), call(query, key, value, weights))
    everything = np.ones((N, M), bool), np.ones(N, bool)
    here, out = derivatives(query, key, value, weights, *everything)
    there, _ = derivatives(query, *moved, weights, *everything)
    np.testing.assert_allclose(there[0], here[0], rtol=1e-5, atol=1e-6)
    for gradient in here[1:3]:
        np.testing.assert_array_equal(gradient[5], 0.0)
    out = np.asarray(out, np.float64)
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

    for gradient in gradients(replaced(weights, 5, 0.0), query, replaced(key, 5, 1e4 * key[5]), value):
        assert np.isfinite(gradient).all()


@laws
def test_empty_rows_are_zero_with_zero_gradient(case, implementation):
    query, key, value, weights = inputs()
    ones, none, everywhere = np.ones((N, M), bool), np.zeros(M, np.float32), np.ones(N, bool)
    empties = [
        (weights, ones & False, everywhere),
        (none, ones, everywhere),
        (replaced(none, 4, 1.0), replaced(ones, np.s_[:, 4], False), everywhere),
        (weights, replaced(ones, 2, False), np.arange(N) == 2),
    ]

    for w, mask, rows in empties:
        gradients, out = differentiate(case, implementation)(query, key, value, w, mask, rows)
        np.testing.assert_array_equal(np.asarray(out)[rows], 0.0)
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0.0)


MASKED = [
    *((*pair, masked) for masked in ("none", "heads") for pair in PAIRS),
    *exemplary([(*pair, masked) for masked in ("keys", "pairs") for pair in PAIRS]),
]


@pytest.mark.sample(20)
@pytest.mark.parametrize(("case", "implementation", "masked"), MASKED, ids=lambda p: str(p))
def test_agrees_with_the_oracle(case, implementation, masked):
    query, key, value, weights = inputs()
    weights = replaced(weights, 7, 0.0)
    rng = np.random.default_rng(2)
    shape = {"none": None, "keys": (M,), "pairs": (N, M), "heads": (HEADS, N, M)}[masked]
    mask = None if shape is None else rng.random(shape) < 0.6
    out = attend(case, implementation)(query, key, value, weights, mask)
    truth = testing.attention_oracle(query, key, value, weights, kernel=case.oracle(), mask=mask)
    np.testing.assert_allclose(out, truth, rtol=2e-5, atol=2e-6)


@laws
def test_causal_order(case, implementation):
    query, key, value, weights = inputs(n=M)
    out = attend(case, implementation, is_causal=True)(query, key, value, weights)
    truth = testing.attention_oracle(query, key, value, weights, kernel=case.oracle(), is_causal=True)
    np.testing.assert_allclose(out, truth, rtol=2e-5, atol=2e-6)
    moved = (np.concatenate([a[:20], a[20:] + 1]) for a in (key, value))
    later = attend(case, implementation, is_causal=True)(query, *moved, weights)
    np.testing.assert_array_equal(later[:20], out[:20])


@pytest.mark.sample(4)
@pytest.mark.parametrize("case", [*exemplary(KERNELS), *SIGNED], ids=str)
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_unnormalised_integral(case, implementation):
    query, key, value, weights = inputs()
    mask = np.random.default_rng(3).random((N, M)) < 0.7
    out = attend(case, implementation, normalize=False)(query, key, value, weights, mask)
    truth = testing.attention_oracle(query, key, value, weights, kernel=case.oracle(), mask=mask, normalize=False)
    np.testing.assert_allclose(out, truth, rtol=2e-5, atol=2e-6)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("case", "masked"),
    [
        *((case, True) for case in [*KERNELS, *SIGNED]),
        *exemplary([(case, False) for case in KERNELS]),
        *((case, False) for case in SIGNED),
    ],
    ids=lambda p: {True: "masked", False: "causal"}.get(p, str(p)),
)
def test_fast_equals_dense_in_value_and_gradient_in_float64(case, masked, x64):
    query, key, value, weights = inputs(jnp.float64, n=M if not masked else N)
    weights = replaced(weights, 7, 0.0)
    mask = np.random.default_rng(4).random((HEADS, N, M)) < 0.7 if masked else None
    evaluate = dense_and_chunked(case, is_causal=not masked)
    (dense_grads, dense), (grads, out) = evaluate(case.make(), query, key, value, weights, mask)
    np.testing.assert_allclose(out, dense, rtol=1e-12, atol=1e-13)
    for gradient, truth in zip(jax.tree.leaves(grads), jax.tree.leaves(dense_grads), strict=True):
        np.testing.assert_allclose(gradient, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.sample(5)
@pytest.mark.parametrize("case", KERNELS, ids=str)
def test_gradients_are_finite_differences_in_float64(case, x64):
    arrays = inputs(jnp.float64, seed=3)
    arrays = (*arrays[:3], replaced(arrays[3], 2, 0.0))
    rng = np.random.default_rng(5)
    directions = [rng.normal(size=a.shape) for a in arrays]
    everything = np.ones((HEADS, N, M), bool)

    def chunked(*arrays):
        return dense_and_chunked(case, is_causal=False)(case.make(), *arrays, everything)[1]

    grads = chunked(*arrays)[0][1:]
    for i, (gradient, direction) in enumerate(zip(grads, directions, strict=True)):
        step = 1e-6
        outs = [chunked(*(a + s * direction if j == i else a for j, a in enumerate(arrays)))[1] for s in (step, -step)]
        difference = np.sum(np.sin(outs[0]) - np.sin(outs[1])) / (2 * step)
        np.testing.assert_allclose(np.vdot(gradient, direction), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_unnormalised_derivative_in_a_weightless_node_far_above(implementation, x64):
    kernel = kernels.from_pair(lambda a, b: -jnp.sum((a - b) ** 2), log=True)
    query, key, value = map(jnp.asarray, (np.zeros((1, 1, 1)), [[[7.1]], [[0.0]]], np.ones((2, 1, 1))))

    @jax.jit
    @jax.grad
    def slope(weights):
        out = integral_attention(
            query, key, value, weights, kernel=kernel, normalize=False, implementation=implementation
        )
        return jnp.sum(out)

    for weights in ([1.0, 0.0], [0.0, 0.0]):
        np.testing.assert_allclose(slope(np.asarray(weights)), [np.exp(-(7.1**2)), 1.0], rtol=1e-10)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_unnormalised_integral_of_zero_with_large_logits(implementation):
    query, key = (jnp.asarray(np.full((n, 1, 1), 10.0, np.float32)) for n in (1, 2))

    @jax.jit
    @jax.value_and_grad
    def total(value):
        kernel = kernels.ExpDotProduct(1.0)
        return jnp.sum(
            integral_attention(query, key, value, kernel=kernel, normalize=False, implementation=implementation)
        )

    value, slope = total(np.zeros((2, 1, 1), np.float32))
    assert value == 0
    assert not np.isnan(slope).any()
    np.testing.assert_allclose(total(np.full((2, 1, 1), 1e-20, np.float32))[0], np.exp(100.0) * 1e-20, rtol=1e-4)


LARGE_EXPONENTS = {
    "one-node": ([100.0], [1.0], [1e-20], [1.0]),
    "weights": ([100.0, 3.0], [1.0, 0.9, 0.5], [1e-20, 2e-20, -1e-21], [1.0, 0.5, 0.2]),
    "largest": ([150.0], [1.0], [1e-30], [1.0]),
    "smallest": ([-150.0, 3.0], [1.0, 0.9, 0.5], [1e30, 2e30, 1e30], [1.0, 0.5, 0.2]),
    "weightless-above": ([50.0, 3.0], [1.0, 0.9, 1.2], [1e-5, 2e-5, 1e-5], [1.0, 0.5, 0.0]),
    "weightless-far-above": ([100.0, 3.0], [1.0, 0.9, 50.0], [1e-20, 2e-20, 1e-20], [1.0, 0.5, 0.0]),
}


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_unnormalised_derivatives_where_the_exponential_alone_overflows(implementation):
    """The derivatives of Σ_j w_j exp(s q k_j) v_j in float32, wherever float32 holds them."""

    @jax.jit
    def derivatives(*arguments):
        def total(query, key, value, weights, scale):
            options = {"kernel": kernels.ExpDotProduct(scale), "normalize": False, "implementation": implementation}
            return jnp.sum(integral_attention(query, key, value, weights, **options))

        return jax.grad(total, argnums=range(5))(*arguments)

    for name, (q, k, v, w) in LARGE_EXPONENTS.items():
        q, k, v, w = map(np.asarray, (q, k, v, w))
        exponents = np.outer(q, k)
        matrix = np.exp(np.minimum(exponents, 700))
        true = [
            (matrix * w * v * k).sum(axis=1),
            (matrix * w * v * q[:, None]).sum(axis=0),
            matrix.sum(axis=0) * w,
            matrix.sum(axis=0) * v,
            (matrix * w * v * exponents).sum(),
        ]
        arrays = [a.astype(np.float32).reshape(-1, 1, 1) for a in (q, k, v)]
        for ours, exact in zip(derivatives(*arrays, w.astype(np.float32), np.float32(1)), true, strict=True):
            assert not np.isnan(ours).any(), name
            held = np.abs(exact).ravel() < 3e38
            np.testing.assert_allclose(np.ravel(ours)[held], np.ravel(exact)[held], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_unnormalised_derivative_where_only_weightless_nodes_are_seen(implementation, x64):
    """∂/∂w_j Σ_j w_j k_ij v_j = k_ij v_j in causal rows whose first nodes weigh nothing."""
    query, key, value = map(jnp.asarray, np.random.default_rng(0).normal(size=(3, 5, 1, 3)))
    weights = np.asarray([0.0, 0.0, 0.3, 0.2, 0.1])
    kernel = kernels.ExpDotProduct()

    @jax.jit
    @jax.grad
    def slope(weights):
        options = {"kernel": kernel, "normalize": False, "is_causal": True, "implementation": implementation}
        return jnp.sum(integral_attention(query, key, value, weights, **options))

    matrix = np.tril(np.exp(jax.jit(kernel.tile)(query[:, 0], key[:, 0])))
    np.testing.assert_allclose(slope(weights), matrix.sum(axis=0) * value[:, 0].sum(axis=1), rtol=1e-10)


def test_gradients_through_mapped_closures():
    """A pair function may close over what vmap, scan or grad trace, integers included."""
    query, key, value, weights = map(jnp.asarray, inputs())
    table = jnp.asarray([0.2, 0.5, 0.9])

    def loss(query, implementation):
        def one(rate, index):
            kernel = kernels.from_pair(lambda a, b: -rate * table[index] * jnp.sum((a - b) ** 2), log=True)
            return jnp.sum(
                integral_attention(query, key, value, weights, kernel=kernel, implementation=implementation) ** 2
            )

        return jnp.sum(jax.vmap(one)(jnp.asarray([0.3, 0.7]), jnp.asarray([0, 2])))

    dense, chunked = jax.jit(lambda query: [jax.grad(loss)(query, i) for i in ("dense", "chunked")])(query)
    np.testing.assert_allclose(chunked, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kernel", [kernels.ExpDotProduct(2), kernels.ExpDotProduct(np.float64(0.3))], ids=["int", "numpy"]
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scales_of_any_kind_of_number(kernel, implementation):
    query, key, value, weights = map(jnp.asarray, inputs())

    def loss(query, implementation):
        return jnp.sum(
            integral_attention(query, key, value, weights, kernel=kernel, implementation=implementation) ** 2
        )

    gradient, dense = jax.jit(lambda query: [jax.grad(loss)(query, i) for i in (implementation, "dense")])(query)
    np.testing.assert_allclose(gradient, dense, rtol=1e-4, atol=1e-5)


def test_integer_leaves_of_a_kernel():
    query, key, value, weights = map(jnp.asarray, inputs())
    table = jnp.asarray([0.2, 0.5])

    def loss(params, query, implementation):
        kernel = kernels.from_pair(lambda p, a, b: -table[p] * jnp.sum((a - b) ** 2), params, log=True)
        return jnp.sum(
            integral_attention(query, key, value, weights, kernel=kernel, implementation=implementation) ** 2
        )

    @jax.jit
    def gradients(index, query):
        return [jax.grad(loss, argnums=1)(index, query, i) for i in ("dense", "chunked")]

    dense, chunked = gradients(np.int32(1), query)
    np.testing.assert_allclose(chunked, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_second_derivatives(causal, x64):
    arrays = [jnp.asarray(a) for a in inputs(jnp.float64, n=M)]

    def slope(query, implementation):
        out = integral_attention(query, *arrays[1:], is_causal=causal, implementation=implementation)
        return jnp.sum(jnp.sin(out))

    @jax.jit
    def curvature(query):
        square = lambda q, i: jnp.sum(jax.grad(slope)(q, i) ** 2)  # noqa: E731
        return [jax.grad(square)(query, i) for i in ("dense", "chunked")]

    second = curvature(arrays[0])
    assert np.abs(second[0]).max() > 1e-3
    np.testing.assert_allclose(second[1], second[0], rtol=1e-10, atol=1e-12)


def test_gradients_reach_what_a_pair_function_closes_over():
    query, key, value, weights = map(jnp.asarray, inputs())

    @jax.jit
    @jax.jacrev
    def slope(rate, implementation_gain):
        kernel = kernels.from_pair(lambda q, k: -rate * jnp.sum(jnp.abs(q - k)) * implementation_gain, log=True)
        out = [
            integral_attention(query, key, value, weights, kernel=kernel, implementation=i)
            for i in ("dense", "chunked")
        ]
        return jnp.stack([jnp.sum(o**2) for o in out])

    slopes = slope(np.float32(0.3), np.float32(1.0))
    assert abs(slopes[0]) > 1e-3
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-4)


@pytest.mark.sample(4)
@laws
def test_vmap_is_a_loop_and_jit_is_eager(case, implementation):
    batch = [inputs(seed=s) for s in range(3)]
    stacked = [np.stack(a) for a in zip(*batch, strict=True)]
    call = attend(case, implementation)

    @jax.jit
    def mapped(*stacked):
        shared = [a[0] for a in stacked[1:]]
        return jax.vmap(call)(*stacked), jax.vmap(call, in_axes=(0, None, None, None))(stacked[0], *shared)

    every, shared = mapped(*stacked)
    per_sample = np.stack([call(*sample) for sample in batch])
    np.testing.assert_allclose(every, per_sample, rtol=1e-5, atol=1e-6)
    one_by_one = np.stack([call(q, *batch[0][1:]) for q in stacked[0]])
    np.testing.assert_allclose(shared, one_by_one, rtol=1e-5, atol=1e-6)
    eager = call.__wrapped__(*map(jnp.asarray, batch[0]))
    np.testing.assert_allclose(eager, per_sample[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_accumulates_in_float32(implementation):
    query, key, value, weights = inputs(jnp.bfloat16)
    out = attend(KERNELS[0], implementation)(query, key, value, weights)
    truth = testing.attention_oracle(query, key, value, weights, kernel=KERNELS[0].oracle())
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(out, np.float64), truth, rtol=0, atol=2e-2 if implementation == "xla" else 6e-3
    )


@pytest.mark.parametrize("case", exemplary(KERNELS), ids=str)
def test_partial_integrals_form_a_commutative_monoid(case):
    query, key, value, weights = inputs()
    weights = replaced(weights, 30, 0.0)
    mask = replaced(np.random.default_rng(6).random((N, M)) < 0.7, np.s_[:, :10], False)

    @jax.jit
    def in_every_order(query, key, value, weights, mask):
        kernel = case.make()
        a, b, c = (
            accumulate(query, key[s], value[s], weights[s], mask=mask[:, s], kernel=kernel)
            for s in (slice(0, 10), slice(10, 12), slice(12, M))
        )
        orders = combine(combine(a, b), c), combine(a, combine(b, c)), combine(combine(c, a), b)
        return [finish(part) for part in orders]

    whole = attend(case, "dense")(query, key, value, weights, mask)
    for out in in_every_order(query, key, value, weights, mask):
        np.testing.assert_allclose(out, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weightless", [slice(0, 5), slice(3, 20)], ids=["a-part", "across-parts"])
def test_partial_integrals_keep_the_derivative_in_weightless_nodes(weightless, x64):
    query, key, value, weights = map(jnp.asarray, inputs(jnp.float64))
    weights = replaced(weights, weightless, 0.0)
    kernel = KERNELS[0].make()

    def split(weights):
        a, b, c = (
            accumulate(query, key[s], value[s], weights[s], kernel=kernel)
            for s in (slice(0, 5), slice(5, 20), slice(20, M))
        )
        return jnp.sum(jnp.sin(finish(combine(a, combine(c, b)))))

    def whole(weights):
        return jnp.sum(jnp.sin(integral_attention(query, key, value, weights, kernel=kernel)))

    np.testing.assert_allclose(*jax.jit(lambda w: (jax.grad(split)(w), jax.grad(whole)(w)))(weights), rtol=1e-9)


def _matrix(case, query, key):
    """k(q_i, k_j) in float64, shape (h, n, m)."""
    oracle = case.oracle()
    per_head = oracle if isinstance(oracle, list) else [oracle] * HEADS
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        q, k = (np.asarray(a, np.float64) for a in (query, key))
        pairs = lambda kernel: jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))  # noqa: E731
        return np.stack([np.asarray(pairs(per_head[h])(q[:, h], k[:, h])) for h in range(HEADS)])
