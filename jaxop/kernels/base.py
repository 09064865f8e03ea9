"""The `Kernel` protocol, and kernels made of functions and of kernels: sums, products and multiples."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxop._pytree import register
from jaxop._validation import check_name, is_concrete
from jaxop.kernels.checks import check_numbers
from jaxop.kernels.logarithms import LOG_ZERO, log_power, log_product, log_sum

SIGNS = ("positive", "nonnegative", "signed")
"""Values of `Kernel.sign`; attention normalises kernels of the first two signs and raises for the third."""


@runtime_checkable
class Kernel(Protocol):
    """A kernel k(q, k') of one query and one key, as a small pytree whose leaves are trainable.

    Derive from this class, or from `BaseKernel`, which adds arithmetic. Define `__call__`, which is the reference in
    tests. Define `log` and `tile` to improve on the defaults. A class with its own `sign`, `__call__`, `log` and
    `tile` is a kernel too and does not need to derive from this class.

    Attributes:
        sign: ``"positive"``, ``"nonnegative"`` (zeros allowed) or ``"signed"``.
        epsilon: ε ≥ 0, which a normalised `jaxop.attention.integral_attention` adds to Σ_j k_ij over equally weighted
            keys.
        is_additive: whether log k is a sum over the channels; between functions the sum is integrated.
        parts: the kernels that this kernel is made of.
    """

    sign: str
    epsilon: float = 0.0
    is_additive: bool = False

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """k(a, b) of one query a and one key b."""
        ...

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        """Log k(a, b) of a positive or nonnegative kernel; `LOG_ZERO` where k = 0, with gradient 0.

        The gradient is the true one: a differentiable nonnegative kernel is stationary at its zeros.
        """
        return log_power(jnp.maximum(self(a, b), 0))

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The matrix log k(q_i, k_j), or k(q_i, k_j) if the kernel is signed."""
        pair = self if self.sign == "signed" else self.log
        return jax.vmap(lambda a: jax.vmap(lambda b: pair(a, b))(key))(query)

    @property
    def parts(self) -> "tuple[Kernel, ...]":
        """The kernels that this kernel is made of."""
        return ()

    def with_depth(self, depth: int) -> "Kernel":
        """Returns the kernel with √d of ``depth`` channels, for vectors that sample functions of ``depth`` channels."""
        del depth
        return self

    @classmethod
    def __subclasshook__(cls, other: type):
        if cls is not Kernel:
            return NotImplemented
        names = set().union(*(vars(base) for base in other.__mro__))
        return {"__call__", "log", "tile"} <= names or NotImplemented


class BaseKernel(Kernel):
    """Base class of kernels with arithmetic, for the kernels of this library and for yours.

    ``k1 + k2`` is a `Sum`, ``k1 * k2`` a `Product` and ``2.0 * k`` a `Scaled` kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.Gaussian() + 2.0 * kernels.Quadratic()
        >>> print(kernel(jnp.zeros(4), jnp.zeros(4)), kernel.sign)
        3.0 positive
    """

    __array_ufunc__ = None  # NumPy's numbers leave ``factor * kernel`` to `__rmul__`

    def __add__(self, other: object) -> "Sum":
        """The kernel k₁ + k₂."""
        return Sum((self, other)) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: object) -> "Product | Scaled":
        """The kernel k₁ k₂, or c k₁ for a number c."""
        if isinstance(other, Kernel):
            return Product((self, other))
        is_real = isinstance(other, numbers.Real | np.ndarray | np.generic | jax.Array)
        return Scaled(self, other) if is_real else NotImplemented

    def __rmul__(self, factor: object) -> "Product | Scaled":
        """The kernel c k of a number c."""
        return self.__mul__(factor)


def as_kernel(kernel: object, argument: str = "kernel") -> Kernel:
    """Returns a kernel with every attribute of `Kernel`; a class that does not derive from it gets the defaults.

    Raises:
        TypeError: if ``kernel`` is not a kernel.

    Example:
        >>> from jaxop import kernels
        >>> from jaxop.kernels.base import as_kernel
        >>> as_kernel(kernels.ExpDotProduct()).epsilon
        0.0
    """
    if isinstance(kernel, type) or not isinstance(kernel, Kernel) or not hasattr(kernel, "sign"):
        received = f"the class {kernel.__name__} itself" if isinstance(kernel, type) else type(kernel).__name__
        raise TypeError(
            f"{argument} must be a Kernel, such as kernels.ExpDotProduct(), got {received}; "
            "kernels.from_pair makes one from a function."
        )
    if Kernel in type(kernel).__mro__:
        return kernel
    return _Adapted(
        kernel,
        sign=kernel.sign,
        epsilon=kernel.epsilon if isinstance(kernel, _HasEpsilon) else 0.0,
        is_additive=kernel.is_additive if isinstance(kernel, _HasAdditivity) else False,
    )


@runtime_checkable
class _HasEpsilon(Protocol):
    epsilon: float


@runtime_checkable
class _HasAdditivity(Protocol):
    is_additive: bool


@runtime_checkable
class _HasDepth(Protocol):
    def with_depth(self, depth: int) -> Kernel: ...


@functools.partial(register, static=("sign", "epsilon", "is_additive"))
@dataclasses.dataclass(frozen=True)
class _Adapted(BaseKernel):
    """A kernel that does not derive from `Kernel`, with the attributes that it lacks."""

    kernel: Kernel
    _: dataclasses.KW_ONLY
    sign: str
    epsilon: float
    is_additive: bool

    def __call__(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        return self.kernel(a, b)

    def log(self, a: Float[Array, " d"], b: Float[Array, " d"]) -> Float[Array, ""]:
        return self.kernel.log(a, b)

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> Float[Array, "n m"]:
        return self.kernel.tile(query, key)

    def with_depth(self, depth: int) -> Kernel:
        return as_kernel(self.kernel.with_depth(depth)) if isinstance(self.kernel, _HasDepth) else self


@functools.partial(register, static=("fn", "is_log", "sign"))
@dataclasses.dataclass(frozen=True)
class FunctionKernel(BaseKernel):
    """A kernel made from a Python function by `from_pair`."""

    fn: Callable[..., Array]
    params: PyTree
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
    fn: Callable[..., Array], params: PyTree = None, *, log: bool = False, sign: str | None = None
) -> FunctionKernel:
    """k(q, k') = fn(q, k'), or fn(params, q, k'): any function of one pair becomes a kernel.

    Args:
        fn: maps one query (d,) and one key (d,) to a scalar; takes ``params`` first if they are given.
        params: pytree of trainable arrays; None calls ``fn`` without them. Arrays that ``fn`` closes over work too,
            including their gradients, but only ``params`` allow one kernel per head (`PerHead`).
        log: whether ``fn`` returns log k. True is better for kernels that decay fast.
        sign: ``"positive"``, ``"nonnegative"`` or ``"signed"``. None means positive if ``log``, and nonnegative
            otherwise. Values below 0 of a nonnegative kernel count as 0.

    Returns:
        A kernel for `jaxop.attention.integral_attention`, evaluated pair by pair under `jax.vmap`: n·m
        calls of ``fn``, fused by XLA. Eager calls trace ``fn`` each time. They compile once per shape if ``fn`` is the
        same object and computes the same.

    Raises:
        TypeError: if ``fn`` is not a function.
        ValueError: if the sign is unknown, or if it is ``"signed"`` and ``log`` is True.

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


def matrix(kernel: Kernel, query: Float[Array, "n a"], key: Float[Array, "m b"]) -> Float[Array, "n m"]:
    """Returns the values k(q_i, k_j) of a kernel of any sign, also if `Kernel.tile` returns their logarithms.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> print(kernels.matrix(kernels.Quadratic(), jnp.zeros((1, 2)), jnp.ones((2, 2))))
        [[1. 1.]]
    """
    tile = kernel.tile(query, key)
    return tile if kernel.sign == "signed" else jnp.exp(tile)


@dataclasses.dataclass(frozen=True)
class _Composite(BaseKernel):
    """Base class of kernels made of several parts; `with_depth` changes each part."""

    kernels: tuple[Kernel, ...]
    sign: str = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "kernels", _check_parts(self.kernels))
        object.__setattr__(self, "sign", self._sign({kernel.sign for kernel in self.kernels}))

    @staticmethod
    def _sign(signs: set[str]) -> str:
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Kernel, ...]:
        """The kernels."""
        return self.kernels

    def with_depth(self, depth: int) -> "_Composite":
        """Returns the same kernel of parts with √d of ``depth`` channels."""
        return type(self)(tuple(kernel.with_depth(depth) for kernel in self.kernels))


@functools.partial(register, static=("sign",))
@dataclasses.dataclass(frozen=True)
class Sum(_Composite):
    """k = k₁ + k₂ + …: signed if a part is signed, otherwise positive if a part is positive, otherwise nonnegative.

    Without a signed part it is computed in the log domain, without overflow.

    Attributes:
        kernels: the parts; all leaves are trainable.

    Raises:
        TypeError: if a part is not a `Kernel`.
        ValueError: if ``kernels`` is empty, or a part has an ``epsilon``, which belongs to a whole integral.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.Gaussian() + kernels.DotProduct()
        >>> print(kernel(jnp.zeros(4), jnp.zeros(4)), kernel.sign)
        1.0 signed
    """

    @staticmethod
    def _sign(signs: set[str]) -> str:
        return "signed" if "signed" in signs else "positive" if "positive" in signs else "nonnegative"

    def __call__(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Σ k(a, b) over the parts."""
        return sum((kernel(a, b) for kernel in self.kernels[1:]), start=self.kernels[0](a, b))

    def log(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Log Σ exp log k(a, b) over the parts."""
        return log_sum(tuple(kernel.log(a, b) for kernel in self.kernels))

    def tile(self, query: Float[Array, "n a"], key: Float[Array, "m b"]) -> Float[Array, "n m"]:
        """The logarithm of the sum of the matrices of the parts, or the sum itself if a part is signed."""
        if self.sign != "signed":
            return log_sum(tuple(kernel.tile(query, key) for kernel in self.kernels))
        first, *others = (matrix(kernel, query, key) for kernel in self.kernels)
        return sum(others, start=first)


@functools.partial(register, static=("sign", "is_additive"))
@dataclasses.dataclass(frozen=True)
class Product(_Composite):
    """k = k₁ k₂ …: signed if a part is signed, positive if all parts are, otherwise nonnegative.

    Without a signed part it is computed in the log domain, without overflow.

    Attributes:
        kernels: the parts; all leaves are trainable.
        is_additive: whether log k is a sum over the channels, which holds if all parts have this property.

    Raises:
        TypeError: if a part is not a `Kernel`.
        ValueError: if ``kernels`` is empty, or a part has an ``epsilon``, which belongs to a whole integral.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.Gaussian() * kernels.Quadratic()
        >>> print(f"{kernel(jnp.ones(4), jnp.ones(4)):.1f} {kernel.sign}")  # exp(0) (4/2 + 1)²
        9.0 nonnegative
    """

    is_additive: bool = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "is_additive", all(kernel.is_additive for kernel in self.kernels))

    @staticmethod
    def _sign(signs: set[str]) -> str:
        return "signed" if "signed" in signs else "nonnegative" if "nonnegative" in signs else "positive"

    def __call__(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Π k(a, b) over the parts."""
        return math.prod((kernel(a, b) for kernel in self.kernels[1:]), start=self.kernels[0](a, b))

    def log(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Σ log k(a, b) over the parts."""
        return log_product([kernel.log(a, b) for kernel in self.kernels])

    def tile(self, query: Float[Array, "n a"], key: Float[Array, "m b"]) -> Float[Array, "n m"]:
        """The sum of the logarithms of the parts, or the product itself if a part is signed."""
        logs = [kernel.tile(query, key) for kernel in self.kernels if kernel.sign != "signed"]
        values = [kernel.tile(query, key) for kernel in self.kernels if kernel.sign == "signed"]
        if not values:
            return log_product(logs)
        first, *others = values if not logs else [jnp.exp(log_product(logs)), *values]
        return math.prod(others, start=first)


@functools.partial(register, static=("sign",))
@dataclasses.dataclass(frozen=True)
class Scaled(BaseKernel):
    """k = c k₁, with a number c.

    Attributes:
        kernel: k₁.
        factor: c, a number or scalar array (trainable); one per head, (h,), within `PerHead`.
        sign: None means the sign of k₁, or ``"signed"`` if c or one of its entries is negative. Pass it if c is
            traced, under differentiation or `jax.jit`. If the sign is not ``"signed"``, k is 0 where c is negative.

    Raises:
        TypeError: if ``kernel`` is not a `Kernel`, or the factor is not a real number.
        ValueError: if the sign is unknown or contradicts the factor, if the factor is traced and ``sign`` is None, or
            if the kernel has an ``epsilon``.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = -0.5 * kernels.Gaussian()
        >>> print(kernel(jnp.zeros(2), jnp.zeros(2)), kernel.sign)
        -0.5 signed
    """

    kernel: Kernel
    factor: Any
    sign: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        object.__setattr__(self, "kernel", _check_parts((self.kernel,))[0])
        negative = False
        if is_concrete(*jax.tree.leaves(self.factor)):
            check_numbers(self.factor, "factor")
            negative = bool(np.any(np.asarray(self.factor).astype(np.float64) < 0))
        elif self.sign is None and self.kernel.sign != "signed":
            raise ValueError(
                "the sign of a kernel times a traced factor is not known; pass "
                f"Scaled(kernel, factor, sign={self.kernel.sign!r}), or sign='signed' if it may be negative."
            )
        if self.sign is None:
            object.__setattr__(self, "sign", "signed" if negative else self.kernel.sign)
        check_name(self.sign, "sign", SIGNS)
        if self.sign != "signed" and (negative or self.kernel.sign == "signed"):
            raise ValueError(f"sign={self.sign!r} contradicts a negative factor or a signed kernel; leave it out.")

    @property
    def parts(self) -> tuple[Kernel, ...]:
        """k₁."""
        return (self.kernel,)

    def __call__(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """The multiple c k₁(a, b)."""
        factor = self.factor if self.sign == "signed" else jnp.maximum(self.factor, 0)
        return factor * self.kernel(a, b)

    def log(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Log c + log k₁(a, b)."""
        return self._shift(self.kernel.log(a, b))

    def tile(self, query: Float[Array, "n a"], key: Float[Array, "m b"]) -> Float[Array, "n m"]:
        """Log c + the tile of k₁, or c times the matrix if the kernel is signed."""
        if self.sign == "signed":
            return self.factor * matrix(self.kernel, query, key)
        return self._shift(self.kernel.tile(query, key))

    def with_depth(self, depth: int) -> "Scaled":
        """Returns the multiple of k₁ with √d of ``depth`` channels."""
        return Scaled(self.kernel.with_depth(depth), self.factor, self.sign)

    def _shift(self, log: Array) -> Array:
        shift = log_power(jnp.maximum(jnp.asarray(self.factor, log.dtype), 0))
        return jnp.where((log > LOG_ZERO / 2) & (shift > LOG_ZERO / 2), log + shift, LOG_ZERO)


def _check_parts(kernels: object) -> tuple[Kernel, ...]:
    """Returns kernels that may be summed and multiplied, as a tuple."""
    if isinstance(kernels, Kernel) or not isinstance(kernels, Iterable):
        raise TypeError(f"kernels must be a tuple of kernels, such as (kernels.Gaussian(),), got {kernels!r}.")
    kernels = tuple(as_kernel(kernel, "a part") for kernel in kernels)
    if not kernels:
        raise ValueError("kernels is empty; give at least one kernel.")
    for kernel in kernels:
        if kernel.epsilon:
            raise ValueError(
                f"epsilon = {kernel.epsilon} of {type(kernel).__name__} belongs to a whole integral and not to a part "
                "of a kernel; use epsilon=0."
            )
    return kernels
