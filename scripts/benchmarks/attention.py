"""`integral_attention` with weights against `jax.nn.dot_product_attention` without."""

import jax
import jax.numpy as jnp
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import (
    NOT_RUN,
    SKIP_ABOVE,
    compile_call,
    compile_gradient,
    run,
    scratch,
    scratch_bytes,
)
from benchmarks.timing import median_seconds_in_turns
from jaxop.attention import integral_attention

ABOUT = {
    "attention": About(
        "Quadrature attention against jax.nn",
        "`integral_attention` with quadrature weights is compared with `jax.nn.dot_product_attention` without "
        "weights, in float32 and in turns. The ratios divide the first time by the second: below 1 the attention with "
        "weights is faster. Scratch is the temporary memory of the program that computes the gradient. A baseline that "
        "needs more than 8 GB of scratch is not run.",
    ),
}


def main(nodes: tuple[int, ...] = (1024, 4096, 16384), depths: tuple[int, ...] = (16, 64), repeats: int = 5) -> None:
    """Prints times of value and gradient with 8 heads, beyond 8192 nodes with one head too.

    Args:
        nodes: numbers of nodes.
        depths: channels of a head.
        repeats: measured calls.
    """
    print_header(
        "n, heads, depth", "forward", "ratio", "forward + gradient", "ratio", "scratch jaxop", "scratch jax.nn"
    )
    for n in nodes:
        for heads in (1, 8) if n > 8192 else (8,):
            for depth in depths:
                row(n, heads, depth, max(2, repeats // 2) if n > 8192 else repeats)


def row(n: int, heads: int, depth: int, repeats: int) -> None:
    """Prints one row."""
    arrays = jax.random.normal(jax.random.key(0), (4, n, heads, depth))
    weights = jnp.linspace(0.5, 1.5, n) / n

    def with_weights(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return integral_attention(q, k, v, weights)

    ours, theirs = with_weights, jax.nn.dot_product_attention
    forward = [compile_call(function, *arrays[:3]) for function in (ours, theirs)]
    gradient = [compile_gradient(function, *arrays) for function in (ours, theirs)]
    is_run = scratch_bytes(gradient[1]) <= SKIP_ABOVE
    calls = {}
    for what, programs, operands in (("forward", forward, arrays[:3]), ("gradient", gradient, arrays)):
        calls[f"{what} ours"] = run(programs[0], *operands)
        if is_run:
            calls[f"{what} theirs"] = run(programs[1], *operands)
    medians = median_seconds_in_turns(calls, repeats)
    cells = []
    for what in ("forward", "gradient"):
        mine = medians[f"{what} ours"]
        cells += [f"{1e3 * mine:.0f} ms", f"{mine / medians[f'{what} theirs']:.2f}" if is_run else NOT_RUN]
    print_row(f"{n}, {heads}, {depth}", *cells, *map(scratch, gradient))
