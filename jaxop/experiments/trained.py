"""Trained models that commands take: run directories, and folders or zip files of models."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxop import operators, training
from jaxop.dynamics import Stepper
from jaxop.experiments.problems import PROBLEMS
from jaxop.experiments.record import recorded_problem
from jaxop.experiments.sets import AnyProblem
from jaxop.operators.constraint import innermost
from jaxop.operators.folder import DATA, Saved, is_folder, read_folder
from jaxop.operators.pretrained import load
from jaxop.operators.ready import located
from jaxop.operators.standardized import Standardized
from jaxop.training.processes import from_first


@dataclasses.dataclass(frozen=True)
class Place:
    """What stands for the run of a model without one, see `jaxop.experiments.report.Reported`."""

    directory: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, of which the config is known and the parameters are not yet read.

    Attributes:
        place: what the user named: a run directory, a folder or a zip file.
        run: the run; None for a model that was saved as a folder.
        blank: the model, in which only config, shapes and dtypes have a meaning.
        problem: data settings of the training; None if they are unknown.
        step: step of the checkpoint; None for a model that was saved as a folder.
        restore: returns the model, in evaluation mode, read by the devices of a mesh.
        saved: what the folder says; None for a run.
        calibrated: the operator with its error bars; None if it has none.
    """

    place: Path
    run: training.Run | None
    blank: Any
    problem: AnyProblem | None
    step: int | None
    restore: Callable[[jax.sharding.Mesh | None], Any]
    saved: Saved | None = None
    calibrated: operators.Calibrated | None = None

    @property
    def name(self) -> str:
        """Short name of the kind of the model."""
        config = self.blank.config
        return operators.model_of(innermost(config) if isinstance(config, operators.ConstraintConfig) else config).name

    @property
    def functions(self) -> np.ndarray | None:
        """Hashes of the functions of training and validation, see `jaxop.training.Run.functions`; None without any."""
        if self.run is not None:
            return self.run.functions
        return None if self.saved is None else self.saved.functions

    @property
    def is_stepper(self) -> bool:
        """Tells whether the model makes steps in time; otherwise it is an operator between functions."""
        return isinstance(self.blank, Stepper)


def open_trained(path: Path, *, checkpoint: str, own: type | None = None) -> Trained:
    """Opens what a command takes as a model. That of an operator with error bars is the operator.

    Args:
        path: a run directory, a folder or zip file that ``model.save(path)`` or ``jaxop export-model`` wrote, or the
            name of a model that comes with the package.
        checkpoint: "best", "last" or the number of a step of a run.
        own: see `jaxop.experiments.record.recorded_problem`.

    Raises:
        FileNotFoundError: if there is nothing, or a file or the checkpoint is missing.
        ValueError: if files were changed or cannot be read, ``checkpoint`` is not "best" and there is no run, or the
            model is neither an operator between functions nor a stepper.
    """
    path = located(path)
    if not is_folder(path):
        run = training.load_run(path)
        problem, blank = recorded_problem(run, own=own), run.blank_model()
        step = from_first(lambda: run.step(checkpoint), "the checkpoint")
        return Trained(path, run, blank, problem, step, lambda mesh: run.model(checkpoint=step, mesh=mesh))
    if checkpoint != "best":
        raise ValueError(f"--checkpoint {checkpoint} is for runs; {path} is a model without its run: leave it out.")
    saved = read_folder(path)
    found = load(saved)
    calibrated = found if isinstance(found, operators.Calibrated) else None
    model = found if calibrated is None else calibrated.operator
    if not isinstance(model, Stepper | Standardized) and not isinstance(
        getattr(model, "config", None), operators.OperatorConfig | operators.ConstraintConfig | operators.EnsembleConfig
    ):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, which is neither an operator between functions nor a stepper; "
            "call it in Python, jaxop.from_pretrained(path)."
        )
    return Trained(path, None, model, _recorded(saved), None, lambda mesh: model, saved, calibrated)


def _recorded(saved: Saved) -> AnyProblem | None:
    """Returns the data settings of a folder, or None if it has none, or those of a user's own experiment."""
    name = None if saved.data is None else str(saved.data.get("problem"))
    if saved.data is None or name not in PROBLEMS:
        return None
    try:
        return operators.from_dict(PROBLEMS[name], saved.data["data"], name="data")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{saved.path}/{DATA} cannot be read ({type(error).__name__}: {error}).") from error
