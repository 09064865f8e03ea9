import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import data, domains


def functions(nodes, count=7, channels=2):
    """Smooth functions with their nodes in space."""
    rng = np.random.default_rng(0)
    amplitude = rng.standard_normal((count, 1, channels))
    return (3 + amplitude * np.exp(np.asarray(nodes)[None, :, :1])).astype(np.float32)


def direct(values, weights):
    values, weights = np.asarray(values, np.float64), np.broadcast_to(np.asarray(weights, np.float64), values.shape[:2])
    mean = np.einsum("bn,bnc->c", weights, values) / weights.sum()
    return mean, np.sqrt(np.einsum("bn,bnc->c", weights, (values - mean) ** 2) / weights.sum())


@pytest.mark.parametrize("block", [1, 30, 10**6])
@pytest.mark.parametrize("stacked", [False, True])
def test_statistics_are_the_weighted_moments(monkeypatch, block, stacked):
    from jaxop.data import samples

    monkeypatch.setattr(samples, "_BLOCK", block)
    domain = domains.from_samples(np.array([0.0, 0.1, 0.5, 0.7, 2.0], np.float32))
    values = functions(domain.points)
    if stacked:
        scales = np.linspace(1, 2, 7, dtype=np.float32)
        domain = jax.vmap(domains.from_samples)(scales[:, None] * np.asarray(domain.points)[None, :, 0])
    found = data.statistics(values, domain)
    mean, std = direct(values, domain.weights)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found.std, std, rtol=1e-6)


def test_statistics_converge_under_refinement_of_uneven_grids():
    def of(n):
        nodes = np.linspace(0, 1, n, dtype=np.float32) ** 2
        return data.statistics(functions(nodes[:, None]), domains.from_samples(nodes))

    exact = of(4097)
    errors = [np.abs(of(n).std - exact.std).max() for n in (17, 33, 65)]
    assert np.log2(errors[0] / errors[1]) > 1.8
    assert np.log2(errors[1] / errors[2]) > 1.8


def test_padding_changes_nothing():
    whole = domains.from_samples(np.array([0.0, 0.3, 1.0], np.float32))
    values = functions(whole.points)
    padded = np.concatenate([values, np.full((7, 2, 2), 1e6, np.float32)], axis=1)
    for domain in (domains.pad(whole, 5), domains.stack([domains.pad(whole, 5)] * 7)):
        found, expected = data.statistics(padded, domain), data.statistics(values, whole)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
        np.testing.assert_allclose(found.std, expected.std, rtol=1e-6)


def test_a_stack_of_grids_of_several_axes():
    other = domains.interval(4).axes
    grids = domains.stack(
        [domains.Grid(domains.from_samples([0.0, scale / 2, scale]).axes + other) for scale in (1.0, 3.0)]
    )
    values = np.stack([np.full((12, 1), 1.0), np.full((12, 1), 5.0)]).astype(np.float32)
    np.testing.assert_allclose(data.statistics(values, grids).mean, [(1 + 3 * 5) / 4], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8, -3e-30])
def test_constant_channels_have_unit_deviation_and_normalize_to_zero(value):
    values = np.full((5, 9, 1), value, np.float32)
    found = data.statistics(values, domains.interval(9))
    np.testing.assert_array_equal(found.std, 1.0)
    np.testing.assert_allclose(data.normalize(values, found), 0.0, atol=abs(value) * 1e-6)


def test_rounding_noise_counts_as_constant():
    values = np.full((5, 9, 1), 1.0, np.float32)
    values[::2] = np.nextafter(np.float32(1.0), np.float32(0.0))
    np.testing.assert_array_equal(data.statistics(values, domains.interval(9)).std, 1.0)


def test_a_small_spread_on_a_large_mean_is_resolved():
    noise = np.random.default_rng(0).standard_normal((50, 100, 1))
    values = (4e6 + 10 * noise).astype(np.float32)
    found = data.statistics(values, domains.interval(100, rule="midpoint"))
    np.testing.assert_allclose(found.std, values.astype(np.float64).std(), rtol=1e-5)


def test_normalize_and_denormalize_are_inverse():
    values = functions(np.linspace(0, 1, 9)[:, None])
    found = data.statistics(values, domains.interval(9))
    standard = data.normalize(values, found)
    np.testing.assert_allclose(data.denormalize(standard, found), values, rtol=1e-5, atol=1e-6)
    again = data.statistics(np.asarray(standard), domains.interval(9))
    np.testing.assert_allclose(again.mean, 0, atol=1e-5)
    np.testing.assert_allclose(again.std, 1, rtol=1e-5)


def test_statistics_pass_through_jit():
    known = data.Statistics(mean=jnp.array([1.0, 2.0]), std=jnp.array([2.0, 4.0]))
    np.testing.assert_allclose(jax.jit(data.normalize)(jnp.array([[3.0, 10.0]]), known), [[1.0, 2.0]])


def test_the_dtype_of_values_is_kept():
    known = data.Statistics(mean=jnp.array([1.0]), std=jnp.array([2.0]))
    assert data.normalize(jnp.ones((2, 1), jnp.bfloat16), known).dtype == jnp.bfloat16
    assert data.normalize(np.ones((2, 1), np.int32), known).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_physical_units_are_in_float32_at_least(dtype):
    """Pressures of 101325 ± 300 Pa: beyond float16, two numbers in bfloat16."""
    known = data.Statistics(mean=jnp.array([101325.0]), std=jnp.array([300.0]))
    standard = jnp.asarray(np.linspace(-1, 1, 9), dtype)[:, None]
    physical = data.denormalize(standard, known)
    assert physical.dtype == jnp.float32
    np.testing.assert_allclose(physical, 101325 + 300 * np.asarray(standard, np.float64), rtol=1e-6)
    np.testing.assert_array_equal(data.normalize(physical, known).astype(dtype), standard)


def test_statistics_have_the_precision_in_force(x64):
    """A deviation of 1e-2 on 5e6: float32 numbers lie 0.5 apart there."""
    values = 5e6 + 0.3 + 1e-2 * np.random.default_rng(0).standard_normal((20, 9, 1))
    found = data.statistics(values, domains.interval(9, rule="midpoint"))
    np.testing.assert_allclose(found.mean, values.mean(), rtol=1e-15)
    standard = data.normalize(values, found)
    np.testing.assert_allclose(standard, (values - values.mean()) / values.std(), atol=1e-6)
    np.testing.assert_allclose(data.denormalize(standard.astype(jnp.float32), found), values, atol=1e-8)


def test_a_deviation_that_only_float64_resolves_is_named():
    values = 5e6 + 0.3 + 1e-2 * np.random.default_rng(0).standard_normal((20, 9, 1))
    with pytest.warns(UserWarning, match=r"channel 0 .* around 5000000.3, which float32 cannot resolve"):
        found = data.statistics(values, domains.interval(9, rule="midpoint"))
    np.testing.assert_array_equal(found.std, 1.0)


def test_lazily_read_values_are_read_in_slices():
    class Rows:
        shape, dtype = (4, 9, 1), np.dtype(np.float32)

        def __getitem__(self, index):
            assert isinstance(index, slice)
            return np.arange(4, dtype=np.float32)[index, None, None] * np.ones((1, 9, 1), np.float32)

    np.testing.assert_allclose(data.statistics(Rows(), domains.interval(9)).mean, [1.5])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="values has 9 nodes, but domain has 8"):
        data.statistics(np.ones((2, 9, 1), np.float32), domains.interval(8))
    known = data.Statistics(mean=jnp.array([1.0]), std=jnp.array([2.0]))
    with pytest.raises(ValueError, match=r"values must have 1 channels on the last axis"):
        data.normalize(jnp.ones((4, 3)), known)
