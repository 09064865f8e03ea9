"""Oracles and measurements for tests of operators."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxop.kernels import Kernel, PerHead


def attention_oracle(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kernel: Kernel | PerHead | Sequence[Kernel],
    normalize: bool = True,
    mask: ArrayLike | None = None,
    is_causal: bool = False,
) -> Float[np.ndarray, "n h c"]:
    """A_i = Σ_j w_j k(q_i, k_j) v_j / Σ_j w_j k(q_i, k_j) by explicit loops in float64.

    It shares no code with the library except the definition of the kernel on one pair. Rows without mass are 0.

    Args:
        query: shape (n, h, d).
        key: shape (m, h, d).
        value: shape (m, h, c).
        weights: shape (m,); None means 1/m.
        kernel: one kernel, or one per head, as `jaxop.kernels.PerHead` or as a sequence.
        normalize: whether to divide by the mass.
        mask: (m,), (n, m) or (h, n, m); True means attend.
        is_causal: whether query i sees only keys j ≤ i.

    Returns:
        float64 array of shape (n, h, c).

    Cost: n·m·h evaluations of the pair function, one head at a time; for small sizes only.

    Example:
        >>> import numpy as np
        >>> from jaxop import kernels, testing
        >>> v = np.array([[[1.0]], [[3.0]]])
        >>> testing.attention_oracle(np.zeros((1, 1, 2)), np.zeros((2, 1, 2)), v, kernel=kernels.ExpDotProduct())
        array([[[2.]]])
    """
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
        (n, heads, _), m = query.shape, key.shape[0]
        weights = np.full(m, 1 / m) if weights is None else np.asarray(weights, np.float64)
        seen = np.ones((heads, n, m), bool) if mask is None else np.broadcast_to(np.asarray(mask), (heads, n, m))
        seen = seen & (np.tri(n, m, dtype=bool) if is_causal else True)
        if isinstance(kernel, PerHead):
            kernel = [kernel.at(h) for h in range(heads)]
        per_head = kernel if isinstance(kernel, Sequence) else [kernel] * heads
        out = np.zeros((n, heads, value.shape[-1]))
        for h in range(heads):
            signed = per_head[h].sign == "signed"
            pair = per_head[h] if signed else per_head[h].log
            pairs = jax.vmap(jax.vmap(pair, in_axes=(None, 0)), in_axes=(0, None))
            matrix = np.asarray(pairs(jnp.asarray(query[:, h]), jnp.asarray(key[:, h])), np.float64)
            for i in range(n):
                alive = seen[h, i] & (weights != 0) & (signed | (matrix[i] > -1e29))
                if not alive.any():
                    continue
                shift = 0.0 if signed or not normalize else matrix[i, alive].max()
                kernel_row = matrix[i, alive] if signed else np.exp(matrix[i, alive] - shift)
                density = weights[alive] * kernel_row
                out[i, h] = density @ value[alive, h] / (density.sum() if normalize else 1.0)
    return out


def observed_order(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """Order p of an error that decays like size^−p, minus the least-squares slope of log error over log size.

    Args:
        sizes: numbers of nodes (per axis), or any quantity inversely proportional to the spacing.
        errors: one positive error per size.

    Returns:
        The observed order.

    Raises:
        ValueError: if there are fewer than two sizes, lengths differ, or an error is not positive.

    Example:
        >>> from jaxop import testing
        >>> round(testing.observed_order([8, 16, 32], [1.0, 0.25, 0.0625]), 6)
        2.0
    """
    if len(sizes) != len(errors) or len(sizes) < 2:
        raise ValueError(f"sizes and errors need the same length of at least 2, got {len(sizes)} and {len(errors)}.")
    if not all(error > 0 for error in errors):
        raise ValueError(f"errors must be positive to have a logarithm, got {list(errors)}.")
    return -float(np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(errors, float)), 1)[0])


@contextlib.contextmanager
def count_compilations() -> Iterator[Callable[[], int]]:
    """Counts the programs that XLA compiles inside the context; it should be 0 on the second call of a function.

    Yields:
        A function that returns the number of compilations so far.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxop import testing
        >>> f, x = jax.jit(lambda x: 2 * x), jnp.ones(3)
        >>> y = f(x)
        >>> with testing.count_compilations() as compilations:
        ...     y = f(x)
        >>> compilations()
        0
    """
    count = 0
    active = True

    def listen(event: str, duration_secs: float, **_: object) -> None:
        del duration_secs
        nonlocal count
        if active and event == "/jax/core/compile/backend_compile_duration":
            count += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: count
    finally:
        active = False  # JAX offers no public way to take a single listener back


_COLLECTIVE = re.compile(
    r" = (?P<result>.+?) "
    r"(?P<kind>all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(-start)?\("
)
_ARRAY = re.compile(r"([a-z]+)([0-9]*)[a-z0-9]*\[([0-9,]*)\]")


def collectives(compiled: jax.stages.Compiled) -> dict[str, list[int]]:
    """Returns the messages between devices in a compiled program: the bytes of each, by kind.

    Args:
        compiled: the result of ``jax.jit(function).lower(...).compile()``.

    Returns:
        A dict from "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter" or
        "collective-broadcast" to the bytes that the results of each such operation take on one device. An operation in
        the body of a loop counts once. Kinds that do not occur are missing.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxop import testing
        >>> testing.collectives(jax.jit(jnp.sin).lower(jnp.ones(3)).compile())
        {}
    """
    found: dict[str, list[int]] = {}
    for line in (compiled.as_text() or "").splitlines():
        if match := _COLLECTIVE.search(line):
            arrays = _ARRAY.findall(match["result"])
            size = sum(
                math.prod(map(int, filter(None, shape.split(",")))) * _bytes(kind, bits) for kind, bits, shape in arrays
            )
            found.setdefault(match["kind"], []).append(size)
    return found


def _bytes(kind: str, bits: str) -> int:
    return 1 if kind == "pred" else max(1, int(bits) // 8)
