"""Trained models that come with the package, by name."""

import os
from pathlib import Path

from jaxop._validation import check_type, closest
from jaxop.operators.folder import ABOUT, CARD

READY = Path(__file__).parents[1] / "models"
"""The folders of the models that come with the package."""


def ready_models() -> dict[str, str]:
    """Returns the trained models that come with the package: what each does, by the name for `jaxop.from_pretrained`.

    Each has a card with its data, its training and its errors, ``card.md`` in ``jaxop/models/NAME``.

    Example:
        >>> from jaxop import operators
        >>> sorted(operators.ready_models())[:2]
        ['darcy_lognormal_fno', 'darcy_lognormal_tno']
    """
    cards = {card.parent.name: card.read_text(encoding="utf-8") for card in sorted(READY.glob(f"*/{CARD}"))}
    return {name: card.partition(f"## {ABOUT}\n\n")[2].partition("\n")[0] for name, card in cards.items()}


def located(path: str | os.PathLike[str]) -> Path:
    """Returns the place of a model: the path or, if nothing is there, the folder of the ready model of this name.

    Raises:
        FileNotFoundError: if there is neither; the message has the closest names.
    """
    check_type(path, "path", (str, os.PathLike), "the path of a model, or the name of one of operators.ready_models()")
    place = Path(path)
    if place.exists():
        return place
    if place.name == os.fspath(path) and (READY / place.name / CARD).is_file():
        return READY / place.name
    raise FileNotFoundError(
        f"{place} does not exist: {place} is not a run directory, nor the folder or file of a model, nor the name of a "
        f"model that comes with jaxop. {closest(place.name, ready_models())}"
    )
