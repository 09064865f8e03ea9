"""Operator with error bars: a prediction and the half-width of a band that holds most functions."""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import accumulator, as_number, check_share, check_size, check_type
from jaxop.domains import Decomposed, Domain
from jaxop.domains.domain import as_domain, mean_over
from jaxop.nn import BuildableConfig
from jaxop.nn.encoder import Dtypes
from jaxop.operators.config import Operator, OperatorConfig
from jaxop.operators.constraint import ConstraintConfig, recorded_inside
from jaxop.operators.ensemble import Ensemble, EnsembleConfig
from jaxop.operators.folder import Savable
from jaxop.operators.registry import model_of, register
from jaxop.operators.standardized import Standardized, build_in_units


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibratedConfig(BuildableConfig):
    """Operators and numbers of a `Calibrated` operator; `jaxop.training.calibrate` finds the numbers.

    Attributes:
        operator: config of the operator G, which may have constraints, or of an `Ensemble` whose mean is G.
        spread: config of the operator S of the local size of its error. None takes the members' deviation of an
            ensemble, and otherwise makes a band of one width.
        alpha: α, the share of the domain that may be outside the band, 0 ≤ α < 1.
        delta: δ, the share of functions for which more may be outside, 0 < δ < 1.
        factor: Q ≥ 0, what the half-width is in units of the local size.
        count: number n of functions that Q was calibrated on.
        floor: smallest local size, relative to its mean over the domain.
        nodes: the nodes of these functions, for the reader of the card.
        data: checksum of these functions.
        standardized: whether G is in a `Standardized`.
        spread_standardized: whether S is in a `Standardized`.
        model: short name of G's kind in `jaxop.operators.models`, found from ``operator``.
        spread_model: that of S, "" if there is none.

    Raises:
        TypeError: if ``operator`` or ``spread`` is not the config of a neural operator, or a number is of another type.
        ValueError: if the operators do not map the same functions, or a number is out of its range.

    Example:
        >>> from jaxop import operators
        >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 1, width=8, layers=1, modes=4)
        >>> operators.CalibratedConfig(operator=fno, alpha=0.1, delta=0.1, factor=0.3, count=99).model
        'fno'
    """

    operator: OperatorConfig | ConstraintConfig | EnsembleConfig
    spread: OperatorConfig | ConstraintConfig | None = None
    alpha: float
    delta: float
    factor: float
    count: int
    floor: float = 0.01
    nodes: str = ""
    data: str = ""
    standardized: bool = False
    spread_standardized: bool = False
    model: str = dataclasses.field(default="", init=False)
    spread_model: str = dataclasses.field(default="", init=False)

    def __post_init__(self):
        expected = "the config of a neural operator, see operators.CONFIGS"
        check_type(self.operator, "operator", (OperatorConfig, ConstraintConfig, EnsembleConfig), expected)
        object.__setattr__(self, "model", model_of(self.operator).name)
        if self.spread is not None:
            check_type(self.spread, "spread", (OperatorConfig, ConstraintConfig), f"None or {expected}")
            object.__setattr__(self, "spread_model", model_of(self.spread).name)
            for name in ("in_channels", "out_channels", "dim", "initial_channels"):
                ours, its = (getattr(config, name, 0) for config in (self.operator, self.spread))
                if ours != its:
                    raise ValueError(
                        f"spread must map the same functions as the operator, which has {name}={ours}, got {its}."
                    )
        check_share(self.alpha, "alpha", zero=True)
        check_share(self.delta, "delta", zero=False)
        check_size(self.count, "count")
        conformal_rank(self.count, self.delta, "count")
        for name in ("factor", "floor"):
            if not 0 <= as_number(getattr(self, name), name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}.")
        for name in ("standardized", "spread_standardized"):
            check_type(getattr(self, name), name, bool, "True or False")
        for name in ("nodes", "data"):
            check_type(getattr(self, name), name, str, "a string")

    @property
    def dtypes(self) -> Dtypes:
        """The dtypes of the operator."""
        return self.operator.dtypes

    def in_dtypes(self, **dtypes: str | None) -> "CalibratedConfig":
        """Returns the config whose operators have another ``dtype`` or ``param_dtype``."""
        spread = None if self.spread is None else self.spread.in_dtypes(**dtypes)
        return dataclasses.replace(self, operator=self.operator.in_dtypes(**dtypes), spread=spread)

    def prepare(self, domain: Domain | Decomposed) -> Domain | Decomposed:
        """Returns what a compiled call takes in place of a domain, see `jaxop.operators.OperatorConfig.prepare`."""
        return self.operator.prepare(domain)

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of the constructor from those that `jaxop.operators.to_dict` wrote."""
        fields = {name: value for name, value in values.items() if name not in ("model", "spread_model")}
        for field, kind in (("operator", "model"), ("spread", "spread_model")):
            fields[field] = recorded_inside(fields.get(field), values.get(kind), kind, name=field)
        return fields


@register("calibrated", CalibratedConfig)
class Calibrated(Savable, nnx.Module):
    """u ↦ (G(u), Q σ): a prediction and the half-width of a band around it, calibrated on functions of their own.

    σ(x) = |S(u)(x)| + ε mean_D |S(u)| is the local size of the error. S is a second operator or, if G is the mean of an
    `Ensemble`, the deviation of its members. Without S, σ is the deviation of each channel in the data if G is in a
    `Standardized`, and otherwise 1. The mean over the domain keeps σ positive in the units of the data, whatever they
    are; ε is the ``floor`` of the config. For new functions that are exchangeable with the n of the calibration,

        P( |{x ∈ D : |v(x) − G(u)(x)| ≤ Q σ(x)}| ≥ (1 − α)|D| ) ≥ 1 − δ,

    where a node with several channels is inside if all of them are. The probability is over the calibration too: given
    its functions, the share of new ones is Beta(k, n + 1 − k), k = ⌈(n + 1)(1 − δ)⌉. The measure of the domain is that
    of its quadrature weights, so that the statement is about functions. It holds on the nodes of the calibration. On
    others it holds as far as the errors of G there are those on the nodes of the calibration, which has to be measured.

    `jaxop.training.calibrate` makes one from trained operators; its ``save`` and `jaxop.from_pretrained` work as for
    any operator. In another precision than that of the calibration, G and with it the coverage differ slightly.

    Args:
        config: a `CalibratedConfig`.
        rngs: random streams of the operators.

    Attributes:
        config: the config.
        operator: G.
        spread: S, or None.

    Cost: one call of G and one of S; of an ensemble one call in all.

    Source: Lei et al., Distribution-free predictive inference for regression, 2018; for operators Ma et al.,
    arXiv:2402.01960.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 1, width=8, layers=1, modes=4)
        >>> config = operators.CalibratedConfig(operator=fno, alpha=0.1, delta=0.1, factor=0.25, count=99)
        >>> model = operators.Calibrated(config, rngs=nnx.Rngs(0))
        >>> prediction, half_width = model(jnp.ones((16, 1)), domains.interval(16, rule="periodic"))
        >>> prediction.shape, half_width.shape, float(half_width[0, 0])
        ((16, 1), (16, 1), 0.25)
    """

    USAGE = "prediction, half_width = model(values, domain)"

    def __init__(self, config: CalibratedConfig, *, rngs: nnx.Rngs):
        self.config = CalibratedConfig.checked(config, rngs)
        self.operator = cast(Operator, build_in_units(config.operator, config.standardized, rngs=rngs))
        spread = None if config.spread is None else build_in_units(config.spread, config.spread_standardized, rngs=rngs)
        self.spread = cast(Operator | None, spread)

    @classmethod
    def of(cls, operator: nnx.Module, spread: nnx.Module | None = None, **numbers: Any) -> "Calibrated":
        """Returns the calibrated operator of given operators, which are not copied.

        Args:
            operator: G, any operator of the library, a `Standardized` one, or an `Ensemble`.
            spread: S, likewise.
            numbers: ``alpha``, ``delta``, ``factor``, ``count`` and the other fields of `CalibratedConfig`.

        Raises:
            TypeError: if ``operator`` or ``spread`` is not a neural operator with a config.
            ValueError: if both are one model; see `CalibratedConfig`.

        Example:
            >>> from flax import nnx
            >>> from jaxop import operators
            >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 1, width=8, layers=1, modes=4)
            >>> operator = operators.build(fno, rngs=nnx.Rngs(0))
            >>> numbers = {"alpha": 0.1, "delta": 0.1, "factor": 0.25, "count": 99}
            >>> operators.Calibrated.of(operator, **numbers).operator is operator
            True
        """
        if spread is operator:
            raise ValueError("spread must be another model than the operator, with weights of its own.")
        config = CalibratedConfig(
            operator=config_of(operator, "operator", ensemble=True),
            spread=None if spread is None else config_of(spread, "spread"),
            standardized=isinstance(operator, Standardized),
            spread_standardized=isinstance(spread, Standardized),
            **numbers,
        )
        model = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
        model.operator, model.spread = cast(Operator, operator), cast(Operator | None, spread)
        return model

    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> tuple[
        Float[Array, "k c_out"] | Float[Array, "b k c_out"], Float[Array, "k c_out"] | Float[Array, "b k c_out"]
    ]:
        """Returns the prediction and the half-width of its band, of one shape; the arguments are the operator's.

        Without S, the half-width of one operator is the same everywhere. It has float32 or wider.
        """
        prediction, size = self.with_size(values, domain, at=at, initial=initial)
        return prediction, self.half_width(size, domain if at is None else at)

    def with_size(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> tuple[
        Float[Array, "k c_out"] | Float[Array, "b k c_out"], Float[Array, "k c_out"] | Float[Array, "b k c_out"]
    ]:
        """Returns the prediction and |S(u)|, or the deviation of members or channels, at each node for itself.

        Unlike the half-width, this may be computed for a part of the nodes at a time.
        """
        if self._uses_members:
            return cast(Ensemble, self.operator).mean_and_spread(values, domain, at=at, initial=initial)
        prediction = self.operator(values, domain, at=at, initial=initial)
        if self.spread is None:
            std = self.operator.output_std[...] if isinstance(self.operator, Standardized) else jnp.ones(1)
            return prediction, jnp.broadcast_to(std.astype(accumulator(prediction.dtype)), prediction.shape)
        spread = self.spread(values, domain, at=at, initial=initial)
        return prediction, jnp.abs(spread.astype(accumulator(spread.dtype)))

    def half_width(
        self, size: Float[Array, "k c_out"] | Float[Array, "b k c_out"], domain: Domain | Decomposed
    ) -> Float[Array, "k c_out"] | Float[Array, "b k c_out"]:
        """Returns Q σ on all nodes of a domain from what `with_size` returns there."""
        if self.spread is None and not self._uses_members:
            return self.config.factor * size
        means = mean_over(size, as_domain(domain, "domain"))[..., None, :]
        return self.config.factor * (size + self.config.floor * means)

    @property
    def _uses_members(self) -> bool:
        """Whether the local size is the deviation of the members of an ensemble."""
        return self.spread is None and isinstance(self.operator, Ensemble)

    def _sections(self) -> dict[str, str]:
        config = self.config
        n, k = config.count, conformal_rank(config.count, config.delta, "count")
        deviation = math.sqrt(k * (n + 1 - k) / (n + 2)) / (n + 1)
        width = "the same everywhere" if config.spread is None else "predicted by a second operator"
        if config.spread is None and isinstance(config.operator, EnsembleConfig):
            width = f"that of the {config.operator.members} members' deviation"
        on = f" on {config.nodes}" if config.nodes else ""
        statement = (
            f"A new function lies within the half-width of the prediction on at least {_percent(1 - config.alpha)} of "
            f"the domain with a probability of at least {_percent(1 - config.delta)}, over the draws of this function "
            f"and of those of the calibration. The half-width is {width}."
        )
        source = (
            f"Calibrated on {n:,} functions{on}, which must be new to the model: split conformal, alpha = "
            f"{config.alpha:g}, delta = {config.delta:g}, factor {config.factor:.4g}. Over all calibration sets of "
            f"this size, {_percent(k / (n + 1))} ± {_percent(deviation)} of new functions are covered. This is about "
            "functions of the same distribution on the same nodes."
        )
        return {"Error bars": f"{statement}\n\n{source}"}


def conformal_rank(n: int, delta: float, argument: str) -> int:
    """Returns k = ⌈(n + 1)(1 − δ)⌉ for n functions; raises ``ValueError`` if k > n, where n < 1/δ − 1.

    δ counts as the decimal number that it prints as: in floating point, 1 − 0.9 is less than 0.1.
    """
    share = Fraction(repr(float(delta)))
    k = math.ceil((n + 1) * (1 - share))
    if k > n:
        least = max(1, math.ceil(1 / share - 1))
        raise ValueError(
            f"{argument}: {n} functions are too few for delta={delta}, which needs at least {least}; give more, or a "
            "larger delta."
        )
    return k


def config_of(operator: object, argument: str, *, ensemble: bool = False) -> Any:
    """Returns the config of a neural operator, also of a `Standardized` one; raises ``TypeError`` for other models.

    An `Ensemble` is allowed if ``ensemble``.
    """
    config = getattr(operator, "config", None)
    kinds = (OperatorConfig, ConstraintConfig, *[EnsembleConfig] * ensemble)
    if not isinstance(operator, nnx.Module) or not isinstance(config, kinds):
        kind = type(operator if config is None else config).__name__.removesuffix("Config")
        inside = (
            "one of its members, ensemble.member(0)" if kind == "Ensemble" else "the operator inside of another one"
        )
        raise TypeError(
            f"{argument} must be a neural operator with a config of operators.CONFIGS, bare or in a Standardized, got "
            f"{kind}; pass {inside}."
        )
    return config


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
