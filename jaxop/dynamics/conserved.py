"""Integrals of states that a flow conserves or balances: mass, energy, enstrophy, and their drift."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._pytree import register
from jaxop._validation import as_float, check_name
from jaxop.domains import Domain, Grid
from jaxop.dynamics._states import States, norms, over_states, ratio
from jaxop.dynamics.spectra import check_periodic, spectral_derivative

FIELDS = ("vorticity", "velocity")
"""What the channels of a state may be, if its enstrophy is to be computed."""


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Invariants:
    """Integrals of states over the domain at every time, or their drift.

    Attributes:
        mass: ∫ u_c dx of every channel, shape (…, t, c).
        energy: ½ ∫ |u|² dx, summed over channels, shape (…, t).
        enstrophy: ½ ∫ |ω|² dx of the vorticity ω, shape (…, t); None if the state is not a flow.
    """

    mass: Float[Array, "*batch t c"]
    energy: Float[Array, "*batch t"]
    enstrophy: Float[Array, "*batch t"] | None


def mass(states: States, domain: Domain) -> Float[Array, "*batch t c"]:
    """∫ u_c(t) dx for every time t and channel c.

    Args:
        states: u, shape (t, n, c) or (b, t, n, c).
        domain: nodes and weights, shared or a stack of b.

    Returns:
        Shape (t, c) or (b, t, c), in the unit of u times length^dim; ∞ for a state that is not finite.

    Raises:
        ValueError: if the states do not fit the domain.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> print(dynamics.mass(jnp.ones((2, 16, 1)), domains.interval(16, upper=3.0))[:, 0].round(4))
        [3. 3.]
    """
    return over_states(_mass, domain, states, names=("states",), undefined=np.inf)


def energy(states: States, domain: Domain) -> Float[Array, "*batch t"]:
    """½ ∫ |u(t)|² dx for every time t, summed over channels.

    Args:
        states: u, shape (t, n, c) or (b, t, n, c).
        domain: nodes and weights, shared or a stack of b.

    Returns:
        Shape (t,) or (b, t), in the squared unit of u times length^dim; ∞ for a state that is not finite.

    Raises:
        ValueError: if the states do not fit the domain.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> print(dynamics.energy(2 * jnp.ones((1, 16, 2)), domains.interval(16)).round(4))
        [4.]
    """
    return over_states(_energy, domain, states, names=("states",), undefined=np.inf)


def vorticity(velocity: States, domain: Domain) -> Float[Array, "*batch t n w"]:
    """ω = ∂_1 v_2 − ∂_2 v_1 of a velocity in the plane, or ω = ∇ × v in space, by spectral derivatives.

    Args:
        velocity: v, shape (t, n, dim) or (b, t, n, dim), with dim 2 or 3.
        domain: a grid of dim axes that are periodic with equal weights, shared or a stack of b.

    Returns:
        Shape (t, n, 1) or (b, t, n, 1) in the plane, and with 3 channels in space; in units of 1/time. All entries are
        ∞ for a velocity that is not finite.

    Raises:
        ValueError: if the domain is not such a grid, or the velocity does not have one channel for each axis.

    Cost: two FFTs for every derivative.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> domain = domains.box((16, 16), upper=(2 * jnp.pi, 2 * jnp.pi), rule="periodic")
        >>> x, y = domain.points.T
        >>> velocity = jnp.stack([-jnp.sin(y), jnp.sin(x)], axis=-1)[None]
        >>> omega = dynamics.vorticity(velocity, domain)
        >>> bool(jnp.allclose(omega[0, :, 0], jnp.cos(x) + jnp.cos(y), atol=1e-5))
        True
    """
    grid = check_periodic(domain)
    channels = jnp.shape(velocity)[-1]
    if grid.dim not in (2, 3) or channels != grid.dim:
        raise ValueError(
            f"velocity must have one channel for each of 2 or 3 axes, got {channels} channels on {grid.dim} axes."
        )
    return over_states(_curl, domain, velocity, names=("velocity",), undefined=np.inf)


def enstrophy(states: States, domain: Domain, *, of: str = "vorticity") -> Float[Array, "*batch t"]:
    """½ ∫ |ω(t)|² dx for every time t, of states that are a vorticity ω or a velocity.

    Args:
        states: shape (t, n, c) or (b, t, n, c).
        domain: any for a vorticity; for a velocity see `vorticity`.
        of: what the states are, "vorticity" or "velocity".

    Returns:
        Shape (t,) or (b, t), in units of length^dim / time²; ∞ for a state that is not finite.

    Raises:
        ValueError: if ``of`` is unknown, or for the reasons of `vorticity`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> domain = domains.box((16, 16), rule="periodic")
        >>> print(dynamics.enstrophy(2 * jnp.ones((1, 256, 1)), domain))
        [2.]
    """
    return energy(_whirl(states, domain, of), domain)


def invariants(states: States, domain: Domain, *, enstrophy_of: str | None = None) -> Invariants:
    """Mass ∫ u, energy ½ ∫ |u|² and enstrophy ½ ∫ |ω|² of states at every time.

    Args:
        states: u, shape (t, n, c) or (b, t, n, c).
        domain: nodes and weights, shared or a stack of b.
        enstrophy_of: "vorticity" or "velocity" if the states are one, see `enstrophy`. None computes no enstrophy.

    Returns:
        `Invariants`.

    Raises:
        ValueError: if the states do not fit the domain, or for the reasons of `enstrophy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> found = dynamics.invariants(2 * jnp.ones((1, 16, 1)), domains.interval(16))
        >>> print(found.mass[0].round(4), found.energy.round(4))
        [2.] [2.]
    """
    whirl = None if enstrophy_of is None else enstrophy(states, domain, of=enstrophy_of)
    return Invariants(mass(states, domain), energy(states, domain), whirl)


def drift(
    states: States,
    initial: Float[Array | np.ndarray, "*batch n c"],
    domain: Domain,
    *,
    enstrophy_of: str | None = None,
) -> Invariants:
    """Relative changes of the invariants since the initial state u_0, for every time t.

    Energy and enstrophy: (E(t) − E(0)) / E(0), or E(t) if E(0) = 0. Mass: (M_c(t) − M_c(0)) / (|D|^½ ‖u_0c‖), because
    the mean of many flows is 0; this denominator bounds |M_c(0)|. If ‖u_0c‖ = 0 it is M_c(t).

    Args:
        states: u, shape (t, n, c) or (b, t, n, c).
        initial: u_0, shape (n, c) or (b, n, c).
        domain: nodes and weights, shared or a stack of b.
        enstrophy_of: see `invariants`.

    Returns:
        `Invariants` without units. In a flow that does not conserve them, compare them with those of the true states.

    Raises:
        ValueError: if the states do not fit the domain or the initial state, or for the reasons of `enstrophy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> domain = domains.interval(16)
        >>> found = dynamics.drift(jnp.full((1, 16, 1), 1.5), jnp.ones((16, 1)), domain)
        >>> print(found.mass[0].round(4), found.energy.round(4))
        [0.5] [1.25]
    """
    shape = jnp.shape(states)
    first = as_float(initial, "initial")
    if first.shape != (*shape[:-3], *shape[-2:]):
        raise ValueError(
            f"initial must have shape {(*shape[:-3], *shape[-2:])} for states of shape {shape}, got {first.shape}."
        )
    start = jnp.expand_dims(first, -3)
    pair = states, start
    now, then = (mass(u, domain) for u in pair)
    bound = over_states(_mass_bound, domain, start, names=("initial",), undefined=np.inf)
    energies = _change_of_square(*(_norms(u, domain) for u in pair))
    whirl = None
    if enstrophy_of is not None:
        whirl = _change_of_square(*(_norms(_whirl(u, domain, enstrophy_of), domain) for u in pair))
    return Invariants(ratio(now - then, jnp.broadcast_to(bound, now.shape)), energies, whirl)


def _mass(u: Float[Array, "n c"], domain: Domain) -> Float[Array, " c"]:
    return domain.integrate(u)


def _energy(u: Float[Array, "n c"], domain: Domain) -> Float[Array, ""]:
    return 0.5 * domain.norm(u) ** 2


def _norms(states: States, domain: Domain) -> Float[Array, "*batch t"]:
    return over_states(_norm, domain, states, names=("states",), undefined=np.inf)


def _norm(u: Float[Array, "n c"], domain: Domain) -> Float[Array, ""]:
    return domain.norm(u)


def _whirl(states: States, domain: Domain, of: str) -> Float[Array | np.ndarray, "*batch t n w"]:
    """Returns the vorticity of states that are one, or a velocity."""
    check_name(of, "of", FIELDS)
    return vorticity(states, domain) if of == "velocity" else states


def _curl(v: Float[Array, "n dim"], domain: Grid) -> Float[Array, "n w"]:
    slopes = [spectral_derivative(v, domain, axis) for axis in range(domain.dim)]
    pairs = [(0, 1)] if domain.dim == 2 else [(1, 2), (2, 0), (0, 1)]
    return jnp.stack([slopes[i][:, j] - slopes[j][:, i] for i, j in pairs], axis=-1)


def _mass_bound(u: Float[Array, "n c"], domain: Domain) -> Float[Array, " c"]:
    """Returns |D|^½ ‖u_c‖ ≥ |∫ u_c dx|."""
    return jnp.sqrt(domain.measure.astype(u.dtype)) * norms(u, domain)


def _change_of_square(now: Array, then: Array) -> Array:
    """Returns (a² − b²)/b² for the norms a and b, or a²/2 where b = 0; huge and tiny norms stay in their range."""
    then = jnp.broadcast_to(then, now.shape)
    share = ratio(now, then)
    return jnp.where(then == 0, 0.5 * now**2, (share - 1) * (share + 1))
