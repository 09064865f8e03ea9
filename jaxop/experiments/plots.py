"""Pictures of a run: predictions beside the truth, learning curves, errors against resolution.

The functions return `matplotlib.figure.Figure` objects outside of any window system or global state:
save them with `save_figure`, or let a notebook show them (after ``%matplotlib inline``).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Real

from jaxop.data import RaggedSamples, Samples
from jaxop.domains import Decomposed, Domain, Grid, TriangleMesh
from jaxop.domains.domain import as_domain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 3.2, 2.7  # inches of a panel
_COLORS = {"field": "viridis", "error": "magma"}
_ROWS = ("input", "truth", "prediction", "|error|")
_CUT = 0.995  # quantile of the error at which its colours end
_DOTS = 0.6  # of the area of a panel that the dots of scattered nodes cover
_ROUND = 1e-4  # relative difference of the radii of points that are taken to be on a sphere
_SMOOTHING = 0.02  # of the steps: window of the running mean of the loss


def plot_predictions(
    samples: Samples | RaggedSamples,
    predictions: Real[np.ndarray, "s k c"] | Sequence[Real[np.ndarray, "_ c"]],
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
    half_widths: Real[np.ndarray, "s k c"] | Sequence[Real[np.ndarray, "_ c"]] | None = None,
) -> "Figure":
    """Input, truth, prediction and |error| of samples, one row for every sample and output channel.

    Functions of one variable are curves. Functions of two variables are colour maps, and truth and prediction share
    their scale. The error has its own, which ends at the 99.5 % quantile. Dots on the input show the nodes of a mesh.
    Functions of three variables show the middle slice of a grid, or scattered nodes along the third axis. Functions on
    a sphere around the origin are maps of longitude and latitude. Error bars are a band around the prediction of one
    variable, and otherwise one more panel, with the scale of the error.

    Args:
        samples: the samples to show; `jaxop.data.Samples.take` picks some of a set.
        predictions: predictions of a model, see `jaxop.training.predict`, shape (N, k, c), or (k_i, c) for each.
        labels: a name for each sample, shown literally: "$" does not start a formula. None takes their numbers.
        title: title of the figure, shown literally.
        half_widths: half-widths of error bars, of the shape of the predictions; None draws none.

    Returns:
        The figure.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if predictions or half-widths do not have the targets' shape, or labels are too few.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains, experiments
        >>> u = np.ones((2, 64, 1), np.float32)
        >>> samples = data.Samples(u, 2 * u, domains.box((8, 8), rule="midpoint"))
        >>> figure = experiments.plot_predictions(samples, 1.9 * u, labels=["median", "worst"])
        >>> len(figure.axes)  # 2 × 4 panels and their colour bars
        16
    """
    shown = [samples.sample(i) for i in range(len(samples))]
    expected = [one.targets.shape for one in shown]
    for name, functions in {"predictions": predictions, "half_widths": half_widths}.items():
        received = expected if functions is None else [one.shape for one in functions]
        if received != expected:
            raise ValueError(f"{name} must have the targets' shape {_common(expected)}, got {_common(received)}.")
    labels = [f"sample {i}" for i in range(len(samples))] if labels is None else list(labels)
    if len(labels) != len(samples):
        raise ValueError(f"labels must name each of the {len(samples)} samples, got {len(labels)}.")
    channels = samples.out_channels
    headings = [*_ROWS, "half-width"] if half_widths is not None and samples.dim > 1 else _ROWS
    figure = _figure(len(headings), len(samples) * channels)
    panels = np.atleast_2d(figure.subplots(len(samples) * channels, len(headings), squeeze=False))
    for i, label in enumerate(labels):
        place, inputs = shown[i].target_domain, np.asarray(shown[i].inputs)
        for c in range(channels):
            row = panels[i * channels + c]
            truth, guess = np.asarray(shown[i].targets)[:, c], predictions[i][:, c]
            _draw(row[0], shown[i].domain, inputs[:, min(c, inputs.shape[-1] - 1)], has_nodes=True)
            if place.dim == 1:
                _draw(row[1], place, truth)
                _draw(row[2], place, guess)
                _draw(row[2], place, truth, style={"color": "0.6", "linestyle": "--", "linewidth": 1})
            else:
                _draw(row[1], place, truth)
                _draw(row[2], place, guess, style=_scale(truth))
            error, scale = np.abs(guess - truth), {}
            if half_widths is not None and place.dim > 1:  # one scale shows where the error is beyond the band
                scale = _error_scale(np.concatenate([error, half_widths[i][:, c]]))
            _draw(row[3], place, error, kind="error", style=scale)
            if half_widths is not None:
                width = half_widths[i][:, c]
                if place.dim == 1:
                    x = np.asarray(place.points)[:, 0]
                    order = np.argsort(x, kind="stable")
                    ends = (guess - width)[order], (guess + width)[order]
                    row[2].fill_between(x[order], *ends, color="C0", alpha=0.25, linewidth=0)
                else:
                    _draw(row[4], place, width, kind="error", style=scale)
            row[0].set_ylabel(label if channels == 1 else f"{label}\nchannel {c}", parse_math=False)
    for panel, heading in zip(panels[0], headings, strict=True):
        panel.set_title(heading)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def plot_on_domains(
    sets: Mapping[str, tuple[Samples | RaggedSamples, Real[np.ndarray, "s k c"] | Sequence[Real[np.ndarray, "_ c"]]]],
    *,
    labels: Sequence[str] = _ROWS,
    title: str = "",
) -> "Figure":
    """One function of two variables on several domains: a column for each domain, with one colour bar per row.

    The rows are input, truth, prediction and |error| of the first channel. Truth and prediction share their scale;
    that of the error ends at the 99.5 % quantile of all errors.

    Args:
        sets: for each heading of a column, one sample and its prediction, see `jaxop.training.predict`. Line breaks
            are allowed, and "$" does not start a formula.
        labels: names of the four rows, with their units, shown literally.
        title: title of the figure, shown literally.

    Returns:
        The figure.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no set, a set does not hold one sample of two variables, or a prediction does not
            have the target's shape.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains, experiments
        >>> sets = {}
        >>> for n in (8, 16):
        ...     u = np.ones((1, n * n, 1), np.float32)
        ...     sets[f"{n}²"] = data.Samples(u, 2 * u, domains.box((n, n), rule="midpoint")), 1.9 * u
        >>> len(experiments.plot_on_domains(sets).axes)  # 4 × 2 panels and 4 colour bars
        12
    """
    if not sets:
        raise ValueError("sets must hold at least one sample, got none.")
    for heading, (samples, prediction) in sets.items():
        if len(samples) != 1 or samples.dim != 2:
            raise ValueError(f"{heading}: give one sample of two variables; Samples.take([0]) picks it.")
        expected, received = [samples.sample(0).targets.shape], [one.shape for one in prediction]
        if received != expected:
            raise ValueError(
                f"{heading}: the prediction must have the target's shape {_common(expected)}, got {_common(received)}."
            )
    columns = []
    for samples, prediction in sets.values():
        one = samples.sample(0)
        source, truth, guess = (np.asarray(a)[:, 0] for a in (one.inputs, one.targets, prediction[0]))
        place = one.target_domain
        columns.append([(one.domain, source), (place, truth), (place, guess), (place, np.abs(guess - truth))])
    values = [np.concatenate([column[row][1] for column in columns]) for row in range(4)]
    scales = [_scale(values[0]), _scale(values[1]), _scale(values[1]), _error_scale(values[3])]
    figure = _figure(0.6 * len(sets) + 0.3, 4 * 0.68, layout="compressed")
    panels = figure.subplots(4, len(sets), squeeze=False)
    for row, label in enumerate(labels):
        kind = "error" if row == 3 else "field"
        drawn = [
            _draw(panel, *column[row], kind=kind, style=scales[row], has_nodes=row == 0, has_bar=False)
            for panel, column in zip(panels[row], columns, strict=True)
        ]
        _bar(figure, drawn[0], panels[row].tolist(), values[row])
        panels[row, 0].set_ylabel(label, parse_math=False)
    for panel, heading in zip(panels[0], sets, strict=True):
        panel.set_title(heading, parse_math=False)
    extent = _matplotlib("transforms").Bbox.union([panel.dataLim for panel in panels.flat])
    for panel in panels.flat:
        panel.set(xlim=extent.intervalx, ylim=extent.intervaly)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def plot_learning_curves(metrics: Sequence[Mapping[str, float | None]], *, title: str = "learning curves") -> "Figure":
    """Training loss, with its running mean, and validation errors against the step.

    Args:
        metrics: rows of a run, see `jaxop.training.read_metrics`.
        title: title of the figure, shown literally.

    Returns:
        The figure, with logarithmic errors.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:
        >>> from jaxop import experiments
        >>> rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 2, "valid/l2": 0.6}]
        >>> [line.get_label() for line in experiments.plot_learning_curves(rows).axes[0].lines]
        ['training loss', 'running mean', 'valid/l2']
    """
    figure = _figure(2, 1.4)
    axes = figure.subplots()
    losses = [(row["step"], row["loss"]) for row in metrics if row.get("loss") is not None]
    if losses:
        steps, values = np.array(losses, float).T
        axes.plot(steps, values, color="0.8", linewidth=0.8, label="training loss")
        window = max(1, round(_SMOOTHING * len(values)))
        sums = np.cumsum(np.concatenate([[0.0], values]))
        axes.plot(steps[window - 1 :], (sums[window:] - sums[:-window]) / window, color="0.4", label="running mean")
    names = dict.fromkeys(name for row in metrics if "loss" not in row for name in row if name != "step")
    for name in names:
        points = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
        if points:
            axes.plot(*np.array(points, float).T, marker="o", markersize=3, label=name)
    axes.set(xlabel="step", ylabel="relative error", yscale="log")
    label_lines(axes, title)
    return figure


def plot_errors(
    domains: Sequence[Domain | Decomposed],
    errors: Mapping[str, Sequence[float | None]],
    *,
    trained_on: float | None = None,
    title: str = "errors of one model",
) -> "Figure":
    """Errors of one model on several grids against the number of nodes along an axis, n^(1/dim).

    Args:
        domains: the grids; even and uneven ones form curves of their own.
        errors: for each kind of error, such as "relative L2", its value on every grid. None leaves a grid out.
        trained_on: nodes along an axis of the training grid, marked by a line. None draws no line.
        title: title of the figure, shown literally.

    Returns:
        The figure, with logarithmic axes.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:
        >>> from jaxop import domains, experiments
        >>> grids = [domains.interval(n) for n in (50, 100, 200)]
        >>> figure = experiments.plot_errors(grids, {"relative L2": [0.02, 0.01, 0.01]}, trained_on=100)
        >>> [round(x) for x in figure.axes[0].lines[0].get_xdata()]
        [50, 100, 200]
    """
    figure = _figure(2, 1.4)
    axes = figure.subplots()
    wholes = [as_domain(domain, f"domains[{i}]") for i, domain in enumerate(domains)]
    resolutions = np.array([_resolution(domain) for domain in wholes])
    uneven = np.array([not isinstance(domain, Grid) or domain.has_given_nodes for domain in wholes])
    for name, values in errors.items():
        known = np.array([np.nan if value is None else value for value in values], float)
        for part, suffix, line in ((~uneven, "", "-"), (uneven, ", uneven nodes", ":")):
            order = np.flatnonzero(part & np.isfinite(known))
            order = order[np.argsort(resolutions[order], kind="stable")]
            if order.size:
                axes.plot(resolutions[order], known[order], line, marker="o", label=name + suffix)
    if trained_on is not None:
        axes.axvline(trained_on, color="0.5", linestyle="--", linewidth=1, label="training grid")
    axes.set(xlabel="nodes along an axis", ylabel="mean error", xscale="log", yscale="log")
    axes.set_title(title, parse_math=False)
    ticks = np.unique(resolutions.round())
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.xaxis.set_minor_locator(_matplotlib("ticker").NullLocator())
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def plot_calibration(
    curves: Mapping[str, tuple[Real[np.ndarray, " l"], Real[np.ndarray, " l"]]], *, title: str = "calibration"
) -> "Figure":
    """Share of nodes and functions inside the central intervals of an ensemble against the share that it promises.

    A curve below the diagonal belongs to members that are too near each other.

    Args:
        curves: for each name of a set, levels and observed shares, see `jaxop.training.calibration_curve`.
        title: title of the figure, shown literally.

    Returns:
        The figure.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:
        >>> import numpy as np
        >>> from jaxop import experiments
        >>> figure = experiments.plot_calibration({"64²": (np.array([0.2, 0.6]), np.array([0.1, 0.4]))})
        >>> figure.axes[0].lines[1].get_xydata().tolist()
        [[0.0, 0.0], [0.2, 0.1], [0.6, 0.4], [1.0, 1.0]]
    """
    figure = _figure(1.5, 1.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="exchangeable")
    for name, (levels, observed) in curves.items():
        axes.plot([0, *levels, 1], [0, *observed, 1], marker="o", markersize=3, label=name)
    axes.set(xlabel="level of the interval", ylabel="observed share", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    label_lines(axes, title)
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a figure in the format of the suffix, and makes its folder if it does not exist.

    Args:
        figure: a figure of one of the functions above.
        path: the file to write, such as ``run/figures/errors.png``.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _matplotlib(module: str) -> ModuleType:
    try:
        import matplotlib.animation
        import matplotlib.figure
        import matplotlib.ticker
        import matplotlib.transforms
    except ImportError as error:
        raise ImportError("figures need matplotlib; install it with: pip install 'jaxop[scripts]'") from error
    return getattr(matplotlib, module)


def label_lines(axes: "Axes", title: str) -> None:
    """Adds a title, a grid and a legend of all lines, whose names are shown literally."""
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    if axes.lines:
        for name in axes.legend(handles=axes.lines).get_texts():  # sets are called like files: "_a.npz", "b$2$.npz"
            name.set_parse_math(False)


def _figure(columns: float, rows: float, *, layout: Literal["constrained", "compressed"] = "constrained") -> "Figure":
    size = (_WIDTH * columns, _HEIGHT * rows + 0.4)
    return _matplotlib("figure").Figure(figsize=size, layout=layout)


def _common(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | list[tuple[int, ...]]:
    """Returns the shape of an array whose entries have these shapes, or these shapes if they differ."""
    return (len(shapes), *shapes[0]) if len(set(shapes)) == 1 else list(shapes)


def _resolution(domain: Domain) -> float:
    return domain.size ** (1 / domain.dim)


def _scale(values: np.ndarray) -> dict[str, float]:
    return {"vmin": float(values.min()), "vmax": float(values.max())}


def _error_scale(errors: np.ndarray) -> dict[str, float]:
    """Returns colours from 0 to a quantile: a few nodes with large errors would make all others look alike."""
    return {"vmin": 0.0, "vmax": float(np.quantile(errors, _CUT))}


def _draw(
    axes: Any,
    domain: Domain,
    values: np.ndarray,
    *,
    kind: str = "field",
    style: Mapping[str, Any] | None = None,
    has_nodes: bool = False,
    has_bar: bool = True,
) -> Any:
    """Draws one function on its domain, with the nodes of a mesh on request; returns what a colour bar describes."""
    style = dict(style or {})
    if domain.dim == 1:
        points = np.asarray(domain.points)[:, 0]
        order = np.argsort(points, kind="stable")
        return axes.plot(points[order], values[order], **({"color": "C3"} if kind == "error" else {}) | style)
    style = {"cmap": _COLORS[kind]} | (_error_scale(values) if kind == "error" else _scale(values)) | style
    points = np.asarray(domain.points)
    axes.margins(0.01)
    if isinstance(domain, Grid):
        x, y = (np.asarray(axis.nodes) for axis in domain.axes[:2])
        drawn = axes.pcolormesh(x, y, _block(domain, values), shading="nearest", **style)
    elif isinstance(domain, TriangleMesh) and domain.dim == 2:
        drawn = axes.tripcolor(*points.T, np.asarray(domain.faces), values, shading="gouraud", **style)
        if has_nodes:
            axes.scatter(*points.T, s=_dot(axes, len(points)) / 8, color="black", alpha=0.5, linewidths=0)
    else:
        drawn = axes.scatter(*_seen(points), c=values, s=_dot(axes, len(points)), linewidths=0, **style)
    axes.set_aspect("equal")
    axes.set(xticks=[], yticks=[])
    if has_bar:
        _bar(axes.figure, drawn, axes, values)
    return drawn


def _block(domain: Grid, values: np.ndarray) -> np.ndarray:
    """Returns the values on the first two axes of a grid, in the middle of the others, as rows of a picture."""
    block = values.reshape(domain.shape)
    while block.ndim > 2:
        block = block[..., block.shape[-1] // 2]
    return block.T


def _seen(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns longitude and latitude in degrees of points on a sphere around the origin, or else x and y."""
    radius = np.linalg.norm(points, axis=1)
    if points.shape[1] == 3 and radius.min() > 0 and np.ptp(radius) < _ROUND * radius.min():
        x, y, z = points.T
        return np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(np.clip(z / radius, -1, 1)))
    return points[:, 0], points[:, 1]


def _dot(axes: Any, count: int) -> float:
    """Returns the size of dots that cover a part of a panel together, in square points."""
    width = axes.get_window_extent().width * 72 / axes.figure.dpi
    return max(0.5, _DOTS * width**2 / count)


def _bar(figure: "Figure", drawn: Any, panels: Any, values: np.ndarray) -> None:
    """Adds a colour bar, with a pointed end if values lie beyond it."""
    extend = "max" if values.max() > drawn.get_clim()[1] else "neither"
    figure.colorbar(drawn, ax=panels, shrink=0.85, extend=extend)
