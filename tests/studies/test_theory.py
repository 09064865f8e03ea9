"""The tables of orders and rates, at sizes that take seconds."""

import pytest
from studies import theory

from jaxop.testing import observed_order

pytestmark = [pytest.mark.optax, pytest.mark.study]


def rows(capsys):
    """The cells of every row by its first cell, below the titles."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines[1:])}


def test_rules_have_their_orders(capsys):
    theory.main("quadrature", (16, 32))
    table = rows(capsys)
    for rule, order, tolerance in (("trapezoid", 2, 0.1), ("midpoint", 2, 0.1), ("Monte Carlo", 0.5, 0.15)):
        assert float(table[rule][-2]) == pytest.approx(order, abs=tolerance)
    assert float(table["gauss-legendre"][1]) < 1e-12


def test_measured_densities_have_the_exact_slopes(x64, capsys):
    theory.density((16, 32), draws=50_000)
    table = rows(capsys)
    assert list(table) == [f"{dim}, {power}" for dim in (1, 2) for power in (4, 2, 1)]
    for cells in table.values():
        assert float(cells[-3]) == pytest.approx(float(cells[-2]), abs=0.1)


def test_acceleration_takes_fewer_steps_to_a_target(capsys):
    theory.main("particles", (16, 32))
    table = rows(capsys)
    assert float(table["first order"][-2]) == pytest.approx(1, abs=0.15)
    assert float(table["accelerated"][-2]) < 0.75
    assert float(table["accelerated"][1]) < float(table["first order"][1])


def test_steps_to_a_gaussian_target_grow_slower_with_acceleration(x64):
    """∝ κ for the first order. Accelerated: measured κ^0.61, theory κ^1/2 up to a horizon that grows like log κ."""
    conditions = [64, 128, 256, 512, 1024]
    slope = {a: -observed_order(conditions, [theory.steps_to_target(c, a) for c in conditions]) for a in (False, True)}
    assert slope[False] == pytest.approx(1.0, abs=0.05)
    assert 0.45 < slope[True] < 0.68
