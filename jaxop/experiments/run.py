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

from jaxop import training
from jaxop.experiments.experiment import AnyExperiment, DynamicsExperiment
from jaxop.experiments.problems import FileData
from jaxop.experiments.series import SeriesData
from jaxop.experiments.sets import check_directory
from jaxop.experiments.settings import check_memory, parameters
from jaxop.experiments.task import Task, changed_settings, make_task
from jaxop.experiments.terminal import as_options, make_console, needs_extra
from jaxop.operators import OperatorConfig
from jaxop.training import to_json
from jaxop.training._files import local_path
from jaxop.training.members import check_members
from jaxop.training.mesh import format_mesh
from jaxop.training.nodes import node_shares
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
    if settings.members > 1 and isinstance(experiment, DynamicsExperiment):
        raise ValueError(
            f"--training.members {settings.members}: members are operators between functions, and {name} trains a "
            "stepper; train several one by one with other seeds, --training.seed."
        )
    console.print(f"{name}: reading or generating data", style="bold")
    if isinstance(experiment.model, OperatorConfig):  # before data are made
        _check_fits(experiment.model, experiment.mesh, settings.members)
    is_files = isinstance(experiment.data, FileData | SeriesData)
    options = {field.name for field in dataclasses.fields(experiment.data)} if is_files else set()
    try:
        with as_options(sorted(options), "data."):
            sets = experiment.data.load(experiment.cache)
    except FileNotFoundError as error:
        if experiment.resume and is_files:
            error.add_note("(If a file has moved, name it again: --data.train FILE, --data.valid FILE.)")
        raise
    with as_options(options & {"rule"}, "data."):
        made = make_task(experiment, sets)
    if not isinstance(experiment.model, OperatorConfig):
        _check_fits(made.operator, experiment.mesh, settings.members)
    with _room_for_the_model(experiment.mesh):
        model = made.make()
    check_members(model, settings, mesh)
    with as_options(options & {"rule"}, "data."):
        made.check(model)
    if experiment.run_dir is None:
        directory = Path(from_first(lambda path=directory: str(new_directory(path)), "the directory of the run"))
    console.print(_summary(directory, made, parameters(model), settings.members, _sharing(mesh, settings, model)))
    valid = made.valid
    if experiment.resume and len(known := training.load_run(directory).config["valid"]) == len(valid):
        valid = dict(zip(known, valid.values(), strict=True))  # a file may have been renamed
    loggers: list[training.Logger] = [training.TensorBoard()] if experiment.tensorboard else []
    if experiment.wandb is not None:
        loggers.append(training.WeightsAndBiases(experiment.wandb))
    try:
        result = training.fit(
            model,
            made.train,
            valid,
            experiment.training,
            run_dir=directory,
            loss=made.loss,
            settings=made.record,
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
    made.report(
        finished,
        finished.restore(model, mesh=experiment.mesh.one_copy()),
        name="test",
        checkpoint=finished.step(),
        console=console,
    )
    console.print(f"checkpoints: {directory / 'checkpoints'}/", soft_wrap=True)
    return directory


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


def _check_fits(config: OperatorConfig, mesh: training.MeshConfig, members: int) -> None:
    """Raises an error if the devices cannot hold the members, or cannot share its nodes although the mesh says so."""
    check_memory(config, shards=mesh.model, members=members)
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


def _summary(directory: Path, made: Task, count: int, members: int, devices: str) -> "Table":
    with needs_extra("a table of settings"):
        from rich.table import Table
    table = Table(show_header=False)
    table.add_row("run", str(directory))
    for use, words in made.about.items():
        table.add_row(use, words)
    table.add_row("operator", type(made.operator).__name__.removesuffix("Config"))
    table.add_row("settings", changed_settings(made.operator))
    if made.chosen:
        options = ", ".join(f"--model.{field.replace('_', '-')} {value}" for field, value in made.chosen.items())
        table.add_row("chosen to suit the grids", options)
    each = f" of each of {members} members" if members > 1 else ""
    table.add_row("parameters", f"{count:,}{each}")
    table.add_row("devices", devices)
    return table
