"""State of a training run, made from a model and an optimiser."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxop._pytree import leaf_names, register
from jaxop._validation import check_type
from jaxop.operators.ensemble import around_stacked
from jaxop.training.config import TrainingConfig
from jaxop.training.members import with_members
from jaxop.training.mesh import check_mesh
from jaxop.training.optimizer import EvalParams, Optimizer, Tree, check_optimizer, evaluated_params
from jaxop.training.processes import place
from jaxop.training.shards import check_shards, divide, shardings, shards, specs_like


@register
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes during training; `step` is the whole state of the data pipeline.

    With several members (`TrainingConfig`) every array but ``step`` has a leading axis of the members.

    Attributes:
        step: optimiser steps taken, int32 scalar.
        params: parameters (`nnx.Param`), nested dicts of arrays.
        other: every other variable of the model: data statistics, random streams, running averages.
        opt_state: state of the optimiser.
        ema: the parameters that evaluations use: the moving average of ``params``, or the parameters that the optimiser
            evaluates with (see `init_state`). None means ``params``.
    """

    step: Array
    params: Tree
    other: Tree
    opt_state: Tree
    ema: Tree

    @property
    def averaged(self) -> Tree:
        """The parameters to evaluate with: `ema`, or `params` if it is None."""
        return self.params if self.ema is None else self.ema


def split_model(model: nnx.Module, *, train: bool) -> tuple[nnx.GraphDef, Tree, Tree]:
    """Returns graph definition, parameters and other variables of a model in training or in evaluation mode.

    Args:
        model: any NNX module; it is not changed.
        train: whether dropout and running averages are on in the graph definition.

    Returns:
        The arguments of `flax.nnx.merge`; the trees hold the model's own arrays.
    """
    check_type(model, "model", nnx.Module, "a flax.nnx.Module, such as operators.build(config, rngs=nnx.Rngs(0))")
    copy = nnx.clone(model)
    copy.train() if train else copy.eval()
    nnx.pop(copy, nnx.Intermediate)  # intermediates of the last call are not state
    graphdef, params, other = nnx.split(copy, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(other)


def evaluation_graph(model: nnx.Module, members: int) -> nnx.GraphDef:
    """Returns the graph in evaluation mode of a model, or of the ensemble of several members like it."""
    return split_model(model if members == 1 else around_stacked(model, members), train=False)[0]


def evaluation_model(graphdef: nnx.GraphDef, members: int, params: Tree, other: Tree) -> nnx.Module:
    """Returns the model of `evaluation_graph` with parameters and other variables of a `TrainState`."""
    if members > 1:  # the members are the attribute "operator" of an Ensemble
        params, other = ({"operator": tree} if tree else tree for tree in (params, other))
    return nnx.merge(graphdef, params, other)


def init_state(
    model: nnx.Module,
    optimizer: Optimizer,
    config: TrainingConfig,
    *,
    eval_params: EvalParams | None = None,
    mesh: Mesh | None = None,
) -> tuple[nnx.GraphDef, TrainState]:
    """Returns the graph definition in training mode and the state at step 0, in new buffers.

    A step may therefore donate the state without changing the model. The parameters must be in float32 or wider:
    updates, gradients of micro-batches, moments and the moving average are summed in their dtype, and in
    half precision 1 + 0.001 = 1. To compute in half precision, give operators ``dtype="bfloat16"`` and keep
    ``param_dtype="float32"``.

    Args:
        model: any NNX module with at least one `nnx.Param`.
        optimizer: the result of `make_optimizer`, or any other transformation of Optax.
        config: reads ``ema_decay``, and ``members`` with ``seed``: the first member has the values of the model, and
            the others those of new models of its config, see `member_seeds`. The graph definition is that of a member.
        eval_params: a function from (state of the optimiser, parameters) to the parameters to evaluate with, if these
            are not the parameters that gradients are taken at. None recognises `optax.contrib.schedule_free` and
            optimisers made with it, such as `optax.contrib.schedule_free_adamw`.
        mesh: the devices that the state is for. The axis "model" divides every parameter of at least 64k numbers
            along its largest axis that its devices divide, and with it every array of its shape: its average, and
            those in the state of the optimiser. Everything else has a copy on every device. The optimiser's state is
            made from the divided parameters, so that no device holds all of it. None puts the state on one device.

    Raises:
        TypeError: if there are several members, and the model is not a neural operator with a config.
        ValueError: if the model does not have parameters, if parameters are in half precision, if both ``ema_decay``
            and the optimiser average the parameters, or if the axis "model" divides none of the large parameters.

    Warns:
        UserWarning: if the axis "model" divides nothing because all parameters are small.

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
    mesh = check_mesh(mesh)
    check_shards(params, mesh)
    init, evaluated = optimizer.init, functools.partial(evaluated_params, eval_params=eval_params)
    if config.members > 1:
        _, params, other = split_model(with_members(model, config), train=True)
        init, evaluated = jax.vmap(init), jax.vmap(evaluated)
    if shards(mesh) > 1:
        params = divide(params, mesh, members=config.members)
    with jax.numpy_dtype_promotion("standard"):
        opt_state = init(params)
    ema = evaluated(opt_state, params)
    if config.ema_decay:
        if ema is not None:
            raise ValueError(
                f"ema_decay={config.ema_decay} must be 0 for this optimiser: evaluations use the parameters that it "
                "computes itself."
            )
        ema = params
    state = TrainState(jnp.zeros((), jnp.int32), params, other, opt_state, ema)
    return graphdef, place_state(jax.tree.map(_own, state), mesh, members=config.members)


def place_state(state: TrainState, mesh: Mesh | None, *, members: int = 1) -> TrainState:
    """Returns a state on the devices, its averages and moments divided like parameters, or unchanged without a mesh."""
    if mesh is None:
        return state
    return jax.tree.map(place, state, shardings(specs_like(state, state.params, mesh, members=members), mesh))


def _own(leaf: ArrayLike) -> Array:
    """Returns a copy without a weak dtype, like a restored state."""
    array = jnp.asarray(leaf)
    return jnp.array(array, array.dtype)
