"""The nodes of one function are distributed over four devices: what one device would compute, round a ring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxop import kernels, testing
from jaxop.attention import chunked, integral_attention, linear_attention, ring_attention
from tests.laws.cases import KERNELS, SIGNED, inputs

HERE, ALL = PartitionSpec("domain"), PartitionSpec()
CASES = {str(case): case for case in [*KERNELS, *SIGNED]}


def devices(count=4):
    return jax.make_mesh((count,), ("domain",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


@pytest.fixture(autouse=True)
def several_tiles_on_a_device(monkeypatch):
    monkeypatch.setattr(chunked, "QUERY_CHUNK", 16)
    monkeypatch.setattr(chunked, "KEY_CHUNK", 8)


def gradients(function):
    """The function of arrays, jitted: its values A and the derivatives of Σ A².

    Kernels that see fewer nodes make A larger at every node, so the terms of their derivatives do not cancel. Where
    they do, as in Σ sin A, the derivative in a scale has a condition number of 10³, and float32 does not have six
    digits of it on any number of devices.
    """

    def total(*arguments):
        out = function(*arguments)
        return jnp.sum(jnp.square(out), dtype=jnp.float64 if out.dtype == jnp.float64 else jnp.float32), out

    def call(*arguments):
        differentiated = tuple(i for i, a in enumerate(arguments) if jax.tree.leaves(a))
        slopes, out = jax.grad(total, argnums=differentiated, has_aux=True)(*arguments)
        return out, *slopes

    return jax.jit(call)


def assert_agree(ours, theirs, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.max(np.abs(b)) + 1e-30)


def agree(kernel, arguments, *, tolerance=1e-6, alone="dense", **options):
    ring = gradients(lambda kernel, *a: ring_attention(*a, kernel=kernel, mesh=devices(), **options))
    one = gradients(lambda kernel, *a: integral_attention(*a, kernel=kernel, implementation=alone, **options))
    ours, theirs = ring(kernel, *arguments), one(kernel, *arguments)
    assert_agree(ours, theirs, tolerance)
    return ours


def arrays(n=203, m=61, dtype=jnp.float32, seed=1):
    """Operands of sizes that four devices do not divide, with a node of weight 0."""
    query, key, value, weights = inputs(dtype, seed, n, m)
    weights[17] = 0
    return query, key, value, weights


def on_device(*arrays):
    return map(jnp.asarray, arrays)


@pytest.mark.parametrize(
    "name",
    [
        "exp-dot-product-scaled",
        "compact-pair",  # some rows are empty
        "signed-pair",
        pytest.param("signed-composed", marks=pytest.mark.thorough),
        pytest.param("fourier-per-head", marks=pytest.mark.thorough),
        pytest.param("intersection-per-head", marks=pytest.mark.thorough),
        pytest.param("composed", marks=pytest.mark.thorough),
        pytest.param("gaussian-pair", marks=pytest.mark.thorough),
    ],
)
def test_every_kernel(name):
    case = CASES[name]
    agree(case.make(), arrays(), normalize=case not in SIGNED, alone="chunked")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["exp-dot-product-scaled", pytest.param("composed", marks=pytest.mark.thorough)])
def test_double_precision(name, x64):
    agree(CASES[name].make(), arrays(dtype=jnp.float64), tolerance=1e-12)


def test_causal_order_with_a_mask_of_keys():
    query, key, value, weights = arrays(61)
    seen = jnp.arange(61) > 3  # the first queries see no key at all
    out, *_ = agree(kernels.ExpDotProduct(), (query, key, value, weights), is_causal=True, mask=seen)
    assert not np.any(out[:4])
    assert np.all(out[4:])


@pytest.mark.thorough
def test_mask_of_pairs_for_each_head_and_equal_weights():
    seen = np.random.default_rng(0).random((2, 203, 61)) < 0.3
    seen[1, 50:70] = False
    seen = jnp.asarray(seen)
    kernel = kernels.PerHead(kernels.ExpDotProduct(jnp.asarray([0.3, 0.9])))
    out, *_ = agree(kernel, (*arrays()[:3], None), mask=seen, alone="chunked")
    assert not np.any(out[50:70, 1])


@pytest.mark.thorough
def test_integrals_with_weights_of_both_signs():
    query, key, value, weights = arrays()
    agree(kernels.Gaussian(0.4), (query, key, value, weights - np.float32(0.01)), normalize=False)


@pytest.mark.thorough
def test_half_precision_is_summed_in_single():
    query, key, value, weights = arrays()
    half = [jnp.asarray(a, jnp.bfloat16) for a in (query, key, value)]
    agree(kernels.ExpDotProduct(), (*half, weights), tolerance=2**-7)  # one bit of the results


@pytest.mark.thorough
def test_a_device_without_weight_in_any_unit():
    """The derivatives in weights of 0 refer to the unit of all devices: exp(l − log Z) would be clipped in another."""
    query, key, value, weights = arrays(40, 40)
    weights[20:30] = 0
    # the logarithms are near −57, where neighbouring numbers differ by 4e-6
    *_, slopes = agree(kernels.ExpDotProduct(), (query, key, value, weights * np.float32(1e-25)), tolerance=1e-5)
    assert np.all(slopes[20:30])


@pytest.mark.thorough
def test_under_a_batch_with_derivatives_inside_of_the_map():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(3, 16, 2, 4)).astype(np.float32) for _ in range(3))
    weights, kernel = rng.uniform(size=16).astype(np.float32), kernels.ExpDotProduct(jnp.float32(0.5))

    def slopes(kernel, *own, axis_name=None):
        def total(kernel, *own):
            def attend(query, key, value, weights):
                return integral_attention(query, key, value, weights, kernel=kernel, axis_name=axis_name)

            return jnp.sum(jax.vmap(attend, in_axes=(0, 0, 0, None))(*own) ** 2)

        return jax.grad(total, argnums=(0, 1, 2, 3, 4))(kernel, *own)

    rows = (PartitionSpec(None, "domain"),) * 3
    specs = (ALL, *rows, HERE)
    ring = jax.shard_map(
        functools.partial(slopes, axis_name="domain"), mesh=devices(), in_specs=specs, out_specs=specs, check_vma=True
    )
    assert_agree(jax.jit(ring)(kernel, query, key, value, weights), slopes(kernel, query, key, value, weights), 1e-6)


@pytest.mark.thorough
def test_what_a_pair_function_closes_over_is_differentiated():
    query, key, value, weights = on_device(*arrays(20, 20))

    def total(attend, rate):
        kernel = kernels.from_pair(lambda a, b: -rate * jnp.sum((a - b) ** 2), log=True)
        return jnp.sum(attend(query, key, value, weights, kernel=kernel) ** 2)

    ours, theirs = (
        jax.jit(jax.grad(functools.partial(total, attend)))(jnp.float32(0.4))
        for attend in (functools.partial(ring_attention, mesh=devices()), integral_attention)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("is_causal", [False, True])
def test_linear_attention_shares_moments(is_causal, x64):
    query, key, value, weights = arrays(200 if is_causal else 40, 200, dtype=jnp.float64)
    weights[:50] = 0  # a device without mass, and rows without any
    weights[100:] *= 1e3  # the unit changes on the way

    def ring(*own):
        return linear_attention(*own, is_causal=is_causal, axis_name="domain")

    shared = jax.shard_map(ring, mesh=devices(), in_specs=HERE, out_specs=HERE)
    ours, theirs = gradients(shared), gradients(functools.partial(linear_attention, is_causal=is_causal))
    assert_agree(ours(query, key, value, weights), theirs(query, key, value, weights), 1e-12)
    messages = testing.collectives(jax.jit(shared).lower(query, key, value, weights).compile())
    kinds = {"all-gather"} if is_causal else {"all-reduce"}
    assert messages.keys() == kinds
    assert sum(map(sum, messages.values())) <= 4 * 8 * (2 * 5 * 3 + 2)  # moments, whatever the number of nodes


def compiled_gradient(n, count):
    """The gradient of self-attention on n nodes, compiled, and the bytes that each of some devices needs for it."""
    kernel = kernels.Gaussian(jnp.float32(1))
    ring = functools.partial(ring_attention, mesh=devices(count))
    sharding = jax.sharding.NamedSharding(devices(count), HERE)
    shapes = [*[(n, 4, 16)] * 3, (n,)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape in shapes]
    compiled = gradients(lambda kernel, *a: ring(*a, kernel=kernel)).lower(kernel, *arrays).compile()
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return compiled, total


def test_only_blocks_travel_and_memory_is_divided(monkeypatch):
    monkeypatch.undo()  # tiles of the usual size
    n = 2**18
    (_, alone), (_, two), (compiled, four) = (compiled_gradient(n, count) for count in (1, 2, 4))
    assert 2 * two == pytest.approx(4 * four, rel=0.1)
    assert four < 0.45 * alone
    messages = testing.collectives(compiled)
    assert messages.keys() == {"collective-permute", "all-reduce"}
    assert messages["all-reduce"] == [4]  # the width of the kernel
    block, weights = 4 * n // 4 * 4 * 16, 4 * n // 4
    # keys, values, log weights and signs, twice, and three derivatives
    assert sorted(messages["collective-permute"]) == [weights] * 5 + [block] * 6


def test_eager_calls_and_explicit_meshes():
    query, key, value, weights = on_device(*arrays(20, 20))
    mesh = jax.make_mesh((2, 2), ("other", "domain"))  # of the type "explicit" by default
    ours = ring_attention(query, key, value, weights, mesh=mesh)
    np.testing.assert_allclose(ours, integral_attention(query, key, value, weights), rtol=1e-5, atol=1e-6)


def test_calls_that_do_not_fit_are_refused(unchecked):
    query, key, value, weights = arrays(20, 20)
    ring = functools.partial(ring_attention, query, key, value, weights)
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh, .*, got int"):
        ring(mesh=4)
    with pytest.raises(ValueError, match=r"axis_name='space' is unknown: .*'domain'"):
        ring(mesh=devices(), axis_name="space")
    with pytest.raises(ValueError, match=r"key has 3 nodes for the 4 devices of the mesh axis 'domain'; use at most 3"):
        ring_attention(query, key[:3], value[:3], mesh=devices())
    with pytest.raises(NotImplementedError, match=r"epsilon = 0\.1 of the kernel is relative to .*use epsilon=0"):
        ring(mesh=devices(), kernel=kernels.FourierIntegral(jnp.ones(5), epsilon=0.1))
    with pytest.raises(ValueError, match="a signed kernel cannot be normalised"):
        ring(mesh=devices(), kernel=kernels.DotProduct())

    def inside(**options):
        def call(query, key, value):
            return integral_attention(query, key, value, axis_name="domain", **options)

        return jax.shard_map(call, mesh=devices(), in_specs=HERE, out_specs=HERE)(query, key, value)

    with pytest.raises(NotImplementedError, match="implementation='dense' needs all nodes on one device"):
        inside(implementation="dense")
    with pytest.raises(ValueError, match=r"\(n, m\) = \(5, 20\) .*, got \(5, 5\); .* keys of all 4 devices"):
        inside(mask=jnp.ones((5, 5), bool))
    with pytest.raises(NameError, match="domain"):
        integral_attention(query, key, value, axis_name="domain")
