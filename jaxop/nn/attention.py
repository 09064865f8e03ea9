"""Multi-head integral attention over the nodes of a domain, as a module."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxop._validation import check_name
from jaxop.attention import IMPLEMENTATIONS, integral_attention
from jaxop.kernels import ExpDotProduct, Kernel
from jaxop.nn.kernels import ExpDotProductConfig, KernelConfig, KernelParameters, check_kernel_config
from jaxop.nn.pointwise import Linear, check_heads


@dataclasses.dataclass(frozen=True)
class IntegralAttentionConfig:
    """Which attention a layer runs; `make` builds it.

    Attributes:
        kernel: the settings of a kernel.
        implementation: of `jaxop.attention.integral_attention`; None lets it choose.

    Raises:
        ValueError: for an unknown implementation.
        TypeError: for a kernel that is no settings of one.
    """

    kernel: KernelConfig = ExpDotProductConfig()
    implementation: str | None = None

    def __post_init__(self):
        check_kernel_config(self.kernel)
        if self.implementation is not None:
            check_name(self.implementation, "implementation", IMPLEMENTATIONS)

    def make(
        self,
        width: int,
        heads: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> "IntegralAttention":
        """The layer, with new parameters.

        Raises:
            ValueError: if the heads do not divide the width.
        """
        check_heads(width, heads)
        kernel, axis = self.kernel.make(heads, width // heads)
        return IntegralAttention(
            width,
            heads,
            kernel=kernel,
            kernel_axis=axis,
            implementation=self.implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )


class IntegralAttention(nnx.Module):
    """Attn(u)(x) = O ∫ k(Q u(x), K v(y)) V v(y) dy / ∫ k(Q u(x), K v(y)) dy, Q, K, V, O affine at every node.

    Queries come from u, keys and values from the ``context`` v; without one, v = u. The sums over nodes
    carry the weights of the context's domain.

    Args:
        width: channels d.
        heads: h, a divisor of d.
        kernel: any kernel; its leaves become trainable parameters. None: ``ExpDotProduct()``.
        kernel_axis: 0 if the kernel's leaves carry a leading head axis.
        implementation: of `jaxop.attention.integral_attention`; None lets it choose.
        dtype: dtype of the computation; None: that of the inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if the heads do not divide the channels.

    Source: Calvello et al., arXiv:2406.06486.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, nn
        >>> layer = nn.IntegralAttention(8, 2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((3, 16, 8)), domains.interval(16).weights).shape
        (3, 16, 8)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kernel: Kernel | None = None,
        kernel_axis: int | None = None,
        implementation: str | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads = check_heads(width, heads)
        self.kernel_axis = kernel_axis
        self.implementation = implementation
        self.kernel = KernelParameters(ExpDotProduct() if kernel is None else kernel, param_dtype=param_dtype)
        self.query = Linear(width, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.key_value = Linear(width, 2 * width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.output = Linear(width, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        weights: Float[Array, " m"] | Float[Array, "b m"] | None = None,
        *,
        context: Float[Array, "b m d"] | None = None,
        mask: Bool[Array, " m"] | Bool[Array, "n m"] | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "b n d"]:
        """Attends, for each of b samples, from the nodes of ``x`` to those of ``context``.

        Args:
            x: samples of u, (b, n, d).
            weights: quadrature weights of the context's nodes, (m,), or one row per sample, (b, m); None: equal.
            context: samples of v, (b, m, d); None: u itself.
            mask: True where a node of ``x`` may see one of the context, (m,) or (n, m), shared by the samples.
            is_causal: whether node i sees nodes j ≤ i only.
        """
        mixed = self.mix(x, weights, context=context, mask=mask, is_causal=is_causal)
        return self.output(mixed.reshape(x.shape))

    def mix(
        self,
        x: Float[Array, "b n d"],
        weights: Float[Array, " m"] | Float[Array, "b m"] | None = None,
        *,
        context: Float[Array, "b m d"] | None = None,
        mask: Bool[Array, " m"] | Bool[Array, "n m"] | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "b n h c"]:
        """The outputs of the heads, which `__call__` merges; arguments as there."""
        context = x if context is None else context
        b, n, d = x.shape
        m, depth = context.shape[1], d // self.heads
        query = self.query(x).reshape(b, n, self.heads, depth)
        key_value = self.key_value(context).reshape(b, m, 2, self.heads, depth)
        kernel = self.kernel.value

        def attend(query: Array, key: Array, value: Array, weights: Array | None) -> Array:
            return integral_attention(
                query,
                key,
                value,
                weights,
                kernel=kernel,
                kernel_axis=self.kernel_axis,
                mask=mask,
                is_causal=is_causal,
                implementation=self.implementation,
            )

        axes = (0, 0, 0, 0 if weights is not None and weights.ndim == 2 else None)
        return jax.vmap(attend, in_axes=axes)(query, key_value[:, :, 0], key_value[:, :, 1], weights)
