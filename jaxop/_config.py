"""Conversion of configs to JSON and back, by the type hints of their fields."""

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import jax
import numpy as np

from jaxop._validation import check_name, check_type, closest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config")

if TYPE_CHECKING:
    Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | int | float | bool | None
    """Values that ``json`` writes and reads."""
else:
    Json = object  # run-time type checkers cannot follow a recursive alias


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A field that a config no longer has.

    Attributes:
        field: the name of the field.
        idle: the value that had no effect; a recorded field with this value is left out.
        remedy: the replacement, for the error that every other value raises.
    """

    field: str
    idle: object
    remedy: str

    def apply(self, kind: str, values: dict[str, object]) -> None:
        """Converts the recorded fields of a config to this version."""
        value = values.pop(self.field, self.idle)
        if value != self.idle:
            raise ValueError(f"{kind} has no {self.field} any more, got {self.field}={value!r}: {self.remedy}")


@dataclasses.dataclass(frozen=True)
class Retired:
    """A value that a field no longer takes.

    Attributes:
        field: the name of the field.
        value: the value that it no longer takes.
        remedy: the replacement, for the error.
    """

    field: str
    value: object
    remedy: str

    def apply(self, kind: str, values: dict[str, object]) -> None:
        """Raises ``ValueError`` if the recorded fields of a config hold the value."""
        if values.get(self.field) == self.value:
            raise ValueError(f"{kind} has no {self.field}={self.value!r} any more: {self.remedy}")


@dataclasses.dataclass(frozen=True)
class Added:
    """A field that configs of earlier versions did not have.

    Attributes:
        field: the name of the field.
        value: the value that gives the behaviour of earlier versions, if the default does not.
    """

    field: str
    value: object

    def apply(self, kind: str, values: dict[str, object]) -> None:
        """Adds the field to the recorded fields of a config."""
        del kind
        values.setdefault(self.field, self.value)


_TWO_LEVELS = "only the TransformerNeuralOperator has two-level attention; train one."
_FLOW = "the exact flow is a separate operator, the FlowNeuralOperator; train one."

CHANGES: dict[str, tuple[Dropped | Retired | Added, ...]] = {
    "FourierAttentionNeuralOperatorConfig": (Dropped("schwarz", None, _TWO_LEVELS),),
    "ViTNeuralOperatorConfig": (Dropped("schwarz", None, _TWO_LEVELS),),
    "MomentumConfig": (Dropped("method", "kick_damp_drift", _FLOW), Retired("block", "exact", _FLOW)),
    # the vertices of a mesh were scattered nodes, and all samples of a file had the same number of nodes
    "FileData": (
        Added("faces", None),
        Added("offsets", None),
        Added("at_nodes", None),
        Added("sample_dimension", None),
    ),
}
"""Differences between the configs of earlier versions and of this version, by the name of their class."""


def to_dict(config: object, *, name: str = "config") -> dict[str, Json]:
    """Returns the fields of a config in terms of JSON; `from_dict` reads them.

    Args:
        config: any dataclass.
        name: the name of the argument in an error.

    Returns:
        Names and values. Configs inside become dicts, tuples become lists, paths and dtypes become strings.

    Raises:
        TypeError: if ``config`` is not a dataclass, or holds a value without a JSON form; the message says where.

    Example:
        >>> from jaxop import nn, operators
        >>> operators.to_dict(nn.SchwarzAttentionConfig((2, 3)))["subdomains"]
        [2, 3]
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{name} must be a config, an instance of a dataclass, got {config!r}.")
    return to_json(config, name=name)


@overload
def to_json(value: "DataclassInstance | Mapping[str, object]", *, name: str = "settings") -> dict[str, Json]: ...
@overload
def to_json(value: object, *, name: str = "settings") -> Json: ...
def to_json(value: object, *, name: str = "settings") -> Json:
    """Returns ``value`` as dicts, lists, strings, numbers and None, in the form that ``json`` returns.

    Args:
        value: nested dataclasses, mappings, sequences, paths, dtypes and scalars.
        name: the name of the argument in an error.

    Returns:
        The same value, with dataclasses as dicts, sequences as lists, and paths and dtypes as strings.

    Raises:
        TypeError: if a value has no JSON form; the message says where it is.

    Example:
        >>> from jaxop import training
        >>> training.to_json({"shape": (2, 3), "training": training.TrainingConfig(seed=7)})["shape"]
        [2, 3]
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item, name=f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, name=f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return to_json(value.tolist(), name=name)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    dtype = getattr(value, "dtype", value)  # for jnp.float32 too
    if isinstance(dtype, np.dtype):
        return dtype.name
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError(
        f"{name}={value!r} has no JSON form; give numbers, strings, dataclasses, or lists or dicts of them."
    )


def from_dict(kind: type[Config], values: Mapping[str, object], *, name: str = "values") -> Config:
    """Returns the config whose fields `to_dict` (or `dataclasses.asdict`) wrote.

    JSON does not distinguish a list from a tuple, a string from a path, or one class of configs from another; the type
    hints of the fields do. If several classes are possible, the field ``name`` chooses; of classes without a name it is
    the one with the fewest fields among those that have all fields of ``values``. A class may have a classmethod
    ``recorded(values)``, which returns the fields of its constructor. Configs of earlier versions are converted to this
    version.

    Args:
        kind: the class of the config.
        values: its fields, before or after JSON. Absent fields have their defaults.
        name: the name of ``values`` in an error.

    Raises:
        ValueError: if a field or name does not exist (the message has the closest names), or if a setting of an
            earlier version no longer exists (the message names its replacement).
        TypeError: if ``kind`` is not a dataclass, ``values`` is not a dict, fields without a default are missing, or
            a value does not fit the type hint of its field.

    Example:
        >>> from jaxop import nn, operators
        >>> attention = nn.IntegralAttentionConfig(kernel=nn.FourierIntegralConfig(radius=1.0))
        >>> config = operators.CONFIGS["tno"](1, 1, attention=attention)
        >>> operators.from_dict(type(config), operators.to_dict(config)) == config
        True
        >>> operators.from_dict(nn.GaussianConfig, {"inverse_widht": 2.0})
        Traceback (most recent call last):
        ValueError: GaussianConfig has no field 'inverse_widht': did you mean 'inverse_width'?
    """
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise TypeError(f"kind must be the class of a config, such as operators.CONFIGS['tno'], got {kind!r}.")
    check_type(values, name, Mapping, f"a dict of the fields of {kind.__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    present = dict(values)
    for change in CHANGES.get(kind.__name__, ()):
        if isinstance(change, Dropped) != (change.field in fields):
            change.apply(kind.__name__, present)
    recorded: Callable[[dict[str, object]], dict[str, object]] | None = getattr(kind, "recorded", None)
    if recorded is not None:
        present = recorded(present)
    for field in present:
        if field not in fields:
            raise ValueError(f"{kind.__name__} has no field {field!r}: {closest(str(field), fields)}")
    missing = [
        field.name
        for field in fields.values()
        if field.name not in present and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise TypeError(f"{name} must hold all fields of {kind.__name__} without a default, but {missing} are missing.")
    hints = _hints(kind)
    return kind(**{field: _read(hints[field], value, f"{name}.{field}") for field, value in present.items()})


@functools.cache
def _hints(kind: type) -> dict[str, object]:
    return typing.get_type_hints(kind)


def _read(hint: object, value: object, name: str) -> object:
    """Returns the value of a field in the type of its hint; the config itself checks numbers and strings."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, Mapping):
        kinds = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
        return _read_config(kinds, value, name) if kinds else _as_it_is(options, value, name)
    if isinstance(value, list | tuple):
        tuples = [option for option in options if (typing.get_origin(option) or option) is tuple]
        return _read_tuple(tuples[0], value, name) if tuples else _as_it_is(options, value, name)
    if Path in options and isinstance(value, str | os.PathLike):
        return Path(value)
    if Path in options and (value is not None or types.NoneType not in options):
        raise TypeError(f"{name} must be a path, got {value!r}.")
    return value


def _as_it_is(options: tuple[object, ...], value: object, name: str) -> object:
    kinds = [typing.get_origin(option) or option for option in options]
    if any(kind is Any or (isinstance(kind, type) and isinstance(value, kind)) for kind in kinds):
        return value
    raise TypeError(f"{name} must not be a {type(value).__name__}, got {value!r}.")


def _read_config(kinds: list[type], value: Mapping[str, object], name: str) -> object:
    """Returns a config of one of the classes; if there are several, the field ``name`` or the fields choose."""
    by_name = {str(getattr(kind, "name", None)): kind for kind in kinds if hasattr(kind, "name")}
    if len(kinds) > 1 and by_name:
        check_name(value.get("name"), name.rpartition(".")[2], by_name)
        kinds = [by_name[str(value["name"])]]
    elif len(kinds) > 1:
        fields = {kind: {field.name for field in dataclasses.fields(kind)} for kind in kinds}
        fitting = [kind for kind in kinds if set(value) <= fields[kind]]
        if not fitting:
            listing = "; ".join(f"{kind.__name__}: {', '.join(sorted(fields[kind]))}" for kind in kinds)
            raise ValueError(f"{name} must hold fields of one config, got {sorted(value)}; there are {listing}.")
        kinds = [min(fitting, key=lambda kind: len(fields[kind]))]
    return from_dict(kinds[0], value, name=name)


def _read_tuple(hint: object, value: Sequence[object], name: str) -> tuple[object, ...]:
    hints = typing.get_args(hint) or (Any, ...)
    if hints[1:] == (...,):
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise TypeError(f"{name} must hold {len(hints)} entries, got {value!r}.")
    return tuple(_read(hint, item, f"{name}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))
