"""Predictions of a trained model for the input functions in files, written to files."""

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxop import data, operators, training
from jaxop._validation import check_size, require
from jaxop.data import RaggedSamples
from jaxop.data.files.blocks import writing_blocks
from jaxop.data.files.meshes import MESHES
from jaxop.data.files.nodes import read_nodes
from jaxop.data.files.on_demand import files_of
from jaxop.data.files.open import open_archive
from jaxop.data.files.save import arrays_of, write_arrays
from jaxop.domains import Domain
from jaxop.experiments.bands import HALF_WIDTH, WithSize
from jaxop.experiments.cluster import ClusterConfig
from jaxop.experiments.forecast import forecast, states_in
from jaxop.experiments.problems import FileData
from jaxop.experiments.report import samples_at_once
from jaxop.experiments.series import SeriesData
from jaxop.experiments.sets import AnySamples, check_directory, check_sizes, grid_name
from jaxop.experiments.settings import prepared
from jaxop.experiments.terminal import as_options, make_console
from jaxop.experiments.trained import Trained, open_trained
from jaxop.training import MeshConfig, to_json
from jaxop.training.identity import as_set, digests
from jaxop.training.processes import check_same, is_first
from jaxop.training.queries import Block

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Settings of predictions.

    Attributes:
        model: a run directory, or the folder or .zip file of a model that `jaxop export-model` or model.save wrote.
        files: files or folders with input functions, as `jaxop.data.read` takes them. They need not have targets.
        to: folder of the results; None means RUN/predictions. A model without its run needs it.
        at: file of the query points, at which all outputs are computed: a mesh, an .npz file with coordinates of
            shape (n, dim) or of the axes of a grid, or netCDF with coordinate variables; None means the nodes of the
            inputs.
        band: also writes the half-width of the error bars, of a model that `jaxop calibrate` made.
        residuals: writes pairs of the input and the absolute error |v − G(u)| in the place of predictions, from files
            with targets v: what a spread for `jaxop calibrate` is trained on.
        checkpoint: "best", "last" or the number of a step of a run.
        inputs: name or names of the input functions in the files; None means their name in the training file.
        targets: name or names of the target functions in the files of ``residuals``; None means their name in the
            training file.
        steps: number of steps that a stepper makes from the states in the files; runs on trajectories need it.
        every: records the states of a stepper after so many steps, and multiples; it divides the number of steps.
        dt: the time of a step of a stepper; None takes that of the training.
        states: name or names of the states in the files of a stepper; None means their name in the training file.
        times: name of the times in the files of a stepper; None means their name in the training file.
        rule: quadrature rule of the grid in the files, one or one per axis: "midpoint", "periodic", "trapezoid", ...;
            None means the one of the training file.
        external: allows HDF5 files to have their values in other files.
        mesh: devices that share the samples, the parameters and the nodes of a function.
        cluster: how several processes find each other.
    """

    model: Path
    files: tuple[Path, ...]
    to: Path | None = None
    at: Path | None = None
    band: bool = False
    residuals: bool = False
    checkpoint: str = "best"
    inputs: str | tuple[str, ...] | None = None
    targets: str | tuple[str, ...] | None = None
    steps: int | None = None
    every: int = 1
    dt: float | None = None
    states: str | tuple[str, ...] | None = None
    times: str | None = None
    rule: tuple[str, ...] | None = None
    external: bool = False
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)


def predict(settings: Prediction, *, console: "Console | None" = None) -> list[Path]:
    """Writes the outputs of the operator for the input functions in files, in the units of the training data.

    A mesh becomes a .vtu file of the same nodes and cells, with the outputs as point data under the names of the
    targets; if there are several names but another number of channels, one array holds all channels. An .npz file of
    one sample becomes an .npz file of `jaxop.data.write_fields`. A file of several samples becomes an .npz file of
    `jaxop.data.save`, in which ``y`` holds the outputs. Every result has the name of its input.

    If ``at`` has other query points, outputs are computed for a part of them at a time, which bounds the memory of a
    call. An input of one sample then gives a .vtu file if the query points are a mesh. All others give .npz files with
    the query points and ``y`` of shape (samples, n, channels), or (samples, *grid, channels), which are written while
    they are computed.

    With ``band``, half-widths are the array ``half_width``, of the shape of ``y``, or fields NAME_half_width beside
    those of the targets if files have one sample each.

    A stepper makes ``steps`` steps from the last recorded states of every trajectory in the files, and the result is an
    .npz file of `jaxop.data.save` that `jaxop.data.read_trajectories` reads. It begins with the state at the start.

    Args:
        settings: the model, the files, the folder of the results.
        console: destination of one line for each file; None writes to stdout.

    Returns:
        The files that were written.

    Raises:
        ValueError: if there are no files, two results would have the same name, a result would replace an input, or the
            operator cannot run on a file.
        NotImplementedError: if ``at`` is given and the operator gives its outputs on the nodes of its inputs only.
        FileNotFoundError: if the model, the checkpoint or a file does not exist.
        FloatingPointError: if a rollout does not stay finite, once what came before and all others are written.
        ImportError: if a package of the extra ``scripts`` is not installed.
    """
    with settings.cluster.joined():
        return _predict(settings, console)


def _predict(settings: Prediction, console: "Console | None") -> list[Path]:
    about = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    check_same({name: to_json(value) for name, value in about.items() if name != "cluster"})
    trained = open_trained(settings.model, checkpoint=settings.checkpoint)
    _check_apply(settings, trained)
    problem, kind = trained.problem, SeriesData if trained.is_stepper else FileData
    if not isinstance(problem, kind):
        problem = kind(Path("samples.npz"))
    given = {name: getattr(settings, name) for name in ("inputs", "targets", "states", "times", "rule")}
    problem = dataclasses.replace(
        problem, external=settings.external, **{name: value for name, value in given.items() if value is not None}
    )
    folder = settings.model / "predictions" if settings.to is None else settings.to
    is_file = isinstance(problem, FileData)
    singles, sets = _sorted(settings.files, problem) if is_file else ([], states_in(settings.files))
    if settings.residuals and singles:
        raise ValueError(
            f"--residuals takes files of several samples, and {singles[0]} holds one; training.absolute_residuals "
            "takes any in Python."
        )
    results = _results(folder, singles, sets, settings.at)
    if any(result.suffix == ".vtu" for result in results.values()):
        require("meshio.vtu", "writing .vtu", extra="mesh")  # before anything is computed
    at = None if settings.at is None else read_nodes(settings.at)
    model: Any = trained.restore(settings.mesh.one_copy())
    bars = None
    if settings.band:
        assert trained.calibrated is not None
        model = bars = WithSize(trained.calibrated)
    console = make_console() if console is None else console
    check_directory("--to", folder)
    written: list[Path] = []

    def save(source: Path, about: str, result: Path, function: Callable[..., None], *arguments: object) -> None:
        written.append(result)
        if not is_first():
            return
        folder.mkdir(parents=True, exist_ok=True)
        function(result, *arguments)
        console.print(f"{len(written)}/{max(len(results), len(written))} {source} ({about}): {result}", soft_wrap=True)

    def write(source: Path, about: str, function: Callable[..., None], *arguments: object) -> None:
        save(source, about, results[source], function, *arguments)

    if isinstance(problem, SeriesData):
        forecast(
            model,
            problem,
            results,
            steps=settings.steps or 0,
            every=settings.every,
            dt=settings.dt,
            write=lambda source, about, result, found: save(source, about, result, data.save, found),
        )
        return written
    dim = trained.blank.config.dim
    for suffixes in (MESHES, (".npz",)):
        if paths := [path for path in singles if path.suffix.lower() in suffixes]:
            samples = _inputs(problem, paths, dim)
            if at is None:
                found = zip(paths, _outputs(model, paths[0], samples, settings.mesh), strict=True)
            else:
                blocks = _blocks(model, paths[0], samples, at, settings.mesh, console)
                found = zip(paths, _joined(blocks, at.size), strict=True)
            for i, (path, output) in enumerate(found):
                domain = samples.sample(i).target_domain if at is None else at
                fields = _fields(output, domain, problem.targets, bars)
                write(path, f"{len(output)} nodes", data.write_fields, domain, fields)
    known = as_set(trained.functions) if settings.residuals else set()
    for path in sets:
        if settings.residuals:
            errors = _residuals(model, path, problem)
            if seen := sum(digest in known for digest in digests(errors, str(path))):
                console.print(
                    f"warning: {path}: the model was trained on or validated with {seen} of the {len(errors)} "
                    "functions, on which its errors are smaller than on new ones",
                    soft_wrap=True,
                )
            write(path, f"errors of {len(errors)} samples, {grid_name(errors)}", data.save, errors)
            continue
        samples = _inputs(problem, path, dim)
        if at is None:
            arrays = _arrays(samples, _outputs(model, path, samples, settings.mesh), bars)
            write(path, f"{len(samples)} samples, {grid_name(samples)}", write_arrays, arrays)
            continue
        blocks = _blocks(model, path, samples, at, settings.mesh, console)
        if not is_first():
            collections.deque(blocks, maxlen=0)  # all processes compute
        write(path, f"{len(samples)} samples, {at.size} nodes", _write_blocks, blocks, at, len(samples), bars)
    return written


def _check_apply(settings: Prediction, trained: Trained) -> None:
    """Raises ``ValueError`` if an option is missing, or was given that is for the other kind of models."""
    model = settings.model
    if settings.to is None and trained.run is None:
        raise ValueError(f"{model} is a model without its run: give the folder of the results by --to.")
    if not trained.is_stepper:
        if settings.band and trained.calibrated is None:
            raise ValueError(
                f"--band: {model} has no error bars; `jaxop calibrate {model} --data FILES --to FOLDER` makes a model "
                "that has."
            )
        if settings.band and settings.mesh.domain > 1:
            raise ValueError("--band cannot be computed if devices share the nodes: leave --mesh.domain out.")
        if settings.residuals and (settings.band or settings.at is not None):
            raise ValueError("--residuals compares outputs with the targets in the files: leave --at and --band out.")
        if settings.residuals and settings.mesh != MeshConfig():
            raise ValueError("--residuals computes on one device: leave --mesh out.")
        if settings.targets is not None and not settings.residuals:
            raise ValueError("--targets names what --residuals compares outputs with; predictions need inputs only.")
        defaults = {"steps": None, "every": 1, "dt": None, "states": None, "times": None}
        for name, default in defaults.items():
            if getattr(settings, name) != default:
                raise ValueError(f"--{name} is for runs on trajectories; {model} was trained on pairs of functions.")
        return
    for name in ("band", "residuals", "targets"):
        if getattr(settings, name):
            raise ValueError(f"--{name} is for operators between functions; {model} makes steps in time.")
    if settings.inputs is not None:
        raise ValueError(f"--inputs is for runs on pairs of functions; {model} has --states.")
    if settings.at is not None:
        raise ValueError(f"--at is for runs on pairs of functions; {model} steps from nodes to the same nodes.")
    if settings.steps is None:
        raise ValueError(f"{model} is the run of a stepper: give the number of steps by --steps.")
    check_size(settings.steps, "--steps")
    if settings.dt is not None and not 0 < settings.dt < math.inf:
        raise ValueError(f"--dt must be positive and finite, got {settings.dt}.")


def _sorted(files: Sequence[Path], problem: FileData) -> tuple[list[Path], list[Path]]:
    """Returns files of single samples, those of folders included, and files of several samples.

    If a run was trained on a folder, .npz files without offsets hold one sample.
    """
    has_single_files = problem.train.suffix.lower() not in data.FORMATS
    if not files:
        raise ValueError("there is nothing to predict; name at least one file or folder of input functions.")
    singles, sets = [], []
    for path in files:
        suffix = path.suffix.lower()
        if path.is_dir() and suffix not in data.FORMATS:
            found = files_of(path, (*MESHES, ".npz"))
            if not found:
                raise ValueError(f"{path} has no files of single samples ({', '.join(MESHES)} or .npz).")
            singles += found
        else:
            is_single = suffix in MESHES or (
                suffix == ".npz"
                and has_single_files
                and (problem.offsets is None or not open_archive(path, formats=data.FORMATS).has(problem.offsets))
            )
            (singles if is_single else sets).append(path)
    return singles, sets


def _results(folder: Path, singles: Sequence[Path], sets: Sequence[Path], at: Path | None) -> dict[Path, Path]:
    """Returns the file of the result of each file, which is that of a mesh if its nodes are those of one."""
    results: dict[Path, Path] = {}
    sources: dict[Path, Path] = {}
    for path in [*singles, *sets]:
        is_mesh = (path if at is None or path in sets else at).suffix.lower() in MESHES and path in singles
        result = folder / f"{path.stem}{'.vtu' if is_mesh else '.npz'}"
        if result in sources:
            raise ValueError(f"{sources[result]} and {path} would both be written to {result}; rename one of them.")
        for file, what in ((path, "inputs"), (at, "query points")):
            if file is not None and result.exists() and file.exists() and result.samefile(file):
                raise ValueError(f"{result} would replace the file of the {what}; give another folder by --to.")
        results[path], sources[result] = result, path
    return results


def _inputs(problem: FileData, path: Path | Sequence[Path], dim: int) -> AnySamples:
    with as_options(("inputs", "rule")):
        return problem.of_inputs(path, dim)


def _outputs(model: operators.Standardized, path: Path, samples: AnySamples, mesh: MeshConfig) -> Sequence[np.ndarray]:
    """Returns the outputs for each sample, (k, channels)."""
    ready = _ready(model, path, samples)
    with _named_in_errors(path, samples):
        size = samples_at_once(ready, mesh)
        return list(training.predict(model, ready, batch_size=size, mesh=mesh.make(size)))


def _blocks(
    model: operators.Standardized, path: Path, samples: AnySamples, at: Domain, mesh: MeshConfig, console: "Console"
) -> Iterator[Block]:
    """Returns the outputs at query points, and prints how many there are, every tenth, while they are computed."""
    ready = _ready(model, path, samples)
    with _named_in_errors(path, samples):
        size = samples_at_once(ready, mesh, nodes=at.size)
        blocks = training.predict_at(model, ready, at, batch_size=size, mesh=mesh.make(size))

    def shown() -> Iterator[Block]:
        done, total = 0, len(samples) * at.size
        for chosen, points, outputs in blocks:
            yield chosen, points, outputs
            before, done = done, done + outputs.shape[0] * outputs.shape[1]
            if 10 * before // total < 10 * done // total < 10:
                console.print(f"{path}: {done:,} of {total:,} outputs", soft_wrap=True)

    return shown()


def _ready(model: operators.Standardized, path: Path, samples: AnySamples) -> AnySamples:
    """Returns the samples with domains as the operator takes them.

    Raises:
        ValueError: if they have another dimension or other channels than the operator takes.
    """
    config = model.config
    sizes = {"dimensions": (config.dim, samples.dim), "input channels": (config.in_channels, samples.in_channels)}
    check_sizes(str(path), samples, sizes)
    with _named_in_errors(path, samples):
        return prepared({str(path): samples}, config)[str(path)]


def _residuals(model: operators.Standardized, path: Path, problem: FileData) -> AnySamples:
    """Returns the samples of a file with the absolute errors of the model as their targets."""
    with as_options(("inputs", "targets", "rule")):
        samples = problem.read(path)
    ready = _ready(model, path, samples)
    with _named_in_errors(path, samples):
        errors = training.absolute_residuals(model, ready, batch_size=samples_at_once(ready, MeshConfig()))
    return _with_targets(samples, [np.asarray(errors.sample(i).targets) for i in range(len(errors))])


def _joined(blocks: Iterator[Block], size: int) -> Iterator[np.ndarray]:
    """Yields the outputs of one sample after another at all query points, (size, channels)."""
    parts: list[np.ndarray] = []
    for _, points, outputs in blocks:
        if points.stop - points.start == size:
            yield from outputs
            continue
        parts.append(outputs[0])
        if points.stop == size:
            yield np.concatenate(parts)
            parts = []


def _write_blocks(path: Path, blocks: Iterator[Block], at: Domain, count: int, bars: WithSize | None) -> None:
    """Writes outputs at query points while they are computed; sizes wait for the mean over the domain."""
    first = next(blocks)
    outputs = first[-1]
    names = ("y",) if bars is None else ("y", HALF_WIDTH)
    channels = outputs.shape[2] // len(names)
    sizes: list[np.ndarray] = []
    with writing_blocks(path, at, count, channels, outputs.dtype, names) as append:
        for _, points, values in itertools.chain([first], blocks):
            append(values[..., :channels])
            if bars is None:
                continue
            sizes.append(values[..., channels:])
            if points.stop == at.size:
                append(bars.half_width(np.concatenate(sizes, axis=1), at), HALF_WIDTH)
                sizes.clear()


@contextlib.contextmanager
def _named_in_errors(path: Path, samples: AnySamples) -> Iterator[None]:
    with as_options(("rule",)):
        try:
            yield
        except (ValueError, TypeError, NotImplementedError) as error:
            if str(path) in str(error):
                raise
            raise type(error)(f"{path} ({grid_name(samples)}): {error}") from error


def _arrays(samples: AnySamples, outputs: Sequence[np.ndarray], bars: WithSize | None) -> dict[str, Any]:
    """Returns the arrays of a file of predictions, and of their half-widths."""
    if bars is None:
        return arrays_of(_with_targets(samples, outputs))
    if isinstance(samples, RaggedSamples):
        pairs = [bars.divided(output, samples.sample(i).target_domain) for i, output in enumerate(outputs)]
        predictions, widths = ([pair[k] for pair in pairs] for k in range(2))
    else:
        predictions, widths = map(list, bars.divided(np.stack(outputs), samples.target_domain))
    return arrays_of(_with_targets(samples, predictions)) | {HALF_WIDTH: arrays_of(_with_targets(samples, widths))["y"]}


def _with_targets(samples: AnySamples, outputs: Sequence[np.ndarray]) -> AnySamples:
    if not isinstance(samples, RaggedSamples):
        return dataclasses.replace(samples, targets=np.stack(outputs))
    pairs = (samples.sample(i) for i in range(len(samples)))
    return RaggedSamples([dataclasses.replace(one, targets=output) for one, output in zip(pairs, outputs, strict=True)])


def _fields(
    output: np.ndarray, domain: Domain, targets: str | Sequence[str], bars: WithSize | None
) -> dict[str, np.ndarray]:
    """Returns the channels of the outputs by the names of the targets, and those of their half-widths."""
    if bars is None:
        return _named(output, targets)
    prediction, width = bars.divided(output, domain)
    return _named(prediction, targets) | _named(width, targets, f"_{HALF_WIDTH}")


def _named(output: np.ndarray, targets: str | Sequence[str], suffix: str = "") -> dict[str, np.ndarray]:
    """Returns the channels of a function by the names of the targets."""
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    if len(names) == output.shape[1]:
        return {name + suffix: channel for name, channel in zip(names, output.T, strict=True)}
    return {"+".join(names) + suffix: output}
