"""Multi-head attention between functions on patches, in physical and in Fourier space."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._validation import accumulator
from jaxop.attention.connection import check_dot_product, connection, scaled
from jaxop.attention.patch import patch_attention, spectral_patch_attention
from jaxop.kernels import ExpDotProduct, Kernel, PerHead
from jaxop.nn.checks import check_dtypes, check_rngs
from jaxop.nn.kernel_configs import KernelParameters
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
        kernel: a kernel of `jaxop.attention.patch_attention` for all heads, or `jaxop.kernels.PerHead`; its
            leaves become parameters. None means exp ∫ Q u_j · K u_k dx.
        dtype: dtype of the computation; None means the dtype of inputs and parameters.
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
        kernel: Kernel | PerHead | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads = check_heads(width, heads)
        self.kernel = None if kernel is None else KernelParameters(kernel, param_dtype=param_dtype)
        self.projection = Linear(width, 3 * width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.output = Linear(width, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b p s d"],
        weights: Float[Array, " s"] | Float[Array, "b s"],
        *,
        axis_name: str | None = None,
    ) -> Float[Array, "b p s d"]:
        """Attends between the p patches of each of b samples.

        Args:
            tokens: functions on the patches, (b, p, s, d).
            weights: quadrature weights of one patch, (s,), or one row per sample, (b, s).
            axis_name: the mapped axis of `jax.shard_map` over whose devices the patches are distributed; see
                `jaxop.attention.patch_attention`. None means that all patches are here.
        """
        query, key, value = self._heads(self.projection(tokens))
        return self.output(self._attend(query, key, value, weights, axis_name).reshape(tokens.shape))

    def with_connection(
        self,
        z: Float[Array, "b p s d"],
        velocity: Float[Array, "b p s d"] | Callable[[Array], Array],
        weights: Float[Array, " s"] | Float[Array, "b s"],
        *,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, "b p s d"], Float[Array, "b p s d"]]:
        """F = Attn(z) and the connection C(z; v) of tokens that are functions; see `IntegralAttention.with_connection`.

        |v_j|² is the squared norm ∫_patch |v_j|² dx, and rates of scores are inner products over the patch.

        Args:
            z: functions on the patches, (b, p, s, d).
            velocity: v, (b, p, s, d), or a function that computes v from F; the attention is then evaluated twice.
            weights: see `__call__`.
            axis_name: see `__call__`.

        Returns:
            (F, C), each (b, p, s, d).

        Raises:
            NotImplementedError: if the kernel is not the exponentiated inner product.
        """
        # if the kernel is None, scores are the inner products themselves
        kernel = ExpDotProduct(1.0) if self.kernel is None else check_dot_product(self.kernel.value)
        query, key, value = self._heads(self.projection(z))
        width = z.shape[-1]
        wide = accumulator(z.dtype)
        measure = (weights[None] if weights.ndim == 1 else weights)[:, None, :, None].astype(wide)

        def integral(values: Array) -> Array:
            return jnp.sum(measure * values.astype(wide), axis=(2, 3), keepdims=True).astype(z.dtype)

        def average(*values: Array) -> list[Array]:
            means = self._attend(query, key, jnp.concatenate(values, axis=-1), weights, axis_name)
            return jnp.split(means, len(values), axis=-1)

        def merge(*heads: Array) -> list[Array]:
            return [a.reshape(z.shape) @ self.output.kernel[...].astype(a.dtype) for a in heads]

        def rates(v: Array) -> tuple[Array, Array]:
            matrices = self.projection.kernel[:, : 2 * width].astype(v.dtype)
            query_rate, key_rate = self._heads((v.reshape(-1, width) @ matrices).reshape(*z.shape[:-1], -1))
            return scaled(kernel, query_rate), key_rate

        return connection(
            velocity,
            scaled(kernel, query),
            key,
            value,
            average=average,
            merge=merge,
            rates=rates,
            inner=lambda a, b: integral(jnp.sum(a * b, axis=-1)) / self.heads,
            square=lambda v: integral(v * v),
            spread=lambda size: size[..., None],
            bias=self.output.bias[...].astype(query.dtype)[None, None, None, :],
        )

    def _attend(self, query: Array, key: Array, value: Array, weights: Array, axis_name: str | None) -> Array:
        kernel = None if self.kernel is None else self.kernel.value
        attend = functools.partial(patch_attention, kernel=kernel, axis_name=axis_name)
        axes = (0, 0, 0, None if weights.ndim == 1 else 0)
        return jax.vmap(attend, in_axes=axes)(query, key, value, weights)

    def _heads(self, projected: Array) -> list[Array]:
        """Splits k projections side by side, (b, p, s, k d), into k arrays (b, p, s, h, c)."""
        width = self.output.kernel.shape[0]
        shape = (*projected.shape[:-1], self.heads, width // self.heads)
        return [part.reshape(shape) for part in jnp.split(projected, projected.shape[-1] // width, axis=-1)]


class FourierPatchAttention(nnx.Module):
    """`PatchAttention` whose Q, K, V are Fourier integral operators inside the patch (d → d/h per head).

    It runs on the retained Fourier coefficients, with one analysis of the input and one synthesis of the result. The
    cost of attention does not depend on the nodes of a patch.

    Args:
        width: channels d.
        heads: h, a divisor of d.
        modes: m, one number for all axes or one per axis.
        reference: nodes along each axis of a PATCH of the reference grid.
        dtype: dtype of the result; None means the dtype of inputs and parameters. The computation runs on
            coefficients, in float32 or wider.
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
        check_dtypes(dtype, param_dtype)
        check_rngs(rngs)
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
        *,
        axis_name: str | None = None,
    ) -> Float[Array, "s b p d"]:
        """Attends between the p patches of each of b samples.

        Args:
            tokens: functions on the patches, nodes first, (s, b, p, d).
            patch_shape: nodes of a patch along each axis; their product is s.
            weight: quadrature weight of a node in the measure of the whole domain, one for all samples or one each.
            axis_name: the mapped axis of `jax.shard_map` over whose devices the patches are distributed; see
                `jaxop.attention.spectral_patch_attention`. None means that all patches are here.
        """
        band = Band(tuple(patch_shape), self.modes)
        query, key, value = self._project(tokens, band)
        mixed = self._attend(query, key, value, band, weight, axis_name)
        return self._with_bias(self._functions(mixed, band, tokens.shape), tokens.dtype)

    def with_connection(
        self,
        z: Float[Array, "s b p d"],
        velocity: Float[Array, "s b p d"] | Callable[[Array], Array],
        patch_shape: Sequence[int],
        weight: Float[Array, ""] | Float[Array, " b"] | float,
        *,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, "s b p d"], Float[Array, "s b p d"]]:
        """F = Attn(z) and the connection C(z; v) of `PatchAttention.with_connection`, computed on coefficients.

        Args:
            z: functions on the patches, nodes first, (s, b, p, d).
            velocity: v, (s, b, p, d), or a function that computes v from F; the attention is then evaluated twice.
            patch_shape: see `__call__`.
            weight: see `__call__`.
            axis_name: see `__call__`.

        Returns:
            (F, C), each (s, b, p, d).
        """
        band, dtype = Band(tuple(patch_shape), self.modes), self.output.result_dtype(z.dtype)
        query, key, value = self._project(z, band)
        measure = jnp.reshape(jnp.asarray(weight, query.dtype), (1, -1, 1, 1))

        def average(*values: Array) -> list[Array]:
            means = self._attend(query, key, jnp.concatenate(values, axis=-1), band, weight, axis_name)
            return jnp.split(means, len(values), axis=-1)

        def inner(a: Array, b: Array) -> Array:
            # over the patch, by Parseval's identity
            products = jnp.sum(isometric(a, band) * isometric(b, band), axis=(0, 1, 4, 5))
            return measure * products[None, :, :, None] / self.heads

        force, change = connection(
            velocity if not callable(velocity) else lambda force: velocity(force.astype(dtype)),
            query,
            key,
            value,
            average=average,
            merge=lambda *heads: [self._functions(a, band, z.shape) for a in heads],
            rates=lambda v: self._project(v, band)[:2],
            inner=inner,
            square=lambda v: jnp.sum(measure * v.astype(query.dtype) ** 2, axis=(0, 3), keepdims=True),
            spread=lambda size: size[None, ..., None],
            bias=self.output.bias[...].astype(query.dtype)[None, None, None, :],
        )
        return force.astype(dtype), change.astype(dtype)

    def _project(self, tokens: Array, band: Band) -> list[Array]:
        """Returns the coefficients of Q, K and V, each (2, m, b, p, h, c)."""
        _, b, p, d = tokens.shape
        dtype = accumulator(tokens.dtype)
        multipliers = restrict(self.multipliers[...].astype(dtype), band)
        coefficients = multiply(analysis(tokens.astype(dtype), band), multipliers)
        shape = (2, band.size, b, p, self.heads, d // self.heads)
        return [part.reshape(shape) for part in jnp.split(coefficients, 3, axis=-1)]

    def _attend(
        self, query: Array, key: Array, value: Array, band: Band, weight: Array | float, axis_name: str | None
    ) -> Array:
        def attend(query: Array, key: Array, value: Array, weight: Array) -> Array:
            return spectral_patch_attention(query, key, value, band, weight, axis_name=axis_name)

        weight = jnp.asarray(weight, query.dtype)
        axes = (2, 2, 2, None if weight.ndim == 0 else 0)
        return jax.vmap(attend, in_axes=axes, out_axes=2)(query, key, value, weight)

    def _functions(self, heads: Array, band: Band, shape: tuple[int, ...]) -> Array:
        """Returns O of the heads, without its bias, at the nodes."""
        # O is linear at every x, so it acts on the coefficients, of which there are fewer than nodes
        merged = heads.reshape(-1, shape[-1]) @ self.output.kernel[...].astype(heads.dtype)
        return synthesis(merged.reshape(2, band.size, *shape[1:]), band)

    def _with_bias(self, functions: Array, dtype: DTypeLike) -> Array:
        out = add_to_rows(functions.reshape(-1, functions.shape[-1]), self.output.bias[...].astype(functions.dtype))
        return out.astype(self.output.result_dtype(dtype)).reshape(functions.shape)
