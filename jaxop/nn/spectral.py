"""Module of convolution with a learned band-limited kernel."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._validation import check_dtype, check_size
from jaxop.nn.checks import check_rngs
from jaxop.spectral import check_modes, fourier_integral, initial_multipliers


class SpectralConvolution(nnx.Module):
    """v(x) = Σ_k e^{2πi k·x/L} R(k)ᵀ û(k), `jaxop.spectral.fourier_integral` with trainable multipliers.

    Args:
        in_features: number of input channels.
        out_features: number of output channels.
        modes: m, one number for all axes or one per axis.
        reference: nodes along each axis of the grid (or patch) that the layer is made for. Other grids
            may be finer or coarser; see `jaxop.spectral.Band`.
        param_dtype: dtype of the parameters. The computation runs in float32 or wider.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if 2 m exceeds the side of the reference grid.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> layer = nn.SpectralConvolution(2, 3, 4, reference=(8, 8), rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((256, 2)), (16, 16)).shape
        (256, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        modes: int | Sequence[int],
        *,
        reference: Sequence[int],
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_size(in_features, "in_features")
        check_size(out_features, "out_features")
        check_dtype(param_dtype, "param_dtype")
        check_rngs(rngs)
        modes = check_modes(modes, reference)
        self.multipliers = nnx.Param(
            initial_multipliers(rngs.params(), modes, in_features, out_features, dtype=jnp.dtype(param_dtype))
        )

    def __call__(
        self, values: Float[Array, "n *batch c_in"], grid_shape: Sequence[int], *, axis_name: str | None = None
    ) -> Float[Array, "n *batch c"]:
        """Applies the layer to functions on a grid of equal weights, nodes first and in row-major order.

        If devices of a mapped axis share the nodes, each passes its own; see `jaxop.spectral.fourier_integral`.
        """
        return fourier_integral(values, self.multipliers[...], grid_shape, axis_name=axis_name)
