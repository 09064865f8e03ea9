import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import data
from jaxop.data._support import double_precision
from jaxop.data.problems import evolution, periodic, planar

# small and short: (problem, settings), all with a grid that is divisible by 2
PROBLEMS = {
    "advection": (data.advection, {"nodes": 24}),
    "burgers": (data.burgers, {"nodes": 24}),
    "kuramoto_sivashinsky": (data.kuramoto_sivashinsky, {"nodes": 48, "warmup": 0}),
    "korteweg_de_vries": (data.korteweg_de_vries, {"nodes": 24}),
    "gray_scott": (data.gray_scott, {"nodes": 24}),
    "kolmogorov_flow": (data.kolmogorov_flow, {"nodes": 24, "warmup": 0}),
    "navier_stokes": (data.navier_stokes, {"nodes": 64, "dt": 0.1, "substeps": 5}),
}
EVERY = pytest.mark.parametrize("name", PROBLEMS)


def make(name, samples=2, **settings):
    problem, defaults = PROBLEMS[name]
    return problem(samples, **{"times": 3, **defaults, **settings})


def field(states, nodes):
    """States (..., n, c) of two dimensions as (..., n₁, n₂, c)."""
    return states.reshape(*states.shape[:-2], nodes, nodes, states.shape[-1])


def derivative(u, length, axis=-1, order=1):
    n = u.shape[axis]
    k = 2j * np.pi / length * np.fft.fftfreq(n, 1 / n)
    shape = [1] * u.ndim
    shape[axis] = n
    return np.fft.ifft(k.reshape(shape) ** order * np.fft.fft(u, axis=axis), axis=axis).real


def laplacian(u, length):
    return derivative(u, length, -1, 2) + derivative(u, length, -2, 2)


def residual(run, velocity):
    """Largest error of the central difference at the middle of three times, relative to the velocity."""
    before, middle, after = np.moveaxis(np.asarray(run.states), 1, 0)
    expected = velocity(middle)
    return np.abs((after - before) / (run.times[2] - run.times[0]) - expected).max() / np.abs(expected).max()


@pytest.mark.sample(2)
@EVERY
def test_a_sample_depends_on_seed_and_number_only(name):
    many, one = make(name, 3, first=4), make(name, 1, first=6)
    np.testing.assert_array_equal(many.states[2:], one.states)
    assert not np.array_equal(many.states[0], many.states[1])
    assert not np.array_equal(make(name, 1, seed=1, first=6).states, one.states)


@pytest.mark.thorough
def test_the_settings_of_apebench_make_its_trajectories(x64):
    apebench = pytest.importorskip("apebench")
    exponax = pytest.importorskip("exponax")
    cases = [
        ("Advection", evolution._advect, {"speed": 0.25}, 1.0, {}),
        ("Burgers", evolution._burgers, {"viscosity": 3e-4, "convection": 0.125}, 1.0, {}),
        (
            "KuramotoSivashinskyConservative",
            evolution._sivashinsky,
            {"diffusion": 1.44, "hyperdiffusion": 0.4, "convection": 3.6},
            60.0,
            {},
        ),
        (
            "GrayScott",
            planar._gray_scott,
            {"feed": 0.04, "kill": 0.06, "diffusion_u": 2e-5, "diffusion_v": 1e-5},
            1.0,
            {"substeps": 10},
        ),
        (
            "KolmogorovFlow",
            planar._kolmogorov,
            {"viscosity": 1e-2, "forcing": 1.0, "drag": 0.1},
            2 * np.pi,
            {"substeps": 20},
        ),
    ]
    for name, scheme, constants, length, options in cases:
        dim = 2 if name in ("GrayScott", "KolmogorovFlow") else 1
        scenario = getattr(apebench.scenarios.physical, name)(
            num_spatial_dims=dim, num_points=48, num_train_samples=2, train_temporal_horizon=3, num_warmup_steps=3
        )
        with double_precision():
            theirs = np.moveaxis(np.asarray(scenario.get_train_data()), 2, -1)
            # the initial states of apebench depend on the grid
            initial = exponax.build_ic_set(
                scenario.get_ic_generator(), num_points=48, num_samples=2, key=jax.random.PRNGKey(0)
            )
        setting = periodic.Setting(name, 0, 2, 0, 0, 48, dim, 4, scenario.dt, warmup=3, **options)
        fixed = {"forced_mode": 4} if name == "KolmogorovFlow" else {}
        ours = setting.trajectories(scheme, np.asarray(initial), constants, length=length, **fixed).states
        np.testing.assert_allclose(ours, theirs.reshape(ours.shape), atol=1e-10)


@pytest.mark.sample(2)
@EVERY
def test_grids_of_all_resolutions_sample_the_same_function(name, x64):
    nodes = PROBLEMS[name][1]["nodes"]
    coarse, fine = make(name, times=2), make(name, times=2, nodes=2 * nodes)
    picked = data.resample(fine, nodes).states[:, 0]
    np.testing.assert_allclose(coarse.states[:, 0], picked, atol=1e-12)
    assert coarse.domain.measure == fine.domain.measure


@EVERY
@pytest.mark.sample(3)
def test_shapes_times_and_precision(name):
    run = make(name)
    assert run.states.dtype == np.float32
    assert run.states.shape[:3] == (2, 3, run.domain.size)
    np.testing.assert_allclose(np.diff(run.times), run.times[1])
    assert run.parameters is None
    assert jnp.zeros(()).dtype == jnp.float32


def test_advection_moves_functions_by_one_node_in_each_step(x64):
    run = data.advection(2, nodes=40, times=5, speed=0.25, dt=0.1)
    for j in range(5):
        np.testing.assert_allclose(run.states[:, j], np.roll(run.states[:, 0], j, axis=1), atol=1e-13)


def test_initial_functions_have_a_largest_value_of_one_and_no_mean():
    u = data.advection(3, nodes=160, times=2).states[:, 0]
    np.testing.assert_allclose(np.abs(u).max(axis=1), 1.0, rtol=1e-6)
    assert np.abs(u.mean(axis=1)).max() < 1e-6
    spectrum = np.abs(np.fft.rfft(u[..., 0], axis=1))
    assert (spectrum[:, 1:6] > 1e-2).all()
    assert spectrum[:, 6:].max() < 1e-4


def cole_hopf(u, time, *, viscosity, convection, length):
    """u(t) from u(0): v = b u = −2ν φ_x/φ, and φ solves the heat equation."""
    n = u.shape[-1]
    k = 2 * np.pi / length * np.fft.fftfreq(n, 1 / n)
    v_hat = np.fft.fft(convection * u)
    potential = np.fft.ifft(np.where(k == 0, 0, v_hat / np.where(k == 0, 1, 1j * k))).real
    phi_hat = np.fft.fft(np.exp(-potential / (2 * viscosity))) * np.exp(-viscosity * k**2 * time)
    phi, slope = np.fft.ifft(phi_hat).real, np.fft.ifft(1j * k * phi_hat).real
    return -2 * viscosity * slope / phi / convection


@pytest.mark.sample(1)
@pytest.mark.parametrize(("order", "smallest"), [(4, 1e-7), (2, 1e-4)])
def test_burgers_converges_to_the_exact_solution_at_the_order_of_the_method(order, smallest, x64):
    settings = {"nodes": 96, "dt": 1.0, "times": 2, "viscosity": 5e-3, "modes": 2, "order": order}
    coarse, fine = (data.burgers(1, **settings, substeps=m).states[0, :, :, 0] for m in (16, 32))
    exact = cole_hopf(coarse[0], 1.0, viscosity=5e-3, convection=0.125, length=1.0)
    errors = [np.abs(run[1] - exact).max() for run in (coarse, fine)]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2
    assert errors[1] < smallest


def test_kuramoto_sivashinsky_satisfies_its_equation(x64):
    run = data.kuramoto_sivashinsky(1, nodes=96, times=3, dt=1e-3, warmup=3000, hyperdiffusion=10.0, modes=2)

    def velocity(u):
        u = u[..., 0]
        flux = 3.6 * u**2 / 2 + 1.44 * derivative(u, 60.0) + 10.0 * derivative(u, 60.0, order=3)
        return -derivative(flux, 60.0)[..., None]

    assert residual(run, velocity) < 1e-4


def soliton(x, time, *, speed, length):
    """Of u_t + 6 u u_x + u_xxx = 0 on a circle."""
    periods = [(x - speed * time - 0.3 * length + m * length) for m in (-2, -1, 0, 1, 2)]
    return sum(speed / 2 / np.cosh(np.sqrt(speed) / 2 * y) ** 2 for y in periods)


def test_solitons_keep_their_shape_and_speed_at_order_four(x64):
    x, errors = np.arange(128) * 50.0 / 128, []
    setting = periodic.Setting("korteweg_de_vries", 0, 1, 0, 0, 128, 1, 2, 4.0)
    for substeps in (80, 160):
        run = dataclasses.replace(setting, substeps=substeps).trajectories(
            evolution._korteweg,
            soliton(x, 0.0, speed=1.0, length=50.0)[None, None],
            {"convection": 6.0, "dispersion": 1.0, "hyperdiffusion": 0.0},
            length=50.0,
        )
        errors.append(np.abs(run.states[0, 1, :, 0] - soliton(x, 4.0, speed=1.0, length=50.0)).max())
    assert abs(np.log2(errors[0] / errors[1]) - 4) < 0.3
    assert errors[1] < 1e-6


def test_korteweg_de_vries_satisfies_its_equation(x64):
    run = data.korteweg_de_vries(1, nodes=96, times=3, dt=1e-3, warmup=100, substeps=1, modes=2)

    def velocity(u):
        u = u[..., 0]
        flux = 3 * u**2 + derivative(u, 50.0, order=2) + 0.125 * derivative(u, 50.0, order=3)
        return -derivative(flux, 50.0)[..., None]

    assert residual(run, velocity) < 1e-5


def test_gray_scott_satisfies_its_equation(x64):
    run = data.gray_scott(1, nodes=64, times=3, dt=1e-2, warmup=10)

    def velocity(states):
        u, v = np.moveaxis(field(states, 64), -1, 0)
        product = u * v**2
        u_t = 2e-5 * laplacian(u, 1.0) + 0.04 * (1 - u) - product
        v_t = 1e-5 * laplacian(v, 1.0) - (0.04 + 0.06) * v + product
        return np.stack([u_t, v_t], axis=-1).reshape(states.shape)

    assert residual(run, velocity) < 1e-3


def convected(w, stream, length):
    """v·∇w for v = (∂₂ψ, −∂₁ψ)."""
    return derivative(stream, length) * derivative(w, length, -2) - derivative(stream, length, -2) * derivative(
        w, length
    )


def poisson(f, length):
    """ψ of mean 0 with Δψ = f."""
    k = (2 * np.pi / length * np.fft.fftfreq(f.shape[-1], 1 / f.shape[-1])) ** 2
    symbol = k[:, None] + k
    symbol[0, 0] = np.inf
    return np.fft.ifft2(-np.fft.fft2(f) / symbol).real


def test_kolmogorov_flow_satisfies_its_equation(x64):
    length = 2 * np.pi
    run = data.kolmogorov_flow(1, nodes=48, times=3, dt=1e-3, warmup=200, viscosity=0.05, modes=2, substeps=1)

    def velocity(states):
        w = field(states, 48)[..., 0]
        force = -4 * np.cos(4 * np.arange(48) * length / 48)
        rate = -convected(w, poisson(w, length), length) + 0.05 * laplacian(w, length) - 0.1 * w + force
        return rate.reshape(states.shape)

    assert residual(run, velocity) < 1e-4


def test_navier_stokes_satisfies_its_equation_with_the_curl_as_vorticity(x64):
    # later than the finest initial waves, which products leave out
    run = data.navier_stokes(1, times=203, dt=1e-3, substeps=1, viscosity=5e-3, variance=2 * 7**3).between(200, None)
    x = np.arange(64) / 64
    phase = 2 * np.pi * (x[:, None] + x)

    def velocity(states):
        w = field(states, 64)[..., 0]
        # of an incompressible flow with ψ_2 = v_1, −ψ_1 = v_2 the curl is −Δψ
        rate = -convected(w, poisson(-w, 1.0), 1.0) + 5e-3 * laplacian(w, 1.0)
        return (rate + 0.1 * (np.sin(phase) + np.cos(phase))).reshape(states.shape)

    assert residual(run, velocity) < 1e-3


def test_the_initial_vorticity_has_the_variances_of_its_covariance():
    count, modes = 300, 3
    setting = periodic.Setting("any", 0, count, 0, 0, 8, 2, 2, 1.0)
    fields = periodic.gaussian_torus(setting, modes=modes, variance=lambda k: (k + 49) ** -2.5)[:, 0]
    spectrum = np.abs(np.fft.fft2(fields) / 64) ** 2
    k = np.fft.fftfreq(8, 1 / 8)
    squares = k[:, None] ** 2 + k**2
    inside = (np.maximum.outer(abs(k), abs(k)) <= modes) & (squares > 0)
    # a real field of eigenvalues λ has E|û_k|² = λ_k; |û_k|² is chi-squared with two degrees of freedom
    ratio = spectrum.mean(axis=0)[inside] / (4 * np.pi**2 * squares[inside] + 49) ** -2.5
    assert abs(ratio.mean() - 1) < 5 / np.sqrt(count * inside.sum() / 2)
    assert np.abs(ratio - 1).max() < 5 / np.sqrt(count)
    np.testing.assert_allclose(spectrum[:, ~inside], 0, atol=1e-30)


def test_a_range_is_drawn_for_every_trajectory_and_recorded(x64):
    run = data.advection(4, nodes=40, times=2, speed=(-0.5, 0.5))
    assert run.parameter_names == ("speed",)
    speeds = run.parameters[:, 0]
    assert len(set(speeds)) == 4
    for i, speed in enumerate(speeds):
        alone = data.advection(1, nodes=40, times=2, speed=float(speed), first=i)
        np.testing.assert_array_equal(alone.states[0], run.states[i])


def test_a_positive_range_is_drawn_in_its_logarithm():
    run = data.burgers(200, nodes=12, times=2, viscosity=(1e-5, 1e-3))
    share = (np.log(run.parameters[:, 0]) - np.log(1e-5)) / np.log(100)
    assert 0 < share.min() < share.max() < 1
    assert abs(share.mean() - 0.5) < 5 / np.sqrt(12 * 200)
    fixed = data.burgers(2, nodes=12, times=2)
    np.testing.assert_array_equal(fixed.states[:, 0], run.states[:2, 0])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("burgers", {"samples": 0}, "samples must be at least 1"),
        ("burgers", {"nodes": 10}, r"nodes must be at least 2·modes \+ 1 = 11"),
        ("burgers", {"times": 1}, "times must be at least 2"),
        ("burgers", {"dt": 0.0}, "dt must be positive"),
        ("burgers", {"substeps": 0}, "substeps must be at least 1"),
        ("burgers", {"order": 5}, "order must be 1, 2, 3 or 4"),
        ("burgers", {"viscosity": -1e-3}, "viscosity must be non-negative and finite"),
        ("burgers", {"viscosity": (0.0, 1e-3)}, "viscosity must be positive"),
        ("advection", {"speed": float("nan")}, "speed must be finite"),
        ("burgers", {"viscosity": (1e-3, 1e-4)}, r"range viscosity=\(0.001, 0.0001\) must increase"),
        ("burgers", {"viscosity": (1e-3, 1e-2, 1e-1)}, "viscosity must be one number or the two ends"),
        ("burgers", {"modes": 0}, "modes must be at least 1"),
        ("advection", {"length": -1.0}, "length must be positive"),
        ("navier_stokes", {"variance": 0.0}, "variance must be positive"),
        ("kolmogorov_flow", {"forced_mode": 12}, "forced_mode must lie between 1 and 11"),
        ("gray_scott", {"seed": -1}, "seed must be a non-negative integer"),
        ("gray_scott", {"first": -1}, "first must be at least 0"),
    ],
)
def test_bad_settings_say_what_is_wrong(name, settings, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make(name, **settings)


def test_a_forced_mode_is_a_whole_number_of_waves(unchecked):
    with pytest.raises(TypeError, match=r"forced_mode must be an integer, got 2\.5"):
        make("kolmogorov_flow", forced_mode=2.5)


def test_a_solution_that_blows_up_says_when():
    with pytest.raises(RuntimeError, match=r"sample 3 of burgers is not finite from t = \d+ on: .* raise substeps"):
        data.burgers(1, first=3, nodes=64, times=5, dt=10.0, convection=50.0, viscosity=1e-6)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "exponax", None)
    with pytest.raises(ImportError, match=r"problem burgers needs exponax; .*pip install 'jaxop\[dynamics\]'"):
        make("burgers")
