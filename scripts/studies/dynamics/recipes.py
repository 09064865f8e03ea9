"""How a step is learnt, and what becomes of it over a thousand steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxop import data, dynamics
from studies.dynamics import operators
from studies.dynamics.errors import cells
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

UNROLL = 4
"""Steps along own predictions of the recipes that have any."""

CURRICULUM = ((0, 1), (33, 2), (67, 4))
"""Percentages of the training from which on so many steps count."""

BANDS = ((1, 4), (5, 12), (13, 39))
"""First and last wavenumber of bands of the Kuramoto–Sivashinsky equation."""


def recipes(minutes: float, setting: Setting) -> None:
    """Prints errors, largest values and spectra of steppers that were trained in different ways."""
    (name,) = setting.chosen(("fno",))
    train, tests = setting.load("ks", setting.long_steps)
    test = next(iter(tests.values()))
    truth, grid = operators.embedded(name, test), test.domain
    contenders, measured = _contenders(name, train, setting.noise)

    def curriculum(known: dict[str, int]) -> int:
        """A third of the steps each at the speed of 1, 2 and 4 steps."""
        return max(1, round(3 / sum(1 / known[other] for other in ("delta", "unroll 2", f"unroll {UNROLL}"))))

    known = long_run(None, test, setting.long_steps)
    bands = [f"waves {first}–{last}" for first, last in _bands(truth)]
    near = min(10, setting.steps)
    titles = ("nRMSE after 1 step", f"{near} steps", f"mean over {setting.steps} steps", "correlated until")
    print_titles(setting, *titles, "finite steps", f"largest in {setting.long_steps} steps", *bands)
    print_plain("truth", "", "", "", "", "", f"{known.largest:.3g}", *("1" for _ in bands))
    is_first = True
    rules = {next(n for n in contenders if n.startswith("curriculum")): curriculum}
    for label, found in trained(contenders, setting, minutes, task="recipes", steps=rules, measured=measured):
        errors = [dynamics.evaluate(one.stepper, truth, steps=setting.steps) for one in found]
        if is_first:
            print_plain("persistence", *cells(errors[:1], near, "persistence"), *("" for _ in range(2 + len(bands))))
            is_first = False
        runs = [long_run(one.stepper, truth, setting.long_steps, grid) for one in found]
        ratios = [[run.ratio(known, band) for band in _bands(truth)] for run in runs]
        print_trained(
            label,
            found,
            *cells(errors, near),
            str(min(run.finite for run in runs)),
            spread([run.largest for run in runs]),
            *(spread(column) for column in np.array(ratios).T),
        )


def _contenders(name: str, train: data.Trajectories, noise: float) -> tuple[dict[str, Contender], dict[str, Contender]]:
    """Returns the recipes, and unrolled steps whose times are needed too."""

    def learnt(output: str = "delta", *, windows: Any = None, **loss: Any) -> Contender:
        return contender(name, train, dynamics.UnrolledLoss(**loss), output=output, **(windows or {}))

    several, noisy = {"steps": UNROLL}, f"noise {noise:g}"
    return {
        "state": learnt("state"),
        f"state, {noisy}": learnt("state", noise=noise),
        "delta": learnt(),
        f"delta, {noisy}": learnt(noise=noise),
        f"unroll {UNROLL}": learnt(windows=several),
        f"unroll {UNROLL}, cut": learnt(windows=several, cut=1),
        f"unroll {UNROLL}, {noisy}": learnt(windows=several, noise=noise),
        f"pushforward {UNROLL}": learnt(windows=several, pushforward=True),
        f"curriculum 1, 2, 4, {noisy}": learnt(windows=several | {"curriculum": CURRICULUM}, noise=noise),
    }, {"unroll 2": learnt(windows={"steps": 2})}


def flow(minutes: float, setting: Setting) -> None:
    """Prints how far rollouts of Kolmogorov flow stay finite, bounded and near the spectrum of the truth."""
    names = operators.available(setting.chosen(("fno", "fano")))
    setting = dataclasses.replace(setting, test_samples=min(setting.test_samples, 8))
    train, tests = setting.load("kolmogorov", setting.long_steps)
    truth = next(iter(tests.values()))
    loss = dynamics.UnrolledLoss(noise=setting.noise)
    known = long_run(None, truth, setting.long_steps)
    grid: Any = truth.domain
    half = min(grid.shape) // 4
    third = max(1, half // 3)
    print_titles(
        setting,
        "finite steps",
        f"largest in {setting.long_steps} steps",
        f"waves 1–{third}",
        f"waves {third + 1}–{half}",
        f"largest deviation up to wave {half}",
        "within 10 % up to wave",
    )
    print_plain("truth", "", f"{known.largest:.3g}", "1", "1", "0", str(half))
    for name, found in trained({name: contender(name, train, loss) for name in names}, setting, minutes, task="long"):
        runs = [long_run(one.stepper, operators.embedded(name, truth), setting.long_steps, grid) for one in found]
        waves = np.array([[run.ratio(known, (k, k)) for k in range(1, half + 1)] for run in runs])
        deviation = np.abs(waves - 1)
        kept = [int(np.argmax(row > 0.1)) if (row > 0.1).any() else half for row in deviation]
        print_trained(
            name,
            found,
            str(min(run.finite for run in runs)),
            spread([run.largest for run in runs]),
            spread([run.ratio(known, (1, third)) for run in runs]),
            spread([run.ratio(known, (third + 1, half)) for run in runs]),
            spread(deviation.max(axis=1)),
            spread(kept),
        )


class LongRun(NamedTuple):
    """What a long rollout did.

    Attributes:
        finite: steps before a state of any trajectory is not finite.
        largest: largest absolute value of the finite states.
        energy: mean energy of every shell of wavenumbers over the second half of the steps, (shells,).
    """

    finite: int
    largest: float
    energy: np.ndarray

    def ratio(self, truth: "LongRun", band: tuple[int, int]) -> float:
        """Returns the ratio of the amplitudes in a band to those of the truth, ∞ after a blow-up."""
        part = slice(band[0], band[1] + 1)
        return float(np.sqrt(self.energy[part].sum() / truth.energy[part].sum()))


def long_run(stepper: Callable[..., Any] | None, truth: data.Trajectories, steps: int, grid: Any = None) -> LongRun:
    """Returns what rollouts from the first states of trajectories do, or what the trajectories themselves do.

    Args:
        stepper: None takes the true states.
        truth: the trajectories.
        steps: number of steps.
        grid: on which spectra are computed; None means the domain of the trajectories.
    """
    plane = truth.domain if grid is None else grid
    finite, largest, energies = steps, 0.0, []
    for i in range(len(truth)):
        states = jnp.asarray(truth.frames(i, slice(0, steps + 1)))
        is_finite = np.ones(steps, bool)
        if stepper is not None:
            found = dynamics.rollout(stepper, states[0], steps, domain=truth.domain)
            states, is_finite = found.states, np.asarray(found.is_finite)
        size, energy = _summary(states[-steps:], plane)
        whole = bool(is_finite.all())
        finite = min(finite, steps if whole else int(np.argmin(is_finite)))
        largest = max(largest, float(size))
        energies.append(np.asarray(energy, np.float64) if whole else np.full(energy.shape, np.inf))
    return LongRun(finite, largest, np.mean(energies, axis=0))


@jax.jit
def _summary(states: jax.Array, domain: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the largest finite value, and the mean energy of every shell in the second half."""
    half = states[states.shape[0] // 2 :]
    spectrum = jnp.mean(dynamics.energy_spectrum(half, domain), axis=0).sum(axis=-1)
    return jnp.max(jnp.where(jnp.isfinite(states), jnp.abs(states), 0)), spectrum


def _bands(truth: data.Trajectories) -> list[tuple[int, int]]:
    """Returns the bands of which a grid resolves the first wavenumber."""
    return [
        (first, min(last, truth.states.shape[2] // 4)) for first, last in BANDS if first <= truth.states.shape[2] // 4
    ]
