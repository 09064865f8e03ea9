"""Operators whose output has a known integral."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxop._validation import accumulator, as_float
from jaxop.domains import Decomposed, Domain
from jaxop.domains.domain import as_domain
from jaxop.operators.constraint import (
    ConstrainedOperator,
    ConstraintConfig,
    InputChannelsConfig,
    Map,
    check_channels,
    check_numbers,
)
from jaxop.operators.registry import register


def conserve(
    outputs: Float[Array, "n c"], domain: Domain | Decomposed, integrals: Float[Array, " c"]
) -> Float[Array, "n c"]:
    """U − (∫_D u dx − I)/|D|: the function nearest to u in L2 with the integrals I, channel by channel.

    Integrals are quadratures with the weights of the domain, so nodes of weight 0 do not count; they get the same
    constant as all others.

    Args:
        outputs: u, samples at the nodes of the domain.
        domain: D.
        integrals: I, in units of u times length^dim.

    Returns:
        The function, in float32 or wider.

    Raises:
        ValueError: if there is not one row per node, or the domain is a stack.

    Cost: two sums over the nodes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxop import domains, operators
        >>> domain = domains.interval(64, upper=2.0)
        >>> u = operators.conserve(domain.points**2, domain, jnp.asarray([3.0]))
        >>> print(domain.integrate(u).round(4))
        [3.]
    """
    nodes, dtype = as_domain(domain, "domain"), accumulator(outputs.dtype)
    u = outputs.astype(dtype)
    excess = nodes.integrate(u) - integrals.astype(dtype)
    return u - (excess / nodes.measure.astype(dtype))[None, :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConservativeOperatorConfig(ConstraintConfig):
    """The operator inside, and the integrals of its output; see `ConservativeOperator`.

    Attributes:
        channels: the channels of the output whose integrals are known; None means all.
        integrals: the integrals of these channels: numbers, one for all or one for each, in units of the output times
            length^dim; or those of as many channels of the input. None means those of the input's channels with the
            same numbers.

    Raises:
        TypeError: if an attribute is of another type.
        ValueError: if the numbers of channels do not fit the operator.

    Example:
        >>> from jaxop import operators
        >>> fno = operators.FourierNeuralOperatorConfig(3, 2, 1, width=8, layers=1, modes=4, reference=8)
        >>> operators.ConservativeOperatorConfig(fno, channels=(1,)).inputs
        (1,)
    """

    channels: tuple[int, ...] | None = None
    integrals: tuple[float, ...] | InputChannelsConfig | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.channels is not None:
            check_channels(self.channels, "channels", self.out_channels)
        if isinstance(self.integrals, tuple):
            check_numbers(self.integrals, "integrals", len(self.outputs))
        elif self.integrals is not None and not isinstance(self.integrals, InputChannelsConfig):
            expected = "a tuple of numbers, operators.InputChannelsConfig(...) or None"
            raise TypeError(f"integrals must be {expected}, got {self.integrals!r}.")
        else:
            check_channels(self.inputs, "integrals.channels", self.in_channels)
            if len(self.inputs) != len(self.outputs):
                raise ValueError(
                    f"integrals.channels must be one channel of the input for each of {self.outputs}, the channels of "
                    f"the output, got {self.inputs}."
                )

    @property
    def weighs_outputs(self) -> bool:
        """Whether the output depends on the weights of its nodes, as integrals do."""
        return True

    @property
    def outputs(self) -> tuple[int, ...]:
        """The channels of the output whose integrals are known."""
        return tuple(range(self.out_channels)) if self.channels is None else self.channels

    @property
    def inputs(self) -> tuple[int, ...]:
        """The channels of the input with these integrals, none if the integrals are numbers."""
        if isinstance(self.integrals, tuple):
            return ()
        return self.outputs if self.integrals is None else self.integrals.channels


@register("conservative", ConservativeOperatorConfig)
class ConservativeOperator(ConstrainedOperator[ConservativeOperatorConfig]):
    """u ↦ G(u) − (∫_D G(u) dx − I)/|D|: an operator G whose output has the integral I, that of the input or a number.

    This is the orthogonal projection in L2 onto the functions with this integral, in the measure of the domain of the
    output: up to rounding, `Domain.integrate` of the output is I on every domain.

    Args:
        config: a `ConservativeOperatorConfig`.
        rngs: random streams of the operator inside.

    Cost: one call of G and two sums over the nodes.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, operators
        >>> tno = operators.TransformerNeuralOperatorConfig(1, 1, width=8, heads=2, layers=1)
        >>> operator = operators.ConservativeOperator(operators.ConservativeOperatorConfig(tno), rngs=nnx.Rngs(0))
        >>> domain = domains.from_samples([0.0, 0.1, 0.4, 1.0])
        >>> print(domain.integrate(operator(3.0 + domain.points, domain)).round(4))
        [3.5]
    """

    def __init__(self, config: ConservativeOperatorConfig, *, rngs: nnx.Rngs):
        self._build(ConservativeOperatorConfig.checked(config, rngs), rngs)

    def constrain(
        self,
        operator: Map,
        values: Float[Array, "*b n c"],
        domain: Domain | Decomposed,
        *,
        at: Domain | Decomposed | None = None,
        initial: Float[Array, "*b c0"] | None = None,
    ) -> Float[Array, "*b k c_out"]:
        """Returns the output with its integrals, in float32 or wider, for any map G between functions."""
        config, values = self.config, as_float(values, "values")
        outputs = operator(values, domain, at=at, initial=initial)
        source, where = as_domain(domain, "domain"), as_domain(domain if at is None else at, "at")
        dtype = accumulator(outputs.dtype)
        chosen = np.asarray(config.outputs)

        def one(values: Array, outputs: Array, source: Domain, where: Domain) -> Array:
            if isinstance(config.integrals, tuple):
                known = jnp.broadcast_to(jnp.asarray(np.asarray(config.integrals, dtype)), chosen.shape)
            else:
                known = source.integrate(values[:, np.asarray(config.inputs)].astype(dtype))
            projected = conserve(outputs[:, chosen], where, known)
            return outputs.astype(dtype).at[:, chosen].set(projected)

        if outputs.ndim == 2:
            return one(values, outputs, source, where)
        axes = (0, 0, *(0 if place.is_batched else None for place in (source, where)))
        return jax.vmap(one, in_axes=axes)(values, outputs, source, where)
