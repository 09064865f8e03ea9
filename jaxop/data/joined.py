"""Several functions, each on nodes of its own, as one function on the nodes of all."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float, Real

from jaxop._validation import check_type, host_array, jax_dtype, on_device
from jaxop.domains import Domain, PointCloud
from jaxop.domains.domain import check_domain


def join(
    functions: Mapping[str, tuple[Real[Array | np.ndarray, "_ _"], Domain]],
) -> tuple[Float[np.ndarray, "n c"], PointCloud]:
    """Joins functions u_1, …, u_r on nodes of their own to one function on the union of all nodes.

    At a node of function k the joined function has the channels (0, …, 0, u_k(x_i), 0, …, 0, e_k): its own values in
    the channels of function k, 0 in those of the others, and a unit vector of length r that says which function it is.
    Every node keeps the weight of its own domain, so attention integrates over all domains, ∫_D1 + … + ∫_Dr, and the
    unit vectors let it treat each differently. The measures of a surface and a volume have different units: if one of
    them outweighs the others, build the domains with weights that are divided by a typical measure.

    All samples of a set must join functions of the same names, in the same order, with the same channels.

    Args:
        functions: for each name, values (n_k, c_k) and their domain, with coordinates in one space.

    Returns:
        Values (Σ n_k, Σ c_k + r), and a `jaxop.domains.PointCloud` of all nodes, as inputs of a `Sample`.

    Raises:
        TypeError: if ``functions`` is not a mapping from names to pairs of values and a `jaxop.domains.Domain`.
        ValueError: if there are no functions, values do not fit their domain, or domains differ in dimension.

    Cost: one copy.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> line, square = domains.from_nodes([[0.0, 0.0], [0.0, 1.0]], [0.5, 0.5]), domains.box((2, 2))
        >>> values, union = data.join({"inflow": (np.full((2, 1), 7.0), line), "force": (np.ones((4, 2)), square)})
        >>> print(values[[0, 2]])
        [[7. 0. 0. 1. 0.]
         [0. 1. 1. 0. 1.]]
        >>> union.size, float(union.measure)
        (6, 2.0)
    """
    check_type(functions, "functions", Mapping, "a dict from names to (values, domain)")
    if not functions:
        raise ValueError("functions is empty; give at least one function.")
    values, domains = {}, {}
    for name, pair in functions.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"functions[{name!r}] must be a pair of values and a domain, got {type(pair).__name__}.")
        values[name] = host_array(pair[0], f"functions[{name!r}][0]")
        domains[name] = check_domain(pair[1], f"functions[{name!r}][1]")
    first = next(iter(domains))
    for name, domain in domains.items():
        if domain.is_batched:
            raise ValueError(f"functions[{name!r}] has a stack of domains; join the functions of each sample alone.")
        if domain.dim != domains[first].dim:
            raise ValueError(
                f"functions[{name!r}] has dimension {domain.dim}, but functions[{first!r}] has dimension "
                f"{domains[first].dim}; give all nodes by coordinates in one space."
            )
        if values[name].ndim != 2 or values[name].shape[0] != domain.size:
            raise ValueError(
                f"functions[{name!r}] must have values of shape (n, channels) with n = {domain.size} nodes, got "
                f"{values[name].shape}."
            )
    dtype = np.result_type(*(jax_dtype(array.dtype) for array in values.values()))
    channels = sum(array.shape[1] for array in values.values())
    joined = np.zeros((sum(domain.size for domain in domains.values()), channels + len(values)), dtype)
    row, column = 0, 0
    for k, array in enumerate(values.values()):
        n, c = array.shape
        joined[row : row + n, column : column + c] = array
        joined[row : row + n, channels + k] = 1
        row, column = row + n, column + c
    points = np.concatenate([np.asarray(domain.points) for domain in domains.values()])
    weights = np.concatenate([np.asarray(domain.weights) for domain in domains.values()])
    return joined, PointCloud(on_device(points), on_device(weights))
