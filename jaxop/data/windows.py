"""Windows of consecutive times, on which steppers are trained."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from jaxop._pytree import register
from jaxop._validation import as_integer, check_size, check_type, float_dtype, jax_dtype, on_device
from jaxop.data._open_files import kept_open
from jaxop.data._support import seed_sequence
from jaxop.data.normalization import Moments
from jaxop.data.samples import checked_indices, row_slices
from jaxop.domains import Decomposed, Domain
from jaxop.domains.domain import as_domain

_WINDOWS = 0x6F77  # the random stream of strides and noise of windows

Curriculum = Sequence[tuple[int, int]]
"""Pairs (first training step, number of leads that count from this step on)."""


@register
@dataclasses.dataclass(frozen=True, eq=False)
class WindowBatch:
    """A batch of b windows in JAX arrays: H states and the k that follow; it is a pytree.

    Attributes:
        history: states at times t_{i−H+1}, …, t_i, oldest first, shape (b, H, n, c).
        targets: states at times t_{i+1}, …, t_{i+k}, shape (b, k, n, c).
        times: all H + k times since t_i, shape (b, H + k): 0 at the last state of the history. The step to target j,
            counted from 0, is times[:, H + j] − times[:, H + j − 1]. Times since t_i resolve it in float32 whatever
            the origin of the recorded times.
        parameters: constants of each trajectory, shape (b, p); None if there are none.
        domain: domain of the states, shared or stacked.
        weights: γ_j ≥ 0 of the loss at each target, shape (b, k).
        key_data: ``jax.random.wrap_key_data(key_data, impl="threefry2x32")`` are b random keys, for noise that depends
            on (seed, step, item) only; shape (b, 2). None in evaluations.
        index: number of each window in its set, shape (b,).
    """

    history: Float[Array, "b H n c"]
    targets: Float[Array, "b k n c"]
    times: Float[Array, "b t"]
    parameters: Float[Array, "b p"] | None
    domain: Domain | Decomposed
    weights: Float[Array, "b k"]
    key_data: UInt32[Array, "b 2"] | None
    index: Int[Array, " b"]


@dataclasses.dataclass(frozen=True, eq=False)
class StepStatistics:
    """Scales of states, of their change in one step, and of parameters; `Windows.statistics` computes them.

    Attributes:
        mean: μ_c of every channel, shape (c,).
        std: σ_c, shape (c,); 1 for a channel that is constant.
        increment: standard deviation of the change of a channel in the time dt, shape (c,); σ_c for a channel that
            does not change.
        dt: Δt₀, the median recorded step.
        parameter_mean: mean of every parameter over trajectories, shape (p,); p may be 0.
        parameter_std: its standard deviation, shape (p,); 1 for a parameter that is the same in all trajectories.
    """

    mean: Float[Array, " c"]
    std: Float[Array, " c"]
    increment: Float[Array, " c"]
    dt: float
    parameter_mean: Float[Array, " p"]
    parameter_std: Float[Array, " p"]


@runtime_checkable
class _Series(Protocol):
    """What windows read of `jaxop.data.Trajectories`, whose module imports this one."""

    @property
    def states(self) -> Any: ...
    @property
    def domain(self) -> Domain | Decomposed: ...
    @property
    def parameters(self) -> Any: ...
    @property
    def steps(self) -> int: ...
    def __len__(self) -> int: ...
    def frames(self, index: SupportsIndex, times: slice) -> np.ndarray: ...
    def times_of(self, index: SupportsIndex) -> np.ndarray: ...
    def domain_of(self, indices: Any) -> Domain | Decomposed: ...
    def identity(self) -> dict[str, Any]: ...


class Windows:
    """All windows of H + k times of a set of trajectories: a data source of pairs (trajectory, first time).

    Item i is the window of trajectory i // S that begins at time number i mod S, where S = T − (H + k − 1) r_max is the
    number of first times for the largest stride r_max. Training draws items by (seed, epoch, step), as it does from
    any set. At a training step, a window takes every r-th time, with r drawn from ``strides`` in equal shares, and gets
    a random key for noise. Both depend only on (seed, step, item), so that a run can be resumed bit for bit.
    ``windows[indices]`` takes the first stride and has no keys. Each window reads H + k states and no others.

    Args:
        trajectories: the set.
        history: H ≥ 1, states that the step begins with.
        steps: k ≥ 1, states that follow.
        strides: r ≥ 1, in recorded steps. Several strides show the stepper several Δt, and only then can it learn from
            Δt; see the argument ``varying_dt`` of steppers.
        curriculum: pairs (first step, leads): from this training step on, the first ``leads`` targets have weight
            1 and the others 0. First steps begin at 0 and increase. None gives all targets the weight 1, as
            ``windows[indices]`` does always.

    Attributes:
        trajectories: the set.
        history: H.
        steps: k.
        strides: as a tuple.
        curriculum: as a tuple, or None.
        starts: S, windows of each trajectory.

    Raises:
        TypeError: if ``trajectories`` is not `jaxop.data.Trajectories`, or a number is not an integer.
        ValueError: if a number is below 1, trajectories are shorter than (H + k − 1) r_max + 1 times, or the curriculum
            does not begin at step 0, does not increase or has more leads than targets.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> u = np.arange(20, dtype=np.float32).reshape(2, 10, 1, 1) * np.ones((1, 1, 8, 1), np.float32)
        >>> windows = data.Trajectories(u, domains.interval(8), 0.5 * np.arange(10)).windows(history=2, steps=3)
        >>> batch = windows[[1, 7]]
        >>> len(windows), batch.history[:, :, 0, 0].tolist(), batch.targets[:, :, 0, 0].tolist()
        (12, [[1.0, 2.0], [11.0, 12.0]], [[3.0, 4.0, 5.0], [13.0, 14.0, 15.0]])
        >>> batch.times[0].tolist()
        [-0.5, 0.0, 0.5, 1.0, 1.5]
        >>> windows.at_step(np.array([1, 7]), seed=0, step=3).key_data.shape
        (2, 2)
    """

    def __init__(
        self,
        trajectories: Any,
        *,
        history: int = 1,
        steps: int = 1,
        strides: Sequence[int] = (1,),
        curriculum: Curriculum | None = None,
    ):
        check_type(trajectories, "trajectories", _Series, "data.Trajectories(states, domain, times)")
        check_size(history, "history")
        check_size(steps, "steps")
        self.trajectories: _Series = trajectories
        self.history, self.steps = int(history), int(steps)
        if not isinstance(strides, Sequence | np.ndarray):
            raise TypeError(f"strides must be a sequence of integers such as (1, 2, 4), got {strides!r}.")
        self.strides = tuple(as_integer(r, f"strides[{i}]") for i, r in enumerate(strides))
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides must be at least one integer of at least 1, got {self.strides}.")
        self.curriculum = None if curriculum is None else _checked_curriculum(curriculum, self.steps)
        span = (self.history + self.steps - 1) * max(self.strides)
        self.starts = trajectories.steps - span
        if self.starts < 1:
            raise ValueError(
                f"trajectories have {trajectories.steps} times, but a window of history={history} and steps={steps} "
                f"with stride {max(self.strides)} spans {span + 1}; give longer trajectories, fewer steps or smaller "
                "strides."
            )

    def __len__(self) -> int:
        return len(self.trajectories) * self.starts

    def __repr__(self) -> str:
        options = "".join(
            f", {name}={value}"
            for name, value in (("strides", self.strides), ("curriculum", self.curriculum))
            if value not in (None, (1,))
        )
        return f"Windows({len(self)} of {self.trajectories}, history={self.history}, steps={self.steps}{options})"

    def pairs(
        self, indices: slice | Sequence[SupportsIndex] | Int[np.ndarray | Array, " b"]
    ) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
        """Returns the trajectory of each window and the number of its first time."""
        trajectory, start = np.divmod(checked_indices(indices, len(self), "windows"), self.starts)
        return trajectory, start

    def __getitem__(self, indices: slice | Sequence[SupportsIndex] | Int[np.ndarray | Array, " b"]) -> WindowBatch:
        """Returns the windows of the given numbers at the first stride, all targets with weight 1."""
        index = checked_indices(indices, len(self), "windows")
        return self._read(index, [self.strides[0]] * len(index), self.steps, None)

    def at_step(self, indices: Int[np.ndarray, " b"], *, seed: int, step: int) -> WindowBatch:
        """Returns the windows of the given numbers with the strides, keys and weights of a training step.

        Args:
            indices: numbers of windows, shape (b,); they may repeat.
            seed: non-negative integer.
            step: t ≥ 0.
        """
        index = checked_indices(indices, len(self), "windows")
        # the raw bits of a counter-based generator are the same in every version of NumPy
        bits = np.array(
            [np.random.Philox(seed_sequence(seed, _WINDOWS, step, i)).random_raw(2) for i in index.tolist()],
            np.uint64,
        ).reshape(-1, 2)
        strides = [self.strides[k] for k in (bits[:, 0] % np.uint64(len(self.strides))).tolist()]
        keys = np.stack([bits[:, 1] >> np.uint64(32), bits[:, 1] & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32)
        return self._read(index, strides, self.leads(step), keys)

    def leads(self, step: int) -> int:
        """Returns the number of targets that count at a training step."""
        if self.curriculum is None:
            return self.steps
        return [leads for first, leads in self.curriculum if first <= step][-1]

    def identity(self) -> dict[str, Any]:
        """Returns the trajectories' identity and the kind of the windows, which a run compares when it is resumed.

        Cost: one pass over the states, in blocks.
        """
        return {
            "trajectories": self.trajectories.identity(),
            "history": self.history,
            "steps": self.steps,
            "strides": list(self.strides),
            "curriculum": None if self.curriculum is None else [list(pair) for pair in self.curriculum],
        }

    @kept_open()
    def statistics(self) -> StepStatistics:
        """Scales of states and steps, by quadrature over the nodes and over all recorded times of these trajectories.

        With the weights w of each domain and all recorded times counted equally, these are
        μ_c = ⟨u_c⟩, σ_c² = ⟨(u_c − μ_c)²⟩ and, for the increments d_c = (u_c(t_{j+1}) − u_c(t_j)) Δt₀/(t_{j+1} − t_j)
        over successive times, increment_c² = ⟨(d_c − ⟨d_c⟩)²⟩. Δt₀ is the median of all t_{j+1} − t_j. Sums are in
        float64 and merged by Chan's update, as in `jaxop.data.statistics`. Call this for the training set: neither
        strides nor other trajectories count.

        Returns:
            `StepStatistics` in JAX's default floating dtype. Cost: one pass over the states, in blocks.

        Example:
            >>> import numpy as np
            >>> from jaxop import data, domains
            >>> u = np.array([[0.0, 1, 2, 3], [0, 3, 6, 9]])[..., None, None] * np.ones((8, 1))
            >>> trajectories = data.Trajectories(u.astype(np.float32), domains.interval(8), np.arange(4))
            >>> known = trajectories.windows().statistics()
            >>> known.mean.tolist(), known.increment.tolist(), known.dt
            ([3.0], [1.0], 1.0)
        """
        series = self.trajectories
        weights = np.atleast_2d(np.asarray(as_domain(series.domain, "domain").weights, np.float64))
        dt = float(np.median([np.diff(series.times_of(i)) for i in range(len(series))]))
        states, increments = Moments("states"), Moments("increments of states")
        for i in range(len(series)):
            times, weight = series.times_of(i), weights[i if len(weights) > 1 else 0]
            for part in row_slices(series.steps, int(np.prod(series.states.shape[2:]))):
                block = series.frames(i, slice(part.start, part.stop + 1))  # and the next time
                states.add(
                    block[: part.stop - part.start], np.broadcast_to(weight, (part.stop - part.start, len(weight)))
                )
                if len(block) > 1:
                    rate = dt / np.diff(times[part.start : part.stop + 1])
                    change = np.diff(block.astype(np.float64), axis=0) * rate[:, None, None]
                    increments.add(change, np.broadcast_to(weight, change.shape[:2]))
        known, dtype = states.statistics(), float_dtype()
        change = increments.mean_and_deviation()[1]
        changes = change > np.finfo(dtype).tiny
        parameters = np.zeros((len(series), 0)) if series.parameters is None else np.asarray(series.parameters)
        spread = parameters.std(axis=0)
        varies = spread > np.finfo(dtype).eps * np.abs(parameters).max(axis=0, initial=0)
        return StepStatistics(
            mean=known.mean,
            std=known.std,
            increment=on_device(np.where(changes, change, np.asarray(known.std)), dtype),
            dt=dt,
            parameter_mean=on_device(parameters.mean(axis=0), dtype),
            parameter_std=on_device(np.where(varies, spread, 1.0), dtype),
        )

    def _read(
        self, index: np.ndarray, strides: Sequence[int], leads: int, keys: UInt32[np.ndarray, "b 2"] | None
    ) -> WindowBatch:
        series, h = self.trajectories, self.history
        rows, starts = np.divmod(index, self.starts)
        count = h + self.steps
        states = np.zeros((len(index), count, *series.states.shape[2:]), jax_dtype(np.dtype(series.states.dtype)))
        times = np.zeros((len(index), count))
        with kept_open():
            for j, (i, start, stride) in enumerate(zip(rows.tolist(), starts.tolist(), strides, strict=True)):
                window = slice(start, start + (count - 1) * stride + 1, stride)
                states[j] = series.frames(i, window)
                times[j] = series.times_of(i)[window]
        dtype = float_dtype()
        weights = np.broadcast_to(np.arange(self.steps) < leads, (len(index), self.steps))
        return WindowBatch(
            history=on_device(states[:, :h]),
            targets=on_device(states[:, h:]),
            times=on_device(times - times[:, h - 1 : h], dtype),
            parameters=None if series.parameters is None else on_device(np.asarray(series.parameters)[rows], dtype),
            domain=series.domain_of(rows),
            weights=on_device(weights, dtype),
            key_data=None if keys is None else on_device(keys),
            index=on_device(index, np.int32),
        )


def _checked_curriculum(curriculum: Curriculum, steps: int) -> tuple[tuple[int, int], ...]:
    pairs = []
    if not isinstance(curriculum, Sequence):
        raise TypeError(f"curriculum must be pairs such as ((0, 1), (500, 4)), got {curriculum!r}.")
    for i, pair in enumerate(curriculum):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"curriculum[{i}] must be a pair (first step, leads), got {pair!r}.")
        pairs.append((as_integer(pair[0], f"curriculum[{i}][0]"), as_integer(pair[1], f"curriculum[{i}][1]")))
        if not 1 <= pairs[-1][1] <= steps:
            raise ValueError(f"curriculum[{i}] must have between 1 and steps={steps} leads, got {pairs[-1][1]}.")
    if not pairs or pairs[0][0] != 0:
        raise ValueError(
            f"curriculum must begin with a pair (0, leads), for the first training step, got {curriculum}."
        )
    for i, ((before, _), (after, _)) in enumerate(itertools.pairwise(pairs), start=1):
        if after <= before:
            raise ValueError(
                f"curriculum must have increasing first steps, but curriculum[{i}] begins at {after} and "
                f"curriculum[{i - 1}] at {before}."
            )
    return tuple(pairs)
