"""The vision transformer neural operator: attention between functions on patches."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop.nn import KernelConfig, Linear, MomentumConfig, PatchAttention, SpectralConvolution, run_layers
from jaxop.nn.kernel_configs import LINEAR, check_kernel_config
from jaxop.operators._common import (
    GridFunctions,
    GridOperator,
    check_config,
    check_patches,
    checked,
    cut_grid,
    encoder_layer,
    join,
    smooth,
    smoothing,
    split,
)


@dataclasses.dataclass(frozen=True)
class ViTNeuralOperatorConfig:
    """Sizes and choices of a `ViTNeuralOperator`; the defaults suit 64 × 64 grids on a CPU.

    Attributes:
        in_channels: channels of the input function.
        out_channels: channels of the output function.
        dim: space dimensions of the grid, 1 to 3.
        width: channels d inside.
        heads: h, a divisor of the width.
        layers: encoder layers.
        feedforward: hidden channels of the pointwise networks.
        patches: patches along each axis, the same on every grid; a divisor of its sides.
        modes: m, the modes that the lift keeps along every axis of a patch.
        reference: nodes along each axis of the grid that the operator is made for: its patches must carry
            all modes, 2 m ≤ reference / patches. On a coarser grid the highest modes are dropped.
        kernel: the settings of a kernel between functions on patches; None:
            exp ∫_patch Q·K dx, the published one.
        smoothing_modes: modes of the final u + SpectralConv(u) on the whole grid; None: no smoothing.
        norm: ``"post"`` or ``"pre"``.
        momentum: whether tokens carry a velocity; its blocks need ``norm="pre"``.
        dropout: rate in training mode.
        activation: ``"gelu"`` (exact) or ``"gelu_tanh"``.
        dtype: dtype of the pointwise maps; None: that of inputs and parameters. Spectral parts and scores
            run in float32 at least.
        param_dtype: dtype of the parameters.

    Raises:
        TypeError: for a size that is not an integer.
        ValueError: for sizes that do not fit each other, unknown names and rates outside [0, 1); the message
            names valid ones.
    """

    in_channels: int
    out_channels: int
    dim: int = 2
    width: int = 32
    heads: int = 8
    layers: int = 6
    feedforward: int = 128
    patches: int = 4
    modes: int = 8
    reference: int = 64
    kernel: KernelConfig | None = None
    smoothing_modes: int | None = 16
    norm: str = "post"
    momentum: MomentumConfig = MomentumConfig()
    dropout: float = 0.0
    activation: str = "gelu"
    dtype: str | None = None
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.kernel is not None:
            check_kernel_config(self.kernel)
            if isinstance(self.kernel, LINEAR):
                raise ValueError(
                    "kernel must be one that attention between functions can normalise; "
                    f"{type(self.kernel).__name__} is signed."
                )
        check_config(self)
        check_patches(self.patches, self.reference, self.modes, self.dim)


class ViTNeuralOperator(GridOperator):
    """u ↦ S ∘ head ∘ layers ∘ lift: tokens are functions on patches, S = 1 + a spectral convolution.

    The grid is cut into equal patches. The lift is a spectral convolution of [u(x), x] inside each patch;
    queries, keys and values are affine in the channels at every x, scores are L2 inner products over the
    patch in the measure of the whole domain; the last convolution, on the whole grid, smooths the seams.
    The same weights act on every grid with the same number of patches.

    Args:
        config: a `ViTNeuralOperatorConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: for sizes that do not fit.

    Cost: per sample and layer O(n (d² + d f + P d)) for n nodes in P patches.

    Source: Calvello, Kovachki, Levine, Stuart, "Continuum Attention for Neural Operators",
        arXiv:2406.06486.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> config = operators.ViTNeuralOperatorConfig(
        ...     1, 2, width=8, heads=2, layers=1, patches=2, modes=2, reference=8, smoothing_modes=4
        ... )
        >>> operator = operators.ViTNeuralOperator(config, rngs=nnx.Rngs(0))
        >>> for side in (8, 16):  # the same weights
        ...     operator(jnp.ones((side**2, 1)), domains.box((side, side), rule="midpoint")).shape
        (64, 2)
        (256, 2)
    """

    def __init__(self, config: ViTNeuralOperatorConfig, *, rngs: nnx.Rngs):
        self.config = checked(config, ViTNeuralOperatorConfig, rngs)
        patch = check_patches(config.patches, config.reference, config.modes, config.dim)
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}

        def lift() -> SpectralConvolution:
            sizes = config.in_channels + config.dim, config.width, config.modes
            return SpectralConvolution(*sizes, reference=patch, param_dtype=config.param_dtype, rngs=rngs)

        self.lift = lift()
        kernel = None
        if config.kernel is not None:
            kernel = config.kernel.make(config.heads, config.width // config.heads, rngs=rngs)

        def attend() -> PatchAttention:
            return PatchAttention(config.width, config.heads, kernel=kernel, rngs=rngs, **dtypes)

        self.layers = nnx.List(encoder_layer(config, attend, rngs) for _ in range(config.layers))
        self.head = Linear(config.width, config.out_channels, rngs=rngs, **dtypes)
        self.smoothing = smoothing(config, rngs)
        self.velocity = lift() if config.momentum.learns_velocity else None

    def transform(self, functions: GridFunctions) -> Float[Array, "b n c_out"]:
        """The output functions at the nodes."""
        config = self.config
        cut = cut_grid(functions.grid, config.patches)

        def lifted(lift: SpectralConvolution) -> Float[Array, "b p s d"]:
            out = lift(jnp.moveaxis(split(functions.values, cut), 2, 0), cut.shape)
            return jnp.moveaxis(out, 0, 2).astype(self.head.result_dtype(functions.dtype))

        x = lifted(self.lift)
        velocity = None if self.velocity is None else lifted(self.velocity)
        weights = jnp.broadcast_to(functions.weight[..., None], (*functions.weight.shape, x.shape[2]))
        x = run_layers(self.layers, x, weights, velocity=velocity)
        u = join(self.head(x), cut)
        return smooth(self.smoothing, u, functions.grid)
