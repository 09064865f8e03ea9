"""Losses along a stepper's own predictions: where gradients are cut, what noise moves, and what memory they take."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import data, domains, dynamics, training
from tests.dynamics.cases import RING, assert_same_bits, domain_of, field, heat_stepper, stepper, trajectories

LEADS = 3


@pytest.fixture(scope="module")
def windows():
    return trajectories(channels=2, parameters=1).windows(history=2, steps=LEADS, strides=(1, 2))


@pytest.fixture(scope="module")
def model():
    return stepper(channels=2, history=2, parameters=1, varying_dt=True)


def at_step(windows, count=3, **options):
    return windows.at_step(np.arange(count) * 3, seed=0, **({"step": 0} | options))


def slopes(loss, model, batch):
    """The mean loss with its metrics, and its gradient in the parameters of a model."""
    graphdef, params, other = nnx.split(model, nnx.Param, ...)
    value, gradient = _slopes(loss, graphdef, params, other, batch)
    return value, nnx.to_pure_dict(gradient)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _slopes(loss, graphdef, params, other, batch):
    def mean(params):
        losses, metrics = loss(nnx.merge(graphdef, params, other), batch)
        return losses.mean(), metrics

    return jax.value_and_grad(mean, has_aux=True)(params)


def assert_close(ours, theirs, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b))) + 1e-12)


def one_step(model, states, batch, j, ages):
    """The step to target j and its relative error, by hand."""
    dt = batch.times[:, 2 + j] - batch.times[:, 1 + j]
    new = model(states, batch.domain, dt=dt, offsets=ages, parameters=batch.parameters)
    return new, training.relative_norms(new, batch.targets[:, j], batch.domain)


@dataclasses.dataclass(frozen=True)
class ByHand:
    """The mean of the one-step errors at the targets chosen, along states that are detached after the steps given."""

    detached: tuple[int, ...]
    chosen: tuple[int, ...]

    def __call__(self, model, batch):
        states, ages, found = batch.history, batch.times[:, 1:2] - batch.times[:, :1], []
        for j in range(batch.targets.shape[1]):
            new, errors = one_step(model, states, batch, j, ages)
            found.append(errors)
            states = jnp.concatenate([states[:, 1:], new[:, None]], axis=1)
            ages = jnp.broadcast_to(batch.times[:, 2 + j : 3 + j] - batch.times[:, 1 + j : 2 + j], ages.shape)
            if j in self.detached:
                states = jax.lax.stop_gradient(states)
        return sum(found[j] for j in self.chosen) / len(self.chosen), {}


class TestGradients:
    @pytest.mark.sample(1)
    @pytest.mark.parametrize(("cut", "detached"), [(0, ()), (1, (0, 1, 2)), (2, (1,))])
    @pytest.mark.thorough
    def test_a_cut_is_what_it_says(self, cut, detached, windows, model):
        batch = at_step(windows)
        (value, _), gradient = slopes(dynamics.UnrolledLoss(cut=cut), model, batch)
        (expected, _), right = slopes(ByHand(detached, tuple(range(LEADS))), model, batch)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert_close(gradient, right)
        if cut != 0:
            _, uncut = slopes(dynamics.UnrolledLoss(), model, batch)
            pairs = zip(*map(jax.tree.leaves, (gradient, uncut)), strict=True)
            assert max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) > 1e-4

    @pytest.mark.thorough
    def test_pushforward_is_the_last_step_from_a_detached_state(self, windows, model):
        batch = at_step(windows)
        (value, metrics), gradient = slopes(dynamics.UnrolledLoss(pushforward=True), model, batch)
        (expected, _), right = slopes(ByHand(tuple(range(LEADS)), (LEADS - 1,)), model, batch)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(metrics[f"lead_{LEADS}"].mean(), expected, rtol=1e-6)
        assert_close(gradient, right)
        (_, plain), _ = slopes(dynamics.UnrolledLoss(), model, batch)
        assert_close(metrics, plain)

    def test_one_target_is_one_step(self, model):
        windows = trajectories(channels=2, parameters=1).windows(history=2)
        batch = at_step(windows)
        for loss in (dynamics.UnrolledLoss(), dynamics.UnrolledLoss(pushforward=True)):
            assert_close(slopes(loss, model, batch)[1], slopes(ByHand((), (0,)), model, batch)[1], rtol=1e-6)

    def test_a_checkpoint_changes_no_gradient(self, windows, model):
        batch = at_step(windows)
        kept, again = (slopes(dynamics.UnrolledLoss(remat=remat), model, batch) for remat in (False, True))
        assert_close(again, kept, rtol=1e-6)

    @pytest.mark.thorough
    def test_they_are_finite_differences(self, x64):
        made = stepper(operator={"param_dtype": "float64"})
        batch = at_step(trajectories(dtype=np.float64).windows(steps=3))
        loss = dynamics.UnrolledLoss(noise=0.1, norm="h1", weights=(1.0, 0.0, 2.0))
        graphdef, params, other = nnx.split(made, nnx.Param, ...)
        directions = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype), params)

        def along(h):
            moved = jax.tree.map(lambda leaf, d: leaf + h * d, params, directions)
            return _slopes(loss, graphdef, moved, other, batch)

        pairs = zip(*map(jax.tree.leaves, (along(0.0)[1], directions)), strict=True)
        product = sum(jnp.vdot(a, b) for a, b in pairs)
        difference = (along(1e-5)[0][0] - along(-1e-5)[0][0]) / 2e-5
        np.testing.assert_allclose(product, difference, rtol=1e-6)


class TestWeights:
    def test_the_loss_is_the_weighted_mean(self, windows, model):
        batch = at_step(windows)
        (value, metrics), _ = slopes(dynamics.UnrolledLoss(weights=(1.0, 3.0, 0.0)), model, batch)
        np.testing.assert_allclose(value, (metrics["lead_1"] + 3 * metrics["lead_2"]).mean() / 4, rtol=1e-6)
        assert np.isnan(metrics["lead_3"]).all()

    @pytest.mark.sample(1)
    @pytest.mark.parametrize("pushforward", [False, True])
    def test_a_curriculum_is_a_shorter_window(self, pushforward, model):
        series, loss = trajectories(channels=2, parameters=1), dynamics.UnrolledLoss(pushforward=pushforward)
        long = series.windows(history=2, steps=3, curriculum=((0, 2), (5, 3)))
        short = series.windows(history=2, steps=2)
        rows = np.array([0, 1, 2])
        (value, metrics), gradient = slopes(loss, model, long.at_step(rows, seed=0, step=4))
        (expected, _), right = slopes(loss, model, short.at_step(rows, seed=0, step=4))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert_close(gradient, right, rtol=1e-5)
        assert np.isnan(metrics["lead_3"]).all()
        later = slopes(loss, model, long.at_step(rows, seed=0, step=5))[0][1]
        assert np.isfinite(later["lead_3"]).all()

    def test_targets_without_weight_are_not_computed(self):
        calls = []

        def counted(states, domain, **options):
            jax.debug.callback(lambda: calls.append(1))
            return states[:, -1]

        batch = trajectories().windows(steps=4)[np.arange(2)]
        for weights, expected in (((1.0, 0.0, 0.0, 0.0), 1), ((0.0, 1.0, 1.0, 0.0), 3)):
            calls.clear()
            jax.jit(dynamics.UnrolledLoss(weights=weights, remat=False), static_argnums=0)(counted, batch)
            jax.effects_barrier()
            assert len(calls) == expected

    def test_an_exact_stepper_has_no_loss(self):
        made = heat_stepper("delta")
        x = np.asarray(RING.points)[None, None]
        times = 1e-4 * np.arange(6)
        u = np.exp(-((2 * np.pi) ** 2) * times)[None, :, None, None] * np.sin(2 * np.pi * x)
        windows = data.Trajectories(u.astype(np.float32), RING, times).windows(steps=5)
        for norm in ("l2", "h1"):
            assert dynamics.UnrolledLoss(norm=norm)(made, windows[[0]])[0] < 1e-5


class TestNoise:
    @pytest.mark.thorough
    def test_it_moves_inputs_and_leaves_targets(self):
        made, batch = stepper(channels=2), at_step(trajectories(channels=2).windows())
        seen = []
        made.operator = _Spy(seen)
        loss, plain = dynamics.UnrolledLoss(noise=0.5), dynamics.UnrolledLoss()
        loss(made, batch), plain(made, batch)
        noisy, clean = (np.asarray(values) for values in seen)
        draws = (noisy - clean) / 0.5  # the operator sees units of σ
        assert abs(draws.std() - 1) < 0.1
        assert abs(draws.mean()) < 0.2
        target = training.relative_norms(batch.targets[:, 0], batch.targets[:, 0], batch.domain)
        assert_same_bits(target, jnp.zeros(3))

        class Perfect(nnx.Module):
            def __call__(self, values, domain, **_):
                return (batch.targets[:, 0] - made.mean[...]) / made.std[...]

        with jax.numpy_rank_promotion("allow"):
            exact = stepper(channels=2, output="state")
            exact.operator = Perfect()
            assert float(loss(exact, batch)[0].max()) < 1e-6

    def test_it_depends_on_seed_step_and_sample_only_and_evaluations_have_none(self, model, windows):
        def lead(batch, noise=0.3):
            return slopes(dynamics.UnrolledLoss(noise=noise), model, batch)[0][1]["lead_1"]

        first = lead(windows.at_step(np.array([4, 7, 1]), seed=0, step=2))
        other = lead(windows.at_step(np.array([7, 5, 4]), seed=0, step=2))
        np.testing.assert_allclose(first[:2], other[np.array([2, 0])], rtol=1e-6)
        assert not np.allclose(first, lead(windows.at_step(np.array([4, 7, 1]), seed=0, step=3)))
        rows = windows[np.array([4, 7, 1])]
        np.testing.assert_allclose(lead(rows), lead(dataclasses.replace(rows, key_data=None), noise=0.0), rtol=1e-6)

    @pytest.mark.thorough
    def test_dropout_draws_other_masks_at_every_step(self):
        made = stepper("tno on a line", operator={"dropout": 0.5})
        made.train()
        domain = domain_of("tno on a line")
        batch = data.WindowBatch(
            history=jnp.tile(field(domain, 1, 1, 1), (1, 1, 1, 1)),
            targets=jnp.ones((1, 3, domain.size, 1)),
            times=jnp.arange(4.0)[None] * 0.5,
            parameters=None,
            domain=domain,
            weights=jnp.ones((1, 3)),
            key_data=None,
            index=jnp.arange(1),
        )
        results = [dynamics.UnrolledLoss()(made, batch)[1] for _ in range(2)]
        assert float(jnp.abs(results[0]["lead_1"] - results[1]["lead_1"])[0]) > 1e-4
        made.eval()
        assert_same_bits(*(dynamics.UnrolledLoss()(made, batch) for _ in range(2)))


class _Spy(nnx.Module):
    def __init__(self, seen):
        self.seen = nnx.static(seen)

    def __call__(self, values, domain, **_):
        self.seen.append(values)
        return values


@pytest.mark.thorough
def test_twenty_steps_take_the_memory_of_one():
    made = stepper(operator={"width": 24, "layers": 3})
    graphdef, params, other = nnx.split(made, nnx.Param, ...)

    def memory(steps, remat):
        ring = domains.interval(160, rule="periodic")
        states = jnp.zeros((20, steps + 1, 160, 1))
        times, weights = jnp.ones((20, steps + 1)), jnp.ones((20, steps))
        batch = data.WindowBatch(states[:, :1], states[:, 1:], times, None, ring, weights, None, jnp.arange(20))
        lowered = _slopes.lower(dynamics.UnrolledLoss(remat=remat), graphdef, params, other, batch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert memory(20, True) <= 1.2 * memory(1, True)
    assert memory(20, False) > 5 * memory(1, True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cut": -1}, ValueError, "cut must be at least 0, got -1"),
        ({"cut": "every"}, TypeError, "cut must be an integer of at least 0, got 'every'"),
        ({"noise": -0.1}, ValueError, "noise must be at least 0 and finite, got -0.1"),
        ({"norm": "l3"}, ValueError, "norm='l3' is unknown: did you mean"),
        ({"weights": (1.0, -1.0)}, ValueError, r"weights\[1\] must be at least 0 and finite, got -1"),
        ({"weights": (0.0,)}, ValueError, "weights must have a positive number"),
        ({"weights": [1.0]}, TypeError, "weights must be a tuple of one number for each target, got list"),
        ({"pushforward": 1}, TypeError, "pushforward must be True or False, got int"),
        ({"pushforward": True, "cut": 1}, ValueError, "cut must be 0 with pushforward=True"),
    ],
)
def test_bad_choices_are_named(options, error, message):
    with pytest.raises(error, match=message):
        dynamics.UnrolledLoss(**options)


@pytest.mark.usefixtures("unchecked")
def test_bad_calls_are_named(model, windows):
    batch = windows[np.arange(2)]
    with pytest.raises(ValueError, match="weights must be one number for each of the 3 targets of a window, got 2"):
        dynamics.UnrolledLoss(weights=(1.0, 1.0))(model, batch)
    with pytest.raises(TypeError, match=r"batch must be a data\.WindowBatch, from .*, got dict"):
        dynamics.UnrolledLoss()(model, {})
    noisy = at_step(windows)
    with pytest.raises(TypeError, match=r"noise=0\.1 needs a dynamics\.Stepper, whose std is its unit, got function"):
        dynamics.UnrolledLoss(noise=0.1)(lambda states, domain, **_: states[:, -1], noisy)
