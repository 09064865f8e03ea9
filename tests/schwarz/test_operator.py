"""The operator of two levels: formula, symmetry, size, factors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxop import domains, schwarz
from tests.domains.cases import scattered, values_on
from tests.jaxprs import equations
from tests.schwarz.cases import DECOMPOSITIONS, factors_on, problem


@pytest.mark.sample(1)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_the_operator_is_the_formula_in_dense_matrices(name, symmetric):
    dec = DECOMPOSITIONS[name]()
    factors = factors_on(dec, symmetric=symmetric)
    values = values_on(dec.domain).astype(jnp.float32)
    out = schwarz.apply(values, dec, factors)
    # Σ_i R_iᵀ D_i^½ Q_i K_iᵀ D_i^½ R_i W, by loops over numpy arrays
    weights, n = np.asarray(dec.domain.weights, np.float64), dec.domain.size
    expected = np.zeros((n, n))
    query = np.asarray(factors.local_query, np.float64)
    key = query if symmetric else np.asarray(factors.local_key, np.float64)
    for i in range(dec.subdomains):
        inside = np.asarray(dec.cover.inside[i])
        nodes, root = np.asarray(dec.cover.index[i])[inside], np.sqrt(np.asarray(dec.partition[i])[inside, None])
        expected[np.ix_(nodes, nodes)] += (root * query[i, inside]) @ (root * key[i, inside]).T
    if dec.coarse is not None:
        basis, q0 = np.asarray(dec.coarse_basis(), np.float64), np.asarray(factors.coarse_query, np.float64)
        k0 = q0 if symmetric else np.asarray(factors.coarse_key, np.float64)
        expected += basis @ q0 @ k0.T @ basis.T
    expected = expected * weights
    np.testing.assert_allclose(out, expected @ np.asarray(values), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(schwarz.matrix(dec, factors), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.optax
def test_gradients_train_it():
    dec, _, inputs, targets = problem(31, 4, 2)
    inputs, targets = jnp.asarray(inputs, jnp.float32), jnp.asarray(10 * targets, jnp.float32)
    factors = factors_on(dec, 3)
    optimizer = optax.adam(2e-2)

    def loss(factors):
        return jnp.sum((schwarz.apply(inputs, dec, factors) - targets) ** 2) / jnp.sum(targets**2)

    @jax.jit
    def train(factors):
        def advance(carry, _):
            factors, state = carry
            updates, state = optimizer.update(jax.grad(loss)(factors), state)
            return (optax.apply_updates(factors, updates), state), None

        return jax.lax.scan(advance, (factors, optimizer.init(factors)), length=1500)[0][0]

    assert float(loss(train(factors))) ** 0.5 < 5e-2


@pytest.mark.thorough
def test_renumbering_the_nodes_changes_nothing_else():
    points, weights = scattered(40, 2), jnp.linspace(0.5, 1.5, 40)
    order = jax.random.permutation(jax.random.key(1), 40)
    sets = [np.arange(0, 25), np.arange(15, 40)]
    place = np.argsort(np.asarray(order))
    one = schwarz.from_subdomains(domains.from_nodes(points, weights), sets)
    other = schwarz.from_subdomains(domains.from_nodes(points[order], weights[order]), [place[nodes] for nodes in sets])
    factors, v = factors_on(one), values_on(one.domain)
    out = schwarz.apply(v, one, factors)
    np.testing.assert_allclose(schwarz.apply(v[order], other, factors), out[order], rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_splitting_a_node_changes_nothing():
    """Two copies of a node with half its weight each, in the same subdomains, are the node."""
    points, weights = scattered(12, 1), jnp.ones(12)
    twin = np.append(np.arange(12), 5)
    halved = weights[twin].at[jnp.array([5, 12])].set(0.5)
    sets = [np.arange(8), np.arange(4, 12)]
    one = schwarz.from_subdomains(domains.from_nodes(points, weights), sets)
    other = schwarz.from_subdomains(domains.from_nodes(points[twin], halved), [np.append(nodes, 12) for nodes in sets])
    factors, v = factors_on(one), values_on(one.domain)

    def extended(local):
        return jnp.stack(
            [jnp.append(x, x[nodes.tolist().index(5)][None], 0) for x, nodes in zip(local, sets, strict=True)]
        )

    split = schwarz.Factors(
        factors.coarse_query, factors.coarse_key, extended(factors.local_query), extended(factors.local_key)
    )
    out = schwarz.apply(v, one, factors)
    np.testing.assert_allclose(schwarz.apply(v[twin], other, split), out[twin], rtol=1e-4, atol=1e-5)


def test_transformations_and_dtypes():
    dec = DECOMPOSITIONS["interior"]()
    factors = factors_on(dec)
    batch = jax.random.normal(jax.random.key(1), (3, 31, 2))
    apply = jax.jit(jax.vmap(schwarz.apply, in_axes=(0, None, None)))
    out = apply(batch, dec, factors)
    np.testing.assert_allclose(out[1], schwarz.apply(batch[1], dec, factors), rtol=1e-5, atol=1e-6)
    half = schwarz.apply(batch[1].astype(jnp.bfloat16), dec, factors)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), out[1], rtol=0.05, atol=0.05)


def test_no_array_is_larger_than_a_few_times_the_nodes():
    n = 2**14 - 1
    dec = schwarz.decompose(domains.interval(n, rule="interior"), 128, 4)
    factors = factors_on(dec, 4)
    v = jnp.ones((n, 1))
    sizes = [v.aval.size for e in equations(schwarz.apply, v, dec, factors) for v in e.outvars]
    assert max(sizes) < 5 * n
    compiled = jax.jit(schwarz.apply).lower(v, dec, factors).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10 * 4 * n
    assert all(leaf.size < 5 * n for leaf in jax.tree.leaves((dec, factors)))


@pytest.mark.thorough
def test_random_factors_have_the_variance_that_is_promised():
    dec = schwarz.decompose(domains.interval(400, upper=3.0, rule="midpoint"), 40, 2, coarse="partition")
    factors = schwarz.random_factors(jax.random.key(0), dec, 5)
    for part, rank in (("local", 5), ("coarse", 40)):
        for side in ("query", "key"):
            variance = np.var(np.asarray(getattr(factors, f"{part}_{side}")))
            assert variance == pytest.approx(np.sqrt(40 / (rank * 3.0)), rel=0.1)


@pytest.mark.thorough
def test_random_factors_make_functions_of_the_size_that_is_promised():
    dec, sizes = schwarz.decompose(domains.interval(1024, rule="midpoint"), 16, 0, coarse="partition"), []
    for seed in range(20):
        factors = schwarz.random_factors(jax.random.key(seed), dec, 4)
        coarse, local = (
            schwarz.Factors(**{f"{part}_{side}": getattr(factors, f"{part}_{side}") for side in ("query", "key")})
            for part in ("coarse", "local")
        )
        ones = jnp.ones((1024, 1))
        sizes.append([float(dec.domain.norm(schwarz.apply(ones, dec, part))) for part in (coarse, local)])
    coarse, local = np.sqrt(np.mean(np.square(sizes), axis=0))
    assert coarse == pytest.approx(1, rel=0.3)
    assert local == pytest.approx(1 / 32, rel=0.3)


@pytest.mark.thorough
def test_factors_are_drawn_inside_jit():
    dec = schwarz.decompose(domains.interval(30, rule="interior"), 4, 2)
    drawn = schwarz.random_factors(jax.random.key(0), dec, 3)
    for draw in (
        lambda key, _: schwarz.random_factors(key, dec, 3),
        lambda key, d: schwarz.random_factors(key, d, 3),
    ):
        traced = jax.jit(draw)(jax.random.key(0), dec)
        np.testing.assert_allclose(traced.local_query, drawn.local_query, rtol=1e-6)
    with pytest.raises(ValueError, match=r"count parameters outside jax\.jit"):
        jax.jit(lambda d: schwarz.count_parameters(d, drawn))(dec)


@pytest.mark.thorough
def test_no_channels_and_a_partition_that_vanishes_on_a_node():
    dec = schwarz.decompose(domains.interval(17), 2, 0.25, partition="ramp")
    assert (np.asarray(dec.partition)[np.asarray(dec.cover.inside)] == 0).any()
    factors = schwarz.random_factors(jax.random.key(0), dec, 2)
    assert schwarz.apply(jnp.ones((17, 0)), dec, factors).shape == (17, 0)
    apply = lambda part: jnp.sum(  # noqa: E731
        schwarz.apply(jnp.ones((17, 1)), dataclasses.replace(dec, partition=part), factors) ** 2
    )
    assert np.isfinite(jax.grad(apply)(dec.partition)).all()


@pytest.mark.thorough
def test_padding_has_neither_value_nor_derivative():
    dec = schwarz.decompose(domains.interval(30, rule="interior"), 4, 2)
    padding = ~np.asarray(dec.cover.inside)
    assert padding.any()
    factors = schwarz.random_factors(jax.random.key(0), dec, 2)
    spoilt = jnp.where(padding[..., None], jnp.nan, factors.local_query)
    spoilt = dataclasses.replace(factors, local_query=spoilt)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def of(partition, factors):
        out = schwarz.apply(dec.domain.points, dataclasses.replace(dec, partition=partition), factors)
        return jnp.sum(out**2), out

    ((_, out), gradient), ((_, same), _) = of(dec.partition, factors), of(dec.partition, spoilt)
    np.testing.assert_array_equal(out, same)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[padding], 0)
    np.testing.assert_array_equal(schwarz.matrix(dec, spoilt), schwarz.matrix(dec, factors))
