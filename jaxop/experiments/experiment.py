"""Experiments: a training run as a value, ready-made experiments, and experiments in a user's own files."""

import ast
import dataclasses
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeAlias, TypeVar

from jaxop import training
from jaxop._validation import check_name, closest
from jaxop.experiments.cluster import ClusterConfig
from jaxop.experiments.constraints import Constraints
from jaxop.experiments.sets import AnyProblem
from jaxop.experiments.settings import OperatorSettings
from jaxop.experiments.stepping import Stepping
from jaxop.operators import OperatorConfig
from jaxop.training import MeshConfig

Data = TypeVar("Data", bound=AnyProblem, covariant=True)
Model = TypeVar("Model", bound=OperatorConfig | OperatorSettings, covariant=True)

_CONFIGS = Path(__file__).parent / "configs"


def default_cache() -> Path:
    """Returns the directory of generated data: ``jaxop/data`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxop" / "data"


@dataclasses.dataclass(frozen=True)
class Experiment(Generic[Data, Model]):
    """A training run: data, operator, training, and the place of the record.

    Attributes:
        data: the problem or the files.
        model: the operator's config, or `OperatorSettings` whose missing fields are chosen to suit the data.
        training: steps, batches, learning rate, checkpoints.
        run_dir: directory of the run; None makes runs/NAME-DATE-TIME.
        resume: continue the run in run_dir from its newest checkpoint.
        cache: directory of generated data, with one file for each set of parameters.
        tensorboard: also log to run_dir/tensorboard.
        wandb: also log to this Weights & Biases project; None does not.
        mesh: numbers of devices that share a batch, a copy of the state, and the nodes of a function. It is not part of
            the recorded settings: a run may be resumed on any other mesh.
        cluster: how several processes find each other. It is not part of the recorded settings either.
        constraints: boundary values, integrals and symmetries that the output has exactly.
        quantile: level τ between 0 and 1 of the pinball loss, in place of ``training.loss``: the operator then learns
            the τ-quantile of the targets, such as the size of errors. None takes ``training.loss``.

    Example:
        >>> from pathlib import Path
        >>> from jaxop import experiments, training
        >>> experiment = experiments.Experiment(
        ...     data=experiments.FileData(Path("a.npz")),
        ...     model=experiments.OperatorSettings("fano", width=16),
        ...     training=training.TrainingConfig(steps=100),
        ... )
        >>> experiment.model.operator
        'fano'
    """

    data: Data
    model: Model
    training: training.TrainingConfig
    run_dir: Path | None = None
    resume: bool = False
    cache: Path = dataclasses.field(default_factory=default_cache)
    tensorboard: bool = False
    wandb: str | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)
    constraints: Constraints = dataclasses.field(default_factory=Constraints)
    quantile: float | None = None


@dataclasses.dataclass(frozen=True)
class DynamicsExperiment(Experiment[Data, Model]):
    """A training run of a stepper on trajectories: an `Experiment` that also says how a step is learnt.

    Attributes:
        stepping: what the operator sees and computes, and how many steps the loss makes.

    Example:
        >>> from pathlib import Path
        >>> from jaxop import experiments, training
        >>> experiment = experiments.DynamicsExperiment(
        ...     data=experiments.BurgersData(samples=20),
        ...     model=experiments.OperatorSettings("fno", width=16),
        ...     training=training.TrainingConfig(steps=100),
        ...     stepping=experiments.Stepping(noise=0.01),
        ... )
        >>> experiment.stepping.history
        1
    """

    stepping: Stepping = dataclasses.field(default_factory=Stepping)


AnyExperiment: TypeAlias = Experiment[AnyProblem, OperatorConfig | OperatorSettings]
"""An experiment on any data with any operator."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An experiment with its name and its description.

    Attributes:
        name: the name of a ready-made experiment, or the stem of a user's own file.
        about: the docstring of its file.
        experiment: the settings.
    """

    name: str
    about: str
    experiment: AnyExperiment


def ready_made() -> dict[str, str]:
    """Returns the ready-made experiments: the first line of the docstring of each, by name.

    Example:
        >>> from jaxop import experiments
        >>> sorted(experiments.ready_made())[:3]
        ['burgers_fno', 'cde_tno', 'custom']
    """
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_CONFIGS.glob("[a-z]*.py"))}
    return {name: first_line(ast.get_docstring(ast.parse(text))) for name, text in texts.items()}


def first_line(docstring: str | None) -> str:
    """Returns the first line of a docstring, or "" if it is None."""
    return (docstring or "").partition("\n")[0]


def load_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Returns a ready-made experiment by name, or a user's own experiment by the path of its file, which ends in ".py".

    The file defines ``CONFIG``, an `Experiment`. It may import other files of its folder, which is added to Python's
    path.

    Args:
        name: the name or the path.

    Raises:
        ValueError: if the name is unknown, or the file cannot be run or does not define ``CONFIG``.
        FileNotFoundError: if the file does not exist.
        TypeError: if ``CONFIG`` is not an `Experiment`.

    Example:
        >>> from jaxop import experiments
        >>> experiments.load_recipe("darcy_fano").experiment.model.patches
        2
    """
    if Path(name).suffix == ".py":
        module, source = _run_file(Path(name)), str(name)
        name = Path(name).stem
    else:
        check_name(os.fspath(name), "experiment", ready_made())
        module, source = importlib.import_module(f"jaxop.experiments.configs.{name}"), f"configs/{name}.py"
    if not hasattr(module, "CONFIG"):
        raise ValueError(f"{source} must define CONFIG = experiments.Experiment(...), but does not define CONFIG.")
    if not isinstance(module.CONFIG, Experiment):
        raise TypeError(f"CONFIG of {source} must be an experiments.Experiment(...), got {module.CONFIG!r}.")
    return Recipe(os.fspath(name), module.__doc__ or "", module.CONFIG)


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        there = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = f"; {closest(path.name, there)}" if there else "."
        raise FileNotFoundError(f"{path} does not exist{hint}")
    name = f"jaxop_experiment_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ValueError(f"{path} is not a file of Python.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # its dataclasses look up type hints there
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(
            f"{path} cannot be run ({type(error).__name__}: {error}); --traceback shows where it fails."
        ) from error
    return module
