import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, dynamics
from jaxop.testing import count_compilations

ERRORS = {
    "nrmse": dynamics.nrmse,
    "relative_l2": dynamics.relative_l2,
    "vrmse": dynamics.vrmse,
    "h1_error": dynamics.h1_error,
}
METRICS = ERRORS | {"correlation": dynamics.correlation}
NODES = np.array([0.0, 0.1, 0.35, 0.4, 0.7, 1.0], np.float32)


def pair(domain: domains.Domain, times: int = 3, channels: int = 2, seed: int = 0, batch: int | None = None):
    """Two random trajectories of the same shape."""
    shape = (times, domain.size, channels)
    draws = np.random.default_rng(seed).normal(size=(2, *(() if batch is None else (batch,)), *shape)) + 0.3
    return tuple(jnp.asarray(draw, jnp.result_type(float)) for draw in draws)


def split(domain: domains.Domain, node: int) -> domains.PointCloud:
    """The domain with two copies of a node, of weights in the ratio 1 : 3."""
    points, weights = np.asarray(domain.points), np.asarray(domain.weights)
    shares = np.concatenate([weights, weights[node : node + 1] * 0.75])
    shares[node] *= 0.25
    return domains.from_nodes(np.concatenate([points, points[node : node + 1]]), shares)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", METRICS)
def test_an_exact_prediction_is_perfect(name):
    truth, _ = pair(domains.from_samples(NODES))
    found = METRICS[name](truth, truth, domains.from_samples(NODES))
    np.testing.assert_allclose(found, np.ones(3) if name == "correlation" else np.zeros(3), atol=1e-6)


@pytest.mark.parametrize("name", ["nrmse", "relative_l2", "h1_error"])
def test_a_scaled_truth_has_the_error_of_the_scale(name):
    truth, _ = pair(domains.from_samples(NODES), channels=1)
    np.testing.assert_allclose(METRICS[name](1.25 * truth, truth, domains.from_samples(NODES)), 0.25, rtol=1e-5)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", METRICS)
def test_constants_do_not_depend_on_the_domain(name):
    """2 for a truth of 1 is an error of 1 on every domain, by each definition."""
    cases = domains.box((3, 4), upper=(2, 5)), domains.sphere(4, radius=3.0)
    for domain in cases:
        ones = jnp.ones((1, domain.size, 1))
        found = METRICS[name](2 * ones, ones, domain)
        expected = (1 / 1e-7) ** 0.5 if name == "vrmse" else 1.0  # a constant has variance 0, so that ε is left
        np.testing.assert_allclose(found, [expected], rtol=1e-3 if name == "vrmse" else 1e-5)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", [name for name in METRICS if name != "h1_error"])
def test_splitting_a_node_changes_nothing(name):
    domain = domains.from_nodes(NODES[:, None], np.array([0.1, 0.2, 0.1, 0.3, 0.2, 0.1], np.float32))
    prediction, truth = pair(domain)
    copied = (jnp.concatenate([u, u[:, 2:3]], axis=1) for u in (prediction, truth))
    np.testing.assert_allclose(
        METRICS[name](*copied, split(domain, 2)), METRICS[name](prediction, truth, domain), rtol=2e-6
    )


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", METRICS)
def test_padding_has_no_say(name):
    domain = domains.from_samples(NODES)
    prediction, truth = pair(domain)

    def value(u):
        return jnp.sum(METRICS[name](u, padded_truth, domains.pad(domain, 8)))

    padded, padded_truth = (jnp.pad(u, [(0, 0), (0, 2), (0, 0)], constant_values=np.inf) for u in (prediction, truth))
    found, slope = jax.value_and_grad(value)(padded)
    np.testing.assert_allclose(found, np.sum(METRICS[name](prediction, truth, domain)), rtol=2e-6)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[:, 6:], 0)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", METRICS)
def test_samples_times_and_stacks_of_domains_are_one_by_one(name):
    grids = [domains.from_samples(NODES), domains.from_samples(NODES**2)]
    predictions, truths = pair(grids[0], batch=2)
    together = jax.jit(METRICS[name])(predictions, truths, domains.stack(grids))
    for b, grid in enumerate(grids):
        for t in range(3):
            alone = METRICS[name](predictions[b, t : t + 1], truths[b, t : t + 1], grid)
            np.testing.assert_allclose(together[b, t], alone[0], rtol=1e-5)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", METRICS)
def test_a_state_that_is_not_finite_is_infinitely_wrong(name):
    domain = domains.from_samples(NODES)
    prediction, truth = pair(domain)
    prediction = prediction.at[1, 2, 0].set(jnp.nan).at[2, 0, 1].set(jnp.inf)
    found = METRICS[name](prediction, truth, domain)
    np.testing.assert_array_equal(found[1:], 0 if name == "correlation" else np.inf)
    assert np.isfinite(found[0])
    slope = jax.grad(lambda u: METRICS[name](u, truth, domain)[0])(prediction)
    assert np.isfinite(slope).all()


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", METRICS)
def test_gradients_are_finite_differences(name, x64):
    domain = domains.from_samples(NODES)
    prediction, truth = pair(domain)
    direction, _ = pair(domain, seed=1)

    def value(u):
        return jnp.sum(METRICS[name](u, truth, domain))

    step = 1e-6
    expected = (value(prediction + step * direction) - value(prediction - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(value)(prediction), direction), expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["nrmse", "vrmse", "correlation"])
def test_channels_are_joined_as_asked(name):
    domain = domains.from_samples(NODES)
    prediction, truth = pair(domain)
    each = METRICS[name](prediction, truth, domain, channels="each")
    alone = [METRICS[name](prediction[..., c : c + 1], truth[..., c : c + 1], domain) for c in range(2)]
    np.testing.assert_allclose(each, np.stack(alone, axis=-1), rtol=1e-6)
    for channels, join in (("sum", np.sum), ("mean", np.mean)):
        found = METRICS[name](prediction, truth, domain, channels=channels)
        np.testing.assert_allclose(found, join(each, axis=-1), rtol=1e-6)
    default = METRICS[name](prediction, truth, domain)
    np.testing.assert_allclose(default, (np.sum if name == "nrmse" else np.mean)(each, axis=-1), rtol=1e-6)


def test_vrmse_is_that_of_the_well():
    """MSE / (std² + ε) with the unbiased deviation of torch.std, n − 1, on grids of equal weights."""
    for domain in (domains.interval(9, rule="periodic"), domains.box((4, 5), upper=(1, 3), rule="midpoint")):
        prediction, truth = (np.asarray(u, np.float64) for u in pair(domain))
        square = np.mean((prediction - truth) ** 2, axis=1)
        expected = np.sqrt(square / (np.std(truth, axis=1, ddof=1) ** 2 + 1e-7)).mean(axis=-1)
        found = dynamics.vrmse(*pair(domain), domain)
        np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_vrmse_has_the_variance_of_the_quadrature_elsewhere():
    domain = domains.from_samples(NODES)
    prediction, truth = (np.asarray(u, np.float64) for u in pair(domain, channels=1))
    share = np.asarray(domain.weights, np.float64)[:, None] / float(domain.measure)
    mean = np.sum(share * truth, axis=1, keepdims=True)
    square = np.sum(share * (prediction - truth) ** 2, axis=1) / np.sum(share * (truth - mean) ** 2, axis=1)
    found = dynamics.vrmse(*pair(domain, channels=1), domain, epsilon=0.0)
    np.testing.assert_allclose(found, np.sqrt(square)[:, 0], rtol=2e-6)


@pytest.mark.sample(1)
@pytest.mark.parametrize("shape", [(12,), (6, 6)])
def test_metrics_are_those_of_exponax(shape, x64):
    exponax = pytest.importorskip("exponax")
    domain = domains.box(shape, upper=tuple(3.0 for _ in shape), rule="periodic")
    prediction, truth = pair(domain)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = tuple(jnp.moveaxis(u.reshape(3, *shape, 2), -1, 1) for u in (prediction, truth))
        for ours, name in ((dynamics.nrmse, "nRMSE"), (dynamics.correlation, "correlation")):
            expected = jax.vmap(getattr(exponax.metrics, name))(*theirs)
            np.testing.assert_allclose(ours(prediction, truth, domain), expected, rtol=1e-6)
    samples = tuple(jnp.stack([u, u[::-1]]) for u in (prediction, truth))
    mean = exponax.metrics.mean_metric(exponax.metrics.nRMSE, *(u[np.array([0, 2])] for u in theirs))
    np.testing.assert_allclose(dynamics.nrmse(*samples, domain).mean(axis=0)[0], mean, rtol=1e-6)


@pytest.mark.thorough
def test_a_correlation_time_is_where_a_broken_line_crosses_the_threshold():
    times = jnp.array([2.0, 4.0, 8.0])
    curves = {
        (0.9, 0.7, 0.9): 3.0,  # halfway between 2 and 4
        (0.9, 0.8, 0.7): 4.0,  # at the threshold, then below
        (0.6, 0.5, 0.4): 1.0,  # before the first time: from 1 at time 0
        (0.9, 0.9, 0.8): np.inf,
        (0.9, np.nan, 0.9): 2.0,
    }
    found = dynamics.correlation_time(jnp.array(list(curves)), times)
    np.testing.assert_allclose(found, list(curves.values()), rtol=1e-6)
    each = jnp.stack([times] * 4 + [2 * times])
    np.testing.assert_allclose(dynamics.correlation_time(jnp.array(list(curves)), each)[-1], 4.0, rtol=1e-6)


def test_a_valid_time_counts_lyapunov_times():
    times = jnp.array([1.0, 2.0, 3.0])
    assert dynamics.valid_time(jnp.array([0.1, 0.2, 0.4]), times, threshold=0.3) == pytest.approx(2.5)
    assert dynamics.valid_time(jnp.array([0.1, 0.2, 0.4]), times, threshold=0.3, exponent=2.0) == pytest.approx(5.0)
    assert dynamics.valid_time(jnp.array([0.1, 0.2, jnp.inf]), times) == pytest.approx(2.0)
    assert dynamics.valid_time(jnp.array([0.1, 0.2, 0.4]), times) == np.inf


def test_times_of_crossings_have_the_derivative_of_the_line():
    times, values = jnp.array([1.0, 2.0]), jnp.array([0.9, 0.6])
    slope = jax.grad(lambda v: dynamics.correlation_time(v, times))(values)
    a, b, level = 0.9, 0.6, 0.8
    np.testing.assert_allclose(slope, [(level - b) / (a - b) ** 2, (a - level) / (a - b) ** 2], rtol=1e-5)
    never = jax.grad(lambda v: dynamics.correlation_time(v, times))(jnp.array([0.9, 0.9]))
    np.testing.assert_array_equal(never, 0)


def test_windows_count_predictions_from_zero():
    curves = jnp.stack([jnp.arange(30.0), 2 * jnp.arange(30.0)])
    expected = [[np.mean(range(6, 12)), np.mean(range(13, 30))]] * np.array([[1], [2]])
    np.testing.assert_allclose(dynamics.window_means(curves), expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-10, 1e20, 1e36])
def test_the_vrmse_of_huge_states_is_that_of_others(scale):
    domain = domains.from_samples(NODES)
    prediction, truth = pair(domain)
    expected = dynamics.vrmse(prediction, truth, domain, epsilon=0)
    found = dynamics.vrmse(scale * prediction, scale * truth, domain, epsilon=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", METRICS)
def test_a_huge_state_is_wrong_and_not_nan(name):
    domain = domains.from_samples(NODES)
    prediction, truth = pair(domain)
    for scale in (1e20, 1e30, 1e38):
        found = METRICS[name](scale * prediction, truth, domain)
        assert ((np.abs(found) < 1.001) if name == "correlation" else (found > 0.1 * scale)).all()


BAD = {
    "another shape": (
        lambda u, d: dynamics.nrmse(u, u[:, :, :1], d),
        r"prediction and truth.*\(3, 6, 2\) and \(3, 6, 1\)",
    ),
    "one state": (lambda u, d: dynamics.relative_l2(u[0], u[0], d), r"\(t, n, c\).*got \(6, 2\)"),
    "other nodes": (lambda u, d: dynamics.vrmse(u[:, :5], u[:, :5], d), r"n = 6 nodes.*got \(3, 5, 2\)"),
    "a stack": (lambda u, d: dynamics.nrmse(u, u, domains.stack([d, d])), r"\(2, t, n, c\).*stack of 2"),
    "channels": (lambda u, d: dynamics.nrmse(u, u, d, channels="max"), "channels='max'"),
    "scattered": (lambda u, d: dynamics.h1_error(u, u, domains.from_nodes(d.points, d.weights)), "neighbouring nodes"),
    "threshold": (lambda u, d: dynamics.correlation_time(u[:, 0, 0], NODES[:3], threshold=1.5), "threshold.*1.5"),
    "exponent": (lambda u, d: dynamics.valid_time(u[:, 0, 0], NODES[:3], exponent=0), "exponent.*0"),
    "times": (lambda u, d: dynamics.correlation_time(u[:, 0, 0], NODES[:2]), r"\(3,\) and \(2,\)"),
    "epsilon": (lambda u, d: dynamics.vrmse(u, u, d, epsilon=-1), "epsilon must be at least 0 and finite, got -1"),
    "no windows": (lambda u, d: dynamics.window_means(u[:, 0, 0], []), "windows at least one pair"),
    "window": (lambda u, d: dynamics.window_means(u[:, 0, 0]), r"the 3 times.*\(6, 12\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, unchecked):
    call, message = BAD[case]
    domain = domains.from_samples(NODES)
    with pytest.raises(ValueError, match=message):
        call(pair(domain)[0], domain)


def test_narrow_floats_are_compared_in_float32():
    domain = domains.from_samples(NODES)
    prediction, truth = (u.astype(jnp.bfloat16) for u in pair(domain))
    found = dynamics.nrmse(prediction, truth, domain)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, dynamics.nrmse(prediction.astype(jnp.float32), truth.astype(jnp.float32), domain), rtol=1e-6
    )


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", METRICS)
def test_a_second_call_of_the_same_shapes_compiles_nothing(name):
    domain = domains.from_samples(NODES)
    METRICS[name](*pair(domain), domain)
    others = pair(domain, seed=3), domains.from_samples(NODES**3)
    with count_compilations() as compilations:
        METRICS[name](*others[0], others[1])
    assert compilations() == 0
