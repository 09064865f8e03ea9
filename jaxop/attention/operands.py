"""Operands of every form of attention, checked once."""

import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxop._pytree import register
from jaxop._validation import as_float
from jaxop.domains.measure import uniform_weights
from jaxop.kernels import ExpDotProduct, FunctionKernel, Kernel, PerHead
from jaxop.kernels.base import as_kernel

K = TypeVar("K")

Mask = Bool[Array, " m"] | Bool[Array, "n k"] | Bool[Array, "h n k"]
"""True where a query may see a key: (m,) for all queries, (n, k) for all heads, or one matrix per head.

k = m, unless several devices share the keys: then the columns of a matrix are those of all devices.
"""


@functools.partial(register, static=("is_causal",))
@dataclasses.dataclass(frozen=True)
class Operands:
    """Arrays of one attention call and the kernel between them; `check_operands` builds them.

    Attributes:
        query: q_i, (n, h, d).
        key: k_j, (m, h, d).
        value: v_j, (m, h, c).
        weights: the measure of the keys, (m,); None means 1/m.
        kernel: a kernel k for all heads, or `jaxop.kernels.PerHead`.
        mask: True where a query may see a key: (m,), (n, m) or (h, n, m).
        is_causal: whether query i sees only keys j ≤ i.
    """

    query: Float[Array, "n h d"]
    key: Float[Array, "m h d"]
    value: Float[Array, "m h c"]
    weights: Float[Array, " m"] | None
    kernel: Kernel | PerHead
    mask: Mask | None = None
    is_causal: bool = False

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.query.shape[0]

    @property
    def keys(self) -> int:
        """Number of keys."""
        return self.key.shape[0]

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.query.shape[1]

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype in which sums are accumulated."""
        return accumulation_dtype(self.query, self.key, self.value)

    @property
    def pair_mask(self) -> Mask | None:
        """The mask, including the causal order."""
        if not self.is_causal:
            return self.mask
        causal = jnp.tri(self.queries, dtype=bool)
        if self.mask is None:
            return causal
        if self.mask.ndim == 1:
            return causal & self.mask[None, :]
        return (causal if self.mask.ndim == 2 else causal[None]) & self.mask

    def measure(self, dtype: jnp.dtype) -> Float[Array, " m"]:
        """Returns the weights of the keys."""
        return uniform_weights(self.keys, dtype) if self.weights is None else self.weights.astype(dtype)

    def with_value(self, value: ArrayLike) -> "Operands":
        """Returns operands with the same queries, keys and kernel, and other values.

        Raises:
            ValueError: if the values do not fit the keys.
        """
        value = as_float(value, "value")
        _check_value(value, self.keys, self.heads)
        return dataclasses.replace(self, value=value)


def check_operands(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kernel: Kernel | PerHead | None = None,
    mask: ArrayLike | None = None,
    is_causal: bool = False,
    shares: int = 1,
) -> Operands:
    """Returns the arrays of an attention call as JAX arrays that fit each other and the kernel.

    A mask of pairs has columns for the keys of all devices, if ``shares`` devices hold as many keys each.

    Raises:
        ValueError: if shapes do not fit, or if ``is_causal`` and there are not as many queries as keys.
        TypeError: if an array is complex, a mask is not boolean, or ``kernel`` is not a `Kernel`.
    """
    query, key, value = (as_float(a, name) for a, name in ((query, "query"), (key, "key"), (value, "value")))
    weights = None if weights is None else as_float(weights, "weights")
    mask = None if mask is None else jnp.asarray(mask)
    if kernel is None:
        kernel = ExpDotProduct()
    elif not isinstance(kernel, PerHead):
        kernel = as_kernel(kernel)
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim != 3:
            raise ValueError(
                f"{name} must have shape (nodes, heads, channels), got {array.shape}; use jax.vmap for a batch."
            )
    (n, heads, depth), m = query.shape, key.shape[0]
    if key.shape != (m, heads, depth):
        raise ValueError(f"key must have shape (m, h, d) = (m, {heads}, {depth}) to match query, got {key.shape}.")
    _check_value(value, m, heads)
    for name, array, what in (("query", query, 0), ("key", key, 0), ("value", value, 2)):
        if array.shape[what] == 0:
            raise ValueError(
                f"{name} has no {'channels' if what else 'nodes'}, got {array.shape}; at least one is needed."
            )
    if weights is not None and weights.shape != (m,):
        raise ValueError(f"weights must have shape (m,) = ({m},), one per key, got {weights.shape}.")
    if mask is not None:
        _check_mask(mask, n, m, heads, shares)
    _check_fit(kernel, heads, depth, accumulation_dtype(query, key, value))
    if is_causal and n != m:
        raise ValueError(f"is_causal needs as many queries as keys, got n={n} and m={m}; pass a mask instead.")
    return Operands(query, key, value, weights, kernel, mask, is_causal)


def _check_value(value: Array, m: int, heads: int) -> None:
    if value.ndim != 3 or value.shape[:2] != (m, heads):
        raise ValueError(f"value must have shape (m, h, c) = ({m}, {heads}, c) to match key, got {value.shape}.")


def _check_mask(mask: Array, n: int, m: int, heads: int, shares: int) -> None:
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean with True = attend, got {mask.dtype}; compare it, for example mask > 0.")
    columns = m * shares
    if mask.shape not in ((m,), (n, columns), (heads, n, columns)):
        raise ValueError(
            f"mask must have shape (m,) = ({m},), (n, m) = ({n}, {columns}) or (h, n, m) = ({heads}, {n}, {columns}), "
            f"got {mask.shape}"
            + (
                f"; pairs are of the queries of this device and the keys of all {shares} devices."
                if shares > 1
                else "."
            )
        )


def _check_fit(kernel: Kernel | PerHead, heads: int, depth: int, dtype: jnp.dtype) -> None:
    """Raises ``ValueError`` unless the kernel fits the heads and maps one query and one key to a number."""
    if isinstance(kernel, PerHead):
        if kernel.heads != heads:
            raise ValueError(
                f"kernel must have one entry per head of query, {heads}, got PerHead({type(kernel.kernel).__name__}) "
                f"of {kernel.heads} heads."
            )
        return
    if not isinstance(kernel, FunctionKernel) and not any(jnp.ndim(leaf) for leaf in jax.tree.leaves(kernel)):
        return
    node = jax.ShapeDtypeStruct((depth,), dtype)
    try:
        shape = jax.eval_shape(cast_kernel(kernel, dtype), node, node).shape
    except TypeError as error:
        raise ValueError(
            f"kernel fails for one query and one key of shape ({depth},): {error} If its parameters have an axis "
            "of heads, pass kernels.PerHead(kernel)."
        ) from error
    if shape != ():
        raise ValueError(
            f"kernel must map one query and one key of shape ({depth},) to a scalar, got shape {shape}; sum over "
            "the channels, or pass kernels.PerHead(kernel) if its parameters have an axis of heads."
        )


def accumulation_dtype(*arrays: Array) -> jnp.dtype:
    """Returns float32, or float64 if any input is float64."""
    return jnp.dtype("float64" if any(array.dtype == jnp.float64 for array in arrays) else "float32")


def cast_kernel(kernel: K, dtype: jnp.dtype) -> K:
    """Returns the kernel with its floating-point leaves in the accumulation dtype."""

    def cast(leaf):
        is_floating = isinstance(leaf, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if is_floating else leaf

    return jax.tree.map(cast, kernel)
