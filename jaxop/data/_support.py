"""What sets and generated problems share: random numbers by index, double precision, checks of counts, checksums."""

import contextlib
import functools
import zlib
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxop.domains import Decomposed, Domain, Mesh
from jaxop.domains.domain import as_domain
from jaxop.domains.mesh import vertex_weights


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


def checksum(parts: Iterable[ArrayLike]) -> int:
    """Returns the CRC-32 sum of the entries of arrays, which does not depend on their byte order."""
    total = 0
    for part in map(np.asarray, parts):
        entries = np.ascontiguousarray(part, part.dtype.newbyteorder("<")).reshape(-1)
        total = zlib.crc32(entries.view(np.uint8).data, total)
    return total


def defining_arrays(domain: Domain | Decomposed) -> list[ArrayLike]:
    """Returns the arrays that tell a domain from others; the simplices of a mesh determine its weights, as a rule."""
    if not isinstance(domain, Mesh) or has_own_weights(domain):
        return jax.tree.leaves(domain)
    return [domain.points, domain.simplices]


def describe_domain(domain: Domain | Decomposed) -> dict[str, str | int | bool]:
    """Returns kind, sizes and a checksum of a domain; a mesh counts with its vertices and simplices."""
    return {
        "kind": type(domain).__name__,
        "size": as_domain(domain, "domain").size,
        "stacked": domain.is_batched,
        "contents": f"{checksum(defining_arrays(domain)):08x}",
    }


def has_own_weights(mesh: Mesh) -> bool:
    """Tells whether the weights of a mesh, or of any in a stack, differ from those of its simplices beyond rounding."""
    if mesh.is_batched:
        return any(has_own_weights(jax.tree.map(lambda leaf, i=i: leaf[i], mesh)) for i in range(len(mesh.weights)))
    computed = vertex_weights(np.asarray(mesh.points), np.asarray(mesh.simplices))
    return not np.allclose(mesh.weights, computed, rtol=1e-3, atol=1e-6 * computed.max())
