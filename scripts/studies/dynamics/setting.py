"""What the tables of the study of dynamics share: options, equations, and training for equal times."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxop import data, domains, dynamics, training
from jaxop._validation import check_name
from jaxop.experiments.comparison import affordable_steps, check_options, new_run, run_settings, train_once
from jaxop.experiments.evolutions import BurgersData, KolmogorovData, KuramotoSivashinskyData
from jaxop.experiments.experiment import default_cache
from jaxop.experiments.settings import parameters
from studies.dynamics import operators
from studies.table import print_header, print_row

EQUATIONS: dict[str, type] = {"ks": KuramotoSivashinskyData, "burgers": BurgersData, "kolmogorov": KolmogorovData}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Options of all tables; a table ignores those that it varies itself.

    Attributes:
        minutes: training time of each stepper; None means that of the table.
        operators: names of operators; None means those of the table.
        seeds: of parameters and batches; one training each.
        samples: training trajectories.
        test_samples: test trajectories.
        nodes: nodes along each axis; None means 160 in one dimension and 64 in two.
        steps: steps of a test rollout.
        long_steps: steps of a long rollout.
        batch_size: windows per training step; None means 20, and 4 from 1000 nodes on.
        learning_rate: peak learning rate of all.
        noise: noise on the inputs in training, in standard deviations of the states.
        cache: where solutions are kept.
        run_dir: where the runs are kept.
    """

    minutes: float | None = None
    operators: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 50
    test_samples: int = 30
    nodes: int | None = None
    steps: int = 100
    long_steps: int = 1000
    batch_size: int | None = None
    learning_rate: float = 2e-3
    noise: float = 0.01
    cache: Path = dataclasses.field(default_factory=default_cache)
    run_dir: Path = Path("runs/dynamics")

    def __post_init__(self):
        check_options(self)
        for name in self.operators or ():
            check_name(name, "operators", operators.NAMES)

    def chosen(self, default: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names of the operators."""
        return default if self.operators is None else self.operators

    def load(self, equation: str, steps: int, **fields: Any) -> tuple[data.Trajectories, dict[str, data.Trajectories]]:
        """Returns the training set of an equation and its test sets of so many steps, all on the unit torus.

        Coordinates are inputs of the operators, so a unit of length that suits the equation, such as a circle of length
        60, would decide how well they start.
        """
        settings = EQUATIONS[equation](
            samples=self.samples,
            test_samples=self.test_samples,
            test_times=steps + 1,
            **({} if self.nodes is None else {"nodes": self.nodes}),
            **fields,
        )
        sets = settings.load(self.cache)
        return on_unit_torus(sets.train), {name: on_unit_torus(one) for name, one in sets.test.items()}

    def training(self, windows: data.Windows) -> training.TrainingConfig:
        """Returns the settings of the trainings on windows, whose steps and seed are not yet those of one of them."""
        size = self.batch_size or (20 if windows.trajectories.states.shape[2] < 1000 else 4)
        return training.TrainingConfig(batch_size=size, learning_rate=self.learning_rate)


DEFAULT = Setting()


@dataclasses.dataclass(frozen=True)
class Contender:
    """A stepper of a table.

    Attributes:
        windows: of the training set.
        loss: of the training.
        make: returns the untrained stepper of a seed.
    """

    windows: data.Windows
    loss: dynamics.UnrolledLoss
    make: Callable[[int], nnx.Module]


def contender(
    name: str,
    train: data.Trajectories,
    loss: dynamics.UnrolledLoss,
    *,
    output: str = "delta",
    others: Sequence[operators.AnyDomain] = (),
    **windows: Any,
) -> Contender:
    """Returns the contender of an operator's name, with the statistics of the training set."""
    chosen = operators.embedded(name, train).windows(**windows)
    statistics = chosen.statistics()
    make = functools.partial(operators.stepper, name, chosen, statistics, output=output, others=others)
    return Contender(chosen, loss, make)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained stepper.

    Attributes:
        seed: of the training.
        stepper: the stepper.
        facts: parameters, training steps and seconds, the first cells of its row.
    """

    seed: int
    stepper: Any
    facts: tuple[int, int, float]


def trained(
    contenders: Mapping[str, Contender],
    setting: Setting,
    minutes: float,
    *,
    task: str,
    steps: Mapping[str, Callable[[dict[str, int]], int]] | None = None,
    measured: Mapping[str, Contender] | None = None,
) -> Iterator[tuple[str, list[Trained]]]:
    """Yields the steppers of every contender, one for each seed, trained for the same time.

    Args:
        contenders: by name.
        setting: how often, and where.
        minutes: of training, if the setting has none.
        task: first part of the names of the runs.
        steps: for contenders that the time of their first step says little about, a function from the numbers of steps
            of all others to their own.
        measured: further contenders whose steps are measured, but which are not trained.
    """
    rules = steps or {}
    timed = {name: one for name, one in {**contenders, **(measured or {})}.items() if name not in rules}
    settings = setting.training(next(iter(contenders.values())).windows)
    affordable = affordable_steps(
        {name: (functools.partial(one.make, 0), one.windows) for name, one in timed.items()},
        settings,
        60 * (setting.minutes or minutes),
        {name: one.loss for name, one in timed.items()},
    )
    affordable |= {name: rule(affordable) for name, rule in rules.items()}
    for name, one in contenders.items():
        yield name, [_train(name, one, affordable[name], settings, setting, task, seed) for seed in setting.seeds]


def _train(
    name: str,
    one: Contender,
    steps: int,
    settings: training.TrainingConfig,
    setting: Setting,
    task: str,
    seed: int,
) -> Trained:
    windows = one.windows
    if windows.curriculum is not None:  # its first steps are percentages of the training
        first = {share * steps // 100: leads for share, leads in windows.curriculum}
        windows = data.Windows(windows.trajectories, steps=windows.steps, curriculum=list(first.items()))
    model = one.make(seed)
    count = parameters(model)
    directory = new_run(setting.run_dir, task, name, seed)
    result = train_once(model, windows, run_settings(settings, steps, seed), directory, one.loss)
    return Trained(seed, result.model, (count, steps, result.seconds))


def print_titles(setting: Setting, *titles: str) -> None:
    """Prints the header of a table of trained steppers."""
    print_header(f"{len(setting.seeds)} seeds", "parameters", "steps", "seconds", *titles)


def print_trained(name: str, found: list[Trained], *cells: str) -> None:
    """Prints the row of a contender."""
    count, steps, _ = found[0].facts
    print_row(name, f"{count:,}", steps, f"{np.mean([one.facts[2] for one in found]):.0f}", *cells)


def print_plain(name: str, *cells: str) -> None:
    """Prints a row of what is not trained."""
    print_row(name, "", "", "", *cells)


def spread(values: Any) -> str:
    """Returns "mean ± standard deviation" with three figures, or ∞ if a value is not finite."""
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        return "∞"
    deviation = f" ± {array.std(ddof=1):.2g}" if array.size > 1 else ""
    return f"{array.mean():.3g}{deviation}"


def on_unit_torus(trajectories: data.Trajectories) -> data.Trajectories:
    """Returns states on a periodic grid of side 1."""
    domain: Any = trajectories.domain
    return dataclasses.replace(trajectories, domain=domains.box(domain.shape, upper=1.0, rule="periodic"))
