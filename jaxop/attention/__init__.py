"""Attention as quadrature: the integral operator and its implementations."""

from jaxop._moved import moved
from jaxop.attention.averages import averaging_operator as averaging_operator
from jaxop.attention.dense import accumulate as accumulate
from jaxop.attention.distributed import ring_attention as ring_attention
from jaxop.attention.gridding import grid_averages as grid_averages
from jaxop.attention.gridding import read_grid as read_grid
from jaxop.attention.integral import IMPLEMENTATIONS as IMPLEMENTATIONS
from jaxop.attention.integral import integral_attention as integral_attention
from jaxop.attention.latent import ENCODERS as ENCODERS
from jaxop.attention.latent import LEAST_RIDGE as LEAST_RIDGE
from jaxop.attention.latent import latent_attention as latent_attention
from jaxop.attention.latent import latent_averages as latent_averages
from jaxop.attention.latent import least_squares_attention as least_squares_attention
from jaxop.attention.linear import linear_attention as linear_attention
from jaxop.attention.local import local_averages as local_averages
from jaxop.attention.monoid import Partial as Partial
from jaxop.attention.monoid import combine as combine
from jaxop.attention.monoid import finish as finish
from jaxop.attention.patch import patch_attention as patch_attention
from jaxop.attention.patch import patch_weights as patch_weights
from jaxop.attention.patch import spectral_patch_attention as spectral_patch_attention

__getattr__ = moved(
    __name__,
    {
        "CGResult": "jaxop.schwarz.CGResult",
        "flexible_cg": "jaxop.schwarz.flexible_cg",
        "schwarz_preconditioner": "jaxop.schwarz.preconditioner",
        "SchwarzFactors": "jaxop.schwarz.Factors",
        "SymmetryReport": "jaxop.schwarz.SymmetryReport",
        "count_parameters": "jaxop.schwarz.count_parameters",
        "legendre_features": "jaxop.schwarz.legendre_features",
        "low_rank_apply": "jaxop.schwarz.low_rank_apply",
        "random_factors": "jaxop.schwarz.random_factors",
        "sample_factors": "jaxop.schwarz.sample_factors",
        "schwarz_apply": "jaxop.schwarz.apply",
        "schwarz_matrix": "jaxop.schwarz.matrix",
        "symmetry_report": "jaxop.schwarz.symmetry_report",
        "BLOCKS": "jaxop.schwarz.BLOCKS",
        "SchwarzFit": "jaxop.schwarz.Fit",
        "fit_schwarz": "jaxop.schwarz.fit",
        "galerkin_factors": "jaxop.schwarz.galerkin_factors",
        "low_rank_errors": "jaxop.schwarz.low_rank_errors",
        "operator_error": "jaxop.schwarz.operator_error",
        "optimal_low_rank": "jaxop.schwarz.optimal_low_rank",
        "coarse_averages": "jaxop.schwarz.coarse_averages",
        "subdomain_attention": "jaxop.schwarz.subdomain_attention",
    },
)
