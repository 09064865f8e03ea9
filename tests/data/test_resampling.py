import numpy as np
import pytest

from jaxop import data, domains


@pytest.mark.parametrize("nodes", [36, 7, 60])
@pytest.mark.parametrize("fine", [21, 24])
@pytest.mark.sample(2)
def test_resampling_is_exact_for_resolved_functions(nodes, fine, x64):
    u = data.advection(2, nodes=fine, times=2, modes=3)
    expected = data.advection(2, nodes=nodes, times=2, modes=3)
    resampled = data.resample(u, nodes)
    np.testing.assert_allclose(resampled.states, expected.states, atol=1e-13)
    np.testing.assert_array_equal(resampled.domain.points, expected.domain.points)


def test_resampling_takes_each_axis_by_itself(x64):
    wide = data.gray_scott(2, nodes=24, times=3)
    narrow = data.resample(wide, (12, 8))
    np.testing.assert_array_equal(
        narrow.states.reshape(2, 3, 12, 8, 2), wide.states.reshape(2, 3, 24, 24, 2)[:, :, ::2, ::3]
    )
    assert narrow.domain.shape == (12, 8)


def test_resampling_refuses_other_domains():
    with pytest.raises(ValueError, match="2 entries for 1 axes"):
        data.resample(data.advection(1, nodes=12, times=2), (4, 4))
    with pytest.raises(ValueError, match="nodes must be at least 1"):
        data.resample(data.advection(1, nodes=12, times=2), 0)


@pytest.mark.parametrize(
    "domain",
    [
        domains.interval(4, rule="midpoint"),
        domains.from_nodes(np.arange(4)[:, None], [1.0] * 4),
        domains.stack([domains.interval(4, rule="periodic")] * 2),
    ],
)
def test_only_shared_periodic_grids_are_resampled(domain):
    record = data.Trajectories(np.ones((2, 3, 4, 1), np.float32), domain, np.arange(3.0))
    with pytest.raises(ValueError, match="one grid that is periodic along every axis"):
        data.resample(record, 2)
