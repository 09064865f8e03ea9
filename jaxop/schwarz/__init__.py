"""Two-level Schwarz attention: overlapping subdomains, operators on them, their fits, and preconditioning."""

from jaxop._moved import moved
from jaxop.schwarz.bounds import low_rank_errors as low_rank_errors
from jaxop.schwarz.bounds import operator_error as operator_error
from jaxop.schwarz.bounds import optimal_low_rank as optimal_low_rank
from jaxop.schwarz.decomposition import COARSE_SPACES as COARSE_SPACES
from jaxop.schwarz.decomposition import PARTITIONS_OF_UNITY as PARTITIONS_OF_UNITY
from jaxop.schwarz.decomposition import Decomposition as Decomposition
from jaxop.schwarz.decomposition import decompose as decompose
from jaxop.schwarz.decomposition import from_subdomains as from_subdomains
from jaxop.schwarz.fitting import Fit as Fit
from jaxop.schwarz.fitting import fit as fit
from jaxop.schwarz.galerkin import BLOCKS as BLOCKS
from jaxop.schwarz.galerkin import galerkin_factors as galerkin_factors
from jaxop.schwarz.krylov import CGResult as CGResult
from jaxop.schwarz.krylov import flexible_cg as flexible_cg
from jaxop.schwarz.krylov import preconditioner as preconditioner
from jaxop.schwarz.local_attention import coarse_averages as coarse_averages
from jaxop.schwarz.local_attention import subdomain_attention as subdomain_attention
from jaxop.schwarz.operator import Factors as Factors
from jaxop.schwarz.operator import SymmetryReport as SymmetryReport
from jaxop.schwarz.operator import apply as apply
from jaxop.schwarz.operator import count_parameters as count_parameters
from jaxop.schwarz.operator import legendre_features as legendre_features
from jaxop.schwarz.operator import low_rank_apply as low_rank_apply
from jaxop.schwarz.operator import matrix as matrix
from jaxop.schwarz.operator import random_factors as random_factors
from jaxop.schwarz.operator import sample_factors as sample_factors
from jaxop.schwarz.operator import symmetry_report as symmetry_report
from jaxop.schwarz.tables import CoarseSpace as CoarseSpace
from jaxop.schwarz.tables import Cover as Cover

__getattr__ = moved(
    __name__,
    {
        "SchwarzFactors": "jaxop.schwarz.Factors",
        "SchwarzFit": "jaxop.schwarz.Fit",
        "fit_schwarz": "jaxop.schwarz.fit",
        "schwarz_apply": "jaxop.schwarz.apply",
        "schwarz_matrix": "jaxop.schwarz.matrix",
        "schwarz_preconditioner": "jaxop.schwarz.preconditioner",
    },
)
