"""The Fourier neural operator, the baseline every reader knows."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop.nn import ACTIVATIONS, FeedForward, Linear, SpectralConvolution
from jaxop.operators._common import GridFunctions, GridOperator, check_config, checked
from jaxop.spectral import check_modes


@dataclasses.dataclass(frozen=True)
class FourierNeuralOperatorConfig:
    """Sizes and choices of a `FourierNeuralOperator`.

    Attributes:
        in_channels: channels of the input function.
        out_channels: channels of the output function.
        dim: space dimensions of the grid, 1 to 3.
        width: channels inside.
        layers: Fourier layers.
        modes: m, the modes kept along every axis.
        projection: hidden channels of the network at the end.
        reference: nodes along each axis of the grid that the operator is made for, at least 2 m. Any
            other grid of equal weights may be given; below 2 m nodes the highest modes are dropped.
        activation: ``"gelu"`` (exact) or ``"gelu_tanh"``.
        dtype: dtype of the pointwise maps; None: that of inputs and parameters. Spectral parts run in
            float32 at least.
        param_dtype: dtype of the parameters.

    Raises:
        TypeError: for a size that is not an integer.
        ValueError: for sizes that do not fit, unknown names; the message names valid ones.
    """

    in_channels: int
    out_channels: int
    dim: int = 2
    width: int = 32
    layers: int = 4
    modes: int = 12
    projection: int = 128
    reference: int = 64
    activation: str = "gelu"
    dtype: str | None = None
    param_dtype: str = "float32"

    def __post_init__(self):
        check_config(self)
        check_modes(self.modes, (self.reference,) * self.dim)


class FourierNeuralOperator(GridOperator):
    """u ↦ Q(σ(L v + K v) ∘ … ∘ P[u, x]): pointwise affine L plus a Fourier integral operator K per layer.

    P is affine, Q a network of one hidden layer, and the last Fourier layer has no σ.

    Args:
        config: a `FourierNeuralOperatorConfig`.
        rngs: random streams; ``params`` is used.

    Cost: O(layers · (n d (modes + d) + M d²)) per sample, M = 2^{dim−1} modes^dim.

    Source: Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations",
        arXiv:2010.08895.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> config = operators.FourierNeuralOperatorConfig(1, 2, width=8, layers=1, modes=4, reference=8)
        >>> operator = operators.FourierNeuralOperator(config, rngs=nnx.Rngs(0))
        >>> domain = domains.box((16, 16), rule="midpoint")
        >>> operator(jnp.ones((256, 1)), domain).shape
        (256, 2)
    """

    def __init__(self, config: FourierNeuralOperatorConfig, *, rngs: nnx.Rngs):
        self.config = checked(config, FourierNeuralOperatorConfig, rngs)
        reference, width = (config.reference,) * config.dim, config.width
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        self.lift = Linear(config.in_channels + config.dim, width, param_dtype=config.param_dtype, rngs=rngs)
        self.integrals = nnx.List(
            SpectralConvolution(
                width, width, config.modes, reference=reference, param_dtype=config.param_dtype, rngs=rngs
            )
            for _ in range(config.layers)
        )
        self.skips = nnx.List(Linear(width, width, rngs=rngs, **dtypes) for _ in range(config.layers))
        self.projection = FeedForward(
            width, config.projection, config.out_channels, activation=config.activation, rngs=rngs, **dtypes
        )

    def transform(self, functions: GridFunctions) -> Float[Array, "b n c_out"]:
        """The output functions at the nodes."""
        config = self.config
        activation = ACTIVATIONS[config.activation]
        x = self.lift(jnp.moveaxis(functions.values, 0, 1))  # (n, b, d)
        x = x.astype(self.projection.outer.result_dtype(functions.dtype))
        for index, (integral, skip) in enumerate(zip(self.integrals, self.skips, strict=True)):
            x = skip(x) + integral(x, functions.grid.shape)
            x = activation(x) if index < config.layers - 1 else x
        return jnp.moveaxis(self.projection(x), 1, 0)
