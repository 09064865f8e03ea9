"""Truncated Fourier transforms of functions whose nodes the devices of a mapped axis share."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._varying import varying_like
from jaxop.spectral.band import Band
from jaxop.spectral.transform import PRECISION, apply_matrix, check_coefficients


def shared_analysis(values: Float[Array, "k *batch c"], band: Band, axis_name: str) -> Float[Array, "2 m *batch c"]:
    """û(k) of `analysis`, the sum over the devices of a mapped axis of the transforms of their nodes.

    Each of p devices has k = ⌈n/p⌉ of the n nodes of the grid, one after the other in row-major order; what comes after
    the last node does not count. Every device transforms the rows of its nodes along all axes but the first. Then it
    multiplies them with its own columns of the matrix of the first axis, and all devices add their products.

    Args:
        values: functions at the nodes of this device, nodes first, (k, …, c).
        band: the modes and the whole grid.
        axis_name: the mapped axis of `jax.shard_map`.

    Returns:
        Real and imaginary parts, (2, m, …, c) for the m kept modes, the same on all devices.

    Raises:
        ValueError: if there are not k nodes.

    Cost: 1/p of the operations of `analysis`. If whole rows are not divided, each device transforms up to two more
        rows. All devices add 2 m numbers per function and channel in one sum.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import Mesh, PartitionSpec
        >>> from jaxop import spectral
        >>> band = spectral.Band((8, 8), (2, 2))
        >>> transform = jax.shard_map(
        ...     lambda u: spectral.shared_analysis(u, band, "domain"),
        ...     mesh=Mesh(jax.devices()[:1], ("domain",)),
        ...     in_specs=PartitionSpec("domain"),
        ...     out_specs=PartitionSpec(),
        ... )
        >>> u = jnp.arange(64.0)[:, None]
        >>> bool(jnp.allclose(transform(u), spectral.analysis(u, band), rtol=1e-5))
        True
    """
    rows, rest = _Rows(band, axis_name), values.shape[1:]
    if values.ndim < 2 or values.shape[0] != rows.nodes:
        raise ValueError(
            f"values must have shape (k, ..., c) with the k = {rows.nodes} nodes that each of {rows.devices} devices "
            f"has of a grid {band.shape}, got {values.shape}; see domains.shard."
        )
    width = math.prod(rest)
    data = rows.fill(values.reshape(rows.nodes, width))
    for axis in reversed(range(1, len(band.shape))):
        matrix = band.matrix(axis)
        leading = rows.count * math.prod(band.shape[1:axis])
        data = apply_matrix(matrix, data.reshape(leading, matrix.shape[1], width))
        width *= band.kept[axis]
    own = rows.own(band.matrix(0), data.dtype)
    part = jnp.matmul(own, data.reshape(own.shape[1], width), precision=PRECISION)
    return jax.lax.psum(part, axis_name).reshape(2, band.size, *rest)


def shared_synthesis(
    coefficients: Float[Array, "2 m *batch c"], band: Band, axis_name: str
) -> Float[Array, "k *batch c"]:
    """u(x) of `synthesis` at the nodes of one device of a mapped axis; the transpose of `shared_analysis`.

    Args:
        coefficients: real and imaginary parts, (2, m, …, c), the same on all devices.
        band: the modes and the whole grid.
        axis_name: the mapped axis of `jax.shard_map`.

    Returns:
        Functions at the k nodes of this device, (k, …, c), and 0 after the last node of the grid.

    Raises:
        ValueError: if the coefficients do not fit the band.

    Cost: that of `shared_analysis`, without the sum.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import Mesh, PartitionSpec
        >>> from jaxop import spectral
        >>> band = spectral.Band((8, 8), (2, 2))
        >>> values = jax.shard_map(
        ...     lambda y: spectral.shared_synthesis(y, band, "domain"),
        ...     mesh=Mesh(jax.devices()[:1], ("domain",)),
        ...     in_specs=PartitionSpec(),
        ...     out_specs=PartitionSpec("domain"),
        ... )
        >>> values(jnp.ones((2, 8, 3))).shape
        (64, 3)
    """
    check_coefficients(coefficients, band)
    rows, rest = _Rows(band, axis_name), coefficients.shape[2:]
    own = rows.own(band.matrix(0), coefficients.dtype)
    width = math.prod(rest) * band.size // band.kept[0]
    data = jnp.matmul(own.T, coefficients.reshape(own.shape[0], width), precision=PRECISION)
    for axis in range(1, len(band.shape)):
        matrix = band.matrix(axis)
        width //= band.kept[axis]
        leading = rows.count * math.prod(band.shape[1:axis])
        data = apply_matrix(matrix.T, data.reshape(leading, matrix.shape[0], width))
    return rows.take(data.reshape(-1, width)).reshape(rows.nodes, *rest)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a grid, x_1 = const, that hold the nodes of one device."""

    band: Band
    axis_name: str

    @property
    def devices(self) -> int:
        return jax.lax.axis_size(self.axis_name)

    @property
    def nodes(self) -> int:
        """Nodes of one device."""
        return -(-math.prod(self.band.shape) // self.devices)

    @property
    def length(self) -> int:
        """Nodes of one row."""
        return math.prod(self.band.shape[1:])

    @property
    def are_whole(self) -> bool:
        """Whether every device has whole rows."""
        return self.nodes % self.length == 0

    @property
    def count(self) -> int:
        """Number of rows that hold the nodes of any device."""
        return self.nodes // self.length if self.are_whole else -(-(self.nodes + self.length - 1) // self.length)

    @property
    def first(self) -> Array:
        """Number of the first node of this device."""
        return jax.lax.axis_index(self.axis_name) * self.nodes

    def fill(self, values: Array) -> Array:
        """Returns functions on whole rows, 0 at the nodes of other devices."""
        if self.are_whole:
            return values
        empty = varying_like(jnp.zeros((self.count * self.length, values.shape[1]), values.dtype), values)
        return jax.lax.dynamic_update_slice_in_dim(empty, values, self.first % self.length, 0)

    def take(self, values: Array) -> Array:
        """Returns functions on whole rows at the nodes of this device."""
        if self.are_whole:
            return values
        return jax.lax.dynamic_slice_in_dim(values, self.first % self.length, self.nodes, 0)

    def own(self, matrix: np.ndarray, dtype: jnp.dtype) -> Array:
        """Returns the columns of the matrix of the first axis that belong to these rows, 0 after the last row."""
        each = matrix.shape[1] // self.band.shape[0]  # 2 if the values are complex
        last = (self.devices - 1) * self.nodes // self.length + self.count
        extra = max(0, last - self.band.shape[0])
        padded = jnp.asarray(np.pad(matrix, [(0, 0), (0, extra * each)]), dtype)
        return jax.lax.dynamic_slice_in_dim(padded, self.first // self.length * each, self.count * each, 1)
