"""Results files: what a script prints, in Markdown, below a header that says how it was measured."""

import contextlib
import importlib.metadata
import io
import os
import platform
import re
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import jax

CPUINFO = Path("/proc/cpuinfo")
VERSIONS = ("jax", "jaxlib", "flax", "jaxop")
LIMITS = ("JAX_PLATFORMS", "XLA_FLAGS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that limit what a program may use."""


class About(NamedTuple):
    """The words of a results file.

    Attributes:
        title: the title.
        text: what is compared with what, and how to read the table.
        seeds: stands in the place of the seeds of the command line where the table does not use them.
        packages: distributions that the table compares with, besides those that jaxop needs.
    """

    title: str
    text: str
    seeds: str | None = None
    packages: tuple[str, ...] = ()


def write(path: Path, about: About, command: str, seeds: str, make: Callable[[], object]) -> None:
    """Makes tables and writes what they print to a file, below a header; the file appears when they are complete.

    Args:
        path: the file.
        about: its words.
        command: the command line that makes it.
        seeds: the seeds of the command line.
        make: prints the tables.
    """
    load, begin = os.getloadavg()[0], time.time()
    copy = _Copy(sys.stdout)
    with contextlib.redirect_stdout(copy):
        make()
    facts = {
        "command": f"`{command}`",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(begin)),
        "took": f"{time.time() - begin:.0f} s",
        "processor": ", ".join([processor(CPUINFO.read_text() if CPUINFO.exists() else ""), *accelerators()]),
        "cores": str(os.cpu_count()),
        "load": f"{load:.1f} before the run, {os.getloadavg()[0]:.1f} at its end, itself included",
        "versions": ", ".join(versions(about.packages)),
        "seeds": about.seeds or seeds,
        "limits": "; ".join(limits(about.packages)) or "nothing",
    }
    header = [f"- {name}: {value}" for name, value in facts.items()]
    parts = [
        f"# {about.title}",
        textwrap.fill(about.text, 120, break_on_hyphens=False),
        "\n".join(header),
        copy.text.getvalue().strip(),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def processor(cpuinfo: str) -> str:
    """Returns the model and the widest vector instructions of a processor, from the text of ``/proc/cpuinfo``."""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    name = model[1] if model else platform.machine()
    known = flags[1].split() if flags else []
    vectors = [label for flag, label in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX")) if flag in known]
    return ", ".join([name, *vectors[:1]])


def accelerators() -> list[str]:
    """Returns the names of JAX's devices that are not the processor."""
    return sorted({device.device_kind for device in jax.devices()} - {"cpu"})


def versions(packages: Sequence[str]) -> list[str]:
    """Returns the versions of Python, of what jaxop needs, and of those packages that are installed."""
    names = [*VERSIONS, *filter(is_installed, packages)]
    return [f"Python {platform.python_version()}", *(f"{name} {importlib.metadata.version(name)}" for name in names)]


def limits(packages: Sequence[str]) -> list[str]:
    """Returns what keeps the run from the whole machine or the whole table."""
    found = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    if hasattr(os, "sched_getaffinity") and (usable := len(os.sched_getaffinity(0))) < (os.cpu_count() or 1):
        found.append(f"{usable} cores may be used")
    return found + [f"{name} is not installed and its cells are empty" for name in packages if not is_installed(name)]


def is_installed(package: str) -> bool:
    """Returns whether a distribution is installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class _Copy(io.TextIOBase):
    """Writes to a stream and keeps a copy of the text."""

    def __init__(self, stream: TextIO):
        self._stream, self.text = stream, io.StringIO()

    def write(self, text: str) -> int:
        self._stream.write(text)
        return self.text.write(text)

    def flush(self) -> None:
        self._stream.flush()
