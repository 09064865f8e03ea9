"""Mixed precision: which operators compute in half precision, with parameters that stay in float32."""

from typing import TypeVar

from flax import nnx

from jaxop.operators import OperatorConfig, build, models
from jaxop.training.config import PRECISIONS

Config = TypeVar("Config", bound=OperatorConfig)
Model = TypeVar("Model", bound=nnx.Module)


def config_in_precision(config: Config, precision: str | None) -> Config:
    """Returns the config of an operator whose ``dtype`` is that of the precision, one of `PRECISIONS`, or None.

    Raises:
        ValueError: if the config has another ``dtype``.

    Example:
        >>> from jaxop import operators
        >>> from jaxop.training.precision import config_in_precision
        >>> config_in_precision(operators.FourierNeuralOperatorConfig(1, 1), "bf16").dtype
        'bfloat16'
    """
    return config if precision is None else config.in_dtypes(dtype=_dtype(config.dtypes["dtype"], precision))


def _dtype(given: str | None, precision: str) -> str:
    dtype = PRECISIONS[precision]
    if given not in (None, dtype):
        raise ValueError(
            f"training.precision={precision!r} computes in {dtype}, but the model was given dtype={given!r}; leave one "
            "of the two out."
        )
    return dtype


def in_precision(model: Model, precision: str | None) -> Model:
    """Returns a copy of a model, with the same variables, that computes in a precision, or the model if it is None.

    Args:
        model: a model that `jaxop.operators.models` lists, or a module with such models inside.
        precision: one of `PRECISIONS`, or None.

    Raises:
        ValueError: if there is no such model inside, or it has another ``dtype``.
    """
    if precision is None:
        return model
    copy = nnx.clone(model)
    kinds = tuple(known.config for known in models().values())
    found = [module for _, module in nnx.iter_modules(copy) if isinstance(vars(module).get("config"), kinds)]
    if not found:
        raise ValueError(
            f"training.precision={precision!r} needs a model of jaxop, whose config has a dtype, got "
            f"{type(model).__name__}; compute in half precision inside your model, and leave precision=None."
        )
    for module in found:
        own = vars(module)["config"]
        config = own.in_dtypes(dtype=_dtype(own.dtypes["dtype"], precision))
        twin = nnx.eval_shape(lambda config=config: build(config, rngs=nnx.Rngs(0)))
        parts = dict(nnx.iter_modules(twin))
        for path, part in nnx.iter_modules(module):
            if hasattr(parts[path], "dtype"):
                part.dtype = parts[path].dtype  # pyright: ignore[reportAttributeAccessIssue]
        module.config = config  # pyright: ignore[reportAttributeAccessIssue]
    return copy
