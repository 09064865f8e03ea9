"""Kernels made of kernels: sums, products, multiples, and projections of their arguments."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import check_name, is_concrete
from jaxop.kernels.base import LOG_ZERO, SIGNS, BaseKernel, Kernel, check_numbers, log_power, matrix, with_depth


@dataclasses.dataclass(frozen=True)
class _Composite(BaseKernel):
    """A kernel of parts, which the depth reaches."""

    kernels: tuple[Kernel, ...]

    def __post_init__(self):
        object.__setattr__(self, "kernels", _parts(self.kernels))

    def with_depth(self, depth: int) -> "_Composite":
        """The same kernel of the parts with that depth."""
        return type(self)(tuple(with_depth(kernel, depth) for kernel in self.kernels))


@register
@dataclasses.dataclass(frozen=True)
class Sum(_Composite):
    """k = k₁ + k₂ + …: positive if one part is positive and none signed, nonnegative if none is signed, else signed.

    In the log domain, without overflow, unless a part is signed.

    Attributes:
        kernels: the parts; all leaves are trainable.

    Raises:
        TypeError: for a part that is no kernel.
        ValueError: for no part, or a part with an ``epsilon``, which belongs to a whole integral.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.Gaussian() + kernels.DotProduct()
        >>> print(kernel(jnp.zeros(4), jnp.zeros(4)), kernel.sign)
        1.0 signed
    """

    @property
    def sign(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``"positive"``, ``"nonnegative"`` or ``"signed"``."""
        signs = {kernel.sign for kernel in self.kernels}
        return "signed" if "signed" in signs else "positive" if "positive" in signs else "nonnegative"

    def __call__(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Σ k(a, b) over the parts."""
        return sum((kernel(a, b) for kernel in self.kernels[1:]), start=self.kernels[0](a, b))

    def log(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Log Σ exp log k(a, b) over the parts."""
        return _log_sum(tuple(kernel.log(a, b) for kernel in self.kernels))

    def tile(self, query: Float[Array, "n a"], key: Float[Array, "m b"]) -> Float[Array, "n m"]:
        """The logarithm of the sum of the matrices of the parts; the sum itself if a part is signed."""
        if self.sign != "signed":
            return _log_sum(tuple(kernel.tile(query, key) for kernel in self.kernels))
        first, *others = (matrix(kernel, query, key) for kernel in self.kernels)
        return sum(others, start=first)


@register
@dataclasses.dataclass(frozen=True)
class Product(_Composite):
    """k = k₁ k₂ …: positive if all parts are, signed if one is, else nonnegative.

    In the log domain, without overflow, unless a part is signed.

    Attributes:
        kernels: the parts; all leaves are trainable.

    Raises:
        As `Sum`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.Gaussian() * kernels.Quadratic()
        >>> print(f"{kernel(jnp.ones(4), jnp.ones(4)):.1f} {kernel.sign}")  # exp(0) (4/2 + 1)²
        9.0 nonnegative
    """

    @property
    def sign(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``"positive"``, ``"nonnegative"`` or ``"signed"``."""
        signs = {kernel.sign for kernel in self.kernels}
        return "signed" if "signed" in signs else "nonnegative" if "nonnegative" in signs else "positive"

    @property
    def is_additive(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether log k is a sum over the channels: if those of all parts are."""
        return all(getattr(kernel, "is_additive", False) for kernel in self.kernels)

    def __call__(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Π k(a, b) over the parts."""
        return math.prod((kernel(a, b) for kernel in self.kernels[1:]), start=self.kernels[0](a, b))

    def log(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Σ log k(a, b) over the parts."""
        return _log_product([kernel.log(a, b) for kernel in self.kernels])

    def tile(self, query: Float[Array, "n a"], key: Float[Array, "m b"]) -> Float[Array, "n m"]:
        """The sum of the logarithms of the parts; the product itself if a part is signed."""
        logs = [kernel.tile(query, key) for kernel in self.kernels if kernel.sign != "signed"]
        values = [kernel.tile(query, key) for kernel in self.kernels if kernel.sign == "signed"]
        if not values:
            return _log_product(logs)
        first, *others = values if not logs else [jnp.exp(_log_product(logs)), *values]
        return math.prod(others, start=first)


@functools.partial(register, static=("sign",))
@dataclasses.dataclass(frozen=True)
class Scaled(BaseKernel):
    """k = c k₁, with a number c.

    Attributes:
        kernel: k₁.
        factor: c, a number or scalar array (trainable). With one per head, (h,), pass ``kernel_axis=0``.
        sign: None: that of k₁, or ``"signed"`` if c, or one of its entries, is negative. To be given for a c whose
            value is not known when the kernel is made, under differentiation or `jax.jit`: unless ``"signed"``, the
            kernel counts as 0 where c turns out to be negative.

    Raises:
        TypeError: for no kernel, or a factor that is no real number.
        ValueError: for an unknown sign, none where the factor is traced, one that contradicts the factor, or a kernel
            with an ``epsilon``.

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
        _parts((self.kernel,))
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

    def __call__(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """The multiple c k₁(a, b)."""
        return self._positive_factor() * self.kernel(a, b)

    def log(self, a: Float[Array, " a"], b: Float[Array, " b"]) -> Float[Array, ""]:
        """Log c + log k₁(a, b)."""
        return self._shift(self.kernel.log(a, b))

    def tile(self, query: Float[Array, "n a"], key: Float[Array, "m b"]) -> Float[Array, "n m"]:
        """Log c + the tile of k₁; c times its matrix if the kernel is signed."""
        if self.sign == "signed":
            return self.factor * matrix(self.kernel, query, key)
        return self._shift(self.kernel.tile(query, key))

    def with_depth(self, depth: int) -> "Scaled":
        """The multiple of k₁ with that depth."""
        return Scaled(with_depth(self.kernel, depth), self.factor, self.sign)

    def _positive_factor(self) -> Any:
        return self.factor if self.sign == "signed" else jnp.maximum(self.factor, 0)

    def _shift(self, log: Array) -> Array:
        shift = log_power(jnp.maximum(jnp.asarray(self.factor, log.dtype), 0))
        return jnp.where((log > LOG_ZERO / 2) & (shift > LOG_ZERO / 2), log + shift, LOG_ZERO)


@register
@dataclasses.dataclass(frozen=True)
class Projected(BaseKernel):
    """k(q, k') = k₁(W_Qᵀ q, W_Kᵀ k'): asymmetric if W_Q ≠ W_K, on two domains whose points may differ in dimension.

    Attributes:
        kernel: k₁, of vectors of r channels, which its √d counts.
        query_map: W_Q, (d_q, r); one per head, (h, d_q, r), with ``kernel_axis=0``.
        key_map: W_K, (d_k, r). `jaxop.attention` needs d_k = d_q.

    Raises:
        TypeError: for no kernel.
        ValueError: for matrices that do not end in the same r, or vectors that do not fit them.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.Projected(kernels.ExpDotProduct(), jnp.ones((3, 2)), jnp.eye(2))
        >>> kernel.tile(jnp.ones((5, 3)), jnp.ones((4, 2))).shape
        (5, 4)
    """

    kernel: Kernel
    query_map: Float[Array, "*h d_q r"]
    key_map: Float[Array, "*h d_k r"]

    def __post_init__(self):
        _check_kernel(self.kernel)
        check_numbers(self.query_map, "query_map")
        check_numbers(self.key_map, "key_map")
        shapes = jnp.shape(self.query_map), jnp.shape(self.key_map)
        if min(map(len, shapes)) < 2 or shapes[0][-1] != shapes[1][-1]:
            raise ValueError(
                f"query_map and key_map must have shapes (d_q, r) and (d_k, r) with one r, got {shapes[0]} and "
                f"{shapes[1]}; vectors are multiplied from the left, q @ query_map."
            )

    @property
    def sign(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of k₁."""
        return self.kernel.sign

    @property
    def is_additive(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether log k₁ is a sum over the channels."""
        return getattr(self.kernel, "is_additive", False)

    @property
    def epsilon(self) -> float:
        """That of k₁, 0 without one."""
        return getattr(self.kernel, "epsilon", 0.0)

    def __call__(self, a: Float[Array, " d_q"], b: Float[Array, " d_k"]) -> Float[Array, ""]:
        """k₁ of the projected pair."""
        return self.kernel(*self._project(a, b))

    def log(self, a: Float[Array, " d_q"], b: Float[Array, " d_k"]) -> Float[Array, ""]:
        """Log k₁ of the projected pair."""
        return self.kernel.log(*self._project(a, b))

    def tile(self, query: Float[Array, "n d_q"], key: Float[Array, "m d_k"]) -> Float[Array, "n m"]:
        """The tile of k₁ for the projected rows."""
        return self.kernel.tile(*self._project(query, key))

    def _project(self, a: Array, b: Array) -> tuple[Array, Array]:
        for name, vectors, linear in (("query", a, self.query_map), ("key", b, self.key_map)):
            if vectors.shape[-1] != linear.shape[0]:
                raise ValueError(
                    f"{name} has {vectors.shape[-1]} channels, but {name}_map takes {linear.shape[0]}: its shape is "
                    f"{linear.shape}, (d, r), or (h, d, r) with kernel_axis=0."
                )
        return a @ self.query_map, b @ self.key_map


@jax.custom_jvp
def _log_sum(logs: tuple[Array, ...]) -> Array:
    """Log Σ exp of finite numbers, `LOG_ZERO` among them."""
    largest, _, total = _exponentials(logs)
    return largest + jnp.log(total)


@_log_sum.defjvp
def _log_sum_jvp(primals, tangents):
    largest, terms, total = _exponentials(*primals)
    change = functools.reduce(jnp.add, (term * change for term, change in zip(terms, *tangents, strict=True)))
    return largest + jnp.log(total), change / total


def _exponentials(logs: tuple[Array, ...]) -> tuple[Array, list[Array], Array]:
    largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logs))
    terms = [jnp.exp(log - largest) for log in logs]
    return largest, terms, functools.reduce(jnp.add, terms)


def _log_product(logs: Sequence[Array]) -> Array:
    total = functools.reduce(jnp.add, logs)
    return jnp.where(total > LOG_ZERO / 2, total, LOG_ZERO)


def _check_kernel(kernel: Any) -> None:
    if not isinstance(kernel, Kernel) or isinstance(kernel, type):
        raise TypeError(f"a part must be a Kernel, such as kernels.Gaussian(), got {kernel!r}.")


def _parts(kernels: Any) -> tuple[Kernel, ...]:
    """Kernels that may be summed and multiplied, as a tuple."""
    if isinstance(kernels, Kernel) or not isinstance(kernels, Iterable):
        raise TypeError(f"kernels must be a tuple of kernels, such as (kernels.Gaussian(),), got {kernels!r}.")
    kernels = tuple(kernels)
    if not kernels:
        raise ValueError("kernels is empty; give at least one kernel.")
    for kernel in kernels:
        _check_kernel(kernel)
        if epsilon := getattr(kernel, "epsilon", 0.0):
            raise ValueError(
                f"epsilon = {epsilon} of {type(kernel).__name__} belongs to a whole integral and not to a part of a "
                "kernel; use epsilon=0."
            )
    return kernels
