"""Settings of kernels, which a config holds and a layer turns into parameters."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxop._validation import as_number, check_dtype, check_name, check_size, is_integer
from jaxop.kernels import (
    DotProduct,
    EuclideanDistance,
    ExpDotProduct,
    FourierIntegral,
    Gaussian,
    Intersection,
    Kernel,
    LearnedFeatures,
    PerHead,
    Quadratic,
    TruncatedExponential,
)
from jaxop.kernels.per_head import one_head
from jaxop.nn.activations import ACTIVATIONS
from jaxop.nn.checks import check_kernel, check_rngs

PER = ("layer", "head", "channel")
"""Parts of a layer that may have their own radius in a `FourierIntegralConfig`."""


@dataclasses.dataclass(frozen=True)
class ExpDotProductConfig:
    """The softmax kernel exp(q·k / √d), without parameters."""

    name: Literal["exp_dot_product"] = "exp_dot_product"

    def make(self, heads: int, depth: int, *, rngs: nnx.Rngs) -> Kernel | PerHead:
        """Returns the kernel of a layer with ``heads`` heads of ``depth`` channels."""
        del heads, depth, rngs
        return ExpDotProduct()


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """Linear attention: the kernel q·k / √d, without parameters; time and memory linear in the nodes."""

    name: Literal["linear"] = "linear"

    def make(self, heads: int, depth: int, *, rngs: nnx.Rngs) -> Kernel | PerHead:
        """Returns the kernel of a layer with ``heads`` heads of ``depth`` channels."""
        del heads, depth, rngs
        return DotProduct()


@dataclasses.dataclass(frozen=True)
class GaussianConfig:
    """The Gaussian kernel, with one trainable inverse width per head.

    Attributes:
        inverse_width: initial value; see `jaxop.kernels.Gaussian`.

    Raises:
        ValueError: if the width is not positive and finite.
    """

    inverse_width: float = 1.0
    name: Literal["gaussian"] = "gaussian"

    def __post_init__(self):
        _check_positive(self.inverse_width, "inverse_width")

    def make(self, heads: int, depth: int, *, rngs: nnx.Rngs) -> Kernel | PerHead:
        """Returns the kernel of a layer with ``heads`` heads of ``depth`` channels."""
        _check_heads(heads, depth)
        del rngs
        return PerHead(Gaussian(jnp.full(heads, self.inverse_width)))


@dataclasses.dataclass(frozen=True)
class FourierIntegralConfig:
    """The Fourier integral kernel, with trainable radii.

    Attributes:
        radius: initial value of all radii; None means 0.7 d^(−1/4) for heads of d channels, which starts attention
            about as soft as softmax. The published values, 2 for language and 1 for images, start it nearly one-hot at
            d ≥ 16.
        power: an even number.
        epsilon: 0 is exact; the published value is 1e-6. See `jaxop.kernels.FourierIntegral`.
        per: what has its own radius: the "layer", every "head", or every "channel" of every head.

    Raises:
        ValueError: if ``per`` is unknown, ``power`` is 1, or `jaxop.kernels.FourierIntegral` raises it.
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
                f"radius must be a number or None, got {self.radius!r}; per='head' or 'channel' learns one for each."
            )
        radius = 1.0 if self.radius is None else self.radius
        if FourierIntegral(radius, self.power, epsilon=self.epsilon).sign == "signed":
            raise ValueError("power=1 is a signed kernel, which attention cannot normalise; use 2, 4, 6, ...")

    def make(self, heads: int, depth: int, *, rngs: nnx.Rngs) -> Kernel | PerHead:
        """Returns the kernel of a layer with ``heads`` heads of ``depth`` channels."""
        _check_heads(heads, depth)
        del rngs
        shape = {"layer": (), "head": (heads, 1), "channel": (heads, depth)}[self.per]
        radius = 0.7 * depth**-0.25 if self.radius is None else self.radius
        kernel = FourierIntegral(jnp.full(shape, radius), self.power, epsilon=self.epsilon)
        return PerHead(kernel) if shape else kernel


@dataclasses.dataclass(frozen=True)
class EuclideanDistanceConfig:
    """The distance |q − k|, without parameters, because its factor cancels. Distant keys weigh more."""

    name: Literal["euclidean_distance"] = "euclidean_distance"

    def make(self, heads: int, depth: int, *, rngs: nnx.Rngs) -> Kernel | PerHead:
        """Returns the kernel of a layer with ``heads`` heads of ``depth`` channels."""
        del heads, depth, rngs
        return EuclideanDistance(None)


@dataclasses.dataclass(frozen=True)
class IntersectionConfig:
    """The exponentiated intersection, with one trainable scale per head.

    Attributes:
        scale: initial value; None means 1/√d for heads of d channels, which starts attention about as soft as
            softmax. The published value is 1. See `jaxop.kernels.Intersection`.

    Raises:
        ValueError: if the scale is not positive and finite.
    """

    scale: float | None = None
    name: Literal["intersection"] = "intersection"

    def __post_init__(self):
        if self.scale is not None:
            _check_positive(self.scale, "scale")

    def make(self, heads: int, depth: int, *, rngs: nnx.Rngs) -> Kernel | PerHead:
        """Returns the kernel of a layer with ``heads`` heads of ``depth`` channels."""
        _check_heads(heads, depth)
        del rngs
        return PerHead(Intersection(jnp.full(heads, depth**-0.5 if self.scale is None else self.scale)))


@dataclasses.dataclass(frozen=True)
class QuadraticConfig:
    """The quadratic kernel (q·k / √d + γ)², with one trainable offset γ per head.

    Attributes:
        offset: initial value; see `jaxop.kernels.Quadratic`.

    Raises:
        ValueError: if the offset is not finite.
    """

    offset: float = 1.0
    name: Literal["quadratic"] = "quadratic"

    def __post_init__(self):
        if not math.isfinite(as_number(self.offset, "offset")):
            raise ValueError(f"offset must be finite, got {self.offset}; with 1 the weights start nearly equal.")

    def make(self, heads: int, depth: int, *, rngs: nnx.Rngs) -> Kernel | PerHead:
        """Returns the kernel of a layer with ``heads`` heads of ``depth`` channels."""
        _check_heads(heads, depth)
        del rngs
        return PerHead(Quadratic(jnp.full(heads, self.offset)))


@dataclasses.dataclass(frozen=True)
class TruncatedExponentialConfig:
    """The softmax kernel cut at a degree, Σ_{r ≤ p} (q·k / √d)^r / r!, without parameters.

    Attributes:
        degree: p, from 1 to 20. See `jaxop.kernels.TruncatedExponential`.
        clip: whether negative values become 0. Odd degrees need it: they are negative if q·k is very negative, and
            attention cannot normalise a signed kernel.

    Raises:
        ValueError: if the degree is odd without ``clip``, or `jaxop.kernels.TruncatedExponential` raises it.
    """

    degree: int = 2
    clip: bool = False
    name: Literal["truncated_exponential"] = "truncated_exponential"

    def __post_init__(self):
        if TruncatedExponential(self.degree, clip=self.clip).sign == "signed":
            raise ValueError(
                f"degree={self.degree} is a signed kernel, which attention cannot normalise; pass clip=True for its "
                "positive part, or an even degree."
            )

    def make(self, heads: int, depth: int, *, rngs: nnx.Rngs) -> Kernel | PerHead:
        """Returns the kernel of a layer with ``heads`` heads of ``depth`` channels."""
        del heads, depth, rngs
        return TruncatedExponential(self.degree, clip=self.clip)


@dataclasses.dataclass(frozen=True)
class LearnedFeaturesConfig:
    """⟨Φ(q), Ψ(k)⟩ with two networks x ↦ σ(x W₁ + b₁) W₂ + b₂ per head; time and memory linear in the nodes.

    The kernel is signed, so that the average is over the weights alone: A = Σ_j w_j ⟨Φ(q), Ψ(k_j)⟩ v_j / Σ_j w_j.

    Attributes:
        features: r, the rank of the kernel.
        hidden: hidden channels of both networks.
        activation: σ, a name in `jaxop.nn.ACTIVATIONS`.

    Raises:
        ValueError: if a size is below 1, or the activation is unknown.
    """

    features: int = 64
    hidden: int = 64
    activation: str = "gelu"
    name: Literal["learned_features"] = "learned_features"

    def __post_init__(self):
        check_name(self.activation, "activation", ACTIVATIONS)
        for name in ("features", "hidden"):
            size = getattr(self, name)
            if not is_integer(size) or size < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {size!r}.")

    def make(self, heads: int, depth: int, *, rngs: nnx.Rngs) -> Kernel | PerHead:
        """Returns the kernel of a layer with ``heads`` heads of ``depth`` channels."""
        _check_heads(heads, depth)
        check_rngs(rngs)

        def parameters() -> dict[str, jax.Array]:
            inner = jax.random.normal(rngs.params(), (heads, depth, self.hidden)) * depth**-0.5
            # ⟨Φ, Ψ⟩ of independent features with variance r^(−1/2) has variance 1
            outer = jax.random.normal(rngs.params(), (heads, self.hidden, self.features)) * self.hidden**-0.5
            outer = outer * self.features**-0.25
            biases = {"inner_bias": jnp.zeros((heads, self.hidden)), "outer_bias": jnp.zeros((heads, self.features))}
            return {"inner": inner, "outer": outer, **biases}

        network = _network(self.activation)
        return PerHead(LearnedFeatures(network, network, (parameters(), parameters())))


@functools.cache
def _network(activation: str) -> Callable[[dict[str, jax.Array], jax.Array], jax.Array]:
    """Returns the same object for the same activation, so that two models of one config have one structure."""

    def network(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        hidden = ACTIVATIONS[activation](x @ params["inner"] + params["inner_bias"])
        return hidden @ params["outer"] + params["outer_bias"]

    return network


def _check_heads(heads: object, depth: object) -> None:
    check_size(heads, "heads")
    check_size(depth, "depth")


def _check_positive(value: object, name: str) -> None:
    if not 0 < as_number(value, name) < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}.")


KernelConfig = (
    ExpDotProductConfig
    | LinearConfig
    | GaussianConfig
    | FourierIntegralConfig
    | EuclideanDistanceConfig
    | IntersectionConfig
    | QuadraticConfig
    | TruncatedExponentialConfig
    | LearnedFeaturesConfig
)
"""Settings of any kernel."""

LINEAR = (LinearConfig, LearnedFeaturesConfig)
"""Settings of signed kernels of finite rank: attention by moments, without normalisation."""

KERNELS: dict[str, type] = {
    "exp_dot_product": ExpDotProductConfig,
    "linear": LinearConfig,
    "gaussian": GaussianConfig,
    "fourier": FourierIntegralConfig,
    "euclidean_distance": EuclideanDistanceConfig,
    "intersection": IntersectionConfig,
    "quadratic": QuadraticConfig,
    "truncated_exponential": TruncatedExponentialConfig,
    "learned_features": LearnedFeaturesConfig,
}
"""Settings by name."""


def check_kernel_config(choice: object) -> None:
    """Raises ``TypeError`` unless ``choice`` is the settings of a kernel."""
    if not isinstance(choice, KernelConfig):
        expected = ", ".join(f"nn.{kind.__name__}()" for kind in KERNELS.values())
        raise TypeError(
            f"kernel must be the settings of a kernel, {expected}, got {choice!r}; layers take the kernel itself, "
            "nn.IntegralAttention(..., kernel=...)."
        )


class KernelParameters(nnx.Module):
    """Kernel whose leaves are trainable parameters of a module; `value` is the kernel with their present values.

    Args:
        kernel: the kernel with its initial parameters, one for all heads or `jaxop.kernels.PerHead`.
        param_dtype: dtype of the parameters.

    Example:
        >>> from jaxop import kernels, nn
        >>> nn.KernelParameters(kernels.Gaussian(2.0)).value
        Gaussian(inverse_width=Array(2., dtype=float32), depth=None)
    """

    def __init__(self, kernel: Kernel | PerHead, *, param_dtype: DTypeLike = jnp.float32):
        check_kernel(kernel)
        check_dtype(param_dtype, "param_dtype")
        self.structure = jax.tree.structure(kernel)
        leaves = jax.tree_util.tree_leaves_with_path(one_head(kernel))
        # nnx sorts the entries of a Dict when it merges a module, so the order is stored separately
        self.names = tuple(jax.tree_util.keystr(path, simple=True, separator="_") for path, _ in leaves)
        params = [nnx.Param(jnp.asarray(leaf, param_dtype)) for _, leaf in leaves]
        self.leaves = nnx.Dict(dict(zip(self.names, params, strict=True)))

    @property
    def value(self) -> Kernel | PerHead:
        """The kernel with the present values of its parameters."""
        return jax.tree.unflatten(self.structure, [self.leaves[name][...] for name in self.names])
