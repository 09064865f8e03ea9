"""Transformer neural operator: encoder layers of integral attention on any domain."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import check_size
from jaxop.domains import Decomposed, Domain, Grid
from jaxop.nn import (
    EncoderConfig,
    IntegralAttentionConfig,
    Linear,
    SchwarzAttentionConfig,
    run_layers,
)
from jaxop.nn.encoder import check_attention_config
from jaxop.operators.config import CoordinatesConfig
from jaxop.operators.divided import device_by_device
from jaxop.operators.folder import Savable
from jaxop.operators.nodes import NO_DECODER, check_same, coordinate_features, coordinates, node_functions
from jaxop.operators.registry import register


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerNeuralOperatorConfig(EncoderConfig, CoordinatesConfig):
    """Sizes and choices of a `TransformerNeuralOperator`; the defaults are those of the published study.

    The attributes are those of `CoordinatesConfig` and `jaxop.nn.EncoderConfig` (``in_channels, out_channels, dim``,
    then keywords), and these:

    Attributes:
        decoder_layers: number of cross-attention layers from the coordinates of the output's nodes to the encoded
            input. 0 is the published architecture, whose output is on the input's nodes; with 1 or more the operator
            evaluates anywhere.
        initial_channels: length of ``initial`` = [u0, y0, t0], whose own embedding replaces that of the first node
            (data assimilation). 0 disables it.
        momentum: the velocity of the tokens, in the encoder only; all blocks except ``"none"`` need ``norm="pre"``.
        attention: the kernel of the attention and its implementation.
        schwarz: two-level attention inside subdomains and between coarse tokens, at a lower cost. None keeps attention
            on the whole domain, which the decoder always has.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if sizes do not fit, a name is unknown or a rate is outside [0, 1); the message has valid values.
    """

    FROM_DATA: ClassVar[tuple[str, ...]] = (*CoordinatesConfig.FROM_DATA, "initial_channels")

    decoder_layers: int = 0
    initial_channels: int = 0
    attention: IntegralAttentionConfig = IntegralAttentionConfig()
    schwarz: SchwarzAttentionConfig | None = None

    def __post_init__(self):
        super().__post_init__()
        check_size(self.decoder_layers, "decoder_layers", 0)
        self._check_decoder_sees(self.decoder_layers)
        check_size(self.initial_channels, "initial_channels", 0)
        check_attention_config(self.attention)
        self.check_kernel(self.attention.kernel)
        if self.schwarz is not None:
            self._check_schwarz(self.schwarz)

    def prepare(self, domain: Domain | Decomposed) -> Domain | Decomposed:
        """See `OperatorConfig.prepare`: Schwarz attention needs scattered nodes, meshes and given nodes decomposed."""
        if self.schwarz is None or (isinstance(domain, Grid) and not domain.has_given_nodes):
            return domain
        return self.schwarz.decompose(domain)

    def check_shares_nodes(self, devices: int | None = None) -> None:
        """Raises ``NotImplementedError`` if a choice needs all nodes of a function on one device."""
        del devices
        self._check_coordinates_are_shared()
        blocks, how = ("H1", "R2"), self.attention.implementation
        if self.schwarz is not None:
            raise self._needs_all_nodes("schwarz attention", "schwarz=None")
        if self.momentum.block in blocks:
            raise self._needs_all_nodes(f"the momentum block {self.momentum.block}", "the block none, Y or H0")
        if how not in (None, "chunked"):
            raise self._needs_all_nodes(f"the implementation {how!r} of attention", "'chunked' or None")

    @property
    def evaluates_anywhere(self) -> bool:
        """Whether the nodes of the output may differ from those of the input, which decoder layers allow."""
        return self.decoder_layers > 0

    def check_any_nodes(self) -> None:
        """Raises ``NotImplementedError`` if a choice needs to know the nodes when it is compiled."""
        super().check_any_nodes()
        if self.schwarz is not None:
            raise self._needs_known_nodes("schwarz attention")
        self._check_takes_any_nodes(self.attention.implementation)

    def _check_schwarz(self, schwarz: SchwarzAttentionConfig) -> None:
        if not isinstance(schwarz, SchwarzAttentionConfig):
            raise TypeError(f"schwarz must be nn.SchwarzAttentionConfig(...) or None, got {schwarz!r}.")
        if isinstance(schwarz.subdomains, tuple) and len(schwarz.subdomains) != self.dim:
            raise ValueError(
                f"schwarz.subdomains must be one number or dim = {self.dim}, one per axis, got {schwarz.subdomains}."
            )
        if self.decoder_layers == 0 and self.attention != IntegralAttentionConfig():
            raise ValueError(
                f"attention={self.attention!r} is not used if schwarz is given: the kernel of both levels is "
                "SchwarzAttentionConfig(kernel=...); leave attention out."
            )
        if self.momentum.block in ("H1", "R2"):
            raise ValueError(
                f"Schwarz attention does not have a connection: give block='Y' or 'H0' with schwarz, got "
                f"{self.momentum.block!r}."
            )


@register("tno", TransformerNeuralOperatorConfig)
class TransformerNeuralOperator(Savable, nnx.Module):
    """u ↦ head ∘ layers ∘ lift, lift = Linear([u(x), x]), layers of attention ∫ k(Qu(x), Ku(y)) Vu(y) dy.

    The integrals are quadratures with the weights of the domain. The same parameters act on every domain: grids under
    any rule, uneven samples, scattered nodes and meshes, in every dimension.

    Args:
        config: a `TransformerNeuralOperatorConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

    Cost: O(layers · n (n d + d²)) per sample, and O(n d) memory if attention is chunked.

    Source: Calvello, Kovachki, Levine, Stuart, "Continuum Attention for Neural Operators",
        arXiv:2406.06486. The decoder is ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> config = operators.TransformerNeuralOperatorConfig(1, 2, width=16, heads=2, layers=1)
        >>> operator = operators.TransformerNeuralOperator(config, rngs=nnx.Rngs(0))
        >>> domain = domains.from_samples([0.0, 0.1, 0.4, 1.0])
        >>> operator(jnp.ones((4, 1)), domain).shape
        (4, 2)
    """

    def __init__(self, config: TransformerNeuralOperatorConfig, *, rngs: nnx.Rngs):
        self.config = TransformerNeuralOperatorConfig.checked(config, rngs)
        sizes = config.width, config.heads

        def affine(channels: int) -> Linear:
            return Linear(channels, config.width, param_dtype=config.param_dtype, rngs=rngs)

        seen = config.in_channels + config.coordinate_channels
        self.lift = affine(seen)
        self.initial = affine(config.initial_channels) if config.initial_channels else None
        encoder = config.schwarz or config.attention
        self.layers = nnx.List(
            config.layer(encoder.make(*sizes, rngs=rngs, **config.dtypes), rngs=rngs) for _ in range(config.layers)
        )
        self.query = affine(config.coordinate_channels) if config.decoder_layers else None
        self.decoder = nnx.List(
            config.residual_layer(config.attention.make(*sizes, rngs=rngs, **config.dtypes), rngs=rngs)
            for _ in range(config.decoder_layers)
        )
        self.head = Linear(config.width, config.out_channels, rngs=rngs, **config.dtypes)
        self.velocity = affine(seen) if config.momentum.learns_velocity else None

    @device_by_device(rank=3)
    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "k c_out"] | Float[Array, "b k c_out"]:
        """Returns the output function on ``at``, from samples of the input function on ``domain``.

        Args:
            values: u(x_i), shape (n, c_in), or a batch (b, n, c_in).
            domain: the domain of ``values``; for a batch, one domain or a stack with one for each function.
                If devices share the nodes, those of one device and a `jaxop.domains.Shard`, inside `jax.shard_map`.
                With ``schwarz``, one domain or its `jaxop.schwarz.Decomposition`, which is used unchanged.
                Scattered nodes and meshes inside `jax.jit` need the decomposition.
            at: the domain of the output, one or a stack. None means ``domain``.
            initial: [u0, y0, t0], shape (c0,) or (b, c0), if the operator has ``initial_channels``.

        Raises:
            TypeError: if ``domain`` is not a `Domain`.
            ValueError: if shapes do not fit the config or the domain.
            NotImplementedError: if ``at`` is not ``domain`` and the operator has no decoder layers.
        """
        config = self.config
        sizes = {"in_channels": config.in_channels, "dim": config.dim}
        functions = node_functions(values, domain, at=at, form=config.coordinates, **sizes)
        dtype, single = self.head.result_dtype(functions.dtype), functions.is_single
        x = self.lift(functions.values).astype(dtype)
        velocity = None if self.velocity is None else self.velocity(functions.values).astype(dtype)
        x = self._with_initial(x, initial, single, functions.axis_name)
        measure = functions.weights if config.schwarz is None else config.schwarz.decompose(domain)
        if functions.axis_name is not None:
            config.check_shares_nodes()
        x = run_layers(self.layers, x, measure, velocity=velocity, **functions.shared)
        if self.query is not None:
            nodes = coordinates(at or domain, x.shape[0], config.dim, "at")
            nodes = coordinate_features(nodes, domain, config.coordinates).astype(functions.values.dtype)
            z = self.query(nodes).astype(dtype)
            for layer in self.decoder:
                z = layer(z, functions.weights, context=x, **functions.shared)
            x = z
        else:
            check_same(at, domain, NO_DECODER)
        outputs = self.head(x)
        return outputs[0] if single else outputs

    def _with_initial(self, x: Array, initial: Array | None, single: bool, axis_name: str | None) -> Array:
        expected = self.config.initial_channels
        if self.initial is None:
            if initial is not None:
                raise ValueError("initial must be None: this operator has initial_channels=0.")
            return x
        shape = (expected,) if single else (x.shape[0], expected)
        if initial is None or initial.shape != shape:
            received = "None" if initial is None else initial.shape
            raise ValueError(f"initial must have shape {shape} = [u0, y0, t0] per sample, got {received}.")
        first = self.initial(initial[None] if single else initial).astype(x.dtype)
        if axis_name is not None:
            first = jnp.where(jax.lax.axis_index(axis_name) == 0, first, x[:, 0])
        return x.at[:, 0].set(first)
