"""Files that stay open while several parts of them are read."""

import contextlib
import contextvars
from collections.abc import Callable, Hashable, Iterator
from typing import Any

_kept: contextvars.ContextVar[tuple[contextlib.ExitStack, dict[Hashable, Any]] | None] = contextvars.ContextVar(
    "kept", default=None
)


@contextlib.contextmanager
def kept_open() -> Iterator[None]:
    """Files that this thread opens by `opened_once` inside the block stay open until it ends."""
    if _kept.get() is not None:
        yield
        return
    with contextlib.ExitStack() as stack:
        token = _kept.set((stack, {}))
        try:
            yield
        finally:
            _kept.reset(token)


@contextlib.contextmanager
def opened_once(key: Hashable, open_file: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[Any]:
    """Yields a file, which is opened again only if no block of `kept_open` holds it."""
    kept = _kept.get()
    if kept is None:
        with open_file() as file:
            yield file
        return
    stack, files = kept
    if key not in files:
        files[key] = stack.enter_context(open_file())
    yield files[key]
