"""Kernels of projected arguments."""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop.kernels.base import BaseKernel, Kernel, as_kernel
from jaxop.kernels.checks import check_numbers


@functools.partial(register, static=("sign", "is_additive", "epsilon"))
@dataclasses.dataclass(frozen=True)
class Projected(BaseKernel):
    """k(q, k') = k₁(W_Qᵀ q, W_Kᵀ k'), asymmetric if W_Q ≠ W_K; q and k' may differ in length.

    Attributes:
        kernel: k₁, a kernel of vectors of r channels, which its √d counts.
        query_map: W_Q, (d_q, r); one per head, (h, d_q, r), within `PerHead`.
        key_map: W_K, (d_k, r). `jaxop.attention` needs d_k = d_q.

    Raises:
        TypeError: if ``kernel`` is not a `Kernel`.
        ValueError: if the matrices have different r, or vectors do not fit them.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.Projected(kernels.ExpDotProduct(), jnp.ones((3, 2)), jnp.eye(2))
        >>> kernel.tile(jnp.ones((5, 3)), jnp.ones((4, 2))).shape
        (5, 4)
    """

    kernel: Kernel
    query_map: Float[Array, "*h d_q r"]
    key_map: Float[Array, "*h d_k r"]
    sign: str = dataclasses.field(init=False, repr=False)
    is_additive: bool = dataclasses.field(init=False, repr=False)
    epsilon: float = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        kernel = as_kernel(self.kernel)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "sign", kernel.sign)
        object.__setattr__(self, "is_additive", kernel.is_additive)
        object.__setattr__(self, "epsilon", kernel.epsilon)
        check_numbers(self.query_map, "query_map")
        check_numbers(self.key_map, "key_map")
        shapes = jnp.shape(self.query_map), jnp.shape(self.key_map)
        if min(map(len, shapes)) < 2 or shapes[0][-1] != shapes[1][-1]:
            raise ValueError(
                f"query_map and key_map must have shapes (d_q, r) and (d_k, r) with one r, got {shapes[0]} and "
                f"{shapes[1]}; vectors are multiplied from the left, q @ query_map."
            )

    @property
    def parts(self) -> tuple[Kernel, ...]:
        """k₁."""
        return (self.kernel,)

    def __call__(self, a: Float[Array, " d_q"], b: Float[Array, " d_k"]) -> Float[Array, ""]:
        """k₁ of the projected pair."""
        return self.kernel(*self._project(a, b))

    def log(self, a: Float[Array, " d_q"], b: Float[Array, " d_k"]) -> Float[Array, ""]:
        """Log k₁ of the projected pair."""
        return self.kernel.log(*self._project(a, b))

    def tile(self, query: Float[Array, "n d_q"], key: Float[Array, "m d_k"]) -> Float[Array, "n m"]:
        """The tile of k₁ for the projected rows."""
        return self.kernel.tile(*self._project(query, key))

    def _project(self, a: Array, b: Array) -> tuple[Array, Array]:
        for name, vectors, linear in (("query", a, self.query_map), ("key", b, self.key_map)):
            if vectors.shape[-1] != linear.shape[0]:
                raise ValueError(
                    f"{name} has {vectors.shape[-1]} channels, but {name}_map takes {linear.shape[0]}: its shape is "
                    f"{linear.shape}, (d, r), or (h, d, r) within PerHead."
                )
        return a @ self.query_map, b @ self.key_map
