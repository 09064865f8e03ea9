"""Training steps on several devices: memory, messages and exactness, and the same for TPU slices ahead of time."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.timing import measured_by
from jaxop import data, domains, operators, training
from jaxop._validation import check_name
from jaxop.data import Batch
from jaxop.experiments.plan import without_accelerator
from jaxop.training._program import Message, Program
from jaxop.training.mesh import check_mesh, distribute, format_mesh

ABOUT = {
    "scale": About(
        "Training steps on several devices",
        "All figures are those of compiled programs; no row measures speed. The first table runs one training step of "
        "small operators on eight devices that share this processor. Memory and messages are those of one device. The "
        "last column is the largest difference from the gradient of one device, divided by the gradient's largest "
        "entry. The other tables are compiled ahead of time for slices of TPU v5e: the estimate of a step is that of "
        "`jaxop plan`, the longer of products and memory traffic by the peak figures of the chip, and then the "
        "messages. It leaves out the latency of messages, which grows with the slice, and messages that travel during "
        "the computation. In the second table the work of a chip is fixed, and the weak efficiency is the estimate of "
        "the first slice divided by that of the slice. In the third table the devices of a slice share the nodes of "
        "one function, and the nodes grow with the devices. Attention is quadratic: with p devices each meets p times "
        "the pairs of nodes, so a step takes about p times as long, and the efficiency compares the chip-seconds of a "
        "pair of nodes. The last table is one function on a million nodes.",
        packages=("libtpu",),
    ),
}

SLICES = ("v5e:2x2", "v5e:4x4", "v5e:16x16")

FAKE = {"one": (1, 1, 1), "data": (8, 1, 1), "data, model": (2, 4, 1), "data, domain": (2, 1, 4)}
"""Meshes of fake devices: the sizes of "data", "model" and "domain"."""

FAKE_DEVICES = 8
SIDE = 16

SMALL: Mapping[str, operators.OperatorConfig] = {
    "FNO": operators.FourierNeuralOperatorConfig(1, 1, width=32, layers=2, modes=8, reference=SIDE),
    "FANO": operators.FourierAttentionNeuralOperatorConfig(
        1, 1, width=32, heads=4, layers=2, feedforward=64, patches=2, modes=4, reference=SIDE
    ),
    "TNO": operators.TransformerNeuralOperatorConfig(1, 1, dim=2, width=64, heads=4, layers=2, feedforward=1024),
}
"""Operators of the first table; each has arrays that are large enough to be divided."""

FULL: Mapping[str, operators.OperatorConfig] = {
    "FNO": operators.FourierNeuralOperatorConfig(1, 1, width=32, layers=4, modes=12, reference=64),
    "FANO": operators.FourierAttentionNeuralOperatorConfig(
        1, 1, width=32, heads=8, layers=6, feedforward=128, patches=2, modes=8, reference=64
    ),
    "TNO": operators.TransformerNeuralOperatorConfig(1, 1, dim=2),
}
"""Operators of the other tables: those of the experiments with Darcy flow, and the published TNO."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Samples and nodes of a step.

    Attributes:
        samples: functions on each device of "data".
        side: nodes along each side of the grid.
    """

    samples: int
    side: int


WORK = {"FNO": Work(16, 64), "FANO": Work(16, 64), "TNO": Work(4, 32)}
"""What each chip has to do in the second table."""


def main(
    slices: tuple[str, ...] = SLICES,
    names: tuple[str, ...] = tuple(FULL),
    local_nodes: int = 4096,
    side: int = 1000,
    large: str = "v5e:4x4",
) -> None:
    """Prints the tables.

    Args:
        slices: topologies, from small to large; see `jaxop.training.Topology`.
        names: operators of the first and the second table.
        local_nodes: nodes on each chip in the third table.
        side: nodes along each side of the grid of the last table.
        large: the topology of the last table.
    """
    for name in names:
        check_name(name, "names", FULL)
    with without_accelerator("tpu"):
        found = {name: training.Topology.find(name) for name in (*slices, large)}  # fails before hours of compilation
        devices_table(names)
        data_table(names, [found[name] for name in slices])
        domain_table([found[name] for name in slices], local_nodes)
        million_table(found[large], side)


def devices_table(names: Iterable[str]) -> None:
    """Prints the table of fake devices; every operator is measured in a process of its own."""
    print_header(
        "operator", "mesh", "state", "batch", "temporaries", "messages of one device", "difference of the gradient"
    )
    for name in names:
        for row in measured_by("run.py", "scale-devices", "--name", name):
            sizes = [size_of(row[key]) for key in ("state", "batch", "temporaries")]
            messages = messages_of([Message(**message) for message in row["messages"]])
            print_row(f"{name}, {SIDE}²", row["mesh"], *sizes, messages, f"{row['difference']:.1e}")


def devices(name: str) -> None:
    """Prints one line of JSON with the figures of an operator on every mesh of fake devices.

    Args:
        name: of the operator, a key of `SMALL`.
    """
    check_name(name, "name", SMALL)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", FAKE_DEVICES)
    rows, reference = [], None
    for sizes in FAKE.values():
        if sizes[2] > 1 and name != "TNO":
            continue
        row, gradient = on_devices(SMALL[name], training.MeshConfig(*sizes).make(FAKE_DEVICES))
        reference = gradient if reference is None else reference
        largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(reference))
        differences = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), gradient, reference)
        rows.append(row | {"difference": max(jax.tree.leaves(differences)) / largest})
    print(json.dumps(rows))


def on_devices(
    config: operators.OperatorConfig, mesh: jax.sharding.Mesh
) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Returns the figures of a training step on a mesh of devices that exist, and the gradient of its parameters."""
    optimizer = optax.trace(decay=0.9)  # after one step its state is the gradient
    settings = training.TrainingConfig(batch_size=FAKE_DEVICES)
    shared = check_mesh(mesh)
    model = operators.build(config, rngs=nnx.Rngs(0))
    graphdef, state = training.init_state(model, optimizer, settings, mesh=shared)
    inputs = np.random.default_rng(0).normal(size=(FAKE_DEVICES, SIDE**2, 1)).astype(np.float32)
    grid = domains.box((SIDE, SIDE), rule="midpoint")
    samples = data.Samples(inputs, np.cumsum(inputs, axis=1) / SIDE, grid)
    batch = distribute(samples[np.arange(FAKE_DEVICES)], shared)
    step = cast(jax.stages.Wrapped, training.make_step(graphdef, optimizer, settings, mesh=shared))
    program = step.lower(state, batch).compile()
    memory = program.memory_analysis()
    assert memory is not None  # CPUs report it
    row = {
        "mesh": format_mesh(mesh),
        "state": bytes_of(state),
        "batch": bytes_of(batch),
        "temporaries": memory.temp_size_in_bytes,
        "messages": [dataclasses.asdict(m) for m in Program(program.as_text() or "", mesh.size).messages],
    }
    after, _ = program(state, batch)
    return row, jax.device_get(after.opt_state.trace)


def bytes_of(tree: object) -> int:
    """Returns the bytes of arrays on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def plan(
    config: operators.OperatorConfig, topology: training.Topology, mesh: training.MeshConfig, work: Work
) -> training.StepPlan:
    """Returns the plan of a training step whose data exist as shapes only."""
    sharers = mesh.model * mesh.domain
    batch_size = work.samples * (len(topology.devices) // sharers)
    domain = domains.box((work.side, work.side), rule="midpoint")
    fields = jax.ShapeDtypeStruct((batch_size, domain.size, 1), jnp.float32)
    numbers = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    batch = Batch(fields, fields, domain, None, None, numbers)  # pyright: ignore[reportArgumentType]
    model = nnx.eval_shape(lambda: operators.build(config, rngs=nnx.Rngs(0)))
    settings = training.TrainingConfig(batch_size=batch_size)
    made = mesh.make(batch_size, topology.devices)
    return training.plan_step(model, batch, settings, mesh=made, chip=topology.chip)


PLAN_TITLES = ("memory of a chip", "sent by a chip", "products", "memory traffic", "messages", "estimate of a step")


def cells_of(step: training.StepPlan) -> list[str]:
    """Returns the cells of a plan below `PLAN_TITLES`."""
    assert step.chip is not None
    memory = f"{size_of(step.total)} ({step.total / step.chip.memory:.1%})"
    times = [time_of(step.seconds[name]) for name in ("products", "memory", "messages")]
    return [memory, messages_of(step.messages), *times, time_of(seconds_of_step(step))]


def seconds_of_step(step: training.StepPlan) -> float:
    """Returns the estimate of a plan for a chip."""
    assert step.step_seconds is not None
    return step.step_seconds


def data_table(names: Iterable[str], slices: Iterable[training.Topology]) -> None:
    """Prints the table of chips that share the samples of a batch."""
    print_header("operator, samples of a chip", "slice", *PLAN_TITLES, "weak efficiency")
    for name in names:
        work, first = WORK[name], None
        for topology in slices:
            step = plan(FULL[name], topology, training.MeshConfig(), work)
            seconds = seconds_of_step(step)
            first = seconds if first is None else first
            title = f"{name}, {work.samples} × {work.side}²"
            print_row(title, topology.name, *cells_of(step), f"{first / seconds:.1%}")


def domain_table(slices: Iterable[training.Topology], local_nodes: int) -> None:
    """Prints the table of chips that share the nodes of one function."""
    print_header("TNO, nodes", "slice", *PLAN_TITLES, "chip-seconds per 10⁹ pairs of nodes", "weak efficiency")
    first = None
    for topology in slices:
        count = len(topology.devices)
        work = Work(1, round((local_nodes * count) ** 0.5))
        step = plan(FULL["TNO"], topology, training.MeshConfig(domain=count), work)
        of_pair = seconds_of_step(step) * count / work.side**4
        first = of_pair if first is None else first
        print_row(f"{work.side**2:,}", topology.name, *cells_of(step), f"{1e9 * of_pair:.3g}", f"{first / of_pair:.1%}")


def million_table(topology: training.Topology, side: int) -> None:
    """Prints the table of one large function."""
    print_header("TNO, nodes", "slice", *PLAN_TITLES)
    mesh = training.MeshConfig(domain=len(topology.devices))
    print_row(f"{side**2:,}", topology.name, *cells_of(plan(FULL["TNO"], topology, mesh, Work(1, side))))


def messages_of(messages: Iterable[Message]) -> str:
    """Returns the number of messages of each kind and the bytes that a device sends with them.

    Example: ``"1 all-reduce, 2.0 MB"``.
    """
    counts, sent = Counter(), Counter()
    for message in messages:
        counts[message.kind] += message.count
        sent[message.kind] += message.sent
    return "; ".join(f"{count} {kind}, {size_of(sent[kind])}" for kind, count in counts.items()) or "none"


def size_of(count: float) -> str:
    """Returns a number of bytes with its unit."""
    for unit, scale in (("GB", 2**30), ("MB", 2**20)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 2**10:.1f} kB"


def time_of(seconds: float) -> str:
    """Returns a time with its unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
