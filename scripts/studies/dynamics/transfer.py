"""Trained at some steps on one grid, evaluated at other steps and on other grids."""

import warnings
from typing import Any

import numpy as np

from jaxop import data, dynamics
from studies.dynamics import operators
from studies.dynamics.setting import (
    Setting,
    contender,
    print_plain,
    print_titles,
    print_trained,
    spread,
    trained,
)

FINEST = 0.05
"""Time between recorded states."""

STRIDES = (1, 2, 4)
"""Recorded steps that a stepper with a drawn Δt is trained on; one with a fixed Δt has the second of them."""

TESTED = (1, 2, 3, 4, 8)
"""Recorded steps that are tested: 3 is between those of the training, 8 is longer."""

STEPS = 24
"""Recorded steps until the errors of the table are taken."""


def transfer(minutes: float, setting: Setting) -> None:
    """Prints errors at one time of steppers that make other steps, and of steppers on other grids."""
    nodes = setting.nodes or 160
    grids = (str(nodes // 2), str(2 * nodes))
    # the same time of warm-up as with steps of 0.1
    train, tests = setting.load("ks", STEPS, dt=FINEST, reference=2 * nodes, grids=grids, times=101, warmup=1000)
    loss = dynamics.UnrolledLoss(noise=setting.noise)
    own, *others = tests.values()
    fixed = train.between(None, None, STRIDES[1])
    shapes = tuple(one.domain for one in others)
    contenders, names = {}, {}
    for name in operators.available(setting.chosen(("fno", "tno, torus", "fano"))):
        further = () if name.endswith(operators.TORUS) else shapes
        contenders[f"{name}, one Δt"] = contender(name, fixed, loss, others=further)
        contenders[f"{name}, drawn Δt"] = contender(name, train, loss, others=further, strides=STRIDES)
        names |= {f"{name}, one Δt": name, f"{name}, drawn Δt": name}
    columns = {f"Δt = {FINEST * stride:g}": own.between(None, None, stride) for stride in TESTED}
    grid_columns = {
        f"{grid} nodes": one.between(None, None, STRIDES[1]) for grid, one in zip(grids, others, strict=True)
    }
    print_titles(setting, *columns, *grid_columns)
    is_first = True
    for label, found in trained(contenders, setting, minutes, task="transfer"):
        sets = {**columns, **grid_columns}
        errors = [
            [error(one.stepper, operators.embedded(names[label], test)) for test in sets.values()] for one in found
        ]
        if is_first:
            print_plain("persistence", *(f"{persistence:.3g}" for _, persistence in errors[0]))
            is_first = False
        print_trained(label, found, *(spread([row[k][0] for row in errors]) for k in range(len(sets))))


def error(stepper: Any, test: data.Trajectories) -> tuple[float, float]:
    """Returns the mean nRMSE at the last time of a rollout, and that of persistence."""
    with warnings.catch_warnings():  # that a stepper was not trained at this step is the point of the table
        warnings.simplefilter("ignore", UserWarning)
        found = dynamics.evaluate(stepper, test)
    return float(found.mean("nrmse")[-1]), float(np.asarray(found.mean("nrmse", "persistence"))[-1])
