"""Options of the command line, read by tyro, with rules for the types of this package."""

import dataclasses
import functools
import inspect
import operator
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from jaxop import operators, training
from jaxop.experiments.calibration import Calibration
from jaxop.experiments.evaluation import Evaluation
from jaxop.experiments.experiment import AnyExperiment, Recipe
from jaxop.experiments.prediction import Prediction
from jaxop.experiments.problems import FileData
from jaxop.experiments.record import recorded_experiment
from jaxop.experiments.series import SeriesData
from jaxop.experiments.settings import OperatorSettings
from jaxop.experiments.terminal import needs_extra

with needs_extra("the command line"):
    import tyro
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveConstructorSpec,
        PrimitiveTypeInfo,
        StructConstructorSpec,
        StructFieldSpec,
        StructTypeInfo,
    )

Result = TypeVar("Result")

_FREE_ORDER = (tyro.conf.CascadeSubcommandArgs,)
"""Options may stand before or after the subcommand that they belong to."""


def parse(kind: Callable[..., Result], arguments: Sequence[str], **options: Any) -> Result:
    """Reads options of a command line. Empty values are errors, because they would mean the current directory.

    Args:
        kind: a dataclass, or a function whose parameters are the options.
        arguments: the arguments of the command line.
        **options: further arguments of ``tyro.cli``.

    Returns:
        The dataclass, or the result of the function.

    Raises:
        SystemExit: with status 2 and a message on stderr if arguments cannot be read, with status 0 after ``--help``.
    """
    return tyro.cli(kind, args=list(arguments), registry=_registry(), **options)


def of_recipe(recipe: Recipe, arguments: Sequence[str], *, prog: str) -> AnyExperiment:
    """Returns the experiment of a recipe with the settings of a command line.

    Two settings change the defaults of others:

    - ``--training.steps`` below the recipe's warm-up shortens the warm-up, so that its share of the steps stays.
    - ``--data.operator`` of files offers the options of that operator. Without it the operators are subcommands,
      ``model:fano`` and so on; the recipe's own operator is the default.

    Args:
        recipe: gives the defaults.
        arguments: the options.
        prog: name of the command in the help.

    Raises:
        SystemExit: see `parse`.
        ValueError: if the operator is unknown.
    """
    ahead, _ = tyro.cli(_Ahead, args=list(arguments), return_unknown_args=True, add_help=False)
    default = _with_share_of_warmup(recipe.experiment, ahead.steps)
    model: Any = type(default.model)
    if isinstance(default.data, FileData | SeriesData) and isinstance(default.model, OperatorSettings):
        if ahead.operator is None:
            model = _any_operator(default.model)
        else:
            default = dataclasses.replace(default, model=OperatorSettings(ahead.operator))
    if isinstance(default.data, FileData | SeriesData) and default.data.train == Path():
        data = dataclasses.replace(default.data, train=tyro.MISSING)
        default = dataclasses.replace(default, data=data)
    kind = _specialised(default, model)
    experiment = parse(kind, arguments, default=default, prog=prog, description=recipe.about, config=_FREE_ORDER)
    if isinstance(experiment.data, FileData | SeriesData) and isinstance(experiment.model, OperatorSettings):
        data = dataclasses.replace(experiment.data, operator=experiment.model.operator)
        experiment = dataclasses.replace(experiment, data=data)
    return experiment


def of_run(run: training.Run, arguments: Sequence[str], *, prog: str, description: str) -> AnyExperiment:
    """Returns the experiment that continues a run, with the settings of a command line.

    Raises:
        SystemExit: see `parse`.
        ValueError: if the record of the run cannot be read.
    """
    default = recorded_experiment(run)
    kind = _specialised(default, type(default.model))
    return parse(kind, arguments, default=default, prog=prog, description=description, config=_FREE_ORDER)


def _specialised(default: AnyExperiment, model: Any) -> Any:
    """Returns the class of an experiment with the types of its data and of its model."""
    kind: Any = type(default)
    return kind[type(default.data), model]


def of_evaluation(arguments: Sequence[str], *, prog: str, description: str) -> Evaluation:
    """Returns the settings of an evaluation from a command line; raises the errors of `parse`."""
    positional = (tyro.conf.PositionalRequiredArgs, tyro.conf.PositionalMetavarFromFieldName)
    return parse(Evaluation, arguments, prog=prog, description=description, config=positional)


def of_prediction(arguments: Sequence[str], *, prog: str, description: str) -> Prediction:
    """Returns the settings of predictions from a command line; raises the errors of `parse`."""
    positional = (tyro.conf.PositionalRequiredArgs, tyro.conf.PositionalMetavarFromFieldName)
    return parse(Prediction, arguments, prog=prog, description=description, config=positional)


def of_calibration(arguments: Sequence[str], *, prog: str, description: str) -> Calibration:
    """Returns the settings of a calibration from a command line; raises the errors of `parse`."""
    positional = (tyro.conf.PositionalRequiredArgs, tyro.conf.PositionalMetavarFromFieldName)
    return parse(Calibration, arguments, prog=prog, description=description, config=positional)


@dataclasses.dataclass(frozen=True)
class _Ahead:
    """Settings that change the defaults of others; `parse` reads them again with all others."""

    operator: Annotated[str | None, tyro.conf.arg(name="data.operator")] = None
    steps: Annotated[str | None, tyro.conf.arg(name="training.steps")] = None


def _with_share_of_warmup(default: AnyExperiment, steps: str | None) -> AnyExperiment:
    settings = default.training
    if steps is None or not steps.isdecimal() or int(steps) >= settings.warmup_steps:
        return default
    warmup = int(steps) * settings.warmup_steps // settings.steps
    return dataclasses.replace(default, training=dataclasses.replace(settings, warmup_steps=warmup))


def _any_operator(default: OperatorSettings) -> Any:
    """Returns the union of the settings of all operators, each a subcommand with the operator's name.

    Args:
        default: the settings of one operator; the others start from their own defaults.
    """
    choices = []
    for name, kind in operators.CONFIGS.items():
        settings = default if name == default.operator else OperatorSettings(name)
        choice = tyro.conf.subcommand(name, default=settings, description=sys.modules[kind.__module__].__doc__)
        choices.append(Annotated[OperatorSettings, choice])
    return functools.reduce(operator.or_, choices)


@functools.cache
def _registry() -> ConstructorRegistry:
    """Returns the rules of this package, which take precedence over those of tyro."""
    rules = ConstructorRegistry()
    rules.primitive_rule(_text)
    rules.struct_rule(_operator_settings)
    return rules


def _text(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str | Path] | None:
    kind = info.type
    if kind not in (str, Path):
        return None

    def read(arguments: list[str]) -> str | Path:
        if not arguments[0]:
            raise ValueError("'' is empty; give a value, or leave the option out")
        return kind(arguments[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH" if kind is Path else "STR",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def _operator_settings(info: StructTypeInfo) -> StructConstructorSpec | None:
    default = info.default
    if not isinstance(default, OperatorSettings):
        return None
    helps = _helps(default.config_type)
    fields = tuple(
        StructFieldSpec(name, kind, default.settings.get(name, value), helptext=helps.get(name))
        for name, (kind, value) in default.fields().items()
    )
    return StructConstructorSpec(functools.partial(OperatorSettings, default.operator), fields)


def _helps(kind: type) -> dict[str, str]:
    """Returns the text on each attribute from the docstring of a config."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    helps: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        text = line.strip()
        if not line.startswith("    "):  # the end of the section
            break
        if not line.startswith("     "):
            name, _, text = text.partition(": ")
        helps[name] = f"{helps.get(name, '')} {text}".strip()
    return helps
