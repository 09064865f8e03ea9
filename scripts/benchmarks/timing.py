"""Clocks and processes, without any library: the baselines use them too."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WARM_UP = 0.5  # seconds of calls before a measurement: a sleeping second core takes that long to be used again
LONG = 60.0  # seconds beyond which a call is made once
WARM_UP_ROUNDS = 3

TUNED_ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""glibc settings under which large temporary buffers stay mapped between calls."""


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call, after half a second of calls that warm up.

    A call of more than a minute is made once.

    Args:
        call: the call to measure; its work is done when it returns.
        repeats: measured calls.

    Raises:
        ValueError: if ``repeats`` is not positive.
    """
    _check_repeats(repeats)
    begin = time.perf_counter()
    while True:
        first = seconds_of(call)
        if first > LONG:
            return first
        if time.perf_counter() - begin > WARM_UP:
            break
    return statistics.median(seconds_of(call) for _ in range(repeats))


def median_seconds_in_turns(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall time of every call; the calls take turns, so that all of them meet the same machine.

    Args:
        calls: the calls to measure; their work is done when they return.
        repeats: measured rounds, after `WARM_UP_ROUNDS`.

    Raises:
        ValueError: if ``repeats`` is not positive.
    """
    _check_repeats(repeats)
    rounds = [{name: seconds_of(call) for name, call in calls.items()} for _ in range(repeats + WARM_UP_ROUNDS)]
    return {name: statistics.median(measured[name] for measured in rounds[WARM_UP_ROUNDS:]) for name in calls}


def _check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise ValueError(f"--repeats must be positive, got {repeats}.")


def peak_memory() -> str:
    """Returns the peak memory of this process so far."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"


def allocators() -> dict[str, dict[str, str]]:
    """Environments by the name of their allocator settings: glibc's default ones and tuned ones."""
    default = {name: value for name, value in os.environ.items() if name not in TUNED_ALLOCATOR}
    return {"default": default, "tuned": default | TUNED_ALLOCATOR}


def measured_by(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """Runs a script of this folder in a process of its own; returns the JSON in the last line that it prints.

    Raises:
        ChildProcessError: if the script fails, with the end of its stderr.
    """
    command = [sys.executable, str(HERE / script), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ChildProcessError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])
