"""The mesh axis "domain": devices that share the nodes of every function of a batch."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxop.data import Batch
from jaxop.domains import Decomposed, Domain, Shard, shard
from jaxop.domains.domain import check_domain
from jaxop.operators import ConstraintConfig, EnsembleConfig
from jaxop.operators.config import NODES_SHARED_BY, OperatorConfig
from jaxop.training.optimizer import Tree

DOMAIN = "domain"
"""Name of the mesh axis over which the nodes of a function are distributed."""


def node_shares(mesh: Mesh | None) -> int:
    """Returns the number of devices that share the nodes of a function, 1 without an axis "domain"."""
    return 1 if mesh is None else mesh.shape.get(DOMAIN, 1)


def share_nodes(batch: Tree, mesh: Mesh | None) -> Tree:
    """Returns a batch of functions with numbers of nodes that the devices divide, on domains that `shard` made.

    Values at the nodes that are added repeat those of the last node. The batch is unchanged if it is already shared, or
    if the nodes of a function are on one device.

    Raises:
        TypeError: if the batch is not a `jaxop.data.Batch`, or its domain is decomposed.
        ValueError: if a domain has fewer nodes than devices.
    """
    count = node_shares(mesh)
    if count == 1 or (isinstance(batch, Batch) and isinstance(batch.domain, Shard)):
        return batch
    if not isinstance(batch, Batch):
        raise TypeError(
            f"batch must be a data.Batch of functions, whose nodes the {count} devices of the mesh axis {DOMAIN!r} "
            f"share, got {type(batch).__name__}; use the axis 'data' alone."
        )
    at = None if batch.at is None else _shared(batch.at, count, "at")
    domain = _shared(batch.domain, count, "domain")
    inputs, targets = _repeated(batch.inputs, domain), _repeated(batch.targets, domain if at is None else at)
    return dataclasses.replace(batch, inputs=inputs, targets=targets, domain=domain, at=at)


def node_specs(batch: Batch, samples: PartitionSpec) -> Tree:
    """Returns the partition of every array of a batch of `share_nodes`, where ``samples`` is that of the samples."""
    nodes = PartitionSpec(*samples, DOMAIN)

    def one(path: tuple[jax.tree_util.GetAttrKey, ...], _: Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        name = path[0].name
        if name in ("inputs", "targets"):
            return nodes
        if name not in ("domain", "at"):
            return samples
        return nodes if getattr(batch, name).is_batched else PartitionSpec(DOMAIN)

    return jax.tree_util.tree_map_with_path(one, batch)


def check_shares_nodes(model: nnx.Module, mesh: Mesh | None) -> None:
    """Raises an error if the mesh has an axis "domain", but its devices cannot share the nodes of a function.

    Operators tell by `jaxop.operators.OperatorConfig.check_shares_nodes`. A module of the user must have an attribute
    ``shares_nodes = True``, which says that it takes the nodes of one device and a `jaxop.domains.Shard`.
    """
    if node_shares(mesh) == 1:
        return
    config = getattr(model, "config", None)
    if isinstance(config, EnsembleConfig):
        config = config.operator
    if isinstance(config, OperatorConfig | ConstraintConfig):
        config.check_shares_nodes(node_shares(mesh))
    elif not getattr(model, "shares_nodes", False):
        raise NotImplementedError(
            f"{type(model).__name__} does not say that devices can share the nodes of a function, but the mesh has an "
            f"axis {DOMAIN!r}: use the axis 'data' alone or a {NODES_SHARED_BY}, or set shares_nodes = True if "
            "the module takes the nodes of one device and a domains.Shard."
        )


def _shared(domain: Domain | Decomposed, count: int, argument: str) -> Shard:
    return shard(check_domain(domain, argument), count, DOMAIN)


def _repeated(values: Array, domain: Shard) -> Array:
    extra = domain.size - values.shape[1]
    return jnp.pad(values, [(0, 0), (0, extra), (0, 0)], mode="edge") if extra else jnp.asarray(values)
