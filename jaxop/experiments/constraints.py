"""What the output of an operator keeps exactly: settings that an operator and its domain complete to a config."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop import operators
from jaxop._validation import check_name
from jaxop.domains import Decomposed, Domain, Grid
from jaxop.domains.domain import as_domain, bounding_box
from jaxop.operators import (
    BoundaryOperatorConfig,
    BoxSidesConfig,
    ConservativeOperatorConfig,
    ConstraintConfig,
    EquivariantOperatorConfig,
    InputChannelsConfig,
    OperatorConfig,
)
from jaxop.operators.boundary import ENDS
from jaxop.operators.equivariance import GROUPS

_VECTORS = ("input_vectors", "output_vectors")


@dataclasses.dataclass(frozen=True)
class Constraints:
    """Boundary values, integrals and symmetries that the output of the operator has, before and after training.

    They are in the units of the data. A stepper that learns changes keeps the values on the sides and the integrals of
    the state with the number 0, which is that of every change; it takes no other numbers and no channels.

    Attributes:
        boundary: values of the output on the sides of the box, one for all channels or one for each; None prescribes
            none.
        boundary_from: channels of the input with these values, in place of numbers.
        sides: the sides with these values, such as 0 lower 1 upper; None means all.
        lower: the lower corner of the box, in the units of the points; None means that of the training grid.
        upper: its upper corner.
        mask: channel of the input, or one for each of the output, that is 0 where values are prescribed, in place of
            sides.
        integrals: integrals of the output over the domain, one for all channels or one for each.
        integrals_from: channels of the input with these integrals, in place of numbers.
        group: "flips", "turns" or "all": symmetries of the grid with which the operator commutes; None means none.
        input_vectors: channels of the input that are components of vectors, which turn with the grid: those of one
            vector after the other, one for each dimension.
        output_vectors: the same for the output.

    Raises:
        ValueError: if settings exclude each other, or one needs another that is missing.

    Example:
        >>> from jaxop import domains, experiments, operators
        >>> tno = operators.TransformerNeuralOperatorConfig(1, 1, dim=2, width=8, heads=2, layers=1)
        >>> constraints = experiments.Constraints(boundary=(0.0,), sides=((0, "lower"),))
        >>> config = constraints.around(tno, domains.box((8, 8), upper=(2.0, 1.0)))
        >>> config.factor.upper, config.values
        ((2.0, 1.0), (0.0,))
    """

    boundary: tuple[float, ...] | None = None
    boundary_from: tuple[int, ...] | None = None
    sides: tuple[tuple[int, str], ...] | None = None
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None
    mask: tuple[int, ...] | None = None
    integrals: tuple[float, ...] | None = None
    integrals_from: tuple[int, ...] | None = None
    group: str | None = None
    input_vectors: tuple[int, ...] = ()
    output_vectors: tuple[int, ...] = ()

    def __post_init__(self):
        if self.group is not None:
            check_name(self.group, "constraints.group", GROUPS)
        for first, second, remedy in (
            ("boundary", "boundary_from", "give numbers or channels"),
            ("integrals", "integrals_from", "give numbers or channels"),
            ("sides", "mask", "values are prescribed on sides or on a mask"),
            ("lower", "mask", "a mask needs no box"),
            ("upper", "mask", "a mask needs no box"),
        ):
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ValueError(f"constraints.{first} and constraints.{second} exclude each other: {remedy}.")
        if self._prescribes and self._conserves:
            raise ValueError(
                "constraints.boundary and constraints.integrals cannot both hold exactly, because the constant that "
                "corrects the integral moves the boundary values; leave one of them out."
            )
        for name in ("sides", "lower", "upper", "mask"):
            if getattr(self, name) is not None and not self._prescribes:
                raise ValueError(f"constraints.{name} needs the values there: constraints.boundary or boundary_from.")
        for name in _VECTORS:
            if getattr(self, name) and self.group is None:
                raise ValueError(f"constraints.{name} needs constraints.group, with which vectors turn.")

    @property
    def _prescribes(self) -> bool:
        return self.boundary is not None or self.boundary_from is not None

    @property
    def _conserves(self) -> bool:
        return self.integrals is not None or self.integrals_from is not None

    def around(self, config: OperatorConfig, domain: Domain | Decomposed) -> OperatorConfig | ConstraintConfig:
        """Returns the config of the operator that keeps all this, or the config itself if there is nothing to keep.

        Args:
            config: the operator inside.
            domain: domain of the inputs in training, which tells the box.

        Raises:
            ValueError: if channels or dimensions do not fit the operator, the box is needed and not known or has no
                such sides, or the symmetries do not map what is prescribed to itself.
        """
        self._check_fits(config)
        found: OperatorConfig | ConstraintConfig = config
        if self.group is not None:
            vectors = {name: _vectors(getattr(self, name), config.dim) for name in _VECTORS}
            found = EquivariantOperatorConfig(found, group=self.group, **vectors)
        if self._conserves:
            integrals = _numbers_or_channels(self.integrals, self.integrals_from)
            found = ConservativeOperatorConfig(found, integrals=integrals)
        if self._prescribes:
            values = _numbers_or_channels(self.boundary, self.boundary_from)
            factor = self._box(domain) if self.mask is None else InputChannelsConfig(self.mask)
            found = BoundaryOperatorConfig(found, factor=factor, values=values)
        return found

    def means(self, inputs: Float[Array, " c_in"], outputs: Float[Array, " c_out"]) -> Float[Array, " c_out"]:
        """Returns the means of v − g over the training set, from those of the inputs and of the targets v.

        A `BoundaryOperator` returns g + m G: what G learns scatters around the mean of the difference from g.
        """
        if self.boundary is not None:
            return outputs - jnp.asarray(self.boundary, outputs.dtype)
        return outputs if self.boundary_from is None else outputs - inputs[np.asarray(self.boundary_from)]

    def _check_fits(self, config: OperatorConfig) -> None:
        """Raises ``ValueError`` if a setting does not fit the operator; the message names the setting."""
        channels = {"in": config.in_channels, "out": config.out_channels}
        for name in ("boundary", "boundary_from", "mask", "integrals", "integrals_from"):
            given = getattr(self, name)
            counts = {channels["out"]} if name == "integrals_from" else {1, channels["out"]}
            if given is not None and len(given) not in counts:
                expected = " or ".join(map(str, sorted(counts)))
                raise ValueError(
                    f"constraints.{name} must have {expected} entries, for {channels['out']} channels of the output, "
                    f"got {given}."
                )
        for name in ("boundary_from", "mask", "integrals_from", *_VECTORS):
            which = "out" if name == "output_vectors" else "in"
            given = getattr(self, name) or ()
            if any(not 0 <= channel < channels[which] for channel in given):
                raise ValueError(
                    f"constraints.{name} must be channels of the {which}put, 0 to {channels[which] - 1}, got {given}."
                )
        for name in _VECTORS:
            if len(getattr(self, name)) % config.dim:
                raise ValueError(
                    f"constraints.{name} must be {config.dim} channels for each vector, got {getattr(self, name)}."
                )
        for name in ("lower", "upper"):
            if getattr(self, name) is not None and len(getattr(self, name)) != config.dim:
                raise ValueError(f"constraints.{name} must have {config.dim} coordinates, got {getattr(self, name)}.")
        for axis, end in self.sides or ():
            if not 0 <= axis < config.dim or end not in ENDS:
                raise ValueError(
                    f"constraints.sides must be pairs of an axis, 0 to {config.dim - 1}, and lower or upper, got "
                    f"{axis} {end}."
                )
        if self.group is not None and (self._prescribes or self._conserves):
            self._check_symmetric(config.dim)

    def _check_symmetric(self, dim: int) -> None:
        """Raises ``ValueError`` unless the group maps prescribed values, their places and integrals to themselves."""
        sides = set(self.sides or ())
        mirrored = {(axis, ENDS[1 - ENDS.index(end)]) for axis, end in sides}
        if sides and (sides != mirrored or (self.group != "flips" and len(sides) < 2 * dim)):
            raise ValueError(
                f"constraints.sides={self.sides} are not mapped to themselves by constraints.group={self.group!r}, so "
                "that both cannot hold: prescribe all sides, or leave one of the two out."
            )
        if self.output_vectors and (
            any([*(self.boundary or ()), *(self.integrals or ())]) or self.boundary_from or self.integrals_from
        ):
            raise ValueError(
                "constraints.output_vectors turn with the grid, but their prescribed values or integrals do not: give "
                "the number 0 for these, or leave constraints.group out."
            )
        if self.output_vectors and len(self.mask or ()) > 1:
            raise ValueError(
                "constraints.mask must be one channel for all components of vectors that turn with the grid, got "
                f"{self.mask}."
            )
        for name in ("boundary_from", "integrals_from", "mask"):
            if turning := set(getattr(self, name) or ()) & set(self.input_vectors):
                raise ValueError(
                    f"constraints.{name}={getattr(self, name)} must not be components of vectors, but "
                    f"constraints.input_vectors has {sorted(turning)}."
                )

    def check_changes(self, output: str) -> None:
        """Raises ``ValueError`` unless a stepper with this ``output`` can keep all this, see `Stepping`."""
        if (self._prescribes or self._conserves) and output != "delta":
            raise ValueError(
                "constraints.boundary and constraints.integrals are kept by a stepper that learns changes, "
                f"stepping.output='delta', got {output!r}."
            )
        for name in ("boundary_from", "integrals_from", "mask"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"constraints.{name} is for pairs of functions; a stepper keeps the values of the state on sides, "
                    "constraints.boundary=0, or its integrals, constraints.integrals=0."
                )
        if any(numbers := [*(self.boundary or ()), *(self.integrals or ())]):
            raise ValueError(
                "constraints.boundary and constraints.integrals of a stepper are those of the change in a step, which "
                f"are kept at 0: give 0, got {numbers}."
            )
        if self.input_vectors or self.output_vectors:
            raise ValueError(
                "constraints.input_vectors and output_vectors must be left out for a stepper, whose channels are "
                "standardised one by one, so that vectors do not turn."
            )

    def note(self, config: OperatorConfig | ConstraintConfig, domain: Domain | Decomposed) -> str:
        """Returns a remark if no node of the training lies on a prescribed side, "" otherwise."""
        factor = config.factor if isinstance(config, BoundaryOperatorConfig) else None
        if not isinstance(factor, BoxSidesConfig):
            return ""
        points = as_domain(domain, "domain").points.reshape(-1, config.dim)
        on_sides = operators.box_factor(points, *factor.corners(config.dim), factor.sides) == 0
        return "" if np.any(np.asarray(on_sides)) else "; no node of the training lies on these sides"

    def _box(self, domain: Domain | Decomposed) -> BoxSidesConfig:
        """Returns the sides of the box, whose corners are those of the grid unless they are given."""
        nodes = as_domain(domain, "domain")
        if (self.lower is None or self.upper is None) and (not isinstance(nodes, Grid) or nodes.is_batched):
            raise ValueError(
                "constraints.lower and constraints.upper must be given for nodes that are no grid: they do not tell "
                "where the sides of the box are."
            )
        lower, upper = self.lower, self.upper
        if isinstance(nodes, Grid):
            for axis, _ in self.sides or [(axis, "") for axis in range(nodes.dim)]:
                if nodes.axes[axis].rule.is_periodic:
                    raise ValueError(
                        f"constraints.boundary needs sides, but axis {axis} is periodic and has none: name the sides "
                        "of other axes by constraints.sides, or give another rule."
                    )
        if lower is None or upper is None:
            corners = bounding_box(nodes)
            if isinstance(nodes, Grid) and not nodes.has_given_nodes:
                corners = list(zip(*(axis.ends for axis in nodes.axes), strict=True))
            lower = tuple(float(x) for x in corners[0]) if lower is None else lower
            upper = tuple(float(x) for x in corners[1]) if upper is None else upper
        return BoxSidesConfig(lower, upper, self.sides)


def _numbers_or_channels(
    numbers: tuple[float, ...] | None, channels: tuple[int, ...] | None
) -> tuple[float, ...] | InputChannelsConfig:
    if numbers is not None:
        return numbers
    assert channels is not None
    return InputChannelsConfig(channels)


def _vectors(channels: tuple[int, ...], dim: int) -> tuple[tuple[int, ...], ...]:
    """Returns the channels of each vector."""
    return tuple(channels[first : first + dim] for first in range(0, len(channels), dim))
