"""Ensemble of operators: one config, several sets of parameters, one call."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxop._pytree import leaf_names
from jaxop._validation import accumulator, as_integer, check_size, check_type
from jaxop.domains import Decomposed, Domain
from jaxop.operators.config import Operator, OperatorConfig
from jaxop.operators.constraint import AroundConfig, ConstraintConfig
from jaxop.operators.divided import device_by_device
from jaxop.operators.folder import Savable
from jaxop.operators.registry import register
from jaxop.operators.standardized import Standardized, build_in_units


@dataclasses.dataclass(frozen=True)
class EnsembleConfig(AroundConfig):
    """Config of the members of an `Ensemble`, and their number.

    Attributes:
        operator: the config that every member has.
        members: number E of members, at least 2.
        standardized: whether each member is in a `Standardized`.
        model: short name of the members' kind in `jaxop.operators.models`, found from ``operator``.

    Raises:
        TypeError: if ``operator`` is not the config of an operator, or a number is of another type.
        ValueError: if there are fewer than 2 members.

    Example:
        >>> from jaxop import operators
        >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 1, width=8, layers=1, modes=4)
        >>> operators.EnsembleConfig(fno, members=5).model
        'fno'
    """

    members: int = dataclasses.field(kw_only=True)
    standardized: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_size(self.members, "members", 2)
        check_type(self.standardized, "standardized", bool, "True or False")


@register("ensemble", EnsembleConfig)
class Ensemble(Savable, nnx.Module):
    """u ↦ (1/E) Σ_e G_e(u): the mean of E operators of one config, each with parameters of its own.

    The members differ in their initial values and in the order in which they saw the data, so that their deviation

        s(x)² = 1/(E − 1) Σ_e (G_e(u)(x) − mean(x))²

    shows where the data leave the operator undetermined. It is no error bar yet: `jaxop.training.calibrate` makes one
    of it. ``jaxop.training.fit`` with ``TrainingConfig(members=E)`` trains all members as one program; `of` joins
    operators that were trained one by one. Each array of the members is stored once, stacked along a first axis of
    length E, so that one call computes all members.

    Args:
        config: an `EnsembleConfig`.
        rngs: random streams of the members, which draw from them one after the other.

    Attributes:
        config: the config.
        operator: one member, whose arrays have the leading axis E. It cannot be called; `member` takes one out.

    Cost: that of E operators, in time and memory.

    Source: Lakshminarayanan, Pritzel and Blundell, Simple and scalable predictive uncertainty estimation using deep
    ensembles, 2017.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 1, width=8, layers=1, modes=4)
        >>> ensemble = operators.Ensemble(operators.EnsembleConfig(fno, members=3), rngs=nnx.Rngs(0))
        >>> values, grid = jnp.ones((16, 1)), domains.interval(16, rule="periodic")
        >>> mean, spread = ensemble.mean_and_spread(values, grid)
        >>> mean.shape, spread.shape, ensemble.predictions(values, grid).shape
        ((16, 1), (16, 1), (3, 16, 1))
    """

    def __init__(self, config: EnsembleConfig, *, rngs: nnx.Rngs):
        self.config = EnsembleConfig.checked(config, rngs)
        members = [build_in_units(config.operator, config.standardized, rngs=rngs) for _ in range(config.members)]
        self.operator = cast(Operator, stack_members(members))

    @classmethod
    def of(cls, models: Sequence[nnx.Module]) -> "Ensemble":
        """Returns the ensemble of given operators, such as several that were trained one by one.

        Args:
            models: at least two operators of one config, or as many `Standardized` ones. They are copied, and are all
                in the mode of the first, training or evaluation.

        Raises:
            TypeError: if a model is not a neural operator with a config.
            ValueError: if there are fewer than 2, or one has another config than the first; the message names it.

        Example:
            >>> import jax.numpy as jnp
            >>> from flax import nnx
            >>> from jaxop import domains, operators
            >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 1, width=8, layers=1, modes=4)
            >>> models = [operators.build(fno, rngs=nnx.Rngs(seed)) for seed in range(3)]
            >>> values, grid = jnp.ones((16, 1)), domains.interval(16, rule="periodic")
            >>> mean = sum(model(values, grid) for model in models) / 3
            >>> jnp.allclose(operators.Ensemble.of(models)(values, grid), mean, atol=1e-6)
            Array(True, dtype=bool)
        """
        check_type(models, "models", Sequence, "a list of operators of one config")
        for e, model in enumerate(models):
            check_member(model, f"models[{e}]")
        if len(models) < 2:
            raise ValueError(f"models must hold at least 2 operators, got {len(models)}; one is a model by itself.")
        first = cast(Any, models[0])
        for e, model in enumerate(models):
            kinds = [isinstance(one, Standardized) for one in (first, model)]
            if kinds[0] != kinds[1]:
                names = [type(one).__name__ for one in (first, model)]
                raise ValueError(f"models[{e}] must be a {names[0]} like models[0], got a {names[1]}.")
            ours, its = first.config, cast(Any, model).config
            if its != ours:
                raise ValueError(f"models[{e}] must have the config of models[0], {ours}, got {its}.")
            check_same_arrays(model, first, f"models[{e}]", "those of models[0]")
        return around_stacked(stack_members(models), len(models))

    def member(self, number: int) -> nnx.Module:
        """Returns a copy of one member, numbered from 0: an operator by itself, in a `Standardized` if they all are.

        Raises:
            TypeError: if ``number`` is not an integer.
            IndexError: if there is no such member.
        """
        number = as_integer(number, "number")
        if not 0 <= number < self.config.members:
            raise IndexError(f"number must be one of the members 0 to {self.config.members - 1}, got {number}.")
        graphdef, state = nnx.split(cast(nnx.Module, self.operator))
        return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[number], nnx.to_pure_dict(state)))

    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "k c_out"] | Float[Array, "b k c_out"]:
        """Returns the mean of the members, in their dtype; the arguments are those of a member."""
        outputs = self.predictions(values, domain, at=at, initial=initial)
        return jnp.mean(outputs.astype(accumulator(outputs.dtype)), axis=0).astype(outputs.dtype)

    def mean_and_spread(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> tuple[
        Float[Array, "k c_out"] | Float[Array, "b k c_out"], Float[Array, "k c_out"] | Float[Array, "b k c_out"]
    ]:
        """Returns the mean of the members and their standard deviation s, by E − 1, in float32 or wider.

        If truth and members were draws of one distribution, the mean square of truth − mean would be (1 + 1/E) s².
        """
        outputs = self.predictions(values, domain, at=at, initial=initial)
        outputs = outputs.astype(accumulator(outputs.dtype))
        return jnp.mean(outputs, axis=0), jnp.std(outputs, axis=0, ddof=1)

    def predictions(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "e k c_out"] | Float[Array, "e b k c_out"]:
        """Returns the outputs of all members along a first axis; the arguments are those of a member."""
        outputs = self._by_sample(values, domain, at=at, initial=initial)
        return jnp.moveaxis(outputs, outputs.ndim - 3, 0)

    @device_by_device(rank=3)
    def _by_sample(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None,
    ) -> Float[Array, "e k c_out"] | Float[Array, "b e k c_out"]:
        """Returns the outputs with the axis of the members behind that of the samples, which devices may divide."""
        graphdef, params, others = nnx.split(cast(nnx.Module, self.operator), nnx.Param, ...)

        def one(params: dict[str, Any], others: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
            member = nnx.merge(graphdef, params, others)
            before = nnx.to_pure_dict(nnx.state(member, nnx.Not(nnx.Param)))
            outputs = member(values, domain, at=at, initial=initial)
            after = nnx.to_pure_dict(nnx.state(member, nnx.Not(nnx.Param)))
            pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
            return outputs, after if any(old is not new for old, new in pairs) else {}

        trees = nnx.to_pure_dict(params), nnx.to_pure_dict(others)
        outputs, after = jax.vmap(one, out_axes=(jnp.ndim(values) - 2, 0))(*trees)
        if after:  # draws of dropout are counted
            nnx.update(self.operator, after)
        return outputs

    def _sections(self) -> dict[str, str]:
        members = f"{self.config.members} operators of one kind ({self.config.model})"
        text = (
            f"The outputs are the mean of {members}, which differ in initial values and in the order of the data. "
            "`model.mean_and_spread(values, domain)` returns their deviation too, which is no error bar by itself; "
            "`jaxop.training.calibrate` makes one of it."
        )
        return {"Ensemble": text}


def stack_members(models: Sequence[nnx.Module]) -> nnx.Module:
    """Returns the first of several models of one kind, in which every array is the stack of those of all."""
    splits = [nnx.split(model) for model in models]
    states = [nnx.to_pure_dict(state) for _, state in splits]
    return nnx.merge(splits[0][0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def around_stacked(operator: nnx.Module, members: int) -> Ensemble:
    """Returns the ensemble whose members one operator holds, see `stack_members`; it is not copied.

    The numbers do not matter here: an operator with arrays of one member gives the graph of the ensemble.
    """
    inside = cast(Any, operator)
    config = EnsembleConfig(inside.config, members=members, standardized=isinstance(operator, Standardized))
    ensemble = nnx.eval_shape(lambda: Ensemble(config, rngs=nnx.Rngs(0)))
    ensemble.operator = inside
    return ensemble


def check_member(model: object, argument: str) -> None:
    """Raises ``TypeError`` unless a model is a neural operator with a config, bare or in a `Standardized`."""
    config = getattr(model, "config", None)
    if not isinstance(model, nnx.Module) or not isinstance(config, OperatorConfig | ConstraintConfig):
        raise TypeError(
            f"{argument} must be a neural operator with a config, such as operators.build(config, rngs=rngs), bare or "
            f"in a Standardized, got {type(model).__name__}."
        )


def check_same_arrays(model: nnx.Module, other: nnx.Module, argument: str, expected: str) -> None:
    """Raises ``ValueError`` unless two models have arrays of the same names, shapes and dtypes."""

    def arrays(model: nnx.Module) -> dict[str, str]:
        tree = nnx.to_pure_dict(nnx.state(model))
        return dict(zip(leaf_names(tree), (f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(tree)), strict=True))

    ours, its = arrays(other), arrays(model)
    for name in [*ours, *its]:
        if ours.get(name) != its.get(name):
            raise ValueError(
                f"{argument} must have the same arrays as {expected}, but {name} is {its.get(name, 'absent')} in place "
                f"of {ours.get(name, 'absent')}."
            )
