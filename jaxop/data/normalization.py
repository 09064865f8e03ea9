"""Mean and standard deviation of a set of functions, and normalisation by them."""

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from jaxop._pytree import register
from jaxop._validation import accumulator, as_float, check_type, first_index, float_dtype
from jaxop.data.ragged import RaggedSamples
from jaxop.data.samples import ArraySource, Samples, blocks, check_array, check_functions
from jaxop.domains import Decomposed, Domain, monte_carlo
from jaxop.domains.domain import as_domain


@register
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean μ_c and standard deviation σ_c > 0 of every channel; `statistics` computes them.

    Attributes:
        mean: shape (c,), in the units of the values.
        std: shape (c,), in the units of the values; 1 for a channel that is constant.
    """

    mean: Float[Array, " c"]
    std: Float[Array, " c"]


def statistics(values: ArraySource, domain: Domain | Decomposed) -> Statistics:
    """μ_c = Σ_s ∫ u_sc dx / Σ_s |D_s| and σ_c² = Σ_s ∫ (u_sc − μ_c)² dx / Σ_s |D_s|.

    The integrals are quadratures on the samples' domain, so that a finer grid, or padding with nodes of
    weight 0, does not change the statistics. They accumulate in float64 by blocks of samples, relative to
    the first value, and are merged by Chan's update, so that a large mean costs no accuracy. If σ ≤ ε |μ|, the
    deviation of a channel is at the rounding level of its dtype. The channel then counts as constant with σ = 1, so
    that normalising it yields 0 and never NaN. If a channel is constant only because of JAX's default dtype, to which
    the values will be rounded, a warning says so.

    Args:
        values: samples of functions, shape (N, n, c); may be read lazily, in blocks.
        domain: the domain of the samples, shared or stacked.

    Returns:
        `Statistics` in JAX's default floating dtype. Cost: one pass over the values.

    Raises:
        ValueError: if the shapes do not fit the domain.

    Reference:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance" (1983).

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> grid = domains.interval(65)
        >>> values = np.asarray(grid.points)[None] * np.array([2.0, 4.0], np.float32)[:, None, None]
        >>> print(data.statistics(values, grid).mean)
        [1.5]
    """
    check_array(values, "values")
    domain = as_domain(domain, "domain")
    check_functions(values, domain, "values", "domain")
    weights = np.atleast_2d(np.asarray(domain.weights, np.float64))
    moments = Moments("values")
    for rows in blocks(values):
        block = np.asarray(values[rows])
        moments.add(block, np.broadcast_to(weights[rows] if domain.is_batched else weights, block.shape[:2]))
    return moments.statistics()


def standardization(samples: Samples | RaggedSamples) -> dict[str, Array]:
    """Mean and deviation of every channel of a set, by the names of the arguments of `jaxop.operators.Standardized`.

    They are those of `statistics` for inputs, targets and initial data. Padding does not count.

    Args:
        samples: the training set.

    Returns:
        ``input_mean``, ``input_std``, ``output_mean``, ``output_std``, and ``initial_mean``, ``initial_std`` if the
        samples have initial data; each of shape (channels,). Cost: one pass over the set.

    Raises:
        TypeError: if ``samples`` is another data source, such as `RandomNodes`; take the set that it draws from.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, operators
        >>> u = np.ones((8, 64, 1), np.float32)
        >>> known = data.standardization(data.Samples(u, 2 * u, domains.interval(64)))
        >>> config = operators.TransformerNeuralOperatorConfig(1, 1, width=8, heads=2, layers=1)
        >>> operator = operators.Standardized(operators.build(config, rngs=nnx.Rngs(0)), **known)
        >>> float(operator.output_mean[0])
        2.0
    """
    check_type(samples, "samples", (Samples, RaggedSamples), "data.Samples or data.RaggedSamples, with all nodes")
    if isinstance(samples, RaggedSamples):
        inputs, targets, initial = _statistics_one_by_one(samples)
    else:
        inputs = statistics(samples.inputs, samples.domain)
        targets, initial = statistics(samples.targets, samples.target_domain), None
        if samples.initial is not None:
            at_one_node = monte_carlo(np.zeros((1, 1), np.float32))
            initial = statistics(np.asarray(samples.initial[:])[:, None], at_one_node)
    found = {"input": inputs, "output": targets} | ({} if initial is None else {"initial": initial})
    return {f"{name}_{kind}": getattr(one, kind) for name, one in found.items() for kind in ("mean", "std")}


def _statistics_one_by_one(samples: RaggedSamples) -> tuple[Statistics, Statistics, Statistics | None]:
    inputs, targets, initial = (Moments(name) for name in ("inputs", "targets", "initial"))
    for i in range(len(samples)):
        sample = samples.sample(i)
        for moments, values, domain in (
            (inputs, sample.inputs, sample.domain),
            (targets, sample.targets, sample.target_domain),
        ):
            moments.add(np.asarray(values)[None], np.asarray(domain.weights, np.float64)[None])
        if sample.initial is not None:
            initial.add(np.asarray(sample.initial)[None, None], np.ones((1, 1)))
    return inputs.statistics(), targets.statistics(), initial.statistics() if samples.initial_channels else None


class Moments:
    """Mass, mean and squared deviations of blocks of values, relative to the first value, merged by Chan's update."""

    def __init__(self, argument: str):
        self._argument = argument
        self._mass: float = 0.0

    def add(self, values: Real[np.ndarray, "b n c"], weight: Float[np.ndarray, "b n"]) -> None:
        """Adds functions with the quadrature weights of each."""
        block = values.astype(np.float64)
        if self._mass == 0.0:
            self._dtype, self._shift = values.dtype, block[0, np.argmax(weight[0] > 0)].copy()
            self._mean, self._square = np.zeros_like(self._shift), np.zeros_like(self._shift)
        block -= self._shift
        block_mass = weight.sum()
        block_mean = np.einsum("bn,bnc->c", weight, block) / block_mass
        block -= block_mean
        gap = block_mean - self._mean
        total = self._mass + block_mass
        self._square += np.einsum("bn,bnc->c", weight, block**2) + gap**2 * self._mass * block_mass / total
        self._mean += gap * block_mass / total
        self._mass = total

    def mean_and_deviation(self) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """Returns μ and σ in float64; σ is 0 or rounding for a constant channel."""
        return self._mean + self._shift, np.sqrt(self._square / self._mass)

    def statistics(self) -> Statistics:
        """Returns μ and σ, with σ = 1 for a constant channel, about which a warning may say more."""
        mean, std = self.mean_and_deviation()
        dtype = float_dtype()
        varies, resolved = (
            std > np.maximum(np.finfo(kind).eps * np.abs(mean), np.finfo(dtype).tiny)
            for kind in (self._dtype if np.issubdtype(self._dtype, np.floating) else dtype, dtype)
        )
        if (lost := varies & ~resolved).any():
            channel = first_index(lost)
            warnings.warn(
                f"channel {channel} of {self._argument} varies by {std[channel]:.3g} around {mean[channel]:.9g}, which "
                f"{dtype} cannot resolve: it counts as constant. Subtract {mean[channel]:.3g} from it first, or call "
                "jax.config.update('jax_enable_x64', True) first.",
                UserWarning,
                stacklevel=3,
            )
        std = np.where(varies & resolved, std, 1.0)
        return Statistics(jnp.asarray(mean, dtype), jnp.asarray(std, dtype))


def normalize(values: Real[Array | np.ndarray, "... c"], statistics: Statistics) -> Float[Array, "... c"]:
    """(u − μ)/σ for every channel, in the dtype of the values; computed in float32 or wider.

    Args:
        values: shape (..., c).
        statistics: statistics of the training set, also for values of another set.

    Returns:
        Values without units.

    Raises:
        ValueError: if the numbers of channels differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import data
        >>> known = data.Statistics(mean=jnp.array([1.0]), std=jnp.array([2.0]))
        >>> print(data.normalize(jnp.array([[5.0]]), known))
        [[2.]]
    """
    dtype, values, mean, std = _prepare(values, statistics)
    return ((values - mean) / std).astype(dtype)


def denormalize(values: Real[Array | np.ndarray, "... c"], statistics: Statistics) -> Float[Array, "... c"]:
    """μ + σ u for every channel, the inverse of `normalize`.

    Physical units need digits: 101325 and 101625 are the same number in bfloat16, and both are infinite in float16.

    Args:
        values: shape (..., c), without units.
        statistics: statistics of the training set.

    Returns:
        Values in the units of the statistics, in float32 or the wider dtype of both.

    Raises:
        ValueError: if the numbers of channels differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import data
        >>> known = data.Statistics(mean=jnp.array([1.0]), std=jnp.array([2.0]))
        >>> print(data.denormalize(jnp.array([[2.0]]), known))
        [[5.]]
    """
    _, values, mean, std = _prepare(values, statistics)
    return mean + std * values


def _prepare(values: Array | np.ndarray, statistics: Statistics) -> tuple[np.dtype, Array, Array, Array]:
    """Returns the floating dtype of the values; and values, mean and deviation in one precision and rank."""
    check_type(statistics, "statistics", Statistics, "data.Statistics, such as data.statistics(values, domain)")
    result = as_float(values, "values")
    channels = statistics.mean.shape[0]
    if result.ndim == 0 or result.shape[-1] != channels:
        raise ValueError(
            f"values must have {channels} channels on the last axis, as the statistics have, got shape {result.shape}."
        )
    shape = (1,) * (result.ndim - 1) + (channels,)
    dtype = np.promote_types(accumulator(result.dtype), accumulator(statistics.mean.dtype))
    mean, std = (array.astype(dtype).reshape(shape) for array in (statistics.mean, statistics.std))
    return result.dtype, result.astype(dtype), mean, std
