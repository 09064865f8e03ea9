"""Memory that a training step needs at least, before it is compiled."""

import math
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn

from jaxop.data.files._reading import amount, memory
from jaxop.training._program import inner_programs
from jaxop.training.optimizer import Tree


def device_memory() -> float:
    """Returns the bytes of memory of the accelerator, or of this machine."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", memory())


def check_fits(traced: jax.stages.Traced, state: Tree, batch: Tree, what: str) -> None:
    """Raises ``MemoryError`` if the state, the batch and the largest matrix product of a step exceed the memory.

    The result of a matrix product is an array in memory. Products without a sum are not counted, because compilers fuse
    them with what follows. The step may need more.

    Args:
        traced: the step.
        state: the state of the training.
        batch: a batch.
        what: the samples of the batch, for the message.
    """
    parts = {
        "the state": _bytes(state),
        "the batch": _bytes(batch),
        "the largest array": largest_product(traced.jaxpr.jaxpr),
    }
    needed, available = sum(parts.values()), device_memory()
    if needed > available:
        sizes = ", ".join(f"{name} {amount(size)}" for name, size in parts.items())
        raise MemoryError(
            f"a training step on {what} needs at least {amount(needed)} ({sizes}) of {amount(available)} of memory. "
            "Take a smaller batch or more micro-batches (accumulate), train on random subsets of the nodes "
            "(data.RandomNodes), or use an operator whose cost is linear in the nodes (LatentNeuralOperator)."
        )


def largest_product(jaxpr: Jaxpr) -> int:
    """Returns the bytes of the largest result of a matrix product in a program; inside `jax.shard_map`, on one device.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxop.training.memory import largest_product
        >>> largest_product(jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 4))).jaxpr)
        32
    """
    sizes = [0]
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general" and _has_sum(equation):
            aval: Any = equation.outvars[0].aval
            sizes.append(math.prod(aval.shape) * aval.dtype.itemsize)
        sizes += [largest_product(inner) for inner in inner_programs(equation.params)]
    return max(sizes)


def _has_sum(equation: JaxprEqn) -> bool:
    """Tells whether the entries of a matrix product are sums of several numbers."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    aval: Any = equation.invars[0].aval
    return math.prod(aval.shape[axis] for axis in contracted) > 1


def _bytes(tree: Tree) -> int:
    """Returns the bytes of arrays on one device."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
