"""Recipes of the study of error bars, on numbers made here: nothing is trained."""

import dataclasses

import numpy as np
import pytest
from studies import bands

from jaxop import domains, training


def predictions(functions=200, nodes=40, seed=0):
    """Gaussian errors whose size varies over the domain and is known, on uneven nodes."""
    random = np.random.default_rng(seed)
    spread = np.broadcast_to(1 + np.linspace(0, 1, nodes), (functions, nodes)).astype(np.float32)
    residuals = spread * np.abs(random.normal(size=(functions, nodes))) * (1 + random.random((functions, 1)))
    weights = random.random(nodes).astype(np.float32)
    return bands.Predicted(residuals.astype(np.float32), spread, weights, 2.0)


def test_scores_are_those_of_the_library_function_by_function():
    made = predictions(3)
    nodes = domains.from_nodes(np.arange(40)[:, None], made.weights)
    expected = [
        training.band_score(np.zeros((40, 1), np.float32), r[:, None], nodes, alpha=0.1, spread=s[:, None])
        for r, s in zip(made.residuals, made.spread, strict=True)
    ]
    np.testing.assert_allclose(made.scores(0.1), expected, rtol=1e-6)
    np.testing.assert_allclose(
        made.width(np.arange(3)), np.average(made.spread[0], weights=made.weights) / 2, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("alpha", "delta", "nodes", "node", "function"), [(0.05, 0.1, 1000, 11, 55), (0.1, 0.1, 400, 13, 79)]
)
def test_uqno_takes_smaller_levels(alpha, delta, nodes, node, function):
    """By hand: b = 0.0339 and t = 0.0393, so that ⌈10.7⌉ and ⌈1001 · 0.0546⌉; and b = 0.0536, t = 0.0691."""
    assert bands.uqno_ranks(alpha, delta, 1000, nodes) == (node, function)


def test_uqno_has_no_factor_for_few_nodes_and_the_factor_of_its_ranks_otherwise():
    made = predictions()
    assert bands.uqno_factor(made.residuals / made.spread, 0.02, 0.1) is None
    ratios = np.arange(2000.0 * 9).reshape(9, 2000)
    node, function = bands.uqno_ranks(0.4, 0.2, *ratios.shape)
    assert (node, function) != (0, 0)
    assert bands.uqno_factor(ratios, 0.4, 0.2) == ratios[8 - function, 1999 - node]


def test_a_row_is_the_coverage_of_new_functions(capsys):
    made = predictions()
    options = bands.Calibration(pool=200, splits=40)
    bands.rows(
        "second operator", {"here": made, "twice": dataclasses.replace(made, residuals=2 * made.residuals)}, options
    )
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    for (alpha, delta), row in zip(bands.LEVELS, [row for row in rows if row[2] == "conformal"], strict=True):
        assert row[1] == f"{alpha:g}, {delta:g}"
        assert abs(float(row[4].split()[0]) - 100 * (1 - delta)) < 1.5
        assert float(row[5].split()[0]) < 30  # errors of twice the size
    assert [row[4] == "none" for row in rows if row[2] == "UQNO"] == [True, True, True]


def test_a_pool_that_is_too_small_is_refused_before_anything_is_made():
    with pytest.raises(ValueError, match=r"--pool.* 40 functions are too few for delta=0\.02"):
        bands.main(bands.Calibration(pool=80))
