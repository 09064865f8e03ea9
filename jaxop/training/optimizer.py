"""Optimiser of a config; state, learning rate and averages of any other optimiser of Optax."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree
from optax.contrib import ScheduleFreeState, schedule_free_eval_params

from jaxop.training.config import TrainingConfig

Tree: TypeAlias = PyTree
"""Nested dicts of arrays, as in the pure state of an NNX module."""

Optimizer = optax.GradientTransformation | optax.MultiSteps
"""Object with the methods ``init`` and ``update`` of Optax."""

EvalParams = Callable[[Tree, Tree], Tree]
"""(state of the optimiser, parameters) -> the parameters that evaluations use."""

_KERNEL = "leaves"
"""Where `jaxop.nn.KernelParameters` holds the parameters of a kernel."""


def learning_rate(config: TrainingConfig, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """Returns the learning rate of a step, see `TrainingConfig`.

    Example:
        >>> from jaxop import training
        >>> config = training.TrainingConfig(steps=104, learning_rate=0.5, warmup_steps=4)
        >>> print(*[training.learning_rate(config, t).round(4) for t in (0, 3, 4, 54, 104)])
        0.125 0.5 0.5 0.25 0.0
    """
    TrainingConfig.check(config)
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        course = optax.cosine_decay_schedule(
            peak, max(config.steps - warmup, 1), alpha=config.final_learning_rate / peak
        )
    else:
        course = optax.constant_schedule(peak)
    if warmup:
        rise = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else optax.constant_schedule(peak)
        course = optax.join_schedules([rise, course], [warmup])
    return jnp.asarray(course(jnp.asarray(step, jnp.float32)), jnp.float32)


def decays(params: Tree) -> Tree:
    """Returns a tree of booleans: True for the parameters that weight decay applies to, the weight matrices.

    These are the arrays of two or more axes whose name does not end in "bias" or "scale", with stacks of matrices and
    embeddings. Kernels (`jaxop.nn.KernelParameters`) stack the parameters of their heads along a first axis, so that
    radii, widths and biases may have two axes too. In a kernel only arrays of three axes decay, and those arrays of
    two axes that `jaxop.kernels` calls a matrix or a map.
    """

    def decay(path: jax.tree_util.KeyPath, leaf: Array | jax.ShapeDtypeStruct) -> bool:
        *modules, name = (str(getattr(entry, "key", entry)) for entry in path)
        if name.endswith(("bias", "scale")):
            return False
        per_head = modules[-1:] == [_KERNEL] and not name.endswith(("matrix", "map"))
        return leaf.ndim >= (3 if per_head else 2)

    return jax.tree_util.tree_map_with_path(decay, params)


@dataclasses.dataclass(frozen=True)
class ScheduledUpdate:
    """The update of an optimiser whose learning rate is known at every step.

    Attributes:
        update: the ``update`` of an `optax.GradientTransformation`.
        learning_rate: the learning rate as a function of the number of the step.
    """

    update: Callable[..., tuple[Tree, Tree]]
    learning_rate: Callable[[Array], Array]

    def __call__(self, *args: object, **kwargs: object) -> tuple[Tree, Tree]:
        """Calls ``update``."""
        return self.update(*args, **kwargs)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm, with the learning rate of `learning_rate`.

    Weight decay acts on weight matrices, stacks of them and embeddings. It does not act on biases, norm scales, the
    radii and widths of kernels and other vectors.

    Args:
        config: reads ``clip_norm``, ``weight_decay`` and the fields of the schedule.

    Returns:
        An Optax gradient transformation over nested dicts of parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxop import training
        >>> optimizer = training.make_optimizer(training.TrainingConfig(learning_rate=0.1, schedule="constant"))
        >>> params = {"kernel": jnp.ones((2, 2))}
        >>> with jax.numpy_dtype_promotion("standard"):
        ...     updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["kernel"][0].round(3))
        [-0.1 -0.1]
    """
    TrainingConfig.check(config)

    def rate(step: ArrayLike) -> Array:
        return learning_rate(config, jnp.asarray(step))

    adamw = optax.adamw(rate, weight_decay=config.weight_decay, mask=decays)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
    update = optax.with_extra_args_support(optimizer).update
    return optax.GradientTransformationExtraArgs(optimizer.init, ScheduledUpdate(update, rate))


def check_optimizer(optimizer: object) -> None:
    """Raises ``TypeError`` unless this is an optimiser of Optax."""
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")) or isinstance(optimizer, type):
        raise TypeError(
            "optimizer must be an optax.GradientTransformation, such as training.make_optimizer(config) or "
            f"optax.adam(1e-3), got {type(optimizer).__name__}."
        )


def used_learning_rate(optimizer: Optimizer, opt_state: object, step: Int[Array, ""]) -> Float[Array, ""] | None:
    """Returns the learning rate of the last step of an optimiser in this state, or None if it is unknown.

    `make_optimizer` knows its schedule, and `optax.inject_hyperparams` keeps the rate in the state. Other
    transformations do not show their rate.
    """
    if isinstance(optimizer.update, ScheduledUpdate):
        return optimizer.update.learning_rate(step)
    found = [value for _, value in optax.tree.get_all_with_path(opt_state, "learning_rate")]
    rates = [value for value in found if isinstance(value, jax.Array) and value.ndim == 0]
    return rates[0] if len(rates) == 1 else None


def update_of(optimizer: Optimizer) -> Callable[..., tuple[Tree, Tree]]:
    """Returns the optimiser's ``update``, which then ignores keyword arguments that it does not take."""
    if isinstance(optimizer, optax.MultiSteps):
        return optimizer.update
    return optax.with_extra_args_support(optimizer).update


def evaluated_params(opt_state: Tree, params: Tree, eval_params: EvalParams | None = None) -> Tree | None:
    """Returns the parameters to evaluate with, or None if they are ``params``.

    Schedule-free optimisers take gradients at a point y and are evaluated at x = (y − (1 − β) z)/β, where y are
    the parameters and z belongs to the state.

    Args:
        opt_state: state of the optimiser.
        params: the parameters that the optimiser updates.
        eval_params: computes the parameters to evaluate with. None looks for the state of
            `optax.contrib.schedule_free` within any chain or `optax.MultiSteps`.

    Returns:
        A tree like ``params``, or None.

    Raises:
        ValueError: if a schedule-free state belongs only to some of the parameters, or there are several such states.
    """

    def is_schedule_free(node: object) -> bool:
        return isinstance(node, ScheduleFreeState)

    state = opt_state
    if eval_params is None:
        found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_schedule_free) if is_schedule_free(node)]
        if not found:
            return None
        if len(found) > 1 or jax.tree.structure(found[0].z) != jax.tree.structure(params):
            raise ValueError(
                f"the optimiser must hold one schedule-free state of all parameters, got {len(found)} of some of them; "
                "give eval_params, a function from (opt_state, params) to the parameters to evaluate with."
            )
        eval_params, (state,) = schedule_free_eval_params, found
    with jax.numpy_dtype_promotion("standard"):
        chosen = eval_params(state, params)
    if jax.tree.structure(chosen) != jax.tree.structure(params):
        raise ValueError(
            f"eval_params must return a tree like params, {jax.tree.structure(params)}, got "
            f"{jax.tree.structure(chosen)}."
        )
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), chosen, params)


def describe_state(opt_state: object) -> str:
    """Returns the structure of an optimiser's state on one line: ``(TraceState(trace=tree), EmptyState())``.

    Named tuples and tuples are written in full, and single arrays by dtype and shape. A tree over the parameters
    is ``tree``; its leaves are compared by name where the state is restored.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from jaxop.training.optimizer import describe_state
        >>> print(describe_state(optax.sgd(0.1, momentum=0.9).init({"w": jnp.ones(2)})))
        (TraceState(trace=tree), EmptyState())
    """
    if isinstance(opt_state, tuple):
        fields = getattr(opt_state, "_fields", None)  # of a named tuple
        parts = [describe_state(part) for part in opt_state]
        if fields is None:
            return f"({', '.join(parts)})"
        pairs = (f"{name}={part}" for name, part in zip(fields, parts, strict=True))
        return f"{type(opt_state).__name__}({', '.join(pairs)})"
    if isinstance(opt_state, jax.Array | jax.ShapeDtypeStruct):
        return f"{opt_state.dtype}[{','.join(map(str, opt_state.shape))}]"
    return "None" if opt_state is None else "tree"
