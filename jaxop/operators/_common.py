"""What the operators share: checks of configs and of `at`, the encoder layer, the call of those on grids."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import (
    accumulator,
    as_float,
    check_dtype,
    check_name,
    check_size,
    check_type,
    divisors,
    is_concrete,
)
from jaxop.domains import Decomposed, Domain, Grid, Partition, partition
from jaxop.domains.domain import as_domain
from jaxop.nn import (
    ACTIVATIONS,
    NORMS,
    EncoderLayer,
    ExpDotProductConfig,
    IntegralAttentionConfig,
    LinearConfig,
    MomentumConfig,
    MomentumLayer,
    SchwarzAttentionConfig,
    SpectralConvolution,
)
from jaxop.nn.checks import check_rngs
from jaxop.nn.encoder import check_dropout
from jaxop.nn.pointwise import check_heads
from jaxop.spectral import check_grid, check_modes

Config = TypeVar("Config")

_POSITIVE = (
    "in_channels",
    "out_channels",
    "dim",
    "width",
    "heads",
    "layers",
    "feedforward",
    "patches",
    "modes",
    "projection",
    "reference",
    "smoothing_modes",
    "vocabulary",
    "context",
    "side",
    "channels",
    "classes",
    "patch",
    "source",
    "target",
)
_NON_NEGATIVE = ("decoder_layers", "initial_channels")


@dataclasses.dataclass(frozen=True)
class GridFunctions:
    """A batch of functions on equal-weight grids of one shape, with the coordinates as last channels.

    Attributes:
        values: [u(x), x], shape (b, n, c + dim), in float32 at least: half precision merges neighbouring nodes.
        dtype: that of the caller's u.
        grid: the grid, or the first of a stack; its shape and rules are those of all.
        weight: quadrature weight of a node, a scalar, or (b,) if every sample has its own grid; float32 at least.
        is_single: whether the caller passed one function rather than a batch.
    """

    values: Float[Array, "b n c"]
    dtype: np.dtype
    grid: Grid
    weight: Array
    is_single: bool


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
    check_same(
        at,
        grid,
        "this operator gives its output on the grid of its input. Resample the input onto the grid of the output, or "
        "use the TransformerNeuralOperator with decoder layers, which evaluates anywhere.",
    )
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
    wide = accumulator(values.dtype)
    points = jnp.broadcast_to(points.astype(wide), (*values.shape[:2], dim))
    lifted = jnp.concatenate([values.astype(wide), points], axis=-1)
    return GridFunctions(lifted, values.dtype, first, weight.astype(wide), is_single)


class GridOperator(nnx.Module):
    """An operator between functions on one grid of equal weights; subclasses say what it does in `transform`."""

    config: Any

    def __call__(
        self,
        values: Float[Array, "n c"] | Float[Array, "b n c"],
        domain: Domain,
        *,
        at: Domain | None = None,
        initial: Float[Array, " c0"] | Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "n c_out"] | Float[Array, "b n c_out"]:
        """The output function on the grid of the input.

        Args:
            values: u(x_i), shape (n, c_in), or a batch (b, n, c_in).
            domain: the grid of ``values``, under rule "midpoint" or "periodic", its sides multiples of
                ``config.patches`` in operators with patches; for a batch, one for all or a stack, one for each.
            at: None or the input's grid.
            initial: must be None.

        Returns:
            Shape (n, c_out) or (b, n, c_out).

        Raises:
            TypeError: for a domain that is not a grid.
            ValueError: for shapes that do not fit, uneven weights, or patches that do not divide the grid.
            NotImplementedError: for ``at`` another than the input's grid.
        """
        functions = grid_functions(
            values, domain, at=at, initial=initial, in_channels=self.config.in_channels, dim=self.config.dim
        )
        outputs = self.transform(functions)
        return outputs[0] if functions.is_single else outputs

    def transform(self, functions: GridFunctions) -> Float[Array, "b n c_out"]:
        """The output functions at the nodes."""
        raise NotImplementedError


def split(values: Float[Array, "b n c"], cut: Partition) -> Float[Array, "b p s c"]:
    """Every function of a batch, patch by patch."""
    return jax.vmap(cut.split)(values)


def join(values: Float[Array, "b p s c"], cut: Partition) -> Float[Array, "b n c"]:
    """The inverse of `split`."""
    return jax.vmap(cut.join)(values)


def encoder_layer(
    config: Any, attention: Callable[[], Callable[..., Any]], rngs: nnx.Rngs, *, momentum: MomentumConfig | None = None
) -> EncoderLayer | MomentumLayer:
    """The layer of a config (with its momentum, or the given one), around the attention that a function makes."""
    options = {
        "dropout": config.dropout,
        "activation": config.activation,
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
        "rngs": rngs,
    }
    sizes = config.width, config.feedforward
    chosen: MomentumConfig = config.momentum if momentum is None else momentum
    if chosen.block == "none":
        return EncoderLayer(attention(), *sizes, norm=config.norm, **options)
    return MomentumLayer(attention(), *sizes, block=chosen.block, **options)


def smoothing(config: Any, rngs: nnx.Rngs) -> SpectralConvolution | None:
    """The convolution of `smooth`, if the config asks for one."""
    if config.smoothing_modes is None:
        return None
    return SpectralConvolution(
        config.out_channels,
        config.out_channels,
        config.smoothing_modes,
        reference=(config.reference,) * config.dim,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )


def smooth(convolution: SpectralConvolution | None, values: Float[Array, "b n c"], grid: Grid) -> Float[Array, "b n c"]:
    """U + SpectralConv(u), by a convolution on the whole grid; u without one."""
    if convolution is None:
        return values
    return values + jnp.moveaxis(convolution(jnp.moveaxis(values, 1, 0), grid.shape), 0, 1)


def cut_grid(grid: Grid, patches: int) -> Partition:
    """The grid in the same number of patches along each axis."""
    return partition(grid, (patches,) * grid.dim)


def check_patches(patches: int, reference: int, modes: int, dim: int) -> tuple[int, ...]:
    """The shape of a patch of the reference grid, after checking that it can carry the modes."""
    if patches < 1 or reference % patches:
        raise ValueError(
            f"patches must divide reference = {reference}, got {patches}; valid numbers: {divisors(reference)}."
        )
    shape = (reference // patches,) * dim
    check_modes(modes, shape)
    return shape


def checked(config: Any, kind: type[Config], rngs: Any) -> Config:
    """The config of a new operator, if it is of its kind and the operator can draw its parameters."""
    check_type(config, "config", kind, f"operators.{kind.__name__}(...), made by operators.from_dict from a dict")
    check_rngs(rngs)
    return config


def check_config(config: Any) -> None:
    """Refuses sizes that are not integers in their range, heads, names and rates that no layer takes."""
    for name in (*_POSITIVE, *_NON_NEGATIVE):
        size, least = getattr(config, name, None), 1 if name in _POSITIVE else 0
        if size is None and (name == "smoothing_modes" or not hasattr(config, name)):
            continue
        check_size(size, name, least)
    check_name(config.activation, "activation", ACTIVATIONS)
    if hasattr(config, "heads"):
        check_heads(config.width, config.heads)
        check_name(config.norm, "norm", NORMS)
        check_dropout(config.dropout)
    if not isinstance(getattr(config, "attention", IntegralAttentionConfig()), IntegralAttentionConfig):
        raise TypeError(
            f"attention must be nn.IntegralAttentionConfig(kernel=...), got {config.attention!r}; operators.from_dict "
            "makes a config from nested dicts."
        )
    _check_momentum(config)
    _check_schwarz(config)
    check_dtype(config.dtype, "dtype", optional=True)
    check_dtype(config.param_dtype, "param_dtype")
    if getattr(config, "smoothing_modes", None) is not None:
        check_modes(config.smoothing_modes, (config.reference,) * config.dim, argument="smoothing_modes")


def _check_schwarz(config: Any) -> None:
    schwarz = getattr(config, "schwarz", None)
    if schwarz is None:
        return
    if not isinstance(schwarz, SchwarzAttentionConfig):
        raise TypeError(f"schwarz must be nn.SchwarzAttentionConfig(...) or None, got {schwarz!r}.")
    if isinstance(schwarz.subdomains, tuple) and len(schwarz.subdomains) != config.dim:
        raise ValueError(
            f"schwarz.subdomains must be one number or dim = {config.dim}, one per axis, got {schwarz.subdomains}."
        )
    if config.decoder_layers == 0 and config.attention != IntegralAttentionConfig():
        raise ValueError(
            f"attention={config.attention!r} is not used where schwarz is given: the kernel of both levels is "
            "SchwarzAttentionConfig(kernel=...); leave attention out."
        )
    if config.momentum.block in ("H1", "R2"):
        raise ValueError(
            f"no connection is known for Schwarz attention: give block='Y' or 'H0' with schwarz, got "
            f"{config.momentum.block!r}."
        )


def _check_momentum(config: Any) -> None:
    momentum = getattr(config, "momentum", MomentumConfig())
    if not isinstance(momentum, MomentumConfig):
        raise TypeError(f"momentum must be nn.MomentumConfig(block=...), got {momentum!r}.")
    if momentum.block == "none":
        return
    if config.norm != "pre":
        raise ValueError(
            f"momentum blocks normalise before each branch: give norm='pre' with block={momentum.block!r}, got "
            f"norm={config.norm!r}."
        )
    chosen = getattr(config, "attention", IntegralAttentionConfig())
    kernel = getattr(config, "kernel", None) or chosen.kernel
    known = (ExpDotProductConfig, LinearConfig)
    if momentum.block in ("H1", "R2") and not isinstance(kernel, known):
        names = " and ".join(kind.__name__ for kind in known)
        raise ValueError(
            f"block={momentum.block!r} is made for {names}, got {type(kernel).__name__}; Y and H0 take any kernel."
        )


def check_same(at: Domain | Decomposed | None, domain: Domain | Decomposed, remedy: str) -> None:
    """Refuses an output domain other than the input's: None, the same object and an equal domain pass."""
    if at is None:
        return
    at, domain = as_domain(at, "at"), as_domain(domain, "domain")
    if at is domain:
        return
    ours, theirs = jax.tree.leaves(domain), jax.tree.leaves(at)
    same = jax.tree.structure(at) == jax.tree.structure(domain) and is_concrete(*ours, *theirs)
    if not (same and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))):
        raise NotImplementedError(
            "`at` is another domain than the input's (or cannot be compared with it under jit: pass the same object "
            f"or None), and {remedy}"
        )
