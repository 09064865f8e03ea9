"""Classifier of sequences: an encoder whose outputs are averaged."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Integer

from jaxop._validation import check_size
from jaxop.operators import register
from jaxop.operators.divided import device_by_device
from jaxop.transformers.sequence import SequenceTransformerConfig, TokenTransformer, check_padding, token_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceClassifierConfig(SequenceTransformerConfig):
    """Sizes and choices of a `SequenceClassifier`.

    The attributes are those of `SequenceTransformerConfig`, and two more.

    Attributes:
        classes: number of classes.
        padding: the token that fills up shorter sequences and has weight 0. None gives every token weight 1.
    """

    classes: int = 2
    padding: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_size(self.classes, "classes")
        check_padding(self.padding, self.vocabulary)


@register("classifier", SequenceClassifierConfig)
class SequenceClassifier(TokenTransformer[SequenceClassifierConfig]):
    """Maps tokens to the logits of p(class | t_0 … t_n): all tokens see each other, and the outputs are averaged.

    Args:
        config: a `SequenceClassifierConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

    Cost: that of `SequenceTransformer`.

    Source: Vaswani et al., arXiv:1706.03762, its encoder.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import transformers
        >>> config = transformers.SequenceClassifierConfig(10, 16, width=8, heads=2, layers=1, classes=3, padding=0)
        >>> model = transformers.SequenceClassifier(config, rngs=nnx.Rngs(0))
        >>> logits = model(jnp.asarray([[4, 2, 7, 0], [4, 2, 7, 1]]))
        >>> logits.shape, bool(jnp.allclose(logits[0], model(jnp.asarray([4, 2, 7])), atol=1e-6))
        ((2, 3), True)
    """

    def __init__(self, config: SequenceClassifierConfig, *, rngs: nnx.Rngs):
        config = SequenceClassifierConfig.checked(config, rngs)
        super().__init__(config, lambda: config.embedding(rngs), config.classes, rngs=rngs)

    @device_by_device(rank=2)
    def __call__(self, tokens: Integer[Array | np.ndarray, "*b n"]) -> Float[Array, "*b classes"]:
        """Returns the logits of the classes.

        Args:
            tokens: numbers below ``vocabulary``, shape (n,) or (b, n), n ≤ ``context``.

        Returns:
            Shape (classes,) or (b, classes).

        Raises:
            TypeError, ValueError: see `SequenceTransformer`.
        """
        batch, single = self.batch(tokens)
        x, weights = self.norm(self.encode(batch)), self.weights(batch)
        share = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)
        logits = self.head(jnp.sum(share[..., None].astype(x.dtype) * x, axis=1))
        return logits[0] if single else logits

    def weights(self, inputs: Integer[Array, "b n"]) -> Float[Array, "b n"]:
        """Returns 1 per token, 0 for padding."""
        return token_weights(inputs, self.config.padding)
