"""Trained models for others: a folder that is loaded without the run, and a program that JAX alone runs."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxop import operators, training
from jaxop._files import read_json
from jaxop.data import Samples
from jaxop.domains import Decomposed, Domain
from jaxop.experiments.problems import FileData
from jaxop.experiments.report import MEMBERS
from jaxop.experiments.trained import open_trained
from jaxop.operators.folder import ABOUT, CITATION, LICENCE, is_folder


def export_model(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    checkpoint: int | str = "best",
    card: Mapping[str, str] | None = None,
) -> Path:
    """Writes the trained operator of a run as a folder or zip file, with a card; `jaxop.from_pretrained` loads it.

    The card says what the run recorded: the data with their checksums, the settings of the training, and the errors of
    every evaluation of the checkpoint, in the units of the data.

    Args:
        run: the run directory.
        to: a new folder, or a new file that ends in ``.zip``.
        checkpoint: "best", "last" or the number of a step.
        card: further sections of the card, Markdown by title, which come before those of the run of the same title,
            see the argument of ``operator.save``.

    Returns:
        The path of the folder or file.

    Raises:
        FileNotFoundError: if the run or the checkpoint does not exist.
        FileExistsError: if something is at ``to`` already.
        ValueError: if the run did not record its operator.
        ImportError: if safetensors is not installed.
    """
    if is_folder(Path(run)):
        raise ValueError(f"{run} is a model without its run, which this command writes: copy it, or give the run.")
    loaded = training.load_run(run)
    step = loaded.step(checkpoint)
    sections = card_of(loaded, step) | dict(card or {})
    model = loaded.model(checkpoint=step)
    return model.save(to, card=sections, data=recipe_of(loaded), functions=loaded.functions)


def export_program(
    model: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    symbolic: Sequence[str] = operators.SYMBOLIC,
    platforms: Sequence[str] = operators.PLATFORMS,
    domain: str | os.PathLike[str] | None = None,
    inputs: str | None = None,
    checkpoint: int | str = "best",
) -> Path:
    """Writes the operator of a run or of a saved folder by `jaxop.operators.export`.

    Args:
        model: a run directory, or a folder or ``.zip`` file that ``operator.save`` or `export_model` wrote.
        to: a new file that ends in ``.zip``.
        symbolic: see `jaxop.operators.export`.
        platforms: see `jaxop.operators.export`.
        domain: a file of input functions, as ``jaxop predict`` takes it, on the nodes that are part of the program, if
            they are not symbolic. Nodes of targets in the file become those of the output.
        inputs: name of the input functions in this file; None means their name in the training file.
        checkpoint: "best", "last" or the number of a step of a run.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: if a path or the checkpoint does not exist.
        ValueError: if a checkpoint of a folder is asked for, the functions of the file do not share their nodes, the
            folder holds no operator, or for the reasons of `jaxop.operators.export`.
        TypeError: if the model is not an operator between functions, but a stepper, for example.
        NotImplementedError: if the nodes of this operator cannot be symbolic.
        FileExistsError: if something is at ``to`` already.
        ImportError: if safetensors or flatbuffers is not installed.
    """
    trained = open_trained(Path(model), checkpoint=str(checkpoint))
    known: dict[str, Any] = {}
    if domain is not None:
        reader = trained.problem if isinstance(trained.problem, FileData) else FileData(Path("samples.npz"))
        known = dict(zip(("domain", "at"), _nodes(Path(domain), reader, inputs, trained.blank.config.dim), strict=True))
    operator = trained.restore(None) if trained.calibrated is None else trained.calibrated
    return operators.export(operator, to, symbolic=symbolic, platforms=platforms, **known)


def _nodes(
    path: Path, problem: FileData, inputs: str | None, dim: int
) -> tuple[Domain | Decomposed, Domain | Decomposed | None]:
    """Returns the nodes of the functions in a file, and those of the targets if they are others."""
    problem = problem if inputs is None else dataclasses.replace(problem, inputs=inputs)
    samples = problem.of_inputs(path, dim)
    if not isinstance(samples, Samples) or samples.domain.is_batched:
        raise ValueError(
            f"--domain {path}: every function there has its own nodes; give a file whose functions share them, or make "
            "the nodes symbolic: --symbolic batch nodes."
        )
    return samples.domain, samples.at


def stated(*, about: str | None, licence: str | None, cite: str | None) -> dict[str, str]:
    """Returns the sections of a card that the owner of a model states; None leaves one out."""
    given = {ABOUT: about, LICENCE: licence, CITATION: cite}
    return {title: text for title, text in given.items() if text is not None}


def recipe_of(run: training.Run) -> dict[str, Any] | None:
    """Returns how the files of a run are read, for `Savable.save`; None if the run did not record it."""
    if not {"problem", "data"} <= run.config.keys():
        return None
    return {name: _without_folders(run.config[name]) for name in ("problem", "data")}


def card_of(run: training.Run, step: int) -> dict[str, str]:
    """Returns the sections of the card of a run's operator."""
    data = {name: _without_folders(run.config[name]) for name in ("problem", "data", "train") if name in run.config}
    own = {name: run.config[name] for name in ("loss", "optimizer", "constraints", "stepping") if name in run.config}
    settings = run.config["training"] | own
    sections = {
        "Data": f"Inputs and outputs are in the units of these data.\n\n{_code(data)}",
        "Training": f"Step {step} of the run with these settings.\n\n{_code(settings)}",
    }
    records = [read_json(file) for file in sorted((run.directory / "evaluation").glob("*.json"))]
    sets = [row for record in records if record["step"] == step for row in record["sets"]]
    errors = [row for row in run.metrics if row["step"] == step and "loss" not in row]
    if "stepping" in run.config:
        sections["Errors"] = _of_rollouts(sets)
    elif rows := [_row(row) for row in sets] + [line for row in errors for line in _of_validation(row)]:
        lines = ["| set | grid | samples | relative L2 | relative H1 |", "|---|---|---|---|---|", *rows]
        sections["Errors"] = "Means over the samples.\n\n" + "\n".join(lines)
    if members := [_row(row, *MEMBERS) for row in sets if MEMBERS[0] in row]:
        lines = [
            "| set | grid | samples | relative L2 of a member | relative CRPS | relative spread |",
            "|---" * 6 + "|",
        ]
        sections["Members"] = "Scores of the members of the ensemble.\n\n" + "\n".join([*lines, *members])
    return {name: text for name, text in sections.items() if text}


def _of_validation(row: Mapping[str, Any]) -> list[str]:
    """Returns the rows of the errors on the validation sets."""
    names = [name[:-3] for name in row if name.endswith("/l2")]
    return [
        f"| {name} (validation) | | | {_number(row[f'{name}/l2'])} | {_number(row.get(f'{name}/h1'))} |"
        for name in names
    ]


def _of_rollouts(sets: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of the errors over lead times, of the stepper and of persistence; "" if there are none."""
    lines = []
    for row in sets:
        for model, found in row["models"].items():
            errors = ", ".join(f"{_number(error) or '∞'} ({lead})" for lead, error in found["nrmse"].items())
            until = found["correlation_time"]
            time = f"> {row['time']:g}" if until is None else f"{until:.3g}"
            lines.append(f"| {row['set']} | {row['samples']} | {model} | {errors} | {time} |")
    if not lines:
        return ""
    head = "| set | rollouts | model | nRMSE (after so many steps) | correlation > 0.8 until |\n|---|---|---|---|---|"
    return "Means over rollouts.\n\n" + "\n".join([head, *lines])


def _without_folders(value: object) -> object:
    """Returns a recorded setting in which paths of this machine, which the readers do not have, are names of files."""
    if isinstance(value, dict):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def _row(row: Mapping[str, Any], *names: str) -> str:
    errors = " | ".join(_number(row[name]) for name in names or ("rel_l2", "rel_h1"))
    return f"| {row['set']} | {row['grid']} | {row['samples']} | {errors} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3e}"


def _code(value: object) -> str:
    return f"```json\n{json.dumps(value, indent=2)}\n```"
