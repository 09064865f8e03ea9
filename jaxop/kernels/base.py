"""What a kernel is: a function of one pair, its logarithm, and a fast matrix form of either."""

import dataclasses
import functools
import numbers
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import check_name, check_plain, check_size, is_concrete

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
        return log_power(jnp.maximum(self(a, b), 0))

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The matrix log k(q_i, k_j) of a positive or nonnegative kernel, k(q_i, k_j) of a signed one."""
        pair = self if self.sign == "signed" else self.log
        return jax.vmap(lambda a: jax.vmap(lambda b: pair(a, b))(key))(query)


class BaseKernel(Kernel):
    """A `Kernel` with arithmetic: what the kernels of this library derive from, and yours may.

    ``k1 + k2`` is a `Sum`, ``k1 * k2`` a `Product` and ``2.0 * k`` a `Scaled` kernel.

    Attributes:
        is_additive: whether log k is a sum over the channels; between functions it is then integrated.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.Gaussian() + 2.0 * kernels.Quadratic()
        >>> print(kernel(jnp.zeros(4), jnp.zeros(4)), kernel.sign)
        3.0 positive
    """

    is_additive = False
    __array_ufunc__ = None  # NumPy's numbers leave ``factor * kernel`` to the kernel

    def with_depth(self, depth: int) -> "BaseKernel":
        """The kernel of vectors that sample functions of ``depth`` channels: that many count in its √d."""
        del depth
        return self

    def __add__(self, other: Any) -> "BaseKernel":
        """The kernel k₁ + k₂."""
        from jaxop.kernels.composition import Sum

        return Sum((self, other)) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: Any) -> "BaseKernel":
        """The kernel k₁ k₂, or c k₁ for a number c."""
        from jaxop.kernels.composition import Product, Scaled

        if isinstance(other, Kernel):
            return Product((self, other))
        return Scaled(self, other) if _is_real(other) else NotImplemented

    def __rmul__(self, factor: Any) -> "BaseKernel":
        """The kernel c k of a number c."""
        return self.__mul__(factor)


@functools.partial(register, static=("fn", "is_log", "sign"))
@dataclasses.dataclass(frozen=True)
class FunctionKernel(BaseKernel):
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


def matrix(kernel: Kernel, query: Float[Array, "n a"], key: Float[Array, "m b"]) -> Float[Array, "n m"]:
    """The values k(q_i, k_j) of a kernel of any sign, whose `Kernel.tile` may hold their logarithms.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(kernels.matrix(kernels.Quadratic(), jnp.zeros((1, 2)), jnp.ones((2, 2))))
        [[1. 1.]]
    """
    tile = kernel.tile(query, key)
    return tile if kernel.sign == "signed" else jnp.exp(tile)


def with_depth(kernel: Kernel, depth: int) -> Kernel:
    """`BaseKernel.with_depth` of any kernel; one that has no such method stays as it is."""
    change: Callable[[int], Kernel] | None = getattr(kernel, "with_depth", None)
    return kernel if change is None else change(depth)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_power(value: Float[Array, "*n"], power: float = 1.0) -> Float[Array, "*n"]:
    """The logarithm of |x|^p; `LOG_ZERO` with derivative 0 where |x|^p, or |x|, is below the smallest normal number.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.kernels.base import log_power
        >>> print(log_power(jnp.asarray([1.0, -1.0, 0.0]), 2))
        [ 0.e+00  0.e+00 -1.e+30]
    """
    return _log_power(value, power)[0]


@log_power.defjvp
def _log_power_jvp(power, primals, tangents):
    (value,), (change,) = primals, tangents
    logarithm, alive, value = _log_power(value, power)
    return logarithm, change * jnp.where(alive, power / value, 0)


def _log_power(value: Array, power: float) -> tuple[Array, Array, Array]:
    smallest = float(jnp.finfo(value.dtype).tiny)
    alive = jnp.abs(value) >= max(smallest, smallest ** (1 / power))
    value = jnp.where(alive, value, 1)
    return jnp.where(alive, power * jnp.log(jnp.abs(value)), LOG_ZERO), alive, value


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real | np.ndarray | np.generic | jax.Array)


def check_numbers(value: Any, argument: str) -> None:
    """Refuses a parameter that is neither a real number nor an array of them."""
    check_plain(value, argument)
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    if dtype.kind not in "iuf" and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{argument} must be a real number or an array of them, got {value!r}.")


def check_depth(depth: Any) -> None:
    """Refuses a d in √d that is not the length of a vector."""
    if depth is not None:
        check_size(depth, "depth")


def check_positive(value: Any, argument: str, meaning: str) -> None:
    """Refuses a parameter whose values can be read and are not all positive and finite."""
    if not is_concrete(*jax.tree.leaves(value)):
        return
    check_numbers(value, argument)
    values = np.asarray(value).astype(np.float64)
    if not (np.all(np.isfinite(values)) and np.all(values > 0)):
        raise ValueError(f"{argument} must be positive and finite, got {values}: {meaning}.")


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
        calls of ``fn``, fused by XLA. Eager calls trace ``fn`` each time and compile once per shape, as long as it is
        the same object and computes the same.

    Raises:
        TypeError: for what is not a function.
        ValueError: for an unknown sign, or a signed kernel given by its logarithm.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> laplace = kernels.from_pair(lambda q, k: -jnp.sum(jnp.abs(q - k)), log=True)
        >>> print(laplace(jnp.zeros(2), jnp.ones(2)).round(4))
        0.1353
    """
    if not callable(fn) or isinstance(fn, type):
        raise TypeError(f"fn must be a function (query, key) -> number, or (params, query, key), got {fn!r}.")
    sign = sign or ("positive" if log else "nonnegative")
    check_name(sign, "sign", SIGNS)
    if log and sign == "signed":
        raise ValueError(
            "sign='signed' has no logarithm; pass log=False and a function that returns the kernel itself."
        )
    return FunctionKernel(fn, params, log, sign)
