"""Transformer of images, whose tokens are patches."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxop._validation import as_float, check_size, divisors
from jaxop.nn import Linear
from jaxop.operators import register
from jaxop.operators.divided import device_by_device
from jaxop.transformers.base import Embedding, Transformer, TransformerConfig, positions


@dataclasses.dataclass(frozen=True)
class VisionTransformerConfig(TransformerConfig):
    """Sizes and choices of a `VisionTransformer`.

    The attributes are those of `TransformerConfig` and four more, all keywords.

    Attributes:
        side: pixels along each side of an image.
        channels: colour channels.
        classes: number of classes.
        patch: pixels along each side of a patch, which divides the side.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if sizes do not fit, a name is unknown or a rate is outside [0, 1); the message has valid values.
    """

    side: int
    channels: int = 1
    classes: int = 10
    patch: int = 4
    _: dataclasses.KW_ONLY
    width: int = 64
    heads: int = 4
    feedforward: int = 256

    def __post_init__(self):
        super().__post_init__()
        for name in ("side", "channels", "classes", "patch"):
            check_size(getattr(self, name), name)
        if self.side % self.patch:
            raise ValueError(
                f"patch must divide side = {self.side}, got {self.patch}; valid numbers: {divisors(self.side)}."
            )


@register("image", VisionTransformerConfig)
class VisionTransformer(Transformer[VisionTransformerConfig]):
    """Maps images to the logits of p(class | image): patches as tokens, a class token in front, learned positions.

    Args:
        config: a `VisionTransformerConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

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
        config = VisionTransformerConfig.checked(config, rngs)
        super().__init__(config, lambda: PatchEmbedding(config, rngs), config.classes, rngs=rngs)

    @device_by_device(rank=4)
    def __call__(self, images: Float[Array, "y x c"] | Float[Array, "b y x c"]) -> Float[Array, "*b classes"]:
        """Returns the logits of the classes.

        Args:
            images: shape (side, side, channels), or a batch of such images.

        Returns:
            Shape (classes,) or (b, classes).

        Raises:
            ValueError: if the images have another shape.
        """
        batch, single = self.batch(images)
        logits = self.head(self.norm(self.encode(batch)[:, 0]))
        return logits[0] if single else logits

    def batch(self, inputs: ArrayLike) -> tuple[Float[Array, "b y x c"], bool]:
        """Checks images; returns them as a batch, and True if they were one image."""
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

    def embed(self, inputs: Float[Array, "b y x c"], embedding: Embedding) -> Float[Array, "b n d"]:
        """Returns the class token and the patches of a batch, embedded as vectors with their positions."""
        config = self.config
        b, count = inputs.shape[0], config.side // config.patch
        cut = inputs.reshape(b, count, config.patch, count, config.patch, config.channels)
        return embedding(jnp.moveaxis(cut, 3, 2).reshape(b, count**2, -1))


class PatchEmbedding(nnx.Module):
    """A class token and an affine map of every patch, plus a vector per position, (b, n, pixels) to (b, n + 1, d)."""

    def __init__(self, config: VisionTransformerConfig, rngs: nnx.Rngs):
        self.patches = Linear(config.patch**2 * config.channels, config.width, rngs=rngs, **config.dtypes)
        self.class_token = nnx.Param(jnp.zeros((config.width,), config.param_dtype))
        self.positions = positions((config.side // config.patch) ** 2 + 1, config, rngs)

    def __call__(self, patches: Float[Array, "b n p"]) -> Float[Array, "b m d"]:
        """Returns the vectors."""
        tokens = self.patches(patches)
        first = jnp.broadcast_to(self.class_token[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[2]))
        x = jnp.concatenate([first, tokens], axis=1)
        return x + self.positions[...].astype(x.dtype)[None]
