"""Two-level Schwarz attention: low rank inside overlapping subdomains, low rank on a coarse space."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jaxop._pytree import register
from jaxop._validation import accumulator, as_float, float_dtype, is_concrete, is_integer, is_numeric
from jaxop.schwarz.decomposition import Decomposition


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """Parameters of `apply`, from gradient descent, a fit or a network.

    Factors are samples of functions, on the nodes of the subdomains (padding is ignored) and on the coarse
    functions. The operator maps values in units of f to units of f·Q·K·length^dim.

    Attributes:
        coarse_query: Q0, (n0, r0); None omits the coarse part.
        coarse_key: K0, (n0, r0); None means K0 = Q0.
        local_query: Q_i, (p, s, r); None omits the local part.
        local_key: K_i, (p, s, r); None means K_i = Q_i.
        shift: σ of the summand σ·v; None means 0. With σ > 0 and without keys the operator is positive definite.
    """

    coarse_query: Float[Array, "n0 r0"] | None = None
    coarse_key: Float[Array, "n0 r0"] | None = None
    local_query: Float[Array, "p s r"] | None = None
    local_key: Float[Array, "p s r"] | None = None
    shift: Float[Array, ""] | float | None = None


def apply(values: Float[Array, "n c"], decomposition: Decomposition, factors: Factors) -> Float[Array, "n c"]:
    """M⁻¹ v = Φ Q0 K0ᵀ Φᵀ W v + Σ_i R_iᵀ D_i^½ Q_i K_iᵀ D_i^½ R_i W v + σ v.

    Inner products with keys are quadratures, so that factors sampled from functions give the same operator on every
    grid. Without keys the operator is symmetric in L2 and positive semi-definite.

    Args:
        values: samples of v, (n, c), on the domain that was decomposed.
        decomposition: see `schwarz.decompose`.
        factors: Q, K and σ.

    Returns:
        (n, c), in the dtype of ``values``, accumulated in float32 or wider.

    Raises:
        ValueError: if shapes do not fit.

    Cost: O(n m r c) if nodes are in m subdomains, plus O(n0 r0 c); memory O(n m (r + c)).

    Source: Köhler, Rheinbach, "Hierarchical Attention via Domain Decomposition", arXiv:2606.18525. Weights and
        scalings are our additions.

    Example:
        >>> import jax
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
        >>> factors = schwarz.random_factors(jax.random.key(0), dec, rank=4)
        >>> schwarz.apply(dec.domain.points, dec, factors).shape
        (63, 1)
    """
    check_factors(decomposition, factors)
    values, n = as_float(values, "values"), decomposition.domain.size
    if values.ndim != 2 or values.shape[0] != n:
        raise ValueError(f"values must have shape (n, c) = ({n}, c), one row per node, got {values.shape}.")
    dtype = accumulator(values.dtype)
    v = values.astype(dtype)
    out = jnp.zeros_like(v) if factors.shift is None else jnp.asarray(factors.shift, dtype) * v
    if factors.local_query is not None:
        query, key = _pair(factors.local_query, factors.local_key, dtype)
        inside = decomposition.cover.inside[..., None]
        key = jnp.where(inside, key, 0)
        # 1 under the root where D = 0 (padding), because the slope of the root would be infinite there
        unity = decomposition.partition.astype(dtype)[..., None]
        root = jnp.where(unity > 0, jnp.sqrt(jnp.where(unity > 0, unity, 1)), 0)
        local = root * decomposition.restrict(decomposition.domain.weights.astype(dtype)[:, None] * v)
        moments = jnp.einsum("psr,psc->prc", key, local)
        out += decomposition.prolong(root * jnp.einsum("psr,prc->psc", query, moments))
    if factors.coarse_query is not None:
        query, key = _pair(factors.coarse_query, factors.coarse_key, dtype)
        out += decomposition.refine(query @ (key.T @ decomposition.coarsen(v)))
    return out.astype(values.dtype)


def low_rank_apply(
    values: Float[Array, "n c"],
    weights: Float[Array, " n"],
    query: Float[Array, "n r"],
    key: Float[Array, "n r"] | None = None,
) -> Float[Array, "n c"]:
    """Q Kᵀ W v, global attention of rank r without softmax, the baseline for two levels.

    Args:
        values: samples of v, (n, c).
        weights: quadrature weights, (n,).
        query: Q, (n, r).
        key: K, (n, r); None means K = Q.

    Returns:
        (n, c), in the dtype of ``values``.

    Raises:
        ValueError: if shapes do not fit.

    Cost: O(n r c).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, schwarz
        >>> domain = domains.interval(5)
        >>> print(schwarz.low_rank_apply(domain.points, domain.weights, jnp.ones((5, 1)))[0])  # the mean
        [0.5]
    """
    values = as_float(values, "values")
    if values.ndim != 2:
        raise ValueError(f"values must have shape (n, c), one row per node, got {values.shape}.")
    weights, query = as_float(weights, "weights"), as_float(query, "query")
    key = query if key is None else as_float(key, "key")
    if weights.ndim != 1 or query.ndim != 2 or key.shape != query.shape:
        raise ValueError(
            f"weights must have shape (n,), query and key one shape (n, r), got {weights.shape}, {query.shape} and "
            f"{key.shape}."
        )
    for name, array in (("weights", weights), ("query", query)):
        if array.shape[:1] != values.shape[:1]:
            raise ValueError(f"{name} must have one row per row of values, {values.shape[0]}, got {array.shape}.")
    dtype = accumulator(values.dtype)
    q, k = _pair(query, key, dtype)
    return (q @ (k.T @ (weights.astype(dtype)[:, None] * values.astype(dtype)))).astype(values.dtype)


def random_factors(
    rng_key: PRNGKeyArray,
    decomposition: Decomposition,
    rank: int,
    coarse_rank: int | None = None,
    *,
    symmetric: bool = False,
) -> Factors:
    """Independent normal factors of variance √(p / (r |D|)), for functions on p parts of the domain D.

    On a domain of measure 1 the coarse part maps a function of size 1 to a function of size about 1. Local factors are
    white noise at the nodes, whose quadratures shrink with their number. The local part therefore maps a function of
    size 1 to size about 1/√n, and trains more slowly on finer grids. To avoid this, draw coefficients for
    `sample_factors`.

    Args:
        rng_key: random key.
        decomposition: see `schwarz.decompose`.
        rank: r of every subdomain; 0 omits the local part.
        coarse_rank: r0; None means n0, 0 omits the coarse part.
        symmetric: whether to omit the keys.

    Raises:
        ValueError: if a rank exceeds the size of a subdomain or of the coarse space.

    Example:
        >>> import jax
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
        >>> schwarz.random_factors(jax.random.key(0), dec, rank=3).coarse_query.shape
        (7, 7)
    """
    check_decomposition(decomposition)
    coarse_rank = decomposition.coarse_size if coarse_rank is None else coarse_rank
    check_ranks(decomposition, rank, coarse_rank)
    measure = jnp.sum(decomposition.domain.weights)
    keys = jax.random.split(rng_key, 4)

    def draw(rng_key: Array, shape: tuple[int, ...], parts: int) -> Array | None:
        if shape[-1] == 0:
            return None
        # √(|D|/p) ‖v‖ is the size of a moment
        scale = (parts / measure / shape[-1]) ** 0.25
        return scale * jax.random.normal(rng_key, shape, decomposition.partition.dtype)

    coarse, local = (decomposition.coarse_size, coarse_rank), (*decomposition.partition.shape, rank)
    shapes = (coarse, coarse, local, local)
    parts = (max(coarse[0], 1),) * 2 + (decomposition.subdomains,) * 2
    drawn = [draw(k, shape, p) for k, shape, p in zip(keys, shapes, parts, strict=True)]
    return Factors(drawn[0], None if symmetric else drawn[1], drawn[2], None if symmetric else drawn[3])


def sample_factors(
    coefficients: Factors,
    decomposition: Decomposition,
    features: Callable[[Float[Array, "s dim"]], Float[Array, "s q"]],
) -> Factors:
    """Q_i(x) = B(ξ_i(x)) C_i, factors that are functions, on the nodes of any decomposition with the same subdomains.

    ξ_i(x) are the local coordinates of subdomain i, in which it is a part of [−1, 1]^dim. `Decomposition.on`
    and this function transfer factors from one grid to another; coarse factors do not change.

    Args:
        coefficients: factors whose local parts are coefficients, (p, q, r).
        decomposition: the decomposition on the new nodes.
        features: B, a function of local coordinates, (s, dim) to (s, q), such as `legendre_features`.

    Raises:
        ValueError: if the numbers of features and coefficients disagree.

    Example:
        >>> import functools, jax
        >>> from jaxop import domains, schwarz
        >>> features = functools.partial(schwarz.legendre_features, degree=5)
        >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
        >>> coefficients = schwarz.Factors(local_query=jax.random.normal(jax.random.key(0), (8, 6, 3)))
        >>> finer = dec.on(domains.interval(127, rule="interior"))
        >>> schwarz.sample_factors(coefficients, finer, features).local_query.shape
        (8, 24, 3)
    """
    check_decomposition(decomposition)
    basis = jax.vmap(features)(decomposition.coordinates)

    def sample(coefficients: Array | None) -> Array | None:
        if coefficients is None:
            return None
        if coefficients.shape[:2] != (basis.shape[0], basis.shape[2]):
            raise ValueError(
                f"coefficients must have shape (p, q, r) = ({basis.shape[0]}, {basis.shape[2]}, r) for these features, "
                f"got {coefficients.shape}."
            )
        return jnp.einsum("psq,pqr->psr", basis.astype(coefficients.dtype), coefficients)

    return dataclasses.replace(
        coefficients, local_query=sample(coefficients.local_query), local_key=sample(coefficients.local_key)
    )


def legendre_features(coordinates: Float[Array, "s dim"], degree: int) -> Float[Array, "s q"]:
    """Π_k P_{j_k}(ξ_k), j_k ≤ degree, q = (degree + 1)^dim tensor products of Legendre polynomials.

    Args:
        coordinates: ξ, (s, dim).
        degree: largest degree along each axis.

    Raises:
        ValueError: if the degree is not an integer of at least 0, or the coordinates do not have the shape (s, dim).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import schwarz
        >>> print(schwarz.legendre_features(jnp.array([[0.5]]), 2))
        [[ 1.     0.5   -0.125]]
    """
    if not is_integer(degree) or degree < 0:
        raise ValueError(f"degree must be an integer of at least 0, got {degree!r}.")
    coordinates = as_float(coordinates, "coordinates")
    if coordinates.ndim != 2:
        raise ValueError(f"coordinates must have shape (s, dim), got {coordinates.shape}; for a line pass x[:, None].")
    rows = [jnp.ones_like(coordinates), coordinates]
    for j in range(1, degree):
        rows.append(((2 * j + 1) * coordinates * rows[j] - j * rows[j - 1]) / (j + 1))
    powers = jnp.stack(rows[: degree + 1], axis=-1)  # (s, dim, degree + 1)
    basis = powers[:, 0]
    for k in range(1, coordinates.shape[1]):
        basis = (basis[:, :, None] * powers[:, k, None, :]).reshape(basis.shape[0], -1)
    return basis


def matrix(decomposition: Decomposition, factors: Factors) -> Float[Array, "n n"]:
    """M⁻¹ as a dense matrix, built block by block, the oracle of `apply` for small domains.

    Raises:
        ValueError: if shapes do not fit.

    Cost: O(p s n²) time, O(p s n + n²) memory.

    Example:
        >>> import jax
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
        >>> schwarz.matrix(dec, schwarz.random_factors(jax.random.key(0), dec, rank=4)).shape
        (63, 63)
    """
    check_factors(decomposition, factors)
    weights, n = decomposition.domain.weights, decomposition.domain.size
    dense = jnp.zeros((n, n), weights.dtype)
    if factors.local_query is not None:
        query, key = _pair(factors.local_query, factors.local_key, weights.dtype)
        root = jnp.sqrt(decomposition.partition)[..., None]
        inside = decomposition.cover.inside[..., None]
        query, key = jnp.where(inside, query, 0), jnp.where(inside, key, 0)
        rows = jax.nn.one_hot(decomposition.cover.index, n, dtype=weights.dtype)  # (p, s, n)
        dense += jnp.einsum("psn,psr,ptr,ptm->nm", rows, root * query, root * key, rows)
    if factors.coarse_query is not None:
        query, key = _pair(factors.coarse_query, factors.coarse_key, weights.dtype)
        basis = decomposition.coarse_basis()
        dense += (basis @ query) @ (basis @ key).T
    shift = 0.0 if factors.shift is None else factors.shift
    return dense * weights[None, :] + jnp.asarray(shift, weights.dtype) * jnp.eye(n, dtype=weights.dtype)


@dataclasses.dataclass(frozen=True)
class SymmetryReport:
    """Asymmetry and extreme eigenvalues of an operator, in the inner product of L2.

    Attributes:
        asymmetry: ‖M − M*‖ / ‖M‖ in the Hilbert–Schmidt norm; 0 for a symmetric operator, at most 2.
        smallest_eigenvalue: smallest eigenvalue of the symmetric part (M + M*)/2.
        largest_eigenvalue: largest eigenvalue of the symmetric part.
    """

    asymmetry: float
    smallest_eigenvalue: float
    largest_eigenvalue: float


def symmetry_report(decomposition: Decomposition, factors: Factors) -> SymmetryReport:
    """Returns the `SymmetryReport` of `apply` on nodes of positive weight.

    Raises:
        ValueError: if shapes do not fit.

    Cost: O(n³), for small domains, in float64 on the host.

    Example:
        >>> import jax
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
        >>> factors = schwarz.random_factors(jax.random.key(0), dec, rank=4, symmetric=True)
        >>> schwarz.symmetry_report(dec, factors).asymmetry < 1e-6
        True
    """
    dense = np.asarray(matrix(decomposition, factors), np.float64)
    root = np.sqrt(np.asarray(decomposition.domain.weights, np.float64))
    alive = root > 0
    dense = root[alive, None] * dense[np.ix_(alive, alive)] / root[alive]
    values = np.linalg.eigvalsh((dense + dense.T) / 2)
    size = np.linalg.norm(dense)
    asymmetry = np.linalg.norm(dense - dense.T) / size if size else 0.0
    return SymmetryReport(float(asymmetry), float(values[0]), float(values[-1]))


def count_parameters(decomposition: Decomposition, factors: Factors) -> int:
    """Returns the number of parameters of the factors, without padding; coefficients of q ≠ s features have none.

    Example:
        >>> import jax
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(255, rule="interior"), 8, 8)
        >>> schwarz.count_parameters(dec, schwarz.random_factors(jax.random.key(0), dec, rank=2))
        1566
    """
    if not is_concrete(decomposition.cover.inside):
        raise ValueError("decomposition is traced, and its padding is not known: count parameters outside jax.jit.")
    nodes = int(np.asarray(decomposition.cover.inside).sum())
    count = 0 if factors.shift is None else 1
    for array in (factors.coarse_query, factors.coarse_key):
        count += 0 if array is None else array.size
    for array in (factors.local_query, factors.local_key):
        if array is not None:
            count += nodes * array.shape[-1] if array.shape[1] == decomposition.local_size else array.size
    return count


def check_decomposition(decomposition: Decomposition) -> None:
    """Raises ``TypeError`` unless the argument is a `Decomposition`, and ``ValueError`` if it is a stack."""
    if not isinstance(decomposition, Decomposition):
        raise TypeError(
            f"decomposition must be a Decomposition, got {type(decomposition).__name__}; cut a domain with "
            "schwarz.decompose."
        )
    if decomposition.is_batched:
        raise ValueError("decomposition must be a single one, got a stack of decompositions; use jax.vmap.")


def check_ranks(decomposition: Decomposition, rank: int, coarse_rank: int, features: int | None = None) -> None:
    """Raises ``ValueError`` if a rank exceeds the size of the smallest subdomain or of the coarse space."""
    for name, given in (("rank", rank), ("coarse_rank", coarse_rank)):
        if not is_integer(given):
            raise TypeError(f"{name} must be an integer, got {given!r}.")
    inside = decomposition.cover.inside
    # for a traced decomposition only the shapes are known
    sizes = np.asarray(inside).sum(axis=1) if is_concrete(inside) else np.full(inside.shape[0], inside.shape[1])
    smallest = int(sizes.min()) if features is None else min(int(sizes.min()), features)
    if not 0 <= rank <= smallest:
        raise ValueError(
            f"rank must lie between 0 and the {smallest} nodes (or features) of the smallest subdomain, "
            f"{int(sizes.argmin())}, got {rank}; use a smaller rank, or larger subdomains."
        )
    if not 0 <= coarse_rank <= decomposition.coarse_size:
        raise ValueError(
            f"coarse_rank must lie between 0 and the {decomposition.coarse_size} coarse functions, got {coarse_rank}."
        )


def check_factors(decomposition: Decomposition, factors: Factors) -> None:
    """Raises ``ValueError`` unless the factors fit the decomposition and each other."""
    check_decomposition(decomposition)
    if not isinstance(factors, Factors):
        raise TypeError(f"factors must be schwarz.Factors, got {type(factors).__name__}; are the arguments in order?")
    shapes: dict[str, tuple[int, ...]] = {
        "coarse": (decomposition.coarse_size,),
        "local": decomposition.partition.shape,
    }
    if factors.shift is not None and np.ndim(factors.shift):
        raise ValueError(f"shift must be one number, got shape {np.shape(factors.shift)}.")
    names = {"coarse": "(n0, r0)", "local": "(p, s, r)"}
    for part, expected in shapes.items():
        query, key = getattr(factors, f"{part}_query"), getattr(factors, f"{part}_key")
        if query is None and key is not None:
            raise ValueError(f"{part}_key is given without {part}_query; give both, or the query alone for K = Q.")
        if query is None:
            continue
        if query.ndim != len(expected) + 1 or query.shape[:-1] != expected:
            sizes = ", ".join(map(str, expected))
            raise ValueError(
                f"{part}_query must have shape {names[part]} = ({sizes}, r) on this decomposition, got {query.shape}; "
                "coefficients of features become samples by sample_factors."
            )
        if key is not None and key.shape != query.shape:
            raise ValueError(f"{part}_key must have the shape of {part}_query, {query.shape}, got {key.shape}.")


def _pair(query: Array, key: Array | None, dtype: DTypeLike) -> tuple[Array, Array]:
    query = query.astype(dtype)
    return query, query if key is None else key.astype(dtype)


def as_factor(array: np.ndarray | None) -> Array | None:
    """Returns a factor computed on the host in JAX's default floating dtype."""
    return None if array is None else jnp.asarray(array, float_dtype())


def check_shift(shift: object) -> None:
    """Raises ``ValueError`` unless ``shift`` is None or one finite number."""
    if shift is not None and (not is_numeric(shift) or np.ndim(shift) or not np.isfinite(shift)):
        raise ValueError(f"shift must be one finite number or None, got {shift!r}.")
