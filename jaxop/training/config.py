"""Settings of a training run, checked when they are built, and their JSON form."""

import dataclasses
import json
import math
import numbers
import os
import re
from collections.abc import Collection, Mapping

from jaxop._config import from_dict
from jaxop._config import to_json as to_json
from jaxop._validation import check_name, check_type, is_integer

SCHEDULES = ("cosine", "constant")
"""Schedules of the learning rate after the warm-up."""

LOSSES = {"l2": "L2", "h1": "H1", "cross_entropy": "cross_entropy"}
"""Training losses: the mean over the batch of the relative norm in L2 or H1, or of the cross-entropy."""

PRECISIONS = {"bf16": "bfloat16"}
"""Precisions of the computation besides that of the model itself, and the dtype that each gives the model."""

REMAT = ("layers",)
"""What the backward pass may compute again instead of keeping it."""

_MAY_CHANGE = ("eval_every", "checkpoint_every", "keep_last", "time_limit_s")
"""Fields of a run that may change when it is resumed, because they do not change the parameters."""

_CONTENTS = re.compile(r"train\..*\.contents|valid_sets\..*")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run, except for the operator, the data, and an optimiser or loss of the user.

    The learning rate at step t of T, with W warm-up steps, is η (t+1)/W for t < W and then
    η_end + (η − η_end)·½(1 + cos π(t−W)/(T−W)), or η throughout for ``schedule="constant"``. It depends on the step
    alone, also under a time limit, so that a run that is stopped early has taken the same steps as a longer run.

    Attributes:
        steps: optimiser steps T of the whole run.
        batch_size: samples per optimiser step.
        accumulate: number of micro-batches that a batch is split into, to save memory; it divides ``batch_size``.
            The gradient is still the gradient of the whole batch.
        learning_rate: peak learning rate η.
        warmup_steps: W, steps of linear warm-up.
        schedule: "cosine" or "constant", one of `SCHEDULES`.
        final_learning_rate: η_end, the end of the cosine.
        weight_decay: decoupled decay rate of AdamW, on matrices only (see `make_optimizer`).
        clip_norm: largest global norm of a gradient; longer gradients are scaled to it. 0 disables clipping.
        ema_decay: β of the moving average of the parameters that evaluations use; 0 disables the average.
        loss: "l2" or "h1" (the mean relative error in this norm over the batch), or "cross_entropy" for
            `jaxop.data.Examples`. If `jaxop.training.fit` is given a ``loss``, this field is not used. If it is given
            an ``optimizer``, the fields from ``learning_rate`` to ``clip_norm`` are not used.
        precision: None computes in the model's own ``dtype``. "bf16" sets it to bfloat16 in a model of jaxop: pointwise
            maps, and the queries, keys and values of attention. Products are summed in float32. Parameters, their
            gradients, the optimiser, averages, quadrature weights, scores, spectral parts, statistics of norms, and
            losses stay in float32.
        remat: None keeps what the backward pass needs. "layers" keeps the input of every layer and computes the rest
            again, one layer at a time, which takes one more forward pass. It saves memory in deep models.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints.
        keep_last: number of newest checkpoints that are kept, in addition to the best one.
        seed: seed of the data order and of every random number drawn in a step, 0 ≤ seed < 2³².
        members: number E of operators that are trained together as one program, with other initial values and another
            order of the data each, see `member_seeds`. The result is a `jaxop.operators.Ensemble`. Every member takes
            batches of ``batch_size`` samples; clipping, averages and the optimiser are those of each member alone. A
            step takes the time and memory of E steps.
        time_limit_s: seconds of training after which the run stops and saves, for comparisons at equal time. They are
            summed over all resumptions, without compilation, evaluation and saving. None means no limit.

    Raises:
        ValueError: if a value is invalid; the message names field, value and remedy.

    Example:
        >>> from jaxop import training
        >>> training.TrainingConfig(steps=100, batch_size=8, loss="h1").schedule
        'cosine'
        >>> training.TrainingConfig(steps=100, batch_size=8, schedule="cosin")
        Traceback (most recent call last):
        ValueError: schedule='cosin' is unknown: did you mean 'cosine'?
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    schedule: str = "cosine"
    final_learning_rate: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    loss: str = "l2"
    precision: str | None = None
    remat: str | None = None
    eval_every: int = 200
    checkpoint_every: int = 200
    keep_last: int = 2
    seed: int = 0
    time_limit_s: float | None = None
    members: int = 1

    def __post_init__(self):
        counts = ("steps", "batch_size", "accumulate", "eval_every", "checkpoint_every", "keep_last", "members")
        for name in (*counts, "warmup_steps", "seed"):
            self._check(name, is_integer(getattr(self, name)), "must be an integer")
        for name in ("learning_rate", "final_learning_rate", "weight_decay", "clip_norm", "ema_decay", "time_limit_s"):
            value = getattr(self, name)
            optional = name == "time_limit_s" and value is None
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            self._check(name, optional or is_number, "must be a number")
        for name in counts:
            self._check(name, getattr(self, name) >= 1, "must be at least 1")
        self._check("steps", self.steps < 2**31, "must lie below 2^31: steps are counted in 32 bits")
        check_name(self.schedule, "schedule", SCHEDULES)
        check_name(self.loss, "loss", LOSSES)
        for name, known in (("precision", PRECISIONS), ("remat", REMAT)):
            if (value := getattr(self, name)) is not None:
                check_name(value, name, known)
        for name in ("learning_rate", "final_learning_rate", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            self._check(name, math.isfinite(value) and value >= 0, "must be finite and not negative")
        self._check("learning_rate", self.learning_rate > 0, "must be positive")
        self._check(
            "batch_size",
            self.batch_size % self.accumulate == 0,
            f"must be a multiple of accumulate={self.accumulate}; the nearest are "
            f"{max(self.batch_size // self.accumulate, 1) * self.accumulate} and "
            f"{(self.batch_size // self.accumulate + 1) * self.accumulate}",
        )
        self._check(
            "warmup_steps",
            0 <= self.warmup_steps <= self.steps,
            f"must lie between 0 and steps={self.steps}; 0 means no warm-up",
        )
        self._check(
            "final_learning_rate",
            self.final_learning_rate <= self.learning_rate,
            f"must not exceed learning_rate={self.learning_rate}",
        )
        self._check("ema_decay", 0 <= self.ema_decay < 1, "must lie in [0, 1)")
        self._check("seed", 0 <= self.seed < 2**32, "must lie in [0, 2^32)")
        if self.time_limit_s is not None:
            positive = math.isfinite(self.time_limit_s) and self.time_limit_s > 0
            self._check("time_limit_s", positive, "must be positive and finite, or None for no limit")

    @classmethod
    def check(cls, config: object) -> None:
        """Raises ``TypeError`` unless ``config`` is a `TrainingConfig`."""
        expected = "a training.TrainingConfig, made by TrainingConfig(steps=..., ...) or TrainingConfig.from_dict"
        check_type(config, "config", cls, expected)

    def _check(self, name: str, valid: bool, rule: str) -> None:
        if not valid:
            raise ValueError(f"{name}={getattr(self, name)!r} {rule}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TrainingConfig":
        """Returns the config with these fields; all other fields have their defaults.

        Args:
            values: field names and values, such as the ``"training"`` entry of a run's ``config.json``.

        Raises:
            TypeError: if ``values`` is not a dict.
            ValueError: if a field is unknown (the message names the closest names) or a value is invalid.

        Example:
            >>> from jaxop import training
            >>> training.TrainingConfig.from_dict({"stepps": 10})
            Traceback (most recent call last):
            ValueError: TrainingConfig has no field 'stepps': did you mean 'steps' or 'warmup_steps'?
        """
        return from_dict(cls, values, name="training")


def path_fields(value: object, name: str = "") -> set[str]:
    """Returns the dotted names of the settings that are paths or sequences of paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        parts = (path_fields(item, f"{name}.{key}" if name else str(key)) for key, item in value.items())
        return set().union(*parts)
    items = value if isinstance(value, list | tuple) else [value]
    return {name} if any(isinstance(item, os.PathLike) for item in items) else set()


def check_same_settings(
    saved: Mapping[str, object], current: Mapping[str, object], source: str, *, paths: Collection[str] = ()
) -> None:
    """Raises ``ValueError`` with every field in which the saved settings of a run differ from the current ones.

    Fields of `TrainingConfig` that do not change the parameters may differ: how often to evaluate and to save, how
    many checkpoints to keep, and the time limit. Paths may differ if the contents of the samples were recorded. Earlier
    versions did not record all contents or the bound arguments of a loss; what is missing is not compared.

    Args:
        saved: JSON settings that the run was started with.
        current: JSON settings to resume it with.
        source: file of the saved settings, for the message.
        paths: names of the fields that are paths.

    Raises:
        ValueError: if they differ.
    """
    old, new = flatten(saved), flatten(current)
    free = {f"training.{name}" for name in _MAY_CHANGE}
    if "valid_sets" in saved or "train.inputs.contents" in old:
        free |= {*paths}
    else:
        new = {name: value for name, value in new.items() if not _CONTENTS.fullmatch(name)}
    if isinstance(recorded := saved.get("loss"), Mapping) and recorded.keys() == {"function"}:
        new = {name: value for name, value in new.items() if not name.startswith("loss.arguments")}
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name, ...) != new.get(name, ...)]
    differences = [
        f"  {name}: {json.dumps(old[name]) if name in old else 'absent'} -> "
        f"{json.dumps(new[name]) if name in new else 'absent'}"
        for name in names
        if name not in free
    ]
    if differences:
        raise ValueError(
            f"the run was started with other settings or samples ({source} -> now):\n" + "\n".join(differences) + "\n"
            "Resume it with the settings and samples it was started with, or start a new run in another directory."
        )


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Returns the values in nested dicts by their dotted names."""
    if isinstance(value, Mapping) and value:
        items: dict[str, object] = {}
        for key, item in value.items():
            items |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return items
    return {prefix: value}
