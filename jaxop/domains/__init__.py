"""Domains: nodes, quadrature weights, and the inner products of functions on them.

`decompose` is `jaxop.schwarz.decompose`, loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxop._moved import moved
from jaxop.domains.builders import box as box
from jaxop.domains.builders import from_nodes as from_nodes
from jaxop.domains.builders import from_samples as from_samples
from jaxop.domains.builders import interval as interval
from jaxop.domains.builders import monte_carlo as monte_carlo
from jaxop.domains.builders import pad as pad
from jaxop.domains.builders import stack as stack
from jaxop.domains.clouds import CLOUD_METHODS as CLOUD_METHODS
from jaxop.domains.clouds import from_points as from_points
from jaxop.domains.domain import SPACES as SPACES
from jaxop.domains.domain import Decomposed as Decomposed
from jaxop.domains.domain import Domain as Domain
from jaxop.domains.domain import PointCloud as PointCloud
from jaxop.domains.grid import Axis as Axis
from jaxop.domains.grid import Grid as Grid
from jaxop.domains.mesh import LineMesh as LineMesh
from jaxop.domains.mesh import Mesh as Mesh
from jaxop.domains.mesh import TetrahedralMesh as TetrahedralMesh
from jaxop.domains.mesh import TriangleMesh as TriangleMesh
from jaxop.domains.meshing import line_mesh as line_mesh
from jaxop.domains.meshing import merge_duplicates as merge_duplicates
from jaxop.domains.meshing import split_quadrilaterals as split_quadrilaterals
from jaxop.domains.meshing import split_solids as split_solids
from jaxop.domains.meshing import tetrahedral_mesh as tetrahedral_mesh
from jaxop.domains.meshing import triangle_mesh as triangle_mesh
from jaxop.domains.patches import Partition as Partition
from jaxop.domains.patches import partition as partition
from jaxop.domains.rules import EQUAL_WEIGHT_RULES as EQUAL_WEIGHT_RULES
from jaxop.domains.rules import RULES as RULES
from jaxop.domains.rules import Rule as Rule
from jaxop.domains.shared import GridShard as GridShard
from jaxop.domains.shared import Shard as Shard
from jaxop.domains.shared import shard as shard
from jaxop.domains.spheres import SPHERE_RULES as SPHERE_RULES
from jaxop.domains.spheres import Sphere as Sphere
from jaxop.domains.spheres import icosphere as icosphere
from jaxop.domains.spheres import latitude_longitude as latitude_longitude
from jaxop.domains.spheres import sphere as sphere

if TYPE_CHECKING:
    from jaxop.schwarz import decompose as decompose

_moved = moved(
    __name__,
    {
        name: f"jaxop.schwarz.{name}"
        for name in (
            "COARSE_SPACES",
            "PARTITIONS_OF_UNITY",
            "CoarseSpace",
            "Cover",
            "Decomposition",
            "from_subdomains",
        )
    },
)


def __getattr__(name: str) -> Any:
    if name == "decompose":
        return importlib.import_module("jaxop.schwarz").decompose
    return _moved(name)
