"""Choice of the padded sizes of samples that differ in their numbers of nodes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

_RATIO = 1.25  # of neighbouring sizes
_FINEST = 16  # a size is rounded up by at most 1/16 of itself
_ALIGNED = 128  # largest divisor of a size: the width of a vector register of a TPU
_PADDING = 0.12  # share of all nodes that is worth a smaller number of programs


def rounded(sizes: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Returns the smallest multiples of 2^k that hold ``sizes``, for the largest 2^k ≤ min(128, size/16), or 1."""
    step = 2 ** np.clip(np.log2(np.maximum(sizes, 1) / _FINEST).astype(int), 0, int(np.log2(_ALIGNED)))
    return -(-sizes // step) * step


def choose(sizes: Int[np.ndarray, "s a"], *, batch_size: int, most: int) -> list[Int[np.ndarray, " g"]]:
    """Returns the samples of each bucket, which are padded to the largest of its sizes, rounded up.

    At first, all samples whose sizes lie between the same powers 128·1.25^k share a bucket, so that at most a fifth of
    a bucket's nodes is padding. Then the two buckets whose union adds the fewest nodes of padding are united, while at
    most 12 % of all nodes are padding, while there are more than ``most`` buckets, or while a bucket has fewer samples
    than a batch.

    Args:
        sizes: numbers of nodes of each sample, along one or several axes that are padded separately.
        batch_size: least number of samples of a bucket, unless there is only one bucket.
        most: largest number of buckets.

    Returns:
        Increasing numbers of samples, smallest bucket first.

    Cost: O(N log N + G³) for N samples and G buckets at first.
    """
    rungs = np.ceil(np.log(sizes / _ALIGNED) / np.log(_RATIO) - 1e-9)
    _, number = np.unique(rungs, axis=0, return_inverse=True)
    number = number.reshape(-1)
    members = [np.flatnonzero(number == i) for i in range(number.max() + 1)]
    while len(members) > 1:
        counts = np.array([len(part) for part in members])
        is_small = counts < batch_size
        must = len(members) > most or is_small.any()
        largest = np.array([sizes[part].max(axis=0) for part in members])
        allowed = ~np.eye(len(members), dtype=bool)
        if is_small.any():
            allowed[~is_small] = False
        added = np.where(allowed, _added_padding(largest, counts), np.inf)
        i, j = divmod(int(np.argmin(added)), len(members))
        padded = counts @ rounded(largest).sum(axis=-1) + added[i, j]
        if not must and added[i, j] > 0 and sizes.sum() < (1 - _PADDING) * padded:
            break
        united = np.union1d(members[i], members[j])
        members = [part for k, part in enumerate(members) if k not in (i, j)] + [united]
    return sorted(members, key=lambda part: tuple(sizes[part].max(axis=0)))


def _added_padding(largest: Int[np.ndarray, "g a"], counts: Int[np.ndarray, " g"]) -> Int[np.ndarray, "g g"]:
    """Returns the nodes that are added when two buckets are padded to the larger of their sizes, for all pairs."""
    united = rounded(np.maximum(largest[:, None], largest[None])).sum(axis=-1)
    alone = counts * rounded(largest).sum(axis=-1)
    return (counts[:, None] + counts[None]) * united - alone[:, None] - alone[None]


def padding(sizes: Int[np.ndarray, "s a"], padded: Sequence[int]) -> float:
    """Returns the share of padding among all nodes of samples that are padded to the same sizes."""
    return 1 - float(sizes.sum()) / (len(sizes) * sum(padded))
