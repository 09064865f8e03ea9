"""Stein variational gradient flow of particles towards a density, and its acceleration."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import is_concrete
from jaxop.attention import integral_attention
from jaxop.attention.operands import cast_kernel
from jaxop.flows.checks import check_ensemble, check_number
from jaxop.flows.linear import moment
from jaxop.flows.system import System, first_order, second_order
from jaxop.kernels import Bilinear, Kernel

_ROWS = 256
"""Number of particles whose derivatives are computed at a time."""


def stein_force(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    score: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    kernel: Kernel,
) -> Float[Array, "n d"]:
    """φ(x_i) = Σ_j w_j (k(x_i, x_j) ∇log π(x_j) + ∇_{x_j} k(x_i, x_j)), the steepest descent of KL(ρ | π).

    Args:
        x: particles, one per row, (n, d).
        weights: masses in any unit, scaled to sum 1, (n,); None means equal masses.
        score: ∇log π of one point, (d,) to (d,).
        kernel: any symmetric kernel, such as `jaxop.kernels.Gaussian`, `InverseMultiquadric` or `Bilinear`.

    Returns:
        Shape (n, d).

    Raises:
        ValueError: if shapes do not fit, or weights are negative or all 0.

    Cost: O(n² d) time, O(n d) memory; with the bilinear kernel O(n d²) time.

    Source: Liu, Wang, "Stein Variational Gradient Descent", arXiv:1608.04471.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows, kernels
        >>> flows.stein_force(jnp.eye(3, 2), score=lambda x: -x, kernel=kernels.Gaussian()).shape
        (3, 2)
    """
    x, weights = check_ensemble(x, weights)
    kernel = cast_kernel(kernel, x.dtype)
    slopes = _scores(score, x)
    if isinstance(kernel, Bilinear):
        features, form, embed = _features(x, kernel)
        return features @ (form @ moment(features, slopes, weights) + jnp.sum(weights) * form @ embed.T)
    return _integrate(x, slopes, weights, kernel) + _repulsion(x, weights, kernel)


@jax.jit
def _repulsion(x: Array, weights: Array, kernel: Kernel) -> Array:
    """Σ_j w_j ∇_{x_j} k(x_i, x_j)."""

    def one(point: Array) -> Array:
        shifted = lambda shift: jnp.dot(weights, jax.vmap(lambda other: kernel(point, other + shift))(x))  # noqa: E731
        return jax.grad(shifted)(jnp.zeros_like(point))

    return jax.lax.map(one, x, batch_size=_ROWS)


def stein_rates(
    x: Float[Array, "n d"],
    velocity: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    score: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    kernel: Kernel,
    regularization: float = 1e-3,
) -> Float[Array, "n d"]:
    """u̇ without damping along the accelerated Stein flow, the Hamiltonian flow of KL in the Stein metric.

        u_i = Σ_j w_j k(x_i, x_j) y_j,
        u̇_i = φ(x_i) − Σ_j w_j k(x_i, x_j) Σ_l w_l (y_j·y_l) ∇₁k(x_j, x_l) + Σ_j w_j (∇₁k_ij·u_i + ∇₂k_ij·u_j) y_j

    The gradient of log ρ in ẏ does not appear, because the kernel turns it into a term of `stein_force`. The momenta y
    are recovered from the velocities by (K W + ε) y = u.

    Args:
        x: particles, (n, d); with the bilinear kernel their matrix of moments must not be singular.
        velocity: u, (n, d).
        weights: masses in any unit, (n,); None means equal masses.
        score: ∇log π of one point.
        kernel: any symmetric kernel. If it is bilinear, its symmetric part is used, and its offset must be None or not
            0.
        regularization: ε > 0, in units of the kernel. The bilinear kernel does not need it, because y is affine in x.

    Returns:
        Shape (n, d).

    Raises:
        ValueError: for the reasons of `stein_force`, or if the regularization is not positive.

    Cost: O(n³ + n² d) time, O(n²) memory; with the bilinear kernel O(n d² + d³) time.

    Source: Stein, Li, "Accelerated Stein Variational Gradient Flow", arXiv:2503.23462; the form in velocities is ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows, kernels
        >>> x, u = jnp.eye(3, 2), jnp.zeros((3, 2))
        >>> flows.stein_rates(x, u, score=lambda x: -x, kernel=kernels.Gaussian()).shape
        (3, 2)
    """
    check_number(regularization, "regularization")
    if is_concrete(regularization) and not regularization > 0:
        raise ValueError(f"regularization must be positive, got {regularization}; kernel matrices are nearly singular.")
    x, weights, u = check_ensemble(x, weights, velocity=velocity)
    kernel = cast_kernel(kernel, x.dtype)
    force = stein_force(x, weights, score=score, kernel=kernel)
    if isinstance(kernel, Bilinear):
        features, form, embed = _features(x, kernel)
        second = _second_moment(features, weights)
        projected = jnp.linalg.solve(second, moment(features, u, weights))
        y = features @ jnp.linalg.solve(second, jnp.linalg.solve(form, projected))
        mixed = form @ moment(features, y, weights)
        bent = u @ (embed @ mixed) - features @ (mixed @ (embed @ mixed).T)
        return force + bent + features @ (form @ embed.T @ moment(u, y, weights))
    pairs = jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(x))
    n = x.shape[0]
    y = jnp.linalg.solve(pairs(x) * weights[None, :] + regularization * jnp.eye(n, dtype=x.dtype), u)
    bent = _pull(x, y, weights, kernel)
    return force - _integrate(x, bent, weights, kernel) + _transport(x, u, y, weights, kernel)


@jax.jit
def _pull(x: Array, y: Array, weights: Array, kernel: Kernel) -> Array:
    """Σ_l w_l (y_j·y_l) ∇₁k(x_j, x_l)."""

    def one(inputs: tuple[Array, Array]) -> Array:
        point, momentum = inputs
        potential = lambda point: jnp.dot(weights * (y @ momentum), jax.vmap(lambda b: kernel(point, b))(x))  # noqa: E731
        return jax.grad(potential)(point)

    return jax.lax.map(one, (x, y), batch_size=_ROWS)


@jax.jit
def _transport(x: Array, u: Array, y: Array, weights: Array, kernel: Kernel) -> Array:
    """Σ_j w_j (∇₁k_ij·u_i + ∇₂k_ij·u_j) y_j."""

    def one(inputs: tuple[Array, Array]) -> Array:
        point, direction = inputs

        def along(tau: Array) -> Array:
            row = jax.vmap(lambda b, v: kernel(point + tau * direction, b + tau * v))(x, u)
            return (weights * row) @ y

        return jax.jvp(along, (jnp.zeros((), x.dtype),), (jnp.ones((), x.dtype),))[1]

    return jax.lax.map(one, (x, u), batch_size=_ROWS)


def stein_momentum_rates(
    x: Float[Array, "n d"],
    momentum: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    score: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    kernel: Kernel,
) -> tuple[Callable[[Array], Array], Float[Array, "n d"]]:
    """ẋ_i = Σ_j w_j k(x_i, x_j) y_j and ẏ_i = ∇log π(x_i) − ∇log ρ(x_i) − Σ_j w_j (y_i·y_j) ∇₁k(x_i, x_j), undamped.

    This is the accelerated Stein flow in its own variables, for the bilinear kernel. The kernel uses only the affine
    part of ∇log ρ, which Stein's identity gives exactly from the moments of the particles. The flow is that of
    `stein_rates`, but stable with longer steps.

    Args:
        x: particles, (n, d); their matrix of moments must not be singular.
        momentum: y, (n, d).
        weights: masses in any unit, (n,); None means equal masses.
        score: ∇log π of one point.
        kernel: a bilinear kernel.

    Returns:
        (drift, force): the function y ↦ ẋ at this x, and ẏ without damping, (n, d).

    Raises:
        TypeError: if the kernel is not bilinear.
        ValueError: for the reasons of `stein_force`.

    Cost: O(n d² + d³) time, O(n d) memory.

    Source: Stein, Li, "Accelerated Stein Variational Gradient Flow", arXiv:2503.23462.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows, kernels
        >>> x = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 1.0]])
        >>> kernel = kernels.Bilinear(jnp.eye(2))
        >>> drift, force = flows.stein_momentum_rates(x, 0 * x, score=lambda x: -x, kernel=kernel)
        >>> force.shape
        (4, 2)
    """
    x, weights, y = check_ensemble(x, weights, momentum=momentum)
    if not isinstance(kernel, Bilinear):
        raise TypeError(f"momenta are known only for kernels.Bilinear, got {type(kernel).__name__}; use stein_rates.")
    features, form, embed = _features(x, cast_kernel(kernel, x.dtype))
    entropic = features @ jnp.linalg.solve(_second_moment(features, weights), embed.T)
    bent = y @ (moment(y, features, weights) @ form @ embed.T)

    def drift(y: Array) -> Array:
        return features @ (form @ moment(features, y, weights))

    return drift, _scores(score, x) + entropic - bent


def stein_momentum_flow(
    weights: Float[Array, " n"] | None = None,
    *,
    score: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    kernel: Kernel,
) -> System:
    """The accelerated Stein flow of the bilinear kernel as a `System` of momenta; see `stein_momentum_rates`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows, kernels
        >>> system = flows.stein_momentum_flow(score=lambda x: -x, kernel=kernels.Bilinear(jnp.eye(2)))
        >>> method = flows.KickDampDrift()
        >>> state = flows.start(method, jnp.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 1.0]]))
        >>> flows.step(method, system, state, flows.Damping(linear=2.0), 0.1).position.shape
        (4, 2)
    """
    rates = functools.partial(stein_momentum_rates, weights=weights, score=score, kernel=kernel)
    return System(lambda state, t: rates(state.position, state.velocity))


def stein_flow(
    weights: Float[Array, " n"] | None = None,
    *,
    score: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    kernel: Kernel,
) -> System:
    """ẋ = φ(x) as a `System`; see `stein_force`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows, kernels
        >>> system, euler = flows.stein_flow(score=lambda x: -x, kernel=kernels.Gaussian()), flows.Euler()
        >>> flows.step(euler, system, flows.start(euler, jnp.eye(3, 2)), flows.Damping(), 0.1).position.shape
        (3, 2)
    """
    return first_order(functools.partial(stein_force, weights=weights, score=score, kernel=kernel))


def accelerated_stein_flow(
    weights: Float[Array, " n"] | None = None,
    *,
    score: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    kernel: Kernel,
    regularization: float = 1e-3,
) -> System:
    """The accelerated Stein flow as a `System` of positions and velocities; see `stein_rates`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows, kernels
        >>> system = flows.accelerated_stein_flow(score=lambda x: -x, kernel=kernels.Bilinear(jnp.eye(2)))
        >>> method = flows.KickDampDrift()
        >>> state = flows.start(method, jnp.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 1.0]]))
        >>> flows.step(method, system, state, flows.Damping(linear=2.0), 0.1).position.shape
        (4, 2)
    """
    return second_order(
        functools.partial(stein_rates, weights=weights, score=score, kernel=kernel, regularization=regularization)
    )


def _scores(score: Callable[[Array], Array], x: Array) -> Array:
    """∇log π at every particle."""
    if not callable(score):
        raise TypeError(f"score must be the function ∇log π of one point, (d,) to (d,), got {type(score).__name__}.")
    slopes: object = jax.vmap(score)(x)
    if slopes.shape != x.shape:
        raise ValueError(f"score must map ({x.shape[1]},) to ({x.shape[1]},), got shape {slopes.shape[1:]}.")
    return slopes


def _second_moment(features: Array, weights: Array) -> Array:
    """Σ_i w_i φ_i φ_iᵀ, which must not be singular."""
    second = moment(features, features, weights)
    needed = features.shape[1]
    known = is_concrete(second)
    rank = int(np.linalg.matrix_rank(np.asarray(second))) if known else min(features.shape)
    if rank < needed:
        raise ValueError(
            f"x must hold at least {needed} independent particles of positive weight for this bilinear kernel, got "
            f"{rank}: their moments are singular."
        )
    return second


def _features(x: Array, kernel: Bilinear) -> tuple[Array, Array, Array]:
    """Rows φ with k(x, y) = φ(x)ᵀ F φ(y), F symmetric, and ∂φ/∂x as a (d, r) matrix."""
    d = x.shape[1]
    if jnp.shape(kernel.matrix) != (d, d):
        raise ValueError(f"kernel's matrix must be ({d}, {d}) like the particles, got {jnp.shape(kernel.matrix)}.")
    form = (kernel.matrix + kernel.matrix.T) / 2
    identity = jnp.eye(d, dtype=x.dtype)
    if kernel.offset is None:
        return x, form, identity
    if is_concrete(kernel.offset) and float(np.asarray(kernel.offset)) == 0:
        raise ValueError("offset must not be 0, which leaves a feature without effect; give offset=None instead.")
    form = jax.scipy.linalg.block_diag(form, jnp.reshape(jnp.asarray(kernel.offset, x.dtype), (1, 1)))
    features = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    return features, form, jnp.concatenate([identity, jnp.zeros((d, 1), x.dtype)], axis=1)


def _integrate(x: Array, value: Array, weights: Array, kernel: Kernel) -> Array:
    return integral_attention(x[:, None], x[:, None], value[:, None], weights, kernel=kernel, normalize=False)[:, 0]
