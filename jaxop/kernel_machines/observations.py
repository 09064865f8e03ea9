"""Responses z_ij of pairs of rows: a whole matrix, some entries of a matrix, or a list of pairs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxop._pytree import register
from jaxop._sparse import CoordinateMatrix, SparseMatrix, stored
from jaxop._validation import as_float, first_index, is_concrete

T = TypeVar("T")
Elementwise: TypeAlias = Callable[[Array, Array], Array]
"""A function of the values f_ij of a machine and the responses z_ij, entry by entry."""

Start: TypeAlias = Array | int
"""The first row of a block."""

_GRID_TILE = 1 << 22
_LIST_TILE = 1 << 18
"""Numbers that are held at a time: rows × ny of a matrix, or pairs × features of a list, whose rows are gathered."""


@register
@dataclasses.dataclass(frozen=True)
class Grid:
    """Responses of all pairs, or of the pairs where ``mask`` is True.

    Attributes:
        values: z_ij, (nx, ny); 0 for unobserved pairs.
        mask: which pairs are observed, (nx, ny), or None for all pairs.
    """

    values: Float[Array, "nx ny"]
    mask: Bool[Array, "nx ny"] | None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows of the two domains."""
        return self.values.shape[0], self.values.shape[1]

    def fraction(self) -> Array:
        """Observed pairs over all pairs."""
        return jnp.ones((), self.values.dtype) if self.mask is None else jnp.mean(self.mask.astype(self.values.dtype))

    def contract(
        self,
        fn: Elementwise,
        left: Float[Array, "nx p"],
        coefficients: Float[Array, "p q"],
        right: Float[Array, "ny q"],
    ) -> Float[Array, "p q"]:
        """Σ_observed g_ij left_i ⊗ right_j with g = fn(f, z), f = left C rightᵀ; holds a few rows of f at a time."""
        zero = jnp.zeros((left.shape[1], right.shape[1]), left.dtype)
        return self._sum(lambda rows, g: rows.T @ (g @ right), zero, fn, left, coefficients @ right.T)

    def total(
        self,
        fn: Elementwise,
        left: Float[Array, "nx p"],
        coefficients: Float[Array, "p q"],
        right: Float[Array, "ny q"],
    ) -> Float[Array, ""]:
        """Σ_observed fn(f_ij, z_ij)."""
        return self._sum(lambda rows, g: jnp.sum(g), jnp.zeros((), left.dtype), fn, left, coefficients @ right.T)

    def evaluate(
        self, left: Float[Array, "nx p"], coefficients: Float[Array, "p q"], right: Float[Array, "ny q"]
    ) -> Float[Array, "nx ny"]:
        """Returns the values f_ij in the shape of the responses."""
        return left @ coefficients @ right.T

    def _sum(
        self, reduce: Callable[[Array, Array], Array], zero: Array, fn: Elementwise, left: Array, inner: Array
    ) -> Array:
        """Returns the sum of ``reduce(rows of left, their fn(f, z))`` over blocks of rows, f = left inner."""

        def term(start: Start, length: int) -> Array:
            rows = jax.lax.dynamic_slice_in_dim(left, start, length)
            return reduce(rows, self._entries(fn, rows @ inner, start, length))

        length = max(1, _GRID_TILE // self.shape[1])
        return _fold(term, lambda total, block, start: total + block, zero, self.shape[0], length)

    def _entries(self, fn: Elementwise, f: Array, start: Start, length: int) -> Array:
        """Returns the values fn(f, z) of some rows, 0 for unobserved pairs."""
        result = fn(f, jax.lax.dynamic_slice_in_dim(self.values, start, length))
        if self.mask is None:
            return result
        return jnp.where(jax.lax.dynamic_slice_in_dim(self.mask, start, length), result, 0)


@functools.partial(register, static=("shape",))
@dataclasses.dataclass(frozen=True)
class Listed:
    """Responses of a list of pairs.

    Attributes:
        values: z of pair k, (k,).
        rows: index i of pair k in the first domain, (k,).
        columns: index j of pair k in the second domain, (k,).
        shape: (nx, ny).
    """

    values: Float[Array, " k"]
    rows: Int[Array, " k"]
    columns: Int[Array, " k"]
    shape: tuple[int, int]

    def fraction(self) -> Array:
        """Observed pairs over all pairs."""
        return jnp.sum(self._is_pair(self.rows, self.columns), dtype=self.values.dtype) / (
            self.shape[0] * self.shape[1]
        )

    def contract(
        self,
        fn: Elementwise,
        left: Float[Array, "nx p"],
        coefficients: Float[Array, "p q"],
        right: Float[Array, "ny q"],
    ) -> Float[Array, "p q"]:
        """Σ_observed g_ij left_i ⊗ right_j by gathered rows; O(k q) operations and two products of matrices."""
        inner = left @ coefficients

        def term(start: Start, length: int) -> tuple[Array, Array]:
            i, features, g = self._entries(fn, inner, right, start, length)
            return i, g[:, None] * features

        def add(sums: Array, block: tuple[Array, Array], start: Start) -> Array:
            return sums.at[block[0]].add(block[1])

        return left.T @ self._fold(term, add, jnp.zeros_like(inner), inner.shape[1])

    def total(
        self,
        fn: Elementwise,
        left: Float[Array, "nx p"],
        coefficients: Float[Array, "p q"],
        right: Float[Array, "ny q"],
    ) -> Float[Array, ""]:
        """Σ_observed fn(f_ij, z_ij)."""
        inner = left @ coefficients

        def term(start: Start, length: int) -> Array:
            return jnp.sum(self._entries(fn, inner, right, start, length)[2])

        return self._fold(term, lambda total, block, start: total + block, jnp.zeros((), left.dtype), inner.shape[1])

    def evaluate(
        self, left: Float[Array, "nx p"], coefficients: Float[Array, "p q"], right: Float[Array, "ny q"]
    ) -> Float[Array, " k"]:
        """Returns the values f_ij in the shape of the responses."""
        inner = left @ coefficients

        def term(start: Start, length: int) -> Array:
            return self._entries(lambda f, z: f, inner, right, start, length)[2]

        def write(out: Array, block: Array, start: Start) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(out, block, start, 0)

        return self._fold(term, write, jnp.zeros_like(self.values), inner.shape[1])

    def _is_pair(self, i: Array, j: Array) -> Array:
        """Tells whether an entry is a pair; in a traced BCOO matrix it may be padding."""
        return (i < self.shape[0]) & (j < self.shape[1])

    def _fold(
        self, term: Callable[[Start, int], T], add: Callable[[Array, T, Start], Array], zero: Array, p: int
    ) -> Array:
        return _fold(term, add, zero, self.values.shape[0], max(1, _LIST_TILE // p))

    def _entries(
        self, fn: Elementwise, inner: Array, right: Array, start: Start, length: int
    ) -> tuple[Array, Array, Array]:
        """Returns rows i, right_j and fn(f, z) of some pairs, f = inner_i · right_j."""
        i, j, z = (jax.lax.dynamic_slice_in_dim(a, start, length) for a in (self.rows, self.columns, self.values))
        features = right[j]
        return i, features, jnp.where(self._is_pair(i, j), fn(jnp.sum(inner[i] * features, axis=1), z), 0)


Observations: TypeAlias = Grid | Listed


def moment(
    observations: Observations, left: Float[Array, "nx p"], right: Float[Array, "ny q"], values: Array | None = None
) -> Float[Array, "p q"]:
    """Σ_observed z_ij left_i ⊗ right_j, for the responses or for other values in their shape."""
    observations = observations if values is None else dataclasses.replace(observations, values=values)
    unused = jnp.zeros((left.shape[1], right.shape[1]), left.dtype)
    return observations.contract(lambda f, z: z, left, unused, right)


def observe(responses: object, mask: object, nx: int, ny: int, dtype: np.dtype) -> Observations:
    """Checks the responses of nx × ny pairs and returns them as `Observations`."""
    if isinstance(responses, CoordinateMatrix | SparseMatrix):
        if mask is not None:
            raise ValueError("mask must be None for sparse responses: the stored entries are the observed pairs.")
        return _listed(responses, nx, ny, dtype)
    values = as_float(responses, "responses").astype(dtype)
    _check_shape("responses", values.shape, nx, ny)
    if mask is not None:
        seen = np.asarray(mask) if is_concrete(mask) else None  # inside jit a known mask would become traced
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(f"mask must be boolean with True = observed, got {mask.dtype}; pass mask > 0, for example.")
        _check_shape("mask", mask.shape, nx, ny)
        values = jnp.where(mask, values, 0)
        if seen is not None:
            if not seen.any():
                raise ValueError("mask is False everywhere: at least one observed pair is needed.")
            mask = None if seen.all() else mask
    if is_concrete(values) and not (good := np.isfinite(np.asarray(values))).all():
        i, j = np.argwhere(~good)[0]
        raise ValueError(
            f"responses must be finite, but responses[{i}, {j}] is {float(values[i, j])}; if the pair is unobserved, "
            "pass mask=~jnp.isnan(responses)."
        )
    return Grid(values, mask)


def _listed(responses: CoordinateMatrix | SparseMatrix, nx: int, ny: int, dtype: np.dtype) -> Listed:
    _check_shape("responses", tuple(responses.shape), nx, ny)
    rows, columns, values = stored(responses, "responses")
    values = as_float(values, "responses").astype(dtype)
    if is_concrete(rows, columns):
        rows, columns = np.asarray(rows), np.asarray(columns)
        order = np.lexsort((columns, rows))
        if (negative := np.minimum(rows, columns) < 0).any():
            k = first_index(negative)
            raise ValueError(f"responses stores the pair ({rows[k]}, {columns[k]}); indices must be at least 0.")
        order = order[(rows < nx)[order] & (columns < ny)[order]]  # BCOO pads with indices beyond the shape
        rows, columns, values = rows[order], columns[order], values[order]
        twice = (np.diff(rows) == 0) & (np.diff(columns) == 0)
        if twice.any():
            k = first_index(twice)
            raise ValueError(
                f"responses stores the pair ({rows[k]}, {columns[k]}) more than once; sum or average its entries "
                "first (sum_duplicates)."
            )
        if rows.size == 0:
            raise ValueError("responses stores no entries: at least one observed pair is needed.")
        if is_concrete(values) and not (good := np.isfinite(np.asarray(values))).all():
            k = first_index(~good)
            raise ValueError(
                f"responses must be finite, but the entry of pair ({rows[k]}, {columns[k]}) is {float(values[k])}; "
                "drop the entries of unobserved pairs."
            )
    return Listed(values, jnp.asarray(rows, np.int32), jnp.asarray(columns, np.int32), (nx, ny))


def _check_shape(name: str, shape: tuple[int, ...], nx: int, ny: int) -> None:
    if shape == (nx, ny):
        return
    remedy = "transpose it." if shape == (ny, nx) else "one row per row of X, one column per row of Y."
    raise ValueError(f"{name} must have shape (nx, ny) = ({nx}, {ny}) to match X and Y, got {shape}; {remedy}")


def _fold(
    term: Callable[[Start, int], T], add: Callable[[Array, T, Start], Array], total: Array, count: int, size: int
) -> Array:
    """Repeats ``total = add(total, term(start, length), start)`` over 0 … count; derivatives recompute each term."""
    whole, rest = divmod(count, size)
    if whole == 1:
        total = add(total, term(0, size), 0)
    elif whole:
        block = jax.checkpoint(lambda start: term(start, size))
        starts = size * jnp.arange(whole, dtype=np.int32)
        total = jax.lax.scan(lambda total, start: (add(total, block(start), start), None), total, starts)[0]
    return add(total, term(whole * size, rest), whole * size) if rest else total
