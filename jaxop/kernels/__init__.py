"""Kernels of one pair, and their fast matrix forms."""

from jaxop.kernels.base import LOG_ZERO as LOG_ZERO
from jaxop.kernels.base import SIGNS as SIGNS
from jaxop.kernels.base import FunctionKernel as FunctionKernel
from jaxop.kernels.base import Kernel as Kernel
from jaxop.kernels.base import from_pair as from_pair
from jaxop.kernels.dot_product import DotProduct as DotProduct
from jaxop.kernels.dot_product import ExpDotProduct as ExpDotProduct
from jaxop.kernels.fourier import FourierIntegral as FourierIntegral
from jaxop.kernels.gaussian import Gaussian as Gaussian
from jaxop.kernels.rational import Bilinear as Bilinear
from jaxop.kernels.rational import InverseMultiquadric as InverseMultiquadric
