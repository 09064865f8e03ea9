"""What an experiment trains, once its data are known: on pairs of functions, or on the windows of trajectories."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array

from jaxop import data, dynamics, operators, training
from jaxop._validation import check_share
from jaxop.data import DataSource, Trajectories
from jaxop.domains import Decomposed, Domain
from jaxop.experiments import report, rollout_report
from jaxop.experiments.experiment import AnyExperiment, DynamicsExperiment
from jaxop.experiments.problems import FileData
from jaxop.experiments.record import describe
from jaxop.experiments.sets import AnySamples, AnySet, SeriesSets, Sets, grid_name
from jaxop.experiments.settings import input_domain, prepared
from jaxop.nn import BuildableConfig
from jaxop.operators import ConstraintConfig, OperatorConfig
from jaxop.operators.constraint import innermost
from jaxop.training.losses import Loss
from jaxop.training.precision import config_in_precision


@dataclasses.dataclass(frozen=True)
class Task:
    """What the training of an experiment takes, and what follows it.

    Attributes:
        config: config of the operator, or of the stepper around it.
        chosen: the fields of the operator's config that were chosen to suit the grids.
        make: returns the untrained model.
        train: the training set, as steps see it.
        valid: the validation sets.
        loss: the loss; None means the one that the training names.
        record: the settings that the run records.
        about: the sets in words, by their use.
        check: raises an error if a model cannot run on the test sets.
        report: evaluates a model on the test sets, see `jaxop.experiments.report.write_report`.
    """

    config: BuildableConfig
    chosen: Mapping[str, int]
    make: Callable[[], nnx.Module]
    train: DataSource
    valid: Mapping[str, DataSource]
    loss: Loss | None
    record: dict[str, object]
    about: Mapping[str, str]
    check: Callable[[Any], None]
    report: Callable[..., object]

    @property
    def operator(self) -> OperatorConfig:
        """The config of the operator itself, inside of all others around it."""
        return innermost(self.config.operator if isinstance(self.config, dynamics.StepperConfig) else self.config)


def make_task(experiment: AnyExperiment, sets: Sets | SeriesSets) -> Task:
    """Returns what an experiment trains on its sets.

    Raises:
        TypeError: if the sets are trajectories and the experiment does not say how a step is learnt, or the reverse.
        ValueError: if the operator cannot run on the data.
        NotImplementedError: if devices shall share the nodes of a function, and cannot.
    """
    if isinstance(experiment, DynamicsExperiment):
        if not isinstance(sets, SeriesSets):
            raise TypeError(
                f"{type(experiment.data).__name__}.load must return experiments.SeriesSets in a DynamicsExperiment, "
                f"got {type(sets).__name__}; use experiments.Experiment for pairs of functions."
            )
        return _on_trajectories(experiment, sets)
    if isinstance(sets, SeriesSets):
        raise TypeError(
            f"{type(experiment.data).__name__} has trajectories: use experiments.DynamicsExperiment, which says how a "
            "step is learnt, in place of experiments.Experiment."
        )
    return _on_pairs(experiment, sets)


def build(config: OperatorConfig, train: AnySamples, *, seed: int) -> operators.Standardized:
    """Returns the operator in physical units, standardised by the statistics of the training set.

    Args:
        config: the config of the operator.
        train: the training samples.
        seed: the seed of the parameters.
    """
    return _standardized(config, data.standardization(train), seed)


def _standardized(
    config: OperatorConfig | ConstraintConfig, statistics: Mapping[str, Any], seed: int
) -> operators.Standardized:
    return operators.Standardized(operators.build(config, rngs=nnx.Rngs(seed)), **statistics)


def _on_pairs(experiment: AnyExperiment, sets: Sets) -> Task:
    settings = experiment.training
    if isinstance(experiment.model, OperatorConfig):
        config, chosen = experiment.model, {}
    else:
        config, chosen = experiment.model.for_data(sets.train, [*sets.valid.values(), *sets.test.values()])
    config = experiment.constraints.around(config_in_precision(config, settings.precision), input_domain(sets.train))
    if experiment.mesh.domain > 1:
        config.check_shares_nodes(experiment.mesh.domain)
    counted = _counted(sets.valid, sets.test)
    if sets.test is sets.valid:
        counted["test"] += ", the validation set, which chooses the checkpoint"
    train = prepared({"training": sets.train}, config)["training"]
    statistics = data.standardization(train)
    deviations = statistics["output_std"]
    statistics["output_mean"] = experiment.constraints.means(statistics["input_mean"], statistics["output_mean"])
    sets = Sets(train, prepared(sets.valid, config), prepared(sets.test, config), sets.random_nodes)
    drawn = "" if sets.random_nodes is None else f", {sets.random_nodes} random nodes in a step"
    return Task(
        config=config,
        chosen=chosen,
        make=functools.partial(_standardized, config, statistics, settings.seed),
        train=sets.drawn,
        valid=sets.valid,
        loss=_pinball(experiment, deviations),
        record=describe(experiment, config, train),
        about={
            "training": f"{len(train)} samples on {grid_name(train)}{drawn}",
            **counted,
            **_kept(experiment, config, input_domain(train)),
        },
        check=functools.partial(report.check, sets=sets.test),
        report=functools.partial(
            report.write_report,
            sets=sets.test,
            mesh=experiment.mesh,
            same_functions=not isinstance(experiment.data, FileData),
        ),
    )


def _on_trajectories(experiment: DynamicsExperiment, sets: SeriesSets) -> Task:
    stepping, settings = experiment.stepping, experiment.training
    if experiment.quantile is not None:
        raise ValueError(f"quantile={experiment.quantile} is for pairs of functions; leave it out for a stepper.")
    loss = stepping.loss(settings.loss)
    if experiment.mesh.domain > 1:
        raise NotImplementedError(
            f"mesh.domain={experiment.mesh.domain}: devices cannot share the nodes of a state; use the mesh axes "
            "'data' and 'model'."
        )
    windows = stepping.windows(sets.train, "training")
    for name, one in sets.valid.items():
        stepping.valid_windows(one, name)
    config, chosen = stepping.config_for(experiment.model, windows, [*sets.valid.values(), *sets.test.values()])
    experiment.constraints.check_changes(stepping.output)
    inside = config_in_precision(innermost(config.operator), settings.precision)
    config = dataclasses.replace(config, operator=experiment.constraints.around(inside, sets.train.domain))
    train, valid, test = (prepared(part, config.operator) for part in ({"training": sets.train}, sets.valid, sets.test))
    windows = stepping.windows(train["training"], "training")
    statistics = windows.statistics()
    steps = f"{len(windows)} windows of {stepping.history} + {stepping.steps} of them"
    return Task(
        config=config,
        chosen=chosen,
        make=lambda: dynamics.make_stepper(config, statistics, rngs=nnx.Rngs(settings.seed)),
        train=windows,
        valid={name: stepping.valid_windows(one, name) for name, one in valid.items()},
        loss=loss,
        record=describe(experiment, config, sets.train),
        about={
            "training": f"{_described(sets.train)}, {steps}",
            **_counted(sets.valid, sets.test),
            "step": ", ".join([f"dt {statistics.dt:g}", stepping.output, *filter(None, [changed_settings(stepping)])]),
            **_kept(experiment, config.operator, sets.train.domain),
        },
        check=functools.partial(rollout_report.check, sets=test),
        report=functools.partial(rollout_report.write_report, sets=test),
    )


def _pinball(experiment: AnyExperiment, deviations: Array) -> Loss | None:
    """Returns the pinball loss in units of the deviations of the targets, if the experiment has a quantile."""
    if experiment.quantile is None:
        return None
    check_share(experiment.quantile, "quantile", zero=False)
    if experiment.training.loss != "l2":
        raise ValueError(
            f"quantile={experiment.quantile} takes the place of training.loss={experiment.training.loss!r}: leave one "
            "of the two out."
        )
    units = tuple(float(deviation) for deviation in deviations)
    return functools.partial(training.pinball_loss, level=experiment.quantile, units=units)


def _described(trajectories: Trajectories) -> str:
    return f"{len(trajectories)} trajectories of {trajectories.steps} times on {grid_name(trajectories)}"


def _counted(valid: Mapping[str, AnySet], test: Mapping[str, AnySet]) -> dict[str, str]:
    parts = {"validation": valid, "test": test}
    return {kind: ", ".join(f"{name} ({len(one)})" for name, one in part.items()) for kind, part in parts.items()}


def _kept(
    experiment: AnyExperiment, config: OperatorConfig | ConstraintConfig, domain: Domain | Decomposed
) -> dict[str, str]:
    kept = changed_settings(experiment.constraints)
    kept += experiment.constraints.note(config, domain)
    loss = {} if experiment.quantile is None else {"loss": f"pinball loss of the {experiment.quantile:g} quantile"}
    return loss | ({"constraints": kept} if kept else {})


def changed_settings(settings: Any) -> str:
    """Returns the fields of a dataclass that differ from their defaults, in words."""
    values = [(field.name, getattr(settings, field.name), field.default) for field in dataclasses.fields(settings)]
    return ", ".join(f"{name} {value}" for name, value, default in values if value != default)
