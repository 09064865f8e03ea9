"""The exponentiated intersection kernel."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._eager import compiled
from jaxop._pytree import register
from jaxop._varying import varying_like
from jaxop.kernels.base import BaseKernel
from jaxop.kernels.channels import sum_over_channels
from jaxop.kernels.checks import check_numbers


@register
@dataclasses.dataclass(frozen=True)
class Intersection(BaseKernel):
    """k(q, k') = exp(scale · Σ_l min(q_l, k'_l)).

    As min(a, b) = (a + b − |a − b|)/2, k is e^{s Σ q/2} e^{s Σ k'/2} exp(−s |q − k'|₁ / 2) with s the scale, a Laplace
    kernel times a function of each argument. For s > 0 the matrix k(x_i, x_j) is therefore positive semi-definite for
    all real vectors, and positive definite if they differ. The sums Σ_l min are positive semi-definite for vectors
    without negative entries; for others they are conditionally definite, for coefficients of sum 0. Normalised over
    the keys, k is the Laplace kernel under the quadrature weights w_j exp(s Σ_l k_jl / 2).

    Attributes:
        scale: s, in units of one over the channels; a number or scalar array (trainable). The published kernel has 1,
            which is sharper than softmax; with 1/√d attention starts about as soft. One per head, (h,), within
            `PerHead`.

    Where q_l = k'_l, the derivative of min is the derivative in q_l.

    Cost: `tile` takes two operations per pair and channel, its derivatives twice as many. Memory is O(n m), also for
        derivatives of any order. Reverse mode only.

    Source: Wright, Gonzalez, "Transformers are Deep Infinite-Dimensional Non-Mercer Binary Kernel Machines",
        arXiv:2106.01506.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(f"{kernels.Intersection()(jnp.array([1.0, 5.0]), jnp.array([2.0, 0.0])):.4f}")  # exp(1 + 0)
        2.7183
    """

    scale: float | Array = 1.0

    sign = "positive"
    is_additive = True
    """Log k is a sum over the channels."""

    def __post_init__(self):
        check_numbers(self.scale, "scale")

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """exp(scale · Σ_l min(a_l, b_l))."""
        return jnp.exp(self.log(a, b))

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Scale · Σ_l min(a_l, b_l)."""
        return self.scale * jnp.sum(jnp.minimum(a, b))

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Scale · Σ_l min(q_il, k_jl), one block of channels after another."""
        return self.scale * sums_of_minima(query, key)


def sums_of_minima(query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Σ_l min(q_il, k_jl); the backward pass keeps only the arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.intersection import sums_of_minima
        >>> print(sums_of_minima(jnp.array([[1.0, 5.0]]), jnp.array([[2.0, 0.0]])))
        [[1.]]
    """
    return _sums_of_minima(*varying_like((query, key)))


@jax.custom_vjp
def _sums_of_minima(query: Array, key: Array) -> Array:
    return sum_over_channels(jnp.minimum, [query], [key])


@jax.custom_vjp
def _selected(u: Array, v: Array, query: Array, key: Array) -> Array:
    """Σ_l (u_il where q_il ≤ k_jl, v_jl elsewhere), linear in u and v."""
    return sum_over_channels(_select, [u, query], [v, key])


def _select(u: Array, q: Array, v: Array, k: Array) -> Array:
    return jnp.where(q <= k, u, v)


@jax.custom_vjp
@compiled()
def _shares(cotangent: Array, query: Array, key: Array) -> tuple[Array, Array]:
    """Σ_j g_ij where q_il ≤ k_jl, and Σ_i g_ij elsewhere: (n, d) and (m, d), the transpose of `_selected`."""

    def one_channel(channel: tuple[Array, Array]) -> tuple[Array, Array]:
        q, k = channel
        share = jnp.where(q[:, None] <= k[None, :], cotangent, 0)
        return jnp.sum(share, axis=1), jnp.sum(share, axis=0)

    by_query, by_key = jax.lax.map(one_channel, (query.T, key.T))
    return by_query.T, jnp.sum(cotangent, axis=0)[:, None] - by_key.T


def _keep(function):
    return lambda *arguments: (function(*arguments), arguments)


_sums_of_minima.defvjp(_keep(_sums_of_minima), lambda residuals, g: _shares(g, *residuals))
_selected.defvjp(
    _keep(_selected), lambda residuals, g: (*_shares(g, *residuals[2:]), *map(jnp.zeros_like, residuals[2:]))
)
_shares.defvjp(
    _keep(_shares), lambda residuals, g: (_selected(*g, *residuals[1:]), *map(jnp.zeros_like, residuals[1:]))
)
