"""The protocol of neural operators, and the base class of their configs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, TypeVar

from jaxtyping import Array, Float

from jaxop._config import from_dict
from jaxop._validation import check_name, check_size
from jaxop.domains import Decomposed, Domain, Grid
from jaxop.domains.domain import as_domain
from jaxop.nn import ModelConfig

Config = TypeVar("Config", bound="OperatorConfig")

COORDINATES = ("points", "periodic", "none")
"""What an operator sees of the nodes: their coordinates, their places on a torus, or nothing."""

NODES_SHARED_BY = (
    "TransformerNeuralOperator, LatentNeuralOperator, FourierNeuralOperator, FourierAttentionNeuralOperator or "
    "ViTNeuralOperator"
)
"""The operators that devices can compute with the nodes of one function shared among them."""


@dataclasses.dataclass(frozen=True)
class OperatorConfig(ModelConfig):
    """Base class of the configs of neural operators: a `jaxop.nn.ModelConfig` with the channels of the functions.

    Attributes:
        FROM_DATA: the fields that the data decide, see `for_data`.
        FROM_GRID: the fields that `for_data` chooses to suit the grids if they are None.
        in_channels: channels of the input function.
        out_channels: channels of the output function.
        dim: space dimensions of the domain.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1 or a name is unknown; the message has valid values.
    """

    FROM_DATA: ClassVar[tuple[str, ...]] = ("in_channels", "out_channels", "dim")
    FROM_GRID: ClassVar[tuple[str, ...]] = ()

    in_channels: int
    out_channels: int
    dim: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name in ("in_channels", "out_channels", "dim"):
            check_size(getattr(self, name), name)

    def prepare(self, domain: Domain | Decomposed) -> Domain | Decomposed:
        """Returns what a compiled call of the operator takes in place of a domain: its decomposition, if it needs one.

        Grids of a rule, and all domains of an operator without subdomains, are returned unchanged.

        Args:
            domain: the domain of the input function.

        Raises:
            ValueError: if the operator needs subdomains and the domain cannot be cut.

        Example:
            >>> import numpy as np
            >>> from jaxop import domains, nn, operators
            >>> cloud = domains.monte_carlo(np.random.default_rng(0).random((64, 2), np.float32))
            >>> schwarz = nn.SchwarzAttentionConfig(subdomains=4)
            >>> config = operators.TransformerNeuralOperatorConfig(1, 1, dim=2, schwarz=schwarz)
            >>> config.prepare(cloud).subdomains
            4
        """
        return domain

    @classmethod
    def for_data(
        cls: type[Config],
        domain: Domain | Decomposed,
        *,
        in_channels: int,
        out_channels: int,
        initial_channels: int = 0,
        others: Sequence[Domain | Decomposed] = (),
        **choices: object,
    ) -> Config:
        """Returns the config of an operator for functions on a domain; the data decide some of its fields.

        The ``reference`` of an operator on grids is the shortest side of the domain's grid. ``FROM_GRID`` names the
        fields, among ``patches``, ``modes`` and ``smoothing_modes``, that are chosen so that this grid and all others
        can represent them:

        * The number of patches along each axis divides all grids, leaves at least 8 nodes in each patch if possible,
          and is as near to 4 as possible (8 in one dimension).
        * There are 8 modes in a patch, 12 on a grid without patches and 16 in the smoothing, but at most half as many
          as nodes.

        Args:
            domain: domain of the inputs in training.
            in_channels: channels of the inputs.
            out_channels: channels of the targets.
            initial_channels: length of the initial condition, if there is one and the operator takes it.
            others: the other domains on which the operator must run, such as those of the validation.
            choices: any other fields. If a field in ``FROM_GRID`` is absent or None, it is chosen.

        Raises:
            ValueError: if a field is unknown, or choices do not fit each other or the grid.
            TypeError: if a size is not an integer.

        Example:
            >>> from jaxop import domains, operators
            >>> grids = [domains.box((side, side), rule="midpoint") for side in (64, 32)]
            >>> config = operators.CONFIGS["fano"].for_data(
            ...     grids[0], in_channels=1, out_channels=2, others=grids[1:], width=16
            ... )
            >>> config.dim, config.reference, config.patches, config.modes, config.width
            (2, 64, 4, 4, 16)
        """
        domains = [as_domain(domain, "domain"), *(as_domain(other, "others") for other in others)]
        fields = {name: value for name, value in choices.items() if value is not None or name not in cls.FROM_GRID}
        fields |= {"in_channels": in_channels, "out_channels": out_channels, "dim": domains[0].dim}
        if initial_channels and "initial_channels" in cls.FROM_DATA:
            fields["initial_channels"] = initial_channels
        shapes = [grid.shape for grid in domains if isinstance(grid, Grid) and not grid.is_batched]
        fitting = cls._fitting(shapes, fields) if shapes else {}
        return from_dict(cls, {name: fitting[name] for name in fitting if name not in fields} | fields, name="choices")

    def check_shares_nodes(self, devices: int | None = None) -> None:
        """Raises an error unless devices can share the nodes of one function of the operator.

        Such an operator takes the nodes of one device, on a `jaxop.domains.Shard`, inside `jax.shard_map`.

        Args:
            devices: number of devices that share the nodes of a function; None asks whether any number can.

        Raises:
            NotImplementedError: if the operator, or a choice in the config, needs all nodes on one device.
            ValueError: if this number of devices cannot share them.
        """
        del devices
        raise NotImplementedError(
            f"{self._operator} needs all nodes of a function on one device: use the mesh axis 'data' alone, or a "
            f"{NODES_SHARED_BY}, whose nodes devices can share over the axis 'domain'."
        )

    @property
    def acts_on_grids(self) -> bool:
        """Whether the operator takes grids of equal weights only."""
        return False

    @property
    def evaluates_anywhere(self) -> bool:
        """Whether the nodes of the output may differ from those of the input."""
        return False

    def check_any_nodes(self) -> None:
        """Raises ``NotImplementedError`` if a choice in the config needs to know the nodes when it is compiled.

        See `jaxop.operators.export`, which makes one program for any number of nodes. An operator of your own is
        accepted here, and may still be refused when it is traced.
        """

    @property
    def _operator(self) -> str:
        return type(self).__name__.removesuffix("Config")

    def _needs_all_nodes(self, what: str, remedy: str) -> NotImplementedError:
        """Returns the error for a choice with which devices cannot share the nodes of one function."""
        return NotImplementedError(
            f"{what} of a {self._operator} needs all nodes of a function on one device: use {remedy}, or the mesh axis "
            "'data' alone."
        )

    def _check_takes_any_nodes(self, implementation: str | None) -> None:
        """Raises ``NotImplementedError`` unless this implementation of attention takes any number of nodes."""
        if implementation not in (None, "dense"):
            what = f"the implementation {implementation!r} of attention"
            raise self._needs_known_nodes(what, ", and 'dense' takes any number of nodes")

    def _needs_known_nodes(self, what: str, remedy: str = "") -> NotImplementedError:
        """Returns the error for a choice with which one program cannot take any number of nodes."""
        return NotImplementedError(
            f"{what} of a {self._operator} needs to know the nodes when it is compiled, so they cannot be symbolic: "
            "export(operator, path, domain, symbolic=['batch']) makes one file per domain, as does jaxop export "
            f"--symbolic batch --domain FILE{remedy}."
        )

    @classmethod
    def _fitting(cls, shapes: Sequence[Sequence[int]], fields: Mapping[str, object]) -> dict[str, int]:
        """Returns values of ``FROM_GRID`` that all these grids can represent, given the chosen fields."""
        del shapes, fields
        return {}


@dataclasses.dataclass(frozen=True)
class CoordinatesConfig(OperatorConfig):
    """Base class of the configs of operators that see coordinates: an `OperatorConfig` with the form that these have.

    Attributes:
        coordinates: what the operator sees of a node x beside u(x). "points" is x itself. "periodic" is cos and sin of
            2π (x_k − l_k)/L_k for every axis k of the box l + [0, L] of the grid of the input, the same at x and x + L.
            "none" is nothing, so the operator commutes with the translations with which its other parts commute.

    Raises:
        ValueError: if ``coordinates`` is not one of `COORDINATES`.
    """

    coordinates: str = dataclasses.field(default="points", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_name(self.coordinates, "coordinates", COORDINATES)

    @property
    def coordinate_channels(self) -> int:
        """Channels of what the operator sees of a node."""
        return {"points": 1, "periodic": 2, "none": 0}[self.coordinates] * self.dim

    def _check_decoder_sees(self, decoder_layers: int) -> None:
        """Raises ``ValueError`` if decoder layers start from coordinates that are not there."""
        if decoder_layers and self.coordinates == "none":
            raise ValueError(
                f"decoder_layers={decoder_layers} need coordinates, from which they start, but coordinates is 'none'; "
                "give coordinates='points' or 'periodic', or decoder_layers=0."
            )

    def check_any_nodes(self) -> None:
        """Raises ``NotImplementedError`` if a choice needs to know the nodes when it is compiled."""
        if self.coordinates == "periodic":
            raise self._needs_known_nodes("the period of coordinates='periodic'")

    def _check_coordinates_are_shared(self) -> None:
        """Raises ``NotImplementedError`` if the nodes of one device do not tell the coordinates."""
        if self.coordinates == "periodic":
            raise self._needs_all_nodes("coordinates='periodic'", "'points' or 'none'")


class Operator(Protocol):
    """Neural operator: a map between functions, which are sampled on the nodes of domains."""

    @property
    def config(self) -> OperatorConfig:
        """The sizes of the operator."""
        ...

    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "k c_out"] | Float[Array, "b k c_out"]:
        """Returns the output function on ``at``, from samples of the input function on ``domain``."""
        ...
