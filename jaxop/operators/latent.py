"""Latent neural operator: nodes exchange values through a few learned latent tokens, at a cost linear in the nodes."""

import dataclasses
import typing
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from jaxop._config import from_dict
from jaxop._validation import check_size, check_type
from jaxop.domains import Decomposed, Domain
from jaxop.nn import (
    LatentAttention,
    LatentAttentionConfig,
    LayersConfig,
    Linear,
    LocalConfig,
    LocalThenGlobal,
    run_layers,
)
from jaxop.operators.config import CoordinatesConfig
from jaxop.operators.divided import device_by_device
from jaxop.operators.folder import Savable
from jaxop.operators.nodes import (
    NO_DECODER,
    check_no_initial,
    check_same,
    coordinate_features,
    coordinates,
    node_functions,
)
from jaxop.operators.registry import register


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentNeuralOperatorConfig(LayersConfig, CoordinatesConfig):
    """Sizes and choices of a `LatentNeuralOperator`; `flare` and the other presets are published models.

    The attributes are those of `CoordinatesConfig` and `jaxop.nn.LayersConfig` (``in_channels, out_channels, dim``,
    then keywords), and these:

    Attributes:
        layers: number of layers on the nodes of the input; 0 leaves all work to the decoder layers.
        decoder_layers: number of layers of latent attention from the coordinates of the output's nodes to the encoded
            input. 0 gives the output on the input's nodes; with 1 or more the operator evaluates anywhere.
        attention: the latent attention of all layers. If ``decode="same"``, a decoder layer encodes and decodes by the
            coordinates of the nodes, and there is at most one.
        local: integrals before the scores and values of every layer on the nodes of the input. Averages over
            neighbourhoods take any nodes, integrals with a kernel of few Fourier modes take grids of equal weights.
            None omits them.

    Raises:
        TypeError: if a size is not an integer, ``attention`` is not a `jaxop.nn.LatentAttentionConfig`, or ``local`` is
            neither None nor one of `jaxop.nn.LocalConfig`.
        ValueError: if sizes do not fit, a name is unknown or a rate is outside [0, 1); the message has valid values.
    """

    FEWEST_LAYERS: ClassVar[int] = 0

    norm: str = "pre"
    decoder_layers: int = 0
    attention: LatentAttentionConfig = LatentAttentionConfig()
    local: LocalConfig | None = None

    def __post_init__(self):
        super().__post_init__()
        check_size(self.decoder_layers, "decoder_layers", 0)
        self._check_decoder_sees(self.decoder_layers)
        expected = "nn.LatentAttentionConfig(...), made by operators.from_dict from a dict"
        check_type(self.attention, "attention", LatentAttentionConfig, expected)
        if self.local is not None:
            expected = "None, nn.LocalAverageConfig(radius=...) or nn.SpectralIntegralConfig(modes=...)"
            check_type(self.local, "local", typing.get_args(LocalConfig), expected)
            if self.layers == 0:
                raise ValueError(
                    f"local={self.local!r} needs layers on the nodes of the input, but layers is 0; give layers=1 or "
                    "more, or local=None."
                )
        if self.layers + self.decoder_layers == 0:
            raise ValueError("layers and decoder_layers are both 0, and no node would see another; set one above 0.")
        if self.attention.decode == "same" and self.decoder_layers > 1:
            raise ValueError(
                f"decoder_layers must be at most 1 with attention.decode='same', whose scores compare coordinates, got "
                f"{self.decoder_layers}; use decode='query'."
            )

    def check_shares_nodes(self, devices: int | None = None) -> None:
        """Raises ``NotImplementedError`` if a choice needs all nodes of a function on one device."""
        del devices
        self._check_coordinates_are_shared()
        if self.local is not None:
            raise self._needs_all_nodes("the local integral", "local=None")
        how = self.attention.implementation
        if how not in (None, "chunked"):
            raise self._needs_all_nodes(f"the implementation {how!r} of attention", "'chunked' or None")

    @property
    def evaluates_anywhere(self) -> bool:
        """Whether the nodes of the output may differ from those of the input, which decoder layers allow."""
        return self.decoder_layers > 0

    def check_any_nodes(self) -> None:
        """Raises ``NotImplementedError`` if a choice needs to know the nodes when it is compiled."""
        super().check_any_nodes()
        if self.local is not None:
            raise self._needs_known_nodes("the local integral")
        self._check_takes_any_nodes(self.attention.implementation)

    @classmethod
    def flare(
        cls, in_channels: int, out_channels: int, dim: int = 1, **choices: object
    ) -> "LatentNeuralOperatorConfig":
        """Returns the config of FLARE: 64 latent queries per head, no mix, and the same scores in both directions.

        Differences: the integrals have weights; keys and values are affine instead of residual networks.

        Args:
            in_channels: channels of the input function.
            out_channels: channels of the output function.
            dim: space dimensions of the domain.
            choices: any fields of the config, in place of the preset's.

        Source: Puri et al., "FLARE: Fast Low-rank Attention Routing Engine", arXiv:2508.12594.

        Example:
            >>> from jaxop import operators
            >>> operators.LatentNeuralOperatorConfig.flare(1, 1, dim=2, layers=4).attention.scale
            1.0
        """
        attention = LatentAttentionConfig(latents=64, scale=1.0)
        return cls._preset((in_channels, out_channels, dim), choices, layers=8, attention=attention)

    @classmethod
    def lno(cls, in_channels: int, out_channels: int, dim: int = 1, **choices: object) -> "LatentNeuralOperatorConfig":
        """Returns the config of the latent neural operator LNO: encode once, 4 blocks of latents, decode anywhere.

        Differences: the integrals have weights; every head has its own scores; the embedding of the output's
        coordinates is added to the decoded values.

        Args:
            in_channels: see `flare`.
            out_channels: see `flare`.
            dim: see `flare`.
            choices: see `flare`.

        Source: Wang, Wang, "Latent Neural Operator for Solving Forward and Inverse PDE Problems", arXiv:2406.03923.

        Example:
            >>> from jaxop import operators
            >>> config = operators.LatentNeuralOperatorConfig.lno(1, 1, width=64)
            >>> config.layers, config.decoder_layers, config.attention.blocks
            (0, 1, 4)
        """
        attention = LatentAttentionConfig(latents=256, blocks=4)
        return cls._preset((in_channels, out_channels, dim), choices, layers=0, decoder_layers=1, attention=attention)

    @classmethod
    def transolver(
        cls, in_channels: int, out_channels: int, dim: int = 1, **choices: object
    ) -> "LatentNeuralOperatorConfig":
        """Returns the config of Transolver: 64 slices, whose means attend to each other.

        Differences: the integrals have weights, and the masses of the slices no ε; every head has its own slices,
        without bias; temperatures stay in [0.1, 5] on all domains; there is no convolution of pixels on grids, whose
        place ``local`` has.

        Args:
            in_channels: see `flare`.
            out_channels: see `flare`.
            dim: see `flare`.
            choices: see `flare`.

        Source: Wu, Luo, Wang, Wang, Long, "Transolver", arXiv:2402.02366.

        Example:
            >>> from jaxop import operators
            >>> operators.LatentNeuralOperatorConfig.transolver(1, 1).attention.encode
            'slices'
        """
        attention = _slices("attention", "head")
        return cls._preset((in_channels, out_channels, dim), choices, layers=8, attention=attention)

    @classmethod
    def transolver_plus(
        cls, in_channels: int, out_channels: int, dim: int = 1, **choices: object
    ) -> "LatentNeuralOperatorConfig":
        """Returns the config of Transolver++: slices with a temperature at every node.

        Differences: those of `transolver`, except the range of the temperatures; no Gumbel noise; values have a
        projection of their own.

        Args:
            in_channels: see `flare`.
            out_channels: see `flare`.
            dim: see `flare`.
            choices: see `flare`.

        Source: Luo et al., "Transolver++", arXiv:2502.02414.

        Example:
            >>> from jaxop import operators
            >>> operators.LatentNeuralOperatorConfig.transolver_plus(1, 1).attention.temperature
            'point'
        """
        attention = _slices("attention", "point")
        return cls._preset((in_channels, out_channels, dim), choices, layers=8, attention=attention)

    @classmethod
    def functional(
        cls, in_channels: int, out_channels: int, dim: int = 1, **choices: object
    ) -> "LatentNeuralOperatorConfig":
        """Returns the config of functional attention: slices, whose means are mixed by least squares.

        Differences: those of `transolver`; the sum over slices is a mean, so their number does not change the ridge.

        Args:
            in_channels: see `flare`.
            out_channels: see `flare`.
            dim: see `flare`.
            choices: see `flare`.

        Source: Xiao, Gao, Weber, Yang, Cremers, "Functional Attention", arXiv:2605.31559.

        Example:
            >>> from jaxop import operators
            >>> operators.LatentNeuralOperatorConfig.functional(1, 1).attention.mix
            'least_squares'
        """
        attention = _slices("least_squares", "head")
        return cls._preset((in_channels, out_channels, dim), choices, layers=8, attention=attention)

    @classmethod
    def _preset(
        cls, sizes: tuple[int, int, int], choices: dict[str, object], **fields: object
    ) -> "LatentNeuralOperatorConfig":
        fields |= dict(zip(("in_channels", "out_channels", "dim"), sizes, strict=True))
        return from_dict(cls, fields | choices, name="choices")


def _slices(mix: str, temperature: str) -> LatentAttentionConfig:
    return LatentAttentionConfig(latents=64, encode="slices", mix=mix, temperature=temperature, scale=1.0)


@register("latent", LatentNeuralOperatorConfig)
class LatentNeuralOperator(Savable, nnx.Module):
    """u ↦ head ∘ layers ∘ lift, where the layers integrate over the nodes into G latents and read them at the nodes.

    The lift is a network of [u(x), x]. The integrals of `jaxop.nn.LatentAttention` are quadratures with the weights of
    the domain, so the same parameters act on every domain: grids under any rule, uneven samples, scattered nodes and
    meshes. The cost is linear in the nodes.

    Args:
        config: a `LatentNeuralOperatorConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

    Cost: O(layers · n d (G + d)) per sample, and O(n d) memory if attention is chunked.

    Source: see the presets of `LatentNeuralOperatorConfig`. The weights and the decoder are ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> config = operators.LatentNeuralOperatorConfig(1, 2, width=16, heads=2, layers=0, decoder_layers=1)
        >>> operator = operators.LatentNeuralOperator(config, rngs=nnx.Rngs(0))
        >>> domain, at = domains.from_samples([0.0, 0.1, 0.4, 1.0]), domains.interval(7)
        >>> operator(jnp.ones((4, 1)), domain, at=at).shape
        (7, 2)
    """

    def __init__(self, config: LatentNeuralOperatorConfig, *, rngs: nnx.Rngs):
        self.config = LatentNeuralOperatorConfig.checked(config, rngs)

        sizes = config.width, config.heads

        def layers(count: int, local: LocalConfig | None = None) -> nnx.List:
            def attention() -> LatentAttention | LocalThenGlobal:
                layer = config.attention.make(*sizes, rngs=rngs, **config.dtypes)
                if local is None:
                    return layer
                return LocalThenGlobal(local.make(*sizes, dim=config.dim, rngs=rngs, **config.dtypes), layer)

            return nnx.List(config.residual_layer(attention(), rngs=rngs) for _ in range(count))

        self.lift = config.network(config.in_channels + config.coordinate_channels, rngs=rngs)
        self.layers = layers(config.layers, config.local)
        self.query = config.network(config.coordinate_channels, rngs=rngs) if config.decoder_layers else None
        self.decoder = layers(config.decoder_layers)
        self.head = Linear(config.width, config.out_channels, rngs=rngs, **config.dtypes)

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
            at: the domain of the output, one or a stack. None means ``domain``.
            initial: must be None.

        Raises:
            TypeError: if ``domain`` is not a `Domain`.
            ValueError: if shapes do not fit the config or the domain.
            NotImplementedError: if ``at`` is not ``domain`` and the operator has no decoder layers.
        """
        config = self.config
        sizes = {"in_channels": config.in_channels, "dim": config.dim}
        functions = node_functions(values, domain, at=at, form=config.coordinates, **sizes)
        check_no_initial(initial)
        if functions.axis_name is not None:
            config.check_shares_nodes()
        dtype = self.head.result_dtype(functions.dtype)
        x = self.lift(functions.values).astype(dtype)
        local = {} if config.local is None else {"domain": domain}
        x = run_layers(self.layers, x, functions.weights, velocity=None, **functions.shared, **local)
        if self.query is not None:
            nodes = coordinates(at or domain, x.shape[0], config.dim, "at")
            nodes = coordinate_features(nodes, domain, config.coordinates).astype(functions.values.dtype)
            z = self.query(nodes).astype(dtype)
            positions = None
            if config.attention.decode == "same":
                known = self.query(functions.values[..., config.in_channels :]).astype(dtype)
                positions = self.decoder[0].attention_input(known)
            for layer in self.decoder:
                z = layer(z, functions.weights, context=x, positions=positions, **functions.shared)
            x = z
        else:
            check_same(at, domain, NO_DECODER)
        outputs = self.head(x)
        return outputs[0] if functions.is_single else outputs
