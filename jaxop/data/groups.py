"""Groups: items of a data source whose batches have one shape, and the order in which training draws from them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxop._validation import as_integer, check_type
from jaxop.data._support import seed_sequence
from jaxop.data.samples import batch_indices, permutation
from jaxop.data.source import DataSource

_BATCHES = 0x6F73  # the random stream of the order of the batches of several groups
_MEMBERS = 0x6F74  # that of the order of the items in each of several groups


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Items of a data source whose batches have one shape; the source's method ``groups`` returns all of them.

    Attributes:
        indices: numbers of the items in the whole source, shape (g,).
        source: source of length g whose item j is item ``indices[j]`` of the whole source.
        name: what tells the group apart, for the reader of a report, such as "1,024 nodes".
        sizes: number of nodes of each target before padding, shape (g,); None if there is no padding.
    """

    indices: Int[np.ndarray, " g"]
    source: DataSource
    name: str
    sizes: Int[np.ndarray, " g"] | None = None


def has_groups(source: DataSource) -> bool:
    """Tells whether batches of a source have several shapes: it has the optional method ``groups``."""
    return hasattr(source, "groups")


def groups_of(source: DataSource, batch_size: int, argument: str) -> Sequence[Group]:
    """Returns the groups of a source, one of all items if it does not have the optional method ``groups``.

    Args:
        source: the source.
        batch_size: items of a batch.
        argument: name of the source in messages.

    Raises:
        TypeError: if the method does not return groups.
        ValueError: if an item is in two groups or in no group, or two groups have one name.
    """
    method: Callable[[int], Sequence[Group]] | None = getattr(source, "groups", None)  # optional in a DataSource
    if method is None:
        return [Group(np.arange(len(source)), source, "all items")]
    groups = list(method(batch_size))
    for i, group in enumerate(groups):
        check_type(group, f"{argument}.groups({batch_size})[{i}]", Group, "a data.Group(indices, source, name)")
        if len(group.source) != len(group.indices):
            raise ValueError(
                f"{argument}.groups({batch_size})[{i}] has {len(group.indices)} indices for a source of "
                f"{len(group.source)} items; give one index per item."
            )
    if len({group.name for group in groups}) < len(groups):
        names = [group.name for group in groups]
        raise ValueError(f"{argument}.groups({batch_size}) must return groups with different names, got {names}.")
    numbers = np.concatenate([group.indices for group in groups] or [np.zeros(0, int)])
    if not np.array_equal(np.sort(numbers), np.arange(len(source))):
        raise ValueError(
            f"{argument}.groups({batch_size}) must hold each of the {len(source)} items in one group, got "
            f"{len(numbers)} items in {len(groups)} groups, {len(np.unique(numbers))} of them different."
        )
    return groups


def check_drawable(groups: Sequence[Group], batch_size: int, argument: str) -> None:
    """Raises ``ValueError`` if a group has fewer items than a batch, which would never be drawn."""
    for group in groups:
        if len(group.indices) < batch_size:
            raise ValueError(
                f"{argument} has a group of {len(group.indices)} items ({group.name}), fewer than "
                f"batch_size={batch_size}: they would never be used. Take a batch of at most {len(group.indices)}, or "
                "unite groups in the method `groups` of the source, as data.RaggedSamples does."
            )


def draw_batch(
    sizes: Sequence[int], batch_size: int, *, seed: int, step: int, items_seed: int | None = None
) -> tuple[int, Int[np.ndarray, " b"]]:
    """Returns the group of training step t and the numbers of its items within that group.

    An epoch has Σ_g ⌊n_g / b⌋ batches: ⌊n_g / b⌋ from the items of group g, in a new order every epoch, so that groups
    are drawn in proportion to their sizes. The batches of all groups follow each other in an order that is also
    new every epoch. Both orders depend only on (seed, epoch). Every epoch leaves out other n_g mod b items of each
    group. With one group these are the batches of `batch_indices`.

    Args:
        sizes: numbers of items n_g.
        batch_size: b, at most min n_g.
        seed: non-negative integer.
        step: t ≥ 0.
        items_seed: the seed of the order of the items in each group. None takes ``seed``, which always decides the
            order of the groups.

    Example:
        >>> from jaxop.data.groups import draw_batch
        >>> drawn = [draw_batch((4, 2), 2, seed=0, step=t) for t in range(3)]
        >>> sorted((group, int(i)) for group, items in drawn for i in items)
        [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    """
    items_seed = seed if items_seed is None else items_seed
    if len(sizes) == 1:
        return 0, batch_indices(sizes[0], batch_size, seed=items_seed, step=step)
    counts = np.array([size // batch_size for size in sizes])
    if (step := as_integer(step, "step")) < 0:
        raise ValueError(f"step must not be negative, got {step}.")
    epoch, number = divmod(step, int(counts.sum()))
    batches, members = _orders(tuple(sizes), batch_size, seed, epoch)
    if items_seed != seed:
        _, members = _orders(tuple(sizes), batch_size, items_seed, epoch)
    ends = np.cumsum(counts)
    group = int(np.searchsorted(ends, batches[number], side="right"))
    first = int(batches[number] - (ends[group] - counts[group])) * batch_size
    return group, members[group][first : first + batch_size].copy()


@functools.lru_cache(maxsize=16)  # members of an ensemble have orders of their own
def _orders(sizes: tuple[int, ...], batch_size: int, seed: int, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the order of all batches of an epoch and, for each group, that of its items."""
    total = sum(size // batch_size for size in sizes)
    members = [permutation(size, seed_sequence(seed, _MEMBERS, epoch, g)) for g, size in enumerate(sizes)]
    return permutation(total, seed_sequence(seed, _BATCHES, epoch)), members


def read_batch(source: DataSource, indices: Int[np.ndarray, " b"], *, seed: int, step: int) -> Any:
    """Returns the batch of a training step: by the optional method ``at_step``, or else by the numbers of its items."""
    at_step = getattr(source, "at_step", None)
    return source[indices] if at_step is None else at_step(indices, seed=seed, step=step)
