"""Scores of ensembles: the continuous ranked probability score, ranks of the truth, and their calibration curve."""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxop._validation import accumulator, check_type, host_real
from jaxop.data import Batch, DataSource, RaggedSamples, Samples
from jaxop.domains import Domain
from jaxop.domains.domain import check_domain, mean_over
from jaxop.operators import Ensemble
from jaxop.training.evaluation import (
    Errors,
    _check_batch,
    _check_samples,
    _spaces,
    _split_for_evaluation,
    by_sample,
)
from jaxop.training.losses import relative_norms
from jaxop.training.mesh import check_mesh, over_devices
from jaxop.training.nodes import check_shares_nodes, node_shares
from jaxop.training.optimizer import Tree


def crps(
    predictions: Float[Array, "e k c"], target: Float[Array, "k c"], domain: Domain, *, fair: bool = True
) -> Float[Array, ""]:
    """1/|D| ∫_D (1/E Σ_e |x_e − t| − 1/(2 E(E − 1)) Σ_{e,f} |x_e − x_f|) dx, mean over channels, of E predictions x_e.

    The continuous ranked probability score of a distribution P at t is E|X − t| − ½ E|X − X′| for independent draws X,
    X′ of P: in the mean over t, no distribution has a lower one than that of t itself. It rewards members that are near
    the truth and as far from each other as from the truth. The formula is unbiased for E draws, so that ensembles of
    any size can be compared; it may be negative for a single function. Of one prediction it would be |x − t|.

    Args:
        predictions: samples x_e(x_i) of the E ≥ 2 members, shape (E, k, c), see `jaxop.operators.Ensemble.predictions`.
        target: samples t(x_i) of the true function, shape (k, c).
        domain: the k nodes and weights of all.
        fair: False divides the second sum by 2E², which scores the E members as the whole distribution.

    Returns:
        A scalar in the units of the target, in float32 or wider. Nodes of weight 0 do not count, and splitting a node
        into two of half its weight changes nothing.

    Raises:
        ValueError: if the shapes differ or do not fit the domain, or there are fewer than 2 members.

    Cost: one sort of E numbers per node and channel, O(E k c) memory.

    Source: Gneiting and Raftery, Strictly proper scoring rules, prediction, and estimation, 2007; the fair one Ferro,
    Fair scores for ensemble forecasts, 2014.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, training
        >>> domain = domains.interval(9)
        >>> predictions = jnp.array([1.0, 3.0])[:, None, None] * jnp.ones((2, 9, 1))
        >>> truth = jnp.ones((9, 1))
        >>> print(training.crps(predictions, truth, domain))  # 1 - 1
        0.0
        >>> print(training.crps(predictions, truth, domain, fair=False))  # 1 - 1/2
        0.5
    """
    members = _checked(predictions, target, domain)
    count, dtype = len(members), members.dtype
    distances = jnp.mean(jnp.abs(members - target[None].astype(dtype)), axis=0)
    # Σ_{e<f} |x_e − x_f| = Σ_i (2i − E − 1) x_(i) of the sorted members
    factors = jnp.arange(1 - count, count, 2, dtype=dtype)[:, None, None]
    apart = jnp.sum(factors * (jnp.sort(members, axis=0) - members[:1]), axis=0)
    scores = distances - apart / (count * (count - 1) if fair else count**2)
    return jnp.mean(mean_over(scores, domain))


def rank_shares(
    predictions: Float[Array, "e k c"], target: Float[Array, "k c"], domain: Domain
) -> Float[Array, " e+1"]:
    """|{x : r of the E predictions are below t(x)}| / |D| for the ranks r = 0, …, E, mean over channels.

    Where truth and predictions are exchangeable, such as independent draws of one distribution, every rank has the
    share 1/(E + 1) on average, whatever the distribution. Where predictions equal the truth, such as at prescribed
    boundary values, the node counts evenly for all ranks that an order of the equal numbers could give.

    Args:
        predictions: samples x_e(x_i) of the E ≥ 2 members, shape (E, k, c).
        target: samples t(x_i) of the true function, shape (k, c).
        domain: the k nodes and weights of all.

    Returns:
        E + 1 numbers with the sum 1, shares of the quadrature weights, in float32 or wider; NaN if the truth or a
        member is NaN at a node that counts.

    Raises:
        ValueError: if the shapes differ or do not fit the domain, or there are fewer than 2 members.

    Cost: O(E k c).

    Source: Hamill, Interpretation of rank histograms for verifying ensemble forecasts, 2001.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, training
        >>> domain = domains.interval(4, rule="midpoint")
        >>> predictions = jnp.stack([0.3 + 0 * domain.points, 0.7 + 0 * domain.points])
        >>> print(training.rank_shares(predictions, domain.points, domain))  # nodes 1/8, 3/8, 5/8, 7/8
        [0.25 0.5  0.25]
    """
    members = _checked(predictions, target, domain)
    below = jnp.sum(members < target[None], axis=0)
    equal = jnp.sum(members == target[None], axis=0)
    ranks = jnp.arange(len(members) + 1)[:, None, None]
    possible = (ranks >= below[None]) & (ranks <= (below + equal)[None])
    shares = possible.astype(members.dtype) / (equal + 1)[None].astype(members.dtype)
    unknown = jnp.any(jnp.isnan(members), axis=0) | jnp.isnan(target)
    shares = jnp.where(unknown & (domain.weights > 0)[:, None], jnp.nan, shares)
    return jnp.mean(mean_over(shares, domain), axis=1)


def calibration_curve(
    ranks: Float[Array | np.ndarray, "*n r"],
) -> tuple[Float[np.ndarray, " l"], Float[np.ndarray, " l"]]:
    """Levels p_j = (E + 1 − 2j)/(E + 1), and the shares of nodes and functions with t between x_(j) and x_(E+1−j).

    The interval from the j-th smallest to the j-th largest member holds a truth that is exchangeable with the members
    with the probability p_j exactly, for any distribution: then the curve is on the diagonal. Below it, the members are
    too sure. An interval mean ± z s would have its nominal level for normal distributions only.

    Args:
        ranks: shares of the ranks of one function, shape (E + 1,), or of n functions, shape (n, E + 1), see
            `rank_shares` and `evaluate_ensemble`. Functions count equally.

    Returns:
        The ⌊E/2⌋ levels that E members have intervals for, in increasing order, and the shares.

    Raises:
        ValueError: if the shape is another, there are fewer than 3 ranks, or numbers are negative or not finite.

    Cost: O(n E) on the host.

    Source: Hamill, Interpretation of rank histograms for verifying ensemble forecasts, 2001.

    Example:
        >>> import numpy as np
        >>> from jaxop import training
        >>> levels, observed = training.calibration_curve(np.array([0.3, 0.1, 0.2, 0.1, 0.3]))  # E = 4
        >>> levels.round(3).tolist(), observed.round(3).tolist()
        ([0.2, 0.6], [0.2, 0.4])
    """
    known = host_real(ranks, "ranks").astype(np.float64)
    if known.ndim not in (1, 2) or known.shape[-1] < 3 or not np.isfinite(known).all() or (known < 0).any():
        raise ValueError(
            "ranks must be shares of at least 3 ranks, finite and not negative, of shape (E + 1,) or (n, E + 1), got "
            f"shape {known.shape} with values from {known.min(initial=0)} to {known.max(initial=0)}."
        )
    mean = known.reshape(-1, known.shape[-1]).mean(axis=0)
    count = len(mean) - 1
    outside = np.arange(count // 2, 0, -1)
    observed = np.array([mean[j : count + 1 - j].sum() for j in outside]) / mean.sum()
    return (count + 1 - 2 * outside) / (count + 1), observed


@dataclasses.dataclass(frozen=True)
class EnsembleErrors(Errors):
    """Errors of the mean of an ensemble on every sample of a set, and scores of its members.

    Attributes:
        crps: fair `crps` of the members, relative to the mean of |y_i| over domain and channels, shape (N,). Of a
            single prediction this would be the relative L1 error.
        spread: relative L2 norm ‖s‖/‖y_i‖ of the members' deviation s, shape (N,). If truth and members were draws of
            one distribution, the mean square error would be (1 + 1/E) s² on average.
        ranks: `rank_shares` of the members, shape (N, E + 1), for `calibration_curve`.
        members: relative L2 error of each member, shape (N, E); ``l2`` is that of their mean.
    """

    crps: Float[np.ndarray, " n"]
    spread: Float[np.ndarray, " n"]
    ranks: Float[np.ndarray, "n r"]
    members: Float[np.ndarray, "n e"]


def evaluate_ensemble(
    model: Ensemble,
    samples: Samples | RaggedSamples | DataSource,
    *,
    batch_size: int = 16,
    mesh: Mesh | None = None,
) -> EnsembleErrors:
    """The errors of the mean, as `evaluate` has them, with the scores of the members, in one pass over the samples.

    Args:
        model: an ensemble; it runs in evaluation mode and is left as it was.
        samples: see `evaluate`.
        batch_size: samples per call, see `evaluate`.
        mesh: see `evaluate`.

    Returns:
        `EnsembleErrors` with one entry per sample, in the order of the samples.

    Raises:
        TypeError: if ``model`` is not an ensemble, or the set holds labelled examples.
        ValueError: see `evaluate`.

    Cost: one forward pass of each member per sample; the predictions do not leave the device.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, operators, training
        >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 1, width=4, layers=1, modes=4)
        >>> ensemble = operators.Ensemble(operators.EnsembleConfig(fno, members=3), rngs=nnx.Rngs(0))
        >>> u = np.ones((5, 16, 1), np.float32)
        >>> samples = data.Samples(u, 4 * u, domains.interval(16, rule="periodic"))
        >>> errors = training.evaluate_ensemble(ensemble, samples)
        >>> errors.l2.shape, errors.crps.shape, errors.ranks.shape
        ((5,), (5,), (5, 4))
    """
    check_type(model, "model", Ensemble, "an operators.Ensemble; training.evaluate takes other models")
    _check_samples(samples, "evaluate_ensemble")
    mesh = check_mesh(mesh)
    graphdef, params, other = _split_for_evaluation(model, mesh)
    spaces: tuple[str, ...] = ()

    def scores(batch: Batch) -> tuple[Array, ...]:
        nonlocal spaces
        _check_batch(batch, samples, "evaluate_ensemble")
        spaces = spaces or _spaces(batch.target_domain)
        return _scores(graphdef, spaces, mesh, params, other, batch)

    found, spread, ranks, members, l2, *h1 = by_sample(scores, samples, batch_size, "samples", mesh)
    return EnsembleErrors(l2, h1[0] if h1 else None, found, spread, ranks, members)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _scores(
    graphdef: nnx.GraphDef, spaces: tuple[str, ...], mesh: Mesh | None, params: Tree, other: Tree, batch: Batch
) -> tuple[Array, ...]:
    def over_samples(outputs: Array, batch: Batch) -> tuple[Array, ...]:
        domain = batch.target_domain
        members = outputs.astype(accumulator(outputs.dtype))
        of_samples = jax.vmap(_scores_of_sample, in_axes=(0, 0, 0 if domain.is_batched else None))
        mean = jnp.mean(members, axis=1).astype(outputs.dtype)
        errors = (relative_norms(mean, batch.targets, domain, space=space) for space in spaces)
        return (*of_samples(members, batch.targets, domain), *errors)

    def outputs(batch: Batch, params: Tree, other: Tree) -> Array:
        model = nnx.merge(graphdef, params, other)
        check_shares_nodes(model, mesh)
        members = cast(Ensemble, model).predictions(batch.inputs, batch.domain, at=batch.at, initial=batch.initial)
        return jnp.moveaxis(members, 0, 2)

    def scores(batch: Batch, params: Tree, other: Tree) -> tuple[Array, ...]:
        return over_samples(jnp.moveaxis(outputs(batch, params, other), 2, 1), batch)

    if node_shares(mesh) == 1:
        return over_devices(scores, mesh, mean=False)(batch, params, other)
    # the scores of whole functions, because H1 needs the neighbours of every node
    found = over_devices(outputs, mesh, mean=False, nodes=True)(batch, params, other)
    return over_samples(jnp.moveaxis(found[:, : batch.targets.shape[1]], 2, 1), batch)


def _scores_of_sample(
    predictions: Float[Array, "e k c"], target: Float[Array, "k c"], domain: Domain
) -> tuple[Array, Array, Array, Array]:
    """Returns relative CRPS and spread, the shares of the ranks, and the relative errors of the members."""
    wide = target.astype(predictions.dtype)
    unit = domain._unit(wide)
    members, truth = predictions / unit, wide / unit
    spread = jnp.std(members, axis=0, ddof=1)
    size = jnp.mean(mean_over(jnp.abs(truth), domain))
    norm = domain.norm(truth)
    norm = jnp.where(norm == 0, 1, norm)
    score = crps(members, truth, domain) / jnp.where(size == 0, 1, size)
    errors = jax.vmap(lambda member: domain.norm(member - truth))(members) / norm
    return score, domain.norm(spread) / norm, rank_shares(predictions, wide, domain), errors


def _checked(predictions: Array, target: Array, domain: Domain) -> Array:
    """Returns the predictions in float32 or wider; raises ``ValueError`` if they do not fit target and domain."""
    check_domain(domain, "domain")
    is_function = target.ndim == 2 and target.shape[0] == domain.size
    if not is_function or predictions.ndim != 3 or predictions.shape[1:] != target.shape:
        raise ValueError(
            f"predictions and target must have shapes (E, k, c) and (k, c) with k = {domain.size}, the nodes of the "
            f"domain, got {predictions.shape} and {target.shape}; compare functions on the same nodes."
        )
    if len(predictions) < 2:
        raise ValueError(f"predictions must be those of at least 2 members, got {len(predictions)}.")
    return predictions.astype(accumulator(target.dtype))
