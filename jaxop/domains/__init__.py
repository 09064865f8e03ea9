"""Discretised domains: nodes, quadrature weights and the function-space geometry that goes with them."""

from jaxop.domains.builders import box as box
from jaxop.domains.builders import from_nodes as from_nodes
from jaxop.domains.builders import from_samples as from_samples
from jaxop.domains.builders import interval as interval
from jaxop.domains.builders import monte_carlo as monte_carlo
from jaxop.domains.builders import pad as pad
from jaxop.domains.builders import stack as stack
from jaxop.domains.builders import triangle_mesh as triangle_mesh
from jaxop.domains.decomposition import COARSE_SPACES as COARSE_SPACES
from jaxop.domains.decomposition import PARTITIONS_OF_UNITY as PARTITIONS_OF_UNITY
from jaxop.domains.decomposition import CoarseSpace as CoarseSpace
from jaxop.domains.decomposition import Cover as Cover
from jaxop.domains.decomposition import Decomposition as Decomposition
from jaxop.domains.decomposition import decompose as decompose
from jaxop.domains.decomposition import from_subdomains as from_subdomains
from jaxop.domains.domain import SPACES as SPACES
from jaxop.domains.domain import Axis as Axis
from jaxop.domains.domain import Domain as Domain
from jaxop.domains.domain import Grid as Grid
from jaxop.domains.domain import PointCloud as PointCloud
from jaxop.domains.domain import TriangleMesh as TriangleMesh
from jaxop.domains.patches import Partition as Partition
from jaxop.domains.patches import partition as partition
from jaxop.domains.rules import EQUAL_WEIGHT_RULES as EQUAL_WEIGHT_RULES
from jaxop.domains.rules import RULES as RULES
