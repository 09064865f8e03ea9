"""Thin NNX modules: parameters, and calls of the pure functions of `jaxop.attention` and `jaxop.spectral`."""

from jaxop.nn.activations import ACTIVATIONS as ACTIVATIONS
from jaxop.nn.activations import gelu as gelu
from jaxop.nn.activations import gelu_tanh as gelu_tanh
from jaxop.nn.attention import IntegralAttention as IntegralAttention
from jaxop.nn.attention import IntegralAttentionConfig as IntegralAttentionConfig
from jaxop.nn.encoder import NORMS as NORMS
from jaxop.nn.encoder import EncoderLayer as EncoderLayer
from jaxop.nn.kernels import KERNELS as KERNELS
from jaxop.nn.kernels import PER as PER
from jaxop.nn.kernels import ExpDotProductConfig as ExpDotProductConfig
from jaxop.nn.kernels import FourierIntegralConfig as FourierIntegralConfig
from jaxop.nn.kernels import GaussianConfig as GaussianConfig
from jaxop.nn.kernels import KernelConfig as KernelConfig
from jaxop.nn.kernels import KernelParameters as KernelParameters
from jaxop.nn.patch import FourierPatchAttention as FourierPatchAttention
from jaxop.nn.patch import PatchAttention as PatchAttention
from jaxop.nn.pointwise import FeedForward as FeedForward
from jaxop.nn.pointwise import LayerNorm as LayerNorm
from jaxop.nn.pointwise import Linear as Linear
from jaxop.nn.pointwise import affine as affine
from jaxop.nn.pointwise import in_blocks as in_blocks
from jaxop.nn.pointwise import layer_norm as layer_norm
from jaxop.nn.spectral import SpectralConvolution as SpectralConvolution
