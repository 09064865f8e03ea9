"""Steppers of equations that move: errors of their rollouts, how they are best trained, and how fast they are.

    python scripts/studies/run.py dynamics ks           # Kuramoto–Sivashinsky, 8 operators: about 55 minutes
    python scripts/studies/run.py dynamics burgers      # Burgers, 8 operators: about 55 minutes
    python scripts/studies/run.py dynamics kolmogorov   # Kolmogorov flow on 64² nodes, 5 operators: about 100 minutes
    python scripts/studies/run.py dynamics recipes      # one step, several, noise, pushforward: about 65 minutes
    python scripts/studies/run.py dynamics transfer     # other steps and grids: about 60 minutes
    python scripts/studies/run.py dynamics speed        # against the solver: about 30 minutes
    python scripts/studies/run.py dynamics momentum     # nodes with a velocity: about 65 minutes
    python scripts/studies/run.py dynamics long         # 1000 steps of Kolmogorov flow: about 75 minutes
    python scripts/studies/run.py dynamics ks --minutes 1 --seeds 0 --operators fno tno

The times are for three seeds on two cores. Solutions are kept, and making those of Kolmogorov flow takes ten minutes
more at first. The settings of the equations are those of APEBench. Its networks take part if the package apebench is
installed.
"""

from collections.abc import Callable
from typing import Literal

import tyro

from studies.dynamics import errors, recipes, speed, transfer
from studies.dynamics.setting import DEFAULT, Setting
from studies.results import About

PACKAGES = ("exponax", "apebench", "pdequinox")
TRAINING = (
    "All steppers are trained for the same time on 50 trajectories of 51 states, by the relative L2 error, with noise "
    "of 1 % of the standard deviation on their inputs unless the table says otherwise; compilation and evaluation are "
    "not counted. Coordinates are scaled to the unit torus; on the torus, they are points of a space of twice the "
    "dimension, without a seam."
)
ERRORS = (
    "The columns are the mean nRMSE of rollouts from the first states of 30 test trajectories, and the time at which "
    "their mean correlation with the truth falls below 0.8. Persistence predicts the first state at all times: no "
    "skill. Networks named apebench have the sizes that APEBench publishes, or of as many parameters as the others, "
    "inside of the same stepper and training."
)
ABOUT = {
    "dynamics-ks": About(
        "Steppers of the Kuramoto–Sivashinsky equation",
        f"Operators of about 32 000 parameters step the Kuramoto–Sivashinsky equation on 160 nodes by 0.1. {TRAINING} "
        f"{ERRORS}",
        packages=PACKAGES,
    ),
    "dynamics-burgers": About(
        "Steppers of the Burgers equation",
        f"Operators of about 32 000 parameters step the Burgers equation on 160 nodes by 0.1. {TRAINING} {ERRORS}",
        packages=PACKAGES,
    ),
    "dynamics-kolmogorov": About(
        "Steppers of Kolmogorov flow",
        f"Operators of about 150 000 parameters step the vorticity of Kolmogorov flow at Reynolds number 100 on 64² "
        f"nodes by 0.1. {TRAINING} {ERRORS}",
        packages=PACKAGES,
    ),
    "dynamics-recipes": About(
        "How a step of the Kuramoto–Sivashinsky equation is best learnt",
        "One operator is trained in several ways for the same time: it gives the next state or its change (delta); the "
        "loss counts one step, or four along its own predictions (unroll), without gradients between them (cut), or of "
        "the last one only (pushforward), or one, two and four in turn (curriculum); with or without noise on the "
        f"inputs. {ERRORS} The last columns are about 1000 steps: the number of them before a state is not finite, "
        "the largest value of any state, and the mean amplitude of waves in the second half relative to the truth.",
        packages=PACKAGES,
    ),
    "dynamics-transfer": About(
        "Steppers of the Kuramoto–Sivashinsky equation at other steps and on other grids",
        f"{TRAINING} Steppers with one Δt see steps of 0.1 and make the same step whatever Δt they are asked for; "
        "those with drawn Δt see steps of 0.05, 0.1 and 0.2 and get Δt as an input. All are trained on 160 nodes. The "
        "columns are the mean nRMSE at time 1.2, by steps of Δt on 160 nodes, and by steps of 0.1 on other grids.",
        packages=PACKAGES,
    ),
    "dynamics-speed": About(
        "Rollouts of the Kuramoto–Sivashinsky equation against its solver at equal errors",
        f"{TRAINING} The data are solutions with eight time steps in each step of 0.1. Every stepper is compared with "
        "the fastest settings of the solver, among grids of 40 to 160 nodes, 1 to 40 time steps and orders 1, 2 and 4, "
        "whose mean nRMSE after time 1 is not above the stepper's. Times are for one trajectory of time 1, in a call "
        "with all test trajectories and in a call of its own: the shortest of 20 calls, in float32.",
        packages=PACKAGES,
    ),
    "dynamics-momentum": About(
        "Momentum blocks in steppers of the Kuramoto–Sivashinsky equation",
        f"Transformer neural operators with 2 and 4 layers, which are ordinary or have a momentum block. {TRAINING} "
        f"{ERRORS}",
        packages=PACKAGES,
    ),
    "dynamics-long": About(
        "A thousand steps of Kolmogorov flow",
        f"Operators of about 150 000 parameters step the vorticity of Kolmogorov flow on 64² nodes by 0.1. {TRAINING} "
        "The columns are about rollouts of 1000 steps from 8 test states: the number of steps before a state is not "
        "finite, the largest value, and amplitudes of waves in the second half relative to the truth, up to half of "
        "the 32 wavenumbers that the grid resolves. A deviation of 0.1 is ten percent.",
        packages=PACKAGES,
    ),
}

Table = Literal["ks", "burgers", "kolmogorov", "recipes", "transfer", "speed", "momentum", "long"]

TABLES: dict[str, Callable[[Setting], None]] = {
    "ks": lambda setting: errors.compare("ks", errors.LINE_OPERATORS, 2.0, setting),
    "burgers": lambda setting: errors.compare("burgers", errors.LINE_OPERATORS, 2.0, setting),
    "kolmogorov": lambda setting: errors.compare("kolmogorov", errors.PLANE_OPERATORS, 6.0, setting),
    "recipes": lambda setting: recipes.recipes(2.0, setting),
    "transfer": lambda setting: transfer.transfer(3.0, setting),
    "speed": lambda setting: speed.speed(4.0, setting),
    "momentum": lambda setting: errors.momentum(2.0, setting),
    "long": lambda setting: recipes.flow(10.0, setting),
}


def main(name: tyro.conf.Positional[Table], setting: Setting = DEFAULT) -> None:
    """Prints the table NAME.

    Args:
        name: the table.
        setting: how much data, how often, how long and where.
    """
    TABLES[name](setting)
