"""Calls outside `jax.jit` that compile one program per shape."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxop._validation import is_concrete

F = TypeVar("F", bound=Callable[..., object])
Tree = TypeVar("Tree")
Result = TypeVar("Result")


def compiled(*, static: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Returns a decorator: eager calls of the function run one program per shape, also in `jax.grad` and `jax.vmap`.

    Without it JAX compiles a loop again if its body is a new object, and a body that is defined inside a function
    is new at every call. Inside another program the decorator has no effect.

    Args:
        static: names of the arguments that are part of the program instead of its inputs. They must be hashable.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import testing
        >>> from jaxop._eager import compiled
        >>> @compiled()
        ... def partial_sums(x):
        ...     return jax.lax.scan(lambda total, y: (total + y, total + y), jnp.zeros(()), x)[1]
        >>> x = jnp.arange(4.0)
        >>> sums = partial_sums(x)
        >>> with testing.count_compilations() as compilations:
        ...     sums = partial_sums(x)
        >>> print(sums, compilations())
        [0. 1. 3. 6.] 0
    """

    def decorate(function: F) -> F:
        program = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*arguments: object, **options: object) -> object:
            return (function if _is_staged() else program)(*arguments, **options)

        return call  # pyright: ignore[reportReturnType]

    return decorate


def in_turn(function: Callable[[Tree], Result], operands: Tree, *, batch_size: int | None = None) -> Result:
    """Applies ``function`` to one entry of the leading axis after another, like `jax.lax.map`; a Python loop if eager.

    Args:
        function: maps one entry, a pytree of arrays, to a pytree of arrays. It may close over values that change from
            call to call, such as parameters.
        operands: a pytree of arrays with a common leading axis.
        batch_size: number of entries that `jax.vmap` evaluates at a time; None means one, without `jax.vmap`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop._eager import in_turn
        >>> print(in_turn(lambda x: 2 * x, jnp.arange(3)))
        [0 2 4]
    """
    if _is_staged():
        return jax.lax.map(function, operands, batch_size=batch_size)
    leaves, structure = jax.tree.flatten(operands)
    n, size = leaves[0].shape[0], batch_size or 1
    sizes = [size] * (n // size) + [n % size] * (n % size > 0)
    pieces = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)

    def one(piece: Tree) -> Result:
        return jax.tree.map(lambda a: a[None], function(jax.tree.map(lambda a: jnp.squeeze(a, 0), piece)))

    evaluate = one if batch_size is None else jax.vmap(function)
    results = [evaluate(jax.tree.unflatten(structure, piece)) for piece in pieces]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)


def _is_staged() -> bool:
    """Tells whether operations are recorded, for example under `jax.jit`, instead of executed."""
    return not is_concrete(jax.lax.neg(np.int32(0)))
