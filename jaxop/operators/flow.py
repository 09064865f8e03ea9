"""Flow neural operator: tokens that move by the exact accelerated softmax flow."""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import check_name, check_size
from jaxop.domains import Decomposed, Domain
from jaxop.flows import METHODS
from jaxop.nn import VELOCITIES, FlowLayer, Linear, run_layers
from jaxop.nn.pointwise import check_dropout
from jaxop.operators.config import CoordinatesConfig
from jaxop.operators.divided import device_by_device
from jaxop.operators.folder import Savable
from jaxop.operators.nodes import check_no_initial, check_same, node_functions
from jaxop.operators.registry import register


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowNeuralOperatorConfig(CoordinatesConfig):
    """Sizes and choices of a `FlowNeuralOperator`.

    The attributes are those of `CoordinatesConfig` (``in_channels, out_channels, dim``, then keywords), and these:

    Attributes:
        layers: steps of the flow, each followed by a pointwise network.
        feedforward: hidden channels of the pointwise networks.
        method: the integrator, a name in `jaxop.flows.METHODS`.
        velocity: the initial velocity: ``"learned"`` from the input function by a separate affine map, or ``"zero"``.
        dropout: rate on the pointwise networks, in training mode.
        dtype: dtype of the pointwise maps. None takes the dtype of inputs and parameters. The flow runs in float32 or
            wider.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a name is unknown or a rate is outside [0, 1); the message has valid values.
    """

    feedforward: int = 128
    method: str = "kick_damp_drift"
    velocity: str = "learned"
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_size(self.feedforward, "feedforward")
        check_name(self.method, "method", METHODS)
        check_name(self.velocity, "velocity", VELOCITIES)
        check_dropout(self.dropout)


@register("flow", FlowNeuralOperatorConfig)
class FlowNeuralOperator(Savable, nnx.Module):
    """u ↦ head ∘ layers ∘ lift, lift = Linear([u(x), x]), layers of `jaxop.nn.FlowLayer`: ẍ = −α ẋ + Γ − C.

    The nodes of the domain are particles with the quadrature weights as masses, and every layer is one step of the
    exact Hamiltonian system of softmax attention. The attention has one head, and the velocities are not normalised.
    Standardise inputs: the flow can overflow if inputs are a few times larger than in training.

    Args:
        config: a `FlowNeuralOperatorConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

    Cost: O(layers · n (n d + d²)) per sample; four times the attention with ``method="tao"``.

    Source: Stein, Li, Steidl, "SympFormer", arXiv:2603.16535; for functions: Calvello, Kovachki, Levine, Stuart,
        arXiv:2406.06486.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> config = operators.FlowNeuralOperatorConfig(1, 2, width=16, layers=1)
        >>> operator = operators.FlowNeuralOperator(config, rngs=nnx.Rngs(0))
        >>> operator(jnp.ones((4, 1)), domains.from_samples([0.0, 0.1, 0.4, 1.0])).shape
        (4, 2)
    """

    def __init__(self, config: FlowNeuralOperatorConfig, *, rngs: nnx.Rngs):
        self.config = FlowNeuralOperatorConfig.checked(config, rngs)

        def lift() -> Linear:
            sizes = config.in_channels + config.coordinate_channels, config.width
            return Linear(*sizes, param_dtype=config.param_dtype, rngs=rngs)

        self.lift = lift()
        self.layers = nnx.List(
            FlowLayer(
                config.width,
                config.feedforward,
                method=config.method,
                dropout=config.dropout,
                activation=config.activation,
                rngs=rngs,
                **config.dtypes,
            )
            for _ in range(config.layers)
        )
        self.head = Linear(config.width, config.out_channels, rngs=rngs, **config.dtypes)
        self.velocity = lift() if config.velocity == "learned" else None

    @device_by_device(rank=3)
    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "n c_out"] | Float[Array, "b n c_out"]:
        """Returns the output function on the nodes of the input.

        Args:
            values: u(x_i), shape (n, c_in), or a batch (b, n, c_in).
            domain: where ``values`` were sampled; for a batch, one domain for all or a stack, one for each.
            at: None or the input's domain.
            initial: must be None.

        Raises:
            TypeError: if the domain is not a `Domain`.
            ValueError: if shapes do not fit the config or the domain.
            NotImplementedError: if ``at`` is not the input's domain.
        """
        config = self.config
        sizes = {"in_channels": config.in_channels, "dim": config.dim}
        functions = node_functions(values, domain, at=at, form=config.coordinates, **sizes)
        if functions.axis_name is not None:
            config.check_shares_nodes()
        check_no_initial(initial)
        check_same(
            at,
            domain,
            "this operator gives its output on the nodes of its input. Use the TransformerNeuralOperator with decoder "
            "layers, which evaluates anywhere.",
        )
        dtype = self.head.result_dtype(functions.dtype)
        x = self.lift(functions.values).astype(dtype)
        velocity = None if self.velocity is None else self.velocity(functions.values).astype(dtype)
        outputs = self.head(run_layers(self.layers, x, functions.weights, velocity=velocity))
        return outputs[0] if functions.is_single else outputs
