"""Multi-head attention between functions on patches, in physical and in Fourier space."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

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
    isometric,
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
        query, key, value = self._heads(self.projection(tokens))
        options = {"kernel": None if self.kernel is None else self.kernel.value, "kernel_axis": self.kernel_axis}
        attend = functools.partial(patch_attention, **options)
        axes = (0, 0, 0, None if weights.ndim == 1 else 0)
        mixed = jax.vmap(attend, in_axes=axes)(query, key, value, weights)
        return self.output(mixed.reshape(b, p, s, d))

    def with_connection(
        self,
        z: Float[Array, "b p s d"],
        velocity: Float[Array, "b p s d"] | Callable[[Array], Array],
        weights: Float[Array, " s"] | Float[Array, "b s"],
    ) -> tuple[Float[Array, "b p s d"], Float[Array, "b p s d"]]:
        """F = Attn(z) and the connection C(z; v) of tokens that are functions; see `IntegralAttention.with_connection`.

        |v_j|² is the squared norm ∫_patch |v_j|² dx, and rates of scores are inner products over the patch.

        Args:
            z: functions on the patches, (b, p, s, d).
            velocity: v, (b, p, s, d), or the function that makes it of F; the attention is then evaluated twice.
            weights: as in a call.

        Returns:
            (F, C), each (b, p, s, d).

        Raises:
            NotImplementedError: for another kernel than exp ∫ Q·K dx.
        """
        if self.kernel is not None:
            raise NotImplementedError("a connection is known for the exponentiated inner product only: kernel=None.")
        query, key, value = self._heads(self.projection(z))
        axes = (0, 0, 0, None if weights.ndim == 1 else 0)
        attend = jax.vmap(patch_attention, in_axes=axes)
        if callable(velocity):
            heads = attend(query, key, value, weights)
            v = velocity(self.output(heads.reshape(z.shape)))
        else:
            heads, v = None, velocity
        measure = (weights[None] if weights.ndim == 1 else weights)[:, None, :, None].astype(v.dtype)
        kernel = self.projection.kernel[...].astype(v.dtype)
        query_rate, key_rate, _ = self._heads(v.reshape(-1, v.shape[-1]) @ kernel, z.shape)
        square = jnp.sum(measure * v * v, axis=(2, 3), keepdims=True)
        moving = [key, key_rate, square[..., None] * value]
        means = attend(query, key, jnp.concatenate(moving if heads is not None else [value, *moving], -1), weights)
        parts = jnp.split(means, 3 if heads is not None else 4, axis=-1)
        heads = parts[0] if heads is None else heads
        rates = query_rate * parts[-3] + query * parts[-2]
        drift = jnp.sum(measure * jnp.sum(rates, axis=-1), axis=(2, 3), keepdims=True) / self.heads
        force = self.output(heads.reshape(z.shape))
        free = force - self.output.bias[...].astype(force.dtype)[None, None, None, :]
        second = parts[-1].reshape(z.shape) @ self.output.kernel[...].astype(z.dtype)
        return force, drift * v - (square * free + second) / 2

    def _heads(self, projected: Array, shape: tuple[int, ...] | None = None) -> tuple[Array, ...]:
        b, p, s, d = (*projected.shape[:-1], projected.shape[-1] // 3) if shape is None else shape
        return tuple(part.reshape(b, p, s, self.heads, d // self.heads) for part in jnp.split(projected, 3, axis=-1))


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
        band = Band(tuple(patch_shape), self.modes)
        query, key, value = self._project(tokens, band)
        mixed = self._attend(query, key, value, band, weight)
        return self._with_bias(self._functions(mixed, band, tokens.shape), tokens.dtype)

    def with_connection(
        self,
        z: Float[Array, "s b p d"],
        velocity: Float[Array, "s b p d"] | Callable[[Array], Array],
        patch_shape: Sequence[int],
        weight: Float[Array, ""] | Float[Array, " b"] | float,
    ) -> tuple[Float[Array, "s b p d"], Float[Array, "s b p d"]]:
        """F = Attn(z) and the connection C(z; v), as `PatchAttention.with_connection`; attention on coefficients.

        Args:
            z: functions on the patches, nodes first, (s, b, p, d).
            velocity: v, (s, b, p, d), or the function that makes it of F; the attention is then evaluated twice.
            patch_shape: as in a call.
            weight: as in a call.

        Returns:
            (F, C), each (s, b, p, d).
        """
        band = Band(tuple(patch_shape), self.modes)
        query, key, value = self._project(z, band)

        def force_of(heads: Array) -> tuple[Array, Array]:
            free = self._functions(heads, band, z.shape)
            return free, self._with_bias(free, z.dtype)

        if callable(velocity):
            heads = self._attend(query, key, value, band, weight)
            v = velocity(force_of(heads)[1])
        else:
            heads, v = None, velocity
        dtype = accumulator(z.dtype)
        measure = jnp.reshape(jnp.asarray(weight, dtype), (1, -1, 1, 1))
        query_rate, key_rate, _ = self._project(v, band)
        square = jnp.sum(measure * v.astype(dtype) ** 2, axis=(0, 3))  # (b, p)
        moving = [key, key_rate, square[None, None, :, :, None, None] * value]
        values = jnp.concatenate(moving if heads is not None else [value, *moving], axis=-1)
        parts = jnp.split(self._attend(query, key, values, band, weight), 3 if heads is not None else 4, axis=-1)
        heads = parts[0] if heads is None else heads

        def inner(a: Array, b: Array) -> Array:
            """Σ_heads ∫ a·b over the patch, by Parseval, (b, p)."""
            return measure[0, :, :, 0] * jnp.sum(isometric(a, band) * isometric(b, band), axis=(0, 1, 4, 5))

        drift = (inner(query_rate, parts[-3]) + inner(query, parts[-2])) / self.heads
        free, force = force_of(heads)
        second = self._functions(parts[-1], band, z.shape)
        drift, square = (a[None, :, :, None] for a in (drift, square))
        connection = drift * v.astype(dtype) - (square * free + second) / 2
        return force, connection.astype(force.dtype)

    def _project(self, tokens: Array, band: Band) -> list[Array]:
        """Coefficients of Q, K and V, each (2, m, b, p, h, c)."""
        _, b, p, d = tokens.shape
        dtype = accumulator(tokens.dtype)
        multipliers = restrict(self.multipliers[...].astype(dtype), band)
        coefficients = multiply(analysis(tokens.astype(dtype), band), multipliers)
        shape = (2, band.size, b, p, self.heads, d // self.heads)
        return [part.reshape(shape) for part in jnp.split(coefficients, 3, axis=-1)]

    def _attend(self, query: Array, key: Array, value: Array, band: Band, weight: Any) -> Array:
        def attend(query: Array, key: Array, value: Array, weight: Array) -> Array:
            return spectral_patch_attention(query, key, value, band, weight)

        weight = jnp.asarray(weight, query.dtype)
        axes = (2, 2, 2, None if weight.ndim == 0 else 0)
        return jax.vmap(attend, in_axes=axes, out_axes=2)(query, key, value, weight)

    def _functions(self, heads: Array, band: Band, shape: tuple[int, ...]) -> Array:
        """O of the heads, without its bias, at the nodes."""
        # O is linear at every x, so it acts on the coefficients, of which there are fewer than nodes
        merged = heads.reshape(-1, shape[-1]) @ self.output.kernel[...].astype(heads.dtype)
        return synthesis(merged.reshape(2, band.size, *shape[1:]), band)

    def _with_bias(self, functions: Array, dtype: Any) -> Array:
        out = add_to_rows(functions.reshape(-1, functions.shape[-1]), self.output.bias[...].astype(functions.dtype))
        return out.astype(self.output.result_dtype(dtype)).reshape(functions.shape)
