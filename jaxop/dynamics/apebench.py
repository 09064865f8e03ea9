"""Scenarios of APEBench: their data as trajectories, steppers trained in them, and results in their tables.

APEBench (Koehler, Niedermayr, Westermann, Thuerey, 2024) is a benchmark of networks that step partial differential
equations. Its scenarios fix an equation, training and test sets, an optimiser and metrics. This module needs the
package apebench: ``pip install 'jaxop[apebench]'``. Its functions take any scenario object of it, also your own.

A scenario that is called trains a network of APEBench and returns a table with one row per seed. `train` and `table`
return such tables for steppers, so that both can be joined::

    scenario = apebench.scenario("phy_ks_cons")
    ours, steppers = apebench.train(scenario, "tno", seeds=(0, 1, 2), run_dir="runs/ks")
    theirs, _ = scenario(network_config="Conv;34;10;relu", num_seeds=3)
    errors = melt_metrics(pandas.concat([ours, theirs]), ["mean_nRMSE", "mean_correlation"])
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from flax import nnx

from jaxop import domains, training
from jaxop._validation import check_name, check_size, check_type, require
from jaxop.data import Trajectories
from jaxop.dynamics.rollout import rollout
from jaxop.dynamics.stepper import Stepper, StepperConfig, make_stepper
from jaxop.dynamics.unrolled import UnrolledLoss

SUBSETS = ("train", "test")
"""The sets of a scenario."""

_PURPOSE = "scenarios of APEBench"


Scenario: TypeAlias = Any
"""A scenario of APEBench, an ``apebench.BaseScenario``, or any object with its methods."""


def scenario(name: str, **fields: Any) -> Scenario:
    """Returns a scenario of APEBench.

    Args:
        name: its name in ``apebench.scenarios.scenario_dict``, such as "phy_ks_cons" or "phy_kolm_flow".
        fields: fields that differ from its defaults, such as ``num_points=64``, ``num_spatial_dims=2`` or
            ``optim_config="adam;2_000;warmup_cosine;0.0;1e-3;200"``.

    Raises:
        ImportError: if apebench is not installed.
        ValueError: if the name is unknown; the message has the closest names.
    """
    known = require("apebench", _PURPOSE, extra="apebench").scenarios.scenario_dict
    check_name(name, "name", known)
    return known[name](**fields)


def trajectories(scenario: Scenario, subset: str = "train") -> Trajectories:
    """Returns the solutions of a scenario on a periodic grid, with the initial states first.

    Args:
        scenario: see `scenario`.
        subset: "train" or "test".

    Returns:
        Trajectories of shape (samples, steps + 1, nodes, channels), with time in the unit of the solver.

    Raises:
        ValueError: if ``subset`` is unknown, the scenario does not step in time, or a solution is not finite.

    Cost: the scenario solves its equation at every call.

    Example:
        >>> import types
        >>> import numpy as np
        >>> from jaxop.dynamics import apebench
        >>> solver = types.SimpleNamespace(domain_extent=2.0, dt=0.1)
        >>> class Still:
        ...     num_spatial_dims = 2
        ...     def get_ref_stepper(self):
        ...         return solver
        ...     def get_train_data(self):
        ...         return np.ones((3, 5, 1, 8, 8), np.float32)
        >>> apebench.trajectories(Still())
        Trajectories(3 of 5 times on 64 nodes, 1 channel, float32)
    """
    check_name(subset, "subset", SUBSETS)
    return _as_trajectories(scenario, scenario.get_train_data() if subset == "train" else scenario.get_test_data())


def train(
    scenario: Scenario,
    operator: str = "fno",
    *,
    run_dir: str | os.PathLike[str],
    method: str = "one",
    seeds: Sequence[int] = (0,),
    noise: float = 0.0,
    output: str = "delta",
    progress: bool = True,
    **choices: Any,
) -> tuple[Any, list[Stepper]]:
    """Trains a stepper with every seed on the data of a scenario and returns their errors as its table.

    The optimiser with its schedule, the number of steps and the batch size are those of the scenario. The loss is
    `UnrolledLoss`, the relative L2 error, in place of the mean squared error.

    Args:
        scenario: see `scenario`.
        operator: short name of the operator, see `StepperConfig.for_data`.
        run_dir: folder of the runs, one for each seed.
        method: "one" for one step, "sup;k" for k steps along the stepper's own predictions, "sup;k;true" for k steps
            without gradients between them: names of APEBench. It does not train "div" methods, which call the solver.
        seeds: of parameters and batches.
        noise: see `UnrolledLoss`.
        output: "delta" or "state", see `Stepper`.
        progress: whether to display progress.
        choices: fields of the operator's config.

    Returns:
        The table (`pandas.DataFrame`) with ``net`` set to the name of the operator, and the trained steppers.

    Raises:
        ImportError: if pandas is not installed.
        ValueError: if ``method`` or a choice is unknown.
    """
    leads, cut = _method(method)
    series = trajectories(scenario)
    windows = series.windows(steps=leads)
    config = StepperConfig.for_data(windows, operator, output=output, **choices)
    statistics, steppers = windows.statistics(), []
    for seed in seeds:
        steps = scenario.num_training_steps
        result = training.fit(
            make_stepper(config, statistics, rngs=nnx.Rngs(seed)),
            windows,
            {},
            training.TrainingConfig(
                steps=steps, batch_size=scenario.batch_size, eval_every=steps, checkpoint_every=steps, seed=seed
            ),
            run_dir=Path(run_dir) / f"{scenario.get_scenario_name()}-{operator}-{seed}",
            optimizer=scenario.get_optimizer(),
            loss=UnrolledLoss(cut=cut, noise=noise),
            settings={"scenario": scenario.get_scenario_name(), "method": method},
            progress=progress,
        )
        steppers.append(result.model)
    return table(steppers, scenario, network=operator, method=method, seeds=seeds), steppers


def table(
    steppers: Sequence[Any],
    scenario: Scenario,
    *,
    network: str,
    method: str = "one",
    seeds: Sequence[int] | None = None,
    batch_size: int = 16,
) -> Any:
    """Returns the errors of test rollouts as the table that APEBench makes for its own networks.

    A stepper starts from the first state of each test trajectory and makes as many steps as the scenario tests. The
    scenario computes its own metrics of these rollouts.

    Args:
        steppers: one for each row; a `Stepper` with a history of 1, or any callable that `rollout` takes.
        scenario: see `scenario`.
        network: entry of the column ``net``.
        method: entry of the column ``train``.
        seeds: entries of the column ``seed``. None means 0, 1, ….
        batch_size: trajectories per call.

    Returns:
        A `pandas.DataFrame` with the columns ``scenario``, ``task``, ``train``, ``net``, ``seed``,
        ``scenario_kwargs``, METRIC_0001, METRIC_0002, … for every metric and step, and sample_rollout_000, …. Of the
        columns that APEBench adds for its own trainings, ``train_loss`` and ``aux`` are missing.

    Raises:
        ImportError: if pandas is not installed.
        ValueError: if there is no stepper, seeds and steppers differ in number, or a stepper needs a history.

    Cost: one rollout per stepper and test trajectory. The test set and the rollouts of one stepper are in memory.
    """
    pandas = require("pandas", "a table of APEBench", extra="apebench")
    check_size(batch_size, "batch_size")
    chosen = list(range(len(steppers)) if seeds is None else seeds)
    if not steppers or len(chosen) != len(steppers):
        raise ValueError(
            f"steppers must be at least one, with one seed for each, got {len(steppers)} and {len(chosen)} seeds."
        )
    for stepper in steppers:
        if isinstance(stepper, Stepper) and stepper.config.history != 1:
            raise ValueError(
                f"a scenario has one initial state, but a stepper takes a history of {stepper.config.history}; train "
                "it with history=1."
            )
    found = np.asarray(scenario.get_test_data())
    truth = _as_trajectories(scenario, found)
    rows = []
    for seed, stepper in zip(chosen, steppers, strict=True):
        states = _rollouts(stepper, truth, batch_size)
        grids = np.moveaxis(states, -1, 2).reshape(found[:, 1:].shape)
        row: dict[str, Any] = {
            "scenario": scenario.get_scenario_name(),
            "task": "predict",
            "train": method,
            "net": network,
            "seed": seed,
            "scenario_kwargs": "{}",
        }
        for metric, values in scenario.perform_tests_on_rollout(grids, found[:, 1:]).items():
            row |= {f"{metric}_{i + 1:04d}": float(value) for i, value in enumerate(np.asarray(values).ravel())}
        for i in range(min(scenario.num_trjs_returned, len(grids))):
            row[f"sample_rollout_{i:03d}"] = np.concatenate([found[i, :1], grids[i]]).tolist()
        rows.append(row)
    return pandas.DataFrame(rows)


def _as_trajectories(scenario: Scenario, states: Any) -> Trajectories:
    """Returns states (samples, times, channels, *grid) as trajectories."""
    solver = scenario.get_ref_stepper()
    if not hasattr(solver, "dt"):
        raise ValueError(
            f"scenario {scenario.get_scenario_name()!r} does not step in time: its solver {type(solver).__name__} has "
            "no dt; take another scenario."
        )
    array = np.moveaxis(np.asarray(states), 2, -1)
    shape = array.shape[2:-1]
    if len(shape) != scenario.num_spatial_dims:
        raise ValueError(
            f"scenario must give states of shape (samples, times, channels, *grid) with {scenario.num_spatial_dims} "
            f"axes of a grid, got {np.shape(states)}."
        )
    domain = domains.box(shape, upper=float(solver.domain_extent), rule="periodic")
    times = float(solver.dt) * np.arange(array.shape[1])
    return Trajectories(array.reshape(*array.shape[:2], -1, array.shape[-1]), domain, times)


def _rollouts(stepper: Any, truth: Trajectories, batch_size: int) -> np.ndarray:
    """Returns the states after the first of every trajectory, (samples, steps, nodes, channels)."""
    size = min(batch_size, len(truth))
    parts = []
    for start in range(0, len(truth), size):
        index = np.minimum(np.arange(start, start + size), len(truth) - 1)  # one shape, so one program
        initial = np.stack([truth.frames(i, slice(0, 1)) for i in index])
        found = rollout(stepper, initial, truth.steps - 1, domain=truth.domain)
        parts.append(np.asarray(found.states)[: len(truth) - start])
    return np.concatenate(parts)


def _method(name: str) -> tuple[int, int]:
    """Returns the number of steps of a window and the ``cut`` of the loss."""
    check_type(name, "method", str, "a name of APEBench, such as 'one' or 'sup;3'")
    kind, *options = name.lower().split(";")
    if kind == "one" and not options:
        return 1, 0
    if kind == "sup" and options and options[0].isdecimal() and options[1:] in ([], ["false"], ["true"]):
        count = int(options[0])
        if count > 0:
            return count, int(options[1:] == ["true"])
    raise ValueError(f"method must be 'one', 'sup;STEPS' or 'sup;STEPS;true', got {name!r}.")
