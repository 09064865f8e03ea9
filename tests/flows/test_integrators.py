"""Observed orders, structure, cost and misuse of the integrators."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import j1

from jaxop import flows
from jaxop.testing import count_compilations, observed_order

METHODS = [kind() for kind in flows.METHODS.values()]
ORDERS = dict(zip(flows.METHODS.values(), (1, 1, 1, 2, 2, 2), strict=True))
OSCILLATOR = flows.System(lambda state, t: (lambda y: y, -state.position))
by_name = {"argnames": "method", "argvalues": METHODS, "ids": lambda method: type(method).__name__}


@functools.partial(jax.jit, static_argnums=(0, 1, 4), static_argnames="system")
def end(method, steps, x, y, logarithmic, linear, time, length, system=OSCILLATOR):
    state = flows.start(method, x, y, time=time)
    schedule = flows.Damping(logarithmic, linear)
    advance = lambda state, _: (flows.step(method, system, state, schedule, length / steps), None)  # noqa: E731
    return jax.lax.scan(advance, state, length=steps)[0]


@pytest.mark.sample(2)
@pytest.mark.parametrize(**by_name)
@pytest.mark.parametrize("damping", ["nesterov", "constant"])
def test_observed_order(method, damping, x64):
    """ẍ + (3/t) ẋ + x = 0 has the solution J₁(t)/t; ẍ + ẋ/2 + x = 0 a damped cosine."""
    if damping == "nesterov":
        logarithmic, linear, begin, length = 3.0, 0.0, 1.0, 3.0
        solution = lambda t: j1(t) / t  # noqa: E731
    else:
        logarithmic, linear, begin, length = 0.0, 0.5, 0.0, 3.0
        omega = np.sqrt(1 - 1 / 16)
        solution = lambda t: np.exp(-t / 4) * np.cos(omega * t)  # noqa: E731
    eps = 1e-5
    x0, y0 = (np.asarray([v]) for v in (solution(begin), (solution(begin + eps) - solution(begin - eps)) / (2 * eps)))
    counts, errors = [64, 128, 256, 512], []
    for steps in counts:
        final = end(method, steps, x0, y0, logarithmic, linear, begin, length)
        errors.append(abs(float(final.position[0]) - solution(begin + length)))
    order = observed_order(counts, errors)
    assert order == pytest.approx(ORDERS[type(method)], abs=0.15), errors


@pytest.mark.parametrize("method", [flows.AdamsBashforth2(), flows.LawsonAdamsBashforth2()])
def test_two_step_methods_keep_their_order_on_uneven_steps(method, x64):
    @jax.jit
    def position(lengths):
        state = flows.start(method, jnp.ones(1), time=0.0)
        advance = lambda state, dt: (flows.step(method, OSCILLATOR, state, flows.Damping(linear=0.3), dt), None)  # noqa: E731
        return jax.lax.scan(advance, state, lengths)[0].position[0]

    def final(count):
        return float(position(np.where(np.arange(count) % 2 == 0, 1.5, 0.5) * (2.0 / count)))

    exact = final(8192)
    counts = [32, 64, 128]
    assert observed_order(counts, [abs(final(c) - exact) for c in counts]) == pytest.approx(2, abs=0.15)


def test_kick_damp_drift_is_conformally_symplectic(x64):
    """Jᵀ Ω J = σ Ω on a separable quadratic energy, under time-dependent damping."""
    rng = np.random.default_rng(0)
    stiffness, mass = (jnp.asarray(m @ m.T + np.eye(3)) for m in rng.normal(size=(2, 3, 3)))
    system = flows.System(lambda state, t: (lambda y: mass @ y, -stiffness @ state.position))
    schedule, method, dt = flows.Damping(logarithmic=3.0, linear=0.2), flows.KickDampDrift(), 0.3

    def advance(z):
        state = flows.step(method, system, flows.start(method, z[:3], z[3:], time=2.0), schedule, dt)
        return jnp.concatenate([state.position, state.velocity])

    jacobian = np.asarray(jax.jit(jax.jacfwd(advance))(rng.normal(size=6)))
    omega = np.kron([[0, 1], [-1, 0]], np.eye(3))
    sigma = (2.0 / 2.3) ** 3 * np.exp(-0.2 * 0.3)
    np.testing.assert_allclose(jacobian.T @ omega @ jacobian, sigma * omega, atol=1e-12)
    euler = jax.jit(
        jax.jacfwd(
            lambda z: jnp.concatenate(
                flows.step(flows.Euler(), system, flows.start(flows.Euler(), z[:3], z[3:]), schedule, dt)[:2]
            )
        )
    )
    euler = np.asarray(euler(np.zeros(6)))
    assert np.abs(euler.T @ omega @ euler - sigma * omega).max() > 0.01


def test_tao_is_symplectic_on_a_nonseparable_energy(x64):
    """On the doubled phase space, where the method lives; H = ½ (q² + 1)(p² + 1)."""
    system = flows.System(
        lambda state, t: (
            lambda y: (state.position**2 + 1) * y,
            -(state.velocity**2 + 1) * state.position,
        )
    )
    method = flows.TaoDoubling(coupling=3.0)

    def advance(z):
        state = flows.start(method, z[:1], z[1:2], time=0.0)
        state = state._replace(history=type(state.history)(z[2:3], z[3:]))
        new = flows.step(method, system, state, flows.Damping(), 0.1)
        return jnp.concatenate([new.position, new.velocity, *new.history])

    jacobian = np.asarray(jax.jit(jax.jacfwd(advance))(np.asarray([0.4, -0.3, 0.5, -0.2])))
    block = np.asarray([[0.0, 1.0], [-1.0, 0.0]])
    omega = np.kron(np.eye(2), block)
    # both copies carry the canonical form
    np.testing.assert_allclose(jacobian.T @ omega @ jacobian, omega, atol=1e-12)


@pytest.mark.parametrize(**by_name)
def test_energy_without_damping_is_constant_to_the_order(method, x64):
    counts, errors = [64, 128, 256], []
    for steps in counts:
        final = end(method, steps, np.ones(1), np.zeros(1), 0.0, 0.0, 0.0, 2.0)
        errors.append(abs((float(final.position[0]) ** 2 + float(final.velocity[0]) ** 2) / 2 - 0.5))
    assert observed_order(counts, errors) > ORDERS[type(method)] - 0.2, errors


@pytest.mark.parametrize("method", [flows.KickDampDrift(), flows.TaoDoubling(2.0)])
def test_symplectic_energy_does_not_drift(method, x64):
    first, second = (end(method, steps, np.ones(1), np.zeros(1), 0.0, 0.0, 0.0, 0.1 * steps) for steps in (100, 20_000))
    energy = [(float(s.position[0]) ** 2 + float(s.velocity[0]) ** 2) / 2 for s in (first, second)]
    assert all(abs(e - 0.5) < 0.03 for e in energy)


@pytest.mark.parametrize(**by_name)
def test_evaluations_of_the_rates(method):
    calls = 0

    def rates(state, t):
        nonlocal calls
        calls += 1
        return (lambda y: y), -state.position

    flows.step(method, flows.System(rates), flows.start(method, jnp.ones(2)), flows.Damping(linear=1.0), 0.1)
    assert calls == (4 if isinstance(method, flows.TaoDoubling) else 1)


@pytest.mark.parametrize(**by_name)
def test_a_drift_given_as_an_array_means_the_same(method):
    arrays = flows.System(lambda state, t: (state.velocity, -state.position))
    start = flows.start(method, jnp.ones(2), jnp.full(2, 0.5))
    step = jax.jit(
        lambda start: [flows.step(method, s, start, flows.Damping(linear=1.0), 0.1) for s in (arrays, OSCILLATOR)]
    )
    ours, theirs = step(start)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(**by_name)
def test_two_clocks(method, x64):
    """(h_x, h_y) is the same system with its drift scaled by h_x/h_y."""
    scaled = flows.System(lambda state, t: (lambda y: 0.5 * y, -state.position))
    start = flows.start(method, jnp.ones(2), jnp.full(2, 0.5))
    clocks = (OSCILLATOR, (0.05, 0.1)), (scaled, 0.1)
    step = jax.jit(lambda start: [flows.step(method, s, start, flows.Damping(linear=1.0), dt) for s, dt in clocks])
    ours, theirs = step(start)
    np.testing.assert_allclose(ours.position, theirs.position, rtol=1e-14)
    np.testing.assert_allclose(ours.velocity, theirs.velocity, rtol=1e-14)


@pytest.mark.sample(2)
@pytest.mark.parametrize(**by_name)
def test_compiles_once_and_differentiates_in_its_settings(method):
    @jax.jit
    def final(dt, rate):
        state = flows.start(method, jnp.ones(2))
        advance = lambda state, _: (flows.step(method, OSCILLATOR, state, flows.Damping(linear=rate), dt), None)  # noqa: E731
        return jax.lax.scan(advance, state, length=5)[0].position[0]

    gradient = jax.jit(jax.grad(final, argnums=(0, 1)))
    slopes = gradient(0.1, 0.5)
    with count_compilations() as compilations:
        gradient(0.1, 0.5)
    assert compilations() == 0
    for index, (low, high) in enumerate((((0.099, 0.5), (0.101, 0.5)), ((0.1, 0.49), (0.1, 0.51)))):
        step = high[index] - low[index]
        difference = float(final(*high) - final(*low)) / step
        assert float(slopes[index]) == pytest.approx(difference, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1e-8, 1e-6, 1e-3, 0.4, 0.6, 3.0])
def test_exponential_euler_differentiates_at_small_damping(rate):
    """d/dα of h (1 − e^{−αh})/(αh), force 1 from rest."""
    system = flows.System(lambda state, t: (lambda y: y, jnp.ones_like(state.position)))
    method, h = flows.ExponentialEuler(), 0.1

    def velocity(rate):
        return flows.step(method, system, flows.start(method, jnp.zeros(1)), flows.Damping(linear=rate), h).velocity[0]

    eta = rate * h
    exact = -(h**2) / 2 if eta < 1e-4 else h**2 * ((1 + eta) * np.exp(-eta) - 1) / eta**2
    assert float(jax.jit(jax.grad(velocity))(rate)) == pytest.approx(exact, rel=2e-4)


def test_simulations_of_one_kind_compile_once():
    euler = flows.Euler()
    arguments = euler, OSCILLATOR, flows.start(euler, jnp.ones(2)), flows.Damping(linear=1.0)
    flows.simulate(*arguments, 0.1, 10)
    with count_compilations() as compilations:
        flows.simulate(*arguments, 0.2, 10)
    assert compilations() == 0


def test_bad_input(unchecked):
    euler = flows.Euler()
    state = flows.start(euler, jnp.ones(2))
    for dt in (0.0, -0.1, float("nan"), (0.1, -0.1)):
        with pytest.raises(ValueError, match="dt must be positive and finite"):
            flows.step(euler, OSCILLATOR, state, flows.Damping(), dt)
    with pytest.raises(ValueError, match="linear must be finite and at least 0, got -1"):
        flows.Damping(linear=-1.0)
    with pytest.raises(TypeError, match=r"method must be one of flows.Euler\(\)"):
        flows.step(flows.Euler, OSCILLATOR, state, flows.Damping(), 0.1)
    for method in (flows.AdamsBashforth2(), flows.TaoDoubling()):
        with pytest.raises(TypeError, match="started with another method"):
            flows.step(method, OSCILLATOR, state, flows.Damping(), 0.1)
    two_step = flows.start(flows.AdamsBashforth2(), jnp.ones(2))
    with pytest.raises(TypeError, match="started with another method"):
        flows.step(flows.LawsonAdamsBashforth2(), OSCILLATOR, two_step, flows.Damping(), 0.1)
    with pytest.raises(ValueError, match="logarithmic damping c/t needs t > 0, got t = 0"):
        flows.step(euler, OSCILLATOR, flows.start(euler, jnp.ones(2), time=0.0), flows.Damping(logarithmic=3.0), 0.1)
    with pytest.raises(ValueError, match="coupling must be finite"):
        flows.TaoDoubling(float("nan"))
    with pytest.raises(TypeError, match="coupling must be one number, got '1'"):
        flows.TaoDoubling("1")
    for time in (None, "0", True, jnp.ones(2)):
        with pytest.raises(TypeError, match="time must be one number"):
            flows.start(euler, jnp.ones(2), time=time)
    for dt in (-0.1, 0.0, float("nan")):
        with pytest.raises(ValueError, match="dt must be positive and finite"):
            flows.simulate(euler, OSCILLATOR, state, flows.Damping(), dt, 5)
    with pytest.raises(TypeError, match=r"schedule must be a flows.Damping\(...\), got 3.0"):
        flows.step(euler, OSCILLATOR, state, 3.0, 0.1)
    for method in ("euler", flows.Euler):
        with pytest.raises(TypeError, match="method must be an integrator such as"):
            flows.start(method, jnp.ones(2))
    with pytest.raises(TypeError, match=r"rates\(state, t\) must return \(drift, force\)"):
        flows.step(euler, flows.System(lambda state, t: -state.position), state, flows.Damping(), 0.1)
    with pytest.raises(ValueError, match="velocity must have the shape"):
        flows.start(euler, jnp.ones(2), jnp.ones(3))
    for dt, error in (((0.1,) * 3, ValueError), ("0.1", TypeError), (None, TypeError), (True, TypeError)):
        with pytest.raises(error, match="dt must be a"):
            flows.step(euler, OSCILLATOR, state, flows.Damping(), dt)
    for coefficient in ("3", True, jnp.ones(2)):
        with pytest.raises(TypeError, match="linear must be one number"):
            flows.Damping(linear=coefficient)
    with pytest.raises(TypeError, match=r"system must be a flows.System\(rates\), got function"):
        flows.step(euler, lambda state, t: state, state, flows.Damping(), 0.1)
    with pytest.raises(TypeError, match=r"state must come from flows.start\(method, position\), got"):
        flows.step(euler, OSCILLATOR, jnp.ones(2), flows.Damping(), 0.1)


def test_simulations_name_their_bad_input(unchecked):
    euler, schedule = flows.Euler(), flows.Damping()
    state = flows.start(euler, jnp.ones(2))
    for dt, steps in ((0.1, 10.0), (0.1, True), (0.1, None), (0.1, "10"), (100, 0.01)):
        with pytest.raises(TypeError, match=f"steps must be a positive integer, got {steps!r}; dt comes first"):
            flows.simulate(euler, OSCILLATOR, state, schedule, dt, steps)
    with pytest.raises(TypeError, match=r"every must be a positive integer, got 2\.0"):
        flows.simulate(euler, OSCILLATOR, state, schedule, 0.1, 4, every=2.0)
    for steps in (0, 3):
        with pytest.raises(ValueError, match=f"steps must be a positive multiple of every = 2, got {steps}"):
            flows.simulate(euler, OSCILLATOR, state, schedule, 0.1, steps, every=2)
    with pytest.raises(TypeError, match=r"state must come from flows.start\(method, position\), got System"):
        flows.simulate(euler, OSCILLATOR, OSCILLATOR, schedule, 0.1, 4)
    with pytest.raises(TypeError, match=r"method must be one of flows.Euler\(\)"):
        flows.simulate(OSCILLATOR, euler, state, schedule, 0.1, 4)
    assert flows.simulate(euler, OSCILLATOR, state, schedule, 0.1, np.int64(4)).position.shape == (5, 2)


@pytest.mark.parametrize("method", [flows.AdamsBashforth2(), flows.LawsonAdamsBashforth2()])
def test_two_step_methods_do_not_read_the_clock(method):
    """Late in a flow t + dt − t has lost most digits of dt."""
    ends = [end(method, 200, jnp.ones(1), jnp.zeros(1), 0.0, 0.0, begin, 2.0).position for begin in (0.0, 2e4)]
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-5)


@pytest.mark.sample(4)
@pytest.mark.parametrize(**by_name)
def test_half_precision_is_kept_by_a_step_and_the_clock_is_not_in_it(method):
    state = flows.start(method, jnp.ones(3, jnp.bfloat16))
    path = flows.simulate(method, OSCILLATOR, state, flows.Damping(linear=1.0), 0.01, 10)
    assert path.state.position.dtype == jnp.bfloat16
    assert path.state.time == pytest.approx(1.1, rel=1e-5)
