"""What generated problems share: random numbers by index, double precision and checks of counts."""

import contextlib
import functools
from collections.abc import Iterator

import jax
import numpy as np


def generator(seed: int, *index: int) -> np.random.Generator:
    """Returns the random stream number ``index`` of a seed, which does not depend on other streams."""
    return np.random.Generator(np.random.Philox(seed_sequence(seed, *index)))


def seed_sequence(seed: int, *index: int) -> np.random.SeedSequence:
    """Returns the seed of one stream of `generator`."""
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}.")
    return np.random.SeedSequence(entropy=seed, spawn_key=index)


def check_count(count: int, argument: str, *, smallest: int) -> None:
    """Raises ``ValueError`` unless ``count`` is at least ``smallest``."""
    if count < smallest:
        raise ValueError(f"{argument} must be at least {smallest}, got {count}.")


def check_numbers(samples: int, first: int) -> range:
    """Returns the sample numbers first, …, first + samples − 1 of a generated problem."""
    check_count(samples, "samples", smallest=1)
    check_count(first, "first", smallest=0)
    return range(first, first + samples)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Switches JAX to float64 on the host, under its standard promotion rules, until the block ends."""
    with (
        jax.enable_x64(True),
        jax.default_device(_host()),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@functools.cache
def _host() -> jax.Device | None:
    """Returns the CPU, or None (JAX's default device) if ``JAX_PLATFORMS`` does not include the CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
