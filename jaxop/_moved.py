"""Public names that have moved to another sub-package and still work in their old place."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the ``__getattr__`` of a module from which names have moved; using one emits a `DeprecationWarning`.

    Args:
        module: the module's name.
        places: the full new name of each moved name.

    Example:
        >>> from jaxop._moved import moved
        >>> get = moved("jaxop.domains", {"fidelity": "jaxop.distillation.fidelity"})
        >>> get("fidelity").__name__
        'fidelity'
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = places[name].rpartition(".")
        warnings.warn(f"{module}.{name} is {places[name]} now; use that name.", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(place), new)

    return get
