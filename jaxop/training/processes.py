"""Several processes of one run: what they tell each other, the rows that each reads, and how they end together."""

import contextlib
import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int, PyTree

from jaxop.training.config import flatten

SILENCE_S = 60.0
"""Seconds after which a process that says nothing counts as lost."""

_PATIENCE_S = 1800.0  # for a process that is alive but does not come
_GRACE_S = 5.0  # for all processes to leave together
_SETTLE_S = 2.0  # for a process to raise the error that another has raised
_POLL_S = 0.5
_UNREACHABLE = ("gloo", "nccl", "connection", "unavailable", "deadline_exceeded", "aborted", "cancelled", "heartbeat")

_SILENT = "it was killed or its machine is gone, because nothing was heard of it"
_RESUME = "Resume the run when all processes can start again."

_numbers = itertools.count()  # of messages; equal on all processes, because all exchange the same messages in order
_read: list[str] = []  # keys of messages that all processes have read as soon as they post the next
_blocks = itertools.count()  # of `ending_together`, equal on all processes as well
_watched = threading.Event()


class LostProcessError(RuntimeError):
    """Raised if another process of the run is lost; the run can be resumed from its last checkpoint."""


def is_first() -> bool:
    """Tells whether this is process 0, which alone writes metrics, settings and figures, and prints."""
    return jax.process_index() == 0


def from_first(make: Callable[[], object], what: str) -> Any:
    """Returns on every process the value that a function returns on process 0, as JSON; all others wait for it.

    Args:
        make: is called on process 0 only, or on the only process.
        what: the value, for the message.

    Raises:
        LostProcessError: if process 0 does not answer.
    """
    if jax.process_count() == 1:
        return make()
    client, key = _client(), f"jaxop/{next(_numbers)}"
    _read.append(key)
    if is_first():
        content = json.dumps(make())
        client.key_value_set(key, content)
    else:
        try:
            content = client.blocking_key_value_get(key, int(_PATIENCE_S * 1000))
        except Exception as error:
            raise LostProcessError(_lost([0], what)) from error
    return json.loads(content)


def gathered(value: object, what: str) -> list[Any]:
    """Returns the values of all processes in their order, as JSON, when every process has given its own.

    Args:
        value: the value of this process.
        what: the values, for the message.

    Raises:
        LostProcessError: if a process does not come; the message names it.
    """
    count = jax.process_count()
    if count == 1:
        return [value]
    client, key = _client(), f"jaxop/{next(_numbers)}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    try:
        client.wait_at_barrier(f"{key}/all", int(_PATIENCE_S * 1000))
    except Exception as error:
        there = {int(name.rpartition("/")[2]) for name, _ in client.key_value_dir_get(key)}
        raise LostProcessError(_lost(sorted({*range(count)} - there), what)) from error
    found = {int(name.rpartition("/")[2]): content for name, content in client.key_value_dir_get(key)}
    if is_first():
        for old in _read:
            client.key_value_delete(old)
    _read[:] = [key]
    return [json.loads(found[process]) for process in range(count)]


def wait_for_all(what: str) -> None:
    """Waits until every process is here; raises the error of `gathered`."""
    gathered(None, what)


def check_covers(mesh: Mesh | None) -> None:
    """Raises ``ValueError`` unless the mesh has devices of all processes; None is a mesh of this process only."""
    count = jax.process_count()
    found = {jax.process_index()} if mesh is None else {device.process_index for device in mesh.devices.flat}
    if found != {*range(count)}:
        raise ValueError(
            f"mesh must have devices of all {count} processes, got {'None' if mesh is None else dict(mesh.shape)} with "
            f"devices of process {', '.join(map(str, sorted(found)))}; make it with MeshConfig().make(batch_size)."
        )


def check_same(value: Mapping[str, object], *, free: Collection[str] = ()) -> None:
    """Raises ``ValueError`` on all processes unless all give equal values.

    Args:
        value: settings, data and versions, in nested dicts.
        free: dotted names of fields that may differ.

    Raises:
        ValueError: names every field in which a process differs from process 0.
    """
    own = {name: item for name, item in flatten(value).items() if name not in free}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    if len({*gathered(digest, "the settings of all processes")}) == 1:
        return
    first, *others = gathered(own, "the settings of all processes")
    differences = [
        f"  {name}: {json.dumps(first[name]) if name in first else 'absent'} on process 0, "
        f"{json.dumps(other[name]) if name in other else 'absent'} on process {process}"
        for process, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name, ...) != other.get(name, ...)
    ]
    raise ValueError(
        "all processes must have the same settings, samples and versions, but they differ in:\n"
        + "\n".join(differences)
        + "\nStart all processes with the same command, files and packages."
    )


def check_takes_part(mesh: Mesh) -> None:
    """Raises ``ValueError`` unless the mesh has devices of all processes, or of this process only.

    Devices that are not there, for which programs are only compiled, belong to processes that are not there either.
    """
    if type(mesh.devices.flat[0].client) is not type(jax.devices()[0].client):
        return
    with_devices = {device.process_index for device in mesh.devices.flat}
    if with_devices not in ({*range(jax.process_count())}, {jax.process_index()}):
        raise ValueError(
            f"mesh must have devices of all {jax.process_count()} processes, or only of process {jax.process_index()} "
            f"itself, got devices of processes {sorted(with_devices)}; make it with MeshConfig().make(batch_size)."
        )


def evenly_chosen(devices: Sequence[jax.Device], count: int, processes: int) -> list[jax.Device]:
    """Returns ``count`` devices, the first ones of every process in equal numbers.

    Args:
        devices: the devices to choose from.
        count: number of devices that are chosen.
        processes: number of processes. With 1, the devices may be those of machines that are not there.

    Raises:
        ValueError: if the processes do not divide the count, or a process does not have enough devices.
    """
    if processes == 1:
        return list(devices[:count])
    each = [[device for device in devices if device.process_index == process] for process in range(processes)]
    own = count // processes
    if count % processes or any(len(found) < own for found in each):
        raise ValueError(
            f"the devices of the mesh must be a multiple of the {processes} processes, whose numbers of devices are "
            f"{[len(found) for found in each]}, got {count}."
        )
    return [device for found in each for device in found[:own]]


def spans_processes(tree: PyTree) -> bool:
    """Tells whether an array of the tree lies on devices of several processes, so that all must act together."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    return any(sharding is not None and not sharding.is_fully_addressable for sharding in shardings)


def place(tree: PyTree, sharding: Sharding) -> PyTree:
    """Returns arrays whose values every process knows as arrays on the devices, which all processes may share."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def one(leaf: Array) -> Array:
        if spans_processes(leaf):
            if leaf.sharding.device_set == sharding.device_set:
                return jax.device_put(leaf, sharding)
            leaf = on_host(leaf)  # because JAX does not move it to other devices on every platform
        cuts = sharding.addressable_devices_indices_map(leaf.shape)
        parts = [jax.device_put(leaf[cut], device) for device, cut in cuts.items()]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

    return jax.tree.map(one, tree)


def own_rows(sharding: Sharding, count: int) -> Int[np.ndarray, " r"]:
    """Returns the numbers of the ``count`` rows that the devices of this process hold, in ascending order."""
    cuts = sharding.addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[cut] for cut in cuts]))


def place_rows(leaf: Array, sharding: Sharding, rows: Int[np.ndarray, " r"], count: int) -> Array:
    """Returns an array of ``count`` rows on the devices of all processes, from the `own_rows` of each."""
    shape = (count, *leaf.shape[1:])
    parts = []
    for device, cut in sharding.addressable_devices_indices_map(shape).items():
        assert cut is not None
        wanted = np.arange(count)[cut[0]]
        first = int(np.searchsorted(rows, wanted[0]))
        parts.append(jax.device_put(leaf[(slice(first, first + len(wanted)), *cut[1:])], device))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def on_host(tree: PyTree) -> PyTree:
    """Returns arrays in the memory of every process, also those whose rows lie on devices of several processes."""
    if not spans_processes(tree):
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


class Vote:
    """The largest number that a process of the mesh has given, equal on all processes, one call late.

    Every call starts a program that reduces the numbers of this call, and returns the result of the program before
    it. The host therefore does not wait for the devices. On one process a call returns its own number at once.

    Attributes:
        program: the compiled reduction, if there are several processes.
        ballots: its argument for every number.

    Cost: one all-reduce of 4 bytes a call, if there are several processes.
    """

    def __init__(self, mesh: Mesh | None, options: int):
        self._before: Array | None = None
        self.ballots: list[Array] = []
        if mesh is not None and jax.process_count() > 1:
            every = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            numbers = (np.full(mesh.size, option, np.int32) for option in range(options))
            self.ballots = [place(number, every) for number in numbers]
            self.program = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, number: int) -> int:
        """Returns the largest number that was given, 0 at the first call of several processes."""
        if not self.ballots:
            return number
        before, self._before = self._before, self.program(self.ballots[number])
        return 0 if before is None else int(before)


@contextlib.contextmanager
def ending_together(silence_s: float = SILENCE_S) -> Iterator[None]:
    """Ends all processes with the message of the first that fails inside the block.

    If one process fails, the others wait for it in their next common computation. A thread therefore watches for the
    message of a failed process, prints it and ends this process with the same exit status. The process
    that fails raises its error. A process that was killed cannot leave a message: it counts as failed when it has been
    silent for ``silence_s`` seconds. If all raise the same error, none is ended, and the program may go on. On one
    process, and inside another such block, it does nothing. It is also a decorator.

    Args:
        silence_s: seconds after which a silent process counts as lost.

    Raises:
        LostProcessError: instead of JAX's error, if the connection to another process was lost.

    Cost: a thread that asks the coordinator twice a second.

    Example:
        >>> from jaxop import training
        >>> with training.ending_together():  # around what every process does
        ...     print("trained")
        trained
    """
    if jax.process_count() == 1 or _watched.is_set():
        yield
        return
    _watched.set()
    over, room = threading.Event(), f"jaxop/block-{next(_blocks)}"
    watcher = threading.Thread(target=_watch, args=(room, over, silence_s), name="jaxop-watch", daemon=True)
    watcher.start()
    try:
        yield
        over.set()
        watcher.join()
    except BaseException as error:
        failure = error
        if isinstance(error, jax.errors.JaxRuntimeError) and any(w in str(error).lower() for w in _UNREACHABLE):
            time.sleep(_SETTLE_S + 2 * _POLL_S)  # a process that failed has said why, and the watcher ends this one
            failure = LostProcessError(
                f"process {jax.process_index()} of {jax.process_count()} has lost the connection to another process, "
                f"which was killed or whose machine is gone ({str(error).splitlines()[0][:200]}). {_RESUME}"
            )
        over.set()
        _tell(room, jax.process_index(), str(failure) or type(failure).__name__, exit_status(failure))
        if failure is error:
            raise
        raise failure from error
    finally:
        _watched.clear()


def leave(status: int) -> NoReturn:
    """Ends this process after a failure, without waiting for processes that are gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)  # waits for all other processes
    goodbye.start()
    goodbye.join(_GRACE_S)
    os._exit(status)


def exit_status(error: BaseException) -> int:
    """Returns the exit status of a program that an error ends: 2 if inputs are wrong, 1 if it may be tried again."""
    wrong = (ValueError, TypeError, OSError, ImportError, MemoryError, NotImplementedError, ArithmeticError)
    return 2 if isinstance(error, wrong) and not isinstance(error, ConnectionError) else 1


def _watch(room: str, over: threading.Event, silence_s: float) -> None:
    """Ends this process when another has failed. Process 0 listens to the others, and is missed by JAX itself."""
    client, process, count = _client(), jax.process_index(), jax.process_count()
    heard: dict[str, tuple[str, float]] = {}
    while not over.wait(_POLL_S):
        with contextlib.suppress(Exception):  # the service is gone, and JAX ends this process
            client.key_value_increment(f"{room}/beats/{process}", 1)
            if process == 0:
                now, beats = time.monotonic(), dict(client.key_value_dir_get(f"{room}/beats"))
                heard = {name: heard.get(name, ("", now)) for name in beats}
                heard |= {name: (beat, now) for name, beat in beats.items() if beat != heard[name][0]}
                for name, (_, since) in heard.items():
                    if now - since > silence_s:
                        _tell(room, int(name.rpartition("/")[2]), f"{_SILENT} for {silence_s:.0f} s. {_RESUME}", 1)
            failed, message, status = json.loads(client.key_value_try_get(f"{room}/failure"))
            if over.wait(_SETTLE_S):
                break
            sys.stderr.write(f"error: process {failed} of {count} failed, which ends process {process}: {message}\n")
            leave(status)
    with contextlib.suppress(Exception):
        client.key_value_delete(f"{room}/beats/{process}")


def _tell(room: str, process: int, message: str, status: int) -> None:
    with contextlib.suppress(Exception):  # another process was first, or the service is gone
        _client().key_value_set(f"{room}/failure", json.dumps([process, message, status]))


def _lost(processes: Sequence[int], what: str) -> str:
    names = ", ".join(map(str, processes)) or "unknown"
    return (
        f"process {jax.process_index()} of {jax.process_count()} has waited for {what}, but these processes did not "
        f"come within {_PATIENCE_S:.0f} s or are gone: {names}. {_RESUME}"
    )


def _client() -> Any:
    from jax._src import distributed  # JAX does not export its key-value store

    client = distributed.global_state.client
    if client is None:
        raise RuntimeError("several processes need jax.distributed.initialize() before anything uses a device.")
    return client
