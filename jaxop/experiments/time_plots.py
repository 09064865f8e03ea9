"""Pictures of rollouts: errors against time, spectra, space–time diagrams, snapshots and animations.

As in `jaxop.experiments.plots`, the functions return `matplotlib.figure.Figure` objects outside of any window system.
States are arrays (t, n, c): t times on the n nodes of a domain, c channels. The colours of errors end at their 99.5 %
quantile. Truth and prediction share the colours of the truth. States that are not finite are left blank.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float, Real

from jaxop._validation import as_integer, check_size
from jaxop.domains import Decomposed, Domain, Grid
from jaxop.domains.domain import as_domain
from jaxop.dynamics import RolloutErrors
from jaxop.experiments.plots import (
    _COLORS,
    _bar,
    _block,
    _draw,
    _error_scale,
    _figure,
    _matplotlib,
    _scale,
    label_lines,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS = ("truth", "prediction", "|error|")
_SIMPLE = {"persistence": "--", "climatology": ":"}
_FEW = 5  # snapshots that are shown unless times are given
_SUFFIXES = (".gif", ".mp4")

Field = Real[np.ndarray | Array, "t n c"]


def plot_rollout_errors(
    errors: RolloutErrors | Sequence[RolloutErrors],
    *,
    metric: str = "nrmse",
    title: str = "",
) -> "Figure":
    """A metric of rollouts against time: its mean over trajectories, with the middle half of them shaded.

    Persistence and climatology are grey lines. Errors have a logarithmic axis. A curve ends where a rollout is not
    finite, since the mean is ∞ from there on; the median and the shading go on.

    Args:
        errors: results of `jaxop.dynamics.evaluate`, one for each stepper; they differ in their ``name``.
        metric: one of their metrics, see `jaxop.dynamics.RolloutErrors`.
        title: title of the figure, shown literally.

    Returns:
        The figure.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no errors, or the metric is unknown.

    Example:
        >>> import numpy as np
        >>> from jaxop import dynamics, experiments
        >>> times, curve = np.arange(1.0, 4.0)[None], np.array([[0.1, 0.2, 0.4]])
        >>> table = {"model": {"nrmse": curve}, "persistence": {"nrmse": 2 * curve}}
        >>> errors = dynamics.RolloutErrors("model", times, np.array([3]), table)
        >>> [line.get_label() for line in experiments.plot_rollout_errors(errors).axes[0].lines]
        ['model', 'persistence']
    """
    sets = [errors] if isinstance(errors, RolloutErrors) else list(errors)
    if not sets:
        raise ValueError("errors must hold the result of at least one evaluation, got none.")
    figure = _figure(2, 1.4)
    axes = figure.subplots()
    for one in sets:
        curves, times = one.curves(metric), one.times.mean(axis=0)
        (line,) = axes.plot(times, _finite(one.mean(metric)), label=one.name)
        low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0, method="nearest")
        if len(curves) > 1:
            axes.fill_between(times, _finite(low), _finite(high), color=line.get_color(), alpha=0.2, linewidth=0)
        if not np.isfinite(one.mean(metric)).all():
            axes.plot(times, _finite(middle), color=line.get_color(), linestyle="-.", label=f"{one.name}, median")
    for name, style in _SIMPLE.items():
        if metric in sets[0].values.get(name, {}):
            axes.plot(sets[0].times.mean(axis=0), sets[0].mean(metric, name), style, color="0.5", label=name)
    signed = metric == "correlation" or metric.endswith("_drift") or metric in ("mass", "energy", "enstrophy")
    if metric in sets[0].values.get("truth", {}):
        axes.plot(sets[0].times.mean(axis=0), sets[0].mean(metric, "truth"), color="0.2", linewidth=1, label="truth")
    if not signed:
        axes.set_yscale("log")
    axes.set(xlabel="time", ylabel=metric)
    label_lines(axes, title)
    return figure


def plot_spectra(
    spectra: Mapping[str, Real[np.ndarray | Array, " shells"]],
    wavenumbers: Real[np.ndarray | Array, " shells"],
    *,
    title: str = "",
) -> "Figure":
    """Energy spectra against wavenumber, with logarithmic axes.

    Args:
        spectra: energies by name, shape (K,): the average over times of `jaxop.dynamics.energy_spectrum`, for example.
            "truth" is drawn in black.
        wavenumbers: shape (K,), see `jaxop.dynamics.wavenumbers`. Wavenumber 0, the mean, is left out.
        title: title of the figure, shown literally.

    Returns:
        The figure. The axis of energies spans fourteen decades at most, which is the precision of float32.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no spectrum, or its shape is not that of the wavenumbers.

    Example:
        >>> import numpy as np
        >>> from jaxop import experiments
        >>> k = np.arange(9.0)
        >>> figure = experiments.plot_spectra({"truth": np.exp(-k), "prediction": np.exp(-1.1 * k)}, k)
        >>> figure.axes[0].get_yscale(), len(figure.axes[0].lines)
        ('log', 2)
    """
    if not spectra:
        raise ValueError("spectra must hold at least one spectrum, got none.")
    kappa = np.asarray(wavenumbers, np.float64)
    figure = _figure(2, 1.4)
    axes = figure.subplots()
    largest = 0.0
    for name, spectrum in spectra.items():
        energies = np.asarray(spectrum, np.float64)
        if energies.shape != kappa.shape:
            raise ValueError(
                f"spectra[{name!r}] must have shape {kappa.shape}, one energy for each wavenumber, got "
                f"{energies.shape}; average over times and choose a channel."
            )
        shown = np.where(np.isfinite(energies) & (energies > 0), energies, np.nan)[1:]
        largest = max(largest, float(np.nanmax(shown, initial=0.0)))
        axes.plot(kappa[1:], shown, label=name, **({"color": "black", "linewidth": 1} if name == "truth" else {}))
    axes.set(xlabel="wavenumber", ylabel="energy", xscale="log", yscale="log")
    if largest > 0:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-14 * largest))
    label_lines(axes, title)
    return figure


def plot_space_time(
    truth: Field,
    prediction: Field,
    domain: Domain | Decomposed,
    times: Real[np.ndarray | Array, " t"],
    *,
    channel: int = 0,
    title: str = "",
) -> "Figure":
    """Hovmöller diagrams of functions of one variable: truth, prediction and |error| over time and space.

    Args:
        truth: true states, shape (t, n, c).
        prediction: predicted states, shape (t, n, c).
        domain: the n nodes, in one dimension.
        times: increasing, shape (t,).
        channel: the channel to show.
        title: title of the figure, shown literally.

    Returns:
        The figure: time runs to the right and space upwards.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the shapes do not fit each other, the domain or the times, or the domain is not one-dimensional.

    Example:
        >>> import numpy as np
        >>> from jaxop import domains, experiments
        >>> domain, times = domains.interval(32, rule="periodic"), np.linspace(0, 1, 20)
        >>> u = np.sin(6.28 * (np.asarray(domain.points)[None] - times[:, None, None]))
        >>> len(experiments.plot_space_time(u, 0.9 * u, domain, times).axes)  # 3 panels and their colour bars
        6
    """
    whole, true, guess, when = _checked(truth, prediction, domain, times, channel)
    if whole.dim != 1:
        raise ValueError(
            f"domain must have one dimension for a space-time diagram, got {whole.dim}; plot_snapshots shows others."
        )
    points = np.asarray(whole.points)[:, 0]
    order = np.argsort(points, kind="stable")
    figure = _figure(2.4, 3 * 0.72)
    panels = figure.subplots(3, 1, sharex=True, sharey=True)
    for panel, heading, values in zip(panels, _ROWS, (true, guess, np.abs(guess - true)), strict=True):
        kind = "error" if heading == "|error|" else "field"
        style = _finite_error_scale(values) if kind == "error" else _scale(true)
        drawn = panel.pcolormesh(
            when, points[order], values[:, order].T, shading="nearest", cmap=_COLORS[kind], **style
        )
        _bar(figure, drawn, panel, _known(values))
        panel.set(title=heading, ylabel="x")
    panels[-1].set_xlabel("time")
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def plot_snapshots(
    truth: Field,
    prediction: Field,
    domain: Domain | Decomposed,
    times: Real[np.ndarray | Array, " t"],
    *,
    at: Sequence[int] | None = None,
    channel: int = 0,
    title: str = "",
) -> "Figure":
    """Truth, prediction and |error| at chosen times, one column each, with one colour bar per row.

    Args:
        truth: true states, shape (t, n, c).
        prediction: predicted states, shape (t, n, c).
        domain: the n nodes, in any dimension; see `plot_predictions` for how it is shown.
        times: increasing, shape (t,).
        at: numbers of the times to show, counted from the end if negative. None shows at most five, evenly chosen.
        channel: the channel to show.
        title: title of the figure, shown literally.

    Returns:
        The figure.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the shapes do not fit each other, the domain or the times, or ``at`` is empty.
        IndexError: if an entry of ``at`` is beyond the times.

    Example:
        >>> import numpy as np
        >>> from jaxop import domains, experiments
        >>> domain, times = domains.box((8, 8), rule="periodic"), np.arange(1.0, 5.0)
        >>> u = times[:, None, None] * np.asarray(domain.points)[None, :, :1]
        >>> len(experiments.plot_snapshots(u, 0.9 * u, domain, times, at=[0, -1]).axes)  # 3 × 2 panels and 3 bars
        9
    """
    whole, true, guess, when = _checked(truth, prediction, domain, times, channel)
    count = len(when)
    chosen = np.unique(np.linspace(0, count - 1, min(_FEW, count)).round().astype(int)) if at is None else list(at)
    if not len(chosen):
        raise ValueError("at must hold the number of at least one time, got none.")
    numbers = [_place(i, count) for i in chosen]
    is_line = whole.dim == 1
    figure = _figure(0.6 * len(numbers) + 0.3, 3 * 0.68, layout="constrained" if is_line else "compressed")
    panels = figure.subplots(3, len(numbers), squeeze=False, sharey="row" if is_line else False)
    rows = true[numbers], guess[numbers], np.abs(guess - true)[numbers]
    for line, heading, values in zip(panels, _ROWS, rows, strict=True):
        kind = "error" if heading == "|error|" else "field"
        style = {} if is_line else _finite_error_scale(values) if kind == "error" else _scale(true[numbers])
        drawn = [
            _draw(panel, whole, value, kind=kind, style=style, has_bar=False)
            for panel, value in zip(line, values, strict=True)
        ]
        if not is_line:
            _bar(figure, drawn[0], line.tolist(), _known(values))
        elif heading == "prediction":
            for panel, value in zip(line, true[numbers], strict=True):
                _draw(panel, whole, value, style={"color": "0.6", "linestyle": "--", "linewidth": 1})
        line[0].set_ylabel(heading)
    for panel, i in zip(panels[0], numbers, strict=True):
        panel.set_title(f"t = {when[i]:.4g}")
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def save_animation(
    path: str | os.PathLike[str],
    truth: Field,
    prediction: Field,
    domain: Domain | Decomposed,
    times: Real[np.ndarray | Array, " t"],
    *,
    channel: int = 0,
    frames_per_second: int = 10,
    every: int = 1,
    title: str = "",
) -> None:
    """Writes a film of truth, prediction and |error|, as a GIF or as an MP4.

    Args:
        path: the file, which ends in ".gif" or ".mp4". Its folder is made if it does not exist. MP4 needs the program
            ``ffmpeg``.
        truth: true states, shape (t, n, c).
        prediction: predicted states, shape (t, n, c).
        domain: the n nodes, in any dimension; see `plot_predictions` for how it is shown.
        times: increasing, shape (t,).
        channel: the channel to show.
        frames_per_second: speed of the film.
        every: shows the times 0, ``every``, 2 ``every``, ….
        title: title of the film, shown literally.

    Raises:
        ImportError: if matplotlib is not installed.
        RuntimeError: if the file ends in ".mp4" and ffmpeg is not installed.
        ValueError: if the file has another suffix, the shapes do not fit, or a number is not positive.

    Cost: a tenth of a second per frame.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from jaxop import domains, experiments
        >>> domain, times = domains.interval(16, rule="periodic"), np.arange(2.0)
        >>> u = np.cos(6.28 * np.asarray(domain.points)[None] - times[:, None, None])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "wave.gif")
        ...     experiments.save_animation(path, u, 0.9 * u, domain, times)
        ...     path.read_bytes()[:6]
        b'GIF89a'
    """
    check_size(frames_per_second, "frames_per_second")
    check_size(every, "every")
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"path must end in .gif or .mp4, got {os.fspath(path)!r}.")
    whole, true, guess, when = _checked(truth, prediction, domain, times, channel)
    animation = _matplotlib("animation")
    if suffix == ".mp4" and not animation.FFMpegWriter.isAvailable():
        raise RuntimeError(
            f"{os.fspath(path)}: MP4 needs the program ffmpeg, which is not installed; install it, or write a .gif."
        )
    writer = (animation.PillowWriter if suffix == ".gif" else animation.FFMpegWriter)(fps=frames_per_second)
    error = np.abs(guess - true)
    is_line = whole.dim == 1
    figure = _figure(3, 1) if is_line else _figure(3, 1.1)
    panels = figure.subplots(1, 3)
    scales = [_scale(true), _scale(true), _finite_error_scale(error)]
    heading = figure.suptitle(" ", parse_math=False)
    drawn = []
    for panel, name, values, scale in zip(panels, _ROWS, (true, guess, error), scales, strict=True):
        kind = "error" if name == "|error|" else "field"
        drawn.append(_draw(panel, whole, values[0], kind=kind, style={} if is_line else scale, has_bar=False))
        panel.set_title(name)
        if is_line:
            room = 0.05 * (scale["vmax"] - scale["vmin"])
            panel.set_ylim(scale["vmin"] - room, scale["vmax"] + room or 1)
        else:
            _bar(figure, drawn[-1], panel, _known(values))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with writer.saving(figure, os.fspath(path), dpi=100):
        for j in range(0, len(when), every):
            for artist, values in zip(drawn, (true, guess, error), strict=True):
                _redraw(artist, whole, values[j])
            heading.set_text(f"{title}   t = {when[j]:.4g}" if title else f"t = {when[j]:.4g}")
            writer.grab_frame()


def _checked(
    truth: Field, prediction: Field, domain: Domain | Decomposed, times: Real[np.ndarray | Array, " t"], channel: int
) -> tuple[Domain, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the whole domain, one channel of truth and prediction, (t, n), without infinities, and the times."""
    whole = as_domain(domain, "domain")
    true, guess = (np.asarray(states, np.float64) for states in (truth, prediction))
    when = np.asarray(times, np.float64)
    if true.shape != guess.shape or true.ndim != 3 or true.shape[:2] != (when.size, whole.size) or when.ndim != 1:
        raise ValueError(
            f"truth and prediction must have shape (t, n, c) with t = {when.size} times and n = {whole.size} nodes, "
            f"got {true.shape} and {guess.shape}; choose one sample of a batch."
        )
    index = _place(channel, true.shape[-1], "channel")
    true, guess = true[..., index], guess[..., index]
    return whole, true, np.where(np.isfinite(guess), guess, np.nan), when


def _place(index: int, count: int, argument: str = "at") -> int:
    """Returns an index from the front."""
    number = as_integer(index, argument)
    if not -count <= number < count:
        raise IndexError(f"{argument} must lie between {-count} and {count - 1}, got {number}.")
    return number % count


def _finite(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns ``values`` with NaN, which is not drawn, for infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def _known(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, " _"]:
    """Returns the finite values, or 0 if there is none."""
    found = values[np.isfinite(values)]
    return found if found.size else np.zeros(1)


def _finite_error_scale(errors: Float[np.ndarray, "..."]) -> dict[str, float]:
    return _error_scale(_known(errors))


def _redraw(artist: Any, domain: Domain, values: Float[np.ndarray, " n"]) -> None:
    """Changes the values of a function that `_draw` has drawn."""
    if domain.dim == 1:
        artist[0].set_ydata(values[np.argsort(np.asarray(domain.points)[:, 0], kind="stable")])
    else:
        artist.set_array(_block(domain, values) if isinstance(domain, Grid) else values)
