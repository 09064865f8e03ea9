"""Compiled programs of JAX, their times and their memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.timing import median_seconds

SKIP_ABOVE = 8 << 30  # bytes of scratch beyond which a baseline is not run on this machine
NOT_RUN = "not run"


def compile_call(function: Callable[..., object], *operands: object) -> jax.stages.Compiled:
    """Returns the program of a function for operands like these."""
    return jax.jit(function).lower(*operands).compile()


def compile_gradient(function: Callable[..., jax.Array], *operands: jax.Array) -> jax.stages.Compiled:
    """Returns the program of the gradient of ⟨f(q, k, v), c⟩ in q, k and v, for operands like (q, k, v, c)."""

    def loss(*operands: jax.Array) -> jax.Array:
        return jnp.vdot(function(*operands[:-1]), operands[-1])

    return compile_call(jax.grad(loss, argnums=(0, 1, 2)), *operands)


def run(program: Callable[..., object], *operands: object) -> Callable[[], object]:
    """Returns a call of a program on operands, which waits for the results."""
    return lambda: jax.block_until_ready(program(*operands))


def seconds_of_program(program: Callable[..., object], *operands: object, repeats: int) -> float:
    """Median wall time of a program, see `timing.median_seconds`."""
    return median_seconds(run(program, *operands), repeats)


def scratch_bytes(program: jax.stages.Compiled) -> int:
    """Temporary memory of a program, besides its arguments and results."""
    analysis = program.memory_analysis()
    if analysis is None:
        raise NotImplementedError("this device does not say how much memory a program takes; run on a CPU or GPU.")
    return analysis.temp_size_in_bytes


def scratch(program: jax.stages.Compiled, digits: int = 0) -> str:
    """`scratch_bytes` as the cell of a table."""
    return f"{scratch_bytes(program) / 2**20:,.{digits}f} MB"
