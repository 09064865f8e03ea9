"""Sets of solutions in time, of which single times are read."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Real

from jaxop._validation import (
    as_integer,
    check_increasing,
    check_size,
    first_index,
    host_real,
    jax_dtype,
    on_device,
    plain_array,
    warn_float64,
)
from jaxop.data._open_files import kept_open
from jaxop.data._support import checksum, describe_domain
from jaxop.data.samples import Part, check_array, checked_indices, finite_fault, row_slices
from jaxop.data.windows import Curriculum, Windows
from jaxop.domains import Decomposed, Domain
from jaxop.domains.domain import as_domain


@runtime_checkable
class FrameSource(Protocol):
    """Array (N, T, n, c) of which some times of one trajectory can be read.

    Arrays of NumPy (also memory-mapped), h5py and Zarr are such sources. Parts are read as
    ``source[i, start:stop:stride]`` only, with non-negative numbers.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of trajectories, times, nodes and channels."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of the entries."""
        ...

    def __getitem__(self, index: Part, /) -> Any:
        """Returns the times of a slice of one trajectory, shape (t, n, c)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """N solutions u_s(t_j, x_i), each at T increasing times on the nodes of a domain, checked when they are built.

    States stay where they are, in memory or in a file: windows read only the times that they need. Split a set into
    training and test sets by trajectories (`take`) or by times (`between`), and cut each into `windows` to train on.

    Args:
        states: u, shape (N, T, n, c); an array, or anything that reads some times of one trajectory (`FrameSource`).
        domain: one for all trajectories, or N in a stack (`jaxop.domains.stack`), or the decomposition of one.
        times: t_j in physical units, shape (T,) for all trajectories or (N, T), strictly increasing, even or uneven.
        parameters: constants of each trajectory, such as a viscosity, shape (N, p).
        parameter_names: names of the p parameters; () leaves them unnamed.

    Raises:
        TypeError: if an argument is not a real array or not a domain. Masked arrays, dates and arrays with a unit are
            not accepted, because they carry more than numbers.
        ValueError: if the set is empty, shapes do not fit each other or the domain, times do not increase, numbers of
            parameters or names differ, or a number is not finite. The message names the first bad entry.

    Cost: one pass over the states, in blocks.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> grid = domains.interval(64, rule="periodic")
        >>> times, speed = np.linspace(0, 1, 11), np.array([0.5, 1.0, 2.0])
        >>> x = np.asarray(grid.points)[:, 0]
        >>> u = np.sin(2 * np.pi * (x - speed[:, None, None] * times[:, None]))[..., None].astype(np.float32)
        >>> waves = data.Trajectories(u, grid, times, speed[:, None], ("speed",))
        >>> waves
        Trajectories(3 of 11 times on 64 nodes, 1 channel, 1 parameter, float32)
        >>> train, test = waves.take([0, 1]), waves.take([2])
        >>> len(train.windows(history=2, steps=3))
        14
    """

    states: FrameSource
    domain: Domain | Decomposed
    times: Real[Array | np.ndarray, " T"] | Real[Array | np.ndarray, "N T"]
    parameters: Real[Array | np.ndarray, "N p"] | None = None
    parameter_names: tuple[str, ...] = ()

    def __post_init__(self):
        states = self.states
        check_array(states, "states")
        if isinstance(states, jax.Array | np.ndarray) and not isinstance(states, np.memmap):
            object.__setattr__(self, "states", np.asarray(states))
        domain = as_domain(self.domain, "domain")
        _check_shape(tuple(states.shape), domain)
        object.__setattr__(self, "times", _checked_times(self.times, *self.states.shape[:2]))
        names = self.parameter_names
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"parameter_names must be a tuple of strings, got {names!r}.")
        object.__setattr__(self, "parameter_names", tuple(names))
        object.__setattr__(self, "parameters", _checked_parameters(self.parameters, self.parameter_names, len(self)))
        _check_finite(self, domain)
        warn_float64(self.states, "states")

    def __len__(self) -> int:
        return self.states.shape[0]

    def __repr__(self) -> str:
        parts = [
            f"{len(self)} of {self.steps} times on {self.states.shape[2]} nodes",
            _counted(self.channels, "channel"),
        ]
        if self.parameter_count:
            parts.append(_counted(self.parameter_count, "parameter"))
        return f"Trajectories({', '.join(parts)}, {self.states.dtype})"

    @property
    def steps(self) -> int:
        """T, the number of times of each trajectory."""
        return self.states.shape[1]

    @property
    def channels(self) -> int:
        """Channels of a state."""
        return self.states.shape[3]

    @property
    def dim(self) -> int:
        """Space dimensions."""
        return as_domain(self.domain, "domain").dim

    @property
    def parameter_count(self) -> int:
        """Number p of parameters of each trajectory, 0 if there are none."""
        return 0 if self.parameters is None else self.parameters.shape[1]

    def frames(self, index: SupportsIndex, times: slice) -> Real[np.ndarray, "t n c"]:
        """Reads the states of one trajectory at the times of a slice, and nothing else."""
        (i,) = checked_indices([as_integer(index, "index")], len(self), "trajectories")
        start, stop, stride = times.indices(self.steps)
        if stride < 1:
            raise ValueError(f"times must be a slice with a positive stride, got {stride}.")
        return plain_array(self.states[int(i), start:stop:stride], "states")

    def times_of(self, index: SupportsIndex) -> Float[np.ndarray, " T"]:
        """Returns the times of one trajectory, in float64."""
        times = np.asarray(self.times)
        return times if times.ndim == 1 else times[as_integer(index, "index")]

    def domain_of(self, indices: Sequence[SupportsIndex] | Int[np.ndarray, " b"]) -> Domain | Decomposed:
        """Returns the shared domain, or those of some trajectories in a stack."""
        if not self.domain.is_batched:
            return self.domain
        index = checked_indices(indices, len(self), "trajectories")
        return jax.tree.map(lambda leaf: on_device(leaf[index]), self._host_domain)

    def trajectory(
        self, index: SupportsIndex
    ) -> tuple[Real[np.ndarray, "T n c"], Float[np.ndarray, " T"], Float[np.ndarray, " p"] | None, Domain]:
        """Returns states, times, parameters and the domain of one trajectory; the domain that was decomposed, if any.

        Example:
            >>> import numpy as np
            >>> from jaxop import data, domains
            >>> waves = data.Trajectories(np.zeros((3, 5, 8, 1), np.float32), domains.interval(8), np.arange(5))
            >>> states, times, parameters, domain = waves.trajectory(0)
            >>> states.shape, times.tolist(), parameters, domain.size
            ((5, 8, 1), [0.0, 1.0, 2.0, 3.0, 4.0], None, 8)
        """
        i = as_integer(index, "index")
        states = self.frames(i, slice(None))
        domain = as_domain(self.domain_of([i]), "domain")
        domain = jax.tree.map(lambda leaf: leaf[0], domain) if domain.is_batched else domain
        return states, self.times_of(i), None if self.parameters is None else np.asarray(self.parameters)[i], domain

    def take(self, indices: slice | Sequence[SupportsIndex] | Int[np.ndarray | Array, " b"]) -> "Trajectories":
        """Returns the set of the given trajectories; states in files stay in the file.

        Example:
            >>> import numpy as np
            >>> from jaxop import data, domains
            >>> waves = data.Trajectories(np.zeros((10, 5, 8, 1), np.float32), domains.interval(8), np.arange(5))
            >>> len(waves.take(slice(0, 8))), len(waves.take([8, 9]))
            (8, 2)
        """
        index = checked_indices(indices, len(self), "trajectories")
        if not index.size:
            raise ValueError(f"indices do not select any of the {len(self)} trajectories; a set needs at least one.")
        states, times = self.states, np.asarray(self.times)
        return self._part(
            # a slice of an array in memory needs no copy
            states=states[indices if isinstance(indices, slice) else index]
            if type(states) is np.ndarray
            else _Selected(states, index, np.zeros_like(index), self.steps),
            domain=self.domain_of(index),
            times=times if times.ndim == 1 else times[index],
            parameters=None if self.parameters is None else np.asarray(self.parameters)[index],
        )

    def between(
        self, start: SupportsIndex | None, stop: SupportsIndex | None, stride: SupportsIndex = 1
    ) -> "Trajectories":
        """Returns the same trajectories at times t_start, t_(start + stride), … before t_stop.

        States stay where they are. Real data are split in this way, by years: neighbouring times are too similar to be
        told apart at random. A stride r > 1 makes steps that are r times as long.

        Args:
            start: number of the first time; None means 0, and negative numbers count from the end.
            stop: number of the time after the last; None means T.
            stride: r ≥ 1.

        Raises:
            ValueError: if no time lies between them, or ``stride`` is below 1.

        Example:
            >>> import numpy as np
            >>> from jaxop import data, domains
            >>> months = np.arange(132.0)
            >>> winds = data.Trajectories(np.zeros((1, 132, 8, 2), np.float32), domains.interval(8), months)
            >>> train, test = winds.between(0, 120), winds.between(120, None)
            >>> train.steps, test.times[0]
            (120, np.float64(120.0))
        """
        low, high = (None if end is None else as_integer(end, name) for name, end in (("start", start), ("stop", stop)))
        check_size(stride, "stride")
        first, last, step = slice(low, high, as_integer(stride, "stride")).indices(self.steps)
        if last <= first:
            raise ValueError(
                f"start={start} and stop={stop} leave none of the {self.steps} times; stop must lie behind start."
            )
        states = self.states
        return self._part(
            states=states[:, first:last:step]
            if type(states) is np.ndarray
            else _Selected(
                states, np.arange(len(self)), np.full(len(self), first), len(range(first, last, step)), step
            ),
            times=np.asarray(self.times)[..., first:last:step],
        )

    def pieces(self, length: SupportsIndex) -> "Trajectories":
        """Returns successive pieces of each trajectory as trajectories of their own; states stay where they are.

        Times that do not fill a piece are left out.

        Args:
            length: times of a piece.

        Raises:
            ValueError: if ``length`` is below 1 or above T.

        Example:
            >>> import numpy as np
            >>> from jaxop import data, domains
            >>> waves = data.Trajectories(np.zeros((3, 11, 8, 1), np.float32), domains.interval(8), np.arange(11.0))
            >>> parts = waves.pieces(5)
            >>> len(parts), parts.times_of(1).tolist()
            (6, [5.0, 6.0, 7.0, 8.0, 9.0])
        """
        check_size(length, "length")
        size = as_integer(length, "length")
        count = self.steps // size
        if not count:
            raise ValueError(f"length must be at most the {self.steps} times of a trajectory, got {size}.")
        owner = np.repeat(np.arange(len(self)), count)
        times = np.broadcast_to(np.asarray(self.times), (len(self), self.steps))[:, : count * size]
        return self._part(
            states=_Selected(self.states, owner, np.tile(size * np.arange(count), len(self)), size),
            domain=self.domain_of(owner),
            times=times.reshape(-1, size),
            parameters=None if self.parameters is None else np.asarray(self.parameters)[owner],
        )

    def windows(
        self,
        history: int = 1,
        steps: int = 1,
        strides: Sequence[int] = (1,),
        curriculum: Curriculum | None = None,
    ) -> Windows:
        """Returns all windows of consecutive times, as a data source for training; see `Windows`."""
        return Windows(self, history=history, steps=steps, strides=strides, curriculum=curriculum)

    @kept_open()
    def identity(self) -> dict[str, Any]:
        """Returns sizes and checksums of the contents, which a run compares when it is resumed.

        Cost: one pass over the states, in blocks.
        """
        blocks = (self.frames(i, times) for i in range(len(self)) for times in time_blocks(self.states.shape))
        return {
            "states": {
                "shape": list(self.states.shape),
                "dtype": np.dtype(self.states.dtype).name,
                "contents": f"{checksum(blocks):08x}",
            },
            "times": {"shape": list(np.shape(self.times)), "contents": f"{checksum([self.times]):08x}"},
            "parameters": None
            if self.parameters is None
            else {"names": list(self.parameter_names), "contents": f"{checksum([self.parameters]):08x}"},
            "domain": describe_domain(self.domain),
        }

    @functools.cached_property
    def _host_domain(self) -> Domain | Decomposed:
        """The stack in host memory, where a few rows are read without a transfer of all rows."""
        return jax.tree.map(np.asarray, self.domain)

    def _part(self, **changed: Any) -> "Trajectories":
        result = object.__new__(Trajectories)  # a part of a checked set needs no second scan
        for field in dataclasses.fields(self):
            object.__setattr__(result, field.name, changed.get(field.name, getattr(self, field.name)))
        return result


class _Selected:
    """Evenly spaced times of some trajectories, from a first time of each on, of states that stay where they are."""

    def __init__(
        self,
        source: FrameSource,
        rows: Int[np.ndarray, " b"],
        firsts: Int[np.ndarray, " b"],
        count: int,
        stride: int = 1,
    ):
        self._source, self._rows, self._firsts, self._count, self._stride = source, rows, firsts, count, stride

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), self._count, *self._source.shape[2:])

    @property
    def dtype(self) -> np.dtype:
        return self._source.dtype

    def __getitem__(self, index: Part, /) -> Any:
        i, times = index
        taken = range(*times.indices(self._count))
        first = int(self._firsts[i])
        start, stop = first + self._stride * taken.start, first + self._stride * (taken.stop - 1) + 1
        return self._source[int(self._rows[i]), start : max(start, stop) : self._stride * taken.step]


def floating(dtype: np.dtype) -> np.dtype:
    """Returns the dtype of states that are computed from others: theirs, or the default one if they are integers."""
    return dtype if np.issubdtype(dtype, np.floating) else jax_dtype(np.dtype(dtype))


def time_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yields slices of times of states (N, T, n, c) that cover one trajectory and each fit in memory."""
    yield from row_slices(shape[1], math.prod(shape[2:]))


def _check_shape(shape: tuple[int, ...], domain: Domain) -> None:
    if len(shape) != 4:
        raise ValueError(
            f"states must have shape (trajectories, times, n, channels), got {shape}; one trajectory is states[None], "
            "one channel states[..., None], and the axes of a grid are one axis of nodes: reshape(N, T, -1, channels)."
        )
    if 0 in shape:
        raise ValueError(f"states is empty: its shape is {shape}; a set needs a trajectory, a time and a channel.")
    if shape[2] != domain.size:
        raise ValueError(
            f"states has {shape[2]} nodes, but domain has {domain.size}; give the domain that the states were sampled "
            "on, and states of shape (trajectories, times, n, channels)."
        )
    if domain.is_batched and (count := jax.tree.leaves(domain)[0].shape[0]) != shape[0]:
        raise ValueError(
            f"domain stacks {count} domains for {shape[0]} trajectories; give one domain for all or one per trajectory."
        )


def _checked_times(times: object, count: int, steps: int) -> np.ndarray:
    found = host_real(times, "times")
    if found.shape not in ((steps,), (count, steps)):
        raise ValueError(
            f"times must have shape ({steps},), one for each time of the states, or ({count}, {steps}) if trajectories "
            f"have times of their own, got {found.shape}."
        )
    if not (good := np.isfinite(found)).all():
        where = first_index(~good)
        place = ", ".join(map(str, where)) if isinstance(where, tuple) else where
        raise ValueError(f"times must be finite, but times[{place}] = {found[where]}.")
    check_increasing(found, "times", found.dtype)
    return found


def _checked_parameters(parameters: object, names: tuple[str, ...], count: int) -> np.ndarray | None:
    if parameters is None:
        if names:
            raise ValueError(f"parameter_names={names} were given without parameters; give both or neither.")
        return None
    found = host_real(parameters, "parameters")
    if found.ndim != 2 or found.shape[0] != count or found.shape[1] == 0:
        raise ValueError(
            f"parameters must have shape (trajectories, parameters) = ({count}, p), got {found.shape}; "
            "one parameter per trajectory is parameters[:, None]."
        )
    if names and (len(names) != found.shape[1] or len(set(names)) < len(names)):
        raise ValueError(
            f"parameter_names must be {found.shape[1]} different names, one for each column of parameters, got {names}."
        )
    if not (good := np.isfinite(found)).all():
        s, k = first_index(~good)  # pyright: ignore[reportGeneralTypeIssues]
        which = f" ({names[k]} of trajectory {s})" if names else ""
        raise ValueError(f"parameters must be finite, but parameters[{s}, {k}] = {found[s, k]}{which}.")
    return found


@kept_open()
def _check_finite(trajectories: Trajectories, domain: Domain) -> None:
    """Raises ``ValueError`` if a state is not finite in JAX's dtype, and names the first bad entry."""
    dtype = jax_dtype(np.dtype(trajectories.states.dtype))
    for s in range(len(trajectories)):
        for times in time_blocks(trajectories.states.shape):
            fault = finite_fault(trajectories.frames(s, times), dtype, domain)
            if fault is None:
                continue
            (j, *rest), value, place = fault
            j += times.start
            raise ValueError(
                f"states must be finite in {dtype}, but states[{', '.join(map(str, (s, j, *rest)))}] = {value} "
                f"(trajectory {s}, time {trajectories.times_of(s)[j]:g}{place}); remove or repair this trajectory."
            )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
