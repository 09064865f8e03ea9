"""A rollout is a loop of steps: its bits, its derivatives, its memory, its orders, and where it ends."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, dynamics, testing
from tests.dynamics.cases import RING, assert_same_bits, domain_of, field, heat_stepper, stepper

FULL = {"channels": 2, "history": 3, "parameters": 1, "varying_dt": True, "uneven_history": True}


class TestLoop:
    def test_bits_of_a_python_loop_with_uneven_steps(self):
        made, u0, parameters = stepper(**FULL), field(RING, 2, 3, 2), jnp.ones((2, 1))
        sizes, ages = jnp.array([0.5, 0.25, 1.0, 0.5]), jnp.array([[1.5, 0.5]] * 2)
        found = dynamics.rollout(made, u0, 4, domain=RING, dt=sizes, offsets=ages[0], parameters=parameters)
        step = jax.jit(lambda *args, **options: made(*args, **options))
        states = u0
        for j, size in enumerate(sizes):
            new = step(states, RING, dt=size, offsets=ages, parameters=parameters)
            np.testing.assert_array_equal(found.states[:, j], new)
            states = jnp.concatenate([states[:, 1:], new[:, None]], axis=1)
            ages = jnp.concatenate([ages[:, 1:] + size, jnp.full((2, 1), size)], axis=1)
        np.testing.assert_allclose(found.times, [[0.5, 0.75, 1.75, 2.25]] * 2)

    def test_every_second_state(self):
        made, u0 = stepper(), field(RING, 1, 1)
        all_of_them, some = (dynamics.rollout(made, u0, 6, domain=RING, every=every) for every in (1, 2))
        np.testing.assert_array_equal(some.states, all_of_them.states[1::2])
        np.testing.assert_allclose(some.times, [1.0, 2.0, 3.0])
        assert_same_bits(some.step_times, all_of_them.step_times)

    def test_forms_of_the_initial_state(self):
        made, u0 = stepper(), field(RING, 1, 1, 1)
        results = [dynamics.rollout(made, u, 3, domain=RING) for u in (u0, u0[0], u0[0, 0])]
        assert_same_bits(results[1], results[2])
        assert_same_bits(jax.tree.map(lambda leaf: leaf[0], results[0]), results[1])

    def test_vmap_and_stacks_of_domains(self):
        made, u0 = stepper("tno on a line"), field(RING, 3, 1, 1)
        grids = [domains.from_samples(np.linspace(0, 1, 16, dtype=np.float32) ** (1 + i / 4)) for i in range(3)]
        stack = domains.stack(grids)
        batch = dynamics.rollout(made, u0, 2, domain=stack)
        mapped = jax.vmap(lambda u, grid: dynamics.rollout(made, u, 2, domain=grid))(u0, stack)
        np.testing.assert_allclose(mapped.states, batch.states, rtol=1e-5, atol=1e-5)
        for i, grid in enumerate(grids):
            one = dynamics.rollout(made, u0[i], 2, domain=grid)
            np.testing.assert_allclose(one.states, batch.states[i], rtol=1e-5, atol=1e-5)

    def test_any_function_is_a_stepper(self):
        def count(states, domain, *, dt, offsets, parameters):
            assert (dt, offsets, parameters) == (None, None, None)
            return states[:, -1] + 1

        found = dynamics.rollout(count, jnp.zeros((4, 1)), 3, domain=domains.interval(4))
        assert found.states[:, 0, 0].tolist() == found.times.tolist() == [1.0, 2.0, 3.0]

    def test_the_second_call_compiles_nothing(self):
        made, u0 = stepper(), field(RING, 1, 1)
        dynamics.rollout(made, u0, 3, domain=RING)
        other, u1 = stepper(seed=1), u0 + 1
        with testing.count_compilations() as compilations:
            dynamics.rollout(other, u1, 3, domain=RING)
        assert compilations() == 0

    def test_dropout_is_off_and_the_module_is_left_as_it_was(self):
        made = stepper("tno on scattered nodes", operator={"dropout": 0.5})
        made.train()
        cloud = domain_of("tno on scattered nodes")
        before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(made, nnx.RngCount)))
        first, second = (dynamics.rollout(made, field(cloud, 1, 1), 2, domain=cloud) for _ in range(2))
        assert_same_bits(first, second)
        assert_same_bits(before, nnx.to_pure_dict(nnx.state(made, nnx.RngCount)))
        assert not any(m.deterministic for _, m in nnx.iter_modules(made) if isinstance(m, nnx.Dropout))


class TestExactSolutions:
    @pytest.mark.parametrize("output", ["delta", "state"])
    def test_a_thousand_steps_of_the_heat_equation(self, output):
        made, x = heat_stepper(output), np.asarray(RING.points, np.float64)
        u0 = np.sin(2 * np.pi * x) + 0.5 * np.cos(4 * np.pi * x) + 1
        found = dynamics.rollout(made, jnp.asarray(u0, jnp.float32), 1000, domain=RING, every=100)
        time = np.arange(1, 11)[:, None, None] * 1e-2
        rates = (2 * np.pi) ** 2 * np.array([1, 4])
        exact = np.exp(-rates[0] * time) * np.sin(2 * np.pi * x)
        exact = exact + 0.5 * np.exp(-rates[1] * time) * np.cos(4 * np.pi * x) + 1
        np.testing.assert_allclose(found.times, time[:, 0, 0], rtol=1e-5)
        assert np.max(np.abs(found.states - exact)) < 1e-5 * np.max(np.abs(u0))

    @pytest.mark.thorough
    def test_the_order_of_the_rule(self, x64):
        """Steps by the heat kernel, as a quadrature on uneven nodes of a line, have the order of the trapezoid."""

        def heat(states, domain, **options):
            gaps = domain.points[:, None, 0] - domain.points[None, :, 0]
            kernel = jnp.exp(-(gaps**2) / 0.04) / np.sqrt(np.pi * 0.04)
            return (kernel * domain.weights[None]) @ states[:, -1]

        sizes, errors = (128, 192, 256), []
        for n in sizes:
            s = np.linspace(-1, 1, n + 1)
            line = domains.from_samples(6 * s + 0.4 * np.sin(np.pi * s) ** 2)
            spread = 0.5 + 4 * np.arange(4) * 0.01
            u0, exact = (np.exp(-(line.points**2) / w) * np.sqrt(0.5 / w) for w in (spread[0], spread[3]))
            found = dynamics.rollout(heat, u0, 3, domain=line, dt=0.01)
            errors.append(float(jnp.max(jnp.abs(found.states[-1] - exact))))
        assert errors[-1] < 1e-2
        assert testing.observed_order(sizes, errors) > 1.9


class TestDerivatives:
    @pytest.mark.thorough
    def test_gradients_are_finite_differences(self, x64):
        made = stepper(operator={"param_dtype": "float64"}, history=2, varying_dt=True)
        graphdef, params, other = nnx.split(made, nnx.Param, ...)
        u0, v = field(RING, 2, 1, dtype=np.float64), field(RING, 2, 1, seed=1, dtype=np.float64)
        key = jax.random.key(0)
        directions = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, leaf.dtype), params)

        def end(params, u0, dt):
            found = dynamics.rollout(nnx.merge(graphdef, params, other), u0, 4, domain=RING, dt=dt, every=2)
            return jnp.sum(found.states**2)

        def along(h):
            moved = jax.tree.map(lambda leaf, d: leaf + h * d, params, directions)
            return end(moved, u0 + h * v, jnp.asarray(0.5 + h))

        slopes = jax.grad(end, argnums=(0, 1, 2))(params, u0, jnp.asarray(0.5))
        product = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slopes[0], directions)), strict=True))
        product = product + jnp.vdot(slopes[1], v) + slopes[2]
        difference = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(product, difference, rtol=1e-6)

    def test_memory_does_not_grow_with_the_steps(self):
        made, u0 = stepper(), field(RING, 1, 1, 1)

        def memory(steps):
            call = jax.jit(lambda u: dynamics.rollout(made, u, steps, domain=RING, every=steps // 5))
            return call.lower(u0).compile().memory_analysis()

        small, large = memory(10), memory(1000)
        extra = 990 * (1 + 4)  # is_finite and step_times
        assert large.output_size_in_bytes - small.output_size_in_bytes == extra
        assert large.temp_size_in_bytes - small.temp_size_in_bytes <= 4 * extra

    @pytest.mark.thorough
    def test_a_gradient_keeps_states_not_activations(self):
        made, u0 = stepper(operator={"width": 32}), field(RING, 1, 1)

        def memory(steps):
            def total(u):
                return jnp.sum(dynamics.rollout(made, u, steps, domain=RING, every=steps).states)

            return jax.jit(jax.grad(total)).lower(u0).compile().memory_analysis().temp_size_in_bytes

        assert memory(200) - memory(100) < 100 * 4 * (u0.size + 16)


class TestBlowUp:
    def grow(self, states, domain, **options):
        return states[:, -1] * jnp.array([1.0, 1e10])[None, None]

    def test_step_time_sample_and_channel_are_named(self):
        u0 = jnp.ones((3, 1, 8, 2)) * jnp.array([1.0, 1e-20, 1e-5]).reshape(3, 1, 1, 1)
        grow = self.grow
        found = dynamics.rollout(grow, u0, 8, domain=domains.interval(8), dt=0.5, every=2)
        assert found.is_finite.sum(axis=1).tolist() == [3, 5, 4]
        assert found.channel.tolist() == [1, 1, 1]
        with pytest.raises(dynamics.BlowUpError, match="from step 4 on, at time 2, in channel 1 of sample 0") as caught:
            dynamics.check_finite(found)
        error = caught.value
        assert (error.step, error.time, error.sample, error.channel) == (4, 2.0, 0, 1)
        assert error.before.states.shape == (3, 1, 8, 2)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert error.before.times.tolist() == [[1.0]] * 3
        assert dynamics.check_finite(error.before) is error.before

    def test_nodes_without_weight_have_no_say(self):
        line = domains.from_nodes(jnp.linspace(0, 1, 4)[:, None], jnp.array([0.25, 0.5, 0.25, 0.0]))

        def grow(states, domain, **options):
            return states[:, -1] * jnp.array([1.0, 1.0, 1.0, 1e30])[None, :, None]

        for domain in (line, domains.stack([line, line])):
            found = dynamics.rollout(grow, jnp.ones((2, 1, 4, 1)), 3, domain=domain)
            assert not np.isfinite(found.states).all()
            assert dynamics.check_finite(found) is found

    def test_samples_that_recover_are_counted(self):
        def spike(states, domain, **options):
            u = states[:, -1]
            return jnp.where(jnp.isnan(u), 2.0, jnp.where(u == 1, jnp.nan, u))

        found = dynamics.rollout(spike, jnp.ones((2, 1, 8, 1)), 2, domain=domains.interval(8))
        with pytest.raises(dynamics.BlowUpError, match="2 samples in all do not stay finite"):
            dynamics.check_finite(found)

    def test_a_single_rollout(self):
        grow = self.grow
        found = dynamics.rollout(grow, jnp.ones((8, 2)), 5, domain=domains.interval(8), dt=0.5)
        with pytest.raises(dynamics.BlowUpError, match="from step 4 on, at time 2, in channel 1 of sample 0") as caught:
            dynamics.check_finite(found)
        np.testing.assert_array_equal(caught.value.before.states, found.states[:3])
        fine = dynamics.rollout(grow, jnp.ones((8, 2)), 3, domain=domains.interval(8), dt=0.5)
        assert dynamics.check_finite(fine) is fine
        assert fine.channel == -1


@dataclasses.dataclass
class Unhashable:
    factor: float = 1.0

    def __call__(self, states, domain, **options):
        return self.factor * states[:, -1]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"every": 4}, ValueError, r"every must divide steps = 6, got 4; valid numbers: \[1, 2, 3, 6\]"),
        ({"u0": jnp.ones(4)}, ValueError, r"u0 must have shape \(n, c\), \(h, n, c\) or \(b, h, n, c\), got \(4,\)"),
        ({"u0": jnp.ones((4, 1))}, ValueError, "u0 must have one row for each of the 16 nodes of domain, got"),
        (
            {"u0": jnp.ones((16, 1)).at[3].set(jnp.nan)},
            ValueError,
            "u0 must be finite, got nan in sample 0, state 0 of the history, node 3, channel 0",
        ),
        ({"dt": np.ones(3)}, ValueError, r"dt must be one number, \(6,\) or \(1, 6\), got shape \(3,\)"),
        ({"dt": 0.0}, ValueError, r"dt must be positive and finite, got 0\.0"),
        ({"offsets": np.ones(1)}, ValueError, r"offsets must have shape \(0,\) or \(1, 0\), got \(1,\)"),
        (
            {"u0": jnp.ones((2, 16, 1)), "offsets": [-0.5]},
            ValueError,
            r"offsets must say .* positive numbers that decrease .*, got \[-0\.5\]",
        ),
        ({"stepper": Unhashable()}, TypeError, "stepper must be hashable.* Unhashable is not"),
        ({"stepper": 3}, TypeError, r"stepper must be a dynamics\.Stepper or a function of .*, got 3"),
        (
            {"stepper": lambda states, domain, **_: states},
            ValueError,
            r"stepper must return states of shape \(1, 16, 1\)",
        ),
        ({"domain": 3}, TypeError, "domain must be a Domain, got int"),
    ],
)
def test_bad_input_is_named(options, error, message):
    known = {"stepper": stepper(), "u0": field(RING, 1), "steps": 6, "domain": RING} | options
    with pytest.raises(error, match=message):
        dynamics.rollout(known.pop("stepper"), known.pop("u0"), known.pop("steps"), **known)
