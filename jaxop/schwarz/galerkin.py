"""Factors of two-level Schwarz attention from a matrix, by inverses of its blocks."""

import numpy as np

from jaxop._sparse import Entries, entries
from jaxop._validation import check_name, first_index, is_concrete, shape_of
from jaxop.schwarz.decomposition import Decomposition
from jaxop.schwarz.low_rank import truncate
from jaxop.schwarz.operator import Factors, as_factor, check_decomposition, check_ranks, check_shift

BLOCKS = ("interior", "overlap")
"""Choices for the nodes of the local blocks of `galerkin_factors`."""


def galerkin_factors(
    decomposition: Decomposition,
    matrix: object,
    rank: int | None = None,
    *,
    blocks: str = "interior",
    symmetric: bool = False,
    shift: float | None = None,
) -> Factors:
    """Q0 K0ᵀ = (Φᵀ W A Φ)⁻¹ and D_i^½ Q_i K_iᵀ D_i^½ = (E_iᵀ W A E_i)⁻¹, truncated to rank r.

    For ``blocks="interior"``, E_i are the nodes of a core that the matrix does not couple to a core of smaller index,
    so that blocks are not coupled. In one dimension with nodes where cores meet, the sum is A⁻¹ exactly if the coarse
    functions solve A φ = 0 inside the cores: hats do for −u″, and the columns of A⁻¹ at those nodes for any symmetric A
    of second order. In other cases the sum may be far from A⁻¹. In several dimensions the nodes between cores are not
    in any block; the sum has many zero eigenvalues and does not serve as a preconditioner. For ``blocks="overlap"``,
    E_i are all nodes of a subdomain. The sum is then the additive Schwarz preconditioner of A, with two levels if there
    is a coarse space.

    Args:
        decomposition: see `schwarz.decompose`; D must be positive on the blocks.
        matrix: A with f = A u at the nodes, (n, n), dense or scipy.sparse.
        rank: r, by the singular value decomposition in L2; None keeps the full rank.
        blocks: one of `BLOCKS`.
        symmetric: whether K = Q, which halves the parameters; A must be symmetric and positive definite in L2,
            W A = Aᵀ W.
        shift: σ of the factors; None means 0.

    Returns:
        Factors with the full coarse rank, or without a coarse part if the decomposition has no coarse space.

    Raises:
        TypeError: if entries are complex.
        ValueError: if the shape does not fit, an entry is not finite, a block is singular, D or a weight is 0 on a
            block, a name is unknown, the rank exceeds the size of a subdomain, ``symmetric`` is True and a block is not
            symmetric and positive definite, or the call is inside `jax.jit`.

    Cost: O(p s³ + n0³) time and O(p s² + n n0) memory on the host, in float64.

    Example:
        >>> import numpy as np
        >>> from jaxop import domains, schwarz
        >>> dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 0)
        >>> A = 64**2 * (2 * np.eye(63) - np.eye(63, k=1) - np.eye(63, k=-1))
        >>> inverse = schwarz.matrix(dec, schwarz.galerkin_factors(dec, A))
        >>> bool(abs(inverse - np.linalg.inv(A)).max() < 1e-6)
        True
    """
    check_name(blocks, "blocks", BLOCKS)
    check_decomposition(decomposition)
    check_shift(shift)
    if not is_concrete(matrix, decomposition.domain.weights, decomposition.partition):
        raise ValueError("matrix and decomposition must be concrete: call galerkin_factors outside jax.jit.")
    n, p, s = decomposition.domain.size, decomposition.subdomains, decomposition.local_size
    check_ranks(decomposition, 0 if rank is None else rank, 0)
    weights = np.asarray(decomposition.domain.weights, np.float64)
    listed = _entries(matrix, n)
    row, column, value = listed.row, listed.column, weights[listed.row] * listed.value
    index, inside = np.asarray(decomposition.cover.index), np.asarray(decomposition.cover.inside)
    partition = np.asarray(decomposition.partition, np.float64)
    member = inside
    if blocks == "interior":
        owner = _owners(decomposition)
        tied = np.zeros(n, bool)
        tied[row[owner[column] < owner[row]]] = True
        tied[column[owner[row] < owner[column]]] = True
        member = inside & (owner[index] == np.arange(p)[:, None]) & ~tied[index]
    if (weights[index[member]] <= 0).any():
        node = index[member][first_index(weights[index[member]] <= 0)]
        raise ValueError(f"weights must be positive on the blocks, but node {node} has weight 0; leave the node out.")
    if (partition[member] <= 0).any():
        i, j = np.argwhere(member & (partition <= 0))[0]
        raise ValueError(
            f"the partition of unity is 0 on node {index[i, j]} of subdomain {i}, which a factor cannot undo; use "
            "partition='multiplicity'."
        )

    def inverse(block: np.ndarray, where: str) -> np.ndarray:
        if symmetric:
            _check_definite(block, where)
        return _inverse(block, where)

    order = np.argsort(row, kind="stable")
    row, column, value = row[order], column[order], value[order]
    start = np.searchsorted(row, np.arange(n + 1))
    local_rank = s if rank is None else rank
    query, key = np.zeros((p, s, local_rank)), np.zeros((p, s, local_rank))
    place = np.full(n, -1)
    for i in range(p):
        where = np.flatnonzero(member[i])
        nodes = index[i, where]
        place[nodes] = np.arange(nodes.size)
        entries = np.concatenate(
            [np.arange(int(start[node]), int(start[node + 1])) for node in nodes] or [np.zeros(0, int)]
        )
        entries = entries[place[column[entries]] >= 0]
        block = np.zeros((nodes.size, nodes.size))
        np.add.at(block, (place[row[entries]], place[column[entries]]), value[entries])
        place[nodes] = -1
        root = np.sqrt(weights[nodes])
        left, right = truncate(root[:, None] * inverse(block, f"subdomain {i}") * root, local_rank, symmetric)
        undo = 1 / (root * np.sqrt(partition[i, where]))
        query[i, where, : left.shape[1]], key[i, where, : left.shape[1]] = undo[:, None] * left, undo[:, None] * right
    coarse = (None, None)
    if decomposition.coarse is not None:
        basis = np.asarray(decomposition.coarse_basis(), np.float64)
        image = np.zeros_like(basis)
        np.add.at(image, row, value[:, None] * basis[column])  # W A Φ
        energy = basis.T @ image
        coarse = truncate(inverse(energy, "the coarse space"), decomposition.coarse_size, symmetric)
    if symmetric:
        coarse, key = (coarse[0], None), None
    return Factors(*(as_factor(a) for a in (*coarse, query, key)), shift=shift)


def _check_definite(matrix: np.ndarray, where: str) -> None:
    if np.linalg.norm(matrix - matrix.T) > 1e-6 * np.linalg.norm(matrix):
        raise ValueError(
            f"matrix must be symmetric in L2, W A = Aᵀ W, for symmetric=True, but is not on {where}; use "
            "symmetric=False."
        )
    if (np.linalg.eigvalsh((matrix + matrix.T) / 2) <= 0).any():
        raise ValueError(
            f"matrix must be positive definite for symmetric=True, but is not on {where}; use symmetric=False, or -A."
        )


def _inverse(matrix: np.ndarray, where: str) -> np.ndarray:
    if matrix.size and np.linalg.cond(matrix) > 1e15:
        raise ValueError(f"matrix is singular on {where}; a Galerkin block must be invertible (boundary conditions?).")
    return np.linalg.inv(matrix)


def _entries(matrix: object, n: int) -> Entries:
    """Returns the entries of A that are not 0, because stored zeros do not couple nodes."""
    shape = shape_of(matrix)
    if shape != (n, n):
        what = type(matrix).__name__ if shape == () else shape
        raise ValueError(
            f"matrix must be dense or sparse (scipy.sparse, BCOO), of shape (n, n) = ({n}, {n}), one row and column "
            f"per node, got {what}."
        )
    listed = entries(matrix, "matrix")
    counts = listed.value != 0
    return Entries(listed.row[counts], listed.column[counts], listed.value[counts], listed.shape)


def _owners(decomposition: Decomposition) -> np.ndarray:
    """Returns the core of every node."""
    cores = decomposition.cores
    owner = np.empty(decomposition.domain.size, np.int64)
    inside = np.asarray(cores.inside)
    owner[np.asarray(cores.index)[inside]] = np.nonzero(inside)[0]
    return owner
