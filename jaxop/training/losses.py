"""Relative errors as weighted norms of the domain: the training losses and the metrics of an evaluation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxop._validation import accumulator
from jaxop.domains import Domain
from jaxop.domains.domain import check_domain


def relative_norm(
    prediction: Float[Array, "k c"], target: Float[Array, "k c"], domain: Domain, *, space: str = "L2"
) -> Float[Array, ""]:
    """‖p − t‖ / ‖t‖ in L2(D) or H1(D), with the quadrature weights of the domain.

    The norms are integrals over D with gradients in physical units, so the number means the same on
    every grid. Both are taken in units of about max|t|, so very large and very small truths are compared like
    any other; on nodes of weight 0 neither is looked at.
    Where ‖t‖ = 0 (a truth that vanishes on every node of positive weight) no ratio exists and the value
    is ‖p − t‖ itself: finite, 0 only for an exact prediction, and with a usable gradient. In H1, ‖t‖ is
    0 only for t = 0, so a constant truth is an ordinary one.

    Args:
        prediction: samples p(x_i), shape (k, c).
        target: samples t(x_i) of the truth, shape (k, c).
        domain: the k nodes and weights on which both are given.
        space: "L2" or "H1", one of `jaxop.domains.SPACES`.

    Returns:
        A scalar ≥ 0 without unit, in float32 or wider. Its gradient at p = t is 0.

    Raises:
        ValueError: if the shapes differ or do not fit the domain, ``space`` is unknown, or H1 is asked
            of scattered nodes.

    Cost: a few passes over (k, c).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, training
        >>> domain = domains.interval(65)
        >>> truth = jnp.sin(jnp.pi * domain.points)
        >>> print(training.relative_norm(1.5 * truth, truth, domain).round(4))
        0.5
        >>> print(training.relative_norm(truth, jnp.zeros_like(truth), domain).round(4))
        0.7071
    """
    check_domain(domain, "domain")
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape (k, c), got {prediction.shape} and {target.shape}; "
            "compare functions on the same nodes (see the operators' argument `at`)."
        )
    dtype = accumulator(target.dtype)
    unit = domain._unit(domain._samples(target.astype(dtype), "target"))
    prediction, target = prediction.astype(dtype) / unit, target.astype(dtype) / unit
    truth = domain.norm(target, space=space)
    error = domain.norm(prediction - target, space=space)
    return error / jnp.where(truth == 0, 1, truth)


def relative_norms(
    predictions: Float[Array, "b k c"], targets: Float[Array, "b k c"], domain: Domain, *, space: str = "L2"
) -> Float[Array, " b"]:
    """‖p_i − t_i‖ / ‖t_i‖ for every sample i of a batch: `relative_norm` mapped over the leading axis.

    Args:
        predictions: shape (b, k, c).
        targets: shape (b, k, c).
        domain: one domain for all samples, or one per sample (`jaxop.domains.stack`).
        space: "L2" or "H1".

    Returns:
        Shape (b,).

    Raises:
        ValueError: as `relative_norm`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, training
        >>> truths = jnp.ones((2, 9, 1))
        >>> print(training.relative_norms(truths * 1.5, truths, domains.interval(9)))
        [0.5 0.5]
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"predictions and targets must have one shape (b, k, c), got {predictions.shape} and {targets.shape}."
        )
    along = 0 if domain.is_batched else None

    def one(prediction: Array, target: Array, domain: Domain) -> Array:
        return relative_norm(prediction, target, domain, space=space)

    return jax.vmap(one, in_axes=(0, 0, along))(predictions, targets, domain)


def cross_entropy(logits: Float[Array, "b *n v"], labels: Int[Array, "b *n"]) -> Float[Array, " b"]:
    """−log softmax(l)_y, averaged over the tokens of each example, in nats; float32 at least.

    Args:
        logits: l, shape (b, v) or (b, n, v).
        labels: y, shape (b,) or (b, n).

    Returns:
        Shape (b,).

    Raises:
        ValueError: for labels that are not integers, or do not fit the logits.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import training
        >>> print(training.cross_entropy(jnp.zeros((1, 4)), jnp.array([2])))  # log 4
        [1.3862944]
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must be numbers of classes, integers of shape {logits.shape[:-1]} for logits of shape "
            f"{logits.shape}, got {labels.dtype} of shape {labels.shape}."
        )
    logits = logits.astype(accumulator(logits.dtype))
    logs = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return -jnp.mean(logs.reshape(labels.shape[0], -1), axis=1)
