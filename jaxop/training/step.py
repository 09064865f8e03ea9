"""One optimiser step as a pure, compiled function of state and batch."""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxop._remat import check_recomputed, recomputed_layers
from jaxop._validation import check_type, float_dtype
from jaxop.data.source import batch_parts, is_shared
from jaxop.training.config import TrainingConfig
from jaxop.training.losses import LOSS_FUNCTIONS, Loss, apply_loss, check_loss
from jaxop.training.members import MemberBatch, member_seeds
from jaxop.training.mesh import check_divides, check_mesh, device_number, over_devices
from jaxop.training.nodes import check_shares_nodes
from jaxop.training.optimizer import (
    EvalParams,
    Optimizer,
    Tree,
    check_optimizer,
    evaluated_params,
    update_of,
    used_learning_rate,
)
from jaxop.training.shards import on_shards, shardings, shards, specs_like, specs_of
from jaxop.training.state import TrainState

Totals = TypeVar("Totals")


@runtime_checkable
class Step(Protocol):
    """A jitted function (state, batch) -> (state, metrics)."""

    def __call__(self, state: TrainState, batch: Tree, /) -> tuple[TrainState, dict[str, Array]]:
        """Returns the state after the step and the metrics of the step."""
        ...

    def lower(self, state: TrainState, batch: Tree, /) -> jax.stages.Lowered:
        """Traces the step, which can then be compiled."""
        ...


def make_step(
    graphdef: nnx.GraphDef,
    optimizer: Optimizer,
    config: TrainingConfig,
    *,
    loss: Loss | None = None,
    eval_params: EvalParams | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Step:
    """θ ← θ + update(∇_θ (1/b) Σ_i L_i) for the losses L_i of the samples of a batch, compiled, state donated.

    With ``accumulate`` = a the batch is split into a micro-batches of b/a samples. A `jax.lax.scan` sums their
    gradients, which takes the memory of one micro-batch and gives the gradient of the whole batch. Random streams of
    the model (dropout) are folded with (seed, step), so that a step depends only on its arguments. The moving average
    follows ema ← ema + (1 − β_t)(θ − ema) with β_t = min(β, (1+t)/(10+t)), which forgets the initial parameters
    quickly.

    Args:
        graphdef: the model in training mode, from `init_state`.
        optimizer: the result of `make_optimizer`, or any other transformation of Optax. If its ``update`` takes them,
            it gets the keyword arguments ``value``, ``grad`` and ``value_fn``: loss, gradient, and loss as a function
            of the parameters.
        config: reads ``loss``, ``accumulate``, ``remat``, ``ema_decay``, ``seed`` and ``members``. With several members
            the step is mapped over them: it takes their batches as a `MemberBatch`, and every metric has one entry for
            each member.
        loss: a function of (model, batch) that returns one number per sample, or these numbers and a dict of metrics;
            see `jaxop.training.losses`. None takes the loss that ``config.loss`` names: the relative errors in L2 or
            H1 of a model called as ``model(inputs, domain, at=at, initial=initial)``, or the cross-entropy of a model
            called as ``model(inputs)``.
        eval_params: see `init_state`.
        mesh: devices that share the samples of a batch along the axes "data" and "model". Each computes the gradient of
            its own samples, as one device would, and the mean over the devices is the only communication along "data".
            The step takes the state that ``init_state(..., mesh=mesh)`` returns. The devices of "model" share one copy
            of it: they gather the parameters that they compute with, and each gets the mean of its own shard of the
            gradient. Along an axis "domain" devices also share the nodes of every function of a `jaxop.data.Batch`.
            Attention then passes blocks of keys and values round them, and spectral layers and latent attention add
            sums: the loss gets the nodes of one device, on a
            `jaxop.domains.Shard`, whose integrals and L2 norms are those of the whole domain, so that all devices of
            "domain" have the same losses. Random streams are folded with the device's number too, so dropout draws
            other masks on another number of devices. None computes on one device.

    Returns:
        A jitted function from (state, batch) to (state, metrics). A batch is a `jaxop.data.Batch`, a
        `jaxop.data.ExampleBatch`, or any other argument of the loss: a pytree of arrays with a leading sample axis and
        of domains. The state that is passed in must not be used again. The metrics are scalars on the device:

        * ``loss``, and ``grad_norm`` before clipping;
        * ``learning_rate``, if `make_optimizer` made the optimiser, or `optax.inject_hyperparams` keeps it;
        * ``finite``: True if loss, gradient and new parameters are finite;
        * ``culprit``: number of the first array that is not finite, where all gradients are counted before all new
          parameters; −1 if all are finite;
        * the means of the loss's own metrics.

    Cost: one forward and one backward pass of the model; no temporary copy of the state.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from flax import nnx
        >>> from jaxop import training
        >>> def squares(model, batch):
        ...     errors = model(batch["x"]) - batch["y"]
        ...     return jnp.mean(errors**2, axis=1), {"bias": jnp.mean(errors)}
        >>> config = training.TrainingConfig(steps=10, batch_size=4, accumulate=2)
        >>> optimizer = optax.sgd(0.1)
        >>> graphdef, state = training.init_state(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), optimizer, config)
        >>> step = training.make_step(graphdef, optimizer, config, loss=squares)
        >>> state, metrics = step(state, {"x": jnp.ones((4, 1)), "y": jnp.zeros((4, 1))})
        >>> int(state.step), bool(metrics["finite"]), sorted(metrics)
        (1, True, ['bias', 'culprit', 'finite', 'grad_norm', 'loss'])
    """
    TrainingConfig.check(config)
    check_optimizer(optimizer)
    check_type(graphdef, "graphdef", nnx.GraphDef, "the graph definition that training.init_state returns")
    if loss is not None:
        check_loss(loss)
    mesh = check_mesh(mesh)
    check_divides(mesh, config.batch_size, config.accumulate)
    fixed = (config.seed,) if config.members == 1 else ()  # the seeds of members are an argument
    chosen = loss or LOSS_FUNCTIONS[config.loss]
    update = update_of(optimizer)

    def mean_loss(
        params: Tree, other: Tree, batch: Tree, draw: tuple[Array, ...]
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        model = nnx.merge(graphdef, params, other)
        check_shares_nodes(model, mesh)
        streams = _fold_streams(model, *fixed, *draw)
        if config.remat is None:
            losses, extra = apply_loss(chosen, model, batch)
        else:
            with recomputed_layers() as found:
                losses, extra = apply_loss(chosen, model, batch)
            check_recomputed(found, config.remat, model)
        nnx.update(model, streams)
        nnx.pop(model, nnx.Intermediate)
        others = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
        others = _of_same_kind(others, other, "a call of the model must keep the model's variables")
        return jnp.mean(losses), (others, {name: jnp.mean(metric) for name, metric in extra.items()})

    def step(state: TrainState, batch: Tree, *seed: Array) -> tuple[TrainState, dict[str, Array]]:
        numbers = (*seed, state.step)
        specs = specs_of(state.params, mesh)
        loss = on_shards(mean_loss, specs)
        gradient = jax.value_and_grad(loss, has_aux=True)

        def values(batch: Tree, params: Tree, other: Tree, *numbers: Array):
            def of_piece(other: Tree, batch: Tree, piece: Array):
                value, (other, _) = loss(params, other, batch, (*numbers, piece, *device_number(mesh)))
                return value, other

            return _mean_over_pieces(of_piece, other, batch, config.accumulate)

        def values_and_gradients(batch: Tree, params: Tree, other: Tree, *numbers: Array):
            def of_piece(other: Tree, batch: Tree, piece: Array):
                draw = *numbers, piece, *device_number(mesh)
                (value, (other, extra)), gradients = gradient(params, other, batch, draw)
                return (value, extra, gradients), other

            return _mean_over_pieces(of_piece, other, batch, config.accumulate)

        def value_fn(params: Tree) -> Array:
            return over_devices(values, mesh, mean=True)(batch, params, state.other, *numbers)[0]

        copied = PartitionSpec()
        (value, extra, gradients), other = over_devices(
            values_and_gradients, mesh, mean=True, results=((copied, copied, specs), copied)
        )(batch, state.params, state.other, *numbers)
        chex.assert_shape(value, ())
        chex.assert_trees_all_equal_shapes_and_dtypes(gradients, state.params)
        squares = jnp.stack([jnp.sum(jnp.square(g.astype(float_dtype()))) for g in jax.tree.leaves(gradients)])
        norm = jnp.sqrt(jnp.sum(squares))
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
            updates, opt_state = update(
                gradients, state.opt_state, state.params, value=value, grad=gradients, value_fn=value_fn
            )
            params = optax.apply_updates(state.params, updates)
        opt_state = _of_same_kind(opt_state, state.opt_state, "optimizer.update must keep the structure of the state")
        ema = None
        if state.ema is not None:
            ema = (
                _average(state.ema, params, config.ema_decay, state.step)
                if config.ema_decay
                else evaluated_params(opt_state, params, eval_params)
            )
        moved = jnp.stack([jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(params)])
        good = jnp.concatenate([jnp.isfinite(squares), moved])
        metrics = extra | {
            "loss": value,
            "grad_norm": norm,
            "finite": jnp.isfinite(value) & jnp.isfinite(norm) & jnp.all(moved),
            "culprit": jnp.where(jnp.all(good), -1, jnp.argmin(good)),
        }
        rate = used_learning_rate(optimizer, opt_state, state.step)
        if rate is not None:
            metrics["learning_rate"] = rate
        return TrainState(state.step + 1, params, other, opt_state, ema), metrics

    whole = step if config.members == 1 else _over_members(step, config)
    if mesh is None:
        return jax.jit(whole, donate_argnums=0)
    copied = NamedSharding(mesh, PartitionSpec())
    if shards(mesh) == 1:
        return jax.jit(whole, donate_argnums=0, out_shardings=copied)

    def kept(state: TrainState, batch: Tree) -> tuple[TrainState, dict[str, Array]]:
        after, metrics = whole(state, batch)
        divided = shardings(specs_like(after, after.params, mesh, members=config.members), mesh)
        return jax.lax.with_sharding_constraint(after, divided), jax.lax.with_sharding_constraint(metrics, copied)

    return jax.jit(kept, donate_argnums=0)


def _over_members(
    step: Callable[..., tuple[TrainState, dict[str, Array]]], config: TrainingConfig
) -> Callable[[TrainState, MemberBatch], tuple[TrainState, dict[str, Array]]]:
    """Returns a function of (stacked state, `MemberBatch`) from one of (state, batch, seed) of a member.

    Everything but the number of the step has a leading axis of the members, in the result too.
    """
    seeds = jnp.asarray(member_seeds(config), jnp.uint32)

    def over_members(state: TrainState, batch: MemberBatch) -> tuple[TrainState, dict[str, Array]]:
        check_type(batch, "batch", MemberBatch, f"a training.MemberBatch of the batches of {config.members} members")
        parts = [one[0] if len(one) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *one) for one in batch.parts]
        axes = [None if len(one) == 1 else 0 for one in batch.parts]

        def of_member(own: tuple[Tree, ...], parts: list[Tree], seed: Array) -> tuple[tuple[Tree, ...], Tree]:
            after, metrics = step(TrainState(state.step, *own), jax.tree.unflatten(batch.structure, parts), seed)
            return (after.params, after.other, after.opt_state, after.ema), metrics

        own = state.params, state.other, state.opt_state, state.ema
        after, metrics = jax.vmap(of_member, in_axes=(0, axes, 0))(own, parts, seeds)
        return TrainState(state.step + 1, *after), metrics

    return over_members


def _mean_over_pieces(
    function: Callable[[Tree, Tree, Array], tuple[Totals, Tree]], other: Tree, batch: Tree, pieces: int
) -> tuple[Totals, Tree]:
    """Returns the mean of a function of (other variables, micro-batch, number), with other variables as the carry."""
    numbers = jnp.arange(pieces)
    if pieces == 1:
        return function(other, batch, numbers[0])
    parts, structure = batch_parts(batch)
    shared = [is_shared(part) for part in parts]
    split = [
        part if together else jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), part)
        for part, together in zip(parts, shared, strict=True)
    ]

    def whole(own: list[Tree]) -> Tree:
        rest = iter(own)
        mixed = [part if together else next(rest) for part, together in zip(parts, shared, strict=True)]
        return jax.tree.unflatten(structure, mixed)

    own = [part for part, together in zip(split, shared, strict=True) if not together]

    def add(carry: tuple[Totals, Tree], piece: tuple[Array, list[Tree]]) -> tuple[tuple[Totals, Tree], None]:
        totals, other = carry
        more, other = function(other, whole(piece[1]), piece[0])
        return (jax.tree.map(jnp.add, totals, more), other), None

    first = jax.tree.map(lambda x: x[0], own)
    shapes, _ = jax.eval_shape(lambda other, own, number: function(other, whole(own), number), other, first, numbers[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (totals, other), _ = jax.lax.scan(add, (zeros, other), (numbers, own))
    return jax.tree.map(lambda total: total / pieces, totals), other


def _fold_streams(model: nnx.Module, *numbers: int | Array) -> Tree:
    """Folds every random stream of the model with the numbers, one by one; returns the streams as they were."""

    def fold(key: Array) -> Array:
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return key

    def one(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros_like(leaf)  # the number of draws from the stream
        return jax.vmap(fold)(leaf.reshape(-1)).reshape(leaf.shape)

    streams = nnx.to_pure_dict(nnx.state(model, nnx.RngState))
    nnx.update(model, jax.tree.map(one, streams))
    return streams


def _average(ema: Tree, params: Tree, decay: float, step: Array) -> Tree:
    time = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + time) / (10 + time))
    with jax.numpy_dtype_promotion("standard"):
        return _of_same_kind(optax.incremental_update(params, ema, rate), ema, "an average keeps its structure")


def _of_same_kind(new: Tree, old: Tree, rule: str) -> Tree:
    """Returns the new tree in the dtypes of the old one, so that the compiled step takes it.

    Raises:
        TypeError: if the structures differ; the message begins with the rule.
    """
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise TypeError(f"{rule}, {jax.tree.structure(old)}, got {jax.tree.structure(new)}.")

    def one(new: Array, old: Array) -> Array:
        return new if new.dtype == old.dtype and not new.weak_type else jnp.asarray(new, old.dtype)

    return jax.tree.map(one, new, old)
