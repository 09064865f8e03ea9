"""Steps compiled for TPUs that this machine does not have: partition, messages and memory, not speed."""

import importlib.util
import json

import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, operators, training
from jaxop.experiments import cli

pytestmark = [
    pytest.mark.fit,
    pytest.mark.optax,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jaxop[plan]'"),
]

SMALL = {
    "darcy_fno": ["--model.width", "8", "--model.layers", "1", "--model.modes", "4", "--model.projection", "8"],
    "darcy_tno": ["--model.width", "8", "--model.layers", "1", "--model.heads", "2", "--model.feedforward", "8"],
}


@pytest.mark.parametrize("name", SMALL)
def test_a_plan_for_sixteen_chips(name, tmp_path, capsys, unchecked):
    path = tmp_path / "plan.json"
    batch = ["--training.batch-size", "32", "--data.reference", "64"]
    assert cli.main(["plan", name, "--topology", "v5e:4x4", "--json", str(path), *batch, *SMALL[name]]) == 0
    plan = json.loads(path.read_text())
    assert plan["mesh"] == {"data": 16}
    (message,) = plan["messages"]
    assert (message["kind"], message["devices"], message["count"]) == ("all-reduce", 16, 1)
    assert plan["parameters"] <= message["size"] <= plan["parameters"] + 64  # the gradient and the loss
    held = plan["parameters"] + plan["optimizer"] + plan["other"] + plan["batch"]
    assert held - 64 <= plan["arguments"] < plan["total"] < plan["chip"]["memory"]
    assert plan["step_seconds"] > max(plan["seconds"].values())
    assert f"bound by {plan['bound']}" in capsys.readouterr().out


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_the_fused_attention_of_tpus_runs_inside_the_mesh(topology):
    """Four samples of 4096 nodes on four chips: no n × n matrix, forward or backward, and one message."""
    from jaxop import nn

    attention = nn.IntegralAttentionConfig(implementation="tpu")
    sizes = {"width": 16, "heads": 2, "layers": 1, "feedforward": 16}
    config = operators.TransformerNeuralOperatorConfig(1, 1, dim=2, attention=attention, **sizes)
    model = nnx.eval_shape(lambda: operators.build(config, rngs=nnx.Rngs(0)))
    u = np.zeros((4, 64 * 64, 1), np.float32)
    batch = data.Samples(u, u, domains.box((64, 64), rule="midpoint"))[np.arange(4)]
    found = training.Topology.find(topology)
    mesh = training.MeshConfig().make(4, found.devices)
    plan = training.plan_step(model, batch, training.TrainingConfig(batch_size=4), mesh=mesh, chip=found.chip)
    assert plan.device.startswith("TPU")
    assert [message.kind for message in plan.messages] == ["all-reduce"]
    matrix = 4 * 4096**2
    assert plan.temporaries < matrix
    assert plan.operations > 2 * 3 * 2 * 2 * 8 * 4096**2 / 4  # the kernel's own operations count


def test_a_step_that_does_not_fit_is_refused_with_its_size():
    wide = operators.TransformerNeuralOperatorConfig(1, 1, width=4096, heads=2, layers=1, feedforward=2**19)
    model = nnx.eval_shape(lambda: operators.build(wide, rngs=nnx.Rngs(0)))
    u = np.zeros((4, 8, 1), np.float32)
    batch = data.Samples(u, u, domains.interval(8))[np.arange(4)]
    found = training.Topology.find("v5e:2x2")
    mesh = training.MeshConfig().make(4, found.devices)
    with pytest.raises(MemoryError, match=r"the step needs \S+G of the 15.75G of a device \(TPU v5 lite\)"):
        training.plan_step(model, batch, training.TrainingConfig(batch_size=4), mesh=mesh)


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1", "v6e:1x1"])
def test_other_slices(topology):
    found = training.Topology.find(topology)
    assert len(found.devices) == np.prod([int(size) for size in topology.split(":")[1].split("x")])
    assert {device.platform for device in found.devices} == {"tpu"}


@pytest.mark.parametrize("topology", ["v5e:4x4", "v4:2x2x4", "v5p:2x2x4", "v6e:4x4"])
@pytest.mark.parametrize("sizes", [(8, 1, 2), (2, 1, 8), (2, 4, 2), (1, 8, 2)])
def test_every_mesh_of_a_slice_is_made(topology, sizes):
    """Also one whose axes no axes of the slice have the size of."""
    devices = training.Topology.find(topology).devices
    mesh = training.MeshConfig(*sizes).make(8, devices)
    names = ("data", "model", "domain")
    expected = {name: size for name, size in zip(names, sizes, strict=True) if size > 1 or name == "data"}
    assert dict(mesh.shape) == expected
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}


def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"does not make the topology 'v5e:3x5' .* sizes are even, as in 'v5e:4x4'"):
        training.Topology.find("v5e:3x5")
