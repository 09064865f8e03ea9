"""Small sets of trajectories."""

import numpy as np

from jaxop import data, domains


def numbered(count=3, steps=10, nodes=4, channels=2, **options):
    """States whose entries tell trajectory, time, node and channel: 1000 s + 10 j + i + c / 10."""
    s, j, i, c = np.ogrid[:count, :steps, :nodes, :channels]
    states = (1000 * s + 10 * j + i + c / 10).astype(np.float32)
    given = {"domain": domains.interval(nodes), "times": 0.5 * np.arange(steps)} | options
    return data.Trajectories(states, **given)


class Counting:
    """States in a pretended file: what was read, by trajectory and times; anything but single reads is refused."""

    def __init__(self, states):
        self.states, self.reads = states, []
        self.shape, self.dtype = states.shape, states.dtype

    def __getitem__(self, index):
        i, times = index
        assert isinstance(i, int)
        assert i >= 0
        assert isinstance(times, slice)
        found = self.states[i, times]
        self.reads.append((i, list(range(*times.indices(self.shape[1])))))
        return found
