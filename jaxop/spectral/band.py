"""Fourier modes that a layer keeps on a grid, and the real matrices that compute them."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxop._validation import float_dtype
from jaxop.domains import EQUAL_WEIGHT_RULES, Decomposed, Domain, Grid, GridShard
from jaxop.domains.domain import refuse_decomposed


@dataclasses.dataclass(frozen=True)
class Band:
    """The low modes k of functions on a grid of n_1 × … × n_dim equally spaced nodes.

    The full band is −m_j ≤ k_j < m_j on every axis but the last and 0 ≤ k_dim < m_dim on the last, because the
    spectrum of a real function is Hermitian. A grid with n_j ≥ 2 m_j represents the full band. On a coarser grid the
    modes at or above its Nyquist frequency, |k_j| ≥ n_j/2, are dropped.

    A coefficient array has (real part, imaginary part) on the first axis, then the kept modes in row-major order
    with each axis in the order of the FFT, 0, 1, …, m − 1, −m, …, −1.

    Attributes:
        shape: nodes along each axis.
        modes: m_j along each axis.

    Example:
        >>> from jaxop import spectral
        >>> band = spectral.Band((16, 16), (3, 3))
        >>> [list(map(int, k)) for k in band.frequencies]
        [[0, 1, 2, -3, -2, -1], [0, 1, 2]]
    """

    shape: tuple[int, ...]
    modes: tuple[int, ...]

    @property
    def positions(self) -> tuple[np.ndarray, ...]:
        """Positions of the kept modes in the full band, per axis."""
        return tuple(np.flatnonzero(self._is_kept(j)) for j in range(len(self.shape)))

    @property
    def frequencies(self) -> tuple[np.ndarray, ...]:
        """The kept integer frequencies k_j, per axis."""
        return tuple(self._full(j)[self._is_kept(j)] for j in range(len(self.shape)))

    @property
    def kept(self) -> tuple[int, ...]:
        """Number of kept modes along each axis."""
        return tuple(len(k) for k in self.frequencies)

    @property
    def size(self) -> int:
        """Number of kept modes."""
        return math.prod(self.kept)

    def _full(self, axis: int) -> np.ndarray:
        low = np.arange(self.modes[axis])
        return low if axis == len(self.shape) - 1 else np.concatenate([low, low - self.modes[axis]])

    def _is_kept(self, axis: int) -> np.ndarray:
        n, m, k = self.shape[axis], self.modes[axis], self._full(axis)
        return np.full(k.shape, True) if n >= 2 * m else 2 * np.abs(k) < n

    def matrix(self, axis: int) -> np.ndarray:
        """Returns the real matrix of the transform along one axis; its rows are frequencies (o, k).

        The last axis maps n real values to (Re, Im); the other axes rotate n complex values, columns
        (x, o), by e^{−iθ}. All are scaled so that their transposes synthesise the function.
        """
        n, k = self.shape[axis], self.frequencies[axis]
        angle = 2 * np.pi * np.outer(k, np.arange(n)) / n
        cos, sin = np.cos(angle), np.sin(angle)
        if axis == len(self.shape) - 1:
            # column 0 is its own mirror image; every other column represents two conjugate columns
            scale = np.where(k == 0, 1.0, math.sqrt(2.0)) / math.sqrt(math.prod(self.shape))
            return np.concatenate([cos, -sin]) * np.tile(scale, 2)[:, None]
        real = np.stack([cos, sin], axis=-1)
        imag = np.stack([-sin, cos], axis=-1)
        return np.stack([real, imag]).reshape(2 * len(k), 2 * n)

    def traced_matrix(self, axis: int) -> Array:
        """Returns `matrix` in JAX's default floating dtype, computed by the program that `jax.export` traces.

        The number of nodes may be unknown until the program runs, but it must represent the full band.
        """
        n, k, dtype = self.shape[axis], self.frequencies[axis], float_dtype()
        turns = jnp.asarray(k, np.int32)[:, None] * jnp.arange(n, dtype=np.int32)[None, :]
        count = jnp.asarray(n, np.int32)
        # θ in [−π, π) from integers: a float32 k x / n of many turns would lose the digits of its fraction
        turns = (turns + count // 2) % count - count // 2
        angle = 2 * np.pi * turns.astype(dtype) / count.astype(dtype)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        if axis == len(self.shape) - 1:
            nodes = math.prod(jnp.asarray(side, dtype) for side in self.shape)
            scale = jnp.asarray(np.where(k == 0, 1.0, math.sqrt(2.0)), dtype) / jnp.sqrt(nodes)
            return jnp.concatenate([cos, -sin]) * jnp.tile(scale, 2)[:, None]
        real, imag = jnp.stack([cos, sin], axis=-1), jnp.stack([-sin, cos], axis=-1)
        return jnp.stack([real, imag]).reshape(2 * len(k), 2 * n)

    def mirror(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns column 0 (k_dim = 0) and its reflection k → −k on this grid.

        Returns:
            For each mode of column 0, in row-major order, the position of −k (of k itself, if −k is not kept), and
            whether −k is kept.
        """
        axes = list(zip(self.frequencies[:-1], self.shape[:-1], strict=True))
        places, kept = np.zeros((1,), int), np.ones((1,), bool)
        for k, n in axes:
            residues = {int(f) % n: i for i, f in enumerate(k)}
            partner = np.array([residues.get(int(-f) % n, -1) for f in k])
            places = (places[:, None] * len(k) + partner[None, :]).reshape(-1)
            kept = (kept[:, None] & (partner >= 0)[None, :]).reshape(-1)
        return np.where(kept, places, np.arange(len(places))), kept


def modes_per_axis(modes: int | Sequence[int], dim: int) -> tuple[int, ...]:
    """Returns ``modes`` as one positive number per axis."""
    given = np.asarray(modes)
    result = tuple(given.reshape(-1).tolist()) * (dim if given.ndim == 0 else 1)
    if given.dtype.kind not in "iu" or given.ndim > 1 or len(result) != dim or min(result) < 1:
        raise ValueError(f"modes must be one positive number or {dim} of them, one per axis, got {modes}.")
    return result


def check_modes(modes: int | Sequence[int], reference: Sequence[int], *, argument: str = "modes") -> tuple[int, ...]:
    """Raises ``ValueError`` if 2 m_j > n_j, because the reference grid of a layer must represent all its modes.

    Args:
        modes: m, one number or one per axis.
        reference: nodes along each axis of the grid, or of the patch, that the layer is made for.
        argument: the name of ``modes`` in the message.

    Returns:
        One m_j per axis.

    Raises:
        ValueError: if 2 m_j > n_j; the message has the nearest valid numbers of modes and of nodes.

    Example:
        >>> from jaxop import spectral
        >>> spectral.check_modes(8, (16, 16))
        (8, 8)
    """
    if not isinstance(reference, Sequence):
        raise TypeError(
            f"reference must be one number of nodes per axis, such as (16, 16), got {reference!r}; one axis is (16,)."
        )
    result = modes_per_axis(modes, len(reference))
    for axis, (m, n) in enumerate(zip(result, reference, strict=True)):
        if n < 2:
            raise ValueError(
                f"a spectral layer needs at least 2 nodes along axis {axis} of its reference grid, got {n}."
            )
        if 2 * m > n:
            raise ValueError(
                f"{argument} = {m} along axis {axis} needs 2·{argument} ≤ nodes, but the reference grid has {n} nodes "
                f"there; take {argument} ≤ {n // 2}, or at least {2 * m} nodes."
            )
    return result


def check_grid(domain: Domain | Decomposed, dim: int | None = None) -> Grid | GridShard:
    """Raises an error unless the discrete Fourier transform is a quadrature on a domain.

    Args:
        domain: a `Grid` on which every axis follows a rule of equal weights, or the `GridShard` of one.
        dim: number of axes; None accepts any number.

    Returns:
        The domain.

    Raises:
        TypeError: if the domain is not a grid, for example a decomposition of a grid.
        ValueError: if the number of axes is not ``dim``, or weights are uneven; the message names the rules to use.

    Example:
        >>> from jaxop import domains, spectral
        >>> spectral.check_grid(domains.interval(8))
        Traceback (most recent call last):
            ...
        ValueError: a spectral layer needs equal weights ... got rule='trapezoid' along axis 0; ...
    """
    refuse_decomposed(domain, "domain")
    if not isinstance(domain, Grid | GridShard):
        raise TypeError(
            f"a spectral layer needs a grid (interval or box with rule='midpoint' or 'periodic'), got "
            f"{type(domain).__name__}; the TransformerNeuralOperator takes any domain."
        )
    if dim is not None and domain.dim != dim:
        raise ValueError(f"domain must have {dim} axes, as the layer was built for, got {domain.dim}.")
    rules = domain.rules if isinstance(domain, GridShard) else [axis.rule for axis in domain.axes]
    for k, rule in enumerate(rules):
        if not rule.has_equal_weights:
            raise ValueError(
                "a spectral layer needs equal weights on the whole period, "
                f"got rule={rule.name!r} along axis {k}; build "
                f"the grid with {' or '.join(f'rule={name!r}' for name in EQUAL_WEIGHT_RULES)}, or use the "
                "TransformerNeuralOperator, which takes any nodes."
            )
    return domain


@functools.lru_cache(maxsize=64)
def multiplier_shape(modes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the full band: 2 m_j on every axis but the last, m_dim on the last."""
    return (*(2 * m for m in modes[:-1]), modes[-1])
