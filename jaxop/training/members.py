"""Members of an ensemble that one program trains: their seeds, their initial values, their batches and their step."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
from flax import nnx
from jax.core import Tracer
from jax.sharding import Mesh

from jaxop._pytree import register
from jaxop.data._support import seed_sequence
from jaxop.data.source import batch_parts, is_shared
from jaxop.operators import ConstraintConfig, OperatorConfig, Standardized, build
from jaxop.operators.ensemble import check_same_arrays, stack_members
from jaxop.training.config import TrainingConfig
from jaxop.training.optimizer import Tree

_SEEDS = 0x6F76  # the random stream of the seeds of members


def member_seeds(config: TrainingConfig) -> tuple[int, ...]:
    """Returns the seed of every member of an ensemble: the seed of the config, and others that it determines.

    Member e is the operator that `jaxop.training.fit` trains alone with ``members=1`` and this seed, from the values of
    ``build(config_of_the_operator, rngs=nnx.Rngs(seed))``, up to rounding. Member 0 starts with the values of the given
    model. Only the order of the groups of a source, such as the buckets of `jaxop.data.RaggedSamples`, is that of the
    first seed for all members, because the members of a step share one program.

    Args:
        config: reads ``seed`` and ``members``.

    Returns:
        E integers, 0 ≤ seed < 2³²; the first e do not depend on E.

    Example:
        >>> from jaxop import training
        >>> training.member_seeds(training.TrainingConfig(seed=3, members=3))
        (3, 1919980167, 2869334170)
    """
    TrainingConfig.check(config)
    others = (seed_sequence(config.seed, _SEEDS, e).generate_state(1)[0] for e in range(1, config.members))
    return (config.seed, *map(int, others))


def check_members(model: nnx.Module, config: TrainingConfig, mesh: Mesh | None) -> None:
    """Raises an error if a config asks for several members, but the model or the mesh does not allow them.

    Raises:
        TypeError: if new initial values cannot be drawn, because the model is not an operator with a config.
        NotImplementedError: if the devices of the mesh belong to several processes.
    """
    if config.members == 1:
        return
    inside = getattr(model, "config", None)
    if not isinstance(inside, OperatorConfig | ConstraintConfig):
        kind = type(model if inside is None else inside).__name__.removesuffix("Config")
        raise TypeError(
            f"model must be a neural operator with a config, such as operators.build(config, rngs=rngs), bare or in a "
            f"Standardized, if members={config.members}, because each member gets new initial values, got {kind}; "
            "train several of them one by one with other seeds."
        )
    if mesh is not None and mesh.is_multi_process:
        raise NotImplementedError(
            f"members={config.members}: the members of an ensemble are trained by the devices of one process, but the "
            "mesh has those of several; train them one by one with other seeds, and join them by "
            "operators.Ensemble.of."
        )


def with_members(model: nnx.Module, config: TrainingConfig) -> nnx.Module:
    """Returns the model in which every array is the stack of those of all members, of which it is the first itself.

    Raises:
        TypeError: see `check_members`.
        ValueError: if the model does not have the arrays of a new one of its config.
    """
    check_members(model, config, None)
    members = [model]
    with _where(model):
        for seed in member_seeds(config)[1:]:
            drawn = build(cast(Any, model).config, rngs=nnx.Rngs(seed))
            if isinstance(model, Standardized):
                operator, drawn = cast(Any, drawn), nnx.clone(model)
                drawn.operator = operator
            check_same_arrays(model, drawn, "model", "a new one of its config, of which members are made")
            members.append(drawn)
        return stack_members(members)


def _where(model: nnx.Module) -> contextlib.AbstractContextManager[object]:
    """Returns a context in which arrays are made on the device of the model."""
    leaf = next(iter(jax.tree.leaves(nnx.state(model))), None)
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer) or len(leaf.devices()) > 1:
        return contextlib.nullcontext()
    return jax.default_device(next(iter(leaf.devices())))


@functools.partial(register, static=("structure",))
@dataclasses.dataclass(frozen=True)
class MemberBatch:
    """The batches that the members of an ensemble take in one step, for the step of `make_step`.

    Attributes:
        parts: every part of a batch, an array or a domain, in E versions, or in one that all members share.
        structure: what joins the parts to a batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import training
        >>> batch = training.MemberBatch.of([{"x": jnp.zeros(4)}, {"x": jnp.ones(4)}])
        >>> print(batch.member(1)["x"])
        [1. 1. 1. 1.]
    """

    parts: tuple[tuple[Tree, ...], ...]
    structure: jax.tree_util.PyTreeDef

    @classmethod
    def of(cls, batches: Sequence[Tree], same: Sequence[bool] | None = None) -> "MemberBatch":
        """Returns the batches of all members together.

        Args:
            batches: one batch for each member, all of one form.
            same: for each part, whether it is the same for all members. None takes those domains that are one object.
        """
        split = [batch_parts(batch)[0] for batch in batches]
        same = same_parts(batches) if same is None else same
        parts = tuple(tuple(of[i] for of in split[: 1 if alike else None]) for i, alike in enumerate(same))
        return cls(parts, batch_parts(batches[0])[1])

    def member(self, number: int) -> Tree:
        """Returns the batch of one member, numbered from 0."""
        return jax.tree.unflatten(self.structure, [part[number % len(part)] for part in self.parts])


def same_parts(batches: Sequence[Tree]) -> list[bool]:
    """Tells of each part of a batch whether all samples of all batches share it: a domain of the same arrays."""
    first, *others = (batch_parts(batch)[0] for batch in batches)

    def is_same(part: Tree, other: Tree) -> bool:
        leaves, structure = jax.tree.flatten(part)
        its, of_other = jax.tree.flatten(other)
        return structure == of_other and all(a is b for a, b in zip(leaves, its, strict=True))

    return [
        is_shared(part) and all(is_same(part, other[number]) for other in others) for number, part in enumerate(first)
    ]
