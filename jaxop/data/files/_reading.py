"""Errors of reading a file, with cause and remedy."""

import contextlib
import errno
import math
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from jaxop._validation import closest

_Errors = tuple[type[Exception], ...]
_DAMAGE: dict[str, _Errors] = {  # the errors that libraries raise for damaged bytes
    ".npz": (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile),
    "HDF5": (OSError, RuntimeError, ValueError, KeyError),
    "MATLAB": (Exception,),  # scipy checks little, and raises for example IndexError or ZeroDivisionError
    "mesh": (Exception,),  # so do the readers of meshio
    "netCDF": (Exception,),
    "Zarr": (Exception,),
    ".npy": (OSError, EOFError, ValueError),
}
_UNSUPPORTED = (NotImplementedError, RuntimeError, TypeError)
_CAUSES = {
    errno.EACCES: "may not be read: permission is denied; ask for it or change it (chmod u+r)",
    errno.EPERM: "may not be read: permission is denied; ask for it or change it (chmod u+r)",
    errno.ENOENT: "does not exist any more; put it back",
    errno.EAGAIN: "is open for writing in another process; close it there, or wait until it is written",
    errno.EIO: "cannot be read: the device reports an error; copy the file to another one",
    errno.ESTALE: "cannot be read: the network file system lost it; mount it again",
    errno.EMFILE: "cannot be opened: this process has too many open files; close some or raise the limit (ulimit -n)",
}
_WRITTEN = "already open for write"  # text of HDF5 for a mark that only closing the file removes
_LOCK = "unable to lock file"


class FileError(ValueError):
    """Fault of a file; the message already names the file and the remedy."""


@contextlib.contextmanager
def reading(path: Path, kind: str, part: str = "it") -> Iterator[None]:
    """Turns errors of the format's library into errors that name the file and the cause; must not be nested.

    Args:
        path: the file.
        kind: its format, a key of ``_DAMAGE``.
        part: the part that is read, for the message.
    """
    try:
        yield
    except (FileError, ImportError):
        raise
    except MemoryError as error:
        raise FileError(
            f"{path} ({kind}): {part} does not fit into memory; store fewer samples in a file, or use HDF5, which is "
            "read in pieces."
        ) from error
    except OSError as error:
        if error.errno in _CAUSES:
            raise type(error)(f"{path} {_CAUSES[error.errno]}.") from error
        if _WRITTEN in str(error):
            raise FileError(
                f"{path} ({kind}) was opened for writing and not closed: another process writes it, or ended before "
                "closing it; close it there, or, if nothing writes it any more, run h5clear -s on it."
            ) from error
        if _LOCK in str(error):
            raise FileError(
                f"{path} ({kind}) is on a file system that cannot lock it; if nothing writes it, set the environment "
                "variable HDF5_USE_FILE_LOCKING=FALSE."
            ) from error
        raise _damaged(path, kind, part, error) from error
    except _DAMAGE[kind] as error:
        raise _damaged(path, kind, part, error) from error
    except _UNSUPPORTED as error:
        raise FileError(
            f"{path} ({kind}): {part} cannot be read here ({_summary(error)}); store plain arrays of numbers in a "
            "new file."
        ) from error


@contextlib.contextmanager
def naming(path: Path, names: str) -> Iterator[None]:
    """Adds the name of the file to errors about its contents."""
    try:
        yield
    except FileError:
        raise
    except MemoryError as error:
        raise FileError(f"{path} ({names}): it does not fit into memory; store fewer samples in a file.") from error
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path} ({names}): {error}") from error


def first_bytes(path: Path, kind: str, formats: Sequence[str]) -> bytes:
    """Returns the first bytes of a file.

    Args:
        path: the file.
        kind: its format, a key of ``_DAMAGE``.
        formats: suffixes of files that could be meant instead, if it does not exist.

    Raises:
        FileNotFoundError: if it does not exist; the message has similar names.
        FileError: if it is not a file, or is empty.
    """
    with reading(path, kind):
        exists, is_file = path.exists(), path.is_file()
        start = b""
        if is_file:
            with path.open("rb") as file:
                start = file.read(16)
    if not exists:
        folder = path.parent
        near = [file.name for file in folder.iterdir() if file.suffix.lower() in formats] if folder.is_dir() else []
        hint = closest(path.name, near) if near else f"the folder {folder} has no file that could be read."
        raise FileNotFoundError(f"{path} does not exist; {hint}")
    if not is_file:
        raise FileError(f"{path} is not a file; give the path of a {path.suffix.lower()} file.")
    if not start:
        raise FileError(f"{path} is empty (0 bytes): whatever wrote it did not finish; write it again.")
    return start


def refuse_unread(
    path: Path, what: str, options: Mapping[str, object], defaults: Mapping[str, object], *, read: Collection[str]
) -> None:
    """Raises ``ValueError`` if an option was given that nothing would read."""
    given = [
        name for name, value in options.items() if value is not None and value != defaults[name] and name not in read
    ]
    if given:
        settings = ", ".join(f"{name}={options[name]!r}" for name in given)
        them = "it" if len(given) == 1 else "them"
        raise ValueError(f"{path} is read as {what}; nothing reads {settings}; leave {them} out.")


def check_memory(path: Path, name: str, shape: Sequence[int], itemsize: int, *, axis: int = 0) -> None:
    """Raises ``FileError`` if an array, or one row of it if ``axis`` is 1, is larger than the memory."""
    size = math.prod(shape[axis:]) * itemsize
    if size > memory():
        raise FileError(
            f"{path}: dataset {name!r} claims the shape {tuple(shape)}, {amount(size)}{' a sample' if axis else ''}, "
            f"in a file of {amount(path.stat().st_size)} on a machine with {amount(memory())} of memory; check the "
            "file, or store smaller arrays."
        )


def check_claim(path: Path, name: str, shape: Sequence[int], claimed: int, stored: int) -> None:
    """Raises ``FileError`` if an array has more bytes than the file can hold."""
    if claimed > stored:
        raise FileError(
            f"{path} is truncated or damaged: dataset {name!r} claims the shape {tuple(shape)}, {amount(claimed)}, but "
            f"the file has at most {amount(stored)} for it; copy or write the file again."
        )


def memory() -> float:
    """Returns the bytes of physical memory, or infinity if the system does not report them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def amount(size: float) -> str:
    """Returns a number of bytes as text in a suitable unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def _damaged(path: Path, kind: str, part: str, error: Exception) -> FileError:
    size = path.stat().st_size if path.exists() else 0
    return FileError(
        f"{path} ({kind}, {size} bytes) is truncated or damaged: {part} cannot be read ({_summary(error)}); "
        "copy or write the file again."
    )


def _summary(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
