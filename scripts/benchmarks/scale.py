"""Training steps on several devices: memory, messages and exactness, and the same for TPU slices ahead of time."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

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
from jaxop.training._program import Program
from jaxop.training.mesh import check_mesh, distribute, format_mesh

ABOUT = {
    "scale": About(
        "Training steps on several devices",
        "All figures are those of compiled programs; no row measures speed. The first table runs one training step of"
        " small operators on eight devices that share this processor. Memory and messages are those of one device. "
        "The last column is the largest difference from the gradient of one device, divided by the gradient's largest"
        ' entry. The axis "model" divides arrays of at least 65,536 numbers and copies smaller ones, so that the '
        "state of this small FANO is copied. The other tables are compiled ahead of time for slices of TPU v5e: the "
        "estimate of a step is that of `jaxop plan`, the longer of products and memory traffic by the peak figures of"
        " the chip, and then the messages. It leaves out the latency of messages, which grows with the slice, and "
        "assumes that all links carry them at once. FNO has four layers of width 32; the others have two layers, FANO"
        " of width 32, TNO and FLARE (a latent neural operator with 64 latents) of width 128. In the second table the"
        " samples of a chip are fixed, and the weak efficiency is the estimate of the first slice divided by that of "
        "the slice. In the third table the chips of a slice share the nodes of one function, and the nodes grow with "
        "the chips. Attention is quadratic: each of p chips meets its own nodes with those of all p, so a step takes "
        "about p times as long. The efficiency therefore compares the time of one chip per pair of nodes. The last "
        "table is one function on a million nodes.",
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
        1, 1, width=32, heads=4, layers=2, feedforward=64, patches=4, modes=2, reference=SIDE
    ),
    "TNO": operators.TransformerNeuralOperatorConfig(1, 1, dim=2, width=64, heads=4, layers=2, feedforward=1024),
    "FLARE": operators.LatentNeuralOperatorConfig.flare(1, 1, dim=2, width=64, heads=4, layers=2, feedforward=1024),
}
"""Operators of the first table; each has arrays that are large enough to be divided."""

FULL: Mapping[str, operators.OperatorConfig] = {
    "FNO": operators.FourierNeuralOperatorConfig(1, 1, width=32, layers=4, modes=12, reference=64),
    "FANO": operators.FourierAttentionNeuralOperatorConfig(
        1, 1, width=32, heads=8, layers=2, feedforward=128, patches=2, modes=8, reference=64
    ),
    "TNO": operators.TransformerNeuralOperatorConfig(1, 1, dim=2, layers=2),
    "FLARE": operators.LatentNeuralOperatorConfig.flare(1, 1, dim=2, layers=2),
}
"""Operators of the other tables: those of Darcy flow, and the published TNO, FANO, TNO and FLARE with two layers only.

Layers are compiled one by one, so that more of them take longer to compile and hardly change the ratios.
"""


WORK = {"FNO": (16, 64), "FANO": (16, 64), "TNO": (4, 32), "FLARE": (4, 64)}
"""Functions on each chip in the second table, and the nodes along each side of their grid."""


def main(
    slices: tuple[str, ...] = SLICES,
    names: tuple[str, ...] = tuple(FULL),
    local_nodes: int = 4096,
    side: int = 1000,
    large: str = "v5e:4x4",
    jobs: int = 2,
) -> None:
    """Prints the tables; every program is compiled in a process of its own.

    Args:
        slices: topologies, from small to large; see `jaxop.training.Topology`.
        names: operators of the first and the second table.
        local_nodes: nodes on each chip in the third table.
        side: nodes along each side of the grid of the last table.
        large: the topology of the last table.
        jobs: processes at once.
    """
    for name in names:
        check_name(name, "names", FULL)
    with without_accelerator("tpu"):
        chips = {name: len(training.Topology.find(name).devices) for name in (*slices, large)}  # fails at once
    with ThreadPoolExecutor(jobs) as pool:
        tables = [devices_table(names), data_table(names, slices)]
        tables += [
            domain_table({name: chips[name] for name in slices}, local_nodes),
            large_table(large, chips[large], side),
        ]
        longest_first = [[pool.submit(measured_by, "run.py", *call) for call in t.calls] for t in reversed(tables)]
        for table, futures in zip(tables, reversed(longest_first), strict=True):
            print_header(*table.titles)
            for row in table.rows([future.result() for future in futures]):
                print_row(*row)


class Table(NamedTuple):
    """A table of what processes have measured.

    Attributes:
        titles: of its columns.
        calls: arguments of run.py, whose results are the figures.
        rows: returns the rows of the table from the results.
    """

    titles: tuple[str, ...]
    calls: list[tuple[str, ...]]
    rows: Callable[[list[Any]], list[list[str]]]


def devices_table(names: Sequence[str]) -> Table:
    """Returns the table of fake devices."""

    def rows(results: list[Any]) -> list[list[str]]:
        return [
            [
                f"{name}, {SIDE}²",
                row["mesh"],
                *(size_of(row[key]) for key in ("state", "batch", "temporaries")),
                messages_of(row["messages"]),
                f"{row['difference']:.1e}",
            ]
            for name, found in zip(names, results, strict=True)
            for row in found
        ]

    titles = ("operator", "mesh", "state", "batch", "temporaries", "messages of a device", "difference of the gradient")
    return Table(titles, [("scale-devices", "--name", name) for name in names], rows)


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
    messages = Program(program.as_text() or "", mesh.size).messages
    row = {
        "mesh": format_mesh(mesh),
        "state": bytes_of(state),
        "batch": bytes_of(batch),
        "temporaries": memory.temp_size_in_bytes,
        "messages": [{"kind": m.kind, "count": m.count, "sent": m.sent} for m in messages],
    }
    after, _ = program(state, batch)
    return row, jax.device_get(after.opt_state.trace)


def bytes_of(tree: object) -> int:
    """Returns the bytes of arrays on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def plan(name: str, topology: str, samples: int, side: int, domain: int = 1) -> None:
    """Prints the plan of a training step as one line of JSON; its data exist as shapes only.

    Args:
        name: of the operator, a key of `FULL`.
        topology: the devices.
        samples: functions on each device, or on the devices that share the nodes of a function.
        side: nodes along each side of the grid.
        domain: devices that share the nodes of a function.
    """
    check_name(name, "name", FULL)
    with without_accelerator(topology):
        found = training.Topology.find(topology)
        batch_size = samples * (len(found.devices) // domain)
        grid = domains.box((side, side), rule="midpoint")
        fields = jax.ShapeDtypeStruct((batch_size, grid.size, 1), jnp.float32)
        numbers = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        batch = Batch(fields, fields, grid, None, None, numbers)  # pyright: ignore[reportArgumentType]
        model = nnx.eval_shape(lambda: operators.build(FULL[name], rngs=nnx.Rngs(0)))
        settings = training.TrainingConfig(batch_size=batch_size)
        mesh = training.MeshConfig(domain=domain).make(batch_size, found.devices)
        result = training.plan_step(model, batch, settings, mesh=mesh, chip=found.chip)
    print(json.dumps(result.to_json()))


def plan_call(name: str, topology: str, samples: int, side: int, domain: int = 1) -> tuple[str, ...]:
    """Returns the command line of `plan`."""
    options = {"name": name, "topology": topology, "samples": samples, "side": side, "domain": domain}
    return ("scale-plan", *(text for key, value in options.items() for text in (f"--{key}", str(value))))


PLAN_TITLES = ("memory of a chip", "sent by a chip", "products", "memory traffic", "messages", "estimate of a step")


def cells_of(step: dict[str, Any]) -> list[str]:
    """Returns the cells of a plan below `PLAN_TITLES`."""
    memory = f"{size_of(step['total'])} ({step['total'] / step['chip']['memory']:.1%})"
    times = [time_of(step["seconds"][name]) for name in ("products", "memory", "messages")]
    return [memory, messages_of(step["messages"]), *times, time_of(step["step_seconds"])]


def data_table(names: Sequence[str], slices: Sequence[str]) -> Table:
    """Returns the table of chips that share the samples of a batch."""

    def rows(results: list[Any]) -> list[list[str]]:
        found = []
        for start, name in enumerate(names):
            of_name = results[start * len(slices) : (start + 1) * len(slices)]
            for topology, step in zip(slices, of_name, strict=True):
                efficiency = of_name[0]["step_seconds"] / step["step_seconds"]
                samples, side = WORK[name]
                found.append([f"{name}, {samples} × {side}²", topology, *cells_of(step), f"{efficiency:.1%}"])
        return found

    calls = [plan_call(name, topology, *WORK[name]) for name in names for topology in slices]
    return Table(("operator, samples of a chip", "slice", *PLAN_TITLES, "weak efficiency"), calls, rows)


def domain_table(chips: Mapping[str, int], local_nodes: int) -> Table:
    """Returns the table of chips that share the nodes of one function, on slices with these numbers of chips."""
    sides = {topology: round((local_nodes * count) ** 0.5) for topology, count in chips.items()}

    def rows(results: list[Any]) -> list[list[str]]:
        found, first = [], None
        for (topology, count), step in zip(chips.items(), results, strict=True):
            nodes = sides[topology] ** 2
            of_pair = step["step_seconds"] * count / nodes**2
            first = of_pair if first is None else first
            last = [f"{1e12 * of_pair:.3g} ps", f"{first / of_pair:.1%}"]
            found.append([f"{nodes:,}", topology, *cells_of(step), *last])
        return found

    calls = [plan_call("TNO", topology, 1, sides[topology], count) for topology, count in chips.items()]
    return Table(("TNO, nodes", "slice", *PLAN_TITLES, "chip time per pair of nodes", "weak efficiency"), calls, rows)


def large_table(topology: str, chips: int, side: int) -> Table:
    """Returns the table of one large function."""

    def rows(results: list[Any]) -> list[list[str]]:
        return [[f"{side**2:,}", topology, *cells_of(results[0])]]

    return Table(("TNO, nodes", "slice", *PLAN_TITLES), [plan_call("TNO", topology, 1, side, chips)], rows)


def messages_of(messages: Iterable[Mapping[str, Any]]) -> str:
    """Returns the number of messages of each kind and the bytes that a device sends with them."""
    counts, sent = Counter(), Counter()
    for message in messages:
        counts[message["kind"]] += message["count"]
        sent[message["kind"]] += message["sent"]
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
