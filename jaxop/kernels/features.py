"""Kernels of finitely many learned features."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxop._pytree import register
from jaxop.kernels.base import BaseKernel


@functools.partial(register, static=("query_map", "key_map"))
@dataclasses.dataclass(frozen=True)
class LearnedFeatures(BaseKernel):
    """k(q, k') = ⟨Φ_θ(q), Ψ_θ(k')⟩, a signed kernel of rank r with any two maps Φ and Ψ.

    Attention must not normalise it. For one head ``linear_attention(*kernel.features(query, key), …)`` takes time
    linear in the nodes; `jaxop.nn.IntegralAttention` does this.

    Attributes:
        query_map: Φ, called as ``query_map(params[0], q)`` with q of shape (d,); returns (r,). Two kernels have the
            same tree structure if their maps are the same objects.
        key_map: Ψ, called as ``key_map(params[1], k)``; returns (r,).
        params: the parameters of both maps, two pytrees of trainable arrays; one per head, with a leading axis of
            heads on every leaf, within `PerHead`.

    Raises:
        TypeError: if a map cannot be called, or ``params`` is not a pair.

    Cost: `tile` takes (n + m) evaluations of the maps and one matrix product, O(n m r).

    Source: Wright, Gonzalez, "Transformers are Deep Infinite-Dimensional Non-Mercer Binary Kernel Machines",
        arXiv:2106.01506.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> def affine(params, x):
        ...     return x @ params
        >>> kernel = kernels.LearnedFeatures(affine, affine, (jnp.ones((4, 2)), jnp.ones((3, 2))))
        >>> print(kernel(jnp.ones(4), jnp.ones(3)))  # 2 · 4 · 3
        24.0
    """

    query_map: Callable[[PyTree, Array], Array]
    key_map: Callable[[PyTree, Array], Array]
    params: tuple[PyTree, PyTree]

    sign = "signed"

    def __post_init__(self):
        for name in ("query_map", "key_map"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function (params, x) -> features, got {getattr(self, name)!r}.")
        if not isinstance(self.params, tuple) or len(self.params) != 2:
            raise TypeError(
                "params must be the pair (parameters of query_map, parameters of key_map), got "
                f"{type(self.params).__name__}; pass () for a map without parameters."
            )

    def __call__(self, a: Float[Array, " d_q"], b: Float[Array, " d_k"]) -> Float[Array, ""]:
        """⟨Φ(a), Ψ(b)⟩."""
        return jnp.dot(self.query_map(self.params[0], a), self.key_map(self.params[1], b))

    def features(
        self, query: Float[Array, "n d_q"], key: Float[Array, "m d_k"]
    ) -> tuple[Float[Array, "n r"], Float[Array, "m r"]]:
        """Rows whose inner products are the kernel: Φ of every query and Ψ of every key."""
        maps = zip((self.query_map, self.key_map), self.params, (query, key), strict=True)
        by_query, by_key = (jax.vmap(functools.partial(apply, params))(rows) for apply, params, rows in maps)
        return by_query, by_key

    def tile(self, query: Float[Array, "n d_q"], key: Float[Array, "m d_k"]) -> Float[Array, "n m"]:
        """Φ(Q) Ψ(K)ᵀ, one matrix product of the features of all rows."""
        by_query, by_key = self.features(query, key)
        return by_query @ by_key.T
