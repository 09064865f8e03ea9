"""Landmarks, a few rows that represent a sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxop._validation import as_integer, check_rng_key


def choose_landmarks(
    points: Float[Array, "n d"], count: int, rng_key: Key[Array, ""] | None = None
) -> Int[Array, " p"]:
    """Indices of rows far from each other; the next is drawn with probability ∝ D_i², or has the largest D_i.

    D_i is the distance from row i to the nearest landmark so far.

    Args:
        points: rows, (n, d).
        count: number of landmarks, at most n.
        rng_key: key of the draws (the seeding of k-means++). None takes the farthest row each time, starting at the
            row nearest to the mean; this is deterministic but sensitive to outliers.

    Returns:
        Different indices, in the order of their choice; ``arange(n)`` if ``count`` is n.

    Raises:
        TypeError: if the count is not an integer, or the key is not a random key.
        ValueError: if the count is not in 1 … n, or points are not rows.

    Cost: O(n p d) operations, O(n + d) memory.

    Source: Gonzalez, "Clustering to Minimize the Maximum Intercluster Distance", 1985; Arthur, Vassilvitskii,
        "k-means++: The Advantages of Careful Seeding", 2007.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernel_machines
        >>> kernel_machines.choose_landmarks(jnp.asarray([[0.0], [0.1], [1.0], [3.0]]), 2)
        Array([2, 3], dtype=int32)
    """
    if points.ndim != 2:
        raise ValueError(f"points must have shape (n, d), one row per point, got {points.shape}.")
    if rng_key is not None:
        check_rng_key(rng_key)
    n, count = points.shape[0], as_integer(count, "count")
    if not 1 <= count <= n:
        raise ValueError(f"landmarks must be between 1 and the number of points, {n}, got {count}; lower it.")
    if count == n:
        return jnp.asarray(np.arange(n, dtype=np.int32))
    return _choose(jax.lax.stop_gradient(points), rng_key, count)


@functools.partial(jax.jit, static_argnums=2)
def _choose(points: Array, rng_key: Array | None, count: int) -> Array:
    def distances(i: Array) -> Array:
        return jnp.sum((points - points[i][None, :]) ** 2, axis=1)

    def add(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, nearest = state
        if rng_key is None:
            i = jnp.argmax(nearest)
        else:
            logits = jnp.where(nearest < 0, -jnp.inf, jnp.log(jnp.maximum(nearest, jnp.finfo(nearest.dtype).tiny)))
            i = jax.random.categorical(jax.random.fold_in(rng_key, k), logits)
        nearest = jnp.minimum(nearest, distances(i)).at[i].set(-1)  # chosen, hence below duplicates at distance 0
        return chosen.at[k].set(i.astype(np.int32)), nearest

    if rng_key is None:
        first = jnp.argmin(jnp.sum((points - jnp.mean(points, axis=0)[None, :]) ** 2, axis=1))
    else:
        first = jax.random.randint(rng_key, (), 0, points.shape[0])
    chosen = jnp.zeros(count, np.int32).at[0].set(first.astype(np.int32))
    return jax.lax.fori_loop(1, count, add, (chosen, distances(first).at[first].set(-1)))[0]
