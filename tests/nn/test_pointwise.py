"""Pointwise maps: those of Flax in value and gradient, whole or in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import nn
from jaxop.nn import pointwise

EPSILON = 1e-5


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


call = jax.jit(lambda module, x: module(x))


def ours_and_flax(name):
    """A module and its counterpart in Flax, with the same random parameters, in double precision."""
    double, rngs = {"dtype": jnp.float64, "param_dtype": jnp.float64}, nnx.Rngs(0)
    if name == "linear":
        ours, theirs = nn.Linear(5, 3, rngs=rngs, param_dtype=jnp.float64), nnx.Linear(5, 3, rngs=rngs, **double)
        pairs = [(ours.kernel, theirs.kernel), (ours.bias, theirs.bias)]
    elif name == "norm":
        ours, theirs = (
            nn.LayerNorm(5, param_dtype=jnp.float64),
            nnx.LayerNorm(5, epsilon=EPSILON, use_fast_variance=False, rngs=rngs, **double),
        )
        pairs = [(ours.scale, theirs.scale), (ours.bias, theirs.bias)]
    else:
        ours = nn.FeedForward(5, 7, 3, activation=name, rngs=rngs, param_dtype=jnp.float64)
        inner, outer = nnx.Linear(5, 7, rngs=rngs, **double), nnx.Linear(7, 3, rngs=rngs, **double)
        theirs = nnx.Sequential(inner, lambda x: jax.nn.gelu(x, approximate=name == "gelu_tanh"), outer)
        pairs = [
            (ours.inner.kernel, inner.kernel),
            (ours.inner.bias, inner.bias),
            (ours.outer.kernel, outer.kernel),
            (ours.outer.bias, outer.bias),
        ]
    for seed, (mine, other) in enumerate(pairs):
        mine[...] = other[...] = jnp.asarray(random(seed, *mine[...].shape))
    return ours, theirs, pairs


def value_and_gradients(module, x, count):
    """Output, gradient in x and the ``count`` gradients in the parameters, sorted, whatever their names."""
    graphdef, params = nnx.split(module)

    def loss(params, x):
        out = nnx.merge(graphdef, params)(x)
        return jnp.sum(jnp.sin(out) * jnp.arange(1.0, out.size + 1).reshape(out.shape).astype(out.dtype)), out

    (_, out), (d_params, dx) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    leaves = sorted(jax.tree.leaves(d_params), key=lambda leaf: (leaf.shape, np.sum(leaf)))
    assert len(leaves) == count
    return [out, dx, *leaves]


@pytest.mark.sample(3)
@pytest.mark.parametrize("rows", [4096, 4], ids=["whole", "blocks"])
@pytest.mark.parametrize("name", ["linear", "norm", "gelu", "gelu_tanh"])
@pytest.mark.sample(3)
def test_is_the_module_of_flax(name, rows, x64, monkeypatch):
    monkeypatch.setattr(pointwise, "ROWS", rows)
    ours, theirs, pairs = ours_and_flax(name)
    x = 3 + random(9, 2, 5, 5)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        expected = value_and_gradients(theirs, x, len(pairs))
    for a, b in zip(value_and_gradients(ours, x, len(pairs)), expected, strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("ours", "approximate"), [(nn.gelu, False), (nn.gelu_tanh, True)])
def test_activations_and_two_derivatives_are_those_of_jax(ours, approximate, x64):
    def derivatives(f):
        return [jax.vmap(derivative) for derivative in (f, jax.grad(f), jax.grad(jax.grad(f)))]

    theirs = functools.partial(jax.nn.gelu, approximate=approximate)
    values = jax.jit(lambda x: [[d(x) for d in derivatives(f)] for f in (ours, theirs)])
    for f, g in zip(*values(np.linspace(-9, 9, 91)), strict=True):
        np.testing.assert_allclose(f, g, rtol=1e-9, atol=1e-12)


def test_the_tanh_form_is_close_to_the_exact_one(x64):
    difference = jax.jit(lambda x: jnp.abs(nn.gelu_tanh(x) - nn.gelu(x)).max())(np.linspace(-9, 9, 10001))
    assert 1e-4 < difference < 5e-4


@pytest.mark.parametrize("rule", [pointwise.add_to_rows, pointwise.scale_rows])
def test_derivative_rules_against_finite_differences(rule, x64):
    x, vector, dx, d_vector = random(0, 6, 3), random(1, 3), random(2, 6, 3), random(3, 3)
    step = 1e-5
    cotangent = random(4, 6, 3)

    @jax.jit
    def outputs(x, vector, dx, d_vector, cotangent):
        _, tangent = jax.jvp(rule, (x, vector), (dx, d_vector))
        above, below = (rule(x + s * dx, vector + s * d_vector) for s in (step, -step))
        return tangent, above, below, *jax.vjp(rule, x, vector)[1](cotangent)

    tangent, above, below, *pulled = map(np.asarray, outputs(x, vector, dx, d_vector, cotangent))
    np.testing.assert_allclose(tangent, (above - below) / (2 * step), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(
        np.sum(pulled[0] * dx) + np.sum(pulled[1] * d_vector), np.sum(cotangent * tangent), rtol=1e-12
    )


@pytest.mark.parametrize("n", [3, 4, 8, 11], ids=["fewer", "one", "two", "remainder"])
@pytest.mark.sample(2)
def test_blocks_change_neither_value_nor_gradient(n, x64, monkeypatch):
    monkeypatch.setattr(pointwise, "ROWS", 4)
    matrix, x, y = random(0, 3, 2), random(1, 1, n, 3), random(2, 1, n, 2)

    def rows(matrix, x, y):
        return jnp.tanh(x @ matrix) * y

    def loss(apply):
        return lambda matrix, x, y: jnp.sum(apply(matrix, x, y) ** 3)

    def blocked(matrix, x, y):
        return nn.in_blocks(lambda a, b: rows(matrix, a, b), x, y)

    np.testing.assert_allclose(*(jax.jit(f)(matrix, x, y) for f in (blocked, rows)), rtol=1e-14)
    gradients = (jax.jit(jax.grad(loss(f), argnums=(0, 1, 2)))(matrix, x, y) for f in (blocked, rows))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_blocks_hold_no_hidden_activation_for_all_rows(monkeypatch):
    """What the backward pass keeps: nothing as wide as the hidden layer on all rows."""
    monkeypatch.setattr(pointwise, "ROWS", 8)
    network, x = nn.FeedForward(2, 32, rngs=nnx.Rngs(0)), np.ones((64, 2))
    residuals = jax.tree.leaves(jax.eval_shape(lambda m, x: jax.vjp(m, x)[1], network, x))
    assert max(leaf.size for leaf in residuals) < 64 * 32
    monkeypatch.setattr(pointwise, "ROWS", 64)
    residuals = jax.tree.leaves(jax.eval_shape(lambda m, x: jax.vjp(m, x)[1], network, x))
    assert max(leaf.size for leaf in residuals) >= 64 * 32


def test_layer_norm_does_not_cancel_far_from_zero(x64):
    x = random(0, 4, 16)
    norm = nn.LayerNorm(16)
    near, far = call(norm, x.astype(np.float32)), call(norm, (x + 1000).astype(np.float32))
    np.testing.assert_allclose(far, near, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "given", "expected"),
    [
        (None, "float32", "bfloat16", "float32"),
        (None, "bfloat16", "bfloat16", "bfloat16"),
        (None, "bfloat16", "float32", "float32"),
        ("bfloat16", "float32", "float32", "bfloat16"),
    ],
)
@pytest.mark.sample(2)
def test_dtypes(dtype, param_dtype, given, expected):
    """None means the wider of inputs and parameters, and half precision agrees within its rounding."""
    x = random(0, 6, 4).astype(np.float32).astype(jnp.dtype(given))
    modules = [nn.Linear(4, 4, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))]
    modules.append(nn.FeedForward(4, 8, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
    references = [nn.Linear(4, 4, rngs=nnx.Rngs(0)), nn.FeedForward(4, 8, rngs=nnx.Rngs(0))]
    assert modules[0].result_dtype(x.dtype) == expected
    for module, reference in zip(modules, references, strict=True):
        nnx.update(reference, jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float32)), nnx.state(module)))
        out = call(module, x)
        assert out.dtype == expected
        np.testing.assert_allclose(np.asarray(out, np.float32), call(reference, x.astype(np.float32)), atol=0.03)


def test_layer_norm_of_half_precision_takes_its_statistics_in_float32():
    x = (100 + random(0, 4, 64)).astype(jnp.bfloat16)
    out, wide = (np.asarray(call(nn.LayerNorm(64), given)) for given in (x, x.astype(np.float32)))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, wide.astype(jnp.bfloat16))
    assert jax.eval_shape(call, nn.LayerNorm(64, dtype="float32"), x).dtype == jnp.float32


def test_linear_starts_with_variance_one_over_the_width_and_no_bias():
    linear = nn.Linear(64, 512, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.var(linear.kernel[...]), 1 / 64, rtol=0.03)
    assert not np.any(linear.bias[...])


def test_gradients_of_a_norm_hold_no_reduction_over_rows():
    """They are products, see the module's docstring; what is summed has one row."""
    rows, vector = jnp.asarray(np.ones((6, 4))), jnp.asarray(np.ones(4))
    pull = jax.vjp(nn.layer_norm, rows, vector, vector)[1]
    equations = jax.make_jaxpr(pull)(rows).eqns
    summed = [e.invars[0].aval.shape for e in equations if e.primitive.name == "reduce_sum"]
    assert all(shape[0] == 1 for shape in summed), summed
    assert any(e.primitive.name == "dot_general" for e in equations)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation='gelo' is unknown: did you mean 'gelu'"):
        nn.FeedForward(4, 4, activation="gelo", rngs=nnx.Rngs(0))


def test_a_wrong_number_of_channels_is_named():
    with pytest.raises(ValueError, match=r"x must have 2 channels on its last axis, got shape \(4, 3\)"):
        nn.Linear(2, 5, rngs=nnx.Rngs(0))(jnp.asarray(np.ones((4, 3))))
