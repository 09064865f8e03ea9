"""FANO's attention as the nodes per patch grow at fixed modes, and the whole layer around it."""

import jax
import jax.numpy as jnp
from flax import nnx
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import compile_call, seconds_of_program
from jaxop import nn
from jaxop.attention.patch import spectral_patch_attention
from jaxop.spectral import Band

ABOUT = {
    "patches": About(
        "Attention of FANO as the grid is refined",
        "The Fourier attention of a FANO layer is timed on patches with more and more nodes and the same number of "
        "modes. Scores and mixing act on Fourier coefficients, so their time should not grow. The whole layer adds "
        "projections between nodes and coefficients, whose time per node should stay.",
    ),
}


def main(sides: tuple[int, ...] = (16, 32, 64, 128), repeats: int = 9) -> None:
    """Prints one row per number of nodes.

    Args:
        sides: nodes along each side of a patch.
        repeats: measured calls.
    """
    title = "nodes per patch (4 × 4 patches, 8 modes, d = 32, 8 heads)"
    print_header(title, "scores and mixing", "whole layer", "per node")
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
        attend = compile_call(mixing, *coefficients, weight)
        attend_seconds = seconds_of_program(attend, *coefficients, weight, repeats=repeats)
        total_seconds = seconds_of_program(jax.jit(whole), layer, tokens, weight, repeats=repeats)
        per_node = 1e9 * total_seconds / tokens.shape[0] / 16
        print_row(f"{side}²", f"{1e3 * attend_seconds:.2f} ms", f"{1e3 * total_seconds:.2f} ms", f"{per_node:.0f} ns")
