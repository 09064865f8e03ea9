"""Settings of an operator before its data are known; the data complete them to a config."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from jaxop import operators
from jaxop._validation import check_name
from jaxop.data import RaggedSamples, Samples, Trajectories
from jaxop.domains import Decomposed, Domain, Grid, from_nodes
from jaxop.domains.domain import as_domain
from jaxop.experiments.sets import AnySamples, AnySet, grid_name
from jaxop.operators import AroundConfig, OperatorConfig
from jaxop.training.memory import device_memory

Set = TypeVar("Set", Samples, RaggedSamples, Trajectories, AnySamples)

_COPIES = 5  # of the parameters, during training
_DEPTH = 3  # largest number of layers of operators that are made to count their parameters


@dataclasses.dataclass(frozen=True, init=False)
class OperatorSettings:
    """Settings of an operator whose channels, dimension and reference grid come from the data.

    Patches and modes may be None: `for_data` then chooses numbers that suit the grids.

    Args:
        operator: one of `jaxop.operators.CONFIGS`.
        **settings: fields of its config; all others keep their defaults.

    Attributes:
        operator: name of the operator.
        settings: the fields that were given.

    Raises:
        ValueError: if the operator or a field is unknown, or the data decide a field.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains, experiments
        >>> u = np.ones((4, 256, 1), np.float32)
        >>> samples = data.Samples(u, u, domains.box((16, 16), rule="midpoint"))
        >>> config, chosen = experiments.OperatorSettings("fano", width=16, heads=2).for_data(samples)
        >>> config.width, config.dim, config.reference
        (16, 2, 16)
        >>> chosen
        {'patches': 2, 'modes': 4}
    """

    operator: str
    settings: Mapping[str, object]

    def __init__(self, operator: str, **settings: object):
        check_name(operator, "operator", operators.CONFIGS)
        object.__setattr__(self, "operator", operator)
        for name in settings:
            if name in self.config_type.FROM_DATA:
                raise ValueError(f"{name}={settings[name]!r} is decided by the data; leave it out.")
            check_name(name, "setting", self.fields())
        object.__setattr__(self, "settings", types.MappingProxyType(settings))

    @property
    def config_type(self) -> type[OperatorConfig]:
        """The class of the operator's config."""
        return operators.CONFIGS[self.operator]

    def fields(self) -> dict[str, tuple[Any, object]]:
        """Returns type and default of every setting; patches and modes have the default None."""
        kind = self.config_type
        hints = typing.get_type_hints(kind)
        fields: dict[str, tuple[Any, object]] = {}
        for field in dataclasses.fields(kind):
            if field.name in kind.FROM_GRID:
                fields[field.name] = int | None, None
            elif field.name not in kind.FROM_DATA:
                fields[field.name] = hints[field.name], field.default
        return fields

    def for_data(self, train: AnySamples, others: Sequence[AnySamples] = ()) -> tuple[OperatorConfig, dict[str, int]]:
        """Returns the operator's config for these samples, by `jaxop.operators.OperatorConfig.for_data`.

        Args:
            train: the training samples.
            others: samples on other grids on which the operator must run.

        Returns:
            The config, and the fields that were chosen to suit the grids.

        Raises:
            ValueError: if the settings do not fit together; see the operator's config.
        """
        domain, *other_domains = (as_domain(one, "domain") for samples in (train, *others) for one in _domains(samples))
        config = self.config_type.for_data(
            domain,
            in_channels=train.in_channels,
            out_channels=train.out_channels,
            initial_channels=train.initial_channels,
            others=other_domains,
            **self.settings,
        )
        is_on_grid = isinstance(domain, Grid) and not domain.is_batched
        open_names = [name for name in config.FROM_GRID if is_on_grid and self.settings.get(name) is None]
        return config, {name: getattr(config, name) for name in open_names}


def input_domain(samples: AnySet) -> Domain | Decomposed:
    """Returns the domain of the inputs, of the first sample if each has its own."""
    return samples.sample(0).domain if isinstance(samples, RaggedSamples) else samples.domain


def _domains(samples: AnySet) -> list[Domain | Decomposed]:
    """Returns the domain of the inputs or, if each sample has its own, the first and the corners of the box of all."""
    domain = input_domain(samples)
    if not isinstance(samples, RaggedSamples) or (isinstance(domain, Grid) and not domain.has_given_nodes):
        return [domain]  # grids of a rule are the same for all samples
    return [domain, from_nodes(samples.corners, np.ones(2, samples.corners.dtype))]


def prepared(sets: Mapping[str, Set], config: OperatorConfig | AroundConfig) -> dict[str, Set]:
    """Returns the sets with the domains in the form that the operator computes with, see `OperatorConfig.prepare`.

    Raises:
        ValueError: if the operator cannot run on a domain; the message names the set.
        NotImplementedError: if the operator needs the decomposition of one domain, and each sample has its own.
    """

    def one(name: str, samples: Set) -> Set:
        domain, *rest = _domains(samples)
        try:
            made = config.prepare(domain)
            if made is domain:
                for other in rest:
                    config.prepare(other)
        except ValueError as error:
            raise ValueError(f"{name} ({grid_name(samples)}): {error}") from error
        if made is domain:
            return samples
        if isinstance(samples, RaggedSamples):
            raise NotImplementedError(
                f"{name} ({grid_name(samples)}): each sample has its own nodes, but Schwarz attention has the "
                "subdomains of one domain; use a TransformerNeuralOperator with schwarz=None or a "
                "LatentNeuralOperator, which take any nodes."
            )
        return dataclasses.replace(samples, domain=made)

    return {name: one(name, samples) for name, samples in sets.items()}


def check_memory(config: OperatorConfig, *, shards: int = 1, members: int = 1) -> None:
    """Raises ``ValueError`` if the training of an operator cannot fit into memory; the operator is not made.

    Args:
        config: the config of the operator.
        members: number of operators that are trained together.
        shards: devices that share one copy of the state. Devices of a CPU share one memory, whatever their number.
    """
    size, count = (members * number for number in size_of(config))
    needed, available = _COPIES * size, device_memory() * (1 if jax.default_backend() == "cpu" else shards)
    if needed <= available:
        return
    sizes = {f.name: (getattr(config, f.name), f.default) for f in dataclasses.fields(config)}
    sizes = {name: pair for name, pair in sizes.items() if all(isinstance(n, int) for n in pair)}
    who = "the operator has" if members == 1 else f"the {members} members have"
    large = [f"{name}={given} (default {default})" for name, (given, default) in sizes.items() if given > default]
    raise ValueError(
        f"{who} {count:,} parameters of {size / 2**30:,.1f} GiB. Training needs {_COPIES} times as much "
        f"({needed / 2**30:,.1f} GiB: the parameters twice, their gradient, two moments), and there are "
        f"{available / 2**30:,.1f} GiB of memory. Make the operator smaller: {', '.join(large or sizes)}."
    )


def size_of(config: OperatorConfig) -> tuple[int, int]:
    """Returns bytes and number of an operator's parameters, which are linear in the depth and extrapolated in it."""
    for name in ("layers", "decoder_layers"):
        depth = getattr(config, name, 0)
        if depth > _DEPTH:
            less, more = (
                np.array(size_of(dataclasses.replace(config, **{name: n})), object) for n in (_DEPTH - 1, _DEPTH)
            )
            size, count = more + (depth - _DEPTH) * (more - less)
            return size, count
    leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(lambda: operators.build(config, rngs=nnx.Rngs(0))), nnx.Param))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves), sum(leaf.size for leaf in leaves)


def parameters(model: nnx.Module) -> int:
    """Returns the number of trainable parameters of a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
