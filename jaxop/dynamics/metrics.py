"""Errors of trajectories over time: functions of prediction, truth and domain.

Predicted and true states have shape (t, n, c): t times, n nodes, c channels; or (b, t, n, c) for b samples. The domain
is one for all samples or a stack of b. Every sum over nodes is a quadrature, so that splitting a node or padding with
nodes of weight 0 changes nothing. All functions are differentiable, and work in `jax.jit` and `jax.vmap`. They compute
in float32 or wider.

If a predicted state is not finite on a node of positive weight, its errors are ∞ and its correlation is 0.
A mean over samples is then ∞ and not NaN, which shows that a rollout has diverged.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxop._validation import as_float, as_integer, as_number
from jaxop.domains import Domain, Grid
from jaxop.dynamics._states import States, joined, norms, over_states, ratio
from jaxop.training.losses import relative_norm

_NAMES = ("prediction", "truth")

Curve = Float[Array | np.ndarray, "*batch t"]
"""One number for each of t times, or for each sample and time."""

Times = Float[Array | np.ndarray, "*shared t"]
"""The times of curves, for all samples or for each."""


def nrmse(prediction: States, truth: States, domain: Domain, *, channels: str = "sum") -> Float[Array, "..."]:
    """‖p_c(t) − r_c(t)‖ / ‖r_c(t)‖ in L2 for every time t, summed over the channels c.

    With ``channels="sum"`` this is the nRMSE of exponax and apebench. Their mean over samples, ``mean_nRMSE``, is the
    mean over the first axis. If r_c(t) = 0, the value of the channel is ‖p_c(t)‖.

    Args:
        prediction: p, shape (t, n, c) or (b, t, n, c).
        truth: r, of the same shape.
        domain: nodes and weights, shared or a stack of b.
        channels: "sum", "mean" or "each".

    Returns:
        Shape (t,) or (b, t), without unit; for ``channels="each"`` with a last axis c.

    Raises:
        ValueError: if the shapes differ or do not fit the domain, or ``channels`` is unknown.

    Cost: a few passes over the states.

    Reference:
        Koehler, Niedermayr, Westermann, Thuerey, "APEBench" (2024).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> truth = jnp.ones((3, 16, 1))
        >>> prediction = truth * jnp.array([1.0, 1.25, 1.5])[:, None, None]
        >>> print(dynamics.nrmse(prediction, truth, domains.interval(16)))
        [0.   0.25 0.5 ]
    """
    return joined(over_states(_nrmse, domain, prediction, truth, names=_NAMES, undefined=np.inf), channels)


def _nrmse(p: Float[Array, "n c"], r: Float[Array, "n c"], domain: Domain) -> Float[Array, " c"]:
    return ratio(norms(p - r, domain), norms(r, domain))


def relative_l2(prediction: States, truth: States, domain: Domain) -> Float[Array, "*batch t"]:
    """‖p(t) − r(t)‖ / ‖r(t)‖ in L2 for every time t, where the norm joins all channels.

    This is `jaxop.training.relative_norm` at every time. For one channel it equals `nrmse`.

    Args:
        prediction: p, shape (t, n, c) or (b, t, n, c).
        truth: r, of the same shape.
        domain: nodes and weights, shared or a stack of b.

    Returns:
        Shape (t,) or (b, t), without unit.

    Raises:
        ValueError: if the shapes differ or do not fit the domain.

    Cost: a few passes over the states.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> truth = jnp.stack([3 * jnp.ones((1, 16)), 4 * jnp.ones((1, 16))], axis=-1)
        >>> print(dynamics.relative_l2(truth - 1, truth, domains.interval(16)).round(4))  # √2 / 5
        [0.2828]
    """
    return over_states(relative_norm, domain, prediction, truth, names=_NAMES, undefined=np.inf)


def h1_error(prediction: States, truth: States, domain: Domain) -> Float[Array, "*batch t"]:
    """‖p(t) − r(t)‖ / ‖r(t)‖ in H1, with ‖u‖² = ∫ |u|² + |∇u|² dx, for every time t.

    This is `jaxop.training.relative_norm` in ``space="H1"`` at every time: gradients are in physical units, and the
    norm joins all channels. The ``H1_nRMSE`` of exponax is another number: the sum of the ratios of u and of ∇u.

    Args:
        prediction: p, shape (t, n, c) or (b, t, n, c).
        truth: r, of the same shape.
        domain: nodes with neighbours, shared or a stack of b.

    Returns:
        Shape (t,) or (b, t), without unit.

    Raises:
        ValueError: if the shapes differ or do not fit the domain, or if its nodes are scattered.

    Cost: a few passes over the states.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> domain = domains.interval(256, rule="periodic")
        >>> wave = jnp.cos(2 * jnp.pi * domain.points)[None]
        >>> print(dynamics.h1_error(1.25 * wave, wave, domain).round(4))
        [0.25]
    """
    return over_states(relative_norm, domain, prediction, truth, names=_NAMES, undefined=np.inf, space="H1")


def has_neighbours(domain: Domain) -> bool:
    """Returns whether `h1_error` can be computed on a domain."""
    state = jax.ShapeDtypeStruct((*domain.weights.shape[:-1], domain.size, 1), domain.weights.dtype)
    energy = jax.vmap(lambda d, u: d.dirichlet(u, u)) if domain.is_batched else lambda d, u: d.dirichlet(u, u)
    try:
        jax.eval_shape(energy, domain, state)
    except ValueError:
        return False
    return True


def vrmse(
    prediction: States, truth: States, domain: Domain, *, epsilon: float = 1e-7, channels: str = "mean"
) -> Float[Array, "..."]:
    """(⟨|p_c − r_c|²⟩ / (⟨|r_c − ⟨r_c⟩|²⟩ + ε))^½ for every time t, with ⟨·⟩ the mean over the domain.

    A prediction by the mean of the true state has a VRMSE of about 1. This is the convention of The Well: ε = 1e-7 in
    the square of the unit of r, and on grids of equal weights the variance has n − 1 in place of n, as ``torch.std``
    has it. On all other domains the variance is the quadrature itself. `window_means` averages over windows of time.

    Args:
        prediction: p, shape (t, n, c) or (b, t, n, c).
        truth: r, of the same shape.
        domain: nodes and weights, shared or a stack of b.
        epsilon: ε ≥ 0.
        channels: "mean", "sum" or "each".

    Returns:
        Shape (t,) or (b, t), without unit; for ``channels="each"`` with a last axis c.

    Raises:
        TypeError: if ``epsilon`` is not a number.
        ValueError: if the shapes differ or do not fit the domain, ``channels`` is unknown, or ``epsilon`` is negative
            or not finite.

    Cost: a few passes over the states.

    Reference:
        Ohana et al., "The Well: a large-scale collection of diverse physics simulations" (2024).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> domain = domains.interval(64, rule="gauss-legendre")
        >>> truth = domain.points[None]
        >>> print(dynamics.vrmse(0.5 * jnp.ones_like(truth), truth, domain).round(4))
        [1.]
    """
    shift = as_number(epsilon, "epsilon")
    if not 0 <= shift < math.inf:
        raise ValueError(f"epsilon must be at least 0 and finite, got {epsilon}.")
    each = over_states(_vrmse, domain, prediction, truth, names=_NAMES, undefined=np.inf, epsilon=shift)
    return joined(each, channels)


def _vrmse(p: Float[Array, "n c"], r: Float[Array, "n c"], domain: Domain, epsilon: float) -> Float[Array, " c"]:
    has_equal_weights = isinstance(domain, Grid) and domain.has_equal_weights and domain.size > 1
    correction = domain.size / (domain.size - 1) if has_equal_weights else 1.0
    measure = domain.measure.astype(r.dtype)
    deviation = r - (domain.integrate(r) / measure)[None]
    # without squares, so that huge and tiny states stay in the range of their dtype
    spread = jnp.hypot(jnp.sqrt(correction) * norms(deviation, domain), jnp.sqrt(measure * epsilon))
    return norms(p - r, domain) / spread


def correlation(prediction: States, truth: States, domain: Domain, *, channels: str = "mean") -> Float[Array, "..."]:
    """ρ_c(t) = ∫ p_c r_c dx / (‖p_c‖ ‖r_c‖) for every time t, averaged over the channels c.

    No mean is removed, as in exponax. It is the cosine of the angle between the functions, and 1 if they agree up to a
    positive factor. If a norm is 0, ρ is 0.

    Args:
        prediction: p, shape (t, n, c) or (b, t, n, c).
        truth: r, of the same shape.
        domain: nodes and weights, shared or a stack of b.
        channels: "mean", "sum" or "each".

    Returns:
        Shape (t,) or (b, t), between −1 and 1 up to rounding; for ``channels="each"`` with a last axis c.

    Raises:
        ValueError: if the shapes differ or do not fit the domain, or ``channels`` is unknown.

    Cost: a few passes over the states.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, dynamics
        >>> domain = domains.interval(64, rule="periodic")
        >>> x = 2 * jnp.pi * domain.points
        >>> rho = dynamics.correlation(jnp.cos(x - 0.5)[None], jnp.cos(x)[None], domain)
        >>> print(round(float(rho[0]), 4))  # cos 0.5
        0.8776
    """
    return joined(over_states(_correlation, domain, prediction, truth, names=_NAMES, undefined=0.0), channels)


def _correlation(p: Float[Array, "n c"], r: Float[Array, "n c"], domain: Domain) -> Float[Array, " c"]:
    of_p, of_r = (ratio(u, jnp.broadcast_to(norms(u, domain)[None], u.shape)) for u in (p, r))
    return domain.integrate(of_p * of_r)


def correlation_time(correlations: Curve, times: Times, *, threshold: float = 0.8) -> Float[Array, "*batch"]:
    """The first time at which ρ(t) falls below a threshold; ∞ if it does not.

    ρ is interpolated linearly between the given times, from ρ(0) = 1. For the value of apebench, which averages over
    samples first, take ``correlation_time(correlations.mean(axis=0), times)``.

    Args:
        correlations: ρ, shape (t,) or (b, t), see `correlation`.
        times: since the initial state, positive and increasing, shape (t,) or (b, t).
        threshold: below 1.

    Returns:
        A scalar or shape (b,), in the unit of the times. It is ∞ if ρ stays above the threshold up to the last time T;
        a table should then show "> T".

    Raises:
        TypeError: if ``threshold`` is not a number.
        ValueError: if the shapes do not fit each other, or ``threshold`` is not below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import dynamics
        >>> rho = jnp.array([[1.0, 0.9, 0.7], [1.0, 0.95, 0.9]])
        >>> print(dynamics.correlation_time(rho, jnp.array([1.0, 2.0, 3.0])).round(3))
        [2.5 inf]
    """
    level = as_number(threshold, "threshold")
    if not level < 1:
        raise ValueError(f"threshold must be below 1, which is the correlation at time 0, got {threshold}.")
    return _first_below(as_float(correlations, "correlations"), times, level, start=1.0, argument="correlations")


def valid_time(
    errors: Curve, times: Times, *, threshold: float = 0.5, exponent: float | None = None
) -> Float[Array, "*batch"]:
    """The first time at which a normalised error exceeds a threshold, in Lyapunov times if an exponent is given.

    The error is interpolated linearly between the given times, from 0 at time 0. If it jumps to ∞, the result is the
    time before.

    Args:
        errors: normalised errors over time, such as those of `nrmse` or `vrmse`, shape (t,) or (b, t).
        times: since the initial state, positive and increasing, shape (t,) or (b, t).
        threshold: positive. 0.5 is usual for errors in units of the standard deviation.
        exponent: largest Lyapunov exponent λ of the system, in units of 1/time. The result is then in units of the
            Lyapunov time 1/λ. None keeps the unit of the times.

    Returns:
        A scalar or shape (b,); ∞ if the error stays below the threshold.

    Raises:
        TypeError: if ``threshold`` or ``exponent`` is not a number.
        ValueError: if the shapes do not fit each other, or ``threshold`` or ``exponent`` is not positive.

    Reference:
        Vlachas et al., "Backpropagation algorithms and reservoir computing in recurrent neural networks for the
        forecasting of complex spatiotemporal dynamics" (2020).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import dynamics
        >>> errors, times = jnp.array([0.1, 0.3, 0.7]), jnp.array([1.0, 2.0, 3.0])
        >>> print(dynamics.valid_time(errors, times), dynamics.valid_time(errors, times, exponent=0.5))
        2.5 1.25
    """
    level = as_number(threshold, "threshold")
    scale = 1.0 if exponent is None else as_number(exponent, "exponent")
    for name, value in (("threshold", level), ("exponent", scale)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    return scale * _first_below(-as_float(errors, "errors"), times, -level, start=0.0, argument="errors")


def window_means(
    values: Curve, windows: Sequence[tuple[int, int]] = ((6, 12), (13, 30))
) -> Float[Array, "*batch windows"]:
    """Means over windows of time, (1 / (b − a)) Σ_{a ≤ j < b} v_j for each window (a, b).

    Index 0 is the first predicted time. The default windows are those that The Well reports for `vrmse`.

    Args:
        values: shape (t,) or (b, t).
        windows: pairs of a first index and the index after the last.

    Returns:
        Shape (k,) or (b, k) for k windows.

    Raises:
        TypeError: if an index is not an integer.
        ValueError: if ``values`` have another shape, there is no window, or one is empty or ends after the last time.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import dynamics
        >>> print(dynamics.window_means(jnp.arange(30.0)))
        [ 8.5 21. ]
    """
    array = as_float(values, "values")
    if array.ndim not in (1, 2) or not windows:
        raise ValueError(
            f"values must have shape (t,) or (b, t) and windows at least one pair, got {array.shape} and {windows}."
        )
    count = array.shape[-1]
    means = []
    for first, end in windows:
        start, stop = as_integer(first, "windows"), as_integer(end, "windows")
        if not 0 <= start < stop <= count:
            raise ValueError(
                f"windows must lie within the {count} times, 0 <= start < stop <= {count}, got ({first}, {end}); "
                "roll out further or choose other windows."
            )
        means.append(jnp.mean(array[..., start:stop], axis=-1))
    return jnp.stack(means, axis=-1)


def _first_below(values: Array, times: Times, level: float, *, start: float, argument: str) -> Array:
    """Returns the first time at which the broken line from (0, start) through (times, values) is below a level."""
    times = as_float(times, "times").astype(values.dtype)
    if values.ndim not in (1, 2) or times.shape not in (values.shape, values.shape[-1:]) or values.shape[-1] < 1:
        raise ValueError(
            f"{argument} must have shape (t,) or (b, t), and times the same shape or (t,), got {values.shape} and "
            f"{times.shape}."
        )
    times = jnp.broadcast_to(times if times.ndim == values.ndim else times[None], values.shape)
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    below = values < level
    first = jnp.argmax(below, axis=-1, keepdims=True)
    ever = jnp.any(below, axis=-1)

    def pair(array: Array, initial: float) -> tuple[Array, Array]:
        earlier = jnp.concatenate([jnp.full_like(array[..., :1], initial), array[..., :-1]], axis=-1)
        before, after = (jnp.take_along_axis(a, first, axis=-1)[..., 0] for a in (earlier, array))
        return before, after

    (above, under), (before, after) = pair(values, start), pair(times, 0.0)
    fall = jnp.where(ever, above - under, 1)
    share = jnp.where(ever, (above - level) / fall, 0)
    return jnp.where(ever, before + share * (after - before), jnp.inf)
