"""Run directory: the settings and versions of a run, and its parameters restored into a model."""

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import UInt8

import jaxop
from jaxop._config import from_dict, to_dict
from jaxop._files import hashes_to_bytes, parse_hashes, read_json, write_in_one_go
from jaxop._validation import near
from jaxop.data import DataSource
from jaxop.operators import ConstraintConfig, Ensemble, EnsembleConfig, OperatorConfig, Standardized, build, models
from jaxop.training._files import local_path, set_aside
from jaxop.training.checkpoint import Checkpoints, DamagedCheckpointError
from jaxop.training.config import LOSSES, TrainingConfig, to_json
from jaxop.training.identity import functions_of
from jaxop.training.loggers import read_metrics
from jaxop.training.mesh import check_mesh
from jaxop.training.shards import abstract, specs_of
from jaxop.training.state import evaluation_graph, evaluation_model, split_model

Model = TypeVar("Model", bound=nnx.Module)

_CONFIG = "config.json"
_VERSIONS = "versions.json"
_FUNCTIONS = "functions.npy"
_RECORDS = {"loss": ("function", "arguments"), "optimizer": ("state",)}  # fields, of which the first is always present
_PACKAGES = ("jaxop", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished, interrupted or running training run, read from its directory by `load_run`.

    Attributes:
        directory: the run directory.
        config: the settings that it was started with: ``"training"``, ``"train"`` (the samples),
            ``"valid"`` (names of the sets), ``"valid_sets"`` (their samples), ``"optimizer"`` and ``"loss"`` if
            they were arguments of `fit`, and the ``settings`` of `fit`.
        checkpoints: the saved steps.
    """

    directory: Path
    config: dict[str, Any]
    checkpoints: Checkpoints

    @property
    def training(self) -> TrainingConfig:
        """The training config."""
        return TrainingConfig.from_dict(self.config["training"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``: rows of training have "loss", rows of validation such names as "NAME/l2"."""
        return read_metrics(self.directory)

    @property
    def functions(self) -> UInt8[np.ndarray, "n 16"] | None:
        """Hashes of the input functions that the run learns from and is validated with; None if it recorded none.

        `jaxop.training.calibrate` refuses these functions. Data sources of a user's own have no hashes.

        Raises:
            ValueError: if the file cannot be read.
        """
        path = self.directory / _FUNCTIONS
        return parse_hashes(path.read_bytes(), str(path)) if path.exists() else None

    def step(self, checkpoint: int | str = "best") -> int:
        """Returns the step of "best", "last" or a number or its digits; without validation "best" is the last step.

        Raises:
            ValueError: if ``checkpoint`` is another word.
            FileNotFoundError: if the run does not have this checkpoint.
        """
        if isinstance(checkpoint, str) and checkpoint.isdecimal():
            checkpoint = int(checkpoint)
        if checkpoint not in ("best", "last") and not isinstance(checkpoint, int):
            raise ValueError(f"checkpoint={checkpoint!r} is unknown: give 'best', 'last' or the number of a step.")
        step = checkpoint if isinstance(checkpoint, int) else self.checkpoints.latest
        if checkpoint == "best" and self.checkpoints.best is not None:
            step = self.checkpoints.best
        if step is None or step not in self.checkpoints.steps:
            raise FileNotFoundError(
                f"{self.directory} has no checkpoint {checkpoint!r}; steps there: {self.checkpoints.steps or 'none'}."
            )
        return step

    def restore(
        self,
        model: Model,
        *,
        checkpoint: int | str = "best",
        average: bool = True,
        mesh: Mesh | None = None,
    ) -> Model:
        """Returns a copy of the model with the variables of a checkpoint, in evaluation mode.

        If the run trained several members, this is their `jaxop.operators.Ensemble`.

        Args:
            model: any NNX module of the kind that was trained. Its values do not matter, so that
                ``nnx.eval_shape(lambda: Model(..., rngs=nnx.Rngs(0)))`` is enough. Of several members, one or all.
            checkpoint: "best" (lowest validation error), "last", or the number of a step.
            average: True restores the parameters that the run's evaluations used, a moving average or those of a
                schedule-free optimiser. False restores the parameters of the step itself.
            mesh: devices that read the parameters: those of the axis "model" share one copy, see `init_state`. It need
                not be the mesh of the training run. None restores into one device.

        Raises:
            FileNotFoundError: if the run does not have this checkpoint.
            DamagedCheckpointError: if a file was changed or lost after it was saved.
            ValueError: if the parameters of the model are not those of the run; the message names them.
        """
        step = self.step(checkpoint)
        manifest = self.checkpoints.manifest(step)
        members = self.training.members
        inside: Any = model.operator if members > 1 and isinstance(model, Ensemble) else model
        self._compare(inside, manifest.get("settings", self.config))
        _, params, other = split_model(inside, train=False)
        if members > 1 and inside is model:
            params, other = jax.tree.map(lambda leaf: _stack_of(leaf, members), (params, other))
        averaged = average and any(leaf.startswith("ema.") for leaf in manifest["leaves"])
        name = "ema" if averaged else "params"
        mesh = check_mesh(mesh)
        like = {name: params, "other": other}
        if mesh is not None:
            copied = jax.tree.map(lambda _: PartitionSpec(), other)
            like = abstract(like, {name: specs_of(params, mesh), "other": copied}, mesh)
        saved = self.checkpoints.restore(like, step=step, parts=tuple(like))
        graphdef = evaluation_graph(inside, members)
        return cast(Model, evaluation_model(graphdef, members, saved[name], saved["other"]))

    def _compare(self, model: nnx.Module, settings: Mapping[str, object]) -> None:
        """Warns if a setting of the model differs from the recorded one, although its parameters may fit."""
        ours, recorded = getattr(model, "config", None), in_present_terms(settings).get("model")
        if not dataclasses.is_dataclass(ours) or not isinstance(recorded, dict):
            return
        given = to_dict(ours)
        different = [name for name, value in recorded.items() if name in given and given[name] != value]
        if different:
            pairs = ", ".join(f"{name}={given[name]!r} instead of {recorded[name]!r}" for name in different)
            warnings.warn(f"model differs from the one that was trained in {pairs}.", UserWarning, stacklevel=3)

    def model(self, *, checkpoint: int | str = "best", average: bool = True, mesh: Mesh | None = None) -> Any:
        """Returns the trained model, if the run recorded its ``operator`` and ``model`` settings.

        A neural operator is in a `jaxop.operators.Standardized`, which acts in physical units. So is an operator around
        another one if it was trained in one, and each member of a `jaxop.operators.Ensemble`. Any other model of
        `jaxop.operators.models`, such as a `jaxop.dynamics.Stepper`, is returned itself. Runs of ``jaxop train`` record
        the settings. For other runs build the model and use `restore`.

        Args:
            checkpoint: see `restore`.
            average: see `restore`.
            mesh: see `restore`.

        Raises:
            ValueError: if the config of the run does not describe its operator, or for the reasons of `restore`.
        """
        return self.restore(self.blank_model(), checkpoint=checkpoint, average=average, mesh=mesh)

    def blank_model(self) -> Any:
        """Returns the model that `model` restores, with shapes and dtypes instead of values."""
        if missing := [name for name in ("operator", "model") if name not in self.config]:
            raise ValueError(
                f"{self.directory}/{_CONFIG} does not name an operator of jaxop: it has no {missing[0]!r}. Build the "
                "same model and call run.restore(model); training.fit(..., settings={'operator': NAME, "
                "'model': config}) records an operator by its name in operators.models()."
            )
        try:
            config = from_dict(models()[self.config["operator"]].config, self.config["model"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{self.directory}/{_CONFIG} does not name an operator of jaxop and its settings "
                f"({type(error).__name__}: {error}); build the model yourself, for example from recorded settings by "
                "operators.from_dict(Config, run.config['model']), and call run.restore(model)."
            ) from error
        is_bare = isinstance(config, ConstraintConfig) and not self._has_units()
        if (members := self.training.members) > 1:
            ensemble = EnsembleConfig(config, members=members, standardized=not is_bare)
            return nnx.eval_shape(lambda: build(ensemble, rngs=nnx.Rngs(0)))
        if is_bare or not isinstance(config, OperatorConfig | ConstraintConfig):
            return nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
        inputs, outputs = np.ones(config.in_channels), np.ones(config.out_channels)
        statistics = {"input_mean": inputs, "input_std": inputs, "output_mean": outputs, "output_std": outputs}
        return nnx.eval_shape(lambda: Standardized(build(config, rngs=nnx.Rngs(0)), **statistics))

    def _has_units(self) -> bool:
        """Tells whether the checkpoints have the statistics of a `Standardized`, as all of ``jaxop train`` have."""
        for step in reversed(self.checkpoints.steps):
            with contextlib.suppress(DamagedCheckpointError):
                return "other.output_mean" in self.checkpoints.manifest(step)["leaves"]
        return True


def _stack_of(leaf: Any, members: int) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of the arrays of all members, from the array of one."""
    return jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype)


def load_run(directory: str | os.PathLike[str]) -> Run:
    """Opens a run directory for reading.

    Args:
        directory: the ``run_dir`` of `fit`.

    Raises:
        FileNotFoundError: if it is not a run directory; the message names the missing file.
        ValueError: if its config cannot be read; the message names file and field.

    Example:
        >>> from jaxop import training
        >>> training.load_run("no/such/run")
        Traceback (most recent call last):
        FileNotFoundError: no/such/run is not a run directory: it has no config.json.
    """
    config = read_settings(directory)
    try:
        settings = TrainingConfig.from_dict(config["training"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{Path(directory) / _CONFIG}: training: {error}") from error
    own_loss = is_record_of_fit("loss", config.get("loss"))
    checkpoints = open_checkpoints(directory, settings, config["valid"], own_loss=own_loss)
    if own_loss and checkpoints.best is None:  # in earlier versions settings could have the form of a record of fit
        named = open_checkpoints(directory, settings, config["valid"], own_loss=False)
        checkpoints = checkpoints if named.best is None else named
    return Run(Path(directory), config, checkpoints)


def is_record_of_fit(name: str, value: object) -> bool:
    """Tells whether a setting has the form in which `fit` records its argument "loss" or "optimizer"."""
    key, *optional = _RECORDS[name]
    return isinstance(value, dict) and isinstance(value.get(key), str) and value.keys() <= {key, *optional}


def open_checkpoints(
    directory: str | os.PathLike[str], config: TrainingConfig, valid: list[str], *, own_loss: bool
) -> Checkpoints:
    """Returns the checkpoints of a run; the best has the lowest loss on the first validation set.

    Args:
        directory: the run directory.
        config: names the norm of the training loss.
        valid: names of the validation sets.
        own_loss: True if the run has a loss of the user, which replaces the norm.
    """
    best = error_name(valid[0], "loss" if own_loss else LOSSES[config.loss]) if valid else None
    return Checkpoints(Path(directory) / "checkpoints", keep_last=config.keep_last, best_metric=best)


def error_name(name: str, space: str) -> str:
    """Returns the name of the mean relative error on a validation set among the metrics: "NAME/l2"."""
    return f"{name}/{space.lower()}"


def _runs_in(folder: Path) -> list[str]:
    """Returns the names of the run directories in a folder that may not exist."""
    with contextlib.suppress(OSError):
        return [path.parent.name for path in folder.glob(f"*/{_CONFIG}")]
    return []


def read_settings(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the settings in ``config.json``; raises the errors of `load_run`."""
    path = local_path(directory, "directory") / _CONFIG
    if not path.exists():
        guess = near(path.parent.name, _runs_in(path.parent.parent))
        hint = f"; {guess}" if guess else "."
        raise FileNotFoundError(f"{os.fspath(directory)} is not a run directory: it has no {_CONFIG}{hint}")
    remedy = "restore it from a copy or start a new run in another directory."
    try:
        settings = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error} It holds the settings of the run: {remedy}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold an object, got {type(settings).__name__}: {remedy}")
    for name, kind in {"training": dict, "valid": list}.items():
        if name not in settings:
            raise ValueError(f"{path} has no field {name!r}: {remedy}")
        if not isinstance(settings[name], kind):
            raise ValueError(f"{path}: {name} must be a {kind.__name__}, got {json.dumps(settings[name])}: {remedy}")
    return settings


def in_present_terms(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns recorded settings with the fields of this version, or unchanged if they cannot be read."""
    settings = dict(settings)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        settings["training"] = to_json(TrainingConfig.from_dict(settings["training"]))
    with contextlib.suppress(KeyError, TypeError, ValueError):
        settings["model"] = to_dict(from_dict(models()[settings["operator"]].config, settings["model"]))
    return settings


def write_settings(directory: Path, settings: Mapping[str, object]) -> None:
    """Writes ``config.json`` in one go."""
    _write_json(directory / _CONFIG, settings)


def record_functions(directory: Path, train: DataSource, valid: Iterable[DataSource], *, resume: bool) -> None:
    """Writes ``functions.npy``, the hashes of the functions of sets of samples; a resumed run keeps those it has.

    There is no such file if the functions of the training have no hashes, because they are those of a source of a
    user's own.
    """
    path = directory / _FUNCTIONS
    if resume and path.exists():
        return
    path.unlink(missing_ok=True)
    if len(hashes := functions_of([train])):
        write_in_one_go(path, hashes_to_bytes(np.concatenate([hashes, functions_of(valid)])))


def has_begun(directory: Path) -> bool:
    """Tells whether a run directory holds a checkpoint, damaged or not, or a row of metrics."""
    steps = (directory / "checkpoints").glob("step_*")
    return any(path.suffix != ".tmp" for path in steps) or bool(read_metrics(directory))


def record_versions(directory: Path, step: int, *, resume: bool, mesh: Mesh | None = None) -> None:
    """Adds an entry on this process to ``versions.json``: packages, devices, mesh, and the step it starts from.

    A new run starts a new file. A file that cannot be read is set aside, because the state does not depend on it.
    """
    path = directory / _VERSIONS
    entries: object = []
    if resume and os.path.lexists(path):
        try:
            entries = read_json(path)
        except (OSError, ValueError):
            entries = None
        if not isinstance(entries, list):
            warnings.warn(f"{path} is damaged; it was set aside as {set_aside(path)}.", UserWarning, stacklevel=3)
            entries = []
    device = jax.devices()[0]
    entry = {
        "from_step": step,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "platform": platform.platform(),
        **versions(),
        "device": f"{device.device_kind} ({device.platform})",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "mesh": {} if mesh is None else dict(mesh.shape),
        "git_revision": _git_revision(),
    }
    _write_json(path, [*entries, entry])


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}}


def _write_json(path: Path, value: object) -> None:
    write_in_one_go(path, (json.dumps(value, indent=2) + "\n").encode())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Returns the revision of the package's checkout, with "-dirty" if it was changed; None if it is installed."""
    root = Path(jaxop.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
