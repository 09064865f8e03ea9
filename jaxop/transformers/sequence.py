"""Standard transformers of sequences and of images, whose attention is any of the library's."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Integer

from jaxop._validation import accumulator, as_float, divisors, is_concrete, is_integer
from jaxop.nn import IntegralAttentionConfig, LayerNorm, Linear, MomentumConfig, run_layers
from jaxop.nn.layers import start_layers
from jaxop.operators._common import check_config, checked, encoder_layer

_POSITION_SCALE = 0.02


@dataclasses.dataclass(frozen=True)
class SequenceTransformerConfig:
    """Sizes and choices of a `SequenceTransformer`.

    Attributes:
        vocabulary: number of different tokens.
        context: longest sequence.
        width: channels d inside.
        heads: h, a divisor of the width.
        layers: encoder layers.
        feedforward: hidden channels of the pointwise networks.
        attention: the kernel of the attention and its implementation.
        norm: ``"post"`` or ``"pre"``.
        momentum: whether tokens carry a velocity; its blocks need ``norm="pre"``.
        dropout: rate in training mode.
        activation: ``"gelu"`` (exact) or ``"gelu_tanh"``.
        dtype: dtype of the computation; None: that of the parameters.
        param_dtype: dtype of the parameters.

    Raises:
        TypeError: for a size that is not an integer.
        ValueError: for sizes that do not fit, unknown names and rates outside [0, 1); the message names valid ones.
    """

    vocabulary: int
    context: int = 256
    width: int = 128
    heads: int = 8
    layers: int = 4
    feedforward: int = 512
    attention: IntegralAttentionConfig = IntegralAttentionConfig()
    norm: str = "pre"
    momentum: MomentumConfig = MomentumConfig()
    dropout: float = 0.0
    activation: str = "gelu"
    dtype: str | None = None
    param_dtype: str = "float32"

    def __post_init__(self):
        check_config(self)


@dataclasses.dataclass(frozen=True)
class SequenceClassifierConfig(SequenceTransformerConfig):
    """Sizes and choices of a `SequenceClassifier`: those of a `SequenceTransformerConfig`, and two more.

    Attributes:
        classes: number of classes.
        padding: the token that fills up shorter sequences and weighs nothing; None: every token counts.
    """

    classes: int = 2
    padding: int | None = None

    def __post_init__(self):
        check_config(self)
        check_padding(self)


class _Transformer(nnx.Module):
    """What all have: layers between an embedding and a head, and a look inside."""

    config: Any
    embedding: Any
    velocity: Any
    layers: nnx.List
    is_causal = False

    def embed(self, inputs: Any, embedding: Any) -> Float[Array, "b n d"]:
        """The tokens of a batch by an embedding, as vectors with their positions."""
        raise NotImplementedError

    def batch(self, inputs: Any) -> tuple[Array, bool]:
        """The arguments of a call, checked, as a batch, and whether they were a single example."""
        raise NotImplementedError

    def weights(self, inputs: Any) -> Float[Array, "b n"] | None:
        """How much each token of a batch counts; None: all the same."""
        del inputs

    def encode(self, inputs: Any) -> Float[Array, "b n d"]:
        """The tokens of a batch after all layers."""
        velocity = self.embed(inputs, self.velocity) if self.velocity is not None else None
        options = {"is_causal": True} if self.is_causal else {}
        x, weights = self.embed(inputs, self.embedding), self.weights(inputs)
        return run_layers(self.layers, x, weights, velocity=velocity, **options)

    def head_distances(self, inputs: Any) -> Float[Array, " layers"]:
        """How different the heads of each layer are: the smaller, the more redundant.

        The mean over the tokens of a batch and the pairs of heads of ‖o_h − o_h'‖₂, o_h the output of head h
        at a token, divided by √c for its c channels.

        Args:
            inputs: as in a call.

        Returns:
            One number per layer.

        Raises:
            As a call.

        Source: the redundancy of heads in Nguyen et al., arXiv:2206.00206, up to the factor 1/√c.
        """
        inputs, distances = self.batch(inputs)[0], []
        velocity = self.embed(inputs, self.velocity) if self.velocity is not None else None
        state, weights = start_layers(self.layers, self.embed(inputs, self.embedding), velocity), self.weights(inputs)
        for layer in self.layers:
            heads = layer.attention.mix(layer.attention_input(state), weights, is_causal=self.is_causal)
            pairs = heads[:, :, :, None] - heads[:, :, None, :]
            norms = jnp.sqrt(jnp.mean(pairs.astype(accumulator(pairs.dtype)) ** 2, axis=-1))
            count = heads.shape[2]
            distances.append(jnp.mean(norms) * count / max(count - 1, 1))
            state = layer(state, weights, is_causal=self.is_causal)
        return jnp.stack(distances)


class _OfTokens(_Transformer):
    """What the models of one sequence have: tokens, checked and embedded."""

    def batch(self, inputs: Any) -> tuple[Integer[Array, "b n"], bool]:
        """Tokens, checked, as a batch, and whether they were one sequence."""
        return check_sequences(inputs, self.config.vocabulary, 1, self.config.context)

    def check_tokens(self, tokens: Any) -> None:
        """Raises ``ValueError`` for (known) numbers beyond the vocabulary."""
        check_vocabulary(tokens, self.config.vocabulary)

    def embed(self, inputs: Integer[Array, "b n"], embedding: Any) -> Float[Array, "b n d"]:
        """The tokens of a batch by an embedding, as vectors with their positions."""
        return embedding(inputs)


def check_sequences(tokens: Any, vocabulary: int, shortest: int, longest: int) -> tuple[Integer[Array, "b n"], bool]:
    """Tokens as a batch, and whether they were one sequence, if they are of these lengths and in the vocabulary."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers below {vocabulary}, got {tokens.dtype}.")
    if tokens.ndim not in (1, 2) or not tokens.size or not shortest <= tokens.shape[-1] <= longest:
        raise ValueError(
            f"tokens must have shape (n,) or (b, n) with {shortest} ≤ n ≤ {longest}, the context of the model, got "
            f"{tokens.shape}; split longer texts, and give an encoder–decoder its whole source before the target."
        )
    check_vocabulary(tokens, vocabulary)
    return (tokens[None], True) if tokens.ndim == 1 else (tokens, False)


def check_vocabulary(tokens: Any, vocabulary: int) -> None:
    """Raises ``ValueError`` for (known) numbers beyond the vocabulary."""
    if is_concrete(tokens) and np.size(tokens):
        known = np.asarray(tokens)  # inside jit, numpy's min of a JAX array would be traced
        least, most = int(known.min()), int(known.max())
        if least < 0 or most >= vocabulary:
            raise ValueError(f"tokens must lie between 0 and vocabulary - 1 = {vocabulary - 1}, got {least} to {most}.")


class SequenceTransformer(_OfTokens):
    """The logits of p(t_{i+1} | t_0 … t_i): a causal transformer with learned positions.

    Args:
        config: a `SequenceTransformerConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: for sizes that do not fit.

    Cost: O(layers · n (n d + d²)) per sequence of n tokens, O(n d) memory where attention is chunked.

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
        self.config = checked(config, SequenceTransformerConfig, rngs)
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        self.embedding = TokenEmbedding(config, rngs)
        self.layers = _layers(config, rngs)
        self.norm = LayerNorm(config.width, **dtypes)
        self.head = Linear(config.width, config.vocabulary, rngs=rngs, **dtypes)
        self.velocity = TokenEmbedding(config, rngs) if config.momentum.learns_velocity else None

    def __call__(self, tokens: Integer[Array | np.ndarray, "*b n"]) -> Float[Array, "*b n v"]:
        """The logits of the token that follows each one.

        Args:
            tokens: numbers below ``vocabulary``, shape (n,) or (b, n), n ≤ ``context``.

        Returns:
            Shape (n, vocabulary) or (b, n, vocabulary).

        Raises:
            TypeError: for tokens that are no integers.
            ValueError: for more tokens than the context, another shape, or (unless traced) numbers beyond the
                vocabulary.
        """
        batch, single = self.batch(tokens)
        logits = self.head(self.norm(self.encode(batch)))
        return logits[0] if single else logits


class SequenceClassifier(_OfTokens):
    """The logits of p(class | t_0 … t_n): all tokens see each other, and the mean of the outputs is classified.

    Args:
        config: a `SequenceClassifierConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: for sizes that do not fit.

    Cost: as `SequenceTransformer`.

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
        self.config = checked(config, SequenceClassifierConfig, rngs)
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        self.embedding = TokenEmbedding(config, rngs)
        self.layers = _layers(config, rngs)
        self.norm = LayerNorm(config.width, **dtypes)
        self.head = Linear(config.width, config.classes, rngs=rngs, **dtypes)
        self.velocity = TokenEmbedding(config, rngs) if config.momentum.learns_velocity else None

    def __call__(self, tokens: Integer[Array | np.ndarray, "*b n"]) -> Float[Array, "*b classes"]:
        """The logits of the classes.

        Args:
            tokens: numbers below ``vocabulary``, shape (n,) or (b, n), n ≤ ``context``.

        Returns:
            Shape (classes,) or (b, classes).

        Raises:
            As `SequenceTransformer`.
        """
        batch, single = self.batch(tokens)
        x, weights = self.norm(self.encode(batch)), self.weights(batch)
        share = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)
        logits = self.head(jnp.sum(share[..., None].astype(x.dtype) * x, axis=1))
        return logits[0] if single else logits

    def weights(self, inputs: Integer[Array, "b n"]) -> Float[Array, "b n"]:
        """1 per token, 0 for padding."""
        return token_weights(inputs, self.config.padding)


def check_padding(config: Any) -> None:
    """Refuses a padding that is no token."""
    if config.padding is not None and not is_integer(config.padding):
        raise TypeError(f"padding must be a token, an integer, or None, got {config.padding!r}.")
    if config.padding is not None and not 0 <= config.padding < config.vocabulary:
        raise ValueError(
            f"padding must be a token, 0 to vocabulary - 1 = {config.vocabulary - 1}, or None, got {config.padding}."
        )


def token_weights(tokens: Integer[Array, "b n"], padding: int | None) -> Float[Array, "b n"]:
    """1 per token, 0 for padding."""
    counts = jnp.ones(tokens.shape, bool) if padding is None else tokens != padding
    return counts.astype(jnp.float32)


class TokenEmbedding(nnx.Module):
    """A vector per token plus a vector per position, (b, n) to (b, n, d)."""

    def __init__(self, config: Any, rngs: nnx.Rngs):
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        self.tokens = nnx.Embed(config.vocabulary, config.width, rngs=rngs, **dtypes)
        self.positions = _positions(config.context, config, rngs)

    def __call__(self, tokens: Integer[Array, "b n"]) -> Float[Array, "b n d"]:
        """The vectors."""
        x = self.tokens(tokens)
        return x + self.positions[: tokens.shape[1]].astype(x.dtype)[None]


@dataclasses.dataclass(frozen=True)
class VisionTransformerConfig:
    """Sizes and choices of a `VisionTransformer`.

    Attributes:
        side: pixels along each side of an image.
        channels: colours.
        classes: number of classes.
        patch: pixels along each side of a patch, a divisor of the side.
        width: channels d inside.
        heads: h, a divisor of the width.
        layers: encoder layers.
        feedforward: hidden channels of the pointwise networks.
        attention: the kernel of the attention and its implementation.
        norm: ``"post"`` or ``"pre"``.
        momentum: whether tokens carry a velocity; its blocks need ``norm="pre"``.
        dropout: rate in training mode.
        activation: ``"gelu"`` (exact) or ``"gelu_tanh"``.
        dtype: dtype of the computation; None: that of the parameters.
        param_dtype: dtype of the parameters.

    Raises:
        TypeError: for a size that is not an integer.
        ValueError: for sizes that do not fit, unknown names and rates outside [0, 1); the message names valid ones.
    """

    side: int
    channels: int = 1
    classes: int = 10
    patch: int = 4
    width: int = 64
    heads: int = 4
    layers: int = 4
    feedforward: int = 256
    attention: IntegralAttentionConfig = IntegralAttentionConfig()
    norm: str = "pre"
    momentum: MomentumConfig = MomentumConfig()
    dropout: float = 0.0
    activation: str = "gelu"
    dtype: str | None = None
    param_dtype: str = "float32"

    def __post_init__(self):
        check_config(self)
        if self.side % self.patch:
            raise ValueError(
                f"patch must divide side = {self.side}, got {self.patch}; valid numbers: {divisors(self.side)}."
            )


class VisionTransformer(_Transformer):
    """The logits of p(class | image): patches as tokens, a class token in front, learned positions.

    Args:
        config: a `VisionTransformerConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: for sizes that do not fit.

    Cost: O(layers · n (n d + d²)) per image of n patches.

    Source: Dosovitskiy et al., arXiv:2010.11929; Touvron et al., arXiv:2012.12877.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import transformers
        >>> config = transformers.VisionTransformerConfig(8, width=8, heads=2, layers=1)
        >>> transformers.VisionTransformer(config, rngs=nnx.Rngs(0))(jnp.ones((3, 8, 8, 1))).shape
        (3, 10)
    """

    def __init__(self, config: VisionTransformerConfig, *, rngs: nnx.Rngs):
        self.config = checked(config, VisionTransformerConfig, rngs)
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        tokens = (config.side // config.patch) ** 2
        self.embedding = PatchEmbedding(config, tokens, rngs)
        self.layers = _layers(config, rngs)
        self.norm = LayerNorm(config.width, **dtypes)
        self.head = Linear(config.width, config.classes, rngs=rngs, **dtypes)
        self.velocity = PatchEmbedding(config, tokens, rngs) if config.momentum.learns_velocity else None

    def __call__(self, images: Float[Array, "y x c"] | Float[Array, "b y x c"]) -> Float[Array, "*b classes"]:
        """The logits of the classes.

        Args:
            images: shape (side, side, channels), or a batch of them.

        Returns:
            Shape (classes,) or (b, classes).

        Raises:
            ValueError: for images of another shape.
        """
        batch, single = self.batch(images)
        logits = self.head(self.norm(self.encode(batch)[:, 0]))
        return logits[0] if single else logits

    def batch(self, inputs: Any) -> tuple[Float[Array, "b y x c"], bool]:
        """Images, checked, as a batch, and whether they were one image."""
        config = self.config
        images = as_float(inputs, "images")
        shape = (config.side, config.side, config.channels)
        if images.ndim not in (3, 4) or images.shape[-3:] != shape or not images.size:
            sizes = ", ".join(map(str, shape))
            raise ValueError(
                f"images must have shape (y, x, c) = ({sizes}), channels last, or (b, {sizes}) with b ≥ 1, got "
                f"{images.shape}."
            )
        single = images.ndim == 3
        return images[None] if single else images, single

    def embed(self, inputs: Float[Array, "b y x c"], embedding: Any) -> Float[Array, "b n d"]:
        """The class token and the patches of a batch by an embedding, as vectors with their positions."""
        config = self.config
        b, count = inputs.shape[0], config.side // config.patch
        cut = inputs.reshape(b, count, config.patch, count, config.patch, config.channels)
        return embedding(jnp.moveaxis(cut, 3, 2).reshape(b, count**2, -1))


class PatchEmbedding(nnx.Module):
    """A class token and an affine map of every patch, plus a vector per position, (b, n, pixels) to (b, n + 1, d)."""

    def __init__(self, config: VisionTransformerConfig, tokens: int, rngs: nnx.Rngs):
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        self.patches = Linear(config.patch**2 * config.channels, config.width, rngs=rngs, **dtypes)
        self.class_token = nnx.Param(jnp.zeros((config.width,), config.param_dtype))
        self.positions = _positions(tokens + 1, config, rngs)

    def __call__(self, patches: Float[Array, "b n p"]) -> Float[Array, "b m d"]:
        """The vectors."""
        tokens = self.patches(patches)
        first = jnp.broadcast_to(self.class_token[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[2]))
        x = jnp.concatenate([first, tokens], axis=1)
        return x + self.positions[...].astype(x.dtype)[None]


def _positions(count: int, config: Any, rngs: nnx.Rngs) -> nnx.Param:
    initial = nnx.initializers.normal(_POSITION_SCALE)
    return nnx.Param(initial(rngs.params(), (count, config.width), jnp.dtype(config.param_dtype)))


def _layers(config: Any, rngs: nnx.Rngs) -> nnx.List:
    dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    return nnx.List(
        encoder_layer(config, lambda: config.attention.make(config.width, config.heads, rngs=rngs, **dtypes), rngs)
        for _ in range(config.layers)
    )
