"""Differences from a mean that depends on the season."""

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxop._validation import as_integer, check_type, host_real
from jaxop.data.trajectories import Trajectories, floating


def climatology(trajectories: Trajectories, period: int) -> Float[np.ndarray, "period n c"]:
    """Mean over all periods for each of their phases, for example of all Januaries, of all Februaries, and so on.

    Args:
        trajectories: the training part, which starts at the beginning of a period (`Trajectories.between`).
        period: recorded times in a period, 12 for monthly values with a yearly season.

    Returns:
        Means in float64, (period, n, c). Cost: one pass over the states.

    Raises:
        TypeError: if ``trajectories`` are not `Trajectories`, or the period is not an integer.
        ValueError: if the period is not positive, or longer than the trajectories.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> months = np.arange(48.0)
        >>> heat = 15 + 10 * np.cos(2 * np.pi * months / 12) + months / 12
        >>> heat = heat[None, :, None, None].astype(np.float32)
        >>> place = data.Trajectories(heat, domains.interval(1, rule="periodic"), months)
        >>> seasons = data.climatology(place.between(0, 36), 12)
        >>> print(data.anomalies(place, seasons).states[0, ::12, 0, 0])
        [-1.  0.  1.  2.]
    """
    check_type(trajectories, "trajectories", Trajectories, "data.Trajectories")
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
        `Trajectories` in memory, with the dtype of the given states, or JAX's default floating dtype if they are
        integers.

    Raises:
        TypeError: if ``trajectories`` are not `Trajectories`, or the means are not real numbers.
        ValueError: if the shape of the means does not fit.
    """
    check_type(trajectories, "trajectories", Trajectories, "data.Trajectories")
    means = host_real(means, "means")
    if means.ndim != 3 or means.shape[1:] != trajectories.states.shape[2:] or len(means) == 0:
        raise ValueError(
            f"means must have shape (period, n, channels) = (period, {trajectories.states.shape[2]}, "
            f"{trajectories.channels}), got {means.shape}; take them from climatology of the same nodes and channels."
        )
    phase = np.arange(trajectories.steps) % len(means)
    dtype = floating(trajectories.states.dtype)
    states = np.stack(
        [
            (trajectories.frames(i, slice(None)).astype(np.float64) - means[phase]).astype(dtype)
            for i in range(len(trajectories))
        ]
    )
    return dataclasses.replace(trajectories, states=states)
