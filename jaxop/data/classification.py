"""Sets of labelled examples: sequences of tokens with the tokens that follow, images with their classes."""

import dataclasses
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Array, Int, Integer, Num

from jaxop._pytree import register
from jaxop._validation import as_integer, first_index, float_dtype, on_device, plain_array
from jaxop.data.samples import checked_indices


@register
@dataclasses.dataclass(frozen=True)
class ExampleBatch:
    """A batch of labelled examples in JAX arrays; it is a pytree.

    Attributes:
        inputs: shape (b, …), integers (tokens) or floats.
        labels: classes, shape (b,) with one per example, or (b, n) with one per token.
        index: number of each example in its set, shape (b,).
    """

    inputs: Num[Array, "b ..."]
    labels: Int[Array, "b ..."]
    index: Int[Array, " b"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """N pairs of an input and its label, checked when they are built.

    Args:
        inputs: shape (N, …), integers (tokens) or real numbers.
        labels: classes 0, 1, …, shape (N,) or (N, n).

    Raises:
        TypeError: if labels are not integers, inputs are not real numbers, or an array is masked.
        ValueError: if the set is empty, the numbers of inputs and labels differ, a label is negative, or an input
            is not finite. The message names the first bad entry.

    Example:
        >>> import numpy as np
        >>> from jaxop import data
        >>> examples = data.Examples(np.zeros((8, 4, 4, 1), np.float32), np.arange(8) % 3)
        >>> len(examples), examples[[5, 2]].labels.tolist()
        (8, [2, 2])
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        for name in ("inputs", "labels"):
            object.__setattr__(self, name, plain_array(getattr(self, name), name))
        if self.labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers, got {self.labels.dtype}; number the classes 0, 1, ...")
        if self.inputs.dtype.kind not in "iuf":
            raise TypeError(f"inputs must be integers or real numbers, got {self.inputs.dtype}.")
        if not self.inputs.ndim or not self.labels.ndim or self.inputs.shape[0] != self.labels.shape[0]:
            raise ValueError(
                f"inputs and labels must have one entry per example, got shapes {self.inputs.shape} and "
                f"{self.labels.shape}."
            )
        if not self.inputs.size:
            raise ValueError(f"inputs is empty: its shape is {self.inputs.shape}; a set needs at least one example.")
        for name, bad in (("labels", self.labels < 0), ("inputs", ~np.isfinite(self.inputs))):
            if bad.any():
                where = first_index(bad)
                expected = "at least 0" if name == "labels" else "finite"
                raise ValueError(f"{name} must be {expected}, but {name}[{where}] = {getattr(self, name)[where]}.")

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __repr__(self) -> str:
        return f"Examples({len(self)} of shape {self.inputs.shape[1:]}, {self.inputs.dtype})"

    def __getitem__(self, indices: slice | Sequence[SupportsIndex] | Int[np.ndarray | Array, " b"]) -> ExampleBatch:
        """Returns the examples of the given numbers, in their order."""
        index = checked_indices(indices, len(self), "examples")

        def to_jax(rows: np.ndarray) -> Array:
            return on_device(rows, np.int32 if np.issubdtype(rows.dtype, np.integer) else float_dtype())

        return ExampleBatch(to_jax(self.inputs[index]), to_jax(self.labels[index]), on_device(index, np.int32))

    def take(self, indices: slice | Sequence[SupportsIndex] | Int[np.ndarray | Array, " b"]) -> "Examples":
        """Returns the set of the given examples."""
        index = checked_indices(indices, len(self), "examples")
        if not index.size:
            raise ValueError(f"indices do not select any of the {len(self)} examples; a set needs at least one.")
        return Examples(self.inputs[index], self.labels[index])


def text_windows(tokens: Integer[np.ndarray, " n"], context: int) -> Examples:
    """Cuts a text into windows of ``context`` tokens, each labelled by the tokens that follow.

    Windows do not overlap, and the rest of the text is not used, so that every token is predicted at most once.

    Args:
        tokens: the text as token numbers.
        context: length n of a window.

    Returns:
        `Examples` with inputs t_0 … t_{n−1} and labels t_1 … t_n.

    Raises:
        TypeError: if ``tokens`` is not a row of integers (a string, for example), or ``context`` is not an integer.
        ValueError: if the text is shorter than one window and the next token.

    Example:
        >>> import numpy as np
        >>> from jaxop import data
        >>> windows = data.text_windows(np.arange(10), 4)
        >>> windows.inputs.tolist(), windows.labels[1].tolist()
        ([[0, 1, 2, 3], [4, 5, 6, 7]], [5, 6, 7, 8])
    """
    tokens, context = plain_array(tokens, "tokens"), as_integer(context, "context")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise TypeError(
            f"tokens must be one row of integers, got {tokens.dtype} of shape {tokens.shape}; the bytes of a text are "
            "np.frombuffer(text.encode(), np.uint8)."
        )
    count = (tokens.size - 1) // max(context, 1)
    if context < 1 or count < 1:
        raise ValueError(
            f"context must lie between 1 and the {tokens.size - 1} tokens that have a successor, got {context}."
        )
    used = tokens[: count * context + 1]
    return Examples(used[:-1].reshape(count, context), used[1:].reshape(count, context))
