"""Operators that keep what is known: a base class for an operator around another one."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop._config import from_dict
from jaxop._validation import as_number, check_name, check_type, is_integer
from jaxop.domains import Decomposed, Domain
from jaxop.nn import BuildableConfig
from jaxop.nn.encoder import Dtypes
from jaxop.operators.config import Operator, OperatorConfig
from jaxop.operators.divided import device_by_device
from jaxop.operators.folder import Savable
from jaxop.operators.registry import build, model_of, models

Map = Callable[..., Array]
"""A map between functions, called like an operator."""

Around = TypeVar("Around", bound="AroundConfig")

NOT_AT = "the input has values at its own nodes only; give the operator numbers or functions of the points instead."


@dataclasses.dataclass(frozen=True)
class InputChannelsConfig:
    """Channels of the input function, in the place of given numbers.

    Attributes:
        channels: their numbers, from 0.

    Raises:
        ValueError: if there are none, or a number is not an integer of at least 0.
    """

    channels: tuple[int, ...] = (0,)

    def __post_init__(self):
        check_channels(self.channels, "channels")

    def of(self, values: Float[Array, "*n c"]) -> Float[Array, "*n k"]:
        """Returns these channels of the values."""
        return values[..., list(self.channels)]


@dataclasses.dataclass(frozen=True)
class AroundConfig(BuildableConfig):
    """Base class of the configs of models around one kind of operator, which map the same functions as it.

    Attributes:
        operator: the config of the operator inside, which may itself be a `ConstraintConfig`.
        model: short name of its kind in `jaxop.operators.models`, found from ``operator``; records need it.

    Raises:
        TypeError: if ``operator`` is not the config of an operator.
    """

    operator: BuildableConfig
    _: dataclasses.KW_ONLY
    model: str = dataclasses.field(default="", init=False)

    def __post_init__(self):
        kinds = (OperatorConfig, ConstraintConfig)
        check_type(self.operator, "operator", kinds, "the config of an operator, see operators.CONFIGS")
        object.__setattr__(self, "model", model_of(self.operator).name)

    @property
    def _inside(self) -> "OperatorConfig | ConstraintConfig":
        return cast("OperatorConfig | ConstraintConfig", self.operator)

    @property
    def in_channels(self) -> int:
        """Channels of the input function."""
        return self._inside.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output function."""
        return self._inside.out_channels

    @property
    def dim(self) -> int:
        """Space dimensions of the domain."""
        return self._inside.dim

    @property
    def initial_channels(self) -> int:
        """Length of the initial condition, 0 if there is none."""
        return getattr(self.operator, "initial_channels", 0)

    @property
    def dtypes(self) -> Dtypes:
        """The dtypes of the operator inside."""
        return self.operator.dtypes

    def in_dtypes(self: Around, **dtypes: str | None) -> Around:
        """Returns the config whose operator has another ``dtype`` or ``param_dtype``."""
        return dataclasses.replace(self, operator=self.operator.in_dtypes(**dtypes))

    def prepare(self, domain: Domain | Decomposed) -> Domain | Decomposed:
        """Returns what a compiled call takes in place of a domain, see `OperatorConfig.prepare`."""
        return self._inside.prepare(domain)

    def check_at(self, domain: Domain | Decomposed) -> None:
        """Raises ``ValueError`` if the output cannot be asked for at these nodes, such as beyond prescribed sides."""
        if isinstance(self.operator, AroundConfig):
            self.operator.check_at(domain)

    @property
    def evaluates_anywhere(self) -> bool:
        """Whether the nodes of the output may differ from those of the input."""
        return self._inside.evaluates_anywhere

    @property
    def weighs_outputs(self) -> bool:
        """Whether the output depends on the weights of its nodes, and not on their places alone."""
        return isinstance(self.operator, AroundConfig) and self.operator.weighs_outputs

    def check_any_nodes(self) -> None:
        """Raises ``NotImplementedError`` if a choice needs to know the nodes, see `OperatorConfig.check_any_nodes`."""
        self._inside.check_any_nodes()

    def _needs_known_nodes(self, what: str) -> NotImplementedError:
        """Returns the error for a choice with which one program cannot take any number of nodes."""
        return NotImplementedError(
            f"{what} needs to know the nodes when it is compiled, so they cannot be symbolic: "
            "export(operator, path, domain, symbolic=['batch']) makes one file per domain, as does jaxop export "
            "--symbolic batch --domain FILE."
        )

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of the constructor from those that `jaxop.operators.to_dict` wrote."""
        return recorded_around(values)


@dataclasses.dataclass(frozen=True)
class ConstraintConfig(AroundConfig):
    """Base class of the configs of operators around another operator, whose output keeps what is known."""

    def check_shares_nodes(self, devices: int | None = None) -> None:
        """Raises ``NotImplementedError``: see `OperatorConfig.check_shares_nodes`."""
        del devices
        raise NotImplementedError(
            f"{type(self).__name__.removesuffix('Config')} needs all nodes of a function on one device: use the mesh "
            "axes 'data' and 'model'."
        )


def recorded_around(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config around an operator's, from those that were recorded with the operator's model."""
    fields = {name: value for name, value in values.items() if name != "model"}
    return fields | {"operator": recorded_inside(fields.get("operator"), values.get("model"), "model")}


def recorded_inside(recorded: object, model: object, argument: str, *, name: str = "operator") -> Any:
    """Returns the config that was recorded as JSON with the short name of its model; anything else as it is."""
    if not isinstance(recorded, Mapping):
        return recorded
    known = {key: one.config for key, one in models().items() if issubclass(one.config, OperatorConfig | AroundConfig)}
    check_name(model, argument, known)
    return from_dict(known[str(model)], recorded, name=name)


def innermost(config: BuildableConfig) -> OperatorConfig:
    """Returns the config of the operator inside of all others around it."""
    while isinstance(config, AroundConfig):
        config = config.operator
    assert isinstance(config, OperatorConfig)
    return config


Config = TypeVar("Config", bound=ConstraintConfig)


class ConstrainedOperator(Savable, nnx.Module, Generic[Config]):
    """Base class of operators around another operator G; subclasses define `constrain`.

    In a `Standardized`, which acts in the units of the data, G gets and returns standardised channels, and `constrain`
    acts in the units of the data: constraints are meant in these units.

    Attributes:
        config: the config, with that of G.
        operator: G.
    """

    config: Config
    operator: Operator

    def _build(self, config: Config, rngs: nnx.Rngs) -> None:
        self.config = config
        self.operator = cast(Operator, build(config.operator, rngs=rngs))

    @device_by_device(rank=3)
    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "k c_out"] | Float[Array, "b k c_out"]:
        """Returns the output function on ``at``; the arguments are those of the operator inside."""
        return self.constrain(self.operator, values, domain, at=at, initial=initial)

    def constrain(
        self,
        operator: Map,
        values: Float[Array, "*b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, "*b c0"] | None = None,
    ) -> Float[Array, "*b k c_out"]:
        """Returns the output with any map between functions in the place of the operator inside."""
        raise NotImplementedError


def with_innermost(operator: Map, change: Callable[..., Array]) -> Map:
    """Returns a map like an operator, with ``change(G, values, domain, ...)`` in the place of the innermost G(...)."""
    if isinstance(operator, ConstrainedOperator):
        return functools.partial(operator.constrain, with_innermost(operator.operator, change))
    return functools.partial(change, operator)


def check_channels(channels: object, argument: str, count: int | None = None) -> None:
    """Raises ``ValueError`` unless these are different numbers of channels, below ``count``."""
    whole = isinstance(channels, tuple) and channels and all(is_integer(k) and k >= 0 for k in channels)
    if not whole or len(set(cast(tuple, channels))) < len(cast(tuple, channels)):
        raise ValueError(f"{argument} must be a tuple of different numbers of channels from 0, got {channels!r}.")
    if count is not None and max(cast(tuple, channels)) >= count:
        raise ValueError(f"{argument} must be channels of {count}, 0 to {count - 1}, got {channels}.")


def check_numbers(numbers: Sequence[float], argument: str, count: int) -> None:
    """Raises an error unless there is one number, or one for each of ``count`` channels."""
    if not isinstance(numbers, tuple) or len(numbers) not in (1, count):
        raise ValueError(f"{argument} must be a tuple of one number or of {count}, one per channel, got {numbers!r}.")
    for number in numbers:
        if not jnp.isfinite(as_number(number, argument)):
            raise ValueError(f"{argument} must be finite, got {numbers}.")
