"""Stepper: any neural operator as the map from the present state of a system to the state one step later."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxop._validation import (
    accumulator,
    as_float,
    as_number,
    check_name,
    check_size,
    check_type,
    first_index,
    float_dtype,
    host_real,
    is_concrete,
    warn_user,
)
from jaxop.data import StepStatistics, Trajectories, Windows
from jaxop.domains import Decomposed, Domain
from jaxop.nn import BuildableConfig
from jaxop.nn.encoder import Dtypes
from jaxop.operators import CONFIGS, ConstraintConfig, Operator, OperatorConfig, Statistic, build, model_of, register
from jaxop.operators.constraint import recorded_around
from jaxop.operators.folder import Savable

OUTPUTS = ("delta", "state")
"""What the operator of a stepper computes: the scaled change of the state, or the standardised next state."""

_SAME = 1e-3  # relative difference of two steps that count as one


@dataclasses.dataclass(frozen=True)
class StepperConfig(BuildableConfig):
    """Sizes and choices of a `Stepper`; `for_data` fills them in for your trajectories.

    Attributes:
        operator: config of the operator G, or of a constraint around it, which then holds for the output of G: with
            ``output="delta"`` and the number 0, an `operators.ConservativeOperator` keeps the integrals of the state,
            and an `operators.BoundaryOperator` its values on the sides. Its ``in_channels`` are ``input_channels``, its
            ``out_channels`` are ``channels``.
        channels: c, channels of the state.
        history: H ≥ 1, the number of states that G sees: the present one and those before it.
        parameters: p ≥ 0, constants of a trajectory that G sees.
        output: "delta" or "state", see `Stepper`.
        varying_dt: whether G sees the size of the step. Such a stepper must be trained on several sizes.
        uneven_history: whether G sees how long ago the earlier states of the history were.
        dt_range: the shortest and the longest step of the training. Other steps are allowed, with a warning. None means
            unknown.
        model: short name of G's kind in `jaxop.operators.models`, found from ``operator``; records of a run need it.

    Raises:
        TypeError: if ``operator`` is not the config of a neural operator, or a size is not an integer.
        ValueError: if sizes do not fit each other, or ``output`` is unknown.

    Example:
        >>> from jaxop import dynamics, operators
        >>> fno = operators.FourierNeuralOperatorConfig(4, 1, 1, width=8, layers=1, modes=4)
        >>> config = dynamics.StepperConfig(fno, channels=1, history=2, parameters=1, varying_dt=True)
        >>> config.input_channels, config.model
        (4, 'fno')
    """

    operator: OperatorConfig | ConstraintConfig
    channels: int
    _: dataclasses.KW_ONLY
    history: int = 1
    parameters: int = 0
    output: str = "delta"
    varying_dt: bool = False
    uneven_history: bool = False
    dt_range: tuple[float, ...] | None = None
    model: str = dataclasses.field(default="", init=False)

    def __post_init__(self):
        kinds = (OperatorConfig, ConstraintConfig)
        check_type(self.operator, "operator", kinds, "the config of a neural operator, see operators.CONFIGS")
        check_size(self.channels, "channels")
        check_size(self.history, "history")
        check_size(self.parameters, "parameters", 0)
        check_name(self.output, "output", OUTPUTS)
        for name in ("varying_dt", "uneven_history"):
            check_type(getattr(self, name), name, bool, "True or False")
        if self.uneven_history and self.history == 1:
            raise ValueError("uneven_history=True needs history of at least 2, got 1: there is no earlier state.")
        given = self.operator.in_channels, self.operator.out_channels
        if given != (self.input_channels, self.channels):
            raise ValueError(
                f"operator must map {self.input_channels} channels ({self._parts}) to the {self.channels} of the "
                f"state, got in_channels={given[0]}, out_channels={given[1]}."
            )
        if self.dt_range is not None:
            steps = [as_number(dt, "dt_range") for dt in self.dt_range]
            if len(steps) != 2 or not 0 < steps[0] <= steps[1] < math.inf:
                raise ValueError(f"dt_range must be two positive, finite numbers in order, got {self.dt_range}.")
            object.__setattr__(self, "dt_range", tuple(steps))
        object.__setattr__(self, "model", model_of(self.operator).name)

    @property
    def input_channels(self) -> int:
        """Channels of G's input: those of all states, of their offsets, of the step, and the parameters."""
        offsets = self.history - 1 if self.uneven_history else 0
        return self.history * self.channels + offsets + self.varying_dt + self.parameters

    @property
    def _parts(self) -> str:
        parts = [f"{self.history} · {self.channels} of the states"]
        parts += [f"{self.history - 1} of the offsets"] * self.uneven_history + ["1 of the step"] * self.varying_dt
        return ", ".join(parts + [f"{self.parameters} of the parameters"] * bool(self.parameters))

    @property
    def dtypes(self) -> Dtypes:
        """The dtypes of the operator."""
        return self.operator.dtypes

    def in_dtypes(self, **dtypes: str | None) -> "StepperConfig":
        """Returns the config whose operator has another ``dtype`` or ``param_dtype``."""
        return dataclasses.replace(self, operator=self.operator.in_dtypes(**dtypes))

    def prepare(self, domain: Domain | Decomposed) -> Domain | Decomposed:
        """Returns what a compiled call takes in place of a domain, see `jaxop.operators.OperatorConfig.prepare`."""
        return self.operator.prepare(domain)

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of the constructor from those that `jaxop.operators.to_dict` wrote."""
        return recorded_around(values)

    @classmethod
    def for_data(
        cls,
        data: Trajectories | Windows,
        operator: str | type[OperatorConfig] = "fno",
        *,
        history: int | None = None,
        output: str = "delta",
        varying_dt: bool | None = None,
        uneven_history: bool | None = None,
        others: Sequence[Domain | Decomposed] = (),
        **choices: Any,
    ) -> "StepperConfig":
        """Returns the config of a stepper for trajectories; they decide the channels, parameters and steps.

        Args:
            data: the training set, best as the windows that the stepper will be trained on.
            operator: short name of the operator in `jaxop.operators.CONFIGS`, or the class of its config.
            history: H. None takes that of the windows, or 1.
            output: "delta" or "state", see `Stepper`.
            varying_dt: None means True if the windows have several strides or the recorded times are uneven.
            uneven_history: None means True if there is a history and the recorded times are uneven.
            others: further domains on which the stepper must run.
            choices: fields of the operator's config, see `jaxop.operators.OperatorConfig.for_data`.

        Raises:
            TypeError: if ``data`` or ``operator`` is of another kind.
            ValueError: if ``history`` is not that of the windows, or choices do not fit.

        Example:
            >>> import numpy as np
            >>> from jaxop import data, domains, dynamics
            >>> u = np.ones((3, 10, 16, 2), np.float32)
            >>> waves = data.Trajectories(u, domains.interval(16, rule="periodic"), 0.1 * np.arange(10))
            >>> config = dynamics.StepperConfig.for_data(waves.windows(strides=(1, 2, 4)), "fno", width=8)
            >>> config.varying_dt, config.operator.in_channels, config.operator.modes
            (True, 3, 8)
        """
        check_type(data, "data", (Trajectories, Windows), "data.Trajectories or its windows")
        windows = data if isinstance(data, Windows) else data.windows(history=history or 1)
        if history not in (None, windows.history):
            raise ValueError(f"history must be that of the windows, {windows.history}, or None, got {history}.")
        if isinstance(operator, str):
            check_name(operator, "operator", CONFIGS)
            operator = CONFIGS[operator]
        series, depth = cast(Trajectories, windows.trajectories), windows.history
        times = [series.times_of(i) for i in range(len(series))]
        recorded = np.concatenate([np.diff(one) for one in times])
        is_uneven = bool(np.ptp(recorded) > _SAME * recorded.min())
        if varying_dt is None:
            varying_dt = is_uneven or len(set(windows.strides)) > 1
        if uneven_history is None:
            uneven_history = is_uneven and depth > 1
        known = np.concatenate([t[r:] - t[:-r] for t in times for r in set(windows.strides)])
        channels, parameters = series.channels, series.parameter_count
        inputs = depth * channels + (depth - 1 if uneven_history else 0) + varying_dt + parameters
        return cls(
            operator.for_data(series.domain, in_channels=inputs, out_channels=channels, others=others, **choices),
            channels,
            history=depth,
            parameters=parameters,
            output=output,
            varying_dt=varying_dt,
            uneven_history=uneven_history,
            dt_range=(float(known.min()), float(known.max())),
        )


@register("stepper", StepperConfig)
class Stepper(Savable, nnx.Module):
    """u(t + Δt) = u(t) + s(Δt) G([ũ(t), ũ(t − δ_1), …], δ/Δt₀, log Δt/Δt₀, p̃), with ũ = (u − μ)/σ, for an operator G.

    G is any neural operator of the library, on any domain it takes. The channels of its input are the standardised
    states from the newest to the oldest, then constants at every node: the offsets δ_j of the earlier states if
    ``uneven_history``, log Δt/Δt₀ if ``varying_dt``, and the standardised parameters.

    With ``output="delta"``, s is the standard deviation of the change of each channel in the time Δt₀, times Δt/Δt₀ if
    ``varying_dt``: G then learns a mean rate of change, and the step tends to the identity as Δt → 0. With
    ``output="state"`` the next state is μ + σ G.

    Statistics and the sum have float32 or wider, whatever the dtype of G, because small changes of large states vanish
    in half precision. The statistics are `jaxop.operators.Statistic` variables, which checkpoints and folders contain
    and optimisers do not change. A new stepper has μ = 0, σ = s = Δt₀ = 1; `make_stepper` takes those of the training
    set.

    A stepper without ``varying_dt`` makes the same step for every Δt. Outside `jax.jit`, it warns of a Δt other than
    its own; likewise a stepper with ``varying_dt`` outside ``config.dt_range``.

    Args:
        config: a `StepperConfig`.
        rngs: random streams of the operator.

    Attributes:
        config: the config.
        operator: G.
        mean: μ, shape (c,), in the units of the state.
        std: σ, shape (c,).
        increment: s, shape (c,).
        dt: Δt₀, the time of one step.
        parameter_mean: mean of the parameters, shape (p,), if there are any.
        parameter_std: their standard deviation, shape (p,).

    Cost: one call of G.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxop import domains, dynamics, operators
        >>> fno = operators.FourierNeuralOperatorConfig(2, 1, 1, width=8, layers=1, modes=4)
        >>> stepper = dynamics.Stepper(dynamics.StepperConfig(fno, channels=1, history=2), rngs=nnx.Rngs(0))
        >>> stepper(jnp.ones((2, 16, 1)), domains.interval(16, rule="periodic")).shape
        (16, 1)
    """

    USAGE = "next_state = model(states, domain)  # states: (history, nodes, channels), oldest first"

    def __init__(self, config: StepperConfig, *, rngs: nnx.Rngs):
        self.config = StepperConfig.checked(config, rngs)
        self.operator = cast(Operator, build(config.operator, rngs=rngs))
        zeros, ones = jnp.zeros(config.channels, float_dtype()), jnp.ones(config.channels, float_dtype())
        self.mean, self.std, self.increment = Statistic(zeros), Statistic(ones), Statistic(ones)
        self.dt = Statistic(jnp.ones((), float_dtype()))
        if config.parameters:
            self.parameter_mean = Statistic(jnp.zeros(config.parameters, float_dtype()))
            self.parameter_std = Statistic(jnp.ones(config.parameters, float_dtype()))

    def __call__(
        self,
        states: Float[Array, "h n c"] | Float[Array, "b h n c"],
        domain: Domain | Decomposed,
        *,
        dt: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
        parameters: ArrayLike | None = None,
    ) -> Float[Array, "n c"] | Float[Array, "b n c"]:
        """Returns the state one step later, in the units of the states, in float32 or wider.

        Args:
            states: the last H states, oldest first, shape (h, n, c), or a batch (b, h, n, c).
            domain: the domain of the states; for a batch, one or a stack with one for each sample. See the operator.
            dt: Δt, one number or one per sample (b,). None means Δt₀.
            offsets: δ, how long before the newest state each earlier one was, oldest first, shape (h − 1,) or
                (b, h − 1). None means multiples of Δt.
            parameters: p, shape (p,) or (b, p), in their own units.

        Raises:
            ValueError: if shapes do not fit the config or the domain, a step is not positive, or offsets are not
                positive and decreasing.

        Warns:
            UserWarning: outside `jax.jit`, if the stepper was not trained on this Δt.
        """
        config = self.config
        states = as_float(states, "states")
        expected = (config.history, config.channels)
        if states.ndim not in (3, 4) or (states.shape[-3], states.shape[-1]) != expected:
            raise ValueError(
                f"states must have shape (h, n, c) = ({expected[0]}, n, {expected[1]}), or (b, h, n, c), got "
                f"{states.shape}."
            )
        check_dt(self, dt)
        single = states.ndim == 3
        states = states[None] if single else states
        dtype = np.promote_types(accumulator(states.dtype), accumulator(self.mean[...].dtype))
        states = states.astype(dtype)
        batch, depth, nodes, channels = states.shape
        mean, std, increment = (s[...].astype(dtype)[None, None] for s in (self.mean, self.std, self.increment))
        standardized = (states - mean[None]) / std[None]
        # newest first, one block of channels after the other
        fields = jnp.moveaxis(standardized[:, ::-1], 1, 2).reshape(batch, nodes, depth * channels)
        ratio = _per_sample(1.0 if dt is None else dt, "dt", (), batch, dtype)
        ratio = ratio if dt is None else ratio / self.dt[...].astype(dtype)
        constants = self._constants(ratio, offsets, parameters, dtype)
        at_nodes = [jnp.broadcast_to(one[:, None, :], (batch, nodes, one.shape[1])) for one in constants]
        outputs = self.operator(jnp.concatenate([fields, *at_nodes], axis=-1), domain).astype(dtype)
        if config.output == "state":
            result = mean + std * outputs
        else:
            scale = increment * ratio[:, None, None] if config.varying_dt else increment
            result = states[:, -1] + scale * outputs
        return result[0] if single else result

    def _constants(
        self, ratio: Array, offsets: ArrayLike | None, parameters: ArrayLike | None, dtype: np.dtype
    ) -> list[Array]:
        """Returns the inputs that are constant in space, each of shape (b, channels), for Δt/Δt₀ of shape (b,)."""
        config, batch, found = self.config, ratio.shape[0], []
        earlier = config.history - 1
        if offsets is not None:
            ages = _per_sample(offsets, "offsets", (earlier,), batch, dtype)
            check_offsets(offsets)
            offsets = ages / self.dt[...].astype(dtype)
        if config.uneven_history:
            even = jnp.arange(earlier, 0, -1).astype(dtype)[None] * ratio[:, None]
            found.append((even if offsets is None else offsets)[:, ::-1])
        if config.varying_dt:
            found.append(jnp.log(ratio)[:, None])
        if not config.parameters:
            if parameters is not None and np.shape(parameters)[-1:] != (0,):
                received = np.shape(parameters)
                raise ValueError(f"parameters must be None for a stepper without parameters, got shape {received}.")
            return found
        if parameters is None:
            raise ValueError(f"parameters must be the {config.parameters} constants of the trajectory, got None.")
        wide = _per_sample(parameters, "parameters", (config.parameters,), batch, dtype)
        centre, scale = (s[...].astype(dtype)[None] for s in (self.parameter_mean, self.parameter_std))
        return [*found, (wide - centre) / scale]


def make_stepper(config: StepperConfig, statistics: StepStatistics, *, rngs: nnx.Rngs) -> Stepper:
    """Returns a new `Stepper` with the statistics of the training set.

    If all windows of the training took one step Δt, say every fourth recorded time (``strides=(4,)``), that is the step
    Δt₀ of the stepper, and s grows by the quotient of Δt and the recorded step of the statistics.

    Args:
        config: its sizes and choices, such as ``StepperConfig.for_data(windows)``.
        statistics: those of the training set, ``windows.statistics()``.
        rngs: random streams of the operator.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the statistics are not those of so many channels and parameters, are not finite, or scales are
            not positive.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, dynamics
        >>> u = np.random.default_rng(0).normal(size=(3, 10, 16, 1)).astype(np.float32)
        >>> noise = data.Trajectories(u, domains.interval(16, rule="periodic"), 0.1 * np.arange(10))
        >>> windows = noise.windows()
        >>> config = dynamics.StepperConfig.for_data(windows, "fno", width=8, layers=1)
        >>> stepper = dynamics.make_stepper(config, windows.statistics(), rngs=nnx.Rngs(0))
        >>> round(float(stepper.dt[...]), 3), round(float(stepper.increment[0]), 1)
        (0.1, 1.5)
    """
    check_type(statistics, "statistics", StepStatistics, "data.StepStatistics, such as windows.statistics()")
    stepper = Stepper(config, rngs=rngs)
    known = {field.name: getattr(statistics, field.name) for field in dataclasses.fields(statistics)}
    lengths = dict.fromkeys(("mean", "std", "increment"), (config.channels,)) | {"dt": ()}
    lengths |= dict.fromkeys(("parameter_mean", "parameter_std"), (config.parameters,))
    for name, shape in lengths.items():
        value = known[name] = host_real(known[name], name)
        if value.shape != shape:
            what = "parameters" if name.startswith("parameter") else "channels"
            raise ValueError(f"statistics.{name} must have shape {shape}, those of the {what}, got {value.shape}.")
        good = np.isfinite(value) & (value > 0 if not name.endswith("mean") else True)
        if not good.all():
            rule = "finite" if name.endswith("mean") else "positive and finite"
            where = "" if value.ndim == 0 else f"[{first_index(~good)}]"
            raise ValueError(f"statistics.{name}{where} must be {rule}, got {value[~good].flat[0]}.")
    low, high = config.dt_range or (known["dt"],) * 2
    own, ratio = (low + high) / 2, (low + high) / (2 * known["dt"])
    if not config.varying_dt and high - low <= _SAME * low and abs(ratio - 1) > _SAME:
        known |= {"dt": own, "increment": known["increment"] * ratio}
    for name, value in known.items():
        if hasattr(stepper, name):
            setattr(stepper, name, Statistic(jnp.asarray(value, float_dtype())))
    return stepper


def check_dt(stepper: object, dt: ArrayLike | None) -> None:
    """Warns if a `Stepper` was not trained on a step, and raises ``ValueError`` if the step is not positive.

    Traced steps, and steppers of the user, are not checked.
    """
    if dt is None or not is_concrete(dt):
        return
    steps = host_real(dt, "dt")
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"dt must be positive and finite, got {steps[~(np.isfinite(steps) & (steps > 0))].flat[0]}.")
    if not isinstance(stepper, Stepper) or not is_concrete(stepper.dt[...]):
        return
    config, own = stepper.config, float(stepper.dt[...])
    low, high = (own, own) if not config.varying_dt else config.dt_range or (0.0, math.inf)
    bad = (steps < low * (1 - _SAME)) | (steps > high * (1 + _SAME))
    if not bad.any():
        return
    got = steps[bad].flat[0]
    if config.varying_dt:
        warn_user(f"dt = {got:g} lies outside the steps that the stepper was trained on, {low:g} to {high:g}.")
    else:
        warn_user(
            f"dt = {got:g} is not the step {own:g} that the stepper was trained on, and it makes the same step for "
            "every dt: train one with varying_dt=True on windows of several strides."
        )


def check_offsets(offsets: ArrayLike) -> None:
    """Raises ``ValueError`` unless offsets are positive and decrease; traced ones are not checked."""
    if not is_concrete(offsets):
        return
    ages = host_real(offsets, "offsets")
    if not (np.isfinite(ages) & (ages > 0)).all() or not (np.diff(ages, axis=-1) < 0).all():
        raise ValueError(
            "offsets must say how long before the newest state each earlier one was, positive numbers that decrease "
            f"because the oldest comes first, got {ages.tolist()}; for windows they are -batch.times[:, :H - 1]."
        )


def as_constants(value: ArrayLike, argument: str) -> Array:
    """Returns times or parameters as a JAX array; those of the host get the default dtype without a warning."""
    on_host = not isinstance(value, jax.Array)
    return as_float(host_real(value, argument).astype(float_dtype()) if on_host else value, argument)


def _per_sample(value: ArrayLike, argument: str, shape: tuple[int, ...], batch: int, dtype: np.dtype) -> Array:
    """Returns an array of the shape (b, *shape) from one for all samples or one for each."""
    array = as_constants(value, argument).astype(dtype)
    if array.shape not in (shape, (batch, *shape)):
        raise ValueError(f"{argument} must have shape {shape} or {(batch, *shape)}, got {array.shape}.")
    return jnp.broadcast_to(array, (batch, *shape))
