"""From an attention head to a binary kernel machine and back."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import as_float, as_integer, check_type
from jaxop.attention.operands import accumulation_dtype, cast_kernel
from jaxop.kernel_machines import BinaryMachine, fit
from jaxop.kernels import ExpDotProduct, Gaussian, Kernel, PerHead
from jaxop.kernels.distance import squared_distances
from jaxop.nn.attention import IntegralAttention


class Fidelity(NamedTuple):
    """Agreement of two matrices of logits, up to a constant per row, which attention does not see.

    Attributes:
        logits: 1 − Σ (ΔF)² / Σ F² after the mean of each row has been subtracted from both. It is 1 for equal logits,
            0 for constant rows. If all rows of F are constant, it is 1 − Σ (ΔF)².
        weights: mean over the rows of half the sum of |softmax(F') − softmax(F)|, the total variation; 0 is perfect.
    """

    logits: Float[Array, ""]
    weights: Float[Array, ""]


def fidelity(approximation: Float[Array, "n m"], logits: Float[Array, "n m"]) -> Fidelity:
    """The `Fidelity` of an approximation F' to logits F, row by row.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import distillation
        >>> logits = jnp.asarray([[0.0, 1.0, 2.0]])
        >>> print(*distillation.fidelity(logits + 5.0, logits))
        1.0 0.0
    """
    if approximation.shape != logits.shape:
        raise ValueError(f"approximation must have the shape of logits, {logits.shape}, got {approximation.shape}.")
    ours, theirs = (a - jnp.mean(a, axis=1, keepdims=True) for a in (approximation, logits))
    total = jnp.sum(theirs**2)
    explained = 1 - jnp.sum((ours - theirs) ** 2) / jnp.where(total > 0, total, 1)
    distance = jnp.sum(jnp.abs(nnx.softmax(approximation) - nnx.softmax(logits)), axis=1) / 2
    return Fidelity(explained, jnp.mean(distance))


def head_logits(
    attention: IntegralAttention,
    head: int,
    x: Float[Array, "n d"],
    context: Float[Array, "m d"] | None = None,
) -> Float[Array, "n m"]:
    """Log k(Q x_i, K y_j) of one head of an attention layer, on its real inputs.

    Args:
        attention: the layer.
        head: its number.
        x: inputs of the layer, one per row, (n, d).
        context: where keys come from, (m, d); None means x.

    Returns:
        Shape (n, m), in float32 at least.

    Raises:
        IndexError: if the layer does not have that head.
        ValueError: if the kernel is signed, and has no logarithm.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import distillation, nn
        >>> distillation.head_logits(nn.IntegralAttention(8, 2, rngs=nnx.Rngs(0)), 1, jnp.ones((5, 8))).shape
        (5, 5)
    """
    kernel = head_kernel(attention, head)
    if kernel.sign == "signed":
        raise ValueError(
            f"{type(kernel).__name__} is signed and has no logarithm: give a layer with a positive kernel."
        )
    query, key, _ = attention.project(x[None], (x if context is None else context)[None])
    dtype = accumulation_dtype(query, key)
    return cast_kernel(kernel, dtype).tile(query[0, :, head].astype(dtype), key[0, :, head].astype(dtype))


def head_kernel(attention: IntegralAttention, head: int) -> Kernel:
    """The kernel between the queries and keys of one head.

    Raises:
        IndexError: if the layer does not have that head.
        TypeError: if the layer is not an `jaxop.nn.IntegralAttention`, or the head is not an integer.

    Example:
        >>> from flax import nnx
        >>> from jaxop import distillation, nn
        >>> distillation.head_kernel(nn.IntegralAttention(8, 2, rngs=nnx.Rngs(0)), 1)
        ExpDotProduct(scale=None, depth=None)
    """
    check_type(attention, "attention", IntegralAttention, "an nn.IntegralAttention, such as model.layers[0].attention")
    if not 0 <= as_integer(head, "head") < attention.heads:
        raise IndexError(f"head must lie between 0 and {attention.heads - 1}, got {head}.")
    kernel = attention.kernel.value
    return kernel.at(head) if isinstance(kernel, PerHead) else kernel


def machine_of_head(
    attention: IntegralAttention,
    head: int,
    x: Float[Array, "n d"],
    context: Float[Array, "m d"] | None = None,
    *,
    kernel: Kernel | None = None,
    regularization: float = 1e-4,
) -> BinaryMachine:
    """The binary kernel machine f(x, y) ≈ log k(Q x, K y), fitted to the logits of one head on its real inputs.

    Args:
        attention: the layer.
        head: its number.
        x: inputs, (n, d).
        context: where keys come from, (m, d); None means x.
        kernel: kernel of the machine; None means a Gaussian whose width is the median distance of different inputs.
        regularization: λ of `jaxop.kernel_machines.fit`.

    Returns:
        The machine, for rows of inputs; judge it by `fidelity` on other inputs.

    Raises:
        IndexError: as `head_logits`.
        TypeError: as `head_logits`.
        ValueError: as `jaxop.kernel_machines.fit`.
        FloatingPointError: as `jaxop.kernel_machines.fit`.

    Cost: that of `head_logits` and of the closed form of `jaxop.kernel_machines.fit`.

    Source: Wright, Gonzalez, arXiv:2106.01506, whose machines attention heads are.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxop import distillation, nn
        >>> attention, x = nn.IntegralAttention(8, 2, rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (220, 8))
        >>> machine = distillation.machine_of_head(attention, 0, x[:200])
        >>> logits = distillation.head_logits(attention, 0, x[200:])
        >>> bool(distillation.fidelity(machine(x[200:], x[200:]), logits).weights < 0.1)
        True
    """
    keys = x if context is None else context
    if kernel is None:
        squares = squared_distances(x, keys)
        typical = jnp.nanmedian(jnp.where(squares > 0, squares, jnp.nan))
        kernel = Gaussian(math.sqrt(x.shape[1]) / jnp.where(typical > 0, typical, 1))
    return fit(kernel, x, keys, head_logits(attention, head, x, context), regularization=regularization)


def start_from_machine(
    attention: IntegralAttention,
    head: int,
    machine: Callable[[Array, Array], Array],
    x: Float[Array, "n d"],
    context: Float[Array, "m d"] | None = None,
) -> Fidelity:
    """Sets the query and the key of one head so that its logits approximate a machine: Q x·K y scale ≈ f(x, y).

    The query and the key become the two affine maps, with the channels of the head, whose product is closest to f in
    least squares over the pairs of inputs. A singular value decomposition of f in the space of affine functions gives
    them directly.

    Args:
        attention: the layer, changed in place; its kernel must be the exponentiated dot product.
        head: its number.
        machine: any function of rows of inputs, (n, d) and (m, d) to (n, m).
        x: inputs, (n, d).
        context: where keys come from, (m, d); None means x.

    Returns:
        The fidelity on these inputs, before rounding to the dtype of the parameters.

    Raises:
        NotImplementedError: if the kernel is not the exponentiated dot product.
        IndexError: if the layer does not have that head.
        ValueError: if the values of the machine have another shape.

    Cost: O(n m d) time, O(n m) memory.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxop import distillation, nn
        >>> attention, x = nn.IntegralAttention(8, 2, rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (60, 8))
        >>> found = distillation.start_from_machine(attention, 1, lambda a, b: a[:, :2] @ b[:, 2:4].T, x)
        >>> bool(found.logits > 0.999)
        True
    """
    kernel = head_kernel(attention, head)
    if not isinstance(kernel, ExpDotProduct):
        raise NotImplementedError(
            f"a machine starts a head of the exponentiated dot product, not of {type(kernel).__name__}."
        )
    keys = x if context is None else context
    logits = as_float(machine(x, keys), "machine(x, context)")
    if logits.shape != (x.shape[0], keys.shape[0]):
        raise ValueError(
            f"machine(x, context) must have shape (n, m) = ({x.shape[0]}, {keys.shape[0]}), got {logits.shape}."
        )
    centre = jnp.mean(keys, axis=0, keepdims=True)
    rows, columns = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1), keys - centre
    (left, to_query), (right, to_key) = _functions(rows), _functions(columns)
    u, s, vt = jnp.linalg.svd(left.T @ logits @ right, full_matrices=False)
    depth = x.shape[1] // attention.heads
    # heads may have more channels than the inputs have functions
    root = jnp.pad(jnp.sqrt(s), (0, max(0, depth - s.size)))[:depth]
    u, v = (jnp.pad(a, [(0, 0), (0, max(0, depth - s.size))])[:, :depth] for a in (u, vt.T))
    query, key = to_query @ (u * root[None]), to_key @ (v * root[None])
    scale = kernel.scaled(jnp.ones((1, 1, depth), query.dtype))[0, 0]
    channels = slice(head * depth, (head + 1) * depth)
    for layer, matrix, bias in (
        (attention.query, query[:-1] / scale[None], query[-1] / scale),
        (attention.key_value, key, -centre[0] @ key),
    ):
        dtype = layer.kernel[...].dtype
        layer.kernel[...] = layer.kernel[...].at[:, channels].set(matrix.astype(dtype))
        layer.bias[...] = layer.bias[...].at[channels].set(bias.astype(dtype))
    return fidelity((rows @ query) @ (columns @ key).T, logits)


def _functions(rows: Array) -> tuple[Array, Array]:
    """Orthonormal columns that span those of the rows, and the matrix that makes them of the rows."""
    u, s, vt = jnp.linalg.svd(rows, full_matrices=False)
    keep = s > s[0] * rows.shape[0] * jnp.finfo(s.dtype).eps
    return jnp.where(keep[None], u, 0), vt.T * jnp.where(keep, 1 / jnp.where(keep, s, 1), 0)[None]
