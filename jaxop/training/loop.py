"""The training loop: resumable at any step, evaluated on the way, stopped cleanly."""

import collections
import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from flax import nnx

from jaxop._validation import check_type
from jaxop.data import Batch, ExampleBatch, Examples, Samples, batch_indices
from jaxop.training._files import local_path, writing
from jaxop.training.checkpoint import Checkpoints, first_nonfinite, leaf_names
from jaxop.training.config import TrainingConfig, check_same_settings, path_fields, to_json
from jaxop.training.evaluation import check_classes, mean_errors, trace_errors
from jaxop.training.loggers import JsonLines, Logger, Progress
from jaxop.training.run import (
    describe_samples,
    error_name,
    has_begun,
    in_present_terms,
    open_checkpoints,
    read_settings,
    record_versions,
    write_settings,
)
from jaxop.training.state import TrainState, init_state, make_optimizer, split_model
from jaxop.training.step import make_step

Model = TypeVar("Model", bound=nnx.Module)

_PREFETCH = 2  # batches prepared ahead


@dataclasses.dataclass(frozen=True)
class Result(Generic[Model]):
    """What a call of `fit` ends with.

    Attributes:
        model: a copy of the model in evaluation mode, with the averaged parameters if the run keeps them,
            else the last ones. The best ones: `jaxop.training.load_run` and `Run.restore`.
        state: the last training state.
        stopped: "completed", "time limit" or "terminated" (SIGTERM).
        seconds: time spent in training steps over all resumptions.
        errors: means of the last evaluation, "NAME/l2" and "NAME/h1" or "NAME/cross_entropy" and
            "NAME/accuracy"; empty if there was none.
    """

    model: Model
    state: TrainState
    stopped: str
    seconds: float
    errors: dict[str, float]


def fit(
    model: Model,
    train: Samples | Examples,
    valid: Mapping[str, Samples] | Mapping[str, Examples],
    config: TrainingConfig,
    *,
    run_dir: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    loggers: Sequence[Logger] = (),
    progress: bool = True,
) -> Result[Model]:
    """Minimises the mean loss over ``train`` in ``config.steps`` steps of AdamW.

    The run directory then holds ``config.json``, ``versions.json``, ``metrics.jsonl`` (every step and
    every evaluation), ``checkpoints/`` (the last ones and the best by the first validation set, in the norm
    of the loss) and an empty ``figures/``. A run that is killed at any moment and resumed ends with the
    parameters of the uninterrupted run, bit for bit on one kind of machine: batches and random numbers are
    functions of (seed, step), and a checkpoint holds all the rest. SIGTERM lets the step finish, saves
    and returns. One process at a time writes to the directory. The first checkpoint is restored as soon as it is
    saved, which proves that the rest will be readable.

    Args:
        model: an operator, called as ``model(inputs, domain, at=at, initial=initial)``, or for cross-entropy
            a model of `jaxop.data.Examples`, called as ``model(inputs)``; left as it was.
        train: training samples; a run is resumed only on those it was started with, as their sizes and
            the checksum of all of them tell.
        valid: validation sets by name, on any grids, compared in the same way; they may be empty.
        config: see `TrainingConfig`.
        run_dir: directory of the run, in a local file system; a new run needs one without checkpoints.
        settings: what else describes the run (operator config, source of the data): dataclasses, numbers, strings,
            paths, or dicts and lists of them. Kept in ``config.json`` and in every checkpoint, and compared when
            the run is resumed, but for paths: samples may move.
        resume: whether to continue the run in ``run_dir`` from its newest undamaged checkpoint, or from
            step 0 if it was interrupted before the first one.
        loggers: destinations of the metrics besides ``metrics.jsonl``.
        progress: whether to display progress.

    Returns:
        A `Result`.

    Raises:
        TypeError: for arguments of another kind, such as samples that the loss does not take.
        ValueError: for samples that do not fit each other or the config, settings or training samples that differ
            from those of the run to resume (every differing field is named), or a model that does not fit its
            checkpoint.
        FileNotFoundError: if there is nothing to resume.
        FileExistsError: if a new run would overwrite another.
        BlockingIOError: if another process is writing to ``run_dir``; the message names it.
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
    _check_arguments(model, valid, config, run_dir, settings, loggers)
    _check_samples(model, train, valid, config)
    directory = local_path(run_dir, "run_dir")
    extra = to_json(settings or {})
    if reserved := {"training", "train", "valid", "valid_sets"} & extra.keys():
        raise ValueError(f"settings must not use the names {sorted(reserved)}: fit fills them in itself.")
    checkpoints = open_checkpoints(directory, config, list(valid))
    if resume and not directory.is_dir():
        raise FileNotFoundError(f"nothing to resume from: {directory} does not exist. Check the path.")
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(directory))
        if not resume and has_begun(directory):
            latest = checkpoints.latest
            what = "without an undamaged checkpoint;" if latest is None else f"saved up to step {latest}; resume it, or"
            raise FileExistsError(f"{directory} already holds a run, {what} give another run_dir.")
        described = {
            "training": to_json(config),
            "train": describe_samples(train),
            "valid": list(valid),
            "valid_sets": {name: describe_samples(samples) for name, samples in valid.items()},
            **extra,
        }
        optimizer = make_optimizer(config)
        graphdef, state = init_state(model, optimizer, config)
        start, seconds, errors = 0, 0.0, {}
        if resume:
            start, state, seconds, errors = _resumed(checkpoints, directory, state, described, path_fields(settings))
        own: list[Logger] = [JsonLines(), *([Progress()] if progress else [])]
        training = _Training(model, train, valid, config, described, checkpoints, [*own, *loggers], errors)
        step = training.trace(make_step(graphdef, optimizer, config), state)

        for output in (*loggers, *own):  # those that may be missing come first
            output.start(directory, described, start)
            stack.callback(output.close)
        (directory / "figures").mkdir(exist_ok=True)
        write_settings(directory, described)
        record_versions(directory, start, resume=resume)
        return training.run(step, start, state, seconds)


def _resumed(
    checkpoints: Checkpoints, directory: Path, state: TrainState, described: Mapping[str, Any], paths: set[str]
) -> tuple[int, TrainState, float, dict[str, float]]:
    """Step, state, seconds and last errors of an interrupted run, if it had the settings described."""
    config, begun = directory / "config.json", has_begun(directory)
    if checkpoints.latest is not None or (config.exists() and not begun):
        check_same_settings(in_present_terms(read_settings(directory)), described, str(config), paths=paths)
    if config.exists() and not begun:  # interrupted before the first checkpoint
        return 0, state, 0.0, {}
    start, state = checkpoints.restore_latest(state)
    manifest = checkpoints.manifest(start)
    if "settings" in manifest:  # the config is in anyone's hands, the manifest is sealed
        saved = in_present_terms(manifest["settings"])
        check_same_settings(saved, described, str(checkpoints.path(start)), paths=paths)
    return start, state, manifest["seconds"], manifest["metrics"]


@dataclasses.dataclass
class _Training(Generic[Model]):
    """One call of `fit`, past its checks."""

    model: Model
    train: Samples | Examples
    valid: Mapping[str, Samples] | Mapping[str, Examples]
    config: TrainingConfig
    settings: Mapping[str, Any]
    checkpoints: Checkpoints
    outputs: Sequence[Logger]
    errors: dict[str, float]

    def trace(self, step: Any, state: TrainState) -> jax.stages.Lowered:
        """The step ready to compile; a model that cannot run on some samples fails here, with nothing written."""
        for name, samples in self.valid.items():
            with _noted(f"on valid[{name!r}]"):
                trace_errors(self.model, samples, batch_size=self.config.batch_size)
        with _noted("on the training samples"):
            return step.lower(state, self._load(0))

    def run(self, lowered: jax.stages.Lowered, start: int, state: TrainState, seconds: float) -> Result[Model]:
        config, stopped = self.config, "completed"
        limit = config.time_limit_s or float("inf")
        if self.checkpoints.latest is None:  # a run killed early can be resumed, and a full disk shows now
            self.checkpoints.save(0, state, settings=self.settings)
            self.checkpoints.restore(state, step=0)  # whatever cannot be read here could not be resumed
        ahead = range(start, config.steps)
        if ahead and seconds > limit:
            ahead, stopped = ahead[:0], "time limit"
        step_fn: Any = lowered.compile() if ahead else None
        with _sigterm() as terminated, _prefetched(self._load, ahead) as batches:
            clock = _Clock(seconds)
            unreported: tuple[int, Batch | ExampleBatch, dict[str, Any]] | None = None
            for step, batch in enumerate(batches, start=start + 1):
                state, metrics = step_fn(state, batch)
                if unreported:  # while the device works on this step
                    self._report(*unreported, clock.seconds)
                unreported = step, batch, metrics
                if terminated():
                    stopped = "terminated"
                elif clock.seconds > limit and step < config.steps:
                    stopped = "time limit"
                last = step == config.steps or stopped != "completed"
                evaluated = (last and stopped != "terminated") or step % config.eval_every == 0
                if not (last or evaluated or step % config.checkpoint_every == 0):
                    continue
                self._report(*unreported, clock.seconds)
                unreported = None
                with clock.paused():
                    errors = self._evaluate(step, state) if evaluated else {}
                    if last or step % config.checkpoint_every == 0 or self._improves(errors):
                        self.checkpoints.save(
                            step, state, metrics=errors, seconds=clock.seconds, settings=self.settings
                        )
                if last:
                    break
            return Result(self._current_model(state), state, stopped, clock.seconds, self.errors)

    def _load(self, step: int) -> Batch | ExampleBatch:
        indices = batch_indices(len(self.train), self.config.batch_size, seed=self.config.seed, step=step)
        return jax.device_put(self.train[indices])

    def _report(self, step: int, batch: Batch | ExampleBatch, metrics: Mapping[str, Any], seconds: float) -> None:
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        if not values.pop("finite"):
            raise FloatingPointError(self._diagnose(step, batch, values))
        del values["culprit"]
        self._log(step, values | {"seconds": seconds})

    def _diagnose(self, step: int, batch: Batch | ExampleBatch, values: Mapping[str, Any]) -> str:
        arrays = {name: getattr(batch, name, None) for name in ("inputs", "targets", "initial")}
        bad = first_nonfinite({f"batch.{name}": array for name, array in arrays.items() if array is not None})
        if bad is None and values["culprit"] >= 0:
            params = leaf_names(split_model(self.model, train=True)[1])
            kind, number = divmod(values["culprit"], len(params))
            bad = f"{('the gradient', 'the new value')[kind]} of {params[number]}"
        return (
            f"step {step}: the loss is {values['loss']} and the gradient norm {values['grad_norm']}, on samples "
            f"{np.asarray(batch.index).tolist()}; first array that is not finite: {bad or 'the loss'}. "
            f"The state was not saved; the last checkpoint is that of step {self.checkpoints.latest}. "
            "Look at these samples, or start again with a smaller learning rate or a longer warm-up."
        )

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        model, errors = self._current_model(state), {}
        for name, samples in self.valid.items():
            means = mean_errors(model, samples, batch_size=self.config.batch_size)
            errors |= {error_name(name, quantity): value for quantity, value in means.items()}
        if errors:
            self.errors = errors
            self._log(step, errors)
        return errors

    def _improves(self, errors: Mapping[str, float]) -> bool:
        metric, best = self.checkpoints.best_metric, self.checkpoints.best
        if metric is None or metric not in errors:
            return False
        return best is None or errors[metric] < self.checkpoints.manifest(best)["metrics"][metric]

    def _current_model(self, state: TrainState) -> Model:
        graphdef, _, _ = split_model(self.model, train=False)
        return nnx.merge(graphdef, state.averaged, state.other)

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        for output in self.outputs:
            output.log(step, metrics)


class _Clock:
    """Seconds of training, with pauses for what is not training."""

    def __init__(self, seconds: float):
        self._origin = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._origin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begin = self.seconds
        yield
        self._origin = time.perf_counter() - begin


@contextlib.contextmanager
def _noted(note: str) -> Iterator[None]:
    """Adds to an error where it happened."""
    try:
        yield
    except Exception as error:
        error.add_note(f"(while tracing the model {note})")
        raise


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Yields whether SIGTERM has arrived; outside the main thread, which alone may handle it, it never has."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event.is_set
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _prefetched(load: Callable[[int], Any], steps: range) -> Iterator[Iterator[Any]]:
    """Batches in order, the next ones loaded on a thread while one is in use."""
    x64 = jax.config.read("jax_enable_x64")

    def task(step: int) -> Any:
        with jax.enable_x64(x64):  # set per thread
            return load(step)

    def batches() -> Iterator[Any]:
        pending: collections.deque[Future[Any]] = collections.deque()
        for step in steps:
            pending.append(pool.submit(task, step))
            if len(pending) > _PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    with ThreadPoolExecutor(1, thread_name_prefix="jaxop-data") as pool:
        try:
            yield batches()
        finally:
            pool.shutdown(cancel_futures=True)


def _check_arguments(model: Any, valid: Any, config: Any, run_dir: Any, settings: Any, loggers: Any) -> None:
    """Refuses what is not of its kind, before anything else is looked at."""
    check_type(model, "model", nnx.Module, "a flax.nnx.Module, such as operators.build(config, rngs=nnx.Rngs(0))")
    TrainingConfig.check(config)
    check_type(valid, "valid", Mapping, "a dict of validation sets by name, such as {'valid': samples}, or {}")
    for name in valid:
        check_type(name, "every name in valid", str, f"a string, such as {str(name)!r}")
    check_type(run_dir, "run_dir", (str, os.PathLike), "the path of a directory")
    if settings is not None:
        check_type(settings, "settings", Mapping, "a dict of what describes the run, or None")
    check_type(loggers, "loggers", Sequence, "a sequence of loggers, such as [training.TensorBoard()]")
    for logger in loggers:
        check_type(logger, "every one of loggers", Logger, "a training.Logger with start, log and close")


def _check_samples(
    model: nnx.Module,
    train: Samples | Examples,
    valid: Mapping[str, Samples] | Mapping[str, Examples],
    config: TrainingConfig,
) -> None:
    fitting = Examples if config.loss == "cross_entropy" else Samples
    for name, given in (("train", train), *((f"valid[{name!r}]", samples) for name, samples in valid.items())):
        if not isinstance(given, fitting):
            raise TypeError(
                f"{name} must be jaxop.data.{fitting.__name__} for loss={config.loss!r}, got {type(given).__name__}; "
                '"cross_entropy" goes with Examples, "l2" and "h1" with Samples.'
            )
    if config.batch_size > len(train):
        raise ValueError(
            f"batch_size={config.batch_size} exceeds the {len(train)} training samples; take at most {len(train)}."
        )
    expected = _signature(train)
    for name, samples in valid.items():
        for what, received in _signature(samples).items():
            if received != expected[what]:
                raise ValueError(
                    f"valid[{name!r}] has {received} {what}, the training samples have {expected[what]}; "
                    "validation sets may differ in grid and size only."
                )
    for samples in (train, *valid.values()):
        if isinstance(samples, Examples):
            check_classes(model, samples)


def _signature(samples: Any) -> dict[str, Any]:
    if isinstance(samples, Examples):
        return {"shape of an input": samples.inputs.shape[1:], "shape of a label": samples.labels.shape[1:]}
    return {
        "space dimensions": samples.target_domain.dim,
        "input channels": samples.inputs.shape[-1],
        "target channels": samples.targets.shape[-1],
        "initial channels": 0 if samples.initial is None else samples.initial.shape[-1],
    }
