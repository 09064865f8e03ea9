"""One pair of functions on nodes of its own."""

import dataclasses

import numpy as np
from jaxtyping import Array, Real

from jaxop._validation import host_array
from jaxop.domains import Domain
from jaxop.domains.domain import check_domain


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A pair of functions (u, v): inputs u(x_i) and targets v(y_j) on nodes of their own, checked when it is built.

    Args:
        inputs: u at the nodes of ``domain``, shape (n, c_in); kept in host memory.
        targets: v at the nodes of ``at``, shape (k, c_out); kept in host memory.
        domain: domain of the inputs.
        at: domain of the targets; None means ``domain``.
        initial: data given at the first node, shape (c0,), for operators that need them.

    Raises:
        TypeError: if an argument is not an array of real numbers or not a `jaxop.domains.Domain`.
        ValueError: if an array has the wrong number of axes, does not have channels, or does not have one row per node,
            if a domain is a stack, or if the two domains have different dimensions.

    Cost: one copy of arrays that are on a device.

    Example:
        >>> import numpy as np
        >>> from jaxop import data, domains
        >>> random = np.random.default_rng(0)
        >>> cloud, at = (domains.monte_carlo(random.random((n, 2), np.float32)) for n in (30, 17))
        >>> sample = data.Sample(np.ones((30, 1)), np.ones((17, 3)), cloud, at=at)
        >>> sample.domain.size, sample.target_domain.size
        (30, 17)
    """

    inputs: Real[Array | np.ndarray, "n c_in"]
    targets: Real[Array | np.ndarray, "k c_out"]
    domain: Domain
    at: Domain | None = None
    initial: Real[Array | np.ndarray, " c0"] | None = None

    def __post_init__(self):
        domain = check_domain(self.domain, "domain")
        at = domain if self.at is None else check_domain(self.at, "at")
        for name, one in (("domain", domain), ("at", at)):
            if one.is_batched:
                raise ValueError(f"{name} is a stack of domains; a sample has one: give each sample its own.")
        if at.dim != domain.dim:
            raise ValueError(
                f"at has dimension {at.dim}, but domain has dimension {domain.dim}; an operator maps between functions "
                "on one space: build both with the same number of coordinates."
            )
        nodes = {"inputs": ("domain", domain), "targets": ("domain" if self.at is None else "at", at)}
        for name, (place, where) in nodes.items():
            values = host_array(getattr(self, name), name)
            if values.ndim != 2 or values.shape[1] == 0:
                raise ValueError(
                    f"{name} must have shape (n, channels), with at least one channel, got {values.shape}."
                )
            if values.shape[0] != where.size:
                raise ValueError(
                    f"{name} has {values.shape[0]} nodes, but {place} has {where.size}; give the domain that the "
                    "function was sampled on."
                )
            object.__setattr__(self, name, values)
        if self.initial is not None:
            initial = host_array(self.initial, "initial")
            if initial.ndim != 1 or initial.size == 0:
                raise ValueError(f"initial must have shape (channels,), got {initial.shape}.")
            object.__setattr__(self, "initial", initial)

    @property
    def target_domain(self) -> Domain:
        """The domain of the targets."""
        return self.domain if self.at is None else self.at
