"""Training on random subsets of the nodes of each sample."""

import functools

import numpy as np
from jaxtyping import Array, Float, Int

from jaxop._validation import check_size, check_type, jax_dtype, on_device
from jaxop.data._support import seed_sequence
from jaxop.data.ragged import RaggedSamples
from jaxop.data.samples import Batch, Samples, checked_indices
from jaxop.domains import Domain, PointCloud

_NODES = 0x6F75  # the random stream of subsets of nodes


class RandomNodes:
    """Samples of which every training step sees m random nodes, with weights |D|/m: ∫ f dx ≈ (|D|/m) Σ_j f(x_{i_j}).

    The measure of the domain is cut into m strata of equal measure, along the given order of the nodes, and a node is
    drawn from each, in proportion to its weight in the stratum: i_j is the node with W_{i−1} ≤ (j + U_j) |D|/m < W_i,
    for the partial sums W_i of the weights and independent uniform U_j. So node i is drawn m w_i/|D| times on average,
    the expectation of the sum is the quadrature on all nodes, Σ_i w_i f(x_i), and the weights of every draw add up to
    |D|. The variance is at most that of m independent draws. It is smaller if nodes that follow each other are near
    each other. A node of large weight may be drawn several times, which is the same as once with the sum of the
    weights. Nodes of weight 0 are never drawn. A sample with at most m nodes keeps them all, and is padded with
    nodes of weight 0.

    Draws depend only on (seed, step, number of the sample), so that a run can be resumed bit for bit. All batches have
    one shape, whatever the numbers of nodes of the samples. Domains become scattered nodes, which have L2 norms but no
    derivatives: train with the loss "l2". Validate on the set itself, with all of its nodes.

    ``samples[indices]`` returns the nodes of step 0 with seed 0.

    Args:
        source: a set of pairs of functions; samples that are read on demand are read whole.
        nodes: m, nodes of each input, and of each target on the same nodes.
        at_nodes: nodes of each target on a domain of its own. None takes ``nodes``.

    Attributes:
        in_channels: channels of the inputs.
        out_channels: channels of the targets.
        dim: space dimensions.

    Raises:
        TypeError: if ``source`` is not `Samples` or `RaggedSamples`, or a number is not an integer.
        ValueError: if a number is below 1, ``at_nodes`` is given to samples without nodes of the targets, or samples
            have initial data, which belong to the first node.

    Cost: O(n) per sample and step for n nodes.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> domain = domains.monte_carlo(np.random.default_rng(0).random((1000, 2), np.float32), measure=2.0)
        >>> u = np.ones((4, 1000, 1), np.float32)
        >>> samples = data.RandomNodes(data.Samples(u, 3 * u, domain), 50)
        >>> batch = samples.at_step(np.array([3, 1]), seed=0, step=7)
        >>> batch.inputs.shape, batch.domain.weights.sum(axis=1).round(4).tolist()
        ((2, 50, 1), [2.0, 2.0])
    """

    def __init__(self, source: Samples | RaggedSamples, nodes: int, *, at_nodes: int | None = None):
        check_type(source, "source", (Samples, RaggedSamples), "data.Samples or data.RaggedSamples")
        check_size(nodes, "nodes")
        if source.initial_channels:
            raise ValueError(
                "source has initial data, which belong to the first node, and a random subset may leave this node out; "
                "train on all nodes, or make the data a channel of the inputs."
            )
        has_at = source.at is not None if isinstance(source, Samples) else source.has_at
        if at_nodes is not None:
            check_size(at_nodes, "at_nodes")
            if not has_at:
                raise ValueError(f"at_nodes={at_nodes} was given, but the targets are on the nodes of the inputs.")
        self.source, self.nodes = source, int(nodes)
        self.at_nodes = (int(nodes) if at_nodes is None else int(at_nodes)) if has_at else None
        self.in_channels, self.out_channels, self.dim = source.in_channels, source.out_channels, source.dim
        self.initial_channels = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: Int[np.ndarray, " b"]) -> Batch:
        return self.at_step(indices, seed=0, step=0)

    def at_step(self, indices: Int[np.ndarray, " b"], *, seed: int, step: int) -> Batch:
        """Returns the samples of the given numbers on the nodes that are drawn for a training step.

        Args:
            indices: numbers of samples, shape (b,); they may repeat.
            seed: non-negative integer.
            step: t ≥ 0.
        """
        index = checked_indices(indices, len(self), "samples")
        columns: dict[str, list[np.ndarray]] = {}

        def add(**parts: np.ndarray) -> None:
            for name, part in parts.items():
                columns.setdefault(name, []).append(part)

        for i in index.tolist():
            sample = self.source.sample(i)
            rows, points, weights = _drawn(sample.domain, self.nodes, seed_sequence(seed, _NODES, step, i, 0))
            add(inputs=np.asarray(sample.inputs)[rows], points=points, weights=weights)
            if self.at_nodes is not None:
                at_seed = seed_sequence(seed, _NODES, step, i, 1)
                rows, points, weights = _drawn(sample.target_domain, self.at_nodes, at_seed)
                add(at_points=points, at_weights=weights)
            add(targets=np.asarray(sample.targets)[rows])

        def stacked(name: str) -> Array:
            rows = np.stack(columns[name])
            return on_device(rows, jax_dtype(rows.dtype))

        return Batch(
            inputs=stacked("inputs"),
            targets=stacked("targets"),
            domain=PointCloud(stacked("points"), stacked("weights")),
            at=None if self.at_nodes is None else PointCloud(stacked("at_points"), stacked("at_weights")),
            initial=None,
            index=on_device(index, np.int32),
        )


def _drawn(
    domain: Domain, count: int, seed: np.random.SeedSequence
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, "m dim"], Float[np.ndarray, " m"]]:
    """Returns numbers, coordinates and new weights of nodes of a domain."""
    points, weights = _nodes(domain)
    size = len(weights)
    if size <= count:
        rows = np.minimum(np.arange(count), size - 1)
        return rows, points[rows], np.where(np.arange(count) < size, weights[rows], weights.dtype.type(0))
    ends = np.cumsum(weights, dtype=np.float64)
    # the raw bits of a counter-based generator are the same in every version of NumPy
    uniform = (np.random.Philox(seed).random_raw(count) >> np.uint64(11)) * 2.0**-53
    rows = np.searchsorted(ends, (np.arange(count) + uniform) * (ends[-1] / count), side="right")
    rows = np.minimum(rows, np.flatnonzero(weights)[-1])  # the last product may round to |D|
    return rows, points[rows], np.full(count, ends[-1] / count, weights.dtype)


@functools.lru_cache(maxsize=2)
def _nodes(domain: Domain) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, " n"]]:
    """Returns nodes and weights in host memory; samples may share a domain."""
    return np.asarray(domain.points), np.asarray(domain.weights)
