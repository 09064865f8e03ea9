"""Predictions with error bars: both are computed as channels of one output, a part of the nodes at a time."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxop.domains import Decomposed, Domain
from jaxop.operators import Calibrated

HALF_WIDTH = "half_width"
"""Name of the half-widths in files."""


class WithSize(nnx.Module):
    """u ↦ (G(u), |S(u)|) as one function with twice the channels, see `jaxop.operators.Calibrated.with_size`.

    Args:
        calibrated: the operator with error bars.
    """

    def __init__(self, calibrated: Calibrated):
        self.calibrated = calibrated

    @property
    def config(self) -> Any:
        """The config of G."""
        return self.calibrated.config.operator

    def __call__(
        self,
        values: Float[Array, "b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, "b c0"] | None = None,
    ) -> Float[Array, "b k 2*c_out"]:
        """Returns the channels of the prediction, and then those of the size."""
        prediction, size = self.calibrated.with_size(values, domain, at=at, initial=initial)
        return jnp.concatenate([prediction.astype(size.dtype), size], axis=-1)

    def divided(
        self, outputs: Float[np.ndarray, "*b k 2*c_out"], domain: Domain
    ) -> tuple[Float[np.ndarray, "*b k c_out"], Float[np.ndarray, "*b k c_out"]]:
        """Returns predictions and half-widths from the outputs on all nodes of a domain."""
        prediction, size = np.split(outputs, 2, axis=-1)
        return prediction, self.half_width(size, domain)

    def half_width(self, size: Float[np.ndarray, "*b k c_out"], domain: Domain) -> Float[np.ndarray, "*b k c_out"]:
        """Returns half-widths from sizes on all nodes of a domain."""
        return np.asarray(self.calibrated.half_width(jnp.asarray(size), domain))
