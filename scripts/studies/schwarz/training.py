"""Adam from random factors against the fit, two levels and global, at equal parameters and time."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxop import schwarz
from studies.schwarz.setting import Form, Pair, Study, fitted
from studies.table import print_header, print_row

Parameters = TypeVar("Parameters")
Factors = tuple[jax.Array, jax.Array]
"""Q and K of a global operator."""
Carry = tuple[PyTree, optax.OptState]
"""Parameters and the state of the optimiser; Optax's type of parameters leaves dataclasses out."""

SAMPLES, TEST_SAMPLES = 4096, 512


class Row(NamedTuple):
    """One way to train, with one seed.

    Attributes:
        label: its name in the table.
        parameters: their number.
        test: relative error on new samples.
        beyond: relative error on modes that no sample holds.
        seconds: of training.
    """

    label: str
    parameters: int
    test: float
    beyond: float
    seconds: float


def descent(study: Study, seconds: float) -> None:
    """Prints the table: means and standard deviations over the seeds of the study.

    Args:
        study: the setting.
        seconds: time that Adam has.
    """
    study = study.with_band()
    if study.modes == study.nodes:
        raise ValueError(f"--modes must be below the {study.nodes} nodes here: some are left out of the band.")
    if not seconds > 0:
        raise ValueError(f"--seconds must be positive, got {seconds}.")
    rows: dict[str, list[Row]] = {}
    for seed in study.seeds:
        for row in trainings(study, seconds, seed):
            rows.setdefault(row.label, []).append(row)
    print_header(f"{SAMPLES} samples, {len(study.seeds)} seeds", "parameters", "test", "out of band", "seconds")
    for label, seeds in rows.items():
        tests, beyond = [row.test for row in seeds], [row.beyond for row in seeds]
        errors = (f"{np.mean(values):.2e} ± {np.std(values):.0e}" for values in (tests, beyond))
        print_row(label, seeds[0].parameters, *errors, f"{np.mean([row.seconds for row in seeds]):.1f}")


def trainings(study: Study, seconds: float, seed: int) -> list[Row]:
    """Every way to train with one seed, from the same samples, with a little noise in the fits."""
    dec, rng = study.decompose(), np.random.default_rng(seed)
    inputs, targets = study.covariance()
    coefficients = rng.normal(size=(2, inputs.shape[1], SAMPLES))
    train = Pair(inputs @ coefficients[0], targets @ coefficients[0])
    test = Pair(inputs @ coefficients[1, :, :TEST_SAMPLES], targets @ coefficients[1, :, :TEST_SAMPLES])
    beyond = study.covariance(first=inputs.shape[1] + 1, last=study.nodes)
    weights = dec.domain.weights
    factors = schwarz.random_factors(jax.random.key(seed), dec, study.rank)
    count = schwarz.count_parameters(dec, factors)
    rank = math.ceil(count / (2 * study.nodes))
    query_key, key_key = jax.random.split(jax.random.key(seed + 1))
    query, key = (
        rank**-0.25 * jax.random.normal(rng_key, (study.nodes, rank), weights.dtype) for rng_key in (query_key, key_key)
    )

    def two_levels(parameters: schwarz.Factors, v: jax.Array) -> jax.Array:
        return schwarz.apply(v, dec, parameters)

    def one_level(parameters: Factors, v: jax.Array) -> jax.Array:
        return schwarz.low_rank_apply(v, weights, *parameters)

    def row(
        label: str, size: int, operator: Callable[[Parameters, jax.Array], jax.Array], found: Parameters, spent: float
    ) -> Row:
        def error(pair: Pair) -> float:
            out = np.asarray(operator(found, jnp.asarray(pair.inputs)))
            return float(np.linalg.norm(out - pair.targets) / np.linalg.norm(pair.targets))

        return Row(label, size, error(test), error(beyond), spent)

    fit, fit_seconds = fitted(study, dec, train, noise=1e-4)
    alone, alone_seconds = fitted(study, dec, train, Form(from_matrix=False), noise=1e-4)
    begin = time.perf_counter()
    best = schwarz.optimal_low_rank(*train, np.asarray(weights), rank)
    best_seconds = time.perf_counter() - begin
    found = adam(two_levels, factors, train, seconds, seed)
    flat = adam(one_level, (query, key), train, seconds, seed)
    queries = {"coarse_query": found.parameters.coarse_query, "local_query": found.parameters.local_query}
    scaled = jax.tree.map(lambda query: query / found.scale, queries)
    flat_factors = flat.parameters[0] / flat.scale, flat.parameters[1]
    global_size = 2 * study.nodes * rank
    return [
        row("two levels, fit from A", count, two_levels, fit.factors, fit_seconds),
        row("two levels, fit from data alone", count, two_levels, alone.factors, alone_seconds),
        row("global, optimum", global_size, one_level, best, best_seconds),
        row("two levels, Adam", count, two_levels, dataclasses.replace(found.parameters, **scaled), found.seconds),
        row("global, Adam", global_size, one_level, flat_factors, flat.seconds),
    ]


class Descent(NamedTuple, Generic[Parameters]):
    """Parameters of an operator whose outputs are to be divided by a scale, and the seconds that they took."""

    parameters: Parameters
    scale: jax.Array
    seconds: float


def adam(
    operator: Callable[[Parameters, jax.Array], jax.Array],
    start: Parameters,
    train: Pair,
    seconds: float,
    seed: int,
) -> Descent[Parameters]:
    """Descends on the mean square error of batches of 256, of outputs scaled to size one, for a time."""
    inputs, targets = (jnp.asarray(side) for side in train)
    scale = 1 / jnp.sqrt(jnp.mean(targets**2))
    optimizer = optax.adam(optax.exponential_decay(3e-2, 500, 0.9))

    def loss(parameters: Parameters, batch: jax.Array) -> jax.Array:
        out = operator(parameters, inputs[:, batch])
        return jnp.mean((out - scale * targets[:, batch]) ** 2)

    @jax.jit
    def epoch(carry: Carry, key: jax.Array) -> Carry:
        def advance(carry: Carry, key: jax.Array) -> tuple[Carry, None]:
            parameters, state = carry
            batch = jax.random.randint(key, (256,), 0, inputs.shape[1])
            updates, state = optimizer.update(jax.grad(loss)(parameters, batch), state)
            return (optax.apply_updates(parameters, updates), state), None

        return jax.lax.scan(advance, carry, jax.random.split(key, 100))[0]

    tree: PyTree = start
    carry: Carry = tree, optimizer.init(tree)
    key = jax.random.key(seed)
    jax.block_until_ready(epoch(carry, key))  # compiles
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        key, one = jax.random.split(key)
        carry = jax.block_until_ready(epoch(carry, one))
    return Descent(carry[0], scale, time.perf_counter() - begin)
