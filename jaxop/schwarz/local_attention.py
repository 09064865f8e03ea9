"""Two-level Schwarz attention with an input-dependent kernel: local attention inside subdomains, and coarse tokens."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._eager import compiled, in_turn
from jaxop._platform import platform
from jaxop._validation import accumulator, as_float
from jaxop.attention.closing import is_closed
from jaxop.attention.integral import integral_attention
from jaxop.kernels import ExpDotProduct, Kernel, PerHead
from jaxop.schwarz.decomposition import Decomposition
from jaxop.schwarz.operator import check_decomposition


def subdomain_attention(
    query: Float[Array, "n h d"],
    key: Float[Array, "n h d"],
    value: Float[Array, "n h c"],
    decomposition: Decomposition,
    *,
    kernel: Kernel | PerHead | None = None,
    implementation: str | None = None,
) -> Float[Array, "n h c"]:
    """A(x) = Σ_i D_i(x) ∫ k(q(x), k(y)) v(y) D_i(y) dy / ∫ k(q(x), k(y)) D_i(y) dy, D the partition of unity.

    This is the local level of two-level Schwarz attention: `integral_attention` inside every overlapping subdomain in
    the measure D_i dy, blended by D_i. The measures of all subdomains add up to that of the domain. If D_i falls to 0
    smoothly ("ramp"), quadratures keep their order on grids that are not aligned with the subdomains. With one
    subdomain it is attention on the whole domain. Constants are reproduced for any number of subdomains, at every node
    of positive weight. If a kernel has ε > 0, the m of `integral_attention` is the size s of the largest subdomain.

    Args:
        query: q at the nodes of the domain, (n, h, d).
        key: k, (n, h, d).
        value: v, (n, h, c).
        decomposition: a decomposition of the domain, see `jaxop.schwarz.decompose`.
        kernel: any normalisable kernel for all heads, or `jaxop.kernels.PerHead`; None means ``ExpDotProduct()``.
        implementation: the implementation of `integral_attention` inside a subdomain; None means ``"chunked"``.

    Returns:
        Shape (n, h, c), in the dtype of ``value``.

    Raises:
        ValueError: if shapes do not fit, or for the reasons of `integral_attention`.

    Cost: O(n s h (d + c)) time for subdomains of s nodes, linear in n for fixed s; O(n (d + c) h) memory in addition to
        that of the subdomains computed at a time.

    Source: Köhler, Rheinbach, "Hierarchical Attention via Domain Decomposition", arXiv:2606.18525, for a linear
        operator. The dependence of its entries on the input is our addition.

    Example:
        >>> import jax
        >>> from jaxop import domains, schwarz
        >>> cut = schwarz.decompose(domains.box((16, 16), rule="midpoint"), 4, 2, partition="ramp")
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 256, 2, 4))
        >>> schwarz.subdomain_attention(q, k, v, cut).shape
        (256, 2, 4)
    """
    check_decomposition(decomposition)
    query, key, value = (as_float(a, name) for a, name in ((query, "query"), (key, "key"), (value, "value")))
    n = decomposition.domain.size
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim != 3 or array.shape[0] != n or array.shape[1] != query.shape[1]:
            raise ValueError(
                f"{name} must have shape (n, h, c) = ({n}, h, c) with the heads of query, one row per node of the "
                f"decomposed domain, got {array.shape}; use jax.vmap for a batch."
            )

    heads = query.shape[1]

    def restrict(array: Array) -> Array:
        local = decomposition.restrict(array.reshape(n, -1))
        return local.reshape(*local.shape[:2], heads, -1)

    weights = decomposition.restrict(decomposition.domain.weights[:, None])[..., 0] * decomposition.partition
    operands = restrict(query), restrict(key), restrict(value), weights

    how = implementation or "chunked"
    kernel = ExpDotProduct() if kernel is None else kernel

    def one(operands: tuple[Array, Array, Array, Array]) -> Array:
        return integral_attention(*operands, kernel=kernel, implementation=how)

    together = max(1, _scores(heads) // decomposition.local_size**2)
    if together >= decomposition.subdomains:
        local = jax.vmap(lambda *arrays: one(arrays))(*operands)
    else:
        if how != "chunked":
            recomputed = functools.partial(_recomputed, kernel=kernel, implementation=how)
            one = recomputed if is_closed(kernel) else jax.checkpoint(one)
        local = in_turn(one, operands, batch_size=together if together > 1 else None)
    blended = local * decomposition.partition.astype(local.dtype)[:, :, None, None]
    return decomposition.prolong(blended.reshape(*local.shape[:2], -1)).reshape(n, heads, -1)


def coarse_averages(
    values: Float[Array, "n c"], decomposition: Decomposition
) -> tuple[Float[Array, "n0 c"], Float[Array, " n0"]]:
    """∫ φ_I v / ∫ φ_I of every coarse function φ_I, and ∫ φ_I itself: coarse tokens and their quadrature weights.

    Both are 0 if ∫ φ_I is not positive, because φ_I vanishes at all nodes or is a given signed function.

    Args:
        values: v at the nodes of the domain, (n, c).
        decomposition: a decomposition with a coarse space.

    Returns:
        Tokens (n0, c) and weights (n0,), in units of length^dim.

    Raises:
        ValueError: if there is no coarse space, or values do not fit.

    Cost: O(n c).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, schwarz
        >>> cut = schwarz.decompose(domains.interval(64), 4, 2, coarse="partition")
        >>> tokens, weights = schwarz.coarse_averages(jnp.full((64, 1), 3.0), cut)
        >>> print(tokens.round(4).ravel(), weights.sum().round(4))
        [3. 3. 3. 3.] 1.0
    """
    values = as_float(values, "values")
    wide = values.astype(accumulator(values.dtype))
    measure = decomposition.coarsen(jnp.ones_like(wide[:, :1]))
    seen = measure > 0  # on another grid a narrow function may vanish at all nodes
    means = jnp.where(seen, decomposition.coarsen(wide) / jnp.where(seen, measure, 1), 0)
    return means.astype(values.dtype), jnp.maximum(measure[:, 0], 0)  # half precision would lose small weights


@compiled(static=("implementation",))
def _recomputed(operands: tuple[Array, Array, Array, Array], kernel: Kernel | PerHead, implementation: str) -> Array:
    """Returns attention whose scores are recomputed for the derivative."""

    @jax.checkpoint
    def attend(operands: tuple[Array, Array, Array, Array], kernel: Kernel | PerHead) -> Array:
        return integral_attention(*operands, kernel=kernel, implementation=implementation)

    return attend(operands, kernel)


def _scores(heads: int) -> int:
    """Returns how many scores per head are computed at a time; on a CPU those of one head fit the cache."""
    return 1 << 15 if platform() == "cpu" else (1 << 22) // heads
