"""Errors of a stepper's rollouts over a set of trajectories: one table over time, with simple forecasts beside it."""

import csv
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxop._validation import as_integer, check_size, check_type, closest, float_dtype, jax_dtype, on_device
from jaxop.data import Trajectories
from jaxop.domains import Decomposed, Domain
from jaxop.domains.domain import as_domain
from jaxop.dynamics.conserved import drift, invariants
from jaxop.dynamics.metrics import correlation, h1_error, has_neighbours, nrmse, relative_l2, vrmse
from jaxop.dynamics.rollout import rollout
from jaxop.dynamics.spectra import Bands, band_errors, is_periodic
from jaxop.dynamics.stepper import Stepper, as_constants

_SIMPLE = ("persistence", "climatology", "truth")
_SUMMED = ("nrmse", "mass")
"""Metrics whose channels are summed; the channels of the others are averaged."""


class Row(TypedDict):
    """One number of a `RolloutErrors`."""

    model: str
    sample: int
    step: int
    time: float
    metric: str
    channel: str
    value: float


@dataclasses.dataclass(frozen=True, eq=False)
class RolloutErrors:
    """Metrics of rollouts for every trajectory and time, on the host; `evaluate` computes them.

    Attributes:
        name: name of the model among `models`.
        times: times since the initial state, shape (N, s) for N trajectories and s steps.
        finite_steps: number of steps before the rollout is not finite, s if it stays finite, shape (N,).
        values: arrays by model and metric, shape (N, s), or (N, s, c) for one number per channel.
    """

    name: str
    times: Float[np.ndarray, "samples steps"]
    finite_steps: Int[np.ndarray, " samples"]
    values: Mapping[str, Mapping[str, Float[np.ndarray, "samples steps *channels"]]]

    @property
    def models(self) -> tuple[str, ...]:
        """The model, "persistence", "climatology" if there is one, and "truth", which has invariants only."""
        return tuple(self.values)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the model."""
        return tuple(self.values[self.name])

    def curves(self, metric: str, model: str | None = None) -> Float[np.ndarray, "samples steps"]:
        """Returns one number for every trajectory and step, with the channels joined.

        nRMSE is the sum over channels and mass too, the other metrics of single channels are means.

        Args:
            metric: one of `metrics`.
            model: one of `models`; None takes the model itself.

        Returns:
            Shape (N, s).

        Raises:
            ValueError: if the metric or the model is unknown.
        """
        chosen = self.name if model is None else model
        if chosen not in self.values:
            raise ValueError(f"model={model!r} is unknown: {closest(chosen, self.values)}")
        if metric not in self.values[chosen]:
            raise ValueError(f"metric={metric!r} of {chosen} is unknown: {closest(metric, self.values[chosen])}")
        return _joined(metric, self.values[chosen][metric])

    def mean(self, metric: str, model: str | None = None) -> Float[np.ndarray, " steps"]:
        """Returns the mean over the trajectories at every step; ∞ from the first step at which a rollout is not finite.

        Args:
            metric: see `curves`.
            model: see `curves`.
        """
        return np.asarray(np.mean(self.curves(metric, model), axis=0, dtype=np.float64))

    def to_rows(self) -> Iterator[Row]:
        """Yields one row for every number.

        Steps are counted from 1. The channel is "all" for metrics that join the channels, and for the joined value of
        the others (`curves`), which follows those of channels "0", "1", … if there are several.
        """
        for model, metrics in self.values.items():
            for metric, array in metrics.items():
                parts = {"all": _joined(metric, array)}
                if array.ndim == 3 and array.shape[-1] > 1:
                    parts = {str(c): array[..., c] for c in range(array.shape[-1])} | parts
                for channel, part in parts.items():
                    for (sample, step), value in np.ndenumerate(part):
                        yield {
                            "model": model,
                            "sample": sample,
                            "step": step + 1,
                            "time": float(self.times[sample, step]),
                            "metric": metric,
                            "channel": channel,
                            "value": float(value),
                        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the rows as a CSV file in long form, with the columns of `to_rows`; ∞ is ``inf``.

        Args:
            path: the file, whose folder is made if it does not exist.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(Row.__annotations__))
            writer.writeheader()
            writer.writerows(self.to_rows())


def evaluate(
    stepper: Callable[..., Array],
    trajectories: Trajectories,
    *,
    steps: int | None = None,
    batch_size: int = 16,
    climatology: Float[np.ndarray | Array, "*times n c"] | None = None,
    bands: Bands | None = None,
    enstrophy_of: str | None = None,
    history: int | None = None,
    name: str = "model",
) -> RolloutErrors:
    """Metrics at every time of rollouts from the first states of trajectories, beside those of persistence.

    A rollout starts from the first H recorded states, where H is the history of the stepper, and visits the recorded
    times that follow. The metrics are `nrmse`, `relative_l2`, `vrmse` and `correlation`; `h1_error` on domains with
    neighbours; `band_errors` on periodic grids of equal weights, named by the shells, such as
    ``"amplitude_0_4"`` for the statistics and ``"band_0_4"`` for the pointwise error; and `invariants` and
    their `drift` since the last state of the history, also of the true states.

    Persistence predicts the last state of the history at all times. A model without skill is no better.

    A stepper of longer steps than the recorded ones is evaluated on every so many of the times:
    ``trajectories.between(None, None, stride)``.

    If a state of a rollout is not finite, all errors of this trajectory are ∞ from that time on, its correlation is 0
    and its invariants are ∞. Means over trajectories are then ∞ and not NaN.

    Args:
        stepper: a `Stepper`, which runs in evaluation mode and is left as it was, or any callable that `rollout` takes.
        trajectories: the true states.
        steps: number of steps; None takes all recorded times.
        batch_size: trajectories per call. The last batch is filled up with copies, so that one program serves the set.
        climatology: mean state to compare with, shape (n, c), or (s, n, c) for one that changes over the s
            predicted times. None leaves it out. The means of `jaxop.data.climatology` begin with the first recorded
            time: for a history of H they are ``means[np.arange(H, H + s) % period]``.
        bands: see `band_errors`.
        enstrophy_of: "vorticity" or "velocity" if the states are one, see `enstrophy`. None computes no enstrophy.
        history: H, the number of states that the stepper takes. None means that of a `Stepper`, and 1 for others.
        name: name of the model in the table.

    Returns:
        `RolloutErrors`.

    Raises:
        TypeError: if ``trajectories`` are not `jaxop.data.Trajectories`.
        ValueError: if the trajectories are shorter than the history and ``steps``, ``batch_size`` is not positive,
            the name is that of another row, or the climatology does not fit.

    Cost: one rollout per trajectory. The states of a batch are in memory, b s n c numbers each of prediction and truth.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains, dynamics
        >>> domain, times = domains.interval(16, rule="periodic"), np.arange(5.0)
        >>> states = np.exp(-times)[None, :, None, None] * np.ones((3, 1, 16, 1), np.float32)
        >>> truth = data.Trajectories(states.astype(np.float32), domain, times)
        >>> def slower(states, domain, *, dt=None, offsets=None, parameters=None):
        ...     return 0.5 * states[..., -1, :, :]
        >>> errors = dynamics.evaluate(slower, truth)
        >>> errors.mean("nrmse").round(3), errors.mean("nrmse", "persistence").round(3)
        (array([0.359, 0.847, 1.511, 2.412]), array([ 1.718,  6.389, 19.086, 53.598]))
    """
    check_type(trajectories, "trajectories", Trajectories, "data.Trajectories")
    check_size(batch_size, "batch_size")
    if name in _SIMPLE:
        raise ValueError(f"name must differ from the other rows of the table, {', '.join(_SIMPLE)}, got {name!r}.")
    depth = _history(stepper, history)
    recorded = trajectories.steps - depth
    count = recorded if steps is None else as_integer(steps, "steps")
    if not 1 <= count <= recorded:
        raise ValueError(
            f"steps must lie between 1 and {recorded}, the number of recorded times after a history of {depth}, got "
            f"{count}; use longer trajectories or fewer steps."
        )
    known = trajectories.between(0, depth + count)
    mean_state = _climatology(climatology, known, count)
    chosen = None if bands is None else tuple((as_integer(a, "bands"), as_integer(b, "bands")) for a, b in bands)
    tables, finite, size = [], [], min(batch_size, len(known))
    for start in range(0, len(known), size):
        batch = _read(known, np.minimum(np.arange(start, start + size), len(known) - 1))
        found = rollout(
            stepper,
            batch.states[:, :depth],
            count,
            domain=batch.domain,
            dt=batch.gaps[:, depth - 1 :],
            offsets=None if depth == 1 else jnp.cumsum(batch.gaps[:, : depth - 1][:, ::-1], axis=1)[:, ::-1],
            parameters=batch.parameters,
        )
        domain = as_domain(batch.domain, "domain")
        table = _measure(
            found.states, found.is_finite, batch.states[:, depth - 1 :], domain, mean_state, chosen, enstrophy_of
        )
        kept = min(size, len(known) - start)
        tables.append(jax.tree.map(lambda array, kept=kept: np.asarray(array)[:kept], table))
        finite.append(np.asarray(found.is_finite)[:kept])
    values = jax.tree.map(lambda *arrays: np.concatenate(arrays), *tables)
    times = np.broadcast_to(np.asarray(known.times, np.float64), (len(known), depth + count))
    return RolloutErrors(
        name,
        times[:, depth:] - times[:, depth - 1 : depth],
        np.logical_and.accumulate(np.concatenate(finite), axis=1).sum(axis=1),
        {name: values["model"]} | {row: values[row] for row in _SIMPLE if row in values},
    )


@dataclasses.dataclass(frozen=True)
class _Truth:
    """Some trajectories in JAX arrays: states (b, T, n, c), time steps (b, T − 1), parameters and domain."""

    states: Array
    gaps: Array
    parameters: Array | None
    domain: Domain | Decomposed


def _read(trajectories: Trajectories, index: Int[np.ndarray, " b"]) -> _Truth:
    dtype = jax_dtype(np.dtype(trajectories.states.dtype))
    times = np.broadcast_to(np.asarray(trajectories.times, np.float64), (len(trajectories), trajectories.steps))
    parameters = trajectories.parameters
    return _Truth(
        on_device(np.stack([trajectories.frames(i, slice(None)) for i in index]), dtype),
        on_device(np.diff(times[index], axis=1), float_dtype()),
        None if parameters is None else on_device(np.asarray(parameters)[index], float_dtype()),
        trajectories.domain_of(index),
    )


@functools.partial(jax.jit, static_argnums=(5, 6))
def _measure(
    prediction: Float[Array, "b s n c"],
    is_finite: Bool[Array, "b s"],
    states: Float[Array, "b t n c"],
    domain: Domain,
    climatology: Float[Array, "s n c"] | None,
    bands: tuple[tuple[int, int], ...] | None,
    enstrophy_of: str | None,
) -> dict[str, dict[str, Array]]:
    """Returns the metrics of a batch by model; ``states`` are the true ones from the initial state on."""
    states = states.astype(prediction.dtype)
    initial, truth = states[:, 0], states[:, 1:]
    alive = jnp.cumprod(is_finite.astype(jnp.int32), axis=1)[:, :, None, None] > 0
    forecasts = {"model": jnp.where(alive, prediction, jnp.nan), "persistence": states[:, :1]}
    if climatology is not None:
        forecasts["climatology"] = climatology.astype(prediction.dtype)[None]
    stacked = jnp.stack([jnp.broadcast_to(forecast, truth.shape) for forecast in forecasts.values()])
    # mapped over the forecasts, so that the program holds every metric once
    errors = jax.vmap(lambda forecast: _errors(forecast, truth, domain, bands))(stacked)
    table = {name: {metric: values[i] for metric, values in errors.items()} for i, name in enumerate(forecasts)}
    flows = jnp.stack([stacked[0], truth])
    integrals = jax.vmap(lambda flow: _integrals(flow, initial, domain, enstrophy_of))(flows)
    for i, name in enumerate(("model", "truth")):
        table[name] = table.get(name, {}) | {metric: values[i] for metric, values in integrals.items()}
    return table


def _errors(
    prediction: Float[Array, "b s n c"],
    truth: Float[Array, "b s n c"],
    domain: Domain,
    bands: tuple[tuple[int, int], ...] | None,
) -> dict[str, Array]:
    """Returns all errors that the domain permits."""
    pair = prediction, truth, domain
    found: dict[str, Array] = {
        "nrmse": nrmse(*pair, channels="each"),
        "relative_l2": relative_l2(*pair),
        "vrmse": vrmse(*pair, channels="each"),
        "correlation": correlation(*pair, channels="each"),
    }
    if has_neighbours(domain):
        found["h1_error"] = h1_error(*pair)
    if bands is not None or is_periodic(domain):
        errors = band_errors(*pair, bands=bands)
        for k, (first, last) in enumerate(errors.bands):
            found[f"amplitude_{first}_{last}"] = errors.statistics[:, :, k]
            found[f"band_{first}_{last}"] = errors.pointwise[:, :, k]
    return found


def _integrals(
    states: Float[Array, "b s n c"], initial: Float[Array, "b n c"], domain: Domain, enstrophy_of: str | None
) -> dict[str, Array]:
    """Returns the invariants and their drift."""
    found = invariants(states, domain, enstrophy_of=enstrophy_of)
    change = drift(states, initial, domain, enstrophy_of=enstrophy_of)
    named = vars(found) | {f"{name}_drift": value for name, value in vars(change).items()}
    return {name: value for name, value in named.items() if value is not None}


def _history(stepper: object, history: int | None) -> int:
    own = stepper.config.history if isinstance(stepper, Stepper) else None
    if history is None:
        return own or 1
    check_size(history, "history")
    if own not in (None, history):
        raise ValueError(f"history must be that of the stepper, {own}, or None, got {history}.")
    return history


def _climatology(mean_state: object, trajectories: Trajectories, count: int) -> Array | None:
    """Returns the mean state at every predicted time, (s, n, c)."""
    if mean_state is None:
        return None
    found = as_constants(cast(ArrayLike, mean_state), "climatology")
    shape = tuple(trajectories.states.shape[2:])
    if found.shape not in (shape, (count, *shape)):
        raise ValueError(
            f"climatology must have shape {shape}, or {(count, *shape)} for one that changes over the predicted times, "
            f"got {found.shape}."
        )
    return jnp.broadcast_to(found if found.ndim == 3 else found[None], (count, *shape))


def _joined(metric: str, array: np.ndarray) -> np.ndarray:
    """Returns an array (N, s) from one with channels."""
    if array.ndim == 2:
        return array
    return array.sum(axis=-1) if metric in _SUMMED else array.mean(axis=-1)
