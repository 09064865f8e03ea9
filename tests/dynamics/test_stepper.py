"""A stepper is its formula, around every operator, in every form in which it is stored."""

import dataclasses
import json
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxop
from jaxop import data, dynamics, operators, training
from jaxop._config import from_dict, to_dict
from tests.dynamics.cases import (
    MESH,
    OPERATORS,
    RING,
    assert_same_bits,
    config,
    domain_of,
    field,
    stepper,
    trajectories,
)

FULL = {"channels": 2, "history": 3, "parameters": 2, "varying_dt": True, "uneven_history": True}


class Recorder(nnx.Module):
    """Keeps what it is called with and returns ones."""

    def __call__(self, values, domain, *, at=None, initial=None):
        self.values = nnx.data(values)
        return jnp.ones((*values.shape[:-1], 2))


def recorded(**options):
    made = stepper(**FULL, **options)
    made.operator = Recorder()
    return made


@pytest.mark.parametrize("output", ["delta", "state"])
def test_the_step_is_its_formula(output):
    made = recorded(output=output)
    states, dt, offsets = field(RING, 2, 3, 2), jnp.array([0.5, 2.0]), jnp.array([3.0, 1.0])
    parameters = jnp.array([[1.0, 4.0], [3.0, 8.0]])
    new = made(states, RING, dt=dt, offsets=offsets, parameters=parameters)
    mean, std, increment = (np.asarray(s[...]) for s in (made.mean, made.std, made.increment))
    scaled = (np.asarray(states) - mean) / std
    constants = (
        np.zeros((2, 16, 5)) + np.array([[2.0, 6.0, 0.0, 0.0, 2 / 3], [2.0, 6.0, np.log(4.0), 1.0, 2.0]])[:, None]
    )
    expected = np.concatenate([scaled[:, 2], scaled[:, 1], scaled[:, 0], constants], axis=-1)
    np.testing.assert_allclose(made.operator.values, expected, rtol=1e-6)
    if output == "state":
        np.testing.assert_allclose(new, np.broadcast_to(mean + std, new.shape), rtol=1e-6)
    else:
        change = increment * np.array([1.0, 4.0])[:, None, None]
        np.testing.assert_allclose(new, states[:, -1] + change, rtol=1e-6)


def test_what_is_left_out_is_the_step_of_the_training():
    made, states, parameters = recorded(), field(RING, 2, 3, 2), jnp.ones(2)
    left_out = made(states, RING, parameters=parameters), made.operator.values
    given = made(states, RING, dt=0.5, offsets=jnp.array([1.0, 0.5]), parameters=parameters), made.operator.values
    assert_same_bits(left_out, given)


def test_a_batch_is_its_samples():
    made = stepper(**FULL)
    states, parameters = field(RING, 3, 3, 2), field(RING, 3, 2)[:, 0]
    batch = jax.jit(lambda made: made(states, RING, parameters=parameters))(made)
    for i in range(3):
        np.testing.assert_allclose(made(states[i], RING, parameters=parameters[i]), batch[i], rtol=2e-5, atol=2e-6)


def test_the_step_tends_to_the_identity_of_first_order():
    made, states = stepper(varying_dt=True), field(RING, 1, 1)
    steps = 0.5 * 2.0 ** -np.arange(3, 8)
    rates = [(made(states, RING, dt=jnp.asarray(dt, jnp.float32)) - states[0]) / dt for dt in steps]
    assert all(float(jnp.max(jnp.abs(rate))) < 10 * 0.25 / 0.5 for rate in rates)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.thorough
def test_every_operator_steps_and_rolls_out(name):
    domain = domain_of(name)
    made = stepper(name, channels=2, history=2, parameters=1, varying_dt=True)
    u0, parameters = field(domain, 3, 2, 2), jnp.ones((3, 1))
    result = dynamics.rollout(made, u0, 4, domain=domain, dt=0.25, every=2, parameters=parameters)
    assert result.states.shape == (3, 2, domain.size, 2)
    assert result.is_finite.all()
    assert float(jnp.max(jnp.abs(result.states[:, -1] - u0[:, -1]))) > 1e-3
    windows = jax.tree.map(lambda leaf: leaf, _windows(made.config.prepare(domain), parameters))
    graphdef, params, other = nnx.split(made, nnx.Param, ...)

    def mean(params):
        return dynamics.UnrolledLoss()(nnx.merge(graphdef, params, other), windows)[0].mean()

    gradients = jax.tree.leaves(jax.jit(jax.grad(mean))(params))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in gradients)
    assert sum(bool((leaf != 0).any()) for leaf in gradients) > len(gradients) / 2


def _windows(domain, parameters):
    return data.WindowBatch(
        history=field(domain, 3, 2, 2),
        targets=field(domain, 3, 2, 2, seed=1),
        times=jnp.tile(jnp.array([[-0.5, 0.0, 0.5, 1.5]]), (3, 1)),
        parameters=parameters,
        domain=domain,
        weights=jnp.ones((3, 2)),
        key_data=None,
        index=jnp.arange(3),
    )


@pytest.mark.thorough
def test_half_precision_inside_float32_outside():
    half, full = (stepper(operator={"dtype": dtype}) for dtype in ("bfloat16", None))
    states = 1000.0 + field(RING, 1, 1)
    new = half(states, RING)
    assert new.dtype == jnp.float32
    assert half(states.astype(jnp.bfloat16), RING).dtype == jnp.float32
    difference = jnp.max(jnp.abs(new - full(states, RING)))
    assert 0 < difference < 0.05 * float(jnp.max(jnp.abs(new - states[-1])))
    result = dynamics.rollout(half, states.astype(jnp.bfloat16), 3, domain=RING)
    assert result.states.dtype == jnp.float32
    assert float(jnp.max(jnp.abs(result.states - result.states.astype(jnp.bfloat16).astype(jnp.float32)))) > 0


class TestDt:
    def test_a_step_that_the_stepper_does_not_see_is_said(self):
        made, states = stepper(), field(RING, 1, 1)
        with pytest.warns(UserWarning, match="dt = 1 is not the step 0.5 that the stepper was trained on"):
            other = made(states, RING, dt=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            own = made(states, RING, dt=0.5)
            jax.jit(lambda dt: made(states, RING, dt=dt))(1.0)
            dynamics.rollout(made, states, 2, domain=RING, dt=np.array([0.5, 0.5]))
        assert_same_bits(own, other)
        with pytest.warns(UserWarning, match="dt = 2 is not the step"):
            dynamics.rollout(made, states, 2, domain=RING, dt=np.array([0.5, 2.0]))

    def test_a_step_outside_those_of_the_training_is_said(self):
        made, states = stepper(varying_dt=True, dt_range=(0.5, 2.0)), field(RING, 1, 1)
        with pytest.warns(UserWarning, match=r"dt = 0\.25 lies outside the steps .*, 0\.5 to 2"):
            dynamics.rollout(made, states, 2, domain=RING, dt=0.25)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made(states, RING, dt=2.0)
            stepper(varying_dt=True)(states, RING, dt=0.01)

    def test_a_step_must_be_positive(self):
        with pytest.raises(ValueError, match=r"dt must be positive and finite, got -1\.0"):
            stepper()(field(RING, 1, 1), RING, dt=-1.0)


class TestForData:
    def test_the_windows_decide(self):
        series = trajectories(channels=2, parameters=1)
        known = dynamics.StepperConfig.for_data(series.windows(history=2), "fno", width=4)
        assert (known.history, known.channels, known.parameters) == (2, 2, 1)
        assert (known.varying_dt, known.uneven_history, known.dt_range) == (False, False, (0.5, 0.5))
        assert known.operator.width == 4
        strided = dynamics.StepperConfig.for_data(series.windows(strides=(1, 4)), "fno")
        assert (strided.varying_dt, strided.dt_range) == (True, (0.5, 2.0))
        uneven = trajectories(uneven=True)
        known = dynamics.StepperConfig.for_data(uneven, operators.CONFIGS["tno"], history=2)
        assert (known.varying_dt, known.uneven_history, known.model) == (True, True, "tno")
        chosen = dynamics.StepperConfig.for_data(uneven, "fno", history=2, varying_dt=False, uneven_history=False)
        assert chosen.operator.in_channels == 2

    @pytest.mark.usefixtures("unchecked")
    def test_a_range_of_steps_may_be_a_list(self):
        listed, given = (dataclasses.replace(config(), dt_range=one) for one in ([1, np.float32(2)], (1.0, 2.0)))
        assert hash(listed) == hash(given)
        assert to_dict(listed) == to_dict(given)

    def test_windows_of_one_stride_have_its_step(self):
        windows = trajectories().windows(strides=(4,))
        known = windows.statistics()
        config = dynamics.StepperConfig.for_data(windows, "fno", width=4, layers=1, modes=4)
        made = dynamics.make_stepper(config, known, rngs=nnx.Rngs(0))
        assert not config.varying_dt
        np.testing.assert_allclose(made.dt[...], 2.0)
        np.testing.assert_allclose(made.increment[...], 4 * known.increment)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = dynamics.rollout(made, windows.trajectories.states[:, :1], 2, domain=RING, dt=2.0)
        np.testing.assert_allclose(found.times[0], [2.0, 4.0])

    def test_what_does_not_fit_is_named(self, unchecked):
        windows = trajectories().windows(history=2)
        with pytest.raises(ValueError, match="history must be that of the windows, 2, or None, got 3"):
            dynamics.StepperConfig.for_data(windows, history=3)
        with pytest.raises(ValueError, match="operator='fnoo' is unknown: did you mean 'fno'"):
            dynamics.StepperConfig.for_data(windows, "fnoo")
        with pytest.raises(TypeError, match=r"data must be data\.Trajectories or its windows, got int"):
            dynamics.StepperConfig.for_data(7)


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"output": "detla"}, ValueError, "output='detla' is unknown: did you mean 'delta'"),
            (
                {"history": 2},
                ValueError,
                r"operator must map 2 channels \(2 · 1 of the states\) to the 1 of the state, got",
            ),
            ({"varying_dt": True, "parameters": 2}, ValueError, "1 of the step, 2 of the parameters"),
            ({"uneven_history": True}, ValueError, "uneven_history=True needs history of at least 2"),
            ({"varying_dt": 1}, TypeError, "varying_dt must be True or False, got int"),
            ({"dt_range": (2.0, 1.0)}, ValueError, r"dt_range must be two positive, finite numbers in order, got \(2"),
            ({"operator": 3}, TypeError, "operator must be the config of a neural operator.*got int"),
        ],
    )
    def test_of_the_config(self, options, error, message):
        with pytest.raises(error, match=message):
            dataclasses.replace(config(), **options)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"states": field(RING, 2, 1)},
                r"states must have shape \(h, n, c\) = \(3, n, 2\), or .*, got \(2, 16, 1\)",
            ),
            ({"dt": np.ones(3)}, r"dt must have shape \(\) or \(1,\), got \(3,\)"),
            ({"offsets": np.ones(3)}, r"offsets must have shape \(2,\) or \(1, 2\), got \(3,\)"),
            ({"offsets": [0.5, 1.0]}, r"positive numbers that decrease .*, got \[0\.5, 1\.0\]"),
            ({"offsets": [-1.0, -0.5]}, r"positive numbers that decrease .*-batch\.times"),
            ({"parameters": None}, "parameters must be the 2 constants of the trajectory, got None"),
            ({"parameters": np.ones(3)}, r"parameters must have shape \(2,\) or \(1, 2\), got \(3,\)"),
        ],
    )
    def test_of_a_call(self, arguments, message):
        known = {"states": field(RING, 3, 2), "parameters": np.ones(2)} | arguments
        with pytest.raises(ValueError, match=message):
            stepper(**FULL)(known.pop("states"), RING, **known)

    def test_of_statistics(self):
        known = trajectories().windows().statistics()
        for changes, message in (
            ({"mean": np.ones(2)}, r"statistics\.mean must have shape \(1,\), those of the channels, got \(2,\)"),
            ({"std": np.zeros(1)}, r"statistics\.std\[0\] must be positive and finite, got 0\.0"),
            ({"dt": float("nan")}, r"statistics\.dt must be positive and finite, got nan"),
        ):
            with pytest.raises(ValueError, match=message):
                dynamics.make_stepper(config(), dataclasses.replace(known, **changes), rngs=nnx.Rngs(0))
        with pytest.raises(TypeError, match=r"statistics must be data\.StepStatistics, such as"):
            dynamics.make_stepper(config(), {"mean": 0}, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="parameters must be None for a stepper without parameters"):
            stepper()(field(RING, 1, 1), RING, parameters=jnp.ones(1))


class TestStored:
    def test_config_as_json(self):
        for name in OPERATORS:
            known = config(name, history=2, varying_dt=True, dt_range=(0.5, 1.0))
            assert from_dict(dynamics.StepperConfig, json.loads(json.dumps(to_dict(known)))) == known
        with pytest.raises(ValueError, match="model='fnoo' is unknown"):
            from_dict(dynamics.StepperConfig, to_dict(config()) | {"model": "fnoo"})

    @pytest.mark.thorough
    def test_folder_in_a_process_of_its_own(self, tmp_path):
        made = stepper(**FULL)
        path = made.save(tmp_path / "stepper")
        loaded = jaxop.from_pretrained(path)
        states = field(RING, 3, 2)
        assert loaded.config == made.config
        assert_same_bits(loaded(states, RING, parameters=jnp.ones(2)), made(states, RING, parameters=jnp.ones(2)))
        assert "model(states, domain)" in (path / "card.md").read_text()
        code = f"import jaxop; print(type(jaxop.from_pretrained({str(path)!r})).__name__)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert run.stdout.strip() == "Stepper", run.stderr
        half = jaxop.from_pretrained(path, dtype="bfloat16")
        assert half.config.operator.dtypes == {"dtype": "bfloat16", "param_dtype": "bfloat16"}
        assert half.mean[...].dtype == jnp.float32

    def test_registered(self):
        assert type(operators.build(config(), rngs=nnx.Rngs(0))) is dynamics.Stepper
        assert operators.model_of(config()).name == "stepper"
        assert "stepper" not in operators.CONFIGS

    @pytest.mark.thorough
    def test_run_and_precision(self, tmp_path):
        series = trajectories()
        made, windows = stepper(), series.windows(steps=2)
        settings = {"operator": "stepper", "model": made.config}
        options = {"loss": dynamics.UnrolledLoss(noise=0.1), "settings": settings, "progress": False}
        short = training.TrainingConfig(steps=2, batch_size=4, eval_every=2, precision="bf16", remat="layers")
        result = training.fit(made, windows, {"same": windows}, short, run_dir=tmp_path, **options)
        assert result.model.config.operator.dtype == "bfloat16"
        assert set(result.errors) == {"same/loss", "same/lead_1", "same/lead_2"}
        run = training.load_run(tmp_path)
        loaded = run.model()
        assert loaded.config == made.config
        assert_same_bits(nnx.state(loaded, nnx.Param), nnx.state(result.model, nnx.Param))
        np.testing.assert_array_equal(loaded.increment[...], made.increment[...])
        assert run.config["loss"]["arguments"]["noise"] == "0.1"
        other = options | {"loss": dynamics.UnrolledLoss(noise=0.2)}
        with pytest.raises(ValueError, match=r"loss\.arguments\.noise"):
            training.fit(made, windows, {"same": windows}, short, run_dir=tmp_path, resume=True, **other)


@pytest.mark.thorough
def test_a_mesh_is_a_domain_too():
    assert stepper("tno on a mesh")(field(MESH, 1, 1), MESH).shape == (9, 1)
