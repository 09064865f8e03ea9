"""Solutions on other periodic grids, and deviations from a mean that depends on the season."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxop import domains
from jaxop._validation import as_integer
from jaxop.data.trajectories import Trajectories
from jaxop.domains import Grid


def resample(trajectories: Trajectories, nodes: int | Sequence[int]) -> Trajectories:
    """Returns the same solutions at the nodes of another periodic grid, by trigonometric interpolation.

    The interpolation is exact for functions that the given grid resolves. If the new number of nodes along an axis
    divides the old one, it picks nodes. A problem solved on a fine grid thus becomes a set of coarse grids with one
    truth.

    Args:
        trajectories: on a `Grid` that is shared by all and periodic along every axis.
        nodes: of the new grid, one number or one per axis.

    Returns:
        `Trajectories` in memory, with the dtype of the given states.

    Raises:
        TypeError: if a number of nodes is not an integer.
        ValueError: if the domain is not a shared periodic grid, or the numbers of nodes do not fit its axes.

    Cost: O(N T n (r₁ + … + r_dim)) for r_j new nodes along the axes; one trajectory at a time is in float64.

    Example:
        >>> from jaxop import data
        >>> fine = data.advection(2, nodes=96, times=3)
        >>> coarse = data.resample(fine, 32)
        >>> bool((coarse.states == fine.states[:, :, ::3]).all())
        True
    """
    domain = trajectories.domain
    if not isinstance(domain, Grid) or domain.is_batched or not all(axis.rule.is_periodic for axis in domain.axes):
        raise ValueError(
            "trajectories must be on one grid that is periodic along every axis (rule='periodic'), got "
            f"{domain!r}; build the problem on each grid instead."
        )
    counts = (nodes,) * domain.dim if np.ndim(nodes) == 0 else tuple(nodes)
    if len(counts) != domain.dim:
        raise ValueError(f"nodes has {len(counts)} entries for {domain.dim} axes; give one number or {domain.dim}.")
    counts = tuple(as_integer(count, "nodes") for count in counts)
    if min(counts) < 1:
        raise ValueError(f"nodes must be at least 1 along each axis, got {counts}.")
    shape, channels = domain.shape, trajectories.channels
    states = np.empty((len(trajectories), trajectories.steps, int(np.prod(counts)), channels), trajectories.states.dtype)
    matrices = {pair: _interpolation(*pair) for pair in zip(shape, counts, strict=True) if pair[0] % pair[1]}
    for row, i in zip(states, range(len(trajectories)), strict=True):
        values = trajectories.frames(i, slice(None)).reshape(-1, *shape, channels)
        for axis, pair in enumerate(zip(shape, counts, strict=True), start=1):
            if pair in matrices:
                values = np.moveaxis(np.tensordot(matrices[pair], values, axes=(1, axis)), 0, axis)
            else:
                values = values[(slice(None),) * axis + (slice(None, None, pair[0] // pair[1]),)]
        row[...] = values.reshape(row.shape)
    lower, upper = zip(*(axis.ends for axis in domain.axes), strict=True)
    grid = domains.box(counts, lower=lower, upper=upper, rule="periodic")
    return Trajectories(states, grid, trajectories.times, trajectories.parameters, trajectories.parameter_names)


def climatology(trajectories: Trajectories, period: int) -> Float[np.ndarray, "period n c"]:
    """Mean of all states whose numbers leave the same remainder by the period: of all Januaries, all Februaries, …

    Args:
        trajectories: the training part, which starts at the beginning of a period (`Trajectories.between`).
        period: recorded times in a period, 12 for monthly values with a yearly season.

    Returns:
        Means in float64, (period, n, c). Cost: one pass over the states.

    Raises:
        TypeError: if the period is not an integer.
        ValueError: if the period is not positive, or longer than the trajectories.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> months = np.arange(48.0)
        >>> heat = 15 + 10 * np.cos(2 * np.pi * months / 12) + months / 12
        >>> place = data.Trajectories(heat[None, :, None, None].astype(np.float32), domains.interval(1, rule="periodic"), months)
        >>> seasons = data.climatology(place.between(0, 36), 12)
        >>> print(data.anomalies(place, seasons).states[0, ::12, 0, 0])
        [-1.  0.  1.  2.]
    """
    length = as_integer(period, "period")
    if not 1 <= length <= trajectories.steps:
        raise ValueError(
            f"period must lie between 1 and the {trajectories.steps} recorded times of each trajectory, got {length}."
        )
    total = np.zeros((length, *trajectories.states.shape[2:]))
    for i in range(len(trajectories)):
        for phase in range(length):
            total[phase] += trajectories.frames(i, slice(phase, None, length)).sum(axis=0, dtype=np.float64)
    counts = len(trajectories) * -((np.arange(length) - trajectories.steps) // length)
    return total / counts[:, None, None]


def anomalies(trajectories: Trajectories, means: Float[np.ndarray, "period n c"]) -> Trajectories:
    """Returns deviations from the season: state number j minus row j mod period of `climatology`.

    Args:
        trajectories: all times, which start at the beginning of a period; split them afterwards.
        means: of the training part alone, so that validation and test do not enter; see `climatology`.

    Returns:
        `Trajectories` in memory, with the dtype of the given states.

    Raises:
        ValueError: if the shape of the means does not fit.
    """
    if means.ndim != 3 or means.shape[1:] != trajectories.states.shape[2:]:
        raise ValueError(
            f"means must have shape (period, n, channels) = (period, {trajectories.states.shape[2]}, "
            f"{trajectories.channels}), got {means.shape}; take them from climatology of the same nodes and channels."
        )
    phase = np.arange(trajectories.steps) % len(means)
    dtype = trajectories.states.dtype
    states = np.stack(
        [
            (trajectories.frames(i, slice(None)).astype(np.float64) - means[phase]).astype(dtype)
            for i in range(len(trajectories))
        ]
    )
    return dataclasses.replace(trajectories, states=states)


def _interpolation(fine: int, wanted: int) -> Float[np.ndarray, "r n"]:
    """Returns values at r nodes from those at n nodes: Σ_k e^(2πik(x − y))/n; of an even n, the last wave is a cosine."""
    turns = np.arange(wanted)[:, None] / wanted - np.arange(fine) / fine
    result = np.ones((wanted, fine))
    for k in range(1, (fine + 1) // 2):
        result += 2 * np.cos(2 * np.pi * k * turns)
    if fine % 2 == 0:
        result += np.cos(np.pi * fine * turns)
    return result / fine
