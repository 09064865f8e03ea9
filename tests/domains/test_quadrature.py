"""Weights sum to the measure; integrals are exact where they should be and converge at the rule's order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains
from tests.domains.cases import CASES, observed_orders, roof, square_mesh

LOWER, UPPER = 0.2, 1.7


def integral(domain, fn):
    """The library's integral of ``fn`` of the first coordinate."""
    return float(domain.integrate(fn(domain.points[:, :1]))[0])


def wave(x):
    return jnp.exp(jnp.sin(2 * np.pi * (x - LOWER) / (UPPER - LOWER)))


WAVE_INTEGRAL = 1.2660658777520084 * (UPPER - LOWER)  # I_0(1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.sample(6)
def test_weights_sum_to_the_measure(name):
    domain = CASES[name].build()
    np.testing.assert_allclose(domain.measure, CASES[name].measure, rtol=1e-6)
    np.testing.assert_allclose(domain.integrate(jnp.ones((domain.size, 1)))[0], CASES[name].measure, rtol=1e-6)
    assert domain.points.shape == (domain.size, domain.dim)
    assert domain.weights.shape == (domain.size,)
    assert not domain.is_batched
    assert (np.asarray(domain.weights) >= 0).all()


@pytest.mark.parametrize("rule", ["trapezoid", "midpoint"])
def test_second_order_rules(x64, rule):
    sizes = [9, 18, 36]
    exact = np.exp(UPPER) - np.exp(LOWER)
    built = [domains.interval(n, lower=LOWER, upper=UPPER, rule=rule) for n in sizes]
    errors = [abs(integral(domain, jnp.exp) - exact) for domain in built]
    cells = [n - 1 if rule == "trapezoid" else n for n in sizes]
    np.testing.assert_allclose(observed_orders(errors, cells), 2, atol=0.02)


@pytest.mark.parametrize(
    ("rule", "fn", "exact"),
    [("periodic", wave, WAVE_INTEGRAL), ("gauss-legendre", jnp.exp, np.exp(UPPER) - np.exp(LOWER))],
)
@pytest.mark.sample(1)
def test_spectral_rules_beat_every_fixed_order(x64, rule, fn, exact):
    sizes = [2, 4, 8]
    errors = [
        abs(integral(domains.interval(n, lower=LOWER, upper=UPPER, rule=rule), fn) - exact) + 1e-16 for n in sizes
    ]
    orders = observed_orders(errors, sizes)
    assert orders[1] > 10, orders
    assert orders[1] > 1.5 * orders[0], orders
    assert abs(integral(domains.interval(16, lower=LOWER, upper=UPPER, rule=rule), fn) - exact) < 1e-13


def test_interior_rule_is_second_order_for_functions_that_vanish_at_the_ends_and_first_for_others(x64):
    sizes = [15, 31, 63]
    built = [domains.interval(n, lower=0.0, upper=1.0, rule="interior") for n in sizes]
    vanishing = [abs(integral(domain, lambda x: x * (1 - x) * jnp.exp(x)) - (3 - np.e)) for domain in built]
    np.testing.assert_allclose(observed_orders(vanishing, [16, 32, 64]), 2, atol=0.02)
    others = [abs(integral(domain, jnp.exp) - (np.e - 1)) for domain in built]
    np.testing.assert_allclose(observed_orders(others, [16, 32, 64]), 1, atol=0.05)


def test_uneven_samples_are_second_order_in_the_largest_gap(x64):
    sizes = [17, 33, 65]
    errors = []
    for n in sizes:
        s = np.linspace(0, 1, n)
        domain = domains.from_samples(LOWER + (UPPER - LOWER) * (s + 0.12 * np.sin(2 * np.pi * s)))
        errors.append(abs(integral(domain, jnp.exp) - (np.exp(UPPER) - np.exp(LOWER))))
    np.testing.assert_allclose(observed_orders(errors, [n - 1 for n in sizes]), 2, atol=0.05)


def test_gauss_legendre_is_exact_up_to_degree_2n_minus_1_and_no_further(x64):
    domain = domains.box((3, 4), lower=(-1, 0), upper=(2, 1), rule="gauss-legendre")
    x, y = domain.points[:, :1], domain.points[:, 1:]
    np.testing.assert_allclose(domain.integrate(x**5 * y**7)[0], (64 - 1) / 6 / 8, rtol=1e-14)
    error = domain.integrate(x**6)[0] - (128 + 1) / 7
    assert abs(error) > 0.1


def test_linear_functions_are_integrated_exactly_by_every_rule_with_two_ends(x64):
    for name in ("trapezoid", "midpoint", "gauss-legendre", "uneven", "padded"):
        domain = CASES[name].build()
        lower, upper = {"midpoint": (0, 3), "gauss-legendre": (-2, 1)}.get(name, (-0.5, 1.5))
        np.testing.assert_allclose(
            integral(domain, lambda x: 2 * x + 1), (upper - lower) * (upper + lower + 1), rtol=1e-13, atol=1e-13
        )


def test_tensor_products_integrate_products_axis_by_axis(x64):
    rules = ("trapezoid", "gauss-legendre", "periodic")
    domain = domains.box((3, 2, 5), lower=(0, -1, 0), upper=(2, 1, np.pi), rule=rules)
    value = jnp.prod(jnp.concatenate([domain.points[:, :2] + 2, jnp.sin(domain.points[:, 2:]) ** 2], 1), 1)
    np.testing.assert_allclose(domain.integrate(value[:, None])[0], 6 * 4 * np.pi / 2, rtol=1e-14)
    assert domain.shape == (3, 2, 5)
    corner = domain.points.reshape(3, 2, 5, 3)[2, 0, 1]
    np.testing.assert_allclose(corner, [2, -1 / np.sqrt(3), np.pi / 5], rtol=1e-14)


def test_monte_carlo_error_is_sigma_over_root_n():
    sigma = np.sqrt((np.e**2 - 1) / 2 - (np.e - 1) ** 2)

    @jax.jit
    def errors(rng_key):
        def error(rng_key, n):
            domain = domains.monte_carlo(jax.random.uniform(rng_key, (n, 2)), measure=3.0)
            return domain.integrate(jnp.exp(domain.points[:, :1]))[0] - 3 * (np.e - 1)

        rng_keys = jax.random.split(rng_key, 400)
        return [jax.vmap(lambda k, n=n: error(k, n))(rng_keys) for n in (16, 256)]

    rms = [np.sqrt(np.mean(np.square(e))) for e in errors(jax.random.key(0))]
    np.testing.assert_allclose(rms, [3 * sigma / 4, 3 * sigma / 16], rtol=0.12)


def test_mesh_integrates_linear_functions_exactly_and_smooth_ones_at_second_order(x64):
    mesh = square_mesh(3, jitter=0.3)
    np.testing.assert_allclose(mesh.integrate(mesh.points), [0.5, 0.5], rtol=1e-14)
    errors = [abs(integral(square_mesh(n), jnp.exp) - (np.e - 1)) for n in (4, 8, 16)]
    np.testing.assert_allclose(observed_orders(errors, [4, 8, 16]), 2, atol=0.02)


def test_a_vertex_weighs_a_third_of_its_triangles():
    np.testing.assert_allclose(roof().weights, np.array([2, 3, 3, 1, 1, 2, 0]) / 6, rtol=1e-6)


def test_areas_of_slivers_keep_their_digits():
    width = 2.0**-10
    mesh = domains.triangle_mesh([[0, 0], [1, 0], [1, width]], [[0, 1, 2]])
    np.testing.assert_allclose(mesh.measure, width / 2, rtol=1e-6)
    small = domains.triangle_mesh([[0, 0, 0], [1e-12, 0, 0], [0, 1e-12, 0]], [[0, 1, 2]])
    np.testing.assert_allclose(small.measure, 5e-25, rtol=1e-5)


def test_area_gradient_is_finite_at_a_degenerate_triangle():
    faces = jnp.array([[0, 1, 2], [0, 1, 3]])
    gradient = jax.grad(lambda vertices: domains.triangle_mesh(vertices, faces).measure)
    vertices = jnp.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]])
    assert np.isfinite(gradient(vertices)).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_values_accumulate_in_float32_and_keep_their_dtype(dtype):
    domain = domains.interval(1000, upper=1.7, rule="midpoint")
    ones = jnp.ones((1000, 1), dtype)
    assert domain.integrate(ones).dtype == dtype
    assert domain.integrate(ones)[0] == jnp.asarray(1.7, dtype)
    norm = domain.norm(300 * ones)
    assert norm.dtype == dtype
    np.testing.assert_allclose(norm, 300 * np.sqrt(1.7), rtol=4e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_coordinates_lose_no_measure(dtype):
    points = scattered_in(dtype)
    np.testing.assert_allclose(domains.monte_carlo(points, measure=3.0).measure, 3.0, rtol=1e-5)
    assert domains.from_samples(jnp.arange(5).astype(dtype)).weights.dtype == jnp.float32


def scattered_in(dtype):
    return jax.random.uniform(jax.random.key(0), (700, 2)).astype(dtype)


def test_float64_values_on_a_float32_domain_stay_float64(x64):
    domain = domains.from_nodes(np.ones((2, 1), np.float32), np.ones(2, np.float32))
    assert domain.integrate(jnp.ones((2, 1), jnp.float64)).dtype == jnp.float64
    assert domain.integrate(jnp.ones((2, 1), jnp.float32)).dtype == jnp.float32


def test_integers_are_integrated_as_numbers(unchecked):
    domain = domains.interval(5, upper=2.0)
    np.testing.assert_allclose(domain.integrate(jnp.full((5, 1), 3)), [6.0], rtol=1e-6)


def test_resampling_keeps_box_and_rules():
    domain = domains.box((4, 6), lower=(0, -1), upper=(3, 1), rule=("midpoint", "gauss-legendre"))
    finer = domain.resample((8, 3))
    assert finer.shape == (8, 3)
    assert finer.rules == domain.rules
    np.testing.assert_allclose(finer.measure, domain.measure, rtol=1e-6)
    np.testing.assert_array_equal(domain.resample((4, 6)).points, domain.points)


def test_only_equally_weighted_grids_suit_an_fft():
    suited = {name: domains.box((4, 4), rule=("midpoint", name)).has_equal_weights for name in domains.RULES}
    assert suited == {
        "trapezoid": False,
        "midpoint": True,
        "periodic": True,
        "gauss-legendre": False,
        "interior": False,
    }
    assert not domains.from_samples([0.0, 1.0, 2.0]).has_equal_weights
