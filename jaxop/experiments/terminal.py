"""Commands on a terminal: messages without tracebacks, exit statuses, and ASCII if Unicode cannot be shown."""

import argparse
import codecs
import contextlib
import ctypes
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax

from jaxop import training
from jaxop.training.processes import LostProcessError, exit_status, is_first, leave

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN = {
    "×": "x",
    "²": "^2",
    "³": "^3",
    "±": "+-",
    "−": "-",
    "–": "-",
    "·": "-",
    "…": "...",
    "─": "-",
    "│": "|",
    "ρ": "rho",
}
_INPUT_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    MemoryError,
    NotImplementedError,
    ArithmeticError,
    jax.errors.JaxRuntimeError,  # usually out of memory
    training.DamagedCheckpointError,
    LostProcessError,
)


def run_command(command: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Runs a command. If its inputs are wrong, it writes one message to stderr.

    With the option ``--traceback``, which every command has, it raises the error, so that its origin is shown.

    Args:
        command: takes the arguments without ``--traceback``.
        arguments: the arguments of the command line, without the program's name.

    Returns:
        The exit status: 0, 2 if the inputs are wrong, or 1 if the reader of stdout has gone or the coordinator of
        several processes does not answer. On several processes an error ends the program with this status, or with 1
        if another process is gone.

    Example:
        >>> from jaxop.experiments import terminal
        >>> terminal.run_command(lambda arguments: None, ["--steps", "5"])
        0
    """
    print_anywhere()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--traceback", action="store_true")
    own, others = parser.parse_known_args(arguments)
    try:
        with _plain_warnings():
            command(others)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python complains when it flushes
        return 1
    except BaseException as error:
        together = jax.distributed.is_initialized() and not isinstance(error, SystemExit)
        if isinstance(error, _INPUT_ERRORS) and not own.traceback:
            notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("(")]  # others come from JAX
            sys.stderr.write(" ".join([f"error: {error or type(error).__name__}", *notes]) + "\n")
        elif together:
            traceback.print_exception(error)
        else:
            raise
        if together:  # Python would wait for processes that are gone
            leave(exit_status(error))
        return 1 if isinstance(error, ConnectionError) else 2
    return 0


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows warnings about the user's input as one line; the line of the program that caused it would not help."""
    before = warnings.formatwarning

    def text(message: Warning | str, category: type[Warning], *where: Any) -> str:
        return f"warning: {message}\n" if category is UserWarning else before(message, category, *where)

    warnings.formatwarning = text  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def as_options(names: Iterable[str], prefix: str = "") -> Iterator[None]:
    """Adds to errors of the library, which name arguments in Python, the options of the command line that set these.

    Args:
        names: arguments of `jaxop.data.read` that the command has as options.
        prefix: what precedes them on the command line, such as "data.".
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        named = [name for name in names if re.search(rf"\b({name}=|(pass|by|give) {name}\b)", str(error))]
        if named:
            options = ", ".join(f"--{prefix}{name.replace('_', '-')}" for name in named)
            error.add_note(f"(On the command line: {options}.)")
        raise


@contextlib.contextmanager
def needs_extra(purpose: str) -> Iterator[None]:
    """Names the extra ``scripts`` if an import inside the block fails because a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("jaxop"):
            raise
        raise ImportError(f"{purpose} needs {error.name}; install it with: pip install 'jaxop[scripts]'") from error


def print_anywhere() -> None:
    """Replaces characters that the encoding of stdout or stderr lacks: "²" by "^2", all others by "?"."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # notebooks have other streams, which take everything
            stream.reconfigure(errors="plain")


def make_console() -> "Console":
    """Returns a console on stdout that does not read text as markup, because files may have any name.

    Of several processes only process 0 prints.
    """
    with needs_extra("a table of errors"):
        from rich.console import Console
    return Console(markup=False, emoji=False, quiet=not is_first())


def tune_allocator() -> None:
    """Keeps freed memory in the process (glibc), because XLA's large buffers otherwise cost page faults each step."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end
