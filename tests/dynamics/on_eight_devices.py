"""Eight devices share the windows of a batch: what one device would compute."""

import jax
import numpy as np
import pytest

from jaxop import dynamics, training
from tests.dynamics.cases import stepper, trajectories
from tests.scale.cases import SGD

pytestmark = pytest.mark.optax


@pytest.mark.parametrize(
    ("loss", "devices"),
    [
        (dynamics.UnrolledLoss(noise=0.1), {"data": 8}),
        (dynamics.UnrolledLoss(pushforward=True), {"data": 2, "model": 2}),
    ],
)
def test_a_run_is_that_of_one_device(loss, devices, tmp_path):
    config = training.TrainingConfig(steps=3, batch_size=8, eval_every=3)
    windows = trajectories().windows(history=2, steps=3, strides=(1, 2), curriculum=((0, 2), (1, 3)))

    def fit(name, mesh):
        made = stepper(history=2, varying_dt=True, operator={"width": 64, "modes": 8})
        return training.fit(
            made,
            windows,
            {"same": windows},
            config,
            run_dir=tmp_path / name,
            loss=loss,
            mesh=mesh,
            optimizer=SGD,
            progress=False,
        )

    alone, shared = fit("alone", None), fit("shared", training.MeshConfig(**devices).make(8))
    for name, value in alone.errors.items():
        assert shared.errors[name] == pytest.approx(value, rel=1e-5)
    for ours, theirs in zip(*(jax.tree.leaves(one.state.params) for one in (shared, alone)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
