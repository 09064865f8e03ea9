"""Several functions on nodes of their own as one function on the nodes of all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import attention, data, domains, kernels, operators
from tests.data.ragged_cases import cloud


def three():
    """Functions on a cloud, a line and a grid of the plane, with 1, 3 and 2 channels."""
    random = np.random.default_rng(0)
    ends = np.linspace(0, 1, 4, dtype=np.float32)
    line = domains.from_nodes(np.stack([ends, 0 * ends], axis=1), np.full(4, 0.25, np.float32))
    parts = {"a": (1, cloud(6)), "b": (3, line), "c": (2, domains.box((2, 3)))}
    return {name: (random.random((d.size, c)).astype(np.float32), d) for name, (c, d) in parts.items()}


def test_values_stand_in_their_own_channels_and_weights_are_kept():
    functions = three()
    values, union = data.join(functions)
    assert values.shape == (16, 6 + 3)
    assert union.size == 16
    row, column = 0, 0
    for k, (u, domain) in enumerate(functions.values()):
        rows = slice(row, row + len(u))
        expected = np.zeros((len(u), 9), np.float32)
        expected[:, column : column + u.shape[1]] = u
        expected[:, 6 + k] = 1
        np.testing.assert_array_equal(values[rows], expected)
        np.testing.assert_array_equal(union.weights[rows], domain.weights)
        np.testing.assert_array_equal(union.points[rows], domain.points)
        row, column = row + len(u), column + u.shape[1]


def test_attention_over_the_union_is_the_sum_of_the_integrals():
    """Partial integrals over each function's nodes combine to attention over the union."""
    functions = three()
    values, union = data.join(functions)
    project = np.random.default_rng(1).normal(size=(3, 9, 2, 4)).astype(np.float32)
    query, key, value = (jnp.einsum("nc,chd->nhd", values, p) for p in jnp.asarray(project))
    whole = attention.integral_attention(query, key, value, union.weights)
    parts, row, kernel = [], 0, kernels.ExpDotProduct()
    for _, domain in functions.values():
        rows = slice(row, row + domain.size)
        parts.append(attention.accumulate(query, key[rows], value[rows], domain.weights, kernel=kernel))
        row += domain.size
    combined = attention.combine(attention.combine(*parts[:2]), parts[2])
    np.testing.assert_allclose(attention.finish(combined), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_an_operator_maps_all_functions_to_a_field():
    functions, field = three(), domains.box((3, 3), rule="midpoint")
    values, union = data.join(functions)
    sample = data.Sample(values, np.ones((9, 1), np.float32), union, at=field)
    samples = data.RaggedSamples([sample, sample])
    config = operators.LatentNeuralOperatorConfig(
        samples.in_channels, 1, dim=2, width=8, heads=2, layers=1, decoder_layers=1
    )
    operator = operators.build(config, rngs=nnx.Rngs(0))
    batch = samples[:]
    graphdef, state = nnx.split(operator)

    def total(inputs):
        return jnp.sum(nnx.merge(graphdef, state)(inputs, batch.domain, at=batch.at) ** 2)

    sensitivity = jnp.abs(jax.jit(jax.grad(total))(batch.inputs)).sum(axis=(0, 1))
    assert (sensitivity > 0).all()  # the field depends on every channel of every function


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (dict, ValueError, "functions is empty"),
        (lambda: {"a": 3}, TypeError, r"functions\['a'\] must be a pair of values and a domain, got int"),
        (lambda: {"a": (np.ones((3, 1)), 5)}, TypeError, r"functions\['a'\]\[1\] must be a Domain, got int"),
        (lambda: {"a": (np.ones((5, 1)), cloud(6))}, ValueError, r"functions\['a'\] must have values of .* n = 6"),
        (lambda: three() | {"d": (np.ones((6, 1)), cloud(6, dim=3))}, ValueError, r"functions\['d'\] has dimension 3"),
        (
            lambda: {"a": (np.ones((6, 1)), domains.stack([cloud(6)]))},
            ValueError,
            r"functions\['a'\] has a stack of domains",
        ),
    ],
)
def test_bad_functions_are_refused(unchecked, make, error, message):
    with pytest.raises(error, match=message):
        data.join(make())
