"""From the name of an operator to its config, and from a config to its module."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from flax import nnx

from jaxop._validation import check_name, check_type
from jaxop.nn import KERNELS, MomentumConfig, SchwarzAttentionConfig
from jaxop.operators.fano import FourierAttentionNeuralOperator, FourierAttentionNeuralOperatorConfig
from jaxop.operators.flow import FlowNeuralOperator, FlowNeuralOperatorConfig
from jaxop.operators.fno import FourierNeuralOperator, FourierNeuralOperatorConfig
from jaxop.operators.tno import TransformerNeuralOperator, TransformerNeuralOperatorConfig
from jaxop.operators.vitno import ViTNeuralOperator, ViTNeuralOperatorConfig

Config = TypeVar("Config")

CONFIGS: dict[str, type] = {
    "tno": TransformerNeuralOperatorConfig,
    "vitno": ViTNeuralOperatorConfig,
    "fano": FourierAttentionNeuralOperatorConfig,
    "fno": FourierNeuralOperatorConfig,
    "flow": FlowNeuralOperatorConfig,
}
"""The config of every operator by its short name."""

_OPERATORS: dict[type, type[nnx.Module]] = {
    TransformerNeuralOperatorConfig: TransformerNeuralOperator,
    ViTNeuralOperatorConfig: ViTNeuralOperator,
    FourierAttentionNeuralOperatorConfig: FourierAttentionNeuralOperator,
    FourierNeuralOperatorConfig: FourierNeuralOperator,
    FlowNeuralOperatorConfig: FlowNeuralOperator,
}


_TWO_LEVELS = "two-level attention is an option of the TransformerNeuralOperator alone"
_FLOW = "the exact flow is an operator of its own, the FlowNeuralOperator"

_RETIRED: dict[tuple[type, str], tuple[Any, str]] = {
    (FourierAttentionNeuralOperatorConfig, "schwarz"): (None, _TWO_LEVELS),
    (ViTNeuralOperatorConfig, "schwarz"): (None, _TWO_LEVELS),
    (MomentumConfig, "method"): ("kick_damp_drift", _FLOW),
}
"""Fields that configs of version 0.1.0 had: the value that changed nothing, and where the others have gone."""


def from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A config from what `dataclasses.asdict` made of it, settings of attention and kernels included.

    Args:
        kind: the class of the config.
        values: its fields, through JSON or not; settings within settings are dicts, those of kernels carry their name.
            Fields of earlier versions are dropped where they changed nothing.

    Raises:
        ValueError: for an unknown field or kernel, with the closest valid names, or a setting that this version does
            not have any more; the message says what took its place.
        TypeError: if fields are missing.

    Example:
        >>> import dataclasses
        >>> from jaxop import nn, operators
        >>> attention = nn.IntegralAttentionConfig(kernel=nn.FourierIntegralConfig(radius=1.0))
        >>> config = operators.CONFIGS["tno"](1, 1, attention=attention)
        >>> operators.from_dict(type(config), dataclasses.asdict(config)) == config
        True
    """
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise TypeError(f"kind must be the class of a config, such as operators.CONFIGS['tno'], got {kind!r}.")
    check_type(values, "values", Mapping, f"a dict of the fields of {kind.__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = _present(kind, values)
    for name in values:
        check_name(name, "field", fields)
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise TypeError(f"values must hold all fields of {kind.__name__} without a default, but {missing} are missing.")

    def settle(name: str, value: Any) -> Any:
        if isinstance(value, list):  # JSON has no tuples
            return tuple(value)
        if not isinstance(value, Mapping):
            return value
        if name == "schwarz":
            return from_dict(SchwarzAttentionConfig, value)
        if name == "kernel":
            check_name(value.get("name"), "kernel", KERNELS)
            return from_dict(KERNELS[value["name"]], value)
        if not dataclasses.is_dataclass(fields[name].default):
            raise TypeError(f"{name} of {kind.__name__} must not be a dict, got {value!r}.")
        return from_dict(type(fields[name].default), value)

    return kind(**{name: settle(name, value) for name, value in values.items()})


def _present(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a config has today, of those that one of an earlier version had."""
    present = {}
    for name, value in values.items():
        if (kind, name) not in _RETIRED:
            present[name] = value
            continue
        idle, place = _RETIRED[kind, name]
        if value != idle:
            raise ValueError(f"{kind.__name__} has no {name} any more, got {name}={value!r}: {place}; train it anew.")
    if kind is MomentumConfig and present.get("block") == "exact":
        raise ValueError(f"MomentumConfig has no block='exact' any more: {_FLOW}; train it anew.")
    return present


def build(config: Any, *, rngs: nnx.Rngs) -> nnx.Module:
    """The operator that a config describes.

    Args:
        config: an instance of one of the classes in `CONFIGS`.
        rngs: random streams for its parameters (and dropout).

    Raises:
        TypeError: for anything else.

    Example:
        >>> from flax import nnx
        >>> from jaxop import operators
        >>> config = operators.CONFIGS["tno"](1, 1, width=16, heads=2, layers=1)
        >>> type(operators.build(config, rngs=nnx.Rngs(0))).__name__
        'TransformerNeuralOperator'
    """
    if type(config) not in _OPERATORS:
        expected = ", ".join(cls.__name__ for cls in _OPERATORS)
        raise TypeError(f"config must be one of {expected}; got {type(config).__name__}.")
    make: Any = _OPERATORS[type(config)]
    return make(config, rngs=rngs)
