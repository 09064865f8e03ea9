"""Operator in physical units, made from an operator on standardised channels."""

from typing import cast

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxop._validation import accumulator, as_float, check_plain, first_index, float_dtype, is_concrete
from jaxop.domains import Decomposed, Domain
from jaxop.nn import BuildableConfig
from jaxop.operators.config import Operator, OperatorConfig
from jaxop.operators.constraint import AroundConfig, ConstraintConfig, Map, with_innermost
from jaxop.operators.folder import Savable
from jaxop.operators.registry import build


class Statistic(nnx.Variable):
    """Constant stored with a model: part of its checkpoint, not of its trainable parameters."""


class Standardized(Savable, nnx.Module):
    """u ↦ σ_out · G((u − μ_in)/σ_in) + μ_out, channel by channel, around an operator G.

    The statistics are those of the training set, and stay the same for all later data. They are `Statistic` variables
    of the model in JAX's default floating dtype, so that checkpoints contain them and optimisers do not change them.
    Both affine maps and the outputs have this precision, because 101325 Pa and 101625 Pa are the same number in half
    precision. G gets channels in the dtype of ``values``. If the operator is a `ConstrainedOperator`, G is the one
    inside it, so that constraints hold in physical units.

    Args:
        operator: any operator of the library.
        input_mean: μ_in, shape (c_in,), in the units of the inputs.
        input_std: σ_in, shape (c_in,).
        output_mean: μ_out, shape (c_out,), in the units of the outputs.
        output_std: σ_out, shape (c_out,).
        initial_mean: mean of ``initial``, shape (c0,), if the operator has an initial condition. None means 0.
        initial_std: standard deviation of ``initial``, shape (c0,). None means 1.

    Raises:
        TypeError: if the operator does not have a config, or statistics are not numbers.
        ValueError: if the length of statistics is not the number of channels, statistics are not finite, or
            deviations are not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> config = operators.TransformerNeuralOperatorConfig(1, 1, width=8, heads=2, layers=1)
        >>> operator = operators.Standardized(
        ...     operators.build(config, rngs=nnx.Rngs(0)),
        ...     input_mean=[3.0], input_std=[2.0], output_mean=[-1.0], output_std=[0.5],
        ... )
        >>> operator(jnp.ones((16, 1)), domains.interval(16)).shape
        (16, 1)
    """

    input_mean: Statistic
    input_std: Statistic
    output_mean: Statistic
    output_std: Statistic
    initial_mean: Statistic
    initial_std: Statistic

    def __init__(
        self,
        operator: nnx.Module,
        *,
        input_mean: ArrayLike | list[float],
        input_std: ArrayLike | list[float],
        output_mean: ArrayLike | list[float],
        output_std: ArrayLike | list[float],
        initial_mean: ArrayLike | list[float] | None = None,
        initial_std: ArrayLike | list[float] | None = None,
    ):
        config: OperatorConfig | ConstraintConfig | None = getattr(operator, "config", None)
        if not isinstance(operator, nnx.Module) or config is None:
            raise TypeError(
                f"operator must be a neural operator with a config, such as operators.build(config, rngs=rngs), got "
                f"{type(operator).__name__}."
            )
        if isinstance(config, AroundConfig) and not isinstance(config, ConstraintConfig):
            raise TypeError(
                f"operator must be one operator, got {type(operator).__name__}; each of its members is in a "
                "Standardized: EnsembleConfig(config, members=5, standardized=True), or operators.Ensemble.of(models)."
            )
        self.operator = cast(Operator, operator)
        initial_channels = getattr(config, "initial_channels", 0)
        statistics = {
            "input_mean": (input_mean, config.in_channels),
            "input_std": (input_std, config.in_channels),
            "output_mean": (output_mean, config.out_channels),
            "output_std": (output_std, config.out_channels),
        }
        if initial_channels:
            zeros, ones = [0.0] * initial_channels, [1.0] * initial_channels
            statistics["initial_mean"] = (zeros if initial_mean is None else initial_mean, initial_channels)
            statistics["initial_std"] = (ones if initial_std is None else initial_std, initial_channels)
        elif initial_mean is not None or initial_std is not None:
            raise ValueError("initial_mean and initial_std must be None: this operator has no initial condition.")
        for name, (value, channels) in statistics.items():
            setattr(self, name, Statistic(_statistic(value, name, channels)))

    @property
    def config(self) -> OperatorConfig | ConstraintConfig:
        """The config of the operator inside."""
        return self.operator.config

    def _parts(self) -> tuple[nnx.Module, dict[str, Array] | None]:
        names = ("input_mean", "input_std", "output_mean", "output_std", "initial_mean", "initial_std")
        present = {name: getattr(self, name)[...] for name in names if hasattr(self, name)}
        return cast(nnx.Module, self.operator), present

    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "k c_out"] | Float[Array, "b k c_out"]:
        """Returns the output function in physical units, in float32 or wider; the arguments are the operator's."""
        call = with_innermost(self.operator, self._in_units)
        return call(values, domain, at=at, initial=initial)

    def _in_units(
        self,
        operator: Map,
        values: Array,
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None,
        initial: Array | None,
    ) -> Array:
        """Returns the output of G in the units of the data; constraints around G act in these units."""
        values = as_float(values, "values")
        if initial is not None and getattr(self.config, "initial_channels", 0):
            initial = _standardize(as_float(initial, "initial"), self.initial_mean, self.initial_std)
        standardized = _standardize(values, self.input_mean, self.input_std)
        outputs = operator(standardized, domain, at=at, initial=initial)
        outputs, mean, std = _in_one_precision(outputs, self.output_mean, self.output_std)
        return outputs * std + mean


def build_in_units(config: BuildableConfig, standardized: bool, *, rngs: nnx.Rngs) -> nnx.Module:
    """Returns a new operator, in a `Standardized` whose statistics are to be replaced if ``standardized``."""
    operator = build(config, rngs=rngs)
    if not standardized:
        return operator
    around = cast(OperatorConfig | ConstraintConfig, config)
    zeros, ones = ([number] * around.in_channels for number in (0.0, 1.0))
    out_zeros, out_ones = ([number] * around.out_channels for number in (0.0, 1.0))
    return Standardized(operator, input_mean=zeros, input_std=ones, output_mean=out_zeros, output_std=out_ones)


def _statistic(value: ArrayLike | list[float], name: str, channels: int) -> Array:
    """Returns a statistic in JAX's default precision: one finite number per channel, positive if a deviation."""
    check_plain(value, name)
    try:
        array = jnp.asarray(value, float_dtype())
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, one per channel, got {value!r}.") from error
    if array.shape != (channels,):
        raise ValueError(f"{name} must have shape ({channels},), one entry per channel, got {array.shape}.")
    if is_concrete(array):
        known = np.asarray(array)
        good = np.isfinite(known) & (known > 0 if name.endswith("_std") else True)
        if not good.all():
            channel = first_index(~good)
            rule = "positive and finite; use 1 for a constant channel" if name.endswith("_std") else "finite"
            raise ValueError(f"{name}[{channel}] = {known[channel]} must be {rule}.")
    return array


def _standardize(values: Array, mean: Statistic, std: Statistic) -> Array:
    """Returns (u − μ)/σ in the dtype of u: half precision has enough digits for values of size 1."""
    wide, centre, scale = _in_one_precision(values, mean, std)
    return ((wide - centre) / scale).astype(values.dtype)


def _in_one_precision(values: Array, mean: Statistic, std: Statistic) -> tuple[Array, Array, Array]:
    """Returns values and their statistics, ready to broadcast, in float32 or the widest of their dtypes."""
    dtype = np.promote_types(accumulator(values.dtype), accumulator(mean[...].dtype))
    centre, scale = (s[...].astype(dtype).reshape((1,) * (values.ndim - 1) + (-1,)) for s in (mean, std))
    return values.astype(dtype), centre, scale
