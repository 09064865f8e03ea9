"""Module of latent attention: the nodes exchange values through a few learned latent tokens."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._validation import as_number, check_name, check_size
from jaxop.attention import ENCODERS, LEAST_RIDGE
from jaxop.attention.integral import integral_attention
from jaxop.attention.latent import average, latent_averages, least_squares_attention
from jaxop.attention.operands import accumulation_dtype
from jaxop.kernels import DotProduct, ExpDotProduct, Kernel, LearnedFeatures, PerHead
from jaxop.kernels.per_head import one_head
from jaxop.nn.activations import gelu
from jaxop.nn.attention import IntegralAttention, batch_axis, check_weights
from jaxop.nn.checks import check_implementation
from jaxop.nn.encoder import EncoderLayer
from jaxop.nn.kernel_configs import (
    LINEAR,
    ExpDotProductConfig,
    GaussianConfig,
    IntersectionConfig,
    KernelConfig,
    KernelParameters,
    check_kernel_config,
)
from jaxop.nn.pointwise import FeedForward, Linear, check_heads

MIXES = ("none", "attention", "least_squares")
"""How the latent tokens of a head exchange values between encoding and decoding."""

TEMPERATURES = ("head", "point")
"""What has its own temperature of the scores in `LatentAttention`."""

DECODERS = ("same", "query")
"""What the nodes of the output are compared with: the latents that encoded, or the mixed latent tokens."""

_POSITIVE = (ExpDotProductConfig, GaussianConfig, IntersectionConfig)
"""Settings of positive kernels, which slices need."""

_START = 0.5  # of the temperatures
_RANGE = {"head": (0.1, 5.0), "point": (0.01, math.inf)}  # of the temperatures
_SPREAD = 0.1  # of the latents at first


@dataclasses.dataclass(frozen=True)
class LatentAttentionConfig:
    """Settings of the latent attention of a layer; `make` builds the layer.

    Attributes:
        latents: number G of latent tokens. The laws of the quadrature hold for any number; more latents than nodes
            cost more than attention between all nodes.
        encode: ``"nodes"``, a softmax over the nodes for every latent, or ``"slices"``, over the latents for every
            node; see `jaxop.attention.latent_averages`.
        mix: how the latent tokens of a head exchange values: ``"none"``, ``"attention"``, or ``"least_squares"``, see
            `jaxop.attention.least_squares_attention`.
        blocks: number of encoder layers between the latent tokens, with all heads together, after the mix.
        temperature: None, or a trainable temperature that divides the scores: one per "head", or one per head and node,
            a function of the node's features ("point").
        decode: ``"same"`` compares the nodes of the output with the latents that encoded. ``"query"`` projects them
            separately, and compares them with the mixed latent tokens.
        scale: the factor of the scores q·k; None means 1/√d for heads of d channels.
        kernel: the settings of a kernel. Slices need a positive one; a scale or a temperature needs
            `ExpDotProductConfig`.
        implementation: an implementation of `jaxop.attention.integral_attention`; None lets it choose.

    Raises:
        TypeError: if a size is not an integer, or ``kernel`` is not the settings of a kernel.
        ValueError: if a size is too small, a name is unknown, or the kernel does not fit; the message has valid values.
    """

    latents: int = 64
    encode: str = "nodes"
    mix: str = "none"
    blocks: int = 0
    temperature: str | None = None
    decode: str = "same"
    scale: float | None = None
    kernel: KernelConfig = ExpDotProductConfig()
    implementation: str | None = None

    def __post_init__(self):
        check_kernel_config(self.kernel)
        _check_choices(self.latents, self.encode, self.mix, self.blocks, self.decode)
        _check_scores(self.scale, self.temperature, isinstance(self.kernel, ExpDotProductConfig))
        if self.encode == "slices" and not isinstance(self.kernel, _POSITIVE):
            names = ", ".join(f"{kind.__name__}()" for kind in _POSITIVE)
            raise ValueError(f"encode='slices' needs a positive kernel, one of {names}, got {self.kernel!r}.")
        check_implementation(self.implementation, is_linear=isinstance(self.kernel, LINEAR))

    def make(
        self,
        width: int,
        heads: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> "LatentAttention":
        """Returns the layer with new parameters.

        Raises:
            ValueError: if the heads do not divide the width.
        """
        check_heads(width, heads)
        return LatentAttention(
            width,
            heads,
            latents=self.latents,
            encode=self.encode,
            mix=self.mix,
            blocks=self.blocks,
            temperature=self.temperature,
            decode=self.decode,
            scale=self.scale,
            kernel=self.kernel.make(heads, width // heads, rngs=rngs),
            implementation=self.implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )


class LatentAttention(nnx.Module):
    """y(x) = O Σ_g p_g(x) M(z)_g, z_g = ∫ μ(y) k(S_g, K v(y)) V v(y) dy / ∫ μ(y) k(S_g, K v(y)) dy, per head.

    S are G learned latents, p_g(x) = k(K u(x), S_g) / Σ_l k(K u(x), S_l), and K, V, O are affine at every node. μ = 1,
    or 1/μ = Σ_l k(S_l, K v) for slices. Integrals over y are sums with the weights of the context's domain; sums over
    latents count. The cost is linear in the nodes.

    Args:
        width: channels d.
        heads: h, a divisor of d.
        latents: G. At first scores have a standard deviation of about 0.1 √(d/h) for nodes, as in FLARE; for slices the
            latents of a head start orthonormal, as in Transolver.
        encode: see `LatentAttentionConfig`, as for the following arguments.
        mix: with "attention", softmax(QKᵀ/√(d/h)) V, and with "least_squares", ridge regression of V on K read at Q,
            whose ridge α is trained per head, at least `jaxop.attention.LEAST_RIDGE`. Q, K, V are linear without bias
            and shared by the heads.
        blocks: number of pre-norm encoder layers of `IntegralAttention` between the latent tokens.
        temperature: "head" starts at 0.5 and stays in [0.1, 5]; "point" is max(0.01, τ_h + GELU(MLP(key))).
        decode: see `LatentAttentionConfig`.
        scale: see `LatentAttentionConfig`.
        kernel: any kernel for all heads, or `jaxop.kernels.PerHead`; its leaves become trainable parameters. None
            means ``ExpDotProduct()``.
        implementation: see `LatentAttentionConfig`.
        dtype: dtype of the computation; None means the dtype of inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` is used.

    Raises:
        ValueError: if the heads do not divide the channels, or options do not fit each other.

    Cost: O(n d (G + d)) time and O(n d) memory, O(G² d) for "attention" and every block, O(G d²/h) for
        "least_squares".

    Source: FLARE, arXiv:2508.12594; Latent Neural Operator, arXiv:2406.03923; Transolver, arXiv:2402.02366;
        Transolver++, arXiv:2502.02414; Functional Attention, arXiv:2605.31559. The published sums over nodes carry no
        weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, nn
        >>> layer = nn.LatentAttention(8, 2, latents=4, encode="slices", mix="attention", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((3, 16, 8)), domains.interval(16).weights).shape
        (3, 16, 8)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        latents: int = 64,
        encode: str = "nodes",
        mix: str = "none",
        blocks: int = 0,
        temperature: str | None = None,
        decode: str = "same",
        scale: float | None = None,
        kernel: Kernel | PerHead | None = None,
        implementation: str | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads, depth = check_heads(width, heads), width // heads
        _check_choices(latents, encode, mix, blocks, decode)
        kernel = ExpDotProduct() if kernel is None else kernel
        is_softmax = isinstance(one_head(kernel), ExpDotProduct)
        _check_scores(scale, temperature, is_softmax)
        if encode == "slices" and one_head(kernel).sign != "positive":
            raise ValueError(
                f"encode='slices' needs a positive kernel, got {type(one_head(kernel)).__name__}; use ExpDotProduct()."
            )
        check_implementation(implementation, is_linear=isinstance(one_head(kernel), DotProduct | LearnedFeatures))
        self.encode, self.mix, self.decode, self.temperature = encode, mix, decode, temperature
        self.implementation = implementation
        # the kernel divides by √d
        self.factor = 1.0 if scale is None else float(scale) * math.sqrt(depth)
        self.kernel = KernelParameters(kernel, param_dtype=param_dtype)
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        self.key = Linear(width, width, rngs=rngs, **dtypes)
        self.value = Linear(width, width, rngs=rngs, **dtypes)
        self.output = Linear(width, width, rngs=rngs, **dtypes)
        spread = _SPREAD * math.sqrt(depth) / self.factor if is_softmax else 1.0
        start = _first_latents(encode, (latents, heads, depth), spread, rngs)
        self.latents = nnx.Param(start.astype(param_dtype))
        self.tau = nnx.Param(jnp.full(heads, _START, param_dtype)) if temperature else None
        self.point = FeedForward(depth, depth, 1, rngs=rngs, **dtypes) if temperature == "point" else None
        shape = 3, depth, depth
        matrices = None if mix == "none" else jax.random.normal(rngs.params(), shape, jnp.float32) / math.sqrt(depth)
        self.matrices = None if matrices is None else nnx.Param(matrices.astype(param_dtype))
        self.ridge = nnx.Param(jnp.zeros(heads, param_dtype)) if mix == "least_squares" else None
        self.blocks = nnx.List(
            EncoderLayer(
                IntegralAttention(width, heads, rngs=rngs, **dtypes), width, width, norm="pre", rngs=rngs, **dtypes
            )
            for _ in range(blocks)
        )
        self.query = Linear(width, width, rngs=rngs, **dtypes) if decode == "query" else None
        self.latent_key = Linear(width, width, rngs=rngs, **dtypes) if decode == "query" else None

    def __call__(
        self,
        x: Float[Array, "b n d"],
        weights: Float[Array, " m"] | Float[Array, "b m"] | None = None,
        *,
        context: Float[Array, "b m d"] | None = None,
        positions: Float[Array, "b m d"] | None = None,
        axis_name: str | None = None,
    ) -> Float[Array, "b n d"]:
        """Attends, for each of b samples, from the nodes of ``x`` to those of ``context``, through the latents.

        Args:
            x: samples of u, (b, n, d).
            weights: quadrature weights of the context's nodes, (m,), or one row per sample, (b, m); None means
                equal weights.
            context: samples of v, (b, m, d); None means v = u.
            positions: features of the context's nodes that take the place of v in the scores k(S_g, K v), (b, m, d),
                such as an embedding of their coordinates if ``x`` embeds coordinates too. None means v.
            axis_name: the mapped axis of `jax.shard_map` whose devices share the nodes of ``x`` and of the context; see
                `jaxop.attention.latent_averages`. Each computes all latent tokens. None means that all nodes are here.

        Raises:
            ValueError: if arrays do not fit.
            TypeError: if the weights are not an array.
            NotImplementedError: if devices share the nodes and the implementation needs all nodes on one device.
        """
        if x.ndim != 3:
            raise ValueError(f"x must have shape (b, n, d), got {x.shape}; for a single sample pass x[None].")
        context = x if context is None else context
        if positions is not None and positions.shape != context.shape:
            raise ValueError(f"positions must have the shape of the context, {context.shape}, got {positions.shape}.")
        check_weights(weights, *context.shape[:2])
        key = self._scores(context if positions is None else positions)
        value, kernel = self._split(self.value(context)), self.kernel.value
        latents = self.latents[...].astype(key.dtype)
        encode = functools.partial(
            latent_averages,
            encode=self.encode,
            kernel=kernel,
            implementation=self.implementation,
            axis_name=axis_name,
        )
        z = jax.vmap(encode, in_axes=(None, 0, 0, batch_axis(weights)))(latents, key, value, weights)
        z = jax.vmap(self._mixed)(z)
        tokens = z.reshape(*z.shape[:2], -1)
        for block in self.blocks:
            tokens = block(tokens)
        z = self._split(tokens)
        decode = functools.partial(average, kernel=kernel, implementation=self.implementation)
        if self.query is None or self.latent_key is None:
            query = key if x is context and positions is None else self._scores(x)
            y = jax.vmap(decode, in_axes=(0, None, 0))(query, latents, z)
        else:
            y = jax.vmap(decode)(self._split(self.query(x)), self._split(self.latent_key(tokens)), z)
        return self.output(y.reshape(x.shape))

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)

    def _scores(self, x: Array) -> Array:
        """Returns the keys of nodes, divided by their temperatures and times the scale."""
        key = self._split(self.key(x))
        if self.tau is None or self.temperature is None:
            return key if self.factor == 1 else key * self.factor
        # a quotient in half precision would move the softmax
        tau = self.tau[...].astype(accumulation_dtype(key))[None, None]
        if self.point is not None:
            tau = tau + gelu(self.point(key)[..., 0]).astype(tau.dtype)
        tau = jnp.clip(tau, *_RANGE[self.temperature])
        return (key.astype(tau.dtype) * (self.factor / tau[..., None])).astype(key.dtype)

    def _mixed(self, z: Array) -> Array:
        """Returns the latent tokens (g, h, c) of one sample after the mix."""
        if self.matrices is None:
            return z
        q, k, v = jnp.einsum("ghc,sce->sghe", z, self.matrices[...].astype(z.dtype))
        if self.ridge is None:
            return integral_attention(q, k, v)
        alpha = jnp.maximum(jax.nn.sigmoid(self.ridge[...]), LEAST_RIDGE)
        return least_squares_attention(q, k, v, alpha=alpha)


def _first_latents(encode: str, shape: tuple[int, int, int], spread: float, rngs: nnx.Rngs) -> Array:
    """Returns normal latents, or for slices orthonormal ones per head (rows, or columns if there are more latents)."""
    latents, heads, depth = shape
    if encode == "nodes":
        return spread * jax.random.normal(rngs.params(), shape, jnp.float32)
    draw = nnx.initializers.orthogonal()
    return jnp.stack([draw(rngs.params(), (latents, depth)) for _ in range(heads)], axis=1)


def _check_choices(latents: int, encode: str, mix: str, blocks: int, decode: str) -> None:
    check_size(latents, "latents")
    check_name(encode, "encode", ENCODERS)
    check_name(mix, "mix", MIXES)
    check_size(blocks, "blocks", 0)
    check_name(decode, "decode", DECODERS)


def _check_scores(scale: float | None, temperature: str | None, is_softmax: bool) -> None:
    if temperature is not None:
        check_name(temperature, "temperature", TEMPERATURES)
    if scale is not None and not 0 < as_number(scale, "scale") < math.inf:
        raise ValueError(f"scale must be positive and finite, or None for 1/√d, got {scale}.")
    if not is_softmax and (scale is not None or temperature is not None):
        raise ValueError(
            f"scale={scale!r} and temperature={temperature!r} belong to the exponentiated dot product; leave both None "
            "with another kernel, which has parameters of its own."
        )
