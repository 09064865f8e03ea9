"""Checks of the arguments of `jaxop.training.fit`, before anything is written."""

import os
from collections.abc import Mapping, Sequence

from flax import nnx

from jaxop._validation import check_type
from jaxop.data import DataSource, Examples, RaggedSamples, RandomNodes, Samples
from jaxop.data.source import check_source
from jaxop.training.config import TrainingConfig
from jaxop.training.evaluation import check_classes
from jaxop.training.loggers import Logger
from jaxop.training.losses import Loss, check_loss
from jaxop.training.optimizer import EvalParams, Optimizer, check_optimizer

RESERVED = ("training", "train", "valid", "valid_sets")
"""Names in the recorded settings that `fit` fills in itself; "optimizer" and "loss" are added if they are given."""


FUNCTIONS = (Samples, RaggedSamples, RandomNodes)
"""Sets of pairs of functions."""


def check_arguments(
    *,
    model: nnx.Module,
    valid: Mapping[str, DataSource],
    config: TrainingConfig,
    run_dir: str | os.PathLike[str],
    settings: Mapping[str, object] | None,
    loggers: Sequence[Logger],
    optimizer: Optimizer | None,
    loss: Loss | None,
    eval_params: EvalParams | None,
) -> None:
    """Raises ``TypeError`` if an argument has a wrong type."""
    check_type(model, "model", nnx.Module, "a flax.nnx.Module, such as operators.build(config, rngs=nnx.Rngs(0))")
    TrainingConfig.check(config)
    check_type(valid, "valid", Mapping, "a dict of validation sets by name, such as {'valid': samples}, or {}")
    for name in valid:
        check_type(name, "every name in valid", str, f"a string, such as {str(name)!r}")
    check_type(run_dir, "run_dir", (str, os.PathLike), "the path of a directory")
    if settings is not None:
        check_type(settings, "settings", Mapping, "a dict that describes the run, or None")
    check_type(loggers, "loggers", Sequence, "a sequence of loggers, such as [training.TensorBoard()]")
    for logger in loggers:
        check_type(logger, "every logger in loggers", Logger, "a training.Logger with start, log and close")
    if optimizer is not None:
        check_optimizer(optimizer)
    if loss is not None:
        check_loss(loss)
    if eval_params is not None and not callable(eval_params):
        raise TypeError(
            "eval_params must be a function from (state of the optimiser, parameters) to the parameters to evaluate "
            f"with, or None, got {type(eval_params).__name__}."
        )


def check_sources(
    model: nnx.Module,
    train: DataSource,
    valid: Mapping[str, DataSource],
    config: TrainingConfig,
    loss: Loss | None,
) -> None:
    """Raises ``TypeError`` or ``ValueError`` if sets do not fit each other, the config or the model in size or kind."""
    fitting, other = ("Examples", FUNCTIONS) if config.loss == "cross_entropy" else ("Samples", Examples)
    for name, given in (("train", train), *((f"valid[{name!r}]", source) for name, source in valid.items())):
        check_source(given, name)
        if loss is None and isinstance(given, other):
            raise TypeError(
                f"{name} must be jaxop.data.{fitting} for loss={config.loss!r}, got {type(given).__name__}; "
                '"cross_entropy" goes with Examples, "l2" and "h1" with Samples.'
            )
    if config.batch_size > len(train):
        raise ValueError(
            f"batch_size={config.batch_size} exceeds the {len(train)} training samples; take at most {len(train)}."
        )
    if loss is not None:
        return
    expected = _signature(train)
    for name, source in valid.items():
        for what, received in _signature(source).items():
            if received != expected.get(what, received):
                raise ValueError(
                    f"valid[{name!r}] has {received} {what}, but the training samples have {expected[what]}; "
                    "validation sets may differ only in grid and size."
                )
    for source in (train, *valid.values()):
        if isinstance(source, Examples):
            check_classes(model, source)


def _signature(source: DataSource) -> dict[str, int | tuple[int, ...]]:
    if isinstance(source, Examples):
        return {"shape of an input": source.inputs.shape[1:], "shape of a label": source.labels.shape[1:]}
    if not isinstance(source, FUNCTIONS):
        return {}
    return {
        "space dimensions": source.dim,
        "input channels": source.in_channels,
        "target channels": source.out_channels,
        "initial channels": source.initial_channels,
    }
