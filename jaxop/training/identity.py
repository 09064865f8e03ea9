"""Identity of data, which a run compares when it is resumed."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import cast

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import UInt8

from jaxop._config import Json
from jaxop._pytree import leaf_names
from jaxop._validation import check_type
from jaxop.data import DataSource, Examples, RaggedSamples, RandomNodes, Samples
from jaxop.data._support import checksum, defining_arrays, describe_domain
from jaxop.data.samples import ArraySource, blocks, row_slices
from jaxop.data.source import check_batch
from jaxop.domains import Decomposed, Domain
from jaxop.training.config import to_json


def describe_source(source: DataSource, argument: str = "source") -> dict[str, Json]:
    """Returns the identity of a data source as JSON; ``argument`` is its name in messages.

    For `Samples` and `Examples` it is `describe_samples`, and for `RandomNodes` that of the whole set. For any other
    source it is the length and the result of its method ``identity()``. Without this method, shapes, dtypes and CRC-32
    sums of the first, middle and last item take its place.

    Raises:
        TypeError: if these items are not a pytree of arrays of numbers.
        ValueError: if the number of entries of an array is not the number of items.
    """
    if isinstance(source, Samples | Examples):
        return describe_samples(source)
    if isinstance(source, RandomNodes):
        of = describe_source(source.source, argument)
        return {"random_nodes": source.nodes, "at_nodes": source.at_nodes, "of": of}
    described: dict[str, Json] = {"length": len(source)}
    identity: object = getattr(source, "identity", None)  # optional in a DataSource
    if identity is not None:
        return described | {"identity": to_json(identity() if callable(identity) else identity, name="identity")}
    rows = np.unique([0, len(source) // 2, len(source) - 1])
    items = source[rows]
    check_batch(items, len(rows), argument)  # an array of objects holds addresses, which change from run to run
    arrays = {name: np.asarray(leaf) for name, leaf in zip(leaf_names(items), jax.tree.leaves(items), strict=True)}
    described["items"] = {
        name or "array": {"shape": list(array.shape), "dtype": array.dtype.name, "crc32": _crc32([array])}
        for name, array in arrays.items()
    }
    return described


def describe_samples(samples: Samples | Examples) -> dict[str, Json]:
    """Returns the identity of a set of samples, as JSON: sizes, dtypes, and CRC-32 sums of the contents.

    ``contents`` is the sum over all samples. ``crc32`` is the sum over the first, middle and last sample, which is all
    that earlier versions recorded. A mesh counts with its vertices and simplices, which determine its weights.

    Cost: every sample is read once, in blocks that fit in memory.
    """
    rows = np.unique([0, len(samples) // 2, len(samples) - 1])

    def array(source: ArraySource | None) -> Json:
        if source is None:
            return None
        return {
            "shape": list(source.shape),
            "dtype": np.dtype(source.dtype).name,
            "crc32": _crc32([source[rows]]),
            "contents": _crc32(source[block] for block in blocks(source)),
        }

    def nodes(domain: Domain | Decomposed | None) -> Json:
        if domain is None:
            return None
        parts = defining_arrays(domain)
        first = _crc32([np.asarray(part)[rows] if domain.is_batched else part for part in parts])
        return {**describe_domain(domain), "crc32": first}

    if isinstance(samples, Examples):
        return {"examples": len(samples), "inputs": array(samples.inputs), "labels": array(samples.labels)}
    return {
        "samples": len(samples),
        **{name: array(getattr(samples, name)) for name in ("inputs", "targets", "initial")},
        **{name: nodes(getattr(samples, name)) for name in ("domain", "at")},
    }


def functions_of(sources: Iterable[DataSource]) -> UInt8[np.ndarray, "n 16"]:
    """Returns the hashes of the input functions of sets of samples, a row for each; other sources have none.

    They tell whether a function was among them, also where the functions themselves are not; see `digests`.

    Cost: every sample is read once, in blocks that fit in memory.
    """
    sets = [source.source if isinstance(source, RandomNodes) else source for source in sources]
    found = [digest for one in sets if isinstance(one, Samples | RaggedSamples) for digest in digests(one, "source")]
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 16)


def as_set(hashes: UInt8[np.ndarray, "n 16"] | None) -> set[bytes]:
    """Returns the rows of `functions_of` as a set, in which `digests` are looked up; none for None."""
    return set() if hashes is None else {row.tobytes() for row in hashes}


def digests(given: object, argument: str, *, targets: bool = False) -> Iterator[bytes]:
    """Yields a hash of each input function, of its values in float32 on its own nodes, and of its target if asked.

    Without targets, residuals are known by their inputs.
    """
    check_type(given, argument, (Samples, RaggedSamples), "data.Samples or data.RaggedSamples")
    samples = cast(Samples | RaggedSamples, given)

    def digest(*arrays: ArrayLike | None) -> bytes:
        total = hashlib.blake2b(digest_size=16)
        with np.errstate(over="ignore"):
            for array in arrays:
                total.update(b"" if array is None else (np.asarray(array, "<f4") + np.float32(0)).tobytes())  # −0 is 0
        return total.digest()

    if isinstance(samples, RaggedSamples):
        for i in range(len(samples)):
            one = samples.sample(i)
            yield digest(one.inputs, one.initial, *([one.targets] if targets else []))
        return
    sources = (samples.inputs, samples.initial, *([samples.targets] if targets else []))
    for rows in row_slices(len(samples), max(math.prod(s.shape[1:]) for s in sources if s is not None)):
        arrays = [None if source is None else np.asarray(source[rows]) for source in sources]
        for i in range(rows.stop - rows.start):
            yield digest(*(None if array is None else array[i] for array in arrays))


def _crc32(parts: Iterable[ArrayLike]) -> str:
    return f"{checksum(parts):08x}"
