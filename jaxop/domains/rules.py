"""One-dimensional quadrature rules: nodes and weights of an interval."""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import as_integer, as_number, check_name

RULES = ("trapezoid", "midpoint", "periodic", "gauss-legendre", "interior")
"""Names accepted by `interval` and `box`."""

EQUAL_WEIGHT_RULES = ("midpoint", "periodic")
"""Rules whose nodes are equally spaced by (upper − lower)/n and share one weight: what an FFT assumes."""


def nodes_and_weights(n: int, lower: float, upper: float, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights in float64 of one rule on (lower, upper)."""
    check_name(rule, "rule", RULES)
    n, lower, upper = as_integer(n, "n"), as_number(lower, "lower"), as_number(upper, "upper")
    smallest = 2 if rule == "trapezoid" else 1
    if n < smallest:
        raise ValueError(f"rule={rule!r} needs n of at least {smallest} nodes along an axis, got {n}.")
    if not (np.isfinite(lower) and np.isfinite(upper) and lower < upper):
        raise ValueError(f"lower and upper must be finite with lower < upper, got lower={lower}, upper={upper}.")
    length = upper - lower
    if rule == "trapezoid":
        nodes = np.linspace(0.0, 1.0, n)
        weights = np.full(n, 1.0 / (n - 1))
        weights[[0, -1]] *= 0.5
    elif rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(n)
        nodes, weights = (nodes + 1.0) / 2.0, weights / 2.0
    elif rule == "interior":
        nodes = np.arange(1, n + 1) / (n + 1)
        weights = np.full(n, 1.0 / (n + 1))
    else:
        offset = 0.5 if rule == "midpoint" else 0.0
        nodes = (np.arange(n) + offset) / n
        weights = np.full(n, 1.0 / n)
    return lower + length * nodes, length * weights


def namespace(*arrays: Any) -> ModuleType:
    """NumPy where every array is one of the host, so that nothing is compiled; `jax.numpy` otherwise."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp


def trapezoid_weights(nodes: Float[Array | np.ndarray, "*batch n"]) -> Float[Array | np.ndarray, "*batch n"]:
    """(x_{i+1} − x_{i−1})/2 along the last axis, and half a gap at the ends."""
    xp = namespace(nodes)
    gaps = xp.diff(nodes, axis=-1)
    zero = xp.zeros_like(nodes[..., :1])
    return (xp.concatenate([gaps, zero], axis=-1) + xp.concatenate([zero, gaps], axis=-1)) / 2
