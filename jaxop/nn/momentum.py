"""Encoder layers whose tokens have a velocity: accelerated attention as a network block."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._validation import check_name, check_size
from jaxop.flows import State
from jaxop.nn.checks import check_attention
from jaxop.nn.pointwise import FeedForward, LayerNorm, check_dropout, in_blocks

BLOCKS = ("none", "Y", "H0", "H1", "R2")
"""Values of `MomentumConfig.block`."""

VELOCITIES = ("learned", "zero")
"""Values of `MomentumConfig.initial`."""


@runtime_checkable
class Connected(Protocol):
    """Attention with a connection, for the blocks H1 and R2, such as `jaxop.nn.IntegralAttention`."""

    def __call__(self, x: Array, *args: object, **kwargs: object) -> Array:
        """Returns the attention of x."""
        ...

    def with_connection(
        self, z: Array, velocity: Array | Callable[[Array], Array], *args: object, **kwargs: object
    ) -> tuple[Array, Array]:
        """Returns the attention of z, and the connection C(z; v)."""
        ...


@dataclasses.dataclass(frozen=True)
class MomentumConfig:
    """Settings of the velocity of the tokens of a model.

    Attributes:
        block: with ``"none"`` tokens do not have a velocity, and layers are ordinary residual layers. ``"Y"``
            (Nesterov), ``"H0"``, ``"H1"`` and ``"R2"`` are blocks of `MomentumLayer`; they keep causal order.
        initial: the first velocity: ``"learned"`` from the model's input by a separate embedding, or ``"zero"``.

    Raises:
        ValueError: if a name is unknown; the message has the closest names.

    Example:
        >>> from jaxop import nn, transformers
        >>> momentum = nn.MomentumConfig(block="R2")
        >>> config = transformers.SequenceTransformerConfig(256, width=32, heads=4, momentum=momentum)
        >>> config.momentum.initial
        'learned'
    """

    block: str = "none"
    initial: str = "learned"

    def __post_init__(self):
        check_name(self.block, "block", BLOCKS)
        check_name(self.initial, "initial", VELOCITIES)

    @property
    def learns_velocity(self) -> bool:
        """True if the model needs an embedding of the first velocity."""
        return self.block != "none" and self.initial == "learned"


class Unit(nnx.Module):
    """Trainable number in (0, 1)."""

    def __init__(self, value: float, *, param_dtype: DTypeLike = jnp.float32):
        self.raw = nnx.Param(jnp.asarray(np.log(value) - np.log1p(-value), param_dtype))

    @property
    def value(self) -> Float[Array, ""]:
        """The number."""
        return jax.nn.sigmoid(self.raw[...])

    def __call__(self, like: Array) -> Array:
        """Returns the number in the dtype of an array."""
        return self.value.astype(like.dtype)


class Positive(Unit):
    """Trainable positive number."""

    def __init__(self, value: float, *, param_dtype: DTypeLike = jnp.float32):
        self.raw = nnx.Param(jnp.asarray(np.log(np.expm1(value)), param_dtype))

    @property
    def value(self) -> Float[Array, ""]:
        """The number."""
        return jax.nn.softplus(self.raw[...])


class MomentumLayer(nnx.Module):
    """Layer that moves tokens x with velocities v by attention and then by a pointwise network.

        Y ("Nesterov"):  F = Attn(LN(x + μ v)),  v ← LN_v(β v + γ F),            x ← x + v
        H0:              F = Attn(LN(x)),        v ← LN_v(β v + γ F),            x ← x + v
        H1:              z = LN(x), F = Attn(z), v ← LN_v(β v + γ F − C(z; v)),  x ← x + v
        R2:              W = β v + γ F,          x ← x + LN_v(W − ½ C(z; W)),    v ← LN_v(W − C(z; W))

    and then v ← LN_v(β' v + γ' FF(LN(x + μ' v))), x ← x + v in every block. C is the connection of the softmax metric,

        C(z; v)_i = a_i v_i − ½ (|v_i|² F_i + Σ_heads Σ_j P_ij |v_j|² V z_j O).

    a_i is the mean over the heads of the rate at which v changes the logarithm of the softmax denominator of token i.
    C uses the score matrix of the attention, so that causal attention makes a causal block. Y and H0 take any
    attention. H1 and R2 need an attention with a method ``with_connection``; in linear attention this is
    `jaxop.flows.linear_connection`.

    Args:
        attention: module called as ``attention(x, *args, **kwargs)``, (…, d) to (…, d).
        width: channels d.
        feedforward: hidden channels of FF.
        block: ``"Y"``, ``"H0"``, ``"H1"`` or ``"R2"``.
        dropout: rate on F and on FF, in training mode.
        activation: the activation of `FeedForward`.
        dtype: dtype of the computation; None means the dtype of inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` and, if ``dropout > 0``, ``dropout`` are used.

    μ and β start at 0.9 and stay in (0, 1); γ starts at 1 and stays positive. All are trained, with one set for the
    attention (``look_ahead.value``, ``retention.value``, ``gain.value``) and one for FF
    (``feedforward_look_ahead.value``, …).

    Raises:
        ValueError: if the block or the activation is unknown, or a rate is outside [0, 1).
        TypeError: if the attention of H1 or R2 does not have a method ``with_connection``.

    Cost: one attention per layer. H1 has four times the channels of values, and R2 applies this twice. With causal
    linear attention H1 and R2 solve for a d/h × d/h matrix per head, one token after the other.

    Source: Stein, Li, Steidl, "SympFormer", arXiv:2603.16535, and its corrected study.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> attention = nn.IntegralAttention(8, 2, rngs=nnx.Rngs(0))
        >>> layer = nn.MomentumLayer(attention, 8, 16, block="R2", rngs=nnx.Rngs(1))
        >>> state = layer(layer.start(jnp.ones((1, 5, 8))), is_causal=True)
        >>> state.position.shape
        (1, 5, 8)
    """

    def __init__(
        self,
        attention: Callable[..., Array],
        width: int,
        feedforward: int,
        *,
        block: str = "Y",
        dropout: float = 0.0,
        activation: str = "gelu",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_attention(attention)
        check_size(feedforward, "feedforward")
        check_name(block, "block", BLOCKS[1:])
        check_dropout(dropout)
        if block in ("H1", "R2") and not hasattr(attention, "with_connection"):
            raise TypeError(
                f"block {block!r} needs an attention with a method with_connection, got {type(attention).__name__}; "
                "the blocks Y and H0 take any attention."
            )
        self.block = block
        self.attention = attention
        self.feedforward = FeedForward(
            width, feedforward, activation=activation, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        norms = {"dtype": dtype, "param_dtype": param_dtype}
        self.attention_norm = LayerNorm(width, **norms)
        self.feedforward_norm = LayerNorm(width, **norms)
        self.velocity_norm = LayerNorm(width, **norms)
        self.look_ahead = Unit(0.9, param_dtype=param_dtype) if block == "Y" else None
        self.retention = Unit(0.9, param_dtype=param_dtype)
        self.gain = Positive(1.0, param_dtype=param_dtype)
        self.feedforward_look_ahead = Unit(0.9, param_dtype=param_dtype)
        self.feedforward_retention = Unit(0.9, param_dtype=param_dtype)
        self.feedforward_gain = Positive(1.0, param_dtype=param_dtype)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout > 0 else None

    def start(self, x: Float[Array, "*n d"], velocity: Float[Array, "*n d"] | None = None) -> State:
        """Returns the state before the first layer. Without a velocity, the tokens are at rest."""
        if velocity is not None and velocity.shape != x.shape:
            raise ValueError(f"velocity must have the shape of x, {x.shape}, got {velocity.shape}.")
        return State(x, jnp.zeros_like(x) if velocity is None else velocity.astype(x.dtype), jnp.ones((), jnp.float32))

    def attention_input(self, state: State) -> Float[Array, "*n d"]:
        """Returns the input of the attention of this layer: LN(x + μ v) in Y, otherwise LN(x)."""
        x, v = state.position, state.velocity
        if self.look_ahead is None:
            return in_blocks(self.attention_norm, x)
        look_ahead = self.look_ahead(x)
        return in_blocks(lambda x, v: self.attention_norm(x + look_ahead * v), x, v)

    def __call__(self, state: State, *args: object, **kwargs: object) -> State:
        """Moves the tokens; all arguments after the state go to the attention."""
        x, v, z = state.position, state.velocity, self.attention_input(state)
        retention, gain = self.retention(x), self.gain(x)

        def accelerated(force: Array) -> Array:
            return retention * v + gain * self._drop(force)

        connection, share, attention = None, 1.0, self.attention
        if self.block == "H1":
            assert isinstance(attention, Connected)
            force, connection = attention.with_connection(z, v, *args, **kwargs)
            moved = accelerated(force)
        elif self.block == "R2":
            assert isinstance(attention, Connected)
            # drawn here, because the proposal is made twice with the same mask
            drop = None if self.dropout is None else self.dropout(jnp.ones_like(x))

            def proposal(force: Array) -> Array:
                return retention * v + gain * (force if drop is None else drop * force)

            force, connection = attention.with_connection(z, proposal, *args, **kwargs)
            moved, share = proposal(force), 0.5
        else:
            moved = accelerated(attention(z, *args, **kwargs))
        keep = None if self.dropout is None else self.dropout(jnp.ones_like(x))
        look_ahead, retention, gain = (
            number(x) for number in (self.feedforward_look_ahead, self.feedforward_retention, self.feedforward_gain)
        )

        def pointwise(x: Array, moved: Array, connection: Array | None = None, keep: Array | None = None) -> Array:
            v = self.velocity_norm(moved if connection is None else moved - connection)
            x = x + (v if share == 1.0 or connection is None else self.velocity_norm(moved - share * connection))
            branch = self.feedforward(self.feedforward_norm(x + look_ahead * v))
            v = self.velocity_norm(retention * v + gain * (branch if keep is None else keep * branch))
            return jnp.concatenate([x + v, v], axis=-1)

        optional = {"connection": connection, "keep": keep}
        given = {name: array for name, array in optional.items() if array is not None}
        out = in_blocks(
            lambda x, moved, *rest: pointwise(x, moved, **dict(zip(given, rest, strict=True))),
            x,
            moved,
            *given.values(),
        )
        x, v = jnp.split(out, 2, axis=-1)
        return state._replace(position=x, velocity=v, time=state.time + 1)

    def _drop(self, branch: Array) -> Array:
        return branch if self.dropout is None else self.dropout(branch)
