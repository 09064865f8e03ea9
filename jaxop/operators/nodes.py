"""Functions on the nodes of any domain, and the checks that operators share."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxop._validation import accumulator, as_float, is_concrete
from jaxop.domains import Decomposed, Domain, Grid
from jaxop.domains.domain import as_domain
from jaxop.domains.shared import shard_axis


@dataclasses.dataclass(frozen=True)
class NodeFunctions:
    """A batch of functions, on one domain or on one domain each, with the coordinates as last channels.

    Attributes:
        values: [u(x), x], shape (b, n, c + dim), in float32 or wider: half precision merges neighbouring nodes. If the
            form is not "points", `coordinate_features` are in the place of x.
        dtype: dtype of the caller's u.
        weights: quadrature weights of the nodes, (n,), or (b, n) if every sample has its own domain.
        is_single: True if the caller passed one function, False for a batch.
        axis_name: the mapped axis whose devices share the nodes; None means that all nodes are here.
    """

    values: Float[Array, "b n c"]
    dtype: np.dtype
    weights: Float[Array, " n"] | Float[Array, "b n"]
    is_single: bool
    axis_name: str | None

    @property
    def shared(self) -> dict[str, str]:
        """The axis as keywords of attention between the nodes, nothing if all nodes are here."""
        return {} if self.axis_name is None else {"axis_name": self.axis_name}


def node_functions(
    values: ArrayLike,
    domain: Domain | Decomposed,
    *,
    at: Domain | Decomposed | None,
    in_channels: int,
    dim: int,
    form: str = "points",
) -> NodeFunctions:
    """Checks the arguments of a call of an operator and brings them into one form."""
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
    points = coordinates(domain, values.shape[0], dim, "domain")
    points = coordinate_features(points, domain, form).astype(wide)
    weights = jax.vmap(lambda one: one.weights)(domain) if domain.is_batched else domain.weights
    functions = jnp.concatenate([values.astype(wide), points], axis=-1)
    return NodeFunctions(functions, values.dtype, weights, is_single, shard_axis(domain))


def coordinates(domain: Domain | Decomposed, batch: int, dim: int, argument: str) -> Float[Array, "b n dim"]:
    """Returns the coordinates of a batch of samples on one domain or on a stack of domains."""
    domain = as_domain(domain, argument)
    if domain.dim != dim:
        raise ValueError(f"{argument} must have dim={dim} space dimensions like the config, got {domain.dim}.")
    if not domain.is_batched:
        return jnp.broadcast_to(domain.points[None], (batch, domain.size, dim))
    points = jax.vmap(lambda d: d.points)(domain)
    if points.shape[0] != batch:
        raise ValueError(f"{argument} stacks {points.shape[0]} domains for {batch} samples; give one, or one each.")
    return points


def coordinate_features(
    points: Float[Array, "*n dim"], domain: Domain | Decomposed, form: str
) -> Float[Array, "*n features"]:
    """Returns what an operator sees of the coordinates x, see `jaxop.operators.config.CoordinatesConfig`.

    Args:
        points: x.
        domain: the domain of the input, whose box is the period.
        form: "points", "periodic" or "none".

    Returns:
        x; or cos 2π (x_k − l_k)/L_k for all axes k of the box l + [0, L], then the sines; or no channels.

    Raises:
        TypeError: if ``form`` is "periodic" and the domain is not a grid under rules.
    """
    if form == "points":
        return points
    if form == "none":
        return points[..., :0]
    grid = as_domain(domain, "domain")
    if not isinstance(grid, Grid) or grid.has_given_nodes:
        what = "a grid of given nodes" if isinstance(grid, Grid) else f"a {type(grid).__name__}"
        raise TypeError(
            f"coordinates='periodic' needs an input on a grid under rules, whose box is the period, got {what}; build "
            "it with domains.interval or domains.box, or train an operator with coordinates='points' or 'none'."
        )
    lower, upper = (np.asarray(corner, points.dtype) for corner in zip(*(axis.ends for axis in grid.axes), strict=True))
    axes = (1,) * (points.ndim - 1)
    turns = (points - lower.reshape(*axes, -1)) / (upper - lower).reshape(*axes, -1)
    angles = jnp.asarray(2 * math.pi, points.dtype) * turns
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def check_no_initial(initial: object) -> None:
    """Raises ``ValueError`` if an initial condition is given to an operator that does not take one."""
    if initial is not None:
        raise ValueError("initial must be None: only the TransformerNeuralOperator takes an initial condition.")


NO_DECODER = "another `at` needs decoder layers: train an operator with decoder_layers=1."
"""Remedy of `check_same` for operators that may have decoder layers."""


def check_same(at: Domain | Decomposed | None, domain: Domain | Decomposed, remedy: str) -> None:
    """Raises ``NotImplementedError`` unless ``at`` is None, the input's domain, or a domain equal to it."""
    if at is None:
        return
    at, domain = as_domain(at, "at"), as_domain(domain, "domain")
    if at is domain:
        return
    ours, theirs = jax.tree.leaves(domain), jax.tree.leaves(at)
    same = jax.tree.structure(at) == jax.tree.structure(domain) and is_concrete(*ours, *theirs)
    if not (same and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))):
        raise NotImplementedError(f"`at` is not the input's domain (under jit pass the same object or None); {remedy}")
