"""What the scripts print reaches every terminal: in ASCII where it knows nothing else, names of files as they are."""

import codecs
import io
import sys

from rich.console import Console

_PLAIN = {"×": "x", "²": "^2", "³": "^3", "±": "+-", "−": "-", "–": "-", "·": "-", "…": "...", "─": "-", "│": "|"}


def print_anywhere() -> None:
    """Replaces what the encoding of stdout or stderr lacks, "²" by "^2" and unknown characters by "?"."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # notebooks have streams of their own, which take everything
            stream.reconfigure(errors="plain")


def make_console() -> Console:
    """A console on stdout that takes no text for markup: files and directories may be called anything."""
    return Console(markup=False, emoji=False)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end
