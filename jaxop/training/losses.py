"""Losses: relative errors as weighted norms of the domain, cross-entropy, and your own functions.

A loss is a function of a model and a batch. It returns one number per sample, shape (b,), or these numbers and a
dict of metrics by name, each of shape (b,) or (). The batch holds the domain. Since the model can be evaluated on any
nodes, `jax.jvp` gives derivatives of the output in space. The residual of −u″ = f, with u the output for the
input f, takes ten lines:

Example:
    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxop import data, domains
    >>> def poisson(model, batch):
    ...     def u(points):  # the output at given nodes: u(x_i) depends on x_i alone
    ...         return model(batch.inputs, batch.domain, at=domains.PointCloud(points, batch.domain.weights))
    ...     def derivative(function):
    ...         return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]
    ...     residual = derivative(derivative(u))(batch.domain.points) + batch.inputs
    ...     energy = jax.vmap(batch.domain.dirichlet)(u(batch.domain.points), u(batch.domain.points))
    ...     return jax.vmap(batch.domain.norm)(residual), {"energy": energy}

    For f = π² sin πx, whose solution is sin πx, the residual of the solution vanishes, and ∫ u′² = π²/2:

    >>> class Solution(nnx.Module):
    ...     def __call__(self, values, domain, *, at=None, initial=None):
    ...         return jnp.sin(jnp.pi * at.points)[None]
    >>> grid = domains.interval(65)
    >>> f = jnp.pi**2 * jnp.sin(jnp.pi * grid.points)[None]
    >>> residuals, metrics = poisson(Solution(), data.Batch(f, f, grid, None, None, jnp.arange(1)))
    >>> print(residuals.round(3) + 0, metrics["energy"].round(2))
    [0.] [4.93]

    If a model changes its state in a call (dropout, running averages), call ``nnx.clone(model)(…)`` inside a function
    that is differentiated: the clone draws the same random numbers.

    Attention between more than 128² pairs of nodes is chunked, which has derivatives only in reverse mode. Set
    ``implementation="dense"`` in its config, or write ``jax.grad(lambda x: jnp.sum(u(x)))`` for one sample. This is the
    same derivative, since u(x_i) depends only on x_i.

    With decoder layers, `jaxop.operators.TransformerNeuralOperator` and `jaxop.operators.LatentNeuralOperator` give
    their outputs on any nodes. For operators whose output is on their own grid, use integrals of products of
    derivatives: ``domain.dirichlet`` and ``domain.norm(u, space="H1")`` are differentiable in u.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from jaxop._config import Json
from jaxop._validation import accumulator, check_share, check_type
from jaxop.data import Batch, ExampleBatch
from jaxop.data.source import batch_size
from jaxop.domains import Domain
from jaxop.domains.domain import check_domain

Loss = Callable[[PyTree, PyTree], Array | tuple[Array, Mapping[str, Array]]]
"""(model, batch) -> one number per sample, or these numbers and metrics by name."""

RESERVED = ("step", "seconds", "loss", "grad_norm", "learning_rate", "finite", "culprit")
"""Names of the metrics that a training step adds to those of the loss."""


def relative_norm(
    prediction: Float[Array, "k c"], target: Float[Array, "k c"], domain: Domain, *, space: str = "L2"
) -> Float[Array, ""]:
    """‖p − t‖ / ‖t‖ in L2(D) or H1(D), with the quadrature weights of the domain.

    The norms are integrals over D with gradients in physical units, so that the number has the same meaning on every
    grid. Both norms are taken in units of about max|t|, so that they do not overflow or underflow. Nodes of weight 0 do
    not count. If ‖t‖ = 0 the ratio does not exist, and the value is ‖p − t‖, which is finite, is 0 only if the
    prediction is exact, and has a usable gradient. This happens if t is 0 on every node of positive weight. In H1 a
    constant target has a norm.

    Args:
        prediction: samples p(x_i), shape (k, c).
        target: samples t(x_i) of the true function, shape (k, c).
        domain: the k nodes and weights of both.
        space: "L2" or "H1", one of `jaxop.domains.SPACES`.

    Returns:
        A scalar ≥ 0 without unit, in float32 or wider. Its gradient at p = t is 0.

    Raises:
        ValueError: if the shapes differ or do not fit the domain, if ``space`` is unknown, or if it is "H1" and the
            nodes are scattered.

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
    """‖p_i − t_i‖ / ‖t_i‖ for every sample i of a batch, `relative_norm` mapped over the leading axis.

    Args:
        predictions: shape (b, k, c).
        targets: shape (b, k, c).
        domain: one domain for all samples, or one per sample (`jaxop.domains.stack`).
        space: "L2" or "H1".

    Returns:
        Shape (b,).

    Raises:
        ValueError: see `relative_norm`.

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
    """−log softmax(l)_y, averaged over the tokens of each example, in nats; float32 or wider.

    Args:
        logits: l, shape (b, v) or (b, n, v).
        labels: y, shape (b,) or (b, n).

    Returns:
        Shape (b,).

    Raises:
        ValueError: if the labels are not integers, or do not fit the logits.

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
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(entropies.reshape(labels.shape[0], -1), axis=1)


def relative_l2_loss(model: Callable[..., Array], batch: Batch) -> Float[Array, " b"]:
    """‖f(u_i) − y_i‖ / ‖y_i‖ in L2 for every sample of a batch, the loss "l2"; see `relative_norm`.

    Args:
        model: an operator f, called as ``model(inputs, domain, at=at, initial=initial)``.
        batch: inputs u_i and targets y_i.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import data, domains, training
        >>> ones = jnp.ones((2, 9, 1))
        >>> batch = data.Batch(ones, 2 * ones, domains.interval(9), None, None, jnp.arange(2))
        >>> print(training.relative_l2_loss(lambda values, domain, **_: 3 * values, batch))
        [0.5 0.5]
    """
    return _relative_loss(model, batch, "L2")


def relative_h1_loss(model: Callable[..., Array], batch: Batch) -> Float[Array, " b"]:
    """‖f(u_i) − y_i‖ / ‖y_i‖ in H1 for every sample of a batch, the loss "h1"; arguments as in `relative_l2_loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import data, domains, training
        >>> ones = jnp.ones((2, 9, 1))
        >>> batch = data.Batch(ones, 2 * ones, domains.interval(9), None, None, jnp.arange(2))
        >>> print(training.relative_h1_loss(lambda values, domain, **_: 3 * values, batch))
        [0.5 0.5]
    """
    return _relative_loss(model, batch, "H1")


def cross_entropy_loss(model: Callable[..., Array], batch: ExampleBatch) -> Float[Array, " b"]:
    """−log p(label) for every example of a batch, in nats, the loss "cross_entropy"; see `cross_entropy`.

    Args:
        model: a classifier or language model, called as ``model(inputs)``; it returns logits.
        batch: inputs and labels.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import data, training
        >>> batch = data.ExampleBatch(jnp.ones((1, 2)), jnp.array([1]), jnp.arange(1))
        >>> print(training.cross_entropy_loss(lambda inputs: jnp.zeros((1, 4)), batch))  # log 4
        [1.3862944]
    """
    check_type(batch, "batch", ExampleBatch, 'a data.ExampleBatch for the loss "cross_entropy"')
    return cross_entropy(model(batch.inputs), batch.labels)


def pinball_loss(
    model: Callable[..., Array], batch: Batch, *, level: float, units: tuple[float, ...] = (1.0,)
) -> Float[Array, " b"]:
    """∫_D ρ((y_i − f(u_i))/s) dx / |D|, ρ(r) = max(τ r, (τ − 1) r), mean over channels, for every sample of a batch.

    Its minimiser is the τ-quantile of the targets given the inputs. Trained on the absolute residuals of another
    operator (`jaxop.training.absolute_residuals`) at the level τ = 1 − α, an operator is a spread for
    `jaxop.training.calibrate`: ``fit(..., loss=functools.partial(pinball_loss, level=0.9))``.

    Args:
        model: an operator f, called as ``model(inputs, domain, at=at, initial=initial)``.
        batch: inputs u_i and targets y_i.
        level: τ, 0 < τ < 1.
        units: s, one positive number or one per channel, such as the deviations of the targets: the optimiser and the
            channels then do not see the units of the data.

    Returns:
        Shape (b,), in units of s; in float32 or wider. Nodes of weight 0 do not count.

    Raises:
        TypeError: if ``batch`` is not a `jaxop.data.Batch`.
        ValueError: if ``level`` is outside (0, 1), ``units`` are not positive or of another number, or predictions and
            targets differ in shape.

    Source: Koenker and Bassett, Regression quantiles, 1978.

    Example:
        >>> import functools
        >>> import jax.numpy as jnp
        >>> from jaxop import data, domains, training
        >>> ones = jnp.ones((2, 9, 1))
        >>> batch = data.Batch(ones, 2 * ones, domains.interval(9), None, None, jnp.arange(2))
        >>> loss = functools.partial(training.pinball_loss, level=0.75)
        >>> print(loss(lambda values, domain, **_: 3 * values, batch), loss(lambda values, domain, **_: values, batch))
        [0.25 0.25] [0.75 0.75]
    """
    check_type(batch, "batch", Batch, "a data.Batch")
    level = check_share(level, "level", zero=False)
    predictions = model(batch.inputs, batch.domain, at=batch.at, initial=batch.initial)
    if predictions.shape != batch.targets.shape:
        raise ValueError(
            f"predictions must have the shape of the targets, {batch.targets.shape}, got {predictions.shape}."
        )
    domain = batch.target_domain
    dtype = accumulator(batch.targets.dtype)
    scales = np.asarray(units, dtype)
    if scales.shape not in ((1,), predictions.shape[-1:]) or not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError(
            f"units must be one positive number or one for each of the {predictions.shape[-1]} channels, got {units}."
        )
    residuals = (batch.targets.astype(dtype) - predictions.astype(dtype)) / scales.reshape(1, 1, -1)

    def one(residual: Array, domain: Domain) -> Array:
        return jnp.mean(domain.integrate(jnp.maximum(level * residual, (level - 1) * residual))) / domain.measure

    return jax.vmap(one, in_axes=(0, 0 if domain.is_batched else None))(residuals, domain)


def _relative_loss(model: Callable[..., Array], batch: Batch, space: str) -> Float[Array, " b"]:
    expected = 'a data.Batch for the losses "l2" and "h1"; for other batches pass a loss, a function of (model, batch)'
    check_type(batch, "batch", Batch, expected)
    predictions = model(batch.inputs, batch.domain, at=batch.at, initial=batch.initial)
    return relative_norms(predictions, batch.targets, batch.target_domain, space=space)


LOSS_FUNCTIONS: Mapping[str, Loss] = {
    "l2": relative_l2_loss,
    "h1": relative_h1_loss,
    "cross_entropy": cross_entropy_loss,
}
"""Losses by name, as `jaxop.training.TrainingConfig` takes them."""


def check_loss(loss: object) -> None:
    """Raises ``TypeError`` unless the loss is callable and hashable, because compiled programs are cached by it."""
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(
            "loss must be a function of (model, batch) that returns one number per sample, such as "
            f"training.relative_l2_loss, got {loss!r}; a loss with a name goes into the config: "
            "TrainingConfig(loss='l2')."
        )
    try:
        hash(loss)
    except TypeError:
        raise TypeError(
            f"loss must be hashable, got {type(loss).__name__}; give a function, or a frozen dataclass with __call__."
        ) from None


def apply_loss(loss: Loss, model: nnx.Module, batch: object) -> tuple[Float[Array, " b"], dict[str, Array]]:
    """Returns the losses of a batch and their metrics, checked.

    Raises:
        TypeError: if the result is not an array, or an array and a dict of arrays, if a metric is complex, or if the
            loss looks up keys in a batch without keys.
        ValueError: if the losses do not have shape (b,), where b is the number of items of the batch, if a metric does
            not have shape (b,) or (), or if its name is empty or taken.
    """
    try:
        result = loss(model, batch)
    except TypeError as error:
        kind = type(batch).__name__
        if str(error) != f"'{kind}' object is not subscriptable":
            raise
        fields = [field.name for field in dataclasses.fields(batch)] if dataclasses.is_dataclass(batch) else []
        raise TypeError(
            f"loss must take the batches of the data source, got {kind}, which has fields {fields} but not keys: "
            "read batch.inputs, for example, or give a source whose batches are dicts."
        ) from error
    per_sample, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(per_sample, jax.Array) or not isinstance(metrics, Mapping):
        raise TypeError(
            "loss must return an array with one number per sample, or such an array and a dict of metrics, got "
            f"{type(result).__name__}."
        )
    size = batch_size(batch)
    expected = "" if size is None else f" = ({size},)"
    is_wrong = per_sample.ndim != 1 or (size is not None and per_sample.shape != (size,))
    if is_wrong or not jnp.issubdtype(per_sample.dtype, jnp.floating):
        raise ValueError(
            f"loss must return one real number per sample, of shape (b,){expected}, got {per_sample.dtype} of shape "
            f"{per_sample.shape}; average over nodes and channels, for example by jax.vmap(domain.norm)."
        )
    for name, value in metrics.items():
        if name in RESERVED or not isinstance(name, str):
            raise ValueError(f"metric {name!r} of the loss needs another name: {', '.join(RESERVED)} are taken.")
        if not name:
            raise ValueError("metric '' of the loss needs a name, got an empty one.")
        if jnp.iscomplexobj(value):
            raise TypeError(
                f"metric {name!r} of the loss must be real, got {jnp.asarray(value).dtype}; take its real part or its "
                "absolute value."
            )
        if jnp.shape(value) not in ((), per_sample.shape):
            raise ValueError(
                f"metric {name!r} of the loss must be one number, or one per sample of shape {per_sample.shape}, got "
                f"shape {jnp.shape(value)}."
            )
    return per_sample, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


def describe_loss(loss: Loss) -> dict[str, Json]:
    """Returns what a run remembers of a loss, as JSON.

    "function" is the name of the function, or of the class of a callable object. "arguments" are those that a
    `functools.partial` binds, by name or position: numbers, strings, None and tuples of them as text, any other value
    by its type. A callable object may have a method ``identity()``, which returns a dict of such values; without it the
    fields of the object are not recorded. Neither are code, closures, the contents of other bound values, and which
    lambda of a function it is (all have one name). What is not recorded is not compared when a run is resumed.

    Example:
        >>> import functools
        >>> from jaxop.training.losses import describe_loss
        >>> def weighted(model, batch, *, weight): ...
        >>> describe_loss(functools.partial(weighted, weight=2.0))
        {'function': 'weighted', 'arguments': {'weight': '2.0'}}
    """
    positional: tuple[object, ...] = ()
    named: dict[str, object] = {}
    while isinstance(loss, functools.partial):
        positional, named, loss = (*loss.args, *positional), {**loss.keywords, **named}, loss.func
    arguments: dict[str, object] = {**{str(place): value for place, value in enumerate(positional)}, **named}
    identity: Callable[[], Mapping[str, object]] | None = getattr(loss, "identity", None)
    arguments |= {} if identity is None else identity()
    return {
        "function": getattr(loss, "__qualname__", type(loss).__qualname__),
        "arguments": {name: _as_text(value) for name, value in arguments.items()},
    }


def _as_text(value: object) -> str:
    """Returns a number, string, None or tuple of them as text, and the name of the type of any other value."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        return f"({', '.join(map(_as_text, value))})"
    return repr(value) if value is None or isinstance(value, str | int | float | complex) else type(value).__name__
