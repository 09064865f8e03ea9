"""Manual mesh axes: marks of the arrays that differ between the devices of a `jax.shard_map`."""

from typing import TypeVar

import jax
from jax.typing import ArrayLike
from jaxtyping import PyTree

Tree = TypeVar("Tree")


def varying_like(tree: Tree, *others: PyTree) -> Tree:
    """Returns ``tree`` with every leaf marked as varying over each mesh axis over which any leaf here varies.

    Inside `jax.shard_map`, the carry of a loop must enter with the marks with which it leaves, and the arguments of a
    `jax.custom_vjp` must have the marks of their cotangents. Arrays made by `jax.numpy.zeros`, and arguments that all
    devices share, have no marks. The transpose of a mark is the sum over the devices. Outside `jax.shard_map` this
    function changes nothing.

    Args:
        tree: a carry, or the arguments of a function with a custom derivative.
        others: the arrays that the loop combines with the carry; their axes count too.
    """
    leaves = jax.tree.leaves((tree, others))
    axes = frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))

    def mark(leaf: ArrayLike) -> ArrayLike:
        missing = axes - jax.typeof(leaf).manual_axis_type.varying
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(mark, tree) if axes else tree
