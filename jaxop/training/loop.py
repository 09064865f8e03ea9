"""Training loop: it can be resumed at any step, evaluates regularly, and stops cleanly."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, cast

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from jaxop._config import Json
from jaxop._pytree import leaf_names
from jaxop.data import DataSource, Group
from jaxop.data.groups import check_drawable, draw_batch, groups_of, has_groups, read_batch
from jaxop.data.source import BatchForm, batch_form, check_batch, check_same_form
from jaxop.training._arguments import RESERVED, check_arguments, check_sources
from jaxop.training._files import local_path, writing_by_first
from jaxop.training._running import Clock, noted, prefetched, saying_if_terminated, stop_signals
from jaxop.training.checkpoint import Checkpoints, first_nonfinite
from jaxop.training.config import TrainingConfig, check_same_settings, path_fields, to_json
from jaxop.training.evaluation import mean_errors, trace_errors
from jaxop.training.identity import describe_source
from jaxop.training.loggers import JsonLines, Logger, Progress
from jaxop.training.losses import Loss, describe_loss
from jaxop.training.members import MemberBatch, check_members, member_seeds, same_parts
from jaxop.training.memory import check_fits
from jaxop.training.mesh import check_divides, check_mesh, distribute, on_one_device, own_indices
from jaxop.training.optimizer import EvalParams, Optimizer, describe_state, make_optimizer
from jaxop.training.precision import in_precision
from jaxop.training.processes import Vote, check_covers, check_same, ending_together, from_first, is_first
from jaxop.training.run import (
    error_name,
    has_begun,
    in_present_terms,
    is_record_of_fit,
    open_checkpoints,
    read_settings,
    record_functions,
    record_versions,
    versions,
    write_settings,
)
from jaxop.training.state import TrainState, evaluation_graph, evaluation_model, init_state, split_model
from jaxop.training.step import Step, make_step

Model = TypeVar("Model", bound=nnx.Module)

_STOPPED = ("completed", "time limit", "terminated")


@dataclasses.dataclass(frozen=True)
class Result(Generic[Model]):
    """Result of a call of `fit`.

    Attributes:
        model: a copy of the model in evaluation mode, or the `jaxop.operators.Ensemble` of several members. It has the
            averaged parameters if the run or the optimiser keeps an average, otherwise the last.
            `jaxop.training.load_run` and `Run.restore` return the best. It is on one device, or divided among the
            devices of the mesh axis "model" like the state.
        state: the last training state.
        stopped: "completed", "time limit" or "terminated" (SIGTERM or Ctrl-C).
        seconds: time spent in training steps over all resumptions.
        errors: means of the last evaluation: "NAME/l2" and "NAME/h1", or "NAME/cross_entropy" and
            "NAME/accuracy", or "NAME/loss" and the metrics of the user's own loss. Empty without an evaluation.
    """

    model: Model
    state: TrainState
    stopped: str
    seconds: float
    errors: dict[str, float]


@ending_together()
def fit(
    model: Model,
    train: DataSource,
    valid: Mapping[str, DataSource],
    config: TrainingConfig,
    *,
    run_dir: str | os.PathLike[str],
    optimizer: Optimizer | None = None,
    loss: Loss | None = None,
    eval_params: EvalParams | None = None,
    mesh: jax.sharding.Mesh | None = None,
    settings: Mapping[str, object] | None = None,
    resume: bool = False,
    loggers: Sequence[Logger] = (),
    progress: bool = True,
) -> Result[Model]:
    """Minimises the mean loss over ``train`` in ``config.steps`` steps of AdamW, or of any other optimiser.

    The run directory then holds ``config.json``, ``versions.json``, ``metrics.jsonl`` (every step and
    every evaluation), ``functions.npy`` (a hash of each function of sets of samples, `Run.functions`),
    ``checkpoints/`` (the newest, and the best by the first validation set, in the norm
    of the loss) and an empty ``figures/``. If a run is killed at any moment and resumed, it ends with the
    parameters of the uninterrupted run, bit for bit on one kind of machine. Batches and random numbers are
    functions of (seed, step), and a checkpoint holds everything else, with the whole state of the optimiser.
    After SIGTERM or Ctrl-C the run finishes its step, saves and returns; a second Ctrl-C interrupts it at once. One
    process at a time writes to the directory. The first checkpoint is restored as soon as it is saved, so that a run
    whose checkpoints cannot be read fails at once.

    On several processes (`jax.distributed.initialize`) all of them call `fit` with the same arguments, on a mesh of
    the devices of all, and with a directory that all of them see. Each reads the samples of its own devices. All save
    their parts of a checkpoint. Process 0 alone writes everything else, logs, and measures the time limit. SIGTERM to
    any process stops all of them after the same step. An error of one ends all with its message.

    With ``config.members`` = E, one program trains E operators, and the model of the result is their
    `jaxop.operators.Ensemble`. They differ in initial values and in the order of the data. Member 0 is what a run of
    one member would give (`member_seeds`). Metrics of a step are means over the members, and validation sets are
    measured with the mean of their outputs.

    Args:
        model: any NNX module that the loss can call; it is not changed. The losses "l2" and "h1" call
            ``model(inputs, domain, at=at, initial=initial)``, and "cross_entropy" calls ``model(inputs)``. It is the
            first of several members, and must then be a neural operator with a config, bare or in a
            `jaxop.operators.Standardized`.
        train: training samples: `jaxop.data.Samples`, `jaxop.data.RaggedSamples`, `jaxop.data.Examples`, or any
            `jaxop.data.DataSource` whose batches fit the loss. If its batches have several shapes, as those of
            `RaggedSamples`, one program is compiled for each before the first step, and a line says which. A run can be
            resumed only with the data that it was started with. It compares their sizes and a checksum of all of them,
            or the identity of the source.
        valid: validation sets by name, on any grids, compared in the same way; the dict may be empty.
        config: see `TrainingConfig`.
        run_dir: directory of the run in a local file system; a new run needs a directory without checkpoints.
        optimizer: any `optax.GradientTransformation` or `optax.MultiSteps`. None makes AdamW from ``config``
            (`make_optimizer`). A run records the structure of the optimiser's state and can be resumed only with an
            optimiser of the same structure. It does not record numbers such as a learning rate: put them into
            ``settings``. Every step calls ``update`` once; `optax.MultiSteps` changes parameters every k-th time.
        loss: a function of (model, batch) that returns one number per sample, or these numbers and a dict of metrics;
            see `jaxop.training.losses`. The loggers get the metrics of a step, and validation sets are measured by
            this loss and its metrics. None takes the loss that ``config.loss`` names. A run records the name of
            the function, and the numbers, strings and tuples that a `functools.partial` binds; a resumed run must have
            the same. Of a callable object it records the dict of such values that its method ``identity()`` returns;
            without this method, no fields. Code, closures and other bound values are not compared, and all lambdas
            of one function have one name: put what tells them apart into ``settings``.
        eval_params: a function from (state of the optimiser, parameters) to the parameters to evaluate with, if
            gradients are taken at others. Schedule-free optimisers of Optax are recognised: leave None for them.
            Evaluations, ``Result.model`` and `Run.restore` use these parameters.
        mesh: devices that share the samples of every batch along the axes "data" and "model", such as
            ``MeshConfig().make(config.batch_size)`` or ``jax.make_mesh((8,), ("data",))``; see `make_step`. The
            devices of "model" also share one copy of the state, so that together they train an operator that is too
            large for one; see `init_state`. Those of "domain" share the nodes of every function. The run records the
            mesh, and may be resumed on any other, by any number of processes: the batches are the same. None trains
            on one device.
        settings: further description of the run (operator config, source of the data): dataclasses, numbers, strings,
            paths, or dicts and lists of them. They are stored in ``config.json`` and in every checkpoint, and compared
            when the run is resumed, except for paths, because samples may move. The names "loss" and "optimizer" may
            be used if these arguments are None, but not for dicts of the form {"function": "..."} or {"state": "..."}.
        resume: whether to continue the run in ``run_dir`` from its newest undamaged checkpoint, or from
            step 0 if it was interrupted before the first checkpoint.
        loggers: destinations of the metrics in addition to ``metrics.jsonl``.
        progress: whether to display progress.

    Returns:
        A `Result`.

    Raises:
        TypeError: if an argument has a wrong type, such as samples that do not fit the loss.
        ValueError: if samples do not fit each other or the config, if the arrays, shapes or dtypes of the training
            batches change from step to step, if settings, data, loss or optimiser differ from those of the run to
            resume or between processes (the message names every field that differs), or if the model does not fit its
            checkpoint.
        FileNotFoundError: if ``run_dir`` does not hold a run to resume.
        FileExistsError: if a new run would overwrite another run.
        BlockingIOError: if another run is writing to ``run_dir``; the message names its process.
        NotImplementedError: if several members shall be trained by several processes.
        LostProcessError: if another process of this run is gone.
        MemoryError: if the state, a batch and the largest matrix product of a step exceed the memory of a device.
        FloatingPointError: at the first step whose loss or gradient is not finite; the message names the
            step, the samples of its batch and the first bad array. No such state is saved.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxop import data, domains, training
        >>> class Pointwise(nnx.Linear):
        ...     def __call__(self, values, domain, *, at=None, initial=None):
        ...         return super().__call__(values)
        >>> u = np.random.default_rng(0).normal(size=(32, 9, 1)).astype(np.float32)
        >>> samples = data.Samples(u, 3 * u, domains.interval(9))
        >>> config = training.TrainingConfig(steps=60, batch_size=8, learning_rate=0.2)
        >>> model = Pointwise(1, 1, rngs=nnx.Rngs(0))
        >>> result = training.fit(
        ...     model, samples, {"same": samples}, config, run_dir=tempfile.mkdtemp(), progress=False
        ... )
        >>> result.stopped, result.errors["same/l2"] < 0.05
        ('completed', True)
    """
    check_arguments(
        model=model,
        valid=valid,
        config=config,
        run_dir=run_dir,
        settings=settings,
        loggers=loggers,
        optimizer=optimizer,
        loss=loss,
        eval_params=eval_params,
    )
    mesh = check_mesh(mesh)
    check_covers(mesh)
    check_same({"resume": resume})
    check_divides(mesh, config.batch_size, config.accumulate)
    model = in_precision(model, config.precision)
    check_members(model, config, mesh)
    check_sources(model, train, valid, config, loss)
    groups = groups_of(train, config.batch_size, "train")
    check_drawable(groups, config.batch_size, "train")
    kinds = {group.name: len(group.indices) for group in groups} if has_groups(train) else {}
    described_groups: dict[str, Json] = {"groups": {**kinds}} if kinds else {}
    directory = local_path(run_dir, "run_dir")
    extra = to_json(settings or {})
    given = {} if loss is None else {"loss": describe_loss(loss)}
    chosen = make_optimizer(config) if optimizer is None else optimizer
    graphdef, state = init_state(model, chosen, config, eval_params=eval_params, mesh=mesh)
    if optimizer is not None:
        given["optimizer"] = {"state": describe_state(state.opt_state)}
    if reserved := {*RESERVED, *given} & extra.keys():
        raise ValueError(f"settings must not use the names {sorted(reserved)}, which fit fills in itself.")
    for name in ("loss", "optimizer"):
        if is_record_of_fit(name, extra.get(name)):
            raise ValueError(
                f"settings[{name!r}] must not have the form of the record that fit makes of its argument {name}, got "
                f"{extra[name]}; use another name."
            )
    checkpoints = open_checkpoints(directory, config, list(valid), own_loss=loss is not None)
    if resume and not directory.is_dir():
        raise FileNotFoundError(f"nothing to resume from: {directory} does not exist. Check the path.")
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing_by_first(directory))
        if not resume and from_first(lambda: has_begun(directory), "the contents of run_dir"):
            latest = checkpoints.latest
            what = "without an undamaged checkpoint;" if latest is None else f"saved up to step {latest}; resume it, or"
            raise FileExistsError(f"{directory} already holds a run, {what} give another run_dir.")
        described = {
            "training": to_json(config),
            "train": describe_source(train, "train") | described_groups,
            "valid": list(valid),
            "valid_sets": {name: describe_source(source, f"valid[{name!r}]") for name, source in valid.items()},
            **given,
            **extra,
        }
        about = {"settings": described, "versions": versions(), "x64": jax.config.read("jax_enable_x64")}
        check_same(about, free={f"settings.{name}" for name in path_fields(settings)})
        start, seconds, errors = 0, 0.0, {}
        if resume:
            start, state, seconds, errors = _resumed(checkpoints, directory, state, described, path_fields(settings))
        own: list[Logger] = [JsonLines(), *([Progress(note=_note(kinds))] if progress else [])]
        if not is_first():
            own, loggers = [], []
        training = _Training(model, groups, valid, config, loss, mesh, described, checkpoints, [*own, *loggers], errors)
        made = make_step(graphdef, chosen, config, loss=loss, eval_params=eval_params, mesh=mesh)
        steps = training.trace(made, state)

        for output in (*loggers, *own):  # loggers whose package may be missing come first
            output.start(directory, described, start)
            stack.callback(output.close)
        if is_first():
            (directory / "figures").mkdir(exist_ok=True)
            write_settings(directory, described)
            record_functions(directory, train, valid.values(), resume=resume)
            record_versions(directory, start, resume=resume, mesh=mesh)
        return training.run(steps, start, state, seconds)


def _note(groups: Mapping[str, int]) -> str:
    """Returns a line on the shapes of the batches, or "" if all have one shape."""
    if not groups:
        return ""
    each = "; ".join(f"{count:,} of {name}" for name, count in groups.items())
    buckets = "1 bucket" if len(groups) == 1 else f"{len(groups)} buckets, each with a program of its own"
    return f"{sum(groups.values()):,} samples in {buckets}: {each}"


def _resumed(
    checkpoints: Checkpoints, directory: Path, state: TrainState, described: Mapping[str, object], paths: set[str]
) -> tuple[int, TrainState, float, dict[str, float]]:
    """Returns step, state, seconds and last errors of an interrupted run with these settings."""
    config = directory / "config.json"
    begun, saved, known = from_first(
        lambda: [has_begun(directory), checkpoints.latest is not None, config.exists()], "the contents of run_dir"
    )
    if saved or (known and not begun):
        check_same_settings(in_present_terms(read_settings(directory)), described, str(config), paths=paths)
    if known and not begun:  # interrupted before the first checkpoint
        return 0, state, 0.0, {}
    start, state = checkpoints.restore_latest(state)
    manifest = checkpoints.manifest(start)
    if "settings" in manifest:  # anyone can edit the config, but the manifest is sealed
        saved = in_present_terms(manifest["settings"])
        check_same_settings(saved, described, str(checkpoints.path(start)), paths=paths)
    return start, state, manifest["seconds"], manifest["metrics"]


class _Loaded(NamedTuple):
    """A batch, the number of its group and the numbers of its items, of every member if there are several."""

    group: int
    indices: np.ndarray
    batch: PyTree


@dataclasses.dataclass
class _Training(Generic[Model]):
    """The training of one call of `fit`, whose arguments were checked."""

    model: Model
    groups: Sequence[Group]
    valid: Mapping[str, DataSource]
    config: TrainingConfig
    loss: Loss | None
    mesh: jax.sharding.Mesh | None
    settings: Mapping[str, object]
    checkpoints: Checkpoints
    outputs: Sequence[Logger]
    errors: dict[str, float]
    forms: dict[int, BatchForm] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each member."""
        return member_seeds(self.config)

    @functools.cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The graph of what is evaluated: the model, or the ensemble of its members."""
        return evaluation_graph(self.model, self.config.members)

    def trace(self, step: Step, state: TrainState) -> list[jax.stages.Lowered]:
        """Traces the step of each group for compilation.

        If the model cannot run on some samples, this raises an error before anything is saved.
        """
        for name, source in self.valid.items():
            with noted(f"on valid[{name!r}]"):
                size = self.config.batch_size
                trace_errors(self.model, source, batch_size=size, argument=f"valid[{name!r}]", loss=self.loss)
        first = np.arange(self.config.batch_size)
        lowered = []
        for number, group in enumerate(self.groups):
            which = f" of {group.name}" if len(self.groups) > 1 else ""
            with noted(f"on the training samples{which}"):
                batch = self._read(number, [first] * self.config.members, 0).batch
                traced = cast(jax.stages.Wrapped, step).trace(state, batch)
            each = f" for each of {self.config.members} members" if self.config.members > 1 else ""
            check_fits(traced, state, batch, f"{len(first)} samples{which}{each}")
            lowered.append(traced.lower())
        return lowered

    def run(
        self, lowered: Sequence[jax.stages.Lowered], start: int, state: TrainState, seconds: float
    ) -> Result[Model]:
        config, stopped = self.config, "completed"
        limit = config.time_limit_s or float("inf")
        # a run that is killed early can be resumed, and a full disk is noticed
        if from_first(lambda: self.checkpoints.latest is None, "the checkpoints"):
            self.checkpoints.save(0, state, settings=self.settings)
            self.checkpoints.restore(state, step=0)  # a checkpoint that cannot be read fails now, not at resume
        ahead = range(start, config.steps)
        if ahead and seconds > limit:
            ahead, stopped = ahead[:0], "time limit"
        if not ahead:
            return Result(self._current_model(state), state, stopped, seconds, self.errors)
        with saying_if_terminated(
            f"stopped by SIGTERM while the step was compiled; the last checkpoint is that of step {start}"
        ):
            step_fns = [one.compile() for one in lowered]
        with stop_signals() as terminated, prefetched(self._load, ahead) as batches:
            clock = Clock(seconds)
            vote = Vote(self.mesh, len(_STOPPED))
            unreported: tuple[int, _Loaded, dict[str, Array]] | None = None
            for step, batch in enumerate(batches, start=start + 1):
                state, metrics = step_fns[batch.group](state, batch.batch)
                if unreported:  # while the device works on this step
                    self._report(*unreported, clock.seconds)
                unreported = step, batch, metrics
                reason = vote(2 if terminated() else int(is_first() and clock.seconds > limit))
                if _STOPPED[reason] == "terminated" or step < config.steps:
                    stopped = _STOPPED[reason]
                last = step == config.steps or stopped != "completed"
                evaluated = (last and stopped != "terminated") or step % config.eval_every == 0
                if not (last or evaluated or step % config.checkpoint_every == 0):
                    continue
                self._report(*unreported, clock.seconds)
                unreported = None
                with clock.paused() as trained:
                    errors = self._evaluate(step, state) if evaluated else {}
                    if last or step % config.checkpoint_every == 0 or self._improves(errors):
                        self.checkpoints.save(step, state, metrics=errors, seconds=trained, settings=self.settings)
                if last:
                    break
            return Result(self._current_model(state), state, stopped, clock.seconds, self.errors)

    def _load(self, step: int) -> _Loaded:
        counts = [len(group.indices) for group in self.groups]
        size, seed = self.config.batch_size, self.config.seed
        drawn = [draw_batch(counts, size, seed=seed, step=step, items_seed=own) for own in self.seeds]
        return self._read(drawn[0][0], [items for _, items in drawn], step)

    def _read(self, number: int, items: Sequence[np.ndarray], step: int) -> _Loaded:
        """Returns the batches of some items of a group, one for each member, which all have the form of the first."""
        group = self.groups[number]
        batches = [self._read_of_member(number, *one, step) for one in zip(items, self.seeds, strict=True)]
        placed = [distribute(batch, self.mesh, len(items[0])) for batch in batches]
        for batch in placed:
            form = self.forms.setdefault(number, batch_form(batch))
            check_same_form(batch, form, "train", step + 1)
        if len(placed) == 1:
            return _Loaded(number, group.indices[items[0]], placed[0])
        return _Loaded(number, group.indices[np.stack(items)], MemberBatch.of(placed, same_parts(batches)))

    def _read_of_member(self, number: int, items: np.ndarray, seed: int, step: int) -> PyTree:
        own = own_indices(items, self.mesh)
        batch = read_batch(self.groups[number].source, own, seed=seed, step=step)
        check_batch(batch, len(own), "train")
        return batch

    def _report(self, step: int, batch: _Loaded, metrics: Mapping[str, Array], seconds: float) -> None:
        values = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}  # of every member
        finite = values.pop("finite")
        if not finite.all():
            member = int(np.argmin(finite))
            own = {name: value[member].item() for name, value in values.items()}
            raise FloatingPointError(self._diagnose(step, batch, own, member))
        del values["culprit"]
        means = {name: value.mean(dtype=np.float64).item() for name, value in values.items()}
        self._log(step, means | {"seconds": seconds})

    def _diagnose(self, step: int, loaded: _Loaded, values: Mapping[str, float], member: int) -> str:
        batch, indices, who = loaded.batch, loaded.indices, ""
        if self.config.members > 1:
            batch, indices, who = batch.member(member), indices[member], f" of member {member}"
        arrays = zip(leaf_names(batch), jax.tree.leaves(batch), strict=True)
        bad = first_nonfinite({f"batch.{name}" if name else "batch": array for name, array in arrays})
        if bad is None and values["culprit"] >= 0:
            params = leaf_names(split_model(self.model, train=True)[1])
            kind, number = divmod(int(values["culprit"]), len(params))
            bad = f"{('the gradient', 'the new value')[kind]} of {params[number]}"
        return (
            f"step {step}: the loss{who} is {values['loss']} and the gradient norm {values['grad_norm']}, on samples "
            f"{indices.tolist()}; first array that is not finite: {bad or 'the loss'}. "
            f"The state was not saved; the last checkpoint is of step {self.checkpoints.latest}. "
            "Look at these samples, or start again with a smaller learning rate or a longer warm-up."
        )

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        model, errors = self._current_model(state), {}
        for name, source in self.valid.items():
            means = mean_errors(
                model,
                source,
                batch_size=self.config.batch_size,
                argument=f"valid[{name!r}]",
                labelled=self.config.loss == "cross_entropy",
                loss=self.loss,
                mesh=self.mesh,
            )
            errors |= {error_name(name, quantity): value for quantity, value in means.items()}
        if errors:
            self.errors = errors
            self._log(step, errors)
        return errors

    def _improves(self, errors: Mapping[str, float]) -> bool:
        metric = self.checkpoints.best_metric
        if metric is None or metric not in errors:
            return False

        def improves() -> bool:
            best = self.checkpoints.best
            return best is None or errors[metric] < self.checkpoints.manifest(best)["metrics"][metric]

        return from_first(improves, "the best checkpoint")

    def _current_model(self, state: TrainState) -> Model:
        """Returns the model on one device, so that it runs on arrays of that device, or divided like the state."""
        variables = on_one_device((state.averaged, state.other), self.mesh)
        return cast(Model, evaluation_model(self.graphdef, self.config.members, *variables))

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        for output in self.outputs:
            output.log(step, metrics)
