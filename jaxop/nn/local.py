"""Modules of integrals before an attention, in the place of convolutions of pixels."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._validation import as_number, check_size
from jaxop.attention.local import local_averages
from jaxop.attention.operands import accumulation_dtype
from jaxop.domains import Decomposed, Domain
from jaxop.domains.domain import as_domain
from jaxop.nn.checks import check_attention
from jaxop.nn.pointwise import Linear, check_heads
from jaxop.nn.spectral import SpectralConvolution
from jaxop.spectral import check_grid


@dataclasses.dataclass(frozen=True)
class LocalAverageConfig:
    """Settings of the local integrals of a layer; `make` builds the module.

    Attributes:
        radius: the radius r of all heads at first, in the unit of the nodes.

    Raises:
        TypeError: if the radius is not a number.
        ValueError: if the radius is not positive and finite.

    Example:
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> nn.LocalAverageConfig(radius=0.1).make(8, 2, dim=1, rngs=nnx.Rngs(0)).heads
        2
    """

    radius: float = 0.05

    def __post_init__(self):
        if not 0 < as_number(self.radius, "radius") < math.inf:
            raise ValueError(
                f"radius must be positive and finite, a length in the unit of the nodes, got {self.radius}."
            )

    def make(
        self,
        width: int,
        heads: int,
        *,
        dim: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> "LocalAverage":
        """Returns the module with new parameters, for domains of ``dim`` space dimensions.

        Raises:
            ValueError: if the heads do not divide the width.
        """
        del dim
        return LocalAverage(width, heads, radius=self.radius, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


class LocalAverage(nnx.Module):
    """u ↦ ∫ κ((y−x)/r) V u(y) dy / ∫ κ((y−x)/r) dy with κ(z) = exp(−|z|²/2), per head, by `local_averages`.

    V is affine and starts at 0. Every head trains its own r. r is a length, so that the module is the same
    operator on any nodes, unlike a convolution of pixels, whose reach shrinks with them.

    Args:
        width: channels d.
        heads: h, a divisor of d.
        radius: r of all heads at first.
        dtype: dtype of the computation; None means the dtype of inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if the heads do not divide the channels.

    Cost: see `jaxop.attention.local_averages`; O(n d²) for V.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, nn
        >>> average = nn.LocalAverage(8, 2, radius=0.1, rngs=nnx.Rngs(0))
        >>> average(jnp.ones((3, 16, 8)), domains.interval(16)).shape
        (3, 16, 8)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        radius: float,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads = check_heads(width, heads)
        self.value = Linear(width, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.value.kernel[...] = jnp.zeros_like(self.value.kernel[...])  # a random start learns less in equal steps
        self.log_radius = nnx.Param(jnp.full(heads, math.log(radius), param_dtype))

    def __call__(self, x: Float[Array, "b n d"], domain: Domain | Decomposed) -> Float[Array, "b n d"]:
        """Averages, for each of b samples.

        Args:
            x: samples of u, (b, n, d).
            domain: their domain, or a stack with one for each sample.

        Raises:
            ValueError: if the nodes do not fit.
        """
        domain = as_domain(domain, "domain")
        value = self.value(x).reshape(*x.shape[:2], self.heads, -1)
        logs = self.log_radius[...]
        radius = jnp.exp(logs.astype(accumulation_dtype(logs)))

        def average(value: Array, domain: Domain) -> Array:
            return local_averages(value, domain, radius=radius)

        mapped = jax.vmap(average, in_axes=(0, 0 if domain.is_batched else None))
        return mapped(value, domain).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class SpectralIntegralConfig:
    """Settings of integrals with a kernel of few Fourier modes, on grids of equal weights; `make` builds the module.

    Attributes:
        modes: m, the modes kept along every axis. On a grid with fewer than 2 m nodes along an axis the highest modes
            are dropped.

    Raises:
        TypeError: if ``modes`` is not an integer.
        ValueError: if it is below 1.

    Example:
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> nn.SpectralIntegralConfig(modes=4).make(8, 2, dim=2, rngs=nnx.Rngs(0)).dim
        2
    """

    modes: int = 8

    def __post_init__(self):
        check_size(self.modes, "modes")

    def make(
        self,
        width: int,
        heads: int,
        *,
        dim: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> "SpectralIntegral":
        """Returns the module with new parameters, for grids of ``dim`` axes; the heads share the kernel."""
        del heads, dtype  # the computation runs in float32 or wider
        return SpectralIntegral(width, self.modes, dim=dim, param_dtype=param_dtype, rngs=rngs)


class SpectralIntegral(nnx.Module):
    """u ↦ ∫ K(x − y) u(y) dy with a periodic kernel K of few Fourier modes, by `SpectralConvolution`.

    K starts at 0. It reaches through the whole grid, in shapes of at least a wavelength of the highest mode.

    Args:
        width: channels d.
        modes: m, the modes kept along every axis.
        dim: axes of the grid, 1 to 3.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Cost: see `jaxop.spectral.fourier_integral`; it has 2^{dim−1} m^dim d² complex parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, nn
        >>> integral = nn.SpectralIntegral(8, 4, dim=1, rngs=nnx.Rngs(0))
        >>> integral(jnp.ones((3, 16, 8)), domains.interval(16, rule="midpoint")).shape
        (3, 16, 8)
    """

    def __init__(self, width: int, modes: int, *, dim: int, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.dim = dim
        self.convolution = SpectralConvolution(
            width, width, modes, reference=(2 * modes,) * dim, param_dtype=param_dtype, rngs=rngs
        )
        multipliers = self.convolution.multipliers
        multipliers[...] = jnp.zeros_like(multipliers[...])

    def __call__(self, x: Float[Array, "b n d"], domain: Domain | Decomposed) -> Float[Array, "b n d"]:
        """Integrates, for each of b samples.

        Args:
            x: samples of u, (b, n, d).
            domain: their grid with rule "midpoint" or "periodic", or a stack with one for each sample.

        Raises:
            TypeError: if the domain is not a grid.
            ValueError: if its weights are uneven.
        """
        grid = check_grid(domain, self.dim)
        out = self.convolution(jnp.moveaxis(x, 1, 0), grid.shape)
        return jnp.moveaxis(out, 0, 1).astype(x.dtype)


class LocalThenGlobal(nnx.Module):
    """u ↦ A(u + L u) for local integrals L and an attention A: scores and values of A see a neighbourhood.

    Args:
        local: L, called as ``local(x, domain)``.
        attention: A, called as ``attention(x, weights)``.

    Source: the convolutions of pixels of structured Transolver, arXiv:2402.02366, and functional attention,
        arXiv:2605.31559, have this place. Local integrals do not depend on the nodes.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, nn
        >>> rngs = nnx.Rngs(0)
        >>> local = nn.LocalAverage(8, 2, radius=0.1, rngs=rngs)
        >>> attention = nn.LocalThenGlobal(local, nn.LatentAttention(8, 2, rngs=rngs))
        >>> domain = domains.interval(16)
        >>> attention(jnp.ones((3, 16, 8)), domain.weights, domain=domain).shape
        (3, 16, 8)
    """

    def __init__(self, local: Callable[..., Array], attention: Callable[..., Array]):
        check_attention(attention)
        if not callable(local) or isinstance(local, type):
            raise TypeError(
                "local must be a module that is called as local(x, domain), such as nn.LocalAverage(width, heads, "
                f"radius=0.05, rngs=rngs), got {local!r}."
            )
        self.local = local
        self.attention = attention

    def __call__(
        self,
        x: Float[Array, "b n d"],
        weights: Float[Array, " n"] | Float[Array, "b n"] | None = None,
        *,
        domain: Domain | Decomposed,
    ) -> Float[Array, "b n d"]:
        """Attends, for each of b samples.

        Args:
            x: samples of u, (b, n, d).
            weights: quadrature weights for the attention.
            domain: the domain for the local integrals.
        """
        return self.attention(x + self.local(x, domain), weights)


LocalConfig = LocalAverageConfig | SpectralIntegralConfig
"""Settings of integrals before an attention."""
