"""Attention heads as binary kernel machines, and machines as attention heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import distillation, kernel_machines, kernels, nn

D, HEADS = 6, 3


def layer(seed=0, **options):
    attention = nn.IntegralAttention(D, HEADS, rngs=nnx.Rngs(seed), **options)
    for linear in (attention.query, attention.key_value):
        linear.kernel[...] = jnp.asarray(2.0 * np.asarray(linear.kernel[...]))
        linear.bias[...] = jnp.asarray(0.3 * np.random.default_rng(seed + 1).normal(size=linear.bias.shape))
    return attention


def inputs(n, seed=0):
    """Normalised tokens: their channels sum to 0, so that affine functions of them are dependent."""
    x = np.random.default_rng(seed).normal(size=(n, D))
    x = x - np.mean(x, axis=1, keepdims=True)
    return jnp.asarray(x / np.std(x, axis=1, keepdims=True))


head_logits = jax.jit(distillation.head_logits, static_argnums=1)
fidelity = jax.jit(distillation.fidelity)


@jax.jit
def softmax(logits):
    return nnx.softmax(logits)


def test_logits_are_those_of_the_attention():
    kernel = kernels.PerHead(kernels.Gaussian(jnp.asarray([0.3, 0.6, 0.9])))
    attention, x, y = layer(kernel=kernel), inputs(9), inputs(7, seed=1)

    @jax.jit
    def both(attention, x, y):
        weights = jnp.stack([nnx.softmax(distillation.head_logits(attention, h, x, y)) for h in range(HEADS)])
        value = attention.project(x[None], y[None])[2][0]
        return jnp.einsum("hnm,mhc->nhc", weights, value), attention.mix(x[None], context=y[None])[0]

    np.testing.assert_allclose(*both(attention, x, y), rtol=1e-4, atol=1e-5)
    assert distillation.head_kernel(attention, 1).inverse_width == pytest.approx(0.6)


@pytest.mark.thorough
def test_a_machine_reads_a_head_on_inputs_it_has_not_seen(x64):
    attention, x, y = layer(param_dtype=jnp.float64), inputs(300), inputs(300, seed=1)
    machine = distillation.machine_of_head(attention, 1, x, y, regularization=1e-5)
    x, y = inputs(80, seed=2), inputs(80, seed=3)
    forth, back = (head_logits(attention, 1, *pair) for pair in ((x, y), (y, x)))
    found = fidelity(machine(x, y), forth)
    assert found.logits > 0.98
    assert found.weights < 0.05
    assert fidelity(machine(y, x), back).logits > 0.9  # of the same function
    assert fidelity(machine(x, y).T, back).logits < 0.5


@pytest.mark.thorough
def test_a_head_starts_from_a_machine_exactly_if_it_can(x64):
    """A head's own logits, handed over as a machine, start another head with the same attention."""
    teacher, student = layer(param_dtype=jnp.float64), layer(seed=5, param_dtype=jnp.float64)
    x, y = inputs(40), inputs(30, seed=1)
    others = [head_logits(student, h, x, y) for h in (0, 1)]
    found = distillation.start_from_machine(student, 2, lambda x, y: head_logits(teacher, 0, x, y), x, y)
    assert found.logits == pytest.approx(1.0, abs=1e-9)
    new, other = inputs(11, seed=3), inputs(13, seed=4)
    theirs, ours = head_logits(teacher, 0, new, other), head_logits(student, 2, new, other)
    np.testing.assert_allclose(softmax(ours), softmax(theirs), atol=1e-8)
    np.testing.assert_array_equal([head_logits(student, h, x, y) for h in (0, 1)], others)


@pytest.mark.thorough
def test_there_and_back(x64):
    teacher, student = layer(param_dtype=jnp.float64), layer(seed=5, param_dtype=jnp.float64)
    x = inputs(300)
    machine = distillation.machine_of_head(teacher, 0, x, regularization=1e-5)
    distillation.start_from_machine(student, 0, machine, x)
    new = inputs(50, seed=7)
    found = fidelity(head_logits(student, 0, new), head_logits(teacher, 0, new))
    assert found.logits > 0.99
    assert found.weights < 0.03


@pytest.mark.thorough
def test_a_start_is_the_best_of_its_rank(x64):
    """Of all products of affine maps with two channels; a random perturbation of it is never better."""
    x, y = inputs(30), inputs(25, seed=1)
    u, v = np.asarray(x), np.asarray(y)
    logits = jnp.asarray(np.sin(3 * u[:, :1]) @ v[:, 1:2].T + u[:, 1:4] @ v[:, [0, 3, 2]].T)
    attention = layer(param_dtype=jnp.float64)
    best = distillation.start_from_machine(attention, 0, lambda *_: logits, x, y).logits
    np.testing.assert_allclose(fidelity(head_logits(attention, 0, x, y), logits).logits, best, rtol=1e-10)
    assert 0.1 < best < 0.9
    kernel = np.asarray(attention.query.kernel[...])
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(size=kernel.shape)
        attention.query.kernel[...] = jnp.asarray(kernel + 0.02 * noise)
        assert fidelity(head_logits(attention, 0, x, y), logits).logits < best


def test_fidelity_ignores_constants_of_rows_and_sees_the_rest():
    array = np.random.default_rng(0).normal(size=(5, 7))
    logits = jnp.asarray(array)
    same = fidelity(jnp.asarray(array + np.arange(5.0)[:, None]), logits)
    np.testing.assert_allclose([*same], [1.0, 0.0], atol=1e-5)
    assert fidelity(jnp.asarray(np.zeros((5, 7))), logits).logits == pytest.approx(0.0, abs=1e-6)


def test_bad_input():
    x = inputs(20)
    with pytest.raises(IndexError, match="head must lie between 0 and 2, got 3"):
        distillation.head_logits(layer(), 3, x)
    with pytest.raises(ValueError, match="DotProduct is signed and has no logarithm"):
        distillation.head_logits(layer(kernel=kernels.DotProduct()), 0, x)
    with pytest.raises(NotImplementedError, match="exponentiated dot product, not of Gaussian"):
        distillation.start_from_machine(layer(kernel=kernels.Gaussian()), 0, lambda x, y: x @ y.T, x)
    with pytest.raises(ValueError, match=r"must have shape \(n, m\) = \(20, 20\), got \(20,\)"):
        distillation.start_from_machine(layer(), 0, lambda x, y: x[:, 0], x)
    assert isinstance(distillation.machine_of_head(layer(), 0, x), kernel_machines.BinaryMachine)
