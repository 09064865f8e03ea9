r"""Linear attention as a gradient flow of particles, its acceleration, and the moments that describe both.

The energy is −½ Σ_i w_i x_iᵀ V x_i in the metric of the kernel k(x, y) = xᵀ A y. All computations use d × d
moments; the n × n Gram matrix is never formed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import is_concrete
from jaxop._varying import varying_like
from jaxop.flows.checks import check_ensemble, check_masses, check_matrix, check_number
from jaxop.flows.system import State, System, first_order


def linear_force(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    bilinear: Float[Array, "d d"],
    hessian: Float[Array, "d d"],
) -> Float[Array, "n d"]:
    """X A (Xᵀ W X) Vᵀ, the velocity of the first-order flow: ẋ_i = V Σ_j w_j (x_iᵀ A x_j) x_j.

    Args:
        x: particles, one per row, (n, d).
        weights: masses in any unit, (n,), such as the quadrature weights of a domain, scaled to sum 1; None means
            equal masses.
        bilinear: A.
        hessian: V.

    Returns:
        Shape (n, d).

    Raises:
        ValueError: if shapes do not fit, or weights are negative or all 0.

    Cost: O(n d²) time, O(n d) memory.

    Source: Stein, Li, Steidl, arXiv:2603.16535.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> flows.linear_force(jnp.eye(3, 2), bilinear=jnp.eye(2), hessian=-jnp.eye(2)).shape
        (3, 2)
    """
    x, weights = check_ensemble(x, weights)
    bilinear, hessian = (check_matrix(m, name, x) for m, name in ((bilinear, "bilinear"), (hessian, "hessian")))
    return x @ (bilinear @ moment(x, x, weights) @ hessian.T)


def linear_rates(
    x: Float[Array, "n d"],
    momentum: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    bilinear: Float[Array, "d d"],
    hessian: Float[Array, "d d"],
) -> tuple[Callable[[Array], Array], Float[Array, "n d"]]:
    """Ẋ = X A (Xᵀ W Y) and Ẏ = X Vᵀ − Y (Yᵀ W X) A, the accelerated flow without its damping.

    If Y = X S at the start and S, A and V are symmetric, an elliptically contoured distribution keeps its contours:
    x_t = M_t x_0, see `linear_moment_flow`.

    Args:
        x: particles, (n, d).
        momentum: Y, (n, d).
        weights: masses in any unit, (n,); None means equal masses.
        bilinear: A, symmetric and positive definite.
        hessian: V, symmetric.

    Returns:
        (drift, force): the function Y ↦ Ẋ at this X, and Ẏ without damping, (n, d).

    Raises:
        ValueError: for the reasons of `linear_force`.

    Cost: O(n d²) time, O(n d) memory.

    Source: Stein, Li, Steidl, arXiv:2603.16535.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> drift, force = flows.linear_rates(jnp.eye(3, 2), jnp.ones((3, 2)), bilinear=jnp.eye(2), hessian=-jnp.eye(2))
        >>> force.shape
        (3, 2)
    """
    x, weights, y = check_ensemble(x, weights, momentum=momentum)
    bilinear = check_matrix(bilinear, "bilinear", x, symmetric=True, definite=True)
    hessian = check_matrix(hessian, "hessian", x, symmetric=True)

    def drift(y: Array) -> Array:
        return x @ (bilinear @ moment(x, y, weights))

    return drift, x @ hessian.T - y @ (moment(y, x, weights) @ bilinear)


def linear_connection(
    x: Float[Array, "n d"],
    velocity: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    bilinear: Float[Array, "d d"] | None = None,
    ridge: float = 0.0,
    is_causal: bool = False,
) -> Float[Array, "n d"]:
    """C = X (T Tᵀ − T T − A Tᵀ A⁻¹ T), T = (Xᵀ W X + ε)⁻¹ Xᵀ W U: the linear flow is ẍ = −α ẋ + `linear_force` − C.

    In terms of momenta, T = A Xᵀ W Y is the linear map that moves the particles, U = Ẋ = X T. Here T is the weighted
    least squares fit of velocities by positions. With ``is_causal``, T_i fits the particles j ≤ i by recursive least
    squares, and row i of C uses T_i.

    Args:
        x: particles, (n, d).
        velocity: U, (n, d); only its part X T has an effect.
        weights: masses in any unit, (n,); None means equal masses. With ``is_causal`` row i has masses in units of the
            largest mass up to i.
        bilinear: A, symmetric and positive definite; None means the identity.
        ridge: ε, in units of squared channels times the total mass, or with ``is_causal`` times the largest mass so
            far. The exact flow has ε = 0 and needs at least d independent particles.
        is_causal: whether particle i sees only j ≤ i.

    Returns:
        Shape (n, d).

    Raises:
        ValueError: for the reasons of `linear_force`; or if the ridge is negative, is 0 although T is not determined,
            or is too small for the precision with ``is_causal``.

    Cost: O(n d²) time and O(n d) memory. If causal, n steps one after another, of O(d²) each, or O(d³) if a mass
        exceeds all before; their derivatives take O(n d²) memory.

    Source: Stein, Li, Steidl, arXiv:2603.16535; the form in velocities is ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> x = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> print(flows.linear_connection(x, 2 * x).round(4) + 0.0)  # T = 2: C = −4 x
        [[-4.  0.]
         [ 0. -4.]
         [-4. -4.]]
    """
    x, shares, u = check_ensemble(x, weights, velocity=velocity)
    check_number(ridge, "ridge")
    enough = not is_causal and x.shape[0] >= x.shape[1]
    if is_concrete(ridge) and not (ridge > 0 or (ridge == 0 and enough)):
        raise ValueError(
            f"ridge must not be negative, and must be positive if particles are causal or fewer than channels, got "
            f"{ridge} for {x.shape[0]} particles of {x.shape[1]} channels."
        )
    a = None if bilinear is None else check_matrix(bilinear, "bilinear", x, symmetric=True, definite=True)
    if is_causal:
        shares, kept = _in_running_units(None if weights is None else check_masses(weights, x), x)
        if is_concrete(ridge, x, shares):
            least = 100 * float(jnp.finfo(x.dtype).eps * jnp.max(shares * jnp.sum(x * x, axis=1)))
            if ridge < least:
                raise ValueError(
                    f"ridge must be at least {least:.1e} for these particles in {x.dtype}, got {ridge}: recursive "
                    "least squares would lose all digits. Use a larger ridge, or float64."
                )
        return _causal_connection(x, u, shares, kept, a, jnp.asarray(ridge, x.dtype))
    second = moment(x, x, shares) + ridge * jnp.eye(x.shape[1], dtype=x.dtype)
    if is_concrete(ridge, second) and ridge == 0 and (rank := np.linalg.matrix_rank(np.asarray(second))) < x.shape[1]:
        raise ValueError(
            f"ridge must be positive if particles of positive weight span only {rank} of {x.shape[1]} dimensions."
        )
    motion = jax.scipy.linalg.solve(second, moment(x, u, shares), assume_a="pos")
    return _connection(x, motion, a)


def _in_running_units(masses: Array | None, x: Array) -> tuple[Array, Array | None]:
    """Returns masses over the largest mass so far, and the previous unit over the new one; None means equal masses."""
    if masses is None:
        return jnp.ones_like(x[:, 0]), None
    largest = jax.lax.stop_gradient(jax.lax.cummax(masses))
    former = jnp.concatenate([largest[:1], largest[:-1]])
    units = jnp.where(largest > 0, largest, 1)
    return (masses / units).astype(x.dtype), jnp.where(former > 0, former / units, 1).astype(x.dtype)


def _connection(x: Array, motion: Array, bilinear: Array | None) -> Array:
    """X (T Tᵀ − T T − A Tᵀ A⁻¹ T) of rows X."""
    forth = x @ motion
    if bilinear is None:
        return forth @ motion.T - (forth + x @ motion.T) @ motion
    back = jax.scipy.linalg.solve(bilinear, motion @ bilinear @ x.T, assume_a="pos").T
    return forth @ motion.T - (forth + back) @ motion


@jax.jit
def _causal_connection(
    x: Array, u: Array, weights: Array, kept: Array | None, bilinear: Array | None, ridge: Array
) -> Array:
    """Returns the connection by recursive least squares; see `_in_running_units` for the weights."""
    identity = jnp.eye(x.shape[1], dtype=x.dtype)

    def in_new_units(inverse: Array, motion: Array, kept: Array) -> tuple[Array, Array]:
        # the new P⁻¹ is (P⁻¹ − ε) kept + ε, because the sum shrinks but the ridge does not
        new = jax.scipy.linalg.solve(kept * identity + (1 - kept) * ridge * inverse, inverse, assume_a="pos")
        return new, motion - (1 - kept) * ridge * new @ motion

    def advance(fit: tuple[Array, Array], token: tuple[Array, Array, Array, Array | None]):
        x, u, weight, kept = token
        inverse, motion = fit
        if kept is not None:
            inverse, motion = jax.lax.cond(kept < 1, in_new_units, lambda *fit: fit[:2], *fit, kept)
        direction = inverse @ x
        gain = weight / (1 + weight * jnp.dot(x, direction)) * direction
        motion = motion + jnp.outer(gain, u - x @ motion)
        inverse = inverse - jnp.outer(gain, direction)
        return (inverse, motion), _connection(x[None], motion, bilinear)[0]

    tokens = x, u, weights, kept
    start = varying_like((identity / ridge, jnp.zeros_like(identity)), tokens, bilinear, ridge)
    return jax.lax.scan(advance, start, varying_like(tokens, start))[1]


def linear_energy(
    x: Float[Array, "n d"],
    momentum: Float[Array, "n d"],
    weights: Float[Array, " n"] | None = None,
    *,
    bilinear: Float[Array, "d d"],
    hessian: Float[Array, "d d"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """½ Σ_ij w_i w_j (x_iᵀ A x_j) y_i·y_j and −½ Σ_i w_i x_iᵀ V x_i: kinetic and potential energy.

    Along the damped flow their sum changes at the rate −2 α(t) times the kinetic energy, for symmetric A and V.

    Args:
        x: particles, (n, d).
        momentum: Y, (n, d).
        weights: masses in any unit, (n,); None means equal masses.
        bilinear: A, symmetric and positive definite.
        hessian: V, symmetric.

    Returns:
        (kinetic, potential), two numbers.

    Raises:
        ValueError: for the reasons of `linear_force`.

    Source: Stein, Li, Steidl, arXiv:2603.16535.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> print(*flows.linear_energy(jnp.eye(2), jnp.eye(2), bilinear=jnp.eye(2), hessian=-jnp.eye(2)))
        0.25 0.5
    """
    x, weights, y = check_ensemble(x, weights, momentum=momentum)
    bilinear = check_matrix(bilinear, "bilinear", x, symmetric=True, definite=True)
    hessian = check_matrix(hessian, "hessian", x, symmetric=True)
    mixed = moment(x, y, weights)
    kinetic = jnp.sum(mixed * (bilinear @ mixed)) / 2
    return kinetic, -jnp.sum(hessian * moment(x, x, weights)) / 2


def linear_flow(
    weights: Float[Array, " n"] | None = None,
    *,
    bilinear: Float[Array, "d d"],
    hessian: Float[Array, "d d"],
) -> System:
    """Ẋ = X A (Xᵀ W X) Vᵀ as a `System`; see `linear_force`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> system, euler = flows.linear_flow(bilinear=jnp.eye(2), hessian=-jnp.eye(2)), flows.Euler()
        >>> flows.step(euler, system, flows.start(euler, jnp.eye(3, 2)), flows.Damping(), 0.1).position.shape
        (3, 2)
    """
    return first_order(functools.partial(linear_force, weights=weights, bilinear=bilinear, hessian=hessian))


def accelerated_linear_flow(
    weights: Float[Array, " n"] | None = None,
    *,
    bilinear: Float[Array, "d d"],
    hessian: Float[Array, "d d"],
) -> System:
    """The accelerated linear flow as a `System` of positions and momenta; see `linear_rates`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> system = flows.accelerated_linear_flow(bilinear=jnp.eye(2), hessian=-jnp.eye(2))
        >>> method = flows.KickDampDrift()
        >>> state = flows.start(method, jnp.eye(3, 2))
        >>> flows.step(method, system, state, flows.Damping(logarithmic=3.0), 0.1).position.shape
        (3, 2)
    """
    rates = functools.partial(linear_rates, weights=weights, bilinear=bilinear, hessian=hessian)
    return System(lambda state, t: rates(state.position, state.velocity))


def linear_moment_flow(*, bilinear: Float[Array, "d d"], hessian: Float[Array, "d d"]) -> System:
    """Σ̇ = S Σ A Σ + Σ A Σ S, Ṡ = V − A Σ S² − S² Σ A, undamped: the accelerated linear flow of a distribution.

    A centred elliptically contoured distribution with second moments Σ and momenta y = S x keeps its form under
    `accelerated_linear_flow`. These are the equations of its moments: position is Σ, velocity is S. All matrices are
    symmetric.

    Args:
        bilinear: A.
        hessian: V.

    Source: Stein, Li, Steidl, arXiv:2603.16535.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import flows
        >>> system, method = flows.linear_moment_flow(bilinear=jnp.eye(2), hessian=-jnp.eye(2)), flows.AdamsBashforth2()
        >>> flows.step(method, system, flows.start(method, jnp.eye(2)), flows.Damping(), 0.1).position.shape
        (2, 2)
    """

    def rates(state: State, t: Array):
        del t
        covariance, slope = state.position, state.velocity
        a = check_matrix(bilinear, "bilinear", covariance, symmetric=True)
        v = check_matrix(hessian, "hessian", covariance, symmetric=True)

        def drift(slope: Array) -> Array:
            half = slope @ covariance @ a @ covariance
            return half + half.T

        half = slope @ slope @ covariance @ a
        return drift, v - half - half.T

    return System(rates)


def moment(x: Array, y: Array, weights: Array) -> Array:
    """Σ_i w_i x_i y_iᵀ."""
    return x.T @ (weights[:, None] * y)
