"""Losses of steppers along their own predictions."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import accumulator, as_number, check_name, check_size, check_type
from jaxop.data import WindowBatch
from jaxop.domains.domain import as_domain
from jaxop.dynamics._pure import PureStepper, Variables, as_pure
from jaxop.dynamics.stepper import Stepper
from jaxop.training.losses import relative_norms

NORMS = {"l2": "L2", "h1": "H1"}
"""Norms of `UnrolledLoss` and the spaces they belong to."""


@dataclasses.dataclass(frozen=True)
class UnrolledLoss:
    """L = Σ_j γ_j ‖û_j − u_j‖/‖u_j‖ / Σ_j γ_j over j = 1, …, k, with û_{j+1} = S(û_j, û_{j−1}, …) from given states.

    A loss for `jaxop.training.fit` on `jaxop.data.Windows`, whose ``steps`` is k. With k = 1 it is the relative error
    of one step. γ_j is the weight that the window has for target j, times ``weights``. A curriculum of the windows sets
    the weights of the last targets to 0; these steps are then not computed.

    Attributes:
        cut: m > 0 stops the gradient at the states after every m-th step: the parameters learn from m steps at most.
            1 is the sum of one-step gradients along the stepper's own states. 0 does not stop it.
        pushforward: True makes all steps but the last without a gradient, and counts the loss of the last only.
        noise: standard deviation of the noise that is added to the states of the history, per channel in units of the
            stepper's ``std``. Targets stay as they are, so that the stepper learns to correct it. Windows have random
            keys in training only, so that evaluations have no noise.
        norm: "l2" or "h1".
        weights: factors of γ_j, one for each of the k targets. () means 1. At every stage of a curriculum, one of its
            targets must have a positive factor; the loss is NaN otherwise.
        remat: True computes each step again in the backward pass, so that k steps take the memory of one, of k states,
            and of a few copies of the parameters.

    Returns:
        The losses, shape (b,), and the relative errors at each target as metrics "lead_1", …, "lead_k". Those of steps
        that are not computed are NaN.

    Raises:
        TypeError: if a field has a wrong type, a batch is not a `jaxop.data.WindowBatch`, or noise is asked for and the
            model is not a `Stepper`.
        ValueError: if a field is negative or unknown, ``pushforward`` is combined with ``cut``, or the weights are not
            one for each target.

    Cost: k forward passes of the stepper and k backward passes, with ``remat`` k more forward passes.

    Source: Brandstetter, Worrall, Welling, "Message Passing Neural PDE Solvers", arXiv:2202.03376 (pushforward);
        Sanchez-Gonzalez et al., "Learning to Simulate Complex Physics with Graph Networks", arXiv:2002.09405 (noise).

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains, dynamics
        >>> def halve(states, domain, **options):
        ...     return states[:, -1] / 2
        >>> u = np.ones((1, 4, 8, 1), np.float32)
        >>> windows = data.Trajectories(u, domains.interval(8), np.arange(4)).windows(steps=2)
        >>> loss, metrics = dynamics.UnrolledLoss()(halve, windows[[0]])
        >>> print(loss, metrics["lead_1"], metrics["lead_2"])
        [0.625] [0.5] [0.75]
    """

    cut: int = 0
    pushforward: bool = False
    noise: float = 0.0
    norm: str = "l2"
    weights: tuple[float, ...] = ()
    remat: bool = True

    def __post_init__(self):
        check_size(self.cut, "cut", 0)
        for name in ("pushforward", "remat"):
            check_type(getattr(self, name), name, bool, "True or False")
        if not 0 <= as_number(self.noise, "noise") < math.inf:
            raise ValueError(f"noise must be at least 0 and finite, got {self.noise}.")
        check_name(self.norm, "norm", NORMS)
        check_type(self.weights, "weights", tuple, "a tuple of one number for each target")
        for i, weight in enumerate(self.weights):
            if not 0 <= as_number(weight, f"weights[{i}]") < math.inf:
                raise ValueError(f"weights[{i}] must be at least 0 and finite, got {weight}.")
        if self.weights and not any(self.weights):
            raise ValueError(f"weights must have a positive number, got {self.weights}.")
        if self.pushforward and self.cut:
            raise ValueError(f"cut must be 0 with pushforward=True, which stops all gradients itself, got {self.cut}.")

    def identity(self) -> dict[str, object]:
        """Returns the fields, which a run records and compares when it is resumed."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __call__(
        self, model: Callable[..., Array], batch: WindowBatch
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """Returns the losses of a batch of windows and their metrics."""
        check_type(batch, "batch", WindowBatch, "a data.WindowBatch, from trajectories.windows(...)")
        leads = _Leads.of(self, model, batch)
        count = batch.targets.shape[1]
        if self.pushforward and count > 1:
            losses, errors, other = self._pushed(leads, count)
        else:
            errors, other = self._unrolled(leads, count)
            weights = leads.weights.T
            losses = jnp.sum(weights * jnp.where(weights > 0, errors, 0), axis=0) / jnp.sum(weights, axis=0)
        if isinstance(model, nnx.Module) and other:  # random streams have advanced
            nnx.update(model, other)
        return losses, {f"lead_{j + 1}": jax.lax.stop_gradient(errors[j]) for j in range(count)}

    def _unrolled(self, leads: "_Leads", count: int) -> tuple[Float[Array, "k b"], Variables]:
        """Returns the error at each target, and the other variables."""

        def body(carry: tuple[Array, Array, Variables], number: Array):
            (states, ages, other), errors = leads.step(carry, number)
            if self.cut == 1:
                states = jax.lax.stop_gradient(states)
            elif self.cut:
                is_cut = (number + 1) % self.cut == 0
                states = jnp.where(is_cut, jax.lax.stop_gradient(states), states)
            return (states, ages, other), errors

        if count == 1:
            (_, _, other), errors = body(leads.start, jnp.zeros((), jnp.int32))
            return errors[None], other
        again = functools.partial(jax.checkpoint, prevent_cse=False) if self.remat else lambda function: function
        # without the inner one, the conditional would keep the activations of its branch in buffers of its own
        body = again(_skipping(again(body), leads.used()))
        (_, _, other), errors = jax.lax.scan(body, leads.start, jnp.arange(count))
        return errors, other

    def _pushed(self, leads: "_Leads", count: int) -> tuple[Float[Array, " b"], Float[Array, "k b"], Variables]:
        """Returns the error at the last target that counts, those at all targets, and the other variables."""
        last = leads.used() - 1
        without = dataclasses.replace(leads, params=jax.lax.stop_gradient(leads.params))
        start = jax.lax.stop_gradient(leads.start[:2])
        carry = (*start, leads.start[2])
        carry, errors = jax.lax.scan(_skipping(without.step, last), carry, jnp.arange(count - 1))
        carry = (*jax.lax.stop_gradient(carry[:2]), carry[2])
        (_, _, other), final = leads.step(carry, last)
        skipped = jnp.full_like(final, jnp.nan)[None]
        errors = jax.lax.stop_gradient(jnp.concatenate([errors, skipped]))
        return final, errors.at[last].set(jax.lax.stop_gradient(final)), other


@dataclasses.dataclass(frozen=True)
class _Leads:
    """The steps of a batch of windows, one for each target."""

    stepper: PureStepper
    params: Variables
    start: tuple[Array, Array, Variables]
    batch: WindowBatch
    weights: Float[Array, "b k"]
    space: str

    @classmethod
    def of(cls, loss: UnrolledLoss, model: Callable[..., Array], batch: WindowBatch) -> "_Leads":
        count = batch.targets.shape[1]
        weights = batch.weights
        if loss.weights:
            if len(loss.weights) != count:
                raise ValueError(
                    f"weights must be one number for each of the {count} targets of a window, got {len(loss.weights)}."
                )
            weights = weights * jnp.asarray(loss.weights, weights.dtype)[None]
        stepper, params, other = as_pure(model, evaluate=False)
        states = batch.history.astype(accumulator(batch.history.dtype))
        if loss.noise:
            states = _noisy(states, loss.noise, model, batch)
        depth = states.shape[1]
        ages = batch.times[:, depth - 1 : depth] - batch.times[:, : depth - 1]
        return cls(stepper, params, (states, ages, other), batch, weights, NORMS[loss.norm])

    def used(self) -> Array:
        """Returns the number of targets up to the last one with a weight."""
        counts = jnp.any(self.weights > 0, axis=0)
        return counts.shape[0] - jnp.argmax(counts[::-1])

    def step(
        self, carry: tuple[Array, Array, Variables], number: Array
    ) -> tuple[tuple[Array, Array, Variables], Float[Array, " b"]]:
        """Returns the states one step later, and their relative errors."""
        states, ages, other = carry
        options = _options(self.batch, ages, number)
        new, other = self.stepper(self.params, other, states, self.batch.domain, **options)
        target = _entry(self.batch.targets, number)
        errors = relative_norms(new, target, as_domain(self.batch.domain, "domain"), space=self.space)
        states = jnp.concatenate([states[:, 1:], new[:, None].astype(states.dtype)], axis=1)
        if ages.shape[1]:
            size = options["dt"][:, None]
            ages = jnp.concatenate([ages[:, 1:] + size, size], axis=1)
        return (states, ages, other), errors.astype(states.dtype)


def _entry(array: Array, number: Array) -> Array:
    """Returns one entry along the second axis."""
    return jax.lax.dynamic_index_in_dim(array, number, axis=1, keepdims=False)


def _options(batch: WindowBatch, ages: Array, number: Array) -> dict[str, Any]:
    """Returns the options of a call of the stepper for the step to a target."""
    depth = batch.history.shape[1]
    dt = _entry(batch.times, depth + number) - _entry(batch.times, depth + number - 1)
    return {"dt": dt, "offsets": ages if depth > 1 else None, "parameters": batch.parameters}


def _skipping(body: Callable[..., tuple], used: Array) -> Callable[..., tuple]:
    """Returns a body of a scan over the numbers of targets that computes nothing from number ``used`` on."""

    def skipped(carry: tuple[Array, Array, Variables], number: Array):
        del number
        return carry, jnp.full(carry[0].shape[0], jnp.nan, carry[0].dtype)

    return lambda carry, number: jax.lax.cond(number < used, body, skipped, carry, number)


def _noisy(states: Float[Array, "b h n c"], noise: float, model: object, batch: WindowBatch) -> Array:
    """Returns the states with noise of each sample's own key, or unchanged if the batch has no keys."""
    if not isinstance(model, Stepper):
        raise TypeError(f"noise={noise} needs a dynamics.Stepper, whose std is its unit, got {type(model).__name__}.")
    if batch.key_data is None:
        return states
    keys = jax.random.wrap_key_data(batch.key_data, impl="threefry2x32")
    draws = jax.vmap(lambda key: jax.random.normal(key, states.shape[1:], states.dtype))(keys)
    return states + noise * model.std[...].astype(states.dtype)[None, None, None] * draws
