"""The encoder layer: attention and a pointwise network, each with a residual and a norm."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._validation import as_number, check_name, check_size
from jaxop.nn.checks import check_attention
from jaxop.nn.pointwise import FeedForward, LayerNorm, in_blocks

NORMS = ("post", "pre")
"""Where an encoder layer normalises: after each residual sum, or before each branch."""


class EncoderLayer(nnx.Module):
    """x ← LN(x + Attn(x)), x ← LN(x + FF(x)) ("post"); x ← x + Attn(LN(x)), x ← x + FF(LN(x)) ("pre").

    The layer is pointwise but for its attention, so one layer serves every operator and every layout:
    LN normalises the channels at each node, FF is `FeedForward`, and dropout acts on the output of each
    branch.

    Args:
        attention: module called as ``attention(x, *args, **kwargs)``, (…, d) to (…, d).
        width: channels d.
        feedforward: hidden channels of FF.
        norm: one of `NORMS`.
        dropout: rate, active in training mode (``model.train()``, `nnx.Dropout`).
        activation: of `FeedForward`.
        dtype: dtype of the computation; None: that of the inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` and, if ``dropout > 0``, ``dropout`` are used.

    Raises:
        ValueError: for an unknown norm or activation, or a rate outside [0, 1).

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
        attention: Callable[..., Any],
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

    def __call__(self, x: Float[Array, "*n d"], *args: Any, **kwargs: Any) -> Float[Array, "*n d"]:
        """Applies the layer; further arguments go to the attention."""
        x = x + self._drop(self.attention(self.attention_input(x), *args, **kwargs))
        if self.dropout is None or self.dropout.deterministic:
            return in_blocks(self._pointwise, x)
        # drawn here, because blocks may not advance a random stream
        return in_blocks(self._pointwise, x, self.dropout(jnp.ones_like(x)))

    def attention_input(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """What the attention of this layer acts on: LN(x) ("pre") or x ("post")."""
        return in_blocks(self.attention_norm, x) if self.norm == "pre" else x

    def _pointwise(self, x: Array, keep: Array | None = None) -> Array:
        if self.norm == "post":
            x = self.attention_norm(x)
        branch = self.feedforward(x if self.norm == "post" else self.feedforward_norm(x))
        x = x + (branch if keep is None else keep * branch)
        return self.feedforward_norm(x) if self.norm == "post" else x

    def _drop(self, branch: Array) -> Array:
        return branch if self.dropout is None else self.dropout(branch)


def check_dropout(rate: Any) -> None:
    """Refuses what is not a rate in [0, 1)."""
    if not 0 <= as_number(rate, "dropout") < 1:
        raise ValueError(f"dropout must be a rate in [0, 1), got {rate}.")
