"""Registry of all models by name, which builds the model of a config."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx

from jaxop.nn import BuildableConfig
from jaxop.operators.config import OperatorConfig

Module = TypeVar("Module", bound=type[nnx.Module])

_PACKAGES = ("jaxop.operators", "jaxop.transformers", "jaxop.dynamics")


@dataclasses.dataclass(frozen=True)
class Model:
    """Entry of the registry, a kind of model.

    Attributes:
        name: its short name, on the command line and in the record of a run.
        config: the class of its configs.
        module: the class of its modules, called as ``module(config, rngs=rngs)``.
    """

    name: str
    config: type[BuildableConfig]
    module: Callable[..., nnx.Module]

    @property
    def description(self) -> str:
        """The first line of the docstring of the module."""
        return (self.module.__doc__ or "").partition("\n")[0]


_MODELS: dict[type[BuildableConfig], Model] = {}

CONFIGS: dict[str, type[Any]] = {}
"""Configs of all neural operators by short name; each is a subclass of `OperatorConfig`."""


def register(name: str, config: type[BuildableConfig]) -> Callable[[Module], Module]:
    """Returns a decorator that gives a module a short name in `build`, `models` and `jaxop.training.Run`.

    Args:
        name: the short name.
        config: the class of its configs.

    Raises:
        ValueError: if another model has the name.

    Example:
        >>> import dataclasses
        >>> from flax import nnx
        >>> from jaxop import nn, operators
        >>> @dataclasses.dataclass(frozen=True)
        ... class ConstantConfig(nn.ModelConfig):
        ...     value: float = 0.0
        >>> @operators.register("constant", ConstantConfig)
        ... class Constant(nnx.Module):
        ...     '''The same number everywhere.'''
        ...     def __init__(self, config, *, rngs):
        ...         self.value = config.value
        >>> operators.build(ConstantConfig(2.0), rngs=nnx.Rngs(0)).value
        2.0
    """

    def add(module: Module) -> Module:
        for known in _MODELS.values():
            # a notebook may define a class twice
            if known.name == name and known.config.__qualname__ != config.__qualname__:
                taken = known.config.__name__
                raise ValueError(f"name={name!r} is taken by {taken}; register the model under another name.")
        _MODELS[config] = Model(name, config, module)
        if issubclass(config, OperatorConfig):
            CONFIGS[name] = config
        return module

    return add


def models() -> dict[str, Model]:
    """Returns all models by short name: those of the package, and those that a user registered.

    Example:
        >>> from jaxop import operators
        >>> {"fano", "tno", "sequence", "image"} <= set(operators.models())
        True
        >>> print(operators.models()["classifier"].description)
        Maps tokens to the logits of p(class | t_0 … t_n): all tokens see each other, and the outputs are averaged.
    """
    _load()
    return {model.name: model for model in _MODELS.values()}


def find(name: str) -> Model | None:
    """Returns the model of a short name, or None; only the packages up to its own are imported."""
    for package in _PACKAGES:
        importlib.import_module(package)
        named = [model for model in _MODELS.values() if model.name == name]
        if named:
            return named[-1]
    return None


def _load() -> None:
    for package in _PACKAGES:
        importlib.import_module(package)


def model_of(config: BuildableConfig) -> Model:
    """Returns the model that a config describes.

    Raises:
        TypeError: if ``config`` is not the config of a registered model.

    Example:
        >>> from jaxop import operators
        >>> operators.model_of(operators.FlowNeuralOperatorConfig(1, 1)).name
        'flow'
    """
    if type(config) not in _MODELS:
        _load()
    if type(config) in _MODELS:
        return _MODELS[type(config)]
    expected = ", ".join(known.__name__ for known in dict.fromkeys([*CONFIGS.values(), *_MODELS]))
    raise TypeError(f"config must be one of {expected}; got {type(config).__name__}.")


def build(config: BuildableConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """Returns a new model of a config.

    Args:
        config: config of any model in `models`.
        rngs: random streams for its parameters (and dropout).

    Raises:
        TypeError: if ``config`` is not the config of a registered model.

    Example:
        >>> from flax import nnx
        >>> from jaxop import operators
        >>> config = operators.CONFIGS["tno"](1, 1, width=16, heads=2, layers=1)
        >>> type(operators.build(config, rngs=nnx.Rngs(0))).__name__
        'TransformerNeuralOperator'
    """
    return model_of(config).module(config, rngs=rngs)
