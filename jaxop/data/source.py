"""Data sources: sets of data with a length and with items by number, for training."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from jaxop.domains import Decomposed, Domain


@runtime_checkable
class DataSource(Protocol):
    """Set of N items that reads only the items of the next batch, so that it may be larger than memory.

    `jaxop.data.Samples`, `jaxop.data.RaggedSamples` and `jaxop.data.Examples` are data sources. Any class with these
    two methods is one.

    A source may also have these methods:

    * ``identity()`` returns numbers, strings, and lists or dicts of them that distinguish this set from others, such as
      the name, version and checksum of a file. A run records the identity and compares it when it is resumed. Without
      this method, the run compares the length and checksums of the first, the middle and the last item.
    * ``groups(batch_size)`` returns a list of `jaxop.data.Group`, if batches have several shapes. Each item is in one
      group. Training draws every batch from one group and compiles one program for each. Without this method, all
      batches have one shape.
    * ``at_step(indices, *, seed, step)`` returns the batch of a training step, if it depends on more than the items,
      such as on random numbers. It must depend on its arguments only, and each item of the batch on its own number,
      not on the others, so that a run can be resumed and can share its batches among devices. Without this method,
      training reads ``source[indices]``, which evaluations do always.

    Example:
        >>> import numpy as np
        >>> from jaxop import data
        >>> class Rows:
        ...     def __init__(self, path):
        ...         self.rows = np.load(path, mmap_mode="r")
        ...     def __len__(self):
        ...         return len(self.rows)
        ...     def __getitem__(self, indices):
        ...         return {"x": self.rows[indices]}
        ...     def identity(self):
        ...         return {"file": "rows.npy", "version": 2}
        >>> isinstance(Rows.__new__(Rows), data.DataSource)
        True
    """

    def __len__(self) -> int:
        """N, the number of items."""
        ...

    def __getitem__(self, indices: Int[np.ndarray, " b"], /) -> Any:
        """Returns the batch of the items with these numbers, in this order.

        A batch is a pytree of arrays whose first axis has length b, such as a `jaxop.data.Batch`, a dict or one
        array. If all items share nodes, these are a `jaxop.domains.Domain` in the batch. Numbers may repeat.
        All batches of a training run must have the same arrays, with the same shapes and dtypes.
        A separate thread calls this method, one call at a time.
        """
        ...


def check_source(source: object, argument: str) -> None:
    """Raises an error unless ``source`` is a `DataSource` with at least one item.

    Raises:
        TypeError: if it does not have a length and items, or if an array of numbers cannot index it, as in a list or
            dict.
        ValueError: if it is empty.
    """
    if not isinstance(source, DataSource) or isinstance(source, type | Mapping | list | tuple | str | bytes):
        raise TypeError(
            f"{argument} must be a data source, such as data.Samples(inputs, targets, domain) or any object with "
            f"__len__ and with __getitem__ of an array of numbers, got {type(source).__name__}."
        )
    if len(source) < 1:
        raise ValueError(f"{argument} is empty: its length is {len(source)}; give at least one item.")


def is_shared(part: object) -> bool:
    """Tells whether all items of a batch share this part of it, a domain that is not a stack."""
    return isinstance(part, Domain | Decomposed) and not part.is_batched


def batch_parts(batch: object) -> tuple[list[PyTree], jax.tree_util.PyTreeDef]:
    """Returns the arrays and the domains of a batch, and the structure that joins them again."""
    return jax.tree.flatten(batch, is_leaf=lambda part: isinstance(part, Domain | Decomposed))


def batch_size(batch: object) -> int | None:
    """Returns the number of items of a batch, the first axis of the parts that items do not share; None if unclear."""
    leaves = jax.tree.leaves([part for part in batch_parts(batch)[0] if not is_shared(part)])
    sizes = {jnp.shape(leaf)[0] for leaf in leaves if jnp.ndim(leaf)}
    return sizes.pop() if len(sizes) == 1 else None


def check_batch(batch: object, count: int, argument: str) -> None:
    """Raises an error unless a source returned a pytree of arrays with ``count`` entries each.

    Raises:
        TypeError: if the batch does not have arrays, or has a leaf that is not an array of numbers.
        ValueError: if an array does not have ``count`` entries; the message names it.
    """
    own = [part for part in batch_parts(batch)[0] if not is_shared(part)]
    if not own:
        raise TypeError(
            f"{argument}[indices] must return a pytree of arrays with one entry per index, got {type(batch).__name__} "
            "without arrays."
        )
    for path, part in jax.tree_util.tree_flatten_with_path(batch, is_leaf=is_shared)[0]:
        if is_shared(part):
            continue
        name = f"{argument}[indices]{jax.tree_util.keystr(path)}"
        is_array = isinstance(part, np.ndarray | np.generic | jax.Array)
        if not is_array or not (part.dtype == bool or jnp.issubdtype(part.dtype, np.number)):
            received = part.dtype if is_array else type(part).__name__
            raise TypeError(f"{name} must be an array of numbers, got {received}; convert it, or leave it out.")
        if part.shape[:1] != (count,):
            raise ValueError(
                f"{name} must have {count} entries for {count} indices, got shape {part.shape}; nodes that all items "
                "share belong into a Domain."
            )


BatchForm = tuple[dict[str, str], jax.tree_util.PyTreeDef]
"""Dtype and shape of every array of a batch by path, and the structure of the batch."""


def batch_form(batch: PyTree) -> BatchForm:
    """Returns what all batches of a run must have in common."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(batch)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}, structure


def check_same_form(batch: PyTree, first: BatchForm, argument: str, step: int) -> None:
    """Raises an error unless the batch of a step has the form of the first batch.

    Raises:
        ValueError: if an array has another dtype or shape, is missing or new, or the structure differs.
    """
    form = batch_form(batch)
    changes = {path: (first[0].get(path, "absent"), form[0].get(path, "absent")) for path in first[0] | form[0]}
    changes = {path: pair for path, pair in changes.items() if pair[0] != pair[1]}
    if not changes and first[1] != form[1]:
        changes = {"": (str(first[1]), str(form[1]))}
    for path, (was, now) in changes.items():
        raise ValueError(
            f"{argument}[indices]{path} must not change from batch to batch: it was {was} in the first batch and is "
            f"{now} in the batch of step {step}."
        )
