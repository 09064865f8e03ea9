"""Fourier integral operator, by FFT (the reference) and by truncated transforms as matrix products."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._validation import as_float, check_name, is_symbolic
from jaxop.spectral.band import Band, multiplier_shape
from jaxop.spectral.shared import shared_analysis, shared_synthesis
from jaxop.spectral.transform import analysis, multiply, synthesis

IMPLEMENTATIONS = ("fft", "matrix")
"""Names accepted by `fourier_integral`."""


def fourier_integral(
    values: Float[Array, "n *batch c_in"],
    multipliers: Float[Array, "*modes 2 c_in c_out"],
    grid_shape: Sequence[int],
    *,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "n *batch c_out"]:
    r"""v(x) = Σ_k e^{2πi k·x/L} R(k)ᵀ û(k), convolution with a learned band-limited kernel.

    û is the discrete Fourier transform of the real samples. R(k) is a complex c_in × c_out matrix for every mode of
    the band −m ≤ k_j < m, 0 ≤ k_dim < m, and zero outside. The inverse is the real transform of the default
    normalisation (1/N), so that R(k) has the same meaning on every grid. Only the Hermitian part of column k_dim = 0
    has an effect, like in an inverse real FFT. On a grid of n_j < 2 m_j nodes the modes at or above its Nyquist
    frequency are dropped.

    Args:
        values: functions on a grid of equal weights (rules "midpoint" and "periodic"), nodes first in
            row-major order, (n, …, c_in). Axes in between are a batch that shares the multipliers, which
            is cheaper than the leading batch of `jax.vmap`.
        multipliers: real and imaginary parts, (2 m_1, …, 2 m_{dim−1}, m_dim, 2, c_in, c_out), each axis in
            the order of the FFT, 0, …, m − 1, −m, …, −1.
        grid_shape: nodes along each of 1 to 3 axes; their product is n.
        implementation: ``"fft"`` is the definition. ``"matrix"`` computes the same in real arithmetic by one
            matrix product per axis, which suits matrix units. None means matrices for up to 32 modes per axis and
            at least 16 channels (times batch), where they were faster on CPUs, and for unknown numbers of nodes or
            functions, which `jax.export` allows. Otherwise None means the FFT.
        axis_name: the mapped axis of `jax.shard_map` over whose devices the nodes are distributed. Each of p devices
            passes its own ⌈n/p⌉ nodes, as `jaxop.domains.shard` divides them, and the multipliers of all modes, and all
            use matrices. None means that all nodes are here.

    Returns:
        Functions on the same grid, (n, …, c_out), in the dtype of ``values``; half precision is computed
        in float32.

    Raises:
        ValueError: if shapes do not fit each other, or the implementation is unknown.
        NotImplementedError: if the implementation is "fft" and ``axis_name`` is given, because it needs all nodes, or
            their number is unknown.
        NameError: if ``axis_name`` is not the name of a mapped axis.

    Cost: "matrix" O(n Σ_j m_j + M c_in c_out) per function for M modes, "fft" O(n log n + M c_in c_out). Over devices
        each takes the former for its own n nodes, and all add 2 M c_in numbers per function in one sum, for any number
        of nodes, and 2 M c_out in the backward pass.

    Source: Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations",
        arXiv:2010.08895.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, spectral
        >>> domain = domains.box((16, 16), rule="midpoint")
        >>> identity = jnp.zeros((8, 4, 2, 1, 1)).at[:, :, 0].set(1.0)
        >>> u = jnp.sin(2 * jnp.pi * domain.points[:, :1])  # inside the band, so it passes unchanged
        >>> v = spectral.fourier_integral(u, identity, domain.shape)
        >>> bool(jnp.allclose(u, v, atol=1e-5))
        True
    """
    values, multipliers = as_float(values, "values"), as_float(multipliers, "multipliers")
    grid_shape = tuple(n if is_symbolic(n) else int(n) for n in grid_shape)
    band = _band(values, multipliers, grid_shape, axis_name)
    if implementation is None:
        implementation = "matrix" if axis_name is not None else _choose(band, math.prod(values.shape[1:]))
    check_name(implementation, "implementation", IMPLEMENTATIONS)
    if implementation == "fft" and is_symbolic(*grid_shape):
        raise NotImplementedError(
            f"implementation='fft' needs a known number of nodes, got {grid_shape}; use 'matrix' or None."
        )
    dtype = spectral_dtype(values)
    kept = restrict(multipliers, band).astype(dtype)
    if axis_name is not None:
        if implementation == "fft":
            raise NotImplementedError(
                "implementation='fft' needs all nodes on one device; with axis_name use 'matrix' or None."
            )
        spectrum = shared_analysis(values.astype(dtype), band, axis_name)
        out = shared_synthesis(multiply(spectrum, kept), band, axis_name)
    elif implementation == "fft":
        out = _by_fft(values.astype(dtype), kept, band)
    else:
        out = synthesis(multiply(analysis(values.astype(dtype), band), kept), band)
    return out.astype(values.dtype)


def spectral_dtype(values: Array) -> jnp.dtype:
    """Returns float64 for float64, and float32 for narrower dtypes, because phases need its digits."""
    return jnp.dtype("float64" if values.dtype == jnp.float64 else "float32")


def restrict(multipliers: Float[Array, "*modes 2 c_in c_out"], band: Band) -> Float[Array, "m 2 c_in c_out"]:
    """Returns the multipliers of the kept modes, as one list in row-major order.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import spectral
        >>> spectral.restrict(jnp.ones((8, 4, 2, 3, 5)), spectral.Band((4, 4), (4, 4))).shape
        (6, 2, 3, 5)
    """
    for axis, positions in enumerate(band.positions):
        if len(positions) < multipliers.shape[axis]:
            multipliers = jnp.take(multipliers, positions, axis=axis)
    return multipliers.reshape(band.size, *multipliers.shape[-3:])


def initial_multipliers(
    rng_key: Array,
    modes: Sequence[int],
    c_in: int,
    c_out: int,
    *,
    groups: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*modes 2 c_in c"]:
    """R(k) = (U + iU′)/(c_in c_out) with U, U′ uniform on [0, 1), for ``groups`` operators side by side.

    Args:
        rng_key: PRNG key.
        modes: m_j along each axis.
        c_in: input channels.
        c_out: output channels of one operator.
        groups: number of operators that share their input, such as the heads of an attention layer.
        dtype: dtype of the parameters.

    Returns:
        Multipliers of shape (2 m_1, …, m_dim, 2, c_in, groups · c_out).

    Example:
        >>> import jax
        >>> from jaxop import spectral
        >>> spectral.initial_multipliers(jax.random.key(0), (4, 4), 3, 5).shape
        (8, 4, 2, 3, 5)
    """
    shape = (*multiplier_shape(tuple(modes)), 2, c_in, groups * c_out)
    return jax.random.uniform(rng_key, shape, dtype) / float(c_in * c_out)  # integers overflow beyond 2^31


def _band(values: Array, multipliers: Array, grid_shape: tuple[int, ...], axis_name: str | None) -> Band:
    dim = len(grid_shape)
    if not 1 <= dim <= 3:
        raise ValueError(f"grid_shape must have 1 to 3 axes, got {grid_shape}.")
    is_whole = axis_name is None  # `shared_analysis` checks the nodes of one device
    if values.ndim < 2 or (is_whole and values.shape[0] != math.prod(grid_shape)):
        raise ValueError(
            f"values must have shape (n, ..., c_in) with n = {math.prod(grid_shape)} nodes of a grid {grid_shape}, "
            f"got {values.shape}."
        )
    if multipliers.ndim != dim + 3 or multipliers.shape[dim] != 2:
        raise ValueError(
            f"multipliers must have shape (*modes, 2, c_in, c_out) with {dim} axes of modes, got {multipliers.shape}; "
            "stack the real and the imaginary part on axis -3."
        )
    if multipliers.shape[-2] != values.shape[-1]:
        raise ValueError(
            f"multipliers take c_in = {multipliers.shape[-2]} channels, but values have {values.shape[-1]}."
        )
    full = multipliers.shape[:dim]
    if any(rows % 2 for rows in full[:-1]):
        raise ValueError(
            f"multipliers need an even number of modes, k = -m ... m - 1, on every axis but the last, got {full}."
        )
    return Band(grid_shape, (*(rows // 2 for rows in full[:-1]), full[-1]))


def _choose(band: Band, columns: int) -> str:
    if is_symbolic(*band.shape, columns):
        return "matrix"
    # measured on CPUs with gradients: matrix products are slow for few columns, and the FFT is faster for many modes
    return "matrix" if max(band.modes) <= 32 and columns >= 16 else "fft"


def _by_fft(values: Array, multipliers: Array, band: Band) -> Array:
    dim, rest = len(band.shape), values.shape[1:-1]
    axes = tuple(range(dim))
    spectrum = jnp.fft.rfftn(values.reshape(*band.shape, *values.shape[1:]), axes=axes)
    where = np.ix_(*(k % n for k, n in zip(band.frequencies, band.shape, strict=True)))
    kept = spectrum[where].reshape(band.size, *values.shape[1:])
    table = jax.lax.complex(multipliers[:, 0], multipliers[:, 1])
    product = jnp.einsum("m...i,mio->m...o", kept, table, precision=jax.lax.Precision.HIGHEST)
    c_out = product.shape[-1]
    padded = jnp.zeros((*spectrum.shape[:dim], *rest, c_out), product.dtype)
    padded = padded.at[where].set(product.reshape(*band.kept, *rest, c_out))
    return jnp.fft.irfftn(padded, s=band.shape, axes=axes).reshape(values.shape[0], *rest, c_out)
