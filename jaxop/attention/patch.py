"""Attention between functions on patches: scores are L2 inner products over the reference patch."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxop._pytree import register
from jaxop._validation import accumulator, as_float, is_concrete
from jaxop._varying import varying_like
from jaxop.attention.integral import DENSE_LIMIT, integral_attention
from jaxop.attention.operands import Mask, accumulation_dtype
from jaxop.domains import Partition
from jaxop.kernels import ExpDotProduct, Kernel, PerHead, Projected
from jaxop.kernels.base import as_kernel
from jaxop.kernels.per_head import one_head
from jaxop.spectral import Band, isometric


def patch_attention(
    query: Float[Array, "p s h d"],
    key: Float[Array, "q s h d"],
    value: Float[Array, "q s h c"],
    weights: Float[Array, " s"] | None = None,
    *,
    kernel: Kernel | PerHead | None = None,
    mask: Bool[Array, " q"] | Bool[Array, "p k"] | Bool[Array, "h p k"] | None = None,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "p s h c"]:
    """A_j(x) = Σ_k softmax_k(⟨Q_j, K_k⟩) V_k(x), ⟨Q_j, K_k⟩ = ∫_patch Q_j(x)·K_k(x) dx, per head.

    A token is a function on the reference patch. The score does not depend on how many nodes sample the function, and
    the values mix at the same place x of all patches. This is `integral_attention` over equally weighted patches,
    applied to the vectors √w_i Q(x_i), with any kernel. A kernel of distances (the Gaussian) takes the L2 distance of
    two functions, and √d counts the channels. If log k is a sum over channels (the Fourier integral kernel, the
    intersection), it is integrated: log k(Q_j, K_k) = ∫_patch log k(Q_j(x), K_k(x)) dx. For the Fourier integral
    kernel the integrand is singular where R |Q_j − K_k| passes a multiple of π. The quadrature loses its order there.

    Args:
        query: p functions of d channels and h heads at the s nodes of a patch, (p, s, h, d).
        key: q functions, (q, s, h, d).
        value: q functions, (q, s, h, c).
        weights: quadrature weights of ONE patch in the measure of the whole domain, (s,), in units of
            length^dim; see `patch_weights`. None means 1/(q s), a domain of measure 1 (q counts the patches of all
            devices). The derivative in a weight of 0 exists for kernels of inner products only.
        kernel: a kernel of `jaxop.kernels` that is not signed, one for all heads or `jaxop.kernels.PerHead`; None means
            ``ExpDotProduct(scale=1.0)``. The d of 1/√d counts the channels.
        mask: True where a query patch may see a key patch: (q,), (p, q) or (h, p, q).
        implementation: one of `jaxop.attention.IMPLEMENTATIONS`, or None to choose; see `integral_attention`.
        axis_name: the mapped axis of `jax.shard_map` over whose devices the patches are distributed. Each passes its
            own whole patches, as many as every other device; see `integral_attention`, also for the mask. None means
            that all patches are here.

    Returns:
        Functions on the patches, (p, s, h, c), in the dtype of ``value``.

    Raises:
        ValueError: if shapes do not fit, the kernel is signed, or for the reasons of `integral_attention`.
        NotImplementedError: if the kernel is `Projected`, if some parts of it are sums over channels and others
            are not, or for the reasons of `integral_attention` with ``axis_name``.

    Cost: O(p q s h (d + c)). Over devices, keys and values travel round them: each sends q s h (d + c) numbers as
        often as there are devices, in the backward pass twice as many.

    Source: Calvello, Kovachki, Levine, Stuart, "Continuum Attention for Neural Operators",
        arXiv:2406.06486.

    Example:
        >>> import jax
        >>> from jaxop import attention, domains
        >>> cut = domains.partition(domains.box((8, 8), rule="midpoint"), (2, 2))
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 4, 16, 2, 5))
        >>> attention.patch_attention(q, k, v, attention.patch_weights(cut)).shape
        (4, 16, 2, 5)
    """
    query, key, value = (as_float(a, name) for a, name in ((query, "query"), (key, "key"), (value, "value")))
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim != 4 or array.shape[1] != query.shape[1]:
            raise ValueError(
                f"{name} must have shape (patches, nodes of a patch, heads, channels) with the nodes of query, "
                f"{query.shape[1:2]}, got {array.shape}; use Partition.split, and jax.vmap for a batch."
            )
    _check(query, key, value)
    kernel = _check_kernel(kernel)
    s, dtype = query.shape[1], accumulation_dtype(query, key)
    patches = key.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    weights = jnp.full(s, 1 / (patches * s), dtype) if weights is None else as_float(weights, "weights")
    if weights.shape != (s,):
        raise ValueError(
            f"weights must have shape (s,) = ({s},), one per node of a patch, got {weights.shape}; see patch_weights."
        )
    weights = weights.astype(dtype)
    root = jnp.sqrt(weights)
    factors = root, root
    if kernel is not None and kernel.is_additive:
        kernel, factors = _over_patch(kernel, weights), (jnp.ones_like(root),) * 2
    elif kernel is None or isinstance(one_head(kernel), ExpDotProduct):
        # r Q · (w/r) K is w Q·K for every r, so that the derivative in a weight of 0 survives
        root = jax.lax.stop_gradient(jnp.where(weights > 0, root, 1))
        factors = root, weights / root

    def vectors(functions: Array, factor: Array) -> Array:
        # half precision rounds the functions but not the measure
        scaled = (functions.astype(dtype) * factor[None, :, None, None]).astype(functions.dtype)
        return jnp.moveaxis(scaled, 2, 1).reshape(scaled.shape[0], scaled.shape[2], -1)

    tokens = jnp.moveaxis(value, 2, 1)  # (q, h, s, c)
    scaled = vectors(query, factors[0]), vectors(key, factors[1])
    out = _attend(*scaled, tokens, query.shape[-1], kernel, mask, implementation, axis_name)
    return jnp.moveaxis(out, 1, 2)


def spectral_patch_attention(
    query: Float[Array, "2 m p h d"],
    key: Float[Array, "2 m q h d"],
    value: Float[Array, "2 m q h c"],
    band: Band,
    weight: Float[Array, ""] | float,
    *,
    kernel: Kernel | PerHead | None = None,
    mask: Bool[Array, " q"] | Bool[Array, "p k"] | Bool[Array, "h p k"] | None = None,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[Array, "2 m p h c"]:
    """`patch_attention` between band-limited functions given by their Fourier coefficients.

    By Parseval's identity ∫_patch Q·K dx = w Σ_k Re conj(Q̂(k))·K̂(k) over the kept coefficients, and mixing by
    softmax weights is linear. Only the result returns to physical space, by `spectral.synthesis`. The cost does not
    depend on the number of nodes.

    Args:
        query: coefficients of p functions in the scaling of `spectral.analysis`, (2, m, p, h, d).
        key: (2, m, q, h, d).
        value: (2, m, q, h, c).
        band: the band of a PATCH.
        weight: the common quadrature weight w of a node, in units of length^dim.
        kernel: a kernel of inner products or distances, see `patch_attention`; None means
            ``ExpDotProduct(scale=1.0)``.
        mask: True where a query patch may see a key patch: (q,), (p, q) or (h, p, q).
        implementation: one of `jaxop.attention.IMPLEMENTATIONS`, or None to choose.
        axis_name: see `patch_attention`.

    Returns:
        Coefficients (2, m, p, h, c).

    Raises:
        ValueError: for the reasons of `patch_attention`.
        NotImplementedError: if the kernel is a sum over channels, or for the reasons of `integral_attention` with
            ``axis_name``.

    Cost: O(p q m h (d + c)). Over devices, coefficients of keys and values travel round them, as in `patch_attention`.

    Source: Calvello et al., arXiv:2406.06486; Parseval's identity.

    Example:
        >>> import jax
        >>> from jaxop import attention, spectral
        >>> band = spectral.Band((8, 8), (2, 2))
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, band.size, 4, 2, 5))
        >>> attention.spectral_patch_attention(q, k, v, band, 1 / 256).shape
        (2, 8, 4, 2, 5)
    """
    _check(query, key, value, patches=2)
    kernel = _check_kernel(kernel)
    if kernel is not None and kernel.is_additive:
        raise NotImplementedError(
            f"{type(one_head(kernel)).__name__} is a sum over channels and nodes, which coefficients do not have; "
            "use patch_attention."
        )
    root = jnp.sqrt(jnp.asarray(weight, query.dtype))

    def vectors(coefficients: Array) -> Array:
        _, _, p, heads, _ = coefficients.shape
        scaled = isometric(coefficients, band) * root.astype(coefficients.dtype)
        return jnp.moveaxis(scaled, (2, 3), (0, 1)).reshape(p, heads, -1)

    tokens = jnp.moveaxis(value, (2, 3), (0, 1))  # (q, h, 2, m, c)
    depth = query.shape[-1]
    out = _attend(vectors(query), vectors(key), tokens, depth, kernel, mask, implementation, axis_name)
    return jnp.moveaxis(out, (0, 1), (2, 3))


@functools.partial(register, static=("sign", "epsilon"))
@dataclasses.dataclass(frozen=True)
class _OverPatch(Kernel):
    """log k(Q, K) = Σ_i w_i log k(Q(x_i), K(x_i)) of functions, each a vector that holds node after node."""

    kernel: Kernel
    weights: Array
    sign: str
    epsilon: float

    def log(self, a: Array, b: Array) -> Array:
        return self.tile(a[None], b[None])[0, 0]

    def __call__(self, a: Array, b: Array) -> Array:
        return jnp.exp(self.log(a, b))

    def tile(self, query: Array, key: Array) -> Array:
        @jax.checkpoint
        def add(total: Array, node: tuple[Array, Array, Array]) -> tuple[Array, None]:
            weight, query, key = node
            return total + weight * self.kernel.tile(query, key), None

        def nodes(x: Array) -> Array:
            return jnp.moveaxis(x.reshape(x.shape[0], self.weights.size, -1), 1, 0)

        start = varying_like(
            jnp.zeros((query.shape[0], key.shape[0]), query.dtype), query, key, self.weights, self.kernel
        )
        return jax.lax.scan(add, start, (self.weights, nodes(query), nodes(key)))[0]


def _over_patch(kernel: Kernel | PerHead, weights: Array) -> Kernel | PerHead:
    if isinstance(kernel, PerHead):
        measure = jnp.broadcast_to(weights[None], (kernel.heads, weights.size))
        return PerHead(_OverPatch(kernel.kernel, measure, kernel.sign, kernel.epsilon))
    return _OverPatch(kernel, weights, kernel.sign, kernel.epsilon)


def patch_weights(cut: Partition) -> Float[Array, " s"]:
    """Returns the quadrature weights that all patches of a partition share, (s,), in the measure of the whole domain.

    Args:
        cut: a partition of a grid, see `jaxop.domains.partition`.

    Returns:
        One weight per node of a patch.

    Raises:
        ValueError: if the patches are not copies of one reference patch.

    Example:
        >>> from jaxop import attention, domains
        >>> cut = domains.partition(domains.interval(8, rule="midpoint"), (2,))
        >>> print(attention.patch_weights(cut))
        [0.125 0.125 0.125 0.125]
    """
    weights = cut.weights
    if not cut.domain.has_equal_weights:
        rows = np.asarray(weights) if is_concrete(weights) else None
        if rows is None or not np.allclose(rows, rows[:1], rtol=1e-5, atol=0):
            raise ValueError(
                "patch attention needs patches with the same quadrature weights, but they differ for a grid with rules "
                f"{cut.domain.rules}; build it with rule='midpoint' or 'periodic'."
            )
    return weights[0]


def _check(query, key, value, patches=0):
    """Raises ``ValueError`` unless keys fit queries and values fit keys; axis ``patches`` holds patches."""
    (heads, depth), q = query.shape[-2:], key.shape[patches]
    if key.shape[-2:] != (heads, depth):
        raise ValueError(
            f"key must have {heads} heads of {depth} channels to match query {query.shape}, got {key.shape}."
        )
    if value.shape[-2] != heads or value.shape[patches] != q:
        raise ValueError(f"value must have {q} patches and {heads} heads to match key {key.shape}, got {value.shape}.")


def _check_kernel(kernel: Kernel | PerHead | None) -> Kernel | PerHead | None:
    """Raises an error if the meaning of the kernel between functions is undefined or ambiguous."""
    if kernel is None:
        return None
    kernel = kernel if isinstance(kernel, PerHead) else as_kernel(kernel)
    name = type(one_head(kernel)).__name__
    if kernel.sign == "signed":
        raise ValueError(
            f"a signed kernel cannot be normalised, but attention between functions is, got {name}; use a "
            "positive or nonnegative kernel."
        )
    if kernel.is_additive:
        return kernel
    parts = [one_head(kernel)]
    for part in parts:
        parts += part.parts
        if part.is_additive:
            raise NotImplementedError(
                f"{type(part).__name__} is a sum over channels and nodes, but other parts of {name} are not; between "
                "functions, combine only kernels that are sums over channels, or only kernels that are not."
            )
        if isinstance(part, Projected):
            raise NotImplementedError(
                "Projected maps the channels of one vector, but a function on a patch has a vector at every node; "
                "project query and key first and pass the inner kernel."
            )
    return kernel


def _attend(
    query: Array,
    key: Array,
    tokens: Array,
    depth: int,
    kernel: Kernel | PerHead | None,
    mask: Mask | None,
    implementation: str | None,
    axis_name: str | None,
) -> Array:
    """Mixes tokens (q, h, ...) by the attention of vectors (p, h, k) and (q, h, k), functions of ``depth`` channels."""
    # the number of channels, because the length of the vectors depends on the resolution
    kernel = ExpDotProduct(scale=1.0) if kernel is None else kernel.with_depth(depth)
    (p, heads), q, length = query.shape[:2], key.shape[0], math.prod(tokens.shape[2:])
    options = {"kernel": kernel, "mask": mask, "implementation": implementation, "axis_name": axis_name}
    attend = functools.partial(integral_attention, **options)
    if axis_name is None and q < length and p * q <= DENSE_LIMIT:
        # few long tokens: form the small matrix of softmax weights (attention of the unit tokens), then one product
        unit = jnp.broadcast_to(jnp.eye(q, dtype=query.dtype)[:, None, :], (q, heads, q))
        matrix = attend(query, key, unit).astype(tokens.dtype)
        factors = jnp.moveaxis(matrix, 1, 0), jnp.moveaxis(tokens.reshape(q, heads, length), 1, 0)
        mixed = jnp.matmul(*factors, preferred_element_type=accumulator(tokens.dtype)).astype(tokens.dtype)
        return jnp.moveaxis(mixed, 0, 1).reshape(p, *tokens.shape[1:])
    flat = tokens.reshape(q, heads, length)
    return attend(query, key, flat).reshape(p, *tokens.shape[1:])
