"""Sets of sampled functions, and batches from them."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxop._pytree import register
from jaxop._validation import (
    as_integer,
    check_plain,
    check_real,
    first_index,
    jax_dtype,
    on_device,
    plain_array,
    warn_float64,
)
from jaxop.data._support import seed_sequence
from jaxop.data.sample import Sample
from jaxop.domains import Decomposed, Domain, Grid
from jaxop.domains.domain import as_domain

_BLOCK = 2**22  # numbers in memory at once while a set is scanned, 32 MiB of float64
_ORDER = 0x6F72  # the random stream of the order of samples, which generated problems do not use

Rows = slice | EllipsisType | SupportsIndex | Sequence[int] | np.ndarray
"""Rows of an array: a slice or numbers of rows."""


Part = tuple[int, slice]
"""One row of an array and a slice of its second axis, by which trajectories read times."""


@runtime_checkable
class ArraySource(Protocol):
    """Array whose rows a set of samples can read: a NumPy array, or a file that is read lazily.

    Rows are chosen by a slice or by strictly increasing indices along the first axis.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis, samples first."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of the entries."""
        ...

    def __getitem__(self, index: Rows, /) -> Any:
        """Returns the rows of a slice or of strictly increasing indices."""
        ...


@register
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of input and target functions with their domains, in JAX arrays; it is a pytree.

    Attributes:
        inputs: shape (b, n, c_in).
        targets: shape (b, k, c_out).
        domain: domain of the inputs, shared or stacked.
        at: domain of the targets; None means ``domain``.
        initial: data given at the first node, shape (b, c0); None if the set has no initial data.
        index: number of each sample in its set, shape (b,).
    """

    inputs: Float[Array, "b n c"]
    targets: Float[Array, "b k e"]
    domain: Domain | Decomposed
    at: Domain | Decomposed | None
    initial: Float[Array, "b i"] | None
    index: Int[Array, " b"]

    @property
    def target_domain(self) -> Domain:
        """The domain of the targets."""
        return as_domain(self.domain if self.at is None else self.at, "at")


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """N pairs of functions (u_s, v_s): inputs u_s(x_i) and targets v_s(y_j), checked when they are built.

    Arrays stay where they are, in memory or in a file. `samples[indices]` reads rows into JAX arrays. float64 becomes
    float32 unless x64 is enabled; one warning says so.

    Args:
        inputs: shape (N, n, c_in); an array, or anything that reads rows (`ArraySource`).
        targets: shape (N, k, c_out).
        domain: domain of the inputs: one for all, or N in a stack (`jaxop.domains.stack`), or the decomposition of
            one (`jaxop.schwarz.Decomposition`), for operators that use its subdomains.
        at: domain of the targets, shared or stacked; None means ``domain``.
        initial: data given at the first node, shape (N, c0), for operators that need them.

    Raises:
        TypeError: if an argument is not a real array or not a domain. Masked arrays, arrays of times and arrays with
            a unit are not accepted, because they carry more than numbers.
        ValueError: if the set is empty, shapes do not fit each other or the domain, the domains have different
            dimensions, or a value is not finite. The message names the first bad entry.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> u = np.ones((8, 64, 1), np.float32)
        >>> samples = data.Samples(u, 2 * u, domains.interval(64))
        >>> batch = samples[[5, 2]]
        >>> len(samples), batch.targets.shape, batch.index.tolist()
        (8, (2, 64, 1), [5, 2])
    """

    inputs: ArraySource
    targets: ArraySource
    domain: Domain | Decomposed
    at: Domain | Decomposed | None = None
    initial: ArraySource | None = None

    def __post_init__(self):
        for name in ("inputs", "targets", "initial"):
            value = getattr(self, name)
            if value is None and name == "initial":
                continue
            check_array(value, name)
            if isinstance(value, jax.Array | np.ndarray):
                object.__setattr__(self, name, np.asarray(value))
        domain = as_domain(self.domain, "domain")
        at = domain if self.at is None else as_domain(self.at, "at")
        check_functions(self.inputs, domain, "inputs", "domain")
        check_functions(self.targets, at, "targets", "domain" if self.at is None else "at")
        count = self.inputs.shape[0]
        if self.targets.shape[0] != count:
            raise ValueError(
                f"targets has {self.targets.shape[0]} samples for the {count} of inputs; give one target per input."
            )
        if at.dim != domain.dim:
            raise ValueError(
                f"at has dimension {at.dim}, but domain has dimension {domain.dim}; "
                "an operator maps between functions on one space: build both grids with the same number of axes."
            )
        if self.initial is not None and (len(self.initial.shape) != 2 or self.initial.shape[0] != count):
            raise ValueError(
                f"initial must have shape (samples, channels) = ({count}, channels), got {self.initial.shape}."
            )
        arrays = {"inputs": self.inputs, "targets": self.targets, "initial": self.initial}
        for name, array in arrays.items():
            if array is not None:
                _check_finite(array, name, at if name == "targets" else domain)
        for name, array in arrays.items():
            if array is not None and array.dtype == np.float64:
                warn_float64(array, name)
                break

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __getitem__(self, indices: slice | Sequence[SupportsIndex] | Int[np.ndarray | Array, " b"]) -> Batch:
        """Returns the samples of the given numbers as a `Batch`, in their order; numbers may repeat."""
        index = checked_indices(indices, len(self), "samples")
        return Batch(
            inputs=_to_jax(_rows(self.inputs, index, "inputs")),
            targets=_to_jax(_rows(self.targets, index, "targets")),
            domain=self._domain_at(index, "domain"),
            at=None if self.at is None else self._domain_at(index, "at"),
            initial=None if self.initial is None else _to_jax(_rows(self.initial, index, "initial")),
            index=on_device(index, np.int32),
        )

    @property
    def target_domain(self) -> Domain:
        """The domain of the targets."""
        return as_domain(self.domain if self.at is None else self.at, "at")

    @property
    def in_channels(self) -> int:
        """Channels of the inputs."""
        return self.inputs.shape[-1]

    @property
    def out_channels(self) -> int:
        """Channels of the targets."""
        return self.targets.shape[-1]

    @property
    def initial_channels(self) -> int:
        """Length of ``initial``, 0 if the set has no initial data."""
        return 0 if self.initial is None else self.initial.shape[-1]

    @property
    def dim(self) -> int:
        """Space dimensions."""
        return as_domain(self.domain, "domain").dim

    def sample(self, index: SupportsIndex) -> Sample:
        """Returns one sample by itself, on its own domain; of a decomposition, on the domain that was decomposed."""
        rows = checked_indices([as_integer(index, "index")], len(self), "samples")

        def domain(name: str) -> Domain:
            one = as_domain(self._domain_at(rows, name), name)
            return jax.tree.map(lambda leaf: leaf[0], one) if one.is_batched else one

        return Sample(
            inputs=_rows(self.inputs, rows, "inputs")[0],
            targets=_rows(self.targets, rows, "targets")[0],
            domain=domain("domain"),
            at=None if self.at is None else domain("at"),
            initial=None if self.initial is None else _rows(self.initial, rows, "initial")[0],
        )

    def take(self, indices: slice | Sequence[SupportsIndex] | Int[np.ndarray | Array, " b"]) -> "Samples":
        """Returns the set of the given samples; arrays in files stay in the file.

        Example:
            >>> import numpy as np
            >>> from jaxop import data, domains
            >>> u = np.ones((8, 64, 1), np.float32)
            >>> samples = data.Samples(u, u, domains.interval(64))
            >>> len(samples.take(slice(0, 6))), len(samples.take([6, 7]))
            (6, 2)
        """
        index = checked_indices(indices, len(self), "samples")
        if not index.size:
            raise ValueError(f"indices do not select any of the {len(self)} samples; a set needs at least one.")

        def part(source: ArraySource | None, name: str) -> ArraySource | None:
            if source is None or isinstance(source, np.ndarray):
                return None if source is None else source[index]
            return _Part(source, index, name)

        result = object.__new__(Samples)  # a part of a checked set needs no second scan
        for name in ("inputs", "targets", "initial"):
            object.__setattr__(result, name, part(getattr(self, name), name))
        object.__setattr__(result, "domain", self._domain_at(index, "domain"))
        object.__setattr__(result, "at", None if self.at is None else self._domain_at(index, "at"))
        return result

    def _domain_at(self, index: np.ndarray, name: str) -> Domain | Decomposed:
        domain = getattr(self, name)
        if not domain.is_batched:
            return domain
        return jax.tree.map(lambda leaf: on_device(leaf[index]), self._host_domains[name])

    @functools.cached_property
    def _host_domains(self) -> dict[str, Domain | Decomposed | None]:
        """Stacked domains in host memory, where a few rows are read without a transfer of all rows."""
        return {name: jax.tree.map(np.asarray, getattr(self, name)) for name in ("domain", "at")}


def batch_indices(
    size: SupportsIndex, batch_size: SupportsIndex, *, seed: SupportsIndex, step: SupportsIndex
) -> Int[np.ndarray, " b"]:
    """Samples of training step t: entries (t mod m)·b, …, (t mod m)·b + b − 1 of the order of epoch t // m, m = N // b.

    The order of an epoch is a permutation that depends only on (seed, epoch). The step is therefore the whole state of
    the data pipeline, and any step can be recomputed without the steps before it. The last N mod b samples of the
    order do not fill a batch and are left out. Every epoch has a new order, so a sample may be left out repeatedly.

    Args:
        size: number N of samples in the set.
        batch_size: b.
        seed: non-negative integer.
        step: t ≥ 0.

    Returns:
        b sample numbers without repetition. Cost: O(N log N) once per epoch, O(b) per step.

    Raises:
        ValueError: if the set is empty, the batch is empty or larger than the set, or step or seed is negative.

    Example:
        >>> from jaxop import data
        >>> epoch = [data.batch_indices(6, 2, seed=0, step=t) for t in range(3)]
        >>> sorted(int(i) for batch in epoch for i in batch)
        [0, 1, 2, 3, 4, 5]
    """
    size, batch_size = as_integer(size, "size"), as_integer(batch_size, "batch_size")
    seed, step = as_integer(seed, "seed"), as_integer(step, "step")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}: the dataset is empty.")
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size must lie between 1 and the {size} samples of the set, got {batch_size}; "
            "make the batch smaller or the dataset larger."
        )
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}.")
    epoch, batch = divmod(step, size // batch_size)
    return _order(size, seed, epoch)[batch * batch_size : (batch + 1) * batch_size].copy()


@functools.lru_cache(maxsize=16)  # members of an ensemble have orders of their own
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(size, seed_sequence(seed, _ORDER, epoch))


def permutation(size: int, seed: np.random.SeedSequence) -> Int[np.ndarray, " n"]:
    """Returns a permutation of 0, …, size − 1 that is the same in every version of NumPy."""
    bits = np.random.Philox(seed).random_raw(size)  # raw bits of a counter-based generator
    return np.argsort(bits, kind="stable")


def blocks(source: ArraySource) -> Iterator[slice]:
    """Yields slices of samples that cover the array and each fit in memory."""
    count, *rest = source.shape
    yield from row_slices(count, int(np.prod(rest)))


def row_slices(count: int, size: int) -> Iterator[slice]:
    """Yields slices that cover ``count`` rows of ``size`` numbers and each fit in memory."""
    rows = max(1, _BLOCK // max(1, size))
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def check_functions(values: ArraySource, domain: Domain, argument: str, domain_argument: str) -> None:
    """Raises an error unless ``values`` are N ≥ 1 functions (N, n, c) on one domain or a stack of N domains."""
    check_array(values, argument)
    shape = tuple(values.shape)
    if len(shape) != 3:
        raise ValueError(
            f"{argument} must have shape (samples, n, channels), got {shape}; "
            "jaxop.data.from_arrays takes functions on a grid, (samples, *grid) or (samples, *grid, channels)."
        )
    if 0 in shape:
        raise ValueError(f"{argument} is empty: its shape is {shape}; a dataset needs at least one sample and channel.")
    if shape[1] != domain.size:
        raise ValueError(
            f"{argument} has {shape[1]} nodes, but {domain_argument} has {domain.size}; "
            "give the domain that the functions were sampled on."
        )
    if domain.is_batched and (count := jax.tree.leaves(domain)[0].shape[0]) != shape[0]:
        raise ValueError(
            f"{domain_argument} stacks {count} domains for the {shape[0]} samples of {argument}; "
            "give one domain for all or one per sample."
        )


def check_array(value: object, argument: str) -> None:
    """Raises ``TypeError`` unless ``value`` is an array of real numbers."""
    if not isinstance(value, ArraySource):
        raise TypeError(f"{argument} must be an array, got {type(value).__name__}; convert it with numpy.asarray.")
    check_plain(value, argument)
    check_real(value.dtype, argument)


def plain_rows(source: ArraySource, index: Rows, argument: str) -> np.ndarray:
    """Returns rows of an array in NumPy; raises if they have a mask, by which files may mark missing entries."""
    return plain_array(source[index], argument)


def checked_indices(indices: object, count: int, what: str) -> np.ndarray:
    """Returns numbers of samples as an array of non-negative integers below ``count``."""
    if isinstance(indices, slice):
        return np.arange(count)[indices]
    index = plain_array(indices, "indices")
    if index.size == 0:
        index = index.astype(np.int64)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise TypeError(
            f"indices must be a slice or a sequence of integers, got {index.dtype} of shape {index.shape}; "
            f"read one of the {what} by {what}[[i]]."
        )
    bad = (index < -count) | (index >= count)
    if bad.any():
        i = first_index(bad)
        raise IndexError(f"indices[{i}] = {index[i]} is out of range: there are {count} {what}.")
    return np.where(index < 0, index + count, index)


def _check_finite(source: ArraySource, argument: str, domain: Domain) -> None:
    """Raises ``ValueError`` if an entry is not finite in JAX's dtype, and names the first; reads files in blocks."""
    dtype = jax_dtype(np.dtype(source.dtype))
    for rows in blocks(source):
        fault = finite_fault(plain_rows(source, rows, argument), dtype, domain)
        if fault is None:
            continue
        (first, *rest), value, place = fault
        sample = rows.start + first
        entry = f"{argument}[{', '.join(map(str, (sample, *rest)))}]"
        raise ValueError(
            f"{argument} must be finite in {dtype}, but {entry} = {value} (sample {sample}{place}); remove or repair "
            "this sample."
        )


def finite_fault(block: np.ndarray, dtype: np.dtype, domain: Domain) -> tuple[tuple[int, ...], np.generic, str] | None:
    """Returns the first entry that is not finite in ``dtype``: its index, its value and its grid index and channel.

    None if all entries are finite. Blocks of functions have shape (rows, n, channels).
    """
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(block.astype(dtype, copy=False))
    if not bad.any():
        return None
    where, place = first_index(bad), ""
    where = where if isinstance(where, tuple) else (where,)
    if len(where) == 3:
        place = f"{place_of(domain, where[1])}, channel {where[2]}"
    return where, block[where], place


def place_of(domain: Domain, node: int) -> str:
    """Returns the index of a node along each axis of a grid, for a message; "" for other domains."""
    if not isinstance(domain, Grid) or domain.dim == 1:
        return ""
    return f", grid index {tuple(int(i) for i in np.unravel_index(node, domain.shape))}"


def _rows(source: ArraySource, index: np.ndarray, argument: str) -> np.ndarray:
    """Returns rows in any order from a source that reads strictly increasing indices."""
    if isinstance(source, np.ndarray):
        return source[index]
    increasing, inverse = np.unique(index, return_inverse=True)
    return plain_rows(source, increasing, argument)[inverse]


def _to_jax(rows: np.ndarray) -> Array:
    """Returns a JAX array in the rows' floating dtype, at most JAX's default precision; integers become floats."""
    return on_device(rows, jax_dtype(rows.dtype))


class _Part:
    """Selected samples of a lazily read array."""

    def __init__(self, source: ArraySource, index: np.ndarray, argument: str):
        self._source, self._index, self._argument = source, index, argument

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._index), *self._source.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self._source.dtype

    def __getitem__(self, index: Rows, /) -> np.ndarray:
        return _rows(self._source, self._index[index], self._argument)
