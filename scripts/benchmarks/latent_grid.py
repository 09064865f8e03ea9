"""Averages on a latent grid and their values at the nodes, against sums over all pairs in plain jnp."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import NOT_RUN, SKIP_ABOVE, compile_gradient, run, scratch, scratch_bytes
from benchmarks.timing import median_seconds_in_turns
from jaxop.attention import grid_averages, read_grid
from jaxop.domains import Grid, box

ABOUT = {
    "latent-grid": About(
        "Averages on a latent grid",
        "Nodes give their values to a regular grid, as averages with a local kernel and quadrature weights, and read "
        "them again; value and gradient. jaxop's functions multiply one factor of the kernel for each axis and keep a "
        "block of nodes at a time. They are compared, in turns, with sums over all pairs in plain jnp without weights. "
        "The ratio divides the first time by the second: below 1 jaxop is faster. Scratch is the temporary memory of "
        "the program. A formula that needs more than 8 GB of scratch is not run.",
    ),
}


def main(
    nodes: tuple[int, ...] = (4096, 65536),
    sides: tuple[int, ...] = (8, 32),
    heads: int = 4,
    depth: int = 16,
    repeats: int = 5,
) -> None:
    """Prints times and memory of value and gradient.

    Args:
        nodes: numbers of nodes.
        sides: nodes of the latent grid along each of two axes.
        heads: heads.
        depth: channels of a head.
        repeats: measured calls.
    """
    print_header("nodes", "latent grid", "forward + gradient", "ratio", "scratch jaxop", "scratch jnp")
    for n in nodes:
        weights = jnp.linspace(0.5, 1.5, n) / n
        operands = jax.random.normal(jax.random.key(0), (4, n, heads, depth))
        for side in sides:
            grid = box((side, side), rule="midpoint")
            gradients = [compile_gradient(function, *operands) for function in functions(weights, grid, heads)]
            calls = {"ours": run(gradients[0], *operands)}
            if scratch_bytes(gradients[1]) <= SKIP_ABOVE:
                calls["theirs"] = run(gradients[1], *operands)
            medians = median_seconds_in_turns(calls, repeats)
            ratio = f"{medians['ours'] / medians['theirs']:.2f}" if "theirs" in medians else NOT_RUN
            cells = f"{side}²", f"{1e3 * medians['ours']:.0f} ms", ratio
            print_row(f"{n:,}", *cells, *map(scratch, gradients))


def functions(weights: jax.Array, grid: Grid, heads: int) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Returns the average with weights, and the formula without, as functions of queries, keys and values.

    The nodes are made of the keys, so that the programs cannot compute ahead what depends on them.
    """

    def on_grid(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        del query
        radius, points = jnp.ones(heads), places(key)
        options = {"radius": radius, "background": jnp.zeros_like(value[0]), "share": 1e-6 * radius}
        return read_grid(grid_averages(points, value, weights, grid, **options), grid, points, radius=radius)

    def over_pairs(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        del query
        points = places(key)
        cells = jnp.asarray([(axis.ends[1] - axis.ends[0]) / axis.size for axis in grid.axes])
        squares = jnp.sum(((points[:, None] - grid.points[None]) / cells) ** 2, axis=-1)
        kernel = jnp.exp(-squares / 2)
        z = jnp.einsum("ng,nhc->ghc", kernel, value) / jnp.sum(kernel, axis=0)[:, None, None]
        return jnp.einsum("ng,ghc->nhc", kernel / jnp.sum(kernel, axis=1)[:, None], z)

    return on_grid, over_pairs


def places(key: jax.Array) -> jax.Array:
    """Returns points of the unit square that are about uniform for normal keys."""
    return jax.scipy.stats.norm.cdf(key[:, 0, :2])
