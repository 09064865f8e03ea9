"""Steppers as pure functions, for loops whose body must not change a module."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxop.domains import Decomposed, Domain
from jaxop.operators import Statistic

Variables = dict[Any, Any]

_FIXED = nnx.Any(nnx.Param, Statistic)


@dataclasses.dataclass(frozen=True)
class PureStepper:
    """A stepper as a pure and hashable function of its variables and arguments.

    Attributes:
        definition: the graph of a module, or a function.
    """

    definition: nnx.GraphDef | Callable[..., Array]

    def __call__(
        self, params: Variables, other: Variables, states: Array, domain: Domain | Decomposed, **options: object
    ) -> tuple[Array, Variables]:
        """Returns the next state, and the variables that a call may change, such as random streams."""
        if not isinstance(self.definition, nnx.GraphDef):
            return jnp.asarray(self.definition(states, domain, **options)), other
        stepper = nnx.merge(self.definition, params, other)
        result = stepper(states, domain, **options)
        nnx.pop(stepper, nnx.Intermediate)
        return result, nnx.to_pure_dict(nnx.state(stepper, nnx.Not(_FIXED)))


def as_pure(stepper: object, *, evaluate: bool) -> tuple[PureStepper, Variables, Variables]:
    """Returns a stepper as a pure function, its parameters and statistics, and the variables that a call may change.

    Args:
        stepper: a module or a function; it is not changed.
        evaluate: True for a module in evaluation mode, False for the mode that it is in.

    Raises:
        TypeError: if it cannot be called or hashed.
    """
    if not callable(stepper) or isinstance(stepper, type):
        raise TypeError(
            "stepper must be a dynamics.Stepper or a function of (states, domain, *, dt, offsets, parameters), got "
            f"{stepper!r}."
        )
    if not isinstance(stepper, nnx.Module):
        try:
            hash(stepper)
        except TypeError as error:
            raise TypeError(
                "stepper must be hashable, because its program is kept for later calls, but "
                f"{type(stepper).__name__} is not; give a dataclass eq=False, or make it a module."
            ) from error
        return PureStepper(cast(Callable[..., Array], stepper)), {}, {}
    copy = nnx.merge(*nnx.split(stepper))  # the same arrays, other flags
    if evaluate:
        copy.eval()
    nnx.pop(copy, nnx.Intermediate)
    graphdef, params, other = nnx.split(copy, _FIXED, ...)
    return PureStepper(graphdef), nnx.to_pure_dict(params), nnx.to_pure_dict(other)
