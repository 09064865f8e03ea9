"""Maps of inputs of different lengths to one space, so that a kernel can compare them."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxop._pytree import register
from jaxop._validation import as_float, as_integer
from jaxop.kernel_machines.observations import Observations, moment, observe


@register
@dataclasses.dataclass(frozen=True)
class AffineMap:
    """x ↦ Wᵀ(x − c).

    Attributes:
        matrix: W, (a, r).
        centre: c, (a,).
    """

    matrix: Float[Array, "a r"]
    centre: Float[Array, " a"]

    def __call__(self, x: Float[Array, "n a"]) -> Float[Array, "n r"]:
        """Returns the images of n rows."""
        return (x - self.centre[None, :]) @ self.matrix


def partial_least_squares(
    x: Float[Array | np.ndarray, "nx a"],
    y: Float[Array | np.ndarray, "ny b"],
    responses: object,
    mask: Bool[Array | np.ndarray, "nx ny"] | None = None,
    *,
    rank: int,
) -> tuple[AffineMap, AffineMap]:
    """Maps to the directions of largest covariance with the responses, the leading singular vectors of X̃ᵀ Z Ỹ.

    X̃ and Ỹ are centred with unit variance in each column. Z is centred over the observed pairs and 0 elsewhere.

    Args:
        x: rows of the first domain.
        y: rows of the second.
        responses: z_ij, a matrix or a sparse matrix, see `jaxop.kernel_machines.fit`.
        mask: which pairs are observed, or None for all pairs.
        rank: dimension of the common space, at most min(a, b).

    Returns:
        The maps of both domains. The largest entry of each left singular vector is positive, so that the maps are
        deterministic. They are constants under differentiation.

    Raises:
        ValueError: if the rank is not in 1 … min(a, b), or responses do not fit.

    Source: Wold, "Partial Least Squares", 1985; Bookstein's variant, by one singular value decomposition.

    Example:
        >>> import jax
        >>> from jaxop import kernel_machines
        >>> X, Y = jax.random.normal(jax.random.key(0), (20, 5)), jax.random.normal(jax.random.key(1), (30, 3))
        >>> to_x, to_y = kernel_machines.partial_least_squares(X, Y, X[:, :2] @ Y[:, 1:].T, rank=2)
        >>> to_x(X).shape, to_y(Y).shape
        ((20, 2), (30, 2))
    """
    x, y = as_float(x, "x"), as_float(y, "y")
    return leading_directions(x, y, observe(responses, mask, x.shape[0], y.shape[0], x.dtype), rank)


def leading_directions(
    x: Float[Array, "nx a"], y: Float[Array, "ny b"], observations: Observations, rank: int
) -> tuple[AffineMap, AffineMap]:
    """Returns `partial_least_squares` of checked responses."""
    most, rank = min(x.shape[1], y.shape[1]), as_integer(rank, "rank")
    if not 1 <= rank <= most:
        raise ValueError(f"maps must be a rank between 1 and min(a, b) = {most}, got {rank}.")
    return _leading_directions(*jax.lax.stop_gradient((x, y, observations)), rank)


@functools.partial(jax.jit, static_argnums=3)
def _leading_directions(x: Array, y: Array, observations: Observations, rank: int) -> tuple[AffineMap, AffineMap]:
    (x, x_centre, x_scale), (y, y_centre, y_scale) = _standardised(x), _standardised(y)
    nx, ny = observations.shape
    mean = jnp.sum(moment(observations, jnp.ones((nx, 1), x.dtype), jnp.ones((ny, 1), x.dtype)))
    mean = mean / (observations.fraction() * (nx * ny))
    centred = dataclasses.replace(observations, values=observations.values - mean)
    u, _, v = jnp.linalg.svd(moment(centred, x, y), full_matrices=False)
    u, v = u[:, :rank], v[:rank].T
    signs = jnp.sign(jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), axis=0)[None, :], axis=0))
    return AffineMap(u * signs / x_scale[:, None], x_centre), AffineMap(v * signs / y_scale[:, None], y_centre)


def given_maps(maps: Sequence[object], a: int, b: int, dtype: np.dtype) -> tuple[AffineMap, AffineMap]:
    """Returns the maps x ↦ W_xᵀ x and y ↦ W_yᵀ y of two matrices."""
    matrices = [as_float(w, f"maps[{k}]").astype(dtype) for k, w in enumerate(maps)]
    for k, (matrix, length) in enumerate(zip(matrices, (a, b), strict=True)):
        if matrix.ndim != 2 or matrix.shape[0] != length:
            raise ValueError(
                f"maps[{k}] must have shape ({length}, r), one row per feature of {'XY'[k]}, got {matrix.shape}."
            )
    centres = [jnp.asarray(np.zeros(n, dtype)) for n in (a, b)]
    return AffineMap(matrices[0], centres[0]), AffineMap(matrices[1], centres[1])


def _standardised(points: Array) -> tuple[Array, Array, Array]:
    """Returns centred rows with columns of unit variance, the mean, and the standard deviations (1 instead of 0)."""
    centre = jnp.mean(points, axis=0)
    points = points - centre[None, :]
    scale = jnp.sqrt(jnp.mean(points**2, axis=0))
    scale = jnp.where(scale > 0, scale, 1)
    return points / scale[None, :], centre, scale
