"""Functions on any nodes, grids and scattered ones: what the operators that act on them share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import accumulator, as_float
from jaxop.domains import Decomposed, Domain
from jaxop.domains.domain import as_domain


@dataclasses.dataclass(frozen=True)
class NodeFunctions:
    """A batch of functions on one domain, or one domain each, with the coordinates as last channels.

    Attributes:
        values: [u(x), x], shape (b, n, c + dim), in float32 at least: half precision merges neighbouring nodes.
        dtype: that of the caller's u.
        weights: quadrature weights of the nodes, (n,), or (b, n) if every sample has its own domain.
        is_single: whether the caller passed one function rather than a batch.
    """

    values: Float[Array, "b n c"]
    dtype: np.dtype
    weights: Float[Array, " n"] | Float[Array, "b n"]
    is_single: bool


def node_functions(
    values: Any, domain: Domain | Decomposed, *, at: Domain | Decomposed | None, in_channels: int, dim: int
) -> NodeFunctions:
    """Checks the arguments of an operator's call and brings them into one form."""
    values = as_float(values, "values")
    domain = as_domain(domain, "domain")
    if at is not None:
        as_domain(at, "at")
    is_single = values.ndim == 2
    if values.ndim not in (2, 3) or values.shape[-2:] != (domain.size, in_channels):
        raise ValueError(
            f"values must have shape (n, c_in) = ({domain.size}, {in_channels}), or (b, n, c_in), got {values.shape}."
        )
    values = values[None] if is_single else values
    wide = accumulator(values.dtype)
    points = coordinates(domain, values.shape[0], dim, "domain").astype(wide)
    weights = jax.vmap(lambda one: one.weights)(domain) if domain.is_batched else domain.weights
    return NodeFunctions(jnp.concatenate([values.astype(wide), points], axis=-1), values.dtype, weights, is_single)


def coordinates(domain: Domain | Decomposed, batch: int, dim: int, argument: str) -> Float[Array, "b n dim"]:
    """The coordinates of a batch of samples on one domain or a stack of them."""
    domain = as_domain(domain, argument)
    if domain.dim != dim:
        raise ValueError(f"{argument} must have dim={dim} space dimensions like the config, got {domain.dim}.")
    if not domain.is_batched:
        return jnp.broadcast_to(domain.points[None], (batch, domain.size, dim))
    points = jax.vmap(lambda d: d.points)(domain)
    if points.shape[0] != batch:
        raise ValueError(f"{argument} stacks {points.shape[0]} domains for {batch} samples; give one, or one each.")
    return points
