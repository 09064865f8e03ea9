"""Training of an experiment: the run, its report, and its directory."""

import contextlib
import dataclasses
import datetime
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from flax import nnx

from jaxop import data, operators, training
from jaxop.experiments import report
from jaxop.experiments.experiment import AnyExperiment
from jaxop.experiments.problems import FileData
from jaxop.experiments.record import describe
from jaxop.experiments.sets import AnySamples, Sets, check_directory, grid_name
from jaxop.experiments.settings import check_memory, parameters, prepared
from jaxop.experiments.terminal import make_console, needs_extra
from jaxop.operators import OperatorConfig
from jaxop.training import to_json
from jaxop.training._files import local_path
from jaxop.training.mesh import format_mesh
from jaxop.training.nodes import node_shares
from jaxop.training.precision import config_in_precision
from jaxop.training.processes import check_same, from_first, is_first
from jaxop.training.shards import divided_share, shards

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def train(experiment: AnyExperiment, *, name: str = "run", console: "Console | None" = None) -> Path:
    """Trains an operator, evaluates it on the test sets, and stores everything in a run directory.

    Args:
        experiment: data, operator, training.
        name: beginning of the directory's name if ``experiment.run_dir`` is None.
        console: destination of the messages on progress; None writes to stdout.

    Returns:
        The run directory.

    Raises:
        ValueError: if the operator cannot run on the data or does not fit into memory, if the devices of an axis
            "domain" cannot share its patches, or if the settings differ from those of the run that is resumed.
        NotImplementedError: if the mesh has an axis "domain", and the operator needs all nodes on one device.
        FileExistsError: if the directory holds a run and ``experiment.resume`` is False.
        OSError: if a file cannot be read or a directory cannot be written.
        ImportError: if a package of the extra ``scripts`` is not installed.
    """
    with experiment.cluster.joined():
        return _train(experiment, name, make_console() if console is None else console)


def _train(experiment: AnyExperiment, name: str, console: "Console") -> Path:
    check_same({"resume": experiment.resume, "run_dir": to_json(experiment.run_dir), "mesh": to_json(experiment.mesh)})
    directory = Path(from_first(lambda: str(_run_dir(name, experiment)), "the name of the run"))
    settings = experiment.training
    mesh = experiment.mesh.make(settings.batch_size // settings.accumulate)
    console.print(f"{name}: reading or generating data", style="bold")
    if isinstance(experiment.model, OperatorConfig):  # before data are made
        _check_fits(experiment.model, experiment.mesh)
    try:
        sets = experiment.data.load(experiment.cache)
    except FileNotFoundError as error:
        if experiment.resume and isinstance(experiment.data, FileData):
            error.add_note("(If a file has moved, name it again: --data.train FILE, --data.valid FILE.)")
        raise
    if isinstance(experiment.model, OperatorConfig):
        config, chosen = experiment.model, {}
    else:
        config, chosen = experiment.model.for_data(sets.train, [*sets.valid.values(), *sets.test.values()])
        _check_fits(config, experiment.mesh)
    train = prepared({"training": sets.train}, config)["training"]
    sets = Sets(train, prepared(sets.valid, config), prepared(sets.test, config), sets.random_nodes)
    config = config_in_precision(config, settings.precision)
    with _room_for_the_model(experiment.mesh):
        model = build(config, sets.train, seed=experiment.training.seed)
    report.check(model, sets.test)
    if experiment.run_dir is None:
        directory = Path(from_first(lambda path=directory: str(new_directory(path)), "the directory of the run"))
    console.print(_summary(directory, sets, config, chosen, parameters(model), _sharing(mesh, settings, model)))
    valid = sets.valid
    if experiment.resume and len(known := training.load_run(directory).config["valid"]) == len(valid):
        valid = dict(zip(known, valid.values(), strict=True))  # a file may have been renamed
    loggers: list[training.Logger] = [training.TensorBoard()] if experiment.tensorboard else []
    if experiment.wandb is not None:
        loggers.append(training.WeightsAndBiases(experiment.wandb))
    try:
        result = training.fit(
            model,
            sets.drawn,
            valid,
            experiment.training,
            run_dir=directory,
            settings=describe(experiment.data, config, sets.train),
            resume=experiment.resume,
            loggers=loggers,
            mesh=mesh,
        )
    finally:
        if experiment.run_dir is None and is_first():
            with contextlib.suppress(OSError):
                directory.rmdir()  # nothing was written
    console.print(f"{result.stopped} after step {int(result.state.step)}, {result.seconds:.0f} s of training")
    if result.stopped == "terminated":
        console.print(f"saved; continue with: jaxop resume {directory}")
        return directory
    finished = training.load_run(directory)
    report.write_report(
        finished,
        finished.restore(model, mesh=experiment.mesh.one_copy()),
        sets.test,
        name="test",
        checkpoint=finished.step(),
        console=console,
        mesh=experiment.mesh,
        same_functions=not isinstance(experiment.data, FileData),
    )
    console.print(f"checkpoints: {directory / 'checkpoints'}/", soft_wrap=True)
    return directory


def build(config: OperatorConfig, train: AnySamples, *, seed: int) -> operators.Standardized:
    """Returns the operator in physical units, standardised by the statistics of the training set.

    Args:
        config: the config of the operator.
        train: the training samples.
        seed: the seed of the parameters.
    """
    return operators.Standardized(operators.build(config, rngs=nnx.Rngs(seed)), **data.standardization(train))


def new_directory(wanted: Path) -> Path:
    """Makes a new directory: the wanted one or, if it exists, one with a number appended to its name."""
    names = itertools.chain([wanted.name], (f"{wanted.name}-{number}" for number in itertools.count(2)))
    while True:
        directory = wanted.with_name(next(names))
        with contextlib.suppress(FileExistsError):
            directory.mkdir(parents=True)
            return directory


def _run_dir(name: str, experiment: AnyExperiment) -> Path:
    """Returns the directory of the run; raises an error for a wrong directory before any data are made."""
    directory = experiment.run_dir
    if experiment.resume:
        if directory is None:
            raise ValueError("--resume needs --run-dir, the directory of the run to continue.")
        training.load_run(directory)
        return directory
    if directory is None:
        directory = Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    elif (local_path(directory, "run_dir") / "config.json").exists():
        raise FileExistsError(
            f"{directory} already holds a run; continue it with `jaxop resume {directory}`, or give another --run-dir."
        )
    check_directory("--run-dir", directory)
    return directory


def _check_fits(config: OperatorConfig, mesh: training.MeshConfig) -> None:
    """Raises an error if the devices cannot hold the operator, or cannot share its nodes although the mesh says so."""
    check_memory(config, shards=mesh.model)
    if mesh.domain > 1:
        config.check_shares_nodes(mesh.domain)


def _room_for_the_model(mesh: training.MeshConfig) -> contextlib.AbstractContextManager[object]:
    """Returns a context in which a model is built in the host's memory if one device does not hold a whole copy.

    Raises:
        ValueError: if JAX was told to leave out the CPU.
    """
    if mesh.model == 1:
        return contextlib.nullcontext()
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(
            f"mesh.model={mesh.model} builds the operator in the host's memory, which needs JAX's CPU platform; set "
            f"the environment variable JAX_PLATFORMS={platforms},cpu, got {platforms!r}."
        ) from error
    return jax.default_device(host)


def _sharing(mesh: jax.sharding.Mesh, settings: training.TrainingConfig, model: nnx.Module) -> str:
    """Returns one line on the devices that share a batch and the copies of the state."""
    found, nodes = jax.devices(), node_shares(mesh)
    kind = found[0].device_kind
    if jax.process_count() > 1:
        kind += f", {jax.process_count()} processes"
    samples = settings.batch_size * nodes // mesh.size
    line = f"{mesh.size} of {len(found)} ({kind}), {samples} samples of each batch on a device"
    if nodes > 1:
        line += f", and 1/{nodes} of the nodes of each"
    if shards(mesh) == 1:
        return line
    share = divided_share(nnx.state(model, nnx.Param), mesh)
    return f"{line}; mesh {format_mesh(mesh)}: {share:.0%} of the state is divided by {shards(mesh)}"


def _summary(
    directory: Path, sets: Sets, config: OperatorConfig, chosen: dict[str, int], count: int, devices: str
) -> "Table":
    with needs_extra("a table of settings"):
        from rich.table import Table
    table = Table(show_header=False)
    table.add_row("run", str(directory))
    drawn = "" if sets.random_nodes is None else f", {sets.random_nodes} random nodes in a step"
    table.add_row("training", f"{len(sets.train)} samples on {grid_name(sets.train)}{drawn}")
    for kind, part in (("validation", sets.valid), ("test", sets.test)):
        table.add_row(kind, ", ".join(f"{name} ({len(samples)})" for name, samples in part.items()))
    table.add_row("operator", type(config).__name__.removesuffix("Config"))
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    changed = [f"{name} {value}" for name, value in settings.items() if value != defaults[name]]
    table.add_row("settings", ", ".join(changed))
    if chosen:
        options = ", ".join(f"--model.{field.replace('_', '-')} {value}" for field, value in chosen.items())
        table.add_row("chosen to suit the grids", options)
    table.add_row("parameters", f"{count:,}")
    table.add_row("devices", devices)
    return table
