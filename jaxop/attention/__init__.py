"""Attention as quadrature: the integral operator and its implementations."""

from jaxop.attention.averaging import averaging_operator as averaging_operator
from jaxop.attention.integral import IMPLEMENTATIONS as IMPLEMENTATIONS
from jaxop.attention.integral import integral_attention as integral_attention
from jaxop.attention.linear import linear_attention as linear_attention
from jaxop.attention.partial import Partial as Partial
from jaxop.attention.partial import accumulate as accumulate
from jaxop.attention.partial import combine as combine
from jaxop.attention.partial import finish as finish
from jaxop.attention.patch import patch_attention as patch_attention
from jaxop.attention.patch import patch_weights as patch_weights
from jaxop.attention.patch import spectral_patch_attention as spectral_patch_attention
