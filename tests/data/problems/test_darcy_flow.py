import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import data, domains
from jaxop.data.problems.darcy_flow import _interpolation


def midpoints(n):
    return (np.arange(n) + 0.5) / n


def nodes(n):
    return np.stack(np.meshgrid(midpoints(n), midpoints(n), indexing="ij"), axis=-1)


def slopes(errors, ratio=2):
    return np.log(np.array(errors[:-1]) / errors[1:]) / np.log(ratio)


@pytest.fixture(scope="module")
def rough():
    """Two-valued coefficients with a contrast of 4."""
    return np.where(data.gaussian_field(2, 16, seed=7) >= 0, 12.0, 3.0)


@pytest.mark.thorough
def test_solution_converges_at_order_two_for_smooth_coefficient(x64):
    def a(x):
        return jnp.exp(jnp.sin(3 * x[0]) * jnp.cos(2 * x[1]))

    def u(x):
        return jnp.sin(jnp.pi * x[0]) * jnp.sin(2 * jnp.pi * x[1]) * jnp.exp(x[0])

    def f(x):
        flux = jax.jacfwd(lambda y: a(y) * jax.grad(u)(y))(x)
        return -jnp.trace(flux)

    errors = []
    for n in (16, 32, 64):
        at_nodes = [np.asarray(jax.vmap(jax.vmap(function))(jnp.asarray(nodes(n)))) for function in (a, f, u)]
        errors.append(np.abs(data.solve_darcy(at_nodes[0][None], at_nodes[1])[0] - at_nodes[2]).max())
    np.testing.assert_allclose(slopes(errors), 2.0, atol=0.1)


def test_constant_coefficient_has_the_known_maximum():
    coarse, fine = (data.solve_darcy(np.ones((1, n, n)))[0, n // 2, n // 2] for n in (15, 45))
    assert abs((9 * fine - coarse) / 8 - 0.07367135328) < 1e-6


def test_solution_is_positive_and_what_is_produced_leaves_through_the_boundary(rough):
    u = data.solve_darcy(rough)
    outflow = 2 * rough * u
    total = outflow[:, 0].sum(1) + outflow[:, -1].sum(1) + outflow[:, :, 0].sum(1) + outflow[:, :, -1].sum(1)
    assert (u > 0).all()
    np.testing.assert_allclose(total, 1.0, rtol=1e-8)


def test_solution_operator_is_self_adjoint_and_linear(rough):
    f, g = np.random.default_rng(0).standard_normal((2, 16, 16))
    a = rough[:1]
    u, v, both = (data.solve_darcy(a, load)[0] for load in (f, g, 2 * f - g))
    assert abs(np.sum(u * g) - np.sum(f * v)) < 1e-8 * np.linalg.norm(u) * np.linalg.norm(g)
    np.testing.assert_allclose(both, 2 * u - v, atol=1e-9)


@pytest.mark.parametrize("turn", [lambda a: a.swapaxes(1, 2), lambda a: a[:, ::-1], lambda a: a[:, :, ::-1]])
def test_solution_turns_with_the_coefficient(rough, turn):
    np.testing.assert_allclose(data.solve_darcy(turn(rough)), turn(data.solve_darcy(rough)), atol=1e-10)


def test_solution_scales_inversely_with_the_coefficient(rough):
    np.testing.assert_allclose(data.solve_darcy(5 * rough), data.solve_darcy(rough) / 5, rtol=1e-8)


def test_forcing_per_sample_is_used_per_sample(rough):
    load = np.stack([np.full((16, 16), 1.0), np.full((16, 16), 3.0)])
    u = data.solve_darcy(rough, load)
    reference = data.solve_darcy(rough)
    np.testing.assert_allclose(u[0], reference[0], atol=1e-12)
    np.testing.assert_allclose(u[1], 3 * reference[1], rtol=1e-8)


@pytest.mark.parametrize("resolution", [3, 8, 20])
def test_field_is_the_cosine_series_at_the_nodes_whatever_the_resolution(resolution):
    odd = 9 * resolution  # its nodes include those of the coarse grid, and it resolves every mode
    coarse, fine = (data.gaussian_field(2, r, seed=3, modes=18) for r in (resolution, odd))
    np.testing.assert_allclose(coarse, fine[:, 4::9, 4::9], atol=1e-13)


def test_field_has_the_variances_of_its_spectrum():
    count, n = 400, 12
    field = data.gaussian_field(count, n, seed=1, modes=n)
    k = np.arange(n)
    basis = np.where(k[:, None] == 0, 1.0, np.sqrt(2)) * np.cos(np.pi * k[:, None] * midpoints(n)[None])
    modes = np.einsum("ki,bij,lj->bkl", basis, field, basis) / n**2
    variance = 3.0**2 * (np.pi**2 * (k[:, None] ** 2 + k[None] ** 2) + 3.0**2) ** -2.0
    assert np.abs(modes[:, 0, 0]).max() < 1e-14
    standardized = (modes / np.sqrt(variance)).reshape(count, -1)[:, 1:]
    spread = np.mean(standardized**2, axis=0)
    # chi-squared over the samples: standard deviation (2/count)^½ each
    assert abs(spread.mean() - 1) < 5 * np.sqrt(2 / standardized.size)
    assert np.abs(spread - 1).max() < 5 * np.sqrt(2 / count)
    correlation = standardized.T @ standardized / count - np.diag(spread)
    assert np.abs(correlation).max() < 6 / np.sqrt(count)


def test_more_modes_only_refine_the_field():
    coarse = data.gaussian_field(1, 32, seed=5, modes=8)[0]
    fine = data.gaussian_field(1, 32, seed=5, modes=32)[0]
    k = np.arange(8)
    basis = np.cos(np.pi * k[:, None] * midpoints(32)[None])
    np.testing.assert_allclose(basis @ fine @ basis.T, basis @ coarse @ basis.T, atol=1e-12)


def test_samples_depend_on_seed_and_number_only():
    many, two = data.darcy(5, 16, seed=2), data.darcy(2, 16, seed=2, first=3)
    np.testing.assert_array_equal(many.inputs[3:], two.inputs)
    np.testing.assert_array_equal(many.targets[3:], two.targets)
    assert not np.array_equal(two.inputs, data.darcy(2, 16, seed=4, first=3).inputs)


def test_coefficients_take_their_values():
    assert set(np.unique(data.darcy(2, 16, seed=0).inputs)) == {3.0, 12.0}
    assert set(np.unique(data.darcy(2, 16, seed=0, low=1.0, high=2.0).inputs)) == {1.0, 2.0}
    lognormal = data.darcy(2, 16, seed=0, coefficient="lognormal")
    field = data.gaussian_field(2, 16, seed=0)
    np.testing.assert_allclose(lognormal.inputs, np.exp(field).reshape(2, 256, 1), rtol=1e-6)


def test_resolutions_share_one_truth():
    sets = data.darcy_resolutions(2, (5, 15), seed=0, reference=45)
    fine = data.darcy(2, 45, seed=0).targets.reshape(2, 45, 45)
    for r, samples in sets.items():
        field = data.gaussian_field(2, r, seed=0).reshape(2, -1, 1)
        np.testing.assert_array_equal(samples.inputs, np.where(field >= 0, 12.0, 3.0))
        odd = 45 // r
        restricted = fine[:, odd // 2 :: odd, odd // 2 :: odd]
        np.testing.assert_allclose(samples.targets.reshape(2, r, r), restricted, rtol=1e-6)


@pytest.mark.parametrize("coefficient", data.COEFFICIENTS)
def test_any_domain_samples_the_fields_of_the_grids(coefficient):
    grid = data.darcy_resolutions(2, (6,), seed=0, reference=24, coefficient=coefficient, first=3)[6]
    cloud = domains.from_nodes(grid.domain.points[::-1], np.ones(36, np.float32))
    scattered = data.darcy_on(2, cloud, seed=0, reference=24, coefficient=coefficient, first=3)
    assert scattered.domain is cloud
    np.testing.assert_allclose(scattered.inputs, grid.inputs[:, ::-1], rtol=1e-6)
    np.testing.assert_allclose(scattered.targets, grid.targets[:, ::-1], rtol=1e-6)


def test_the_solution_is_zero_on_the_boundary_of_any_domain():
    samples = data.darcy_on(1, domains.box((3, 3)), seed=0, reference=24)
    values = samples.targets.reshape(3, 3)
    assert values[1, 1] > 0
    np.testing.assert_array_equal(np.delete(values.ravel(), 4), 0)


def test_a_domain_outside_of_the_unit_square_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"nodes in the unit square .* got nodes in \[0, 2\] × \[0, 1\]"):
        data.darcy_on(1, domains.box((3, 3), upper=(2, 1)), seed=0, reference=8)
    with pytest.raises(ValueError, match=r"nodes in the unit square .* got nodes in \[0, 1\]\."):
        data.darcy_on(1, domains.interval(3), seed=0, reference=8)
    stack = domains.stack([domains.box((3, 3))] * 2)
    with pytest.raises(ValueError, match="one domain for all samples"):
        data.darcy_on(1, stack, seed=0, reference=8)
    with pytest.raises(TypeError, match="domain must be a Domain, got int"):
        data.darcy_on(1, 8, seed=0, reference=8)


@pytest.mark.parametrize("coarse", [4, 5])
def test_restriction_is_second_order_in_the_fine_grid(coarse):
    errors = []
    for fine in (16, 32, 64):
        restricted = _interpolation(fine, midpoints(coarse)) @ np.sin(np.pi * midpoints(fine))
        errors.append(np.abs(restricted - np.sin(np.pi * midpoints(coarse))).max())
    assert slopes(errors).min() > 1.8


def test_dtype_follows_x64_and_jax_settings_are_left_alone(x64):
    samples = data.darcy(1, 16, seed=0)
    assert samples.inputs.dtype == samples.targets.dtype == np.float64
    assert samples.domain.points.dtype == jnp.float64


def test_single_precision_by_default():
    samples = data.darcy(1, 16, seed=0)
    assert samples.inputs.dtype == samples.targets.dtype == np.float32
    assert jnp.zeros(()).dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"resolution": 1}, "resolution must be at least 2"),
        ({"seed": -1}, "seed must be a non-negative integer"),
        ({"first": -2}, "first must be at least 0"),
        ({"coefficient": "lognormale"}, "did you mean 'lognormal'"),
        ({"low": 5.0, "high": 4.0}, "0 < low <= high"),
        ({"low": 0.0}, "0 < low <= high"),
        ({"forcing": float("nan")}, "forcing must be finite"),
    ],
)
def test_bad_settings_say_what_is_wrong(arguments, message):
    settings = {"samples": 1, "resolution": 16, "seed": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        data.darcy(settings.pop("samples"), settings.pop("resolution"), **settings)


def test_reference_below_a_resolution_is_refused():
    with pytest.raises(ValueError, match="at least the largest of the resolutions, 32, got 16"):
        data.darcy_resolutions(1, (8, 32), seed=0, reference=16)
    with pytest.raises(ValueError, match="at least one grid"):
        data.darcy_resolutions(1, (), seed=0)


@pytest.mark.parametrize(("alpha", "tau", "message"), [(1.0, 3.0, "alpha must exceed 1"), (2.0, 0.0, "tau must be")])
def test_field_parameters_are_checked(alpha, tau, message):
    with pytest.raises(ValueError, match=message):
        data.gaussian_field(1, 8, seed=0, alpha=alpha, tau=tau)


def test_solver_refuses_bad_coefficients_and_loads():
    a = np.ones((2, 16, 16))
    a[1, 2, 3] = -1.0
    with pytest.raises(ValueError, match=r"coefficient\[\(1, 2, 3\)\] = -1.0"):
        data.solve_darcy(a)
    with pytest.raises(ValueError, match=r"forcing must be one number or have shape \(16, 16\)"):
        data.solve_darcy(np.ones((2, 16, 16)), np.ones((8, 8)))
    with pytest.raises(ValueError, match=r"must have shape \(samples, r, r\)"):
        data.solve_darcy(np.ones((2, 1, 1)))


def test_solver_says_when_the_contrast_is_beyond_it():
    a = 10.0 ** np.random.default_rng(0).uniform(-9, 9, (1, 16, 16))
    with pytest.raises(RuntimeError, match="the Darcy solve of sample 0 stopped"):
        data.solve_darcy(a)
