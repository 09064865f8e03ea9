"""The state of a training run, the optimiser, and how both come from a model."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxop._pytree import register
from jaxop._validation import check_type
from jaxop.training.checkpoint import leaf_names
from jaxop.training.config import TrainingConfig

Tree = Any
"""Nested dicts of arrays, the pure form of an NNX state."""

Optimizer = optax.GradientTransformation | optax.MultiSteps
"""What has Optax's ``init`` and ``update``."""

_KERNEL = "leaves"
"""Where `jaxop.nn.KernelParameters` holds the parameters of a kernel."""


@register
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes during training; `step` is also the whole state of the data pipeline.

    Attributes:
        step: optimiser steps taken, int32 scalar.
        params: parameters (`nnx.Param`), nested dicts of arrays.
        other: every other variable of the model: data statistics, random streams, running averages.
        opt_state: state of the optimiser.
        ema: moving average of ``params``, or None.
    """

    step: Array
    params: Tree
    other: Tree
    opt_state: Any
    ema: Tree

    @property
    def averaged(self) -> Tree:
        """The parameters to evaluate with: the moving average if there is one, else the last ones."""
        return self.params if self.ema is None else self.ema


def split_model(model: nnx.Module, *, train: bool) -> tuple[nnx.GraphDef, Tree, Tree]:
    """(graph definition, parameters, other variables) of a model in training or in evaluation mode.

    Args:
        model: any NNX module; it is left as it was.
        train: whether dropout and running averages are active in the graph definition.

    Returns:
        What `flax.nnx.merge` puts together again; the trees hold the model's own arrays.
    """
    check_type(model, "model", nnx.Module, "a flax.nnx.Module, such as operators.build(config, rngs=nnx.Rngs(0))")
    copy = nnx.clone(model)
    copy.train() if train else copy.eval()
    graphdef, params, other = nnx.split(copy, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(other)


def learning_rate(config: TrainingConfig, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The learning rate of the given step, see `TrainingConfig`.

    Example:
        >>> from jaxop import training
        >>> config = training.TrainingConfig(steps=104, learning_rate=0.5, warmup_steps=4)
        >>> print(*[training.learning_rate(config, t).round(4) for t in (0, 3, 4, 54, 104)])
        0.125 0.5 0.5 0.25 0.0
    """
    TrainingConfig.check(config)
    time = jnp.asarray(step, jnp.float32)
    peak, final, warmup = config.learning_rate, config.final_learning_rate, config.warmup_steps
    rate = jnp.full((), peak, jnp.float32)
    if config.schedule == "cosine":
        progress = jnp.clip((time - warmup) / max(config.steps - warmup, 1), 0, 1)
        rate = final + (peak - final) * (1 + jnp.cos(math.pi * progress)) / 2
    return jnp.where(time < warmup, peak * (time + 1) / max(warmup, 1), rate)


def decays(params: Tree) -> Tree:
    """Which parameters weight decay applies to: the weight matrices.

    These are the arrays of two or more axes, stacks of matrices and embeddings included, whose name does not end in
    "bias" or "scale". Kernels (`jaxop.nn.KernelParameters`) stack the parameters of their heads along a first axis, so
    radii, widths and biases may have two axes as well. Of a kernel only arrays of three axes decay, and the arrays of
    two that `jaxop.kernels` calls a matrix or a map.
    """

    def decay(path: tuple[Any, ...], leaf: Any) -> bool:
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
        update: of an `optax.GradientTransformation`.
        learning_rate: of the step with a given number.
    """

    update: Callable[..., Any]
    learning_rate: Callable[[Any], Array]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The update."""
        return self.update(*args, **kwargs)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm, with the learning rate of `learning_rate`.

    Weight decay pulls on weight matrices, stacks of them and embeddings. Biases, norm scales, the radii and widths of
    kernels and other vectors are exempt.

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

    def rate(step: Any) -> Array:
        return learning_rate(config, jnp.asarray(step))

    adamw = optax.adamw(rate, weight_decay=config.weight_decay, mask=decays)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
    return optax.GradientTransformationExtraArgs(optimizer.init, ScheduledUpdate(optimizer.update, rate))


def check_optimizer(optimizer: Any) -> None:
    """Raises ``TypeError`` unless this is an optimiser of Optax."""
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")) or isinstance(optimizer, type):
        raise TypeError(
            "optimizer must be an optax.GradientTransformation, such as training.make_optimizer(config) or "
            f"optax.adam(1e-3), got {type(optimizer).__name__}."
        )


def used_learning_rate(optimizer: Optimizer, opt_state: Any, step: Int[Array, ""]) -> Float[Array, ""] | None:
    """The learning rate of the step after which the optimiser is in this state, or None if it cannot be told.

    `make_optimizer` knows its schedule, and `optax.inject_hyperparams` keeps the rate in the state. Other
    transformations hide theirs.
    """
    if isinstance(optimizer.update, ScheduledUpdate):
        return optimizer.update.learning_rate(step)
    found = [value for _, value in optax.tree.get_all_with_path(opt_state, "learning_rate")]
    rates = [value for value in found if isinstance(value, jax.Array) and value.ndim == 0]
    return rates[0] if len(rates) == 1 else None


def init_state(model: nnx.Module, optimizer: Optimizer, config: TrainingConfig) -> tuple[nnx.GraphDef, TrainState]:
    """The graph definition in training mode and the state at step 0, in buffers of its own.

    A step may therefore donate the state without touching the model. The parameters must be in float32 at least:
    updates, gradients of micro-batches, moments and the moving average are summed in their dtype, and in
    half precision 1 + 0.001 = 1. To compute in half precision, give operators ``dtype="bfloat16"`` and leave
    ``param_dtype="float32"``.

    Args:
        model: any NNX module with at least one `nnx.Param`.
        optimizer: as `make_optimizer` makes it.
        config: reads ``ema_decay``.

    Raises:
        ValueError: if the model has no parameters, or has some in half precision.

    Example:
        >>> from flax import nnx
        >>> from jaxop import training
        >>> config = training.TrainingConfig(ema_decay=0.99)
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> graphdef, state = training.init_state(model, training.make_optimizer(config), config)
        >>> sorted(state.params), int(state.step)
        (['bias', 'kernel'], 0)
    """
    TrainingConfig.check(config)
    check_optimizer(optimizer)
    graphdef, params, other = split_model(model, train=True)
    if not jax.tree.leaves(params):
        raise ValueError(f"model ({type(model).__name__}) has no nnx.Param to train.")
    for name, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32:
            raise ValueError(
                f"parameters must be float32 or float64 to be trained, but {name} is {leaf.dtype}, in which small "
                'updates vanish: build the model with param_dtype="float32". Operators still compute in half precision '
                f'with dtype="{leaf.dtype}".'
            )

    def own(tree: Tree) -> Tree:  # of definite dtype, as a restored state is
        return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype), tree)

    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimizer.init(params)
    ema = own(params) if config.ema_decay else None
    return graphdef, TrainState(jnp.zeros((), jnp.int32), own(params), own(other), own(opt_state), ema)
