"""What a kernel is: a function of one pair, its logarithm, and a fast matrix form of either."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import check_name

SIGNS = ("positive", "nonnegative", "signed")
"""What `Kernel.sign` may be; attention normalises the first two and refuses the third."""

LOG_ZERO = -1e30
"""The finite number that stands for log 0: a pair whose log kernel lies below half of it has no mass."""


@runtime_checkable
class Kernel(Protocol):
    """A kernel k(q, k') of one query and one key, as a small pytree whose leaves are trainable.

    Subclasses define `__call__` (the definition, against which everything is tested) and, where they
    can do better than the defaults, `log` and `tile`.

    Attributes:
        sign: ``"positive"``, ``"nonnegative"`` (zeros allowed) or ``"signed"``.
    """

    sign: str

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """k(a, b) of one query a and one key b."""
        ...

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Log k(a, b) of a positive or nonnegative kernel; `LOG_ZERO` where k = 0, with gradient 0.

        The gradient is the true one: a differentiable nonnegative kernel is stationary at its zeros.
        """
        value = self(a, b)
        alive = value > 0
        return jnp.where(alive, jnp.log(jnp.where(alive, value, 1)), LOG_ZERO)

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The matrix log k(q_i, k_j) of a positive or nonnegative kernel, k(q_i, k_j) of a signed one."""
        pair = self if self.sign == "signed" else self.log
        return jax.vmap(lambda a: jax.vmap(lambda b: pair(a, b))(key))(query)


@functools.partial(register, static=("fn", "is_log", "sign"))
@dataclasses.dataclass(frozen=True)
class FunctionKernel(Kernel):
    """A kernel made from a Python function by `from_pair`."""

    fn: Callable[..., Any]
    params: Any
    is_log: bool
    sign: str

    def _evaluate(self, a: Array, b: Array) -> Array:
        return self.fn(a, b) if self.params is None else self.fn(self.params, a, b)

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """k(a, b) of one query a and one key b."""
        value = self._evaluate(a, b)
        return jnp.exp(value) if self.is_log else value

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Log k(a, b), without overflow if the function returns it."""
        return self._evaluate(a, b) if self.is_log else super().log(a, b)


def from_pair(
    fn: Callable[..., Any], params: Any = None, *, log: bool = False, sign: str | None = None
) -> FunctionKernel:
    """k(q, k') = fn(q, k'), or fn(params, q, k'): any function of one pair becomes a kernel.

    Args:
        fn: maps one query (d,) and one key (d,) to a scalar; takes ``params`` first if they are given.
        params: pytree of trainable arrays, or None. What ``fn`` closes over works as well, gradients
            included; ``params`` also allows one kernel per head (``kernel_axis=0``).
        log: whether ``fn`` returns log k. Prefer it for kernels that decay fast.
        sign: ``"positive"``, ``"nonnegative"`` or ``"signed"``. Default: positive if ``log``, else
            nonnegative, and then values below 0 count as 0.

    Returns:
        A kernel for `jaxop.attention.integral_attention`, evaluated pair by pair under `jax.vmap`: n·m
        calls of ``fn``, fused by XLA.

    Raises:
        ValueError: for an unknown sign, or a signed kernel given by its logarithm.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> laplace = kernels.from_pair(lambda q, k: -jnp.sum(jnp.abs(q - k)), log=True)
        >>> print(laplace(jnp.zeros(2), jnp.ones(2)).round(4))
        0.1353
    """
    sign = sign or ("positive" if log else "nonnegative")
    check_name(sign, "sign", SIGNS)
    if log and sign == "signed":
        raise ValueError(
            "sign='signed' has no logarithm; pass log=False and a function that returns the kernel itself."
        )
    return FunctionKernel(fn, params, log, sign)
