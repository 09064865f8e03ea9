"""One kernel per attention head."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop.kernels.base import Kernel, as_kernel

T = TypeVar("T")


@register
@dataclasses.dataclass(frozen=True)
class PerHead:
    """k_h(q, k') of head h: a kernel whose leaves all have a leading axis of heads.

    Attention accepts it in place of a kernel. Compose kernels first:
    ``PerHead(Gaussian(widths) + Quadratic(offsets))``.

    Attributes:
        kernel: the kernel, with leaves of shape (h, …).

    Raises:
        TypeError: if ``kernel`` is not a `Kernel`.
        ValueError: if a leaf does not have a leading axis, the axes differ in length, or the kernel has no leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> kernel = kernels.PerHead(kernels.Gaussian(jnp.array([1.0, 2.0])))
        >>> print(kernel.heads, kernel.at(1).inverse_width)
        2 2.0
    """

    kernel: Kernel

    def __post_init__(self):
        kernel = as_kernel(self.kernel)
        object.__setattr__(self, "kernel", kernel)
        shapes = {jax.tree_util.keystr(p): jnp.shape(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(kernel)}
        if not shapes:
            raise ValueError(
                f"kernel must have parameters with a leading axis of heads, got {type(kernel).__name__} without any; "
                "pass the kernel itself."
            )
        first, *_ = shapes.values()
        for name, shape in shapes.items():
            if not shape or shape[0] != first[0]:
                raise ValueError(
                    f"every leaf of the kernel needs a leading axis of one length, the number of heads, but {name} has "
                    f"shape {shape}" + (f" beside {first}." if shape and shape is not first else ".")
                )

    @property
    def heads(self) -> int:
        """Number of heads."""
        return jax.tree.leaves(self.kernel)[0].shape[0]

    @property
    def sign(self) -> str:
        """The sign of the kernel."""
        return self.kernel.sign

    @property
    def epsilon(self) -> float:
        """The ε of the kernel."""
        return self.kernel.epsilon

    @property
    def is_additive(self) -> bool:
        """Whether log k is a sum over the channels."""
        return self.kernel.is_additive

    def at(self, head: int) -> Kernel:
        """Returns the kernel of one head."""
        return jax.tree.map(lambda leaf: leaf[head], self.kernel)

    def tile(self, query: Float[Array, "n d"], key: Float[Array, "m d"]) -> NoReturn:
        """Raises ``TypeError``, because each head has a matrix, ``kernel.at(h).tile(query, key)``."""
        del query, key
        raise TypeError("a PerHead has one matrix per head; take kernel.at(h).tile(query, key) of head h.")

    def _compose(self, _: object) -> NoReturn:
        raise TypeError("a PerHead cannot be part of a sum or product; compose kernels first: PerHead(k1 + 2.0 * k2).")

    __add__ = __radd__ = __mul__ = __rmul__ = _compose

    def with_depth(self, depth: int) -> "PerHead":
        """Returns the kernels whose √d counts ``depth`` channels; see `Kernel.with_depth`."""
        return PerHead(self.kernel.with_depth(depth))


def one_head(kernel: Kernel | PerHead) -> Kernel:
    """Returns the kernel within `PerHead`, whose leaves still have the axis of heads, or the kernel of all heads."""
    return kernel.kernel if isinstance(kernel, PerHead) else kernel


def over_heads(
    function: Callable[..., T],
    kernel: Kernel | PerHead,
    arrays: tuple[Array | None, ...],
    in_axes: tuple[int | None, ...],
    out_axes: int | Sequence[int | None],
    *,
    heads: int,
) -> T:
    """Evaluates ``function(kernel, *arrays)`` for each head by `jax.vmap`.

    Args:
        function: takes the kernel and the arrays of one head.
        kernel: the kernel of all heads.
        arrays: arrays of all heads, or shared by the heads.
        in_axes: the axis of the heads in each array; None if the heads share the array.
        out_axes: the axis of the heads in the results.
        heads: the number of heads.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import kernels
        >>> from jaxop.kernels.per_head import over_heads
        >>> kernel = kernels.PerHead(kernels.DotProduct(jnp.array([1.0, 2.0])))
        >>> x = jnp.ones((5, 2, 3))
        >>> over_heads(lambda kernel, q, k: kernel.tile(q, k), kernel, (x, x), (1, 1), 0, heads=2).shape
        (2, 5, 5)
    """
    axis = 0 if isinstance(kernel, PerHead) else None
    return jax.vmap(function, (axis, *in_axes), out_axes, axis_size=heads)(one_head(kernel), *arrays)
