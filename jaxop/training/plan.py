"""A plan before paying: memory, messages and work of a training step, from its compiled program alone."""

import dataclasses
import math
import re
import warnings
from typing import Any, cast

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxop._platform import compiled_for
from jaxop._validation import check_type
from jaxop.training._program import Message, Program, operations
from jaxop.training.config import TrainingConfig, to_json
from jaxop.training.losses import Loss
from jaxop.training.members import MemberBatch, check_members
from jaxop.training.mesh import batch_specs, check_mesh
from jaxop.training.nodes import node_shares, share_nodes
from jaxop.training.optimizer import EvalParams, Optimizer, Tree, make_optimizer
from jaxop.training.precision import in_precision
from jaxop.training.shards import shardings, specs_like
from jaxop.training.state import init_state, split_model
from jaxop.training.step import make_step
from jaxop.training.topology import Chip


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One training step as it is compiled for some devices. Bytes, operations and messages are those of one device.

    Attributes:
        device: kind of the devices.
        mesh: number of devices along each axis.
        chip: the figures of a device; None for a CPU.
        parameters: bytes of the parameters.
        optimizer: bytes of the state of the optimiser.
        other: bytes of the rest of the state: moving average, statistics, random streams.
        batch: bytes of the batch.
        arguments: bytes of the state and the batch in the layout of the device, which pads short axes.
        temporaries: bytes of activations, gradients and all else that exists only during the step.
        total: bytes of memory that the step needs at once.
        operations: floating-point operations, including those that are repeated to save memory.
        products: operations of matrix products in bfloat16; a product in the precision of float32 counts six times.
        bytes_moved: approximate bytes between the device and its memory.
        messages: the messages between devices.
    """

    device: str
    mesh: dict[str, int]
    chip: Chip | None
    parameters: int
    optimizer: int
    other: int
    batch: int
    arguments: int
    temporaries: int
    total: int
    operations: float
    products: float
    bytes_moved: int
    messages: tuple[Message, ...]

    @property
    def seconds(self) -> dict[str, float]:
        """Least seconds of "products", "memory" and "messages" at the peak rates of the chip; {} without a chip."""
        if self.chip is None:
            return {}
        return {
            "products": self.products / self.chip.products,
            "memory": self.bytes_moved / self.chip.bandwidth,
            "messages": sum(message.sent for message in self.messages) / self.chip.links,
        }

    @property
    def step_seconds(self) -> float | None:
        """max(t_products, t_memory) + t_messages: no step is faster, unless messages travel during the computation."""
        if self.chip is None:
            return None
        seconds = self.seconds
        return max(seconds["products"], seconds["memory"]) + seconds["messages"]

    @property
    def bound(self) -> str | None:
        """What takes longest: "products", "memory" or "messages"; None without a chip."""
        return max(self.seconds, key=self.seconds.__getitem__, default=None)

    def to_json(self) -> dict[str, Any]:
        """Returns all figures as JSON."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        own["messages"] = [dataclasses.asdict(message) | {"sent": message.sent} for message in self.messages]
        own["chip"] = None if self.chip is None else dataclasses.asdict(self.chip)
        derived = {"seconds": self.seconds, "step_seconds": self.step_seconds, "bound": self.bound}
        return to_json(own | derived)  # pyright: ignore[reportReturnType]


def plan_step(
    model: nnx.Module,
    batch: Tree,
    config: TrainingConfig,
    *,
    mesh: Mesh,
    chip: Chip | None = None,
    optimizer: Optimizer | None = None,
    loss: Loss | None = None,
    eval_params: EvalParams | None = None,
) -> StepPlan:
    """Compiles the training step of `fit` for the devices of a mesh, which need not exist, and reads its program.

    The memory and the messages are those of the program. The seconds are bounds by the peak figures of the chip, not
    measurements.

    Args:
        model: the model; shapes and dtypes are enough, as in ``nnx.eval_shape(lambda: Model(..., rngs=nnx.Rngs(0)))``.
        batch: a batch, of one member if there are several, or its shapes and dtypes.
        config: see `TrainingConfig`.
        mesh: the devices, such as ``MeshConfig().make(batch_size, Topology.find("v5e:4x4").devices)``.
        chip: the figures of a device, such as ``Topology.find("v5e:4x4").chip``.
        optimizer: see `fit`.
        loss: see `fit`.
        eval_params: see `fit`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if the mesh does not divide the batch.
        MemoryError: if the compiler finds that the step does not fit into the memory of a device.

    Cost: that of compilation, in seconds to minutes.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import training
        >>> def squares(model, batch):
        ...     return ((model(batch["x"]) - batch["y"]) ** 2).mean(axis=1)
        >>> batch = {"x": np.ones((8, 3), np.float32), "y": np.ones((8, 1), np.float32)}
        >>> config = training.TrainingConfig(batch_size=8)
        >>> mesh = training.MeshConfig(data=1).make(8)
        >>> plan = training.plan_step(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), batch, config, mesh=mesh, loss=squares)
        >>> plan.parameters, plan.batch, plan.messages
        (16, 128, ())
    """
    TrainingConfig.check(config)
    check_members(model, config, None)
    check_type(mesh, "mesh", Mesh, "a jax.sharding.Mesh, such as training.MeshConfig().make(batch_size)")
    chosen = make_optimizer(config) if optimizer is None else optimizer
    graphdef, *variables = split_model(in_precision(model, config.precision), train=True)

    def initial(*variables: Tree):
        return init_state(nnx.merge(graphdef, *variables), chosen, config, eval_params=eval_params)[1]

    state = jax.eval_shape(initial, *variables)
    shared = check_mesh(mesh)
    if node_shares(shared) > 1:  # as `fit` places it
        batch = jax.eval_shape(lambda batch: share_nodes(batch, shared), batch)
    state = jax.tree.map(_placed, state, shardings(specs_like(state, state.params, mesh, members=config.members), mesh))
    placed = jax.tree.map(
        lambda spec, part: jax.tree.map(lambda leaf: _placed(leaf, NamedSharding(mesh, spec)), part),
        batch_specs(batch, mesh),
        batch,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    if config.members > 1:
        placed = MemberBatch.of([placed] * config.members)
    step = make_step(graphdef, chosen, config, loss=loss, eval_params=eval_params, mesh=shared)
    device = mesh.devices.flat[0]
    with compiled_for(device.platform):
        traced = cast(jax.stages.Wrapped, step).trace(state, placed)
        compiled = _compiled(traced.lower(), device)
    work, program = operations(traced.jaxpr.jaxpr), Program(compiled.as_text() or "", mesh.size)
    memory = compiled.memory_analysis()
    assert memory is not None  # CPUs and TPUs report it
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return StepPlan(
        device=device.device_kind,
        mesh=dict(mesh.shape),
        chip=chip,
        parameters=_bytes(state.params),
        optimizer=_bytes(state.opt_state),
        other=_bytes((state.step, state.other, state.ema)),
        batch=_bytes(placed),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        total=held + memory.temp_size_in_bytes,
        operations=work.all,
        products=work.products,
        bytes_moved=program.bytes_moved,
        messages=program.messages,
    )


def _compiled(lowered: jax.stages.Lowered, device: jax.Device) -> jax.stages.Compiled:
    try:
        with warnings.catch_warnings():
            # programs for devices that are not there can be stored in JAX's cache, but not read from it
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"\b\d[\d.]*[KMGT]\b", str(error))  # what is needed, and what there is
        what = f"needs {sizes[0]} of the {sizes[1]}" if len(sizes) > 1 else "needs more than the memory"
        raise MemoryError(
            f"the step {what} of a device ({device.device_kind}); take more devices, a smaller batch, more "
            "micro-batches (training.accumulate), training.remat, or a smaller operator."
        ) from error


def _placed(leaf: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _bytes(tree: Tree) -> int:
    """Returns the bytes of the arrays on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
