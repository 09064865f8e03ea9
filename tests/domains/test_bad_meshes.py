"""Bad meshes, spheres and clouds: every message names the first fault and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains

SQUARE = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
CORNERS = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
TWO = [[0, 1, 2, 3], [4, 2, 1, 3]]
TILTED = (
    np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.7, 0.6]]) @ [[0.3, 0.8, 0.4], [0.9, -0.1, 0.2]] + 50
)  # a plane
RANDOM = np.random.default_rng(0).random((20, 2), np.float32)
ROWS = {
    # tetrahedral_mesh
    "cell beyond the points": (
        lambda: domains.tetrahedral_mesh(CORNERS, [[0, 1, 2, 3], [4, 2, 1, 5]]),
        r"cells\[1, 3\] = 5 is not a vertex: indices run from 0 to 4",
    ),
    "flat cell": (
        lambda: domains.tetrahedral_mesh([*CORNERS, [0.5, 0.5, 0.0]], [*TWO, [0, 1, 2, 5]]),
        r"cells\[2\] = \[0, 1, 2, 5\] has volume zero up to rounding; leave it out, or .*merge_duplicates",
    ),
    "cell that rounding alone makes a volume": (
        lambda: domains.tetrahedral_mesh(TILTED, [[0, 1, 2, 3]]),
        r"cells\[0\] = \[0, 1, 2, 3\] has volume zero up to rounding",
    ),
    "inverted cell": (
        lambda: domains.tetrahedral_mesh([*CORNERS, [-1.0, 0.0, 0.0]], [*TWO, [0, 5, 2, 3]]),
        r"cells\[2\] = \[0, 5, 2, 3\] is inverted.*exchange two corners of each of the 1 inverted cells",
    ),
    "repeated node": (
        lambda: domains.tetrahedral_mesh([*CORNERS, CORNERS[2]], [[0, 1, 2, 3], [4, 5, 1, 3]]),
        r"points\[5\] = \[0\.0, 1\.0, 0\.0\] repeats points\[2\]; join them by merge_duplicates",
    ),
    "no cells": (
        lambda: domains.tetrahedral_mesh(CORNERS, np.zeros((0, 4), int)),
        r"cells must hold at least one simplex, got shape \(0, 4\)",
    ),
    "triangles as cells": (
        lambda: domains.tetrahedral_mesh(CORNERS, [[0, 1, 2]]),
        r"cells must be integers of shape \(c, 4\), got int32 of shape \(1, 3\)",
    ),
    "cells of floats": (
        lambda: domains.tetrahedral_mesh(CORNERS, np.array(TWO, np.float32)),
        r"cells must be integers of shape \(c, 4\), got float32",
    ),
    "cells in the plane": (
        lambda: domains.tetrahedral_mesh(SQUARE, [[0, 1, 2, 3]]),
        r"points must have shape \(n, 3\), got \(4, 2\)",
    ),
    "NaN node": (
        lambda: domains.tetrahedral_mesh([[np.nan, 0.0, 0.0], *CORNERS], TWO),
        r"points must be finite, but points\[0, 0\] = nan",
    ),
    # line_mesh
    "edge of length zero": (
        lambda: domains.line_mesh([*SQUARE, SQUARE[0]], [[0, 1], [4, 0]]),
        r"edges\[1\] = \[4, 0\] has length zero up to rounding; leave it out",
    ),
    "edge beyond the points": (
        lambda: domains.line_mesh(SQUARE, [[0, 1], [4, 0]]),
        r"edges\[1, 0\] = 4 is not a vertex",
    ),
    "triangles as edges": (
        lambda: domains.line_mesh(SQUARE, [[0, 1, 2]]),
        r"edges must be integers of shape \(e, 2\), got int32 of shape \(1, 3\)",
    ),
    "curve in four dimensions": (
        lambda: domains.line_mesh(np.ones((2, 4), np.float32), [[0, 1]]),
        r"points must have shape \(n, 1\) or \(n, 2\) or \(n, 3\), got \(2, 4\)",
    ),
    # triangle_mesh, quadrilaterals, duplicates
    "quadrilaterals as faces": (
        lambda: domains.triangle_mesh(SQUARE, [[0, 1, 2, 3]]),
        r"got int32 of shape \(1, 4\); split_quadrilaterals makes faces",
    ),
    "triangles as quadrilaterals": (
        lambda: domains.split_quadrilaterals([[0, 1, 2]]),
        r"quadrilaterals must be integers of shape \(q, 4\), got int64 of shape \(1, 3\)",
    ),
    "tetrahedra as solids": (
        lambda: domains.split_solids([[0, 1, 2, 3]]),
        r"solids must be integers of shape \(k, 8\) for hexahedra, .* got int64 of shape \(1, 4\)",
    ),
    "merged beyond the points": (
        lambda: domains.merge_duplicates(SQUARE, [[0, 1, 4]]),
        r"simplices\[0, 2\] = 4 is not a vertex",
    ),
    "negative tolerance": (
        lambda: domains.merge_duplicates(SQUARE, [[0, 1, 2]], tolerance=-1.0),
        r"tolerance must be a length of at least 0, got -1",
    ),
    "merged by float indices": (
        lambda: domains.merge_duplicates(SQUARE, [[0.0, 1.0]]),
        r"simplices must be integers of shape \(s, k\), got float64",
    ),
    "merged flat points": (
        lambda: domains.merge_duplicates([0.0, 1.0], [[0, 1]]),
        r"points must have shape \(n, dim\)",
    ),
    # pad and stack
    "cells of a surface": (
        lambda: domains.pad(domains.icosphere(0), 20, cells=30),
        r"cells=30 was given for a TriangleMesh; give faces",
    ),
    "padded to fewer cells": (
        lambda: domains.pad(domains.tetrahedral_mesh(CORNERS, TWO), 9, cells=1),
        r"cells must be at least the 2 cells of the mesh, got 1",
    ),
    "stack of volumes": (
        lambda: domains.stack([domains.tetrahedral_mesh(CORNERS, TWO), domains.tetrahedral_mesh(CORNERS, TWO[:1])]),
        r"TetrahedralMesh of 5 nodes and 1 cells.*bring each to one size by pad\(domain, 5, cells=2\)",
    ),
    "padded sphere": (lambda: domains.pad(domains.sphere(4), 40), r"pad takes .* or a mesh, got Sphere of 32 nodes"),
    # sphere and icosphere
    "unknown rule of latitudes": (
        lambda: domains.sphere(8, rule="gauss"),
        r"rule='gauss' is unknown: did you mean 'gauss-l",
    ),
    "no latitudes": (lambda: domains.sphere(0), r"n_latitude must be at least 1 for rule='gauss-legendre', got 0"),
    "one pole": (lambda: domains.sphere(1, rule="trapezoid"), r"n_latitude must be at least 2 for rule='trapezoid'"),
    "no longitudes": (lambda: domains.sphere(4, 0), r"n_longitude must be at least 1, got 0"),
    "no radius": (lambda: domains.sphere(4, radius=0.0), r"radius must be positive and finite, got 0"),
    "negative refinements": (lambda: domains.icosphere(-1), r"refinements must be at least 0, got -1"),
    "gradient of one latitude": (
        lambda: domains.sphere(1).norm(jnp.ones((2, 1)), space="H1"),
        r"H1 inner product needs at least 2 latitudes, got 1",
    ),
    "latitudes in another unit": (
        lambda: domains.latitude_longitude([0.0, 80.0, 91.0], [0.0, 90.0]),
        r"latitudes must lie between -90 and 90, but latitudes\[2\] = 91\.0",
    ),
    "longitudes that jump": (
        lambda: domains.latitude_longitude([0.0, 10.0], [170.0, 175.0, -180.0, -175.0]),
        r"longitudes\[2\] = -180\.0 does not go on from longitudes\[1\] = 175\.0; sort them .*add 360 after a jump",
    ),
    "longitudes that close the circle": (
        lambda: domains.latitude_longitude([0.0, 10.0], np.linspace(0, 360, 9)),
        r"longitudes\[8\] = 360\.0 repeats longitudes\[0\] = 0\.0 after a full circle; leave out the last column",
    ),
    "longitudes beyond the circle": (
        lambda: domains.latitude_longitude([0.0, 10.0], np.linspace(0, 400, 9)),
        r"longitudes must cover at most 360 degrees, but run from 0\.0 to 400\.0",
    ),
    "one latitude": (
        lambda: domains.latitude_longitude([0.0], [0.0, 1.0]),
        r"latitudes must have shape \(n,\).*got \(1,",
    ),
    "NaN latitude": (
        lambda: domains.latitude_longitude([0.0, np.nan], [0.0, 1.0]),
        r"latitudes must be finite, but latitudes\[1\] = nan",
    ),
    # from_points
    "unknown method": (lambda: domains.from_points(RANDOM, method="voronoi"), r"method='voronoi' is unknown"),
    "repeated points": (
        lambda: domains.from_points(np.concatenate([RANDOM, RANDOM[7:9]])),
        r"points\[20\] = \[.*\] repeats points\[7\]; keep one of them",
    ),
    "points on a line": (
        lambda: domains.from_points([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]),
        r"points must not all lie on a line.*line_mesh",
    ),
    "points on a line up to rounding": (
        lambda: domains.from_points(np.linspace(0, 1, 9, dtype=np.float32)[:, None] * np.array([1, 0.3], np.float32)),
        r"points must not all lie on a line.*line_mesh",
    ),
    "points in a plane": (
        lambda: domains.from_points([[*p, 0.0] for p in RANDOM.tolist()]),
        r"points must not all lie on a plane.*triangle_mesh.*method='neighbours'",
    ),
    "density of points in a plane": (
        lambda: domains.from_points([[*p, 0.0] for p in RANDOM.tolist()], method="density"),
        r"points must not all lie on a line or a plane; use method='neighbours'",
    ),
    "axes of unlike units": (
        lambda: domains.from_points(RANDOM * np.array([1000.0, 0.01], np.float32)),
        r"points are so unlike in their coordinates that \d+% of their hull .*bring the axes to units",
    ),
    "too few points": (lambda: domains.from_points(SQUARE[:2]), r"needs at least 3 points in 2 dimensions, got 2"),
    "too few neighbours": (
        lambda: domains.from_points(SQUARE, method="neighbours"),
        r"method='neighbours' needs more than 8 points, got 4",
    ),
    "too few for a density": (
        lambda: domains.from_points(SQUARE[:2], method="density"),
        r"method='density' needs at least 3 points in 2 dimensions, got 2",
    ),
    "cells in four dimensions": (
        lambda: domains.from_points(np.random.default_rng(0).random((20, 4), np.float32)),
        r"method='delaunay' takes points of 1, 2 or 3 dimensions, got 4; use method='neighbours'",
    ),
    "flat points": (lambda: domains.from_points(RANDOM[:, 0]), r"points must have shape \(n, dim\)"),
    "NaN point": (lambda: domains.from_points([*SQUARE, [np.nan, 0.0]]), r"points must be finite, but points\[4, 0\]"),
    "inside of one value": (
        lambda: domains.from_points(SQUARE, inside=lambda x: True),
        r"inside must return one truth value for each of the 2 centroids.*got bool of shape \(\)",
    ),
    "inside of numbers": (
        lambda: domains.from_points(SQUARE, inside=lambda x: x[:, 0]),
        r"inside must return one truth value .*got float32 of shape \(2,\)",
    ),
    "nothing inside": (
        lambda: domains.from_points(SQUARE, inside=lambda x: x[:, 0] > 2),
        r"inside leaves no cell",
    ),
    "inside of a density": (
        lambda: domains.from_points(RANDOM, method="density", inside=lambda x: x[:, 0] > 0),
        r"inside is not used by method='density'",
    ),
    "measure of cells": (
        lambda: domains.from_points(RANDOM, measure=1.0),
        r"measure=1\.0 is not used by method='delaunay'",
    ),
    "measure of nothing": (
        lambda: domains.from_points(RANDOM, method="neighbours", measure=0.0),
        r"measure must be positive and finite, got 0",
    ),
    "traced points": (
        lambda: jax.jit(lambda points: domains.from_points(points).measure)(RANDOM),
        r"points must be concrete.*outside jit",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*is float64")
@pytest.mark.parametrize("row", ROWS)
def test_the_message_names_the_first_fault_and_the_remedy(row):
    call, message = ROWS[row]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()
