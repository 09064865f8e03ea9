"""Causal transformer of sequences, and the embedding and checks of tokens."""

import dataclasses
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jaxop._validation import check_size, is_concrete, is_integer
from jaxop.nn import ModelConfig
from jaxop.operators import register
from jaxop.operators.divided import device_by_device
from jaxop.transformers.base import Transformer, TransformerConfig, positions


@dataclasses.dataclass(frozen=True)
class SequenceTransformerConfig(TransformerConfig):
    """Sizes and choices of a `SequenceTransformer`.

    The attributes are those of `TransformerConfig` and two more, all keywords.

    Attributes:
        vocabulary: number of different tokens.
        context: length of the longest sequence.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if sizes do not fit, a name is unknown or a rate is outside [0, 1); the message has valid values.
    """

    vocabulary: int
    context: int = 256

    def __post_init__(self):
        super().__post_init__()
        check_size(self.vocabulary, "vocabulary")
        check_size(self.context, "context")

    def embedding(self, rngs: nnx.Rngs) -> "TokenEmbedding":
        """Returns a new embedding of the tokens."""
        return TokenEmbedding(self.vocabulary, self.context, self, rngs)


Config = TypeVar("Config", bound=SequenceTransformerConfig)


class TokenTransformer(Transformer[Config]):
    """Base class of the transformers of one sequence, with its tokens checked and embedded."""

    def batch(self, inputs: ArrayLike) -> tuple[Integer[Array, "b n"], bool]:
        """Checks tokens; returns them as a batch, and True if they were one sequence."""
        return check_sequences(inputs, self.config.vocabulary, 1, self.config.context)

    def check_tokens(self, tokens: ArrayLike) -> None:
        """Raises ``ValueError`` if a number is beyond the vocabulary; traced tokens are not checked."""
        check_vocabulary(tokens, self.config.vocabulary)


@register("sequence", SequenceTransformerConfig)
class SequenceTransformer(TokenTransformer[SequenceTransformerConfig]):
    """Maps tokens to the logits of p(t_{i+1} | t_0 … t_i): a causal transformer with learned positions.

    Args:
        config: a `SequenceTransformerConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

    Cost: O(layers · n (n d + d²)) per sequence of n tokens, and O(n d) memory if attention is chunked.

    Source: Vaswani et al., arXiv:1706.03762; with the Fourier integral kernel Nguyen et al., arXiv:2206.00206.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn, transformers
        >>> attention = nn.IntegralAttentionConfig(kernel=nn.FourierIntegralConfig(radius=2.0))
        >>> config = transformers.SequenceTransformerConfig(10, 16, width=8, heads=2, layers=1, attention=attention)
        >>> transformers.SequenceTransformer(config, rngs=nnx.Rngs(0))(jnp.arange(5)).shape
        (5, 10)
    """

    is_causal = True

    def __init__(self, config: SequenceTransformerConfig, *, rngs: nnx.Rngs):
        config = SequenceTransformerConfig.checked(config, rngs)
        super().__init__(config, lambda: config.embedding(rngs), config.vocabulary, rngs=rngs)

    @device_by_device(rank=2)
    def __call__(self, tokens: Integer[Array | np.ndarray, "*b n"]) -> Float[Array, "*b n v"]:
        """Returns the logits of the token that follows each token.

        Args:
            tokens: numbers below ``vocabulary``, shape (n,) or (b, n), n ≤ ``context``.

        Returns:
            Shape (n, vocabulary) or (b, n, vocabulary).

        Raises:
            TypeError: if tokens are not integers.
            ValueError: if there are more tokens than the context, they have another shape, or (unless traced) a
                number is beyond the vocabulary.
        """
        batch, single = self.batch(tokens)
        logits = self.head(self.norm(self.encode(batch)))
        return logits[0] if single else logits


class TokenEmbedding(nnx.Module):
    """A vector per token plus a vector per position, (b, n) to (b, n, d)."""

    def __init__(self, vocabulary: int, context: int, config: ModelConfig, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(vocabulary, config.width, rngs=rngs, **config.dtypes)
        self.positions = positions(context, config, rngs)

    def __call__(self, tokens: Integer[Array, "b n"]) -> Float[Array, "b n d"]:
        """Returns the vectors."""
        x = self.tokens(tokens)
        return x + self.positions[: tokens.shape[1]].astype(x.dtype)[None]


def check_sequences(
    tokens: ArrayLike, vocabulary: int, shortest: int, longest: int
) -> tuple[Integer[Array, "b n"], bool]:
    """Checks lengths and numbers of tokens; returns them as a batch, and True if they were one sequence."""
    batch = jnp.asarray(tokens)
    if not jnp.issubdtype(batch.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers below {vocabulary}, got {batch.dtype}.")
    if batch.ndim not in (1, 2) or not batch.size or not shortest <= batch.shape[-1] <= longest:
        raise ValueError(
            f"tokens must have shape (n,) or (b, n) with {shortest} ≤ n ≤ {longest}, the context of the model, got "
            f"{batch.shape}; split longer texts, and give an encoder–decoder its whole source before the target."
        )
    check_vocabulary(batch, vocabulary)
    return (batch[None], True) if batch.ndim == 1 else (batch, False)


def check_vocabulary(tokens: ArrayLike, vocabulary: int) -> None:
    """Raises ``ValueError`` if a number is beyond the vocabulary; traced tokens are not checked."""
    if is_concrete(tokens) and np.size(tokens):
        known = np.asarray(tokens)  # inside jit, the minimum of a JAX array would be traced
        least, most = int(known.min()), int(known.max())
        if least < 0 or most >= vocabulary:
            raise ValueError(f"tokens must lie between 0 and vocabulary - 1 = {vocabulary - 1}, got {least} to {most}.")


def check_padding(padding: int | None, vocabulary: int) -> None:
    """Raises ``TypeError`` or ``ValueError`` unless ``padding`` is a token or None."""
    if padding is not None and not is_integer(padding):
        raise TypeError(f"padding must be a token, an integer, or None, got {padding!r}.")
    if padding is not None and not 0 <= padding < vocabulary:
        raise ValueError(f"padding must be a token, 0 to vocabulary - 1 = {vocabulary - 1}, or None, got {padding}.")


def token_weights(tokens: Integer[Array, "b n"], padding: int | None) -> Float[Array, "b n"]:
    """Returns 1 per token, 0 for padding."""
    counts = jnp.ones(tokens.shape, bool) if padding is None else tokens != padding
    return counts.astype(jnp.float32)
