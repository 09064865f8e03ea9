"""What a plan says of a step: the arithmetic of its figures, on devices that this machine has."""

import dataclasses
import importlib.util
import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, operators, training
from jaxop.training._program import Message, Program, operations
from jaxop.training.processes import check_takes_part
from jaxop.training.topology import Topology

pytestmark = pytest.mark.optax

LENGTH = 10


def looped(weights, x):
    y, _ = jax.lax.scan(lambda y, _: (jnp.tanh(y @ weights), None), x, None, length=LENGTH)
    return jnp.mean(y**2)


def unrolled(weights, x):
    for _ in range(LENGTH):
        x = jnp.tanh(x @ weights)
    return jnp.mean(x**2)


def traced(function):
    square = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    return jax.jit(jax.value_and_grad(function)).trace(square, square)


def test_a_loop_counts_as_often_as_it_runs():
    programs = {function: traced(function) for function in (looped, unrolled)}
    products = [operations(program.jaxpr.jaxpr).products for program in programs.values()]
    assert products[0] == products[1] + 2 * 64**3 == 3 * LENGTH * 2 * 64**3  # the gradient in x is not needed
    moved = []
    for program in programs.values():
        compiled = program.lower().compile()
        moved.append(Program(compiled.as_text(), 1).bytes_moved)
    assert moved[1] == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.01)
    assert moved[0] > moved[1]  # a loop keeps what it carries in memory
    assert moved[0] < 4 * moved[1]


def test_products_in_the_precision_of_float32_take_six_passes():
    def product(a, precision):
        return jnp.matmul(a, a, precision=precision)

    a = jnp.ones((8, 8))
    found = [operations(jax.make_jaxpr(product, static_argnums=1)(a, p).jaxpr) for p in (None, "high", "highest")]
    assert [work.products / work.all for work in found] == [1, 3, 6]


PROGRAM = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %s = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %y = f32[8]{0} collective-permute-done(%s)
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %y)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %i = s32[] constant(0)
  %t = (s32[], f32[8]{0}) tuple(%i, %x)
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body
  %y = f32[8]{0} get-tuple-element(%w), index=1
  %z = f32[8]{0:T(256)S(1)} copy(%y)
  %g = (f32[2,8]{1,0}, f32[]) all-gather(%z, %i), replica_groups=[4,2]<=[8], dimensions={0}
  %h = f32[2,8]{1,0} get-tuple-element(%g), index=0
  ROOT %r = f32[8]{0} reduce-scatter(%h), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}
"""


def test_messages_are_read_from_the_text_of_a_program():
    program = Program(PROGRAM, 8)
    assert program.messages == (
        Message("collective-permute", 32, 8, 3),
        Message("all-gather", 68, 2, 1),
        Message("reduce-scatter", 32, 2, 1),
    )
    assert [message.sent for message in program.messages] == [3 * 32, 34, 32]
    assert Message("all-reduce", 100, 4, 2).sent == 2 * 2 * 100 * 3 / 4
    # 3 turns that compare and permute, a copy into on-chip memory, and two messages
    assert program.bytes_moved == 3 * (32 + 32) + 32 + (4 + 68) + (64 + 32)


def small_plan(**settings):
    config = training.TrainingConfig(steps=10, batch_size=4, **settings)
    u = np.zeros((4, 64, 1), np.float32)
    batch = data.Samples(u, u, domains.box((8, 8), rule="midpoint"))[np.arange(4)]
    fno = operators.FourierNeuralOperatorConfig(1, 1, width=4, layers=1, modes=2, reference=8, projection=4)
    model = nnx.eval_shape(lambda: operators.build(fno, rngs=nnx.Rngs(0)))
    mesh = training.MeshConfig(data=1).make(4)
    return model, batch, training.plan_step(model, batch, config, mesh=mesh, chip=training.CHIPS["v5e"])


def test_the_memory_is_that_of_the_state_and_of_the_compiled_step():
    model, batch, plan = small_plan(ema_decay=0.9)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert plan.parameters == size
    assert 2 * size <= plan.optimizer <= 2 * size + 64  # the moments, and counters
    assert size <= plan.other <= size + 64  # the moving average, and the number of the step
    assert plan.batch == sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    state = plan.parameters + plan.optimizer + plan.other
    assert state + plan.batch - 1024 <= plan.arguments <= state + plan.batch  # less what the step does not read
    assert plan.total >= plan.arguments + plan.temporaries
    assert plan.messages == ()


def test_the_estimate_is_that_of_a_roofline():
    _, _, plan = small_plan()
    chip = training.CHIPS["v5e"]
    messages = (Message("all-reduce", 10**6, 4, 1),)
    plan = dataclasses.replace(plan, messages=messages, products=1e9, bytes_moved=10**6)
    assert plan.seconds == {"products": 1e9 / 197e12, "memory": 1e6 / 819e9, "messages": 1.5e6 / 200e9}
    assert plan.step_seconds == max(1e9 / 197e12, 1e6 / 819e9) + 1.5e6 / 200e9
    assert plan.bound == "messages"
    written = json.loads(json.dumps(plan.to_json()))
    assert written["step_seconds"] == plan.step_seconds
    assert written["messages"] == [{"kind": "all-reduce", "size": 10**6, "devices": 4, "count": 1, "sent": 1.5e6}]
    unknown = dataclasses.replace(plan, chip=None)
    assert (unknown.seconds, unknown.step_seconds, unknown.bound) == ({}, None, None)
    assert chip.memory == 16 * 2**30


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:4x4", "topology='v5x' is unknown: did you mean"),
        ("v5e", "topology must be a chip and the sizes of a slice, such as 'v5e:4x4', got 'v5e'"),
        ("v5e:16", "such as 'v5e:4x4', got 'v5e:16'"),
        ("cpu:4x4", "such as 'cpu:8', got 'cpu:4x4'"),
        ("cpu:4096", "needs 4096 CPU devices, but this process has"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        Topology.find(name)


def test_devices_that_are_not_there_may_be_those_of_several_hosts(unchecked):
    def mesh(client):
        devices = [SimpleNamespace(client=client, process_index=process) for process in range(4)]
        return SimpleNamespace(devices=np.array(devices))

    check_takes_part(mesh(client=object()))
    with pytest.raises(ValueError, match=r"mesh must have devices of all 1 processes, .* got .* \[0, 1, 2, 3\]"):
        check_takes_part(mesh(client=jax.devices()[0].client))


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    before = dict(os.environ)
    with pytest.raises(ImportError, match=r"needs libtpu, .* pip install 'jaxop\[plan\]'"):
        Topology.find("v5e:4x4")
    assert dict(os.environ) == before
