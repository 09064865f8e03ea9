"""Multi-head integral attention over the nodes of a domain, as a module."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop.attention import integral_attention
from jaxop.kernels import ExpDotProduct, Kernel
from jaxop.nn.patch import check_heads
from jaxop.nn.pointwise import Linear


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
        leaves, self.kernel_structure = jax.tree.flatten(ExpDotProduct() if kernel is None else kernel)
        self.kernel_leaves = nnx.List([nnx.Param(jnp.asarray(leaf, param_dtype)) for leaf in leaves])
        self.query = Linear(width, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.key_value = Linear(width, 2 * width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.output = Linear(width, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    @property
    def kernel(self) -> Kernel:
        """The kernel at its present parameters."""
        return jax.tree.unflatten(self.kernel_structure, [leaf[...] for leaf in self.kernel_leaves])

    def __call__(
        self,
        x: Float[Array, "b n d"],
        weights: Float[Array, " m"] | Float[Array, "b m"],
        *,
        context: Float[Array, "b m d"] | None = None,
    ) -> Float[Array, "b n d"]:
        """Attends, for each of b samples, from the nodes of ``x`` to those of ``context``.

        Args:
            x: samples of u, (b, n, d).
            weights: quadrature weights of the context's nodes, (m,), or one row per sample, (b, m).
            context: samples of v, (b, m, d); None: u itself.
        """
        context = x if context is None else context
        b, n, d = x.shape
        m, depth = context.shape[1], d // self.heads
        query = self.query(x).reshape(b, n, self.heads, depth)
        key_value = self.key_value(context).reshape(b, m, 2, self.heads, depth)
        kernel = self.kernel

        def attend(query: Array, key: Array, value: Array, weights: Array) -> Array:
            return integral_attention(
                query,
                key,
                value,
                weights,
                kernel=kernel,
                kernel_axis=self.kernel_axis,
                implementation=self.implementation,
            )

        axes = (0, 0, 0, None if weights.ndim == 1 else 0)
        mixed = jax.vmap(attend, in_axes=axes)(query, key_value[:, :, 0], key_value[:, :, 1], weights)
        return self.output(mixed.reshape(b, n, d))
