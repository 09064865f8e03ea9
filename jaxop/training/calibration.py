"""Calibration of an operator on functions it was not trained on: error bars that hold."""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, UInt8

from jaxop._files import json_checksum
from jaxop._validation import check_share, check_type
from jaxop.data import Batch, DataSource, RaggedSamples, RandomNodes, Sample, Samples
from jaxop.domains import Grid
from jaxop.domains.domain import mean_over
from jaxop.operators import Calibrated
from jaxop.operators.calibrated import config_of, conformal_rank
from jaxop.operators.folder import is_folder, read_folder
from jaxop.operators.ready import located
from jaxop.training.bands import band_scores, conformal_factor
from jaxop.training.evaluation import _check_batch, _check_samples, _split_for_evaluation, by_sample, predict
from jaxop.training.identity import as_set, describe_source, digests
from jaxop.training.optimizer import Tree
from jaxop.training.run import Run, load_run

Known = Samples | RaggedSamples | RandomNodes | Run | str | os.PathLike[str]
"""Data that a model was trained on: a set of samples, or the run or the folder of a model that has their hashes."""


def calibrate(
    model: nnx.Module,
    samples: Samples | RaggedSamples | DataSource,
    *,
    alpha: float,
    delta: float,
    spread: nnx.Module | None = None,
    floor: float = 0.01,
    trained_on: Known | Sequence[Known] = (),
    batch_size: int = 16,
) -> Calibrated:
    """Returns u ↦ (G(u), Q σ), with Q the ⌈(n + 1)(1 − δ)⌉-th smallest of the scores of n functions.

    The score of a function is the (1 − α)-quantile of |v − G(u)|/σ over its domain (`band_score`), and σ the local size
    of the error (`jaxop.operators.Calibrated`). For new functions of the same
    distribution, at least 1 − α of the domain lies inside the band with probability at least 1 − δ, and at most
    1 − δ + 1/(n + 1) if scores do not tie. Neither G nor σ need be good; better ones make narrower bands.

    This needs functions that neither ``model`` nor ``spread`` were trained on, or chosen by: errors on those are
    smaller than on new ones. ``trained_on`` makes sure. One calibration scatters: the share of new functions that
    are covered has the standard deviation √(δ(1 − δ)/(n + 2)), 2.1 % for n = 200 and δ = 0.1.

    Args:
        model: a neural operator G, such as `jaxop.from_pretrained` returns, or a `jaxop.operators.Ensemble` whose mean
            is G. It is not copied.
        samples: n ≥ 1/δ − 1 pairs of functions, on any nodes that the operators take, see `evaluate`.
        alpha: α, the share of the domain that may be outside, 0 ≤ α < 1. With 0 the whole function is inside.
        delta: δ, the share of functions that may be outside, 0 < δ < 1.
        spread: a second operator, which maps the inputs to the local size of the error in the units of the output;
            `absolute_residuals` and `pinball_loss` train one. None takes the deviation of an ensemble's members, in the
            same forward pass; for one operator it makes bands of one width per channel.
        floor: smallest σ relative to its mean over the domain; keep some where the spread may be wrong.
        trained_on: sets of samples that ``model`` or ``spread`` were trained on, runs (`load_run`), and paths of runs
            and models or names of models. No input function of ``samples`` may be in one of these sets, whatever its
            target. Runs and models have hashes of the functions of their training and validation, by which they are
            known on the same nodes. Runs on a data source of your own have none, and are compared by their description
            of it.
        batch_size: samples per call, see `evaluate`.

    Returns:
        `jaxop.operators.Calibrated`, in evaluation mode. Its config records α, δ, Q, n and a checksum of ``samples``.

    Raises:
        TypeError: if an argument has a wrong type, such as a model that is not a neural operator with a config.
        ValueError: if there are too few functions (the message names the least n), a number is out of its range, a
            pair of functions is there twice, a sample is in ``trained_on`` (the message names it), or the model or its
            spread are not finite.

    Cost: one forward pass of each operator and one sort of the nodes per sample; one reading of ``trained_on``.

    Source: see `band_score` and `conformal_factor`.

    Example:
        >>> import functools, tempfile
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, operators, training
        >>> grid = domains.interval(16, rule="periodic")
        >>> def waves(seed):  # the derivative of the input, and noise that grows with it
        ...     random = np.random.default_rng(seed)
        ...     size, x = random.random((64, 1, 1)), 2 * np.pi * np.asarray(grid.points)
        ...     noise = 0.2 * size * random.normal(size=(64, 16, 1))
        ...     u, v = size * np.sin(x), size * np.cos(x) + noise
        ...     return data.Samples(u.astype(np.float32), v.astype(np.float32), grid)
        >>> def new_operator(samples):
        ...     config = operators.FourierNeuralOperatorConfig(1, 1, 1, width=8, layers=1, modes=4)
        ...     statistics = data.standardization(samples)
        ...     return operators.Standardized(operators.build(config, rngs=nnx.Rngs(0)), **statistics)
        >>> first, second, third, new = (waves(seed) for seed in range(4))
        >>> model = new_operator(first)  # and train it on the first
        >>> errors = training.absolute_residuals(model, second)
        >>> spread = training.fit(
        ...     new_operator(errors), errors, {}, training.TrainingConfig(steps=2, batch_size=16),
        ...     loss=functools.partial(training.pinball_loss, level=0.9),
        ...     run_dir=tempfile.mkdtemp(), progress=False,
        ... ).model
        >>> levels = {"alpha": 0.1, "delta": 0.1}
        >>> calibrated = training.calibrate(
        ...     model, third, spread=spread, trained_on=[first, second], **levels
        ... )
        >>> prediction, half_width = calibrated(new[:].inputs, grid)
        >>> prediction.shape, half_width.shape
        ((64, 16, 1), (64, 16, 1))
        >>> training.calibrate(model, first.take(slice(0, 20)), trained_on=first, **levels)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: samples must be new to the model, but 20 of 20 are in trained_on, the first being samples[0]; ...
    """
    _check_samples(samples, "calibrate")
    alpha, delta = check_share(alpha, "alpha", zero=True), check_share(delta, "delta", zero=False)
    conformal_rank(len(samples), delta, "samples")
    config_of(model, "model", ensemble=True)
    numbers = {"alpha": alpha, "delta": delta, "count": len(samples), "floor": floor}
    unit = Calibrated.of(model, spread, factor=1.0, **numbers)
    described = describe_source(samples)
    _check_new(samples, described, trained_on)
    _check_distinct(samples)
    scores, _ = _scored(unit, samples, batch_size, "calibrate")
    factor = conformal_factor(scores, delta=delta)
    if not math.isfinite(factor):
        first = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(
            f"samples[{first}] and {np.sum(~np.isfinite(scores)) - 1} others have an infinite score: the prediction is "
            "not finite there, or the spread is 0 where the prediction is wrong; train them again."
        )
    about = {"nodes": _nodes(samples), "data": json_checksum(described)}
    calibrated = Calibrated.of(model, spread, factor=factor, **about, **numbers)
    return nnx.merge(*_split_for_evaluation(calibrated, None))


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How often a band holds functions, and how wide it is; see `coverage`.

    Attributes:
        inside: whether at least 1 − α of the domain of a function lies in its band, shape (N,).
        half_widths: mean of the half-width over the domain, shape (N, c), in the units of the output.
        nominal: 1 − δ, the share of functions for which the band was calibrated.
    """

    inside: Bool[np.ndarray, " n"]
    half_widths: Float[np.ndarray, "n c"]
    nominal: float

    @property
    def share(self) -> float:
        """Share p of the N functions that are inside."""
        return float(np.mean(self.inside))

    @property
    def standard_error(self) -> float:
        """√(p(1 − p)/N), the standard error of the share if the functions are independent; 0 if p is 0 or 1."""
        return math.sqrt(self.share * (1 - self.share) / len(self.inside))

    @property
    def half_width(self) -> Float[np.ndarray, " c"]:
        """Mean of the half-width over domains and functions, for each channel."""
        return np.asarray(np.mean(self.half_widths, axis=0, dtype=np.float64))


def coverage(
    calibrated: Calibrated, samples: Samples | RaggedSamples | DataSource, *, batch_size: int = 16
) -> Coverage:
    """Share of functions v with |{x ∈ D : |v(x) − G(u)(x)| ≤ Q σ(x)}| ≥ (1 − α)|D|, of samples (u, v).

    For functions that are new, and of the distribution of the calibration, it estimates what `calibrate` promises to be
    at least 1 − δ: a share with mean k/(n + 1) and standard deviation √(δ(1 − δ)/(n + 2)) over calibrations with n
    functions. On other nodes or other distributions this is how the band is measured.

    Args:
        calibrated: an operator with error bars.
        samples: N pairs of functions, on any nodes that the operators take, see `evaluate`.
        batch_size: samples per call, see `evaluate`.

    Returns:
        `Coverage`.

    Raises:
        TypeError: if ``calibrated`` is not a `jaxop.operators.Calibrated`.
        ValueError: for the reasons of `evaluate`.

    Cost: one forward pass of each operator and one sort of the nodes per sample.

    Source: see `band_score`.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, operators, training
        >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 1, width=8, layers=1, modes=4)
        >>> config = operators.CalibratedConfig(operator=fno, alpha=0.1, delta=0.1, factor=0.25, count=99)
        >>> calibrated = operators.Calibrated(config, rngs=nnx.Rngs(0))
        >>> grid = domains.interval(16, rule="periodic")
        >>> u = np.ones((4, 16, 1), np.float32)
        >>> v = training.predict(calibrated.operator, data.Samples(u, u, grid))
        >>> shifts = np.array([0, 0.2, 0.2, 0.3], np.float32)[:, None, None]
        >>> found = training.coverage(calibrated, data.Samples(u, v + shifts, grid))
        >>> found.inside, found.share, round(found.standard_error, 2), found.half_width, found.nominal
        (array([ True,  True,  True, False]), 0.75, 0.22, array([0.25]), 0.9)
    """
    check_type(calibrated, "calibrated", Calibrated, "an operator with error bars, which training.calibrate returns")
    _check_samples(samples, "coverage")
    config = calibrated.config
    # the program of `calibrate`, whose scores are compared with the factor without another rounding
    numbers = {"alpha": config.alpha, "delta": config.delta, "count": config.count, "floor": config.floor}
    parts = cast(tuple[nnx.Module, nnx.Module | None], (calibrated.operator, calibrated.spread))
    unit = Calibrated.of(*parts, factor=1.0, **numbers)
    scores, sizes = _scored(unit, samples, batch_size, "coverage")
    # δ counts as the decimal number that it prints as
    nominal = float(1 - Fraction(repr(config.delta)))
    return Coverage(scores <= config.factor, config.factor * sizes, nominal)


def absolute_residuals(
    model: nnx.Module, samples: Samples | RaggedSamples, *, batch_size: int = 16
) -> Samples | RaggedSamples:
    """Pairs (u_i, |v_i − G(u_i)|) of samples (u_i, v_i): what a spread for `calibrate` is trained on.

    The samples should be new to the model, because its errors on those that it was trained on are smaller, and those
    of the calibration should be new to the spread: three sets.

    Args:
        model: an operator G.
        samples: pairs of functions on any nodes that the operator takes.
        batch_size: samples per call, see `evaluate`.

    Returns:
        A set of the same kind on the same nodes, in host memory.

    Raises:
        TypeError: if ``samples`` is neither `jaxop.data.Samples` nor `jaxop.data.RaggedSamples`.
        ValueError: if a prediction is not finite, or is not of the shape of its target.

    Cost: one forward pass per sample.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, training
        >>> class Double(nnx.Module):
        ...     def __call__(self, values, domain, *, at=None, initial=None):
        ...         return 2 * values
        >>> u = np.ones((5, 9, 1), np.float32)
        >>> errors = training.absolute_residuals(Double(), data.Samples(u, 3 * u, domains.interval(9)))
        >>> print(errors.targets.max())
        1.0
    """
    check_type(samples, "samples", (Samples, RaggedSamples), "data.Samples or data.RaggedSamples")
    if isinstance(samples, Samples):
        distances = _distance(predict(model, samples, batch_size=batch_size), samples.targets[:])
        return Samples(samples.inputs, distances, samples.domain, samples.at, samples.initial)
    pairs = []
    for i, prediction in enumerate(predict(model, samples, batch_size=batch_size)):
        one = samples.sample(i)
        pairs.append(Sample(one.inputs, _distance(prediction, one.targets), one.domain, one.at, one.initial))
    return RaggedSamples(pairs)


def _distance(prediction: np.ndarray, target: ArrayLike) -> np.ndarray:
    target = np.asarray(target)
    if prediction.shape != target.shape:
        raise ValueError(f"predictions must have the shape of the targets, {target.shape}, got {prediction.shape}.")
    dtype = np.promote_types(prediction.dtype, np.float32)
    return np.abs(prediction.astype(dtype) - target.astype(dtype))


def _scored(unit: Calibrated, samples: DataSource, batch_size: int, function: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the score of every function and its mean σ, shapes (N,) and (N, c)."""
    graphdef, params, other = _split_for_evaluation(unit, None)

    def scored(batch: Batch) -> tuple[Array, Array]:
        _check_batch(batch, samples, function)
        return _scores(graphdef, unit.config.alpha, params, other, batch)

    scores, sizes = by_sample(scored, samples, batch_size, "samples", None)
    return scores, sizes


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    graphdef: nnx.GraphDef, alpha: float, params: Tree, other: Tree, batch: Batch
) -> tuple[Float[Array, " b"], Float[Array, "b c"]]:
    model = nnx.merge(graphdef, params, other)
    prediction, sigma = model(batch.inputs, batch.domain, at=batch.at, initial=batch.initial)
    nodes = batch.target_domain
    return band_scores(prediction, batch.targets, nodes, alpha=alpha, spread=sigma), mean_over(sigma, nodes)


def _check_new(samples: DataSource, described: dict, trained_on: Known | Sequence[Known]) -> None:
    """Raises ``ValueError`` if a sample is in one of the sets that were trained on."""
    kinds = (Samples, RaggedSamples, RandomNodes, Run, str, os.PathLike)
    sets = [trained_on] if isinstance(trained_on, kinds) else trained_on
    check_type(sets, "trained_on", Sequence, "a set of samples, a training.Run, a model, or a list of them")
    known: set[bytes] = set()
    for i, one in enumerate(sets):
        check_type(
            one,
            f"trained_on[{i}]",
            kinds,
            "data.Samples, data.RaggedSamples, a training.Run, or the path of a run or a model",
        )
        if isinstance(one, Samples | RaggedSamples | RandomNodes):
            known |= set(digests(one.source if isinstance(one, RandomNodes) else one, f"trained_on[{i}]"))
            continue
        if isinstance(one, Run) and described.items() <= one.config["train"].items():
            raise ValueError(
                f"samples must be new to the model, but they are the training set of {one.directory}; keep functions "
                "for the calibration apart."
            )
        hashes = one.functions if isinstance(one, Run) else known_functions(one)
        if hashes is None and not isinstance(one, Run):
            raise ValueError(
                f"trained_on[{i}] = {os.fspath(one)!r} has no hashes of the functions that it was trained on, because "
                "it was not saved with functions=; give the sets of samples."
            )
        known |= as_set(hashes)
    if not known:
        return
    samples = samples.source if isinstance(samples, RandomNodes) else samples
    seen = [i for i, digest in enumerate(digests(samples, "samples")) if digest in known]
    if seen:
        raise ValueError(
            f"samples must be new to the model, but {len(seen)} of {len(samples)} are in trained_on, the first being "
            f"samples[{seen[0]}]; keep functions for the calibration apart."
        )


def known_functions(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "n 16"] | None:
    """Returns the hashes of the functions that a run or a model was trained on or validated with, None without any.

    Args:
        path: a run directory, the folder or .zip file of a model, or the name of one of `operators.ready_models`.

    Raises:
        FileNotFoundError: if there is neither a run nor a model.
        ValueError: if files cannot be read or were changed.
    """
    place = located(path)
    return read_folder(place).functions if is_folder(place) else load_run(place).functions


def _check_distinct(samples: DataSource) -> None:
    """Raises ``ValueError`` if a pair is there twice: one function that counts as two makes the band too narrow."""
    if not isinstance(samples, Samples | RaggedSamples):
        return
    first: dict[bytes, int] = {}
    for i, digest in enumerate(digests(samples, "samples", targets=True)):
        if first.setdefault(digest, i) != i:
            raise ValueError(
                f"samples must be draws of their own, but samples[{i}] is samples[{first[digest]}] again, input and "
                "target; leave copies out, which count as one function."
            )


def _nodes(samples: DataSource) -> str:
    """Returns the nodes of the targets, for the reader of a card; "" if they are not known."""
    if isinstance(samples, RaggedSamples):
        return f"{samples.target_sizes.min():,} to {samples.target_sizes.max():,} nodes of their own"
    if not isinstance(samples, Samples):
        return ""
    domain = samples.target_domain
    if isinstance(domain, Grid) and not domain.is_batched:
        return f"a grid of {' × '.join(map(str, domain.shape))} nodes"
    return f"{domain.size:,} nodes{' of their own' if domain.is_batched else ''}"
