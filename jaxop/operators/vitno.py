"""Vision transformer neural operator: attention between functions on patches."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop.nn import ExpDotProductConfig, KernelConfig, Linear, PatchAttention, SpectralConvolution, run_layers
from jaxop.nn.kernel_configs import LINEAR, check_kernel_config
from jaxop.operators.grid import GridFunctions, GridOperator, PatchConfig, cut_grid, join, smooth, split
from jaxop.operators.registry import register


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTNeuralOperatorConfig(PatchConfig):
    """Sizes and choices of a `ViTNeuralOperator`; the defaults suit 64 × 64 grids on a CPU.

    The attributes are those of `PatchConfig` (``in_channels, out_channels, dim``, then keywords), and these:

    Attributes:
        modes: m, the modes that the lift keeps along every axis of a patch.
        kernel: the settings of a kernel between functions on patches. None means the published exp ∫_patch Q·K dx.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if sizes do not fit each other, a name is unknown or a rate is outside [0, 1); the message
            has valid values.
    """

    FROM_GRID: ClassVar[tuple[str, ...]] = (*PatchConfig.FROM_GRID, "smoothing_modes")

    kernel: KernelConfig | None = None
    smoothing_modes: int | None = 16

    def __post_init__(self):
        super().__post_init__()
        if self.kernel is not None:
            check_kernel_config(self.kernel)
            if isinstance(self.kernel, LINEAR):
                raise ValueError(
                    "kernel must be one that attention between functions can normalise, but "
                    f"{type(self.kernel).__name__} is signed."
                )
        self.check_kernel(self.kernel or ExpDotProductConfig())


@register("vitno", ViTNeuralOperatorConfig)
class ViTNeuralOperator(GridOperator[ViTNeuralOperatorConfig]):
    """u ↦ S ∘ head ∘ layers ∘ lift: tokens are functions on patches, S = 1 + a spectral convolution.

    The grid is cut into equal patches. The lift is a spectral convolution of [u(x), x] inside each patch. Queries,
    keys and values are affine in the channels at every x. Scores are L2 inner products over the patch in the measure
    of the whole domain. The last convolution acts on the whole grid and smooths the seams between patches. The same
    parameters act on every grid with the same number of patches.

    Args:
        config: a `ViTNeuralOperatorConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

    Cost: O(n (d² + d f + P d)) per sample and layer, for n nodes in P patches.

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
        self.config = ViTNeuralOperatorConfig.checked(config, rngs)

        def lift() -> SpectralConvolution:
            sizes = config.in_channels + config.coordinate_channels, config.width, config.modes
            return SpectralConvolution(*sizes, reference=config.modes_shape, param_dtype=config.param_dtype, rngs=rngs)

        self.lift = lift()
        kernel = None
        if config.kernel is not None:
            kernel = config.kernel.make(config.heads, config.width // config.heads, rngs=rngs)

        def attention() -> PatchAttention:
            return PatchAttention(config.width, config.heads, kernel=kernel, rngs=rngs, **config.dtypes)

        self.layers = nnx.List(config.layer(attention(), rngs=rngs) for _ in range(config.layers))
        self.head = Linear(config.width, config.out_channels, rngs=rngs, **config.dtypes)
        self.smoothing = config.smoothing(rngs)
        self.velocity = lift() if config.momentum.learns_velocity else None

    def transform(self, functions: GridFunctions) -> Float[Array, "b n c_out"]:
        """Returns the output functions at the nodes."""
        config = self.config
        cut = cut_grid(functions.grid, config.patches)

        def lifted(lift: SpectralConvolution) -> Float[Array, "b p s d"]:
            out = lift(jnp.moveaxis(split(functions.values, cut), 2, 0), cut.shape)
            return jnp.moveaxis(out, 0, 2).astype(self.head.result_dtype(functions.dtype))

        x = lifted(self.lift)
        velocity = None if self.velocity is None else lifted(self.velocity)
        weights = jnp.broadcast_to(functions.weight[..., None], (*functions.weight.shape, x.shape[2]))
        x = run_layers(self.layers, x, weights, velocity=velocity, **functions.shared)
        u = join(self.head(x), cut)
        return smooth(self.smoothing, u, functions.grid)
