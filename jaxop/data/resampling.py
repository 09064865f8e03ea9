"""Solutions at the nodes of other periodic grids."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxop import domains
from jaxop._validation import as_integer, check_type
from jaxop.data.trajectories import Trajectories, floating
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
        `Trajectories` in memory, with the dtype of the given states, or JAX's default floating dtype if they are
        integers.

    Raises:
        TypeError: if ``trajectories`` are not `Trajectories`, or a number of nodes is not an integer.
        ValueError: if the domain is not a shared periodic grid, or the numbers of nodes do not fit its axes.

    Cost: O(N T n (r₁ + … + r_dim)) for r_j new nodes along the axes; one trajectory at a time is in float64.

    Example:
        >>> from jaxop import data
        >>> fine = data.advection(2, nodes=96, times=3)
        >>> coarse = data.resample(fine, 32)
        >>> bool((coarse.states == fine.states[:, :, ::3]).all())
        True
    """
    check_type(trajectories, "trajectories", Trajectories, "data.Trajectories")
    domain = trajectories.domain
    if not isinstance(domain, Grid) or domain.is_batched or not all(axis.rule.is_periodic for axis in domain.axes):
        raise ValueError(
            "trajectories must be on one grid that is periodic along every axis (rule='periodic'), got "
            f"{domain!r}; build the problem on each grid instead."
        )
    given = nodes if isinstance(nodes, Sequence) else (nodes,) * domain.dim
    if len(given) != domain.dim:
        raise ValueError(f"nodes has {len(given)} entries for {domain.dim} axes; give one number or {domain.dim}.")
    counts = tuple(as_integer(count, "nodes") for count in given)
    if min(counts) < 1:
        raise ValueError(f"nodes must be at least 1 along each axis, got {counts}.")
    shape, channels = domain.shape, trajectories.channels
    size = (len(trajectories), trajectories.steps, math.prod(counts), channels)
    states = np.empty(size, floating(trajectories.states.dtype))
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


def _interpolation(fine: int, wanted: int) -> Float[np.ndarray, "r n"]:
    """Returns values at r nodes from those at n nodes: Σ_k e^(2πik(x − y))/n; for even n the last wave is a cosine."""
    turns = np.arange(wanted)[:, None] / wanted - np.arange(fine) / fine
    result = np.ones((wanted, fine))
    for k in range(1, (fine + 1) // 2):
        result += 2 * np.cos(2 * np.pi * k * turns)
    if fine % 2 == 0:
        result += np.cos(np.pi * fine * turns)
    return result / fine
