"""The Fourier attention neural operator."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop.nn import FourierPatchAttention, Linear, run_layers
from jaxop.operators.grid import GridFunctions, GridOperator, PatchConfig, cut_grid, join, smooth, split
from jaxop.operators.registry import register


@dataclasses.dataclass(frozen=True, kw_only=True)
class FourierAttentionNeuralOperatorConfig(PatchConfig):
    """Sizes and choices of a `FourierAttentionNeuralOperator`; the defaults suit 64 × 64 grids on a CPU.

    The attributes are those of `PatchConfig`: ``in_channels, out_channels, dim``, then keywords.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if sizes do not fit each other, a name is unknown or a rate is outside [0, 1); the message
            has valid values.
    """


@register("fano", FourierAttentionNeuralOperatorConfig)
class FourierAttentionNeuralOperator(GridOperator[FourierAttentionNeuralOperatorConfig]):
    """u ↦ head ∘ layers ∘ lift, lift = Linear([u(x), x]), attention between patches by Fourier integral operators.

    The grid is cut into equal patches, and the function on a patch is a token. Queries, keys and values are Fourier
    integral operators inside the patch. Scores are L2 inner products over the patch in the measure of the whole
    domain. Attention acts on the retained Fourier coefficients, so that its cost does not depend on the nodes of a
    patch. The same parameters act on every grid with the same number of patches.

    Args:
        config: a `FourierAttentionNeuralOperatorConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

    Cost: O(n (m d + d f) + M d² + P M d) per sample and layer, for n nodes in P patches, m modes along an axis, and M
        modes in all patches together.

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
        self.config = FourierAttentionNeuralOperatorConfig.checked(config, rngs)

        def lift() -> Linear:
            sizes = config.in_channels + config.coordinate_channels, config.width
            return Linear(*sizes, param_dtype=config.param_dtype, rngs=rngs)

        def attention() -> FourierPatchAttention:
            sizes = config.width, config.heads, config.modes
            return FourierPatchAttention(*sizes, reference=config.modes_shape, rngs=rngs, **config.dtypes)

        self.lift = lift()
        self.layers = nnx.List(config.layer(attention(), rngs=rngs) for _ in range(config.layers))
        self.head = Linear(config.width, config.out_channels, rngs=rngs, **config.dtypes)
        self.smoothing = config.smoothing(rngs)
        self.velocity = lift() if config.momentum.learns_velocity else None

    def transform(self, functions: GridFunctions) -> Float[Array, "b n c_out"]:
        """Returns the output functions at the nodes."""
        config = self.config
        cut = cut_grid(functions.grid, config.patches)

        def lifted(lift: Linear) -> Float[Array, "s b p d"]:
            out = lift(jnp.moveaxis(split(functions.values, cut), 2, 0))
            return out.astype(self.head.result_dtype(functions.dtype))

        x = lifted(self.lift)
        velocity = None if self.velocity is None else lifted(self.velocity)
        x = run_layers(self.layers, x, cut.shape, functions.weight, velocity=velocity, **functions.shared)
        x = jnp.moveaxis(x, 0, 2)
        u = join(self.head(x), cut)
        return smooth(self.smoothing, u, functions.grid)
