"""Registration of immutable dataclasses as pytrees that are not checked when they are unflattened."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar

import jax

T = TypeVar("T")


def register(cls: type[T], *, static: Sequence[str] = ()) -> type[T]:
    """Registers a frozen dataclass as a pytree; fields named in ``static`` become part of its structure.

    Unflattening bypasses ``__init__``, because transformations replace arrays by placeholders, which a
    constructor that checks its arguments would reject.
    """
    names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    leaves = [name for name in names if name not in static]

    def flatten_with_keys(tree: T):
        children = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in leaves]
        return children, tuple(getattr(tree, name) for name in static)

    def flatten(tree: T):
        return [getattr(tree, name) for name in leaves], tuple(getattr(tree, name) for name in static)

    def unflatten(meta: tuple[object, ...], children: Iterable[object]) -> T:
        tree = object.__new__(cls)
        for name, value in zip(leaves, children, strict=True):
            object.__setattr__(tree, name, value)
        for name, value in zip(static, meta, strict=True):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def leaf_names(tree: object) -> list[str]:
    """Returns the dotted names of the leaves of a pytree, in its order: ``layers.0.kernel``."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
