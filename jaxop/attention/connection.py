"""Connection of the softmax metric for multi-head attention between tokens of any kind."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array

from jaxop.kernels import ExpDotProduct, Kernel, PerHead
from jaxop.kernels.per_head import one_head


def connection(
    velocity: Array | Callable[[Array], Array],
    query: Array,
    key: Array,
    value: Array,
    *,
    average: Callable[..., list[Array]],
    merge: Callable[..., list[Array]],
    rates: Callable[[Array], Sequence[Array]],
    inner: Callable[[Array, Array], Array],
    square: Callable[[Array], Array],
    spread: Callable[[Array], Array],
    bias: Array,
) -> tuple[Array, Array]:
    """F and C(z; v)_i = a_i v_i − ½ (|v_i|² F_i + Σ_heads Σ_j P_ij |v_j|² V z_j O), a_i = Σ_j P_ij d/dt log k_ij.

    a_i is the mean over the heads. Since q_i·k_j changes at the rate q̇_i·k_j + q_i·k̇_j, averages of keys and of
    their rates suffice. The bias of O is the same at all tokens, so it does not enter the forces in C.

    Args:
        velocity: v, or the function F ↦ v, for which the averages need two applications.
        query: queries of all heads, (…, h, c), multiplied by the scale of the scores.
        key: (…, h, c).
        value: (…, h, c).
        average: maps values of the heads to Σ_j P_ij of them, in one application.
        merge: O of the outputs of the heads, without its bias.
        rates: maps a velocity to q̇ (with the scale of the queries) and k̇.
        inner: mean over the heads of the inner products of two arrays of the heads, in a shape that multiplies v.
        square: |v|² at every token, in a shape that multiplies v.
        spread: |v|² at every token, in a shape that multiplies the values of the heads.
        bias: the bias of O.

    Returns:
        (F, C), each in the shape of v.
    """
    known = merge(*average(value)) if callable(velocity) else []
    v = velocity(known[0] + bias) if callable(velocity) else velocity
    query_rate, key_rate = rates(v)
    size = square(v)
    moving = key, key_rate, spread(size) * value
    *heads, mean_key, mean_rate, mean_moving = average(*(moving if known else (value, *moving)))
    *new, second = merge(*heads, mean_moving)
    (free,) = known or new
    drift = inner(query_rate, mean_key) + inner(query, mean_rate)
    return free + bias, drift * v - (size * free + second) / 2


def check_dot_product(kernel: Kernel | PerHead) -> Kernel | PerHead:
    """Returns the kernel; raises ``NotImplementedError`` if its connection is not known."""
    if not isinstance(one_head(kernel), ExpDotProduct):
        raise NotImplementedError(
            "a connection is known only for the exponentiated dot product and for linear attention, not for "
            f"{type(one_head(kernel)).__name__}; the momentum blocks Y and H0 take any kernel."
        )
    return kernel


def scaled(kernel: Kernel | PerHead, query: Array) -> Array:
    """Returns queries (…, h, c) times the scale of an exponentiated dot product, which may be one per head."""
    product = one_head(kernel)
    assert isinstance(product, ExpDotProduct)  # see check_dot_product
    if isinstance(kernel, PerHead):
        return query * jnp.asarray(product.scale, query.dtype).reshape((1,) * (query.ndim - 2) + (-1, 1))
    return product.scaled(query)
