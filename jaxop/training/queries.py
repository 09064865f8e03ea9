"""Outputs of a model at query points that all samples share, a few at a time."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxop._validation import check_size, on_device
from jaxop.data import Batch, DataSource, RaggedSamples, Samples
from jaxop.data.groups import has_groups
from jaxop.domains import Domain, PointCloud
from jaxop.domains.domain import as_domain
from jaxop.operators import AroundConfig, ConservativeOperator, EquivariantOperator
from jaxop.training.evaluation import (
    _check_batch,
    _check_samples,
    _outputs,
    _split_for_evaluation,
    check_returns_functions,
)
from jaxop.training.mesh import check_divides, check_mesh, distribute, own_indices
from jaxop.training.nodes import node_shares
from jaxop.training.processes import on_host

Block = tuple[slice, slice, Float[np.ndarray, "b k c"]]
"""Numbers of samples, numbers of query points, and the outputs for these."""


def predict_at(
    model: nnx.Module,
    samples: Samples | RaggedSamples | DataSource,
    at: Domain,
    *,
    batch_size: int = 16,
    nodes: int = 2**16,
    mesh: Mesh | None = None,
) -> Iterator[Block]:
    """Yields the model's outputs f(u_i)(y_j) at query points y_j, in evaluation mode, in blocks.

    The blocks come in the order of an array (N, k, c): all query points of a sample, or of a few samples, before those
    of the next. If there are more than ``nodes`` query points, a call gets so many of them, without the cells of
    ``at``, and the input functions of one sample. All calls have one shape, so that one program serves them (and each
    bucket of `jaxop.data.RaggedSamples`).

    Args:
        model: an operator that evaluates anywhere, such as those with decoder layers.
        samples: input functions; their targets are not read. See `training.evaluate`.
        at: the query points, one domain for all samples.
        batch_size: samples of one call, if it has all query points.
        nodes: largest number of query points of one call on one device.
        mesh: see `training.evaluate`. The devices share the samples, or the query points of one sample.

    Yields:
        The samples as a slice, the query points as a slice, and the outputs (b, k, c) in host memory.

    Raises:
        TypeError: if ``at`` is not a domain.
        ValueError: if ``at`` is a stack or has another dimension, has more points than ``nodes`` and the model is a
            `jaxop.operators.ConservativeOperator` or ``EquivariantOperator``, or for the reasons of `training.predict`.
        NotImplementedError: if the operator gives outputs on the nodes of its input only.

    Cost: one call for every ``nodes`` query points of a sample; each encodes the input function again. Memory of the
        device: the query points, and one call.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, operators, training
        >>> config = operators.LatentNeuralOperatorConfig(1, 1, width=8, heads=2, layers=0, decoder_layers=1)
        >>> operator = operators.build(config, rngs=nnx.Rngs(0))
        >>> u = np.ones((2, 9, 1), np.float32)
        >>> samples = data.Samples(u, u, domains.interval(9))
        >>> for chosen, points, outputs in training.predict_at(operator, samples, domains.interval(50), nodes=40):
        ...     print(chosen.start, points.start, outputs.shape)
        0 0 (1, 40, 1)
        0 40 (1, 10, 1)
        1 0 (1, 40, 1)
        1 40 (1, 10, 1)
    """
    _check_samples(samples, "predict_at")
    check_returns_functions(model)
    check_size(nodes, "nodes")
    check_size(batch_size, "batch_size")
    mesh = check_mesh(mesh)
    check_divides(mesh, batch_size)
    at = as_domain(at, "at")
    if at.is_batched:
        raise ValueError("at is a stack of domains; give the one domain that holds the query points of all samples.")
    config = getattr(model, "config", None)
    if isinstance(config, AroundConfig):
        config.check_at(at)
    if at.size > nodes and any(
        isinstance(part, ConservativeOperator | EquivariantOperator) for _, part in nnx.iter_graph(model)
    ):
        raise ValueError(
            f"nodes={nodes} is less than the {at.size} query points, but the outputs of a ConservativeOperator or "
            f"EquivariantOperator depend on all of them: give fewer query points, or in Python nodes={at.size}."
        )
    queries = _Queries(samples, at, batch_size, nodes, mesh)
    graphdef, params, other = _split_for_evaluation(model, mesh)
    _, _, first = next(queries.calls())
    _outputs.eval_shape(graphdef, None, params, other, first)  # an operator that cannot do it says so now

    def blocks() -> Iterator[Block]:
        for chosen, points, batch in queries.calls():
            outputs = on_host(_outputs(graphdef, mesh, params, other, batch))
            count, width = chosen.stop - chosen.start, points.stop - points.start
            if outputs.shape[1] < width:  # of one sample, whose query points the devices have shared
                outputs = outputs.reshape(1, -1, outputs.shape[2])
            yield chosen, points, outputs[:count, :width]

    return blocks()


@dataclasses.dataclass(frozen=True)
class _Queries:
    """Calls of a model at query points, whose arguments were checked."""

    samples: DataSource
    at: Domain
    batch_size: int
    nodes: int
    mesh: Mesh | None

    @property
    def devices(self) -> int:
        """Number of parts of a batch."""
        return 1 if self.mesh is None else self.mesh.size // node_shares(self.mesh)

    def calls(self) -> Iterator[tuple[slice, slice, Batch]]:
        """Yields samples, query points, and the batch of this process."""
        count, size = len(self.samples), self.at.size
        if size > self.nodes:
            yield from self._in_parts(min(self.nodes, -(-size // self.devices)))
            return
        many = self.batch_size if self.mesh is not None else min(self.batch_size, count)
        if has_groups(self.samples):
            many = 1  # neighbours may be of different buckets
        for start in range(0, count, many):
            chosen = slice(start, min(start + many, count))
            index = np.minimum(np.arange(start, start + max(many, self.devices)), chosen.stop - 1)
            batch = self._read(own_indices(index, self.mesh))
            yield chosen, slice(0, size), self._placed(batch, self.at, size, len(index))

    def _in_parts(self, width: int) -> Iterator[tuple[slice, slice, Batch]]:
        """Yields calls with one sample, of which each part of the batch has its own query points."""
        points, weights = np.asarray(self.at.points), np.asarray(self.at.weights)
        rows = own_indices(np.arange(self.devices), self.mesh)
        for i in range(len(self.samples)):
            batch = self._read(np.full(len(rows), i))
            for start in range(0, len(points), self.devices * width):
                stop = min(start + self.devices * width, len(points))
                numbers = start + np.arange(self.devices * width).reshape(-1, width)[rows]
                inside = np.minimum(numbers, stop - 1)
                own = np.where(numbers < stop, weights[inside], 0)
                part = PointCloud(on_device(points[inside]), on_device(own))
                yield slice(i, i + 1), slice(start, stop), self._placed(batch, part, width, self.devices)

    def _read(self, index: Int[np.ndarray, " b"]) -> Batch:
        batch = self.samples[index]
        _check_batch(batch, self.samples, "predict_at")
        return batch

    def _placed(self, batch: Batch, at: Domain, size: int, count: int) -> Batch:
        """Returns a batch with outputs at other nodes; its targets have no meaning but their shape."""
        targets = on_device(np.zeros((len(batch.inputs), size, 1), np.float32))
        batch = dataclasses.replace(batch, targets=targets, at=at)
        if self.mesh is None or not self.mesh.is_multi_process:
            return batch
        return distribute(batch, self.mesh, count, nodes=False)
