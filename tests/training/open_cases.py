"""Trainings with an optimiser, a loss, a module or a data source that the library does not know: one table for all."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxop import domains, training
from jaxop.data import Batch, Trajectories
from tests.training.cases import Tiny, samples

CONFIG = training.TrainingConfig(
    steps=6, batch_size=4, accumulate=2, learning_rate=1e-2, eval_every=4, checkpoint_every=2, keep_last=2, seed=3
)


class Profile(nnx.Module):
    """A function of space for every input number, on any nodes, with state of every kind."""

    def __init__(self, width: int = 4):
        rngs = nnx.Rngs(0)
        self.inner = nnx.Linear(2, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.outer = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, number, points):
        """Numbers (b, 1) and nodes (n, 1) to values (b, n, 1)."""
        b, n = number.shape[0], points.shape[0]
        inputs = jnp.concatenate([jnp.broadcast_to(number[:, None], (b, n, 1)), jnp.broadcast_to(points, (b, n, 1))], 2)
        hidden = jnp.tanh(self.inner(inputs))
        self.sow(nnx.Intermediate, "hidden", hidden)
        return self.outer(self.dropout(self.norm(hidden)))


def residual(model, batch):
    """−u″ = a on (0, 1) with u(0) = u(1) = 0, for the number a of every sample."""
    domain = batch["domain"]

    def u(points):
        return (points * (1 - points))[None] * nnx.clone(model)(batch["a"], points)

    def derivative(function):
        return lambda points: jax.jvp(function, (points,), (jnp.ones_like(points),))[1]

    error = derivative(derivative(u))(domain.points) + batch["a"][:, None]
    values = model(batch["a"], domain.points)  # moves the running averages
    return jax.vmap(domain.norm)(error), {"largest": jnp.max(jnp.abs(error)), "mean": jnp.mean(values, axis=(1, 2))}


class Numbers:
    """Items that are made when they are asked for."""

    def __init__(self, count: int = 10, *, version: int = 1, spoiled: int | None = None):
        self.count, self.version, self.spoiled, self.read = count, version, spoiled, 0
        self.domain = domains.interval(5)

    def __len__(self):
        return self.count

    def __getitem__(self, indices):
        self.read += len(indices)
        a = np.sin(np.asarray(indices, np.float32))[:, None] + 2
        a[np.asarray(indices) == self.spoiled] = np.nan
        return {"a": a, "domain": self.domain}

    def identity(self):
        return {"numbers": "sine", "version": self.version}


class Functions:
    """The tests' samples behind the two methods of a data source, without an identity."""

    def __init__(self, count: int = 22, *, seed: int = 0, spoiled: int | None = None):
        chosen = samples(count, seed=seed)
        self.inputs, self.targets, self.domain = np.array(chosen.inputs), np.array(chosen.targets), chosen.domain
        if spoiled is not None:
            self.inputs[spoiled, 3, 0] = np.nan

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, indices):
        arrays = (jnp.asarray(array[indices]) for array in (self.inputs, self.targets))
        return Batch(*arrays, self.domain, None, None, jnp.asarray(indices, jnp.int32))


def weighted_l2(model, batch):
    errors = training.relative_l2_loss(model, batch)
    return 2 * errors, {"l2": errors}


def windows(count: int = 10, *, seed: int = 0, spoiled: int | None = None, **changes):
    """One window of each trajectory, with strides, noise and a curriculum."""
    random = np.random.default_rng(seed)
    states = random.normal(size=(count, 7, 5, 1)).astype(np.float32)
    trajectories = Trajectories(states, domains.interval(5), 0.1 * np.arange(7), random.random((count, 1)), ("speed",))
    if spoiled is not None:
        states[spoiled, :, 3] = np.nan  # after the check
    options = {"history": 2, "steps": 2, "strides": (1, 2), "curriculum": ((0, 1), (3, 2))} | changes
    return trajectories.windows(**options)


def unrolled(model, batch):
    """The errors of two steps from a state with noise, by the weights of the batch."""
    state, errors = batch.history[:, -1], []
    if batch.key_data is not None:
        keys = jax.random.wrap_key_data(batch.key_data, impl="threefry2x32")
        state += 0.1 * jax.vmap(lambda key: jax.random.normal(key, state.shape[1:]))(keys)
    for lead in range(2):
        dt = (batch.times[:, 2 + lead] - batch.times[:, 1 + lead]) * batch.parameters[:, 0]
        state += dt[:, None, None] * model(state, batch.domain)
        errors.append(jax.vmap(batch.domain.norm)(state - batch.targets[:, lead]))
    errors = jnp.stack(errors, axis=1)
    return jnp.sum(batch.weights * errors, axis=1) / jnp.sum(batch.weights, axis=1), {"lead_2": errors[:, 1]}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A training that is open in some respect.

    `others` are changes under which it must not be resumed, by the field of the record that tells them apart; `bad` is
    the array of a batch that a spoiled item spoils.
    """

    optimizer: Callable[[], Any] = lambda: None
    loss: Any = None
    model: Callable[[], nnx.Module] = lambda: Tiny(width=4, rngs=nnx.Rngs(0))
    train: Callable[..., Any] = Functions
    others: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    bad: str = "batch.inputs"

    def fit(self, directory, *, config=CONFIG, **changes):
        """A quiet run of this case; changes replace arguments of `training.fit`."""
        train = self.train()
        arguments = {"optimizer": self.optimizer(), "loss": self.loss, "progress": False, "train": train}
        arguments |= {"model": self.model(), "valid": {"same": train}} | changes
        model, train, valid = (arguments.pop(name) for name in ("model", "train", "valid"))
        return training.fit(model, train, valid, config, run_dir=directory, **arguments)


CASES = {
    "multi-steps": Case(
        optimizer=lambda: optax.MultiSteps(optax.contrib.schedule_free_adamw(0.02), 2),
        others={"optimizer.state": {"optimizer": None}},
    ),
    "plateau": Case(
        optimizer=lambda: optax.chain(optax.adam(0.02), optax.contrib.reduce_on_plateau(patience=1)),
        others={"optimizer.state": {"optimizer": optax.adam(0.02)}, "loss.function": {"loss": weighted_l2}},
    ),
    "source": Case(others={"train.items.inputs.crc32": {"train": Functions(seed=1)}}),
    "everything": Case(
        optimizer=lambda: optax.contrib.schedule_free_adamw(0.02, warmup_steps=2),
        loss=residual,
        model=Profile,
        train=Numbers,
        others={
            "train.identity.version": {"train": Numbers(version=2)},
            "train.length": {"train": Numbers(11)},
            "loss.function": {"loss": lambda model, batch: residual(model, batch)[0]},
            "optimizer.state": {"optimizer": optax.contrib.schedule_free_sgd(0.02)},
        },
        bad="batch.a",
    ),
    "windows": Case(
        loss=unrolled,
        train=windows,
        others={
            "train.identity.trajectories.states.contents": {"train": windows(seed=1)},
            "train.identity.curriculum": {"train": windows(curriculum=((0, 1), (2, 2)))},
            "train.identity.strides": {"train": windows(strides=(2, 1))},
        },
        bad="batch.history",
    ),
}
"""Schedule-free optimisers alone and within others, arguments of an update, a state that holds infinity, any source
with and without an identity, any module, a residual, and windows of trajectories with random strides and noise."""
