"""Random subsets of the nodes of each sample: measure, mean, and what a draw depends on."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxop import data, domains
from tests.data.ragged_cases import cloud, curve, functions, mesh, pairs


def integrals(batch):
    return np.einsum("bn,bnc->bc", batch.domain.weights, batch.targets)


@pytest.mark.parametrize("kind", [cloud, curve, mesh])
@pytest.mark.sample(1)
def test_integrals_are_unbiased_and_the_measure_is_exact(kind):
    made = pairs(kind, (300, 200))
    samples = data.RandomNodes(data.RaggedSamples(made), 16)
    index = np.array([1, 0])
    batches = [samples.at_step(index, seed=0, step=t) for t in range(80)]
    assert batches[0].inputs.shape == (2, 16, 2)
    for batch in batches[:5]:
        measures = [made[i].domain.measure for i in index]
        np.testing.assert_allclose(batch.domain.weights.sum(axis=1), measures, rtol=1e-5)
    drawn = np.stack([integrals(batch) for batch in batches])
    exact = np.stack([np.asarray(made[i].domain.weights) @ made[i].targets for i in index])
    error = drawn.std(axis=0) / len(drawn) ** 0.5
    assert (np.abs(drawn.mean(axis=0) - exact) <= 4 * error).all()
    assert (drawn.std(axis=0) > 0).all()


def test_every_node_is_drawn_in_proportion_to_its_weight():
    weights = np.array([0, 0.5, 0.1, 0, 0.25, 0.15], np.float32)
    domain = domains.from_nodes(np.arange(6, dtype=np.float32)[:, None], weights)
    u = np.arange(6, dtype=np.float32)[None, :, None]
    samples = data.RandomNodes(data.Samples(u, u, domain), 5)
    drawn = np.concatenate([samples.at_step(np.zeros(1, int), seed=1, step=t).inputs[0, :, 0] for t in range(200)])
    share = np.bincount(drawn.astype(int), minlength=6) / len(drawn)
    np.testing.assert_allclose(share, weights, atol=0.01)
    assert share[0] == share[3] == 0


def test_a_draw_depends_on_seed_step_and_sample_only():
    samples = data.RandomNodes(data.RaggedSamples(pairs(sizes=(40, 50, 60))), 8)
    first = samples.at_step(np.array([0, 2]), seed=3, step=5)
    alone = samples.at_step(np.array([2]), seed=3, step=5)
    again = samples.at_step(np.array([1, 2, 0]), seed=3, step=5)
    for leaf, one in zip(jax.tree.leaves(first), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(leaf[1], one[0])
    np.testing.assert_array_equal(again.inputs[2], first.inputs[0])
    for other in ({"seed": 4, "step": 5}, {"seed": 3, "step": 6}):
        assert not np.array_equal(samples.at_step(np.array([0, 2]), **other).inputs, first.inputs)
    default = samples[np.array([1])]
    np.testing.assert_array_equal(default.inputs, samples.at_step(np.array([1]), seed=0, step=0).inputs)


def test_small_samples_keep_all_nodes():
    made = pairs(sizes=(5, 30))
    batch = data.RandomNodes(data.RaggedSamples(made), 12)[np.array([0, 1])]
    np.testing.assert_array_equal(batch.inputs[0, :5], made[0].inputs)
    np.testing.assert_array_equal(batch.domain.weights[0, :5], made[0].domain.weights)
    assert not batch.domain.weights[0, 5:].any()


def test_values_and_nodes_stay_together_and_targets_have_draws_of_their_own():
    made = [functions(cloud(90), at=cloud(70, seed=1))]
    samples = data.RandomNodes(data.RaggedSamples(made), 20, at_nodes=30)
    batch = samples.at_step(np.zeros(1, int), seed=0, step=3)
    assert (batch.inputs.shape, batch.targets.shape) == ((1, 20, 2), (1, 30, 1))
    x, y = np.asarray(batch.domain.points[0, :, 0]), np.asarray(batch.at.points[0, :, 0])
    np.testing.assert_allclose(batch.inputs[0, :, 0], np.sin(3 * x), rtol=1e-5)
    np.testing.assert_allclose(batch.targets[0, :, 0], 1 + np.sin(3 * y) ** 2, rtol=1e-5)


def test_a_set_on_one_grid_can_be_thinned():
    grid = domains.box((20, 20), rule="midpoint")
    u = np.asarray(grid.points)[None].repeat(3, axis=0)
    batch = data.RandomNodes(data.Samples(u, u[..., :1], grid), 25)[np.array([2, 0])]
    np.testing.assert_array_equal(batch.inputs, batch.domain.points)


def test_bad_arguments_are_refused(unchecked):
    samples = data.RaggedSamples(pairs())
    with pytest.raises(TypeError, match=r"source must be data\.Samples or data\.RaggedSamples, got list"):
        data.RandomNodes(pairs(), 4)
    with pytest.raises(ValueError, match="nodes must be at least 1, got 0"):
        data.RandomNodes(samples, 0)
    with pytest.raises(ValueError, match="at_nodes=4 was given, but the targets are on the nodes of the inputs"):
        data.RandomNodes(samples, 4, at_nodes=4)
    with pytest.raises(
        TypeError, match=r"samples must be data\.Samples or data\.RaggedSamples, with all nodes, got Rand"
    ):
        data.standardization(data.RandomNodes(samples, 4))
    with_initial = [dataclasses.replace(sample, initial=np.ones(2, np.float32)) for sample in pairs()]
    with pytest.raises(ValueError, match="source has initial data, which belong to the first node"):
        data.RandomNodes(data.RaggedSamples(with_initial), 4)
