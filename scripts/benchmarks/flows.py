"""Ten steps of the accelerated linear flow, d = 32, as the number of particles grows."""

import jax
import jax.numpy as jnp
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import compile_call, run, scratch
from benchmarks.timing import median_seconds_in_turns
from jaxop import flows

ABOUT = {
    "flows": About(
        "The accelerated linear flow as the particles grow in number",
        "Ten steps of the accelerated linear flow with 32 channels are measured for growing numbers of particles, in "
        "turns. The flow forms moments instead of pairs, so the time per particle and step should stay. Scratch is the "
        "temporary memory of the ten steps.",
    ),
}


def main(particles: tuple[int, ...] = (10_000, 100_000, 1_000_000), repeats: int = 3) -> None:
    """Prints one row per number of particles.

    Args:
        particles: numbers of particles.
        repeats: measured calls.
    """
    system = flows.accelerated_linear_flow(bilinear=jnp.eye(32), hessian=-jnp.eye(32))
    method, schedule = flows.KickDampDrift(), flows.Damping(logarithmic=3.0)

    def ten(state: flows.State) -> flows.State:
        def advance(state: flows.State, _: None) -> tuple[flows.State, None]:
            return flows.step(method, system, state, schedule, 0.01), None

        return jax.lax.scan(advance, state, length=10)[0]

    states = {n: flows.start(method, jax.random.normal(jax.random.key(0), (n, 32))) for n in particles}
    programs = {n: compile_call(ten, state) for n, state in states.items()}
    medians = median_seconds_in_turns({str(n): run(programs[n], states[n]) for n in particles}, repeats)
    print_header("particles, d = 32", "ten steps", "per particle and step", "scratch")
    for n in particles:
        seconds = medians[str(n)]
        print_row(f"{n:,}", f"{seconds:.2f} s", f"{1e9 * seconds / n / 10:.0f} ns", scratch(programs[n]))
