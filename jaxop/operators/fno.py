"""Fourier neural operator, the baseline of the field."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop._remat import through_layers
from jaxop._validation import check_size
from jaxop.nn import ACTIVATIONS, FeedForward, Linear, SpectralConvolution
from jaxop.operators.grid import GridConfig, GridFunctions, GridOperator
from jaxop.operators.registry import register


@dataclasses.dataclass(frozen=True, kw_only=True)
class FourierNeuralOperatorConfig(GridConfig):
    """Sizes and choices of a `FourierNeuralOperator`.

    The attributes are those of `GridConfig` (``in_channels, out_channels, dim``, then keywords), and these:

    Attributes:
        layers: Fourier layers.
        projection: hidden channels of the last network.
        reference: nodes along each axis of the grid that the operator is made for, at least 2 m. The operator also acts
            on any other grid of equal weights; below 2 m nodes the highest modes are dropped.
        dtype: dtype of the pointwise maps. None takes the dtype of inputs and parameters. Spectral parts run in float32
            or wider.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if sizes do not fit or a name is unknown; the message has valid values.
    """

    width: int = 32
    layers: int = 4
    projection: int = 128

    def __post_init__(self):
        super().__post_init__()
        check_size(self.projection, "projection")

    def check_shares_nodes(self, devices: int | None = None) -> None:
        """Accepts every number of devices, unless the coordinates are periodic."""
        del devices
        self._check_coordinates_are_shared()


@register("fno", FourierNeuralOperatorConfig)
class FourierNeuralOperator(GridOperator[FourierNeuralOperatorConfig]):
    """u ↦ Q(σ(L v + K v) ∘ … ∘ P[u, x]): pointwise affine L plus a Fourier integral operator K per layer.

    P is affine, Q is a network with one hidden layer, and the last Fourier layer has no σ.

    Args:
        config: a `FourierNeuralOperatorConfig`.
        rngs: random streams; ``params`` is used.

    Cost: O(layers · (n d (modes + d) + M d²)) per sample, M = 2^{dim−1} modes^dim. If p devices share the nodes,
        each takes 1/p of the first term and all of the second. They add the 2 M d coefficients of a layer in one sum.

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
        self.config = FourierNeuralOperatorConfig.checked(config, rngs)
        reference, width = (config.reference,) * config.dim, config.width
        seen = config.in_channels + config.coordinate_channels
        self.lift = Linear(seen, width, param_dtype=config.param_dtype, rngs=rngs)
        self.integrals = nnx.List(
            SpectralConvolution(
                width, width, config.modes, reference=reference, param_dtype=config.param_dtype, rngs=rngs
            )
            for _ in range(config.layers)
        )
        self.skips = nnx.List(Linear(width, width, rngs=rngs, **config.dtypes) for _ in range(config.layers))
        self.projection = FeedForward(
            width, config.projection, config.out_channels, activation=config.activation, rngs=rngs, **config.dtypes
        )

    def transform(self, functions: GridFunctions) -> Float[Array, "b n c_out"]:
        """Returns the output functions at the nodes."""
        config = self.config
        activation = ACTIVATIONS[config.activation]
        x = self.lift(jnp.moveaxis(functions.values, 0, 1))  # (n, b, d)
        x = x.astype(self.projection.outer.result_dtype(functions.dtype))

        def affine(layer: tuple[SpectralConvolution, Linear], x: Array) -> Array:
            integral, skip = layer
            return skip(x) + integral(x, functions.grid.shape, **functions.shared)

        layers = list(zip(self.integrals, self.skips, strict=True))
        x = through_layers(layers[:-1], x, lambda layer, x: activation(affine(layer, x)))
        x = through_layers(layers[-1:], x, affine)
        return jnp.moveaxis(self.projection(x), 1, 0)
