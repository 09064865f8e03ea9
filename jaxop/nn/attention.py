"""Module of multi-head integral attention over the nodes of a domain."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from jaxop.attention import averaging_operator, integral_attention, linear_attention
from jaxop.attention.connection import check_dot_product, connection, scaled
from jaxop.attention.linear import head_features
from jaxop.flows import linear_connection
from jaxop.kernels import DotProduct, ExpDotProduct, Kernel, LearnedFeatures, PerHead
from jaxop.kernels.per_head import one_head
from jaxop.nn.checks import check_implementation
from jaxop.nn.kernel_configs import LINEAR, ExpDotProductConfig, KernelConfig, KernelParameters, check_kernel_config
from jaxop.nn.pointwise import Linear, check_heads


@dataclasses.dataclass(frozen=True)
class IntegralAttentionConfig:
    """Settings of the attention of a layer; `make` builds the layer.

    Attributes:
        kernel: the settings of a kernel.
        implementation: an implementation of `jaxop.attention.integral_attention`; None lets it choose.

    Raises:
        ValueError: if the implementation is unknown, or not None for linear attention.
        TypeError: if ``kernel`` is not the settings of a kernel.
    """

    kernel: KernelConfig = ExpDotProductConfig()
    implementation: str | None = None

    def __post_init__(self):
        check_kernel_config(self.kernel)
        check_implementation(self.implementation, is_linear=isinstance(self.kernel, LINEAR))

    def make(
        self,
        width: int,
        heads: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> "IntegralAttention":
        """Returns the layer with new parameters.

        Raises:
            ValueError: if the heads do not divide the width.
        """
        check_heads(width, heads)
        kernel = self.kernel.make(heads, width // heads, rngs=rngs)
        return IntegralAttention(
            width,
            heads,
            kernel=kernel,
            implementation=self.implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )


class IntegralAttention(nnx.Module):
    """Attn(u)(x) = O ∫ k(Q u(x), K v(y)) V v(y) dy / ∫ k(Q u(x), K v(y)) dy, with Q, K, V, O affine at every node.

    Queries come from u, keys and values from the ``context`` v; without a context, v = u. The sums over nodes
    use the weights of the context's domain.

    Args:
        width: channels d.
        heads: h, a divisor of d.
        kernel: any kernel for all heads, or `jaxop.kernels.PerHead`; its leaves become trainable parameters. None
            means ``ExpDotProduct()``.
        implementation: an implementation of `jaxop.attention.integral_attention`; None lets it choose.
        dtype: dtype of the computation; None means the dtype of inputs and parameters.
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
        kernel: Kernel | PerHead | None = None,
        implementation: str | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        is_linear = kernel is not None and isinstance(one_head(kernel), DotProduct | LearnedFeatures)
        check_implementation(implementation, is_linear=is_linear)
        self.heads = check_heads(width, heads)
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
        mask: Bool[Array, "..."] | None = None,
        is_causal: bool = False,
        axis_name: str | None = None,
    ) -> Float[Array, "b n d"]:
        """Attends, for each of b samples, from the nodes of ``x`` to those of ``context``.

        Args:
            x: samples of u, (b, n, d).
            weights: quadrature weights of the context's nodes, (m,), or one row per sample, (b, m); None means
                equal weights.
            context: samples of v, (b, m, d); None means v = u.
            mask: True where a node of ``x`` may see a node of the context. One mask for all samples: (m,), (n, m) or
                (h, n, m). One per sample: (b, m), (b, n, m) or (b, h, n, m), where each of b, h and n may be 1. If the
                shape has two meanings, give the mask four axes.
            is_causal: whether node i sees only nodes j ≤ i.
            axis_name: the mapped axis of `jax.shard_map` whose devices share the nodes of ``x`` and of the context; see
                `jaxop.attention.integral_attention`. None means that all nodes are here.

        Raises:
            ValueError: if arrays do not fit, or the shape of a mask has two meanings.
            TypeError: if the weights are not an array.
            NotImplementedError: if ``mask`` is given and attention is linear or devices share the nodes, or if the
                implementation needs all nodes on one device.
        """
        mixed = self.mix(x, weights, context=context, mask=mask, is_causal=is_causal, axis_name=axis_name)
        return self.output(mixed.reshape(x.shape))

    def mix(
        self,
        x: Float[Array, "b n d"],
        weights: Float[Array, " m"] | Float[Array, "b m"] | None = None,
        *,
        context: Float[Array, "b m d"] | None = None,
        mask: Bool[Array, "..."] | None = None,
        is_causal: bool = False,
        axis_name: str | None = None,
    ) -> Float[Array, "b n h c"]:
        """Returns the outputs of the heads, which `__call__` merges; takes the arguments of `__call__`."""
        if x.ndim != 3:
            raise ValueError(f"x must have shape (b, n, d), got {x.shape}; for a single sample pass x[None].")
        query, key, value = self.project(x, x if context is None else context)
        check_weights(weights, *key.shape[:2])
        kernel = self.kernel.value
        if isinstance(one_head(kernel), DotProduct | LearnedFeatures):
            if mask is not None:
                raise NotImplementedError("linear attention does not take a mask; give masked nodes the weight 0.")
            query, key = jax.vmap(functools.partial(head_features, kernel))(query, key)
            linear = functools.partial(linear_attention, is_causal=is_causal, axis_name=axis_name)
            return jax.vmap(linear, in_axes=(0, 0, 0, batch_axis(weights)))(query, key, value, weights)

        if mask is not None and axis_name is not None:
            raise NotImplementedError(
                "this layer does not take a mask if devices share the nodes; give masked nodes the weight 0."
            )
        mask, mask_axis = _mask_of_samples(mask, query, key)

        def attend(query: Array, key: Array, value: Array, weights: Array | None, mask: Array | None) -> Array:
            return integral_attention(
                query,
                key,
                value,
                weights,
                kernel=kernel,
                mask=mask,
                is_causal=is_causal,
                implementation=self.implementation,
                axis_name=axis_name,
            )

        axes = (0, 0, 0, batch_axis(weights), mask_axis)
        return jax.vmap(attend, in_axes=axes)(query, key, value, weights, mask)

    def with_connection(
        self,
        z: Float[Array, "b n d"],
        velocity: Float[Array, "b n d"] | Callable[[Array], Array],
        weights: Float[Array, " n"] | Float[Array, "b n"] | None = None,
        *,
        mask: Bool[Array, "..."] | None = None,
        is_causal: bool = False,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
        """F = Attn(z), and C(z; v)_i = a_i v_i − ½ (|v_i|² F_i + Σ_heads Σ_j P_ij |v_j|² V z_j O).

        a_i is the mean over the heads of Σ_j P_ij d/dt (q_i·k_j scale) if tokens move with v. The bias of O is
        the same at all tokens, so it does not enter the forces in C. Linear attention has another metric, where C is
        `jaxop.flows.linear_connection` of the channels of each head.

        Args:
            z: samples, (b, n, d).
            velocity: v, (b, n, d), or a function that computes v from F; the softmax is then applied twice.
            weights: see `__call__`.
            mask: see `__call__`.
            is_causal: see `__call__`.

        Returns:
            (F, C), each (b, n, d).

        Raises:
            NotImplementedError: if the kernel is neither the exponentiated nor the plain dot product.

        Cost: one attention with four times the channels of its values. Linear attention takes O(n d²/h); if causal, it
        runs one token after the other.

        Source: Stein, Li, Steidl, arXiv:2603.16535, corrected study.
        """
        if isinstance(one_head(self.kernel.value), DotProduct):
            force = self(z, weights, mask=mask, is_causal=is_causal)
            v = velocity(force) if callable(velocity) else velocity
            return force, self._linear_connection(z, v, weights, is_causal)
        kernel = check_dot_product(self.kernel.value)
        query, key, value = self.project(z, z)
        check_weights(weights, *key.shape[:2])
        mask, mask_axis = _mask_of_samples(mask, query, key)
        width = z.shape[-1]

        def operator(query: Array, key: Array, weights: Array | None, mask: Array | None) -> Callable[[Array], Array]:
            how = self.implementation
            return averaging_operator(
                query, key, weights, kernel=kernel, mask=mask, is_causal=is_causal, implementation=how
            )

        axes = (0, 0, batch_axis(weights), mask_axis)
        operators = jax.vmap(operator, in_axes=axes)(query, key, weights, mask)
        # the matrices of the projections act on velocities, but not their biases
        matrices = jnp.concatenate([self.query.kernel[...], self.key_value.kernel[:, :width]], axis=1)

        def average(*values: Array) -> list[Array]:
            means = jax.vmap(lambda average, value: average(value))(operators, jnp.concatenate(values, axis=-1))
            return jnp.split(means, len(values), axis=-1)

        def merge(*heads: Array) -> list[Array]:
            rows = jnp.concatenate([a.reshape(-1, width) for a in heads])
            merged = rows @ self.output.kernel[...].astype(rows.dtype)
            return [a.reshape(z.shape) for a in jnp.split(merged, len(heads))]

        def rates(v: Array) -> tuple[Array, Array]:
            moved = (v.reshape(-1, width) @ matrices.astype(v.dtype)).reshape(*z.shape[:2], 2, *query.shape[2:])
            return scaled(kernel, moved[:, :, 0]), moved[:, :, 1]

        return connection(
            velocity,
            scaled(kernel, query),
            key,
            value,
            average=average,
            merge=merge,
            rates=rates,
            inner=lambda a, b: jnp.sum(a * b, axis=(2, 3))[..., None] / self.heads,
            square=lambda v: jnp.sum(v * v, axis=-1, keepdims=True),
            spread=lambda size: size[..., None],
            bias=self.output.bias[...].astype(query.dtype)[None, None, :],
        )

    def _linear_connection(self, z: Array, v: Array, weights: Array | None, is_causal: bool) -> Array:
        connect = functools.partial(linear_connection, ridge=_RIDGE[is_causal], is_causal=is_causal)
        by_head = jax.vmap(connect, in_axes=(1, 1, None), out_axes=1)
        x, u = (a.reshape(*z.shape[:2], self.heads, -1) for a in (z, v))
        return jax.vmap(by_head, in_axes=(0, 0, batch_axis(weights)))(x, u, weights).reshape(z.shape).astype(z.dtype)

    def project(
        self, x: Float[Array, "b n d"], context: Float[Array, "b m d"]
    ) -> tuple[Float[Array, "b n h c"], Float[Array, "b m h c"], Float[Array, "b m h c"]]:
        """Returns the queries of x, and the keys and values of the context, for all heads."""
        (b, n, d), m = x.shape, context.shape[1]
        query = self.query(x).reshape(b, n, self.heads, d // self.heads)
        key_value = self.key_value(context).reshape(b, m, 2, self.heads, d // self.heads)
        return query, key_value[:, :, 0], key_value[:, :, 1]


_RIDGE = {False: 1e-2, True: 1.0}
"""Ridge of `linear_connection` for normalised tokens, by ``is_causal``; 1 is one token at rest per channel."""


def check_weights(weights: object, samples: int, nodes: int, *, argument: str = "weights") -> None:
    """Raises an error unless the weights are None, or an array shared by the samples or with one row per sample."""
    if weights is None:
        return
    if not isinstance(weights, jax.Array | np.ndarray):
        raise TypeError(f"{argument} must be an array, got {type(weights).__name__}; pass domain.weights of a domain.")
    if weights.shape not in ((nodes,), (samples, nodes)):
        raise ValueError(
            f"{argument} must have shape ({nodes},) for all samples, or ({samples}, {nodes}) with rows per sample, got "
            f"{weights.shape}."
        )


def _mask_of_samples(mask: ArrayLike | None, query: Array, key: Array) -> tuple[Array | None, int | None]:
    """Returns the mask in the form of `integral_attention`, and the axis of the samples if it has one."""
    if mask is None:
        return None, None
    mask = jnp.asarray(mask)
    (b, n, heads, _), m = query.shape, key.shape[1]
    forms = {
        "(m,)": ((m,), (1, 1, 1, m)),
        "(n, m)": ((n, m), (1, 1, n, m)),
        "(b, m)": ((b, m), (b, 1, 1, m)),
        "(h, n, m)": ((heads, n, m), (1, heads, n, m)),
        "(b, n, m)": ((b, n, m), (b, 1, n, m)),
    }
    if mask.shape[3:] == (m,) and all(
        size in (1, whole) for size, whole in zip(mask.shape, (b, heads, n), strict=False)
    ):
        forms = {"(b, h, n, m)": ((*mask.shape[:3], m), mask.shape)}
    fitting = {name: full for name, (short, full) in forms.items() if short == mask.shape}
    if not fitting:
        raise ValueError(
            f"mask must have shape (m,), (n, m), (h, n, m), (b, m), (b, n, m) or (b, h, n, m) with b, h, n, m = "
            f"{b}, {heads}, {n}, {m}, where the last may have 1 for b, h and n, got {mask.shape}."
        )
    if len(set(fitting.values())) > 1:
        names, (first, second) = " and as ".join(fitting), fitting.values()
        raise ValueError(
            f"mask of shape {mask.shape} can be read as {names}; pass mask.reshape({first}) for one mask that all "
            f"samples share, or mask.reshape({second}) for one per sample."
        )
    mask = mask.reshape(next(iter(fitting.values())))
    if mask.shape[1] > 1:
        mask = jnp.broadcast_to(mask, (mask.shape[0], heads, n, m))
    else:
        mask = mask[:, 0, 0] if mask.shape[2] == 1 else mask[:, 0]
    return (mask[0], None) if mask.shape[0] == 1 else (mask, 0)


def batch_axis(weights: Array | None) -> int | None:
    """Returns the axis of the samples in quadrature weights; None if the samples share them."""
    return 0 if weights is not None and weights.ndim == 2 else None
