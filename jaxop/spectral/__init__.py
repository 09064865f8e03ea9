"""Fourier integral operators on grids of equal weights, and the truncated real transforms that they use."""

from jaxop.spectral.band import Band as Band
from jaxop.spectral.band import check_grid as check_grid
from jaxop.spectral.band import check_modes as check_modes
from jaxop.spectral.band import multiplier_shape as multiplier_shape
from jaxop.spectral.integral import IMPLEMENTATIONS as IMPLEMENTATIONS
from jaxop.spectral.integral import fourier_integral as fourier_integral
from jaxop.spectral.integral import initial_multipliers as initial_multipliers
from jaxop.spectral.integral import restrict as restrict
from jaxop.spectral.integral import spectral_dtype as spectral_dtype
from jaxop.spectral.shared import shared_analysis as shared_analysis
from jaxop.spectral.shared import shared_synthesis as shared_synthesis
from jaxop.spectral.transform import analysis as analysis
from jaxop.spectral.transform import isometric as isometric
from jaxop.spectral.transform import multiply as multiply
from jaxop.spectral.transform import synthesis as synthesis
