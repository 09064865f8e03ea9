"""Quadrature rules as objects: named ones, those of a user, and what grids make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import data, domains, schwarz
from jaxop.domains import rules


def simpson(n):
    weights = np.where(np.arange(n) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    return np.linspace(0.0, 1.0, n), weights / weights.sum()


SIMPSON = domains.Rule("simpson", simpson, fewest=3, has_end_nodes=True, margins=(0.0, 0.0))


def test_names_stand_for_rules():
    for name in domains.RULES:
        rule = rules.as_rule(name)
        assert rule.name == name
        by_name, by_rule = domains.interval(7, upper=2.0, rule=name), domains.interval(7, upper=2.0, rule=rule)
        assert jax.tree.structure(by_name) == jax.tree.structure(by_rule)
        assert by_name.rules == (name,)
    assert domains.interval(5).axes[0].rule == rules.TRAPEZOID


def test_an_axis_accepts_the_name_of_a_rule(unchecked):
    axis = domains.interval(4, rule="midpoint").axes[0]
    again = domains.Axis(axis.nodes, axis.weights, "midpoint", 0.0, 1.0)
    assert jax.tree.structure(again) == jax.tree.structure(axis)


@pytest.mark.parametrize("rule", [rules.as_rule(name) for name in domains.RULES], ids=lambda rule: rule.name)
def test_what_a_rule_says_of_its_nodes(rule):
    n = 8
    nodes, weights = rule.on(n, 1.0, 3.0)
    assert rule.has_end_nodes == (np.isclose(nodes[0], 1) and np.isclose(nodes[-1], 3))
    assert rule.has_equal_weights == (np.allclose(weights, 2 / n) and np.allclose(np.diff(nodes), 2 / n))
    if rule.margins is None:
        assert not np.allclose(np.diff(nodes), np.diff(nodes)[0])
    else:
        gap = nodes[1] - nodes[0]
        np.testing.assert_allclose([(nodes[0] - 1) / gap, (3 - nodes[-1]) / gap], rule.margins, atol=1e-12)


def test_a_rule_of_a_user(x64):
    line = domains.interval(9, upper=2.0, rule=SIMPSON)
    np.testing.assert_allclose(line.integrate(line.points**3), [4.0], rtol=1e-12)
    square = domains.box((9, 8), upper=(2, 1), rule=(SIMPSON, "midpoint"))
    assert square.rules == ("simpson", "midpoint")
    np.testing.assert_allclose(square.measure, 2.0)
    np.testing.assert_allclose(line.dirichlet(line.points, line.points), 2.0)
    finer = line.resample((17,))
    assert finer.axes[0].rule is SIMPSON
    dec = schwarz.decompose(line, 2, 1)
    assert dec.on(finer).subdomains == 2
    values = jnp.sin(finer.points)
    np.testing.assert_allclose(jax.jit(lambda grid, u: grid.norm(u))(finer, values), finer.norm(values))
    patch = domains.partition(line, (3,)).subdomain((1,))
    assert patch.has_given_nodes


def test_files_hold_named_rules_only(tmp_path):
    values = np.ones((2, 9, 1), np.float32)
    with pytest.raises(ValueError, match="cannot describe this domain"):
        data.save(tmp_path / "set.npz", data.Samples(values, values, domains.interval(9, rule=SIMPSON)))


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (lambda n: (np.ones(n - 1), np.ones(n)), r"rule='own' must return 4 nodes and 4 weights, got shapes \(3,\)"),
        (lambda n: (np.ones(n), np.ones(n)), r"rule='own' must return increasing nodes in \[0, 1\]"),
        (lambda n: (np.linspace(0, 2, n), np.ones(n)), r"rule='own' must return increasing nodes in \[0, 1\]"),
        (lambda n: (np.linspace(0, 1, n), -np.ones(n)), r"positive weights, got .*-1"),
        (lambda n: (np.linspace(0, 1, n), np.full(n, np.nan)), r"positive weights, got .*nan"),
    ],
)
def test_what_is_no_quadrature_is_refused(unit, message):
    with pytest.raises(ValueError, match=message):
        domains.interval(4, rule=domains.Rule("own", unit))


def test_too_few_nodes_of_a_rule_of_a_user():
    with pytest.raises(ValueError, match=r"rule='simpson' needs n of at least 3 nodes along an axis, got 2"):
        domains.interval(2, rule=SIMPSON)


def test_a_rule_still_equals_its_name():
    rule = domains.interval(8).axes[0].rule
    with pytest.warns(DeprecationWarning, match=r"rule\.name"):
        assert rule == "trapezoid"
    with pytest.warns(DeprecationWarning, match=r"rule\.name"):
        assert rule != "midpoint"
    assert rule == rules.TRAPEZOID
    assert len({rule, rules.TRAPEZOID}) == 1
