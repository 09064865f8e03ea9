"""FANO's attention as the nodes per patch grow at fixed modes, and the whole layer around it."""

import jax
import jax.numpy as jnp
from flax import nnx
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import compile_call, run
from benchmarks.timing import median_seconds_in_turns
from jaxop import nn
from jaxop.attention.patch import spectral_patch_attention
from jaxop.spectral import Band

ABOUT = {
    "patches": About(
        "Attention of FANO as the grid is refined",
        "The Fourier attention of a FANO layer is timed on patches with more and more nodes and the same number of "
        "modes, in turns. Scores and mixing act on Fourier coefficients, so their time should not grow. The whole "
        "layer adds projections between nodes and coefficients, whose time per node should stay.",
    ),
}


def main(sides: tuple[int, ...] = (16, 32, 64, 128), repeats: int = 9) -> None:
    """Prints one row per number of nodes.

    Args:
        sides: nodes along each side of a patch.
        repeats: measured calls.
    """
    title = "nodes per patch (4 × 4 patches, 8 modes, d = 32, 8 heads)"
    calls = {}
    for side in sides:
        band = Band((side, side), (8, 8))
        coefficients = jax.random.normal(jax.random.key(0), (3, 2, band.size, 16, 8, 4))
        weight = jnp.asarray(1 / (16 * side * side), jnp.float32)

        def mixing(q: jax.Array, k: jax.Array, v: jax.Array, w: jax.Array, band: Band = band) -> jax.Array:
            return spectral_patch_attention(q, k, v, band, w)

        def whole(m: nn.FourierPatchAttention, x: jax.Array, w: jax.Array, side: int = side) -> jax.Array:
            return m(x, (side, side), w)

        layer = nn.FourierPatchAttention(32, 8, 8, reference=(side, side), rngs=nnx.Rngs(0))
        tokens = jax.random.normal(jax.random.key(1), (side * side, 1, 16, 32))
        calls[f"mixing {side}"] = run(compile_call(mixing, *coefficients, weight), *coefficients, weight)
        calls[f"whole {side}"] = run(compile_call(whole, layer, tokens, weight), layer, tokens, weight)
    medians = median_seconds_in_turns(calls, repeats)
    print_header(title, "scores and mixing", "whole layer", "per node")
    for side in sides:
        part, total = medians[f"mixing {side}"], medians[f"whole {side}"]
        per_node = 1e9 * total / (16 * side**2)
        print_row(f"{side}²", f"{1e3 * part:.2f} ms", f"{1e3 * total:.2f} ms", f"{per_node:.0f} ns")
