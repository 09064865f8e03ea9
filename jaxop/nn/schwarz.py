"""Module of two-level Schwarz attention: inside subdomains, and between coarse tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxop._eager import in_turn
from jaxop._platform import platform
from jaxop._validation import check_name, is_concrete, is_integer
from jaxop.domains import Decomposed, Domain, Grid, box
from jaxop.domains.domain import as_domain, check_domain
from jaxop.domains.rules import MIDPOINT, PERIODIC
from jaxop.nn.attention import IntegralAttention, IntegralAttentionConfig
from jaxop.nn.kernel_configs import LINEAR, ExpDotProductConfig, KernelConfig, check_kernel_config
from jaxop.schwarz import COARSE_SPACES, PARTITIONS_OF_UNITY, Decomposition, decompose
from jaxop.schwarz.clouds import BoxCuts
from jaxop.schwarz.grids import span
from jaxop.schwarz.local_attention import coarse_averages, subdomain_attention
from jaxop.schwarz.operator import check_decomposition

_REFERENCE = 4
"""Nodes along each axis of a subdomain of the reference grid, whose cuts are at equal distances."""


@dataclasses.dataclass(frozen=True)
class SchwarzAttentionConfig:
    """Settings of the two-level attention of a layer; `make` builds the layer, `decompose` cuts a domain for it.

    Attributes:
        subdomains: number of subdomains along each axis of a grid, one per axis or one for all axes; their total number
            on scattered nodes and meshes.
        overlap: how far a subdomain extends beyond its core on each side, as a share of the side of a core, below 1.
            With two cores around a periodic axis the share is at most a half. On scattered nodes and meshes the side of
            a core is the shortest side that a cut made, in the median over the cores.
        partition: the partition of unity, ``"ramp"`` or ``"multiplicity"``.
        coarse: the coarse space, ``"partition"`` or ``"hat"``. Hats do not vanish at the ends of a grid, whatever its
            rule. None omits the coarse level.
        kernel: the settings of the kernel of both levels.
        implementation: the implementation of `jaxop.attention.integral_attention` inside a subdomain; None means
            ``"chunked"``.

    Raises:
        TypeError: if ``kernel`` is not the settings of a kernel, or ``coarse`` is not a name.
        ValueError: if the kernel is signed, a name is unknown, a number of subdomains is below 1, or the overlap is
            outside [0, 1).

    Example:
        >>> from jaxop import domains, nn, schwarz
        >>> schwarz = nn.SchwarzAttentionConfig(subdomains=4, overlap=0.25)
        >>> [schwarz.decompose(domains.box((n, n))).partition.shape for n in (32, 64)]
        [(16, 144), (16, 576)]
    """

    subdomains: int | tuple[int, ...] = 4
    overlap: float = 0.25
    partition: str = "ramp"
    coarse: str | None = "partition"
    kernel: KernelConfig = ExpDotProductConfig()
    implementation: str | None = None

    def __post_init__(self):
        check_kernel_config(self.kernel)
        if isinstance(self.kernel, LINEAR):
            raise ValueError(
                f"kernel={type(self.kernel).__name__}() is signed, but averages inside a subdomain need a positive "
                "kernel; choose one, such as ExpDotProductConfig()."
            )
        counts = self.subdomains if isinstance(self.subdomains, tuple) else (self.subdomains,)
        if not counts or any(not is_integer(p) or p < 1 for p in counts):
            raise ValueError(
                f"subdomains must be a positive integer or a tuple of one per axis, got {self.subdomains!r}."
            )
        if isinstance(self.overlap, bool) or not isinstance(self.overlap, int | float):
            raise TypeError(f"overlap must be a share in [0, 1) of the side of a core, got {self.overlap!r}.")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be a share in [0, 1) of the side of a core, got {self.overlap}.")
        check_name(self.partition, "partition", PARTITIONS_OF_UNITY)
        if not isinstance(self.coarse, str | None):
            raise TypeError(
                f"coarse must be one of {COARSE_SPACES} or None, got {type(self.coarse).__name__}; functions of your "
                "own belong to a decomposition, which you pass in place of the domain."
            )
        if self.coarse is not None:
            check_name(self.coarse, "coarse", COARSE_SPACES)

    def make(
        self,
        width: int,
        heads: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> "SchwarzAttention":
        """Returns the layer with new parameters of both levels.

        Raises:
            ValueError: if the heads do not divide the width.
        """

        def level(implementation: str | None) -> IntegralAttention:
            settings = IntegralAttentionConfig(self.kernel, implementation)
            return settings.make(width, heads, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        local = level(self.implementation)
        return SchwarzAttention(local, None if self.coarse is None else level(None))

    def decompose(self, domain: Domain | Decomposed) -> Decomposition:
        """Returns the decomposition of a domain, with the same subdomains on every grid of one box.

        Scattered nodes and meshes are cut by their own positions, so other nodes of the same region get other
        subdomains. To keep the subdomains, pass ``decomposition.on(others)``; a decomposition is returned unchanged.

        Raises:
            ValueError: if the domain is a stack, if scattered nodes or a mesh are traced by `jax.jit`, if a
                decomposition lacks the coarse space of the layer, if the numbers of subdomains are not one per axis,
                or for the reasons of `jaxop.schwarz.decompose`.
        """
        if as_domain(domain, "domain").is_batched:
            raise ValueError(
                "Schwarz attention needs one domain for all samples, got a stack; pass each sample alone, or use "
                "attention on the whole domain (schwarz=None) or a LatentNeuralOperator, which take a domain for each."
            )
        if isinstance(domain, Decomposition):
            if self.coarse is not None and domain.coarse is None:
                raise ValueError(
                    f"the domain is decomposed without the coarse space of coarse={self.coarse!r}; decompose it with "
                    "a coarse space, or set coarse=None."
                )
            return domain
        domain = check_domain(domain, "domain")
        options = {"partition": self.partition, "coarse": self.coarse}
        uneven = isinstance(domain, Grid) and domain.has_given_nodes
        if (uneven or not isinstance(domain, Grid)) and not is_concrete(*jax.tree.leaves(domain)):
            raise ValueError(
                "scattered nodes, meshes and grids of given nodes cannot be decomposed while traced: pass the "
                "decomposition, SchwarzAttentionConfig.decompose(domain), in place of the domain, to the operator and "
                "to the Samples of its training."
            )
        if not isinstance(domain, Grid):
            if isinstance(self.subdomains, tuple):
                raise ValueError(
                    f"subdomains must be one number on {type(domain).__name__}, without axes, got {self.subdomains}."
                )
            cores = decompose(domain, self.subdomains, 0.0, coarse=None)
            assert isinstance(cores.cuts, BoxCuts)
            made = np.isfinite(cores.cuts.lower) | np.isfinite(cores.cuts.upper)
            sides = np.min(cores.upper - cores.lower, axis=1, initial=np.inf, where=made)
            side = float(np.median(sides)) if cores.subdomains > 1 else 0.0
            return decompose(domain, self.subdomains, self.overlap * side, **options)
        ends = [span(axis) for axis in domain.axes]
        counts = self.subdomains if isinstance(self.subdomains, tuple) else (self.subdomains,) * domain.dim
        if len(counts) != domain.dim:
            raise ValueError(f"subdomains must be one number or {domain.dim}, one per axis of the grid, got {counts}.")
        reference = box(
            [count * _REFERENCE for count in counts],
            lower=[lower for lower, _ in ends],
            upper=[upper for _, upper in ends],
            rule=[PERIODIC if axis.rule.is_periodic else MIDPOINT for axis in domain.axes],
        )
        overlaps = [
            float(self.overlap * (upper - lower) / count) for count, (lower, upper) in zip(counts, ends, strict=True)
        ]
        cut = decompose(reference, counts, overlaps, **options)
        return cut.on(domain)


class SchwarzAttention(nnx.Module):
    """u ↦ O A(u) + Φ A₀(ū): attention A inside overlapping subdomains, and attention A₀ between coarse averages ū.

    A is `jaxop.schwarz.subdomain_attention`. ū are the averages of u against the coarse functions φ_I, tokens with the
    quadrature weights ∫ φ_I. Φ interpolates the results of A₀ to the nodes. Each level has its own Q, K, V and O.

    Args:
        local: Q, K, V, O, kernel and implementation of A; the kernel must be positive.
        coarse: A₀; None omits the coarse tokens.

    Cost: O(n s d + n0² d + n d²) for subdomains of s nodes and n0 coarse tokens, linear in n if s and n0 are fixed.

    Source: Köhler, Rheinbach, "Hierarchical Attention via Domain Decomposition", arXiv:2606.18525. Entries that depend
        on the input are our addition.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, nn, schwarz
        >>> rngs = nnx.Rngs(0)
        >>> layer = nn.SchwarzAttention(nn.IntegralAttention(8, 2, rngs=rngs), nn.IntegralAttention(8, 2, rngs=rngs))
        >>> cut = schwarz.decompose(domains.interval(64), 4, 2, partition="ramp", coarse="partition")
        >>> layer(jnp.ones((3, 64, 8)), cut).shape
        (3, 64, 8)
    """

    def __init__(self, local: IntegralAttention, coarse: IntegralAttention | None = None):
        for name, level in (("local", local), ("coarse", coarse)):
            if not isinstance(level, IntegralAttention) and not (name == "coarse" and level is None):
                raise TypeError(
                    f"{name} must be an nn.IntegralAttention, got {level!r}; SchwarzAttentionConfig().make(width, "
                    "heads, rngs=rngs) builds the layer from sizes."
                )
        self.local = local
        self.coarse = coarse

    def __call__(self, x: Float[Array, "b n d"], decomposition: Decomposition) -> Float[Array, "b n d"]:
        """Attends, for each of b samples on the decomposed domain.

        Args:
            x: samples of u, (b, n, d).
            decomposition: the decomposition of their domain, with a coarse space if the layer has two levels.

        Raises:
            TypeError: if the domain is not decomposed.
            ValueError: if values do not fit the decomposition.
        """
        check_decomposition(decomposition)
        if x.ndim != 3 or x.shape[1] != decomposition.domain.size:
            raise ValueError(
                f"x must have shape (b, n, d) with n = {decomposition.domain.size} nodes, got {x.shape}; for a single "
                "sample pass x[None]."
            )
        query, key, value = self.local.project(x, x)
        kernel, how = self.local.kernel.value, self.local.implementation

        def local(query: Array, key: Array, value: Array) -> Array:
            return subdomain_attention(query, key, value, decomposition, kernel=kernel, implementation=how)

        if platform() == "cpu":  # the scores of one sample stay in the cache
            mixed = in_turn(lambda arrays: local(*arrays), (query, key, value))
        else:
            mixed = jax.vmap(local)(query, key, value)
        out = self.local.output(mixed.reshape(x.shape))
        if self.coarse is None:
            return out
        tokens, weights = jax.vmap(lambda u: coarse_averages(u, decomposition), out_axes=(0, None))(x)
        return out + jax.vmap(decomposition.refine)(self.coarse(tokens, weights))
