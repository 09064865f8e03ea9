"""One optimiser step as a pure, compiled function of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from jaxop._validation import check_type, float_dtype
from jaxop.domains.domain import as_domain
from jaxop.training.config import LOSSES, TrainingConfig
from jaxop.training.losses import cross_entropy, relative_norms
from jaxop.training.state import Optimizer, TrainState, Tree, check_optimizer, used_learning_rate

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]
"""(state, batch) -> (state, metrics)."""


def make_step(graphdef: nnx.GraphDef, optimizer: Optimizer, config: TrainingConfig) -> Step:
    """θ ← θ + AdamW(∇_θ (1/b) Σ_i L_i), L_i = ‖f_θ(u_i) − y_i‖ / ‖y_i‖ or the cross-entropy, compiled, state donated.

    With ``accumulate`` = a the batch is split into a micro-batches of b/a samples whose gradients are
    summed in a `jax.lax.scan`: the gradient of the whole batch at the memory of one micro-batch. Random
    streams of the model (dropout) are folded with (seed, step), so a step depends on nothing but its
    arguments. The moving average follows ema ← ema + (1 − β_t)(θ − ema) with β_t = min(β, (1+t)/(10+t)),
    which forgets the initial parameters quickly.

    Args:
        graphdef: of the model in training mode, as `init_state` returns it. The model is called as
            ``model(inputs, domain, at=at, initial=initial)``.
        optimizer: as `make_optimizer` makes it, or any other transformation of Optax.
        config: reads ``loss``, ``accumulate``, ``ema_decay`` and ``seed``.

    Returns:
        A jitted function from (state, batch) to (state, metrics). A batch is a `jaxop.data.Batch`, or for
        cross-entropy a `jaxop.data.ExampleBatch`, whose model is called as ``model(inputs)``; the
        metrics are scalars on the device: ``loss``, ``grad_norm`` (before clipping), ``learning_rate`` (where the
        optimiser tells it: that of `make_optimizer`, or one in `optax.inject_hyperparams`), ``finite`` (whether loss,
        gradient and new parameters are) and ``culprit`` (number of the first array that is not among the gradients of
        all parameters followed by all new parameters, −1 if they are finite). The state passed in must not be used
        again.

    Cost: one forward and one backward pass of the model; no temporary copy of the state.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import data, domains, training
        >>> class Pointwise(nnx.Linear):
        ...     def __call__(self, values, domain, *, at=None, initial=None):
        ...         return super().__call__(values)
        >>> config = training.TrainingConfig(steps=10, batch_size=4, accumulate=2)
        >>> optimizer = training.make_optimizer(config)
        >>> graphdef, state = training.init_state(Pointwise(1, 1, rngs=nnx.Rngs(0)), optimizer, config)
        >>> step = training.make_step(graphdef, optimizer, config)
        >>> ones = jnp.ones((4, 9, 1))
        >>> batch = data.Batch(ones, 2 * ones, domains.interval(9), None, None, jnp.arange(4))
        >>> state, metrics = step(state, batch)
        >>> int(state.step), bool(metrics["finite"])
        (1, True)
    """
    TrainingConfig.check(config)
    check_optimizer(optimizer)
    check_type(graphdef, "graphdef", nnx.GraphDef, "the graph definition that training.init_state returns")

    def losses(model: Any, batch: dict[str, Any]) -> Array:
        if config.loss == "cross_entropy":
            return cross_entropy(model(batch["inputs"]), batch["labels"])
        at = batch["at"]
        predictions = model(batch["inputs"], batch["domain"], at=at, initial=batch["initial"])
        target_domain = as_domain(batch["domain"] if at is None else at, "domain")
        return relative_norms(predictions, batch["targets"], target_domain, space=LOSSES[config.loss])

    def loss(params: Tree, other: Tree, batch: dict[str, Any], draw: tuple[Array, Array]) -> tuple[Array, Tree]:
        model = nnx.merge(graphdef, params, other)
        streams = _fold_streams(model, config.seed, *draw)
        mean = jnp.mean(losses(model, batch))
        nnx.update(model, streams)
        return mean, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulated(state: TrainState, batch: dict[str, Any]) -> tuple[tuple[Array, Tree], Tree]:
        params, pieces = state.params, config.accumulate
        numbers = jnp.arange(pieces)
        if pieces == 1:
            return gradient(params, state.other, batch, (state.step, numbers[0]))
        per_sample, shared = _split_fields(batch)
        per_sample = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), per_sample)

        def add(carry: tuple[Array, Tree, Tree], piece: tuple[Array, dict[str, Any]]):
            (total, other, gradients), (number, fields) = carry, piece
            (value, other), more = gradient(params, other, shared | fields, (state.step, number))
            return (total + value, other, jax.tree.map(jnp.add, gradients, more)), None

        first = jax.tree.map(lambda x: x[0], per_sample)
        (value, _), _ = jax.eval_shape(gradient, params, state.other, shared | first, (state.step, numbers[0]))
        start = jnp.zeros((), value.dtype), state.other, jax.tree.map(jnp.zeros_like, params)
        (total, other, gradients), _ = jax.lax.scan(add, start, (numbers, per_sample))
        return (total / pieces, other), jax.tree.map(lambda g: g / pieces, gradients)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        fields = {
            field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "index"
        }
        (value, other), gradients = accumulated(state, fields)
        squares = jnp.stack([jnp.sum(jnp.square(g.astype(float_dtype()))) for g in jax.tree.leaves(gradients)])
        norm = jnp.sqrt(jnp.sum(squares))
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else _average(state.ema, params, config.ema_decay, state.step)
        moved = jnp.stack([jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(params)])
        good = jnp.concatenate([jnp.isfinite(squares), moved])
        metrics = {
            "loss": value,
            "grad_norm": norm,
            "finite": jnp.isfinite(value) & jnp.isfinite(norm) & jnp.all(moved),
            "culprit": jnp.where(jnp.all(good), -1, jnp.argmin(good)),
        }
        rate = used_learning_rate(optimizer, opt_state, state.step)
        if rate is not None:
            metrics["learning_rate"] = rate
        return TrainState(state.step + 1, params, other, opt_state, ema), metrics

    return jax.jit(step, donate_argnums=0)


def _split_fields(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields with a leading sample axis, and those that all samples share."""
    per_sample = {
        name: value
        for name, value in batch.items()
        if value is not None and (name not in ("domain", "at") or value.is_batched)
    }
    return per_sample, {name: value for name, value in batch.items() if name not in per_sample}


def _fold_streams(model: nnx.Module, seed: int, step: Array, piece: Array) -> Tree:
    """Folds every random stream of the model with (seed, step, piece); returns the streams as they were."""

    def fold(key: Array) -> Array:
        for number in (seed, step, piece):
            key = jax.random.fold_in(key, number)
        return key

    def one(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros_like(leaf)  # how often the stream was drawn from
        return jax.vmap(fold)(leaf.reshape(-1)).reshape(leaf.shape)

    streams = nnx.to_pure_dict(nnx.state(model, nnx.RngState))
    nnx.update(model, jax.tree.map(one, streams))
    return streams


def _average(ema: Tree, params: Tree, decay: float, step: Array) -> Tree:
    time = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + time) / (10 + time))
    return jax.tree.map(lambda mean, new: mean + rate.astype(mean.dtype) * (new - mean), ema, params)
