"""Devices that programs can be compiled for without having them, and the peak figures of their chips."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from jaxop._validation import check_name, check_type


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of an accelerator chip, as its vendor gives them.

    Attributes:
        name: name of the product.
        products: bfloat16 operations of matrix products per second.
        bandwidth: bytes per second between the chip and its memory.
        memory: bytes of memory.
        links: bytes per second that a chip sends to its neighbours over all links.
    """

    name: str
    products: float
    bandwidth: float
    memory: float
    links: float


# Source: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 1228e9, 32 * 2**30, 300e9),
    "v5e": Chip("TPU v5e", 197e12, 819e9, 16 * 2**30, 200e9),
    "v5p": Chip("TPU v5p", 459e12, 2765e9, 95 * 2**30, 600e9),
    "v6e": Chip("TPU v6e", 918e12, 1638e9, 32 * 2**30, 400e9),
}
"""The chips of the topologies, by the name with which a topology begins."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices for which programs can be compiled, whether or not they are in this machine.

    Attributes:
        name: "CHIP:SIZES", such as "v5e:4x4" or "v5p:2x2x4" with a chip of `CHIPS`, or "cpu:COUNT".
        devices: its devices.
        chip: the figures of a device; None for a CPU.
    """

    name: str
    devices: tuple[jax.Device, ...]
    chip: Chip | None

    @classmethod
    def find(cls, name: str) -> "Topology":
        """Returns the topology of this name.

        Args:
            name: see `Topology`. The compiler for TPUs is the package libtpu, which runs on any x86 machine with Linux
                and needs no TPU. A "cpu" topology takes devices that this process has.

        Raises:
            ValueError: if the name is unknown, or a slice of these sizes does not exist.
            ImportError: if libtpu is not installed.

        Example:
            >>> from jaxop import training
            >>> len(training.Topology.find("cpu:1").devices)
            1
        """
        check_type(name, "topology", str, "a string, such as 'v5e:4x4'")
        kind, _, sizes = name.partition(":")
        check_name(kind, "topology", _EXAMPLES)
        example = _EXAMPLES[kind]
        if not re.fullmatch(r"[1-9]\d*" if kind == "cpu" else r"[1-9]\d*(x[1-9]\d*)+", sizes):
            raise ValueError(f"topology must be a chip and the sizes of a slice, such as {example!r}, got {name!r}.")
        if kind == "cpu":
            devices = jax.devices("cpu")
            if int(sizes) > len(devices):
                raise ValueError(
                    f"topology {name!r} needs {sizes} CPU devices, but this process has {len(devices)}; start it with "
                    f"jax.config.update('jax_num_cpu_devices', {sizes}) before the first computation."
                )
            return cls(name, tuple(devices[: int(sizes)]), None)
        return cls(name, _tpus(name, [int(size) for size in sizes.split("x")]), CHIPS[kind])


_EXAMPLES = {"v4": "v4:2x2x4", "v5e": "v5e:4x4", "v5p": "v5p:2x2x4", "v6e": "v6e:4x4", "cpu": "cpu:8"}


def _tpus(name: str, sizes: list[int]) -> tuple[jax.Device, ...]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"topology {name!r} needs libtpu, the compiler for TPUs, which is not installed; install it with: pip "
            "install 'jaxop[plan]'"
        )
    options: dict[str, Any] = {"chip_config_name": "megacore"} if name.startswith(("v4", "v5p")) else {}
    if math.prod(sizes) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with _described_to_libtpu():
            description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (RuntimeError, ValueError) as error:
        reason, example = str(error).splitlines()[0], _EXAMPLES[name.partition(":")[0]]
        raise ValueError(
            f"libtpu does not make the topology {name!r} ({reason}); sizes are even, as in {example!r}, or all 1."
        ) from error
    return tuple(description.devices)


@contextlib.contextmanager
def _described_to_libtpu() -> Iterator[None]:
    """Tells libtpu, while it starts, what it would otherwise ask a TPU machine, and not to lock the machine's TPUs."""
    wanted = {
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    added = {variable: value for variable, value in wanted.items() if variable not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for variable in added:
            del os.environ[variable]
