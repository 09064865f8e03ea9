"""Encoder layer (attention and a pointwise network with residuals and norms), and the configs that make it."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, TypedDict, TypeVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._validation import check_dtype, check_name, check_size, check_type
from jaxop.nn.activations import ACTIVATIONS
from jaxop.nn.attention import IntegralAttentionConfig
from jaxop.nn.checks import check_attention, check_rngs
from jaxop.nn.kernel_configs import ExpDotProductConfig, KernelConfig, LinearConfig
from jaxop.nn.momentum import MomentumConfig, MomentumLayer
from jaxop.nn.pointwise import FeedForward, LayerNorm, check_dropout, check_heads, in_blocks

Buildable = TypeVar("Buildable", bound="BuildableConfig")
Config = TypeVar("Config", bound="ModelConfig")

NORMS = ("post", "pre")
"""Places where an encoder layer normalises: after each residual sum ("post"), or before each branch ("pre")."""


class EncoderLayer(nnx.Module):
    """x ← LN(x + Attn(x)), x ← LN(x + FF(x)) ("post"); x ← x + Attn(LN(x)), x ← x + FF(LN(x)) ("pre").

    Apart from its attention the layer is pointwise, so that every operator and every layout can use it. LN normalises
    the channels at each node. FF is `FeedForward`. Dropout acts on the output of each branch.

    Args:
        attention: module called as ``attention(x, *args, **kwargs)``, (…, d) to (…, d).
        width: channels d.
        feedforward: hidden channels of FF.
        norm: one of `NORMS`.
        dropout: rate, active in training mode (``model.train()``, `nnx.Dropout`).
        activation: the activation of `FeedForward`.
        dtype: dtype of the computation. None takes the dtype of inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` and, if ``dropout > 0``, ``dropout`` are used.

    Raises:
        ValueError: if the norm or the activation is unknown, or the rate is outside [0, 1).

    Source: Vaswani et al., arXiv:1706.03762; Calvello et al., arXiv:2406.06486.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> layer = nn.EncoderLayer(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), 8, 16, rngs=nnx.Rngs(1))
        >>> layer(jnp.ones((5, 8))).shape
        (5, 8)
    """

    def __init__(
        self,
        attention: Callable[..., Array],
        width: int,
        feedforward: int,
        *,
        norm: str = "post",
        dropout: float = 0.0,
        activation: str = "gelu",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_attention(attention)
        check_size(feedforward, "feedforward")
        check_name(norm, "norm", NORMS)
        check_dropout(dropout)
        self.norm = norm
        self.attention = attention
        self.feedforward = FeedForward(
            width, feedforward, activation=activation, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.attention_norm = LayerNorm(width, dtype=dtype, param_dtype=param_dtype)
        self.feedforward_norm = LayerNorm(width, dtype=dtype, param_dtype=param_dtype)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout > 0 else None

    def __call__(self, x: Float[Array, "*n d"], *args: object, **kwargs: object) -> Float[Array, "*n d"]:
        """Applies the layer; all arguments after x go to the attention."""
        x = x + self._drop(self.attention(self.attention_input(x), *args, **kwargs))
        if self.dropout is None or self.dropout.deterministic:
            return in_blocks(self._pointwise, x)
        # drawn here, because blocks must not advance a random stream
        return in_blocks(self._pointwise, x, self.dropout(jnp.ones_like(x)))

    def attention_input(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Returns the input of the attention of this layer: LN(x) ("pre") or x ("post")."""
        return in_blocks(self.attention_norm, x) if self.norm == "pre" else x

    def _pointwise(self, x: Array, keep: Array | None = None) -> Array:
        if self.norm == "post":
            x = self.attention_norm(x)
        branch = self.feedforward(x if self.norm == "post" else self.feedforward_norm(x))
        x = x + (branch if keep is None else keep * branch)
        return self.feedforward_norm(x) if self.norm == "post" else x

    def _drop(self, branch: Array) -> Array:
        return branch if self.dropout is None else self.dropout(branch)


class Dtypes(TypedDict):
    """The dtypes of a layer, as keywords of its constructor."""

    dtype: str | None
    param_dtype: str


class BuildableConfig:
    """Base class of the configs that `jaxop.operators.build` takes; it has no fields."""

    @property
    def dtypes(self) -> Dtypes:
        """The dtypes of the model, as keywords of a layer."""
        raise NotImplementedError

    def in_dtypes(self: Buildable, **dtypes: str | None) -> Buildable:
        """Returns the config of the same model with another ``dtype`` or ``param_dtype``."""
        raise NotImplementedError

    @classmethod
    def checked(cls: type[Buildable], config: Buildable, rngs: nnx.Rngs) -> Buildable:
        """Checks the arguments of the constructor of a model and returns the config.

        Raises:
            TypeError: if ``config`` is of another class, or ``rngs`` is not `flax.nnx.Rngs`.
        """
        room = cls.__module__.split(".")[1]
        check_type(config, "config", cls, f"{room}.{cls.__name__}(...), made by operators.from_dict from a dict")
        check_rngs(rngs)
        return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(BuildableConfig):
    """Base class of the configs of networks, with the fields that they share.

    Attributes:
        FEWEST_LAYERS: the smallest number of layers.
        width: number of channels d inside.
        layers: number of layers.
        activation: ``"gelu"`` (exact) or ``"gelu_tanh"``.
        dtype: dtype of the computation. None takes the dtype of inputs and parameters.
        param_dtype: dtype of the parameters.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1 or a name is unknown; the message has valid values.

    Example:
        >>> from jaxop import nn
        >>> nn.ModelConfig(width=16, param_dtype="float64").dtypes
        {'dtype': None, 'param_dtype': 'float64'}
    """

    FEWEST_LAYERS: ClassVar[int] = 1

    width: int = 128
    layers: int = 6
    activation: str = "gelu"
    dtype: str | None = None
    param_dtype: str = "float32"

    def __post_init__(self):
        check_size(self.width, "width")
        check_size(self.layers, "layers", self.FEWEST_LAYERS)
        check_name(self.activation, "activation", ACTIVATIONS)
        check_dtype(self.dtype, "dtype", optional=True)
        check_dtype(self.param_dtype, "param_dtype")

    @property
    def dtypes(self) -> Dtypes:
        """The dtypes as keywords of a layer."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def in_dtypes(self: Config, **dtypes: str | None) -> Config:
        """Returns the config of the same model with another ``dtype`` or ``param_dtype``."""
        return dataclasses.replace(self, **dtypes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersConfig(ModelConfig):
    """Base class of the configs of models with layers of attention: a `ModelConfig` with the fields of these layers.

    Attributes:
        heads: h, a divisor of the width.
        feedforward: hidden channels of the pointwise networks.
        norm: ``"post"`` or ``"pre"``.
        dropout: rate in training mode.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if sizes do not fit, a name is unknown or a rate is outside [0, 1); the message has valid values.
    """

    heads: int = 8
    feedforward: int = 128
    norm: str = "post"
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_heads(self.width, self.heads)
        check_size(self.feedforward, "feedforward")
        check_name(self.norm, "norm", NORMS)
        check_dropout(self.dropout)

    def network(self, channels: int, *, rngs: nnx.Rngs) -> FeedForward:
        """Returns a new pointwise network from so many channels to the width, such as a lift of values and coordinates.

        Example:
            >>> import jax.numpy as jnp
            >>> from flax import nnx
            >>> from jaxop import nn
            >>> nn.LayersConfig(width=8, heads=2).network(3, rngs=nnx.Rngs(0))(jnp.ones((5, 3))).shape
            (5, 8)
        """
        return FeedForward(
            channels,
            self.feedforward,
            self.width,
            activation=self.activation,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def residual_layer(self, attention: Callable[..., Array], *, rngs: nnx.Rngs) -> EncoderLayer:
        """Returns a new layer around an attention, for tokens without velocity.

        Example:
            >>> from flax import nnx
            >>> from jaxop import nn
            >>> config = nn.LayersConfig(width=8, heads=2, norm="pre")
            >>> attention = nn.IntegralAttention(config.width, config.heads, rngs=nnx.Rngs(0))
            >>> config.residual_layer(attention, rngs=nnx.Rngs(1)).norm
            'pre'
        """
        return EncoderLayer(
            attention,
            self.width,
            self.feedforward,
            norm=self.norm,
            dropout=self.dropout,
            activation=self.activation,
            rngs=rngs,
            **self.dtypes,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(LayersConfig):
    """Base class of the configs of encoders: a `LayersConfig` with the velocity of the tokens.

    Attributes:
        momentum: the velocity of the tokens; all blocks except ``"none"`` need ``norm="pre"``.

    Raises:
        TypeError: if a size is not an integer, or ``momentum`` is not a `MomentumConfig`.
        ValueError: if sizes do not fit, a name is unknown or a rate is outside [0, 1); the message has valid values.
    """

    momentum: MomentumConfig = MomentumConfig()

    def __post_init__(self):
        super().__post_init__()
        momentum = self.momentum
        check_type(momentum, "momentum", MomentumConfig, "nn.MomentumConfig(block=...)")
        if momentum.block != "none" and self.norm != "pre":
            raise ValueError(
                f"momentum blocks normalise before each branch: give norm='pre' with block={momentum.block!r}, got "
                f"norm={self.norm!r}."
            )

    def check_kernel(self, kernel: KernelConfig) -> None:
        """Raises ``ValueError`` if the momentum block is not made for the kernel of the attention."""
        known = (ExpDotProductConfig, LinearConfig)
        if self.momentum.block in ("H1", "R2") and not isinstance(kernel, known):
            names = " and ".join(kind.__name__ for kind in known)
            raise ValueError(
                f"block={self.momentum.block!r} needs {names}, got {type(kernel).__name__}; the blocks Y and H0 take "
                "any kernel."
            )

    def layer(self, attention: Callable[..., Array], *, rngs: nnx.Rngs) -> EncoderLayer | MomentumLayer:
        """Returns a new layer around an attention, with the momentum of this config.

        Example:
            >>> from flax import nnx
            >>> from jaxop import nn
            >>> config = nn.EncoderConfig(width=8, heads=2, norm="pre", momentum=nn.MomentumConfig("Y"))
            >>> attention = nn.IntegralAttention(config.width, config.heads, rngs=nnx.Rngs(0))
            >>> config.layer(attention, rngs=nnx.Rngs(1)).block
            'Y'
        """
        if self.momentum.block == "none":
            return self.residual_layer(attention, rngs=rngs)
        return MomentumLayer(
            attention,
            self.width,
            self.feedforward,
            block=self.momentum.block,
            dropout=self.dropout,
            activation=self.activation,
            rngs=rngs,
            **self.dtypes,
        )


def check_attention_config(attention: object) -> None:
    """Raises ``TypeError`` unless ``attention`` is the settings of an attention."""
    if not isinstance(attention, IntegralAttentionConfig):
        raise TypeError(
            f"attention must be nn.IntegralAttentionConfig(kernel=...), got {attention!r}; operators.from_dict "
            "makes a config from nested dicts."
        )
