"""From the name of an operator to its config, and from a config to its module."""

from typing import Any

from flax import nnx

from jaxop.operators.fano import FourierAttentionNeuralOperator, FourierAttentionNeuralOperatorConfig
from jaxop.operators.flow import FlowNeuralOperator, FlowNeuralOperatorConfig
from jaxop.operators.fno import FourierNeuralOperator, FourierNeuralOperatorConfig
from jaxop.operators.tno import TransformerNeuralOperator, TransformerNeuralOperatorConfig
from jaxop.operators.vitno import ViTNeuralOperator, ViTNeuralOperatorConfig

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
