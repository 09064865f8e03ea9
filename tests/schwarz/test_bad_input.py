"""Arguments that do not fit: each message names argument, expected and received."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import schwarz
from tests.schwarz.cases import DECOMPOSITIONS, factors_on


def bad(name):
    dec = DECOMPOSITIONS["interior"]()
    factors = factors_on(dec)
    identity, ones = np.eye(31), jnp.ones((31, 1))
    return {
        "rank": lambda: factors_on(dec, 10),
        "coarse rank": lambda: factors_on(dec, 2, coarse_rank=4),
        "fit rank": lambda: schwarz.fit(dec, identity, identity, rank=10),
        "features": lambda: schwarz.fit(
            dec, identity, identity, rank=3, features=functools.partial(schwarz.legendre_features, degree=1)
        ),
        "values": lambda: schwarz.apply(jnp.ones((30, 1)), dec, factors),
        "local shape": lambda: schwarz.apply(ones, dec, schwarz.Factors(local_query=jnp.ones((4, 11, 2)))),
        "key alone": lambda: schwarz.apply(ones, dec, schwarz.Factors(coarse_key=factors.coarse_key)),
        "key shape": lambda: schwarz.apply(ones, dec, schwarz.Factors(factors.coarse_query, factors.coarse_key[:, :1])),
        "coefficients": lambda: schwarz.sample_factors(
            factors, dec, functools.partial(schwarz.legendre_features, degree=1)
        ),
        "matrix shape": lambda: schwarz.galerkin_factors(dec, np.eye(30)),
        "matrix function": lambda: schwarz.galerkin_factors(dec, lambda u: u),
        "singular": lambda: schwarz.galerkin_factors(dec, np.zeros((31, 31))),
        "NaN matrix": lambda: schwarz.galerkin_factors(dec, np.full((31, 31), np.nan)),
        "blocks": lambda: schwarz.galerkin_factors(dec, identity, blocks="inner"),
        "targets": lambda: schwarz.fit(dec, identity, identity[:, :3], rank=1),
        "NaN targets": lambda: schwarz.fit(dec, identity, np.full((31, 31), np.nan), rank=1),
        "nothing": lambda: schwarz.fit(dec, identity, 0 * identity, rank=1),
        "noise": lambda: schwarz.fit(dec, identity, identity, rank=1, noise=-1.0),
        "tracers": lambda: jax.jit(lambda f: schwarz.fit(dec, f, f, rank=1).factors)(identity),
        "NaN features": lambda: schwarz.fit(
            dec, identity, identity, rank=1, features=lambda x: jnp.nan * jnp.ones((x.shape[0], 3))
        ),
        "flat features": lambda: schwarz.fit(dec, identity, identity, rank=1, features=lambda x: x[:, 0]),
        "steps": lambda: schwarz.fit(dec, identity, identity, rank=1, steps=-1),
        "NaN start": lambda: schwarz.fit(
            dec,
            identity,
            identity,
            rank=2,
            initial=dataclasses.replace(factors, coarse_key=jnp.nan * factors.coarse_key),
        ),
        "shifts": lambda: schwarz.apply(ones, dec, schwarz.Factors(shift=jnp.ones(31))),
        "weights": lambda: schwarz.low_rank_errors(identity, identity, np.ones((31, 1))),
        "negative weights": lambda: schwarz.low_rank_errors(identity, identity, -np.ones(31)),
        "no targets": lambda: schwarz.operator_error(dec, factors, identity, 0 * identity),
        "traced matrix": lambda: jax.jit(lambda a: schwarz.galerkin_factors(dec, a))(identity),
        "global samples": lambda: schwarz.optimal_low_rank(identity, identity[:, :3], np.ones(31), 2),
        "global rank": lambda: schwarz.optimal_low_rank(identity, identity, np.ones(31), 32),
        "low rank weights": lambda: schwarz.low_rank_apply(ones, jnp.ones((31, 1)), jnp.ones((31, 2))),
        "low rank rows": lambda: schwarz.low_rank_apply(ones, jnp.ones(31), jnp.ones((30, 2))),
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rank", r"rank must lie between 0 and the 9 nodes \(or features\) of the smallest subdomain, 0, got 10"),
        ("coarse rank", r"coarse_rank must lie between 0 and the 3 coarse functions, got 4"),
        ("fit rank", r"rank must lie between 0 and the 9 nodes"),
        ("features", r"rank must lie between 0 and the 2 nodes \(or features\)"),
        ("values", r"values must have shape \(n, c\) = \(31, c\), one row per node, got \(30, 1\)"),
        ("local shape", r"local_query must have shape \(p, s, r\) = \(4, 12, r\).*got \(4, 11, 2\); coefficients"),
        ("key alone", r"coarse_key is given without coarse_query"),
        ("key shape", r"coarse_key must have the shape of coarse_query, \(3, 3\), got \(3, 1\)"),
        ("coefficients", r"coefficients must have shape \(p, q, r\) = \(4, 2, r\)"),
        (
            "matrix shape",
            r"matrix must be dense or sparse \(scipy\.sparse, BCOO\), of shape \(n, n\) = \(31, 31\).*got \(30, 30\)",
        ),
        ("matrix function", r"matrix must be dense or sparse \(scipy\.sparse, BCOO\), .* got function"),
        ("singular", r"matrix is singular on subdomain 0"),
        ("NaN matrix", r"matrix must be finite, but matrix\[0, 0\] = nan"),
        ("blocks", r"blocks='inner' is unknown.*'interior'"),
        ("targets", r"targets must have shape \(n, m\) = \(31, m\).*got \(31, 31\) and \(31, 3\)"),
        ("NaN targets", r"targets must be finite, but targets\[\(0, 0\)\] is not"),
        ("nothing", r"targets are 0 everywhere"),
        ("noise", r"noise must be finite and not negative, got -1.0"),
        ("tracers", r"must be concrete to be fitted; call it outside jax.jit"),
        ("NaN features", r"features must map \(s, dim\) local coordinates to \(s, q\) finite numbers"),
        ("flat features", r"features must map .* got \(4, 12\)"),
        ("steps", r"steps must be an integer of at least 0, got -1"),
        ("NaN start", r"initial.coarse_key must be finite"),
        ("shifts", r"shift must be one number, got shape \(31,\)"),
        ("weights", r"weights must have shape \(n,\), got \(31, 1\)"),
        ("negative weights", r"weights must be finite and non-negative, but weights\[0\] = -1"),
        ("no targets", r"targets are 0 everywhere"),
        ("traced matrix", r"must be concrete: call galerkin_factors outside jax.jit"),
        ("global samples", r"targets must have shape \(n, m\)"),
        ("global rank", r"rank must lie between 0 and the 31 nodes, got 32"),
        ("low rank weights", r"weights must have shape \(n,\), query and key one shape \(n, r\), got \(31, 1\)"),
        ("low rank rows", r"query must have one row per row of values, 31, got \(30, 2\)"),
    ],
)
@pytest.mark.sample(11)
def test_bad_input_is_named(name, message, unchecked):
    call = bad(name)
    with pytest.raises(ValueError, match=message):
        call()


KINDS = [
    (
        lambda dec: schwarz.apply(jnp.ones((31, 1)), dec.domain, schwarz.Factors()),
        "decomposition must",
    ),
    (lambda dec: schwarz.apply(jnp.ones((31, 1)), dec, None), "factors must be schwarz.Factors, got NoneType"),
    (lambda dec: schwarz.fit(dec.domain, np.eye(31), np.eye(31), rank=1), "decomposition must be a Decomp"),
    (lambda dec: schwarz.fit(dec, np.eye(31), np.eye(31), rank=2.5), "rank must be an integer, got 2.5"),
    (lambda dec: schwarz.random_factors(jax.random.key(0), dec, True), "rank must be an integer, got True"),
    (lambda dec: schwarz.subdomain_attention(*[jnp.ones((31, 1, 2))] * 3, dec.domain), "decomposition must be a"),
]


@pytest.mark.parametrize(("call", "message"), KINDS)
def test_arguments_of_another_kind(call, message, unchecked):
    with pytest.raises(TypeError, match=message):
        call(DECOMPOSITIONS["interior"]())


@pytest.mark.parametrize("name", ["inputs", "matrix", "coarse"])
def test_complex_numbers_are_refused(name, unchecked):
    dec, eye = DECOMPOSITIONS["interior"](), np.eye(31)
    with pytest.raises(TypeError, match=f"{name} must be real, got dtype complex128"):
        {
            "inputs": lambda: schwarz.fit(dec, 1j * eye, eye, rank=1),
            "matrix": lambda: schwarz.galerkin_factors(dec, 1j * eye),
            "coarse": lambda: schwarz.decompose(dec.domain, 4, 2, coarse=1j * eye),
        }[name]()
