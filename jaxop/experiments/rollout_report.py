"""Errors of a stepper's rollouts on named sets: a table over lead times on the screen and on disk, and pictures."""

import csv
import dataclasses
import functools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from jaxop import dynamics
from jaxop.data import Trajectories
from jaxop.domains import Domain
from jaxop.domains.domain import as_domain
from jaxop.dynamics import RolloutErrors, Stepper
from jaxop.dynamics.spectra import is_periodic
from jaxop.experiments import plots, time_plots
from jaxop.experiments.report import Reported, draw_all, file_names, middle
from jaxop.experiments.sets import check_sizes, grid_name
from jaxop.experiments.terminal import needs_extra
from jaxop.operators import model_of
from jaxop.operators.constraint import innermost
from jaxop.training.processes import is_first, spans_processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

_NUMBERS = 2**24  # states of all samples of one call, which bounds the memory of an evaluation
_THRESHOLD = 0.8  # of the correlation, below which a forecast is lost
_MODEL = "stepper"
_QUARTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}


@dataclasses.dataclass(frozen=True)
class SetErrors:
    """Errors of the rollouts on one set.

    Attributes:
        name: the name of the set.
        grid: its nodes, see `jaxop.experiments.sets.grid_name`.
        errors: of all rollouts, beside persistence.
        blown_up: for each rollout that does not stay finite, "sample", "step", "time" and "channel".
    """

    name: str
    grid: str
    errors: RolloutErrors
    blown_up: Sequence[Mapping[str, float]]

    @property
    def steps(self) -> int:
        """Number of steps of a rollout."""
        return self.errors.times.shape[1]

    @property
    def leads(self) -> list[int]:
        """The steps of the table: 1, 10, 100, … and the last."""
        return sorted({10**k for k in range(len(str(self.steps)))} & set(range(1, self.steps + 1)) | {self.steps})

    @property
    def middle(self) -> int:
        """The sample whose nRMSE, averaged over time, is the median."""
        return middle(self.errors.curves("nrmse").mean(axis=1))

    def correlation_time(self, model: str) -> float:
        """Returns the first time at which the mean correlation is below 0.8, ∞ if there is none."""
        curve, times = self.errors.mean("correlation", model), self.errors.times.mean(axis=0)
        return float(
            dynamics.correlation_time(curve.astype(np.float32), times.astype(np.float32), threshold=_THRESHOLD)
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the figures of the table; numbers that are not finite become None."""
        last = self.errors.times.mean(axis=0)
        models = {
            model: {
                "nrmse": {str(lead): _number(self.errors.mean("nrmse", model)[lead - 1]) for lead in self.leads},
                "mean_nrmse": _number(self.errors.mean("nrmse", model).mean()),
                "correlation_time": _number(self.correlation_time(model)),
            }
            for model in self.errors.models
            if "nrmse" in self.errors.values[model]
        }
        return {
            "set": self.name,
            "grid": self.grid,
            "samples": len(self.errors.times),
            "steps": self.steps,
            "time": float(last[-1]),
            "models": models,
            "median_sample": self.middle,
            "blown_up": [dict(one) for one in self.blown_up],
        }

    def to_rows(self) -> Iterator[dict[str, Any]]:
        """Yields one row for every model, metric and step: the mean and the quartiles over the samples."""
        times = self.errors.times.mean(axis=0)
        for model in self.errors.models:
            for metric in self.errors.values[model]:
                curves = self.errors.curves(metric, model)
                quartiles = np.quantile(curves, list(_QUARTILES.values()), axis=0, method="nearest")
                columns = {"mean": self.errors.mean(metric, model), **dict(zip(_QUARTILES, quartiles, strict=True))}
                for step, time in enumerate(times):
                    values = {name: float(column[step]) for name, column in columns.items()}
                    about = {"set": self.name, "model": model, "metric": metric, "step": step + 1}
                    yield {**about, "time": float(time), **values}


def check(stepper: Stepper, sets: Mapping[str, Trajectories]) -> None:
    """Raises an error that names the set if the stepper cannot be rolled out on it.

    Args:
        stepper: shapes and dtypes of its variables are enough.
        sets: the test sets.

    Raises:
        ValueError: if channels, parameters or dimensions differ, or trajectories are shorter than the history and one
            step; for the reasons of the operator.
    """
    if not sets:
        raise ValueError("there is nothing to evaluate on; name at least one grid or file.")
    for label, found in sets.items():
        check_set(stepper, label, found)
        if found.steps <= stepper.config.history:
            raise ValueError(
                f"{label} has {found.steps} recorded times, but a rollout needs the history of "
                f"{stepper.config.history} and at least one more; give longer trajectories."
            )


def check_set(stepper: Stepper, label: str, found: Trajectories) -> None:
    """Raises an error that names the set if the stepper cannot take its states; see `check`."""
    config = stepper.config
    sizes = {
        "dimensions": (config.operator.dim, found.dim),
        "channels": (config.channels, found.channels),
        "parameters": (config.parameters, found.parameter_count),
    }
    check_sizes(label, found, sizes, "stepper")
    graphdef, state = nnx.split(stepper)
    states = jax.ShapeDtypeStruct((config.history, *found.states.shape[2:]), np.float32)
    domain = jax.tree.map(lambda leaf: leaf[0], found.domain) if found.domain.is_batched else found.domain

    def step(state: Any, states: jax.Array) -> jax.Array:
        parameters = np.zeros(config.parameters, np.float32) if config.parameters else None
        return nnx.merge(graphdef, state)(states, prepared, parameters=parameters)

    try:
        prepared = config.prepare(domain)
        jax.eval_shape(step, state, states)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise type(error)(f"{label} ({grid_name(found)}): {error}") from error


def write_report(
    run: Reported,
    stepper: Stepper,
    sets: Mapping[str, Trajectories],
    *,
    name: str,
    checkpoint: int | str | None,
    console: "Console",
    animation: str | None = None,
    source: Path | None = None,
) -> list[SetErrors]:
    """Rolls a stepper out on all sets, prints the errors over lead times and saves them, with pictures.

    The figures of the table are saved as ``evaluation/NAME.json``, and the mean and quartiles of every metric at every
    step, in long form, as ``evaluation/NAME.csv``. The pictures under ``figures/`` are errors and correlations against
    time, and for the median sample of every set its states beside the truth and, if the domain permits, its spectrum.
    If a picture cannot be drawn, this is a warning. A rollout that does not stay finite is a warning that names its
    step, time, sample and channel. Every process rolls out all samples, and process 0 prints and saves. If the
    parameters are divided among processes, nothing is evaluated, with a warning.

    Args:
        run: the run of the stepper, or what stands for it.
        stepper: with the parameters of the checkpoint.
        sets: the sets by name.
        name: prefix of all files.
        checkpoint: the step of the parameters, for the record.
        console: destination of the table.
        animation: "gif" or "mp4" also writes a film of the median sample of every set; None does not.
        source: where the model was read; None means the run directory.

    Returns:
        The errors on every set.
    """
    if spans_processes(nnx.state(stepper)):
        if is_first():
            command = f"jaxop evaluate {source or run.directory}"
            console.print(f"warning: rollouts need all parameters in one process; evaluate them there: {command}")
        return []
    label = model_of(innermost(stepper.config.operator)).name
    found: list[SetErrors] = []
    figures: dict[str, Callable[[], Figure]] = {}
    films: dict[str, Callable[[Path], None]] = {}
    for (title, trajectories), file in zip(sets.items(), file_names(sets), strict=True):
        errors = dynamics.evaluate(stepper, trajectories, batch_size=_at_once(trajectories), name=label)
        one = SetErrors(title, grid_name(trajectories), errors, _blown_up(stepper, trajectories, errors))
        found.append(one)
        about = f"{title}: {one.grid}" if title != one.grid else f"{title} nodes"
        for metric in ("nrmse", "correlation"):
            draw = functools.partial(time_plots.plot_rollout_errors, errors, metric=metric, title=about)
            figures[f"{name}-{file}-{metric}"] = draw
        shown = functools.cache(functools.partial(_states, stepper, trajectories, one.middle))
        about = f"{about}, median sample {one.middle}"
        figures[f"{name}-{file}-states"] = functools.partial(_draw_states, shown, title=about)
        if is_periodic(as_domain(trajectories.domain, "domain")) and trajectories.states.shape[2] > 1:
            figures[f"{name}-{file}-spectrum"] = functools.partial(_draw_spectrum, shown, title=about)
        if animation is not None:
            films[f"{name}-{file}.{animation}"] = functools.partial(_film, shown, title=about)
    if not is_first():
        return found
    console.print(error_table(run, label, found))
    for one in found:
        for blown in one.blown_up:
            console.print(f"warning: {one.name}: {_sentence(blown)}", soft_wrap=True)
    _save(run.directory / "evaluation", name, {"run": str(source or run.directory), "step": checkpoint}, found)
    if run.metrics:
        figures["learning-curves"] = functools.partial(
            plots.plot_learning_curves, run.metrics, title=f"{run.directory.name}: learning curves"
        )
    draw_all(run.directory / "figures", figures, console)
    for file, draw in films.items():
        draw(run.directory / "figures" / file)
    console.print(f"table: {run.directory / 'evaluation' / name}.csv and .json", soft_wrap=True)
    console.print(f"pictures: {run.directory / 'figures'}/", soft_wrap=True)
    return found


def error_table(run: Reported, label: str, found: Sequence[SetErrors]) -> "Table":
    """Returns the table of nRMSE over lead times, and of the time until the correlation ρ is lost."""
    with needs_extra("a table of errors"):
        from rich.table import Table
    leads = sorted({lead for one in found for lead in one.leads})
    title = f"{label} · {run.directory.name} · nRMSE after so many steps, means over rollouts"
    table = Table("set", "model", *map(str, leads), f"ρ > {_THRESHOLD} until", "finite", title=title)
    for one in found:
        count = len(one.errors.times)
        for model in one.errors.models:
            if "nrmse" not in one.errors.values[model]:
                continue
            curve = one.errors.mean("nrmse", model)
            numbers = [f"{curve[lead - 1]:.3g}" if lead in one.leads else "–" for lead in leads]
            until = one.correlation_time(model)
            last = one.errors.times.mean(axis=0)[-1]
            time = f"{until:.3g}" if math.isfinite(until) else f"> {last:.3g}"
            finite = f"{count - len(one.blown_up)}/{count}" if model == label else "–"
            name = one.name if one.grid in one.name else f"{one.name} ({one.grid})"
            table.add_row(name, model, *numbers, time, finite)
    return table


def _at_once(trajectories: Trajectories) -> int:
    """Returns the number of rollouts of one call."""
    return max(1, min(16, len(trajectories), _NUMBERS // math.prod(trajectories.states.shape[1:])))


def _blown_up(stepper: Stepper, trajectories: Trajectories, errors: RolloutErrors) -> list[dict[str, float]]:
    """Returns step, time and channel of the first state that is not finite, for every rollout that has one."""
    found = []
    for sample in np.flatnonzero(errors.finite_steps < errors.times.shape[1]).tolist():
        rolled = _rollout(stepper, trajectories, sample, int(errors.finite_steps[sample]) + 1)
        try:
            dynamics.check_finite(rolled)
        except dynamics.BlowUpError as error:
            found.append({"sample": sample, "step": error.step, "time": error.time, "channel": error.channel})
    return found


def _sentence(blown: Mapping[str, float]) -> str:
    return (
        f"the rollout of sample {blown['sample']} is not finite from step {blown['step']} on, at time "
        f"{blown['time']:g}, in channel {blown['channel']}"
    )


def _rollout(stepper: Stepper, trajectories: Trajectories, sample: int, steps: int) -> dynamics.Rollout:
    """Returns the rollout of one trajectory along its recorded times."""
    depth = stepper.config.history
    states, times, parameters, domain = trajectories.trajectory(sample)
    gaps = np.diff(times)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the evaluation has warned of a step without training
        return dynamics.rollout(
            stepper,
            states[:depth],
            steps,
            domain=domain,
            dt=gaps[depth - 1 : depth - 1 + steps],
            offsets=None if depth == 1 else times[depth - 1] - times[: depth - 1],
            parameters=parameters,
        )


@dataclasses.dataclass(frozen=True)
class _Shown:
    """One rollout beside the truth: states (s, n, c) at times (s,)."""

    truth: np.ndarray
    prediction: np.ndarray
    domain: Domain
    times: np.ndarray


def _states(stepper: Stepper, trajectories: Trajectories, sample: int) -> _Shown:
    depth = stepper.config.history
    states, times, _, domain = trajectories.trajectory(sample)
    rolled = _rollout(stepper, trajectories, sample, len(states) - depth)
    return _Shown(states[depth:], np.asarray(rolled.states), domain, times[depth:] - times[depth - 1])


def _draw_states(shown: Callable[[], _Shown], *, title: str) -> "Figure":
    """A space–time diagram of functions of one variable, snapshots of others."""
    found = shown()
    arguments = found.truth, found.prediction, found.domain, found.times
    if found.domain.dim == 1 and found.domain.size > 1 and len(found.times) > 1:
        return time_plots.plot_space_time(*arguments, title=title)
    return time_plots.plot_snapshots(*arguments, title=title)


def _draw_spectrum(shown: Callable[[], _Shown], *, title: str) -> "Figure":
    """The spectra of truth and prediction, averaged over the second half of the time and summed over channels."""
    found = shown()
    half = len(found.times) // 2
    spectra = {
        name: np.asarray(dynamics.energy_spectrum(states[half:], found.domain)).mean(axis=0).sum(axis=-1)
        for name, states in (("truth", found.truth), ("prediction", found.prediction))
    }
    title = f"{title}, t > {found.times[half - 1] if half else 0:.3g}"
    return time_plots.plot_spectra(spectra, dynamics.wavenumbers(found.domain), title=title)


def _film(shown: Callable[[], _Shown], path: Path, *, title: str) -> None:
    found = shown()
    time_plots.save_animation(path, found.truth, found.prediction, found.domain, found.times, title=title)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _save(folder: Path, name: str, about: Mapping[str, str | int | None], found: Sequence[SetErrors]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {**about, "units": "physical", "sets": [one.to_json() for one in found]}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    # names of files may not be Unicode
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = [row for one in found for row in one.to_rows()]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
