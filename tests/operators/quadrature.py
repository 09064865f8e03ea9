"""Laws that an operator on any nodes has if its sums over nodes are quadratures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxop import domains, testing

N = 12


def perturbed(operator, seed=1, scale=0.3):
    """The same operator with other parameters, so that no part starts at zero, in float64."""
    rng = np.random.default_rng(seed)
    graphdef, state = nnx.split(operator)
    return nnx.merge(
        graphdef,
        jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64) + scale * rng.normal(size=a.shape)), state),
    )


@jax.jit
def call(operator, values, points, weights):
    return operator(values, domains.from_nodes(points, weights))


def nodes(seed=0):
    """Values, points and weights of nodes whose last has weight 0."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 2.0, N)
    weights[-1] = 0
    return rng.normal(size=(N, 1)), rng.uniform(size=(N, 1)), weights


def check_laws(operator):
    """Splitting a node, order, padding and the unit of weight change nothing, with one program."""
    values, points, weights = nodes()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
    expected = np.asarray(call(operator, values, points, weights))[:-1]
    assert np.ptp(expected, axis=0).min() > 1e-3

    halved, split_values, split_points = weights.copy(), values.copy(), points.copy()
    halved[[2, -1]] = weights[2] / 2
    split_values[-1], split_points[-1] = values[2], points[2]
    close(np.asarray(call(operator, split_values, split_points, halved))[:-1], expected)

    padded_values, padded_points = values.copy(), points.copy()
    padded_values[-1], padded_points[-1] = 1e3, -7.0
    close(np.asarray(call(operator, padded_values, padded_points, weights))[:-1], expected)

    order = np.random.default_rng(1).permutation(N)
    out = np.asarray(call(operator, values[order], points[order], weights[order]))
    close(out[np.argsort(order)][:-1], expected)
    close(np.asarray(call(operator, values, points, 1e-12 * weights))[:-1], expected)
    np.testing.assert_array_equal(np.asarray(call(operator, values, points, weights))[:-1], expected)

    ignored = np.where(weights > 0, 1.0, 0.0)
    assert np.abs(np.asarray(call(operator, values, points, ignored))[:-1] - expected).max() > 1e-4


def order_on_uneven_nodes(operator):
    """Observed order of the output at two points, under refinement of uneven nodes with trapezoid weights."""
    size, at = 257, domains.from_samples(jnp.asarray([0.25, 1.0]))

    @jax.jit
    def at_probe(points, weights):
        return operator(jnp.sin(3 * points), domains.from_nodes(points, weights), at=at)

    sizes, outputs = [16, 32, 64, 256], []
    for n in sizes:
        domain = domains.from_samples(np.linspace(0.0, 1.0, n + 1) ** 1.7)
        padding = (0, size - n - 1)
        points = np.pad(np.asarray(domain.points), [padding, (0, 0)])
        outputs.append(np.asarray(at_probe(points, np.pad(np.asarray(domain.weights), padding))))
    errors = [np.abs(out - outputs[-1]).max() for out in outputs[:-1]]
    return testing.observed_order(sizes[:-1], errors)


def check_answers_anywhere(operator, lower, upper):
    """A batch on stacked domains, asked at other nodes between two points, is one function after the other."""
    run = jax.jit(lambda operator, values, domain, at: operator(values, domain, at=at))
    rng = np.random.default_rng(0)
    clouds = [domains.from_samples(np.sort(rng.random(6, np.float32))) for _ in range(2)]
    queries = [domains.from_samples(np.sort(rng.uniform(lower, upper, 3).astype(np.float32))) for _ in range(2)]
    values = jnp.asarray(rng.normal(size=(2, 6, 1)).astype(np.float32))
    stacked = np.asarray(run(operator, values, domains.stack(clouds), domains.stack(queries)))
    for i in range(2):
        shared = np.asarray(run(operator, values, clouds[i], queries[i]))
        assert stacked.shape == shared.shape == (2, 3, 2)
        np.testing.assert_allclose(stacked[i], shared[i], rtol=2e-5, atol=1e-6)
        assert np.abs(shared[1 - i] - stacked[1 - i]).max() > 1e-4
