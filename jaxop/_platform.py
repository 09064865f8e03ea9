"""The platform that a program is compiled for, which need not be that of the host that compiles it."""

import contextlib
from collections.abc import Iterator

import jax

_COMPILED_FOR = jax.make_user_context(default_value=None)  # part of the keys of JAX's caches


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the program that is being traced, by default that of the host.

    Example:
        >>> from jaxop._platform import compiled_for, platform
        >>> with compiled_for("tpu"):
        ...     platform()
        'tpu'
    """
    return _COMPILED_FOR.value or jax.default_backend()


@contextlib.contextmanager
def compiled_for(name: str) -> Iterator[None]:
    """Traces programs inside the context for this platform, as compilation ahead of time on another machine needs."""
    with _COMPILED_FOR(name):
        yield
