"""Errors of a model on named sets: a table on the screen and on disk, and pictures."""

import collections
import csv
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, runtime_checkable

import jax
import numpy as np
from flax import nnx

from jaxop import operators, training
from jaxop.data import RaggedSamples
from jaxop.experiments import plots
from jaxop.experiments.bands import WithSize
from jaxop.experiments.sets import AnySamples, check_sizes, grid_name, typical_domain
from jaxop.experiments.terminal import needs_extra
from jaxop.training.evaluation import trace_errors
from jaxop.training.processes import is_first, spans_processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

_EVALUATION_NODES = 2**16  # at once, which bounds the memory of an evaluation on fine grids

COVERAGE = ("set", "nodes", "functions", "coverage", "mean half-width", "nominal")
"""Columns of the table of error bars; a half-width for every channel."""


Curve = tuple[np.ndarray, np.ndarray]
"""Levels and observed shares, see `jaxop.training.calibration_curve`."""


class Row(TypedDict):
    """Mean relative errors on a set, in physical units, with the median and the worst sample.

    Those of an ensemble are the errors of its mean; ``rel_crps``, ``rel_spread`` and ``member_rel_l2`` are the means
    of `jaxop.training.EnsembleErrors`. A model with error bars also has the share of functions inside them, its
    standard error, the nominal share, and the mean half-width of each channel, see `jaxop.training.Coverage`.
    """

    set: str
    grid: str
    samples: int
    rel_l2: float
    rel_h1: float | None
    median_rel_l2: float
    worst_rel_l2: float
    worst_sample: int
    rel_crps: NotRequired[float]
    rel_spread: NotRequired[float]
    member_rel_l2: NotRequired[float]
    coverage: NotRequired[float]
    coverage_error: NotRequired[float]
    nominal: NotRequired[float]
    half_width: NotRequired[list[float]]


@runtime_checkable
class Reported(Protocol):
    """Protocol of what a report is about: a `jaxop.training.Run`, or a model without its run."""

    @property
    def directory(self) -> Path:
        """Where tables and pictures go."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """Settings, which have the short name of the model as "operator"."""
        ...

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of the metrics of the training; none without a run."""
        ...


def check(model: operators.Standardized | operators.Ensemble, sets: Mapping[str, AnySamples]) -> None:
    """Raises an error that names the set if the model cannot run on it or its outputs do not fit its targets."""
    if not sets:
        raise ValueError("there is nothing to evaluate on; name at least one grid or file.")
    config = model.config
    for label, samples in sets.items():
        sizes = {
            "dimensions": (config.dim, samples.dim),
            "input channels": (config.in_channels, samples.in_channels),
            "output channels": (config.out_channels, samples.out_channels),
        }
        check_sizes(label, samples, sizes)
        try:
            trace_errors(model, samples, batch_size=min(2, len(samples)))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise type(error)(f"{label} ({grid_name(samples)}): {error}") from error


def write_report(
    run: Reported,
    model: nnx.Module,
    sets: Mapping[str, AnySamples],
    *,
    name: str,
    checkpoint: int | str | None,
    console: "Console",
    mesh: training.MeshConfig,
    same_functions: bool = False,
    source: Path | None = None,
    calibrated: operators.Calibrated | None = None,
) -> list[Row]:
    """Evaluates all sets, prints the table and saves it under ``evaluation/``, with pictures under ``figures/``.

    Several processes share the samples of a set, and process 0 prints and saves. If a picture cannot be drawn, this is
    a warning.

    Args:
        run: the run of the model, or what stands for it.
        model: the model with the parameters of the checkpoint.
        sets: the sets by name.
        name: prefix of all files.
        checkpoint: the step of the parameters, for the record.
        console: destination of the table.
        mesh: the devices that share the samples.
        same_functions: whether the sets hold the same functions on different domains. If they are functions of two
            variables, the median sample of the first set is shown on all of them.
        source: where the model was read; None means the run directory.
        calibrated: the model with its error bars, of which the table has the coverage and the pictures the band.

    Returns:
        The rows of the table.
    """
    rows: list[Row] = []
    bars: list[tuple[str, ...]] = []
    norms: dict[str, np.ndarray] = {}
    figures: dict[str, Callable[[], Figure]] = {}
    curves: dict[str, Curve] = {}
    for (label, samples), file in zip(sets.items(), file_names(sets), strict=True):
        size = samples_at_once(samples, mesh)
        if isinstance(model, operators.Ensemble):
            errors = training.evaluate_ensemble(model, samples, batch_size=size, mesh=mesh.make(size))
        else:
            errors = training.evaluate(model, samples, batch_size=size, mesh=mesh.make(size))
        shown = {"median": middle(errors.l2), "worst": int(np.argmax(errors.l2))}
        row: Row = {
            "set": label,
            "grid": grid_name(samples),
            "samples": len(samples),
            "rel_l2": float(np.mean(errors.l2, dtype=np.float64)),
            "rel_h1": None if errors.h1 is None else float(np.mean(errors.h1, dtype=np.float64)),
            "median_rel_l2": float(np.median(errors.l2)),
            "worst_rel_l2": float(errors.l2[shown["worst"]]),
            "worst_sample": shown["worst"],
        }
        if isinstance(errors, training.EnsembleErrors):
            row["rel_crps"] = float(np.mean(errors.crps, dtype=np.float64))
            row["rel_spread"] = float(np.mean(errors.spread, dtype=np.float64))
            row["member_rel_l2"] = float(np.mean(errors.members, dtype=np.float64))
            curves[label] = training.calibration_curve(errors.ranks)
        if calibrated is not None:
            found = covered(calibrated, samples)
            row["coverage"], row["coverage_error"], row["nominal"] = found.share, found.standard_error, found.nominal
            row["half_width"] = found.half_width.tolist()
            bars.append(coverage_row(label, samples, found))
        rows.append(row)
        labels = [f"{word} (sample {i}), {errors.l2[i]:.2%}" for word, i in shown.items()]
        chosen = samples.take(list(shown.values()))
        title = f"{label}: {row['grid']}"
        figures[f"{name}-{file}"] = functools.partial(
            _predictions, model, chosen, calibrated, labels=labels, title=title
        )
        norms[label] = errors.l2
    together = spans_processes(nnx.state(model))  # then process 0 cannot predict alone
    if not (is_first() or together):
        return rows
    grids = [typical_domain(samples) for samples in sets.values()]
    if same_functions and len(sets) > 1 and grids[0].dim == 2:
        figures[f"{name}-all-grids"] = functools.partial(_on_domains, model, sets, norms)
    if is_first():
        console.print(error_table(run, rows))
        if curves:
            console.print(members_table(rows, curves))
        if bars:
            console.print(coverage_table(bars))
        about = {"run": str(source or run.directory), "step": checkpoint}
        _save(run.directory / "evaluation", name, about, rows, curves)
        means = {"relative L2": [row["rel_l2"] for row in rows], "relative H1": [row["rel_h1"] for row in rows]}
        trained_on, title = run.config.get("resolution"), f"{run.directory.name}: errors in physical units"
        figures[f"{name}-errors"] = functools.partial(
            plots.plot_errors, grids, means, trained_on=trained_on, title=title
        )
        if curves:
            title = f"{run.directory.name}: calibration of the ensemble"
            figures[f"{name}-calibration"] = functools.partial(plots.plot_calibration, curves, title=title)
        if run.metrics:
            figures["learning-curves"] = functools.partial(
                plots.plot_learning_curves, run.metrics, title=f"{run.directory.name}: learning curves"
            )
    draw_all(run.directory / "figures", figures, console)
    if is_first():
        console.print(f"table: {run.directory / 'evaluation' / name}.csv and .json", soft_wrap=True)
        console.print(f"pictures: {run.directory / 'figures'}/", soft_wrap=True)
    return rows


def draw_all(folder: Path, figures: Mapping[str, Callable[[], "Figure"]], console: "Console") -> None:
    """Draws and saves figures, by their names without the suffix; a figure that cannot be drawn is a warning.

    All processes draw, because the figures may need predictions of all, and process 0 saves.
    """
    for file, draw in figures.items():
        path = folder / f"{file}.png"
        try:
            figure = draw()
            if is_first():
                plots.save_figure(figure, path)
        except Exception as error:  # of any kind, because the table matters more than a picture
            reason = next(iter(str(error).splitlines()), "")
            console.print(f"warning: {path} was not drawn ({type(error).__name__}: {reason})")


def _most_nodes(samples: AnySamples) -> int:
    """Returns the number of nodes of a target, the largest with padding if each sample has its own nodes."""
    if isinstance(samples, RaggedSamples):
        return max(max(bucket.nodes, bucket.at_nodes or 0) for bucket in samples.buckets)
    return samples.target_domain.size


def samples_at_once(samples: AnySamples, mesh: training.MeshConfig, *, nodes: int = 1) -> int:
    """Returns the number of samples of one call, which the devices divide and whose nodes fit into memory.

    Args:
        samples: the set.
        mesh: the devices.
        nodes: number of nodes of an output, if they are not those of the set.
    """
    count = mesh.model * (mesh.data or max(1, jax.process_count() // mesh.model))
    most = max(nodes, _most_nodes(samples))
    return count * max(1, min(16, len(samples), _EVALUATION_NODES // most) // count)


def middle(errors: np.ndarray) -> int:
    """Returns the number of the sample with the median error, the smaller one of two."""
    return int(np.argsort(errors, kind="stable")[(len(errors) - 1) // 2])


def file_names(labels: Iterable[str]) -> list[str]:
    """Returns a short name for the files of each label; all names are different."""
    names, times = [], collections.Counter()
    for label in labels:
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in label.replace("²", ""))[:100]
        times[name] += 1
        names.append(name if times[name] == 1 else f"{name}-{times[name]}")
    return names


def covered(calibrated: operators.Calibrated, samples: AnySamples) -> training.Coverage:
    """Returns the coverage of error bars on a set."""
    size = samples_at_once(samples, training.MeshConfig())
    return training.coverage(calibrated, samples, batch_size=size)


def coverage_row(label: str, samples: AnySamples, found: training.Coverage) -> tuple[str, ...]:
    """Returns the coverage of error bars on a set as text, in the columns of `COVERAGE`."""
    share, width = f"{found.share:.1%} ± {found.standard_error:.1%}", ", ".join(f"{w:.3g}" for w in found.half_width)
    return label, grid_name(samples), f"{len(samples):,}", share, width, f"{found.nominal:.1%}"


def coverage_table(rows: Iterable[tuple[str, ...]]) -> "Table":
    """Returns the table of the coverage of error bars on every set."""
    with needs_extra("a table of the coverage"):
        from rich.table import Table
    table = Table(*COVERAGE, title="coverage of the error bars")
    for row in rows:
        table.add_row(*row)
    return table


def _predictions(
    model: nnx.Module,
    samples: AnySamples,
    calibrated: operators.Calibrated | None,
    *,
    labels: Sequence[str],
    title: str,
) -> "Figure":
    if calibrated is None:
        predictions, widths = training.predict(model, samples, batch_size=1), None
    else:
        bars = WithSize(calibrated)
        outputs = training.predict(bars, samples, batch_size=1)
        pairs = [bars.divided(output, samples.sample(i).target_domain) for i, output in enumerate(outputs)]
        predictions, widths = ([pair[k] for pair in pairs] for k in range(2))
    return plots.plot_predictions(samples, predictions, labels=labels, title=title, half_widths=widths)


def _on_domains(model: nnx.Module, sets: Mapping[str, AnySamples], norms: Mapping[str, np.ndarray]) -> "Figure":
    """The median sample of the first set on all domains."""
    sample = middle(next(iter(norms.values())))
    shown = {label: samples.take([sample]) for label, samples in sets.items()}
    columns = {
        f"{label}\n{norms[label][sample]:.2%}": (one, training.predict(model, one)) for label, one in shown.items()
    }
    return plots.plot_on_domains(columns, title=f"the same weights on every grid: sample {sample}, relative L2")


def error_table(run: Reported, rows: Sequence[Row]) -> "Table":
    """Returns the table of the errors on every set."""
    with needs_extra("a table of errors"):
        from rich.table import Table
    title = f"{_operator(run.config)} · {run.directory.name} · errors in physical units"
    table = Table("set", "grid", "samples", "rel. L2", "rel. H1", "worst L2 (sample)", title=title)
    for row in rows:
        h1 = "–" if row["rel_h1"] is None else f"{row['rel_h1']:.2e}"
        errors = f"{row['rel_l2']:.2e}", h1, f"{row['worst_rel_l2']:.2e} ({row['worst_sample']})"
        table.add_row(row["set"], row["grid"], str(row["samples"]), *errors)
    return table


def _operator(config: Mapping[str, Any]) -> str:
    """Returns the name of the operator itself, inside of the constraints around it, from the record of a run."""
    name, model = config["operator"], config.get("model")
    while isinstance(model, Mapping) and isinstance(model.get("operator"), Mapping):
        name, model = model["model"], model["operator"]
    return name


MEMBERS = ("member_rel_l2", "rel_crps", "rel_spread")
"""Scores of the members of an ensemble in a `Row`."""


def members_table(rows: Sequence[Row], curves: Mapping[str, Curve]) -> "Table":
    """Returns the table of the scores of an ensemble's members on every set, beside the error of their mean."""
    with needs_extra("a table of errors"):
        from rich.table import Table
    widest = curves[rows[0]["set"]][0][-1]
    title = "members of the ensemble"
    errors = ("rel. L2 of the mean", "of a member")
    table = Table("set", *errors, "rel. CRPS", "rel. spread", f"in the {widest:.0%} interval", title=title)
    for row in rows:
        scores = (f"{row.get(name, np.nan):.2e}" for name in ("rel_l2", *MEMBERS))
        table.add_row(row["set"], *scores, f"{curves[row['set']][1][-1]:.1%}")
    return table


def _save(
    folder: Path,
    name: str,
    about: Mapping[str, str | int | None],
    rows: Sequence[Row],
    curves: Mapping[str, Curve],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {**about, "units": "physical", "sets": rows}
    if curves:
        record["calibration"] = {
            label: {"levels": levels.tolist(), "observed": observed.tolist()}
            for label, (levels, observed) in curves.items()
        }
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    # names of files may not be Unicode
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
