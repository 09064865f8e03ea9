"""The table of domains that every property is tested on."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxop import domains
from jaxop.domains import Domain

UNEVEN = np.array([-0.5, -0.4, 0.05, 0.1, 0.55, 1.1, 1.5])


def square_mesh(n: int, *, jitter: float = 0.0) -> domains.TriangleMesh:
    """The unit square in 2·n² triangles; ``jitter`` moves the inner vertices by that part of a cell."""
    x, y = np.meshgrid(np.linspace(0, 1, n + 1), np.linspace(0, 1, n + 1), indexing="ij")
    vertices = np.stack([x, y], axis=-1)
    move = np.random.default_rng(0).uniform(-jitter / n, jitter / n, vertices.shape)
    vertices[1:-1, 1:-1] += move[1:-1, 1:-1]
    corner = np.arange((n + 1) ** 2).reshape(n + 1, n + 1)
    a, b, c, d = (part.ravel() for part in (corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]))
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    return domains.triangle_mesh(jnp.asarray(vertices.reshape(-1, 2).tolist()), faces)


def roof() -> domains.TriangleMesh:
    """A surface in space: two squares that meet at a right angle, with a vertex no triangle uses."""
    vertices = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1], [5, 5, 5]]
    return domains.triangle_mesh(vertices, [[0, 1, 2], [0, 2, 3], [1, 4, 5], [1, 5, 2]])


def cube_mesh(n: int, *, jitter: float = 0.0) -> domains.TetrahedralMesh:
    """The unit cube in 6·n³ tetrahedra; ``jitter`` moves the inner vertices by that part of a cell."""
    line = np.linspace(0, 1, n + 1)
    vertices = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)
    move = np.random.default_rng(0).uniform(-jitter / n, jitter / n, vertices.shape)
    vertices[1:-1, 1:-1, 1:-1] += move[1:-1, 1:-1, 1:-1]
    number = np.arange((n + 1) ** 3).reshape(n + 1, n + 1, n + 1)
    cells = []
    for axes in itertools.permutations(range(3)):  # a path along three edges from one corner of a cube to the opposite
        corners = np.cumsum(np.concatenate([np.zeros((1, 3), int), np.eye(3, dtype=int)[list(axes)]]), axis=0)
        path = [number[i : i + n, j : j + n, k : k + n].ravel() for i, j, k in corners]
        odd = np.linalg.det(np.eye(3)[list(axes)]) < 0
        cells.append(np.stack(path[1::-1] + path[2:] if odd else path, axis=1))
    return domains.tetrahedral_mesh(jnp.asarray(vertices.reshape(-1, 3).tolist()), np.concatenate(cells))


def branches() -> domains.LineMesh:
    """Three edges in space that meet at one vertex, with a vertex no edge uses."""
    vertices = [[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 0, 2], [7, 7, 7]]
    return domains.line_mesh(vertices, [[0, 1], [1, 2], [1, 3]])


def scattered(n: int, dim: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(n), (n, dim))


@dataclasses.dataclass(frozen=True)
class Case:
    build: Callable[[], Domain]
    measure: float  # what the weights must sum to: of "interior" axes, the part n/(n + 1)


CASES = {
    "trapezoid": Case(lambda: domains.interval(7, lower=-0.5, upper=1.5), 2.0),
    "midpoint": Case(lambda: domains.interval(6, upper=3.0, rule="midpoint"), 3.0),
    "periodic": Case(lambda: domains.interval(8, upper=2 * np.pi, rule="periodic"), 2 * np.pi),
    "gauss-legendre": Case(lambda: domains.interval(5, lower=-2.0, rule="gauss-legendre"), 3.0),
    "interior": Case(lambda: domains.interval(7, upper=2.0, rule="interior"), 2.0 * 7 / 8),
    "two axes": Case(lambda: domains.box((3, 4), upper=(1, 2), rule=("trapezoid", "periodic")), 2.0),
    "three axes": Case(
        lambda: domains.box((2, 3, 4), lower=-1, upper=(1, 2, 3), rule=("midpoint", "gauss-legendre", "interior")),
        2.0 * 3.0 * 4.0 * 4 / 5,
    ),
    "uneven": Case(lambda: domains.from_samples(UNEVEN.tolist()), 2.0),
    "padded": Case(lambda: domains.pad(domains.from_samples(UNEVEN.tolist()), 10), 2.0),
    "subdomain": Case(
        lambda: domains.partition(domains.box((6, 4), upper=3, rule="midpoint"), (2, 2)).subdomain((1, 0)), 2.25
    ),
    "random": Case(lambda: domains.monte_carlo(scattered(9, 3), measure=4.0), 4.0),
    "nodes": Case(lambda: domains.from_nodes([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]], [0.5, 0.0, 1.5]), 2.0),
    "padded nodes": Case(lambda: domains.pad(domains.from_nodes([[0.0], [2.0]], [0.5, 1.0]), 4), 1.5),
    "mesh": Case(lambda: square_mesh(2, jitter=0.3), 1.0),
    "surface": Case(roof, 2.0),
    "volume": Case(lambda: cube_mesh(2, jitter=0.2), 1.0),
    "curve": Case(branches, 5.0),
    "sphere": Case(lambda: domains.sphere(4, 6, radius=0.5), np.pi),
}
MESHES = ["mesh", "surface", "volume", "curve"]
GRIDS = [name for name in CASES if "nodes" not in name and name not in ("random", "sphere", *MESHES)]
WITH_NEIGHBOURS = [*GRIDS, *MESHES, "sphere"]


def values_on(domain: Domain, channels: int = 2) -> jax.Array:
    """A smooth function with ``channels`` components on the nodes."""
    phase = jnp.sum(domain.points, axis=1, keepdims=True)
    return jnp.concatenate([jnp.sin((k + 1) * phase + 0.3) for k in range(channels)], axis=1)


def observed_orders(errors: list[float], sizes: list[int]) -> np.ndarray:
    """log(error ratio) / log(size ratio) between successive refinements."""
    return -np.diff(np.log(errors)) / np.diff(np.log(sizes))
