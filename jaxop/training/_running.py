"""What surrounds the steps of a run: the clock, the signal to stop, and batches loaded in advance."""

import collections
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax

Loaded = TypeVar("Loaded")

_PREFETCH = 2  # batches loaded in advance


class Clock:
    """Clock of the seconds of training, which can pause."""

    def __init__(self, seconds: float):
        self._origin = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._origin

    @contextlib.contextmanager
    def paused(self) -> Iterator[float]:
        """Yields the seconds at the beginning of the pause, which are also those at its end."""
        begin = self.seconds
        yield begin
        self._origin = time.perf_counter() - begin


@contextlib.contextmanager
def noted(note: str) -> Iterator[None]:
    """Adds to an error where it happened."""
    try:
        yield
    except Exception as error:
        error.add_note(f"(while tracing the model {note})")
        raise


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM or SIGINT (Ctrl-C) has arrived. A second SIGINT interrupts at once.

    Outside the main thread the function always returns False.
    """
    event = threading.Event()

    def stop(number: int, frame: object) -> None:
        del frame
        if number == signal.SIGINT and event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event.is_set
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def saying_if_terminated(line: str) -> Iterator[None]:
    """Writes a line to stderr if SIGTERM arrives, and ends the program with status 143 at once.

    The handlers of Python wait until a compilation has returned; a thread does not. Outside the main thread this has no
    effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receive, send = os.pipe()
    os.set_blocking(send, False)

    def watch() -> None:
        while number := os.read(receive, 1)[0]:  # 0 at the end
            if number == signal.SIGTERM:
                os.write(2, f"{line}\n".encode())
                os._exit(128 + signal.SIGTERM)

    watcher = threading.Thread(target=watch, name="jaxop-signals", daemon=True)
    previous = signal.signal(signal.SIGTERM, lambda number, frame: None)
    before = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, previous)
        os.write(send, b"\0")
        watcher.join()
        os.close(receive)
        os.close(send)


@contextlib.contextmanager
def prefetched(load: Callable[[int], Loaded], steps: range) -> Iterator[Iterator[Loaded]]:
    """Yields the batches in order; a thread loads the next batches while one is in use."""
    x64 = jax.config.read("jax_enable_x64")

    def task(step: int) -> Loaded:
        with jax.enable_x64(x64):  # a setting of each thread
            return load(step)

    def batches() -> Iterator[Loaded]:
        pending: collections.deque[Future[Loaded]] = collections.deque()
        for step in steps:
            pending.append(pool.submit(task, step))
            if len(pending) > _PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    with ThreadPoolExecutor(1, thread_name_prefix="jaxop-data") as pool:
        try:
            yield batches()
        finally:
            pool.shutdown(cancel_futures=True)
