"""Orders and rates that theory predicts, measured.

python scripts/studies/run.py theory quadrature    # attention as the grid is refined
python scripts/studies/run.py theory density       # density estimation with Fourier integral kernels
python scripts/studies/run.py theory particles     # steps of Stein flows against the condition of the target
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.interpolate
import scipy.optimize
import tyro

from jaxop import domains, flows, kernel_machines, kernels, testing
from jaxop.attention import integral_attention
from studies.results import About
from studies.table import print_header, print_row

ABOUT = {
    "theory-quadrature": About(
        "Attention converges at the order of its quadrature rule",
        "Queries, keys and values are smooth functions on the unit interval. The columns are the largest errors of "
        "attention at two points for growing numbers of nodes; Monte Carlo shows the root mean square over 1000 draws. "
        "The last columns are the measured order and the order that the theory of the rule predicts.",
    ),
    "theory-density": About(
        "Density estimation with Fourier integral kernels converges at the predicted rate",
        "The density of a standard normal distribution in D dimensions is estimated from N points with the radius that "
        "is best for each N. The columns are mean integrated squared errors over replicates. The slope is that of "
        "their logarithm against log N. The exact slope is that of the error's exact formula at the same N, and theory "
        "is the limit for large N. The kernel of power 1 takes negative values and cannot be used in attention.",
    ),
    "theory-particles": About(
        "Steps of Stein flows against the condition of a Gaussian target",
        "Four particles with a bilinear kernel follow the Stein flow to a Gaussian target of condition κ. The cells "
        "are steps until the covariance is within 1e-6 of the target's, at the best step size and damping of a grid. "
        "The exponent is the slope of log steps against log κ. Theory predicts κ for the first order, and √κ times "
        "a factor that grows like log κ with acceleration.",
    ),
}


THEORY = {"trapezoid": "2", "midpoint": "2", "gauss-legendre": "faster than any", "Monte Carlo": "0.5"}
"""The order of every rule in theory."""


def quadrature(sizes: Sequence[int]) -> None:
    """Prints the errors of attention under four rules."""
    print_header("rule", *(f"n = {n}" for n in sizes), "order", "theory")
    for rule, errors in quadrature_errors(sizes).items():
        intervals = [n - (rule == "trapezoid") for n in sizes]
        order = "" if rule == "gauss-legendre" else f"{testing.observed_order(intervals, errors):.2f}"
        print_row(rule, *(f"{error:.1e}" for error in errors), order, THEORY[rule])


def quadrature_errors(sizes: Sequence[int]) -> dict[str, list[float]]:
    """Returns the largest errors of attention on n nodes by the name of the rule; root mean squares of Monte Carlo."""

    def functions(points: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        angles = points * jnp.arange(1.0, 5.0)
        return jnp.cos(angles)[:, None], jnp.sin(angles + 0.3)[:, None], jnp.exp(points)[:, None]

    @jax.jit
    def attend(domain: domains.Domain) -> jax.Array:
        query, _, _ = functions(jnp.asarray([[0.2], [0.9]]))
        _, key, value = functions(domain.points)
        return integral_attention(query, key, value, domain.weights)[:, 0, 0]

    truth = attend(domains.interval(60, rule="gauss-legendre"))

    @jax.jit
    def by_chance(draws: jax.Array) -> jax.Array:
        found = jax.vmap(lambda points: attend(domains.monte_carlo(points)))(draws)
        return jnp.sqrt(jnp.mean((found - truth) ** 2))

    errors = {
        rule: [float(jnp.abs(attend(domains.interval(n, rule=rule)) - truth).max()) for n in sizes]
        for rule in ("trapezoid", "midpoint", "gauss-legendre")
    }
    return errors | {
        "Monte Carlo": [float(by_chance(jax.random.uniform(jax.random.key(n), (1000, n, 1)))) for n in sizes]
    }


def density(sizes: Sequence[int], draws: int = 500_000) -> None:
    """Prints the errors of density estimation for three powers of the kernel in one and two dimensions.

    Args:
        sizes: points of a sample.
        draws: points of all samples of a cell; a fifth of them in two dimensions.
    """
    titles = (f"N = {n}" for n in sizes)
    print_header("D, power", *titles, "slope", "exact slope", "theory")
    limits = {4: lambda dim: f"−4/{dim + 4}", 2: lambda dim: f"−2/{dim + 2}", 1: lambda _: "almost −1"}
    for dim in (1, 2):
        for power, limit in limits.items():
            best = [best_radius(n, dim, power) for n in sizes]
            errors = [
                measured_error(radius, n, dim, power, replicates=draws // n if dim == 1 else draws // (5 * n))
                for n, (radius, _) in zip(sizes, best, strict=True)
            ]
            slopes = (-testing.observed_order(sizes, values) for values in (errors, [exact for _, exact in best]))
            print_row(f"{dim}, {power}", *(f"{e:.1e}" for e in errors), *(f"{s:.2f}" for s in slopes), limit(dim))


def exact_error(radius: float, count: int, dim: int, power: int) -> float:
    """Mean integrated squared error for a standard normal density p.

    MISE = (2π)^−D ∫ |p̂|² (1 − K̂)² + K̂² (1 − |p̂|²)/N dω with K̂ a product of B-splines of order ``power``.
    """
    limit = power * radius
    omega = np.linspace(0, max(limit, 8.0), 4001)
    if power == 1:
        transform = (omega <= limit).astype(float)
    else:
        spline = scipy.interpolate.BSpline.basis_element(np.linspace(-limit, limit, power + 1), extrapolate=False)
        transform = np.nan_to_num(spline(omega)) / spline(0.0)
    normal = np.exp(-(omega**2))
    # the integrand is a sum of products of functions of one coordinate
    p, pk, pkk, kk = (
        (2 * np.trapezoid(f, omega) / (2 * np.pi)) ** dim
        for f in (normal, normal * transform, normal * transform**2, transform**2)
    )
    return float(p - 2 * pk + pkk + (kk - pkk) / count)


def best_radius(count: int, dim: int, power: int) -> tuple[float, float]:
    """The radius with the least exact error, and that error."""
    found = scipy.optimize.minimize_scalar(
        lambda log: exact_error(math.exp(log), count, dim, power), bounds=(-2, 3), method="bounded"
    )
    return math.exp(found.x), found.fun


def measured_error(radius: float, count: int, dim: int, power: int, *, replicates: int) -> float:
    """The mean over replicates of the integrated squared error on [−8, 8]^D."""
    axis = np.linspace(-8, 8, 161 if dim == 1 else 57)
    grid = jnp.asarray(np.stack(np.meshgrid(*[axis] * dim), axis=-1).reshape(-1, dim))
    truth = jnp.exp(-jnp.sum(grid**2, axis=1) / 2) / (2 * math.pi) ** (dim / 2)
    estimator = kernel_machines.FourierDensity(radius, power)

    def one(rng_key: jax.Array) -> jax.Array:
        found = estimator.fit(jax.random.normal(rng_key, (count, dim)))
        return jnp.sum((found.predict(grid) - truth) ** 2)

    keys = jax.random.split(jax.random.key(0), replicates)
    return float(jnp.mean(jax.jit(lambda keys: jax.lax.map(one, keys))(keys))) * float(axis[1] - axis[0]) ** dim


def particles(conditions: Sequence[int]) -> None:
    """Prints the steps to a Gaussian target, of the first order and accelerated."""
    print_header("flow", *(f"κ = {condition}" for condition in conditions), "exponent", "theory")
    for label, is_accelerated, theory in (("first order", False, "1"), ("accelerated", True, "1/2 and a log κ")):
        steps = [steps_to_target(condition, is_accelerated) for condition in conditions]
        exponent = -testing.observed_order(conditions, steps)
        print_row(label, *(f"{count:.0f}" for count in steps), f"{exponent:.2f}", theory)


def steps_to_target(condition: int, is_accelerated: bool) -> float:
    """Steps until the covariance of the particles is within 1e-6 of the target's, at the best step and damping."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    precision = jnp.asarray(basis @ np.diag(np.geomspace(1, condition, 4)) @ basis.T)
    covariance, points = jnp.linalg.inv(precision), jnp.asarray(rng.normal(size=(4, 4)))
    score, kernel = (lambda x: -precision @ x), kernels.Bilinear(jnp.eye(4), None)
    if is_accelerated:
        method, system = flows.KickDampDrift(), flows.stein_momentum_flow(score=score, kernel=kernel)
        steps, damping, most = (
            jnp.geomspace(1.0, 2.6, 40) / condition**0.5,
            jnp.linspace(1.8, 3.0, 7),
            40 * condition**0.5,
        )
    else:
        method, system = flows.Euler(), flows.stein_flow(score=score, kernel=kernel)
        steps, damping, most = jnp.geomspace(0.5, 3.0, 40) / condition, jnp.zeros(1), 10 * condition

    def run(dt: jax.Array, rate: jax.Array) -> jax.Array:
        def advance(
            carry: tuple[flows.State, jax.Array], count: jax.Array
        ) -> tuple[tuple[flows.State, jax.Array], None]:
            state, reached = carry
            state = flows.step(method, system, state, flows.Damping(linear=rate), dt)
            gap = jnp.linalg.norm(state.position.T @ state.position / 4 - covariance) / jnp.linalg.norm(covariance)
            # a run that leaves the target again has not reached it
            return (state, jnp.where(gap < 1e-6, jnp.minimum(reached, count), jnp.inf)), None

        start = flows.start(method, points), jnp.asarray(jnp.inf)
        return jax.lax.scan(advance, start, jnp.arange(1.0, int(most) + 1))[0][1]

    return float(jnp.nanmin(jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(steps, damping)))


Name = Literal["quadrature", "density", "particles"]

TABLES: dict[Name, tuple[Callable[[Sequence[int]], None], tuple[int, ...]]] = {
    "quadrature": (quadrature, (8, 16, 32, 64)),
    "density": (density, (256, 512, 1024, 2048, 4096)),
    "particles": (particles, (64, 128, 256, 512, 1024)),
}
"""Every table and its sizes."""


def main(name: tyro.conf.Positional[Name], sizes: tuple[int, ...] | None = None) -> None:
    """Prints the table NAME, computed in float64.

    Args:
        name: the table.
        sizes: numbers of nodes, numbers of points, or conditions of the target; None takes those of the table.
    """
    table, usual = TABLES[name]
    with jax.enable_x64(True):
        table(sizes or usual)
