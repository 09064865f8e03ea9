"""Attention as quadrature: the integral operator and its implementations."""

from jaxop.attention.integral import IMPLEMENTATIONS as IMPLEMENTATIONS
from jaxop.attention.integral import integral_attention as integral_attention
from jaxop.attention.partial import Partial as Partial
from jaxop.attention.partial import accumulate as accumulate
from jaxop.attention.partial import combine as combine
from jaxop.attention.partial import finish as finish
