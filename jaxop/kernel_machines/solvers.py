"""Minimisers of Σ_observed L(f_ij, z_ij) + λ |C|² over the coefficients of f = Φ A Ψᵀ, in spectral coordinates.

With Φ B_x = U_x diag(s) and Ψ B_y = U_y diag(t), A = B_x C B_yᵀ gives f = U_x (s tᵀ ∘ C) U_yᵀ, and the penalty of A is
|C|². U has orthonormal columns. If every pair is observed, the squared loss decouples: C = s t G / (s² t² + λ)
with G = U_xᵀ Z U_y. If some pairs are observed, this filter preconditions conjugate gradients. K is never squared.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxop._eager import compiled
from jaxop._pytree import register
from jaxop._validation import is_concrete
from jaxop.kernel_machines.observations import Elementwise, Observations, moment

Operator = Callable[[Array], Array]
Progress = Callable[[int, float], None]
"""Called with the number of steps so far and the residual that the solver compares with its tolerance."""

_INNER = 2000
_INNER_NEWTON = 50
"""Largest numbers of conjugate gradient steps in a Newton step, and of Newton steps in an augmented Lagrangian."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss L(f, z) with half of its derivatives in f, so that the penalty λ |C|² contributes λ C.

    Attributes:
        value: L.
        slope: L′/2.
        curvature: L″/2.
    """

    value: Elementwise
    slope: Elementwise
    curvature: Elementwise


LOSSES = {
    "squared": Loss(lambda f, z: (f - z) ** 2, lambda f, z: f - z, lambda f, z: jnp.ones_like(f)),
    "logistic": Loss(
        lambda f, z: jax.nn.softplus(-z * f),
        lambda f, z: -z * jax.nn.sigmoid(-z * f) / 2,
        lambda f, z: jax.nn.sigmoid(f) * jax.nn.sigmoid(-f) / 2,
    ),
    "hinge": Loss(
        lambda f, z: jax.nn.relu(1 - z * f),
        lambda f, z: jnp.where(z * f < 1, -z / 2, 0),
        lambda f, z: jnp.zeros_like(f),
    ),
}
"""(f − z)², log(1 + e^{−z f}) and max(0, 1 − z f); z = ±1 for the last two."""

SOLVERS = {"squared": ("spectral", "cg"), "logistic": ("newton",), "hinge": ("lagrangian",)}
"""Losses that each solver solves."""


@register
@dataclasses.dataclass(frozen=True)
class Features:
    """f = Φ A Ψᵀ under the penalty λ tr(Aᵀ P_x A P_y).

    Attributes:
        left: Φ, (nx, p).
        right: Ψ, (ny, q).
        left_metric: P_x, (p, p); None means the identity.
        right_metric: P_y, (q, q); None means the identity.
    """

    left: Float[Array, "nx p"]
    right: Float[Array, "ny q"]
    left_metric: Float[Array, "p p"] | None = None
    right_metric: Float[Array, "q q"] | None = None

    def penalty(self, coefficients: Float[Array, "p q"]) -> Float[Array, "p q"]:
        """P_x A P_y, half the derivative of the penalty over λ."""
        out = coefficients if self.left_metric is None else self.left_metric @ coefficients
        return out if self.right_metric is None else out @ self.right_metric


@register
@dataclasses.dataclass(frozen=True)
class Axis:
    """Φ B = U diag(s) with Bᵀ P B = I, the coordinates in which features and penalty are diagonal.

    Attributes:
        vectors: U, (n, r), orthonormal columns.
        scales: s ≥ 0, (r,).
        basis: B, (p, r).
        spectrum: the singular values of Φ if P = I, otherwise the eigenvalues of P; unsorted.
    """

    vectors: Float[Array, "n r"]
    scales: Float[Array, " r"]
    basis: Float[Array, "p r"]
    spectrum: Float[Array, " e"]


class Solution(NamedTuple):
    """Coefficients in spectral coordinates, and the residual and steps of the solver.

    Attributes:
        coefficients: C, (r_x, r_y).
        residual: the number that the solver compared with the tolerance.
        steps: number of steps of the solver.
    """

    coefficients: Float[Array, "rx ry"]
    residual: Float[Array, ""]
    steps: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("shared",))
def axes(features: Features, *, shared: tuple[bool, bool]) -> tuple[Axis, Axis]:
    """Returns the coordinates of both domains, by singular value and eigendecompositions.

    Args:
        features: Φ, Ψ and their metrics.
        shared: for each domain, whether all rows are landmarks. If both are True and P = I, then Ψ = Φᵀ and one
            decomposition is enough; otherwise Φ = P_x or Ψ = P_y.

    Returns:
        The axes of the first and the second domain. An eigenvalue of a metric below ε times the largest is rounding
        error and is replaced by this bound.
    """
    if features.left_metric is None and all(shared):
        u, s, v = jnp.linalg.svd(features.left, full_matrices=False)
        return Axis(u, s, v.T, s), Axis(v.T, s, u, s)
    return (
        _axis(features.left, features.left_metric, shared[0]),
        _axis(features.right, features.right_metric, shared[1]),
    )


def _axis(features: Array, metric: Array | None, shared: bool) -> Axis:
    if metric is None:
        u, s, v = jnp.linalg.svd(features, full_matrices=False)
        return Axis(u, s, v.T, s)
    eigenvalues, vectors = jnp.linalg.eigh(metric)
    root = jnp.sqrt(jnp.maximum(eigenvalues, jnp.finfo(metric.dtype).eps * jnp.max(jnp.abs(eigenvalues))))
    if shared:
        return Axis(vectors, root, vectors / root[None, :], eigenvalues)
    whitening = vectors / root[None, :]
    u, s, v = jnp.linalg.svd(features @ whitening, full_matrices=False)
    return Axis(u, s, whitening @ v.T, eigenvalues)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The objective in spectral coordinates, f = U_x (s tᵀ ∘ C) U_yᵀ; derivatives are halved."""

    observations: Observations
    left: Array
    right: Array
    scales: Array
    regularization: Array
    loss: Loss

    @classmethod
    def of(cls, observations: Observations, x: Axis, y: Axis, regularization: Array, loss: str) -> "_Problem":
        scales = x.scales[:, None] * y.scales[None, :]
        return cls(observations, x.vectors, y.vectors, scales, regularization, LOSSES[loss])

    @property
    def zero(self) -> Array:
        return jnp.zeros_like(self.scales)

    def objective(self, c: Array) -> Array:
        data = self.observations.total(self.loss.value, self.left, self.scales * c, self.right)
        return data + self.regularization * jnp.sum(c * c)

    def gradient(self, c: Array) -> Array:
        data = self.observations.contract(self.loss.slope, self.left, self.scales * c, self.right)
        return self.scales * data + self.regularization * c

    def hessian(self, at: Array) -> Operator:
        """Returns the second derivative as an operator, which is symmetric and ≥ λ."""
        return lambda c: jax.jvp(self.gradient, (at,), (c,))[1]

    def filter(self, at: Array) -> Array:
        """Returns the preconditioner, the diagonal Hessian if every pair had the mean curvature."""
        nx, ny = self.observations.shape
        total = self.observations.total(self.loss.curvature, self.left, self.scales * at, self.right)
        return total / (nx * ny) * self.scales**2 + self.regularization

    def moment(self, values: Array | None = None) -> Array:
        return self.scales * moment(self.observations, self.left, self.right, values)

    def evaluate(self, c: Array) -> Array:
        return self.observations.evaluate(self.left, self.scales * c, self.right)


@functools.partial(jax.jit, static_argnames=("loss", "solver", "progress"))
def solve(
    observations: Observations,
    x: Axis,
    y: Axis,
    regularization: Float[Array, ""],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
    *,
    loss: str,
    solver: str,
    progress: Progress | None,
) -> Solution:
    """Returns the minimiser C; ``solver`` is one of ``"spectral"``, ``"cg"``, ``"newton"`` and ``"lagrangian"``."""
    problem = _Problem.of(observations, x, y, regularization, loss)
    return _METHODS[solver](problem, tolerance, max_steps, progress)


def differentiable(
    solution: Solution,
    features: Features,
    observations: Observations,
    x: Axis,
    y: Axis,
    regularization: Float[Array, ""],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
    *,
    loss: str,
    solver: str,
) -> Float[Array, "p q"]:
    """A = B_x C B_yᵀ, with derivatives in Φ, Ψ, P_x, P_y, z and λ by the implicit function theorem.

    It differentiates Φᵀ L′(Φ A Ψᵀ) Ψ / 2 + λ P_x A P_y = 0, whose Jacobian in A is symmetric. The decompositions only
    solve its linear systems, so that equal singular values cause no errors. Derivatives of any order exist. If
    conjugate gradients do not reach a hundred times the tolerance, the derivative is NaN.
    """
    c, x, y = jax.lax.stop_gradient((solution.coefficients, x, y))
    coefficients = _in_basis(x.basis, c, y.basis)
    sources = (features, observations, regularization)
    if is_concrete(*jax.tree.leaves(sources)):
        return coefficients
    if solver == "lagrangian":
        return _without_derivative(coefficients, sources)
    return _implicit(
        coefficients, c, features, observations, x, y, regularization, tolerance, max_steps, loss=loss, solver=solver
    )


@compiled(static=("loss", "solver"))
def _implicit(coefficients, c, features, observations, x, y, regularization, tolerance, max_steps, *, loss, solver):
    """Returns the coefficients A as a root, for the implicit function theorem."""
    fixed = jax.lax.stop_gradient((observations, regularization))
    problem = _Problem.of(fixed[0], x, y, fixed[1], loss)
    complete = features.left_metric is not None  # B spans the space of A
    hessian, preconditioner = problem.hessian(c), problem.filter(c)

    def gradient(a: Array) -> Array:
        data = observations.contract(LOSSES[loss].slope, features.left, a, features.right)
        return data + regularization * features.penalty(a)

    def invert(_: object, b: Array) -> Array:
        inner = x.basis.T @ b @ y.basis
        if solver == "spectral":
            out = inner / preconditioner
        else:
            found = conjugate_gradients(hessian, inner, preconditioner, problem.zero, tolerance, max_steps)
            out = jnp.where(found.residual <= 100 * tolerance, found.coefficients, jnp.nan)
        if complete:
            return x.basis @ out @ y.basis.T
        rest = b - x.basis @ inner @ y.basis.T  # where Φ A Ψᵀ = 0
        return x.basis @ out @ y.basis.T + rest / jnp.where(fixed[1] > 0, fixed[1], jnp.inf)

    def tangent(linear: Operator, b: Array) -> Array:
        return jax.lax.custom_linear_solve(linear, b, invert, symmetric=True)

    return jax.lax.custom_root(gradient, coefficients, lambda _, a: a, tangent)


@jax.jit
def _in_basis(left: Array, coefficients: Array, right: Array) -> Array:
    return left @ coefficients @ right.T


@jax.custom_jvp
def _without_derivative(coefficients: Array, sources: object) -> Array:
    return coefficients


@_without_derivative.defjvp
def _refuse(primals: object, tangents: object) -> NoReturn:
    raise NotImplementedError(
        "a fit with the hinge loss has no derivative here: its solution jumps between sets of support pairs. Use "
        "loss='logistic' or 'squared', or differentiate the machine in its inputs only."
    )


def _spectral(problem: _Problem, tolerance: Array, max_steps: Array, progress: Progress | None) -> Solution:
    solution = problem.moment() / (problem.scales**2 + problem.regularization)
    return Solution(solution, jnp.zeros_like(tolerance), jnp.zeros_like(max_steps))


def _least_squares(problem: _Problem, tolerance: Array, max_steps: Array, progress: Progress | None) -> Solution:
    return conjugate_gradients(
        problem.hessian(problem.zero),
        problem.moment(),
        problem.filter(problem.zero),
        problem.zero,
        tolerance,
        max_steps,
        progress,
    )


def conjugate_gradients(
    operator: Operator,
    right_hand_side: Float[Array, "rx ry"],
    preconditioner: Float[Array, "rx ry"],
    start: Float[Array, "rx ry"],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
    progress: Progress | None = None,
) -> Solution:
    """Solves a symmetric positive definite system by conjugate gradients with a diagonal preconditioner M.

    It stops at |r|_{M⁻¹} ≤ tolerance |b|_{M⁻¹} for the residual r and right-hand side b.

    Source: Hestenes, Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.
    """
    size = jnp.sqrt(jnp.sum(right_hand_side**2 / preconditioner))
    size = jnp.where(size > 0, size, 1)

    class State(NamedTuple):
        solution: Array
        residual: Array
        direction: Array
        squared: Array
        steps: Array

    def relative(state: State) -> Array:
        return jnp.sqrt(state.squared) / size

    def advance(state: State) -> State:
        image = operator(state.direction)
        length = state.squared / jnp.sum(state.direction * image)
        residual = state.residual - length * image
        whitened = residual / preconditioner
        squared = jnp.sum(residual * whitened)
        direction = whitened + squared / state.squared * state.direction
        solution = state.solution + length * state.direction
        state = State(solution, residual, direction, squared, state.steps + 1)
        _report(progress, state.steps, relative(state))
        return state

    residual = right_hand_side - operator(start)
    whitened = residual / preconditioner
    state = State(start, residual, whitened, jnp.sum(residual * whitened), jnp.zeros_like(max_steps))
    unfinished = lambda s: (relative(s) > tolerance) & (s.steps < max_steps)  # noqa: E731
    state = jax.lax.while_loop(unfinished, advance, state)
    return Solution(state.solution, relative(state), state.steps)


def _newton(problem: _Problem, tolerance: Array, max_steps: Array, progress: Progress | None) -> Solution:
    """Stops when the decrease |g|²_{M⁻¹} that the preconditioner predicts is tolerance² times the objective."""

    def decrement(gradient: Array, preconditioner: Array, objective: Array) -> Array:
        return jnp.sqrt(jnp.sum(gradient**2 / preconditioner) / objective)

    return newton(problem, problem.zero, decrement, tolerance, max_steps, progress)


def newton(
    problem: _Problem,
    start: Array,
    measure: Callable[[Array, Array, Array], Array],
    tolerance: Array,
    max_steps: Array,
    progress: Progress | None = None,
) -> Solution:
    """Newton steps by conjugate gradients, which are halved until the objective falls (Armijo's rule).

    They stop when ``measure(gradient, preconditioner, objective)`` is at most the tolerance.
    """
    eps = float(jnp.finfo(start.dtype).eps)

    class State(NamedTuple):
        solution: Array
        objective: Array
        gradient: Array
        preconditioner: Array
        residual: Array
        steps: Array

    def at(solution: Array, steps: Array) -> State:
        gradient, preconditioner = problem.gradient(solution), problem.filter(solution)
        objective = problem.objective(solution)
        residual = measure(gradient, preconditioner, objective)
        return State(solution, objective, gradient, preconditioner, residual, steps)

    def advance(state: State) -> State:
        direction = conjugate_gradients(
            problem.hessian(state.solution),
            -state.gradient,
            state.preconditioner,
            problem.zero,
            jnp.clip(state.residual / 10, eps ** (2 / 3), 1e-3),  # accurate enough for few Newton steps
            jnp.full_like(max_steps, _INNER),
        ).coefficients
        slope = 2 * jnp.sum(state.gradient * direction)
        allowed = 10 * eps * state.objective

        def too_long(length: Array) -> Array:
            value = problem.objective(state.solution + length * direction)
            return (value > state.objective + 1e-4 * length * slope + allowed) & (length > 1e-6)

        length = jax.lax.while_loop(too_long, lambda length: length / 2, jnp.ones_like(slope))
        state = at(state.solution + length * direction, state.steps + 1)
        _report(progress, state.steps, state.residual)
        return state

    unfinished = lambda s: (s.residual > tolerance) & (s.steps < max_steps)  # noqa: E731
    state = jax.lax.while_loop(unfinished, advance, at(start, jnp.zeros_like(max_steps)))
    return Solution(state.solution, state.residual, state.steps)


def _hinge(problem: _Problem, tolerance: Array, max_steps: Array, progress: Progress | None) -> Solution:
    """The hinge loss by augmented Lagrangians, each minimised by semismooth Newton steps, stopped by the duality gap.

    Multipliers β ∈ [0, 1] and stiffness μ turn max(0, d), d = 1 − z f, into a smooth function of d + β/μ that is
    quadratic up to 1/μ and linear beyond. The slope of this function is the next β. The multipliers are feasible for
    the dual Σ β − |Φᵀ (z β) Ψ|² / (4 λ) ≤ minimum, and the residual is (objective − bound) / objective.

    Source: Rockafellar, "Augmented Lagrangians and Applications of the Proximal Point Algorithm in Convex Programming",
        1976; Li, Sun, Toh, "A Highly Efficient Semismooth Newton Augmented Lagrangian Method for Solving Lasso
        Problems", arXiv:1607.05428.
    """
    labels = problem.observations.values

    class State(NamedTuple):
        solution: Array
        multipliers: Array
        stiffness: Array
        gap: Array
        steps: Array

    def advance(state: State) -> State:
        margins = labels * (1 + state.multipliers / state.stiffness)
        smooth = dataclasses.replace(
            problem,
            loss=_smooth_hinge(state.stiffness),
            observations=dataclasses.replace(problem.observations, values=margins),
        )
        accuracy = jnp.clip(state.gap, tolerance, 1) / 10
        solution = newton(
            smooth, state.solution, suboptimality, accuracy, jnp.full_like(max_steps, _INNER_NEWTON)
        ).coefficients
        distance = jnp.abs(margins) - labels * problem.evaluate(solution)
        multipliers = jnp.clip(state.stiffness * distance, 0, 1) * jnp.abs(labels)  # 0 where unobserved
        objective = problem.objective(solution)
        bound = jnp.sum(multipliers) - jnp.sum(problem.moment(labels * multipliers) ** 2) / (4 * problem.regularization)
        state = State(solution, multipliers, 3 * state.stiffness, (objective - bound) / objective, state.steps + 1)
        _report(progress, state.steps, state.gap)
        return state

    def suboptimality(gradient: Array, preconditioner: Array, objective: Array) -> Array:
        return jnp.sum(gradient**2) / (problem.regularization * objective)  # an upper bound, by strong convexity

    one = jnp.ones_like(tolerance)
    state = State(problem.zero, jnp.zeros_like(labels), one, one, jnp.zeros_like(max_steps))
    unfinished = lambda s: (s.gap > tolerance) & (s.steps < max_steps)  # noqa: E731
    state = jax.lax.while_loop(unfinished, advance, state)
    return Solution(state.solution, state.gap, state.steps)


def _smooth_hinge(stiffness: Array) -> Loss:
    """The Moreau envelope of max(0, d) for d = |z| − sign(z) f; quadratic for 0 < d < 1/μ."""

    def distance(f: Array, z: Array) -> Array:
        return jnp.abs(z) - jnp.sign(z) * f

    def value(f: Array, z: Array) -> Array:
        d = distance(f, z)
        return jnp.where(stiffness * d < 1, stiffness * jax.nn.relu(d) ** 2 / 2, d - 1 / (2 * stiffness))

    def slope(f: Array, z: Array) -> Array:
        return -jnp.sign(z) * jnp.clip(stiffness * distance(f, z), 0, 1) / 2

    def curvature(f: Array, z: Array) -> Array:
        d = stiffness * distance(f, z)
        return jnp.where((d > 0) & (d < 1), stiffness / 2, 0)

    return Loss(value, slope, curvature)


def _report(progress: Progress | None, steps: Array, residual: Array) -> None:
    if progress is not None:
        jax.debug.callback(lambda s, r: progress(int(s), float(r)), steps, residual, ordered=True)


_METHODS = {"spectral": _spectral, "cg": _least_squares, "newton": _newton, "lagrangian": _hinge}
