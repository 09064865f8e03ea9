"""Split conformal bands: the score of a function, and the factor that makes a band hold for most functions."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import accumulator, check_share, host_real
from jaxop.domains import Domain
from jaxop.domains.domain import check_domain
from jaxop.domains.measure import relative_weights
from jaxop.operators.calibrated import conformal_rank


def band_score(
    prediction: Float[Array, "k c"],
    target: Float[Array, "k c"],
    domain: Domain,
    *,
    alpha: float,
    spread: Float[Array, "k c"] | None = None,
) -> Float[Array, ""]:
    """inf{q : |{x ∈ D : |t(x) − p(x)| > q σ(x)}| ≤ α|D|}, how wide a band p ± q σ must be to hold t.

    This is the (1 − α)-quantile of |t − p|/σ over the domain, with the quadrature weights as its measure, so that the
    number has the same meaning on every grid. With α = 0 it is the maximum. A node is outside the band if any of its
    channels is. Nodes of weight 0 do not count, and splitting a node into two of half its weight changes nothing.

    Args:
        prediction: samples p(x_i), shape (k, c).
        target: samples t(x_i) of the true function, shape (k, c).
        domain: the k nodes and weights of both.
        alpha: α, the share of the domain that may be outside, 0 ≤ α < 1.
        spread: samples σ(x_i) ≥ 0, shape (k, c), in the units of the target. None means 1.

    Returns:
        A scalar ≥ 0 in float32 or wider; without unit if a spread is given, otherwise in the units of the target. It is
        infinite if p is not a number, or is wrong where σ = 0, on more than α|D|.

    Raises:
        TypeError: if ``alpha`` is not a number.
        ValueError: if the shapes differ or do not fit the domain, or ``alpha`` is outside [0, 1).

    Cost: one sort of k numbers, O(k c) memory.

    Source: Ma et al., Calibrated uncertainty quantification for operator learning via
    conformal prediction, arXiv:2402.01960, whose quantile counts grid points and here has the weights of the domain.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, training
        >>> domain = domains.interval(101)
        >>> truth, zero = domain.points, jnp.zeros_like(domain.points)
        >>> [round(float(training.band_score(zero, truth, domain, alpha=alpha)), 2) for alpha in (0, 0.1, 0.5)]
        [1.0, 0.9, 0.5]
        >>> print(training.band_score(zero, truth, domain, alpha=0, spread=jnp.full_like(truth, 0.5)))
        2.0
    """
    check_domain(domain, "domain")
    shapes = {"prediction": prediction.shape, "target": target.shape}
    shapes |= {} if spread is None else {"spread": spread.shape}
    if len(set(shapes.values())) > 1 or target.ndim != 2 or target.shape[0] != domain.size:
        raise ValueError(
            f"{', '.join(shapes)} must have one shape (k, c) with k = {domain.size}, the nodes of the domain, got "
            f"{', '.join(map(str, shapes.values()))}; compare functions on the same nodes (see the operators' argument "
            "`at`)."
        )
    alpha = check_share(alpha, "alpha", zero=True)
    dtype = accumulator(target.dtype)
    ratios = jnp.abs(target.astype(dtype) - prediction.astype(dtype))
    if spread is not None:
        sigma = spread.astype(dtype)
        ratios = jnp.where(ratios == 0, 0, jnp.where(sigma > 0, ratios / sigma, jnp.inf))
    ratios = jnp.max(jnp.where(jnp.isnan(ratios), jnp.inf, ratios), axis=1)
    weights = relative_weights(domain.weights.astype(dtype))
    ratios = jnp.where(weights > 0, ratios, 0)
    if alpha == 0:
        return jnp.max(ratios)
    largest_first = jnp.argsort(-ratios)
    ratios, weights = ratios[largest_first], weights[largest_first]
    above = jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(weights)[:-1]])
    # sums of rounded weights meet α|D| only up to rounding: 16 of 64 equal nodes are a quarter
    allowed = alpha * (1 + 64 * float(jnp.finfo(dtype).eps)) * jnp.sum(weights)
    return jnp.min(jnp.where(above <= allowed, ratios, jnp.inf))


def band_scores(
    predictions: Float[Array, "b k c"],
    targets: Float[Array, "b k c"],
    domain: Domain,
    *,
    alpha: float,
    spread: Float[Array, "b k c"] | None = None,
) -> Float[Array, " b"]:
    """The score of every sample i of a batch, `band_score` mapped over the leading axis.

    Args:
        predictions: shape (b, k, c).
        targets: shape (b, k, c).
        domain: one domain for all samples, or one per sample (`jaxop.domains.stack`).
        alpha: the share of the domain that may be outside, 0 ≤ α < 1.
        spread: shape (b, k, c). None means 1.

    Returns:
        Shape (b,).

    Raises:
        TypeError: see `band_score`.
        ValueError: see `band_score`.

    Cost: b sorts of k numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, training
        >>> truths = jnp.array([1.0, 2.0])[:, None, None] * jnp.ones((2, 9, 1))
        >>> print(training.band_scores(truths * 1.5, truths, domains.interval(9), alpha=0.1))
        [0.5 1. ]
    """
    for name, values in (("predictions", predictions), ("targets", targets), ("spread", spread)):
        if values is not None and values.shape != targets.shape:
            raise ValueError(f"{name} must have the shape (b, k, c) of targets, {targets.shape}, got {values.shape}.")
    along = 0 if domain.is_batched else None

    def one(prediction: Array, target: Array, domain: Domain, spread: Array | None) -> Array:
        return band_score(prediction, target, domain, alpha=alpha, spread=spread)

    return jax.vmap(one, in_axes=(0, 0, along, 0))(predictions, targets, domain, spread)


def conformal_factor(scores: Float[Array | np.ndarray, " n"], *, delta: float) -> float:
    """Q = s_(k), k = ⌈(n + 1)(1 − δ)⌉: the k-th smallest of the scores of n functions.

    If these n functions and a new one are exchangeable, such as independent draws of one distribution that the model
    was not trained on, then P(s_new ≤ Q) ≥ 1 − δ, and ≤ 1 − δ + 1/(n + 1) if ties have probability 0. The
    probability is over both the n functions and the new one. Given the n functions, the coverage of new ones has the
    distribution Beta(k, n + 1 − k), with standard deviation of about √(δ(1 − δ)/(n + 2)).

    Args:
        scores: shape (n,), such as those of `band_scores`.
        delta: δ, the share of functions that may be outside, 0 < δ < 1; it counts as the decimal number it prints as.

    Returns:
        Q, infinite if the k-th score is.

    Raises:
        TypeError: if an argument is not made of numbers.
        ValueError: if ``delta`` is outside (0, 1), ``scores`` are not of shape (n,) or not numbers, or there are
            too few: k ≤ n needs n ≥ 1/δ − 1.

    Cost: one sort of n numbers on the host.

    Source: Vovk, Gammerman and Shafer, Algorithmic learning in a random world, 2005; Lei et al., Distribution-free
    predictive inference for regression, 2018.

    Example:
        >>> import numpy as np
        >>> from jaxop import training
        >>> training.conformal_factor(np.arange(1.0, 20.0), delta=0.1)  # n = 19, k = 18
        18.0
        >>> training.conformal_factor(np.ones(48), delta=0.02)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: scores: 48 functions are too few for delta=0.02, which needs at least 49; ...
    """
    known = host_real(scores, "scores")
    delta = check_share(delta, "delta", zero=False)
    if known.ndim != 1 or np.isnan(known).any():
        raise ValueError(f"scores must be n numbers, of shape (n,), none of them NaN, got shape {known.shape}.")
    return float(np.sort(known)[conformal_rank(len(known), delta, "scores") - 1])
