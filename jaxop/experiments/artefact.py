"""The operator of a run or a folder as a program that JAX alone runs."""

import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jaxop
from jaxop import operators, training
from jaxop.data import Samples
from jaxop.domains import Decomposed, Domain
from jaxop.experiments.problems import FileData
from jaxop.experiments.record import recorded_problem
from jaxop.operators.folder import WEIGHTS


def export_program(
    model: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    symbolic: Sequence[str] = operators.SYMBOLIC,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    domain: str | os.PathLike[str] | None = None,
    inputs: str | None = None,
    checkpoint: int | str | None = None,
) -> Path:
    """Writes the operator of a run or of a saved folder by `jaxop.operators.export`.

    Args:
        model: a run directory, or a folder or ``.zip`` file that ``operator.save`` or ``jaxop export-model`` wrote.
        to: a new file that ends in ``.zip``.
        symbolic: see `jaxop.operators.export`.
        platforms: see `jaxop.operators.export`.
        domain: a file of input functions, as ``jaxop predict`` takes it, on the nodes that are part of the program, if
            they are not symbolic. Nodes of targets in the file become those of the output.
        inputs: name of the input functions in this file; None means their name in the training file.
        checkpoint: "best", "last" or the number of a step of a run; None means "best".

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: if a path or the checkpoint does not exist.
        ValueError: if a checkpoint of a folder is asked for, the functions of the file do not share their nodes, or for
            the reasons of `jaxop.operators.export`.
        TypeError: if the model is not an operator between functions, but a stepper, for example.
        NotImplementedError: if the nodes of this operator cannot be symbolic.
        FileExistsError: if something is at ``to`` already.
        ImportError: if safetensors or flatbuffers is not installed.
    """
    place, problem = Path(model), None
    if place.is_file() or (place / WEIGHTS).is_file():
        if checkpoint is not None:
            raise ValueError(
                f"--checkpoint {checkpoint} is for runs; {place} is a model without its run: leave it out."
            )
        operator: Any = jaxop.from_pretrained(place)
    else:
        run = training.load_run(place)
        problem = recorded_problem(run)
        operator = run.model(checkpoint=run.step("best" if checkpoint is None else checkpoint))
    known: dict[str, Any] = {}
    if domain is not None:
        reader = problem if isinstance(problem, FileData) else FileData(Path("samples.npz"))
        known = dict(zip(("domain", "at"), _nodes(Path(domain), reader, inputs), strict=True))
    return operators.export(operator, to, symbolic=symbolic, platforms=platforms, **known)


def _nodes(path: Path, problem: FileData, inputs: str | None) -> tuple[Domain | Decomposed, Domain | Decomposed | None]:
    """Returns the nodes of the functions in a file, and those of the targets if they are others."""
    problem = problem if inputs is None else dataclasses.replace(problem, inputs=inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nothing reads")  # such as targets
        samples = problem.of_inputs(path)
    if not isinstance(samples, Samples) or samples.domain.is_batched:
        raise ValueError(
            f"--domain {path}: every function there has its own nodes; give a file whose functions share them, or make "
            "the nodes symbolic: --symbolic batch nodes."
        )
    return samples.domain, samples.at
