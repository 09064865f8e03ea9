"""Thin NNX modules: parameters, and calls of the functions of `jaxop.attention` and `jaxop.spectral`."""

from jaxop._moved import moved
from jaxop.nn.activations import ACTIVATIONS as ACTIVATIONS
from jaxop.nn.activations import gelu as gelu
from jaxop.nn.activations import gelu_tanh as gelu_tanh
from jaxop.nn.attention import IntegralAttention as IntegralAttention
from jaxop.nn.attention import IntegralAttentionConfig as IntegralAttentionConfig
from jaxop.nn.encoder import NORMS as NORMS
from jaxop.nn.encoder import BuildableConfig as BuildableConfig
from jaxop.nn.encoder import EncoderConfig as EncoderConfig
from jaxop.nn.encoder import EncoderLayer as EncoderLayer
from jaxop.nn.encoder import LayersConfig as LayersConfig
from jaxop.nn.encoder import ModelConfig as ModelConfig
from jaxop.nn.flow import FlowLayer as FlowLayer
from jaxop.nn.kernel_configs import KERNELS as KERNELS
from jaxop.nn.kernel_configs import PER as PER
from jaxop.nn.kernel_configs import EuclideanDistanceConfig as EuclideanDistanceConfig
from jaxop.nn.kernel_configs import ExpDotProductConfig as ExpDotProductConfig
from jaxop.nn.kernel_configs import FourierIntegralConfig as FourierIntegralConfig
from jaxop.nn.kernel_configs import GaussianConfig as GaussianConfig
from jaxop.nn.kernel_configs import IntersectionConfig as IntersectionConfig
from jaxop.nn.kernel_configs import KernelConfig as KernelConfig
from jaxop.nn.kernel_configs import KernelParameters as KernelParameters
from jaxop.nn.kernel_configs import LearnedFeaturesConfig as LearnedFeaturesConfig
from jaxop.nn.kernel_configs import LinearConfig as LinearConfig
from jaxop.nn.kernel_configs import QuadraticConfig as QuadraticConfig
from jaxop.nn.kernel_configs import TruncatedExponentialConfig as TruncatedExponentialConfig
from jaxop.nn.latent import DECODERS as DECODERS
from jaxop.nn.latent import MIXES as MIXES
from jaxop.nn.latent import TEMPERATURES as TEMPERATURES
from jaxop.nn.latent import LatentAttention as LatentAttention
from jaxop.nn.latent import LatentAttentionConfig as LatentAttentionConfig
from jaxop.nn.layers import run_layers as run_layers
from jaxop.nn.local import LocalAverage as LocalAverage
from jaxop.nn.local import LocalAverageConfig as LocalAverageConfig
from jaxop.nn.local import LocalConfig as LocalConfig
from jaxop.nn.local import LocalThenGlobal as LocalThenGlobal
from jaxop.nn.local import SpectralIntegral as SpectralIntegral
from jaxop.nn.local import SpectralIntegralConfig as SpectralIntegralConfig
from jaxop.nn.momentum import BLOCKS as BLOCKS
from jaxop.nn.momentum import VELOCITIES as VELOCITIES
from jaxop.nn.momentum import MomentumConfig as MomentumConfig
from jaxop.nn.momentum import MomentumLayer as MomentumLayer
from jaxop.nn.patch import FourierPatchAttention as FourierPatchAttention
from jaxop.nn.patch import PatchAttention as PatchAttention
from jaxop.nn.pointwise import FeedForward as FeedForward
from jaxop.nn.pointwise import LayerNorm as LayerNorm
from jaxop.nn.pointwise import Linear as Linear
from jaxop.nn.pointwise import affine as affine
from jaxop.nn.pointwise import in_blocks as in_blocks
from jaxop.nn.pointwise import layer_norm as layer_norm
from jaxop.nn.schwarz import SchwarzAttention as SchwarzAttention
from jaxop.nn.schwarz import SchwarzAttentionConfig as SchwarzAttentionConfig
from jaxop.nn.spectral import SpectralConvolution as SpectralConvolution

__getattr__ = moved(
    __name__,
    {
        "Fidelity": "jaxop.distillation.Fidelity",
        "fidelity": "jaxop.distillation.fidelity",
        "head_kernel": "jaxop.distillation.head_kernel",
        "head_logits": "jaxop.distillation.head_logits",
        "machine_of_head": "jaxop.distillation.machine_of_head",
        "start_from_machine": "jaxop.distillation.start_from_machine",
    },
)
