"""Errors of rollouts: operators on one equation, and momentum blocks in one of them."""

import numpy as np

from jaxop import data, dynamics, nn
from jaxop.nn import BLOCKS
from studies.dynamics import operators
from studies.dynamics.setting import (
    Contender,
    Setting,
    contender,
    print_plain,
    print_titles,
    print_trained,
    spread,
    trained,
)

LINE_OPERATORS = (
    "fno",
    "tno",
    "tno, torus",
    "fano",
    "latent",
    "latent, spectral",
    "apebench conv",
    "apebench fno",
)
PLANE_OPERATORS = ("fno", "fano", "latent", "apebench conv", "apebench fno")
LAYERS = (2, 4)
"""Layers of the operators with momentum blocks."""

THRESHOLD = 0.8
"""The correlation below which a rollout has lost the truth."""


def compare(equation: str, default: tuple[str, ...], minutes: float, setting: Setting) -> None:
    """Prints the errors of steppers on one equation."""
    train, tests = setting.load(equation, setting.steps)
    loss = dynamics.UnrolledLoss(noise=setting.noise)
    names = operators.available(setting.chosen(default))
    contend(
        {name: contender(name, train, loss) for name in names}, next(iter(tests.values())), minutes, equation, setting
    )


def momentum(minutes: float, setting: Setting) -> None:
    """Prints the errors of steppers whose nodes have a velocity, on the Kuramoto–Sivashinsky equation."""
    train, tests = setting.load("ks", setting.steps)
    windows, loss = train.windows(), dynamics.UnrolledLoss(noise=setting.noise)
    statistics = windows.statistics()

    def make(block: str, layers: int, seed: int) -> dynamics.Stepper:
        choices = {"layers": layers, "norm": "pre", "momentum": nn.MomentumConfig(block=block)}
        return operators.stepper("tno", windows, statistics, seed, **choices)

    contenders = {
        f"{block}, {layers} layers": Contender(
            windows, loss, lambda seed, block=block, layers=layers: make(block, layers, seed)
        )
        for layers in LAYERS
        for block in BLOCKS
    }
    contend(contenders, next(iter(tests.values())), minutes, "momentum", setting)


def contend(
    contenders: dict[str, Contender], test: data.Trajectories, minutes: float, task: str, setting: Setting
) -> None:
    """Trains all contenders and prints their errors over time."""
    last = setting.steps
    near = min(10, last)
    print_titles(setting, "nRMSE after 1 step", f"{near} steps", f"mean over {last} steps", "correlated until")
    is_first = True
    for name, found in trained(contenders, setting, minutes, task=task):
        there = operators.embedded(name, test)
        errors = [dynamics.evaluate(one.stepper, there) for one in found]
        if is_first:
            print_plain("persistence", *cells(errors[:1], near, "persistence"))
            is_first = False
        print_trained(name, found, *cells(errors, near))


def cells(errors: list[dynamics.RolloutErrors], near: int, model: str | None = None) -> list[str]:
    """Returns the cells of the errors of one stepper for each seed."""
    curves = np.array([one.mean("nrmse", model) for one in errors])
    times = errors[0].times[0].astype(np.float32)
    correlations = [one.mean("correlation", model).astype(np.float32) for one in errors]
    until = [float(dynamics.correlation_time(one, times, threshold=THRESHOLD)) for one in correlations]
    lost = spread(until) if np.isfinite(until).all() else f"> {times[-1]:.3g}"
    return [*(spread(curves[:, step - 1]) for step in (1, near)), spread(curves.mean(axis=1)), lost]
