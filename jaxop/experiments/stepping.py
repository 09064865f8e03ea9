"""How the step of a system is learnt: settings that trajectories complete to windows, a loss and a stepper."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxop._validation import check_name, check_size
from jaxop.data import Trajectories, Windows
from jaxop.domains import Grid
from jaxop.domains.domain import as_domain
from jaxop.dynamics import OUTPUTS, StepperConfig, UnrolledLoss
from jaxop.dynamics.unrolled import NORMS
from jaxop.experiments.settings import OperatorSettings
from jaxop.operators import OperatorConfig


@dataclasses.dataclass(frozen=True)
class Stepping:
    """How a step is learnt: what the operator sees and computes, and how many steps the loss makes.

    The norm of the loss is ``training.loss``, "l2" or "h1".

    Attributes:
        history: number of states that the operator sees, the present one and those before it.
        output: "delta" learns the change of the state in a step, "state" the next state itself.
        steps: number of steps that the stepper makes along its own states in training; all of them have a loss.
        strides: sizes of a step, in recorded steps. With several, every window draws one, and the operator sees Δt.
        curriculum: pairs (first training step, number of steps with a loss): 0 1 1000 4 trains one step, and four from
            training step 1000 on. () means all steps from the beginning.
        noise: standard deviation of the noise that is added to the states in training, in units of their own standard
            deviation. The stepper then learns to correct its errors, and rollouts stay bounded for longer.
        cut: stops the gradient after every so many steps; 0 does not.
        pushforward: makes all steps but the last without a gradient, and counts the last only.
        weights: weights of the losses of the steps, one for each; () means equal weights.
        valid_steps: number of steps along own states in validation, which chooses the best checkpoint; None means those
            of training.

    Raises:
        TypeError: if a field has a wrong type.
        ValueError: if a field is out of range, or the fields do not fit each other.

    Example:
        >>> from jaxop import experiments
        >>> experiments.Stepping(steps=4, noise=0.01).loss("l2").noise
        0.01
    """

    history: int = 1
    output: str = "delta"
    steps: int = 1
    strides: tuple[int, ...] = (1,)
    curriculum: tuple[tuple[int, int], ...] = ()
    noise: float = 0.0
    cut: int = 0
    pushforward: bool = False
    weights: tuple[float, ...] = ()
    valid_steps: int | None = None

    def __post_init__(self):
        check_size(self.history, "history")
        check_size(self.steps, "steps")
        check_name(self.output, "output", OUTPUTS)
        if self.valid_steps is not None:
            check_size(self.valid_steps, "valid_steps")
        self.loss("l2")
        if self.weights and len(self.weights) != self.steps:
            raise ValueError(f"weights must be one number for each of steps={self.steps}, got {len(self.weights)}.")
        if self.weights and not all(any(self.weights[:leads]) for _, leads in self.curriculum):
            raise ValueError(
                f"weights={self.weights} leave no loss at a stage of curriculum={self.curriculum}; give an earlier "
                "step a positive weight, or the curriculum more steps."
            )
        if self.weights and self.valid_steps not in (None, self.steps):
            raise ValueError(
                f"valid_steps must be steps={self.steps} or None with weights, which are those of {self.steps} steps, "
                f"got {self.valid_steps}."
            )

    def loss(self, norm: str) -> UnrolledLoss:
        """Returns the loss of training and validation.

        Args:
            norm: the setting ``loss`` of the training.

        Raises:
            ValueError: if the norm is neither "l2" nor "h1".
        """
        check_name(norm, "training.loss", NORMS)
        return UnrolledLoss(self.cut, self.pushforward, self.noise, norm, self.weights)

    def windows(self, trajectories: Trajectories, name: str) -> Windows:
        """Returns the windows of the training set.

        Args:
            trajectories: the set.
            name: of the set in messages.

        Raises:
            ValueError: if the trajectories are shorter than a window, or the curriculum does not fit.
        """
        curriculum = self.curriculum or None
        return self._named(name, trajectories, self.steps, curriculum)

    def valid_windows(self, trajectories: Trajectories, name: str) -> Windows:
        """Returns the windows of a validation set, which take the first stride; see `windows`."""
        return self._named(name, trajectories, self.valid_steps or self.steps, None)

    def _named(
        self, name: str, trajectories: Trajectories, steps: int, curriculum: tuple[tuple[int, int], ...] | None
    ) -> Windows:
        try:
            return trajectories.windows(self.history, steps, self.strides, curriculum)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def config_for(
        self, model: OperatorConfig | OperatorSettings, windows: Windows, others: Sequence[Trajectories]
    ) -> tuple[StepperConfig, dict[str, int]]:
        """Returns the config of the stepper, by `jaxop.dynamics.StepperConfig.for_data`.

        Args:
            model: config of the operator, or settings that the windows complete.
            windows: of the training set.
            others: sets on other domains on which the stepper must run.

        Returns:
            The config, and the fields of the operator that were chosen to suit the grids.

        Raises:
            ValueError: if the settings do not fit together or the trajectories.
        """
        if isinstance(model, OperatorSettings):
            kind = model.config_type
            choices: dict[str, Any] = {**model.settings}
        else:
            kind, fields = type(model), dataclasses.fields(model)
            choices = {field.name: getattr(model, field.name) for field in fields if field.name not in model.FROM_DATA}
        config = StepperConfig.for_data(
            windows, kind, output=self.output, others=[one.domain for one in others], **choices
        )
        if isinstance(model, OperatorConfig):
            return dataclasses.replace(config, operator=model), {}
        domain = as_domain(windows.trajectories.domain, "domain")
        is_on_grid = isinstance(domain, Grid) and not domain.is_batched
        open_names = [name for name in kind.FROM_GRID if is_on_grid and choices.get(name) is None]
        return config, {name: getattr(config.operator, name) for name in open_names}
