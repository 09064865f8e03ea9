"""Encoder–decoder transformer, from one sequence to another."""

import dataclasses

import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jaxop._validation import check_size
from jaxop.nn import EncoderLayer, IntegralAttentionConfig, LayerNorm, LayersConfig, Linear
from jaxop.nn.encoder import check_attention_config
from jaxop.operators import register
from jaxop.operators.divided import device_by_device
from jaxop.operators.folder import Savable
from jaxop.transformers.sequence import TokenEmbedding, check_padding, check_sequences, check_vocabulary, token_weights


@dataclasses.dataclass(frozen=True)
class EncoderDecoderTransformerConfig(LayersConfig):
    """Sizes and choices of an `EncoderDecoderTransformer`.

    The attributes are those of `jaxop.nn.LayersConfig` and five more, all keywords.

    Attributes:
        vocabulary: number of different tokens of both sequences.
        source: length of the first sequence; padding fills up shorter sequences.
        target: length of the longest second sequence.
        layers: number of layers of the encoder, and of pairs of layers of the decoder.
        attention: the kernel of all attentions and its implementation.
        padding: the token that fills up the source and has weight 0. None gives every token weight 1.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if sizes do not fit, a name is unknown or a rate is outside [0, 1); the message has valid values.
    """

    vocabulary: int
    source: int
    target: int
    _: dataclasses.KW_ONLY
    layers: int = 2
    feedforward: int = 512
    norm: str = "pre"
    attention: IntegralAttentionConfig = IntegralAttentionConfig()
    padding: int | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("vocabulary", "source", "target"):
            check_size(getattr(self, name), name)
        check_attention_config(self.attention)
        check_padding(self.padding, self.vocabulary)

    @property
    def context(self) -> int:
        """The longer of both lengths."""
        return max(self.source, self.target)


@register("translation", EncoderDecoderTransformerConfig)
class EncoderDecoderTransformer(Savable, nnx.Module):
    """Maps tokens to the logits of p(t_{i+1} | t_0 … t_i, s): sees all of the source s, and the target t up to token i.

    The encoder's layers act on the source. The decoder's layers come in pairs: causal attention between the tokens of
    the target, then attention whose keys and values are the encoder's outputs.

    Args:
        config: an `EncoderDecoderTransformerConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

    Cost: O(layers · (n + m) ((n + m) d + d²)) per pair of sequences of n and m tokens.

    Source: Vaswani et al., arXiv:1706.03762.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import transformers
        >>> config = transformers.EncoderDecoderTransformerConfig(10, 4, 3, width=8, heads=2, layers=1, padding=0)
        >>> model = transformers.EncoderDecoderTransformer(config, rngs=nnx.Rngs(0))
        >>> model(jnp.asarray([5, 6, 7, 0, 1, 8])).shape  # a source of 4 tokens, the last padding; a target of 2
        (2, 10)
    """

    def __init__(self, config: EncoderDecoderTransformerConfig, *, rngs: nnx.Rngs):
        self.config = EncoderDecoderTransformerConfig.checked(config, rngs)

        def embedding() -> TokenEmbedding:
            return TokenEmbedding(config.vocabulary, config.context, config, rngs)

        def layer() -> EncoderLayer:
            attention = config.attention.make(config.width, config.heads, rngs=rngs, **config.dtypes)
            return config.residual_layer(attention, rngs=rngs)

        def layers() -> nnx.List:
            return nnx.List(layer() for _ in range(config.layers))

        self.source, self.target = embedding(), embedding()
        self.encoder, self.decoder, self.crossing = layers(), layers(), layers()
        self.source_norm, self.norm = (LayerNorm(config.width, **config.dtypes) for _ in range(2))
        self.head = Linear(config.width, config.vocabulary, rngs=rngs, **config.dtypes)

    @device_by_device(rank=2)
    def __call__(self, tokens: Integer[Array | np.ndarray, "*b n"]) -> Float[Array, "*b m v"]:
        """Returns the logits of the token that follows each token of the target.

        Args:
            tokens: exactly ``source`` tokens of the source, then 1 to ``target`` of the target; (n,) or (b, n).

        Returns:
            Shape (m, vocabulary) or (b, m, vocabulary) for targets of m tokens.

        Raises:
            TypeError: if tokens are not integers.
            ValueError: if the number or shape of the tokens does not fit, or (unless traced) a number is beyond the
                vocabulary.
        """
        config = self.config
        shortest, longest = config.source + 1, config.source + config.target
        batch, single = check_sequences(tokens, config.vocabulary, shortest, longest)
        source, target = batch[:, : config.source], batch[:, config.source :]
        weights = token_weights(source, config.padding)
        x = self.source(source)
        for layer in self.encoder:
            x = layer(x, weights)
        context, y = self.source_norm(x), self.target(target)
        for within, across in zip(self.decoder, self.crossing, strict=True):
            y = across(within(y, is_causal=True), weights, context=context)
        logits = self.head(self.norm(y))
        return logits[0] if single else logits

    def check_tokens(self, tokens: ArrayLike) -> None:
        """Raises ``ValueError`` if a number is beyond the vocabulary; traced tokens are not checked."""
        check_vocabulary(tokens, self.config.vocabulary)
