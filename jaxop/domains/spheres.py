"""The sphere: grids of latitude and longitude, and a mesh of nearly equal triangles."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real
from scipy.spatial import ConvexHull

from jaxop._pytree import register
from jaxop._validation import as_integer, as_number, check_name, first_index, float_dtype, host_real, on_device
from jaxop.domains.arrays import check_finite
from jaxop.domains.domain import Domain, PointCloud, contract
from jaxop.domains.mesh import TriangleMesh
from jaxop.domains.meshing import triangle_mesh

SPHERE_RULES = ("gauss-legendre", "midpoint", "trapezoid")
"""Names of the rules of latitude that `sphere` accepts."""


@functools.partial(register, static=("shape", "rule"))
@dataclasses.dataclass(frozen=True, eq=False)
class Sphere(Domain):
    """A grid of latitudes φ_i and equispaced longitudes λ_j on a sphere about the origin; `sphere` builds it.

    Nodes are in row-major order, so that a function reshapes to ``shape``: from the south pole to the north pole, then
    from λ = 0 to the east. If nodes without data get weight 0 (`dataclasses.replace`), neither integrals nor gradients
    see them.

    Attributes:
        points: Cartesian coordinates r (cos φ cos λ, cos φ sin λ, sin φ), shape (n, 3).
        weights: quadrature weights, shape (n,), with sum 4π r².
        shape: number of latitudes and of longitudes (static).
        rule: name of the rule of the latitudes, one of `SPHERE_RULES` (static).
    """

    points: Array
    weights: Array
    shape: tuple[int, int]
    rule: str

    @property
    def latitudes(self) -> Float[np.ndarray, " rows"]:
        """Latitudes φ_i in radians, increasing."""
        return _latitudes(self.shape[0], self.rule)[0]

    @property
    def longitudes(self) -> Float[np.ndarray, " columns"]:
        """Longitudes λ_j = 2πj/n_λ in radians."""
        return _longitudes(self.shape[1])

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """∫∫ ((∂_φ u)² cos φ + (∂_λ u)² / cos φ) dφ dλ by differences of neighbours, which no radius changes.

        A quotient of two rows stands for the band between them, and the outermost also for the caps beyond the rows.
        """
        rows, columns = self.shape
        if rows < 2:
            raise ValueError(f"the H1 inner product needs at least 2 latitudes, got {rows}.")
        latitudes, shares = _latitudes(rows, self.rule)
        bands = np.diff(np.sin(latitudes))
        bands[0] += 1 + np.sin(latitudes[0])
        bands[-1] += 1 - np.sin(latitudes[-1])
        spacing = 2 * np.pi / columns
        along = spacing * bands / np.diff(latitudes) ** 2
        inside = np.cos(latitudes) > 1e-9  # at a pole all longitudes are one point
        round_ = np.where(inside, shares / np.where(inside, np.cos(latitudes), 1) ** 2, 0) / spacing
        counts = (self.weights > 0).reshape(rows, columns, 1)
        u, v = (self._weighted(values).reshape(rows, columns, -1) for values in (u, v))
        north = jnp.where(counts[1:] & counts[:-1], jnp.diff(u, axis=0) * jnp.diff(v, axis=0), 0)
        steps = [jnp.roll(values, -1, axis=1) - values for values in (u, v)]
        east = jnp.where(counts & jnp.roll(counts, -1, axis=1), steps[0] * steps[1], 0)
        return jnp.sum(contract(jnp.asarray(along, u.dtype), north)) + jnp.sum(
            contract(jnp.asarray(round_, u.dtype), east)
        )


def sphere(
    n_latitude: int, n_longitude: int | None = None, *, radius: float = 1.0, rule: str = "gauss-legendre"
) -> Sphere:
    """A quadrature on the sphere of n_φ latitudes and n_λ equispaced longitudes: w_ij = r² w_i 2π/n_λ, Σ w = 4π r².

    ``"gauss-legendre"`` has Gauss–Legendre nodes in z = sin φ. It is exact for spherical harmonics up to degree
    2n_φ − 1 and order n_λ − 1. ``"midpoint"`` and ``"trapezoid"`` have equispaced latitudes, in the middle of n_φ bands
    or from pole to pole, as in weather data. The weight of a node is the area of its cell, which is proportional to
    cos φ except at the poles. They have order 2.

    The H1 inner product uses differences of neighbours in both angles, and has order 2 for every rule.

    Args:
        n_latitude: number of latitudes n_φ.
        n_longitude: number of longitudes n_λ; None means 2n_φ.
        radius: r.
        rule: one of `SPHERE_RULES`.

    Returns:
        A `Sphere` of n_φ n_λ nodes in Cartesian coordinates (x, y, z).

    Raises:
        TypeError: if a count is not an integer or ``radius`` is not a number.
        ValueError: if ``rule`` is unknown, a count is too small, or ``radius`` is not positive and finite.

    Cost: O(n_φ² + n_φ n_λ) on the host for Gauss–Legendre nodes, once.

    Example:
        >>> from jaxop import domains
        >>> earth = domains.sphere(16)
        >>> x, y, z = earth.points.T
        >>> print(earth.shape, earth.integrate((z**2)[:, None]).round(4))  # 4π/3
        (16, 32) [4.1888]
    """
    rows = as_integer(n_latitude, "n_latitude")
    check_name(rule, "rule", SPHERE_RULES)
    fewest = 2 if rule == "trapezoid" else 1
    if rows < fewest:
        raise ValueError(f"n_latitude must be at least {fewest} for rule={rule!r}, got {rows}.")
    columns = 2 * rows if n_longitude is None else as_integer(n_longitude, "n_longitude")
    if columns < 1:
        raise ValueError(f"n_longitude must be at least 1, got {columns}.")
    size = _checked_radius(radius)
    latitudes, shares = _latitudes(rows, rule)
    points = _on_sphere(latitudes, _longitudes(columns))
    weights = np.repeat(size**2 * shares * 2 * np.pi / columns, columns)
    dtype = float_dtype()
    return Sphere(on_device(size * points, dtype), on_device(weights, dtype), (rows, columns), rule)


def latitude_longitude(
    latitudes: Real[ArrayLike, " rows"] | Sequence[float],
    longitudes: Real[ArrayLike, " columns"] | Sequence[float],
    *,
    radius: float = 1.0,
) -> PointCloud:
    """The nodes of a given grid of latitudes and longitudes in degrees, as files of weather data hold them.

    The weight of a node is the area of its cell, r² Δλ (sin φ₊ − sin φ₋), whose borders lie midway between neighbours.
    The outermost cells of a region are symmetric about their nodes. They reach a pole that is nearer than the next row.
    The longitudes are a circle if the gap from the last to the first is at most 1.5 times the largest other gap.
    Integrals converge at order 2.

    Nodes are in row-major order of the arguments, which may increase or decrease, so that an array of shape (latitude,
    longitude) becomes samples by ``reshape(-1, channels)``. The result has integrals and L2 norms; `sphere` has
    gradients too, but chooses its own nodes.

    Args:
        latitudes: φ in degrees, between −90 and 90, monotone, at least 2.
        longitudes: λ in degrees, monotone, over at most 360 degrees, at least 2.
        radius: r.

    Returns:
        A `PointCloud` with Cartesian coordinates (x, y, z); Σ w_i is the area of the region, 4π r² for the
        whole sphere.

    Raises:
        TypeError: if an argument is not an array of real numbers, or ``radius`` is not a number.
        ValueError: if an array has the wrong shape, is not finite or monotone or leaves its range, or ``radius`` is not
            positive and finite. The message names the first bad index.

    Cost: O(n) on the host.

    Example:
        >>> import numpy as np
        >>> from jaxop import domains
        >>> earth = domains.latitude_longitude(np.linspace(90, -90, 37), np.arange(0, 360, 5.0), radius=6371.0)
        >>> print(earth.size, f"{earth.measure:.3e}")  # km²
        2664 5.101e+08
    """
    size = _checked_radius(radius)
    phi, theta = _degrees(latitudes, "latitudes"), _degrees(longitudes, "longitudes")
    beyond = np.abs(phi) > 90
    if beyond.any():
        where = first_index(beyond)
        raise ValueError(f"latitudes must lie between -90 and 90, but latitudes[{where}] = {phi[where]}; use degrees.")
    gaps = np.abs(np.diff(theta))
    rest = 360 - gaps.sum()
    if rest < -1e-3 * gaps.max():
        raise ValueError(
            f"longitudes must cover at most 360 degrees, but run from {theta[0]} to {theta[-1]}; leave out repetitions."
        )
    if rest <= 1e-3 * gaps.max():
        raise ValueError(
            f"longitudes[{theta.size - 1}] = {theta[-1]} repeats longitudes[0] = {theta[0]} after a full circle; leave "
            "out the last column."
        )
    rows = _borders(phi)
    for end, gap in ((0, phi[1] - phi[0]), (-1, phi[-1] - phi[-2])):
        if 90 - abs(phi[end]) < 0.95 * abs(gap):
            rows[end] = math.copysign(90, rows[end])
    ends = np.sin(np.radians(rows))
    widths = np.abs(np.diff(_borders(theta)))
    if rest <= 1.5 * gaps.max():  # the cells of the first and the last column share the last gap
        widths[[0, -1]] = (rest + gaps[[0, -1]]) / 2
    weights = size**2 * np.outer(np.abs(np.diff(ends)), np.radians(widths)).ravel()
    dtype = float_dtype()
    return PointCloud(
        on_device(size * _on_sphere(np.radians(phi), np.radians(theta)), dtype), on_device(weights, dtype)
    )


def icosphere(refinements: int, *, radius: float = 1.0) -> TriangleMesh:
    """An icosahedron whose triangles are cut into four ``refinements`` times, with all vertices on the sphere.

    It has 10·4^k + 2 vertices and 20·4^k triangles of nearly equal size. Its area and its integrals converge to those
    of the sphere at order 2 in the edge length.

    Args:
        refinements: k.
        radius: radius of the sphere.

    Returns:
        A `TriangleMesh` in three dimensions; its normals point outwards.

    Raises:
        TypeError: if ``refinements`` is not an integer or ``radius`` is not a number.
        ValueError: if ``refinements`` is negative, or ``radius`` is not positive and finite.

    Cost: O(4^k) on the host.

    Example:
        >>> from jaxop import domains
        >>> ball = domains.icosphere(2)
        >>> print(ball.size, ball.measure.round(2))  # 4π = 12.57
        162 12.33
    """
    count, size = as_integer(refinements, "refinements"), _checked_radius(radius)
    if count < 0:
        raise ValueError(f"refinements must be at least 0, got {count}.")
    golden = (1 + math.sqrt(5)) / 2
    signs = np.array([[-1, 1], [1, 1], [-1, -1], [1, -1]])
    planes = np.stack([signs[:, 0], golden * signs[:, 1], np.zeros(4)], axis=1)
    vertices = np.concatenate([np.roll(planes, shift, axis=1) for shift in range(3)])
    vertices /= np.linalg.norm(vertices[0])
    faces = _outward_hull(vertices)
    for _ in range(count):
        edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        edges, middle = np.unique(edges, axis=0, return_inverse=True)
        middle = vertices.shape[0] + middle.reshape(-1, 3)
        middles = vertices[edges].sum(axis=1)
        vertices = np.concatenate([vertices, middles / np.linalg.norm(middles, axis=1, keepdims=True)])
        (a, b, c), (ab, bc, ca) = faces.T, middle.T
        corners = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = np.concatenate([np.stack(corner, axis=1) for corner in corners])
    return triangle_mesh((size * vertices).astype(float_dtype()), faces)


def _outward_hull(vertices: Float[np.ndarray, "n 3"]) -> np.ndarray:
    """Returns the triangles of the convex hull of points about the origin, with normals that point outwards."""
    faces = ConvexHull(vertices).simplices
    inward = np.linalg.det(vertices[faces]) < 0
    faces[inward] = faces[inward][:, ::-1]
    return faces


def _latitudes(rows: int, rule: str) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Returns latitudes in radians and the share of ∫ dz = 2 that stands for each."""
    if rule == "gauss-legendre":
        heights, shares = np.polynomial.legendre.leggauss(rows)
        return np.arcsin(heights), shares
    if rule == "midpoint":
        latitudes, width = np.pi * ((np.arange(rows) + 0.5) / rows - 0.5), np.pi / rows
    else:
        latitudes, width = np.linspace(-np.pi / 2, np.pi / 2, rows), np.pi / (rows - 1)
    upper = np.sin(np.minimum(latitudes + width / 2, np.pi / 2))
    lower = np.sin(np.maximum(latitudes - width / 2, -np.pi / 2))
    return latitudes, upper - lower


def _longitudes(columns: int) -> Float[np.ndarray, " columns"]:
    return 2 * np.pi * np.arange(columns) / columns


def _on_sphere(latitudes: Float[np.ndarray, " rows"], longitudes: Float[np.ndarray, " columns"]) -> np.ndarray:
    """Returns Cartesian coordinates on the unit sphere in row-major order, (n, 3)."""
    phi, theta = latitudes[:, None], longitudes[None, :]
    ring = np.where(np.abs(phi) < np.pi / 2, np.cos(phi), 0)  # the cosine of π/2 rounds to 6e-17
    return np.stack(np.broadcast_arrays(ring * np.cos(theta), ring * np.sin(theta), np.sin(phi)), axis=-1).reshape(
        -1, 3
    )


def _degrees(angles: object, argument: str) -> Float[np.ndarray, " n"]:
    """Returns monotone angles on the host in float64."""
    array = host_real(angles, argument)
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"{argument} must have shape (n,) with n >= 2, got {array.shape}.")
    check_finite(array, argument)
    steps = np.diff(array)
    bad = steps * steps[0] <= 0
    if bad.any():
        where = int(np.argmax(bad))
        raise ValueError(
            f"{argument} must increase or decrease, but {argument}[{where + 1}] = {array[where + 1]} does not go on "
            f"from {argument}[{where}] = {array[where]}; sort them together with the values, or add 360 after a jump."
        )
    return array


def _borders(angles: Float[np.ndarray, " n"]) -> Float[np.ndarray, " borders"]:
    """Returns the midpoints between neighbours, and as far beyond the first and last angle as the next midpoints."""
    middles = (angles[1:] + angles[:-1]) / 2
    return np.concatenate([[2 * angles[0] - middles[0]], middles, [2 * angles[-1] - middles[-1]]])


def _checked_radius(radius: object) -> float:
    size = as_number(radius, "radius")
    if not 0 < size < math.inf:
        raise ValueError(f"radius must be positive and finite, got {radius}.")
    return size
