"""One head on 65 536 nodes: value and gradient, time and peak memory of the process so far."""

import jax
import jax.numpy as jnp
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import seconds_of_program
from benchmarks.timing import peak_memory
from jaxop.attention import integral_attention
from jaxop.kernels import FourierIntegral

ABOUT = {
    "large": About(
        "Attention on 65 536 nodes",
        "One head of quadrature attention, alone and with the gradient with respect to queries, keys, values and "
        "weights. Each program is called once after its warm-up. The memory is the peak of the whole process up to "
        "then, so it can only grow from row to row.",
    ),
}


def main(nodes: int = 65536, depth: int = 16) -> None:
    """Prints one row per program.

    Args:
        nodes: number of nodes.
        depth: channels of the head.
    """
    q, k, v = jax.random.normal(jax.random.key(0), (3, nodes, 1, depth))
    weights = jnp.full(nodes, 1 / nodes)

    def energy(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(integral_attention(*arrays) ** 2)

    def energy_with_sinc(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(integral_attention(*arrays, kernel=FourierIntegral(1.0)) ** 2)

    size = f"{nodes:,}".replace(",", " ")
    print_header(f"n = {size}, one head, d = {depth}", "seconds", "peak memory of the process")
    for name, function in (
        ("forward", jax.jit(integral_attention)),
        ("forward + gradient (q, k, v, w)", jax.jit(jax.grad(energy, argnums=(0, 1, 2, 3)))),
        ("forward + gradient, Fourier integral kernel", jax.jit(jax.grad(energy_with_sinc, argnums=(0, 1, 2, 3)))),
    ):
        seconds = seconds_of_program(function, q, k, v, weights, repeats=1)
        print_row(name, f"{seconds:.1f}", peak_memory())
