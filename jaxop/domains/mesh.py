"""Triangulated domains and surfaces."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxop._pytree import register
from jaxop.domains.domain import Domain, contract
from jaxop.domains.measure import namespace


@register
@dataclasses.dataclass(frozen=True, eq=False)
class TriangleMesh(Domain):
    """Vertices of a triangulated surface in 2 or 3 dimensions; a vertex weighs a third of its triangles' areas.

    Attributes:
        points: vertices, shape (n, dim) with dim 2 or 3.
        weights: a third of the areas of the incident triangles, shape (n,).
        faces: vertex indices of the triangles, shape (f, 3).
    """

    points: Array
    weights: Array
    faces: Array

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """Piecewise linear: |T| ∇u·∇v = (δ_a u b − δ_b u a)·(δ_a v b − δ_b v a) / 4|T|, edges a, b of T."""
        u, v = self._weighted(u), self._weighted(v)
        first, second = (edge.astype(u.dtype) for edge in triangle_edges(self.points, self.faces))
        area = triangle_areas(first, second)

        def rotated_gradient(values: Array) -> Array:
            corner, along_first, along_second = (values[self.faces[:, k], :, None] for k in range(3))
            return (along_first - corner) * second[:, None, :] - (along_second - corner) * first[:, None, :]

        product = jnp.sum(rotated_gradient(u) * rotated_gradient(v), axis=(1, 2))
        counts = (area > 0) & jnp.all(self.weights[self.faces] > 0, axis=1)
        return contract(1 / (4 * jnp.where(counts, area, jnp.inf)), product)


def triangle_edges(
    points: Float[Array | np.ndarray, "n dim"], faces: Int[Array | np.ndarray, "f 3"]
) -> tuple[Float[Array | np.ndarray, "f dim"], Float[Array | np.ndarray, "f dim"]]:
    """Returns the two edges of every triangle that leave its first corner."""
    corner = points[faces[:, 0]]
    return points[faces[:, 1]] - corner, points[faces[:, 2]] - corner


def triangle_areas(
    first: Float[Array | np.ndarray, "f dim"], second: Float[Array | np.ndarray, "f dim"]
) -> Float[Array | np.ndarray, " f"]:
    """Returns ½|a × b| for the edges a, b of every triangle; its gradient at a degenerate triangle is finite."""
    xp = namespace(first, second)
    a, b = (xp.pad(edge, [(0, 0), (0, 3 - edge.shape[-1])]) for edge in (first, second))
    normal = xp.cross(a, b)
    return xp.hypot(xp.hypot(normal[:, 0], normal[:, 1]), normal[:, 2]) / 2
