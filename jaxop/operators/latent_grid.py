"""Latent grid operator: any nodes are averaged onto a grid, a grid operator acts there, and any nodes read the grid."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import as_number, is_concrete, is_integer
from jaxop.attention import grid_averages, read_grid
from jaxop.domains import Decomposed, Domain, Grid, box
from jaxop.domains.domain import as_domain, bounding_box
from jaxop.nn import LayersConfig, Linear, run_layers
from jaxop.operators.config import OperatorConfig
from jaxop.operators.divided import device_by_device
from jaxop.operators.fano import FourierAttentionNeuralOperatorConfig
from jaxop.operators.fno import FourierNeuralOperatorConfig
from jaxop.operators.folder import Savable
from jaxop.operators.grid import GridConfig, PatchConfig
from jaxop.operators.nodes import check_no_initial, coordinates, node_functions
from jaxop.operators.registry import build, register
from jaxop.operators.vitno import ViTNeuralOperatorConfig

_MARGIN = 1 / 20
"""Distance of the box that `LatentGridOperatorConfig.for_data` chooses from the nodes, per longest side of theirs."""

_READ = 0.7  # cells, the first radius of the Gaussians that read the grid
_SHARE = 0.01  # the first mass of the background

GridOperatorConfig = FourierNeuralOperatorConfig | FourierAttentionNeuralOperatorConfig | ViTNeuralOperatorConfig
"""Configs of the operators that may act on the latent grid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentGridOperatorConfig(LayersConfig, OperatorConfig):
    """Sizes and choices of a `LatentGridOperator`.

    The attributes are those of `OperatorConfig` and `jaxop.nn.LayersConfig` (``in_channels, out_channels, dim``, then
    keywords), and these:

    Attributes:
        layers: passes from the nodes to the grid and back. The last one reads at the nodes of the output, the others at
            those of the input.
        heads: parts of the channels, each with its own radius of the averages.
        grid: nodes of the latent grid along each axis, one per axis or one for all axes, at least 2.
        lower: the lower corner of the box of the latent grid; None means 0 along every axis.
        upper: its upper corner; None means 1.
        radius: the radius of the averages over the nodes, in cells of the latent grid, in the first head at first. The
            other heads start wider, up to four times in the last head.
        process: the config of the operator on the latent grid, with ``in_channels = out_channels = width`` and the
            ``dim`` of this config, whose dtypes it gets. None means a `FourierNeuralOperatorConfig` with this width, 4
            layers, and 12 modes or half the nodes of the shortest side.

    Raises:
        TypeError: if a size is not an integer, a corner is not a tuple of numbers, or ``process`` is not such a config.
        ValueError: if sizes do not fit, a name is unknown, a rate is outside [0, 1), or the box is empty; the message
            has valid values.
    """

    width: int = 32
    heads: int = 4
    layers: int = 1
    feedforward: int = 64
    norm: str = "pre"
    grid: int | tuple[int, ...] = 32
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None
    radius: float = 1.0
    process: GridOperatorConfig | None = None

    BOX: ClassVar[tuple[str, str]] = ("lower", "upper")

    def __post_init__(self):
        super().__post_init__()
        sides = self.grid if isinstance(self.grid, tuple) else (self.grid,)
        if not sides or any(not is_integer(side) or side < 2 for side in sides):
            raise ValueError(
                f"grid must be an integer of at least 2 or a tuple of one per axis, got {self.grid!r}: a latent grid "
                "needs 2 nodes along each axis."
            )
        if isinstance(self.grid, tuple) and len(self.grid) != self.dim:
            raise ValueError(f"grid must be one number or dim = {self.dim}, one per axis, got {self.grid}.")
        for name in self.BOX:
            corner = getattr(self, name)
            if corner is not None and (not isinstance(corner, tuple) or len(corner) != self.dim):
                raise TypeError(f"{name} must be a tuple of dim = {self.dim} coordinates or None, got {corner!r}.")
        lower, upper = self.corners
        if not all(low < high and math.isfinite(high - low) for low, high in zip(lower, upper, strict=True)):
            raise ValueError(f"upper must be above lower along every axis, got lower={lower} and upper={upper}.")
        if not 0 < as_number(self.radius, "radius") < math.inf:
            raise ValueError(f"radius must be positive and finite, in cells of the latent grid, got {self.radius}.")
        self._check_process()

    @property
    def shape(self) -> tuple[int, ...]:
        """Nodes of the latent grid along each axis."""
        return self.grid if isinstance(self.grid, tuple) else (self.grid,) * self.dim

    @property
    def corners(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The lower and the upper corner of the box of the latent grid."""
        lower = (0.0,) * self.dim if self.lower is None else self.lower
        upper = (1.0,) * self.dim if self.upper is None else self.upper
        return tuple(as_number(x, "lower") for x in lower), tuple(as_number(x, "upper") for x in upper)

    @property
    def operator_on_grid(self) -> GridConfig:
        """The config of the operator on the latent grid, ``process`` or what None stands for."""
        if self.process is not None:
            return self.process
        side = min(self.shape)
        return FourierNeuralOperatorConfig(
            self.width,
            self.width,
            self.dim,
            width=self.width,
            modes=min(12, side // 2),
            reference=side,
            activation=self.activation,
            **self.dtypes,
        )

    @property
    def evaluates_anywhere(self) -> bool:
        """Whether the nodes of the output may differ from those of the input."""
        return True

    def in_box(self, points: Float[Array, "*n dim"]) -> Float[Array, "*n dim"]:
        """Returns points in coordinates in which the box of the latent grid is the unit cube."""
        lower, upper = (np.asarray(corner, points.dtype) for corner in self.corners)
        axes = (1,) * (points.ndim - 1)
        return (points - lower.reshape(*axes, -1)) / (upper - lower).reshape(*axes, -1)

    def prepare(self, domain: Domain | Decomposed) -> Domain | Decomposed:
        """See `OperatorConfig.prepare`: returns the domain, and raises ``ValueError`` if it has nodes outside the box.

        Nodes of weight 0 may be anywhere.
        """
        nodes = as_domain(domain, "domain")
        if nodes.dim != self.dim or not is_concrete(*jax.tree.leaves(nodes)):
            return domain
        lower, upper = bounding_box(nodes)
        for axis in range(self.dim):
            low, high = (corner[axis] for corner in self.corners)
            slack = 1e-5 * (high - low)  # of rounding
            if lower[axis] < low - slack or upper[axis] > high + slack:
                raise ValueError(
                    f"the nodes reach from {lower[axis]:g} to {upper[axis]:g} along axis {axis}, outside the box of "
                    f"the latent grid, [{low:g}, {high:g}]; give lower and upper in the config, or make it by "
                    "for_data, whose argument others names all domains."
                )
        return domain

    @classmethod
    def for_data(
        cls,
        domain: Domain | Decomposed,
        *,
        in_channels: int,
        out_channels: int,
        initial_channels: int = 0,
        others: Sequence[Domain | Decomposed] = (),
        **choices: object,
    ) -> "LatentGridOperatorConfig":
        """See `OperatorConfig.for_data`; ``lower`` and ``upper`` hold all nodes of the domains if absent or None.

        The box is the bounding box of the nodes of positive weight of ``domain`` and ``others``, wider on every side by
        a twentieth of its longest side. The config keeps it, so other nodes get the same grid.

        Example:
            >>> from jaxop import domains, operators
            >>> config = operators.LatentGridOperatorConfig.for_data(
            ...     domains.interval(5, upper=2.0), in_channels=1, out_channels=1
            ... )
            >>> config.lower, config.upper
            ((-0.1,), (2.1,))
        """
        nodes = [as_domain(domain, "domain"), *(as_domain(other, "others") for other in others)]
        boxes = np.stack([bounding_box(one) for one in nodes]).astype(np.float64)
        lower, upper = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
        margin = _MARGIN * float(np.max(upper - lower)) or 0.5  # all nodes may be at one place
        corners = {"lower": lower - margin, "upper": upper + margin}
        fitting = {
            name: tuple(float(f"{x:.6g}") for x in corners[name]) for name in cls.BOX if choices.get(name) is None
        }
        return super().for_data(
            domain,
            in_channels=in_channels,
            out_channels=out_channels,
            initial_channels=initial_channels,
            others=others,
            **(choices | fitting),
        )

    def _check_process(self) -> None:
        process = self.process
        if process is None:
            return
        if not isinstance(process, GridOperatorConfig):
            kinds = "FourierNeuralOperatorConfig, FourierAttentionNeuralOperatorConfig or ViTNeuralOperatorConfig"
            raise TypeError(f"process must be None or the {kinds} of the latent grid, got {process!r}.")
        expected = {"in_channels": self.width, "out_channels": self.width, "dim": self.dim}
        found = {name: getattr(process, name) for name in expected}
        if found != expected:
            raise ValueError(
                f"process must map width = {self.width} channels to as many in dim = {self.dim} dimensions: give "
                f"{type(process).__name__}({self.width}, {self.width}, {self.dim}, ...), got {found}."
            )
        if isinstance(process, PatchConfig) and any(side % process.patches for side in self.shape):
            raise ValueError(
                f"process.patches = {process.patches} must divide the sides {self.shape} of the latent grid."
            )
        object.__setattr__(self, "process", dataclasses.replace(process, **self.dtypes))


def latent_grid(shape: tuple[int, ...]) -> Grid:
    """Returns the latent grid in coordinates in which its box is the unit cube; weights are equal."""
    return box(shape, rule="midpoint")


class GridPass(nnx.Module):
    """u ↦ O R(P(A(V u))): averages A of any nodes onto a grid, an operator P there, and its values R at any points.

    A is `jaxop.attention.grid_averages` and R is `jaxop.attention.read_grid`, with trained radii per head. O and V are
    affine at every node. Kernels depend on positions only; P mixes all channels and all nodes of the grid.

    Args:
        config: sizes, and the operator P.
        rngs: random streams; ``params`` is used.
    """

    def __init__(self, config: LatentGridOperatorConfig, *, rngs: nnx.Rngs):
        self.heads, self.shape = config.heads, config.shape
        dtype, heads = config.param_dtype, config.heads
        self.value = Linear(config.width, config.width, rngs=rngs, **config.dtypes)
        self.output = Linear(config.width, config.width, rngs=rngs, **config.dtypes)
        spread = config.radius * np.geomspace(1.0, 4.0, heads)
        self.log_radius = nnx.Param(jnp.asarray(np.log(spread), dtype))
        self.log_read = nnx.Param(jnp.full(heads, math.log(_READ), dtype))
        self.log_share = nnx.Param(jnp.full(heads, math.log(_SHARE), dtype))
        self.background = nnx.Param(jnp.zeros(config.width, dtype))
        self.process = build(config.operator_on_grid, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b k d"],
        weights: Float[Array, " n"] | Float[Array, "b n"],
        points: Float[Array, "n dim"] | Float[Array, "b n dim"],
        *,
        context: Float[Array, "b n d"] | None = None,
        at: Float[Array, "k dim"] | Float[Array, "b k dim"] | None = None,
    ) -> Float[Array, "b k d"]:
        """Returns the function at the points of ``at``, for each of b samples.

        Args:
            x: samples at the points of the output; only their shape counts if there is a context.
            weights: quadrature weights of the nodes of the context.
            points: these nodes, in the coordinates of the latent grid.
            context: samples of u at these nodes; None means ``x``.
            at: points of the output, in the coordinates of the latent grid; None means ``points``.
        """
        context, at = (x if context is None else context), (points if at is None else at)
        grid, heads = latent_grid(self.shape), self.heads
        value = self.value(context)
        value = value.reshape(*value.shape[:2], heads, -1)
        radius, read, share = (jnp.exp(a[...]) for a in (self.log_radius, self.log_read, self.log_share))

        def average(points: Array, value: Array, weights: Array) -> Array:
            background = self.background[...].reshape(heads, -1)
            return grid_averages(points, value, weights, grid, radius=radius, background=background, share=share)

        def axis(array: Array, rank: int) -> int | None:
            return 0 if array.ndim > rank else None

        z = jax.vmap(average, in_axes=(axis(points, 2), 0, axis(weights, 1)))(points, value, weights)
        z = self.process(z.reshape(*z.shape[:2], -1), grid)
        z = z.reshape(*z.shape[:2], heads, -1)

        def at_points(z: Array, at: Array) -> Array:
            return read_grid(z, grid, at, radius=read)

        y = jax.vmap(at_points, in_axes=(0, axis(at, 2)))(z, at)
        return self.output(y.reshape(x.shape))


@register("latent_grid", LatentGridOperatorConfig)
class LatentGridOperator(Savable, nnx.Module):
    """u ↦ head ∘ passes ∘ lift: every pass averages the nodes onto a grid, acts there, and is read at any points.

    The lift is a network of [u(x), x]. Averages are integrals with the weights of the domain against Gaussians around
    the nodes of the grid, so that the same weights of the network act on every domain inside the box of the latent
    grid: grids under any rule, uneven samples, scattered nodes and meshes. Far from the domain the grid has a learned
    value, and so knows its shape. The last pass starts from a network of the coordinates of the output's nodes. Outside
    the box it continues the values at the nearest nodes of the latent grid.

    Args:
        config: a `LatentGridOperatorConfig`.
        rngs: random streams; ``params`` and, with dropout, ``dropout`` are used.

    Raises:
        ValueError: if sizes do not fit.

    Cost: O(layers · (n g d + n d²)) per sample for n nodes and a latent grid of g nodes, by matrix products, plus the
        operator on the grid; O(n d + g d) memory.

    Source: the layout of Li et al., "Geometry-Informed Neural Operator for Large-Scale 3D PDEs", arXiv:2309.00583. The
        kernels, the background and the weights of the nodes are ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> process = operators.FourierNeuralOperatorConfig(8, 8, 1, width=8, layers=1, modes=4, reference=8)
        >>> config = operators.LatentGridOperatorConfig(1, 2, width=8, heads=2, grid=8, process=process)
        >>> operator = operators.LatentGridOperator(config, rngs=nnx.Rngs(0))
        >>> domain, at = domains.from_samples([0.0, 0.1, 0.4, 1.0]), domains.interval(7)
        >>> operator(jnp.ones((4, 1)), domain, at=at).shape
        (7, 2)
    """

    def __init__(self, config: LatentGridOperatorConfig, *, rngs: nnx.Rngs):
        self.config = LatentGridOperatorConfig.checked(config, rngs)

        def layers(count: int) -> nnx.List:
            return nnx.List(config.residual_layer(GridPass(config, rngs=rngs), rngs=rngs) for _ in range(count))

        self.lift = config.network(config.in_channels + config.dim, rngs=rngs)
        self.layers = layers(config.layers - 1)
        self.query = config.network(config.dim, rngs=rngs)
        self.decoder = layers(1)
        self.head = Linear(config.width, config.out_channels, rngs=rngs, **config.dtypes)

    @device_by_device(rank=3)
    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "k c_out"] | Float[Array, "b k c_out"]:
        """Returns the output function on ``at``, from samples of the input function on ``domain``.

        Args:
            values: u(x_i), shape (n, c_in), or a batch (b, n, c_in).
            domain: the domain of ``values``; for a batch, one domain or a stack with one for each function.
            at: the domain of the output, one or a stack, inside or outside the box. None means ``domain``.
            initial: must be None.

        Raises:
            TypeError: if ``domain`` is not a `Domain`.
            ValueError: if shapes do not fit the config or the domain, or if nodes of ``domain`` of positive weight are
                outside the box of the latent grid. Inside `jax.jit` such nodes are not found; they count in the measure
                of the domain, and their values hardly matter.
        """
        config = self.config
        functions = node_functions(values, domain, at=at, in_channels=config.in_channels, dim=config.dim)
        check_no_initial(initial)
        if functions.axis_name is not None:
            config.check_shares_nodes()
        config.prepare(domain)
        batch, dtype = functions.values.shape[0], self.head.result_dtype(functions.dtype)
        wide = functions.values.dtype

        def places(where: Domain | Decomposed, argument: str) -> Array:
            points = coordinates(where, batch, config.dim, argument).astype(wide)
            return config.in_box(points if as_domain(where, argument).is_batched else points[0])

        points, at_points = places(domain, "domain"), places(at or domain, "at")
        inputs = functions.values[..., : config.in_channels]
        x = self.lift(jnp.concatenate([inputs, _for_batch(points, batch)], axis=-1)).astype(dtype)
        x = run_layers(self.layers, x, functions.weights, points)
        z = self.query(_for_batch(at_points, batch)).astype(dtype)
        context = self.decoder[0].attention_input(x)
        z = run_layers(self.decoder, z, functions.weights, points, context=context, at=at_points)
        outputs = self.head(z)
        return outputs[0] if functions.is_single else outputs


def _for_batch(points: Array, batch: int) -> Float[Array, "b n dim"]:
    return points if points.ndim == 3 else jnp.broadcast_to(points[None], (batch, *points.shape))
