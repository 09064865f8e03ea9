"""Operators of the study, at about equal numbers of parameters, and networks of APEBench in the same steppers."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxop import data, domains, dynamics, nn
from jaxop.dynamics import apebench
from studies.results import is_installed

AnyDomain = domains.Domain | domains.Decomposed

LATENT = {"heads": 4, "attention": nn.LatentAttentionConfig(latents=32, scale=1.0)}
LINE: dict[str, dict[str, Any]] = {
    "fno": {"width": 18, "layers": 4, "modes": 12, "projection": 32},
    "tno": {"width": 32, "layers": 4, "heads": 4, "feedforward": 56},
    "fano": {"width": 12, "layers": 4, "heads": 2, "feedforward": 24},
    "latent": LATENT | {"width": 32, "layers": 4, "feedforward": 48},
    "latent, spectral": LATENT
    | {"width": 20, "layers": 3, "feedforward": 40, "local": nn.SpectralIntegralConfig(modes=8)},
}
"""Choices of operators with about 32 000 parameters in one dimension."""

PLANE: dict[str, dict[str, Any]] = {
    "fno": {"width": 8, "layers": 4, "modes": 12, "projection": 32},
    "tno": {"width": 64, "layers": 4, "heads": 4, "feedforward": 160},
    "fano": {"width": 8, "layers": 3, "heads": 2, "feedforward": 16},
    "latent": LATENT | {"width": 64, "layers": 4, "feedforward": 160},
    "latent, spectral": LATENT
    | {"width": 16, "layers": 2, "feedforward": 32, "local": nn.SpectralIntegralConfig(modes=8)},
}
"""Choices of operators with about 150 000 parameters in two dimensions."""

TORUS = ", torus"
"""Ending of the names of operators whose coordinates are those of the torus in a space of twice the dimension."""

ON_TORUS = ("tno", "latent")

APEBENCH = "apebench "
"""Beginning of the names of APEBench's networks."""

NETWORKS = {
    f"{APEBENCH}conv": ("Conv;34;10;relu", "Conv;43;10;relu"),
    f"{APEBENCH}fno": ("FNO;12;18;4;gelu", "FNO;12;8;4;gelu"),
}
"""Configurations of APEBench's networks in one and two dimensions, of about as many parameters."""

NAMES = (*LINE, *(name + TORUS for name in ON_TORUS), *NETWORKS)


def available(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names without those that need a package that is not installed."""
    return tuple(name for name in names if not name.startswith(APEBENCH) or is_installed("apebench"))


def embedded(name: str, trajectories: data.Trajectories) -> data.Trajectories:
    """Returns trajectories on the domain of an operator: their grid, or its nodes on the torus.

    The torus of side 1 is the set of points (cos 2πx_j, sin 2πx_j)/2π in a space of twice the dimension.
    """
    if not name.endswith(TORUS):
        return trajectories
    grid: Any = trajectories.domain
    angles = 2 * np.pi * np.asarray(grid.points, np.float64)
    points = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / (2 * np.pi)
    torus = domains.from_nodes(points.astype(np.float32), np.asarray(grid.weights))
    return dataclasses.replace(trajectories, domain=torus)


def stepper(
    name: str,
    windows: data.Windows,
    statistics: data.StepStatistics,
    seed: int,
    *,
    output: str = "delta",
    others: Sequence[AnyDomain] = (),
    **changes: Any,
) -> dynamics.Stepper:
    """Returns the untrained stepper of a name.

    Args:
        name: one of `NAMES`.
        windows: of the training set.
        statistics: of the training set.
        seed: of the parameters.
        output: what the operator computes.
        others: further grids that it must run on.
        changes: choices that replace those of the study.
    """
    dim = cast(data.Trajectories, windows.trajectories).dim // (2 if name.endswith(TORUS) else 1)
    sizes, rngs = LINE if dim == 1 else PLANE, nnx.Rngs(seed)
    kind = "fno" if name in NETWORKS else name.removesuffix(TORUS)
    choices = sizes[kind] | changes
    config = dynamics.StepperConfig.for_data(windows, kind.split(",")[0], output=output, others=others, **choices)
    if name not in NETWORKS:
        return dynamics.make_stepper(config, statistics, rngs=rngs)
    # the same map around another network, whose input has the same channels
    small = dataclasses.replace(config, operator=dataclasses.replace(config.operator, width=1, layers=1))
    made = dynamics.make_stepper(small, statistics, rngs=rngs)
    made.operator = cast(Any, Network(NETWORKS[name][dim - 1], config.input_channels, config.channels, dim, seed))
    return made


class Network(nnx.Module):
    """A network of APEBench, called as an operator on a periodic grid."""

    def __init__(self, name: str, in_channels: int, out_channels: int, dim: int, seed: int):
        if (in_channels, out_channels) != (1, 1):
            raise ValueError(f"networks of APEBench see one channel of the state here, got {in_channels} channels.")
        scenario = apebench.scenario("phy_kolm_flow" if dim > 1 else "phy_ks_cons", num_spatial_dims=dim)
        network = scenario.get_network(name, jax.random.PRNGKey(seed))
        arrays, self.rest = equinox.partition(network, equinox.is_array)
        leaves, self.structure = jax.tree.flatten(arrays)
        self.leaves = nnx.List([nnx.Param(leaf) for leaf in leaves])

    def __call__(self, values: jax.Array, domain: domains.Grid) -> jax.Array:
        """Returns the output channels at the nodes."""
        leaves = [leaf[...] for leaf in self.leaves]
        network: Any = equinox.combine(jax.tree.unflatten(self.structure, leaves), self.rest)
        batch, nodes, channels = values.shape
        grids = jnp.moveaxis(values, -1, 1).reshape(batch, channels, *domain.shape)
        return jnp.moveaxis(jax.vmap(network)(grids).reshape(batch, -1, nodes), 1, -1)
