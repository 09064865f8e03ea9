"""Attention between any nodes and a grid, with a Gaussian kernel of their distance that is a product over the axes."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._blocks import map_blocks
from jaxop._eager import compiled
from jaxop._platform import platform
from jaxop._validation import as_float, is_symbolic
from jaxop._varying import varying_like
from jaxop.attention.operands import accumulation_dtype
from jaxop.domains import Grid
from jaxop.domains.measure import relative_weights


def grid_averages(
    points: Float[Array, "n dim"],
    values: Float[Array, "n h c"],
    weights: Float[Array, " n"],
    grid: Grid,
    *,
    radius: Float[Array, " h"],
    background: Float[Array, "h c"],
    share: Float[Array, " h"],
) -> Float[Array, "g h c"]:
    """z_g = (∫ κ_g v dy + ε s) / (∫ κ_g dy + ε) at every node x_g of a grid, per head, with a learned value s.

    κ_g(y) is the Gaussian with mean x_g and standard deviation ``radius`` cells along every axis. It is divided by its
    integral, and dy by the measure of the nodes per volume of the grid's box. Then ∫ κ_g dy ≈ 1 inside the domain if
    it fills the box, whatever the density of the nodes, and 0 far from the domain, where z_g = s. This is attention
    from the nodes of the grid, with one additional key of the value s and the mass ε.

    Args:
        points: y_j, (n, dim). They may lie outside the box, where they count in the measure only.
        values: v(y_j), (n, h, c).
        weights: quadrature weights, (n,), in any unit.
        grid: one grid, not a stack.
        radius: standard deviations, in cells, (h,).
        background: s, (h, c).
        share: ε > 0, (h,), relative to the mass of nodes that fill the box evenly.

    Returns:
        z, (g, h, c), in row-major order, in the dtype of ``values``.

    Raises:
        ValueError: if shapes do not fit.

    Cost: O(n g h c) operations of matrix products, O(n h Σ_a g_a) exponentials for g_a nodes along axis a, and
        O(n h c + g h c) memory; the backward pass recomputes one block of nodes at a time.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import attention, domains
        >>> grid, nodes = domains.interval(4, rule="midpoint"), domains.interval(9)
        >>> options = {"radius": jnp.ones(1), "background": jnp.zeros((1, 1)), "share": jnp.full(1, 0.01)}
        >>> z = attention.grid_averages(nodes.points, jnp.ones((9, 1, 1)), nodes.weights, grid, **options)
        >>> print(*(f"{value:.2f}" for value in z.ravel()))
        0.99 0.99 0.99 0.99
    """
    values, n = as_float(values, "values"), points.shape[0]
    if values.ndim != 3 or values.shape[0] != n or weights.shape != (n,) or points.shape != (n, grid.dim):
        raise ValueError(
            f"points, values and weights must have shapes (n, {grid.dim}), (n, h, c) and (n,), got {points.shape}, "
            f"{values.shape} and {weights.shape}; use jax.vmap for a batch."
        )
    heads, channels = values.shape[1:]
    for name, array, shape in (
        ("radius", radius, (heads,)),
        ("background", background, (heads, channels)),
        ("share", share, (heads,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}.")
    dtype = accumulation_dtype(values, points)
    z = _grid_averages(
        points.astype(dtype),
        values.astype(dtype),
        weights.astype(dtype),
        grid,
        radius=radius.astype(dtype),
        background=background.astype(dtype),
        share=share.astype(dtype),
    )
    return z.astype(values.dtype)


def read_grid(
    values: Float[Array, "g h c"], grid: Grid, points: Float[Array, "k dim"], *, radius: Float[Array, " h"]
) -> Float[Array, "k h c"]:
    """y(x) = Σ_g κ_g(x) z_g / Σ_g κ_g(x), per head, at any point x, with the Gaussians κ_g of `grid_averages`.

    From 0.7 cells on, linear functions are reproduced to 4e-4 of a cell inside the grid. A smaller radius approaches
    the value of the nearest node. Outside the box, the values of the nearest nodes continue.

    Args:
        values: z at the nodes of the grid in row-major order, (g, h, c).
        grid: one grid, not a stack.
        points: x, (k, dim).
        radius: standard deviations, in cells, (h,).

    Returns:
        y, (k, h, c), in the dtype of ``values``. Constants stay constants.

    Raises:
        ValueError: if shapes do not fit.

    Cost: that of `grid_averages` for k nodes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import attention, domains
        >>> grid = domains.interval(10, rule="midpoint")
        >>> points = jnp.array([[0.5], [2.0]])
        >>> y = attention.read_grid(grid.points[:, None], grid, points, radius=jnp.full(1, 0.7))
        >>> print(*(f"{value:.3f}" for value in y.ravel()))
        0.500 0.950
    """
    values = as_float(values, "values")
    if values.ndim != 3 or values.shape[0] != grid.size:
        raise ValueError(
            f"values must have shape (g, h, c) with the g = {grid.size} nodes of the grid, got {values.shape}; use "
            "jax.vmap for a batch."
        )
    if points.ndim != 2 or points.shape[1] != grid.dim or radius.shape != values.shape[1:2]:
        raise ValueError(
            f"points and radius must have shapes (k, {grid.dim}) and ({values.shape[1]},), got {points.shape} and "
            f"{radius.shape}."
        )
    dtype = accumulation_dtype(values, points)
    return _read_grid(values.astype(dtype), grid, points.astype(dtype), radius.astype(dtype)).astype(values.dtype)


@compiled()
def _grid_averages(
    points: Array, values: Array, weights: Array, grid: Grid, *, radius: Array, background: Array, share: Array
) -> Array:
    n, heads, channels = values.shape
    relative = relative_weights(weights)
    total = jnp.sum(relative)
    measure = relative / jnp.where(total > 0, total, 1)
    # per cell, the unit in which the Gaussians have the integral (2π)^(dim/2) r^dim
    unit = grid.size / (math.sqrt(2 * math.pi) * radius) ** grid.dim
    moments = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1) * measure[:, None, None]

    def of_block(rows: tuple[Array, Array]) -> Array:
        points, moments = rows
        first, *others = (jnp.exp(logs) for logs in _logs(points, grid, radius))
        spread = jnp.moveaxis(moments, 1, 0)  # (h, b, c)
        for factor in reversed(others):
            spread = (factor[..., None] * spread[:, :, None]).reshape(heads, points.shape[0], -1)
        return jnp.matmul(jnp.swapaxes(first, 1, 2), spread)

    size = _block_size(n, grid, heads, channels + 1)
    rows = (points, moments)
    if size >= n:
        sums = of_block(rows)
    else:  # nodes of mass 0 fill the last block
        filled = [jnp.pad(a, [(0, -n % size), *[(0, 0)] * (a.ndim - 1)]) for a in rows]
        blocks = tuple(a.reshape(-1, size, *a.shape[1:]) for a in filled)
        zero = jnp.zeros((heads, grid.shape[0], grid.size // grid.shape[0] * (channels + 1)), values.dtype)
        recomputed = jax.checkpoint(of_block)
        zero = varying_like(zero, blocks, radius)
        sums, _ = jax.lax.scan(lambda sums, block: (sums + recomputed(block), None), zero, blocks)
    sums = unit[:, None, None] * sums.reshape(heads, grid.size, channels + 1)
    moment = sums[..., :-1] + (share[:, None] * background)[:, None]
    return jnp.moveaxis(moment / (sums[..., -1:] + share[:, None, None]), 0, 1)


@compiled()
def _read_grid(values: Array, grid: Grid, points: Array, radius: Array) -> Array:
    heads, channels = values.shape[1:]
    table = jnp.moveaxis(values, 1, 0).reshape(heads, grid.shape[0], -1)

    def of_block(points: Array) -> Array:
        first, *others = (jax.nn.softmax(logs, axis=-1) for logs in _logs(points, grid, radius))
        found = jnp.matmul(first, table)
        for factor in others:
            found = found.reshape(heads, points.shape[0], factor.shape[-1], -1)
            found = jnp.sum(factor[..., None] * found, axis=2)
        return jnp.moveaxis(found, 0, 1)

    size = _block_size(points.shape[0], grid, heads, channels)
    return map_blocks(of_block, points, size, recompute=True)


def _logs(points: Float[Array, "b dim"], grid: Grid, radius: Float[Array, " h"]) -> list[Float[Array, "h b g"]]:
    """Returns −((x − x_g) / r)² / 2 along every axis."""
    logs = []
    for i, axis in enumerate(grid.axes):
        lower, upper = axis.ends
        cell = (upper - lower) / axis.size
        distance = (points[:, i, None] - axis.nodes.astype(points.dtype)[None]) / cell
        logs.append(-0.5 * (distance[None] / radius[:, None, None]) ** 2)
    return logs


def _block_size(n: int, grid: Grid, heads: int, channels: int) -> int:
    """Returns the nodes of a block, whose numbers stay in the cache of a CPU; all nodes if their number is unknown."""
    if is_symbolic(n):
        return n
    numbers = 2**16 if platform() == "cpu" else 2**24
    return max(1, min(n, numbers // (grid.size // grid.shape[0] * heads * channels)))
