"""Truncated real Fourier transforms as matrix products, axis by axis."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import is_symbolic
from jaxop.spectral.band import Band

# a matrix unit would round float32 operands to 10 bits by default
PRECISION = jax.lax.Precision.HIGHEST
"""Precision of the products of a transform."""


def analysis(values: Float[Array, "n *batch c"], band: Band) -> Float[Array, "2 m *batch c"]:
    """û(k) = s_k Σ_x u(x) e^{−2πi k·x/n}, with s_k = 1/√N for k_dim = 0 and √(2/N) otherwise, N = Π n_j.

    With this scaling the map is an isometry up to the redundancy of column 0 (see `isometric`), and its transpose is
    `synthesis`. A product of û with R(k) has the same meaning as for the unscaled transform.

    Args:
        values: functions on the grid, nodes first and in row-major order, (n, …, c).
        band: the modes and the grid.

    Returns:
        Real and imaginary parts, (2, m, …, c) for the m kept modes.

    Cost: two matrix products per axis pair; Σ_j over axes of (nodes so far) · 4 (kept modes) operations per
    channel. A truncated transform does not need an FFT.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import spectral
        >>> spectral.analysis(jnp.ones((64, 3)), spectral.Band((8, 8), (2, 2))).shape
        (2, 8, 3)
    """
    nodes = math.prod(band.shape)
    if values.ndim < 2 or values.shape[0] != nodes:
        raise ValueError(
            f"values must have shape (n, ..., c) with n = {nodes} nodes of a grid {band.shape}, got {values.shape}."
        )
    dim, rest = len(band.shape), values.shape[1:]
    data, width = values, math.prod(rest)
    for axis in reversed(range(dim)):
        matrix = _matrix(band, axis)
        leading = math.prod(band.shape[:axis])
        data = apply_matrix(matrix, data.reshape(leading, matrix.shape[1], width))
        width *= band.kept[axis]
    return data.reshape(2, band.size, *rest)


def synthesis(coefficients: Float[Array, "2 m *batch c"], band: Band) -> Float[Array, "n *batch c"]:
    """u(x) = Re Σ_k s_k û(k) e^{2πi k·x/n}, the transpose of `analysis`.

    Only the Hermitian part of column 0 has an effect, like in an inverse real FFT.

    Args:
        coefficients: real and imaginary parts, (2, m, …, c).
        band: the modes and the grid.

    Returns:
        Functions on the grid, (n, …, c).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import spectral
        >>> band = spectral.Band((8,), (2,))
        >>> u = jnp.cos(2 * jnp.pi * jnp.arange(8.0) / 8)[:, None]
        >>> bool(jnp.allclose(spectral.synthesis(spectral.analysis(u, band), band), u, atol=1e-6))
        True
    """
    check_coefficients(coefficients, band)
    dim, rest = len(band.shape), coefficients.shape[2:]
    data, width = coefficients, math.prod(rest) * band.size
    for axis in range(dim):
        matrix = _matrix(band, axis)
        width //= band.kept[axis]
        leading = math.prod(band.shape[:axis])
        data = apply_matrix(matrix.T, data.reshape(leading, matrix.shape[0], width))
    return data.reshape(math.prod(band.shape), *rest)


def _matrix(band: Band, axis: int) -> np.ndarray | Array:
    return band.traced_matrix(axis) if is_symbolic(*band.shape) else band.matrix(axis)


def apply_matrix(matrix: np.ndarray | Array, data: Float[Array, "a n c"]) -> Float[Array, "a k c"]:
    """Applies the same real matrix to every leading entry."""
    is_known = isinstance(matrix, np.ndarray)
    matrix = np.ascontiguousarray(matrix, data.dtype) if is_known else matrix.astype(data.dtype)
    if data.shape[0] == 1:
        return jnp.matmul(matrix, data[0], precision=PRECISION)[None]
    # one batched product keeps the order of the axes, whereas contracting the middle axis alone would transpose
    repeated = jnp.broadcast_to(jnp.asarray(matrix)[None], (data.shape[0], *matrix.shape))
    return jnp.matmul(repeated, data, precision=PRECISION)


def multiply(
    coefficients: Float[Array, "2 m *batch c_in"], multipliers: Float[Array, "m 2 c_in c_out"]
) -> Float[Array, "2 m *batch c_out"]:
    """v̂(k) = R(k)ᵀ û(k), one complex matrix per mode.

    In real arithmetic [v_r; v_i] = [[u_r, −u_i], [u_i, u_r]] · [R_r; R_i]. This doubles the input, the smaller factor,
    and needs one product per mode; its result and its gradients do not need another pass.

    Args:
        coefficients: real and imaginary parts, (2, m, …, c_in).
        multipliers: real and imaginary parts of R(k), (m, 2, c_in, c_out).

    Returns:
        (2, m, …, c_out).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import spectral
        >>> i = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1)
        >>> spectral.multiply(jnp.array([3.0, 4.0]).reshape(2, 1, 1), i)[:, 0, 0].tolist()
        [-4.0, 3.0]
    """
    _, m, *batch, c_in = coefficients.shape
    c_out, rows = multipliers.shape[-1], math.prod(batch)
    real, imag = coefficients.reshape(2, m, rows, c_in)
    doubled = jnp.concatenate([jnp.concatenate([real, -imag], axis=-1), jnp.concatenate([imag, real], axis=-1)], axis=1)
    product = jnp.matmul(doubled, multipliers.reshape(m, 2 * c_in, c_out), precision=PRECISION)
    return jnp.moveaxis(product.reshape(m, 2, *batch, c_out), 1, 0)


def isometric(coefficients: Float[Array, "2 m *batch c"], band: Band) -> Float[Array, "2 m *batch c"]:
    """Coefficients y′ with Σ_x u(x) v(x) = Σ_{o,k} y′_u y′_v for the functions u, v = `synthesis` of y_u, y_v.

    Synthesis discards the non-Hermitian part of column 0, so products of arbitrary coefficients are not
    products of functions. Here column 0 becomes ½(y(k) + conj y(−k)). If −k is not kept (k_j = −m_j on a grid finer
    than 2 m_j nodes), the function Re(y e^{ikx}) has half the square norm, so y becomes y/√2.

    Args:
        coefficients: real and imaginary parts, (2, m, …, c).
        band: the modes and the grid.

    Returns:
        An array of the same shape; `synthesis` of it is the same function, up to the factor of the modes
        without a partner.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import spectral
        >>> band = spectral.Band((8,), (2,))
        >>> y = jnp.arange(4.0).reshape(2, 2, 1)  # the imaginary part of the mean means nothing
        >>> spectral.isometric(y, band)[:, :, 0].tolist()
        [[0.0, 1.0], [0.0, 3.0]]
    """
    check_coefficients(coefficients, band)
    rest = coefficients.shape[2:]
    columns = coefficients.reshape(2, -1, band.kept[-1], *rest)
    places, kept = band.mirror()
    column = columns[:, :, 0]
    mirrored = column[:, places] * jnp.asarray([1, -1], column.dtype).reshape(2, *(1,) * (column.ndim - 1))
    kept = jnp.asarray(kept).reshape(1, -1, *(1,) * len(rest))
    column = jnp.where(kept, (column + mirrored) / 2, column * math.sqrt(0.5))
    return jnp.concatenate([column[:, :, None], columns[:, :, 1:]], axis=2).reshape(coefficients.shape)


def check_coefficients(coefficients: Float[Array, "2 m *batch c"], band: Band) -> None:
    """Raises ``ValueError`` unless there is one coefficient for every mode of the band."""
    if coefficients.ndim < 3 or coefficients.shape[:2] != (2, band.size):
        raise ValueError(
            f"coefficients must have shape (2, m, ..., c) with m = {band.size} modes that a grid {band.shape} keeps of "
            f"{band.modes}, got {coefficients.shape}."
        )
