"""Files of a run: read with bounds, written in one go, kept when damaged, and written by one process at a time."""

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import jax

from jaxop._validation import check_type
from jaxop.training.processes import from_first, gathered, is_first

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash, because pathlib drops the other
_LOCK = "writer.lock"
_SIGHT_S = 10.0  # for a file of another machine to appear


def local_path(path: str | os.PathLike[str], argument: str) -> Path:
    """Returns the path if it is in the local file system.

    Raises:
        TypeError: if it is not a path.
        ValueError: if it is empty or the address of a remote store, such as ``gs://bucket/run``.
    """
    check_type(path, argument, (str, os.PathLike), "a path")
    if not os.fspath(path):
        raise ValueError(f"{argument} is empty; give the name of a directory, '.' for the current one.")
    if _REMOTE.match(os.fspath(path)):
        raise ValueError(
            f"{argument}={os.fspath(path)!r} is a remote address, but metrics, locks and checkpoints need a local "
            "file system; give a local directory and copy it to the remote store afterwards."
        )
    return Path(path)


def set_aside(path: Path) -> Path:
    """Renames a file or directory to ``NAME.damaged``, with a number appended if needed, and returns the new path."""
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    return path.rename(aside)


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Makes a directory and keeps other writers out of it while the context lasts.

    The lock belongs to the operating system, which releases it whenever the process ends. The file
    ``writer.lock`` serves the message. If the file system has no locks, other writers are not kept out. If the
    directory was made here and is empty at the end, it is removed.

    Raises:
        BlockingIOError: if another process, or another thread of this process, is writing there.
    """
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _LOCK
    with _locked(path) as file:
        try:
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)  # before unlocking, while it is still our file
            if made:
                with contextlib.suppress(OSError):
                    directory.rmdir()


@contextlib.contextmanager
def writing_by_first(directory: Path) -> Iterator[None]:
    """Keeps other writers out of a directory like `writing`; on several processes, process 0 does for all of them.

    Raises:
        BlockingIOError: see `writing`.
        ValueError: if a process does not see the directory of process 0.
    """
    if not is_first():
        _check_shared(directory)
        yield
        return
    with writing(directory):
        _check_shared(directory)
        yield


def _check_shared(directory: Path) -> None:
    """Raises ``ValueError`` on all processes unless all see the lock of process 0."""
    path = directory / _LOCK
    lock = from_first(path.read_text, "the directory of the run")
    if jax.process_count() == 1:
        return
    deadline = time.monotonic() + _SIGHT_S
    while not (seen := path.is_file() and path.read_text() == lock) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [
        f"process {process} on {host}"
        for process, (host, seen) in enumerate(gathered([socket.gethostname(), seen], "the directory of the run"))
        if not seen
    ]
    if blind:
        raise ValueError(
            f"run_dir={os.fspath(directory)!r} must be on a file system that all processes share, but "
            f"{', '.join(blind)} cannot see what process 0 wrote there; give a directory on a shared file system."
        )


def _locked(path: Path) -> TextIO:
    """Opens the file at a path and locks it."""
    import fcntl  # POSIX only

    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                writer = file.read(200)
            raise BlockingIOError(
                f"{f'process {writer}' if writer else 'another process'} is writing to {path.parent}; "
                "wait until it ends, or give another run directory."
            ) from None
        except OSError:  # the file system does not have locks
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # the previous writer has removed it in the meantime
