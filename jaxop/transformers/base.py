"""Base classes of transformers: a config, and layers between an embedding and a head."""

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxop._validation import accumulator
from jaxop.nn import EncoderConfig, IntegralAttentionConfig, LayerNorm, Linear, ModelConfig, run_layers
from jaxop.nn.encoder import check_attention_config
from jaxop.nn.layers import start_layers
from jaxop.operators.folder import Savable

_POSITION_SCALE = 0.02

Embedding = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(EncoderConfig):
    """Base class of the configs of transformers: a `jaxop.nn.EncoderConfig` with the attention.

    Attributes:
        attention: the kernel of the attention and its implementation.

    Raises:
        TypeError: if a size is not an integer, or ``attention`` is not a `jaxop.nn.IntegralAttentionConfig`.
        ValueError: if sizes do not fit, a name is unknown, or a rate is outside [0, 1); the message has valid values.
    """

    layers: int = 4
    feedforward: int = 512
    norm: str = "pre"
    attention: IntegralAttentionConfig = IntegralAttentionConfig()

    def __post_init__(self):
        super().__post_init__()
        check_attention_config(self.attention)
        self.check_kernel(self.attention.kernel)


Config = TypeVar("Config", bound=TransformerConfig)


class Transformer(Savable, nnx.Module, Generic[Config]):
    """Base class of transformers of one sequence or image: layers between an embedding and a head.

    Args:
        config: the sizes.
        embedding: makes the embedding, and a second one for the first velocity if that is learned.
        outputs: channels of the head.
        rngs: random streams.
    """

    is_causal = False
    layers: nnx.List

    def __init__(self, config: Config, embedding: Callable[[], Embedding], outputs: int, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = embedding()
        self.layers = nnx.List(
            config.layer(config.attention.make(config.width, config.heads, rngs=rngs, **config.dtypes), rngs=rngs)
            for _ in range(config.layers)
        )
        self.norm = LayerNorm(config.width, **config.dtypes)
        self.head = Linear(config.width, outputs, rngs=rngs, **config.dtypes)
        self.velocity = embedding() if config.momentum.learns_velocity else None

    def embed(self, inputs: Array, embedding: Embedding) -> Float[Array, "b n d"]:
        """Returns the tokens of a batch, embedded as vectors with their positions."""
        return embedding(inputs)

    def batch(self, inputs: ArrayLike) -> tuple[Array, bool]:
        """Checks the argument of a call; returns it as a batch, and True if it was a single example."""
        raise NotImplementedError

    def weights(self, inputs: Array) -> Float[Array, "b n"] | None:
        """Returns the weight of each token of a batch; None means equal weights."""
        del inputs

    def encode(self, inputs: Array) -> Float[Array, "b n d"]:
        """Returns the tokens of a batch after all layers."""
        velocity = self.embed(inputs, self.velocity) if self.velocity is not None else None
        options = {"is_causal": True} if self.is_causal else {}
        x, weights = self.embed(inputs, self.embedding), self.weights(inputs)
        return run_layers(self.layers, x, weights, velocity=velocity, **options)

    def head_distances(self, inputs: ArrayLike) -> Float[Array, " layers"]:
        """Returns how different the heads of each layer are; a small number means that they are redundant.

        It is the mean over the tokens of a batch and the pairs of heads of ‖o_h − o_h'‖₂, where o_h is the output of
        head h at a token, divided by √c for its c channels.

        Args:
            inputs: the argument of a call.

        Returns:
            One number per layer.

        Raises:
            TypeError, ValueError: if a call raises them.

        Source: the redundancy of heads in Nguyen et al., arXiv:2206.00206, up to the factor 1/√c.
        """
        batch, distances = self.batch(inputs)[0], []
        velocity = self.embed(batch, self.velocity) if self.velocity is not None else None
        state, weights = start_layers(self.layers, self.embed(batch, self.embedding), velocity), self.weights(batch)
        for layer in self.layers:
            heads = layer.attention.mix(layer.attention_input(state), weights, is_causal=self.is_causal)
            pairs = heads[:, :, :, None] - heads[:, :, None, :]
            norms = jnp.sqrt(jnp.mean(pairs.astype(accumulator(pairs.dtype)) ** 2, axis=-1))
            count = heads.shape[2]
            distances.append(jnp.mean(norms) * count / max(count - 1, 1))
            state = layer(state, weights, is_causal=self.is_causal)
        return jnp.stack(distances)


def positions(count: int, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    """Returns a new vector for each of ``count`` positions."""
    initial = nnx.initializers.normal(_POSITION_SCALE)
    return nnx.Param(initial(rngs.params(), (count, config.width), jnp.dtype(config.param_dtype)))
