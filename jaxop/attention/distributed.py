"""Attention between whole arrays that the devices of a mesh share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxop._eager import compiled
from jaxop._validation import check_name, check_type
from jaxop.attention.closing import is_closed
from jaxop.attention.integral import integral_attention
from jaxop.attention.operands import Operands, check_operands
from jaxop.domains.measure import uniform_weights
from jaxop.kernels import Kernel, PerHead


def ring_attention(
    query: Float[Array, "n h d"],
    key: Float[Array, "m h d"],
    value: Float[Array, "m h c"],
    weights: Float[Array, " m"] | None = None,
    *,
    mesh: Mesh,
    axis_name: str = "domain",
    kernel: Kernel | PerHead | None = None,
    normalize: bool = True,
    mask: Bool[Array, " m"] | Bool[Array, "n m"] | Bool[Array, "h n m"] | None = None,
    is_causal: bool = False,
) -> Float[Array, "n h c"]:
    """A_i = Σ_j w_j k(q_i, k_j) v_j / Σ_j w_j k(q_i, k_j), where the devices of a mesh share the nodes.

    This is `integral_attention` of whole arrays with ``axis_name``, inside a `jax.shard_map` of its own: the arrays are
    divided among the devices of one axis of the mesh, and the result stays divided. If the devices do not divide the
    number of nodes, the last node is repeated with weight 0, and its rows are removed from the result.

    Args:
        query: q_i, (n, h, d).
        key: k_j, (m, h, d).
        value: v_j, (m, h, c).
        weights: quadrature weights, (m,); None means 1/m.
        mesh: the devices.
        axis_name: the axis of the mesh that shares the nodes. Along its other axes the work is repeated.
        kernel: any kernel of `jaxop.kernels`, or `jaxop.kernels.PerHead`; None means ``ExpDotProduct()``.
        normalize: whether to divide by ∫ k dy. A signed kernel needs False.
        mask: True where a query may see a key: (m,), (n, m) or (h, n, m).
        is_causal: whether query i sees only keys j ≤ i; needs n = m.

    Returns:
        A of shape (n, h, c), in the dtype of ``value``.

    Raises:
        TypeError: if ``mesh`` is not a mesh, and for the reasons of `integral_attention`.
        ValueError: if the mesh does not have the axis, if it has more devices than there are queries or keys, and for
            the reasons of `integral_attention`.
        NotImplementedError: if the kernel has an ``epsilon`` and the axis has more than one device.

    Cost: on each of p devices 1/p of the time of "chunked" `integral_attention`, and memory O((n + m) / p); see there
        for messages. Inside `jax.jit`, sizes that p does not divide cost copies between devices: choose multiples of p.

    Source: Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context",
        arXiv:2310.01889, here for any kernel and with quadrature weights.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxop import attention, domains
        >>> mesh = jax.make_mesh((jax.device_count(),), ("domain",))
        >>> domain = domains.interval(32)
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 32, 2, 4))
        >>> shared = attention.ring_attention(q, k, v, domain.weights, mesh=mesh)
        >>> whole = attention.integral_attention(q, k, v, domain.weights)
        >>> bool(jnp.allclose(shared, whole, atol=1e-5))
        True
    """
    check_type(mesh, "mesh", Mesh, "a jax.sharding.Mesh, such as jax.make_mesh((8,), ('domain',))")
    check_name(axis_name, "axis_name", mesh.axis_names)
    operands = check_operands(query, key, value, weights, kernel=kernel, mask=mask, is_causal=is_causal)
    count = mesh.shape[axis_name]
    for name, size in (("query", operands.queries), ("key", operands.keys)):
        if size < count:
            raise ValueError(
                f"{name} has {size} nodes for the {count} devices of the mesh axis {axis_name!r}; use at most {size} "
                "devices."
            )
    attend = _attend_program if is_closed(operands.kernel) else _attend
    return attend(operands, normalize, mesh, axis_name)


def _attend(operands: Operands, normalize: bool, mesh: Mesh, axis_name: str) -> Array:
    arrays, specs = _divided(operands, mesh.shape[axis_name], axis_name)

    def local(kernel: Kernel | PerHead, arrays: dict[str, Any]) -> Array:
        options = {"normalize": normalize, "is_causal": operands.is_causal, "axis_name": axis_name}
        return integral_attention(**arrays, kernel=kernel, **options)

    # inside `jax.set_mesh` of explicit axes, every mesh must be that one, and arguments must be divided already
    is_explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    if is_explicit:
        arrays = {name: jax.sharding.reshard(array, specs[name]) for name, array in arrays.items()}
    shared = jax.shard_map(
        local,
        mesh=None if is_explicit else Mesh(mesh.devices, mesh.axis_names),
        in_specs=(PartitionSpec(), specs),
        out_specs=PartitionSpec(axis_name),
        check_vma=False,
    )
    result = shared(operands.kernel, arrays)
    if is_explicit and len(result) > operands.queries:
        result = jax.sharding.reshard(result, PartitionSpec())
    return result[: operands.queries]


_attend_program = compiled(static=("normalize", "mesh", "axis_name"))(_attend)


def _divided(operands: Operands, count: int, axis_name: str) -> tuple[dict[str, Array], dict[str, PartitionSpec]]:
    """Returns the arrays by argument with numbers of nodes that the devices divide, and their partitions."""
    rows, columns = (-size % count for size in (operands.queries, operands.keys))
    weights = uniform_weights(operands.keys, operands.dtype) if operands.weights is None else operands.weights
    arrays = {
        "query": _repeated(operands.query, rows),
        "key": _repeated(operands.key, columns),
        "value": _repeated(operands.value, columns),
        "weights": jnp.pad(weights, (0, columns)) if columns else weights,
    }
    specs = dict.fromkeys(arrays, PartitionSpec(axis_name))
    mask = operands.mask
    if mask is None:
        return arrays, specs
    is_of_keys = mask.ndim == 1
    padding = [(0, columns)] if is_of_keys else [(0, 0)] * (mask.ndim - 2) + [(0, rows), (0, columns)]
    spec = PartitionSpec(axis_name) if is_of_keys else PartitionSpec(*[None] * (mask.ndim - 2), axis_name)
    return arrays | {"mask": jnp.pad(mask, padding)}, specs | {"mask": spec}


def _repeated(array: ArrayLike, extra: int) -> Array:
    # not zeros, because many kernels are singular at 0
    return jnp.pad(array, [(0, extra), (0, 0), (0, 0)], mode="edge") if extra else jnp.asarray(array)
