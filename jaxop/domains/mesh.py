"""Meshes of simplices: curves, triangulated domains and surfaces, tetrahedral volumes."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxop._pytree import register
from jaxop.domains.domain import Domain, contract
from jaxop.domains.measure import namespace


class Mesh(Domain):
    """Base class of meshes of simplices: `LineMesh`, `TriangleMesh`, `TetrahedralMesh`.

    A vertex weighs an equal part of each simplex at which it stands: w_i = Σ_{T ∋ i} |T|/(k + 1) in k dimensions, which
    is the integral of its piecewise linear hat. Functions are piecewise linear between the vertices, and the H1 inner
    product takes the exact gradients of these interpolants, tangential ones if the mesh lies in a space of more
    dimensions. Meshes may have holes, boundaries and several parts.

    Attributes:
        simplices_name: name of the attribute that holds the simplices.
    """

    simplices_name: ClassVar[str]

    @property
    def simplices(self) -> Int[Array, "*batch s k"]:
        """Vertex indices of the simplices, shape (s, k + 1) for simplices of k dimensions."""
        return getattr(self, self.simplices_name)

    def _counts(self, size: Float[Array | np.ndarray, " s"]) -> Bool[Array, " s"]:
        """Returns which simplices are not degenerate and have weight at every vertex."""
        return jnp.greater(size, 0) & jnp.all(self.weights[self.simplices] > 0, axis=1)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class LineMesh(Mesh):
    """Vertices of a curve or a network of curves; a vertex weighs half of the length of its edges.

    Attributes:
        points: vertices, shape (n, dim).
        weights: half of the lengths of the incident edges, shape (n,).
        edges: vertex indices of the edges, shape (e, 2).
    """

    simplices_name = "edges"

    points: Array
    weights: Array
    edges: Array

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """Piecewise linear: |E| u'·v' = δu·δv / |E|."""
        u, v = self._weighted(u), self._weighted(v)
        length = simplex_sizes(*(edge.astype(u.dtype) for edge in simplex_edges(self.points, self.edges)))
        start, end = self.edges[:, 0], self.edges[:, 1]
        product = jnp.sum((u[end] - u[start]) * (v[end] - v[start]), axis=1)
        return contract(1 / jnp.where(self._counts(length), length, jnp.inf), product)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class TriangleMesh(Mesh):
    """Vertices of a triangulated surface in 2 or 3 dimensions; a vertex weighs a third of its triangles' areas.

    Attributes:
        points: vertices, shape (n, dim) with dim 2 or 3.
        weights: a third of the areas of the incident triangles, shape (n,).
        faces: vertex indices of the triangles, shape (f, 3).
    """

    simplices_name = "faces"

    points: Array
    weights: Array
    faces: Array

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """Piecewise linear: |T| ∇u·∇v = (δ_a u b − δ_b u a)·(δ_a v b − δ_b v a) / 4|T|, edges a, b of T."""
        u, v = self._weighted(u), self._weighted(v)
        first, second = (edge.astype(u.dtype) for edge in simplex_edges(self.points, self.faces))
        area = simplex_sizes(first, second)

        def rotated_gradient(values: Array) -> Array:
            corner, along_first, along_second = (values[self.faces[:, k], :, None] for k in range(3))
            return (along_first - corner) * second[:, None, :] - (along_second - corner) * first[:, None, :]

        product = jnp.sum(rotated_gradient(u) * rotated_gradient(v), axis=(1, 2))
        return contract(1 / (4 * jnp.where(self._counts(area), area, jnp.inf)), product)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class TetrahedralMesh(Mesh):
    """Vertices of a volume cut into tetrahedra; a vertex weighs a quarter of the volumes of its tetrahedra.

    Attributes:
        points: vertices, shape (n, 3).
        weights: a quarter of the volumes of the incident tetrahedra, shape (n,).
        cells: vertex indices of the tetrahedra, shape (t, 4).
    """

    simplices_name = "cells"

    points: Array
    weights: Array
    cells: Array

    def _energy(self, u: Float[Array, "n c"], v: Float[Array, "n c"]) -> Float[Array, ""]:
        """Piecewise linear: ∇u = (δ_a u b×c + δ_b u c×a + δ_c u a×b) / 6|T|, edges a, b, c of the cell T."""
        u, v = self._weighted(u), self._weighted(v)
        edges = tuple(edge.astype(u.dtype) for edge in simplex_edges(self.points, self.cells))
        crosses = [jnp.cross(edges[k - 2], edges[k - 1]) for k in range(3)]
        volume = jnp.abs(jnp.sum(edges[0] * crosses[0], axis=1)) / 6
        scale = 1 / jnp.where(self._counts(volume), 6 * volume, jnp.inf)
        normals = [(scale[:, None] * cross)[:, None, :] for cross in crosses]

        def gradient(values: Array) -> Array:
            corner, *others = (values[self.cells[:, k], :, None] for k in range(4))
            first, second, third = ((other - corner) * normal for other, normal in zip(others, normals, strict=True))
            return first + second + third

        return contract(volume, jnp.sum(gradient(u) * gradient(v), axis=(1, 2)))


def simplex_edges(
    points: Float[Array | np.ndarray, "n dim"], simplices: Int[Array | np.ndarray, "s k"]
) -> tuple[Float[Array | np.ndarray, "s dim"], ...]:
    """Returns the edges of every simplex that leave its first corner, k − 1 arrays."""
    corner = points[simplices[:, 0]]
    return tuple(points[simplices[:, k]] - corner for k in range(1, simplices.shape[1]))


def simplex_sizes(*edges: Float[Array | np.ndarray, "s dim"]) -> Float[Array | np.ndarray, " s"]:
    """Returns |a|, ½|a × b| or |a·(b × c)|/6 for the edges of every simplex, its length, area or volume.

    The gradient at a degenerate simplex is finite.
    """
    if len(edges) == 3:
        return namespace(*edges).abs(signed_volumes(*edges))
    if len(edges) == 1:
        return _lengths(edges[0])
    xp = namespace(*edges)
    return _lengths(xp.cross(*(_in_space(edge) for edge in edges))) / 2


def vertex_weights(points: Float[np.ndarray, "n dim"], simplices: Int[np.ndarray, "s k"]) -> Float[np.ndarray, " n"]:
    """Returns the equal parts of its simplices that every vertex weighs, in float64 on the host."""
    corners = simplices.shape[1]
    sizes = simplex_sizes(*simplex_edges(points.astype(np.float64), simplices))
    return np.bincount(simplices.ravel(), np.repeat(sizes / corners, corners), points.shape[0])


def signed_volumes(
    first: Float[Array | np.ndarray, "s 3"],
    second: Float[Array | np.ndarray, "s 3"],
    third: Float[Array | np.ndarray, "s 3"],
) -> Float[Array | np.ndarray, " s"]:
    """Returns a·(b × c)/6 for the edges a, b, c of every tetrahedron."""
    xp = namespace(first, second, third)
    return xp.sum(first * xp.cross(second, third), axis=1) / 6


def _in_space(vectors: Float[Array | np.ndarray, "s dim"]) -> Float[Array | np.ndarray, "s 3"]:
    return namespace(vectors).pad(vectors, [(0, 0), (0, 3 - vectors.shape[-1])])


def _lengths(vectors: Float[Array | np.ndarray, "s dim"]) -> Float[Array | np.ndarray, " s"]:
    xp, vectors = namespace(vectors), _in_space(vectors)
    return xp.hypot(xp.hypot(vectors[:, 0], vectors[:, 1]), vectors[:, 2])
