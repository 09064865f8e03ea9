"""What the operators on grids share: the call on single functions and batches, and checks of their configs."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import as_float, is_concrete
from jaxop.domains import Domain, Grid, Partition, partition
from jaxop.nn import SpectralConvolution
from jaxop.spectral import check_grid, check_modes


@dataclasses.dataclass(frozen=True)
class GridFunctions:
    """A batch of functions on equal-weight grids of one shape, with the coordinates as last channels.

    Attributes:
        values: [u(x), x], shape (b, n, c + dim).
        grid: the grid, or the first of a stack; its shape and rules are those of all.
        weight: quadrature weight of a node, a scalar, or (b,) if every sample has its own grid.
        is_single: whether the caller passed one function rather than a batch.
    """

    values: Float[Array, "b n c"]
    grid: Grid
    weight: Array
    is_single: bool

    def outputs(self, values: Float[Array, "b n c"]) -> Array:
        """Results in the caller's form: without the batch axis if there was none."""
        return values[0] if self.is_single else values


def grid_functions(
    values: Array, domain: Domain, *, at: Domain | None, initial: Array | None, in_channels: int, dim: int
) -> GridFunctions:
    """Checks the arguments of an operator's call and brings them into one form."""
    values = as_float(values, "values")
    grid = check_grid(domain, dim)
    if initial is not None:
        raise ValueError("initial must be None: only the TransformerNeuralOperator takes an initial condition.")
    if values.ndim not in (2, 3) or values.shape[-2:] != (grid.size, in_channels):
        raise ValueError(
            f"values must have shape (n, c_in) = ({grid.size}, {in_channels}), or (b, n, c_in), got {values.shape}."
        )
    _check_same(at, grid)
    is_single = values.ndim == 2
    values = values[None] if is_single else values
    if grid.is_batched:
        stack = grid.axes[0].nodes.shape[0]
        if stack != values.shape[0]:
            raise ValueError(f"domain stacks {stack} grids but values hold {values.shape[0]} functions.")
        points = jax.vmap(lambda one: one.points)(grid)
        first = jax.tree.map(lambda leaf: leaf[0], grid)
    else:
        points, first = grid.points, grid
    weight = math.prod([axis.weights[..., 0] for axis in grid.axes[1:]], start=grid.axes[0].weights[..., 0])
    points = jnp.broadcast_to(points.astype(values.dtype), (*values.shape[:2], dim))
    return GridFunctions(jnp.concatenate([values, points], axis=-1), first, weight.astype(values.dtype), is_single)


def split(values: Float[Array, "b n c"], cut: Partition) -> Float[Array, "b p s c"]:
    """Every function of a batch, patch by patch."""
    return jax.vmap(cut.split)(values)


def join(values: Float[Array, "b p s c"], cut: Partition) -> Float[Array, "b n c"]:
    """The inverse of `split`."""
    return jax.vmap(cut.join)(values)


def smooth(convolution: SpectralConvolution, values: Float[Array, "b n c"], grid: Grid) -> Float[Array, "b n c"]:
    """The smoothed functions u + SpectralConv(u), by a convolution on the whole grid."""
    return values + jnp.moveaxis(convolution(jnp.moveaxis(values, 1, 0), grid.shape), 0, 1)


def cut_grid(grid: Grid, patches: int) -> Partition:
    """The grid in the same number of patches along each axis."""
    return partition(grid, (patches,) * grid.dim)


def check_patches(patches: int, reference: int, modes: int, dim: int) -> tuple[int, ...]:
    """The shape of a patch of the reference grid, after checking that it can carry the modes."""
    if patches < 1 or reference % patches:
        divisors = [p for p in range(1, reference + 1) if reference % p == 0]
        raise ValueError(f"patches must divide reference = {reference}, got {patches}; valid numbers: {divisors}.")
    shape = (reference // patches,) * dim
    check_modes(modes, shape)
    return shape


def check_smoothing(modes: int | None, reference: int, dim: int) -> None:
    """Refuses smoothing modes that the reference grid does not carry."""
    if modes is not None:
        check_modes(modes, (reference,) * dim)


def check_sizes(config: object, names: Sequence[str]) -> None:
    """Refuses sizes below 1, by name."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")


def _check_same(at: Domain | None, grid: Grid) -> None:
    if at is None or at is grid:
        return
    ours, theirs = jax.tree.leaves(grid), jax.tree.leaves(at)
    same = jax.tree.structure(at) == jax.tree.structure(grid) and is_concrete(*ours, *theirs)
    if not (same and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))):
        raise NotImplementedError(
            "this operator gives its output on the grid of its input, and `at` is another domain (or cannot be "
            "compared under jit: pass the same object or None). Resample the input onto the grid of the output, or use "
            "the TransformerNeuralOperator, which evaluates anywhere."
        )
