"""One-dimensional quadrature rules: nodes and weights of an interval."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from jaxop._validation import as_integer, as_number, check_name

NodesAndWeights: TypeAlias = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
    """∫_0^1 f(x) dx ≈ Σ_i w_i f(x_i) with any number n of nodes, and the properties of these nodes.

    Two rules are equal if all their fields are. Build a rule once and keep it: a new function makes programs
    compile again.

    Attributes:
        name: name of the rule in messages and files.
        unit: n ↦ n increasing nodes in [0, 1] and their weights; None for given nodes, which do not follow a rule.
        fewest: smallest n.
        is_periodic: whether the last node is a neighbour of the first, so that functions live on a circle.
        vanishes_at_ends: whether functions are 0 at both ends, and the ends are not nodes.
        has_end_nodes: whether both ends are nodes.
        has_equal_weights: whether nodes are equally spaced by 1/n and weigh 1/n each, which an FFT assumes.
        margins: distances from each end to its nearest node, in gaps; None if the nodes are not equally spaced.

    Example:
        Simpson's rule, for an odd number of nodes:

        >>> import numpy as np
        >>> from jaxop import domains
        >>> def simpson(n):
        ...     weights = np.where(np.arange(n) % 2, 4.0, 2.0)
        ...     weights[[0, -1]] = 1.0
        ...     return np.linspace(0.0, 1.0, n), weights / weights.sum()
        >>> rule = domains.Rule("simpson", simpson, fewest=3, has_end_nodes=True, margins=(0.0, 0.0))
        >>> line = domains.interval(5, upper=2.0, rule=rule)
        >>> print(line.integrate(line.points**3).round(4))
        [4.]
    """

    name: str
    unit: Callable[[int], NodesAndWeights] | None
    fewest: int = 1
    is_periodic: bool = False
    vanishes_at_ends: bool = False
    has_end_nodes: bool = False
    has_equal_weights: bool = False
    margins: tuple[float, float] | None = None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):  # what `Axis.rule` was
            warnings.warn("a rule is an object; compare its name, rule.name.", DeprecationWarning, stacklevel=2)
            return self.name == other
        return self is other or (isinstance(other, Rule) and vars(self) == vars(other))

    @property
    def is_given(self) -> bool:
        """Whether the nodes were given instead of made by a rule."""
        return self.unit is None

    def on(self, n: int, lower: float, upper: float) -> NodesAndWeights:
        """Returns n nodes and weights on (lower, upper) in float64.

        Raises:
            TypeError: if ``n`` is not an integer or an end is not a number.
            ValueError: if ``n`` is too small, ``lower`` is not below ``upper``, the nodes were given, or the rule of a
                user does not return a quadrature on [0, 1].
        """
        if self.unit is None:
            raise ValueError("given nodes do not follow a rule on an interval; call from_samples with the new nodes.")
        n, lower, upper = as_integer(n, "n"), as_number(lower, "lower"), as_number(upper, "upper")
        if n < self.fewest:
            raise ValueError(f"rule={self.name!r} needs n of at least {self.fewest} nodes along an axis, got {n}.")
        if not (np.isfinite(lower) and np.isfinite(upper) and lower < upper):
            raise ValueError(f"lower and upper must be finite with lower < upper, got lower={lower}, upper={upper}.")
        nodes, weights = (np.asarray(part, np.float64) for part in self.unit(n))
        if nodes.shape != (n,) or weights.shape != (n,):
            raise ValueError(
                f"rule={self.name!r} must return {n} nodes and {n} weights, got shapes {nodes.shape} and "
                f"{weights.shape}."
            )
        sound = (np.diff(nodes) > 0).all() and nodes[0] >= 0 and nodes[-1] <= 1
        if not sound or not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError(
                f"rule={self.name!r} must return increasing nodes in [0, 1] and positive weights, got {nodes} and "
                f"{weights}."
            )
        length = upper - lower
        return lower + length * nodes, length * weights


def _trapezoid(n: int) -> NodesAndWeights:
    weights = np.full(n, 1.0 / (n - 1))
    weights[[0, -1]] *= 0.5
    return np.linspace(0.0, 1.0, n), weights


def _midpoint(n: int) -> NodesAndWeights:
    return (np.arange(n) + 0.5) / n, np.full(n, 1.0 / n)


def _periodic(n: int) -> NodesAndWeights:
    return np.arange(n) / n, np.full(n, 1.0 / n)


def _gauss_legendre(n: int) -> NodesAndWeights:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1.0) / 2.0, weights / 2.0


def _interior(n: int) -> NodesAndWeights:
    return np.arange(1, n + 1) / (n + 1), np.full(n, 1.0 / (n + 1))


TRAPEZOID = Rule("trapezoid", _trapezoid, fewest=2, has_end_nodes=True, margins=(0.0, 0.0))
MIDPOINT = Rule("midpoint", _midpoint, has_equal_weights=True, margins=(0.5, 0.5))
PERIODIC = Rule("periodic", _periodic, is_periodic=True, has_equal_weights=True, margins=(0.0, 1.0))
GAUSS_LEGENDRE = Rule("gauss-legendre", _gauss_legendre)
INTERIOR = Rule("interior", _interior, vanishes_at_ends=True, margins=(1.0, 1.0))
GIVEN = Rule("samples", None, has_end_nodes=True)
"""The rule of nodes that were given."""

_BY_NAME = {rule.name: rule for rule in (TRAPEZOID, MIDPOINT, PERIODIC, GAUSS_LEGENDRE, INTERIOR)}

RULES = tuple(_BY_NAME)
"""Names accepted by `interval` and `box`."""

EQUAL_WEIGHT_RULES = tuple(rule.name for rule in _BY_NAME.values() if rule.has_equal_weights)
"""Rules whose nodes are spaced by (upper − lower)/n and share one weight, as an FFT assumes."""


def as_rule(rule: str | Rule) -> Rule:
    """Returns the rule of a name; returns a `Rule` unchanged.

    Raises:
        ValueError: if the name is unknown.
    """
    if isinstance(rule, Rule):
        return rule
    check_name(rule, "rule", RULES)
    return _BY_NAME[rule]


def is_named(rule: Rule) -> bool:
    """Returns whether the rule has a name in files; the rule of a user has not."""
    return _BY_NAME.get(rule.name) == rule
