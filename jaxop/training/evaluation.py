"""Errors and predictions of a model over a set of samples, on the grid of the set."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxop._validation import check_size, check_type
from jaxop.data import Batch, DataSource, ExampleBatch, Examples, Group, RaggedSamples, Samples
from jaxop.data.groups import groups_of, has_groups
from jaxop.data.source import check_batch, check_source
from jaxop.domains import SPACES, Domain
from jaxop.operators import Calibrated
from jaxop.training.losses import Loss, apply_loss, cross_entropy, relative_norms
from jaxop.training.mesh import (
    check_divides,
    check_mesh,
    distribute,
    on_one_device,
    over_devices,
    own_indices,
    replicate,
)
from jaxop.training.nodes import check_shares_nodes, node_shares
from jaxop.training.optimizer import Tree
from jaxop.training.processes import on_host
from jaxop.training.shards import divide
from jaxop.training.state import split_model


def check_returns_functions(model: nnx.Module) -> None:
    """Raises ``TypeError`` if the model returns pairs of functions."""
    if isinstance(model, Calibrated):
        raise TypeError("model is a Calibrated, which returns error bars too; pass model.operator.")


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors of every sample of a set.

    Attributes:
        l2: relative L2 errors, shape (N,).
        h1: relative H1 errors, shape (N,); None on scattered nodes, which do not have derivatives.
    """

    l2: Float[np.ndarray, " n"]
    h1: Float[np.ndarray, " n"] | None


def evaluate(
    model: nnx.Module,
    samples: Samples | RaggedSamples | DataSource,
    *,
    batch_size: int = 16,
    mesh: Mesh | None = None,
) -> Errors:
    """‖f(u_i) − y_i‖ / ‖y_i‖ in L2 and H1 for every sample, in the units the model returns.

    A model in `jaxop.operators.Standardized` returns physical units, so that the errors are those of the physical
    fields.

    Args:
        model: an operator; it runs in evaluation mode and is left as it was.
        samples: inputs and targets, on one domain or one per sample, which may differ from those of training and in
            their numbers of nodes; or any `jaxop.data.DataSource` of `jaxop.data.Batch`.
        batch_size: samples per call. The last batch is filled up with copies, so that one program
            serves the whole set, or each bucket of `jaxop.data.RaggedSamples`. Later calls with a model and samples of
            the same shapes reuse it.
        mesh: devices that share the samples of a call along the axes "data" and "model", and must divide
            ``batch_size``. The axis "model" also divides the parameters, see `init_state`, and the axis "domain" the
            nodes of the functions, see `make_step`. None computes where the parameters are. If the devices belong to
            several processes, every process must make the same call, reads the samples of its own devices, and gets
            the whole result.

    Returns:
        `Errors` with one entry per sample, in the order of the samples.

    Raises:
        TypeError: if the set holds labelled examples, which `score` takes.
        ValueError: if ``batch_size`` is not positive or the devices do not divide it, or if prediction and target
            differ in shape.

    Cost: one forward pass per sample; the predictions do not leave the device.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, training
        >>> class Double(nnx.Module):
        ...     def __call__(self, values, domain, *, at=None, initial=None):
        ...         return 2 * values
        >>> u = np.ones((5, 9, 1), np.float32)
        >>> errors = training.evaluate(Double(), data.Samples(u, 4 * u, domains.interval(9)), batch_size=2)
        >>> errors.l2
        array([0.5, 0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    return _evaluate(model, samples, batch_size, "samples", check_mesh(mesh))


def _evaluate(
    model: nnx.Module, samples: Samples | DataSource, batch_size: int, argument: str, mesh: Mesh | None
) -> Errors:
    _check_samples(samples, "evaluate")
    check_returns_functions(model)
    graphdef, params, other = _split_for_evaluation(model, mesh)
    spaces: tuple[str, ...] = ()

    def errors(batch: Batch) -> tuple[Array, ...]:
        nonlocal spaces
        _check_batch(batch, samples, "evaluate")
        spaces = spaces or _spaces(batch.target_domain)
        return _errors(graphdef, spaces, mesh, params, other, batch)

    l2, *h1 = by_sample(errors, samples, batch_size, argument, mesh)
    return Errors(l2, h1[0] if h1 else None)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a classifier on every example of a set.

    Attributes:
        cross_entropy: mean over the example's labels of −log p(label), in nats, shape (N,).
        accuracy: share of the example's labels that are the most probable class, shape (N,).
    """

    cross_entropy: Float[np.ndarray, " n"]
    accuracy: Float[np.ndarray, " n"]

    @property
    def perplexity(self) -> float:
        """The exponential of the mean cross-entropy."""
        return float(np.exp(np.mean(self.cross_entropy, dtype=np.float64)))


def score(
    model: nnx.Module, examples: Examples | DataSource, *, batch_size: int = 16, mesh: Mesh | None = None
) -> Scores:
    """Cross-entropy and accuracy of a model called as ``model(inputs)``, in evaluation mode.

    Args:
        model: a classifier or language model that returns logits.
        examples: inputs and labels, or any `jaxop.data.DataSource` of `jaxop.data.ExampleBatch`.
        batch_size: examples per call, see `evaluate`.
        mesh: see `evaluate`.

    Returns:
        `Scores` with one entry per example.

    Raises:
        ValueError: if ``batch_size`` is not positive or the devices do not divide it, or if the model does not know a
            label or a token.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, training
        >>> class Undecided(nnx.Module):
        ...     def __call__(self, inputs):
        ...         return jnp.zeros((inputs.shape[0], 4))
        >>> examples = data.Examples(np.ones((5, 2)), np.zeros(5, int))
        >>> round(training.score(Undecided(), examples, batch_size=2).perplexity, 4)
        4.0
    """
    return _score(model, examples, batch_size, "examples", check_mesh(mesh))


def _score(
    model: nnx.Module, examples: Examples | DataSource, batch_size: int, argument: str, mesh: Mesh | None
) -> Scores:
    if isinstance(examples, Samples | RaggedSamples) or not isinstance(examples, DataSource):
        check_type(examples, "examples", Examples, "data.Examples; training.evaluate takes Samples of functions")
    if isinstance(examples, Examples):
        check_classes(model, examples)
    graphdef, params, other = _split_for_evaluation(model, mesh)

    def scores(batch: ExampleBatch) -> tuple[Array, ...]:
        check_type(batch, f"{argument}[indices]", ExampleBatch, "a data.ExampleBatch")
        return _scores(graphdef, mesh, params, other, batch)

    return Scores(*by_sample(scores, examples, batch_size, argument, mesh))


def check_classes(model: nnx.Module, examples: Examples) -> None:
    """Raises ``ValueError`` if any label is not a class of the model or any token is beyond its vocabulary."""
    check_tokens: Callable[[np.ndarray], None] | None = getattr(model, "check_tokens", None)
    if check_tokens is not None:
        check_tokens(examples.inputs)
    graphdef, params, other = split_model(model, train=False)
    logits = jax.eval_shape(lambda p, o, x: nnx.merge(graphdef, p, o)(x), params, other, examples[:1].inputs)
    if examples.labels.shape[1:] != logits.shape[1:-1]:
        raise ValueError(
            f"labels must have shape (N, {', '.join(map(str, logits.shape[1:-1]))}) for logits of shape "
            f"{('b', *logits.shape[1:])}, got {examples.labels.shape}; give the numbers of the classes, not one-hot "
            "vectors."
        )
    largest = int(examples.labels.max())
    if largest >= logits.shape[-1]:
        raise ValueError(
            f"labels must lie below the {logits.shape[-1]} classes of the model, got {largest}; number them from 0."
        )


@overload
def predict(
    model: nnx.Module, samples: RaggedSamples, *, batch_size: int = 16, mesh: Mesh | None = None
) -> list[Float[np.ndarray, "_ c"]]: ...


@overload
def predict(
    model: nnx.Module, samples: Samples, *, batch_size: int = 16, mesh: Mesh | None = None
) -> Float[np.ndarray, "s k c"]: ...


@overload
def predict(
    model: nnx.Module, samples: DataSource, *, batch_size: int = 16, mesh: Mesh | None = None
) -> Float[np.ndarray, "s k c"] | list[Float[np.ndarray, "_ c"]]: ...


def predict(
    model: nnx.Module,
    samples: Samples | RaggedSamples | DataSource,
    *,
    batch_size: int = 16,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "s k c"] | list[Float[np.ndarray, "_ c"]]:
    """The model's outputs f(u_i) for every sample, in evaluation mode.

    Args:
        model: an operator.
        samples: see `evaluate`; `jaxop.data.Samples.take` selects some.
        batch_size: samples per call, see `evaluate`.
        mesh: see `evaluate`.

    Returns:
        Shape (N, k, c), in host memory. For `jaxop.data.RaggedSamples`, and any source whose batches have several
        shapes, a list of one array (k_i, c) for each sample, without padding.

    Raises:
        ValueError: if ``batch_size`` is not positive or the devices do not divide it.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, training
        >>> class Double(nnx.Module):
        ...     def __call__(self, values, domain, *, at=None, initial=None):
        ...         return 2 * values
        >>> u = np.ones((5, 9, 1), np.float32)
        >>> training.predict(Double(), data.Samples(u, u, domains.interval(9)), batch_size=2).shape
        (5, 9, 1)
    """
    _check_samples(samples, "predict")
    check_returns_functions(model)
    mesh = check_mesh(mesh)
    graphdef, params, other = _split_for_evaluation(model, mesh)
    items, outputs = [], []
    for index, batch in _batches(samples, batch_size, "samples", mesh):
        _check_batch(batch, samples, "predict")
        items.append(index)
        outputs.append(on_host(_outputs(graphdef, mesh, params, other, batch)))
    if not has_groups(samples):
        return _in_order(items, [(output,) for output in outputs])[0]
    found: list[np.ndarray] = [np.zeros(0)] * len(samples)
    for index, output in zip(items, outputs, strict=True):
        for i, one in zip(index, output, strict=False):
            found[i] = one
    for group in groups_of(samples, 1, "samples"):
        if group.sizes is not None:
            for i, size in zip(group.indices, group.sizes, strict=True):
                found[i] = found[i][:size]
    return found


def trace_errors(
    model: nnx.Module, source: DataSource, *, batch_size: int, argument: str = "samples", loss: Loss | None = None
) -> None:
    """Traces the program of `mean_errors`, which raises at once if the model cannot run on the set."""
    graphdef, params, other = split_model(model, train=False)
    for group in groups_of(source, 1, argument):
        _, batch = next(_batches_of(group, batch_size, argument, None))
        if loss is not None:
            _losses.eval_shape(loss, graphdef, None, params, other, batch)
        elif isinstance(batch, ExampleBatch):
            _scores.eval_shape(graphdef, None, params, other, batch)
        else:
            _check_batch(batch, source, "evaluate")
            _errors.eval_shape(graphdef, _spaces(batch.target_domain), None, params, other, batch)


def mean_errors(
    model: nnx.Module,
    source: DataSource,
    *,
    batch_size: int,
    argument: str,
    labelled: bool,
    loss: Loss | None = None,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Returns means over a set by name: of the loss and its metrics if a loss is given, else of `evaluate` or `score`.

    Args:
        model: runs in evaluation mode.
        source: the set.
        batch_size: items per call.
        argument: name of the set in messages.
        labelled: True if the items are labelled examples.
        loss: see `jaxop.training.make_step`. None takes `score` for labelled examples and `evaluate` for others.
        mesh: see `evaluate`; checked by the caller.
    """
    if loss is not None:
        return _mean_losses(model, source, loss, batch_size, argument, mesh)
    found = vars((_score if labelled else _evaluate)(model, source, batch_size, argument, mesh))
    values = {name: value for name, value in found.items() if value is not None}
    return {name: float(np.mean(value, dtype=np.float64)) for name, value in values.items()}


def _mean_losses(
    model: nnx.Module, source: DataSource, loss: Loss, batch_size: int, argument: str, mesh: Mesh | None
) -> dict[str, float]:
    """Returns the mean of a loss over a set, as "loss", and the means of its metrics.

    The last batch of a group may be smaller than the others.
    """
    check_size(batch_size, "batch_size")
    graphdef, params, other = _split_for_evaluation(model, mesh)
    totals: dict[str, float] = {}
    starts = [(g.source, i) for g in groups_of(source, 1, argument) for i in range(0, len(g.source), batch_size)]
    for part, start in starts:
        index = np.arange(start, min(start + batch_size, len(part)))
        # a last batch that the devices cannot share evenly is computed on all of them
        sharing = mesh if mesh is not None and len(index) % (mesh.size // node_shares(mesh)) == 0 else None
        batch = _batch(part, index, argument, sharing)
        variables = (params, other)
        if sharing is None and mesh is not None and mesh.is_multi_process:  # by every process itself
            variables = on_one_device(variables, mesh)
        values = on_host(_losses(loss, graphdef, sharing, *variables, batch))
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + len(index) * float(np.mean(value, dtype=np.float64))
    return {name: total / len(source) for name, total in totals.items()}


def _check_samples(samples: object, function: str) -> None:
    if isinstance(samples, Examples):
        raise TypeError(f"{function} takes Samples of functions; use training.score for Examples.")
    if isinstance(samples, np.ndarray | jax.Array) or not isinstance(samples, DataSource):
        check_type(samples, "samples", Samples, "data.Samples, such as data.Samples(inputs, targets, domain)")
    check_source(samples, "samples")


def _check_batch(batch: object, source: object, function: str) -> None:
    """Raises ``TypeError`` unless the batch is a batch of functions."""
    if not isinstance(batch, Batch):
        raise TypeError(
            f"{function} takes data.Samples, or a source of data.Batch, but {type(source).__name__}[indices] is "
            f"{type(batch).__name__}; measure such a source by your own loss."
        )


def _split_for_evaluation(model: nnx.Module, mesh: Mesh | None) -> tuple[nnx.GraphDef, Tree, Tree]:
    graphdef, params, other = split_model(model, train=False)
    return graphdef, divide(params, mesh), replicate(other, mesh)


def _batches(
    samples: DataSource, batch_size: int, argument: str, mesh: Mesh | None
) -> Iterator[tuple[np.ndarray, Tree]]:
    """Yields batches, each from one group, with the numbers of their items; copies of items may follow these."""
    for group in groups_of(samples, 1, argument):
        yield from _batches_of(group, batch_size, argument, mesh)


def _batches_of(group: Group, batch_size: int, argument: str, mesh: Mesh | None) -> Iterator[tuple[np.ndarray, Tree]]:
    check_size(batch_size, "batch_size")
    check_divides(mesh, batch_size)
    source, count = group.source, len(group.source)
    size = batch_size if mesh is not None else min(batch_size, count)
    for start in range(0, count, size):
        batch = _batch(source, np.minimum(np.arange(start, start + size), count - 1), argument, mesh)
        yield group.indices[start : start + size], batch


def by_sample(
    compute: Callable[..., tuple[Array, ...]], samples: DataSource, batch_size: int, argument: str, mesh: Mesh | None
) -> list[np.ndarray]:
    """Returns what a function of a batch computes for each sample, in the order of the samples, in host memory."""
    items, columns = [], []
    for index, batch in _batches(samples, batch_size, argument, mesh):
        items.append(index)
        columns.append(compute(batch))
    return _in_order(items, on_host(columns))


def _in_order(items: list[np.ndarray], batches: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Returns columns of results in the order of the items, without those of copies at the ends of batches."""
    order = np.argsort(np.concatenate(items))
    columns = zip(*batches, strict=True)
    return [np.concatenate([c[: len(i)] for i, c in zip(items, column, strict=True)])[order] for column in columns]


def _batch(source: DataSource, index: np.ndarray, argument: str, mesh: Mesh | None) -> Tree:
    """Returns the items of these numbers; on several processes, every process reads those of its own devices."""
    own = own_indices(index, mesh)
    batch = source[own]
    check_batch(batch, len(own), argument)
    return batch if mesh is None or not mesh.is_multi_process else distribute(batch, mesh, len(index), nodes=False)


def _spaces(domain: Domain) -> tuple[str, ...]:
    """Returns the spaces whose norm the domain can compute; H1 needs nodes with neighbours."""
    count = jax.tree.leaves(domain)[0].shape[0] if domain.is_batched else 1
    values = jax.ShapeDtypeStruct((count, domain.size, 1), np.float32)
    try:
        jax.eval_shape(functools.partial(relative_norms, space="H1"), values, values, domain)
    except ValueError:
        return ("L2",)
    return SPACES


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(graphdef: nnx.GraphDef, mesh: Mesh | None, params: Tree, other: Tree, batch: Batch) -> Array:
    def outputs(batch: Batch, params: Tree, other: Tree) -> Array:
        model = nnx.merge(graphdef, params, other)
        check_shares_nodes(model, mesh)
        return model(batch.inputs, batch.domain, at=batch.at, initial=batch.initial)

    found = over_devices(outputs, mesh, mean=False, nodes=True)(batch, params, other)
    return found if node_shares(mesh) == 1 else found[:, : batch.targets.shape[1]]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _errors(
    graphdef: nnx.GraphDef, spaces: tuple[str, ...], mesh: Mesh | None, params: Tree, other: Tree, batch: Batch
) -> tuple[Array, ...]:
    def over_samples(outputs: Array, batch: Batch) -> tuple[Array, ...]:
        return tuple(relative_norms(outputs, batch.targets, batch.target_domain, space=space) for space in spaces)

    def errors(batch: Batch, params: Tree, other: Tree) -> tuple[Array, ...]:
        return over_samples(_outputs(graphdef, None, params, other, batch), batch)

    if node_shares(mesh) > 1:
        # the norms of whole functions, because H1 needs the neighbours of every node
        return over_samples(_outputs(graphdef, mesh, params, other, batch), batch)
    return over_devices(errors, mesh, mean=False)(batch, params, other)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    graphdef: nnx.GraphDef, mesh: Mesh | None, params: Tree, other: Tree, batch: ExampleBatch
) -> tuple[Array, Array]:
    def scores(batch: ExampleBatch, params: Tree, other: Tree) -> tuple[Array, Array]:
        model = nnx.merge(graphdef, params, other)
        logits = model(batch.inputs)
        hits = (jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32)
        return cross_entropy(logits, batch.labels), jnp.mean(hits.reshape(hits.shape[0], -1), axis=1)

    return over_devices(scores, mesh, mean=False)(batch, params, other)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _losses(
    loss: Loss, graphdef: nnx.GraphDef, mesh: Mesh | None, params: Tree, other: Tree, batch: Tree
) -> dict[str, Array]:
    def values(batch: Tree, params: Tree, other: Tree) -> dict[str, Array]:
        model = nnx.merge(graphdef, params, other)
        check_shares_nodes(model, mesh)
        losses, metrics = apply_loss(loss, model, batch)
        return {name: jnp.atleast_1d(value) for name, value in {"loss": losses, **metrics}.items()}

    return over_devices(values, mesh, mean=False)(batch, params, other)
