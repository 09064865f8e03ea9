"""The relative norm is the ratio of integrals, on every grid, at every scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, training

SPACES = ("L2", "H1")

relative_norm, relative_norms, value_and_gradient = (
    jax.jit(function, static_argnames="space")
    for function in (training.relative_norm, training.relative_norms, jax.value_and_grad(training.relative_norm))
)


def pair(nodes: int, seed: int = 0):
    points = np.sort(np.random.default_rng(seed).uniform(size=nodes))
    domain = domains.from_samples(points.astype(np.float32))
    x = np.asarray(domain.points)
    truth = np.sin(3 * x)
    return jnp.asarray(truth + np.float32(0.1) * np.cos(5 * x)), jnp.asarray(truth), domain


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.sample(1)
def test_is_the_ratio_of_the_domains_norms(space):
    prediction, truth, domain = pair(17)
    expected = domain.norm(prediction - truth, space=space) / domain.norm(truth, space=space)
    np.testing.assert_allclose(relative_norm(prediction, truth, domain, space=space), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("space", "limit"),
    [
        ("L2", 0.1 * np.sqrt((1 / 2 + np.sin(10) / 20) / (1 / 2 - np.sin(6) / 12))),
        (
            "H1",
            0.1
            * np.sqrt(
                (1 / 2 + np.sin(10) / 20 + 25 * (1 / 2 - np.sin(10) / 20))
                / (1 / 2 - np.sin(6) / 12 + 9 * (1 / 2 + np.sin(6) / 12))
            ),
        ),
    ],
)
def test_converges_to_the_continuum(space, limit):
    for rule in ("midpoint", "trapezoid"):
        domain = domains.interval(400, rule=rule)
        x = np.asarray(domain.points)
        truth = np.sin(3 * x)
        error = relative_norm(truth + np.float32(0.1) * np.cos(5 * x), truth, domain, space=space)
        np.testing.assert_allclose(error, limit, rtol=1e-3)


@pytest.mark.parametrize("fill", [1e20, 9.97e36, np.nan])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.sample(2)
def test_padding_has_no_say(fill, space):
    domain = domains.pad(domains.from_samples(np.linspace(0, 1, 9, dtype=np.float32)), 12)
    real = np.arange(12)[:, None] < 9
    truth, zero = (np.where(real, value, fill).astype(np.float32) for value in (1.0, 0.0))
    prediction = np.full_like(truth, 2.0)
    value, gradient = value_and_gradient(prediction, truth, domain, space=space)
    np.testing.assert_allclose(value, 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        gradient, np.asarray(domain.weights)[:, None], atol=1e-6
    )  # of (∫ (p − t)²)^½ at p − t = 1
    value = relative_norm(prediction, zero, domain, space=space)
    np.testing.assert_allclose(value, 2.0, rtol=1e-6)


@pytest.mark.parametrize("space", SPACES)
def test_a_tiny_truth_is_an_ordinary_one_for_a_prediction_of_any_size(space):
    _, truth, domain = pair(12)
    size = domain.norm(jnp.ones_like(truth), space=space) / domain.norm(truth, space=space)
    for scale, prediction in [(1e-20, 1.0), (1e-25, 1e12), (1e-33, 1e-10)]:
        scaled = np.float32(scale) * np.asarray(truth)
        value = relative_norm(np.full_like(scaled, prediction), scaled, domain, space=space)
        np.testing.assert_allclose(value, size * prediction / scale, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1e12, 1e30])
@pytest.mark.parametrize("space", SPACES)
def test_does_not_depend_on_the_unit(scale, space):
    prediction, truth, domain = pair(12)
    expected = relative_norm(prediction, truth, domain, space=space)
    scaled = relative_norm(*(np.float32(scale) * np.asarray(a) for a in (prediction, truth)), domain, space=space)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1e38, 3e38, 3e-38])
@pytest.mark.parametrize("upper", [1e-4, 1e4])
@pytest.mark.sample(2)
def test_the_largest_and_smallest_numbers_have_errors_without_jit_too(size, upper):
    domain = domains.interval(9, upper=upper)
    truth = jnp.full((9, 1), size)
    for prediction, error in ((0 * truth, 1.0), (truth / 2, 0.5), (truth, 0.0)):
        for function in (training.relative_norm, relative_norm):
            np.testing.assert_allclose(function(prediction, truth, domain), error, rtol=1e-5)
    np.testing.assert_allclose(training.relative_norms((truth / 2)[None], truth[None], domain), [0.5], rtol=1e-5)
    assert training.relative_norm(truth / 2, truth, domain, space="H1") > 0.49


@pytest.mark.parametrize("fill", [1e6, 3e38, np.nan])
def test_padding_at_later_times_has_no_say(fill):
    prediction, truth, short = pair(9)
    axis = short.axes[0]
    later = jnp.concatenate([axis.nodes, axis.nodes[-1] + jnp.arange(1.0, 4.0)])
    domain = domains.Grid((domains.Axis(later, jnp.concatenate([axis.weights, jnp.zeros(3)])),))
    padded = (jnp.concatenate([values, jnp.full((3, 1), fill)]) for values in (prediction, truth))
    error, gradient = value_and_gradient(*padded, domain, space="H1")
    expected, direction = value_and_gradient(prediction, truth, short, space="H1")
    np.testing.assert_allclose(error, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:9], direction, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[9:], 0)


@pytest.mark.parametrize("space", SPACES)
def test_zero_truth_gives_the_absolute_error_and_a_finite_gradient(space):
    prediction, truth, domain = pair(12)
    zero = jnp.zeros_like(truth)
    value, gradient = value_and_gradient(prediction, zero, domain, space=space)
    np.testing.assert_allclose(value, domain.norm(prediction, space=space), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert np.any(gradient != 0)
    value, gradient = value_and_gradient(zero, zero, domain, space=space)
    assert value == 0
    assert not gradient.any()


def test_gradient_is_zero_at_an_exact_prediction():
    _, truth, domain = pair(12)
    assert not np.any(value_and_gradient(truth, truth, domain)[1])


def test_gradient_is_that_of_finite_differences(x64):
    domain = domains.interval(7)
    x = np.asarray(domain.points)
    truth, direction = np.cos(2 * x), np.sin(9 * x)

    @jax.jit
    def value(t):
        return relative_norm(truth + 0.3 + t * direction, truth, domain, space="H1")

    difference = (value(1e-6) - value(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jit(jax.grad(value))(0.0), difference, rtol=1e-7)


def test_narrow_floats_are_compared_in_float32():
    prediction, truth, domain = pair(12)
    error = relative_norm(*(np.asarray(a).astype(jnp.bfloat16) for a in (prediction, truth)), domain)
    assert error.dtype == jnp.float32
    np.testing.assert_allclose(error, relative_norm(prediction, truth, domain), rtol=2e-2)


@pytest.mark.parametrize("space", SPACES)
def test_batches_are_the_samples_one_by_one(space):
    cases = [pair(11, seed) for seed in range(3)]
    predictions, truths = (np.stack([case[i] for case in cases]) for i in (0, 1))
    stacked = domains.stack([case[2] for case in cases])
    errors = relative_norms(predictions, truths, stacked, space=space)
    np.testing.assert_allclose(errors, [relative_norm(*case, space=space) for case in cases], rtol=1e-6)
    shared = relative_norms(predictions, truths, cases[0][2], space=space)
    one_by_one = [relative_norm(p, t, cases[0][2], space=space) for p, t, _ in cases]
    np.testing.assert_allclose(shared, one_by_one, rtol=1e-6)


def test_bad_input_is_named(unchecked):
    prediction, truth, domain = pair(12)
    with pytest.raises(ValueError, match=r"\(12, 2\) and \(12, 1\)"):
        training.relative_norm(jnp.concatenate([prediction, prediction], axis=1), truth, domain)
    with pytest.raises(ValueError, match="did you mean 'H1'"):
        training.relative_norm(prediction, truth, domain, space="H11")
    cloud = domains.monte_carlo(domain.points)
    with pytest.raises(ValueError, match="scattered"):
        training.relative_norm(prediction, truth, cloud, space="H1")
