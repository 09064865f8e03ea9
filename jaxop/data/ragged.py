"""Sets of samples that each have their own nodes, in buckets of padded sizes."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

from jaxop._validation import as_integer, check_size, first_index, jax_dtype, on_device, warn_float64
from jaxop.data import _buckets
from jaxop.data._support import checksum, defining_arrays
from jaxop.data.groups import Group
from jaxop.data.sample import Sample
from jaxop.data.samples import Batch, checked_indices
from jaxop.domains import Domain, Mesh, pad, stack
from jaxop.domains.builders import _can_be_padded, _describe
from jaxop.domains.domain import bounding_box


@runtime_checkable
class SampleSequence(Protocol):
    """A list of `Sample`, or any object that reads sample i when it is asked for, such as one of a folder of files."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, i: int, /) -> Sample:
        """Returns sample i, for 0 ≤ i < len(self)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """Samples of a `RaggedSamples` that are padded to the same numbers of nodes.

    Attributes:
        indices: numbers of the samples in the set, increasing, shape (g,).
        nodes: nodes of the inputs, with padding.
        at_nodes: nodes of the targets, with padding; None if they are those of the inputs.
        simplices: triangles of the inputs' meshes, with padding; None if they are not meshes.
        at_simplices: triangles of the targets' meshes, with padding; None if they are not meshes.
        padding: share of padding among all nodes, between 0 and 1.
    """

    indices: Int[np.ndarray, " g"]
    nodes: int
    at_nodes: int | None
    simplices: int | None
    at_simplices: int | None
    padding: float

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.indices)

    @property
    def name(self) -> str:
        """Sizes and padding as text, such as "1,024 nodes (6% padding)"."""
        nodes = f"{self.nodes:,}" if self.at_nodes is None else f"{self.nodes:,} → {self.at_nodes:,}"
        return f"{nodes} nodes ({self.padding:.0%} padding)"


class RaggedSamples:
    """N pairs of functions (u_s, v_s), each on its own nodes, in a few buckets of padded sizes; a `DataSource`.

    The samples of a bucket get nodes of weight 0 (`jaxop.domains.pad`), which change no integral, up to one size,
    so that they form batches and one compiled program serves all of them. At first a bucket ends at each of the
    sizes 128·1.25^k, for the nodes of the inputs and of the targets. Buckets are then united as long as at most 12 % of
    all nodes are padding, until there are at most ``max_buckets``, and for training until each has enough samples for
    a batch. A bucket is as large as its largest sample, rounded up by at most 1/16. `buckets` tells what was chosen.

    The samples are read once, one at a time, when the set is built, and again for every batch. Only those of a batch
    are in memory if ``samples`` reads on demand.

    Domains are scattered nodes, meshes, or one-dimensional grids of given nodes, of one kind for all samples. Grids of
    a rule cannot be padded: they must all be of one size, such as the grid of all targets.

    Operators must take any nodes: `jaxop.operators.TransformerNeuralOperator`, without Schwarz attention,
    `jaxop.operators.LatentNeuralOperator`, `jaxop.operators.LatentGridOperator` and
    `jaxop.operators.FlowNeuralOperator`.

    Args:
        samples: a list of `Sample`, or any object with ``__len__`` and a ``__getitem__(i)`` that reads sample i.
        max_buckets: largest number of buckets. Each takes one compilation; few buckets need more padding.

    Attributes:
        samples: the samples; ``samples[i]`` is not padded.
        in_channels: channels of the inputs.
        out_channels: channels of the targets.
        initial_channels: length of ``initial``, 0 if the samples do not have any.
        dim: space dimensions.

    Raises:
        TypeError: if ``samples`` is not a sequence of `Sample`.
        ValueError: if the set is empty, a value is not finite, samples differ in channels, dimension, dtype or kind of
            domain, or grids of a rule differ in size, because they cannot be padded. The message names the sample.

    Cost: every sample is read once. Beyond the samples, about 100 bytes for each.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> random = np.random.default_rng(0)
        >>> clouds = [domains.monte_carlo(random.random((n, 2), np.float32)) for n in (70, 72, 190, 200)]
        >>> pairs = [data.Sample(np.ones((c.size, 1), np.float32), np.asarray(c.points), c) for c in clouds]
        >>> samples = data.RaggedSamples(pairs)
        >>> [(bucket.count, bucket.name) for bucket in samples.buckets]
        [(2, '72 nodes (1% padding)'), (2, '200 nodes (3% padding)')]
        >>> batch = samples[[3, 2]]
        >>> batch.inputs.shape, batch.domain.is_batched, batch.domain.weights[1, -10:].sum().item()
        ((2, 200, 1), True, 0.0)
    """

    samples: SampleSequence

    def __init__(self, samples: SampleSequence, *, max_buckets: int = 8):
        if isinstance(samples, Mapping | str) or not isinstance(samples, SampleSequence):
            raise TypeError(
                f"samples must be a list of data.Sample, or an object with __len__ and __getitem__, got "
                f"{type(samples).__name__}."
            )
        check_size(max_buckets, "max_buckets")
        if not len(samples):
            raise ValueError("samples is empty; a dataset needs at least one sample.")
        self.samples, self._most = samples, max_buckets
        sizes, sums, corners = [], [], []
        for i in range(len(samples)):
            sample = _read(samples, i)
            form = _form(sample)
            if i == 0:
                self._form = form
                self._padded = _can_be_padded(sample.domain), _can_be_padded(sample.target_domain)
            _check_form(form, self._form, i)
            for name in ("inputs", "targets", "initial"):
                if (values := getattr(sample, name)) is not None:
                    warn_float64(values, f"samples[{i}].{name}")
                    _check_finite(values, f"samples[{i}].{name}")
            sizes.append(_sizes(sample))
            sums.append(_checksums(sample))
            corners.append(bounding_box(sample.domain))
        self._sizes, self._checksums, self._corners = np.array(sizes), np.array(sums, "<u4"), np.array(corners)

    @property
    def in_channels(self) -> int:  # noqa: D102, see the class
        return self._form["input channels"]

    @property
    def out_channels(self) -> int:  # noqa: D102
        return self._form["target channels"]

    @property
    def initial_channels(self) -> int:  # noqa: D102
        return self._form["initial channels"]

    @property
    def dim(self) -> int:  # noqa: D102
        return self._form["space dimensions"]

    @property
    def has_at(self) -> bool:
        """Whether the targets have nodes of their own."""
        return bool(self._sizes[0, 2])

    @property
    def target_sizes(self) -> Int[np.ndarray, " n"]:
        """Number of nodes of each target, without padding."""
        return self._sizes[:, 2 if self.has_at else 0]

    @property
    def corners(self) -> Float[np.ndarray, "2 dim"]:
        """The lower and the upper corner of the box around all nodes of the inputs that have positive weight."""
        return np.stack([self._corners[:, 0].min(axis=0), self._corners[:, 1].max(axis=0)])

    @functools.cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets of ``samples[indices]``, smallest first; training unites those that are smaller than a batch."""
        return self._choose(1)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, indices: slice | Sequence[SupportsIndex] | Int[np.ndarray | Array, " b"]) -> Batch:
        """Returns samples of one bucket as a `Batch` with stacked domains, in this order; numbers may repeat.

        Values at added nodes repeat those of the last node.

        Raises:
            ValueError: if there are no indices, or the samples are in several buckets, whose numbers of nodes differ.
        """
        index = checked_indices(indices, len(self), "samples")
        if not index.size:
            raise ValueError("indices do not select any sample; a batch needs at least one, which tells its bucket.")
        found = [bucket for bucket in self.buckets if np.isin(index, bucket.indices).any()]
        if len(found) > 1:
            other = index[np.isin(index, found[0].indices, invert=True)][0]
            raise ValueError(
                f"indices must be samples of one bucket, but sample {other} is not in that of {found[0].name}; take "
                "them from the indices of one of samples.buckets, or use samples.sample(i) for one without padding."
            )
        return self._batch(index, found[0])

    def sample(self, index: SupportsIndex) -> Sample:
        """Returns one sample on its own nodes, without padding."""
        (i,) = checked_indices([as_integer(index, "index")], len(self), "samples")
        sample = _read(self.samples, int(i))
        if _sizes(sample) != tuple(self._sizes[i]):
            raise ValueError(
                f"samples[{i}] has changed: it had {self._sizes[i, 0]} nodes when the set was built, and has "
                f"{sample.domain.size} now; build the set again."
            )
        return sample

    def take(self, indices: slice | Sequence[SupportsIndex] | Int[np.ndarray | Array, " b"]) -> "RaggedSamples":
        """Returns the set of the given samples, with buckets of its own; samples in files stay there.

        Example:
            >>> import numpy as np
            >>> from jaxop import data, domains
            >>> grids = [domains.from_samples(np.linspace(0, 1, n, dtype=np.float32)) for n in (5, 6, 7)]
            >>> samples = data.RaggedSamples([data.Sample(g.points, g.points, g) for g in grids])
            >>> len(samples.take([2, 0])), samples.take([2]).buckets[0].nodes
            (2, 7)
        """
        index = checked_indices(indices, len(self), "samples")
        if not index.size:
            raise ValueError(f"indices do not select any of the {len(self)} samples; a set needs at least one.")
        result = object.__new__(RaggedSamples)  # a part of a checked set needs no second scan
        result.samples, result._most = _Chosen(self.samples, index), self._most
        result._form, result._padded = self._form, self._padded
        result._sizes, result._checksums = self._sizes[index], self._checksums[index]
        result._corners = self._corners[index]
        return result

    def groups(self, batch_size: int) -> list[Group]:
        """Returns a `Group` for each bucket, united so that each has at least ``batch_size`` samples; see `DataSource`.

        If the whole set is smaller than a batch, there is one group.
        """
        return [
            Group(bucket.indices, _OneBucket(self, bucket), bucket.name, self.target_sizes[bucket.indices])
            for bucket in (self.buckets if batch_size == 1 else self._choose(batch_size))
        ]

    def identity(self) -> dict[str, Any]:
        """Returns sizes and CRC-32 sums of all samples, which were computed when the set was built."""
        names = ("inputs", "targets", "initial", "domain", "at")
        sums = {name: f"{zlib.crc32(self._checksums[:, i].tobytes()):08x}" for i, name in enumerate(names)}
        nodes = {"nodes": int(self._sizes[:, 0].sum()), "at_nodes": int(self._sizes[:, 2].sum())}
        return {"samples": len(self), **nodes, **self._form, "contents": sums}

    def _choose(self, batch_size: int) -> tuple[Bucket, ...]:
        nodes = self._sizes[:, [0, 2] if self.has_at else [0]]
        buckets = []
        for indices in _buckets.choose(nodes, batch_size=batch_size, most=self._most):
            largest = self._sizes[indices].max(axis=0)
            fits = [self._padded[0], True, self._padded[1], True]
            n, simplices, k, at_simplices = np.where(fits, _buckets.rounded(largest), largest).tolist()
            share = _buckets.padding(nodes[indices], (n, k) if self.has_at else (n,))
            at = k if self.has_at else None
            buckets.append(Bucket(indices, n, at, simplices or None, at_simplices or None, share))
        return tuple(buckets)

    def _batch(self, index: Int[np.ndarray, " b"], bucket: Bucket) -> Batch:
        """Returns samples as a batch of the sizes of a bucket; samples that repeat are read once."""
        read = {i: self.sample(i) for i in dict.fromkeys(index.tolist())}
        samples = [read[i] for i in index.tolist()]

        def values(name: str, size: int | None) -> Array:
            rows = [getattr(sample, name) for sample in samples]
            if size is not None:
                rows = [np.pad(row, [(0, size - row.shape[0]), (0, 0)], mode="edge") for row in rows]
            return on_device(np.stack(rows), jax_dtype(rows[0].dtype))

        at = None
        if bucket.at_nodes is not None:
            at = _stacked([sample.target_domain for sample in samples], bucket.at_nodes, bucket.at_simplices)
        return Batch(
            inputs=values("inputs", bucket.nodes),
            targets=values("targets", bucket.nodes if bucket.at_nodes is None else bucket.at_nodes),
            domain=_stacked([sample.domain for sample in samples], bucket.nodes, bucket.simplices),
            at=at,
            initial=values("initial", None) if self.initial_channels else None,
            index=on_device(index, np.int32),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _OneBucket:
    """The samples of one bucket as a `DataSource`."""

    whole: RaggedSamples
    bucket: Bucket

    def __len__(self) -> int:
        return self.bucket.count

    def __getitem__(self, indices: Int[np.ndarray, " b"]) -> Batch:
        return self.whole._batch(self.bucket.indices[indices], self.bucket)


class _Chosen:
    """Selected samples, which are read on demand."""

    def __init__(self, samples: SampleSequence, index: Int[np.ndarray, " n"]):
        self._samples, self._index = samples, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int, /) -> Sample:
        return self._samples[int(self._index[i])]


def _read(samples: SampleSequence, i: int) -> Sample:
    """Returns sample i; an error says which one it is."""
    try:
        sample = samples[i]
    except Exception as error:
        error.add_note(f"(while reading samples[{i}])")
        raise
    if not isinstance(sample, Sample):
        raise TypeError(
            f"samples[{i}] must be a data.Sample(inputs, targets, domain, ...), got {type(sample).__name__}."
        )
    return sample


def _form(sample: Sample) -> dict[str, Any]:
    """Returns what all samples of a set must have in common."""
    initial = sample.initial
    return {
        "space dimensions": sample.domain.dim,
        "input channels": sample.inputs.shape[1],
        "target channels": sample.targets.shape[1],
        "initial channels": 0 if initial is None else initial.shape[0],
        "domain": _kind(sample.domain),
        "target domain": "that of the inputs" if sample.at is None else _kind(sample.at),
        "dtype of the inputs": jax_dtype(np.dtype(sample.inputs.dtype)).name,
        "dtype of the targets": jax_dtype(np.dtype(sample.targets.dtype)).name,
    }


def _kind(domain: Domain) -> str:
    """Returns the kind of a domain that can be padded, or all about another one: all samples have the same."""
    if _can_be_padded(domain):
        return f"{type(domain).__name__}, {domain.weights.dtype}"
    return _describe(domain)


def _check_form(form: Mapping[str, Any], first: Mapping[str, Any], i: int) -> None:
    """Raises ``ValueError`` if sample i differs from the first sample in what all must have in common."""
    for what, received in form.items():
        if received == first[what]:
            continue
        if what.endswith("domain"):
            remedy = (
                "nodes that differ need domains of one kind that can be padded: convert each with "
                "domains.from_nodes(domain.points, domain.weights)"
            )
            if "that of the inputs" in (received, first[what]):
                remedy = "give `at` for all samples or for none"
        else:
            remedy = f"all samples of a set need the same {what}"
        raise ValueError(
            f"samples[{i}] and samples[0] differ in {what}: {received} instead of {first[what]}; {remedy}."
        )


def _check_finite(values: np.ndarray, argument: str) -> None:
    """Raises ``ValueError`` if an entry is not finite in JAX's dtype, and names the first."""
    dtype = jax_dtype(np.dtype(values.dtype))
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(values.astype(dtype, copy=False))
    if bad.any():
        where = first_index(bad)
        place = ", ".join(map(str, where if isinstance(where, tuple) else (where,)))
        raise ValueError(
            f"{argument} must be finite in {dtype}, but {argument}[{place}] = {values[where]}; remove or repair this "
            "sample."
        )


def _sizes(sample: Sample) -> tuple[int, int, int, int]:
    """Returns nodes and simplices of the inputs' domain and of the targets' own domain, 0 where there are none."""
    at, at_simplices = (0, 0) if sample.at is None else (sample.at.size, _simplices(sample.at))
    return sample.domain.size, _simplices(sample.domain), at, at_simplices


def _simplices(domain: Domain) -> int:
    return domain.simplices.shape[0] if isinstance(domain, Mesh) else 0


def _checksums(sample: Sample) -> tuple[int, ...]:
    """Returns checksums of the values and the domains, 0 for what is None."""
    values = (sample.inputs, sample.targets, sample.initial)
    domains = (sample.domain, sample.at)
    parts = [None if value is None else [value] for value in values]
    parts += [None if domain is None else defining_arrays(domain) for domain in domains]
    return tuple(0 if part is None else checksum(part) for part in parts)


def _stacked(domains: Sequence[Domain], size: int, simplices: int | None) -> Domain:
    """Returns a stack of domains that are padded to one size, or equal in size if they cannot be padded."""
    if not _can_be_padded(domains[0]):
        return stack(domains)
    count: dict[str, Any] = {}
    if isinstance(first := domains[0], Mesh) and simplices is not None:
        count[first.simplices_name] = simplices
    return stack([pad(domain, size, **count) for domain in domains])
