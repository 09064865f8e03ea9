"""Choices of a kernel as plain settings: what a config holds, and what a layer turns into parameters."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxop._validation import check_name
from jaxop.kernels import DotProduct, ExpDotProduct, FourierIntegral, Gaussian, Kernel

PER = ("layer", "head", "channel")
"""What may have a parameter of its own in a `FourierIntegralConfig`."""


@dataclasses.dataclass(frozen=True)
class ExpDotProductConfig:
    """The softmax kernel exp(q·k / √d), without parameters."""

    name: Literal["exp_dot_product"] = "exp_dot_product"

    def make(self, heads: int, depth: int) -> tuple[Kernel, int | None]:
        """The kernel of a layer with ``heads`` heads of ``depth`` channels, and its ``kernel_axis``."""
        del heads, depth
        return ExpDotProduct(), None


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """Linear attention: the kernel q·k / √d, without parameters; time and memory linear in the nodes."""

    name: Literal["linear"] = "linear"

    def make(self, heads: int, depth: int) -> tuple[Kernel, int | None]:
        """The kernel of a layer with ``heads`` heads of ``depth`` channels, and its ``kernel_axis``."""
        del heads, depth
        return DotProduct(), None


@dataclasses.dataclass(frozen=True)
class GaussianConfig:
    """The Gaussian kernel, with one trainable inverse width per head.

    Attributes:
        inverse_width: its initial value; see `jaxop.kernels.Gaussian`.

    Raises:
        ValueError: for a width that is not positive and finite.
    """

    inverse_width: float = 1.0
    name: Literal["gaussian"] = "gaussian"

    def __post_init__(self):
        if not (math.isfinite(self.inverse_width) and self.inverse_width > 0):
            raise ValueError(f"inverse_width must be positive and finite, got {self.inverse_width}.")

    def make(self, heads: int, depth: int) -> tuple[Kernel, int | None]:
        """The kernel of a layer with ``heads`` heads of ``depth`` channels, and its ``kernel_axis``."""
        del depth
        return Gaussian(jnp.full(heads, self.inverse_width)), 0


@dataclasses.dataclass(frozen=True)
class FourierIntegralConfig:
    """The Fourier integral kernel, with trainable radii.

    Attributes:
        radius: initial value of all radii; None: 0.7 d^(−1/4) for heads of d channels, which starts attention about as
            soft as softmax. Published are 2 for language and 1 for images, nearly one-hot at d ≥ 16.
        power: an even number.
        epsilon: 0 is exact; published is 1e-6. See `jaxop.kernels.FourierIntegral`.
        per: what has a radius of its own: the "layer", every "head", or every "channel" of every head.

    Raises:
        ValueError: as `jaxop.kernels.FourierIntegral`, and for an unknown ``per`` or power 1.
    """

    radius: float | None = None
    power: int = 4
    epsilon: float = 0.0
    per: str = "head"
    name: Literal["fourier"] = "fourier"

    def __post_init__(self):
        check_name(self.per, "per", PER)
        if self.radius is not None and not isinstance(self.radius, int | float):
            raise TypeError(
                f"radius must be a number or None, got {self.radius!r}; heads and channels learn their own."
            )
        radius = 1.0 if self.radius is None else self.radius
        if FourierIntegral(radius, self.power, epsilon=self.epsilon).sign == "signed":
            raise ValueError("power=1 is a signed kernel, which attention cannot normalise; use 2, 4, 6, ...")

    def make(self, heads: int, depth: int) -> tuple[Kernel, int | None]:
        """The kernel of a layer with ``heads`` heads of ``depth`` channels, and its ``kernel_axis``."""
        shape = {"layer": (), "head": (heads, 1), "channel": (heads, depth)}[self.per]
        radius = 0.7 * depth**-0.25 if self.radius is None else self.radius
        kernel = FourierIntegral(jnp.full(shape, radius), self.power, epsilon=self.epsilon)
        return kernel, 0 if shape else None


KernelConfig = ExpDotProductConfig | LinearConfig | GaussianConfig | FourierIntegralConfig
"""Any of the choices."""

KERNELS: dict[str, type] = {
    "exp_dot_product": ExpDotProductConfig,
    "linear": LinearConfig,
    "gaussian": GaussianConfig,
    "fourier": FourierIntegralConfig,
}
"""The choices by name."""


def check_kernel_config(choice: Any) -> None:
    """Refuses what is not the settings of a kernel."""
    if not isinstance(choice, KernelConfig):
        expected = ", ".join(f"nn.{kind.__name__}()" for kind in KERNELS.values())
        raise TypeError(
            f"kernel must be the settings of a kernel, {expected}, got {choice!r}; a kernel itself goes to the layers, "
            "nn.IntegralAttention(..., kernel=...)."
        )


class KernelParameters(nnx.Module):
    """A kernel whose leaves are trainable parameters of a module: `value` is the kernel at its present ones.

    Args:
        kernel: the kernel with its initial parameters.
        param_dtype: dtype of the parameters.

    Example:
        >>> from jaxop import kernels, nn
        >>> nn.KernelParameters(kernels.Gaussian(2.0)).value
        Gaussian(inverse_width=Array(2., dtype=float32))
    """

    def __init__(self, kernel: Kernel, *, param_dtype: DTypeLike = jnp.float32):
        leaves, self.structure = jax.tree_util.tree_flatten_with_path(kernel)
        names = [jax.tree_util.keystr(path, simple=True, separator="_") for path, _ in leaves]
        params = [nnx.Param(jnp.asarray(leaf, param_dtype)) for _, leaf in leaves]
        self.leaves = nnx.Dict(dict(zip(names, params, strict=True)))

    @property
    def value(self) -> Kernel:
        """The kernel at its present parameters."""
        return jax.tree.unflatten(self.structure, [leaf[...] for leaf in self.leaves.values()])
