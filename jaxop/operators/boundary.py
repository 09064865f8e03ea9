"""Operators whose output has prescribed values, on sides of a box, on a mask, or where a function vanishes."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import accumulator, as_float, as_number, check_type, is_concrete, is_integer
from jaxop.domains import Decomposed, Domain, Grid, Mesh
from jaxop.domains.domain import as_domain, bounding_box
from jaxop.operators.constraint import (
    NOT_AT,
    ConstrainedOperator,
    ConstraintConfig,
    InputChannelsConfig,
    Map,
    check_channels,
    check_numbers,
    innermost,
)
from jaxop.operators.nodes import check_same
from jaxop.operators.registry import register

ENDS = ("lower", "upper")
"""The two sides of a box across an axis."""


def box_factor(
    points: Float[Array, "*n dim"],
    lower: tuple[float, ...],
    upper: tuple[float, ...],
    sides: tuple[tuple[int, str], ...] | None = None,
) -> Float[Array, "*n"]:
    """m(x) = Π_k f_k(x), 0 on chosen sides of a box and positive elsewhere in it, with maximum 1.

    With t = (x_k − l_k)/(u_k − l_k), the factor of axis k is 4 t (1 − t) if both its sides are chosen, t or 1 − t if
    the lower or the upper one is, and 1 if none is. Points within rounding of a side count as points on it.

    Args:
        points: x.
        lower: the lower corner of the box, in the units of the points.
        upper: its upper corner.
        sides: the sides, each as (axis, "lower") or (axis, "upper"); None means all.

    Returns:
        One number per point, without units; outside the box the polynomial of the inside.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import operators
        >>> x = jnp.asarray([[0.0], [0.5], [1.0]])
        >>> operators.box_factor(x, (0.0,), (1.0,)).tolist()
        [0.0, 1.0, 0.0]
        >>> operators.box_factor(x, (0.0,), (1.0,), ((0, "lower"),)).tolist()
        [0.0, 0.5, 1.0]
    """
    chosen = [(axis, end) for axis in range(len(lower)) for end in ENDS] if sides is None else list(sides)
    factor = jnp.ones(points.shape[:-1], points.dtype)
    for axis, end in chosen:
        low, high = (np.asarray(corner[axis], points.dtype) for corner in (lower, upper))
        distance = points[..., axis] - low if end == "lower" else high - points[..., axis]
        rounding = 4 * jnp.finfo(points.dtype).eps * np.maximum(abs(low), abs(high))
        distance = jnp.where(jnp.abs(distance) <= rounding.astype(points.dtype), 0, distance)
        both = all((axis, other) in chosen for other in ENDS)
        factor = factor * (distance * np.asarray((2 if both else 1) / (high - low), points.dtype))
    return factor


def prescribe(
    outputs: Float[Array, "*n c"], values: Float[Array, "*n c"], factor: Float[Array, "*n c"]
) -> Float[Array, "*n c"]:
    """G + m u: exactly g wherever m = 0.

    Args:
        outputs: u.
        values: g, the prescribed values, continued to all nodes.
        factor: m.

    Returns:
        The function, in float32 or wider.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import operators
        >>> u = jnp.asarray([[7.0], [7.0]])
        >>> operators.prescribe(u, jnp.full_like(u, 2.0), jnp.asarray([[0.0], [1.0]])).tolist()
        [[2.0], [9.0]]
    """
    dtype = accumulator(outputs.dtype)
    return values.astype(dtype) + factor.astype(dtype) * outputs.astype(dtype)


@dataclasses.dataclass(frozen=True)
class BoxSidesConfig:
    """Sides of a box, for `BoundaryOperatorConfig`; see `box_factor`.

    Attributes:
        lower: the lower corner of the box, in the units of the points; None means 0 along every axis.
        upper: its upper corner; None means 1.
        sides: the sides with prescribed values, each as (axis, "lower") or (axis, "upper"); None means all.

    Raises:
        TypeError: if a corner is not a tuple of numbers.
        ValueError: if the box is empty, or a side is not of this form.
    """

    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None
    sides: tuple[tuple[int, str], ...] | None = None

    def __post_init__(self):
        for name in ("lower", "upper"):
            corner = getattr(self, name)
            if corner is not None:
                check_type(corner, name, tuple, "a tuple of coordinates, or None")
                object.__setattr__(self, name, tuple(as_number(x, name) for x in corner))
        for side in self.sides or ():
            whole = isinstance(side, tuple) and len(side) == 2 and is_integer(side[0]) and side[0] >= 0
            if not whole or side[1] not in ENDS:
                raise ValueError(f'sides must hold pairs such as (0, "lower") or (1, "upper"), got {side!r}.')
        if self.sides is not None and (not self.sides or len(set(self.sides)) < len(self.sides)):
            raise ValueError(f"sides must be different sides, at least one, or None for all, got {self.sides}.")

    def corners(self, dim: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns both corners of the box in so many dimensions.

        Raises:
            ValueError: if the box is empty, or of another dimension.
        """
        lower = (0.0,) * dim if self.lower is None else self.lower
        upper = (1.0,) * dim if self.upper is None else self.upper
        highest = max((axis for axis, _ in self.sides or ()), default=0)
        if (len(lower), len(upper)) != (dim, dim) or highest >= dim:
            raise ValueError(
                f"lower, upper and sides must be those of a box with dim = {dim}, got lower={lower}, upper={upper} and "
                f"sides={self.sides}."
            )
        if not all(low < high and math.isfinite(high - low) for low, high in zip(lower, upper, strict=True)):
            raise ValueError(f"upper must be above lower along every axis, got lower={lower} and upper={upper}.")
        return lower, upper

    def chosen(self, dim: int) -> list[tuple[int, str]]:
        """Returns the sides with prescribed values of a box in so many dimensions."""
        return [(axis, end) for axis in range(dim) for end in ENDS] if self.sides is None else list(self.sides)

    def check(self, domain: Domain | Decomposed, *, whole: bool) -> None:
        """Raises ``ValueError`` if nodes lie beyond a side, or a whole domain ends elsewhere than at the sides.

        The ends of a grid under rules are always known. Other nodes are compared outside of `jax.jit` only, and those
        of weight 0, or of a stack of grids, are not. Scattered nodes need not reach the sides.

        Args:
            domain: the nodes.
            whole: whether they are those of the whole domain of the function, and not any points in it.
        """
        nodes = as_domain(domain, "domain")
        sides = self.corners(nodes.dim)
        if isinstance(nodes, Grid) and not nodes.has_given_nodes:
            reached = tuple(zip(*(axis.ends for axis in nodes.axes), strict=True))
        elif is_concrete(*jax.tree.leaves(nodes)) and not (isinstance(nodes, Grid) and nodes.is_batched):
            reached = bounding_box(nodes)
            whole = whole and isinstance(nodes, Grid | Mesh)
        else:
            return
        for axis, end in self.chosen(nodes.dim):
            ours, theirs = (float(corners[ENDS.index(end)][axis]) for corners in (sides, reached))
            beyond = theirs - ours if end == "upper" else ours - theirs
            far = max(abs(sides[0][axis]), abs(sides[1][axis]))
            slack = 4 * far * float(jnp.finfo(nodes.points.dtype).eps)  # rounding, within which `box_factor` is 0
            if beyond > slack or (whole and beyond < -slack):
                raise ValueError(
                    f"the {end} side across axis {axis}, where values are prescribed, is at {ours:.9g}, but the domain "
                    f"ends at {theirs:.9g}; give the corners of the domain by lower and upper in BoxSidesConfig, or "
                    "leave this side out of sides."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryOperatorConfig(ConstraintConfig):
    """The operator inside, and the values that are prescribed and where; see `BoundaryOperator`.

    Functions of the points may be given in Python; an operator with one cannot be saved.

    Attributes:
        factor: m, which is 0 where values are prescribed: sides of a box; a mask as a channel of the input, for all
            channels of the output, or one for each; or a function of the points (n, dim), with values (n,) or (n, c).
        values: g: numbers, one for all channels of the output or one for each; as many channels of the input; or a
            function of the points (n, dim), with values (n, c).

    Raises:
        TypeError: if an attribute is of another type.
        ValueError: if the numbers of channels or dimensions do not fit the operator.

    Example:
        >>> from jaxop import operators
        >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 2, width=8, layers=1, modes=4, reference=8)
        >>> sides = operators.BoxSidesConfig(sides=((0, "lower"), (0, "upper")))
        >>> operators.BoundaryOperatorConfig(fno, factor=sides, values=(2.0,)).model
        'fno'
    """

    factor: BoxSidesConfig | InputChannelsConfig | Callable[..., Array] = BoxSidesConfig()
    values: tuple[float, ...] | InputChannelsConfig | Callable[..., Array] = (0.0,)

    def __post_init__(self):
        super().__post_init__()
        kinds = "operators.BoxSidesConfig(...), operators.InputChannelsConfig(...) or a function of the points"
        if not isinstance(self.factor, BoxSidesConfig | InputChannelsConfig) and not callable(self.factor):
            raise TypeError(f"factor must be {kinds}, got {self.factor!r}.")
        if isinstance(self.factor, BoxSidesConfig):
            self.factor.corners(self.dim)
        for name in ("factor", "values"):
            value = getattr(self, name)
            if isinstance(value, InputChannelsConfig):
                check_channels(value.channels, f"{name}.channels", self.in_channels)
                if len(value.channels) not in (1, self.out_channels):
                    raise ValueError(
                        f"{name}.channels must be one channel of the input or {self.out_channels}, one per channel of "
                        f"the output, got {value.channels}."
                    )
        if not isinstance(self.values, InputChannelsConfig) and not callable(self.values):
            check_numbers(self.values, "values", self.out_channels)

    def check_at(self, domain: Domain | Decomposed) -> None:
        """Raises ``ValueError`` if nodes lie beyond a prescribed side."""
        super().check_at(domain)
        if isinstance(self.factor, BoxSidesConfig):
            self.factor.check(domain, whole=False)

    @property
    def evaluates_anywhere(self) -> bool:
        """Whether the nodes of the output may differ from those of the input, whose channels are known there alone."""
        of_input = isinstance(self.factor, InputChannelsConfig) or isinstance(self.values, InputChannelsConfig)
        return not of_input and super().evaluates_anywhere

    def check_any_nodes(self) -> None:
        """Raises ``NotImplementedError`` if the sides need to know the grid, see `OperatorConfig.check_any_nodes`."""
        super().check_any_nodes()
        if isinstance(self.factor, BoxSidesConfig) and innermost(self).acts_on_grids:
            raise self._needs_known_nodes("a BoundaryOperator with the sides of the box of a grid")

    def prepare(self, domain: Domain | Decomposed) -> Domain | Decomposed:
        """See `OperatorConfig.prepare`; raises ``ValueError`` if the box of the sides is not that of the domain."""
        if isinstance(self.factor, BoxSidesConfig):
            self.factor.check(domain, whole=True)
        return super().prepare(domain)


@register("boundary", BoundaryOperatorConfig)
class BoundaryOperator(ConstrainedOperator[BoundaryOperatorConfig]):
    """u ↦ g + m G(u): an operator G whose output is exactly g where m = 0, on any domain and at any points.

    The output is exact by construction and not by training: on the sides of a box, on the nodes of a mask, or where a
    function of the user vanishes. Elsewhere G learns the difference from g, divided by m, so a factor that vanishes to
    first order at a side lets the output have any normal derivative there.

    Args:
        config: a `BoundaryOperatorConfig`.
        rngs: random streams of the operator inside.

    Cost: one call of G.

    Source: the ansatz of Lagaris, Likas, Fotiadis, "Artificial Neural Networks for Solving Ordinary and Partial
        Differential Equations", arXiv:physics/9705023.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> tno = operators.TransformerNeuralOperatorConfig(1, 1, width=8, heads=2, layers=1)
        >>> config = operators.BoundaryOperatorConfig(tno, values=(2.0,))
        >>> operator = operators.BoundaryOperator(config, rngs=nnx.Rngs(0))
        >>> outputs = operator(jnp.ones((5, 1)), domains.interval(5))
        >>> outputs[0].tolist(), outputs[-1].tolist()
        ([2.0], [2.0])
    """

    def __init__(self, config: BoundaryOperatorConfig, *, rngs: nnx.Rngs):
        self._build(BoundaryOperatorConfig.checked(config, rngs), rngs)

    def constrain(
        self,
        operator: Map,
        values: Float[Array, "*b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, "*b c0"] | None = None,
    ) -> Float[Array, "*b k c_out"]:
        """Returns g + m G(u), in float32 or wider, for any map G between functions.

        Raises:
            ValueError: if a function of the points returns another shape, or sides are not those of the domain, see
                `BoxSidesConfig.check`.
            NotImplementedError: if m or g are channels of the input, and ``at`` is another domain.
        """
        values = as_float(values, "values")
        config, where = self.config, as_domain(domain if at is None else at, "at")
        outputs = operator(values, domain, at=at, initial=initial)
        if isinstance(config.factor, BoxSidesConfig):
            config.factor.check(where, whole=at is None)

        def known(source: object, argument: str) -> Array:
            if isinstance(source, InputChannelsConfig):
                check_same(at, domain, NOT_AT)
                found = source.of(values)
            elif isinstance(source, tuple):
                found = jnp.asarray(np.asarray(source, accumulator(outputs.dtype)))
                return jnp.broadcast_to(found.reshape((1,) * (outputs.ndim - 1) + (-1,)), outputs.shape)
            else:
                found = _at_points(source, where, argument)
            if found.ndim < outputs.ndim:  # one domain for all functions
                found = found[None]
            fits = found.shape[-2] == outputs.shape[-2] and found.shape[-1] in (1, outputs.shape[-1])
            if not fits:
                raise ValueError(
                    f"{argument} must return one number per point, or one per point and channel of the output, "
                    f"{outputs.shape[-2:]}, got {found.shape[-2:]}."
                )
            return jnp.broadcast_to(found, outputs.shape)

        return prescribe(outputs, known(config.values, "values"), known(config.factor, "factor"))


def _at_points(source: object, where: Domain, argument: str) -> Float[Array, "*b n c"]:
    """Returns the values of a function at the points of a domain or of a stack."""

    def at_points(points: Array) -> Array:
        if isinstance(source, BoxSidesConfig):
            found = box_factor(points, *source.corners(points.shape[-1]), source.sides)
        else:
            assert callable(source)
            found = as_float(source(points), argument)
        return found[:, None] if found.ndim == 1 else found

    if where.is_batched:
        return jax.vmap(lambda one: at_points(one.points))(where)
    return at_points(where.points)
