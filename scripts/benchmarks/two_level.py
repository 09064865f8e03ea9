"""A layer of two-level Schwarz attention on square grids, value and gradient, against chunked global attention."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import NOT_RUN, compile_call, scratch, seconds_of_program
from jaxop import domains, nn, schwarz, testing

ABOUT = {
    "two-level": About(
        "Layers of two-level Schwarz attention against global attention",
        "The value and the gradient of a layer of attention on a square grid, 64 channels and 4 heads. Schwarz "
        "attention has 16 × 16 nodes to a core, and the number of subdomains grows with the grid. The ratio divides "
        "the time of chunked global attention by that of Schwarz attention. The slope near 1 says that the cost is "
        "linear in the nodes. Global attention on more than 16 384 nodes is called once.",
    ),
}

WIDTH, HEADS, CORE = 64, 4, 16


def main(sides: tuple[int, ...] = (64, 128, 256, 512), repeats: int = 3, global_nodes: int = 65536) -> None:
    """Prints one row per grid and the slope of the times.

    Args:
        sides: nodes along each side of the grids.
        repeats: measured calls.
        global_nodes: largest grid of global attention, a minute there; 262144 for all of them, half an hour.
    """
    print_header("nodes", "Schwarz attention", "per node", "scratch", "global attention, chunked", "ratio")
    times: dict[int, float] = {}
    for side in sides:
        grid, n = domains.box((side, side), rule="midpoint"), side**2
        cut = schwarz.decompose(grid, side // CORE, CORE // 4, partition="ramp", coarse="partition")
        values = jax.random.normal(jax.random.key(0), (1, n, WIDTH))
        local = nn.SchwarzAttentionConfig().make(WIDTH, HEADS, rngs=nnx.Rngs(0))
        program = compile_call(slope, local, values, cut)
        times[n] = seconds_of_program(program, local, values, cut, repeats=repeats)
        cells = [NOT_RUN, ""]
        if n <= global_nodes:
            everywhere = nn.IntegralAttention(WIDTH, HEADS, implementation="chunked", rngs=nnx.Rngs(0))
            arguments = everywhere, values, grid.weights
            count = repeats if n <= 16384 else 1
            other = seconds_of_program(compile_call(slope, *arguments), *arguments, repeats=count)
            cells = [f"{other:.2f} s", f"{other / times[n]:.1f}×"]
        print_row(f"{n:,}", f"{times[n]:.2f} s", f"{1e6 * times[n] / n:.1f} µs", scratch(program), *cells)
    print(f"\nslope of log time over log n: {-testing.observed_order(list(times), list(times.values())):.2f}")


def slope(layer: Callable[..., jax.Array], values: jax.Array, measure: schwarz.Decomposition | jax.Array) -> jax.Array:
    """The gradient of the energy of a layer's output with respect to its input."""
    return jax.grad(lambda u: jnp.sum(layer(u, measure) ** 2))(values)
