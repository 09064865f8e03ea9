"""Operators that commute with the reflections and rotations of a grid."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import accumulator, as_float, check_name
from jaxop.domains import Decomposed, Domain, Grid
from jaxop.domains.domain import as_domain
from jaxop.operators.constraint import ConstrainedOperator, ConstraintConfig, Map, check_channels
from jaxop.operators.registry import register

GROUPS = ("flips", "turns", "all")
"""Groups of a grid: reflections across axes; rotations by quarter turns; and all products of both."""

Vectors = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Motion:
    """R, a signed permutation of axes: (R x)_k = s_k x_{p_k}.

    Attributes:
        axes: p.
        signs: s, each 1 or −1.
    """

    axes: tuple[int, ...]
    signs: tuple[int, ...]

    @property
    def inverse(self) -> "Motion":
        """R⁻¹."""
        back = tuple(int(k) for k in np.argsort(self.axes))
        return Motion(back, tuple(self.signs[k] for k in back))

    def move(self, values: Float[Array, "*b n c"], grid: Grid, vectors: Vectors = ()) -> Float[Array, "*b n c"]:
        """Returns x ↦ R u(R⁻¹ x), about the centre of the box of the grid.

        R acts on the channels of vectors, and is left out for all others.
        """
        batch, channels = values.shape[:-2], values.shape[-1]
        first = len(batch)
        u = values.reshape(*batch, *grid.shape, channels)
        u = jnp.transpose(u, (*range(first), *(first + p for p in self.axes), u.ndim - 1))
        for k, sign in enumerate(self.signs):
            if sign < 0:
                u = jnp.flip(u, first + k)
                # the reflection of a circle keeps its first node
                u = jnp.roll(u, 1, first + k) if grid.axes[k].rule.is_periodic else u
        u = u.reshape(values.shape)
        order, factors = np.arange(channels), np.ones(channels)
        for vector in vectors:
            for k, channel in enumerate(vector):
                order[channel], factors[channel] = vector[self.axes[k]], self.signs[k]
        if not vectors:
            return u
        factors = jnp.asarray(factors.astype(values.dtype)).reshape((1,) * (u.ndim - 1) + (-1,))
        return u[..., order] * factors


def motions(group: str, dim: int) -> list[Motion]:
    """Returns the elements of a group of a grid in so many dimensions, the identity first.

    "flips" has 2^dim elements, "all" has dim! 2^dim, and "turns" has half of these.

    Args:
        group: one of `GROUPS`.
        dim: space dimensions.

    Raises:
        ValueError: if the group is unknown, or there are no rotations because the grid has one dimension.

    Example:
        >>> from jaxop.operators.equivariance import motions
        >>> [len(motions(group, 2)) for group in ("flips", "turns", "all")]
        [4, 4, 8]
    """
    check_name(group, "group", GROUPS)
    if group == "turns" and dim == 1:
        raise ValueError("group='turns' needs a grid of 2 or more dimensions: an interval has flips only.")
    found = []
    for axes in itertools.permutations(range(dim)):
        for signs in itertools.product((1, -1), repeat=dim):
            parity = round(float(np.linalg.det(np.eye(dim)[list(axes)]))) * int(np.prod(signs))
            is_flip = axes == tuple(range(dim))
            if group == "all" or (is_flip if group == "flips" else parity > 0):
                found.append(Motion(axes, signs))
    return found


def symmetrize(
    operator: Map,
    values: Float[Array, "*b n c"],
    domain: Domain | Decomposed,
    *,
    group: str = "all",
    input_vectors: Vectors = (),
    output_vectors: Vectors = (),
    at: Domain | Decomposed | None = None,
    initial: Float[Array, "*b c0"] | None = None,
) -> Float[Array, "*b k c_out"]:
    """1/|H| Σ_{R ∈ H} R⁻¹ G(R u), the mean of an operator over a group: it commutes with all elements of the group.

    (R u)(x) = u(R⁻¹ x) for scalar channels, and (R u)(x) = R u(R⁻¹ x) for the components of a vector. The motions keep
    the centre of the box, and so on a torus its corner, the first node of a periodic grid.

    Args:
        operator: G, called as ``operator(values, domain, at=at, initial=initial)``.
        values: u at the nodes of the grid, or a batch.
        domain: the grid, which the group must map to itself: its rules must be symmetric, and for "turns" and "all" all
            axes must have the same rule, length and number of nodes.
        group: H, one of `GROUPS`.
        input_vectors: channels of u that are the components of a vector, one tuple of dim channels for each vector.
        output_vectors: the same for the output.
        at: None, or another such grid on the same box.
        initial: the initial condition of G, which the group does not change.

    Raises:
        TypeError: if a domain is not a grid.
        ValueError: if a grid is not symmetric, or shapes do not fit.

    Cost: one call of G with a batch |H| times as large; |H| is 2, 4 or 8 for one or two dimensions ("all": 2, 8, 48).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, operators
        >>> grid = domains.interval(3, rule="midpoint")
        >>> def first(values, domain, *, at, initial):
        ...     return jnp.asarray([[[1.0], [0.0], [0.0]]]) * values
        >>> operators.symmetrize(first, jnp.ones((3, 1)), grid)[:, 0].tolist()
        [0.5, 0.0, 0.5]
    """
    values = as_float(values, "values")
    source = _symmetric(domain, group, "domain")
    target = source if at is None or at is domain else _symmetric(at, group, "at")
    if [axis.ends for axis in source.axes] != [axis.ends for axis in target.axes]:
        raise ValueError("at must be a grid on the box of the domain, because both have one centre.")
    if values.ndim not in (2, 3) or values.shape[-2] != source.size:
        raise ValueError(f"values must have shape (n, c) or (b, n, c) with n = {source.size}, got {values.shape}.")
    elements = motions(group, source.dim)
    count = len(elements)

    def repeated(array: Array) -> Array:
        return jnp.tile(array, (count, *[1] * (array.ndim - 1)))

    def for_all(place: Domain | Decomposed | None) -> Domain | Decomposed | None:
        return jax.tree.map(repeated, place) if place is not None and place.is_batched else place

    moved = jnp.stack([one.move(values, source, input_vectors) for one in elements])
    if initial is not None:
        initial = repeated(initial if values.ndim == 3 else initial[None])
    everywhere = for_all(domain)
    outputs = operator(
        moved.reshape(-1, *values.shape[-2:]),
        everywhere,
        at=everywhere if at is domain else for_all(at),
        initial=initial,
    )
    outputs = outputs.reshape(count, *values.shape[:-2], *outputs.shape[-2:])
    back = [one.inverse.move(outputs[i], target, output_vectors) for i, one in enumerate(elements)]
    return jnp.mean(jnp.stack(back).astype(accumulator(outputs.dtype)), axis=0).astype(outputs.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EquivariantOperatorConfig(ConstraintConfig):
    """The operator inside, and the group with which it commutes; see `symmetrize`.

    Attributes:
        group: one of `GROUPS`.
        input_vectors: channels of the input that are the components of a vector, dim for each vector.
        output_vectors: the same for the output.

    Raises:
        TypeError: if ``operator`` is not the config of an operator.
        ValueError: if the group is unknown or empty in this dimension, or the channels do not fit the operator.

    Example:
        A velocity and a pressure in two dimensions:

        >>> from jaxop import operators
        >>> fno = operators.FourierNeuralOperatorConfig(3, 3, 2, width=8, layers=1, modes=4, reference=8)
        >>> vectors = ((0, 1),)
        >>> operators.EquivariantOperatorConfig(fno, input_vectors=vectors, output_vectors=vectors).group
        'all'
    """

    group: str = "all"
    input_vectors: tuple[tuple[int, ...], ...] = ()
    output_vectors: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        motions(self.group, self.dim)
        for name, count in (("input_vectors", self.in_channels), ("output_vectors", self.out_channels)):
            vectors = getattr(self, name)
            if any(not isinstance(vector, tuple) or len(vector) != self.dim for vector in vectors):
                raise ValueError(f"{name} must hold tuples of dim = {self.dim} channels, got {vectors!r}.")
            if vectors:
                check_channels(tuple(itertools.chain(*vectors)), name, count)

    def check_any_nodes(self) -> None:
        """Raises ``NotImplementedError``: the grid must be known to be symmetric."""
        raise self._needs_known_nodes("an EquivariantOperator")


@register("equivariant", EquivariantOperatorConfig)
class EquivariantOperator(ConstrainedOperator[EquivariantOperatorConfig]):
    """u ↦ 1/|H| Σ_{R ∈ H} R⁻¹ G(R u): an operator G made to commute with flips and quarter turns of the grid.

    Whatever the parameters of G, turning the input turns the output, up to rounding. The training needs no copies of
    the data turned by the group.

    Args:
        config: an `EquivariantOperatorConfig`.
        rngs: random streams of the operator inside.

    Cost: see `symmetrize`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> fno = operators.FourierNeuralOperatorConfig(1, 1, 2, width=4, layers=1, modes=2, reference=8)
        >>> operator = operators.EquivariantOperator(operators.EquivariantOperatorConfig(fno), rngs=nnx.Rngs(0))
        >>> outputs = operator(jnp.ones((64, 1)), domains.box((8, 8), rule="midpoint")).reshape(8, 8)
        >>> bool(jnp.allclose(outputs, jnp.rot90(outputs), atol=1e-6))
        True
    """

    def __init__(self, config: EquivariantOperatorConfig, *, rngs: nnx.Rngs):
        self._build(EquivariantOperatorConfig.checked(config, rngs), rngs)

    def constrain(
        self,
        operator: Map,
        values: Float[Array, "*b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, "*b c0"] | None = None,
    ) -> Float[Array, "*b k c_out"]:
        """Returns the mean over the group for any map G between functions, see `symmetrize`."""
        config = self.config
        vectors = {"input_vectors": config.input_vectors, "output_vectors": config.output_vectors}
        return symmetrize(operator, values, domain, group=config.group, at=at, initial=initial, **vectors)


def _symmetric(domain: Domain | Decomposed, group: str, argument: str) -> Grid:
    """Returns a grid; raises an error unless the group maps it to itself."""
    grid = as_domain(domain, argument)
    if not isinstance(grid, Grid):
        raise TypeError(
            f"{argument} must be a grid for an operator that commutes with its flips and turns, got a "
            f"{type(grid).__name__}; build it with domains.interval or domains.box."
        )
    for k, axis in enumerate(grid.axes):
        if axis.rule.unit is None:
            raise ValueError(f"{argument} must be a symmetric grid, but the nodes of axis {k} were given: use a rule.")
        nodes, weights = axis.rule.unit(axis.size)
        mirrored, same = 1 - nodes[::-1], weights[::-1]
        if axis.rule.is_periodic:
            mirrored, same = np.roll(1 - nodes[::-1], 1) % 1, np.roll(weights[::-1], 1)
        if not (np.allclose(nodes, mirrored, atol=1e-9) and np.allclose(weights, same)):
            raise ValueError(
                f"{argument} must be a symmetric grid, but rule={axis.rule.name!r} of axis {k} is not symmetric: use "
                "another rule."
            )
    if group != "flips":
        kinds = [(axis.size, axis.rule, axis.ends[1] - axis.ends[0]) for axis in grid.axes]
        if any(kind[:2] != kinds[0][:2] or not np.isclose(kind[2], kinds[0][2]) for kind in kinds):
            listing = "; ".join(f"{size} nodes, rule {rule.name!r}, length {length:g}" for size, rule, length in kinds)
            raise ValueError(
                f"{argument} must have equal axes for group={group!r}, whose turns exchange them, got {listing}: use "
                "group='flips' on this grid."
            )
    return grid
