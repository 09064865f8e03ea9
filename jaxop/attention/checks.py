"""Validation of the operands that every form of attention takes."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxop._validation import as_float
from jaxop.kernels import FunctionKernel, Kernel
from jaxop.kernels.base import as_kernel

K = TypeVar("K")


def check_operands(
    query: Any, key: Any, value: Any, weights: Any, kernel: Any, kernel_axis: int | None, mask: Any
) -> tuple[Array, Array, Array, Array | None, Kernel, Array | None]:
    """The arrays of an attention call as JAX arrays that fit each other, the kernel and its head axis."""
    query, key, value = (as_float(a, name) for a, name in ((query, "query"), (key, "key"), (value, "value")))
    weights = None if weights is None else as_float(weights, "weights")
    mask = None if mask is None else jnp.asarray(mask)
    kernel = as_kernel(kernel)
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim != 3:
            raise ValueError(
                f"{name} must have shape (nodes, heads, channels), got {array.shape}; use jax.vmap for a batch."
            )
    (n, heads, depth), m = query.shape, key.shape[0]
    if key.shape != (m, heads, depth):
        raise ValueError(f"key must have shape (m, h, d) = (m, {heads}, {depth}) to match query, got {key.shape}.")
    if value.shape[:2] != (m, heads):
        raise ValueError(f"value must have shape (m, h, c) = ({m}, {heads}, c) to match key, got {value.shape}.")
    for name, array, what in (("query", query, 0), ("key", key, 0), ("value", value, 2)):
        if array.shape[what] == 0:
            raise ValueError(
                f"{name} has no {'channels' if what else 'nodes'}, got {array.shape}; at least one is needed."
            )
    if weights is not None and weights.shape != (m,):
        raise ValueError(f"weights must have shape (m,) = ({m},), one per key, got {weights.shape}.")
    if mask is not None:
        if mask.dtype != jnp.bool_:
            raise TypeError(f"mask must be boolean with True = attend, got {mask.dtype}; compare it, e.g. mask > 0.")
        if mask.shape not in ((m,), (n, m), (heads, n, m)):
            raise ValueError(
                f"mask must have shape (m,) = ({m},), (n, m) = ({n}, {m}) or (h, n, m) = ({heads}, {n}, {m}), "
                f"got {mask.shape}."
            )
    if kernel_axis not in (None, 0):
        raise ValueError(f"kernel_axis must be None or 0, got {kernel_axis}.")
    if kernel_axis == 0:
        for path, leaf in jax.tree_util.tree_leaves_with_path(kernel):
            if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != heads:
                raise ValueError(
                    f"with kernel_axis=0 every leaf of the kernel needs a leading axis of {heads} heads, but "
                    f"{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}."
                )
    elif isinstance(kernel, FunctionKernel) or any(jnp.ndim(leaf) for leaf in jax.tree.leaves(kernel)):
        node = jax.ShapeDtypeStruct((depth,), accumulation_dtype(query, key, value))
        try:
            shape = jax.eval_shape(cast_kernel(kernel, node.dtype), node, node).shape
        except TypeError as error:
            raise ValueError(
                f"kernel fails for one query and one key of shape ({depth},): {error} If its parameters carry an axis "
                "of heads, pass kernel_axis=0."
            ) from error
        if shape != ():
            raise ValueError(
                f"kernel must map one query and one key of shape ({depth},) to a scalar, got shape {shape}; sum over "
                "the channels, or pass kernel_axis=0 if its parameters carry an axis of heads."
            )
    return query, key, value, weights, kernel, mask


def check_causal(query: Array, key: Array) -> None:
    """Refuses a causal order between domains of different size."""
    if query.shape[0] != key.shape[0]:
        raise ValueError(
            f"is_causal needs as many queries as keys, got n={query.shape[0]} and m={key.shape[0]}; "
            "pass a mask instead."
        )


def causal_mask(n: int, mask: Array | None) -> Array:
    """True where query i may see key j ≤ i, and the mask lets it: (n, n) or (h, n, n)."""
    causal = jnp.tri(n, dtype=bool)
    causal = causal if mask is None or mask.ndim < 3 else causal[None]
    return causal if mask is None else causal & (mask[None, :] if mask.ndim == 1 else mask)


def accumulation_dtype(*arrays: Array) -> jnp.dtype:
    """Float32, or float64 if any input is."""
    return jnp.dtype("float64" if any(array.dtype == jnp.float64 for array in arrays) else "float32")


def cast_kernel(kernel: K, dtype: jnp.dtype) -> K:
    """The kernel with its floating leaves in the accumulation dtype."""

    def cast(leaf):
        is_floating = isinstance(leaf, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if is_floating else leaf

    return jax.tree.map(cast, kernel)
