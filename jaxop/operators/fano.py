"""The Fourier attention neural operator."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop.nn import FourierPatchAttention, Linear, MomentumConfig, run_layers
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
class FourierAttentionNeuralOperatorConfig:
    """Sizes and choices of a `FourierAttentionNeuralOperator`; the defaults suit 64 × 64 grids on a CPU.

    Attributes:
        in_channels: channels of the input function.
        out_channels: channels of the output function.
        dim: space dimensions of the grid, 1 to 3.
        width: channels d inside.
        heads: h, a divisor of the width.
        layers: encoder layers.
        feedforward: hidden channels of the pointwise networks.
        patches: patches along each axis, the same on every grid; a divisor of its sides.
        modes: m, the modes kept along every axis of a patch.
        reference: nodes along each axis of the grid that the operator is made for: its patches must carry
            all modes, 2 m ≤ reference / patches. On a coarser grid the highest modes are dropped.
        smoothing_modes: modes of a final u + SpectralConv(u) on the whole grid; None: no smoothing.
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
    smoothing_modes: int | None = None
    norm: str = "post"
    momentum: MomentumConfig = MomentumConfig()
    dropout: float = 0.0
    activation: str = "gelu"
    dtype: str | None = None
    param_dtype: str = "float32"

    def __post_init__(self):
        check_config(self)
        check_patches(self.patches, self.reference, self.modes, self.dim)


class FourierAttentionNeuralOperator(GridOperator):
    """u ↦ head ∘ layers ∘ lift, lift = Linear([u(x), x]), attention between patches by Fourier integral operators.

    The grid is cut into equal patches; a token is the function on one of them. Queries, keys and values
    are Fourier integral operators inside the patch, scores are L2 inner products over it in the measure
    of the whole domain. Attention happens on the retained Fourier coefficients, so its cost hardly grows
    with the nodes of a patch. The same weights act on every grid with the same number of patches.

    Args:
        config: a `FourierAttentionNeuralOperatorConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: for sizes that do not fit.

    Cost: per sample and layer O(n (m d + d f) + M d² + P² M d / p) for n nodes in p patches, P = p tokens
    and M modes.

    Source: Calvello, Kovachki, Levine, Stuart, "Continuum Attention for Neural Operators",
        arXiv:2406.06486.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> config = operators.FourierAttentionNeuralOperatorConfig(
        ...     1, 2, width=8, heads=2, layers=1, patches=2, modes=2, reference=8
        ... )
        >>> operator = operators.FourierAttentionNeuralOperator(config, rngs=nnx.Rngs(0))
        >>> for side in (8, 16):  # the same weights
        ...     operator(jnp.ones((side**2, 1)), domains.box((side, side), rule="midpoint")).shape
        (64, 2)
        (256, 2)
    """

    def __init__(self, config: FourierAttentionNeuralOperatorConfig, *, rngs: nnx.Rngs):
        self.config = checked(config, FourierAttentionNeuralOperatorConfig, rngs)
        patch = check_patches(config.patches, config.reference, config.modes, config.dim)
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}

        def lift() -> Linear:
            return Linear(config.in_channels + config.dim, config.width, param_dtype=config.param_dtype, rngs=rngs)

        self.lift = lift()

        def attend() -> FourierPatchAttention:
            return FourierPatchAttention(config.width, config.heads, config.modes, reference=patch, rngs=rngs, **dtypes)

        self.layers = nnx.List(encoder_layer(config, attend, rngs) for _ in range(config.layers))
        self.head = Linear(config.width, config.out_channels, rngs=rngs, **dtypes)
        self.smoothing = smoothing(config, rngs)
        self.velocity = lift() if config.momentum.learns_velocity else None

    def transform(self, functions: GridFunctions) -> Float[Array, "b n c_out"]:
        """The output functions at the nodes."""
        config = self.config
        cut = cut_grid(functions.grid, config.patches)

        def lifted(lift: Linear) -> Float[Array, "s b p d"]:
            out = lift(jnp.moveaxis(split(functions.values, cut), 2, 0))
            return out.astype(self.head.result_dtype(functions.dtype))

        x = lifted(self.lift)
        velocity = None if self.velocity is None else lifted(self.velocity)
        x = jnp.moveaxis(run_layers(self.layers, x, cut.shape, functions.weight, velocity=velocity), 0, 2)
        u = join(self.head(x), cut)
        return smooth(self.smoothing, u, functions.grid)
