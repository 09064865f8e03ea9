"""Sums over channels of functions of a pair of numbers, with n × m instead of n × m × d scratch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._eager import compiled
from jaxop._varying import varying_like

_BLOCK = 4
"""Number of channels that are unrolled; longer vectors are scanned block by block."""


@compiled(static=("term",))
def sum_over_channels(
    term: Callable[..., Array], queries: list[Float[Array, "n d"]], keys: list[Float[Array, "m d"]]
) -> Float[Array, "n m"]:
    """Σ_l term(x_il, …, y_jl, …); the caller defines the derivatives.

    Args:
        term: a function of numbers, one per array, that is 0 where all are 0. Pass the same object at every call,
            because eager calls compile once per object.
        queries: x, ….
        keys: y, ….

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.channels import sum_over_channels
        >>> print(sum_over_channels(jnp.maximum, [jnp.array([[1.0, 5.0]])], [jnp.array([[2.0, 0.0]])]))
        [[7.]]
    """
    depth = queries[0].shape[1]
    block = min(depth, _BLOCK)
    # XLA does not fuse products with the identity; it does not vectorise loops over slices that it has fused
    identity = jnp.eye(block, dtype=queries[0].dtype)

    def settled(x: Array) -> Array:
        return jnp.matmul(identity, x, precision=jax.lax.Precision.HIGHEST)

    def add(total: Array, channels: tuple[list[Array], list[Array]]) -> tuple[Array, None]:
        x, y = ([settled(p) for p in planes] for planes in channels)
        for c in range(block):
            total = total + term(*(p[c][:, None] for p in x), *(p[c][None, :] for p in y))
        return total, None

    def blocks(x: Array) -> Array:
        return jnp.pad(x.T, [(0, -depth % block), (0, 0)]).reshape(-1, block, x.shape[0])

    start = jnp.zeros((queries[0].shape[0], keys[0].shape[0]), queries[0].dtype)
    start = varying_like(start, queries, keys)
    return jax.lax.scan(add, start, ([blocks(x) for x in queries], [blocks(y) for y in keys]))[0]
