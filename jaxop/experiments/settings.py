"""An operator's settings before its data are known, and the config that the data make of them."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxop import operators
from jaxop._validation import check_name
from jaxop.data import Samples
from jaxop.data.files._reading import memory
from jaxop.domains import Grid

_FROM_DATA = ("in_channels", "out_channels", "dim", "reference", "initial_channels")
_FROM_GRID = ("patches", "modes", "smoothing_modes")
_COPIES = 5  # of the parameters, during training
_DEPTH = 3  # layers beyond which operators are not made to count their parameters


@dataclasses.dataclass(frozen=True, init=False)
class OperatorSettings:
    """Settings of an operator whose channels, dimension and reference grid are those of the data.

    Patches and modes may be left open, too: `for_data` takes numbers that suit the grids.

    Args:
        operator: one of `jaxop.operators.CONFIGS`.
        **settings: fields of its config; the others keep their defaults.

    Attributes:
        operator: name of the operator.
        settings: the fields that were given.

    Raises:
        ValueError: for an unknown operator or field, and for fields that the data decide.

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
    settings: Mapping[str, Any]

    def __init__(self, operator: str, **settings: Any):
        check_name(operator, "operator", operators.CONFIGS)
        object.__setattr__(self, "operator", operator)
        for name in settings:
            if name in _FROM_DATA:
                raise ValueError(f"{name}={settings[name]!r} is decided by the data; leave it out.")
            check_name(name, "setting", self.fields())
        object.__setattr__(self, "settings", types.MappingProxyType(settings))

    @property
    def config_type(self) -> type:
        """The class of the operator's config."""
        return operators.CONFIGS[self.operator]

    def fields(self) -> dict[str, tuple[Any, Any]]:
        """Type and default of every setting; None, the default of patches and modes, leaves them open."""
        hints = typing.get_type_hints(self.config_type)
        fields: dict[str, tuple[Any, Any]] = {}
        for field in dataclasses.fields(self.config_type):
            if field.name in _FROM_GRID and field.default is not None:
                fields[field.name] = int | None, None
            elif field.name not in _FROM_DATA:
                fields[field.name] = hints[field.name], field.default
        return fields

    def for_data(self, train: Samples, others: Sequence[Samples] = ()) -> tuple[Any, dict[str, int]]:
        """The operator's config for these samples.

        Channels and dimension are those of the training samples; the reference grid is the shorter side of their
        grid. `fit_to_grid` chooses open patches and modes so that every grid can carry them.

        Args:
            train: the training samples.
            others: samples on other grids that the operator must be able to run on.

        Returns:
            The config, and those of its fields that were chosen to suit the grids.

        Raises:
            ValueError: if the settings do not fit together; see the operator's config.
        """
        fields = self.fields()
        values = {name: self.settings.get(name, default) for name, (_, default) in fields.items()}
        open_names = [name for name in _FROM_GRID if name in fields and fields[name][0] == int | None]
        open_names = [name for name in open_names if values[name] is None and self._has_number(name)]
        values = {name: value for name, value in values.items() if name not in open_names}
        values |= {"in_channels": train.inputs.shape[-1], "out_channels": train.targets.shape[-1]}
        values["dim"] = train.domain.dim
        names = {field.name for field in dataclasses.fields(self.config_type)}
        if train.initial is not None and "initial_channels" in names:
            values["initial_channels"] = train.initial.shape[-1]
        chosen: dict[str, int] = {}
        domains = [samples.domain for samples in (train, *others)]
        shapes = [domain.shape for domain in domains if isinstance(domain, Grid) and not domain.is_batched]
        if "reference" in names and shapes:
            values["reference"] = min(shapes[0])
            fitting = fit_to_grid(shapes, has_patches="patches" in names, patches=values.get("patches"))
            chosen = {name: fitting[name] for name in open_names}
        return self.config_type(**values, **chosen), chosen

    def _has_number(self, name: str) -> bool:
        return any(field.name == name and field.default is not None for field in dataclasses.fields(self.config_type))


def fit_to_grid(shapes: Sequence[Sequence[int]], *, has_patches: bool, patches: int | None) -> dict[str, int]:
    """Patches and modes that every one of these grids can carry.

    The number of patches along each axis divides all grids, leaves at least 8 nodes in each where it
    can, and is as near to 4 as possible (8 in one dimension), unless it is given. Modes: 8 in a patch,
    12 on a grid without patches, 16 for the smoothing, or half of the nodes if there are fewer.
    """
    nodes = [n for shape in shapes for n in shape]
    divisor, smallest = math.gcd(*nodes), min(nodes)
    values = {"smoothing_modes": max(1, min(16, smallest // 2))}
    side = smallest
    if has_patches:
        wanted = 8 if len(shapes[0]) == 1 else 4
        allowed = [p for p in range(1, divisor + 1) if divisor % p == 0 and smallest // p >= 8] or [1]
        values["patches"] = patches or min(allowed, key=lambda p: abs(p - wanted))
        side = smallest // values["patches"]
    return values | {"modes": max(1, min(8 if has_patches else 12, side // 2))}


def operator_name(config: Any) -> str:
    """Short name of the operator that a config describes."""
    return next(name for name, kind in operators.CONFIGS.items() if type(config) is kind)


def check_memory(config: Any) -> None:
    """Raises ``ValueError`` for an operator whose training cannot fit into memory, without making it."""
    size, count = size_of(config)
    needed, available = _COPIES * size, _memory()
    if needed <= available:
        return
    sizes = {f.name: (getattr(config, f.name), f.default) for f in dataclasses.fields(config)}
    sizes = {name: pair for name, pair in sizes.items() if all(isinstance(n, int) for n in pair)}
    large = [f"{name}={given} (default {default})" for name, (given, default) in sizes.items() if given > default]
    raise ValueError(
        f"the operator has {count:,} parameters of {size / 2**30:,.1f} GiB. Training needs {_COPIES} times as much "
        f"({needed / 2**30:,.1f} GiB: the parameters twice, their gradient, two moments), and there are "
        f"{available / 2**30:,.1f} GiB of memory. Make the operator smaller: {', '.join(large or sizes)}."
    )


def size_of(config: Any) -> tuple[int, int]:
    """Bytes and number of an operator's parameters; both are linear in the depth, so none is made deep."""
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
    """Trainable numbers of a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _memory() -> float:
    """Bytes of the accelerator's memory, or of this machine's."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", memory())
