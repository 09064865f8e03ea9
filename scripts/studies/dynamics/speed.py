"""Rollouts against the solver that made their data, at equal errors."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxop import data, dynamics
from jaxop._validation import require
from studies.dynamics import operators
from studies.dynamics.setting import (
    EQUATIONS,
    Setting,
    contender,
    print_plain,
    print_titles,
    print_trained,
    spread,
    trained,
)

SUBSTEPS = 8
"""Time steps of the solver in each recorded step of the data, whose errors are then far below those of steppers."""

STEPS = 10
"""Recorded steps until errors are compared, and whose time is measured."""

ORDERS = (1, 2, 4)
LONGEST = (10, 5, 2, 1)
"""Recorded steps in one time step of a fast solver; it may also make several in a recorded step."""

REPEATS = 20


class Solver(NamedTuple):
    """Settings of the solver.

    Attributes:
        nodes: of its grid.
        steps: time steps until the end.
        order: of the exponential Runge–Kutta method.
    """

    nodes: int
    steps: int
    order: int

    def __str__(self) -> str:
        return f"solver, {self.nodes} nodes, {self.steps} steps of order {self.order}"


class Measured(NamedTuple):
    """Mean nRMSE at the end, and milliseconds for one trajectory among all test trajectories, and for one alone."""

    error: float
    together: float
    alone: float

    @property
    def cells(self) -> tuple[str, str, str]:
        """The cells of a row."""
        return f"{self.error:.3g}", f"{self.together:.3g}", f"{self.alone:.3g}"


def speed(minutes: float, setting: Setting) -> None:
    """Prints errors and times of steppers, each above the fastest settings of the solver that are as accurate."""
    exponax = require("exponax", "the solver", extra="dynamics")
    train, tests = setting.load("ks", STEPS, substeps=SUBSTEPS)
    test = next(iter(tests.values()))
    loss = dynamics.UnrolledLoss(noise=setting.noise)
    names = operators.available(setting.chosen(("fno", "tno, torus")))
    print_titles(setting, f"nRMSE after {STEPS} steps", "ms, all together", "ms, one alone", "faster than the solver")
    nodes, end = test.states.shape[2], STEPS * float(test.times[1])
    solvers = {solver: _solve(exponax, solver, test, end) for solver in _solvers(nodes)}
    finest = Solver(nodes, STEPS * SUBSTEPS, 2)
    for name, found in trained({name: contender(name, train, loss) for name in names}, setting, minutes, task="speed"):
        there = operators.embedded(name, test)
        measured = [_stepper(one.stepper, there) for one in found]
        error, together, alone = np.mean(measured, axis=0)
        accurate = [solver for solver, one in solvers.items() if one.error <= error]
        fastest = min(accurate, key=lambda solver: solvers[solver].together) if accurate else None
        rival = _solve(exponax, finest, test, end) if fastest is None else solvers[fastest]
        ratios = f"{rival.together / together:.2g} × together, {rival.alone / alone:.2g} × alone"
        print_trained(name, found, spread([one.error for one in measured]), f"{together:.3g}", f"{alone:.3g}", ratios)
        print_plain(str(fastest or finest), *rival.cells, "1")


def _solvers(nodes: int) -> Iterator[Solver]:
    for fraction in (4, 3, 2, 1):
        for order in ORDERS:
            for count in (*(STEPS // longest for longest in LONGEST), 2 * STEPS, 4 * STEPS):
                yield Solver(nodes // fraction, count, order)


def _solve(exponax: Any, solver: Solver, test: data.Trajectories, end: float) -> Measured:
    """Returns what a solver's settings achieve on the trajectories."""
    equation = EQUATIONS["ks"]()
    step = exponax.stepper.generic.GeneralConvectionStepper(
        1,
        equation.length,
        solver.nodes,
        end / solver.steps,
        linear_coefficients=(0.0, 0.0, -equation.diffusion, 0.0, -equation.hyperdiffusion),
        convection_scale=equation.convection,
        conservative=True,
        order=solver.order,
    )
    truth = data.resample(test, solver.nodes)
    initial = jnp.asarray(np.moveaxis(np.asarray(truth.states)[:, 0], -1, 1))
    run = jax.jit(jax.vmap(exponax.repeat(step, solver.steps)))
    last = jnp.moveaxis(run(initial), 1, -1)
    return Measured(_error(last, truth), _milliseconds(run, initial) / len(initial), _milliseconds(run, initial[:1]))


def _stepper(stepper: Any, test: data.Trajectories) -> Measured:
    """Returns what a stepper achieves on the trajectories."""
    initial = jnp.asarray(np.asarray(test.states)[:, :1])
    run = functools.partial(dynamics.rollout, stepper, steps=STEPS, every=STEPS, domain=test.domain)
    last = run(initial).states[:, -1]
    return Measured(_error(last, test), _milliseconds(run, initial) / len(initial), _milliseconds(run, initial[:1]))


def _error(last: jax.Array, truth: data.Trajectories) -> float:
    """Returns the mean nRMSE of states after the last step, ∞ if one is not finite."""
    known = jnp.asarray(np.asarray(truth.states)[:, -1:])
    grid: Any = truth.domain
    found = dynamics.nrmse(last[:, None].astype(known.dtype), known, grid)
    return float(jnp.mean(found))


def _milliseconds(run: Callable[[jax.Array], Any], initial: jax.Array) -> float:
    """Returns the shortest time of some calls."""
    jax.block_until_ready(run(initial))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run(initial))
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)
