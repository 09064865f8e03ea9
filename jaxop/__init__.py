"""Attention as an operator between function spaces.

The sub-packages are loaded when they are first used: ``import jaxop; jaxop.attention.integral_attention``.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PARTS = (
    "attention",
    "data",
    "distillation",
    "domains",
    "dynamics",
    "experiments",
    "flows",
    "kernel_machines",
    "kernels",
    "nn",
    "operators",
    "schwarz",
    "spectral",
    "testing",
    "training",
    "transformers",
)

if TYPE_CHECKING:
    from jaxop import attention as attention
    from jaxop import data as data
    from jaxop import distillation as distillation
    from jaxop import domains as domains
    from jaxop import dynamics as dynamics
    from jaxop import experiments as experiments
    from jaxop import flows as flows
    from jaxop import kernel_machines as kernel_machines
    from jaxop import kernels as kernels
    from jaxop import nn as nn
    from jaxop import operators as operators
    from jaxop import schwarz as schwarz
    from jaxop import spectral as spectral
    from jaxop import testing as testing
    from jaxop import training as training
    from jaxop import transformers as transformers
    from jaxop.operators import from_pretrained as from_pretrained


def __getattr__(name: str) -> Any:
    if name == "from_pretrained":
        return importlib.import_module("jaxop.operators").from_pretrained
    if name in _PARTS:
        return importlib.import_module(f"jaxop.{name}")
    raise AttributeError(f"module 'jaxop' has no attribute {name!r}; its parts are {', '.join(_PARTS)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PARTS, "from_pretrained"})
