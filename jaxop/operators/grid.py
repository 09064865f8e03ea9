"""Operators on grids of equal weights: their configs, their arguments and their call."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, SupportsIndex, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import accumulator, as_float, check_size, divisors
from jaxop.domains import Decomposed, Domain, Grid, GridShard, Partition, partition
from jaxop.domains.shared import shard_axis
from jaxop.nn import EncoderConfig, SpectralConvolution
from jaxop.operators.config import CoordinatesConfig
from jaxop.operators.divided import device_by_device
from jaxop.operators.folder import Savable
from jaxop.operators.nodes import check_no_initial, check_same, coordinate_features
from jaxop.spectral import check_grid, check_modes


@dataclasses.dataclass(frozen=True)
class GridConfig(CoordinatesConfig):
    """Base class of the configs of operators on grids: a `CoordinatesConfig` with the retained modes.

    Attributes:
        dim: space dimensions of the grid, 1 to 3.
        modes: m, the modes kept along every axis.
        reference: nodes along each axis of the grid that the operator is made for. On a coarser grid the highest modes
            are dropped.
    """

    FROM_DATA: ClassVar[tuple[str, ...]] = (*CoordinatesConfig.FROM_DATA, "reference")
    FROM_GRID: ClassVar[tuple[str, ...]] = ("modes",)

    dim: int = 2
    _: dataclasses.KW_ONLY
    modes: int = 12
    reference: int = 64

    def __post_init__(self):
        super().__post_init__()
        for name in ("modes", "reference"):
            check_size(getattr(self, name), name)
        check_modes(self.modes, self.modes_shape)

    @property
    def acts_on_grids(self) -> bool:
        """Whether the operator takes grids of equal weights only."""
        return True

    @property
    def modes_shape(self) -> tuple[int, ...]:
        """Nodes along each axis of the reference grid, which must represent the modes."""
        return (self.reference,) * self.dim

    @classmethod
    def _fitting(cls, shapes: Sequence[Sequence[int]], fields: Mapping[str, object]) -> dict[str, int]:
        del fields
        smallest = min(n for shape in shapes for n in shape)
        return {"reference": min(shapes[0]), "modes": max(1, min(12, smallest // 2))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchConfig(EncoderConfig, GridConfig):
    """Base class of the configs of operators between patches: a `jaxop.nn.EncoderConfig` and a `GridConfig`.

    Attributes:
        patches: number of patches along each axis, the same on every grid; it divides the sides of the grid.
        modes: m, the modes kept along every axis of a patch.
        reference: nodes along each axis of the grid that the operator is made for. Its patches must represent all
            modes: 2 m ≤ reference / patches. On a coarser grid the highest modes are dropped.
        smoothing_modes: modes of a final u + SpectralConv(u) on the whole grid. None disables smoothing.
        dtype: dtype of the pointwise maps. None takes the dtype of inputs and parameters. Spectral parts and scores run
            in float32 or wider.
    """

    FROM_GRID: ClassVar[tuple[str, ...]] = ("patches", "modes")

    width: int = 32
    patches: int = 4
    modes: int = 8
    smoothing_modes: int | None = None

    def __post_init__(self):
        check_size(self.patches, "patches")
        super().__post_init__()
        if self.smoothing_modes is not None:
            check_size(self.smoothing_modes, "smoothing_modes")
            check_modes(self.smoothing_modes, (self.reference,) * self.dim, argument="smoothing_modes")

    @property
    def modes_shape(self) -> tuple[int, ...]:
        """The nodes along each axis of a patch of the reference grid."""
        if self.reference % self.patches:
            raise ValueError(
                f"patches must divide reference = {self.reference}, got {self.patches}; valid numbers: "
                f"{divisors(self.reference)}."
            )
        return (self.reference // self.patches,) * self.dim

    @classmethod
    def _fitting(cls, shapes: Sequence[Sequence[int]], fields: Mapping[str, object]) -> dict[str, int]:
        nodes = [n for shape in shapes for n in shape]
        divisor, smallest = math.gcd(*nodes), min(nodes)
        wanted = 8 if len(shapes[0]) == 1 else 4
        allowed = [p for p in range(1, divisor + 1) if divisor % p == 0 and smallest // p >= 8] or [1]
        given = fields.get("patches")
        patches = int(given) if isinstance(given, SupportsIndex) else 0
        if patches < 1:  # None, or a value that the config rejects
            patches = min(allowed, key=lambda p: abs(p - wanted))
        fitting = {"reference": min(shapes[0]), "patches": patches, "modes": max(1, min(8, smallest // patches // 2))}
        if "smoothing_modes" in cls.FROM_GRID:
            fitting["smoothing_modes"] = max(1, min(16, smallest // 2))
        return fitting

    def check_shares_nodes(self, devices: int | None = None) -> None:
        """Raises ``ValueError`` unless every device can have as many whole rows of patches as the others."""
        self._check_coordinates_are_shared()
        if devices is not None and self.patches % devices:
            raise ValueError(
                f"patches = {self.patches} along each axis must be divisible by the {devices} devices that share the "
                "nodes of a function, so that each has whole patches; valid numbers of devices: "
                f"{divisors(self.patches)}."
            )

    def check_any_nodes(self) -> None:
        """Raises ``NotImplementedError``: the number of nodes of a patch is part of the program."""
        raise self._needs_known_nodes("the cut of the grid into patches")

    def smoothing(self, rngs: nnx.Rngs) -> SpectralConvolution | None:
        """Returns a new convolution for `smooth`, if the config asks for one."""
        if self.smoothing_modes is None:
            return None
        return SpectralConvolution(
            self.out_channels,
            self.out_channels,
            self.smoothing_modes,
            reference=(self.reference,) * self.dim,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )


Config = TypeVar("Config", bound=GridConfig)


@dataclasses.dataclass(frozen=True)
class GridFunctions:
    """A batch of functions on equal-weight grids of one shape, with the coordinates as last channels.

    Attributes:
        values: [u(x), x], shape (b, n, c + dim), in float32 or wider: half precision merges neighbouring nodes. If the
            form is not "points", `coordinate_features` are in the place of x.
        dtype: dtype of the caller's u.
        grid: the grid, or the first grid of a stack; all grids of a stack have its shape and rules.
        weight: quadrature weight of a node, a scalar, or (b,) if every sample has its own grid; float32 or wider. If
            devices share the nodes, the weight of the first one here.
        is_single: True if the caller passed one function, False for a batch.
        axis_name: the mapped axis whose devices share the nodes; None means that all nodes are here.
    """

    values: Float[Array, "b n c"]
    dtype: np.dtype
    grid: Grid | GridShard
    weight: Array
    is_single: bool
    axis_name: str | None

    @property
    def shared(self) -> dict[str, str]:
        """The axis as keywords of spectral layers and attention, nothing if all nodes are here."""
        return {} if self.axis_name is None else {"axis_name": self.axis_name}


def grid_functions(
    values: Array,
    domain: Domain | Decomposed,
    *,
    at: Domain | Decomposed | None,
    initial: Array | None,
    in_channels: int,
    dim: int,
    form: str = "points",
) -> GridFunctions:
    """Checks the arguments of a call of an operator and brings them into one form."""
    values = as_float(values, "values")
    grid = check_grid(domain, dim)
    check_no_initial(initial)
    if values.ndim not in (2, 3) or values.shape[-2:] != (grid.size, in_channels):
        raise ValueError(
            f"values must have shape (n, c_in) = ({grid.size}, {in_channels}), or (b, n, c_in), got {values.shape}."
        )
    check_same(
        at,
        grid,
        "this operator gives its output on the grid of its input. Resample the input onto the grid of the output, or "
        "use the TransformerNeuralOperator with decoder layers, which evaluates anywhere.",
    )
    is_single = values.ndim == 2
    values = values[None] if is_single else values
    if grid.is_batched:
        stack = jax.tree.leaves(grid)[0].shape[0]
        if stack != values.shape[0]:
            raise ValueError(f"domain stacks {stack} grids, but values hold {values.shape[0]} functions.")
        points = jax.vmap(lambda one: one.points)(grid)
        first = jax.tree.map(lambda leaf: leaf[0], grid)
    else:
        points, first = grid.points, grid
    if isinstance(grid, GridShard):
        weight = grid.weights[..., 0]
    else:
        weight = math.prod([axis.weights[..., 0] for axis in grid.axes[1:]], start=grid.axes[0].weights[..., 0])
    wide = accumulator(values.dtype)
    points = coordinate_features(points, grid, form).astype(wide)
    points = jnp.broadcast_to(points, (*values.shape[:2], points.shape[-1]))
    lifted = jnp.concatenate([values.astype(wide), points], axis=-1)
    return GridFunctions(lifted, values.dtype, first, weight.astype(wide), is_single, shard_axis(grid))


class GridOperator(Savable, nnx.Module, Generic[Config]):
    """Base class of operators between functions on one grid of equal weights; subclasses define `transform`."""

    config: Config

    @device_by_device(rank=3)
    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "n c_out"] | Float[Array, "b n c_out"]:
        """Returns the output function on the grid of the input.

        Args:
            values: u(x_i), shape (n, c_in), or a batch (b, n, c_in).
            domain: the grid of ``values``, with rule "midpoint" or "periodic"; for a batch, one grid or a stack with
                one for each function. If the operator has patches, ``config.patches`` divides the sides of the grid.
                If devices share the nodes, those of one device and a `jaxop.domains.GridShard`, inside
                `jax.shard_map`.
            at: None or the input's grid.
            initial: must be None.

        Returns:
            Shape (n, c_out) or (b, n, c_out).

        Raises:
            TypeError: if the domain is not a grid.
            ValueError: if shapes do not fit, weights are uneven, or the patches do not divide the grid.
            NotImplementedError: if ``at`` is not the input's grid.
        """
        config = self.config
        sizes = {"in_channels": config.in_channels, "dim": config.dim}
        functions = grid_functions(values, domain, at=at, initial=initial, form=config.coordinates, **sizes)
        if functions.axis_name is not None:
            config.check_shares_nodes(jax.lax.axis_size(functions.axis_name))
        outputs = self.transform(functions)
        return outputs[0] if functions.is_single else outputs

    def transform(self, functions: GridFunctions) -> Float[Array, "b n c_out"]:
        """Returns the output functions at the nodes."""
        raise NotImplementedError


def split(values: Float[Array, "b n c"], cut: Partition) -> Float[Array, "b p s c"]:
    """Returns every function of a batch, patch by patch."""
    return jax.vmap(cut.split)(values)


def join(values: Float[Array, "b p s c"], cut: Partition) -> Float[Array, "b n c"]:
    """Returns the functions that `split` cut."""
    return jax.vmap(cut.join)(values)


def smooth(
    convolution: SpectralConvolution | None, values: Float[Array, "b n c"], grid: Grid | GridShard
) -> Float[Array, "b n c"]:
    """Returns u + SpectralConv(u), by a convolution on the whole grid; returns u if the convolution is None."""
    if convolution is None:
        return values
    smoothed = convolution(jnp.moveaxis(values, 1, 0), grid.shape, axis_name=shard_axis(grid))
    return values + jnp.moveaxis(smoothed, 0, 1)


def cut_grid(grid: Grid | GridShard, patches: int) -> Partition:
    """Returns the grid, or the nodes of one device, cut into patches, of which the grid has as many along each axis."""
    return partition(grid, (patches,) * grid.dim)
