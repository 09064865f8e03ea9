"""Error bars for a trained operator, from files of functions that are new to it."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flax import nnx

from jaxop import training
from jaxop._validation import check_share
from jaxop.experiments.export import card_of, recipe_of, stated
from jaxop.experiments.problems import FileData
from jaxop.experiments.report import COVERAGE, coverage_row, coverage_table, covered, samples_at_once
from jaxop.experiments.sets import AnySamples, by_name, check_sizes
from jaxop.experiments.settings import prepared
from jaxop.experiments.terminal import as_options, make_console
from jaxop.experiments.trained import Trained, open_trained
from jaxop.operators.calibrated import conformal_rank
from jaxop.operators.ready import ready_models
from jaxop.training import MeshConfig
from jaxop.training.calibration import known_functions
from jaxop.training.identity import as_set, digests, functions_of

if TYPE_CHECKING:
    from rich.console import Console

# of cards, which the calibrated operator says otherwise
_OWN_SECTIONS = ("Error bars", "Coverage", "Functions of the calibration", "Ensemble")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Settings of a calibration.

    Attributes:
        model: a run directory, or the folder or .zip file of a model. Of one with error bars the operators are
            calibrated again.
        data: a file or folder of pairs of functions that are new to the model, or files with one pair each.
        to: a new folder, or a new file that ends in .zip.
        alpha: share of the domain that may be outside the band, from 0 to below 1.
        delta: share of the functions that may be outside, between 0 and 1.
        spread: run, folder or .zip file of a second operator, which predicts the local size of the error; None gives
            bands of one width per channel, or the spread of a model that has one.
        floor: smallest local size, relative to its mean over the domain.
        trained_on: files, folders of files, runs and models with the functions that the model or its spread were
            trained on, if they do not have the hashes of them.
        test: files or folders of pairs of functions, on any nodes, on which the coverage is measured.
        checkpoint: "best", "last" or the number of a step, if the model is a run.
        inputs: name or names of the input functions in the files; None means their name in the training file.
        targets: name or names of the target functions in the files; None means their name in the training file.
        rule: quadrature rule of the grid in the files, one or one per axis: "midpoint", "periodic", "trapezoid", ...;
            None means the one of the training file.
        external: allows HDF5 files to have their values in other files.
        about: what the operator does, the first section of the card; None keeps that of the model.
        licence: licence of the operator, for the card.
        cite: how to cite it, for the card.
    """

    model: Path
    data: tuple[Path, ...] = ()
    to: Path | None = None
    alpha: float = 0.1
    delta: float = 0.1
    spread: Path | None = None
    floor: float = 0.01
    trained_on: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    checkpoint: str = "best"
    inputs: str | tuple[str, ...] | None = None
    targets: str | tuple[str, ...] | None = None
    rule: tuple[str, ...] | None = None
    external: bool = False
    about: str | None = None
    licence: str | None = None
    cite: str | None = None


def calibrate(settings: Calibration, *, console: "Console | None" = None) -> Path:
    """Writes an operator with error bars, which `jaxop.training.calibrate` makes, as a folder or zip file.

    Runs and models have the hashes of the functions of their training and validation. None of the calibration may be
    among them. A line says what was compared. The card has the coverage on the sets of ``test``.

    Args:
        settings: the model, the files, the levels.
        console: destination of the lines and the table; None writes to stdout.

    Returns:
        The path of the folder or file.

    Raises:
        FileNotFoundError: if a model, the checkpoint or a file does not exist.
        FileExistsError: if something is at ``to`` already.
        ValueError: if files or ``to`` are missing, functions are not new, or for the reasons of
            `jaxop.training.calibrate`.
        TypeError: if the model is not a neural operator with a config of `jaxop.operators.CONFIGS`.
        ImportError: if safetensors or a package of the extra ``scripts`` is not installed.
    """
    console = make_console() if console is None else console
    notes: list[str] = []

    def say(text: str) -> None:
        notes.append(text)
        console.print(text, soft_wrap=True)

    to = _check(settings)
    check_share(settings.alpha, "--alpha", zero=True)
    check_share(settings.delta, "--delta", zero=False)
    model = _opened(settings.model, settings.checkpoint)
    spread = None if settings.spread is None else _opened(settings.spread, "best")
    problem = _reader(settings, model)
    files = next(iter(settings.data)) if len(settings.data) == 1 else settings.data
    named = "--data " + " ".join(map(str, settings.data))
    samples = _prepared(model, named, _read(problem, files))
    conformal_rank(len(samples), settings.delta, named)
    tests = by_name(settings.test, lambda path: _prepared(model, f"--test {path}", _read(problem, path)))
    sets = {named: samples} | {f"--test {name}": found for name, found in tests.items()}
    models = [one for one in (model, spread) if one is not None]
    known = _trained_on(settings, problem, models, say)
    hashes = {label: list(digests(found, label)) for label, found in sets.items()}
    _check_new(hashes, {**known, named: set(hashes[named])})
    own = None if model.calibrated is None else model.calibrated.spread
    calibrated = training.calibrate(
        model.restore(None),
        samples,
        alpha=settings.alpha,
        delta=settings.delta,
        spread=cast(nnx.Module | None, own if spread is None else spread.restore(None)),
        floor=settings.floor,
        batch_size=samples_at_once(samples, MeshConfig()),
    )
    config = calibrated.config
    widths = ", ".join(f"{width:.4g}" for width in covered(calibrated, samples).half_width)
    say(f"{config.count:,} functions on {config.nodes}: factor {config.factor:.4g}, mean half-width {widths}")
    rows = [coverage_row(name, found, covered(calibrated, found)) for name, found in tests.items()]
    card, recipe = _about(model)
    card |= stated(about=settings.about, licence=settings.licence, cite=settings.cite)
    card["Functions of the calibration"] = "\n".join(f"- {_for_readers(note)}" for note in notes)
    if rows:
        console.print(coverage_table(rows))
        card["Coverage"] = _markdown(rows)
    path = calibrated.save(to, card=card, data=recipe, functions=_joined(known))
    console.print(f"model: {path}", soft_wrap=True)
    return path


def _check(settings: Calibration) -> Path:
    """Returns the path of the result; raises an error if an option is missing or the result would replace a file."""
    if settings.to is None:
        raise ValueError("give the new folder or .zip file of the operator with its error bars by --to.")
    if os.path.lexists(settings.to):
        raise FileExistsError(f"--to {settings.to} exists already; give a new name, or remove it first.")
    if not settings.data:
        raise ValueError(
            "give files of functions that are new to the model by --data. Those of a generated problem are written by "
            "data.save('new.npz', samples), with another seed and otherwise the settings on the model's card, such as "
            "samples = data.darcy(100, 64, seed=1)."
        )
    return settings.to


def _opened(path: Path, checkpoint: str) -> Trained:
    trained = open_trained(path, checkpoint=checkpoint)
    if trained.is_stepper:
        raise ValueError(f"{path} makes steps in time; error bars are those of an operator between functions.")
    return trained


def _reader(settings: Calibration, model: Trained) -> FileData:
    """Returns the data settings that read the files, which are those of the training but for given options."""
    problem = model.problem if isinstance(model.problem, FileData) else FileData(Path("samples.npz"))
    given = {name: getattr(settings, name) for name in ("inputs", "targets", "rule")}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(problem, external=settings.external, **given)


def _read(problem: FileData, path: Path | tuple[Path, ...]) -> AnySamples:
    try:
        with as_options(("inputs", "targets", "rule")):
            return problem.read(path)
    except (ValueError, KeyError) as error:
        if isinstance(path, tuple):
            error.add_note("(Several files in --data hold one pair each; put pairs of one kind into one file.)")
        raise


def _prepared(model: Trained, label: str, samples: AnySamples) -> AnySamples:
    config = model.blank.config
    names = {"dimensions": "dim", "input channels": "in_channels", "output channels": "out_channels"}
    sizes = {what: (getattr(config, name), getattr(samples, name)) for what, name in names.items()}
    check_sizes(label, samples, sizes)
    with as_options(("rule",)):
        return prepared({label: samples}, config)[label]


def _is_model(path: Path) -> bool:
    """Tells whether a path is that of a run or a model, or the name of a model, and not of data."""
    if not path.exists():
        return str(path) in ready_models()
    return path.suffix == ".zip" or (path / "config.json").is_file()


def _hashes(model: Trained, external: bool) -> np.ndarray | None:
    """Returns the hashes of the functions that a model knows, read from the files of its run if it has none itself."""
    hashes = model.functions
    if hashes is None and model.run is not None and isinstance(model.problem, FileData):
        with contextlib.suppress(OSError, ValueError):
            sets = dataclasses.replace(model.problem, test=(), external=external).load(Path())
            hashes = functions_of([sets.train, *sets.valid.values()])
    return hashes


def _trained_on(
    settings: Calibration, problem: FileData, models: list[Trained], say: Callable[[str], None]
) -> dict[str, set[bytes]]:
    """Returns the hashes of the functions that models know, by what they are called, and says what they are."""
    found: dict[str, set[bytes]] = {}
    for path in settings.trained_on:
        name = f"--trained-on {path}"
        if not _is_model(path):
            found[name] = set(digests(_read(problem, path), name))
            continue
        hashes = known_functions(path)
        if hashes is None:
            raise ValueError(f"{name} has no hashes of the functions that it was trained on: name the files of these.")
        found[name] = as_set(hashes)
    for one in models:
        hashes = _hashes(one, settings.external)
        if hashes is not None:
            found[f"{one.place}, its training or validation"] = as_set(hashes)
        elif settings.trained_on:
            say(f"{one.place.name} has no hashes of its functions: only those of --trained-on were compared")
        else:
            recipe = "" if one.problem is None or isinstance(one.problem, FileData) else f" ({one.problem})"
            say(
                f"not compared with the functions that {one.place.name} was trained on{recipe}, of which it has no "
                "hashes: name their files by --trained-on"
            )
    for name, rows in found.items():
        say(f"compared with {len(rows):,} function{'s' * (len(rows) != 1)} of {name}, one by one, on the same nodes")
    return found


def _check_new(sets: Mapping[str, list[bytes]], known: Mapping[str, set[bytes]]) -> None:
    """Raises ``ValueError`` if a function of a set is among those of a known set of another name."""
    for name, rows in known.items():
        for label, ours in sets.items():
            seen = [i for i, digest in enumerate(ours) if label != name and digest in rows]
            if seen:
                raise ValueError(
                    f"{label}: the functions must be new, but {len(seen)} of {len(ours)} are in {name}, the first "
                    f"being number {seen[0]}; keep functions for the calibration, and for its test, apart."
                )


def _joined(known: Mapping[str, set[bytes]]) -> np.ndarray | None:
    """Returns all known hashes in one array, None if there are none."""
    rows = sorted(set().union(*known.values()))
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16) if rows else None


def _about(model: Trained) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Returns the sections of the card and the recipe of the data, those of the model."""
    if model.run is not None:
        assert model.step is not None
        return card_of(model.run, model.step), recipe_of(model.run)
    assert model.saved is not None
    sections = {title: text for title, text in model.saved.sections.items() if title not in _OWN_SECTIONS}
    return sections, model.saved.data


def _for_readers(note: str) -> str:
    """Returns a line without the folders of this machine, which the readers of a card do not have."""
    return re.sub(r"(?<![^\s(])/\S*/(?=\S)", "", note)


def _markdown(rows: list[tuple[str, ...]]) -> str:
    lines = [COVERAGE, ("---",) * len(COVERAGE), *rows]
    about = "Share of the functions of each set that lie within their band, with its standard error."
    return "\n".join([about, "", *(f"| {' | '.join(line)} |" for line in lines)])
