"""Records of the climate made here: nothing is downloaded."""

import numpy as np
from studies import climate

from jaxop import data, domains


def record(steps=24, seed=0):
    """Random states of two channels with a season of 4; the third node has no weight."""
    noise = np.random.default_rng(seed).standard_normal((1, steps, 5, 2))
    states = noise + np.arange(4)[np.arange(steps) % 4][:, None, None]
    domain = domains.from_nodes(np.arange(5)[:, None], [1.0, 2.0, 0.0, 1.0, 1.0])
    return data.Trajectories(states.astype(np.float32), domain, np.arange(float(steps)))


def test_records_are_split_by_years_after_their_season_is_removed():
    plan = climate.Record("any", record, 4, 12, 4)
    parts = climate.split(record(), plan)
    assert [part.steps for part in parts[:3]] == [12, 4, 8]
    assert [part.times[0] for part in parts[:3]] == [0, 12, 16]
    restored = parts.test.states + parts.means[np.arange(16, 24) % 4]
    np.testing.assert_allclose(restored, record().states[:, 16:], atol=1e-5)
    np.testing.assert_allclose(data.climatology(parts.train, 4), 0, atol=1e-6)


def test_errors_ignore_nodes_without_weight_and_are_exact_for_a_decay():
    decay = record()
    decay.states[...] = 0.9 ** np.arange(24)[:, None, None]
    decay.states[:, :, 2] = np.random.default_rng(1).standard_normal((24, 2))
    parts = climate.Parts(decay.between(0, 12), decay.between(12, 16), decay.between(16, None), np.zeros((1, 5, 2)))
    np.testing.assert_allclose(climate.errors(parts), [0.1 / 0.9, 0.0], atol=1e-6)
