"""Models as folders: config, weights, statistics and a card, without the data of the training and without pickle."""

import dataclasses
import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from jaxop._config import Json, to_dict
from jaxop._files import hashes_to_bytes, json_checksum, parse_hashes, parse_json
from jaxop._pytree import leaf_names
from jaxop._validation import check_type
from jaxop.operators.registry import model_of

FORMAT = 1
"""Version of the format of folders that this version writes; it reads this one and all before it."""

CONFIG, WEIGHTS, STATISTICS, CARD = "config.json", "model.safetensors", "statistics.json", "card.md"
DATA = "data.json"
FUNCTIONS = "functions.npy"
PROGRAM = "operator.bin"  # of `jaxop.operators.export`, in other zip files
_SOURCE, _VERSIONS = "Source of the architecture", "Versions"

ABOUT, LICENCE, CITATION = "What it does", "Licence", "How to cite"
"""Titles of the card that every reader looks for."""

_UNSTATED = {
    LICENCE: "Not stated: ask whoever trained it.",
    CITATION: "Its authors, the paper of its architecture below, and jaxop (`CITATION.cff` in its repository).",
}


class Savable:
    """Base class of models that `save` as folders, which `jaxop.from_pretrained` loads.

    Attributes:
        USAGE: a line of Python that calls the model, for the card.
    """

    USAGE: ClassVar[str] = "outputs = model(values, domain)"

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        card: Mapping[str, str] | None = None,
        data: Mapping[str, Json] | None = None,
        functions: UInt8[np.ndarray, "n 16"] | None = None,
    ) -> Path:
        """Writes the model to a folder, or to one file if the name ends in ``.zip``.

        The folder has config and checksums (``config.json``), weights (``model.safetensors``), the statistics of a
        `jaxop.operators.Standardized` (``statistics.json``), and a page for its readers (``card.md``). Weights in half
        precision are stored in float32. Random streams are not stored.

        Args:
            path: a new folder or file.
            card: further sections of the card, Markdown by title. "What it does" comes first; "Licence" and "How to
                cite" replace what the card says otherwise.
            data: how files of such functions are read, in JSON (``data.json``): what a run of ``jaxop train`` records
                as "problem" and "data". ``jaxop predict`` reads it. None means the defaults of `jaxop.data.read`.
            functions: hashes of the functions that the model was trained on (``functions.npy``), which
                `jaxop.training.calibrate` refuses; those of a run are `jaxop.training.Run.functions`.

        Returns:
            The path.

        Raises:
            FileExistsError: if something is there already.
            TypeError: if the class of the model is not registered, ``card`` is not a dict of strings, or ``data`` is
                not JSON.
            ValueError: if a weight is not finite; the message names it.
            ImportError: if safetensors is not installed.

        Cost: one copy of the weights in host memory.

        Example:
            >>> import tempfile
            >>> from flax import nnx
            >>> import jaxop
            >>> config = jaxop.operators.FourierNeuralOperatorConfig(1, 1, width=4, layers=1, modes=2, reference=8)
            >>> operator = jaxop.operators.build(config, rngs=nnx.Rngs(0))
            >>> folder = operator.save(tempfile.mkdtemp() + "/fno", card={"Data": "none, it is not trained"})
            >>> sorted(file.name for file in folder.iterdir())
            ['card.md', 'config.json', 'model.safetensors']
            >>> jaxop.from_pretrained(folder).config == config
            True
        """
        operator, statistics = self._parts()
        files = _contents(operator, statistics, self._sections() | dict(card or {}), data, functions)
        return write_files(Path(path), files)

    def _parts(self) -> tuple[nnx.Module, dict[str, Array] | None]:
        """Returns the registered model, and the statistics of its data if it has any."""
        assert isinstance(self, nnx.Module)
        return self, None

    def _sections(self) -> dict[str, str]:
        """Returns what the model says of itself on the card, Markdown by title."""
        return {}


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a folder says.

    Attributes:
        path: the folder or file.
        config: the contents of ``config.json``.
        weights: arrays by the path of their leaf.
        statistics: the contents of ``statistics.json``, or None.
        data: the contents of ``data.json``, or None.
        functions: hashes of the functions of the training, ``functions.npy``, or None.
        card: the contents of ``card.md``.
    """

    path: Path
    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    statistics: dict[str, list[float]] | None
    data: dict[str, Any] | None
    functions: np.ndarray | None = None
    card: str = ""

    @property
    def sections(self) -> dict[str, str]:
        """What the writer of the card said of the model, Markdown by title, without what `Savable.save` adds."""
        parts = re.split(r"^## (.+)\n", self.card, flags=re.MULTILINE)
        found = {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}
        return {title: text for title, text in found.items() if title not in (_SOURCE, _VERSIONS)}


def is_folder(path: Path) -> bool:
    """Tells whether a path may be what `Savable.save` wrote: a file, or a folder with weights or a card."""
    return path.is_file() or any((path / name).is_file() for name in (WEIGHTS, CARD))


def read_folder(path: str | os.PathLike[str]) -> Saved:
    """Reads what `Savable.save` wrote, and compares all of it with its checksums.

    Raises:
        FileNotFoundError: if there is nothing, or a file is missing; the message names it.
        ValueError: if a file was changed or cut, or the format is newer than `FORMAT`; the message names file and
            version.
    """
    check_type(path, "path", (str, os.PathLike), "the path of a folder or file that model.save(path) wrote")
    place = Path(path)
    read = _reader(place)
    config = parse_json(read(CONFIG), f"{place}/{CONFIG}")
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise ValueError(f"{place}/{CONFIG} does not describe a model that model.save(path) wrote.")
    if config["format"] > FORMAT:
        raise ValueError(
            f"{place} has format {config['format']} of jaxop {config.get('jaxop')}, but this version, "
            f"{metadata.version('jaxop')}, reads formats up to {FORMAT}; update jaxop."
        )
    if config.pop("seal", None) != json_checksum(config):
        raise ValueError(f"{place}/{CONFIG} was changed after it was written; get another copy of the model.")
    contents = {name: read(name) for name in config["files"]}
    for name, (size, checksum) in config["files"].items():
        if (len(contents[name]), _hash(contents[name])) != (size, checksum):
            raise ValueError(
                f"{place}/{name} was changed after it was written, or cut: it has {len(contents[name])} bytes of "
                f"{size} and another checksum; get another copy of the model."
            )
    others = {
        name: parse_json(contents[name], f"{place}/{name}") if name in contents else None for name in (STATISTICS, DATA)
    }
    card, functions = contents.get(CARD, b"").decode(), None
    if FUNCTIONS in contents:
        functions = parse_hashes(contents[FUNCTIONS], f"{place}/{FUNCTIONS}")
    weights = _safetensors().load(contents[WEIGHTS])
    return Saved(place, config, weights, others[STATISTICS], others[DATA], functions, card)


def named_weights(model: nnx.Module) -> dict[str, Any]:
    """Returns all arrays of a model but its random streams, by the path of their leaf."""
    _, _, rest = nnx.split(model, nnx.RngState, ...)
    tree = nnx.to_pure_dict(rest)
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def _contents(
    operator: nnx.Module,
    statistics: dict[str, Array] | None,
    card: dict[str, str],
    data: Mapping[str, Json] | None,
    functions: np.ndarray | None,
) -> dict[str, bytes]:
    """Returns the files of a folder by name."""
    check_type(card, "card", dict, "a dict of Markdown by title")
    for title, text in card.items():
        if not isinstance(title, str) or not isinstance(text, str):
            raise TypeError(f"card must map titles to Markdown, got {title!r}: {text!r}.")
    config = operator.config  # pyright: ignore[reportAttributeAccessIssue]
    known = model_of(config)
    if isinstance(known.module, type) and not isinstance(operator, known.module):
        raise TypeError(
            f"model must be a {known.module.__name__}, whose config it has, got a {type(operator).__name__} inside; "
            "save the model that it holds."
        )
    weights = {}
    for leaf, array in named_weights(operator).items():
        array = np.asarray(jax.device_get(array), order="C")  # safetensors reads the memory as it lies
        if jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(np.promote_types(array.dtype, np.float32))
            if not np.isfinite(array).all():
                raise ValueError(f"{leaf} of the model is not finite; only models with finite weights are saved.")
        weights[leaf] = array
    files = {WEIGHTS: _safetensors().save(weights, {"format": "np"})}
    if statistics is not None:
        numbers = {key: np.asarray(value, np.float64).tolist() for key, value in statistics.items()}
        files[STATISTICS] = _json(numbers)
    if data is not None:
        files[DATA] = _json(dict(data))
    if functions is not None:
        files[FUNCTIONS] = hashes_to_bytes(functions)
    count = sum(array.size for array in weights.values())
    files[CARD] = _card(operator, to_dict(config), count, card).encode()
    description: dict[str, Any] = {
        "format": FORMAT,
        "jaxop": metadata.version("jaxop"),
        "model": known.name,
        "config": to_dict(config),
        "files": {key: [len(content), _hash(content)] for key, content in files.items()},
    }
    return {CONFIG: _json(description | {"seal": json_checksum(description)}), **files}


def write_files(path: Path, files: dict[str, bytes]) -> Path:
    """Writes a folder or a zip file, which appears when it is complete."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already; give a new name, or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        made = scratch / path.name
        if path.suffix == ".zip":
            with zipfile.ZipFile(made, "w") as archive:
                for name, content in files.items():
                    archive.writestr(zipfile.ZipInfo(name), content)
        else:
            made.mkdir()
            for name, content in files.items():
                (made / name).write_bytes(content)
        os.rename(made, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _reader(place: Path) -> Callable[[str], bytes]:
    """Returns a function that reads a file of a folder or of a zip file by name."""
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; give the folder or file that model.save(path) wrote.")
    if place.is_dir():

        def read(name: str) -> bytes:
            if not (place / name).is_file():
                raise FileNotFoundError(f"{place} has no file {name}; get another copy of the model.")
            return (place / name).read_bytes()

        return read
    if not zipfile.is_zipfile(place):
        raise ValueError(f"{place} is neither a folder nor a zip file of a model; get another copy of the model.")

    def member(name: str) -> bytes:
        names: list[str] = []
        try:
            with zipfile.ZipFile(place) as archive:
                names += archive.namelist()
                return archive.read(name)
        except KeyError:
            if PROGRAM in names:
                raise ValueError(
                    f"{place} is a program that `jaxop export` or operators.export wrote, which runs with JAX alone: "
                    "jax.export.deserialize reads it, as the docstring of operators.export shows. Give the model that "
                    "it was made from."
                ) from None
            raise FileNotFoundError(f"{place} has no file {name}; get another copy of the model.") from None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"{place}/{name} is damaged ({error}); get another copy of the model.") from error

    return member


def _card(operator: nnx.Module, config: dict[str, Json], count: int, sections: dict[str, str]) -> str:
    """Returns the page for the readers of a folder."""
    kinds, inside = [], operator
    while inside is not None:
        kinds += [type(inside)] * (type(inside).__name__ != "Standardized")  # which says nothing of the architecture
        inside = getattr(inside, "operator", None)
    texts = [inspect.getdoc(kind) or "" for kind in kinds]
    found = [re.search(r"^Source: (.+?)(?:\n\s*\n|\Z)", text, re.MULTILINE | re.DOTALL) for text in texts]
    lines = [f"# {' of '.join(kind.__name__ for kind in kinds)}", *(text.partition("\n")[0] for text in texts)]
    if "in_channels" in config:
        lines.append(
            f"It maps functions with {_counted(config['in_channels'], 'channel')} to functions with "
            f"{_counted(config['out_channels'], 'channel')}, in {_counted(config['dim'], 'space dimension')}, and has "
            f"{count:,} numbers."
        )
    usage = getattr(operator, "USAGE", Savable.USAGE)
    lines.append(f"```python\nimport jaxop\n\nmodel = jaxop.from_pretrained(PATH)\n{usage}\n```")
    first = {ABOUT: sections[ABOUT]} if ABOUT in sections else {}
    for title, text in (first | sections | _UNSTATED | sections).items():
        lines += [f"## {title}", text.strip()]
    if sources := [re.sub(r"\s+", " ", source[1]) for source in found if source]:
        lines += [f"## {_SOURCE}", *sources]
    packages = [f"{name} {metadata.version(name)}" for name in ("jaxop", "jax", "flax")]
    lines += [f"## {_VERSIONS}", f"Written with Python {platform.python_version()}, {', '.join(packages)}."]
    return "\n\n".join(lines) + "\n"


def _counted(number: Json, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("saved models need safetensors; install it with: pip install 'jaxop[share]'") from error
    return safetensors.numpy
