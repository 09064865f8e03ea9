"""Encoder layers whose tokens have a velocity: accelerated attention as a network block."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._validation import accumulator, check_name, check_size
from jaxop.flows import METHODS, Damping, State, displace, second_order, start, step
from jaxop.flows.softmax import function_rates
from jaxop.nn.attention import check_weights
from jaxop.nn.checks import check_attention
from jaxop.nn.encoder import check_dropout
from jaxop.nn.pointwise import FeedForward, LayerNorm, in_blocks

BLOCKS = ("none", "Y", "H0", "H1", "R2", "exact")
"""What `MomentumConfig.block` may be."""

VELOCITIES = ("learned", "zero")
"""What `MomentumConfig.initial` may be."""


@dataclasses.dataclass(frozen=True)
class MomentumConfig:
    """Whether and how the tokens of a model carry a velocity.

    Attributes:
        block: ``"none"``: no velocity, ordinary residual layers. ``"Y"`` (Nesterov), ``"H0"``, ``"H1"``, ``"R2"``: see
            `MomentumLayer`; they keep the causal order of sequences. ``"exact"``: see `FlowLayer`, for functions and
            images; an attention of its own, of one head of full width between nodes or functions on patches, takes the
            place of the model's, whose heads and Fourier modes are not used; inputs a few times larger than those of
            training can make it overflow.
        initial: the first velocity: ``"learned"`` from the model's input by an embedding of its own, or ``"zero"``.
        method: the integrator of ``"exact"``, a name in `jaxop.flows.METHODS`.

    Raises:
        ValueError: for an unknown name; the message has the closest ones.

    Example:
        >>> from jaxop import nn, operators
        >>> momentum = nn.MomentumConfig(block="R2")
        >>> config = operators.SequenceTransformerConfig(256, width=32, heads=4, momentum=momentum)
        >>> config.momentum.initial
        'learned'
    """

    block: str = "none"
    initial: str = "learned"
    method: str = "kick_damp_drift"

    def __post_init__(self):
        check_name(self.block, "block", BLOCKS)
        check_name(self.initial, "initial", VELOCITIES)
        check_name(self.method, "method", METHODS)
        if self.method != type(self).method and self.block != "exact":
            raise ValueError(f"method={self.method!r} is for block='exact', got block={self.block!r}.")

    @property
    def learns_velocity(self) -> bool:
        """Whether the model needs an embedding of the first velocity."""
        return self.block != "none" and self.initial == "learned"


class Unit(nnx.Module):
    """A trainable number in (0, 1)."""

    def __init__(self, value: float, *, param_dtype: DTypeLike = jnp.float32):
        self.raw = nnx.Param(jnp.asarray(np.log(value) - np.log1p(-value), param_dtype))

    @property
    def value(self) -> Float[Array, ""]:
        """The number."""
        return jax.nn.sigmoid(self.raw[...])

    def __call__(self, like: Array) -> Array:
        """The number, in the dtype of an array."""
        return self.value.astype(like.dtype)


class Positive(Unit):
    """A trainable positive number."""

    def __init__(self, value: float, *, param_dtype: DTypeLike = jnp.float32):
        self.raw = nnx.Param(jnp.asarray(np.log(np.expm1(value)), param_dtype))

    @property
    def value(self) -> Float[Array, ""]:
        """The number."""
        return jax.nn.softplus(self.raw[...])


class MomentumLayer(nnx.Module):
    """Tokens x with velocities v, moved by attention and then by a pointwise network.

        Y ("Nesterov"):  F = Attn(LN(x + μ v)),  v ← LN_v(β v + γ F),            x ← x + v
        H0:              F = Attn(LN(x)),        v ← LN_v(β v + γ F),            x ← x + v
        H1:              z = LN(x), F = Attn(z), v ← LN_v(β v + γ F − C(z; v)),  x ← x + v
        R2:              W = β v + γ F,          x ← x + LN_v(W − ½ C(z; W)),    v ← LN_v(W − C(z; W))

    and then v ← LN_v(β' v + γ' FF(LN(x + μ' v))), x ← x + v in all of them. C is the connection of the softmax metric,

        C(z; v)_i = a_i v_i − ½ (|v_i|² F_i + Σ_heads Σ_j P_ij |v_j|² V z_j O),

    a_i the mean over the heads of the rate at which v changes the logarithm of the softmax denominator of token i. It
    needs no second score matrix, and no row of it looks beyond what the attention itself sees: causal attention makes
    a causal block. Y and H0 take any attention; H1 and R2 one with a method ``with_connection``, for linear attention
    that of `jaxop.flows.linear_connection`.

    Args:
        attention: module called as ``attention(x, *args, **kwargs)``, (…, d) to (…, d).
        width: channels d.
        feedforward: hidden channels of FF.
        block: ``"Y"``, ``"H0"``, ``"H1"`` or ``"R2"``.
        dropout: rate on F and on FF, in training mode.
        activation: of `FeedForward`.
        dtype: dtype of the computation; None: that of the inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` and, if ``dropout > 0``, ``dropout`` are used.

    μ, β start at 0.9 and stay in (0, 1), γ starts at 1 and stays positive; all are trained, one set for the attention
    (``look_ahead.value``, ``retention.value``, ``gain.value``) and one for FF (``feedforward_look_ahead.value``, …).

    Raises:
        ValueError: for an unknown block or activation, or a rate outside [0, 1).
        TypeError: for an attention without a connection in H1 and R2.

    Cost: one attention per layer; in H1 with four times the channels of its values, in R2 applied twice. With causal
    linear attention H1 and R2 fit a d/h × d/h matrix per head, one token after the other.

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
        attention: Any,
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
        check_name(block, "block", [b for b in BLOCKS if b not in ("none", "exact")])
        check_dropout(dropout)
        if block in ("H1", "R2") and not hasattr(attention, "with_connection"):
            raise TypeError(
                f"block {block!r} needs an attention with a method with_connection, got {type(attention).__name__}; "
                "Y and H0 take any."
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
        """The state before the first layer; at rest without a velocity."""
        if velocity is not None and velocity.shape != x.shape:
            raise ValueError(f"velocity must have the shape of x, {x.shape}, got {velocity.shape}.")
        return State(x, jnp.zeros_like(x) if velocity is None else velocity.astype(x.dtype), jnp.ones((), jnp.float32))

    def attention_input(self, state: State) -> Float[Array, "*n d"]:
        """What the attention of this layer acts on: LN(x + μ v) in Y, else LN(x)."""
        x, v = state.position, state.velocity
        if self.look_ahead is None:
            return in_blocks(self.attention_norm, x)
        look_ahead = self.look_ahead(x)
        return in_blocks(lambda x, v: self.attention_norm(x + look_ahead * v), x, v)

    def __call__(self, state: State, *args: Any, **kwargs: Any) -> State:
        """Moves the tokens; further arguments go to the attention."""
        x, v, z = state.position, state.velocity, self.attention_input(state)
        retention, gain = self.retention(x), self.gain(x)

        def accelerated(force: Array) -> Array:
            return retention * v + gain * self._drop(force)

        connection, share = None, 1.0
        if self.block == "H1":
            force, connection = self.attention.with_connection(z, v, *args, **kwargs)
            moved = accelerated(force)
        elif self.block == "R2":
            # drawn here: the proposal is made twice, and must be the same
            drop = None if self.dropout is None else self.dropout(jnp.ones_like(x))

            def proposal(force: Array) -> Array:
                return retention * v + gain * (force if drop is None else drop * force)

            force, connection = self.attention.with_connection(z, proposal, *args, **kwargs)
            moved, share = proposal(force), 0.5
        else:
            moved = accelerated(self.attention(z, *args, **kwargs))
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

        given = {"connection": connection, "keep": keep}
        names = [name for name, array in given.items() if array is not None]
        out = in_blocks(
            lambda x, moved, *rest: pointwise(x, moved, **dict(zip(names, rest, strict=True))),
            x,
            moved,
            *(given[name] for name in names),
        )
        x, v = jnp.split(out, 2, axis=-1)
        return state._replace(position=x, velocity=v, time=state.time + 1)

    def _drop(self, branch: Array) -> Array:
        return branch if self.dropout is None else self.dropout(branch)


class FlowLayer(nnx.Module):
    """One step of the accelerated softmax flow ẍ = −α ẋ + Γ − C of all tokens together, then a pointwise network.

    The exact Hamiltonian system of `jaxop.flows.softmax_rates`, with the quadrature weights of the domain:
    A = L_A L_Aᵀ / d and B = d L_B L_Bᵀ with triangular factors of positive diagonal, the identity at first, so that
    scores start at |x|²/d and V = B A at 1. One kernel of full width; every token sees all others, so it is for
    functions and not for sequences. Damping α(t) = c_log/t + c_lin, t growing by h_y from layer to layer, and the steps
    h_x, h_y are trained, positive all. FF then acts on the velocity: v ← v + FF(LN(x)), x ← x + h_x FF(LN(x)).

    Nothing bounds the velocities, in which C is quadratic: with inputs a few times larger than those of training the
    exact flow can run away and overflow. Standardise inputs, or take Y or H0, whose velocities are normalised.

    Args:
        width: channels d.
        feedforward: hidden channels of FF.
        method: a name in `jaxop.flows.METHODS`.
        dropout: rate on FF, in training mode.
        activation: of `FeedForward`.
        dtype: dtype of the computation of FF; None: that of the inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` and, if ``dropout > 0``, ``dropout`` are used.

    Raises:
        ValueError: for an unknown method or activation, or a rate outside [0, 1).

    Cost: one attention with 3 d channels of values per layer; four with ``"tao"``.

    Source: Stein, Li, Steidl, "SympFormer", arXiv:2603.16535.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, nn
        >>> layer = nn.FlowLayer(8, 16, rngs=nnx.Rngs(0))
        >>> state = layer(layer.start(jnp.ones((3, 16, 8))), domains.interval(16).weights)
        >>> state.position.shape
        (3, 16, 8)
    """

    def __init__(
        self,
        width: int,
        feedforward: int,
        *,
        method: str = "kick_damp_drift",
        dropout: float = 0.0,
        activation: str = "gelu",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_size(width, "width")
        check_size(feedforward, "feedforward")
        check_name(method, "method", METHODS)
        check_dropout(dropout)
        self.method = METHODS[method]()
        identity = jnp.eye(width, dtype=jnp.dtype(param_dtype))
        # softplus of the diagonal is 1
        self.score = nnx.Param(np.log(np.expm1(1.0)) * identity)
        self.mobility = nnx.Param(np.log(np.expm1(1.0)) * identity)
        # with α(1) ≈ 3, methods that take the damping explicitly are unstable from h = 1/3 on
        h = 0.15 if method in ("euler", "ab2") else 0.5
        self.position_step = Positive(h, param_dtype=param_dtype)
        self.velocity_step = Positive(h, param_dtype=param_dtype)
        self.logarithmic = Positive(3.0, param_dtype=param_dtype)
        self.linear = Positive(0.1, param_dtype=param_dtype)
        self.feedforward = FeedForward(
            width, feedforward, activation=activation, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.feedforward_norm = LayerNorm(width, dtype=dtype, param_dtype=param_dtype)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout > 0 else None

    def start(self, x: Float[Array, "*n d"], velocity: Float[Array, "*n d"] | None = None) -> State:
        """The state before the first layer, at t = 1; at rest without a velocity."""
        return start(self.method, x, velocity)

    def matrices(self) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
        """A and B, symmetric and positive definite."""

        def square(raw: Array) -> Array:
            factor = jnp.tril(raw, -1) + jnp.diag(jax.nn.softplus(jnp.diagonal(raw)))
            return factor @ factor.T

        width = self.score[...].shape[0]
        return square(self.score[...]) / width, width * square(self.mobility[...])

    def __call__(
        self,
        state: State,
        weights: Float[Array, " n"] | Float[Array, "b n"] | None = None,
        *,
        measure: Float[Array, " s"] | Float[Array, "b s"] | None = None,
    ) -> State:
        """Moves the tokens of b samples.

        Args:
            state: positions and velocities of n tokens, (b, n, d), or of n functions on patches, (b, n, s, d).
            weights: masses of the tokens, (n,) or (b, n); None: equal.
            measure: for functions, the quadrature weights of a patch, (s,) or (b, s).
        """
        x = state.position
        if x.ndim != (3 if measure is None else 4):
            raise ValueError(
                f"positions must have shape (b, n, d), or (b, n, s, d) with a measure (s,) of the patches, got "
                f"{x.shape}; a single sample is x[None]."
            )
        check_weights(weights, *x.shape[:2])
        check_weights(measure, x.shape[0], x.shape[2], argument="measure")
        dtype = accumulator(x.dtype)
        score, mobility = (m.astype(dtype) for m in self.matrices())

        def acceleration(x: Array, u: Array) -> Array:
            def one(x: Array, u: Array, weights: Array | None, measure: Array | None) -> Array:
                tokens = measure is None
                x, u = (a.astype(dtype)[:, None] if tokens else a.astype(dtype) for a in (x, u))
                force, connection = function_rates(x, u, weights, measure, score=score, mobility=mobility)
                rate = force - connection
                return rate[:, 0] if tokens else rate

            axes = (0, 0, _batch_axis(weights), _batch_axis(measure))
            return jax.vmap(one, in_axes=axes)(x, u, weights, measure).astype(x.dtype)

        wide = jnp.zeros((), dtype)
        schedule = Damping(self.logarithmic(wide), self.linear(wide))
        h_x, h_y = self.position_step(wide), self.velocity_step(wide)
        state = step(self.method, second_order(acceleration), state, schedule, (h_x, h_y))
        branch = in_blocks(lambda x: self.feedforward(self.feedforward_norm(x)), state.position)
        branch = (branch if self.dropout is None else self.dropout(branch)).astype(x.dtype)
        return displace(state, h_x.astype(x.dtype) * branch, branch)


def _batch_axis(weights: Array | None) -> int | None:
    return 0 if weights is not None and weights.ndim == 2 else None


def start_layers(layers: Any, x: Array, velocity: Array | None = None) -> Any:
    """What the first of some layers takes: the tokens, or their state with a velocity."""
    first = next(iter(layers), None)
    return first.start(x, velocity) if isinstance(first, MomentumLayer | FlowLayer) else x


def tokens_of(state: Any) -> Array:
    """The tokens after a layer of either kind."""
    return state.position if isinstance(state, State) else state


def run_layers(layers: Any, x: Array, *args: Any, velocity: Array | None = None, **kwargs: Any) -> Array:
    """The tokens after all layers, with or without a velocity; further arguments go to every layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import nn
        >>> layers = [nn.FlowLayer(4, 8, rngs=nnx.Rngs(0)), nn.FlowLayer(4, 8, rngs=nnx.Rngs(1))]
        >>> nn.run_layers(layers, jnp.ones((1, 5, 4))).shape
        (1, 5, 4)
    """
    state = start_layers(layers, x, velocity)
    for layer in layers:
        state = layer(state, *args, **kwargs)
    return tokens_of(state)
