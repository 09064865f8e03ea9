"""Plan of an experiment: memory, messages and work of its training step on devices that you need not have."""

import collections
import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from jaxop import training
from jaxop.data import DataSource
from jaxop.data.groups import groups_of, read_batch
from jaxop.data.source import batch_parts, is_shared
from jaxop.experiments.experiment import AnyExperiment, DynamicsExperiment
from jaxop.experiments.problems import FileData
from jaxop.experiments.series import SeriesData
from jaxop.experiments.sets import AnyProblem, SeriesProblem
from jaxop.experiments.task import make_task
from jaxop.experiments.terminal import make_console, needs_extra
from jaxop.operators import OperatorConfig
from jaxop.training.optimizer import Tree

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def plan(
    experiment: AnyExperiment, topology: str, *, name: str = "step", console: "Console | None" = None
) -> training.StepPlan:
    """Compiles the training step of an experiment for a topology, prints what it needs, and returns the plan.

    One sample of generated data is made, in a directory that is removed afterwards; files are read. If each sample has
    its own nodes, the plan is that of the bucket with the most nodes.

    Args:
        experiment: data, operator, training and mesh.
        topology: see `jaxop.training.Topology`.
        name: title of the table.
        console: destination of the table; None writes to stdout.

    Raises:
        ValueError: if the topology is unknown, or the mesh does not fit it or the batch.
        MemoryError: if the compiler finds that the step does not fit into the memory of a device.
        ImportError: if a package of the extras ``scripts`` or ``plan`` is not installed.
    """
    console = make_console() if console is None else console
    found, settings = training.Topology.find(topology), experiment.training
    mesh = experiment.mesh.make(settings.batch_size // settings.accumulate, found.devices)
    with tempfile.TemporaryDirectory() as cache:
        least = dataclasses.replace(experiment, data=_least(experiment))
        made = make_task(least, least.data.load(Path(cache)))
        model = nnx.eval_shape(made.make)
        batch = _of_size(_largest(made.train, settings.batch_size), settings.batch_size)
    console.print(f"{name}: compiling for {mesh.size} of {len(found.devices)} devices", style="bold")
    result = training.plan_step(model, batch, settings, mesh=mesh, chip=found.chip, loss=made.loss)
    console.print(_table(result))
    return result


def _largest(train: DataSource, batch_size: int) -> Any:
    """Returns a training batch of one item, from the bucket with the most nodes, with its padding."""
    found = [read_batch(group.source, np.arange(1), seed=0, step=0) for group in groups_of(train, batch_size, "train")]
    return max(found, key=lambda batch: sum(leaf.size for leaf in jax.tree.leaves(batch)))


@contextlib.contextmanager
def without_accelerator(topology: str) -> Iterator[None]:
    """Keeps JAX from starting the accelerators of this machine, and gives it as many CPU devices as are planned for.

    If JAX has started before, its devices stay as they are, and `jaxop.training.Topology.find` counts them.
    """
    kind, _, count = topology.partition(":")
    before = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_platforms", "cpu")
    try:
        if kind == "cpu" and count.isdecimal():
            with contextlib.suppress(RuntimeError):  # JAX has started
                jax.config.update("jax_num_cpu_devices", int(count))
        yield
    finally:
        jax.config.update("jax_platforms", before)


def write_json(path: Path, result: training.StepPlan) -> None:
    """Writes all figures of a plan as JSON."""
    path.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")


def _least(experiment: AnyExperiment) -> AnyProblem:
    """Returns the problem with as few samples and grids as show the shapes; files have the samples that they have."""
    problem = experiment.data
    names = {field.name for field in dataclasses.fields(problem)}
    if isinstance(problem, FileData | SeriesData):
        return problem
    least = {"samples": 1, "valid_samples": 1, "test_samples": 1, "warmup": 0}
    less: dict[str, Any] = {name: value for name, value in least.items() if name in names}
    if "grids" in names and isinstance(experiment.model, OperatorConfig):
        less["grids"] = ()
    problem = dataclasses.replace(problem, **less)
    if isinstance(experiment, DynamicsExperiment) and isinstance(problem, SeriesProblem):
        return problem.lasting(1, experiment.stepping.history)
    return problem


def _of_size(batch: Tree, size: int) -> Tree:
    """Returns the shapes of a batch of many samples, from a batch of one."""
    parts, structure = batch_parts(batch)

    def repeated(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)

    large = [part if is_shared(part) else jax.tree.map(repeated, part) for part in parts]
    return jax.tree.unflatten(structure, large)


def _table(result: training.StepPlan) -> "Table":
    with needs_extra("a table of figures"):
        from rich.table import Table
    table = Table(show_header=False)
    axes = " × ".join(f"{name} {size}" for name, size in result.mesh.items())
    table.add_row("devices", f"{axes} ({result.device})")
    memory = {
        "parameters": result.parameters,
        "optimiser": result.optimizer,
        "rest of the state": result.other,
        "batch": result.batch,
        "state and batch in the layout of the device": result.arguments,
        "activations and other temporaries": result.temporaries,
    }
    for name, size in memory.items():
        table.add_row(name, _bytes(size))
    table.add_row("memory in all", _share(result))
    table.add_section()
    for row in _messages(result):
        table.add_row(*row)
    table.add_row("floating-point operations", f"{result.operations:.3g}")
    table.add_row("read from and written to memory", _bytes(result.bytes_moved))
    if result.step_seconds is not None:
        table.add_section()
        for name, seconds in result.seconds.items():
            table.add_row(f"time of {name}, at least", _seconds(seconds))
        table.add_row("estimate of a step", f"{_seconds(result.step_seconds)}, bound by {result.bound}")
    return table


def _share(result: training.StepPlan) -> str:
    if result.chip is None:
        return _bytes(result.total)
    return f"{_bytes(result.total)} of {_bytes(result.chip.memory)} ({result.total / result.chip.memory:.1%})"


def _messages(result: training.StepPlan) -> list[tuple[str, str]]:
    """Returns a row for every kind of messages."""
    counts: Mapping[str, int] = collections.Counter()
    sizes, sent = collections.Counter(), collections.Counter()
    for message in result.messages:
        counts[message.kind] += message.count
        sizes[message.kind] += message.count * message.size
        sent[message.kind] += round(message.sent)
    rows = [(kind, f"{counts[kind]} of {_bytes(sizes[kind])} in all; sent {_bytes(sent[kind])}") for kind in counts]
    return rows or [("messages between devices", "none")]


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} GiB" if count < 1000 else f"{count:,.0f} GiB"


def _seconds(count: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e-6:.3g} µs"
