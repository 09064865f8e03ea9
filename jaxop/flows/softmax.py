r"""Softmax attention as a gradient flow of particles, and its acceleration.

Particles x_i of mass w_i, Σ w_i = 1; M_ij = exp(x_iᵀ A x_j), z_i = Σ_j w_j M_ij, P_ij = w_j M_ij / z_i. In the
metric with mobility B/z, the energy −½ Σ_ij w_i w_j M_ij has the gradient flow ẋ_i = Σ_j P_ij V x_j with V = B A.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxop.attention import integral_attention
from jaxop.flows.checks import check_ensemble, check_matrix
from jaxop.flows.system import System, first_order, second_order
from jaxop.kernels import ExpDotProduct


def softmax_force(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    score: Float[Array, "d d"],
    value: Float[Array, "d d"],
    implementation: str | None = None,
) -> Float[Array, "n d"]:
    """Γ_i = Σ_j P_ij V x_j, one head of softmax attention as a velocity field.

    Args:
        x: particles, one per row, (n, d).
        weights: masses in any unit, (n,), such as the quadrature weights of a domain, scaled to sum 1; None means
            equal masses.
        score: A, any matrix.
        value: V, any matrix.
        implementation: the implementation of `jaxop.attention.integral_attention`.

    Returns:
        Shape (n, d).

    Raises:
        ValueError: if shapes do not fit, or weights are negative or all 0.

    Cost: one call of `integral_attention`: O(n² d) time, and O(n d) memory above 128² pairs.

    Source: Geshkovski, Letrouit, Polyanskiy, Rigollet, arXiv:2312.10794.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> flows.softmax_force(jnp.eye(3, 2), score=jnp.eye(2), value=jnp.eye(2)).shape
        (3, 2)
    """
    x, weights = check_ensemble(x, weights)
    score, value = (check_matrix(m, name, x) for m, name in ((score, "score"), (value, "value")))
    return _attend(x @ score, x, x, weights, implementation) @ value.T


def softmax_rates(
    x: Float[Array, "n d"],
    velocity: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    score: Float[Array, "d d"],
    mobility: Float[Array, "d d"],
    implementation: str | None = None,
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """Γ and C of the accelerated softmax flow ẍ = −α ẋ + Γ − C, V = B A, u = ẋ.

        C_i = a_i u_i − ½ (s_i Γ_i + Σ_j P_ij s_j V x_j),
        s_i = u_iᵀ B⁻¹ u_i,    a_i = Σ_j P_ij (u_iᵀ A x_j + x_iᵀ A u_j).

    This equals the Hamiltonian flow of `softmax_momentum_rates` with y_i = z_i B⁻¹ u_i, but without its exponentials: a
    constant that is added to the logits of a row does not change the result.

    Args:
        x: particles, one per row, (n, d).
        velocity: u, (n, d).
        weights: masses in any unit, (n,), such as the quadrature weights of a domain, scaled to sum 1; None means
            equal masses.
        score: A, symmetric, in units of one over x².
        mobility: B, symmetric positive definite.
        implementation: the implementation of `jaxop.attention.integral_attention`.

    Returns:
        (force, connection) = (Γ, C), each (n, d).

    Raises:
        ValueError: if shapes do not fit, weights are negative or all 0, A is not symmetric or B is not positive
            definite (the values of matrices are checked only outside `jit`).

    Cost: one call of `integral_attention` with 2 d + 1 … 3 d channels of values: O(n² d) time, and O(n d) memory above
    128² pairs; no differentiation.

    Source: Stein, Li, Steidl, "SympFormer: Accelerated attention blocks via inertial dynamics on density
        manifolds", arXiv:2603.16535; the form in velocities is ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> x, rest, identity = jnp.eye(3, 2), jnp.zeros((3, 2)), jnp.eye(2)
        >>> force, connection = flows.softmax_rates(x, rest, score=identity, mobility=identity)
        >>> print(jnp.abs(connection).max())
        0.0
    """
    x, weights, u = check_ensemble(x, weights, velocity=velocity)
    score = check_matrix(score, "score", x, symmetric=True)
    mobility = check_matrix(mobility, "mobility", x, definite=True)
    options = {"score": score, "mobility": mobility, "implementation": implementation}
    force, connection = function_rates(x[:, None], u[:, None], weights, None, **options)
    return force[:, 0], connection[:, 0]


def function_rates(
    x: Float[Array, "n s d"],
    velocity: Float[Array, "n s d"],
    weights: Float[Array, " n"] | None,
    measure: Float[Array, " s"] | None,
    *,
    score: Float[Array, "d d"],
    mobility: Float[Array, "d d"],
    implementation: str | None = None,
) -> tuple[Float[Array, "n s d"], Float[Array, "n s d"]]:
    """`softmax_rates` of particles that are functions on a patch: xᵀ A y becomes ∫ x(r)ᵀ A y(r) dr, A and B pointwise.

    Args:
        x: n functions of d channels at s nodes, (n, s, d).
        velocity: u, (n, s, d).
        weights: masses of the particles, (n,); None means equal masses.
        measure: quadrature weights of the nodes, (s,); None means weights of 1.
        score: A.
        mobility: B, positive definite.
        implementation: the implementation of `jaxop.attention.integral_attention`.

    Returns:
        (force, connection), each (n, s, d).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop.flows.softmax import function_rates
        >>> x = jnp.ones((4, 3, 2))
        >>> force, _ = function_rates(x, x, None, jnp.full(3, 1 / 3), score=jnp.eye(2), mobility=jnp.eye(2))
        >>> force.shape
        (4, 3, 2)
    """
    n, s, d = x.shape
    u = velocity
    measured = (lambda a: a) if measure is None else (lambda a: a * measure.astype(a.dtype)[None, :, None])
    inner = lambda a, b: jnp.sum(a * b, axis=(1, 2), keepdims=True)  # noqa: E731
    cholesky = jax.scipy.linalg.cho_factor(mobility)
    solved = jax.scipy.linalg.cho_solve(cholesky, u.reshape(n * s, d).T).T.reshape(n, s, d)
    square = inner(measured(u), solved)
    query = measured(x @ score)
    values = jnp.concatenate([x, u, square * x], axis=2).reshape(n, -1)
    means = _attend(query.reshape(n, -1), x.reshape(n, -1), values, weights, implementation).reshape(n, s, -1)
    mean_x, mean_u, mean_square_x = jnp.split(means, 3, axis=2)
    drift = inner(measured(u @ score), mean_x) + inner(query, mean_u)
    value = score @ mobility  # Vᵀ
    force = mean_x @ value
    return force, drift * u - (square * force + mean_square_x @ value) / 2


def softmax_momentum_rates(
    x: Float[Array, "n d"],
    momentum: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    score: Float[Array, "d d"],
    mobility: Float[Array, "d d"],
    potential: Callable[[Float[Array, " d"]], Float[Array, ""]] | None = None,
    implementation: str | None = None,
) -> tuple[Callable[[Array], Array], Float[Array, "n d"]]:
    """ẋ_i = B y_i / z_i and ẏ_i = ½ Σ_j w_j M_ij (κ_i + κ_j + 2) A x_j, κ_i = y_iᵀ B y_i / z_i², undamped.

    This is the Hamiltonian system of `softmax_energy` in its own variables. Exponentials are not scaled, and overflow
    for large x_iᵀ A x_j; use `softmax_rates` instead.

    Args:
        x: particles, (n, d).
        momentum: y, (n, d).
        weights: masses in any unit, (n,); None means equal masses.
        score: A, symmetric.
        mobility: B, symmetric positive definite.
        potential: V of one particle. Then Σ_i w_i V(x_i) replaces the interaction −½ Σ_ij w_i w_j M_ij, which is
            unbounded below, and −∇V replaces the part of ẏ that comes from the summand 2. The metric remains that of
            softmax. None keeps the interaction.
        implementation: the implementation of `jaxop.attention.integral_attention`.

    Returns:
        (drift, force): the function y ↦ ẋ at this x, and ẏ without damping, (n, d).

    Raises:
        ValueError: for the reasons of `softmax_rates`.

    Cost: two calls of `integral_attention`.

    Source: Stein, Li, Steidl, arXiv:2603.16535.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> x, y = jnp.eye(3, 2), jnp.ones((3, 2))
        >>> drift, force = flows.softmax_momentum_rates(x, y, score=jnp.eye(2), mobility=jnp.eye(2))
        >>> drift(y).shape
        (3, 2)
    """
    x, weights, y = check_ensemble(x, weights, momentum=momentum)
    score = check_matrix(score, "score", x, symmetric=True)
    mobility = check_matrix(mobility, "mobility", x, definite=True)
    integrate = functools.partial(_attend, x @ score, x, implementation=implementation, normalize=False)
    mass = integrate(value=jnp.ones_like(x[:, :1]), weights=weights)
    ratio = jnp.sum((y @ mobility) * y, axis=1, keepdims=True) / mass**2
    d = x.shape[1]
    sums = integrate(value=jnp.concatenate([x, ratio * x], axis=1), weights=weights)
    force = (ratio * sums[:, :d] + sums[:, d:]) @ score / 2
    force = force + (sums[:, :d] @ score if potential is None else -jax.vmap(jax.grad(potential))(x))
    return (lambda y: y @ mobility / mass), force


def softmax_energy(
    x: Float[Array, "n d"],
    velocity: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    score: Float[Array, "d d"],
    mobility: Float[Array, "d d"],
    implementation: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """½ Σ_i w_i z_i u_iᵀ B⁻¹ u_i and −½ Σ_ij w_i w_j M_ij: kinetic and potential energy.

    Along the damped flow their sum changes at the rate −2 α(t) times the kinetic energy. The potential is unbounded
    below, so that particles may diverge in finite time.

    Args:
        x: particles, (n, d).
        velocity: u, (n, d).
        weights: masses in any unit, (n,); None means equal masses.
        score: A, symmetric.
        mobility: B, symmetric positive definite.
        implementation: the implementation of `jaxop.attention.integral_attention`.

    Returns:
        (kinetic, potential), two numbers.

    Raises:
        ValueError: for the reasons of `softmax_rates`.

    Cost: one call of `integral_attention`.

    Source: Stein, Li, Steidl, arXiv:2603.16535.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> energies = flows.softmax_energy(jnp.zeros((3, 2)), jnp.ones((3, 2)), score=jnp.eye(2), mobility=jnp.eye(2))
        >>> print(*(f"{energy:.2f}" for energy in energies))
        1.00 -0.50
    """
    x, weights, u = check_ensemble(x, weights, velocity=velocity)
    score = check_matrix(score, "score", x, symmetric=True)
    mobility = check_matrix(mobility, "mobility", x, definite=True)
    ones = jnp.ones_like(x[:, :1])
    mass = _attend(x @ score, x, ones, weights, implementation, normalize=False)[:, 0]
    solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(mobility), u.T).T
    kinetic = jnp.sum(weights * mass * jnp.sum(u * solved, axis=1)) / 2
    return kinetic, -jnp.sum(weights * mass) / 2


def softmax_flow(
    weights: Float[Array, " n"] | None = None,
    *,
    score: Float[Array, "d d"],
    value: Float[Array, "d d"],
    implementation: str | None = None,
) -> System:
    """ẋ = Γ as a `System`; see `softmax_force`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> system, euler = flows.softmax_flow(score=jnp.eye(2), value=jnp.eye(2)), flows.Euler()
        >>> state = flows.start(euler, jnp.eye(3, 2))
        >>> flows.step(euler, system, state, flows.Damping(), 0.1).position.shape
        (3, 2)
    """
    return first_order(
        functools.partial(softmax_force, weights=weights, score=score, value=value, implementation=implementation)
    )


def accelerated_softmax_flow(
    weights: Float[Array, " n"] | None = None,
    *,
    score: Float[Array, "d d"],
    mobility: Float[Array, "d d"],
    implementation: str | None = None,
) -> System:
    """ẍ = −α ẋ + Γ − C as a `System` of positions and velocities; see `softmax_rates`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> system = flows.accelerated_softmax_flow(score=jnp.eye(2), mobility=jnp.eye(2))
        >>> method = flows.KickDampDrift()
        >>> state = flows.start(method, jnp.eye(3, 2))
        >>> flows.step(method, system, state, flows.Damping(logarithmic=3.0), 0.1).velocity.shape
        (3, 2)
    """

    def acceleration(x: Array, u: Array) -> Array:
        force, connection = softmax_rates(x, u, weights, score=score, mobility=mobility, implementation=implementation)
        return force - connection

    return second_order(acceleration)


def softmax_momentum_flow(
    weights: Float[Array, " n"] | None = None,
    *,
    score: Float[Array, "d d"],
    mobility: Float[Array, "d d"],
    potential: Callable[[Float[Array, " d"]], Float[Array, ""]] | None = None,
    implementation: str | None = None,
) -> System:
    """The accelerated softmax flow as a `System` of positions and momenta; see `softmax_momentum_rates`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> system, method = flows.softmax_momentum_flow(score=jnp.eye(2), mobility=jnp.eye(2)), flows.TaoDoubling()
        >>> state = flows.start(method, jnp.eye(3, 2))
        >>> flows.step(method, system, state, flows.Damping(logarithmic=3.0), 0.1).velocity.shape
        (3, 2)
    """
    rates = functools.partial(
        softmax_momentum_rates,
        weights=weights,
        score=score,
        mobility=mobility,
        potential=potential,
        implementation=implementation,
    )
    return System(lambda state, t: rates(state.position, state.velocity))


def _attend(
    query: Array,
    x: Array,
    value: Array,
    weights: Array | None,
    implementation: str | None = None,
    *,
    normalize: bool = True,
) -> Array:
    return integral_attention(
        query[:, None],
        x[:, None],
        value[:, None],
        weights,
        kernel=ExpDotProduct(1.0),
        normalize=normalize,
        implementation=implementation,
    )[:, 0]
