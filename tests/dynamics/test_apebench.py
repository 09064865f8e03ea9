"""Steppers in scenarios of APEBench: a stand-in of its objects, and the package itself if it is installed."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxop import dynamics
from jaxop.dynamics import apebench
from tests.dynamics.cases import stepper

pytestmark = pytest.mark.optax
SHIFT = 3  # nodes that a wave travels in a step
SIZES = {"width": 4, "layers": 1, "modes": 4, "projection": 4}


class Waves:
    """A scenario of waves that travel round a circle, or of any number of channels on a torus."""

    num_spatial_dims, test_temporal_horizon, num_trjs_returned = 1, 5, 2
    num_training_steps, batch_size = 3, 4

    def __init__(self, *, dim=1, channels=1, nodes=16):
        self.num_spatial_dims = dim
        self.shape = (channels, *(nodes,) * dim)

    def get_scenario_name(self):
        return "waves"

    def get_ref_stepper(self):
        return types.SimpleNamespace(domain_extent=2.0, dt=0.25)

    def solutions(self, seed, samples, times):
        initial = np.random.default_rng(seed).standard_normal((samples, *self.shape), np.float32)
        return np.stack([np.roll(initial, SHIFT * j, axis=-1) for j in range(times)], axis=1)

    def get_train_data(self):
        return self.solutions(0, 6, 4)

    def get_test_data(self):
        return self.solutions(1, 5, 6)

    def get_optimizer(self):
        return optax.adam(1e-3)

    def perform_tests_on_rollout(self, neural_rollout, test_data_no_init):
        assert neural_rollout.shape == test_data_no_init.shape
        axes = tuple(range(2, neural_rollout.ndim))
        norms = [
            np.sqrt(np.sum(np.square(a), axis=axes)) for a in (neural_rollout - test_data_no_init, test_data_no_init)
        ]
        return {"mean_nRMSE": np.mean(norms[0] / norms[1], axis=0)[None], "ones": np.ones((1, 5))}


def exact(states, domain, *, dt=None, offsets=None, parameters=None):
    u = states[:, -1]
    return jnp.roll(u.reshape(len(u), *domain.shape, -1), SHIFT, axis=-2).reshape(u.shape)


def still(states, domain, *, dt=None, offsets=None, parameters=None):
    return states[:, -1]


@pytest.mark.parametrize(("dim", "channels"), [(1, 1), (2, 2)])
def test_solutions_keep_every_value_at_its_node_and_channel(dim, channels):
    waves = Waves(dim=dim, channels=channels, nodes=8)
    found = apebench.trajectories(waves, "test")
    assert found.states.shape == (5, 6, 8**dim, channels)
    assert found.domain.shape == (8,) * dim
    np.testing.assert_allclose(found.times, 0.25 * np.arange(6))
    np.testing.assert_allclose(found.domain.measure, 2.0**dim)
    states = waves.get_test_data()
    node = np.ravel_multi_index((3,) * (dim - 1) + (5,), found.domain.shape)
    np.testing.assert_allclose(found.domain.points[node], [0.75] * (dim - 1) + [1.25])
    for channel in range(channels):
        np.testing.assert_array_equal(found.states[2, 4, node, channel], states[(2, 4, channel, *(3,) * (dim - 1), 5)])
    assert len(apebench.trajectories(waves)) == 6


@pytest.mark.parametrize(("dim", "channels"), [(1, 1), (2, 2)])
def test_a_table_has_the_errors_that_the_scenario_computes(dim, channels):
    pandas = pytest.importorskip("pandas")
    waves = Waves(dim=dim, channels=channels, nodes=8)
    table = apebench.table([exact, still], waves, network="roll", seeds=(3, 4), batch_size=2)
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == [
        "scenario", "task", "train", "net", "seed", "scenario_kwargs",
        *(f"mean_nRMSE_{i:04d}" for i in range(1, 6)),
        *(f"ones_{i:04d}" for i in range(1, 6)),
        "sample_rollout_000", "sample_rollout_001",
    ]  # fmt: skip
    assert list(table["seed"]) == [3, 4]
    assert set(table["net"]) == {"roll"}
    errors = table[[f"mean_nRMSE_{i:04d}" for i in range(1, 6)]].to_numpy()
    assert (errors[0] == 0).all()
    states = waves.get_test_data()
    persistent = waves.perform_tests_on_rollout(np.broadcast_to(states[:, :1], states[:, 1:].shape), states[:, 1:])
    np.testing.assert_allclose(errors[1], persistent["mean_nRMSE"][0])
    np.testing.assert_array_equal(table["sample_rollout_001"][0], states[1])


@pytest.mark.thorough
def test_steppers_are_trained_in_a_scenario(tmp_path):
    pytest.importorskip("pandas")
    waves = Waves()
    table, (trained,) = apebench.train(
        waves, "fno", method="sup;2;true", seeds=(5,), run_dir=tmp_path, progress=False, **SIZES
    )
    assert (trained.config.operator.width, float(trained.dt[...])) == (4, 0.25)
    assert (list(table["seed"]), list(table["train"])) == ([5], ["sup;2;true"])
    assert [path.name for path in tmp_path.iterdir()] == ["waves-fno-5"]
    again = apebench.table([trained], waves, network="fno")
    assert again["mean_nRMSE_0005"][0] == table["mean_nRMSE_0005"][0]


@pytest.mark.parametrize(("method", "expected"), [("one", (1, 0)), ("sup;3", (3, 0)), ("sup;2;true", (2, 1))])
def test_methods_have_the_names_of_the_package(method, expected):
    assert apebench._method(method) == expected


@pytest.mark.parametrize("method", ["two", "one;2", "sup", "sup;0", "sup;2;yes", "div;3"])
def test_other_methods_are_refused(method):
    with pytest.raises(ValueError, match="method must be 'one', 'sup;STEPS'"):
        apebench._method(method)


def test_bad_arguments_say_what_is_wrong(monkeypatch, unchecked):
    waves = Waves()
    with pytest.raises(ValueError, match="subset='valid' is unknown"):
        apebench.trajectories(waves, "valid")
    monkeypatch.setattr(waves, "get_ref_stepper", lambda: types.SimpleNamespace(domain_extent=1.0), raising=False)
    with pytest.raises(ValueError, match="'waves' does not step in time"):
        apebench.trajectories(waves)
    waves = Waves(dim=2)
    waves.num_spatial_dims = 1
    with pytest.raises(ValueError, match=r"with 1 axes of a grid, got \(6, 4, 1, 16, 16\)"):
        apebench.trajectories(waves)
    monkeypatch.setitem(sys.modules, "apebench", None)
    with pytest.raises(ImportError, match=r"scenarios of APEBench needs apebench.*jaxop\[apebench\]"):
        apebench.scenario("phy_ks_cons")


@pytest.mark.thorough
def test_a_table_needs_steppers_that_start_from_one_state():
    pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="got 0 and 0 seeds"):
        apebench.table([], Waves(), network="none")
    with pytest.raises(ValueError, match="got 1 and 2 seeds"):
        apebench.table([still], Waves(), network="still", seeds=(0, 1))
    with pytest.raises(ValueError, match="takes a history of 2; train it with history=1"):
        apebench.table([stepper(history=2)], Waves(), network="fno")


def test_the_package_measures_its_own_solver_and_network(tmp_path):
    package = pytest.importorskip("apebench")
    import pandas

    with pytest.raises(ValueError, match="name='phy_ks_con' is unknown: did you mean 'phy_ks_cons'"):
        apebench.scenario("phy_ks_con")
    sizes = {"num_train_samples": 3, "train_temporal_horizon": 3, "num_test_samples": 2, "test_temporal_horizon": 4}
    options = {"num_points": 16, "num_warmup_steps": 2, "batch_size": 2, "optim_config": "adam;4;constant;1e-3"}
    scenario = apebench.scenario("phy_ks_cons", **sizes, **options)
    solver = scenario.get_ref_stepper()
    network = scenario.get_network("Conv;4;1;relu", jax.random.PRNGKey(0))

    def stepper_of(call):
        return lambda states, domain, **options: jax.vmap(lambda u: call(u[-1].T).T)(states)

    table = apebench.table([stepper_of(solver), stepper_of(network)], scenario, network="Conv")
    columns = [f"{metric}_{i:04d}" for metric in ("mean_nRMSE", "mean_correlation") for i in range(1, 5)]
    assert np.abs(table[columns[:4]].to_numpy()[0]).max() < 1e-5
    theirs = scenario.perform_tests(network, remove_singleton_axis=True)
    np.testing.assert_allclose(table[columns[:4]].to_numpy()[1], theirs["mean_nRMSE"][0], rtol=1e-5)

    ours, steppers = apebench.train(scenario, run_dir=tmp_path, progress=False, **SIZES)
    assert isinstance(steppers[0], dynamics.Stepper)
    baseline, _ = scenario(network_config="Conv;4;1;relu")
    both = package.melt_metrics(pandas.concat([ours, baseline]), ["mean_nRMSE", "mean_correlation"])
    assert set(both["net"]) == {"fno", "Conv;4;1;relu"}
    assert len(both) == 2 * 4
    assert np.isfinite(both[["mean_nRMSE", "mean_correlation"]].to_numpy()).all()
