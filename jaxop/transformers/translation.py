"""The encoder–decoder transformer, from one sequence to another."""

import dataclasses
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Integer

from jaxop.nn import IntegralAttention, IntegralAttentionConfig, LayerNorm, Linear, MomentumConfig
from jaxop.operators._common import check_config, checked, encoder_layer
from jaxop.transformers.sequence import TokenEmbedding, check_padding, check_sequences, check_vocabulary, token_weights


@dataclasses.dataclass(frozen=True)
class EncoderDecoderTransformerConfig:
    """Sizes and choices of an `EncoderDecoderTransformer`.

    Attributes:
        vocabulary: number of different tokens, of both sequences.
        source: length of the first sequence; shorter ones are filled up with padding.
        target: longest second sequence.
        width: channels d inside.
        heads: h, a divisor of the width.
        layers: layers of the encoder, and pairs of layers of the decoder.
        feedforward: hidden channels of the pointwise networks.
        attention: the kernel of all attentions and its implementation.
        padding: the token that fills up the source and weighs nothing; None: every token counts.
        norm: ``"post"`` or ``"pre"``.
        dropout: rate in training mode.
        activation: ``"gelu"`` (exact) or ``"gelu_tanh"``.
        dtype: dtype of the computation; None: that of the parameters.
        param_dtype: dtype of the parameters.

    Raises:
        TypeError: for a size that is not an integer.
        ValueError: for sizes that do not fit, unknown names and rates outside [0, 1); the message names valid ones.
    """

    vocabulary: int
    source: int
    target: int
    width: int = 128
    heads: int = 8
    layers: int = 2
    feedforward: int = 512
    attention: IntegralAttentionConfig = IntegralAttentionConfig()
    padding: int | None = None
    norm: str = "pre"
    dropout: float = 0.0
    activation: str = "gelu"
    dtype: str | None = None
    param_dtype: str = "float32"

    def __post_init__(self):
        check_config(self)
        check_padding(self)

    @property
    def context(self) -> int:
        """The longer of both lengths."""
        return max(self.source, self.target)


class EncoderDecoderTransformer(nnx.Module):
    """The logits of p(t_{i+1} | t_0 … t_i, s): all of the source s is seen, and the target t up to its token i.

    The encoder's layers act on the source. The decoder's come in pairs: causal attention between the tokens of the
    target, then attention whose keys and values are the encoder's outputs.

    Args:
        config: an `EncoderDecoderTransformerConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: for sizes that do not fit.

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
        self.config = checked(config, EncoderDecoderTransformerConfig, rngs)
        dtypes: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype}

        def attention() -> IntegralAttention:
            return config.attention.make(config.width, config.heads, rngs=rngs, **dtypes)

        def layers() -> nnx.List:
            return nnx.List(
                encoder_layer(config, attention, rngs, momentum=MomentumConfig()) for _ in range(config.layers)
            )

        self.source, self.target = TokenEmbedding(config, rngs), TokenEmbedding(config, rngs)
        self.encoder, self.decoder, self.crossing = layers(), layers(), layers()
        self.source_norm, self.norm = LayerNorm(config.width, **dtypes), LayerNorm(config.width, **dtypes)
        self.head = Linear(config.width, config.vocabulary, rngs=rngs, **dtypes)

    def __call__(self, tokens: Integer[Array | np.ndarray, "*b n"]) -> Float[Array, "*b m v"]:
        """The logits of the token that follows each token of the target.

        Args:
            tokens: the source, exactly ``source`` of them, then 1 to ``target`` of the target; (n,) or (b, n).

        Returns:
            Shape (m, vocabulary) or (b, m, vocabulary) for targets of m tokens.

        Raises:
            TypeError: for tokens that are no integers.
            ValueError: for another number of tokens, another shape, or (unless traced) numbers beyond the vocabulary.
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

    def check_tokens(self, tokens: Any) -> None:
        """Raises ``ValueError`` for (known) numbers beyond the vocabulary."""
        check_vocabulary(tokens, self.config.vocabulary)
