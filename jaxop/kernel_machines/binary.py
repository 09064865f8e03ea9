"""Binary kernel machines: functions f(x, y) on two domains, fitted to responses of pairs."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real

from jaxop._blocks import map_blocks
from jaxop._pytree import register
from jaxop._sparse import CoordinateMatrix, SparseMatrix
from jaxop._validation import as_float, as_integer, as_number, check_name, check_rng_key, is_concrete, is_integer
from jaxop.kernel_machines import checks, solvers
from jaxop.kernel_machines.landmarks import choose_landmarks
from jaxop.kernel_machines.maps import AffineMap, given_maps, leading_directions
from jaxop.kernel_machines.observations import Observations, observe
from jaxop.kernels import Kernel

SPANS = ("sections", "product")
"""f(x, y) = Σ κ(x, y_j) α_ji κ(x_i, y), and f(x, y) = Σ κ_X(x, x_i) α_ij κ_Y(y, y_j)."""

Kernels: TypeAlias = Kernel | tuple[Kernel, Kernel]
Responses: TypeAlias = Real[Array | np.ndarray, "nx ny"] | CoordinateMatrix | SparseMatrix
Maps: TypeAlias = str | int | Sequence[object] | None
Landmarks: TypeAlias = int | tuple[int | None, int | None] | None

LARGEST_EXACT = 2000
"""Points of a domain up to which all of them serve as landmarks unless a number is given."""

_DEFAULT_LANDMARKS = 512
_TILE = 1 << 22
"""Kernel values that are held at a time when a machine is evaluated."""

_MAX_STEPS = {"spectral": 1, "cg": 1000, "newton": 100, "lagrangian": 50}
_GAP = 1e-4


@register
@dataclasses.dataclass(frozen=True, repr=False)
class BinaryMachine:
    """A fitted function f(x, y) = Φ(x) A Ψ(y)ᵀ of one row of each domain; a pytree that passes through `jax.jit`.

    With span "sections" Φ(x) = κ(x, Ỹ) and Ψ(y) = κ(X̃, y); with span "product" Φ(x) = κ_X(x, X̃), Ψ(y) = κ_Y(y, Ỹ).

    Attributes:
        kernel: κ, or (κ_X, κ_Y) with span "product".
        x_points: X̃ in the coordinates of the kernel, (p, d): all rows that were fitted, or the landmarks.
        y_points: Ỹ, (q, d).
        coefficients: A, (q, p) with span "sections", (p, q) with span "product".
        x_map: map from rows of the first domain to the coordinates of the kernel; None means the identity.
        y_map: the same for the second domain.
        residual: the number that the solver compared with its tolerance; 0 for a closed form.
        steps: number of steps of the solver.
    """

    kernel: Kernels
    x_points: Float[Array, "p d"]
    y_points: Float[Array, "q e"]
    coefficients: Float[Array, "k l"]
    x_map: AffineMap | None
    y_map: AffineMap | None
    residual: Float[Array, ""]
    steps: Int[Array, ""]

    def __repr__(self) -> str:
        names = checks.name(self.kernel)
        return f"BinaryMachine({self.span} of {names}, {self.x_points.shape[0]} × {self.y_points.shape[0]} points)"

    @property
    def span(self) -> str:
        """``"sections"`` or ``"product"``."""
        return "product" if isinstance(self.kernel, tuple) else "sections"

    def __call__(
        self, x: Float[Array | np.ndarray, "nx a"], y: Float[Array | np.ndarray, "ny b"]
    ) -> Float[Array, "nx ny"]:
        """The values f(x_i, y_j) of every pair of rows.

        Args:
            x: rows of the first domain, (nx, a).
            y: rows of the second, (ny, b).

        Returns:
            f(x_i, y_j), (nx, ny), in the dtype of the coefficients.

        Raises:
            ValueError: for rows of another length than those that were fitted.

        Cost: O((nx p + ny q) (d + min(p, q)) + nx ny p); a few rows of kernel values are held at a time.
        """
        x, y = self._mapped(x, y)
        with jax.default_matmul_precision("highest"):
            weights = map_blocks(lambda rows: self._right(rows) @ self.coefficients.T, y, self._block(0), pad=True)
            return map_blocks(lambda rows: self._left(rows) @ weights.T, x, self._block(weights.shape[0]), pad=True)

    def pairs(self, x: Float[Array | np.ndarray, "n a"], y: Float[Array | np.ndarray, "n b"]) -> Float[Array, " n"]:
        """The values f(x_i, y_i) of a list of pairs.

        Args:
            x: the first row of each pair, (n, a).
            y: the second, (n, b).

        Returns:
            f(x_i, y_i), (n,).

        Raises:
            ValueError: for rows of another length than those that were fitted, or lists of different lengths.

        Cost: O(n (p + q) d + n p q).
        """
        x, y = self._mapped(x, y)
        if x.shape[0] != y.shape[0]:
            raise ValueError(f"x and y must list the same number of pairs, got {x.shape[0]} and {y.shape[0]} rows.")

        def evaluate(rows: tuple[Array, Array]) -> Array:
            return jnp.sum((self._left(rows[0]) @ self.coefficients) * self._right(rows[1]), axis=1)

        with jax.default_matmul_precision("highest"):
            return map_blocks(evaluate, (x, y), self._block(0), pad=True)

    def _left(self, x: Array) -> Array:
        if isinstance(self.kernel, tuple):
            return gram(self.kernel[0], x, self.x_points)
        return gram(self.kernel, x, self.y_points)

    def _right(self, y: Array) -> Array:
        if isinstance(self.kernel, tuple):
            return gram(self.kernel[1], y, self.y_points)
        return gram(self.kernel, self.x_points, y).T

    def _block(self, columns: int) -> int:
        return max(1, _TILE // max(*self.coefficients.shape, columns))

    def _mapped(self, x: object, y: object) -> tuple[Array, Array]:
        dtype, out = self.coefficients.dtype, []
        for name, rows, to, points in (("x", x, self.x_map, self.x_points), ("y", y, self.y_map, self.y_points)):
            rows = as_float(rows, name).astype(dtype)
            length = points.shape[1] if to is None else to.matrix.shape[0]
            if rows.ndim != 2 or rows.shape[1] != length:
                raise ValueError(
                    f"{name} must have shape (n, {length}) like the rows that were fitted, got {rows.shape}."
                )
            out.append(rows if to is None else _apply(to, rows))
        return out[0], out[1]


def fit(
    kernel: Kernels,
    X: Real[Array | np.ndarray, "nx a"],
    Y: Real[Array | np.ndarray, "ny b"],
    responses: Responses,
    mask: Bool[Array | np.ndarray, "nx ny"] | None = None,
    *,
    span: str = "sections",
    loss: str = "squared",
    regularization: float | Array = 1e-4,
    solver: str | None = None,
    maps: Maps = None,
    landmarks: Landmarks = None,
    rng_key: Key[Array, ""] | None = None,
    tolerance: float | None = None,
    max_steps: int | None = None,
    progress: solvers.Progress | None = None,
) -> BinaryMachine:
    """The minimiser of Σ_observed L(f(x_i, y_j), z_ij) + λ |f|², f(x, y) = Φ(x) A Ψ(y)ᵀ.

    span "sections": f(x, y) = Σ κ(x, y_j) α_ji κ(x_i, y), |f|² = Σ α_ji². κ may be asymmetric, indefinite or
    signed. With K = κ(X, Y) = U diag(s) Vᵀ, the squared loss and all pairs observed, A = V B Uᵀ with
    B = s sᵀ G / ((s sᵀ)² + λ), G = Uᵀ Z V.

    span "product": f(x, y) = Σ κ_X(x, x_i) α_ij κ_Y(y, y_j), |f|² = tr(Aᵀ K_X A K_Y), the norm of the product of the
    reproducing kernel Hilbert spaces. κ_X and κ_Y must be symmetric and positive semidefinite;
    B = G / (s tᵀ + λ) in the eigenvectors.

    Args:
        kernel: κ between a row of X and a row of Y; with span "product" also a pair (κ_X, κ_Y), one for each domain.
        X: rows x_i of the first domain, (nx, a).
        Y: rows y_j of the second, (ny, b).
        responses: z_ij, (nx, ny); or a sparse matrix (`jax.experimental.sparse.BCOO` or scipy.sparse), whose stored
            entries are the observed pairs. ±1 for the logistic and the hinge loss.
        mask: True for observed pairs, (nx, ny); None means all pairs. Other responses are ignored.
        span: ``"sections"`` or ``"product"``.
        loss: ``"squared"`` (f − z)², ``"logistic"`` log(1 + e^{−z f}) or ``"hinge"`` max(0, 1 − z f).
        regularization: λ ≥ 0, in units of the summed loss (not divided by the number of pairs).
        solver: ``"spectral"``, the closed form (squared loss, all pairs observed); ``"cg"``, conjugate gradients
            preconditioned by it (squared loss); ``"newton"``, damped Newton steps by conjugate gradients (logistic);
            ``"lagrangian"``, augmented Lagrangians by semismooth Newton steps (hinge, stopped by the duality gap).
            None means the first that applies.
        maps: maps of the rows to a common space. An integer means `partial_least_squares` of that rank; (W_x, W_y)
            means x ↦ W_xᵀ x and y ↦ W_yᵀ y with matrices (a, r) and (b, r); ``"kernel"`` means that the kernel takes
            rows of both lengths. None leaves the rows unchanged if a = b, if the span is "product", or if the kernel
            has its own maps (attributes ``query_map`` and ``key_map``), and otherwise means `partial_least_squares` of
            rank min(a, b).
        landmarks: how many rows of each domain span f (Nyström), a number or (p, q), chosen by `choose_landmarks`. None
            means all rows, or 512 with a warning for a domain of more than 2000 rows (with span "sections" if both have
            more).
        rng_key: draws the landmarks; None chooses them deterministically.
        tolerance: bound at which a solver stops, of the relative residual for "cg", of √(gᵀ M⁻¹ g / objective) with the
            preconditioner M for "newton", and of the duality gap over the objective for "lagrangian". None means
            ε^(2/3), and 1e-4 for "lagrangian".
        max_steps: largest number of steps; None means 1000, 100 and 50 for "cg", "newton" and "lagrangian".
        progress: called with the number of steps and the residual, such as `print`.

    Returns:
        A `BinaryMachine`, computed in float32 or, for float64 inputs, float64. For the squared and the logistic loss it
        is differentiable, to any order, in the parameters of the kernel, X, Y, responses and λ, by the implicit
        function theorem. Maps that `fit` chooses and the choice of landmarks count as fixed.

    Raises:
        ValueError: for arrays that do not fit, NaN, no observed pair, labels that are not ±1, λ < 0, λ = 0 with a
            singular kernel matrix, more landmarks than rows; for span "product", a kernel that is not positive
            semidefinite on the rows.
        NotImplementedError: for a solver that does not solve the problem, or a derivative of a hinge machine.
        FloatingPointError: if a kernel value is not finite, or the solver ends with a residual of 1 or more. Values
            are checked outside `jax.jit` only.

    Warns:
        RuntimeWarning: if the solver stopped at ``max_steps``; inside `jax.jit` look at ``machine.residual``.

    Cost: closed form O(nx ny min(nx, ny)); with p and q landmarks O(nx p² + ny q²), and per product with the
    normal matrix O(nx ny p) for a matrix of responses (a few rows of f are held at a time; "lagrangian" holds two
    more matrices of that size) and O(k q + (nx + ny) p q) for k listed pairs.

    Source: Wright, Gonzalez, "Transformers are Deep Infinite-Dimensional Non-Mercer Binary Kernel Machines",
        arXiv:2106.01506; Stock et al., "A Comparative Study of Pairwise Learning Methods Based on Kernel Ridge
        Regression", arXiv:1803.01575.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxop import kernel_machines, kernels
        >>> X, Y = jax.random.normal(jax.random.key(0), (2, 30, 2))
        >>> swirl = lambda x, y: jnp.outer(x[:, 0], y[:, 1]) - 2 * jnp.outer(x[:, 1], y[:, 0])
        >>> machine = kernel_machines.fit(kernels.ExpDotProduct(), X, Y, swirl(X, Y), regularization=1e-6)
        >>> bool(jnp.max(jnp.abs(machine(X[:5] / 2, Y[:7] / 2) - swirl(X[:5] / 2, Y[:7] / 2))) < 1e-2)
        True
    """
    check_name(span, "span", SPANS)
    check_name(loss, "loss", solvers.LOSSES)
    kernel = checks.kernels(kernel, span)
    x, y, dtype = checks.points(X, Y)
    observations = observe(responses, mask, x.shape[0], y.shape[0], dtype)
    checks.labels(observations, loss)
    solver = checks.solver(solver, loss, observations)
    regularization = checks.regularization(regularization, loss, observations)
    if rng_key is not None:
        check_rng_key(rng_key)
    if not (progress is None or callable(progress)):
        raise TypeError(f"progress must be called with the number of steps and the residual, got {progress!r}.")
    enough = _GAP if solver == "lagrangian" else float(jnp.finfo(dtype).eps) ** (2 / 3)
    enough = enough if tolerance is None else as_number(tolerance, "tolerance")
    most = _MAX_STEPS[solver] if max_steps is None else as_integer(max_steps, "max_steps")
    if most < 1 or not enough > 0:
        raise ValueError(f"max_steps and tolerance must be positive, got {most} and {enough}.")
    limits = jnp.asarray(enough, dtype), jnp.asarray(most, np.int32)

    with jax.default_matmul_precision("highest"):
        x_map, y_map = _maps(maps, kernel, x, y, observations)
        x, y = (rows if to is None else _apply(to, rows) for to, rows in ((x_map, x), (y_map, y)))
        p, q = _counts(landmarks, span, x.shape[0], y.shape[0])
        keys = (None, None) if rng_key is None else jax.random.split(rng_key)
        shared = (p == x.shape[0], q == y.shape[0])
        x_points, y_points = (
            rows if whole else rows[choose_landmarks(rows, count, key)]
            for rows, count, key, whole in zip((x, y), (p, q), keys, shared, strict=True)
        )
        features = _features(kernel, x, y, x_points, y_points, shared)
        fixed = jax.lax.stop_gradient((features, observations, regularization))
        x_axis, y_axis = solvers.axes(fixed[0], shared=shared)
        if is_concrete(*jax.tree.leaves((x_axis, y_axis)), regularization):
            checks.spectra(kernel, (x_points, y_points), (x_axis, y_axis), shared, float(regularization))
        solution = solvers.solve(
            fixed[1], x_axis, y_axis, fixed[2], *limits, loss=loss, solver=solver, progress=progress
        )
        if is_concrete(solution.residual) and not float(solution.residual) < 1:
            raise FloatingPointError(
                f"solver={solver!r} did not converge: its residual is {float(solution.residual):.2g} after "
                f"{int(solution.steps)} steps. The problem is too ill-conditioned for {dtype}: raise regularization, "
                "scale the kernel, or use float64 (jax.config.update('jax_enable_x64', True))."
            )
        if is_concrete(solution.residual) and not float(solution.residual) <= float(limits[0]):
            warnings.warn(
                f"solver={solver!r} stopped after {int(solution.steps)} steps at a residual of "
                f"{float(solution.residual):.2g}, above the tolerance {enough:.2g}; raise max_steps, "
                "regularization or tolerance.",
                RuntimeWarning,
                stacklevel=2,
            )
        coefficients = solvers.differentiable(
            solution, features, observations, x_axis, y_axis, regularization, *limits, loss=loss, solver=solver
        )
    return BinaryMachine(kernel, x_points, y_points, coefficients, x_map, y_map, solution.residual, solution.steps)


def gram(kernel: Kernel, a: Float[Array, "n d"], b: Float[Array, "m e"]) -> Float[Array, "n m"]:
    """The matrix k(a_i, b_j) of a kernel of any sign."""
    tile = kernel.tile(a, b)
    return tile if kernel.sign == "signed" else jnp.exp(tile)


def _features(
    kernel: Kernels, x: Array, y: Array, x_points: Array, y_points: Array, shared: tuple[bool, bool]
) -> solvers.Features:
    """Φ, Ψ and their metrics; a pair of kernels stands for span "product"."""

    def matrix(own: Kernel, rows: Array, points: Array) -> Array:
        return checks.finite(own, gram(own, rows, points))

    if not isinstance(kernel, tuple):
        left = matrix(kernel, x, y_points)
        return solvers.Features(left, left.T if all(shared) else matrix(kernel, x_points, y).T)
    metrics = [
        checks.symmetric(own, matrix(own, points, points))
        for own, points in zip(kernel, (x_points, y_points), strict=True)
    ]
    left, right = (
        metric if whole else matrix(own, rows, points)
        for metric, whole, own, rows, points in zip(metrics, shared, kernel, (x, y), (x_points, y_points), strict=True)
    )
    return solvers.Features(left, right, *metrics)


def _apply(to: AffineMap, rows: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return to(rows)


def _maps(
    maps: Maps, kernel: Kernels, x: Array, y: Array, observations: Observations
) -> tuple[AffineMap | None, AffineMap | None]:
    a, b = x.shape[1], y.shape[1]
    if maps is None:
        own = hasattr(kernel, "query_map") and hasattr(kernel, "key_map")
        maps = "kernel" if a == b or isinstance(kernel, tuple) or own else min(a, b)
    if isinstance(maps, str):
        check_name(maps, "maps", ("kernel",))
        return None, None
    if isinstance(maps, int | np.integer) and not isinstance(maps, bool):
        return leading_directions(x, y, observations, maps)
    if not isinstance(maps, tuple | list) or len(maps) != 2:
        raise ValueError(f"maps must be None, a rank, 'kernel' or two matrices (W_x, W_y), got {maps!r}.")
    given = given_maps(maps, a, b, x.dtype)
    ranks = [to.matrix.shape[1] for to in given]
    if ranks[0] != ranks[1] and not isinstance(kernel, tuple):
        raise ValueError(f"maps must have as many columns as each other, the rank, got {ranks[0]} and {ranks[1]}.")
    return given


def _counts(landmarks: Landmarks, span: str, nx: int, ny: int) -> tuple[int, int]:
    """Landmarks of both domains."""
    wanted = landmarks if isinstance(landmarks, tuple) else (landmarks, landmarks)
    if len(wanted) != 2:
        raise ValueError(f"landmarks must be a number or two of them, (p, q), got {landmarks}.")
    large = [n > LARGEST_EXACT for n in (nx, ny)]
    if span == "sections" and not all(large):  # one decomposition of an nx × ny matrix
        large = [False, False]
    counts = []
    for name, n, count, many in zip("XY", (nx, ny), wanted, large, strict=True):
        if count is None and many:
            count = _DEFAULT_LANDMARKS
            warnings.warn(
                f"{name} has {n} rows: {count} of them are taken as landmarks, an approximation. Pass landmarks= to "
                f"choose how many ({n}: all).",
                UserWarning,
                stacklevel=3,
            )
        count = n if count is None else count
        if not is_integer(count):
            raise TypeError(f"landmarks must be a number or two of them, (p, q), got {landmarks!r}.")
        if not 1 <= count <= n:
            raise ValueError(f"landmarks must be between 1 and the number of rows of {name}, {n}, got {count}.")
        counts.append(count)
    return counts[0], counts[1]
