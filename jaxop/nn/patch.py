"""Multi-head attention between functions on patches, in physical and in Fourier space."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop.attention.patch import patch_attention, spectral_patch_attention
from jaxop.domains.domain import accumulator
from jaxop.kernels import Kernel
from jaxop.nn.kernels import KernelParameters
from jaxop.nn.pointwise import Linear, add_to_rows, check_heads
from jaxop.spectral import (
    Band,
    analysis,
    check_modes,
    initial_multipliers,
    multiply,
    restrict,
    synthesis,
)


class PatchAttention(nnx.Module):
    """Attn(u)_j(x) = O Σ_k softmax_k(∫_patch Q u_j · K u_k dx) V u_k(x), Q, K, V, O affine at every x.

    Args:
        width: channels d.
        heads: h, a divisor of d.
        kernel: of `jaxop.attention.patch_attention`, its leaves become parameters; None: exp ∫ Q u_j · K u_k dx.
        kernel_axis: 0 if the kernel's leaves carry a leading head axis.
        dtype: dtype of the computation; None: that of the inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if the heads do not divide the channels.

    Source: Calvello et al., arXiv:2406.06486, the attention of the ViT neural operator.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> layer = nn.PatchAttention(8, 2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((3, 4, 16, 8)), jnp.full(16, 1 / 64)).shape  # 3 samples, 4 patches of 16 nodes
        (3, 4, 16, 8)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kernel: Kernel | None = None,
        kernel_axis: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads = check_heads(width, heads)
        self.kernel = None if kernel is None else KernelParameters(kernel, param_dtype=param_dtype)
        self.kernel_axis = kernel_axis
        self.projection = Linear(width, 3 * width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.output = Linear(width, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b p s d"], weights: Float[Array, " s"] | Float[Array, "b s"]
    ) -> Float[Array, "b p s d"]:
        """Attends between the p patches of each of b samples.

        Args:
            tokens: functions on the patches, (b, p, s, d).
            weights: quadrature weights of one patch, (s,), or one row per sample, (b, s).
        """
        b, p, s, d = tokens.shape
        projected = jnp.split(self.projection(tokens), 3, axis=-1)
        query, key, value = (part.reshape(b, p, s, self.heads, d // self.heads) for part in projected)
        options = {"kernel": None if self.kernel is None else self.kernel.value, "kernel_axis": self.kernel_axis}
        attend = functools.partial(patch_attention, **options)
        axes = (0, 0, 0, None if weights.ndim == 1 else 0)
        mixed = jax.vmap(attend, in_axes=axes)(query, key, value, weights)
        return self.output(mixed.reshape(b, p, s, d))


class FourierPatchAttention(nnx.Module):
    """`PatchAttention` whose Q, K, V are Fourier integral operators inside the patch (d → d/h per head).

    Runs on the retained Fourier coefficients: one analysis of the input, one synthesis of the result.
    The cost of attention does not depend on the nodes of a patch.

    Args:
        width: channels d.
        heads: h, a divisor of d.
        modes: m, one number or one per axis.
        reference: nodes along each axis of a PATCH of the reference grid.
        dtype: dtype of the result; None: that of the inputs and parameters. All of it is computed on
            coefficients, in float32 at least.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if the heads do not divide the channels, or 2 m exceeds the side of the patch.

    Source: Calvello et al., arXiv:2406.06486, the attention of the Fourier attention neural operator.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> layer = nn.FourierPatchAttention(8, 2, 2, reference=(4, 4), rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((16, 3, 4, 8)), (4, 4), 1 / 64).shape  # 4 patches of 16 nodes, 3 samples
        (16, 3, 4, 8)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        modes: int | Sequence[int],
        *,
        reference: Sequence[int],
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads = check_heads(width, heads)
        self.modes = check_modes(modes, reference)
        multipliers = initial_multipliers(
            rngs.params(), self.modes, width, width // heads, groups=3 * heads, dtype=jnp.dtype(param_dtype)
        )
        self.multipliers = nnx.Param(multipliers)
        self.output = Linear(width, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "s b p d"],
        patch_shape: Sequence[int],
        weight: Float[Array, ""] | Float[Array, " b"] | float,
    ) -> Float[Array, "s b p d"]:
        """Attends between the p patches of each of b samples.

        Args:
            tokens: functions on the patches, nodes first, (s, b, p, d).
            patch_shape: nodes of a patch along each axis; their product is s.
            weight: quadrature weight of a node in the measure of the whole domain, one or one per sample.
        """
        _, b, p, d = tokens.shape
        band = Band(tuple(patch_shape), self.modes)
        dtype = accumulator(tokens.dtype)
        coefficients = multiply(
            analysis(tokens.astype(dtype), band), restrict(self.multipliers[...].astype(dtype), band)
        )
        query, key, value = (
            part.reshape(2, band.size, b, p, self.heads, d // self.heads)
            for part in jnp.split(coefficients, 3, axis=-1)
        )

        def attend(query: Array, key: Array, value: Array, weight: Array) -> Array:
            return spectral_patch_attention(query, key, value, band, weight)

        weight = jnp.asarray(weight, dtype)
        mixed = jax.vmap(attend, in_axes=(2, 2, 2, None if weight.ndim == 0 else 0), out_axes=2)(
            query, key, value, weight
        )
        # O is linear at every x, so it acts on the coefficients, of which there are fewer than nodes; its bias after
        merged = mixed.reshape(-1, d) @ self.output.kernel[...].astype(dtype)
        functions = synthesis(merged.reshape(2, band.size, b, p, d), band).reshape(-1, d)
        out = add_to_rows(functions, self.output.bias[...].astype(dtype))
        return out.astype(self.output.result_dtype(tokens.dtype)).reshape(tokens.shape)
