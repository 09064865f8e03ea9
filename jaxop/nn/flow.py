"""Layers that are steps of the exact accelerated softmax flow."""

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
from jaxop.nn.momentum import Positive
from jaxop.nn.pointwise import FeedForward, LayerNorm, check_dropout, in_blocks


class FlowLayer(nnx.Module):
    """One step of the accelerated softmax flow ẍ = −α ẋ + Γ − C of all tokens together, then a pointwise network.

    The flow is the exact Hamiltonian system of `jaxop.flows.softmax_rates`, with the quadrature weights of the domain.
    A = L_A L_Aᵀ / d and B = d L_B L_Bᵀ have triangular factors of positive diagonal. Both factors start as the
    identity, so that scores start at |x|²/d and V = B A at 1. The layer has one kernel of full width. Every token sees
    all others, so the layer is for functions and not for sequences. The damping is α(t) = c_log/t + c_lin, and t grows
    by h_y from layer to layer. c_log, c_lin and the steps h_x, h_y are trained and stay positive. FF then acts on the
    velocity: v ← v + FF(LN(x)), x ← x + h_x FF(LN(x)).

    The velocities are not bounded, and C is quadratic in them. If inputs are a few times larger than in training, the
    exact flow can overflow. Standardise inputs, or use the block Y or H0, whose velocities are normalised.

    Args:
        width: channels d.
        feedforward: hidden channels of FF.
        method: a name in `jaxop.flows.METHODS`.
        dropout: rate on FF, in training mode.
        activation: the activation of `FeedForward`.
        dtype: dtype of the computation of FF; None means the dtype of inputs and parameters.
        param_dtype: dtype of the parameters.
        rngs: random streams; ``params`` and, if ``dropout > 0``, ``dropout`` are used.

    Raises:
        ValueError: if the method or the activation is unknown, or a rate is outside [0, 1).

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
        # with α(1) ≈ 3, methods with explicit damping are unstable from h = 1/3 on
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
        """Returns the state before the first layer, at t = 1. Without a velocity, the tokens are at rest."""
        return start(self.method, x, velocity)

    def matrices(self) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
        """Returns A and B, symmetric and positive definite."""

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
            weights: masses of the tokens, (n,) or (b, n); None means equal weights.
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
