"""A small operator, its data and a run of it: what every training test uses."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, training
from jaxop.data import Samples

CONFIG = training.TrainingConfig(
    steps=24,
    batch_size=4,
    accumulate=2,
    learning_rate=1e-2,
    warmup_steps=4,
    weight_decay=1e-2,
    ema_decay=0.9,
    eval_every=6,
    checkpoint_every=5,
    keep_last=2,
    seed=3,
)

SHORT = dataclasses.replace(CONFIG, steps=2, warmup_steps=1)


class Tiny(nnx.Module):
    """A pointwise network plus the mean over the domain, with dropout and a variable that is no parameter."""

    def __init__(self, *, width: int = 8, rate: float = 0.1, dtype=jnp.float32, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [
                nnx.Linear(2, width, rngs=rngs, param_dtype=dtype),
                nnx.Linear(width, 1, rngs=rngs, param_dtype=dtype),
            ]
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs, param_dtype=dtype)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, values, domain, *, at=None, initial=None):
        self.calls[...] = self.calls[...] + 1
        weights = domain.weights.astype(values.dtype)
        weights = jnp.broadcast_to(weights, values.shape[:-1])
        mean = jnp.sum(weights[..., None] * values, 1, keepdims=True) / jnp.sum(weights, 1)[:, None, None]
        hidden = self.layers[0](jnp.concatenate([values, jnp.broadcast_to(mean, values.shape)], axis=-1))
        return self.layers[1](self.dropout(self.norm(jnp.tanh(hidden))))


def tiny(**options) -> Tiny:
    return Tiny(rngs=nnx.Rngs(0), **options)


def samples(count: int = 22, nodes: int = 9, *, seed: int = 0, dtype=np.float32) -> Samples:
    """u = a sin(πx) + b to u² + mean u on an uneven interval."""
    points = np.linspace(0, 1, nodes) ** 1.5
    coefficients = np.random.default_rng(seed).normal(size=(2, count, 1))
    u = coefficients[0] * np.sin(np.pi * points) + coefficients[1]
    inputs = u[..., None].astype(dtype)
    targets = (u**2 + u.mean(axis=1, keepdims=True))[..., None].astype(dtype)
    return Samples(inputs, targets, domains.from_samples(points.astype(dtype)))


def stacked_samples(count: int) -> Samples:
    """The same functions as if on a grid of its own for every sample."""
    shared, points = samples(count), np.linspace(0, 1, 9, dtype=np.float32)
    grids = [domains.from_samples(points ** np.float32(1 + i / count)) for i in range(count)]
    return Samples(shared.inputs, shared.targets, domains.stack(grids))


def valid() -> dict[str, Samples]:
    return {"9": samples(6, seed=1), "17": samples(5, 17, seed=1)}


def run(directory, *, config=CONFIG, model=None, train=None, **options) -> training.Result:
    """A run of the table's config, quiet unless asked otherwise."""
    options = {"progress": False, "settings": {"operator": {"name": "tiny", "width": 8}}} | options
    return training.fit(model or tiny(), train or samples(), valid(), config, run_dir=directory, **options)


def batch(count: int = 4, **options):
    return samples(count, **options)[np.arange(count)]


def leaves(tree) -> dict[str, np.ndarray]:
    """Every leaf by name, random keys as their bits."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        named[jax.tree_util.keystr(path)] = np.asarray(jax.random.key_data(leaf) if key else leaf)
    return named


def assert_same_bits(first, second) -> None:
    first, second = leaves(first), leaves(second)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert first[name].tobytes() == second[name].tobytes(), name


def rows(directory) -> list[dict]:
    """The metrics of a run without the clock."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in training.read_metrics(directory)]


def state_at(directory, step: int):
    """The whole state that a run saved at a step."""
    _, like = training.init_state(tiny(), training.make_optimizer(CONFIG), CONFIG)
    return training.load_run(directory).checkpoints.restore(like, step=step)


class Interrupt:
    """Does something when a step is logged."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def start(self, run_dir, settings, step): ...

    def log(self, step, metrics):
        if step == self.step and "loss" in metrics:
            self.action()

    def close(self): ...


def crash():
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruption(step, action=crash):
    """The loggers of a run that ends when a step is logged, as a crash would end it."""
    with pytest.raises(KeyboardInterrupt):
        yield [Interrupt(step, action)]


def interrupted(directory, step, action=crash, **options):
    """A run of the table's config that ends like this."""
    with interruption(step, action) as loggers:
        run(directory, loggers=loggers, **options)
