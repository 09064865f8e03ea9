"""Ten steps of the accelerated linear flow, d = 32, as the number of particles grows."""

import jax
import jax.numpy as jnp
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import compile_call, scratch, seconds_of_program
from jaxop import flows

ABOUT = {
    "flows": About(
        "The accelerated linear flow for a growing number of particles",
        "Ten steps of the accelerated linear flow with 32 channels are measured for growing numbers of particles. The "
        "flow forms moments instead of pairs, so the time per particle and step should stay. Scratch is the temporary "
        "memory of the ten steps.",
    ),
}


def main(particles: tuple[int, ...] = (10_000, 100_000, 1_000_000), repeats: int = 3) -> None:
    """Prints one row per number of particles.

    Args:
        particles: numbers of particles.
        repeats: measured calls.
    """
    print_header("particles, d = 32", "ten steps", "per particle and step", "scratch")
    system = flows.accelerated_linear_flow(bilinear=jnp.eye(32), hessian=-jnp.eye(32))
    method, schedule = flows.KickDampDrift(), flows.Damping(logarithmic=3.0)

    def ten(state: flows.State) -> flows.State:
        def advance(state: flows.State, _: None) -> tuple[flows.State, None]:
            return flows.step(method, system, state, schedule, 0.01), None

        return jax.lax.scan(advance, state, length=10)[0]

    for count in particles:
        state = flows.start(method, jax.random.normal(jax.random.key(0), (count, 32)))
        program = compile_call(ten, state)
        seconds = seconds_of_program(program, state, repeats=repeats)
        print_row(f"{count:,}", f"{seconds:.2f} s", f"{1e9 * seconds / count / 10:.0f} ns", scratch(program))
