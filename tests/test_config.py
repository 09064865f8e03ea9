"""Every config of the package goes through JSON and back, whatever it holds."""

import contextlib
import dataclasses
import importlib
import json
import pkgutil
import types
import typing
from pathlib import Path

import jax.numpy as jnp
import pytest

import jaxop
from jaxop import nn, operators, training
from jaxop._config import CHANGES, from_dict, to_dict

SIZES = {"vocabulary": 11, "context": 6, "source": 4, "target": 3, "side": 8, "in_channels": 1, "out_channels": 2}
SIZES |= {"operator": operators.CONFIGS["tno"](1, 1), "channels": 1}
SIZES |= {"alpha": 0.1, "delta": 0.1, "factor": 2.0, "count": 19, "members": 2}
BESIDE = {"momentum": {"norm": "pre"}, "schwarz": {"decoder_layers": 1}}
"""What a config must hold besides an option."""


def configs():
    """Every dataclass of the package whose name ends in Config or Data."""
    for module in pkgutil.walk_packages(jaxop.__path__, "jaxop."):
        if module.name.endswith("__main__"):  # it runs
            continue
        try:
            found = vars(importlib.import_module(module.name)).values()
        except ImportError:  # an extra
            continue
        for kind in found:
            is_config = dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module.name
            if is_config and kind.__name__.endswith(("Config", "Data")) and not kind.__name__.startswith("_"):
                yield kind


KINDS = sorted(configs(), key=lambda kind: kind.__name__)


def required(kind):
    """Values of the fields without a default."""
    names = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    return {name: SIZES[name] if name in SIZES else Path("a.npz") for name in names}


def alternatives(kind):
    """A config of the kind by default, and one for every config, path or tuple that each of its fields may hold."""
    yield kind(**required(kind))
    for field, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        for option in options:
            values = []
            if option is operators.OperatorConfig:  # any operator's
                values = [SIZES["operator"]]
            elif option is operators.ConstraintConfig:
                values = [operators.ConservativeOperatorConfig(SIZES["operator"], integrals=(0.0,))]
            elif dataclasses.is_dataclass(option):
                values = list(alternatives(option))
            elif option is Path:
                values = [Path("b.npz")]
            elif typing.get_origin(option) is tuple and typing.get_args(option)[0] in (int, float, str, Path):
                values = [tuple(part("1") for part in typing.get_args(option) if part is not ...)]
            for value in values:
                with contextlib.suppress(ValueError):  # not every config takes every kernel
                    yield kind(**(required(kind) | BESIDE.get(field, {}) | {field: value}))


def through_json(config):
    return from_dict(type(config), json.loads(json.dumps(to_dict(config))))


def test_the_walk_finds_the_configs():
    names = {kind.__name__ for kind in KINDS}
    models = {kind.__name__ for kind in operators.CONFIGS.values()}
    kernels = {kind.__name__ for kind in nn.KERNELS.values()}
    others = {"TrainingConfig", "MomentumConfig", "SchwarzAttentionConfig", "EncoderDecoderTransformerConfig"}
    assert models | kernels | others <= names


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_config_survives_json(kind):
    made = list(alternatives(kind))
    for config in made:
        assert through_json(config) == config
        assert from_dict(kind, dataclasses.asdict(config)) == config
    fields = {field.name for field in dataclasses.fields(kind)}
    for name, expected in (("kernel", len(nn.KERNELS) - 2), ("attention", len(nn.KERNELS)), ("momentum", 1)):
        if name in fields:
            assert len({json.dumps(to_dict(config)[name]) for config in made}) >= expected, name


def test_what_json_cannot_say_comes_from_the_hints():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        sides: tuple[int, str] = (1, "a")

    @dataclasses.dataclass(frozen=True)
    class Outer:
        files: tuple[Path, ...]
        inner: Inner | None = None
        options: dict[str, int] = dataclasses.field(default_factory=dict)
        names: list[str] = dataclasses.field(default_factory=list)
        box: tuple[tuple[float, ...], ...] | None = None

    config = Outer((Path("a"), Path("b/c")), Inner((3, "b")), {"x": 1}, ["y"], ((0.0,), (1.0, 2.0)))
    assert through_json(config) == config
    assert through_json(Outer(())) == Outer(())


def test_dtypes_are_written_by_name():
    config = operators.CONFIGS["tno"](1, 1)
    assert to_dict(config)["param_dtype"] == "float32"
    assert training.to_json({"dtype": jnp.bfloat16}) == {"dtype": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class FileData:
    """A problem of a user who chose a name of ours."""

    train: Path
    test: tuple[Path, ...] = ()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"train": 3}, TypeError, r"data\.train must be a path, got 3"),
        ({"train": "a", "test": {"b": 1}}, TypeError, r"data\.test must not be a dict, got \{'b': 1\}"),
        ({"train": ["a"]}, TypeError, r"data\.train must not be a list, got \['a'\]"),
        ({"train": "a", "tset": []}, ValueError, "FileData has no field 'tset': did you mean 'test'"),
        ({}, TypeError, r"data must hold .*\['train'\] are missing"),
        ([], TypeError, "data must be a dict of the fields of FileData, got list"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_located(values, error, message):
    with pytest.raises(error, match=message):
        from_dict(FileData, values, name="data")


@pytest.mark.usefixtures("unchecked")
def test_to_dict_wants_a_config():
    with pytest.raises(TypeError, match="config must be a config, an instance of a dataclass, got 3"):
        to_dict(3)


def test_changes_are_of_configs_that_exist():
    names = {kind.__name__ for kind in KINDS} | {"FileData"}
    assert set(CHANGES) <= names
