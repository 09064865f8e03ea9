"""Latent attention and averages on a latent grid, with weights, against the published formulas in plain jnp without."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import NOT_RUN, SKIP_ABOVE, compile_gradient, run, scratch, scratch_bytes
from benchmarks.timing import median_seconds_in_turns
from jaxop.attention import grid_averages, latent_attention, read_grid
from jaxop.domains import Grid, box

ABOUT = {
    "latent": About(
        "Latent attention against the published formulas",
        "Nodes exchange values through latent tokens. The functions with quadrature weights are compared with the "
        "published formulas without weights in plain jnp, in float32 and in turns, value and gradient: FLARE as two "
        "calls of `jax.nn.dot_product_attention`, Transolver as the einsums of its code, averages on a grid and their "
        "values at the nodes as sums over all pairs. The ratio divides the first time by the second: below 1 the "
        "function with weights is faster. Scratch is the temporary memory of the program. A formula that needs more "
        "than 8 GB of scratch is not run.",
    ),
}


def main(
    nodes: tuple[int, ...] = (4096, 65536), heads: int = 4, depth: int = 16, latents: int = 64, repeats: int = 5
) -> None:
    """Prints times and memory of value and gradient.

    Args:
        nodes: numbers of nodes.
        heads: heads.
        depth: channels of a head.
        latents: latent tokens, and nodes of the latent grid; a square number.
        repeats: measured calls.
    """
    print_header("n, function", "forward + gradient", "ratio", "scratch jaxop", "scratch jnp")
    for n in nodes:
        weights = jnp.linspace(0.5, 1.5, n) / n
        for name, (ours, theirs) in functions(weights, latents, heads).items():
            row(f"{n}, {name}", ours, theirs, (n, heads, depth), latents, repeats)


def row(
    name: str,
    ours: Callable[..., jax.Array],
    theirs: Callable[..., jax.Array],
    shape: tuple[int, int, int],
    latents: int,
    repeats: int,
) -> None:
    """Prints one row."""
    random = jax.random.key(0)
    key, value, cotangent = jax.random.normal(random, (3, *shape))
    operands = jax.random.normal(random, (latents, *shape[1:])), key, value, cotangent
    gradients = [compile_gradient(function, *operands) for function in (ours, theirs)]
    calls = {"ours": run(gradients[0], *operands)}
    if scratch_bytes(gradients[1]) <= SKIP_ABOVE:
        calls["theirs"] = run(gradients[1], *operands)
    medians = median_seconds_in_turns(calls, repeats)
    ratio = f"{medians['ours'] / medians['theirs']:.2f}" if "theirs" in medians else NOT_RUN
    print_row(name, f"{1e3 * medians['ours']:.0f} ms", ratio, *map(scratch, gradients))


def functions(
    weights: jax.Array, latents: int, heads: int
) -> dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array]]]:
    """Returns pairs of functions of latents, keys and values: with weights, and the formula without."""
    side = math.isqrt(latents)
    grid = box((side, side), rule="midpoint")

    def flare(latents: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return latent_attention(latents, key, value, weights)

    def slices(latents: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return latent_attention(latents, key, value, weights, encode="slices")

    def on_grid(latents: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        radius, points = radii(heads), places(key)
        options = {"radius": radius, "background": jnp.zeros_like(value[0]), "share": 1e-6 * radius}
        return read_grid(grid_averages(points, value, weights, grid, **options), grid, points, radius=radius)

    return {
        "FLARE": (flare, published_flare),
        "Transolver": (slices, published_transolver),
        "latent grid": (on_grid, functools.partial(sums_over_pairs, grid)),
    }


def published_flare(latents: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """FLARE as two calls of attention, with the scale of `jaxop.attention.latent_attention`."""
    z = jax.nn.dot_product_attention(latents, key, value)
    return jax.nn.dot_product_attention(key, latents, z)


def published_transolver(latents: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Means of slices and their values at the nodes, as in the code of Transolver, without its mix."""
    scores = jnp.einsum("nhd,ghd->nhg", key, latents) / math.sqrt(key.shape[-1])
    shares = jax.nn.softmax(scores, axis=-1)
    z = jnp.einsum("nhg,nhc->ghc", shares, value) / jnp.sum(shares, axis=0).T[:, :, None]
    return jnp.einsum("nhg,ghc->nhc", shares, z)


def sums_over_pairs(grid: Grid, latents: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Gaussian averages on a grid and their values at the points, by matrices of all pairs."""
    points = places(key)
    cells = jnp.asarray([(axis.ends[1] - axis.ends[0]) / axis.size for axis in grid.axes])
    squares = jnp.sum(((points[:, None] - grid.points[None]) / cells) ** 2, axis=-1)
    kernel = jnp.exp(-squares / (2 * radii(value.shape[1])[:, None, None] ** 2))
    z = jnp.einsum("hng,nhc->ghc", kernel, value) / jnp.sum(kernel, axis=1).T[:, :, None]
    return jnp.einsum("hng,ghc->nhc", kernel / jnp.sum(kernel, axis=2, keepdims=True), z)


def places(key: jax.Array) -> jax.Array:
    """Returns points of the unit square, which a program does not know ahead."""
    return jax.lax.stop_gradient(jax.nn.sigmoid(key[:, 0, :2]))


def radii(heads: int) -> jax.Array:
    """Standard deviations of the Gaussians, in cells."""
    return jnp.linspace(1.0, 2.0, heads)
