"""Processes that work on one run: how they find each other."""

import contextlib
import dataclasses
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax

from jaxop._validation import check_size
from jaxop.training.processes import SILENCE_S, ending_together, wait_for_all

_BACKSTOP_S = 60  # after which JAX ends a process by itself, with a message of its own


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """How the processes of a run find each other.

    On a TPU slice, under Slurm (``srun``), Open MPI or Kubernetes, JAX recognises all of it. Elsewhere give the first
    three. A single process needs nothing.

    Attributes:
        coordinator: HOST:PORT of process 0, the same in all processes. The port must be free there.
        processes: number of processes.
        process_id: number of this process, from 0.
        local_devices: numbers of the GPUs that this process uses. None takes all, or one for each process that Slurm
            or Open MPI started on a machine.
        start_timeout_s: seconds to wait for the coordinator, and for all processes to start.
        silence_s: seconds after which a process that says nothing counts as lost, which ends the others.

    Raises:
        ValueError: if the first three are not given together, or a value is invalid.

    Example:
        >>> from jaxop import experiments
        >>> with experiments.ClusterConfig().joined():  # nothing is recognised: this process works alone
        ...     pass
        >>> experiments.ClusterConfig(coordinator="node1:1234", processes=2)
        Traceback (most recent call last):
        ValueError: cluster.coordinator, .processes and .process_id must be given together, but process_id is missing.
    """

    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None
    local_devices: tuple[int, ...] | None = None
    start_timeout_s: float = 300.0
    silence_s: float = SILENCE_S

    def __post_init__(self):
        given = {name: getattr(self, name) for name in ("coordinator", "processes", "process_id")}
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(
                "cluster.coordinator, .processes and .process_id must be given together, but "
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
            )
        for name in ("start_timeout_s", "silence_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"cluster.{name} must be positive and finite, got {value}.")
        if self.coordinator is None or self.processes is None or self.process_id is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"cluster.coordinator must be HOST:PORT, such as node1:1234, got {self.coordinator!r}.")
        check_size(self.processes, "cluster.processes")
        if not 0 <= self.process_id < self.processes:
            raise ValueError(
                f"cluster.process_id must lie between 0 and {self.processes - 1} for {self.processes} processes, got "
                f"{self.process_id}."
            )

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Connects all processes; inside the block an error of one ends all, and at its end all wait for each other.

        It must be entered before anything uses a device. If neither these settings nor the environment name other
        processes, or if JAX is connected already, it does not connect anything.

        Raises:
            ConnectionError: if the coordinator does not answer in time or cannot open its port; the message names its
                address.
            RuntimeError: if a device was used before.
        """
        if not jax.distributed.is_initialized():
            self._connect()
        with ending_together(self.silence_s):
            yield
            wait_for_all("the end of the program")

    def _connect(self) -> None:
        address, count, number, devices = _recognised(self)
        if count is None or count == 1:
            return
        if address is None or number is None:
            raise ValueError(
                f"the environment names {count} processes, but not all of the coordinator ({address}) and the number "
                f"of this process ({number}); give --cluster.coordinator, --cluster.processes and --cluster.process-id."
            )
        deadline = time.monotonic() + self.start_timeout_s
        if number > 0:
            _wait_for(address, deadline, self.start_timeout_s)
        else:
            _check_free(address)
        # JAX would abort the process, without the address
        late = threading.Timer(max(0.0, deadline - time.monotonic()), _give_up, (address, count, number, self))
        late.daemon = True
        late.start()
        jax.config.update("jax_enable_preemption_service", False)  # `fit` handles SIGTERM, which JAX would take away
        try:
            jax.distributed.initialize(
                address,
                count,
                number,
                local_device_ids=devices,
                cluster_detection_method="deactivate",
                initialization_timeout=round(2 * self.start_timeout_s) + 60,
                heartbeat_timeout_seconds=round(self.silence_s) + _BACKSTOP_S,
            )
        except RuntimeError as error:
            if isinstance(error, jax.errors.JaxRuntimeError):
                raise
            raise RuntimeError(
                f"the {count} processes must be connected before anything uses a device: let your own file make arrays "
                "in functions, not when it is imported."
            ) from error
        finally:
            late.cancel()


def _recognised(config: ClusterConfig) -> tuple[str | None, int | None, int | None, list[int] | None]:
    """Returns coordinator, number of processes, number of this process and its GPUs, as given or as JAX finds them."""
    devices = None if config.local_devices is None else list(config.local_devices)
    if config.coordinator is not None:
        return config.coordinator, config.processes, config.process_id, devices
    from jax._src.clusters import ClusterEnv  # JAX's own detection, which it does not export

    timeout = math.ceil(config.start_timeout_s)
    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, devices, None, timeout)
    return found[0], found[1], found[2], None if found[3] is None else list(found[3])


def _wait_for(address: str, deadline: float, limit_s: float) -> None:
    """Waits until the coordinator accepts connections.

    Raises:
        ConnectionError: if it does not before the deadline.
    """
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"the coordinator {address} did not answer within {limit_s:.0f} s ({error}); start process 0 "
                    "there, open the port, or give another --cluster.coordinator."
                ) from error
            time.sleep(0.5)


def _check_free(address: str) -> None:
    """Raises ``ConnectionError`` if the port of the coordinator is in use, with which JAX may crash."""
    both = socket.has_dualstack_ipv6()
    try:
        port = ("", int(address.rpartition(":")[2]))
        socket.create_server(port, family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both).close()
    except OSError as error:
        raise ConnectionError(
            f"process 0 cannot open the port of the coordinator {address} ({error}); give another "
            "--cluster.coordinator."
        ) from error


def _give_up(address: str, count: int, number: int, config: ClusterConfig) -> None:
    sys.stderr.write(
        f"error: not all {count} processes came to the coordinator {address} within {config.start_timeout_s:.0f} s "
        f"(this is process {number}); start all of them with the same --cluster.coordinator, and open the port.\n"
    )
    sys.stderr.flush()
    os._exit(1)
