"""Eight devices train the members of an ensemble as one device does, and each member as a run of its own."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, operators, testing, training
from jaxop.training.mesh import check_mesh, distribute
from tests.scale.cases import SGD, build, configs, fields, square

pytestmark = [pytest.mark.optax, pytest.mark.thorough]

MEMBERS, STEPS = 2, 3
SETTINGS = training.TrainingConfig(steps=STEPS, batch_size=8, accumulate=2, members=MEMBERS, ema_decay=0.9)
WIDE = configs(width=128, feedforward=512, side=4)["tno"]  # with arrays that the axis "model" divides
DOMAIN = domains.box((11, 6))  # 66 nodes, which four devices do not divide
MESHES = {
    "samples": (configs(side=4)["fno"], square(4), {"data": 4}),
    "copies of the state": (WIDE, square(4), {"data": 2, "model": 2}),
    "nodes": (configs()["tno"], DOMAIN, {"data": 2, "domain": 4}),
}


def trained(config, samples, devices, settings=SETTINGS):
    devices = check_mesh(devices)
    graphdef, state = training.init_state(build(config), SGD, settings, mesh=devices)

    def batch(step):
        each = [data.batch_indices(16, 8, seed=seed, step=step) for seed in training.member_seeds(settings)]
        placed = [distribute(samples[items], devices) for items in each]
        return training.MemberBatch.of(placed) if settings.members > 1 else placed[0]

    batches = [batch(step) for step in range(STEPS)]
    step = training.make_step(graphdef, SGD, settings, mesh=devices).lower(state, batches[0]).compile()
    rows = []
    for one in batches:
        state, metrics = step(state, one)
        rows.append((metrics["loss"], metrics["grad_norm"]))
    return np.asarray(jax.device_get(rows)), state, step


def assert_close(ours, theirs):
    pairs = jax.device_get((ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *pairs)


@pytest.mark.parametrize("name", MESHES)
def test_devices_share_what_they_share_of_one_model(name):
    config, domain, sizes = MESHES[name]
    samples, devices = fields(domain), training.MeshConfig(**sizes).make(4)
    rows, state, step = trained(config, samples, devices)
    expected, alone, _ = trained(config, samples, None)
    np.testing.assert_allclose(rows, expected, rtol=1e-4)
    assert_close(state.params, alone.params)
    assert_close(state.ema, alone.ema)
    single = trained(config, samples, devices, dataclasses.replace(SETTINGS, members=1))[2]
    ours, theirs = testing.collectives(step), testing.collectives(single)
    assert ours.keys() == theirs.keys()
    for kind in theirs:  # the messages of all members travel together
        assert sum(ours[kind]) <= MEMBERS * sum(theirs[kind]) + 64
    if "model" in sizes:
        divided = [leaf for leaf in jax.tree.leaves(state.params) if "model" in leaf.sharding.spec]
        assert divided
        assert all(leaf.sharding.spec[0] is None and leaf.shape[0] == MEMBERS for leaf in divided)


@pytest.mark.parametrize("name", MESHES)
def test_a_run_is_resumed_on_another_mesh(name, tmp_path):
    config, domain, sizes = MESHES[name]
    samples, devices = fields(domain), training.MeshConfig(**sizes).make(4)
    settings = dataclasses.replace(SETTINGS, checkpoint_every=2, eval_every=3, learning_rate=1e-3)
    first = training.fit(
        build(config), samples, {"same": samples}, settings, run_dir=tmp_path, progress=False, mesh=devices
    )
    assert isinstance(first.model, operators.Ensemble)
    errors = training.evaluate_ensemble(first.model, samples, batch_size=8, mesh=devices)
    assert float(errors.l2.mean()) == pytest.approx(first.errors["same/l2"], rel=1e-4)
    longer = dataclasses.replace(settings, time_limit_s=60.0)
    again = training.fit(
        build(config), samples, {"same": samples}, longer, run_dir=tmp_path, progress=False, resume=True
    )
    assert_close(again.state.params, first.state.params)
    loaded = training.load_run(tmp_path).restore(build(config), checkpoint="last", mesh=devices)
    assert_close(nnx.to_pure_dict(nnx.state(loaded, nnx.Param)), nnx.to_pure_dict(nnx.state(again.model, nnx.Param)))
    alone = training.evaluate_ensemble(again.model, samples)
    for name in ("l2", "crps", "spread", "ranks"):
        np.testing.assert_allclose(getattr(errors, name), getattr(alone, name), rtol=1e-3, atol=1e-3)
